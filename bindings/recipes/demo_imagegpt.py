"""Section 2 of the demonstration: ImageGPT on crops of photographs."""

import numpy as np

from saccade.palette import Palette
from saccade.recipes import report
from saccade.recipes.photographs import crops, photographs, split
from saccade.recipes.training import train

SIDE = 16
SIZES = {True: dict(width=128, depth=3, heads=4), False: dict(width=128, depth=4, heads=4)}


def histogram_nats(train_tokens, tokens):
    """Nats per pixel of a model that knows how often each colour occurs (one added to each count)."""
    return float(-np.log(_histogram(train_tokens)[tokens]).mean())


def bigram_nats(train_tokens, tokens, strengths=(1, 10, 30, 100, 300, 1000, 3000)):
    """Nats per pixel of a model that knows the left neighbour's colour.

    p(b | a) = (count(a, b) + s p(b)) / (count(a) + s): counts backed by the histogram, the first pixel of each row by
    the histogram alone. The strength s is the best of several on the very tokens judged: the baseline at its best.
    """
    histogram = _histogram(train_tokens)
    pairs = np.zeros((len(histogram), len(histogram)))
    np.add.at(pairs, (train_tokens[:, :, :-1].ravel(), train_tokens[:, :, 1:].ravel()), 1)
    left, right = tokens[:, :, :-1], tokens[:, :, 1:]
    first = np.log(histogram[tokens[:, :, 0]]).sum()
    totals = pairs.sum(1)

    def nats(s):
        chances = (pairs[left, right] + s * histogram[right]) / (totals[left] + s)
        return -(first + np.log(chances).sum()) / tokens.size

    return float(min(nats(s) for s in strengths))


def _histogram(tokens, colors=512):
    counts = np.bincount(tokens.ravel(), minlength=colors) + 1.0
    return counts / counts.sum()


def section(quick, seed, progress):
    """(facts, HTML)."""
    import torch

    from saccade.models.imagegpt import ImageGPTConfig
    from saccade.torch import ImageGPT

    rng = np.random.default_rng(seed)
    pictures = list(photographs().values())
    seen, unseen = zip(*map(split, pictures), strict=True)
    palette = Palette.fit(np.concatenate([p.reshape(-1, 3) for p in seen]), 512, iterations=10, seed=seed)
    held_out, labels = crops(unseen, 128 if quick else 256, SIDE, rng)
    held_out = palette.encode(held_out)
    baseline_tokens = palette.encode(crops(seen, 4000, SIDE, rng)[0])
    baselines = histogram_nats(baseline_tokens, held_out), bigram_nats(baseline_tokens, held_out)

    model = ImageGPT(ImageGPTConfig(length=SIDE * SIDE, **SIZES[quick]), seed=seed)
    evaluated = {}

    def as_tensor(tokens):
        return torch.from_numpy(tokens.reshape(len(tokens), -1).astype(np.int64))

    def loss_of(step):
        if step % 50 == 0:
            evaluated[step] = held_out_nats(model, as_tensor(held_out))
        return model.loss(as_tensor(palette.encode(crops(seen, 24 if quick else 32, SIDE, rng)[0])))

    steps = 200 if quick else 320
    losses = train(model, loss_of, steps, peak=3e-3, progress=progress)
    evaluated[steps] = held_out_nats(model, as_tensor(held_out))
    accuracies = probe(model, palette, seen, as_tensor(held_out), labels, rng, 300 if quick else 800)
    facts = {
        "held-out nats per pixel": evaluated[steps],
        "histogram baseline": baselines[0],
        "bigram baseline": baselines[1],
        "probe accuracy by layer": accuracies,
    }
    completed = complete(model, palette, held_out[:12], seed)
    text = (
        f"Trained for {steps} steps to predict each pixel of {SIDE} x {SIDE} crops from those before it; pixels are "
        "colours of a palette fitted to the same parts of the photographs that crops are taken from. Crops it "
        f"never saw, from the right quarter of each photograph, cost it {evaluated[steps]:.2f} nats per pixel; a "
        f"histogram of colours costs {baselines[0]:.2f} and a bigram of the left neighbour {baselines[1]:.2f}."
    )
    return facts, report.paragraph(text) + _curves(losses, evaluated, baselines) + completed + _probe_figure(accuracies)


def held_out_nats(model, tokens):
    """Mean nats per pixel, without gradients."""
    import torch

    with torch.no_grad():
        return float(np.mean([model.loss(part).item() for part in tokens.split(64)]))


def complete(model, palette, truth, seed):
    """The lower halves of crops drawn from the model, beside the truth."""
    import torch
    from matplotlib import pyplot

    n = SIDE * SIDE
    prefix = torch.from_numpy(truth.reshape(len(truth), n)[:, : n // 2].astype(np.int64))
    rows = [truth]
    for i in range(3):
        drawn = model.generate(prefix, temperature=0.9, generator=torch.Generator().manual_seed(seed + i))
        rows.append(drawn.numpy().reshape(-1, SIDE, SIDE))
    plot, axes = pyplot.subplots(5, len(truth), figsize=(13, 5.6))
    given = palette.decode(truth).copy()
    given[:, SIDE // 2 :] = 235
    pictures = [given, *map(palette.decode, rows[1:]), palette.decode(truth)]
    names = ("given", "drawn", "drawn", "drawn", "truth")
    for axis_row, name, row in zip(axes, names, pictures, strict=True):
        for axis, picture in zip(axis_row, row, strict=True):
            axis.imshow(picture)
            axis.set_xticks([])
            axis.set_yticks([])
        axis_row[0].set_ylabel(name)
    return report.figure(plot, "Held-out crops: their upper half given, three completions drawn, and the truth.")


def probe(model, palette, seen, held_out, labels, rng, count):
    """Accuracy of a linear probe on each layer's features: which photograph is a held-out crop from?"""
    import torch

    from saccade.reference import ridge_few_shot

    images, train_labels = crops(seen, count, SIDE, rng)
    tokens = torch.from_numpy(palette.encode(images).reshape(count, -1).astype(np.int64))
    layers = range(model.config.depth + 1)
    with torch.no_grad():
        train_features = [
            torch.cat(x).numpy() for x in zip(*(model.features(t, layers) for t in tokens.split(64)), strict=True)
        ]
        features = [
            torch.cat(x).numpy() for x in zip(*(model.features(t, layers) for t in held_out.split(64)), strict=True)
        ]
    accuracies = []
    for mine, theirs in zip(train_features, features, strict=True):
        scores = ridge_few_shot(mine, train_labels, len(seen), regularization=1.0)(theirs)
        accuracies.append(float((scores.argmax(1) == labels).mean()))
    return accuracies


def _curves(losses, evaluated, baselines):
    from matplotlib import pyplot

    plot, axis = pyplot.subplots(figsize=(8, 3.6))
    axis.plot(losses, color="#9bb8d3", linewidth=1, label="training batch")
    axis.plot(list(evaluated), list(evaluated.values()), "o-", color="#1f4e79", label="held-out crops")
    for value, name in zip(baselines, ("colour histogram", "bigram of the left neighbour"), strict=True):
        axis.axhline(value, linestyle="--", color="#b3261e" if "bigram" in name else "#888", label=name)
    axis.set_xlabel("step")
    axis.set_ylabel("nats per pixel")
    axis.legend(frameon=False)
    return report.figure(plot, "Loss while training, and the two baselines on the same held-out crops.")


def _probe_figure(accuracies):
    from matplotlib import pyplot

    plot, axis = pyplot.subplots(figsize=(5.5, 3))
    axis.plot(range(len(accuracies)), [100 * a for a in accuracies], "o-", color="#1f4e79")
    axis.axhline(10, linestyle="--", color="#888")
    axis.set_xlabel("layer")
    axis.set_ylabel("accuracy, %")
    axis.set_xticks(range(len(accuracies)))
    return report.figure(plot, "Linear probe by layer: which of ten photographs is a crop from? Dashed: chance.")
