"""Models as ONNX files: ONNX Runtime gives what the definitions give; and torch.export what the modules give."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import saccade.torch
from saccade.interop.onnx import export
from saccade.models import clip, imagegpt, resnet, vit
from saccade.models.variants import module_of
from saccade.testing import opset

TOWER = dict(width=16, depth=2, heads=2, hidden=32)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 8, 12, 3)).astype(np.uint8)
SQUARE = RNG.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
TOKENS = RNG.integers(0, 50, (3, 9))
VIT = vit.ViTConfig(**TOWER, image_size=(8, 12), patch_size=4, classes=5)
TOWERS = {
    "ViT": clip.image_config(**TOWER, image_size=(8, 12), patch_size=4),
    "ResNet": resnet.ResNetConfig(
        layers=(1, 1, 1, 1), width=8, embed=8, heads=2, image_size=32, mean=(0.5,) * 3, std=(0.2,) * 3
    ),
}  # fmt: skip
TEXT = clip.TextConfig(**TOWER, vocabulary=50, context=9)
PIXELS = imagegpt.ImageGPTConfig(**TOWER, colors=20, length=9)


def random(config):
    """Parameters that hide nothing: no zeros, no ones, variances above 0."""
    rng = np.random.default_rng(1)
    layout = module_of(config).layout(config)
    made = {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, (shape, _) in layout.items()}
    return {name: np.abs(x) + 0.5 if name.endswith("variance") else x for name, x in made.items()}


def exported(path, parameters, config, x, **options):
    export(path, parameters, config, **options)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (out,) = session.get_inputs(), session.get_outputs()
    found = [session.run(None, {given.name: part})[0] for part in (x, x[:1])]
    return found, given.name, out.name


def assert_right(found, forward, config, parameters, x):
    """Through the error gate, as a composition of operations in float32; in a batch and alone."""
    for out, part in zip(found, (x, x[:1]), strict=True):
        judged = opset.judge(out, lambda parameters, x, ops: forward(parameters, x, config, ops), parameters, part)
        assert judged.verdict == "PASS", judged


@pytest.mark.parametrize("pooling", ["token", "mean", "map"])
@pytest.mark.parametrize("gelu", ["erf", "tanh", "sigmoid"])
def test_a_vit(tmp_path, pooling, gelu):
    config = replace(VIT, pooling=pooling, gelu=gelu, representation=6 if gelu == "erf" else None)
    parameters = random(config)
    found, *names = exported(tmp_path / "vit.onnx", parameters, config, IMAGES)
    assert names == ["images", "logits"]
    assert_right(found, vit.forward, config, parameters, IMAGES)


def test_features_of_floating_point_pictures(tmp_path):
    config = replace(VIT, classes=None, norm="rms", bias=False)
    parameters, images = random(config), (IMAGES / 255).astype(np.float32)
    found, *names = exported(tmp_path / "vit.onnx", parameters, config, images, images="float32")
    assert names == ["images", "features"]
    assert_right(found, vit.forward, config, parameters, images)


@pytest.mark.parametrize("objective", ["autoregressive", "masked"])
def test_imagegpt(tmp_path, objective):
    config = replace(PIXELS, objective=objective, causal=None)
    parameters, tokens = random(config), TOKENS % 20
    found, *names = exported(tmp_path / "pixels.onnx", parameters, config, tokens)
    assert names == ["tokens", "logits"]
    assert_right(found, imagegpt.forward, config, parameters, tokens)


@pytest.mark.parametrize("tower", TOWERS)
def test_clips_pictures(tmp_path, tower):
    config = clip.CLIPConfig(embed=8, image=TOWERS[tower], text=TEXT)
    parameters, images = random(config), IMAGES if tower == "ViT" else SQUARE
    found, *names = exported(tmp_path / "clip.onnx", parameters, config, images, part="images")
    assert names == ["images", "embeddings"]
    assert_right(found, clip.encode_images, config, parameters, images)


@pytest.mark.parametrize("changes", [{}, {"pooling": "last", "causal": False}, {"kind": "cbow"}], ids=str)
def test_clips_texts(tmp_path, changes):
    config = clip.CLIPConfig(embed=8, image=TOWERS["ViT"], text=replace(TEXT, **changes))
    parameters = random(config)
    found, *names = exported(tmp_path / "clip.onnx", parameters, config, TOKENS, part="texts")
    assert names == ["tokens", "embeddings"]
    assert_right(found, clip.encode_texts, config, parameters, TOKENS)


def test_large_tensors_lie_beside_the_file(tmp_path, monkeypatch):
    from saccade.interop import onnx as module

    monkeypatch.setattr(module, "LARGEST", 1000)
    parameters = random(VIT)
    for _ in range(2):  # the second replaces the first
        found, *_ = exported(tmp_path / "vit.onnx", parameters, VIT, IMAGES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vit.onnx", "vit.onnx.data"]
    assert_right(found, vit.forward, VIT, parameters, IMAGES)


def test_bad_calls_are_refused_in_a_sentence(tmp_path):
    parameters = random(VIT)
    with pytest.raises(ValueError, match="images='int8', expected 'uint8' or 'float32'"):
        export(tmp_path / "a.onnx", parameters, VIT, images="int8")
    with pytest.raises(ValueError, match="part='images', expected None"):
        export(tmp_path / "a.onnx", parameters, VIT, part="images")
    config = clip.CLIPConfig(embed=8, image=TOWERS["ViT"], text=TEXT)
    with pytest.raises(ValueError, match="part=None, expected 'images' or 'texts'"):
        export(tmp_path / "a.onnx", random(config), config)
    assert not list(tmp_path.iterdir())


def test_constants_have_the_parameters_names(tmp_path):
    parameters = random(VIT)
    export(tmp_path / "vit.onnx", parameters, VIT)
    names = {one.name.removesuffix(".T") for one in onnx.load(tmp_path / "vit.onnx").graph.initializer}
    assert parameters.keys() - names == set()


def test_an_exported_program_has_the_modules_logits():
    model = saccade.torch.ViT(VIT, parameters=random(VIT)).eval()
    images = torch.from_numpy(IMAGES)
    program = torch.export.export(model, (images,))
    with torch.no_grad():
        assert torch.equal(program.module()(images), model(images))
