"""What of a run a checkpoint holds, and how a run takes it up, also on another number of ranks."""

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # by parameters' names, so that ranks may share them anew


def state_of(run):
    """(tensors by name, the model's and the average's own; the rest) of a ``saccade.recipes.pretraining.Run``."""
    own = {"place": run.loader.place, "skipped": run.loader.skipped.count, "random": random_state(run.ranks.device)}
    rest = {
        "settings": run.settings, "step": run.step, "ranks": run.ranks.gathered(own),
        "scheduler": run.scheduler.state_dict(), "scaler": run.scaler.state_dict(), "optimizer": {},
    }  # fmt: skip
    tensors = {f"objective.{name}": x for name, x in run.objective.state_dict().items()}
    if run.average is not None:
        tensors |= {f"average.{name}": x for name, x in run.average.state_dict().items()}
    for name, x in get_optimizer_state_dict(run.objective, run.optimizer, options=_FLAT).items():
        if isinstance(x, torch.Tensor):
            tensors[f"optimizer.{name}"] = x
        else:
            rest["optimizer"][name] = x
    return tensors, rest


def take_up(run, rest):
    """Let a run that was just made go on from its newest checkpoint, of which ``rest`` is read already."""
    tensors, _ = state_of(run)
    run.checkpoints.read(tensors)
    found = {name.removeprefix("optimizer."): x for name, x in tensors.items() if name.startswith("optimizer.")}
    set_optimizer_state_dict(run.objective, run.optimizer, found | rest["optimizer"], options=_FLAT)
    run.scheduler.load_state_dict(rest["scheduler"])
    run.scaler.load_state_dict(rest["scaler"])
    before, rank, count = rest["ranks"], run.ranks.rank, run.ranks.count
    if len(before) == count:
        run.loader.place, run.loader.skipped.count = tuple(before[rank]["place"]), before[rank]["skipped"]
        set_random_state(before[rank]["random"], run.ranks.device)
        return
    epoch, done = min(tuple(one["place"]) for one in before)  # all were as far, but for samples that were skipped
    run.loader.place = epoch, done * len(before) // count
    run.loader.skipped.count = sum(one["skipped"] for one in before) if rank == 0 else 0
    torch.manual_seed(int(np.random.SeedSequence((run.training.seed, run.step, rank)).generate_state(1)[0]))


def random_state(device):
    """The state of torch's generators, for this rank."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state, device):
    """Take up a state of ``random_state``."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
