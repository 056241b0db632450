"""Pre-training CLIP and SigLIP: a batch in parts or on ranks is the whole batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_programs import together
from test_cli import invoke

from saccade.models import clip, vit
from saccade.models.resnet import ResNetConfig
from saccade.recipes import pretrain_clip, saved
from saccade.recipes.cuts import Broken
from saccade.recipes.data import Sample
from saccade.recipes.pretrain_clip import Pairs
from saccade.recipes.resuming import random_state, set_random_state
from saccade.torch import CLIP

NAMES = ("red", "green", "blue")
SIZES = {"embed": 16, "image.width": 16, "image.depth": 1, "image.image_size": 8, "image.hidden": 32, "text.width": 16,
         "text.depth": 1, "text.context": 12}  # fmt: skip


def write_pairs(folder):
    """Pictures of one colour each, captioned with its brightest channel and a number; and where they are."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 48)
    images = rng.integers(0, 90, (48, 1, 1, 3))
    images[np.arange(48), 0, 0, labels] += 150
    captions = [f"{NAMES[label]} {i}" for i, label in enumerate(labels)]
    images = np.broadcast_to(images.astype(np.uint8), (48, 10, 9, 3))
    np.savez(folder / "pairs.npz", images=images, captions=captions)
    return folder / "pairs.npz"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def tiny_run(source, out, preset="clip-tiny", steps=4, optimizer="adamw", average=None, eps=1e-8, **changes):
    """A few steps of a tiny model; the losses."""
    pretrain_clip.run(
        source, out, preset=preset, model=SIZES, log_every=1, save_every=2, device="cpu",
        training=dict(steps=steps, batch=12, **changes),
        optimization=dict(warm_up=2, peak=1e-2, optimizer=optimizer, average=average, eps=eps),
    )  # fmt: skip
    return losses_of(Path(out))


@pytest.mark.parametrize("preset", ["clip-tiny", "siglip-tiny"])
def test_captions_are_learned(pairs, tmp_path, preset):
    found = tiny_run(pairs, tmp_path, preset, steps=60)
    # a third of a batch has the same colour: telling colours leaves about log(12 / 3)
    assert found[-1] < 0.8 * found[0]
    model, facts = saved.load(tmp_path / "model.safetensors")
    assert facts == {"tokenizer": "bytes", "objective": "contrastive", "samples": 720}
    assert (model.config.logit_bias is None) == (preset == "clip-tiny")


def batch_of(count):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8))
    tokens = rng.integers(1, 500, (count, 12))
    tokens[:, -1] = 513
    return images, torch.from_numpy(tokens)


def objective_of(preset="clip-tiny", **options):
    config, _ = pretrain_clip.PRESETS[preset]
    tower = dict(width=16, heads=4, hidden=32)
    image = clip.image_config(depth=1, image_size=8, patch_size=4, pooling=config.image.pooling, **tower)
    text = clip.TextConfig(depth=1, context=12, vocabulary=514, **tower)
    config = clip.CLIPConfig(embed=16, image=image, text=text, logit_bias=config.logit_bias)
    return Pairs(CLIP(config, **options), "bytes").double().train()


def gradients(objective, batch, parts):
    loss = objective.backward(objective, list(zip(*(x.chunk(parts) for x in batch), strict=True)), lambda x: x)
    return [loss, *(p.grad for p in objective.parameters())]


@pytest.mark.parametrize("preset", ["clip-tiny", "siglip-tiny"])
def test_a_batch_in_parts_has_the_loss_and_gradients_of_the_whole(preset):
    batch = batch_of(12)
    whole, parted = (gradients(objective_of(preset), batch, parts) for parts in (1, 4))
    alone = [gradients(objective_of(preset), [x[:3] for x in batch], 1)[0]]
    for x, y in zip(whole, parted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-13)
    assert abs(alone[0] - whole[0]) > 0.1  # a part by itself has another loss


def test_parts_drop_the_same_activations_both_times():
    objective, batch = objective_of(dropout=0.3), batch_of(6)
    torch.manual_seed(1)
    state = random_state(torch.device("cpu"))
    found = gradients(objective, batch, 3)
    after = torch.rand(1)
    for parameter in objective.parameters():
        parameter.grad = None
    set_random_state(state, torch.device("cpu"))
    outputs = [objective(*(x[2 * i : 2 * i + 2] for x in batch)) for i in range(3)]
    loss = objective.loss(*(torch.cat(x) for x in list(zip(*outputs, strict=True))[:2]), outputs[0][2])
    loss.backward()
    assert torch.equal(after, torch.rand(1))
    for x, y in zip(found, [loss.detach(), *(p.grad for p in objective.parameters())], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-13)


def test_a_resnets_statistics_count_each_part_once():
    image = ResNetConfig(layers=(1, 1, 1, 1), width=2, embed=8, heads=2, image_size=32)
    text = clip.TextConfig(width=8, depth=1, heads=1, context=12, vocabulary=514)
    model = CLIP(clip.CLIPConfig(embed=8, image=image, text=text)).train()
    images = torch.randint(0, 256, (4, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    once, parted = Pairs(model, "bytes"), Pairs(CLIP(model.config).train(), "bytes")
    tokens = batch_of(4)[1]
    for i in (0, 2):
        once(images[i : i + 2], tokens[i : i + 2])
    gradients(parted, (images, tokens), 2)
    for x, y in zip(once.buffers(), parted.buffers(), strict=True):
        assert torch.equal(x, y)


def losses_of(folder):
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in found if "loss" in record]


def assert_same_run(one, other, files=("model",)):
    np.testing.assert_allclose(losses_of(other), losses_of(one), rtol=1e-5)
    for file in files:
        models = [saved.load(out / f"{file}.safetensors")[0].numpy_parameters() for out in (one, other)]
        for name, x in models[0].items():
            np.testing.assert_allclose(models[1][name], x, rtol=1e-4, atol=1e-6, err_msg=f"{file} {name}")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"shard": True},
        {"shard": True, "parts": 2, "recompute": True},
        {"shard": True, "optimizer": "adamw", "eps": 0.01},
    ],
)
def test_two_ranks_train_as_one(pairs, tmp_path, how):
    """Also where they share the parameters out; AdamW with an eps that keeps it from enlarging what is rounded."""
    changes = {"average": 0.9, **how}
    tiny_run(pairs, tmp_path / "one", **{"optimizer": "sgd", **changes, "shard": False, "parts": 1})
    together("pretraining", 2, tmp_path, pairs, tmp_path / "two", json.dumps(changes))
    assert_same_run(tmp_path / "one", tmp_path / "two", ("model", "average"))


def test_ranks_with_shards_train_in_16_bits_as_those_without(pairs, tmp_path):
    """Beside one process, each rank rounds its own part of a gradient to bfloat16; here that of the table of tokens,
    too, which is not rounded without shards."""
    for shard in (False, True):
        changes = json.dumps({"precision": "bfloat16", "shard": shard})
        together("pretraining", 2, tmp_path, pairs, tmp_path / str(shard), changes, "", "rounded")
    assert_same_run(tmp_path / "False", tmp_path / "True")
    together("pretraining", 2, tmp_path, pairs, tmp_path / "unrounded", json.dumps({"precision": "bfloat16"}))
    losses, unrounded = (losses_of(tmp_path / name) for name in ("False", "unrounded"))
    assert unrounded[0] == losses[0] and len(unrounded) == len(losses) and list(unrounded) != list(losses)


def test_ranks_that_were_killed_go_on_as_fewer(pairs, tmp_path):
    """Four with shards, after whose death two go on with shards, and after theirs one."""
    tiny_run(pairs, tmp_path / "one", optimizer="sgd", steps=9)
    changes = json.dumps({"steps": 9, "shard": True})
    together("pretraining", 4, tmp_path, pairs, tmp_path / "other", changes, 3, dies=True)
    first = {path.name for path in (tmp_path / "other" / "checkpoints").glob("step-*")}
    together("pretraining", 2, tmp_path, pairs, tmp_path / "other", changes, 7, dies=True)
    second = {path.name for path in (tmp_path / "other" / "checkpoints").glob("step-*")}
    assert first <= {"step-000000002"} and second <= {"step-000000004", "step-000000006"} and second
    tiny_run(pairs, tmp_path / "other", optimizer="sgd", steps=9)
    assert_same_run(tmp_path / "one", tmp_path / "other")


def test_gradients_of_shards_are_the_mean_over_ranks(tmp_path):
    for found, expected in zip(*together("sharded_gradients", 3, tmp_path), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_adafactor_of_shards_is_that_of_the_whole(tmp_path):
    for whole, sharded in zip(*together("adafactor", 2, tmp_path), strict=True):
        # sums in another order may round the momentum, which is bfloat16, the other way
        np.testing.assert_allclose(sharded, whole, rtol=0, atol=0.1 * 2**-8 * 4)


def test_samples_without_a_caption_are_broken():
    with pytest.raises(Broken, match="no caption"):
        objective_of().prepare(Sample("x", np.zeros((8, 8, 3), np.uint8)), np.random.default_rng(0))
    long = Sample("x", np.zeros((9, 8, 3), np.uint8), caption="a very long caption")
    picture, tokens = objective_of().prepare(long, np.random.default_rng(0))
    assert picture.shape == (8, 8, 3) and tokens.shape == (12,) and tokens[-1] == 513


def test_measures_are_of_one_batch():
    objective, (images, tokens) = objective_of(), batch_of(6)
    found = objective.measures(images, torch.stack([tokens[0]] * 6))
    assert found["loss"] >= np.log(6) - 1e-9  # of six equal captions
    embedded, texts, _ = objective(images, tokens)
    assert objective.measures(images, tokens)["accuracy"] == objective.accuracy(embedded @ texts.T)
    assert objective.accuracy(torch.eye(6)) == 1 and objective.accuracy(torch.eye(6).roll(1, 0)) == 0


def test_every_preset_is_a_run():
    for name, (config, training) in pretrain_clip.PRESETS.items():
        assert training.batch % 2 == 0 and (config.logit_bias is not None) == name.startswith("siglip"), name
    assert pretrain_clip.PRESETS["clip-vit-b32"][1].optimization.betas == (0.9, 0.98)
    assert pretrain_clip.PRESETS["clip-rn50"][1].optimization.betas == (0.9, 0.999)
    assert pretrain_clip.PRESETS["clip-vit-l14@336px"][1].epochs == 1


def test_the_command(pairs, tmp_path):
    sizes = [word for name, value in SIZES.items() for word in ("--set", f"{name}={value}")]
    command = [
        "pretrain",
        "clip",
        str(pairs),
        "--preset",
        "clip-tiny",
        "--steps",
        "1",
        "--batch",
        "4",
        "--device",
        "cpu",
    ]
    done = invoke(*command, "--out", str(tmp_path / "run"), *sizes)
    assert done.exit_code == 0 and "step 1: ends" in done.output, done.output
    assert "Example: saccade pretrain clip" in invoke("pretrain", "clip", "--help").output


def test_a_clip_goes_on_at_a_higher_resolution(pairs, tmp_path):
    tiny_run(pairs, tmp_path / "low", steps=40)
    trained = tmp_path / "low" / "model.safetensors"
    before, _ = saved.load(trained)
    options = dict(preset="clip-tiny", start=trained, device="cpu", log_every=1, model={"image.image_size": 16})
    training = dict(steps=1, batch=12)
    pretrain_clip.run(
        pairs, tmp_path / "high", training=training, optimization=dict(peak=0.0, weight_decay=0.0), **options
    )
    after, facts = saved.load(tmp_path / "high" / "model.safetensors")
    assert facts["tokenizer"] == "bytes" and after.config.image.image_size == 16
    resized, _ = vit.resize(before.image.numpy_parameters(), before.config.image, 16, method="antialiased")
    for name, x in after.image.numpy_parameters().items():
        assert np.array_equal(x, resized[name]), name
    first = tiny_run(pairs, tmp_path / "anew", steps=1)[0]
    log = [json.loads(line) for line in (tmp_path / "high" / "log.jsonl").read_text().splitlines()]
    assert next(record["loss"] for record in log if "loss" in record) < first


def test_what_it_cannot_go_on_from_is_refused(pairs, tmp_path):
    tiny_run(pairs, tmp_path, steps=1)
    options = dict(preset="clip-tiny", start=tmp_path / "model.safetensors", device="cpu")
    with pytest.raises(ValueError, match=r"text\.width: .* has its own, expected image\.image_size alone"):
        pretrain_clip.run(pairs, tmp_path / "other", model={"text.width": 8}, **options)
    with pytest.raises(ValueError, match="token ids, the tokenizer 'clip'"):
        pretrain_clip.run(pairs, tmp_path / "other", tokenizer="clip", **options)
