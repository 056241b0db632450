"""Logits that are products, one tile at a time: what ``losses`` needs of every row of scale · A Bᵀ."""

import math

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false
import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.layers import grain
from saccade.kernels.numba.mathematics import exponential, fused, row_max, row_sum, row_sum_above
from saccade.kernels.numba.memory import describe, load_block, load_row, store_row
from saccade.kernels.numba.products import product, wide
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for
from saccade.kernels.numba.vectors import transpose, widest_vectors

# Tile sizes, multiples of the product's tile; they do not change which function is computed.
ROWS, COLUMNS = 64, 96
# Rows are read in bands of so many blocks at most, for which columns are packed once; and there are so many, at least.
LARGEST_BAND, FEWEST_BANDS = 4, 8
MOST_BANDS = 32  # for which all columns are kept
CHUNK = 512  # columns
TOGETHER = 8  # rows
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
    groups = -(-len(a) // TOGETHER)
    parallel_for(_dots, groups, grain(TOGETHER * a.shape[1]), a.shape[1], describe(a), describe(b), labels, own)
    return own


@jit
def _dots(work, e, a, b, labels, own):
    """Each sum is one chain of fused multiply-adds, so TOGETHER of them are under way at a time."""
    rows, others = np.zeros((TOGETHER, e), own.dtype), np.zeros((TOGETHER, e), own.dtype)
    for group in shared(offer(work)):
        first = TOGETHER * group
        some = min(TOGETHER, own.shape[0] - first)
        for i in range(some):
            if labels[first + i] >= 0:
                load_row(rows[i], rows_at(a, first + i), a[3], a[1])
                load_row(others[i], rows_at(b, labels[first + i]), b[3], b[1])
        zero = own.dtype.type(0)
        sums = (zero, zero, zero, zero, zero, zero, zero, zero)
        for j in range(e):
            sums = _fused_each(rows, others, j, sums)
        for i in range(some):
            own[first + i] = sums[i] if labels[first + i] >= 0 else zero


@jit
def _fused_each(rows, others, j, sums):
    s0, s1, s2, s3, s4, s5, s6, s7 = sums
    return (
        fused(rows[0, j], others[0, j], s0), fused(rows[1, j], others[1, j], s1), fused(rows[2, j], others[2, j], s2),
        fused(rows[3, j], others[3, j], s3), fused(rows[4, j], others[4, j], s4), fused(rows[5, j], others[5, j], s5),
        fused(rows[6, j], others[6, j], s6), fused(rows[7, j], others[7, j], s7),
    )  # fmt: skip


def bands(n, most=None):
    """(how many bands of rows there are, how many blocks of ROWS are in one), by the number of rows alone: what is
    known of columns is joined band by band; at most ``most`` bands, if that takes memory."""
    blocks = -(-n // ROWS)
    in_band = max(1, min(LARGEST_BAND, -(-blocks // FEWEST_BANDS)), -(-blocks // most) if most else 1)
    return -(-blocks // in_band), in_band


@jit
def load_band(target, x, first, rows, e):
    """``rows`` rows of a matrix from ``first`` on, as they are multiplied: from the top of ``target``."""
    load_block(target, x, x[2], x[3], rows_at(x, first), rows, e)


@jit
def load_columns(rows, turned, x, first, count, e):
    """``count`` rows of a matrix from ``first`` on, as they lie and as columns: scratch of whole vectors both ways."""
    load_band(rows, x, first, count, e)
    transpose(rows, turned, wide(rows, count), rows.shape[1])


@jit
def product_statistics(work, sizes, in_band, a, b, scale, labels, own, statistics, mean, across):
    """Per row i of logits scale · A Bᵀ, a band of rows at a time, with s the sign of the scale:

    statistics[LOSS]   = log-sum-exp less the logit at labels[i]
    statistics[TOP]    = the largest of s times the row's products
    statistics[EXCESS] = log-sum-exp less the largest logit
    mean               = the mean logit, less that at labels[i]

    Where ``across`` has room, labels[i] is i, and across[band] becomes what the band's rows tell of each column: the
    largest of s times its products and its own, and the sum of exponentials below that without its own.
    """
    n, k, e = sizes
    dtype = own.dtype
    factor = abs(scale)
    wide_k, wide_e = wide(own, COLUMNS), wide(own, e)
    a_band, logits = np.zeros((in_band * ROWS, e), dtype), np.zeros((ROWS, wide_k), dtype)
    b_rows, b_block = np.zeros((COLUMNS, wide_e), dtype), np.zeros((wide_e, wide_k), dtype)
    top, total, whole = (
        np.empty(in_band * ROWS, dtype),
        np.empty(in_band * ROWS, dtype),
        np.empty(in_band * ROWS, dtype),
    )
    for band in shared(offer(work)):
        first = band * in_band * ROWS
        rows = min(in_band * ROWS, n - first)
        load_band(a_band, a, first, rows, e)
        for i in range(rows):
            top[i], total[i], whole[i] = signed(finite(own[first + i]), scale), 0, 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            load_columns(b_rows, b_block, b, first_column, columns, e)
            if across.shape[0] > 0:
                for j in range(columns):
                    across[band, 0, first_column + j] = signed(finite(own[first_column + j]), scale)
                    across[band, 1, first_column + j] = 0
            for start in range(0, rows, ROWS):
                some = min(ROWS, rows - start)
                product(a_band[start : start + some], e, 1, b_block, logits, some, columns, e, 0)
                if scale < 0:
                    for i in range(some):
                        _negate(logits[i, :columns])
                at = first + start - first_column  # the column of the first row's own, if labels are places
                if across.shape[0] > 0:
                    rest = slice(first_column, first_column + columns)
                    _add_down(logits[:some, :columns], factor, at, own[rest], across[band, :, rest])
                for i in range(start, start + some):
                    row, level = logits[i - start, :columns], own[first + i]
                    whole[i] += factor * row_sum_above(row, signed(finite(level), scale))
                    highest = max(top[i], row_max(row))
                    _weigh(row, factor, finite(highest))
                    at = labels[first + i] - first_column
                    if 0 <= at < columns and np.isfinite(level):
                        row[at] = 0  # its share of the sum is added last
                    total[i] = total[i] * exponential(factor * (top[i] - finite(highest))) + row_sum(row)
                    top[i] = highest
        for i in range(rows):
            _close(statistics[:, first + i], own[first + i], scale, top[i], total[i])
            mean[first + i] = whole[i] / dtype.type(k)


@jit
def join_across(work, scale, own, across, statistics):
    """The statistics of columns, CHUNK at a time, from what bands of rows told of them."""
    k, factor = own.shape[0], abs(scale)
    for chunk in shared(offer(work)):
        for j in range(chunk * CHUNK, min((chunk + 1) * CHUNK, k)):
            top, total = across[0, 0, j], across[0, 1, j]
            for band in range(1, across.shape[0]):
                highest = max(top, across[band, 0, j])
                total *= exponential(factor * (top - finite(highest)))
                total += across[band, 1, j] * exponential(factor * (across[band, 0, j] - finite(highest)))
                top = highest
            _close(statistics[:, j], own[j], scale, top, total)


@jit
def _close(statistics, own, scale, top, total):
    """The statistics of a row or column from its largest level and the sum of exponentials below it without its own."""
    shift, factor = finite(top), abs(scale)
    below = factor * (signed(finite(own), scale) - shift)
    excess = math.log1p(total + math.expm1(below))
    loss = excess - below
    statistics[LOSS] = loss if np.isfinite(own) else loss - scale * own
    statistics[TOP], statistics[EXCESS] = shift, excess


@jit
def _negate(row):
    widest_vectors()
    for j in range(row.shape[0]):
        row[j] = -row[j]


@jit
def _weigh(row, factor, shift):
    """row[j] = exp(factor · (row[j] − shift)), in place."""
    widest_vectors()
    for j in range(row.shape[0]):
        row[j] = exponential(factor * (row[j] - shift))


@jit
def _raise(tops, row):
    """The larger of each two; NaN is passed over, as it shows in the sums."""
    widest_vectors()
    for j in range(row.shape[0]):
        tops[j] = row[j] if row[j] > tops[j] else tops[j]


@jit
def _add_weights(totals, row, factor, tops):
    """totals[j] += exp(factor · (row[j] − tops[j]))."""
    widest_vectors()
    for j in range(row.shape[0]):
        totals[j] += exponential(factor * (row[j] - tops[j]))


@jit
def _add_down(levels, factor, at, own, tops_and_totals):
    """Levels of a tile counted in for its columns: maxima so far, and sums of exponentials below them, without a
    column's own in row j − at where that is finite."""
    tops, totals = tops_and_totals[0], tops_and_totals[1]
    fresh = tops.copy()
    for i in range(levels.shape[0]):
        _raise(fresh, levels[i])
    for j in range(fresh.shape[0]):
        totals[j] *= exponential(factor * (tops[j] - finite(fresh[j])))
        tops[j] = fresh[j]
        fresh[j] = finite(fresh[j])
    for i in range(levels.shape[0]):
        j = at + i
        if 0 <= j < fresh.shape[0] and np.isfinite(own[j]):
            _add_weights(totals[:j], levels[i, :j], factor, fresh[:j])
            _add_weights(totals[j + 1 :], levels[i, j + 1 :], factor, fresh[j + 1 :])
        else:
            _add_weights(totals, levels[i], factor, fresh)


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
def linear_backward_hidden(work, sizes, in_band, hidden, weight, labels, smoothing, statistics, grad_rows, grad_hidden):
    n, k, e = sizes
    dtype = grad_rows.dtype
    wide_k, wide_e = wide(grad_rows, COLUMNS), wide(grad_rows, e)
    band_rows = in_band * ROWS
    a_band, total = np.zeros((band_rows, e), dtype), np.zeros((band_rows, wide_e), dtype)
    b_block, b_rows = np.zeros((wide_e, wide_k), dtype), np.zeros((COLUMNS, wide_e), dtype)
    logits = np.zeros((ROWS, wide_k), dtype)
    share = smoothing / dtype.type(k)
    for band in shared(offer(work)):
        first = band * band_rows
        rows = min(band_rows, n - first)
        load_band(a_band, hidden, first, rows, e)
        total[:] = 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            load_columns(b_rows, b_block, weight, first_column, columns, e)
            for start in range(0, rows, ROWS):
                some = min(ROWS, rows - start)
                part, at = slice(start, start + some), first + start
                product(a_band[part], e, 1, b_block, logits, some, columns, e, 0)
                _label_tile(logits, labels, smoothing, share, statistics, grad_rows, at, some, first_column, columns)
                product(logits, wide_k, 1, b_rows, total[part], some, e, columns, 1)
        for i in range(rows):
            store_row(rows_at(grad_hidden, first + i), grad_hidden[3], grad_hidden[1], total[i, :e])


@jit
def linear_backward_weight(work, sizes, hidden, weight, labels, smoothing, statistics, grad_rows, grad_weight):
    n, k, e = sizes
    dtype = grad_rows.dtype
    wide_k, wide_e = wide(grad_rows, COLUMNS), wide(grad_rows, e)
    a_block, b_block = np.zeros((ROWS, wide_e), dtype), np.zeros((wide_e, wide_k), dtype)
    logits, total = np.zeros((ROWS, wide_k), dtype), np.zeros((COLUMNS, wide_e), dtype)
    share = smoothing / dtype.type(k)
    for block in shared(offer(work)):
        first_column = block * COLUMNS
        columns = min(COLUMNS, k - first_column)
        load_columns(total, b_block, weight, first_column, columns, e)
        total[:] = 0
        for first in range(0, n, ROWS):
            rows = min(ROWS, n - first)
            load_block(a_block, hidden, hidden[2], hidden[3], rows_at(hidden, first), rows, e)
            product(a_block, wide_e, 1, b_block, logits, rows, columns, e, 0)
            _label_tile(logits, labels, smoothing, share, statistics, grad_rows, first, rows, first_column, columns)
            product(logits, 1, wide_k, a_block, total, columns, e, rows, 1)
        for j in range(columns):
            store_row(rows_at(grad_weight, first_column + j), grad_weight[3], grad_weight[1], total[j, :e])
