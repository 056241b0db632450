"""Pre-training: what is minimised, interruptions, parts of a batch, 16 bits, logs and checkpoints."""

import json
import pickle
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_cli import invoke
from torch.distributed import checkpoint

import saccade
from saccade.palette import Palette
from saccade.recipes import pretrain_imagegpt, saved
from saccade.recipes.data import Arrays
from saccade.recipes.objectives import Mixed
from saccade.recipes.optimization import Optimization
from saccade.recipes.pretraining import Stopped, Training, pretrain
from saccade.torch import ImageGPT

COLORS = 8
TINY = dict(width=16, depth=2, heads=2, length=16)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """Pictures of 6 x 6 in four colours, of which each row repeats its first pixel; and a palette."""
    folder = tmp_path_factory.mktemp("pixels")
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (40, 6, 1, 3)).astype(np.uint8)
    np.savez(folder / "a.npz", images=np.broadcast_to(rows, (40, 6, 6, 3)), labels=np.arange(40) % 3)
    Palette.fit(rows, COLORS).save(folder / "palette.npy")
    return folder


class Breaking(Arrays):
    """Raises in place of the given sample, counted over the run, as a process that is killed would stop."""

    def __init__(self, path, at, error):
        super().__init__(path)
        self.left, self.error = at, error

    def read(self, job):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return super().read(job)


def objective_of(folder, seed=0, dropout=0.0, objective="autoregressive"):
    config = replace(pretrain_imagegpt.PRESETS["igpt-tiny"][0], **TINY, colors=COLORS, objective=objective, causal=None)
    model = ImageGPT(config, seed=seed, dropout=dropout)
    return pretrain_imagegpt.Pixels(model, Palette.load(folder / "palette.npy"))


def training(**changes):
    how = Optimization(peak=1e-2, warm_up=2, clip=1.0, average=0.9, weight_decay=0.01)
    return Training(**dict(steps=8, batch=4, optimization=how, seed=3) | changes)


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return {record["step"]: record["loss"] for record in records(folder) if "loss" in record}


def same(model, other):
    pairs = zip(model.numpy_parameters().items(), other.numpy_parameters().items(), strict=True)
    return all(a == b and np.array_equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("how", [{}, {"precision": "bfloat16"}, {"precision": "float16"}, {"adafactor": True}])
def test_an_interrupted_run_goes_on_bit_for_bit(pixels, tmp_path, how):
    adafactor = how.pop("adafactor", False)
    settings = training(**how)
    if adafactor:
        settings = replace(settings, optimization=replace(settings.optimization, optimizer="adafactor"))
    options = dict(log_every=1, save_every=2)
    source = Arrays(pixels / "a.npz")
    whole = pretrain(objective_of(pixels, dropout=0.1), source, tmp_path / "whole", settings, **options)
    for at in (14, 6):  # in the fourth step, after the checkpoint of two; then again in the first of those left
        broken = Breaking(pixels / "a.npz", at, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain(objective_of(pixels, dropout=0.1), broken, tmp_path / "cut", settings, **options)
    assert {step for step in losses(tmp_path / "cut")} < set(losses(tmp_path / "whole"))
    resumed = pretrain(objective_of(pixels, 1, dropout=0.1), source, tmp_path / "cut", settings, workers=1, **options)
    assert same(whole, resumed) and losses(tmp_path / "whole") == losses(tmp_path / "cut")
    averages = [saved.load(tmp_path / name / "average.safetensors")[0] for name in ("whole", "cut")]
    assert same(*averages) and not same(averages[0], whole)
    steps = [record["step"] for record in records(tmp_path / "cut") if "loss" in record]
    assert steps == sorted(set(steps)) == list(range(1, 9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_table_in_16_bits_gets_its_gradient_unrounded(dtype):
    """2,049 equal rows add up to what 16 bits do not hold; what a table's rows are is rounded as all else is."""
    table = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [1 + 2**-12, 3.0]]))

    class LooksUp(torch.nn.Module):
        tables = ("table",)

        def __init__(self):
            super().__init__()
            self.table = table

        def forward(self, tokens):
            return saccade.embedding(tokens, self.table)

    rows = Mixed(LooksUp(), dtype)(torch.tensor([0] + [1] * 2049))
    assert rows.dtype == dtype and torch.equal(rows[1], table[1].to(dtype))
    rows.backward(torch.full_like(rows, 1.0))
    assert table.grad is not None and table.grad.tolist() == [[1.0, 1.0], [2049.0, 2049.0]]


def test_training_learns(pixels, tmp_path):
    out = tmp_path / "run"
    model = pretrain_imagegpt.run(
        pixels / "a.npz", out, palette=pixels / "palette.npy", preset="igpt-tiny", model=TINY,
        training=dict(steps=40, batch=16), optimization=dict(peak=1e-2, warm_up=2), device="cpu", log_every=1,
    )  # fmt: skip
    found = losses(out)
    # a pixel right of the first is like it: 4 of 16 pixels are left to guess, of 8 colours
    assert found[1] == pytest.approx(np.log(COLORS), rel=1e-5) and found[40] < 0.7 * found[1]
    loaded, facts = saved.load(out / "model.safetensors")
    assert same(loaded, model) and np.array_equal(
        facts["palette"].centers, Palette.load(pixels / "palette.npy").centers
    )
    assert any(out.glob("tensorboard/*")) and not list(out.glob(".*"))


def test_bert_masks_some_pixels_and_learns_them(pixels, tmp_path):
    objective = objective_of(pixels, objective="masked")
    sample, rng = Arrays(pixels / "a.npz").read(0), np.random.default_rng(0)
    masks = np.array([objective.prepare(sample, rng)[1] for _ in range(300)])
    assert masks.any(1).all() and 0.14 < masks.mean() < 0.18
    pretrain(objective, Arrays(pixels / "a.npz"), tmp_path, training(steps=40, batch=16), log_every=1)
    assert losses(tmp_path)[40] < 0.9 * losses(tmp_path)[1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recomputed_activations_give_the_same_run(pixels, tmp_path, precision):
    source = Arrays(pixels / "a.npz")
    runs = []
    for recompute in (False, True):
        how = training(precision=precision, recompute=recompute)
        runs.append(pretrain(objective_of(pixels, dropout=0.1), source, tmp_path / str(recompute), how, log_every=1))
    assert same(*runs) and losses(tmp_path / "False") == losses(tmp_path / "True")


def test_recomputing_keeps_the_inputs_of_blocks_alone(pixels):
    tokens, model = torch.zeros(4, 16, dtype=torch.int64), objective_of(pixels).model.train()

    def kept(recomputes):
        model.recomputes, found = recomputes, []

        def keep(x):
            found.append(x.nbytes * (x.data_ptr() not in own))
            return x

        own = {x.data_ptr() for x in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            model.loss(tokens)
        return sum(found)

    block_inputs = TINY["depth"] * 4 * 16 * TINY["width"] * 4
    assert block_inputs < kept(True) < kept(False) - 5 * block_inputs


@pytest.mark.parametrize("objective", ["autoregressive", "masked"])
def test_parts_of_a_batch_give_its_gradients(pixels, objective):
    source, rng = Arrays(pixels / "a.npz"), np.random.default_rng(0)
    gradients = []
    for parts in (1, 3):
        one = objective_of(pixels, objective=objective).double()
        torch.nn.init.normal_(one.model.head.weight, generator=torch.Generator().manual_seed(0))
        rng = np.random.default_rng(0)
        batch = [torch.from_numpy(np.stack(x)) for x in zip(*(one.prepare(source.read(i), rng) for i in range(6)))]  # noqa: B905
        loss = one.backward(one, list(zip(*(x.chunk(parts) for x in batch), strict=True)), lambda x: x)
        gradients.append([loss, *(p.grad for p in one.parameters())])
    for x, y in zip(*gradients, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_a_term_signal_saves_and_leaves(pixels, tmp_path):
    class Asked(Breaking):
        def read(self, job):
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGTERM)
            return Arrays.read(self, job)

    source = Asked(pixels / "a.npz", 6, None)
    with pytest.raises(Stopped) as stopped:
        pretrain(objective_of(pixels), source, tmp_path / "run", training(), log_every=1)
    assert stopped.value.code == 128 + 15 and records(tmp_path / "run")[-1]["event"] == "stops"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resumed = pretrain(objective_of(pixels), Arrays(pixels / "a.npz"), tmp_path / "run", training(), log_every=1)
    whole = pretrain(objective_of(pixels), Arrays(pixels / "a.npz"), tmp_path / "whole", training(), log_every=1)
    assert same(resumed, whole)


def the_checkpoint(folder):
    (found,) = (folder / "checkpoints").iterdir()
    return found


def contents(folder):
    return {path.name: path.read_bytes() for path in the_checkpoint(folder).iterdir()}


def test_a_checkpoint_survives_a_write_that_fails(pixels, tmp_path, monkeypatch):
    settings = training(steps=4)
    with pytest.raises(KeyboardInterrupt):
        broken = Breaking(pixels / "a.npz", 13, KeyboardInterrupt)
        pretrain(objective_of(pixels), broken, tmp_path, settings, save_every=3)
    before = contents(tmp_path)
    save = torch.save

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        pretrain(objective_of(pixels), Arrays(pixels / "a.npz"), tmp_path, settings, save_every=3)
    monkeypatch.setattr(torch, "save", save)
    after = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert after == {"step-000000003", ".step-000000004"}
    pretrain(objective_of(pixels), Arrays(pixels / "a.npz"), tmp_path, settings, save_every=3)
    assert before.keys() == contents(tmp_path).keys() and the_checkpoint(tmp_path).name == "step-000000004"


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(pixels, tmp_path):
    def again(**changes):
        pretrain(objective_of(pixels), Arrays(pixels / "a.npz"), tmp_path, training(**{"steps": 2, **changes}))

    again()
    with pytest.raises(ValueError, match=r"of a run with batch=4, not 8: choose another folder"):
        again(batch=8)
    other = objective_of(pixels)
    other.options["palette"] = [[0.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match=r"of a run with objective="):
        pretrain(other, Arrays(pixels / "a.npz"), tmp_path, training(steps=2))
    for name, data in contents(tmp_path).items():
        path = the_checkpoint(tmp_path) / name
        for damaged in (data[: len(data) // 2], b""):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="not a whole checkpoint"):
                again()
        path.unlink()
        with pytest.raises(ValueError, match="not a whole checkpoint"):
            again()
        path.write_bytes(data)
    again()


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("place", ["the list of contents", "an item", "the rest"])
def test_a_checkpoint_runs_nothing(pixels, tmp_path, place):
    pretrain(objective_of(pixels), Arrays(pixels / "a.npz"), tmp_path, training(steps=2))
    folder, hostile = the_checkpoint(tmp_path), Hostile(tmp_path / "it ran")
    if place == "the list of contents":
        (folder / ".metadata").write_bytes(pickle.dumps(hostile))
    elif place == "an item":
        contents = checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
        items = {name: torch.empty(x.size, dtype=x.properties.dtype) for name, x in contents.items()}
        checkpoint.load(items, checkpoint_id=folder)
        (folder / ".metadata").unlink()
        checkpoint.save(items | {"objective.model.head.weight": hostile}, checkpoint_id=folder)
    else:
        (folder / "run.pt").write_bytes(pickle.dumps(hostile, protocol=2))
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        pretrain(objective_of(pixels), Arrays(pixels / "a.npz"), tmp_path, training(steps=2))
    assert not hostile.path.exists()


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(pixels, tmp_path):
    how = training(optimization=Optimization(peak=1e30, schedule="constant"))
    with pytest.raises(ValueError, match="a lower learning rate"):
        pretrain(objective_of(pixels), Arrays(pixels / "a.npz"), tmp_path, how, log_every=1)
    assert not (tmp_path / "checkpoints").exists()


def test_broken_samples_are_named_in_the_log(pixels, tmp_path):
    from saccade.recipes.cuts import Broken

    source = Breaking(pixels / "a.npz", 3, Broken("a.npz[?]", "planted"))
    pretrain(objective_of(pixels), source, tmp_path, training(steps=2))
    named = [record for record in records(tmp_path) if record.get("event") == "skipped"]
    assert [(record["name"], record["reason"]) for record in named] == [("a.npz[?]", "planted")]
    assert records(tmp_path)[-1] == {"step": 2, "event": "ends", "skipped": 1}


def test_held_out_samples_are_judged_without_a_trace(pixels, tmp_path):
    source, options = Arrays(pixels / "a.npz"), dict(log_every=2, save_every=3)
    plain = pretrain(objective_of(pixels, dropout=0.1), source, tmp_path / "plain", training(), **options)
    held_out = dict(held_out=pixels / "a.npz")
    judged = pretrain(objective_of(pixels, dropout=0.1), source, tmp_path / "judged", training(), **held_out, **options)
    assert same(plain, judged) and losses(tmp_path / "plain") == losses(tmp_path / "judged")
    found = {r["step"]: r["held_out_loss"] for r in records(tmp_path / "judged") if "held_out_loss" in r}
    objective = objective_of(pixels)
    tokens = [objective.prepare(source.read(i), None, training=False)[0] for i in range(40)]
    with torch.no_grad():
        expected = judged.loss(torch.from_numpy(np.stack(tokens))).item()
    assert list(found) == [3, 6, 8] and found[8] == pytest.approx(expected, rel=1e-5)


def test_lengths_and_shares():
    class Ten:
        path = "ten"

        def __len__(self):
            return 10

    assert Training(epochs=3, batch=4).length(Ten()) == 8 and Training(steps=5, batch=4).length(None) == 5
    assert Training(steps=1, batch=12, parts=3).share(2) == 6
    with pytest.raises(ValueError, match="does not divide into 2 ranks of 3 parts"):
        Training(steps=1, batch=4, parts=3).share(2)
    tiny = pretrain_imagegpt.PRESETS["igpt-tiny"][1].changed({"epochs": 2, "batch": 5}, {"peak": 7.0})
    assert tiny.length(Ten()) == 4 and tiny.optimization.peak == 7 and tiny.optimization.warm_up == 50
    with pytest.raises(ValueError, match="precision='half'"):
        Training(steps=1, batch=4, precision="half")


def test_the_command_trains_and_goes_on(pixels, tmp_path):
    command = [
        "pretrain", "imagegpt", str(pixels / "a.npz"), "--palette", str(pixels / "palette.npy"), "--out",
        str(tmp_path / "run"), "--preset", "igpt-tiny", "--set", "width=16", "--set", "length=16", "--set", "depth=1",
        "--batch", "4", "--warm-up", "2", "--device", "cpu", "--log-every", "1",
    ]  # fmt: skip
    done = invoke(*command, "--steps", "2")
    assert done.exit_code == 0 and "step 2: ends" in done.output, done.output
    done = invoke(*command, "--steps", "3")
    assert done.exit_code == 1 and "of a run with steps=2, not 3" in done.output and "Traceback" not in done.output
    done = invoke(*command[:-2], "--steps", "2", "--preset", "igpt-tiny", "--set", "width=sixteen")
    assert done.exit_code == 1 and done.output.startswith("saccade pretrain imagegpt: "), done.output
    assert "Example: saccade pretrain imagegpt" in invoke("pretrain", "imagegpt", "--help").output
