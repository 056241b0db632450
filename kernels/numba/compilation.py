"""How every CPU kernel is compiled: without the GIL, without a Python fallback, cached on disk."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numba
from numba.core import config as numba_config

config: Any = numba_config  # its attributes are made as numba starts


def cache_directory():
    """Where compiled kernels are kept: keyed by a hash of this folder's sources.

    numba notices a change in the file of a kernel, but not one in a helper that the kernel calls from
    another file; a key over all of them does.
    """
    sources = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(file.read_bytes())
    home = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "saccade" / f"numba-{sources.hexdigest()[:16]}"


_CACHE_DIRECTORY = str(cache_directory())


def jit(function) -> Any:
    """Compile a kernel. Products may be contracted to fused multiply-adds; nothing else is reordered."""
    return _compile(function, {"contract"})


def jit_reassociating(function) -> Any:
    """Compile a helper whose only floating-point work is a reduction, which may be summed in vector lanes."""
    return _compile(function, {"contract", "reassoc"})


def _compile(function, fastmath):
    options: dict[str, Any] = dict(nogil=True, fastmath=fastmath, error_model="numpy")
    directory, config.CACHE_DIR = config.CACHE_DIR, _CACHE_DIRECTORY
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no place it may write to
        return numba.njit(**options)(function)
    finally:
        config.CACHE_DIR = directory
