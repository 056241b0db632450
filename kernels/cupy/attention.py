"""Softmax attention on CuPy arrays; the definitions are in ``saccade.reference.attention``, the kernels in
``attention.cu``."""

import math

from saccade.kernels.cupy import device


def attention(query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False):
    """Softmax attention, bhtd x bhsd x bhse -> bhte."""
    return attention_forward(
        query, key, value, mask=mask, bias=bias, causal=causal,
        key_lengths=key_lengths, scale=scale, return_lse=return_lse,
    )[0]  # fmt: skip


def attention_forward(
    query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False
):
    """``attention`` and what ``attention_backward`` needs."""
    b, h, t, d = query.shape
    core = device.core_dtype(query.dtype)
    out, lse = device.empty((b, h, t, value.shape[3]), query.dtype), device.empty((b, h, t), core)
    scale = 1 / math.sqrt(d) if scale is None else float(scale)
    saved = query, key, value, bias, mask, key_lengths, out, lse, causal, scale
    _launch("attention_forward", saved, b * h * t)
    return ((out, lse) if return_lse else out), saved


def attention_backward(saved, grad_out, grad_lse=None):
    """Gradients for query, key, value and bias (None where no bias was given)."""
    query, key, value, bias, _, _, _, lse, _, _ = saved
    (b, h, t, _), s = query.shape, key.shape[2]
    row_sums = device.zeros(lse.shape, lse.dtype)
    if grad_lse is not None:
        row_sums += grad_lse
    gradients = tuple(device.empty(x.shape, x.dtype) for x in (query, key, value))
    grad_bias = None if bias is None else device.empty(bias.shape, bias.dtype)
    arrays = (grad_out, row_sums, *gradients, grad_bias)
    _launch("attention_row_sums", saved, b * h * t, arrays)
    _launch("attention_backward_query", saved, b * h * t, arrays)
    _launch("attention_backward_key", saved, b * h * s, arrays)
    if bias is not None:
        _launch("attention_backward_bias", saved, bias.size, arrays)
    return *gradients, grad_bias


def _launch(kernel, saved, threads, gradients=(None,) * 6):
    """Run a kernel; ``gradients`` are grad_out, the row sums, and the gradients for query, key, value and bias."""
    query, key, value, bias, mask, key_lengths, out, lse, causal, scale = saved
    (b, h, t, d), s, e = query.shape, key.shape[2], value.shape[3]
    *gradients, grad_bias = gradients
    parameters = [b, h, t, s, int(causal)]
    for x in (query, key, value, _with_four_axes(bias), _with_four_axes(mask), out, lse, *gradients):
        parameters += device.describe(x)
    parameters += device.describe(_with_four_axes(grad_bias))
    lengths = None if key_lengths is None else key_lengths.astype("int64")
    parameters.append(0 if lengths is None else device.address(lengths))
    parameters += (0,) * 4 if bias is None else (1,) * (4 - bias.ndim) + bias.shape
    flags = device.options(lse.dtype, D=d, E=e)
    device.launch("attention.cu", kernel, flags, threads, device.upload(parameters), scale)


def _with_four_axes(x):
    """A view whose shape broadcasts to (b, h, t, s) axis by axis."""
    return None if x is None else x[(None,) * (4 - x.ndim)]
