"""Losses of all pairs of rows of two matrices, a tile of logits at a time: what CLIP's and SigLIP's need.

products = A Bᵀ;   G = the gradient of the logits scale · products + bias;   dA = scale G B;   dB = scale Gᵀ A
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import math

import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.mathematics import exponential, row_sum, sigmoid, softplus
from saccade.kernels.numba.memory import describe, load_block, load_block_transposed, store_row
from saccade.kernels.numba.products import product, wide
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for
from saccade.kernels.numba.tiles import COLUMNS, EXCESS, LOSS, ROWS, TOP, rows_at, signed


def pair_gradients(images, texts, logit_scale, statistics, factors, pairwise):
    """Gradients for images, texts, logit_scale, and per row of logits their sum."""
    own, of_images, of_texts = statistics
    n, e = images.shape
    grad_images, grad_texts = np.empty(images.shape, images.dtype), np.empty(texts.shape, texts.dtype)
    scale_rows, bias_rows, unused = np.empty((3, n), own.dtype)
    sizes, blocks = (n, n, e), -(-n // ROWS)
    swapped = describe(texts), describe(images), own, of_texts, of_images, *factors, pairwise
    straight = describe(images), describe(texts), own, of_images, of_texts, *factors, pairwise
    parallel_for(_pair_backward, blocks, 1, sizes, *swapped, describe(grad_texts), unused, unused)
    parallel_for(_pair_backward, blocks, 1, sizes, *straight, describe(grad_images), scale_rows, bias_rows)
    given = isinstance(logit_scale, np.ndarray)
    grad_scale = np.asarray(scale_rows.sum()).astype(logit_scale.dtype) if given else None
    return grad_images, grad_texts, grad_scale, bias_rows


@jit
def siglip_rows(work, sizes, a, b, scale, bias, per_row):
    n, k, e = sizes
    dtype = per_row.dtype
    a_block, b_block = np.zeros((ROWS, e), dtype), np.zeros((e, wide(per_row, COLUMNS)), dtype)
    logits, line = np.zeros((ROWS, wide(per_row, COLUMNS)), dtype), np.empty(e, dtype)
    for block in shared(offer(work)):
        first = block * ROWS
        rows = min(ROWS, n - first)
        load_block(a_block, a, a[2], a[3], rows_at(a, first), rows, e)
        per_row[first : first + rows] = 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            load_block_transposed(b_block, line, b, b[2], b[3], rows_at(b, first_column), columns, e)
            product(a_block, e, 1, b_block, logits, rows, columns, e, 0)
            for i in range(rows):
                for j in range(columns):
                    logit = scale * logits[i, j] + bias
                    logits[i, j] = softplus(-logit if first + i == first_column + j else logit)
                per_row[first + i] += row_sum(logits[i, :columns])


@jit
def _pairwise_gradient(grads, products, scale, bias, factor, at):
    """A row of products -> the gradients of its logits in ``grads``, their products with it in ``products``."""
    for j in range(grads.shape[0]):
        logit = scale * products[j] + bias
        grads[j] = factor * (-sigmoid(-logit) if j == at else sigmoid(logit))
        products[j] *= grads[j]


@jit
def _softmax_gradient(grads, products, scale, factor, own, row, owns, rows, at):
    """The same for both softmaxes: that of the row, and those of the columns that it crosses; ``row`` and ``rows`` are
    their statistics."""
    size = abs(scale)
    for j in range(grads.shape[0]):
        over, across = products[j] - own, products[j] - owns[j]
        level = signed(products[j], scale)
        weight = exponential(size * (level - row[TOP]) - row[EXCESS])
        weight_across = exponential(size * (level - rows[TOP, j]) - rows[EXCESS, j])
        grads[j] = factor * (weight + weight_across)
        products[j] = factor * (weight * over + weight_across * across)
    if 0 <= at < grads.shape[0]:
        grads[at] = factor * (math.expm1(-row[LOSS]) + math.expm1(-rows[LOSS, at]))


@jit
def _pair_backward(work, sizes, a, b, own, of_a, of_b, scale, bias, factor, pairwise, grad_a, scale_rows, bias_rows):
    """dA = scale · G B with G the gradient of the logits, for ROWS rows of A at a time; and per row the gradients of
    the scale, sum G · (A Bᵀ), in which own products are left out of either softmax's share, and of the bias, sum G."""
    n, k, e = sizes
    dtype = own.dtype
    wide_k, wide_e = wide(own, COLUMNS), wide(own, e)
    a_block, b_block, b_rows = (
        np.zeros((ROWS, e), dtype),
        np.zeros((e, wide_k), dtype),
        np.zeros((COLUMNS, wide_e), dtype),
    )
    products, total, line = np.zeros((ROWS, wide_k), dtype), np.zeros((ROWS, wide_e), dtype), np.empty(e, dtype)
    grads = np.zeros((ROWS, wide_k), dtype)
    for block in shared(offer(work)):
        first = block * ROWS
        rows = min(ROWS, n - first)
        load_block(a_block, a, a[2], a[3], rows_at(a, first), rows, e)
        total[:] = 0
        scale_rows[first : first + rows], bias_rows[first : first + rows] = 0, 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            load_block_transposed(b_block, line, b, b[2], b[3], rows_at(b, first_column), columns, e)
            load_block(b_rows, b, b[2], b[3], rows_at(b, first_column), columns, e)
            product(a_block, e, 1, b_block, products, rows, columns, e, 0)
            for i in range(rows):
                at = first + i - first_column
                if pairwise:
                    _pairwise_gradient(grads[i, :columns], products[i, :columns], scale, bias, factor, at)
                else:
                    rest = slice(first_column, first_column + columns)
                    _softmax_gradient(
                        grads[i, :columns], products[i, :columns], scale, factor, own[first + i],
                        of_a[:, first + i], own[rest], of_b[:, rest], at,
                    )  # fmt: skip
                scale_rows[first + i] += row_sum(products[i, :columns])
                bias_rows[first + i] += row_sum(grads[i, :columns])
            product(grads, wide_k, 1, b_rows, total, rows, e, columns, 1)
        for i in range(rows):
            for j in range(e):
                total[i, j] *= scale
            store_row(rows_at(grad_a, first + i), grad_a[3], grad_a[1], total[i, :e])
