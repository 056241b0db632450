"""The operations on tensors, by the names that ``saccade.ops`` looks up."""

from saccade.torch.attention import (
    attention as attention,
    qkv_attention as qkv_attention,
    varlen_attention as varlen_attention,
)
from saccade.torch.layers import (
    embedding as embedding,
    gelu as gelu,
    l2_normalize as l2_normalize,
    layer_norm as layer_norm,
    linear as linear,
    mlp as mlp,
    rms_norm as rms_norm,
)
from saccade.torch.losses import (
    clip_loss as clip_loss,
    linear_cross_entropy as linear_cross_entropy,
    siglip_loss as siglip_loss,
    sigmoid_cross_entropy as sigmoid_cross_entropy,
    softmax_cross_entropy as softmax_cross_entropy,
)
from saccade.torch.patches import (
    average_pool as average_pool,
    batch_norm as batch_norm,
    conv2d as conv2d,
    patch_embed as patch_embed,
)
