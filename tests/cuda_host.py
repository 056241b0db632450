"""The CuPy backend on the CPU: its CUDA C++ compiled by a C++ compiler for the host, its arrays NumPy's.

Every launch runs, block by block, all threads of a block as fibers, which take turns at barriers in another order each
time (``cuda_on_host/``). Between two barriers a thread is not interrupted, so an addition that should be atomic and is
not goes unseen. cuBLAS is played by NumPy, which is told of matrices as cuBLAS is: addresses, by columns.
"""

import contextlib
import ctypes
import itertools
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import cupy
import ml_dtypes
import numpy as np
import pytest

from saccade.kernels.cupy import convolution, device, pairs

SHIM = Path(__file__).parent / "cuda_on_host"
FORWARD, REVERSED, *SHUFFLED = range(6)  # orders in which the threads of a block run between barriers


@cache
def library(folder, text, flags):
    """CUDA C++ compiled for the host."""
    name = f"{hash((text, flags)):x}"
    code, built = folder / f"{name}.cpp", folder / f"{name}.so"
    code.write_text((SHIM / "before.h").read_text() + text + (SHIM / "after.h").read_text())
    options = ("-x", "c++", "-std=c++14", "-O1", "-fno-exceptions", "-fno-rtti", "-shared", "-fPIC", *flags)
    environment = {"PATH": "/usr/bin:/bin", "ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    command = [sys.executable, "-P", "-m", "ziglang", "cc", *options, str(code), "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr
    return ctypes.CDLL(str(built))


def folder_of(tmp_path_factory):
    """Where a process of tests keeps what it compiles."""
    folder = tmp_path_factory.getbasetemp() / "cuda_on_host"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def on_the_host(folder, orders=(FORWARD, REVERSED, *SHUFFLED)):
    """In the block, the CuPy backend computes on NumPy arrays, small losses of pairs and convolutions in
    several parts; what it compiles is kept in ``folder``."""
    order_of = itertools.cycle(orders)

    def launch(file, kernel, flags, threads, parameters, number, block=device.THREADS, before="", shared=0):
        if threads:
            lib = library(folder, device.source(file, before), flags)
            blocks = ctypes.c_longlong(-(-threads // block))
            by_value = np.array(parameters, np.int64)
            pointer = ctypes.c_void_p(by_value.ctypes.data)
            left = lib.launch(getattr(lib, kernel), blocks, pointer, ctypes.c_double(number), next(order_of))
            assert not left, f"{kernel}: a barrier that not all threads of a block come to"

    def empty(shape, dtype):
        poisoned = np.empty(shape, dtype)
        poisoned[...] = np.nan if poisoned.dtype.kind not in "iu" else np.iinfo(dtype).max
        return poisoned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "PANEL", 3000)
        patch.setattr(convolution, "WINDOWS", 3000)
        patch.setattr(device, "launch", launch)
        patch.setattr(device, "has_tensor_cores", lambda: True)
        patch.setattr(device, "has_warpgroups", lambda: True)
        patch.setattr(device, "multiprocessors", lambda: 1)
        patch.setattr(device, "empty", empty)
        patch.setattr(device, "zeros", np.zeros)
        patch.setattr(device, "full", np.full)
        patch.setattr(device, "put", np.asarray)
        patch.setattr(device, "upload", lambda integers: np.array(integers, np.int64))
        patch.setattr(device, "address", lambda x: x.__array_interface__["data"][0])
        patch.setattr(cupy.cuda.device, "get_cublas_handle", lambda: 0)
        names = {name: i for i, name in enumerate(("CUBLAS_COMPUTE_32F", "CUBLAS_GEMM_DEFAULT"))}
        patch.setitem(vars(cupy.cuda), "cublas", SimpleNamespace(gemmEx=gemm_ex, **names))
        yield


def gemm_ex(_, transpose_a, transpose_b, m, n, k, one, a, kind_a, step_a, b, kind_b, step_b, zero, c, kind_c, step_c,
            *how):  # fmt: skip
    """C = A B of matrices that lie by columns, ``step`` elements from one column to the next."""
    kinds = {cupy.cuda.runtime.CUDA_R_16F: np.float16, cupy.cuda.runtime.CUDA_R_16BF: ml_dtypes.bfloat16}
    assert kind_a == kind_b and kind_c == cupy.cuda.runtime.CUDA_R_32F
    assert (ctypes.c_float.from_address(one).value, ctypes.c_float.from_address(zero).value) == (1, 0)

    def matrix(address, dtype, rows, columns, step):
        assert step >= max(rows, 1)
        size, itemsize = (columns - 1) * step + rows, np.dtype(dtype).itemsize
        flat = np.frombuffer((ctypes.c_char * (size * itemsize)).from_address(address), dtype)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), (itemsize, step * itemsize))

    left, right = (
        matrix(address, kinds[kind_a], *(shape[::-1] if turned else shape), step).astype(np.float32)
        for address, shape, turned, step in ((a, (m, k), transpose_a, step_a), (b, (k, n), transpose_b, step_b))
    )
    matrix(c, np.float32, m, n, step_c)[...] = (left.T if transpose_a else left) @ (right.T if transpose_b else right)
