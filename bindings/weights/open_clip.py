"""open_clip's layout of CLIP, which is OpenAI's, and of SigLIP, whose image tower is timm's."""

from saccade.models.clip import MEAN, STD
from saccade.models.resnet import ResNetConfig
from saccade.weights import timm
from saccade.weights.layout import Found, Layout, keys, normalisation, prefixed
from saccade.weights.links import Names, linear, norm, packed, transposed, under, whole

BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
HEAD_WIDTH = 64
_SIZES = ("input_resolution", "context_length", "vocab_size")  # OpenAI's, which shapes tell, too


def _blocks(ours, theirs, depth):
    block = {
        **norm("norm1", "ln_1"), "attn.in_proj_weight": [("attention.qkv.weight", whole)],
        "attn.in_proj_bias": [("attention.qkv.bias", whole)], **linear("attention.out", "attn.out_proj"),
        **norm("norm2", "ln_2"), **linear("mlp.fc1", "mlp.c_fc"), **linear("mlp.fc2", "mlp.c_proj"),
    }  # fmt: skip
    links = {}
    for i in range(depth):
        links |= under(f"{ours}.blocks.{i}.", f"{theirs}transformer.resblocks.{i}.", block)
    return links


def _text_links(stem, config):
    return {
        f"{stem}positional_embedding": [("text.embed.positions", whole)],
        f"{stem}token_embedding.weight": [("text.embed.weight", whole)],
        **_blocks("text", stem, config.text.depth),
        **norm("text.pool.norm", f"{stem}ln_final"),
    }


def _vit_links(config):
    return {
        "visual.class_embedding": [("image.embed.class_token", whole)],
        "visual.positional_embedding": [("image.embed.positions", whole)],
        "visual.conv1.weight": [("image.embed.weight", whole)],
        **norm("image.embed.norm", "visual.ln_pre"),
        **_blocks("image", "visual.", config.depth),
        **norm("image.pool.norm", "visual.ln_post"),
        "visual.proj": [("image_projection.weight", transposed)],
    }


def _resnet_names(config):
    """(links, constants): a batch norm of theirs also counts its batches, in a number that nothing reads."""
    convolutions = {f"image.stem.conv{i}": f"visual.conv{i}" for i in (1, 2, 3)}
    norms = {f"image.stem.norm{i}": f"visual.bn{i}" for i in (1, 2, 3)}
    paths = [f"visual.layer{group}.{j}" for group, blocks in enumerate(config.layers, 1) for j in range(blocks)]
    for i, path in enumerate(paths):
        convolutions |= {f"image.blocks.{i}.conv{j}": f"{path}.conv{j}" for j in (1, 2, 3)}
        norms |= {f"image.blocks.{i}.norm{j}": f"{path}.bn{j}" for j in (1, 2, 3)}
        if config.stride(i) > 1 or i == 0:
            convolutions[f"image.blocks.{i}.downsample"] = f"{path}.downsample.0"
            norms[f"image.blocks.{i}.downsample_norm"] = f"{path}.downsample.1"
    links = {f"{theirs}.weight": [(f"{ours}.weight", whole)] for ours, theirs in convolutions.items()}
    for ours, theirs in norms.items():
        links |= {f"{theirs}.{name}": [(f"{ours}.{mine}", whole)] for name, mine in BATCH_NORM.items()}
    pool = "visual.attnpool"
    links |= {
        f"{pool}.positional_embedding": [("image.pool.positions", whole)],
        **linear("image.pool.q", f"{pool}.q_proj"),
        **packed("image.pool.kv", [f"{pool}.k_proj", f"{pool}.v_proj"]),
        **linear("image.pool.out", f"{pool}.c_proj"),
    }
    return links, {f"{theirs}.num_batches_tracked": ((), "i8") for theirs in norms.values()}


def _names(config, found=None):
    constants = {}
    if isinstance(config.image, ResNetConfig):
        image, constants = _resnet_names(config.image)
        if found is not None:
            constants = {}  # ignored in reading: older files have none
    else:
        image = _vit_links(config.image)
    links = image | _text_links("", config)
    links["text_projection"] = [("text_projection.weight", transposed)]
    links["logit_scale"] = [("logit_scale", whole)]
    return Names(links, constants)


def _siglip_names(config, found=None):
    return Names({
        **under("image.", "visual.trunk.", timm.tower_links(config.image)),
        **_text_links("text.", config),
        **linear("text_projection", "text.text_projection"),
        "logit_scale": [("logit_scale", whole)],
        "logit_bias": [("logit_bias", whole)],
    })  # fmt: skip


def _text_sizes(found, stem):
    return {
        "kind": "transformer", "width": found.size(f"{stem}ln_final.weight", 0),
        "vocabulary": found.size(f"{stem}token_embedding.weight", 0),
        "context": found.size(f"{stem}positional_embedding", 0),
        "depth": found.depth(rf"{stem}transformer\.resblocks\.(\d+)\."),
        "hidden": found.size(f"{stem}transformer.resblocks.0.mlp.c_fc.weight", 0),
    }  # fmt: skip


def _sizes(found):
    text = _text_sizes(found, "") | {"pooling": "end", "causal": True}
    if "visual.layer1.0.conv1.weight" in found or "visual.attnpool.q_proj.weight" in found:
        image = {
            "layers": tuple(found.depth(rf"visual\.layer{group}\.(\d+)\.") for group in (1, 2, 3, 4)),
            "width": found.size("visual.layer1.0.conv1.weight", 0), "channels": found.size("visual.conv1.weight", 1),
            "embed": found.size("visual.attnpool.c_proj.weight", 0),
            **found.side("visual.attnpool.positional_embedding", 0, 1, 32),
        }  # fmt: skip
    else:
        patch = found.size("visual.conv1.weight", 2)
        image = {
            "width": found.size("visual.conv1.weight", 0), "channels": found.size("visual.conv1.weight", 1),
            "patch_size": patch, "depth": found.depth(r"visual\.transformer\.resblocks\.(\d+)\."),
            "hidden": found.size("visual.transformer.resblocks.0.mlp.c_fc.weight", 0), "pooling": "token",
            "embed_norm": True, "embed_bias": False, **found.side("visual.positional_embedding", 0, 1, patch),
        }  # fmt: skip
    return {"embed": found.size("text_projection", 1), **prefixed("image", image), **prefixed("text", text)}


def _siglip_sizes(found):
    text = _text_sizes(found, "text.") | {"pooling": "last", "causal": False}
    image = timm.tower_sizes(found, "visual.trunk.")
    embed = found.size("text.text_projection.weight", 0)
    return {"embed": embed, "logit_bias": -10.0, **prefixed("image", image), **prefixed("text", text)}


def _archive_said(source):
    """What OpenAI's code takes for granted of the archives that it comes with."""
    sizes = _sizes(Found(source.shapes, source.where))
    gelu, resnet = "erf" if source.exact_gelu else "sigmoid", "image.layers" in sizes
    facts = {"image.heads": sizes["image.width"] * (32 if resnet else 1) // HEAD_WIDTH, "text.gelu": gelu}
    facts |= {"text.heads": sizes["text.width"] // HEAD_WIDTH} | ({} if resnet else {"image.gelu": gelu})
    return [("OpenAI's code", facts)]


def _config_json(source):
    """(model_cfg, its vision_cfg, its text_cfg, preprocess_cfg) of open_clip_config.json, or None."""
    table = source.beside.get("open_clip_config.json")
    if table is None:
        return None
    model, pixels = table.get("model_cfg", {}), table.get("preprocess_cfg", {})
    parts = model, model.get("vision_cfg", {}), model.get("text_cfg", {}), pixels
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{source.where}: open_clip_config.json has no model_cfg, vision_cfg and text_cfg")
    return parts


def _said(source):
    parts = _config_json(source)
    if parts is None:
        return [] if source.exact_gelu is None else _archive_said(source)
    model, vision, text, pixels = parts
    gelu = "sigmoid" if model.get("quick_gelu") else "erf"
    facts = {"text.gelu": gelu, **prefixed("text", keys(text, {"heads": "heads"}))}
    width, head_width = vision.get("width"), vision.get("head_width", HEAD_WIDTH)
    if isinstance(width, int) and isinstance(head_width, int) and head_width > 0:
        resnet = isinstance(vision.get("layers"), list)
        facts["image.heads"] = width * (32 if resnet else 1) // head_width
        facts |= {} if resnet else {"image.gelu": gelu}
    return [("open_clip_config.json", facts | prefixed("image", normalisation(pixels, "mean", "std")))]


def _siglip_said(source):
    parts = _config_json(source)
    if parts is None:
        return []
    _, vision, text, pixels = parts
    facts = keys(text, {"heads": "heads"})
    if isinstance(text.get("act_kwargs"), dict) and text["act_kwargs"].get("approximate") == "tanh":
        facts["gelu"] = "tanh"
    image = timm.architecture_facts(str(vision.get("timm_model_name", "")))
    image |= normalisation(pixels, "mean", "std")
    return [("open_clip_config.json", {**prefixed("text", facts), **prefixed("image", image)})]


def _preprocess(config):
    return {"preprocess_cfg": {"mean": list(config.mean), "std": list(config.std)}} if config.mean is not None else {}


def _config(config):
    image, text = config.image, config.text
    gelus = {text.gelu} | ({image.gelu} if not isinstance(image, ResNetConfig) else set())
    if gelus not in ({"erf"}, {"sigmoid"}):
        raise ValueError(
            f"open_clip's CLIP has one GELU, erf or sigmoid, for both towers, not {', '.join(sorted(gelus))}"
        )
    vision = {"image_size": image.image_size, "width": image.width}
    if isinstance(image, ResNetConfig):
        vision |= {"layers": list(image.layers), "head_width": 32 * image.width // image.heads}
    else:
        vision |= {"layers": image.depth, "head_width": image.width // image.heads, "patch_size": image.patch_size}
        vision |= {"mlp_ratio": image.hidden / image.width}
    words = {"context_length": text.context, "vocab_size": text.vocabulary, "width": text.width, "heads": text.heads}
    words |= {"layers": text.depth, "mlp_ratio": text.hidden / text.width}
    model = {"embed_dim": config.embed, "quick_gelu": text.gelu == "sigmoid", "vision_cfg": vision, "text_cfg": words}
    return {"open_clip_config.json": {"model_cfg": model, **_preprocess(image)}}


def _siglip_config(config):
    raise ValueError("saccade writes no config of open_clip's SigLIP: convert to Hugging Face's layout, or to one file")


CLIP = Layout(
    title="open_clip's CLIP", kind="clip",
    mark=("visual.conv1.weight", "visual.proj", "visual.ln_pre.weight", "visual.attnpool.q_proj.weight"),
    sizes=_sizes, names=_names, said=_said, beside=_config,
    usual={"image.eps": 1e-5, "text.eps": 1e-5, "image.mean": MEAN, "image.std": STD},
    ignored=lambda name: name in _SIZES or name.endswith((".num_batches_tracked", "attn_mask")),
)  # fmt: skip
SIGLIP = Layout(
    title="open_clip's SigLIP", kind="clip", mark=("visual.trunk.pos_embed", "visual.trunk.patch_embed.proj.weight"),
    sizes=_siglip_sizes, names=_siglip_names, said=_siglip_said, beside=_siglip_config,
    usual={
        **prefixed("image", timm.USUAL), **prefixed("text", timm.USUAL), "image.mean": (0.5, 0.5, 0.5),
        "image.std": (0.5, 0.5, 0.5),
    },
)  # fmt: skip
