"""Tables of ``bench/results`` on the documentation's pages, made as the site is built: a hook of MkDocs.

A line ``<!-- speeds: attention, qkv_attention -->`` of a page becomes a table of how fast these operations were beside
others', ``<!-- errors: attention -->`` one of how large their errors were, beside the ordinary ones for results in the
dtype of ours.
"""

import json
import re
from pathlib import Path

import numpy as np

from saccade.bench.report import coldest, warmest

RESULTS = Path(__file__).resolve().parent / "results"
# of a machine in words: the files of its runs, of which the first counts where two have the same, and whose rows
RUNS = {
    "two cores of a Zen 5, warm caches": (("bars-cpu.json", "deck-cpu.json", "parts-cpu.json"), "saccade", warmest),
    "two cores of a Zen 4, warm caches": (("bars-zen4.json",), "saccade", warmest),
    "an H200, cold L2": (("bars-h200.json", "deck-h200.json"), "saccade-torch", coldest),
}
ERRORS = {"two cores of a Zen 5": "errors-cpu.json"}
COMMENT = re.compile(r"^<!-- (speeds|errors): (.+) -->$", re.MULTILINE)


def on_page_markdown(markdown, **_):
    """The page with its tables: what MkDocs calls."""
    tables = {"speeds": speeds, "errors": errors}
    return COMMENT.sub(lambda found: tables[found[1]](found[2].split(", ")), markdown)


def speeds(operations):
    """A table of what was timed of some operations: a line for each kind of case and machine.

    Raises:
        KeyError: nothing was timed of one of them.
    """
    lines = {name: [] for name in operations}
    for machine, (files, provider, cache) in RUNS.items():
        seen = set()
        for file in files:
            for key, rows in _groups(_read(file)["rows"], provider).items():
                if key not in seen and key[0] in lines:
                    lines[key[0]].append(_speed(key, rows, cache, machine))
                    seen.add(key)
    if missing := [name for name, found in lines.items() if not found]:
        raise KeyError(f"nothing was timed of {', '.join(missing)}")
    return _table(
        ("operation", "cases", "beside", "times as fast", "on"), [line for found in lines.values() for line in found]
    )


def errors(operations):
    """A table of the errors of some operations' results, one for each case.

    Raises:
        KeyError: nothing was measured of one of them.
    """
    parts = []
    for machine, file in ERRORS.items():
        results = _read(file)["rows"]
        for operation in operations:
            cases = {}
            for row in results:
                if row["operation"] == operation:
                    cases.setdefault(
                        row["case"].removesuffix(" gradients").removesuffix(f" {row['dtype']}"), []
                    ).append(row)
            if not cases:
                raise KeyError(f"nothing was measured of {operation}")
            parts += [f"`{case}`, on {machine}:\n\n{_errors(rows)}" for case, rows in cases.items()]
    return "\n\n".join(parts)


def _read(file):
    return json.loads((RESULTS / file).read_text())


def _groups(rows, provider):
    """The timed rows of a provider beside another, by operation, dtype, gradients, base and named options."""
    groups = {}
    for row in rows:
        if row["provider"] == provider != row["base"] and row["verdict"] == "PASS" and row.get("ratio"):
            options = " and ".join(name for name in row["options"] if name == "residual")
            key = row["operation"], row["dtype"], row["gradients"], row["base"], options
            groups.setdefault(key, []).append(row)
    return groups


def _speed(key, rows, cache, machine):
    operation, dtype, gradients, base, options = key
    ratios = [row["ratio"][cache(row)]["median"] for row in rows]
    said = f"{np.exp(np.mean(np.log(ratios))):.2f}"
    said += f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    what = f"`{operation}`, {dtype}" + f", {options}" * bool(options) + ", with gradients" * gradients
    return what, str(len(rows)), f"`{base}`", said, machine


def _errors(rows):
    names = list(dict.fromkeys(result["name"] for row in rows for result in row["results"]))
    lines = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        mine = [row for row in rows if row["dtype"] == dtype]
        usual = {result["name"]: result["ordinary"] for row in mine[::-1] for result in row["results"]}
        lines.append((dtype, "*ordinary*", *(f"{usual[name]:.1e}" for name in names)))
        for row in mine:
            found = {result["name"]: result for result in row["results"]}
            cells = (found.get(name) for name in names)
            lines.append((dtype, f"`{row['provider']}`", *(_error(cell) for cell in cells)))
    return _table(("dtype", "by", *names), lines)


def _error(result):
    if result is None:
        return "–"
    return f"{result['error']:.1e}" + {"FAIL": " **fails**", "INCONCLUSIVE": " (?)"}.get(result["verdict"], "")


def _table(header, lines):
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ("---",) * len(header), *lines))
