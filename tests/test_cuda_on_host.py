"""The CUDA C++ of the CuPy backend, run on the CPU: the same sources and the same Python sides, under a shim that
executes every thread of a launch (``cuda_host``), held to the gate.

What this cannot see: the GPU's own arithmetic and launch, and cuBLAS, for which the tests marked ``gpu`` are.
"""

import importlib
from dataclasses import replace

import numpy as np
import pytest
from cuda_cases import CASES
from cuda_host import folder_of, on_the_host
from support import assert_kernel_passes, kernels_of

import saccade.palette
from saccade.families import FAMILIES, family_of
from saccade.kernels.cupy import attention, device, losses, pairs, palette, patches
from saccade.palette import Palette
from saccade.testing import gate, strategies
from saccade.testing.claims import Claims
from saccade.testing.subject import PALETTE
from saccade.testing.ways import ways

# No strides that leave elements unaligned: the arrays of a GPU framework have none. Few head dimensions, since each is
# compiled in.
CLAIMS = Claims(
    layouts=tuple(name for name in strategies.LAYOUTS if name != "misaligned"), head_dims=(8,), value_dims=False
)
NARROW = replace(CLAIMS, head_dims=(5,))


@pytest.fixture(scope="module", autouse=True)
def host(tmp_path_factory):
    with on_the_host(folder_of(tmp_path_factory)):
        yield


@pytest.mark.parametrize(("operation", "function"), kernels_of("cupy"))
def test_kernels_pass_the_oracle(operation, function):
    budget = 6.0 if operation == "attention" else 2.0
    assert_kernel_passes(operation, function, claims=CLAIMS, budget=budget, call_seconds=300.0)  # some compile first


def test_cupy_has_every_operation():
    every = {*PALETTE, *(name for names in FAMILIES.values() for name in names)}
    assert {name for name, _ in kernels_of("cupy")} == every


def test_attention_of_a_narrow_head_passes_the_oracle():
    function = "saccade.kernels.cupy.attention:attention"
    assert_kernel_passes("attention", function, claims=NARROW, budget=6.0, call_seconds=300.0)


def test_a_label_that_is_no_class_gives_nan_for_its_row():
    logits, labels = np.zeros((3, 2), np.float32), np.array([0, 2, 1])
    per_row, saved = losses.softmax_cross_entropy_forward(logits, labels, reduction="none")
    (grad,) = losses.softmax_cross_entropy_backward(saved, np.ones(3, np.float32))
    assert np.isnan(per_row).tolist() == [False, True, False]
    assert np.isnan(grad).all(1).tolist() == [False, True, False]


def test_16_bit_numbers_are_converted_exactly():
    """Every float16 and bfloat16 through a kernel that only copies: one key, whose weight is 1."""
    for dtype in (np.float16, strategies.DTYPES[2]):
        every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
        every = every[np.isfinite(every.astype(np.float32))]
        value = np.resize(every, (1, 1, len(every) // 8 + 1, 8))
        ones = np.zeros((1, 1, value.shape[2], 8), dtype)
        visible = np.eye(value.shape[2], dtype=bool)[:64]
        for start in range(0, value.shape[2] - 64, 4096):
            rows = value[:, :, start : start + 64]
            out = attention.attention(ones[:, :, :64], ones[:, :, :64], rows, mask=visible[:, :64])
            assert np.array_equal(out, rows)


@pytest.mark.parametrize("dtype", [np.float16, strategies.DTYPES[2]])
def test_16_bit_attention_without_tensor_cores_is_right(dtype, monkeypatch):
    monkeypatch.setattr(device, "has_tensor_cores", lambda: False)
    arguments, options = CASES["attention"]
    gate.assert_right("attention", attention, tuple(x.astype(dtype) for x in arguments), options)


def test_rounding_to_16_bits_is_to_nearest_even():
    """Averages of two neighbouring numbers lie half-way: the even one is right."""
    for dtype, bits in ((np.float16, 0x3C00), (strategies.DTYPES[2], 0x3F80)):
        neighbours = np.array([[bits + i, bits + i + 1] for i in range(8)], np.uint16).view(dtype)
        value = np.ascontiguousarray(neighbours.T).reshape(1, 1, 2, 8)
        zeros = np.zeros((1, 1, 2, 8), dtype)
        out = attention.attention(zeros, zeros, value)[0, 0, 0]
        assert (out.view(np.uint16) % 2 == 0).all()


def test_a_palette_of_a_picture_is_the_same_as_on_a_cpu(monkeypatch):
    from skimage.data import astronaut

    images, other = astronaut()[::16, ::16], astronaut()[1::16, ::16]
    right = Palette.fit(images, 20, iterations=4)
    monkeypatch.setattr(saccade.palette, "_kernels_of", lambda _: palette)
    mine = Palette.fit(images, 20, iterations=4)
    assert np.array_equal(mine.centers, right.centers) and mine.inertia == right.inertia
    tokens = mine.encode(other)
    assert mine.encode(other[:0]).shape == (0, 32) and np.array_equal(mine.decode(tokens), right.decode(tokens))
    monkeypatch.undo()
    assert tokens.dtype == np.int32 and np.array_equal(tokens, right.encode(other))


def test_no_array_of_all_pairs_is_made(monkeypatch):
    largest, n = 0, 200
    plain_empty, plain_product = device.empty, pairs.product

    def sized(x):
        nonlocal largest
        largest = max(largest, x.size)
        return x

    monkeypatch.setattr(device, "empty", lambda shape, dtype: sized(plain_empty(shape, dtype)))
    monkeypatch.setattr(pairs, "product", lambda a, b: sized(plain_product(a, b)))
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((2, n, 8)).astype(np.float32)
    one = np.ones((), np.float32)
    losses.clip_loss_backward(losses.clip_loss_forward(images, texts, 1.0)[1], one)
    losses.siglip_loss_backward(losses.siglip_loss_forward(images, texts, 1.0, 0.0)[1], one)
    labels = rng.integers(0, n, n)
    losses.linear_cross_entropy_backward(losses.linear_cross_entropy_forward(images, texts, labels)[1], one)
    assert n * 8 <= largest <= pairs.PANEL < n * n


def test_a_bad_label_of_a_linear_cross_entropy_gives_nan_for_its_row():
    hidden, weight = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)
    per_row, saved = losses.linear_cross_entropy_forward(hidden, weight, np.array([0, 2, 1]), reduction="none")
    grad_hidden, _ = losses.linear_cross_entropy_backward(saved, np.ones(3, np.float32))
    assert np.isnan(per_row).tolist() == [False, True, False]
    assert np.isnan(grad_hidden).all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [np.float16, strategies.DTYPES[2]])
def test_16_bit_products_are_right_in_any_layout(dtype):
    """What cuBLAS is told of where matrices lie."""
    rng = np.random.default_rng(0)

    def layouts(x):
        twice = np.concatenate([x, x], 1)
        return x, np.asfortranarray(x), twice[:, ::2], twice[:, : x.shape[1]], np.broadcast_to(x[:1], (4, x.shape[1]))

    for m, k, n in ((5, 7, 3), (1, 7, 3), (5, 1, 3), (5, 7, 1), (1, 1, 1), (5, 0, 3)):
        for a in layouts(rng.standard_normal((m, k)).astype(dtype)):
            for b in layouts(rng.standard_normal((n, k)).astype(dtype)):
                out, true = device.product(a, b.T), a.astype(np.float64) @ b.astype(np.float64).T
                judged = gate.judge_one("product", out, true, [way.matmul(a, b.T) for way in ways(dtype, 4)])
                assert out.dtype == np.float32 and judged.verdict == "PASS", judged


def described(saved):
    """What a forward function kept, as shapes and dtypes."""
    if isinstance(saved, (tuple, list)):
        return tuple(map(described, saved))
    return (saved.shape, saved.dtype) if isinstance(saved, np.ndarray) else saved


TORCHS_OWN = ("linear", "embedding", "mlp", *FAMILIES["convolution"])  # on tensors
KEPT = [case for case in CASES if case.split()[0] not in (*TORCHS_OWN, *PALETTE)]


@pytest.mark.parametrize("case", KEPT)
def test_what_is_kept_is_what_tensors_keep(case):
    """The operators for tensors hand to a backward function of any backend what numba's forward function keeps."""
    operation = case.split()[0]
    arguments, options = CASES[case]
    kept = []
    for backend in ("cupy", "numba"):
        kernels = importlib.import_module(f"saccade.kernels.{backend}.{family_of(operation)}")
        kept.append(described(getattr(kernels, f"{operation}_forward")(*arguments, **options)[1]))
    assert kept[0] == kept[1]


def test_patches_spare_the_gradient_of_images():
    rng = np.random.default_rng(0)
    images, weight = rng.standard_normal((2, 4, 6, 3)), rng.standard_normal((5, 3, 2, 2))
    out, saved = patches.patch_embed_forward(images, weight, weight[:, 0, 0, 0], std=(1.0, 2.0, 3.0))
    of_images, *others = patches.patch_embed_backward(saved, out)
    spared, *again = patches.patch_embed_backward(saved, out, of_images=False)
    assert of_images.shape == images.shape and spared is None
    assert all(map(np.array_equal, others, again))
