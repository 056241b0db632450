"""What ``saccade check`` shows on a terminal."""

from saccade.testing.isolation import check_isolated

COLOURS = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}


def run_check(function, operation, **options):
    """Judge in a process of its own, show progress and the report; the report as a dictionary."""
    from rich.console import Console

    console = Console()
    with console.status("importing") as status:
        report = check_isolated(
            function, operation, told=lambda line: status.update(line[: console.width - 4]), **options
        )
    show(report, console)
    return report


def show(report, console):
    """Print a report: a line of verdict, a table of laws, and the first failure, which others often repeat."""
    from rich.markup import escape
    from rich.table import Table

    verdict = report["verdict"]
    said = f"{report['function']} as {report['operation']} of {report['arrays']} arrays, {report['seconds']:.0f} s"
    console.print(f"[bold {COLOURS[verdict]}]{verdict}[/] {escape(said)}")
    failed = {one["law"]: one for one in report["failures"]}
    table = Table("law", "inputs", "judgements", "inconclusive", "holds")
    for law, counts in report["laws"].items():
        holds = "[red]no[/red]" if law in failed else "[green]yes[/green]" if counts["inputs"] else "–"
        table.add_row(law, *(str(n) for n in counts.values()), holds)
    if report["laws"]:
        console.print(table)
    for one in report["failures"][:1]:
        console.print(f"[bold]{escape(one['law'])}[/bold]: {escape(one['says'])}")
        console.print(f"  on {one['input']}", markup=False, highlight=False)
        if one["picture"]:
            console.print(one["picture"], markup=False, highlight=False)
    for one in report["not_judged"]:
        console.print(f"not judged: {one}", markup=False, highlight=False)
