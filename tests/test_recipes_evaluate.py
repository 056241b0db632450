"""``saccade evaluate``: every model on every set, once, and the page."""

import json

import pytest
from recipe_models import write_models
from test_pictures import run as command

from saccade.recipes import evaluate, fewshot, probe, zeroshot


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def test_numbers_are_those_of_the_recipes_and_known_ones_are_not_computed_again(folder, tmp_path, monkeypatch):
    sets = {name: (folder / "train.npz", folder / "test.npz") for name in ("first", "second")}
    options = dict(shots=(1, 10), seeds=2, device="cpu")
    found = evaluate.run([folder / "clip", folder / "token"], sets, tmp_path, **options)
    one = found[str(folder / "clip")]["sets"]["first"]
    few = fewshot.run(folder / "clip", *sets["first"], **options)
    assert one["few-shot"] == {str(k): sum(each[fewshot.PENALTY]) / 2 for k, each in few["shots"].items()}
    probed = probe.run(folder / "clip", *sets["first"], layers=[few["layer"]], device="cpu")
    assert one["linear probe"] == probed["layers"][few["layer"]]["test"]
    assert one["zero-shot"] == zeroshot.run(folder / "clip", sets["first"][1], top=(1,), device="cpu")["top"][1]
    assert found[str(folder / "token")]["sets"]["first"]["zero-shot"] is None
    page = (tmp_path / "index.html").read_text()
    assert page.count("<figure>") == 2 and page.count("second") >= 2
    monkeypatch.setattr(fewshot, "run", lambda *_, **__: pytest.fail("computed again"))
    assert evaluate.run([folder / "clip", folder / "token"], sets, tmp_path, **options) == found


def test_zero_shot_is_compared_with_the_probe_of_a_baseline(monkeypatch):
    drawn = {}
    monkeypatch.setattr(evaluate, "differences", lambda found, whom: drawn.update(found, whom=whom) or "")
    scores = {"few-shot": {}, "zero-shot": None, "linear probe": 0.5}
    found = {
        "a/resnet": {"GFLOPs": 1.0, "sets": {"one": scores}},
        "a/clip": {"GFLOPs": 2.0, "sets": {"one": scores | {"zero-shot": 0.75, "linear probe": 0.9}}},
    }
    evaluate.page(found, ["one"], "a/resnet")
    assert drawn == {"a/clip": {"one": 0.25}, "whom": "the features of resnet"}
    evaluate.page(found, ["one"])
    assert drawn == {"a/clip": {"one": pytest.approx(-0.15)}, "whom": "the same features"}


def test_a_model_without_words_has_one_figure_less(folder, tmp_path):
    evaluate.run([folder / "mean"], {"one": (folder / "train.npz", folder / "test.npz")}, tmp_path, shots=(1,))
    assert (tmp_path / "index.html").read_text().count("<figure>") == 1


def test_from_the_command_line(folder, tmp_path):
    data = f"one={folder / 'train.npz'}:{folder / 'test.npz'}"
    done = command("evaluate", folder / "token", "--data", data, "--shots", 1, "--out", "page", where=tmp_path)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "page" / "results.json").read_text())
    assert kept["models"][str(folder / "token")]["GFLOPs"] > 0
    done = command("evaluate", folder / "token", "--data", data, "--shots", 2, "--out", "page", where=tmp_path)
    assert done.returncode == 1 and "expected another folder for" in done.stderr
    done = command("evaluate", folder / "token", "--data", data, "--baseline", "other", where=tmp_path)
    assert done.returncode == 1 and "baseline='other', expected one of the models" in done.stderr
    done = command("evaluate", folder / "token", "--data", "one=two", where=tmp_path)
    assert done.returncode == 1 and "expected NAME=TRAIN:TEST" in done.stderr
    (tmp_path / "page" / "results.json").write_text("{")
    done = command("evaluate", folder / "token", "--data", data, "--out", "page", where=tmp_path)
    assert done.returncode == 1 and "is no results of saccade evaluate" in done.stderr
