"""Every operation computed as an ordinary program would, in the inputs' precision, along a given way of adding.

Each function takes ``(way, arguments, options, cotangents)`` and returns ``(outputs, gradients)``: what an
implementation without a fault may be expected to return, errors included. The formulas are those of
``saccade.reference``; what is new here is only where numbers are rounded and in which order they are added.
"""

from saccade.testing.ordinary.attention import (
    attention as attention,
    qkv_attention as qkv_attention,
    varlen_attention as varlen_attention,
)
from saccade.testing.ordinary.convolution import (
    average_pool as average_pool,
    batch_norm as batch_norm,
    conv2d as conv2d,
)
from saccade.testing.ordinary.layers import (
    embedding as embedding,
    gelu as gelu,
    l2_normalize as l2_normalize,
    layer_norm as layer_norm,
    linear as linear,
    mlp as mlp,
    rms_norm as rms_norm,
)
from saccade.testing.ordinary.losses import (
    clip_loss as clip_loss,
    linear_cross_entropy as linear_cross_entropy,
    siglip_loss as siglip_loss,
    sigmoid_cross_entropy as sigmoid_cross_entropy,
    softmax_cross_entropy as softmax_cross_entropy,
)
from saccade.testing.ordinary.patches import (
    patch_embed as patch_embed,
)
