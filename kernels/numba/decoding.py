"""Sequences a token at a time through all blocks of a transformer, whose keys and values so far are kept.

A block is ``saccade.models.transformer.block`` with a cache, and its numbers have the bits that its operations give
when they are called one by one on arrays. Here one call is for all blocks: a call from Python takes longer than the
arithmetic of a few rows.

Threads go from stage to stage together. Norms and GELUs of what a stage multiplies each thread computes for itself,
which is sooner done than waited for.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import math

import numpy as np

from saccade.kernels.numba.attention_row import attend_row, row_scratch
from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.few_rows import GRAIN, MOST, products
from saccade.kernels.numba.gelu_rows import gelu_row
from saccade.kernels.numba.halves import in_pairs
from saccade.kernels.numba.layers import KINDS
from saccade.kernels.numba.memory import core_dtype, corner, describe, load_row, store_row
from saccade.kernels.numba.norm_rows import normalise
from saccade.kernels.numba.team import STAGE, any_left, close, in_step, offer
from saccade.kernels.numba.threads import parallel_for
from saccade.kernels.numba.vectors import lanes, widest_vectors

PARAMETERS = (
    "norm1.scale", "norm1.bias", "attention.qkv.weight", "attention.qkv.bias", "attention.out.weight",
    "attention.out.bias", "norm2.scale", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight",
    "mlp.fc2.bias",
)  # fmt: skip
KEYS, VALUES = len(PARAMETERS), len(PARAMETERS) + 1  # of a block's addresses, those of its rooms
STAGES = 5  # of a block
_NOTHING = (0, 0, 0, 0, 0, 0)


def takes(blocks, keys, values):
    """Whether there is a kernel for blocks of such parameters, with rooms of such shapes, on this processor."""
    b, heads, _, d = keys[0].shape
    dtype, shapes = keys[0].dtype, _shapes(heads * d, len(blocks[0]["mlp.fc1.weight"]), keys[0].shape)
    whole = dtype in (np.float32, np.float64) or in_pairs(keys[0])

    def fits(name, array):
        if array is None:
            return name.endswith("bias")
        return array.shape == shapes[name] and array.dtype == dtype and array.flags.c_contiguous

    held = _held(blocks, keys, values)
    return whole and d > 0 and all(fits(name, one) for arrays in held for name, one in zip(shapes, arrays, strict=True))


def _held(blocks, keys, values):
    return [
        (*(block.get(name) for name in PARAMETERS), *rooms) for block, *rooms in zip(blocks, keys, values, strict=True)
    ]


class Decoder:
    """Blocks of a transformer, and room for the keys and values of the tokens that went through them.

    Args:
        blocks: for each its parameters, NumPy arrays by the names of ``saccade.models.transformer``, dense, of one
            dtype; biases may be absent.
        keys, values: for each block an array (b, heads, length, width / heads), dense, of the same dtype.
        rms: whether norms are RMS norms rather than layer norms.
        eps, gelu: of the norms, and the kind of ``saccade.gelu``.

    Raises:
        ValueError: it does not ``take`` them.
    """

    def __init__(self, blocks, keys, values, *, rms, eps, gelu):
        if not takes(blocks, keys, values):
            raise ValueError("Decoder: parameters and rooms, expected dense arrays of one dtype whose shapes fit")
        b, heads, self.length, d = keys[0].shape
        self.sizes, self.dtype = (b, heads * d, len(blocks[0]["mlp.fc1.weight"]), heads), keys[0].dtype
        self.held = _held(blocks, keys, values)
        self.options = not rms, core_dtype(self.dtype).type(eps), KINDS[gelu]
        self.addresses = np.array(
            [[0 if one is None else describe(one)[0] for one in arrays] for arrays in self.held], np.int64
        )

    def step(self, x, filled):
        """The next token of each sequence through all blocks, (b, width) -> (b, width), after ``filled`` tokens."""
        b, width, hidden, heads = self.sizes
        if x.shape != (b, width) or x.dtype != self.dtype or not 0 <= filled < self.length:
            raise ValueError(
                f"Decoder.step: {x.dtype} {x.shape=}, {filled=}, expected {self.dtype} {(b, width)} and fewer than "
                f"{self.length} tokens before"
            )
        out = np.array(x, order="C")
        total, qkv, before = (np.empty((b, n), self.dtype) for n in (width, 3 * width, hidden))
        mixed = np.zeros((-(-b // MOST) * MOST, -(-width // _PADDED) * _PADDED), self.dtype)
        counters = np.zeros((len(self.addresses) * STAGES, STAGE), np.int64)
        sizes, arrays = (*self.sizes, self.length, filled), [describe(one) for one in (out, total, qkv, mixed, before)]
        parallel_for(_decode, 2, 1, in_pairs(out), self.addresses, sizes, *self.options, counters.ctypes.data, *arrays)
        return out


_PADDED = 32  # numbers, of the longest vector


def _shapes(e, m, room):
    shapes = {
        "attention.qkv.weight": (3 * e, e), "attention.qkv.bias": (3 * e,), "attention.out.weight": (e, e),
        "mlp.fc1.weight": (m, e), "mlp.fc1.bias": (m,), "mlp.fc2.weight": (e, m),
    }  # fmt: skip
    return {name: shapes.get(name, (e,)) for name in PARAMETERS} | {"keys": room, "values": room}


@jit
def _decode(work, pairs, blocks, sizes, centre, eps, gelu, counters, x, total, qkv, mixed, before):
    """x = what the blocks make of it. Arrays are described, (b, …); ``mixed`` has zeros around it. A row of ``blocks``
    has the addresses of a block's ``PARAMETERS``, 0 for those that are absent, and of its rooms."""
    widest_vectors()
    b, e, m, heads, _, filled = sizes
    size, dtype = x[3], np.asarray(eps).dtype
    normal, hidden = _rows(b, e, eps), _rows(b, m, eps)
    scratch = np.empty((4, max(e, m)), dtype)
    square = lanes(eps)
    squares = np.empty((MOST, square), dtype), np.empty((square, square), dtype), np.empty(square, dtype)
    attending = row_scratch(scratch, filled + 1, e // heads, e // heads)
    team, _, _, offers = offer(work)
    for i in range(blocks.shape[0]):
        # addresses of arrays that are used again: numba frees an array after its last use
        inside, within = _described(normal, x), _described(hidden, x)
        block, step = blocks[i], (team, counters, STAGES * i)
        if any_left(team, counters, STAGES * i, _runs(3 * e, e, size)):
            _norm(inside, x, block[0], block[1], (b, e), centre, eps, scratch)
        _project(step, pairs, (b, e, 3 * e), inside, block[2], block[3], _NOTHING, qkv, squares)
        step = team, counters, STAGES * i + 1
        keys, values = _room(block[KEYS], x, sizes), _room(block[VALUES], x, sizes)
        _attend(step, sizes, qkv, keys, values, mixed, scratch, attending)
        step = team, counters, STAGES * i + 2
        _project(step, pairs, (b, e, e), mixed, block[4], block[5], x, total, squares)
        step = team, counters, STAGES * i + 3
        if any_left(team, counters, STAGES * i + 3, _runs(m, e, size)):
            _norm(inside, total, block[6], block[7], (b, e), centre, eps, scratch)
        _project(step, pairs, (b, e, m), inside, block[8], block[9], _NOTHING, before, squares)
        step = team, counters, STAGES * i + 4
        if any_left(team, counters, STAGES * i + 4, _runs(e, m, size)):
            _gelu(within, before, (b, m), gelu, scratch)
        _project(step, pairs, (b, m, e), within, block[10], block[11], total, x, squares)
    if offers:
        close(team)


@jit
def _rows(b, n, like):
    """Zeros for rows that are multiplied where they lie: whole vectors, ``MOST`` rows at a time."""
    rows = -(-b // MOST) * MOST
    return np.zeros((rows, -(-n // _PADDED) * _PADDED), np.asarray(like).dtype)


@jit
def _described(rows, like):
    """Such rows, as an array of the kind of ``like``."""
    return rows.ctypes.data, like[1], rows.shape[1] * rows.itemsize, like[3]


@jit
def _room(address, like, sizes):
    _, e, _, heads, length, _ = sizes
    row = e // heads * like[3]
    return address, like[1], heads * length * row, length * row, row, like[3]


@jit
def _runs(k, depth, size):
    """How many runs of items a product is for so many columns of results."""
    return max(1, k * depth * size // GRAIN)


@jit
def _norm(out, x, scale, bias, sizes, centre, eps, scratch):
    n, e = sizes
    factor, shift, row, normal = scratch[0, :e], scratch[1, :e], scratch[2, :e], scratch[3, :e]
    load_row(factor, scale, x[3], x[1])
    shift[:] = 0
    if bias != 0:
        load_row(shift, bias, x[3], x[1])
    for i in range(n):
        load_row(row, x[0] + i * x[2], x[3], x[1])
        normalise(row, factor, shift, eps, centre, normal)
        store_row(out[0] + i * out[2], out[3], out[1], normal)


@jit
def _gelu(out, x, sizes, kind, scratch):
    n, m = sizes
    row, y = scratch[0, :m], scratch[1, :m]
    for i in range(n):
        load_row(row, x[0] + i * x[2], x[3], x[1])
        gelu_row(row, kind, y)
        store_row(out[0] + i * out[2], out[3], out[1], y)


@jit
def _project(step, pairs, sizes, x, weight, bias, residual, out, squares):
    """out = x weightᵀ + bias, to which a residual's numbers are added when it is rounded."""
    widest_vectors()
    (team, counters, stage), (n, depth, k), (total, tail, other) = step, sizes, squares
    group, size, kind = other.shape[0], out[3], out[1]
    matrix = (weight, kind, depth * size, size)
    for item in in_step(team, counters, stage, -(-k // group), _runs(k, depth, size)):
        first = item * group
        columns, place = min(group, k - first), weight + first * matrix[2]
        for start in range(0, n, MOST):
            rows = min(MOST, n - start)
            products(pairs, rows, x[0] + start * x[2], x[2], place, matrix, columns, depth, total, tail)
            for i in range(rows):
                numbers, added = total[i, :columns], other[:columns]
                if bias != 0:
                    load_row(added, bias + first * size, size, kind)
                    _add(numbers, added)
                target = out[0] + (start + i) * out[2] + first * size
                store_row(target, size, kind, numbers)
                if residual[0] != 0:
                    load_row(numbers, target, size, kind)
                    load_row(added, residual[0] + (start + i) * residual[2] + first * size, size, kind)
                    _add(numbers, added)
                    store_row(target, size, kind, numbers)


@jit
def _add(row, other):
    for j in range(row.shape[0]):
        row[j] += other[j]


@jit
def _attend(step, sizes, qkv, keys, values, out, scratch, attending):
    """The new keys and values go to their rooms, and each head's query to all that are there."""
    (team, counters, stage), (b, e, _, heads, _, filled) = step, sizes
    d, size, kind = e // heads, qkv[3], qkv[1]
    queries, outputs = (qkv[0], kind, qkv[2], d * size, 0, size), (out[0], kind, out[2], d * size, 0, size)
    moved = scratch[0, :d]
    scale = moved.dtype.type(1 / math.sqrt(d))
    for item in in_step(team, counters, stage, b * heads, b * heads):
        i_b, i_h = item // heads, item % heads
        new = corner(queries, i_b, i_h, 0)
        load_row(moved, new + e * size, size, kind)
        store_row(corner(keys, i_b, i_h, filled), size, kind, moved)
        load_row(moved, new + 2 * e * size, size, kind)
        store_row(corner(values, i_b, i_h, filled), size, kind, moved)
        at = i_b, i_h, 0
        attend_row(at, queries, keys, values, _NOTHING, _NOTHING, filled + 1, scale, attending, outputs)
