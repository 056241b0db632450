"""Errors of results as they are told: of what is right, and of what is not."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from saccade.bench import cases, errors

USERS = """
import numpy as np
import saccade

def narrow(problem):
    inputs = problem.arrays("numpy")
    return lambda: saccade.gelu(inputs.arguments[0].astype(np.float16)).astype(np.float32), None

def elsewhere(problem):
    return None, "it does not apply"
"""


def test_errors_are_of_the_size_of_the_dtype_and_what_is_wrong_is_said(tmp_path, monkeypatch):
    (tmp_path / "users.py").write_text(USERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    one = replace(cases.case("gelu", 100, 50), gradients=True)
    names = ["saccade", "users:narrow", "users:elsewhere", "torch-gelu"]
    ours, narrow, theirs = errors.measured(one, names)
    assert [row["provider"] for row in (ours, narrow, theirs)] == [names[0], names[1], names[3]]
    assert ours["verdict"] == theirs["verdict"] == "PASS" and narrow["verdict"] == "FAIL"
    assert [result["name"] for result in ours["results"]] == ["output", "gradient of x"]
    assert [result["name"] for result in narrow["results"]] == ["output"]
    for row, epsilon in ((ours, 2.0**-23), (narrow, 2.0**-10)):
        error = row["results"][0]["error"]
        assert epsilon / 20 < error < 2 * epsilon, error
    assert narrow["results"][0]["ordinary"] == ours["results"][0]["ordinary"] < 2.0**-20


@pytest.mark.parametrize("operation", sorted({one.operation for one in errors.CASES}))
def test_ours_and_torchs_are_named(operation):
    names = errors.names_for(operation)
    assert names[0] == "saccade" and all(name.startswith("torch-") for name in names[1:])
    assert "torch-sdpa-cudnn" not in names
    assert ("torch-sdpa-cudnn" in errors.names_for(operation, "cuda")) == (operation == "attention")


def test_the_file_has_every_case_in_every_dtype(tmp_path, monkeypatch):
    results = json.loads((errors.Path(errors.__file__).resolve().parent / "results" / "errors-cpu.json").read_text())
    ours = {row["case"]: row["verdict"] for row in results["rows"] if row["provider"] == "saccade"}
    asked = {replace(one, dtype=dtype, gradients=True).name for one in errors.CASES for dtype in errors.DTYPES}
    assert ours.keys() == asked and "FAIL" not in ours.values()
    command = [sys.executable, "-P", "-m", "saccade.bench.errors", "--help"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    assert "Example: python -m saccade.bench.errors --out errors-cpu.json" in said.replace("\n", " ")
