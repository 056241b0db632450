"""``saccade fewshot``: how well few examples of each class suffice, from a model's frozen features.

Zhai et al. 2022, section 2.3, after big_vision's ``fewshot_lsr``: regularised least squares in closed form.
"""

import numpy as np
from rich.console import Console
from rich.table import Table

from saccade.recipes.features import Extractor, labelled

SHOTS = (1, 5, 10, 25)
PENALTY = 2.0**10  # big_vision's


class Ridge:
    """Regularised least squares from features (n, e) to targets ±1, for any penalty from one eigendecomposition.

    As ``saccade.reference.ridge_few_shot``: features standardised by mean and deviation + 1e-5, a constant column of
    100. With X = the columns, XᵀX = Q Λ Qᵀ gives W = Q (Λ + λ)⁻¹ Qᵀ XᵀY; with fewer rows than columns, XXᵀ = Q Λ Qᵀ
    gives W = Xᵀ Q (Λ + λ)⁻¹ Qᵀ Y.
    """

    def __init__(self, features, labels, classes):
        features = np.asarray(features, np.float64)
        self.mean, self.deviation = features.mean(0), features.std(0) + 1e-5
        x, targets = self._columns(features), 2.0 * (np.asarray(labels)[:, None] == np.arange(classes)) - 1
        self.columns = None if len(x) >= x.shape[1] else x
        self.values, self.vectors = np.linalg.eigh(x.T @ x if self.columns is None else x @ x.T)
        self.projected = self.vectors.T @ (x.T @ targets if self.columns is None else targets)

    def scores(self, features, penalty):
        """Scores (n, classes)."""
        weight = self.vectors @ (self.projected / (self.values + penalty)[:, None])
        return self._columns(features) @ (weight if self.columns is None else self.columns.T @ weight)

    def _columns(self, features):
        normal = (np.asarray(features, np.float64) - self.mean) / self.deviation
        return np.concatenate([normal, np.full((len(normal), 1), 100.0)], 1)


def drawn(labels, classes, shots, seed):
    """Indices of ``shots`` examples of each class: the first of a permutation of the class, so that few are among many.

    None if a class has fewer.
    """
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in range(classes)]
    return None if min(map(len, chosen)) < shots else np.concatenate(chosen)


def run(
    model, train, test, *, shots=SHOTS, penalties=(PENALTY,), seeds=3, layer=None, workers=0, device=None, console=None
):  # fmt: skip
    """Accuracy on ``test`` from few examples of each class of ``train``.

    Args:
        model: file that a recipe wrote.
        train, test: sources with the same classes.
        shots: numbers of examples of each class.
        penalties: λ; each accuracy is given for all of them.
        seeds: how many draws of examples.
        layer: whose features; the model's usual one if None (see ``saccade.recipes.features.Extractor``).
        workers, device, console: as for the other recipes.

    Returns:
        {"layer", "shots": {shots: {penalty: [accuracy of each seed]}}}; shots that a class has not are left out.
    """
    console, extractor = console or Console(), Extractor(model, device)
    layer = extractor.usual if layer is None else layer
    if layer not in extractor.layers:
        raise ValueError(f"{layer=}, expected one of {extractor.layers[0]}…{extractor.layers[-1]}")
    pair, names = labelled((train, test), extractor, [layer], workers=workers, console=console)
    ((own,), labels), ((held_out,), truth) = pair
    found = {}
    for count in shots:
        for seed in range(seeds):
            chosen = drawn(labels, len(names), count, seed)
            if chosen is None:
                console.print(f"{count} shots: a class of {train} has fewer pictures", markup=False, soft_wrap=True)
                break
            ridge = Ridge(own[chosen], labels[chosen], len(names))
            for penalty in penalties:
                right = (ridge.scores(held_out, penalty).argmax(1) == truth).mean()
                found.setdefault(count, {}).setdefault(penalty, []).append(float(right))
    table = Table("shots", *(f"penalty {penalty:g}" for penalty in penalties), title=f"layer {layer}")
    for count, each in found.items():
        cells = [f"{100 * np.mean(x):.1f} % ± {100 * np.std(x):.1f}" for x in each.values()]
        table.add_row(str(count), *cells)
    console.print(table)
    return {"layer": layer, "shots": found}
