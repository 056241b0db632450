"""How the oracle, which thinks in NumPy, hands its inputs to functions of other arrays and takes their results back."""

import contextlib
import importlib
import time
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

NAMES = ("numpy", "torch", "cupy", "jax")


@dataclass(frozen=True)
class Framework:
    """Arrays of one library on one device.

    Attributes:
        device: torch's name of it ("cpu", "cuda", "cuda:1"); None is torch's and JAX's default, CuPy's current one.
        copied: whether arrays are handed over as copies that the current stream makes when it comes to it.
    """

    name: str = "numpy"
    device: str | None = None
    copied: bool = False

    def __post_init__(self):
        if self.name not in NAMES:
            raise ValueError(f"arrays={self.name!r}, expected one of {', '.join(NAMES)}")
        if self.device is not None and self.name != "torch":
            raise ValueError(f"device={self.device!r} with arrays={self.name!r}, expected None: only torch has names")

    @property
    def library(self) -> Any:
        """The imported library.

        Raises:
            ModuleNotFoundError: it is not installed; says what to install.
        """
        try:
            return importlib.import_module(self.name)
        except ModuleNotFoundError as error:
            remedy = {"torch": 'pip install "saccade[torch]"', "cupy": 'pip install "saccade[cuda]"'}
            text = f"arrays={self.name!r} needs {error.name}: {remedy.get(self.name, 'pip install ' + self.name)}"
            raise ModuleNotFoundError(text, name=error.name) from None

    def put(self, x) -> Any:
        """A NumPy array as an array of the library, with the same strides where the library knows strides.

        CPU tensors are views of the NumPy array's own memory. Anything but an array is handed on as it is; tuples and
        dictionaries are gone through.
        """
        if isinstance(x, dict):
            return {name: self.put(one) for name, one in x.items()}
        if isinstance(x, (tuple, list)):
            return tuple(map(self.put, x))
        if not isinstance(x, np.ndarray) or self.name == "numpy":
            return x
        if self.name == "jax":
            return self.library.numpy.asarray(x)
        if self.name == "cupy":
            flat = self.library.asarray(_flat(x))
            y = self.library.ndarray(x.shape, x.dtype, flat.data, _strides(x))
            return y.copy() if self.copied else y
        if self.device in (None, "cpu"):
            return _tensor(x)
        strides = [stride // x.itemsize for stride in _strides(x)]
        y = _tensor(_flat(x)).to(self.device).as_strided(x.shape, strides)
        return y.clone() if self.copied else y

    def refilled(self, held, x):
        """``held``, which ``put`` made of the array ``x``, with the numbers that ``x`` has now; JAX's is another."""
        if self.name == "jax" or not self.owns(held):
            return self.put(x)
        if self.name == "cupy" or (self.name == "torch" and self.streams):
            held[...] = self.put(x)
        return held

    @property
    def streams(self):
        """Whether work is done in streams of a GPU."""
        return self.name == "cupy" or (self.name == "torch" and self.device not in (None, "cpu"))

    @contextlib.contextmanager
    def another_stream(self):
        """In the block, a new stream is the current one, and is busy for some milliseconds before it does anything."""
        self.wait()
        if self.name == "cupy":
            stream = self.library.cuda.Stream(non_blocking=True)
            with stream:
                stream.launch_host_func(lambda _: time.sleep(0.01), None)
                yield
        else:
            stream = self.library.cuda.Stream(self.device)
            with self.library.cuda.stream(stream):
                self.library.cuda._sleep(20_000_000)  # cycles; torch has no public way to keep a stream busy
                yield
        stream.synchronize()

    def take(self, y) -> Any:
        """An array of the library as a NumPy array; anything else as it is; tuples and lists are gone through."""
        if isinstance(y, (tuple, list)):
            return tuple(map(self.take, y))
        if not self.owns(y) or self.name == "numpy":
            return y
        if self.name == "torch":
            y = y.detach().cpu()
            if y.dtype == self.library.bfloat16:
                return y.view(self.library.int16).numpy().view(ml_dtypes.bfloat16)
            return y.numpy()
        return self.library.asnumpy(y) if self.name == "cupy" else np.asarray(y)

    def owns(self, y):
        """Whether ``y`` is an array of this library."""
        kinds = {"numpy": "ndarray", "torch": "Tensor", "cupy": "ndarray", "jax": "Array"}
        return isinstance(y, getattr(self.library if self.name != "numpy" else np, kinds[self.name]))

    def wait(self):
        """Return when the device has finished."""
        if self.name == "cupy":
            self.library.cuda.get_current_stream().synchronize()
        elif self.name == "torch" and self.device not in (None, "cpu"):
            self.library.cuda.synchronize(self.device)


def adapted(module, framework):
    """The ``_forward`` and ``_backward`` functions of a backend's module, as the gate takes them: NumPy in and out."""

    def forward_of(function):
        def forward(*arguments, **options):
            out, saved = function(*framework.put(arguments), **framework.put(options))
            return framework.take(out), saved

        return forward

    def backward_of(function):
        return lambda saved, *cotangents: framework.take(function(saved, *framework.put(cotangents)))

    functions = {name: function for name, function in vars(module).items() if not name.startswith("_")}
    forwards = {name: forward_of(f) for name, f in functions.items() if name.endswith("_forward")}
    backwards = {name: backward_of(f) for name, f in functions.items() if name.endswith("_backward")}
    return SimpleNamespace(**forwards, **backwards)


def _regular(x):
    """Whether other libraries can lay ``x`` out as it lies: whole elements apart, going upwards."""
    return x.size > 0 and all(stride >= 0 and stride % x.itemsize == 0 for stride in x.strides)


def _strides(x):
    return x.strides if _regular(x) else np.empty(x.shape, x.dtype).strides


def _flat(x):
    """The memory that ``x`` spans, as a vector; where other libraries cannot lay it out so, a copy in C order."""
    if not _regular(x):
        return np.ascontiguousarray(x).ravel()
    span = sum((n - 1) * stride for n, stride in zip(x.shape, x.strides, strict=True)) // x.itemsize + 1
    return np.lib.stride_tricks.as_strided(x, (span,), (x.itemsize,), writeable=False)


def _tensor(x):
    import torch

    bits = x.view(np.int16) if x.dtype == ml_dtypes.bfloat16 else x
    with warnings.catch_warnings():  # of arrays that may not be written to: whether a function does is judged elsewhere
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(bits)
    return tensor.view(torch.bfloat16) if x.dtype == ml_dtypes.bfloat16 else tensor
