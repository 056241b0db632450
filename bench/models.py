"""Whole models as cases: a forward pass of a variant, from pictures or tokens to logits or embeddings.

``case("model", 1, variant="vit-B/16")`` is one picture through that ViT; of a CLIP its image tower is timed, of an
ImageGPT the logits of all tokens. Pictures come normalised, as b h w c; parameters are drawn from one seed, and none is
0 or 1 throughout, as papers begin. A provider is held to the definition in float64 on one item of the batch, by the
error of ``ORDINARY`` passes in the case's dtype, all but the first with rounding errors drawn anew; of two if a pass
has more than ``LONG`` operations.
"""

import functools
import math
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

from saccade import reference
from saccade.files import replacing
from saccade.models import clip, imagegpt, vit
from saccade.models.initialization import draw
from saccade.models.variants import VARIANTS, cost, module_of
from saccade.testing import gate
from saccade.testing.opset import Ordinary
from saccade.testing.ways import Way

ORDINARY, LONG = 4, 1e11
QUERIES = 32


def config_of(variant):
    """The config of a name in ``saccade.models.variants``, for pictures that are normalised already.

    Raises:
        ValueError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"bench: {variant=}, expected one of {', '.join(VARIANTS)}")
    config = VARIANTS[variant]
    if isinstance(config, clip.CLIPConfig):
        return replace(config, image=replace(config.image, mean=None, std=None))
    return replace(config, mean=None, std=None) if isinstance(config, vit.ViTConfig) else config


@functools.lru_cache(maxsize=2)
def parameters_of(variant, dtype):
    """Parameters by our names, as NumPy arrays of a dtype's name."""
    config, rng = config_of(variant), np.random.default_rng(0)
    found = draw(module_of(config).layout(config), 0)
    for name, x in found.items():
        if x.ndim == 1 or not x.any():  # biases of 0 and scales of 1 hide faults, and heads of 0 everything
            found[name] = x + 0.02 * rng.standard_normal(x.shape)
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return {name: x.astype(dtype) for name, x in found.items()}


@functools.lru_cache(maxsize=1)
def _widened(variant, dtype):
    return {name: x.astype(np.float64) for name, x in parameters_of(variant, dtype).items()}


def inputs(rng, dtype, variant, b):
    """The arguments of a case: (tokens,) or (pictures,)."""
    config = config_of(variant)
    if isinstance(config, imagegpt.ImageGPTConfig):
        return (rng.integers(0, config.colors, (b, config.length)),)
    image = config.image if isinstance(config, clip.CLIPConfig) else config
    side = (image.image_size,) * 2 if isinstance(image.image_size, int) else image.image_size
    return (rng.standard_normal((b, *side, image.channels)).astype(dtype),)


def work(variant, b):
    """(multiplications of all products, the parameters that they read) of a case."""
    config = config_of(variant)
    shapes = {name: shape for name, (shape, _) in module_of(config).layout(config).items()}
    read = [name for name in shapes if not isinstance(config, clip.CLIPConfig) or name.startswith("image")]
    return b * cost(config).flops / 2, sum(math.prod(shapes[name]) for name in read)


def forward(parameters, x, config, ops):
    """The pass that is timed, with any op set."""
    if isinstance(config, clip.CLIPConfig):
        return clip.encode_images(parameters, x, config, ops)
    model = imagegpt if isinstance(config, imagegpt.ImageGPTConfig) else vit
    return model.forward(parameters, x, config, ops)


class InParts:
    """An op set whose self-attentions take ``QUERIES`` queries at a time: their scores stay in the caches, and no query
    of a causal one meets keys that come later."""

    def __init__(self, ops):
        self.ops = ops

    def __getattr__(self, name):
        return getattr(self.ops, name)

    def qkv_attention(self, qkv, *, causal=False):
        query, key, value = np.moveaxis(qkv, (2, 3), (0, 2))
        n = qkv.shape[1]
        parts = []
        for start in range(0, n, QUERIES):
            stop = min(start + QUERIES, n)
            seen = slice(stop if causal else n)
            parts.append(self.ops.attention(query[:, :, start:stop], key[:, :, seen], value[:, :, seen], causal=causal))
        return np.moveaxis(np.concatenate(parts, 2), 1, 2)


class Standard:
    """What a provider is held to, see the module; kept at ``path`` for the next who asks, if given."""

    def __init__(self, variant, dtype, x, path=None):
        if path is not None and Path(path).exists():
            with np.load(path) as kept:
                self.truth, *self.ordinary = kept["results"]
            return
        config, parameters = config_of(variant), parameters_of(variant, dtype)
        exact = _widened(variant, dtype)
        wide = x if x.dtype.kind == "i" else x.astype(np.float64)
        kind, noise = next(iter(parameters.values())).dtype, np.random.default_rng(0)
        passes = 2 if 2 * work(variant, 1)[0] > LONG else ORDINARY
        ways = [Way("online", kind, one, keys=256) for one in (None, *[noise] * (passes - 1))]
        self.truth = forward(exact, wide, config, InParts(reference))
        self.ordinary = [forward(parameters, x, config, InParts(Ordinary(way))) for way in ways]
        if path is not None:
            with replacing(path) as file:
                np.savez(file, results=np.array([self.truth, *self.ordinary], np.float64))

    def judge(self, outputs):
        """A list of one ``gate.Judgement``."""
        (out,) = outputs
        return [gate.judge_one("output", out, self.truth, self.ordinary)]
