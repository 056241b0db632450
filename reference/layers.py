"""The layers of a transformer block: the definitions.

Gradients follow from the chain rule on the formula each docstring gives. Arithmetic is in float32 at least and
rounded once, to the dtype of the first argument.
"""

import math

import numpy as np

from saccade.reference.precision import einsum, rounded, upcast


def linear(x, weight, bias=None):
    """out_o = sum_i x_i weight_oi + bias_o, … i -> … o; weight is (o, i), bias (o,) or None."""
    return linear_forward(x, weight, bias)[0]


def linear_forward(x, weight, bias=None):
    """``linear`` and what ``linear_backward`` needs."""
    wide_x, wide_weight, wide_bias = upcast(x, weight, bias)
    out = einsum("...i,oi->...o", wide_x, wide_weight)
    return rounded(out if bias is None else out + wide_bias, x), (x, weight, bias)


def linear_backward(saved, grad_out):
    """Gradients for x, weight and bias: dX = dY W;  dW = dYᵀ X;  db = sum dY."""
    x, weight, bias = saved
    wide_x, wide_weight, grad = upcast(x, weight, grad_out)
    grad_x = einsum("...o,oi->...i", grad, wide_weight)
    grad_weight = einsum("no,ni->oi", _rows(grad), _rows(wide_x))
    grad_bias = None if bias is None else rounded(_rows(grad).sum(0), bias)
    return rounded(grad_x, x), rounded(grad_weight, weight), grad_bias


def embedding(tokens, weight):
    """out = weight[tokens]: rows of (k, e) at integer tokens (…) -> (…, e)."""
    return embedding_forward(tokens, weight)[0]


def embedding_forward(tokens, weight):
    """``embedding`` and what ``embedding_backward`` needs."""
    return np.asarray(weight)[tokens], (tokens, weight)


def embedding_backward(saved, grad_out):
    """The gradient for weight, in a tuple of one: rows of dY added up by token."""
    tokens, weight = saved
    grad_weight = np.zeros(weight.shape, upcast(weight).dtype)
    np.add.at(grad_weight, np.ravel(tokens), upcast(grad_out).reshape(-1, weight.shape[1]))
    return (rounded(grad_weight, weight),)


def layer_norm(x, scale, bias=None, *, eps=1e-5, residual=None):
    """y = (x − mean(x)) / sqrt(mean((x − mean(x))²) + eps) · scale + bias over the last axis.

    With ``residual`` x + residual is rounded to the dtype and takes the place of x; the result is (y, x + residual).
    Ba et al., "Layer Normalization", 2016, equation 4.
    """
    return layer_norm_forward(x, scale, bias, eps=eps, residual=residual)[0]


def layer_norm_forward(x, scale, bias=None, *, eps=1e-5, residual=None):
    """``layer_norm`` and what ``layer_norm_backward`` needs."""
    total = _sum(x, residual)
    centred, inverse = _standardised(total, eps, centre=True)
    out = centred * inverse * upcast(scale)
    out = rounded(out if bias is None else out + upcast(bias), x)
    return (out if residual is None else (out, total)), (total, scale, bias, eps, residual)


def layer_norm_backward(saved, grad_out, grad_sum=None):
    """Gradients for x, scale, bias and residual.

    With n = (x − mean) / sqrt(variance + eps) and g = dY · scale:
    dx = (g − mean(g) − n mean(g n)) / sqrt(variance + eps) + dsum;  dscale = sum dY n;  dbias = sum dY.
    """
    total, scale, bias, eps, residual = saved
    grad_x, grad_scale = _norm_backward(total, scale, eps, grad_out, grad_sum, centre=True)
    grad_bias = None if bias is None else rounded(_rows(upcast(grad_out)).sum(0), bias)
    return grad_x, grad_scale, grad_bias, None if residual is None else grad_x


def rms_norm(x, scale, *, eps=1e-5, residual=None):
    """y = x / sqrt(mean(x²) + eps) · scale over the last axis; ``residual`` as in ``layer_norm``.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4: the norm of ImageGPT.
    """
    return rms_norm_forward(x, scale, eps=eps, residual=residual)[0]


def rms_norm_forward(x, scale, *, eps=1e-5, residual=None):
    """``rms_norm`` and what ``rms_norm_backward`` needs."""
    total = _sum(x, residual)
    same, inverse = _standardised(total, eps, centre=False)
    out = rounded(same * inverse * upcast(scale), x)
    return (out if residual is None else (out, total)), (total, scale, eps, residual)


def rms_norm_backward(saved, grad_out, grad_sum=None):
    """Gradients for x, scale and residual: as for ``layer_norm`` without the terms of the mean."""
    total, scale, eps, residual = saved
    grad_x, grad_scale = _norm_backward(total, scale, eps, grad_out, grad_sum, centre=False)
    return grad_x, grad_scale, None if residual is None else grad_x


def _sum(x, residual):
    return x if residual is None else rounded(upcast(x) + upcast(residual), x)


def _standardised(x, eps, centre):
    x = upcast(x)
    centred = x - x.mean(-1, keepdims=True) if centre else x
    variance = np.mean(centred**2, axis=-1, keepdims=True)
    return centred, 1 / np.sqrt(variance + variance.dtype.type(eps))


def _norm_backward(total, scale, eps, grad_out, grad_sum, centre):
    centred, inverse = _standardised(total, eps, centre)
    normal = centred * inverse
    grad_normal = upcast(grad_out) * upcast(scale)
    grad_x = grad_normal - normal * np.mean(grad_normal * normal, axis=-1, keepdims=True)
    grad_x = inverse * (grad_x - grad_normal.mean(-1, keepdims=True) if centre else grad_x)
    if grad_sum is not None:
        grad_x = grad_x + upcast(grad_sum)
    grad_scale = _rows(upcast(grad_out) * normal).sum(0)
    return rounded(grad_x, total), rounded(grad_scale, scale)


def gelu(x, *, kind="erf"):
    """The Gaussian error linear unit in three flavours.

    "erf":     x Φ(x) = x/2 (1 + erf(x/√2))                     Hendrycks and Gimpel 2016, equation 1
    "tanh":    x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))         the same, section 2
    "sigmoid": x σ(1.702 x)                                     the same; ImageGPT and CLIP
    """
    return gelu_forward(x, kind=kind)[0]


def gelu_forward(x, *, kind="erf"):
    """``gelu`` and what ``gelu_backward`` needs."""
    wide = upcast(x)
    return rounded(wide * gelu_gate(wide, kind)[0], x), (x, kind)


def gelu_backward(saved, grad_out):
    """The gradient for x, in a tuple of one: dY (gate(x) + x gate'(x))."""
    x, kind = saved
    wide = upcast(x)
    gate, slope = gelu_gate(wide, kind)
    return (rounded(upcast(grad_out) * (gate + wide * slope), x),)


def gelu_gate(x, kind):
    """What GELU multiplies x by, and its derivative."""
    if kind == "erf":
        density = np.exp(-(x**2) / 2) / np.sqrt(2 * _pi(x.dtype))
        return erfc(-x / np.sqrt(x.dtype.type(2))) / 2, density
    if kind == "tanh":
        c = np.sqrt(x.dtype.type(2) / _pi(x.dtype))
        with np.errstate(over="ignore"):
            y = 1 / (1 + np.exp(-2 * c * (x + x.dtype.type("0.044715") * x * x * x)))  # (1 + tanh)/2 without cancelling
        return y, 2 * y * (1 - y) * c * (1 + 3 * x.dtype.type("0.044715") * x**2)
    if kind == "sigmoid":
        factor = x.dtype.type("1.702")
        with np.errstate(over="ignore"):
            y = 1 / (1 + np.exp(-factor * x))
        return y, factor * y * (1 - y)
    raise ValueError(f"gelu: {kind=}, expected 'erf', 'tanh' or 'sigmoid'")


def _pi(dtype):
    return np.arctan(dtype.type(1)) * 4


def erfc(x):
    """The complementary error function, to the precision of the dtype (NumPy has none).

    |x| < 2: 1 − 2/√π sum_n x^(2n+1) 2ⁿ / (2n+1)!! exp(−x²), a series of positive terms (DLMF 7.6.2);
    beyond: the continued fraction exp(−x²)/√π · 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …)))) (DLMF 7.9.1).
    """
    wide = np.asarray(x, np.promote_types(np.asarray(x).dtype, np.float64))
    size = np.abs(wide)
    near = np.where(size < 2, size, 0)
    term = near * np.exp(-(near**2)) * 2 / np.sqrt(_pi(wide.dtype))
    series = term.copy()
    for n in range(1, 60):
        term = term * 2 * near**2 / (2 * n + 1)
        series += term
    far = np.where(size < 2, 2, size)
    fraction = far
    for n in range(120, 0, -1):
        fraction = far + wide.dtype.type(n) / 2 / fraction
    with np.errstate(under="ignore"):
        tail = np.exp(-(far**2)) / np.sqrt(_pi(wide.dtype)) / fraction
    upper = np.where(size < 2, 1 - series, tail)
    return np.where(wide < 0, 2 - upper, np.where(np.isnan(wide), wide, upper)).astype(np.asarray(x).dtype)


def mlp(x, weight_in, bias_in, weight_out, bias_out, *, kind="erf"):
    """linear(gelu(linear(x, weight_in, bias_in)), weight_out, bias_out); both biases may be None.

    Vaswani et al. 2017, section 3.3, with GELU. Hidden activations are rounded to the dtype, as layers hand them on.
    """
    return mlp_forward(x, weight_in, bias_in, weight_out, bias_out, kind=kind)[0]


def mlp_forward(x, weight_in, bias_in, weight_out, bias_out, *, kind="erf"):
    """``mlp`` and what ``mlp_backward`` needs."""
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
    """x / max(|x|₂, eps) along the last axis. Radford et al. 2021, figure 3."""
    return l2_normalize_forward(x, eps=eps)[0]


def l2_normalize_forward(x, *, eps=1e-12):
    """``l2_normalize`` and what ``l2_normalize_backward`` needs."""
    wide = upcast(x)
    length = np.sqrt(np.sum(wide**2, axis=-1, keepdims=True))
    return rounded(wide / np.maximum(length, wide.dtype.type(eps)), x), (x, eps)


def l2_normalize_backward(saved, grad_out):
    """The gradient for x, in a tuple of one: (dY − y (y · dY)) / |x|, or dY / eps where |x| <= eps."""
    x, eps = saved
    wide, grad = upcast(x, grad_out)
    eps = wide.dtype.type(eps)
    length = np.sqrt(np.sum(wide**2, axis=-1, keepdims=True))
    out = wide / np.maximum(length, eps)
    along = np.where(length > eps, np.sum(grad * out, axis=-1, keepdims=True), 0)
    return (rounded((grad - out * along) / np.maximum(length, eps), x),)


def _rows(x):
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
