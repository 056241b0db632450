"""The oracle is tested by planting bugs: what is wrong in one way must fail, and pass without that."""

import importlib

import pytest
from mutants import MUTANTS, OPERATIONS, RIGHT

oracle = importlib.import_module("saccade.testing.check")  # the package has the function by this name


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_implementation_fails(name, monkeypatch):
    operation, function, options = MUTANTS[name]
    monkeypatch.setattr(oracle, "SHRINKING", 0.0)  # the verdict is asked for here, not a small input
    for budget in (2.0, 20.0):  # a third of it goes by before gradients are looked at; few need the whole
        report = oracle.check(function, operation, **options, budget=budget, stop_at_first=True)
        if report.verdict == "FAIL":
            return
    raise AssertionError(str(report))


def test_a_law_is_not_done_with_inputs_that_show_little():
    """Of no elements, zeros or numbers too small to change, which the first inputs of this one are."""
    operation, function, options = MUTANTS["qkv_attention: the last bits are luck"]
    report = oracle.check(function, operation, **options, budget=0.1, only="same again")
    assert report.verdict == "FAIL" and report.counts["same again"][0] > 1


@pytest.mark.parametrize("name", RIGHT)
def test_what_they_are_made_from_passes(name):
    operation, function, options = RIGHT[name]
    report = oracle.check(function, operation, **options, budget=0.5)
    assert report.verdict != "FAIL", str(report)


def test_there_are_mutants_of_every_operation():
    found = [operation for operation, _, _ in MUTANTS.values()]
    assert {name: found.count(name) for name in OPERATIONS if found.count(name) < 6} == {}
    assert len(MUTANTS) >= 114
