"""PyTorch's files without running what is in them.

TorchScript archives, as OpenAI released CLIP: a zip with code, which is not looked at, a pickle of the modules, and
the tensors' bytes. The pickle's instructions are followed by a small machine that knows how to build tuples, lists,
dictionaries, tensors and modules without behaviour, and refuses everything else. State dictionaries are read by
``torch.load(weights_only=True)``.
"""

import math
import os
import pickle
import pickletools
import warnings
import zipfile
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from saccade.weights.sources import MAX_INFLATION, ZIP_ERRORS, Source, malformed

STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
MAX_PICKLE = 2**26
MAX_DEPTH = 32
PART = 2**22
TORCHS_ACTIVATIONS = "__torch__.torch.nn.modules.activation"
ERRORS = (*ZIP_ERRORS, TypeError, AttributeError, RecursionError)


class Name(NamedTuple):
    """What a pickle would import."""

    path: str


class Tensor(NamedTuple):
    """Where a tensor lies."""

    storage: str
    dtype: Any
    offset: int
    shape: tuple


@dataclass
class Module:
    """An object that a pickle makes: the name of its class and its attributes, and no behaviour."""

    kind: str
    attributes: dict = field(default_factory=dict)


class TorchScript(Source):
    """A TorchScript archive."""

    def __init__(self, path):
        with malformed(path, *ERRORS), zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            unfolded = sum(member.file_size for member in members.values())
            if unfolded > MAX_INFLATION * os.path.getsize(path):
                raise ValueError(f"{unfolded} bytes in a file of {os.path.getsize(path)}")
            (listing,) = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
            if members[listing].file_size > MAX_PICKLE:
                raise ValueError(f"{listing} has {members[listing].file_size} bytes, expected at most {MAX_PICKLE}")
            module = follow(archive.read(listing))
            found = dict(tensors_of(module))
            activations = [kind for kind in kinds(module) if kind.startswith(TORCHS_ACTIVATIONS)]
            self.exact_gelu = any(kind.endswith(".GELU") for kind in activations)
            self._stem = listing.removesuffix("data.pkl")
            for name, x in found.items():
                size = members[f"{self._stem}data/{x.storage}"].file_size
                if (x.offset + math.prod(x.shape)) * x.dtype.itemsize > size:
                    raise ValueError(f"{name} reaches beyond its storage of {size} bytes")
        self._tensors = found
        super().__init__(path, {name: (x.shape, x.dtype) for name, x in found.items()})

    def read(self, name):
        x = self._tensors[name]
        out = np.empty(x.shape, x.dtype)
        with (
            malformed(self.where, *ERRORS),
            zipfile.ZipFile(self.where) as archive,
            archive.open(f"{self._stem}data/{x.storage}") as file,
        ):
            file.seek(x.offset * x.dtype.itemsize)
            left = memoryview(out.reshape(-1).view(np.uint8))
            while len(left):
                part = file.read(min(len(left), PART))
                if not part:
                    raise EOFError(f"{name} is not whole")
                left[: len(part)] = part
                left = left[len(part) :]
            file.read(1)  # at the end of a member its checksum is compared
        return out


def follow(code):
    """The object that a pickle describes; ValueError where it asks for more than data."""
    stack, marks, memo = [], [], {}
    for operation, argument, _ in pickletools.genops(code):
        name = operation.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(argument)
        elif name == "GLOBAL":
            stack.append(Name(str(argument).replace(" ", ".")))
        elif name in _MAKERS:
            stack.append(_MAKERS[name]())
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            items = [stack.pop() for _ in range(len(stack) - marks.pop())][::-1]
            _gather(name, stack, items)
        elif name in _FIXED:
            kind, count = _FIXED[name]
            _gather(kind, stack, [stack.pop() for _ in range(count)][::-1])
        elif name in _PAIRS:
            second = stack.pop()
            stack.append(_PAIRS[name](stack.pop(), second))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        else:
            raise ValueError(f"a pickle with the instruction {name}, which data does not need")
    raise ValueError("a pickle without an end")


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_MAKERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_FIXED = {"TUPLE1": ("TUPLE", 1), "TUPLE2": ("TUPLE", 2), "TUPLE3": ("TUPLE", 3), "APPEND": ("APPENDS", 1)}
_FIXED["SETITEM"] = ("SETITEMS", 2)


def _gather(kind, stack, items):
    if kind == "TUPLE":
        stack.append(tuple(items))
    elif kind == "APPENDS":
        stack[-1].extend(items)
    else:
        stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _reduce(name, arguments):
    """A call, of which two are known: an empty dictionary, and a tensor of a storage."""
    if name == Name("collections.OrderedDict") and not arguments:
        return {}
    if name != Name("torch._utils._rebuild_tensor_v2"):
        raise ValueError(f"a pickle that calls {name.path if isinstance(name, Name) else name}, which is not run")
    (storage, dtype), offset, shape, stride = arguments[:4]
    steps = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    if any(a != b and side > 1 for a, b, side in zip(steps, stride, shape, strict=True)):
        raise ValueError(f"a tensor of shape {shape} whose strides are {stride}, expected the plain order")
    if min((offset, *shape)) < 0:
        raise ValueError(f"a tensor of {offset=} and {shape=}")
    return Tensor(storage, dtype, offset, shape)


def _new(name, arguments):
    if not isinstance(name, Name) or not name.path.startswith("__torch__.") or arguments:
        raise ValueError(f"a pickle that makes {name!r}, expected modules alone")
    return Module(name.path)


def _build(module, state):
    if not isinstance(module, Module) or not isinstance(state, dict):
        raise ValueError("a pickle that changes what is no module")
    module.attributes = state
    return module


_PAIRS = {"REDUCE": _reduce, "NEWOBJ": _new, "BUILD": _build}


def _storage(said):
    """(name, dtype) of the persistent id of a storage."""
    kind, dtype, name = said[:3]
    short = dtype.path.removeprefix("torch.")
    if kind != "storage" or short not in STORAGES or not isinstance(name, str):
        raise ValueError(f"a storage {said[:3]}")
    return name, np.dtype(STORAGES[short])


def tensors_of(module, stem="", depth=0):
    """Pairs (name, tensor) of a module and those in it."""
    if depth > MAX_DEPTH or not isinstance(module, Module):
        raise ValueError("modules in modules without end" if depth > MAX_DEPTH else "no module")
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield stem + name, value
        elif isinstance(value, Module):
            yield from tensors_of(value, f"{stem}{name}.", depth + 1)


def kinds(module):
    """The classes' names of a module and of those in it."""
    return {module.kind}.union(*(kinds(x) for x in module.attributes.values() if isinstance(x, Module)))


class StateDict(Source):
    """What ``torch.save`` wrote: a dictionary of tensors, or one under a usual name in it, as after training."""

    def __init__(self, path):
        try:
            import torch
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f'{path} is read by torch, which is not installed: pip install "saccade[torch]"'
            ) from None
        found = self._load(torch, path)
        for name in ("state_dict", "model"):
            if isinstance(found, dict) and isinstance(found.get(name), dict):
                found = found[name]
        if not isinstance(found, dict) or not all(isinstance(x, torch.Tensor) for x in found.values()):
            raise ValueError(f"{path}: expected a dictionary of tensors by name")
        parallel = bool(found) and all(name.startswith("module.") for name in found)  # as DataParallel names them
        self._tensors = {name.removeprefix("module.") if parallel else name: x for name, x in found.items()}
        entries = {name: (x.shape, str(x.dtype).removeprefix("torch.")) for name, x in self._tensors.items()}
        with malformed(path, TypeError):  # dtypes that NumPy does not have
            super().__init__(path, entries)

    @staticmethod
    def _load(torch, path):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old and new protocols, which it reads or refuses by itself
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
        except pickle.UnpicklingError as error:
            first = str(error).partition("\n")[0].partition(". ")[0]
            raise ValueError(f"{path}: a pickle of more than tensors, which is not run ({first})") from None
        except (AssertionError, *ERRORS) as error:
            raise ValueError(f"{path}: malformed or truncated ({str(error).partition(chr(10))[0]})") from None

    def read(self, name):
        from saccade.torch.arrays import to_numpy

        return np.array(to_numpy(self._tensors[name].detach()), order="C")
