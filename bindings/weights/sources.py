"""What a path holds: names, shapes and dtypes of tensors at once, their numbers one by one.

``open_source(path)`` looks at the first bytes, not at the name. Every source raises ValueError with the path for what
is truncated or malformed, and runs nothing.
"""

import contextlib
import json
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np

BESIDE = ("config.json", "preprocessor_config.json", "open_clip_config.json")
IN_A_FOLDER = (
    "model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "open_clip_pytorch_model.bin",
)  # fmt: skip
# What zipfile, zlib and NumPy were seen to raise over mutated archives, and what they are said to.
ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError, ValueError, EOFError, OSError,
    KeyError, IndexError, OverflowError, SyntaxError, RuntimeError, NotImplementedError,
)  # fmt: skip
MAX_JSON = 2**24
MAX_INFLATION = 100


class Source:
    """Tensors in a file.

    ``where`` is the path, ``shapes`` the shape of every tensor by name, ``dtypes`` its dtype, ``metadata`` what the
    file says of itself, strings by name, and ``beside`` the JSON files beside it, by name. ``read(name)`` gives an
    array that may be written to; ``release(name)`` says that it was copied, before any other is written to.
    """

    exact_gelu = None  # of an archive with modules in it: whether theirs is torch's own
    mapped = False  # whether tensors lie in the file as in memory, so that reading one costs nothing yet

    def __init__(self, where, entries, metadata=None):
        self.where = str(where)
        self.shapes = {name: tuple(shape) for name, (shape, _) in entries.items()}
        self.dtypes = {name: np.dtype(dtype) for name, (_, dtype) in entries.items()}
        self.metadata = metadata or {}
        self.beside = read_beside(Path(where))

    def read(self, name):
        raise NotImplementedError

    def release(self, name):
        """Of a mapped file, the tensor's pages are held no longer."""


@contextlib.contextmanager
def malformed(where, *errors):
    """Turn the errors that a library raises over a malformed file into one ValueError."""
    try:
        yield
    except errors as error:
        raise ValueError(f"{where}: malformed or truncated ({type(error).__name__}: {error})") from None


def read_array(path, start, x):
    """Fill a contiguous array from a place in a file."""
    with open(path, "rb") as file:
        file.seek(start)
        if x.size and file.readinto(memoryview(x.reshape(-1).view(np.uint8))) != x.nbytes:
            raise ValueError(f"{path}: truncated")
    return x


class Shards(Source):
    """Several files of which an index says which holds which tensor."""

    def __init__(self, index):
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
            raise ValueError(f"{index}: no weight_map of names to files")
        outside = [file for file in table.values() if Path(file).name != file]
        if outside:
            raise ValueError(f"{index}: {outside[0]!r} is no file of its folder")
        self._files = {file: open_file(index.parent / file) for file in sorted(set(table.values()))}
        self._of = {name: self._files[file] for name, file in table.items()}
        absent = [name for name, source in self._of.items() if name not in source.shapes]
        if absent:
            raise ValueError(f"{index}: {', '.join(absent)} not in the files that it names")
        super().__init__(index, {name: (s.shapes[name], s.dtypes[name]) for name, s in self._of.items()})
        self.mapped = all(source.mapped for source in self._files.values())

    def read(self, name):
        return self._of[name].read(name)

    def release(self, name):
        self._of[name].release(name)


class Npz(Source):
    """NumPy's archive of arrays; none with Python objects, and none that unfolds to many times its size."""

    def __init__(self, path):
        entries = {}
        with malformed(path, *ZIP_ERRORS), zipfile.ZipFile(path) as archive:
            unfolded = sum(member.file_size for member in archive.infolist())
            if unfolded > MAX_INFLATION * os.path.getsize(path):
                raise ValueError(f"{unfolded} bytes in a file of {os.path.getsize(path)}")
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    with archive.open(member) as file:
                        shape, dtype = _npy_header(file)
                        if math.prod(shape) * dtype.itemsize + file.tell() != member.file_size:
                            raise ValueError(f"{member.filename} is not of the size that its header says")
                    entries[member.filename.removesuffix(".npy")] = shape, dtype
        super().__init__(path, entries)

    def read(self, name):
        with (
            malformed(self.where, *ZIP_ERRORS),
            zipfile.ZipFile(self.where) as archive,
            archive.open(f"{name}.npy") as file,
        ):
            return _numbers(np.lib.format.read_array(file, allow_pickle=False))


def _numbers(x):
    """In this machine's order of bytes and of axes; bfloat16, which NumPy's format knows only as two bytes, by name."""
    x = np.asarray(x, x.dtype.newbyteorder("="), order="C")
    return x.view(ml_dtypes.bfloat16) if x.dtype == "V2" else x


def _npy_header(file):
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"an array of version {version}")
    shape, _, dtype = reader(file)
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which only a pickle could fill")
    if dtype.kind not in "fiub" and dtype != "V2":
        raise ValueError(f"an array of {dtype}")
    return shape, np.dtype(ml_dtypes.bfloat16) if dtype == "V2" else dtype.newbyteorder("=")


def read_json(path):
    """A JSON object from a file of moderate size."""
    if os.path.getsize(path) > MAX_JSON:
        raise ValueError(f"{path}: {os.path.getsize(path)} bytes of JSON, expected at most {MAX_JSON}")
    with malformed(path, ValueError, RecursionError):
        found = json.loads(Path(path).read_bytes())
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a JSON {type(found).__name__}, expected an object")
    return found


def read_beside(path):
    """The JSON files that say more of a checkpoint, by name."""
    return {name: read_json(path.parent / name) for name in BESIDE if (path.parent / name).is_file()}


def open_source(path):
    """The source that a file, a folder, the common beginning of several files' names or "hf:owner/name" is."""
    if str(path).startswith("hf:"):
        from saccade.weights.hub import fetch

        path = fetch(str(path))
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in IN_A_FOLDER if (path / name).is_file()] or sorted(path.glob("*.index"))
        if not found:
            raise ValueError(f"{path}: a folder with none of {', '.join(IN_A_FOLDER)}, *.index")
        path = found[0]
    elif not path.exists() and Path(f"{path}.index").is_file():
        path = Path(f"{path}.index")
    if path.suffix == ".index":
        from saccade.weights.tensorflow import TensorFlow

        return TensorFlow(path)
    return Shards(path) if path.name.endswith(".index.json") else open_file(path)


def open_file(path):
    """The source that a file is, by its first bytes."""
    with open(path, "rb") as file:
        first = file.read(9)
    if first[8:] == b"{":  # before all else: the length of the header, which comes first, may be any bytes
        from saccade.weights.safe import Safetensors

        return Safetensors(path)
    if first[:4] == b"PK\x03\x04":
        with malformed(path, *ZIP_ERRORS), zipfile.ZipFile(path) as archive:
            members = archive.namelist()
        if all(name.endswith(".npy") for name in members):
            return Npz(path)
        from saccade.weights.archives import StateDict, TorchScript

        return TorchScript(path) if any("/code/" in name for name in members) else StateDict(path)
    if first[:1] == b"\x80":
        from saccade.weights.archives import StateDict

        return StateDict(path)
    raise ValueError(f"{path}: no safetensors, .npz, PyTorch or TensorFlow checkpoint")
