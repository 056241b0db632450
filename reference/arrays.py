"""The array functions that models need besides the operations, by the names they have on the face."""

import numpy as np

from saccade.reference.precision import rounded, upcast


def concatenate(arrays, axis):
    """The arrays joined along ``axis``."""
    return np.concatenate(arrays, axis)


def take(x, indices, axis):
    """The slices of ``x`` along ``axis`` at integer ``indices``."""
    return np.take(x, indices, axis)


def broadcast_to(x, shape):
    """A view of ``x`` of ``shape``."""
    return np.broadcast_to(x, shape)


def tanh(x):
    """The hyperbolic tangent, elementwise."""
    return rounded(np.tanh(upcast(x)), x)


def relu(x):
    """max(x, 0), elementwise."""
    return np.maximum(x, x.dtype.type(0))


def mean(x, axis):
    """The mean along one axis, summed in float32 at least, in the dtype of ``x``."""
    return rounded(upcast(x).mean(axis), x)


def identity(n, like):
    """The n x n identity matrix in the dtype of ``like``."""
    return np.eye(n).astype(like.dtype)
