"""``saccade generate``: pictures that an ImageGPT draws, from nothing or from the upper part of given ones."""

from itertools import islice

import numpy as np
import torch
from rich.console import Console

from saccade.files import replacing
from saccade.recipes import saved
from saccade.recipes.cuts import Image, central
from saccade.recipes.data import open_source
from saccade.recipes.palettes import readable, reporting
from saccade.recipes.progress import progress_bar
from saccade.torch import ImageGPT

GREY = 128


def run(
    model, out, *, count=16, complete=None, given=0.5, draws=3, temperature=1.0, top_k=None, top_p=None, seed=0, zoom=4,
    device=None, console=None,
):  # fmt: skip
    """Draw pictures and write them side by side into a .png.

    Args:
        model: file of an autoregressive ImageGPT that a recipe wrote.
        out: the .png. A square of pictures; or rows of what was given, what was drawn and the truth.
        count: how many pictures, or how many of ``complete``.
        complete: a source of pictures to complete, or None to draw from nothing.
        given: the share of rows that the model sees of those.
        draws: completions of each.
        temperature, top_k, top_p: of ``ImageGPT.generate``.
        seed: of what is drawn.
        zoom: the side of a pixel in the .png.
        device, console: as for the other recipes.

    Returns:
        The tokens, (count, side, side) or (draws, count, side, side).
    """
    console, device = console or Console(), torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    drawer, facts = saved.load(model)
    if not isinstance(drawer, ImageGPT) or not drawer.config.causal:
        raise ValueError(f"{model} is no autoregressive ImageGPT, which alone can draw")
    if count < 1 or draws < 1 or not 0 <= given < 1:
        raise ValueError(f"{count=}, {draws=}, {given=}, expected at least 1 of each and a share below 1")
    drawer, palette = drawer.to(device), facts["palette"]
    side = round(drawer.config.length**0.5)
    generator = torch.Generator(device).manual_seed(seed)
    truth = None if complete is None else _tokens(open_source(complete), count, side, palette, console)
    rows = 0 if truth is None else round(given * side)
    prefix = np.empty((count, 0), np.int64) if truth is None else truth[:, :rows].reshape(len(truth), -1)
    prefix = torch.from_numpy(prefix).to(device)
    found = []
    for i in range(1 if truth is None else draws):
        with progress_bar(f"Drawing {i + 1}" if draws > 1 and truth is not None else "Drawing", console) as progress:
            tokens = drawer.generate(
                prefix, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator, progress=progress
            )
        found.append(tokens.cpu().numpy().reshape(-1, side, side))
    if truth is None:
        across = int(np.ceil(np.sqrt(count)))
        pictures = palette.decode(found[0])
        blank = np.full((-count % across, side, side, 3), 255, np.uint8)
        table = np.concatenate([pictures, blank]).reshape(-1, across, side, side, 3)
    else:
        seen = palette.decode(truth)
        seen[:, rows:] = GREY
        table = np.stack([seen, *map(palette.decode, found), palette.decode(truth)])
    with replacing(out) as file:
        Image.fromarray(side_by_side(table, zoom)).save(file, "png")
    console.print(f"{out}: {len(table)} rows of {table.shape[1]} pictures", soft_wrap=True)
    return found[0] if truth is None else np.stack(found)


def side_by_side(table, zoom, gap=2):
    """A table of pictures (rows, columns, h, w, 3) as one picture, each pixel ``zoom`` wide, with white between."""
    larger = table.repeat(zoom, 2).repeat(zoom, 3)
    larger = np.pad(larger, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows, columns, h, w, _ = larger.shape
    whole = larger.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)
    return np.pad(whole, ((gap, 0), (gap, 0), (0, 0)), constant_values=255)


def _tokens(source, count, side, palette, console):
    samples = islice(readable(source, source.in_order(), reporting(console)), count)
    pictures = [central(sample.picture, side) for sample in samples]
    if not pictures:
        raise ValueError(f"{source.path}: none of its pictures can be read")
    return palette.encode(np.stack(pictures)).astype(np.int64)
