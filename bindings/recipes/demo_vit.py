"""Section 3 of the demonstration: a ViT on handwritten digits."""

import numpy as np

from saccade.recipes import report
from saccade.recipes.photographs import digits, jittered
from saccade.recipes.training import train

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
    pictures = _positions(parameters, config) + _filters(parameters) + _distances(weights, config)
    return facts, report.paragraph(text) + pictures


def _positions(parameters, config):
    from matplotlib import pyplot

    from saccade.reference import position_similarity

    similarity = position_similarity(parameters["embed.positions"], config.grid, prefix=config.prefix)
    rows, columns = config.grid
    plot, axes = pyplot.subplots(rows, columns, figsize=(5.5, 5.2), squeeze=False)
    for i in range(rows):
        for j in range(columns):
            image = axes[i, j].imshow(similarity[i, j], vmin=-1, vmax=1, cmap="viridis")
            axes[i, j].axis("off")
    plot.colorbar(image, ax=axes, label="cosine similarity")
    caption = "Position embeddings: each tile compares the position of one patch with those of all patches."
    return report.figure(plot, caption)


def _filters(parameters):
    from matplotlib import pyplot

    from saccade.reference import filter_components

    pictures, shares = filter_components(parameters["embed.weight"], 4)
    plot, axes = pyplot.subplots(1, 4, figsize=(7, 2))
    for axis, picture, share in zip(axes, pictures, shares, strict=True):
        axis.imshow(picture[..., 0], cmap="gray")
        axis.set_title(f"{100 * share:.0f} %", fontsize=9)
        axis.axis("off")
    return report.figure(plot, "Principal components of the 64 filters that embed a patch of 4 x 4; their variance.")


def _distances(weights, config):
    from matplotlib import pyplot

    from saccade.reference import mean_attention_distance

    plot, axis = pyplot.subplots(figsize=(5.5, 3))
    for layer, one in enumerate(weights):
        distances = mean_attention_distance(one, config.grid, config.patch_size, prefix=config.prefix)
        axis.plot([layer] * len(distances), distances, "o", color="#1f4e79", alpha=0.7)
    axis.set_xticks(range(len(weights)))
    axis.set_xlabel("layer")
    axis.set_ylabel("mean distance, pixels")
    return report.figure(plot, "How far each head looks: one dot a head, averaged over 128 test digits.")
