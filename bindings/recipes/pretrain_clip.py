"""``saccade pretrain clip``: pictures and captions into one space, by CLIP's loss or SigLIP's, or by the slower
objectives of ``saccade.recipes.captions``.

Radford et al. 2021, table 18 and sections 2.4 and 2.5; Zhai et al., "Sigmoid Loss for Language Image Pre-Training",
2023.
"""

from dataclasses import replace

import numpy as np
import torch

import saccade
from saccade import models
from saccade.models import clip, vit
from saccade.models.resnet import ResNetConfig
from saccade.models.transformer import under
from saccade.recipes import saved
from saccade.recipes.captions import Captioned, Captions, Words, tokenizer_of
from saccade.recipes.data import open_source
from saccade.recipes.objectives import synchronized
from saccade.recipes.optimization import Optimization
from saccade.recipes.pretraining import Training, preset_of, pretrain
from saccade.recipes.resuming import random_state, set_random_state
from saccade.torch import CLIP, ring


def _paper(config, peak, epochs=32):
    adam = dict(betas=(0.9, 0.98), eps=1e-6)
    adam = dict(betas=(0.9, 0.999), eps=1e-8) if isinstance(config.image, ResNetConfig) else adam
    how = Optimization(peak=peak, weight_decay=0.2, decay_positions=True, warm_up=2000, **adam)
    return config, Training(epochs=epochs, batch=32_768, optimization=how)


def _tiny(**siglip):
    tower = dict(width=64, heads=4, hidden=128)
    image = clip.image_config(depth=4, image_size=32, patch_size=8, pooling="map" if siglip else "token", **tower)
    config = clip.CLIPConfig(embed=64, image=image, text=clip.TextConfig(depth=2, context=32, **tower), **siglip)
    how = Optimization(peak=1e-3, betas=(0.9, 0.98), weight_decay=0.05, warm_up=50, clip=1.0)
    return config, Training(steps=1500, batch=64, optimization=how)


_RATES = {"RN50x16": 4e-4, "RN50x64": 3.6e-4, "ViT-L/14": 4e-4}
# SigLIP's sizes, under CLIP's optimisation
PRESETS = {
    **{f"clip-{_name.lower().replace('/', '')}": _paper(clip.variant(_name), _RATES.get(_name, 5e-4))
       for _name in clip.VARIANTS},
    "clip-vit-l14@336px": _paper(clip.variant("ViT-L/14@336px"), 2e-5, epochs=1),  # goes on from L/14
    **{f"siglip-vit-{_name.lower().replace('/', '')}": _paper(clip.siglip_variant(_name), 5e-4)
       for _name in clip.SIGLIP_VARIANTS},
    "clip-tiny": _tiny(),
    "siglip-tiny": _tiny(logit_scale=np.log(10).item(), logit_bias=-10.0),
}  # fmt: skip


class Pairs(Captioned):
    """Pictures and captions, each to be told from all others of the batch, whatever rank they are on.

    Attributes:
        gathers: whether each rank gets the embeddings of all at once, instead of one rank's after the other's: False
            until set.
    """

    gathers = False
    tables = ("model.text.embed.weight",)

    def forward(self, images, tokens):
        return self.model(images, tokens)

    def measures(self, images, tokens):
        """The loss of this rank's batch alone, and how many pictures are nearest to their own caption in it."""
        images, texts, *factors = self(images, tokens)
        loss = saccade.clip_loss if self.model.config.logit_bias is None else saccade.siglip_loss
        return {"loss": loss(images, texts, *factors), "accuracy": self.accuracy(images @ texts.T)}

    def loss(self, *outputs):
        """Of the embeddings of a whole batch, or of a rank's share of one."""
        loss = ring.clip_loss if self.model.config.logit_bias is None else ring.siglip_loss
        return loss(*outputs, gather=self.gathers)

    def backward(self, call, parts, scaled):
        """Gradients of the loss of the whole batch, also where it is computed in parts.

        Embeddings of all parts come first, without what a gradient needs; then the loss and its gradients for the
        embeddings; then each part once more, from the same random state, to take those further. Gao et al., "Scaling
        Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021.
        """
        if len(parts) == 1:
            loss = self.loss(*call(*parts[0]))
            scaled(loss).backward()
            return loss.detach()
        device = next(self.parameters()).device
        statistics = [(x, x.clone()) for x in self.buffers()]  # which each part is to change once
        states, found = [], []
        with torch.no_grad():
            for part in parts:
                states.append(random_state(device))
                found.append(call(*part))
        pairs = [torch.cat(x).requires_grad_() for x in list(zip(*found, strict=True))[:2]]
        factors = [x.detach().requires_grad_() for x in found[0][2:]]
        loss = self.loss(*pairs, *factors)
        of_images, of_texts, *of_factors = torch.autograd.grad(scaled(loss), [*pairs, *factors])
        for x, before in statistics:
            x.copy_(before)
        each = of_images.chunk(len(parts)), of_texts.chunk(len(parts)), states, parts
        for i, (of_image, of_text, state, part) in enumerate(zip(*each, strict=True)):
            last = i == len(parts) - 1
            set_random_state(state, device)
            with synchronized(call, last):
                others = of_factors if last else [torch.zeros_like(x) for x in of_factors]
                torch.autograd.backward(call(*part), [of_image, of_text, *others])
        return loss.detach()


OBJECTIVES = {"contrastive": Pairs, "bag-of-words": Words, "caption": Captions}


def begun(start, image_size):
    """(config, parameters, facts) of a CLIP to go on from, its ViT's positions interpolated for ``image_size``.

    Radford et al. 2021, section 2.5: ViT-L/14@336px is ViT-L/14 after one more epoch at a higher resolution.
    """
    beside = saved.facts_of(start)
    parameters, config = models.load(start, dtype=np.float32)
    if not isinstance(config, clip.CLIPConfig):
        raise ValueError(f"{start} is no CLIP")
    if config.image.image_size != image_size:
        if isinstance(config.image, ResNetConfig):
            raise ValueError(f"{start}: a ResNet of {config.image.image_size=}, expected images of that size")
        tower, image = vit.resize(under(parameters, "image"), config.image, image_size, method="antialiased")
        parameters |= {f"image.{name}": x for name, x in tower.items()}
        config = replace(config, image=image)
    return config, parameters, beside


def run(
    source, out, *, preset="clip-vit-b32", start=None, objective=None, tokenizer=None, model=None, training=None,
    optimization=None, source_options=None, gather=False, **options,
):  # fmt: skip
    """Pre-train a CLIP or, with a preset that begins with "siglip", a SigLIP.

    Args:
        source: of pictures with captions, as ``saccade.recipes.data.open_source`` takes it.
        out: folder of the run.
        preset: a name in ``PRESETS``.
        start: a checkpoint to go on from, whose sizes count instead of the preset's but for the side of its images,
            or None.
        objective: "contrastive", "bag-of-words" or "caption" (``saccade.recipes.captions``); if None that of
            ``start``, or "contrastive".
        tokenizer: "clip", "bytes" or a file of merges; if None that of ``start``, or "bytes" for the tiny presets and
            "clip" for others.
        model: changes to the preset, "image.depth" or "text.width" say, or "embed"; with ``start``
            "image.image_size" alone.
        training, optimization: changes to the preset's ``Training`` and ``Optimization``.
        source_options: as ``caption_column`` of a ``Table``.
        gather: whether each rank gets the embeddings of all at once (``Pairs.gathers``).
        options: of ``saccade.recipes.pretraining.pretrain``.
    """
    config, how = preset_of(PRESETS, preset)
    how, parameters = how.changed(training, optimization), None
    if start is not None:
        if unknown := (model or {}).keys() - {"image.image_size"}:
            raise ValueError(f"{', '.join(sorted(unknown))}: {start} has its own, expected image.image_size alone")
        image_size = (model or {}).get("image.image_size", config.image.image_size)
        config, parameters, own = begun(start, image_size)
        tokenizer, objective, model = tokenizer or own.get("tokenizer"), objective or own.get("objective"), None
    if (objective := objective or "contrastive") not in OBJECTIVES:
        raise ValueError(f"{objective=}, expected one of {', '.join(OBJECTIVES)}")
    if config.logit_bias is not None and objective != "contrastive":
        raise ValueError(f"{objective=} of a SigLIP, expected contrastive")
    if objective == "bag-of-words" and start is None:
        config = replace(config, text=replace(config.text, kind="cbow"))
    tokenizer = tokenizer or ("bytes" if preset.endswith("-tiny") else "clip")
    vocabulary = len(tokenizer_of(tokenizer))
    if start is not None and config.text.vocabulary != vocabulary:
        raise ValueError(f"{start} has {config.text.vocabulary} token ids, the tokenizer {tokenizer!r} {vocabulary}")
    changes = {"text.vocabulary": vocabulary, **(model or {})}
    towers = {name: replace(getattr(config, name), **under(changes, name)) for name in ("image", "text")}
    config = replace(config, **towers, **{name: x for name, x in changes.items() if "." not in name})
    made = OBJECTIVES[objective](CLIP(config, parameters=parameters, seed=how.seed), tokenizer)
    if gather:
        if objective != "contrastive":
            raise ValueError(f"{gather=} with {objective=}, expected contrastive")
        made.gathers = True
    return pretrain(made, open_source(source, **(source_options or {})), out, how, **options)
