"""What torch tensors need: operators with autograd, and the models as modules."""

from saccade.torch import ops as ops
