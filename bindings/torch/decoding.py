"""Sequences that grow: an autoregressive model's blocks, with the keys and values of the tokens before."""

import torch

from saccade.kernels.numba import decoding
from saccade.torch.arrays import from_numpy, to_numpy
from saccade.torch.stages import Block, named

MOST = 16  # sequences whose token is one call; of more, products of many rows are faster


class Decoder:
    """Blocks through which sequences of at most ``length`` tokens go a few tokens at a time.

    On a CPU a token is one call of ``saccade.kernels.numba.decoding``. What that does not take goes from block to
    block: several tokens or many sequences at once, numbers that the processor has no products for, and blocks of other
    shapes or with something to do besides (dropout, hooks, sharding).
    """

    def __init__(self, blocks, length):
        self.blocks, self.length, self.filled, self.kernel = blocks, length, 0, None
        self.caches = [KeyValueCache(length) for _ in blocks]

    def __call__(self, x_bne):
        """The blocks' output for tokens after those of the calls before: b n e -> b n e."""
        if self.filled == 0:
            self.kernel = _kernel(self.blocks, self.caches, x_bne)
        start, self.filled = self.filled, self.filled + x_bne.shape[1]
        if self.kernel is not None and x_bne.shape[1] == 1:
            return from_numpy(self.kernel.step(to_numpy(x_bne[:, 0]), start))[:, None]
        for block, cache in zip(self.blocks, self.caches, strict=True):
            cache.filled = start
            x_bne = block(x_bne, cache=cache)
        return x_bne


class KeyValueCache:
    """A block's keys and values of the first ``filled`` tokens, in room for ``length`` of them."""

    def __init__(self, length):
        self.length, self.filled, self.room = length, 0, None

    def extend(self, *new_bhtd):
        """Put keys and values after those that there are; all of them, b h s d twice."""
        b, h, t, d = new_bhtd[0].shape
        if self.room is None:
            self.room = _room(new_bhtd[0], b, h, self.length, d)
        for room, new in zip(self.room, new_bhtd, strict=True):
            room[:, :, self.filled : self.filled + t] = new
        return [room[:, :, : self.filled + t] for room in self.room]


def _room(like, *shape):
    """Room for keys and for values, of the dtype and device of ``like``."""
    return [like.new_empty(shape) for _ in ("keys", "values")]


def _kernel(blocks, caches, x):
    """The kernel for tokens like ``x``, which fills the caches' room, or None if there is none."""
    plain = x.device.type == "cpu" and 0 < len(x) <= MOST
    if not plain or torch.is_grad_enabled() or not all(map(_does_nothing_else, blocks)) or not len(blocks):
        return None
    (b, _, e), config = x.shape, blocks[0].config
    rooms = [_room(x, b, config.heads, cache.length, e // config.heads) for cache in caches]
    parameters = [{name: to_numpy(one) for name, one in named(block).items()} for block in blocks]
    keys, values = ([to_numpy(room[i]) for room in rooms] for i in range(2))
    if not decoding.takes(parameters, keys, values):
        return None
    for cache, room in zip(caches, rooms, strict=True):
        cache.room = room
    return decoding.Decoder(parameters, keys, values, rms=config.norm == "rms", eps=config.eps, gelu=config.gelu)


def _does_nothing_else(block):
    drops = block.training and (block.dropout or block.stochastic_depth)
    return type(block) is Block and not drops and not block._forward_hooks and not block._forward_pre_hooks
