"""What a benchmark found: a table on the terminal, Markdown, and one HTML page with its pictures inside."""

import textwrap

import numpy as np

from saccade.bench import timing
from saccade.bench.device import slowed_by
from saccade.recipes.report import figure, page, paragraph, table

BARS = ("bar", "asked", "measured", "holds")
HEADER = (
    "case", "provider", "verdict", "cold ms", "warm ms", "× base", "GF/s", "% of limit", "% wasted", "peak MB",
)  # fmt: skip


def cells(row):
    """A row of the table, as texts."""
    head = (row["case"], row["provider"])
    if row["verdict"] != "PASS":
        return *head, row["verdict"], *[""] * 6, row["reason"][:160]
    seconds, against = row["seconds"], row.get("ratio")
    rate = f"{row['flops'] / seconds[warmest(row)] / 1e9:.0f}" if row["flops"] else ""
    times = [f"{1e3 * seconds[cache]:.3f}" if cache in seconds else "" for cache in timing.CACHES]
    part = 100 * row["share of limit"]
    share = f"{part:.0f} ({row['binding limit']})", f"{max(0.0, 100 - part):.0f}"
    return *head, "PASS", *times, "" if against is None else said(against[coldest(row)]), rate, *share, memory(row)


def coldest(row):
    """The first of ``timing.CACHES`` with which a row was timed."""
    return next(iter(row["seconds"]))


def warmest(row):
    """The last of them."""
    return list(row["seconds"])[-1]


def memory(row):
    """The peak memory of a row in MB, on a GPU the host's and the GPU's."""
    host = "" if row["peak memory"] is None else f"{row['peak memory'] / 2**20:.1f}"
    return f"{host} + {row['gpu']['peak memory'] / 2**20:.1f}" if "gpu" in row else host


def work(row):
    """What no implementation of the row's case does without, in words; "" if nothing was timed."""
    return f"{row['flops'] / 1e9:.3g} GFLOP, {row['bytes'] / 1e6:.3g} MB" if row["verdict"] == "PASS" else ""


def said(ratio):
    """A ratio with its interval in words."""
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] {ratio['verdict']}"


def conditions(results):
    """The machine and the settings, in sentences."""
    machine, (before, after) = results["machine"], results["limits before and after"]
    gemm = ", ".join(
        f"{rate / 1e9:.0f} and {after['gemm'][dtype] / 1e9:.0f} GF/s in {dtype}"
        for dtype, rate in before["gemm"].items()
    )
    load = " and ".join(f"{one[0]:.1f}" for one in results["load"])
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    judged = [row["judged in"] for row in results["rows"] if "judged in" in row]
    judging = f" Judging a provider on a case, its truth aside, took at most {max(judged):.1f} s." if judged else ""
    return (
        f"{machine['processor']['name']}, {machine['threads']} threads for every provider, {machine['time']}, load "
        f"{load} before and after; {versions}. {_gpu(results)}The machine's own limits, at both ends of the same run, "
        f"of which the "
        f"better counts: products of matrices {gemm}, copies {before['bandwidth'] / 1e9:.1f} and "
        f"{after['bandwidth'] / 1e9:.1f} GB/s.{judging}"
    )


def _gpu(results):
    """The GPU, its clocks and what slowed it down, in a sentence; "" for a run on processors."""
    found = results["machine"].get("gpu")
    if found is None:
        return ""
    rows = [row for row in results["rows"] if "gpu" in row]
    clocks = sorted({float(state["processor MHz"]) for row in rows if (state := row["gpu"]["state"])})
    slowed = [slowed_by(row["gpu"]["state"]) for row in rows]
    reasons = ", ".join(sorted(set().union(*slowed)))
    how = "each call a captured graph" if results.get("graphs") else "each call with its launches"
    return (
        f"{found['name']}, {found['memory'] / 2**30:.0f} GB, CUDA {found['CUDA']}, {how}; its clock at "
        f"{f'{clocks[0]:.0f} to {clocks[-1]:.0f} MHz' if clocks else 'an unknown rate'}, slowed down in "
        f"{sum(map(bool, slowed))} of {len(rows)} rows{f' ({reasons})' if reasons else ''}. "
    )


def markdown(results):
    """A table for a README: of every case what was timed, milliseconds with a cold cache, and the ratio to the base."""
    header = ("case", "provider", "ms", "× base", "% of limit")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in results["rows"]:
        head = f"| {row['case']} | `{row['provider']}` |"
        if row["verdict"] == "PASS":
            against = said(row["ratio"][coldest(row)]) if row.get("ratio") and row["provider"] != row["base"] else "1"
            share = f"{100 * row['share of limit']:.0f} ({row['binding limit']})"
            lines.append(f"{head} {1e3 * row['seconds'][coldest(row)]:.3g} | {against} | {share} |")
        elif row["verdict"] != "does not apply":
            lines.append(f"{head} {row['verdict']} | | |")
    if "bars" in results:
        lines += ["", *("| " + " | ".join(row) + " |" for row in (BARS, ("---",) * len(BARS), *results["bars"]))]
    return "\n".join([*textwrap.wrap(conditions(results), 120), "", *lines, ""])


def summary(results, provider="saccade"):
    """A short table for a README: for each operation the ratios of a provider to the base, with a warm cache."""
    lines = [
        "| operation | cases | compared with | times as fast | share of the machine's limit |",
        "|---|---|---|---|---|",
    ]
    groups = {}
    for row in results["rows"]:
        if row["provider"] == provider:
            groups.setdefault((row["operation"], row["dtype"], row["gradients"], row["base"]), []).append(row)
    for (operation, dtype, gradients, base), rows in groups.items():
        alone = base == provider
        timed = [row for row in rows if row["verdict"] == "PASS" and (alone or row.get("ratio"))]
        what = f"`{operation}`, {dtype}" + ", with gradients" * gradients
        if not timed:
            lines.append(f"| {what} | 0 of {len(rows)} | `{base}` | no time | |")
            continue
        shares = [100 * row["share of limit"] for row in timed]
        cases = str(len(rows)) if len(timed) == len(rows) else f"{len(timed)} of {len(rows)}"
        said_share = f"{shares[0]:.0f} %" if len(timed) == 1 else f"{min(shares):.0f} to {max(shares):.0f} %"
        if alone:
            lines.append(f"| {what} | {cases} | nobody | | {said_share} |")
            continue
        ratios = [row["ratio"][warmest(row)]["median"] for row in timed]
        said_ratio = f"{np.exp(np.mean(np.log(ratios))):.2f}"
        if len(timed) > 1:
            said_ratio += f" ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {what} | {cases} | `{base}` | {said_ratio} | {said_share} |")
    return "\n".join([*lines, ""])


def show(results, console):
    """Tables on a terminal, one a case."""
    from rich.table import Table

    console.print(conditions(results))
    for case in dict.fromkeys(row["case"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["case"] == case]
        least = next((f": {work(row)} at least" for row in rows if work(row)), "")
        drawn = Table(*HEADER[1:], title=f"\n{case}{least}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for row in rows:
            if row["verdict"] != "does not apply":
                drawn.add_row(*cells(row)[1:-1], "" if row["verdict"] != "PASS" else cells(row)[-1])
        console.print(drawn)
        for row in rows:
            if row["verdict"] != "PASS":
                colour = "dim" if row["verdict"] == "does not apply" else "red"
                console.print(f"{row['provider']}: {row['verdict']}: {row['reason'][:300]}", style=colour, markup=False)
    if "bars" in results:
        drawn = Table(*BARS, title="\nBars", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for row in results["bars"]:
            drawn.add_row(*row, style={"yes": "green", "no": "red"}.get(row[-1], "dim"))
        console.print(drawn)


def html(results):
    """One self-contained page."""
    sections = [("Ratios", _ratios(results)), ("Limits", _roofline(results))]
    if growth := _growth(results):
        sections.append(("Growth", growth))
    if "bars" in results:
        sections.insert(0, ("Bars", table(BARS, results["bars"])))
    rows = [(row["case"], work(row), *cells(row)[1:]) for row in results["rows"]]
    sections.append(("Rows", table((HEADER[0], "at least", *HEADER[1:]), rows)))
    what = (
        "Every provider is judged before it is timed, by the whole oracle and on the very case; one that is wrong has "
        "a verdict and no time. A ratio is the base's time by the row's, from calls made in turn on numbers that "
        "change before each of them; brackets are 95 % bootstrap intervals."
    )
    return page("Benchmark", paragraph(what) + paragraph(conditions(results)), sections)


def _timed(results):
    return [row for row in results["rows"] if row["verdict"] == "PASS"]


def _ratios(results):
    from matplotlib import pyplot

    rows = [row for row in _timed(results) if row.get("ratio") and row["provider"] != row["base"]]
    if not rows:
        return paragraph("Nothing was timed beside the base.")
    plot, axes = pyplot.subplots(figsize=(6, 1 + 0.4 * len(rows)))
    middle = np.array([row["ratio"][coldest(row)]["median"] for row in rows])
    ends = np.array([[row["ratio"][coldest(row)][end] for row in rows] for end in ("low", "high")])
    at = np.arange(len(rows))[::-1]
    axes.barh(at, middle - 1, left=1, color=["#2a78c2" if x > 1 else "#c2792a" for x in middle], height=0.7)
    axes.errorbar(middle, at, xerr=np.abs(ends - middle), fmt="none", ecolor="#222", capsize=2, linewidth=1)
    axes.set_yticks(at, [f"{row['provider']}\n{row['case']}" for row in rows], fontsize=7)
    axes.axvline(1, color="#222", linewidth=1)
    axes.set_xscale("log")
    bases = {row["base"] for row in rows}
    what = bases.pop() if len(bases) == 1 else "the base"
    axes.set_xlabel(f"speed, {what} = 1 ({coldest(rows[0])} cache)")
    return figure(plot, "Speed relative to the base, with 95 % intervals; to the right of 1 is faster.")


def _roofline(results):
    from matplotlib import pyplot

    rows = [row for row in _timed(results) if row["flops"]]
    if not rows:
        return paragraph("No case has products of matrices.")
    plot, axes = pyplot.subplots(figsize=(8, 5))
    names = sorted({row["provider"] for row in rows})
    for name in names:
        mine = [row for row in rows if row["provider"] == name]
        intensity = [row["flops"] / row["bytes"] for row in mine]
        rates = [row["flops"] / row["seconds"][warmest(row)] / 1e9 for row in mine]
        axes.plot(intensity, rates, "o", label=name, markersize=5)
    low, high = axes.get_xlim()
    span = np.geomspace(max(low, 0.1), high, 100)
    for dtype, rate in results["limits"]["gemm"].items():
        roof = np.minimum(rate, span * results["limits"]["bandwidth"]) / 1e9
        axes.plot(span, roof, linewidth=1.2, label=f"limit, {dtype}")
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GF/s (warm cache)")
    axes.legend(fontsize=7)
    return figure(plot, "Counted operations by time, below the machine's measured limits.")


def growth_of(results):
    """{(operation, provider, what grows): (lengths, seconds, fitted exponent)} where one size of a case grows."""
    groups = {}
    for row in _timed(results):
        key = (row["operation"], row["provider"], row["dtype"], row["gradients"], *sorted(row["options"].items()))
        groups.setdefault(key, []).append(row)
    found = {}
    for (operation, provider, *_), rows in groups.items():
        what, lengths = _grown([row["sizes"] for row in rows])
        if len(set(lengths)) < 3:
            continue
        order = np.argsort(lengths)
        n, seconds = np.array(lengths)[order], np.array([rows[i]["seconds"][warmest(rows[i])] for i in order])
        found[operation, provider, what] = n, seconds, float(np.polyfit(np.log(n), np.log(seconds), 1)[0])
    return found


def _grown(sizes):
    """(the name, the lengths) of what some cases differ in; ("", ()) if that is nothing, or more than one thing."""
    grown = {name: lengths for name in sizes[0] if len(set(lengths := [one[name] for one in sizes])) > 1}
    if list(grown) == ["h", "w"]:
        return "pixels", [one["h"] * one["w"] for one in sizes]
    if list(grown) == ["t", "s"] and grown["t"] == grown["s"]:
        del grown["s"]
    return next(iter(grown.items())) if len(grown) == 1 else ("", ())


def _growth(results):
    from matplotlib import pyplot

    found, content = growth_of(results), ""
    for operation, what in dict.fromkeys((operation, what) for operation, _, what in found):
        plot, axes = pyplot.subplots(figsize=(6, 4))
        for (mine, provider, its), (n, seconds, exponent) in found.items():
            if (mine, its) == (operation, what):
                axes.plot(n, 1e3 * seconds, "o-", label=f"{provider}: ∝ {what}^{exponent:.2f}")
        axes.set(xscale="log", yscale="log", xlabel=what, ylabel="ms (warm cache)")
        axes.legend(fontsize=8)
        content += figure(plot, f"How the time of {operation} grows, with fitted exponents.")
    return content


def _pairs(results, before):
    """(a row, the same of the run ``before``) of all that were timed in both."""
    old = {(row["case"], row["provider"]): row for row in _timed(before)}
    return [(row, old[key]) for row in _timed(results) if (key := (row["case"], row["provider"])) in old]


def agreement(results, before):
    """(how many, of how many) ratios to the base, cold and warm, are the same in two runs on a machine: their intervals
    meet, or lie no further apart than one run's base lies from itself, its noise floor."""
    both = [
        (ratio, then["ratio"][cache])
        for row, then in _pairs(results, before)
        if row.get("ratio") and then.get("ratio") and row["provider"] != row["base"]
        for cache, ratio in row["ratio"].items()
        if cache in then["ratio"]
    ]
    return sum(_meet(*ratios) for ratios in both), len(both)


def _meet(a, b):
    floor = max(a["floor"], b["floor"])
    return a["low"] <= floor * b["high"] and b["low"] <= floor * a["high"]


def regressions(results, before):
    """Texts about rows that are slower than in the run ``before``, by more than noise: the intervals do not meet."""
    found = []
    for row, then in _pairs(results, before):
        floor = row["ratio"][warmest(row)]["floor"] if row.get("ratio") else 1.05
        if _interval(row)[0] > floor * _interval(then)[1]:
            change = row["seconds"][warmest(row)] / then["seconds"][warmest(then)]
            found.append(f"{row['case']}: {row['provider']} takes {change:.2f} times as long as before")
    return found


def _interval(row):
    """The 95 % bootstrap interval of the median of the warm samples, in seconds."""
    return timing.interval(row["samples"][warmest(row)], np.random.default_rng(0))
