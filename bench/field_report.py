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

from saccade import environment
from saccade.files import replacing
from saccade.testing import check, explain
from saccade.testing.peers import PEERS, peer
from saccade.testing.subject import PALETTE

COMMAND = "python -m saccade.bench.field_report"
# what no input shows, by the package it is of
BESIDES = {
    "openvino": """## OpenVINO and signals

Beside what inputs show: its processor plug-in gives the calling thread a signal stack. Where a process has several
cores, the stack that is left when the last of them goes may be one that went with an earlier, and the next signal whose
handler runs on that stack kills the process. Here peers share one core that stays.

<details><summary>A program that shows it</summary>

```python
import faulthandler
import gc
import signal

import openvino
from openvino import opset13 as graph


def request():
    x = graph.parameter([4], openvino.Type.f32)
    model = openvino.Model([graph.gelu(x, "erf")], [x], "gelu")
    return openvino.Core().compile_model(model, "CPU").create_infer_request()


faulthandler.enable()  # handlers run on a stack of their own
requests = [request(), request()]
while requests:
    del requests[0]
    gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)  # a segmentation fault
```

</details>
""",
}


def main():
    """Judge every installed peer and write the report."""
    parser = argparse.ArgumentParser(
        description="Judge other libraries' functions.", epilog=f"Example: {COMMAND} --out r.md"
    )
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each peer, dtype and seed")
    parser.add_argument("--seeds", type=int, default=1, help="so many of them, from 0")
    parser.add_argument("--dtypes", nargs="*", help="those alone")
    parser.add_argument("--non-finite", action="store_true", help="judge NaN and infinities where not claimed, too")
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    arguments = parser.parse_args()
    rows, failures = [], []
    for name in arguments.peers:
        if PEERS[name].device or not PEERS[name].installed:
            version = "needs a GPU" if PEERS[name].device else "absent"
            rows.append(f"| `{name}` | {version} | {PEERS[name].operation} | – | not judged | |")
            continue
        dtypes = PEERS[name].claims.dtypes if PEERS[name].operation not in PALETTE else ("uint8",)
        for dtype in dtypes:
            if arguments.dtypes and dtype not in (*arguments.dtypes, "uint8"):
                continue
            options = arguments.seconds, arguments.non_finite
            reports = [_report(name, dtype, seed, *options) for seed in range(arguments.seeds)]
            print(name, dtype, *(one.verdict for one in reports), flush=True)
            rows.append(_row(name, dtype, reports))
            failures += [_section(name, dtype, one) for one in reports if one.failures][:1]
    judged = {PEERS[name].package for name in arguments.peers}
    failures += [said for package, said in BESIDES.items() if package in judged]
    with replacing(arguments.out) as file:
        file.write("\n".join([*_head(arguments), *rows, "", *failures]).encode())


def _report(name, dtype, seed, seconds, non_finite):
    function, operation, arrays, claims = peer(name)
    if operation not in PALETTE:
        claims = replace(claims, dtypes=(dtype,), non_finite=claims.non_finite or non_finite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check(function, operation, arrays=arrays, claims=claims, budget=seconds, seed=seed)


def _head(arguments):
    command = f"{COMMAND} --out {arguments.out.name} --seconds {arguments.seconds:g} --seeds {arguments.seeds}"
    command += " --non-finite" if arguments.non_finite else ""
    command += f" --dtypes {' '.join(arguments.dtypes)}" if arguments.dtypes else ""
    return [
        "# What the oracle says of other libraries' functions on a CPU",
        "",
        f"`{command}`, Python {platform.python_version()}, {platform.system()}, {environment.processor()['name']}.",
        "",
        "A function fails if its error on some input is more than twice that of ordinary implementations in the same",
        "dtype, which multiply what the dtype holds, add in float32 at least and round once. Many libraries store",
        "intermediate results in 16 bits by design; that fails here, and whether it matters is for a user to judge.",
        "",
        "| peer | version | operation | dtype | verdict | smallest counterexample |",
        "|---|---|---|---|---|---|",
    ]


def version_of(name):
    """The version of the package that a peer is of."""
    imported = PEERS[name].package.split()[0]
    named = {"open_clip": "open_clip_torch", "sklearn": "scikit-learn", "faiss": "faiss-cpu", "PIL": "pillow"}
    return importlib.metadata.version(named.get(imported, imported))


def _row(name, dtype, reports):
    failed = [one for one in reports if one.failures]
    smallest, verdict = "", " ".join(sorted({one.verdict for one in reports}))
    if failed:
        first = failed[0].failures[0]
        laws = sorted({one.law for report in failed for one in report.failures})
        smallest, verdict = explain.described(first.arguments, first.options), f"FAIL ({', '.join(laws)})"
    if len(reports) > 1:
        verdict = f"{len(reports) - len(failed)} of {len(reports)} seeds without a failure: {verdict}"
    return f"| `{name}` | {version_of(name)} | {reports[0].operation} | {dtype} | {verdict} | {smallest} |"


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
