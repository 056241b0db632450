"""``saccade palette``: fit a palette to pictures, and turn folders of pictures into tokens and back."""

import contextlib
import itertools
import os
from pathlib import Path

import numpy as np
from rich.console import Console

from saccade.files import replacing
from saccade.palette import Palette, count_colors
from saccade.recipes.cuts import Broken, Image, central
from saccade.recipes.data import Folder, Skipped, open_source
from saccade.recipes.progress import progress_bar


def fit(path, out, *, colors=512, side=None, iterations=100, seed=0, console=None):
    """Fit a palette to all pictures of a source and write it to ``out``, in the form of ``kmeans_centers.npy``.

    Under ``torchrun`` each rank counts its share of the pictures; their histograms add to that of all, bit for bit.

    Args:
        path: as ``saccade.recipes.data.open_source`` takes it.
        out: the file.
        colors: how many.
        side: cut the middle of each picture and resize it so, as the model will see it; None counts every pixel.
        iterations, seed: of ``Palette.fit``.
        console: a rich console.

    Returns:
        (the palette, how many pictures were skipped).
    """
    console = console or Console()
    with _ranks() as ranks:
        if ranks is not None and ranks.rank:
            console = Console(quiet=True)
        histogram, skipped = _counted(open_source(path), side, ranks, console)
        if not histogram.any():
            raise ValueError(f"{path}: none of its pictures can be read")
        palette = Palette.fit_histogram(histogram, colors, iterations=iterations, seed=seed)
        if ranks is None or ranks.rank == 0:
            palette.save(out)
    console.print(
        f"{out}: {colors} colours for {histogram.sum():,} pixels, mean squared distance {palette.inertia:.1f} levels² "
        f"per pixel; {skipped} pictures skipped",
        soft_wrap=True,
    )
    return palette, skipped


def _counted(source, side, ranks, console):
    """(the histogram of all ranks, how many pictures were skipped)."""
    jobs, skipped, histogram = source.in_order(), reporting(console), np.zeros(1 << 24, np.int64)
    if ranks is not None:
        jobs = itertools.islice(jobs, ranks.rank, None, ranks.count)
    with progress_bar("Counting colours", console) as progress:
        for sample in readable(source, progress(jobs), skipped):
            count_colors(sample.picture if side is None else central(sample.picture, side), histogram)
    return (histogram, skipped.count) if ranks is None else ranks.sums(histogram, skipped.count)


def _ranks():
    """The processes of ``torchrun``; None, and no torch, where there are none."""
    if "WORLD_SIZE" not in os.environ:
        return contextlib.nullcontext(None)
    from saccade.recipes.ranks import joined

    return joined("cpu")


def encode(path, palette, out, *, side=None, console=None):
    """Write the tokens of each picture below a folder, ``cat/a.jpg`` as ``cat/a.jpg.npy``: uint16 (h, w).

    Args: as for ``fit``; ``palette`` is the file that ``fit`` wrote. Returns how many pictures were skipped.
    """
    console = console or Console()
    palette, source, skipped, out = Palette.load(palette), Folder(path), reporting(console), Path(out)
    with progress_bar("Encoding", console) as progress:
        for sample in readable(source, progress(source.in_order()), skipped):
            tokens = palette.encode(sample.picture if side is None else central(sample.picture, side))
            with _made(out / f"{sample.name}.npy") as file:
                np.save(file, tokens.astype(np.uint16), allow_pickle=False)
    console.print(f"{out}: {len(source) - skipped.count} pictures, {skipped.count} skipped", soft_wrap=True)
    return skipped.count


def decode(path, palette, out, *, console=None):
    """Write the picture of each file of tokens below a folder, ``cat/a.jpg.npy`` as ``cat/a.jpg.png``.

    Files that hold no tokens of the palette are skipped. Returns how many.
    """
    console = console or Console()
    palette, skipped, path, out = Palette.load(palette), reporting(console), Path(path), Path(out)
    files = sorted(path.rglob("*.npy"))
    if not files:
        raise ValueError(f"{path} holds no .npy files of tokens")
    with progress_bar("Decoding", console) as progress:
        for name in progress(files):
            try:
                picture = palette.decode(np.load(name, allow_pickle=False))
                if picture.ndim != 3:
                    raise ValueError(f"tokens {picture.shape[:-1]}, expected (h, w)")
            except (ValueError, TypeError, EOFError, OSError) as error:
                skipped.add(Broken(str(name), str(error)))
                continue
            with _made(out / name.relative_to(path).with_suffix(".png")) as file:
                Image.fromarray(picture).save(file, "png")
    console.print(f"{out}: {len(files) - skipped.count} pictures, {skipped.count} skipped", soft_wrap=True)
    return skipped.count


def reporting(console):
    """A ``Skipped`` that says on the console what is skipped and why."""
    return Skipped(lambda name, reason: console.print(f"skipped {name}: {reason}", markup=False, soft_wrap=True))


def readable(source, jobs, skipped):
    """The samples of a source that can be read."""
    for job in jobs:
        try:
            yield source.read(job)
        except Broken as broken:
            skipped.add(broken)


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return replacing(path)
