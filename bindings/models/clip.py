"""CLIP: images and token ids -> embeddings whose products say which belong together.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021. Stages:

    image.…           a ViT without a head (``saccade.models.vit``), pooled by its class token, or a ResNet
                      (``saccade.models.resnet``), whose features are of the embeddings' width already
    image_projection  weight (embed, image width); a ViT's alone
    text.embed        weight (vocabulary, e), positions (context, e)
    text.blocks.<i>   see ``saccade.models.transformer``, causal
    text.pool         norm.scale, norm.bias: the norm of the end-of-text token, which has the highest id
    text_projection   weight (embed, text width), SigLIP's also bias
    logit_scale       (), the paper's t: products of embeddings are multiplied by exp(t)
    logit_bias        (), SigLIP's alone

SigLIP (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023) is a CLIP with a logit bias: its image tower
is a ViT with attention pooling whose features are the embeddings, and its text tower, which looks both ways, gives the
last token's vector.

The text tower of kind "cbow" has no positions, blocks or norm: the paper's pseudocode (figure 3) offers a continuous
bag of words and says no more of it, so here it is the mean of the embeddings of the real tokens, those up to and
including the end of text.
"""

import math
from dataclasses import dataclass

from saccade.models import initialization as initial, resnet, vit
from saccade.models.transformer import TransformerConfig, block, norm, one_of, run_blocks, runner, under

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True, kw_only=True)
class TextConfig(TransformerConfig):
    """A text tower over ``context`` token ids; ``kind`` is "transformer" or "cbow".

    ``pooling`` is the token whose vector a transformer gives: the "end" of text, which has the highest id, or the
    "last" of the sequence.
    """

    vocabulary: int = 49408
    context: int = 77
    kind: str = "transformer"
    pooling: str = "end"
    eps: float = 1e-5
    gelu: str = "sigmoid"
    causal: bool = True

    def __post_init__(self):
        super().__post_init__()
        one_of(self, "kind", ("transformer", "cbow"))
        one_of(self, "pooling", ("end", "last"))


def image_config(**sizes):
    """The config of CLIP's image tower: a ViT with a norm before its blocks and QuickGELU."""
    defaults = dict(eps=1e-5, gelu="sigmoid", embed_norm=True, embed_bias=False, mean=MEAN, std=STD)
    return vit.ViTConfig(**defaults | sizes)


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Two towers and the width they meet in; with a ``logit_bias`` (as training begins) it is a SigLIP."""

    embed: int
    image: vit.ViTConfig | resnet.ResNetConfig
    text: TextConfig
    logit_scale: float = math.log(1 / 0.07)
    logit_bias: float | None = None

    def __post_init__(self):
        width = self.image.embed if isinstance(self.image, resnet.ResNetConfig) else self.image.width
        if not self.projects_images and width != self.embed:
            raise ValueError(f"CLIPConfig: {self.embed=} and image features of {width=}, expected the same")

    @property
    def projects_images(self):
        """Whether image features pass through a projection."""
        return isinstance(self.image, vit.ViTConfig) and self.logit_bias is None


# image size, embed, width of the text tower, then the ViT's size or the ResNet's layers and width
VARIANTS = {
    "RN50": (224, 1024, 512, (3, 4, 6, 3), 64),
    "RN101": (224, 512, 512, (3, 4, 23, 3), 64),
    "RN50x4": (288, 640, 640, (4, 6, 10, 6), 80),
    "RN50x16": (384, 768, 768, (6, 8, 18, 8), 96),
    "RN50x64": (448, 1024, 1024, (3, 15, 36, 10), 128),
    "ViT-B/32": (224, 512, 512, "B/32"),
    "ViT-B/16": (224, 512, 512, "B/16"),
    "ViT-L/14": (224, 768, 768, "L/14"),
    "ViT-L/14@336px": (336, 768, 768, "L/14"),
}
HEAD_WIDTH = 64


def variant(name, **changes):
    """The config of one of the paper's CLIPs: ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px, RN50, RN101, RN50x4,
    RN50x16 or RN50x64."""
    if name not in VARIANTS:
        raise ValueError(f"clip.variant: {name=}, expected one of {', '.join(VARIANTS)}")
    image_size, embed, text_width, *image = VARIANTS[name]
    if len(image) == 2:
        layers, width = image
        tower = resnet.ResNetConfig(
            layers=layers, width=width, embed=embed, heads=32 * width // HEAD_WIDTH, image_size=image_size,
            mean=MEAN, std=STD,
        )  # fmt: skip
    else:
        plain = vit.variant(*image)
        sizes = {key: getattr(plain, key) for key in ("width", "depth", "heads", "hidden", "patch_size")}
        tower = image_config(image_size=image_size, **sizes)
    text = TextConfig(width=text_width, depth=12, heads=text_width // HEAD_WIDTH)
    return CLIPConfig(**dict(embed=embed, image=tower, text=text) | changes)


# the image size and the text's length of each release, by the size of its ViT
SIGLIP_VARIANTS = {
    "B/16": ("B/16", 224, 64),
    "B/16@256px": ("B/16", 256, 64),
    "B/16@384px": ("B/16", 384, 64),
    "B/16@512px": ("B/16", 512, 64),
    "L/16@256px": ("L/16", 256, 64),
    "L/16@384px": ("L/16", 384, 64),
    "So400m/14": ("So400m/14", 224, 16),
    "So400m/14@378px": ("So400m/14", 378, 64),
}


def siglip_variant(name, **changes):
    """The config of one of SigLIP's releases, as "B/16" or "So400m/14@378px": two towers of the same size."""
    if name not in SIGLIP_VARIANTS:
        raise ValueError(f"clip.siglip_variant: {name=}, expected one of {', '.join(SIGLIP_VARIANTS)}")
    size, image_size, context = SIGLIP_VARIANTS[name]
    image = vit.variant(size, pooling="map", image_size=image_size)
    sizes = {key: getattr(image, key) for key in ("width", "depth", "heads", "hidden", "eps", "gelu")}
    text = TextConfig(vocabulary=32_000, context=context, causal=False, pooling="last", **sizes)
    return CLIPConfig(
        **dict(embed=image.width, image=image, text=text, logit_scale=math.log(10), logit_bias=-10.0) | changes
    )


def embed_text(parameters, tokens, ops, config, *, dropout=None):
    """Token embeddings and positions, to whose sum ``dropout`` is applied: ids (b, n) -> b n e."""
    if tokens.ndim != 2 or tokens.shape[1] > config.context:
        raise ValueError(f"clip: {tuple(tokens.shape)=}, expected (b, n) with n at most {config.context}")
    x_bne = ops.embedding(tokens, parameters["weight"])
    if "positions" in parameters:
        x_bne = x_bne + parameters["positions"][: tokens.shape[1]]
    return x_bne if dropout is None else dropout(x_bne)


def pool_text(parameters, x_bne, tokens, ops, config):
    """The end-of-text or last token's vector after the norm: b n e -> b e. Causality hides what comes after an end."""
    if config.pooling == "last":
        return norm(under(parameters, "norm"), x_bne[:, -1], ops, config)
    ends = tokens.argmax(-1)
    rows = (ends * 0 + 1).cumsum(0) - 1  # 0…b−1 in the tokens' own framework
    return norm(under(parameters, "norm"), x_bne[rows, ends], ops, config)


def pool_words(x_bne, tokens, ops, config):
    """The mean of the real tokens' vectors: b n e -> b e, by attention whose scores are all 0."""
    b, n, e = x_bne.shape
    words_bhnd = x_bne.reshape(b, n, config.heads, e // config.heads).swapaxes(1, 2)
    lengths = tokens.argmax(-1) + 1
    return ops.attention(words_bhnd[:, :, :1], words_bhnd, words_bhnd, key_lengths=lengths, scale=0.0).reshape(b, e)


def project(parameters, x, ops, config):
    """A linear map, with SigLIP's bias."""
    return ops.linear(x, parameters["weight"], parameters.get("bias"))


TEXT_STAGES = {"embed": embed_text, "blocks": block, "pool": pool_text}


def compose_text(run, tokens, config, ops):
    """The text tower's stages, each called by ``run(name, *inputs)``: ids (b, n) -> features (b, e)."""
    x_bne = run("embed", tokens)
    if config.kind == "cbow":
        return pool_words(x_bne, tokens, ops, config)
    return run("pool", run_blocks(run, x_bne, config), tokens)


def image_features(parameters, images, config, ops, *, stages=None):
    """The image tower before its projection, b e: the linear probe's features."""
    tower = resnet if isinstance(config.image, resnet.ResNetConfig) else vit
    return tower.forward(under(parameters, "image"), images, config.image, ops, stages=stages)


def text_features(parameters, tokens, config, ops, *, stages=None):
    """The text tower before its projection, b e."""
    run = runner(TEXT_STAGES, under(parameters, "text"), ops, config.text, stages)
    return compose_text(run, tokens, config.text, ops)


def encode_images(parameters, images, config, ops, *, stages=None):
    """Image embeddings (b, embed) of length 1."""
    x = image_features(parameters, images, config, ops, stages=stages)
    if config.projects_images:
        x = project(under(parameters, "image_projection"), x, ops, config)
    return ops.l2_normalize(x)


def encode_texts(parameters, tokens, config, ops, *, stages=None):
    """Text embeddings (b, embed) of length 1 of token ids (b, n)."""
    x = text_features(parameters, tokens, config, ops, stages=stages)
    return ops.l2_normalize(project(under(parameters, "text_projection"), x, ops, config))


def forward(parameters, images, tokens, config, ops, *, stages=None):
    """(image embeddings, text embeddings, the factor exp(t)): what ``clip_loss`` takes, or with a SigLIP's logit bias
    at the end what ``siglip_loss`` takes.

    Args:
        parameters: by name, for instance from ``initialize``.
        images: b h w c, uint8 or floating point in 0…1, of the image tower's size.
        tokens: (b, n) ids, for instance from ``saccade.tokenizer``.
        config: a ``CLIPConfig``.
        ops: the op set: ``saccade`` or ``saccade.reference``.
        stages: a dictionary to be filled with every stage's output, ``image.<stage>`` and ``text.<stage>``, or None.
    """
    towers = {} if stages is None else {"image": {}, "text": {}}
    image = encode_images(parameters, images, config, ops, stages=towers.get("image"))
    text = encode_texts(parameters, tokens, config, ops, stages=towers.get("text"))
    for tower, found in towers.items():
        stages.update({f"{tower}.{name}": out for name, out in found.items()})  # pyright: ignore[reportOptionalMemberAccess]
    out = image, text, math.e ** parameters["logit_scale"]
    return out if config.logit_bias is None else (*out, parameters["logit_bias"])


def image_layout(tower):
    """The image tower's: torch's own beginnings in the blocks, as in the paper's release."""
    e, c, p = tower.width, tower.channels, tower.patch_size
    fan = initial.uniform(1 / math.sqrt(e))
    fan_hidden = initial.uniform(1 / math.sqrt(tower.hidden))
    entries = vit.layout(tower)
    block = initial.block_layout(
        tower, qkv=initial.xavier(e, 3 * e), out=fan, fc1=fan, fc2=fan_hidden, fc1_bias=fan, fc2_bias=fan_hidden
    )
    for i in range(tower.depth):
        entries |= initial.prefixed(f"blocks.{i}", block)
    entries["embed.weight"] = ((e, c, p, p), initial.uniform(1 / math.sqrt(c * p * p)))
    for name in {"embed.class_token", "embed.positions"} & entries.keys():
        entries[name] = (entries[name][0], initial.normal(e**-0.5))
    return entries


def text_layout(tower):
    """The text tower's: beginnings scaled by width and depth, as in the paper's release."""
    e = tower.width
    entries = {"embed.weight": ((tower.vocabulary, e), initial.normal(0.02))}
    if tower.kind == "cbow":
        return entries
    entries["embed.positions"] = ((tower.context, e), initial.normal(0.01))
    into = initial.normal(e**-0.5 * (2 * max(tower.depth, 1)) ** -0.5)
    block = initial.block_layout(
        tower, qkv=initial.normal(e**-0.5), out=into, fc1=initial.normal((2 * e) ** -0.5), fc2=into,
        fc1_bias=initial.uniform(1 / math.sqrt(e)), fc2_bias=initial.uniform(1 / math.sqrt(tower.hidden)),
    )  # fmt: skip
    for i in range(tower.depth):
        entries |= initial.prefixed(f"blocks.{i}", block)
    return entries | initial.prefixed("pool.norm", initial.norm_layout(tower))


def layout(config):
    """Names, shapes and beginnings of the parameters, as in the paper's release."""
    if isinstance(config.image, resnet.ResNetConfig):
        image = initial.prefixed("image", resnet.layout(config.image))
    else:
        image = initial.prefixed("image", image_layout(config.image))
    entries = image | initial.prefixed("text", text_layout(config.text))
    widths = {"text": config.text.width} | ({"image": config.image.width} if config.projects_images else {})
    for tower, width in sorted(widths.items()):
        entries[f"{tower}_projection.weight"] = ((config.embed, width), initial.normal(width**-0.5))
    entries["logit_scale"] = ((), initial.constant(config.logit_scale))
    if config.logit_bias is not None:
        entries["text_projection.bias"] = ((config.embed,), initial.zeros)
        entries["logit_bias"] = ((), initial.constant(config.logit_bias))
    return entries


def initialize(config, seed=0):
    """Parameters as training begins: NumPy, float32, drawn from ``seed``."""
    return initial.draw(layout(config), seed)
