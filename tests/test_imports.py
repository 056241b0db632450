"""Importing is free: no framework is loaded, and the reference runs where none is installed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1].resolve()
FRAMEWORKS = ("torch", "triton", "cupy", "numba", "matplotlib")


def run(program):
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_saccade_loads_no_framework():
    assert run(f"import sys, saccade; print([m for m in {FRAMEWORKS} if m in sys.modules])") == "[]"


def test_the_reference_runs_where_no_framework_is_installed():
    program = f"""
import sys
for name in {FRAMEWORKS}:
    sys.modules[name] = None
import numpy as np, saccade
q = np.ones((1, 1, 2, 4))
print(saccade.attention(q, q, q, backend="reference").tolist())
print(saccade.clip_loss(q[0, 0], q[0, 0], 1.0, backend="reference").round(4))
"""
    assert run(program).splitlines() == [str([[[[1.0] * 4] * 2]]), "0.6931"]


def test_the_gate_runs_where_nothing_but_numpy_is_installed():
    program = f"""
import sys
for name in {(*FRAMEWORKS, "hypothesis", "rich", "typer")}:
    sys.modules[name] = None
import numpy as np
from saccade import reference
from saccade.testing import Claims, gate
x = np.ones((2, 3), np.float32)
print(gate.verdict(gate.judge("gelu", reference.gelu(x), None, (x,))))
"""
    assert run(program) == "PASS"


def test_no_folder_of_ours_is_importable_by_its_own_name():
    program = "import sys, saccade.ops, saccade.numpy; print({'reference', 'kernels', 'bindings'} & set(sys.modules))"
    assert run(program) == "set()"


def test_no_folder_of_ours_is_on_the_path():
    path = {Path(entry).resolve() for entry in run("import sys, saccade; print(*sys.path, sep='\\n')").splitlines()}
    assert not path & {ROOT, *(ROOT / name for name in ("reference", "kernels", "bindings", "bench"))}
