"""Section 1 of the demonstration: 512 colours for all photographs."""

import numpy as np

from saccade.palette import Palette
from saccade.recipes import report
from saccade.recipes.photographs import photographs


def section(quick, seed, progress):
    """(facts, HTML)."""
    from matplotlib import pyplot

    pictures = photographs(96 if quick else 192)
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures.values()])
    palette = Palette.fit(pixels, 512, iterations=10 if quick else 30, seed=seed)
    plot, axes = pyplot.subplots(2, 5, figsize=(13, 5.2))
    errors = {}
    for axis, (name, picture) in zip(axes.T.flat, progress(list(pictures.items())), strict=True):
        coded = palette.decode(palette.encode(picture))
        errors[name] = float(np.abs(coded.astype(int) - picture).mean())
        half = picture.shape[0] // 2 if picture.shape[1] < picture.shape[0] else picture.shape[1] // 2
        both = np.concatenate([picture[:, :half], coded[:, half:]], 1)
        axis.imshow(both)
        axis.axvline(half - 0.5, color="white", linewidth=1)
        axis.set_title(f"{name}: off by {errors[name]:.1f}", fontsize=9)
        axis.axis("off")
    swatch, axis = pyplot.subplots(figsize=(13, 1.1))
    order = np.lexsort(palette.centers.T)
    axis.imshow(np.round(palette.centers[order]).astype(np.uint8).reshape(8, 64, 3))
    axis.axis("off")
    facts = {"colours": 512, "mean squared error per pixel": palette.inertia, "pixels": len(pixels)}
    text = (
        f"A picture's 24-bit colours are replaced by the nearest of 512: one number below 512, 9 bits, per pixel. The "
        f"palette is k-means over {len(pixels):,} pixels of {len(pictures)} photographs, in exact integer arithmetic. "
        f"Mean squared distance: {palette.inertia:.1f} levels² per pixel."
    )
    caption = "Left of the white line the original, right of it 9-bit colours; mean error per channel in levels."
    return facts, report.paragraph(text) + report.figure(plot, caption) + report.figure(swatch, "The 512 colours.")
