"""How long calls take: two contenders in turn, on numbers that change before every call, with a cold and a warm cache.

``saccade.bench.device`` has what times them. Right after it stops, some of the results are copied: work that goes on
elsewhere is not there yet.

Before each timed call the contender makes some that are not timed, on other arrays: threads that fell asleep since its
last call are woken by those, as they are by the operations before in a model, and not at the cost of whoever has most
of them to wait for. Now and then the numbers change after one, lest somebody does the timed call's work in it.
"""

from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

import numpy as np

SAMPLES, FEWEST = 5, 2  # of each contender and cache in a process, at least; where PATIENCE is not enough, fewer
PATIENCE = 5.0  # seconds
CACHES = "cold", "warm"
LONG = 0.25  # seconds: waking the threads of calls as long as that would not show
TRAPS = 0.2  # the share of calls before which the numbers change late


@dataclass
class Contender:
    """A call that is timed.

    Attributes:
        problem: whose numbers are changed before each call.
        call: without arguments.
        wake: the same on arrays of its own, to be called before.
        samples: seconds, by "cold" and "warm", as far as they are timed.
        seen: (which inputs, the copied entries) after each call.
    """

    problem: Any
    call: Any
    wake: Any
    samples: dict = field(default_factory=dict)
    seen: list = field(default_factory=list)


def settle(wake, device):
    """Let others' threads fall asleep, and wake those of the calls to come."""
    sleep(device.pause)
    start = perf_counter()
    wake()
    while wake is not nothing and perf_counter() - start < device.awake:
        wake()


def nothing():
    """What wakes those whose calls take so long that it would not show."""


def _timed(contender, inputs, which, cache, device):
    contender.problem.fill(*inputs[which], again=True)
    if cache == "cold":
        device.flush()
    settle(contender.wake, device)
    returned, seconds = device.seconds(contender.call)
    contender.seen.append((which, contender.problem.entries(returned)))
    return seconds


def _trap(contender, inputs, which):
    """A call whose numbers change after the one before it."""
    contender.problem.fill(*inputs[1 - which], again=True)
    contender.wake()
    contender.problem.fill(*inputs[which], again=True)
    contender.seen.append((which, contender.problem.entries(contender.call())))


def warm_up(contender, inputs, device, seconds=1.0):
    """Call until three calls take as long as the three before them, or for so many seconds; the last duration."""
    times, start = [], perf_counter()
    while True:
        times.append(_timed(contender, inputs, len(times) % 2, "warm", device))
        settled = len(times) >= 6 and np.median(times[-3:]) > 0.9 * np.median(times[-6:-3])
        if settled or (len(times) >= 2 and perf_counter() - start > seconds):
            if times[-1] > LONG:
                contender.wake = nothing
            return times[-1]


def race(contenders, inputs, seconds, rng, device, samples=SAMPLES, caches=CACHES):
    """Time the contenders in turn, the first one first every other time, until the seconds are over."""
    start, rounds = perf_counter(), 0
    while rounds < samples or perf_counter() - start < seconds:
        for cache in caches:
            which = int(rng.integers(2))
            for contender in contenders if rounds % 2 else contenders[::-1]:
                contender.samples.setdefault(cache, []).append(_timed(contender, inputs, which, cache, device))
                if rng.random() < TRAPS:
                    _trap(contender, inputs, which)
        rounds += 1
        if rounds >= min(samples, FEWEST) and perf_counter() - start > max(PATIENCE, 6 * seconds):
            break  # calls so slow that fewer samples have to do


def stale(contender, results):
    """How many timed calls gave results nearer to those of the other inputs than to those of their own."""
    apart = np.linalg.norm(results[0] - results[1])
    return sum(
        bool(not np.linalg.norm(seen - results[which]) < 0.5 * apart) for which, seen in contender.seen
    )  # fmt: skip


def ratio(base, row, rng):
    """The median of base / row over paired samples of several processes, with its ``interval``: (median, low, high)."""
    ratios = [np.divide(*pair) for pair in zip(base, row, strict=True)]
    return float(np.median(np.concatenate(ratios))), *interval(ratios, rng)


def interval(groups, rng, draws=1000):
    """The 95 % bootstrap interval of the median of samples from several processes.

    Processes are drawn first and then samples of each: where memory and threads happen to lie stays with a process.
    """
    drawn = []
    for _ in range(draws):
        some = rng.integers(len(groups), size=len(groups))
        drawn.append(np.median(np.concatenate([rng.choice(groups[i], len(groups[i])) for i in some])))
    return tuple(float(x) for x in np.percentile(drawn, [2.5, 97.5]))


def verdict(low, high, floor):
    """Of a row against the base: "faster", "slower", "same" within the noise floor, or "unclear"."""
    if low > floor:
        return "faster"
    if high < 1 / floor:
        return "slower"
    return "same" if low > 1 / floor and high < floor else "unclear"
