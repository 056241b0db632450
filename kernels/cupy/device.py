"""Memory and launches on the GPU: everything of CuPy that the kernels' Python sides need.

A kernel takes the address of its parameters, 64-bit integers laid out as its ``Problem``, and one number. Arrays
stand in the parameters as (address, kind, four byte strides).
"""

from functools import cache
from pathlib import Path

import cupy
import ml_dtypes
import numpy as np

THREADS = 128
_KINDS = {
    np.dtype(np.float32): 0,
    np.dtype(np.float64): 1,
    np.dtype(ml_dtypes.bfloat16): 2,
    np.dtype(np.float16): 3,
    np.dtype(np.bool_): 4,
}


def core_dtype(dtype):
    """The dtype a kernel computes in for arrays of ``dtype``."""
    return np.dtype(np.float64) if dtype == np.float64 else np.dtype(np.float32)


def empty(shape, dtype):
    """An array on the GPU, not filled."""
    return cupy.empty(shape, dtype)


def zeros(shape, dtype):
    """An array of zeros on the GPU."""
    return cupy.zeros(shape, dtype)


def upload(integers):
    """64-bit integers as an array on the GPU."""
    return cupy.asarray(np.array(integers, np.int64))


def address(x):
    """Where an array begins."""
    return x.data.ptr


def describe(x, axes=4):
    """(address, kind, four byte strides) of an array of at most four axes; six zeros for None."""
    if x is None:
        return (0,) * 6
    strides = tuple(stride if n > 1 else 0 for stride, n in zip(x.strides, x.shape, strict=True))
    return (address(x), _KINDS[np.dtype(x.dtype)], *strides, *(0,) * (4 - len(strides)))


def source(file):
    """The text of a ``.cu`` file of this folder, with what it is built on before it."""
    folder = Path(__file__).parent
    return (folder / "memory.cu").read_text(encoding="utf-8") + (folder / file).read_text(encoding="utf-8")


def options(core, **sizes):
    """Compiler options: the core type, and sizes that are compiled in."""
    names = {"CORE": "double" if core == np.float64 else "float", **sizes}
    return tuple(f"-D{name}={value}" for name, value in names.items())


@cache
def _module(file, flags):
    # Contraction to fused multiply-adds is allowed; nothing else is reordered.
    return cupy.RawModule(code=source(file), options=("--std=c++14", *flags), backend="nvrtc")


def launch(file, kernel, flags, threads, parameters, number):
    """Run ``kernel`` of ``file`` with at least ``threads`` threads on the current stream."""
    if threads:
        blocks = -(-threads // THREADS)
        _module(file, flags).get_function(kernel)((blocks,), (THREADS,), (parameters, np.float64(number)))
