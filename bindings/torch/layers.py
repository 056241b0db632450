"""The layers for tensors: operators of ours, but for products of matrices where torch's are as fast."""

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.kernels.numba.matrices import OWN
from saccade.torch.arrays import call, compute_dtype, dense
from saccade.torch.registration import Differentiable, absent, applied, first_derivative, operator, own, present


@operator("linear_forward", lambda x, weight, bias: weight.new_empty((*x.shape[:-1], weight.shape[0])))
def _linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return call("linear_forward", None, x.device, x, weight, bias)[0]


@operator("linear_backward", lambda grad_out, x, weight: (dense(x), dense(weight)))
def _linear_backward(grad_out: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return call("linear_backward", None, x.device, (x, weight, None), grad_out)[:2]


class _Linear(Differentiable):
    @staticmethod
    def forward(x, weight, bias):
        return torch.ops.saccade.linear_forward(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])
        ctx.biased = inputs[2] is not None

    @staticmethod
    def backward(ctx, grad_out):
        gradients = first_derivative(torch.ops.saccade.linear_backward, grad_out, *ctx.saved_tensors)
        rows = grad_out.reshape(grad_out.shape[:-1].numel(), grad_out.shape[-1])
        return *gradients, rows.sum(0) if ctx.biased else None


def linear(x, weight, bias=None, *, backend=None):
    """See ``saccade.linear``; torch's own, but on processors where ours is faster."""
    own("linear", backend)
    return product(x, weight, bias)


def product(x, weight, bias=None):
    """x weightᵀ + bias by whoever is faster: on a CPU as ``saccade.kernels.numba.matrices`` says, elsewhere torch."""
    whole = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    if OWN and whole and x.device.type == "cpu":
        return applied(_Linear, x, weight, bias)
    return F.linear(x, weight, bias)


class _Embedding(Differentiable):
    """torch's own, but for its gradient, which it adds up in 16 bits where the weight has 16 bits."""

    @staticmethod
    def forward(tokens, weight, dtype):
        return F.embedding(tokens, weight).to(dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        tokens, weight, _ = inputs
        ctx.save_for_backward(tokens)
        ctx.rows, ctx.dtype = len(weight), weight.dtype

    @staticmethod
    def backward(ctx, grad_out):
        (tokens,) = ctx.saved_tensors
        wide = grad_out.reshape(-1, grad_out.shape[-1]).to(compute_dtype(grad_out.dtype))
        grad = torch.ops.aten.embedding_dense_backward(wide, tokens.reshape(-1), ctx.rows, -1, False)
        return None, grad.to(ctx.dtype), None


def embedding(tokens, weight, *, backend=None):
    """See ``saccade.embedding``; torch's own, with a gradient that is added up in float32 at least.

    Rows of a weight with the attribute ``dtype_of_rows`` are rounded to that, and its gradient is not.
    """
    own("embedding", backend)
    tokens = tokens if tokens.dtype in (torch.int32, torch.int64) else tokens.long()
    return applied(_Embedding, tokens, weight, getattr(weight, "dtype_of_rows", weight.dtype))


def mlp(x, weight_in, bias_in, weight_out, bias_out, *, kind="erf", backend=None):
    """See ``saccade.mlp``: products as ``linear`` has them, around our GELU."""
    return product(gelu(product(x, weight_in, bias_in), kind=kind, backend=backend), weight_out, bias_out)


def _row_statistics(x):
    return x.new_empty(x.shape[:-1].numel(), dtype=compute_dtype(x.dtype))


def _norm_shapes(x, scale, bias, eps, residual, backend):
    return dense(x), absent(x) if residual is None else dense(x), _row_statistics(x), _row_statistics(x)


@operator("layer_norm_forward", _norm_shapes)
def _layer_norm_forward(
    x: Tensor, scale: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None, backend: str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, saved = call("layer_norm_forward", backend, x.device, x, scale, bias, eps=eps, residual=residual)
    mean, inverse = saved[3:5]
    return (out, absent(x), mean, inverse) if residual is None else (*out, mean, inverse)


def _norm_backward_shapes(grad_out, grad_sum, total, scale, *_):
    return dense(total), dense(scale), dense(scale)


@operator("layer_norm_backward", _norm_backward_shapes)
def _layer_norm_backward(
    grad_out: Tensor, grad_sum: Tensor | None, total: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    saved = total, scale, scale, mean, inverse, False
    return call("layer_norm_backward", backend, total.device, saved, grad_out, grad_sum)[:3]


class _LayerNorm(Differentiable):
    @staticmethod
    def forward(x, scale, bias, eps, residual, backend):
        return torch.ops.saccade.layer_norm_forward(x, scale, bias, eps, residual, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, scale, bias, eps, residual, backend = inputs
        out, total, mean, inverse = output
        ctx.save_for_backward(x if residual is None else total, scale, bias, mean, inverse)
        ctx.mark_non_differentiable(mean, inverse)
        ctx.options = residual is not None, backend

    @staticmethod
    def backward(ctx, grad_out, grad_sum, *_):
        total, scale, bias, mean, inverse = ctx.saved_tensors
        has_residual, backend = ctx.options
        grad_x, grad_scale, grad_bias = first_derivative(
            torch.ops.saccade.layer_norm_backward, grad_out, grad_sum if has_residual else None, total, scale, mean,
            inverse, backend,
        )  # fmt: skip
        return grad_x, grad_scale, present(grad_bias, bias), None, grad_x if has_residual else None, None


def layer_norm(x, scale, bias=None, *, eps=1e-5, residual=None, backend=None):
    """See ``saccade.layer_norm``."""
    out, total, _, _ = applied(_LayerNorm, x, scale, bias, eps, residual, backend)
    return out if residual is None else (out, total)


def _rms_shapes(x, scale, eps, residual, backend):
    return dense(x), absent(x) if residual is None else dense(x), _row_statistics(x)


@operator("rms_norm_forward", _rms_shapes)
def _rms_norm_forward(
    x: Tensor, scale: Tensor, eps: float, residual: Tensor | None, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    out, saved = call("rms_norm_forward", backend, x.device, x, scale, eps=eps, residual=residual)
    return (out, absent(x), saved[2]) if residual is None else (*out, saved[2])


@operator("rms_norm_backward", lambda grad_out, grad_sum, total, scale, *_: (dense(total), dense(scale)))
def _rms_norm_backward(
    grad_out: Tensor, grad_sum: Tensor | None, total: Tensor, scale: Tensor, inverse: Tensor, backend: str | None
) -> tuple[Tensor, Tensor]:
    saved = total, scale, inverse, False
    return call("rms_norm_backward", backend, total.device, saved, grad_out, grad_sum)[:2]


class _RmsNorm(Differentiable):
    @staticmethod
    def forward(x, scale, eps, residual, backend):
        return torch.ops.saccade.rms_norm_forward(x, scale, eps, residual, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, scale, eps, residual, backend = inputs
        out, total, inverse = output
        ctx.save_for_backward(x if residual is None else total, scale, inverse)
        ctx.mark_non_differentiable(inverse)
        ctx.options = residual is not None, backend

    @staticmethod
    def backward(ctx, grad_out, grad_sum, _):
        has_residual, backend = ctx.options
        grad_x, grad_scale = first_derivative(
            torch.ops.saccade.rms_norm_backward,
            grad_out,
            grad_sum if has_residual else None,
            *ctx.saved_tensors,
            backend,
        )
        return grad_x, grad_scale, None, grad_x if has_residual else None, None


def rms_norm(x, scale, *, eps=1e-5, residual=None, backend=None):
    """See ``saccade.rms_norm``."""
    out, total, _ = applied(_RmsNorm, x, scale, eps, residual, backend)
    return out if residual is None else (out, total)


@operator("gelu_forward", lambda x, kind, backend: dense(x))
def _gelu_forward(x: Tensor, kind: str, backend: str | None) -> Tensor:
    return call("gelu_forward", backend, x.device, x, kind=kind)[0]


@operator("gelu_backward", lambda grad_out, x, kind, backend: dense(x))
def _gelu_backward(grad_out: Tensor, x: Tensor, kind: str, backend: str | None) -> Tensor:
    return call("gelu_backward", backend, x.device, (x, kind), grad_out)[0]


class _Gelu(Differentiable):
    @staticmethod
    def forward(x, kind, backend):
        return torch.ops.saccade.gelu_forward(x, kind, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.options = inputs[1:]

    @staticmethod
    def backward(ctx, grad_out):
        grad_x = first_derivative(torch.ops.saccade.gelu_backward, grad_out, *ctx.saved_tensors, *ctx.options)
        return grad_x, None, None


def gelu(x, *, kind="erf", backend=None):
    """See ``saccade.gelu``."""
    return applied(_Gelu, x, kind, backend)


@operator("l2_normalize_forward", lambda x, eps, backend: dense(x))
def _l2_normalize_forward(x: Tensor, eps: float, backend: str | None) -> Tensor:
    return call("l2_normalize_forward", backend, x.device, x, eps=eps)[0]


@operator("l2_normalize_backward", lambda grad_out, x, eps, backend: dense(x))
def _l2_normalize_backward(grad_out: Tensor, x: Tensor, eps: float, backend: str | None) -> Tensor:
    return call("l2_normalize_backward", backend, x.device, (x, eps), grad_out)[0]


class _L2Normalize(Differentiable):
    @staticmethod
    def forward(x, eps, backend):
        return torch.ops.saccade.l2_normalize_forward(x, eps, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.options = inputs[1:]

    @staticmethod
    def backward(ctx, grad_out):
        grad_x = first_derivative(torch.ops.saccade.l2_normalize_backward, grad_out, *ctx.saved_tensors, *ctx.options)
        return grad_x, None, None


def l2_normalize(x, *, eps=1e-12, backend=None):
    """See ``saccade.l2_normalize``."""
    return applied(_L2Normalize, x, eps, backend)
