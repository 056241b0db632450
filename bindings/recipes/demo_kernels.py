"""Section 5 of the demonstration: are the kernels right, and how fast are they on this machine?"""

import importlib
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

from saccade.families import FAMILIES
from saccade.recipes import report

# How large the cases are: to be judged, to be timed by --quick, and to be timed.
JUDGED, QUICK, FULL = range(3)


def cases(size):
    """For each operation (float32 arguments, options, the same in torch or None if it has no such thing)."""
    import torch
    import torch.nn.functional as F

    rng = np.random.default_rng(0)
    b, n, e, rows, k = ((1, 33, 48, 40, 60), (2, 64, 384, 512, 256), (2, 197, 384, 1024, 512))[size]

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def merged(qkv):
        return F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2)

    def embed(images, weight, bias):
        pixels = images.permute(0, 3, 1, 2).float() / 255
        return F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)

    def convolve(x, weight, bias):
        return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)

    def pool(x):
        return F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)

    def contrastive(images, texts, scale):
        logits = scale * images @ texts.T
        labels = torch.arange(len(images), device=images.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def pairwise(images, texts, scale, bias):
        signs = 2 * torch.eye(len(images), device=images.device) - 1
        return -F.logsigmoid(signs * (scale * images @ texts.T + bias)).sum() / len(images)

    heads, tokens = (b, 6, n, 64), normal(b * n, e)
    pictures, channels = rng.integers(0, 256, (b, 64, 64, 3)).astype(np.uint8), normal(b, 28, 28, 64)
    labels, targets = rng.integers(0, k, rows), (rng.random((rows, k)) < 0.5).astype(np.float32)
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (normal(rows, 128), normal(rows, 128)))
    gain, shift, ends = normal(e), normal(e), np.array([0, n // 3, n])
    statistics_of = normal(64), np.abs(normal(64)) + 1, normal(64), normal(64)
    fits = normal(4 * e, e) / 20, normal(4 * e), normal(e, 4 * e) / 20, normal(e)
    return {
        "attention": ((normal(*heads), normal(*heads), normal(*heads)), {}, F.scaled_dot_product_attention),
        "qkv_attention": ((normal(b, n, 3, 6, 64),), {}, merged),
        "varlen_attention": ((normal(n, 6, 64),) * 3, {"cumulative_lengths": ends}, None),
        "patch_embed": ((pictures, normal(192, 3, 16, 16), normal(192)), {}, embed),
        "linear": ((tokens, fits[0], fits[1]), {}, F.linear),
        "embedding": ((labels, normal(k, e)), {}, F.embedding),
        "layer_norm": ((tokens, gain, shift), {}, lambda x, s, b: F.layer_norm(x, s.shape, s, b)),
        "rms_norm": ((tokens, gain), {}, lambda x, s: F.rms_norm(x, s.shape, s, 1e-5)),
        "gelu": ((normal(b * n, 4 * e),), {}, F.gelu),
        "mlp": ((tokens, *fits), {}, lambda x, a, b, c, d: F.linear(F.gelu(F.linear(x, a, b)), c, d)),
        "l2_normalize": ((tokens,), {}, lambda x: F.normalize(x, dim=-1)),
        "conv2d": ((channels, normal(64, 64, 3, 3) / 20, normal(64)), {"padding": 1}, convolve),
        "batch_norm": ((channels, *statistics_of), {}, None),
        "average_pool": ((channels,), {"size": 2}, pool),
        "softmax_cross_entropy": ((normal(rows, k), labels), {}, F.cross_entropy),
        "sigmoid_cross_entropy": (
            (normal(rows, k), targets), {},
            lambda x, y: F.binary_cross_entropy_with_logits(x, y, reduction="sum") / len(x),
        ),
        "linear_cross_entropy": (
            (normal(rows, 128), normal(k, 128), labels), {}, lambda h, w, y: F.cross_entropy(h @ w.T, y)
        ),
        "clip_loss": ((images, texts, 14.3), {}, contrastive),
        "siglip_loss": ((images, texts, 10.0, -10.0), {}, pairwise),
    }  # fmt: skip


def backends():
    """What to run: (backend, framework) of those alive here, and (backend, reason) of the others."""
    from saccade import environment
    from saccade.testing.frameworks import Framework

    frameworks = {"numba": Framework("numpy"), "triton": Framework("torch", "cuda"), "cupy": Framework("cupy")}
    found = environment.backends()
    alive = [(name, framework) for name, framework in frameworks.items() if found[name][1] is None]
    return alive, [(name, found[name][1]) for name in frameworks if found[name][1] is not None]


def verdict_of(operation, module, framework):
    """The gate's verdict on a backend's kernel, values and gradients, on a small case."""
    from saccade.testing import gate
    from saccade.testing.frameworks import adapted

    arguments, options, _ = cases(JUDGED)[operation]
    try:
        return gate.verdict(gate.assert_right(operation, adapted(module, framework), arguments, options))
    except AssertionError:
        return "FAIL"


def paired_ratio(first, second, rounds):
    """How many times longer ``second`` takes: the median of ratios of calls made in turn, both warmed up."""
    first()
    second()
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return statistics.median(ratios)


def speeds(operation, backend, framework, quick):
    """How many times longer than the kernel take the reference (on the CPU), and torch on the kernel's device."""
    import torch

    import saccade

    arguments, options, in_torch = cases(QUICK if quick else FULL)[operation]
    function, given = getattr(saccade, operation), framework.put(arguments)

    def fast():
        function(*given, **options, backend=backend)
        framework.wait()

    against_reference = paired_ratio(fast, lambda: function(*arguments, **options, backend="reference"), 3)
    if in_torch is None:
        return against_reference, None
    device = "cpu" if framework.name == "numpy" else "cuda"
    tensors = [torch.from_numpy(x).to(device) if isinstance(x, np.ndarray) else x for x in arguments]

    def theirs():
        in_torch(*tensors)
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        return against_reference, paired_ratio(fast, theirs, 9 if quick else 31)


def import_seconds():
    """How long ``import saccade`` takes in a fresh process, NumPy included, and what frameworks it loaded: the best
    of five."""
    program = (
        "import sys, time; start = time.perf_counter(); import saccade; "
        "print(time.perf_counter() - start, [m for m in ('torch', 'numba', 'triton', 'cupy') if m in sys.modules])"
    )
    command = [sys.executable, "-P", "-c", program]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(" ", 1) for _ in range(5)]
    return min(float(seconds) for seconds, _ in runs), runs[0][1].strip()


def section(quick, seed, progress):
    """(facts, HTML)."""
    alive, others = backends()
    operations = {operation: family for family, names in FAMILIES.items() for operation in names}
    rows, found = [], {}
    for operation in progress(list(operations)):
        for backend, framework in alive:
            module = importlib.import_module(f"saccade.kernels.{backend}.{operations[operation]}")
            if not hasattr(module, operation):
                continue
            verdict = verdict_of(operation, module, framework)
            slower, theirs = speeds(operation, backend, framework, quick)
            name = operation if backend == "numba" else f"{operation}, {backend}"
            found[name] = {"verdict": verdict, "against reference": slower, "against torch": theirs}
            rows.append((operation, backend, verdict, f"{slower:.1f} ×", "–" if theirs is None else f"{theirs:.2f} ×"))
    seconds, loaded = import_seconds()
    facts: dict[str, Any] = {"operations": found, "import saccade, seconds": seconds}
    text = (
        "Verdict: values and gradients on a small case, by the error gate. Speed: the median ratio of calls made in "
        "turn in this run, forward only, float32; above 1 the kernel is the faster one. Other programs on this "
        f"machine disturb these figures. import saccade takes {seconds:.2f} s and loads of torch, numba, triton and "
        f"cupy: {loaded}."
    )
    header = ("operation", "backend", "oracle", "speed against the reference", "speed against torch")
    absent = "".join(report.paragraph(f"Not alive here: {name}: {reason}.") for name, reason in others)
    return facts, report.paragraph(text) + report.table(header, rows) + absent
