"""Fused attention forward, and what its gradients share with it: a tile of scores at a time, keys by queries.

S = scale Q Kᵀ + bias;   P = exp(S − lse);   O = P V

A tile stands on its side, a row a key and a column a query, so that keys and values are read where they lie and the
softmax runs down vectors of queries. Exponentials are powers of 2: factor · S with factor = scale · log₂e.

With ``pairs`` operands of products are bfloat16 (``halves``): weights are rounded to it, as everything else is already.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import math

import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.halves import interleave, lie_in_pairs, load_pairs, multiply_units, units
from saccade.kernels.numba.memory import FLOAT32, FLOAT64, corner, load, load_block, read_byte, store_row
from saccade.kernels.numba.products import wide
from saccade.kernels.numba.softmax import online_softmax
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.vectors import lanes, transpose, widest_vectors

# At most so many queries and keys to a tile; this does not change which function is computed.
QUERIES, KEYS = 64, 128
LOG2_E = 1 / math.log(2)


@jit
def part(n, unit, parts, i):
    """Where the i-th of ``parts`` even parts of [0, n) begins, at a multiple of ``unit``."""
    return min(n, unit * ((n + unit - 1) // unit * i // parts))


@jit
def in_place(array, like, columns):
    """Whether a product can read rows of a described array where they lie, so many columns of them as vectors."""
    kind = FLOAT64 if like.itemsize == 8 else FLOAT32
    return array[1] == kind and array[5] == like.itemsize and columns == wide(like, columns)


@jit
def rows_of(pairs, array, scratch, stays, address, rows, columns):
    """(address, bytes from row to row) of rows that a product can read: their own, or those of a copy."""
    if stays:
        return address, array[4]
    if pairs:
        load_pairs(scratch, array[4], array[5], address, rows, columns, False)
    else:
        load_block(scratch, array, array[4], array[5], address, rows, columns)
    return scratch.ctypes.data, scratch.shape[1] * scratch.itemsize


@jit
def rows_summed(pairs, array, scratch, stays, address, rows, columns):
    """``rows_of`` for a product that sums over those rows."""
    if not pairs:
        return rows_of(pairs, array, scratch, stays, address, rows, columns)
    interleave(scratch, array[4], array[5], address, rows, columns)
    return scratch.ctypes.data, scratch.shape[1] * scratch.itemsize


@jit
def load_queries(pairs, rows_block, turned, array, address, rows, columns, scale):
    """Rows from an address, zeros up to whole vectors of them; and the same turned on their side, times −1 if the scale
    is negative, so that the largest of factor · scores is that of the largest score."""
    padded = wide(rows_block, rows)
    rows_block[rows:padded] = 0
    if pairs:
        load_pairs(rows_block, array[4], array[5], address, rows, columns, scale < 0)
        transpose(rows_block, turned, padded, rows_block.shape[1])
    else:
        load_block(rows_block, array, array[4], array[5], address, rows, columns)
        transpose(rows_block, turned, padded, rows_block.shape[1])
        if scale < 0:
            turned *= turned.dtype.type(-1)


@jit
def visible_end(length, causal, last_t, sizes):
    """One past the last key that any query up to ``last_t`` may see."""
    return max(min(length, last_t + 1 + sizes[3] - sizes[2]), 0) if causal else length


@jit
def unit_of(bias, scale):
    """Of a tile's scores: products are left as they are where no bias is added to them, unless the scale vanishes."""
    unit = abs(scale)
    return unit if bias[0] == 0 and unit * type(unit)(LOG2_E) > 0 else type(unit)(1)


@jit
def score_tile(pairs, scores, turned, key, key_row, mask, bias, causal, scale, at, sizes, queries, keys):
    """scores[:keys, :queries] = S / ``unit_of`` it; −inf where a key is hidden.

    ``turned`` is that of ``load_queries``; at = the tile's (b, h, t, s).
    """
    size, (i_b, i_h, first_t, first_s) = scores.itemsize, at
    dtype, width = scores.dtype.type, wide(scores, queries)
    multiply_units(
        pairs, dtype(0), key, key_row, size, turned.ctypes.data, turned.shape[1] * size, scores.ctypes.data,
        scores.shape[1] * size, keys, width, units(pairs, sizes[4]), 0,
    )  # fmt: skip
    natural = abs(scale)
    if unit_of(bias, scale) != natural:
        for j in range(keys):
            for i in range(width):
                scores[j, i] *= natural
    hidden = dtype(-np.inf)
    if bias[0] != 0:
        for i in range(queries):
            address = corner(bias, i_b, i_h, first_t + i) + first_s * bias[5]
            for j in range(keys):
                scores[j, i] += dtype(load(address + j * bias[5], bias[1]))
    if mask[0] != 0:
        for i in range(queries):
            address = corner(mask, i_b, i_h, first_t + i) + first_s * mask[5]
            for j in range(keys):
                if read_byte(address, j * mask[5]) == 0:
                    scores[j, i] = hidden
    if causal:
        earliest = first_s - (sizes[3] - sizes[2]) - first_t  # the first query that sees the tile's first key
        for j in range(max(0, 1 - earliest), keys):
            scores[j, : min(earliest + j, width)] = hidden


@jit
def weigh(pairs, factor, scores, queries, keys, shift, total, rescale):
    """``online_softmax`` of a tile's columns; as pairs along the keys if so asked."""
    size, row = scores.itemsize, QUERIES * scores.itemsize
    if pairs and keys % 2 == 1:
        scores[keys] = -np.inf
    for i in range(0, queries, lanes(scores.dtype.type(0))):
        column, state = scores.ctypes.data + i * size, i * size
        s, t, r = shift.ctypes.data + state, total.ctypes.data + state, rescale.ctypes.data + state
        if pairs:
            online_softmax(np.int32(0), np.float32(factor), column, row, keys, s, t, r)
        else:
            online_softmax(factor, factor, column, row, keys, s, t, r)


@jit
def forward_scratch(pairs, key, value, like, sizes):
    """What ``attend`` needs of memory."""
    wide_d, wide_e = wide(like, units(pairs, sizes[4])), wide(like, sizes[5])
    key_stays = lie_in_pairs(key, sizes[4]) if pairs else in_place(key, like, 0)
    value_stays = not pairs and in_place(value, like, sizes[5])
    dtype = like.dtype
    query_block, turned = np.zeros((QUERIES, wide_d), dtype), np.zeros((wide_d, QUERIES), dtype)
    key_block = np.zeros((0 if key_stays else KEYS, wide_d), dtype)
    value_block = np.zeros((0 if value_stays else KEYS, wide_e), dtype)
    scores, sums = np.zeros((KEYS, QUERIES), dtype), np.zeros((QUERIES, wide_e), dtype)
    return query_block, turned, key_block, value_block, scores, sums, np.zeros((3, QUERIES), dtype)


@jit
def attend(pairs, at, queries, query, key, value, mask, bias, length, sizes, causal, scale, scratch, out):
    """Outputs of so many queries from (b, h, t) on; each one's shift and total are left in the last of the scratch."""
    query_block, turned, key_block, value_block, scores, sums, states = scratch
    (i_b, i_h, first_t), (_, _, _, s, d, e) = at, sizes
    shift, total, rescale = states
    dtype, size = scores.dtype, scores.itemsize
    unit = unit_of(bias, scale)
    factor = unit * dtype.type(LOG2_E)
    load_queries(pairs, query_block, turned, query, corner(query, i_b, i_h, first_t), queries, d, scale)
    shift[:], total[:], sums[:] = -np.inf, 0, 0
    end = visible_end(min(length, s), causal, first_t + queries - 1, sizes)
    key_blocks = -(-s // KEYS)
    for key_part in range(key_blocks):
        first_s = part(s, 8, key_blocks, key_part)
        keys = min(part(s, 8, key_blocks, key_part + 1), end) - first_s
        if keys <= 0:
            break
        k_at, v_at = corner(key, i_b, i_h, first_s), corner(value, i_b, i_h, first_s)
        k, k_row = rows_of(pairs, key, key_block, key_block.shape[0] == 0, k_at, keys, d)
        v, v_row = rows_summed(pairs, value, value_block, value_block.shape[0] == 0, v_at, keys, e)
        tile = (i_b, i_h, first_t, first_s)
        score_tile(pairs, scores, turned, k, k_row, mask, bias, causal, scale, tile, sizes, queries, keys)
        weigh(pairs, factor, scores, queries, keys, shift, total, rescale)
        if key_part > 0:
            for i in range(queries):
                if rescale[i] != 1:
                    sums[i] *= rescale[i]
        multiply_units(
            pairs, dtype.type(0), scores.ctypes.data, size, QUERIES * size, v, v_row, sums.ctypes.data,
            sums.shape[1] * size, queries, e, units(pairs, keys), key_part,
        )  # fmt: skip
    for i in range(queries):
        sums[i] *= dtype.type(1) / total[i] if total[i] != 0 else dtype.type(0)
        shift[i] *= unit
        store_row(corner(out, i_b, i_h, first_t + i), out[5], out[1], sums[i, :e])


@jit
def forward(work, pairs, query, key, value, mask, bias, lengths, sizes, causal, scale, out, shifts, totals):
    """Outputs, and what each query's log-sum-exp is made of: its shift, and its total."""
    widest_vectors()
    _, h, t, _, _, _ = sizes
    scratch = forward_scratch(pairs, key, value, totals, sizes)
    shift, total, _ = scratch[6]
    step, query_blocks = lanes(totals.dtype.type(0)), -(-t // QUERIES)
    for item in shared(offer(work)):
        i_b, i_h, block = item // (h * query_blocks), item // query_blocks % h, item % query_blocks
        first_t = part(t, step, query_blocks, block)
        queries, at = part(t, step, query_blocks, block + 1) - first_t, (i_b, i_h, first_t)
        attend(
            pairs, at, queries, query, key, value, mask, bias, lengths[i_b], sizes, causal, scale, scratch, out
        )  # fmt: skip
        for i in range(queries):
            shifts[i_b, i_h, first_t + i], totals[i_b, i_h, first_t + i] = shift[i], total[i]
