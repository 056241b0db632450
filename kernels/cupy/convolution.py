"""Convolution, batch norm and pooling on CuPy arrays; the definitions are in ``saccade.reference.convolution``, the
kernels in ``convolution.cu``. A convolution is a cuBLAS product of its windows, some images' at a time.
"""

import math

from saccade.kernels.cupy import device
from saccade.kernels.cupy.device import as_rows, core_dtype, product
from saccade.kernels.cupy.layers import CHUNK, column_sums, finish, finished, sums_of_chunks

WINDOWS = 1 << 27  # numbers in windows that exist at a time


def conv2d(x, weight, bias=None, *, stride=1, padding=0):
    """Cross-correlation, b h w c x (e, c, p, q) -> b h' w' e."""
    return conv2d_forward(x, weight, bias, stride=stride, padding=padding)[0]


def conv2d_forward(x, weight, bias=None, *, stride=1, padding=0):
    """``conv2d`` and what ``conv2d_backward`` needs: (x, weight, bias, stride, padding)."""
    (e, _, p, q), (_, h, w, _) = weight.shape, x.shape
    down, across = (h + 2 * padding - p) // stride + 1, (w + 2 * padding - q) // stride + 1
    out = device.empty((len(x), down, across, e), x.dtype)
    for images in _blocks(x, weight, out):
        products = product(_unfolded(x[images], weight, stride, padding, out), _flat(weight).T)
        finish(products, as_rows(out[images]), bias=bias)
    return out, (x, weight, bias, stride, padding)


def conv2d_backward(saved, grad_out):
    """Gradients for x, weight and bias."""
    x, weight, bias, stride, padding = saved
    grad_out, flat = grad_out.astype(x.dtype, copy=False), _flat(weight)
    grad_x, grad_flat = device.empty(x.shape, x.dtype), device.zeros(flat.shape, core_dtype(x.dtype))
    for images in _blocks(x, weight, grad_out):
        grad = as_rows(grad_out[images])
        grad_flat += product(grad.T, _unfolded(x[images], weight, stride, padding, grad_out))
        part = grad_x[images]
        _run("fold", part, weight, stride, padding, grad_out, product(grad, flat), part.size)
    grad_bias = None if bias is None else column_sums(as_rows(grad_out), bias)
    return grad_x, finished(grad_flat, weight, weight.shape), grad_bias


def _flat(weight):
    return weight.reshape(len(weight), math.prod(weight.shape[1:]))


def _blocks(x, weight, out):
    """Slices of images whose windows are about ``WINDOWS`` numbers."""
    each = math.prod(out.shape[1:3]) * math.prod(weight.shape[1:])
    step = max(1, WINDOWS // max(each, 1))
    return [slice(first, first + step) for first in range(0, len(x), step)]


def _unfolded(x, weight, stride, padding, out):
    """The matrix of windows, (b h' w', c p q)."""
    rows = len(x) * math.prod(out.shape[1:3])
    windows = device.empty((rows, math.prod(weight.shape[1:])), weight.dtype)
    _run("unfold", x, weight, stride, padding, out, windows, windows.size)
    return windows


def _run(kernel, images, weight, stride, padding, out, windows, threads):
    values = *images.shape, *weight.shape[2:], stride, padding, *out.shape[1:3], images, windows
    device.run("convolution.cu", kernel, core_dtype(weight.dtype), threads, *values)


def batch_norm(x, mean, variance, scale, bias, *, eps=1e-5):
    """(x − mean) / sqrt(variance + eps) · scale + bias per channel, with given statistics."""
    return batch_norm_forward(x, mean, variance, scale, bias, eps=eps)[0]


def batch_norm_forward(x, mean, variance, scale, bias, *, eps=1e-5):
    """``batch_norm`` and what ``batch_norm_backward`` needs: (x, mean, variance, scale, bias, eps)."""
    out, saved = device.empty(x.shape, x.dtype), (x, mean, variance, scale, bias, eps)
    _normalize("batch_norm_forward", saved, None, as_rows(out), (None, None), x.size)
    return out, saved


def batch_norm_backward(saved, grad_out):
    """Gradients for x, scale and bias."""
    x, _, _, scale, bias, _ = saved
    grads, grad_x = as_rows(grad_out), device.empty(x.shape, x.dtype)
    n, c = grads.shape
    chunks = [device.empty((-(-n // CHUNK), c), core_dtype(x.dtype)) for _ in range(2)]
    _normalize("batch_norm_backward", saved, grads, as_rows(grad_x), chunks, x.size)
    _normalize("batch_norm_chunks", saved, grads, None, chunks, chunks[0].size)
    return grad_x, sums_of_chunks(chunks[0], scale), sums_of_chunks(chunks[1], bias)


def _normalize(kernel, saved, grads, out, chunks, threads):
    x, *vectors, eps = saved
    values = *as_rows(x).shape, as_rows(x), *vectors, grads, out, *chunks
    device.run("convolution.cu", kernel, core_dtype(x.dtype), threads, *values, number=eps)


def average_pool(x, *, size):
    """The mean of each size x size window, b h w c; rests at the edges are left out."""
    return average_pool_forward(x, size=size)[0]


def average_pool_forward(x, *, size):
    """``average_pool`` and what ``average_pool_backward`` needs: (x, size)."""
    b, h, w, c = x.shape
    out = device.empty((b, h // size, w // size, c), x.dtype)
    device.run("convolution.cu", "average_pool_forward", core_dtype(x.dtype), out.size, *x.shape, size, x, out)
    return out, (x, size)


def average_pool_backward(saved, grad_out):
    """The gradient for x, in a tuple of one."""
    x, size = saved
    grad_x = device.empty(x.shape, x.dtype)
    values = *x.shape, size, grad_out, grad_x
    device.run("convolution.cu", "average_pool_backward", core_dtype(x.dtype), x.size, *values)
    return (grad_x,)
