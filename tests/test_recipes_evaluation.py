"""Few-shot, zero-shot and probes: closed forms against the definition, features by hand, whole commands."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from recipe_models import COLORS, write_models
from test_cli import invoke

import saccade
from saccade import reference
from saccade.models import clip, imagegpt, vit
from saccade.recipes import accuracy, fewshot, finetune, probe, recall, saved, zeroshot
from saccade.recipes.cuts import central, stretched
from saccade.recipes.features import Extractor
from saccade.testing import opset
from saccade.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_models(tmp_path_factory.mktemp("evaluation"))
    source = saccade.recipes.data.Arrays(folder / "test.npz")
    captions = np.array([f"{COLORS[label]} {i}" for i, label in enumerate(source.labels)])
    np.savez(folder / "pairs.npz", images=source.images, captions=captions)
    return folder


@pytest.mark.parametrize("shape", [(40, 6), (9, 30)])
def test_one_eigendecomposition_serves_every_penalty(shape):
    rng = np.random.default_rng(0)
    features, labels, new = rng.standard_normal(shape), rng.integers(0, 3, shape[0]), rng.standard_normal((7, shape[1]))
    ridge = fewshot.Ridge(features, labels, 3)
    for penalty in (1e-2, 1.0, 1024.0):
        expected = reference.ridge_few_shot(features, labels, 3, regularization=penalty)(new)
        np.testing.assert_allclose(ridge.scores(new, penalty), expected, rtol=1e-7, atol=1e-9)


def test_few_examples_are_among_many_and_of_their_class():
    labels = np.random.default_rng(0).integers(0, 4, 200)
    few, many = (fewshot.drawn(labels, 4, shots, seed=1) for shots in (2, 7))
    assert set(few) < set(many) and np.bincount(labels[many]).tolist() == [7] * 4 and len(set(many)) == 28
    assert not np.array_equal(few, fewshot.drawn(labels, 4, 2, seed=2))
    assert fewshot.drawn(labels, 4, 150, seed=0) is None and fewshot.drawn(labels, 5, 1, seed=0) is None


def test_features_are_those_of_the_definition(folder):
    source = saccade.recipes.data.Arrays(folder / "test.npz")
    sample = source.read(3)
    for name in ("token", "mean", "map", "clip"):
        extractor = Extractor(folder / name, "cpu")
        parameters = extractor.tower.numpy_parameters()
        cut = central if name == "clip" else stretched
        picture, label = extractor.prepare(sample, None)
        assert np.array_equal(picture, cut(sample.picture, 8)) and label == 0 and extractor.layers == [0, 1, 2]
        first, last = extractor((np.stack([picture]),), [1, 2])
        headless = replace(extractor.config, classes=None)

        def of_last(parameters, pictures, ops, config=headless):
            return vit.forward(parameters, pictures, config, ops)

        def of_first(parameters, pictures, ops, config=headless):
            vit.forward(parameters, pictures, config, ops, stages=(stages := {}))
            norm = [parameters[f"blocks.1.norm1.{name}"] for name in ("scale", "bias")]
            normal = ops.layer_norm(stages["blocks.0"], *norm, eps=config.eps)
            return normal[:, 0] if config.prefix else ops.mean(normal, 1)

        for found, compute in ((last, of_last), (first, of_first)):
            judged = opset.judge(found, compute, parameters, picture[None])
            assert judged.verdict == "PASS", (name, judged)


def test_checkpoints_of_other_libraries_have_features_too(folder, tmp_path):
    from saccade.weights.files import convert

    convert(folder / "clip", tmp_path / "theirs", "hf")
    pictures = (np.stack([saccade.recipes.data.Arrays(folder / "test.npz").read(5).picture[:8, :8]]),)
    mine, theirs = (Extractor(path, "cpu")(pictures, [0, 2]) for path in (folder / "clip", tmp_path / "theirs"))
    assert all(np.array_equal(x, y) for x, y in zip(mine, theirs, strict=True))


def test_pixels_features_are_masked_as_in_training(folder):
    sample = saccade.recipes.data.Arrays(folder / "test.npz").read(4)
    extractor = Extractor(folder / "masked", "cpu")
    tokens, mask, label = extractor.prepare(sample, np.random.default_rng(0))
    assert tokens.shape == (16,) and mask.shape == (1, 16) and label == 1 and extractor.usual == 1

    def features(parameters, tokens, mask, ops):
        return imagegpt.features(parameters, tokens, extractor.config, ops, layers=[2], mask=mask)[0]

    (found,) = extractor((tokens[None], mask[None]), [2])
    judged = opset.judge(found, features, extractor.model.numpy_parameters(), tokens[None], mask)
    assert judged.verdict == "PASS", judged
    assert len(Extractor(folder / "pixels", "cpu").prepare(sample, None)) == 2


@pytest.mark.parametrize("model", ["pixels", "token", "clip"])
def test_few_shots_of_frozen_features(folder, model, capsys):
    options = dict(shots=(1, 10, 25), penalties=(1.0, 1024.0), device="cpu")
    found = fewshot.run(folder / model, folder / "train.npz", folder / "test.npz", **options)
    assert list(found["shots"]) == [1, 10] and "25 shots: a class of" in capsys.readouterr().out
    assert all(len(each) == 3 for one in found["shots"].values() for each in one.values())
    assert np.mean(found["shots"][10][1.0]) > 0.8


def test_a_search_of_penalties_finds_the_best_of_ninety_seven():
    asked = []

    def accuracy_of(penalty):
        asked.append(penalty)
        return -abs(np.log10(penalty) - 2.37)

    penalty, _ = probe.best_penalty(accuracy_of)
    assert abs(np.log10(penalty) - 2.375) < 1e-9 and len(asked) == len(set(asked)) <= 7 + 2 * 4
    assert probe.best_penalty(lambda penalty: 0.5)[0] == 1e6


def test_a_logistic_probe_minimises_the_definition():
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((60, 4)), rng.integers(0, 3, 60)
    fitted = probe.logistic(features, labels, 0.7, iterations=10_000)
    loss, grad, grad_bias = reference.logistic_probe_loss(features, labels, fitted.coef_, fitted.intercept_, 0.7)
    assert np.abs(grad).max() < 1e-2 and np.abs(grad_bias).max() < 1e-2
    far = reference.logistic_probe_loss(features, labels, fitted.coef_ + 0.1, fitted.intercept_, 0.7)[0]
    assert loss < far


def test_a_fifth_of_each_class_is_held_out():
    labels = np.array([0] * 10 + [1] * 5 + [2])
    fitted, held_out = probe.split(labels, 0)
    assert sorted([*fitted, *held_out]) == list(range(16)) and np.bincount(labels[held_out]).tolist() == [2, 1]
    with pytest.raises(ValueError, match="no class has two pictures"):
        probe.split(np.arange(3), 0)


def test_a_probe_of_every_layer(folder, tmp_path):
    options = dict(device="cpu", picture=tmp_path / "layers.png")
    found = probe.run(folder / "token", folder / "train.npz", folder / "test.npz", **options)
    assert list(found["layers"]) == [0, 1, 2] and found["layers"][found["best"]]["test"] > 0.8
    # the first layer's class token has seen no patch yet: chance
    assert found["layers"][0]["test"] == pytest.approx(1 / 3) and (tmp_path / "layers.png").stat().st_size > 1000


def test_a_probe_by_sgd_minimises_the_definition():
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((60, 4)), rng.integers(3, 6, 60)
    found = probe.Descended(features, labels, 0.3, batch=60)
    weight, bias = (x.detach().numpy().astype(float) for x in found.linear.parameters())
    best = probe.logistic(features, labels, 1e-6, iterations=10_000)
    losses = [
        reference.logistic_probe_loss(features, labels - 3, w, b, 0)[0]
        for w, b in ((weight, bias), (best.coef_, best.intercept_), (0 * weight, 0 * bias))
    ]
    # as good as a penalty-free minimum, but for what rows drawn anew at every step leave
    assert losses[1] <= losses[0] < losses[1] + 0.05 * (losses[2] - losses[1])
    assert set(found.predict(features)) <= {3, 4, 5} and found.score(features, found.predict(features)) == 1
    assert probe.best_rate(lambda rate: rate < 5) == (0.03, True)


def test_most_votes_win_and_ties_are_drawn():
    rng = np.random.default_rng(0)
    votes = np.array([[1, 2, 2, 0], [4, 4, 4, 4], [0, 1, 0, 1]])
    drawn = np.array([accuracy.majority(votes, rng) for _ in range(200)])
    assert (drawn[:, 0] == 2).all() and (drawn[:, 1] == 4).all()
    assert 60 < drawn[:, 2].sum() < 140 and set(drawn[:, 2]) == {0, 1}


def test_several_masks_of_a_picture(folder):
    extractor, source = Extractor(folder / "masked", "cpu"), saccade.recipes.data.Arrays(folder / "test.npz")
    (one,), labels = extractor.of(source, [1])
    (many,), again = extractor.of(source, [1], masks=3)
    assert one.shape == (30, 16) and many.shape == (30, 3, 16) and np.array_equal(labels, again)
    assert np.array_equal(many[:, 0], one) and not np.allclose(many[:, 1], one, atol=1e-3)
    tokens, masks, _ = extractor.prepare(source.read(4), np.random.default_rng(0), masks=3)
    expected = extractor.model.features(torch.from_numpy(tokens[None]), [1], torch.from_numpy(masks[2:]))[0]
    found = extractor((tokens[None], masks[None]), [1])[0][0, 2]
    np.testing.assert_allclose(found, expected[0].detach().numpy(), rtol=1e-5, atol=1e-6)
    for model in ("pixels", "token"):
        with pytest.raises(ValueError, match="masks are for an ImageGPT with objective='masked'"):
            Extractor(folder / model, "cpu").of(source, [1], masks=3)


def test_a_probe_of_masked_pictures(folder):
    options = dict(layers=[1, 2], masks=5, solver="sgd", device="cpu")
    found = probe.run(folder / "masked", folder / "train.npz", folder / "test.npz", **options)["layers"]
    assert all(one["rate"] in probe.RATES and one["ensemble"] >= one["test"] > 0.6 for one in found.values())
    fitted = probe.Descended(np.array([[-1.0], [1.0]]), np.array([4, 7]), 1.0)
    votes = np.array([[[-1.0], [2.0], [3.0]], [[1.0], [-1.0], [-2.0]]])  # 4 7 7 and 7 4 4
    assert probe._judged(fitted, votes, np.array([7, 4]), 0) == {"test": pytest.approx(4 / 6), "ensemble": 1.0}
    with pytest.raises(ValueError, match="expected one of lbfgs, sgd"):
        probe.run(folder / "masked", folder / "train.npz", folder / "test.npz", solver="adam")


def test_accuracy_is_the_share_that_the_classifier_names_right(folder, tmp_path):
    test = folder / "test.npz"
    model, _ = saved.load(folder / "token")
    source = saccade.recipes.data.Arrays(test)
    samples = [source.read(i) for i in range(30)]
    with torch.no_grad():
        logits = model(torch.from_numpy(np.stack([stretched(one.picture, 8) for one in samples])))
    right = (logits.argmax(1).numpy() == [one.label for one in samples]).mean()
    found = accuracy.run(folder / "token", test, top=(1, 3, 5), device="cpu")
    assert found == {"top": {1: pytest.approx(right), 3: 1.0}, "ensemble": None, "pictures": 30}
    finetune.run(
        folder / "masked", folder / "train.npz", tmp_path, training=dict(steps=40, batch=20), device="cpu",
        optimization=dict(warm_up=2, peak=1e-2),
    )  # fmt: skip
    found = accuracy.run(tmp_path / "model.safetensors", test, masks=5, device="cpu")
    assert found["ensemble"] >= found["top"][1] > 0.7
    with pytest.raises(ValueError, match="has no classifier: saccade finetune gives it one"):
        accuracy.run(folder / "pixels", test, device="cpu")
    np.savez(tmp_path / "other.npz", **dict(np.load(test)) | {"classes": ["a", "b", "c"]})
    with pytest.raises(ValueError, match=r"expected \['red', 'green', 'blue'\]"):
        accuracy.run(folder / "token", tmp_path / "other.npz", device="cpu")
    saved.save(model, tmp_path / "nameless")  # as another library's checkpoint, which names no classes
    assert accuracy.run(tmp_path / "nameless", tmp_path / "other.npz", device="cpu")["pictures"] == 30
    np.savez(tmp_path / "more.npz", **dict(np.load(test)) | {"classes": ["a", "b", "c", "d"]})
    with pytest.raises(ValueError, match="expected 3 of them"):
        accuracy.run(tmp_path / "nameless", tmp_path / "more.npz", device="cpu")


def test_ranks_by_hand():
    scores = np.array([[0.1, 0.5, 0.2], [0.3, 0.3, 0.3], [9.0, 1.0, 2.0]])
    assert zeroshot.ranks_of(scores, np.array([1, 2, 1])).tolist() == [0, 2, 2]


def test_prompts(tmp_path):
    assert zeroshot.templates_of("a {}!") == ["a {}!"]
    (tmp_path / "prompts.txt").write_text("one {}\n\nanother {}\n")
    assert zeroshot.templates_of(str(tmp_path / "prompts.txt")) == ["one {}", "another {}"]
    eighty = zeroshot.openai_templates()
    assert len(eighty) == 80 and eighty[0] == "a bad photo of a {}." and all(one.count("{}") == 1 for one in eighty)
    with pytest.raises(ValueError, match="exactly one"):
        zeroshot.templates_of("{} and {}")


def test_zero_shot_is_the_nearest_mean_of_prompts(folder):
    templates = ["a {}", "the {} one"]
    (folder / "prompts.txt").write_text("\n".join(templates))
    found = zeroshot.run(folder / "clip", folder / "test.npz", prompts=str(folder / "prompts.txt"), device="cpu")
    model, _ = saved.load(folder / "clip")
    parameters, config = model.numpy_parameters(), model.config
    rows = []
    for name in COLORS:
        tokens = Tokenizer().tokenize([template.format(name) for template in templates], 20)
        mean = clip.encode_texts(parameters, tokens, config, reference).mean(0)
        rows.append(mean / np.linalg.norm(mean))
    source = saccade.recipes.data.Arrays(folder / "test.npz")
    images = np.stack([central(source.read(i).picture, 8) for i in range(30)])
    guesses = (clip.encode_images(parameters, images, config, reference) @ np.stack(rows).T).argmax(1)
    assert found["top"] == {1: pytest.approx((guesses == source.labels).mean())} and found["pictures"] == 30
    with pytest.raises(ValueError, match="2 names, expected 3"):
        zeroshot.run(folder / "clip", folder / "test.npz", names=["x", "y"], device="cpu")
    with pytest.raises(ValueError, match="is a ViT, expected a CLIP"):
        zeroshot.run(folder / "token", folder / "test.npz", device="cpu")


def test_recalls_by_hand():
    images = np.eye(3)
    texts = np.array([[1, -0.1, 0], [0, 0, 1], [0, 0.5, 0.9]])
    # picture 1 is nearer to caption 2 than to its own, picture 2 to caption 1; caption 1 is no nearer to its own
    # picture than to the one before
    found = recall.recalls(images, texts, (1, 2, 5))
    assert found["captions of pictures"] == {1: pytest.approx(1 / 3), 2: 1.0}
    assert found["pictures of captions"] == {1: pytest.approx(2 / 3), 2: pytest.approx(2 / 3)}


def test_retrieval_is_by_the_products_of_embeddings(folder, monkeypatch):
    monkeypatch.setattr(recall, "BATCH", 4)
    source = saccade.recipes.data.Arrays(folder / "test.npz")
    captions = np.load(folder / "pairs.npz")["captions"]
    found = recall.run(folder / "clip", folder / "pairs.npz", top=(1, 3), device="cpu")
    model, _ = saved.load(folder / "clip")
    parameters, config = model.numpy_parameters(), model.config
    images = np.stack([central(source.read(i).picture, 8) for i in range(30)])
    tokens = Tokenizer().tokenize(list(captions), 20)
    embeddings = [clip.encode_images(parameters, images, config, reference)]
    embeddings.append(clip.encode_texts(parameters, tokens, config, reference))
    expected = recall.recalls(*embeddings, (1, 3))
    assert {name: pytest.approx(each, abs=1e-6) for name, each in expected.items()} | {"pairs": 30} == found


def test_the_commands(folder, tmp_path):
    both = [str(folder / "train.npz"), str(folder / "test.npz")]
    for command in (
        ["fewshot", str(folder / "token"), *both, "--shots", "2"],
        ["zeroshot", str(folder / "clip"), both[1], "--prompts", "a {}"],
        ["probe", str(folder / "token"), *both, "--layer", "2"],
        ["accuracy", str(folder / "token"), both[1], "--top", "2"],
        ["recall", str(folder / "clip"), str(folder / "pairs.npz"), "--top", "2"],
    ):
        done = invoke(*command, "--device", "cpu", "--json", str(tmp_path / "out.json"))
        assert done.exit_code == 0, done.output
        assert json.loads((tmp_path / "out.json").read_text())
        assert f"Example: saccade {command[0]}" in invoke(command[0], "--help").output
    done = invoke("probe", both[0], *both)
    assert done.exit_code == 1 and "malformed or truncated" in done.output
