"""Hypothesis strategies for inputs that reveal faults: awkward lengths, layouts, masks and values.

Shapes and layouts are drawn by Hypothesis, so that they shrink; values come from a seed it draws.
"""

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

DTYPES = tuple(map(np.dtype, (np.float32, np.float64, ml_dtypes.bfloat16, np.float16)))
LAYOUTS = ("dense", "reversed axes", "every other", "misaligned", "broadcast", "read-only")
REGIMES = ("normal", "large", "near ties", "constant", "tiny")


def lengths(most=40, least=0):
    """Sequence lengths: small ones, primes, and the edges of blocks of 16, 32, 64 and 192 as far as ``most``."""
    edges = [0, 1, 2, 3, 5, 7, 13, 15, 16, 17, 24, 31, 32, 33, 37, 63, 64, 65, 96, 191, 192, 193]
    return st.sampled_from([n for n in edges if least <= n <= most])


def laid_out(values, layout):
    """The same values as ``values``, in memory the way ``layout`` says (a name in ``LAYOUTS``)."""
    if layout == "reversed axes":
        return np.ascontiguousarray(values.T).T
    if layout == "every other" and values.ndim:
        wide = np.full((*values.shape[:-1], 2 * values.shape[-1] + 1), np.nan, values.dtype)
        wide[..., 1::2] = values
        return wide[..., 1::2]
    if layout == "misaligned":
        buffer = np.zeros(values.nbytes + 1, np.uint8)
        view = buffer[1:].view(values.dtype).reshape(values.shape)
        view[...] = values
        return view
    if layout == "broadcast" and values.ndim and values.shape[0] > 1:
        return np.broadcast_to(values[:1], values.shape)
    if layout == "read-only":
        values = values.copy()
        values.flags.writeable = False
    return values


def _values(rng, shape, dtype, regime):
    x = rng.standard_normal(shape)
    if regime == "large":
        x = x * 30
    elif regime == "near ties":
        x = 1 + x * 1e-3
    elif regime == "constant":
        x = np.full(shape, rng.standard_normal())
    elif regime == "tiny":
        x = x * 1e-4
    return x.astype(dtype)


@st.composite
def arrays(draw, shape, dtype, layouts=LAYOUTS, regimes=("normal",)):
    """Floating-point arrays of one shape and dtype, in any layout and regime of values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return laid_out(_values(rng, shape, dtype, draw(st.sampled_from(regimes))), draw(st.sampled_from(layouts)))


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
    return st.builds(build, st.sampled_from(names), st.integers(0, 2**32 - 1))


def broadcastable(shape):
    """Shapes that broadcast to ``shape``: some axes 1, some leading axes absent."""

    def build(kept, dropped):
        narrow = tuple(n if keep else 1 for n, keep in zip(shape, kept, strict=True))
        return narrow[dropped:]

    return st.builds(build, st.tuples(*[st.booleans()] * len(shape)), st.integers(0, 2))


@st.composite
def attention_inputs(draw, dtype=None, most=40, layouts=LAYOUTS):
    """``((query, key, value), options)`` for ``attention``."""
    dtype = draw(dtypes()) if dtype is None else dtype
    b, h = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    t, s = draw(lengths(most)), draw(lengths(most))
    d = draw(st.sampled_from([1, 3, 8, 16, 24, 40, 64, 72, 80]))
    e = draw(st.sampled_from([d, d, d, 1, 5, 16]))
    regime = draw(st.sampled_from(REGIMES))
    one = {"dtype": dtype, "layouts": layouts, "regimes": (regime,)}
    query, key = draw(arrays((b, h, t, d), **one)), draw(arrays((b, h, s, d), **one))
    value = draw(arrays((b, h, s, e), dtype=dtype, layouts=layouts))
    options = {"causal": draw(st.booleans()), "return_lse": draw(st.booleans())}
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([1.0, 0.125, -0.5, 0.0]))
    if draw(st.booleans()):
        options["key_lengths"] = np.array(draw(st.lists(st.integers(0, s), min_size=b, max_size=b)), np.int64)
    if draw(st.booleans()):
        shape = draw(broadcastable((b, h, t, s)))
        if len(shape) >= 2:
            options["mask"] = draw(masks(shape))
    if draw(st.booleans()):
        options["bias"] = draw(arrays(draw(broadcastable((b, h, t, s))), dtype, layouts))
    return (query, key, value), options


@st.composite
def qkv_inputs(draw, dtype=None, most=40, layouts=LAYOUTS):
    """``((qkv,), options)`` for ``qkv_attention``."""
    dtype = draw(dtypes()) if dtype is None else dtype
    b, n, h = draw(st.integers(0, 3)), draw(lengths(most)), draw(st.integers(1, 3))
    d = draw(st.sampled_from([1, 8, 24, 64, 72]))
    options = {"causal": draw(st.booleans())}
    if draw(st.booleans()):
        options["key_lengths"] = np.array(draw(st.lists(st.integers(0, n), min_size=b, max_size=b)), np.int64)
    return (draw(arrays((b, n, 3, h, d), dtype, layouts)),), options


@st.composite
def varlen_inputs(draw, dtype=None, layouts=LAYOUTS):
    """``((query, key, value), options)`` for ``varlen_attention``."""
    dtype = draw(dtypes()) if dtype is None else dtype
    each = draw(st.lists(lengths(33), min_size=1, max_size=4))
    n, h, d = sum(each), draw(st.integers(1, 3)), draw(st.sampled_from([1, 8, 40]))
    three = tuple(draw(arrays((n, h, d), dtype, layouts)) for _ in range(3))
    bounds = np.concatenate([[0], np.cumsum(each)])
    return three, {"cumulative_lengths": bounds, "causal": draw(st.booleans())}
