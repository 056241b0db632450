"""Every kernel of every backend, found by walking ``kernels/``, goes through ``saccade.testing``.

numba's do so here, the others' where they can run (``WALKED``).
"""

import os
import pkgutil

import pytest
from support import assert_kernel_passes, kernels_of

import saccade.kernels
from saccade.families import FAMILIES
from saccade.testing.subject import PALETTE

WALKED = {"numba": "test_kernels.py", "triton": "triton_interpreter.py", "cupy": "test_cuda_on_host.py"}
SECONDS = 60.0 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 0.7


@pytest.mark.parametrize(("operation", "function"), kernels_of("numba"))
def test_kernels_pass_the_oracle(operation, function):
    assert_kernel_passes(operation, function, budget=SECONDS)


def test_numba_has_every_operation():
    assert {name for name, _ in kernels_of("numba")} == {
        *PALETTE,
        *(name for names in FAMILIES.values() for name in names),
    }


@pytest.mark.parametrize("backend", [one.name for one in pkgutil.iter_modules(saccade.kernels.__path__)])
def test_every_backend_is_walked(backend, request):
    walker = request.path.with_name(WALKED[backend])
    assert f'kernels_of("{backend}")' in walker.read_text()
    assert len(kernels_of(backend)) >= 2
