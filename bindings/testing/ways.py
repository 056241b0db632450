"""Four ordinary ways to add numbers up, from which the error gate takes its allowance.

A way rounds every operand of a matrix product to the inputs' dtype, multiplies and adds in the compute dtype
(float32 for 16-bit inputs), and differs from the others only in the order of its sums.

Where an output has few elements, four errors are too few to tell how large an ordinary error is: two numbers that
cancel may cancel by luck. So the ways are repeated with their rounding errors drawn anew (Monte Carlo arithmetic,
Parker 1997): sums and products move by up to 1 unit in the last place, elementary functions by up to 2, as vendors
document theirs, and operands are rounded from a value up to a quarter unit away.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from saccade.reference.precision import compute_dtype

BLOCK = 16
ORDERS = ("in order", "reversed", "in blocks", "online")


def transpose(x):
    """The last two axes swapped."""
    return np.swapaxes(x, -1, -2)


@dataclass(frozen=True)
class Way:
    """One order of summation for inputs of ``dtype``; "online" adds as NumPy and BLAS do."""

    order: str
    dtype: np.dtype
    noise: np.random.Generator | None = None
    jitter: float = 0.24  # of a unit in the last place of the inputs' dtype, before operands are rounded
    rounds: bool = True  # whether operands are rounded to the inputs' dtype
    keys: int = BLOCK  # that online attention takes at a time

    @property
    def core(self):
        """The dtype sums are taken in."""
        return compute_dtype(self.dtype)

    def round(self, x):
        """``x`` rounded to the inputs' dtype, in the compute dtype again; noise leaves exact values as they are."""
        x = np.asarray(x)
        if not self.rounds or x.dtype == self.dtype:
            return x.astype(self.core, copy=False)
        if self.core != self.dtype:
            x = self._moved(x, self.jitter * float(ml_dtypes.finfo(self.dtype).eps))
        return x.astype(self.dtype, copy=False).astype(self.core, copy=False)

    def exp(self, x):
        """exp(x) as an elementary function gives it."""
        return self.elementary(np.exp(x))

    def log(self, x):
        """log(x) as an elementary function gives it."""
        return self.elementary(np.log(x))

    def sqrt(self, x):
        """sqrt(x) as an elementary function gives it."""
        return self.elementary(np.sqrt(x))

    def rounding(self, x):
        """``x`` as one more rounding in the compute dtype may leave it."""
        return self._moved(x, float(np.finfo(self.core).eps))

    def elementary(self, x):
        """``x``, the value of an elementary function, as programs give it."""
        return self._moved(x, 2 * float(np.finfo(self.core).eps))

    def _moved(self, x, relative):
        if self.noise is None:
            return x
        factor = self.noise.random(np.shape(x), x.dtype)
        factor *= x.dtype.type(2 * relative)
        factor += x.dtype.type(1 - relative)
        return x * factor

    def raise_(self, *arrays):
        """The arrays in the compute dtype; None stays None."""
        return tuple(None if x is None else np.asarray(x).astype(self.core, copy=False) for x in arrays)

    def sum(self, x, axis):
        """Sum along one axis, kept with length 1."""
        factor = self._factor()
        x = np.moveaxis(np.asarray(x, self.core), axis, -1) * factor
        if self.order == "online" or x.shape[-1] == 0:
            total = x.sum(-1, dtype=self.core)
        elif self.order == "in blocks":
            parts = [x[..., i : i + BLOCK] for i in range(0, x.shape[-1], BLOCK)]
            total = _last(np.stack([_last(part) for part in parts], -1))
        else:
            total = _last(x[..., ::-1] if self.order == "reversed" else x)
        return np.expand_dims(self.rounding(total / factor), axis)

    def mean(self, x, axis):
        """Mean along one axis, kept with length 1."""
        return self.sum(x, axis) / self.core.type(x.shape[axis])

    def sum_all(self, x):
        """Sum of everything, as a scalar."""
        return self.sum(np.ravel(x), 0)[0]

    def matmul(self, a, b, start=None):
        """(…, m, k) @ (…, k, n) with rounded operands; sums in order or reversed begin at ``start``, (n,), if given."""
        factor = self._factor()
        product = self._product(self.round(a) * factor, self.round(b), None if start is None else start * factor)
        return self.rounding(product / factor)

    def _factor(self):
        """With noise, a factor to multiply by before adding and to divide by after: where many terms are equal, each
        addition rounds the same way, and which way is luck."""
        return self.core.type(1 if self.noise is None else self.noise.uniform(1, 2))

    def _product(self, a, b, start):
        depth = a.shape[-1]
        if self.order == "online" or depth == 0:
            return np.matmul(a, b)
        b = np.ascontiguousarray(b)  # whose rows are read one after the other
        steps = range(depth)[::-1] if self.order == "reversed" else range(depth)
        if self.order != "in blocks":
            return self._accumulate(a, b, steps, start)
        blocks = [self._accumulate(a, b, steps[i : i + BLOCK]) for i in range(0, depth, BLOCK)]
        total = blocks[0]
        for block in blocks[1:]:
            total = total + block
        return total

    def _accumulate(self, a, b, steps, start=None):
        total = a[..., :, steps[0], None] * b[..., steps[0], None, :]
        total = total if start is None else start + total
        for k in steps[1:]:
            total = total + a[..., :, k, None] * b[..., k, None, :]
        return total


def _last(x):
    return np.add.accumulate(x, axis=-1)[..., -1]


def ways(dtype, repeats):
    """The four ways for inputs of ``dtype``, and ``repeats`` with rounding errors drawn anew, always the same.

    There are 8 more of the online way, in which one number may be off by much: a large score computed a second time.

    For 16-bit inputs there are as many again, at most 8, that keep operands in float32: where rounded operands happen
    to cancel exactly, unrounded ones leave the errors of float32.
    """
    dtype, noise = np.dtype(dtype), np.random.default_rng(0)
    again = [Way(order, dtype, noise) for order in (*(ORDERS[i % 4] for i in range(repeats)), *["online"] * 8)]
    if compute_dtype(dtype) != dtype:
        again += [Way(ORDERS[i % 4], dtype, noise, rounds=False) for i in range(min(repeats, 8))]
    return [Way(order, dtype) for order in ORDERS] + again
