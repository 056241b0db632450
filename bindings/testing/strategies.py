"""Hypothesis strategies for arrays that reveal faults: awkward lengths, layouts, masks and values.

Shapes and layouts are drawn by Hypothesis, so that they shrink; values come from a seed it draws. What whole
operations take is drawn by ``saccade.testing.inputs``.
"""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from saccade.testing.claims import DTYPES
from saccade.testing.layouts import LAYOUTS, laid_out

# Regimes of values; "normal" first, since Hypothesis shrinks towards it.
REGIMES = ("normal", "large", "near ties", "constant", "tiny", "denormal", "cancelling", "one hot", "zero rows")


def lengths(most=40, least=0):
    """Lengths: 0, 1, primes, and about blocks of 16, 32, 64, 128 and 192: less one, full, one more, and a half more."""
    edges = {0, 1, 2, 3, 5, 7, 13, 37}
    for block in (16, 32, 64, 128, 192):
        edges |= {block - 1, block, block + 1, block + block // 2}
    return st.sampled_from([n for n in sorted(edges) if least <= n <= most])


def head_dims(most=128):
    """Head dimensions: powers of two and what vision transformers have besides (72, 80, 88, 96, 104), and odd ones."""
    return st.sampled_from([d for d in (8, 16, 64, 1, 3, 24, 32, 40, 72, 80, 88, 96, 104, 128) if d <= most])


def values(rng, shape, dtype, regime):
    """An array of one regime of values (a name in ``REGIMES``)."""
    x = rng.standard_normal(shape)
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    if regime == "large":
        x = x * 30
    elif regime == "near ties":
        x = 1 + x * 1e-3
    elif regime == "constant":
        x = np.full(shape, rng.standard_normal())
    elif regime == "tiny":
        x = x * 1e-4
    elif regime == "denormal":
        x = x * (smallest / 8)
    elif regime == "cancelling" and x.ndim:
        half = x.shape[-1] // 2
        x[..., half : 2 * half] = -x[..., :half] * (1 + 2.0**-6)
    elif regime == "zero rows" and x.ndim:
        x = x * (rng.random((*x.shape[:-1], 1)) < 0.5)
    elif regime == "one hot" and x.ndim and x.shape[-1]:
        x = 8.0 * (np.arange(x.shape[-1]) == rng.integers(x.shape[-1], size=(*x.shape[:-1], 1)))
    return x.astype(dtype)


@st.composite
def arrays(draw, shape, dtype, layouts=LAYOUTS, regimes=("normal",)):
    """Floating-point arrays of one shape and dtype, in any layout and regime of values."""
    rng = np.random.default_rng(draw(seeds()))
    return laid_out(values(rng, shape, dtype, draw(st.sampled_from(regimes))), draw(st.sampled_from(layouts)))


def seeds():
    """Seeds for NumPy's generator."""
    return st.integers(0, 2**32 - 1)


def dtypes():
    """The four dtypes of the operations."""
    return st.sampled_from(DTYPES)


def masks(shape):
    """Boolean masks of ``shape``: random, with rows of no key, of one key, of a prefix, and checkerboards."""

    def build(kind, seed):
        rng = np.random.default_rng(seed)
        column, row = np.arange(shape[-1]), np.arange(shape[-2])[:, None]
        kinds = {
            "random": rng.random(shape) < 0.7,
            "empty rows": (rng.random(shape) < 0.7) & (rng.random((*shape[:-1], 1)) < 0.7),
            "one key": np.broadcast_to(column == rng.integers(max(shape[-1], 1)), shape),
            "prefix": np.broadcast_to(column < rng.integers(shape[-1] + 1), shape),
            "checkerboard": np.broadcast_to((column + row) % 2 == 0, shape),
            "nothing": np.zeros(shape, bool),
        }
        return kinds[kind]

    names = ("random", "empty rows", "one key", "prefix", "checkerboard", "nothing")
    return st.builds(build, st.sampled_from(names), seeds())


def broadcastable(shape):
    """Shapes that broadcast to ``shape``: some axes 1, some leading axes absent."""

    def build(kept, dropped):
        narrow = tuple(n if keep else 1 for n, keep in zip(shape, kept, strict=True))
        return narrow[dropped:]

    return st.builds(build, st.tuples(*[st.booleans()] * len(shape)), st.integers(0, 2))


@st.composite
def embeddings(draw, n, e, dtype, layouts=LAYOUTS):
    """(n, e) rows of length 1, as a contrastive loss takes them; sometimes all alike, sometimes not normalised."""
    rng = np.random.default_rng(draw(seeds()))
    # in 16 bits, gradients of rows that are all but the same cancel until nothing can be judged
    kind = draw(st.sampled_from(["unit", "unit", "raw"] + ["alike"] * (np.dtype(dtype).itemsize > 2)))
    x = rng.standard_normal((n, e))
    if kind == "alike":
        x = x[:1] + 1e-2 * x
    if kind != "raw":
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return laid_out(x.astype(dtype), draw(st.sampled_from(layouts)))


def logits(n, k, dtype, layouts=LAYOUTS):
    """(n, k) logits: ordinary, certain, all alike, and far below 0, where exp without a shift is 0."""
    shapes = arrays((n, k), dtype, layouts, regimes=("normal", "large", "constant", "one hot", "denormal"))

    def lowered(x, low):
        return x - x.dtype.type(200) if low else x

    return st.builds(lowered, shapes, st.booleans())


@st.composite
def labels(draw, n, k, ignore_index=-100, ignored=True):
    """(n,) classes below k; some, all or none of them, if ``ignored``, are ``ignore_index``."""
    rng = np.random.default_rng(draw(seeds()))
    drawn = rng.integers(0, max(k, 1), n).astype(draw(st.sampled_from([np.int64, np.int32])))
    drawn[rng.random(n) < draw(st.sampled_from([0, 0.3, 1] if ignored else [0]))] = ignore_index
    return drawn


@st.composite
def images(draw, dtype, patch=4, most=3):
    """(b, h, w, c) pictures, uint8 or of ``dtype``, whose sides are multiples of ``patch``."""
    shape = (draw(st.integers(0, 3)), *(patch * draw(st.integers(1, most)) for _ in "hw"), draw(st.integers(1, 4)))
    if draw(st.booleans()):
        return np.random.default_rng(draw(seeds())).integers(0, 256, shape).astype(np.uint8)
    return draw(arrays(shape, dtype))


@st.composite
def pixels(draw, most=300):
    """(n, 3) uint8 colours: all over the cube, few distinct ones, greys, or one."""
    rng = np.random.default_rng(draw(seeds()))
    n, kind = draw(st.integers(1, most)), draw(st.sampled_from(["any", "few", "grey", "one"]))
    drawn = rng.integers(0, 256, (n, 3))
    if kind == "few":
        drawn = drawn[rng.integers(0, min(n, 7), n)]
    elif kind == "grey":
        drawn = np.repeat(drawn[:, :1], 3, 1)
    elif kind == "one":
        drawn = np.repeat(drawn[:1], n, 0)
    return drawn.astype(np.uint8)
