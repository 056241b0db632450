"""Fine-tuning: what stays and what is new, positions for another size, both of ImageGPT's losses, learning."""

import json

import numpy as np
import pytest
import torch
from recipe_models import write_models
from test_cli import invoke

from saccade.models import imagegpt, vit
from saccade.recipes import finetune, saved
from saccade.recipes.data import Arrays
from saccade.torch import ImageGPT, ViT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("finetune"))


def records(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("model", ["token", "map", "clip", "pixels", "masked"])
def test_a_model_learns_to_name_classes(folder, tmp_path, model):
    pixels = model in ("pixels", "masked")
    peak = dict(warm_up=2, peak=1e-2 if pixels else 0.1)
    tuned = finetune.run(
        folder / model, folder / "train.npz", tmp_path, training=dict(steps=40, batch=20), optimization=peak,
        held_out=folder / "test.npz", log_every=1, save_every=20, device="cpu",
    )  # fmt: skip
    first, last = (r for r in records(tmp_path) if "held_out_accuracy" in r)
    assert last["held_out_accuracy"] > 0.7 and tuned.config.classes == 3 and first["step"] == 20
    loaded, facts = saved.load(tmp_path / "model.safetensors")
    assert facts["classes"] == ["red", "green", "blue"] and type(loaded) is (ImageGPT if pixels else ViT)
    if pixels:
        losses = [r["loss"] for r in records(tmp_path) if "loss" in r and "learning_rate" in r]
        assert last["held_out_loss"] - last["held_out_loss_of_pixels"] < np.log(3) and losses[-1] < losses[0]


def test_all_but_the_head_is_kept():
    config = vit.ViTConfig(width=8, depth=1, heads=2, image_size=8, patch_size=4, classes=5, representation=6)
    old = ViT(config, seed=3)
    new = finetune.with_head(old, vit, dict(classes=2, representation=None, head_bias=0.0), "head")
    before, after = old.numpy_parameters(), new.numpy_parameters()
    assert set(before) - set(after) == {"pre_logits.weight", "pre_logits.bias"}
    assert not after["head.weight"].any() and after["head.weight"].shape == (2, 8)
    assert all(np.array_equal(x, before[name]) for name, x in after.items() if not name.startswith("head."))


@pytest.mark.parametrize("name", ["pixels", "masked"])
def test_a_model_up_to_a_layer_has_that_layers_features(folder, name):
    whole, _ = saved.load(folder / name)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 12, (3, 16)))
    mask = (tokens % 3 == 0,) if name == "masked" else ()
    for layer in range(3):
        cut = finetune.up_to(whole, layer)
        (found,), (expected,) = (one.features(tokens, [layer], *mask) for one in (cut, whole))
        assert cut.config.depth == layer and torch.equal(found, expected)
    with pytest.raises(ValueError, match="expected one of 0…2"):
        finetune.up_to(whole, 3)


def test_the_best_probed_layer_is_tuned(folder, tmp_path):
    training = dict(steps=2, batch=20)
    tuned = finetune.run(folder / "pixels", folder / "train.npz", tmp_path, layer=1, training=training, device="cpu")
    assert tuned.config.depth == 1 and saved.load(tmp_path / "model.safetensors")[0].config == tuned.config
    with pytest.raises(ValueError, match="is no ImageGPT"):
        finetune.run(folder / "token", folder / "train.npz", tmp_path / "x", layer=1)


def test_another_size_is_the_models_own_interpolation(folder, tmp_path):
    tuned = finetune.run(
        folder / "token", folder / "train.npz", tmp_path, image_size=16, training=dict(steps=1, batch=4), device="cpu",
        optimization=dict(warm_up=0, peak=0.0),
    )  # fmt: skip
    old, _ = saved.load(folder / "token")
    positions, _ = vit.resize(old.numpy_parameters(), old.config, 16)
    assert tuned.config.image_size == 16
    np.testing.assert_array_equal(tuned.numpy_parameters()["embed.positions"], positions["embed.positions"])
    kept = finetune.run(
        folder / "token", folder / "train.npz", tmp_path / "kept", keep_head=True, training=dict(steps=1, batch=4),
        optimization=dict(warm_up=0, peak=0.0), device="cpu",
    )  # fmt: skip
    assert kept.config == old.config
    assert all(np.array_equal(x, old.numpy_parameters()[name]) for name, x in kept.numpy_parameters().items())
    with pytest.raises(ValueError, match="its head cannot be kept"):
        finetune.run(folder / "clip", folder / "train.npz", tmp_path / "x", keep_head=True)
    with pytest.raises(ValueError, match="at its own image size"):
        finetune.run(folder / "pixels", folder / "train.npz", tmp_path / "x", image_size=8)


def test_joint_loss_by_hand(folder):
    model = ImageGPT(imagegpt.ImageGPTConfig(width=8, depth=1, heads=2, colors=12, length=16, classes=3)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    palette = saved.load(folder / "pixels")[1]["palette"]
    objective, source = finetune.Joint(model, palette, ["a", "b", "c"]), Arrays(folder / "test.npz")
    batch = [objective.prepare(source.read(i), np.random.default_rng(i)) for i in range(4)]
    tokens, labels = (torch.from_numpy(np.stack(x)) for x in zip(*batch, strict=True))
    expected = model.loss(tokens) + torch.nn.functional.cross_entropy(model.classify(tokens), labels)
    torch.testing.assert_close(objective(tokens, labels), expected, rtol=1e-12, atol=0)


def test_the_command(folder, tmp_path):
    command = [
        "finetune",
        folder / "token",
        folder / "train.npz",
        "--steps",
        1,
        "--batch",
        4,
        "--device",
        "cpu",
    ]
    done = invoke(*command, "--out", tmp_path / "run", "--image-size", 12)
    assert done.exit_code == 0 and "step 1: ends" in done.output, done.output
    assert "Example: saccade finetune" in invoke("finetune", "--help").output
