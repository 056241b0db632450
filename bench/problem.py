"""The inputs of a case as a provider sees them: arrays whose numbers the harness changes between two calls."""

from typing import Any

import numpy as np

from saccade.testing.frameworks import Framework


class Held:
    """Arguments, options and cotangents as arrays of one framework.

    A call reads them anew each time: arrays are written over in place, since what a graph captured is where they lie,
    but JAX's are exchanged. Options keep their numbers.
    """

    def __init__(self, framework, axes, arguments, options, cotangents):
        self.framework, self.axes, self.options = framework, axes, framework.put(options)
        self._memory = tuple(map(self._laid_out, arguments)), tuple(map(self._laid_out, cotangents))
        self.arguments, self.cotangents = (tuple(map(self.framework.put, x)) for x in self._memory)

    def fill(self, arguments, cotangents):
        """Write new numbers over the old ones."""
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
        typed = arguments[1:] if operation == "patch_embed" else arguments
        self.dtype = dtype or str(next(x.dtype for x in typed if isinstance(x, np.ndarray)))
        self.held: Any = None

    def arrays(self, framework="numpy", axes="bhtd"):
        """``Held``: the problem's arrays in a framework, dense, attention's in the order of ``axes``.

        Tensors are on the problem's device.
        """
        device = self.device if framework == "torch" else None
        self.held = Held(Framework(framework, device), axes, self.arguments, self.options, self.cotangents)
        return self.held

    def fill(self, arguments, cotangents):
        """New numbers of the same shapes in the arrays that the provider holds."""
        self.held.fill(arguments, cotangents if self.gradients else ())

    def outputs(self, returned):
        """What ``forward`` returned, as a tuple of NumPy arrays."""
        many = returned if isinstance(returned, (tuple, list)) else (returned,)
        return tuple(self.held.back(y) for y in many)

    def gradients_of(self, returned):
        """What ``backward`` returned, as a tuple of NumPy arrays or None."""
        return tuple(None if y is None else self.held.back(y) for y in returned)
