"""Inputs of what CLIP's ResNets have."""

import numpy as np
from hypothesis import strategies as st

from saccade.testing.inputs.parts import EVERYTHING, bias_or_none, dtypes, rows, sometimes
from saccade.testing.strategies import arrays, seeds


@st.composite
def conv2d_inputs(draw, claims=EVERYTHING):
    """For ``conv2d``."""
    dtype, p, q = draw(dtypes(claims)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    c, e, b = draw(st.integers(1, 3)), draw(st.sampled_from([1, 4, 9])), draw(st.integers(1, 2))
    x = draw(arrays((b, draw(st.integers(3, 8)), draw(st.integers(3, 8)), c), dtype, claims.layouts))
    weight, options = draw(arrays((e, c, p, q), dtype, claims.layouts)), {}
    if claims.takes("conv2d", "stride"):
        options["stride"] = draw(st.integers(1, 3))
    if claims.takes("conv2d", "padding"):
        options["padding"] = draw(st.integers(0, 2))
    return (x, weight, draw(bias_or_none((e,), dtype, claims))), options


@st.composite
def batch_norm_inputs(draw, claims=EVERYTHING):
    """For ``batch_norm``."""
    dtype, c = draw(dtypes(claims)), draw(st.sampled_from([1, 3, 16]))
    x = draw(rows(dtype, c, claims))
    mean, scale, bias = (draw(arrays((c,), dtype, claims.layouts)) for _ in range(3))
    variance = (np.random.default_rng(draw(seeds())).random(c) + 0.1).astype(dtype)
    options = {"eps": draw(st.sampled_from([1e-3, 0.5]))} if sometimes(draw, claims, "batch_norm", "eps") else {}
    return (x, mean, variance, scale, bias), options


@st.composite
def average_pool_inputs(draw, claims=EVERYTHING):
    """For ``average_pool``."""
    size = draw(st.integers(1, 4))
    shape = (draw(st.integers(1, 2)), draw(st.integers(size, 9)), draw(st.integers(size, 9)), draw(st.integers(1, 3)))
    return (draw(arrays(shape, draw(dtypes(claims)), claims.layouts)),), {"size": size}
