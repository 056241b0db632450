"""The documentation: every snippet runs as it stands, and the site is built with every page and without a warning."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import run_documented

from saccade.bench import pages
from saccade.families import GRADIENTS
from saccade.models.variants import VARIANTS, cost

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.ipynb"))
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def blocks(page):
    return [(language, textwrap.dedent(text)) for _, language, text in BLOCK.findall((DOCS / page).read_text())]


def programs(page):
    return "\n".join(text for language, text in blocks(page) if language == "python")


def commands(page):
    lines = [line for language, text in blocks(page) if language == "console" for line in text.splitlines()]
    return [line for line in lines if not line.startswith("make ")]


@pytest.mark.parametrize("page", [page for page in PAGES if programs(page)])
def test_a_pages_snippets_run_one_after_the_other(page, tmp_path):
    command = [sys.executable, "-P", "-W", "error", "-c", programs(page)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebooks_cells_run_one_after_the_other(notebook, tmp_path):
    cells = json.loads((DOCS / notebook).read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert not any(cell.get("outputs") for cell in cells)  # what a run gave is not kept
    environment = {**os.environ, "MPLBACKEND": "agg"}
    command = [sys.executable, "-P", "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_a_pages_commands_run(page, tmp_path):
    run_documented(commands(page), tmp_path)


def test_every_block_is_of_a_kind_that_is_tested():
    kinds = {language for page in PAGES for language, _ in blocks(page)}
    assert kinds <= {"python", "console", "text"}
    assert all(command.startswith("saccade ") for page in PAGES for command in commands(page))


def test_files_that_pages_name_exist():
    for page in PAGES:
        for name in re.findall(r"`((?:bench|tests|kernels|reference|bindings)/[\w./*-]+)`", (DOCS / page).read_text()):
            assert list(ROOT.glob(name)), f"{page}: {name}"


def test_every_operations_page_has_its_errors_and_speeds():
    named = re.findall(r"<!-- errors: (.+) -->", "".join((DOCS / page).read_text() for page in PAGES))
    found = [name for line in named for name in line.split(", ")]
    assert sorted(found) == sorted(GRADIENTS)
    shown = pages.on_page_markdown((DOCS / "operations" / "losses.md").read_text())
    assert "<!--" not in shown and "`clip_loss n1024 e512`" in shown and "`torch-siglip-loss`" in shown
    with pytest.raises(KeyError, match="nothing was timed of none"):
        pages.speeds(["none"])
    with pytest.raises(KeyError, match="nothing was measured of none"):
        pages.errors(["none"])


ROW = re.compile(r"^\| `([\w./@-]+)` \|.*\| ([\d,]+) \|(?: [\d.]+ \|)? ([\d,.]+) \|$", re.MULTILINE)


@pytest.mark.parametrize(("page", "rows"), [("imagegpt", 6), ("vit", 20), ("clip", 9)])
def test_a_models_page_says_what_its_variants_hold_and_cost(page, rows):
    found = ROW.findall((DOCS / "models" / f"{page}.md").read_text())
    assert len(found) == rows
    for name, parameters, flops in found:
        one = cost(VARIANTS[name])
        assert (parameters, flops) == (f"{one.parameters:,}", f"{one.flops / 1e9:,.1f}"), name


def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "true", "DISABLE_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    assert "<code>saccade</code></td>" in (tmp_path / "site" / "operations" / "losses" / "index.html").read_text()
    built = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    for page in PAGES:
        name = page.removesuffix(".md")
        assert (f"{name}.html" if name.endswith("index") else f"{name}/index.html") in built, page
