"""``saccade demo``: the systems at a small size on real pictures, ending with one page to look at."""

import importlib
import json
import shutil
import time
from pathlib import Path

from saccade.recipes import report
from saccade.recipes.progress import progress_bar

SECTIONS = {
    "palette": "1. A palette of 512 colours",
    "imagegpt": "2. ImageGPT: predicting pixels",
    "vit": "3. ViT: naming digits",
    "clip": "4. CLIP: pictures and captions",
    "kernels": "5. The kernels on this machine",
}


def run(out="report", *, quick=False, seed=0, sections=tuple(SECTIONS)):
    """Make ``out/index.html`` and print its path.

    Finished sections are kept in ``out/unfinished`` until all are done, so that an interrupted run goes on where it
    stopped; a finished one starts anew.

    Args:
        out: the folder.
        quick: smaller sizes.
        seed: of everything that is drawn.
        sections: which of ``SECTIONS``.
    """
    import matplotlib
    import torch
    from rich.console import Console

    matplotlib.use("Agg")
    console, out = Console(), Path(out)
    kept = out / "unfinished" / ("quick" if quick else "full") / str(seed)
    done = {}
    try:
        for name in sections:
            torch.manual_seed(seed)
            done[name] = _section(name, kept / f"{name}.json", quick, seed, console)
    except KeyboardInterrupt:
        console.print(f"Interrupted. Finished: {', '.join(done) or 'nothing'}; the same command goes on from there.")
        raise SystemExit(130) from None
    facts = {name: one["facts"] for name, one in done.items()}
    minutes = sum(one["seconds"] for one in done.values()) / 60
    size = "at the smaller sizes of --quick" if quick else "at its full size"
    introduction = report.paragraph(
        "Small models trained from nothing on photographs and digits that ship with scikit-image and scikit-learn, "
        f"{size}, in {minutes:.1f} minutes on this machine. Bars are set for the full size."
    )
    held = report.table(("what", "found", "bar", "held"), bars(facts))
    page = report.page("Saccade", introduction + held, [(SECTIONS[name], one["html"]) for name, one in done.items()])
    report.write(out / "index.html", page)
    report.write(out / "facts.json", json.dumps(facts, indent=1))
    shutil.rmtree(out / "unfinished", ignore_errors=True)
    console.print(f"Done in {minutes:.1f} minutes: [bold]{(out / 'index.html').resolve()}[/bold]")
    return facts


def bars(facts):
    """Rows (what, found, bar, "yes" or "no") for every bar whose section is among ``facts``."""
    rows = []
    if pixels := facts.get("imagegpt"):
        found = pixels["held-out nats per pixel"]
        for name in ("histogram", "bigram"):
            bar = pixels[f"{name} baseline"]
            held = "yes" if found < bar else "no"
            rows.append(
                (f"ImageGPT, held-out nats per pixel, against the {name}", f"{found:.2f}", f"< {bar:.2f}", held)
            )
    for section, what, fact, bar in (
        ("vit", "ViT, digits named right", "test accuracy", 0.97),
        ("clip", "CLIP, digits named right without being trained to", "zero-shot accuracy", 0.9),
    ):
        if section in facts:
            found = facts[section][fact]
            rows.append((what, f"{100 * found:.1f} %", f"≥ {100 * bar:.0f} %", "yes" if found >= bar else "no"))
    if kernels := facts.get("kernels"):
        found = kernels["import saccade, seconds"]
        rows.append(("import saccade, NumPy included", f"{found:.2f} s", "< 0.2 s", "yes" if found < 0.2 else "no"))
        verdicts = [one["verdict"] for one in kernels["operations"].values()]
        passed = f"{verdicts.count('PASS')} of {len(verdicts)}"
        rows.append(("kernels that the oracle passes", passed, "all", "yes" if set(verdicts) == {"PASS"} else "no"))
    return rows


def _section(name, file, quick, seed, console):
    if file.exists():
        console.print(f"{SECTIONS[name]}: kept from the interrupted run")
        return json.loads(file.read_text(encoding="utf-8"))
    module = importlib.import_module(f"saccade.recipes.demo_{name}")
    start = time.perf_counter()
    with progress_bar(SECTIONS[name], console) as progress:
        facts, html = module.section(quick, seed, progress)
    section = {"facts": facts, "html": html, "seconds": time.perf_counter() - start}
    report.write(file, json.dumps(section))
    shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}
    console.print({key: value for key, value in shown.items() if not isinstance(value, dict)})
    return section
