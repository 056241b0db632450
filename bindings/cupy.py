"""Who computes an operation on CuPy arrays: the CUDA C++ kernels."""

import importlib
from functools import cache

from saccade.families import family_of

BACKENDS = ("cupy",)


@cache
def implementation(function, backend=None):
    """The function of that name among the CuPy kernels."""
    if backend not in (None, *BACKENDS):
        raise ValueError(f"{function}: {backend=} does not take CuPy arrays, expected one of {', '.join(BACKENDS)}")
    try:
        module = importlib.import_module(f"saccade.kernels.cupy.{family_of(function)}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("saccade.kernels.cupy"):
            raise
        module = None
    compute = getattr(module, function, None)
    if compute is None:
        raise NotImplementedError(f"{function}: the CuPy backend does not have it yet")
    return compute
