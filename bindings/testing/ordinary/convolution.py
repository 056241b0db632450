"""What CLIP's ResNets have, as ordinary programs compute it."""

# How many operands and gradients a tuple holds, and which are None, depends on the operation and its arguments.
# pyright: reportAssignmentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import numpy as np

from saccade import reference
from saccade.testing.ordinary.layers import linear


def conv2d(way, arguments, options, cotangents):
    """A convolution as the product of windows and weights."""
    x, weight, bias = (*arguments, None)[:3]
    stride, padding = options.get("stride", 1), options.get("padding", 0)
    e, c, p, q = weight.shape
    b, height, width, _ = x.shape
    margins = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(way.raise_(x)[0], margins)
    rows = np.arange(0, padded.shape[1] - p + 1, stride)[:, None] + np.arange(p)
    columns = np.arange(0, padded.shape[2] - q + 1, stride)[:, None] + np.arange(q)
    windows = padded[:, rows[:, None, :, None], columns[None, :, None, :]]  # b out_h out_w p q c
    windows = np.moveaxis(windows, -1, 3).reshape(b, len(rows), len(columns), c * p * q)
    outputs, gradients = linear(way, (windows, weight.reshape(e, -1), bias), {}, cotangents)
    if cotangents is None:
        return outputs, ()
    grad_windows, grad_weight, grad_bias = gradients
    grad_windows = np.moveaxis(grad_windows.reshape(b, len(rows), len(columns), c, p, q), 3, -1)
    grad_padded = np.zeros_like(padded)
    for i in range(p):
        for j in range(q):
            grad_padded[:, rows[:, i][:, None], columns[:, j]] += grad_windows[:, :, :, i, j]
    grad_x = grad_padded[:, padding : padding + height, padding : padding + width]
    return outputs, (grad_x, grad_weight.reshape(weight.shape), grad_bias)


def batch_norm(way, arguments, options, cotangents):
    """Normalisation with given statistics, or folded into one factor and one addend; gradients are sums over pixels."""
    x, mean, variance, scale, bias = way.raise_(*arguments)
    inverse = 1 / way.sqrt(variance + way.core.type(options.get("eps", 1e-5)))
    normal = way.rounding((x - mean) * inverse)
    folded = x * way.rounding(scale * inverse) + way.rounding(bias - mean * (scale * inverse))
    out = folded if way.order in ("in blocks", "online") else normal * scale + bias
    if cotangents is None:
        return (out,), ()
    (grad,) = way.raise_(*cotangents)
    flat = (-1, grad.shape[-1])
    grad_scale, grad_bias = (way.sum(terms.reshape(flat), 0)[0] for terms in (grad * normal, grad))
    return (out,), (way.rounding(grad * scale * inverse), grad_scale, grad_bias)


def average_pool(way, arguments, options, cotangents):
    """The mean of each window."""
    (x,), size = way.raise_(*arguments), options["size"]
    b, h, w, c = x.shape
    rows, columns = h // size, w // size
    blocks = x[:, : rows * size, : columns * size].reshape(b, rows, size, columns, size, c)
    windows = np.moveaxis(blocks, 2, 4).reshape(b, rows, columns, size * size, c)
    out = way.mean(windows, -2)[..., 0, :]
    if cotangents is None:
        return (out,), ()
    _, saved = reference.average_pool_forward(x, size=size)
    (grad,) = reference.average_pool_backward(saved, *way.raise_(*cotangents))
    return (out,), (way.rounding(grad),)
