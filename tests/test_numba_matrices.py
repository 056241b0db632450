"""Products of matrices by our own kernels: every size, layout and dtype; the bits of a row are its own alone."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st
from support import assert_kernel_passes

from saccade.kernels.numba import layers, matrices
from saccade.kernels.numba.matrices import own_matmul
from saccade.testing import gate

SIZES = st.sampled_from([1, 2, 3, 15, 16, 17, 47, 48, 49, 63, 64, 65, 97, 130, 200, 770])
DEPTHS = st.sampled_from([1, 2, 16, 33, 767, 768, 769, 1535, 1540, 1541])


@pytest.fixture(params=[False, True], ids=["BLAS", "own"])
def either(request, monkeypatch):
    monkeypatch.setattr(matrices, "OWN", request.param)


def laid_out(x, layout):
    if layout == "transposed":
        return np.ascontiguousarray(x.T).T
    if layout == "strided":
        held = np.full((2 * x.shape[0], 3 * x.shape[1]), np.nan, x.dtype)
        held[::2, ::3] = x
        return held[::2, ::3]
    return x


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
@given(SIZES, DEPTHS, SIZES, *[st.sampled_from(["dense", "transposed", "strided"])] * 2, st.booleans())
def test_integers_are_multiplied_exactly(dtype, n, e, k, layout_a, layout_b, biased):
    """Sums of small integers are exact in float32, in any order: no tolerance is needed."""
    rng = np.random.default_rng(n * e + k)
    a, b, bias = (rng.integers(-8, 9, shape).astype(dtype) for shape in ((n, e), (e, k), k))
    wide = np.float64 if dtype == np.float64 else np.float32
    found = own_matmul(laid_out(a, layout_a), laid_out(b, layout_b), wide, bias if biased else None)
    assert np.array_equal(found, a.astype(int) @ b.astype(int) + biased * bias.astype(int))


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16, np.float16])
def test_other_dtypes_are_read_and_rounded_once(dtype):
    rng = np.random.default_rng(0)
    a, b, bias = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((70, 900), (900, 110), 110))
    wide = np.float64 if dtype == np.float64 else np.float32
    expected = a.astype(wide) @ b.astype(wide) + bias.astype(wide)
    assert np.array_equal(own_matmul(a, b, dtype, bias), expected.astype(dtype))
    assert np.array_equal(own_matmul(a, b, wide, bias), expected)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("depth", [805, 1535, 1536])
@pytest.mark.parametrize("lies", [False, True], ids=["weight to be packed", "weight read where it lies"])
def test_a_row_has_the_same_bits_in_any_batch(lies, depth, dtype):
    """A weight that is read where it lies has numbers after each row that are not its own."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((1000, depth)).astype(dtype), rng.standard_normal((depth, 300)).astype(dtype)
    if lies:
        held = np.full((300, depth + 1), np.nan, dtype)
        held[:, :-1] = b.T
        b = held[:, :-1].T
    whole = own_matmul(a, b, np.float32)
    assert np.isfinite(whole).all()
    for rows in (slice(0, 1), slice(3, 5), slice(6, 9), slice(10, 17), slice(900, 1000)):
        assert np.array_equal(own_matmul(a[rows], b, np.float32), whole[rows])


@pytest.mark.parametrize(("dtype", "depth"), [(np.float32, 20), (ml_dtypes.bfloat16, 1541)])
def test_what_is_not_finite_shows_where_it_belongs(dtype, depth):
    """Of an odd depth in bfloat16 the last pair has a number too many, where an earlier one may have stood."""
    a, b = np.ones((200, depth), dtype), np.ones((depth, 100), dtype)
    a[3, 5], b[5, 6] = np.inf, np.nan
    found = own_matmul(a, b, np.float32)
    with np.errstate(invalid="ignore"):  # of which some BLAS tells
        expected = a.astype(np.float32) @ b.astype(np.float32)
    assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("operation", ["linear", "mlp", "patch_embed"])
def test_operations_pass_the_oracle_either_way(either, operation):
    module = "patches" if operation == "patch_embed" else "layers"
    assert_kernel_passes(operation, f"saccade.kernels.numba.{module}:{operation}", budget=2.0)


def test_empty_operands_are_zeros(either):
    out = layers.linear(np.empty((0, 3), np.float32), np.ones((4, 3), np.float32), np.ones(4, np.float32))
    assert out.shape == (0, 4)
    assert np.array_equal(layers.linear(np.empty((2, 0), np.float32), np.empty((4, 0), np.float32)), np.zeros((2, 4)))


def test_gradients_pass_the_gate(either):
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 7, 40), (30, 40), 30))
    out, saved = layers.linear_forward(x, weight, bias)
    grad = rng.standard_normal(out.shape).astype(np.float32)
    judged = gate.judge("linear", out, layers.linear_backward(saved, grad), (x, weight, bias), cotangents=(grad,))
    assert gate.verdict(judged) == "PASS", judged
