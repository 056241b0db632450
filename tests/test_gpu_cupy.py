"""The CuPy backend on a GPU, held to the gate. Run with ``pytest -m gpu``."""

import pytest
from support import assert_kernel_passes, kernels_of

from saccade.testing import Claims, check

pytestmark = pytest.mark.gpu
CLAIMS = Claims(layouts=("dense", "reversed axes", "every other", "sliced", "broadcast"))


@pytest.mark.parametrize(("operation", "function"), kernels_of("cupy"))
def test_kernels_pass_the_oracle(operation, function):
    assert_kernel_passes(operation, function, arrays="cupy", claims=CLAIMS, budget=20.0)


def test_cuda_tensors_reach_these_kernels_by_name():
    import torch

    import saccade

    query = torch.randn(1, 2, 5, 8, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    out = saccade.attention(query, query, query, backend="cupy")
    assert out.device == query.device
    out.sum().backward()
    assert query.grad.shape == query.shape

    def by_cupy(*arguments, **options):
        return saccade.attention(*arguments, **options, backend="cupy")

    report = check(by_cupy, "attention", arrays="torch", device="cuda", claims=CLAIMS, budget=20.0)
    assert not report.failures, report


def test_cupy_arrays_reach_these_kernels():
    import cupy

    import saccade

    query = cupy.random.standard_normal((1, 2, 5, 8)).astype(cupy.float32)
    out, saved = saccade.attention_forward(query, query, query, causal=True)
    assert isinstance(out, cupy.ndarray) and len(saccade.attention_backward(saved, out)) == 4
