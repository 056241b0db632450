"""Every block's output, and the gradient of every parameter, of the models that other libraries have, in float64."""

import numpy as np
import pytest
import torch
import twins
from support import assert_close64

import saccade
from saccade import reference
from saccade.models import clip, vit
from saccade.torch import CLIP, ImageGPT, ViT, modules

TEXTS = torch.tensor(twins.TEXTS)


def outputs_of(blocks, call):
    """What each module of ``blocks`` gives in a call."""
    found = []
    hooks = [
        one.register_forward_hook(lambda _, inputs, out: found.append(out[0] if isinstance(out, tuple) else out))
        for one in blocks
    ]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return found


def assert_blocks_equal(stages, prefix, theirs):
    ours = [stages[name] for name in stages if name.startswith(f"{prefix}blocks.")]
    assert len(ours) == len(theirs) == 2
    for mine, expected in zip(ours, theirs, strict=True):
        assert_close64(mine, expected.reshape(mine.shape))


@pytest.mark.parametrize("pooling", ["token", "mean", "map"])
def test_blocks_of_a_vit_are_timms(pooling):
    model, parameters, config = twins.timm_vit(pooling)
    stages = {}
    vit.forward(parameters, twins.IMAGES, config, reference, stages=stages)
    theirs = outputs_of(model.blocks, lambda: model(twins.channels_first(twins.IMAGES)))
    assert_blocks_equal(stages, "", theirs)


@pytest.mark.parametrize("twin", [twins.huggingface_clip, twins.huggingface_siglip])
def test_blocks_of_both_towers_are_hugging_faces(twin):
    model, parameters, config = twin()
    stages = {}
    clip.forward(parameters, twins.IMAGES, twins.TEXTS, config, reference, stages=stages)
    for tower, theirs in (("image", model.vision_model), ("text", model.text_model)):
        found = outputs_of(theirs.encoder.layers, lambda: model(TEXTS, twins.channels_first(twins.IMAGES)))
        assert_blocks_equal(stages, f"{tower}.", found)


@pytest.mark.parametrize("twin", [twins.open_clip_twin, twins.open_clip_siglip])
def test_blocks_of_both_towers_are_open_clips(twin):
    model, parameters, config = twin()
    stages = {}
    clip.forward(parameters, twins.IMAGES, twins.TEXTS, config, reference, stages=stages)
    text = (model.transformer if hasattr(model, "transformer") else model.text.transformer).resblocks
    image = model.visual.trunk.blocks if hasattr(model.visual, "trunk") else model.visual.transformer.resblocks
    for tower, blocks in (("image", image), ("text", text)):
        found = outputs_of(blocks, lambda: model(twins.channels_first(twins.IMAGES), TEXTS))
        assert_blocks_equal(stages, f"{tower}.", found)


def assert_gradients_equal(model, theirs):
    ours, expected = twins.gradients(model), twins.gradients_by_our_names(theirs)
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert_close64(gradient, expected[name])


@pytest.mark.parametrize("pooling", ["token", "mean", "map"])
def test_gradients_of_a_vit_are_timms(pooling):
    theirs, parameters, config = twins.timm_vit(pooling)
    labels = torch.tensor([1, 4])
    torch.nn.functional.cross_entropy(theirs(twins.channels_first(twins.IMAGES)), labels).backward()
    model = ViT(config, parameters=parameters)
    saccade.softmax_cross_entropy(model(torch.tensor(twins.IMAGES)), labels).backward()
    assert_gradients_equal(model, theirs)


def test_gradients_of_a_clip_are_open_clips():
    theirs, parameters, config = twins.open_clip_twin()
    images, texts, scale = theirs(twins.channels_first(twins.IMAGES), TEXTS)
    saccade.clip_loss(images, texts, scale).backward()
    model = CLIP(config, parameters=parameters)
    model.loss(torch.tensor(twins.IMAGES), TEXTS).backward()
    assert_gradients_equal(model, theirs)


def test_gradients_of_a_siglip_are_hugging_faces():
    theirs, parameters, config = twins.huggingface_siglip()
    theirs(TEXTS, twins.channels_first(twins.IMAGES), return_loss=True).loss.backward()
    model = CLIP(config, parameters=parameters)
    model.loss(torch.tensor(twins.IMAGES), TEXTS).backward()
    assert_gradients_equal(model, theirs)


def test_logits_with_a_cache_are_those_without_one(monkeypatch):
    _, parameters, config = twins.huggingface_imagegpt()
    model, seen, sample = ImageGPT(config, parameters=parameters).eval(), [], modules.sample

    def sampled(logits, *options):
        seen.append(logits)
        return sample(logits, *options)

    monkeypatch.setattr(modules, "sample", sampled)
    start = torch.tensor(np.random.default_rng(0).integers(0, 16, (2, 3)))
    drawn = model.generate(start, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close64(torch.stack(seen, 1), model(drawn)[:, 3:])
