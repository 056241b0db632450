"""numba's attention against the reference: values and every gradient, through the error gate."""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

from saccade import reference
from saccade.kernels.numba import attention as kernels, threads
from saccade.testing import gate
from saccade.testing.claims import Claims
from saccade.testing.inputs import attention_inputs


@pytest.mark.parametrize("t, s", [(63, 193), (65, 191), (197, 197), (1, 385), (257, 3), (100, 195)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_attention_matches_the_reference_across_blocks(t, s, causal, dtype):
    """Several blocks of queries and keys, which small drawn examples do not reach; odd numbers of them."""
    rng = np.random.default_rng(t)
    query, key, value = (rng.standard_normal((1, 2, n, 72)).astype(dtype) for n in (t, s, s))
    options = dict(causal=causal, bias=rng.standard_normal((2, 1, s)).astype(dtype), return_lse=True)
    judged = gate.assert_right("attention", kernels, (query, key, value), options)
    assert gate.verdict(judged) == "PASS"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@given(
    st.integers(1, 9) | st.sampled_from([64, 131]), st.sampled_from([1, 5, 16, 72]), st.sampled_from([1, 2]),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_one_query_matches_the_reference(dtype, s, d, step, causal, seed):
    """Which has a kernel of its own: with everything that may hide keys, some of all that there are, from views."""
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal((3, 2, n, d * step)).astype(dtype)[..., ::step] for n in (1, s, s))
    lengths, hidden = np.array([s, s // 2, 0]), rng.random((3, 1, 1, s)) < 0.5
    hidden[0] |= rng.random() < 0.5
    options = dict(mask=~hidden, bias=rng.standard_normal((2, 1, s)).astype(dtype), key_lengths=lengths, causal=causal)
    gate.assert_right("attention", kernels, (query, key, value), options | {"return_lse": True})
    out, lse = kernels.attention(query, key, value, **options, return_lse=True)
    assert not out[2].any() and (lse[2] == -np.inf).all()


def test_what_is_not_finite_reaches_one_query_as_it_should():
    query, key, value = np.ones((1, 1, 1, 4), np.float32), *np.ones((2, 1, 1, 5, 4), np.float32)
    value[..., 4, 0], value[..., 2, 1] = np.inf, np.nan
    out = kernels.attention(query, key, value)
    assert out[..., 0] == np.inf and np.isnan(out[..., 1]) and (out[..., 2:] == 1).all()
    query[..., 0], key[..., 0] = np.inf, -1  # whose scores are all −inf: the fifth key has nothing beside it
    assert not kernels.attention(query, key, np.ones_like(value)).any()
    assert not reference.attention(query, key, np.ones_like(value)).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mask_of_the_lowest_numbers_hides_as_it_should(dtype):
    """As other libraries make theirs; a row that sees nothing else attends to all alike, by the definition."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, 2, 70, 8)).astype(dtype) for _ in range(3))
    bias = np.where(rng.random((70, 70)) < 0.5, 0, np.finfo(dtype).min).astype(dtype)
    bias[1], bias[2] = np.finfo(dtype).min, -1e10
    out, saved = kernels.attention_forward(query, key, value, bias=bias)
    assert gate.verdict(gate.judge("attention", out, None, (query, key, value), {"bias": bias})) == "PASS"
    assert np.abs(out[:, :, 1] - value.mean(2)).max() < 1e-6
    for gradient in kernels.attention_backward(saved, np.ones_like(out)):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_gradients_of_an_odd_number_of_queries_with_scores_far_below_zero(dtype):
    """What pads their tile must not overflow: its weights would be 2^(0 − shift), infinite for log₂ sums about −128."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, 1, 131, 4)).astype(dtype) for _ in range(3))
    query[..., 0], key[..., 0] = 13.6875, -13.6875
    judged = gate.assert_right("attention", kernels, (query, key, value))
    assert gate.verdict(judged) == "PASS"


NARROW = """
import llvmlite.binding as llvm
features = llvm.get_host_cpu_features()
features["avx512f"] = False
llvm.get_host_cpu_features = lambda: features
from saccade.kernels.numba import attention, vectors
from saccade.testing import gate
import ml_dtypes
import numpy as np
assert vectors.BYTES == 32 and not vectors.DOTS
rng = np.random.default_rng(0)
for dtype, (t, s, d) in ((np.float32, (65, 191, 72)), (np.float64, (5, 7, 3)), (ml_dtypes.bfloat16, (65, 191, 31))):
    arguments = tuple(rng.standard_normal((1, 2, n, d)).astype(dtype) for n in (t, s, s))
    judged = gate.assert_right("attention", attention, arguments, dict(causal=True, scale=-0.2, return_lse=True))
    assert gate.verdict(judged) == "PASS", judged
from test_numba_decoding import LONG, by_operations, decoder, made
from saccade.kernels.numba import matrices
matrices.OWN = True
blocks, rooms, tokens = made(LONG, np.float32, 3, 2)
expected, one = by_operations(LONG, blocks, tokens), decoder(LONG, blocks, rooms)
assert all(np.array_equal(one.step(x, i), expected[i]) for i, x in enumerate(tokens))
"""


def test_processors_without_the_widest_vectors_compute_the_same_function(tmp_path):
    folder = str(Path(__file__).parent)
    environment = dict(
        os.environ, NUMBA_CACHE_DIR=str(tmp_path), PYTHONPATH=folder
    )  # kernels are cached by the real processor's features
    done = subprocess.run([sys.executable, "-P", "-c", NARROW], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@given(attention_inputs(most=193), st.integers(1, 5))
def test_results_have_the_same_bits_for_any_number_of_threads(inputs, count):
    arguments, options = inputs
    before = threads.get_threads()
    first = _run(arguments, options)
    try:
        threads.set_threads(count)
        second = _run(arguments, options)
    finally:
        threads.set_threads(before)
    for a, b in zip(first, second, strict=True):
        assert a is b is None or a.tobytes() == b.tobytes()


@given(attention_inputs(Claims(dtypes=("float32",))))
def test_an_item_has_the_same_bits_whatever_else_is_in_the_batch(inputs):
    (query, key, value), options = inputs
    options = {name: options[name] for name in ("causal", "scale") if name in options}
    whole = kernels.attention(query, key, value, **options)
    for i in range(len(query)):
        alone = kernels.attention(query[i : i + 1], key[i : i + 1], value[i : i + 1], **options)
        assert alone.tobytes() == whole[i : i + 1].tobytes()


@given(attention_inputs())
def test_inputs_are_not_modified(inputs):
    arguments, options = inputs
    before = [x.tobytes() for x in (*arguments, *options.values()) if isinstance(x, np.ndarray)]
    _run(arguments, options)
    assert before == [x.tobytes() for x in (*arguments, *options.values()) if isinstance(x, np.ndarray)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, ml_dtypes.bfloat16])
def test_keys_beyond_their_length_are_never_read(dtype):
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, 1, 5, 5)).astype(dtype) for _ in range(3))
    lengths = np.array([3, 5])
    clean = _run((query, key, value), {"key_lengths": lengths})
    key[0, :, 3:], value[0, :, 3:] = np.nan, np.inf
    dirty = _run((query, key, value), {"key_lengths": lengths})
    for a, b in zip(clean, dirty, strict=True):
        assert a is b is None or a.tobytes() == b.tobytes()


def test_a_non_finite_key_reaches_every_query_that_may_see_it():
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, 1, 4, 3)).astype(np.float32) for _ in range(3))
    for bad in (np.nan, np.inf):
        key[0, 0, 1, 0] = bad
        out = kernels.attention(query, key, value, causal=True)
        truth = kernels.attention(query[:, :, :1], key[:, :, :1], value[:, :, :1])
        assert np.isnan(out[0, 0, 1:]).any() and np.array_equal(out[:, :, :1], truth)


def _run(arguments, options):
    out, saved = kernels.attention_forward(*arguments, **options)
    cotangents = gate.draw_cotangents(out)
    return (*(out if isinstance(out, tuple) else (out,)), *kernels.attention_backward(saved, *cotangents))
