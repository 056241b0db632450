"""Attention by cuDNN, as torch's scaled dot product attention has it: where that is faster than what is our own.

The functions are those of ``saccade.kernels.*.attention`` and leave the same behind, so that forward and backward may
be of different backends. Gradients are not promised to be the same bits every time.
"""

from typing import Any

import torch

from saccade.kernels.triton.attention import attention_backward as _of_own

_FORWARD = torch.ops.aten._scaled_dot_product_cudnn_attention
_BACKWARD = torch.ops.aten._scaled_dot_product_cudnn_attention_backward


def takes(query, key, value, mask, bias, causal, key_lengths):
    """Whether cuDNN computes what these ask for."""
    (t, d), s, e = query.shape[2:], key.shape[2], value.shape[3]
    return (
        mask is None and bias is None and key_lengths is None and (not causal or t == s) and min(t, s) > 1
        and 0 not in query.shape and query.element_size() == 2 and d == e and d % 8 == 0 and d <= 128
        and all(x.stride(3) == 1 and x.data_ptr() % 16 == 0 for x in (query, key, value))
        and all(step % 8 == 0 for x in (query, key, value) for step in x.stride()[:3])
    )  # fmt: skip


def attention_forward(query, key, value, *, mask, bias, causal, key_lengths, scale, return_lse) -> Any:
    """``attention`` and what ``attention_backward`` needs.

    Raises:
        ValueError: for what cuDNN has not: masks, biases, lengths of keys, causal with another number of queries than
            keys, a single query or key, more than 16 bits a number, rows that are no multiple of 8 up to 128.
    """
    out, lse, scale = _attend(query, key, value, mask, bias, causal, key_lengths, scale)
    out = out.contiguous()
    saved = query, key, value, bias, mask, key_lengths, out, lse, causal, scale
    return ((out, lse) if return_lse else out), saved


def _attend(query, key, value, mask, bias, causal, key_lengths, scale):
    if not takes(query, key, value, mask, bias, causal, key_lengths):
        raise ValueError(
            "attention: backend='sdpa' takes several 16-bit queries, keys and values of one width, a multiple of "
            "8 up to 128, without mask, bias or key_lengths, and causal=True where there are as many queries as keys"
        )
    scale = query.shape[3] ** -0.5 if scale is None else scale
    out, lse, *_ = _FORWARD(query, key, value, None, True, 0.0, causal, False, scale=scale)
    return out, lse.view(query.shape[:3]), scale


def attention_backward(saved, grad_out, grad_lse=None) -> Any:
    """Gradients for query, key and value, and None: by our own kernels where log-sum-exps have gradients, too."""
    query, key, value, bias, mask, key_lengths, out, lse, causal, scale = saved
    if grad_lse is not None or not takes(query, key, value, mask, bias, causal, key_lengths):
        return _of_own(saved, grad_out, grad_lse)
    seed = torch.empty(1, dtype=torch.int64, device=query.device)  # of a dropout that there is not
    gradients = _BACKWARD(
        grad_out, query, key, value, out, lse.unsqueeze(3), seed, seed, None, None, None, query.shape[2], key.shape[2],
        0.0, causal, scale=scale,
    )  # fmt: skip
    return *(x.contiguous() for x in gradients), None


def qkv_attention_forward(qkv, *, causal, key_lengths, scale):
    """``qkv_attention`` and what ``qkv_attention_backward`` needs."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out, lse, scale = _attend(query, key, value, None, None, causal, key_lengths, scale)
    out = out.transpose(1, 2).contiguous()  # which it is, since cuDNN's lies as the queries do
    return out, (qkv, key_lengths, out, lse, causal, scale)


def qkv_attention_backward(saved, grad_out):
    """The gradient for qkv, (b, n, 3, h, d), in a tuple of one."""
    qkv, key_lengths, out, *rest = saved
    whole = *qkv.permute(2, 0, 3, 1, 4).unbind(0), None, None, key_lengths, out.transpose(1, 2), *rest
    gradients = attention_backward(whole, grad_out.transpose(1, 2))
    return (torch.stack([x.transpose(1, 2) for x in gradients[:3]], 2),)
