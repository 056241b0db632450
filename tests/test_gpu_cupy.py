"""The CuPy backend on a GPU, held to the gate. Run with ``pytest -m gpu``."""

import importlib

import pytest
from hypothesis import given, strategies as st

from saccade.testing import gate
from saccade.testing.claims import Claims
from saccade.testing.frameworks import Framework, adapted
from saccade.testing.inputs import INPUTS

pytestmark = pytest.mark.gpu
CLAIMS = Claims(layouts=("dense", "reversed axes", "every other", "sliced", "broadcast"))
FAMILIES = {"attention": "attention", "softmax_cross_entropy": "losses"}


@pytest.mark.parametrize("operation", FAMILIES)
@given(data=st.data())
def test_operation_matches_the_reference(operation, data):
    module = importlib.import_module(f"saccade.kernels.cupy.{FAMILIES[operation]}")
    arguments, options = data.draw(INPUTS[operation](CLAIMS))
    gate.assert_right(operation, adapted(module, Framework("cupy")), arguments, options)


def test_cuda_tensors_reach_these_kernels_by_name():
    import torch

    import saccade

    query = torch.randn(1, 2, 5, 8, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    by_cupy = saccade.attention(query, query, query, backend="cupy")
    by_triton = saccade.attention(query, query, query, backend="triton")
    assert by_cupy.device == query.device and (by_cupy - by_triton).abs().max() < 0.1
    by_cupy.sum().backward()
    assert query.grad.shape == query.shape


def test_cupy_arrays_reach_these_kernels():
    import cupy

    import saccade

    query = cupy.random.standard_normal((1, 2, 5, 8)).astype(cupy.float32)
    out, saved = saccade.attention_forward(query, query, query, causal=True)
    assert isinstance(out, cupy.ndarray) and len(saccade.attention_backward(saved, out)) == 4
