"""The training loop that the demonstration's sections share."""

import torch

from saccade.recipes.optimization import Optimization, optimizer_for, scheduler_for


def train(model, loss_of, steps, *, peak, betas=(0.9, 0.95), weight_decay=0.0, warm_up=50, progress=iter, after=None):
    """AdamW under a cosine, gradients clipped to norm 1; returns the loss of every step.

    ``loss_of(step)`` gives the loss of one batch; ``after()`` is called when a step is done.
    """
    how = Optimization(peak=peak, betas=betas, weight_decay=weight_decay, decay_positions=True, warm_up=warm_up)
    optimizer = optimizer_for(model, how)
    scheduler = scheduler_for(optimizer, how, steps)
    losses = []
    model.train()
    for step in progress(range(steps)):
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if after is not None:
            after()
        losses.append(loss.item())
    model.eval()
    return losses
