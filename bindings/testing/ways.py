"""Four ordinary ways to add numbers up, from which the error gate takes its allowance.

A way rounds every operand of a matrix product to the inputs' dtype, multiplies and adds in the compute dtype
(float32 for 16-bit inputs), and differs from the others only in the order of its sums.
"""

from dataclasses import dataclass

import numpy as np

from saccade.reference.precision import compute_dtype

BLOCK = 16
ORDERS = ("in order", "reversed", "in blocks", "online")


@dataclass(frozen=True)
class Way:
    """One order of summation for inputs of ``dtype``; "online" adds as NumPy and BLAS do."""

    order: str
    dtype: np.dtype

    @property
    def core(self):
        """The dtype sums are taken in."""
        return compute_dtype(self.dtype)

    def round(self, x):
        """``x`` rounded to the inputs' dtype, in the compute dtype again."""
        return np.asarray(x).astype(self.dtype).astype(self.core)

    def raise_(self, *arrays):
        """The arrays in the compute dtype; None stays None."""
        return tuple(None if x is None else np.asarray(x).astype(self.core) for x in arrays)

    def sum(self, x, axis):
        """Sum along one axis, kept with length 1."""
        x = np.moveaxis(np.asarray(x, self.core), axis, -1)
        if self.order == "online" or x.shape[-1] == 0:
            total = x.sum(-1, dtype=self.core)
        elif self.order == "in blocks":
            parts = [x[..., i : i + BLOCK] for i in range(0, x.shape[-1], BLOCK)]
            total = _last(np.stack([_last(part) for part in parts], -1))
        else:
            total = _last(x[..., ::-1] if self.order == "reversed" else x)
        return np.expand_dims(total, axis)

    def mean(self, x, axis):
        """Mean along one axis, kept with length 1."""
        return self.sum(x, axis) / self.core.type(x.shape[axis])

    def sum_all(self, x):
        """Sum of everything, as a scalar."""
        return self.sum(np.ravel(x), 0)[0]

    def matmul(self, a, b):
        """(…, m, k) @ (…, k, n) with rounded operands."""
        a, b = self.round(a), self.round(b)
        depth = a.shape[-1]
        if self.order == "online" or depth == 0:
            return np.matmul(a, b)
        steps = range(depth)[::-1] if self.order == "reversed" else range(depth)
        if self.order != "in blocks":
            return self._accumulate(a, b, steps)
        blocks = [self._accumulate(a, b, steps[i : i + BLOCK]) for i in range(0, depth, BLOCK)]
        total = blocks[0]
        for block in blocks[1:]:
            total = total + block
        return total

    def _accumulate(self, a, b, steps):
        total = a[..., :, steps[0], None] * b[..., steps[0], None, :]
        for k in steps[1:]:
            total = total + a[..., :, k, None] * b[..., k, None, :]
        return total


def _last(x):
    return np.add.accumulate(x, axis=-1)[..., -1]


def ways(dtype):
    """The four ways for inputs of ``dtype``."""
    return [Way(order, np.dtype(dtype)) for order in ORDERS]
