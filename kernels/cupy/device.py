"""Memory and launches on the GPU: everything of CuPy that the kernels' Python sides need.

A kernel takes its parameters by value, 64-bit integers laid out as its ``Problem``, and one number. Arrays stand in the
parameters as (address, kind, four byte strides).
"""

import math
import os
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import cupy
import ml_dtypes
import numpy as np

THREADS = 128
OLD_DRIVER, NO_DEVICE = 35, 100  # of CUDA's errors
FOUNDATIONS = ("memory.cu", "blocks.cu", "ptx.cu")  # what stands before every other source
BASES = {"attention.cu": ("attention_problem.cu",), "attention_tiles.cu": ("attention_problem.cu",)}  # and before some
_KINDS = {
    np.dtype(np.float32): 0,
    np.dtype(np.float64): 1,
    np.dtype(ml_dtypes.bfloat16): 2,
    np.dtype(np.float16): 3,
    np.dtype(np.bool_): 4,
    np.dtype(np.uint8): 5,
    np.dtype(np.int64): 6,
    np.dtype(np.int32): 7,
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


def full(shape, number, dtype):
    """An array of one number on the GPU."""
    return cupy.full(shape, number, dtype)


def put(x):
    """An array on the GPU, also if it lies on the host."""
    return cupy.asarray(x)


def upload(integers):
    """64-bit integers as an array on the GPU."""
    return cupy.asarray(np.array(integers, np.int64))


def capability():
    """The compute capability of the current GPU, as "90".

    Raises:
        RuntimeError: CuPy finds no GPU, or a driver that is older than the CUDA it is built for.
    """
    try:
        return cupy.cuda.Device().compute_capability
    except cupy.cuda.runtime.CUDARuntimeError as error:
        wanted = cupy.cuda.runtime.runtimeGetVersion()
        known = {
            NO_DEVICE: "CuPy sees no CUDA GPU: there is none, or CUDA_VISIBLE_DEVICES hides it",
            OLD_DRIVER: f"CuPy is built for CUDA {wanted // 1000}.{wanted % 1000 // 10}, and there is no NVIDIA driver "
            "or an older one: update it, or install the CuPy of its CUDA, such as cupy-cuda12x",
        }
        raise RuntimeError(known.get(error.status, f"CuPy cannot use the GPU: {error}")) from None


def has_tensor_cores():
    """Whether the current GPU has what ``ptx.cu`` is written in: Ampere's tensor cores, or newer ones."""
    return int(capability()) >= 80


def has_warpgroups():
    """Whether the current GPU has what ``wgmma.py`` is written in: Hopper's tensor cores, which no later one has."""
    return capability() == "90"


def multiprocessors():
    """How many multiprocessors the current GPU has."""
    return _multiprocessors(cupy.cuda.Device().id)


@cache
def _multiprocessors(i):
    return cupy.cuda.Device(i).attributes["MultiProcessorCount"]


def as_rows(x):
    """``x`` as (rows, last axis), a view where its layout allows; a number is a row of one."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1] if x.ndim else 1)


def address(x):
    """Where an array begins."""
    return x.data.ptr


def describe(x, axes=4):
    """(address, kind, four byte strides) of an array of at most four axes; six zeros for None."""
    if x is None:
        return (0,) * 6
    strides = tuple(stride if n > 1 else 0 for stride, n in zip(x.strides, x.shape, strict=True))
    return (address(x), _KINDS[np.dtype(x.dtype)], *strides, *(0,) * (4 - len(strides)))


def source(file, before=""):
    """The text of a ``.cu`` file of this folder, with what it is built on before it, and last of that ``before``."""
    folder = Path(__file__).parent
    bases = "".join((folder / name).read_text(encoding="utf-8") for name in (*FOUNDATIONS, *BASES.get(file, ())))
    return bases + before + (folder / file).read_text(encoding="utf-8")


def options(core, **sizes):
    """Compiler options: the core type, and sizes that are compiled in."""
    names = {"CORE": "double" if core == np.float64 else "float", "THREADS": THREADS, **sizes}
    return tuple(f"-D{name}={value}" for name, value in names.items())


def compiled(file, flags, architecture, before=""):
    """The machine code of a ``.cu`` file, from CuPy's folder of those that it has compiled if it is there.

    ``RawModule`` would compile it with -ftz=true, which makes 0 of numbers below 1.2e-38. Contraction to fused
    multiply-adds is allowed here; nothing else is reordered.

    Raises:
        RuntimeError: the compiler does not know the architecture, or the source does not compile.
    """
    nvrtc: Any = cupy.cuda.nvrtc  # whose types are wider than it is
    flags = "--std=c++14", f"--gpu-architecture={architecture}", *flags
    text = source(file, before)
    key = repr((text, flags, nvrtc.getVersion())).encode()
    folder = Path(os.environ.get("CUPY_CACHE_DIR", Path.home() / ".cupy/kernel_cache"))
    path = folder / f"{sha256(key).hexdigest()}.cubin"
    if not path.exists():
        program = nvrtc.createProgram(text, file, (), ())
        try:
            nvrtc.compileProgram(program, flags)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as whole:
                whole.write(nvrtc.getCUBIN(program))
            Path(whole.name).rename(path)
        except nvrtc.NVRTCError as error:
            said = nvrtc.getProgramLog(program).strip() or error
            raise RuntimeError(f"{file} does not compile for {architecture}: {said}") from None
        finally:
            nvrtc.destroyProgram(program)
    return path


@cache
def _function(file, kernel, flags, capability, before, shared):
    architecture = f"sm_{capability}{'a' if before else ''}"  # its own instructions are no other's
    function = cupy.RawModule(path=str(compiled(file, flags, architecture, before))).get_function(kernel)
    if shared:
        function.max_dynamic_shared_size_bytes = shared
    return function


def launch(file, kernel, flags, threads, parameters, number, *, block=THREADS, before="", shared=0):
    """Run ``kernel`` of ``file`` with at least ``threads`` threads on the current stream, ``block`` of them in a block
    with as many bytes of ``shared`` memory as it asks for; ``before`` stands before its text."""
    if threads:
        function = _function(file, kernel, flags, capability(), before, shared)
        whole = np.array(parameters, np.int64)
        by_value = whole.view(f"V{whole.nbytes}"), np.float64(number)  # of arrays CuPy takes those of one element
        function((-(-threads // block),), (block,), by_value, shared_mem=shared)


def run(file, kernel, core, threads, *values, number=0.0):
    """Launch a kernel on parameters that are integers, arrays, and None for arrays that are not given."""
    parameters = []
    for one in values:  # which live until the launch, also those that nobody else holds
        parameters += (int(one),) if isinstance(one, int) else describe(one)
    launch(file, kernel, options(core), threads, parameters, number)


def product(a, b):
    """The product of two matrices of one dtype, in the dtype that is computed in, by cuBLAS.

    16-bit operands stay as they are, so that tensor cores multiply them; their sums are float32 and never rounded.
    """
    core = core_dtype(a.dtype)
    if core == a.dtype:
        return a @ b
    (m, k), n = a.shape, b.shape[1]
    if 0 in (m, n, k):
        return zeros((m, n), core)
    out = empty((m, n), core)
    (a, by_a, step_a), (b, by_b, step_b) = _by_columns(a), _by_columns(b)
    # cuBLAS counts down columns: it is given outᵀ = bᵀ aᵀ, whose columns are the rows here
    multiply(by_b, by_a, n, m, k, b, step_b, a, step_a, out)
    return out


def _by_columns(x):
    """(x or a copy in C order, whether its transpose lies by rows, elements from one row or column to the next)."""
    size = x.dtype.itemsize
    (m, n), (down, along) = x.shape, x.strides
    if (along == size or n == 1) and down >= n * size:
        return x, False, down // size
    if (down == size or m == 1) and along >= m * size:
        return x, True, along // size
    return x.copy(), False, n


def multiply(transposed_b, transposed_a, n, m, k, b, step_b, a, step_a, out):
    """out = bᵀ aᵀ, in cuBLAS's words: matrices by columns, 16-bit operands, sums and results in float32."""
    cuda: Any = cupy.cuda  # whose types are wider than it is
    kind = cuda.runtime.CUDA_R_16F if a.dtype == np.float16 else cuda.runtime.CUDA_R_16BF
    factors = np.array([1, 0], np.float32)
    one, zero = factors.ctypes.data, factors.ctypes.data + 4
    cuda.cublas.gemmEx(
        cuda.device.get_cublas_handle(), int(transposed_b), int(transposed_a), n, m, k, one, address(b), kind, step_b,
        address(a), kind, step_a, zero, address(out), cuda.runtime.CUDA_R_32F, n, cuda.cublas.CUBLAS_COMPUTE_32F,
        cuda.cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
