"""``saccade scaling``: how the error falls with model size, data and compute.

Zhai et al. 2022, section 2: ViTs of several sizes, trained on parts of a data set for several numbers of steps. The
smallest errors at each compute C follow a power law that saturates at both ends (equation 1):

    E = a (C + d)^−b + c
"""

import json
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console

from saccade import models
from saccade.files import replacing
from saccade.models.variants import cost
from saccade.recipes import pretrain_vit, report
from saccade.recipes.data import Listed, open_source

RESULTS = "results.json"
BACKWARD = 3  # the cost of a training step in forward passes


class Part(Listed):
    """The first ``count`` samples of a source in an order of their own, the same for every count."""

    def __init__(self, source, count):
        super().__init__(source.path, count)
        self.source, self.classes = source, source.classes
        self.order = np.random.default_rng(0).permutation(len(source))[:count]

    def read(self, job):
        return self.source.read(int(self.order[job]))

    def identity(self, job):
        return int(self.order[job])


def run(
    source, test, out, *, widths=(32, 64), depths=(2, 4), shares=(0.25, 1.0), steps=(100, 400), preset="vit-tiny",
    batch=None, learning_rate=None, warm_up=None, workers=0, device=None, console=None,
):  # fmt: skip
    """Train a grid of ViTs, judge each on ``test``, fit the law and draw the curves: ``out/index.html``.

    A run that was interrupted goes on where it was, and what is in ``out/results.json`` is not done again.

    Args:
        source, test: of pictures with the same classes, numbered (no shards).
        out: the folder.
        widths, depths: of the models, each with each; heads are of 16 numbers or more, a hidden layer twice the width.
        shares: of the source that is trained on.
        steps: of training.
        preset: a name in ``pretrain_vit.PRESETS`` for everything else.
        batch, learning_rate, warm_up: instead of the preset's.
        workers, device, console: as for the other recipes.

    Returns:
        A list of runs: {"width", "depth", "pictures", "steps", "parameters", "compute", "error"}, compute in GFLOPs.
    """
    console, out = console or Console(), Path(out)
    pictures = open_source(source)
    if pictures.classes is None or not isinstance(pictures, Listed):
        raise ValueError(f"{source} has no classes, or is shards: expected a folder for each class, or arrays")
    if wrong := next((share for share in shares if not 0 < share <= 1), None):
        raise ValueError(f"a share of {wrong} of the pictures, expected more than 0 and at most 1")
    settings = dict(preset=preset, batch=batch, learning_rate=learning_rate, warm_up=warm_up)
    settings |= {"source": str(source), "test": str(test)}
    out.mkdir(parents=True, exist_ok=True)
    known = _known(out / RESULTS, settings)
    found = []
    for width, depth, share, count in product(widths, depths, shares, steps):
        part = Part(pictures, max(1, round(share * len(pictures))))
        name = f"w{width}-d{depth}-n{len(part)}-s{count}"
        if name not in known:
            console.rule(name)
            model = dict(width=width, depth=depth, heads=max(1, width // 16), hidden=2 * width)
            training = {"steps": count} | ({} if batch is None else {"batch": batch})
            how = dict(peak=learning_rate, warm_up=warm_up)
            pretrain_vit.run(
                part, out / name, preset=preset, model=model, training=training,
                optimization={key: x for key, x in how.items() if x is not None}, held_out=test, workers=workers,
                device=device, console=console,
            )  # fmt: skip
            sizes = dict(width=width, depth=depth, pictures=len(part), steps=count)
            known[name] = sizes | _judged(out / name, count * (batch or pretrain_vit.PRESETS[preset][1].batch))
            with replacing(out / RESULTS) as file:
                file.write(json.dumps({"settings": settings, "runs": known}, indent=1).encode())
        found.append(known[name])
    report.write(out / "index.html", page(found))
    console.print(f"Wrote [bold]{(out / 'index.html').resolve()}[/bold]")
    return found


def _known(path, settings):
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before, runs = found["settings"], found["runs"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no results of saccade scaling ({error!r}): expected another folder") from None
    if before != settings:
        raise ValueError(f"{path} is of a run with {before}, expected another folder for {settings}")
    return runs


def _judged(folder, samples):
    """The costs of a run that saw so many samples, and its error on what was held out."""
    _, config = models.load(folder / "model.safetensors")
    costs = cost(config)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    accuracy = [record["held_out_accuracy"] for record in log if "held_out_accuracy" in record][-1]
    compute = BACKWARD * costs.flops * samples / 1e9
    return {"parameters": costs.parameters, "compute": compute, "error": 1 - accuracy}


def frontier(runs):
    """The runs whose error is lower than that of every run with less compute, by compute."""
    best = []
    for one in sorted(runs, key=lambda one: (one["compute"], one["error"])):
        if not best or one["error"] < best[-1]["error"]:
            best.append(one)
    return best


def fit(compute, error):
    """(a, b, c, d) of E = a (C + d)^−b + c with a, b, c, d above 0, by least squares of log E; four points or more.

    C is scaled by its geometric mean for the search, from several beginnings, of which the best counts.
    """
    from scipy.optimize import least_squares

    compute, error = np.asarray(compute, np.float64), np.asarray(error, np.float64)
    if len(compute) < 4:
        raise ValueError(f"fit: {len(compute)} points, expected at least 4 for four numbers")
    unit = np.exp(np.log(compute).mean())
    logs = np.log(error)

    def residuals(x):
        a, b, c, d = np.exp(x)
        return np.log(a * (compute / unit + d) ** -b + c) - logs

    starts = product((0.1, 0.5, 1.0), (1e-4, error.min() / 2), (1e-4, 0.1))
    tries = [least_squares(residuals, np.log([error.mean(), b, c, d])) for b, c, d in starts]
    a, b, c, d = np.exp(min(tries, key=lambda one: one.cost).x)
    return float(a * unit**b), float(b), float(c), float(d * unit)


def page(runs):
    """The page: the law on the frontier, and the error by compute, model size and data."""
    best = frontier(runs)
    sections = [("Error and compute", curve(runs, best))]
    sections.append(("Error and model size", lines(runs, "parameters", "pictures", "parameters")))
    sections.append(("Error and data", lines(runs, "pictures", "parameters", "pictures trained on")))
    sections.append(("Accuracy and data", lines(runs, "pictures", "parameters", "pictures trained on", accuracy=True)))
    names = ("width", "depth", "pictures", "steps", "parameters", "compute", "error")
    rows = [
        [f"{one[name]:.4g}" if name in ("compute", "error") else f"{one[name]:,}" for name in names] for one in runs
    ]
    sections.append(("Runs", report.table((*names[:5], "GFLOPs", "error"), rows)))
    text = report.paragraph(f"{len(runs)} runs, {len(best)} of which no other beats with less compute.")
    return report.page("Scaling", text, sections)


def curve(runs, best):
    """Error against compute, and the law where there are runs enough, as HTML."""
    from matplotlib import pyplot

    plot, axis = pyplot.subplots(figsize=(6, 3.6))
    axis.plot([one["compute"] for one in runs], [one["error"] for one in runs], "o", color="#bbb", label="runs")
    compute, error = ([one[name] for one in best] for name in ("compute", "error"))
    axis.plot(compute, error, "o", color="#1f6feb", label="best at their compute")
    said = "Too few runs are best at their compute for the law to be fitted, or one makes no error."
    if len(best) >= 4 and min(error) > 0:
        a, b, c, d = fit(compute, error)
        grid = np.geomspace(min(compute), max(compute), 200)
        axis.plot(grid, a * (grid + d) ** -b + c, color="#1f6feb", linewidth=1)
        said = f"E = {a:.3g} (C + {d:.3g})^−{b:.3g} + {c:.3g}, fitted to the best at their compute."
    axis.set_xscale("log")
    axis.set_yscale("log" if min(error) > 0 else "linear")
    axis.set_xlabel("compute of training, GFLOPs")
    axis.set_ylabel("error")
    axis.legend(frameon=False)
    return report.figure(plot, said)


def lines(runs, along, each, label, accuracy=False):
    """The best error over steps (and over what is not shown), or the accuracy, along one size, a line for each of
    another, as HTML."""
    from matplotlib import pyplot

    plot, axis = pyplot.subplots(figsize=(6, 3.4))
    for value in sorted({one[each] for one in runs}):
        own = [one for one in runs if one[each] == value]
        places = sorted({one[along] for one in own})
        least = [min(one["error"] for one in own if one[along] == place) for place in places]
        axis.plot(places, [100 * (1 - x) for x in least] if accuracy else least, "o-", label=f"{value:,} {each}")
    axis.set_xscale("log")
    if not accuracy and min(one["error"] for one in runs) > 0:
        axis.set_yscale("log")
    axis.set_xlabel(label)
    axis.set_ylabel("accuracy, %" if accuracy else "error")
    axis.legend(frameon=False, fontsize=8)
    what = "accuracy" if accuracy else "error"
    return report.figure(plot, f"The best {what} over all numbers of steps by {label}, a line for each of {each}.")
