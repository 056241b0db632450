"""What torch tensors need: operators with autograd, and the models as modules."""

from saccade.torch import ops as ops
from saccade.torch.modules import CLIP as CLIP, ImageGPT as ImageGPT, ViT as ViT
from saccade.torch.resnet import ResNet as ResNet
from saccade.torch.stages import Block as Block, Stage as Stage
