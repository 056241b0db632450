"""Runs of a benchmark: what is told of them, how they are compared, go on and are drawn, and the command."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import saccade
from saccade.bench import cases, console, limits, report, run, timing
from saccade.bench.journal import Journal, sources

CASE = cases.case("gelu", 64, 300)
LIMITS = {"bandwidth": 1e10, "gemm": {"float32": 1e11, "bfloat16": 1e11, "float64": 1e11}}


def test_ratios_and_verdicts_by_hand():
    rng = np.random.default_rng(0)
    base, row = rng.normal(2.0, 0.02, 50), rng.normal(1.0, 0.01, 50)
    median, low, high = timing.ratio([base], [row], rng)
    assert low < median < high and low > 1.95 and high < 2.05
    _, low, high = timing.ratio([base, base, base], [row, 1.2 * row, 0.8 * row], rng)  # processes that differ
    assert low < 2 / 1.15 and high > 2 / 0.85
    assert timing.verdict(1.1, 1.2, 1.05) == "faster" and timing.verdict(0.5, 0.9, 1.05) == "slower"
    assert timing.verdict(0.99, 1.01, 1.05) == "same" and timing.verdict(0.9, 1.2, 1.05) == "unclear"


def test_a_slower_run_is_a_regression_and_an_equal_one_is_not():
    fast = {"rows": [made_row(1.0)]}
    other = {"rows": [made_row(1.0, provider=name) for name in ("one", "two", "saccade")]}
    apart = {"rows": [made_row(1.0, provider=name) for name in ("one", "two")]}
    assert report.agreement(other, apart) == (4, 4)
    for low, floor, agreeing in ((1.1, 1.02, 2), (1.02, 1.02, 3), (1.04, 1.02, 2), (1.04, 1.05, 3)):
        far = {"warm": {"median": 1.2, "low": low, "high": 1.3, "floor": floor}}
        changed = {"rows": [apart["rows"][0] | {"ratio": far}, apart["rows"][1]]}
        assert report.agreement(other, changed) == report.agreement(changed, other) == (agreeing, 3)
    assert report.regressions({"rows": [made_row(1.0)]}, fast) == []
    assert report.regressions(fast, {"rows": [made_row(1.5)]}) == []
    (text,) = report.regressions({"rows": [made_row(1.5)]}, fast)
    assert "takes 1.50 times as long as before" in text


def made_row(seconds, n=100, provider="saccade"):
    rng = np.random.default_rng(0)
    samples = {cache: rng.normal(seconds, 0.01 * seconds, (2, 10)).tolist() for cache in ("cold", "warm")}
    ratios = {"median": 1.0, "low": 0.99, "high": 1.01, "floor": 1.02, "verdict": "same"}
    return {
        "case": f"clip_loss n{n} e8 float32", "operation": "clip_loss", "sizes": {"n": n, "e": 8}, "dtype": "float32",
        "options": {}, "gradients": False, "provider": provider, "base": "saccade", "verdict": "PASS",
        "samples": samples, "seconds": {cache: float(np.median(x)) for cache, x in samples.items()}, "flops": n * n,
        "bytes": n, "peak memory": 5, "binding limit": "products", "share of limit": 0.5,
        "ratio": {"cold": ratios, "warm": ratios},
    }  # fmt: skip


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    measured = []

    def joined(task, processes):
        measured.append(task["provider"])
        return {"verdict": "ERROR", "reason": "not today", "oracle": None}

    def told(done, of, what):
        if done == 1 and len(measured) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(limits, "measured", lambda dtypes, threads, where: LIMITS)
    monkeypatch.setattr(run, "_joined", joined)
    path, names = tmp_path / "out" / "results.json.partial", ["saccade", "torch-gelu", "reference"]
    with pytest.raises(KeyboardInterrupt):
        run.run([CASE], names, journal=Journal(path, {"seed": 0}), told=told)
    path.write_text(path.read_text() + '["gelu n64')  # what was being written
    journal = Journal(path, {"seed": 0})
    assert list(journal.kept) == [f"{CASE.name}: saccade"]
    results = run.run([CASE], names, journal=journal)
    assert measured == names and [row["provider"] for row in results["rows"]] == names
    assert Journal(path, {"seed": 0}).kept and not Journal(path, {"seed": 1}).kept
    journal.close()
    assert not path.exists()


def test_rows_of_other_code_are_not_gone_on_from(tmp_path, monkeypatch):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "one.cu").write_text("float x;")
    monkeypatch.setattr(saccade, "__file__", str(tmp_path / "__init__.py"))
    before = sources()
    assert sources() == before
    (tmp_path / "kernels" / "one.cu").write_text("float y;")
    assert sources() != before


def test_a_worker_ends_when_the_command_is_killed(tmp_path, monkeypatch):
    (tmp_path / "users.py").write_text("""
import os, pathlib, time

def lasts(problem):
    pathlib.Path("worker").write_text(str(os.getpid()))
    time.sleep(100)
""")
    arguments = ["gelu", "--sizes", "4,5", "--providers", "users:lasts", "--processes", "1"]
    program = f"import sys; sys.argv = ['saccade', 'bench', *{arguments!r}]; from saccade.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    running = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text())
    running.kill()
    running.wait()
    worker = int((tmp_path / "worker").read_text())
    wait_until(lambda: not alive(worker))


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(holds, most=60):
    start = time.perf_counter()
    while not holds():
        assert time.perf_counter() - start < most
        time.sleep(0.1)


def test_what_a_worker_leaves_behind_does_not_hold_its_row_up():
    mine, its = os.pipe()
    left = "import time; time.sleep(10)"
    program = f"""
import os, subprocess, sys
os.write({its}, b"burst begins 3\\nburst e")
os.write({its}, b"nds\\n")
subprocess.Popen([sys.executable, "-c", {left!r}], pass_fds=({its},))
"""
    worker = subprocess.Popen([sys.executable, "-c", program], pass_fds=(its,))
    os.close(its)
    with open(mine, "rb", buffering=0) as journal:
        start = time.perf_counter()
        count, seconds = run._watched(worker, journal, 60) or (None, None)
    assert count == 3 and 0 <= seconds < 1 and time.perf_counter() - start < 8


@pytest.mark.parametrize(("keeps", "says"), [(True, "the same command goes on"), (False, "with --json or --out")])
def test_an_interruption_is_one_sentence(tmp_path, monkeypatch, keeps, says):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "run", interrupted)
    with pytest.raises(ValueError, match=f"interrupted: {says}"):
        console.run_bench([CASE], ["saccade"], json_file=tmp_path / "results.json" if keeps else None)
    assert (tmp_path / "results.json.partial").exists() == keeps


def test_growth_is_fitted():
    rows = [made_row((n / 100) ** 2, n) for n in (100, 200, 400)]
    ((_, (_, _, exponent)),) = report.growth_of({"rows": rows}).items()
    assert abs(exponent - 2) < 0.01


def test_every_curve_of_the_suite_is_drawn():
    rows = [
        made_row(i + 1.0) | {"operation": one.operation, "sizes": one.sizes, "options": one.options}
        for i, one in enumerate(cases.SUITES["growth"])
    ]
    drawn = {(operation, what): len(n) for (operation, _, what), (n, _, _) in report.growth_of({"rows": rows}).items()}
    assert drawn == {
        ("attention", "t"): 5, ("clip_loss", "n"): 5, ("fit", "n"): 4, ("patch_embed", "pixels"): 4, ("model", "b"): 5,
    }  # fmt: skip


def command(*arguments):
    program = f"import sys; sys.argv = ['saccade', 'bench', *{arguments!r}]; from saccade.cli import main; main()"
    return subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, env=dict(os.environ))


def test_the_command_draws_compares_and_replays(tmp_path):
    one = ["gelu", "--sizes", "64,300", "--seconds", "0.05", "--providers", "saccade,torch-gelu"]
    done = command(*one, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "new.json"))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "new.json").read_text())
    assert [row["provider"] for row in results["rows"]] == ["saccade", "torch-gelu"]
    assert results["rows"][0]["verdict"] == "PASS", results["rows"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<table>" in page and "viewport" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert "| gelu n64 e300 float32 | `saccade` |" in (tmp_path / "out" / "table.md").read_text()
    for name, seconds in (("new.json", 3.0), ("old.json", 1.0)):  # made, for what was timed may be of a busy machine
        results["rows"] = [made_row(seconds, provider=provider) for provider in ("saccade", "torch-clip-loss")]
        (tmp_path / name).write_text(json.dumps(results))
    done = command("--replay", str(tmp_path / "new.json"), "--base", str(tmp_path / "old.json"))
    assert done.returncode == 1 and "times as long as before" in done.stdout, done.stdout + done.stderr
    assert "2 of 2 ratios agree with those of" in done.stdout.replace("\n", " "), done.stdout
    old = json.loads((tmp_path / "old.json").read_text())
    old["machine"]["gpu"] = {"name": "another"}
    (tmp_path / "old.json").write_text(json.dumps(old))
    done = command("--replay", str(tmp_path / "new.json"), "--base", str(tmp_path / "old.json"))
    assert done.returncode == 1 and "is of another device, expected a run on the same one" in done.stderr


REFUSED = {
    ("--suite", "none"): "suite='none'",
    ("relu", "--sizes", "3,4"): "operation='relu', expected one of attention",
    ("gelu", "--sizes", "3,x"): "gelu of sizes (3, 0), expected 2 of at least 1: ne",
    ("gelu", "--dtype", "int8"): "dtype='int8', expected one of float32",
    ("gelu", "--providers", "nobody"): "provider='nobody', expected module:function",
    ("gelu", "--device", "tpu"): "device='tpu', expected one of cpu, cuda",
    ("gelu", "--graph"): "graph with device='cpu', expected device='cuda'",
    ("--replay", __file__): "holds no results",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_cannot_be_done_is_refused_in_one_sentence(arguments):
    done = command(*arguments)
    assert done.returncode == 1 and REFUSED[arguments] in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_summary_of_one_provider_alone_compares_with_nobody():
    rows = [made_row(1.0), made_row(2.0, n=200)]
    assert report.summary({"rows": rows}).splitlines()[-1] == "| `clip_loss`, float32 | 2 | nobody | | 50 to 50 % |"
