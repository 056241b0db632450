"""From a contract to a public function: its checks are run, then the first array says who computes it.

    NumPy  -> saccade.kernels.numba            (or saccade.reference, by name)
    torch  -> torch.ops.saccade.*, on the CPU numba, on a GPU Triton (CuPy or cuDNN where that is faster, or by name);
              or saccade.reference, by name
    CuPy   -> saccade.kernels.cupy

A ``backend=`` that is named is used or raises.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from saccade import checks
from saccade.arrays import framework_of


class Saved(NamedTuple):
    """What ``f_forward`` kept for ``f_backward``."""

    backward: Any
    values: tuple
    outputs: tuple


def operation(check) -> Callable[..., Any]:
    """The public function of the operation whose contract ``check`` states."""
    name, names = check.__name__, tuple(_positional(check))

    @functools.wraps(check)
    def public(*arguments, backend=None, **options):
        arguments, options = _by_position(names, arguments, options)
        check(*arguments, **options)
        return _implementation(name, arguments[0], backend)(*arguments, **options)

    public.__signature__ = _with_backend(check)  # pyright: ignore[reportAttributeAccessIssue]
    return public


def gradient_of(public) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``(f_forward, f_backward)`` of an operation, for NumPy and CuPy arrays (torch has autograd)."""
    check = public.__wrapped__
    name, names = check.__name__, tuple(_positional(check))

    def forward(*arguments, backend=None, **options):
        arguments, options = _by_position(names, arguments, options)
        check(*arguments, **options)
        if framework_of(arguments[0]) == "torch":
            raise TypeError(f"{name}_forward: torch tensors have autograd; call saccade.{name} and .backward()")
        out, saved = _implementation(f"{name}_forward", arguments[0], backend)(*arguments, **options)
        backward = _implementation(f"{name}_backward", arguments[0], backend)
        return out, Saved(backward, saved, out if isinstance(out, tuple) else (out,))

    def backward(saved, *cotangents):
        checks.check_cotangents(f"{name}_backward", saved.outputs, cotangents)
        return saved.backward(saved.values, *cotangents)

    forward.__name__ = forward.__qualname__ = f"{name}_forward"
    forward.__doc__ = f"``{name}`` and what ``{name}_backward`` needs: (out, saved)."
    forward.__signature__ = _with_backend(check)  # pyright: ignore[reportFunctionMemberAccess]
    backward.__name__ = backward.__qualname__ = f"{name}_backward"
    backward.__doc__ = (
        f"Gradients of ``{name}`` from ``saved`` and the gradient of each output: a tuple, one per differentiable\n"
        "    array argument in argument order, None where the argument was not given."
    )
    return forward, backward


def _positional(check):
    return [n for n, p in inspect.signature(check).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]


def _with_backend(check):
    signature = inspect.signature(check)
    backend = inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY, default=None)
    return signature.replace(parameters=[*signature.parameters.values(), backend])


def _by_position(names, arguments, options):
    """Array arguments given by name, moved to their positions."""
    missing = names[len(arguments) :]
    given = tuple(options[n] for n in missing if n in options)
    return (*arguments, *given), {n: x for n, x in options.items() if n not in missing}


def _implementation(name, x, backend):
    framework = framework_of(x)
    if framework == "torch":
        return _torch_implementation(name, backend)
    if framework == "cupy":
        from saccade import cupy as binding
    else:
        from saccade import numpy as binding
    return binding.implementation(name, backend)


def _torch_implementation(name, backend) -> Any:
    if backend == "reference":
        from saccade.torch.reference import by_reference

        return functools.partial(by_reference, name)
    # A plain import: torch.compile traces it, unlike importlib.import_module or a cached look-up.
    from saccade.torch import ops as torch_ops

    return functools.partial(getattr(torch_ops, name), backend=backend)
