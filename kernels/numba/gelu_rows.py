"""GELU and its gradient by rows: the kernels of ``layers``."""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.mathematics import normal_distribution, sigmoid
from saccade.kernels.numba.memory import BFLOAT16, read_bfloat16, row_from, row_to, store_row, write_bfloat16
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.vectors import widest_vectors


@jit
def gelu_rows(work, size, n, zero, kind, x, out):
    """Rows of n numbers of (address, kind, step between numbers, step between rows); the last may be shorter."""
    widest_vectors()
    scratch, result = np.empty(n, np.asarray(zero).dtype), np.empty(n, np.asarray(zero).dtype)
    for i in shared(offer(work)):
        length, source, target = min(n, size - i * n), x[0] + i * x[3], out[0] + i * out[3]
        if _is_dense_bfloat16(x) and _is_dense_bfloat16(out):
            _gelu_bfloat16(source, target, length, kind)
            continue
        row = row_from(scratch[:length], source, x[2], x[1])
        y = row_to(result[:length], target, out[2], out[1])
        gelu_row(row, kind, y)
        store_row(target, out[2], out[1], y)


@jit
def gelu_row(row, kind, y):
    """y = gelu(row)."""
    widest_vectors()
    if kind == 0:
        for j in range(row.shape[0]):
            y[j] = row[j] * normal_distribution(row[j])[0]
    else:
        for j in range(row.shape[0]):
            y[j] = row[j] * sigmoid(_sigmoid_argument(row[j], kind)[0])


@jit
def _is_dense_bfloat16(x):
    return x[1] == BFLOAT16 and x[2] == 2


@jit
def _gelu_bfloat16(source, target, length, kind):
    """Numbers are converted in the loop, not before and after it, so that memory is fetched while it computes."""
    widest_vectors()
    if kind == 0:
        for j in range(length):
            x = read_bfloat16(source, 2 * j)
            write_bfloat16(target, 2 * j, x * normal_distribution(x)[0])
    else:
        for j in range(length):
            x = read_bfloat16(source, 2 * j)
            write_bfloat16(target, 2 * j, x * sigmoid(_sigmoid_argument(x, kind)[0]))


@jit
def _sigmoid_argument(x, kind):
    """u(x) and u'(x) with gelu(x) = x σ(u): 2√(2/π)(x + 0.044715 x³) since (1 + tanh v)/2 = σ(2v), or 1.702 x."""
    real = type(x)
    if kind == 1:
        c, a = real(1.5957691216057308), real(0.044715)
        return c * (x + a * x * x * x), c * (real(1) + real(3) * a * x * x)
    return real(1.702) * x, real(1.702)


@jit
def gelu_row_gradients(work, size, n, zero, kind, x, grad_out, grad_x):
    """The gradient for rows that are described as those of ``gelu_rows``."""
    widest_vectors()
    dtype = np.asarray(zero).dtype
    scratch, other, result = np.empty(n, dtype), np.empty(n, dtype), np.empty(n, dtype)
    for i in shared(offer(work)):
        length = min(n, size - i * n)
        source, its, target = x[0] + i * x[3], grad_out[0] + i * grad_out[3], grad_x[0] + i * grad_x[3]
        if _is_dense_bfloat16(x) and _is_dense_bfloat16(grad_out) and _is_dense_bfloat16(grad_x):
            _gelu_backward_bfloat16(source, its, target, length, kind)
            continue
        row = row_from(scratch[:length], source, x[2], x[1])
        grad = row_from(other[:length], its, grad_out[2], grad_out[1])
        y = row_to(result[:length], target, grad_x[2], grad_x[1])
        if kind == 0:
            for j in range(length):
                y[j] = grad[j] * _gelu_slope(row[j])
        else:
            for j in range(length):
                u, slope = _sigmoid_argument(row[j], kind)
                gate = sigmoid(u)
                # 1 − σ(u) = σ(−u) without cancelling
                y[j] = grad[j] * (gate + row[j] * slope * gate * sigmoid(-u))
        store_row(target, grad_x[2], grad_x[1], y)


@jit
def _gelu_backward_bfloat16(source, its, target, length, kind):
    widest_vectors()
    if kind == 0:
        for j in range(length):
            write_bfloat16(target, 2 * j, read_bfloat16(its, 2 * j) * _gelu_slope(read_bfloat16(source, 2 * j)))
    else:
        for j in range(length):
            x = read_bfloat16(source, 2 * j)
            u, slope = _sigmoid_argument(x, kind)
            gate = sigmoid(u)
            gradient = read_bfloat16(its, 2 * j) * (gate + x * slope * gate * sigmoid(-u))
            write_bfloat16(target, 2 * j, gradient)


@jit
def _gelu_slope(x):
    below, density = normal_distribution(x)
    return below + x * density
