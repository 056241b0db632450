"""The losses on CuPy arrays; the definitions are in ``saccade.reference.losses``, the kernels in ``losses.cu``.

Logits that are products exist a panel at a time, some rows of them, made by cuBLAS, and are made again in the backward
pass; their kernels are in ``pairs.cu``.
"""

import numpy as np

from saccade.kernels.cupy import device
from saccade.kernels.cupy.device import THREADS, core_dtype
from saccade.kernels.cupy.pairs import (
    label_gradients,
    label_losses,
    pair_gradients,
    pair_statistics,
    siglip_per_row,
)

_NUMBERS = (int, float, np.number)


def softmax_cross_entropy(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """−sum_k target log softmax(logits) per row, averaged, summed or as it is."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return softmax_cross_entropy_forward(logits, labels, **options)[0]


def softmax_cross_entropy_forward(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``softmax_cross_entropy`` and (logits, labels, lse, ignore_index, label_smoothing, reduction)."""
    per_row, lse = (device.empty((len(logits),), core_dtype(logits.dtype)) for _ in range(2))
    saved = logits, labels, lse, ignore_index, label_smoothing, reduction
    _softmax("softmax_cross_entropy_forward", saved, per_row, None, None)
    return _reduced(per_row, labels, ignore_index, reduction), saved


def softmax_cross_entropy_backward(saved, grad_loss):
    """The gradient for logits, in a tuple of one."""
    logits, labels, _, ignore_index, _, reduction = saved
    grad_rows = _of_rows(grad_loss, labels, ignore_index, reduction, core_dtype(logits.dtype))
    grad_logits = device.empty(logits.shape, logits.dtype)
    _softmax("softmax_cross_entropy_backward", saved, None, grad_rows, grad_logits)
    return (grad_logits,)


def _softmax(kernel, saved, per_row, grad_rows, grad_logits):
    logits, labels, lse, ignore_index, label_smoothing, _ = saved
    integers, soft = (None, labels) if labels.ndim == 2 else (labels.astype("int64"), None)
    device.run(
        "losses.cu", kernel, core_dtype(logits.dtype), len(logits) * THREADS, *logits.shape, ignore_index, logits,
        integers, soft, per_row, lse, grad_rows, grad_logits, number=label_smoothing,
    )  # fmt: skip


def _counted(labels, ignore_index, core):
    """How many rows count, as an array of one where the labels are; 0 of them make a mean NaN."""
    if labels.ndim == 2:
        return device.full((1,), len(labels), core)
    return (labels != ignore_index).sum(keepdims=True).astype(core)


def _reduced(per_row, labels, ignore_index, reduction):
    if reduction == "none":
        return per_row
    total = per_row.sum(keepdims=True)
    if reduction == "mean":
        total = total / _counted(labels, ignore_index, per_row.dtype)
    return total.reshape(())


def _of_rows(grad_loss, labels, ignore_index, reduction, core):
    """The gradient of each row's loss; of one that is not counted it is of no account."""
    grad = grad_loss.astype(core)
    if reduction == "mean":
        grad = grad / _counted(labels, ignore_index, core)
    return device.zeros((len(labels),), core) + grad


def sigmoid_cross_entropy(logits, targets, *, reduction="mean"):
    """Binary cross entropy summed over classes, averaged over rows, summed or as it is."""
    return sigmoid_cross_entropy_forward(logits, targets, reduction=reduction)[0]


def sigmoid_cross_entropy_forward(logits, targets, *, reduction="mean"):
    """``sigmoid_cross_entropy`` and what ``sigmoid_cross_entropy_backward`` needs: (logits, targets, reduction)."""
    core, threads = core_dtype(logits.dtype), len(logits) * THREADS
    per_row = device.empty((len(logits),), core)
    values = *logits.shape, logits, targets, per_row, None, None
    device.run("losses.cu", "sigmoid_cross_entropy_forward", core, threads, *values)
    return _reduced(per_row, targets, None, reduction), (logits, targets, reduction)


def sigmoid_cross_entropy_backward(saved, grad_loss):
    """The gradient for logits, in a tuple of one."""
    logits, targets, reduction = saved
    core, grad_logits = core_dtype(logits.dtype), device.empty(logits.shape, logits.dtype)
    grad_rows = _of_rows(grad_loss, targets, None, reduction, core)
    values = *logits.shape, logits, targets, None, grad_rows, grad_logits
    device.run("losses.cu", "sigmoid_cross_entropy_backward", core, logits.size, *values)
    return (grad_logits,)


def linear_cross_entropy(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``softmax_cross_entropy`` of hidden weightᵀ, whose logits are never stored."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return linear_cross_entropy_forward(hidden, weight, labels, **options)[0]


def linear_cross_entropy_forward(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``linear_cross_entropy`` and (hidden, weight, labels, statistics, ignore_index, label_smoothing, reduction)."""
    per_row, statistics = label_losses(hidden, weight, labels, ignore_index, label_smoothing)
    saved = hidden, weight, labels, statistics, ignore_index, label_smoothing, reduction
    return _reduced(per_row, labels, ignore_index, reduction), saved


def linear_cross_entropy_backward(saved, grad_loss):
    """Gradients for hidden and weight."""
    hidden, weight, labels, statistics, ignore_index, label_smoothing, reduction = saved
    factors, factor = None, None
    if reduction == "none":
        factors = _of_rows(grad_loss, labels, ignore_index, reduction, statistics.dtype)
    else:
        factor = grad_loss.astype(statistics.dtype).reshape(1)
        if reduction == "mean":
            counted = _counted(labels, ignore_index, statistics.dtype)
            factor = factor / (counted + (counted == 0))  # where no row counts, all gradients are 0
    return label_gradients(hidden, weight, labels, statistics, ignore_index, label_smoothing, factors, factor)


def clip_loss(image_embeddings, text_embeddings, logit_scale):
    """The symmetric contrastive loss of pairs of rows."""
    return clip_loss_forward(image_embeddings, text_embeddings, logit_scale)[0]


def clip_loss_forward(image_embeddings, text_embeddings, logit_scale):
    """``clip_loss`` and (image embeddings, text embeddings, logit_scale, statistics of images, of texts)."""
    scale = _factor(logit_scale, image_embeddings)
    of_images, of_texts = pair_statistics(image_embeddings, text_embeddings, scale)
    per_row = (of_images[0] + of_texts[0]) / 2
    loss = (per_row.sum(keepdims=True) / len(per_row)).reshape(())
    return loss, (image_embeddings, text_embeddings, logit_scale, of_images, of_texts)


def clip_loss_backward(saved, grad_loss):
    """Gradients for the image embeddings, the text embeddings and logit_scale (None if that is a number)."""
    images, texts, logit_scale, *statistics = saved
    scale, grad = _factor(logit_scale, images), _factor(grad_loss, images) / (2 * len(images))
    grad_images, grad_texts, scale_rows, _ = pair_gradients(images, texts, scale, None, grad, statistics)
    return grad_images, grad_texts, _of_factor(logit_scale, scale_rows, grad)


def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """The pairwise sigmoid loss of rows."""
    return siglip_loss_forward(image_embeddings, text_embeddings, logit_scale, logit_bias)[0]


def siglip_loss_forward(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """``siglip_loss`` and what ``siglip_loss_backward`` needs: its arguments."""
    scale, bias = _factor(logit_scale, image_embeddings), _factor(logit_bias, image_embeddings)
    per_row = siglip_per_row(image_embeddings, text_embeddings, scale, bias)
    loss = (per_row.sum(keepdims=True) / len(per_row)).reshape(())
    return loss, (image_embeddings, text_embeddings, logit_scale, logit_bias)


def siglip_loss_backward(saved, grad_loss):
    """Gradients for both embeddings, logit_scale and logit_bias (None where a number was given)."""
    images, texts, logit_scale, logit_bias = saved
    scale, bias = _factor(logit_scale, images), _factor(logit_bias, images)
    grad = _factor(grad_loss, images) / len(images)
    grad_images, grad_texts, scale_rows, bias_rows = pair_gradients(images, texts, scale, bias, grad)
    shares = _of_factor(logit_scale, scale_rows, grad), _of_factor(logit_bias, bias_rows, grad)
    return grad_images, grad_texts, *shares


def _factor(number, beside):
    """A number, or an array of one, as an array of one in the core dtype; an array's value does not leave the GPU."""
    core = core_dtype(beside.dtype)
    return device.full((1,), number, core) if isinstance(number, _NUMBERS) else number.astype(core).reshape(1)


def _of_factor(given, rows, grad):
    """The gradient of a factor from its shares of rows; None if a number was given."""
    if isinstance(given, _NUMBERS):
        return None
    return (rows.sum(keepdims=True) * grad).astype(given.dtype).reshape(())
