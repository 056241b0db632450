"""Tiny models of Hugging Face, timm and open_clip with random parameters, and the same parameters by our names.

Each twin is saved by its own library and read by ``saccade.models.load``; its config is what its files say.
"""

import copy
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from saccade.models import clip, imagegpt, load, resnet, vit
from saccade.testing.peers import usable_torchvision

usable_torchvision()

import safetensors.torch  # noqa: E402  after torchvision was made importable
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

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


def gradients(model):
    """A dictionary like the model's state dict, of gradients."""
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def channels_first(images):
    """b h w c -> b c h w, as a tensor."""
    return torch.tensor(images).permute(0, 3, 1, 2)


def saved(model, folder):
    """Write one of their models as its library does; open_clip's wants its config from the hand that made it."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    elif hasattr(model, "pretrained_cfg"):
        import timm

        timm.models.save_for_hf(model, folder, safe_serialization=True)
    else:
        tensors = {name: x.contiguous() for name, x in model.state_dict().items()}
        safetensors.torch.save_file(tensors, Path(folder) / "open_clip_model.safetensors")
        (Path(folder) / "open_clip_config.json").write_text(json.dumps({"model_cfg": model.made_from}))


def loaded(model):
    """(our parameters, our config) of one of their models; images are fed as they are, without mean and std."""
    with tempfile.TemporaryDirectory() as folder:
        saved(model, folder)
        parameters, config = load(folder)
    if isinstance(config, imagegpt.ImageGPTConfig):
        return parameters, config
    image = getattr(config, "image", config)
    bare = replace(image, mean=None, std=None)
    return parameters, bare if image is config else replace(config, image=bare)


def gradients_by_our_names(model):
    """The gradients of one of their models by our names: read as parameters of a model that has them for its own."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
            mine.copy_(torch.zeros_like(theirs) if theirs.grad is None else theirs.grad)
    return loaded(other)[0]


# --- ImageGPT -------------------------------------------------------------------------------------------------------

IMAGEGPT = imagegpt.ImageGPTConfig(width=12, depth=2, heads=3, colors=16, length=16, bias=True)


def huggingface_imagegpt(kind="ForCausalImageModeling", **options):
    """(their model, our parameters, our config)."""
    config = transformers.ImageGPTConfig(
        vocab_size=17, n_positions=16, n_embd=12, n_layer=2, n_head=3, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        **options,
    )  # fmt: skip
    model = perturbed(getattr(transformers, f"ImageGPT{kind}")(config))
    return model, *loaded(model)


def shifted(tokens):
    """What Hugging Face's model must be fed: start of sequence (id 16), then all tokens but the last."""
    return torch.tensor(np.concatenate([np.full((len(tokens), 1), 16), tokens[:, :-1]], 1))


# --- ViT ------------------------------------------------------------------------------------------------------------

VIT = vit.ViTConfig(
    width=16, depth=2, heads=2, hidden=32, image_size=16, patch_size=4, classes=5, eps=1e-12, gelu="erf",
    mean=None, std=None,
)  # fmt: skip


def huggingface_vit(kind="ForImageClassification"):
    """(their model, our parameters, our config)."""
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4,
        num_labels=5,
    )  # fmt: skip
    model = perturbed(getattr(transformers, f"ViT{kind}")(config))
    return model, *loaded(model)


def timm_vit(pooling):
    """(timm's model, our parameters, our config)."""
    import timm

    options = {
        "token": {},
        "mean": dict(class_token=False, global_pool="avg", fc_norm=False),
        "map": dict(class_token=False, global_pool="map"),
    }[pooling]
    sizes = dict(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=5)
    model = perturbed(timm.create_model("vit_tiny_patch16_224", **sizes, **options))
    return model, *loaded(model)


# --- CLIP -----------------------------------------------------------------------------------------------------------

CLIP = clip.CLIPConfig(
    embed=12,
    image=clip.image_config(width=24, depth=2, heads=2, image_size=16, patch_size=8, mean=None, std=None),
    text=clip.TextConfig(width=16, depth=2, heads=2, vocabulary=49, context=8),
)


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
    return model, *loaded(model)


def open_clip_twin(vision=None):
    """(open_clip's model, our parameters, our config)."""
    import open_clip

    vision = vision or dict(layers=2, width=24, head_width=12, patch_size=8, image_size=16)
    text = dict(context_length=8, vocab_size=49, width=16, heads=2, layers=2)
    made_from = dict(embed_dim=12, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    model = perturbed(open_clip.CLIP(**made_from))
    model.made_from = made_from
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model, *loaded(model)


def open_clip_siglip():
    """(open_clip's model, our parameters, our config), of which timm makes the image tower."""
    import open_clip
    import timm

    name = "vit_tiny_patch8_siglip_16"
    if not timm.is_model(name):

        def entry(pretrained=False, **options):
            sizes = dict(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=3, class_token=False)
            return timm.models.vision_transformer._create_vision_transformer(name, pretrained, **sizes | options)

        entry.__name__, entry.__module__ = name, timm.models.vision_transformer.__name__
        timm.models.register_model(entry)
    vision = dict(image_size=16, timm_model_name=name, timm_model_pretrained=False, timm_pool="map", timm_proj="none")
    text = dict(context_length=8, vocab_size=49, width=12, heads=3, layers=2, no_causal_mask=True, proj_bias=True)
    text |= dict(pool_type="last", norm_kwargs={"eps": 1e-6})
    made_from = dict(embed_dim=12, vision_cfg=vision, text_cfg=text, init_logit_bias=-10)
    model = perturbed(open_clip.CustomTextCLIP(**made_from))
    model.made_from = made_from
    return model, *loaded(model)


RESNET_CLIP = replace(
    CLIP,
    image=resnet.ResNetConfig(
        layers=(2, 1, 1, 1), width=8, embed=12, heads=4, image_size=64, mean=None, std=None
    ),
)  # fmt: skip
TALLER_IMAGES = PIXELS.standard_normal((2, 64, 64, 3))


def open_clip_resnet():
    """(open_clip's model, our parameters, our config), whose image tower is a ResNet."""
    return open_clip_twin(dict(layers=[2, 1, 1, 1], width=8, image_size=64, head_width=64))


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
    return model, *loaded(model)
