"""What this machine and installation offer, found out without importing what is not needed."""

import importlib.metadata
import importlib.util
import platform


def versions():
    """The installed version of each package that matters here; None where it is absent."""
    names = ("saccade", "numpy", "numba", "llvmlite", "ml_dtypes", "torch", "triton", "cupy-cuda13x", "hypothesis")
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def backends():
    """For each backend, (the arrays it serves, None if it is alive or else the reason and what to do)."""
    return {
        "reference": ("NumPy", None),
        "numba": ("NumPy, torch on the CPU", _numba()),
        "triton": ("torch on a GPU", _gpu("triton", _torch_sees_gpu)),
        "cupy": ("CuPy, torch on a GPU", _gpu("cupy", _cupy_sees_gpu)),
    }


def _missing(module, remedy):
    return None if importlib.util.find_spec(module) else f"{module} is not installed: {remedy}"


def _numba():
    return _missing("numba", "pip install numba") or _missing("llvmlite", "pip install llvmlite")


def _gpu(module, sees_gpu):
    return _missing(module, 'pip install "saccade[cuda]"') or sees_gpu()


def _torch_sees_gpu():
    if reason := _missing("torch", 'pip install "saccade[torch]"'):
        return reason
    try:
        import torch
    except Exception as error:  # a half-made installation fails in many ways; none may end `saccade info`
        return f"torch does not import ({error})"
    return None if torch.cuda.is_available() else "torch sees no CUDA GPU: install a driver and a CUDA build of torch"


def _cupy_sees_gpu():
    try:
        import cupy

        return None if cupy.cuda.runtime.getDeviceCount() else "CuPy sees no CUDA GPU"
    except Exception as error:  # as above; with no driver, CuPy raises an error of its own
        return f"CuPy sees no CUDA GPU ({error}): install a driver"


def processor():
    """The processor and those of its features that the kernels make use of or could."""
    found = {"name": platform.processor() or "unknown", "machine": f"{platform.system()} {platform.machine()}"}
    if _numba():
        return found | {"features": []}
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    wanted = ("sse2", "avx2", "fma", "f16c", "avx512f", "avx512bf16", "amx-bf16", "neon", "bf16")
    return found | {"name": llvm.get_host_cpu_name(), "features": [name for name in wanted if features.get(name)]}


def threading():
    """How CPU kernels run in parallel, and where their compiled code is kept."""
    if _numba():
        return {"threads": "no kernels to share out"}
    from saccade.kernels.numba.compilation import cache_directory
    from saccade.kernels.numba.threads import get_threads

    return {
        "threads": get_threads(),
        "layer": "Python threads over kernels that release the GIL (safe after fork and under concurrent calls)",
        "compiled code": str(cache_directory()),
    }
