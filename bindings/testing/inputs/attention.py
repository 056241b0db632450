"""Inputs of attention, of the packed projection and of packed sequences."""

import numpy as np
from hypothesis import strategies as st

from saccade.testing.inputs.parts import EVERYTHING, dtypes
from saccade.testing.strategies import REGIMES, arrays, broadcastable, head_dims, laid_out, lengths, masks, seeds

SCORES = ("normal", "large", "near ties", "constant", "tiny", "denormal", "cancelling", "one hot", "huge", "far below")


@st.composite
def attention_inputs(draw, claims=EVERYTHING, most=40):
    """For ``attention``."""
    dtype, b, h = draw(dtypes(claims)), draw(st.integers(int(not claims.zero_sized), 3)), draw(st.integers(1, 3))
    fewest = 0 if claims.single_tokens else 2
    least = max(fewest, int(not (claims.zero_sized and claims.empty_rows)))
    t, s = draw(lengths(most, max(fewest, int(not claims.zero_sized)))), draw(lengths(most, least))
    b, h, t, s = draw(_sometimes_larger(b, h, t, s))
    d = draw(head_dims() if claims.head_dims is None else st.sampled_from(claims.head_dims))
    e = draw(st.sampled_from([d, d, d, 1, 5, 16])) if claims.value_dims else d
    options = draw(_attention_options("attention", claims, t, s))
    if options.get("causal") and (claims.causal == "square" or (claims.causal == "end" and not claims.empty_rows)):
        t = s if claims.causal == "square" else min(t, s)
    query, key = draw(_scored((b, h, t, d), (b, h, s, d), dtype, claims.layouts))
    value = draw(arrays((b, h, s, e), dtype, claims.layouts, ("normal", "normal", "constant", "cancelling")))
    if "key_lengths" in options:
        fewest = 0 if claims.empty_rows else min(s, max(1, s - t + 1) if options.get("causal") else 1)
        drawn = draw(st.lists(st.integers(fewest, s), min_size=b, max_size=b))
        options["key_lengths"] = np.array(drawn, np.int64)
        if draw(st.booleans()):  # what is not read may be anything
            unread = np.arange(s) >= options["key_lengths"][:, None, None]
            key, value = (np.where(unread[..., None], x.dtype.type(np.nan), x) for x in (key, value))
    if claims.takes("attention", "mask") and draw(st.booleans()):
        shape = draw(broadcastable((b, h, t, s)))
        if len(shape) >= 2:
            mask = draw(masks(shape))
            if not claims.empty_rows and shape[-1]:
                mask = mask | (np.arange(shape[-1]) == 0)
            options["mask"] = mask
    if claims.takes("attention", "bias") and draw(st.booleans()):
        options["bias"] = draw(arrays(draw(broadcastable((b, h, t, s))), dtype, claims.layouts))
    return (query, key, value), options


@st.composite
def _sometimes_larger(draw, b, h, t, s):
    """Sizes as they are; or few heads of sequences longer than usual blocks; or more numbers than 16 bits count."""
    kind = draw(st.integers(0, 11))
    if kind == 11:
        return 2, 2, t + 96, s + 48
    if kind >= 9:
        return 1, 1, t + draw(st.sampled_from([0, 32, 64, 96, 112])), s + draw(st.sampled_from([0, 32, 64, 96, 112]))
    return b, h, t, s


@st.composite
def _scored(draw, query_shape, key_shape, dtype, layouts):
    """Queries and keys in one regime: besides those of arrays, scores past ±10⁴ and log-sum-exps far below 0."""
    regime = draw(st.sampled_from(SCORES))
    one = {"dtype": dtype, "layouts": layouts, "regimes": (regime,)}
    if regime not in ("huge", "far below"):
        return draw(arrays(query_shape, **one)), draw(arrays(key_shape, **one))
    rng = np.random.default_rng(draw(seeds()))
    query, key = rng.standard_normal(query_shape), rng.standard_normal(key_shape)
    if regime == "huge":
        query, key = query * 100, key * 100
    else:  # one channel makes every score about −300 before the others tell keys apart
        query[..., :1], key[..., :1] = 17 * query_shape[-1] ** 0.25, -17 * query_shape[-1] ** 0.25
    layout = draw(st.sampled_from(layouts))
    return laid_out(query.astype(dtype), layout), laid_out(key.astype(dtype), layout)


@st.composite
def _attention_options(draw, operation, claims, t, s):
    options = {}
    if claims.takes(operation, "causal") and draw(st.booleans()):
        options["causal"] = True
    if claims.takes(operation, "return_lse") and draw(st.booleans()):
        options["return_lse"] = True
    if claims.takes(operation, "scale") and draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([1.0, 0.125, 0.3, -0.5, 0.0]))
    if claims.takes(operation, "key_lengths") and draw(st.booleans()):
        options["key_lengths"] = None  # drawn when the sizes are settled
    return options


@st.composite
def qkv_attention_inputs(draw, claims=EVERYTHING, most=40):
    """For ``qkv_attention``."""
    dtype, least = draw(dtypes(claims)), int(not claims.zero_sized)
    b, n, h = draw(st.integers(least, 3)), draw(lengths(most, least)), draw(st.integers(1, 3))
    d = draw(head_dims() if claims.head_dims is None else st.sampled_from(claims.head_dims))
    options = draw(_attention_options("qkv_attention", claims, n, n))
    if "key_lengths" in options:
        fewest = min(n, int(not claims.empty_rows))
        options["key_lengths"] = np.array(draw(st.lists(st.integers(fewest, n), min_size=b, max_size=b)), np.int64)
    return (draw(arrays((b, n, 3, h, d), dtype, claims.layouts, REGIMES)),), options


@st.composite
def varlen_attention_inputs(draw, claims=EVERYTHING, most=33):
    """For ``varlen_attention``."""
    each = draw(st.lists(lengths(most, int(not claims.zero_sized)), min_size=1, max_size=4))
    h, d = draw(st.integers(1, 3)), draw(st.sampled_from(claims.head_dims or (1, 8, 40, 64)))
    if draw(st.integers(0, 5)) == 5:
        each, h = [*each, draw(lengths(4 * most, 1))], 1
    n = sum(each)
    dtype = draw(dtypes(claims))
    e = draw(st.sampled_from([d, d, 1, 5, 16])) if claims.value_dims else d
    three = *draw(_scored((n, h, d), (n, h, d), dtype, claims.layouts)), draw(arrays((n, h, e), dtype, claims.layouts))
    options = draw(_attention_options("varlen_attention", claims, n, n))
    return three, {"cumulative_lengths": np.concatenate([[0], np.cumsum(each)]).astype(np.int64), **options}
