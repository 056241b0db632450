"""Losses of logits that are products of rows, scale · A Bᵀ (+ bias), a tile of them at a time.

One product of a tile gives its rows' and its columns' statistics, which are joined in the order of the tiles. The
backward pass takes rows in panels: the gradients of a panel's logits are stored once, in the inputs' dtype, and
multiplied by B for dA and by A for dB, to which the panels are added in their order.

What is kept of each row (or column) with a logit of its own, s the sign of the scale:

    LOSS   = log-sum-exp less its own logit
    TOP    = the largest of s times its products
    EXCESS = log-sum-exp less the largest logit

so that weights are exp(|scale| (s product − TOP) − EXCESS), differences of products first: a log-sum-exp in the
hundreds has no digits left for them. Its own logit is left out of sums and added by expm1, and its weight less 1 is
expm1(−LOSS): both keep their digits where a row is all but certain. Both passes take products by the same tiles, so
that they are the same bit for bit: a weight of 1 would else be off by what rounding changed in its logit.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import FUSION, core_dtype, describe, load_tile, load_vector, store_tile, types
from saccade.kernels.triton.products import multiply, tile_at, tile_of_product, tiles_of, transposed

# Bytes of partial statistics, and of a panel of gradients of logits.
STATISTICS_BYTES = 32 << 20
PANEL_BYTES = 96 << 20
# The tile of products, by bytes a number: smaller than others, since several arrays of its size are alive at once.
TILES = {2: {"ROWS": 64, "COLUMNS": 128}, 4: {"ROWS": 64, "COLUMNS": 32}, 8: {"ROWS": 32, "COLUMNS": 32}}
# Of rows with their own; that of products is theirs. It does not change which function is computed.
OWN_TILE = {"ROWS": 16, "DEPTH": 128, "num_warps": 4}

LOSS, TOP, EXCESS = range(3)


def _tiles(x):
    return {**tiles_of(x.dtype), **TILES[x.element_size()]}


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


def statistics(a, b, scale, own, labels=None, columns=False) -> Any:
    """Statistics (3, n) of the rows, those of the columns or None, and the sums of products less their row's own."""
    (n, e), k, tiles = a.shape, len(b), _tiles(a)
    core, column_blocks = own.dtype, triton.cdiv(k, tiles["COLUMNS"])
    factor, sign = scale.abs(), torch.where(scale < 0, -1, 1).to(core)
    joined, sums, of_columns = own.new_empty((2, n)), own.new_empty(n), []
    bytes_of_row = (3 * column_blocks + 2 * k // tiles["ROWS"]) * core.itemsize
    for rows in panels(n, bytes_of_row, STATISTICS_BYTES, tiles["ROWS"]):
        row_blocks = triton.cdiv(rows.stop - rows.start, tiles["ROWS"])
        of_rows = own.new_empty((3, column_blocks, rows.stop - rows.start))
        across = own.new_empty((2, row_blocks, k)) if columns else None
        with torch.cuda.device_of(a):
            _statistics[(row_blocks * column_blocks,)](
                describe(a[rows]), describe(b), scale, describe(own[rows]),
                describe(None if labels is None else labels[rows]), describe(of_rows), describe(across),
                rows.start, rows.stop - rows.start, k, e, **tiles,
            )  # fmt: skip
        joined[:, rows], sums[rows] = _joined(of_rows[:2], factor), of_rows[2].sum(0)
        if across is not None:
            of_columns.append(_joined(across, factor))
    found = _finished(joined, sign * own, factor)
    if not columns:
        return found, None, sums
    joined = _joined(torch.stack(of_columns, 1), factor) if of_columns else joined
    return found, _finished(joined, sign * own, factor), sums


def _joined(parts, factor):
    """Maxima and sums of exponentials below them, (2, parts, n) -> (2, n)."""
    tops, totals = parts[0], parts[1]
    top = tops.amax(0)
    rescaled = totals * torch.exp(factor * (_finite(tops) - _finite(top)))
    return torch.stack([top, torch.where(totals == 0, 0, rescaled).sum(0)])


def _finished(joined, own, factor):
    """The statistics of rows from their maxima, and the sums of exponentials below them without their own."""
    top, total = _finite(joined[0]), joined[1]
    below = factor * (own - top)
    excess = torch.log1p(total + torch.expm1(below))
    return torch.stack([excess - below, top, excess])


def _finite(x):
    return torch.where(torch.isfinite(x), x, 0)


def softplus_sums(a, b, scale, bias):
    """sum log(1 + exp(∓ logit)) over all pairs, − for a row's own: one number."""
    (n, e), tiles = a.shape, _tiles(a)
    blocks = triton.cdiv(n, tiles["ROWS"]) * triton.cdiv(n, tiles["COLUMNS"])
    parts = scale.new_empty((blocks, tiles["ROWS"]))
    if n:
        with torch.cuda.device_of(a):
            _softplus_sums[(blocks,)](describe(a), describe(b), scale, bias, describe(parts), n, e, **tiles)
    return parts.sum()


def gradients(kind, a, b, scale, factor, bias=None, own=None, of_rows=None, of_columns=None, targets=(None,) * 3):
    """Gradients for A and B, rounded to their dtypes, for the scale and for the bias, of logits' gradients G · factor.

    "clip":   G = softmax of the row + softmax of the column − 2 for its own
    "siglip": G = −σ(−logit) for its own, σ(logit) for the others
    "labels": G = (softmax of the row − target) times the row's factor; ``targets`` are labels, factors and smoothing

    ``factor`` comes last, since 16-bit numbers have not the range for a mean of many. In float16, G below 3e-8 is 0.
    """
    (n, e), k, core, tiles = a.shape, len(b), core_dtype(a.dtype), _tiles(a)
    labels, factors, smoothing = targets
    grad_a, total_b = a.new_empty(a.shape), b.new_zeros(b.shape, dtype=core)
    sums = total_b.new_zeros(2)
    for rows in panels(n, k * a.element_size(), PANEL_BYTES, tiles["ROWS"]):
        panel = a.new_empty((rows.stop - rows.start, k))
        blocks = triton.cdiv(len(panel), tiles["ROWS"]) * triton.cdiv(k, tiles["COLUMNS"])
        parts = total_b.new_empty((2, blocks, tiles["ROWS"]))
        own_labels, own_factors, own_rows = (
            describe(None if x is None else x[rows]) for x in (labels, factors, own)
        )  # fmt: skip
        with torch.cuda.device_of(a):
            _logit_gradients[(blocks,)](
                describe(a[rows]), describe(b), scale, bias, own_labels, own_factors, own_rows, describe(own),
                smoothing, describe(None if of_rows is None else of_rows[:, rows]), describe(of_columns),
                describe(panel), describe(parts), rows.start, len(panel), k, e, KIND=kind, **tiles,
            )  # fmt: skip
        grad_a[rows] = multiply(panel, b).mul_(scale * factor)
        multiply(panel.T, a[rows], total_b)
        sums += parts.sum((1, 2))
    return grad_a, total_b.mul_(scale * factor).to(b.dtype), sums[0] * factor, sums[1] * factor


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0: what 1 + x rounds away is made good."""
    b_whole = 1 + x
    b_less = b_whole - 1
    return tl.where(b_less == 0, x, tl.log(b_whole) * (x / tl.where(b_less == 0, 1.0, b_less)))


@triton.jit
def _expm1(x):
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
def _labels(labels, first, i_row, rows):
    """The column of each row's own logit: its label, or where labels are None its place in the whole."""
    own = i_row + first
    if labels is not None:
        own = load_vector(labels, i_row, rows).to(tl.int64)
    return own


@triton.jit
def _indices(i_tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(block of rows, block of columns, their rows, their columns) of a tile."""
    row_block, column_block = tile_at(i_tile, rows, columns, ROWS, COLUMNS)
    i_row = (row_block * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None]
    i_column = (column_block * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64))[None, :]
    return row_block, column_block, i_row, i_column


@triton.jit
def _own_products(
    a, b, labels, own, n, k, e, ROWS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr
):  # fmt: skip
    i_row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    i_own = _labels(labels, 0, i_row, n)
    i_own = tl.where((i_own >= 0) & (i_own < k) & (i_row < n), i_own, k)
    b_total = tl.zeros([ROWS, DEPTH], CORE)
    for first in range(0, e, DEPTH):
        i_e = first + tl.arange(0, DEPTH).to(tl.int64)[None, :]
        b_total += load_tile(a, i_row, i_e, n, e).to(CORE) * load_tile(b, i_own, i_e, k, e).to(CORE)
    tl.store(own[0] + i_row * own[1], tl.sum(b_total, 1, keep_dims=True), mask=i_row < n)


@triton.jit
def _statistics(
    a, b, scale, own, labels, of_rows, of_columns, first, rows, columns, e,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Of each row of a tile, and of each column if asked for: its maximum, the sum of exponentials below it without
    a row's own logit, and of rows the sum of products less the own."""
    row_block, column_block, i_row, i_column = _indices(tl.program_id(0), rows, columns, ROWS, COLUMNS)
    b_products = tile_of_product(
        a, transposed(b), i_row, i_column, rows, columns, 0, e, ROWS, COLUMNS, DEPTH, CORE, PRODUCT
    )
    number = tl.load(scale)
    m_inside = (i_row < rows) & (i_column < columns)
    m_own, b_own = i_column == _labels(labels, first, i_row, rows), load_vector(own, i_row, rows)
    m_others = m_inside & ~m_own
    b_products = tl.where(m_own, b_own, b_products)  # bit for bit what maxima are compared with in the end
    b_sums = tl.sum(tl.where(m_others, b_products - b_own, 0.0), 1, keep_dims=True)
    b_products = tl.where(number < 0, -b_products, b_products)
    b_levels = tl.where(m_inside, b_products, float("-inf"))
    b_top = tl.max(b_levels, 1, keep_dims=True)
    b_weights = tl.where(m_others, tl.exp(tl.abs(number) * (b_products - _finite_or_zero(b_top))), 0.0)
    p_rows = of_rows[0] + column_block * of_rows[2] + i_row * of_rows[3]
    tl.store(p_rows, b_top, mask=i_row < rows)
    tl.store(p_rows + of_rows[1], tl.sum(b_weights, 1, keep_dims=True), mask=i_row < rows)
    tl.store(p_rows + 2 * of_rows[1], b_sums, mask=i_row < rows)
    if of_columns is not None:
        b_top = tl.max(b_levels, 0, keep_dims=True)
        b_weights = tl.where(m_others, tl.exp(tl.abs(number) * (b_products - _finite_or_zero(b_top))), 0.0)
        p_columns = of_columns[0] + row_block * of_columns[2] + i_column * of_columns[3]
        tl.store(p_columns, b_top, mask=i_column < columns)
        tl.store(p_columns + of_columns[1], tl.sum(b_weights, 0, keep_dims=True), mask=i_column < columns)


@triton.jit
def _softplus_sums(
    a, b, scale, bias, parts, n, e,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    _, _, i_row, i_column = _indices(tl.program_id(0), n, n, ROWS, COLUMNS)
    b_products = tile_of_product(
        a, transposed(b), i_row, i_column, n, n, 0, e, ROWS, COLUMNS, DEPTH, CORE, PRODUCT
    )  # fmt: skip
    b_logits = tl.load(scale) * b_products + tl.load(bias)
    b_logits = tl.where(i_row == i_column, -b_logits, b_logits)
    b_terms = tl.maximum(b_logits, 0.0) + log1p(tl.exp(-tl.abs(b_logits)))
    b_terms = tl.where(b_logits != b_logits, b_logits, b_terms)  # tl.maximum may lose a NaN
    b_terms = tl.where((i_row < n) & (i_column < n), b_terms, 0.0)
    tl.store(parts[0] + tl.program_id(0) * parts[1] + tl.arange(0, ROWS) * parts[2], tl.sum(b_terms, 1))


@triton.jit
def _load_statistic(x, WHICH: tl.constexpr, i, n):
    """One of the statistics of a block of rows or columns."""
    return tl.load(x[0] + WHICH * x[1] + i * x[2], mask=i < n, other=0)


@triton.jit
def _weights(b_products, number, of, i, n):
    """The softmax weights of rows or columns with statistics ``of``."""
    b_levels = tl.where(number < 0, -b_products, b_products) - _load_statistic(of, 1, i, n)
    return tl.exp(tl.abs(number) * b_levels - _load_statistic(of, 2, i, n))


@triton.jit
def _logit_gradients(
    a, b, scale, bias, labels, factors, own, owns, smoothing, of_rows, of_columns, panel, parts,
    first, rows, columns, e,
    KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """A tile of a panel of gradients of logits; its share of those of the scale and of the bias."""
    _, _, i_row, i_column = _indices(tl.program_id(0), rows, columns, ROWS, COLUMNS)
    b_products = tile_of_product(
        a, transposed(b), i_row, i_column, rows, columns, 0, e, ROWS, COLUMNS, DEPTH, CORE, PRODUCT
    )
    number = tl.load(scale)
    i_own = _labels(labels, first, i_row, rows)
    m_own = i_column == i_own
    b_of_scale = tl.zeros([ROWS, COLUMNS], CORE)
    if KIND == "siglip":
        b_logits = number * b_products + tl.load(bias)
        b_odds = 1 / (1 + tl.exp(tl.where(m_own, b_logits, -b_logits)))
        b_grad = tl.where(m_own, -b_odds, b_odds)
        b_of_scale = b_grad * b_products
    else:
        b_grad = _weights(b_products, number, of_rows, i_row, rows)
        b_own = _expm1(-_load_statistic(of_rows, 0, i_row, rows))
        if KIND == "clip":
            b_across = _weights(b_products, number, of_columns, i_column, columns)
            b_of_scale = b_grad * (b_products - load_vector(own, i_row, rows))
            b_of_scale += b_across * (b_products - load_vector(owns, i_column, columns))
            b_of_scale = tl.where(m_own, 0.0, b_of_scale)
            b_grad += b_across
            b_own += _expm1(-_load_statistic(of_columns, 0, i_column, columns))
        b_grad = tl.where(m_own, b_own, b_grad)
        if KIND == "labels":
            share = tl.load(smoothing)
            b_grad = b_grad + tl.where(m_own, share, 0.0) - share / columns
            b_factor = load_vector(factors, i_row, rows)
            b_grad = tl.where(b_factor == 0, 0.0, b_grad * b_factor)
    store_tile(panel, i_row, i_column, rows, columns, b_grad)
    m_inside = (i_row < rows) & (i_column < columns)
    p_parts = parts[0] + tl.program_id(0) * parts[2] + tl.arange(0, ROWS) * parts[3]
    tl.store(p_parts, tl.sum(tl.where(m_inside, b_of_scale, 0.0), 1))
    tl.store(p_parts + parts[1], tl.sum(tl.where(m_inside, b_grad, 0.0), 1))
