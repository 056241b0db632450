"""The recipes' commands: options, and what to install; a recipe is imported when its command runs."""

from pathlib import Path

import typer

from saccade.recipes.console import one_sentence

SOURCE = "A folder of pictures, a .csv, .tsv or .jsonl of captions, a .npy or .npz, or tar shards."
SEED = "Seed of everything that is drawn."


def add(app):
    """Add the recipes' commands to the application."""
    app.add_typer(_palette(), name="palette")


def _group(text):
    return typer.Typer(help=text, no_args_is_help=True)


def _palette():
    group = _group("Fit a palette of colours to pictures; turn pictures into tokens, and back.")

    @group.command(epilog="Example: saccade palette fit photos --out kmeans_centers.npy --colors 512")
    def fit(
        source: str = typer.Argument(help=SOURCE),
        out: Path = typer.Option("kmeans_centers.npy", help="The file to write, in ImageGPT's own form."),
        colors: int = typer.Option(512, help="How many colours."),
        size: int = typer.Option(None, help="Cut and resize pictures to this side first; every pixel if not given."),
        iterations: int = typer.Option(100, help="At most so many steps of k-means."),
        seed: int = typer.Option(0, help=SEED),
    ):
        """Fit a palette to all pixels, exactly: the same on every machine."""
        with one_sentence("saccade palette fit"):
            from saccade.recipes import palettes

            palettes.fit(source, out, colors=colors, side=size, iterations=iterations, seed=seed)

    @group.command(epilog="Example: saccade palette encode photos --palette kmeans_centers.npy --out tokens --size 32")
    def encode(
        folder: Path = typer.Argument(help="Of pictures."),
        palette: Path = typer.Option("kmeans_centers.npy", help="What palette fit wrote."),
        out: Path = typer.Option("tokens", help="Folder for the tokens: a.jpg becomes a.jpg.npy."),
        size: int = typer.Option(None, help="Cut and resize pictures to this side first."),
    ):
        """Replace every pixel by the number of the nearest colour."""
        with one_sentence("saccade palette encode"):
            from saccade.recipes import palettes

            palettes.encode(folder, palette, out, side=size)

    @group.command(epilog="Example: saccade palette decode tokens --palette kmeans_centers.npy --out decoded")
    def decode(
        folder: Path = typer.Argument(help="Of .npy files of tokens."),
        palette: Path = typer.Option("kmeans_centers.npy", help="What palette fit wrote."),
        out: Path = typer.Option("decoded", help="Folder for the pictures: a.jpg.npy becomes a.jpg.png."),
    ):
        """Turn tokens into pictures."""
        with one_sentence("saccade palette decode"):
            from saccade.recipes import palettes

            palettes.decode(folder, palette, out)

    return group
