"""``saccade.bench.host_tests``: what fails with drop-ins alone is found, and calls are taken over."""

import subprocess
import sys

from saccade.bench import host_tests

THEIRS = """
import pytest
import torch


def test_attention():
    query = torch.randn(1, 2, 64, 32)
    found = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    weights = (query @ query.mT / 32**0.5).softmax(-1)
    torch.testing.assert_close(found, weights @ query)


def test_that_wants_torchs_own():
    assert torch.nn.attention.current_flash_attention_impl() != "saccade"


def test_that_fails_anyway():
    assert False


@pytest.mark.skip
def test_that_is_skipped():
    pass
"""


def test_both_runs_are_listed_and_what_fails_with_drop_ins_alone(tmp_path):
    (tmp_path / "test_theirs.py").write_text(THEIRS)
    command = [sys.executable, "-P", "-m", "saccade.bench.host_tests", "host.md", str(tmp_path / "test_theirs.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    page = (tmp_path / "host.md").read_text()
    assert "| without | 2 | 1 | 1 |" in page and "| with drop-ins | 1 | 2 | 1 |" in page
    assert "Failed with drop-ins alone: `test_theirs.test_that_wants_torchs_own`." in page
    assert "Failed both ways: `test_theirs.test_that_fails_anyway`." in page and "In one run alone: none." in page
    assert "* torch scaled_dot_product_attention: taken over, 1" in page


def test_a_run_that_did_not_come_to_its_tests_is_an_error(tmp_path):
    (tmp_path / "test_theirs.py").write_text("import nothing_of_this_name")
    command = [sys.executable, "-P", "-m", "saccade.bench.host_tests", "host.md", str(tmp_path / "test_theirs.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "pytest ended with 2" in done.stderr and not (tmp_path / "host.md").exists()


def test_a_test_that_is_in_one_run_alone_is_shown():
    text, ours = host_tests.section(["x.py"], {"a": "passed", "b": "passed"}, {"a": "failed"}, "")
    assert ours == ["a"] and "In one run alone: `b`." in text
