"""The CUDA C++ of the CuPy backend, run on the CPU: the same sources and the same Python sides, under a shim that
executes every thread of a launch in turn, held to the gate.

The kernels let no two threads share anything, so running them one after the other is what a GPU may do as well.
What this cannot see: the GPU's own arithmetic and launch, for which the tests marked ``gpu`` are.
"""

import ctypes
import subprocess
import sys
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from support import assert_kernel_passes, kernels_of

from saccade.kernels.cupy import attention, device, losses
from saccade.testing import gate, strategies
from saccade.testing.claims import Claims

BEFORE = """
#include <cmath>
using std::exp;
using std::log;
#define __device__
#define __global__
struct Index { unsigned x; };
static Index blockIdx, threadIdx, blockDim;
"""
AFTER = """
extern "C" void launch(void (*kernel)(const Problem*, double), int64 blocks, const Problem* p, double number) {
    blockDim.x = 128;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++) kernel(p, number);
}
"""
# No strides that leave elements unaligned: the arrays of a GPU framework have none. Few head dimensions, since each is
# compiled in.
CLAIMS = Claims(
    layouts=tuple(name for name in strategies.LAYOUTS if name != "misaligned"), head_dims=(8,), value_dims=False
)
NARROW = replace(CLAIMS, head_dims=(5,))


@pytest.fixture(scope="module", autouse=True)
def on_the_host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda_on_host")

    @cache
    def library(file, flags):
        name = f"{file}{'_'.join(flags)}"
        code, built = folder / f"{name}.cpp", folder / f"{name}.so"
        code.write_text(BEFORE + device.source(file) + AFTER)
        compiler = [sys.executable, "-P", "-m", "ziglang", "c++", "-std=c++14", "-O1", "-shared", "-fPIC", *flags]
        environment = {"PATH": "/usr/bin:/bin", "ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
        subprocess.run([*compiler, str(code), "-o", str(built)], check=True, capture_output=True, env=environment)
        return ctypes.CDLL(str(built))

    def launch(file, kernel, flags, threads, parameters, number):
        if threads:
            lib = library(file, flags)
            blocks = ctypes.c_longlong(-(-threads // device.THREADS))
            pointer = ctypes.c_void_p(parameters.__array_interface__["data"][0])
            lib.launch(getattr(lib, kernel), blocks, pointer, ctypes.c_double(number))

    def empty(shape, dtype):
        poisoned = np.empty(shape, dtype)
        poisoned[...] = np.nan
        return poisoned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "launch", launch)
        patch.setattr(device, "empty", empty)
        patch.setattr(device, "zeros", np.zeros)
        patch.setattr(device, "upload", lambda integers: np.array(integers, np.int64))
        patch.setattr(device, "address", lambda x: x.__array_interface__["data"][0])
        yield


@pytest.mark.parametrize("claims", [CLAIMS, NARROW], ids=["8", "5"])
@pytest.mark.parametrize(("operation", "function"), kernels_of("cupy"))
def test_kernels_pass_the_oracle(operation, function, claims):
    assert_kernel_passes(operation, function, claims=claims, budget=6.0, call_seconds=300.0)  # some compile first


def test_a_label_that_is_no_class_gives_nan_for_its_row():
    logits, labels = np.zeros((3, 2), np.float32), np.array([0, 2, 1])
    per_row, saved = losses.softmax_cross_entropy_forward(logits, labels, reduction="none")
    (grad,) = losses.softmax_cross_entropy_backward(saved, np.ones(3, np.float32))
    assert np.isnan(per_row).tolist() == [False, True, False]
    assert np.isnan(grad).all(1).tolist() == [False, True, False]


def test_16_bit_numbers_are_converted_exactly():
    """Every float16 and bfloat16 through a kernel that only copies: one key, whose weight is 1."""
    for dtype in (np.float16, strategies.DTYPES[2]):
        every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
        every = every[np.isfinite(every.astype(np.float32))]
        value = np.resize(every, (1, 1, len(every) // 8 + 1, 8))
        ones = np.zeros((1, 1, value.shape[2], 8), dtype)
        visible = np.eye(value.shape[2], dtype=bool)[:64]
        for start in range(0, value.shape[2] - 64, 4096):
            rows = value[:, :, start : start + 64]
            out = attention.attention(ones[:, :, :64], ones[:, :, :64], rows, mask=visible[:, :64])
            assert np.array_equal(out, rows)


def test_rounding_to_16_bits_is_to_nearest_even():
    """Averages of two neighbouring numbers lie half-way: the even one is right."""
    for dtype, bits in ((np.float16, 0x3C00), (strategies.DTYPES[2], 0x3F80)):
        neighbours = np.array([[bits + i, bits + i + 1] for i in range(8)], np.uint16).view(dtype)
        value = np.ascontiguousarray(neighbours.T).reshape(1, 1, 2, 8)
        zeros = np.zeros((1, 1, 2, 8), dtype)
        out = attention.attention(zeros, zeros, value)[0, 0, 0]
        assert (out.view(np.uint16) % 2 == 0).all()


BUGS = {
    "causal off by one": ("i_t + 1 + s - t", "i_t + 2 + s - t"),
    "no rescaling of what was summed before": ("sum[i] * rescale", "sum[i]"),
    "a key gradient without the scale": ("scale * key_sum[i]", "key_sum[i]"),
    "lengths ignored": ("return lengths ?", "return 0 ?"),
    "a mask ignored": ("return mask.base && ", "return 0 && "),
    "the row sums forgotten": ("(products - row_sums", "(products - 0 * row_sums"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug, monkeypatch):
    right, wrong = BUGS[bug]
    text = device.source("attention.cu")
    assert right in text
    plain, marked = device.options, f"BUG{list(BUGS).index(bug)}"  # a flag of its own, so that it is built anew
    monkeypatch.setattr(device, "source", lambda file: text.replace(right, wrong))
    monkeypatch.setattr(device, "options", lambda core, **sizes: plain(core, **sizes, **{marked: 1}))
    rng = np.random.default_rng(0)
    arguments = tuple(rng.standard_normal((1, 2, n, 8)).astype(np.float32) for n in (6, 9, 9))
    options = {"causal": True, "mask": rng.random((6, 9)) < 0.7, "key_lengths": np.array([7])}
    kernels = SimpleNamespace(**vars(attention))
    with pytest.raises(AssertionError, match="FAIL"):
        gate.assert_right("attention", kernels, arguments, options)
