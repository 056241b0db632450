"""Fused softmax attention on GPUs; the definitions are in ``saccade.reference.attention``.

    S = scale Q Kᵀ + bias;   P = exp(S − lse);   O = P V
    dV = Pᵀ dO;   dP = dO Vᵀ;   dS = P (dP − rowsum(dO * O) + dlse);   dQ = scale dS K;   dK = scale dSᵀ Q

A program owns a block of queries (forward, dQ) or of keys (dK, dV) of one (b, h) and goes through the other axis:
scores exist one tile at a time, and no two programs add to the same number. The one exception is a bias that needs
a gradient: dS is then stored whole, (b, h, t, s) in float32 at least, and summed to the bias's shape by torch.
"""

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import (
    FUSION,
    core_dtype,
    describe,
    double_bits,
    from_double_bits,
    load_block,
    load_row,
    product,
    store_block,
    store_row,
    types,
)

# The longest padded row of a head, in bytes, whose tiles fit the shared memory of every GPU we compile for.
LONGEST_ROW = 2048


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
    options = dict(mask=mask, bias=bias, causal=causal, key_lengths=key_lengths)
    lse, scale = _attend(query, key, value, out, scale, **options)
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
    out = qkv.new_empty((b, n, h, d))
    lse, scale = _attend(*_three(qkv), out.transpose(1, 2), scale, causal=causal, key_lengths=key_lengths)
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


def _attend(query, key, value, out, scale, *, mask=None, bias=None, causal=False, key_lengths=None):
    """Write ``out`` (b, h, t, e), of any strides; (lse, scale)."""
    (b, h, t, d), s, e = query.shape, key.shape[2], value.shape[3]
    tiles = _tiles(query, value)
    scale = d**-0.5 if scale is None else float(scale)
    lse = query.new_empty((b, h, t), dtype=core_dtype(query.dtype))
    extras = describe(mask, (b, h, t, s)), describe(bias, (b, h, t, s)), describe(key_lengths)
    if lse.numel():
        with torch.cuda.device_of(query):
            _forward[(b * h * triton.cdiv(t, tiles["BLOCK_T"]),)](
                describe(query), describe(key), describe(value), *extras, describe(out), describe(lse),
                double_bits(scale), h, t, s, d, e, CAUSAL=causal, **tiles, **types(query.dtype), **FUSION,
            )  # fmt: skip
    return lse, scale


def _differentiate(saved, grad_out, grad_lse, gradients):
    """Write the gradients for query, key and value, of any strides; return that for bias, None where there is none."""
    query, key, value, bias, mask, key_lengths, out, lse, causal, scale = saved
    grad_query, grad_key, grad_value = map(describe, gradients)
    (b, h, t, d), s, e = query.shape, key.shape[2], value.shape[3]
    tiles = _tiles(query, value)
    row_sums = torch.empty_like(lse)
    # tiles that no query of theirs may see are not visited, so not written
    grad_scores = None if bias is None else lse.new_zeros((b, h, t, s))
    arrays = describe(query), describe(key), describe(value)
    extras = describe(mask, (b, h, t, s)), describe(bias, (b, h, t, s)), describe(key_lengths)
    sizes = double_bits(scale), h, t, s, d, e
    options = dict(CAUSAL=causal, **tiles, **types(query.dtype), **FUSION)
    with torch.cuda.device_of(query):
        if lse.numel():
            _backward_queries[(b * h * triton.cdiv(t, tiles["BLOCK_T"]),)](
                *arrays, *extras, describe(out), describe(lse), describe(grad_out), describe(grad_lse),
                describe(row_sums), grad_query, describe(grad_scores), *sizes, **options,
            )  # fmt: skip
        if b * h * s:
            _backward_keys[(b * h * triton.cdiv(s, tiles["BLOCK_S"]),)](
                *arrays, *extras, describe(lse), describe(grad_out), describe(row_sums), grad_key, grad_value,
                *sizes, **options,
            )  # fmt: skip
    return None if bias is None or grad_scores is None else grad_scores.sum_to_size(bias.shape).to(bias.dtype)


def _tiles(query, value):
    """Block sizes, by the longest padded row of a head; they do not change which function is computed."""
    block_d, block_e = (max(16, triton.next_power_of_2(x.shape[-1])) for x in (query, value))
    row = max(block_d, block_e) * query.element_size()
    if row > LONGEST_ROW:
        raise ValueError(
            f"attention: {query.shape=}, {value.shape=}, expected head dimensions of at most "
            f"{LONGEST_ROW // query.element_size()} for {query.dtype} on a GPU"
        )
    side = 64 if row <= 256 else 32 if row <= 512 else 16
    return {
        "BLOCK_T": side, "BLOCK_S": side, "BLOCK_D": block_d, "BLOCK_E": block_e,
        "num_warps": 4 if row <= 128 else 8, "num_stages": 2 if row <= 256 else 1,
    }  # fmt: skip


@triton.jit
def _place(n, h, BLOCK: tl.constexpr):
    """Which (b, h) this program works on, and its first index along the axis of length n."""
    blocks = tl.cdiv(n, BLOCK)
    i_program = tl.program_id(0)
    i_bh = i_program // blocks
    return (i_bh // h).to(tl.int64), (i_bh % h).to(tl.int64), (i_program % blocks) * BLOCK


@triton.jit
def _length(key_lengths, i_b, s):
    """How many keys of item b are there to be read."""
    length = s
    if key_lengths is not None:
        length = tl.minimum(tl.load(key_lengths[0] + i_b * key_lengths[1]).to(tl.int32), s)
    return length


@triton.jit
def _scores(
    b_products, mask, bias, i_b, i_h, i_t, i_s, t, s, length, scale, CAUSAL: tl.constexpr, CORE: tl.constexpr
):  # fmt: skip
    """scale Q Kᵀ + bias from the products of a block, −inf where a key may not be seen; i_t, i_s as in load_block."""
    b_scores = scale * b_products
    if bias is not None:
        b_scores += load_block(bias, i_b, i_h, i_t, i_s, t, length).to(CORE)
    m_seen = (i_t < t) & (i_s < length)
    if CAUSAL:
        m_seen = m_seen & (i_s <= i_t + (s - t))
    if mask is not None:
        m_seen = m_seen & (load_block(mask, i_b, i_h, i_t, i_s, t, length) != 0)
    return tl.where(m_seen, b_scores, float("-inf"))


@triton.jit
def _finite_or_zero(b_top):
    """What to subtract from scores before exp: where nothing is seen, −inf − −inf would be NaN."""
    return tl.where(b_top == float("-inf"), 0.0, b_top)


@triton.jit(do_not_specialize=["scale_bits"])
def _forward(
    query, key, value, mask, bias, key_lengths, out, lse, scale_bits, h, t, s, d, e,
    CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    i_b, i_h, first_t = _place(t, h, BLOCK_T)
    i_t = (first_t + tl.arange(0, BLOCK_T).to(tl.int64))[:, None]
    i_d, i_e = tl.arange(0, BLOCK_D).to(tl.int64)[None, :], tl.arange(0, BLOCK_E).to(tl.int64)[None, :]
    scale = from_double_bits(scale_bits, CORE)
    length = _length(key_lengths, i_b, s)
    end = length
    if CAUSAL:
        end = tl.minimum(length, first_t + BLOCK_T + s - t)
    b_query = load_block(query, i_b, i_h, i_t, i_d, t, d)
    b_top = tl.full([BLOCK_T, 1], float("-inf"), CORE)
    b_total = tl.zeros([BLOCK_T, 1], CORE)
    b_out = tl.zeros([BLOCK_T, BLOCK_E], CORE)
    for first_s in range(0, end, BLOCK_S):
        i_s = first_s + tl.arange(0, BLOCK_S).to(tl.int64)
        b_key = load_block(key, i_b, i_h, i_s[:, None], i_d, length, d)
        b_value = load_block(value, i_b, i_h, i_s[:, None], i_e, length, e)
        b_products = product(b_query, tl.trans(b_key), CORE, PRODUCT)
        b_scores = _scores(b_products, mask, bias, i_b, i_h, i_t, i_s[None, :], t, s, length, scale, CAUSAL, CORE)
        b_new_top = tl.maximum(b_top, tl.max(b_scores, 1, keep_dims=True))
        b_shift = _finite_or_zero(b_new_top)
        b_weights = tl.exp(b_scores - b_shift)
        b_rescale = tl.exp(b_top - b_shift)
        b_total = b_total * b_rescale + tl.sum(b_weights, 1, keep_dims=True)
        b_out = b_out * b_rescale + product(b_weights, b_value, CORE, PRODUCT)
        b_top = b_new_top
    b_out = b_out / tl.where(b_total == 0, 1.0, b_total)
    store_block(out, i_b, i_h, i_t, i_e, t, e, b_out)
    store_row(lse, i_b, i_h, i_t, t, tl.log(b_total) + _finite_or_zero(b_top))


@triton.jit
def _weights_and_score_gradients(b_scores, b_grad_weights, b_lse, b_row_sums):
    """P and dS of a block from its scores and dP."""
    b_weights = tl.exp(b_scores - _finite_or_zero(b_lse))
    return b_weights, tl.where(b_weights == 0, 0.0, b_weights * (b_grad_weights - b_row_sums))


@triton.jit(do_not_specialize=["scale_bits"])
def _backward_queries(
    query, key, value, mask, bias, key_lengths, out, lse, grad_out, grad_lse, row_sums, grad_query, grad_scores,
    scale_bits, h, t, s, d, e,
    CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """dQ, and on the way rowsum(dO * O) − dlse, which ``_backward_keys`` needs, and dS if the bias asks for it."""
    i_b, i_h, first_t = _place(t, h, BLOCK_T)
    i_t = (first_t + tl.arange(0, BLOCK_T).to(tl.int64))[:, None]
    i_d, i_e = tl.arange(0, BLOCK_D).to(tl.int64)[None, :], tl.arange(0, BLOCK_E).to(tl.int64)[None, :]
    scale = from_double_bits(scale_bits, CORE)
    length = _length(key_lengths, i_b, s)
    end = length
    if CAUSAL:
        end = tl.minimum(length, first_t + BLOCK_T + s - t)
    b_query = load_block(query, i_b, i_h, i_t, i_d, t, d)
    b_grad_out = load_block(grad_out, i_b, i_h, i_t, i_e, t, e)
    b_out = load_block(out, i_b, i_h, i_t, i_e, t, e)
    b_lse = load_row(lse, i_b, i_h, i_t, t)
    b_row_sums = tl.sum(b_grad_out.to(CORE) * b_out.to(CORE), 1, keep_dims=True)
    if grad_lse is not None:
        b_row_sums -= load_row(grad_lse, i_b, i_h, i_t, t).to(CORE)
    store_row(row_sums, i_b, i_h, i_t, t, b_row_sums)
    b_grad_query = tl.zeros([BLOCK_T, BLOCK_D], CORE)
    for first_s in range(0, end, BLOCK_S):
        i_s = first_s + tl.arange(0, BLOCK_S).to(tl.int64)
        b_key = load_block(key, i_b, i_h, i_s[:, None], i_d, length, d)
        b_value = load_block(value, i_b, i_h, i_s[:, None], i_e, length, e)
        b_products = product(b_query, tl.trans(b_key), CORE, PRODUCT)
        b_scores = _scores(b_products, mask, bias, i_b, i_h, i_t, i_s[None, :], t, s, length, scale, CAUSAL, CORE)
        b_grad_weights = product(b_grad_out, tl.trans(b_value), CORE, PRODUCT)
        _, b_grad_scores = _weights_and_score_gradients(b_scores, b_grad_weights, b_lse, b_row_sums)
        if grad_scores is not None:
            store_block(grad_scores, i_b, i_h, i_t, i_s[None, :], t, length, b_grad_scores)
        b_grad_query += product(b_grad_scores, b_key, CORE, PRODUCT)
    store_block(grad_query, i_b, i_h, i_t, i_d, t, d, scale * b_grad_query)


@triton.jit(do_not_specialize=["scale_bits"])
def _backward_keys(
    query, key, value, mask, bias, key_lengths, lse, grad_out, row_sums, grad_key, grad_value,
    scale_bits, h, t, s, d, e,
    CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """dK and dV, from blocks of scores that lie transposed, keys down: nothing computed has to be turned round."""
    i_b, i_h, first_s = _place(s, h, BLOCK_S)
    i_s = (first_s + tl.arange(0, BLOCK_S).to(tl.int64))[:, None]
    i_d, i_e = tl.arange(0, BLOCK_D).to(tl.int64)[None, :], tl.arange(0, BLOCK_E).to(tl.int64)[None, :]
    scale = from_double_bits(scale_bits, CORE)
    length = _length(key_lengths, i_b, s)
    b_key = load_block(key, i_b, i_h, i_s, i_d, length, d)
    b_value = load_block(value, i_b, i_h, i_s, i_e, length, e)
    b_grad_key = tl.zeros([BLOCK_S, BLOCK_D], CORE)
    b_grad_value = tl.zeros([BLOCK_S, BLOCK_E], CORE)
    start = first_s * 0
    if CAUSAL:  # the block of the first query that sees key first_s
        start = tl.maximum(first_s - (s - t), 0) // BLOCK_T * BLOCK_T
    for first_t in range(start, t, BLOCK_T):
        i_t = first_t + tl.arange(0, BLOCK_T).to(tl.int64)
        b_query = load_block(query, i_b, i_h, i_t[:, None], i_d, t, d)
        b_grad_out = load_block(grad_out, i_b, i_h, i_t[:, None], i_e, t, e)
        b_lse = load_row(lse, i_b, i_h, i_t[None, :], t)
        b_row_sums = load_row(row_sums, i_b, i_h, i_t[None, :], t)
        b_products = product(b_key, tl.trans(b_query), CORE, PRODUCT)
        b_scores = _scores(b_products, mask, bias, i_b, i_h, i_t[None, :], i_s, t, s, length, scale, CAUSAL, CORE)
        b_grad_weights = product(b_value, tl.trans(b_grad_out), CORE, PRODUCT)
        b_weights, b_grad_scores = _weights_and_score_gradients(b_scores, b_grad_weights, b_lse, b_row_sums)
        b_grad_value += product(b_weights, b_grad_out, CORE, PRODUCT)
        b_grad_key += product(b_grad_scores, b_query, CORE, PRODUCT)
    store_block(grad_key, i_b, i_h, i_s, i_d, s, d, scale * b_grad_key)
    store_block(grad_value, i_b, i_h, i_s, i_e, s, e, b_grad_value)
