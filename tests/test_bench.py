"""The benchmark harness: wrong providers get no time, cheats are caught or timed truthfully, files come out right."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from saccade.bench import cases, judging, limits, report, run, timing, worker
from saccade.bench.problem import Problem
from saccade.bench.providers import claims_of, known, provider
from saccade.testing import gate

USERS = """
import ctypes, threading, time
import numpy as np
import saccade

def right(problem):
    inputs = problem.arrays("numpy")
    def backward():
        _, saved = saccade.gelu_forward(*inputs.arguments, **inputs.options)
        return saccade.gelu_backward(saved, *inputs.cotangents)
    return lambda: saccade.gelu(*inputs.arguments, **inputs.options), backward

def zeros(problem):
    inputs = problem.arrays("numpy")
    return lambda: np.zeros_like(inputs.arguments[0]), None

def cached(problem):
    inputs, kept = problem.arrays("numpy"), []
    def forward():
        if not kept:
            kept.append(saccade.gelu(*inputs.arguments, **inputs.options))
        return kept[0].copy()
    return forward, None

def cached_gradient(problem):
    forward, backward = right(problem)
    kept = []
    def gradients():
        if not kept:
            kept.append(backward())
        return tuple(x.copy() for x in kept[0])
    return forward, gradients

def elsewhere(problem):
    inputs = problem.arrays("numpy")
    out = np.empty_like(inputs.arguments[0])
    def work():
        time.sleep(0.004)
        out[...] = saccade.gelu(*inputs.arguments, **inputs.options)
    def forward():
        threading.Thread(target=work).start()
        return out
    return forward, None

def late_when_timed(problem):
    inputs, calls = problem.arrays("numpy"), []
    out = np.empty_like(inputs.arguments[0])
    def work():
        time.sleep(0.004)
        out[...] = saccade.gelu(*inputs.arguments, **inputs.options)
    def forward():
        calls.append(threading.Thread(target=work))
        calls[-1].start()
        if len(calls) <= 2:
            calls[-1].join()
        return out
    return forward, None

ALL = []
def works_ahead(problem):
    inputs, ahead = problem.arrays("numpy"), []
    def work():
        ahead[:] = [saccade.gelu(*inputs.arguments, **inputs.options)]
    ALL.append(work)
    def forward():
        if not ahead:
            work()
        for other in ALL:
            if other is not work:
                other()
        return ahead.pop()
    return forward, None

def wrong_at_tails(problem):
    inputs = problem.arrays("numpy")
    def forward():
        out = saccade.gelu(*inputs.arguments, **inputs.options)
        if out.shape[-1] % 4:
            out[...] = 0
        return out
    return forward, None

def slow_but_on_zeros(problem):
    inputs = problem.arrays("numpy")
    def forward():
        if inputs.arguments[0].any():
            time.sleep(0.02)
        return saccade.gelu(*inputs.arguments, **inputs.options)
    return forward, None

def patches_the_timer(problem):
    now = time.perf_counter_ns()
    time.perf_counter_ns = time.perf_counter = lambda: now
    from saccade.bench.device import Processors
    Processors.seconds.__defaults__ = (lambda: now,)
    return slow_but_on_zeros(problem)

def slower_in_a_row(problem):
    inputs, seen = problem.arrays("numpy"), []
    def forward():
        seen.append(float(inputs.arguments[0][0, 0]))
        if len(set(seen[-5:])) == 1 and len(seen) > 4:
            time.sleep(0.001)
        return saccade.gelu(*inputs.arguments, **inputs.options)
    return forward, None

def crashes(problem):
    ctypes.string_at(0)

def hangs(problem):
    time.sleep(1000)

def raises(problem):
    raise RuntimeError("not today")

def elsewhere_applied(problem):
    return None, "it is Tuesday"
"""
CASE = cases.case("gelu", 64, 300)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "benched.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(limits, "measured", lambda dtypes, threads, where: LIMITS)
    yield tmp_path
    sys.modules.pop("benched", None)


LIMITS = {"bandwidth": 1e10, "gemm": {"float32": 1e11, "bfloat16": 1e11, "float64": 1e11}}


def rows_of(names, case=CASE, oracle=0.0, **options):
    settings = {"seconds": 0.05, "samples": 4, "processes": 1, "oracle": oracle, **options}
    results = run.run([case], [f"benched:{name}" for name in names], **settings)
    json.dumps(results)
    return {row["provider"].removeprefix("benched:"): row for row in results["rows"]}


def test_a_right_provider_is_timed_beside_the_base(folder):
    for case in (CASE, cases.Case("gelu", CASE.sizes, gradients=True)):
        row = rows_of(["right"], case, oracle=2.0, processes=2)["right"]
        assert row["verdict"] == "PASS" and row["oracle"] == "PASS", row
        assert [len(x) >= 4 for x in row["samples"]["cold"]] == [True, True] and row["seconds"]["warm"] > 0
        assert len(row["base samples"]["warm"]) == 2
        assert row["ratio"]["cold"]["low"] <= row["ratio"]["cold"]["median"] <= row["ratio"]["cold"]["high"]


@pytest.mark.parametrize("cache", timing.CACHES)
def test_one_cache_is_enough(folder, cache):
    rows = rows_of(["right"], caches=(cache,))
    assert list(rows["right"]["samples"]) == [cache] == list(rows["right"]["ratio"])
    assert rows["right"]["share of limit"] > 0
    cells = report.cells(rows["right"])
    assert (cells[3] == "") == (cache == "warm") and (cells[4] == "") == (cache == "cold") and "[" in cells[5]


@pytest.mark.parametrize(
    ("name", "says"),
    [("zeros", "on the case"), ("cached", "on the case"), ("elsewhere", "on the case"),
     ("late_when_timed", "had not their own results"), ("works_ahead", "had not their own results"),
     ("raises", "not today"), ("crashes", "process ended"),
     ("patches_the_timer", "by another clock")],
)  # fmt: skip
def test_cheats_get_a_verdict_and_no_time(folder, name, says):
    rows = rows_of([name, "right"] if name == "zeros" else [name])
    verdict = "ERROR" if name in ("raises", "crashes") else "FAIL"
    assert rows[name]["verdict"] == verdict and says in rows[name]["reason"], rows[name]
    assert "seconds" not in rows[name] and "samples" not in rows[name]
    assert name != "zeros" or rows["right"]["verdict"] == "PASS"


def test_the_whole_oracle_finds_what_the_case_does_not(folder):
    assert rows_of(["wrong_at_tails"], oracle=0.0)["wrong_at_tails"]["verdict"] == "PASS"
    row = rows_of(["wrong_at_tails"], oracle=3.0)["wrong_at_tails"]
    assert row["verdict"] == "FAIL" and row["oracle"] == "FAIL" and "seconds" not in row, row


def test_a_cached_gradient_is_found(folder):
    row = rows_of(["cached_gradient"], cases.Case("gelu", CASE.sizes, gradients=True))["cached_gradient"]
    assert row["verdict"] == "FAIL"


def test_what_is_fast_on_zeros_alone_is_timed_truthfully(folder):
    assert rows_of(["slow_but_on_zeros"])["slow_but_on_zeros"]["seconds"]["warm"] > 0.02


def test_calls_that_are_slower_in_a_row_are_not_called_a_lie(folder):
    row = rows_of(["slower_in_a_row"])["slower_in_a_row"]
    assert row["verdict"] == "INCONCLUSIVE" and "calls in a row took" in row["reason"], row


def test_a_provider_that_hangs_costs_its_own_row(folder, monkeypatch):
    monkeypatch.setattr(run, "LIMIT", 8.0)  # the other row has to import what it needs
    rows = rows_of(["hangs", "elsewhere_applied"])
    assert rows["hangs"]["verdict"] == "ERROR" and "TimeLimit" in rows["hangs"]["reason"]
    assert (
        rows["elsewhere_applied"] | {"verdict": "does not apply", "reason": "it is Tuesday"}
        == rows["elsewhere_applied"]
    )


@pytest.mark.parametrize("operation", [name for name in cases.SIZES if name != "model"])
@pytest.mark.parametrize("gradients", [False, True])
def test_cases_are_judged_right_and_bugs_in_them_wrong(operation, gradients):
    check_case_is_judged(operation, gradients)


@pytest.mark.parametrize("operation", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_case_with_a_residual_is_judged_too(operation, gradients):
    check_case_is_judged(operation, gradients, residual=True)
    one, fused = (cases.case(operation, 4, 8, **options) for options in ({}, {"residual": True}))
    assert fused.work()[1] == 2 * one.work()[1] and fused.name == f"{operation} n4 e8 residual float32"
    same = [fused.inputs(seed)[1]["residual"] for seed in (1, 2)]
    assert np.array_equal(*same) and same[0].shape == (4, 8)


SMALL = {
    "attention": (2, 2, 70, 70, 24), "qkv_attention": (2, 70, 2, 24), "patch_embed": (2, 8, 8, 3, 4, 6),
    "varlen_attention": (3, 40, 2, 24), "conv2d": (2, 6, 7, 3, 3, 5), "batch_norm": (2, 5, 6, 7),
    "average_pool": (2, 5, 6, 7, 2), "fit": (500, 7),
}  # fmt: skip


def small(operation, **options):
    options |= {"iterations": 2} if operation == "fit" else {}
    return cases.case(operation, *SMALL.get(operation, (70, 24, 30)[: len(cases.SIZES[operation])]), **options)


def check_case_is_judged(operation, gradients, **options):
    gradients, one = gradients and operation != "fit", small(operation, **options)
    arguments, options = one.inputs(0)
    out = run_forward(one, arguments, options)
    cotangents = gate.draw_cotangents(out, (0, 1)) if gradients else ()
    part = judging.part_of(one, arguments, options, cotangents, np.random.default_rng(0))
    problem = Problem(operation, arguments, options, cotangents)
    forward, backward = provider("saccade")(problem)
    problem.fill(part.whole_arguments, part.whole_cotangents)
    judged = judging.judge_case(problem, part, forward, backward if gradients else None)
    assert {x.verdict for x in judged} == {"PASS"} and len(judged) >= 1 + gradients

    def wrong():
        found = forward()
        first, *rest = found if isinstance(found, tuple) else (found,)
        return first * 2, *rest

    assert "FAIL" in {x.verdict for x in judging.judge_case(problem, part, wrong, backward if gradients else None)}
    if gradients:
        bad = lambda: tuple(None if x is None else x * 2 for x in backward())  # noqa: E731
        assert "FAIL" in {x.verdict for x in judging.judge_case(problem, part, forward, bad)}


@pytest.mark.parametrize("operation", ["clip_loss", "siglip_loss"])
def test_a_loss_of_many_pairs_that_is_off_by_a_thousandth_is_found(operation):
    one = cases.Case(operation, {"n": judging.PAIRS, "e": 16})
    arguments, options = one.inputs(0)
    part = judging.part_of(one, arguments, options, (), np.random.default_rng(0))
    (loss,) = run_forward(one, arguments, options)
    standard = judging.standard_of(part)
    assert gate.verdict(standard.judge(loss)) == "PASS"
    assert gate.verdict(standard.judge(loss * loss.dtype.type(1.001))) == "FAIL"


def test_a_palette_with_a_start_of_its_own_is_held_to_its_cost():
    one = cases.case("fit", 4000, 64, iterations=10)
    arguments, options = one.inputs(0)
    problem = Problem("fit", arguments, options)
    forward, _ = provider("pillow-quantize")(problem)
    part = judging.part_of(one, arguments, options, (), np.random.default_rng(0))
    assert {x.verdict for x in judging.judge_case(problem, part, forward, None)} == {"PASS"}

    def coarse():  # with half of the centres
        centers, assignment = forward()
        return np.repeat(centers[:32], 2, 0), assignment // 2

    assert "FAIL" in {x.verdict for x in judging.judge_case(problem, part, coarse, None)}
    many = Problem("fit", cases.case("fit", 4000, 257, iterations=1).inputs(0)[0], {"iterations": 1})
    assert provider("pillow-quantize")(many) == (None, "it makes no more than 256 centres")


def run_forward(one, arguments, options):
    problem = Problem(one.operation, arguments, options)
    return problem.outputs(provider("reference")(problem)[0]())


def test_the_oracle_judges_a_peer_whose_first_argument_is_of_integers():
    one, made = small("embedding"), provider("torch-embedding")
    verdict, says = judging.judge_provider(made, claims_of("torch-embedding", made), one, 2.0)
    assert verdict == "PASS", says


@pytest.mark.parametrize("name", ["saccade", "saccade-torch"])
def test_the_oracle_judges_our_own_providers_with_every_option(name):
    for operation in ("layer_norm", "rms_norm", "attention"):
        one = cases.case(
            operation, *{"layer_norm": (4, 8), "rms_norm": (4, 8), "attention": (1, 1, 4, 4, 8)}[operation]
        )
        one = replace(one, gradients=True)
        verdict, says = judging.judge_provider(provider(name), claims_of(name, provider(name)), one, 1.0)
        assert verdict == "PASS", says


def test_work_is_counted_by_hand():
    assert cases.case("attention", 1, 1, 2, 3, 5).work() == (2 * 2 * 2 * 3 * 5, 4 * (2 * 5 * 5))
    causal = cases.case("attention", 1, 1, 4, 4, 8, causal=True)
    assert causal.work()[0] == 2 * 2 * 10 * 8  # 1 + 2 + 3 + 4 pairs
    assert cases.Case("clip_loss", {"n": 10, "e": 4}, gradients=True).work()[0] == 3 * 2 * 10 * 10 * 4
    assert cases.case("linear", 3, 4, 5).work() == (2 * 3 * 4 * 5, 4 * (12 + 20 + 15))
    assert cases.case("mlp", 3, 4, 5).work()[0] == 2 * 2 * 3 * 4 * 5
    packed = {causal: cases.case("varlen_attention", 2, 4, 1, 3, causal=causal) for causal in (False, True)}
    assert packed[False].work() == (2 * 2 * 3 * (4 + 36), 4 * 4 * 3 * 8)  # of 2 and 6 tokens
    assert packed[True].work()[0] == 2 * 2 * 3 * (3 + 21)
    convolution = cases.case("conv2d", 1, 5, 6, 2, 3, 4, stride=2, padding=1)
    assert convolution.work() == (2 * 3 * 3 * 4 * 2 * 9, 4 * (5 * 6 * 2 + 2 * 9 * 4 + 3 * 3 * 4))
    assert cases.case("average_pool", 1, 5, 6, 7, 2).work() == (0, 4 * (5 * 6 * 7 + 2 * 3 * 7))


def test_suites_are_made_of_known_cases(tmp_path):
    for name in cases.SUITES:
        assert all(one.operation in cases.INPUTS for one in cases.suite(name))
    assert len(cases.suite("deck", "attention", ["float32", "bfloat16"])) == 2 * 15
    path = tmp_path / "mine.toml"
    path.write_text('[[case]]\noperation = "attention"\nsizes = [1, 2, 3, 4, 5]\ncausal = true\n')
    (one,) = cases.suite(str(path))
    assert one.name == "attention b1 h2 t3 s4 d5 causal float32"
    path.write_text("[[case]]\nsizes = [1]\n")
    with pytest.raises(ValueError, match="has no operation"):
        cases.suite(str(path))
    with pytest.raises(ValueError, match="suite='none', expected one of vit"):
        cases.suite("none")
    with pytest.raises(ValueError, match="expected 5 of at least 1: bhtsd"):
        cases.case("attention", 1, 2, 3)


def test_every_peer_of_an_operation_is_known_and_others_are_refused():
    assert {"saccade", "torch-sdpa", "flash-attn"} <= set(known("attention"))
    with pytest.raises(ValueError, match="provider='torch-jelly', expected module:function or one of saccade"):
        provider("torch-jelly")
    with pytest.raises(ValueError, match="cannot be imported"):
        provider("no_such_module:provider")
    problem = Problem("attention", cases.case("attention", 1, 1, 3, 4, 8).inputs(0)[0], {"causal": True})
    assert provider("torch-sdpa")(problem) == (None, "its causal mask is aligned at the start")
    assert provider("flash-attn")(problem)[0] is None


def test_a_process_that_has_imported_nothing_yet_can_use_every_peer():
    program = """
from saccade.bench import cases
from saccade.bench.problem import Problem
from saccade.bench.providers import provider
case = cases.case("clip_loss", 4, 8)
for name in ("open-clip-loss", "torch-clip-loss"):
    forward, reason = provider(name)(Problem("clip_loss", *case.inputs(0)))
    assert forward is not None, reason
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_compiled_providers_belong_to_an_operation_and_need_a_compiler(monkeypatch):
    assert "torch-gelu-compiled" in known("gelu") and "torch-gelu-compiled" not in known("attention")
    x = np.linspace(-4, 4, 30, dtype=np.float32).reshape(5, 6)
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = "it is meant to be compiled, and there is no C++ compiler"
    assert provider("torch-gelu-compiled")(Problem("gelu", (x,), {}, timed=True)) == (None, reason)
    small = Problem("gelu", (x,), {})  # the oracle's inputs are not compiled for
    assert (
        gate.judge("gelu", small.outputs(provider("torch-gelu-compiled")(small)[0]()), None, (x,))[0].verdict == "PASS"
    )


@pytest.mark.parametrize("operation", [name for name in cases.SIZES if name not in cases.FORWARD_ALONE])
def test_cotangents_have_the_shapes_and_dtypes_of_outputs(operation):
    some = [{}, {"stride": 2, "padding": 1}] if operation == "conv2d" else [{}]
    some += [{"residual": True}] if operation == "layer_norm" else []
    for options in some:
        for dtype in ("float32", "float16"):
            one = replace(small(operation, **options), dtype=dtype, gradients=True)
            arguments, named, cotangents = worker.drawn(one, 0)
            outputs = run_forward(one, arguments, named)
            found, asked = ([(x.shape, x.dtype) for x in each] for each in (cotangents, outputs))
            assert found == asked, options


@pytest.mark.parametrize("operation", ["gelu", "l2_normalize"])
def test_cotangents_are_not_the_arguments_again(operation):
    (x,), _, (cotangent,) = worker.drawn(cases.Case(operation, {"n": 50, "e": 40}, gradients=True), 7)
    assert abs(np.corrcoef(x.ravel(), cotangent.ravel())[0, 1]) < 0.1
