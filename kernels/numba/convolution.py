"""Convolution, batch norm and pooling on CPUs; the definitions are in ``saccade.reference.convolution``.

A convolution is a BLAS product of its windows, a block of them at a time; the rest is NumPy in the core dtype.
"""

import math

import numpy as np

from saccade.kernels.numba.layers import as_rows
from saccade.kernels.numba.matrices import raised, rounded, silent

_BLOCK = 1 << 22  # bytes of windows that are copied at once


def conv2d(x, weight, bias=None, *, stride=1, padding=0):
    """Cross-correlation, b h w c x (e, c, p, q) -> b h' w' e."""
    return conv2d_forward(x, weight, bias, stride=stride, padding=padding)[0]


@silent
def conv2d_forward(x, weight, bias=None, *, stride=1, padding=0):
    """``conv2d`` and what ``conv2d_backward`` needs: (x, weight, bias, stride, padding)."""
    windows, flat = _windows(_padded(x, padding), weight, stride), _flat(weight)
    out = np.empty((*windows.shape[:3], len(weight)), flat.dtype)
    for image, rows in _blocks(windows):
        out[image, rows] = (_matrix(windows[image, rows]) @ flat.T).reshape(out[image, rows].shape)
    if bias is not None:
        out += raised(bias)
    return rounded(out, x), (x, weight, bias, stride, padding)


@silent
def conv2d_backward(saved, grad_out):
    """Gradients for x, weight and bias."""
    x, weight, bias, stride, padding = saved
    padded, flat, grad = _padded(x, padding), _flat(weight), raised(grad_out)
    windows, (_, h, w, _) = _windows(padded, weight, stride), x.shape
    grad_flat, grad_padded = np.zeros_like(flat), np.zeros(padded.shape, flat.dtype)
    columns = windows.shape[2]
    for image, rows in _blocks(windows):
        block = grad[image, rows]
        grad_flat += as_rows(block).T @ _matrix(windows[image, rows])
        shares = (as_rows(block) @ flat).reshape(windows[image, rows].shape)
        for i in range(weight.shape[2]):
            first = rows.start * stride + i
            for j in range(weight.shape[3]):
                places = slice(first, first + stride * len(block), stride), slice(j, j + stride * columns, stride)
                grad_padded[image][places] += shares[:, :, i, j]
    e, c, p, q = weight.shape
    grad_weight = grad_flat.reshape(e, p, q, c).transpose(0, 3, 1, 2)
    grad_bias = None if bias is None else rounded(as_rows(grad).sum(0), bias)
    grad_x = grad_padded[:, padding : padding + h, padding : padding + w]
    return grad_x.astype(x.dtype, order="C"), grad_weight.astype(weight.dtype, order="C"), grad_bias


def _padded(x, padding):
    return np.pad(raised(x), ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _windows(padded, weight, stride):
    """A view, b h' w' p q c: channels last, so that windows are copied in long runs."""
    every = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(1, 2))
    return every[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)


def _flat(weight):
    """(e, p q c), in the order of the windows."""
    e, c, p, q = weight.shape
    return raised(weight).transpose(0, 2, 3, 1).reshape(e, p * q * c)


def _matrix(windows):
    rows, columns, *window = windows.shape
    return windows.reshape(rows * columns, math.prod(window))


def _blocks(windows):
    """(image, rows) of blocks whose windows take about ``_BLOCK`` bytes once copied; sums over them are in order."""
    b, rows, columns, *window = windows.shape
    height = max(_BLOCK // max(columns * math.prod(window) * windows.itemsize, 1), 1)
    for image in range(b):
        for first in range(0, rows, height):
            yield image, slice(first, min(first + height, rows))


def batch_norm(x, mean, variance, scale, bias, *, eps=1e-5):
    """(x − mean) / sqrt(variance + eps) · scale + bias per channel, with given statistics."""
    return batch_norm_forward(x, mean, variance, scale, bias, eps=eps)[0]


@silent
def batch_norm_forward(x, mean, variance, scale, bias, *, eps=1e-5):
    """``batch_norm`` and what ``batch_norm_backward`` needs: (x, mean, variance, scale, bias, eps)."""
    normal = (raised(x) - raised(mean)) * _inverse_deviation(variance, eps)
    out = normal * raised(scale) + raised(bias)
    return rounded(out, x), (x, mean, variance, scale, bias, eps)


@silent
def batch_norm_backward(saved, grad_out):
    """Gradients for x, scale and bias."""
    x, mean, variance, scale, bias, eps = saved
    grad, inverse = raised(grad_out), _inverse_deviation(variance, eps)
    grad_x = grad * (raised(scale) * inverse)
    grad_scale = as_rows(grad * (raised(x) - raised(mean)) * inverse).sum(0)
    grad_bias = as_rows(grad).sum(0)
    return rounded(grad_x, x), rounded(grad_scale, scale), rounded(grad_bias, bias)


def _inverse_deviation(variance, eps):
    wide = raised(variance)
    return 1 / np.sqrt(wide + wide.dtype.type(eps))


def average_pool(x, *, size):
    """The mean of each size x size window, b h w c; rests at the edges are left out."""
    return average_pool_forward(x, size=size)[0]


@silent
def average_pool_forward(x, *, size):
    """``average_pool`` and what ``average_pool_backward`` needs: (x, size)."""
    b, h, w, c = x.shape
    rows, columns = h // size, w // size
    blocks = raised(x)[:, : rows * size, : columns * size].reshape(b, rows, size, columns, size, c)
    return rounded(blocks.mean((2, 4)), x), (x, size)


@silent
def average_pool_backward(saved, grad_out):
    """The gradient for x, in a tuple of one."""
    x, size = saved
    share = np.repeat(np.repeat(raised(grad_out) / size**2, size, axis=1), size, axis=2)
    grad_x = np.zeros(x.shape, x.dtype)
    grad_x[:, : share.shape[1], : share.shape[2]] = share
    return (grad_x,)
