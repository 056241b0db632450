"""Where calls run and what times them there: processors and the clock, or a GPU and its events.

Clock and events are taken before any provider is imported. One that changes what they do all the same is found by the
clock of the process that waits (``saccade.bench.run``).
"""

import contextlib
import functools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from saccade import environment

FLUSHED = 1 << 28  # bytes read and written to empty the caches: more than processors and GPUs hold
AHEAD = 400_000  # cycles, 0.2 ms: on an H100 a graph's launch took 0.02
NAMES = ("cpu", "cuda")
STATE = {
    "processor MHz": "clocks.sm", "memory MHz": "clocks.mem", "degrees Celsius": "temperature.gpu",
    "watts": "power.draw", "slowed": "clocks_throttle_reasons.active",
}  # fmt: skip
SLOWED = {0x4: "power", 0x8: "hardware", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}  # of NVML's reasons


class Processors:
    """Calls on processors, timed by the clock.

    Attributes:
        pause: seconds before a contender's calls, so that the other's spinning threads sleep by then (OpenBLAS's take
            30 ms).
        awake: seconds of calls before the one that is timed, as in a model: after a rest a system may put two threads
            on one processor, where they wait for each other until its next ticks, of 4 ms each.
    """

    name, pause, awake = "cpu", 0.04, 0.015

    @functools.cached_property
    def _flushed(self):
        return np.zeros(FLUSHED, np.uint8)

    def flush(self):
        """Empty the caches."""
        self._flushed += 1

    def wait(self):
        """Return when what was begun is done: at once."""

    def seconds(self, call, clock=perf_counter_ns):
        """(what a call returns, how long it takes)."""
        start = clock()
        returned = call()
        stop = clock()
        return returned, (stop - start) * 1e-9

    def figures(self, call):
        """What else a row tells of a call: "peak memory", the bytes that it takes beyond what the process holds before,
        None where the system does not say."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("VmRSS")
            call()
            return {"peak memory": max(0, _status("VmHWM") - before)}
        except OSError:
            return {"peak memory": None}

    def describe(self):
        """What a run tells of the device, where it is not the processors that it describes anyway."""
        return {}


class Cuda(Processors):
    """Calls on the current GPU, each from an idle stream, timed by torch's events: with its launches, unless they are
    captured graphs. Those wait in the stream behind a sleep until all of a call is there.

    The stop event waits for the current stream alone. Work elsewhere is not there when results are copied after it, and
    ``wait``, at the end of a burst that another process times, waits for all streams.
    """

    name, pause, awake = "cuda", 0.0, 0.0

    def __init__(self):
        import torch

        if not torch.cuda.is_available():
            raise ValueError("bench: device='cuda', but torch sees no CUDA GPU: see saccade info")
        self._torch = torch
        self._event, self._synchronize = partial(torch.cuda.Event, enable_timing=True), torch.cuda.synchronize
        self._ahead = 0

    @functools.cached_property
    def _flushed(self):
        return self._torch.zeros(FLUSHED, dtype=self._torch.uint8, device=self.name)

    def flush(self):
        self._flushed.add_(1)

    def wait(self):
        self._synchronize()

    def seconds(self, call):
        self.wait()
        start, stop = self._event(), self._event()
        if self._ahead:
            self._torch.cuda._sleep(self._ahead)
        start.record()
        returned = call()
        stop.record()
        stop.synchronize()
        return returned, start.elapsed_time(stop) * 1e-3

    def captured(self, call):
        """A call as a CUDA graph, which is launched as one; it returns the same memory every time."""
        self._ahead, cuda = AHEAD, self._torch.cuda
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):  # where libraries make what may not be made while a graph is captured
            for _ in range(3):
                with self._cupy_too():
                    call()
        cuda.current_stream().wait_stream(side)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph), self._cupy_too():
            returned = call()

        def replay():
            graph.replay()
            return returned

        return replay

    def _cupy_too(self):
        """In the block, CuPy, if it is there, works in torch's stream and memory."""
        if "cupy" not in sys.modules:
            return contextlib.nullcontext()
        from saccade.torch.cupy import on_current_stream

        return on_current_stream(self._torch.device(self.name, self._torch.cuda.current_device()))

    def figures(self, call):
        cuda, state = self._torch.cuda, self.state()  # right after other calls, while clocks are up
        pool = sys.modules["cupy"].get_default_memory_pool() if "cupy" in sys.modules else None
        self.wait()
        if pool is not None:
            pool.free_all_blocks()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated() + (0 if pool is None else pool.used_bytes())
        host = super().figures(call)
        self.wait()
        after = cuda.max_memory_allocated() + (0 if pool is None else pool.total_bytes())
        return {**host, "gpu": {"peak memory": after - before, "state": state}}

    def state(self):
        """Clocks, heat and what slows the GPU down, as nvidia-smi tells; None if it does not."""
        command = ["nvidia-smi", f"--id={self._uuid}", f"--query-gpu={','.join(STATE.values())}"]
        try:
            said = subprocess.run(
                [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = [one.strip() for one in said.stdout.split(",")]
        return dict(zip(STATE, found, strict=True)) if said.returncode == 0 and len(found) == len(STATE) else None

    @functools.cached_property
    def _uuid(self):
        said = str(self._torch.cuda.get_device_properties(self._torch.cuda.current_device()).uuid)
        return said if said.startswith("GPU-") else f"GPU-{said}"

    def describe(self):
        found = self._torch.cuda.get_device_properties(self._torch.cuda.current_device())
        return {"gpu": {
            "name": found.name, "capability": f"{found.major}.{found.minor}", "memory": found.total_memory,
            "multiprocessors": found.multi_processor_count, "CUDA": self._torch.version.cuda, "state": self.state(),
        }}  # fmt: skip


def device(name) -> Any:
    """The device of a name in ``NAMES``.

    Raises:
        ValueError: it is no such name, or the device is not there.
    """
    if name not in NAMES:
        raise ValueError(f"bench: device={name!r}, expected one of {', '.join(NAMES)}")
    return Cuda() if name == "cuda" else Processors()


def variables(threads):
    """Environment variables of a process in which libraries are timed: their threads, and OpenBLAS's kernels.

    OpenBLAS 0.3.31 takes AMD's Zen 5 for a Haswell, which costs products half of their rate. What is set already stays.
    """
    found = {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    if environment.processor()["name"] == "znver5":
        found["OPENBLAS_CORETYPE"] = os.environ.get("OPENBLAS_CORETYPE", "SkylakeX")
    return found


def slowed_by(state):
    """What slowed a GPU down in a ``state``, in words: a set, empty if nothing did or that is not told."""
    try:
        bits = int(state["slowed"], 16) if state else 0
    except ValueError:
        return set()
    return {reason for bit, reason in SLOWED.items() if bits & bit}


def _status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
