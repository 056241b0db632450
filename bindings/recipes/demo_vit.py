"""Section 3 of the demonstration: a ViT on handwritten digits."""

import numpy as np

from saccade.recipes import report
from saccade.recipes.photographs import digits, jittered
from saccade.recipes.training import train
from saccade.recipes.visualize import distances, filters, positions

NORMAL = dict(mean=(0.3,), std=(0.38,))


def section(quick, seed, progress):
    """(facts, HTML)."""
    import torch

    import saccade
    from saccade.models.vit import ViTConfig
    from saccade.torch import ViT

    rng = np.random.default_rng(seed)
    (images, labels), (test_images, test_labels) = digits()
    config = ViTConfig(
        width=64, depth=4, heads=4, hidden=128, image_size=16, patch_size=4, channels=1, classes=10, **NORMAL
    )
    model = ViT(config, seed=seed)

    def loss_of(step):
        batch = rng.integers(len(images), size=96)
        logits = model(torch.from_numpy(jittered(images[batch], rng)))
        return saccade.softmax_cross_entropy(logits, torch.from_numpy(labels[batch]), label_smoothing=0.1)

    steps = 500 if quick else 1500
    losses = train(model, loss_of, steps, peak=3e-3, betas=(0.9, 0.999), weight_decay=0.05, progress=progress)
    with torch.no_grad():
        logits = model(torch.from_numpy(test_images))
        weights = [w.numpy() for w in model.attention_weights(torch.from_numpy(test_images[:128]))]
    accuracy = float((logits.argmax(1).numpy() == test_labels).mean())
    parameters = model.numpy_parameters()
    facts = {"test accuracy": accuracy, "test digits": len(test_labels), "last loss": losses[-1]}
    text = (
        f"16 x 16 pixels, patches of 4 x 4, four blocks of width 64, {steps} steps on {len(images):,} digits, turned, "
        f"zoomed and moved a little. Of {len(test_labels)} digits it never saw, {100 * accuracy:.1f} % are named right."
    )
    pictures = positions(parameters, config) + filters(parameters, 4) + distances(weights, config)
    return facts, report.paragraph(text) + pictures
