"""Every operation computed as an ordinary program would, in the inputs' precision, along a given way of adding.

Each function takes ``(way, arguments, options, cotangents)`` and returns ``(outputs, gradients)``: what an
implementation without a fault may be expected to return, errors included. The formulas are those of
``saccade.reference``; what is new here is only where numbers are rounded and in which order they are added.
"""

# How many operands and gradients a tuple holds, and which are None, depends on the operation and its arguments.
# pyright: reportAssignmentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import math

import numpy as np

from saccade import reference
from saccade.reference.attention import visible
from saccade.reference.layers import gelu_gate

LONG = 1 << 16  # numbers that a program may add up one after the other


def transpose(x):
    """The last two axes swapped."""
    return np.swapaxes(x, -1, -2)


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


def linear(way, arguments, options, cotangents):
    """A product with the transposed weight."""
    weight = np.asarray(arguments[1])  # as it came: its products find it rounded already
    x, bias = way.raise_(arguments[0], *arguments[2:3] or (None,))
    flat = x.reshape(-1, x.shape[-1])
    if bias is not None and way.order in ("in order", "reversed"):  # as where the sums start from the bias
        out = way.matmul(flat, transpose(weight), bias)
    else:
        out = way.matmul(flat, transpose(weight))
        out = out if bias is None else out + bias
    out = out.reshape(*x.shape[:-1], weight.shape[0])
    if cotangents is None:
        return (out,), ()
    grad = way.raise_(cotangents[0])[0].reshape(-1, weight.shape[0])
    grad_bias = None if bias is None else way.sum(grad, 0)[0]
    return (out,), (way.matmul(grad, weight).reshape(x.shape), way.matmul(transpose(grad), flat), grad_bias)


def embedding(way, arguments, options, cotangents):
    """Rows of the weight; its gradient adds rows up."""
    tokens, weight = arguments
    out = weight[tokens]
    if cotangents is None:
        return (out,), ()
    one_hot = (np.ravel(tokens)[None, :] == np.arange(len(weight))[:, None]).astype(way.core)
    grad = way.raise_(cotangents[0])[0].reshape(-1, weight.shape[1])
    return (out,), (way.matmul(one_hot, grad),)


def layer_norm(way, arguments, options, cotangents):
    """LayerNorm with an optional residual, mean and variance in two passes."""
    x, scale, bias = (*way.raise_(*arguments), None)[:3]
    return _norm(way, x, scale, bias, options, cotangents, centred=True)


def rms_norm(way, arguments, options, cotangents):
    """RMS norm: no mean, no bias."""
    return _norm(way, *way.raise_(*arguments), None, options, cotangents, centred=False)


def _norm(way, x, scale, bias, options, cotangents, centred):
    residual = options.get("residual")
    if residual is not None:
        x = way.round(x + way.raise_(residual)[0])
    centre = way.mean(x, -1) if centred else 0
    inverse = 1 / way.sqrt(way.mean((x - centre) ** 2, -1) + way.core.type(options.get("eps", 1e-5)))
    normal = (x - centre) * inverse
    out = normal * scale if bias is None else normal * scale + bias
    outputs = (out,) if residual is None else (out, x)
    if cotangents is None:
        return outputs, ()
    grad_out, *grad_sum = way.raise_(*cotangents)
    scaled = grad_out * scale
    grad_x = scaled - normal * way.mean(scaled * normal, -1)
    grad_x = inverse * (grad_x - way.mean(scaled, -1) if centred else grad_x)
    grad_x = grad_x + grad_sum[0] if grad_sum else grad_x
    rows = tuple(range(grad_out.ndim - 1))
    flat = (-1, grad_out.shape[-1]) if rows else (1, -1)
    grad_scale = way.sum((grad_out * normal).reshape(flat), 0)[0]
    grad_bias = None if bias is None else way.sum(grad_out.reshape(flat), 0)[0]
    grad_residual = None if residual is None else grad_x
    middle = (grad_bias,) if centred else ()
    return outputs, (grad_x, grad_scale, *middle, grad_residual)


def gelu(way, arguments, options, cotangents):
    """The definition in the compute dtype, or as most programs have it, x (1 + erf(x/√2))/2 and x (1 + tanh u)/2, which
    lose the digits of the lower tail; elementary functions see arguments that are off by a rounding."""
    x = way.rounding(way.raise_(*arguments)[0])
    kind = options.get("kind", "erf")
    gate, slope = gelu_gate(x, kind)
    if way.order in ("in blocks", "online") and kind != "sigmoid":
        gate = (1 + way.elementary(2 * gate - 1)) / 2
    out = way.rounding(x * gate)
    if cotangents is None:
        return (out,), ()
    (grad,) = way.raise_(*cotangents)
    return (out,), (way.rounding(grad * (gate + x * slope)),)


def batch_norm(way, arguments, options, cotangents):
    """Normalisation with given statistics, or folded into one factor and one addend; gradients are sums over pixels."""
    x, mean, variance, scale, bias = way.raise_(*arguments)
    inverse = 1 / way.sqrt(variance + way.core.type(options.get("eps", 1e-5)))
    normal = way.rounding((x - mean) * inverse)
    folded = x * way.rounding(scale * inverse) + way.rounding(bias - mean * (scale * inverse))
    out = folded if way.order in ("in blocks", "online") else normal * scale + bias
    if cotangents is None:
        return (out,), ()
    (grad,) = way.raise_(*cotangents)
    flat = (-1, grad.shape[-1])
    grad_scale, grad_bias = (way.sum(terms.reshape(flat), 0)[0] for terms in (grad * normal, grad))
    return (out,), (way.rounding(grad * scale * inverse), grad_scale, grad_bias)


def average_pool(way, arguments, options, cotangents):
    """The mean of each window."""
    (x,), size = way.raise_(*arguments), options["size"]
    b, h, w, c = x.shape
    rows, columns = h // size, w // size
    blocks = x[:, : rows * size, : columns * size].reshape(b, rows, size, columns, size, c)
    windows = np.moveaxis(blocks, 2, 4).reshape(b, rows, columns, size * size, c)
    out = way.mean(windows, -2)[..., 0, :]
    if cotangents is None:
        return (out,), ()
    _, saved = reference.average_pool_forward(x, size=size)
    (grad,) = reference.average_pool_backward(saved, *way.raise_(*cotangents))
    return (out,), (way.rounding(grad),)


def mlp(way, arguments, options, cotangents):
    """Two products with a GELU between."""
    x, weight_in, bias_in, weight_out, bias_out = arguments
    (before,), _ = linear(way, (x, weight_in, bias_in), {}, None)
    before = way.round(before)
    (hidden,), _ = gelu(way, (before,), options, None)
    (out,), _ = linear(way, (hidden, weight_out, bias_out), {}, None)
    if cotangents is None:
        return (out,), ()
    _, (grad_hidden, grad_weight_out, grad_bias_out) = linear(way, (hidden, weight_out, bias_out), {}, cotangents)
    _, (grad_before,) = gelu(way, (before,), options, (way.round(grad_hidden),))
    _, first = linear(way, (x, weight_in, bias_in), {}, (way.round(grad_before),))
    return (out,), (*first, grad_weight_out, grad_bias_out)


def l2_normalize(way, arguments, options, cotangents):
    """Rows divided by their length."""
    (x,) = way.raise_(*arguments)
    length = way.sqrt(way.sum(x * x, -1))
    floor = way.core.type(options.get("eps", 1e-12))
    out = x / np.maximum(length, floor)
    if cotangents is None:
        return (out,), ()
    (grad,) = way.raise_(*cotangents)
    along = np.where(length > floor, way.sum(grad * out, -1), 0)
    return (out,), ((grad - out * along) / np.maximum(length, floor),)


def patch_embed(way, arguments, options, cotangents):
    """Decode, normalise, cut into patches, project."""
    images, weight, bias = (*arguments, None)[:3]
    mean, std = options.get("mean"), options.get("std")
    e, c, p, _ = weight.shape
    x = way.raise_(images)[0]
    x = x / way.core.type(255) if images.dtype == np.uint8 else x
    centre, spread = (
        fill if value is None else np.asarray(value, way.core)
        for value, fill in ((mean, way.core.type(0)), (std, way.core.type(1)))
    )
    x = (x - centre) / spread
    patches = reference.patchify(x, p)
    flat_weight = weight.reshape(e, -1)
    outputs, gradients = linear(way, (patches, flat_weight, bias), {}, cotangents)
    if cotangents is None:
        return outputs, ()
    grad_patches, grad_weight, grad_bias = gradients
    grad_images = None
    if images.dtype != np.uint8:
        grad_images = reference.unpatchify(grad_patches, p, images.shape[1:3]) / spread
    return outputs, (grad_images, grad_weight.reshape(weight.shape), grad_bias)


def conv2d(way, arguments, options, cotangents):
    """A convolution as the product of windows and weights."""
    x, weight, bias = (*arguments, None)[:3]
    stride, padding = options.get("stride", 1), options.get("padding", 0)
    e, c, p, q = weight.shape
    b, height, width, _ = x.shape
    margins = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(way.raise_(x)[0], margins)
    rows = np.arange(0, padded.shape[1] - p + 1, stride)[:, None] + np.arange(p)
    columns = np.arange(0, padded.shape[2] - q + 1, stride)[:, None] + np.arange(q)
    windows = padded[:, rows[:, None, :, None], columns[None, :, None, :]]  # b out_h out_w p q c
    windows = np.moveaxis(windows, -1, 3).reshape(b, len(rows), len(columns), c * p * q)
    outputs, gradients = linear(way, (windows, weight.reshape(e, -1), bias), {}, cotangents)
    if cotangents is None:
        return outputs, ()
    grad_windows, grad_weight, grad_bias = gradients
    grad_windows = np.moveaxis(grad_windows.reshape(b, len(rows), len(columns), c, p, q), 3, -1)
    grad_padded = np.zeros_like(padded)
    for i in range(p):
        for j in range(q):
            grad_padded[:, rows[:, i][:, None], columns[:, j]] += grad_windows[:, :, :, i, j]
    grad_x = grad_padded[:, padding : padding + height, padding : padding + width]
    return outputs, (grad_x, grad_weight.reshape(weight.shape), grad_bias)


def _log_softmax(way, logits):
    top = logits.max(-1, keepdims=True)
    shifted = logits - top
    return shifted - way.log(way.sum(way.exp(shifted), -1))


def softmax_cross_entropy(way, arguments, options, cotangents):
    """Cross entropy of rows of logits."""
    logits, labels = arguments
    (logits,) = way.raise_(logits)
    loss, grad_logits = _cross_entropy(way, logits, labels, options, cotangents)
    return (loss,), () if cotangents is None else (grad_logits,)


def _cross_entropy(way, logits, labels, options, cotangents):
    n, k = logits.shape
    smoothing = way.core.type(options.get("label_smoothing", 0.0))
    soft = labels.ndim == 2
    if soft:
        targets, kept = way.raise_(labels)[0], np.ones(n, bool)
    else:
        kept = labels != options.get("ignore_index", -100)
        targets = (np.where(kept, labels, 0)[:, None] == np.arange(k)).astype(way.core)
    targets = targets * (1 - smoothing) + smoothing / k
    log_weights = _log_softmax(way, logits)
    if way.order == "online":  # as where logits are not stored: weights from the log-sum-exp
        top = logits.max(-1, keepdims=True)
        log_weights = logits - (top + way.log(way.sum(way.exp(logits - top), -1)))
    counted = np.where(targets == 0, 0, log_weights)  # a target of 0 counts 0 even against −inf
    per_row = np.where(kept, -way.sum(targets * counted, -1)[:, 0], 0)
    reduction = options.get("reduction", "mean")
    count = way.core.type(kept.sum())
    loss = {"none": lambda: per_row, "sum": lambda: way.sum_all(per_row), "mean": lambda: way.sum_all(per_row) / count}
    if cotangents is None:
        return loss[reduction](), None
    row_grad = way.raise_(cotangents[0])[0] * np.ones(n, way.core) / (count if reduction == "mean" else 1)
    row_grad = np.where(kept, row_grad, 0)[:, None]
    grad = (way.exp(log_weights) * way.sum(targets, -1) - targets) * row_grad
    return loss[reduction](), grad


def sigmoid_cross_entropy(way, arguments, options, cotangents):
    """Binary cross entropy summed over classes."""
    logits, targets = way.raise_(*arguments)
    terms = np.maximum(logits, 0) - logits * targets + np.log1p(way.exp(-np.abs(logits)))
    per_row = way.sum(terms, -1)[:, 0]
    reduction, n = options.get("reduction", "mean"), way.core.type(len(logits))
    loss = {"none": lambda: per_row, "sum": lambda: way.sum_all(per_row), "mean": lambda: way.sum_all(per_row) / n}
    if cotangents is None:
        return (loss[reduction](),), ()
    row_grad = way.raise_(cotangents[0])[0] * np.ones(len(logits), way.core) / (n if reduction == "mean" else 1)
    return (loss[reduction](),), ((1 / (1 + way.exp(-logits)) - targets) * row_grad[:, None],)


def linear_cross_entropy(way, arguments, options, cotangents):
    """Cross entropy of a product that an ordinary program stores in the compute dtype."""
    hidden, weight, labels = arguments
    logits = way.matmul(hidden, transpose(weight))
    loss, grad_logits = _cross_entropy(way, logits, labels, options, cotangents)
    if cotangents is None:
        return (loss,), ()
    return (loss,), (way.matmul(grad_logits, weight), way.matmul(transpose(grad_logits), hidden))


def clip_loss(way, arguments, options, cotangents):
    """The mean of two cross entropies over the whole matrix of logits."""
    images, texts, logit_scale = arguments
    scale = way.core.type(logit_scale)
    products = way.matmul(images, transpose(texts))
    labels, per_row = np.arange(len(images)), {"reduction": "mean"}
    half = None if cotangents is None else (np.asarray(cotangents[0], way.core) / 2,)
    loss_i, grad_i = _cross_entropy(way, scale * products, labels, per_row, half)
    loss_t, grad_t = _cross_entropy(way, scale * transpose(products), labels, per_row, half)
    loss = (loss_i + loss_t) / 2
    if cotangents is None:
        return (loss,), ()
    return (loss,), _pair_gradients(way, images, texts, logit_scale, products, grad_i, transpose(grad_t))


def siglip_loss(way, arguments, options, cotangents):
    """−log sigmoid of ± every logit, summed over texts, averaged over images."""
    images, texts, logit_scale, logit_bias = arguments
    n = way.core.type(len(images))
    products = way.matmul(images, transpose(texts))
    sign = 2 * np.eye(len(images), dtype=way.core) - 1
    signed = sign * (way.core.type(logit_scale) * products + way.core.type(logit_bias))
    terms = np.maximum(-signed, 0) + np.log1p(way.exp(-np.abs(signed)))
    loss = _total(way, terms) / n
    if cotangents is None:
        return (loss,), ()
    grad = -sign / (1 + way.exp(signed)) * np.asarray(cotangents[0], way.core) / n
    grad_bias = _total(way, grad) if isinstance(logit_bias, np.ndarray) else None
    return (loss,), (*_pair_gradients(way, images, texts, logit_scale, products, grad), grad_bias)


def _total(way, x):
    """The sum of a matrix: one long sum, where that is not longer than a program would add, or that of rows' sums."""
    at_once = way.order in ("in order", "reversed") and x.size <= LONG
    return way.sum_all(x if at_once else way.sum(x, -1))


def _pair_gradients(way, images, texts, logit_scale, products, *grads_logits):
    """Of one or two losses of the same logits, whose gradients for the scale some programs add up apart."""
    scaled = way.core.type(logit_scale) * sum(grads_logits)
    grad_images, grad_texts = way.matmul(scaled, texts), way.matmul(transpose(scaled), images)
    if not isinstance(logit_scale, np.ndarray):
        return grad_images, grad_texts, None

    # the scale may also be a factor of images or of texts, before they are multiplied
    def by_images(grad):
        return _total(way, way.matmul(grad, texts) * images.astype(way.core))

    def by_texts(grad):
        return _total(way, way.matmul(transpose(grad), images) * texts.astype(way.core))

    if way.order == "in blocks":
        grad_scale = by_images(sum(grads_logits))
    elif way.order == "online":
        grad_scale = sum(map(by_images, grads_logits[1:])) + by_texts(grads_logits[0])
    elif way.order == "reversed":
        grad_scale = sum(by_images(grad) if i else by_texts(grad) for i, grad in enumerate(reversed(grads_logits)))
    else:
        grad_scale = _total(way, sum(grads_logits) * products)
    return grad_images, grad_texts, grad_scale
