"""The tests of the CuPy backend can fail: bugs planted in each kernel, and barriers left out, are caught on the CPU."""

import importlib

import numpy as np
import pytest
from cuda_cases import CASES
from cuda_host import FORWARD, REVERSED, SHUFFLED, folder_of, on_the_host
from support import kernels_of

from saccade.kernels.cupy import device
from saccade.testing import gate, palettes
from saccade.testing.subject import PALETTE


@pytest.fixture(scope="module", autouse=True)
def host(tmp_path_factory):
    folder = folder_of(tmp_path_factory)
    with on_the_host(folder):
        yield folder


SIXTEEN = "attention of 16 bits"
AT_ONCE, GROUPS, BY_TURNS = (
    f"attention on Hopper, {how}" for how in ("keys at once", "three groups", "blocks by turns")
)
# on Hopper: (case, what is right, what is written instead)
HOPPER = {
    "keys hidden too late": (AT_ONCE, "i % 2 >= rows.end", "i % 2 > rows.end"),
    "keys of causal queries": (BY_TURNS, "own = i_t + 1 +", "own = i_t + 2 +"),
    "lengths forgotten": (BY_TURNS, "length < s ? length : s", "s"),
    "no swizzle": (AT_ONCE, "(chunk % CHUNKS ^ row * CHUNKS / 8 % CHUNKS)", "(chunk % CHUNKS)"),
    "columns of another height": (GROUPS, "(chunk / CHUNKS * HEIGHT + row)", "(chunk / CHUNKS * (HEIGHT - 8) + row)"),
    "a column's next eight rows": (AT_ONCE, "(address)SPAN << 32", "(address)(SPAN / 2) << 32"),
    "a step along a row": (AT_ONCE, "k % STEPS * 2, k > 0", "0, k > 0"),
    "the first part's keys twice": (AT_ONCE, "keys + FIRST * SPAN_D / 8", "keys"),
    "the first part's values twice": (AT_ONCE, "values + FIRST * SPAN_E / 8", "values"),
    "the next values' step": (AT_ONCE, "values + k * (SPAN_E * 2)", "values + k * SPAN_E"),
    "sums that are not rescaled": (BY_TURNS, "half * 2 + i] *= rescale", "half * 2 + i] *= 1"),
    "a total that is not rescaled": (BY_TURNS, "rows.total[half] *= rescale", "rows.total[half] *= 1"),
    "a maximum of one lane": (
        AT_ONCE,
        "over_quad(fmaxf(highest[half * 2], highest[half * 2 + 1]), true)",
        "highest[0]",
    ),
    "half of a total": (AT_ONCE, "+= part[half * 2] + part[half * 2 + 1]", "+= part[half * 2]"),
    "another quarter's queries": (AT_ONCE, "(row + turn * 16) % TILE", "row"),
    "the first stage alone": (BY_TURNS, "block % 2 * MOST, least", "0, least"),
    "a block too few": (BY_TURNS, "first_s >= furthest", "first_s + KEYS >= furthest"),
    "the first tile's queries": (AT_ONCE, "(round % BUFFERS * GROUPS + group) * QUERY_BYTES", "group * QUERY_BYTES"),
    "one group's queries": (
        GROUPS,
        "(round % BUFFERS * GROUPS + group) * QUERY_BYTES",
        "round % BUFFERS * QUERY_BYTES",
    ),
    "another row's maximum": (AT_ONCE, "second ? rows.top[1]", "second ? rows.top[0]"),
    "sums that are not divided": (AT_ONCE, "1 : reciprocal(rows.total[half])", "1 : 1"),
}
# what: (file, case, what is right, what is written instead)
BUGS = {
    **{f"{bug}, on Hopper": ("attention_hopper.cu", *what) for bug, what in HOPPER.items()},
    "causal off by one": ("attention.cu", "attention", "i_t + 1 + s - t", "i_t + 2 + s - t"),
    "no rescaling of what was summed before": ("attention.cu", "attention", "sum[i] * rescale", "sum[i]"),
    "a key gradient without the scale": ("attention.cu", "attention", "scale * key_sum[i]", "key_sum[i]"),
    "lengths ignored": ("attention.cu", "attention", "return lengths ?", "return 0 ?"),
    "a mask ignored": ("attention.cu", "attention", "return mask.base && ", "return 0 && "),
    "the row sums forgotten": ("attention.cu", "attention", "(products - row_sums", "(products - 0 * row_sums"),
    "causal off by one, in tiles": ("attention_tiles.cu", SIXTEEN, "i_t + 1 + s - t", "i_t + 2 + s - t"),
    "a wrong lane of keys": ("attention_tiles.cu", SIXTEEN, "&b[n * 8 + lane / 4]", "&b[n * 8 + lane % 8]"),
    "a wrong register of queries": (
        "attention_tiles.cu",
        SIXTEEN,
        "lane / 4 + i % 2 * 8, k",
        "lane / 4 + i / 2 * 8, k",
    ),
    "weights in another order": ("attention_tiles.cu", SIXTEEN, "*left = tile[2 * k]", "*left = tile[k]"),
    "a sum that is not rescaled": ("attention_tiles.cu", SIXTEEN, "half * 2 + i] *= rescale", "half * 2 + i] *= 1"),
    "half of a row's lanes": ("ptx.cu", SIXTEEN, "bit <= 2", "bit <= 1"),
    "queries beyond their end": ("attention_tiles.cu", SIXTEEN, "i_s < end[half] &&", ""),
    "tiles without the row sums": ("attention_tiles.cu", SIXTEEN, "(*grad - row_sum)", "(*grad - 0 * row_sum)"),
    "another row's sums": ("attention_tiles.cu", SIXTEEN, "row_sum[i / 2],\n", "row_sum[0],\n"),
    "a tile of queries without the scale": (
        "attention_tiles.cu",
        SIXTEEN,
        "by[2] = {scale, scale};",
        "by[2] = {1, 1};",
    ),
    "keys that are not those": (
        "attention_tiles.cu",
        SIXTEEN,
        "(across, p.key, i_b, i_h, first_s,",
        "(across, p.key, i_b, i_h, 0,",
    ),
    "queries left out": (
        "attention_tiles.cu",
        SIXTEEN,
        "seeing / OTHERS * OTHERS : 0",
        "seeing / OTHERS * OTHERS + OTHERS : OTHERS",
    ),
    "values' gradients of dS": (
        "attention_tiles.cu",
        SIXTEEN,
        "round_tile<OTHERS>(rounded, scores)",
        "round_tile<OTHERS>(rounded, grads)",
    ),
    "another key's end": ("attention_tiles.cu", SIXTEEN, "row[i / 2] < p.end(i_b, i_t)", "row[0] < p.end(i_b, i_t)"),
    "a mask ignored by tiles": ("attention_tiles.cu", SIXTEEN, "seen = seen && !p.hidden(i_b, i_h, i_t, i_s);", ""),
    "sequences that see each other": ("attention.cu", "varlen_attention", "begins.base ? begins.integer(i)", "0 ? 0"),
    "queries of later sequences": ("attention.cu", "varlen_attention", "p.ends.base ? p.ends.integer(i_s)", "0 ? 0"),
    "the last group left out": ("blocks.cu", "layer_norm", "/ GROUP; i++) sum", "/ GROUP - 1; i++) sum"),
    "columns left out": ("layers.cu", "rms_norm", "j += THREADS)", "j += 2 * THREADS)"),
    "the mean forgotten": ("layers.cu", "layer_norm", "if (p.mean.base) {", "if (0) {"),
    "a residual forgotten": ("layers.cu", "layer_norm", " + p.residual.get(row, j)", ""),
    "a gradient without its level": ("layers.cu", "layer_norm", "p.scale.get(j) - level", "p.scale.get(j)"),
    "the last row of a chunk alone": ("layers.cu", "layer_norm", "scale_sum += grad *", "scale_sum = grad *"),
    "chunks of a row too few": ("layers.cu", "linear", "int64 row = chunk * CHUNK;", "int64 row = chunk * CHUNK + 1;"),
    "the first chunk alone": ("layers.cu", "linear", "int64 row = 0; row < p.n;", "int64 row = 0; row < 1;"),
    "a bias forgotten": ("layers.cu", "linear", "if (p.bias.base) value", "if (0) value"),
    "another density": ("layers.cu", "gelu", "exp(-x * x / 2)", "exp(-x * x)"),
    "a gelu of the other sign": ("layers.cu", "gelu by a sigmoid", "*gate = sigmoid(u)", "*gate = sigmoid(-u)"),
    "a slope forgotten": ("layers.cu", "gelu by a sigmoid", "(gate + x * slope)", "gate"),
    "a length without its root": ("layers.cu", "l2_normalize", "sqrt(block_sum(squares))", "block_sum(squares)"),
    "the part along forgotten": ("layers.cu", "l2_normalize", "own * along", "0 * along"),
    "the wrong token": ("layers.cu", "embedding", "p.rows.get(token, j)", "p.rows.get(0, j)"),
    "the last row of a token alone": ("layers.cu", "embedding", "sum += p.rows", "sum = p.rows"),
    "padding forgotten": ("convolution.cu", "conv2d", "feature % p.q - p.padding", "feature % p.q"),
    "windows that overlap": ("convolution.cu", "conv2d", "sum += p.windows", "sum = p.windows"),
    "a stride forgotten": ("convolution.cu", "conv2d", "|| top % p.stride", ""),
    "a deviation without its root": (
        "convolution.cu",
        "batch_norm",
        "sqrt(variance.get(j) + (CORE)eps)",
        "variance.get(j)",
    ),
    "a gradient without the scale": ("convolution.cu", "batch_norm", "(p.scale.get(j) * p.inverse", "(p.inverse"),
    "a chunk's last row alone": ("convolution.cu", "batch_norm", "bias_sum += grad", "bias_sum = grad"),
    "a sum instead of a mean": ("convolution.cu", "average_pool", "sum / (CORE)(p.size * p.size)", "sum"),
    "a share of edges": ("convolution.cu", "average_pool", "bool inside = row", "bool inside = 1 || row"),
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
        "grad / p.deviation.get(channel)",
        "grad / p.deviation.get(0)",
    ),
    "patches by columns": ("patches.cu", "patch_embed", "(p.w / side) + x / side", "(p.w / side) + y / side"),
    "a weight's divisor forgotten": ("losses.cu", "softmax_cross_entropy of shares", "- top) / sum", "- top)"),
    "ignored rows counted": ("losses.cu", "softmax_cross_entropy", "labels.integer(row) == ignore_index", "0"),
    "shares that add up to 1": ("losses.cu", "softmax_cross_entropy of shares", "weight * whole", "weight"),
    "no smoothing": ("losses.cu", "softmax_cross_entropy of shares", "+ smoothing / (CORE)k", ""),
    "one side of a loss": ("losses.cu", "sigmoid_cross_entropy", "+ (1 - target) * softplus(logit)", ""),
    "targets forgotten": ("losses.cu", "sigmoid_cross_entropy", "- p.targets.get(row, j)) *", ") *"),
    "the wrong label of a row": ("pairs.cu", "linear_cross_entropy", "labels.integer(first + i)", "labels.integer(i)"),
    "a loss without smoothing": ("pairs.cu", "linear_cross_entropy", "loss -= (CORE)smoothing", "loss -= 0"),
    "an own gradient without it": ("pairs.cu", "linear_cross_entropy", "row)) + (CORE)smoothing;", "row));"),
    "ignored rows' gradients": ("pairs.cu", "linear_cross_entropy", "p.ignored(i) ? (CORE)0 : grad", "grad"),
    "pairs of another panel": ("pairs.cu", "clip_loss", ": first + i;", ": i;"),
    "a column's own twice": ("pairs.cu", "clip_loss", "if (p.first + i == j && is_finite(product)) continue;", ""),
    "panels in units of their own": (
        "pairs.cu",
        "clip_loss",
        "others *= exp(fabs(scale)",
        "others *= exp(0 * fabs(scale)",
    ),
    "no sign of the scale": ("pairs.cu", "clip_loss of opposites", "scale < 0 ? -product : product", "product"),
    "the pair's own softmax": ("pairs.cu", "clip_loss", "j == row ? pair : along + across", "along + across"),
    "a scale's share": ("pairs.cu", "clip_loss", "across * (product - p.owns.get(j))", "0"),
    "the largest logit forgotten": ("pairs.cu", "clip_loss", "scale) - kept.get(TOP, i)", "scale)"),
    "an own product": ("pairs.cu", "clip_loss", "p.b.get(blockIdx.x, j)", "p.b.get(0, j)"),
    "all are pairs": ("pairs.cu", "siglip_loss", "j == row ? -logit : logit", "-logit"),
    "a gradient of the other sign": ("pairs.cu", "siglip_loss", "? -sigmoid(-logit)", "? sigmoid(-logit)"),
    "a bias's share": ("pairs.cu", "siglip_loss", "bias_sum += grad", "bias_sum = grad"),
    "a scale's share of SigLIP": ("pairs.cu", "siglip_loss", "scale_sum += grad * product", "scale_sum += grad"),
    "the first tile alone": ("palette.cu", "assign", "first < p.k;", "first < TILE;"),
    "the last of equals": ("palette.cu", "assign", "distance < nearest", "distance <= nearest"),
    "distances of 32 bits": ("palette.cu", "assign", "int64 x = r", "int x = r"),
    "a mean rounded down": ("palette.cu", "update", "* total + weight)", "* total)"),
    "empty centres moved": ("palette.cu", "update", "p.centers.integer(j, c);\n    p.out", "0;\n    p.out"),
    "pixels counted once": ("palette.cu", "fit", "count * p.level", "p.level"),
}


def plant(monkeypatch, file, right, wrong):
    """Let ``wrong`` be compiled in place of ``right``."""
    plain = device.source
    assert right in plain(file)
    monkeypatch.setattr(device, "source", lambda *what: plain(*what).replace(right, wrong))


def judge(case):
    arguments, options = CASES[case]
    operation = case.split()[0]
    kernels = importlib.import_module(dict(kernels_of("cupy"))[operation].partition(":")[0])
    if operation not in PALETTE:
        with np.errstate(all="ignore"):
            gate.assert_right(operation, kernels, arguments, options)
        return
    out = getattr(kernels, operation)(*arguments, **options)
    judged = palettes.Exact(operation, arguments, options).judge(out if isinstance(out, tuple) else (out,))
    gate.assert_judged(judged, operation, arguments, options)


def compute(case):
    """The outputs of a case, and its gradients for cotangents of 1."""
    arguments, options = CASES[case]
    operation = case.split()[0]
    kernels = importlib.import_module(dict(kernels_of("cupy"))[operation].partition(":")[0])
    if operation in PALETTE:
        return getattr(kernels, operation)(*arguments, **options), ()
    out, saved = getattr(kernels, f"{operation}_forward")(*arguments, **options)
    ones = [np.ones_like(x) for x in (out if isinstance(out, tuple) else (out,))]
    return out, getattr(kernels, f"{operation}_backward")(saved, *ones)


@pytest.mark.parametrize("case", CASES)
def test_cases_in_which_bugs_are_planted_are_right(case):
    judge(case)


def bits_in_every_order(case, host):
    found = set()
    for order in (FORWARD, REVERSED, *SHUFFLED):
        with on_the_host(host, orders=(order,)):
            results = compute(case)
        flat = [x for part in results for x in (part if isinstance(part, tuple) else (part,))]
        found.add(b"".join(x.tobytes() for x in flat if x is not None))
    return found


@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_the_order_of_threads(case, host):
    assert len(bits_in_every_order(case, host)) == 1


def test_threads_that_write_to_one_place_are_caught(host, monkeypatch):
    plant(monkeypatch, "layers.cu", "p.out.set(j, sum);", "p.out.set(0, sum);")
    assert len(bits_in_every_order("layer_norm", host)) > 1


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug, monkeypatch):
    file, case, right, wrong = BUGS[bug]
    plant(monkeypatch, file, right, wrong)
    with pytest.raises(AssertionError, match="FAIL"):
        judge(case)


BARRIER = "__syncthreads();"
BARRIERS = [  # which of a source, its foundations before it, and a case that shows it
    (0, "rms_norm"), (1, "rms_norm"), (2, "softmax_cross_entropy"), (3, "softmax_cross_entropy"), (4, "assign"),
    (5, "assign"), *((i, SIXTEEN) for i in range(4, 10)), (4, AT_ONCE), (5, BY_TURNS),
]  # fmt: skip


@pytest.mark.parametrize(("which", "case"), BARRIERS)
def test_a_missing_barrier_is_caught(which, case, host, monkeypatch):
    """In some order of the threads; in which depends on who should wait for whom."""
    plain = device.source

    def without(*what):
        parts = plain(*what).split(BARRIER)
        return BARRIER.join(parts[: which + 1]) + BARRIER.join(parts[which + 1 :])

    monkeypatch.setattr(device, "source", without)
    assert caught_in_some_order(case, host)


def caught_in_some_order(case, host):
    caught = 0
    for order in (FORWARD, REVERSED, *SHUFFLED):
        with on_the_host(host, orders=(order,)):
            try:
                judge(case)
            except AssertionError:
                caught += 1
    return caught


WAITS = {
    "copied<1>();\n        __syncthreads();": AT_ONCE, "else copied<0>();": AT_ONCE, "products_done<1>();": BY_TURNS,
    "products_done<0>();": AT_ONCE,
}  # fmt: skip


@pytest.mark.parametrize("wait", WAITS)
def test_what_is_not_waited_for_is_caught(wait, host, monkeypatch):
    """Copies and products that are still on their way: when they are carried out is another in other orders."""
    plant(monkeypatch, "attention_hopper.cu", wait, "__syncthreads();" if "__syncthreads" in wait else ";")
    assert caught_in_some_order(WAITS[wait], host)


def test_a_barrier_that_not_all_come_to_is_caught(monkeypatch):
    plant(monkeypatch, "blocks.cu", BARRIER, f"if (threadIdx.x) {BARRIER}")
    with pytest.raises(AssertionError, match="not all threads"):
        judge("rms_norm")
