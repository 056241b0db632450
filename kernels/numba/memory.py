"""How kernels read and write arrays of any dtype, stride and alignment.

A kernel sees an array as a tuple of integers ``(address, kind, stride, …)`` in bytes, so that one build with a
float32 core serves float32, bfloat16 and float16 arrays of any layout, and one with a float64 core float64.
Rows are converted when they are loaded to and stored from scratch of the core's dtype; those that are dense in it
already are read and written where they lie (``row_from``, ``row_to``).
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

from typing import Any

import ml_dtypes
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.vectors import widest_vectors

FLOAT32, FLOAT64, BFLOAT16, FLOAT16, BOOL, UINT8 = range(6)
_KINDS = {
    np.dtype(np.float32): FLOAT32,
    np.dtype(np.float64): FLOAT64,
    np.dtype(ml_dtypes.bfloat16): BFLOAT16,
    np.dtype(np.float16): FLOAT16,
    np.dtype(np.bool_): BOOL,
    np.dtype(np.uint8): UINT8,
}


def core_dtype(dtype):
    """The dtype a kernel computes in for arrays of ``dtype``."""
    return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)


def describe(x, shape=None):
    """``(address, kind, *byte strides)`` of an array, broadcast to ``shape`` if given."""
    if shape is not None:
        x = np.broadcast_to(x, shape)
    return (x.__array_interface__["data"][0], _KINDS[x.dtype], *x.strides)


@jit
def corner(array, i_b, i_h, row):
    """The address of a row of a described (b, h, rows, columns) array."""
    return array[0] + i_b * array[2] + i_h * array[3] + row * array[4]


def _at(builder, address, offset, bits_type):
    """A pointer to ``offset`` bytes after ``address``; a sum of integers would hide from LLVM that it runs in order."""
    start = builder.inttoptr(address, ir.IntType(8).as_pointer())
    return builder.bitcast(builder.gep(start, [offset]), bits_type.as_pointer())


def _reader(name, bits_type, result, convert) -> Any:
    @intrinsic
    def read(typingctx, address, offset):
        def codegen(context, builder, signature, arguments):
            value = builder.load(_at(builder, *arguments, bits_type))
            value.align = 1
            return convert(builder, value)

        return result(types.intp, types.intp), codegen

    read.__name__ = name
    return read


def _bfloat16_to_float32(builder, bits):
    wide = builder.shl(builder.zext(bits, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
    return builder.bitcast(wide, ir.FloatType())


read_float32 = _reader("read_float32", ir.FloatType(), types.float32, lambda _, x: x)
read_float64 = _reader("read_float64", ir.DoubleType(), types.float64, lambda _, x: x)
read_bfloat16 = _reader("read_bfloat16", ir.IntType(16), types.float32, _bfloat16_to_float32)
read_float16 = _reader("read_float16", ir.HalfType(), types.float32, lambda b, x: b.fpext(x, ir.FloatType()))
read_bits = _reader("read_bits", ir.IntType(16), types.int32, lambda b, x: b.zext(x, ir.IntType(32)))
read_byte = _reader("read_byte", ir.IntType(8), types.int64, lambda b, x: b.zext(x, ir.IntType(64)))


def _writer(name, source, convert) -> Any:
    @intrinsic
    def write(typingctx, address, offset, value):
        def codegen(context, builder, signature, arguments):
            bits = convert(builder, arguments[2])
            store = builder.store(bits, _at(builder, *arguments[:2], bits.type))
            store.align = 1
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, source), codegen

    write.__name__ = name
    return write


def _float32_to_bfloat16(builder, value):
    """Round to nearest, ties to even; a NaN stays a (quiet) NaN."""
    i32 = ir.IntType(32)
    bits = builder.bitcast(value, i32)
    odd = builder.and_(builder.lshr(bits, i32(16)), i32(1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, i32(0x7FFF))), i32(16))
    quiet = builder.or_(builder.lshr(bits, i32(16)), i32(0x40))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, quiet, rounded), ir.IntType(16))


write_float32 = _writer("write_float32", types.float32, lambda _, x: x)
write_float64 = _writer("write_float64", types.float64, lambda _, x: x)
write_bfloat16 = _writer("write_bfloat16", types.float32, _float32_to_bfloat16)
write_bits = _writer("write_bits", types.int32, lambda b, x: b.trunc(x, ir.IntType(16)))
write_pair = _writer("write_pair", types.int32, lambda _, x: x)
write_float16 = _writer("write_float16", types.float32, lambda b, x: b.fptrunc(x, ir.HalfType()))


@jit
def load(address, kind):
    """One number of any floating kind, as float64 (exact)."""
    if kind == FLOAT32:
        return np.float64(read_float32(address, 0))
    if kind == FLOAT64:
        return read_float64(address, 0)
    if kind == BFLOAT16:
        return np.float64(read_bfloat16(address, 0))
    return np.float64(read_float16(address, 0))


@jit
def load_row(row, address, stride, kind):
    """row[i] = the number at ``address + i * stride``, for all of ``row``."""
    widest_vectors()
    n = row.shape[0]
    if kind == FLOAT32:
        if stride == 4:
            for i in range(n):
                row[i] = read_float32(address, 4 * i)
        else:
            for i in range(n):
                row[i] = read_float32(address, stride * i)
    elif kind == FLOAT64:
        for i in range(n):
            row[i] = read_float64(address, stride * i)
    elif kind == BFLOAT16:
        if stride == 2:
            for i in range(n):
                row[i] = read_bfloat16(address, 2 * i)
        else:
            for i in range(n):
                row[i] = read_bfloat16(address, stride * i)
    elif kind == FLOAT16:
        for i in range(n):
            row[i] = read_float16(address, stride * i)
    else:
        for i in range(n):
            row[i] = read_byte(address, stride * i)


@jit
def store_row(address, stride, kind, row):
    """The number at ``address + i * stride`` = row[i], rounded to the kind, for all of ``row``.

    Nothing is left to do where ``row`` lies there already (``row_to``).
    """
    widest_vectors()
    if row.ctypes.data == address:
        return
    n = row.shape[0]
    if kind == FLOAT32:
        if stride == 4:
            for i in range(n):
                write_float32(address, 4 * i, np.float32(row[i]))
        else:
            for i in range(n):
                write_float32(address, stride * i, np.float32(row[i]))
    elif kind == FLOAT64:
        for i in range(n):
            write_float64(address, stride * i, np.float64(row[i]))
    elif kind == BFLOAT16:
        if stride == 2:
            for i in range(n):
                write_bfloat16(address, 2 * i, np.float32(row[i]))
        else:
            for i in range(n):
                write_bfloat16(address, stride * i, np.float32(row[i]))
    else:
        for i in range(n):
            write_float16(address, stride * i, np.float32(row[i]))


@intrinsic
def _pointer(typingctx, address, like):
    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.intp, like), codegen


@jit
def _in_place(scratch, address, stride, kind):
    """Whether the row at ``address`` is of the dtype of ``scratch``, dense and aligned."""
    size = scratch.itemsize
    return kind == (FLOAT32 if size == 4 else FLOAT64) and stride == size and address % size == 0


@jit
def row_from(scratch, address, stride, kind):
    """The row at ``address``, as long as ``scratch``: itself if it can be read in place, or else copied to scratch."""
    if _in_place(scratch, address, stride, kind):
        return carray(_pointer(address, scratch.dtype.type(0)), (scratch.shape[0],))
    load_row(scratch, address, stride, kind)
    return scratch


@jit
def row_to(scratch, address, stride, kind):
    """Where to write the row at ``address`` before ``store_row``: itself, or else scratch."""
    if _in_place(scratch, address, stride, kind):
        return carray(_pointer(address, scratch.dtype.type(0)), (scratch.shape[0],))
    return scratch


@jit
def load_block(block, array, row_stride, column_stride, address, rows, columns):
    """block[:rows, :columns] from ``address``; ``array`` gives the kind."""
    for i in range(rows):
        load_row(block[i, :columns], address + i * row_stride, column_stride, array[1])
