"""The backward pass of ``attention`` on GPUs, in two kernels: one owns queries, the other keys."""

import triton
import triton.language as tl

from saccade.kernels.triton.attention_tiles import (
    across,
    along,
    base_2_of,
    factor_of,
    finite_or_zero,
    heads_from,
    keys_seen,
    length_of,
    levels,
    load_heads,
    place,
    rows_from,
    scale_and_factor,
    sequence_of,
    store_heads,
    turned,
    weights_and_gradients,
    zeros,
)
from saccade.kernels.triton.memory import load_row, store_block, store_row


@triton.jit(do_not_specialize=["scale_bits"])
def _backward_queries(
    query, key, value, mask, bias, key_lengths, out, lse, grad_out, grad_lse, row_sums, grad_query, grad_scores,
    table, scale_bits, h, t, s,
    D: tl.constexpr, D_FIRST: tl.constexpr, D_SECOND: tl.constexpr,
    E: tl.constexpr, E_FIRST: tl.constexpr, E_SECOND: tl.constexpr, UNIT: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, EDGE: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """dQ, and on the way rowsum(dO * O) − dlse, which ``_backward_keys`` needs, and dS if the bias asks for it."""
    i_b, i_h, first_t = place(table, t, h, BLOCK_T)
    if table is not None:
        start, t = sequence_of(table)
        query, key, value = heads_from(query, start, UNIT), heads_from(key, start, UNIT), heads_from(value, start, UNIT)
        out, grad_out = heads_from(out, start, UNIT), heads_from(grad_out, start, UNIT)
        grad_query, lse, row_sums, s = (
            heads_from(grad_query, start, UNIT),
            rows_from(lse, start),
            rows_from(row_sums, start),
            t,
        )
    i_t = first_t + tl.arange(0, BLOCK_T)
    scale, factor = scale_and_factor(scale_bits, CORE)
    length = length_of(key_lengths, i_b, s)
    whole, end = keys_seen(mask, first_t, t, s, length, CAUSAL, BLOCK_T, BLOCK_S)
    b_query0, b_query1 = load_heads(query, i_b, i_h, i_t, t, D, D_FIRST, D_SECOND, UNIT, False)
    b_query0, b_query1 = turned(b_query0, scale, CORE, PRODUCT), turned(b_query1, scale, CORE, PRODUCT)
    b_grad_out0, b_grad_out1 = load_heads(grad_out, i_b, i_h, i_t, t, E, E_FIRST, E_SECOND, UNIT, False)
    b_out0, b_out1 = load_heads(out, i_b, i_h, i_t, t, E, E_FIRST, E_SECOND, UNIT, False)
    b_lse = base_2_of(finite_or_zero(load_row(lse, i_b, i_h, i_t, t)), bias)
    b_row_sums = tl.sum(b_grad_out0.to(CORE) * b_out0.to(CORE), 1)
    if E_SECOND > 0:
        b_row_sums += tl.sum(b_grad_out1.to(CORE) * b_out1.to(CORE), 1)
    if grad_lse is not None:
        b_row_sums -= load_row(grad_lse, i_b, i_h, i_t, t).to(CORE)
    store_row(row_sums, i_b, i_h, i_t, t, b_row_sums)
    b_grad_query0, b_grad_query1 = zeros(BLOCK_T, D_FIRST, D_SECOND, CORE)
    for first_s in range(0, whole, BLOCK_S):
        b_grad_query0, b_grad_query1 = _from_keys(
            b_grad_query0, b_grad_query1, b_query0, b_query1, b_grad_out0, b_grad_out1, b_lse, b_row_sums, key, value,
            mask, bias, grad_scores, i_b, i_h, i_t, first_s + tl.arange(0, BLOCK_S), t, s, length, factor,
            D, D_FIRST, D_SECOND, E, E_FIRST, E_SECOND, UNIT, CAUSAL, True, CORE, PRODUCT,
        )  # fmt: skip
    for first_s in range(whole, end, EDGE):
        b_grad_query0, b_grad_query1 = _from_keys(
            b_grad_query0, b_grad_query1, b_query0, b_query1, b_grad_out0, b_grad_out1, b_lse, b_row_sums, key, value,
            mask, bias, grad_scores, i_b, i_h, i_t, first_s + tl.arange(0, EDGE), t, s, length, factor,
            D, D_FIRST, D_SECOND, E, E_FIRST, E_SECOND, UNIT, CAUSAL, False, CORE, PRODUCT,
        )  # fmt: skip
    store_heads(
        grad_query, i_b, i_h, i_t, t, scale * b_grad_query0, scale * b_grad_query1, D, D_FIRST, D_SECOND, UNIT
    )  # fmt: skip


@triton.jit
def _from_keys(
    b_grad_query0, b_grad_query1, b_query0, b_query1, b_grad_out0, b_grad_out1, b_lse, b_row_sums, key, value,
    mask, bias, grad_scores, i_b, i_h, i_t, i_s, t, s, length, factor,
    D: tl.constexpr, D_FIRST: tl.constexpr, D_SECOND: tl.constexpr,
    E: tl.constexpr, E_FIRST: tl.constexpr, E_SECOND: tl.constexpr, UNIT: tl.constexpr, CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """The sum of dS K with keys ``i_s`` in it."""
    b_key0, b_key1 = load_heads(key, i_b, i_h, i_s, length, D, D_FIRST, D_SECOND, UNIT, WHOLE)
    b_value0, b_value1 = load_heads(value, i_b, i_h, i_s, length, E, E_FIRST, E_SECOND, UNIT, WHOLE)
    b_products = across(b_query0, b_query1, b_key0, b_key1, D_SECOND, CORE, PRODUCT)
    b_levels = levels(
        b_products, mask, bias, i_b, i_h, i_t[:, None], i_s[None, :], t, s, length, factor, CAUSAL, WHOLE, CORE
    )
    b_grad_weights = across(b_grad_out0, b_grad_out1, b_value0, b_value1, E_SECOND, CORE, PRODUCT)
    _, b_grad_scores = weights_and_gradients(
        b_levels, b_grad_weights, b_lse[:, None], b_row_sums[:, None], bias, factor_of(bias, factor, CORE), WHOLE
    )
    if grad_scores is not None:
        store_block(grad_scores, i_b, i_h, i_t[:, None], i_s[None, :], t, length, b_grad_scores)
    return along(b_grad_scores, b_key0, b_key1, b_grad_query0, b_grad_query1, D_SECOND, CORE, PRODUCT)


@triton.jit(do_not_specialize=["scale_bits"])
def _backward_keys(
    query, key, value, mask, bias, key_lengths, lse, grad_out, row_sums, grad_key, grad_value, table,
    scale_bits, h, t, s,
    D: tl.constexpr, D_FIRST: tl.constexpr, D_SECOND: tl.constexpr,
    E: tl.constexpr, E_FIRST: tl.constexpr, E_SECOND: tl.constexpr, UNIT: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """dK and dV, from tiles of scores that lie transposed, keys down: nothing computed has to be turned round.

    Keys from ``length`` on are read as 0 and their gradients written as 0, whatever they come to.
    """
    i_b, i_h, first_s = place(table, s, h, BLOCK_S)
    if table is not None:
        start, s = sequence_of(table)
        query, key, value = heads_from(query, start, UNIT), heads_from(key, start, UNIT), heads_from(value, start, UNIT)
        grad_out, lse, row_sums, t = (
            heads_from(grad_out, start, UNIT),
            rows_from(lse, start),
            rows_from(row_sums, start),
            s,
        )
        grad_key, grad_value = heads_from(grad_key, start, UNIT), heads_from(grad_value, start, UNIT)
    i_s = first_s + tl.arange(0, BLOCK_S)
    scale, factor = scale_and_factor(scale_bits, CORE)
    length = length_of(key_lengths, i_b, s)
    b_key0, b_key1 = load_heads(key, i_b, i_h, i_s, length, D, D_FIRST, D_SECOND, UNIT, False)
    b_key0, b_key1 = turned(b_key0, scale, CORE, PRODUCT), turned(b_key1, scale, CORE, PRODUCT)
    b_value0, b_value1 = load_heads(value, i_b, i_h, i_s, length, E, E_FIRST, E_SECOND, UNIT, False)
    b_grad_key0, b_grad_key1 = zeros(BLOCK_S, D_FIRST, D_SECOND, CORE)
    b_grad_value0, b_grad_value1 = zeros(BLOCK_S, E_FIRST, E_SECOND, CORE)
    start = first_s * 0
    whole = start
    if CAUSAL:  # the blocks of the first query that sees key first_s, and of the first that sees all of the block
        start = tl.maximum(first_s - (s - t), 0) // BLOCK_T * BLOCK_T
        whole = tl.cdiv(tl.maximum(first_s + BLOCK_S - 1 - (s - t), 0), BLOCK_T) * BLOCK_T
    if mask is not None:
        whole = start + tl.cdiv(t, BLOCK_T) * BLOCK_T
    for first_t in range(start, tl.minimum(whole, t), BLOCK_T):
        b_grad_key0, b_grad_key1, b_grad_value0, b_grad_value1 = _from_queries(
            b_grad_key0, b_grad_key1, b_grad_value0, b_grad_value1, b_key0, b_key1, b_value0, b_value1,
            query, grad_out, lse, row_sums, mask, bias, i_b, i_h, first_t + tl.arange(0, BLOCK_T), i_s,
            t, s, length, factor,
            D, D_FIRST, D_SECOND, E, E_FIRST, E_SECOND, UNIT, CAUSAL, False, CORE, PRODUCT,
        )  # fmt: skip
    for first_t in range(whole, t, BLOCK_T):
        b_grad_key0, b_grad_key1, b_grad_value0, b_grad_value1 = _from_queries(
            b_grad_key0, b_grad_key1, b_grad_value0, b_grad_value1, b_key0, b_key1, b_value0, b_value1,
            query, grad_out, lse, row_sums, mask, bias, i_b, i_h, first_t + tl.arange(0, BLOCK_T), i_s,
            t, s, length, factor,
            D, D_FIRST, D_SECOND, E, E_FIRST, E_SECOND, UNIT, CAUSAL, True, CORE, PRODUCT,
        )  # fmt: skip
    m_there = (i_s < length)[:, None]
    b_grad_key0, b_grad_key1 = tl.where(m_there, scale * b_grad_key0, 0.0), tl.where(m_there, scale * b_grad_key1, 0.0)
    b_grad_value0, b_grad_value1 = tl.where(m_there, b_grad_value0, 0.0), tl.where(m_there, b_grad_value1, 0.0)
    store_heads(grad_key, i_b, i_h, i_s, s, b_grad_key0, b_grad_key1, D, D_FIRST, D_SECOND, UNIT)
    store_heads(grad_value, i_b, i_h, i_s, s, b_grad_value0, b_grad_value1, E, E_FIRST, E_SECOND, UNIT)


@triton.jit
def _from_queries(
    b_grad_key0, b_grad_key1, b_grad_value0, b_grad_value1, b_key0, b_key1, b_value0, b_value1,
    query, grad_out, lse, row_sums, mask, bias, i_b, i_h, i_t, i_s, t, s, length, factor,
    D: tl.constexpr, D_FIRST: tl.constexpr, D_SECOND: tl.constexpr,
    E: tl.constexpr, E_FIRST: tl.constexpr, E_SECOND: tl.constexpr, UNIT: tl.constexpr, CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """The sums of dSᵀ Q and Pᵀ dO with queries ``i_t`` in them."""
    b_query0, b_query1 = load_heads(query, i_b, i_h, i_t, t, D, D_FIRST, D_SECOND, UNIT, False)
    b_grad_out0, b_grad_out1 = load_heads(grad_out, i_b, i_h, i_t, t, E, E_FIRST, E_SECOND, UNIT, False)
    b_lse = base_2_of(finite_or_zero(load_row(lse, i_b, i_h, i_t, t)), bias)
    b_row_sums = load_row(row_sums, i_b, i_h, i_t, t)
    b_products = across(b_key0, b_key1, b_query0, b_query1, D_SECOND, CORE, PRODUCT)
    b_levels = levels(
        b_products, mask, bias, i_b, i_h, i_t[None, :], i_s[:, None], t, s, length, factor, CAUSAL, WHOLE, CORE
    )
    b_grad_weights = across(b_value0, b_value1, b_grad_out0, b_grad_out1, E_SECOND, CORE, PRODUCT)
    b_weights, b_grad_scores = weights_and_gradients(
        b_levels, b_grad_weights, b_lse[None, :], b_row_sums[None, :], bias, factor_of(bias, factor, CORE), WHOLE
    )
    b_grad_value0, b_grad_value1 = along(
        b_weights, b_grad_out0, b_grad_out1, b_grad_value0, b_grad_value1, E_SECOND, CORE, PRODUCT
    )
    b_grad_key0, b_grad_key1 = along(
        b_grad_scores, b_query0, b_query1, b_grad_key0, b_grad_key1, D_SECOND, CORE, PRODUCT
    )  # fmt: skip
    return b_grad_key0, b_grad_key1, b_grad_value0, b_grad_value1
