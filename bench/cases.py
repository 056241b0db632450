"""What is timed: an operation on inputs of one size; suites of such cases, and the work that a case cannot avoid."""

import tomllib
from dataclasses import dataclass, field, replace

import numpy as np

from saccade.bench import models
from saccade.reference.palette import GRID, unique_colors
from saccade.testing.claims import DTYPES


@dataclass(frozen=True)
class Case:
    """An operation on inputs of one size.

    Attributes:
        operation: a public operation, a palette's "fit", or "model": a forward pass of a whole ``variant``.
        sizes: the length of every axis, by the letters of ``SIZES[operation]``.
        dtype: name of the inputs' dtype (a palette's are uint8 whatever it says).
        options: keyword options of the call.
        gradients: whether a forward pass with its gradients is timed, or a forward pass alone.
    """

    operation: str
    sizes: dict
    dtype: str = "float32"
    options: dict = field(default_factory=dict)
    gradients: bool = False

    @property
    def name(self):
        """The case in a few words, which name it in tables and files."""
        sizes = " ".join(f"{axis}{n}" for axis, n in self.sizes.items())
        options = [name if x is True else f"{name}={x}" for name, x in self.options.items()]
        return " ".join([self.operation, sizes, *options, self.dtype, *["gradients"] * self.gradients])

    def inputs(self, seed):
        """(arguments, options) as NumPy arrays drawn from ``seed``: dense, in C order, and never 0 throughout.

        ``residual=True`` becomes an array, the same for every seed, as options keep their numbers between calls.
        """
        rng, dtype = np.random.default_rng(seed), {str(one): one for one in DTYPES}[self.dtype]
        named = {"variant": self.options["variant"]} if self.operation == "model" else {}
        arguments, options = INPUTS[self.operation](rng, dtype, **self.sizes, **named), dict(self.options)
        if options.get("residual"):
            options["residual"] = np.random.default_rng(0).standard_normal(arguments[0].shape).astype(dtype)
        return arguments, options

    def work(self):
        """(floating-point operations, bytes) that no implementation does without.

        Matrix products alone are counted, 2 an element; with gradients, the products of both passes. Bytes are those
        of inputs, outputs and gradients, each once.
        """
        if self.operation == "model":
            products, elements = models.work(self.options["variant"], **self.sizes)
        else:
            products, elements = WORK[self.operation](**self.sizes)
        elements *= 2 if self.options.get("residual") else 1  # which goes in, as a sum comes out
        products *= _visible(self) * (3 if self.gradients else 1)
        itemsize = 1 if self.operation == "fit" else {str(one): one.itemsize for one in DTYPES}[self.dtype]
        return 2 * products, elements * itemsize * (2 if self.gradients else 1)


def _visible(case):
    """The share of a causal case's pairs that are to be computed."""
    if not case.options.get("causal"):
        return 1.0
    t, s = case.sizes.get("t", case.sizes.get("n")), case.sizes.get("s", case.sizes.get("n"))
    return sum(min(s, max(0, i + 1 + s - t)) for i in range(t)) / (t * s)


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
    "fit": _palette,
    "model": models.inputs,
}
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
    "fit": lambda n, k: (0, 3 * n),
}
SIZES = {
    "attention": "bhtsd", "qkv_attention": "bnhd", "layer_norm": "ne", "rms_norm": "ne", "gelu": "ne",
    "patch_embed": "bhwcpe", "softmax_cross_entropy": "nk", "linear_cross_entropy": "nek", "clip_loss": "ne",
    "siglip_loss": "ne", "fit": "nk", "model": "b",
}  # fmt: skip
FORWARD_ALONE = ("fit", "model")


def case(operation, *sizes, **options):
    """A ``Case`` from sizes in the order of ``SIZES``.

    Raises:
        ValueError: the operation is unknown, or it takes another number of sizes.
    """
    if operation not in SIZES:
        raise ValueError(f"bench: operation={operation!r}, expected one of {', '.join(SIZES)}")
    letters = SIZES[operation]
    if len(sizes) != len(letters) or min(sizes) < 1:
        raise ValueError(f"bench: {operation} of sizes {sizes}, expected {len(letters)} of at least 1: {letters}")
    if operation == "model":
        if "variant" not in options:
            raise ValueError("bench: model without a variant, expected one such as vit-B/16")
        models.config_of(options["variant"])
    return Case(operation, dict(zip(letters, map(int, sizes), strict=True)), options=options)


def _square(b, h, t, d, **options):
    return case("attention", b, h, t, t, d, **options)


VIT = (
    *(_square(*sizes) for sizes in (
        (8, 12, 50, 64), (8, 12, 197, 64), (8, 6, 197, 64), (4, 16, 257, 64), (4, 16, 257, 80), (4, 16, 257, 88),
        (2, 16, 257, 104), (4, 16, 577, 64), (2, 16, 730, 72),
    )),
    case("qkv_attention", 8, 197, 12, 64),
    case("patch_embed", 8, 224, 224, 3, 16, 768),
    case("layer_norm", 1576, 768),
    case("gelu", 1576, 3072),
    case("softmax_cross_entropy", 512, 1000),
)  # fmt: skip
CLIP = (
    _square(8, 8, 77, 64, causal=True),
    _square(8, 12, 77, 64, causal=True),
    *(case("clip_loss", n, 512) for n in (256, 1024)),
    case("siglip_loss", 1024, 512),
)
IGPT = (
    _square(1, 8, 1024, 64, causal=True),
    _square(1, 8, 1024, 128, causal=True),
    _square(1, 16, 2304, 96, causal=True),
    _square(1, 8, 4096, 64, causal=True),
    case("linear_cross_entropy", 4096, 512, 512),
    case("rms_norm", 4096, 512),
)
PALETTE = tuple(case("fit", 100_000, k, iterations=10) for k in (512, 256))
MODELS = tuple(
    case("model", b, variant=variant)
    for variant, b in (("vit-B/16", 1), ("vit-B/16", 8), ("vit-L/16", 1), ("clip-ViT-B/32", 8), ("imagegpt-S", 1))
)
GROWTH = (
    *(_square(1, 8, t, 64) for t in (128, 256, 512, 1024, 2048)),
    *(case("clip_loss", n, 512) for n in (64, 128, 256, 512, 1024)),
    *(case("fit", n, 512, iterations=5) for n in (10_000, 20_000, 40_000, 80_000)),
    *(case("patch_embed", 1, side, side, 3, 16, 768) for side in (112, 224, 448, 896)),
    *(case("model", b, variant="vit-Ti/16") for b in (1, 2, 4, 8, 16)),
)
SUITES = {
    "vit": VIT, "clip": CLIP, "igpt": IGPT, "palette": PALETTE, "whole-model": MODELS, "growth": GROWTH,
    "deck": VIT + CLIP + IGPT + PALETTE[:1],
}  # fmt: skip


def suite(name, operation=None, dtypes=("float32",), gradients=False):
    """The cases of a suite's name or TOML file, of some operations, by commas, if they are given, in each dtype.

    A TOML file has a table ``[[case]]`` each: operation, sizes (a list), and any options.

    Raises:
        ValueError: there is no such suite, or none of its cases is of that operation.
    """
    if name in SUITES:
        found = list(SUITES[name])
    elif str(name).endswith(".toml"):
        with open(name, "rb") as file:
            tables = tomllib.load(file).get("case", [])
        try:
            found = [case(one.pop("operation"), *one.pop("sizes"), **one) for one in tables]
        except KeyError as error:
            raise ValueError(f"bench: a case of {name} has no {error.args[0]}, expected operation and sizes") from None
    else:
        raise ValueError(f"bench: suite={name!r}, expected one of {', '.join(SUITES)}, or a .toml file")
    found = of_operations(found, operation)
    if not found:
        raise ValueError(f"bench: suite={name!r} has no case of operation={operation!r}")
    dtyped = [
        replace(one, dtype=dtype) for one in found for dtype in (dtypes if one.operation != "fit" else dtypes[:1])
    ]
    return [replace(one, gradients=gradients and one.operation not in FORWARD_ALONE) for one in dtyped]


def of_operations(found, names):
    """Those of some cases whose operation is among names by commas; all if none are given."""
    return [one for one in found if names is None or one.operation in names.split(",")]
