"""What CLIP's ResNets need besides a transformer's layers, channels last: the definitions."""

import numpy as np

from saccade.reference.precision import einsum, rounded, upcast


def conv2d(x, weight, bias=None, *, stride=1, padding=0):
    """Cross-correlation with zero padding, b h w c x (e, c, p, q) -> b h' w' e.

    out_bije = sum_cpq x_b(i·stride + p − padding)(j·stride + q − padding)c weight_ecpq + bias_e
    """
    return conv2d_forward(x, weight, bias, stride=stride, padding=padding)[0]


def conv2d_forward(x, weight, bias=None, *, stride=1, padding=0):
    """``conv2d`` and what ``conv2d_backward`` needs."""
    windows = _windows(upcast(x), weight.shape[2:], stride, padding)
    out = einsum("bijcpq,ecpq->bije", windows, upcast(weight))
    out = out if bias is None else out + upcast(bias)
    return rounded(out, x), (x, weight, bias, stride, padding)


def conv2d_backward(saved, grad_out):
    """Gradients for x, weight and bias."""
    x, weight, bias, stride, padding = saved
    grad = upcast(grad_out)
    windows = _windows(upcast(x), weight.shape[2:], stride, padding)
    grad_weight = einsum("bije,bijcpq->ecpq", grad, windows)
    _, rows, columns, _ = grad.shape
    b, h, w, c = x.shape
    grad_padded = np.zeros((b, h + 2 * padding, w + 2 * padding, c), grad.dtype)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            share = einsum("bije,ec->bijc", grad, upcast(weight)[:, :, i, j])
            grad_padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride] += share
    grad_x = grad_padded[:, padding : padding + h, padding : padding + w]
    grad_bias = None if bias is None else rounded(grad.sum((0, 1, 2)), bias)
    return rounded(grad_x, x), rounded(grad_weight, weight), grad_bias


def _windows(x, window, stride, padding):
    margins = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    every = np.lib.stride_tricks.sliding_window_view(np.pad(x, margins), window, axis=(1, 2))
    return every[:, ::stride, ::stride]


def batch_norm(x, mean, variance, scale, bias, *, eps=1e-5):
    """(x − mean) / sqrt(variance + eps) · scale + bias per channel, … c, with given statistics.

    Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 2. The statistics are constants: no gradient.
    """
    return batch_norm_forward(x, mean, variance, scale, bias, eps=eps)[0]


def batch_norm_forward(x, mean, variance, scale, bias, *, eps=1e-5):
    """``batch_norm`` and what ``batch_norm_backward`` needs."""
    normal = (upcast(x) - upcast(mean)) * _inverse_deviation(variance, eps)
    return rounded(normal * upcast(scale) + upcast(bias), x), (x, mean, variance, scale, bias, eps)


def batch_norm_backward(saved, grad_out):
    """Gradients for x, scale and bias."""
    x, mean, variance, scale, bias, eps = saved
    grad, inverse = upcast(grad_out), _inverse_deviation(variance, eps)
    pixels = tuple(range(grad.ndim - 1))
    grad_scale = (grad * (upcast(x) - upcast(mean)) * inverse).sum(pixels)
    return rounded(grad * upcast(scale) * inverse, x), rounded(grad_scale, scale), rounded(grad.sum(pixels), bias)


def _inverse_deviation(variance, eps):
    wide = upcast(variance)
    return 1 / np.sqrt(wide + wide.dtype.type(eps))


def average_pool(x, *, size):
    """The mean of each size x size window, b h w c -> b (h // size) (w // size) c; rests at the edges are left out."""
    return average_pool_forward(x, size=size)[0]


def average_pool_forward(x, *, size):
    """``average_pool`` and what ``average_pool_backward`` needs."""
    b, h, w, c = x.shape
    rows, columns = h // size, w // size
    blocks = upcast(x)[:, : rows * size, : columns * size].reshape(b, rows, size, columns, size, c)
    return rounded(blocks.mean((2, 4)), x), (x, size)


def average_pool_backward(saved, grad_out):
    """The gradient for x, in a tuple of one: dY / size² for every pixel of a window."""
    x, size = saved
    share = np.repeat(np.repeat(upcast(grad_out), size, axis=1), size, axis=2) / size**2
    grad_x = np.zeros(x.shape, share.dtype)
    grad_x[:, : share.shape[1], : share.shape[2]] = share
    return (rounded(grad_x, x),)
