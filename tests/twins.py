"""Tiny models of Hugging Face, timm and open_clip with random parameters, and the same parameters by our names."""

from dataclasses import replace

import numpy as np
import support
import torch

from saccade.models import clip, imagegpt, resnet, vit
from saccade.models.initialization import prefixed
from saccade.models.transformer import under

support.without_torchvision_operators()

import transformers  # noqa: E402  after torchvision was made importable

PIXELS = np.random.default_rng(1)
PALETTE_TOKENS = PIXELS.integers(0, 16, (3, 16))
IMAGES = PIXELS.standard_normal((2, 16, 16, 3))
TEXTS = np.array([[47, 3, 4, 48, 0, 0, 0, 0], [47, 9, 48, 0, 0, 0, 0, 0]])


def perturbed(model):
    """The model in float64 with every parameter random: norms at 1 and biases at 0 hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(noise * 0.3 + is_scale)
    return model


def arrays(tensors):
    """The tensors of a state dict, or their gradients, as NumPy arrays."""
    return {name: x.detach().numpy() for name, x in tensors.items()}


def gradients(model):
    """A dictionary like the model's state dict, of gradients."""
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def channels_first(images):
    """b h w c -> b c h w, as a tensor."""
    return torch.tensor(images).permute(0, 3, 1, 2)


def renamed(state, names):
    """Our parameters from theirs: ``names`` maps ours to theirs, without weight and bias; several are packed."""
    parameters = {}
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            sources = [f"{name}.{kind}" for name in theirs.split()]
            if all(name in state for name in sources):
                mine = "scale" if "norm" in ours and kind == "weight" else kind
                parameters[f"{ours}.{mine}"] = np.concatenate([state[name] for name in sources])
    return parameters


def blocks(state, depth, path, names):
    """The parameters of all blocks."""
    found = {}
    for i in range(depth):
        found |= prefixed(f"blocks.{i}", renamed(under(state, path.format(i)), names))
    return found


# --- ImageGPT -------------------------------------------------------------------------------------------------------

IMAGEGPT = imagegpt.ImageGPTConfig(width=12, depth=2, heads=3, colors=16, length=16, bias=True)


def imagegpt_parameters(state):
    """ImageGPT's by our names: projections are stored (in, out) there, and the start is a row of the embedding."""
    state = {name: x.T if ".c_" in name else x for name, x in state.items()}
    names = {"norm1": "ln_1", "norm2": "ln_2", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj"}
    names |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    return {
        "embed.weight": state["transformer.wte.weight"][:-1],
        "embed.sos": state["transformer.wte.weight"][-1],
        "embed.positions": state["transformer.wpe.weight"],
        **blocks(state, IMAGEGPT.depth, "transformer.h.{}", names),
        "norm.scale": state["transformer.ln_f.weight"],
        **renamed(state, {"head": "lm_head", "classifier": "score"}),
    }


def huggingface_imagegpt(kind="ForCausalImageModeling", **options):
    """(their model, our parameters, our config)."""
    config = transformers.ImageGPTConfig(
        vocab_size=17, n_positions=16, n_embd=12, n_layer=2, n_head=3, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        **options,
    )  # fmt: skip
    model = perturbed(getattr(transformers, f"ImageGPT{kind}")(config))
    return model, imagegpt_parameters(arrays(model.state_dict())), IMAGEGPT


def shifted(tokens):
    """What Hugging Face's model must be fed: start of sequence (id 16), then all tokens but the last."""
    return torch.tensor(np.concatenate([np.full((len(tokens), 1), 16), tokens[:, :-1]], 1))


# --- ViT ------------------------------------------------------------------------------------------------------------

VIT = vit.ViTConfig(
    width=16, depth=2, heads=2, hidden=32, image_size=16, patch_size=4, classes=5, eps=1e-12, gelu="erf",
    mean=None, std=None,
)  # fmt: skip


def vit_parameters(state):
    """Hugging Face's ViT by our names."""
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attention.out": "attention.o_proj"}
    names |= {"attention.qkv": "attention.q_proj attention.k_proj attention.v_proj"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    stem = "vit.embeddings"
    return {
        "embed.class_token": state[f"{stem}.cls_token"][0, 0],
        "embed.positions": state[f"{stem}.position_embeddings"][0],
        **renamed(state, {"embed": f"{stem}.patch_embeddings.projection", "pool.norm": "vit.layernorm"}),
        **blocks(state, VIT.depth, "vit.layers.{}", names),
        **renamed(state, {"head": "classifier", "pre_logits": "vit.pooler.dense"}),
    }


def huggingface_vit():
    """(their model, our parameters, our config)."""
    model = perturbed(transformers.ViTForImageClassification(huggingface_vit_config(num_labels=5)))
    return model, vit_parameters(arrays(model.state_dict())), VIT


def huggingface_vit_config(**options):
    """Of the same sizes as ``VIT``."""
    return transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4,
        **options,
    )  # fmt: skip


def timm_vit(pooling):
    """(timm's model, our parameters, our config)."""
    import timm

    options = {
        "token": {},
        "mean": dict(class_token=False, global_pool="avg", fc_norm=False),
        "map": dict(class_token=False, global_pool="map"),
    }[pooling]
    model = perturbed(
        timm.models.vision_transformer.VisionTransformer(
            img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=5, **options
        )
    )
    state = arrays(model.state_dict())
    names = {"norm1": "norm1", "norm2": "norm2", "attention.qkv": "attn.qkv", "attention.out": "attn.proj"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    whole = {"embed": "patch_embed.proj", "pool.norm": "norm", "head": "head"}
    whole |= {"pool.q": "attn_pool.q", "pool.kv": "attn_pool.kv", "pool.out": "attn_pool.proj"}
    whole |= {
        "pool.norm_mlp": "attn_pool.norm",
        "pool.mlp.fc1": "attn_pool.mlp.fc1",
        "pool.mlp.fc2": "attn_pool.mlp.fc2",
    }
    parameters = {
        "embed.positions": state["pos_embed"][0],
        **renamed(state, whole),
        **blocks(state, 2, "blocks.{}", names),
    }
    if pooling == "token":
        parameters["embed.class_token"] = state["cls_token"][0, 0]
    if pooling == "map":
        parameters["pool.probe"] = state["attn_pool.latent"][0, 0]
    return model, parameters, replace(VIT, pooling=pooling, eps=1e-6)


# --- CLIP -----------------------------------------------------------------------------------------------------------

CLIP = clip.CLIPConfig(
    embed=12,
    image=clip.image_config(width=24, depth=2, heads=2, image_size=16, patch_size=8, mean=None, std=None),
    text=clip.TextConfig(width=16, depth=2, heads=2, vocabulary=49, context=8),
)


def clip_parameters(state):
    """Hugging Face's CLIP by our names."""
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attention.out": "self_attn.out_proj"}
    names |= {"attention.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    image_stem, text_stem = "vision_model.embeddings", "text_model.embeddings"
    image = {
        "embed.class_token": state[f"{image_stem}.class_embedding"],
        "embed.positions": state[f"{image_stem}.position_embedding.weight"],
        **renamed(state, {"embed": f"{image_stem}.patch_embedding", "embed.norm": "vision_model.pre_layrnorm"}),
        **blocks(state, 2, "vision_model.encoder.layers.{}", names),
        **renamed(state, {"pool.norm": "vision_model.post_layernorm"}),
    }
    text = {
        "embed.positions": state[f"{text_stem}.position_embedding.weight"],
        **renamed(state, {"embed": f"{text_stem}.token_embedding", "pool.norm": "text_model.final_layer_norm"}),
        **blocks(state, 2, "text_model.encoder.layers.{}", names),
    }
    projections = {"image_projection": "visual_projection", "text_projection": "text_projection"}
    return {
        **prefixed("image", image),
        **prefixed("text", text),
        **renamed(state, projections),
        "logit_scale": state["logit_scale"],
    }


def huggingface_clip():
    """(their model, our parameters, our config)."""
    text = dict(
        vocab_size=49, hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=47, eos_token_id=48, pad_token_id=0, projection_dim=12,
    )  # fmt: skip
    vision = dict(
        hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    model = perturbed(
        transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    )
    return model, clip_parameters(arrays(model.state_dict())), CLIP


def open_clip_twin():
    """(open_clip's model, our parameters, our config)."""
    import open_clip

    vision = dict(layers=2, width=24, head_width=12, patch_size=8, image_size=16)
    text = dict(context_length=8, vocab_size=49, width=16, heads=2, layers=2)
    model = perturbed(open_clip.CLIP(12, vision, text, quick_gelu=True))
    state = arrays(model.state_dict())
    for name in [name for name in state if "in_proj_" in name]:
        state[name.replace("in_proj_", "in_proj.")] = state[name]
    names = {"norm1": "ln_1", "norm2": "ln_2", "attention.qkv": "attn.in_proj", "attention.out": "attn.out_proj"}
    names |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    image = {
        "embed.class_token": state["visual.class_embedding"],
        "embed.positions": state["visual.positional_embedding"],
        **renamed(state, {"embed": "visual.conv1", "embed.norm": "visual.ln_pre", "pool.norm": "visual.ln_post"}),
        **blocks(state, 2, "visual.transformer.resblocks.{}", names),
    }
    text = {
        "embed.positions": state["positional_embedding"],
        **renamed(state, {"embed": "token_embedding", "pool.norm": "ln_final"}),
        **blocks(state, 2, "transformer.resblocks.{}", names),
    }
    parameters = {
        **prefixed("image", image),
        **prefixed("text", text),
        "image_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "logit_scale": state["logit_scale"],
    }
    return model, parameters, CLIP


RESNET_CLIP = replace(CLIP, image=resnet.ResNetConfig(layers=(2, 1, 1, 1), width=8, embed=12, heads=4, image_size=64))
TALLER_IMAGES = PIXELS.standard_normal((2, 64, 64, 3))


def resnet_parameters(state):
    """The ResNet tower of open_clip by our names."""

    def normed(ours, theirs):
        kinds = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}
        found = {mine: state.get(f"{theirs}.{kind}") for mine, kind in kinds.items()}
        return {f"{ours}.{mine}": value for mine, value in found.items() if value is not None}

    parameters = {}
    for i in (1, 2, 3):
        parameters |= renamed(state, {f"stem.conv{i}": f"conv{i}"}) | normed(f"stem.norm{i}", f"bn{i}")
    paths = [f"layer{group}.{j}" for group, blocks in enumerate(RESNET_CLIP.image.layers, 1) for j in range(blocks)]
    for i, path in enumerate(paths):
        for j in (1, 2, 3):
            parameters |= renamed(state, {f"blocks.{i}.conv{j}": f"{path}.conv{j}"})
            parameters |= normed(f"blocks.{i}.norm{j}", f"{path}.bn{j}")
        parameters |= renamed(state, {f"blocks.{i}.downsample": f"{path}.downsample.0"})
        parameters |= normed(f"blocks.{i}.downsample_norm", f"{path}.downsample.1")
    pool = {"q": "q_proj", "kv": "k_proj v_proj", "out": "c_proj"}
    pool = {f"pool.{ours}": " ".join(f"attnpool.{one}" for one in theirs.split()) for ours, theirs in pool.items()}
    return parameters | renamed(state, pool) | {"pool.positions": state["attnpool.positional_embedding"]}


def open_clip_resnet():
    """(open_clip's image tower, our parameters, our config)."""
    from open_clip.modified_resnet import ModifiedResNet

    model = perturbed(ModifiedResNet([2, 1, 1, 1], output_dim=12, heads=4, image_size=64, width=8))
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model, resnet_parameters(arrays(model.state_dict())), RESNET_CLIP.image


SIGLIP = clip.CLIPConfig(
    embed=16,
    image=vit.ViTConfig(
        width=16, depth=2, heads=2, hidden=40, image_size=16, patch_size=8, pooling="map", mean=None, std=None
    ),
    text=clip.TextConfig(
        width=16, depth=2, heads=2, hidden=40, vocabulary=49, context=8, causal=False, pooling="last", eps=1e-6,
        gelu="tanh",
    ),
    logit_bias=-10.0,
)  # fmt: skip


def huggingface_siglip():
    """(their model, our parameters, our config)."""
    sizes = dict(hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2)
    text = dict(vocab_size=49, max_position_embeddings=8, pad_token_id=0, bos_token_id=47, eos_token_id=48)
    config = transformers.SiglipConfig(
        text_config=sizes | text, vision_config=sizes | dict(image_size=16, patch_size=8)
    )
    model = perturbed(transformers.SiglipModel(config))
    state = arrays(model.state_dict())
    for kind in ("weight", "bias"):
        packed = state.pop(f"vision_model.head.attention.in_proj_{kind}")
        state[f"vision_model.head.q.{kind}"], state[f"vision_model.head.kv.{kind}"] = np.split(packed, [16])
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attention.out": "self_attn.out_proj"}
    names |= {"attention.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    head = {"pool.norm_mlp": "layernorm", "pool.mlp.fc1": "mlp.fc1", "pool.mlp.fc2": "mlp.fc2"}
    head |= {"pool.q": "q", "pool.kv": "kv", "pool.out": "attention.out_proj"}
    image = {
        **renamed(state, {"embed": "vision_model.embeddings.patch_embedding"}),
        "embed.positions": state["vision_model.embeddings.position_embedding.weight"],
        **blocks(state, 2, "vision_model.encoder.layers.{}", names),
        **renamed(state, {"pool.norm": "vision_model.post_layernorm"}),
        **renamed(state, {ours: f"vision_model.head.{theirs}" for ours, theirs in head.items()}),
        "pool.probe": state["vision_model.head.probe"][0, 0],
    }
    text = {
        "embed.positions": state["text_model.embeddings.position_embedding.weight"],
        **renamed(
            state,
            {"embed": "text_model.embeddings.token_embedding", "pool.norm": "text_model.final_layer_norm"},
        ),
        **blocks(state, 2, "text_model.encoder.layers.{}", names),
    }
    parameters = {
        **prefixed("image", image),
        **prefixed("text", text),
        **renamed(state, {"text_projection": "text_model.head"}),
        "logit_scale": state["logit_scale"].reshape(()),
        "logit_bias": state["logit_bias"].reshape(()),
    }
    return model, parameters, SIGLIP
