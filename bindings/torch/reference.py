"""The definitions for tensors, by name: computed on the host, in NumPy, with the gradients of their own backward
functions."""

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

import torch

from saccade.families import GRADIENTS, family_of
from saccade.torch.arrays import from_numpy, to_numpy
from saccade.torch.registration import Differentiable


@torch.compiler.disable
def by_reference(operation, *arguments, **options):
    """An operation of ``saccade.reference`` on tensors of any device."""
    functions = importlib.import_module(f"saccade.reference.{family_of(operation)}")
    names = list(inspect.signature(getattr(functions, operation)).parameters)
    given = dict(zip(names, arguments, strict=False)) | options
    tensors = {name: x for name, x in given.items() if isinstance(x, torch.Tensor)}
    call = _Call(functions, operation, len(arguments), given, tuple(tensors))
    return _Reference.apply(call, *tensors.values())


@dataclass(frozen=True)
class _Call:
    functions: Any
    operation: str
    positional: int
    given: dict
    names: tuple  # of the tensors among what is given

    def forward(self, tensors):
        """What ``f_forward`` of the definition gives for those tensors."""
        arrays = self.given | {name: to_numpy(x.cpu()) for name, x in zip(self.names, tensors, strict=True)}
        values = list(arrays.values())[: self.positional]
        options = dict(list(arrays.items())[self.positional :])
        return getattr(self.functions, f"{self.operation}_forward")(*values, **options)


class _Reference(Differentiable):
    @staticmethod
    def forward(call, *tensors):
        out, _ = call.forward(tensors)
        device = tensors[0].device
        return tuple(from_numpy(y).to(device) for y in out) if isinstance(out, tuple) else from_numpy(out).to(device)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *grads):
        call, tensors = ctx.call, ctx.saved_tensors
        _, saved = call.forward(tensors)
        found = getattr(call.functions, f"{call.operation}_backward")(saved, *(to_numpy(g.cpu()) for g in grads))
        by_name = dict(zip(GRADIENTS[call.operation], found, strict=True))
        gradients = (by_name.get(name) for name in call.names)
        each = zip(gradients, tensors, strict=True)
        return None, *(None if g is None else from_numpy(g).to(x.device, x.dtype) for g, x in each)
