"""Softmax attention on Hopper's tensor cores, 16-bit numbers: when, and how heads are cut (``attention_hopper.cu``)."""

from functools import cache
from typing import NamedTuple

import ml_dtypes
import numpy as np

from saccade.kernels.cupy import device, wgmma

TILE = 64  # queries of a warpgroup, as in attention_hopper.cu
WIDEST, LONGEST = 128, 1 << 22  # numbers of a row, and rows of a head
FEWEST = 24  # keys of a block, which has two parts
SHARED = 227 * 1024  # bytes of memory that a block of threads may share
# By the longest row: the most keys, how many of them a block has (None: all, which are held at once), warpgroups of a
# block of threads, and how many of these run at once. The first that fits; bench/results/h200.md says what was tried.
CUTS = {
    64: ((128, None, 1, 5), (208, None, 1, 3), (264, None, 1, 2), (1 << 30, 128, 2, 2)),
    80: ((128, None, 1, 4), (264, None, 1, 2), (1 << 30, 96, 2, 2)),
    128: ((128, None, 1, 3), (264, None, 1, 1), (1 << 30, 128, 3, 1)),
}


class Cut(NamedTuple):
    """How a kernel is compiled and launched for heads of a shape."""

    flags: tuple
    before: str
    blocks: int  # of keys
    rounds: int  # tiles of queries that a warpgroup goes through
    sets: int  # blocks of threads of a head
    threads: int  # of a block
    shared: int  # bytes of memory that those share


def takes(saved):
    """Whether these kernels compute what ``attention_backward`` is to be given."""
    query, key, value, bias, mask, _, _, _, _, scale = saved
    d, e = query.shape[3], value.shape[3]
    return (
        query.dtype.itemsize == 2 and device.has_warpgroups() and bias is None and mask is None and scale > 0
        and d % 8 == e % 8 == 0 and 0 < d <= WIDEST and 0 < e <= WIDEST
        and query.shape[2] < LONGEST and 0 < key.shape[2] < LONGEST
        and all(map(_lies_in_sixteens, (query, key, value)))
    )  # fmt: skip


def _lies_in_sixteens(x):
    """Whether every row begins at a multiple of 16 bytes and is whole, and 32 bits hold where it is in its head."""
    along = x.shape[3] == 1 or x.strides[3] == x.dtype.itemsize
    outer = [stride for stride, n in zip(x.strides[:3], x.shape[:3], strict=True) if n > 1]
    near = x.shape[2] * (abs(x.strides[2]) + x.shape[3]) < 1 << 31
    return along and near and all(stride % 16 == 0 for stride in outer) and device.address(x) % 16 == 0


def attend(saved):
    """Fill the output and the log-sum-exps of ``saved``, whose lengths of keys are int64."""
    query, key, value, _, _, key_lengths, out, lse, causal, scale = saved
    (b, h, t, d), s, e = query.shape, key.shape[2], value.shape[3]
    eights, masked = -(-s // 8) * 8, bool(causal) or key_lengths is not None or s <= FEWEST - 8
    one = cut(query.dtype == ml_dtypes.bfloat16, d, e, eights, -(-t // TILE), b * h, masked, device.multiprocessors())
    parameters = [b, h, t, s, int(causal), one.blocks, one.rounds]
    for x in (query, key, value, out, lse):
        parameters += device.describe(x)
    parameters.append(0 if key_lengths is None else device.address(key_lengths))
    device.launch(
        "attention_hopper.cu", "attention_forward_hopper", one.flags, one.sets * b * h * one.threads, parameters, scale,
        block=one.threads, before=one.before, shared=one.shared,
    )  # fmt: skip


@cache
def cut(is_bfloat16, d, e, eights, tiles, heads, masked, multiprocessors):
    """The ``Cut`` for rows of d and e numbers, keys rounded up to eights, tiles of queries of a head, and all heads."""
    width = min(width for width in CUTS if width >= max(d, e))
    ways = (one[1:] for one in CUTS[width] if eights <= one[0])
    cuts = (_cut(is_bfloat16, d, e, eights, tiles, heads, masked, multiprocessors, *way) for way in ways)
    return next(one for one in cuts if one.shared <= SHARED)


def _cut(is_bfloat16, d, e, eights, tiles, heads, masked, multiprocessors, keys, groups, at_once):
    blocks = max(1, (eights - FEWEST) // keys + 1) if keys else 1
    last = max(FEWEST, eights - (blocks - 1) * (keys or 0))
    rounds = 1 if keys else -(-tiles // groups)
    if heads and not keys:  # fewer where heads alone are too few for the GPU
        rounds = -(-rounds // min(rounds, max(1, multiprocessors * at_once // heads)))
    sizes = {
        "D": d, "E": e, "KEYS": keys if blocks > 1 else last, "LAST": last, "RESIDENT": int(not keys),
        "BUFFERS": min(rounds, 2), "MASKED": int(masked), "PER_MULTIPROCESSOR": at_once,
        "SPAN_D": _span(-(-d // 16) * 16), "SPAN_E": _span(e), "THREADS": groups * 128,
        "KIND": "BFLOAT16" if is_bfloat16 else "FLOAT16",
    }  # fmt: skip
    parts = [_half(n) for n in (sizes["KEYS"], last)]
    parts += [sizes["KEYS"] - parts[0], last - parts[1]]
    before = wgmma.products("bf16" if is_bfloat16 else "f16", parts, (e,))
    sets = -(-tiles // (groups * rounds))
    return Cut(device.options(np.float32, **sizes), before, blocks, rounds, sets, groups * 128, _shared(sizes, groups))


def _half(keys):
    """How many keys of a block are its first part, ``half`` of attention_hopper.cu."""
    return (keys // 2 + 15) // 16 * 16


def _span(width):
    """How many numbers wide the columns of a matrix in shared memory are."""
    return next(span for span in (64, 32, 16) if width % span == 0 or span == 16)


def _shared(sizes, groups):
    """BYTES of attention_hopper.cu."""
    last, width = -(-sizes["LAST"] // 16) * 16, -(-sizes["D"] // 16) * 16
    rows = last if sizes["RESIDENT"] else 2 * max(sizes["KEYS"], last)
    out, value = (-(-sizes["E"] // span) * span for span in (sizes["SPAN_D"], sizes["SPAN_E"]))
    return 2 * (sizes["BUFFERS"] * groups * TILE * max(width, out) + rows * (width + value))
