"""Inputs of patch embedding."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from saccade.testing.inputs.parts import EVERYTHING, bias_or_none, dtypes
from saccade.testing.strategies import arrays, images


@st.composite
def patch_embed_inputs(draw, claims=EVERYTHING):
    """For ``patch_embed``."""
    dtype, p = draw(dtypes(claims)), draw(st.sampled_from([1, 2, 3, 4]))
    pictures: Any = draw(images(dtype, p, most=6 if p < 3 else 3))
    if not claims.zero_sized and not len(pictures):
        pictures = np.zeros((1, *pictures.shape[1:]), pictures.dtype)
    c = pictures.shape[3]
    weight = draw(arrays((draw(st.sampled_from([1, 5, 17])), c, p, p), dtype, claims.layouts))
    options = {}
    for name, numbers in (("mean", (0.4, 0.5, 0.6, 0.1)), ("std", (0.2, 0.3, 0.4, 0.5))):
        if claims.takes("patch_embed", name) and draw(st.booleans()):
            options[name] = numbers[:c]
    return (pictures, weight, draw(bias_or_none((len(weight),), dtype, claims))), options
