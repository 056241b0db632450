"""``check`` as a user meets it: reports, conduct, isolation, explanations, bad arguments."""

import ctypes
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numba
import numpy as np
import pytest
import torch

import saccade
from saccade import reference
from saccade.reference import palette as reference_palette
from saccade.testing import Claims, Report, check, conforms
from saccade.testing.explain import described, picture
from saccade.testing.frameworks import Framework
from saccade.testing.isolation import check_isolated
from saccade.testing.laws import LAWS
from saccade.testing.strategies import LAYOUTS, laid_out

FOUND = 60.0  # seconds in which a fault is found on any machine; nothing waits for them


def failed(report):
    assert report.verdict == "FAIL", report
    return report.failures[0]


# --- what a subject may not do --------------------------------------------------------------------------------------


def raises(x, **options):
    raise RuntimeError("not today\nnor tomorrow")


def hangs(x, **options):
    time.sleep(60)


def returns_a_list(x, **options):
    return [1.0]


def returns_numpy_for_torch(x, **options):
    return x.detach().numpy()


def returns_another_shape(x, **options):
    return saccade.gelu(x, **options)[..., :-1]


def returns_another_dtype(x, **options):
    return saccade.gelu(x, **options).double()


def returns_two(x, **options):
    return saccade.gelu(x, **options), x


def changes_its_input(x, **options):
    out = saccade.gelu(x, **options)
    x.mul_(2)
    return out


def returns_its_input(x, **options):
    return x.mul_(0) if x.numel() == 0 else x


def cuts_the_gradient(x, **options):
    return saccade.gelu(x.detach(), **options)


CONDUCT = {
    raises: "raised RuntimeError: not today",
    hangs: "took longer than 0.2 s",
    returns_a_list: "expected an array of torch",
    returns_numpy_for_torch: "it returned ndarray",
    returns_another_shape: "it returned shape",
    returns_another_dtype: "it returned float64, expected",
    returns_two: "it returned 2 outputs, expected 1",
    changes_its_input: "it changed an input",
    returns_its_input: "lies in the memory of an input",
    cuts_the_gradient: "autograd finds no gradient",
}


@pytest.mark.parametrize("function", CONDUCT, ids=lambda f: f.__name__)
def test_misconduct_is_a_verdict(function):
    claims = Claims(dtypes=("float32", "bfloat16"), layouts=("dense",))
    options = dict(arrays="torch", claims=claims, budget=FOUND, stop_at_first=True)
    options["call_seconds"] = 0.2 if function is hangs else 30.0
    options["only"] = "gradients" if function is cuts_the_gradient else None
    one = failed(check(function, "gelu", **options))
    assert CONDUCT[function] in one.says and "\n" not in one.says


def test_an_exit_is_a_verdict_and_an_interruption_is_not():
    def leaves(x, **options):
        sys.exit("bye")

    def interrupted(x, **options):
        raise KeyboardInterrupt

    assert "raised SystemExit: bye" in failed(check(leaves, "gelu", budget=FOUND, stop_at_first=True)).says
    with pytest.raises(KeyboardInterrupt):
        check(interrupted, "gelu", budget=1.0)


# --- what a report says ---------------------------------------------------------------------------------------------


def aligned_at_the_start(query, key, value, *, causal=False, mask=None, **options):
    if causal:
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        mask = seen if mask is None else seen & mask
    return saccade.attention(query, key, value, mask=mask, **options)


def test_a_failure_is_small_explained_and_drawn():
    one = failed(check(aligned_at_the_start, "attention", arrays="torch", only="values", budget=FOUND))
    assert max(x.size for x in one.arguments) <= 2 * 8 and one.options == {"causal": True}
    assert one.says.startswith("The output is as right as ordinary arithmetic in its dtype. The output is wrong: ")
    assert "error over the last axes" in picture(one.arrays)


def test_the_same_function_passes_within_its_claims():
    claims = Claims(causal="start", empty_rows=False, dtypes=("float32",))
    report = check(aligned_at_the_start, "attention", arrays="torch", claims=claims, budget=3.0)
    assert report.verdict == "PASS", report
    assert "causal (start)" in report.not_judged and "dtypes: float64, bfloat16, float16" in report.not_judged


def test_the_same_seed_finds_the_same():
    reports = [check(aligned_at_the_start, "attention", arrays="torch", only="values", budget=FOUND) for _ in range(2)]
    first, second = (described(r.failures[0].arguments, r.failures[0].options) for r in reports)
    assert first == second


def test_numpy_functions_bring_their_own_gradients_or_are_judged_without():
    report = check("saccade.reference:gelu", "gelu", dtypes=["float64"], budget=1.0)
    assert report.verdict == "PASS" and report.counts["gradients"][0] > 0

    def gelu(x, **options):
        return reference.gelu(x, **options)

    report = check(gelu, "gelu", dtypes=["float64"], budget=1.0)
    assert report.verdict == "PASS" and "gradients: numpy has no autograd and no vjp= was given" in report.not_judged

    def vjp(arguments, options, cotangents):
        _, saved = reference.gelu_forward(*arguments, **options)
        return (1.01 * reference.gelu_backward(saved, *cotangents)[0],)

    failed(check(gelu, "gelu", dtypes=["float64"], vjp=vjp, only="gradients", budget=FOUND))


def test_where_nothing_can_be_told_the_verdict_is_inconclusive():
    report = Report("gelu", "f", "numpy", 0, counts={"values": [10, 10, 2]})
    assert report.verdict == "INCONCLUSIVE"
    report.counts["values"] = [10, 10, 1]
    assert report.verdict == "PASS"
    report.counts["values"] = [0, 0, 0]
    assert report.verdict == "INCONCLUSIVE"


def test_conforms_makes_a_test():
    @conforms("gelu", arrays="torch", dtypes=["float32"], budget=1.0)
    def test_right(x, **options):
        return saccade.gelu(x, **options)

    @conforms("gelu", arrays="torch", dtypes=["float32"], budget=1.0)
    def test_wrong(x, **options):
        return x * 2

    test_right()
    with pytest.raises(AssertionError, match="FAIL: test_wrong as gelu"):
        test_wrong()


def test_every_law_can_be_asked_for_alone():
    right = {"attention": saccade.attention, "clip_loss": saccade.clip_loss}
    right["softmax_cross_entropy"] = saccade.softmax_cross_entropy
    right["assign"] = "saccade.kernels.numba.palette:assign"
    for law in LAWS:
        operation = next(name for name in right if law.operations is None or name in law.operations)
        arrays = "numpy" if operation == "assign" else "torch"
        report = check(right[operation], operation, arrays=arrays, dtypes=["float32"], only=law.name, budget=0.3)
        assert list(report.counts) == [law.name] and report.verdict != "FAIL", report


def distances(colors, centers, dtype):
    return ((4096 * colors.astype(dtype)[:, None] - centers.astype(dtype)) ** 2).sum(-1)


def last_of_equals(colors, centers):
    d = distances(colors, centers, np.int64)
    return (d.shape[1] - 1 - d[:, ::-1].argmin(1)).astype(np.int32)


def in_float32(colors, centers):
    return distances(colors, centers, np.float32).argmin(1).astype(np.int32)


def rounded_down(colors, counts, assignment, centers):
    weights = np.bincount(assignment, counts, len(centers)).astype(np.int64)
    totals = np.stack([np.bincount(assignment, counts * colors[:, c], len(centers)) for c in range(3)], 1).astype(
        np.int64
    )
    moved = reference_palette.GRID * totals // np.maximum(weights, 1)[:, None]
    return np.where(weights[:, None] > 0, moved, centers).astype(np.int32)


@pytest.mark.parametrize(
    ("function", "operation"), [(last_of_equals, "assign"), (in_float32, "assign"), (rounded_down, "update")]
)
def test_palettes_are_judged_to_the_bit(function, operation):
    failed(check(function, operation, only="values", budget=FOUND))
    right = check(f"saccade.kernels.numba.palette:{operation}", operation, budget=1.0)
    assert right.verdict == "PASS" and "cost never rises" in right.counts


def one_step_more(colors, counts, centers, *, iterations=100):
    return reference_palette.fit(colors, counts, centers, iterations=iterations + 1)


def second_nearest(colors, counts, centers, *, iterations=100):
    centers, _ = reference_palette.fit(colors, counts, centers, iterations=iterations)
    order = np.argsort(reference_palette.squared_distances(colors, centers), 1)
    return centers, order[:, min(1, len(centers) - 1)].astype(np.int32)


def unweighted(colors, counts, centers, *, iterations=100):
    return reference_palette.fit(colors, np.ones_like(counts), centers, iterations=iterations)


def rounded_to_levels(colors, counts, centers, *, iterations=100):
    centers, assignment = reference_palette.fit(colors, counts, centers, iterations=iterations)
    return (centers + 2048) // 4096 * 4096, assignment


@pytest.mark.parametrize("function", [one_step_more, second_nearest, unweighted, rounded_to_levels])
def test_inexact_palettes_are_held_to_float32(function):
    claims = Claims(exact=False, empty_clusters=False)
    failed(check(function, "fit", claims=claims, only="values", budget=FOUND))
    right = check("saccade.kernels.numba.palette:fit", "fit", claims=claims, budget=1.0)
    assert not right.failures and right.counts["values"][1] and "exact (False)" in right.not_judged


REFUSED = {
    "operation='relu'": dict(operation="relu"),
    "budget='endless'": dict(budget="endless"),
    "only='gravity'": dict(only="gravity"),
    "dtypes='int8'": dict(dtypes=["int8"]),
    "arrays='polars'": dict(arrays="polars"),
    "device='cuda'": dict(device="cuda"),
    "function='saccade'": dict(function="saccade"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_arguments_are_refused_in_one_sentence(words):
    options = {"function": reference.gelu, "operation": "gelu", **REFUSED[words]}
    with pytest.raises(ValueError) as caught:
        check(options.pop("function"), options.pop("operation"), **options)
    assert words in str(caught.value) and "expected" in str(caught.value)


# --- in a process of its own ----------------------------------------------------------------------------------------

USERS = """
import ctypes, signal, time
import saccade

def dies(x, **options):
    if options.get("kind") == "tanh":
        ctypes.string_at(0)
    return saccade.gelu(x, **options)

def doubles(x, **options):
    print("chatter")
    return saccade.gelu(x, **options) * 2

def hangs(x, **options):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(1000)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "users.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_function_that_ends_its_process_gets_a_verdict(folder):
    report = check_isolated("users:dies", "gelu", arrays="torch", budget=3.0)
    assert report["verdict"] == "FAIL"
    assert "ended its process by signal 11" in report["failures"][0]["says"]
    assert "kind='tanh'" in report["failures"][0]["input"]


def test_a_function_that_no_signal_reaches_gets_a_verdict(folder, monkeypatch):
    from saccade.testing import isolation

    monkeypatch.setattr(isolation, "GRACE", 5.0)
    report = check_isolated("users:hangs", "gelu", arrays="torch", budget=3.0, call_seconds=1.0)
    assert report["verdict"] == "FAIL" and "hung in code" in report["failures"][0]["says"]


def command(*arguments):
    program = f"import sys; sys.argv = ['saccade', 'check', *{arguments!r}]; from saccade.cli import main; main()"
    return subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)


def test_the_command_writes_a_report_and_a_script_that_needs_no_saccade(folder):
    what = ("users:doubles", "--operation", "gelu", "--arrays", "torch", "--dtype", "bfloat16", "--budget", "2")
    done = command(*what, "--json", "report.json", "--script", "show.py")
    assert done.returncode == 1, done.stderr
    assert "FAIL" in done.stdout and "values" in done.stdout
    report = json.loads((folder / "report.json").read_text())
    assert report["verdict"] == "FAIL" and report["laws"]["values"]["inputs"] >= 0
    script = (folder / "show.py").read_text()
    assert "saccade" not in script and "from users import doubles as function" in script
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    shown = subprocess.run([sys.executable, "show.py"], capture_output=True, text=True, cwd=folder, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert "result:" in shown.stdout and "truth:" in shown.stdout


def test_the_command_judges_peers_and_refuses_what_it_does_not_know():
    done = command("torch-gelu", "--dtype", "float32", "--budget", "2")
    assert done.returncode == 0 and "PASS" in done.stdout, done.stdout + done.stderr
    done = command("torch-jelly")
    assert done.returncode == 1 and "'torch-jelly' is no module:name and no peer" in done.stderr
    done = command("users:doubles", "--operation", "relu")
    assert done.returncode == 1 and "operation='relu', expected one of" in done.stderr
    assert "Traceback" not in done.stderr


# --- frameworks and layouts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_the_same_values_and_reach_torch_as_they_are(layout):
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    view = laid_out(x, layout)
    assert np.array_equal(view, np.broadcast_to(x[:1], x.shape) if layout == "broadcast" else x)
    if layout != "misaligned":
        tensor = Framework("torch").put(view)
        assert [4 * n for n in tensor.stride()] == list(view.strides)
        assert tensor.data_ptr() == view.__array_interface__["data"][0]
        assert np.array_equal(Framework("torch").take(tensor), view)


def test_jax_arrays_go_there_and_back():
    import ml_dtypes

    jax = Framework("jax")
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, bool, np.uint8, np.int32):
        x = (10 * np.random.default_rng(0).random((2, 3))).astype(dtype)
        y = jax.put(x)
        assert jax.owns(y) and not jax.owns(x)
        assert jax.take(y).dtype == x.dtype and np.array_equal(jax.take(y), x)


def test_flat_memory_of_a_view_lays_it_out_again():
    from saccade.testing.frameworks import _flat, _strides

    for layout in LAYOUTS:
        view = laid_out(np.arange(24, dtype=np.float64).reshape(2, 3, 4), layout)
        again = np.lib.stride_tricks.as_strided(_flat(view), view.shape, _strides(view))
        assert np.array_equal(again, view)


def test_a_framework_that_is_absent_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "saccade\[cuda\]"'):
        Framework("cupy").put(np.zeros(2))


def test_misaligned_views_are_read_by_their_bytes():
    assert ctypes.sizeof(ctypes.c_float) == 4
    x = laid_out(np.arange(5, dtype=np.float32), "misaligned")
    assert not x.flags.aligned and np.array_equal(saccade.gelu(x), saccade.gelu(np.arange(5, dtype=np.float32)))


def test_claims_change_what_is_drawn():
    from hypothesis import find, settings

    from saccade.testing.inputs import attention_inputs

    narrow = replace(Claims(), head_dims=(24,), options=("causal",), zero_sized=False, dtypes=("float16",))
    seen = []

    def note(example):
        seen.append(example)
        return len(seen) > 50

    find(attention_inputs(narrow), note, settings=settings(database=None, derandomize=True))
    for (query, _, _), options in seen:
        assert query.dtype == np.float16 and query.shape[3] == 24 and query.size and set(options) <= {"causal"}


@numba.njit
def copied(x, left_out):
    out = np.empty(x.shape, x.dtype)
    for i in range(x.size - left_out):
        out.flat[i] = x.flat[i]
    return out


@pytest.mark.parametrize("left_out, verdict", [(0, "PASS"), (1, "FAIL")])
def test_what_a_function_compiles_in_its_first_call_is_judged_on_used_memory(left_out, verdict):
    def gelu(x, *, kind="erf"):
        return reference.gelu(copied(np.ascontiguousarray(x), left_out), kind=kind)

    report = check(gelu, "gelu", dtypes=["float32"], only="fully written", gradients=False, budget=5.0)
    assert report.verdict == verdict, report
