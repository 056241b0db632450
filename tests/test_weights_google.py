"""Google's archives, read as timm and open_clip read them."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
import twins
from support import assert_close64

from saccade import reference
from saccade.models import clip, load, vit

E, HEADS, HIDDEN, DEPTH, PATCH = 12, 3, 48, 2, 8


def tower(rng, encoder, style):
    """The arrays of a transformer: "old" vision_transformer's names, "new" big_vision's, "stacked" in one."""
    numbers = (0, 1, 2, 3) if style == "old" else (0, 0, 1, 0)
    norm1, attention, norm2, mlp = (
        f"{name}_{i}"
        for name, i in zip(("LayerNorm", "MultiHeadDotProductAttention", "LayerNorm", "MlpBlock"), numbers, strict=True)
    )
    d = E // HEADS
    block = {f"{norm}/{kind}": (E,) for norm in (norm1, norm2) for kind in ("scale", "bias")}
    for name in ("query", "key", "value"):
        block |= {f"{attention}/{name}/kernel": (E, HEADS, d), f"{attention}/{name}/bias": (HEADS, d)}
    block |= {f"{attention}/out/kernel": (HEADS, d, E), f"{attention}/out/bias": (E,)}
    block |= {f"{mlp}/Dense_0/kernel": (E, HIDDEN), f"{mlp}/Dense_0/bias": (HIDDEN,)}
    block |= {f"{mlp}/Dense_1/kernel": (HIDDEN, E), f"{mlp}/Dense_1/bias": (E,)}
    shapes = {f"{encoder}/encoder_norm/{kind}": (E,) for kind in ("scale", "bias")}
    if style == "stacked":
        shapes |= {f"{encoder}/encoderblock/{name}": (DEPTH, *shape) for name, shape in block.items()}
    else:
        for i in range(DEPTH):
            shapes |= {f"{encoder}/encoderblock_{i}/{name}": shape for name, shape in block.items()}
    return {name: rng.standard_normal(shape) * 0.3 for name, shape in shapes.items()}


def image_arrays(stem="", style="old", pooling="token", classes=5, representation=None):
    """The arrays of a ViT of 2 x 2 patches."""
    rng = np.random.default_rng(3)
    n = 5 if pooling == "token" and style == "old" else 4
    positions = "Transformer/posembed_input/pos_embedding" if style == "old" else "pos_embedding"
    shapes = {"embedding/kernel": (PATCH, PATCH, 3, E), "embedding/bias": (E,), positions: (1, n, E)}
    if pooling == "token":
        shapes["cls"] = (1, 1, E)
    if pooling == "map":
        d, pool = E // HEADS, "MAPHead_0"
        shapes |= {f"{pool}/probe": (1, 1, E), f"{pool}/LayerNorm_0/scale": (E,), f"{pool}/LayerNorm_0/bias": (E,)}
        for name in ("query", "key", "value"):
            shapes[f"{pool}/MultiHeadDotProductAttention_0/{name}/kernel"] = (E, HEADS, d)
            shapes[f"{pool}/MultiHeadDotProductAttention_0/{name}/bias"] = (HEADS, d)
        shapes[f"{pool}/MultiHeadDotProductAttention_0/out/kernel"] = (HEADS, d, E)
        shapes[f"{pool}/MultiHeadDotProductAttention_0/out/bias"] = (E,)
        shapes |= {f"{pool}/MlpBlock_0/Dense_0/kernel": (E, HIDDEN), f"{pool}/MlpBlock_0/Dense_0/bias": (HIDDEN,)}
        shapes |= {f"{pool}/MlpBlock_0/Dense_1/kernel": (HIDDEN, E), f"{pool}/MlpBlock_0/Dense_1/bias": (E,)}
    if representation:
        shapes |= {"pre_logits/kernel": (E, representation), "pre_logits/bias": (representation,)}
    if classes:
        shapes |= {"head/kernel": (representation or E, classes), "head/bias": (classes,)}
    arrays = {name: rng.standard_normal(shape) * 0.3 for name, shape in shapes.items()}
    arrays |= tower(rng, "Transformer", style)
    return {stem + name: x for name, x in arrays.items()}


@pytest.mark.parametrize(
    ("stem", "style", "pooling"),
    [
        ("", "old", "token"),
        ("opt/target/", "old", "token"),
        ("params/", "new", "token"),
        ("params/", "new", "map"),
        ("params/", "stacked", "map"),
        ("", "new", "mean"),
    ],
)
def test_archives_give_the_numbers_that_they_give_in_timm(stem, style, pooling, tmp_path):
    import timm

    np.savez(tmp_path / "x.npz", **image_arrays(stem, style, pooling))
    options = {
        "token": dict(),
        "mean": dict(class_token=False, global_pool="avg", fc_norm=False),
        "map": dict(class_token=False, global_pool="map"),
    }[pooling]
    theirs = timm.models.VisionTransformer(
        img_size=16, patch_size=PATCH, embed_dim=E, depth=DEPTH, num_heads=HEADS, mlp_ratio=HIDDEN / E, num_classes=5,
        act_layer="gelu_tanh", no_embed_class=False, **options,
    )  # fmt: skip
    theirs = theirs.double().eval()
    if pooling == "token" and style != "old":  # theirs adds the class token's position: here it has none
        with torch.no_grad():
            theirs.pos_embed.zero_()
    parameters, config = load(tmp_path / "x.npz")
    if pooling == "token" and style != "old":
        arrays = image_arrays(stem, style, pooling)
        arrays[f"{stem}pos_embedding"] = np.concatenate([np.zeros((1, 1, E)), arrays[f"{stem}pos_embedding"]], 1)
        np.savez(tmp_path / "y.npz", **arrays)
        theirs.load_pretrained(tmp_path / "y.npz")
    else:
        theirs.load_pretrained(tmp_path / "x.npz")
    assert config == vit.ViTConfig(
        width=E, depth=DEPTH, heads=HEADS, hidden=HIDDEN, image_size=16, patch_size=PATCH, classes=5, pooling=pooling
    )
    with torch.no_grad():
        expected = theirs(twins.channels_first(twins.IMAGES))
    config = replace(config, mean=None, std=None)
    assert_close64(vit.forward(parameters, twins.IMAGES, config, reference), expected)


def test_the_hidden_layer_of_a_head_at_pre_training_is_read(tmp_path):
    arrays = image_arrays(representation=7)
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    parameters, config = load(tmp_path / "x.npz")
    assert config.representation == 7
    stages = {}
    ours = vit.forward(parameters, twins.IMAGES, config, reference, stages=stages)
    hidden = np.tanh(stages["pool"] @ arrays["pre_logits/kernel"] + arrays["pre_logits/bias"])
    assert_close64(ours, hidden @ arrays["head/kernel"] + arrays["head/bias"])


def test_half_precision_is_read_by_the_name_that_numpy_does_not_know(tmp_path):
    arrays = {name: x.astype(ml_dtypes.bfloat16) for name, x in image_arrays().items()}
    np.savez(tmp_path / "x.npz", **arrays)
    parameters, _ = load(tmp_path / "x.npz")
    assert {x.dtype for x in parameters.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert np.array_equal(parameters["embed.bias"], arrays["embedding/bias"])


@pytest.mark.parametrize("style", ["new", "stacked"])
def test_big_visions_siglip_gives_the_numbers_that_it_gives_in_open_clip(style, tmp_path):
    from open_clip.convert import load_big_vision_weights

    model, _, _ = twins.open_clip_siglip()
    rng = np.random.default_rng(4)
    arrays = image_arrays("params/img/", style, "map", classes=None) | tower(rng, "params/txt/Encoder_0", style)
    shapes = {"Embed_0/embedding": (49, E), "pos_embedding": (1, 8, E), "head/kernel": (E, E), "head/bias": (E,)}
    arrays |= {f"params/txt/{name}": rng.standard_normal(shape) for name, shape in shapes.items()}
    arrays |= {"params/t": np.array([0.7]), "params/b": np.array([-3.0]), "opt/count": np.array(3)}
    np.savez(tmp_path / "x.npz", **arrays)
    load_big_vision_weights(model, tmp_path / "x.npz")
    parameters, config = load(tmp_path / "x.npz")
    assert (config.image.gelu, config.text.gelu, config.text.causal) == ("tanh", "tanh", False)
    image, text = (replace(tower, gelu="erf") for tower in (config.image, config.text))  # as open_clip's
    config = replace(config, image=replace(image, mean=None, std=None), text=text)
    ours = clip.forward(parameters, twins.IMAGES, twins.TEXTS, config, reference)
    with torch.no_grad():
        theirs = model(twins.channels_first(twins.IMAGES), torch.tensor(twins.TEXTS))
    for mine, expected in zip(ours, theirs, strict=True):
        assert_close64(mine, expected.detach())
