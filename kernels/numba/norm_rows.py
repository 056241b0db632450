"""Norms and their gradients by rows: the kernels of ``layers``."""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import numpy as np

from saccade.kernels.numba.compilation import jit, jit_reassociating
from saccade.kernels.numba.mathematics import row_dot, row_sum
from saccade.kernels.numba.memory import load_row, row_from, row_to, store_row
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.vectors import widest_vectors

ROWS = 64  # rows whose share of a sum over rows is added up at once


@jit
def norm_rows(work, x, residual, scale, bias, eps, centre, out, total, mean, inverse):
    """Normalise rows, or their sums with a residual's, which go to ``total``; mean and 1/deviation of each are kept."""
    widest_vectors()
    n = scale.shape[0]
    dtype = inverse.dtype
    # one each: LLVM's vector loops are for arrays that do not overlap
    scratch, other, summand, result = np.empty(n, dtype), np.empty(n, dtype), np.empty(n, dtype), np.empty(n, dtype)
    for i in shared(offer(work)):
        row = row_from(scratch, x[0] + i * x[2], x[3], x[1])
        if residual[0] != 0:
            added = row_from(other, residual[0] + i * residual[2], residual[3], residual[1])
            address = total[0] + i * total[2]
            summed = row_to(summand, address, total[3], total[1])
            for j in range(n):
                summed[j] = row[j] + added[j]
            store_row(address, total[3], total[1], summed)
            row = row_from(scratch, address, total[3], total[1])  # the rounded sum is what is normalised
        normal = row_to(result, out[0] + i * out[2], out[3], out[1])
        mean[i], inverse[i] = normalise(row, scale, bias, eps, centre, normal)
        store_row(out[0] + i * out[2], out[3], out[1], normal)


@jit
def normalise(row, scale, bias, eps, centre, normal):
    """Write the norm of a row; its mean (0 unless ``centre``) and 1/deviation."""
    widest_vectors()
    n, real = row.shape[0], row.dtype.type
    level = row_sum(row) / real(n) if centre else real(0)
    factor = real(1) / np.sqrt(_squares(row, level) / real(n) + eps)
    for j in range(n):
        normal[j] = (row[j] - level) * factor * scale[j] + bias[j]
    return level, factor


@jit_reassociating
def _squares(row, level):
    """The sum of (row[j] − level)²."""
    widest_vectors()
    total = row.dtype.type(0)
    for j in range(row.shape[0]):
        total += (row[j] - level) * (row[j] - level)
    return total


@jit
def norm_row_gradients(work, x, grad_out, grad_sum, scale, centre, mean, inverse, grad_x, partial):
    """Gradients for rows; ``partial`` gets each block's share of those for scale and bias, which it adds to."""
    n = scale.shape[0]
    dtype = inverse.dtype
    normal, grad, other = np.empty(n, dtype), np.empty(n, dtype), np.empty(n, dtype)
    for block in shared(offer(work)):
        for i in range(block * ROWS, min((block + 1) * ROWS, inverse.shape[0])):
            load_row(normal, x[0] + i * x[2], x[3], x[1])
            load_row(grad, grad_out[0] + i * grad_out[2], grad_out[3], grad_out[1])
            for j in range(n):
                normal[j] = (normal[j] - mean[i]) * inverse[i]
                partial[0, block, j] += grad[j] * normal[j]
                partial[1, block, j] += grad[j]
                grad[j] *= scale[j]
            along = row_dot(grad, normal) / dtype.type(n)
            level = row_sum(grad) / dtype.type(n) if centre else dtype.type(0)
            for j in range(n):
                grad[j] = inverse[i] * (grad[j] - level - normal[j] * along)
            if grad_sum[0] != 0:
                load_row(other, grad_sum[0] + i * grad_sum[2], grad_sum[3], grad_sum[1])
                for j in range(n):
                    grad[j] += other[j]
            store_row(grad_x[0] + i * grad_x[2], grad_x[3], grad_x[1], grad)


@jit
def l2_rows(work, n, eps, x, out):
    """Divide rows of n numbers by their length, or by ``eps`` if that is larger."""
    row = np.empty(n, np.asarray(eps).dtype)
    for i in shared(offer(work)):
        load_row(row, x[0] + i * x[2], x[3], x[1])
        length = max(np.sqrt(row_dot(row, row)), eps)
        for j in range(n):
            row[j] /= length
        store_row(out[0] + i * out[2], out[3], out[1], row)


@jit
def l2_row_gradients(work, n, eps, x, grad_out, grad_x):
    """The gradient for rows."""
    dtype = np.asarray(eps).dtype
    row, grad = np.empty(n, dtype), np.empty(n, dtype)
    for i in shared(offer(work)):
        load_row(row, x[0] + i * x[2], x[3], x[1])
        load_row(grad, grad_out[0] + i * grad_out[2], grad_out[3], grad_out[1])
        length = np.sqrt(row_dot(row, row))
        divisor = max(length, eps)
        for j in range(n):
            row[j] /= divisor
        along = row_dot(row, grad) if length > eps else dtype.type(0)
        for j in range(n):
            grad[j] = (grad[j] - row[j] * along) / divisor
        store_row(grad_x[0] + i * grad_x[2], grad_x[3], grad_x[1], grad)
