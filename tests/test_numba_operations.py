"""numba's kernels against the reference, through the error gate, on inputs that reveal faults."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from saccade.families import FAMILIES, GRADIENTS, family_of
from saccade.kernels.numba import threads
from saccade.testing import gate, palettes
from saccade.testing.inputs import INPUTS, PALETTE_INPUTS

MODULES = {family: importlib.import_module(f"saccade.kernels.numba.{family}") for family in FAMILIES}
KERNELS = SimpleNamespace(**{name: f for module in MODULES.values() for name, f in vars(module).items()})


@pytest.mark.parametrize("operation", INPUTS)
@given(data=st.data())
def test_operation_matches_the_reference(operation, data):
    arguments, options = data.draw(INPUTS[operation]())
    before = _bytes(arguments, options)
    gate.assert_right(operation, MODULES[family_of(operation)], arguments, options)
    assert before == _bytes(arguments, options), f"{operation} modified its inputs"


@pytest.mark.parametrize("function", PALETTE_INPUTS)
@given(data=st.data())
def test_palette_is_the_definitions_to_the_bit(function, data):
    arguments, options = data.draw(PALETTE_INPUTS[function]())
    out = getattr(importlib.import_module("saccade.kernels.numba.palette"), function)(*arguments, **options)
    assert {
        one.verdict
        for one in palettes.Exact(function, arguments, options).judge(out if isinstance(out, tuple) else (out,))
    } == {"PASS"}


def _bytes(arguments, options):
    return [x.tobytes() for x in (*arguments, *options.values()) if isinstance(x, np.ndarray)]


def test_every_operation_is_among_them():
    assert set(INPUTS) == set(GRADIENTS) == {name for names in FAMILIES.values() for name in names}


CASES = {
    "layer_norm": lambda r: ((r(200, 64), r(64), r(64)), {"residual": r(200, 64)}),
    "mlp": lambda r: ((r(200, 64), r(96, 64), r(96), r(64, 96), r(64)), {}),
    "linear_cross_entropy": lambda r: ((r(200, 64), r(150, 64), np.arange(200) % 150), {}),
    "clip_loss": lambda r: ((r(200, 64), r(200, 64), np.float32(2.0) * np.ones(())), {}),
    "siglip_loss": lambda r: ((r(200, 64), r(200, 64), np.array(2.0), np.array(-1.0)), {}),
    "patch_embed": lambda r: ((r(8, 16, 16, 3), r(32, 3, 4, 4), r(32)), {}),
}


@pytest.mark.parametrize("operation", CASES)
def test_results_have_the_same_bits_for_any_number_of_threads(operation):
    before, results = threads.get_threads(), []
    try:
        for count in (1, 2, 5):
            threads.set_threads(count)
            rng = np.random.default_rng(0)
            arguments, options = CASES[operation](lambda *s, rng=rng: rng.standard_normal(s).astype(np.float32))
            out, saved = getattr(KERNELS, f"{operation}_forward")(*arguments, **options)
            gradients = getattr(KERNELS, f"{operation}_backward")(saved, *gate.draw_cotangents(out))
            outs = out if isinstance(out, tuple) else (out,)
            results.append([x.tobytes() for x in (*outs, *gradients) if x is not None])
    finally:
        threads.set_threads(before)
    assert results[0] == results[1] == results[2]


BUGS = {
    "layer_norm": lambda x, s, b, r: (x, s, b, None if r is None else r * 0),
    "softmax_cross_entropy": lambda g: (g * np.float32(1.01),),
    "clip_loss": lambda i, t, s: (t, i, s),
    "rms_norm": lambda x, s, r: (x * np.float32(1.001), s, r),
}


@pytest.mark.parametrize("operation", BUGS)
def test_a_wrong_gradient_fails(operation):
    rng = np.random.default_rng(0)
    x, y, scale = (rng.standard_normal(s).astype(np.float32) for s in ((6, 16), (6, 16), (16,)))
    inputs = {
        "layer_norm": ((x, scale, scale), {"residual": y}),
        "rms_norm": ((x, scale), {}),
        "softmax_cross_entropy": ((x, np.arange(6)), {"label_smoothing": 0.1}),
        "clip_loss": ((x, y, np.array(2.0, np.float32)), {}),
    }
    backward = getattr(KERNELS, f"{operation}_backward")
    wrong = {
        f"{operation}_forward": getattr(KERNELS, f"{operation}_forward"),
        f"{operation}_backward": lambda saved, *g: BUGS[operation](*backward(saved, *g)),
    }
    with pytest.raises(AssertionError, match="gradient of"):
        gate.assert_right(operation, SimpleNamespace(**wrong), *inputs[operation])
