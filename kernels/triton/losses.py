"""The losses on GPUs; the definitions are in ``saccade.reference.losses``.

A program owns a row of logits and goes through its columns a block at a time. The forward pass stores one
log-sum-exp per row, from which the backward pass recomputes the softmax.
"""

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import FUSION, core_dtype, describe, double_bits, from_double_bits, types

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


def _counted(labels, ignore_index):
    """How many rows count; a tensor for integer labels, so that nothing waits for the GPU."""
    return labels.shape[0] if labels.ndim == 2 else (labels != ignore_index).sum()


def _for_each_row(kernel, logits, labels, ignore_index, label_smoothing, *arrays):
    n, k = logits.shape
    block = min(LARGEST_BLOCK, triton.next_power_of_2(max(k, 16)))
    core = types(logits.dtype)["CORE"]
    if n:
        with torch.cuda.device_of(logits):
            kernel[(n,)](
                describe(logits), describe(labels), *arrays, k, ignore_index, double_bits(label_smoothing),
                SOFT=labels.ndim == 2, BLOCK_K=block, CORE=core, **FUSION,
            )  # fmt: skip


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
