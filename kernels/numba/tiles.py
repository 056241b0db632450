"""Logits that are products, one tile at a time: what ``losses`` needs of every row of scale · A Bᵀ."""

import math

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false
import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.layers import grain
from saccade.kernels.numba.mathematics import exponential, fused, row_max, row_sum, row_sum_above
from saccade.kernels.numba.memory import describe, load_block, load_block_transposed, load_row, store_row
from saccade.kernels.numba.products import product, wide
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for

# Tile sizes, multiples of the product's tile; they do not change which function is computed.
ROWS, COLUMNS = 64, 96
# What is kept of each row of logits. Weights are exp(factor (product − TOP) − EXCESS): differences of products first,
# since a log-sum-exp in the hundreds has no digits left for the weights.
LOSS, TOP, EXCESS = range(3)


@jit
def finite(x):
    """x, or 0 if it is not finite."""
    return x if np.isfinite(x) else type(x)(0)


@jit
def rows_at(array, row):
    """The address of a row."""
    return array[0] + row * array[2]


def own_products(a, b, labels, core):
    """a_i · b_label for each row, in the very bits of the tiles; 0 where there is no label."""
    own = np.zeros(len(a), core)
    parallel_for(_dots, len(a), grain(a.shape[1]), a.shape[1], describe(a), describe(b), labels, own)
    return own


@jit
def _dots(work, e, a, b, labels, own):
    row, other = np.empty(e, own.dtype), np.empty(e, own.dtype)
    for i in shared(offer(work)):
        if labels[i] >= 0:
            load_row(row, rows_at(a, i), a[3], a[1])
            load_row(other, rows_at(b, labels[i]), b[3], b[1])
            total = own.dtype.type(0)
            for j in range(e):
                total = fused(row[j], other[j], total)
            own[i] = total


@jit
def product_statistics(work, sizes, a, b, scale, labels, own, statistics, mean):
    """Per row i of logits scale · A Bᵀ, ROWS rows at a time, with s the sign of the scale:

    statistics[LOSS]   = log-sum-exp less the logit at labels[i]
    statistics[TOP]    = the largest of s times the row's products
    statistics[EXCESS] = log-sum-exp less the largest logit
    mean               = the mean logit, less that at labels[i]
    """
    n, k, e = sizes
    dtype = own.dtype
    factor = abs(scale)
    a_block, b_block = np.zeros((ROWS, e), dtype), np.zeros((e, wide(own, COLUMNS)), dtype)
    logits, line = np.zeros((ROWS, wide(own, COLUMNS)), dtype), np.empty(e, dtype)
    top, total, whole = np.empty(ROWS, dtype), np.empty(ROWS, dtype), np.empty(ROWS, dtype)
    for block in shared(offer(work)):
        first = block * ROWS
        rows = min(ROWS, n - first)
        load_block(a_block, a, a[2], a[3], rows_at(a, first), rows, e)
        for i in range(rows):
            top[i], total[i], whole[i] = signed(finite(own[first + i]), scale), 0, 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            load_block_transposed(b_block, line, b, b[2], b[3], rows_at(b, first_column), columns, e)
            product(a_block, e, 1, b_block, logits, rows, columns, e, 0)
            for i in range(rows):
                row, level = logits[i, :columns], signed(finite(own[first + i]), scale)
                if scale < 0:
                    for j in range(columns):
                        row[j] = -row[j]
                whole[i] += factor * row_sum_above(row, level)
                highest = max(top[i], row_max(row))
                shift = finite(highest)
                for j in range(columns):
                    row[j] = exponential(factor * (row[j] - shift))
                at = labels[first + i] - first_column
                if 0 <= at < columns and np.isfinite(own[first + i]):
                    row[at] = 0  # its share of the sum is added last
                total[i] = total[i] * exponential(factor * (top[i] - shift)) + row_sum(row)
                top[i] = highest
        for i in range(rows):
            level, shift = own[first + i], finite(top[i])
            below = factor * (signed(finite(level), scale) - shift)
            excess = math.log1p(total[i] + math.expm1(below))
            loss = excess - below
            statistics[LOSS, first + i] = loss if np.isfinite(level) else loss - scale * level
            statistics[TOP, first + i], statistics[EXCESS, first + i] = shift, excess
            mean[first + i] = whole[i] / dtype.type(k)


@jit
def signed(x, scale):
    """x times the sign of the scale, so that the largest logit is where this is largest."""
    return -x if scale < 0 else x


@jit
def _label_tile(logits, labels, smoothing, share, statistics, grad_rows, first, rows, first_column, columns):
    """A tile of logits -> its gradient."""
    for i in range(rows):
        row, grad = logits[i, :columns], grad_rows[first + i]
        top, excess = statistics[TOP, first + i], statistics[EXCESS, first + i]
        if labels[first + i] < 0:
            row[:] = 0
            continue
        for j in range(columns):
            row[j] = exponential(row[j] - top - excess)
        at = labels[first + i] - first_column
        if 0 <= at < columns:
            row[at] = math.expm1(-statistics[LOSS, first + i]) + smoothing
        for j in range(columns):
            row[j] = (row[j] - share) * grad


@jit
def linear_backward_hidden(work, sizes, hidden, weight, labels, smoothing, statistics, grad_rows, grad_hidden):
    n, k, e = sizes
    dtype = grad_rows.dtype
    wide_k, wide_e = wide(grad_rows, COLUMNS), wide(grad_rows, e)
    a_block, b_block, b_rows = (
        np.zeros((ROWS, e), dtype),
        np.zeros((e, wide_k), dtype),
        np.zeros((COLUMNS, wide_e), dtype),
    )
    logits, total, line = np.zeros((ROWS, wide_k), dtype), np.zeros((ROWS, wide_e), dtype), np.empty(e, dtype)
    share = smoothing / dtype.type(k)
    for block in shared(offer(work)):
        first = block * ROWS
        rows = min(ROWS, n - first)
        load_block(a_block, hidden, hidden[2], hidden[3], rows_at(hidden, first), rows, e)
        total[:] = 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            address = rows_at(weight, first_column)
            load_block_transposed(b_block, line, weight, weight[2], weight[3], address, columns, e)
            load_block(b_rows, weight, weight[2], weight[3], address, columns, e)
            product(a_block, e, 1, b_block, logits, rows, columns, e, 0)
            _label_tile(logits, labels, smoothing, share, statistics, grad_rows, first, rows, first_column, columns)
            product(logits, wide_k, 1, b_rows, total, rows, e, columns, 1)
        for i in range(rows):
            store_row(rows_at(grad_hidden, first + i), grad_hidden[3], grad_hidden[1], total[i, :e])


@jit
def linear_backward_weight(work, sizes, hidden, weight, labels, smoothing, statistics, grad_rows, grad_weight):
    n, k, e = sizes
    dtype = grad_rows.dtype
    wide_k, wide_e = wide(grad_rows, COLUMNS), wide(grad_rows, e)
    a_block, b_block = np.zeros((ROWS, wide_e), dtype), np.zeros((e, wide_k), dtype)
    logits, total, line = np.zeros((ROWS, wide_k), dtype), np.zeros((COLUMNS, wide_e), dtype), np.empty(e, dtype)
    share = smoothing / dtype.type(k)
    for block in shared(offer(work)):
        first_column = block * COLUMNS
        columns = min(COLUMNS, k - first_column)
        load_block_transposed(b_block, line, weight, weight[2], weight[3], rows_at(weight, first_column), columns, e)
        total[:] = 0
        for first in range(0, n, ROWS):
            rows = min(ROWS, n - first)
            load_block(a_block, hidden, hidden[2], hidden[3], rows_at(hidden, first), rows, e)
            product(a_block, wide_e, 1, b_block, logits, rows, columns, e, 0)
            _label_tile(logits, labels, smoothing, share, statistics, grad_rows, first, rows, first_column, columns)
            product(logits, 1, wide_k, a_block, total, columns, e, rows, 1)
        for j in range(columns):
            store_row(rows_at(grad_weight, first_column + j), grad_weight[3], grad_weight[1], total[j, :e])
