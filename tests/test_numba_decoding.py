"""A token through all blocks in one call has the bits of the blocks' operations, called one by one."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, strategies as st

import saccade
from saccade.kernels.numba import decoding, matrices
from saccade.kernels.numba.threads import get_threads, set_threads
from saccade.models import initialization
from saccade.models.transformer import TransformerConfig, block

DTYPES = [np.float32, np.float64] + [ml_dtypes.bfloat16] * decoding.in_pairs(np.empty(0, ml_dtypes.bfloat16))


@pytest.fixture(autouse=True)
def own_products(monkeypatch):
    monkeypatch.setattr(matrices, "OWN", True)


class Cache:
    """Keys and values so far, in the simplest way."""

    filled = None

    def extend(self, *new):
        before = [x[:, :, :0] for x in new] if self.filled is None else self.filled
        self.filled = [np.concatenate(pair, 2) for pair in zip(before, new, strict=True)]
        return self.filled


def made(config, dtype, b, length, seed=0):
    """(each block's parameters, rooms full of NaN, tokens) of NumPy arrays."""
    normal = initialization.normal(0.3)
    layout = initialization.block_layout(config, qkv=normal, out=normal, fc1=normal, fc2=normal)
    rng = np.random.default_rng(seed)
    blocks = [
        {name: (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(dtype) for name, (shape, _) in layout.items()}
        for _ in range(config.depth)
    ]
    room = (b, config.heads, length, config.width // config.heads)
    rooms = [[np.full(room, np.nan, dtype) for _ in blocks] for _ in ("keys", "values")]
    return blocks, rooms, rng.standard_normal((length, b, config.width)).astype(dtype)


def decoder(config, blocks, rooms):
    return decoding.Decoder(blocks, *rooms, rms=config.norm == "rms", eps=config.eps, gelu=config.gelu)


def by_operations(config, blocks, tokens):
    """The outputs for each token, by ``saccade.models.transformer.block`` on arrays."""
    caches, found = [Cache() for _ in blocks], []
    for x in tokens:
        x = x[:, None]
        for parameters, cache in zip(blocks, caches, strict=True):
            x = block(parameters, x, saccade, config, cache=cache)
        found.append(x[:, 0])
    return found


CONFIGS = st.builds(
    lambda heads, d, **rest: TransformerConfig(width=heads * d, heads=heads, causal=True, **rest),
    heads=st.integers(1, 3),
    d=st.sampled_from([1, 5, 8, 16, 40]),
    depth=st.integers(1, 2),
    hidden=st.sampled_from([1, 7, 64, 130]),
    norm=st.sampled_from(["layer", "rms"]),
    gelu=st.sampled_from(["erf", "tanh", "sigmoid"]),
    bias=st.booleans(),
)
LONG = TransformerConfig(width=512, heads=8, depth=2, norm="rms", gelu="sigmoid", bias=False, causal=True)


@given(CONFIGS, st.sampled_from(DTYPES), st.sampled_from([1, 2, 3, 4, 5, 9]), st.sampled_from([1, 2, 6]))
@example(LONG, np.float32, 4, 6)
def test_bits_are_those_of_the_operations(config, dtype, b, length):
    blocks, rooms, tokens = made(config, dtype, b, length)
    one = decoder(config, blocks, rooms)
    for filled, (x, expected) in enumerate(zip(tokens, by_operations(config, blocks, tokens), strict=True)):
        before = x.copy()
        assert np.array_equal(one.step(x, filled).view(np.uint8), expected.view(np.uint8))
        assert np.array_equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_threads_or_on_other_sequences(dtype):
    """Five threads on fewer processors wait for each other at every stage."""
    threads, found = get_threads(), []
    blocks, _, tokens = made(LONG, dtype, 5, 6)
    try:
        for count, rows in [(1, slice(0, 5))] + 20 * [(5, slice(0, 5))] + [(2, slice(1, 2)), (2, slice(1, 3))]:
            set_threads(count)
            rooms = made(LONG, dtype, rows.stop - rows.start, 6)[1]
            one = decoder(LONG, blocks, rooms)
            out = [one.step(x[rows], i).astype(np.float64) for i, x in enumerate(tokens)]
            found.append((rows, np.stack(out)))
    finally:
        set_threads(threads)
    whole = found[0][1]
    assert np.isfinite(whole).all()
    assert all(np.array_equal(one, whole[:, rows]) for rows, one in found)


def test_what_does_not_fit_is_refused_before_memory_is_touched():
    blocks, rooms, tokens = made(LONG, np.float32, 2, 3)
    one = decoder(LONG, blocks, rooms)
    for x, filled in [(tokens[0][:1], 0), (tokens[0].astype(np.float64), 0), (tokens[0][:, :-1], 0), (tokens[0], 3)]:
        with pytest.raises(ValueError, match=r"Decoder\.step: .* expected float32 \(2, 512\) and fewer than 3 tokens"):
            one.step(x, filled)
    name = "mlp.fc1.weight"
    for wrong in (blocks[1][name][:-1], blocks[1][name].astype(np.float64), np.asfortranarray(blocks[1][name]), None):
        assert not decoding.takes([blocks[0], blocks[1] | {name: wrong}], *rooms)
    with pytest.raises(ValueError, match="expected dense arrays of one dtype whose shapes fit"):
        decoder(LONG, blocks, [rooms[0], [room[:, :, ::2] for room in rooms[1]]])
    half = [{name: x.astype(np.float16) for name, x in one.items()} for one in blocks]
    assert not decoding.takes(half, *[[room.astype(np.float16) for room in of] for of in rooms])


def test_names_are_those_of_the_models():
    normal = initialization.normal(1)
    config = replace(LONG, bias=True, norm="layer")
    layout = initialization.block_layout(config, qkv=normal, out=normal, fc1=normal, fc2=normal)
    assert set(layout) == set(decoding.PARAMETERS)
