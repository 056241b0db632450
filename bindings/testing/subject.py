"""The function under judgement: called on the oracle's inputs in its own framework, and watched while it runs."""

import contextlib
import inspect
import signal
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saccade import ops, reference
from saccade.families import GRADIENTS, PALETTE as PALETTE
from saccade.reference import palette
from saccade.testing.claims import Claims
from saccade.testing.explain import described
from saccade.testing.frameworks import Framework

LOSSES = ("softmax_cross_entropy", "sigmoid_cross_entropy", "linear_cross_entropy", "clip_loss", "siglip_loss")


class Misconduct(Exception):
    """What a function did that no right function does; the message says what, in one sentence."""


class TimeLimit(Exception):
    """A call took longer than it may."""


def names_of(operation):
    """The names of an operation's positional arguments."""
    home = palette if operation in PALETTE else ops
    parameters = inspect.signature(getattr(home, operation)).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def differentiable(operation, arguments, options):
    """For each gradient the array it is the gradient of, or None if that was not given or has none."""
    given = {**dict(zip(names_of(operation), arguments, strict=False)), **options}
    found = [given.get(name) for name in GRADIENTS[operation]]
    return [x if isinstance(x, np.ndarray) and x.dtype != np.uint8 else None for x in found]


def expected_outputs(operation, arguments, options):
    """Arrays of the shapes and dtypes that the outputs must have: those of the definition, as a tuple."""
    with np.errstate(all="ignore"):
        out = getattr(palette if operation in PALETTE else reference, operation)(*arguments, **options)
    return tuple(np.asarray(x) for x in (out if isinstance(out, tuple) else (out,)))


@dataclass
class Subject:
    """A function that claims to be an operation.

    Attributes:
        function: called with the operation's arguments and the options that an example sets.
        operation: which.
        framework: what its arrays are.
        claims: what it promises.
        vjp: for functions without autograd, ``vjp(arguments, options, cotangents)`` -> gradients, in the order of
            ``GRADIENTS``, all of them arrays of the framework.
        seconds: how long a call may take.
        differentiated: whether gradients are judged where they can be had.
        journal: called with a line about each input before the function is, which may end the process.
        called: (arguments, options, cotangents or None) of the latest call.
        raw: what the latest call returned, outputs and gradients, as arrays of the framework.
    """

    function: Any
    operation: str
    framework: Framework = field(default_factory=Framework)
    claims: Claims = field(default_factory=Claims)
    vjp: Any = None
    seconds: float = 30.0
    differentiated: bool = True
    journal: Any = None
    called: tuple = ((), {}, None)
    raw: tuple = ()

    def run(self, arguments, options, cotangents=None):
        """(outputs, gradients or None) as NumPy arrays, after a call that was watched.

        Raises:
            Misconduct: it raised, took too long, returned what it must not, or changed its inputs.
        """
        self.called = arguments, options, cotangents
        if self.journal is not None:
            self.journal(described(arguments, options))
        watched = (*arguments, *options.values(), *(cotangents or ()))
        before = [_memory(x) for x in watched]
        given, keywords = self._given(arguments, options)
        with self._watched():
            if cotangents is None:
                outputs, gradients = self._outputs(self.function(*given, **keywords)), None
            elif self.vjp is not None:
                outputs = self._outputs(self.function(*given, **keywords))
                gradients = self.vjp(given, keywords, tuple(map(self._put, cotangents)))
            else:
                outputs, gradients = self._differentiated(given, keywords, arguments, options, cotangents)
            self.framework.wait()
        if before != [_memory(x) for x in watched]:
            raise Misconduct("it changed an input, or memory beside a view that it was given")
        self.raw = tuple(x for x in (*outputs, *(gradients or ())) if x is not None)
        taken = tuple(self._take(x) for x in outputs)
        self._judge_kind(taken, arguments, options)
        self._judge_aliases(arguments, options, outputs)
        return taken, self._judged_gradients(gradients, arguments, options)

    @property
    def gradients(self):
        """Whether gradients are judged."""
        wanted = self.differentiated and self.claims.gradients and self.operation not in PALETTE
        return wanted and (self.vjp is not None or self.framework.name in ("torch", "jax"))

    def _given(self, arguments, options):
        given = arguments if self.claims.biases else tuple(x for x in arguments if x is not None)
        return tuple(map(self._put, given)), {name: self._put(x, name) for name, x in options.items()}

    def _put(self, x, name=None):
        if self.claims.axes == "bthd" and isinstance(x, np.ndarray) and x.ndim == 4 and name is None:
            x = np.swapaxes(x, 1, 2)
        return self.framework.put(x)

    def _take(self, y, name=None):
        y = np.asarray(self.framework.take(y))
        return np.swapaxes(y, 1, 2) if self.claims.axes == "bthd" and y.ndim == 4 and name != "bias" else y

    @contextlib.contextmanager
    def _watched(self):
        try:
            # NumPy's warnings are no matter of right and wrong, even where a user's tests make errors of them
            with time_limit(self.seconds), np.errstate(all="ignore"):
                yield
        except TimeLimit:
            raise Misconduct(f"it took longer than {self.seconds:g} s") from None
        except (Misconduct, KeyboardInterrupt):
            raise
        except BaseException as error:
            said = (str(error).splitlines() or [""])[0][:300]
            raise Misconduct(f"it raised {type(error).__name__}: {said}") from error

    def _outputs(self, returned) -> tuple[Any, ...]:
        outputs: Any = tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)
        for y in outputs:
            plain = isinstance(y, (np.generic, float)) and self.framework.name == "numpy"
            if not plain and not self.framework.owns(y):
                raise Misconduct(f"it returned {type(y).__name__}, expected an array of {self.framework.name}")
            expected, found = self.framework.device or "cpu", str(getattr(y, "device", ""))
            if self.framework.name == "torch" and found.partition(":")[0] != expected.partition(":")[0]:
                raise Misconduct(f"it returned a tensor on {found}, expected {expected}")
        return outputs

    def _differentiated(self, given, keywords, arguments, options, cotangents):
        names = names_of(self.operation)
        moving = [x is not None for x in differentiable(self.operation, arguments, options)]
        wanted = [name for name, moves in zip(GRADIENTS[self.operation], moving, strict=True) if moves]
        by_name = {**dict(zip(names, given, strict=False)), **keywords}

        def call(*values):
            now = {**by_name, **dict(zip(wanted, values, strict=True))}
            return self.function(*(now[name] for name in names[: len(given)]), **{name: now[name] for name in keywords})

        leaves = [by_name[name] for name in wanted]
        cotangents = [self._put(x) for x in cotangents]
        if self.framework.name == "torch":
            outputs, found = self._by_torch(call, leaves, cotangents)
        elif self.framework.name == "jax":
            returned, pull = self.framework.library.vjp(lambda *x: self._outputs(call(*x)), *leaves)
            outputs, found = self._outputs(returned), pull(tuple(cotangents))
        else:
            raise TypeError(f"gradients of a {self.framework.name} function need vjp=: it has no autograd")
        found = iter(found)
        return outputs, tuple(next(found) if moves else None for moves in moving)

    def _by_torch(self, call, leaves, cotangents):
        torch = self.framework.library
        leaves = [x.detach().requires_grad_() for x in leaves]
        outputs = self._outputs(call(*leaves))
        if len(outputs) != len(cotangents):
            raise Misconduct(f"it returned {len(outputs)} outputs, expected {len(cotangents)}")
        if not leaves:
            return outputs, ()
        for y in outputs:
            if not y.requires_grad:
                raise Misconduct("an output is cut off from the inputs: autograd finds no gradient")
        cotangents = [g.to(y.dtype).reshape(y.shape) for g, y in zip(cotangents, outputs, strict=True)]
        return outputs, torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True)

    def _judge_aliases(self, arguments, options, outputs):
        """Refuse outputs that lie in the memory of an input, where memory can be compared."""
        if self.framework.name == "numpy":
            inputs = [x for x in (*arguments, *options.values()) if isinstance(x, np.ndarray)]
            arrays = [np.asarray(y) for y in outputs]
        elif self.framework.name == "torch" and (self.framework.device or "cpu") == "cpu":
            inputs = [x for x in (*arguments, *options.values()) if isinstance(x, np.ndarray)]
            arrays = [self.framework.take(y) for y in outputs]
        else:
            return
        if any(x.size and y.size and np.may_share_memory(x, y) for x in inputs for y in arrays):
            raise Misconduct("it returned an array that lies in the memory of an input")

    def _judge_kind(self, outputs, arguments, options):
        expected = expected_outputs(self.operation, arguments, options)
        if len(outputs) != len(expected):
            raise Misconduct(f"it returned {len(outputs)} outputs, expected {len(expected)}")
        for y, like in zip(outputs, expected, strict=True):
            if y.shape != like.shape:
                raise Misconduct(f"it returned shape {y.shape}, expected {like.shape}")
            own = arguments[0].dtype if self.claims.losses == "input" and self.operation in LOSSES else like.dtype
            if y.dtype != own:
                raise Misconduct(f"it returned {y.dtype}, expected {own}")

    def _judged_gradients(self, gradients, arguments, options):
        if gradients is None:
            return None
        likes = differentiable(self.operation, arguments, options)
        if len(gradients) != len(likes):
            raise Misconduct(f"{len(gradients)} gradients came back, expected {len(likes)}")
        taken = []
        for name, gradient, like in zip(GRADIENTS[self.operation], gradients, likes, strict=True):
            y = None if gradient is None else self._take(gradient, name)
            if y is not None and like is not None and (y.shape, y.dtype) != (like.shape, like.dtype):
                raise Misconduct(
                    f"the gradient of {name} is {y.dtype} of shape {y.shape}, expected {like.dtype} {like.shape}"
                )
            taken.append(y)
        return tuple(taken)


def _memory(x):
    """The bytes that an array's memory holds, also beside the array itself where it is a view."""
    if not isinstance(x, np.ndarray):
        return repr(x)
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x.tobytes()


@contextlib.contextmanager
def time_limit(seconds):
    """Raise TimeLimit in the block after so many seconds; no limit outside the main thread, which gets no signals."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_):
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
