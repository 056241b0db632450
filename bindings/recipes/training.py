"""The training loop that the demonstration's sections share."""

import math

import torch


def learning_rate(step, steps, peak, warm_up):
    """Linear warm-up, then a cosine to 0."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def train(model, loss_of, steps, *, peak, betas=(0.9, 0.95), weight_decay=0.0, warm_up=50, progress=iter, after=None):
    """Adam with decoupled weight decay on matrices, gradients clipped to norm 1; returns the loss of every step.

    ``loss_of(step)`` gives the loss of one batch; ``after()`` is called when a step is done.
    """
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=betas)
    losses = []
    model.train()
    for step in progress(range(steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, warm_up)
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if after is not None:
            after()
        losses.append(loss.item())
    model.eval()
    return losses
