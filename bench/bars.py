"""The bars that this project has set itself: what is to be how much faster than whom, and whether it is.

``saccade bench --suite bars`` times the cases of those that the device at hand can decide, asks ``probes`` for what
cases cannot give, and shows the others as what they are: of another device, or not measured by this command. Those for
processors were set for two cores with AVX-512 BF16, those for GPUs for one of an H200's class. Ratios are to the
fastest of the peers in the same run, of warm caches on processors, and of cold ones on GPUs.
"""

from dataclasses import dataclass, replace

import numpy as np

from saccade.bench.cases import CLIP, IGPT, VIT, case

ATTENTION = tuple(one for one in VIT + CLIP + IGPT if one.operation == "attention")
ELSEWHERE = "not measured by this command"
# whom each operation's cases are timed for, the base first
PROVIDERS = {
    "cpu": {
        "attention": ("torch-sdpa", "saccade"),
        "qkv_attention": ("torch-split-sdpa", "saccade"),
        "clip_loss": ("open-clip-loss", "saccade"),
        "linear_cross_entropy": ("torch-linear-cross-entropy", "saccade"),
        "patch_embed": ("torch-conv2d-patches", "saccade"),
        "layer_norm": ("torch-layer-norm", "saccade"),
        "gelu": ("torch-gelu", "saccade"),
        "model": ("timm-model", "timm-model-compiled", "onnxruntime-model", "saccade-torch", "saccade"),
    },
    "cuda": {
        "attention": (
            "torch-sdpa", "torch-sdpa-cudnn", "torch-sdpa-flash", "torch-sdpa-efficient", "torch-flex-attention",
            "saccade-torch",
        ),
        "qkv_attention": ("torch-split-sdpa", "torch-split-sdpa-compiled", "saccade-torch"),
        "clip_loss": ("open-clip-loss", "inf-cl", "saccade-torch"),
        "linear_cross_entropy": ("liger-linear-cross-entropy", "saccade-torch"),
        "patch_embed": ("torch-conv2d-patches", "saccade-torch"),
        "layer_norm": ("torch-layer-norm", "torch-layer-norm-compiled", "saccade-torch"),
        "model": ("timm-model", "timm-model-compiled", "saccade-torch"),
    },
}  # fmt: skip
CACHE = {"cpu": "warm", "cuda": "cold"}


@dataclass(frozen=True)
class Bar:
    """What is asked of some cases.

    Attributes:
        what: in words, with whom it is compared.
        cases: those that are timed; none if that is not possible.
        asked: (a statistic of ``STATISTICS``, its bound), every one of which is to hold.
        peers: providers; all that are timed beside ours if none are named.
        ours: whose figures they are.
        device: where it is decided.
        probe: the name of a function of ``probes`` that gives the figures.
        missing: why it has no figure.
    """

    what: str
    cases: tuple = ()
    asked: tuple = ()
    peers: tuple = ()
    ours: str = "saccade"
    device: str = "cpu"
    probe: str | None = None
    missing: str | None = None


def _mean(x):
    return float(np.exp(np.mean(np.log(x))))


def _rate(case):
    return case.row["flops"] / case.seconds


# for each statistic: of what was timed of each case, and whether it is to be at most its bound, rather than at least
STATISTICS = {
    "geometric mean": (lambda timed, limits: _mean([one.ratio for one in timed]), False),
    "each": (lambda timed, limits: min(one.ratio for one in timed), False),
    "% of the rate of matrix products": (
        lambda timed, limits: 100 * min(_rate(one) / limits["gemm"][one.row["dtype"]] for one in timed), False,
    ),
    "% of that rate, four products counted": (
        lambda timed, limits: 100 * min(4 / 3 * _rate(one) / limits["gemm"][one.row["dtype"]] for one in timed), False,
    ),
    "% of the rate of copies": (
        lambda timed, limits: 100 * min(one.row["bytes"] / one.seconds / limits["bandwidth"] for one in timed), False,
    ),
    "pictures a second": (lambda timed, limits: min(one.row["sizes"]["b"] / one.seconds for one in timed), False),
    "MB more on the GPU": (lambda timed, limits: max(one.row["gpu"]["peak memory"] for one in timed) / 2**20, True),
    "seconds": (None, True),  # this and what follows is measured by probes
    "MB more": (None, True),
    "times as fast": (None, False),
    "times as long": (None, True),
    "times as much": (None, True),
    "% right": (None, False),
    "points more": (None, False),
    "% fewer nats a pixel": (None, False),
}  # fmt: skip


def _typed(cases, dtype, gradients=False):
    return tuple(replace(one, dtype=dtype, gradients=gradients) for one in cases)


def _long(cases):
    return tuple(one for one in cases if one.sizes["t"] >= 197)


def _losses(n):
    return _typed([case("clip_loss", n, 512)], "float32", True)


def _models(b, dtype="float32"):
    return _typed([case("model", b, variant="vit-B/16")], dtype)


QKV = [case("qkv_attention", 8, 197, 12, 64)]
PATCHES = [case("patch_embed", 64, 224, 224, 3, p, 768) for p in (14, 16, 32)]
LINEAR = [case("linear_cross_entropy", 32768, e, 512) for e in (512, 1024, 1536)]
NORMS = [(1576, 768), (2308, 1024)]
GELUS = [case("gelu", 1576, 3072), case("gelu", 2308, 4096)]
FUSED = [case("layer_norm", *sizes, residual=True) for sizes in NORMS]

# of a batch and heads that fill a GPU
LENGTHS = [(50, {}), (77, {"causal": True}), (197, {}), (257, {}), (577, {}), (730, {})]
SHORT = [
    case("attention", round(16_000 / n), 16, n, n, d, **options)  # 256,000 queries
    for n, options in LENGTHS
    for d in (64, 72, 80, 88, 104)
]
PIXELS = [case("attention", 16, 16, n, n, d, causal=True) for n in (1024, 2304, 4096) for d in (64, 96, 128)]
MANY = [case("clip_loss", 32768, e) for e in (512, 1024)]
BATCHES = [case("layer_norm", 50432, 768, residual=True), case("layer_norm", 65792, 1024, residual=True)]
PACKED = [case("qkv_attention", 64, 197, 12, 64)]
ROOF = [one for one in SHORT if one.sizes["t"] in (197, 257) and one.sizes["d"] == 64]

BARS = (
    Bar("attention, float32, torch's SDPA", _typed(ATTENTION, "float32"), (("geometric mean", 1.4), ("each", 1.0))),
    Bar("attention, bfloat16, torch's SDPA", _typed(ATTENTION, "bfloat16"), (("geometric mean", 2.2), ("each", 1.4))),
    Bar(
        "attention with gradients, float32, torch's SDPA",
        _typed(ATTENTION, "float32", True),
        (("geometric mean", 1.4), ("each", 1.0)),
    ),
    Bar(
        "attention with gradients, bfloat16, torch's SDPA",
        _typed(ATTENTION, "bfloat16", True),
        (("geometric mean", 2.2), ("each", 1.0)),
    ),
    Bar(
        "attention of 197 and more, float32",
        _long(_typed(ATTENTION, "float32")),
        (("% of the rate of matrix products", 75),),
    ),
    Bar(
        "attention of 197 and more, bfloat16",
        _long(_typed(ATTENTION, "bfloat16")),
        (("% of the rate of matrix products", 50),),
    ),
    Bar("packed attention, float32, split, SDPA and merge", _typed(QKV, "float32"), (("each", 1.6),)),
    Bar("packed attention, bfloat16, split, SDPA and merge", _typed(QKV, "bfloat16"), (("each", 2.4),)),
    Bar("CLIP loss with gradients, 4,096 pairs, open_clip", _losses(4096), (("each", 1.3),)),
    Bar("CLIP loss with gradients, 16,384 pairs, open_clip", _losses(16384), (("each", 1.7),)),
    *(
        Bar(f"CLIP loss with gradients, {n:,} pairs", asked=(("MB more", 128),), probe=f"clip_loss_memory_{n}")
        for n in (4096, 16384, 65536)
    ),
    Bar("linear cross entropy, 512 classes, 32,768 tokens, torch's", _typed(LINEAR, "float32"), (("each", 1.3),)),
    Bar("patch embedding from uint8, 64 pictures of 224 x 224, torch's", _typed(PATCHES, "float32"), (("each", 1.8),)),
    Bar(
        "layer norm, torch's",
        _typed([case("layer_norm", *sizes) for sizes in NORMS], "float32"),
        (("each", 1.0),),
    ),
    Bar("GELU, torch's", _typed(GELUS, "float32"), (("each", 1.0),)),
    Bar("layer norm with a fused residual, torch's", _typed(FUSED, "float32"), (("each", 1.3),)),
    Bar("palette of 512 colours, photographs' pixels, faiss", asked=(("times as fast", 10),), probe="palette_faiss"),
    Bar(
        "palette of 512 colours, photographs' pixels counted on both sides, faiss with weights",
        asked=(("times as fast", 4),),
        probe="palette_faiss_weighted",
    ),
    Bar(
        "palette of 512 colours, photographs' pixels, scikit-learn's Lloyd",
        asked=(("times as fast", 60),),
        probe="palette_scikit_learn",
    ),
    Bar("palette encode, faiss", asked=(("times as fast", 15),), probe="encode_faiss"),
    Bar("palette encode, transformers' image processor", asked=(("times as fast", 100),), probe="encode_transformers"),
    Bar(
        "ViT-B/16 at 224, batch 1, as tensors, timm, compiled or not, and ONNX Runtime",
        _models(1),
        (("each", 1.05),),
        ours="saccade-torch",
        peers=("timm-model", "timm-model-compiled", "onnxruntime-model"),
    ),
    Bar(
        "ViT-B/16 at 224, batch 8, as tensors, timm, compiled or not, and ONNX Runtime",
        _models(8),
        (("each", 1.0),),
        ours="saccade-torch",
        peers=("timm-model", "timm-model-compiled", "onnxruntime-model"),
    ),
    Bar(
        "ViT-B/16 at 224, batch 1, as tensors of bfloat16, timm, compiled or not",
        _models(1, "bfloat16"),
        (("each", 1.05),),
        ours="saccade-torch",
        peers=("timm-model", "timm-model-compiled"),
    ),
    Bar(
        "ViT-B/16 at 224, batch 8, as tensors of bfloat16, timm, compiled or not",
        _models(8, "bfloat16"),
        (("each", 1.0),),
        ours="saccade-torch",
        peers=("timm-model", "timm-model-compiled"),
    ),
    Bar("ViT-B/16 at 224, batch 1 and 8, as NumPy arrays, timm", _models(1) + _models(8), (("each", 0.8),),
        peers=("timm-model",)),
    Bar("ImageGPT-S, 1,024 pixels drawn, batch 1, transformers", asked=(("times as fast", 2),), probe="sampling_1"),
    Bar("ImageGPT-S, 1,024 pixels drawn, batch 8, transformers", asked=(("times as fast", 2),), probe="sampling_8"),
    Bar("ImageGPT-S in bfloat16, 1,024 pixels drawn, batch 1, transformers in float32", asked=(("times as fast", 3),),
        probe="sampling_1_bfloat16"),
    Bar("ImageGPT-S in bfloat16, 1,024 pixels drawn, batch 8, transformers in float32", asked=(("times as fast", 3),),
        probe="sampling_8_bfloat16"),
    Bar("first call in a new process, compiled before", asked=(("seconds", 2),), probe="first_call"),
    Bar("first call of one operation, nothing compiled", asked=(("seconds", 15),), probe="cold_compile"),
    Bar("loading CLIP ViT-B/32, transformers' from_pretrained", asked=(("times as fast", 2),), probe="loading"),
    Bar("loading CLIP ViT-B/32, reading the file", asked=(("times as long", 1.2),), probe="loading_and_reading"),
    *(
        Bar(f"training step of {title}{of}, a plain PyTorch implementation", asked=(("times as fast", 1.2),),
            probe=f"training_{name}{suffix}")
        for name, title in (("vit", "ViT-B/16"), ("clip", "CLIP ViT-B/32"), ("imagegpt", "ImageGPT-S"))
        for of, suffix in (("", ""), (" in bfloat16", "_bfloat16"))
    ),
    Bar("memory of a CLIP's training step on 4,096 pairs, open_clip", asked=(("times as much", 0.7),),
        probe="procedures:clip_memory"),
    Bar("pictures read by two workers, those that ViT-B/16 learns from", asked=(("times as fast", 1.5),),
        probe="procedures:reading"),
    Bar("ViT on digits; an epoch at twice the resolution; ten of each by its frozen features",
        asked=(("% right", 98), ("points more", 0), ("% right", 85)), probe="procedures:digits_vit"),
    Bar("CLIP on digits, by an ensemble of prompts; one prompt", asked=(("% right", 95), ("points more", 0)),
        probe="procedures:digits_clip"),
    Bar("ImageGPT on crops of photographs, a bigram of left neighbours", asked=(("% fewer nats a pixel", 15),),
        probe="procedures:photographs_imagegpt"),
    Bar("thirty minutes of training, interrupted five times", missing=ELSEWHERE),
)  # fmt: skip
ON_GPU = (
    Bar(
        "attention, bfloat16, SDPA's kernels and FlexAttention",
        _typed(SHORT, "bfloat16"),
        (("geometric mean", 1.3), ("each", 1.0)),
    ),
    Bar(
        "attention with gradients, bfloat16, SDPA's kernels and FlexAttention",
        _typed(SHORT, "bfloat16", True),
        (("geometric mean", 1.2), ("each", 1.0)),
    ),
    Bar("attention of 197 and 257, d = 64", _typed(ROOF, "bfloat16"), (("% of the rate of copies", 70),)),
    Bar(
        "causal attention of 1,024 to 4,096, cuDNN's",
        _typed(PIXELS, "bfloat16"),
        (("each", 0.95),),
        peers=("torch-sdpa-cudnn",),
    ),
    Bar("packed attention, bfloat16, split, SDPA and merge", _typed(PACKED, "bfloat16"), (("each", 1.5),)),
    Bar(
        "CLIP loss with gradients, 32,768 pairs, open_clip",
        _typed(MANY, "bfloat16", True),
        (("each", 2.0), ("MB more on the GPU", 200), ("% of that rate, four products counted", 60)),
        peers=("open-clip-loss",),
    ),
    Bar(
        "CLIP loss with gradients, 32,768 pairs, Inf-CL",
        _typed(MANY, "bfloat16", True),
        (("each", 4.0),),
        peers=("inf-cl",),
    ),
    Bar(
        "linear cross entropy with gradients, 512 classes, Liger",
        _typed(LINEAR, "bfloat16", True),
        (("each", 1.2),),
    ),
    Bar("layer norm with a fused residual", _typed(BATCHES, "bfloat16"), (("% of the rate of copies", 85),)),
    Bar("patch embedding from uint8, torch's", _typed(PATCHES, "bfloat16"), (("each", 2.5),)),
    Bar(
        "ViT-B/16 at 224, batch 256, timm compiled",
        _models(256, "bfloat16"),
        (("each", 1.1), ("pictures a second", 12000)),
        peers=("timm-model-compiled",),
    ),
    Bar("one exact step of a palette over all 24-bit colours", missing=ELSEWHERE),
)
BARS += tuple(replace(bar, what=f"{bar.what}, on a GPU", device="cuda", ours="saccade-torch") for bar in ON_GPU)


@dataclass(frozen=True)
class Timed:
    """What was timed of a case: our row, its seconds, and its speed relative to the fastest of the peers."""

    row: dict
    seconds: float
    ratio: float | None


def cases(device="cpu"):
    """The cases that decide bars of a device, each once."""
    return list({one.name: one for bar in BARS if bar.device == device for one in bar.cases}.values())


def probes(device="cpu", operation=None):
    """The names of the probes that decide bars of a device; none if one operation alone is asked for."""
    return [bar.probe for bar in BARS if bar.device == device and bar.probe and operation is None]


def judged(results, probed=None, device="cpu"):
    """A row for each bar: (what, what is asked, the figures, whether it holds: "yes", "no" or why that is unknown).

    Args:
        results: of a run of ``cases(device)``.
        probed: {name: figure, or the reason that there is none} of probes.
        device: which was run.
    """
    return [(bar.what, *_judged(bar, results, probed or {}, device)) for bar in BARS]


def _judged(bar, results, probed, device):
    asked = ", ".join(f"{name} {'<=' if STATISTICS[name][1] else '>='} {bound:g}" for name, bound in bar.asked)
    if bar.missing:
        return asked, "", bar.missing
    if bar.device != device:
        return asked, "", f"not measured in this run, but with --device {bar.device}"
    if bar.probe:
        found = probed.get(bar.probe, "not asked for")
        if isinstance(found, str):
            return asked, "", f"not measured: {found}"
        figures = found if isinstance(found, list) else [found]
    else:
        timed = [_timed(bar, one, results["rows"], CACHE[device]) for one in bar.cases]
        if None in timed:
            return asked, "", f"not measured: {timed.count(None)} of {len(timed)} cases without a time"
        figures = [STATISTICS[name][0](timed, results["limits"]) for name, _ in bar.asked]
    holds = all(
        figure <= bound if STATISTICS[name][1] else figure >= bound
        for figure, (name, bound) in zip(figures, bar.asked, strict=True)
    )
    return asked, ", ".join(f"{figure:.3g}" for figure in figures), "yes" if holds else "no"


def _timed(bar, one, rows, cache):
    """``Timed`` of a case, or None if ours or every peer has no time. Ratios to the base make peers comparable."""
    speeds = {
        row["provider"]: row["ratio"][cache]["median"] if row["provider"] != row["base"] else 1.0
        for row in rows
        if row["case"] == one.name and row["verdict"] == "PASS" and row.get("ratio")
    }
    mine = [row for row in rows if row["case"] == one.name and row["provider"] == bar.ours]
    peers = [speed for name, speed in speeds.items() if name in bar.peers or (not bar.peers and name != bar.ours)]
    if bar.ours not in speeds or not peers:
        return None
    return Timed(mine[0], mine[0]["seconds"][cache], speeds[bar.ours] / max(peers))
