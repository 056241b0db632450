"""What the oracle says of other libraries' functions: ``python -m saccade.bench.field_report --out report.md``.

Every peer that is installed is judged in each dtype that it claims. What fails is told with its smallest input and a
program that shows it without saccade.
"""

import argparse
import importlib.metadata
import platform
import warnings
from dataclasses import replace
from pathlib import Path

from saccade.files import replacing
from saccade.testing import check, explain
from saccade.testing.peers import PEERS, peer
from saccade.testing.subject import PALETTE

COMMAND = "python -m saccade.bench.field_report"


def main():
    """Judge every installed peer and write the report."""
    parser = argparse.ArgumentParser(
        description="Judge other libraries' functions.", epilog=f"Example: {COMMAND} --out r.md"
    )
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each peer and dtype")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    arguments = parser.parse_args()
    rows, failures = [], []
    for name in arguments.peers:
        if PEERS[name].device or not PEERS[name].installed:
            version = "needs a GPU" if PEERS[name].device else "absent"
            rows.append(f"| `{name}` | {version} | {PEERS[name].operation} | – | not judged | |")
            continue
        function, operation, arrays, claims = peer(name)
        for dtype in claims.dtypes if operation not in PALETTE else ("uint8",):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                claimed = claims if operation in PALETTE else replace(claims, dtypes=(dtype,))
                options = {"budget": arguments.seconds, "seed": arguments.seed}
                report = check(function, operation, arrays=arrays, claims=claimed, **options)
            print(name, dtype, report.verdict, flush=True)
            rows.append(_row(name, dtype, report))
            failures += [_section(name, dtype, report)] if report.failures else []
    with replacing(arguments.out) as file:
        file.write("\n".join([*_head(arguments), *rows, "", *failures]).encode())


def _head(arguments):
    command = f"{COMMAND} --out {arguments.out.name} --seconds {arguments.seconds:g} --seed {arguments.seed}"
    return [
        "# What the oracle says of other libraries' functions on a CPU",
        "",
        f"`{command}`, Python {platform.python_version()}, {platform.system()} {platform.machine()}.",
        "",
        "A function fails if its error on some input is more than twice that of ordinary implementations in the same",
        "dtype, which multiply what the dtype holds, add in float32 at least and round once. Many libraries store",
        "intermediate results in 16 bits by design; that fails here, and whether it matters is for a user to judge.",
        "",
        "| peer | version | operation | dtype | verdict | smallest counterexample |",
        "|---|---|---|---|---|---|",
    ]


def _row(name, dtype, report):
    package = {"open_clip": "open_clip_torch", "sklearn": "scikit-learn", "faiss": "faiss-cpu"}.get(
        PEERS[name].package, PEERS[name].package
    )
    laws = ", ".join(one.law for one in report.failures)
    smallest = explain.described(report.failures[0].arguments, report.failures[0].options) if laws else ""
    verdict = f"FAIL ({laws})" if laws else report.verdict
    version = importlib.metadata.version(package)
    return f"| `{name}` | {version} | {report.operation} | {dtype} | {verdict} | {smallest} |"


def _section(name, dtype, report):
    one = report.failures[0]
    lines = [f"## {name}, {dtype}", "", one.says, "", f"Input: {explain.described(one.arguments, one.options)}", ""]
    if drawn := explain.picture(one.arrays):
        lines += ["```text", drawn, "```", ""]
    script = explain.script(report, one)
    return "\n".join(
        [
            *lines,
            "<details><summary>A program that shows it</summary>",
            "",
            "```python",
            script + "```",
            "",
            "</details>",
            "",
        ]
    )


if __name__ == "__main__":
    main()
