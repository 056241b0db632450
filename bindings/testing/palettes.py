"""What a palette's functions are held to: the definition's integers, or what arithmetic in float32 may make of them."""

import numpy as np

from saccade.reference import palette
from saccade.reference.palette import GRID
from saccade.testing.gate import Judgement, judge_one

NAMES = {"assign": ("assignment",), "update": ("centers",), "fit": ("centers", "assignment")}


def standard(operation, arguments, options, claims) -> "Exact | Near":
    """``Exact``, or ``Near`` where a function does not claim to be exact."""
    if claims.exact:
        return Exact(operation, arguments, options)
    return Near(operation, arguments, options, claims.given_start)


class Exact:
    """The definition's integers, every one of them."""

    def __init__(self, operation, arguments, options):
        out = getattr(palette, operation)(*arguments, **options)
        self.names, self.outputs = NAMES[operation], out if isinstance(out, tuple) else (out,)

    def judge(self, outputs, gradients=None):
        """A list of ``Judgement``, one per output."""
        judged = []
        for name, actual, true in zip(self.names, outputs, self.outputs, strict=True):
            wrong = int((np.asarray(actual) != true).sum()) if np.shape(actual) == np.shape(true) else np.size(true)
            verdict = "FAIL" if wrong else "PASS"
            judged.append(Judgement(name, verdict, f"{wrong} of {np.size(true)} numbers are not the definition's"))
        return judged

    def arrays_of(self, name, outputs, gradients):
        """(what came, the truth) for the output that a judgement names."""
        i = self.names.index(name)
        return outputs[i], self.outputs[i]


class Near(Exact):
    """What ordinary arithmetic in float32 gives.

    An assignment is right if each colour's centre is, by the exact distances, the nearest up to twice what float32
    distances get wrong. Centres are judged by the gate against weighted means in float32, where no assignment on the
    way to them was that close; else they judge nothing. The assignment of ``fit`` is judged by its own centres, and
    that alone if they do not begin with those that are given.
    """

    def __init__(self, operation, arguments, options, given_start=True):
        super().__init__(operation, arguments, options)
        self.operation, (self.colors, *rest) = operation, arguments
        self.doubt = "colours all but as near to two centres" if given_start else "it has begun with others"
        if operation == "assign":
            (self.start,), self.means = rest, []
        elif operation == "fit" and not given_start:
            self.start, self.means = rest[-1], []
        else:
            counts, self.start = rest[0], rest[-1]
            assignments = [rest[1]] if operation == "update" else self._assignments(counts, options["iterations"])
            self.means = [] if assignments is None else _means(self.colors, counts, assignments, self.start)

    def judge(self, outputs, gradients=None):
        """A list of ``Judgement``, one per output."""
        judged = []
        for name, actual in zip(self.names, outputs, strict=True):
            if name == "assignment":
                judged.append(self._judge_assignment(actual, self.start if len(self.names) == 1 else outputs[0]))
            elif self.means:
                actual, true = (np.asarray(x) / np.float64(GRID) for x in (actual, self.outputs[0]))
                # half a unit of the grid is what handing centres over in its units costs
                judged.append(judge_one(name, actual.astype(np.float32), true, self.means, magnitude=512.0))
            else:
                judged.append(Judgement(name, "INCONCLUSIVE", self.doubt))
        return judged

    def _judge_assignment(self, actual, centers):
        exact = palette.squared_distances(self.colors, centers)
        if np.shape(actual) != exact.shape[:1] or np.min(actual, initial=0) < 0 or np.max(actual) >= len(centers):
            return Judgement("assignment", "FAIL", f"shape {np.shape(actual)}, or a centre that is none")
        excess = (exact[np.arange(len(exact)), actual] - exact.min(1)) / GRID**2
        allowed = self._uncertainty(centers)
        wrong = int((excess > allowed).sum())
        reason = f"{wrong} of {len(exact)} colours are up to {excess.max(initial=0):.3g} farther than from the nearest"
        return Judgement("assignment", "FAIL" if wrong else "PASS", f"{reason}, allowed {allowed:.3g}")

    def _uncertainty(self, centers):
        """How far apart two distances (levels²) must be for float32 to tell them apart: twice the errors of |x − c|²
        and |x|² − 2 x·c + |c|² in it."""
        exact = palette.squared_distances(self.colors, centers) / GRID**2
        x, c = self.colors.astype(np.float32), (np.asarray(centers) / np.float64(GRID)).astype(np.float32)
        whole = ((x[:, None] - c) ** 2).sum(-1)
        parts = (x**2).sum(-1)[:, None] - 2 * x @ c.T + (c**2).sum(-1)
        largest = float((x**2).sum(-1).max(initial=0))
        return 2 * max(np.abs(one - exact).max(initial=0) for one in (whole, parts)) + 4 * np.spacing(
            np.float32(largest)
        )

    def _assignments(self, counts, iterations):
        """The assignments of Lloyd's steps, or None if one of them hangs on rounding or leaves a centre empty."""
        centers, found = self.start, []
        for _ in range(iterations):
            distances = np.sort(palette.squared_distances(self.colors, centers), 1) / GRID**2
            close = distances.shape[1] > 1 and (distances[:, 1] - distances[:, 0]).min() <= self._uncertainty(centers)
            assignment = palette.assign(self.colors, centers)
            if close or len(np.unique(assignment)) < len(centers):
                return None
            found.append(assignment)
            centers = palette.update(self.colors, counts, assignment, centers)
        return found


def _means(colors, counts, assignments, centers):
    """Centres in levels after the last of the assignments, as float32 makes them in two orders; ``centers`` if none."""
    if not assignments:
        return [(np.asarray(centers) / np.float64(GRID)).astype(np.float32)]
    assignment, made = assignments[-1], []
    for order in (slice(None), slice(None, None, -1)):
        weights, totals = np.zeros(len(centers), np.float32), np.zeros((len(centers), 3), np.float32)
        np.add.at(weights, assignment[order], counts[order].astype(np.float32))
        weighted = counts[order, None].astype(np.float32) * colors[order].astype(np.float32)
        np.add.at(totals, assignment[order], weighted)
        stay = (np.asarray(centers) / np.float64(GRID)).astype(np.float32)
        made.append(np.where(weights[:, None] > 0, totals / np.maximum(weights, 1)[:, None], stay))
    return made
