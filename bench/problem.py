"""The inputs of a case as a provider sees them: arrays whose numbers the harness changes between two calls."""

from typing import Any

import numpy as np

from saccade.testing.frameworks import Framework

ENTRIES = 64  # of an array that are looked at after each timed call


class Held:
    """Arguments, options and cotangents as arrays of one framework.

    A call reads them anew each time: arrays are written over in place, since what a graph captured is where they lie,
    but JAX's are exchanged. Options keep their numbers.
    """

    def __init__(self, framework, axes, arguments, options, cotangents):
        self.framework, self.axes, self.options = framework, axes, framework.put(options)
        self._memory = tuple(map(self._laid_out, arguments)), tuple(map(self._laid_out, cotangents))
        self.arguments, self.cotangents = (tuple(map(self.framework.put, x)) for x in self._memory)
        self._copies: dict = {}

    def fill(self, arguments, cotangents, again=False):
        """Write new numbers over the old ones. Those that come ``again`` and again are copied to a GPU once."""
        if not (again and self.framework.streams):
            self._write(arguments, cotangents)
        elif id(arguments) not in self._copies:
            self._write(arguments, cotangents)
            copies = [x[...] + 0 if self.framework.owns(x) else x for x in (*self.arguments, *self.cotangents)]
            self._copies[id(arguments)] = arguments, copies  # which are those numbers' as long as they live
        else:
            _, copies = self._copies[id(arguments)]
            for mine, new in zip((*self.arguments, *self.cotangents), copies, strict=True):
                if self.framework.owns(mine):
                    mine[...] = new

    def _write(self, arguments, cotangents):
        for mine, new in zip(self._memory, (arguments, cotangents), strict=True):
            for x, y in zip(mine, new, strict=True):
                if isinstance(x, np.ndarray):
                    x[...] = np.swapaxes(y, 1, 2) if self._swaps(y) else y
        self.arguments, self.cotangents = (
            tuple(map(self.framework.refilled, *both))
            for both in zip((self.arguments, self.cotangents), self._memory, strict=True)
        )

    def back(self, y):
        """An output or gradient as a NumPy array in the operation's own axes."""
        y = np.asarray(self.framework.take(y))
        return np.swapaxes(y, 1, 2) if self.axes == "bthd" and y.ndim == 4 else y

    def entries(self, y):
        """Some numbers of an output or gradient, always the same ones, as a float64 vector."""
        at = np.linspace(0, np.prod(y.shape, dtype=int) - 1, ENTRIES).astype(np.int64)
        if not self.framework.streams or not self.framework.owns(y):
            y = np.asarray(self.framework.take(y))
            return np.asarray(y.reshape(-1)[at] if y.flags.c_contiguous else y.flat[at]).astype(np.float64)
        return self.framework.take(y.reshape(-1)[self.framework.put(at)]).astype(np.float64)

    def _swaps(self, x):
        return self.axes == "bthd" and isinstance(x, np.ndarray) and x.ndim == 4

    def _laid_out(self, x):
        if not isinstance(x, np.ndarray):
            return x
        return np.ascontiguousarray(np.swapaxes(x, 1, 2)) if self._swaps(x) else np.array(x)


class Problem:
    """What a provider is asked to compute.

    Attributes:
        operation: a public operation, a palette's "fit", or "model".
        dtype: name of the inputs' dtype, of a model's parameters.
        gradients: whether gradients are asked for.
        arguments, options, cotangents: NumPy arrays, for looking at shapes; a call takes what ``arrays`` gives.
        timed: whether it is the case itself, for which compiling pays, and not one of the oracle's many small inputs.
        device: "cpu" or "cuda": where it is to be computed.
    """

    def __init__(
        self, operation, arguments: tuple[Any, ...], options, cotangents=(), timed=False, dtype=None, device="cpu"
    ):
        self.operation, self.arguments, self.options = operation, arguments, options
        self.cotangents, self.gradients = cotangents, bool(cotangents)
        self.timed, self.device = timed, device
        typed = arguments[1:] if operation in ("patch_embed", "embedding") else arguments
        self.dtype = dtype or str(next(x.dtype for x in typed if isinstance(x, np.ndarray)))
        self.held: Any = None

    def arrays(self, framework="numpy", axes="bhtd"):
        """``Held``: the problem's arrays in a framework, dense, attention's in the order of ``axes``.

        Tensors are on the problem's device.
        """
        device = self.device if framework == "torch" else None
        self.held = Held(Framework(framework, device), axes, self.arguments, self.options, self.cotangents)
        return self.held

    def fill(self, arguments, cotangents, again=False):
        """New numbers of the same shapes in the arrays that the provider holds, as ``Held.fill`` has it."""
        self.held.fill(arguments, cotangents if self.gradients else (), again)

    def entries(self, returned):
        """Some numbers of all that ``forward`` or ``backward`` returned, as one vector."""
        many = returned if isinstance(returned, (tuple, list)) else (returned,)
        found = [self.held.entries(y) for y in many if y is not None and np.prod(y.shape, dtype=int)]
        return np.concatenate(found) if found else np.zeros(0)

    def outputs(self, returned):
        """What ``forward`` returned, as a tuple of NumPy arrays."""
        many = returned if isinstance(returned, (tuple, list)) else (returned,)
        return tuple(self.held.back(y) for y in many)

    def gradients_of(self, returned):
        """What ``backward`` returned, as a tuple of NumPy arrays or None."""
        return tuple(None if y is None else self.held.back(y) for y in returned)
