"""How much faster a whole training step is with our modules than with a plain PyTorch implementation of the same model.

A step is the forward pass, the loss, the gradients and AdamW's update, in float32, or with products in bfloat16 of
parameters in float32: by autocast in theirs, as our recipes do it in ours. Theirs are timm's ViT-B/16, open_clip's
ViT-B/32, and for ImageGPT-S blocks as below, since transformers' does not use SDPA.
"""

import contextlib

import torch
from torch import nn

from saccade.models import clip, imagegpt, vit
from saccade.recipes.objectives import PRECISIONS, Mixed
from saccade.recipes.pretrain_clip import Pairs
from saccade.recipes.pretrain_vit import Classes
from saccade.testing.peers import usable_torchvision
from saccade.torch import CLIP, ImageGPT, ViT

IMAGES = {"vit": 4, "clip": 16, "imagegpt": 1}  # in a step


class Block(nn.Module):
    """A block as a GPT has it."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x):
        b, n, e = x.shape
        query, key, value = self.qkv(self.norms[0](x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(b, n, e))
        return x + self.mlp(self.norms[1](x))


class Pixels(nn.Module):
    """ImageGPT's sizes: tokens b n -> logits b n k of each from those before."""

    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.colors + 1, config.width)  # the last begins every picture
        self.positions = nn.Parameter(0.01 * torch.randn(config.length, config.width))
        self.blocks = nn.Sequential(*(Block(config.width, config.heads) for _ in range(config.depth)))
        self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, config.colors, bias=False)

    def forward(self, tokens):
        start = torch.full_like(tokens[:, :1], self.embed.num_embeddings - 1)
        x = self.embed(torch.cat([start, tokens[:, :-1]], 1)) + self.positions
        return self.head(self.norm(self.blocks(x)))


def _step(module, loss_of, context=contextlib.nullcontext):
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with context():
            loss = loss_of()
        loss.backward()
        optimizer.step()

    return step


def _vit(mixed, dtype):
    import timm

    images, labels = torch.randn(IMAGES["vit"], 224, 224, 3), torch.randint(1000, (IMAGES["vit"],))
    theirs = timm.create_model("vit_base_patch16_224", num_classes=1000).train()
    channels_first = images.permute(0, 3, 1, 2).contiguous()
    ours = Classes(ViT(vit.variant("B/16", classes=1000)), [str(i) for i in range(1000)]).train()
    call = mixed(ours)
    return (theirs, lambda: nn.functional.cross_entropy(theirs(channels_first), labels)), (
        ours, lambda: call(images.to(dtype), labels),
    )  # fmt: skip


def _clip(mixed, dtype):
    import open_clip

    count = IMAGES["clip"]
    images, texts = torch.randn(count, 224, 224, 3), torch.randint(1, 49_000, (count, 77))
    theirs, loss_of = open_clip.create_model("ViT-B-32").train(), open_clip.loss.ClipLoss()
    channels_first = images.permute(0, 3, 1, 2).contiguous()
    ours = Pairs(CLIP(clip.variant("ViT-B/32")), "bytes").train()
    call = mixed(ours)
    return (theirs, lambda: loss_of(*theirs(channels_first, texts)[:3])), (
        ours, lambda: ours.loss(*call(images.to(dtype), texts)),
    )  # fmt: skip


def _imagegpt(mixed, _):
    config = imagegpt.variant("S")
    tokens = torch.randint(config.colors, (IMAGES["imagegpt"], config.length))
    theirs, ours = Pixels(config), ImageGPT(config).train()

    class Loss(nn.Module):
        tables = ("model.embed.weight",)

        def __init__(self):
            super().__init__()
            self.model = ours

        def forward(self, tokens):
            return self.model.loss(tokens)

    call = mixed(Loss())
    return (theirs, lambda: nn.functional.cross_entropy(theirs(tokens).flatten(0, 1), tokens.flatten())), (
        ours, lambda: call(tokens),
    )  # fmt: skip


def steps(model, dtype):
    """(their step, our step) of "vit", "clip" or "imagegpt"."""
    usable_torchvision()
    torch.manual_seed(0)
    dtype = PRECISIONS[dtype]
    narrow = dtype != torch.float32
    theirs, ours = {"vit": _vit, "clip": _clip, "imagegpt": _imagegpt}[model](
        lambda module: Mixed(module, dtype) if narrow else module, dtype
    )
    context = (lambda: torch.autocast("cpu", dtype)) if narrow else contextlib.nullcontext
    (their_module, their_loss), (our_module, our_loss) = theirs, ours
    return _step(their_module, their_loss, context), _step(our_module, our_loss)
