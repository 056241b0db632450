"""The CUDA C++ of the CuPy backend compiles for the GPUs it is meant for, without a GPU or a driver."""

from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import nvrtc

from saccade.kernels.cupy import device

SIZES = {"attention.cu": {"D": 72, "E": 64}}
SOURCES = sorted({path.name for path in Path(device.__file__).parent.glob("*.cu")} - set(device.FOUNDATIONS))


def compiled(text, flags):
    """The cubin of a program, or an AssertionError with the compiler's words."""

    def checked(result):
        status, *values = result
        assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, (status, log())
        return values[0] if values else None

    def log():
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        words = b" " * size
        nvrtc.nvrtcGetProgramLog(program, words)
        return words.decode()

    program = checked(nvrtc.nvrtcCreateProgram(text.encode(), b"saccade.cu", 0, [], []))
    checked(nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags]))
    cubin = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    return cubin


@pytest.mark.parametrize("core", [np.float32, np.float64])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("file", SOURCES)
def test_kernels_compile(file, architecture, core):
    flags = ("--std=c++14", f"--gpu-architecture={architecture}", *device.options(core, **SIZES.get(file, {})))
    cubin = compiled(device.source(file), flags)
    assert cubin.startswith(b"\x7fELF")
    for line in device.source(file).splitlines():
        if line.startswith('extern "C" __global__ void '):
            assert line.split("void ")[1].split("(")[0].encode() in cubin


def test_what_does_not_compile_is_noticed():
    with pytest.raises(AssertionError):
        compiled("this is not a program", ("--gpu-architecture=sm_90",))
