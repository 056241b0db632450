"""How large errors are: ``python -m saccade.bench.errors --out errors-cpu.json``.

Every operation, on inputs of a model's size in each dtype: for each output and gradient the root mean
square of the error over that of the truth, and beside it the largest that ordinary implementations have, of which the
gate allows twice as much. What is judged of a case is what ``saccade.bench.judging`` says; no provider is left out for
being wrong, as its row has its verdict.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saccade import environment
from saccade.bench import judging
from saccade.bench.cases import PARTS, case
from saccade.bench.problem import Problem
from saccade.bench.providers import MEANT_COMPILED, may_apply, provider
from saccade.bench.worker import drawn
from saccade.files import replacing
from saccade.testing import gate
from saccade.testing.peers import PEERS

CASES = (
    case("attention", 8, 12, 197, 197, 64),
    case("attention", 1, 8, 1024, 1024, 64, causal=True),
    case("qkv_attention", 8, 197, 12, 64),
    case("patch_embed", 8, 224, 224, 3, 16, 768),
    case("layer_norm", 1576, 768),
    case("layer_norm", 1576, 768, residual=True),
    case("rms_norm", 4096, 512),
    case("gelu", 1576, 3072),
    case("softmax_cross_entropy", 512, 1000),
    case("linear_cross_entropy", 4096, 512, 512),
    case("clip_loss", 1024, 512),
    case("siglip_loss", 1024, 512),
    *PARTS,
)
DTYPES = ("float32", "bfloat16", "float16")
OWN = {"cpu": "saccade", "cuda": "saccade-torch"}


def measured(one, names, device="cpu", seed=0):
    """A dictionary for each provider that applies to a case: what was found of its outputs and gradients.

    ``results`` has for each of them its name, verdict, error and the ordinary error; see ``gate.Judgement``.
    """
    inputs, rng = drawn(one, seed), np.random.default_rng(seed)
    part, found = judging.part_of(one, *inputs, rng=rng), []
    standard = judging.standard_of(part)
    for name in names:
        problem = Problem(one.operation, *inputs, timed=True, dtype=one.dtype, device=device)
        made: Any = provider(name)
        forward, backward = made(problem)
        if forward is None:
            continue
        problem.fill(part.whole_arguments, part.whole_cotangents)
        outputs = part.outputs(problem.outputs(forward()))
        gradients = part.gradients(problem.gradients_of(backward())) if backward is not None else None
        judged = standard.judge(outputs, gradients)
        results = [
            {"name": x.name, "verdict": x.verdict, "error": x.error, "ordinary": x.ordinary} for x in judged
        ]  # fmt: skip
        found.append({
            "operation": one.operation, "case": one.name, "dtype": one.dtype, "provider": name,
            "verdict": gate.verdict(judged), "results": results,
        })  # fmt: skip
    return found


def names_for(operation, device="cpu"):
    """Ours and torch's, as they are without being compiled."""
    theirs = [
        name for name, peer in PEERS.items()
        if name.startswith("torch-") and may_apply(name, operation) and name not in MEANT_COMPILED
        and peer.device in (None, device)
    ]  # fmt: skip
    return [OWN[device], *theirs]


def main():
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description="Measure errors.", epilog="Example: python -m saccade.bench.errors --out errors-cpu.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", choices=list(OWN), default="cpu")
    arguments = parser.parse_args()
    rows = []
    for one in CASES:
        for dtype in DTYPES:
            asked = replace(one, dtype=dtype, gradients=True)
            rows += measured(asked, names_for(one.operation, arguments.device), arguments.device)
            print(asked.name, *(f"{row['provider']} {row['verdict']}" for row in rows if row["case"] == asked.name))
    results = {"processor": environment.processor(), "versions": environment.versions(), "rows": rows}
    with replacing(arguments.out) as file:
        file.write(json.dumps(results, indent=1).encode())


if __name__ == "__main__":
    main()
