"""``saccade pretrain vit``: name pictures, or tell the colours of hidden patches.

Dosovitskiy et al. 2021, table 3 and appendix B.1.2; Zhai et al. 2022.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

import saccade
from saccade.models import transformer
from saccade.models.vit import ViTConfig, variant
from saccade.recipes.cuts import Broken, random_area, stretched
from saccade.recipes.data import open_source
from saccade.recipes.objectives import Objective
from saccade.recipes.optimization import Optimization
from saccade.recipes.pretraining import Training, preset_of, pretrain
from saccade.torch import ViT

CORRUPTED = 0.5  # of the patches; of these 0.8 are hidden, 0.1 show another patch, 0.1 stay
HIDDEN, SWAPPED = 0.8, 0.1
COLORS = 512  # 3 bits a channel


def _vit(name, peak, decay, *, schedule="linear", clip=None, dropout=0.0, head=None, **length):
    how = Optimization(peak=peak, weight_decay=decay, schedule=schedule, warm_up=10_000, clip=clip)
    config = variant(name)
    config = replace(config, representation=config.width) if head == "two layers" else config
    return config, Training(batch=4096, optimization=how, **length), dict(dropout=dropout)


def _scaling(name, batch=4096):
    how = Optimization(
        optimizer="adafactor", peak=8e-4, weight_decay=0.03, head_decay=3.0, schedule="rsqrt", warm_up=10_000,
        timescale=10_000, cool_down=50_000, clip=1.0,
    )  # fmt: skip
    config = variant(name, pooling="map", head_bias=-10.0)
    return config, Training(steps=1_000_000, batch=batch, optimization=how), dict(loss="sigmoid")


_IN21K = dict(dropout=0.1, head="two layers")
PRESETS = {
    "vit-b16-in21k": _vit("B/16", 1e-3, 0.03, epochs=90, **_IN21K),
    "vit-b32-in21k": _vit("B/32", 1e-3, 0.03, epochs=90, **_IN21K),
    "vit-l16-in21k": _vit("L/16", 1e-3, 0.03, epochs=90, **_IN21K),
    "vit-b16-in1k": _vit("B/16", 3e-3, 0.3, epochs=300, schedule="cosine", clip=1.0, dropout=0.1),
    "vit-l16-in1k": _vit("L/16", 3e-3, 0.3, epochs=300, schedule="cosine", clip=1.0, dropout=0.1),
    "vit-b16-jft": _vit("B/16", 8e-4, 0.1, epochs=7),
    "vit-b32-jft": _vit("B/32", 8e-4, 0.1, epochs=7),
    "vit-l32-jft": _vit("L/32", 6e-4, 0.1, epochs=7),
    "vit-l16-jft": _vit("L/16", 4e-4, 0.1, epochs=14),
    "vit-h14-jft": _vit("H/14", 3e-4, 0.1, epochs=14),
    "vit-b16-masked": (*_vit("B/16", 2e-4, 0.0, schedule="cosine", steps=1_000_000)[:2], dict(objective="masked")),
    "scaling-vit-s16": _scaling("s/16"),
    "scaling-vit-b16": _scaling("B/16"),
    "scaling-vit-l16": _scaling("L/16"),
    "scaling-vit-g14": _scaling("g/14", batch=32_768),
    "scaling-vit-G14": _scaling("G/14", batch=32_768),
    "vit-tiny": (
        ViTConfig(width=64, depth=4, heads=4, hidden=128, image_size=32, patch_size=4),
        Training(
            steps=1500, batch=96, optimization=Optimization(peak=3e-3, weight_decay=0.05, warm_up=50, clip=1.0)
        ),
        {},
    ),
}  # fmt: skip
OBJECTIVES = ("supervised", "masked")


class Classes(Objective):
    """Pictures and their labels: softmax or, as Scaling ViT, sigmoid cross entropy.

    ``cut`` are options of ``random_area``.
    """

    def __init__(self, model, names, loss="softmax", **cut):
        super().__init__(model, classes=names, loss=loss, **cut)
        self.names, self.kind, self.side, self.cut = names, loss, model.config.image_size, cut

    def prepare(self, sample, rng, training=True):
        classes = self.model.config.classes
        if sample.label is None or sample.label >= classes:
            raise Broken(sample.name, f"label {sample.label}, expected one of {classes} classes")
        picture = sample.picture
        cut = random_area(picture, self.side, rng, **self.cut) if training else stretched(picture, self.side)
        return cut, np.int64(sample.label)

    def forward(self, images, labels):
        return self._loss(self.model(images), labels)

    def measures(self, images, labels):
        logits = self.model(images)
        return {"loss": self._loss(logits, labels), "accuracy": (logits.argmax(1) == labels).float().mean()}

    def _loss(self, logits, labels):
        if self.kind == "softmax":
            return saccade.softmax_cross_entropy(logits, labels)
        return saccade.sigmoid_cross_entropy(logits, nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype))

    def facts(self):
        return {"classes": self.names}


class Patches(Objective):
    """Tell the mean colour, 3 bits a channel, of every corrupted patch.

    A ViT without classes; the linear map to colours is this objective's own, and the final norm sees every token.
    """

    def __init__(self, model, **cut):
        super().__init__(model, **cut)
        if model.config.pooling == "map":
            raise ValueError("Patches: pooling='map' would stay untrained, expected 'token' or 'mean'")
        self.side, self.cut = model.config.image_size, cut
        self.mask_token = nn.Parameter(torch.zeros(model.config.width))
        self.colors = nn.Linear(model.config.width, COLORS)
        for parameter in self.colors.parameters():
            nn.init.zeros_(parameter)

    def prepare(self, sample, rng, training=True):
        """The picture; for each patch the one whose embedding it shows, −1 for none; its colour, −100 if not asked."""
        whole = sample.picture
        picture = random_area(whole, self.side, rng, **self.cut) if training else stretched(whole, self.side)
        picture = np.ascontiguousarray(picture)
        shown, corrupted = corruption(self.model.config.grid[0] * self.model.config.grid[1], rng)
        return picture, shown, np.where(corrupted, mean_colors(picture, self.model.config.patch_size), -100)

    def forward(self, images, shown, colors):
        model, config = self.model, self.model.config

        def corrupt(x_bne):
            others = x_bne.gather(1, shown.clamp(min=0)[..., None].expand_as(x_bne))
            return torch.where(shown[..., None] < 0, self.mask_token, others)

        def run(name, *inputs):
            return model.run(name, *inputs, **({"patches": corrupt} if name == "embed" else {}))

        x_bne = transformer.run_blocks(run, run("embed", images), config)[:, config.prefix :]
        x_bne = transformer.norm(dict(model.pool.norm.named_parameters()), x_bne, saccade, config)
        return saccade.softmax_cross_entropy(self.colors(x_bne).flatten(0, 1), colors.flatten())


def corruption(n, rng):
    """For each of ``n`` patches the one that stands in its place, −1 for the mask; and which count as corrupted."""
    shown, corrupted = np.arange(n), np.zeros(n, bool)
    chosen = rng.permutation(n)[: max(1, round(CORRUPTED * n))]
    corrupted[chosen] = True
    for i in chosen:
        kind = rng.random()
        if kind < HIDDEN:
            shown[i] = -1
        elif kind < HIDDEN + SWAPPED and n > 1:
            shown[i] = (i + rng.integers(1, n)) % n
    return shown, corrupted


def mean_colors(picture, p):
    """The mean colour of each patch of p x p, 64 r + 8 g + b with 3 bits each: (h, w, 3) -> (n,)."""
    h, w, _ = picture.shape
    means = picture.reshape(h // p, p, w // p, p, 3).mean((1, 3))
    return (means // 32).astype(np.int64).reshape(-1, 3) @ np.array([64, 8, 1])


def run(
    source, out, *, preset="vit-b16-in21k", objective=None, classes=None, least=0.05, mirror=True, model=None,
    training=None, optimization=None, **options,
):  # fmt: skip
    """Pre-train a ViT.

    Args:
        source: as ``saccade.recipes.data.open_source`` takes it.
        out: folder of the run.
        preset: a name in ``PRESETS``.
        objective: "supervised" or "masked"; the preset's if None.
        classes: how many; those of the source if None.
        least, mirror: how pictures are cut at random (``saccade.recipes.cuts.random_area``).
        model, training, optimization: changes to the preset's ``ViTConfig``, ``Training`` and ``Optimization``.
        options: of ``saccade.recipes.pretraining.pretrain``.
    """
    config, how, own = preset_of(PRESETS, preset)
    own = {"objective": "supervised", "dropout": 0.0, **own}
    objective, dropout = objective or own["objective"], own["dropout"]
    if objective not in OBJECTIVES:
        raise ValueError(f"{objective=}, expected one of {', '.join(OBJECTIVES)}")
    pictures, how = open_source(source), how.changed(training, optimization)
    config, cut = replace(config, **(model or {})), dict(least=least, mirror=mirror)
    if objective == "masked":
        config = replace(config, classes=None, representation=None)
        return pretrain(Patches(ViT(config, seed=how.seed, dropout=dropout), **cut), pictures, out, how, **options)
    names = pictures.classes or [str(i) for i in range(classes or 0)]
    if not names:
        raise ValueError(f"{source} does not say its classes: put each class in a folder, or give their number")
    module = ViT(replace(config, classes=len(names)), seed=how.seed, dropout=dropout)
    return pretrain(Classes(module, names, own.get("loss", "softmax"), **cut), pictures, out, how, **options)
