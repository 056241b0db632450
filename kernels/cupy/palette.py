"""The palette on CuPy arrays: the same integers as ``saccade.reference.palette``, bit for bit; the kernels are in
``palette.cu``. Centres may lie on the host.
"""

import numpy as np

from saccade.kernels.cupy import device
from saccade.kernels.cupy.device import as_rows

GRID = 4096
_CODES = 1 << 24


def unique_colors(images):
    """The distinct colours of uint8 (…, 3), sorted by 24-bit value, and how often each occurs."""
    histogram, rows = device.zeros((_CODES,), "int64"), as_rows(images)
    _run("count_colors", len(rows), len(rows), rows, histogram, None)
    (codes,) = histogram.nonzero()
    colors = codes[:, None] >> device.upload([16, 8, 0]) & 255
    return colors.astype("uint8"), histogram[codes]


def encode(images, centers):
    """The index of the nearest centre of each pixel, uint8 (…, 3) -> int32 (…), from a table of the colours."""
    colors, _ = unique_colors(images)
    table, rows = device.zeros((_CODES,), "int32"), as_rows(images)
    codes = (colors.astype("int64") << device.upload([16, 8, 0])).sum(1)
    table[codes] = assign(colors, centers)
    tokens = device.empty(images.shape[:-1], "int32")
    _run("encode_colors", len(rows), len(rows), rows, table, tokens.ravel())
    return tokens


def decode(tokens, colors):
    """The rows of ``colors``, which may lie on the host, at tokens."""
    return device.put(colors)[tokens]


def assign(colors, centers):
    """The nearest centre of each colour, (…, 3) -> (…) int32; the lowest index among equals."""
    out = device.empty(colors.shape[:-1], "int32")
    _clusters("assign", out.size, as_rows(colors), None, centers, None, None, out.ravel())
    return out


def update(colors, counts, assignment, centers):
    """Each centre moved to the mean of its pixels, rounded half up to the grid; empty ones stay."""
    sums, out = device.zeros((len(centers), 4), "int64"), device.empty((len(centers), 3), "int32")
    _clusters("add_up_clusters", len(colors), colors, counts, centers, assignment, sums, None)
    _clusters("move_centers", out.size, colors, counts, centers, assignment, sums, out)
    return out


def fit(colors, counts, centers, *, iterations=100):
    """Lloyd's algorithm from ``centers``; the centres and the assignment to them."""
    centers = device.put(centers).astype("int32")
    for _ in range(iterations):
        moved = update(colors, counts, assign(colors, centers), centers)
        if bool((moved == centers).all()):
            break
        centers = moved
    return centers, assign(colors, centers)


def inertia(colors, counts, assignment, centers):
    """The mean squared distance per pixel, in levels²."""
    sums = device.zeros((2,), "int64")
    _clusters("add_up_distances", len(colors), colors, counts, centers, assignment, sums, None)
    high, low = sums.tolist()
    return (high * 2**20 + low) / (int(counts.sum()) * GRID**2)


def initial_centers(colors, counts, k, seed):
    """k-means++ on distinct colours, drawn by NumPy's generator from ``seed``."""
    if len(colors) < k:
        raise ValueError(f"initial_centers: {len(colors)} distinct colours, expected at least {k}")
    rng, chosen = np.random.default_rng(seed), []
    nearest = device.full((len(colors),), 1, "int64")
    for i in range(k):
        chances = (counts * nearest).cumsum()
        number = device.full((1,), rng.integers(int(chances[-1])), "int64")
        drawn = chances.searchsorted(number, side="right")
        if i == 0:
            nearest = device.full((len(colors),), np.iinfo(np.int64).max, "int64")
        _clusters("draw_nearer", len(colors), colors, None, None, drawn, None, nearest)
        chosen.append(drawn)
    rows = [colors[one][0].tolist() for one in chosen]
    return device.upload(rows).astype("int32") * GRID


def _clusters(kernel, threads, colors, counts, centers, assignment, sums, out):
    integers = [None if x is None else device.put(x) for x in (counts, centers, assignment)]
    integers = [x if x is None or x.dtype == np.int32 else x.astype("int64", copy=False) for x in integers]
    k = 0 if centers is None else len(centers)
    _run(kernel, threads, len(colors), k, colors, *integers, sums, out)


def _run(kernel, threads, *values):
    device.run("palette.cu", kernel, np.float32, threads, *values)
