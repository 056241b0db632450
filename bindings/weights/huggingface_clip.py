"""Hugging Face's layouts of CLIP and SigLIP, as ``save_pretrained`` writes them."""

from saccade.models.clip import MEAN, STD
from saccade.models.vit import ViTConfig
from saccade.weights.huggingface import image_config, pixels, preprocessor, tower_config, tower_facts
from saccade.weights.layout import Layout, prefixed
from saccade.weights.links import Names, linear, norm, packed, row, token, under, whole


def _clip_block():
    inside = [f"self_attn.{name}_proj" for name in "qkv"]
    return {
        **norm("norm1", "layer_norm1"), **packed("attention.qkv", inside),
        **linear("attention.out", "self_attn.out_proj"), **norm("norm2", "layer_norm2"),
        **linear("mlp.fc1", "mlp.fc1"), **linear("mlp.fc2", "mlp.fc2"),
    }  # fmt: skip


def _towers(config):
    image, text = "vision_model.embeddings", "text_model.embeddings"
    links = {
        f"{image}.position_embedding.weight": [("image.embed.positions", whole)],
        **linear("image.embed", f"{image}.patch_embedding"),
        **norm("image.pool.norm", "vision_model.post_layernorm"),
        f"{text}.position_embedding.weight": [("text.embed.positions", whole)],
        f"{text}.token_embedding.weight": [("text.embed.weight", whole)],
        **norm("text.pool.norm", "text_model.final_layer_norm"),
    }
    for ours, theirs, tower in (("image", "vision", config.image), ("text", "text", config.text)):
        for i in range(tower.depth):
            links |= under(f"{ours}.blocks.{i}.", f"{theirs}_model.encoder.layers.{i}.", _clip_block())
    return links


def _clip_names(config, found=None):
    if not isinstance(config.image, ViTConfig):
        raise ValueError("Hugging Face's CLIP has no ResNets: convert to open_clip's layout")
    return Names({
        **_towers(config),
        "vision_model.embeddings.class_embedding": [("image.embed.class_token", whole)],
        **norm("image.embed.norm", "vision_model.pre_layrnorm"),
        **linear("image_projection", "visual_projection"),
        **linear("text_projection", "text_projection"),
        "logit_scale": [("logit_scale", whole)],
    })  # fmt: skip


def _siglip_names(config, found=None):
    pool, head = {}, "vision_model.head"
    for kind, suffix in (("weight", "in_proj_weight"), ("bias", "in_proj_bias")):
        parts = [(f"image.pool.{name}.{kind}", whole) for name in ("q", "kv")]
        pool[f"{head}.attention.{suffix}"] = parts
    return Names({
        **_towers(config),
        **pool,
        f"{head}.probe": [("image.pool.probe", token)],
        **linear("image.pool.out", f"{head}.attention.out_proj"),
        **norm("image.pool.norm_mlp", f"{head}.layernorm"),
        **linear("image.pool.mlp.fc1", f"{head}.mlp.fc1"),
        **linear("image.pool.mlp.fc2", f"{head}.mlp.fc2"),
        **linear("text_projection", "text_model.head"),
        "logit_scale": [("logit_scale", row)],
        "logit_bias": [("logit_bias", row)],
    })  # fmt: skip


def _tower_sizes(found):
    image, text = "vision_model.embeddings", "text_model.embeddings"
    patches = f"{image}.patch_embedding.weight"
    patch = found.size(patches, 2)
    prefix = int(f"{image}.class_embedding" in found)
    facts = {
        "width": found.size(patches, 0), "channels": found.size(patches, 1), "patch_size": patch,
        **found.side(f"{image}.position_embedding.weight", 0, prefix, patch),
    }  # fmt: skip
    words = {
        "width": found.size(f"{text}.token_embedding.weight", 1), "kind": "transformer",
        "vocabulary": found.size(f"{text}.token_embedding.weight", 0),
        "context": found.size(f"{text}.position_embedding.weight", 0),
    }  # fmt: skip
    for tower, name in ((facts, "vision"), (words, "text")):
        tower["depth"] = found.depth(rf"{name}_model\.encoder\.layers\.(\d+)\.")
        tower["hidden"] = found.size(f"{name}_model.encoder.layers.0.mlp.fc1.weight", 0)
    return facts, words


def _clip_sizes(found):
    image, text = _tower_sizes(found)
    image |= {"pooling": "token", "embed_norm": True, "embed_bias": False}
    text |= {"pooling": "end", "causal": True}
    embed = found.size("text_projection.weight", 0)
    return {"embed": embed, **prefixed("image", image), **prefixed("text", text)}


def _siglip_sizes(found):
    image, text = _tower_sizes(found)
    image |= {"pooling": "map", "embed_norm": False}
    text |= {"pooling": "last", "causal": False}
    embed = found.size("text_model.head.weight", 0)
    return {"embed": embed, "logit_bias": -10.0, **prefixed("image", image), **prefixed("text", text)}


# What Hugging Face's configs leave out where it is the default of their classes.
_CLIP_DEFAULTS = {
    "vision": {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "text": {"num_attention_heads": 8, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
}
_SIGLIP_DEFAULTS = {
    tower: {"num_attention_heads": 12, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    for tower in ("vision", "text")
}


def _towers_said(source, defaults):
    table = source.beside.get("config.json")
    if table is None:
        return [("preprocessor_config.json", prefixed("image", pixels(source)))]
    facts = {}
    for ours, theirs in (("image", "vision"), ("text", "text")):
        own = table.get(f"{theirs}_config") or {}
        if not isinstance(own, dict):
            raise ValueError(f"{source.where}: {theirs}_config in config.json is no object")
        facts |= prefixed(ours, tower_facts(source.where, own, defaults[theirs]))
    end = (table.get("text_config") or {}).get("eos_token_id", 2)
    words = source.shapes.get("text_model.embeddings.token_embedding.weight", (0,))[0]
    if defaults is _CLIP_DEFAULTS and end not in (2, words - 1):
        raise ValueError(f"{source.where}: the end of text is id {end}, expected the highest, {words - 1}")
    return [("config.json", facts), ("preprocessor_config.json", prefixed("image", pixels(source)))]


def _clip_config(config, kind="clip"):
    text = {"vocab_size": config.text.vocabulary, "max_position_embeddings": config.text.context}
    text |= {"bos_token_id": config.text.vocabulary - 2, "eos_token_id": config.text.vocabulary - 1}
    if kind == "clip":
        text |= {"pad_token_id": 0, "projection_dim": config.embed}
    facts = {
        "architectures": ["CLIPModel" if kind == "clip" else "SiglipModel"], "model_type": kind,
        "text_config": tower_config(config.text) | text, "vision_config": image_config(config.image),
    }  # fmt: skip
    if kind == "clip":
        facts["projection_dim"] = facts["vision_config"]["projection_dim"] = config.embed
    processor = "CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor"
    return {"config.json": facts, **preprocessor(config.image, image_processor_type=processor)}


def _position_ids(name):
    return name.endswith(".embeddings.position_ids")


CLIP = Layout(
    title="Hugging Face's CLIP", kind="clip", mark=("visual_projection.weight", "vision_model.pre_layrnorm.weight"),
    sizes=_clip_sizes,
    names=_clip_names, said=lambda source: _towers_said(source, _CLIP_DEFAULTS), beside=_clip_config,
    usual={"image.mean": MEAN, "image.std": STD}, ignored=_position_ids,
)  # fmt: skip
SIGLIP = Layout(
    title="Hugging Face's SigLIP", kind="clip", mark=("vision_model.head.probe", "text_model.head.weight"),
    sizes=_siglip_sizes,
    names=_siglip_names, said=lambda source: _towers_said(source, _SIGLIP_DEFAULTS),
    beside=lambda config: _clip_config(config, "siglip"),
    usual={"image.mean": (0.5, 0.5, 0.5), "image.std": (0.5, 0.5, 0.5)}, ignored=_position_ids,
)  # fmt: skip
