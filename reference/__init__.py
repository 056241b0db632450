"""The definitions of every operation, forward and gradient, in NumPy alone: what the kernels are held to."""

from saccade.reference.attention import (
    attention,
    attention_backward,
    attention_forward,
    attention_weights,
    qkv_attention,
    qkv_attention_backward,
    qkv_attention_forward,
    varlen_attention,
    varlen_attention_backward,
    varlen_attention_forward,
)
