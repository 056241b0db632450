"""Pictures that a model draws: what was given stays, the same seed draws the same, the grid by hand."""

import numpy as np
import pytest
from PIL import Image
from recipe_models import write_models
from test_cli import invoke

from saccade.recipes import generate, saved
from saccade.recipes.cuts import central
from saccade.recipes.data import Arrays


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("generate"))


def test_pictures_from_nothing(folder, tmp_path):
    options = dict(count=5, device="cpu", zoom=2)
    one, two = (generate.run(folder / "pixels", tmp_path / "a.png", seed=7, **options) for _ in range(2))
    other = generate.run(folder / "pixels", tmp_path / "b.png", seed=8, **options)
    assert one.shape == (5, 4, 4) and np.array_equal(one, two) and not np.array_equal(one, other)
    # two rows of three: pictures of 8 with 2 between and around
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (3 * 10 + 2, 2 * 10 + 2)


def test_completions_keep_what_was_given(folder, tmp_path):
    found = generate.run(
        folder / "pixels",
        tmp_path / "a.png",
        count=3,
        complete=folder / "test.npz",
        given=0.5,
        draws=2,
        device="cpu",
    )
    palette, source = saved.load(folder / "pixels")[1]["palette"], Arrays(folder / "test.npz")
    truth = palette.encode(np.stack([central(source.read(i).picture, 4) for i in range(3)]))
    assert found.shape == (2, 3, 4, 4) and (found[:, :, :2] == truth[:, :2]).all()
    assert not np.array_equal(found[0], found[1])
    for model in ("masked", "token"):
        with pytest.raises(ValueError, match="no autoregressive ImageGPT"):
            generate.run(folder / model, tmp_path / "b.png", device="cpu")


def test_side_by_side_by_hand():
    table = np.arange(2, dtype=np.uint8).reshape(1, 2, 1, 1, 1).repeat(3, 4)
    whole = generate.side_by_side(table, zoom=2, gap=1)[:, :, 0]
    assert whole.tolist() == [[255] * 7, *[[255, 0, 0, 255, 1, 1, 255]] * 2, [255] * 7]


def test_the_command(folder, tmp_path):
    done = invoke(
        "generate",
        folder / "pixels",
        "--out",
        tmp_path / "a.png",
        "--count",
        2,
        "--top-k",
        3,
        "--top-p",
        0.9,
    )
    assert done.exit_code == 0 and (tmp_path / "a.png").exists(), done.output
    assert "Example: saccade generate" in invoke("generate", "--help").output
