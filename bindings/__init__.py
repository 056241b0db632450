"""Saccade: vision-transformer operations with a NumPy definition, fast kernels held to it, and the models on top."""

import importlib

from saccade.arrays import (
    broadcast_to as broadcast_to,
    concatenate as concatenate,
    identity as identity,
    mean as mean,
    relu as relu,
    take as take,
    tanh as tanh,
)
from saccade.ops import (
    attention as attention,
    attention_backward as attention_backward,
    attention_forward as attention_forward,
    attention_weights as attention_weights,
    average_pool as average_pool,
    average_pool_backward as average_pool_backward,
    average_pool_forward as average_pool_forward,
    batch_norm as batch_norm,
    batch_norm_backward as batch_norm_backward,
    batch_norm_forward as batch_norm_forward,
    clip_loss as clip_loss,
    clip_loss_backward as clip_loss_backward,
    clip_loss_forward as clip_loss_forward,
    conv2d as conv2d,
    conv2d_backward as conv2d_backward,
    conv2d_forward as conv2d_forward,
    embedding as embedding,
    embedding_backward as embedding_backward,
    embedding_forward as embedding_forward,
    gelu as gelu,
    gelu_backward as gelu_backward,
    gelu_forward as gelu_forward,
    l2_normalize as l2_normalize,
    l2_normalize_backward as l2_normalize_backward,
    l2_normalize_forward as l2_normalize_forward,
    layer_norm as layer_norm,
    layer_norm_backward as layer_norm_backward,
    layer_norm_forward as layer_norm_forward,
    linear as linear,
    linear_backward as linear_backward,
    linear_cross_entropy as linear_cross_entropy,
    linear_cross_entropy_backward as linear_cross_entropy_backward,
    linear_cross_entropy_forward as linear_cross_entropy_forward,
    linear_forward as linear_forward,
    mlp as mlp,
    mlp_backward as mlp_backward,
    mlp_forward as mlp_forward,
    patch_embed as patch_embed,
    patch_embed_backward as patch_embed_backward,
    patch_embed_forward as patch_embed_forward,
    qkv_attention as qkv_attention,
    qkv_attention_backward as qkv_attention_backward,
    qkv_attention_forward as qkv_attention_forward,
    rms_norm as rms_norm,
    rms_norm_backward as rms_norm_backward,
    rms_norm_forward as rms_norm_forward,
    siglip_loss as siglip_loss,
    siglip_loss_backward as siglip_loss_backward,
    siglip_loss_forward as siglip_loss_forward,
    sigmoid_cross_entropy as sigmoid_cross_entropy,
    sigmoid_cross_entropy_backward as sigmoid_cross_entropy_backward,
    sigmoid_cross_entropy_forward as sigmoid_cross_entropy_forward,
    softmax_cross_entropy as softmax_cross_entropy,
    softmax_cross_entropy_backward as softmax_cross_entropy_backward,
    softmax_cross_entropy_forward as softmax_cross_entropy_forward,
    varlen_attention as varlen_attention,
    varlen_attention_backward as varlen_attention_backward,
    varlen_attention_forward as varlen_attention_forward,
)

__version__ = "0.1.0"

# Loaded when first used, so that importing saccade imports no framework.
_SUBMODULES = (
    "bench", "images", "interop", "kernels", "models", "palette", "recipes", "reference", "testing", "tokenizer",
    "torch", "weights",
)  # fmt: skip
_ELSEWHERE = {"Palette": "saccade.palette"}


def __getattr__(name):
    if name in _SUBMODULES:
        return importlib.import_module(f"saccade.{name}")
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module 'saccade' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_SUBMODULES, *_ELSEWHERE])


def set_threads(threads):
    """Let CPU kernels use this many threads; results have the same bits for any number."""
    from saccade.kernels.numba.threads import set_threads

    set_threads(threads)


def get_threads():
    """How many threads CPU kernels may use."""
    from saccade.kernels.numba.threads import get_threads

    return get_threads()
