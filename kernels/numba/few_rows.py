"""Products of a few rows with a matrix that is read once, where it lies: what sampling with a cache consists of.

Squares of the matrix are turned over in registers, so that a vector has one number of each of its rows, and each output
remains one chain of fused multiply-adds: the bits of a row are those it has among many.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.halves import load_rows
from saccade.kernels.numba.memory import store_row
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.vectors import BYTES, DOTS, I64, Emitter, lanes, widest_vectors

MOST = 4  # rows; of 8 the sums no longer stay in registers, and many rows' kernel is as fast
GRAIN = 1 << 16  # bytes of the matrix that are worth a run of their own


def _multiplier(count) -> Any:
    """total[i, j] += sum_l x[i, l] weight[min(j, last), l] for ``count`` rows i, over so many squares of vectors.

    Of an int32 ``zero``, numbers are pairs of bfloat16.
    """

    @intrinsic
    def multiply(typingctx, zero, x, x_row, weight, weight_row, last, squares, total, total_row):
        def codegen(context, builder, signature, arguments):
            _, x, x_row, weight, weight_row, last, squares, total, total_row = arguments
            in_pairs = signature.args[0] == types.int32
            if in_pairs and not DOTS:
                return context.get_dummy_value()
            emit = Emitter(builder, signature.args[0])
            add = emit.dot if in_pairs else emit.fma
            below = [builder.select(builder.icmp_signed("<", I64(j), last), I64(j), last) for j in range(emit.lanes)]
            places = [emit.address(weight, builder.mul(weight_row, j)) for j in below]
            ahead = builder.mul(weight_row, I64(emit.lanes))
            sums = [emit.address(total, builder.mul(total_row, I64(i))) for i in range(count)]
            numbers = [emit.address(x, builder.mul(x_row, I64(i))) for i in range(count)]

            def square(step, values):
                offset = builder.mul(step, I64(BYTES))
                lines = [emit.address(place, offset) for place in places]
                for line in lines:  # of the rows that follow, which the processor does not expect
                    _prefetch(builder, emit.address(line, ahead))
                for j, column in enumerate(emit.transposed([emit.load(line) for line in lines])):
                    at = builder.add(offset, I64(j * emit.size))
                    factors = [emit.splat(emit.load(emit.address(place, at), emit.number)) for place in numbers]
                    values = [add(column, x, y) for x, y in zip(factors, values, strict=True)]
                return values

            for value, place in zip(emit.loop(squares, [emit.load(one) for one in sums], square), sums, strict=True):
                emit.store(value, place)
            return context.get_dummy_value()

        return types.void(zero, *[types.intp] * 8), codegen

    multiply.__name__ = f"multiply_{count}"
    return multiply


_multiply_1, _multiply_2, _multiply_4 = map(_multiplier, (1, 2, MOST))


def _prefetch(builder, address):
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    name, module = "llvm.prefetch.p0i8", builder.module
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = module.globals.get(name) or ir.Function(module, kind, name)
    builder.call(function, [builder.inttoptr(address, byte), word(0), word(2), word(1)])


@jit
def few_rows(work, pairs, sizes, x, weight, bias, out):
    """out = x weightᵀ + bias for n rows of x, (``MOST``, whole vectors) with zeros around; weight's rows are dense.

    With ``pairs`` x and the weight are bfloat16, read in pairs along the sum.
    """
    widest_vectors()
    n, k, depth = sizes
    group = lanes(x.dtype.type(0))
    total, tail = np.empty((MOST, group), x.dtype), np.empty((group, group), x.dtype)
    for item in shared(offer(work)):
        first = item * group
        columns, place = min(group, k - first), weight[0] + first * weight[2]
        products(pairs, n, x.ctypes.data, x.shape[1] * x.itemsize, place, weight, columns, depth, total, tail)
        for i in range(n):
            numbers = total[i, :columns]
            if bias.shape[0]:
                for j in range(columns):
                    numbers[j] += bias[first + j]
            store_row(out[0] + i * out[2] + first * out[3], out[3], out[1], numbers)


@jit
def products(pairs, n, x, x_row, place, weight, columns, depth, total, tail):
    """total[:n, :columns] = the products of n rows at ``x`` with so many rows of a described weight, from ``place`` on.

    Rows of x are ``x_row`` bytes apart, ``MOST`` of them where n > 2, with zeros up to whole vectors.
    """
    group, together = total.shape[1], 2 if pairs else 1
    squares = depth // (group * together)  # within the rows: an odd depth's last pair is not
    rest = depth - squares * group * together
    total[:] = 0
    _multiply(pairs, n, x, x_row, place, weight[2], columns, squares, total)
    if rest:
        whole = squares * group * total.itemsize
        tail[:] = 0
        load_rows(pairs, tail, weight, place + whole, columns, rest)
        _multiply(pairs, n, x + whole, x_row, tail.ctypes.data, group * total.itemsize, columns, 1, total)


@jit
def _multiply(pairs, n, x, x_row, weight, weight_row, columns, squares, total):
    places = x, x_row, weight, weight_row, columns - 1, squares, total.ctypes.data, total.shape[1] * total.itemsize
    if pairs:
        _multiply_rows(np.int32(0), n, places)
    else:
        _multiply_rows(total.dtype.type(0), n, places)


@jit
def _multiply_rows(zero, n, places):
    if n == 1:
        _multiply_1(zero, *places)
    elif n == 2:
        _multiply_2(zero, *places)
    else:
        _multiply_4(zero, *places)
