"""Tiles that were measured on this machine's GPU: those of ``saccade tune``, which take the place of the tables'.

They are in a JSON file of the user's, by the GPU's name and what they are for, one for each version of Triton and of
the kernels; one that says something else is left aside with a warning.
"""

import hashlib
import json
import os
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import triton

SHORTEST, LONGEST = 64, 4096  # classes of keys
# what (BLOCK_T, BLOCK_S, warps, stages, most registers of a thread) of attention may be
POSSIBLE = {16, 32, 64, 128}, {16, 32, 64, 128}, {1, 2, 4, 8}, {1, 2, 3, 4}, {None, *range(64, 256, 8)}

_trial: dict = {}


@cache
def file():
    """Where they are kept."""
    sources = hashlib.sha256(triton.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("attention*.py")):
        sources.update(path.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "saccade" / f"triton-tiles-{sources.hexdigest()[:16]}.json"


def kind_of(name, causal, size, row, keys):
    """What tiles are for, in words: a pass, the bytes of a number and of a padded row of a head, and a class of keys,
    those up to a power of two."""
    most = min(max(SHORTEST, 1 << (keys - 1).bit_length()), LONGEST)
    return f"{name}; {size} bytes a number, {row} a row, {most} {'causal ' if causal else ''}keys"


def tiles(name, causal, size, row, keys, device):
    """The tiles that are tried just now, those that were measured, or None."""
    if not _trial and not kept():
        return None
    kind = kind_of(name, causal, size, row, keys)
    return _trial.get(kind) or kept().get(gpu(device), {}).get(kind)


@cache
def gpu(device):
    """A GPU's name; "interpreter" where there is none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


@contextmanager
def trying(kind, found):
    """Use these tiles within a block, whatever is kept."""
    _trial[kind] = found
    try:
        yield
    finally:
        del _trial[kind]


@cache
def kept():
    """{GPU: {kind: tiles}} of the file."""
    try:
        found = json.loads(file().read_text())
        found = {name: {kind: tuple(x) for kind, x in kinds.items()} for name, kinds in found.items()}
        if not all(_possible(x) for kinds in found.values() for x in kinds.values()):
            raise ValueError("tiles that there are not")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        warnings.warn(f"{file()} is left aside, it is not what saccade tune writes: {error}", stacklevel=2)
        return {}
    return found


def _possible(found):
    whole = all(x is None or type(x) is int for x in found)
    return whole and len(found) == len(POSSIBLE) and all(x in some for x, some in zip(found, POSSIBLE, strict=True))
