"""Elementary functions that vectorise: LLVM has no vector exponential of its own."""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from saccade.kernels.numba.compilation import jit, jit_reassociating
from saccade.kernels.numba.vectors import widest_vectors


@intrinsic
def bits_of(typingctx, x):
    """The bits of a float32, as an int32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def float_of(typingctx, bits):
    """The float32 of an int32's bits."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), codegen


# exp(r) = 1 + r + r² sum_i POWERS[i] rⁱ on |r| <= log(2)/2, fitted for the least relative error, 3e-9
POWERS = (0.49999993, 0.1666652, 0.04166839, 0.00836875, 0.00138145)
TO_INTEGER = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer, kept in the low bits
LOG2_E, LOG_2_HIGH, LOG_2_LOW = 1.4426950408889634, 0.693359375, -2.12194440054690583e-4


def exponential(x):
    """exp(x). In float32: 2ⁿ exp(r) with a degree-6 polynomial on |r| <= log(2)/2, within 2 units in the last place;
    results below the smallest normal number are 0, those above 2¹²⁷·⁵ inf, NaN stays NaN."""
    return math.exp(x)


@overload(exponential, jit_options={"fastmath": {"contract"}, "nogil": True, "error_model": "numpy"})
def _exponential(x):
    if x != types.float32:
        return lambda x: math.exp(x)
    f = np.float32
    to_integer, log2_e, log_2_high, log_2_low = map(f, (TO_INTEGER, LOG2_E, LOG_2_HIGH, LOG_2_LOW))
    c2, c3, c4, c5, c6 = map(f, POWERS)
    smallest, largest = f(-87.33654), f(88.37626)
    zero, one, infinity = f(0), f(1), f(np.inf)
    to_exponent = np.int32(23)

    def polynomial(x):
        inside = min(max(x, smallest), largest)  # keeps n in range; the ends are decided below
        shifted = inside * log2_e + to_integer
        n = shifted - to_integer
        r = (inside - n * log_2_high) - n * log_2_low
        p = c6
        p = p * r + c5
        p = p * r + c4
        p = p * r + c3
        p = p * r + c2
        p = p * r + one
        p = p * r + one
        # adding n to the exponent field of p: the low bits of `shifted` hold n
        y = float_of(np.int32(bits_of(p) + np.int32(bits_of(shifted) << to_exponent)))
        y = zero if x < smallest else y
        y = infinity if x > largest else y
        return y if x == x else x

    return polynomial


@jit
def exponentials(row, shift):
    """row[i] = exp(row[i] − shift), in place."""
    widest_vectors()
    for i in range(row.shape[0]):
        row[i] = exponential(row[i] - shift)


@jit_reassociating
def exponential_sum(row, shift):
    """The sum of exp(row[i] − shift)."""
    widest_vectors()
    total = row.dtype.type(0)
    for i in range(row.shape[0]):
        total += exponential(row[i] - shift)
    return total


@jit_reassociating
def row_sum(row):
    """The sum of a row."""
    widest_vectors()
    total = row.dtype.type(0)
    for i in range(row.shape[0]):
        total += row[i]
    return total


@jit_reassociating
def row_sum_above(row, level):
    """The sum of what the numbers of a row have more than ``level``."""
    widest_vectors()
    total = row.dtype.type(0)
    for i in range(row.shape[0]):
        total += row[i] - level
    return total


@jit_reassociating
def row_dot(a, b):
    """The sum of products of two rows."""
    widest_vectors()
    total = a.dtype.type(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@jit
def row_max(row):
    """The largest number of a row that is not NaN; −inf if there is none."""
    widest_vectors()
    if row.itemsize == 4:
        # as integers in the same order, whose maximum LLVM finds in vectors: that of numbers it may not reorder
        lowest = np.int32(-0x7F800001)
        first = lowest
        for i in range(row.shape[0]):
            x = np.float32(row[i])
            bits = bits_of(x)
            ordered = np.int32(bits ^ (bits >> 31 & 0x7FFFFFFF)) if x == x else lowest
            first = ordered if ordered > first else first
        return row.dtype.type(float_of(np.int32(first ^ (first >> 31 & 0x7FFFFFFF))))
    highest = row.dtype.type(-np.inf)
    for i in range(row.shape[0]):
        highest = row[i] if row[i] > highest else highest
    return highest


@jit
def sigmoid(x):
    """1 / (1 + exp(−x))."""
    one = type(x)(1)
    return one / (one + exponential(-x))


# artanh(s)/s = 1 + s² sum_i POWERS_OF_ARTANH[i] s²ⁱ on |s| <= 1/3, fitted for the least relative error, 4e-9
POWERS_OF_ARTANH = (0.33333158, 0.20012455, 0.13980302, 0.14089167)


def log1p_of_weight(x):
    """log(1 + x) for 0 <= x <= 1. In float32: 2 artanh(x/(2 + x)) by a polynomial."""
    return math.log1p(x)


@overload(log1p_of_weight, jit_options={"fastmath": {"contract"}, "nogil": True, "error_model": "numpy"})
def _log1p_of_weight(x):
    if x != types.float32:
        return lambda x: math.log1p(x)
    one, two = np.float32(1), np.float32(2)
    c1, c2, c3, c4 = map(np.float32, POWERS_OF_ARTANH)

    def fitted(x):
        s = x / (two + x)
        square = s * s
        return two * s * (one + square * (c1 + square * (c2 + square * (c3 + square * c4))))

    return fitted


@jit
def softplus(x):
    """log(1 + exp(x)), without overflow."""
    return max(x, type(x)(0)) + log1p_of_weight(exponential(-abs(x)))


@intrinsic
def fused(typingctx, a, b, c):
    """a · b + c, rounded once."""

    def codegen(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return a(a, a, a), codegen


MILLS = (
    0.70665666, -0.433692012, 0.131986979, 0.00923587574, -0.0163861855, -0.00160083005, 0.00252393282, 0.00068441277,
    -0.000311622943, -0.000157702421,
)  # fmt: skip


def normal_distribution(x):
    """(Φ(x), φ(x)): the standard normal distribution function and its density, both to the relative precision of
    the dtype also where they are small, for which the rounding of x² is made good.

    In float32 Φ(−y) = exp(−y²/2) t P(1 − 5t) with t = 1/(y + 5/2) and a degree-9 polynomial P, fitted by weighted
    least squares to the Mills ratio on [0, 15]; within 3 units in the last place.
    """
    return math.erfc(-x * math.sqrt(0.5)) / 2, math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@overload(normal_distribution, jit_options={"fastmath": {"contract"}, "nogil": True, "error_model": "numpy"})
def _normal_distribution(x):
    if x != types.float32:
        return _normal_distribution_float64
    f = np.float32
    zero, one, shift, twice_shift, far = f(0), f(1), f(2.5), f(5), f(13.2)  # beyond it the density is not normal
    to_integer, minus_half_log2_e, twice_log_2_high, twice_log_2_low = map(
        f, (TO_INTEGER, -LOG2_E / 2, 2 * LOG_2_HIGH, 2 * LOG_2_LOW)
    )
    d1, d2, d3, d4, d5, d6 = (f(c * (-0.5) ** i) for i, c in enumerate((1.0, *POWERS), 1))  # of exp(−r/2)
    scale, to_exponent = f(1 / math.sqrt(2 * math.pi)), np.int32(23)
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 = map(f, MILLS)

    def fitted(x):
        size = abs(x)
        y = far if size > far else size  # NaN stays
        t = one / (y + shift)
        q = one - twice_shift * t
        p = c9
        p = p * q + c8
        p = p * q + c7
        p = p * q + c6
        p = p * q + c5
        p = p * q + c4
        p = p * q + c3
        p = p * q + c2
        p = p * q + c1
        p = p * q + c0
        # exp(−y²/2) = 2ⁿ exp(−r/2), as in ``exponential``; what rounding takes from y² goes into r
        square = y * y
        shifted = square * minus_half_log2_e + to_integer
        n = shifted - to_integer
        r = (square + n * twice_log_2_high) + n * twice_log_2_low + fused(y, y, -square)
        e = d6
        e = e * r + d5
        e = e * r + d4
        e = e * r + d3
        e = e * r + d2
        e = e * r + d1
        e = e * r + one
        density = float_of(np.int32(bits_of(e) + np.int32(bits_of(shifted) << to_exponent)))
        density = zero if size > far else density
        tail = density * t * p
        return tail if x < zero else one - tail, density * scale

    return fitted


def _normal_distribution_float64(x):
    z, square = -x * 0.7071067811865476, x * x
    if not abs(x) < 40:
        return math.erfc(z) * 0.5, math.exp(-0.5 * square)
    density = math.exp(-0.5 * square)
    density -= density * 0.5 * fused(x, x, -square)
    missing = fused(-x, 0.7071067811865476, -z) + x * 4.833646656726457e-17  # of z, beyond its last place
    return math.erfc(z) * 0.5 - density * missing * 0.5641895835477563, density * 0.3989422804014327
