"""``saccade visualize``: one page from a checkpoint and pictures, whose figures show what was planted."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image
from test_pictures import CLIP, VIT, run
from test_weights import drawn

from saccade.models import clip, save
from saccade.recipes import report, visualize
from saccade.weights.files import convert


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)).save(path)
    return paths


@pytest.fixture
def kept(monkeypatch):
    """The figures that were drawn, still open."""
    figures = []
    monkeypatch.setattr(report, "figure", lambda plot, caption: figures.append(plot) or f"<figure>{caption}</figure>")
    yield figures
    pyplot.close("all")


def test_a_clips_page_has_all_figures(pictures, tmp_path):
    save(tmp_path / "ours.safetensors", drawn(CLIP, np.float32), CLIP)
    convert(tmp_path / "ours.safetensors", tmp_path / "clip", "hf")
    (tmp_path / "clip" / "merges.txt").write_text("#version: 0.2\n")
    done = run("visualize", "clip", *pictures, "--text", "red", "--text", "blue", "--out", "page.html", where=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 5 and page.count("data:image/png;base64,") == 5
    assert "1 blocks of width 24 with 2 heads, patches of 8 x 8, pictures of 32 x 32" in page


@pytest.mark.parametrize("pooling", ["token", "mean", "map"])
def test_a_vits_page_without_pictures_has_what_needs_none(tmp_path, pooling):
    config = replace(VIT, pooling=pooling)
    save(tmp_path / "vit.safetensors", drawn(config, np.float32), config)
    visualize.run(tmp_path / "vit.safetensors", [], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<figure>") == 2


def test_attention_that_is_all_on_one_patch_is_bright_there_alone(kept):
    config = replace(VIT, depth=2)
    weights = np.zeros((1, 2, 17, 17))
    weights[..., 1 + 6] = 1  # row 1, column 2 of 4 x 4
    pixels = np.full((1, 32, 32, 3), 200, np.uint8)
    visualize.rollouts(pixels, [weights, weights], config, ["white"])
    shown = np.asarray(kept[0].axes[1].images[0].get_array())
    assert (shown[8:16, 16:24] == 200).all()
    shown[8:16, 16:24] = 0
    assert shown.max() < 20


def test_positions_tiles_are_brightest_at_their_own_place(kept):
    config = replace(VIT, image_size=(16, 32))
    parameters = {"embed.positions": np.concatenate([np.zeros((1, 8)), np.eye(8)])}
    visualize.positions(parameters, config)
    mosaic = np.asarray(kept[0].axes[0].images[0].get_array())
    assert mosaic.shape == (2 * 3 - 1, 4 * 5 - 1)
    for i, j in np.ndindex(2, 4):
        tile = mosaic[3 * i : 3 * i + 2, 5 * j : 5 * j + 4]
        assert tile.argmax() == 4 * i + j and tile.sum() == 1


def test_models_without_patches_or_words_say_so(tmp_path, pictures):
    save(tmp_path / "vit.safetensors", drawn(VIT, np.float32), VIT)
    with pytest.raises(ValueError, match="knows no texts"):
        visualize.run(tmp_path / "vit.safetensors", pictures, tmp_path / "page.html", texts=["red"])
    config = replace(clip.variant("RN50"), text=CLIP.text)
    config = replace(config, image=replace(config.image, layers=(1, 1, 1, 1), width=8, heads=2, image_size=32))
    save(tmp_path / "rn.safetensors", drawn(config, np.float32), config)
    with pytest.raises(ValueError, match="is a ResNet, expected a vision transformer"):
        visualize.run(tmp_path / "rn.safetensors", pictures, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
