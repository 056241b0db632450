"""Google's layouts: ViT of vision_transformer and big_vision, and big_vision's SigLIP, whose names are flax's paths.

Query, key and value lie (in, heads, head width), their product (heads, head width, out), the MLP's (in, out), patches
(height, width, channels, out). big_vision adds the class token after the positions, and may stack all blocks.
"""

import math

from saccade.weights.layout import Layout, prefixed
from saccade.weights.links import Names, row, share, token, under, whole

STEMS = ("", "opt/target/", "params/", "params/img/")
USUAL = {"gelu": "tanh", "eps": 1e-6, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _norm(ours, theirs):
    return {f"{theirs}/scale": [(f"{ours}.scale", whole)], f"{theirs}/bias": [(f"{ours}.bias", whole)]}


def _dense(ours, theirs):
    return {f"{theirs}/kernel": [(f"{ours}.weight", lambda x: x.T)], f"{theirs}/bias": [(f"{ours}.bias", whole)]}


def _projection(ours, theirs, heads, part=whole):
    """Into heads: ``part`` is whose rows of ours they are."""
    links = {f"{theirs}/kernel": [(f"{ours}.weight", lambda x: _split(part(x).T, heads))]}
    return links | {f"{theirs}/bias": [(f"{ours}.bias", lambda x: part(x).reshape(heads, -1))]}


def _split(x, heads):
    return x.reshape(len(x), heads, x.shape[1] // heads)


def _out_of_heads(ours, theirs, heads):
    links = {f"{theirs}/kernel": [(f"{ours}.weight", lambda x: x.T.reshape(heads, len(x) // heads, len(x)))]}
    return links | {f"{theirs}/bias": [(f"{ours}.bias", whole)]}


def _block(heads, first, attention, second, mlp):
    names = {}
    for i, name in enumerate(("query", "key", "value")):
        names |= _projection("attention.qkv", f"{attention}/{name}", heads, share(i, 3))
    return {
        **_norm("norm1", first),
        **names,
        **_out_of_heads("attention.out", f"{attention}/out", heads),
        **_norm("norm2", second),
        **_dense("mlp.fc1", f"{mlp}/Dense_0"),
        **_dense("mlp.fc2", f"{mlp}/Dense_1"),
    }


def _blocks(config, found, ours, encoder):
    """All blocks: of vision_transformer's names, of big_vision's, or of big_vision's stacked."""
    old = f"{encoder}/encoderblock_0/LayerNorm_2/scale" in found
    numbers = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
    names = numbers if old else ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    block = _block(config.heads, *names)
    if not _stacked(found, encoder):
        links = {}
        for i in range(config.depth):
            links |= under(f"{ours}blocks.{i}.", f"{encoder}/encoderblock_{i}/", block)
        return links
    return {
        f"{encoder}/encoderblock/{name}": [
            (f"{ours}blocks.{i}.{parameter}", lambda x, view=view: view(x)[None]) for i in range(config.depth)
        ]
        for name, [(parameter, view)] in block.items()
    }


def _stacked(found, encoder):
    return f"{encoder}/encoderblock/LayerNorm_0/scale" in found


def _stem(found):
    return next((stem for stem in STEMS if f"{stem}embedding/kernel" in found), "")


def _positions(found, stem):
    """The positions' name: vision_transformer's or big_vision's."""
    old = f"{stem}Transformer/posembed_input/pos_embedding"
    return old if old in found else f"{stem}pos_embedding"


def _tower_links(config, found, ours, stem):
    """(links, zeros) of a ViT."""
    heads, pool = config.heads, f"{stem}MAPHead_0"
    positions, n = _positions(found, stem), config.tokens
    alone = bool(config.prefix) and found.get(positions, (1, n))[1] == n - 1  # the class token's position is 0
    attention = f"{pool}/MultiHeadDotProductAttention_0"
    links = {
        f"{stem}cls": [(f"{ours}embed.class_token", token)],
        positions: [(f"{ours}embed.positions", (lambda x: x[None, 1:]) if alone else row)],
        f"{stem}embedding/kernel": [(f"{ours}embed.weight", lambda x: x.transpose(2, 3, 1, 0))],
        f"{stem}embedding/bias": [(f"{ours}embed.bias", whole)],
        **_blocks(config, found, ours, f"{stem}Transformer"),
        **_norm(f"{ours}pool.norm", f"{stem}Transformer/encoder_norm"),
        f"{pool}/probe": [(f"{ours}pool.probe", token)],
        **_projection(f"{ours}pool.q", f"{attention}/query", heads),
        **_projection(f"{ours}pool.kv", f"{attention}/key", heads, share(0, 2)),
        **_projection(f"{ours}pool.kv", f"{attention}/value", heads, share(1, 2)),
        **_out_of_heads(f"{ours}pool.out", f"{attention}/out", heads),
        **_norm(f"{ours}pool.norm_mlp", f"{pool}/LayerNorm_0"),
        **_dense(f"{ours}pool.mlp.fc1", f"{pool}/MlpBlock_0/Dense_0"),
        **_dense(f"{ours}pool.mlp.fc2", f"{pool}/MlpBlock_0/Dense_1"),
        **_dense(f"{ours}pre_logits", f"{stem}pre_logits"),
        **_dense(f"{ours}head", f"{stem}head"),
    }
    return links, (f"{ours}embed.positions",) if alone else ()


def _vit_names(config, found):
    links, zeros = _tower_links(config, found, "", _stem(found))
    return Names(links, zeros=zeros)


def _block_sizes(found, encoder):
    if _stacked(found, encoder):
        block, axis = f"{encoder}/encoderblock", 1
        depth = found.size(f"{block}/LayerNorm_0/scale", 0)
    else:
        block, axis, depth = f"{encoder}/encoderblock_0", 0, found.depth(rf"{encoder}/encoderblock_(\d+)/")
    numbers = (1, 3) if f"{encoder}/encoderblock_0/LayerNorm_2/scale" in found else (0, 0)
    query = f"{block}/MultiHeadDotProductAttention_{numbers[0]}/query/bias"
    hidden = found.size(f"{block}/MlpBlock_{numbers[1]}/Dense_0/bias", axis)
    return {"depth": depth, "heads": found.size(query, axis), "hidden": hidden}


def _tower_sizes(found, stem):
    with_token, kernel = f"{stem}cls" in found, f"{stem}embedding/kernel"
    patch, positions = found.size(kernel, 0), _positions(found, stem)
    n = found.size(positions, 1)
    prefix = int(with_token and math.isqrt(n) ** 2 != n)
    facts = {
        "width": found.size(kernel, 3), "channels": found.size(kernel, 2), "patch_size": patch,
        "pooling": "token" if with_token else "map" if f"{stem}MAPHead_0/probe" in found else "mean",
        **_block_sizes(found, f"{stem}Transformer"), **found.side(positions, 1, prefix, patch),
    }  # fmt: skip
    for name, fact in ((f"{stem}head/bias", "classes"), (f"{stem}pre_logits/bias", "representation")):
        facts |= {fact: found.size(name, 0)} if name in found else {}
    return facts


VIT = Layout(
    title="Google's ViT", kind="vit",
    mark=tuple(f"{stem}{name}" for stem in STEMS[:3] for name in ("embedding/kernel", "embedding/bias")),
    sizes=lambda found: _tower_sizes(found, _stem(found)), names=_vit_names, said=lambda source: [],
    beside=lambda config: {}, usual=USUAL,
    ignored=lambda name: name.startswith("opt/") and not name.startswith("opt/target/"),
)  # fmt: skip


def _siglip_names(config, found):
    text, encoder = "params/txt", "params/txt/Encoder_0"
    image, zeros = _tower_links(config.image, found, "image.", "params/img/")
    return Names({
        **image,
        f"{text}/Embed_0/embedding": [("text.embed.weight", whole)],
        f"{text}/pos_embedding": [("text.embed.positions", row)],
        **_blocks(config.text, found, "text.", encoder),
        **_norm("text.pool.norm", f"{encoder}/encoder_norm"),
        **_dense("text_projection", f"{text}/head"),
        "params/t": [("logit_scale", row)],
        "params/b": [("logit_bias", row)],
    }, zeros=zeros)  # fmt: skip


def _siglip_sizes(found):
    text = {
        "width": found.size("params/txt/Embed_0/embedding", 1), "kind": "transformer", "pooling": "last",
        "vocabulary": found.size("params/txt/Embed_0/embedding", 0), "causal": False,
        "context": found.size("params/txt/pos_embedding", 1), **_block_sizes(found, "params/txt/Encoder_0"),
    }  # fmt: skip
    image = _tower_sizes(found, "params/img/")
    embed = found.size("params/txt/head/bias", 0)
    return {"embed": embed, "logit_bias": -10.0, **prefixed("image", image), **prefixed("text", text)}


SIGLIP = Layout(
    title="Google's SigLIP", kind="clip", mark=("params/img/embedding/kernel", "params/txt/pos_embedding"),
    sizes=_siglip_sizes, names=_siglip_names, said=lambda source: [], beside=lambda config: {},
    usual={**prefixed("image", USUAL), "text.gelu": "tanh", "text.eps": 1e-6},
    ignored=lambda name: name.startswith("opt/"),
)  # fmt: skip
