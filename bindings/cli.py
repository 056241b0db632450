"""The command line: ``saccade info`` and ``saccade demo``."""

import importlib.util
import sys

DEMO_NEEDS = ("torch", "skimage", "sklearn", "PIL", "matplotlib", "regex", "hypothesis")


def main():
    """Entry point of the ``saccade`` command."""
    try:
        import rich  # noqa: F401
        import typer
    except ModuleNotFoundError as error:
        sys.exit(f'the saccade command needs {error.name}: pip install "saccade[cli]"')
    _application(typer)()


def _application(typer):
    app = typer.Typer(
        help="Vision-transformer operations, fast and known to be right.", no_args_is_help=True, add_completion=False
    )

    @app.command(epilog="Example: saccade info")
    def info():
        """Which backends are alive, why others are not, and what to install; the processor and versions."""
        show_info()

    @app.command(epilog="Example: saccade demo --out report --quick")
    def demo(
        out: str = typer.Option("report", help="Folder for index.html and what it is made from."),
        quick: bool = typer.Option(False, help="Smaller sizes: a few minutes instead of ten."),
        seed: int = typer.Option(0, help="Seed of everything that is drawn."),
    ):
        """Palette, ImageGPT, ViT, CLIP and kernels on real pictures: ends with one page to look at."""
        absent = [name for name in DEMO_NEEDS if importlib.util.find_spec(name) is None]
        if absent:
            sys.exit(f'saccade demo needs {", ".join(absent)}: pip install "saccade[demo]"')
        from saccade.recipes.demo import run

        run(out, quick=quick, seed=seed)

    return app


def show_info():
    """Print what ``saccade info`` shows."""
    from rich.console import Console
    from rich.table import Table

    from saccade import environment

    console = Console()
    table = Table("backend", "arrays", "state", title="Backends", title_justify="left")
    for name, (arrays, reason) in environment.backends().items():
        table.add_row(name, arrays, "[green]alive[/green]" if reason is None else reason)
    console.print(table)
    processor = environment.processor()
    facts = {
        "processor": f"{processor['name']}, {processor['machine']}",
        "features": ", ".join(processor["features"]) or "none of those looked for",
        **{name: str(value) for name, value in environment.threading().items()},
        "versions": ", ".join(f"{name} {version or 'absent'}" for name, version in environment.versions().items()),
    }
    table = Table("", "", title="This machine", title_justify="left", show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)
