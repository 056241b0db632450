"""``saccade bench`` on a terminal: a progress bar, the table, the files that were asked for."""

import contextlib
import functools
import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from saccade import environment
from saccade.bench import bars, report
from saccade.bench.cases import of_operations
from saccade.bench.device import device as device_of
from saccade.bench.journal import Journal, sources
from saccade.bench.probes import measure
from saccade.bench.run import run
from saccade.recipes.progress import progress_bar
from saccade.recipes.report import write


def run_bench(cases, providers, *, out=None, json_file=None, base=None, **options):
    """Run, show and write; the exit status: 1 if something is slower than in ``base``, else 0."""
    with _journal(cases, providers, options, out, json_file) as journal:
        results = _run(cases, providers, journal=journal, **options)
        return present(results, out=out, json_file=json_file, base=base)


def run_bars(operation, providers, *, out=None, json_file=None, base=None, device="cpu", **options):
    """``run_bench`` of what decides the bars, of some operations if they are given, and the bars."""
    cases = of_operations(bars.cases(device), operation)
    if not cases:
        raise ValueError(f"bench: no bar is decided by cases of operation={operation!r}")
    providers = providers or bars.PROVIDERS[device]
    options = {"device": device, "caches": (bars.CACHE[device],), **options}
    with _journal(cases, providers, options, out, json_file) as journal:
        results = _run(cases, providers, journal=journal, **options)
        probed = _probed(bars.probes(device, operation), results["machine"]["threads"], journal)
        results["bars"] = bars.judged(results, probed, device)
        return present(results, out=out, json_file=json_file, base=base)


@contextlib.contextmanager
def _journal(cases, providers, options, out, json_file):
    """A ``Journal`` beside the results that are to be written; it ends when they are."""
    results = json_file or (Path(out, "results.json") if out is not None else None)
    settings = {
        "cases": [one.name for one in cases], "providers": providers, "options": options,
        "versions": environment.versions(), "processor": environment.processor(), "sources": sources(),
    }  # fmt: skip
    journal = Journal(None if results is None else f"{results}.partial", settings)
    if journal.kept:
        Console(stderr=True).print(f"{len(journal.kept)} rows are there from an interrupted run: {journal.path}")
    try:
        yield journal
    except KeyboardInterrupt:
        how = "with --json or --out it could go on" if journal.path is None else "the same command goes on"
        raise ValueError(f"bench: interrupted: {how}") from None
    journal.close()


def _run(cases, providers, **options):
    with _progress("measuring the machine") as told:
        return run(cases, providers, told=told, **options)


def _probed(names, threads, journal):
    with _progress("probes") as told:
        found = {}
        for i, name in enumerate(names):
            told(i, len(names), f"probe {name}")
            found[name] = journal.get(f"probe {name}", functools.partial(measure, name, threads))
        return found


def run_tune(dtype, tokens, width, **options):
    """Measure tiles, keep the fastest, and say which they are."""
    device_of("cuda")  # which says in a sentence that there is none
    from saccade.bench.tune import tune
    from saccade.kernels.triton import tuned

    console = Console()
    with progress_bar("tiles", Console(stderr=True)) as progress:
        found = tune(dtype, tokens, width, **options, progress=progress)
    for name, own, tiles, ratio in found:
        of = "the whole backward pass" if name in ("queries", "keys") else "the forward pass"
        said = "the table's do not fit" if ratio is None else f"{of} {ratio:.2f} times as fast as with the table's"
        console.print(f"{name}: {tiles}, {said} {own}", markup=False, soft_wrap=True)
    where = f"{tuned.file()}" if found else f"all of it is in {tuned.file()} already: --again measures anew"
    console.print(where, markup=False, soft_wrap=True)


@contextlib.contextmanager
def _progress(what):
    columns = TextColumn("[progress.description]{task.description}"), BarColumn(), MofNCompleteColumn()
    seldom = {"refresh_per_second": 1}  # each time takes a processor from those who are timed
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), **seldom) as bar:
        task = bar.add_task(what)
        yield lambda done, of, what: bar.update(task, completed=done, total=of, description=what)


def present(results, *, out=None, json_file=None, base=None):
    """Show and write results that are there; the exit status as above."""
    console = Console()
    report.show(results, console)
    if json_file is not None:
        write(json_file, json.dumps(results, indent=1))
    if out is not None:
        write(Path(out, "results.json"), json.dumps(results, indent=1))
        write(Path(out, "table.md"), report.markdown(results))
        write(Path(out, "summary.md"), report.summary(results))
        write(Path(out, "index.html"), report.html(results))
        console.print(f"{Path(out, 'index.html')}")
    if base is None:
        return 0
    before = read(base)
    if before["machine"].get("gpu", {}).get("name") != results["machine"].get("gpu", {}).get("name"):
        raise ValueError(f"bench: base={base} is of another device, expected a run on the same one")
    agreeing, of = report.agreement(results, before)
    console.print(f"{agreeing} of {of} ratios agree with those of {base}: no further apart than the noise floor.")
    slower = report.regressions(results, before)
    for line in slower:
        console.print(f"[red]{line}[/red]")
    return int(bool(slower))


def read(path):
    """Results that an earlier run wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        results = json.loads(Path(path).read_text())
        if not isinstance(results["rows"], list) or not {"limits", "limits before and after", "load"} <= results.keys():
            raise KeyError("limits")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"bench: {path} holds no results, expected what saccade bench --json wrote") from None
    return results
