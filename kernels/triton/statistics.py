"""Statistics of logits that are products of rows, scale · A Bᵀ, a tile of them at a time.

What is kept of each row (or column) with a logit of its own, s the sign of the scale:

    LOSS   = log-sum-exp less its own logit
    TOP    = the largest of s times its products
    EXCESS = log-sum-exp less the largest logit

so that weights are exp(|scale| (s product − TOP) − EXCESS), differences of products first: a log-sum-exp in the
hundreds has no digits left for them. Its own logit is left out of sums and added by expm1, and its weight less 1 is
expm1(−LOSS): both keep their digits where a row is all but certain.

A program owns a block of rows and goes through the columns, or through a part of them where blocks of rows are few.
On the way it stores what each tile tells of its columns. Parts are joined in their order.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import FUSION, at_most, core_dtype, describe, load_tile, load_vector, types
from saccade.kernels.triton.products import tile_of_product, tiles_of, transposed

STATISTICS_BYTES = 32 << 20  # of what is known of columns before it is joined
# The tile of products, by bytes a number: smaller than others, since several arrays of its size are alive at once.
TILES = {
    2: {"ROWS": 64, "COLUMNS": 128, "num_warps": 8},
    4: {"ROWS": 64, "COLUMNS": 32},
    8: {"ROWS": 32, "COLUMNS": 32},
}
REGISTERS = {2: 128, 4: None, 8: None}  # of a thread at most, so that several programs run at once
FEWEST = 1024  # programs, where there are as many tiles
# Of rows with their own; that of products is theirs. It does not change which function is computed.
OWN_TILE = {"ROWS": 16, "DEPTH": 128, "num_warps": 4}
JOINED = {"BLOCK": 256, "num_warps": 2}  # rows that a program joins the parts of

LOSS, TOP, EXCESS = range(3)
LOG2E = tl.constexpr(1.4426950408889634)


def tiles_for(x):
    """The tiles for an array's dtype: both passes take products by the same ones, so that they are the same bit for
    bit. A weight of 1 would else be off by what rounding changed in its logit."""
    return {**tiles_of(x.dtype), **TILES[x.element_size()], **at_most(REGISTERS[x.element_size()])}


def panels(rows, bytes_of_row, most_bytes, multiple):
    """Slices of rows whose bytes stay below ``most_bytes``, all but the last a multiple of ``multiple`` long."""
    step = max(most_bytes // max(bytes_of_row, 1) // multiple, 1) * multiple
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def own_products(a, b, labels):
    """a_i · b_label of each row; labels None stand for i. A label that is none gives 0."""
    core = core_dtype(a.dtype)
    own = a.new_empty(len(a), dtype=core)
    if len(a):
        with torch.cuda.device_of(a):
            _own_products[(triton.cdiv(len(a), OWN_TILE["ROWS"]),)](
                describe(a), describe(b), describe(labels), describe(own), len(a), len(b), a.shape[1], **OWN_TILE,
                CORE=types(a.dtype)["CORE"], **FUSION,
            )  # fmt: skip
    return own


def statistics(a, b, scale, own, labels=None, columns=False, sums=False) -> Any:
    """Statistics (3, n) of the rows, of the columns if asked for, and the sums of products less their row's own if
    those are."""
    (n, e), k, tiles = a.shape, len(b), tiles_for(a)
    bytes_of_row = 2 * k * own.itemsize // tiles["ROWS"] if columns else 0
    slices, column_blocks = panels(n, bytes_of_row, STATISTICS_BYTES, tiles["ROWS"]), triton.cdiv(k, tiles["COLUMNS"])
    of_rows, row_sums = own.new_empty((3, n)), own.new_empty(n) if sums else None
    across, of_panels = None, own.new_empty((2, len(slices), k)) if columns else None
    for i, rows in enumerate(slices):
        some = rows.stop - rows.start
        row_blocks = triton.cdiv(some, tiles["ROWS"])
        in_part = triton.cdiv(column_blocks, min(column_blocks, triton.cdiv(FEWEST, row_blocks)))
        parts = triton.cdiv(column_blocks, in_part)
        along = own.new_empty((3 if sums else 2, parts, some))
        across = own.new_empty((2, row_blocks, k)) if columns else None
        with torch.cuda.device_of(a):
            _statistics[(row_blocks * parts,)](
                describe(a[rows]), describe(b), scale, describe(own[rows]),
                describe(None if labels is None else labels[rows]), describe(along), describe(across),
                rows.start, some, k, e, in_part, SUMS=sums, **tiles,
            )  # fmt: skip
        _join(along, scale, of_rows[:, rows], own[rows], None if row_sums is None else row_sums[rows])
        if of_panels is not None and len(slices) > 1:
            _join(across, scale, of_panels[:, i])
    of_columns = own.new_empty((3, k)) if columns else None
    if columns and n:
        _join(across if len(slices) == 1 else of_panels, scale, of_columns, own)
    return of_rows, of_columns, row_sums


def _join(parts, scale, out, own=None, sums=None):
    """Write maxima and sums of exponentials below them, (2, parts, n), as those of all; as statistics if ``own`` is
    given. A third of ``parts`` is added up."""
    count, n = parts.shape[1:]
    with torch.cuda.device_of(parts):
        _join_parts[(triton.cdiv(n, JOINED["BLOCK"]),)](
            describe(parts), scale, describe(own), describe(out), describe(sums), count, n, **JOINED,
            CORE=types(parts.dtype)["CORE"], **FUSION,
        )  # fmt: skip


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0: what 1 + x rounds away is made good."""
    b_whole = 1 + x
    b_less = b_whole - 1
    return tl.where(b_less == 0, x, tl.log(b_whole) * (x / tl.where(b_less == 0, 1.0, b_less)))


@triton.jit
def expm1(x):
    """exp(x) − 1 for x <= 0, with the digits of x where it is small."""
    b_whole = tl.exp(x)
    b_less = b_whole - 1
    b_log = tl.log(b_whole)
    b_near = b_less * (x / tl.where(b_log == 0, 1.0, b_log))
    return tl.where(b_less == 0, x, tl.where(b_less == -1, -1.0, b_near))


@triton.jit
def _finite_or_zero(x):
    """x, or 0 if it is not finite."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def _rescaled(b_total, b_from, b_to, factor):
    """Sums of exponentials below one maximum as below another."""
    b_rescaled = b_total * tl.exp2(factor * (_finite_or_zero(b_from) - _finite_or_zero(b_to)))
    return tl.where(b_total == 0, 0.0, b_rescaled)


@triton.jit
def sign_of(number):
    """−1 for a scale below 0, else 1."""
    return tl.where(number < 0, -1.0, 1.0)


@triton.jit
def labels_of(labels, first, i_row, rows):
    """The column of each row's own logit: its label, or where labels are None its place in the whole."""
    own = i_row + first
    if labels is not None:
        own = load_vector(labels, i_row, rows).to(tl.int32)
    return own


@triton.jit
def _own_products(
    a, b, labels, own, n, k, e, ROWS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr
):  # fmt: skip
    i_row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    i_own = labels_of(labels, 0, i_row, n)
    i_own = tl.where((i_own >= 0) & (i_own < k) & (i_row < n), i_own, k)
    b_total = tl.zeros([ROWS, DEPTH], CORE)
    for first in range(0, e, DEPTH):
        i_e = first + tl.arange(0, DEPTH)[None, :]
        b_total += load_tile(a, i_row, i_e, n, e).to(CORE) * load_tile(b, i_own, i_e, k, e).to(CORE)
    tl.store(own[0] + i_row * own[1], tl.sum(b_total, 1, keep_dims=True), mask=i_row < n)


@triton.jit
def _statistics(
    a, b, scale, own, labels, along, across, first, rows, columns, e, in_part, SUMS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Of each row of a block, and of each column in each tile if asked for: the maximum, the sum of exponentials below
    it without a row's own logit, and of rows the sum of products less the own."""
    row_blocks = tl.cdiv(rows, ROWS)
    row_block, part = tl.program_id(0) % row_blocks, tl.program_id(0) // row_blocks
    i_row = (row_block * ROWS + tl.arange(0, ROWS))[:, None]
    number = tl.load(scale)
    factor, sign = tl.abs(number) * LOG2E, sign_of(number)
    i_own, b_own = labels_of(labels, first, i_row, rows), load_vector(own, i_row, rows)
    b_top = tl.full([ROWS, 1], float("-inf"), CORE)
    b_total, b_sums = tl.zeros([ROWS, 1], CORE), tl.zeros([ROWS, 1], CORE)
    for start in range(part * in_part * COLUMNS, tl.minimum((part + 1) * in_part * COLUMNS, columns), COLUMNS):
        i_column = (start + tl.arange(0, COLUMNS))[None, :]
        b_products = tile_of_product(
            a, transposed(b), i_row, i_column, rows, columns, 0, e, ROWS, COLUMNS, DEPTH, CORE, PRODUCT
        )
        m_own = i_column == i_own
        m_others = (i_row < rows) & (i_column < columns) & ~m_own
        b_products = tl.where(m_own, b_own, b_products)  # bit for bit what maxima are compared with in the end
        if SUMS:
            b_sums += tl.sum(tl.where(m_others, b_products - b_own, 0.0), 1, keep_dims=True)
        b_levels = sign * b_products
        b_seen = tl.where((i_row < rows) & (i_column < columns), b_levels, float("-inf"))
        b_new_top = tl.maximum(b_top, tl.max(b_seen, 1, keep_dims=True))
        b_weights = tl.where(m_others, tl.exp2(factor * (b_levels - _finite_or_zero(b_new_top))), 0.0)
        b_total = _rescaled(b_total, b_top, b_new_top, factor) + tl.sum(b_weights, 1, keep_dims=True)
        b_top = b_new_top
        if across is not None:
            b_over = tl.max(b_seen, 0, keep_dims=True)
            b_weights = tl.where(m_others, tl.exp2(factor * (b_levels - _finite_or_zero(b_over))), 0.0)
            p_across = across[0] + row_block.to(tl.int64) * across[2] + i_column * across[3]
            tl.store(p_across, b_over, mask=i_column < columns)
            tl.store(p_across + across[1], tl.sum(b_weights, 0, keep_dims=True), mask=i_column < columns)
    p_along = along[0] + part.to(tl.int64) * along[2] + i_row * along[3]
    tl.store(p_along, b_top, mask=i_row < rows)
    tl.store(p_along + along[1], b_total, mask=i_row < rows)
    if SUMS:
        tl.store(p_along + 2 * along[1], b_sums, mask=i_row < rows)


@triton.jit
def _join_parts(parts, scale, own, out, sums, count, n, BLOCK: tl.constexpr, CORE: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(scale)
    factor = tl.abs(number) * LOG2E
    b_top, b_total, b_sums = tl.full([BLOCK], float("-inf"), CORE), tl.zeros([BLOCK], CORE), tl.zeros([BLOCK], CORE)
    p_parts = parts[0] + i * parts[3]
    for _ in range(count):
        b_part_top = tl.load(p_parts, mask=i < n, other=float("-inf"))
        b_part_total = tl.load(p_parts + parts[1], mask=i < n, other=0)
        b_new_top = tl.maximum(b_top, b_part_top)
        b_total = _rescaled(b_total, b_top, b_new_top, factor) + _rescaled(b_part_total, b_part_top, b_new_top, factor)
        b_top = b_new_top
        if sums is not None:
            b_sums += tl.load(p_parts + 2 * parts[1], mask=i < n, other=0)
        p_parts += parts[2]
    if sums is not None:
        tl.store(sums[0] + i * sums[1], b_sums, mask=i < n)
    p_out = out[0] + i * out[2]
    if own is None:
        tl.store(p_out, b_top, mask=i < n)
        tl.store(p_out + out[1], b_total, mask=i < n)
    else:
        b_top = _finite_or_zero(b_top)
        b_below = tl.abs(number) * (sign_of(number) * load_vector(own, i, n) - b_top)
        b_excess = log1p(b_total + expm1(b_below))
        tl.store(p_out, b_excess - b_below, mask=i < n)
        tl.store(p_out + out[1], b_top, mask=i < n)
        tl.store(p_out + 2 * out[1], b_excess, mask=i < n)
