"""What every kernel here shares: how arrays, dtypes and exact numbers reach a kernel.

An array is passed as the tuple (pointer, stride of each axis); an axis it is broadcast along has stride 0. Indices
are compared as int32 and made int64 before they meet a stride, since an offset may exceed 2³¹.
"""

import struct
from typing import Any

import torch
import triton
import triton.language as tl

# Triton's interpreter keeps bfloat16 as its bits and would multiply those: there, products are taken in float32.
INTERPRETED = triton.knobs.runtime.interpret  # pyright: ignore[reportAttributeAccessIssue]

_TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}

# Sums of products keep the compiler's leave to contract a·b + c, on every version: its default is about to change.
FUSION = {"enable_fp_fusion": True}


def core_dtype(dtype):
    """The dtype sums are taken in: float32 for 16-bit floats, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def types(dtype):
    """Keyword arguments of a kernel: CORE, what it adds in, and PRODUCT, what it multiplies matrices of."""
    product = tl.float32 if INTERPRETED and dtype == torch.bfloat16 else _TYPES[dtype]
    return {"CORE": _TYPES[core_dtype(dtype)], "PRODUCT": product}


def describe(x, shape=None):
    """``x``, or ``x`` broadcast to ``shape``, as a kernel takes it; None stays None."""
    if x is None:
        return None
    x = x if shape is None else x.expand(shape)
    x = x.view(torch.uint8) if x.dtype == torch.bool else x
    return x, *x.stride()


def beside(x, dtype):
    """``x``, as something else than bytes where products in float64 come of it: Triton 3.6 does not compile those."""
    return x if x is None or x.element_size() > 1 or dtype != torch.float64 else x.to(torch.int32)


def backend():
    """Whom kernels are compiled for: "cuda", "hip", or None if they are interpreted."""
    driver: Any = triton.runtime.driver
    return None if INTERPRETED else driver.active.get_current_target().backend


def at_most(registers):
    """The option that bounds a thread's registers, so that more programs run at once, where there is such an option."""
    return {"maxnreg": registers} if registers and backend() == "cuda" else {}


def double_bits(x):
    """A number as the bits of its float64: Triton would round a float argument to float32."""
    return struct.unpack("q", struct.pack("d", x))[0]


@triton.jit
def from_double_bits(bits, CORE: tl.constexpr):
    """The number of ``double_bits``, in the dtype sums are taken in."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(CORE)


@triton.jit
def load_block(x, i_b, i_h, i_row, i_column, rows, columns):
    """A block of the matrix (b, h) of a 4-d array, 0 at and beyond ``rows`` and ``columns``.

    One of the indices is a column and the other a row, which says how the block lies.
    """
    m_inside = (i_row < rows) & (i_column < columns)
    p_x = x[0] + i_b * x[1] + i_h * x[2] + i_row * x[3] + i_column * x[4]
    return tl.load(p_x, mask=m_inside, other=0)


@triton.jit
def store_block(x, i_b, i_h, i_row, i_column, rows, columns, b_x):
    """Write what of ``b_x`` lies inside ``rows`` and ``columns``, rounded to the dtype of ``x``."""
    m_inside = (i_row < rows) & (i_column < columns)
    p_x = x[0] + i_b * x[1] + i_h * x[2] + i_row * x[3] + i_column * x[4]
    tl.store(p_x, b_x.to(x[0].dtype.element_ty), mask=m_inside)


@triton.jit
def load_row(x, i_b, i_h, i_row, rows):
    """A block of the vector (b, h) of a 3-d array, 0 at and beyond ``rows``."""
    return tl.load(x[0] + i_b * x[1] + i_h * x[2] + i_row * x[3], mask=i_row < rows, other=0)


@triton.jit
def store_row(x, i_b, i_h, i_row, rows, b_x):
    """Write what of ``b_x`` lies inside ``rows``."""
    tl.store(x[0] + i_b * x[1] + i_h * x[2] + i_row * x[3], b_x, mask=i_row < rows)


@triton.jit
def load_tile(x, i_row, i_column, rows, columns):
    """A block of a matrix, 0 at and beyond ``rows`` and ``columns``; the indices are as in ``load_block``."""
    m_inside = (i_row < rows) & (i_column < columns)
    return tl.load(x[0] + i_row.to(tl.int64) * x[1] + i_column.to(tl.int64) * x[2], mask=m_inside, other=0)


@triton.jit
def store_tile(x, i_row, i_column, rows, columns, b_x):
    """Write what of ``b_x`` lies inside ``rows`` and ``columns``, rounded to the dtype of ``x``."""
    m_inside = (i_row < rows) & (i_column < columns)
    p_x = x[0] + i_row.to(tl.int64) * x[1] + i_column.to(tl.int64) * x[2]
    tl.store(p_x, b_x.to(x[0].dtype.element_ty), mask=m_inside)


@triton.jit
def load_vector(x, i, n):
    """A block of a vector, 0 at and beyond ``n``."""
    return tl.load(x[0] + i.to(tl.int64) * x[1], mask=i < n, other=0)


@triton.jit
def store_vector(x, i, n, b_x):
    """Write what of ``b_x`` lies inside ``n``, rounded to the dtype of ``x``."""
    tl.store(x[0] + i.to(tl.int64) * x[1], b_x.to(x[0].dtype.element_ty), mask=i < n)


@triton.jit
def product(a, b, CORE: tl.constexpr, PRODUCT: tl.constexpr):
    """a b, with operands rounded to PRODUCT and sums in CORE (float32 stays float32, never tf32)."""
    return tl.dot(a.to(PRODUCT), b.to(PRODUCT), out_dtype=CORE, input_precision="ieee")
