"""Softmax cross entropy on CuPy arrays; the definition is in ``saccade.reference.losses``, the kernels in
``losses.cu``."""

from saccade.kernels.cupy import device


def softmax_cross_entropy(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """−sum_k target log softmax(logits) per row, averaged, summed or as it is."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return softmax_cross_entropy_forward(logits, labels, **options)[0]


def softmax_cross_entropy_forward(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``softmax_cross_entropy`` and (logits, labels, lse, ignore_index, label_smoothing, reduction)."""
    core = device.core_dtype(logits.dtype)
    per_row, lse = device.empty((len(logits),), core), device.empty((len(logits),), core)
    saved = logits, labels, lse, ignore_index, label_smoothing, reduction
    _launch("softmax_cross_entropy_forward", saved, per_row=per_row)
    if reduction == "none":
        return per_row, saved
    total = per_row.sum()
    return (total if reduction == "sum" else total / _counted(labels, ignore_index)).astype(core), saved


def softmax_cross_entropy_backward(saved, grad_loss):
    """The gradient for logits, in a tuple of one."""
    logits, labels, lse, ignore_index, _, reduction = saved
    grad_rows = device.zeros(lse.shape, lse.dtype) + grad_loss.astype(lse.dtype)
    if reduction == "mean":
        grad_rows /= _counted(labels, ignore_index)
    grad_logits = device.empty(logits.shape, logits.dtype)
    _launch("softmax_cross_entropy_backward", saved, grad_rows=grad_rows.astype(lse.dtype), grad_logits=grad_logits)
    return (grad_logits,)


def _counted(labels, ignore_index):
    """How many rows count, as an array where the labels are; 0 of them make a mean NaN."""
    if labels.ndim == 2:
        return device.zeros((), "float64") + len(labels)
    return (labels != ignore_index).sum().astype("float64")


def _launch(kernel, saved, per_row=None, grad_rows=None, grad_logits=None):
    logits, labels, lse, ignore_index, label_smoothing, _ = saved
    soft = labels.ndim == 2
    integers = None if soft else labels.astype("int64")
    parameters = [*logits.shape, ignore_index, int(soft)]
    for x in (logits, labels if soft else None, per_row, lse, grad_rows, grad_logits):
        parameters += device.describe(x)
    parameters.append(0 if integers is None else device.address(integers))
    flags = device.options(lse.dtype)
    device.launch("losses.cu", kernel, flags, len(logits), device.upload(parameters), label_smoothing)
