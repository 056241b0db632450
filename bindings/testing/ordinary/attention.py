"""Attention as ordinary programs compute it: scores stored, or a running maximum over blocks of keys."""

# How many operands and gradients a tuple holds, and which are None, depends on the operation and its arguments.
# pyright: reportAssignmentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import math

import numpy as np

from saccade.reference.attention import visible
from saccade.testing.ways import transpose


def attention(way, arguments, options, cotangents):
    """Softmax attention; the online way keeps a running maximum over blocks of keys, and recomputes the scores and
    weights of its gradient from the log-sum-exp, as FlashAttention does."""
    query, key, value = way.raise_(*arguments)
    options = dict(options)
    mask, bias, causal = options.get("mask"), options.get("bias"), options.get("causal", False)
    key_lengths, scale = options.get("key_lengths"), options.get("scale")
    scale = way.core.type(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if key_lengths is not None:
        unread = (np.arange(key.shape[2]) >= np.asarray(key_lengths)[:, None, None])[..., None]
        key, value = np.where(unread, 0, key), np.where(unread, 0, value)

    def scored():
        scores = scale * way.matmul(query, transpose(key))
        if bias is not None:
            scores = scores + bias.astype(way.core)
        return np.where(visible(scores.shape, mask, causal, key_lengths), scores, -np.inf)

    out, weights_of, lse = _softmax_product(way, scored, value)
    outputs = (out, lse[..., 0]) if options.get("return_lse") else (out,)
    if cotangents is None:
        return outputs, ()
    weights = weights_of()
    grad_out, *grad_lse = way.raise_(*cotangents)
    row_sum = way.sum(grad_out * way.round(out), -1)
    if grad_lse:
        row_sum = row_sum - grad_lse[0][..., None]
    grad_scores = np.where(weights == 0, 0, weights * (way.matmul(grad_out, transpose(value)) - row_sum))
    grad_query = scale * way.matmul(grad_scores, key)
    grad_key = scale * way.matmul(transpose(grad_scores), query)
    grad_value = way.matmul(transpose(weights), grad_out)
    grad_bias = None if bias is None else _sum_to_shape(way, grad_scores, bias.shape)
    return outputs, (grad_query, grad_key, grad_value, grad_bias)


def _softmax_product(way, scored, value):
    """(output, a function of the weights for the gradient, log-sum-exp); ``scored()`` computes the scores."""
    scores = scored()
    keys = scores.shape[-1]
    width = way.keys if way.order == "online" else max(keys, 1)
    top = np.full((*scores.shape[:-1], 1), -np.inf, way.core)
    total = np.zeros_like(top)
    out = np.zeros((*scores.shape[:-1], value.shape[-1]), way.core)
    for start in range(0, keys, width):
        part = scores[..., start : start + width]
        new_top = np.maximum(top, part.max(-1, keepdims=True))
        shift = np.where(np.isneginf(new_top), 0, new_top)
        exponentials, rescale = way.exp(part - shift), way.exp(top - shift)
        total = total * rescale + way.sum(exponentials, -1)
        out = out * rescale + way.matmul(exponentials, value[..., start : start + width, :])
        top = new_top
    divisor = np.where(total == 0, 1, total)
    shift = np.where(np.isneginf(top), 0, top)
    lse = way.log(total) + shift
    if way.order == "online":
        # scores computed a second time, in another order: as far off as rounding lets them be
        return out / divisor, lambda: way.exp(scored() - np.where(np.isneginf(lse), 0, lse)), lse
    return out / divisor, lambda: way.exp(scores - shift) / divisor, lse


def _sum_to_shape(way, x, shape):
    for axis, length in enumerate((1,) * (x.ndim - len(shape)) + tuple(shape)):
        if length == 1 and x.shape[axis] != 1:
            x = way.sum(x, axis)
    return x.reshape(shape)


def qkv_attention(way, arguments, options, cotangents):
    """The packed form of attention."""
    three = tuple(np.moveaxis(arguments[0], (2, 3), (0, 2)))
    cotangents = None if cotangents is None else (np.moveaxis(cotangents[0], 2, 1),)
    (out,), gradients = attention(way, three, options, cotangents)
    if cotangents is None:
        return (np.moveaxis(out, 1, 2),), ()
    return (np.moveaxis(out, 1, 2),), (np.moveaxis(np.stack(gradients[:3]), (0, 2), (2, 3)),)


def varlen_attention(way, arguments, options, cotangents):
    """Attention within each packed sequence."""
    options = dict(options)
    bounds = options.pop("cumulative_lengths")
    pieces, gradients = [], []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        one = tuple(np.moveaxis(x[start:stop], 0, 1)[None] for x in arguments)
        grad = None if cotangents is None else (np.moveaxis(cotangents[0][start:stop], 0, 1)[None],)
        (out,), grads = attention(way, one, options, grad)
        pieces.append(np.moveaxis(out[0], 0, 1))
        gradients.append([np.moveaxis(x[0], 0, 1) for x in grads[:3]])
    joined = tuple(np.concatenate(x) for x in zip(*gradients, strict=True)) if cotangents is not None else ()
    return (np.concatenate(pieces),), joined
