"""``saccade tune``: measure tiles of Triton's attention on the GPU at hand, and keep the fastest for it.

Each of ``CANDIDATES`` is compiled, held to the definition in some queries of one head as ``saccade bench`` does, and
timed with a cold L2 (``triton.testing.do_bench``). The fastest of them are then timed in turn with the table's, which
stay unless one is faster by more than ``MARGIN``. What was found is what ``saccade.kernels.triton.tuned`` reads: from
then on the same inputs may give other bits than before, and than on another machine, by the order of sums alone.
"""

import json
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from triton.errors import TritonError
from triton.testing import do_bench

from saccade.bench import cases, judging
from saccade.files import replacing
from saccade.kernels.triton import attention, tuned
from saccade.testing import gate
from saccade.torch.arrays import from_numpy, to_numpy

# (BLOCK_T, BLOCK_S, warps, stages, most registers of a thread); of numbers of 32 bits and more only the smaller ones,
# whose products are unrolled
CANDIDATES = tuple(product((32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3), (None, 128)))
LARGEST = {2: 128, 4: 64, 8: 64}
DTYPES = "float16", "bfloat16", "float32", "float64"
BACKWARD = "queries", "keys"
ROWS, HEADS = 256_000, 16  # queries of all heads together, enough to fill a GPU
FINAL, ROUNDS, MARGIN = 3, 5, 1.02


@dataclass(frozen=True)
class Workload:
    """What tiles are measured on.

    Attributes:
        few: query, key, value and a cotangent of one item, by which results are judged.
        many: of as many items as fill a GPU, by which time is taken.
        part: the part of ``few`` that is judged.
        standard: what it is held to.
    """

    few: tuple
    many: tuple
    part: judging.Part
    standard: Any
    causal: bool

    def is_right(self):
        """Whether output and gradients are, with the tiles that are tried."""
        query, key, value, grad_out = self.few
        out, saved = attention.attention_forward(query, key, value, causal=self.causal)
        found: Any = out, *attention.attention_backward(saved, grad_out)[:3]
        out, *gradients = (to_numpy(x.cpu()) for x in found)
        judged = self.standard.judge(self.part.outputs((out,)), self.part.gradients((*gradients, None)))
        return gate.verdict(judged) == "PASS"

    def call(self, name):
        """The function that is timed for a pass: the forward pass, or both of the backward one."""
        query, key, value, grad_out = self.many
        forward = partial(attention.attention_forward, query, key, value, causal=self.causal)
        if name not in BACKWARD:
            return forward
        return partial(attention.attention_backward, forward()[1], grad_out)


def tune(dtype, tokens, width, *, causal=False, again=False, device="cuda", seconds_of=None, progress=iter):
    """Measure and keep.

    Args:
        dtype: one of ``DTYPES``.
        tokens: queries and keys.
        width: numbers in a row of a head.
        causal: whether a query sees no later keys.
        again: whether to measure what is kept already, too.
        device: a torch device.
        seconds_of: times a function; with ``do_bench`` if None.
        progress: wraps the candidates of each pass.

    Returns:
        A list of (pass, the table's tiles, the fastest, how many times as fast those are: the pass "forward", or the
        whole backward one).

    Raises:
        ValueError: another dtype, rows that are too long for any tile, or no tiles of a pass that are right.
        OSError: there is nowhere to keep what is found.
    """
    if dtype not in DTYPES:
        raise ValueError(f"{dtype=}, expected one of {', '.join(DTYPES)}")
    timed = seconds_of or _median_seconds
    size, where = getattr(torch, dtype).itemsize, torch.device(device)
    row, like = attention.row_bytes(width, width, size), torch.empty((1, 1, 1, width), dtype=getattr(torch, dtype))
    passes = {
        name: attention.tiles_of(name, like, like) for name in (attention.forward_kind(causal, tokens), *BACKWARD)
    }
    kinds = {name: tuned.kind_of(name, causal, size, row, tokens) for name in passes}
    _keep(where, {})  # which finds out whether that is possible
    kept = tuned.kept().get(tuned.gpu(where), {})
    wanted = [name for name, kind in kinds.items() if again or kind not in kept]
    found, load = [], workload(dtype, tokens, width, causal, where) if wanted else None
    for name in wanted:
        kind, own = kinds[name], passes[name]
        seconds = _measured(kind, progress(_contenders(own, size)), load, name, timed)
        if not seconds:
            raise ValueError(f"no tiles of the {name} pass are right and fit {tuned.gpu(where)}")
        tiles, ratio = _decided(kind, own, seconds, load, name, timed)
        _keep(where, {kind: tiles})
        found.append((name, own, tiles, ratio))
    return found


def _median_seconds(call):
    milliseconds: Any = do_bench(call, return_mode="median")
    return 1e-3 * milliseconds


def workload(dtype, tokens, width, causal, device):
    """A ``Workload`` of random numbers."""
    rng, shape = np.random.default_rng(0), (1, HEADS, tokens, width)
    options = {"causal": True} if causal else {}
    few = [from_numpy(rng.standard_normal(shape, np.float32)).to(getattr(torch, dtype)) for _ in range(4)]
    *arguments, cotangent = (to_numpy(x) for x in few)
    case = cases.case("attention", 1, HEADS, tokens, tokens, width, **options)
    part = judging.part_of(case, tuple(arguments), options, (cotangent,), rng)
    few = [from_numpy(np.ascontiguousarray(x)).to(device) for x in (*part.whole_arguments, *part.whole_cotangents)]
    items = max(1, ROWS // (HEADS * tokens))
    many = tuple(x.expand(items, *shape[1:]).contiguous() for x in few)
    return Workload(tuple(few), many, part, judging.standard_of(part), causal)


def _contenders(own, size):
    return [own, *(one for one in CANDIDATES if one != own and max(one[:2]) <= LARGEST[size])]


def _measured(kind, contenders, load, name, timed):
    """{tiles: seconds} of those that are right and fit the GPU."""
    seconds = {}
    for tiles in contenders:
        with tuned.trying(kind, tiles):
            try:
                if load.is_right():
                    seconds[tiles] = timed(load.call(name))
            except (torch.AcceleratorError, torch.OutOfMemoryError):  # which no tiles answer for
                raise
            except (TritonError, RuntimeError) as error:  # more than the GPU has, or the compiler can
                if "CUDA" in str(error):  # after which nothing runs any more
                    raise
    return seconds


def _decided(kind, own, seconds, load, name, timed):
    """(the fastest tiles, how many times as fast as the table's they are), from the best timed in turn."""
    best = sorted(seconds, key=seconds.__getitem__)[:FINAL]
    contenders = list(dict.fromkeys([own, *best])) if own in seconds else best
    rounds = {tiles: [] for tiles in contenders}
    for _ in range(ROUNDS):
        for tiles in contenders:
            with tuned.trying(kind, tiles):
                rounds[tiles].append(timed(load.call(name)))
    median = {tiles: float(np.median(x)) for tiles, x in rounds.items()}
    fastest = min(median, key=median.__getitem__)
    if own not in median:
        return fastest, None
    ratio = median[own] / median[fastest]
    return (fastest, ratio) if ratio > MARGIN else (own, 1.0)


def _keep(device, found):
    """Add {kind: tiles} to what the file holds now."""
    tuned.kept.cache_clear()
    everything = {name: dict(kinds) for name, kinds in tuned.kept().items()}
    everything[tuned.gpu(device)] = everything.get(tuned.gpu(device), {}) | found
    tuned.file().parent.mkdir(parents=True, exist_ok=True)
    with replacing(tuned.file()) as file:
        file.write(json.dumps(everything, indent=1).encode())
    tuned.kept.cache_clear()
