"""The losses for tensors: ``torch.ops.saccade`` operators and their autograd."""

import torch
from torch import Tensor

from saccade.torch.arrays import call, compute_dtype, dense
from saccade.torch.registration import Differentiable, applied, first_derivative, operator


def _statistic(x, rows):
    return x.new_empty(rows, dtype=compute_dtype(x.dtype))


def _loss(x, reduction):
    return _statistic(x, (x.shape[0],) if reduction == "none" else ())


@operator(
    "softmax_cross_entropy_forward",
    lambda logits, labels, ignore, smoothing, reduction, backend: (
        _loss(logits, reduction),
        _statistic(logits, logits.shape[0]),
    ),
)
def _softmax_forward(
    logits: Tensor, labels: Tensor, ignore_index: int, label_smoothing: float, reduction: str, backend: str | None
) -> tuple[Tensor, Tensor]:
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    loss, saved = call("softmax_cross_entropy_forward", backend, logits.device, logits, labels, **options)
    return loss, saved[2]


@operator("softmax_cross_entropy_backward", lambda grad_loss, logits, *_: dense(logits))
def _softmax_backward(
    grad_loss: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, ignore_index: int, label_smoothing: float,
    reduction: str, backend: str | None,
) -> Tensor:  # fmt: skip
    saved = logits, labels, lse, ignore_index, label_smoothing, reduction
    return call("softmax_cross_entropy_backward", backend, logits.device, saved, grad_loss)[0]


class _SoftmaxCrossEntropy(Differentiable):
    @staticmethod
    def forward(logits, labels, ignore_index, label_smoothing, reduction, backend):
        return torch.ops.saccade.softmax_cross_entropy_forward(
            logits, labels, ignore_index, label_smoothing, reduction, backend
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, labels, *options = inputs
        ctx.save_for_backward(logits, labels, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.options = options

    @staticmethod
    def backward(ctx, grad_loss, _):
        grad = first_derivative(
            torch.ops.saccade.softmax_cross_entropy_backward, grad_loss, *ctx.saved_tensors, *ctx.options
        )
        return grad, None, None, None, None, None


def softmax_cross_entropy(
    logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean", backend=None
):  # fmt: skip
    """See ``saccade.softmax_cross_entropy``."""
    options = ignore_index, float(label_smoothing), reduction, backend
    return applied(_SoftmaxCrossEntropy, logits, labels.detach(), *options)[0]


@operator("sigmoid_cross_entropy_forward", lambda logits, targets, reduction, backend: _loss(logits, reduction))
def _sigmoid_forward(logits: Tensor, targets: Tensor, reduction: str, backend: str | None) -> Tensor:
    return call("sigmoid_cross_entropy_forward", backend, logits.device, logits, targets, reduction=reduction)[0]


@operator("sigmoid_cross_entropy_backward", lambda grad_loss, logits, *_: dense(logits))
def _sigmoid_backward(
    grad_loss: Tensor, logits: Tensor, targets: Tensor, reduction: str, backend: str | None
) -> Tensor:
    saved = logits, targets, reduction
    return call("sigmoid_cross_entropy_backward", backend, logits.device, saved, grad_loss)[0]


class _SigmoidCrossEntropy(Differentiable):
    @staticmethod
    def forward(logits, targets, reduction, backend):
        return torch.ops.saccade.sigmoid_cross_entropy_forward(logits, targets, reduction, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.options = inputs[2:]

    @staticmethod
    def backward(ctx, grad_loss):
        operation = torch.ops.saccade.sigmoid_cross_entropy_backward
        return first_derivative(operation, grad_loss, *ctx.saved_tensors, *ctx.options), None, None, None


def sigmoid_cross_entropy(logits, targets, *, reduction="mean", backend=None):
    """See ``saccade.sigmoid_cross_entropy``."""
    return applied(_SigmoidCrossEntropy, logits, targets.detach(), reduction, backend)


@operator(
    "linear_cross_entropy_forward",
    lambda hidden, weight, labels, ignore, smoothing, reduction, backend: (
        _loss(hidden, reduction),
        _statistic(hidden, (3, hidden.shape[0])),
    ),
)
def _linear_forward(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int, label_smoothing: float, reduction: str,
    backend: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    loss, saved = call("linear_cross_entropy_forward", backend, hidden.device, hidden, weight, labels, **options)
    return loss, saved[3]


@operator("linear_cross_entropy_backward", lambda grad_loss, hidden, weight, *_: (dense(hidden), dense(weight)))
def _linear_backward(
    grad_loss: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, lse: Tensor, ignore_index: int,
    label_smoothing: float, reduction: str, backend: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    saved = hidden, weight, labels, lse, ignore_index, label_smoothing, reduction
    return tuple(call("linear_cross_entropy_backward", backend, hidden.device, saved, grad_loss))


class _LinearCrossEntropy(Differentiable):
    @staticmethod
    def forward(hidden, weight, labels, ignore_index, label_smoothing, reduction, backend):
        return torch.ops.saccade.linear_cross_entropy_forward(
            hidden, weight, labels, ignore_index, label_smoothing, reduction, backend
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        hidden, weight, labels, *options = inputs
        ctx.save_for_backward(hidden, weight, labels, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.options = options

    @staticmethod
    def backward(ctx, grad_loss, _):
        gradients = first_derivative(
            torch.ops.saccade.linear_cross_entropy_backward, grad_loss, *ctx.saved_tensors, *ctx.options
        )
        return *gradients, None, None, None, None, None


def linear_cross_entropy(
    hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean", backend=None
):  # fmt: skip
    """See ``saccade.linear_cross_entropy``."""
    options = ignore_index, float(label_smoothing), reduction, backend
    return applied(_LinearCrossEntropy, hidden, weight, labels, *options)[0]


def _pair_shapes(images, texts, logit_scale, backend):
    rows = (3, images.shape[0])
    return _statistic(images, ()), _statistic(images, rows), _statistic(images, rows)


@operator("clip_loss_forward", _pair_shapes)
def _clip_forward(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = image_embeddings, text_embeddings, logit_scale
    loss, saved = call("clip_loss_forward", backend, image_embeddings.device, *arguments)
    return loss, saved[3], saved[4]


@operator("clip_loss_backward", lambda grad_loss, images, texts, scale, *_: tuple(map(dense, (images, texts, scale))))
def _clip_backward(
    grad_loss: Tensor, image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, of_images: Tensor,
    of_texts: Tensor, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    saved = image_embeddings, text_embeddings, logit_scale, of_images, of_texts
    return tuple(call("clip_loss_backward", backend, image_embeddings.device, saved, grad_loss))


class _ClipLoss(Differentiable):
    @staticmethod
    def forward(images, texts, logit_scale, backend):
        return torch.ops.saccade.clip_loss_forward(images, texts, logit_scale, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.backend = inputs[3]

    @staticmethod
    def backward(ctx, grad_loss, *_):
        operation = torch.ops.saccade.clip_loss_backward
        return *first_derivative(operation, grad_loss, *ctx.saved_tensors, ctx.backend), None


def factor(x, beside):
    """A factor given as a number, as a tensor without a gradient."""
    return x if isinstance(x, Tensor) else beside.new_full((), x, dtype=torch.float64)


def clip_loss(image_embeddings, text_embeddings, logit_scale, *, backend=None):
    """See ``saccade.clip_loss``."""
    return applied(_ClipLoss, image_embeddings, text_embeddings, factor(logit_scale, image_embeddings), backend)[0]


@operator("siglip_loss_forward", lambda images, *_: _statistic(images, ()))
def _siglip_forward(
    image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, logit_bias: Tensor, backend: str | None
) -> Tensor:
    arguments = image_embeddings, text_embeddings, logit_scale, logit_bias
    return call("siglip_loss_forward", backend, image_embeddings.device, *arguments)[0]


@operator("siglip_loss_backward", lambda grad_loss, *saved: tuple(map(dense, saved[:4])))
def _siglip_backward(
    grad_loss: Tensor, image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor, logit_bias: Tensor,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    saved = image_embeddings, text_embeddings, logit_scale, logit_bias
    return tuple(call("siglip_loss_backward", backend, image_embeddings.device, saved, grad_loss))


class _SiglipLoss(Differentiable):
    @staticmethod
    def forward(images, texts, logit_scale, logit_bias, backend):
        return torch.ops.saccade.siglip_loss_forward(images, texts, logit_scale, logit_bias, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4])
        ctx.backend = inputs[4]

    @staticmethod
    def backward(ctx, grad_loss):
        operation = torch.ops.saccade.siglip_loss_backward
        return *first_derivative(operation, grad_loss, *ctx.saved_tensors, ctx.backend), None


def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias, *, backend=None):
    """See ``saccade.siglip_loss``."""
    factors = (factor(x, image_embeddings) for x in (logit_scale, logit_bias))
    return applied(_SiglipLoss, image_embeddings, text_embeddings, *factors, backend)
