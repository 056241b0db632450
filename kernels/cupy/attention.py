"""Softmax attention on CuPy arrays; the definitions are in ``saccade.reference.attention``, the kernels in
``attention.cu``, and of 16-bit numbers on tensor cores in ``attention_tiles.cu`` and ``attention_hopper.cu``."""

import math
from typing import Any

from saccade.kernels.cupy import attention_hopper, device

_OWN = device.THREADS // 32 * 16  # rows of a block, as in attention_tiles.cu
_WIDEST = 160  # the widest head whose tiles of keys and values fit into the 48 KiB that every GPU has


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
    out = device.empty((*query.shape[:3], value.shape[3]), query.dtype)
    saved = _forward((query, key, value), bias, mask, key_lengths, out, causal, scale)
    return ((out, saved[7]) if return_lse else out), saved


def attention_backward(saved, grad_out, grad_lse=None):
    """Gradients for query, key, value and bias (None where no bias was given)."""
    gradients = tuple(device.empty(x.shape, x.dtype) for x in saved[:3])
    return *gradients, _backward(saved, grad_out, grad_lse, gradients)


def qkv_attention(qkv, *, causal=False, key_lengths=None, scale=None):
    """Attention from the packed projection, b n 3 h d -> b n h d, read and written where it lies."""
    return qkv_attention_forward(qkv, causal=causal, key_lengths=key_lengths, scale=scale)[0]


def qkv_attention_forward(qkv, *, causal=False, key_lengths=None, scale=None):
    """``qkv_attention`` and what ``qkv_attention_backward`` needs."""
    b, n, _, h, d = qkv.shape
    out = device.empty((b, n, h, d), qkv.dtype)
    saved = _forward(_unpacked(qkv), None, None, key_lengths, out.swapaxes(1, 2), causal, scale)
    return out, (qkv, key_lengths, out, *saved[7:])


def qkv_attention_backward(saved, grad_out):
    """The gradient for qkv, (b, n, 3, h, d), in a tuple of one."""
    qkv, key_lengths, out, *rest = saved
    grad_qkv = device.empty(qkv.shape, qkv.dtype)
    whole = *_unpacked(qkv), None, None, key_lengths, out.swapaxes(1, 2), *rest
    _backward(whole, grad_out.swapaxes(1, 2), None, _unpacked(grad_qkv))
    return (grad_qkv,)


def _unpacked(qkv):
    """Query, key and value, bhnd, as views of b n 3 h d."""
    return tuple(qkv[:, :, i].swapaxes(1, 2) for i in range(3))


def varlen_attention(query, key, value, *, cumulative_lengths, causal=False, scale=None):
    """Attention within each of several sequences packed end to end, nhd x nhd x nhd -> nhd."""
    options = dict(cumulative_lengths=cumulative_lengths, causal=causal, scale=scale)
    return varlen_attention_forward(query, key, value, **options)[0]


def varlen_attention_forward(query, key, value, *, cumulative_lengths, causal=False, scale=None):
    """``varlen_attention`` and what ``varlen_attention_backward`` needs."""
    out = device.empty((*query.shape[:2], value.shape[2]), query.dtype)
    three, bounds = tuple(map(_as_batch, (query, key, value))), _bounds(cumulative_lengths, len(query))
    lse = _forward(three, None, None, None, _as_batch(out), causal, scale, bounds)[7]
    return out, (query, key, value, cumulative_lengths, out, lse[0].T.copy(), causal, scale)


def varlen_attention_backward(saved, grad_out):
    """Gradients for query, key and value."""
    query, key, value, cumulative_lengths, out, lse, causal, scale = saved
    scale = 1 / math.sqrt(query.shape[2]) if scale is None else scale
    gradients = tuple(device.empty(x.shape, x.dtype) for x in (query, key, value))
    whole = *map(_as_batch, (query, key, value)), None, None, None, _as_batch(out), lse.T[None], causal, scale
    bounds = _bounds(cumulative_lengths, len(query))
    _backward(whole, _as_batch(grad_out), None, tuple(map(_as_batch, gradients)), bounds)
    return gradients


def _as_batch(x_nhd):
    return x_nhd.swapaxes(0, 1)[None]


def _bounds(cumulative_lengths, n):
    """For each of n tokens, where its sequence begins and ends."""
    bounds = cumulative_lengths.astype("int64")
    token = device.full((n,), 1, "int64").cumsum() - 1
    sequence = bounds.searchsorted(token, side="right")
    return bounds[sequence - 1], bounds[sequence]


def _forward(three, bias, mask, key_lengths, out, causal, scale, bounds=(None, None)) -> Any:
    """Fill ``out`` from query, key and value; what ``_backward`` needs."""
    query = three[0]
    lse = device.empty(query.shape[:3], device.core_dtype(query.dtype))
    scale = 1 / math.sqrt(query.shape[3]) if scale is None else float(scale)
    saved = *three, bias, mask, key_lengths, out, lse, causal, scale
    if bounds[0] is None and attention_hopper.takes(saved):
        lengths = None if key_lengths is None else key_lengths.astype("int64")
        attention_hopper.attend((*three, bias, mask, lengths, *saved[6:]))
    elif bounds[0] is None and _has_tiles(query, three[2]):
        _launch("attention_forward_tiles", saved, _threads_of_tiles(query))
    else:
        _launch("attention_forward", saved, lse.size, bounds=bounds)
    return saved


def _has_tiles(query, value):
    """Whether tensor cores multiply these: 16-bit numbers, and heads whose tiles fit into shared memory."""
    fits = 0 < value.shape[3] <= _WIDEST and query.shape[3] <= _WIDEST
    return query.dtype.itemsize == 2 and fits and device.has_tensor_cores()


def _threads_of_tiles(rows):
    """How many threads it takes for a warp to have 16 rows of each head."""
    return -(-rows.shape[2] // _OWN) * rows.shape[0] * rows.shape[1] * device.THREADS


def _backward(saved, grad_out, grad_lse, gradients, bounds=(None, None)):
    """Fill ``gradients`` for query, key and value; returns that for bias, or None."""
    query, key, value, bias, _, _, _, lse, _, _ = saved
    row_sums = device.zeros(lse.shape, lse.dtype)
    if grad_lse is not None:
        row_sums += grad_lse
    grad_bias = None if bias is None else device.empty(bias.shape, bias.dtype)
    arrays = grad_out, row_sums, *gradients, grad_bias
    _launch("attention_row_sums", saved, lse.size, arrays, bounds)
    if bounds[0] is None and _has_tiles(query, value):
        _launch("attention_backward_query_tiles", saved, _threads_of_tiles(query), arrays)
        _launch("attention_backward_key_tiles", saved, _threads_of_tiles(key), arrays)
    else:
        _launch("attention_backward_query", saved, lse.size, arrays, bounds)
        _launch("attention_backward_key", saved, key.size // key.shape[3], arrays, bounds)
    if bias is not None:
        _launch("attention_backward_bias", saved, bias.size, arrays, bounds)
    return grad_bias


def _launch(kernel, saved, threads, gradients=(None,) * 6, bounds=(None, None)):
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
    for x in bounds:
        parameters += device.describe(x)
    file, sizes = "attention.cu", {"D": d, "E": e}
    if kernel.endswith("_tiles"):
        file, sizes = "attention_tiles.cu", sizes | {"KIND": "FLOAT16" if query.dtype == "float16" else "BFLOAT16"}
    device.launch(file, kernel, device.options(lse.dtype, **sizes), threads, parameters, scale)


def _with_four_axes(x):
    """A view whose shape broadcasts to (b, h, t, s) axis by axis."""
    return None if x is None else x[(None,) * (4 - x.ndim)]
