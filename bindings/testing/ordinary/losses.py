"""Losses as ordinary programs compute them, with their logits stored."""

# How many operands and gradients a tuple holds, and which are None, depends on the operation and its arguments.
# pyright: reportAssignmentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import numpy as np

from saccade.testing.ways import transpose

LONG = 1 << 16  # numbers that a program may add up one after the other


def softmax_cross_entropy(way, arguments, options, cotangents):
    """Cross entropy of rows of logits."""
    logits, labels = arguments
    (logits,) = way.raise_(logits)
    loss, grad_logits = _cross_entropy(way, logits, labels, options, cotangents)
    return (loss,), () if cotangents is None else (grad_logits,)


def _log_softmax(way, logits):
    top = logits.max(-1, keepdims=True)
    shifted = logits - top
    return shifted - way.log(way.sum(way.exp(shifted), -1))


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
