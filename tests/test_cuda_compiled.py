"""The CUDA C++ of the CuPy backend compiles for the GPUs it is meant for, without a GPU or a driver."""

import re
from pathlib import Path

import cupy
import numpy as np
import pytest
from cuda.bindings import nvrtc

from saccade.kernels.cupy import attention_hopper, device

FLAGS = ("--std=c++14", "--ptxas-options=-v")
SIZES = {"attention.cu": {"D": 72, "E": 64}, "attention_tiles.cu": {"D": 72, "E": 64, "KIND": "BFLOAT16"}}
SOURCES = {path.name for path in Path(device.__file__).parent.glob("*.cu")} - set(device.FOUNDATIONS)
SOURCES = sorted(SOURCES - {"attention_hopper.cu", *(base for bases in device.BASES.values() for base in bases)})
# Of attention on Hopper (keys, masked, bytes of stack, registers) by rows of a head: nothing here may grow.
HOPPER = {
    (d, d, keys, keys == 77): spilled
    for d, row in {
        64: (0, 0, 0, 0, 8), 72: (0, 0, 0, 0, 32), 80: (0, 0, 0, 0, 48), 88: (0, 0, 16, 16, 0), 104: (0, 0, 72, 72, 8),
        128: (0, 0, 32, 0, 0),
    }.items()
    for keys, spilled in zip((50, 77, 197, 257, 577), row, strict=True)
}  # fmt: skip


def compiled(text, flags):
    """The cubin of a program and the compiler's words, or an AssertionError with them."""

    def checked(result):
        status, *values = result
        assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, (status, log())
        return values[0] if values else None

    def log():
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        words = b" " * size
        nvrtc.nvrtcGetProgramLog(program, words)
        return words.decode().rstrip("\0")

    program = checked(nvrtc.nvrtcCreateProgram(text.encode(), b"saccade.cu", 0, [], []))
    checked(nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags]))
    cubin = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    return cubin, log()


def used(words):
    """(kernel, bytes of stack, bytes spilled, registers, bytes of shared memory) of each kernel, from those words."""
    found = []
    for part in words.split("Compiling entry function '")[1:]:
        numbers = (
            sum(map(int, re.findall(pattern, part)))
            for pattern in (r"(\d+) bytes stack", r"(\d+) bytes spill", r"(\d+) registers", r"(\d+) bytes smem")
        )
        found.append((part.partition("'")[0], *numbers))
    return found


@pytest.mark.parametrize("core", [np.float32, np.float64])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("file", SOURCES)
def test_kernels_compile_and_fit(file, architecture, core):
    flags = (*FLAGS, f"--gpu-architecture={architecture}", *device.options(core, **SIZES.get(file, {})))
    cubin, words = compiled(device.source(file), flags)
    assert cubin.startswith(b"\x7fELF")
    kernels = re.findall(r'extern "C" __global__ void (\w+)', device.source(file))
    assert sorted(kernels) == sorted(name for name, *_ in used(words))
    for name, stack, spilled, registers, shared in used(words):
        assert name.encode() in cubin
        assert not spilled, (name, spilled)
        if file == "attention_tiles.cu":
            assert not stack and shared <= 48 << 10, (name, stack, shared)
        elif file != "attention.cu":  # there a thread's sums are a row of them, in registers or on its stack
            assert registers <= 80 and not stack and shared <= 4096, (name, registers, stack, shared)


@pytest.mark.parametrize(("d", "e", "keys", "masked"), HOPPER)
def test_attention_on_hopper_compiles_and_fits(d, e, keys, masked):
    """Products that ptxas takes one after the other, for want of registers, it says."""
    eights, tiles, heads, multiprocessors = -(-keys // 8) * 8, -(-keys // 64), 10_000, 132
    cut = attention_hopper.cut(True, d, e, eights, tiles, heads, masked, multiprocessors)
    text = device.source("attention_hopper.cu", cut.before)
    cubin, words = compiled(text, (*FLAGS, "--gpu-architecture=sm_90a", *cut.flags))
    ((name, stack, _, registers, shared),) = used(words)
    assert name == "attention_forward_hopper" and cubin[:4] == b"\x7fELF" and "serialized" not in words
    at_once = int(next(flag.partition("=")[2] for flag in cut.flags if "PER_MULTIPROCESSOR" in flag))
    assert registers * cut.threads * at_once <= 1 << 16 and (cut.shared + 1024) * at_once <= 228 * 1024
    assert stack <= HOPPER[d, e, keys, masked] and not shared


def test_what_spills_is_noticed():
    few = "--maxrregcount=16"
    _, words = compiled(
        device.source("layers.cu"), (*FLAGS, few, "--gpu-architecture=sm_90", *device.options("float32"))
    )
    assert any(spilled for _, _, spilled, *_ in used(words))


def test_what_does_not_compile_is_noticed():
    with pytest.raises(AssertionError):
        compiled("this is not a program", ("--gpu-architecture=sm_90",))


def test_machine_code_is_kept_and_does_not_flush_small_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "made" / "cache"))
    path = device.compiled("layers.cu", device.options("float32"), "sm_90")
    kept = path.stat().st_mtime_ns
    assert device.compiled("layers.cu", device.options("float32"), "sm_90") == path
    assert path.stat().st_mtime_ns == kept and list(path.parent.iterdir()) == [path]
    keeping, flushing = (
        device.compiled("layers.cu", (*device.options("float32"), f"--ftz={flush}"), "sm_90").read_bytes()
        for flush in ("false", "true")
    )
    assert path.read_bytes() == keeping != flushing


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (35, r"built for CUDA 1\d\.\d, and there is no NVIDIA driver or an older"),
        (100, "sees no CUDA GPU"),
        (2, "cannot use"),
    ],
)
def test_what_hinders_cupy_is_one_sentence(status, says, monkeypatch):
    def missing():
        raise cupy.cuda.runtime.CUDARuntimeError(status)

    monkeypatch.setattr(cupy.cuda, "Device", missing)
    for asked in (device.has_tensor_cores, device.has_warpgroups):
        with pytest.raises(RuntimeError, match=says) as raised:
            asked()
        assert "\n" not in str(raised.value)


def test_what_cannot_be_compiled_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"layers.cu does not compile for sm_20: .*architecture"):
        device.compiled("layers.cu", device.options("float32"), "sm_20")
    assert not list(tmp_path.iterdir())
