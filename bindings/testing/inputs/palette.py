"""Inputs of a palette's functions."""

import numpy as np
from hypothesis import strategies as st

from saccade.reference.palette import GRID, assign, unique_colors
from saccade.testing.inputs.parts import EVERYTHING
from saccade.testing.strategies import pixels, seeds


@st.composite
def assign_inputs(draw, claims=EVERYTHING, most=300):
    """For a palette's ``assign``: colours and centres on the grid, some of them equal or as far away."""
    colors, rng = draw(pixels(most)), np.random.default_rng(draw(seeds()))
    k, kind = (
        draw(st.sampled_from([1, 2, 7, 33, 512])),
        draw(st.sampled_from(["colors", "grid", "ties", "all but ties"])),
    )
    if kind == "grid":
        centers = rng.integers(0, 255 * GRID + 1, (k, 3))
    else:
        centers = GRID * colors[rng.integers(0, len(colors), k)].astype(np.int64)
    if kind == "ties":  # a level to either side of colours: many are equally near to two
        centers = np.clip(centers + GRID * rng.integers(-1, 2, (k, 3)), 0, 255 * GRID)
    if kind == "all but ties":  # pairs on opposite sides of a colour, one nearer by a unit of the grid
        step = rng.integers(-60 * GRID, 60 * GRID, ((k + 1) // 2, 3))
        step[:, 1] = step[:, 0]  # so that a unit more in one channel and less in the other all but cancel
        off = np.array([[0, 0, 0], [1, 0, 0], [1, -1, 0]])[rng.integers(0, 3, len(step))]
        pairs = np.stack([step, off - step], 1).reshape(-1, 3)[:k]
        centers = np.clip(GRID * colors[0].astype(np.int64) + pairs, 0, 255 * GRID)
    return (colors, centers.astype(np.int32)), {}


@st.composite
def update_inputs(draw, claims=EVERYTHING):
    """For a palette's ``update``: assignments that leave centres empty among them."""
    (colors, centers), _ = draw(assign_inputs(claims))
    rng = np.random.default_rng(draw(seeds()))
    counts = rng.integers(1, draw(st.sampled_from([2, 1000, 2**30])), len(colors))
    return (colors, counts, rng.integers(0, len(centers), len(colors)).astype(np.int32), centers), {}


@st.composite
def fit_inputs(draw, claims=EVERYTHING):
    """For a palette's ``fit``: distinct colours, few steps or none."""
    (colors, centers), _ = draw(assign_inputs(claims))
    colors, counts = unique_colors(colors)
    centers = centers[: claims.most_centers]
    if not claims.empty_clusters:
        centers = centers[np.unique(assign(colors, centers))][: max(1, len(colors) - 1)]
    return (colors, counts, centers), {
        "iterations": draw(st.sampled_from([0, 1, 2, 10] if claims.exact else [1, 2, 10]))
    }
