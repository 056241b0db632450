"""Losses of logits that are products of rows, scale · A Bᵀ (+ bias), and their gradients, a tile of them at a time.

The backward pass takes rows in panels: the gradients of a panel's logits are stored once, in the inputs' dtype, and
multiplied by B for dA and by A for dB, to which the panels are added in their order. Softmax weights come from what
``statistics`` keeps.
"""

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import core_dtype, describe, load_vector, store_tile
from saccade.kernels.triton.products import multiply, tile_at, tile_of_product, transposed
from saccade.kernels.triton.statistics import LOG2E, expm1, labels_of, log1p, panels, sign_of, tiles_for

PANEL_BYTES = 96 << 20  # of a panel of gradients of logits


def softplus_sums(a, b, scale, bias):
    """sum log(1 + exp(∓ logit)) over all pairs, − for a row's own: one number."""
    (n, e), tiles = a.shape, tiles_for(a)
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
    (n, e), k, core, tiles = a.shape, len(b), core_dtype(a.dtype), tiles_for(a)
    labels, factors, smoothing = targets
    grad_a, total_b = a.new_empty(a.shape), b.new_zeros(b.shape, dtype=core)
    sums, slices = total_b.new_zeros(2), panels(n, k * a.element_size(), PANEL_BYTES, tiles["ROWS"])
    whole = a.new_empty((slices[0].stop if slices else 0, k))  # memory of one panel, for all of them in turn
    for rows in slices:
        panel = whole[: rows.stop - rows.start]
        blocks = triton.cdiv(len(panel), tiles["ROWS"]) * triton.cdiv(k, tiles["COLUMNS"])
        parts = None if kind == "labels" else total_b.new_zeros((2, blocks, tiles["ROWS"]))
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
        if parts is not None:
            sums += parts.sum((1, 2))
    return grad_a, total_b.mul_(scale * factor).to(b.dtype), sums[0] * factor, sums[1] * factor


@triton.jit
def _indices(i_tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(block of rows, block of columns, their rows, their columns) of a tile."""
    row_block, column_block = tile_at(i_tile, rows, columns, ROWS, COLUMNS)
    i_row = (row_block * ROWS + tl.arange(0, ROWS))[:, None]
    i_column = (column_block * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    return row_block, column_block, i_row, i_column


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
    b_levels = sign_of(number) * b_products - _load_statistic(of, 1, i, n)
    return tl.exp2(tl.abs(number) * LOG2E * b_levels - _load_statistic(of, 2, i, n) * LOG2E)


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
    i_own = labels_of(labels, first, i_row, rows)
    m_own = i_column == i_own
    m_inside = (i_row < rows) & (i_column < columns)
    m_others = m_inside & ~m_own
    b_of_scale = tl.zeros([ROWS], CORE)
    if KIND == "siglip":
        b_logits = number * b_products + tl.load(bias)
        b_odds = 1 / (1 + tl.exp(tl.where(m_own, b_logits, -b_logits)))
        b_grad = tl.where(m_own, -b_odds, b_odds)
        b_of_scale += tl.sum(tl.where(m_inside, b_grad * b_products, 0.0), 1)
    else:
        b_grad = _weights(b_products, number, of_rows, i_row, rows)
        b_own = expm1(-_load_statistic(of_rows, 0, i_row, rows))
        if KIND == "clip":
            b_terms = b_grad * (b_products - load_vector(own, i_row, rows))
            b_of_scale += tl.sum(tl.where(m_others, b_terms, 0.0), 1)
            b_across = _weights(b_products, number, of_columns, i_column, columns)
            b_terms = b_across * (b_products - load_vector(owns, i_column, columns))
            b_of_scale += tl.sum(tl.where(m_others, b_terms, 0.0), 1)
            b_grad += b_across
            b_own += expm1(-_load_statistic(of_columns, 0, i_column, columns))
        b_grad = tl.where(m_own, b_own, b_grad)
        if KIND == "labels":
            share = tl.load(smoothing)
            b_grad = b_grad + tl.where(m_own, share, 0.0) - share / columns
            b_factor = load_vector(factors, i_row, rows)
            b_grad = tl.where(b_factor == 0, 0.0, b_grad * b_factor)
    store_tile(panel, i_row, i_column, rows, columns, b_grad)
    if parts is not None:
        p_parts = parts[0] + tl.program_id(0) * parts[2] + tl.arange(0, ROWS) * parts[3]
        tl.store(p_parts, b_of_scale)
        if bias is not None:
            tl.store(p_parts + parts[1], tl.sum(tl.where(m_inside, b_grad, 0.0), 1))
