"""``saccade palette``: what it writes is what ``Palette`` says, through files and back."""

import numpy as np
import pytest
from PIL import Image
from rank_programs import together
from test_cli import invoke

from saccade.palette import Palette, count_colors
from saccade.recipes import palettes


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/x.png", "a/x.bmp", "b/y.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 9, 3)).astype(np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "b" / "z.png").write_bytes(b"broken")
    return tmp_path / "photos"


def test_a_palette_is_fitted_to_the_pixels_of_all_pictures(photos, tmp_path, capsys):
    pixels = [np.asarray(Image.open(file)) for file in sorted(photos.rglob("[xy].*"))]
    palette, skipped = palettes.fit(photos, tmp_path / "p.npy", colors=8)
    whole = Palette.fit(np.stack(pixels), 8)
    assert np.array_equal(palette.centers, whole.centers) and palette.inertia == whole.inertia and skipped == 1
    assert np.array_equal(Palette.load(tmp_path / "p.npy").centers, whole.centers)
    out = capsys.readouterr().out
    assert f"skipped {photos / 'b' / 'z.png'}: no picture of a format" in out and "1 pictures skipped" in out


def test_ranks_fit_the_palette_of_all_pictures(photos, tmp_path):
    palette, _ = palettes.fit(photos, tmp_path / "alone.npy", colors=8)
    found = together("palette", 2, tmp_path, photos, tmp_path / "p.npy")
    assert np.array_equal(found["centers"], palette.centers) and found["skipped"] == 1
    assert np.array_equal(Palette.load(tmp_path / "p.npy").centers, palette.centers)


def test_histograms_add(photos):
    pixels = np.random.default_rng(1).integers(0, 9, (50, 3)).astype(np.uint8)
    parts = count_colors(pixels[:20]) + count_colors(pixels[20:])
    assert np.array_equal(parts, count_colors(pixels)) and parts.sum() == 50
    with pytest.raises(ValueError, match="expected int64"):
        count_colors(pixels, np.zeros(4))


def test_tokens_and_back(photos, tmp_path, capsys):
    palette, _ = palettes.fit(photos, tmp_path / "p.npy", colors=8)
    assert palettes.encode(photos, tmp_path / "p.npy", tmp_path / "tokens") == 1
    (tmp_path / "tokens" / "bad.npy").write_bytes(b"x")
    np.save(tmp_path / "tokens" / "high.npy", np.full((2, 2), 8))
    assert palettes.decode(tmp_path / "tokens", tmp_path / "p.npy", tmp_path / "back") == 2
    files = [str(file.relative_to(tmp_path / "back")) for file in sorted((tmp_path / "back").rglob("*.*"))]
    assert files == ["a/x.bmp.png", "a/x.png.png", "b/y.png.png"]
    for name in ("a/x.png", "a/x.bmp", "b/y.png"):
        picture = np.asarray(Image.open(photos / name))
        tokens = np.load(tmp_path / "tokens" / f"{name}.npy")
        assert tokens.dtype == np.uint16 and np.array_equal(tokens, palette.encode(picture))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "back" / f"{name}.png")), palette.decode(tokens))
    assert "token 8, expected 0…7" in capsys.readouterr().out


def test_the_commands(photos, tmp_path):
    files = [str(tmp_path / name) for name in ("p.npy", "tokens", "back")]
    done = invoke("palette", "fit", str(photos), "--out", files[0], "--colors", "4", "--size", "4")
    assert done.exit_code == 0 and "4 colours for 48 pixels" in done.output, done.output
    done = invoke("palette", "encode", str(photos), "--palette", files[0], "--out", files[1], "--size", "4")
    assert done.exit_code == 0 and "3 pictures, 1 skipped" in done.output, done.output
    done = invoke("palette", "decode", files[1], "--palette", files[0], "--out", files[2])
    assert done.exit_code == 0 and "3 pictures, 0 skipped" in done.output, done.output
    done = invoke("palette", "fit", str(tmp_path / "nothing"))
    assert done.exit_code == 1 and done.output.startswith("saccade palette fit:") and "Traceback" not in done.output
    for command in ("fit", "encode", "decode"):
        assert f"Example: saccade palette {command}" in invoke("palette", command, "--help").output
