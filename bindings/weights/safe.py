"""safetensors: arrays lie in the mapped file until they are written to; written one tensor at a time.

The library checks that a header is sound and covers the file; its own reading copies what NumPy could read where it
lies, and its writing would hold a model twice.
"""

import json
import math
import mmap

import ml_dtypes
import numpy as np
import safetensors

from saccade.files import replacing
from saccade.weights.sources import Source, malformed

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


class Safetensors(Source):
    """A safetensors file, mapped copy on write: its arrays can be written to, which leaves the file as it is."""

    mapped = True

    def __init__(self, path):
        with malformed(path, safetensors.SafetensorError, UnicodeError), safetensors.safe_open(path, "np"):
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes.madvise(mmap.MADV_WILLNEED)
        metadata = header.pop("__metadata__", None)
        unknown = sorted({entry["dtype"] for entry in header.values()} - DTYPES.keys())
        if unknown:
            raise ValueError(f"{path}: tensors of {', '.join(unknown)}, expected {', '.join(DTYPES)}")
        self._starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}
        super().__init__(path, {n: (entry["shape"], DTYPES[entry["dtype"]]) for n, entry in header.items()}, metadata)

    def read(self, name):
        found = np.ndarray(self.shapes[name], self.dtypes[name], self._bytes, self._starts[name])
        return found if found.flags.aligned else found.copy()

    def release(self, name):
        start = self._starts[name] // mmap.PAGESIZE * mmap.PAGESIZE
        length = self._starts[name] - start + math.prod(self.shapes[name]) * self.dtypes[name].itemsize
        self._bytes.madvise(mmap.MADV_DONTNEED, start, length)


def write(path, entries, arrays, metadata):
    """Write a file.

    Args:
        path: which is replaced when all is written.
        entries: {name: (shape, dtype)}.
        arrays: name -> array, asked once for each.
        metadata: strings by name.
    """
    order = sorted(entries, key=lambda name: (-np.dtype(entries[name][1]).itemsize, name))  # so that all lie aligned
    header, end = {"__metadata__": metadata}, 0
    for name in order:
        shape, dtype = entries[name]
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(np.asarray(arrays(name), order="C").reshape(-1).view(np.uint8))
