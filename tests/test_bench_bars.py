"""The bars: figures are compared with what is asked of the right peers, and what has no figure says why."""

from dataclasses import replace

import numpy as np
import pytest

from saccade.bench import bars, probes, procedures

LIMITS = {"bandwidth": 1e10, "gemm": dict.fromkeys(("float32", "bfloat16"), 1e11)}


def timed_rows(one, ratios):
    """Rows of a case in whose run the first provider is the base and others are so many times as fast."""
    base = next(iter(ratios))
    for name, ratio in ratios.items():
        seconds = one.work()[0] / 0.6e11 or one.work()[1] / 1e10
        yield {
            "case": one.name, "provider": name, "base": base, "verdict": "PASS", "dtype": one.dtype,
            "sizes": one.sizes, "flops": one.work()[0], "bytes": one.work()[1], "peak memory": 2**20,
            "ratio": {"warm": {"median": ratio}, "cold": {"median": ratio}}, "gpu": {"peak memory": 2**21},
            "seconds": {"warm": seconds, "cold": seconds},
        }  # fmt: skip


def test_bars_hold_or_do_not_and_what_is_missing_is_said():
    ratios = {"base": 1.01, "saccade": 1.5}
    rows = [row for one in bars.cases() if "bfloat16" not in one.name for row in timed_rows(one, ratios)]
    results = {"limits": LIMITS, "rows": rows}
    probed = {"first_call": 1.5, "cold_compile": 20.0, "encode_faiss": "faiss is not installed"}
    probed |= {"procedures:digits_vit": [98.5, -0.25, 90.0], "procedures:digits_clip": [97.0, 0.5]}
    found = {what: (asked, figures, holds) for what, asked, figures, holds in bars.judged(results, probed)}
    assert len(found) == len(bars.BARS)
    asked = "geometric mean >= 1.4, each >= 1"
    assert found["attention, float32, torch's SDPA"] == (asked, "1.5, 1.5", "yes")
    assert found["CLIP loss with gradients, 16,384 pairs, open_clip"][1:] == ("1.5", "no")
    assert found["attention of 197 and more, float32"][1:] == ("60", "no")
    assert found["attention, bfloat16, torch's SDPA"][2] == "not measured: 15 of 15 cases without a time"
    assert found["first call in a new process, compiled before"] == ("seconds <= 2", "1.5", "yes")
    assert found["first call of one operation, nothing compiled"][1:] == ("20", "no")
    assert found["palette encode, faiss"][1:] == ("", "not measured: faiss is not installed")
    assert (
        found["CLIP loss with gradients, 32,768 pairs, Inf-CL, on a GPU"][2]
        == "not measured in this run, but with --device cuda"
    )
    assert found["thirty minutes of training, interrupted five times"][2] == "not measured by this command"
    asked = "% right >= 98, points more >= 0, % right >= 85"
    assert found["ViT on digits; an epoch at twice the resolution; ten of each by its frozen features"] == (
        asked,
        "98.5, -0.25, 90",
        "no",
    )
    assert found["CLIP on digits, by an ensemble of prompts; one prompt"][1:] == ("97, 0.5", "yes")


def test_a_bar_compares_with_the_fastest_of_its_peers():
    one = bars.case("model", 1, variant="vit-B/16")
    ratios = {"timm-model": 0.99, "timm-model-compiled": 1.25, "other": 9.0, "saccade-torch": 1.5, "saccade": 1.2}
    rows = list(timed_rows(one, ratios))
    asked, peers = (("each", 1.25),), ("timm-model", "timm-model-compiled")
    bar = bars.Bar("ours", (one,), asked, ours="saccade-torch", peers=peers)
    judged = lambda bar: bars._judged(bar, {"rows": rows, "limits": LIMITS}, {}, "cpu")[1:]  # noqa: E731
    assert judged(bar) == ("1.2", "no")
    assert judged(replace(bar, peers=("timm-model",))) == ("1.5", "yes")
    assert judged(replace(bar, peers=())) == (f"{1.5 / 9:.3g}", "no")
    assert judged(replace(bar, peers=("absent",)))[1] == "not measured: 1 of 1 cases without a time"


def test_bars_of_a_gpu_are_decided_there():
    rows = [row for one in bars.cases("cuda") for row in timed_rows(one, {"open-clip-loss": 1.0, "saccade-torch": 3.0})]
    found = {what: rest for what, *rest in bars.judged({"rows": rows, "limits": LIMITS}, {}, "cuda")}
    assert found["CLIP loss with gradients, 32,768 pairs, open_clip, on a GPU"][1:] == ["3, 2, 80", "yes"]
    assert found["attention, float32, torch's SDPA"][2] == "not measured in this run, but with --device cpu"


def test_probes_are_there_and_say_why_they_have_no_figure():
    names = bars.probes()
    assert names and all(callable(probes.probe(name)) for name in names)
    assert bars.probes(operation="gelu") == [] == bars.probes("cuda")
    assert 0 < probes.measure("first_call", 1) < 60
    others = [name for name, one in vars(procedures).items() if getattr(one, "__module__", "") == procedures.__name__]
    assert {"reading", "clip_memory", "digits_vit", "digits_clip", "photographs_imagegpt"} < set(others)
    assert probes.probe("procedures:reading") is procedures.reading
    assert "no_such" in probes.measure("no_such", 1)


def test_a_palette_that_is_worse_is_no_times_as_fast():
    from saccade.palette import Palette

    pixels = np.random.default_rng(0).integers(0, 256, (3000, 3)).astype(np.uint8)
    ours = Palette.fit(pixels, 8, iterations=3)
    probes._same_objective(pixels, ours, ours.centers)
    with pytest.raises(ArithmeticError, match="a mean squared distance of"):
        ours.inertia *= 1.01
        probes._same_objective(pixels, ours, ours.centers)
