"""Run cases and providers: every row in its own process, its ratio to the base from calls made in turn."""

import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from saccade import environment
from saccade.bench import limits, timing
from saccade.bench.device import device as device_of, variables
from saccade.bench.journal import Journal
from saccade.bench.providers import known, may_apply, provider

LIMIT, CALLS = 300.0, 100  # a row may take so many seconds, and so many calls at the rate of the machine's products
PROCESSES = 3  # in which every row is timed
LIES = 3.0  # how much longer calls may take by this process's clock than by the worker's


def run(
    cases, providers=None, *, seconds=1.0, samples=timing.SAMPLES, processes=PROCESSES, caches=timing.CACHES,
    oracle=4.0, threads=None, seed=0, device="cpu", graph=False, jobs=1, minutes=None, journal=None, told=None,
):  # fmt: skip
    """Judge and time: the results as a dictionary that JSON can carry.

    Args:
        cases: a list of ``Case``.
        providers: names, or names by operation; for each case, the first that computes its operation is the base. All
            known ones if None.
        seconds: of timing for a row, at least; the base has as many in each row.
        samples: of each contender with each cache in a process, at least.
        processes: in which every row is timed, one after the other.
        caches: "cold" and "warm", or one of them.
        oracle: seconds of the whole oracle, once for each provider, operation and dtype; 0 for none.
        threads: for every provider; all processors if None.
        seed: of all that is drawn.
        device: "cpu" or "cuda".
        graph: on a GPU, whether a captured graph of a call is timed, without its launches.
        jobs: on a GPU, rows that are prepared and judged at a time; one alone is timed.
        minutes: after which no more rows are begun; None for all.
        journal: a ``Journal`` of rows that an interrupted run has measured, and of those to come.
        told: called with (done, of, what) before each row.
    """
    journal = journal or Journal(None, {})
    threads, where = threads or len(os.sched_getaffinity(0)), device_of(device)
    if graph and device == "cpu":
        raise ValueError("bench: graph with device='cpu', expected device='cuda': graphs are of launches on a GPU")
    if jobs > 1 and device == "cpu":
        raise ValueError(f"bench: {jobs=} with device='cpu', expected 1: who is timed there needs all processors")
    wanted = providers if isinstance(providers, dict) else {case.operation: providers for case in cases}
    for name in {name for names in wanted.values() for name in names or ()}:
        provider(name)  # one that is not there ends the run before it begins
    dtypes = sorted({case.dtype for case in cases})
    results = {
        "machine": _machine(threads) | where.describe(), "seconds": seconds, "seed": seed,
        **({"graphs": True} if graph else {}), "load": [os.getloadavg()], "rows": [],
    }  # fmt: skip
    names = {
        case.name: [
            name for name in wanted[case.operation] or known(case.operation, device) if may_apply(name, case.operation)
        ]
        for case in cases
    }
    rows = [(case, name) for case in cases for name in names[case.name]]
    floors = {}
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as shared:
        measured = [limits.measured(dtypes, threads, where)]
        common = {
            "seconds": seconds / processes, "samples": samples, "threads": max(1, threads // jobs), "seed": seed,
            "shared": shared, "device": device, "graph": graph, "caches": caches,
        }  # fmt: skip
        tasks = []
        for case, name in rows:
            limit = LIMIT + CALLS * case.work()[0] / measured[0]["gemm"][case.dtype]
            task = {"case": asdict(case), "provider": name, "base": names[case.name][0], "limit": limit, **common}
            tasks.append((case, task))
        stop = None if minutes is None else time.perf_counter() + 60 * minutes
        for (case, task), row in zip(
            tasks, _measured(tasks, oracle, processes, jobs, stop, journal, told), strict=True
        ):
            row = {"case": case.name, **asdict(case), "provider": task["provider"], "base": task["base"], **row}
            results["rows"].append(_with_figures(row, floors, np.random.default_rng(seed)))
        measured.append(limits.measured(dtypes, threads, where))
    results |= {"limits": limits.best(measured), "limits before and after": measured}
    for row in results["rows"]:
        _set_share(row, results["limits"])
    results["load"].append(os.getloadavg())
    return results


def _machine(threads):
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "processor": environment.processor(), "versions": environment.versions(), "threads": threads,
        "variables": variables(threads), "system": platform.platform(), "commit": commit.stdout.strip() or None,
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }  # fmt: skip


def _measured(tasks, oracle, processes, jobs, stop, journal, told):
    """The row of each (case, task), in their order, or by ``jobs`` threads. What the oracle says of a provider with the
    first case of an operation and dtype holds for the others, which wait for it."""
    rows: list[Any] = [None] * len(tasks)
    keys = [(task["provider"], case.operation, case.dtype, case.gradients) for case, task in tasks]
    heard, ended, begun = {}, threading.Event(), []

    def measure(i):
        (case, task), key = tasks[i], keys[i]
        name = f"{case.name}: {task['provider']}"
        if ended.is_set():
            return
        if told is not None:
            told(sum(row is not None for row in rows), len(rows), name)
        if stop is not None and time.perf_counter() > stop and name not in journal.kept:
            rows[i] = {"verdict": "INCONCLUSIVE", "reason": "its turn did not come in time"}
        else:
            task = task | {"oracle": 0 if key in heard else oracle, "session": jobs > 1}
            rows[i] = heard.get(key) or journal.get(name, partial(_joined, task, processes))
        if rows[i].get("oracle"):  # which says nothing where a provider does not apply
            heard[key] = rows[i] if rows[i]["oracle"] != "PASS" else None
        if jobs > 1 and i == keys.index(key):
            begun.extend(pool.submit(measure, j) for j in range(i + 1, len(tasks)) if keys[j] == key)

    if jobs == 1:
        for i in range(len(tasks)):
            measure(i)
        return rows
    with ThreadPoolExecutor(jobs) as pool:
        try:
            begun.extend(pool.submit(measure, keys.index(key)) for key in dict.fromkeys(keys))
            for done in begun:  # which grows meanwhile
                done.result()
        finally:
            ended.set()
    return rows


def _joined(task, processes):
    """The row of several workers, with a list of samples from each; or of the first that has no time."""
    rows = []
    for _ in range(processes):
        rows.append(_worked(task))
        if rows[-1]["verdict"] != "PASS":
            return rows[-1] | {"oracle": rows[0].get("oracle")}
        task = task | {"oracle": 0}
    joined = {
        name: None if rows[0][name] is None else {cache: [one[name][cache] for one in rows] for cache in rows[0][name]}
        for name in ("samples", "base samples")
    }
    told = [one["peak memory"] for one in rows]
    return rows[0] | joined | {"peak memory": None if None in told else max(told)}


def _worked(task):
    """The row that a worker makes of a task; of its own end, if it makes none."""
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder:
        Path(folder, "task.json").write_text(json.dumps(task))
        mine, its = os.pipe()
        with open(mine, "rb", buffering=0) as journal, open(Path(folder, "errors"), "w+b") as errors:
            worker = subprocess.Popen(
                [sys.executable, "-P", "-m", "saccade.bench.worker", folder, str(its)],
                env={**os.environ, **variables(task["threads"])},
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=(its,),
                start_new_session=task["session"],  # which an interruption does not reach: the thread sees to its end
            )  # fmt: skip
            os.close(its)
            try:
                burst = _watched(worker, journal, task["limit"] + 30)
            finally:
                worker.kill()
                worker.communicate()
            errors.seek(0)
            said = errors.read()
        result = Path(folder, "result.json")
        if not result.exists():
            last = (said.decode(errors="replace").strip().splitlines() or [""])[-1][:200]
            return {"verdict": "ERROR", "reason": f"its process ended with {worker.returncode}, or hung: {last}"}
        row = json.loads(result.read_text())
        if row["verdict"] == "PASS" and burst is not None:
            count, lasted = burst
            claimed, own = count * float(np.median(row["samples"][task["caches"][-1]])), row["burst"]
            if lasted > LIES * own + 0.1:
                reason = f"{count} calls took {lasted:.3g} s by another clock, {own:.3g} s by its own"
                return {"verdict": "FAIL", "reason": reason}
            if lasted > LIES * claimed + 0.1:
                reason = (
                    f"{count} calls in a row took {lasted:.3g} s, those that were timed {claimed / count:.3g} s each"
                )
                return {"verdict": "INCONCLUSIVE", "reason": reason}
        return row


def _watched(worker, journal, most):
    """(how many calls, seconds) of the fastest of the worker's bursts by this process's clock, or None.

    It waits to be told: looking again and again would take a processor from those who are timed.
    """
    start, seen, rest = time.perf_counter(), [], b""
    while time.perf_counter() - start < most:
        if not select.select([journal], [], [], 1.0)[0]:
            if worker.poll() is not None:  # and a process that it has started holds the other end
                break
            continue
        read, now = journal.read(1 << 16), time.perf_counter()
        if not read:
            break
        *lines, rest = (rest + read).split(b"\n")
        seen += [(now, line.decode()) for line in lines]
    bursts = [(now, line) for now, line in seen if line.startswith("burst")]
    lasted = [stop - begun for (begun, _), (stop, _) in zip(bursts[::2], bursts[1::2], strict=False)]
    return (int(bursts[0][1].split()[-1]), min(lasted)) if lasted else None


def _set_share(row, machine_limits):
    """Which of the machine's limits binds a row that was timed, and the share of it."""
    if row["verdict"] == "PASS":
        rate = machine_limits["gemm"][row["dtype"]]
        limit = {"products": row["flops"] / rate, "bytes": row["bytes"] / machine_limits["bandwidth"]}
        row["binding limit"] = max(limit, key=lambda name: limit[name])
        row["share of limit"] = max(limit.values()) / list(row["seconds"].values())[-1]  # warm, if that was timed


def _with_figures(row, floors, rng):
    """The row with medians and ratio; the noise floor is the base's against itself."""
    if row["verdict"] != "PASS":
        return row
    row["seconds"] = {cache: float(np.median(np.concatenate(x))) for cache, x in row["samples"].items()}
    if row["base samples"] is None:
        return row
    row["ratio"] = {}
    for cache in row["samples"]:
        median, low, high = timing.ratio(row["base samples"][cache], row["samples"][cache], rng)
        key = row["case"], cache
        if row["provider"] == row["base"]:  # the same code twice: what differs is noise
            floors[key] = max(high, 1 / low)
        floor = max(1.02, floors.get(key, 1.05))
        said = timing.verdict(low, high, floor)
        row["ratio"][cache] = {"median": median, "low": low, "high": high, "floor": floor, "verdict": said}
    return row
