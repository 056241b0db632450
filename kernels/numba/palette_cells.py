"""The nearest centre of colours, from the few that any colour of a cell can be nearest to.

The cube of colours has 8³ coarse cells, and each of those 4³ fine ones of 8³ colours. A centre whose least distance to
a cell is larger than the largest distance of another to it is nearest to none of its colours; float32 finds the others,
with a margin. Distances to those are computed in float64, where integers of the grid, below 2⁴³ when squared and
summed, are exact: ties go to the lowest index.

Loops run on to whole ``STEP`` numbers, repeating the first or with what is left of others: what is left over of a loop
in vectors, LLVM takes one by one.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.mathematics import bits_of, float_of
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.vectors import widest_vectors

GRID = 4096
COARSE, FINE = 512, 64  # cells of the cube, and of each of those
COLORS = 512  # of a fine cell
STEP = 64
# Where a colour stands in a table of all: the bits of its levels by turns, so that like colours are neighbours.
_PLACES = [[sum((x >> i & 1) << 3 * i + c for i in range(8)) for x in range(256)] for c in (2, 1, 0)]
SPREAD = np.array(_PLACES, np.uint32)
MARGIN = np.float32(1 + 2.0**-20)


def columns(centers):
    """Centres as float32, which holds all of the grid, and their indices, (4, k), the first repeated at the end."""
    k = len(centers)
    found = np.empty((4, -(-k // STEP) * STEP), np.float32)
    found[:3, :k], found[3, :k] = np.asarray(centers).T, np.arange(k)
    found[:, k:] = found[:, :1]
    return found


@jit
def cell_of(r, g, b):
    """The number of a colour's fine cell, those of a coarse one in a row."""
    coarse = (r >> 5) << 6 | (g >> 5) << 3 | b >> 5
    return coarse << 6 | (r >> 3 & 3) << 4 | (g >> 3 & 3) << 2 | b >> 3 & 3


@jit
def group(colors, starts, order, planes):
    """Sort colours, (n, 3), by cell: ``order`` becomes their old places, ``planes`` (3, n) they themselves, and cell c
    holds starts[c] … starts[c + 1] of them. ``starts``, one for each cell and one more, begins as zeros."""
    for i in range(colors.shape[0]):
        starts[cell_of(np.int64(colors[i, 0]), np.int64(colors[i, 1]), np.int64(colors[i, 2]))] += 1
    total = 0
    for cell in range(starts.shape[0]):
        total, starts[cell] = total + starts[cell], total
    for i in range(colors.shape[0]):
        cell = cell_of(np.int64(colors[i, 0]), np.int64(colors[i, 1]), np.int64(colors[i, 2]))
        place = starts[cell]
        starts[cell] += 1
        order[place] = i
        for c in range(3):
            planes[c, place] = colors[i, c]
    for cell in range(starts.shape[0] - 1, 0, -1):
        starts[cell] = starts[cell - 1]
    starts[0] = 0


@jit
def assign_cells(work, starts, planes, k, centers, assignment):
    """The nearest of k ``centers`` (``columns``) for colours that ``group`` sorted: an item is a coarse cell."""
    widest_vectors()
    near, places = np.empty(centers.shape[1], np.float32), np.empty(k + 1, np.int64)
    coarse, exact = np.empty(centers.shape, np.float32), np.empty((4, k), np.float64)
    points, best = np.zeros((3, COLORS), np.float64), np.empty((2, COLORS), np.float64)
    for item in shared(offer(work)):
        if starts[FINE * item] == starts[FINE * (item + 1)]:
            continue
        some = _coarse_candidates(centers, k, item, near, places, coarse)
        for cell in range(FINE * item, FINE * (item + 1)):
            if starts[cell] == starts[cell + 1]:
                continue
            few = _fine_candidates(coarse, some, cell, near, places, exact)
            for first in range(starts[cell], starts[cell + 1], COLORS):
                count = min(COLORS, starts[cell + 1] - first)
                for c in range(3):
                    for i in range(count):
                        points[c, i] = GRID * np.float64(planes[c, np.uint64(first + i)])
                _nearest(points, count, exact, few, best)
                for i in range(count):
                    assignment[np.uint64(first + i)] = np.int32(best[1, i])


@jit
def fill_table(work, k, centers, spread, table):
    """The nearest of k ``centers`` (``columns``) for every colour, at the place that ``SPREAD`` gives it."""
    widest_vectors()
    near, places = np.empty(centers.shape[1], np.float32), np.empty(k + 1, np.int64)
    coarse, exact = np.empty(centers.shape, np.float32), np.empty((4, k), np.float64)
    points, best = np.zeros((3, COLORS), np.float64), np.empty((2, COLORS), np.float64)
    for item in shared(offer(work)):
        some = _coarse_candidates(centers, k, item, near, places, coarse)
        for cell in range(FINE * item, FINE * (item + 1)):
            few = _fine_candidates(coarse, some, cell, near, places, exact)
            r, g, b = _corner(cell)
            for i in range(COLORS):
                points[0, i] = GRID * np.float64(r + _every_third(i >> 2))
                points[1, i] = GRID * np.float64(g + _every_third(i >> 1))
                points[2, i] = GRID * np.float64(b + _every_third(i))
            _nearest(points, COLORS, exact, few, best)
            first = np.uint64(spread[0, r] | spread[1, g] | spread[2, b])
            for i in range(COLORS):
                table[first + np.uint64(i)] = np.uint16(best[1, i])


@jit
def _every_third(i):
    """Bits 0, 3 and 6 side by side."""
    return i & 1 | i >> 2 & 2 | i >> 4 & 4


@jit
def _corner(cell):
    """The darkest colour of a fine cell."""
    coarse, fine = cell >> 6, cell & 63
    r, g, b = coarse >> 6 << 5, (coarse >> 3 & 7) << 5, (coarse & 7) << 5
    return r | fine >> 4 << 3, g | (fine >> 2 & 3) << 3, b | (fine & 3) << 3


@jit
def _coarse_candidates(centers, k, item, near, places, chosen):
    """chosen[:, :n] = the centres that colours of a coarse cell can be nearest to; n."""
    r, g, b = _corner(FINE * item)
    some = _within(near, k, _distances(centers, k, r, g, b, 31, near), places)
    for i in range(_whole(some)):
        for c in range(4):
            chosen[c, i] = centers[c, places[i if i < some else 0]]
    return some


@jit
def _whole(n):
    return (n + STEP - 1) // STEP * STEP


@jit
def _fine_candidates(coarse, some, cell, near, places, exact):
    """exact[:, :n] = those of ``coarse`` that colours of a fine cell can be nearest to, in float64; n."""
    r, g, b = _corner(cell)
    few = _within(near, some, _distances(coarse, some, r, g, b, 7, near), places)
    for i in range(few):
        for c in range(4):
            exact[c, i] = np.float64(coarse[c, places[i]])
    return few


@jit
def _within(near, k, most, places):
    """places[:n] = those of the k distances that are not larger than ``most``, in order; n."""
    n = 0
    for j in range(k):
        places[n] = j
        n += near[j] <= most
    return n


@jit
def _distances(centers, k, r, g, b, side, near):
    """near[:k] = squared distances of centres to a box of colours; the smallest of the largest ones, and the margin."""
    widest_vectors()
    r0, g0, b0 = np.float32(GRID * r), np.float32(GRID * g), np.float32(GRID * b)
    length, zero = np.float32(GRID * side), np.float32(0)
    smallest = np.int32(0x7F800000)  # as an integer: those of positive numbers are in the same order
    for j in range(_whole(k)):
        x, y, z = centers[0, j] - r0, centers[1, j] - g0, centers[2, j] - b0
        near_x, near_y, near_z = max(-x, x - length, zero), max(-y, y - length, zero), max(-z, z - length, zero)
        near[j] = near_x * near_x + near_y * near_y + near_z * near_z
        far_x, far_y, far_z = max(x, length - x), max(y, length - y), max(z, length - z)
        bits = bits_of(far_x * far_x + far_y * far_y + far_z * far_z)
        smallest = bits if bits < smallest else smallest
    return float_of(smallest) * MARGIN


@jit
def _nearest(points, count, centers, k, best):
    """best[1, :count] = the index, centers[3], of the first of the nearest of k centres for each point."""
    widest_vectors()
    count = _whole(count)
    for i in range(count):
        best[0, i] = np.inf
    for j in range(k):
        x, y, z, own = centers[0, j], centers[1, j], centers[2, j], centers[3, j]
        for i in range(count):
            dx, dy, dz = points[0, i] - x, points[1, i] - y, points[2, i] - z
            distance = dx * dx + dy * dy + dz * dz
            closer = distance < best[0, i]
            best[1, i] = own if closer else best[1, i]
            best[0, i] = distance if closer else best[0, i]
