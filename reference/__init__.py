"""The definitions of every operation, forward and gradient, in NumPy alone: what the kernels are held to."""

from saccade.reference.analysis import (
    attention_rollout as attention_rollout,
)
from saccade.reference.analysis import (
    filter_components as filter_components,
)
from saccade.reference.analysis import (
    logistic_probe_loss as logistic_probe_loss,
)
from saccade.reference.analysis import (
    mean_attention_distance as mean_attention_distance,
)
from saccade.reference.analysis import (
    position_similarity as position_similarity,
)
from saccade.reference.analysis import (
    ridge_few_shot as ridge_few_shot,
)
from saccade.reference.arrays import (
    broadcast_to as broadcast_to,
)
from saccade.reference.arrays import (
    concatenate as concatenate,
)
from saccade.reference.arrays import (
    identity as identity,
)
from saccade.reference.arrays import (
    mean as mean,
)
from saccade.reference.arrays import (
    take as take,
)
from saccade.reference.arrays import (
    tanh as tanh,
)
from saccade.reference.attention import (
    attention as attention,
)
from saccade.reference.attention import (
    attention_backward as attention_backward,
)
from saccade.reference.attention import (
    attention_forward as attention_forward,
)
from saccade.reference.attention import (
    attention_weights as attention_weights,
)
from saccade.reference.attention import (
    qkv_attention as qkv_attention,
)
from saccade.reference.attention import (
    qkv_attention_backward as qkv_attention_backward,
)
from saccade.reference.attention import (
    qkv_attention_forward as qkv_attention_forward,
)
from saccade.reference.attention import (
    sum_to_shape as sum_to_shape,
)
from saccade.reference.attention import (
    varlen_attention as varlen_attention,
)
from saccade.reference.attention import (
    varlen_attention_backward as varlen_attention_backward,
)
from saccade.reference.attention import (
    varlen_attention_forward as varlen_attention_forward,
)
from saccade.reference.attention import (
    visible as visible,
)
from saccade.reference.convolution import (
    average_pool as average_pool,
)
from saccade.reference.convolution import (
    average_pool_backward as average_pool_backward,
)
from saccade.reference.convolution import (
    average_pool_forward as average_pool_forward,
)
from saccade.reference.convolution import (
    batch_norm as batch_norm,
)
from saccade.reference.convolution import (
    batch_norm_backward as batch_norm_backward,
)
from saccade.reference.convolution import (
    batch_norm_forward as batch_norm_forward,
)
from saccade.reference.convolution import (
    conv2d as conv2d,
)
from saccade.reference.convolution import (
    conv2d_backward as conv2d_backward,
)
from saccade.reference.convolution import (
    conv2d_forward as conv2d_forward,
)
from saccade.reference.layers import (
    embedding as embedding,
)
from saccade.reference.layers import (
    embedding_backward as embedding_backward,
)
from saccade.reference.layers import (
    embedding_forward as embedding_forward,
)
from saccade.reference.layers import (
    erfc as erfc,
)
from saccade.reference.layers import (
    gelu as gelu,
)
from saccade.reference.layers import (
    gelu_backward as gelu_backward,
)
from saccade.reference.layers import (
    gelu_forward as gelu_forward,
)
from saccade.reference.layers import (
    l2_normalize as l2_normalize,
)
from saccade.reference.layers import (
    l2_normalize_backward as l2_normalize_backward,
)
from saccade.reference.layers import (
    l2_normalize_forward as l2_normalize_forward,
)
from saccade.reference.layers import (
    layer_norm as layer_norm,
)
from saccade.reference.layers import (
    layer_norm_backward as layer_norm_backward,
)
from saccade.reference.layers import (
    layer_norm_forward as layer_norm_forward,
)
from saccade.reference.layers import (
    linear as linear,
)
from saccade.reference.layers import (
    linear_backward as linear_backward,
)
from saccade.reference.layers import (
    linear_forward as linear_forward,
)
from saccade.reference.layers import (
    mlp as mlp,
)
from saccade.reference.layers import (
    mlp_backward as mlp_backward,
)
from saccade.reference.layers import (
    mlp_forward as mlp_forward,
)
from saccade.reference.layers import (
    rms_norm as rms_norm,
)
from saccade.reference.layers import (
    rms_norm_backward as rms_norm_backward,
)
from saccade.reference.layers import (
    rms_norm_forward as rms_norm_forward,
)
from saccade.reference.losses import (
    clip_loss as clip_loss,
)
from saccade.reference.losses import (
    clip_loss_backward as clip_loss_backward,
)
from saccade.reference.losses import (
    clip_loss_forward as clip_loss_forward,
)
from saccade.reference.losses import (
    linear_cross_entropy as linear_cross_entropy,
)
from saccade.reference.losses import (
    linear_cross_entropy_backward as linear_cross_entropy_backward,
)
from saccade.reference.losses import (
    linear_cross_entropy_forward as linear_cross_entropy_forward,
)
from saccade.reference.losses import (
    log_softmax as log_softmax,
)
from saccade.reference.losses import (
    siglip_loss as siglip_loss,
)
from saccade.reference.losses import (
    siglip_loss_backward as siglip_loss_backward,
)
from saccade.reference.losses import (
    siglip_loss_forward as siglip_loss_forward,
)
from saccade.reference.losses import (
    sigmoid as sigmoid,
)
from saccade.reference.losses import (
    sigmoid_cross_entropy as sigmoid_cross_entropy,
)
from saccade.reference.losses import (
    sigmoid_cross_entropy_backward as sigmoid_cross_entropy_backward,
)
from saccade.reference.losses import (
    sigmoid_cross_entropy_forward as sigmoid_cross_entropy_forward,
)
from saccade.reference.losses import (
    softmax_cross_entropy as softmax_cross_entropy,
)
from saccade.reference.losses import (
    softmax_cross_entropy_backward as softmax_cross_entropy_backward,
)
from saccade.reference.losses import (
    softmax_cross_entropy_forward as softmax_cross_entropy_forward,
)
from saccade.reference.losses import (
    softplus as softplus,
)
from saccade.reference.patches import (
    patch_embed as patch_embed,
)
from saccade.reference.patches import (
    patch_embed_backward as patch_embed_backward,
)
from saccade.reference.patches import (
    patch_embed_forward as patch_embed_forward,
)
from saccade.reference.patches import (
    patchify as patchify,
)
from saccade.reference.patches import (
    unpatchify as unpatchify,
)
from saccade.reference.positions import (
    interpolate_positions as interpolate_positions,
)
from saccade.reference.positions import (
    interpolation_matrix as interpolation_matrix,
)
from saccade.reference.positions import (
    sincos2d_positions as sincos2d_positions,
)
