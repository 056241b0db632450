"""Resizing pictures as Pillow does: the definition, in whole numbers.

An output pixel is the sum of input pixels times weights, along rows and along columns, each time rounded to uint8.
Where the picture shrinks the filter is stretched, so that every input pixel counts. Weights are multiples of 2⁻²².
It is ``Image.resize`` of Pillow 13 (``Resample.c``), bit by bit; earlier ones never begin with columns.
"""

import numpy as np

BITS = 22
HALF = 1 << (BITS - 1)


def _bilinear(x):
    return np.maximum(1 - np.abs(x), 0)


def _bicubic(x):
    """Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, with a = −1/2."""
    x, a = np.abs(x), -0.5
    return np.where(x < 1, ((a + 2) * x - (a + 3)) * x * x + 1, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0))


FILTERS = {"bilinear": (_bilinear, 1.0), "bicubic": (_bicubic, 2.0)}  # and how far each reaches


def resize_weights(old, new, method):
    """From ``old`` pixels to ``new``: (the first that each is made of, how many they are, their weights in int32)."""
    shape, reach = FILTERS[method]
    scale = old / new
    stretch = max(scale, 1.0)
    centers = (np.arange(new) + 0.5) * scale
    first = np.maximum((centers - reach * stretch + 0.5).astype(np.int64), 0)
    counts = np.minimum((centers + reach * stretch + 0.5).astype(np.int64), old) - first
    taps = np.arange(counts.max())
    weights = shape((taps + first[:, None] - centers[:, None] + 0.5) * (1 / stretch))
    weights = np.where(taps < counts[:, None], weights, 0)
    weights = weights / np.add.accumulate(weights, axis=1)[:, -1:]
    return first, counts, (weights * (1 << BITS) + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)


def resize(images, height, width, *, method="bicubic"):
    """uint8 b h w c -> b height width c.

    Args:
        images: of any size.
        height, width: of the result.
        method: "bicubic" or "bilinear", as Pillow calls them.
    """
    fewer_rows, fewer_columns = images.shape[1] - height, images.shape[2] - width
    steps = [(2, width), (1, height)]  # axes and their new lengths
    if fewer_rows > max(0, 2 * fewer_columns):
        steps.reverse()
    for axis, new in steps:
        images = _along(images, axis, new, method)
    return images


def _along(images, axis, new, method):
    first, counts, weights = resize_weights(images.shape[axis], new, method)
    out = np.empty((*images.shape[:axis], new, *images.shape[axis + 1 :]), np.uint8)
    for i in range(new):
        some = np.moveaxis(images, axis, -1)[..., first[i] : first[i] + counts[i]]
        sums = HALF + some.astype(np.int64) @ weights[i, : counts[i]].astype(np.int64)
        np.moveaxis(out, axis, 0)[i] = np.clip(sums >> BITS, 0, 255)
    return out
