"""Attention for tensors: ``torch.ops.saccade`` operators and their autograd."""

import torch
from torch import Tensor

from saccade.torch.arrays import call, compute_dtype, dense
from saccade.torch.registration import Differentiable, absent, applied, first_derivative, operator, present


def _attention_shapes(query, key, value, mask, bias, causal, key_lengths, scale, backend):
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    return out, query.new_empty(query.shape[:3], dtype=compute_dtype(query.dtype))


@operator("attention_forward", _attention_shapes)
def _attention_forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, bias: Tensor | None, causal: bool,
    key_lengths: Tensor | None, scale: float | None, backend: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    options = dict(mask=mask, bias=bias, causal=causal, key_lengths=key_lengths, scale=scale, return_lse=True)
    return tuple(call("attention_forward", backend, query.device, query, key, value, **options)[0])


def _attention_backward_shapes(
    grad_out, grad_lse, query, key, value, mask, bias, key_lengths, out, lse, causal, scale, backend
):
    grad_bias = absent(query) if bias is None else dense(bias)
    return dense(query), dense(key), dense(value), grad_bias


@operator("attention_backward", _attention_backward_shapes)
def _attention_backward(
    grad_out: Tensor, grad_lse: Tensor | None, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
    bias: Tensor | None, key_lengths: Tensor | None, out: Tensor, lse: Tensor, causal: bool, scale: float,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    saved = query, key, value, bias, mask, key_lengths, out, lse, causal, scale
    *gradients, grad_bias = call("attention_backward", backend, query.device, saved, grad_out, grad_lse)
    return *gradients, absent(query) if grad_bias is None else grad_bias


class _Attention(Differentiable):
    @staticmethod
    def forward(query, key, value, mask, bias, causal, key_lengths, scale, backend):
        return torch.ops.saccade.attention_forward(query, key, value, mask, bias, causal, key_lengths, scale, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        query, key, value, mask, bias, causal, key_lengths, scale, backend = inputs
        ctx.save_for_backward(query, key, value, mask, bias, key_lengths, *output)
        ctx.options = causal, query.shape[-1] ** -0.5 if scale is None else scale, backend
        ctx.set_materialize_grads(False)  # there are faster kernels where nobody asks for those of lse

    @staticmethod
    def backward(ctx, grad_out, grad_lse):
        bias, out = ctx.saved_tensors[4], ctx.saved_tensors[6]
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        *gradients, grad_bias = first_derivative(
            torch.ops.saccade.attention_backward, grad_out, grad_lse, *ctx.saved_tensors, *ctx.options
        )
        return *gradients, None, present(grad_bias, bias), None, None, None, None


def attention(
    query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False,
    backend=None,
):  # fmt: skip
    """See ``saccade.attention``."""
    out, lse = applied(_Attention, query, key, value, mask, bias, causal, key_lengths, scale, backend)
    return (out, lse) if return_lse else out


def _qkv_shapes(qkv, causal, key_lengths, scale, backend):
    b, n, _, h, d = qkv.shape
    return qkv.new_empty((b, n, h, d)), qkv.new_empty((b, h, n), dtype=compute_dtype(qkv.dtype))


@operator("qkv_attention_forward", _qkv_shapes)
def _qkv_attention_forward(
    qkv: Tensor, causal: bool, key_lengths: Tensor | None, scale: float | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    options = dict(causal=causal, key_lengths=key_lengths, scale=scale)
    out, saved = call("qkv_attention_forward", backend, qkv.device, qkv, **options)
    return out, saved[3]


@operator("qkv_attention_backward", lambda grad_out, qkv, *_: dense(qkv))
def _qkv_attention_backward(
    grad_out: Tensor, qkv: Tensor, key_lengths: Tensor | None, out: Tensor, lse: Tensor, causal: bool, scale: float,
    backend: str | None,
) -> Tensor:  # fmt: skip
    saved = qkv, key_lengths, out, lse, causal, scale
    return call("qkv_attention_backward", backend, qkv.device, saved, grad_out)[0]


class _QkvAttention(Differentiable):
    @staticmethod
    def forward(qkv, causal, key_lengths, scale, backend):
        return torch.ops.saccade.qkv_attention_forward(qkv, causal, key_lengths, scale, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        qkv, causal, key_lengths, scale, backend = inputs
        ctx.save_for_backward(qkv, key_lengths, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.options = causal, qkv.shape[-1] ** -0.5 if scale is None else scale, backend

    @staticmethod
    def backward(ctx, grad_out, _):
        grad = first_derivative(torch.ops.saccade.qkv_attention_backward, grad_out, *ctx.saved_tensors, *ctx.options)
        return grad, None, None, None, None


def qkv_attention(qkv, *, causal=False, key_lengths=None, scale=None, backend=None):
    """See ``saccade.qkv_attention``."""
    return applied(_QkvAttention, qkv, causal, key_lengths, scale, backend)[0]


def _varlen_shapes(query, key, value, cumulative_lengths, causal, scale, backend):
    out = query.new_empty((*query.shape[:2], value.shape[2]))
    return out, query.new_empty(query.shape[:2], dtype=compute_dtype(query.dtype))


@operator("varlen_attention_forward", _varlen_shapes)
def _varlen_attention_forward(
    query: Tensor, key: Tensor, value: Tensor, cumulative_lengths: Tensor, causal: bool, scale: float | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    options = dict(cumulative_lengths=cumulative_lengths, causal=causal, scale=scale)
    out, saved = call("varlen_attention_forward", backend, query.device, query, key, value, **options)
    return out, saved[5]


@operator("varlen_attention_backward", lambda grad_out, query, key, value, *_: tuple(map(dense, (query, key, value))))
def _varlen_attention_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, cumulative_lengths: Tensor, out: Tensor,
    lse: Tensor, causal: bool, scale: float | None, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    saved = query, key, value, cumulative_lengths, out, lse, causal, scale
    return tuple(call("varlen_attention_backward", backend, query.device, saved, grad_out))


class _VarlenAttention(Differentiable):
    @staticmethod
    def forward(query, key, value, cumulative_lengths, causal, scale, backend):
        return torch.ops.saccade.varlen_attention_forward(query, key, value, cumulative_lengths, causal, scale, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        query, key, value, cumulative_lengths, causal, scale, backend = inputs
        ctx.save_for_backward(query, key, value, cumulative_lengths, *output)
        ctx.mark_non_differentiable(output[1])
        ctx.options = causal, scale, backend

    @staticmethod
    def backward(ctx, grad_out, _):
        gradients = first_derivative(
            torch.ops.saccade.varlen_attention_backward, grad_out, *ctx.saved_tensors, *ctx.options
        )
        return *gradients, None, None, None, None


def varlen_attention(query, key, value, *, cumulative_lengths, causal=False, scale=None, backend=None):
    """See ``saccade.varlen_attention``."""
    return applied(_VarlenAttention, query, key, value, cumulative_lengths, causal, scale, backend)[0]
