r"""Softmax attention: the definition.

    scores_bhts = scale * query_bhtd . key_bhsd + bias_bhts      (−inf where s may not be seen by t)
    lse_bht     = log sum_s exp(scores_bhts)
    weights     = exp(scores - lse)                              (0 where s may not be seen by t)
    out_bhte    = sum_s weights_bhts value_bhse

Vaswani et al., "Attention Is All You Need", 2017, equation 1. Decided here and held everywhere:

* a query with no key to attend to gives output 0, lse −inf and gradients 0;
* ``causal`` aligns at the end: query t sees keys s <= t + (S − T);
* keys at or beyond ``key_lengths[b]`` are never read.
"""

import numpy as np

from saccade.reference.precision import compute_dtype, einsum, rounded, upcast


def attention(query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False):
    """Softmax attention, bhtd x bhsd x bhse -> bhte (see the module's formula).

    Args:
        query: (b, h, t, d) floating point.
        key: (b, h, s, d), same dtype.
        value: (b, h, s, e), same dtype.
        mask: bool, broadcasts to (b, h, t, s); True means "attend".
        bias: added to the scores, broadcasts to (b, h, t, s).
        causal: query t sees keys s <= t + (S − T).
        key_lengths: (b,) integers in 0…S; keys at or beyond them are not read.
        scale: factor on the scores; 1/sqrt(d) if None.
        return_lse: also return the log-sum-exp of the scores, (b, h, t), in float32 at least.

    Returns:
        (b, h, t, e) in the dtype of ``query``, or (out, lse).
    """
    return attention_forward(
        query, key, value, mask=mask, bias=bias, causal=causal,
        key_lengths=key_lengths, scale=scale, return_lse=return_lse,
    )[0]  # fmt: skip


def attention_forward(
    query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False
):
    """``attention`` and what ``attention_backward`` needs."""
    options = dict(mask=mask, causal=causal, key_lengths=key_lengths, scale=scale)
    weights_bhts, lse_bht = attention_weights(query, key, bias=bias, **options)
    _, _, value_bhse = _without_unread_keys(query, key, value, key_lengths)
    out = rounded(einsum("bhts,bhse->bhte", weights_bhts, value_bhse), query)
    saved = query, key, value, bias, options
    return ((out, lse_bht) if return_lse else out), saved


def attention_weights(query, key, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None):
    """The softmax weights (b, h, t, s) and the log-sum-exp (b, h, t), in float32 at least."""
    query_bhtd, key_bhsd, _ = _without_unread_keys(query, key, key, key_lengths)
    scores_bhts = _scale(query, scale) * einsum("bhtd,bhsd->bhts", query_bhtd, key_bhsd)
    if bias is not None:
        scores_bhts = scores_bhts + upcast(bias).astype(scores_bhts.dtype)
    scores_bhts = np.where(visible(scores_bhts.shape, mask, causal, key_lengths), scores_bhts, -np.inf)
    top_bht1 = np.max(scores_bhts, axis=-1, keepdims=True, initial=-np.inf)
    shift_bht1 = np.where(np.isneginf(top_bht1), 0, top_bht1)
    exponentials_bhts = np.exp(scores_bhts - shift_bht1)
    total_bht1 = exponentials_bhts.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse_bht = (np.log(total_bht1) + shift_bht1)[..., 0]
    weights_bhts = exponentials_bhts / np.where(total_bht1 == 0, 1, total_bht1)
    return weights_bhts, lse_bht


def attention_backward(saved, grad_out, grad_lse=None):
    """Gradients of ``attention`` for query, key, value and bias (None where no bias was given).

        dP = dO Vᵀ;   dS = P * (dP - sum_s P dP + dlse);   dQ = scale dS K;   dK = scale dSᵀ Q;   dV = Pᵀ dO

    Args:
        saved: from ``attention_forward``.
        grad_out: (b, h, t, e), cotangent of the output.
        grad_lse: (b, h, t), cotangent of the log-sum-exp, or None.
    """
    query, key, value, bias, options = saved
    weights_bhts, _ = attention_weights(query, key, bias=bias, **options)
    query_bhtd, key_bhsd, value_bhse = _without_unread_keys(query, key, value, options["key_lengths"])
    grad_out_bhte = upcast(grad_out).astype(weights_bhts.dtype)
    grad_weights_bhts = einsum("bhte,bhse->bhts", grad_out_bhte, value_bhse)
    row_sum_bht1 = np.sum(weights_bhts * grad_weights_bhts, axis=-1, keepdims=True)
    if grad_lse is not None:
        row_sum_bht1 = row_sum_bht1 - upcast(grad_lse)[..., None]
    grad_scores_bhts = np.where(weights_bhts == 0, 0, weights_bhts * (grad_weights_bhts - row_sum_bht1))
    scale = _scale(query, options["scale"])
    grad_query = scale * einsum("bhts,bhsd->bhtd", grad_scores_bhts, key_bhsd)
    grad_key = scale * einsum("bhts,bhtd->bhsd", grad_scores_bhts, query_bhtd)
    grad_value = einsum("bhts,bhte->bhse", weights_bhts, grad_out_bhte)
    grad_bias = None if bias is None else rounded(sum_to_shape(grad_scores_bhts, np.shape(bias)), bias)
    return rounded(grad_query, query), rounded(grad_key, key), rounded(grad_value, value), grad_bias


def qkv_attention(qkv, *, causal=False, key_lengths=None, scale=None):
    """Attention from the packed projection, b n 3 h d -> b n h d (self-attention, see ``attention``)."""
    return qkv_attention_forward(qkv, causal=causal, key_lengths=key_lengths, scale=scale)[0]


def qkv_attention_forward(qkv, *, causal=False, key_lengths=None, scale=None):
    """``qkv_attention`` and what ``qkv_attention_backward`` needs."""
    query, key, value = np.moveaxis(qkv, (2, 3), (0, 2))
    out, saved = attention_forward(query, key, value, causal=causal, key_lengths=key_lengths, scale=scale)
    return np.moveaxis(out, 1, 2), saved


def qkv_attention_backward(saved, grad_out):
    """The gradient of ``qkv_attention`` for qkv, (b, n, 3, h, d), in a tuple of one."""
    *gradients, _ = attention_backward(saved, np.moveaxis(grad_out, 2, 1))
    return (np.moveaxis(np.stack(gradients), (0, 2), (2, 3)),)


def varlen_attention(query, key, value, *, cumulative_lengths, causal=False, scale=None):
    """Attention within each of several sequences packed end to end, nhd x nhd x nhd -> nhd.

    ``cumulative_lengths`` is (sequences + 1,) integers rising from 0 to n: sequence i is rows
    ``cumulative_lengths[i]:cumulative_lengths[i + 1]``.
    """
    options = dict(cumulative_lengths=cumulative_lengths, causal=causal, scale=scale)
    return varlen_attention_forward(query, key, value, **options)[0]


def varlen_attention_forward(query, key, value, *, cumulative_lengths, causal=False, scale=None):
    """``varlen_attention`` and what ``varlen_attention_backward`` needs."""
    out = np.empty(query.shape[:-1] + value.shape[-1:], query.dtype)
    saved = []
    for rows in _sequences(cumulative_lengths):
        one = (np.moveaxis(x[rows], 0, 1)[None] for x in (query, key, value))
        out_bhte, saved_one = attention_forward(*one, causal=causal, scale=scale)
        out[rows] = np.moveaxis(out_bhte[0], 0, 1)
        saved.append(saved_one)
    return out, (query, key, value, cumulative_lengths, saved)


def varlen_attention_backward(saved, grad_out):
    """Gradients of ``varlen_attention`` for query, key and value."""
    query, key, value, cumulative_lengths, saved_each = saved
    gradients = tuple(np.empty_like(x) for x in (query, key, value))
    for rows, saved_one in zip(_sequences(cumulative_lengths), saved_each, strict=True):
        grad_one = np.moveaxis(grad_out[rows], 0, 1)[None]
        for whole, part in zip(gradients, attention_backward(saved_one, grad_one), strict=False):
            whole[rows] = np.moveaxis(part[0], 0, 1)  # pyright: ignore[reportOptionalSubscript]
    return gradients


def visible(shape, mask=None, causal=False, key_lengths=None):
    """Which keys each query may attend to: bool, of ``shape`` (b, h, t, s)."""
    b, _, t, s = shape
    seen = np.ones(shape, bool)
    if mask is not None:
        seen = seen & mask
    if causal:
        seen = seen & (np.arange(s) <= np.arange(t)[:, None] + (s - t))
    if key_lengths is not None:
        seen = seen & (np.arange(s) < np.asarray(key_lengths)[:, None, None, None])
    return seen


def sum_to_shape(x, shape):
    """``x`` summed over the axes along which ``shape`` was broadcast to it."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    return x.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1 and x.shape[i] != 1), keepdims=True)


def _scale(query, scale):
    dtype = compute_dtype(query.dtype)
    return dtype.type(1) / np.sqrt(dtype.type(query.shape[-1])) if scale is None else dtype.type(scale)


def _without_unread_keys(query, key, value, key_lengths):
    """The three in compute dtype, with zeros for the keys and values beyond ``key_lengths``."""
    query, key, value = upcast(query, key, value)
    if key_lengths is not None:
        unread = np.arange(key.shape[2]) >= np.asarray(key_lengths)[:, None, None]
        key, value = (np.where(unread[..., None], 0, x) for x in (key, value))
    return query, key, value


def _sequences(cumulative_lengths):
    return [slice(a, b) for a, b in zip(cumulative_lengths[:-1], cumulative_lengths[1:], strict=True)]
