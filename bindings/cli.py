"""The command line: one function for each command; the recipes' are in ``recipes.commands``."""

import importlib.util
import json
import sys
import tomllib
from pathlib import Path

from saccade.recipes.progress import one_sentence

DEMO_NEEDS = ("torch", "skimage", "sklearn", "scipy", "PIL", "matplotlib", "regex", "hypothesis")


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

    @app.command(epilog="Example: saccade check mypackage.kernels:attention --operation attention --arrays torch")
    def check(
        function: str = typer.Argument(help="What to judge: module:name, or a known peer such as torch-sdpa-math."),
        operation: str = typer.Option(None, help="What it claims to be, such as attention; a peer's is known."),
        arrays: str = typer.Option(None, help="Whose arrays it takes: numpy (if not given), torch, cupy or jax."),
        device: str = typer.Option(None, help="A torch device, such as cuda."),
        dtype: list[str] = typer.Option(None, help="A dtype to judge, may be repeated; those claimed by default."),
        gradients: bool = typer.Option(True, help="Judge gradients too, where they can be had."),
        claims: Path = typer.Option(None, help="TOML file of what it promises; over a peer's own claims."),
        budget: str = typer.Option("quick", help="quick (about 20 s), normal (2 min), thorough (20 min), or seconds."),
        seed: int = typer.Option(0, help="Seed of everything that is drawn."),
        only: str = typer.Option(None, help="Judge this law alone."),
        batch_invariant: bool = typer.Option(False, help="Require the same bits whatever else is in the batch."),
        time_limit: float = typer.Option(30.0, help="Seconds a call may take."),
        json_file: Path = typer.Option(None, "--json", help="Write the whole report to this file."),
        script: Path = typer.Option(None, help="Write a program that shows the first failure without saccade."),
    ):
        """Is this function right? Exit status 0 if it passes, 1 if it fails, 2 if too little could be judged."""
        if importlib.util.find_spec("hypothesis") is None:
            sys.exit('saccade check needs hypothesis: pip install "saccade[testing]"')
        from saccade.testing.console import run_check

        table = {"batch_invariant": True} if batch_invariant else {}
        seconds = float(budget) if budget.replace(".", "", 1).isdigit() else budget
        options = dict(arrays=arrays, device=device, dtypes=dtype or None, gradients=gradients, budget=seconds)
        try:
            table = table if claims is None else table | tomllib.loads(claims.read_text())
            report = run_check(
                function, operation, **options, seed=seed, only=only, claims=table, call_seconds=time_limit
            )
        except (OSError, ValueError) as error:
            sys.exit(f"saccade check: {error}")
        if json_file is not None:
            _write(json_file, json.dumps(report, indent=1))
        if script is not None and report["failures"]:
            _write(script, report["failures"][0]["script"])
        sys.exit({"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}[report["verdict"]])

    @app.command(
        epilog="Example: saccade bench attention --providers torch-sdpa,saccade --suite vit --out bench-report"
    )
    def bench(
        operation: str = typer.Argument(None, help="Of a suite's cases only those of these operations, by commas."),
        providers: str = typer.Option(
            None, help="Names or module:function, by commas; the first of an operation is the base."
        ),
        suite: str = typer.Option(
            None, help="deck (if nothing is given), vit, clip, igpt, palette, whole-model, growth, bars, or a .toml."
        ),
        sizes: str = typer.Option(None, help="One case instead of a suite: the operation's sizes, by commas."),
        causal: bool = typer.Option(False, help="With --sizes: attention under a causal mask."),
        variant: str = typer.Option(None, help='With --sizes, of "model": whose forward pass, as vit-B/16.'),
        dtype: list[str] = typer.Option(["float32"], help="May be repeated."),
        gradients: bool = typer.Option(False, help="Time a forward pass with its gradients."),
        seconds: float = typer.Option(1.0, help="Of timing for a row, at least."),
        processes: int = typer.Option(3, min=1, help="In which every row is timed, one after the other."),
        device: str = typer.Option("cpu", help="cpu, or cuda: torch's and CuPy's GPU."),
        graph: bool = typer.Option(False, help="On a GPU: time a captured graph of a call, without its launches."),
        jobs: int = typer.Option(1, min=1, help="On a GPU: rows that are prepared at a time; one alone is timed."),
        minutes: float = typer.Option(None, help="After which no more rows are begun."),
        threads: int = typer.Option(None, help="For every provider; all processors if not given."),
        seed: int = typer.Option(0, help="Seed of everything that is drawn."),
        out: Path = typer.Option(None, help="Folder for index.html, table.md, summary.md and results.json."),
        json_file: Path = typer.Option(None, "--json", help="Write every sample here; an interrupted run goes on."),
        base: Path = typer.Option(None, help="Results of an earlier run: exit status 1 if something is slower now."),
        replay: Path = typer.Option(None, help="Show, write and compare these results instead of running."),
    ):
        """How fast is what is right? Every provider is judged, then timed in turn with the first."""
        absent = [name for name in ("hypothesis", "matplotlib") if importlib.util.find_spec(name) is None]
        if absent:
            sys.exit(f'saccade bench needs {", ".join(absent)}: pip install "saccade[cli,testing]"')
        from saccade.bench import console

        files = {"out": out, "json_file": json_file, "base": base}
        try:
            if replay is not None:
                sys.exit(console.present(console.read(replay), **files))
            names = providers.split(",") if providers else None
            options = {
                "seconds": seconds, "processes": processes, "threads": threads, "seed": seed, "device": device,
                "graph": graph, "jobs": jobs, "minutes": minutes,
            }  # fmt: skip
            if suite == "bars":
                sys.exit(console.run_bars(operation, names, **files, **options))
            options_of_case = {"causal": True} if causal else {}
            options_of_case |= {"variant": variant} if variant else {}
            cases = _cases(operation, suite, sizes, options_of_case, dtype, gradients)
            sys.exit(console.run_bench(cases, names, **files, **options))
        except (OSError, ValueError) as error:
            sys.exit(f"saccade bench: {str(error).removeprefix('bench: ')}")

    @app.command(epilog="Example: saccade tune --dtype bfloat16 --tokens 197 --width 64")
    def tune(
        dtype: str = typer.Option("bfloat16", help="float16, bfloat16, float32 or float64."),
        tokens: int = typer.Option(197, min=1, help="Queries and keys; what is found holds up to a power of two."),
        width: int = typer.Option(64, min=1, help="Numbers in a row of a head."),
        causal: bool = typer.Option(False, help="Attention under a causal mask."),
        again: bool = typer.Option(False, help="Measure what an earlier run has found, too."),
    ):
        """Measure tiles of Triton's attention on this machine's GPU, and keep the fastest for it."""
        if importlib.util.find_spec("triton") is None:
            sys.exit('saccade tune needs triton: pip install "saccade[cuda]"')
        from saccade.bench import console

        try:
            console.run_tune(dtype, tokens, width, causal=causal, again=again)
        except (OSError, ValueError) as error:
            sys.exit(f"saccade tune: {str(error).removeprefix('bench: ')}")

    @app.command(epilog="Example: saccade models")
    def models(json_file: Path = typer.Option(None, "--json", help="Write the table to this file too.")):
        """Every variant of every model: parameters, and the tokens, GFLOPs and activations of one picture."""
        show_models()
        if json_file is not None:
            from saccade.models.variants import table

            _write(json_file, json.dumps(table(), indent=1))

    @app.command(epilog="Example: saccade convert hf:openai/clip-vit-base-patch32 clip --layout open_clip")
    def convert(
        source: str = typer.Argument(help="A file or folder, or hf:owner/name of the Hugging Face Hub."),
        out: Path = typer.Argument(help="A .safetensors file, or a folder for the file and the library's config."),
        layout: str = typer.Option("saccade", help="hf, timm, open_clip or saccade."),
        variant: str = typer.Option(None, help="A name of saccade models, for what the file does not tell."),
    ):
        """Write a checkpoint in another library's layout, every number with the bits that it had."""
        if importlib.util.find_spec("safetensors") is None:
            sys.exit('saccade convert needs safetensors: pip install "saccade[models]"')
        from saccade.weights.files import convert

        try:
            typer.echo(f"wrote {convert(source, out, layout, variant=variant)}")
        except (OSError, ValueError) as error:
            sys.exit(f"saccade convert: {error}")

    picture_commands(app, typer)
    from saccade.recipes import commands

    commands.add(app)
    return app


def picture_commands(app, typer):
    """Add ``saccade classify``, ``embed`` and ``search``."""
    model_help = "A checkpoint: a file or folder, or hf:owner/name of the Hugging Face Hub."
    variant_help = "A name of saccade models, for what the checkpoint does not tell."

    @app.command(epilog="Example: saccade classify cat.jpg --model hf:google/vit-base-patch16-224")
    def classify(
        picture: Path = typer.Argument(help="Of any format that Pillow reads."),
        model: str = typer.Option(help=model_help),
        variant: str = typer.Option(None, help=variant_help),
        labels: str = typer.Option(
            None, help="By commas, or a file with one a line: a CLIP's classes, or a ViT's names."
        ),
        top: int = typer.Option(5, help="How many labels to show."),
        out: Path = typer.Option(None, help="Draw the picture and its labels in this PNG file."),
    ):
        """The likeliest classes of a picture, by a ViT's classifier or by a CLIP's texts."""
        with one_sentence("saccade classify"):
            from saccade.recipes import console

            console.classify(picture, model, variant, labels, top, out)

    @app.command(epilog="Example: saccade embed pictures --model hf:openai/clip-vit-base-patch32 --out embeddings.npz")
    def embed(
        folder: Path = typer.Argument(help="Of pictures, with those below it."),
        model: str = typer.Option(help=model_help),
        out: Path = typer.Option(help="A .npz file; what it already has is not computed again."),
        variant: str = typer.Option(None, help=variant_help),
    ):
        """The embeddings of all pictures in a folder."""
        with one_sentence("saccade embed"):
            from saccade.recipes import console

            console.embed(folder, model, variant, out)

    @app.command(epilog='Example: saccade search embeddings.npz "a red bus"')
    def search(
        embeddings: Path = typer.Argument(help="What saccade embed wrote."),
        text: str = typer.Argument(help="What to look for."),
        model: str = typer.Option(None, help="The checkpoint, if it is no longer where it was."),
        variant: str = typer.Option(None, help=variant_help),
        top: int = typer.Option(12, help="How many pictures to show."),
        sheet: Path = typer.Option(Path("contact-sheet.png"), help="Draw them in this PNG file."),
    ):
        """The pictures nearest to a text, as a list and a contact sheet."""
        with one_sentence("saccade search"):
            from saccade.recipes import console

            console.search(embeddings, text, model, variant, top, sheet)


def _cases(operation, suite, sizes, options, dtypes, gradients):
    from dataclasses import replace

    from saccade.bench import cases

    known = [str(one) for one in cases.DTYPES]
    for dtype in dtypes:
        if dtype not in known:
            raise ValueError(f"{dtype=}, expected one of {', '.join(known)}")
    if sizes is None:
        return cases.suite(suite or "deck", operation, dtypes, gradients)
    numbers = [int(n) if n.strip().isdigit() else 0 for n in sizes.split(",")]
    one = cases.case(operation, *numbers, **options)
    gradients = gradients and operation not in cases.FORWARD_ALONE
    return [replace(one, dtype=dtype, gradients=gradients) for dtype in dtypes]


def _write(path, text):
    from saccade.files import replacing

    with replacing(path) as file:
        file.write(text.encode())


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


def show_models():
    """Print what ``saccade models`` shows."""
    from rich.console import Console
    from rich.table import Table

    from saccade.models.variants import table

    shown = Table("variant", title="Models, and what one picture costs them", title_justify="left")
    for name in ("parameters", "tokens", "GFLOPs", "activations"):
        shown.add_column(name, justify="right")
    for row in table():
        numbers = f"{row['parameters']:,}", str(row["tokens"]), f"{row['flops'] / 1e9:.1f}"
        shown.add_row(row["name"], *numbers, f"{row['activations'] / 2**20:.0f} MiB")
    shown.caption = (
        "Multiply-adds count twice. Activations: what the blocks keep for gradients in float32. "
        "Of a CLIP or SigLIP, tokens and costs are the image tower's."
    )
    Console().print(shown)
