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
    LOSS,
    ROWS,
    TOP,
    bands,
    load_band,
    load_columns,
    rows_at,
    signed,
)
from saccade.kernels.numba.vectors import widest_vectors


def pair_gradients(images, texts, logit_scale, statistics, factors, pairwise):
    """Gradients for images, texts, logit_scale, and per row of logits their sum."""
    own, of_images, of_texts = statistics
    n, e = images.shape
    grad_images, grad_texts = np.empty(images.shape, images.dtype), np.empty(texts.shape, texts.dtype)
    scale_rows, bias_rows, unused = np.empty((3, n), own.dtype)
    sizes, (count, in_band) = (n, n, e), bands(n)
    swapped = describe(texts), describe(images), own, of_texts, of_images, *factors, pairwise
    straight = describe(images), describe(texts), own, of_images, of_texts, *factors, pairwise
    parallel_for(_pair_backward, count, 1, sizes, in_band, *swapped, describe(grad_texts), unused, unused)
    parallel_for(_pair_backward, count, 1, sizes, in_band, *straight, describe(grad_images), scale_rows, bias_rows)
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
def _pair_backward(
    work, sizes, in_band, a, b, own, of_a, of_b, scale, bias, factor, pairwise, grad_a, scale_rows, bias_rows
):
    """dA = scale · G B with G the gradient of the logits, for a band of rows of A at a time; and per row the gradients
    of the scale, sum G · (A Bᵀ), in which own products are left out of either softmax's share, and of the bias."""
    n, k, e = sizes
    dtype = own.dtype
    wide_k, wide_e, band_rows = wide(own, COLUMNS), wide(own, e), in_band * ROWS
    a_band, total = np.zeros((band_rows, e), dtype), np.zeros((band_rows, wide_e), dtype)
    b_rows, b_block = np.zeros((COLUMNS, wide_e), dtype), np.zeros((wide_e, wide_k), dtype)
    products, grads = np.zeros((ROWS, wide_k), dtype), np.zeros((ROWS, wide_k), dtype)
    for band in shared(offer(work)):
        first = band * band_rows
        rows = min(band_rows, n - first)
        load_band(a_band, a, first, rows, e)
        total[:] = 0
        scale_rows[first : first + rows], bias_rows[first : first + rows] = 0, 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            load_columns(b_rows, b_block, b, first_column, columns, e)
            rest = slice(first_column, first_column + columns)
            for start in range(0, rows, ROWS):
                some = min(ROWS, rows - start)
                part = slice(start, start + some)
                product(a_band[part], e, 1, b_block, products, some, columns, e, 0)
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
                product(grads, wide_k, 1, b_rows, total[part], some, e, columns, 1)
        for i in range(rows):
            for j in range(e):
                total[i, j] *= scale
            store_row(rows_at(grad_a, first + i), grad_a[3], grad_a[1], total[i, :e])
