"""A case or two of every operation of the CuPy backend, by hand: what planted bugs show in."""

import numpy as np


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


RNG = np.random.default_rng(0)
COLORS, COUNTS = RNG.integers(0, 256, (300, 3)).astype(np.uint8), RNG.integers(1, 9, 300)
CENTERS = RNG.integers(0, 255 * 4096, (290, 3)).astype(np.int32)  # more than a tile of them
CENTERS = np.concatenate([CENTERS, CENTERS[:20]])  # and equals
CASES = {
    "attention": (
        (normal(1, 2, 6, 8), normal(1, 2, 9, 8), normal(1, 2, 9, 8)),
        {"causal": True, "mask": np.random.default_rng(0).random((6, 9)) < 0.7, "key_lengths": np.array([7])},
    ),
    "attention of 16 bits": (
        tuple(normal(1, 2, n, width).astype(np.float16) for n, width in ((70, 24), (100, 24), (100, 12))),
        {"causal": True, "mask": RNG.random((2, 70, 100)) < 0.7, "bias": normal(70, 100), "return_lse": True},
    ),
    "attention on Hopper, keys at once": (
        tuple(normal(1, 2, n, width).astype(np.float16) for n, width in ((140, 24), (197, 24), (197, 40))),
        {"return_lse": True},
    ),
    "attention on Hopper, three groups": (
        tuple(normal(1, 1, n, width).astype(np.float16) for n, width in ((260, 88), (300, 88), (300, 72))),
        {"causal": True, "return_lse": True},
    ),
    "attention on Hopper, blocks by turns": (
        tuple(normal(2, 1, n, width).astype(np.float16) for n, width in ((150, 64), (410, 64), (410, 64))),
        {"causal": True, "key_lengths": np.array([410, 300]), "return_lse": True},
    ),
    "qkv_attention": ((normal(2, 5, 3, 2, 8),), {"causal": True, "key_lengths": np.array([2, 5])}),
    "varlen_attention": (
        (normal(9, 2, 8), normal(9, 2, 8)[::-1], normal(9, 2, 8)),
        {"cumulative_lengths": np.array([0, 4, 4, 9]), "causal": True},
    ),
    "linear": ((normal(70, 6), normal(5, 6), normal(5)), {}),
    "patch_embed": ((normal(2, 4, 6, 3), normal(5, 3, 2, 2), normal(5)), {"mean": (0.5, 0.4, 1), "std": (1, 2, 3)}),
    "patch_embed of bytes": ((np.arange(72, dtype=np.uint8).reshape(1, 4, 6, 3), normal(5, 3, 2, 2)), {}),
    "softmax_cross_entropy": ((200 * normal(5, 130), np.array([3, 0, 129, 2, 7])), {"ignore_index": 2}),
    "softmax_cross_entropy of shares": (
        (normal(5, 6), RNG.random((5, 6)).astype(np.float32)),
        {"label_smoothing": 0.3, "reduction": "none"},
    ),
    "sigmoid_cross_entropy": ((normal(5, 130), RNG.random((5, 130)).astype(np.float32)), {}),
    "linear_cross_entropy": (
        (normal(70, 8), normal(130, 8), RNG.integers(0, 40, 70)),
        {"label_smoothing": 0.3, "ignore_index": 2},
    ),
    "clip_loss": ((normal(70, 8), normal(70, 8)[::-1], np.array(9.0, np.float32)), {}),
    "clip_loss of opposites": ((normal(5, 8), normal(5, 8)[::-1], -40.0), {}),
    "siglip_loss": ((normal(130, 8), normal(130, 8)[::-1], np.array(0.3, np.float32), np.array(1.5, np.float32)), {}),
    "conv2d": ((normal(3, 9, 8, 2), normal(4, 2, 3, 2), normal(4)), {"stride": 2, "padding": 1}),
    "batch_norm": ((normal(70, 5), normal(5), normal(5) ** 2, normal(6)[1:], normal(7)[2:]), {}),
    "average_pool": ((normal(2, 5, 7, 3),), {"size": 2}),
    "assign": ((COLORS, CENTERS), {}),
    "update": ((COLORS, COUNTS, np.arange(300) % 5, CENTERS), {}),
    "fit": ((COLORS, COUNTS, CENTERS), {"iterations": 3}),
    "embedding": ((np.array([3, 0, 3, 1, 3]), normal(6, 4)), {}),
    "layer_norm": ((normal(70, 130), normal(130), normal(130)), {"residual": normal(70, 130)}),
    "rms_norm": ((normal(3, 130), normal(130)), {}),
    "gelu": ((4 * normal(5, 7),), {"kind": "erf"}),
    "gelu by a sigmoid": ((4 * normal(5, 7),), {"kind": "sigmoid"}),
    "l2_normalize": ((normal(3, 130),), {}),
}
