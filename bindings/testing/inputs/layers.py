"""Inputs of the layers of a transformer block."""

import numpy as np
from hypothesis import strategies as st

from saccade.testing.inputs.parts import EVERYTHING, NORMS, WIDTHS, bias_or_none, dtypes, rows, sometimes
from saccade.testing.strategies import arrays


@st.composite
def layer_norm_inputs(draw, claims=EVERYTHING, operation="layer_norm"):
    """For ``layer_norm`` (and without the bias for ``rms_norm``)."""
    dtype, width, options = draw(dtypes(claims)), draw(st.sampled_from(WIDTHS)), {}
    x, scale = draw(rows(dtype, width, claims)), draw(arrays((width,), dtype, claims.layouts))
    if claims.takes(operation, "eps"):
        options["eps"] = draw(st.sampled_from([1e-6, 1e-5, 0.1]))
    if claims.takes(operation, "residual") and draw(st.booleans()):
        options["residual"] = draw(arrays(x.shape, dtype, claims.layouts))
    if operation == "rms_norm":
        return (x, scale), options
    return (x, scale, draw(bias_or_none((width,), dtype, claims))), options


def rms_norm_inputs(claims=EVERYTHING):
    """For ``rms_norm``."""
    return layer_norm_inputs(claims, "rms_norm")


@st.composite
def gelu_inputs(draw, claims=EVERYTHING):
    """For ``gelu``."""
    dtype, options = draw(dtypes(claims)), {}
    if claims.takes("gelu", "kind"):
        options["kind"] = draw(st.sampled_from(["erf", "tanh", "sigmoid"]))
    return (draw(rows(dtype, draw(st.sampled_from(WIDTHS)), claims)),), options


@st.composite
def l2_normalize_inputs(draw, claims=EVERYTHING):
    """For ``l2_normalize``."""
    options = {"eps": draw(st.sampled_from([1e-6, 0.5]))} if sometimes(draw, claims, "l2_normalize", "eps") else {}
    return (draw(rows(draw(dtypes(claims)), draw(st.sampled_from(WIDTHS)), claims)),), options


@st.composite
def linear_inputs(draw, claims=EVERYTHING):
    """For ``linear``."""
    dtype, i, o = draw(dtypes(claims)), draw(st.sampled_from(WIDTHS)), draw(st.sampled_from([1, 3, 17, 64]))
    # processors' bfloat16 dot products take denormal numbers for 0
    regimes = tuple(name for name in NORMS if name != "denormal" or dtype != "bfloat16")
    x, weight = draw(rows(dtype, i, claims, regimes)), draw(arrays((o, i), dtype, claims.layouts))
    return (x, weight, draw(bias_or_none((o,), dtype, claims))), {}


@st.composite
def mlp_inputs(draw, claims=EVERYTHING):
    """For ``mlp``."""
    (x, weight_in, bias_in), _ = draw(linear_inputs(claims))
    o, hidden, dtype = draw(st.sampled_from([1, 5, 16])), len(weight_in), weight_in.dtype
    weight_out = draw(arrays((o, hidden), dtype, claims.layouts))
    options = {"kind": draw(st.sampled_from(["erf", "tanh", "sigmoid"]))} if claims.takes("mlp", "kind") else {}
    return (x, weight_in, bias_in, weight_out, draw(bias_or_none((o,), dtype, claims))), options


@st.composite
def embedding_inputs(draw, claims=EVERYTHING):
    """For ``embedding``: tokens that repeat, are missing, or are none."""
    rows = draw(st.sampled_from([1, 2, 7, 50]))
    tokens = draw(st.lists(st.integers(0, rows - 1), min_size=int(not claims.zero_sized), max_size=40))
    shape = draw(st.sampled_from(["vector", "matrix", "number", "again and again"]))
    if shape == "number":
        tokens = draw(st.integers(0, rows - 1))
    elif shape == "matrix":
        tokens = np.reshape(tokens[: len(tokens) // 2 * 2], (2, -1))
    elif shape == "again and again":  # a sum of many is where 16 bits do not do
        tokens = tokens * 40
    weight = draw(arrays((rows, draw(st.sampled_from(WIDTHS))), draw(dtypes(claims)), claims.layouts))
    return (np.array(tokens, np.int64), weight), {}
