"""How an operation becomes a torch operator with gradients.

Forward and backward are ``torch.library`` operators, opaque to the compiler, each with a fake kernel that knows the
shapes. A static ``autograd.Function`` with ``setup_context`` joins them: ``register_autograd`` alone fails under
``torch.func.grad``.
"""

import inspect

import torch
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("saccade", "DEF")


def operator(name, fake):
    """Decorator: register a function as ``torch.ops.saccade.<name>`` with ``fake`` giving shapes and dtypes.

    Not by ``torch.library.custom_op``, whose layers of Python take some 5 us a call.
    """

    def register(function):
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"saccade::{name}", fake, lib=_LIBRARY)
        return function

    return register


class _AsGiven(inspect.Signature):
    """The signature of a forward that is called with all of its arguments, by position."""

    def bind(self, *arguments):
        return _Bound(arguments)


class _Bound:
    kwargs: dict = {}  # noqa: RUF012 (shared, as nobody writes to it)

    def __init__(self, arguments):
        self.args = arguments

    def apply_defaults(self):
        """There are none."""


class Differentiable(torch.autograd.Function):
    """An autograd function that keeps the signature of its forward, for which torch asks at every call."""

    def __init_subclass__(cls):
        super().__init_subclass__()
        cls.forward.__signature__ = _AsGiven(inspect.signature(cls.forward).parameters.values())


def applied(function, *arguments):
    """Call an autograd function, or its forward alone where nothing is differentiated, which takes half the time."""
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:  # which has no public name
        return function.apply(*arguments)
    return function.forward(*arguments)


class _FirstDerivative(Differentiable):
    """A backward operator, which refuses in one sentence to be differentiated again."""

    @staticmethod
    def forward(operator, *arguments):
        return operator(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.name = inputs[0].__name__.removesuffix("_backward")

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(f"saccade.{ctx.name} has no second derivative: do not differentiate its gradient")


def first_derivative(operator, *arguments):
    """Call a backward operator from the backward of an autograd function."""
    if torch.compiler.is_compiling():  # the compiler cannot trace one autograd function inside another, and refuses
        return operator(*arguments)  # second derivatives itself
    return applied(_FirstDerivative, operator, *arguments)


def absent(like):
    """What a backward operator returns for the gradient of an argument that was not given."""
    return like.new_empty(0)


def present(grad, argument):
    """The gradient that an operator returned, or None if the argument was not given."""
    return None if argument is None else grad


def own(operation, backend):
    """Refuse a named backend for an operation that is the framework's own."""
    if backend is not None:
        raise ValueError(
            f"{operation}: {backend=} does not take tensors, expected None or 'reference': it is torch's own"
        )
