"""The Triton kernels in Triton's interpreter, on CPU tensors, through the gate.

``test_triton_interpreted.py`` runs this file in a process of its own, since whether a kernel is interpreted or
compiled is settled when it is defined. What the interpreter does not show: how bfloat16 products round (they are
taken in float32, and bfloat16 results are cut off rather than rounded), and anything about threads or memory.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from support import assert_kernel_passes, kernels_of
from test_torch_ops import CASES as PUBLIC_CASES, cast, through_torch
from triton_cases import ATTENTION, CASES, CROSS_ENTROPY, TENSORS, check_far_keys, check_lowest_bias

from saccade.families import family_of
from saccade.kernels.triton import attention, layers, losses, pairs, palette, patches, products, statistics
from saccade.kernels.triton.memory import INTERPRETED
from saccade.palette import Palette
from saccade.reference import palette as exact_palette
from saccade.testing import gate
from saccade.testing.frameworks import Framework, adapted
from saccade.torch.arrays import BACKENDS

KERNELS = {
    family: adapted(module, Framework("torch", "cpu"))
    for family, module in (("attention", attention), ("layers", layers), ("losses", losses), ("patches", patches))
}

SECONDS = {"attention": 8.0, "softmax_cross_entropy": 4.0}  # of drawn inputs; each law sees one at least

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter's own NumPy, at log 0 and −inf − −inf
]


def test_kernels_are_interpreted():
    assert INTERPRETED


@pytest.mark.parametrize(("operation", "function"), kernels_of("triton"))
def test_kernels_pass_the_oracle(operation, function):
    # how the interpreter rounds to bfloat16 is not what is judged here
    claims = replace(TENSORS, dtypes=("float32", "float64", "float16"))
    assert_kernel_passes(operation, function, arrays="torch", claims=claims, budget=SECONDS.get(operation, 1.5))


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


OPERATIONS = {name for name, _ in kernels_of("triton")}


@pytest.mark.parametrize("case", [case for case in PUBLIC_CASES if case.split()[0] in OPERATIONS])
def test_the_public_functions_run_them_and_differentiate(case, monkeypatch):
    """What a CUDA tensor would go through, with CPU tensors taken for it."""
    monkeypatch.setitem(BACKENDS, "cpu", ("triton",))
    operation, (arguments, options) = case.split()[0], PUBLIC_CASES[case]
    arguments = tuple(cast(x, np.float32) for x in arguments)
    options = {name: cast(x, np.float32) for name, x in options.items()}
    functions = through_torch(operation)
    forward = getattr(functions, f"{operation}_forward")
    setattr(functions, f"{operation}_forward", lambda *x, **named: forward(*x, **named, backend="triton"))
    assert gate.verdict(gate.assert_right(operation, functions, arguments, options)) == "PASS"


def test_parts_of_many_rows_add_up(monkeypatch):
    monkeypatch.setattr(layers, "PARTS", 2)
    rng = np.random.default_rng(0)
    x, scale, bias, residual = (rng.standard_normal(s).astype(np.float32) for s in ((81, 5), 5, 5, (81, 5)))
    gate.assert_right("layer_norm", KERNELS["layers"], (x, scale, bias), {"residual": residual})
    gate.assert_right("rms_norm", KERNELS["layers"], (x, scale))


PRODUCTS = (
    "clip_loss, a negative scale that is a number",
    "clip_loss, a tile less one",
    "siglip_loss, all but certain",
)
PRODUCTS += ("linear_cross_entropy, smoothed", "patch_embed, a tile and one")


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("fewest", [1, 1024])
def test_panels_and_parts_of_products_add_up(name, fewest, monkeypatch):
    """A panel is a tile of rows, sums are taken in two parts: several of each, the last of them not whole. Columns are
    gone through by one program, or by one each."""
    monkeypatch.setattr(statistics, "FEWEST", fewest)
    monkeypatch.setattr(statistics, "STATISTICS_BYTES", 0)
    monkeypatch.setattr(pairs, "PANEL_BYTES", 0)
    monkeypatch.setattr(products, "SHORTEST", 64)
    operation = name.split(",")[0]
    gate.assert_right(operation, KERNELS[family_of(operation)], *CASES[name]())


@pytest.mark.parametrize("depth", [3, 130])
def test_products_are_added_to_a_total(depth, monkeypatch):
    monkeypatch.setattr(products, "SHORTEST", 64)
    rng = np.random.default_rng(0)
    a, b, total = (torch.from_numpy(rng.integers(-9, 9, shape).astype(np.float32)) for shape in
                   ((70, depth), (depth, 5), (70, 5)))  # fmt: skip
    expected = a @ b + total
    assert products.multiply(a, b, total) is total and torch.equal(total, expected)
    assert torch.equal(products.multiply(a.T.contiguous().T, b), a @ b)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_the_rounded_sum_is_what_is_normalised(name):
    generator = torch.Generator().manual_seed(0)
    x, residual, scale = (torch.randn(s, generator=generator).half() for s in ((5, 40), (5, 40), (40,)))
    out, total = getattr(layers, name)(x, scale, residual=residual)
    assert torch.equal(total, x + residual) and torch.equal(out, getattr(layers, name)(total, scale))


def test_a_palettes_sums_exceed_32_bits_and_a_block():
    rng = np.random.default_rng(0)
    colors, counts = rng.integers(0, 256, (1500, 3)).astype(np.uint8), rng.integers(2**32, 2**33, 1500)
    centers = rng.integers(0, 255 * 4096 + 1, (5, 3)).astype(np.int32)
    expected = exact_palette.assign(colors, centers)
    found = palette.assign(torch.from_numpy(colors), torch.from_numpy(centers))
    assert np.array_equal(found.numpy(), expected)
    moved = palette.update(*map(torch.from_numpy, (colors, counts)), found, torch.from_numpy(centers))
    assert np.array_equal(moved.numpy(), exact_palette.update(colors, counts, expected, centers))


@pytest.mark.parametrize("k", [1, 40])
def test_colors_have_the_nearest_of_those_listed_for_their_cells(k, monkeypatch):
    monkeypatch.setattr(palette, "CELLS", 4)
    rng = np.random.default_rng(k)
    colors, centers = rng.integers(0, 256, (1500, 3)).astype(np.uint8), rng.integers(0, 255 * 4096 + 1, (k, 3))
    centers[k // 2 :: 3] = centers[0]  # equals, of which the first counts
    centers[1:2] = 4096 * np.array([63, 64, 255])  # on the sides of cells
    centers = centers.astype(np.int32)
    found = palette.assign(torch.from_numpy(colors), torch.from_numpy(centers))
    assert np.array_equal(found.numpy(), exact_palette.assign(colors, centers))


def test_a_center_as_near_as_the_farthest_corner_of_another_is_listed(monkeypatch):
    monkeypatch.setattr(palette, "CELLS", 4)
    corner = torch.full((200, 3), 63, dtype=torch.uint8)
    equally_far = torch.tensor([[126] * 3, [0] * 3], dtype=torch.int32) * 4096
    assert palette.assign(corner, equally_far).eq(0).all() and palette.assign(corner, equally_far.flip(0)).eq(0).all()


def test_a_palette_encodes_with_them(monkeypatch):
    monkeypatch.setitem(BACKENDS, "cpu", ("triton",))
    rng = np.random.default_rng(0)
    images, whole = rng.integers(0, 256, (2, 5, 3)).astype(np.uint8), Palette(rng.integers(0, 256, (7, 3)))
    assert np.array_equal(whole.encode(torch.from_numpy(images)).numpy(), whole.encode(images))


def test_panels_are_as_long_as_memory_allows():
    assert statistics.panels(1000, 10, 5000, 64) == [slice(0, 448), slice(448, 896), slice(896, 1000)]
    assert statistics.panels(0, 10, 5000, 64) == []


@pytest.mark.parametrize("label", [-1, 5, 2**40])
@pytest.mark.parametrize("operation", ["softmax_cross_entropy", "linear_cross_entropy"])
def test_a_bad_label_gives_nan_for_its_row_alone(operation, label):
    rng = np.random.default_rng(0)
    arrays = [torch.from_numpy(rng.standard_normal(shape)) for shape in ((3, 5), (5, 5))]
    given = arrays[:1] if operation == "softmax_cross_entropy" else arrays
    labels = torch.tensor([0, label, 4])
    loss, saved = getattr(losses, f"{operation}_forward")(*given, labels, reduction="none")
    grad = getattr(losses, f"{operation}_backward")(saved, torch.ones(3, dtype=torch.float64))[0]
    assert torch.isnan(loss).tolist() == [False, True, False]
    assert torch.isnan(grad).all(1).tolist() == torch.isnan(grad).any(1).tolist() == [False, True, False]


def test_empty_batches_have_no_mean():
    none, one = torch.zeros(0, 4), torch.ones(())
    for operation, arguments in {
        "clip_loss": (none, none, one),
        "siglip_loss": (none, none, one, one),
        "linear_cross_entropy": (none, torch.ones(5, 4), torch.zeros(0, dtype=torch.int64)),
        "sigmoid_cross_entropy": (none, none),
    }.items():
        loss, saved = getattr(losses, f"{operation}_forward")(*arguments)
        assert loss.shape == () and torch.isnan(loss)
        assert getattr(losses, f"{operation}_backward")(saved, one)[0].shape == (0, 4)


@pytest.mark.parametrize("scale", [5, 15, 60])
def test_rows_that_are_all_but_certain_keep_their_digits(scale):
    """As numba's: an error of u in a logit is one of u in every weight, and u <= scale 2⁻²³."""
    rng = np.random.default_rng(0)
    images = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((64, 128))).float())
    noise = torch.from_numpy(rng.standard_normal((64, 128))).float()
    texts, factor = torch.nn.functional.normalize(images + noise * 0.01), torch.tensor(float(scale))
    bound = max(16, scale) * 2.0**-23 * 4
    for operation, arguments in {
        "clip_loss": (images, texts, factor),
        "linear_cross_entropy": (images, texts * factor, torch.arange(64)),
    }.items():
        loss, saved = getattr(losses, f"{operation}_forward")(*arguments)
        actual = loss, *getattr(losses, f"{operation}_backward")(saved, torch.ones(()))
        true = gate.truth(operation, [x.numpy() for x in arguments], {}, (np.float32(1),))
        for one, exact in zip(actual, (*true[0], *true[1]), strict=True):
            assert np.abs(one.numpy() - exact).max() < bound * np.abs(exact).max(), operation


@given(st.sampled_from([torch.float32, torch.float64]), st.integers(0, 5))
def test_keys_beyond_their_length_are_never_read(dtype, length):
    generator = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(1, 1, 5, 4, dtype=dtype, generator=generator) for _ in range(3))
    clean = run_attention(query, key, value, torch.tensor([length]))
    key[:, :, length:], value[:, :, length:] = float("nan"), float("inf")
    dirty = run_attention(query, key, value, torch.tensor([length]))
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))


def run_attention(query, key, value, key_lengths):
    """The output and the gradients for query, key and value."""
    out, saved = attention.attention_forward(query, key, value, key_lengths=key_lengths)
    return out, *attention.attention_backward(saved, torch.ones_like(out))[:3]


def test_offsets_beyond_2_to_the_31_are_reached():
    check_far_keys(attention, "cpu")


def test_a_mask_of_the_lowest_numbers_hides_as_it_should():
    check_lowest_bias(attention, "cpu")


def test_rows_too_long_for_a_tile_are_refused():
    query = torch.zeros(1, 1, 1, 1025)
    with pytest.raises(ValueError, match="head dimensions of at most 512"):
        attention.attention(query, query, query)
    with pytest.raises(ValueError, match="rows of 16385 numbers, expected at most 16384"):
        layers.rms_norm(torch.zeros(1, 16385), torch.zeros(16385))


def test_patches_spare_the_gradient_of_images():
    images, weight = torch.randn(2, 4, 6, 3), torch.randn(5, 3, 2, 2)
    out, saved = patches.patch_embed_forward(images, weight, weight[:, 0, 0, 0], std=(1.0, 2.0, 3.0))
    of_images, *others = patches.patch_embed_backward(saved, out)
    spared, *again = patches.patch_embed_backward(saved, out, of_images=False)
    assert of_images.shape == images.shape and spared is None
    assert all(map(torch.equal, others, again))
