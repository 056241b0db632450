"""What inputs of several operations are made of."""

import numpy as np
from hypothesis import strategies as st

from saccade.testing.claims import Claims
from saccade.testing.strategies import arrays

EVERYTHING = Claims()
WIDTHS = (1, 2, 7, 16, 33, 48, 64, 97, 130)
NORMS = ("normal", "large", "near ties", "one hot", "tiny", "zero rows", "denormal")


def dtypes(claims):
    """One of the dtypes that are claimed."""
    return st.sampled_from([np.dtype(_named(name)) for name in claims.dtypes])


def _named(name):
    import ml_dtypes

    return ml_dtypes.bfloat16 if name == "bfloat16" else name


@st.composite
def rows(draw, dtype, width, claims, regimes=NORMS):
    """Rows of ``width`` numbers, under a shape of leading axes."""
    leading = draw(st.sampled_from([(3,), (2, 5), (65,), (1, 1, 2), (130,), ()] + [(0,)] * claims.zero_sized))
    return draw(arrays((*leading, width), dtype, claims.layouts, regimes))


@st.composite
def bias_or_none(draw, shape, dtype, claims):
    """A bias of a shape where they are claimed, or None."""
    return draw(arrays(shape, dtype, claims.layouts)) if claims.biases and draw(st.booleans()) else None


def sometimes(draw, claims, operation, option):
    """Whether an option that is claimed is given."""
    return claims.takes(operation, option) and draw(st.booleans())
