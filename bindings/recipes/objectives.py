"""What pre-training minimises: modules whose ``forward`` gives the loss of a batch, and how a batch is accumulated."""

import contextlib

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Objective(nn.Module):
    """A model and the loss of a batch of its inputs.

    ``prepare(sample, rng, training)`` makes the arrays of one sample, in any process; its randomness comes from ``rng``
    alone, and without ``training`` a picture is cut as the paper evaluates. ``options`` say what else makes a run what
    it is: it can only be taken up with the same.

    Attributes:
        tables: names of parameters in which ``saccade.embedding`` looks up and that nothing else reads.
    """

    tables: tuple = ()

    def __init__(self, model, **options):
        super().__init__()
        self.model, self.options = model, options

    def prepare(self, sample, rng, training=True):
        """The arrays of one sample as a tuple."""
        raise NotImplementedError

    def measures(self, *batch):
        """What is said of held-out samples, means over a batch by name."""
        return {"loss": self(*batch)}

    def backward(self, call, parts, scaled):
        """Add the gradients of the mean over ``parts`` of a batch; the loss.

        Args:
            call: this module, or a wrapper of it, whose ``forward`` is this one's.
            parts: the batch in pieces of one size, each a tuple of tensors.
            scaled: what a loss is multiplied by before gradients are taken (for float16), as a function.
        """
        total = 0.0
        for i, part in enumerate(parts):
            with synchronized(call, i == len(parts) - 1):
                loss = call(*part) / len(parts)
                scaled(loss).backward()
            total += loss.detach()
        return total

    def after_step(self):
        """What follows every step of the optimiser."""

    def facts(self):
        """What to save about the model beside its configuration."""
        return {}


class Mixed(nn.Module):
    """A module computed in 16 bits from parameters kept in float32, whose gradients are float32.

    Micikevicius et al., "Mixed Precision Training", 2018, section 3.1. Single numbers, such as CLIP's temperature,
    stay in float32. So do the module's ``tables``, of which ``saccade.embedding`` rounds the rows that it looks up:
    rounding a whole table, and its gradient, and widening that again would take longer than the look-up.
    """

    def __init__(self, module, dtype):
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, *inputs):
        narrow = {name: self._narrowed(name, p) for name, p in self.module.named_parameters()}
        return torch.func.functional_call(self.module, narrow, inputs)

    def _narrowed(self, name, p):
        if name not in self.module.tables:
            return p.to(self.dtype) if p.ndim else p
        table = p.view_as(p)
        table.dtype_of_rows = self.dtype
        return table


def synchronized(call, last):
    """A context in which gradients are averaged over ranks only for the last part of a batch."""
    if isinstance(call, FSDPModule):
        call.set_requires_gradient_sync(last)
        return contextlib.nullcontext()
    return contextlib.nullcontext() if last or not hasattr(call, "no_sync") else call.no_sync()
