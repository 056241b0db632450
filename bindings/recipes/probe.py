"""``saccade probe``: what each layer of a frozen model knows, by a linear classifier.

Chen et al. 2020, sections 2.4 and 4.1; the search for a penalty is that of Radford et al. 2021, appendix A.3.
"""

import warnings
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table

from saccade.files import replacing
from saccade.recipes.features import Extractor, labelled

STEPS_PER_DECADE = 8
COARSE = tuple(range(-6 * STEPS_PER_DECADE, 6 * STEPS_PER_DECADE + 1, 2 * STEPS_PER_DECADE))  # 1e-6, 1e-4 … 1e6
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


def run(model, train, test, *, layers=None, seed=0, picture=None, workers=0, device=None, console=None):
    """A linear classifier on each layer's features; the best layer by validation, and every layer on ``test``.

    Args:
        model: file that a recipe wrote.
        train, test: sources with the same classes; a fifth of ``train`` is held out to choose penalty and layer by.
        layers: which; all if None.
        seed: of what is held out.
        picture: a file for a plot of accuracy by layer, or None.
        workers, device, console: as for the other recipes.

    Returns:
        {"best": layer, "layers": {layer: {"penalty", "validation", "test", "converged"}}}.
    """
    console, extractor = console or Console(), Extractor(model, device)
    layers = extractor.layers if layers is None else list(layers)
    if wrong := [layer for layer in layers if layer not in extractor.layers]:
        raise ValueError(f"layers {wrong}, expected some of {extractor.layers[0]}…{extractor.layers[-1]}")
    ((features, labels), (held_out, truth)), _ = labelled(
        (train, test), extractor, layers, workers=workers, console=console
    )
    fitted, chosen_by = split(labels, seed)
    table, found = Table("layer", "penalty", "validation", "test"), {}
    for layer, own, other in zip(layers, features, held_out, strict=True):
        penalty, validation = best_penalty(partial(_validated, own, labels, fitted, chosen_by))
        last = logistic(own, labels, penalty)
        result = dict(penalty=float(penalty), validation=float(validation), test=float(last.score(other, truth)))
        found[layer] = result | {"converged": bool(last.n_iter_.max() < last.max_iter)}
        table.add_row(str(layer), f"{penalty:.3g}", f"{100 * validation:.1f} %", f"{100 * result['test']:.1f} %")
    best = max(found, key=lambda layer: found[layer]["validation"])
    console.print(table)
    console.print(f"Best by validation: layer {best}, {100 * found[best]['test']:.1f} % on {len(truth)} test pictures")
    if picture is not None:
        plot(found, best, picture)
    return {"best": best, "layers": found}


def _validated(features, labels, fitted, chosen_by, penalty):
    return logistic(features[fitted], labels[fitted], penalty).score(features[chosen_by], labels[chosen_by])


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
