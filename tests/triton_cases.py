"""Inputs that the Triton kernels are judged on, interpreted or on a GPU."""

import ml_dtypes
import numpy as np
import torch

from saccade.testing import gate
from saccade.testing.claims import Claims

# what a tensor can be: torch has no misaligned and no read-only arrays
TENSORS = Claims(layouts=("dense", "reversed axes", "every other", "sliced", "broadcast"))


def _attention(dtype, t, s, d, e=None, b=2, h=2, mask=None, bias=None, **options):
    """A maker of inputs, so that a case costs nothing until it runs; ``mask`` and ``bias`` are shapes."""

    def make():
        rng = np.random.default_rng([t, s, d])
        shapes = (b, h, t, d), (b, h, s, d), (b, h, s, d if e is None else e)
        made = dict(options)
        if mask is not None:
            made["mask"] = (rng.random(mask) < 0.6) & (rng.random((*mask[:-1], 1)) < 0.7)  # some rows see nothing
        if bias is not None:
            made["bias"] = rng.standard_normal(bias).astype(dtype)
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes), made

    return make


F16, BF16, F32, F64 = np.float16, ml_dtypes.bfloat16, np.float32, np.float64
ATTENTION = {
    "one query, one key": _attention(F32, 1, 1, 1, return_lse=True),
    "a block and one": _attention(BF16, 65, 65, 72, causal=True),
    "a block less one": _attention(F16, 63, 127, 80, causal=True, return_lse=True),
    "more queries than keys, causal": _attention(F32, 71, 40, 24, causal=True, return_lse=True),
    "more keys than queries, causal": _attention(F64, 40, 71, 24, causal=True, return_lse=True),
    "wide heads": _attention(F32, 17, 33, 104, e=88, h=1),
    "narrow values": _attention(BF16, 33, 70, 64, e=5, h=1, return_lse=True),
    "wide values": _attention(F16, 33, 70, 8, e=72, h=1),
    "a scale that float32 rounds": _attention(F64, 20, 30, 72, scale=0.1, return_lse=True),
    "a negative scale": _attention(F32, 20, 30, 16, scale=-0.5),
    "rows that see nothing": _attention(F32, 66, 70, 16, mask=(2, 1, 66, 70), return_lse=True),
    "a mask for all": _attention(BF16, 66, 70, 16, mask=(70,), causal=True),
    "a mask of heads and lengths": _attention(
        F16, 33, 66, 16, mask=(2, 33, 1), key_lengths=np.array([66, 13], np.int32)
    ),
    "a whole bias": _attention(F32, 37, 67, 16, bias=(2, 2, 37, 67), causal=True, return_lse=True),
    "a bias of heads": _attention(BF16, 37, 67, 16, bias=(2, 1, 1), return_lse=True),
    "a bias of queries": _attention(F16, 37, 67, 16, bias=(37, 1), key_lengths=np.array([5, 67]), return_lse=True),
    "a bias of keys, a mask": _attention(F64, 37, 67, 16, bias=(1, 1, 1, 67), mask=(37, 67)),
    "a bias of one": _attention(F32, 37, 67, 16, bias=(), causal=True, return_lse=True),
    "no key to read": _attention(F32, 5, 6, 8, key_lengths=np.array([0, 6]), return_lse=True),
    "no keys": _attention(F32, 5, 0, 8, return_lse=True),
    "no queries": _attention(F32, 0, 5, 8, bias=(5,)),
    "no items": _attention(F32, 5, 5, 8, b=0, bias=(5, 5)),
    "no values": _attention(F32, 5, 6, 8, e=0, return_lse=True),
}


def _cross_entropy(dtype, n, k, ignored=(), soft=False, **options):
    def make():
        rng = np.random.default_rng([n, k])
        labels = rng.integers(0, k, n)
        labels[list(ignored)] = options.get("ignore_index", -100)
        if soft:
            labels = rng.dirichlet(np.ones(k), n).astype(dtype)
        return (rng.standard_normal((n, k)).astype(dtype), labels), options

    return make


CROSS_ENTROPY = {
    "a block and one": _cross_entropy(BF16, 3, 1025, ignored=(1,)),
    "a block less one": _cross_entropy(F16, 3, 1023, reduction="sum"),
    "smoothed": _cross_entropy(F32, 7, 1100, ignored=(0, 6), label_smoothing=0.1),
    "a smoothing that float32 rounds": _cross_entropy(F64, 7, 37, label_smoothing=0.1, reduction="none"),
    "smoothed half way": _cross_entropy(F16, 5, 37, label_smoothing=0.5, ignored=(2,), reduction="none"),
    "soft": _cross_entropy(F32, 5, 37, soft=True),
    "soft and smoothed": _cross_entropy(BF16, 5, 1100, soft=True, label_smoothing=0.2, reduction="none"),
    "soft in float64": _cross_entropy(F64, 5, 37, soft=True, label_smoothing=0.2, reduction="sum"),
    "another ignored index": _cross_entropy(F32, 5, 37, ignored=(1, 2), ignore_index=3),
    "nothing counts": _cross_entropy(F32, 3, 5, ignored=(0, 1, 2)),
    "no rows": _cross_entropy(F32, 0, 5, reduction="sum"),
}


def _arrays(dtype, *shapes, **options):
    """A maker of normal numbers; options that are shapes become arrays, too."""

    def make():
        rng = np.random.default_rng(len(shapes))
        arguments = tuple(None if one is None else rng.standard_normal(one).astype(dtype) for one in shapes)
        drawn = {name: rng.standard_normal(x).astype(dtype) for name, x in options.items() if isinstance(x, tuple)}
        return arguments, {**options, **drawn}

    return make


def _packed(dtype, lengths, d, e=None, h=2, **options):
    """Sequences end to end."""

    def make():
        rng, n = np.random.default_rng(lengths), sum(lengths)
        arrays = tuple(rng.standard_normal((n, h, one)).astype(dtype) for one in (d, d, d if e is None else e))
        return arrays, {"cumulative_lengths": np.cumsum([0, *lengths]).astype(np.int32), **options}

    return make


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


# the operation, then what is awkward about it
def _pictures(dtype, b, grid, p, c, e, uint8=True, bias=True, **options):
    """Images of so many patches down and across, a weight and a bias."""

    def make():
        rng = np.random.default_rng([b, *grid, p])
        shape = b, grid[0] * p, grid[1] * p, c
        images = rng.integers(0, 256, shape).astype(np.uint8) if uint8 else rng.standard_normal(shape).astype(dtype)
        weight = rng.standard_normal((e, c, p, p)).astype(dtype)
        return (images, weight, rng.standard_normal(e).astype(dtype) if bias else None), options

    return make


def _pairs(dtype, n, e, *factors, similar=False):
    """Embeddings of n pairs and the factors as arrays, or as numbers if they are None's; ``similar``: all but equal."""

    def make():
        rng = np.random.default_rng([n, e])
        images, texts = rng.standard_normal((2, n, e)) / np.sqrt(e)
        texts = images + texts / 100 if similar else texts
        return (images.astype(dtype), texts.astype(dtype), *factors), {}

    return make


def _classes(dtype, n, k, e, ignored=(), **options):
    """Hidden states, a weight and labels."""

    def make():
        rng = np.random.default_rng([n, k, e])
        labels = rng.integers(0, k, n)
        labels[list(ignored)] = options.get("ignore_index", -100)
        return (rng.standard_normal((n, e)).astype(dtype), rng.standard_normal((k, e)).astype(dtype), labels), options

    return make


def _number(x, dtype=F32):
    return np.array(x, dtype)


CASES = {
    "varlen_attention, blocks and one": _packed(BF16, [65, 1, 0, 64, 3], 72),
    "varlen_attention, causal": _packed(F32, [0, 130, 17], 24, causal=True),
    "varlen_attention, wide values, a scale": _packed(F16, [3, 70], 8, e=72, scale=-0.3),
    "varlen_attention, one that is long": _packed(F64, [100], 16),
    "varlen_attention, none": _packed(F32, [0, 0], 16),
    "layer_norm, a tile of rows and one": _arrays(BF16, (17, 197), (197,), (197,)),
    "layer_norm, rows a number longer than a tile's": _arrays(F16, (3, 1025), (1025,), (1025,), residual=(3, 1025)),
    "layer_norm, one number a row": _arrays(F32, (5, 1), (1,), None, residual=(5, 1), eps=0.1),
    "layer_norm, an eps that float32 rounds": _arrays(F64, (2, 3, 72), (72,), None, eps=0.1),
    "layer_norm, the longest rows": _arrays(F32, (2, 16384), (16384,), (16384,)),
    "layer_norm, no rows": _arrays(F32, (0, 8), (8,), (8,), residual=(0, 8)),
    "rms_norm, a tile of rows less one": _arrays(BF16, (15, 72), (72,)),
    "rms_norm, rows a number longer than a tile's": _arrays(F32, (5, 257), (257,), residual=(5, 257)),
    "rms_norm, no rows": _arrays(F64, (0, 8), (8,), residual=(0, 8)),
    "gelu, a block and one": _arrays(BF16, (5, 205), kind="erf"),
    "gelu, a block less one": _arrays(F16, (3, 341), kind="tanh"),
    "gelu, less than a block": _arrays(F32, (3, 7), kind="sigmoid"),
    "gelu, one number": _arrays(F64, (1,), kind="erf"),
    "gelu, nothing": _arrays(F32, (0, 7), kind="erf"),
    "l2_normalize, rows a number longer than a tile's": _arrays(BF16, (3, 1025)),
    "l2_normalize, rows shorter than eps": _arrays(F32, (17, 3), eps=2.0),
    "l2_normalize, no rows": _arrays(F16, (0, 3)),
    "qkv_attention, a block and one": _arrays(F16, (2, 65, 3, 2, 72), causal=True),
    "qkv_attention, bfloat16": _arrays(BF16, (2, 21, 3, 2, 40)),
    "qkv_attention, no tokens": _arrays(F32, (2, 0, 3, 2, 8)),
    "patch_embed, a tile and one": _pictures(F16, 3, (43, 1), 2, 3, 129, **IMAGENET),
    "patch_embed, a tile less one": _pictures(F32, 1, (7, 9), 3, 4, 63, uint8=False, mean=(0.1, 0.2, 0.3, 0.4)),
    "patch_embed, numbers that float32 rounds": _pictures(F64, 2, (3, 5), 4, 3, 37, bias=False, **IMAGENET),
    "patch_embed, floating point that is normalised": _pictures(F64, 2, (3, 5), 4, 3, 37, uint8=False, **IMAGENET),
    "patch_embed, one pixel a patch": _pictures(F32, 2, (5, 13), 1, 1, 5, uint8=False, bias=False),
    "patch_embed, bfloat16": _pictures(BF16, 2, (3, 5), 4, 3, 37, **IMAGENET),
    "patch_embed, no images": _pictures(F32, 0, (2, 2), 2, 3, 5),
    "sigmoid_cross_entropy, a block and one": _arrays(F16, (3, 1025), (3, 1025), reduction="none"),
    "sigmoid_cross_entropy, no rows": _arrays(F32, (0, 5), (0, 5), reduction="sum"),
    "clip_loss, a tile and one": _pairs(F16, 129, 72, _number(14.3)),
    "clip_loss, a tile less one": _pairs(F32, 63, 24, _number(100.0)),
    "clip_loss, a scale that float32 rounds": _pairs(F64, 37, 8, _number(0.1, F64)),
    "clip_loss, a negative scale that is a number": _pairs(F32, 65, 8, -3.0),
    "clip_loss, bfloat16": _pairs(BF16, 40, 24, _number(14.3)),
    "clip_loss, long rows": _pairs(F32, 33, 130, _number(14.3)),
    "clip_loss, one pair": _pairs(F32, 1, 8, _number(14.3)),
    "siglip_loss, a tile and one": _pairs(F16, 129, 72, _number(10.0), _number(-10.0)),
    "siglip_loss, all but certain": _pairs(F32, 70, 33, _number(60.0), _number(-20.0), similar=True),
    "siglip_loss, factors that float32 rounds": _pairs(F64, 37, 8, _number(0.1, F64), _number(-0.3, F64)),
    "siglip_loss, bfloat16": _pairs(BF16, 40, 24, _number(10.0), _number(-10.0)),
    "siglip_loss, numbers": _pairs(F32, 65, 8, 3.0, -1.0),
    "linear_cross_entropy, a tile and one": _classes(F16, 129, 130, 40, ignored=(1, 128)),
    "linear_cross_entropy, a tile less one": _classes(F32, 63, 65, 33, reduction="sum"),
    "linear_cross_entropy, smoothed": _classes(F32, 70, 100, 24, ignored=(0,), label_smoothing=0.1, reduction="none"),
    "linear_cross_entropy, smoothed half way": _classes(F64, 20, 37, 8, label_smoothing=0.5),
    "linear_cross_entropy, bfloat16": _classes(BF16, 40, 50, 24, label_smoothing=0.1),
    "linear_cross_entropy, one class": _classes(F32, 5, 1, 8, label_smoothing=0.1, reduction="none"),
    "linear_cross_entropy, another ignored index": _classes(F32, 5, 7, 8, ignored=(1, 2), ignore_index=3),
    "linear_cross_entropy, nothing counts": _classes(F32, 3, 5, 8, ignored=(0, 1, 2)),
    "linear_cross_entropy, no rows": _classes(F32, 0, 5, 8, reduction="sum"),
}


def check_far_keys(module, device):
    """Keys so far apart that the offset of the last, but no stride, exceeds 2³¹; most of the 4 GB are never touched."""
    far = torch.empty(2**31 + 128, dtype=torch.float16, device=device).as_strided((1, 1, 33, 8), (0, 0, 2**26, 1))
    rng = np.random.default_rng(0)
    query, near = (rng.standard_normal(shape).astype(np.float16) for shape in ((1, 1, 3, 8), (1, 1, 33, 8)))
    far.copy_(torch.from_numpy(near))
    out = module.attention(torch.from_numpy(query).to(device), far, far).cpu().numpy()
    gate.assert_judged(gate.judge("attention", out, None, (query, near, near)), "attention", (query, near, near))


def check_lowest_bias(module, device):
    """Masks made of the lowest finite number: a row that sees nothing else attends to all alike."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((1, 2, 5, 8)).astype(np.float32) for _ in range(3))
    bias = np.where(rng.random((5, 5)) < 0.5, 0, np.finfo(np.float32).min).astype(np.float32)
    bias[1], bias[2] = np.finfo(np.float32).min, -1e10
    tensors = [torch.from_numpy(x).to(device) for x in (query, key, value, bias)]
    out, saved = module.attention_forward(*tensors[:3], bias=tensors[3])
    judged = gate.judge("attention", out.cpu().numpy(), None, (query, key, value), {"bias": bias})
    gate.assert_judged(judged, "attention", (query, key, value), {"bias": bias})
    for gradient in module.attention_backward(saved, torch.ones_like(out)):
        assert gradient.isfinite().all()
