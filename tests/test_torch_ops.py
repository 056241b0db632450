"""Operations on CPU tensors: values and gradients through the gate, and torch's own checks of operators."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch

import saccade
from saccade import reference
from saccade.families import GRADIENTS
from saccade.kernels.numba import matrices
from saccade.testing import gate
from saccade.torch import layers, patches
from saccade.torch.arrays import from_numpy, to_numpy

RNG = np.random.default_rng(0)
LABELS = np.array([1, -100, 0, 3, 2])


def normal(*shape):
    return RNG.standard_normal(shape)


# operation: (float64 arguments, options); cast to each dtype below
CASES = {
    "attention": ((normal(2, 3, 5, 8), normal(2, 3, 7, 8), normal(2, 3, 7, 4)), {"causal": True, "return_lse": True}),
    "attention with a bias and a mask": (
        (normal(2, 3, 5, 8), normal(2, 3, 7, 8), normal(2, 3, 7, 8)),
        {"bias": normal(3, 1, 7), "mask": RNG.random((2, 1, 5, 7)) < 0.6, "key_lengths": np.array([3, 7])},
    ),
    "qkv_attention": ((normal(2, 5, 3, 2, 8),), {"causal": True, "key_lengths": np.array([2, 5])}),
    "varlen_attention": ((normal(7, 2, 4),) * 3, {"cumulative_lengths": np.array([0, 3, 3, 7])}),
    "patch_embed": ((normal(2, 4, 6, 3), normal(5, 3, 2, 2), normal(5)), {"mean": (0.5, 0.4, 0.3), "std": (1, 2, 3)}),
    "patch_embed from uint8": ((RNG.integers(0, 256, (2, 4, 6, 3)).astype(np.uint8), normal(5, 3, 2, 2), None), {}),
    "linear": ((normal(2, 3, 4), normal(5, 4), normal(5)), {}),
    "embedding": ((RNG.integers(0, 6, (2, 3)), normal(6, 4)), {}),
    "layer_norm": ((normal(2, 3, 8), normal(8), normal(8)), {}),
    "layer_norm with a residual": ((normal(2, 3, 8), normal(8), None), {"residual": normal(2, 3, 8), "eps": 1e-3}),
    "rms_norm": ((normal(2, 3, 8), normal(8)), {"residual": normal(2, 3, 8)}),
    "gelu": ((normal(3, 8),), {"kind": "tanh"}),
    "mlp": ((normal(3, 4), normal(6, 4), None, normal(5, 6), normal(5)), {"kind": "sigmoid"}),
    "l2_normalize": ((normal(3, 8),), {}),
    "conv2d": ((normal(2, 6, 7, 3), normal(4, 3, 3, 2), normal(4)), {"stride": 2, "padding": 1}),
    "batch_norm": ((normal(3, 4, 5), normal(5), normal(5) ** 2, normal(5), normal(5)), {}),
    "average_pool": ((normal(2, 6, 7, 3),), {"size": 2}),
    "softmax_cross_entropy": ((normal(5, 4), LABELS), {"label_smoothing": 0.1}),
    "softmax_cross_entropy of soft targets": ((normal(5, 4), RNG.dirichlet(np.ones(4), 5)), {"reduction": "none"}),
    "sigmoid_cross_entropy": ((normal(5, 4), RNG.random((5, 4))), {}),
    "linear_cross_entropy": ((normal(5, 8), normal(4, 8), LABELS), {"reduction": "sum"}),
    "clip_loss": ((normal(5, 8), normal(5, 8), np.array(2.5)), {}),
    "siglip_loss": ((normal(5, 8), normal(5, 8), np.array(1.5), np.array(-1.0)), {}),
}


def cast(x, dtype):
    return x.astype(dtype) if isinstance(x, np.ndarray) and x.dtype == np.float64 else x


def through_torch(operation, **named):
    """The operation on tensors, in the form the gate takes: NumPy in, NumPy out, gradients by autograd."""

    def forward(*arguments, **options):
        tensors = [from_numpy(x) for x in arguments]
        keywords = {name: from_numpy(x) for name, x in options.items()}
        constants = {"batch_norm": (1, 2), "softmax_cross_entropy": (1,), "sigmoid_cross_entropy": (1,)}
        leaves = [x for i, x in enumerate(tensors) if i not in constants.get(operation, ())]
        leaves += [keywords[name] for name in ("bias", "residual") if name in keywords]
        leaves = [x for x in leaves if isinstance(x, torch.Tensor) and x.dtype.is_floating_point]
        for leaf in leaves:
            leaf.requires_grad_(True)
        out = getattr(saccade, operation)(*tensors, **keywords, **named)
        outs = out if isinstance(out, tuple) else (out,)
        given = [*arguments, options.get("bias"), options.get("residual")]
        values = tuple(to_numpy(x) for x in outs)
        return (values if isinstance(out, tuple) else values[0]), (outs, tensors, keywords, given)

    def backward(saved, *cotangents):
        outs, tensors, keywords, _ = saved
        torch.autograd.backward(outs, [from_numpy(x) for x in cotangents])
        gradients = []
        for name in GRADIENTS[operation]:
            leaf = keywords.get(name, SimpleNamespace(grad=None))
            if name in POSITIONS[operation]:
                leaf = tensors[POSITIONS[operation].index(name)] if name not in keywords else leaf
            gradients.append(to_numpy(getattr(leaf, "grad", None)))
        return tuple(gradients)

    return SimpleNamespace(**{f"{operation}_forward": forward, f"{operation}_backward": backward})


POSITIONS = {name: tuple(GRADIENTS[name]) for name in GRADIENTS}
POSITIONS["attention"] = ("query", "key", "value")
POSITIONS["embedding"] = ("tokens", "weight")
POSITIONS["layer_norm"] = ("x", "scale", "bias")
POSITIONS["rms_norm"] = ("x", "scale")
POSITIONS["batch_norm"] = ("x", "mean", "variance", "scale", "bias")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_operation_matches_the_reference(case, dtype):
    operation = case.split()[0]
    arguments, options = CASES[case]
    arguments = tuple(cast(x, dtype) for x in arguments)
    options = {name: cast(x, dtype) for name, x in options.items()}
    judged = gate.assert_right(operation, through_torch(operation), arguments, options)
    assert len(judged) >= 2 and any(one.verdict == "PASS" for one in judged)


@pytest.mark.parametrize("case", CASES)
def test_the_definition_by_name_is_the_reference(case):
    """Values bit by bit; gradients are its own backward function's."""
    operation = case.split()[0]
    arguments, options = CASES[case]
    by_name = through_torch(operation, backend="reference")
    out, saved = getattr(by_name, f"{operation}_forward")(*arguments, **options)
    values, outs = (
        x if isinstance(x, tuple) else (x,) for x in (out, getattr(reference, operation)(*arguments, **options))
    )
    assert all(map(np.array_equal, values, outs))
    cotangents = gate.draw_cotangents(values)
    _, kept = getattr(reference, f"{operation}_forward")(*arguments, **options)
    right = getattr(reference, f"{operation}_backward")(kept, *cotangents)
    mine = getattr(by_name, f"{operation}_backward")(saved, *cotangents)
    for g, truth in zip(mine, right, strict=True):
        assert (g is None) if truth is None else np.array_equal(g, truth)


@pytest.fixture(params=[False, True], ids=["torch's products", "own products"])
def either(request, monkeypatch):
    """Whoever is faster on this processor: the other is judged, too."""
    for module in (layers, patches, matrices):
        monkeypatch.setattr(module, "OWN", request.param)
    return request.param


PRODUCTS = [case for case in CASES if case.split()[0] in ("linear", "mlp", "patch_embed")]


@pytest.mark.parametrize("case", PRODUCTS)
def test_products_by_either(either, case):
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        test_operation_matches_the_reference(case, dtype)
    test_operation_compiles_without_a_graph_break(case)
    test_gradient_by_torch_func(case)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_spare_the_gradient_of_images(either, dtype, backend, monkeypatch):
    plain, sizes = patches.first_derivative, []

    def watched(*arguments):
        found = plain(*arguments)
        sizes.append(found[0].numel())
        return found

    monkeypatch.setattr(patches, "first_derivative", watched)
    images, weight, bias = (torch.from_numpy(x).to(dtype) for x in (normal(2, 4, 6, 3), normal(5, 3, 2, 2), normal(5)))
    found = []
    for wanted in (True, False):
        given = images.requires_grad_(wanted), weight.requires_grad_(), bias.requires_grad_()
        out = saccade.patch_embed(*given, std=(1, 2, 3), backend=backend)
        found.append(torch.autograd.grad((out * out.detach()).sum(), given[1 - wanted :]))
    assert all(map(torch.equal, found[0][1:], found[1]))
    assert sizes == ([images.numel(), 0] if backend is None else [])


def test_autocast_is_heeded_by_either(either):
    x, weight = torch.ones(3, 8), torch.ones(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert saccade.linear(x, weight).dtype == torch.bfloat16
    assert saccade.linear(x, weight).dtype == torch.float32


COMPILED = [case for case in CASES if case not in ("varlen_attention",)]


@pytest.mark.parametrize("case", COMPILED)
def test_operation_compiles_without_a_graph_break(case):
    operation = getattr(saccade, case.split()[0])
    arguments, options = CASES[case]
    arguments = [from_numpy(x) for x in arguments]
    options = {name: from_numpy(x) for name, x in options.items()}
    leaf = next(x for x in arguments if isinstance(x, torch.Tensor) and x.dtype == torch.float64).requires_grad_(True)
    torch._dynamo.reset()

    def total(*arguments):
        out = operation(*arguments, **options)
        return sum(x.sum() for x in (out if isinstance(out, tuple) else (out,)))

    (eager,) = torch.autograd.grad(total(*arguments), leaf)
    (compiled,) = torch.autograd.grad(torch.compile(total, fullgraph=True, backend="aot_eager")(*arguments), leaf)
    assert torch.equal(eager, compiled)


@pytest.mark.parametrize("case", CASES)
def test_gradient_by_torch_func(case):
    operation = getattr(saccade, case.split()[0])
    arguments, options = CASES[case]
    arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in map(from_numpy, arguments)]
    options = {name: from_numpy(x) for name, x in options.items()}
    i = next(i for i, x in enumerate(arguments) if isinstance(x, torch.Tensor) and x.dtype == torch.float64)

    def total(x):
        out = operation(*arguments[:i], x, *arguments[i + 1 :], **options)
        return sum(one.sum() for one in (out if isinstance(out, tuple) else (out,)))

    leaf = arguments[i].clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(total(leaf), leaf)
    assert torch.equal(torch.func.grad(total)(arguments[i]), expected)


OPERATORS = {
    "linear_forward": lambda q, k, v: (q, k[0, 0, :, : q.shape[3]], v[0, 0, :, 0]),
    "attention_forward": lambda q, k, v: (q, k, v, None, None, True, None, None, None),
    "qkv_attention_forward": lambda q, k, v: (torch.stack([q, k, v], 2).transpose(1, 3), True, None, 0.5, None),
    "layer_norm_forward": lambda q, k, v: (q, q[0, 0, 0], None, 1e-5, k, None),
    "rms_norm_forward": lambda q, k, v: (q, q[0, 0, 0], 1e-5, None, None),
    "gelu_forward": lambda q, k, v: (q, "erf", None),
    "l2_normalize_forward": lambda q, k, v: (q, 1e-12, None),
    "softmax_cross_entropy_forward": lambda q, k, v: (q[0, 0], torch.tensor([0, 1, 2, 3, 4]), -100, 0.1, "none", None),
    "sigmoid_cross_entropy_forward": lambda q, k, v: (q[0, 0], k[0, 0], "mean", None),
    "clip_loss_forward": lambda q, k, v: (q[0, 0], k[0, 0], torch.tensor(2.0), None),
    "siglip_loss_forward": lambda q, k, v: (q[0, 0], k[0, 0], torch.tensor(2.0), torch.tensor(-1.0), None),
    "linear_cross_entropy_forward": lambda q, k, v: (
        q[0, 0],
        k[0, 0],
        torch.tensor([0, 1, 2, 3, 4]),
        -100,
        0.0,
        "sum",
        None,
    ),
    "patch_embed_forward": lambda q, k, v: (q[..., :4], k[:, :1, :2, :2].repeat(1, 4, 1, 1), None, None, None, None),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_pass_opcheck(name, dtype):
    three = [torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3)]
    if name == "patch_embed_forward":
        three[0] = three[0][:, :, :4]
    torch.library.opcheck(getattr(torch.ops.saccade, name), OPERATORS[name](*three))


def test_second_derivatives_are_refused():
    x = torch.randn(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(saccade.gelu(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"saccade\.gelu has no second derivative"):
        grad.sum().backward()


def test_a_number_as_logit_scale_has_no_gradient_and_the_same_loss():
    images, texts = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(saccade.clip_loss(images, texts, 2.0), saccade.clip_loss(images, texts, torch.tensor(2.0)))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own use of it
def test_without_gradients_the_numbers_are_the_same_and_forward_mode_is_still_refused():
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = saccade.gelu(x)
        with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward"):
            saccade.gelu(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
    assert torch.equal(alone, saccade.gelu(x.requires_grad_()).detach())
