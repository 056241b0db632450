"""What the machine itself can do: the rate of its matrix products in each dtype, and of copies."""

import numpy as np

from saccade.kernels.numba import matrices

SIDES = {"cpu": 2048, "cuda": 8192}
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}


def gemm_rate(dtype, threads, device):
    """Floating-point operations a second of products of (n, n) matrices, n of ``SIDES``: the best of several.

    By torch or else NumPy, which has no products of 16-bit numbers: without torch their rate is float32's; or by our
    own kernels on processors where those are faster. On a GPU those of float32 are float32's, not TF32's.
    """
    rate = _rate_of_libraries(dtype, threads, device)
    if device.name != "cpu" or dtype not in ("float32", "float64") or not matrices.OWN:
        return rate
    n = SIDES["cpu"]
    a = np.random.default_rng(0).standard_normal((n, n)).astype(dtype)
    return max(rate, 2 * n**3 / _best(lambda: matrices.own_matmul(a, a, a.dtype), device))


def _rate_of_libraries(dtype, threads, device):
    n = SIDES[device.name]
    try:
        import torch
    except ModuleNotFoundError:
        a = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32 if dtype != "float64" else dtype)
        return 2 * n**3 / _best(lambda: a @ a, device)
    torch.set_num_threads(threads)
    a = torch.randn(n, n, dtype=getattr(torch, dtype), device=device.name)
    with torch.inference_mode():
        return 2 * n**3 / _best(lambda: a @ a, device)


def bandwidth(device):
    """Bytes a second that a copy of ``COPIED`` bytes reads and writes."""
    size = COPIED[device.name]
    if device.name == "cpu":
        source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
        return 2 * size / _best(lambda: np.copyto(target, source), device)
    import torch

    source = torch.ones(size, dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best(call, device, repeats=7):
    return min(device.seconds(call)[1] for _ in range(repeats))


def best(several):
    """The best of several that were ``measured``: what the machine could do when nothing else held it up."""
    gemm = {dtype: max(one["gemm"][dtype] for one in several) for dtype in several[0]["gemm"]}
    return {"bandwidth": max(one["bandwidth"] for one in several), "gemm": gemm}


def measured(dtypes, threads, device):
    """{"bandwidth": bytes/s, "gemm": {dtype: flop/s}}."""
    return {"bandwidth": bandwidth(device), "gemm": {dtype: gemm_rate(dtype, threads, device) for dtype in dtypes}}
