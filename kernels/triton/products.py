"""Products of matrices on GPUs: sums in float32 at least, never in tf32, in an order that the shapes alone decide."""

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import FUSION, backend, core_dtype, describe, load_tile, product, types

# Tiles of products by bytes a number; they do not change which function is computed.
TILES = {
    2: {"ROWS": 128, "COLUMNS": 128, "DEPTH": 64, "num_warps": 4, "num_stages": 3},
    4: {"ROWS": 64, "COLUMNS": 64, "DEPTH": 32, "num_warps": 4, "num_stages": 2},
    8: {"ROWS": 32, "COLUMNS": 32, "DEPTH": 32, "num_warps": 4, "num_stages": 1},
}
FEWEST = 256  # programs; where tiles are fewer, sums are taken in parts
SHORTEST = 512  # numbers in a part of a sum


def tiles_of(dtype):
    """The tiles for a dtype, and the dtypes that products are taken in: options of a kernel."""
    tiles = TILES[dtype.itemsize]
    stages = min(2, tiles["num_stages"]) if backend() == "hip" else tiles["num_stages"]  # 64 KB hold no more
    return {**tiles, "num_stages": stages, **types(dtype), **FUSION}


def multiply(a, b, total=None):
    """a b, (m, k) x (k, n) -> (m, n) in the dtype sums are taken in; added to ``total`` in place if that is given."""
    (m, k), n, core = a.shape, b.shape[1], core_dtype(a.dtype)
    if core != a.dtype and a.is_cuda and k:  # cuBLAS, whose sums are in float32 for operands of 16 bits alone
        if total is None:
            return torch.mm(a, b, out_dtype=core)
        return torch.addmm(total, a, b, out_dtype=core, out=total)
    tiles = tiles_of(a.dtype)
    rows, columns = triton.cdiv(m, tiles["ROWS"]), triton.cdiv(n, tiles["COLUMNS"])
    parts, in_part = parts_of_sum(rows * columns, k, tiles["DEPTH"])
    alone = parts == 1
    out = total[None] if alone and total is not None else a.new_empty((parts, m, n), dtype=core)
    if out.numel():
        with torch.cuda.device_of(a):
            _multiply[(rows * columns, parts)](
                describe(a), describe(b), describe(out), m, n, k, in_part, ADD=alone and total is not None, **tiles
            )  # fmt: skip
    if total is None:
        return out[0] if alone else out.sum(0)
    return total if alone else total.add_(out.sum(0))


def parts_of_sum(tiles, k, depth):
    """(in how many parts sums of k numbers are taken, how many numbers are in one: a multiple of ``depth``)."""
    parts = max(1, min(FEWEST // max(tiles, 1), triton.cdiv(k, SHORTEST)))
    return parts, triton.cdiv(triton.cdiv(k, parts), depth) * depth


@triton.jit
def transposed(x):
    """A matrix seen from its other side."""
    return x[0], x[2], x[1]


@triton.jit
def tile_at(i_tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(block of rows, block of columns) of a tile of a (rows, columns) matrix; neighbours share what they read."""
    row_blocks, column_blocks = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    return tl.swizzle2d(i_tile // column_blocks, i_tile % column_blocks, row_blocks, column_blocks, 8)


@triton.jit
def tile_of_product(
    a, b, i_row, i_column, rows, columns, start, stop,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """A block of a b, summed over [start, stop); the indices lie as in ``load_block``."""
    b_total = tl.zeros([ROWS, COLUMNS], CORE)
    for first in range(start, stop, DEPTH):
        i_depth = first + tl.arange(0, DEPTH)
        b_a = load_tile(a, i_row, i_depth[None, :], rows, stop)
        b_b = load_tile(b, i_depth[:, None], i_column, stop, columns)
        b_total += product(b_a, b_b, CORE, PRODUCT)
    return b_total


@triton.jit
def _multiply(
    a, b, out, m, n, k, in_part, ADD: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    i_part = tl.program_id(1).to(tl.int64)
    row_block, column_block = tile_at(tl.program_id(0), m, n, ROWS, COLUMNS)
    i_row = (row_block * ROWS + tl.arange(0, ROWS))[:, None]
    i_column = (column_block * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    start = tl.program_id(1) * in_part
    b_out = tile_of_product(
        a, b, i_row, i_column, m, n, start, tl.minimum(start + in_part, k), ROWS, COLUMNS, DEPTH, CORE, PRODUCT
    )
    p_out = out[0] + i_part * out[1] + i_row.to(tl.int64) * out[2] + i_column.to(tl.int64) * out[3]
    m_inside = (i_row < m) & (i_column < n)
    if ADD:
        b_out += tl.load(p_out, mask=m_inside, other=0)
    tl.store(p_out, b_out, mask=m_inside)
