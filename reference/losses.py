"""The losses: the definitions. Their values come in float32 at least, whatever the dtype of the inputs."""

import numpy as np

from saccade.reference.precision import einsum, rounded, upcast


def softmax_cross_entropy(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """loss_n = −sum_k target_nk log softmax(logits_n)_k; then the mean, the sum, or as it is ("none").

    Integer labels (n,) mean targets one-hot(label); soft targets (n, k) are taken as they are and get no gradient.
    Smoothing mixes targets with the uniform distribution: (1 − a) target + a/k (Szegedy et al. 2016, section 7).
    Rows labelled ``ignore_index`` have loss 0 and are not counted; a mean over no rows is NaN.
    """
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return softmax_cross_entropy_forward(logits, labels, **options)[0]


def softmax_cross_entropy_forward(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``softmax_cross_entropy`` and what ``softmax_cross_entropy_backward`` needs."""
    wide = upcast(logits)
    targets, counted = _targets(wide, labels, ignore_index, label_smoothing)
    per_row = np.where(counted, -_sum_products(targets, log_softmax(wide)), 0).astype(wide.dtype)
    loss = _reduce(per_row, counted.sum(), reduction)
    return loss, (logits, labels, ignore_index, label_smoothing, reduction)


def softmax_cross_entropy_backward(saved, grad_loss):
    """The gradient for logits, in a tuple of one: (softmax · sum_k target − target) · dloss_n."""
    logits, labels, ignore_index, label_smoothing, reduction = saved
    wide = upcast(logits)
    targets, counted = _targets(wide, labels, ignore_index, label_smoothing)
    grad_rows = np.where(counted, _spread(grad_loss, len(wide), counted.sum(), reduction), 0).astype(wide.dtype)
    log_weights, total = log_softmax(wide), targets.sum(1, keepdims=True)
    grad = np.where(total == 1, _less(log_weights, targets), np.exp(log_weights) * total - targets)
    return (rounded(np.where(counted[:, None], grad * grad_rows[:, None], 0), logits),)


def log_softmax(logits):
    """logits − log sum_k exp(logits), along the last axis, in the dtype given."""
    top = logits.max(-1, keepdims=True)
    finite = np.isfinite(top)
    shifted = logits - np.where(finite, top, 0)
    weights = np.exp(shifted)
    # one largest weight, 1, is left to log1p, so that a weight all but 1 has a log with all its digits
    ones = np.where(finite, np.arange(logits.shape[-1]) == logits.argmax(-1, keepdims=True), False)
    others = np.where(ones, 0, weights).sum(-1, keepdims=True)
    return shifted - np.log1p(np.where(finite, others, others - 1))


def _less(log_weights, targets):
    """exp(log weight) − target, also where both are all but 1."""
    return np.where(targets == 1, np.expm1(log_weights), np.exp(log_weights) - targets)


def _sum_products(targets, log_weights):
    """sum_k target · log weight, where a target of 0 counts 0 even against −inf."""
    return np.sum(np.where(targets == 0, 0, targets * np.where(targets == 0, 0, log_weights)), -1)


def _targets(logits, labels, ignore_index, label_smoothing):
    n, k = logits.shape
    if labels.ndim == 2:
        targets, counted = upcast(labels), np.ones(n, bool)
    else:
        counted = labels != ignore_index
        targets = (np.where(counted, labels, 0)[:, None] == np.arange(k)).astype(logits.dtype)
    smoothing = logits.dtype.type(label_smoothing)
    return targets * (1 - smoothing) + smoothing / k, counted


def _reduce(per_row, count, reduction):
    if reduction == "none":
        return per_row
    total = per_row.sum()
    if reduction == "sum":
        return np.asarray(total)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / total.dtype.type(count))


def _spread(grad_loss, n, count, reduction):
    """The gradient of each row's loss."""
    grad_loss = upcast(grad_loss)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.broadcast_to(grad_loss / grad_loss.dtype.type(count) if reduction == "mean" else grad_loss, (n,))


def sigmoid_cross_entropy(logits, targets, *, reduction="mean"):
    """loss_n = −sum_k [target log σ(logit) + (1 − target) log σ(−logit)]; then the mean, the sum, or as it is.

    Targets get no gradient. Zhai et al., "Scaling Vision Transformers", 2022, section 3.1.
    """
    return sigmoid_cross_entropy_forward(logits, targets, reduction=reduction)[0]


def sigmoid_cross_entropy_forward(logits, targets, *, reduction="mean"):
    """``sigmoid_cross_entropy`` and what ``sigmoid_cross_entropy_backward`` needs."""
    wide, wide_targets = upcast(logits, targets)
    per_row = (wide_targets * softplus(-wide) + (1 - wide_targets) * softplus(wide)).sum(1)
    return _reduce(per_row, len(wide), reduction), (logits, targets, reduction)


def sigmoid_cross_entropy_backward(saved, grad_loss):
    """The gradient for logits, in a tuple of one: (σ(logit) − target) · dloss_n.

    Taken as (1 − target) σ(logit) − target σ(−logit), which has digits where σ is all but the target.
    """
    logits, targets, reduction = saved
    wide, wide_targets = upcast(logits, targets)
    grad_rows = _spread(grad_loss, len(wide), len(wide), reduction)
    slopes = (1 - wide_targets) * sigmoid(wide) - wide_targets * sigmoid(-wide)
    return (rounded(slopes * grad_rows[:, None], logits),)


def softplus(x):
    """log(1 + exp(x)) = −log σ(−x), without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    """1 / (1 + exp(−x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


def linear_cross_entropy(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """softmax_cross_entropy(hidden weightᵀ, labels, …) with logits in float32 at least: (n, e), (k, e), (n,)."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return linear_cross_entropy_forward(hidden, weight, labels, **options)[0]


def linear_cross_entropy_forward(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``linear_cross_entropy`` and what ``linear_cross_entropy_backward`` needs."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    logits = einsum("ne,ke->nk", *upcast(hidden, weight))
    loss, saved = softmax_cross_entropy_forward(logits, labels, **options)
    return loss, (hidden, weight, saved)


def linear_cross_entropy_backward(saved, grad_loss):
    """Gradients for hidden and weight: dH = dlogits W;  dW = dlogitsᵀ H."""
    hidden, weight, saved_loss = saved
    (grad_logits,) = softmax_cross_entropy_backward(saved_loss, grad_loss)
    grad_hidden = einsum("nk,ke->ne", grad_logits, upcast(weight))
    grad_weight = einsum("nk,ne->ke", grad_logits, upcast(hidden))
    return rounded(grad_hidden, hidden), rounded(grad_weight, weight)


def clip_loss(image_embeddings, text_embeddings, logit_scale):
    """The symmetric contrastive loss of pairs of rows (n, e).

        logits_ij = logit_scale · I_i · T_j
        loss = mean_i [−log softmax_j(logits)_ii − log softmax_i(logits)_ii] / 2

    ``logit_scale`` is the factor itself, the paper's exp(t): a number, or a 0-d array if it is to have a gradient.
    Radford et al. 2021, figure 3.
    """
    return clip_loss_forward(image_embeddings, text_embeddings, logit_scale)[0]


def clip_loss_forward(image_embeddings, text_embeddings, logit_scale):
    """``clip_loss`` and what ``clip_loss_backward`` needs."""
    logits = _pair_logits(image_embeddings, text_embeddings, logit_scale)
    loss = -(np.diag(log_softmax(logits)) + np.diag(log_softmax(logits.T))).mean() / 2
    return np.asarray(loss), (image_embeddings, text_embeddings, logit_scale)


def clip_loss_backward(saved, grad_loss):
    """Gradients for the image embeddings, the text embeddings and logit_scale (None if that is a number).

    dlogits = (softmax_j(logits) + softmax_i(logits) − 2 identity) / 2n · dloss
    dI = scale dlogits T;  dT = scale dlogitsᵀ I;  dscale = sum dlogits * (I Tᵀ)
    """
    images, texts, logit_scale = saved
    logits = _pair_logits(images, texts, logit_scale)
    own = np.eye(len(logits), dtype=logits.dtype)
    both = _less(log_softmax(logits), own) + _less(log_softmax(logits.T), own).T
    return _pair_gradients(images, texts, logit_scale, upcast(grad_loss) * both / (2 * len(logits)))


def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """The pairwise sigmoid loss of rows (n, e).

        logits_ij = logit_scale · I_i · T_j + logit_bias
        loss = mean_i sum_j −log σ(+logits_ij if i = j else −logits_ij)

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, algorithm 1.
    """
    return siglip_loss_forward(image_embeddings, text_embeddings, logit_scale, logit_bias)[0]


def siglip_loss_forward(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """``siglip_loss`` and what ``siglip_loss_backward`` needs."""
    logits = _pair_logits(image_embeddings, text_embeddings, logit_scale)
    logits = logits + logits.dtype.type(logit_bias)
    loss = softplus(-_signs(logits) * logits).sum() / logits.dtype.type(len(logits))
    return np.asarray(loss), (image_embeddings, text_embeddings, logit_scale, logit_bias)


def siglip_loss_backward(saved, grad_loss):
    """Gradients for both embeddings, logit_scale and logit_bias (None where a number was given).

    With z = ±1: dlogits = −z σ(−z logits) / n · dloss, then as for ``clip_loss``; dbias = sum dlogits.
    """
    images, texts, logit_scale, logit_bias = saved
    logits = _pair_logits(images, texts, logit_scale)
    logits = logits + logits.dtype.type(logit_bias)
    signs = _signs(logits)
    grad_logits = -signs * sigmoid(-signs * logits) / logits.dtype.type(len(logits)) * upcast(grad_loss)
    grad_bias = rounded(grad_logits.sum(), logit_bias) if isinstance(logit_bias, np.ndarray) else None
    return *_pair_gradients(images, texts, logit_scale, grad_logits), grad_bias


def _signs(logits):
    return 2 * np.eye(len(logits), dtype=logits.dtype) - 1


def _pair_logits(images, texts, logit_scale):
    products = einsum("ie,je->ij", *upcast(images, texts))
    return products * products.dtype.type(logit_scale)


def _pair_gradients(images, texts, logit_scale, grad_logits):
    wide_images, wide_texts = upcast(images, texts)
    scale = grad_logits.dtype.type(logit_scale)
    grad_images = scale * einsum("ij,je->ie", grad_logits, wide_texts)
    grad_texts = scale * einsum("ij,ie->je", grad_logits, wide_images)
    grad_scale = None
    if isinstance(logit_scale, np.ndarray):
        grad_scale = rounded(np.sum(grad_logits * einsum("ie,je->ij", wide_images, wide_texts)), logit_scale)
    return rounded(grad_images, images), rounded(grad_texts, texts), grad_scale
