"""What the machine itself can do: the rate of its matrix products in each dtype, and of copies."""

import time

import numpy as np

SIDE = 2048
COPIED = 1 << 28


def gemm_rate(dtype, threads):
    """Floating-point operations a second of (2048, 2048) products: the best of several, by torch or else NumPy.

    NumPy has no products of 16-bit numbers: without torch their rate is float32's.
    """
    try:
        import torch
    except ModuleNotFoundError:
        a = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32 if dtype != "float64" else dtype)
        return 2 * SIDE**3 / _best(lambda: a @ a)
    torch.set_num_threads(threads)
    a = torch.randn(SIDE, SIDE, dtype=getattr(torch, dtype))
    with torch.inference_mode():
        return 2 * SIDE**3 / _best(lambda: a @ a)


def bandwidth():
    """Bytes a second that a copy of 256 MB reads and writes."""
    source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)
    return 2 * COPIED / _best(lambda: np.copyto(target, source))


def _best(call, repeats=7):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def best(several):
    """The best of several that were ``measured``: what the machine could do when nothing else held it up."""
    gemm = {dtype: max(one["gemm"][dtype] for one in several) for dtype in several[0]["gemm"]}
    return {"bandwidth": max(one["bandwidth"] for one in several), "gemm": gemm}


def measured(dtypes, threads):
    """{"bandwidth": bytes/s, "gemm": {dtype: flop/s}}."""
    return {"bandwidth": bandwidth(), "gemm": {dtype: gemm_rate(dtype, threads) for dtype in dtypes}}
