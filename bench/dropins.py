"""How much faster other libraries' models are with our drop-ins: ``python -m saccade.bench.dropins dropins-cpu.md``.

Each case is run with and without, in turn, by the same model on the same batch; the ratio is the median over rounds of
how much longer it takes without, with the smallest and the largest. Weights are random.
"""

import contextlib
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from saccade import environment
from saccade.files import replacing
from saccade.testing.peers import usable_torchvision

ROUNDS = 7


def _step(model, loss_of):
    """A training step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss_of().backward()
        optimizer.step()

    return step


def _timm(name, batch):
    """(a training step, what to do it in)."""
    import timm
    import torch

    from saccade.interop import timm as of_timm, torch as of_torch

    model = timm.create_model(name, num_classes=1000).train()
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
    step = _step(model, lambda: torch.nn.functional.cross_entropy(model(images), labels))

    @contextlib.contextmanager
    def with_ours():
        with of_timm.patched(model), of_torch.activated():
            yield

    return step, with_ours


def _open_clip(batch):
    import open_clip
    import torch

    from saccade.interop import open_clip as of_open_clip, torch as of_torch

    model = open_clip.create_model("ViT-B-32").train()
    images, tokens = torch.randn(batch, 3, 224, 224), torch.randint(1, 49_000, (batch, 77))
    losses = {False: open_clip.loss.ClipLoss(), True: of_open_clip.ClipLoss()}
    chosen = {"ours": False}
    step = _step(model, lambda: losses[chosen["ours"]](*model(images, tokens)[:3]))

    @contextlib.contextmanager
    def with_ours():
        chosen["ours"] = True
        with of_torch.patched(model), of_torch.activated():
            yield
        chosen["ours"] = False

    return step, with_ours


def _transformers(batch):
    import torch
    import transformers

    from saccade.interop import torch as of_torch, transformers as of_transformers

    of_transformers.register()
    model = transformers.AutoModel.from_config(transformers.ViTConfig(), attn_implementation="sdpa").eval()
    images = torch.randn(batch, 3, 224, 224)

    @torch.inference_mode()
    def forward():
        return model(pixel_values=images)

    @contextlib.contextmanager
    def with_ours():
        model.set_attn_implementation("saccade")
        with of_torch.patched(model):
            yield
        model.set_attn_implementation("sdpa")

    return forward, with_ours


def _imagegpt(batch, length):
    import torch
    import transformers

    from saccade.interop import transformers as of_transformers

    config = transformers.ImageGPTConfig(n_embd=512, n_layer=24, n_head=8)
    model: Any = transformers.ImageGPTForCausalImageModeling(config).eval()
    start = torch.full((batch, 1), config.vocab_size - 1)
    options = dict(max_new_tokens=length, do_sample=False, pad_token_id=0)
    return lambda: model.generate(start, **options), of_transformers.registered


CASES = {
    "timm ViT-S/16, training step, batch 8": lambda: _timm("vit_small_patch16_224", 8),
    "timm ViT-B/16, training step, batch 4": lambda: _timm("vit_base_patch16_224", 4),
    "open_clip ViT-B/32, training step, batch 16": lambda: _open_clip(16),
    "transformers ViT-B/16, forward, batch 8": lambda: _transformers(8),
    "transformers ImageGPT-S, 64 pixels drawn, batch 4": lambda: _imagegpt(4, 64),
}


def compared(call, with_ours, rounds=ROUNDS):
    """How many times as fast a call is with ours, of each round after the first."""
    found = []
    for i in range(rounds + 1):
        start = perf_counter()
        call()
        between = perf_counter()
        with with_ours():
            entered = perf_counter()
            call()
            end = perf_counter()
        if i:
            found.append((between - start) / (end - entered))
    return found


def main(path):
    """Write the table of all cases."""
    import torch

    from saccade import interop

    usable_torchvision()
    torch.manual_seed(0)
    lines = [
        f"{environment.processor()['name']}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; medians of {ROUNDS} rounds, smallest and largest.",
        "",
        "| case | times as fast with saccade | calls of attention taken over |",
        "|---|---|---|",
    ]
    for name, make in CASES.items():
        call, with_ours = make()
        interop.reset()
        ratios = compared(call, with_ours)
        taken = sum(places.get("taken over", 0) for place, places in interop.report().items() if "attention" in place)
        left = sum(sum(places.values()) for place, places in interop.report().items() if "attention" in place) - taken
        line = (
            f"| {name} | {np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {taken} of {taken + left} |"
        )
        print(line, flush=True)
        lines.append(line)
    with replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
