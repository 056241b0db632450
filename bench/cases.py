"""What is timed: an operation on inputs of one size; suites of such cases, and the work that a case cannot avoid."""

import tomllib
from dataclasses import dataclass, field, replace

import numpy as np

from saccade.bench import models
from saccade.bench.inputs import INPUTS, OPTIONS, SIZES, WORK, lengths
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
        options |= OPTIONS.get(self.operation, lambda **_: {})(**self.sizes)
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
            strided = {name: self.options[name] for name in ("stride", "padding") if name in self.options}
            products, elements = WORK[self.operation](**self.sizes, **strided)
        elements *= 2 if self.options.get("residual") else 1  # which goes in, as a sum comes out
        products *= _visible(self) * (3 if self.gradients else 1)
        itemsize = 1 if self.operation == "fit" else {str(one): one.itemsize for one in DTYPES}[self.dtype]
        return 2 * products, elements * itemsize * (2 if self.gradients else 1)


def _visible(case):
    """The share of a causal case's pairs that are to be computed."""
    if not case.options.get("causal"):
        return 1.0
    if case.operation == "varlen_attention":
        n = lengths(case.sizes["b"], case.sizes["t"])
        return float((n * (n + 1) / 2).sum() / (n * n).sum())
    t, s = case.sizes.get("t", case.sizes.get("n")), case.sizes.get("s", case.sizes.get("n"))
    return sum(min(s, max(0, i + 1 + s - t)) for i in range(t)) / (t * s)


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
# what whole models have besides, and no suite of theirs times
PARTS = (
    case("varlen_attention", 8, 197, 12, 64),
    case("linear", 1576, 768, 2304),
    case("mlp", 1576, 384, 1536),
    case("embedding", 4096, 512, 512),
    case("l2_normalize", 4096, 512),
    case("sigmoid_cross_entropy", 512, 1000),
    case("conv2d", 4, 56, 56, 64, 3, 64, padding=1),
    case("batch_norm", 8, 56, 56, 256),
    case("average_pool", 8, 56, 56, 256, 2),
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
    "parts": PARTS, "deck": VIT + CLIP + IGPT + PALETTE[:1],
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
