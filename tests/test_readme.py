"""Every snippet of the README runs as it stands; what its make commands do is what this test run is part of."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import run_documented

from saccade.bench import bars, cases, report

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
CONSOLE = [
    [line.split("#")[0].strip() for line in text.splitlines()] for language, text in BLOCKS if language == "console"
]
COMMANDS = [command for block in CONSOLE for command in block]


def test_figures_are_those_that_were_measured():
    from mutants import MUTANTS

    text = (ROOT / "README.md").read_text()
    found = json.loads((ROOT / "bench" / "results" / "false-alarms.json").read_text())["operations"].values()
    assert not any(one["alarms"] for one in found)
    assert f"none of {sum(one['draws'] for one in found):,} results of correct implementations" in text
    assert f"{len(MUTANTS)} implementations of all operations with one planted bug each" in text


def results_of(name):
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())


def test_the_speed_table_is_what_was_measured():
    results, bars_run = results_of("deck-cpu"), results_of("bars-cpu")
    text = (ROOT / "README.md").read_text()
    assert report.summary(results) in text
    assert report.markdown(results) == (ROOT / "bench" / "results" / "deck-cpu.md").read_text()
    assert {row["case"] for row in results["rows"]} == {one.name for one in cases.suite("deck")}
    agreeing, of = report.agreement(results, results_of("deck-earlier"))
    assert f"{agreeing} of {of} ratios agree" in " ".join(text.split()) and agreeing >= 0.95 * of
    agreeing, of = report.agreement(results, bars_run)
    assert f"the run of the bars below has too, {agreeing} of {of} do" in " ".join(text.split())


def test_the_drop_ins_figures_are_what_was_measured():
    table = (ROOT / "bench" / "results" / "dropins-cpu.md").read_text()
    found = re.findall(r"\| (?:timm ViT-B/16|open_clip|transformers ViT).*? \| ([\d.]+) \(", table)
    sentence = (ROOT / "README.md").read_text().split("in turn with the drop-ins and without")[1].split(":")[0]
    assert re.findall(r"(?<= )\d\.\d\d", sentence) == found


@pytest.mark.parametrize("name", ["bars-cpu", "bars-zen4"])
def test_bars_are_what_was_measured(name):
    results = results_of(name)
    assert report.markdown(results) == (ROOT / "bench" / "results" / f"{name}.md").read_text()
    asked, known = [row[0] for row in results["bars"]], [bar.what for bar in bars.BARS]
    assert asked == [what for what in known if what in asked]  # bars of later may be missing
    holds = [row[-1] for row in results["bars"]]
    assert f"{holds.count('yes')} of {holds.count('yes') + holds.count('no')} bars" in (ROOT / "README.md").read_text()


def test_every_bar_was_measured_somewhere():
    asked = {row[0] for name in ("bars-cpu", "bars-zen4") for row in results_of(name)["bars"]}
    assert asked == {bar.what for bar in bars.BARS}


def test_every_block_is_of_a_kind_that_is_tested():
    assert {language for language, _ in BLOCKS} == {"python", "console"}
    assert all(command.split()[0] in ("make", "saccade") for command in COMMANDS)


@pytest.mark.parametrize("i", range(len(PYTHON)))
def test_python_snippet_runs(i):
    done = subprocess.run([sys.executable, "-P", "-W", "error", "-c", PYTHON[i]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [block for block in CONSOLE if block[0].startswith("saccade")], ids=lambda b: b[0])
def test_commands_run(block, tmp_path):
    run_documented(block, tmp_path)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")])
def test_make_target_exists(command):
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()
