"""The kernels of ``attention``: a block of queries or keys at a time, through tiles of scores.

S = scale Q Kᵀ + bias;   P = exp(S − lse);   O = P V
dV = Pᵀ dO;   dP = dO Vᵀ;   dS = P (dP − rowsum(dO * O) + dlse);   dQ = scale dS K;   dK = scale dSᵀ Q
"""

import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.mathematics import exponential
from saccade.kernels.numba.memory import load, load_block, load_block_transposed, load_row, read_byte, store_row
from saccade.kernels.numba.products import product, wide

# Tile sizes, multiples of the product's tile; they do not change which function is computed.
QUERIES, KEYS = 64, 192


@jit
def _score_tile(
    scores, query_block, key_block, mask, bias, length, causal, scale, at, sizes, queries, keys
):  # fmt: skip
    """scores[:queries, :keys] = scale Q Kᵀ + bias, −inf where a key may not be seen; at = its (b, h, t, s)."""
    product(query_block, query_block.shape[1], 1, key_block, scores, queries, keys, sizes[4], 0)
    i_b, i_h, first_t, first_s = at
    hidden = scores.dtype.type(-np.inf)
    for i in range(queries):
        row = scores[i]
        for j in range(keys):
            row[j] *= scale
        if bias[0] != 0:
            address = bias[0] + i_b * bias[2] + i_h * bias[3] + (first_t + i) * bias[4] + first_s * bias[5]
            for j in range(keys):
                row[j] += scores.dtype.type(load(address + j * bias[5], bias[1]))
        if mask[0] != 0:
            address = mask[0] + i_b * mask[2] + i_h * mask[3] + (first_t + i) * mask[4] + first_s * mask[5]
            for j in range(keys):
                if read_byte(address + j * mask[5]) == 0:
                    row[j] = hidden
        end = length
        if causal:
            end = min(end, first_t + i + 1 + sizes[3] - sizes[2])
        for j in range(max(end - first_s, 0), keys):
            row[j] = hidden


@jit
def _visible_end(length, causal, last_t, sizes):
    """One past the last key that any query up to ``last_t`` may see."""
    return max(min(length, last_t + 1 + sizes[3] - sizes[2]), 0) if causal else length


@jit
def _corner(array, i_b, i_h, row):
    return array[0] + i_b * array[2] + i_h * array[3] + row * array[4]


@jit
def forward(start, stop, query, key, value, mask, bias, lengths, sizes, causal, scale, out, lse):
    b, h, t, s, d, e = sizes
    dtype = lse.dtype
    wide_e = wide(lse, e)
    query_block = np.zeros((QUERIES, d), dtype)
    key_block = np.zeros((d, KEYS), dtype)
    value_block = np.zeros((KEYS, wide_e), dtype)
    scores = np.zeros((QUERIES, KEYS), dtype)
    sums = np.zeros((QUERIES, wide_e), dtype)
    line = np.empty(d, dtype)
    top, total = np.empty(QUERIES, dtype), np.empty(QUERIES, dtype)
    blocks = -(-t // QUERIES)
    for item in range(start, stop):
        i_b, i_h, first_t = item // (h * blocks), item // blocks % h, item % blocks * QUERIES
        queries = min(QUERIES, t - first_t)
        load_block(query_block, query, query[4], query[5], _corner(query, i_b, i_h, first_t), queries, d)
        top[:], total[:], sums[:] = -np.inf, 0, 0
        end = _visible_end(min(lengths[i_b], s), causal, first_t + queries - 1, sizes)
        for first_s in range(0, end, KEYS):
            keys = min(KEYS, end - first_s)
            load_block_transposed(key_block, line, key, key[4], key[5], _corner(key, i_b, i_h, first_s), keys, d)
            load_block(value_block, value, value[4], value[5], _corner(value, i_b, i_h, first_s), keys, e)
            at = (i_b, i_h, first_t, first_s)
            _score_tile(
                scores, query_block, key_block, mask, bias, lengths[i_b], causal, scale, at, sizes, queries, keys
            )
            for i in range(queries):
                _online_softmax(scores[i, :keys], sums[i, :e], top, total, i)
            product(scores, KEYS, 1, value_block, sums, queries, e, keys, 1)
        for i in range(queries):
            divisor = total[i] if total[i] != 0 else dtype.type(1)
            for j in range(e):
                sums[i, j] /= divisor
            lse[i_b, i_h, first_t + i] = top[i] + np.log(total[i]) if total[i] != 0 else dtype.type(-np.inf)
            store_row(_corner(out, i_b, i_h, first_t + i), out[5], out[1], sums[i, :e])


@jit
def _online_softmax(row, sums, top, total, i):
    """Turn a row of scores into exp(score − running maximum), and rescale what was summed before."""
    before = top[i]
    highest = before
    for j in range(row.shape[0]):
        highest = row[j] if row[j] > highest else highest
    # Infinite scores of either sign cannot be shifted: with none above −inf every weight is 0, and +inf gives NaN.
    shift = highest if highest != -np.inf else row.dtype.type(0)
    part = row.dtype.type(0)
    for j in range(row.shape[0]):
        row[j] = exponential(row[j] - shift)
    for j in range(row.shape[0]):
        part += row[j]
    if before != highest:
        rescale = exponential(before - shift)
        total[i] *= rescale
        for j in range(sums.shape[0]):
            sums[j] *= rescale
    total[i] += part
    top[i] = highest


@jit
def row_sums(start, stop, sizes, out, grad_out, row_sums):
    """rowsum(dO * O) for rows [start, stop) of the flattened (b, h, t)."""
    b, h, t, s, d, e = sizes
    a, g = np.empty(e, row_sums.dtype), np.empty(e, row_sums.dtype)
    for item in range(start, stop):
        i_b, i_h, i_t = item // (h * t), item // t % h, item % t
        load_row(a, _corner(out, i_b, i_h, i_t), out[5], out[1])
        load_row(g, _corner(grad_out, i_b, i_h, i_t), grad_out[5], grad_out[1])
        total = row_sums.dtype.type(0)
        for j in range(e):
            total += a[j] * g[j]
        row_sums[i_b, i_h, i_t] = total


@jit
def _weights_and_score_gradients(scores, grad_weights, lse_row, row_sums_row, queries, keys):
    """scores -> weights P and grad_weights dP -> dS, in place."""
    zero = scores.dtype.type(0)
    for i in range(queries):
        shift = lse_row[i] if lse_row[i] != -np.inf else zero
        for j in range(keys):
            weight = exponential(scores[i, j] - shift)
            scores[i, j] = weight
            grad = weight * (grad_weights[i, j] - row_sums_row[i])
            grad_weights[i, j] = zero if weight == 0 else grad


@jit
def backward_queries(
    start, stop, query, key, value, mask, bias, lengths, sizes, causal, scale, grad_out, lse, row_sums, grad_query
):
    b, h, t, s, d, e = sizes
    dtype = lse.dtype
    wide_d = wide(lse, d)
    query_block, grad_block = np.zeros((QUERIES, d), dtype), np.zeros((QUERIES, e), dtype)
    key_rows, key_block = np.zeros((KEYS, wide_d), dtype), np.zeros((d, KEYS), dtype)
    value_block = np.zeros((e, KEYS), dtype)
    scores, grad_weights = (
        np.zeros((QUERIES, KEYS), dtype),
        np.zeros((QUERIES, KEYS), dtype),
    )
    total = np.zeros((QUERIES, wide_d), dtype)
    line = np.empty(max(d, e), dtype)
    blocks = -(-t // QUERIES)
    for item in range(start, stop):
        i_b, i_h, first_t = item // (h * blocks), item // blocks % h, item % blocks * QUERIES
        queries = min(QUERIES, t - first_t)
        load_block(query_block, query, query[4], query[5], _corner(query, i_b, i_h, first_t), queries, d)
        load_block(grad_block, grad_out, grad_out[4], grad_out[5], _corner(grad_out, i_b, i_h, first_t), queries, e)
        total[:] = 0
        end = _visible_end(min(lengths[i_b], s), causal, first_t + queries - 1, sizes)
        for first_s in range(0, end, KEYS):
            keys = min(KEYS, end - first_s)
            key_corner, value_corner = _corner(key, i_b, i_h, first_s), _corner(value, i_b, i_h, first_s)
            load_block(key_rows, key, key[4], key[5], key_corner, keys, d)
            load_block_transposed(key_block, line, key, key[4], key[5], key_corner, keys, d)
            load_block_transposed(value_block, line, value, value[4], value[5], value_corner, keys, e)
            at = (i_b, i_h, first_t, first_s)
            _score_tile(
                scores, query_block, key_block, mask, bias, lengths[i_b], causal, scale, at, sizes, queries, keys
            )
            product(grad_block, e, 1, value_block, grad_weights, queries, keys, e, 0)
            rows = slice(first_t, first_t + queries)
            _weights_and_score_gradients(
                scores, grad_weights, lse[i_b, i_h, rows], row_sums[i_b, i_h, rows], queries, keys
            )
            product(grad_weights, KEYS, 1, key_rows, total, queries, d, keys, 1)
        for i in range(queries):
            for j in range(d):
                total[i, j] *= scale
            store_row(_corner(grad_query, i_b, i_h, first_t + i), grad_query[5], grad_query[1], total[i, :d])


@jit
def backward_keys(
    start, stop, query, key, value, mask, bias, lengths, sizes, causal, scale, grad_out, lse, row_sums,
    grad_key, grad_value,
):  # fmt: skip
    b, h, t, s, d, e = sizes
    dtype = lse.dtype
    wide_d, wide_e = wide(lse, d), wide(lse, e)
    query_block, grad_block = (
        np.zeros((QUERIES, wide_d), dtype),
        np.zeros((QUERIES, wide_e), dtype),
    )
    key_block, value_block = np.zeros((d, KEYS), dtype), np.zeros((e, KEYS), dtype)
    scores, grad_weights = (
        np.zeros((QUERIES, KEYS), dtype),
        np.zeros((QUERIES, KEYS), dtype),
    )
    total_key, total_value = np.zeros((KEYS, wide_d), dtype), np.zeros((KEYS, wide_e), dtype)
    line = np.empty(max(d, e), dtype)
    blocks = -(-s // KEYS)
    for item in range(start, stop):
        i_b, i_h, first_s = item // (h * blocks), item // blocks % h, item % blocks * KEYS
        stored = min(KEYS, s - first_s)
        keys = max(min(stored, lengths[i_b] - first_s), 0)
        total_key[:], total_value[:] = 0, 0
        if keys > 0:
            load_block_transposed(key_block, line, key, key[4], key[5], _corner(key, i_b, i_h, first_s), keys, d)
            value_corner = _corner(value, i_b, i_h, first_s)
            load_block_transposed(value_block, line, value, value[4], value[5], value_corner, keys, e)
            # causal: the first query that sees key first_s
            first_block = max(first_s - (s - t), 0) // QUERIES if causal else 0
            for block in range(first_block, -(-t // QUERIES)):
                first_t = block * QUERIES
                queries = min(QUERIES, t - first_t)
                load_block(query_block, query, query[4], query[5], _corner(query, i_b, i_h, first_t), queries, d)
                corner = _corner(grad_out, i_b, i_h, first_t)
                load_block(grad_block, grad_out, grad_out[4], grad_out[5], corner, queries, e)
                at = (i_b, i_h, first_t, first_s)
                _score_tile(
                    scores, query_block, key_block, mask, bias, lengths[i_b], causal, scale, at, sizes, queries, keys
                )
                product(grad_block, wide_e, 1, value_block, grad_weights, queries, keys, e, 0)
                rows = slice(first_t, first_t + queries)
                _weights_and_score_gradients(
                    scores, grad_weights, lse[i_b, i_h, rows], row_sums[i_b, i_h, rows], queries, keys
                )
                product(scores, 1, KEYS, grad_block, total_value, keys, e, queries, 1)
                product(grad_weights, 1, KEYS, query_block, total_key, keys, d, queries, 1)
        for j in range(keys, stored):  # keys that were never read get no gradient
            total_key[j], total_value[j] = 0, 0
        for j in range(stored):
            for i in range(d):
                total_key[j, i] *= scale
            store_row(_corner(grad_key, i_b, i_h, first_s + j), grad_key[5], grad_key[1], total_key[j, :d])
            store_row(_corner(grad_value, i_b, i_h, first_s + j), grad_value[5], grad_value[1], total_value[j, :e])


@jit
def backward_bias(
    start, stop, query, key, value, mask, bias, lengths, sizes, causal, scale, grad_out, lse, row_sums, total
):
    """dS summed over what the bias was broadcast along: an item owns its part of ``total`` (bias as 4-d)."""
    b, h, t, s, d, e = sizes
    dtype = lse.dtype
    query_block, grad_block = np.zeros((QUERIES, d), dtype), np.zeros((QUERIES, e), dtype)
    key_block, value_block = np.zeros((d, KEYS), dtype), np.zeros((e, KEYS), dtype)
    scores, grad_weights = (
        np.zeros((QUERIES, KEYS), dtype),
        np.zeros((QUERIES, KEYS), dtype),
    )
    line = np.empty(max(d, e), dtype)
    of_b, of_h, of_t, of_s = total.shape
    blocks = -(-t // QUERIES)
    parts = blocks if of_t > 1 else 1
    for item in range(start, stop):
        bias_b, bias_h, part = item // (of_h * parts), item // parts % of_h, item % parts
        for i_b in range(bias_b, b if of_b == 1 else bias_b + 1):
            for i_h in range(bias_h, h if of_h == 1 else bias_h + 1):
                for block in range(part, blocks if parts == 1 else part + 1):
                    first_t = block * QUERIES
                    queries = min(QUERIES, t - first_t)
                    corner = _corner(query, i_b, i_h, first_t)
                    load_block(query_block, query, query[4], query[5], corner, queries, d)
                    corner = _corner(grad_out, i_b, i_h, first_t)
                    load_block(grad_block, grad_out, grad_out[4], grad_out[5], corner, queries, e)
                    end = _visible_end(min(lengths[i_b], s), causal, first_t + queries - 1, sizes)
                    for first_s in range(0, end, KEYS):
                        keys = min(KEYS, end - first_s)
                        corner = _corner(key, i_b, i_h, first_s)
                        load_block_transposed(key_block, line, key, key[4], key[5], corner, keys, d)
                        corner = _corner(value, i_b, i_h, first_s)
                        load_block_transposed(value_block, line, value, value[4], value[5], corner, keys, e)
                        at = (i_b, i_h, first_t, first_s)
                        _score_tile(
                            scores, query_block, key_block, mask, bias, lengths[i_b], causal, scale, at, sizes,
                            queries, keys,
                        )  # fmt: skip
                        product(grad_block, e, 1, value_block, grad_weights, queries, keys, e, 0)
                        rows = slice(first_t, first_t + queries)
                        _weights_and_score_gradients(
                            scores, grad_weights, lse[i_b, i_h, rows], row_sums[i_b, i_h, rows], queries, keys
                        )
                        rows, columns = queries if of_t > 1 else 1, keys if of_s > 1 else 1
                        _reduce_tile(grad_weights, queries, keys, rows, columns)
                        corner_t, corner_s = first_t if of_t > 1 else 0, first_s if of_s > 1 else 0
                        for i in range(rows):
                            for j in range(columns):
                                total[bias_b, bias_h, corner_t + i, corner_s + j] += grad_weights[i, j]


@jit
def _reduce_tile(tile, queries, keys, rows, columns):
    """Sum a tile over its keys if ``columns`` is 1 and over its queries if ``rows`` is 1, in place: sums of sums
    lose less than one long sum."""
    if columns == 1:
        for i in range(queries):
            for j in range(1, keys):
                tile[i, 0] += tile[i, j]
    if rows == 1:
        for i in range(1, queries):
            for j in range(columns):
                tile[0, j] += tile[i, j]
