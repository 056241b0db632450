"""The definitions against numbers worked out by hand, central differences in float64, and torch in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import find, settings
from scipy import ndimage, special
from support import assert_close64, assert_gradients

from saccade import reference
from saccade.families import GRADIENTS
from saccade.testing import strategies
from saccade.testing.claims import Claims
from saccade.testing.inputs import INPUTS
from saccade.testing.subject import LOSSES

RNG = np.random.default_rng(0)
LABELS = np.array([1, 0, -100, 3])
SOFT = RNG.dirichlet(np.ones(5), 4)


def normal(*shape):
    return RNG.standard_normal(shape)


def test_attention_by_hand():
    # scores 0 and ln 3 with scale 1: weights 1/4 and 3/4
    query, key = np.array([[[[1.0]]]]), np.array([[[[0.0], [math.log(3)]]]])
    value = np.array([[[[4.0, 0.0], [8.0, 4.0]]]])
    out, lse = reference.attention(query, key, value, scale=1.0, return_lse=True)
    assert_close64(out, [[[[7.0, 3.0]]]])
    assert_close64(lse, [[[math.log(4)]]])


def test_attention_semantics():
    query, key, value = normal(1, 1, 3, 2), normal(1, 1, 2, 2), normal(1, 1, 2, 2)
    # aligned at the end: of three queries over two keys the first sees none, the second one, the third both
    (out, lse), saved = reference.attention_forward(query, key, value, causal=True, return_lse=True)
    assert out[0, 0, 0].tolist() == [0, 0] and lse[0, 0, 0] == -np.inf
    assert_close64(out[0, 0, 1], value[0, 0, 0])
    gradients = reference.attention_backward(saved, np.ones_like(out))
    assert gradients[0][0, 0, 0].tolist() == [0, 0]
    # keys beyond their length are never read
    key[0, 0, 1], value[0, 0, 1] = np.nan, np.inf
    out = reference.attention(query, key, value, key_lengths=np.array([1]))
    assert_close64(out, np.broadcast_to(value[:, :, :1], out.shape))
    assert reference.attention(query[:0], key[:0], value[:0]).shape == (0, 1, 3, 2)
    assert reference.attention(query, key[:, :, :0], value[:, :, :0]).tolist() == np.zeros((1, 1, 3, 2)).tolist()


def test_layers_by_hand():
    # x = 1, 3: mean 2, variance 1
    assert_close64(reference.layer_norm(np.array([1.0, 3.0]), np.array([2.0, 2.0]), np.ones(2), eps=0.0), [-1.0, 3.0])
    assert_close64(reference.layer_norm(np.array([1.0, 3.0]), np.ones(2), eps=3.0), [-0.5, 0.5])
    # x = 1, 7: mean square 25
    assert_close64(reference.rms_norm(np.array([1.0, 7.0]), np.array([5.0, 10.0]), eps=0.0), [1.0, 14.0])
    # without the scale's square root inside: eps is added to the mean square, (25 + 11) = 36
    assert_close64(reference.rms_norm(np.array([1.0, 7.0]), np.array([6.0, 6.0]), eps=11.0), [1.0, 7.0])
    normalised, total = reference.rms_norm(np.array([0.5, 3.0]), np.ones(2), eps=0.0, residual=np.array([0.5, 4.0]))
    assert_close64(normalised, [0.2, 1.4])
    assert_close64(total, [1.0, 7.0])
    assert_close64(reference.l2_normalize(np.array([3.0, 4.0])), [0.6, 0.8])
    assert_close64(reference.l2_normalize(np.zeros(2)), [0.0, 0.0])
    assert_close64(reference.linear(np.array([1.0, 2.0]), np.array([[3.0, 4.0], [5.0, 6.0]]), np.ones(2)), [12.0, 18.0])
    assert_close64(reference.embedding(np.array([1, 1]), np.array([[1.0], [2.0]])), [[2.0], [2.0]])


def test_gelu_by_hand():
    # Φ(1) = 0.841344746068543; σ(1.702) = 0.845795765787; √(2/π)·1.044715 = 0.833562…, tanh of it 0.682384…
    assert_close64(reference.gelu(np.array([1.0])), [0.8413447460685429])
    assert_close64(reference.gelu(np.array([1.0]), kind="sigmoid"), [1 / (1 + math.exp(-1.702))])
    assert_close64(reference.gelu(np.array([1.0]), kind="tanh"), [0.8411919906082768])


def test_erfc_is_exact_to_float64():
    x = np.linspace(-6, 26, 3001)
    assert np.abs(reference.erfc(x) / special.erfc(x) - 1).max() < 1e-12


def test_patches_by_hand():
    images = np.arange(16, dtype=np.float64).reshape(1, 2, 4, 2)  # one row of two 2 x 2 patches, two channels
    patches = reference.patchify(images, 2)
    assert patches[0].tolist() == [[0, 2, 8, 10, 1, 3, 9, 11], [4, 6, 12, 14, 5, 7, 13, 15]]
    assert np.array_equal(reference.unpatchify(patches, 2, (2, 4)), images)
    pixels = np.full((1, 1, 1, 1), 255, np.uint8)
    out = reference.patch_embed(pixels, np.full((1, 1, 1, 1), 2.0), np.array([1.0]), mean=(0.5,), std=(0.25,))
    assert out.tolist() == [[[5.0]]]  # (1 − 0.5) / 0.25 · 2 + 1


def test_convolution_by_hand():
    x = np.arange(9, dtype=np.float64).reshape(1, 3, 3, 1)
    ones = np.ones((1, 1, 2, 2))
    assert reference.conv2d(x, ones)[0, :, :, 0].tolist() == [[8, 12], [20, 24]]
    assert reference.conv2d(x, ones, stride=2, padding=1)[0, :, :, 0].tolist() == [[0, 3], [9, 24]]
    assert reference.average_pool(x, size=2).ravel().tolist() == [2]
    two = np.array([2.0])
    assert reference.batch_norm(np.array([[5.0]]), two, two + 2, two, two, eps=0.0).tolist() == [[5.0]]


def test_losses_by_hand():
    logits = np.log(np.array([[1.0, 3.0], [1.0, 1.0]]))
    assert_close64(reference.softmax_cross_entropy(logits, np.array([1, 0]), reduction="none"), np.log([4 / 3, 2]))
    assert_close64(reference.softmax_cross_entropy(logits, np.array([1, -100])), math.log(4 / 3))
    assert_close64(
        reference.softmax_cross_entropy(logits[:1], np.array([1]), label_smoothing=0.5),
        0.75 * math.log(4 / 3) + 0.25 * math.log(4),
    )
    assert math.isnan(reference.softmax_cross_entropy(logits, np.array([-100, -100])))
    assert_close64(reference.sigmoid_cross_entropy(np.zeros((3, 2)), np.eye(3)[:, :2]), 2 * math.log(2))
    # two orthogonal pairs at scale ln 3: softmax of the right one is 3/4, both ways
    assert_close64(reference.clip_loss(np.eye(2), np.eye(2), math.log(3)), math.log(4 / 3))
    # only the rows' softmax of the second image is sharp: rows ln 2 and ln(1 + 1/9), columns 2 ln(4/3) at those logits
    images = np.array([[0.0, 0.0], [0.0, 2.0]])
    rows, columns = (math.log(2) + math.log(10 / 9)) / 2, (math.log(2) + math.log(10 / 9)) / 2
    assert_close64(reference.clip_loss(images, np.eye(2), math.log(3)), (rows + columns) / 2)
    assert_close64(reference.siglip_loss(np.eye(2), np.eye(2), 0.0, 0.0), 2 * math.log(2))
    assert_close64(
        reference.linear_cross_entropy(np.eye(2), np.eye(2) * math.log(3), np.array([0, 1])), math.log(4 / 3)
    )


def test_clip_loss_is_symmetric_and_uses_both_directions():
    images, texts = normal(4, 3), normal(4, 3)
    logits = 2.0 * images @ texts.T
    expected = (
        F.cross_entropy(torch.tensor(logits), torch.arange(4)),
        F.cross_entropy(torch.tensor(logits.T), torch.arange(4)),
    )
    assert abs(float(expected[0] - expected[1])) > 1e-3
    assert_close64(reference.clip_loss(images, texts, 2.0), sum(expected) / 2)
    assert_close64(reference.clip_loss(texts, images, 2.0), sum(expected) / 2)


# name: (operation, arguments, options, which arguments get gradients, the names of options that do)
CASES = {
    "attention": ("attention", (normal(2, 1, 3, 4), normal(2, 1, 5, 4), normal(2, 1, 5, 3)), {"return_lse": True}),
    "causal attention": ("attention", (normal(1, 2, 4, 3), normal(1, 2, 3, 3), normal(1, 2, 3, 2)), {"causal": True}),
    "masked attention": (
        "attention", (normal(2, 2, 3, 4), normal(2, 2, 5, 4), normal(2, 2, 5, 3)),
        {"mask": RNG.random((2, 1, 3, 5)) < 0.6, "bias": normal(2, 1, 5), "key_lengths": np.array([3, 5])},
    ),
    "qkv_attention": ("qkv_attention", (normal(1, 4, 3, 2, 3),), {"causal": True}),
    "varlen_attention": ("varlen_attention", (normal(5, 1, 3),) * 3, {"cumulative_lengths": np.array([0, 2, 2, 5])}),
    "patch_embed": (
        "patch_embed", (normal(1, 4, 4, 2), normal(3, 2, 2, 2), normal(3)), {"mean": (0.5, 1), "std": (2, 3)}
    ),
    "linear": ("linear", (normal(2, 3, 4), normal(5, 4), normal(5)), {}),
    "layer_norm": ("layer_norm", (normal(3, 5), normal(5), normal(5)), {"residual": normal(3, 5)}),
    "rms_norm": ("rms_norm", (normal(3, 5), normal(5)), {"residual": normal(3, 5), "eps": 0.1}),
    "gelu": ("gelu", (normal(9) * 2,), {}),
    "tanh gelu": ("gelu", (normal(9) * 2,), {"kind": "tanh"}),
    "sigmoid gelu": ("gelu", (normal(9) * 2,), {"kind": "sigmoid"}),
    "mlp": ("mlp", (normal(2, 3), normal(4, 3), normal(4), normal(2, 4), normal(2)), {}),
    "l2_normalize": ("l2_normalize", (normal(3, 4),), {}),
    "conv2d": ("conv2d", (normal(1, 4, 5, 2), normal(3, 2, 3, 2), normal(3)), {"stride": 2, "padding": 1}),
    "average_pool": ("average_pool", (normal(1, 4, 5, 2),), {"size": 2}),
    "softmax_cross_entropy": ("softmax_cross_entropy", (normal(4, 5), LABELS), {"label_smoothing": 0.2}),
    "summed cross entropy": ("softmax_cross_entropy", (normal(4, 5), LABELS), {"reduction": "sum"}),
    "soft targets": ("softmax_cross_entropy", (normal(4, 5), SOFT), {"reduction": "none", "label_smoothing": 0.2}),
    "sigmoid_cross_entropy": ("sigmoid_cross_entropy", (normal(4, 5), SOFT), {}),
    "linear_cross_entropy": ("linear_cross_entropy", (normal(4, 3), normal(5, 3), LABELS), {"label_smoothing": 0.1}),
    "clip_loss": ("clip_loss", (normal(4, 3), normal(4, 3), np.array(1.7)), {}),
    "siglip_loss": ("siglip_loss", (normal(4, 3), normal(4, 3), np.array(1.7), np.array(-0.4)), {}),
}  # fmt: skip
CONSTANT = {"softmax_cross_entropy": (1,), "sigmoid_cross_entropy": (1,)}


@pytest.mark.parametrize("case", CASES)
def test_gradients_by_central_differences(case):
    operation, arguments, options = CASES[case]
    moving = [i for i, x in enumerate(arguments) if x.dtype == np.float64 and i not in CONSTANT.get(operation, ())]
    names = [name for name in ("bias", "residual") if name in options]

    def forward(*values):
        given = list(arguments)
        for i, x in zip(moving, values, strict=False):
            given[i] = x
        keywords = options | dict(zip(names, values[len(moving) :], strict=True))
        return getattr(reference, f"{operation}_forward")(*given, **keywords)

    values = [arguments[i] for i in moving] + [options[name] for name in names]

    def outputs(*values):
        out = forward(*values)[0]
        return out if isinstance(out, tuple) else (out,)

    def backward(*cotangents):
        gradients = getattr(reference, f"{operation}_backward")(forward(*values)[1], *cotangents)
        return [g for g in gradients if g is not None]

    assert_gradients(outputs, backward, values)


@pytest.mark.parametrize("dtype", strategies.DTYPES, ids=str)
@pytest.mark.parametrize("operation", INPUTS)
def test_results_have_the_dtype_of_the_inputs_and_losses_are_wide(operation, dtype):
    arguments, options = first_input(INPUTS[operation](Claims(dtypes=(str(dtype),), zero_sized=False)))
    with np.errstate(all="ignore"):
        out, saved = getattr(reference, f"{operation}_forward")(*arguments, **options)
        outputs = out if isinstance(out, tuple) else (out,)
        gradients = getattr(reference, f"{operation}_backward")(saved, *outputs)
    wide = np.float64 if dtype == np.float64 else np.float32
    first = wide if operation in LOSSES else dtype
    second = wide if operation == "attention" else dtype  # the log-sum-exp; norms return a sum
    assert [x.dtype for x in outputs] == [first, second][: len(outputs)]
    factors = ("logit_scale", "logit_bias")
    for name, gradient in zip(GRADIENTS[operation], gradients, strict=True):
        assert gradient is None or gradient.dtype == (wide if name in factors else dtype)


def first_input(strategy):
    """The simplest input that a strategy draws."""
    return find(strategy, lambda _: True, settings=settings(database=None, derandomize=True))


def test_embedding_gradient_adds_up_repeated_tokens():
    _, saved = reference.embedding_forward(np.array([[2, 0], [2, 2]]), np.zeros((3, 1)))
    (grad,) = reference.embedding_backward(saved, np.array([[[1.0], [2.0]], [[4.0], [8.0]]]))
    assert grad.tolist() == [[2], [0], [13]]


def test_batch_norm_gradients_by_central_differences():
    x, mean, variance, scale, bias = normal(3, 4), normal(4), normal(4) ** 2 + 0.1, normal(4), normal(4)

    def outputs(x, scale, bias):
        return (reference.batch_norm(x, mean, variance, scale, bias),)

    _, saved = reference.batch_norm_forward(x, mean, variance, scale, bias)
    assert_gradients(outputs, lambda g: reference.batch_norm_backward(saved, g), [x, scale, bias])


def by_torch(case):
    """The same from torch, in float64."""
    x = [torch.tensor(a) for a in CASES[case][1]]
    channels_first = (0, 3, 1, 2)
    return {
        "attention": lambda: F.scaled_dot_product_attention(*x),
        "linear": lambda: F.linear(*x),
        "gelu": lambda: F.gelu(*x),
        "tanh gelu": lambda: F.gelu(*x, approximate="tanh"),
        "l2_normalize": lambda: F.normalize(*x, dim=-1),
        "conv2d": lambda: F.conv2d(x[0].permute(channels_first), *x[1:], stride=2, padding=1).permute(0, 2, 3, 1),
        "average_pool": lambda: F.avg_pool2d(x[0].permute(channels_first), 2).permute(0, 2, 3, 1),
        "softmax_cross_entropy": lambda: F.cross_entropy(*x, label_smoothing=0.2),
        "summed cross entropy": lambda: F.cross_entropy(*x, reduction="sum"),
        "soft targets": lambda: F.cross_entropy(*x, reduction="none", label_smoothing=0.2),
        "sigmoid_cross_entropy": lambda: F.binary_cross_entropy_with_logits(*x, reduction="sum") / 4,
        "linear_cross_entropy": lambda: F.cross_entropy(x[0] @ x[1].T, x[2], label_smoothing=0.1),
        "siglip_loss": lambda: -F.logsigmoid((2 * torch.eye(4) - 1) * (1.7 * x[0] @ x[1].T - 0.4)).sum() / 4,
    }[case]()


@pytest.mark.parametrize(
    "case",
    ["attention", "linear", "gelu", "tanh gelu", "l2_normalize", "conv2d", "average_pool", "softmax_cross_entropy",
     "summed cross entropy", "soft targets", "sigmoid_cross_entropy", "linear_cross_entropy", "siglip_loss"],
)  # fmt: skip
def test_values_equal_torch(case):
    operation, arguments, options = CASES[case]
    out = getattr(reference, operation)(*arguments, **{k: v for k, v in options.items() if k != "return_lse"})
    assert_close64(out, by_torch(case))


def test_layers_equal_torch():
    x, residual, scale, bias = normal(3, 5), normal(3, 5), normal(5), normal(5)
    total = torch.tensor(x + residual)
    vectors = torch.tensor(scale), torch.tensor(bias)
    assert_close64(
        reference.layer_norm(x, scale, bias, eps=0.1, residual=residual)[0], F.layer_norm(total, (5,), *vectors, 0.1)
    )
    assert_close64(
        reference.rms_norm(x, scale, eps=0.1, residual=residual)[0], F.rms_norm(total, (5,), vectors[0], 0.1)
    )
    mean, variance = normal(5), normal(5) ** 2
    expected = F.batch_norm(torch.tensor(x), torch.tensor(mean), torch.tensor(variance), *vectors, eps=0.1)
    assert_close64(reference.batch_norm(x, mean, variance, scale, bias, eps=0.1), expected)
    weights = normal(7, 5), normal(7), normal(4, 7), normal(4)
    a, b, c, d = map(torch.tensor, weights)
    for kind, approximate in (("erf", "none"), ("tanh", "tanh")):
        hidden = F.gelu(F.linear(torch.tensor(x), a, b), approximate=approximate)
        assert_close64(reference.mlp(x, *weights, kind=kind), F.linear(hidden, c, d))
    tokens = np.array([[2, 0], [1, 2]])
    assert_close64(reference.embedding(tokens, x), F.embedding(torch.tensor(tokens), torch.tensor(x)))


def test_patch_embedding_equals_a_convolution():
    images, weight, bias = RNG.integers(0, 256, (2, 6, 4, 3)).astype(np.uint8), normal(5, 3, 2, 2), normal(5)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    pixels = (torch.tensor(images).double() / 255 - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(
        std, dtype=torch.float64
    )
    expected = F.conv2d(pixels.permute(0, 3, 1, 2), torch.tensor(weight), torch.tensor(bias), stride=2)
    ours = reference.patch_embed(images, weight, bias, mean=mean, std=std)
    assert_close64(ours, expected.flatten(2).transpose(1, 2))


def test_packed_and_variable_length_attention_equal_the_plain_one():
    qkv = normal(2, 5, 3, 2, 4)
    query, key, value = np.moveaxis(qkv, (2, 3), (0, 2))
    plain = reference.attention(query, key, value, causal=True)
    assert_close64(reference.qkv_attention(qkv, causal=True), np.moveaxis(plain, 1, 2))
    rows = [np.concatenate(list(np.moveaxis(x, 1, 2))) for x in (query, key, value)]
    packed = reference.varlen_attention(*rows, cumulative_lengths=np.array([0, 5, 10]), causal=True)
    assert_close64(packed, np.concatenate(list(np.moveaxis(plain, 1, 2))))


@pytest.mark.parametrize("old, new", [(7, 12), (14, 24), (16, 7), (3, 1), (1, 4)])
def test_zoomed_positions_equal_scipy(old, new):
    positions = normal(1 + old * old, 3)
    grid = positions[1:].reshape(old, old, 3)
    expected = ndimage.zoom(grid, (new / old, new / old, 1), order=1).reshape(-1, 3)
    moved = reference.interpolate_positions(positions, (new, new), prefix=1)
    assert_close64(moved, np.concatenate([positions[:1], expected]))


@pytest.mark.parametrize("method", ["bicubic", "antialiased"])
@pytest.mark.parametrize("old, new", [(7, (12, 9)), (14, (24, 24)), (16, (7, 16)), (5, (1, 30))])
def test_bicubic_positions_equal_torch(old, new, method):
    positions = normal(old * old, 3)
    grid = torch.tensor(positions).reshape(1, old, old, 3).permute(0, 3, 1, 2)
    moved = F.interpolate(grid, new, mode="bicubic", align_corners=False, antialias=method == "antialiased")
    expected = moved.permute(0, 2, 3, 1).reshape(-1, 3)
    assert_close64(reference.interpolate_positions(positions, new, method=method), expected)


def test_sincos_positions_by_hand():
    positions = reference.sincos2d_positions(2, 2, 8)
    s, c, small = math.sin(1), math.cos(1), 1e-4  # frequencies 1 and 1/10000
    assert_close64(positions[0], [0, 0, 1, 1, 0, 0, 1, 1])
    assert_close64(positions[1], [s, math.sin(small), c, math.cos(small), 0, 0, 1, 1])
    assert_close64(positions[2], [0, 0, 1, 1, s, math.sin(small), c, math.cos(small)])


def test_rollout_by_hand():
    first = np.array([[[[1.0, 0.0], [1.0, 0.0]]]])
    second = np.array([[[[0.0, 1.0], [0.0, 1.0]]]])
    # with the identity: [[1, 0], [.5, .5]] then [[.5, .5], [0, 1]]
    assert reference.attention_rollout([first, second])[0].tolist() == [[0.75, 0.25], [0.5, 0.5]]


def test_mean_attention_distance_by_hand():
    weights = np.zeros((1, 2, 5, 5))  # a class token and a grid of 2 x 2
    weights[0, 0, :, :] = np.eye(5)
    weights[0, 1, :, 4] = 0.5  # half to the last patch, half to the class token, which is left out
    weights[0, 1, :, 0] = 0.5
    expected = [0.0, (math.sqrt(2) + 1 + 1 + 0) / 4 * 16]
    assert_close64(reference.mean_attention_distance(weights, (2, 2), 16, prefix=1), expected)


def test_position_similarity_by_hand():
    positions = np.array([[9.0, 9.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 0.0]])
    similarity = reference.position_similarity(positions, (2, 2), prefix=1)
    assert_close64(similarity[0, 0], [[1, 0], [math.sqrt(0.5), -1]])


def test_filter_components_equal_scikit_learn():
    from sklearn.decomposition import PCA

    weight = normal(20, 3, 2, 2)
    pictures, shares = reference.filter_components(weight, 4)
    theirs = PCA(4).fit(weight.reshape(20, -1))
    assert_close64(shares, theirs.explained_variance_ratio_, bound=1e-9)
    mine = pictures.transpose(0, 3, 1, 2).reshape(4, -1)
    assert_close64(np.abs((mine * theirs.components_).sum(1)), np.ones(4), bound=1e-9)


@pytest.mark.parametrize("n", [30, 5])
def test_ridge_few_shot_equals_scikit_learn(n):
    from sklearn.linear_model import Ridge

    features, labels = normal(n, 8), np.arange(n) % 3
    scores = reference.ridge_few_shot(features, labels, 3, regularization=7.0)(features[:4])
    standard = (features - features.mean(0)) / (features.std(0) + 1e-5)
    x = np.concatenate([standard, np.full((n, 1), 100.0)], 1)
    theirs = Ridge(alpha=7.0, fit_intercept=False).fit(x, 2.0 * (labels[:, None] == np.arange(3)) - 1)
    assert_close64(scores, theirs.predict(x[:4]), bound=1e-7)


def test_logistic_probe_gradients_by_central_differences():
    features, labels = normal(6, 4), np.arange(6) % 3
    weight, bias = normal(3, 4), normal(3)

    def outputs(weight, bias):
        return (np.asarray(reference.logistic_probe_loss(features, labels, weight, bias, 0.3)[0]),)

    def backward(grad):
        return [grad * g for g in reference.logistic_probe_loss(features, labels, weight, bias, 0.3)[1:]]

    assert_gradients(outputs, backward, [weight, bias])
