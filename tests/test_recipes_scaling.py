"""``saccade scaling``: the law is found again, parts of a source are nested, and the grid is run once."""

import json

import numpy as np
import pytest
from recipe_models import write_models
from test_pictures import run as command

from saccade.models.variants import cost
from saccade.recipes import pretrain_vit, saved, scaling
from saccade.recipes.data import open_source

OPTIONS = dict(widths=(16,), depths=(1, 2), shares=(0.5, 1.0), steps=(2, 4), batch=6, warm_up=1, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def test_a_law_is_found_again():
    compute = np.geomspace(1e2, 1e7, 12)
    error = 4 * (compute + 500) ** -0.35 + 0.06
    assert scaling.fit(compute, error) == pytest.approx((4, 0.35, 0.06, 500), rel=1e-3)
    with pytest.raises(ValueError, match="3 points, expected at least 4"):
        scaling.fit(compute[:3], error[:3])


def test_the_frontier_is_what_no_cheaper_run_beats():
    runs = [{"compute": c, "error": e} for c, e in ((3, 0.4), (1, 0.5), (2, 0.6), (3, 0.3), (4, 0.3), (5, 0.2))]
    assert [(one["compute"], one["error"]) for one in scaling.frontier(runs)] == [(1, 0.5), (3, 0.3), (5, 0.2)]


def test_smaller_parts_are_in_larger_ones(folder):
    source = open_source(folder / "train.npz")
    small, large = scaling.Part(source, 10), scaling.Part(source, 40)
    assert len(small) == 10 and small.classes == source.classes
    assert [small.identity(i) for i in range(10)] == [large.identity(i) for i in range(10)]
    assert len({large.identity(i) for i in range(40)}) == 40
    assert np.array_equal(small.read(3).picture, source.read(small.identity(3)).picture)
    assert open_source(small) is small


def test_a_grid_is_trained_judged_and_drawn_once(folder, tmp_path, monkeypatch):
    found = scaling.run(folder / "train.npz", folder / "test.npz", tmp_path, **OPTIONS)
    assert [(one["depth"], one["pictures"], one["steps"]) for one in found] == [
        (d, n, s) for d in (1, 2) for n in (30, 60) for s in (2, 4)
    ]
    model, facts = saved.load(tmp_path / "w16-d2-n60-s4" / "model.safetensors")
    assert facts["samples"] == 24 and found[-1]["parameters"] == sum(p.numel() for p in model.parameters())
    assert found[-1]["compute"] == 3 * cost(model.config).flops * 24 / 1e9
    log = [json.loads(line) for line in (tmp_path / "w16-d2-n60-s4" / "log.jsonl").read_text().splitlines()]
    assert found[-1]["error"] == 1 - next(one["held_out_accuracy"] for one in log if "held_out_accuracy" in one)
    assert (tmp_path / "index.html").read_text().count("<figure>") == 4
    monkeypatch.setattr(pretrain_vit, "run", lambda *_, **__: pytest.fail("trained again"))
    assert scaling.run(folder / "train.npz", folder / "test.npz", tmp_path, **OPTIONS) == found
    with pytest.raises(ValueError, match="expected another folder"):
        scaling.run(folder / "train.npz", folder / "test.npz", tmp_path, **OPTIONS | {"batch": 12})


def test_what_it_refuses(folder, tmp_path):
    with pytest.raises(ValueError, match=r"a share of 1\.5 of the pictures"):
        scaling.run(folder / "train.npz", folder / "test.npz", tmp_path, shares=(1.5,))
    np.save(tmp_path / "plain.npy", np.zeros((2, 8, 8, 3), np.uint8))
    done = command("scaling", "plain.npy", "plain.npy", where=tmp_path)
    assert done.returncode == 1 and "plain.npy has no classes" in done.stderr
    (tmp_path / "scaling").mkdir(exist_ok=True)
    (tmp_path / "scaling" / "results.json").write_text("[]")
    done = command("scaling", folder / "train.npz", folder / "test.npz", where=tmp_path)
    assert done.returncode == 1 and "is no results of saccade scaling" in done.stderr
