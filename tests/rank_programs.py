"""Programs that several processes run together, by torch.distributed on this machine: ``python rank_programs.py NAME``.

The processes are told of each other as torchrun would; what a program returns on rank 0 is saved in a file.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import torch

E = 5


def together(program, count, folder, *arguments, dies=False):
    """What ``program`` returns on rank 0 of ``count`` processes, or None if it is to die."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = Path(folder) / f"{program}.pt"
    common = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-P", "-W", "error", __file__, program, str(out), *map(str, arguments)]
    running = [
        subprocess.Popen(command, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(count)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in running]
    if dies:
        codes = {process.returncode for process in running}  # who waits for one that is dead fails otherwise
        assert -signal.SIGKILL in codes and 0 not in codes, "\n".join(errors)
        return None
    assert not any(process.returncode for process in running), "\n".join(errors)
    return torch.load(out, weights_only=True)


def embeddings(count, dtype=torch.float64):
    """The whole batch: images, texts, the factor and the bias."""
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(count, E, generator=generator, dtype=dtype) for _ in range(2)]
    return *(torch.nn.functional.normalize(x) for x in pairs), *torch.tensor([7.0, -2.0], dtype=dtype)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Knows how many elements the largest tensor has that was made under it."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def losses(ranks, each, gather=""):
    """Loss and gradients of both losses, and the largest tensor that was made."""
    from saccade.torch import ring

    ring.ROWS, found = 2, {}
    for name, loss_of in (("clip", ring.clip_loss), ("siglip", ring.siglip_loss)):
        whole = embeddings(ranks.count * int(each))
        mine = slice(ranks.rank * int(each), (ranks.rank + 1) * int(each))
        inputs = [whole[0][mine], whole[1][mine], *whole[2 : 3 + (name == "siglip")]]
        inputs = [x.clone().requires_grad_() for x in inputs]
        with Largest() as largest:
            loss = loss_of(*inputs, gather=bool(gather))
            (3 * loss).backward()
        gradients = [torch.cat(ranks.gathered(x.grad)) / ranks.count for x in inputs[:2]]
        gradients += [ranks.mean(x.grad) for x in inputs[2:]]
        found[name] = [loss.detach(), *gradients], largest.elements
    return found


def pretraining(ranks, source, out, changes="{}", dies_at=None, rounded=None):
    """A run of ``saccade pretrain clip``; by SGD, which does not enlarge what rounding changes."""
    from test_recipes_clip import tiny_run

    from saccade.recipes.objectives import Mixed
    from saccade.recipes.pretraining import Run

    if rounded:  # as with shards, where the gradient of a table is rounded as all others are
        Mixed._narrowed = lambda self, name, p: p.to(self.dtype) if p.ndim else p
    step_of = Run._step

    def step(run, batch):
        if run.step == int(dies_at or -1):
            os.kill(os.getpid(), signal.SIGKILL)
        return step_of(run, batch)

    Run._step = step
    tiny_run(source, out, **{"optimizer": "sgd", **json.loads(changes)})
    return {}


class Scaled(torch.nn.Module):
    """A matrix in parts that a rank may have none of, and a single number."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(12.0).view(3, 4) / 10)
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return ((self.weight @ x) ** 2).sum() * self.scale


def sharded_gradients(ranks):
    """Gradients of the mean over ranks of a module in shards, in two parts of a batch; and as they should be."""
    from saccade.recipes.objectives import synchronized

    inputs = [[torch.arange(4.0) + 3 * rank + part for part in range(2)] for rank in range(ranks.count)]
    whole = Scaled()
    (sum(whole(x) for each in inputs for x in each) / ranks.count).backward()
    module = ranks.sharded(Scaled(), torch.float32)
    for part, x in enumerate(inputs[ranks.rank]):
        with synchronized(module, part == 1):
            module(x).backward()
    return [[module.weight.grad.full_tensor(), module.scale.grad], [whole.weight.grad, whole.scale.grad]]


def adafactor(ranks):
    """Three steps of Adafactor on parameters that are whole, and on the same in shards, some of no rows."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from saccade.recipes.optimization import Adafactor

    mesh, found = init_device_mesh("cpu", (ranks.count,)), []
    for sharded in (False, True):
        generator = torch.Generator().manual_seed(0)
        made = [torch.randn(*shape, generator=generator) for shape in ((33, 40), (64, 32), (1, 5), (7,), (2, 40, 33))]
        place = (lambda x: distribute_tensor(x, mesh, [Shard(0)])) if sharded else (lambda x: x)
        parameters = [torch.nn.Parameter(place(x)) for x in made]
        optimizer = Adafactor(parameters, lr=0.1, weight_decay=0.1)
        for _ in range(3):
            for x in parameters:
                x.grad = place(torch.randn(*x.shape, generator=generator))
            optimizer.step()
        found.append([x.detach().full_tensor() if sharded else x.detach() for x in parameters])
    return found


def palette(ranks, source, out):
    """A palette fitted by all ranks."""
    from saccade.recipes import palettes

    fitted, skipped = palettes.fit(source, out, colors=8)
    return {"centers": torch.from_numpy(fitted.centers), "skipped": skipped}


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))
    from saccade.recipes.ranks import joined

    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        result = globals()[sys.argv[1]](ranks, *sys.argv[3:])
        if ranks.rank == 0:
            torch.save(result, sys.argv[2])
    # as Python ends, one of torch's threads aborts the process once in 20 times after collectives of DTensors
    os._exit(0)
