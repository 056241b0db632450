"""Items shared out to threads.

The kernels release the GIL, so plain Python threads run them side by side. numba's own threading layers are
not used: its OpenMP layer kills a forked child, its workqueue aborts when two threads call at once, and TBB
is not found where pip puts it. But where a library has loaded GNU's OpenMP, as torch, faiss and scikit-learn do, its
threads help instead: they go on looking for work for a while after each of that library's operations, on the processors
that threads of ours would need. Each kernel computes an item the same way whoever takes it, so results have the same
bits for any number of threads.
"""

import atexit
import ctypes
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numba.core import config as numba_config

from saccade.kernels.numba import team

config: Any = numba_config  # its attributes are made as numba starts

RUNS = 8  # of items for each thread, so that one that is slowed down takes fewer

_threads = config.NUMBA_NUM_THREADS
_team: Any = None
_openmp: Any = None  # that of a library, or False where none is ever to be used
_modules = 0  # how many were imported when it was looked for


def get_threads():
    """The number of threads a kernel may use: NUMBA_NUM_THREADS, or the processors this process may use."""
    return _threads


def set_threads(threads):
    """Let kernels use ``threads`` threads from now on. Results do not depend on it."""
    global _threads
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"set_threads: {threads=}, expected an integer of at least 1")
    _dismiss()
    _threads = threads


def parallel_for(kernel, items, grain, *arguments):
    """Call ``kernel(work, *arguments)``, which loops over ``shared(offer(work))``, with what help there is.

    ``grain`` is how many items are at least worth a run of their own. A second thread that calls a kernel while one
    runs has no help.
    """
    runs = min(items // max(grain, 1), RUNS * _threads)
    if runs <= 1 or _threads == 1 or not (helpers := _assembled()).busy.acquire(blocking=False):
        kernel((0, items, 1), *arguments)
        return
    try:
        helpers.call(kernel, items, runs, arguments)
    finally:
        helpers.busy.release()


class _Team:
    """Threads that wait for kernels."""

    def __init__(self, helpers):
        self.helpers = helpers
        self.memory = np.zeros(team.SIZE, np.int64)
        self.memory[team.HANDS] = helpers + 1
        self.address = self.memory.ctypes.data
        self.bell, self.busy, self.threads = queue.SimpleQueue(), threading.Lock(), []

    def _start(self):
        self.threads = [threading.Thread(target=self._serve, name="saccade", daemon=True) for _ in range(self.helpers)]
        for one in self.threads:
            one.start()

    def _serve(self):
        seen = 0
        while not self.memory[team.CLOSED]:
            seen = team.serve(self.address, seen)
            # a kernel that was called as this thread stopped looking rang for nobody
            if not self.memory[team.WANTED] and self.memory[team.OFFERS] == seen:
                self.bell.get()

    def call(self, kernel, items, runs, arguments):
        self.memory[team.TAKEN], self.memory[team.WANTED] = 0, 1
        pool = _pool(self.helpers + 1)
        self.memory[team.POOL] = pool
        if not pool:
            if not self.threads:
                self._start()
            self.wake()
        try:
            kernel((self.address, items, runs), *arguments)
        finally:
            team.close(self.address)
            self.memory[team.WANTED] = 0
        if self.memory[team.FAILED]:
            self.memory[team.FAILED] = 0
            raise MemoryError(f"{kernel.__name__}: one of its threads found no memory")

    def wake(self):
        if self.memory[team.ASLEEP]:
            for _ in range(team.exchange_asleep(self.address)):
                self.bell.put(None)

    def dismiss(self):
        with self.busy:
            self.memory[team.CLOSED] = 1
            for _ in self.threads:
                self.bell.put(None)
        for one in self.threads:
            one.join()


def _assembled():
    global _team
    if _team is None:
        _team = _Team(_threads - 1)
    return _team


def _dismiss():
    global _team
    if _team is not None:
        _team.dismiss()
    _team = None


def _forget():
    global _team, _openmp
    _team, _openmp = None, False


def _pool(threads):
    """The address of ``GOMP_parallel`` if an OpenMP with as many threads is loaded, or 0."""
    global _openmp, _modules
    if _openmp is not False and len(sys.modules) != _modules:
        _openmp, _modules = loaded_openmp(), len(sys.modules)
    if not _openmp or _openmp.omp_get_max_threads() != threads:
        return 0
    return ctypes.cast(_openmp.GOMP_parallel, ctypes.c_void_p).value or 0


def loaded_openmp():
    """GNU's OpenMP that a library has loaded, torch's before that of others, or None."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    paths = {Path(line.split(maxsplit=5)[-1]) for line in maps.splitlines() if "libgomp" in line}
    for path in sorted(paths, key=lambda path: (path.parts[-3:-1] != ("torch", "lib"), path)):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_max_threads"):
            return library
    return None


os.register_at_fork(after_in_child=_forget)  # threads do not survive a fork
atexit.register(_dismiss)
