"""Is a provider right? Judged before its time is taken: by the whole oracle on small inputs, and on the very case.

The very case is judged in a part of it that is small: an attention in 64 queries of one head, a row-wise operation in
64 rows, patches and convolutions in one image. Cotangents are 0 outside of it, and labels of cross entropies ignored,
so that every gradient is a sum over that part alone. Contrastive losses have no such part: they are judged whole up to
1024 pairs, and beyond as ``saccade.bench.pairs`` says.
Of a whole model one item of the batch is judged, as ``saccade.bench.models`` says.
A palette's truth is the numba kernel's, which the tests hold to the definition bit by bit: that one would take minutes.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from saccade.bench import models, pairs
from saccade.bench.providers import function_of
from saccade.families import GRADIENTS
from saccade.kernels.numba.palette import fit
from saccade.reference import palette
from saccade.testing import check, gate, palettes
from saccade.testing.ways import ORDERS, Way

ROWS, PAIRS = 64, 1024
CONTRASTIVE = ("clip_loss", "siglip_loss")
ROWWISE = ("layer_norm", "rms_norm", "gelu", "l2_normalize", "linear", "mlp", "embedding")
IMAGEWISE = ("patch_embed", "conv2d", "batch_norm", "average_pool")
SLOW = ("linear", "mlp", "conv2d")  # products whose ordinary ways take long, as contrastive losses do


@dataclass(frozen=True)
class Part:
    """A smaller problem whose results are a part of the whole's.

    Attributes:
        operation, arguments, options, cotangents: the smaller problem.
        outputs, gradients: functions that take that part out of the whole's outputs and gradients.
        whole_arguments, whole_cotangents: those of the whole problem in which nothing else counts.
        standard: what the part is held to, where that is not computed from the smaller problem.
    """

    operation: str
    arguments: tuple
    options: dict
    cotangents: tuple
    outputs: Any
    gradients: Any
    whole_arguments: tuple
    whole_cotangents: tuple
    standard: Any = None


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
            lambda found: part.outputs(tuple(np.moveaxis(y, 1, 2) for y in found)), gradients, arguments, back,
        )  # fmt: skip
    if case.operation == "varlen_attention":
        return _part_of_sequences(arguments, options, cotangents, rng)
    if case.operation in (*ROWWISE, *IMAGEWISE):
        return _part_of_rows(case.operation, arguments, options, cotangents, rng)
    if case.operation in ("softmax_cross_entropy", "linear_cross_entropy"):
        return _part_of_labels(case.operation, arguments, options, cotangents, rng)
    same = lambda y: y  # noqa: E731
    return Part(case.operation, arguments, options, cotangents, same, same, arguments, cotangents)


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
        lambda found: tuple(y[some] for y in found), gradients, arguments,
        tuple(_kept(g, some) for g in cotangents),
    )  # fmt: skip


def _part_of_sequences(arguments, options, cotangents, rng):
    """Queries of one head of one of the packed sequences."""
    options = dict(options)
    ends = options.pop("cumulative_lengths")
    i, head = int(rng.integers(len(ends) - 1)), int(rng.integers(arguments[0].shape[1]))
    mine = slice(ends[i], ends[i + 1])
    alone = tuple(np.moveaxis(x[mine, head : head + 1], 1, 0)[None] for x in arguments)
    grads = tuple(np.moveaxis(g[mine, head : head + 1], 1, 0)[None] for g in cotangents)
    part = _part_of_attention(alone, options, grads, rng)

    def placed(g, found):
        whole = np.zeros_like(g)
        whole[mine, head : head + 1] = np.moveaxis(found[0], 0, 1)
        return whole

    def taken(found):
        return tuple(np.moveaxis(y[mine, head : head + 1], 1, 0)[None] for y in found)

    return Part(
        "attention", part.arguments, part.options, part.cotangents, lambda found: part.outputs(taken(found)),
        lambda found: part.gradients((*taken(found), None)), arguments,
        tuple(placed(g, kept) for g, kept in zip(cotangents, part.whole_cotangents, strict=True)),
    )  # fmt: skip


def _part_of_rows(operation, arguments, options, cotangents, rng):
    first, *rest = arguments
    rows = _chosen(len(first), rng) if operation in ROWWISE else rng.integers(0, len(first), 1)
    options = {name: x[rows] if name == "residual" else x for name, x in options.items()}

    def gradients(found):
        named = zip(GRADIENTS[operation], found, strict=True)
        return tuple(y[rows] if y is not None and name in ("x", "residual", "images") else y for name, y in named)

    return Part(
        operation, (first[rows], *rest), options, tuple(g[rows] for g in cotangents),
        lambda found: tuple(y[rows] for y in found), gradients,
        arguments, tuple(_kept(g, rows) for g in cotangents),
    )  # fmt: skip


def _part_of_labels(operation, arguments, options, cotangents, rng):
    first, *rest, labels = arguments
    rows = _chosen(len(first), rng)
    counted = np.full_like(labels, -100)
    counted[rows] = labels[rows]
    return Part(
        operation, (first[rows], *rest, labels[rows]), options, cotangents,
        lambda found: found, lambda found: (found[0][rows], *found[1:]),
        (first, *rest, counted), cotangents,
    )  # fmt: skip


def part_of_model(case, arguments, options, cotangents, rng, path):
    """The item of a whole model's batch that is judged; what it is held to is kept at ``path``."""
    item = int(rng.integers(len(arguments[0])))
    some = slice(item, item + 1)
    return Part(
        "model", (arguments[0][some],), options, (), lambda found: tuple(y[some] for y in found), None, arguments, (),
        models.Standard(options["variant"], case.dtype, arguments[0][some], path),
    )  # fmt: skip


def is_large(case):
    """Whether a case is a contrastive loss of more pairs than are judged whole."""
    return case.operation in CONTRASTIVE and case.sizes["n"] > PAIRS


def part_of_pairs(case, arguments, options, cotangents, rng, path=None):
    """The part of a large contrastive loss that is judged, 64 rows of both gradients; what they are held to is kept at
    ``path``."""
    at = pairs.sampled(len(arguments[0]), rng), pairs.sampled(len(arguments[1]), rng)
    return Part(
        case.operation, arguments, options, cotangents, lambda found: found,
        lambda found: (found[0][at[0]], found[1][at[1]], *found[2:]), arguments, cotangents,
        pairs.Standard(case.operation, arguments, cotangents, at, path),
    )  # fmt: skip


def standard_of(part):
    """What a part is held to."""
    if part.standard is not None:
        return part.standard
    if part.operation not in (*CONTRASTIVE, *SLOW):
        return gate.Standard(part.operation, part.arguments, part.options, part.cotangents or None)
    dtype, noise = gate.working_dtype(part.arguments), np.random.default_rng(0)
    ways = [*(Way(order, dtype) for order in ORDERS), *(Way("online", dtype, noise) for _ in range(2))]
    return gate.Standard(part.operation, part.arguments, part.options, part.cotangents or None, ordinary_ways=ways)


def judge_case(problem, part, forward, backward):
    """The judgements of a provider on the very case, whose numbers ``problem`` already holds."""
    outputs = part.outputs(problem.outputs(forward()))
    if part.operation == "fit":
        return _judged_palette(part, outputs)
    if backward is None:
        return standard_of(part).judge(outputs)
    return standard_of(part).judge(outputs, part.gradients(problem.gradients_of(backward())))


def _judged_palette(part, outputs):
    """Right to the bit, or else: a palette at least as good as the definition's after half of the steps, since
    rounding leads to other centres, and colours assigned to the nearest of its own."""
    (colors, counts, start), iterations = part.arguments, part.options["iterations"]
    centers, assignment = (np.asarray(y) for y in outputs)
    exact = fit(*part.arguments, iterations=iterations)
    if np.array_equal(centers, exact[0]) and np.array_equal(assignment, exact[1]):
        return [gate.Judgement("palette", "PASS", "the definition's")]
    half, its = fit(colors, counts, start, iterations=iterations // 2)
    most, found = (palette.inertia(colors, counts, a, c) for a, c in ((its, half), (assignment, centers)))
    reason = f"mean squared distance {found:.6g}, of the definition after {iterations // 2} steps {most:.6g}"
    some = np.linspace(0, len(colors) - 1, 1024).astype(np.int64)
    near = palettes.Near("assign", (colors[some], centers), {})
    return [
        gate.Judgement("cost", "PASS" if found <= most else "FAIL", reason),
        *near.judge((assignment[some],)),
    ]


def judge_provider(provider, claims, case, seconds, device="cpu"):
    """(verdict, what is wrong) of the whole oracle, within what is claimed, on small inputs like the case's."""
    function, vjp = function_of(provider, case.operation, device)
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
