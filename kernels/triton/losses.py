"""The losses on GPUs; the definitions are in ``saccade.reference.losses``.

Where logits are given, a program owns a row of them and goes through its columns a block at a time. The forward pass
stores one log-sum-exp per row, from which the backward pass recomputes the softmax. Where logits are products they
exist a tile at a time, or a panel of rows in the backward pass: ``statistics`` and ``pairs``.
"""

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import FUSION, core_dtype, describe, double_bits, from_double_bits, types
from saccade.kernels.triton.pairs import gradients, softplus_sums
from saccade.kernels.triton.statistics import LOSS, log1p, own_products, statistics

# Columns read at a time; it does not change which function is computed.
LARGEST_BLOCK = 1024


def softmax_cross_entropy(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """−sum_k target log softmax(logits) per row, averaged, summed or as it is; a bad label makes its row NaN."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return softmax_cross_entropy_forward(logits, labels, **options)[0]


def softmax_cross_entropy_forward(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``softmax_cross_entropy`` and (logits, labels, lse, ignore_index, label_smoothing, reduction)."""
    per_row, lse = (logits.new_empty(len(logits), dtype=core_dtype(logits.dtype)) for _ in range(2))
    _for_each_row(
        _cross_entropy_rows, logits, labels, ignore_index, label_smoothing, describe(lse), describe(per_row)
    )  # fmt: skip
    loss = per_row
    if reduction != "none":
        loss = per_row.sum()
    if reduction == "mean":
        loss = loss / _counted(labels, ignore_index)
    return loss, (logits, labels, lse, ignore_index, label_smoothing, reduction)


def softmax_cross_entropy_backward(saved, grad_loss):
    """The gradient for logits, in a tuple of one: (softmax · sum_k target − target) · dloss_n."""
    logits, labels, lse, ignore_index, label_smoothing, reduction = saved
    grad_rows = grad_loss.to(lse.dtype)
    if reduction == "mean":
        grad_rows = grad_rows / _counted(labels, ignore_index)
    grad_logits = logits.new_empty(logits.shape)
    _for_each_row(
        _cross_entropy_rows_backward, logits, labels, ignore_index, label_smoothing, describe(lse),
        describe(grad_rows, lse.shape), describe(grad_logits),
    )  # fmt: skip
    return (grad_logits,)


def sigmoid_cross_entropy(logits, targets, *, reduction="mean"):
    """−sum_k [target log σ(logit) + (1 − target) log σ(−logit)] per row, averaged, summed or as it is."""
    return sigmoid_cross_entropy_forward(logits, targets, reduction=reduction)[0]


def sigmoid_cross_entropy_forward(logits, targets, *, reduction="mean"):
    """``sigmoid_cross_entropy`` and what ``sigmoid_cross_entropy_backward`` needs: its arguments."""
    per_row = logits.new_empty(len(logits), dtype=core_dtype(logits.dtype))
    _launch_rows(_sigmoid_rows, logits, describe(targets), describe(per_row))
    loss = per_row if reduction == "none" else per_row.sum()
    return (loss / len(logits) if reduction == "mean" else loss), (logits, targets, reduction)


def sigmoid_cross_entropy_backward(saved, grad_loss):
    """The gradient for logits, in a tuple of one: (σ(logit) − target) · dloss_n."""
    logits, targets, reduction = saved
    grad_rows = grad_loss.to(core_dtype(logits.dtype))
    grad_rows = grad_rows / len(logits) if reduction == "mean" else grad_rows
    grad_logits = logits.new_empty(logits.shape)
    spread = describe(grad_rows, (len(logits),))
    _launch_rows(_sigmoid_rows_backward, logits, describe(targets), spread, describe(grad_logits))
    return (grad_logits,)


def linear_cross_entropy(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``softmax_cross_entropy`` of hidden weightᵀ, whose logits exist a panel at a time; a bad label makes NaN."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return linear_cross_entropy_forward(hidden, weight, labels, **options)[0]


def linear_cross_entropy_forward(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``linear_cross_entropy`` and (hidden, weight, labels, statistics, ignore_index, label_smoothing, reduction)."""
    core = core_dtype(hidden.dtype)
    own = own_products(hidden, weight, labels)
    of_rows, _, sums = statistics(hidden, weight, own.new_ones(()), own, labels, sums=label_smoothing != 0)
    per_row = of_rows[LOSS] - label_smoothing * sums / len(weight) if label_smoothing else of_rows[LOSS]
    per_row = (per_row + _bad(labels, len(weight), core)).masked_fill_(labels == ignore_index, 0)
    loss = per_row if reduction == "none" else per_row.sum()
    if reduction == "mean":
        loss = loss / _counted(labels, ignore_index)
    return loss, (hidden, weight, labels, of_rows, ignore_index, label_smoothing, reduction)


def linear_cross_entropy_backward(saved, grad_loss):
    """Gradients for hidden and weight."""
    hidden, weight, labels, of_rows, ignore_index, label_smoothing, reduction = saved
    core = of_rows.dtype
    whole, one = grad_loss.to(core), of_rows.new_ones(())
    if reduction == "mean":  # where no row counts, gradients are 0 though the loss is NaN
        whole = whole / _counted(labels, ignore_index).clamp(min=1)
    factors, whole = (whole, one) if reduction == "none" else (one, whole)
    factors = (factors + _bad(labels, len(weight), core)).masked_fill_(labels == ignore_index, 0)
    targets = labels, factors, torch.full((), label_smoothing, dtype=core, device=hidden.device)
    return gradients("labels", hidden, weight, one, whole, of_rows=of_rows, targets=targets)[:2]


def _bad(labels, k, core):
    """NaN for labels that are none, 0 for the others."""
    return torch.zeros_like(labels, dtype=core).masked_fill_((labels < 0) | (labels >= k), float("nan"))


def clip_loss(image_embeddings, text_embeddings, logit_scale):
    """The symmetric contrastive loss of pairs of rows; no array of n² numbers is stored."""
    return clip_loss_forward(image_embeddings, text_embeddings, logit_scale)[0]


def clip_loss_forward(image_embeddings, text_embeddings, logit_scale):
    """``clip_loss`` and (image embeddings, text embeddings, logit_scale, statistics of images, of texts)."""
    own = own_products(image_embeddings, text_embeddings, None)
    scale = _number(logit_scale, own)
    of_images, of_texts, _ = statistics(image_embeddings, text_embeddings, scale, own, columns=True)
    loss = ((of_images[LOSS] + of_texts[LOSS]) / 2).sum() / len(own)
    return loss, (image_embeddings, text_embeddings, logit_scale, of_images, of_texts)


def clip_loss_backward(saved, grad_loss):
    """Gradients for the image embeddings, the text embeddings and logit_scale (None if that is a number)."""
    images, texts, logit_scale, of_images, of_texts = saved
    scale, factor = _number(logit_scale, of_images), grad_loss.to(of_images.dtype) / (2 * len(images))
    own = own_products(images, texts, None)
    found = gradients("clip", images, texts, scale, factor, own=own, of_rows=of_images, of_columns=of_texts)
    return *found[:2], _of_number(found[2], logit_scale)


def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """The pairwise sigmoid loss of rows; no array of n² numbers is stored."""
    return siglip_loss_forward(image_embeddings, text_embeddings, logit_scale, logit_bias)[0]


def siglip_loss_forward(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """``siglip_loss`` and what ``siglip_loss_backward`` needs: its arguments."""
    like = image_embeddings.new_empty(0, dtype=core_dtype(image_embeddings.dtype))
    factors = _number(logit_scale, like), _number(logit_bias, like)
    loss = softplus_sums(image_embeddings, text_embeddings, *factors) / len(image_embeddings)
    return loss, (image_embeddings, text_embeddings, logit_scale, logit_bias)


def siglip_loss_backward(saved, grad_loss):
    """Gradients for both embeddings, logit_scale and logit_bias (None where a number was given)."""
    images, texts, logit_scale, logit_bias = saved
    factor = grad_loss.to(core_dtype(images.dtype)) / len(images)
    scale, bias = _number(logit_scale, factor), _number(logit_bias, factor)
    found = gradients("siglip", images, texts, scale, factor, bias)
    return *found[:2], _of_number(found[2], logit_scale), _of_number(found[3], logit_bias)


def _number(x, like):
    """A factor as a tensor in the dtype sums are taken in."""
    return x.to(like.dtype) if isinstance(x, torch.Tensor) else like.new_full((), x)


def _of_number(grad, x):
    """The gradient of a factor, None if that is a number."""
    return grad.to(x.dtype) if isinstance(x, torch.Tensor) else None


def _counted(labels, ignore_index):
    """How many rows count; a tensor for integer labels, so that nothing waits for the GPU."""
    return labels.shape[0] if labels.ndim == 2 else (labels != ignore_index).sum()


def _for_each_row(kernel, logits, labels, ignore_index, label_smoothing, *arrays):
    numbers = ignore_index, double_bits(label_smoothing)
    _launch_rows(kernel, logits, describe(labels), *arrays, numbers=numbers, SOFT=labels.ndim == 2)


def _launch_rows(kernel, logits, *arrays, numbers=(), **options):
    """Launch a kernel with a program for each row of logits."""
    n, k = logits.shape
    block = min(LARGEST_BLOCK, triton.next_power_of_2(max(k, 16)))
    if n:
        with torch.cuda.device_of(logits):
            core = types(logits.dtype)["CORE"]
            kernel[(n,)](describe(logits), *arrays, k, *numbers, **options, BLOCK_K=block, CORE=core, **FUSION)


@triton.jit
def _load_row(x, i_n, i_k, k, CORE: tl.constexpr):
    """Columns ``i_k`` of row n, 0 beyond the last."""
    return tl.load(x[0] + i_n * x[1] + i_k * x[2], mask=i_k < k, other=0).to(CORE)


@triton.jit
def _label(labels, i_n, k, ignore_index):
    """(label, whether the row counts, whether the label is good)."""
    label = tl.load(labels[0] + i_n * labels[1]).to(tl.int64)
    return label, label != ignore_index, (label >= 0) & (label < k)


@triton.jit
def _lse_of_row(logits, i_n, k, BLOCK_K: tl.constexpr, CORE: tl.constexpr):
    """log sum_k exp(logits), with a running maximum and sum per lane that are joined at the end."""
    b_top = tl.full([BLOCK_K], float("-inf"), CORE)
    b_total = tl.zeros([BLOCK_K], CORE)
    for first_k in range(0, k, BLOCK_K):
        i_k = first_k + tl.arange(0, BLOCK_K).to(tl.int64)
        b_logits = tl.where(i_k < k, _load_row(logits, i_n, i_k, k, CORE), float("-inf"))
        b_new_top = tl.maximum(b_top, b_logits)
        b_shift = tl.where(b_new_top == float("-inf"), 0.0, b_new_top)
        b_total = b_total * tl.exp(b_top - b_shift) + tl.exp(b_logits - b_shift)
        b_top = b_new_top
    top = tl.max(b_top, 0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    return tl.log(tl.sum(b_total * tl.exp(b_top - shift), 0)) + shift


@triton.jit(do_not_specialize=["ignore_index", "smoothing_bits"])
def _cross_entropy_rows(
    logits, labels, lse, per_row, k, ignore_index, smoothing_bits,
    SOFT: tl.constexpr, BLOCK_K: tl.constexpr, CORE: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(0).to(tl.int64)
    smoothing = from_double_bits(smoothing_bits, CORE)
    share = smoothing / k
    row_lse = _lse_of_row(logits, i_n, k, BLOCK_K, CORE)
    b_loss = tl.zeros([BLOCK_K], CORE)
    label, counted, good = tl.full([], 0, tl.int64), True, True
    if not SOFT:
        label, counted, good = _label(labels, i_n, k, ignore_index)
    for first_k in range(0, k, BLOCK_K):
        i_k = first_k + tl.arange(0, BLOCK_K).to(tl.int64)
        b_logits = _load_row(logits, i_n, i_k, k, CORE)
        if SOFT:
            b_target = _load_row(labels, i_n, i_k, k, CORE)
        else:
            b_target = (i_k == label).to(CORE)
        b_target = b_target * (1 - smoothing) + share
        # a target of 0 counts 0 even against a logit of −inf
        b_loss += tl.where((i_k < k) & (b_target != 0), b_target * (row_lse - b_logits), 0.0)
    loss = tl.sum(b_loss, 0)
    if not SOFT:
        loss = tl.where(counted, tl.where(good, loss, float("nan")), 0.0)
    tl.store(lse[0] + i_n * lse[1], row_lse)
    tl.store(per_row[0] + i_n * per_row[1], loss)


@triton.jit(do_not_specialize=["ignore_index", "smoothing_bits"])
def _cross_entropy_rows_backward(
    logits, labels, lse, grad_rows, grad_logits, k, ignore_index, smoothing_bits,
    SOFT: tl.constexpr, BLOCK_K: tl.constexpr, CORE: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(0).to(tl.int64)
    smoothing = from_double_bits(smoothing_bits, CORE)
    share = smoothing / k
    row_lse = tl.load(lse[0] + i_n * lse[1])
    grad_row = tl.load(grad_rows[0] + i_n * grad_rows[1])
    label, counted, good = tl.full([], 0, tl.int64), True, True
    whole = tl.full([], 1, CORE)
    if SOFT:
        b_whole = tl.zeros([BLOCK_K], CORE)
        for first_k in range(0, k, BLOCK_K):
            i_k = first_k + tl.arange(0, BLOCK_K).to(tl.int64)
            b_target = _load_row(labels, i_n, i_k, k, CORE) * (1 - smoothing) + share
            b_whole += tl.where(i_k < k, b_target, 0.0)
        whole = tl.sum(b_whole, 0)
    else:
        label, counted, good = _label(labels, i_n, k, ignore_index)
    for first_k in range(0, k, BLOCK_K):
        i_k = first_k + tl.arange(0, BLOCK_K).to(tl.int64)
        b_weights = tl.exp(_load_row(logits, i_n, i_k, k, CORE) - row_lse)
        if SOFT:
            b_target = _load_row(labels, i_n, i_k, k, CORE)
        else:
            b_target = (i_k == label).to(CORE)
        b_grad = (b_weights * whole - (b_target * (1 - smoothing) + share)) * grad_row
        if not SOFT:
            b_grad = tl.where(counted, tl.where(good, b_grad, float("nan")), 0.0)
        p_grad = grad_logits[0] + i_n * grad_logits[1] + i_k * grad_logits[2]
        tl.store(p_grad, b_grad.to(grad_logits[0].dtype.element_ty), mask=i_k < k)


@triton.jit
def _sigmoid_rows(logits, targets, per_row, k, BLOCK_K: tl.constexpr, CORE: tl.constexpr):
    i_n = tl.program_id(0).to(tl.int64)
    b_loss = tl.zeros([BLOCK_K], CORE)
    for first_k in range(0, k, BLOCK_K):
        i_k = first_k + tl.arange(0, BLOCK_K).to(tl.int64)
        b_logits = _load_row(logits, i_n, i_k, k, CORE)
        b_target = _load_row(targets, i_n, i_k, k, CORE)
        b_small = log1p(tl.exp(-tl.abs(b_logits)))
        b_terms = b_target * (tl.maximum(-b_logits, 0.0) + b_small)
        b_terms += (1 - b_target) * (tl.maximum(b_logits, 0.0) + b_small)
        b_terms = tl.where(b_logits != b_logits, b_logits, b_terms)  # tl.maximum may lose a NaN
        b_loss += tl.where(i_k < k, b_terms, 0.0)
    tl.store(per_row[0] + i_n * per_row[1], tl.sum(b_loss, 0))


@triton.jit
def _sigmoid_rows_backward(
    logits, targets, grad_rows, grad_logits, k, BLOCK_K: tl.constexpr, CORE: tl.constexpr
):  # fmt: skip
    i_n = tl.program_id(0).to(tl.int64)
    grad_row = tl.load(grad_rows[0] + i_n * grad_rows[1])
    for first_k in range(0, k, BLOCK_K):
        i_k = first_k + tl.arange(0, BLOCK_K).to(tl.int64)
        b_odds = 1 / (1 + tl.exp(-_load_row(logits, i_n, i_k, k, CORE)))
        b_grad = (b_odds - _load_row(targets, i_n, i_k, k, CORE)) * grad_row
        p_grad = grad_logits[0] + i_n * grad_logits[1] + i_k * grad_logits[2]
        tl.store(p_grad, b_grad.to(grad_logits[0].dtype.element_ty), mask=i_k < k)
