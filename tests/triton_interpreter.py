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
from test_torch_ops import CASES as PUBLIC_CASES, cast, through_torch
from triton_cases import ATTENTION, CASES, CROSS_ENTROPY, TENSORS, check_far_keys

from saccade.families import family_of
from saccade.kernels.triton import attention, layers, losses
from saccade.kernels.triton.memory import INTERPRETED
from saccade.testing import gate
from saccade.testing.frameworks import Framework, adapted
from saccade.torch.arrays import BACKENDS

KERNELS = {
    family: adapted(module, Framework("torch", "cpu"))
    for family, module in {"attention": attention, "layers": layers, "losses": losses}.items()
}

SECONDS = {"attention": 12.0, "softmax_cross_entropy": 6.0}  # of drawn inputs; each law sees one at least

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's own NumPy, at log 0 and −inf − −inf
]


def test_kernels_are_interpreted():
    assert INTERPRETED


@pytest.mark.parametrize(("operation", "function"), kernels_of("triton"))
def test_kernels_pass_the_oracle(operation, function):
    # how the interpreter rounds to bfloat16 is not what is judged here
    claims = replace(TENSORS, dtypes=("float32", "float64", "float16"))
    assert_kernel_passes(operation, function, arrays="torch", claims=claims, budget=SECONDS.get(operation, 3.0))


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_matches_the_reference_where_it_is_awkward(name):
    arguments, options = ATTENTION[name]()
    judged = gate.assert_right("attention", KERNELS["attention"], arguments, options)
    assert gate.verdict(judged) == "PASS"


@pytest.mark.parametrize("name", CROSS_ENTROPY)
def test_cross_entropy_matches_the_reference_where_it_is_awkward(name):
    arguments, options = CROSS_ENTROPY[name]()
    judged = gate.assert_right("softmax_cross_entropy", KERNELS["losses"], arguments, options)
    assert gate.verdict(judged) == "PASS"


@pytest.mark.parametrize("name", CASES)
def test_kernels_match_the_reference_where_it_is_awkward(name):
    operation = name.split(",")[0]
    judged = gate.assert_right(operation, KERNELS[family_of(operation)], *CASES[name]())
    assert gate.verdict(judged) == "PASS"


OPERATIONS = {name for name, _ in kernels_of("triton")}


@pytest.mark.parametrize("case", [case for case in PUBLIC_CASES if case.split()[0] in OPERATIONS])
def test_the_public_functions_run_them_and_differentiate(case, monkeypatch):
    """What a CUDA tensor would go through, with CPU tensors taken for it."""
    monkeypatch.setitem(BACKENDS, "cpu", ("triton",))
    operation, (arguments, options) = case.split()[0], PUBLIC_CASES[case]
    arguments = tuple(cast(x, np.float32) for x in arguments)
    options = {name: cast(x, np.float32) for name, x in options.items()}
    functions = through_torch(operation)
    forward = getattr(functions, f"{operation}_forward")
    setattr(functions, f"{operation}_forward", lambda *x, **named: forward(*x, **named, backend="triton"))
    assert gate.verdict(gate.assert_right(operation, functions, arguments, options)) == "PASS"


def test_parts_of_many_rows_add_up(monkeypatch):
    monkeypatch.setattr(layers, "PARTS", 2)
    rng = np.random.default_rng(0)
    x, scale, bias, residual = (rng.standard_normal(s).astype(np.float32) for s in ((81, 5), 5, 5, (81, 5)))
    gate.assert_right("layer_norm", KERNELS["layers"], (x, scale, bias), {"residual": residual})
    gate.assert_right("rms_norm", KERNELS["layers"], (x, scale))


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
    with pytest.raises(ValueError, match="rows of 16385 numbers, expected at most 16384"):
        layers.rms_norm(torch.zeros(1, 16385), torch.zeros(16385))
