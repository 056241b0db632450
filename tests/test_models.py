"""The models as functions: other libraries' numbers in float64, and fast paths as right as ordinary arithmetic."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
import twins
from support import assert_close64

import saccade
from saccade import reference
from saccade.models import clip, imagegpt, initialization, transformer, vit
from saccade.testing import gate
from saccade.testing.opset import Ordinary
from saccade.testing.ways import ways
from saccade.torch.arrays import from_numpy, to_numpy

# --- the numbers of other libraries, float64, saccade.reference --------------------------------------------------


def test_imagegpt_is_hugging_faces():
    model, parameters, config = twins.huggingface_imagegpt()
    stages = {}
    logits = imagegpt.forward(parameters, twins.PALETTE_TOKENS, config, reference, stages=stages)
    with torch.no_grad():
        theirs = model(input_ids=twins.shifted(twins.PALETTE_TOKENS), output_hidden_states=True)
    assert_close64(logits, theirs.logits)
    assert_close64(stages["embed"], theirs.hidden_states[0])
    assert_close64(stages["blocks.0"], theirs.hidden_states[1])
    assert_close64(stages["norm"], theirs.hidden_states[2])


def test_imagegpts_features_are_hugging_faces():
    model, parameters, config = twins.huggingface_imagegpt()
    with torch.no_grad():
        hidden = model(input_ids=twins.shifted(twins.PALETTE_TOKENS), output_hidden_states=True).hidden_states
        theirs = [model.transformer.h[i].ln_1(hidden[i]).mean(1) for i in range(2)] + [hidden[2].mean(1)]
    ours = imagegpt.features(parameters, twins.PALETTE_TOKENS, config, reference, layers=(2, 0, 1))
    for feature, layer in zip(ours, (2, 0, 1), strict=True):
        assert_close64(feature, theirs[layer])


def test_imagegpts_classifier_is_hugging_faces():
    model, parameters, config = twins.huggingface_imagegpt("ForImageClassification", num_labels=5)
    with torch.no_grad():
        theirs = model(input_ids=twins.shifted(twins.PALETTE_TOKENS)).logits
    assert_close64(imagegpt.classify(parameters, twins.PALETTE_TOKENS, config, reference), theirs)


def test_vit_is_hugging_faces():
    model, parameters, config = twins.huggingface_vit()
    stages = {}
    logits = vit.forward(parameters, twins.IMAGES, config, reference, stages=stages)
    with torch.no_grad():
        theirs = model(twins.channels_first(twins.IMAGES), output_hidden_states=True)
    assert_close64(logits, theirs.logits)
    assert_close64(stages["embed"], theirs.hidden_states[0])
    assert_close64(stages["blocks.0"], theirs.hidden_states[1])
    assert list(stages) == ["embed", "blocks.0", "blocks.1", "pool", "head"]


def test_pre_logits_are_hugging_faces_pooler():
    model, parameters, config = twins.huggingface_vit("Model")
    assert config == replace(twins.VIT, classes=None, representation=16)
    with torch.no_grad():
        theirs = model(twins.channels_first(twins.IMAGES)).pooler_output
    assert_close64(vit.forward(parameters, twins.IMAGES, config, reference), theirs)


def test_vit_at_another_size_is_hugging_faces():
    model, parameters, config = twins.huggingface_vit()
    images = np.random.default_rng(0).standard_normal((2, 24, 12, 3))
    with torch.no_grad():
        theirs = model(twins.channels_first(images), interpolate_pos_encoding=True).logits
    parameters, config = vit.resize(parameters, config, (24, 12), method="bicubic")
    assert_close64(vit.forward(parameters, images, config, reference), theirs)


@pytest.mark.parametrize("size", [(24, 12), (8, 8)])
def test_vit_at_another_size_is_timms(size):
    model, parameters, config = twins.timm_vit("token")
    images = np.random.default_rng(0).standard_normal((2, *size, 3))
    model.set_input_size(size)  # resamples its positions, in float32
    with torch.no_grad():
        theirs = model(twins.channels_first(images))
    parameters, config = vit.resize(parameters, config, size, method="antialiased")
    assert_close64(vit.forward(parameters, images, config, reference), theirs, 1e-6)


@pytest.mark.parametrize("pooling", ["token", "mean", "map"])
def test_vit_is_timms(pooling):
    model, parameters, config = twins.timm_vit(pooling)
    with torch.no_grad():
        theirs = model(twins.channels_first(twins.IMAGES))
    assert_close64(vit.forward(parameters, twins.IMAGES, config, reference), theirs)


# Their ViT takes its softmax in float32, whatever the model's dtype.
@pytest.mark.parametrize(("twin", "bound"), [(twins.huggingface_vit, 2**-22), (twins.huggingface_imagegpt, 1e-10)])
def test_attention_weights_are_hugging_faces(twin, bound):
    model, parameters, config = twin()
    model.set_attn_implementation("eager")
    image_model = isinstance(config, vit.ViTConfig)
    module, x = (vit, twins.IMAGES) if image_model else (imagegpt, twins.PALETTE_TOKENS)
    with torch.no_grad():
        fed = twins.channels_first(x) if image_model else twins.shifted(x)
        theirs = model(fed, output_attentions=True).attentions
    ours = module.attention_weights(parameters, x, config, reference)
    assert len(ours) == len(theirs) == 2
    for weights, expected in zip(ours, theirs, strict=True):
        assert_close64(weights, expected, bound)


def test_clip_is_hugging_faces():
    model, parameters, config = twins.huggingface_clip()
    ours = clip.forward(parameters, twins.IMAGES, twins.TEXTS, config, reference)
    with torch.no_grad():
        theirs = model(torch.tensor(twins.TEXTS), twins.channels_first(twins.IMAGES), return_loss=True)
    assert_close64(ours[0], theirs.image_embeds)
    assert_close64(ours[1], theirs.text_embeds)
    assert_close64(ours[2] * ours[0] @ ours[1].T, theirs.logits_per_image)
    assert_close64(reference.clip_loss(*ours), theirs.loss)


def test_clip_is_open_clips():
    model, parameters, config = twins.open_clip_twin()
    ours = clip.forward(parameters, twins.IMAGES, twins.TEXTS, config, reference)
    with torch.no_grad():
        theirs = model(twins.channels_first(twins.IMAGES), torch.tensor(twins.TEXTS))
    for mine, expected in zip(ours, theirs, strict=True):
        assert_close64(mine, expected)


def test_a_bag_of_words_is_the_mean_of_the_words_up_to_the_end():
    config = replace(twins.CLIP, text=replace(twins.CLIP.text, kind="cbow"))
    parameters = random_parameters(clip.layout(config), np.float64)
    rows = parameters["text.embed.weight"]
    expected = np.stack([rows[[47, 3, 4, 48]].mean(0), rows[[47, 9, 48]].mean(0)])
    assert_close64(clip.text_features(parameters, twins.TEXTS, config, reference), expected)
    embeddings = expected @ parameters["text_projection.weight"].T
    ours = clip.encode_texts(parameters, twins.TEXTS, config, reference)
    assert_close64(ours, embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))


# --- what the definitions promise -----------------------------------------------------------------------------------


def random_parameters(layout, dtype, seed=0):
    """Nothing at 0 or 1, where a mistake would hide."""
    rng = np.random.default_rng(seed)
    return {
        name: (0.3 * rng.standard_normal(shape) + (name.endswith("scale"))).astype(dtype)
        for name, (shape, _) in layout.items()
    }


def test_logits_at_a_place_depend_on_the_tokens_before_it_alone():
    config = imagegpt.ImageGPTConfig(width=12, depth=2, heads=3, colors=16, length=16)
    parameters = random_parameters(imagegpt.layout(config), np.float64)
    tokens = twins.PALETTE_TOKENS
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 16
    before, after = (imagegpt.forward(parameters, x, config, reference) for x in (tokens, changed))
    assert np.array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before[:, 6:] - after[:, 6:]).max(2) > 1e-6).all()
    assert_close64(imagegpt.forward(parameters, tokens[:, :9], config, reference), before[:, :9])


def test_a_masked_model_sees_both_ways_and_not_what_is_masked():
    config = imagegpt.ImageGPTConfig(width=12, depth=2, heads=3, colors=16, length=16, objective="masked")
    parameters = random_parameters(imagegpt.layout(config), np.float64)
    assert "embed.sos" not in parameters
    tokens, mask = twins.PALETTE_TOKENS, np.zeros((3, 16), bool)
    mask[:, 5] = True
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 16
    logits = [imagegpt.forward(parameters, x, config, reference, mask=mask) for x in (tokens, changed)]
    assert np.array_equal(*logits)
    seen = [imagegpt.forward(parameters, x, config, reference) for x in (tokens, changed)]
    assert (np.abs(seen[0] - seen[1]).max(2) > 1e-6).all()


def test_pixels_are_normalised_as_the_config_says():
    config = replace(twins.VIT, mean=clip.MEAN, std=clip.STD)
    parameters = random_parameters(vit.layout(config), np.float64)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    plain = vit.forward(parameters, (images / 255 - clip.MEAN) / clip.STD, twins.VIT, reference)
    assert_close64(vit.forward(parameters, images, config, reference), plain)


def test_parameters_begin_as_the_papers_code_says():
    tiny = replace(imagegpt.variant("S"), depth=2)
    begun = imagegpt.initialize(tiny, seed=1)
    deviations = {
        "blocks.0.attention.qkv.weight": 512**-0.5,
        "blocks.0.attention.out.weight": (512 * 2) ** -0.5,
        "blocks.1.mlp.fc1.weight": 0.02,
        "embed.positions": 0.01,
    }
    for name, std in deviations.items():
        assert begun[name].dtype == np.float32 and abs(begun[name].std() / std - 1) < 0.02
    assert not begun["head.weight"].any() and (begun["norm.scale"] == 1).all()
    assert np.array_equal(begun["embed.weight"], imagegpt.initialize(tiny, seed=1)["embed.weight"])
    assert not np.array_equal(begun["embed.weight"], imagegpt.initialize(tiny, seed=2)["embed.weight"])

    begun = vit.initialize(vit.variant("Ti/16", classes=10, head_bias=-10.0, depth=1))
    qkv, limit = begun["blocks.0.attention.qkv.weight"], (6 / (2 * 192)) ** 0.5
    assert 0.98 * limit < np.abs(qkv).max() <= limit and abs(qkv.std() * 3**0.5 / limit - 1) < 0.02
    assert abs(begun["embed.weight"].std() * 768**0.5 - 1) < 0.02
    assert (begun["head.bias"] == -10).all() and not begun["head.weight"].any()

    begun = clip.initialize(replace(twins.CLIP, text=replace(twins.CLIP.text, width=256)))
    assert abs(begun["text.blocks.0.mlp.fc2.weight"].std() / (256**-0.5 / 2) - 1) < 0.02
    assert begun["logit_scale"].shape == () and np.isclose(np.exp(begun["logit_scale"]), 1 / 0.07)


REFUSALS = [
    (lambda: vit.variant("X/16"), "name='X/16', expected one of s, Ti, S, B, L, H, So400m, g, G and a patch size"),
    (lambda: vit.variant("B/15"), "image_size=224 is no multiple of self.patch_size=15"),
    (lambda: vit.variant("B/16", heads=7), "width=768 does not divide into self.heads=7"),
    (lambda: vit.variant("B/16", gelu="relu"), "gelu='relu', expected one of"),
    (lambda: vit.variant("B/16", depth=-1), "depth=-1, expected a whole number"),
    (lambda: vit.variant("B/16", pooling="max"), "pooling='max', expected one of"),
    (lambda: imagegpt.variant("XS"), "name='XS', expected one of S, M, L, XL"),
    (lambda: imagegpt.variant("S", causal=False), "contradicts self.objective='autoregressive'"),
    (lambda: clip.variant("RN51"), "name='RN51', expected one of RN50, "),
    (lambda: vit.forward({}, twins.IMAGES[:, :8], twins.VIT, reference), r"images.*= ?\(2, 8, 16, 3\), expected"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_what_does_not_fit_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_parameters_are_checked_by_name_and_shape():
    parameters = vit.initialize(twins.VIT)
    layout = vit.layout(twins.VIT)
    with pytest.raises(ValueError, match=r"ViT: parameters lack head.bias and have extra besides"):
        changed = {name: x for name, x in parameters.items() if name != "head.bias"} | {
            "extra": parameters["head.bias"]
        }
        initialization.check_parameters("ViT", layout, changed)
    with pytest.raises(ValueError, match=r"ViT: head.bias has shape \(4,\), expected \(5,\)"):
        initialization.check_parameters("ViT", layout, parameters | {"head.bias": np.zeros(4)})


# --- fast paths through the gate --------------------------------------------------------------------------------


UINT8_IMAGES = np.random.default_rng(2).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
MODELS = {
    "imagegpt": (imagegpt, replace(twins.IMAGEGPT, bias=False), (twins.PALETTE_TOKENS,)),
    "vit": (vit, replace(twins.VIT, eps=1e-6, gelu="tanh", representation=8), (UINT8_IMAGES,)),
    "vit with attention pooling": (vit, replace(twins.VIT, eps=1e-6, pooling="map"), (UINT8_IMAGES,)),
    "clip": (clip, twins.CLIP, (UINT8_IMAGES[:2], twins.TEXTS)),
    "clip with a bag of words": (
        clip,
        replace(twins.CLIP, text=replace(twins.CLIP.text, kind="cbow")),
        (UINT8_IMAGES[:2], twins.TEXTS),
    ),
}


@pytest.mark.parametrize("arrays", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_fast_paths_are_as_right_as_ordinary_arithmetic(name, dtype, arrays):
    module, config, inputs = MODELS[name]
    parameters = random_parameters(module.layout(config), dtype)
    exact = {key: x.astype(np.float64) for key, x in parameters.items()}
    truth, usual = {}, []
    run(module, exact, inputs, config, reference, truth)
    for way in ways(np.dtype(dtype), repeats=4):
        usual.append(stages := {})
        run(module, parameters, inputs, config, Ordinary(way), stages)
    actual = {}
    if arrays == "torch":
        parameters = {key: from_numpy(x) for key, x in parameters.items()}
        inputs = tuple(from_numpy(x) for x in inputs)
    run(module, parameters, inputs, config, saccade, actual)
    judged = [
        gate.judge_one(stage, to_numpy(actual[stage]), truth[stage], [one[stage] for one in usual]) for stage in truth
    ]
    assert not [str(one) for one in judged if one.verdict == "FAIL"]
    assert gate.verdict(judged) == "PASS", [str(one) for one in judged]


def run(module, parameters, inputs, config, ops, stages):
    """The model's outputs among its stages."""
    out = module.forward(parameters, *inputs, config, ops, stages=stages)
    if module is clip:
        stages["image embeddings"], stages["text embeddings"] = out[:2]
    else:
        stages["out"] = out


def test_stages_ask_no_framework_and_the_face_has_what_they_need():
    parameters = random_parameters(vit.layout(twins.VIT), np.float32)
    exact = {key: x.astype(np.float64) for key, x in parameters.items()}
    truth = vit.attention_weights(exact, UINT8_IMAGES, twins.VIT, reference)
    usual = [
        vit.attention_weights(parameters, UINT8_IMAGES, twins.VIT, Ordinary(way))
        for way in ways(np.dtype(np.float32), repeats=4)
    ]
    tensors = {key: from_numpy(x) for key, x in parameters.items()}
    for fast in (
        vit.attention_weights(parameters, UINT8_IMAGES, twins.VIT, saccade),
        vit.attention_weights(tensors, from_numpy(UINT8_IMAGES), twins.VIT, saccade),
    ):
        for weights, expected, *as_usual in zip(fast, truth, *usual, strict=True):
            judged = gate.judge_one("weights", to_numpy(weights), expected, as_usual)
            assert judged.verdict == "PASS", judged


def test_an_op_set_runs_a_block_by_itself():
    config = transformer.TransformerConfig(width=8, depth=1, heads=2)
    block = initialization.draw(
        initialization.block_layout(config, **dict.fromkeys(("qkv", "out", "fc1", "fc2"), initialization.normal(1))), 0
    )
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    assert transformer.block(block, x, saccade, config).shape == (2, 5, 8)
