"""Hugging Face's layouts of ImageGPT and ViT, as ``save_pretrained`` writes them."""

import numpy as np

from saccade.weights.layout import Layout, gelu_kind, gelu_name, keys, normalisation
from saccade.weights.links import Names, linear, norm, packed, row, token, transposed, under, whole

# --- ImageGPT: projections lie (in, out), the start of a sequence is a row of the embedding -------------------------


def _conv1d(ours, theirs):
    return linear(ours, theirs, transposed)


def _imagegpt_names(config, found=None):
    block = {
        **norm("norm1", "ln_1"), **_conv1d("attention.qkv", "attn.c_attn"), **_conv1d("attention.out", "attn.c_proj"),
        **norm("norm2", "ln_2"), **_conv1d("mlp.fc1", "mlp.c_fc"), **_conv1d("mlp.fc2", "mlp.c_proj"),
    }  # fmt: skip
    links = {
        "transformer.wte.weight": [("embed.weight", whole), ("embed.sos", row)],
        "transformer.wpe.weight": [("embed.positions", whole)],
        **norm("norm", "transformer.ln_f"),
        **linear("head", "lm_head"),
        **linear("classifier", "score"),
    }
    for i in range(config.depth):
        links |= under(f"blocks.{i}.", f"transformer.h.{i}.", block)
    zeros, constants = (), {}
    if found is not None and "lm_head.weight" not in found and "score.weight" in found:
        zeros = ("head.weight",)  # a classifier's file; as in the paper's code, the head begins at 0
        del links["lm_head.weight"]
    if not config.bias:
        widths = {"attn.c_attn": 3 * config.width, "attn.c_proj": config.width, "mlp.c_fc": config.hidden}
        widths["mlp.c_proj"] = config.width
        for i in range(config.depth):
            constants |= {f"transformer.h.{i}.{name}.bias": ((n,), None) for name, n in widths.items()}
    return Names(links, constants, zeros)


def _imagegpt_sizes(found):
    width = found.size("transformer.wte.weight", 1)
    classes = {"classes": found.size("score.weight", 0)} if "score.weight" in found else {}
    return {
        "width": width, "depth": found.depth(r"transformer\.h\.(\d+)\."),
        "hidden": found.size("transformer.h.0.mlp.c_fc.weight", 1),
        "colors": found.size("transformer.wte.weight", 0) - 1, "length": found.size("transformer.wpe.weight", 0),
        "objective": "autoregressive", **classes,
    }  # fmt: skip


def _imagegpt_said(source):
    table = source.beside.get("config.json", {})
    facts = keys(table, {"n_head": "heads", "layer_norm_epsilon": "eps", "activation_function": "gelu"})
    if "gelu" in facts:
        facts["gelu"] = gelu_kind(source.where, facts["gelu"])
    biases = [name for name in source.shapes if name.endswith(".bias") and ".h." in name]
    with_bias = any(source.read(name).view(np.uint8).any() for name in biases)  # conversions of OpenAI's hold zeros
    return [("config.json", facts), ("the biases' values", {"bias": with_bias})]


def _imagegpt_config(config):
    classes = config.classes is not None
    kind = "ForImageClassification" if classes else "ForCausalImageModeling"
    return {
        "config.json": {
            "architectures": [f"ImageGPT{kind}"], "model_type": "imagegpt", "n_embd": config.width,
            "n_layer": config.depth, "n_head": config.heads, "n_inner": config.hidden, "n_positions": config.length,
            "vocab_size": config.colors + 1, "activation_function": gelu_name(config.gelu),
            "layer_norm_epsilon": config.eps, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            "tie_word_embeddings": False, **_labels(config),
        }
    }  # fmt: skip


IMAGEGPT = Layout(
    title="Hugging Face's ImageGPT", kind="imagegpt", mark=("transformer.wte.weight", "transformer.h.0.ln_1.weight"),
    sizes=_imagegpt_sizes, names=_imagegpt_names, said=_imagegpt_said, beside=_imagegpt_config, usual={},
    ignored=lambda name: name.endswith((".attn.bias", ".attn.masked_bias")),
)  # fmt: skip


# --- ViT --------------------------------------------------------------------------------------------------------------


def _labels(config):
    if config.classes is None:
        return {}
    return {"id2label": {str(i): f"LABEL_{i}" for i in range(config.classes)}}


def _vit_block():
    inside = [f"attention.attention.{name}" for name in ("query", "key", "value")]
    return {
        **norm("norm1", "layernorm_before"), **packed("attention.qkv", inside),
        **linear("attention.out", "attention.output.dense"), **norm("norm2", "layernorm_after"),
        **linear("mlp.fc1", "intermediate.dense"), **linear("mlp.fc2", "output.dense"),
    }  # fmt: skip


def _vit_stem(found):
    """A classifier's file has a name before those of the model without its head."""
    return "" if "embeddings.cls_token" in found else "vit."


def _vit_names(config, found=None):
    stem = _vit_stem(found or {}) if found or config.classes is not None else ""
    embeddings = f"{stem}embeddings"
    links = {
        f"{embeddings}.cls_token": [("embed.class_token", token)],
        f"{embeddings}.position_embeddings": [("embed.positions", row)],
        **linear("embed", f"{embeddings}.patch_embeddings.projection"),
        **norm("pool.norm", f"{stem}layernorm"),
        **linear("pre_logits", f"{stem}pooler.dense"),
        **linear("head", "classifier"),
    }
    for i in range(config.depth):
        links |= under(f"blocks.{i}.", f"{stem}encoder.layer.{i}.", _vit_block())
    return Names(links)


def _vit_sizes(found):
    stem = _vit_stem(found)
    patches = f"{stem}embeddings.patch_embeddings.projection.weight"
    patch = found.size(patches, 2)
    facts = {
        "width": found.size(patches, 0), "channels": found.size(patches, 1), "patch_size": patch, "pooling": "token",
        "depth": found.depth(rf"{stem}encoder\.layer\.(\d+)\."),
        "hidden": found.size(f"{stem}encoder.layer.0.intermediate.dense.weight", 0), "embed_norm": False,
        **found.side(f"{stem}embeddings.position_embeddings", 1, 1, patch),
    }  # fmt: skip
    for name, fact in (("classifier.weight", "classes"), (f"{stem}pooler.dense.weight", "representation")):
        facts |= {fact: found.size(name, 0)} if name in found else {}
    return facts


_VIT_KEYS = {"num_attention_heads": "heads", "hidden_act": "gelu", "layer_norm_eps": "eps", "image_size": "image_size"}


def tower_facts(where, table, defaults=None):
    facts = keys((defaults or {}) | table, _VIT_KEYS)
    if "gelu" in facts:
        facts["gelu"] = gelu_kind(where, facts["gelu"])
    if isinstance(facts.get("image_size"), list):
        facts["image_size"] = tuple(facts["image_size"])
    return facts


def pixels(source):
    return normalisation(source.beside.get("preprocessor_config.json", {}), "image_mean", "image_std")


def _vit_said(source):
    table = source.beside.get("config.json", {})
    return [("config.json", tower_facts(source.where, table)), ("preprocessor_config.json", pixels(source))]


def tower_config(config):
    return {
        "hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.heads,
        "intermediate_size": config.hidden, "hidden_act": gelu_name(config.gelu), "layer_norm_eps": config.eps,
    }  # fmt: skip


def image_config(config):
    size = config.image_size if isinstance(config.image_size, int) else list(config.image_size)
    sizes = {"image_size": size, "patch_size": config.patch_size, "num_channels": config.channels}
    return tower_config(config) | sizes


def preprocessor(config, **options):
    if config.mean is None:
        return {}
    return {"preprocessor_config.json": options | {"image_mean": list(config.mean), "image_std": list(config.std)}}


def _vit_config(config):
    kind = "ViTModel" if config.classes is None else "ViTForImageClassification"
    facts = {"architectures": [kind], "model_type": "vit", **image_config(config), **_labels(config)}
    return {"config.json": facts, **preprocessor(config, image_processor_type="ViTImageProcessor")}


VIT = Layout(
    title="Hugging Face's ViT", kind="vit",
    mark=tuple(f"{stem}embeddings.{name}" for stem in ("", "vit.") for name in ("cls_token", "position_embeddings")),

    sizes=_vit_sizes, names=_vit_names, said=_vit_said, beside=_vit_config,
    usual={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
)  # fmt: skip
