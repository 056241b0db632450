"""Losses of all pairs of rows of two matrices, a tile of logits at a time: what CLIP's and SigLIP's need.

products = A Bᵀ;   G = the gradient of the logits scale · products + bias;   dA = scale G B;   dB = scale Gᵀ A
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import math

import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.mathematics import exponential, row_sum, sigmoid, softplus
from saccade.kernels.numba.memory import describe, store_row
from saccade.kernels.numba.products import product, wide
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for
from saccade.kernels.numba.tiles import (
    COLUMNS,
    EXCESS,
    FEWEST_BANDS,
    LARGEST_BAND,
    LOSS,
    ROWS,
    TOP,
    load_band,
    load_columns,
    rows_at,
    signed,
)
from saccade.kernels.numba.vectors import widest_vectors

PANEL = 100 << 20  # bytes of gradients of logits that are kept at a time
DEPTH = 256  # rows of a panel that are multiplied at a time


def pair_gradients(images, texts, logit_scale, statistics, factors, pairwise):
    """Gradients for images, texts, logit_scale, and per row of logits their sum.

    G is formed once, for a panel of rows at a time: as many as ``PANEL`` holds.
    """
    own, of_images, of_texts = statistics
    (n, e), core = images.shape, own.dtype
    grad_images, grad_texts = np.empty(images.shape, images.dtype), np.empty(texts.shape, texts.dtype)
    scale_rows, bias_rows = np.empty((2, n), core)
    blocks = max(-(-n // COLUMNS), 1)
    fitting = max(1, min(-(-n // ROWS), PANEL // (ROWS * blocks * COLUMNS * core.itemsize)))
    in_band = max(1, min(LARGEST_BAND, fitting // FEWEST_BANDS))
    count = fitting // in_band
    height, wide_e = count * in_band * ROWS, wide(own, e)
    panel, rows = np.empty((blocks, height, wide(own, COLUMNS)), core), np.zeros((height, wide_e), core)
    sums = grad_texts if grad_texts.dtype == core and wide_e == e else np.empty((n, wide_e), core)
    arrays = describe(images), describe(texts), own, of_images, of_texts, *factors, pairwise
    outputs = describe(grad_images), scale_rows, bias_rows
    for first in range(0, n, height):
        here = min(height, n - first)
        sizes, bands_here = (first, n, e), -(-here // (in_band * ROWS))
        parallel_for(_panel_rows, bands_here, 1, sizes, in_band, *arrays, panel, rows, *outputs)
        ends = first == 0, first + here == n
        parallel_for(_panel_columns, blocks, 1, (here, n, e), panel, rows, factors[0], ends, sums, describe(grad_texts))
    given = isinstance(logit_scale, np.ndarray)
    grad_scale = np.asarray(scale_rows.sum()).astype(logit_scale.dtype) if given else None
    return grad_images, grad_texts, grad_scale, bias_rows


@jit
def siglip_rows(work, sizes, in_band, a, b, scale, bias, per_row):
    n, k, e = sizes
    dtype = per_row.dtype
    wide_k, wide_e = wide(per_row, COLUMNS), wide(per_row, e)
    a_band, logits = np.zeros((in_band * ROWS, e), dtype), np.zeros((ROWS, wide_k), dtype)
    b_rows, b_block = np.zeros((COLUMNS, wide_e), dtype), np.zeros((wide_e, wide_k), dtype)
    for band in shared(offer(work)):
        first = band * in_band * ROWS
        rows = min(in_band * ROWS, n - first)
        load_band(a_band, a, first, rows, e)
        per_row[first : first + rows] = 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            load_columns(b_rows, b_block, b, first_column, columns, e)
            for start in range(0, rows, ROWS):
                some = min(ROWS, rows - start)
                product(a_band[start : start + some], e, 1, b_block, logits, some, columns, e, 0)
                for i in range(some):
                    row = first + start + i
                    _pairwise_losses(logits[i, :columns], scale, bias, row - first_column)
                    per_row[row] += row_sum(logits[i, :columns])


@jit
def _pairwise_losses(row, scale, bias, at):
    """A row of products -> the losses of its pairs, of which that at ``at`` is its own."""
    own = row[at] if 0 <= at < row.shape[0] else row.dtype.type(0)
    _softpluses(row, scale, bias)
    if 0 <= at < row.shape[0]:
        row[at] = softplus(-(scale * own + bias))


@jit
def _softpluses(row, scale, bias):
    widest_vectors()
    for j in range(row.shape[0]):
        row[j] = softplus(scale * row[j] + bias)


@jit
def _pairwise_gradient(grads, products, scale, bias, factor, at):
    """A row of products -> the gradients of its logits in ``grads``, their products with it in ``products``."""
    own = products[at] if 0 <= at < grads.shape[0] else products.dtype.type(0)
    _sigmoids(grads, products, scale, bias, factor)
    if 0 <= at < grads.shape[0]:
        grads[at] = -factor * sigmoid(-(scale * own + bias))
        products[at] = grads[at] * own


@jit
def _sigmoids(grads, products, scale, bias, factor):
    widest_vectors()
    for j in range(grads.shape[0]):
        grads[j] = factor * sigmoid(scale * products[j] + bias)
        products[j] *= grads[j]


@jit
def _softmax_gradient(grads, products, scale, factor, own, row, owns, rows, at):
    """The same for both softmaxes: that of the row, and those of the columns that it crosses; ``row`` and ``rows`` are
    their statistics."""
    _weights_of_both(grads, products, scale, factor, own, row[TOP], row[EXCESS], owns, rows[TOP], rows[EXCESS])
    if 0 <= at < grads.shape[0]:
        grads[at] = factor * (math.expm1(-row[LOSS]) + math.expm1(-rows[LOSS, at]))


@jit
def _weights_of_both(grads, products, scale, factor, own, top, excess, owns, tops, excesses):
    widest_vectors()
    size = abs(scale)
    for j in range(grads.shape[0]):
        over, across = products[j] - own, products[j] - owns[j]
        level = signed(products[j], scale)
        weight = exponential(size * (level - top) - excess)
        weight_across = exponential(size * (level - tops[j]) - excesses[j])
        grads[j] = factor * (weight + weight_across)
        products[j] = factor * (weight * over + weight_across * across)


@jit
def _panel_rows(
    work, sizes, in_band, a, b, own, of_a, of_b, scale, bias, factor, pairwise, panel, panel_a, grad_a, scale_rows,
    bias_rows,
):  # fmt: skip
    """dA = scale · G B for rows of A from the panel's first, a band at a time, with G the gradient of the logits, which
    stays in ``panel`` as the rows of A do in ``panel_a``; and per row the gradients of the scale, sum G · (A Bᵀ), in
    which own products are left out of either softmax's share, and of the bias."""
    panel_first, n, e = sizes
    dtype = own.dtype
    wide_k, wide_e, band_rows = wide(own, COLUMNS), wide(own, e), in_band * ROWS
    total = np.zeros((band_rows, wide_e), dtype)
    b_rows, b_block = np.zeros((COLUMNS, wide_e), dtype), np.zeros((wide_e, wide_k), dtype)
    products = np.zeros((ROWS, wide_k), dtype)
    for band in shared(offer(work)):
        local = band * band_rows
        first = panel_first + local
        rows = min(band_rows, n - first)
        load_band(panel_a[local:], a, first, rows, e)
        total[:] = 0
        scale_rows[first : first + rows], bias_rows[first : first + rows] = 0, 0
        for block in range(panel.shape[0]):
            first_column = block * COLUMNS
            columns = min(COLUMNS, n - first_column)
            load_columns(b_rows, b_block, b, first_column, columns, e)
            rest = slice(first_column, first_column + columns)
            for start in range(0, rows, ROWS):
                some = min(ROWS, rows - start)
                grads = panel[block, local + start : local + start + some]
                product(panel_a[local + start :], wide_e, 1, b_block, products, some, columns, e, 0)
                for i in range(some):
                    row = first + start + i
                    grad, along, at = grads[i, :columns], products[i, :columns], row - first_column
                    if pairwise:
                        _pairwise_gradient(grad, along, scale, bias, factor, at)
                    else:
                        _softmax_gradient(
                            grad, along, scale, factor, own[row], of_a[:, row], own[rest], of_b[:, rest], at
                        )
                    scale_rows[row] += row_sum(along)
                    bias_rows[row] += row_sum(grad)
                product(grads, wide_k, 1, b_rows, total[start : start + some], some, e, columns, 1)
        for i in range(rows):
            _scale(total[i], scale)
            store_row(rows_at(grad_a, first + i), grad_a[3], grad_a[1], total[i, :e])


@jit
def _panel_columns(work, sizes, panel, panel_a, scale, ends, sums, grad_b):
    """sums += Gᵀ A of a panel's rows, a block of columns at a time; dB = scale · sums after the last panel."""
    rows, n, e = sizes
    is_first, is_last = ends
    for block in shared(offer(work)):
        first = block * COLUMNS
        columns = min(COLUMNS, n - first)
        total = sums[first : first + columns]
        for start in range(0, rows, DEPTH):
            grads, depth = panel[block, start:], min(DEPTH, rows - start)
            added = not (is_first and start == 0)
            product(grads, 1, grads.shape[1], panel_a[start:], total, columns, e, depth, added)
        if is_last:
            for j in range(columns):
                _scale(total[j], scale)
                store_row(rows_at(grad_b, first + j), grad_b[3], grad_b[1], total[j, :e])


@jit
def _scale(row, scale):
    widest_vectors()
    for j in range(row.shape[0]):
        row[j] *= scale
