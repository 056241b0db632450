"""The processes that train together: torch's own, started by ``torchrun``, or this one alone."""

import contextlib
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from saccade.torch.stages import Block


@dataclass(frozen=True)
class Ranks:
    """This process is ``rank`` of ``count`` and computes on ``device``."""

    rank: int
    count: int
    device: torch.device

    def wrapped(self, module):
        """The module under torch's ``DistributedDataParallel`` if there are several ranks."""
        if self.count == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(module, device_ids=devices)

    def sharded(self, module, dtype):
        """The module, the parameters of each of its transformer blocks and of the rest shared out by ``fully_shard``.

        They are whole, in ``dtype``, while they are computed with. Single numbers, which cannot be shared out, stay on
        every rank, and their gradients are averaged as those of the others are.
        """
        mesh = init_device_mesh(self.device.type, (self.count,))
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        scalars = {x for x in module.parameters() if not x.ndim}
        shard = partial(fully_shard, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=scalars)
        for block in [one for one in module.modules() if isinstance(one, Block)]:
            shard(block)
        for x in scalars:
            x.register_post_accumulate_grad_hook(self._average_gradient)
        return shard(module)

    def _average_gradient(self, x):
        x.grad.copy_(self.mean(x.grad))

    def gathered(self, value):
        """A small value of every rank, a list in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def first(self, call):
        """What a call gives on the first rank, a small value."""
        return self.gathered(call() if self.rank == 0 else None)[0]

    def mean(self, x):
        """The mean of a tensor over ranks."""
        if self.count > 1:
            distributed.all_reduce(x)
        return x / self.count

    def sums(self, array, number):
        """The sums over ranks of a NumPy array and of a number."""
        if self.count > 1:
            distributed.all_reduce(torch.from_numpy(array))
        return array, sum(self.gathered(number))

    def any(self, flag):
        """Whether the flag is set on any rank."""
        return bool(self.mean(torch.tensor(float(bool(flag)), device=self.device))) if self.count > 1 else bool(flag)

    def wait(self):
        """Until all ranks are here."""
        if self.count > 1:
            distributed.barrier()


@contextlib.contextmanager
def joined(device=None):
    """The ``Ranks`` of this process: those of ``torchrun``, those that the caller made, or one.

    ``device`` is "cpu" or "cuda"; a GPU if there is one and None is given.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    mine = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)
    made = "WORLD_SIZE" in os.environ and not distributed.is_initialized()
    if made:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    try:
        if distributed.is_initialized():
            yield Ranks(distributed.get_rank(), distributed.get_world_size(), mine)
            if made:
                distributed.barrier()  # whoever left first would close connections that others still use
        else:
            yield Ranks(0, 1, mine)
    finally:
        if made:
            distributed.destroy_process_group()
