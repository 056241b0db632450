"""ImageGPT: palette tokens b n -> logits b n k.

Chen et al., "Generative Pretraining from Pixels", 2020. Stages and their parameters:

    embed       weight (k, e), sos (e,), positions (n, e)
    blocks.<i>  see ``saccade.models.transformer``; the paper's have RMS norm and no bias
    norm        scale
    head        weight (k, e), not tied to the embedding
    classifier  weight (classes, e); only if the config has classes

Autoregressive: the blocks see [sos, x_0 … x_(n−2)], causally, and the logits at i predict x_i. Masked (BERT): they
see x_0 … x_(n−1) with nothing but the position where ``mask`` is True, and the logits at i predict x_i there.
"""

import math
from dataclasses import dataclass

from saccade.models import initialization as initial
from saccade.models.transformer import (
    TransformerConfig,
    all_attention_weights,
    block,
    norm,
    one_of,
    run_blocks,
    runner,
    under,
)


@dataclass(frozen=True, kw_only=True)
class ImageGPTConfig(TransformerConfig):
    """``length`` pixels (32² = 1024) of ``colors`` palette entries; ``objective`` "autoregressive" or "masked"."""

    colors: int = 512
    length: int = 1024
    classes: int | None = None
    objective: str = "autoregressive"
    norm: str = "rms"
    eps: float = 1e-5
    gelu: str = "sigmoid"
    bias: bool = False
    causal: bool | None = None

    def __post_init__(self):
        super().__post_init__()
        one_of(self, "objective", ("autoregressive", "masked"))
        if self.causal is None:
            object.__setattr__(self, "causal", self.objective == "autoregressive")
        if self.causal != (self.objective == "autoregressive"):
            raise ValueError(f"ImageGPTConfig: {self.causal=} contradicts {self.objective=}")


VARIANTS = {
    "S": dict(width=512, depth=24, heads=8),
    "M": dict(width=1024, depth=36, heads=8),
    "L": dict(width=1536, depth=48, heads=16),
    "XL": dict(width=3072, depth=60, heads=16),
}


def variant(name, **changes):
    """The config of the paper's iGPT-S, -M, -L or -XL, of 32² pixels. XL's number of heads was never published and
    none of its weights: 16, as L has, is a guess, on which no count or cost depends."""
    if name not in VARIANTS:
        raise ValueError(f"imagegpt.variant: {name=}, expected one of {', '.join(VARIANTS)}")
    return ImageGPTConfig(**VARIANTS[name] | changes)


def embed(parameters, tokens, ops, config, *, mask=None, start=0, dropout=None):
    """What the blocks see of tokens (b, n): b (n − start) e.

    Args:
        parameters: the stage's.
        tokens: integers in 0…k−1; the last of an autoregressive sequence is not looked at, only predicted.
        ops: the op set.
        config: an ``ImageGPTConfig``.
        mask: bool (b, n), True where a masked sequence shows its position alone.
        start: leave out the places before (for an autoregressive sequence whose beginning is cached).
        dropout: applied to the sum with the positions.
    """
    b, n = tokens.shape
    if n > config.length:
        raise ValueError(f"imagegpt: {tuple(tokens.shape)=}, expected at most {config.length} tokens each")
    if mask is not None and config.causal:
        raise ValueError("imagegpt: a mask is for objective='masked', this config is autoregressive")
    weight, positions = parameters["weight"], parameters["positions"]
    if not config.causal:
        content = ops.embedding(tokens, weight)
        content = content if mask is None else content * ~mask[..., None]
    elif start:
        content = ops.embedding(tokens[:, start - 1 : -1], weight)
    else:
        sos_b1e = ops.broadcast_to(parameters["sos"], (b, 1, config.width))
        content = ops.concatenate([sos_b1e, ops.embedding(tokens[:, :-1], weight)], 1)
    x_bne = content + positions[start:n]
    return x_bne if dropout is None else dropout(x_bne)


def head(parameters, x_bne, ops, config):
    """Logits of each colour at each place: b n e -> b n k."""
    return ops.linear(x_bne, parameters["weight"])


def classifier(parameters, x_bne, ops, config):
    """Logits of each class from the mean over the sequence: b n e -> b classes."""
    return ops.linear(ops.mean(x_bne, 1), parameters["weight"])


STAGES = {"embed": embed, "blocks": block, "norm": norm, "head": head, "classifier": classifier}


def compose_hidden(run, tokens, config, mask=None):
    """The stages up to the final norm, each called by ``run(name, input)``: b n e."""
    return run("norm", run_blocks(run, run("embed", tokens, mask=mask), config))


def forward(parameters, tokens, config, ops, *, mask=None, stages=None):
    """Logits (b, n, k) of tokens (b, n): those at place i predict token i.

    Args:
        parameters: by name, for instance from ``initialize``.
        tokens: integers in 0…k−1.
        config: an ``ImageGPTConfig``.
        ops: the op set: ``saccade`` or ``saccade.reference``.
        mask: bool (b, n), for a masked model: True where the content is hidden.
        stages: a dictionary to be filled with every stage's output by name, or None.
    """
    run = runner(STAGES, parameters, ops, config, stages)
    return run("head", compose_hidden(run, tokens, config, mask))


def classify(parameters, tokens, config, ops, *, mask=None):
    """Logits (b, classes) of tokens (b, n)."""
    run = runner(STAGES, parameters, ops, config)
    return run("classifier", compose_hidden(run, tokens, config, mask))


def features(parameters, tokens, config, ops, *, layers, mask=None):
    """The linear probe's features of the given layers, a list of (b, e): section 2.4 of the paper.

    Layer l is the mean over the sequence of block l's first norm of its input; layer ``depth`` that of the final
    norm. A masked model is best masked here too, as in training (the paper's appendix).
    """

    def normal(i, x):
        return norm(under(parameters, f"blocks.{i}.norm1"), x, ops, config)

    return compose_features(runner(STAGES, parameters, ops, config), normal, tokens, config, ops, layers, mask)


def compose_features(run, normal, tokens, config, ops, layers, mask):
    """``features`` from ``run(name, input)`` and ``normal(i, x)``, block i's first norm."""
    layers = list(layers)
    if any(not 0 <= layer <= config.depth for layer in layers):
        raise ValueError(f"imagegpt: {layers=}, expected layers in 0…{config.depth}")
    found, x_bne = {}, run("embed", tokens, mask=mask)
    for i in range(max(layers, default=-1) + 1):
        if i in layers:
            found[i] = ops.mean(run("norm", x_bne) if i == config.depth else normal(i, x_bne), 1)
        if i < max(layers):
            x_bne = run(f"blocks.{i}", x_bne)
    return [found[layer] for layer in layers]


def attention_weights(parameters, tokens, config, ops, *, mask=None):
    """Each block's softmax weights, a list of (b, h, n, n)."""
    stages = {}
    forward(parameters, tokens, config, ops, mask=mask, stages=stages)
    return all_attention_weights(stages, parameters, ops, config)


def layout(config):
    """Names, shapes and beginnings of the parameters, as in the paper's code: both output matrices begin at 0."""
    e, k = config.width, config.colors
    fan = initial.normal(1 / math.sqrt(e))
    out = initial.normal(1 / math.sqrt(e * max(config.depth, 1)))
    small = initial.normal(0.02)
    entries = {"embed.weight": ((k, e), small)}
    if config.causal:
        entries["embed.sos"] = ((e,), small)
    entries["embed.positions"] = ((config.length, e), initial.normal(0.01))
    for i in range(config.depth):
        block = initial.block_layout(config, qkv=fan, out=out, fc1=small, fc2=small)
        entries |= initial.prefixed(f"blocks.{i}", block)
    entries |= initial.prefixed("norm", initial.norm_layout(config))
    entries["head.weight"] = ((k, e), initial.zeros)
    if config.classes is not None:
        entries["classifier.weight"] = ((config.classes, e), initial.zeros)
    return entries


def initialize(config, seed=0):
    """Parameters as training begins: NumPy, float32, drawn from ``seed``."""
    return initial.draw(layout(config), seed)
