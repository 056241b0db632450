"""The layers of a transformer block on CPUs; the definitions are in ``saccade.reference.layers``.

Matrix products are those of ``matrices``: summed in float32 for 16-bit operands, the result rounded once.
Gradients that are sums over rows are added up in blocks of rows, the blocks in order, so that their bits do not
depend on the number of threads.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import math

import numpy as np

from saccade.kernels.numba.compilation import jit, jit_reassociating
from saccade.kernels.numba.mathematics import normal_distribution, row_dot, row_sum, sigmoid
from saccade.kernels.numba.matrices import matmul, raised, rounded, silent
from saccade.kernels.numba.memory import (
    BFLOAT16,
    core_dtype,
    describe,
    load_row,
    read_bfloat16,
    row_from,
    row_to,
    store_row,
    write_bfloat16,
)
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for
from saccade.kernels.numba.vectors import widest_vectors

ROWS = 64  # rows whose share of a sum over rows is added up at once
_GRAIN = 1 << 14  # numbers that are worth a thread of their own
_PIECE = 2048  # numbers that an elementwise kernel takes at once, of arrays that lie in one piece
_KINDS = {"erf": 0, "tanh": 1, "sigmoid": 2}
_NOTHING = (0, 0, 0, 0)


def private(x, core):
    """A copy in the core dtype: a kernel is built once more for each layout and read-only flag of a typed array."""
    return np.array(x, core, order="C")


def grain(width):
    """How many rows of ``width`` numbers are worth a thread of their own."""
    return _GRAIN // max(width, 1)


def as_rows(x):
    """``x`` as (rows, last axis), a view where its layout allows."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def linear(x, weight, bias=None):
    """x weightᵀ + bias, … i -> … o."""
    return linear_forward(x, weight, bias)[0]


@silent
def linear_forward(x, weight, bias=None):
    """``linear`` and what ``linear_backward`` needs: (x, weight, bias)."""
    out = matmul(as_rows(x), weight.T, x.dtype, bias)
    return out.reshape(*x.shape[:-1], weight.shape[0]), (x, weight, bias)


@silent
def linear_backward(saved, grad_out):
    """Gradients for x, weight and bias."""
    x, weight, bias = saved
    grad = as_rows(grad_out)
    grad_x = matmul(grad, weight, x.dtype).reshape(x.shape)
    grad_weight = matmul(grad.T, as_rows(x), weight.dtype)
    return grad_x, grad_weight, None if bias is None else rounded(raised(grad).sum(0), bias)


def embedding(tokens, weight):
    """Rows of ``weight`` at integer tokens."""
    return weight[tokens]


def embedding_forward(tokens, weight):
    """``embedding`` and what ``embedding_backward`` needs: (tokens, weight)."""
    return weight[tokens], (tokens, weight)


@silent
def embedding_backward(saved, grad_out):
    """The gradient for weight, in a tuple of one: rows added up by token, in the order they stand."""
    tokens, weight = saved
    total = np.zeros(weight.shape, core_dtype(weight.dtype))
    if tokens.size:
        order = np.argsort(tokens, axis=None, kind="stable")
        present, starts = np.unique(tokens.ravel()[order], return_index=True)
        total[present] = np.add.reduceat(raised(as_rows(grad_out))[order], starts, axis=0)
    return (rounded(total, weight),)


def layer_norm(x, scale, bias=None, *, eps=1e-5, residual=None):
    """(x − mean) / sqrt(variance + eps) · scale + bias; with ``residual`` added first, (normalised, sum)."""
    return layer_norm_forward(x, scale, bias, eps=eps, residual=residual)[0]


def layer_norm_forward(x, scale, bias=None, *, eps=1e-5, residual=None):
    """``layer_norm`` and (sum, scale, bias, mean, 1/deviation, whether there was a residual)."""
    out, total, mean, inverse = _norm_forward(x, scale, bias, eps, residual, centre=True)
    saved = total, scale, bias, mean, inverse, residual is not None
    return (out if residual is None else (out, total)), saved


def layer_norm_backward(saved, grad_out, grad_sum=None):
    """Gradients for x, scale, bias and residual."""
    total, scale, bias, mean, inverse, has_residual = saved
    grad_x, grad_scale, grad_bias = _norm_backward(total, scale, mean, inverse, grad_out, grad_sum, centre=True)
    grad_bias = None if bias is None else rounded(grad_bias, scale)
    return grad_x, grad_scale, grad_bias, grad_x.copy() if has_residual else None


def rms_norm(x, scale, *, eps=1e-5, residual=None):
    """x / sqrt(mean(x²) + eps) · scale; with ``residual`` added first, (normalised, sum)."""
    return rms_norm_forward(x, scale, eps=eps, residual=residual)[0]


def rms_norm_forward(x, scale, *, eps=1e-5, residual=None):
    """``rms_norm`` and (sum, scale, 1/deviation, whether there was a residual)."""
    out, total, _, inverse = _norm_forward(x, scale, None, eps, residual, centre=False)
    return (out if residual is None else (out, total)), (total, scale, inverse, residual is not None)


def rms_norm_backward(saved, grad_out, grad_sum=None):
    """Gradients for x, scale and residual."""
    total, scale, inverse, has_residual = saved
    mean = np.zeros_like(inverse)
    grad_x, grad_scale, _ = _norm_backward(total, scale, mean, inverse, grad_out, grad_sum, centre=False)
    return grad_x, grad_scale, grad_x.copy() if has_residual else None


def _norm_forward(x, scale, bias, eps, residual, centre):
    core, rows = core_dtype(x.dtype), as_rows(x)
    out = np.empty(x.shape, x.dtype)
    total = x if residual is None else np.empty(x.shape, x.dtype)
    mean, inverse = np.zeros(len(rows), core), np.empty(len(rows), core)
    shift = np.zeros(x.shape[-1], core) if bias is None else private(bias, core)
    others = rows if residual is None else as_rows(residual)  # a name keeps it alive: a kernel sees addresses only
    added = _NOTHING if residual is None else describe(others)
    parallel_for(
        _norm_rows, len(rows), grain(x.shape[-1]), describe(rows), added, private(scale, core), shift, core.type(eps),
        centre, describe(as_rows(out)), describe(as_rows(total)), mean, inverse,
    )  # fmt: skip
    return out, total, mean, inverse


@silent
def _norm_backward(total, scale, mean, inverse, grad_out, grad_sum, centre):
    rows, grads = as_rows(total), as_rows(grad_out)
    sums = rows if grad_sum is None else as_rows(grad_sum)
    added = _NOTHING if grad_sum is None else describe(sums)
    grad_x = np.empty(total.shape, total.dtype)
    partial = np.zeros((2, -(-len(rows) // ROWS), total.shape[-1]), inverse.dtype)
    parallel_for(
        _norm_rows_backward, partial.shape[1], grain(ROWS * total.shape[-1]), describe(rows), describe(grads), added,
        private(scale, inverse.dtype), centre, mean, inverse, describe(as_rows(grad_x)), partial,
    )  # fmt: skip
    grad_scale, grad_bias = partial.sum(1)
    return grad_x, rounded(grad_scale, scale), grad_bias


@jit
def _norm_rows(work, x, residual, scale, bias, eps, centre, out, total, mean, inverse):
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
        level = row_sum(row) / dtype.type(n) if centre else dtype.type(0)
        factor = dtype.type(1) / np.sqrt(_squares(row, level) / dtype.type(n) + eps)
        normal = row_to(result, out[0] + i * out[2], out[3], out[1])
        for j in range(n):
            normal[j] = (row[j] - level) * factor * scale[j] + bias[j]
        store_row(out[0] + i * out[2], out[3], out[1], normal)
        mean[i], inverse[i] = level, factor


@jit_reassociating
def _squares(row, level):
    """The sum of (row[j] − level)²."""
    widest_vectors()
    total = row.dtype.type(0)
    for j in range(row.shape[0]):
        total += (row[j] - level) * (row[j] - level)
    return total


@jit
def _norm_rows_backward(work, x, grad_out, grad_sum, scale, centre, mean, inverse, grad_x, partial):
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


def gelu(x, *, kind="erf"):
    """x Φ(x), its tanh approximation, or x σ(1.702 x)."""
    return gelu_forward(x, kind=kind)[0]


def gelu_forward(x, *, kind="erf"):
    """``gelu`` and what ``gelu_backward`` needs: (x, kind)."""
    out = np.empty(x.shape, x.dtype)
    _elementwise(_gelu_rows, x, out, kind)
    return out, (x, kind)


def gelu_backward(saved, grad_out):
    """The gradient for x, in a tuple of one."""
    x, kind = saved
    grad_x = np.empty(x.shape, x.dtype)
    _elementwise(_gelu_rows_backward, x, grad_x, kind, grad_out)
    return (grad_x,)


def _elementwise(kernel, x, out, kind, *others):
    zero = core_dtype(x.dtype).type(0)
    arrays = [*others, out]
    if x.flags.c_contiguous and all(one.flags.c_contiguous for one in others):
        rows, n = [np.ravel(one) for one in (x, *arrays)], _PIECE
        described = [(*describe(one), n * one.itemsize) for one in rows]
    else:
        rows = [as_rows(np.atleast_1d(one)) for one in (x, *arrays)]
        n = rows[0].shape[1]
        described = [(address, number, step, row) for address, number, row, step in map(describe, rows)]
    if x.size:
        parallel_for(kernel, -(-x.size // n), grain(n), x.size, n, zero, _KINDS[kind], *described)


@jit
def _gelu_rows(work, size, n, zero, kind, x, out):
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
        if kind == 0:
            for j in range(length):
                y[j] = row[j] * normal_distribution(row[j])[0]
        else:
            for j in range(length):
                y[j] = row[j] * sigmoid(_sigmoid_argument(row[j], kind)[0])
        store_row(target, out[2], out[1], y)


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
def _gelu_rows_backward(work, size, n, zero, kind, x, grad_out, grad_x):
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


def mlp(x, weight_in, bias_in, weight_out, bias_out, *, kind="erf"):
    """linear(gelu(linear(x, weight_in, bias_in)), weight_out, bias_out)."""
    return mlp_forward(x, weight_in, bias_in, weight_out, bias_out, kind=kind)[0]


def mlp_forward(x, weight_in, bias_in, weight_out, bias_out, *, kind="erf"):
    """``mlp`` and (x, weight_in, bias_in, weight_out, bias_out, before GELU, after GELU, kind)."""
    before, _ = linear_forward(x, weight_in, bias_in)
    hidden, _ = gelu_forward(before, kind=kind)
    out, _ = linear_forward(hidden, weight_out, bias_out)
    return out, (x, weight_in, bias_in, weight_out, bias_out, before, hidden, kind)


def mlp_backward(saved, grad_out):
    """Gradients for x, weight_in, bias_in, weight_out and bias_out."""
    x, weight_in, bias_in, weight_out, bias_out, before, hidden, kind = saved
    grad_hidden, grad_weight_out, grad_bias_out = linear_backward((hidden, weight_out, bias_out), grad_out)
    (grad_before,) = gelu_backward((before, kind), grad_hidden)
    return *linear_backward((x, weight_in, bias_in), grad_before), grad_weight_out, grad_bias_out


def l2_normalize(x, *, eps=1e-12):
    """x / max(|x|, eps) along the last axis."""
    return l2_normalize_forward(x, eps=eps)[0]


def l2_normalize_forward(x, *, eps=1e-12):
    """``l2_normalize`` and what ``l2_normalize_backward`` needs: (x, eps)."""
    out = np.empty(x.shape, x.dtype)
    _by_rows(_l2_rows, x, out, eps)
    return out, (x, eps)


def l2_normalize_backward(saved, grad_out):
    """The gradient for x, in a tuple of one."""
    x, eps = saved
    grad_x = np.empty(x.shape, x.dtype)
    _by_rows(_l2_rows_backward, x, grad_x, eps, grad_out)
    return (grad_x,)


def _by_rows(kernel, x, out, eps, *others):
    if x.size == 0:
        return
    rows = [as_rows(one) for one in (x, *others, out)]
    n = rows[0].shape[1]
    parallel_for(kernel, len(rows[0]), grain(n), n, core_dtype(x.dtype).type(eps), *map(describe, rows))


@jit
def _l2_rows(work, n, eps, x, out):
    row = np.empty(n, np.asarray(eps).dtype)
    for i in shared(offer(work)):
        load_row(row, x[0] + i * x[2], x[3], x[1])
        length = max(np.sqrt(row_dot(row, row)), eps)
        for j in range(n):
            row[j] /= length
        store_row(out[0] + i * out[2], out[3], out[1], row)


@jit
def _l2_rows_backward(work, n, eps, x, grad_out, grad_x):
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
