"""timm's layout of ViT, as ``timm.models.save_for_hf`` writes it; also the image tower of open_clip's SigLIP."""

import re

from saccade.weights.layout import Layout, gelu_kind, keys, normalisation
from saccade.weights.links import Names, linear, norm, row, token, under

USUAL = {"gelu": "erf", "eps": 1e-6}
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16, "so400m": 16, "giant": 16, "gigantic": 16}
_GELUS = {"erf": "gelu", "sigmoid": "quick_gelu", "tanh": "gelu_tanh"}
_POOLINGS = {"token": "token", "avg": "mean", "map": "map"}


def tower_links(config):
    """A ViT's links, of every part that one may have."""
    block = {
        **norm("norm1", "norm1"), **linear("attention.qkv", "attn.qkv"), **linear("attention.out", "attn.proj"),
        **norm("norm2", "norm2"), **linear("mlp.fc1", "mlp.fc1"), **linear("mlp.fc2", "mlp.fc2"),
    }  # fmt: skip
    links = {
        "cls_token": [("embed.class_token", token)],
        "pos_embed": [("embed.positions", row)],
        **linear("embed", "patch_embed.proj"),
        **norm("embed.norm", "norm_pre"),
        **norm("pool.norm", "norm"),
        "attn_pool.latent": [("pool.probe", token)],
        **linear("pool.q", "attn_pool.q"),
        **linear("pool.kv", "attn_pool.kv"),
        **linear("pool.out", "attn_pool.proj"),
        **norm("pool.norm_mlp", "attn_pool.norm"),
        **linear("pool.mlp.fc1", "attn_pool.mlp.fc1"),
        **linear("pool.mlp.fc2", "attn_pool.mlp.fc2"),
        **linear("head", "head"),
    }
    for i in range(config.depth):
        links |= under(f"blocks.{i}.", f"blocks.{i}.", block)
    return links


def tower_sizes(found, stem=""):
    """What the shapes of a ViT whose names begin with ``stem`` tell."""
    if f"{stem}fc_norm.weight" in found:
        raise ValueError(f"{found.where}: pools before its norm (fc_norm), which no model here does")
    patches = f"{stem}patch_embed.proj.weight"
    patch = found.size(patches, 2)
    with_token, with_map = f"{stem}cls_token" in found, f"{stem}attn_pool.latent" in found
    classes = {"classes": found.size(f"{stem}head.weight", 0)} if f"{stem}head.weight" in found else {}
    return {
        "width": found.size(patches, 0), "channels": found.size(patches, 1), "patch_size": patch,
        "depth": found.depth(rf"{re.escape(stem)}blocks\.(\d+)\."),
        "hidden": found.size(f"{stem}blocks.0.mlp.fc1.weight", 0),
        "pooling": "token" if with_token else "map" if with_map else "mean",
        "embed_norm": f"{stem}norm_pre.weight" in found, "embed_bias": f"{stem}patch_embed.proj.bias" in found,
        **found.side(f"{stem}pos_embed", 1, int(with_token), patch), **classes,
    }  # fmt: skip


def architecture_facts(name):
    """What the name of one of timm's architectures says, as vit_base_patch16_clip_quickgelu_224."""
    match = re.match(r"vit_([a-z0-9]+)_patch\d+_(clip_|clip_quickgelu_|siglip_)?\d+$", name)
    if match is None or match[1] not in _HEADS:
        return {}
    family = match[2] or ""
    gelu = "sigmoid" if "quickgelu" in family else "erf"
    return {
        "heads": _HEADS[match[1]],
        "eps": 1e-5 if "clip" in family and "siglip" not in family else 1e-6,
        "gelu": gelu,
    }


def _said(source):
    table = source.beside.get("config.json", {})
    pretrained, given = table.get("pretrained_cfg"), table.get("model_args")
    facts = architecture_facts(str(table.get("architecture", "")))
    given = given if isinstance(given, dict) else {}
    facts |= keys(given, {"num_heads": "heads", "act_layer": "gelu"})
    if "act_layer" in given:
        facts["gelu"] = gelu_kind(source.where, given["act_layer"])
    side = given.get("img_size")
    if isinstance(side, list) and len(side) == 2:
        facts["image_size"] = side[0] if side[0] == side[1] else tuple(side)
    if table.get("global_pool") in _POOLINGS:
        facts["pooling"] = _POOLINGS[table["global_pool"]]
    if isinstance(pretrained, dict):
        facts |= normalisation(pretrained, "mean", "std")
    return [("config.json", facts)]


def _config(config):
    size = {3: "tiny", 6: "small", 12: "base"}.get(config.heads, "large")  # a name that timm has; model_args say more
    pooling = {ours: theirs for theirs, ours in _POOLINGS.items()}[config.pooling]
    side = config.size
    given = {
        "img_size": list(side), "patch_size": config.patch_size, "embed_dim": config.width, "depth": config.depth,
        "num_heads": config.heads, "mlp_ratio": config.hidden / config.width, "global_pool": pooling,
        "class_token": config.pooling == "token", "pre_norm": config.embed_norm,
        "act_layer": _GELUS[config.gelu], "fc_norm": False,
    }  # fmt: skip
    pretrained = {"input_size": [config.channels, *side], "num_classes": config.classes or 0}
    if config.mean is not None:
        pretrained |= {"mean": list(config.mean), "std": list(config.std)}
    return {
        "config.json": {
            "architecture": f"vit_{size}_patch16_224", "num_classes": config.classes or 0,
            "num_features": config.width, "global_pool": pooling, "model_args": given, "pretrained_cfg": pretrained,
        }
    }  # fmt: skip


VIT = Layout(
    title="timm's ViT", kind="vit", mark=("pos_embed", "patch_embed.proj.weight"), sizes=tower_sizes,
    names=lambda config, found=None: Names(tower_links(config)), said=_said, beside=_config,
    usual={**USUAL, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
)  # fmt: skip
