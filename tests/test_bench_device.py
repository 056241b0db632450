"""The bench on a GPU where there is none: a simulated one, whose streams are threads and whose events are clocks."""

import json
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter, sleep
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import saccade
from saccade.bench import cases, device, report, run, timing, worker
from saccade.bench.journal import Journal
from saccade.bench.turns import Turns
from saccade.testing.frameworks import Framework

CASE = cases.case("gelu", 16, 30)
WORK = 0.004  # seconds that the simulated GPU takes for a call
LAUNCH, ASLEEP = 0.03, 0.06  # that a graph's launch takes, and that the GPU sleeps when told to


class Stream:
    """Does what is submitted in turn; while a graph is captured, it keeps it instead."""

    def __init__(self):
        self.thread, self.kept = ThreadPoolExecutor(1), None

    def submit(self, work):
        if self.kept is not None:
            return self.kept.append(work)
        return self.thread.submit(work)

    def wait(self):
        self.thread.submit(int).result()


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.passed = CURRENT.submit(perf_counter)

    def synchronize(self):
        self.passed.result()

    def elapsed_time(self, stop):
        return 1e3 * (stop.passed.result() - self.passed.result())


class Graph:
    def replay(self):
        sleep(LAUNCH)
        for work in self.work:
            CURRENT.submit(work)


@contextmanager
def captured(graph):
    CURRENT.kept = graph.work = []
    yield
    CURRENT.kept = None


CURRENT, SIDE = Stream(), Stream()
MEMORY = SimpleNamespace(now=1000, most=1000)


def gelu(problem, stream=CURRENT):
    """A provider whose work is done in a stream after the call has returned."""
    inputs = problem.arrays("numpy")
    out = np.full_like(inputs.arguments[0], np.nan)

    def work():
        sleep(WORK)
        out[...] = saccade.gelu(*inputs.arguments)

    def forward():
        MEMORY.most = MEMORY.now + out.nbytes
        stream.submit(work)
        return out

    return forward, None


def elsewhere(problem):
    return gelu(problem, SIDE)


def patched(problem):
    """One that takes the events away."""
    sys.modules["torch"].cuda.Event = None
    return gelu(problem)


@pytest.fixture
def simulated(monkeypatch):
    made = ModuleType("torch")
    made.__spec__ = sys.modules["numpy"].__spec__
    made.set_num_threads = made.ones = lambda *_: None
    made.uint8, made.version = None, SimpleNamespace(cuda="13.0")
    made.zeros = lambda *_, **__: SimpleNamespace(add_=lambda _: None)
    properties = SimpleNamespace(
        name="Simulated", major=9, minor=0, total_memory=1 << 36, multi_processor_count=4, uuid="1234"
    )
    made.cuda = SimpleNamespace(
        is_available=lambda: True, Event=type("Event", (Event,), {}), CUDAGraph=Graph, graph=captured,
        synchronize=lambda: (CURRENT.wait(), SIDE.wait()), current_device=lambda: 0,
        _sleep=lambda cycles: CURRENT.submit(lambda: sleep(ASLEEP)),
        Stream=lambda: SimpleNamespace(wait_stream=lambda _: None), stream=lambda _: captured(Graph()),
        current_stream=lambda: SimpleNamespace(wait_stream=lambda _: None),
        get_device_properties=lambda _: properties, memory_allocated=lambda: MEMORY.now,
        reset_peak_memory_stats=lambda: setattr(MEMORY, "most", MEMORY.now), max_memory_allocated=lambda: MEMORY.most,
    )  # fmt: skip
    take = Framework.take
    monkeypatch.setitem(sys.modules, "torch", made)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)  # which another test may have imported: it finds no GPU
    monkeypatch.setattr(Framework, "take", lambda self, y: (CURRENT.wait(), take(self, y))[1])  # as copies do
    monkeypatch.setattr(worker, "_threads", lambda count: None)
    monkeypatch.setitem(sys.modules, "simulated", SimpleNamespace(**{f.__name__: f for f in PROVIDERS}))
    return made


PROVIDERS = (gelu, elsewhere, patched)


def row_of(name, **changes):
    task = {
        "case": asdict(CASE), "provider": f"simulated:{name}", "base": f"simulated:{name}", "oracle": 0, "seed": 0,
        "threads": 1, "seconds": 0.05, "samples": 4, "device": "cuda", "graph": False, "caches": timing.CACHES,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as shared:
        return worker.row({**task, "shared": shared, **changes}, lambda line: None)


@pytest.mark.parametrize("graph", [False, True])
def test_a_call_takes_what_its_stream_takes(simulated, graph):
    row = row_of("gelu", graph=graph)
    assert row["verdict"] == "PASS", row
    most = LAUNCH if graph else 20 * WORK
    assert all(len(x) >= 4 and WORK < np.median(x) < most for x in row["samples"].values())
    assert row["gpu"] == {"peak memory": 16 * 30 * 4 * (not graph), "state": None}
    json.dumps(row)


def test_work_in_another_stream_is_found(simulated):
    row = row_of("elsewhere")
    assert row["verdict"] == "FAIL" and "samples" not in row, row


def test_events_are_taken_before_providers_are_there(simulated):
    row = row_of("patched")
    assert row["verdict"] == "PASS" and np.median(row["samples"]["warm"]) > WORK


def test_a_graph_that_cannot_be_captured_is_said(simulated):
    def refuses(graph):
        raise RuntimeError("operation not permitted when stream is capturing")

    simulated.cuda.graph = refuses
    row = row_of("gelu", graph=True)
    assert row["verdict"] == "does not apply" and "no graph holds it: operation not permitted" in row["reason"]


def test_clocks_and_what_slows_them_are_told(simulated, tmp_path, monkeypatch):
    said = tmp_path / "nvidia-smi"
    said.write_text('#!/bin/sh\necho "$@" > "$0.asked"\necho "1980, 2619, 45, 300.10, 0x0000000000000024"\n')
    said.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    state = device.Cuda().state()
    assert "--id=GPU-1234" in (tmp_path / "nvidia-smi.asked").read_text()
    assert state == {
        "processor MHz": "1980", "memory MHz": "2619", "degrees Celsius": "45", "watts": "300.10",
        "slowed": "0x0000000000000024",
    }  # fmt: skip
    assert device.slowed_by(state) == {"power", "heat"}
    assert device.slowed_by(None) == device.slowed_by({"slowed": "[N/A]"}) == set()
    limits = {"bandwidth": 1e12, "gemm": {"float32": 1e13}}
    rows = [{"verdict": "PASS", "gpu": {"peak memory": 1, "state": one}} for one in (state, state, None)]
    machine = {"processor": {"name": "some"}, "threads": 2, "time": "now", "versions": {}, **device.Cuda().describe()}
    results = {"machine": machine, "rows": rows, "load": [[0.0], [0.0]], "limits before and after": [limits, limits]}
    text = report.conditions(results)
    assert "Simulated, 64 GB, CUDA 13.0, each call with its launches; its clock at 1980 to 1980 MHz" in text
    assert "slowed down in 2 of 3 rows (heat, power)" in text
    assert "each call a captured graph" in report.conditions(results | {"graphs": True})


def test_a_limit_is_measured_where_calls_run(simulated):
    lasting = iter([0.5, 0.25, 1.0])
    one = SimpleNamespace(name="cuda", seconds=lambda call: (None, next(lasting)))
    from saccade.bench import limits

    assert limits._best(lambda: None, one, 3) == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "torch sees no CUDA GPU"),
        ({"device": "tpu"}, "device='tpu', expected one of cpu, cuda"),
        ({"graph": True}, "graph with device='cpu', expected device='cuda'"),
    ],
)
def test_devices_that_are_not_there_are_refused(options, message, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        run.run([CASE], ["saccade"], **options)


def test_one_who_is_timed_is_alone(tmp_path):
    turns, inside, seen = Turns(tmp_path), [], []

    def come(alone):
        with turns.alone() if alone else turns.together():
            inside.append(alone)
            seen.append((alone, len(inside)))
            sleep(0.01)
            inside.remove(alone)

    threads = [threading.Thread(target=come, args=(i % 3 == 0,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 12 and all(count == 1 for alone, count in seen if alone)
    assert max(count for alone, count in seen if not alone) > 1


def test_rows_by_several_threads_are_those_of_one(tmp_path, monkeypatch):
    some = [(one, name) for one in (CASE, cases.case("gelu", 8, 30)) for name in ("a", "b", "c")]
    tasks = [(one, {"provider": name}) for one, name in some]
    asked = []

    def joined(task, processes):
        asked.append((task["provider"], task["oracle"], task["session"]))
        sleep(0.01)
        bad = task["provider"] == "b"
        return {"verdict": "FAIL" if bad else "PASS", "oracle": ("FAIL" if bad else "PASS") if task["oracle"] else None}

    monkeypatch.setattr(run, "_joined", joined)
    found = []
    for jobs in (1, 3):
        asked.clear()
        journal = Journal(tmp_path / f"{jobs}", {})
        rows = run._measured(tasks, 4.0, 1, jobs, None, journal, None)
        found.append([row["verdict"] for row in rows])
        assert sorted(asked) == sorted(
            [("a", 4.0, jobs > 1), ("a", 0, jobs > 1), ("b", 4.0, jobs > 1), ("c", 4.0, jobs > 1), ("c", 0, jobs > 1)]
        )
        assert len(Journal(tmp_path / f"{jobs}", {}).kept) == 5
    assert found[0] == found[1] == ["PASS", "FAIL", "PASS"] * 2


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_provider_that_did_not_apply_has_the_oracle_before_it_yet(monkeypatch, jobs):
    asked = []

    def joined(task, processes):
        asked.append(task["oracle"])
        if len(asked) == 1:
            return {"verdict": "does not apply", "reason": "too narrow"}
        return {"verdict": "PASS", "oracle": "PASS" if task["oracle"] else None}

    monkeypatch.setattr(run, "_joined", joined)
    tasks = [(cases.case("gelu", n, 30), {"provider": "a"}) for n in (8, 16)]
    run._measured(tasks, 4.0, 1, jobs, None, Journal(None, {}), None)
    assert asked == [4.0, 4.0]


def test_rows_whose_turn_does_not_come_are_said(monkeypatch):
    monkeypatch.setattr(run, "_joined", lambda task, processes: {"verdict": "PASS"})
    rows = run._measured([(CASE, {"provider": "a"})], 0, 1, 1, 0.0, Journal(None, {}), None)
    assert rows == [{"verdict": "INCONCLUSIVE", "reason": "its turn did not come in time"}]


def test_several_jobs_are_for_gpus():
    with pytest.raises(ValueError, match="jobs=2 with device='cpu', expected 1"):
        run.run([CASE], ["saccade"], jobs=2)


@pytest.mark.parametrize(("name", "expected"), [("znver5", "SkylakeX"), ("znver4", None), ("sapphirerapids", None)])
def test_openblas_is_told_of_processors_that_it_does_not_know(name, expected, monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(device.environment, "processor", lambda: {"name": name})
    found = device.variables(3)
    assert found.get("OPENBLAS_CORETYPE") == expected and found["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    assert device.variables(3).get("OPENBLAS_CORETYPE") == (expected and "Zen")
