"""The laws that an implementation is held to, each by a name of its own.

A law takes (subject, arguments, options, rng) and raises ``Violation`` where it does not hold; it returns the
judgements it made. Laws about related inputs are judged by the gate too: what a transformed call gives, transformed
back, is held to the truth of the original. Laws about what a call does besides are in ``saccade.testing.conduct``.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from saccade.families import GRADIENTS
from saccade.reference import palette
from saccade.testing import gate
from saccade.testing.conduct import fresh_results, fully_written, same_again, same_dtype
from saccade.testing.holding import Violation, hold, run, standard_of
from saccade.testing.subject import LOSSES, PALETTE

BATCHED = ("attention", "qkv_attention", "patch_embed", "conv2d", "average_pool")
DIFFERENTIABLE = tuple(GRADIENTS)
ROWWISE = ("layer_norm", "rms_norm", "gelu", "l2_normalize", "linear", "mlp", "embedding")


@dataclass(frozen=True)
class Law:
    """A law by its name.

    Attributes:
        name: what ``--only`` takes.
        says: the law in a sentence.
        operations: those it is about; None for all.
        holds: the function that judges it.
    """

    name: str
    says: str
    operations: tuple[str, ...] | None
    holds: Any


def values(subject, arguments, options, rng):
    """The output is right."""
    standard, _ = standard_of(subject, arguments, options, rng, gradients=False)
    outputs, _ = run(subject, arguments, options)
    return hold(standard, outputs, None, "The")


def gradients(subject, arguments, options, rng):
    """Every gradient is right."""
    standard, cotangents = standard_of(subject, arguments, options, rng)
    outputs, found = run(subject, arguments, options, cotangents)
    return hold(standard, outputs, found, "The")


def _without(arguments, options, *names):
    """The input without some options; what only ``key_lengths`` kept from being read is 0 then."""
    if "key_lengths" in names and "key_lengths" in options:
        arguments = tuple(np.where(np.isfinite(x), x, x.dtype.type(0)) for x in arguments)
    return arguments, {name: x for name, x in options.items() if name not in names}


def permuted_keys(subject, arguments, options, rng):
    """Keys moved together with their values, bias and mask change nothing."""
    (query, key, value), options = _without(arguments, options, "causal", "key_lengths")
    s = key.shape[2]
    if not subject.claims.empty_rows and "mask" in options:
        options.pop("mask")
    standard, cotangents = standard_of(subject, (query, key, value), options, rng)
    order = rng.permutation(s)
    moved = dict(options)
    for name in ("mask", "bias"):
        if name in moved and moved[name].ndim and moved[name].shape[-1] == s:
            moved[name] = moved[name][..., order]
    outputs, found = run(subject, (query, key[:, :, order], value[:, :, order]), moved, cotangents)
    if found is not None:
        back = np.argsort(order)
        bias = found[3]
        if bias is not None and bias.ndim and bias.shape[-1] == s:
            bias = bias[..., back]
        found = (found[0], found[1][:, :, back], found[2][:, :, back], bias)
    return hold(standard, outputs, found, "With keys and values in another order the")


def padded_keys(subject, arguments, options, rng):
    """Keys that are masked out change nothing, whatever they hold."""
    arguments, options = _without(arguments, options, "causal", "key_lengths", "mask", "bias")
    query, key, value = arguments
    standard, cotangents = standard_of(subject, arguments, options, rng)
    (b, h, t, _), s, more = query.shape, key.shape[2], int(rng.integers(1, 9))
    longer = [np.concatenate([x, rng.standard_normal((b, h, more, x.shape[3])).astype(x.dtype) * x.dtype.type(8)], 2)
              for x in (key, value)]  # fmt: skip
    by_mask = subject.claims.takes("attention", "mask")
    if by_mask:
        hidden = {"mask": np.broadcast_to(np.arange(s + more) < s, (t, s + more)).copy()}
    else:
        hidden = {"key_lengths": np.full(b, s, np.int64)}
    outputs, found = run(subject, (query, *longer), {**options, **hidden}, cotangents)
    if found is not None:
        found = (found[0], found[1][:, :, :s], found[2][:, :, :s], found[3])
    return hold(standard, outputs, found, "With masked keys appended the")


def causal_prefix(subject, arguments, options, rng):
    """Under a causal mask the first outputs do not depend on later keys."""
    query, key, value = arguments
    n = min(query.shape[2], key.shape[2])
    kept = int(rng.integers(min(1, n), n + 1))
    # a key that is not finite may reach rows for which it is masked
    query, key, value = query[:, :, :n], *(np.where(np.isfinite(x), x, 0)[:, :, :n] for x in (key, value))
    options = {"causal": True, **{name: x for name, x in options.items() if name == "scale"}}
    first = tuple(x[:, :, :kept] for x in (query, key, value))
    standard, _ = standard_of(subject, first, options, rng, gradients=False)
    (out,), _ = run(subject, (query, key, value), options)
    return hold(standard, out[:, :, :kept], None, f"Of {n} causal tokens, for the first {kept}, the")


def scaled_values(subject, arguments, options, rng):
    """Values times 4 give 4 times the output."""
    query, key, value = arguments
    options = {name: x for name, x in options.items() if name != "return_lse"}
    with np.errstate(over="ignore"):
        larger = value * value.dtype.type(4)
    if not np.isfinite(larger).all():
        return []
    standard, _ = standard_of(subject, arguments, options, rng, gradients=False)
    (out,), _ = run(subject, (query, key, larger), options)
    return hold(standard, out / out.dtype.type(4), None, "A quarter of what values times 4 give, the")


def split_batch(subject, arguments, options, rng):
    """Two parts of a batch give what the whole gives."""
    b = arguments[0].shape[0] if np.ndim(arguments[0]) else 0
    alone = subject.operation in ROWWISE and subject.operation != "embedding" and arguments[0].ndim < 2
    if b < 2 or alone:
        return []
    arguments, options = _without(arguments, options, "mask", "bias", "key_lengths", "residual")
    parts = len(arguments) if subject.operation == "attention" else 1  # the others share their weights
    cut = int(rng.integers(1, b))
    standard, _ = standard_of(subject, arguments, options, rng, gradients=False)
    whole, _ = run(subject, arguments, options)
    halves = [
        run(subject, (*(x[part] for x in arguments[:parts]), *arguments[parts:]), options)[0]
        for part in (slice(0, cut), slice(cut, b))
    ]
    joined = tuple(np.concatenate(two) for two in zip(*halves, strict=True))
    if subject.claims.batch_invariant and any(a.tobytes() != w.tobytes() for a, w in zip(joined, whole, strict=True)):
        raise Violation("An item does not have the same bits in another batch, which is claimed.")
    return hold(standard, joined, None, "Computed in two parts of the batch the")


def shifted_logits(subject, arguments, options, rng):
    """A number added to a row of logits changes nothing."""
    logits, labels = arguments
    shift = rng.integers(-4, 5, (len(logits), 1)).astype(logits.dtype) * logits.dtype.type(8)
    with np.errstate(all="ignore"):
        exact = ((logits + shift) - shift == logits).all()
    if not exact:
        logits = np.round(logits * 4) / logits.dtype.type(4)
        logits = np.clip(logits.astype(np.float64), -16, 16).astype(logits.dtype)
    standard, cotangents = standard_of(subject, (logits, labels), options, rng)
    outputs, found = run(subject, (logits + shift, labels), options, cotangents)
    return hold(standard, outputs, found, "With a number added to each row of logits the")


def swapped_sides(subject, arguments, options, rng):
    """Images and texts may change places."""
    images, texts, *factors = arguments
    standard, cotangents = standard_of(subject, arguments, options, rng)
    outputs, found = run(subject, (texts, images, *factors), options, cotangents)
    if found is not None:
        found = (found[1], found[0], *found[2:])
    return hold(standard, outputs, found, "With the two sides swapped the")


def gradient_sums(subject, arguments, options, rng):
    """The gradient of a row of logits adds up to 0."""
    standard, cotangents = standard_of(subject, arguments, options, rng)
    if cotangents is None or not np.size(arguments[0]):
        return []
    outputs, found = run(subject, arguments, options, cotangents)
    true, dtype = standard.gradients[0], found[0].dtype
    sums = found[0].astype(true.dtype).sum(-1)
    ordinary = [one.astype(dtype).astype(true.dtype).sum(-1) for one in standard.ordinary_gradients(0)]
    magnitude = float(np.abs(true).max(initial=0))  # each term of a sum may be off in its own last place
    name = "sum over a row of the gradient of logits"
    judged = [gate.judge_one(name, sums.astype(dtype), true.sum(-1), ordinary, magnitude)]
    if judged[0].verdict == "FAIL":
        raise Violation(f"The {judged[0].name} is wrong: {judged[0].reason}.", judged[0].name, (sums, true.sum(-1)))
    return judged


def repeated_rows(subject, arguments, options, rng):
    """Rows that are alike give results that are alike."""
    (first, *rest), options = _without(arguments, options, "residual", "mask", "bias", "key_lengths")
    if first.ndim < 2 or not len(first):
        return []
    rows = rng.integers(0, len(first), len(first))
    alike = (first[rows], *(x[rows] if _goes_by_rows(subject.operation, i) else x for i, x in enumerate(rest, 1)))
    standard, cotangents = standard_of(subject, alike, options, rng)
    outputs, found = run(subject, alike, options, cotangents)
    return hold(standard, outputs, found, "With repeated rows the")


def _goes_by_rows(operation, i):
    if operation in ("attention", "clip_loss", "siglip_loss"):
        return i <= (2 if operation == "attention" else 1)
    return operation in ("softmax_cross_entropy", "sigmoid_cross_entropy") or (
        operation == "linear_cross_entropy" and i == 2
    )


def cost_never_rises(subject, arguments, options, rng):
    """Colours are no farther from their centres after a step than before it."""
    colors, *rest = arguments
    outputs, _ = run(subject, arguments, options)
    if subject.operation == "assign":
        (centers,), counts = rest, np.ones(len(colors), np.int64)
        before = palette.inertia(colors, counts, rng.integers(0, len(centers), len(colors)), centers)
        after = palette.inertia(colors, counts, outputs[0], centers)
    elif subject.operation == "update":
        counts, assignment, centers = rest
        before = palette.inertia(colors, counts, assignment, centers)
        after = palette.inertia(colors, counts, assignment, outputs[0])
    else:
        counts, centers = rest
        before = palette.inertia(colors, counts, palette.assign(colors, centers), centers)
        after = palette.inertia(colors, counts, outputs[1], outputs[0])
    if after > before + 0.75 / palette.GRID**2:  # a mean rounded to the grid costs up to half a unit a channel
        raise Violation(f"The mean squared distance rose from {before:.6g} to {after:.6g}.")
    return []


def not_a_number(subject, arguments, options, rng):
    """Where the truth is NaN because an input is, so is the output; all else is as right as ever."""
    judged = []
    for planted in _planted(subject, arguments, options, rng, [np.nan]):
        standard, _ = standard_of(subject, *planted, rng, gradients=False)
        outputs, _ = run(subject, *planted)
        judged += hold(standard, outputs, None, "With a NaN among the inputs the")
    return judged


def infinities(subject, arguments, options, rng):
    """Where the truth is infinite because an input is, the output is not finite; what is finite is as right as ever."""
    judged = []
    arguments = [_flushed(x) for x in arguments]  # what is too small to be normal may be 0, of which see below
    for planted in _planted(subject, arguments, options, rng, [np.inf, -np.inf]):
        standard, _ = standard_of(subject, *planted, rng, gradients=False)
        outputs, _ = run(subject, *planted)
        forgiven = []
        for actual, true in zip(outputs, standard.outputs, strict=True):
            # inf − inf and 0 · inf are NaN or not by the order of the sums: what the definition leaves open may be
            # anything
            open_ends = np.isnan(true) | (np.isinf(true) & ~np.isfinite(actual))
            forgiven.append(np.where(open_ends, true.astype(actual.dtype), actual))
        judged += hold(standard, tuple(forgiven), None, "With an infinity among the inputs the")
    return judged


def _flushed(x):
    """``x`` with 0 for numbers that are too small to be normal."""
    if not isinstance(x, np.ndarray) or x.dtype.kind in "iub":
        return x
    small = np.abs(x.astype(np.float64)) < float(ml_dtypes.finfo(x.dtype).smallest_normal)
    return np.where(small, x.dtype.type(0), x) if small.any() else x


def _planted(subject, arguments, options, rng, numbers):
    """The inputs with one of ``numbers`` in place of a number of each argument, where nothing hides it."""
    operation = subject.operation
    arguments, options = _without(arguments, options, "mask", "causal", "key_lengths")
    places = [i for i, x in enumerate(arguments) if isinstance(x, np.ndarray) and x.dtype != np.uint8 and x.ndim]
    places = [i for i in places if arguments[i].dtype.kind not in "iu" and arguments[i].size]
    if operation == "attention" and (not arguments[1].shape[2] or numbers != [np.nan]):
        # whether scores of −inf alone count as none is open
        places = [i for i in places if i and arguments[1].shape[2] > 1]
    if operation == "varlen_attention" and numbers != [np.nan]:
        places = [i for i in places if i == 2]
    if operation in (*LOSSES, "conv2d"):  # padding times a weight that is not finite is a matter of taste
        places = [i for i in places if i == 0]
    for which in places:
        x = np.array(arguments[which])
        rows = np.arange(len(x))
        classes = np.asarray(arguments[-1])
        if operation in LOSSES and classes.ndim == 1 and classes.dtype.kind == "i":
            rows = np.flatnonzero(classes != options.get("ignore_index", -100))
        if not len(rows):
            continue
        at = [int(rng.choice(rows)), *(int(rng.integers(n)) for n in x.shape[1:])]
        if operation == "qkv_attention" and numbers != [np.nan]:
            at[2] = 2  # as above: a value
        x[tuple(at)] = rng.choice(numbers)
        yield (*arguments[:which], x, *arguments[which + 1 :]), options


LAWS = (
    Law("values", "The output is as right as ordinary arithmetic in its dtype.", None, values),
    Law("gradients", "So is every gradient.", None, gradients),
    Law("permuted keys", "Keys and values may stand in any order.", ("attention",), permuted_keys),
    Law("padded keys", "Masked keys count nothing.", ("attention",), padded_keys),
    Law("causal prefix", "A causal query sees no later key.", ("attention",), causal_prefix),
    Law("scaled values", "The output is linear in the values.", ("attention",), scaled_values),
    Law("split batch", "Items do not see each other.", (*BATCHED, *ROWWISE), split_batch),
    Law("shifted logits", "A softmax knows only differences.", ("softmax_cross_entropy",), shifted_logits),
    Law("swapped sides", "The loss is symmetric.", ("clip_loss", "siglip_loss"), swapped_sides),
    Law("gradient sums", "A softmax's gradients add up to 0.", ("softmax_cross_entropy",), gradient_sums),
    Law("repeated rows", "Like rows give like results.", (*LOSSES, "attention"), repeated_rows),
    Law("cost never rises", "A step of k-means never makes the palette worse.", PALETTE, cost_never_rises),
    Law("not a number", "NaN among the inputs is not lost.", DIFFERENTIABLE, not_a_number),
    Law("infinities", "Neither is an infinity.", DIFFERENTIABLE, infinities),
    Law("same dtype", "What comes out has the dtype of what went in.", None, same_dtype),
    Law("same again", "A call has no memory and no luck.", None, same_again),
    Law("fresh results", "Results belong to the caller.", None, fresh_results),
    Law("fully written", "Every number of a result is computed.", None, fully_written),
)


def laws_for(subject):
    """The laws about the subject's operation that its claims let it be held to."""
    claims, operation = subject.claims, subject.operation

    def applies(law):
        if law.operations is not None and operation not in law.operations:
            return False
        needs = {
            "gradients": subject.gradients,
            "gradient sums": subject.gradients,
            "causal prefix": claims.takes("attention", "causal"),
            "not a number": claims.non_finite,
            "infinities": claims.non_finite,
            "cost never rises": claims.given_start,
            "padded keys": claims.takes("attention", "mask") or claims.takes("attention", "key_lengths"),
        }
        return needs.get(law.name, True)

    return tuple(law for law in LAWS if applies(law))
