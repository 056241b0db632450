"""Fused softmax attention on CPUs; the definitions are in ``saccade.reference.attention``.

Scores exist one tile at a time (a block of keys by a block of queries), never as a (t, s) matrix. The forward pass
keeps a running maximum and sum per query. The backward pass recomputes each tile from lse, once: a thread owns a
head, or a fixed part of its keys where there are few heads, so no two threads add to the same number.
"""

import math
from typing import Any

import numpy as np

from saccade.kernels.numba import attention_gradients as gradients
from saccade.kernels.numba.attention_row import forward_row
from saccade.kernels.numba.attention_tiles import KEYS, QUERIES, forward
from saccade.kernels.numba.halves import in_pairs
from saccade.kernels.numba.layers import silent
from saccade.kernels.numba.memory import core_dtype, describe
from saccade.kernels.numba.threads import parallel_for

_NOTHING = (0, 0, 0, 0, 0, 0)
# Fewer heads than this have their keys parted in the backward pass. It is no number of threads: results depend on it.
_HEADS = 8


def attention(query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False):
    """Softmax attention, bhtd x bhsd x bhse -> bhte; see ``saccade.reference.attention.attention``."""
    out = np.empty((*query.shape[:3], value.shape[3]), query.dtype)
    shifts, totals, _ = _forward(out, query, key, value, mask, bias, causal, key_lengths, scale)
    return (out, _log_sum_exp(shifts, totals)) if return_lse else out


def attention_forward(
    query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False
):
    """``attention`` and what ``attention_backward`` needs."""
    out = np.empty((*query.shape[:3], value.shape[3]), query.dtype)
    lse, scale = forward_into(out, query, key, value, mask, bias, causal, key_lengths, scale)
    saved = query, key, value, bias, mask, key_lengths, out, lse, causal, scale
    return ((out, lse) if return_lse else out), saved


def forward_into(out, query, key, value, mask, bias, causal, key_lengths, scale):
    """``attention`` written to ``out``, of any strides; (log-sum-exp, scale)."""
    shifts, totals, scale = _forward(out, query, key, value, mask, bias, causal, key_lengths, scale)
    return _log_sum_exp(shifts, totals), scale


def _forward(out, query, key, value, mask, bias, causal, key_lengths, scale):
    (b, h, t, d), s, e = query.shape, key.shape[2], value.shape[3]
    core = core_dtype(query.dtype)
    shifts, totals = np.empty((b, h, t), core), np.empty((b, h, t), core)
    scale = 1 / math.sqrt(d) if scale is None else float(scale)
    arrays = describe(query), describe(key), describe(value)
    extras = _extras(mask, bias, key_lengths, (b, h, t, s))
    sizes, factor, results = (b, h, t, s, d, e), core.type(scale), (describe(out), shifts, totals)
    if t == 1:  # which sees every key, causal or not
        parallel_for(forward_row, b * h, 1, *arrays, *extras, sizes, factor, *results)
    else:
        pairs, items = in_pairs(query, key, value), b * h * -(-t // QUERIES)
        parallel_for(forward, items, 1, pairs, *arrays, *extras, sizes, causal, factor, *results)
    return shifts, totals, scale


@silent
def _log_sum_exp(shifts, totals):
    return shifts + np.log(totals)


def attention_backward(saved, grad_out, grad_lse=None) -> tuple[Any, ...]:
    """Gradients for query, key, value and bias (None where no bias was given)."""
    # A head dimension of its own strides may be shared by broadcasting: gradients are always dense.
    gradients = [np.empty(x.shape, x.dtype) for x in saved[:3]]
    return *gradients, backward_into(gradients, saved, grad_out, grad_lse, saved[3] is not None)


def backward_into(into, saved, grad_out, grad_lse=None, with_bias=False):
    """The gradients for query, key and value written to the three arrays ``into``; that for the bias, if asked for."""
    grad_query, grad_key, grad_value = into
    query, key, value, bias, mask, key_lengths, out, lse, causal, scale = saved
    (b, h, t, d), s, e = query.shape, key.shape[2], value.shape[3]
    core = lse.dtype
    sizes = (b, h, t, s, d, e)
    arrays = describe(query), describe(key), describe(value)
    extras = _extras(mask, bias, key_lengths, (b, h, t, s))
    scale = core.type(scale)
    row_sums = np.empty((b, h, t), core)
    parallel_for(gradients.row_sums, b * h * t, 4096, sizes, describe(out), describe(grad_out), row_sums)
    if grad_lse is not None:
        row_sums -= grad_lse
    common = *arrays, *extras, sizes, causal, scale, describe(grad_out), lse, row_sums
    parts = min(-(-_HEADS // max(b * h, 1)), max(s // KEYS, 1))
    sums = grad_query[None] if parts == 1 else np.empty((parts, *query.shape), core)
    outputs = describe(sums), describe(grad_key), describe(grad_value)
    pairs = in_pairs(query, key, value, grad_out)
    parallel_for(gradients.backward, b * h * parts, 1, pairs, parts, *common, *outputs)
    if parts > 1:
        grad_query[:] = sums.sum(0)
    if with_bias:
        shape = (1,) * (4 - bias.ndim) + bias.shape
        total = np.zeros(shape, core)
        items = shape[0] * shape[1] * (1 if shape[2] == 1 else -(-t // QUERIES))
        parallel_for(gradients.backward_bias, items, 1, *common, total)
        return total.reshape(bias.shape).astype(bias.dtype)
    return None


def qkv_attention(qkv, *, causal=False, key_lengths=None, scale=None):
    """Attention from the packed projection, b n 3 h d -> b n h d, read where it lies."""
    return qkv_attention_forward(qkv, causal=causal, key_lengths=key_lengths, scale=scale)[0]


def qkv_attention_forward(qkv, *, causal=False, key_lengths=None, scale=None):
    """``qkv_attention`` and what ``qkv_attention_backward`` needs."""
    b, n, _, h, d = qkv.shape
    out = np.empty((b, n, h, d), qkv.dtype)
    query, key, value = np.moveaxis(qkv, (2, 3), (0, 2))
    lse, scale = forward_into(np.moveaxis(out, 2, 1), query, key, value, None, None, causal, key_lengths, scale)
    return out, (qkv, key_lengths, out, lse, causal, scale)


def qkv_attention_backward(saved, grad_out):
    """The gradient of ``qkv_attention`` for qkv, (b, n, 3, h, d), in a tuple of one."""
    qkv, key_lengths, out, lse, causal, scale = saved
    query, key, value = np.moveaxis(qkv, (2, 3), (0, 2))
    whole = query, key, value, None, None, key_lengths, np.moveaxis(out, 2, 1), lse, causal, scale
    grad = np.empty(qkv.shape, qkv.dtype)
    backward_into(np.moveaxis(grad, (2, 3), (0, 2)), whole, np.moveaxis(grad_out, 2, 1))
    return (grad,)


def varlen_attention(query, key, value, *, cumulative_lengths, causal=False, scale=None):
    """Attention within each of several sequences packed end to end, nhd x nhd x nhd -> nhd."""
    options = dict(cumulative_lengths=cumulative_lengths, causal=causal, scale=scale)
    return varlen_attention_forward(query, key, value, **options)[0]


def varlen_attention_forward(query, key, value, *, cumulative_lengths, causal=False, scale=None):
    """``varlen_attention`` and what ``varlen_attention_backward`` needs."""
    out = np.empty(query.shape[:-1] + value.shape[-1:], query.dtype)
    lse = np.empty(query.shape[:-1], core_dtype(query.dtype))
    for rows in _sequences(cumulative_lengths):
        one = (_as_batch(x[rows]) for x in (query, key, value))
        out_one, saved = attention_forward(*one, causal=causal, scale=scale)
        out[rows], lse[rows] = np.moveaxis(out_one[0], 0, 1), saved[7][0].T
    return out, (query, key, value, cumulative_lengths, out, lse, causal, scale)


def varlen_attention_backward(saved, grad_out):
    """Gradients of ``varlen_attention`` for query, key and value."""
    query, key, value, cumulative_lengths, out, lse, causal, scale = saved
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    gradients = tuple(np.empty(x.shape, x.dtype) for x in (query, key, value))
    for rows in _sequences(cumulative_lengths):
        q, k, v, o, g = (_as_batch(x[rows]) for x in (query, key, value, out, grad_out))
        lse_one = np.ascontiguousarray(lse[rows].T)[None]
        one = attention_backward((q, k, v, None, None, None, o, lse_one, causal, scale), g)
        for whole, part in zip(gradients, one[:3], strict=True):
            whole[rows] = np.moveaxis(part[0], 0, 1)
    return gradients


def _sequences(cumulative_lengths):
    return [slice(a, b) for a, b in zip(cumulative_lengths[:-1], cumulative_lengths[1:], strict=True)]


def _as_batch(x_nhd):
    return np.moveaxis(x_nhd, 0, 1)[None]


def _extras(mask, bias, key_lengths, shape):
    return (
        _NOTHING if mask is None else describe(mask, shape),
        _NOTHING if bias is None else describe(bias, shape),
        np.full(shape[0], shape[3]) if key_lengths is None else np.asarray(key_lengths, np.int64),
    )
