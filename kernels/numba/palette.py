"""The palette on CPUs: the same integers as ``saccade.reference.palette``, bit for bit.

A colour's distances are first computed in float32, where processors have vectors; differences are exact there, and
three roundings move a sum of squares by less than 2⁻²² of itself. Centres that this cannot tell from the nearest are
compared in int64. Nothing is carried over from one colour to the next, so the result does not depend on where a thread
begins.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.mathematics import bits_of, float_of
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for
from saccade.kernels.numba.vectors import widest_vectors

GRID = 4096
_GRAIN = 256
_MARGIN = np.float32(1 + 2.0**-20)


def unique_colors(images):
    """The distinct colours of uint8 (…, 3), sorted by 24-bit value, and how often each occurs."""
    return counted_colors(count_colors(images, np.zeros(1 << 24, np.int64)))


def count_colors(images, histogram):
    """Add every pixel of uint8 (…, 3) to ``histogram``, int64 by 24-bit value; the histogram."""
    _count(np.ascontiguousarray(images).reshape(-1, 3), histogram)
    return histogram


def counted_colors(histogram):
    """The distinct colours that a histogram holds, and how often each occurs."""
    codes = np.flatnonzero(histogram)
    colors = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1).astype(np.uint8)
    return colors, histogram[codes]


def assign(colors, centers):
    """The nearest centre of each colour, (…, 3) -> (…) int32; the lowest index among equals.

    Centres are on the grid of 0…255, whose differences float32 holds.
    """
    flat = np.ascontiguousarray(colors).reshape(-1, 3)
    assignment = np.empty(len(flat), np.int32)
    columns = np.ascontiguousarray(np.asarray(centers, np.int64).T)
    parallel_for(_assign, len(flat), _GRAIN, flat, columns, columns.astype(np.float32), assignment)
    return assignment.reshape(np.shape(colors)[:-1])


def encode(images, centers):
    """The index of the nearest centre of each pixel, uint8 (…, 3) -> int32 (…): one look for each distinct colour."""
    codes = (images.astype(np.int32) @ np.array([65536, 256, 1], np.int32)).ravel()
    distinct, inverse = np.unique(codes, return_inverse=True)
    colors = np.stack([distinct >> 16, distinct >> 8 & 255, distinct & 255], -1).astype(np.uint8)
    return assign(colors, centers)[inverse].reshape(images.shape[:-1])


def decode(tokens, colors):
    """The rows of ``colors`` at tokens."""
    return colors[tokens]


def update(colors, counts, assignment, centers):
    """Each centre moved to the mean of its pixels, rounded half up to the grid; empty ones stay."""
    return _update(np.ascontiguousarray(colors), counts, assignment, np.ascontiguousarray(centers, np.int32))


def fit(colors, counts, centers, *, iterations=100):
    """Lloyd's algorithm from ``centers``; the centres and the assignment to them."""
    centers = np.array(centers, np.int32)
    for _ in range(iterations):
        moved = update(colors, counts, assign(colors, centers), centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers, assign(colors, centers)


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
def _count(rgb, histogram):
    for i in range(rgb.shape[0]):
        histogram[np.int64(rgb[i, 0]) << 16 | np.int64(rgb[i, 1]) << 8 | np.int64(rgb[i, 2])] += 1


@jit
def _assign(work, colors, centers, rounded, assignment):
    k = centers.shape[1]
    distances = np.empty(k, np.float32)
    for i in shared(offer(work)):
        r, g, b = GRID * np.int64(colors[i, 0]), GRID * np.int64(colors[i, 1]), GRID * np.int64(colors[i, 2])
        most = _distances(distances, rounded, np.float32(r), np.float32(g), np.float32(b)) * _MARGIN
        near, best = _within(distances, most)
        if near > 1:
            best, nearest = -1, np.int64(1) << 62
            for j in range(k):
                if distances[j] <= most:
                    x, y, z = r - centers[0, j], g - centers[1, j], b - centers[2, j]
                    distance = x * x + y * y + z * z
                    if distance < nearest:
                        best, nearest = j, distance
        assignment[i] = best


@jit
def _distances(distances, centers, r, g, b):
    """Fill in the squared distances to all centres; the smallest."""
    widest_vectors()
    xs, ys, zs = centers[0], centers[1], centers[2]
    smallest = np.int32(0x7F800000)  # as an integer: those of positive numbers are in the same order
    for j in range(distances.shape[0]):
        x, y, z = r - xs[j], g - ys[j], b - zs[j]
        distance = x * x + y * y + z * z
        distances[j] = distance
        bits = bits_of(distance)
        smallest = bits if bits < smallest else smallest
    return float_of(smallest)


@jit
def _within(distances, most):
    """How many centres are no farther than ``most``, and the sum of their indices, which is the index if one is."""
    widest_vectors()
    near, indices = np.int32(0), np.int32(0)
    for j in range(distances.shape[0]):
        counts = np.int32(distances[j] <= most)
        near = np.int32(near + counts)
        indices = np.int32(indices + np.int32(counts * np.int32(j)))
    return near, indices


@jit
def _update(colors, counts, assignment, centers):
    k = centers.shape[0]
    totals, weights = np.zeros((k, 3), np.int64), np.zeros(k, np.int64)
    for i in range(colors.shape[0]):
        j = assignment[i]
        weights[j] += counts[i]
        for c in range(3):
            totals[j, c] += counts[i] * np.int64(colors[i, c])
    moved = centers.copy()
    for j in range(k):
        if weights[j] > 0:
            for c in range(3):
                moved[j, c] = (2 * GRID * totals[j, c] + weights[j]) // (2 * weights[j])
    return moved


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
