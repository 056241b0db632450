"""Hypothesis strategies for what whole operations take: ``((argument, …), {option: …})``, awkward on purpose.

Each strategy keeps to a function's ``Claims``. ``INPUTS`` has them by operation, ``PALETTE_INPUTS`` those
of a palette's functions.
"""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from saccade.reference.palette import GRID, assign, unique_colors
from saccade.testing.claims import Claims
from saccade.testing.strategies import (
    REGIMES,
    arrays,
    broadcastable,
    embeddings,
    head_dims,
    images,
    labels,
    laid_out,
    lengths,
    logits,
    masks,
    pixels,
    seeds,
)

EVERYTHING = Claims()
WIDTHS = (1, 2, 7, 16, 33, 48, 64, 97, 130)
NORMS = ("normal", "large", "near ties", "one hot", "tiny", "zero rows", "denormal")
SCORES = ("normal", "large", "near ties", "constant", "tiny", "denormal", "cancelling", "one hot", "huge", "far below")


def _dtype(claims):
    return st.sampled_from([np.dtype(_named(name)) for name in claims.dtypes])


def _named(name):
    import ml_dtypes

    return ml_dtypes.bfloat16 if name == "bfloat16" else name


@st.composite
def attention_inputs(draw, claims=EVERYTHING, most=40):
    """For ``attention``."""
    dtype, b, h = draw(_dtype(claims)), draw(st.integers(int(not claims.zero_sized), 3)), draw(st.integers(1, 3))
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
    dtype, least = draw(_dtype(claims)), int(not claims.zero_sized)
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
    dtype = draw(_dtype(claims))
    e = draw(st.sampled_from([d, d, 1, 5, 16])) if claims.value_dims else d
    three = *draw(_scored((n, h, d), (n, h, d), dtype, claims.layouts)), draw(arrays((n, h, e), dtype, claims.layouts))
    options = draw(_attention_options("varlen_attention", claims, n, n))
    return three, {"cumulative_lengths": np.concatenate([[0], np.cumsum(each)]).astype(np.int64), **options}


@st.composite
def _rows(draw, dtype, width, claims, regimes=NORMS):
    leading = draw(st.sampled_from([(3,), (2, 5), (65,), (1, 1, 2), (130,), ()] + [(0,)] * claims.zero_sized))
    return draw(arrays((*leading, width), dtype, claims.layouts, regimes))


@st.composite
def layer_norm_inputs(draw, claims=EVERYTHING, operation="layer_norm"):
    """For ``layer_norm`` (and without the bias for ``rms_norm``)."""
    dtype, width, options = draw(_dtype(claims)), draw(st.sampled_from(WIDTHS)), {}
    x, scale = draw(_rows(dtype, width, claims)), draw(arrays((width,), dtype, claims.layouts))
    if claims.takes(operation, "eps"):
        options["eps"] = draw(st.sampled_from([1e-6, 1e-5, 0.1]))
    if claims.takes(operation, "residual") and draw(st.booleans()):
        options["residual"] = draw(arrays(x.shape, dtype, claims.layouts))
    if operation == "rms_norm":
        return (x, scale), options
    return (x, scale, draw(_bias((width,), dtype, claims))), options


def rms_norm_inputs(claims=EVERYTHING):
    """For ``rms_norm``."""
    return layer_norm_inputs(claims, "rms_norm")


@st.composite
def _bias(draw, shape, dtype, claims):
    return draw(arrays(shape, dtype, claims.layouts)) if claims.biases and draw(st.booleans()) else None


@st.composite
def gelu_inputs(draw, claims=EVERYTHING):
    """For ``gelu``."""
    dtype, options = draw(_dtype(claims)), {}
    if claims.takes("gelu", "kind"):
        options["kind"] = draw(st.sampled_from(["erf", "tanh", "sigmoid"]))
    return (draw(_rows(dtype, draw(st.sampled_from(WIDTHS)), claims)),), options


@st.composite
def l2_normalize_inputs(draw, claims=EVERYTHING):
    """For ``l2_normalize``."""
    options = {"eps": draw(st.sampled_from([1e-6, 0.5]))} if _or_not(draw, claims, "l2_normalize", "eps") else {}
    return (draw(_rows(draw(_dtype(claims)), draw(st.sampled_from(WIDTHS)), claims)),), options


def _or_not(draw, claims, operation, option):
    return claims.takes(operation, option) and draw(st.booleans())


@st.composite
def linear_inputs(draw, claims=EVERYTHING):
    """For ``linear``."""
    dtype, i, o = draw(_dtype(claims)), draw(st.sampled_from(WIDTHS)), draw(st.sampled_from([1, 3, 17, 64]))
    # processors' bfloat16 dot products take denormal numbers for 0
    regimes = tuple(name for name in NORMS if name != "denormal" or dtype != "bfloat16")
    x, weight = draw(_rows(dtype, i, claims, regimes)), draw(arrays((o, i), dtype, claims.layouts))
    return (x, weight, draw(_bias((o,), dtype, claims))), {}


@st.composite
def mlp_inputs(draw, claims=EVERYTHING):
    """For ``mlp``."""
    (x, weight_in, bias_in), _ = draw(linear_inputs(claims))
    o, hidden, dtype = draw(st.sampled_from([1, 5, 16])), len(weight_in), weight_in.dtype
    weight_out = draw(arrays((o, hidden), dtype, claims.layouts))
    options = {"kind": draw(st.sampled_from(["erf", "tanh", "sigmoid"]))} if claims.takes("mlp", "kind") else {}
    return (x, weight_in, bias_in, weight_out, draw(_bias((o,), dtype, claims))), options


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
    weight = draw(arrays((rows, draw(st.sampled_from(WIDTHS))), draw(_dtype(claims)), claims.layouts))
    return (np.array(tokens, np.int64), weight), {}


@st.composite
def patch_embed_inputs(draw, claims=EVERYTHING):
    """For ``patch_embed``."""
    dtype, p = draw(_dtype(claims)), draw(st.sampled_from([1, 2, 3, 4]))
    pictures: Any = draw(images(dtype, p, most=6 if p < 3 else 3))
    if not claims.zero_sized and not len(pictures):
        pictures = np.zeros((1, *pictures.shape[1:]), pictures.dtype)
    c = pictures.shape[3]
    weight = draw(arrays((draw(st.sampled_from([1, 5, 17])), c, p, p), dtype, claims.layouts))
    options = {}
    for name, numbers in (("mean", (0.4, 0.5, 0.6, 0.1)), ("std", (0.2, 0.3, 0.4, 0.5))):
        if claims.takes("patch_embed", name) and draw(st.booleans()):
            options[name] = numbers[:c]
    return (pictures, weight, draw(_bias((len(weight),), dtype, claims))), options


@st.composite
def conv2d_inputs(draw, claims=EVERYTHING):
    """For ``conv2d``."""
    dtype, p, q = draw(_dtype(claims)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    c, e, b = draw(st.integers(1, 3)), draw(st.sampled_from([1, 4, 9])), draw(st.integers(1, 2))
    x = draw(arrays((b, draw(st.integers(3, 8)), draw(st.integers(3, 8)), c), dtype, claims.layouts))
    weight, options = draw(arrays((e, c, p, q), dtype, claims.layouts)), {}
    if claims.takes("conv2d", "stride"):
        options["stride"] = draw(st.integers(1, 3))
    if claims.takes("conv2d", "padding"):
        options["padding"] = draw(st.integers(0, 2))
    return (x, weight, draw(_bias((e,), dtype, claims))), options


@st.composite
def batch_norm_inputs(draw, claims=EVERYTHING):
    """For ``batch_norm``."""
    dtype, c = draw(_dtype(claims)), draw(st.sampled_from([1, 3, 16]))
    x = draw(_rows(dtype, c, claims))
    mean, scale, bias = (draw(arrays((c,), dtype, claims.layouts)) for _ in range(3))
    variance = (np.random.default_rng(draw(seeds())).random(c) + 0.1).astype(dtype)
    options = {"eps": draw(st.sampled_from([1e-3, 0.5]))} if _or_not(draw, claims, "batch_norm", "eps") else {}
    return (x, mean, variance, scale, bias), options


@st.composite
def average_pool_inputs(draw, claims=EVERYTHING):
    """For ``average_pool``."""
    size = draw(st.integers(1, 4))
    shape = (draw(st.integers(1, 2)), draw(st.integers(size, 9)), draw(st.integers(size, 9)), draw(st.integers(1, 3)))
    return (draw(arrays(shape, draw(_dtype(claims)), claims.layouts)),), {"size": size}


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
    dtype = draw(_dtype(claims))
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
    dtype, e = draw(_dtype(claims)), draw(st.sampled_from([8, 1, 40]))
    regime = (draw(st.sampled_from(["normal", "normal", "large"])),)
    options = draw(_classification("linear_cross_entropy", claims))
    hidden, weight = (draw(arrays(shape, dtype, claims.layouts, regime)) for shape in ((n, e), (k, e)))
    return (hidden, weight, draw(labels(n, k, options.get("ignore_index", -100), claims.ignored))), options


@st.composite
def sigmoid_cross_entropy_inputs(draw, claims=EVERYTHING):
    """For ``sigmoid_cross_entropy``."""
    n, k = draw(lengths(65, int(not claims.zero_sized))), draw(st.sampled_from([2, 10, 97, 1]))
    dtype, rng = draw(_dtype(claims)), np.random.default_rng(draw(seeds()))
    targets = (rng.random((n, k)) if draw(st.booleans()) else rng.random((n, k)) < 0.3).astype(dtype)
    options = draw(_classification("sigmoid_cross_entropy", claims))
    return (draw(logits(n, k, dtype, claims.layouts)), targets), options


@st.composite
def clip_loss_inputs(draw, claims=EVERYTHING, most=193):
    """For ``clip_loss``: logit scales from 1/1000 to beyond the usual limit of 100."""
    dtype, n, e = draw(_dtype(claims)), draw(lengths(most, least=1)), draw(st.sampled_from([8, 16, 40, 64, 8, 1]))
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


PALETTE_INPUTS = {"assign": assign_inputs, "update": update_inputs, "fit": fit_inputs}
INPUTS = {
    "attention": attention_inputs,
    "qkv_attention": qkv_attention_inputs,
    "varlen_attention": varlen_attention_inputs,
    "patch_embed": patch_embed_inputs,
    "linear": linear_inputs,
    "embedding": embedding_inputs,
    "layer_norm": layer_norm_inputs,
    "rms_norm": rms_norm_inputs,
    "gelu": gelu_inputs,
    "mlp": mlp_inputs,
    "l2_normalize": l2_normalize_inputs,
    "conv2d": conv2d_inputs,
    "batch_norm": batch_norm_inputs,
    "average_pool": average_pool_inputs,
    "softmax_cross_entropy": softmax_cross_entropy_inputs,
    "sigmoid_cross_entropy": sigmoid_cross_entropy_inputs,
    "linear_cross_entropy": linear_cross_entropy_inputs,
    "clip_loss": clip_loss_inputs,
    "siglip_loss": siglip_loss_inputs,
}
