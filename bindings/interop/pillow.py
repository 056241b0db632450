"""Pillow's ``Image.quantize`` by exact k-means: a picture of at most 256 colours, mode "P".

saccade.interop.pillow.quantize(Image.open("photo.jpg"), 64).save("photo.png")
"""

import numpy as np
from PIL import Image

from saccade.palette import Palette


def quantize(image, colors=256, *, iterations=100, seed=0):
    """The picture in the palette of ``colors`` that k-means finds for its pixels, mode "P".

    Colours of a file are whole levels: the centres are rounded, and every pixel takes the nearest of what they became.
    A picture with no more than ``colors`` colours keeps them all.

    Args:
        image: a Pillow picture; all modes but RGB are converted to it first, which drops transparency.
        colors: from 1 to 256.
        iterations, seed: as in ``saccade.Palette.fit``.

    Raises:
        ValueError: ``colors`` is no such number, or the picture has no pixels.
        TypeError: ``image`` is no Pillow picture.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"quantize: {type(image).__name__}, expected a PIL.Image.Image")
    if isinstance(colors, bool) or not isinstance(colors, int) or not 1 <= colors <= 256:
        raise ValueError(f"quantize: {colors=}, expected an integer from 1 to 256")
    pixels = np.asarray(image.convert("RGB"))
    if not pixels.size:
        raise ValueError(f"quantize: {image.size=}, expected at least one pixel")
    from saccade.kernels.numba.palette import unique_colors

    levels, _ = unique_colors(pixels)
    if len(levels) > colors:
        fitted = Palette.fit(pixels, colors, iterations=iterations, seed=seed)
        levels = np.unique(np.round(fitted.centers), axis=0)
    made = Image.fromarray(Palette(levels).encode(pixels).astype(np.uint8))
    made.putpalette(levels.astype(np.uint8).tobytes())
    return made
