"""The laws of conduct: what a call may not do besides being wrong. Each as in ``saccade.testing.laws``."""

import concurrent.futures
from dataclasses import replace

import numpy as np

from saccade.testing import poison
from saccade.testing.gate import Judgement
from saccade.testing.holding import Violation, hold, run, standard_of


def same_dtype(subject, arguments, options, rng):
    """The output has the dtype of the input, a loss that which is claimed, every gradient that of its argument."""
    _, cotangents = standard_of(subject, arguments, options, rng)
    outputs, _ = run(subject, arguments, options, cotangents)  # a dtype that is another is a violation of every call
    return [Judgement("dtype", "PASS", ", ".join(str(x.dtype) for x in outputs))]


def same_again(subject, arguments, options, rng):
    """The second and the tenth call, and one from another thread and in another stream, give what the first gave."""
    standard, cotangents = standard_of(subject, arguments, options, rng)
    first = run(subject, arguments, options, cotangents)
    kept = [x.tobytes() for x in _flat(first)]
    for call in range(2, 11):
        again = run(subject, arguments, options, cotangents)
        if call in (2, 10):
            _same(subject, standard, kept, again, f"In call {call} the")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(run, subject, arguments, options, cotangents).result()
    _same(subject, standard, kept, elsewhere, "Called from another thread the")
    if subject.framework.streams:
        streaming = replace(subject, framework=replace(subject.framework, copied=True))
        with subject.framework.another_stream():
            elsewhere = run(streaming, arguments, options, cotangents)
        _same(subject, standard, kept, elsewhere, "In another stream the")
    if kept != [x.tobytes() for x in _flat(first)]:
        raise Violation("What the first call returned was changed by a later call: outputs share a cache.")
    return standard.judge(*first)


def _same(subject, standard, kept, result, whose):
    outputs, found = result
    hold(standard, outputs, found, whose)
    if subject.claims.deterministic and kept != [x.tobytes() for x in _flat(result)]:
        raise Violation(f"{whose} result does not have the bits of the first call.")


def _flat(result):
    outputs, found = result
    return [x for x in (*outputs, *(found or ())) if x is not None]


def fresh_results(subject, arguments, options, rng):
    """A result stays as it is when the function is called with other inputs of the same shapes, whose own is right."""
    _, cotangents = standard_of(subject, arguments, options, rng)
    run(subject, arguments, options, cotangents)
    first = subject.raw
    before = [x.tobytes() for x in map(np.array, subject.framework.take(first))]
    other = tuple(_redrawn(x, rng) for x in arguments)
    standard, cotangents = standard_of(subject, other, options, rng)
    outputs, found = run(subject, other, options, cotangents)
    judged = hold(standard, outputs, found, "After a call with other inputs of the same shapes, the")
    if before != [x.tobytes() for x in map(np.array, subject.framework.take(first))]:
        raise Violation("What a call returned was changed by the next call: results share a cache.")
    return judged


def _redrawn(x, rng):
    if not isinstance(x, np.ndarray) or not x.ndim or x.dtype.kind in "iub":
        return x
    drawn = rng.standard_normal(x.shape)
    return (drawn / max(1.0, float(np.sqrt(x.shape[-1])))).astype(x.dtype)


def fully_written(subject, arguments, options, rng):
    """Results are right when memory that is not filled holds NaN."""
    standard, cotangents = standard_of(subject, arguments, options, rng)
    # What compiles in its first call does so now, since no compiler knows the functions put in place; and then others'
    # results lie about in memory that is taken again, not the right ones.
    for given in (arguments, tuple(_redrawn(x, rng) for x in arguments)):
        run(subject, given, options, cotangents)
    with poison.poisoned(subject.framework):
        outputs, found = run(subject, arguments, options, cotangents)
    return hold(standard, outputs, found, "With unfilled memory full of NaN the")
