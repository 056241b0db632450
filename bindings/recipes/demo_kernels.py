"""Section 5 of the demonstration: are the kernels right, and how fast are they on this machine?"""

import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np

from saccade.recipes import report


def cases(quick):
    """(operation, float32 arguments, options, the same in torch or None)."""
    import torch
    import torch.nn.functional as F

    rng = np.random.default_rng(0)
    n = 64 if quick else 197

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def contrastive(images, texts, scale):
        logits = scale * images @ texts.T
        labels = torch.arange(len(images))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def embed(images, weight, bias):
        pixels = images.permute(0, 3, 1, 2).float() / 255
        return F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)

    heads, pictures = (2, 6, n, 64), rng.integers(0, 256, (8, 64, 64, 3)).astype(np.uint8)
    labels = rng.integers(0, 512, 1024)
    x, scale, logits = normal(1576, 384), normal(384), normal(1024, 512)
    images, texts = normal(512, 128) / 11, normal(512, 128) / 11
    return [
        ("attention", (normal(*heads), normal(*heads), normal(*heads)), {}, F.scaled_dot_product_attention),
        ("patch_embed", (pictures, normal(192, 3, 16, 16), normal(192)), {}, embed),
        ("layer_norm", (x, scale, scale), {}, lambda x, s, b: F.layer_norm(x, (384,), s, b)),
        ("gelu", (normal(1576, 768),), {}, F.gelu),
        ("softmax_cross_entropy", (logits, labels), {}, F.cross_entropy),
        ("linear_cross_entropy", (normal(1024, 128), images, labels), {}, lambda h, w, y: F.cross_entropy(h @ w.T, y)),
        ("clip_loss", (images, texts, 14.3), {}, contrastive),
        ("siglip_loss", (images, texts, 10.0, -10.0), {}, None),
    ]  # fmt: skip


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


def verdict_of(operation, arguments, options):
    """The gate's verdict on the numba kernel, values and gradients, on a small part of the case."""
    import importlib

    from saccade.families import family_of
    from saccade.testing import gate

    module = importlib.import_module(f"saccade.kernels.numba.{family_of(operation)}")
    kernel = SimpleNamespace(**vars(module))
    small = {
        "attention": lambda q, k, v: (q[:1, :1, :33], k[:1, :1, :33], v[:1, :1, :33]),
        "patch_embed": lambda x, w, b: (x[:1], w[:16], b[:16]),
        "layer_norm": lambda x, s, b: (x[:20], s, b),
        "gelu": lambda x: (x[:20],),
        "softmax_cross_entropy": lambda x, y: (x[:20], y[:20]),
        "linear_cross_entropy": lambda h, w, y: (h[:20], w, y[:20]),
        "clip_loss": lambda a, b, s: (a[:20], b[:20], s),
        "siglip_loss": lambda a, b, s, t: (a[:20], b[:20], s, t),
    }[operation](*arguments)
    try:
        return gate.verdict(gate.assert_right(operation, kernel, small, options))
    except AssertionError:
        return "FAIL"


def import_seconds():
    """How long ``import saccade`` takes in a fresh process, and what frameworks it loaded: the best of three."""
    program = (
        "import sys, time; import numpy, ml_dtypes; start = time.perf_counter(); import saccade; "
        "print(time.perf_counter() - start, [m for m in ('torch', 'numba', 'triton', 'cupy') if m in sys.modules])"
    )
    command = [sys.executable, "-P", "-c", program]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(" ", 1) for _ in range(3)]
    return min(float(seconds) for seconds, _ in runs), runs[0][1].strip()


def section(quick, seed, progress):
    """(facts, HTML)."""
    import torch

    import saccade

    rows, facts = [], {}
    for operation, arguments, options, in_torch in progress(cases(quick)):
        function = getattr(saccade, operation)
        tensors = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in arguments]
        verdict = verdict_of(operation, arguments, options)
        fast = lambda: function(*arguments, **options)  # noqa: B023, E731  called at once
        slow = lambda: function(*arguments, **options, backend="reference")  # noqa: B023, E731
        against_reference = paired_ratio(fast, slow, 3 if quick else 7)
        against_torch = None
        if in_torch is not None:
            with torch.inference_mode():
                against_torch = paired_ratio(fast, lambda: in_torch(*tensors), 9 if quick else 21)  # noqa: B023
        facts[operation] = {"verdict": verdict, "against reference": against_reference, "against torch": against_torch}
        shown = "–" if against_torch is None else f"{against_torch:.2f} ×"
        rows.append((operation, "numba", verdict, f"{against_reference:.1f} ×", shown))
    seconds, loaded = import_seconds()
    facts["import saccade, seconds"] = seconds
    text = (
        "Verdict: values and gradients on a small part of each case, by the error gate. Speed: the median ratio of "
        "calls made in turn in this run, forward only, float32; above 1 the kernel is the faster one. Other programs "
        f"on this machine disturb these figures. import saccade takes {seconds:.2f} s beyond NumPy and loads of "
        f"torch, numba, triton and cupy: {loaded}."
    )
    header = ("operation", "backend", "oracle", "speed against the reference", "speed against torch")
    return facts, report.paragraph(text) + report.table(header, rows)
