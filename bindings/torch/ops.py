"""The operations on tensors, by the names that ``saccade.ops`` looks up."""

from saccade.torch.attention import attention as attention
from saccade.torch.attention import qkv_attention as qkv_attention
from saccade.torch.attention import varlen_attention as varlen_attention
