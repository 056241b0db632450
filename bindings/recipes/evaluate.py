"""``saccade evaluate``: several models on several data sets, and what to think of them, on one page.

For each pair: zero-shot by prompts (a CLIP alone), few-shot by least squares, and a linear probe of the features. Two
figures as in Radford et al. 2021: how much better or worse zero-shot is than a supervised classifier of the same
features on each set (figure 5), and the mean score against the cost of a picture (figure 10).
"""

import json
from pathlib import Path

import numpy as np

from saccade import models
from saccade.files import replacing
from saccade.models import clip
from saccade.models.variants import cost
from saccade.recipes import fewshot, probe, report, zeroshot

RESULTS = "results.json"


def run(
    sources, sets, out, *, shots=(1, 5, 10), seeds=3, prompts=zeroshot.PROMPT, baseline=None, workers=0, device=None,
    console=None,
):  # fmt: skip
    """Judge every model on every set; ``out/index.html`` and ``out/results.json``.

    What is in ``results.json`` already is not done again, so that an interrupted run goes on.

    Args:
        sources: checkpoints, as recipes write them.
        sets: {name: (train, test)}, sources of pictures with the same classes.
        out: the folder.
        shots, seeds: as for ``fewshot``.
        prompts: as for ``zeroshot``.
        baseline: one of ``sources``, whose linear probe zero-shot is compared with, as the paper's figure 5 compares
            with that of a ResNet-50; each model's own if None.
        workers, device, console: as for the other recipes.

    Returns:
        {model: {"GFLOPs", "sets": {set: {"zero-shot", "few-shot": {shots: accuracy}, "linear probe"}}}}; "zero-shot" is
        None where the model knows no words.
    """
    from rich.console import Console

    console, out, baseline = console or Console(), Path(out), None if baseline is None else str(baseline)
    if baseline is not None and baseline not in map(str, sources):
        raise ValueError(f"{baseline=}, expected one of the models {', '.join(map(str, sources))}")
    settings = {"shots": list(shots), "seeds": seeds, "prompts": str(prompts)}
    settings["data"] = {name: [str(train), str(test)] for name, (train, test) in sets.items()}
    out.mkdir(parents=True, exist_ok=True)
    found = _found(out / RESULTS, settings)
    common = dict(workers=workers, device=device, console=console)
    for source in map(str, sources):
        _, config = models.load(source)
        one = found.setdefault(source, {"GFLOPs": cost(config).flops / 1e9, "sets": {}})
        for name, (train, test) in sets.items():
            if name in one["sets"]:
                console.print(f"{source} on {name}: known already", markup=False)
                continue
            console.rule(f"{source} on {name}")
            few = fewshot.run(source, train, test, shots=shots, seeds=seeds, **common)
            probed = probe.run(source, train, test, layers=[few["layer"]], **common)
            knows_words = isinstance(config, clip.CLIPConfig)
            named = zeroshot.run(source, test, prompts=prompts, top=(1,), **common) if knows_words else None
            one["sets"][name] = {
                "zero-shot": None if named is None else named["top"][1],
                "few-shot": {str(k): float(np.mean(next(iter(each.values())))) for k, each in few["shots"].items()},
                "linear probe": probed["layers"][probed["best"]]["test"],
            }
            with replacing(out / RESULTS) as file:
                file.write(json.dumps({"settings": settings, "models": found}, indent=1).encode())
    asked = {source: found[source] for source in map(str, sources)}
    report.write(out / "index.html", page(asked, list(sets), baseline))
    console.print(f"Wrote [bold]{(out / 'index.html').resolve()}[/bold]")
    return asked


def _found(path, settings):
    """What is known of models, of sets that are the same as before; other shots, seeds or prompts are an error."""
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        before, found = known["settings"], known["models"]
        same = {key: before[key] == value for key, value in settings.items() if key != "data"}
        others = {name for name, pair in settings["data"].items() if before["data"].get(name, pair) != pair}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no results of saccade evaluate ({error!r}): expected another folder") from None
    if not all(same.values()) or others:
        raise ValueError(f"{path} is of {before}, expected another folder for {settings}")
    settings["data"] = before["data"] | settings["data"]
    return found


def page(found, sets, baseline=None):
    """The page from what ``run`` returns."""
    header = ("model", "set", "zero-shot", "few-shot", "linear probe")
    rows = [(source, name, *_cells(one["sets"][name])) for source, one in found.items() for name in sets]
    sections = [("Accuracies", report.table(header, rows)), ("Cost and mean score", scores(found, sets))]
    differences_of = {
        source: {name: one["sets"][name]["zero-shot"] - _supervised(found, baseline or source, name) for name in sets}
        for source, one in found.items()
        if one["sets"][sets[0]]["zero-shot"] is not None
    }
    if differences_of:
        whom = "the same features" if baseline is None else f"the features of {Path(baseline).name}"
        sections.insert(1, ("Zero-shot and supervised", differences(differences_of, whom)))
    text = report.paragraph(f"{len(found)} models on {len(sets)} data sets; every number is from pictures held out.")
    return report.page("Evaluation", text, sections)


def _supervised(found, source, name):
    return found[source]["sets"][name]["linear probe"]


def _cells(one):
    few = ", ".join(f"{k}: {100 * accuracy:.1f} %" for k, accuracy in one["few-shot"].items())
    zero = "none" if one["zero-shot"] is None else f"{100 * one['zero-shot']:.1f} %"
    return zero, few or "none", f"{100 * one['linear probe']:.1f} %"


def differences(found, whom):
    """Bars of zero-shot minus linear probe of ``whom`` for each set, as HTML; ``found``: {model: {set: difference}}."""
    from matplotlib import pyplot

    sets = sorted(next(iter(found.values())), key=lambda name: -np.mean([one[name] for one in found.values()]))
    plot, axis = pyplot.subplots(figsize=(6, 1 + 0.4 * len(sets) * len(found)))
    height = 0.8 / len(found)
    for i, (source, one) in enumerate(found.items()):
        places = np.arange(len(sets)) + (i - (len(found) - 1) / 2) * height
        axis.barh(places, [100 * one[name] for name in sets], height, label=Path(source).name)
    axis.axvline(0, color="#444", linewidth=1)
    axis.set_yticks(range(len(sets)), sets)
    axis.invert_yaxis()
    axis.set_xlabel("zero-shot minus linear probe, percentage points")
    if len(found) > 1:
        axis.legend(frameon=False, fontsize=8)
    return report.figure(plot, f"How much better zero-shot is than a linear classifier of {whom}.")


def scores(found, sets):
    """The mean over sets of each score against GFLOPs a picture, as HTML."""
    from matplotlib import pyplot

    plot, axis = pyplot.subplots(figsize=(6, 3.4))
    for score, marker in (("zero-shot", "o"), ("linear probe", "s")):
        known = [one for one in found.values() if one["sets"][sets[0]][score] is not None]
        if known:
            means = [100 * np.mean([one["sets"][name][score] for name in sets]) for one in known]
            axis.plot([one["GFLOPs"] for one in known], means, marker, label=score)
    axis.set_xscale("log")
    axis.set_xlabel("GFLOPs a picture")
    axis.set_ylabel("mean accuracy, %")
    axis.legend(frameon=False)
    return report.figure(plot, f"The mean over {len(sets)} data sets against the cost of a picture.")
