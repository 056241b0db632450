"""Fused softmax attention on GPUs; the definitions are in ``saccade.reference.attention``.

    S = scale Q Kᵀ + bias;   P = exp(S − lse);   O = P V
    dV = Pᵀ dO;   dP = dO Vᵀ;   dS = P (dP − rowsum(dO * O) + dlse);   dQ = scale dS K;   dK = scale dSᵀ Q

A program owns a block of queries (forward, dQ) or of keys (dK, dV) of one (b, h) and goes through the other axis:
scores exist one tile at a time, and no two programs add to the same number. The one exception is a bias that needs
a gradient: dS is then stored whole, (b, h, t, s) in float32 at least, and summed to the bias's shape by torch.
Exponentials are powers of two, since those are what GPUs compute.
"""

import torch
import triton
import triton.language as tl

from saccade.kernels.triton import tuned
from saccade.kernels.triton.attention_gradients import _backward_keys, _backward_queries
from saccade.kernels.triton.attention_tiles import (
    LN2,
    across,
    along,
    blocks_of_sequences,
    describe_heads,
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
    unit_of,
    weights_above,
    widths,
    zeros,
)
from saccade.kernels.triton.memory import FUSION, at_most, beside, core_dtype, describe, double_bits, store_row, types

# For each pass and bytes of a number (longest padded row of a head in bytes, BLOCK_T, BLOCK_S, warps, stages, most
# registers), the first that fits: they do not change which function is computed. Those of 16-bit numbers were the
# fastest of some ten on an H100 (bench/results/h100.md); the others are guesses. Tiles of the longest rows fit every
# GPU we compile for.
WIDE = (128, 64, 64, 4, 2, None), (256, 64, 64, 8, 2, None), (512, 32, 32, 8, 1, None), (2048, 16, 16, 8, 1, None)
FORWARD = (160, 64, 64, 4, 2, 128), (192, 64, 64, 4, 2, 168), (256, 64, 64, 4, 3, None), *WIDE[2:]
TILES = {
    "forward": {2: ((128, 64, 64, 4, 3, 128), *FORWARD), 4: WIDE, 8: WIDE},
    "forward, few keys under a causal mask": {2: ((128, 64, 32, 4, 3, 96), *FORWARD), 4: WIDE, 8: WIDE},
    "queries": {
        2: ((128, 64, 64, 4, 3, 128), (160, 64, 32, 4, 2, 128), (256, 64, 64, 4, 2, None), *WIDE[2:]),
        4: WIDE, 8: WIDE,
    },
    "keys": {2: ((128, 32, 64, 4, 3, 128), (256, 32, 64, 4, 2, None), *WIDE[2:]), 4: WIDE, 8: WIDE},
}  # fmt: skip
FEW = 128  # keys


def attention(query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False):
    """Softmax attention, bhtd x bhsd x bhse -> bhte; see ``saccade.reference.attention.attention``."""
    return attention_forward(
        query, key, value, mask=mask, bias=bias, causal=causal,
        key_lengths=key_lengths, scale=scale, return_lse=return_lse,
    )[0]  # fmt: skip


def attention_forward(
    query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False
):
    """``attention`` and (query, key, value, bias, mask, key_lengths, out, lse, causal, scale).

    Raises:
        ValueError: d or e is so long that no tile of it fits the GPU.
    """
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    lse = query.new_empty(query.shape[:3], dtype=core_dtype(query.dtype))
    options = dict(mask=mask, bias=bias, causal=causal, key_lengths=key_lengths)
    scale = _attend(query, key, value, out, lse, scale, **options)
    saved = query, key, value, bias, mask, key_lengths, out, lse, causal, scale
    return ((out, lse) if return_lse else out), saved


def attention_backward(saved, grad_out, grad_lse=None):
    """Gradients for query, key, value and bias (None where no bias was given)."""
    gradients = tuple(x.new_empty(x.shape) for x in saved[:3])
    return *gradients, _differentiate(saved, grad_out, grad_lse, gradients)


def qkv_attention(qkv, *, causal=False, key_lengths=None, scale=None):
    """Attention from the packed projection, b n 3 h d -> b n h d, read and written where it lies."""
    return qkv_attention_forward(qkv, causal=causal, key_lengths=key_lengths, scale=scale)[0]


def qkv_attention_forward(qkv, *, causal=False, key_lengths=None, scale=None):
    """``qkv_attention`` and (qkv, key_lengths, out, lse, causal, scale).

    Raises:
        ValueError: d is so long that no tile of it fits the GPU.
    """
    b, n, _, h, d = qkv.shape
    out, lse = qkv.new_empty((b, n, h, d)), qkv.new_empty((b, h, n), dtype=core_dtype(qkv.dtype))
    scale = _attend(*_three(qkv), out.transpose(1, 2), lse, scale, causal=causal, key_lengths=key_lengths)
    return out, (qkv, key_lengths, out, lse, causal, scale)


def qkv_attention_backward(saved, grad_out):
    """The gradient for qkv, (b, n, 3, h, d), in a tuple of one."""
    qkv, key_lengths, out, lse, causal, scale = saved
    grad_qkv = qkv.new_empty(qkv.shape)
    whole = *_three(qkv), None, None, key_lengths, out.transpose(1, 2), lse, causal, scale
    _differentiate(whole, grad_out.transpose(1, 2), None, _three(grad_qkv))
    return (grad_qkv,)


def _three(qkv):
    """Query, key and value as views b h n d of the packed form."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def varlen_attention(query, key, value, *, cumulative_lengths, causal=False, scale=None):
    """Attention within each of several sequences packed end to end, nhd x nhd x nhe -> nhe."""
    options = dict(cumulative_lengths=cumulative_lengths, causal=causal, scale=scale)
    return varlen_attention_forward(query, key, value, **options)[0]


def varlen_attention_forward(query, key, value, *, cumulative_lengths, causal=False, scale=None):
    """``varlen_attention`` and (query, key, value, cumulative_lengths, out, lse, causal, scale).

    Raises:
        ValueError: d or e is so long that no tile of it fits the GPU.
    """
    out = query.new_empty((*query.shape[:2], value.shape[2]))
    lse = query.new_empty(query.shape[:2], dtype=core_dtype(query.dtype))
    query_, key_, value_, out_, lse_ = map(_as_batch, (query, key, value, out, lse))
    scale = _attend(query_, key_, value_, out_, lse_, scale, causal=causal, cumulative_lengths=cumulative_lengths)
    return out, (query, key, value, cumulative_lengths, out, lse, causal, scale)


def varlen_attention_backward(saved, grad_out):
    """Gradients for query, key and value."""
    query, key, value, cumulative_lengths, out, lse, causal, scale = saved
    gradients = tuple(x.new_empty(x.shape) for x in (query, key, value))
    scale = query.shape[2] ** -0.5 if scale is None else scale
    whole = *map(_as_batch, (query, key, value)), None, None, None, *map(_as_batch, (out, lse)), causal, scale
    _differentiate(whole, _as_batch(grad_out), None, tuple(map(_as_batch, gradients)), cumulative_lengths)
    return gradients


def _as_batch(x):
    """Packed sequences, n h (d), as one item of a batch, 1 h n (d)."""
    return x.transpose(0, 1)[None]


def _attend(
    query, key, value, out, lse, scale, *, mask=None, bias=None, causal=False, key_lengths=None, cumulative_lengths=None
):
    """Write ``out`` (b, h, t, e) and ``lse``, of any strides; the scale."""
    (b, h, t, d), s = query.shape, key.shape[2]
    scale = d**-0.5 if scale is None else float(scale)
    name = forward_kind(causal, s)
    what = _seen(causal, bias, mask, key_lengths, cumulative_lengths)
    options = _options(name, query, key, value, out, causal=causal, **what)
    p_query, p_key, p_value, p_out = (describe_heads(x, options["UNIT"]) for x in (query, key, value, out))
    blocks, table = _blocks(b, t, options["BLOCK_T"], cumulative_lengths)
    extras = describe(beside(mask, query.dtype), (b, h, t, s)), describe(bias, (b, h, t, s)), describe(key_lengths)
    if lse.numel():
        with torch.cuda.device_of(query):
            _forward[(h * blocks,)](
                p_query, p_key, p_value, *extras, p_out, describe(lse), describe(table), double_bits(scale), h, t, s,
                **options,
            )  # fmt: skip
    return scale


def _blocks(b, n, block, cumulative_lengths):
    """(how many blocks of rows there are for each h, the table of those of packed sequences)."""
    if cumulative_lengths is None:
        return b * triton.cdiv(n, block), None
    table = blocks_of_sequences(cumulative_lengths, n, block)
    return table.shape[1], table


def _differentiate(saved, grad_out, grad_lse, gradients, cumulative_lengths=None):
    """Write the gradients for query, key and value, of any strides; return that for bias, None where there is none."""
    query, key, value, bias, mask, key_lengths, out, lse, causal, scale = saved
    (b, h, t, _), s = query.shape, key.shape[2]
    row_sums = lse.new_empty(lse.shape)
    what = _seen(causal, bias, mask, key_lengths, cumulative_lengths)
    # tiles that no query of theirs may see are not visited, so not written
    grad_scores = None if bias is None else lse.new_zeros((b, h, t, s))
    arrays = query, key, value, out, grad_out, *gradients
    queries, keys = (_options(name, *arrays, causal=causal, **what) for name in ("queries", "keys"))
    p_query, p_key, p_value, p_out, p_grad_out, p_grad_query, p_grad_key, p_grad_value = (
        describe_heads(x, queries["UNIT"]) for x in arrays
    )  # fmt: skip
    extras = describe(beside(mask, query.dtype), (b, h, t, s)), describe(bias, (b, h, t, s)), describe(key_lengths)
    sizes = double_bits(scale), h, t, s
    with torch.cuda.device_of(query):
        if lse.numel():
            blocks, table = _blocks(b, t, queries["BLOCK_T"], cumulative_lengths)
            _backward_queries[(h * blocks,)](
                p_query, p_key, p_value, *extras, p_out, describe(lse), p_grad_out, describe(grad_lse),
                describe(row_sums), p_grad_query, describe(grad_scores), describe(table), *sizes, **queries,
            )  # fmt: skip
        if b * h * s:
            blocks, table = _blocks(b, s, keys["BLOCK_S"], cumulative_lengths)
            _backward_keys[(h * blocks,)](
                p_query, p_key, p_value, *extras, describe(lse), p_grad_out, describe(row_sums), p_grad_key,
                p_grad_value, describe(table), *sizes, **keys,
            )  # fmt: skip
    return None if bias is None or grad_scores is None else grad_scores.sum_to_size(bias.shape).to(bias.dtype)


def _seen(causal, bias, *others):
    """What is known of who sees which keys, for ``_options``; ``others`` are what may say it, or None."""
    said = any(x is not None for x in others)
    return {"at_edges": causal or said, "plain": bias is None and not said}


def forward_kind(causal, s):
    """Which of the forward passes of ``TILES`` is that of so many keys."""
    return "forward, few keys under a causal mask" if causal and s <= FEW else "forward"


def row_bytes(d, e, size):
    """The bytes of the longest padded row of a head."""
    return max(sum(widths(d)), sum(widths(e))) * size


def tiles_of(name, query, value):
    """(BLOCK_T, BLOCK_S, warps, stages, most registers) of a pass by the table."""
    size = query.element_size()
    row = row_bytes(query.shape[3], value.shape[3], size)
    fitting = [tuple(tiles) for longest, *tiles in TILES[name][size] if row <= longest]
    if not fitting:
        raise ValueError(
            f"attention: {query.shape=}, {value.shape=}, expected head dimensions of at most "
            f"{TILES[name][size][-1][0] // size} for {query.dtype} on a GPU"
        )
    return fitting[0]


def _options(name, query, key, value, *others, causal, at_edges, plain):
    """The options of a pass's kernel: its tiles, by the longest padded row of a head, and what it is compiled for.
    ``at_edges``: keys are not all seen by all, so that how many are at an edge is not known here. ``plain``: nothing
    but ``causal`` says which are, and there is no bias: tiles that were measured fit such inputs alone."""
    (d, s), e = (query.shape[3], key.shape[2]), value.shape[3]
    (d_first, d_second), (e_first, e_second) = widths(d), widths(e)
    size = query.element_size()
    measured = tuned.tiles(name, causal, size, row_bytes(d, e, size), s, query.device) if plain else None
    block_t, block_s, warps, stages, registers = measured or tiles_of(name, query, value)
    rest = s % block_s
    edge = block_s if at_edges else max(16, triton.next_power_of_2(rest))
    return {
        "D": d, "D_FIRST": d_first, "D_SECOND": d_second, "E": e, "E_FIRST": e_first, "E_SECOND": e_second,
        "UNIT": unit_of(query, key, value, *others), "CAUSAL": causal, "BLOCK_T": block_t, "BLOCK_S": block_s,
        **({} if name == "keys" else {"EDGE": edge}),
        "num_warps": warps, "num_stages": stages, **at_most(registers), **types(query.dtype), **FUSION,
    }  # fmt: skip


@triton.jit(do_not_specialize=["scale_bits"])
def _forward(
    query, key, value, mask, bias, key_lengths, out, lse, table, scale_bits, h, t, s,
    D: tl.constexpr, D_FIRST: tl.constexpr, D_SECOND: tl.constexpr,
    E: tl.constexpr, E_FIRST: tl.constexpr, E_SECOND: tl.constexpr, UNIT: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, EDGE: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    i_b, i_h, first_t = place(table, t, h, BLOCK_T)
    if table is not None:
        start, t = sequence_of(table)
        query, key, value = heads_from(query, start, UNIT), heads_from(key, start, UNIT), heads_from(value, start, UNIT)
        out, lse, s = heads_from(out, start, UNIT), rows_from(lse, start), t
    i_t = first_t + tl.arange(0, BLOCK_T)
    scale, factor = scale_and_factor(scale_bits, CORE)
    length = length_of(key_lengths, i_b, s)
    whole, end = keys_seen(mask, first_t, t, s, length, CAUSAL, BLOCK_T, BLOCK_S)
    b_query0, b_query1 = load_heads(query, i_b, i_h, i_t, t, D, D_FIRST, D_SECOND, UNIT, False)
    b_query0, b_query1 = turned(b_query0, scale, CORE, PRODUCT), turned(b_query1, scale, CORE, PRODUCT)
    b_top = tl.full([BLOCK_T], float("-inf"), CORE)
    b_total = tl.zeros([BLOCK_T], CORE)
    b_out0, b_out1 = zeros(BLOCK_T, E_FIRST, E_SECOND, CORE)
    for first_s in range(0, whole, BLOCK_S):
        b_top, b_total, b_out0, b_out1 = _attend_to(
            b_top, b_total, b_out0, b_out1, b_query0, b_query1, key, value, mask, bias, i_b, i_h, i_t,
            first_s + tl.arange(0, BLOCK_S), t, s, length, factor,
            D, D_FIRST, D_SECOND, E, E_FIRST, E_SECOND, UNIT, CAUSAL, True, CORE, PRODUCT,
        )  # fmt: skip
    for first_s in range(whole, end, EDGE):
        b_top, b_total, b_out0, b_out1 = _attend_to(
            b_top, b_total, b_out0, b_out1, b_query0, b_query1, key, value, mask, bias, i_b, i_h, i_t,
            first_s + tl.arange(0, EDGE), t, s, length, factor,
            D, D_FIRST, D_SECOND, E, E_FIRST, E_SECOND, UNIT, CAUSAL, False, CORE, PRODUCT,
        )  # fmt: skip
    b_share = (1 / tl.where(b_total == 0, 1.0, b_total))[:, None]
    store_heads(out, i_b, i_h, i_t, t, b_out0 * b_share, b_out1 * b_share, E, E_FIRST, E_SECOND, UNIT)
    if bias is not None:
        b_lse = tl.log2(b_total) * LN2 + finite_or_zero(b_top)
    else:
        b_lse = (tl.log2(b_total) + finite_or_zero(b_top) * factor) * LN2
    store_row(lse, i_b, i_h, i_t, t, b_lse)


@triton.jit
def _attend_to(
    b_top, b_total, b_out0, b_out1, b_query0, b_query1, key, value, mask, bias, i_b, i_h, i_t, i_s,
    t, s, length, factor,
    D: tl.constexpr, D_FIRST: tl.constexpr, D_SECOND: tl.constexpr,
    E: tl.constexpr, E_FIRST: tl.constexpr, E_SECOND: tl.constexpr, UNIT: tl.constexpr, CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """The running maximum, sum of exponentials and output, with keys ``i_s`` taken into account."""
    b_key0, b_key1 = load_heads(key, i_b, i_h, i_s, length, D, D_FIRST, D_SECOND, UNIT, WHOLE)
    b_value0, b_value1 = load_heads(value, i_b, i_h, i_s, length, E, E_FIRST, E_SECOND, UNIT, WHOLE)
    b_products = across(b_query0, b_query1, b_key0, b_key1, D_SECOND, CORE, PRODUCT)
    b_levels = levels(
        b_products, mask, bias, i_b, i_h, i_t[:, None], i_s[None, :], t, s, length, factor, CAUSAL, WHOLE, CORE
    )
    factor = factor_of(bias, factor, CORE)
    b_new_top = tl.maximum(b_top, tl.max(b_levels, 1))
    b_shift = finite_or_zero(b_new_top)
    b_weights = weights_above(b_levels, b_shift[:, None], bias, factor)
    b_rescale = weights_above(b_top, b_shift, bias, factor)
    b_total = b_total * b_rescale + tl.sum(b_weights, 1)
    b_out0, b_out1 = along(
        b_weights, b_value0, b_value1, b_out0 * b_rescale[:, None], b_out1 * b_rescale[:, None], E_SECOND, CORE, PRODUCT
    )
    return b_new_top, b_total, b_out0, b_out1
