"""The CUDA C++ of the CuPy backend, run on the CPU: the same sources and the same Python sides, under a shim that
executes every thread of a launch (``cuda_host``), held to the gate.

What this cannot see: the GPU's own arithmetic and launch, and cuBLAS, for which the tests marked ``gpu`` are.
"""

import importlib
from dataclasses import replace

import numpy as np
import pytest
from cuda_host import FORWARD, REVERSED, SHUFFLED, on_the_host
from support import assert_kernel_passes, kernels_of

import saccade.palette
from saccade.kernels.cupy import attention, device, losses, palette
from saccade.palette import Palette
from saccade.testing import gate, palettes, strategies
from saccade.testing.claims import Claims
from saccade.testing.subject import PALETTE

# No strides that leave elements unaligned: the arrays of a GPU framework have none. Few head dimensions, since each is
# compiled in.
CLAIMS = Claims(
    layouts=tuple(name for name in strategies.LAYOUTS if name != "misaligned"), head_dims=(8,), value_dims=False
)
NARROW = replace(CLAIMS, head_dims=(5,))


@pytest.fixture(scope="module", autouse=True)
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda_on_host")
    with on_the_host(folder):
        yield folder


@pytest.mark.parametrize(("operation", "function"), kernels_of("cupy"))
def test_kernels_pass_the_oracle(operation, function):
    budget = 6.0 if operation == "attention" else 2.0
    assert_kernel_passes(operation, function, claims=CLAIMS, budget=budget, call_seconds=300.0)  # some compile first


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


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


RNG = np.random.default_rng(0)
COLORS, COUNTS = RNG.integers(0, 256, (300, 3)).astype(np.uint8), RNG.integers(1, 9, 300)
CENTERS = RNG.integers(0, 255 * 4096, (290, 3)).astype(np.int32)  # more than a tile of them
CENTERS = np.concatenate([CENTERS, CENTERS[:20]])  # and equals
CASES = {
    "attention": (
        (normal(1, 2, 6, 8), normal(1, 2, 9, 8), normal(1, 2, 9, 8)),
        {"causal": True, "mask": np.random.default_rng(0).random((6, 9)) < 0.7, "key_lengths": np.array([7])},
    ),
    "linear": ((normal(70, 6), normal(5, 6), normal(5)), {}),
    "patch_embed": ((normal(2, 4, 6, 3), normal(5, 3, 2, 2), normal(5)), {"mean": (0.5, 0.4, 1), "std": (1, 2, 3)}),
    "patch_embed of bytes": ((np.arange(72, dtype=np.uint8).reshape(1, 4, 6, 3), normal(5, 3, 2, 2)), {}),
    "assign": ((COLORS, CENTERS), {}),
    "update": ((COLORS, COUNTS, np.arange(300) % 5, CENTERS), {}),
    "fit": ((COLORS, COUNTS, CENTERS), {"iterations": 3}),
    "embedding": ((np.array([3, 0, 3, 1, 3]), normal(6, 4)), {}),
    "layer_norm": ((normal(70, 130), normal(130), normal(130)), {"residual": normal(70, 130)}),
    "rms_norm": ((normal(3, 130), normal(130)), {}),
    "gelu": ((4 * normal(5, 7),), {"kind": "erf"}),
    "gelu by a sigmoid": ((4 * normal(5, 7),), {"kind": "sigmoid"}),
    "l2_normalize": ((normal(3, 130),), {}),
}
# what: (file, case, what is right, what is written instead)
# what: (file, case, what is right, what is written instead)
BUGS = {
    "causal off by one": ("attention.cu", "attention", "i_t + 1 + s - t", "i_t + 2 + s - t"),
    "no rescaling of what was summed before": ("attention.cu", "attention", "sum[i] * rescale", "sum[i]"),
    "a key gradient without the scale": ("attention.cu", "attention", "scale * key_sum[i]", "key_sum[i]"),
    "lengths ignored": ("attention.cu", "attention", "return lengths ?", "return 0 ?"),
    "a mask ignored": ("attention.cu", "attention", "return mask.base && ", "return 0 && "),
    "the row sums forgotten": ("attention.cu", "attention", "(products - row_sums", "(products - 0 * row_sums"),
    "the last group left out": ("blocks.cu", "layer_norm", "/ GROUP; i++) sum", "/ GROUP - 1; i++) sum"),
    "columns left out": ("layers.cu", "rms_norm", "j += THREADS)", "j += 2 * THREADS)"),
    "the mean forgotten": ("layers.cu", "layer_norm", "if (p->centre) {", "if (0) {"),
    "a residual forgotten": ("layers.cu", "layer_norm", " + p->residual.get(row, j)", ""),
    "a gradient without its level": ("layers.cu", "layer_norm", "p->scale.get(j) - level", "p->scale.get(j)"),
    "the last row of a chunk alone": ("layers.cu", "layer_norm", "scale_sum += grad *", "scale_sum = grad *"),
    "chunks of a row too few": ("layers.cu", "linear", "int64 row = chunk * CHUNK;", "int64 row = chunk * CHUNK + 1;"),
    "the first chunk alone": ("layers.cu", "linear", "int64 row = 0; row < p->n;", "int64 row = 0; row < 1;"),
    "a bias forgotten": ("layers.cu", "linear", "if (p->bias.base) value", "if (0) value"),
    "another density": ("layers.cu", "gelu", "exp(-x * x / 2)", "exp(-x * x)"),
    "a gelu of the other sign": ("layers.cu", "gelu by a sigmoid", "(1 + exp(-u))", "(1 + exp(u))"),
    "a slope forgotten": ("layers.cu", "gelu by a sigmoid", "(gate + x * slope)", "gate"),
    "a length without its root": ("layers.cu", "l2_normalize", "sqrt(block_sum(squares))", "block_sum(squares)"),
    "the part along forgotten": ("layers.cu", "l2_normalize", "own * along", "0 * along"),
    "the wrong token": ("layers.cu", "embedding", "p->rows.get(token, j)", "p->rows.get(0, j)"),
    "the last row of a token alone": ("layers.cu", "embedding", "sum += p->rows", "sum = p->rows"),
    "one channel alone": (
        "patches.cu",
        "patch_embed",
        "channel = feature / (side * side)",
        "channel = feature % 3",
    ),
    "levels taken as they are": ("patches.cu", "patch_embed of bytes", "pixel /= 255", "pixel /= 1"),
    "a deviation forgotten": (
        "patches.cu",
        "patch_embed",
        "grad / p->deviation.get(channel)",
        "grad / p->deviation.get(0)",
    ),
    "patches by columns": ("patches.cu", "patch_embed", "(p->w / side) + x / side", "(p->w / side) + y / side"),
    "the first tile alone": ("palette.cu", "assign", "first < p->k;", "first < TILE;"),
    "the last of equals": ("palette.cu", "assign", "distance < nearest", "distance <= nearest"),
    "distances of 32 bits": ("palette.cu", "assign", "int64 x = r", "int x = r"),
    "a mean rounded down": ("palette.cu", "update", "* total + weight)", "* total)"),
    "empty centres moved": ("palette.cu", "update", "p->centers.integer(j, c);\n    p->out", "0;\n    p->out"),
    "pixels counted once": ("palette.cu", "fit", "count * p->level", "p->level"),
}


def plant(monkeypatch, file, right, wrong):
    """Let ``wrong`` be compiled in place of ``right``."""
    plain = device.source
    assert right in plain(file)
    monkeypatch.setattr(device, "source", lambda name: plain(name).replace(right, wrong))


def judge(case):
    arguments, options = CASES[case]
    operation = case.split()[0]
    kernels = importlib.import_module(dict(kernels_of("cupy"))[operation].partition(":")[0])
    if operation not in PALETTE:
        gate.assert_right(operation, kernels, arguments, options)
        return
    out = getattr(kernels, operation)(*arguments, **options)
    judged = palettes.Exact(operation, arguments, options).judge(out if isinstance(out, tuple) else (out,))
    gate.assert_judged(judged, operation, arguments, options)


@pytest.mark.parametrize("case", CASES)
def test_cases_in_which_bugs_are_planted_are_right(case):
    judge(case)


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug, monkeypatch):
    file, case, right, wrong = BUGS[bug]
    plant(monkeypatch, file, right, wrong)
    with pytest.raises(AssertionError, match="FAIL"):
        judge(case)


BARRIER = "__syncthreads();"
BARRIERS = {
    0: "rms_norm",
    1: "rms_norm",
    4: "assign",
    5: "assign",
}  # by where they are in a source with its foundations


@pytest.mark.parametrize("which", BARRIERS)
def test_a_missing_barrier_is_caught(which, host, monkeypatch):
    """In some order of the threads; in which depends on who should wait for whom."""
    plain = device.source

    def without(file):
        parts = plain(file).split(BARRIER)
        return BARRIER.join(parts[: which + 1]) + BARRIER.join(parts[which + 1 :])

    monkeypatch.setattr(device, "source", without)
    caught = 0
    for order in (FORWARD, REVERSED, *SHUFFLED):
        with on_the_host(host, orders=(order,)):
            try:
                judge(BARRIERS[which])
            except AssertionError:
                caught += 1
    assert caught


def test_a_barrier_that_not_all_come_to_is_caught(monkeypatch):
    plant(monkeypatch, "blocks.cu", BARRIER, f"if (threadIdx.x) {BARRIER}")
    with pytest.raises(AssertionError, match="not all threads"):
        judge("rms_norm")
