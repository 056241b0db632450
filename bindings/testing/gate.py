"""The error gate: is this result as right as an ordinary implementation in its dtype would be?

* *Truth*: the reference in float64 on the same, already rounded, inputs; for float64 in ``np.longdouble``.
* *Allowance*: the largest error of four ordinary ways to compute it in the inputs' dtype (``ordinary``), and of
  repeats with rounding errors drawn anew (``ways``): many where there are few elements to learn from. Where these
  errors scatter, at least their mean and three standard deviations.
* *Pass*: ``err <= 2 allowance + band`` for the RMS and for the largest error, of every output and gradient, with
  ``band`` 4 units in the last place of max |truth|, and non-finite values exactly where the rounded truth has them.
  Numbers too small to be normal in the compute dtype may be flushed to 0, as much hardware does: results, and each
  of the terms that are added up, of which there are at most as many as the longest axis has elements, or a factor of
  them, whose other factor is at most the product of the largest numbers of all arguments and cotangents.
* *Inconclusive*: within the allowance where that exceeds a quarter of the truth's RMS: zeros would pass as well. Where
  terms cancel to all but nothing (less than a thousandth of the allowance), zeros are right and pass.

There is nothing to tune: no tolerance is passed in.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from saccade import reference
from saccade.families import GRADIENTS
from saccade.reference.precision import compute_dtype
from saccade.testing import ordinary
from saccade.testing.ways import ways

# The name of each gradient, in the order f_backward returns them.
OUTPUTS = ("output", "second output")
LARGEST_FACTOR = 2.0**40  # of a flushed number: beyond it the band would hide faults
NOTHING = 2.0**-10  # of the allowance: a truth below it is what terms that cancel leave in the truth's own precision
FEW = 1024  # outputs with fewer elements than this have their ordinary errors sampled more often


@dataclass(frozen=True)
class Judgement:
    """One output or gradient, judged."""

    name: str
    verdict: str  # "PASS", "FAIL" or "INCONCLUSIVE"
    reason: str
    error: float = np.nan  # the RMS of the error over the truth's, where there is one
    ordinary: float = np.nan  # the same of the ordinary implementation that is allowed most

    def __str__(self):
        return f"{self.name}: {self.verdict} ({self.reason})"


def verdict(judgements):
    """FAIL if any failed, INCONCLUSIVE if under 90 % judged anything, else PASS."""
    judgements = list(judgements)
    if any(one.verdict == "FAIL" for one in judgements):
        return "FAIL"
    conclusive = sum(one.verdict == "PASS" for one in judgements)
    return "PASS" if conclusive >= 0.9 * len(judgements) else "INCONCLUSIVE"


class Standard:
    """What implementations of an operation are held to on one input: the truth, and the errors of ordinary ways.

    Args:
        operation: a name in ``GRADIENTS``.
        arguments: the positional arguments, as NumPy arrays.
        options: the keyword arguments.
        cotangents: the gradients of the outputs that are passed backwards; None if gradients are not judged.
        true_options: the keyword arguments as the reference says them, where the implementation's differ.
        ordinary_ways: the ways to compute it, for inputs so large that all of ``ways`` would take too long.
    """

    def __init__(
        self, operation, arguments, options=None, cotangents=None, true_options=None, ordinary_ways=None
    ):  # fmt: skip
        options = (options or {}) if true_options is None else true_options
        self.operation, self.cotangents = operation, cotangents
        self.terms = max((length for x in arguments for length in np.shape(x)), default=1)
        self.terms *= _largest_factor((*arguments, *(() if cotangents is None else cotangents)))
        self.outputs, self.gradients = truth(operation, arguments, options, cotangents)
        few = sum(np.size(x) for x in self.outputs) < FEW
        self._ordinary = []
        with np.errstate(all="ignore"):
            for way in ordinary_ways or ways(working_dtype(arguments), repeats=32 if few else 4):
                results = getattr(ordinary, operation)(way, arguments, options, cotangents)
                self._ordinary.append([_as_tuple(part) for part in results])

    def judge(self, outputs, gradients=None):
        """A list of ``Judgement``, one per output and gradient.

        Args:
            outputs: the output, or the tuple of outputs, as NumPy arrays.
            gradients: the tuple of gradients in the order of ``GRADIENTS``, or None to judge the outputs alone.
        """
        outputs = _as_tuple(outputs)
        if len(outputs) != len(self.outputs):
            return [Judgement("output", "FAIL", f"{len(outputs)} outputs, expected {len(self.outputs)}")]
        judged = [
            judge_one(name, actual, true, [one[0][i] for one in self._ordinary], terms=self.terms)
            for i, (name, actual, true) in enumerate(zip(OUTPUTS, outputs, self.outputs, strict=False))
        ]
        for i, name in enumerate(GRADIENTS[self.operation] if gradients is not None else ()):
            actual, true = gradients[i], self.gradients[i]  # pyright: ignore[reportOptionalSubscript]
            if true is None or actual is None:
                same = true is None and actual is None
                judged += (
                    [] if same else [Judgement(f"gradient of {name}", "FAIL", "missing, or given where none exists")]
                )
            else:
                ordinary_values = [one[1][i] for one in self._ordinary]
                judged.append(judge_one(f"gradient of {name}", actual, true, ordinary_values, terms=self.terms))
        return judged

    def arrays_of(self, name, outputs, gradients):
        """(what came, the truth) for the output or gradient that a judgement names."""
        if name in OUTPUTS:
            i = OUTPUTS.index(name)
            return _as_tuple(outputs)[i], self.outputs[i]
        i = GRADIENTS[self.operation].index(name.removeprefix("gradient of "))
        return gradients[i], self.gradients[i]

    def ordinary_gradients(self, i):
        """The i-th gradient by every ordinary way."""
        return [one[1][i] for one in self._ordinary]


def judge(operation, outputs, gradients, arguments, options=None, cotangents=None):
    """Judge what an implementation of ``operation`` returned; a list of ``Judgement``, one per output and gradient.

    Args:
        operation: a name in ``GRADIENTS``.
        outputs: the output, or the tuple of outputs, as NumPy arrays.
        gradients: the tuple of gradients in the order of ``GRADIENTS``, or None to judge the outputs alone.
        arguments: the positional arguments that were passed.
        options: the keyword arguments that were passed.
        cotangents: the gradients of the outputs that were passed to the backward function.
    """
    cotangents = None if gradients is None else cotangents
    return Standard(operation, arguments, options, cotangents).judge(outputs, gradients)


def judge_one(name, actual, true, ordinary_values, magnitude=None, terms=1):
    """Judge one array against the truth and the same array computed in ordinary ways.

    ``magnitude`` is that of the numbers an array was summed from, for the band; the truth's own if None. ``terms`` is
    how many of them there are at most, times what a flushed factor of theirs may have been multiplied by.
    """
    actual = np.asarray(actual)
    if actual.shape != np.shape(true):
        return Judgement(name, "FAIL", f"{actual.shape=}, expected {np.shape(true)}")
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.asarray(true).astype(actual.dtype)
    finite = np.isfinite(rounded)
    wide = true.dtype.type
    if not np.array_equal(actual[~finite].astype(wide), rounded[~finite].astype(wide), equal_nan=True):
        return Judgement(name, "FAIL", "finite, or another infinity, where the truth is not finite")
    if not np.isfinite(actual[finite]).all():
        return Judgement(name, "FAIL", f"{int((~np.isfinite(actual[finite])).sum())} values not finite, the truth is")
    if not finite.any():
        return Judgement(name, "PASS", "nothing finite to compare")
    error = actual[finite].astype(wide) - true[finite]
    allowances = []
    for value in ordinary_values:
        with np.errstate(over="ignore", invalid="ignore"):
            value = np.asarray(value).astype(actual.dtype)
        allowances.append(np.nan_to_num(value[finite].astype(wide) - true[finite], nan=np.inf))
    allowed_rms, allowed_max = (_allowance([measure(one) for one in allowances]) for measure in (_rms, _largest))
    size = _rms(true[finite]) or np.nan
    told = {"error": _rms(error) / size, "ordinary": allowed_rms / size}
    smallest_normal = float(np.finfo(compute_dtype(actual.dtype)).tiny)
    magnitude = _largest(true[finite]) if magnitude is None else magnitude
    band = 4 * _unit_in_last_place(magnitude, actual.dtype) + terms * smallest_normal
    for what, measure, allowed in (("RMS", _rms, allowed_rms), ("largest", _largest, allowed_max)):
        if measure(error) > 2 * allowed + band:
            where = tuple(int(i) for i in np.argwhere(finite)[np.argmax(np.abs(error))])
            reason = f"{what} error {measure(error):.3e} > 2 x {allowed:.3e} + {band:.3e}, worst at {where}"
            return Judgement(name, "FAIL", reason, **told)
    if allowed_rms * NOTHING < _rms(true[finite]) < 4 * allowed_rms:
        reason = f"ordinary error {allowed_rms:.2e}, truth {_rms(true[finite]):.2e}"
        return Judgement(name, "INCONCLUSIVE", reason, **told)
    reason = f"largest error {_largest(error):.3e} <= 2 x {allowed_max:.3e} + {band:.3e}"
    return Judgement(name, "PASS", reason, **told)


def _largest_factor(arrays):
    """The product of the largest finite numbers of arrays, none of which counts as less than 1."""
    product = 1.0
    for x in arrays:
        if np.asarray(x).dtype.kind not in "iub":
            x = np.abs(np.asarray(x).astype(np.float64))
            product *= max(1.0, float(x[np.isfinite(x)].max(initial=0.0)))
    return min(product, LARGEST_FACTOR)


def truth(operation, arguments, options, cotangents) -> tuple[Any, Any]:
    """The reference's outputs and gradients, two or more precisions above the inputs' dtype."""
    wide = np.longdouble if working_dtype(arguments) == np.float64 else np.float64
    raised = [_widen(x, wide) for x in arguments]
    options = {name: _widen(x, wide) for name, x in options.items()}
    with np.errstate(all="ignore"):
        out, saved = getattr(reference, f"{operation}_forward")(*raised, **options)
        if cotangents is None:
            return _as_tuple(out), ()
        return _as_tuple(out), getattr(reference, f"{operation}_backward")(
            saved, *(_widen(x, wide) for x in cotangents)
        )


def assert_right(operation, backend, arguments, options=None, *, seed=0):
    """Run ``operation`` of a backend module, forward and backward, and raise AssertionError where it is wrong.

    ``backend`` has the functions ``{operation}_forward`` and ``{operation}_backward`` on NumPy arrays. Cotangents
    are drawn from ``seed``. Returns the judgements.
    """
    options = options or {}
    out, saved = getattr(backend, f"{operation}_forward")(*arguments, **options)
    cotangents = draw_cotangents(out, seed)
    gradients = getattr(backend, f"{operation}_backward")(saved, *cotangents)
    judged = judge(operation, out, gradients, arguments, options, cotangents)
    assert_judged(judged, operation, arguments, options)
    return judged


def assert_judged(judged, operation, arguments, options=None):
    """Raise AssertionError that tells what failed and on which inputs."""
    failed = [str(one) for one in judged if one.verdict == "FAIL"]
    if failed:
        shapes = ", ".join(f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else repr(x) for x in arguments)
        raise AssertionError(f"{operation}({shapes}, {options or {}}):\n" + "\n".join(failed))


def draw_cotangents(outputs, seed=0):
    """Standard normal cotangents of the outputs' shapes and dtypes; 0 where an output is not finite."""
    rng = np.random.default_rng(seed)
    drawn = (rng.standard_normal(np.shape(x)).astype(np.asarray(x).dtype) for x in _as_tuple(outputs))
    return tuple(np.where(np.isfinite(x), g, g.dtype.type(0)) for g, x in zip(drawn, _as_tuple(outputs), strict=True))


def working_dtype(arguments):
    """The dtype an operation works in: that of its first floating-point array."""
    for x in arguments:
        if isinstance(x, np.ndarray) and x.ndim and _is_floating(x):
            return x.dtype
    raise TypeError(f"no floating-point array among the arguments {[type(x).__name__ for x in arguments]}")


def _is_floating(x):
    return isinstance(x, np.ndarray) and (x.dtype.kind == "f" or x.dtype == ml_dtypes.bfloat16)


def _widen(x, wide):
    return x.astype(wide) if _is_floating(x) else x


def _as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def _allowance(errors):
    """The largest ordinary error; where they scatter, at least their mean and three standard deviations: an output of
    one number has one error a way, and the largest of a few such errors is often small by luck."""
    if not np.isfinite(errors).all():
        return np.inf
    return max(max(errors), float(np.mean(errors) + 3 * np.std(errors)))


def _rms(x):
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def _largest(x):
    return float(np.max(np.abs(x), initial=0))


def _unit_in_last_place(magnitude, dtype):
    info = ml_dtypes.finfo(dtype)
    exponent = np.floor(np.log2(max(magnitude, float(info.smallest_normal))))
    return float(info.eps) * 2.0**exponent
