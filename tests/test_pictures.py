"""Everyday use: classes of a picture, embeddings of a folder, the pictures nearest to a text."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import twins
from PIL import Image
from test_weights import drawn

from saccade import images, reference
from saccade.models import clip, load, save, vit
from saccade.recipes import retrieval
from saccade.recipes.pictures import PictureModel, class_names
from saccade.testing import opset
from saccade.weights.files import convert

WORDS = 514  # of a tokenizer without merges, which spells bytes
CLIP = replace(
    clip.variant("ViT-B/32"),
    embed=12,
    image=clip.image_config(width=24, depth=1, heads=2, image_size=32, patch_size=8),
    text=clip.TextConfig(width=16, depth=1, heads=2, vocabulary=WORDS, context=40),
)
VIT = vit.ViTConfig(width=16, depth=1, heads=2, image_size=32, patch_size=8, classes=5, gelu="erf")


@pytest.fixture
def folder(tmp_path):
    """Pictures, one of them below another folder, and two files that are none."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.JPG", "more/c.webp", "d.png", "e.png")):
        pixels = np.kron(rng.integers(0, 256, (6 + i, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        form = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name.lower().rpartition(".")[2]]
        Image.fromarray(pixels).save(tmp_path / "pictures" / name, form)
    (tmp_path / "pictures" / "broken.png").write_bytes(b"hello")
    (tmp_path / "pictures" / "notes.txt").write_text("hello")
    return tmp_path / "pictures"


@pytest.fixture
def model(tmp_path):
    """A CLIP in Hugging Face's layout, with its merges: none."""
    save(tmp_path / "ours.safetensors", drawn(CLIP, np.float32), CLIP)
    convert(tmp_path / "ours.safetensors", tmp_path / "clip", "hf")
    (tmp_path / "clip" / "merges.txt").write_text("#version: 0.2\n")
    return tmp_path / "clip"


def run(*arguments, where):
    script = Path(sys.executable).with_name("saccade")
    return subprocess.run([script, *map(str, arguments)], capture_output=True, text=True, cwd=where)


def test_a_folder_is_embedded_and_searched_from_the_command_line(folder, model, tmp_path):
    done = run("embed", folder, "--model", model, "--out", "e.npz", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "broken.png: no picture" in done.stdout.replace("\n", " ") and "5 pictures in e.npz" in done.stdout
    found = retrieval.Embeddings.load(tmp_path / "e.npz")
    assert list(found.files) == ["a.png", "b.JPG", "d.png", "e.png", "more/c.webp"]
    parameters, config = load(model)
    decoded = [images.decode(folder / name) for name in found.files]
    pixels = images.preprocess(decoded, images.clip(32))
    judged = opset.judge(found.embeddings, lambda p, x, ops: clip.encode_images(p, x, config, ops), parameters, pixels)
    assert judged.verdict == "PASS", judged

    done = run("search", "e.npz", "a red bus", "--top", "3", "--sheet", "sheet.png", where=tmp_path)
    assert done.returncode == 0, done.stderr
    tokens = PictureModel(model).tokenizer().tokenize("a red bus", 40)
    exact = {name: x.astype(np.float64) for name, x in parameters.items()}
    of_pictures = clip.encode_images(exact, pixels, config, reference)
    cosines = of_pictures @ clip.encode_texts(exact, tokens, config, reference)[0]
    ranked = [str(found.files[i]) for i in np.argsort(-cosines)[:3]]
    assert [line.split("  ")[1] for line in done.stdout.splitlines()[:3]] == [str(folder / name) for name in ranked]
    assert [float(line.split()[0]) for line in done.stdout.splitlines()[:3]] == list(
        np.sort(cosines)[::-1][:3].round(4)
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 200


def test_embedding_is_taken_up_again(folder, model, tmp_path):
    wanted, calls = PictureModel(model), []
    embed = wanted.embed
    wanted.embed = lambda pictures: calls.append(len(pictures)) or embed(pictures)
    out = tmp_path / "e.npz"

    def interrupted(names):
        yield from names[:3]
        raise KeyboardInterrupt

    batch, retrieval.BATCH = retrieval.BATCH, 2
    try:
        with pytest.raises(KeyboardInterrupt):
            retrieval.embed_folder(folder, wanted, model, out, progress=interrupted)
        assert len(retrieval.Embeddings.load(out).files) == 2
        first = retrieval.embed_folder(folder, wanted, model, out)
        assert len(first.files) == 5 and sum(calls) == 5
        calls.clear()
        again = retrieval.embed_folder(folder, wanted, model, out)
        assert not calls and np.array_equal(again.embeddings, first.embeddings)
        Image.new("RGB", (9, 9), "red").save(folder / "a.png")
        (folder / "d.png").unlink()
        changed = retrieval.embed_folder(folder, wanted, model, out)
    finally:
        retrieval.BATCH = batch
    assert sum(calls) == 1 and list(changed.files) == ["a.png", "b.JPG", "e.png", "more/c.webp"]
    assert np.array_equal(changed.embeddings[1], first.embeddings[1])
    assert not np.array_equal(changed.embeddings[0], first.embeddings[0])


def test_another_model_is_refused(folder, model, tmp_path):
    out, first = tmp_path / "e.npz", PictureModel(model)
    found = retrieval.embed_folder(folder, first, model, out)
    save(tmp_path / "other.safetensors", drawn(CLIP, np.float32, seed=1), CLIP)
    other = PictureModel(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"e\.npz is of another model, .*clip: expected another name"):
        retrieval.embed_folder(folder, other, "other", out)
    with pytest.raises(ValueError, match="the embeddings are of another model"):
        retrieval.search(found, other, "a red bus", 3)
    assert PictureModel(tmp_path / "ours.safetensors").fingerprint() == first.fingerprint()


@pytest.mark.parametrize("library", ["hf", "timm", "saccade"])
def test_a_vit_ranks_its_classes(library, folder, tmp_path):
    save(tmp_path / "ours.safetensors", drawn(VIT, np.float32), VIT)
    convert(tmp_path / "ours.safetensors", tmp_path / "vit", library)
    names, shares = PictureModel(tmp_path / "vit").probabilities(images.decode(folder / "a.png"))
    how = {"hf": images.vit_hugging_face, "timm": images.vit_timm, "saccade": images.vit_google}[library]
    parameters = load(tmp_path / "vit")[0]
    pixels = images.preprocess([images.decode(folder / "a.png")], how(32))

    def softmax(parameters, pixels, ops):
        weights = np.exp(vit.forward(parameters, pixels, VIT, ops)[0])
        return weights / weights.sum()

    judged = opset.judge(np.asarray(shares, np.float32), softmax, parameters, pixels)
    assert judged.verdict == "PASS", judged
    assert names == [f"LABEL_{i}" for i in range(5)] if library == "hf" else [f"class {i}" for i in range(5)]


def test_a_thousand_classes_are_imagenets():
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    assert class_names(1000, {}) == list(IMAGENET_CLASSNAMES) and class_names(1000, {})[0] == "tench"
    assert class_names(1000, {"config.json": {"id2label": {"0": "a"}}})[:2] == ["a", "class 1"]


def test_classes_are_ranked_from_the_command_line(folder, model, tmp_path):
    options = ["--labels", "a cat,a dog,a bus", "--top", "2", "--out", "c.png"]
    done = run("classify", folder / "a.png", "--model", model, *options, where=tmp_path)
    assert done.returncode == 0, done.stderr
    names, shares = PictureModel(model).probabilities(images.decode(folder / "a.png"), ["a cat", "a dog", "a bus"])
    order = np.argsort(-shares)
    assert done.stdout.index(names[order[0]]) < done.stdout.index(names[order[1]])
    assert f"{shares[order[0]]:.4f}" in done.stdout and names[order[2]] not in done.stdout
    with Image.open(tmp_path / "c.png") as drawing:
        assert drawing.width > drawing.height > 100
    done = run("classify", folder / "broken.png", "--model", model, where=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("broken.png: no picture of a format that Pillow knows")
    done = run("classify", folder / "a.png", "--model", tmp_path / "nothing", where=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("saccade classify: ") and done.stderr.count("\n") == 1


def test_what_cannot_be_is_one_sentence(folder, model, tmp_path):
    picture = images.decode(folder / "a.png")
    with pytest.raises(ValueError, match="a CLIP knows no classes of its own"):
        PictureModel(model).probabilities(picture)
    save(tmp_path / "v.safetensors", drawn(VIT, np.float32), VIT)
    classifier = PictureModel(tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match="2 labels for 5 classes"):
        classifier.probabilities(picture, ["a", "b"])
    with pytest.raises(ValueError, match="is a ViT, which knows no texts"):
        classifier.embed_texts(["a"])
    assert classifier.embed([picture]).shape == (1, 16)
    headless = replace(VIT, classes=None)
    save(tmp_path / "h.safetensors", drawn(headless, np.float32), headless)
    with pytest.raises(ValueError, match="a ViT without a classifier"):
        PictureModel(tmp_path / "h.safetensors").probabilities(picture)
    os.remove(model / "merges.txt")
    with pytest.raises(ValueError, match=r"the tokenizer has 49408 ids but the model 514"):
        PictureModel(model).embed_texts(["a"])
    save(tmp_path / "i.safetensors", drawn(twins.IMAGEGPT, np.float32), twins.IMAGEGPT)
    with pytest.raises(ValueError, match="a model of kind imagegpt, expected a ViT or a CLIP"):
        PictureModel(tmp_path / "i.safetensors")
    grey = replace(VIT, channels=1, mean=None, std=None)
    save(tmp_path / "g.safetensors", drawn(grey, np.float32), grey)
    with pytest.raises(ValueError, match="sees 1 channels, expected 3"):
        PictureModel(tmp_path / "g.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no pictures"):
        retrieval.embed_folder(tmp_path / "empty", classifier, "x", tmp_path / "e.npz")
    (tmp_path / "e.npz").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"e\.npz: malformed"):
        retrieval.Embeddings.load(tmp_path / "e.npz")
    with pytest.raises(ValueError, match="the texts of a SigLIP need a tokenizer"):
        PictureModel(siglip(tmp_path)).embed_texts(["a"])


def siglip(folder):
    save(folder / "s.safetensors", drawn(twins.SIGLIP, np.float32), twins.SIGLIP)
    return folder / "s.safetensors"
