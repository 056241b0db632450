"""The loop of pre-training: one for all models, that takes up an interrupted run exactly where it was."""

import contextlib
import math
import signal
import threading
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from saccade.recipes import resuming, saved
from saccade.recipes.checkpoints import Checkpoints
from saccade.recipes.data import Skipped, open_source
from saccade.recipes.loading import Loader, once
from saccade.recipes.logs import Log
from saccade.recipes.objectives import PRECISIONS, Mixed
from saccade.recipes.optimization import Optimization, average_of, optimizer_for, scheduler_for
from saccade.recipes.progress import progress_bar
from saccade.recipes.ranks import joined
from saccade.torch.arrays import to_numpy
from saccade.torch.stages import Model


@dataclass(frozen=True, kw_only=True)
class Training:
    """A run: how long, on how much at a time, and how.

    Args:
        steps: of the optimiser; None if ``epochs`` says how often each sample is seen.
        epochs: an alternative to ``steps`` for sources that know their length.
        batch: samples a step, over all ranks.
        parts: pieces in which a rank computes its share of a batch, so that it fits in memory; the loss is the same.
        shard: whether ranks share out parameters, gradients and the optimiser's state (``fully_shard``), instead of
            each holding all.
        recompute: whether activations within blocks are computed again in the backward pass instead of kept: the same
            numbers from less memory.
        precision: "float32", or "bfloat16" or "float16" for 16-bit computation with float32 parameters.
        optimization: an ``Optimization``.
        seed: of everything that is drawn.
    """

    steps: int | None = None
    epochs: float | None = None
    batch: int
    parts: int = 1
    shard: bool = False
    recompute: bool = False
    precision: str = "float32"
    optimization: Optimization = field(default_factory=Optimization)
    seed: int = 0

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"Training: {self.precision=}, expected one of {', '.join(PRECISIONS)}")
        if self.shard and self.precision == "float16":
            raise ValueError("Training: shard=True with precision='float16', expected float32 or bfloat16")

    def changed(self, training, optimization):
        """Another, with changes to its fields and to those of its optimisation, two dictionaries."""
        changes = dict(training or {})
        if changes.get("steps") is None and changes.get("epochs") is not None:
            changes["steps"] = None  # the epochs asked for, not a preset's steps
        how = replace(self.optimization, **(optimization or {}))
        return replace(self, **{"optimization": how, **changes})

    def length(self, source):
        """How many steps."""
        if self.steps is not None:
            return self.steps
        if self.epochs is None or not hasattr(source, "__len__"):
            raise ValueError(f"{source.path} does not say how many samples it has: give the number of steps")
        return max(1, round(self.epochs * len(source) / self.batch))

    def share(self, ranks):
        """How many samples of a batch are one rank's."""
        if self.batch % (ranks * self.parts):
            raise ValueError(f"{self.batch=} does not divide into {ranks} ranks of {self.parts} parts")
        return self.batch // ranks


def preset_of(presets, name):
    """The preset of that name."""
    if name not in presets:
        raise ValueError(f"preset {name!r}, expected one of {', '.join(presets)}")
    return presets[name]


class Stopped(SystemExit):
    """A run that was asked to stop has saved what it had."""


def pretrain(
    objective, source, out, training, *, held_out=None, workers=0, device=None, log_every=10, save_every=1000,
    console=None,
):  # fmt: skip
    """Train an ``Objective`` on a source, from the checkpoint in the folder ``out`` if there is one.

    Writes ``log.jsonl``, ``checkpoints`` every ``save_every`` steps, and ``model.safetensors`` in the end. An
    interrupted run goes on with the same numbers, on CPUs bit for bit; also on another number of ranks, but for what is
    drawn at random while it computes. SIGTERM saves and leaves.

    Args:
        objective: what to minimise.
        source: of ``saccade.recipes.data`` or ``shards``.
        out: the folder.
        training: a ``Training``.
        held_out: a path of samples to judge the model on at every checkpoint, as ``open_source`` takes it, or None.
        workers: processes that read pictures.
        device: "cpu" or "cuda"; a GPU if there is one.
        log_every, save_every: steps.
        console: a rich console.

    Returns:
        The trained model, in evaluation mode.
    """
    with joined(device) as ranks:
        held_out = None if held_out is None else open_source(held_out)
        run = Run(objective, source, held_out, Path(out), training, workers, ranks, console)
        with contextlib.closing(run):
            return run.train(log_every, save_every)


class Run:
    """A run of ``pretrain``: everything that a checkpoint holds."""

    def __init__(self, objective, source, held_out, out, training, workers, ranks, console):
        self.objective, self.out, self.training, self.ranks = objective, out, training, ranks
        self.held_out = held_out
        self.console = console or Console(quiet=ranks.rank > 0)
        self.steps = training.length(source)
        share, rank, seed = training.share(ranks.count), ranks.rank, training.seed
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed * 1000 + rank)
        objective.to(ranks.device).train()
        for module in objective.modules():
            if isinstance(module, Model):
                module.recomputes = training.recompute
        dtype, how = PRECISIONS[training.precision], training.optimization
        self.average = None if how.average is None else average_of(objective.model, how.average)
        self.sharded = training.shard and ranks.count > 1
        if self.sharded:
            self.call = ranks.sharded(objective, dtype)
            register_fsdp_forward_method(objective, "measures")
            if self.average is not None:
                ranks.sharded(self.average, None)
        else:
            self.call = ranks.wrapped(objective if dtype == torch.float32 else Mixed(objective, dtype))
        self.optimizer = optimizer_for(objective, how)
        self.scheduler = scheduler_for(self.optimizer, how, self.steps)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=dtype == torch.float16)
        # what a GPU, a number of parts, sharding or recomputation changes is rounding alone
        kept = {k: v for k, v in asdict(training).items() if k not in ("parts", "shard", "recompute")}
        self.settings = kept | {"steps": self.steps}
        self.settings["optimization"] = {k: str(v) for k, v in asdict(how).items()}
        self.settings |= {"model": str(objective.model.config), "objective": str(objective.options)}
        self.checkpoints = Checkpoints(out / "checkpoints", ranks)
        state = self.checkpoints.rest(self.settings)
        self.step = 0 if state is None else state["step"]
        self.loader = Loader(
            source, objective.prepare, share, seed=seed, skipped=Skipped(self._skipped), workers=workers, rank=rank,
            ranks=ranks.count,
        )  # fmt: skip
        if state is not None:
            resuming.take_up(self, state)
        self.log = Log(out, self.step, self.console) if rank == 0 else None

    def train(self, log_every, save_every):
        """Take the steps that are left; the model."""
        batches = iter(self.loader)
        self._event("continues" if self.step else "begins", steps=self.steps)
        with _asked_to_stop() as asked, progress_bar("Training", self.console) as progress, contextlib.closing(batches):
            for _ in progress(range(self.step, self.steps)):
                loss, norm = self._step(next(batches))
                self.step += 1
                if self.step % log_every == 0 or self.step == self.steps:
                    self._report(loss, norm, progress)
                stop = self.ranks.any(asked)
                if stop or self.step % save_every == 0 or self.step == self.steps:
                    self._judge()
                    self._save()
                if stop:
                    self.checkpoints.finish()
                    self._event("stops", signal=signal.SIGTERM.name)
                    raise Stopped(128 + signal.SIGTERM)
        self._finish()
        return self.objective.model.eval()

    def _step(self, batch):
        tensors = [torch.from_numpy(x).to(self.ranks.device) for x in batch]
        parts = list(zip(*(x.chunk(self.training.parts) for x in tensors), strict=True))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.backward(self.call, parts, self.scaler.scale)
        self.scaler.unscale_(self.optimizer)
        largest = self.training.optimization.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.objective.parameters(), largest)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.objective.after_step()
        if self.average is not None:
            self.average.update_parameters(self.objective.model)
        return loss, norm

    def _report(self, loss, norm, progress):
        loss = self.ranks.mean(loss.clone()).item()
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss of step {self.step} is {loss}: a lower learning rate or a longer warm-up may help"
            )
        progress.note(f"loss {loss:.4f}")
        if self.log is not None:
            rate = self.scheduler.get_last_lr()[0]
            self.log.scalars(self.step, loss=loss, learning_rate=rate, gradient_norm=norm.item())

    @torch.no_grad()
    def _judge(self):
        """Log the means of the objective's measures over the held-out samples; the first rank takes them all, and where
        it has a shard of the model alone, all ranks do."""
        if self.held_out is None or not (self.sharded or self.ranks.rank == 0):
            return
        self.objective.eval()
        prepare, sums, count = partial(self.objective.prepare, training=False), {}, 0
        skipped, share = Skipped(self._skipped), self.loader.batch
        for batch in once(self.held_out, self.held_out.in_order(), prepare, share, skipped=skipped):
            count += len(batch[0])
            found = self.objective.measures(*(torch.from_numpy(x).to(self.ranks.device) for x in batch))
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + len(batch[0]) * value.item()
        self.objective.train()
        if not count:
            raise ValueError(f"{self.held_out.path}: none of its samples can be used")
        means = {f"held_out_{name}": total / count for name, total in sums.items()}
        if self.log is not None:
            self.log.scalars(self.step, **means)
        self.console.print(f"step {self.step}: " + ", ".join(f"{name} {x:.4f}" for name, x in means.items()))

    def _save(self):
        tensors, rest = resuming.state_of(self)
        self.checkpoints.write(self.step, tensors, rest)

    def _finish(self):
        self.checkpoints.finish()
        skipped = sum(self.ranks.gathered(self.loader.skipped.count))
        facts = self.objective.facts() | {"samples": self.steps * self.training.batch}
        average = None if self.average is None else self.average.module
        for name, module in (("model", self.objective.model), ("average", average)):
            if module is not None:
                whole = StateDictOptions(full_state_dict=True, cpu_offload=True)  # on the first rank, elsewhere nothing
                parameters = {n: to_numpy(x) for n, x in get_model_state_dict(module, options=whole).items()}
                if self.ranks.rank == 0:
                    saved.save(module, self.out / f"{name}.safetensors", parameters=parameters, **facts)
        self._event("ends", skipped=skipped)
        self.ranks.wait()

    def _skipped(self, name, reason):
        if self.log is not None:
            self.log.event(self.step, "skipped", name=name, reason=reason)
        else:
            print(f"rank {self.ranks.rank} skipped {name}: {reason}")

    def _event(self, event, **facts):
        if self.log is not None:
            self.log.event(self.step, event, **facts)

    def close(self):
        """Finish the checkpoint that was begun, and write the log out."""
        try:
            self.checkpoints.close()
        finally:
            if self.log is not None:
                self.log.close()


@contextlib.contextmanager
def _asked_to_stop():
    """A list that is no longer empty once SIGTERM came; elsewhere than in the main thread it stays so."""
    asked = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
