"""``saccade efficiency``: zero-shot accuracy against pictures seen, a line for each objective.

Figure 2 of Radford et al. 2021, from models that ``saccade pretrain clip`` trained for several numbers of steps.
"""

import numpy as np
from rich.console import Console
from rich.table import Table

from saccade.recipes import report, saved, zeroshot


def run(models, source, out=None, *, prompts=zeroshot.PROMPT, workers=0, device=None, console=None):
    """Name the pictures of a source by every model, and draw it.

    Args:
        models: files that ``saccade pretrain clip`` wrote.
        source: of pictures with classes, as for ``zeroshot``.
        out: an HTML page, or None.
        prompts, workers, device, console: as for ``zeroshot``.

    Returns:
        {objective: [(pictures seen, accuracy), …]}, in order.
    """
    console, found = console or Console(), {}
    for model in models:
        facts = saved.facts_of(model)
        if not {"objective", "samples"} <= facts.keys():
            raise ValueError(f"{model} does not say how it was trained, as what saccade pretrain clip writes does")
        options = dict(prompts=prompts, top=(1,), workers=workers, device=device, console=console)
        accuracy = zeroshot.run(model, source, **options)["top"][1]
        found.setdefault(facts["objective"], []).append((facts["samples"], accuracy))
    found = {name: sorted(points) for name, points in found.items()}
    table = Table("objective", "pictures seen", "zero-shot accuracy")
    rows = [(name, f"{n:,}", f"{100 * accuracy:.1f} %") for name, points in found.items() for n, accuracy in points]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if out is not None:
        text = report.paragraph(f"Zero-shot accuracy on {source}, by what each model was trained to do.")
        listed = report.table(("objective", "pictures seen", "zero-shot accuracy"), rows)
        report.write(out, report.page("Efficiency", text, [("Accuracy", plot(found)), ("Numbers", listed)]))
    return found


def plot(found):
    """The figure as HTML."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.4))
    for name, points in found.items():
        seen, accuracies = np.array(points).T
        axis.plot(seen, 100 * accuracies, "o-", label=name)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("pictures seen")
    axis.set_ylabel("zero-shot accuracy, %")
    axis.legend(frameon=False)
    return report.figure(figure, "Zero-shot accuracy against pictures seen in training, a line for each objective.")
