"""What torch tensors need: operators with autograd, and the models as modules."""

from saccade.torch import ops as ops
from saccade.torch.modules import CLIP as CLIP, Block as Block, ImageGPT as ImageGPT, Stage as Stage, ViT as ViT
from saccade.torch.resnet import ResNet as ResNet
