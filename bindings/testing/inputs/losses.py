"""Inputs of losses."""

import numpy as np
from hypothesis import strategies as st

from saccade.testing.inputs.parts import EVERYTHING, dtypes
from saccade.testing.layouts import laid_out
from saccade.testing.strategies import arrays, embeddings, labels, lengths, logits, seeds


@st.composite
def _classification(draw, operation, claims):
    """The options of a cross entropy."""
    options = {}
    if claims.takes(operation, "reduction"):
        options["reduction"] = draw(st.sampled_from(["mean", "sum", "none"]))
    if claims.takes(operation, "label_smoothing"):
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1, 0.5]))
    if claims.takes(operation, "ignore_index"):
        options["ignore_index"] = draw(st.sampled_from([-100, -1, 0]))
    return options


@st.composite
def softmax_cross_entropy_inputs(draw, claims=EVERYTHING):
    """For ``softmax_cross_entropy``."""
    n, k = draw(lengths(65, int(not claims.zero_sized))), draw(st.sampled_from([10, 2, 97, 200, 33, 1]))
    dtype = draw(dtypes(claims))
    options = draw(_classification("softmax_cross_entropy", claims))
    x = draw(logits(n, k, dtype, claims.layouts))
    if claims.soft_labels and draw(st.booleans()):
        shares = np.random.default_rng(draw(seeds())).dirichlet(np.ones(k), n)
        whole = draw(st.sampled_from([1.0, 1.0, 0.75]))  # nothing says that targets add up to 1
        return (x, (whole * shares).astype(dtype)), options
    classes = draw(labels(n, k, options.get("ignore_index", -100), claims.ignored))
    if not options.get("label_smoothing") and draw(st.booleans()):  # classes that cannot be
        barred = (np.random.default_rng(n).random((n, k)) < 0.3) & (np.arange(k) != np.maximum(classes, 0)[:, None])
        x = np.where(barred, x.dtype.type(-np.inf), x)
    return (x, classes), options


@st.composite
def linear_cross_entropy_inputs(draw, claims=EVERYTHING):
    """For ``linear_cross_entropy``."""
    n, k = draw(lengths(65, int(not claims.zero_sized))), draw(st.sampled_from([10, 2, 97, 300, 33, 1]))
    dtype, e = draw(dtypes(claims)), draw(st.sampled_from([8, 1, 40]))
    regime = (draw(st.sampled_from(["normal", "normal", "large"])),)
    options = draw(_classification("linear_cross_entropy", claims))
    hidden, weight = (draw(arrays(shape, dtype, claims.layouts, regime)) for shape in ((n, e), (k, e)))
    return (hidden, weight, draw(labels(n, k, options.get("ignore_index", -100), claims.ignored))), options


@st.composite
def sigmoid_cross_entropy_inputs(draw, claims=EVERYTHING):
    """For ``sigmoid_cross_entropy``."""
    n, k = draw(lengths(65, int(not claims.zero_sized))), draw(st.sampled_from([2, 10, 97, 1]))
    dtype, rng = draw(dtypes(claims)), np.random.default_rng(draw(seeds()))
    kind = draw(st.sampled_from(["shares", "classes", "classes, certain"]))
    targets = (rng.random((n, k)) if kind == "shares" else rng.random((n, k)) < 0.3).astype(dtype)
    options = draw(_classification("sigmoid_cross_entropy", claims))
    if kind == "classes, certain":  # and right: losses of exp(-|x|), which a difference has no digits for
        certain = ((2 * targets - 1) * rng.uniform(5, 40, (n, k))).astype(dtype)
        return (laid_out(certain, draw(st.sampled_from(claims.layouts))), targets), options
    return (draw(logits(n, k, dtype, claims.layouts)), targets), options


@st.composite
def clip_loss_inputs(draw, claims=EVERYTHING, most=193):
    """For ``clip_loss``: logit scales from 1/1000 to beyond the usual limit of 100."""
    dtype, n, e = draw(dtypes(claims)), draw(lengths(most, least=1)), draw(st.sampled_from([8, 16, 40, 64, 8, 1]))
    pair = tuple(draw(embeddings(n, e, dtype, claims.layouts)) for _ in range(2))
    return (*pair, draw(_factor([14.3, 1.0, 1e-3, 100.0, 300.0], dtype, claims))), {}


@st.composite
def siglip_loss_inputs(draw, claims=EVERYTHING, most=193):
    """For ``siglip_loss``."""
    (images, texts, scale), _ = draw(clip_loss_inputs(claims, most))
    return (images, texts, scale, draw(_factor([-10.0, 0.0, 1.5], images.dtype, claims))), {}


@st.composite
def _factor(draw, numbers, dtype, claims):
    number = draw(st.sampled_from(numbers))
    wide = np.float64 if dtype == np.float64 else np.float32
    return np.array(number, wide) if claims.factors and draw(st.booleans()) else number
