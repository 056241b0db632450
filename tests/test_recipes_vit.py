"""Pre-training a ViT: labels and losses, corrupted patches by hand, every preset."""

import json

import numpy as np
import pytest
import torch
from test_cli import invoke

from saccade.models import vit
from saccade.recipes import pretrain_vit, saved
from saccade.recipes.cuts import Broken
from saccade.recipes.data import Arrays, Sample
from saccade.torch import ViT

TINY = dict(width=16, depth=1, heads=2, hidden=32, image_size=8, patch_size=4)


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """Pictures of one colour each; the class is which channel is bright."""
    folder = tmp_path_factory.mktemp("colors")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    images = rng.integers(0, 90, (60, 1, 1, 3))
    images[np.arange(60), 0, 0, labels] += 150
    images = np.broadcast_to(images.astype(np.uint8), (60, 8, 8, 3))
    np.savez(folder / "a.npz", images=images, labels=labels, classes=["red", "green", "blue"])
    return folder / "a.npz"


def losses(out):
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in found if "loss" in record]


@pytest.mark.parametrize("preset", ["vit-tiny", "scaling-vit-s16"])
def test_a_vit_learns_to_name_pictures(colors, tmp_path, preset):
    model = pretrain_vit.run(
        colors, tmp_path, preset=preset, model=TINY, training=dict(steps=40, batch=20), log_every=1, device="cpu",
        optimization=dict(warm_up=2, peak=1e-2, head_decay=None, cool_down=5), held_out=colors,
    )  # fmt: skip
    found = losses(tmp_path)
    # softmax over a head of zeros; sigmoids of a bias of −10, which are right for all classes but one
    expected = np.log(3) if preset == "vit-tiny" else 10 + 3 * np.log1p(np.exp(-10))
    assert found[0] == pytest.approx(expected, rel=1e-4) and found[-1] < 0.5 * found[0]
    loaded, facts = saved.load(tmp_path / "model.safetensors")
    assert facts["classes"] == ["red", "green", "blue"] and model.config == loaded.config
    source = Arrays(colors)
    images = torch.from_numpy(np.stack([source.read(i).picture for i in range(60)]))
    with torch.no_grad():
        accuracy = (loaded(images).argmax(1).numpy() == source.labels).mean()
    last = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()][-2]
    assert accuracy > 0.8 and last["step"] == 40 and last["held_out_accuracy"] == pytest.approx(accuracy)


def test_labels_beyond_the_classes_are_broken():
    objective = pretrain_vit.Classes(ViT(vit.ViTConfig(**TINY, classes=2)), ["a", "b"])
    for label in (None, 2):
        with pytest.raises(Broken, match="expected one of 2 classes"):
            objective.prepare(Sample("x", np.zeros((8, 8, 3), np.uint8), label), np.random.default_rng(0))


def test_mean_colors_by_hand():
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, :4] = [255, 128, 31]  # 3 bits: 7, 4, 0
    picture[:2, 4:] = [64, 0, 0]  # half of the second patch: mean 32, 3 bits: 1
    assert pretrain_vit.mean_colors(picture, 4).tolist() == [7 * 64 + 4 * 8, 64]


def test_corruption_is_of_half_the_patches_in_the_papers_shares():
    rng = np.random.default_rng(0)
    drawn = [pretrain_vit.corruption(20, rng) for _ in range(400)]
    shown, corrupted = (np.stack(x) for x in zip(*drawn, strict=True))
    own = shown == np.arange(20)
    assert (corrupted.sum(1) == 10).all() and own[~corrupted].all()
    shares = [(shown[corrupted] == -1).mean(), (~own & (shown >= 0))[corrupted].mean(), own[corrupted].mean()]
    assert np.abs(np.array(shares) - [0.8, 0.1, 0.1]).max() < 0.03
    assert pretrain_vit.corruption(1, rng)[1].tolist() == [True]


def patches_objective(pooling):
    torch.manual_seed(0)
    objective = pretrain_vit.Patches(ViT(vit.ViTConfig(**TINY, pooling=pooling)))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return objective.double()


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_what_a_corrupted_patch_shows(pooling):
    objective = patches_objective(pooling)
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8))
    shown = torch.tensor([[0, -1, 2, 3], [0, 1, 0, 3]])
    colors = torch.tensor([[-100, 5, -100, -100], [-100, -100, 9, -100]])
    loss = objective(images, shown, colors)
    other = images.clone()
    other[0, :4, 4:] += 50  # behind the mask
    other[1, 4:, :4] += 50  # where another patch stands
    assert torch.equal(objective(other, shown, colors), loss)
    for at in ((0, slice(0, 4), slice(0, 4)), (1, slice(0, 4), slice(0, 4))):
        seen = images.clone()
        seen[at] += 50
        assert not torch.equal(objective(seen, shown, colors), loss)
    # the same by hand: patch 0 painted where it is shown
    painted = images.clone()
    painted[1, 4:, :4] = images[1, :4, :4]
    assert torch.allclose(objective(painted, torch.tensor([[0, -1, 2, 3], [0, 1, 2, 3]]), colors), loss, rtol=1e-12)
    loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_attention_pooling_has_nothing_to_learn_from_patches():
    with pytest.raises(ValueError, match="pooling='map' would stay untrained"):
        patches_objective("map")


def test_masked_patches_are_learned(colors, tmp_path):
    pretrain_vit.run(
        colors, tmp_path, preset="vit-b16-masked", model=TINY, training=dict(steps=40, batch=20, parts=2), log_every=1,
        device="cpu", optimization=dict(warm_up=2, peak=1e-2),
    )  # fmt: skip
    found = losses(tmp_path)
    # every patch of a picture has one colour, which the patches that are left show
    assert found[0] == pytest.approx(np.log(512), rel=1e-4) and found[-1] < 0.7 * found[0]
    assert saved.load(tmp_path / "model.safetensors")[0].config.classes is None


def test_every_preset_is_a_model_and_a_run():
    for name, (config, training, own) in pretrain_vit.PRESETS.items():
        assert vit.layout(config) and training.batch > 1 and (training.steps or training.epochs), name
        assert own.keys() <= {"dropout", "loss", "objective"}, name


def test_the_command(colors, tmp_path):
    command = ["pretrain", "vit", str(colors), "--out", str(tmp_path / "run"), "--device", "cpu", "--steps", "1"]
    sizes = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    done = invoke(*command, "--preset", "vit-tiny", "--batch", "4", *sizes)
    assert done.exit_code == 0 and "step 1: ends" in done.output, done.output
    done = invoke(*command, "--preset", "vit-b17")
    assert done.exit_code == 1 and "preset 'vit-b17', expected one of vit-b16-in21k" in done.output
    assert "Example: saccade pretrain vit" in invoke("pretrain", "vit", "--help").output
