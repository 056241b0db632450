"""Operands of products of bfloat16 as the processor's dot instruction takes them: pairs of neighbours along the sum.

A pair is 4 bytes, so scratch for pairs is float32 scratch of half as many columns, or rows, that only ``multiply`` of
int32 reads; numbers are moved bit by bit. Sums are float32.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import ml_dtypes
import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.memory import BFLOAT16, load_block, read_bits, write_bits, write_pair
from saccade.kernels.numba.products import multiply
from saccade.kernels.numba.vectors import DOTS, widest_vectors

_SIGN = np.int32(0x8000)


def in_pairs(*arrays):
    """Whether products of these are of pairs on this processor."""
    return DOTS and all(x.dtype == ml_dtypes.bfloat16 for x in arrays)


@jit
def units(pairs, n):
    """How many operands n numbers along the sum are."""
    return (n + 1) // 2 if pairs else n


@jit
def lie_in_pairs(array, columns):
    """Whether rows of a described array, so many columns of them, are pairs where they lie."""
    return array[1] == BFLOAT16 and array[5] == 2 and columns % 2 == 0


@jit
def multiply_units(pairs, zero, a, a_row, a_step, b, b_step, c, c_row, rows, columns, depth, accumulate):
    """``multiply`` of numbers of the dtype of ``zero``, or of pairs of bfloat16."""
    if pairs:
        multiply(np.int32(0), a, a_row, a_step, b, b_step, c, c_row, rows, columns, depth, accumulate)
    else:
        multiply(zero, a, a_row, a_step, b, b_step, c, c_row, rows, columns, depth, accumulate)


@jit
def load_pairs(block, row_stride, column_stride, address, rows, columns, negate):
    """block[:rows] = rows of bfloat16 numbers, their signs changed if asked for, beside each other.

    Of an odd number the last has the zero beside it that ``block`` was made with.
    """
    widest_vectors()
    sign = _SIGN if negate else np.int32(0)
    for i in range(rows):
        target, source = block[i].ctypes.data, address + i * row_stride
        if column_stride == 2:
            for j in range(columns):
                write_bits(target, 2 * j, read_bits(source, 2 * j) ^ sign)
        else:
            for j in range(columns):
                write_bits(target, 2 * j, read_bits(source, j * column_stride) ^ sign)


@jit
def load_rows(pairs, block, array, address, rows, columns):
    """block[:rows] = rows of a described matrix from ``address``, as they are multiplied with columns of another."""
    if pairs:
        load_pairs(block, array[2], array[3], address, rows, columns, False)
    else:
        load_block(block, array, array[2], array[3], address, rows, columns)


@jit
def interleave(block, row_stride, column_stride, address, rows, columns):
    """block[i, j] = the numbers of rows 2 i and 2 i + 1 in column j, 0 beyond the last row."""
    widest_vectors()
    for i in range((rows + 1) // 2):
        target, first = block[i].ctypes.data, address + 2 * i * row_stride
        second = first + row_stride
        if 2 * i + 1 == rows:
            for j in range(columns):
                write_pair(target, 4 * j, read_bits(first, j * column_stride))
        elif column_stride == 2:
            for j in range(columns):
                write_pair(target, 4 * j, read_bits(first, 2 * j) | np.int32(read_bits(second, 2 * j) << 16))
        else:
            for j in range(columns):
                above = np.int32(read_bits(second, j * column_stride) << 16)
                write_pair(target, 4 * j, read_bits(first, j * column_stride) | above)
