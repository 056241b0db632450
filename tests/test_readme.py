"""Every snippet of the README runs as it stands; what its make commands do is what this test run is part of."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line.split("#")[0].strip() for language, text in BLOCKS if language == "console" for line in text.splitlines()
]


def test_figures_are_those_that_were_measured():
    from mutants import MUTANTS

    text = (ROOT / "README.md").read_text()
    found = json.loads((ROOT / "bench" / "results" / "false-alarms.json").read_text())["operations"].values()
    assert not any(one["alarms"] for one in found)
    assert f"none of {sum(one['draws'] for one in found):,} results of correct implementations" in text
    assert f"{len(MUTANTS)} implementations of all operations with one planted bug each" in text


def test_every_block_is_of_a_kind_that_is_tested():
    assert {language for language, _ in BLOCKS} == {"python", "console"}
    assert all(command.split()[0] in ("make", "saccade") for command in COMMANDS)


@pytest.mark.parametrize("i", range(len(PYTHON)))
def test_python_snippet_runs(i):
    done = subprocess.run([sys.executable, "-P", "-W", "error", "-c", PYTHON[i]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("saccade")])
def test_command_runs(command, tmp_path):
    script = Path(sys.executable).with_name("saccade")
    done = subprocess.run([script, *command.split()[1:]], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_target_exists(command):
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()
