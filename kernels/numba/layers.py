"""The layers of a transformer block on CPUs; the definitions are in ``saccade.reference.layers``.

Matrix products are those of ``matrices``: summed in float32 for 16-bit operands, the result rounded once.
Gradients that are sums over rows are added up in blocks of rows, the blocks in order, so that their bits do not
depend on the number of threads.
"""

import math

import numpy as np

from saccade.kernels.numba.gelu_rows import gelu_row_gradients, gelu_rows
from saccade.kernels.numba.matrices import matmul, raised, rounded, silent
from saccade.kernels.numba.memory import core_dtype, describe
from saccade.kernels.numba.norm_rows import ROWS, l2_row_gradients, l2_rows, norm_row_gradients, norm_rows
from saccade.kernels.numba.threads import parallel_for

_GRAIN = 1 << 14  # numbers that are worth a thread of their own
_PIECE = 2048  # numbers that an elementwise kernel takes at once, of arrays that lie in one piece
KINDS = {"erf": 0, "tanh": 1, "sigmoid": 2}
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
        norm_rows, len(rows), grain(x.shape[-1]), describe(rows), added, private(scale, core), shift, core.type(eps),
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
        norm_row_gradients, partial.shape[1], grain(ROWS * total.shape[-1]), describe(rows), describe(grads), added,
        private(scale, inverse.dtype), centre, mean, inverse, describe(as_rows(grad_x)), partial,
    )  # fmt: skip
    grad_scale, grad_bias = partial.sum(1)
    return grad_x, rounded(grad_scale, scale), grad_bias


def gelu(x, *, kind="erf"):
    """x Φ(x), its tanh approximation, or x σ(1.702 x)."""
    return gelu_forward(x, kind=kind)[0]


def gelu_forward(x, *, kind="erf"):
    """``gelu`` and what ``gelu_backward`` needs: (x, kind)."""
    out = np.empty(x.shape, x.dtype)
    _elementwise(gelu_rows, x, out, kind)
    return out, (x, kind)


def gelu_backward(saved, grad_out):
    """The gradient for x, in a tuple of one."""
    x, kind = saved
    grad_x = np.empty(x.shape, x.dtype)
    _elementwise(gelu_row_gradients, x, grad_x, kind, grad_out)
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
        parallel_for(kernel, -(-x.size // n), grain(n), x.size, n, zero, KINDS[kind], *described)


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
    _by_rows(l2_rows, x, out, eps)
    return out, (x, eps)


def l2_normalize_backward(saved, grad_out):
    """The gradient for x, in a tuple of one."""
    x, eps = saved
    grad_x = np.empty(x.shape, x.dtype)
    _by_rows(l2_row_gradients, x, grad_x, eps, grad_out)
    return (grad_x,)


def _by_rows(kernel, x, out, eps, *others):
    if x.size == 0:
        return
    rows = [as_rows(one) for one in (x, *others, out)]
    n = rows[0].shape[1]
    parallel_for(kernel, len(rows[0]), grain(n), n, core_dtype(x.dtype).type(eps), *map(describe, rows))
