"""Schedules by hand, who decays, and Adafactor against timm's."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from support import assert_close64

from saccade.models import clip, imagegpt, vit
from saccade.recipes.optimization import (
    Adafactor,
    Optimization,
    average_of,
    constant,
    cosine,
    linear,
    optimizer_for,
    parameter_groups,
    rsqrt,
    scheduler_for,
)
from saccade.testing.peers import usable_torchvision
from saccade.torch import CLIP, ImageGPT, ViT


def test_schedules_warm_up_and_end():
    for schedule in (cosine(100, 10), linear(100, 10), rsqrt(100, 10), constant(100, 10)):
        assert math.isclose(schedule(0), 0.1) and schedule(9) == schedule(10) == 1.0
    assert math.isclose(cosine(100, 10)(55), 0.5) and cosine(100, 10)(100) < 1e-9 and cosine(100, 10)(120) < 1e-9
    assert math.isclose(linear(100, 10)(55), 0.5) and linear(100)(75) == 0.25 and linear(100)(130) == 0
    assert constant(100, 10)(99) == 1 and cosine(10)(0) == 1


def test_rsqrt_by_hand():
    schedule = rsqrt(100_000, 1000, timescale=2000, cool_down=10_000)
    assert schedule(499) == 0.5 and math.isclose(schedule(7000), 0.5)  # 1 / sqrt(1 + 6000 / 2000)
    assert math.isclose(schedule(95_000), 0.5 / math.sqrt(48)) and schedule(100_000) == 0
    longer = rsqrt(500_000, 1000, timescale=2000, cool_down=10_000)
    assert [schedule(step) for step in range(0, 90_000, 999)] == [longer(step) for step in range(0, 90_000, 999)]


def names(model, group):
    mine = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in mine}


def test_who_decays():
    config = vit.ViTConfig(width=8, depth=1, heads=2, image_size=8, patch_size=4, classes=3, pooling="map")
    model = ViT(config)
    body, head, none = parameter_groups(model, 0.03, 3.0)
    assert [group["weight_decay"] for group in (body, head, none)] == [0.03, 3.0, 0.0]
    assert names(model, head) == {"head.weight"}
    assert {"embed.weight", "blocks.0.mlp.fc1.weight", "pool.kv.weight"} <= names(model, body)
    assert {"embed.positions", "pool.probe", "head.bias", "blocks.0.norm1.scale"} <= names(model, none)
    assert sum(len(group["params"]) for group in (body, head, none)) == len(list(model.parameters()))
    assert "embed.positions" in names(model, parameter_groups(model, 0.1, decay_positions=True)[0])
    pixels = ImageGPT(imagegpt.ImageGPTConfig(width=8, depth=1, heads=2, colors=8, length=4, classes=2))
    assert names(pixels, parameter_groups(pixels, 0.1, 3.0)[1]) == {"head.weight", "classifier.weight"}
    pair = CLIP(
        clip.CLIPConfig(
            embed=8,
            image=clip.image_config(width=8, depth=0, heads=1, image_size=8, patch_size=4),
            text=clip.TextConfig(width=8, depth=0, heads=1, vocabulary=9, context=4),
        )
    )
    body, none = parameter_groups(pair, 0.2, decay_positions=True)
    assert {"text.embed.weight", "text.embed.positions", "image_projection.weight"} <= names(pair, body)
    assert {"logit_scale", "image.embed.class_token", "text.pool.norm.bias"} <= names(pair, none)


def problem():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 40, 5), torch.nn.Flatten(), torch.nn.Linear(40 * 16, 33)).double()
    batches = [torch.randn(6, 3, 8, 8, dtype=torch.float64) for _ in range(6)]

    def step(net, optimizer, x):
        optimizer.zero_grad()
        (net(x) ** 2).sum().backward()
        optimizer.step()

    return net, batches, step


def test_adafactor_is_timms():
    usable_torchvision()
    from timm.optim.adafactor_bv import AdafactorBigVision

    mine, batches, step = problem()
    theirs = copy.deepcopy(mine)
    own = Adafactor(mine.parameters(), lr=0.02, weight_decay=0.1)
    other = AdafactorBigVision(theirs.parameters(), lr=0.02, weight_decay=0.1, min_dim_size_to_factor=32)
    for x in batches:
        step(mine, own, x)
        step(theirs, other, x)
    kinds = [set(own.state[p]) for p in mine.parameters()]
    assert kinds[2] == {"step", "momentum", "by_row", "by_column"} and kinds[0] == {"step", "momentum", "second"}
    for x, y in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert_close64(x.detach(), y.detach(), bound=1e-9)


@pytest.mark.parametrize("name", ["adafactor", "adamw", "sgd"])
def test_an_optimizer_goes_on_from_its_state(name):
    net, batches, step = problem()
    how = Optimization(optimizer=name, peak=0.01, weight_decay=0.1, warm_up=3, schedule="rsqrt", cool_down=2)
    twin, optimizer = copy.deepcopy(net), optimizer_for(net, how)
    scheduler = scheduler_for(optimizer, how, 6)
    for x in batches[:3]:
        step(net, optimizer, x)
        scheduler.step()
    resumed = copy.deepcopy(net)
    optimizer2 = optimizer_for(resumed, how)
    scheduler2 = scheduler_for(optimizer2, how, 6)
    optimizer2.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    scheduler2.load_state_dict(scheduler.state_dict())
    for x in batches[3:]:
        for one, its, schedule in ((net, optimizer, scheduler), (resumed, optimizer2, scheduler2)):
            step(one, its, x)
            schedule.step()
    for x, y, before in zip(net.parameters(), resumed.parameters(), twin.parameters(), strict=True):
        assert torch.equal(x, y) and not torch.equal(x, before)


def test_an_average_by_hand():
    net = torch.nn.Linear(1, 1, bias=False)
    average = average_of(net, 0.9)
    for value in (1.0, 2.0, 4.0):
        net.weight.data.fill_(value)
        average.update_parameters(net)
    # 1, then 0.9 · 1 + 0.1 · 2, then 0.9 of that + 0.1 · 4
    assert math.isclose(average.module.weight.item(), 0.9 * 1.1 + 0.4, rel_tol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="optimizer='adam', expected one of adamw, adafactor, sgd"):
        Optimization(optimizer="adam")
    with pytest.raises(ValueError, match="schedule='step', expected one of cosine"):
        replace(Optimization(), schedule="step")
