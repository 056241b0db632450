"""How often the error gate fails an implementation that has no fault: ``python -m saccade.bench.false_alarms``.

Inputs of every operation are drawn as for kernels. On each, correct implementations are judged: the numba kernel, the
definition in the inputs' own dtype, and two ordinary ways with the rounding errors of their arithmetic drawn anew. Each
of them is one draw. Results are kept in a JSON file, to which a later run adds.
"""

import argparse
import importlib
import json
import platform
import time
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

from saccade import reference
from saccade.families import family_of
from saccade.files import replacing
from saccade.testing import gate, ordinary
from saccade.testing.inputs import INPUTS
from saccade.testing.subject import differentiable
from saccade.testing.ways import ORDERS, Way

BLOCK = 250  # inputs between two times that results are written down
WAYS = 2


def judged(operation, arguments, options, rng):
    """The verdicts of correct implementations on one input, as (implementation, judgements)."""
    kernels = importlib.import_module(f"saccade.kernels.numba.{family_of(operation)}")
    out, saved = getattr(kernels, f"{operation}_forward")(*arguments, **options)
    cotangents = gate.draw_cotangents(out, int(rng.integers(2**32)))
    outputs_of_kernel = out if isinstance(out, tuple) else (out,)
    standard = gate.Standard(operation, arguments, options, cotangents)
    yield "numba", standard.judge(out, getattr(kernels, f"{operation}_backward")(saved, *cotangents))
    with np.errstate(all="ignore"):
        out, saved = getattr(reference, f"{operation}_forward")(*arguments, **options)
        yield "definition", standard.judge(out, getattr(reference, f"{operation}_backward")(saved, *cotangents))
        for order in rng.permutation(ORDERS)[:WAYS]:
            way = Way(str(order), gate.working_dtype(arguments), rng, jitter=0)
            outputs, gradients = getattr(ordinary, operation)(way, arguments, options, cotangents)
            likes = differentiable(operation, arguments, options)
            yield str(order), standard.judge(_rounded(outputs, outputs_of_kernel), _rounded(gradients, likes))


def _rounded(arrays, likes):
    return tuple(None if x is None else np.asarray(x).astype(d.dtype) for x, d in zip(arrays, likes, strict=True))


def measure(operation, inputs, number):
    """(draws, inconclusive draws, alarms as texts) over ``inputs`` inputs drawn from seed ``number``."""
    draws, inconclusive, alarms = 0, 0, []
    rng = np.random.default_rng(number)

    @seed(number)
    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def draw(data):
        nonlocal draws, inconclusive
        arguments, options = data.draw(INPUTS[operation]())
        for implementation, judgements in judged(operation, arguments, options, rng):
            draws += 1
            inconclusive += gate.verdict(judgements) == "INCONCLUSIVE"
            failed = [str(one) for one in judgements if one.verdict == "FAIL"]
            if failed:
                shapes = [f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else repr(x) for x in arguments]
                alarms.append(f"{implementation}: {operation}({', '.join(shapes)}, {sorted(options)}): {failed}")

    draw()
    return draws, inconclusive, alarms


def main():
    """Measure until ``--draws`` draws are in the file."""
    description = "Measure how often the error gate fails an implementation that has no fault."
    parser = argparse.ArgumentParser(description=description, epilog="Example: --draws 100000 --out alarms.json")
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--out", type=Path, required=True, help="JSON file that results are added to")
    parser.add_argument("--operations", nargs="*", default=list(INPUTS))
    parser.add_argument("--seed", type=int, default=0, help="of the first block; each block takes the next one")
    arguments = parser.parse_args()
    found = {"machine": platform.machine(), "blocks": arguments.seed, "seconds": 0.0, "operations": {}}
    if arguments.out.exists():
        found = json.loads(arguments.out.read_text())
    while sum(one["draws"] for one in found["operations"].values()) < arguments.draws:
        operation = arguments.operations[found["blocks"] % len(arguments.operations)]
        start = time.perf_counter()
        draws, inconclusive, alarms = measure(operation, BLOCK, found["blocks"])
        one = found["operations"].setdefault(operation, {"draws": 0, "inconclusive": 0, "alarms": []})
        one["draws"], one["inconclusive"] = one["draws"] + draws, one["inconclusive"] + inconclusive
        one["alarms"] += alarms
        found["blocks"], found["seconds"] = found["blocks"] + 1, found["seconds"] + time.perf_counter() - start
        with replacing(arguments.out) as file:
            file.write(json.dumps(found, indent=1).encode())
        print(
            f"{operation}: {draws} draws, {len(alarms)} alarms in {time.perf_counter() - start:.0f} s",
            *alarms,
            sep="\n  ",
        )


if __name__ == "__main__":
    main()
