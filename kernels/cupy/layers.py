"""The layers of a transformer block on CuPy arrays; the definitions are in ``saccade.reference.layers``, the kernels
in ``layers.cu``. Matrix products are cuBLAS: 16-bit operands, float32 sums, rounded once behind the bias.
"""

from saccade.kernels.cupy import device
from saccade.kernels.cupy.device import THREADS, as_rows, core_dtype, product

CHUNK = 64  # rows that a thread adds up, as in blocks.cu
_KINDS = {"erf": 0, "tanh": 1, "sigmoid": 2}


def finish(x, out, *, bias=None, factor=None):
    """Fill ``out`` with x · factor + bias, rounded once; both are (n, e), ``x`` in the core dtype."""
    n, e = x.shape
    device.run("layers.cu", "finish", x.dtype, n * e, n, e, x, factor, bias, out)


def finished(x, like, shape, *, bias=None):
    """x + bias in the dtype of ``like`` and in ``shape``."""
    out = device.empty(x.shape, like.dtype)
    finish(x, out, bias=bias)
    return out.reshape(shape)


def column_sums(x, like):
    """The sums of the columns of ``x`` (n, e), in the dtype of ``like``, always in the same order."""
    (n, e), core = x.shape, core_dtype(x.dtype)
    chunks = device.empty((-(-n // CHUNK), e), core)
    device.run("layers.cu", "column_chunks", core, chunks.size, n, e, x, chunks)
    return sums_of_chunks(chunks, like)


def sums_of_chunks(chunks, like):
    """The sums of the columns of ``chunks``, each of which is the sum of CHUNK rows, in the dtype of ``like``."""
    (n, e), out = chunks.shape, device.empty(chunks.shape[1:], like.dtype)
    device.run("layers.cu", "column_sums", chunks.dtype, e, n, e, chunks, out)
    return out


def linear(x, weight, bias=None):
    """x weightᵀ + bias, … i -> … o."""
    return linear_forward(x, weight, bias)[0]


def linear_forward(x, weight, bias=None):
    """``linear`` and what ``linear_backward`` needs: (x, weight, bias)."""
    out = product(as_rows(x), weight.T)
    return finished(out, x, (*x.shape[:-1], len(weight)), bias=bias), (x, weight, bias)


def linear_backward(saved, grad_out):
    """Gradients for x, weight and bias."""
    x, weight, bias = saved
    grad = as_rows(grad_out.astype(x.dtype, copy=False))
    grad_x = finished(product(grad, weight), x, x.shape)
    grad_weight = finished(product(grad.T, as_rows(x)), weight, weight.shape)
    return grad_x, grad_weight, None if bias is None else column_sums(grad, bias)


def embedding(tokens, weight):
    """Rows of ``weight`` at integer tokens; a token that is none gives NaN."""
    return embedding_forward(tokens, weight)[0]


def embedding_forward(tokens, weight):
    """``embedding`` and what ``embedding_backward`` needs: (tokens, weight)."""
    (k, e), out = weight.shape, device.empty((*tokens.shape, weight.shape[1]), weight.dtype)
    integers, core = tokens.ravel().astype("int64"), core_dtype(weight.dtype)
    device.run(
        "layers.cu", "embedding_forward", core, out.size, tokens.size, e, k, integers, None, weight,
        out.reshape(tokens.size, e),
    )  # fmt: skip
    return out, (tokens, weight)


def embedding_backward(saved, grad_out):
    """The gradient for weight, in a tuple of one: rows added up by token, in the order they stand."""
    tokens, weight = saved
    (k, e), core = weight.shape, core_dtype(weight.dtype)
    integers, grad_weight = tokens.ravel().astype("int64"), device.empty(weight.shape, weight.dtype)
    order = integers.argsort(kind="stable").astype("int64")
    device.run(
        "layers.cu", "embedding_backward", core, k * e, tokens.size, e, k, integers[order], order,
        as_rows(grad_out), grad_weight,
    )  # fmt: skip
    return (grad_weight,)


def layer_norm(x, scale, bias=None, *, eps=1e-5, residual=None):
    """(x − mean) / sqrt(variance + eps) · scale + bias; with ``residual`` added first, (normalised, sum)."""
    return layer_norm_forward(x, scale, bias, eps=eps, residual=residual)[0]


def layer_norm_forward(x, scale, bias=None, *, eps=1e-5, residual=None):
    """``layer_norm`` and (sum, scale, bias, mean, 1/deviation, whether there was a residual)."""
    mean = device.empty((len(as_rows(x)),), core_dtype(x.dtype))
    out, total, inverse = _norm_forward(x, scale, bias, mean, eps, residual)
    saved = total, scale, bias, mean, inverse, residual is not None
    return (out if residual is None else (out, total)), saved


def layer_norm_backward(saved, grad_out, grad_sum=None):
    """Gradients for x, scale, bias and residual."""
    total, scale, bias, mean, inverse, has_residual = saved
    grad_x, grad_scale, grad_bias = _norm_backward(total, scale, mean, inverse, grad_out, grad_sum)
    return grad_x, grad_scale, None if bias is None else grad_bias, grad_x.copy() if has_residual else None


def rms_norm(x, scale, *, eps=1e-5, residual=None):
    """x / sqrt(mean(x²) + eps) · scale; with ``residual`` added first, (normalised, sum)."""
    return rms_norm_forward(x, scale, eps=eps, residual=residual)[0]


def rms_norm_forward(x, scale, *, eps=1e-5, residual=None):
    """``rms_norm`` and (sum, scale, 1/deviation, whether there was a residual)."""
    out, total, inverse = _norm_forward(x, scale, None, None, eps, residual)
    return (out if residual is None else (out, total)), (total, scale, inverse, residual is not None)


def rms_norm_backward(saved, grad_out, grad_sum=None):
    """Gradients for x, scale and residual."""
    total, scale, inverse, has_residual = saved
    grad_x, grad_scale, _ = _norm_backward(total, scale, None, inverse, grad_out, grad_sum)
    return grad_x, grad_scale, grad_x.copy() if has_residual else None


def _norm_forward(x, scale, bias, mean, eps, residual):
    core, rows, out = core_dtype(x.dtype), as_rows(x), device.empty(x.shape, x.dtype)
    total = x if residual is None else device.empty(x.shape, x.dtype)
    added, sums = (None, None) if residual is None else (as_rows(residual), as_rows(total))
    inverse = device.empty((len(rows),), core)
    values = *rows.shape, rows, added, scale, bias, as_rows(out), sums, mean, inverse
    device.run("layers.cu", "norm_forward", core, len(rows) * THREADS, *values, number=eps)
    return out, total, inverse


def _norm_backward(total, scale, mean, inverse, grad_out, grad_sum):
    core, rows, grads = inverse.dtype, as_rows(total), as_rows(grad_out)
    (n, e), grad_x = rows.shape, device.empty(total.shape, total.dtype)
    sums = None if grad_sum is None else as_rows(grad_sum)
    chunks = [device.empty((-(-n // CHUNK), e), core) for _ in range(2)]
    values = n, e, rows, scale, mean, inverse, grads, sums, as_rows(grad_x), *chunks
    device.run("layers.cu", "norm_backward", core, n * THREADS, *values)
    device.run("layers.cu", "norm_chunks", core, chunks[0].size, *values)
    grad_scale, grad_bias = (sums_of_chunks(one, scale) for one in chunks)
    return grad_x, grad_scale, grad_bias


def gelu(x, *, kind="erf"):
    """x Φ(x), its tanh approximation, or x σ(1.702 x)."""
    return gelu_forward(x, kind=kind)[0]


def gelu_forward(x, *, kind="erf"):
    """``gelu`` and what ``gelu_backward`` needs: (x, kind)."""
    out = device.empty(x.shape, x.dtype)
    _row_by_row("gelu_forward", x, None, out, _KINDS[kind], threads=x.size)
    return out, (x, kind)


def gelu_backward(saved, grad_out):
    """The gradient for x, in a tuple of one."""
    x, kind = saved
    grad_x = device.empty(x.shape, x.dtype)
    _row_by_row("gelu_backward", x, grad_out, grad_x, _KINDS[kind], threads=x.size)
    return (grad_x,)


def _row_by_row(kernel, x, grad_out, out, *integers, threads, number=0.0):
    grads = None if grad_out is None else as_rows(grad_out)
    values = *as_rows(x).shape, *integers, as_rows(x), grads, as_rows(out)
    device.run("layers.cu", kernel, core_dtype(x.dtype), threads, *values, number=number)


def mlp(x, weight_in, bias_in, weight_out, bias_out, *, kind="erf"):
    """linear(gelu(linear(x, weight_in, bias_in)), weight_out, bias_out)."""
    return mlp_forward(x, weight_in, bias_in, weight_out, bias_out, kind=kind)[0]


def mlp_forward(x, weight_in, bias_in, weight_out, bias_out, *, kind="erf"):
    """``mlp`` and what the three backward functions need."""
    before, saved_in = linear_forward(x, weight_in, bias_in)
    hidden, saved_gelu = gelu_forward(before, kind=kind)
    out, saved_out = linear_forward(hidden, weight_out, bias_out)
    return out, (saved_in, saved_gelu, saved_out)


def mlp_backward(saved, grad_out):
    """Gradients for x, weight_in, bias_in, weight_out and bias_out."""
    saved_in, saved_gelu, saved_out = saved
    grad_hidden, grad_weight_out, grad_bias_out = linear_backward(saved_out, grad_out)
    (grad_before,) = gelu_backward(saved_gelu, grad_hidden)
    return *linear_backward(saved_in, grad_before), grad_weight_out, grad_bias_out


def l2_normalize(x, *, eps=1e-12):
    """x / max(|x|, eps) along the last axis."""
    return l2_normalize_forward(x, eps=eps)[0]


def l2_normalize_forward(x, *, eps=1e-12):
    """``l2_normalize`` and what ``l2_normalize_backward`` needs: (x, eps)."""
    out = device.empty(x.shape, x.dtype)
    _row_by_row("l2_normalize_forward", x, None, out, threads=len(as_rows(x)) * THREADS, number=eps)
    return out, (x, eps)


def l2_normalize_backward(saved, grad_out):
    """The gradient for x, in a tuple of one."""
    x, eps = saved
    grad_x = device.empty(x.shape, x.dtype)
    threads = len(as_rows(x)) * THREADS
    _row_by_row("l2_normalize_backward", x, grad_out, grad_x, threads=threads, number=eps)
    return (grad_x,)
