"""The demonstration's parts: where its data comes from, its baselines by hand, its page, its interruptions."""

import json
import math

import numpy as np
import pytest

from saccade.recipes import demo, photographs, report
from saccade.recipes.demo_imagegpt import bigram_nats, histogram_nats


def test_training_and_held_out_parts_do_not_overlap():
    pictures = photographs.photographs(32)
    assert len(pictures) == 10
    for picture in pictures.values():
        left, right = photographs.split(picture)
        assert left.shape[1] + right.shape[1] == picture.shape[1] and right.shape[1] >= 8
        assert np.array_equal(np.concatenate([left, right], 1), picture)


def test_crops_come_from_the_picture_they_are_labelled_with():
    pictures = [np.full((9, 9, 3), level, np.uint8) for level in (10, 20, 30)]
    images, labels = photographs.crops(pictures, 50, 4, np.random.default_rng(0))
    assert images.shape == (50, 4, 4, 3) and set(labels.tolist()) == {0, 1, 2}
    assert np.array_equal(images[:, 0, 0, 0], (labels + 1) * 10)


def test_digits_for_testing_are_not_trained_on():
    (images, labels), (test_images, test_labels) = photographs.digits()
    assert len(images) == len(labels) == 1437 and len(test_images) == len(test_labels) == 360
    assert (
        images.dtype == np.uint8
        and images.shape[1:] == (16, 16, 1)
        and images.max() == 255
        and len(set(test_labels.tolist())) == 10
    )


def test_jittered_images_stay_about_where_they_were():
    image = np.zeros((200, 16, 16, 1), np.uint8)
    image[:, 6:10, 6:10] = 200
    moved = photographs.jittered(image, np.random.default_rng(0))
    assert moved.dtype == np.uint8 and moved.shape == image.shape and len(np.unique(moved, axis=0)) == 200
    weights = moved[..., 0].sum((1, 2))
    assert (np.abs(weights / weights.mean() - 1) < 0.35).all()
    rows = (moved[..., 0] * np.arange(16)[:, None]).sum((1, 2)) / weights
    assert np.abs(rows - 7.5).max() < 2.3 and np.abs(rows - 7.5).max() > 1
    still = photographs.jittered(image, np.random.default_rng(0), turn=0, zoom=0, shift=0)
    assert np.array_equal(still, image)


def test_bars_by_hand():
    facts = {
        "imagegpt": {"held-out nats per pixel": 2.5, "histogram baseline": 6.0, "bigram baseline": 2.4},
        "vit": {"test accuracy": 0.97},
        "clip": {"zero-shot accuracy": 0.89},
        "kernels": {
            "import saccade, seconds": 0.1,
            "operations": {"gelu": {"verdict": "PASS"}, "linear": {"verdict": "FAIL"}},
        },
    }
    rows = demo.bars(facts)
    assert [row[-1] for row in rows] == ["yes", "no", "yes", "no", "yes", "no"]
    assert rows[-1][1] == "1 of 2" and rows[2][1:3] == ("97.0 %", "≥ 97 %")
    assert demo.bars({}) == []


def test_baselines_by_hand():
    # one row of two pixels, always 0 then 1; 512 colours with one added to each count: (100 + 1) / (200 + 512)
    tokens = np.tile(np.array([[[0, 1]]]), (100, 1, 1))
    share = 101 / 712
    assert math.isclose(histogram_nats(tokens, tokens), -math.log(share))
    # the best strength is the least: p(1 | 0) = (100 + share) / 101
    expected = -(math.log(share) + math.log((100 + share) / 101)) / 2
    assert math.isclose(bigram_nats(tokens, tokens), expected)


def test_a_page_is_self_contained_and_escapes():
    page = report.page("a < b", "", [("x & y", report.table(("one",), [("<i>",), ("PASS",)]))])
    assert "a &lt; b" in page and "&lt;i&gt;" in page and 'class="good">PASS' in page
    assert "http" not in page and "src=" not in page


def test_the_palette_section_makes_a_page_and_starts_anew(tmp_path, capsys):
    facts = demo.run(tmp_path, quick=True, sections=("palette",))
    assert facts["palette"]["colours"] == 512 and 0 < facts["palette"]["mean squared error per pixel"] < 100
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page
    assert json.loads((tmp_path / "facts.json").read_text()) == facts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.json", "index.html"]
    assert "index.html" in capsys.readouterr().out.replace("\n", "")


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    from saccade.recipes import demo_kernels

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_kernels, "section", interrupted)
    with pytest.raises(SystemExit):
        demo.run(tmp_path, quick=True, sections=("palette", "kernels"))
    assert "Finished: palette" in capsys.readouterr().out and not (tmp_path / "index.html").exists()
    monkeypatch.setattr(demo_kernels, "section", lambda *_: ({}, "<p>kernels</p>"))
    demo.run(tmp_path, quick=True, sections=("palette", "kernels"))
    assert "kept from the interrupted run" in capsys.readouterr().out
    assert "<p>kernels</p>" in (tmp_path / "index.html").read_text()
