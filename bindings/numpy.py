"""Who computes an operation on NumPy arrays: the numba kernels, or by name the reference."""

import importlib
from functools import cache

from saccade.families import family_of
from saccade.values import check_values

BACKENDS = ("numba", "reference")


@cache
def implementation(function, backend=None):
    """The function of that name in the backend's module, behind the checks of values."""
    backend = "numba" if backend is None else backend
    if backend not in BACKENDS:
        raise ValueError(f"{function}: {backend=} does not take NumPy arrays, expected one of {', '.join(BACKENDS)}")
    package = "saccade.reference" if backend == "reference" else "saccade.kernels.numba"
    compute = getattr(importlib.import_module(f"{package}.{family_of(function)}"), function)
    if function.endswith("_backward"):
        return compute

    def checked(*arguments, **options):
        check_values(function, arguments, options)
        return compute(*arguments, **options)

    return checked
