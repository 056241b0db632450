"""``saccade probe``: what each layer of a frozen model knows, by a linear classifier.

Chen et al. 2020, sections 2.4 and 4.1: by L-BFGS or by SGD, a masked model by the majority of several masks. The search
for a penalty is that of Radford et al. 2021, appendix A.3.
"""

import warnings
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import saccade
from saccade.files import replacing
from saccade.recipes.accuracy import majority
from saccade.recipes.features import Extractor, labelled

STEPS_PER_DECADE = 8
COARSE = tuple(range(-6 * STEPS_PER_DECADE, 6 * STEPS_PER_DECADE + 1, 2 * STEPS_PER_DECADE))  # 1e-6, 1e-4 … 1e6
RATES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03)  # of learning, by SGD
STEPS, BATCH = 2000, 128  # of SGD; 1,000,000 for ImageNet in the paper
HELD_OUT = 0.2  # of the training pictures, to choose a penalty and a layer by


def logistic(features, labels, penalty, iterations=1000):
    """scikit-learn's multinomial logistic regression by L-BFGS: sum of the losses + penalty / 2 |W|²."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():  # that it did not converge is known from n_iter_
        warnings.simplefilter("ignore")
        return LogisticRegression(C=1 / penalty, max_iter=iterations, solver="lbfgs").fit(features, labels)


def best_penalty(accuracy_of):
    """(penalty, accuracy) by halving the steps around the best of 1e-6, 1e-4 … 1e6 until there are 8 to a decade.

    ``accuracy_of(penalty)`` is asked once for each penalty that is tried; the larger one wins among equals.
    """
    found, step = {}, 2 * STEPS_PER_DECADE

    def ask(points):
        for point in points:
            if COARSE[0] <= point <= COARSE[-1] and point not in found:
                found[point] = accuracy_of(10 ** (point / STEPS_PER_DECADE))
        return max(found, key=lambda point: (found[point], point))

    best = ask(COARSE)
    while step > 1:
        step //= 2
        best = ask((best - step, best + step))
    return 10 ** (best / STEPS_PER_DECADE), found[best]


class Descended:
    """Multinomial logistic regression by SGD from 0: momentum 0.9, a cosine, no penalty."""

    def __init__(self, features, labels, rate, steps=STEPS, batch=BATCH):
        self.classes, targets = np.unique(labels, return_inverse=True)
        x, y = torch.from_numpy(np.asarray(features, np.float32)), torch.from_numpy(targets)
        self.linear = torch.nn.Linear(x.shape[1], len(self.classes))
        for parameter in self.linear.parameters():
            torch.nn.init.zeros_(parameter)
        optimizer = torch.optim.SGD(self.linear.parameters(), lr=rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            rows = torch.randint(len(x), (min(batch, len(x)),), generator=generator)
            loss = saccade.softmax_cross_entropy(self.linear(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def predict(self, features):
        """The likeliest class of each row."""
        logits = self.linear(torch.from_numpy(np.asarray(features, np.float32)))
        return self.classes[logits.argmax(1).numpy()]

    def score(self, features, labels):
        """The share of rows whose likeliest class is theirs."""
        return float((self.predict(features) == labels).mean())


def best_rate(accuracy_of):
    """(rate, accuracy) of the best of ``RATES``; the smaller one wins among equals."""
    found = {rate: accuracy_of(rate) for rate in RATES}
    best = max(found, key=lambda rate: (found[rate], -rate))
    return best, found[best]


SOLVERS = {"lbfgs": ("penalty", logistic, best_penalty), "sgd": ("rate", Descended, best_rate)}


def run(
    model, train, test, *, layers=None, solver="lbfgs", masks=1, seed=0, picture=None, workers=0, device=None,
    console=None,
):  # fmt: skip
    """A linear classifier on each layer's features; the best layer by validation, and every layer on ``test``.

    Args:
        model: file that a recipe wrote.
        train, test: sources with the same classes; a fifth of ``train`` is held out to choose penalty and layer by.
        layers: which; all if None.
        solver: "lbfgs" with a penalty chosen by what is held out, or "sgd" with a learning rate chosen so.
        masks: of each picture of ``test``, for a masked ImageGPT; "test" is the mean over them.
        seed: of what is held out, and of ties between masks.
        picture: a file for a plot of accuracy by layer, or None.
        workers, device, console: as for the other recipes.

    Returns:
        {"best": layer, "layers": {layer: {"penalty" or "rate", "validation", "test", "ensemble", "converged"}}}: by the
        majority of masks if there are several, and whether L-BFGS converged.
    """
    if solver not in SOLVERS:
        raise ValueError(f"{solver=}, expected one of {', '.join(SOLVERS)}")
    chosen, fit, search = SOLVERS[solver]
    console, extractor = console or Console(), Extractor(model, device)
    layers = extractor.layers if layers is None else list(layers)
    if wrong := [layer for layer in layers if layer not in extractor.layers]:
        raise ValueError(f"layers {wrong}, expected some of {extractor.layers[0]}…{extractor.layers[-1]}")
    ((features, labels), (held_out, truth)), _ = labelled(
        (train, test), extractor, layers, masks=masks, workers=workers, console=console
    )
    fitted, chosen_by = split(labels, seed)
    columns = "layer", chosen, "validation", "test", *(("majority of masks",) if masks > 1 else ())
    table, found = Table(*columns), {}
    for layer, own, other in zip(layers, features, held_out, strict=True):
        number, validation = search(partial(_validated, fit, own, labels, fitted, chosen_by))
        last = fit(own, labels, number)
        found[layer] = {chosen: float(number), "validation": float(validation)} | _judged(last, other, truth, seed)
        if solver == "lbfgs":
            found[layer]["converged"] = bool(last.n_iter_.max() < last.max_iter)
        shares = [
            f"{100 * found[layer][name]:.1f} %" for name in ("validation", "test", "ensemble")[: len(columns) - 2]
        ]
        table.add_row(str(layer), f"{number:.3g}", *shares)
    best = max(found, key=lambda layer: found[layer]["validation"])
    console.print(table)
    console.print(f"Best by validation: layer {best}, {100 * found[best]['test']:.1f} % on {len(truth)} test pictures")
    if picture is not None:
        plot(found, best, picture)
    return {"best": best, "layers": found}


def _validated(fit, features, labels, fitted, chosen_by, number):
    return fit(features[fitted], labels[fitted], number).score(features[chosen_by], labels[chosen_by])


def _judged(classifier, features, truth, seed):
    """{"test": accuracy, "ensemble": that of the majority of masks} of features (n, e) or (n, masks, e)."""
    if features.ndim == 2:
        return {"test": float(classifier.score(features, truth))}
    votes = np.stack([classifier.predict(one) for one in features.swapaxes(0, 1)], 1)
    ensemble = majority(votes, np.random.default_rng(seed))
    return {"test": float((votes == truth[:, None]).mean()), "ensemble": float((ensemble == truth).mean())}


def split(labels, seed):
    """(indices to fit to, indices held out): a fifth of each class, at least one of those with two or more."""
    rng, held_out = np.random.default_rng(seed), []
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        held_out.append(own[: min(max(1, round(HELD_OUT * len(own))), len(own) - 1)])
    held_out = np.sort(np.concatenate(held_out))
    if not len(held_out):
        raise ValueError("no class has two pictures to train on: none can be held out to choose a penalty by")
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def plot(found, best, path):
    """Accuracy by layer."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.4))
    for name, style in (("validation", "o--"), ("test", "o-")):
        axis.plot(list(found), [100 * one[name] for one in found.values()], style, label=name)
    axis.axvline(best, color="#888", linewidth=1)
    axis.set_xlabel("layer")
    axis.set_ylabel("accuracy, %")
    axis.legend(frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    pyplot.close(figure)
