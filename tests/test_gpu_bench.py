"""``saccade bench --device cuda`` on a GPU; every test here is marked ``gpu``."""

import json

import pytest

from saccade.bench import cases, run

pytestmark = pytest.mark.gpu

USERS = """
import torch

def right(problem):
    inputs = problem.arrays("torch")
    return lambda: torch.nn.functional.gelu(*inputs.arguments), None

def elsewhere(problem):
    inputs, stream = problem.arrays("torch"), torch.cuda.Stream()
    def forward():
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            return torch.nn.functional.gelu(*inputs.arguments)
    return forward, None

def synchronizes(problem):
    inputs = problem.arrays("torch")
    def forward():
        out = torch.nn.functional.gelu(*inputs.arguments)
        torch.cuda.synchronize()
        return out
    return forward, None
"""
CASE = cases.case("gelu", 4096, 768)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "benched_on_gpu.py").write_text(USERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def rows_of(*names, case=CASE, **options):
    results = run.run([case], list(names), seconds=0.2, processes=1, oracle=0.0, device="cuda", **options)
    json.dumps(results)
    assert results["machine"]["gpu"]["name"] and results["limits"]["bandwidth"] > 1e10
    return {row["provider"].rpartition(":")[2]: row for row in results["rows"]}


@pytest.mark.parametrize("graph", [False, True])
def test_what_is_right_is_timed_and_what_is_elsewhere_is_found(folder, graph):
    rows = rows_of(*(f"benched_on_gpu:{name}" for name in ("right", "elsewhere", "synchronizes")), graph=graph)
    assert rows["right"]["verdict"] == "PASS" and (graph or rows["right"]["gpu"]["peak memory"] > 0), rows
    assert 0 < rows["right"]["share of limit"] < 1.5
    assert rows["elsewhere"]["verdict"] != "PASS", rows
    assert rows["synchronizes"]["verdict"] == ("does not apply" if graph else "PASS"), rows


@pytest.mark.parametrize(("gradients", "operation"), [(False, "attention"), (True, "attention"), (True, "clip_loss")])
def test_our_own_providers_are_timed(gradients, operation):
    sizes = {"attention": (2, 4, 197, 197, 64), "clip_loss": (512, 256)}[operation]
    case = cases.Case(operation, cases.case(operation, *sizes).sizes, gradients=gradients)
    for row in rows_of("saccade-torch", "saccade-cupy", case=case).values():
        assert row["verdict"] == "PASS", row


def test_processors_have_no_place_there():
    rows = rows_of("saccade-torch", "saccade", "scikit-learn-kmeans", case=cases.case("fit", 1000, 16, iterations=2))
    assert rows["saccade"]["reason"] == rows["scikit-learn-kmeans"]["reason"] == "it computes on processors"
