"""Palettes of tensors."""

import torch

from saccade.torch.arrays import call


def assign(colors, centers):
    """The nearest of ``centers``, a NumPy array on the grid, for each colour: on the tensor's device."""
    return call("assign", None, colors.device, colors, torch.from_numpy(centers).to(colors.device))
