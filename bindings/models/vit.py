"""ViT, with the parts of Scaling ViT: images b h w c -> logits b k.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021; Zhai et al., "Scaling Vision Transformers", 2022.
Stages and their parameters:

    embed       weight (e, c, p, p), bias, class_token (e,), positions (n, e), norm.scale, norm.bias (CLIP's)
    blocks.<i>  see ``saccade.models.transformer``
    pool        norm.scale, norm.bias; for pooling "map" also probe (e,), q.weight, q.bias, kv.weight (2e, e),
                kv.bias, out.weight, out.bias, norm_mlp.scale, norm_mlp.bias, mlp.fc1.weight, …
    pre_logits  weight (representation, e), bias; only if the config has a representation
    head        weight (k, e or representation), bias; only if the config has classes
"""

from dataclasses import dataclass, replace

from saccade.models import initialization as initial
from saccade.models.transformer import (
    TransformerConfig,
    all_attention_weights,
    block,
    mlp,
    norm,
    one_of,
    run_blocks,
    runner,
    under,
)


@dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """A vision transformer. The defaults are the paper's own code: LayerNorm with eps 1e-6, tanh GELU.

    ``image_size`` is the side, or (height, width), that the positions were learned for. ``pooling`` is "token"
    (the class token), "mean" (of all tokens after the norm) or "map" (multi-head attention pooling); only "token"
    has a class token. ``embed_norm`` is CLIP's norm before the blocks, ``embed_bias`` whether patches have a bias.
    ``mean`` and ``std`` normalise images, per channel in 0…1; uint8 images are divided by 255 first.
    """

    image_size: int | tuple = 224
    patch_size: int = 16
    channels: int = 3
    classes: int | None = None
    pooling: str = "token"
    representation: int | None = None
    embed_norm: bool = False
    embed_bias: bool = True
    head_bias: float = 0.0
    gelu: str = "tanh"
    mean: tuple | None = (0.5, 0.5, 0.5)
    std: tuple | None = (0.5, 0.5, 0.5)

    def __post_init__(self):
        super().__post_init__()
        one_of(self, "pooling", ("token", "mean", "map"))
        if any(side % self.patch_size or side < 1 for side in self.size):
            raise ValueError(f"ViTConfig: {self.image_size=} is no multiple of {self.patch_size=}")

    @property
    def size(self):
        """(height, width) of the images."""
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)

    @property
    def grid(self):
        """(rows, columns) of patches."""
        return tuple(side // self.patch_size for side in self.size)

    @property
    def prefix(self):
        """How many tokens come before the patches."""
        return int(self.pooling == "token")

    @property
    def tokens(self):
        """How many tokens the blocks see."""
        return self.grid[0] * self.grid[1] + self.prefix


_SIZES = {
    "s": (256, 6, 8, 1024),
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "So400m": (1152, 27, 16, 4304),
    "g": (1408, 40, 16, 6144),
    "G": (1664, 48, 16, 8192),
}


def variant(name, **changes):
    """The config of a paper's variant, "B/16" say: Ti, S, B, L, H, Scaling ViT's s, g and G, or So400m (Alabdulmohsin
    et al., "Getting ViT in Shape", 2023), and the side of its patches."""
    size, _, patch = name.partition("/")
    if size not in _SIZES or not patch.isdigit() or int(patch) < 1:
        raise ValueError(f"vit.variant: {name=}, expected one of {', '.join(_SIZES)} and a patch size, as in 'B/16'")
    width, depth, heads, hidden = _SIZES[size]
    sizes = dict(width=width, depth=depth, heads=heads, hidden=hidden, patch_size=int(patch))
    return ViTConfig(**sizes | changes)


def embed(parameters, images, ops, config, *, patches=None, dropout=None):
    """Patches, class token, positions and CLIP's norm: images b h w c -> b n e.

    Images must have the config's size: ``resize`` gives parameters for another. ``patches`` is applied to the patches'
    embeddings before anything joins them, ``dropout`` to the sum with the positions.
    """
    if images.ndim != 4 or tuple(images.shape[1:3]) != config.size:
        raise ValueError(
            f"vit: {tuple(images.shape)=}, expected (b, {config.size[0]}, {config.size[1]}, {config.channels}); "
            "resize the model for another image size"
        )
    weight, bias = parameters["weight"], parameters.get("bias")
    x_bne = ops.patch_embed(images, weight, bias, mean=config.mean, std=config.std)
    if patches is not None:
        x_bne = patches(x_bne)
    if "class_token" in parameters:
        first_b1e = ops.broadcast_to(parameters["class_token"], (x_bne.shape[0], 1, x_bne.shape[2]))
        x_bne = ops.concatenate([first_b1e, x_bne], 1)
    x_bne = x_bne + parameters["positions"]
    if dropout is not None:
        x_bne = dropout(x_bne)
    return norm(under(parameters, "norm"), x_bne, ops, config) if "norm.scale" in parameters else x_bne


def pool(parameters, x_bne, ops, config):
    """The final norm and one vector per image: the class token, the mean, or attention by a learned probe."""
    norm_parameters = under(parameters, "norm")
    if config.pooling == "token":
        return norm(norm_parameters, x_bne[:, 0], ops, config)
    x_bne = norm(norm_parameters, x_bne, ops, config)
    return ops.mean(x_bne, 1) if config.pooling == "mean" else map_head(parameters, x_bne, ops, config)


def map_head(parameters, x_bne, ops, config):
    """Multi-head attention pooling: a = attention(probe, x, x); a + mlp(norm a). b n e -> b e.

    Zhai et al. 2022, section 3.3, after Lee et al., "Set Transformer", 2019. No residual around the attention.
    """
    b, n, e = x_bne.shape
    heads, d = config.heads, e // config.heads
    query = ops.linear(parameters["probe"].reshape(1, e), parameters["q.weight"], parameters.get("q.bias"))
    query_bh1d = ops.broadcast_to(query.reshape(1, heads, 1, d), (b, heads, 1, d))
    key_value = ops.linear(x_bne, parameters["kv.weight"], parameters.get("kv.bias")).reshape(b, n, 2, heads, d)
    key_bhnd, value_bhnd = (key_value[:, :, i].swapaxes(1, 2) for i in range(2))
    attended = ops.attention(query_bh1d, key_bhnd, value_bhnd).reshape(b, e)
    attended = ops.linear(attended, parameters["out.weight"], parameters.get("out.bias"))
    normal = norm(under(parameters, "norm_mlp"), attended, ops, config)
    return attended + mlp(under(parameters, "mlp"), normal, ops, config)


def pre_logits(parameters, x, ops, config):
    """tanh(linear x): the hidden layer of the paper's head at pre-training."""
    return ops.tanh(ops.linear(x, parameters["weight"], parameters["bias"]))


def head(parameters, x, ops, config):
    """The linear classifier: b e -> b k."""
    return ops.linear(x, parameters["weight"], parameters.get("bias"))


STAGES = {"embed": embed, "blocks": block, "pool": pool, "pre_logits": pre_logits, "head": head}


def compose(run, images, config):
    """The stages in order, each called by ``run(name, input)``: logits, or features where there are no classes."""
    x = run("pool", run_blocks(run, run("embed", images), config))
    if config.representation is not None:
        x = run("pre_logits", x)
    return x if config.classes is None else run("head", x)


def forward(parameters, images, config, ops, *, stages=None):
    """Logits (b, classes) of images b h w c, or features (b, e) where the config has no classes.

    Args:
        parameters: by name, for instance from ``initialize``.
        images: uint8, or floating point in 0…1, of the config's size.
        config: a ``ViTConfig``.
        ops: the op set: ``saccade`` or ``saccade.reference``.
        stages: a dictionary to be filled with every stage's output by name, or None.
    """
    return compose(runner(STAGES, parameters, ops, config, stages), images, config)


def attention_weights(parameters, images, config, ops):
    """Each block's softmax weights, a list of (b, h, n, n)."""
    stages = {}
    forward(parameters, images, config, ops, stages=stages)
    return all_attention_weights(stages, parameters, ops, config)


def layout(config):
    """Names, shapes and beginnings of the parameters; as in the paper's code: Xavier blocks, a head of 0."""
    e, c, p = config.width, config.channels, config.patch_size
    square, tall = initial.xavier(e, e), initial.xavier(e, config.hidden)
    tiny = initial.normal(1e-6)
    block = initial.block_layout(config, qkv=square, out=square, fc1=tall, fc2=tall, fc1_bias=tiny, fc2_bias=tiny)
    entries = {"embed.weight": ((e, c, p, p), initial.lecun_normal(c * p * p))}
    if config.embed_bias:
        entries["embed.bias"] = ((e,), initial.zeros)
    if config.prefix:
        entries["embed.class_token"] = ((e,), initial.zeros)
    entries["embed.positions"] = ((config.tokens, e), initial.normal(0.02))
    if config.embed_norm:
        entries |= initial.prefixed("embed.norm", initial.norm_layout(config))
    for i in range(config.depth):
        entries |= initial.prefixed(f"blocks.{i}", block)
    entries |= initial.prefixed("pool.norm", initial.norm_layout(config))
    if config.pooling == "map":
        entries |= initial.prefixed("pool", _map_layout(config, square, block))
    features = e
    if config.representation is not None:
        features = config.representation
        entries["pre_logits.weight"] = ((features, e), initial.lecun_normal(e))
        entries["pre_logits.bias"] = ((features,), initial.zeros)
    if config.classes is not None:
        entries["head.weight"] = ((config.classes, features), initial.zeros)
        entries["head.bias"] = ((config.classes,), initial.constant(config.head_bias))
    return entries


def _map_layout(config, square, block):
    e = config.width
    entries = {"probe": ((e,), initial.xavier(1, e))}
    for name, rows in (("q", e), ("kv", 2 * e), ("out", e)):
        entries[f"{name}.weight"] = ((rows, e), square)
        entries |= {f"{name}.bias": ((rows,), initial.zeros)} if config.bias else {}
    entries |= initial.prefixed("norm_mlp", initial.norm_layout(config))
    return entries | {name: entry for name, entry in block.items() if name.startswith("mlp.")}


def initialize(config, seed=0):
    """Parameters as training begins: NumPy, float32, drawn from ``seed``."""
    return initial.draw(layout(config), seed)


def resize(parameters, config, image_size, *, method="zoom"):
    """(parameters, config) for another image size: positions interpolated, all else as it was.

    ``method`` is "zoom" (bilinear, corners aligned: the paper's code), "bicubic" (Hugging Face's) or "antialiased"
    (timm's and open_clip's). NumPy parameters.
    """
    from saccade.reference.positions import interpolate_positions

    resized = replace(config, image_size=image_size)
    positions = interpolate_positions(parameters["embed.positions"], resized.grid, prefix=config.prefix, method=method)
    return {**parameters, "embed.positions": positions}, resized
