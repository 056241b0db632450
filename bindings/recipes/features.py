"""Features of trained models, layer by layer: what probes and few-shot classifiers are fitted to."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

import saccade
from saccade.models import imagegpt, vit
from saccade.models.resnet import ResNetConfig
from saccade.recipes import saved
from saccade.recipes.cuts import Broken, central, stretched
from saccade.recipes.data import open_source
from saccade.recipes.loading import once
from saccade.recipes.palettes import reporting
from saccade.recipes.pretrain_imagegpt import MASKED
from saccade.recipes.progress import progress_bar

BATCH = 64


class Extractor:
    """The features of a saved model.

    Layer l is what block l reads, the output of its first norm: the mean over the sequence for ImageGPT (section 2.4
    of its paper; a masked model is masked here too, as in training), the class token or else the mean over the patches
    for a ViT. The last layer, ``depth``, is what the model itself would classify or project: ImageGPT's mean of the
    final norm, a ViT's pooled and pre-logits vector. A ResNet has its last layer alone.

    Args:
        path: file that a recipe wrote.
        device: "cpu" or "cuda"; a GPU if there is one.
    """

    def __init__(self, path, device=None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.facts = saved.load(path)
        self.model.to(self.device)
        self.tower = getattr(self.model, "image", self.model)
        self.config = self.tower.config
        if self.is_imagegpt:
            self.palette = self.facts["palette"]
        only_last = isinstance(self.config, ResNetConfig)
        self.layers = [self.config.depth] if only_last else list(range(self.config.depth + 1))

    @property
    def is_imagegpt(self):
        """Whether pictures become tokens."""
        return isinstance(self.config, imagegpt.ImageGPTConfig)

    @property
    def usual(self):
        """The layer that is taken if none is asked for: the last; ImageGPT's middle, about where it is best."""
        return self.config.depth // 2 if self.is_imagegpt else self.config.depth

    def preparing(self, masks=1):
        """``prepare`` with so many masks of each picture."""
        if masks > 1 and not (self.is_imagegpt and not self.config.causal):
            raise ValueError(f"{masks=}, expected 1: masks are for an ImageGPT with objective='masked'")
        return partial(self.prepare, masks=masks)

    def prepare(self, sample, rng, masks=1):
        """The picture as the model evaluates it, the masks of a masked ImageGPT, (masks, n), and the label."""
        if sample.label is None:
            raise Broken(sample.name, "no label")
        label = np.int64(sample.label)
        if not self.is_imagegpt:
            side = self.config.image_size
            return (stretched if self.tower is self.model else central)(sample.picture, side), label
        tokens = self.palette.encode(central(sample.picture, round(self.config.length**0.5))).ravel()
        mask = () if self.config.causal else (rng.random((masks, len(tokens))) < MASKED,)
        return tokens.astype(np.int64), *mask, label

    @torch.no_grad()
    def __call__(self, inputs, layers):
        """Features of the layers for a batch without its labels, a list of float32 (b, e); (b, masks, e) of several
        masks."""
        runs = [self._features(*tensors, layers=layers) for tensors in self._masked(inputs)]
        found = [torch.stack(of_layer, 1).float().cpu().numpy() for of_layer in zip(*runs, strict=True)]
        return [x[:, 0] for x in found] if len(runs) == 1 else found

    def logits(self, inputs):
        """What the model's own classifier says of a batch without its labels, float32 (b, masks, classes)."""
        compute = self.model.classify if self.is_imagegpt else self.model
        return torch.stack([compute(*tensors) for tensors in self._masked(inputs)], 1).float().cpu().numpy()

    def _masked(self, inputs):
        """The tensors of a batch, once for each mask."""
        first, *masks = [torch.from_numpy(x).to(self.device) for x in inputs]
        return [(first, mask) for mask in masks[0].unbind(1)] if masks else [(first,)]

    def _features(self, inputs, mask=None, *, layers):
        if self.is_imagegpt:
            return self.tower.features(inputs, layers, mask)
        if isinstance(self.config, ResNetConfig):
            return [self.tower(inputs)]
        wanted, config = {}, self.config

        def look(i):
            def hook(block, arguments):
                x_bne = block.first_norm(arguments[0])
                wanted[i] = x_bne[:, 0] if config.prefix else saccade.mean(x_bne, 1)

            return hook

        blocks = [(i, self.tower.blocks[i]) for i in layers if i < config.depth]
        hooks = [block.register_forward_pre_hook(look(i)) for i, block in blocks]
        try:
            wanted[config.depth] = vit.compose(self.tower.run, inputs, replace(config, classes=None))
        finally:
            for hook in hooks:
                hook.remove()
        return [wanted[layer] for layer in layers]

    def of(self, source, layers, *, masks=1, workers=0, console=None, skipped=None):
        """(features of the layers, a list of (n, e), or (n, masks, e) of several masks, and the labels (n,)) of all
        samples of a source."""
        console, prepare = console or Console(), self.preparing(masks)
        found, labels, skipped = [], [], skipped or reporting(console)
        with progress_bar(f"Features of {Path(str(source.path)).name}", console) as progress:
            jobs = progress(source.in_order())
            for *inputs, label in once(source, jobs, prepare, BATCH, skipped=skipped, workers=workers):
                found.append(self(inputs, layers))
                labels.append(label)
        if not labels:
            raise ValueError(f"{source.path}: none of its pictures can be used")
        return [np.concatenate(x) for x in zip(*found, strict=True)], np.concatenate(labels)


def labelled(paths, extractor, layers, *, masks=1, workers=0, console=None):
    """Features and labels of several sources that have the same classes, and the classes; of the last source under so
    many masks."""
    sources = [open_source(path) for path in paths]
    for path, source in zip(paths, sources, strict=True):
        if source.classes is None:
            raise ValueError(f"{path} has no classes: put each in a folder of its own")
        if source.classes != sources[0].classes:
            raise ValueError(
                f"{path} has the classes {source.classes}, expected {sources[0].classes} as {paths[0]} has"
            )
    of_each = [1] * (len(sources) - 1) + [masks]
    found = [
        extractor.of(source, layers, masks=many, workers=workers, console=console)
        for source, many in zip(sources, of_each, strict=True)
    ]
    return found, sources[0].classes
