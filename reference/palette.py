"""The palette of ImageGPT: k-means of colours, exactly.

Pixels are counted as distinct 24-bit colours. Centres are int32 in units of 1/4096 of a level (``GRID``), 0 … 255·4096,
so every squared distance is an exact integer below 2⁴³ and every sum an exact int64: results are the same bits on
every machine, in any order, with any number of threads. Ties go to the lowest index; an empty cluster keeps its place.

Lloyd, "Least squares quantization in PCM", 1982; the palette: Chen et al. 2020, section 3.2.
"""

import numpy as np

GRID = 4096


def unique_colors(images):
    """The distinct colours of uint8 (…, 3), as (u, 3) sorted by 24-bit value, and how often each occurs, (u,) int64."""
    rgb = np.asarray(images).reshape(-1, 3).astype(np.int64)
    codes, counts = np.unique(rgb @ np.array([65536, 256, 1]), return_counts=True)
    colors = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1).astype(np.uint8)
    return colors, counts.astype(np.int64)


def squared_distances(colors, centers):
    """sum_c (4096 color_c − center_c)², exact int64, (…, 3) x (k, 3) -> (…, k)."""
    difference = GRID * np.asarray(colors, np.int64)[..., None, :] - np.asarray(centers, np.int64)
    return (difference**2).sum(-1)


def assign(colors, centers):
    """The nearest centre of each colour, (…, 3) -> (…) int32; the lowest index among equals."""
    return squared_distances(colors, centers).argmin(-1).astype(np.int32)


def update(colors, counts, assignment, centers):
    """Each centre moved to the mean of its pixels, rounded half up to the grid; empty ones stay. -> (k, 3) int32."""
    k = len(centers)
    totals, weights = np.zeros((k, 3), np.int64), np.zeros(k, np.int64)
    np.add.at(weights, assignment, counts)
    np.add.at(totals, assignment, counts[:, None] * colors.astype(np.int64))
    filled = np.maximum(weights, 1)[:, None]
    means = (2 * GRID * totals + filled) // (2 * filled)
    return np.where(weights[:, None] > 0, means, centers).astype(np.int32)


def fit(colors, counts, centers, *, iterations=100):
    """Lloyd's algorithm from ``centers``: assign, update, until nothing moves or ``iterations`` are done.

    Returns the centres and the assignment to them.
    """
    centers = np.array(centers, np.int32)
    for _ in range(iterations):
        moved = update(colors, counts, assign(colors, centers), centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers, assign(colors, centers)


def inertia(colors, counts, assignment, centers):
    """The mean squared distance per pixel, in levels²: exact integers until the last division."""
    difference = GRID * colors.astype(np.int64) - np.asarray(centers, np.int64)[assignment]
    distances = (difference**2).sum(-1)
    # the sum over all pixels may exceed int64: high and low halves are summed apart
    high, low = (counts * (distances >> 20)).sum(), (counts * (distances & (2**20 - 1))).sum()
    return (int(high) * 2**20 + int(low)) / (int(counts.sum()) * GRID**2)


def initial_centers(colors, counts, k, seed):
    """k-means++ on distinct colours, drawn by NumPy's generator from ``seed``. -> (k, 3) int32.

    The first colour is drawn by its count, each next one by count times squared distance to the nearest so far.
    Arthur and Vassilvitskii, "k-means++", 2007.
    """
    if len(colors) < k:
        raise ValueError(f"initial_centers: {len(colors)} distinct colours, expected at least {k}")
    rng = np.random.default_rng(seed)
    chosen = np.empty((k, 3), np.int32)
    nearest = np.ones(len(colors), np.int64)
    for i in range(k):
        # levels² rather than grid units keep these products below 2⁶³ for up to 10¹³ pixels
        chances = np.cumsum(counts * nearest)
        drawn = np.searchsorted(chances, rng.integers(chances[-1]), side="right")
        chosen[i] = GRID * colors[drawn].astype(np.int32)
        distance = ((colors.astype(np.int64) - colors[drawn].astype(np.int64)) ** 2).sum(1)
        nearest = distance if i == 0 else np.minimum(nearest, distance)
    return chosen
