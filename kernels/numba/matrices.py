"""Products of matrices on CPUs: BLAS's, or our own on processors where those are faster.

On AMD's Zen 5, which computes vectors of 64 bytes whole, products of ours are up to twice as fast as OpenBLAS's, which
takes it for a processor without such, and MKL's; on Zen 4 they are a tenth to a third faster (``bench/NOTES.md``).
Elsewhere BLAS is taken.

Ours: one operand is packed as columns, whole vectors wide; items are bands of rows of the other by groups of those
columns. Each number is one chain of fused multiply-adds, whatever the sizes: the bits of a row do not depend on the
others.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import llvmlite.binding as llvm
import numpy as np

from saccade.kernels.numba import few_rows
from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.halves import in_pairs, interleave, load_rows, multiply_units, units
from saccade.kernels.numba.memory import BFLOAT16, FLOAT32, FLOAT64, core_dtype, describe, load_block, store_row
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for
from saccade.kernels.numba.vectors import BYTES, lanes, transpose, transpose_square, widest_vectors

OWN = llvm.get_host_cpu_name() in ("znver4", "znver5")

ROWS, COLUMNS = 64, 48  # of a tile: multiples of the register tile's
DEPTH = 768  # how deep it is multiplied at a time
GROUP = 16  # tiles side by side in an item

silent = np.errstate(all="ignore")  # as the kernels are: overflow and invalid numbers are results, not news


def raised(x):
    """``x`` in its core dtype: float32 for float16 and bfloat16."""
    return x.astype(core_dtype(x.dtype), copy=False)


def rounded(x, like):
    """``x`` rounded once to the dtype of ``like``."""
    return x.astype(like.dtype, copy=False)


@silent
def matmul(a, b, dtype, bias=None):
    """a b + bias, (n, e) x (e, k) -> (n, k), of any strides: summed in the core dtype, rounded once to ``dtype``."""
    if OWN and a.size and b.size:
        return own_matmul(a, b, dtype, bias)
    out = raised(a) @ raised(b)
    if bias is not None:
        out += raised(bias)
    return out.astype(dtype, copy=False)


def own_matmul(a, b, dtype, bias=None):
    """``matmul`` by our own kernels; no operand is empty."""
    (n, e), k, core = a.shape, b.shape[1], core_dtype(a.dtype)
    out = np.empty((n, k), dtype)
    added = np.zeros(0, core) if bias is None else np.array(bias, core)
    pairs = in_pairs(a, b)
    if n <= few_rows.MOST and (pairs or b.dtype == core) and b.strides[0] == b.itemsize:
        rows = np.zeros((few_rows.MOST, -(-units(pairs, e) // _LANES) * _LANES), core)
        rows.view(b.dtype)[:n, :e] = a
        grain = max(1, few_rows.GRAIN // (_LANES * e * b.itemsize))
        groups = -(-k * core.itemsize // BYTES)
        parallel_for(few_rows.few_rows, groups, grain, pairs, (n, k, e), rows, describe(b.T), added, describe(out))
        return out
    # What is packed is read and written once more, and so is the result where it comes out on its side.
    turned = n * (e + k) < e * k
    banded, packed_of = (b.T, a.T) if turned else (a, b)
    height, width = banded.shape[0], packed_of.shape[1]
    blocks = -(-width // COLUMNS)
    packed = np.empty((blocks, -(-units(pairs, e) // _LANES) * _LANES, COLUMNS), core)
    across = _rows_are_dense(packed_of.T)
    source = describe(packed_of.T if across else packed_of)
    parallel_for(_pack, blocks, 1, (e, width), source, across, pairs, packed)
    along = _rows_are_dense(banded)
    rows = describe(banded if along else banded.T)
    items = -(-height // ROWS) * -(-blocks // GROUP)
    parallel_for(_multiply, items, 1, (height, width, e), rows, along, pairs, packed, turned, added, describe(out))
    return out


_LANES = 16  # the longest vector's; packed matrices are turned over in squares of vectors


def _rows_are_dense(x):
    return x.strides[1] == x.itemsize or x.shape[1] == 1


@jit
def _pack(work, sizes, source, across, pairs, packed):
    """packed[block] = COLUMNS columns of a matrix (depth, width); ``across``, of its transpose, rows of the source."""
    depth, width = sizes
    rows = np.zeros((COLUMNS, packed.shape[1]), packed.dtype)
    for block in shared(offer(work)):
        first = block * COLUMNS
        columns = min(COLUMNS, width - first)
        if across:
            if columns < COLUMNS:
                rows[:] = 0
            load_rows(pairs, rows, source, source[0] + first * source[2], columns, depth)
            transpose(rows, packed[block], COLUMNS, packed.shape[1])
        else:
            packed[block, :, columns:] = 0
            _load_columns(pairs, packed[block], source, source[0] + first * source[3], depth, columns)


@jit
def _load_columns(pairs, block, source, address, depth, columns):
    if pairs:
        interleave(block, source[2], source[3], address, depth, columns)
    else:
        load_block(block, source, source[2], source[3], address, depth, columns)


@jit
def _multiply(work, sizes, a, along, pairs, packed, turned, bias, out):
    """out = A B + bias with B packed, or ``turned`` its transpose: ROWS rows by GROUP blocks of columns an item.

    ``along``: A's rows are dense; otherwise ``a`` describes its transpose.
    """
    height, width, depth = sizes
    bands, blocks = (height + ROWS - 1) // ROWS, packed.shape[0]
    dtype = packed.dtype
    zero, size = dtype.type(0), packed.itemsize
    together = 2 if pairs else 1  # numbers along the sum that are one operand
    core = BFLOAT16 if pairs else FLOAT64 if size == 8 else FLOAT32
    lies = along and a[1] == core and depth % together == 0  # rows are multiplied where they lie
    rows_of_a, columns_of_a = np.zeros((ROWS, DEPTH), dtype), np.zeros((DEPTH, ROWS), dtype)
    totals, side = np.zeros((ROWS, GROUP * COLUMNS), dtype), np.zeros((_LANES, ROWS), dtype)
    total_row = GROUP * COLUMNS * size
    for item in shared(offer(work)):
        first, first_block = item % bands * ROWS, item // bands * GROUP
        rows, last_block = min(ROWS, height - first), min(first_block + GROUP, blocks)
        for start in range(0, depth, DEPTH * together):
            numbers = min(DEPTH * together, depth - start)
            deep = units(pairs, numbers)
            if along:
                place, row, step = a[0] + first * a[2] + start * a[3], a[2], size
                if not lies:
                    if numbers % together:
                        rows_of_a[:, deep - 1] = 0
                    load_rows(pairs, rows_of_a, a, place, rows, numbers)
                    place, row = rows_of_a.ctypes.data, DEPTH * size
            else:
                _load_columns(pairs, columns_of_a, a, a[0] + start * a[2] + first * a[3], numbers, rows)
                place, row, step = columns_of_a.ctypes.data, size, ROWS * size
            for block in range(first_block, last_block):
                columns = min(COLUMNS, width - block * COLUMNS)
                b = packed.ctypes.data + (block * packed.shape[1] + start // together) * COLUMNS * size
                total = totals.ctypes.data + (block - first_block) * COLUMNS * size
                multiply_units(
                    pairs, zero, place, row, step, b, COLUMNS * size, total, total_row, rows, columns, deep, start > 0,
                )  # fmt: skip
        first_column = first_block * COLUMNS
        columns = min(last_block * COLUMNS, width) - first_column
        if turned:
            for i in range(rows):
                _add(totals[i, :columns], bias, first + i, 0)
            _store_turned(totals, side, out, first, first_column, rows, columns)
        else:
            for i in range(rows):
                _add(totals[i, :columns], bias, first_column, 1)
                _store(out, first + i, first_column, totals[i, :columns])


@jit
def _store_turned(totals, side, out, first, first_column, rows, columns):
    """out[first_column + j, first + i] = totals[i, j], squares of vectors where they come to lie if those are whole."""
    zero, size = totals.dtype.type(0), totals.itemsize
    square, row = lanes(zero), totals.shape[1] * size
    straight = out[3] == size and out[1] == (FLOAT64 if size == 8 else FLOAT32) and rows % square == 0
    for j in range(0, columns, square):
        target, target_row = out[0] + (first_column + j) * out[2] + first * size, out[2]
        whole = straight and j + square <= columns
        if not whole:
            target, target_row = side.ctypes.data, ROWS * size
        for i in range(0, rows, square):
            transpose_square(zero, totals.ctypes.data + i * row + j * size, row, target + i * size, target_row)
        if not whole:
            for k in range(min(square, columns - j)):
                _store(out, first_column + j + k, first, side[k, :rows])


@jit
def _add(row, bias, first, step):
    widest_vectors()
    if bias.shape[0] == 0:
        return
    if step == 0:
        number = bias[first]
        for j in range(row.shape[0]):
            row[j] += number
    else:
        for j in range(row.shape[0]):
            row[j] += bias[first + j]


@jit
def _store(out, row, column, numbers):
    store_row(out[0] + row * out[2] + column * out[3], out[3], out[1], numbers)
