"""The Triton kernels in Triton's interpreter, on CPU tensors, through the gate.

``test_triton_interpreted.py`` runs this file in a process of its own, since whether a kernel is interpreted or
compiled is settled when it is defined. What the interpreter does not show: how bfloat16 products round (they are
taken in float32, and bfloat16 results are cut off rather than rounded), and anything about threads or memory.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from support import assert_kernel_passes, kernels_of
from triton_cases import ATTENTION, CROSS_ENTROPY, TENSORS, check_far_keys

from saccade.kernels.triton import attention, losses
from saccade.kernels.triton.memory import INTERPRETED
from saccade.testing import gate
from saccade.testing.frameworks import Framework, adapted

ATTENTION_KERNELS = adapted(attention, Framework("torch", "cpu"))
LOSS_KERNELS = adapted(losses, Framework("torch", "cpu"))

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's own NumPy, at log 0 and −inf − −inf
]


def test_kernels_are_interpreted():
    assert INTERPRETED


@pytest.mark.parametrize(("operation", "function"), kernels_of("triton"))
def test_kernels_pass_the_oracle(operation, function):
    # how the interpreter rounds to bfloat16 is not what is judged here
    claims = replace(TENSORS, dtypes=("float32", "float64", "float16"))
    assert_kernel_passes(operation, function, arrays="torch", claims=claims, budget=12.0)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_matches_the_reference_where_it_is_awkward(name):
    arguments, options = ATTENTION[name]()
    judged = gate.assert_right("attention", ATTENTION_KERNELS, arguments, options)
    assert gate.verdict(judged) == "PASS"


@pytest.mark.parametrize("name", CROSS_ENTROPY)
def test_cross_entropy_matches_the_reference_where_it_is_awkward(name):
    arguments, options = CROSS_ENTROPY[name]()
    judged = gate.assert_right("softmax_cross_entropy", LOSS_KERNELS, arguments, options)
    assert gate.verdict(judged) == "PASS"


@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_a_bad_label_gives_nan_for_its_row_alone(label):
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 5)))
    loss, saved = losses.softmax_cross_entropy_forward(logits, torch.tensor([0, label, 4]), reduction="none")
    (grad,) = losses.softmax_cross_entropy_backward(saved, torch.ones(3, dtype=torch.float64))
    assert torch.isnan(loss).tolist() == [False, True, False]
    assert torch.isnan(grad).all(1).tolist() == torch.isnan(grad).any(1).tolist() == [False, True, False]


@given(st.sampled_from([torch.float32, torch.float64]), st.integers(0, 5))
def test_keys_beyond_their_length_are_never_read(dtype, length):
    generator = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(1, 1, 5, 4, dtype=dtype, generator=generator) for _ in range(3))
    clean = run_attention(query, key, value, torch.tensor([length]))
    key[:, :, length:], value[:, :, length:] = float("nan"), float("inf")
    dirty = run_attention(query, key, value, torch.tensor([length]))
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def run_attention(query, key, value, key_lengths):
    """The output and the gradients for query, key and value."""
    out, saved = attention.attention_forward(query, key, value, key_lengths=key_lengths)
    return out, *attention.attention_backward(saved, torch.ones_like(out))[:3]


def test_offsets_beyond_2_to_the_31_are_reached():
    check_far_keys(attention, "cpu")


def test_rows_too_long_for_a_tile_are_refused():
    query = torch.zeros(1, 1, 1, 1025)
    with pytest.raises(ValueError, match="head dimensions of at most 512"):
        attention.attention(query, query, query)
