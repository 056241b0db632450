"""Attention of one query, such as a token that is sampled asks: keys and values are read once, where they lie.

s = scale K q + bias;   p = exp(s − max s);   o = Vᵀ p / sum p

Four rows of keys or values are read side by side.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import numpy as np

from saccade.kernels.numba.compilation import jit, jit_reassociating
from saccade.kernels.numba.mathematics import exponentials, row_max, row_sum
from saccade.kernels.numba.memory import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    corner,
    load,
    load_row,
    read_bfloat16,
    read_byte,
    read_float32,
    read_float64,
    store_row,
)
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.vectors import widest_vectors

ROWS = 4


@jit
def row_scratch(like, s, d, e):
    """What ``attend_row`` needs of memory, for at most s keys of d numbers and values of e."""
    scores, asked, sums = np.empty(s + ROWS, like.dtype), np.empty(d, like.dtype), np.empty(e, like.dtype)
    return scores, asked, sums, np.zeros((ROWS + 1, max(d, e)), like.dtype)


@jit
def attend_row(at, query, key, value, mask, bias, keys, scale, scratch, out):
    """The output of the query at (b, h, t), which may see the first ``keys``; its shift and total."""
    (i_b, i_h, i_t), (room, asked, sums, rows) = at, scratch
    scores, real = room[:keys], room.dtype.type
    load_row(asked, corner(query, i_b, i_h, i_t), query[5], query[1])
    for j in range(0, keys, ROWS):
        a, b, c, d, kind = _four(rows, key, corner(key, i_b, i_h, j), keys - j, asked.shape[0])
        room[j], room[j + 1], room[j + 2], room[j + 3] = _dots(asked, kind, a, b, c, d)
    for j in range(keys):
        scores[j] *= scale
    if bias[0] != 0:
        address = corner(bias, i_b, i_h, i_t)
        for j in range(keys):
            scores[j] += real(load(address + j * bias[5], bias[1]))
    if mask[0] != 0:
        address = corner(mask, i_b, i_h, i_t)
        for j in range(keys):
            if read_byte(address, j * mask[5]) == 0:
                scores[j] = -np.inf
    shift = row_max(scores)
    exponentials(scores, real(0) if shift == -np.inf else shift)
    total = row_sum(scores)
    room[keys : keys + ROWS], sums[:] = 0, 0
    for j in range(0, keys, ROWS):
        a, b, c, d, kind = _four(rows, value, corner(value, i_b, i_h, j), keys - j, sums.shape[0])
        _add_weighted(sums, kind, room[j], room[j + 1], room[j + 2], room[j + 3], a, b, c, d)
    factor = real(1) / total if total != 0 else real(0)
    for j in range(sums.shape[0]):
        sums[j] *= factor
    store_row(corner(out, i_b, i_h, i_t), out[5], out[1], sums)
    return shift, total


@jit
def _four(rows, array, address, left, columns):
    """Addresses of the next rows, zeros for those beyond the last, and the kind of their numbers, which are neighbours:
    those of copies where the array's are not."""
    step, size, kind = array[4], rows.itemsize, FLOAT32 if rows.itemsize == 4 else FLOAT64
    own, row = rows.ctypes.data, rows.shape[1] * size
    zeros = own + ROWS * row
    if (array[1] == kind and array[5] == size) or (array[1] == BFLOAT16 and array[5] == 2):
        own, row, kind = address, step, array[1]
    else:
        for i in range(min(ROWS, left)):
            load_row(rows[i, :columns], address + i * step, array[5], array[1])
    b, c, d = own + row, own + 2 * row, own + 3 * row
    return own, b if left > 1 else zeros, c if left > 2 else zeros, d if left > 3 else zeros, kind


@jit_reassociating
def _dots(x, kind, a, b, c, d):
    """The sums of products of x with four rows at addresses."""
    widest_vectors()
    real = x.dtype.type
    of_a, of_b, of_c, of_d = real(0), real(0), real(0), real(0)
    if kind == BFLOAT16:
        for i in range(x.shape[0]):
            of_a += x[i] * read_bfloat16(a, 2 * i)
            of_b += x[i] * read_bfloat16(b, 2 * i)
            of_c += x[i] * read_bfloat16(c, 2 * i)
            of_d += x[i] * read_bfloat16(d, 2 * i)
    elif x.itemsize == 4:
        for i in range(x.shape[0]):
            of_a += x[i] * read_float32(a, 4 * i)
            of_b += x[i] * read_float32(b, 4 * i)
            of_c += x[i] * read_float32(c, 4 * i)
            of_d += x[i] * read_float32(d, 4 * i)
    else:
        for i in range(x.shape[0]):
            of_a += x[i] * real(read_float64(a, 8 * i))
            of_b += x[i] * real(read_float64(b, 8 * i))
            of_c += x[i] * real(read_float64(c, 8 * i))
            of_d += x[i] * real(read_float64(d, 8 * i))
    return of_a, of_b, of_c, of_d


@jit
def _add_weighted(sums, kind, of_a, of_b, of_c, of_d, a, b, c, d):
    """sums += the four rows at addresses, each times its weight."""
    widest_vectors()
    real = sums.dtype.type
    if kind == BFLOAT16:
        for i in range(sums.shape[0]):
            first = of_a * read_bfloat16(a, 2 * i) + of_b * read_bfloat16(b, 2 * i)
            sums[i] += first + of_c * read_bfloat16(c, 2 * i) + of_d * read_bfloat16(d, 2 * i)
    elif sums.itemsize == 4:
        for i in range(sums.shape[0]):
            first = of_a * read_float32(a, 4 * i) + of_b * read_float32(b, 4 * i)
            sums[i] += first + of_c * read_float32(c, 4 * i) + of_d * read_float32(d, 4 * i)
    else:
        for i in range(sums.shape[0]):
            first = of_a * real(read_float64(a, 8 * i)) + of_b * real(read_float64(b, 8 * i))
            sums[i] += first + of_c * real(read_float64(c, 8 * i)) + of_d * real(read_float64(d, 8 * i))


@jit
def forward_row(work, query, key, value, mask, bias, lengths, sizes, scale, out, shifts, totals):
    """``attention_tiles.forward`` of one query for each head."""
    _, h, _, s, d, e = sizes
    scratch = row_scratch(totals, s, d, e)
    for item in shared(offer(work)):
        i_b, i_h = item // h, item % h
        at, keys = (i_b, i_h, 0), min(lengths[i_b], s)
        shift, total = attend_row(at, query, key, value, mask, bias, keys, scale, scratch, out)
        shifts[i_b, i_h, 0], totals[i_b, i_h, 0] = shift, total
