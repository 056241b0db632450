"""Ranges of work shared out to threads.

The kernels release the GIL, so plain Python threads run them side by side. numba's own threading layers are
not used: its OpenMP layer kills a forked child, its workqueue aborts when two threads call at once, and TBB
is not found where pip puts it. Each kernel computes an item the same way whichever range it comes in, so
results have the same bits for any number of threads.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from numba.core import config as numba_config

config: Any = numba_config  # its attributes are made as numba starts

_threads = config.NUMBA_NUM_THREADS
_pool: ThreadPoolExecutor | None = None


def get_threads():
    """The number of threads a kernel may use: NUMBA_NUM_THREADS, or the processors this process may use."""
    return _threads


def set_threads(threads):
    """Let kernels use ``threads`` threads from now on. Results do not depend on it."""
    global _threads
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"set_threads: {threads=}, expected an integer of at least 1")
    _threads = threads
    _forget_pool()


def parallel_for(kernel, items, grain, *arguments):
    """Call ``kernel(start, stop, *arguments)`` over ranges that cover [0, items), in parallel.

    ``grain`` is how many items are at least worth a call of their own.
    """
    chunks = min(items // max(grain, 1), 4 * _threads)
    if chunks <= 1 or _threads == 1:
        kernel(0, items, *arguments)
        return
    bounds = [items * i // chunks for i in range(chunks + 1)]
    ranges = iter(list(zip(bounds[:-1], bounds[1:], strict=True)))

    def drain():
        for start, stop in ranges:
            kernel(start, stop, *arguments)

    helpers = [_shared_pool().submit(drain) for _ in range(min(_threads, chunks) - 1)]
    try:
        drain()
    finally:
        # A helper that never started has nothing left to do; one that runs still writes to our arrays.
        for helper in helpers:
            if not helper.cancel():
                helper.result()


def _shared_pool():
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(_threads - 1, 1), thread_name_prefix="saccade")
    return _pool


def _forget_pool():
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # threads do not survive a fork
