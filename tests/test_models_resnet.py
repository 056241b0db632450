"""CLIP's ResNet: open_clip's numbers, gradients and statistics, and the fast path."""

import numpy as np
import pytest
import torch
import twins
from support import assert_close64

import saccade
from saccade import reference
from saccade.models import clip, initialization, resnet
from saccade.models.transformer import under
from saccade.testing import opset
from saccade.torch import CLIP, ResNet


def image_tower():
    """(open_clip's image tower, our parameters, our config)."""
    model, parameters, config = twins.open_clip_resnet()
    return model.visual, under(parameters, "image"), config.image


def test_features_and_blocks_are_open_clips():
    model, parameters, config = image_tower()
    stages = {}
    ours = resnet.forward(parameters, twins.TALLER_IMAGES, config, reference, stages=stages)
    with torch.no_grad():
        x = model.stem(twins.channels_first(twins.TALLER_IMAGES))
        assert_close64(stages["stem"], x.permute(0, 2, 3, 1))
        for name, layer in (("blocks.1", "layer1"), ("blocks.2", "layer2"), ("blocks.4", None)):
            x = model.layer4(model.layer3(x)) if layer is None else getattr(model, layer)(x)
            assert_close64(stages[name], x.permute(0, 2, 3, 1))
        assert_close64(ours, model(twins.channels_first(twins.TALLER_IMAGES)))
    assert list(stages) == ["stem", *(f"blocks.{i}" for i in range(5)), "pool"]


@pytest.mark.parametrize("training", [False, True])
def test_gradients_and_counted_statistics_are_open_clips(training):
    both, parameters, config = twins.open_clip_resnet()
    theirs, parameters, config = both.visual, under(parameters, "image"), config.image
    ours = ResNet(config, parameters=parameters)
    before = ours.numpy_parameters()
    theirs.train(training)
    ours.train(training)
    direction = torch.tensor(np.random.default_rng(0).standard_normal((2, 12)))
    expected = theirs(twins.channels_first(twins.TALLER_IMAGES))
    features = ours(torch.tensor(twins.TALLER_IMAGES))
    assert_close64(features.detach(), expected.detach())
    (expected * direction).sum().backward()
    (features * direction).sum().backward()
    expected = under(twins.gradients_by_our_names(both), "image")
    gradients = twins.gradients(ours)
    assert gradients.keys() == {name for name in expected if not initialization.is_statistic(name)}
    for name, gradient in gradients.items():
        assert_close64(gradient, expected[name])
    after = under(twins.loaded(both)[0], "image")
    moved = False
    for name, value in ours.numpy_parameters().items():
        assert_close64(value, after[name])
        moved |= initialization.is_statistic(name) and not np.array_equal(value, before[name])
    assert moved == training


def test_a_clip_with_a_resnet_is_its_towers():
    config = twins.RESNET_CLIP
    model = CLIP(config, seed=2).double().eval()
    parameters = model.numpy_parameters()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    features = resnet.forward(
        {name.removeprefix("image."): x for name, x in parameters.items()}, images / 255, config.image, reference
    )
    expected = clip.forward(parameters, images, twins.TEXTS, config, reference)
    assert_close64(expected[0], features / np.linalg.norm(features, axis=1, keepdims=True))
    for ours, true in zip(model(torch.tensor(images), torch.tensor(twins.TEXTS)), expected, strict=True):
        assert_close64(ours.detach(), true)
    model.load_parameters(clip.initialize(config, seed=2))
    assert model.state_dict().keys() == clip.layout(config).keys()


def test_the_fast_path_is_as_right_as_ordinary_arithmetic():
    _, parameters, config = image_tower()
    parameters = {name: x.astype(np.float32) for name, x in parameters.items()}
    images = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)

    def compute(parameters, images, ops):
        return resnet.forward(parameters, images, config, ops)

    fast = compute(parameters, images, saccade)
    judged = opset.judge(fast, compute, parameters, images)
    assert fast.dtype == np.float32 and judged.verdict == "PASS", judged


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(layers=(1, 2)), r"layers=\(1, 2\), expected four numbers of blocks"),
        (dict(heads=7), "heads=7, expected an even width that divides"),
        (dict(image_size=100), "image_size=100, expected a multiple of 32"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        resnet.ResNetConfig(**dict(layers=(1, 1, 1, 1), width=8, embed=12, heads=4, image_size=64) | changes)
    config = twins.RESNET_CLIP.image
    with pytest.raises(ValueError, match=r"\(2, 32, 32, 3\), expected \(b, 64, 64, 3\)"):
        resnet.forward(resnet.initialize(config), twins.TALLER_IMAGES[:, :32, :32], config, reference)
    with pytest.raises(ValueError, match=r"embed=5 and image features of width=12, expected the same"):
        clip.CLIPConfig(embed=5, image=config, text=twins.CLIP.text)
