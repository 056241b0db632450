"""How a law holds a function: what its result is held to, a call of it, and the violation where the two differ."""

from typing import Any

from saccade.testing import gate, palettes
from saccade.testing.layouts import laid_out
from saccade.testing.subject import PALETTE, Misconduct, expected_outputs


class Violation(Exception):
    """A law does not hold: what is wrong, and (what came, the truth) of it."""

    def __init__(self, says, what="result", arrays=None):
        super().__init__(says)
        self.what, self.arrays, self.call = what, arrays, ((), {}, None)


def standard_of(subject, arguments, options, rng, gradients=True) -> tuple[Any, Any]:
    """(what the call is held to, cotangents or None)."""
    if subject.operation in PALETTE:
        return palettes.standard(subject.operation, arguments, options, subject.claims), None
    true_options = subject.claims.truth(subject.operation, arguments, options)
    outputs = expected_outputs(subject.operation, arguments, true_options)
    cotangents = None
    if gradients and subject.gradients:
        layouts = [name for name in subject.claims.layouts if name != "broadcast" or len(outputs) == 1]
        drawn = gate.draw_cotangents(outputs, int(rng.integers(2**32)))
        layout = str(rng.choice(layouts)) if rng.random() < 0.5 else "dense"
        cotangents = tuple(laid_out(x, layout) for x in drawn)
    return gate.Standard(subject.operation, arguments, true_options, cotangents), cotangents


def run(subject, arguments, options, cotangents=None) -> tuple[Any, Any]:
    """The subject's outputs and gradients; what it must not do is a violation."""
    try:
        return subject.run(arguments, options, cotangents)
    except Misconduct as error:
        raise Violation(f"The call went wrong: {error}.") from error


def hold(standard, outputs, gradients, whose):
    """The judgements of a result, or a violation that tells of the first that failed."""
    judged = standard.judge(outputs, gradients)
    failed = [one for one in judged if one.verdict == "FAIL"]
    if failed:
        arrays = standard.arrays_of(failed[0].name, outputs, gradients)
        raise Violation(f"{whose} {failed[0].name} is wrong: {failed[0].reason}.", failed[0].name, arrays)
    return judged
