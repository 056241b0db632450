"""What the papers' runs would take on many cards: ``python -m saccade.bench.scale`` prints ``bench/SCALE.md``.

A step is the sum of what one card does: products of matrices at the rate that was measured for a large one, attention
and what is bounded by memory as measured on an H100 (``bench/results/h100.md``). No training step has been timed on a
GPU: these are sums of parts, and a lower bound.
"""

from dataclasses import dataclass

from saccade.models import vit
from saccade.models.variants import block_flops, cost
from saccade.recipes import pretrain_clip, pretrain_vit

# measured on an H100, bfloat16
PRODUCTS = 783e12  # FLOP/s, 8,192³
COPIES = 2.68e12  # bytes/s, layer norm
# seconds of attention and of its gradients for one head of so many tokens and numbers
HEADS = {
    (257, 64): (73.2e-6 + 222.0e-6) / (47 * 16),
    (257, 104): (149.4e-6 + 459.3e-6) / (47 * 16),
    (77, 64): 3 * 67.4e-6 / (192 * 16),  # its gradients were not timed: taken for twice as long as what was
}
CARDS = "gradients between cards"
LINK = 50e9  # bytes/s into and out of a card: 400 Gb/s, a vendor's figure and not measured
BACKWARD = 3  # a step in forward passes
# of a block and a token, in numbers of its width read or written: two norms with residuals, GELU and its inside four
# times as wide, forward, and twice that for gradients
PASSES = 3 * (2 * 4 + 4 * 2)


@dataclass(frozen=True)
class Run:
    """A run of a paper on so many cards; ``towers`` are (config, tokens, its entry of ``HEADS``)."""

    name: str
    steps: int
    batch: int
    cards: int
    flops: float  # of a forward pass for one sample
    parameters: int
    towers: tuple
    state: float  # bytes a parameter: itself, its gradient and the optimiser's
    activations: float  # bytes a sample

    @property
    def share(self):
        """Samples a step and card."""
        return self.batch / self.cards

    def seconds(self):
        """Of a step: products, attention, what memory bounds, the optimiser, and gradients between cards."""
        tokens = [(config, n, head) for config, n, head in self.towers]
        attended = sum(config.depth * config.heads * HEADS[head] for config, _, head in tokens)
        moved = sum(config.depth * n * config.width * 2 * PASSES for config, n, _ in tokens)
        within = sum(config.depth * (2 if config.causal else 4) * n * n * config.width for config, n, _ in tokens)
        return {
            "products but attention's": BACKWARD * (self.flops - within) * self.share / PRODUCTS,
            "attention": attended * self.share,
            "memory": moved * self.share / COPIES,
            "optimiser": 2 * self.state * self.parameters / COPIES,
            CARDS: 2 * 4 * self.parameters * (self.cards - 1) / self.cards / LINK,
        }


def runs():
    """CLIP ViT-L/14 and ViT-G/14 as their papers trained them."""
    config, how = pretrain_clip.PRESETS["clip-vit-l14"]
    assert isinstance(config.image, vit.ViTConfig)
    image, text = cost(config), block_flops(config.text, config.text.context)
    kept = image.activations / 2 + config.text.context * config.text.depth * 2 * (8 + 8) * config.text.width
    towers = ((config.image, config.image.tokens, (257, 64)), (config.text, config.text.context, (77, 64)))
    pairs, epochs = 400e6, how.epochs
    yield Run(
        "CLIP ViT-L/14, 400 million pairs, 32 epochs", round(pairs * epochs / how.batch), how.batch, 256,
        image.flops + text, image.parameters, towers, 16, kept,
    )  # fmt: skip
    config, how, _ = pretrain_vit.PRESETS["scaling-vit-G14"]
    giant = cost(config)
    towers = ((config, config.tokens, (257, 104)),)
    yield Run(
        "ViT-G/14, Scaling ViT's schedule", how.steps, how.batch, 512, giant.flops, giant.parameters, towers, 10,
        giant.activations / 2,
    )  # fmt: skip


HEAD = """# The papers' runs, on paper

Worked out by `python -m saccade.bench.scale` from figures of one H100 (`bench/results/h100.md`): products of matrices
at 783 TFLOP/s, attention as timed, everything else at 2.68 TB/s, in bfloat16. Links between cards of 50 GB/s are a
vendor's figure. No training step has been timed on a GPU, so this is a sum of parts that a real run will exceed:
products of a block's size are slower than of 8,192³, data has to come in, and cards wait for each other. Gradients of
attention over 77 tokens were taken for twice its forward pass. Gradients pass between cards while the backward pass
runs, and count where they take longer than all else.
"""
TAIL = """
## The contrastive loss

Embeddings of 32,768 pairs of 768 numbers go round a ring of 256 cards, 128 pairs at a time: a card sends and receives
{moved:.0f} MB forwards, which the links above carry in {link:.1f} ms, and never holds more than two blocks. Its
products, four of 128 x 32,768 x 768, are {flops:.0f} GFLOPs: {products:.2f} ms.

## Palettes

A histogram of all 2²⁴ colours is 134 MB, whatever the number of pictures: one all-reduce of it fits the palette of all
pictures, in {palette:.0f} ms between any number of cards.
"""


def report():
    """The Markdown page."""
    moved, flops = 2 * 32768 * 768 * 2, 4 * 2 * 128 * 32768 * 768
    figures = dict(moved=moved / 1e6, link=1e3 * moved / LINK, flops=flops / 1e9, products=1e3 * flops / PRODUCTS)
    return HEAD + "".join(map(_section, runs())) + TAIL.format(**figures, palette=1e3 * 2 * (1 << 27) / LINK)


def _section(run):
    seconds = run.seconds()
    alone = sum(value for name, value in seconds.items() if name != CARDS)
    step = max(alone, seconds[CARDS])
    rows = "\n".join(f"| {name} | {1e3 * value:.1f} |" for name, value in seconds.items())
    return f"""
## {run.name}

{run.steps:,} steps of {run.batch:,} on {run.cards} cards, {run.share:.0f} samples each.
The model has {run.parameters / 1e6:,.0f} million parameters, and takes {run.flops / 1e9:,.0f} GFLOPs a sample forwards.

| of a step | ms |
|---|---|
{rows}
| together | {1e3 * step:.0f} |

That is {run.steps * step / 86400:.1f} days, at {BACKWARD * run.flops * run.share / step / 1e12:.0f} TFLOP/s a card.
Parameters, gradients and the optimiser's state take {run.state * run.parameters / 1e9:.1f} GB of each card unless they
are sharded; what blocks keep for their gradients {run.share * run.activations / 1e9:.1f} GB in bfloat16.
"""


if __name__ == "__main__":
    print(report(), end="")
