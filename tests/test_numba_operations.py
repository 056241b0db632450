"""numba's layers, patches, convolutions and losses against the reference, through the error gate."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from saccade.kernels.numba import convolution, layers, losses, patches, threads
from saccade.testing import gate
from saccade.testing.strategies import arrays, dtypes, lengths

KERNELS = SimpleNamespace(**{name: f for m in (layers, patches, convolution, losses) for name, f in vars(m).items()})
WIDTHS = st.sampled_from([1, 2, 7, 16, 33, 48, 64, 97, 130])


def right(operation, arguments, options=None):
    inputs = [x for x in (*arguments, *(options or {}).values()) if isinstance(x, np.ndarray)]
    before = [x.tobytes() for x in inputs]
    gate.assert_right(operation, KERNELS, arguments, options)
    assert before == [x.tobytes() for x in inputs], f"{operation} modified its inputs"


@st.composite
def rows(draw, dtype, width, least=0):
    leading = draw(st.sampled_from([(3,), (2, 5), (65,), (1, 1, 2), (130,)] + [(0,)] * (least == 0)))
    return draw(arrays((*leading, width), dtype, regimes=("normal", "large", "near ties")))


@st.composite
def norms(draw):
    dtype, width = draw(dtypes()), draw(WIDTHS)
    x = draw(rows(dtype, width))
    options = {"eps": draw(st.sampled_from([1e-6, 1e-5, 0.1]))}
    if draw(st.booleans()):
        options["residual"] = draw(arrays(x.shape, dtype))
    scale = draw(arrays((width,), dtype))
    return x, scale, draw(st.none() | arrays((width,), dtype)), options


@given(norms())
def test_layer_norm(problem):
    x, scale, bias, options = problem
    right("layer_norm", (x, scale, bias), options)


@given(norms())
def test_rms_norm(problem):
    x, scale, _, options = problem
    right("rms_norm", (x, scale), options)


@given(
    dtypes().flatmap(
        lambda t: st.tuples(WIDTHS.flatmap(lambda w: rows(t, w)), st.sampled_from(["erf", "tanh", "sigmoid"]))
    )
)
def test_gelu(problem):
    x, kind = problem
    right("gelu", (x,), {"kind": kind})


@given(dtypes().flatmap(lambda t: WIDTHS.flatmap(lambda w: rows(t, w))))
def test_l2_normalize(x):
    right("l2_normalize", (x,))


@st.composite
def products(draw):
    dtype, i, o = draw(dtypes()), draw(WIDTHS), draw(st.sampled_from([1, 3, 17, 64]))
    bias = draw(st.none() | arrays((o,), dtype))
    return draw(rows(dtype, i)), draw(arrays((o, i), dtype)), bias


@given(products())
def test_linear(arguments):
    right("linear", arguments)


@given(products(), st.sampled_from(["erf", "tanh", "sigmoid"]))
def test_mlp(arguments, kind):
    x, weight, bias = arguments
    back = np.random.default_rng(0).standard_normal((5, len(weight))).astype(weight.dtype)
    right("mlp", (x, weight, bias, back, None), {"kind": kind})


@given(dtypes(), st.lists(st.integers(0, 6), max_size=40), WIDTHS)
def test_embedding(dtype, tokens, width):
    weight = np.random.default_rng(0).standard_normal((7, width)).astype(dtype)
    right("embedding", (np.array(tokens, np.int64), weight))


@st.composite
def pictures(draw):
    dtype, p = draw(dtypes()), draw(st.sampled_from([1, 2, 3, 4]))
    shape = (draw(st.integers(0, 3)), p * draw(st.integers(1, 3)), p * draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    weight = draw(arrays((draw(st.sampled_from([1, 5, 17])), shape[3], p, p), dtype))
    if draw(st.booleans()):
        images = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, shape).astype(np.uint8)
    else:
        images = draw(arrays(shape, dtype))
    options = {"mean": (0.4, 0.5, 0.6)[: shape[3]], "std": (0.2, 0.3, 0.4)[: shape[3]]} if draw(st.booleans()) else {}
    return (images, weight, draw(st.none() | arrays((len(weight),), dtype))), options


@given(pictures())
def test_patch_embed(problem):
    right("patch_embed", *problem)


@given(dtypes(), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.integers(1, 3))
def test_conv2d(dtype, stride, padding, p, q):
    rng = np.random.default_rng(p)
    x, weight, bias = (rng.standard_normal(s).astype(dtype) for s in ((2, 6, 7, 3), (4, 3, p, q), (4,)))
    right("conv2d", (x, weight, bias), {"stride": stride, "padding": padding})


@given(dtypes(), st.integers(1, 4))
def test_batch_norm_and_pooling(dtype, size):
    rng = np.random.default_rng(size)
    x = rng.standard_normal((2, 5, 6, 3)).astype(dtype)
    mean, scale, bias = rng.standard_normal((3, 3)).astype(dtype)
    right("batch_norm", (x, mean, np.abs(scale) + dtype.type(0.1), scale, bias))
    right("average_pool", (x,), {"size": size})


@st.composite
def classifications(draw):
    dtype, k = draw(dtypes()), draw(st.sampled_from([1, 2, 10, 97, 200]))
    n = draw(lengths(65))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    labels = rng.integers(0, k, n)
    labels[rng.random(n) < draw(st.sampled_from([0, 0.3, 1]))] = -100
    options = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    return dtype, n, k, labels, options


@given(classifications(), st.data())
def test_softmax_cross_entropy(problem, data):
    dtype, n, k, labels, options = problem
    logits = data.draw(arrays((n, k), dtype, regimes=("normal", "large", "constant")))
    if data.draw(st.booleans()):
        labels = np.random.default_rng(0).dirichlet(np.ones(k), n).astype(dtype)
    right("softmax_cross_entropy", (logits, labels), options)


@given(classifications(), st.data())
def test_linear_cross_entropy(problem, data):
    dtype, n, k, labels, options = problem
    e = data.draw(st.sampled_from([1, 8, 40]))
    right("linear_cross_entropy", (data.draw(arrays((n, e), dtype)), data.draw(arrays((k, e), dtype)), labels), options)


@given(classifications(), st.data())
def test_sigmoid_cross_entropy(problem, data):
    dtype, n, k, _, options = problem
    targets = (np.random.default_rng(0).random((n, k)) < 0.3).astype(dtype)
    logits = data.draw(arrays((n, k), dtype, regimes=("normal", "large")))
    right("sigmoid_cross_entropy", (logits, targets), {"reduction": options["reduction"]})


@given(
    dtypes(), lengths(193, least=1), st.sampled_from([1, 8, 40]), st.sampled_from([1e-3, 1.0, 14.3, 100.0]), st.data()
)
def test_contrastive_losses(dtype, n, e, scale, data):
    images, texts = (data.draw(arrays((n, e), dtype, regimes=("normal", "tiny"))) for _ in range(2))
    images, texts = (layers.l2_normalize(x) for x in (images, texts))
    factor = np.array(scale, np.float64 if dtype == np.float64 else np.float32)
    right("clip_loss", (images, texts, factor))
    right("clip_loss", (images, texts, scale))
    right("siglip_loss", (images, texts, factor, factor * 0 - 2))


CASES = {
    "layer_norm": lambda r: ((r(200, 64), r(64), r(64)), {"residual": r(200, 64)}),
    "mlp": lambda r: ((r(200, 64), r(96, 64), r(96), r(64, 96), r(64)), {}),
    "linear_cross_entropy": lambda r: ((r(200, 64), r(150, 64), np.arange(200) % 150), {}),
    "clip_loss": lambda r: ((r(200, 64), r(200, 64), np.float32(2.0) * np.ones(())), {}),
    "siglip_loss": lambda r: ((r(200, 64), r(200, 64), np.array(2.0), np.array(-1.0)), {}),
    "patch_embed": lambda r: ((r(8, 16, 16, 3), r(32, 3, 4, 4), r(32)), {}),
}


@pytest.mark.parametrize("operation", CASES)
def test_results_have_the_same_bits_for_any_number_of_threads(operation):
    before, results = threads.get_threads(), []
    try:
        for count in (1, 2, 5):
            threads.set_threads(count)
            rng = np.random.default_rng(0)
            arguments, options = CASES[operation](lambda *s, rng=rng: rng.standard_normal(s).astype(np.float32))
            out, saved = getattr(KERNELS, f"{operation}_forward")(*arguments, **options)
            gradients = getattr(KERNELS, f"{operation}_backward")(saved, *gate.draw_cotangents(out))
            outs = out if isinstance(out, tuple) else (out,)
            results.append([x.tobytes() for x in (*outs, *gradients) if x is not None])
    finally:
        threads.set_threads(before)
    assert results[0] == results[1] == results[2]


BUGS = {
    "layer_norm": lambda x, s, b, r: (x, s, b, None if r is None else r * 0),
    "softmax_cross_entropy": lambda g: (g * np.float32(1.01),),
    "clip_loss": lambda i, t, s: (t, i, s),
    "rms_norm": lambda x, s, r: (x * np.float32(1.001), s, r),
}


@pytest.mark.parametrize("operation", BUGS)
def test_a_wrong_gradient_fails(operation):
    rng = np.random.default_rng(0)
    x, y, scale = (rng.standard_normal(s).astype(np.float32) for s in ((6, 16), (6, 16), (16,)))
    inputs = {
        "layer_norm": ((x, scale, scale), {"residual": y}),
        "rms_norm": ((x, scale), {}),
        "softmax_cross_entropy": ((x, np.arange(6)), {"label_smoothing": 0.1}),
        "clip_loss": ((x, y, np.array(2.0, np.float32)), {}),
    }
    backward = getattr(KERNELS, f"{operation}_backward")
    wrong = {
        f"{operation}_forward": getattr(KERNELS, f"{operation}_forward"),
        f"{operation}_backward": lambda saved, *g: BUGS[operation](*backward(saved, *g)),
    }
    with pytest.raises(AssertionError, match="gradient of"):
        gate.assert_right(operation, SimpleNamespace(**wrong), *inputs[operation])
