"""The Triton kernels on a GPU, against the reference through the gate; every test here is marked ``gpu``."""

import numpy as np
import pytest
import torch
from support import assert_kernel_passes, kernels_of
from triton_cases import ATTENTION, CASES, CROSS_ENTROPY, TENSORS, check_far_keys, check_lowest_bias

import saccade
from saccade.families import family_of
from saccade.kernels.numba import palette as exact_palette
from saccade.kernels.triton import attention, layers, losses, palette, patches
from saccade.testing import Claims, check, gate
from saccade.testing.frameworks import Framework, adapted
from saccade.testing.peers import PEERS, peer

KERNELS = {
    family: adapted(module, Framework("torch", "cuda"))
    for family, module in (("attention", attention), ("layers", layers), ("losses", losses), ("patches", patches))
}

pytestmark = [
    pytest.mark.gpu,
]


@pytest.mark.parametrize(("operation", "function"), kernels_of("triton"))
def test_kernels_pass_the_oracle(operation, function):
    assert_kernel_passes(operation, function, arrays="torch", device="cuda", claims=TENSORS, budget=60.0)


def test_work_in_the_wrong_stream_is_found():
    first = torch.cuda.current_stream()

    def gelu(x, **options):
        with torch.cuda.stream(first):
            return torch.nn.functional.gelu(x)

    claims = Claims(options=(), layouts=("dense",), dtypes=("float32",), gradients=False, zero_sized=False)
    options = dict(arrays="torch", device="cuda", claims=claims, only="same again", budget=20.0)
    assert check(gelu, "gelu", **options).verdict == "FAIL"
    assert check(torch.nn.functional.gelu, "gelu", **options).verdict == "PASS"


GPU_PEERS = [name for name, one in PEERS.items() if one.device == "cuda"]


@pytest.mark.parametrize("name", GPU_PEERS)
def test_claims_of_gpu_peers_let_them_be_called(name):
    if not PEERS[name].installed:
        pytest.skip(f"{PEERS[name].package} is not installed")
    function, operation, arrays, claims = peer(name)
    report = check(function, operation, arrays=arrays, device="cuda", claims=claims, only="values", budget=20.0)
    assert not [one.says for one in report.failures if "raised" in one.says]


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_matches_the_reference_where_it_is_awkward(name):
    arguments, options = ATTENTION[name]()
    judged = gate.assert_right("attention", KERNELS["attention"], arguments, options)
    assert gate.verdict(judged) == "PASS"


@pytest.mark.parametrize("name", CROSS_ENTROPY)
def test_cross_entropy_matches_the_reference_where_it_is_awkward(name):
    arguments, options = CROSS_ENTROPY[name]()
    judged = gate.assert_right("softmax_cross_entropy", KERNELS["losses"], arguments, options)
    assert gate.verdict(judged) == "PASS"


@pytest.mark.parametrize("name", CASES)
def test_kernels_match_the_reference_where_it_is_awkward(name):
    operation = name.split(",")[0]
    judged = gate.assert_right(operation, KERNELS[family_of(operation)], *CASES[name]())
    assert gate.verdict(judged) == "PASS"


def test_results_have_the_same_bits_every_time_and_whatever_else_is_in_the_batch():
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = [torch.randn(3, 2, 197, 72, device="cuda", generator=generator) for _ in range(4)]
    whole = gradients_of_attention(*tensors)
    for _ in range(3):
        assert all(map(torch.equal, whole, gradients_of_attention(*tensors)))
    alone = gradients_of_attention(*(x[1:2] for x in tensors))
    assert all(torch.equal(a, b[1:2]) for a, b in zip(alone, whole, strict=True))


@pytest.mark.parametrize("operation", ["layer_norm", "clip_loss", "siglip_loss", "linear_cross_entropy"])
def test_gradients_have_the_same_bits_every_time(operation):
    generator = torch.Generator("cuda").manual_seed(0)
    one, two = torch.randn(2, 3000, 192, device="cuda", generator=generator).bfloat16() / 8
    labels = torch.randint(0, 3000, (3000,), device="cuda", generator=generator)
    factor = torch.tensor(10.0, device="cuda")
    arguments = {
        "layer_norm": (one, two[0], two[1]), "clip_loss": (one, two, factor),
        "siglip_loss": (one, two, factor, -factor), "linear_cross_entropy": (one, two, labels),
    }[operation]  # fmt: skip
    module = layers if operation == "layer_norm" else losses

    def results():
        out, saved = getattr(module, f"{operation}_forward")(*arguments)
        return out, *getattr(module, f"{operation}_backward")(saved, torch.ones_like(out))

    first = results()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, results(), strict=True) if a is not None)


def test_a_step_over_every_color_is_exact():
    codes = torch.arange(1 << 24, device="cuda", dtype=torch.int32)
    colors = torch.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1).to(torch.uint8)
    centers = torch.randint(0, 255 * 4096 + 1, (512, 3), device="cuda", dtype=torch.int32)
    assignment = palette.assign(colors, centers)
    on_host = [x.cpu().numpy() for x in (colors, centers)]
    expected = exact_palette.assign(*on_host)
    assert np.array_equal(assignment.cpu().numpy(), expected)
    moved = palette.update(colors, torch.ones_like(codes, dtype=torch.int64), assignment, centers)
    truth = exact_palette.update(on_host[0], np.ones(1 << 24, np.int64), expected, on_host[1])
    assert np.array_equal(moved.cpu().numpy(), truth)


def test_contrastive_losses_store_no_square():
    n = 16384  # n² bfloat16 numbers would be 512 MB
    images, texts = torch.randn(2, n, 64, device="cuda", dtype=torch.bfloat16) / 8
    images.requires_grad_(), texts.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    saccade.clip_loss(images, texts, torch.tensor(14.3, device="cuda")).backward()
    assert torch.cuda.max_memory_allocated() - before < 200 << 20


def test_offsets_beyond_2_to_the_31_are_reached():
    check_far_keys(attention, "cuda")


def test_a_mask_of_the_lowest_numbers_hides_as_it_should():
    check_lowest_bias(attention, "cuda")


def test_the_public_functions_run_them_and_differentiate():
    rng = np.random.default_rng(0)
    query, key, value, bias = (rng.standard_normal(s).astype(np.float32) for s in ((2, 2, 5, 8),) * 3 + ((5, 5),))
    leaves = [torch.from_numpy(x).cuda().requires_grad_() for x in (query, key, value, bias)]
    out, lse = saccade.attention(*leaves[:3], bias=leaves[3], causal=True, return_lse=True)
    cotangents = gate.draw_cotangents((out.detach().cpu().numpy(), lse.detach().cpu().numpy()))
    torch.autograd.backward([out, lse], [torch.from_numpy(x).cuda() for x in cotangents])
    outputs, gradients = (tuple(x.detach().cpu().numpy() for x in xs) for xs in ((out, lse), [x.grad for x in leaves]))
    options = {"bias": bias, "causal": True, "return_lse": True}
    judged = gate.judge("attention", outputs, gradients, (query, key, value), options, cotangents)
    gate.assert_judged(judged, "attention", (query, key, value), options)


def test_a_bad_label_gives_nan_for_its_row_alone():
    logits = torch.randn(3, 5, device="cuda", requires_grad=True)
    loss = saccade.softmax_cross_entropy(logits, torch.tensor([0, 9, -100], device="cuda"), reduction="none")
    loss.sum().backward()
    assert torch.isnan(loss).tolist() == torch.isnan(logits.grad).all(1).tolist() == [False, True, False]


def gradients_of_attention(query, key, value, grad_out):
    """The output and the gradients for query, key and value."""
    out, saved = attention.attention_forward(query, key, value, causal=True)
    return out, *attention.attention_backward(saved, grad_out)[:3]
