"""``saccade pretrain imagegpt``: predict the next pixel, or masked ones (Chen et al. 2020)."""

from dataclasses import replace

import numpy as np

from saccade.models.imagegpt import ImageGPTConfig, variant
from saccade.palette import Palette
from saccade.recipes.cuts import central, random_scaled_square
from saccade.recipes.data import open_source
from saccade.recipes.objectives import Objective
from saccade.recipes.optimization import Optimization
from saccade.recipes.pretraining import Training, preset_of, pretrain
from saccade.torch import ImageGPT

MASKED = 0.15  # the share of pixels that a masked model must tell (section 3.1; more was worse)


def _paper(size, peak, batch=128, steps=1_000_000, side=32):
    # one epoch of warm-up, which is 9,609 steps of the 96 % of ImageNet that the paper trains on
    how = Optimization(peak=peak, betas=(0.9, 0.95), warm_up=9609)
    return variant(size, length=side**2), Training(steps=steps, batch=batch, optimization=how)


# Of the learning rates only S's was found confirmed; XL sees 64 x 64 pixels. Tiny is the demonstration's model.
PRESETS = {
    "igpt-s": _paper("S", 3e-3),
    "igpt-m": _paper("M", 3e-3),
    "igpt-l": _paper("L", 1e-3),
    "igpt-xl": _paper("XL", 3e-4, batch=64, steps=2_000_000, side=64),
    "igpt-tiny": (
        ImageGPTConfig(width=128, depth=4, heads=4, length=256),
        Training(steps=320, batch=32, optimization=Optimization(peak=3e-3, betas=(0.9, 0.95), warm_up=50, clip=1.0)),
    ),
}
OBJECTIVES = ("autoregressive", "bert")


class Pixels(Objective):
    """Tokens of a palette: mean nats per pixel, of all from those before, or of masked ones from the others."""

    tables = ("model.embed.weight",)

    def __init__(self, model, palette):
        super().__init__(model, palette=palette.centers.tolist())
        self.palette, self.side = palette, round(model.config.length**0.5)

    def prepare(self, sample, rng, training=True):
        cut = random_scaled_square(sample.picture, self.side, rng) if training else central(sample.picture, self.side)
        tokens = self.palette.encode(cut).ravel().astype(np.int64)
        if self.model.config.causal:
            return (tokens,)
        mask = rng.random(len(tokens)) < MASKED
        mask[rng.integers(len(tokens))] |= not mask.any()  # a picture without a masked pixel has no loss
        return tokens, mask

    def forward(self, tokens, mask=None):
        return self.model.loss(tokens, mask)

    def facts(self):
        return {"palette": self.palette}


def run(
    source, out, *, palette, preset="igpt-s", objective="autoregressive", model=None, training=None, optimization=None,
    **options,
):  # fmt: skip
    """Pre-train an ImageGPT.

    Args:
        source: as ``saccade.recipes.data.open_source`` takes it.
        out: folder of the run.
        palette: file of the palette that ``saccade palette fit`` wrote.
        preset: a name in ``PRESETS``.
        objective: "autoregressive" or "bert".
        model, training, optimization: changes to the preset's ``ImageGPTConfig``, ``Training`` and ``Optimization``.
        options: of ``saccade.recipes.pretraining.pretrain``.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"{objective=}, expected one of {', '.join(OBJECTIVES)}")
    config, how = preset_of(PRESETS, preset)
    palette = Palette.load(palette)
    kind = "masked" if objective == "bert" else "autoregressive"
    config = replace(config, **{"colors": len(palette), "objective": kind, "causal": None, **(model or {})})
    if round(config.length**0.5) ** 2 != config.length:
        raise ValueError(f"{config.length=}, expected the square of a picture's side")
    how = how.changed(training, optimization)
    return pretrain(Pixels(ImageGPT(config, seed=how.seed), palette), open_source(source), out, how, **options)
