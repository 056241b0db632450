"""The bars that this project has set itself: what is to be how much faster than whom, and whether it is.

``saccade bench --suite bars`` times the cases of those that one machine without a GPU can decide, and shows the others
as what they are: not measured yet, or not built. They were set for two cores with AVX-512 BF16. A figure is of warm
caches, from the ratios to the peer in the same run.
"""

from dataclasses import dataclass, replace

import numpy as np

from saccade.bench.cases import CLIP, IGPT, VIT, case

ATTENTION = tuple(one for one in VIT + CLIP + IGPT if one.operation == "attention")
NEEDS_GPU, NOT_BUILT, ELSEWHERE = (
    "not measured yet: it needs a GPU",
    "not built yet",
    "not measured by this command yet",
)
PROVIDERS = (
    "torch-sdpa", "torch-split-sdpa", "open-clip-loss", "torch-linear-cross-entropy", "faiss-kmeans",
    "torch-conv2d-patches", "torch-layer-norm", "torch-gelu", "saccade",
)  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """What is asked of some cases.

    Attributes:
        what: in words, with whom it is compared.
        cases: those that are timed; none if that is not possible.
        asked: (a statistic of ``STATISTICS``, its bound), every one of which is to hold.
        missing: why it has no figure.
    """

    what: str
    cases: tuple = ()
    asked: tuple = ()
    missing: str | None = None


def _ratios(rows, limits):
    return [row["ratio"]["warm"]["median"] for row in rows]


def _of_products(rows, limits):
    return [row["flops"] / row["seconds"]["warm"] / limits["gemm"][row["dtype"]] for row in rows]


def _mean(x):
    return float(np.exp(np.mean(np.log(x))))


# for each statistic: of the rows, and whether it is to be at most its bound, rather than at least
STATISTICS = {
    "geometric mean": (lambda *x: _mean(_ratios(*x)), False),
    "each": (lambda *x: min(_ratios(*x)), False),
    "% of the rate of matrix products": (lambda *x: 100 * min(_of_products(*x)), False),
    "MB more": (lambda rows, limits: max(row["peak memory"] for row in rows) / 2**20, True),
}


def _typed(cases, dtype, gradients=False):
    return tuple(replace(one, dtype=dtype, gradients=gradients) for one in cases)


def _long(cases):
    return tuple(one for one in cases if one.sizes["t"] >= 197)


def _losses(n):
    return _typed([case("clip_loss", n, 512)], "float32", True)


QKV = [case("qkv_attention", 8, 197, 12, 64)]
PATCHES = [case("patch_embed", 64, 224, 224, 3, p, 768) for p in (14, 16, 32)]
LINEAR = [case("linear_cross_entropy", 32768, e, 512) for e in (512, 1024, 1536)]
NORMS = [case("layer_norm", 1576, 768), case("layer_norm", 2308, 1024)]
GELUS = [case("gelu", 1576, 3072), case("gelu", 2308, 4096)]

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
    Bar("CLIP loss with gradients, 4,096 pairs, open_clip", _losses(4096), (("each", 1.3), ("MB more", 128))),
    Bar("CLIP loss with gradients, 16,384 pairs, open_clip", _losses(16384), (("each", 1.7), ("MB more", 128))),
    Bar("CLIP loss with gradients, 65,536 pairs", missing=ELSEWHERE),
    Bar("linear cross entropy, 512 classes, 32,768 tokens, torch's", _typed(LINEAR, "float32"), (("each", 1.3),)),
    Bar("patch embedding from uint8, 64 pictures of 224 x 224, torch's", _typed(PATCHES, "float32"), (("each", 1.8),)),
    Bar("layer norm, torch's", _typed(NORMS, "float32"), (("each", 1.0),)),
    Bar("GELU, torch's", _typed(GELUS, "float32"), (("each", 1.0),)),
    Bar("layer norm with a fused residual, torch's", missing=ELSEWHERE),
    Bar("palette of 512 colours from 1.46 million pixels, faiss and scikit-learn", missing=ELSEWHERE),
    Bar("palette encode, faiss and transformers", missing=ELSEWHERE),
    Bar("ViT-B/16 at 224, timm, torch.compile and ONNX Runtime", missing=ELSEWHERE),
    Bar("ImageGPT-S sampling with a cache, transformers", missing=ELSEWHERE),
    Bar("first call in a new process, at most 2 s; cold compile, at most 15 s", missing=ELSEWHERE),
    Bar("attention in Triton and CUDA C++, SDPA's kernels, FlexAttention, torch.compile", missing=NEEDS_GPU),
    Bar("CLIP loss on a GPU, open_clip and Inf-CL", missing=NEEDS_GPU),
    Bar("linear cross entropy on a GPU, Liger", missing=NEEDS_GPU),
    Bar("norms, patch embedding and palettes on a GPU", missing=NEEDS_GPU),
    Bar("ViT-B/16 on a GPU, timm under torch.compile", missing=NEEDS_GPU),
    Bar("loading checkpoints, transformers' from_pretrained", missing=ELSEWHERE),
    Bar("training steps, a plain PyTorch implementation", missing=ELSEWHERE),
    Bar("accuracies of the recipes on pictures that ship with scikit-learn", missing=ELSEWHERE),
)


def cases():
    """The cases that decide bars, each once."""
    return list({one.name: one for bar in BARS for one in bar.cases}.values())


def judged(results):
    """A row for each bar: (what, what is asked, the figures, whether it holds: "yes", "no" or why that is unknown)."""
    ours = {row["case"]: row for row in results["rows"] if row["provider"] == "saccade"}
    return [(bar.what, *_judged(bar, [ours.get(one.name) for one in bar.cases], results["limits"])) for bar in BARS]


def _judged(bar, rows, limits):
    if bar.missing:
        return "", "", bar.missing
    asked = ", ".join(f"{name} {'<=' if STATISTICS[name][1] else '>='} {bound:g}" for name, bound in bar.asked)
    timed = [row for row in rows if row is not None and row["verdict"] == "PASS" and row.get("ratio")]
    if len(timed) < len(rows):
        return asked, "", f"not measured: {len(rows) - len(timed)} of {len(rows)} cases without a time"
    found = [(STATISTICS[name][0](timed, limits), bound, STATISTICS[name][1]) for name, bound in bar.asked]
    holds = all(figure <= bound if at_most else figure >= bound for figure, bound, at_most in found)
    return asked, ", ".join(f"{figure:.3g}" for figure, _, _ in found), "yes" if holds else "no"
