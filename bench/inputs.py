"""What cases are made of: for each operation its sizes, how inputs of them are drawn, and the work they are."""

import math

import numpy as np

from saccade.bench import models
from saccade.reference.palette import GRID, unique_colors


def _attention(rng, dtype, b, h, t, s, d):
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((b, h, t, d), (b, h, s, d), (b, h, s, d)))


def _rows(rng, dtype, n, e, vectors):
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((n, e), *((e,),) * vectors))


def _unit_rows(rng, dtype, n, e):
    x = rng.standard_normal((n, e))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)


def _pairs(rng, dtype, n, e, bias):
    wide = np.float64 if dtype == np.float64 else np.float32
    factors = (np.array(14.3, wide), *[np.array(-10.0, wide)] * bias)
    return _unit_rows(rng, dtype, n, e), _unit_rows(rng, dtype, n, e), *factors


def _patches(rng, dtype, b, h, w, c, p, e):
    images = rng.integers(0, 256, (b, h, w, c)).astype(np.uint8)
    return images, (rng.standard_normal((e, c, p, p)) / 16).astype(dtype), rng.standard_normal(e).astype(dtype)


def _palette(rng, dtype, n, k):
    """n distinct colours as photographs have them: many shades about a few hues."""
    hues = rng.integers(0, 256, (24, 3))
    pixels = np.clip(hues[rng.integers(0, 24, 2 * n)] + 32 * rng.standard_normal((2 * n, 3)), 0, 255).astype(np.uint8)
    colors, counts = unique_colors(pixels)
    if len(colors) < n:
        raise ValueError(f"bench: fit of {n} colours, expected at most {len(colors)}")
    some = np.sort(rng.choice(len(colors), n, replace=False))
    colors, counts = colors[some], counts[some]
    return colors, counts, GRID * colors[rng.choice(n, k, replace=False)].astype(np.int32)


def lengths(b, t):
    """Of b sequences with t tokens on average, from half of that to one and a half."""
    return np.rint(np.linspace(0.5 * t, 1.5 * t, b)).astype(np.int64)


def _packed(rng, dtype, b, t, h, d):
    return tuple(rng.standard_normal((int(lengths(b, t).sum()), h, d)).astype(dtype) for _ in range(3))


def _cumulative(b, t, **_):
    return {"cumulative_lengths": np.concatenate([[0], np.cumsum(lengths(b, t))])}


def _weights(rng, dtype, *shapes):
    """Matrices and vectors such that rows of standard normal numbers stay of about that size."""
    return tuple((rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(dtype) for shape in shapes)


def _linear(rng, dtype, n, e, f):
    return *_rows(rng, dtype, n, e, 0), *_weights(rng, dtype, (f, e), (f,))


def _mlp(rng, dtype, n, e, f):
    return *_rows(rng, dtype, n, e, 0), *_weights(rng, dtype, (f, e), (f,), (e, f), (e,))


def _images(rng, dtype, b, h, w, c, p=1):
    return (rng.standard_normal((b, h, w, c)).astype(dtype),)


def _convolution(rng, dtype, b, h, w, c, p, e):
    return *_images(rng, dtype, b, h, w, c), *_weights(rng, dtype, (e, c, p, p), (e,))


def _normalised(rng, dtype, b, h, w, c):
    images, vectors = _images(rng, dtype, b, h, w, c), rng.standard_normal((3, c))
    return *images, *(x.astype(dtype) for x in (vectors[0], rng.uniform(0.5, 2, c), *vectors[1:]))


def _convolution_work(b, h, w, c, p, e, stride=1, padding=0):
    out = b * math.prod((side + 2 * padding - p) // stride + 1 for side in (h, w)) * e
    return out * c * p * p, b * h * w * c + c * p * p * e + out


INPUTS = {
    "attention": _attention,
    "qkv_attention": lambda rng, dtype, b, n, h, d: (rng.standard_normal((b, n, 3, h, d)).astype(dtype),),
    "layer_norm": lambda rng, dtype, n, e: _rows(rng, dtype, n, e, 2),
    "rms_norm": lambda rng, dtype, n, e: _rows(rng, dtype, n, e, 1),
    "gelu": lambda rng, dtype, n, e: _rows(rng, dtype, n, e, 0),
    "patch_embed": _patches,
    "softmax_cross_entropy": lambda rng, dtype, n, k: (
        rng.standard_normal((n, k)).astype(dtype),
        rng.integers(0, k, n),
    ),
    "linear_cross_entropy": lambda rng, dtype, n, e, k: (
        rng.standard_normal((n, e)).astype(dtype),
        (rng.standard_normal((k, e)) / e**0.5).astype(dtype),
        rng.integers(0, k, n),
    ),
    "clip_loss": lambda rng, dtype, n, e: _pairs(rng, dtype, n, e, 0),
    "siglip_loss": lambda rng, dtype, n, e: _pairs(rng, dtype, n, e, 1),
    "varlen_attention": _packed,
    "linear": _linear,
    "mlp": _mlp,
    "embedding": lambda rng, dtype, n, k, e: (rng.integers(0, k, n), rng.standard_normal((k, e)).astype(dtype)),
    "l2_normalize": lambda rng, dtype, n, e: _rows(rng, dtype, n, e, 0),
    "sigmoid_cross_entropy": lambda rng, dtype, n, k: (
        rng.standard_normal((n, k)).astype(dtype),
        rng.integers(0, 2, (n, k)).astype(dtype),
    ),
    "conv2d": _convolution,
    "batch_norm": _normalised,
    "average_pool": _images,
    "fit": _palette,
    "model": models.inputs,
}
# options that are sizes
OPTIONS = {"varlen_attention": _cumulative, "average_pool": lambda p, **_: {"size": p}}
# for each operation: multiplications of its matrix products, and the elements that go in and come out
WORK = {
    "attention": lambda b, h, t, s, d: (2 * b * h * t * s * d, 2 * b * h * (t + s) * d),
    "qkv_attention": lambda b, n, h, d: (2 * b * h * n * n * d, 4 * b * n * h * d),
    "layer_norm": lambda n, e: (0, 2 * n * e),
    "rms_norm": lambda n, e: (0, 2 * n * e),
    "gelu": lambda n, e: (0, 2 * n * e),
    "patch_embed": lambda b, h, w, c, p, e: (b * h * w * c * e, b * h * w * c + (b * h * w // p**2 + c * p * p) * e),
    "softmax_cross_entropy": lambda n, k: (0, n * k),
    "linear_cross_entropy": lambda n, e, k: (n * e * k, (n + k) * e),
    "clip_loss": lambda n, e: (n * n * e, 2 * n * e),
    "siglip_loss": lambda n, e: (n * n * e, 2 * n * e),
    "varlen_attention": lambda b, t, h, d: (
        2 * h * d * int((lengths(b, t) ** 2).sum()),
        4 * h * d * int(lengths(b, t).sum()),
    ),
    "linear": lambda n, e, f: (n * e * f, n * e + e * f + n * f),
    "mlp": lambda n, e, f: (2 * n * e * f, 2 * (n * e + e * f)),
    "embedding": lambda n, k, e: (0, 2 * n * e),
    "l2_normalize": lambda n, e: (0, 2 * n * e),
    "sigmoid_cross_entropy": lambda n, k: (0, 2 * n * k),
    "conv2d": _convolution_work,
    "batch_norm": lambda b, h, w, c: (0, 2 * b * h * w * c),
    "average_pool": lambda b, h, w, c, p: (0, b * h * w * c + b * (h // p) * (w // p) * c),
    "fit": lambda n, k: (0, 3 * n),
}
SIZES = {
    "attention": "bhtsd", "qkv_attention": "bnhd", "layer_norm": "ne", "rms_norm": "ne", "gelu": "ne",
    "patch_embed": "bhwcpe", "softmax_cross_entropy": "nk", "linear_cross_entropy": "nek", "clip_loss": "ne",
    "siglip_loss": "ne", "varlen_attention": "bthd", "linear": "nef", "mlp": "nef",
    "embedding": "nke", "l2_normalize": "ne", "sigmoid_cross_entropy": "nk", "conv2d": "bhwcpe", "batch_norm": "bhwc",
    "average_pool": "bhwcp", "fit": "nk", "model": "b",
}  # fmt: skip
