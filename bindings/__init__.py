"""Saccade: vision-transformer operations with a NumPy definition, fast kernels held to it, and the models on top."""

import importlib

from saccade.arrays import (
)
from saccade.arrays import (
    broadcast_to as broadcast_to,
)
from saccade.arrays import (
    concatenate as concatenate,
)
from saccade.arrays import (
)
from saccade.arrays import (
    identity as identity,
)
from saccade.arrays import (
    mean as mean,
)
from saccade.arrays import (
    take as take,
)
from saccade.arrays import (
)
from saccade.arrays import (
    tanh as tanh,
)
from saccade.ops import (
    attention as attention,
)
from saccade.ops import (
    attention_backward as attention_backward,
)
from saccade.ops import (
    attention_forward as attention_forward,
    attention_weights as attention_weights,
)
from saccade.ops import (
    average_pool as average_pool,
)
from saccade.ops import (
    average_pool_backward as average_pool_backward,
)
from saccade.ops import (
    average_pool_forward as average_pool_forward,
)
from saccade.ops import (
    batch_norm as batch_norm,
)
from saccade.ops import (
    batch_norm_backward as batch_norm_backward,
)
from saccade.ops import (
    batch_norm_forward as batch_norm_forward,
)
from saccade.ops import (
    clip_loss as clip_loss,
)
from saccade.ops import (
    clip_loss_backward as clip_loss_backward,
)
from saccade.ops import (
    clip_loss_forward as clip_loss_forward,
)
from saccade.ops import (
    conv2d as conv2d,
)
from saccade.ops import (
    conv2d_backward as conv2d_backward,
)
from saccade.ops import (
    conv2d_forward as conv2d_forward,
)
from saccade.ops import (
    embedding as embedding,
)
from saccade.ops import (
    embedding_backward as embedding_backward,
)
from saccade.ops import (
    embedding_forward as embedding_forward,
)
from saccade.ops import (
    gelu as gelu,
)
from saccade.ops import (
    gelu_backward as gelu_backward,
)
from saccade.ops import (
    gelu_forward as gelu_forward,
)
from saccade.ops import (
    l2_normalize as l2_normalize,
)
from saccade.ops import (
    l2_normalize_backward as l2_normalize_backward,
)
from saccade.ops import (
    l2_normalize_forward as l2_normalize_forward,
)
from saccade.ops import (
    layer_norm as layer_norm,
)
from saccade.ops import (
    layer_norm_backward as layer_norm_backward,
)
from saccade.ops import (
    layer_norm_forward as layer_norm_forward,
)
from saccade.ops import (
    linear as linear,
)
from saccade.ops import (
    linear_backward as linear_backward,
)
from saccade.ops import (
    linear_cross_entropy as linear_cross_entropy,
)
from saccade.ops import (
    linear_cross_entropy_backward as linear_cross_entropy_backward,
)
from saccade.ops import (
    linear_cross_entropy_forward as linear_cross_entropy_forward,
)
from saccade.ops import (
    linear_forward as linear_forward,
)
from saccade.ops import (
    mlp as mlp,
)
from saccade.ops import (
    mlp_backward as mlp_backward,
)
from saccade.ops import (
    mlp_forward as mlp_forward,
)
from saccade.ops import (
    patch_embed as patch_embed,
)
from saccade.ops import (
    patch_embed_backward as patch_embed_backward,
)
from saccade.ops import (
    patch_embed_forward as patch_embed_forward,
)
from saccade.ops import (
    qkv_attention as qkv_attention,
)
from saccade.ops import (
    qkv_attention_backward as qkv_attention_backward,
)
from saccade.ops import (
    qkv_attention_forward as qkv_attention_forward,
)
from saccade.ops import (
    rms_norm as rms_norm,
)
from saccade.ops import (
    rms_norm_backward as rms_norm_backward,
)
from saccade.ops import (
    rms_norm_forward as rms_norm_forward,
)
from saccade.ops import (
    siglip_loss as siglip_loss,
)
from saccade.ops import (
    siglip_loss_backward as siglip_loss_backward,
)
from saccade.ops import (
    siglip_loss_forward as siglip_loss_forward,
)
from saccade.ops import (
    sigmoid_cross_entropy as sigmoid_cross_entropy,
)
from saccade.ops import (
    sigmoid_cross_entropy_backward as sigmoid_cross_entropy_backward,
)
from saccade.ops import (
    sigmoid_cross_entropy_forward as sigmoid_cross_entropy_forward,
)
from saccade.ops import (
    softmax_cross_entropy as softmax_cross_entropy,
)
from saccade.ops import (
    softmax_cross_entropy_backward as softmax_cross_entropy_backward,
)
from saccade.ops import (
    softmax_cross_entropy_forward as softmax_cross_entropy_forward,
)
from saccade.ops import (
    varlen_attention as varlen_attention,
)
from saccade.ops import (
    varlen_attention_backward as varlen_attention_backward,
)
from saccade.ops import (
    varlen_attention_forward as varlen_attention_forward,
)

__version__ = "0.1.0"

# Loaded when first used, so that importing saccade imports no framework.
_SUBMODULES = ("bench", "kernels", "models", "palette", "recipes", "reference", "testing", "tokenizer", "torch")
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
