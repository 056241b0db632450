"""Position embeddings: learned ones brought to another grid, and fixed sines and cosines."""

import numpy as np

from saccade.reference.precision import rounded, upcast


def interpolation_matrix(old, new, method):
    """The (new, old) matrix that resamples a line of ``old`` points to ``new``.

    "zoom":    linear, first and last points kept in place (``scipy.ndimage.zoom`` of order 1; google's ViT)
    "bicubic": Keys' cubic convolution with a = −3/4, pixel centres at half-integers, edge points repeated, no
               antialiasing (``torch.nn.functional.interpolate``; Hugging Face's ViT)
    "antialiased": the same with a = −1/2 and the cubic widened by old / new where points become fewer, over the points
               that there are (torch's with ``antialias``; timm and open_clip)
    """
    target = np.arange(new, dtype=np.float64)
    if method == "zoom":
        source = target * (old - 1) / max(new - 1, 1)
        return np.maximum(0, 1 - np.abs(source[:, None] - np.arange(old)))
    if method == "antialiased":
        center = (target + 0.5) * old / new - 0.5
        weights = _cubic(np.abs(center[:, None] - np.arange(old)) / max(old / new, 1), a=-0.5)
        return weights / weights.sum(1, keepdims=True)
    if method != "bicubic":
        raise ValueError(f"interpolation_matrix: {method=}, expected 'zoom', 'bicubic' or 'antialiased'")
    source = (target + 0.5) * old / new - 0.5
    matrix = np.zeros((new, old))
    for offset in range(-1, 3):
        point = np.floor(source).astype(int) + offset
        weight = _cubic(np.abs(source - point))
        np.add.at(matrix, (np.arange(new), np.clip(point, 0, old - 1)), weight)
    return matrix


def _cubic(distance, a=-0.75):
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def interpolate_positions(positions, grid, *, prefix=0, method="zoom"):
    """Learned positions (prefix + h·w, e) of a square grid, brought to ``grid`` = (h', w'): P' = R_h P R_wᵀ.

    The first ``prefix`` rows (the class token's) are kept as they are.
    """
    old = round((len(positions) - prefix) ** 0.5)
    if old * old != len(positions) - prefix:
        raise ValueError(f"interpolate_positions: {positions.shape=} with {prefix=} is not a square grid")
    points = upcast(positions)[prefix:].reshape(old, old, -1)
    down, across = (interpolation_matrix(old, new, method).astype(points.dtype) for new in grid)
    moved = np.einsum("yh,hwe,xw->yxe", down, points, across).reshape(grid[0] * grid[1], -1)
    return np.concatenate([positions[:prefix], rounded(moved, positions)])


def sincos2d_positions(height, width, e, temperature=10_000.0):
    """Fixed positions (height·width, e): [sin(x ω), cos(x ω), sin(y ω), cos(y ω)], ω_i = temperature^(−i / (e/4 − 1)).

    Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers" (MoCo v3), 2021, as in big_vision.
    """
    if e % 4 or e < 8:
        raise ValueError(f"sincos2d_positions: {e=}, expected a multiple of 4 of at least 8")
    omega = temperature ** -(np.arange(e // 4) / (e // 4 - 1))
    y, x = (axis.reshape(-1, 1) * omega for axis in np.mgrid[:height, :width].astype(np.float64))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
