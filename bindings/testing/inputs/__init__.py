"""Hypothesis strategies for what whole operations take: ``((argument, …), {option: …})``, awkward on purpose.

Each strategy keeps to a function's ``Claims``. ``INPUTS`` has them by operation, ``PALETTE_INPUTS`` those
of a palette's functions.
"""

from saccade.testing.inputs.attention import attention_inputs, qkv_attention_inputs, varlen_attention_inputs
from saccade.testing.inputs.convolution import average_pool_inputs, batch_norm_inputs, conv2d_inputs
from saccade.testing.inputs.layers import (
    embedding_inputs,
    gelu_inputs,
    l2_normalize_inputs,
    layer_norm_inputs,
    linear_inputs,
    mlp_inputs,
    rms_norm_inputs,
)
from saccade.testing.inputs.losses import (
    clip_loss_inputs,
    linear_cross_entropy_inputs,
    siglip_loss_inputs,
    sigmoid_cross_entropy_inputs,
    softmax_cross_entropy_inputs,
)
from saccade.testing.inputs.palette import assign_inputs, fit_inputs, update_inputs
from saccade.testing.inputs.patches import patch_embed_inputs

PALETTE_INPUTS = {"assign": assign_inputs, "update": update_inputs, "fit": fit_inputs}
INPUTS = {
    "attention": attention_inputs,
    "qkv_attention": qkv_attention_inputs,
    "varlen_attention": varlen_attention_inputs,
    "patch_embed": patch_embed_inputs,
    "linear": linear_inputs,
    "embedding": embedding_inputs,
    "layer_norm": layer_norm_inputs,
    "rms_norm": rms_norm_inputs,
    "gelu": gelu_inputs,
    "mlp": mlp_inputs,
    "l2_normalize": l2_normalize_inputs,
    "conv2d": conv2d_inputs,
    "batch_norm": batch_norm_inputs,
    "average_pool": average_pool_inputs,
    "softmax_cross_entropy": softmax_cross_entropy_inputs,
    "sigmoid_cross_entropy": sigmoid_cross_entropy_inputs,
    "linear_cross_entropy": linear_cross_entropy_inputs,
    "clip_loss": clip_loss_inputs,
    "siglip_loss": siglip_loss_inputs,
}
