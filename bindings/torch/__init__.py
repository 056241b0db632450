"""What torch tensors need: operators with autograd, and the models as modules."""

from saccade.torch import ops as ops
from saccade.torch.modules import CLIP as CLIP
from saccade.torch.modules import Block as Block
from saccade.torch.modules import ImageGPT as ImageGPT
from saccade.torch.modules import Stage as Stage
from saccade.torch.modules import ViT as ViT
