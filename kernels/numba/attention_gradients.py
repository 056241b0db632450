"""The gradients of ``attention``, from tiles that are computed anew.

dV = Pᵀ dO;   dP = dO Vᵀ;   dS = P (dP − rowsum(dO * O) + dlse);   dQ = scale dS K;   dK = scale dSᵀ Q
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import numpy as np

from saccade.kernels.numba.attention_tiles import (
    KEYS,
    LOG2_E,
    QUERIES,
    corner,
    in_place,
    load_queries,
    part,
    rows_of,
    score_tile,
    unit_of,
    visible_end,
)
from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.halves import interleave, lie_in_pairs, multiply_units, units
from saccade.kernels.numba.mathematics import row_dot
from saccade.kernels.numba.memory import load_row, store_row
from saccade.kernels.numba.products import wide
from saccade.kernels.numba.softmax import softmax_gradient, softmax_gradient_pairs
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.vectors import lanes, widest_vectors


@jit
def row_sums(work, sizes, out, grad_out, row_sums):
    """rowsum(dO * O) for rows of the flattened (b, h, t)."""
    widest_vectors()
    b, h, t, s, d, e = sizes
    a, g = np.empty(e, row_sums.dtype), np.empty(e, row_sums.dtype)
    for item in shared(offer(work)):
        i_b, i_h, i_t = item // (h * t), item // t % h, item % t
        load_row(a, corner(out, i_b, i_h, i_t), out[5], out[1])
        load_row(g, corner(grad_out, i_b, i_h, i_t), grad_out[5], grad_out[1])
        row_sums[i_b, i_h, i_t] = row_dot(a, g)


@jit
def _gradient_tile(
    pairs, scores, grads, turned, turned_grad, k, k_row, v, v_row, mask, bias, causal, scale, at, sizes, queries, keys,
    lse, row_sums, shift, sums, across,
):  # fmt: skip
    """scores[:keys, :queries] = Pᵀ and grads = dSᵀ; ``shift`` and ``sums`` are scratch of a vector for each query.

    With ``pairs`` both are bfloat16, pairs of queries, 0 beside the last of an odd number, and ``across`` is dSᵀ in
    pairs of keys.
    """
    dtype, size = scores.dtype.type, scores.itemsize
    score_tile(pairs, scores, turned, k, k_row, mask, bias, causal, scale, at, sizes, queries, keys)
    multiply_units(
        pairs, dtype(0), v, v_row, size, turned_grad.ctypes.data, turned_grad.shape[1] * size, grads.ctypes.data,
        grads.shape[1] * size, keys, queries, units(pairs, sizes[5]), 0,
    )  # fmt: skip
    i_b, i_h, first_t, _ = at
    unit = unit_of(bias, scale)
    for i in range(queries):
        level = lse[i_b, i_h, first_t + i]
        shift[i] = level / unit if level != -np.inf else dtype(0)
        sums[i] = row_sums[i_b, i_h, first_t + i]
    factor, row = unit * dtype(LOG2_E), scores.shape[1] * size
    if pairs:
        shift[queries : wide(shift, queries)] = np.inf
        if keys % 2 == 1:
            scores[keys], grads[keys] = -np.inf, 0
    for i in range(0, queries, lanes(dtype(0))):
        state, sum_of = shift.ctypes.data + i * size, sums.ctypes.data + i * size
        if pairs:
            softmax_gradient_pairs(
                np.float32(factor), scores.ctypes.data, grads.ctypes.data, row, keys, state, sum_of, i * size,
                across.ctypes.data + i * size,
            )  # fmt: skip
        else:
            tile, beside = scores.ctypes.data + i * size, grads.ctypes.data + i * size
            softmax_gradient(factor, tile, beside, row, keys, state, sum_of)


@jit
def backward(
    work, pairs, parts, query, key, value, mask, bias, lengths, sizes, causal, scale, grad_out, lse, row_sums,
    grad_query, grad_key, grad_value,
):  # fmt: skip
    """Items are (b, h, a part of the keys): what a part adds to dQ is stored by itself, at ``grad_query``'s first axis.

    The gradients of a part's keys and values are summed in scratch while the queries pass by.
    """
    widest_vectors()
    b, h, t, s, d, e = sizes
    dtype, size = lse.dtype, lse.itemsize
    zero, step = dtype.type(0), lanes(dtype.type(0))
    wide_d, wide_e = wide(lse, d), wide(lse, e)
    deep_d, deep_e = wide(lse, units(pairs, d)), wide(lse, units(pairs, e))
    key_stays = lie_in_pairs(key, d) if pairs else in_place(key, lse, d)
    value_stays = lie_in_pairs(value, e) if pairs else in_place(value, lse, e)
    query_block, turned = np.zeros((QUERIES, deep_d), dtype), np.zeros((deep_d, QUERIES), dtype)
    grad_block, turned_grad = np.zeros((QUERIES, deep_e), dtype), np.zeros((deep_e, QUERIES), dtype)
    most = -(-s // parts) + 8
    key_block = np.zeros((0 if key_stays else most, deep_d), dtype)
    value_block = np.zeros((0 if value_stays else most, deep_e), dtype)
    few = (QUERIES // 2, most // 2 + 1, KEYS // 2) if pairs else (0, 0, 0)  # rows of pairs
    query_pairs, grad_pairs = np.zeros((few[0], wide_d), dtype), np.zeros((few[0], wide_e), dtype)
    key_pairs, across = np.zeros((few[1], wide_d), dtype), np.zeros((few[2], QUERIES), dtype)
    scores, grads = np.zeros((KEYS, QUERIES), dtype), np.zeros((KEYS, QUERIES), dtype)
    sum_query = np.zeros((QUERIES, wide_d), dtype)
    sum_key, sum_value = np.zeros((most, wide_d), dtype), np.zeros((most, wide_e), dtype)
    shift, sums = np.zeros(QUERIES, dtype), np.zeros(QUERIES, dtype)
    query_blocks = -(-t // QUERIES)
    for item in shared(offer(work)):
        i_b, i_h, i_part = item // (h * parts), item // parts % h, item % parts
        begin, stored = part(s, 8, parts, i_part), part(s, 8, parts, i_part + 1)
        end = min(stored, lengths[i_b])
        k, k_row = rows_of(pairs, key, key_block, key_stays, corner(key, i_b, i_h, begin), max(end - begin, 0), d)
        v, v_row = rows_of(
            pairs, value, value_block, value_stays, corner(value, i_b, i_h, begin), max(end - begin, 0), e
        )
        if pairs:
            interleave(key_pairs, key[4], key[5], corner(key, i_b, i_h, begin), max(end - begin, 0), d)
        sum_key[:], sum_value[:] = 0, 0
        key_blocks = -(-(stored - begin) // KEYS)
        for block in range(query_blocks):
            first_t = part(t, step, query_blocks, block)
            queries = part(t, step, query_blocks, block + 1) - first_t
            load_queries(pairs, query_block, turned, query, corner(query, i_b, i_h, first_t), queries, d, scale)
            load_queries(
                pairs, grad_block, turned_grad, grad_out, corner(grad_out, i_b, i_h, first_t), queries, e, zero
            )
            if pairs:
                interleave(query_pairs, query[4], query[5], corner(query, i_b, i_h, first_t), queries, d)
                interleave(grad_pairs, grad_out[4], grad_out[5], corner(grad_out, i_b, i_h, first_t), queries, e)
            queries_read, grads_read = (query_pairs, grad_pairs) if pairs else (query_block, grad_block)
            sum_query[:] = 0
            last = visible_end(end, causal, first_t + queries - 1, sizes)
            for key_part in range(key_blocks):
                first = part(stored - begin, 8, key_blocks, key_part)
                keys = min(part(stored - begin, 8, key_blocks, key_part + 1), last - begin) - first
                if keys <= 0:
                    break
                tile_k, tile_v, at = k + first * k_row, v + first * v_row, (i_b, i_h, first_t, begin + first)
                _gradient_tile(
                    pairs, scores, grads, turned, turned_grad, tile_k, k_row, tile_v, v_row, mask, bias, causal, scale,
                    at, sizes, queries, keys, lse, row_sums, shift, sums, across,
                )  # fmt: skip
                weights, score_grads, row = scores.ctypes.data, grads.ctypes.data, QUERIES * size
                depth = units(pairs, queries)
                multiply_units(
                    pairs, zero, weights, row, size, grads_read.ctypes.data, wide_e * size,
                    sum_value.ctypes.data + first * wide_e * size, wide_e * size, keys, e, depth, 1,
                )  # fmt: skip
                multiply_units(
                    pairs, zero, score_grads, row, size, queries_read.ctypes.data, wide_d * size,
                    sum_key.ctypes.data + first * wide_d * size, wide_d * size, keys, d, depth, 1,
                )  # fmt: skip
                if pairs:
                    tile_k, k_step = key_pairs.ctypes.data + first // 2 * wide_d * size, wide_d * size
                    score_grads = across.ctypes.data
                else:
                    k_step = k_row
                multiply_units(
                    pairs, zero, score_grads, size, row, tile_k, k_step, sum_query.ctypes.data, wide_d * size, queries,
                    d, units(pairs, keys), 1,
                )  # fmt: skip
            place = grad_query[0] + i_part * grad_query[2] + i_b * grad_query[3] + i_h * grad_query[4]
            for i in range(queries):
                sum_query[i] *= scale
                store_row(place + (first_t + i) * grad_query[5], grad_query[6], grad_query[1], sum_query[i, :d])
        for j in range(begin, stored):
            if j >= end:  # keys that were never read get no gradient
                sum_key[j - begin], sum_value[j - begin] = 0, 0
            sum_key[j - begin] *= scale
            store_row(corner(grad_key, i_b, i_h, j), grad_key[5], grad_key[1], sum_key[j - begin, :d])
            store_row(corner(grad_value, i_b, i_h, j), grad_value[5], grad_value[1], sum_value[j - begin, :e])


@jit
def backward_bias(work, query, key, value, mask, bias, lengths, sizes, causal, scale, grad_out, lse, row_sums, total):
    """dS summed over what the bias was broadcast along: an item owns its part of ``total`` (bias as 4-d)."""
    widest_vectors()
    b, h, t, s, d, e = sizes
    dtype = lse.dtype
    zero, step = dtype.type(0), lanes(dtype.type(0))
    wide_d, wide_e = wide(lse, d), wide(lse, e)
    query_block, turned = np.zeros((QUERIES, wide_d), dtype), np.zeros((wide_d, QUERIES), dtype)
    grad_block, turned_grad = np.zeros((QUERIES, wide_e), dtype), np.zeros((wide_e, QUERIES), dtype)
    key_block, value_block = np.zeros((KEYS, wide_d), dtype), np.zeros((KEYS, wide_e), dtype)
    scores, grads = np.zeros((KEYS, QUERIES), dtype), np.zeros((KEYS, QUERIES), dtype)
    shift, sums = np.zeros(QUERIES, dtype), np.zeros(QUERIES, dtype)
    of_b, of_h, of_t, of_s = total.shape
    blocks, key_blocks = -(-t // QUERIES), -(-s // KEYS)
    parts = blocks if of_t > 1 else 1
    for item in shared(offer(work)):
        bias_b, bias_h, i_part = item // (of_h * parts), item // parts % of_h, item % parts
        for i_b in range(bias_b, b if of_b == 1 else bias_b + 1):
            for i_h in range(bias_h, h if of_h == 1 else bias_h + 1):
                for block in range(i_part, blocks if parts == 1 else i_part + 1):
                    first_t = part(t, step, blocks, block)
                    queries = part(t, step, blocks, block + 1) - first_t
                    load_queries(False, query_block, turned, query, corner(query, i_b, i_h, first_t), queries, d, scale)
                    at_grad = corner(grad_out, i_b, i_h, first_t)
                    load_queries(False, grad_block, turned_grad, grad_out, at_grad, queries, e, zero)
                    end = visible_end(min(lengths[i_b], s), causal, first_t + queries - 1, sizes)
                    for key_part in range(key_blocks):
                        first_s = part(s, 8, key_blocks, key_part)
                        keys = min(part(s, 8, key_blocks, key_part + 1), end) - first_s
                        if keys <= 0:
                            break
                        k, k_row = rows_of(False, key, key_block, False, corner(key, i_b, i_h, first_s), keys, d)
                        v, v_row = rows_of(False, value, value_block, False, corner(value, i_b, i_h, first_s), keys, e)
                        at = (i_b, i_h, first_t, first_s)
                        _gradient_tile(
                            False, scores, grads, turned, turned_grad, k, k_row, v, v_row, mask, bias, causal, scale,
                            at, sizes, queries, keys, lse, row_sums, shift, sums, scores,
                        )  # fmt: skip
                        rows, columns = keys if of_s > 1 else 1, queries if of_t > 1 else 1
                        _reduce_tile(grads, keys, queries, rows, columns)
                        corner_t, corner_s = first_t if of_t > 1 else 0, first_s if of_s > 1 else 0
                        for j in range(rows):
                            for i in range(columns):
                                total[bias_b, bias_h, corner_t + i, corner_s + j] += grads[j, i]


@jit
def _reduce_tile(tile, keys, queries, rows, columns):
    """Sum a tile over its keys if ``rows`` is 1 and over its queries if ``columns`` is 1, in place: sums of sums lose
    less than one long sum."""
    if rows == 1:
        for j in range(1, keys):
            for i in range(queries):
                tile[0, i] += tile[j, i]
    if columns == 1:
        for j in range(rows):
            for i in range(1, queries):
                tile[j, 0] += tile[j, i]
