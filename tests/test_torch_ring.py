"""Contrastive losses of a batch on several ranks: the whole batch's value and gradients, in the memory of a share."""

import pytest
import torch
from rank_programs import E, embeddings, together

import saccade
from saccade.torch import ring


@pytest.mark.parametrize("gather", ["", "gather"])
def test_ranks_together_have_the_loss_and_gradients_of_the_whole_batch(tmp_path, gather):
    each = 4
    found = together("losses", 3, tmp_path, each, gather)
    for name, loss_of, inputs in (
        ("clip", saccade.clip_loss, embeddings(12)[:3]),
        ("siglip", saccade.siglip_loss, embeddings(12)),
    ):
        inputs = [x.requires_grad_() for x in inputs]
        loss = loss_of(*inputs)
        (3 * loss).backward()
        (mine, *gradients), largest = found[name]
        torch.testing.assert_close(mine, loss.detach(), rtol=1e-12, atol=0)
        for gradient, x in zip(gradients, inputs, strict=True):
            torch.testing.assert_close(gradient, x.grad, rtol=1e-10, atol=1e-13)
        assert largest <= (12 * E if gather else max(each * E, 2 * each)) < 12 * 12


def test_one_process_needs_no_ring():
    inputs = embeddings(6)
    assert ring.clip_loss(*inputs[:3]) == saccade.clip_loss(*inputs[:3])
    assert ring.siglip_loss(*inputs) == saccade.siglip_loss(*inputs)
