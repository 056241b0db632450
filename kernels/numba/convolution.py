"""Convolution, batch norm and pooling on CPUs; the definitions are in ``saccade.reference.convolution``.

A convolution is one BLAS product of its windows; the rest is NumPy in the core dtype.
"""

import numpy as np
from saccade.kernels.numba.layers import as_rows, raised


def conv2d(x, weight, bias=None, *, stride=1, padding=0):
    """Cross-correlation, b h w c x (e, c, p, q) -> b h' w' e."""
    return conv2d_forward(x, weight, bias, stride=stride, padding=padding)[0]


def conv2d_forward(x, weight, bias=None, *, stride=1, padding=0):
    """``conv2d`` and what ``conv2d_backward`` needs: (x, weight, bias, stride, padding)."""
    windows = _windows(x, weight, stride, padding)
    out = _flat(windows) @ raised(weight).reshape(len(weight), -1).T
    if bias is not None:
        out += raised(bias)
    out = out.reshape(*windows.shape[:3], len(weight))
    return out.astype(x.dtype, copy=False), (x, weight, bias, stride, padding)


def conv2d_backward(saved, grad_out):
    """Gradients for x, weight and bias."""
    x, weight, bias, stride, padding = saved
    grad = as_rows(raised(grad_out))
    windows = _windows(x, weight, stride, padding)
    grad_weight = (grad.T @ _flat(windows)).reshape(weight.shape)
    grad_windows = (grad @ raised(weight).reshape(len(weight), -1)).reshape(windows.shape)
    b, h, w, c = x.shape
    _, rows, columns, *_ = windows.shape
    grad_padded = np.zeros((b, h + 2 * padding, w + 2 * padding, c), grad.dtype)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            grad_padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride] += grad_windows[..., i, j]
    grad_x = grad_padded[:, padding : padding + h, padding : padding + w]
    grad_bias = None if bias is None else grad.sum(0).astype(bias.dtype, copy=False)
    return grad_x.astype(x.dtype), grad_weight.astype(weight.dtype, copy=False), grad_bias


def _windows(x, weight, stride, padding):
    margins = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    every = np.lib.stride_tricks.sliding_window_view(np.pad(raised(x), margins), weight.shape[2:], axis=(1, 2))
    return every[:, ::stride, ::stride]


def _flat(windows):
    b, rows, columns, *window = windows.shape
    return windows.reshape(b * rows * columns, int(np.prod(window)))


def batch_norm(x, mean, variance, scale, bias, *, eps=1e-5):
    """(x − mean) / sqrt(variance + eps) · scale + bias per channel, with given statistics."""
    return batch_norm_forward(x, mean, variance, scale, bias, eps=eps)[0]


def batch_norm_forward(x, mean, variance, scale, bias, *, eps=1e-5):
    """``batch_norm`` and what ``batch_norm_backward`` needs: (x, mean, variance, scale, bias, eps)."""
    normal = (raised(x) - raised(mean)) * _inverse_deviation(variance, eps)
    out = normal * raised(scale) + raised(bias)
    return out.astype(x.dtype, copy=False), (x, mean, variance, scale, bias, eps)


def batch_norm_backward(saved, grad_out):
    """Gradients for x, scale and bias."""
    x, mean, variance, scale, bias, eps = saved
    grad, inverse = raised(grad_out), _inverse_deviation(variance, eps)
    grad_x = grad * (raised(scale) * inverse)
    grad_scale = as_rows(grad * (raised(x) - raised(mean)) * inverse).sum(0)
    grad_bias = as_rows(grad).sum(0)
    return (
        grad_x.astype(x.dtype, copy=False),
        grad_scale.astype(scale.dtype, copy=False),
        grad_bias.astype(bias.dtype, copy=False),
    )


def _inverse_deviation(variance, eps):
    wide = raised(variance)
    return 1 / np.sqrt(wide + wide.dtype.type(eps))


def average_pool(x, *, size):
    """The mean of each size x size window, b h w c; rests at the edges are left out."""
    return average_pool_forward(x, size=size)[0]


def average_pool_forward(x, *, size):
    """``average_pool`` and what ``average_pool_backward`` needs: (x, size)."""
    b, h, w, c = x.shape
    rows, columns = h // size, w // size
    blocks = raised(x)[:, : rows * size, : columns * size].reshape(b, rows, size, columns, size, c)
    return blocks.mean((2, 4)).astype(x.dtype, copy=False), (x, size)


def average_pool_backward(saved, grad_out):
    """The gradient for x, in a tuple of one."""
    x, size = saved
    share = np.repeat(np.repeat(raised(grad_out) / size**2, size, axis=1), size, axis=2)
    grad_x = np.zeros(x.shape, x.dtype)
    grad_x[:, : share.shape[1], : share.shape[2]] = share
    return (grad_x,)
