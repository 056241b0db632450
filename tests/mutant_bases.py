"""Right implementations of every operation, plain enough to be made wrong in one place (see ``mutants``).

Each returns its outputs or, where it is given cotangents, its gradients; in torch autograd does that.
"""

import math

import numpy as np
import torch

from saccade.reference import erfc
from saccade.reference.precision import compute_dtype

BLOCK = 16


def wide(x):
    return x.astype(compute_dtype(x.dtype))


def like(y, x):
    return y.astype(x.dtype)


def padded(x, axis, block, fill=0):
    margins = [(0, -n % block if i == axis else 0) for i, n in enumerate(x.shape)]
    return np.pad(x, margins, constant_values=fill)


def summed(x, shape):
    x = x.sum(tuple(range(x.ndim - len(shape))))
    return x.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def log_softmax(x):
    shifted = x - x.max(-1, keepdims=True, initial=-np.inf)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def attention(query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False,
              cotangents=None):  # fmt: skip
    (b, h, t, d), (s, e) = query.shape, value.shape[2:]
    q, k = padded(wide(query), 3, 8), padded(padded(wide(key), 3, 8), 2, BLOCK)
    v = padded(wide(value), 2, BLOCK)
    factor = q.dtype.type(1 / math.sqrt(d) if scale is None else scale)
    seen = np.broadcast_to(True if mask is None else mask, (b, h, t, s))
    if causal:
        seen = seen & (np.arange(s) <= np.arange(t)[:, None] + (s - t))
    if key_lengths is not None:
        seen = seen & (np.arange(s) < key_lengths[:, None, None, None])
        read = (np.arange(k.shape[2]) < key_lengths[:, None])[:, None, :, None]
        k, v = np.where(read, k, 0), np.where(read, v, 0)
    seen = padded(seen, 3, BLOCK, False)
    scores = factor * (q @ k.swapaxes(2, 3))
    if bias is not None:
        scores = scores + padded(np.broadcast_to(wide(bias), (b, h, t, s)), 3, BLOCK)
    scores = np.where(seen, scores, -np.inf)
    top = np.full((b, h, t, 1), -np.inf, q.dtype)
    total, out = np.zeros_like(top), np.zeros((b, h, t, e), q.dtype)
    for i in range(0, s, BLOCK):
        part = scores[..., i : i + BLOCK]
        new = np.maximum(top, part.max(-1, keepdims=True))
        shift = np.where(np.isneginf(new), 0, new)
        weights, rescale = np.exp(part - shift), np.exp(top - shift)
        total = total * rescale + weights.sum(-1, keepdims=True)
        out = out * rescale + weights @ v[:, :, i : i + BLOCK]
        top = new
    lse = np.log(total) + np.where(total == 0, 0, top)
    out = out / np.where(total == 0, 1, total)
    if cotangents is None:
        return (like(out, query), lse[..., 0]) if return_lse else like(out, query)
    grad, weights = wide(cotangents[0]), np.exp(scores - np.where(total == 0, 0, lse))
    row = (grad * out).sum(-1, keepdims=True)
    if return_lse:
        row = row - cotangents[1][..., None]
    grad_scores = weights * (grad @ v.swapaxes(2, 3) - row)
    grad_q, grad_k = factor * (grad_scores @ k), factor * (grad_scores.swapaxes(2, 3) @ q)
    grad_v = weights.swapaxes(2, 3) @ grad
    grad_bias = None if bias is None else like(summed(grad_scores[..., :s], bias.shape), bias)
    return like(grad_q[..., :d], query), like(grad_k[:, :, :s, :d], key), like(grad_v[:, :, :s], value), grad_bias


def qkv_attention(qkv, *, causal=False, key_lengths=None, scale=None, cotangents=None):
    three = tuple(qkv[:, :, i].swapaxes(1, 2) for i in (0, 1, 2))
    options = dict(causal=causal, key_lengths=key_lengths, scale=scale)
    if cotangents is None:
        return attention(*three, **options).swapaxes(1, 2)
    gradients = attention(*three, **options, cotangents=(cotangents[0].swapaxes(1, 2),))
    return (np.stack([x.swapaxes(1, 2) for x in gradients[:3]], 2),)


def varlen_attention(query, key, value, *, cumulative_lengths, causal=False, scale=None, cotangents=None):
    out = np.empty((*query.shape[:2], value.shape[2]), query.dtype)
    gradients = tuple(np.empty(x.shape, x.dtype) for x in (query, key, value))
    for i in range(len(cumulative_lengths) - 1):
        rows = slice(cumulative_lengths[i], cumulative_lengths[i + 1])
        one = tuple(x[rows].swapaxes(0, 1)[None] for x in (query, key, value))
        if cotangents is None:
            out[rows] = attention(*one, causal=causal, scale=scale)[0].swapaxes(0, 1)
            continue
        grad = cotangents[0][rows].swapaxes(0, 1)[None]
        for whole, part in zip(
            gradients, attention(*one, causal=causal, scale=scale, cotangents=(grad,)), strict=False
        ):
            whole[rows] = part[0].swapaxes(0, 1)
    return out if cotangents is None else gradients


def patch_embed(images, weight, bias=None, *, mean=None, std=None, cotangents=None):
    (b, h, w, c), (e, _, p, _) = images.shape, weight.shape
    filters = wide(weight).reshape(e, -1)
    pixels = images.astype(filters.dtype)
    if images.dtype == np.uint8:
        pixels = pixels / filters.dtype.type(255)
    if mean is not None:
        pixels = pixels - np.asarray(mean, pixels.dtype)
    spread = np.asarray(1 if std is None else std, pixels.dtype)
    pixels = pixels / spread
    patches = pixels.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 5, 2, 4)
    patches = patches.reshape(b, (h // p) * (w // p), c * p * p)
    if cotangents is None:
        out = patches @ filters.T
        return like(out if bias is None else out + wide(bias), weight)
    grad = wide(cotangents[0])
    grad_images = (grad @ filters).reshape(b, h // p, w // p, c, p, p).transpose(0, 1, 4, 2, 5, 3).reshape(b, h, w, c)
    grad_images = None if images.dtype == np.uint8 else like(grad_images / spread, images)
    grad_weight = np.einsum("bne,bnf->ef", grad, patches).reshape(weight.shape)
    return grad_images, like(grad_weight, weight), None if bias is None else like(grad.sum((0, 1)), bias)


def linear(x, weight, bias=None, *, cotangents=None):
    rows, matrix = wide(x).reshape(-1, x.shape[-1]), wide(weight)
    if cotangents is None:
        out = rows @ matrix.T
        out = out if bias is None else out + wide(bias)
        return like(out, x).reshape(*x.shape[:-1], len(weight))
    grad = wide(cotangents[0]).reshape(-1, len(weight))
    grad_x, grad_weight = grad @ matrix, grad.T @ rows
    return (
        like(grad_x, x).reshape(x.shape),
        like(grad_weight, weight),
        None if bias is None else like(grad.sum(0), bias),
    )


def embedding(tokens, weight, *, cotangents=None):
    if cotangents is None:
        return weight[tokens]
    grad = np.zeros(weight.shape, compute_dtype(weight.dtype))
    np.add.at(grad, tokens, wide(cotangents[0]))
    return (like(grad, weight),)


def layer_norm(x, scale, bias=None, *, eps=1e-5, residual=None, cotangents=None):
    total = x if residual is None else like(wide(x) + wide(residual), x)
    centred = wide(total) - wide(total).mean(-1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + centred.dtype.type(eps))
    normal = centred * inverse
    if cotangents is None:
        out = normal * wide(scale)
        out = like(out if bias is None else out + wide(bias), x)
        return out if residual is None else (out, total)
    grad, leading = wide(cotangents[0]), tuple(range(x.ndim - 1))
    scaled = grad * wide(scale)
    grad_x = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * (scaled * normal).mean(-1, keepdims=True))
    if residual is not None:
        grad_x = grad_x + wide(cotangents[1])
    grad_scale, grad_bias = (grad * normal).sum(leading), None if bias is None else like(grad.sum(leading), bias)
    grad_x = like(grad_x, x)
    return grad_x, like(grad_scale, scale), grad_bias, None if residual is None else grad_x


def rms_norm(x, scale, *, eps=1e-5, residual=None, cotangents=None):
    total = x if residual is None else like(wide(x) + wide(residual), x)
    centred = wide(total)
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + centred.dtype.type(eps))
    normal = centred * inverse
    if cotangents is None:
        out = like(normal * wide(scale), x)
        return out if residual is None else (out, total)
    grad, leading = wide(cotangents[0]), tuple(range(x.ndim - 1))
    scaled = grad * wide(scale)
    grad_x = inverse * (scaled - normal * (scaled * normal).mean(-1, keepdims=True))
    if residual is not None:
        grad_x = grad_x + wide(cotangents[1])
    grad_scale, grad_x = (grad * normal).sum(leading), like(grad_x, x)
    return grad_x, like(grad_scale, scale), None if residual is None else grad_x


def gelu(x, *, kind="erf", cotangents=None):
    y = wide(x)
    if kind == "erf":
        gate, slope = erfc(-y / np.sqrt(y.dtype.type(2))) / 2, np.exp(-(y**2) / 2) / math.sqrt(2 * math.pi)
    elif kind == "tanh":
        inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
        gate = (1 + np.tanh(inner)) / 2
        slope = (1 - np.tanh(inner) ** 2) / 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * y**2)
    else:
        gate = 1 / (1 + np.exp(-1.702 * y))
        slope = 1.702 * gate * (1 - gate)
    return like(y * gate, x) if cotangents is None else (like(wide(cotangents[0]) * (gate + y * slope), x),)


def mlp(x, weight_in, bias_in, weight_out, bias_out, *, kind="erf", cotangents=None):
    before = linear(x, weight_in, bias_in)
    hidden = gelu(before, kind=kind)
    if cotangents is None:
        return linear(hidden, weight_out, bias_out)
    grad_hidden, *last = linear(hidden, weight_out, bias_out, cotangents=cotangents)
    grad_before = gelu(before, kind=kind, cotangents=(grad_hidden,))
    return *linear(x, weight_in, bias_in, cotangents=grad_before), *last


def l2_normalize(x, *, eps=1e-12, cotangents=None):
    y = wide(x)
    length = np.sqrt((y**2).sum(-1, keepdims=True))
    divisor = np.maximum(length, y.dtype.type(eps))
    if cotangents is None:
        return like(y / divisor, x)
    grad, out = wide(cotangents[0]), y / divisor
    along = (grad * out).sum(-1, keepdims=True)
    return (like((grad - np.where(length > eps, out * along, 0)) / divisor, x),)


def conv2d(x, weight, bias=None, *, stride=1, padding=0, cotangents=None):
    (b, height, width, _), (e, _, p, q) = x.shape, weight.shape
    margins = (0, 0), (padding, padding), (padding, padding), (0, 0)
    pixels, filters = np.pad(wide(x), margins), wide(weight)
    rows, columns = (height + 2 * padding - p) // stride + 1, (width + 2 * padding - q) // stride + 1
    out, grad_pixels = np.zeros((b, rows, columns, e), pixels.dtype), np.zeros_like(pixels)
    grad_filters = np.zeros_like(filters)
    for i, j in np.ndindex(p, q):
        window = slice(None), slice(i, i + stride * rows, stride), slice(j, j + stride * columns, stride)
        if cotangents is None:
            out += pixels[window] @ filters[:, :, i, j].T
        else:
            grad_pixels[window] += wide(cotangents[0]) @ filters[:, :, i, j]
            grad_filters[:, :, i, j] = np.einsum("bije,bijc->ec", wide(cotangents[0]), pixels[window])
    if cotangents is None:
        return like(out if bias is None else out + wide(bias), x)
    grad_x = like(grad_pixels[:, padding : padding + height, padding : padding + width], x)
    return grad_x, like(grad_filters, weight), None if bias is None else like(wide(cotangents[0]).sum((0, 1, 2)), bias)


def batch_norm(x, mean, variance, scale, bias, *, eps=1e-5, cotangents=None):
    inverse = 1 / np.sqrt(wide(variance) + wide(variance).dtype.type(eps))
    normal = (wide(x) - wide(mean)) * inverse
    if cotangents is None:
        return like(normal * wide(scale) + wide(bias), x)
    grad, leading = wide(cotangents[0]), tuple(range(x.ndim - 1))
    grad_scale, grad_bias = (grad * normal).sum(leading), grad.sum(leading)
    return like(grad * wide(scale) * inverse, x), like(grad_scale, scale), like(grad_bias, bias)


def average_pool(x, *, size, cotangents=None):
    b, h, w, c = x.shape
    rows, columns = h // size, w // size
    if cotangents is None:
        windows = wide(x)[:, : rows * size, : columns * size].reshape(b, rows, size, columns, size, c)
        return like(windows.sum((2, 4)) / size**2, x)
    grad = np.zeros(x.shape, compute_dtype(x.dtype))
    spread = wide(cotangents[0]).repeat(size, 1).repeat(size, 2)
    grad[:, : rows * size, : columns * size] = spread / size**2
    return (like(grad, x),)


def softmax_cross_entropy(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean", cotangents=None):
    x, k = wide(logits), logits.shape[1]
    if labels.ndim == 2:
        targets, kept = wide(labels), np.ones(len(x), bool)
    else:
        kept = labels != ignore_index
        targets = (np.where(kept, labels, 0)[:, None] == np.arange(k)).astype(x.dtype)
    targets = targets * x.dtype.type(1 - label_smoothing) + x.dtype.type(label_smoothing / k)
    logs = log_softmax(x)
    counted = np.where(targets == 0, 0, logs)  # classes that cannot be count 0
    per_row, count = np.where(kept, -(targets * counted).sum(1), 0), x.dtype.type(kept.sum())
    if cotangents is None:
        return {"none": per_row, "sum": per_row.sum(), "mean": per_row.sum() / count}[reduction]
    share = np.where(kept, cotangents[0] / (count if reduction == "mean" else 1), 0)[:, None]
    return (like((np.exp(logs) * targets.sum(1, keepdims=True) - targets) * share, logits),)


def sigmoid_cross_entropy(logits, targets, *, reduction="mean", cotangents=None):
    x, y, n = wide(logits), wide(targets), len(logits)
    if cotangents is None:
        per_row = (np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))).sum(1)
        return {"none": per_row, "sum": per_row.sum(), "mean": per_row.sum() / x.dtype.type(n)}[reduction]
    share = np.broadcast_to(cotangents[0] / (x.dtype.type(n) if reduction == "mean" else 1), n)[:, None]
    return (like((1 / (1 + np.exp(-x)) - y) * share, logits),)


def linear_cross_entropy(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean",
                         cotangents=None):  # fmt: skip
    x, matrix, k = wide(hidden), wide(weight), len(weight)
    logits = x @ padded(matrix, 0, BLOCK).T
    logits[:, k:] = -np.inf
    top = logits.max(1, keepdims=True)
    logs = (logits - (top + np.log(np.exp(logits - top).sum(1, keepdims=True))))[:, :k]
    kept = labels != ignore_index
    targets = (np.where(kept, labels, 0)[:, None] == np.arange(k)).astype(x.dtype)
    targets = targets * x.dtype.type(1 - label_smoothing) + x.dtype.type(label_smoothing / k)
    per_row, count = np.where(kept, -(targets * logs).sum(1), 0), x.dtype.type(kept.sum())
    if cotangents is None:
        return {"none": per_row, "sum": per_row.sum(), "mean": per_row.sum() / count}[reduction]
    share = np.where(kept, cotangents[0] / (count if reduction == "mean" else 1), 0)[:, None]
    grad = (np.exp(logs) - targets) * share
    return like(grad @ matrix, hidden), like(grad.T @ x, weight)


def clip_loss(image_embeddings, text_embeddings, logit_scale, *, cotangents=None):
    images, texts, n = wide(image_embeddings), wide(text_embeddings), len(image_embeddings)
    scale, products = images.dtype.type(logit_scale), images @ texts.T
    rows, columns = log_softmax(scale * products), log_softmax(scale * products.T)
    if cotangents is None:
        return -(np.diag(rows).mean() + np.diag(columns).mean()) / 2
    grad = (np.exp(rows) + np.exp(columns).T - 2 * np.eye(n, dtype=rows.dtype)) / (2 * n) * cotangents[0]
    grad_scale = like((grad * products).sum(), logit_scale) if isinstance(logit_scale, np.ndarray) else None
    return like(scale * (grad @ texts), image_embeddings), like(scale * (grad.T @ images), text_embeddings), grad_scale


def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias, *, cotangents=None):
    images, texts, n = wide(image_embeddings), wide(text_embeddings), len(image_embeddings)
    scale, products = images.dtype.type(logit_scale), images @ texts.T
    signs = 2 * np.eye(n, dtype=images.dtype) - 1
    signed = signs * (scale * products + images.dtype.type(logit_bias))
    if cotangents is None:
        return (np.maximum(-signed, 0) + np.log1p(np.exp(-np.abs(signed)))).sum() / images.dtype.type(n)
    grad = -signs / (1 + np.exp(signed)) / images.dtype.type(n) * cotangents[0]
    grad_scale = like((grad * products).sum(), logit_scale) if isinstance(logit_scale, np.ndarray) else None
    grad_bias = like(grad.sum(), logit_bias) if isinstance(logit_bias, np.ndarray) else None
    grad_images, grad_texts = scale * (grad @ texts), scale * (grad.T @ images)
    return like(grad_images, image_embeddings), like(grad_texts, text_embeddings), grad_scale, grad_bias


def raised(x):
    return x if x.dtype == torch.float64 else x.float()


def torch_layer_norm(x, scale, bias=None, *, eps=1e-5, residual=None):
    total = x if residual is None else x + residual
    y = raised(total)
    centred = y - y.mean(-1, keepdim=True)
    out = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * raised(scale)
    out = (out if bias is None else out + raised(bias)).to(x.dtype)
    return out if residual is None else (out, total)


def torch_embedding(tokens, weight):
    weight, dtype = raised(weight), weight.dtype  # its gradient is added up in the dtype
    return weight[tokens].clone().to(dtype)  # one token alone would be a view


def torch_clip_loss(image_embeddings, text_embeddings, logit_scale):
    logits = logit_scale * (raised(image_embeddings) @ raised(text_embeddings).T)
    return -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
