"""The losses on CPUs; the definitions are in ``saccade.reference.losses``.

Logits that are products (``linear_cross_entropy``, ``clip_loss``, ``siglip_loss``) exist one tile at a time, a block
of rows by a block of columns, and are recomputed in the backward pass. Each gradient has a pass of its own, in which
a thread owns the rows it adds to, so the bits do not depend on the number of threads.

A row's own logit, at its label or in its pair, is what the others are measured against: its loss is
log1p(sum_others exp(logit − own)), and its weight less 1 is expm1(−loss). Both keep their relative precision when the
row is all but certain, where log-sum-exp minus own, and weight minus 1, would cancel.
"""

import math

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false
import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.layers import grain, private, silent
from saccade.kernels.numba.mathematics import (
    exponential,
    exponential_sum,
    exponentials,
    row_max,
    row_sum,
    row_sum_above,
    sigmoid,
    softplus,
)
from saccade.kernels.numba.memory import core_dtype, describe, load_row, row_from, store_row
from saccade.kernels.numba.pairs import pair_gradients, siglip_rows
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for
from saccade.kernels.numba.tiles import (
    CHUNK,
    COLUMNS,
    LOSS,
    MOST_BANDS,
    bands,
    finite,
    join_across,
    linear_backward_hidden,
    linear_backward_weight,
    own_products,
    product_statistics,
)

_NOTHING = (0, 0, 0, 0)


def softmax_cross_entropy(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """−sum_k target log softmax(logits) per row, averaged, summed or as it is."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return softmax_cross_entropy_forward(logits, labels, **options)[0]


def softmax_cross_entropy_forward(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``softmax_cross_entropy`` and (logits, labels, lse, ignore_index, label_smoothing, reduction)."""
    core = core_dtype(logits.dtype)
    per_row, lse = np.empty(len(logits), core), np.empty(len(logits), core)
    integers, soft = _split_labels(labels, ignore_index)
    smoothing = core.type(label_smoothing)
    arrays = logits.shape[1], describe(logits), integers, _NOTHING if soft is None else describe(soft), smoothing
    parallel_for(_cross_entropy_rows, len(logits), grain(logits.shape[1]), *arrays, per_row, lse)
    loss = _reduce(per_row, _counted(integers, soft), reduction)
    return loss, (logits, labels, lse, ignore_index, label_smoothing, reduction)


def softmax_cross_entropy_backward(saved, grad_loss):
    """The gradient for logits, in a tuple of one."""
    logits, labels, lse, ignore_index, label_smoothing, reduction = saved
    integers, soft = _split_labels(labels, ignore_index)
    grad_rows = _spread(grad_loss, len(logits), _counted(integers, soft), reduction, lse.dtype)
    grad_logits = np.empty(logits.shape, logits.dtype)
    smoothing = lse.dtype.type(label_smoothing)
    arrays = logits.shape[1], describe(logits), integers, _NOTHING if soft is None else describe(soft), smoothing
    outputs = grad_rows, describe(grad_logits)
    parallel_for(_cross_entropy_rows_backward, len(logits), grain(logits.shape[1]), *arrays, *outputs)
    return (grad_logits,)


def _split_labels(labels, ignore_index):
    """(integer labels with −1 for ignored rows, None), or (no labels, soft targets)."""
    if labels.ndim == 2:
        return np.empty(0, np.int64), labels
    integers = labels.astype(np.int64)
    return np.where(integers == ignore_index, -1, integers), None


def _counted(integers, soft):
    return int((integers >= 0).sum()) if soft is None else len(soft)


@silent
def _reduce(per_row, count, reduction):
    if reduction == "none":
        return per_row
    total = per_row.sum()
    return np.asarray(total / total.dtype.type(count) if reduction == "mean" else total)


@silent
def _spread(grad_loss, rows, count, reduction, core):
    """The gradient of each row's loss."""
    grad = np.asarray(grad_loss, core)
    return private(np.broadcast_to(grad / core.type(count) if reduction == "mean" else grad, (rows,)), core)


@jit
def _cross_entropy_rows(work, k, logits, labels, soft, smoothing, per_row, lse):
    dtype = lse.dtype
    scratch, target = np.empty(k, dtype), np.empty(k, dtype)
    zero, one, share = dtype.type(0), dtype.type(1), smoothing / dtype.type(k)
    for i in shared(offer(work)):
        row = row_from(scratch, logits[0] + i * logits[2], logits[3], logits[1])
        top = finite(row_max(row))
        loss, at = zero, labels[i] if soft[0] == 0 else -1
        if at >= 0:
            own, others = row[at], exponential_sum(row[:at], top) + exponential_sum(row[at + 1 :], top)
            lse[i] = top + np.log(others + exponential(own - top))
            if smoothing != 1:
                loss = (one - smoothing) * (top - own + math.log1p(others + math.expm1(own - top)))
            if smoothing != 0:
                loss -= share * row_sum_above(row, lse[i])
        else:
            lse[i] = top + np.log(exponential_sum(row, top))
        if soft[0] != 0:
            load_row(target, soft[0] + i * soft[2], soft[3], soft[1])
            for j in range(k):
                weight = target[j] * (one - smoothing) + share
                loss += weight * (lse[i] - row[j]) if weight != 0 else zero
        per_row[i] = loss


@jit
def _cross_entropy_rows_backward(work, k, logits, labels, soft, smoothing, grad_rows, grad_logits):
    dtype = grad_rows.dtype
    row, target = np.empty(k, dtype), np.empty(k, dtype)
    share = smoothing / dtype.type(k)
    for i in shared(offer(work)):
        load_row(row, logits[0] + i * logits[2], logits[3], logits[1])
        # from the maximum again rather than from lse, whose own rounding would be an error of every weight
        exponentials(row, finite(row_max(row)))
        grad = grad_rows[i]
        if soft[0] != 0:
            load_row(target, soft[0] + i * soft[2], soft[3], soft[1])
            for j in range(k):
                target[j] = target[j] * (dtype.type(1) - smoothing) + share
            ratio = row_sum(target) / row_sum(row)
            for j in range(k):
                row[j] = (row[j] * ratio - target[j]) * grad
        elif labels[i] >= 0:
            own = row[labels[i]]
            row[labels[i]] = 0
            others = row_sum(row)
            total = others + own
            for j in range(k):
                row[j] = (row[j] / total - share) * grad
            less_one = -others / total if np.isfinite(total) else own / total - dtype.type(1)
            row[labels[i]] = (less_one + smoothing - share) * grad
        else:
            row[:] = 0
        store_row(grad_logits[0] + i * grad_logits[2], grad_logits[3], grad_logits[1], row)


def sigmoid_cross_entropy(logits, targets, *, reduction="mean"):
    """Binary cross entropy summed over classes, averaged over rows, summed or as it is."""
    return sigmoid_cross_entropy_forward(logits, targets, reduction=reduction)[0]


def sigmoid_cross_entropy_forward(logits, targets, *, reduction="mean"):
    """``sigmoid_cross_entropy`` and what ``sigmoid_cross_entropy_backward`` needs: (logits, targets, reduction)."""
    per_row = np.empty(len(logits), core_dtype(logits.dtype))
    k = logits.shape[1]
    parallel_for(_sigmoid_rows, len(logits), grain(k), k, describe(logits), describe(targets), per_row)
    return _reduce(per_row, len(logits), reduction), (logits, targets, reduction)


def sigmoid_cross_entropy_backward(saved, grad_loss):
    """The gradient for logits, in a tuple of one."""
    logits, targets, reduction = saved
    grad_rows = _spread(grad_loss, len(logits), len(logits), reduction, core_dtype(logits.dtype))
    grad_logits = np.empty(logits.shape, logits.dtype)
    k = logits.shape[1]
    arrays = describe(logits), describe(targets), grad_rows, describe(grad_logits)
    parallel_for(_sigmoid_rows_backward, len(logits), grain(k), k, *arrays)
    return (grad_logits,)


@jit
def _sigmoid_rows(work, k, logits, targets, per_row):
    row, target = np.empty(k, per_row.dtype), np.empty(k, per_row.dtype)
    for i in shared(offer(work)):
        load_row(row, logits[0] + i * logits[2], logits[3], logits[1])
        load_row(target, targets[0] + i * targets[2], targets[3], targets[1])
        for j in range(k):
            row[j] = target[j] * softplus(-row[j]) + (per_row.dtype.type(1) - target[j]) * softplus(row[j])
        per_row[i] = row_sum(row)


@jit
def _sigmoid_rows_backward(work, k, logits, targets, grad_rows, grad_logits):
    row, target = np.empty(k, grad_rows.dtype), np.empty(k, grad_rows.dtype)
    for i in shared(offer(work)):
        load_row(row, logits[0] + i * logits[2], logits[3], logits[1])
        load_row(target, targets[0] + i * targets[2], targets[3], targets[1])
        for j in range(k):
            row[j] = (sigmoid(row[j]) - target[j]) * grad_rows[i]
        store_row(grad_logits[0] + i * grad_logits[2], grad_logits[3], grad_logits[1], row)


def linear_cross_entropy(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``softmax_cross_entropy`` of hidden weightᵀ, whose logits are never stored."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return linear_cross_entropy_forward(hidden, weight, labels, **options)[0]


@silent
def linear_cross_entropy_forward(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``linear_cross_entropy`` and (hidden, weight, labels, statistics, ignore_index, label_smoothing, reduction)."""
    core = core_dtype(hidden.dtype)
    n, (k, e) = len(hidden), weight.shape
    integers, _ = _split_labels(labels, ignore_index)
    statistics, mean = np.empty((3, n), core), np.empty(n, core)
    own = own_products(hidden, weight, integers, core)
    (count, in_band), nothing = bands(n), np.empty((0, 2, 0), core)
    arrays = (n, k, e), in_band, describe(hidden), describe(weight), core.type(1), integers, own
    parallel_for(product_statistics, count, 1, *arrays, statistics, mean, nothing)
    smoothed = core.type(label_smoothing) * mean if label_smoothing else 0
    per_row = np.where(integers >= 0, statistics[LOSS] - smoothed, 0)
    loss = _reduce(per_row.astype(core, copy=False), _counted(integers, None), reduction)
    return loss, (hidden, weight, labels, statistics, ignore_index, label_smoothing, reduction)


def linear_cross_entropy_backward(saved, grad_loss):
    """Gradients for hidden and weight."""
    hidden, weight, labels, statistics, ignore_index, label_smoothing, reduction = saved
    n, (k, e) = len(hidden), weight.shape
    integers, _ = _split_labels(labels, ignore_index)
    core = statistics.dtype
    grad_rows = _spread(grad_loss, n, _counted(integers, None), reduction, core)
    grad_hidden, grad_weight = np.empty(hidden.shape, hidden.dtype), np.empty(weight.shape, weight.dtype)
    arrays = describe(hidden), describe(weight), integers, core.type(label_smoothing), statistics, grad_rows
    sizes, (count, in_band) = (n, k, e), bands(n)
    parallel_for(linear_backward_hidden, count, 1, sizes, in_band, *arrays, describe(grad_hidden))
    parallel_for(linear_backward_weight, -(-k // COLUMNS), 1, sizes, *arrays, describe(grad_weight))
    return grad_hidden, grad_weight


def clip_loss(image_embeddings, text_embeddings, logit_scale):
    """The symmetric contrastive loss of pairs of rows."""
    return clip_loss_forward(image_embeddings, text_embeddings, logit_scale)[0]


@silent
def clip_loss_forward(image_embeddings, text_embeddings, logit_scale):
    """``clip_loss`` and (image embeddings, text embeddings, logit_scale, statistics of images, of texts)."""
    core = core_dtype(image_embeddings.dtype)
    n, e = image_embeddings.shape
    scale, own = core.type(logit_scale), np.arange(n)
    images, texts = describe(image_embeddings), describe(text_embeddings)
    of_images, of_texts, unused = np.empty((3, n), core), np.empty((3, n), core), np.empty(n, core)
    products, (count, in_band) = own_products(image_embeddings, text_embeddings, own, core), bands(n, MOST_BANDS)
    across = np.empty((count, 2, n), core)
    arrays = (n, n, e), in_band, images, texts, scale, own, products, of_images, unused
    parallel_for(product_statistics, count, 1, *arrays, across)
    parallel_for(join_across, -(-n // CHUNK), 1, scale, products, across, of_texts)
    loss = ((of_images[LOSS] + of_texts[LOSS]) / 2).sum() / core.type(n)
    return np.asarray(loss), (image_embeddings, text_embeddings, logit_scale, of_images, of_texts)


@silent
def clip_loss_backward(saved, grad_loss):
    """Gradients for the image embeddings, the text embeddings and logit_scale (None if that is a number)."""
    images, texts, logit_scale, of_images, of_texts = saved
    core, n = of_images.dtype, len(images)
    factors = core.type(logit_scale), core.type(0), core.type(grad_loss) / core.type(2 * n)
    own = own_products(images, texts, np.arange(n), core)
    return pair_gradients(images, texts, logit_scale, (own, of_images, of_texts), factors, False)[:3]


def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """The pairwise sigmoid loss of rows."""
    return siglip_loss_forward(image_embeddings, text_embeddings, logit_scale, logit_bias)[0]


@silent
def siglip_loss_forward(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """``siglip_loss`` and what ``siglip_loss_backward`` needs: its arguments."""
    core = core_dtype(image_embeddings.dtype)
    n, e = image_embeddings.shape
    per_row = np.empty(n, core)
    factors = core.type(logit_scale), core.type(logit_bias)
    arrays = describe(image_embeddings), describe(text_embeddings)
    count, in_band = bands(n)
    parallel_for(siglip_rows, count, 1, (n, n, e), in_band, *arrays, *factors, per_row)
    saved = image_embeddings, text_embeddings, logit_scale, logit_bias
    return np.asarray(per_row.sum() / core.type(n)), saved


@silent
def siglip_loss_backward(saved, grad_loss):
    """Gradients for both embeddings, logit_scale and logit_bias (None where a number was given)."""
    images, texts, logit_scale, logit_bias = saved
    core, n = core_dtype(images.dtype), len(images)
    unused = np.zeros(n, core), np.zeros((3, n), core), np.zeros((3, n), core)
    factors = core.type(logit_scale), core.type(logit_bias), core.type(grad_loss) / core.type(n)
    *gradients, bias_rows = pair_gradients(images, texts, logit_scale, unused, factors, True)
    given = isinstance(logit_bias, np.ndarray)
    return *gradients, np.asarray(bias_rows.sum()).astype(logit_bias.dtype) if given else None
