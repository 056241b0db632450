"""The operations on tensors, by the names that ``saccade.ops`` looks up."""

from saccade.torch.attention import attention as attention
from saccade.torch.attention import qkv_attention as qkv_attention
from saccade.torch.attention import varlen_attention as varlen_attention
from saccade.torch.layers import embedding as embedding
from saccade.torch.layers import gelu as gelu
from saccade.torch.layers import l2_normalize as l2_normalize
from saccade.torch.layers import layer_norm as layer_norm
from saccade.torch.layers import linear as linear
from saccade.torch.layers import mlp as mlp
from saccade.torch.layers import rms_norm as rms_norm
from saccade.torch.losses import clip_loss as clip_loss
from saccade.torch.losses import linear_cross_entropy as linear_cross_entropy
from saccade.torch.losses import siglip_loss as siglip_loss
from saccade.torch.losses import sigmoid_cross_entropy as sigmoid_cross_entropy
from saccade.torch.losses import softmax_cross_entropy as softmax_cross_entropy
from saccade.torch.patches import average_pool as average_pool
from saccade.torch.patches import batch_norm as batch_norm
from saccade.torch.patches import conv2d as conv2d
from saccade.torch.patches import patch_embed as patch_embed
