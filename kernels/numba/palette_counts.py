"""The distinct colours of pictures, sorted, and how often each occurs.

Pixels are sorted by the upper half of their 24-bit values, of which there are 4096, part by part of them; then each
half's pixels are counted in a histogram of their lower halves, small enough for a cache of the first level.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for

HALF = 4096
_PARTS = 16
_LARGEST = 1 << 23  # pixels: of more, a histogram of all colours takes less memory


def unique_colors(images):
    """The distinct colours of uint8 (…, 3), sorted by 24-bit value, and how often each occurs."""
    rgb = np.ascontiguousarray(images).reshape(-1, 3)
    if len(rgb) > _LARGEST:
        return counted_colors(count_colors(images, np.zeros(1 << 24, np.int64)))
    parts = max(1, min(_PARTS, len(rgb) // HALF))
    places = np.zeros((parts, HALF), np.int64)
    parallel_for(_count_upper, parts, 1, rgb, places)
    ends = np.cumsum(places.T.ravel()).reshape(HALF, parts).T
    places, starts = np.ascontiguousarray(ends - places), np.concatenate([[0], ends[-1]])
    lower = np.empty(len(rgb), np.uint16)
    parallel_for(_sort_lower, parts, 1, rgb, places, lower)
    found, distinct = np.empty(len(rgb), np.int64), np.empty(HALF, np.int64)
    parallel_for(_count_lower, HALF, HALF // parts, lower, starts, found, distinct)
    places = np.concatenate([[0], np.cumsum(distinct)])
    colors, counts = np.empty((places[-1], 3), np.uint8), np.empty(places[-1], np.int64)
    parallel_for(_gather, HALF, HALF // parts, lower, starts, found, places, colors, counts)
    return colors, counts


def count_colors(images, histogram):
    """Add every pixel of uint8 (…, 3) to ``histogram``, int64 by 24-bit value; the histogram."""
    _count(np.ascontiguousarray(images).reshape(-1, 3), histogram)
    return histogram


def counted_colors(histogram):
    """The distinct colours that a histogram holds, and how often each occurs."""
    codes = np.flatnonzero(histogram)
    colors = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], -1).astype(np.uint8)
    return colors, histogram[codes]


@jit
def _count(rgb, histogram):
    for i in range(rgb.shape[0]):
        histogram[np.int64(rgb[i, 0]) << 16 | np.int64(rgb[i, 1]) << 8 | np.int64(rgb[i, 2])] += 1


@jit
def _count_upper(work, rgb, places):
    """places[part, upper half] = how many pixels of the part have it."""
    n, parts = rgb.shape[0], places.shape[0]
    for part in shared(offer(work)):
        for i in range(n * part // parts, n * (part + 1) // parts):
            places[part, np.int64(rgb[i, 0]) << 4 | np.int64(rgb[i, 1]) >> 4] += 1


@jit
def _sort_lower(work, rgb, places, lower):
    """Lower halves, sorted by the upper one, from where ``places`` says each part's begin."""
    n, parts = rgb.shape[0], places.shape[0]
    for part in shared(offer(work)):
        for i in range(n * part // parts, n * (part + 1) // parts):
            upper = np.int64(rgb[i, 0]) << 4 | np.int64(rgb[i, 1]) >> 4
            lower[places[part, upper]] = np.uint16((np.int64(rgb[i, 1]) & 15) << 8 | np.int64(rgb[i, 2]))
            places[part, upper] += 1


@jit
def _count_lower(work, lower, starts, found, distinct):
    """Of each upper half: its distinct lower ones, in order, in place of them all; how often each occurs; how many."""
    counts, words = np.zeros(HALF, np.int64), np.zeros(HALF // 64, np.uint64)
    one = np.uint64(1)
    for upper in shared(offer(work)):
        first = starts[upper]
        for i in range(first, starts[upper + 1]):
            value = np.int64(lower[i])
            counts[value] += 1
            words[value >> 6] |= one << np.uint64(value & 63)
        place = first
        for word in range(HALF // 64):
            bits = words[word]
            if bits == 0:
                continue
            words[word] = 0
            for bit in range(64):
                if bits >> np.uint64(bit) & one:
                    value = word * 64 + bit
                    lower[place], found[place] = np.uint16(value), counts[value]
                    counts[value] = 0
                    place += 1
        distinct[upper] = place - first


@jit
def _gather(work, lower, starts, found, places, colors, counts):
    """Colours and counts side by side, from where ``_count_lower`` left those of each upper half."""
    for upper in shared(offer(work)):
        for i in range(places[upper + 1] - places[upper]):
            value, at = np.int64(lower[starts[upper] + i]), places[upper] + i
            colors[at, 0] = upper >> 4
            colors[at, 1] = (upper & 15) << 4 | value >> 8
            colors[at, 2] = value & 255
            counts[at] = found[starts[upper] + i]
