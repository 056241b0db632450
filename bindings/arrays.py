"""Which framework an array belongs to, asked of the array and never of the machine.

The array functions of the op set (``concatenate``, ``take``, …) are here too: what the models need besides the
operations, for whichever framework their input comes from.
"""

import sys
from functools import cache

import numpy as np

FLOATING = ("float16", "bfloat16", "float32", "float64")


def framework_of(x):
    """ "numpy", "torch", "cupy", or None for anything else. No framework is imported to find out."""
    if isinstance(x, np.ndarray):
        return "numpy"
    # Asked this way because torch.compile can trace it for tensors, parameters and subclasses alike.
    if hasattr(x, "__torch_function__"):
        return "torch"
    if x is None or isinstance(x, (int, float, str, list, tuple, dict, np.generic)):
        return None
    return "cupy" if type(x).__module__.startswith("cupy") else None


def dtype_name(x):
    """The name of an array's dtype, the same for every framework: "float32", "bfloat16", "int64", …"""
    return _name(x.dtype) if isinstance(x, np.ndarray) else str(x.dtype).removeprefix("torch.")


_name = cache(str)  # which for a NumPy dtype takes microseconds


def is_floating(x):
    """Whether the dtype is one the operations compute in: float16, bfloat16, float32 or float64."""
    return dtype_name(x) in FLOATING


def _library(x):
    return sys.modules[framework_of(x) or "numpy"]


def concatenate(arrays, axis):
    """The arrays joined along ``axis``."""
    return _library(arrays[0]).concatenate(tuple(arrays), axis)


def take(x, indices, axis):
    """The slices of ``x`` along ``axis`` at integer ``indices`` (an array of any shape, or one integer)."""
    return x[(slice(None),) * axis + (indices,)]


def broadcast_to(x, shape):
    """A view of ``x`` of ``shape``."""
    return _library(x).broadcast_to(x, shape)


def tanh(x):
    """The hyperbolic tangent, elementwise."""
    return _library(x).tanh(x)


def relu(x):
    """max(x, 0), elementwise."""
    return _library(x).relu(x) if framework_of(x) == "torch" else _library(x).maximum(x, x.dtype.type(0))


def mean(x, axis):
    """The mean along one axis, in the dtype of ``x``, summed in float32 at least."""
    if framework_of(x) == "torch":
        return x.mean(axis)
    wide = np.float64 if dtype_name(x) == "float64" else np.float32
    return x.mean(axis, dtype=wide).astype(x.dtype)


def identity(n, like):
    """The n x n identity matrix in the dtype of ``like``."""
    library = _library(like)
    if framework_of(like) == "torch":
        return library.eye(n, dtype=like.dtype, device=like.device)
    return library.eye(n).astype(like.dtype)
