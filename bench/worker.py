"""One row of a benchmark in a process of its own, so that a provider that crashes or hangs costs that row alone.

``python -m saccade.bench.worker FOLDER FILE`` reads ``task.json`` there and writes ``result.json``; what it is doing it
tells to an open file, of which it gets the number.
"""

import hashlib
import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

from saccade.bench import judging, pairs, timing
from saccade.bench.cases import Case
from saccade.bench.device import device
from saccade.bench.problem import Problem
from saccade.bench.providers import claims_of, provider
from saccade.bench.turns import Turns, held
from saccade.reference.precision import compute_dtype
from saccade.testing import gate
from saccade.testing.subject import time_limit

BURST, MOST = 0.3, 500  # seconds of calls, and how many, that the parent process takes the time of, too
BURSTS, MOST_BURSTS = 3, 10  # of which the fastest counts: other work on the machine may slow one down


def row(task, tell):
    """Judge and time one provider on one case, beside the base if there is one: the row as a dictionary."""
    case, rng, where = Case(**task["case"]), np.random.default_rng(task["seed"]), device(task["device"])
    _threads(task["threads"])
    if judging.is_large(case) and not pairs.judgeable(case.dtype):
        reason = f"the truth of more than {judging.PAIRS} pairs is float64's, which is not wide enough to judge it"
        return {"verdict": "INCONCLUSIVE", "reason": reason}
    inputs = [drawn(case, int(rng.integers(2**32))) for _ in range(2)]
    large = judging.is_large(case) or case.operation == "model"
    parts = _parts_shared(case, inputs, task, rng, tell) if large else None
    made, turns = provider(task["provider"]), Turns(task["shared"])
    with turns.together():
        forward, backward, problem = _applied(made, case, inputs[0], where)
        if forward is None:
            return {"verdict": "does not apply", "reason": backward}
        oracle = None
        if task["oracle"] and case.operation != "model":  # of which the oracle knows nothing
            tell("judging")
            claims = claims_of(task["provider"], made)
            oracle, says = judging.judge_provider(made, claims, case, task["oracle"], where.name)
            if oracle != "PASS":
                return {"verdict": oracle, "reason": says or "too little could be judged", "oracle": oracle}
        tell("judging the case")
        begun = time.perf_counter()
        found = _judged(case, problem, parts or _parts(case, inputs, rng), forward, backward)
        judged = {"oracle": oracle, "judged in": time.perf_counter() - begun}
        if found is not None:
            return found | judged
        contenders = [_contender(made, case, inputs, problem, forward, backward, where)]
        base = provider(task["base"])
        against, its_backward, its_problem = _applied(base, case, inputs[0], where)
        if against is not None:
            contenders.append(_contender(base, case, inputs, its_problem, against, its_backward, where))
        if task["graph"]:
            try:
                for one in contenders:
                    one.call = where.captured(one.call)
            except Exception as error:  # whatever a provider does that a graph cannot hold
                first = error.__context__ or error  # torch says of a capture that failed only that it did
                return {"verdict": "does not apply", "reason": f"no graph holds it: {first}", **judged}
    tell("timing")
    with turns.alone():
        raced = _raced(case, contenders, inputs, task, rng, tell, where)
    if raced["verdict"] == "PASS":
        with turns.together():
            again = (parts or _parts(case, inputs, rng))[::-1]
            raced = _judged(case, problem, again, forward, backward) or raced
    return raced | judged


def _raced(case, contenders, inputs, task, rng, tell, where):
    mine = contenders[0]
    filled = [(arguments, cotangents) for arguments, _, cotangents in inputs]
    for one in contenders:
        timing.warm_up(one, filled, where)
    timing.race(contenders, filled, task["seconds"], rng, where, task["samples"], task["caches"])
    results = []
    for numbers in filled:
        mine.problem.fill(*numbers)
        returned = mine.call()
        time.sleep(0.02)
        where.wait()
        results.append(mine.problem.entries(returned))
    if late := timing.stale(mine, results):
        return {"verdict": "FAIL", "reason": f"{late} of {len(mine.seen)} timed calls had not their own results"}
    one = max(1e-9, np.median(mine.samples[task["caches"][-1]]))
    burst = int(min(MOST, 1 + min(BURST, task["seconds"]) / one))
    lasted = _bursts(mine.call, burst, one, where, tell)
    flops, size = case.work()
    return {
        "verdict": "PASS", "samples": mine.samples,
        "base samples": contenders[1].samples if len(contenders) > 1 else None,
        "flops": flops, "bytes": size, "burst": min(lasted), **where.figures(mine.call),
    }  # fmt: skip


def _bursts(call, count, seconds, where, tell):
    """How long so many calls in a row take, by this process's clock, several times; and some more if each takes much
    longer than ``seconds``, as where other work comes in between."""
    lasted = []
    while len(lasted) < (BURSTS if count > 1 else 1) or (
        min(lasted) > 2 * count * seconds + 0.05 and len(lasted) < MOST_BURSTS
    ):
        tell(f"burst begins {count}")
        start = time.perf_counter()
        for _ in range(count):
            call()
        where.wait()
        lasted.append(time.perf_counter() - start)
        tell("burst ends")
    return lasted


def drawn(case, seed):
    """Arguments, options and, if the case has gradients, cotangents, which are no multiples of arguments."""
    arguments, options = case.inputs(seed)
    like = _like_outputs(case, arguments, options) if case.gradients else ()
    return arguments, options, gate.draw_cotangents(like, (seed, 1))


def _like_outputs(case, arguments, options):
    """Arrays of the outputs' shapes and dtypes, without computing what takes long."""
    first, size = arguments[0], case.sizes
    if case.operation == "attention":
        return (np.ones((*first.shape[:3], arguments[2].shape[3]), first.dtype),)
    if case.operation == "qkv_attention":
        return (np.ones(first[:, :, 0].shape, first.dtype),)
    if case.operation == "patch_embed":
        patches = (size["h"] // size["p"]) * (size["w"] // size["p"])
        return (np.ones((size["b"], patches, size["e"]), arguments[1].dtype),)
    if case.operation in ("conv2d", "average_pool", "linear", "embedding"):
        return (np.ones(_shape_of(case), arguments[-1].dtype),)
    if case.operation in (*judging.ROWWISE, "batch_norm", "varlen_attention"):
        return (np.ones_like(first),) * (2 if "residual" in options else 1)
    rows = (size["n"],) if options.get("reduction") == "none" else ()
    return (np.ones(rows, compute_dtype(first.dtype)),)


def _shape_of(case):
    n, options = case.sizes, case.options
    if case.operation == "conv2d":
        stride, margins = options.get("stride", 1), 2 * options.get("padding", 0)
        return n["b"], *((n[side] + margins - n["p"]) // stride + 1 for side in "hw"), n["e"]
    if case.operation == "average_pool":
        return n["b"], n["h"] // n["p"], n["w"] // n["p"], n["c"]
    return n["n"], n["f" if case.operation == "linear" else "e"]


def _applied(made, case, inputs, where):
    problem = Problem(case.operation, *inputs, timed=True, dtype=case.dtype, device=where.name)
    forward, backward = made(problem)
    if forward is not None and case.gradients and backward is None:
        return None, "it offers no gradients", problem
    return forward, backward, problem


def _parts(case, inputs, rng):
    """What is judged of each of the inputs, drawn anew."""
    return [judging.part_of(case, *one, rng=rng) for one in inputs]


def _parts_shared(case, inputs, task, rng, tell):
    """The same of a large contrastive loss or a whole model, always the same and made before any provider is there:
    what they are held to takes so long that the workers of a run share it."""
    tell("computing the truth")
    name = hashlib.sha256(f"{case.name} {task['seed']}".encode()).hexdigest()[:16]
    paths = [Path(task["shared"], f"{name}-{i}.npz") for i in range(2)]
    part_of = judging.part_of_model if case.operation == "model" else judging.part_of_pairs
    with held(Path(task["shared"], name)):  # or several workers would compute it
        return [part_of(case, *one, rng=rng, path=path) for one, path in zip(inputs, paths, strict=True)]


def _judged(case, problem, parts, forward, backward):
    """None if the provider is right on both inputs, else the row that says what is wrong."""
    for part in parts:
        problem.fill(part.whole_arguments, part.whole_cotangents)
        judged = judging.judge_case(problem, part, forward, backward if case.gradients else None)
        failed = [str(one) for one in judged if one.verdict == "FAIL"]
        if failed:
            return {"verdict": "FAIL", "reason": "on the case: " + "; ".join(failed)}
    return None


def _contender(made, case, inputs, problem, forward, backward, where):
    wake = _applied(made, case, inputs[1], where)[1 if case.gradients else 0]
    return timing.Contender(problem, backward if case.gradients else forward, wake)


def _threads(count):
    from saccade.kernels.numba.threads import set_threads

    set_threads(count)
    if importlib.util.find_spec("torch") is not None:  # whoever imports it later
        import torch

        torch.set_num_threads(count)


def _end_with_parent():
    """Standard input ends when the parent process does, however that is: then nobody is left to wait for the row."""
    sys.stdin.buffer.read()
    os._exit(1)


def main(folder, journal):
    """Read the task, do it, write the result or the error."""
    task = json.loads(Path(folder, "task.json").read_text())
    os.set_inheritable(int(journal), False)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(line):
        os.write(int(journal), f"{line}\n".encode())

    sys.path.append(os.getcwd())
    try:
        with time_limit(task["limit"]):
            result = row(task, tell)
    except Exception as error:  # a provider may raise anything
        said = (str(error).splitlines() or [""])[0][:200]
        result = {"verdict": "ERROR", "reason": f"it raised {type(error).__name__}: {said}"}
    done = Path(folder, "done.json")
    done.write_text(json.dumps(result))
    done.rename(Path(folder, "result.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
