"""Logits that are products, one tile at a time: what ``losses`` needs of every row of scale · A Bᵀ."""

import math

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false
import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.layers import grain
from saccade.kernels.numba.mathematics import exponential, exponentials, fused, row_max, row_sum
from saccade.kernels.numba.memory import describe, load_block, load_block_transposed, load_row
from saccade.kernels.numba.products import product, wide
from saccade.kernels.numba.threads import parallel_for

# Tile sizes, multiples of the product's tile; they do not change which function is computed.
ROWS, COLUMNS = 64, 96


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
def _dots(start, stop, e, a, b, labels, own):
    row, other = np.empty(e, own.dtype), np.empty(e, own.dtype)
    for i in range(start, stop):
        if labels[i] >= 0:
            load_row(row, rows_at(a, i), a[3], a[1])
            load_row(other, rows_at(b, labels[i]), b[3], b[1])
            total = own.dtype.type(0)
            for j in range(e):
                total = fused(row[j], other[j], total)
            own[i] = total


@jit
def product_statistics(start, stop, sizes, a, b, scale, labels, own, relative, mean):
    """Per row i of scale · A Bᵀ: log-sum-exp and the mean logit, both less the logit at labels[i]; ROWS at a time."""
    n, k, e = sizes
    dtype = relative.dtype
    a_block, b_block = np.zeros((ROWS, e), dtype), np.zeros((e, wide(relative, COLUMNS)), dtype)
    logits, line = np.zeros((ROWS, wide(relative, COLUMNS)), dtype), np.empty(e, dtype)
    top, total, whole = np.empty(ROWS, dtype), np.empty(ROWS, dtype), np.empty(ROWS, dtype)
    for block in range(start, stop):
        first = block * ROWS
        rows = min(ROWS, n - first)
        load_block(a_block, a, a[2], a[3], rows_at(a, first), rows, e)
        top[:], total[:], whole[:] = 0, 0, 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            load_block_transposed(b_block, line, b, b[2], b[3], rows_at(b, first_column), columns, e)
            product(a_block, e, 1, b_block, logits, rows, columns, e, 0)
            for i in range(rows):
                row, level = logits[i, :columns], finite(own[first + i])
                for j in range(columns):
                    row[j] = scale * (row[j] - level)
                whole[i] += row_sum(row)
                at = labels[first + i] - first_column
                if 0 <= at < columns and np.isfinite(own[first + i]):
                    row[at] = -np.inf  # its share of the sum, exp(0), is added last
                highest = max(top[i], row_max(row))
                shift = finite(highest)
                exponentials(row, shift)
                total[i] = total[i] * exponential(top[i] - shift) + row_sum(row)
                top[i] = highest
        for i in range(rows):
            shift, level = finite(top[i]), own[first + i]
            loss = shift + math.log1p(total[i] + math.expm1(-shift))
            relative[first + i] = loss if np.isfinite(level) else loss - scale * level
            mean[first + i] = whole[i] / dtype.type(k)
