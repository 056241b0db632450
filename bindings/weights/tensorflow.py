"""TensorFlow's checkpoints without TensorFlow: an index of tensors and shards of their bytes.

The index is a table of LevelDB: blocks of keys that share their beginnings, a block that lists the blocks, and a
footer. Its values are protocol buffers: under the empty key BundleHeaderProto (1 shards, 2 endianness), under each
tensor's name BundleEntryProto (1 dtype, 2 shape, 3 shard, 4 offset, 5 size, 6 checksum, 7 slices).
"""

import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np

from saccade.weights.checksum import crc32c, masked
from saccade.weights.sources import Source, malformed, read_array

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
MAX_INDEX = 2**26
DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 14: ml_dtypes.bfloat16, 19: np.float16}


class TensorFlow(Source):
    """The tensors of a checkpoint by the path of its index; text and the like, which no model needs, are left out."""

    def __init__(self, path):
        with malformed(path, IndexError, KeyError, UnicodeError, OverflowError):
            table = read_table(path)
            header = fields(table.pop(b""))
            if header.get(2, [0])[0] != 0:
                raise ValueError(f"{path}: big-endian")
            shards = header[1][0]
            entries = {key.decode(): fields(value) for key, value in table.items()}
            self._places, found = {}, {}
            for name, entry in entries.items():
                dtype = DTYPES.get(entry[1][0])
                if dtype is not None:
                    found[name] = _shape(path, name, entry), np.dtype(dtype)
                    self._places[name] = [entry.get(i, [0])[0] for i in (3, 4, 5, 6)]
        stem = str(path).removesuffix(".index")
        self._files = [f"{stem}.data-{i:05}-of-{shards:05}" for i in range(min(shards, 10**5))]
        for name, (shape, dtype) in found.items():
            self._check_place(path, name, math.prod(shape) * dtype.itemsize)
        super().__init__(path, found)

    def _check_place(self, path, name, size):
        shard, offset, stored, _ = self._places[name]
        if stored != size or shard >= len(self._files):
            raise ValueError(f"{path}: {name} has {stored} bytes in shard {shard}, expected {size}")
        file = self._files[shard]
        if not os.path.exists(file):
            raise ValueError(f"{path}: {file} is missing")
        if offset + size > os.path.getsize(file):
            raise ValueError(f"{file}: truncated")

    def read(self, name):
        shard, offset, _, checksum = self._places[name]
        with open(self._files[shard], "rb") as file:
            x = read_array(file, offset, self.shapes[name], self.dtypes[name], self._files[shard])
        if masked(crc32c(x)) != checksum:
            raise ValueError(f"{self._files[shard]}: the bytes of {name} do not have their checksum")
        return x


def _shape(path, name, entry):
    if 7 in entry:
        raise ValueError(f"{path}: {name} lies in slices, expected whole tensors")
    dimensions = fields(entry.get(2, [b""])[0]).get(2, [])
    shape = tuple(fields(one).get(1, [0])[0] for one in dimensions)
    if any(side >= 2**63 for side in shape):
        raise ValueError(f"{path}: {name} has a side of unknown length")
    return shape


def read_table(path):
    """All keys and values of a LevelDB table, bytes."""
    size = os.path.getsize(path)
    if size > MAX_INDEX:
        raise ValueError(f"{path}: an index of {size} bytes, expected at most {MAX_INDEX}")
    raw = Path(path).read_bytes()
    if len(raw) < FOOTER or int.from_bytes(raw[-8:], "little") != MAGIC:
        raise ValueError(f"{path}: no index of a TensorFlow checkpoint")
    at, handle = len(raw) - FOOTER, []
    for _ in range(4):
        number, at = _varint(raw, at)
        handle.append(number)
    _block(path, raw, *handle[:2])  # of filters, which nobody asks for; but it must be whole
    table = {}
    for place in _block(path, raw, *handle[2:]).values():
        offset, end = _varint(place, 0)
        table |= _block(path, raw, offset, _varint(place, end)[0])
    return table


def _block(path, raw, offset, size):
    if offset + size + 5 > len(raw):
        raise ValueError(f"{path}: truncated")
    checked, stored = raw[offset : offset + size + 1], raw[offset + size + 1 : offset + size + 5]
    if masked(crc32c(checked)) != int.from_bytes(stored, "little"):
        raise ValueError(f"{path}: a block does not have its checksum")
    if checked[-1] != 0:
        raise ValueError(f"{path}: a compressed index, expected a plain one")
    block = checked[:-1]
    end = len(block) - 4 * (int.from_bytes(block[-4:], "little") + 1)
    found, key, at = {}, b"", 0
    while at < end:
        shared, at = _varint(block, at)
        new, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + new]
        found[key] = block[at + new : at + new + length]
        at += new + length
    return found


def _varint(raw, at):
    """(number, the place after it), seven bits a byte."""
    number = shift = 0
    while True:
        byte = raw[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
        if shift > 63:
            raise IndexError("a number of more than 64 bits")


def fields(message):
    """A protocol buffer's fields: number -> list of integers or bytes."""
    found, at = {}, 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
            value, at = int.from_bytes(message[at : at + length], "little"), at + length
        elif kind == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            raise IndexError(f"a field of wire type {kind}")
        if at > len(message):
            raise IndexError("a field beyond its message")
        found.setdefault(tag >> 3, []).append(value)
    return found
