"""Tiles of attention's scores on GPUs: which there are, and what the passes of ``attention`` share.

A row of a head lies in one or two blocks, whose widths are powers of two: 72 numbers in 64 and 16, not in 128. Keys
that every query of a tile sees are taken BLOCK_S at a time without asking of each score whether it is seen; those at
an edge, of the sequence or of what may be seen, EDGE at a time. 197 keys are three blocks of 64 and one of 16.
"""

import functools

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import from_double_bits, load_block, product

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@functools.cache
def widths(n):
    """The widths of the two blocks that hold rows of n numbers; the second is 0 where one does."""
    whole = max(16, triton.next_power_of_2(n))
    first = whole // 2
    second = max(16, triton.next_power_of_2(n - first))
    return (first, second) if first >= 16 and first + second < whole else (whole, 0)


def unit_of(*arrays):
    """What divides all strides of arrays but the last, 8 or 1: with 8, what is loaded begins at 16 bytes."""
    return 8 if all(stride % 8 == 0 for x in arrays for stride in x.stride()[:-1]) else 1


def describe_heads(x, unit):
    """(pointer, strides): those of the first three axes in units."""
    *strides, last = x.stride()
    return x, *(stride // unit for stride in strides), last


def blocks_of_sequences(cumulative_lengths, n, block):
    """For each block of rows of packed sequences, (where its sequence begins, that one's length, its first row there),
    (3, blocks) int32. There are as many as there can be, for nothing to wait for the GPU: the last have no rows."""
    bounds = cumulative_lengths.to(torch.int64)
    count = triton.cdiv(n, block) + len(bounds) - 1
    lengths = bounds.diff()
    stops = (-(-lengths // block)).cumsum(0)
    i = torch.arange(count, device=bounds.device)
    sequence = torch.searchsorted(stops, i, right=True)
    m_there, sequence = sequence < len(lengths), sequence.clamp(max=len(lengths) - 1)
    first = block * (i - stops[sequence - 1].masked_fill(sequence == 0, 0))
    rows = lengths[sequence].masked_fill(~m_there, 0)
    return torch.stack([bounds[sequence], rows, first]).to(torch.int32)


@triton.jit
def place(table, n, h, BLOCK: tl.constexpr):
    """Which (b, h) this program works on, and its first index along the axis of length n or, with a table of
    ``blocks_of_sequences``, in its sequence."""
    i_program = tl.program_id(0)
    blocks = tl.cdiv(n, BLOCK)
    if table is not None:
        blocks = table[1]
    i_bh = i_program // blocks
    first = (i_program % blocks) * BLOCK
    if table is not None:
        first = tl.load(table[0] + 2 * table[1] + i_program % blocks)
    return (i_bh // h).to(tl.int64), (i_bh % h).to(tl.int64), first


@triton.jit
def sequence_of(table):
    """(the row where this program's sequence begins, how many rows it has)."""
    p_table = table[0] + tl.program_id(0) % table[1]
    return tl.load(p_table).to(tl.int64), tl.load(p_table + table[1])


@triton.jit
def heads_from(x, start, UNIT: tl.constexpr):
    """An array of heads from a row on."""
    return x[0] + start * x[3] * UNIT, x[1], x[2], x[3], x[4]


@triton.jit
def rows_from(x, start):
    """A 3-d array from a row on."""
    return x[0] + start * x[3], x[1], x[2], x[3]


@triton.jit
def _places(x, i_b, i_h, i_row, FROM: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr):
    """(pointers of rows of the matrix (b, h), WIDTH numbers from FROM; their columns)."""
    i_column = FROM + tl.arange(0, WIDTH)
    starts = (i_b * x[1] + i_h * x[2]) * UNIT + i_row.to(tl.int64) * x[3] * UNIT
    return x[0] + starts[:, None] + (i_column.to(tl.int64) * x[4])[None, :], i_column[None, :]


@triton.jit
def _load(
    x, i_b, i_h, i_row, rows, COLUMNS: tl.constexpr, FROM: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    p_x, i_column = _places(x, i_b, i_h, i_row, FROM, WIDTH, UNIT)
    if WHOLE and FROM + WIDTH <= COLUMNS:
        b_x = tl.load(p_x)
    elif WHOLE:
        b_x = tl.load(p_x, mask=i_column < COLUMNS, other=0)
    else:
        b_x = tl.load(p_x, mask=(i_column < COLUMNS) & (i_row[:, None] < rows), other=0)
    return b_x


@triton.jit
def load_heads(
    x, i_b, i_h, i_row, rows, COLUMNS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, UNIT: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Both blocks of rows of the matrix (b, h), the second the first again where one holds them. 0 beyond the last
    column and, unless all rows are known to be there (WHOLE), from ``rows`` on."""
    b_first = _load(x, i_b, i_h, i_row, rows, COLUMNS, 0, FIRST, UNIT, WHOLE)
    b_second = b_first
    if SECOND > 0:
        b_second = _load(x, i_b, i_h, i_row, rows, COLUMNS, FIRST, SECOND, UNIT, WHOLE)
    return b_first, b_second


@triton.jit
def store_heads(
    x, i_b, i_h, i_row, rows, b_first, b_second, COLUMNS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Write both blocks of the rows below ``rows``, rounded to the dtype of ``x``."""
    p_x, i_column = _places(x, i_b, i_h, i_row, 0, FIRST, UNIT)
    tl.store(p_x, b_first.to(x[0].dtype.element_ty), mask=(i_column < COLUMNS) & (i_row[:, None] < rows))
    if SECOND > 0:
        p_x, i_column = _places(x, i_b, i_h, i_row, FIRST, SECOND, UNIT)
        tl.store(p_x, b_second.to(x[0].dtype.element_ty), mask=(i_column < COLUMNS) & (i_row[:, None] < rows))


@triton.jit
def zeros(ROWS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, CORE: tl.constexpr):
    """Both blocks of sums; a second that nothing is added to is never there."""
    return tl.zeros([ROWS, FIRST], CORE), tl.zeros([ROWS, SECOND if SECOND > 0 else 16], CORE)


@triton.jit
def across(a_first, a_second, b_first, b_second, SECOND: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr):
    """A Bᵀ of rows that lie in two blocks."""
    b_total = product(a_first, tl.trans(b_first), CORE, PRODUCT)
    if SECOND > 0:
        b_total += product(a_second, tl.trans(b_second), CORE, PRODUCT)
    return b_total


@triton.jit
def along(
    b_weights, b_first, b_second, b_to_first, b_to_second, SECOND: tl.constexpr, CORE: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """Both blocks of sums with weights · rows added."""
    b_to_first += product(b_weights, b_first, CORE, PRODUCT)
    if SECOND > 0:
        b_to_second += product(b_weights, b_second, CORE, PRODUCT)
    return b_to_first, b_to_second


@triton.jit
def scale_and_factor(scale_bits, CORE: tl.constexpr):
    """(scale, what products of ``turned`` rows are multiplied by for exp2: never negative, never 0)."""
    scale = from_double_bits(scale_bits, CORE)
    return scale, tl.where(scale == 0, 1.0, tl.abs(scale) * LOG2E).to(CORE)


@triton.jit
def turned(b_rows, scale, CORE: tl.constexpr, PRODUCT: tl.constexpr):
    """Rows times the sign of the scale, so that the largest product is the largest score."""
    sign = (scale > 0).to(CORE) - (scale < 0).to(CORE)
    return (b_rows.to(CORE) * sign).to(PRODUCT)


@triton.jit
def length_of(key_lengths, i_b, s):
    """How many keys of item b are there to be read."""
    length = s
    if key_lengths is not None:
        length = tl.minimum(tl.load(key_lengths[0] + i_b * key_lengths[1]).to(tl.int32), s)
    return length


@triton.jit
def keys_seen(mask, first_t, t, s, length, CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """(before which key blocks are seen whole by all queries of a tile, before which key any is seen)."""
    end = length
    whole = length
    if CAUSAL:
        end = tl.minimum(length, first_t + BLOCK_T + s - t)
        whole = tl.minimum(length, tl.maximum(first_t + 1 + s - t, 0))
    whole = whole // BLOCK_S * BLOCK_S
    if mask is not None:
        whole = whole * 0
    return whole, end


@triton.jit
def levels(
    b_products, mask, bias, i_b, i_h, i_t, i_s, t, s, length, factor,
    CAUSAL: tl.constexpr, WHOLE: tl.constexpr, CORE: tl.constexpr,
):  # fmt: skip
    """Scores times log2 e, still to be multiplied by ``factor_of``; −inf where a key may not be seen. With a bias they
    are the scores themselves until then: times log2 e, the lowest numbers would be infinite."""
    b_levels = b_products
    if bias is not None:
        b_levels = (factor * LN2) * b_levels + load_block(bias, i_b, i_h, i_t, i_s, t, length).to(CORE)
    if not WHOLE:
        m_seen = i_s < length
        if CAUSAL:
            m_seen = m_seen & (i_s <= i_t + (s - t))
        if mask is not None:
            m_seen = m_seen & (load_block(mask, i_b, i_h, i_t, i_s, t, length) != 0)
        b_levels = tl.where(m_seen, b_levels, float("-inf"))
    return b_levels


@triton.jit
def factor_of(bias, factor, CORE: tl.constexpr):
    """What ``levels`` are multiplied by."""
    if bias is not None:
        factor = tl.full([], LOG2E, CORE)
    return factor


@triton.jit
def weights_above(b_levels, b_shift, bias, factor):
    """2^(factor (levels − shift)), the shift taken away first where there is a bias."""
    if bias is not None:
        b_powers = (b_levels - b_shift) * factor
    else:
        b_powers = b_levels * factor - b_shift * factor
    return tl.exp2(b_powers)


@triton.jit
def base_2_of(b_lse, bias):
    """What ``weights_and_gradients`` takes of a log-sum-exp."""
    if bias is None:
        b_lse = b_lse * LOG2E
    return b_lse


@triton.jit
def finite_or_zero(b_top):
    """What to subtract from scores before exp2: where nothing is seen, −inf − −inf would be NaN."""
    return tl.where(b_top == float("-inf"), 0.0, b_top)


@triton.jit
def weights_and_gradients(b_levels, b_grad_weights, b_lse, b_row_sums, bias, factor, WHOLE: tl.constexpr):
    """P and dS of a tile from its ``levels`` and dP; ``b_lse`` is lse, where there is no bias times log2 e."""
    if bias is not None:
        b_weights = tl.exp2((b_levels - b_lse) * factor)
    else:
        b_weights = tl.exp2(b_levels * factor - b_lse)
    b_grad_scores = b_weights * (b_grad_weights - b_row_sums)
    if not WHOLE:
        b_grad_scores = tl.where(b_weights == 0, 0.0, b_grad_scores)
    return b_weights, b_grad_scores
