"""The layers of a transformer block on GPUs; the definitions are in ``saccade.reference.layers``.

A program owns whole rows, which it reads once. Gradients that are sums over rows are added up in parts, each the work
of one program in the order of its rows, and the parts in theirs: how many there are depends on the shape alone.
"""

import math

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import (
    FUSION,
    core_dtype,
    describe,
    double_bits,
    from_double_bits,
    load_tile,
    load_vector,
    store_tile,
    store_vector,
    types,
)

# (longest row, rows that a program holds at once, its warps): they do not change which function is computed.
TILES = ((256, 16, 4), (1024, 4, 4), (4096, 2, 8), (16384, 1, 16))
PARTS = 1024  # at most so many partial sums over rows
BLOCK = 1024  # numbers of an elementwise function that a program takes


def layer_norm(x, scale, bias=None, *, eps=1e-5, residual=None):
    """(x − mean) / sqrt(variance + eps) · scale + bias; with ``residual`` added first, (normalised, sum)."""
    return layer_norm_forward(x, scale, bias, eps=eps, residual=residual)[0]


def layer_norm_forward(x, scale, bias=None, *, eps=1e-5, residual=None):
    """``layer_norm`` and (sum, scale, bias, mean, 1/deviation, whether there was a residual).

    Raises:
        ValueError: a row is so long that it does not fit the GPU.
    """
    out, total, mean, inverse = _norm_forward("layer_norm", x, scale, bias, eps, residual, centre=True)
    saved = total, scale, bias, mean, inverse, residual is not None
    return (out if residual is None else (out, total)), saved


def layer_norm_backward(saved, grad_out, grad_sum=None):
    """Gradients for x, scale, bias and residual."""
    total, scale, bias, mean, inverse, has_residual = saved
    grad_x, grad_scale, grad_bias = _norm_backward("layer_norm", total, scale, mean, inverse, grad_out, grad_sum)
    grad_bias = None if bias is None else grad_bias.to(bias.dtype)
    return grad_x, grad_scale.to(scale.dtype), grad_bias, grad_x.clone() if has_residual else None


def rms_norm(x, scale, *, eps=1e-5, residual=None):
    """x / sqrt(mean(x²) + eps) · scale; with ``residual`` added first, (normalised, sum)."""
    return rms_norm_forward(x, scale, eps=eps, residual=residual)[0]


def rms_norm_forward(x, scale, *, eps=1e-5, residual=None):
    """``rms_norm`` and (sum, scale, 1/deviation, whether there was a residual).

    Raises:
        ValueError: a row is so long that it does not fit the GPU.
    """
    out, total, _, inverse = _norm_forward("rms_norm", x, scale, None, eps, residual, centre=False)
    return (out if residual is None else (out, total)), (total, scale, inverse, residual is not None)


def rms_norm_backward(saved, grad_out, grad_sum=None):
    """Gradients for x, scale and residual."""
    total, scale, inverse, has_residual = saved
    grad_x, grad_scale = _norm_backward("rms_norm", total, scale, None, inverse, grad_out, grad_sum)
    return grad_x, grad_scale.to(scale.dtype), grad_x.clone() if has_residual else None


def gelu(x, *, kind="erf"):
    """x Φ(x), its tanh approximation, or x σ(1.702 x)."""
    return gelu_forward(x, kind=kind)[0]


def gelu_forward(x, *, kind="erf"):
    """``gelu`` and what ``gelu_backward`` needs: (x, kind)."""
    out = x.new_empty(x.shape)
    _elementwise(_gelu, kind, x, out)
    return out, (x, kind)


def gelu_backward(saved, grad_out):
    """The gradient for x, in a tuple of one."""
    x, kind = saved
    grad_x = x.new_empty(x.shape)
    _elementwise(_gelu_backward, kind, x, grad_out, grad_x)
    return (grad_x,)


def l2_normalize(x, *, eps=1e-12):
    """x / max(|x|, eps) along the last axis."""
    return l2_normalize_forward(x, eps=eps)[0]


def l2_normalize_forward(x, *, eps=1e-12):
    """``l2_normalize`` and what ``l2_normalize_backward`` needs: (x, eps).

    Raises:
        ValueError: a row is so long that it does not fit the GPU.
    """
    out = x.new_empty(x.shape)
    _by_rows("l2_normalize", _l2_rows, x, *map(_as_rows, (x, out)), double_bits(eps))
    return out, (x, eps)


def l2_normalize_backward(saved, grad_out):
    """The gradient for x, in a tuple of one."""
    x, eps = saved
    grad_x = x.new_empty(x.shape)
    _by_rows("l2_normalize", _l2_rows_backward, x, *map(_as_rows, (x, grad_out, grad_x)), double_bits(eps))
    return (grad_x,)


def _as_rows(x):
    """``x`` as (rows, last axis) in the form a kernel takes, a view where its layout allows; None stays None."""
    return None if x is None else describe(x.reshape(_rows(x), x.shape[-1]))


def _rows(x):
    return math.prod(x.shape[:-1])


def _tiles(operation, e):
    """Block sizes for rows of e numbers."""
    for longest, rows, warps in TILES:
        if e <= longest:
            return {"ROWS": rows, "BLOCK_E": max(16, triton.next_power_of_2(e)), "num_warps": warps}
    raise ValueError(f"{operation}: rows of {e} numbers, expected at most {TILES[-1][0]} on a GPU")


def _by_rows(operation, kernel, x, *arguments, **options):
    """Launch a kernel of ``ROWS`` rows a program."""
    e, rows = x.shape[-1], _rows(x)
    tiles = _tiles(operation, e)
    if x.numel():
        with torch.cuda.device_of(x):
            grid = (triton.cdiv(rows, tiles["ROWS"]),)
            kernel[grid](*arguments, rows, e, **options, **tiles, CORE=types(x.dtype)["CORE"], **FUSION)


def _elementwise(kernel, kind, *arrays):
    x = arrays[0]
    n = x.numel()
    flat = (describe(one.reshape(-1)) for one in arrays)
    if n:
        with torch.cuda.device_of(x):
            kernel[(triton.cdiv(n, BLOCK),)](
                *flat, n, KIND=kind, BLOCK=BLOCK, CORE=types(x.dtype)["CORE"], **FUSION
            )  # fmt: skip


def _norm_forward(operation, x, scale, bias, eps, residual, centre):
    out = x.new_empty(x.shape)
    total = x if residual is None else x.new_empty(x.shape)
    mean, inverse = (x.new_empty(_rows(x), dtype=core_dtype(x.dtype)) for _ in range(2))
    _by_rows(
        operation, _norm_rows, x, _as_rows(x), _as_rows(residual), describe(scale), describe(bias), _as_rows(out),
        _as_rows(total), describe(mean), describe(inverse), double_bits(eps), CENTRE=centre,
    )  # fmt: skip
    return out, total, mean, inverse


def _norm_backward(operation, total, scale, mean, inverse, grad_out, grad_sum):
    """The gradient for the sum, then for scale and, where there is a mean, for a bias, in the dtype sums have."""
    e, rows = total.shape[-1], _rows(total)
    tiles = _tiles(operation, e)
    in_part = tiles["ROWS"] * triton.cdiv(triton.cdiv(rows, tiles["ROWS"]), PARTS)
    grad_x = total.new_empty(total.shape)
    parts = inverse.new_empty((1 if mean is None else 2, triton.cdiv(rows, in_part) if rows else 0, e))
    if total.numel():
        with torch.cuda.device_of(total):
            _norm_rows_backward[(parts.shape[1],)](
                _as_rows(total), _as_rows(grad_out), _as_rows(grad_sum), describe(scale), describe(mean),
                describe(inverse), _as_rows(grad_x), describe(parts), in_part, rows, e, **tiles,
                CORE=types(total.dtype)["CORE"], **FUSION,
            )  # fmt: skip
    return grad_x, *(part.sum(0) for part in parts)  # tensors of their own, as torch asks of operators


@triton.jit
def _place(first, ROWS: tl.constexpr, BLOCK_E: tl.constexpr):
    """The indices of a block of whole rows."""
    return (first + tl.arange(0, ROWS).to(tl.int64))[:, None], tl.arange(0, BLOCK_E).to(tl.int64)[None, :]


@triton.jit(do_not_specialize=["eps_bits"])
def _norm_rows(
    x, residual, scale, bias, out, total, mean, inverse, eps_bits, rows, e,
    CENTRE: tl.constexpr, ROWS: tl.constexpr, BLOCK_E: tl.constexpr, CORE: tl.constexpr,
):  # fmt: skip
    i_row, i_e = _place(tl.program_id(0).to(tl.int64) * ROWS, ROWS, BLOCK_E)
    b_x = load_tile(x, i_row, i_e, rows, e).to(CORE)
    if residual is not None:
        b_x += load_tile(residual, i_row, i_e, rows, e).to(CORE)
        store_tile(total, i_row, i_e, rows, e, b_x)
        b_x = b_x.to(total[0].dtype.element_ty).to(CORE)  # the rounded sum is what is normalised
    if CENTRE:
        b_mean = tl.sum(b_x, 1, keep_dims=True) / e
        b_x = tl.where(i_e < e, b_x - b_mean, 0.0)
        store_vector(mean, i_row, rows, b_mean)
    b_inverse = 1 / tl.sqrt(tl.sum(b_x * b_x, 1, keep_dims=True) / e + from_double_bits(eps_bits, CORE))
    store_vector(inverse, i_row, rows, b_inverse)
    b_out = b_x * b_inverse * load_vector(scale, i_e, e).to(CORE)
    if bias is not None:
        b_out += load_vector(bias, i_e, e).to(CORE)
    store_tile(out, i_row, i_e, rows, e, b_out)


@triton.jit
def _norm_rows_backward(
    x, grad_out, grad_sum, scale, mean, inverse, grad_x, parts, in_part, rows, e,
    ROWS: tl.constexpr, BLOCK_E: tl.constexpr, CORE: tl.constexpr,
):  # fmt: skip
    """dX of ``in_part`` rows, and their share of sum dY n and, where there is a mean, of sum dY."""
    i_part = tl.program_id(0).to(tl.int64)
    start = i_part * in_part
    b_of_scale, b_of_bias = tl.zeros([ROWS, BLOCK_E], CORE), tl.zeros([ROWS, BLOCK_E], CORE)
    for offset in range(0, in_part, ROWS):
        i_row, i_e = _place(start + offset, ROWS, BLOCK_E)
        b_inverse = load_vector(inverse, i_row, rows)
        b_normal = load_tile(x, i_row, i_e, rows, e).to(CORE)
        if mean is not None:
            b_normal = tl.where(i_e < e, b_normal - load_vector(mean, i_row, rows), 0.0)
        b_normal *= b_inverse
        b_grad = load_tile(grad_out, i_row, i_e, rows, e).to(CORE)
        b_of_scale += b_grad * b_normal
        if mean is not None:
            b_of_bias += b_grad
        b_grad *= load_vector(scale, i_e, e).to(CORE)
        b_along = tl.sum(b_grad * b_normal, 1, keep_dims=True) / e
        b_grad_x = b_grad - b_normal * b_along
        if mean is not None:
            b_grad_x -= tl.sum(b_grad, 1, keep_dims=True) / e
        b_grad_x *= b_inverse
        if grad_sum is not None:
            b_grad_x += load_tile(grad_sum, i_row, i_e, rows, e).to(CORE)
        store_tile(grad_x, i_row, i_e, rows, e, b_grad_x)
    i_e = tl.arange(0, BLOCK_E).to(tl.int64)
    p_parts = parts[0] + i_part * parts[2] + i_e * parts[3]
    tl.store(p_parts, tl.sum(b_of_scale, 0), mask=i_e < e)
    if mean is not None:
        tl.store(p_parts + parts[1], tl.sum(b_of_bias, 0), mask=i_e < e)


@triton.jit
def _gate(b_x, KIND: tl.constexpr):
    """What GELU multiplies x by, and its derivative."""
    if KIND == "erf":
        b_gate = (1 + tl.erf(b_x * 0.7071067811865476)) / 2
        b_slope = tl.exp(-b_x * b_x / 2) * 0.3989422804014327
    else:
        b_square = b_x * b_x
        if KIND == "tanh":  # (1 + tanh v)/2 = σ(2v)
            b_u = 1.5957691216057308 * (b_x + 0.044715 * b_x * b_square)
            b_slope_u = 1.5957691216057308 * (1 + 0.134145 * b_square)
        else:
            b_u = 1.702 * b_x
            b_slope_u = tl.full(b_x.shape, 1.702, b_x.dtype)
        b_gate = 1 / (1 + tl.exp(-b_u))
        b_both = b_gate / (1 + tl.exp(b_u))  # σ(u) σ(−u)
        b_slope = tl.where(b_both == 0, 0.0, b_slope_u * b_both)
    return b_gate, b_slope


@triton.jit
def _gelu(x, out, n, KIND: tl.constexpr, BLOCK: tl.constexpr, CORE: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_x = load_vector(x, i, n).to(CORE)
    store_vector(out, i, n, b_x * _gate(b_x, KIND)[0])


@triton.jit
def _gelu_backward(x, grad_out, grad_x, n, KIND: tl.constexpr, BLOCK: tl.constexpr, CORE: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_x = load_vector(x, i, n).to(CORE)
    b_gate, b_slope = _gate(b_x, KIND)
    store_vector(grad_x, i, n, load_vector(grad_out, i, n).to(CORE) * (b_gate + b_x * b_slope))


@triton.jit
def _length(b_x, eps):
    """(|x|, max(|x|, eps)) of each row."""
    b_length = tl.sqrt(tl.sum(b_x * b_x, 1, keep_dims=True))
    return b_length, tl.where(b_length < eps, eps, b_length)  # NaN stays NaN


@triton.jit(do_not_specialize=["eps_bits"])
def _l2_rows(x, out, eps_bits, rows, e, ROWS: tl.constexpr, BLOCK_E: tl.constexpr, CORE: tl.constexpr):
    i_row, i_e = _place(tl.program_id(0).to(tl.int64) * ROWS, ROWS, BLOCK_E)
    b_x = load_tile(x, i_row, i_e, rows, e).to(CORE)
    store_tile(out, i_row, i_e, rows, e, b_x / _length(b_x, from_double_bits(eps_bits, CORE))[1])


@triton.jit(do_not_specialize=["eps_bits"])
def _l2_rows_backward(
    x, grad_out, grad_x, eps_bits, rows, e, ROWS: tl.constexpr, BLOCK_E: tl.constexpr, CORE: tl.constexpr
):  # fmt: skip
    i_row, i_e = _place(tl.program_id(0).to(tl.int64) * ROWS, ROWS, BLOCK_E)
    eps = from_double_bits(eps_bits, CORE)
    b_x = load_tile(x, i_row, i_e, rows, e).to(CORE)
    b_grad = load_tile(grad_out, i_row, i_e, rows, e).to(CORE)
    b_length, b_divisor = _length(b_x, eps)
    b_out = b_x / b_divisor
    b_along = tl.where(b_length > eps, tl.sum(b_out * b_grad, 1, keep_dims=True), 0.0)
    store_tile(grad_x, i_row, i_e, rows, e, (b_grad - b_out * b_along) / b_divisor)
