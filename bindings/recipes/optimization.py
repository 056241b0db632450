"""Schedules, decay by parameter, and Scaling ViT's Adafactor; AdamW, SGD, averages and clipping are torch's own.

A schedule is a function of the step, from 0, that gives the factor of the peak learning rate: for torch's ``LambdaLR``.
"""

import math
from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor, Replicate


def _warm(step, warm_up):
    return min(1.0, (step + 1) / warm_up) if warm_up else 1.0


def cosine(steps, warm_up=0):
    """Linear to 1 over ``warm_up`` steps, then half a cosine to 0 at ``steps``."""
    return lambda step: _warm(step, warm_up) * 0.5 * (1 + math.cos(math.pi * _share(step, warm_up, steps)))


def linear(steps, warm_up=0):
    """Linear to 1 over ``warm_up`` steps, then linear to 0 at ``steps``."""
    return lambda step: _warm(step, warm_up) * (1 - _share(step, warm_up, steps))


def _share(step, warm_up, steps):
    """How much of the way from the end of the warm-up to the end is done, 0 … 1."""
    return min(max((step - warm_up) / max(steps - warm_up, 1), 0.0), 1.0)


def rsqrt(steps, warm_up=0, timescale=10_000, cool_down=0):
    """Linear to 1, then 1 / sqrt(1 + t / timescale) t steps later, times a line to 0 in the last ``cool_down``.

    Zhai et al. 2022, section 3.5: until the cool-down nothing depends on ``steps``, so that one run can be cooled down
    at several lengths.
    """

    def factor(step):
        down = min(1.0, max(steps - step, 0) / cool_down) if cool_down else 1.0
        return down * _warm(step, warm_up) / math.sqrt(1 + max(step - warm_up, 0) / timescale)

    return factor


def constant(steps, warm_up=0):
    """Linear to 1 over ``warm_up`` steps, then 1."""
    return lambda step: _warm(step, warm_up)


SCHEDULES = {"cosine": cosine, "linear": linear, "rsqrt": rsqrt, "constant": constant}


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How a run optimises; defaults as in most papers here.

    Args:
        optimizer: "adamw", "adafactor" or "sgd".
        peak: the learning rate after warm-up.
        betas, eps: Adam's; of Adafactor and SGD the first beta is the momentum.
        weight_decay: decoupled, times the learning rate.
        head_decay: that of the classifier's matrix, if it has one of its own (Scaling ViT's is 100 times the body's).
        decay_positions: whether position embeddings and other matrices that multiply nothing decay, too.
        schedule: a name in ``SCHEDULES``.
        warm_up, timescale, cool_down: steps of the schedule, the latter two of "rsqrt".
        clip: the largest norm of all gradients together; None leaves them.
        average: decay of the exponential moving average of the parameters; None keeps none.
    """

    optimizer: str = "adamw"
    peak: float = 1e-3
    betas: tuple = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    head_decay: float | None = None
    decay_positions: bool = False
    schedule: str = "cosine"
    warm_up: int = 0
    timescale: int = 10_000
    cool_down: int = 0
    clip: float | None = None
    average: float | None = None

    def __post_init__(self):
        for name, known in (("optimizer", ("adamw", "adafactor", "sgd")), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"Optimization: {name}={getattr(self, name)!r}, expected one of {', '.join(known)}")


def parameter_groups(model, weight_decay, head_decay=None, decay_positions=False):
    """Groups for an optimiser: the model's matrices with their decay, the classifier's with its own, others with 0.

    Matrices are what ``linear``, ``patch_embed`` and ``embedding`` multiply or look up, named "weight" in all models.
    """
    decays = {"body": weight_decay, "head": weight_decay if head_decay is None else head_decay, "none": 0.0}
    groups = {kind: {"params": [], "weight_decay": decay} for kind, decay in decays.items()}
    for name, parameter in model.named_parameters():
        *path, last = name.split(".")
        if parameter.ndim < 2 or not (last == "weight" or decay_positions):
            kind = "none"
        else:
            kind = "head" if path[-1:] in (["head"], ["classifier"]) else "body"
        groups[kind]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def optimizer_for(model, how):
    """The optimiser of an ``Optimization``."""
    groups = parameter_groups(model, how.weight_decay, how.head_decay, how.decay_positions)
    if how.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=how.peak, betas=how.betas, eps=how.eps, fused=True)
    if how.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=how.peak, momentum=how.betas[0])
    return Adafactor(groups, lr=how.peak, momentum=how.betas[0])


def scheduler_for(optimizer, how, steps):
    """torch's ``LambdaLR`` with the schedule of an ``Optimization``."""
    options = {"timescale": how.timescale, "cool_down": how.cool_down} if how.schedule == "rsqrt" else {}
    return torch.optim.lr_scheduler.LambdaLR(optimizer, SCHEDULES[how.schedule](steps, how.warm_up, **options))


def average_of(model, decay):
    """torch's ``AveragedModel``: the exponential moving average of parameters and statistics."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


class Adafactor(torch.optim.Optimizer):
    """Scaling ViT's Adafactor (Zhai et al. 2022, section 3.4, after Shazeer and Stern 2018), as in big_vision.

        β_t = min(0.999, 1 − t^−0.8), t from 1
        the second moment of a matrix is r c / mean(r), with r, c the averages of g² + 1e-30 over columns and rows;
        of what has no two sides of 32 or more, the plain average
        m = momentum m + (1 − momentum) g / sqrt(second moment), kept in bfloat16, not corrected at the beginning
        p = p − lr (m + weight_decay p)

    No clipping of updates, and no learning rate relative to a parameter's size, both of which torch's own Adafactor
    has. A packed projection of query, key and value is one matrix here.
    """

    def __init__(self, params, lr, momentum=0.9, weight_decay=0.0, least_factored=32):
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, least_factored=least_factored)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("Adafactor.step: a closure, expected None")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, parameter, gradient, group):
        state = self.state[parameter]
        rows, columns = _factored(gradient.shape, group["least_factored"])
        if not state:
            state["step"] = 0
            state["momentum"] = torch.zeros_like(gradient, dtype=torch.bfloat16)
            if rows is None:
                state["second"] = torch.zeros_like(gradient)
            else:
                state["by_row"] = torch.zeros_like(_mean(gradient, columns))
                state["by_column"] = torch.zeros_like(_mean(gradient, rows))
        state["step"] += 1
        share = 1 - min(0.999, 1 - state["step"] ** -0.8)
        squares = gradient.square() + 1e-30
        if rows is None:
            update = gradient * state["second"].lerp_(squares, share).rsqrt()
        else:
            by_row = state["by_row"].lerp_(_mean(squares, columns), share)
            by_column = state["by_column"].lerp_(_mean(squares, rows), share)
            update = gradient * (by_row / _mean(by_row, rows)).rsqrt() * by_column.rsqrt()
        momentum = state["momentum"].lerp_(update.bfloat16(), 1 - group["momentum"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(momentum.to(parameter.dtype), alpha=-group["lr"])

    def load_state_dict(self, state_dict):
        """As of any optimiser; the momentum, which torch widens to the parameter's dtype, is bfloat16 again."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["momentum"] = state["momentum"].bfloat16()


def _mean(x, axis):
    """The mean along one axis, which stays; of a tensor in shards, over those of all ranks."""
    mean = x.sum(axis, keepdim=True) / x.shape[axis]
    if not isinstance(mean, DTensor):
        return mean
    return mean.redistribute(placements=[Replicate() if one.is_partial() else one for one in mean.placements])


def _factored(shape, least):
    """The axes of the second largest and the largest side, or (None, None) if either is short."""
    order = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis))
    if len(order) < 2 or shape[order[-2]] < least:
        return None, None
    return order[-2], order[-1]
