"""Tensors as the arrays a backend takes, and back, sharing memory."""

import importlib
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import distributed

from saccade.families import family_of
from saccade.torch.fastest import fastest
from saccade.values import check_values

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
BACKENDS = {"cpu": ("numba",), "cuda": ("triton", "cupy", "sdpa")}


def to_numpy(x):
    """A CPU tensor as a NumPy array on the same memory; anything but a tensor as it is."""
    if not isinstance(x, torch.Tensor):
        return x
    return _shared(x, _sharing())


def _shared(x, share):
    x = x.detach() if x.requires_grad else x
    if x.dtype is torch.bfloat16:  # torch hands no bfloat16 to NumPy: pass the bits
        return share(x.view(torch.int16)).view(_BFLOAT16)
    return share(x)


def _sharing():
    """The function that makes arrays of tensors."""
    if distributed.is_available() and distributed.is_initialized():
        return np.from_dlpack  # slower, but ``fully_shard`` resizes memory, which ``Tensor.numpy`` forbids for good
    return torch.Tensor.numpy


def from_numpy(x):
    """A NumPy array as a CPU tensor on the same memory; anything but an array as it is."""
    if not isinstance(x, np.ndarray):
        if not isinstance(x, np.generic):
            return x
        x = np.asarray(x)
    if x.dtype == _BFLOAT16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


class _Results(tuple):
    """Nested tuples of NumPy arrays that are tensors when they are taken out: most of what is saved never is."""

    def __getitem__(self, index):
        found = tuple.__getitem__(self, index)
        return tuple(_Results(found)) if isinstance(index, slice) else _result(found)

    def __iter__(self):
        return map(_result, tuple.__iter__(self))


def _result(x):
    return _Results(x) if isinstance(x, tuple) else from_numpy(x)


def call(function, backend, device, *arguments, **options) -> Any:
    """Run ``function`` of the backend for tensors on ``device``; tensors in, (nested tuples of) tensors out, which are
    made as they are taken.

    Raises:
        ValueError: ``backend`` does not serve that kind of device.
        ModuleNotFoundError: the backend's framework is not installed; says what to install.
    """
    if backend is None and device.type == "cuda":
        backend = fastest(function, arguments, options)
    backend = _backend_for(function, device.type, backend)
    compute = _implementation(function, backend)
    if backend in ("triton", "sdpa"):
        return compute(*arguments, **options)
    if backend == "cupy":
        from saccade.torch import cupy

        with cupy.on_current_stream(device):
            own = getattr(cupy, function, None)  # which takes tensors as they are
            found = own and own(*arguments, **options)
            return found or _nested(
                cupy.from_cupy, compute(*_nested(cupy.to_cupy, arguments), **_nested(cupy.to_cupy, options))
            )
    share = _sharing()

    def convert(x):
        return _shared(x, share) if isinstance(x, torch.Tensor) else x

    arguments = [_nested(convert, x) for x in arguments]
    options = {name: convert(x) for name, x in options.items()}
    check_values(function, arguments, options)
    return _result(compute(*arguments, **options))


def _backend_for(function, kind, backend):
    if kind not in BACKENDS:
        raise ValueError(f"{function}: tensors on {kind!r}, expected one of {', '.join(BACKENDS)}")
    if backend is None:
        return BACKENDS[kind][0]
    if backend not in BACKENDS[kind]:
        known = ", ".join((*BACKENDS[kind], "reference"))
        raise ValueError(f"{function}: {backend=} does not take {kind} tensors, expected one of {known}")
    return backend


@cache
def _implementation(function, backend):
    try:
        home = "saccade.torch.sdpa" if backend == "sdpa" else f"saccade.kernels.{backend}.{family_of(function)}"
        module = importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name == "triton" or error.name == "cupy":
            raise ModuleNotFoundError(
                f'{function} on a GPU needs {error.name}: pip install "saccade[cuda]"', name=error.name
            ) from None
        if error.name and error.name.startswith("saccade.kernels"):
            raise NotImplementedError(f"{function}: the {backend} backend does not have it yet") from None
        raise
    compute = getattr(module, function, None)
    if compute is None:
        raise NotImplementedError(f"{function}: the {backend} backend does not have it yet")
    return compute


def _nested(convert, x) -> Any:
    if isinstance(x, (tuple, list)):
        return tuple([_nested(convert, one) for one in x])
    if isinstance(x, dict):
        return {name: _nested(convert, one) for name, one in x.items()}
    return convert(x)


def compute_dtype(dtype):
    """float32 for float16 and bfloat16, otherwise the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def dense(x):
    """An empty tensor like ``x``, C-contiguous as kernels return theirs."""
    return x.new_empty(x.shape)
