"""Small models with random weights in files, and pictures to judge them on."""

from dataclasses import replace

import numpy as np
import torch

from saccade.models import clip, imagegpt, vit
from saccade.palette import Palette
from saccade.recipes import saved
from saccade.tokenizer import Tokenizer
from saccade.torch import CLIP, ImageGPT, ViT

TOWER = dict(width=16, depth=2, heads=2, hidden=32)
COLORS = ("red", "green", "blue")


def shaken(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def write_models(folder):
    """Pictures whose class is their bright channel, to train on and to test; a model of each kind; the folder."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("test", 30)):
        labels = np.arange(count) % 3
        images = rng.integers(0, 120, (count, 10, 12, 3))
        images[np.arange(count), :, :, labels] += 130
        np.savez(folder / f"{name}.npz", images=images.astype(np.uint8), labels=labels, classes=COLORS)
    palette = Palette(rng.uniform(0, 255, (12, 3)))
    pixels = imagegpt.ImageGPTConfig(**TOWER, colors=12, length=16)
    saved.save(shaken(ImageGPT(pixels)), folder / "pixels", palette=palette)
    masked = replace(pixels, objective="masked", causal=None)
    saved.save(shaken(ImageGPT(masked)), folder / "masked", palette=palette)
    for pooling in ("token", "mean", "map"):
        config = vit.ViTConfig(**TOWER, image_size=8, patch_size=4, classes=3, pooling=pooling, representation=6)
        saved.save(shaken(ViT(config)), folder / pooling, classes=COLORS)
    image = clip.image_config(**TOWER, image_size=8, patch_size=4)
    text = clip.TextConfig(**TOWER, vocabulary=len(Tokenizer()), context=20)
    saved.save(shaken(CLIP(clip.CLIPConfig(embed=8, image=image, text=text))), folder / "clip", tokenizer="bytes")
    return folder
