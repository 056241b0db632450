"""The forward pass of ``attention`` over few keys, in 16 bits: those of a head are read once and stay on chip.

A program owns queries of a (b, h), all of them where heads are many, and holds their keys and values in up to three
blocks, powers of two: 197 keys are 128, 64 and 16. How many queries it owns does not change a bit of them.
"""

import functools
import itertools

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.attention_tiles import (
    across,
    along,
    compiled_for,
    describe_heads,
    finite_or_zero,
    levels,
    load_columns,
    load_heads,
    longest_row,
    place,
    scale_and_factor,
    store_attended,
    turned,
    zeros,
)
from saccade.kernels.triton.memory import FUSION, at_most, describe, double_bits

LONGEST, WIDEST = 272, 128  # keys, and numbers in blocks of a row, that stay on chip
BLOCK_COST = 8  # that a block takes as long as so many keys more
FEWEST = 528  # programs, where there are as many blocks of queries: four for each processor of an H100
TILES = {"BLOCK_T": 64, "num_warps": 4, "num_stages": 2}
REGISTERS = None  # of a thread at most


def key_blocks(query, value, s):
    """How many keys are in each of three blocks, 0 where there is none; None if they do not stay on chip."""
    if query.element_size() != 2 or not 0 < s <= LONGEST or longest_row(query, value) > WIDEST:
        return None
    return _key_blocks(s)


@functools.cache
def _key_blocks(s):
    choices = [some for n in (1, 2, 3) for some in itertools.combinations_with_replacement((128, 64, 32, 16), n)]
    best = min((some for some in choices if sum(some) >= s), key=lambda some: sum(some) + BLOCK_COST * len(some))
    return (*best, 0, 0)[:3]


def attend_short(query, key, value, out, lse, scale, blocks, causal):
    """Write ``out`` and ``lse``, of any strides."""
    (b, h, t, _), s = query.shape, key.shape[2]
    options = compiled_for(query, key, value, out)
    query_blocks = triton.cdiv(t, TILES["BLOCK_T"])
    in_program = max(1, min(query_blocks, b * h * query_blocks // FEWEST))
    if lse.numel():
        with torch.cuda.device_of(query):
            _forward_short[(b * h * triton.cdiv(query_blocks, in_program),)](
                *(describe_heads(x, options["UNIT"]) for x in (query, key, value, out)), describe(lse),
                double_bits(scale), h, t, s, in_program, CAUSAL=causal, FIRST=blocks[0], SECOND=blocks[1],
                THIRD=blocks[2], **options, **TILES, **at_most(REGISTERS), **FUSION,
            )  # fmt: skip


@triton.jit(do_not_specialize=["scale_bits"])
def _forward_short(
    query, key, value, out, lse, scale_bits, h, t, s, in_program,
    D: tl.constexpr, D_FIRST: tl.constexpr, D_SECOND: tl.constexpr,
    E: tl.constexpr, E_FIRST: tl.constexpr, E_SECOND: tl.constexpr, UNIT: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_T: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr,
    CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    i_b, i_h, part = place(tl.cdiv(t, BLOCK_T), h, in_program)
    scale, factor = scale_and_factor(scale_bits, CORE)
    i_s0 = tl.arange(0, FIRST)
    b_key00, b_key01 = _load_keys(key, i_b, i_h, i_s0, s, scale, D, D_FIRST, D_SECOND, UNIT, CORE, PRODUCT)
    b_value00, b_value01 = load_heads(value, i_b, i_h, i_s0, s, E, E_FIRST, E_SECOND, UNIT, False)
    if SECOND > 0:
        i_s1 = FIRST + tl.arange(0, SECOND)
        b_key10, b_key11 = _load_keys(key, i_b, i_h, i_s1, s, scale, D, D_FIRST, D_SECOND, UNIT, CORE, PRODUCT)
        b_value10, b_value11 = load_heads(value, i_b, i_h, i_s1, s, E, E_FIRST, E_SECOND, UNIT, False)
    if THIRD > 0:
        i_s2 = FIRST + SECOND + tl.arange(0, THIRD)
        b_key20, b_key21 = _load_keys(key, i_b, i_h, i_s2, s, scale, D, D_FIRST, D_SECOND, UNIT, CORE, PRODUCT)
        b_value20, b_value21 = load_heads(value, i_b, i_h, i_s2, s, E, E_FIRST, E_SECOND, UNIT, False)
    for first_t in range(part * BLOCK_T, tl.minimum((part + in_program) * BLOCK_T, t), BLOCK_T):
        i_t = first_t + tl.arange(0, BLOCK_T)
        b_query0, b_query1 = load_heads(query, i_b, i_h, i_t, t, D, D_FIRST, D_SECOND, UNIT, False)
        b_levels0 = _levels(
            b_query0, b_query1, b_key00, b_key01, i_t, i_s0, t, s, D_SECOND, CAUSAL, SECOND == 0, CORE, PRODUCT
        )
        b_top = tl.max(b_levels0, 1)
        if SECOND > 0:
            b_levels1 = _levels(
                b_query0, b_query1, b_key10, b_key11, i_t, i_s1, t, s, D_SECOND, CAUSAL, THIRD == 0, CORE, PRODUCT
            )
            b_top = tl.maximum(b_top, tl.max(b_levels1, 1))
        if THIRD > 0:
            b_levels2 = _levels(
                b_query0, b_query1, b_key20, b_key21, i_t, i_s2, t, s, D_SECOND, CAUSAL, True, CORE, PRODUCT
            )
            b_top = tl.maximum(b_top, tl.max(b_levels2, 1))
        b_shift = (finite_or_zero(b_top) * factor)[:, None]
        b_out0, b_out1 = zeros(BLOCK_T, E_FIRST, E_SECOND, CORE)
        b_weights = tl.exp2(b_levels0 * factor - b_shift)
        b_total = tl.sum(b_weights, 1)
        b_out0, b_out1 = along(b_weights, b_value00, b_value01, b_out0, b_out1, E_SECOND, CORE, PRODUCT)
        if SECOND > 0:
            b_weights = tl.exp2(b_levels1 * factor - b_shift)
            b_total += tl.sum(b_weights, 1)
            b_out0, b_out1 = along(b_weights, b_value10, b_value11, b_out0, b_out1, E_SECOND, CORE, PRODUCT)
        if THIRD > 0:
            b_weights = tl.exp2(b_levels2 * factor - b_shift)
            b_total += tl.sum(b_weights, 1)
            b_out0, b_out1 = along(b_weights, b_value20, b_value21, b_out0, b_out1, E_SECOND, CORE, PRODUCT)
        store_attended(out, lse, i_b, i_h, i_t, t, b_top, b_total, b_out0, b_out1, factor, E, E_FIRST, E_SECOND, UNIT)


@triton.jit
def _load_keys(
    key, i_b, i_h, i_s, s, scale, D: tl.constexpr, D_FIRST: tl.constexpr, D_SECOND: tl.constexpr,
    UNIT: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Keys as columns, ``turned``: as they are multiplied by, so that they are put on chip once."""
    b_key0, b_key1 = load_columns(key, i_b, i_h, i_s, s, D, D_FIRST, D_SECOND, UNIT, False)
    return turned(b_key0, scale, CORE, PRODUCT), turned(b_key1, scale, CORE, PRODUCT)


@triton.jit
def _levels(
    b_query0, b_query1, b_key0, b_key1, i_t, i_s, t, s, D_SECOND: tl.constexpr, CAUSAL: tl.constexpr,
    LAST: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """The ``levels`` of a block of keys, all of which are there unless it is the last."""
    b_products = across(b_query0, b_query1, b_key0, b_key1, D_SECOND, CORE, PRODUCT)
    return levels(
        b_products, None, None, 0, 0, i_t[:, None], i_s[None, :], t, s, s, 1.0, CAUSAL, not (CAUSAL or LAST), CORE
    )
