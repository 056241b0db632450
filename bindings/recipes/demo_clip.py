"""Section 4 of the demonstration: CLIP on digits with written captions."""

import numpy as np

from saccade.recipes import report
from saccade.recipes.demo_vit import NORMAL
from saccade.recipes.photographs import digits, jittered
from saccade.recipes.training import train

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}", "the number {}", "a handwritten {}", "someone wrote {}", "{} in pencil", "this is a {}",
)  # fmt: skip
CONTEXT = 32


def section(quick, seed, progress):
    """(facts, HTML)."""
    import torch

    from saccade.models.clip import CLIPConfig, TextConfig, image_config
    from saccade.tokenizer import Tokenizer
    from saccade.torch import CLIP

    rng = np.random.default_rng(seed)
    (images, labels), (test_images, test_labels) = digits()
    tokenizer = Tokenizer()  # no merges: every byte is a token
    captions = np.stack([tokenizer.tokenize([t.format(name) for t in TEMPLATES], CONTEXT) for name in NAMES])
    captions = torch.from_numpy(captions.astype(np.int64))
    tower = dict(width=64, heads=4, hidden=128)
    image = image_config(depth=4, image_size=16, patch_size=4, channels=1, **tower | NORMAL)
    text = TextConfig(depth=2, vocabulary=len(tokenizer), context=CONTEXT, **tower)
    model = CLIP(CLIPConfig(embed=64, image=image, text=text), seed=seed)

    def loss_of(step):
        batch = rng.integers(len(images), size=64)
        which = torch.from_numpy(rng.integers(len(TEMPLATES), size=64))
        return model.loss(
            torch.from_numpy(jittered(images[batch], rng)), captions[torch.from_numpy(labels[batch]), which]
        )

    steps = 500 if quick else 1500
    train(
        model, loss_of, steps, peak=1e-3, betas=(0.9, 0.98), weight_decay=0.05, progress=progress,
        after=model.clamp_logit_scale,
    )  # fmt: skip
    with torch.no_grad():
        each = model.encode_texts(captions.reshape(-1, CONTEXT)).reshape(10, len(TEMPLATES), -1)
        classifier = torch.nn.functional.normalize(each.mean(1), dim=1)
        scores = (model.encode_images(torch.from_numpy(test_images)) @ classifier.T).numpy()
    accuracy = float((scores.argmax(1) == test_labels).mean())
    facts = {"zero-shot accuracy": accuracy, "test digits": len(test_labels)}
    text = (
        f"Pictures and captions such as “{TEMPLATES[0].format('seven')}” are trained into one space for {steps} steps "
        "with the symmetric contrastive loss; captions are read byte by byte. Held-out digits are then named by the "
        f"nearest of ten classes, each the mean of {len(TEMPLATES)} prompts: {100 * accuracy:.1f} % right. The prompts "
        "are worded as the training captions are: what is new to the model is the pictures."
    )
    return facts, report.paragraph(text) + _similarities(scores, test_images, test_labels)


def _similarities(scores, images, labels):
    from matplotlib import pyplot

    chosen = np.concatenate([np.flatnonzero(labels == digit)[:2] for digit in range(10)])
    plot, axes = pyplot.subplots(2, 1, figsize=(10, 6.4), height_ratios=[1, 8], sharex=True)
    strip = np.concatenate([np.pad(images[i, :, :, 0], 1) for i in chosen], 1)
    axes[0].imshow(255 - strip, cmap="gray", extent=(-0.5, len(chosen) - 0.5, 0, 1), aspect="auto")
    axes[0].axis("off")
    image = axes[1].imshow(scores[chosen].T, cmap="magma", aspect="auto")
    axes[1].set_yticks(range(10), NAMES)
    axes[1].set_xticks([])
    axes[1].set_xlabel("held-out digits, two of each")
    plot.colorbar(image, ax=axes, label="cosine similarity")
    return report.figure(plot, "Similarity of held-out pictures and captions (the mean of all prompts of a digit).")
