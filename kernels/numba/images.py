"""Resizing pictures on CPUs; the definition is in ``saccade.reference.images``.

Along rows, as many of them as a vector has lanes are taken at a time, side by side.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for

BITS, LANES = 22, 32
HALF = 1 << (BITS - 1)
REACH = {"bilinear": 1.0, "bicubic": 2.0}  # pixels, where the picture does not shrink


def resize(images, height, width, *, method="bicubic"):
    """uint8 b h w c -> b height width c, bit by bit as Pillow's."""
    images, (_, h, w, _) = np.ascontiguousarray(images), images.shape
    if h - height > max(0, 2 * (w - width)):
        return _resized_across(_resized_down(images, height, method), width, method)
    return _resized_down(_resized_across(images, width, method), height, method)


def _resized_across(images, width, method):
    b, h, w, c = images.shape
    if width == w:
        return images
    out = np.empty((b, h, width, c), np.uint8)
    rows, new = images.reshape(b * h, w * c), out.reshape(b * h, width * c)
    parallel_for(_across, -(-b * h // LANES), 1, rows, c, *_weights(w, width, method), new)
    return out


def _resized_down(images, height, method):
    b, h, w, c = images.shape
    if height == h:
        return images
    out = np.empty((b, height, w, c), np.uint8)
    rows, new = images.reshape(b, h, w * c), out.reshape(b, height, w * c)
    parallel_for(_down, b * height, 8, rows, *_weights(h, height, method), new)
    return out


def _weights(old, new, method):
    """The first pixel that each new one is made of, how many there are, and their weights; without fused
    multiply-adds, which would round the weights another way."""
    scale = old / new
    reach = REACH[method] * max(scale, 1.0)
    center = (np.arange(new) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((center + reach + 0.5).astype(np.int64), old) - first
    taps = np.arange(count.max())
    x = np.abs((taps + first[:, None] - center[:, None] + 0.5) * (1 / max(scale, 1.0)))
    weight = np.maximum(1 - x, 0)
    if method == "bicubic":
        weight = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * -0.5, 0))
    weight[taps >= count[:, None]] = 0
    weight /= np.cumsum(weight, axis=1)[:, -1:]
    return first, count, (weight * (1 << BITS) + np.copysign(0.5, weight)).astype(np.int32)


@jit
def _level(total):
    return np.uint8(min(max(total >> BITS, 0), 255))


@jit
def _across(work, rows, channels, firsts, counts, weights, out):
    """Each row's pixels from those of the row, ``LANES`` rows at a time."""
    n, numbers = rows.shape
    columns, sums = np.zeros((numbers, LANES), np.uint8), np.empty(LANES, np.int32)
    for block in shared(offer(work)):
        first = block * LANES
        height = min(LANES, n - first)
        for r in range(height):
            for j in range(numbers):
                columns[j, r] = rows[first + r, j]
        for x in range(len(firsts)):
            for c in range(channels):
                for r in range(LANES):
                    sums[r] = HALF
                for i in range(counts[x]):
                    weight, j = weights[x, i], (firsts[x] + i) * channels + c
                    for r in range(LANES):
                        sums[r] += np.int32(columns[j, r]) * weight
                for r in range(height):
                    out[first + r, x * channels + c] = _level(sums[r])


@jit
def _down(work, images, firsts, counts, weights, out):
    """Each row of the output from some of the input's."""
    _, new, numbers = out.shape
    sums = np.empty(numbers, np.int32)
    for item in shared(offer(work)):
        image, y = item // new, item % new
        for j in range(numbers):
            sums[j] = HALF
        for i in range(counts[y]):
            weight, row = weights[y, i], firsts[y] + i
            for j in range(numbers):
                sums[j] += np.int32(images[image, row, j]) * weight
        for j in range(numbers):
            out[image, y, j] = _level(sums[j])
