"""What several tests share."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.testing import check
from saccade.testing.check import vjp_beside
from saccade.testing.subject import PALETTE


def assert_close64(actual, expected, bound=1e-10):
    """Equal in float64 up to ``bound`` of the largest expected magnitude: rounding, not a tolerance for faults."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    scale = np.abs(expected).max(initial=0) + 1e-300
    worst = np.abs(actual - expected).max(initial=0) / scale
    assert worst <= bound, f"off by {worst:.2e} of the largest magnitude"


def assert_gradients(function, backward, arrays, step=1e-5):
    """``backward`` is right for ``function`` by central differences in float64.

    ``function(*arrays)`` gives the outputs as a tuple; ``backward(*cotangents)`` the gradients for ``arrays``, for
    the values they have. Central differences are good to about step² and 1e-16/step: 1e-7 of the gradient is asked.
    """
    rng = np.random.default_rng(0)
    cotangents = [rng.standard_normal(np.shape(out)) for out in function(*arrays)]
    gradients = backward(*cotangents)
    assert len(gradients) == len(arrays)

    def total(*values):
        return sum((out * g).sum() for out, g in zip(function(*values), cotangents, strict=True))

    for i, (x, gradient) in enumerate(zip(arrays, gradients, strict=True)):
        differences = np.zeros_like(x)
        for at in np.ndindex(x.shape):
            up, down = x.copy(), x.copy()
            up[at] += step
            down[at] -= step
            ends = total(*arrays[:i], up, *arrays[i + 1 :]), total(*arrays[:i], down, *arrays[i + 1 :])
            differences[at] = (ends[0] - ends[1]) / (2 * step)
        assert_close64(gradient, differences, bound=1e-7)


def kernels_of(backend):
    """(operation, "module:name") of every kernel of a backend, found by walking its folder."""
    package = importlib.import_module(f"saccade.kernels.{backend}")
    found = []
    for one in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(one.name)
        public = [name for name in vars(module) if not name.startswith("_")]
        differentiable = [name.removesuffix("_backward") for name in public if name.endswith("_backward")]
        for name in (*differentiable, *PALETTE):
            if getattr(getattr(module, name, None), "__module__", None) == one.name:
                found.append((name, f"{one.name}:{name}"))
    return found


def assert_kernel_passes(operation, function, **options):
    """``check`` of a kernel and of the gradients beside it; it must judge something, and fail nothing."""
    vjp = None if operation in PALETTE else vjp_beside(function)
    report = check(function, operation, vjp=vjp, **options)
    assert not report.failures, report
    assert operation in PALETTE or report.counts["gradients"][1] > 0


def run_documented(commands, folder):
    """Commands of a document, in turn, in a folder with ``photos`` of two classes; each must succeed."""
    rng = np.random.default_rng(0)
    for i in range(12):
        (folder / "photos" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / "photos" / f"class{i % 2}" / f"{i}.png")
    script = Path(sys.executable).with_name("saccade")
    for command in commands:
        done = subprocess.run([script, *command.split()[1:]], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, (command, done.stderr)
