"""Memory that shows when it is used before it is filled."""

import contextlib
from typing import Any

import numpy as np


@contextlib.contextmanager
def poisoned(framework):
    """In the block, arrays that the framework makes without filling hold NaN (the largest integer, True).

    Covers ``empty`` and its like in NumPy and CuPy, and in torch whatever is called from Python. Freed memory of a few
    common sizes is poisoned as well, since compiled code takes its scratch from there.
    """
    freed = [np.full(1 << power, 0xFF, np.uint8) for power in range(5, 17) for _ in range(4)]
    del freed
    if framework.name == "torch":
        with _torch_mode(framework.library):
            yield
    elif framework.name in ("numpy", "cupy"):
        with _patched(framework.library if framework.name == "cupy" else np):
            yield
    else:
        yield


def _fill(x):
    if x.dtype.kind in "iu":
        x[...] = np.iinfo(x.dtype).max
    elif x.dtype.kind != "O":
        x[...] = True if x.dtype.kind == "b" else np.nan
    return x


@contextlib.contextmanager
def _patched(library: Any):
    kept = {name: getattr(library, name) for name in ("empty", "empty_like")}

    def filling(function):
        return lambda *arguments, **options: _fill(function(*arguments, **options))

    for name, function in kept.items():
        setattr(library, name, filling(function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(library, name, function)


def _torch_mode(torch):
    from torch.overrides import TorchFunctionMode

    names = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")

    class Poison(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            out = function(*arguments, **(keywords or {}))
            if getattr(function, "__name__", "") in names and isinstance(out, torch.Tensor):
                out = out.fill_(float("nan") if out.is_floating_point() else torch.iinfo(out.dtype).max)
            return out

    return Poison()
