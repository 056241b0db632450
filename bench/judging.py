"""Is a provider right? Judged before its time is taken: by the whole oracle on small inputs, and on the very case.

The very case is judged exactly where exactness is cheap. An attention is held to the truth in 64 queries of one head, a
row-wise operation in 64 rows: cotangents are 0 outside of these, so that every gradient is a sum over them alone. All
other operations are judged whole. Allowances are the error gate's, from the ways that use BLAS.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saccade.bench.providers import function_of
from saccade.reference import palette
from saccade.testing import check, gate, palettes
from saccade.testing.ways import Way

ROWS = 64
ROWWISE = ("layer_norm", "rms_norm", "gelu")


@dataclass(frozen=True)
class Part:
    """A smaller problem whose results are a part of the whole's.

    Attributes:
        operation, arguments, options, cotangents: the smaller problem.
        outputs, gradients: functions that take that part out of the whole's outputs and gradients.
        whole_cotangents: those of the whole problem, 0 outside of the part.
    """

    operation: str
    arguments: tuple
    options: dict
    cotangents: tuple
    outputs: Any
    gradients: Any
    whole_cotangents: tuple


def part_of(case, arguments, options, cotangents, rng):
    """The part of a case that is judged exactly."""
    if case.operation == "attention":
        return _part_of_attention(arguments, options, cotangents, rng)
    if case.operation == "qkv_attention":
        three = tuple(np.moveaxis(arguments[0][:, :, i], 1, 2) for i in range(3))
        turned = tuple(np.moveaxis(g, 1, 2) for g in cotangents)
        part = _part_of_attention(three, options, turned, rng)

        def gradients(found):
            return part.gradients((*(np.moveaxis(found[0][:, :, i], 1, 2) for i in range(3)), None))

        back = tuple(np.moveaxis(g, 2, 1) for g in part.whole_cotangents)
        return Part(
            "attention", part.arguments, part.options, part.cotangents,
            lambda found: part.outputs(tuple(np.moveaxis(y, 1, 2) for y in found)), gradients, back,
        )  # fmt: skip
    if case.operation in ROWWISE:
        return _part_of_rows(case.operation, arguments, options, cotangents, rng)
    return Part(case.operation, arguments, options, cotangents, lambda y: y, lambda y: y, cotangents)


def _chosen(n, rng):
    return np.sort(rng.choice(n, min(n, ROWS), replace=False))


def _kept(x, at):
    whole = np.zeros_like(x)
    whole[at] = x[at]
    return whole


def _part_of_attention(arguments, options, cotangents, rng):
    query, key, value = arguments
    (b, h, t, _), s = query.shape, key.shape[2]
    item, head, rows = int(rng.integers(b)), int(rng.integers(h)), _chosen(t, rng)
    every = slice(item, item + 1), slice(head, head + 1)
    some = (*every, rows)
    options = dict(options)
    if options.pop("causal", False):
        options["mask"] = np.arange(s) <= rows[:, None] + (s - t)

    def gradients(found):
        return found[0][some], found[1][every], found[2][every], None

    return Part(
        "attention", (query[some], key[every], value[every]), options, tuple(g[some] for g in cotangents),
        lambda found: tuple(y[some] for y in found), gradients, tuple(_kept(g, some) for g in cotangents),
    )  # fmt: skip


def _part_of_rows(operation, arguments, options, cotangents, rng):
    rows = _chosen(len(arguments[0]), rng)
    return Part(
        operation, (arguments[0][rows], *arguments[1:]), options, tuple(g[rows] for g in cotangents),
        lambda found: tuple(y[rows] for y in found),
        lambda found: (found[0][rows], *found[1:]),
        tuple(_kept(g, rows) for g in cotangents),
    )  # fmt: skip


def standard_of(part):
    """What a part is held to."""
    if part.operation == "fit":
        return palettes.Near("fit", part.arguments, part.options)
    dtype, noise = gate.working_dtype(part.arguments), np.random.default_rng(0)
    ways = [Way("online", dtype), *(Way("online", dtype, noise) for _ in range(3))]
    if dtype.itemsize == 2:
        ways.append(Way("online", dtype, noise, rounds=False))
    return gate.Standard(part.operation, part.arguments, part.options, part.cotangents or None, ordinary_ways=ways)


def judge_case(problem, part, forward, backward):
    """The judgements of a provider on the very case, whose numbers ``problem`` already holds."""
    standard, outputs = standard_of(part), part.outputs(problem.outputs(forward()))
    if part.operation == "fit":
        return [*standard.judge(outputs), _cost(part, outputs)]
    if backward is None:
        return standard.judge(outputs)
    return standard.judge(outputs, part.gradients(problem.gradients_of(backward())))


def _cost(part, outputs):
    """A palette at least as good as the definition's after half of the steps: rounding leads others elsewhere."""
    (colors, counts, centers), iterations = part.arguments, part.options["iterations"]
    half, its = palette.fit(colors, counts, centers, iterations=iterations // 2)
    most = palette.inertia(colors, counts, its, half)
    found = palette.inertia(colors, counts, np.asarray(outputs[1]), np.asarray(outputs[0]))
    reason = f"mean squared distance {found:.6g}, of the definition after {iterations // 2} steps {most:.6g}"
    return gate.Judgement("cost", "PASS" if found <= most else "FAIL", reason)


def judge_provider(provider, claims, case, seconds):
    """(verdict, what is wrong) of the whole oracle, within what is claimed, on small inputs like the case's."""
    function, vjp = function_of(provider, case.operation)
    attention = case.operation in ("attention", "qkv_attention")
    narrowed = {
        "dtypes": (case.dtype,), "layouts": ("dense",), "zero_sized": False, "empty_rows": False, "axes": "bhtd",
        "gradients": case.gradients, "factors": True,
        "options": tuple(name for name in case.options if name != "iterations") if attention else claims.options,
        "head_dims": (case.sizes["d"],) if attention else None,
    }  # fmt: skip
    options = {"vjp": vjp if case.gradients else None, "gradients": case.gradients, "budget": seconds}
    report = check(function, case.operation, claims=replace(claims, **narrowed), **options)
    return report.verdict, "; ".join(one.says for one in report.failures)
