"""The palette on CPUs: the same integers as ``saccade.reference.palette``, bit for bit.

Lloyd's steps go through colours cell by cell of the cube (``palette_cells``): which centres a cell's colours can be
nearest to is found anew in each step, so that nothing is carried over, and nothing depends on where a thread begins.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.palette_cells import COARSE, FINE, GRID, SPREAD, assign_cells, columns, fill_table, group
from saccade.kernels.numba.palette_counts import count_colors, counted_colors, unique_colors
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for

__all__ = [
    "assign", "count_colors", "counted_colors", "decode", "encode", "fit", "inertia", "initial_centers", "table",
    "unique_colors", "update",
]  # fmt: skip

_GRAIN = 4096  # colours
_PARTS = 16


def assign(colors, centers):
    """The nearest centre of each colour, (…, 3) -> (…) int32; the lowest index among equals."""
    flat = np.ascontiguousarray(colors).reshape(-1, 3)
    assignment = np.empty(len(flat), np.int32)
    grouped = _Grouped(flat)
    assignment[grouped.order] = grouped.assign(centers)
    return assignment.reshape(np.shape(colors)[:-1])


def table(centers):
    """The nearest of at most 65,536 centres for every colour: what ``encode`` looks up."""
    found = np.empty(1 << 24, np.uint16)
    parallel_for(fill_table, COARSE, 1, len(centers), columns(centers), SPREAD, found)
    return found


def encode(images, table):
    """The index of the nearest centre of each pixel, uint8 (…, 3) -> int32 (…), from their ``table``."""
    flat = np.ascontiguousarray(images).reshape(-1, 3)
    tokens = np.empty(len(flat), np.int32)
    parallel_for(_look_up, -(-len(flat) // _GRAIN), 4, flat, SPREAD, table, tokens)
    return tokens.reshape(images.shape[:-1])


def decode(tokens, colors):
    """The rows of ``colors`` at tokens."""
    return colors[tokens]


def update(colors, counts, assignment, centers):
    """Each centre moved to the mean of its pixels, rounded half up to the grid; empty ones stay."""
    return _moved(np.ascontiguousarray(np.asarray(colors).T), counts, assignment, np.asarray(centers, np.int32))


def fit(colors, counts, centers, *, iterations=100):
    """Lloyd's algorithm from ``centers``; the centres and the assignment to them."""
    centers, grouped = np.array(centers, np.int32), _Grouped(np.ascontiguousarray(colors))
    counts = counts[grouped.order]
    for _ in range(iterations):
        moved = _moved(grouped.planes, counts, grouped.assign(centers), centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    assignment = np.empty(len(colors), np.int32)
    assignment[grouped.order] = grouped.assign(centers)
    return centers, assignment


class _Grouped:
    """Colours, uint8 (n, 3), sorted by cells of the cube: in ``planes``, (3, n), from places ``order``."""

    def __init__(self, colors):
        self.starts = np.zeros(COARSE * FINE + 1, np.int64)
        self.order, self.planes = np.empty(len(colors), np.int64), np.empty((3, len(colors)), np.uint8)
        group(colors, self.starts, self.order, self.planes)

    def assign(self, centers):
        """The nearest centre of each, in this order."""
        assignment = np.empty(len(self.order), np.int32)
        runs = max(1, min(COARSE, len(self.order) // _GRAIN))
        cells = self.starts, self.planes, len(centers), columns(centers)
        parallel_for(assign_cells, COARSE, COARSE // runs, *cells, assignment)
        return assignment


def _moved(planes, counts, assignment, centers):
    """``update`` of colours (3, n): parts of them are added up by themselves, for threads to share."""
    n, k = planes.shape[1], len(centers)
    sums = np.zeros((max(1, min(_PARTS, n // max(4 * k, _GRAIN))), k, 4), np.int64)
    parallel_for(_add_up, len(sums), 1, planes, counts, assignment, sums)
    sums = sums.sum(0)
    totals, weights = sums[:, :3], sums[:, 3:]
    filled = np.maximum(weights, 1)
    return np.where(weights > 0, (2 * GRID * totals + filled) // (2 * filled), centers).astype(np.int32)


def inertia(colors, counts, assignment, centers):
    """The mean squared distance per pixel, in levels²."""
    high, low = _inertia(np.ascontiguousarray(colors), counts, assignment, np.asarray(centers, np.int64))
    return (int(high) * 2**20 + int(low)) / (int(counts.sum()) * GRID**2)


def initial_centers(colors, counts, k, seed):
    """k-means++ on distinct colours, drawn by NumPy's generator from ``seed``."""
    if len(colors) < k:
        raise ValueError(f"initial_centers: {len(colors)} distinct colours, expected at least {k}")
    rng = np.random.default_rng(seed)
    chosen = np.empty((k, 3), np.int32)
    nearest = np.ones(len(colors), np.int64)
    for i in range(k):
        chances = np.cumsum(counts * nearest)
        drawn = np.searchsorted(chances, rng.integers(chances[-1]), side="right")
        chosen[i] = GRID * colors[drawn].astype(np.int32)
        _draw_nearer(colors, colors[drawn], nearest, i == 0)
    return chosen


@jit
def _look_up(work, rgb, spread, table, tokens):
    n = rgb.shape[0]
    for part in shared(offer(work)):
        for i in range(part * _GRAIN, min((part + 1) * _GRAIN, n)):
            tokens[i] = table[spread[0, rgb[i, 0]] | spread[1, rgb[i, 1]] | spread[2, rgb[i, 2]]]


@jit
def _add_up(work, planes, counts, assignment, sums):
    """sums[part] = for each centre what its pixels' levels and their number add up to."""
    n, parts = planes.shape[1], sums.shape[0]
    for part in shared(offer(work)):
        own = sums[part]
        for i in range(n * part // parts, n * (part + 1) // parts):
            j, count = assignment[i], counts[i]
            own[j, 3] += count
            for c in range(3):
                own[j, c] += count * np.int64(planes[c, i])


@jit
def _inertia(colors, counts, assignment, centers):
    high, low = np.int64(0), np.int64(0)
    for i in range(colors.shape[0]):
        distance = np.int64(0)
        for c in range(3):
            difference = GRID * np.int64(colors[i, c]) - centers[assignment[i], c]
            distance += difference * difference
        high += counts[i] * (distance >> 20)
        low += counts[i] * (distance & 0xFFFFF)
    return high, low


@jit
def _draw_nearer(colors, drawn, nearest, first):
    for i in range(colors.shape[0]):
        distance = np.int64(0)
        for c in range(3):
            difference = np.int64(colors[i, c]) - np.int64(drawn[c])
            distance += difference * difference
        nearest[i] = distance if first else min(nearest[i], distance)
