"""The CuPy backend on a GPU, held to the gate. Run with ``pytest -m gpu``."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from saccade.testing import gate, strategies

pytestmark = pytest.mark.gpu
LAYOUTS = ("dense", "reversed axes", "every other")


def on_the_gpu(family, operation):
    """The operation's functions in the form the gate takes: NumPy in, NumPy out."""
    import importlib

    import cupy

    module = importlib.import_module(f"saccade.kernels.cupy.{family}")

    def moved(x):
        return cupy.asarray(x) if isinstance(x, np.ndarray) else x

    def back(x):
        return tuple(map(back, x)) if isinstance(x, tuple) else cupy.asnumpy(x) if isinstance(x, cupy.ndarray) else x

    def forward(*arguments, **options):
        keywords = {name: moved(x) for name, x in options.items()}
        out, saved = getattr(module, f"{operation}_forward")(*map(moved, arguments), **keywords)
        return back(out), saved

    def backward(saved, *cotangents):
        return back(getattr(module, f"{operation}_backward")(saved, *map(moved, cotangents)))

    return SimpleNamespace(**{f"{operation}_forward": forward, f"{operation}_backward": backward})


@given(strategies.attention_inputs(most=193, layouts=LAYOUTS))
def test_attention_matches_the_reference(inputs):
    gate.assert_right("attention", on_the_gpu("attention", "attention"), *inputs)


@given(strategies.dtypes(), strategies.lengths(65), st.sampled_from([1, 10, 512]), st.sampled_from([0.0, 0.1]))
def test_softmax_cross_entropy_matches_the_reference(dtype, n, k, smoothing):
    rng = np.random.default_rng(n)
    arguments = rng.standard_normal((n, k)).astype(dtype), rng.integers(0, k, n)
    kernel = on_the_gpu("losses", "softmax_cross_entropy")
    gate.assert_right("softmax_cross_entropy", kernel, arguments, {"label_smoothing": smoothing})


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
