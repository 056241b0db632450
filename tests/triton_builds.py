"""The Triton kernels built ahead of time for GPUs that are not here, and what they take of them.

The public functions are called on CPU tensors with a stand-in for Triton's driver, so that what is compiled is what
a launch would compile, arguments and options included; nothing is run. ``python tests/triton_builds.py`` writes the
table of what each kernel takes, which ``test_triton_compiled.py`` holds it to.
"""

import contextlib
import functools
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from saccade.kernels.triton import attention, layers, losses, pairs, palette, patches, products, statistics

TABLE = Path(__file__).parents[1] / "bench/results/triton-resources.md"
HEADER = """# What Triton's kernels take

Compiled ahead of time by Triton {triton}: registers of a thread, bytes of its stack, which but for a few kernels are
spilled registers, and bytes of shared memory of a program. With that version, a test fails where a kernel takes more
stack or shared memory than here; with others, where it does not fit the GPU. `python tests/triton_builds.py` writes
this table.

| what is called | target | kernel | registers | stack | shared memory |
|---|---|---|---|---|---|
"""
# What a program may have: shared memory in bytes (NVIDIA's CUDA guide, AMD's ISA manual), 255 registers on NVIDIA.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}
STATISTICS = "_own_products", "_statistics", "_join_parts"
# The kernels that are launched, by the first word of what calls them.
KERNELS = {
    "attention": {attention: ("_forward", "_backward_queries", "_backward_keys")},
    "softmax": {losses: ("_cross_entropy_rows", "_cross_entropy_rows_backward")},
    "sigmoid": {losses: ("_sigmoid_rows", "_sigmoid_rows_backward")},
    "clip": {statistics: STATISTICS, pairs: ("_logit_gradients",), products: ("_multiply",)},
    "siglip": {pairs: ("_softplus_sums", "_logit_gradients"), products: ("_multiply",)},
    "linear": {statistics: STATISTICS, pairs: ("_logit_gradients",), products: ("_multiply",)},
    "norm": {layers: ("_norm_rows", "_norm_rows_backward")},
    "gelu": {layers: ("_gelu", "_gelu_backward")},
    "patches": {patches: ("_project", "_project_backward_weight", "_project_backward_images")},
    "patches,": {patches: ("_project", "_project_backward_weight")},
    "palette": {palette: ("_assign", "_list_nearest", "_assign_listed", "_update")},
    "l2": {layers: ("_l2_rows", "_l2_rows_backward")},
}


class Driver:
    """As much of a Triton driver as compiling asks for. Kernels are remembered by device: each target is one."""

    def __init__(self, name):
        self.get_current_target = lambda: TARGETS[name][0]
        self.get_current_device = lambda: list(TARGETS).index(name)
        self.get_current_stream = lambda device: 0


class Recorder:
    """A kernel that is compiled where it would be launched."""

    def __init__(self, kernel, compiled):
        self.kernel, self.compiled = kernel, compiled

    def __getitem__(self, grid):
        def compile_only(*arguments, **options):
            self.compiled[self.kernel.__name__] = self.kernel.warmup(*arguments, grid=grid, **options)

        return compile_only


def attention_kernels(dtype, d, s=70, extras=False, causal=False):
    """Forward and backward; ``extras``: with a mask, a bias, lengths and lse."""
    query, key, value = (torch.zeros(2, 3, n, d, dtype=dtype) for n in (65, s, s))
    options = {"causal": causal}
    if extras:
        options |= {"mask": torch.ones(65, s, dtype=torch.bool), "bias": torch.zeros(3, 1, s, dtype=dtype)}
        options |= {"key_lengths": torch.tensor([7, s]), "return_lse": True}
    out, saved = attention.attention_forward(query, key, value, **options)
    attention.attention_backward(saved, *(out if extras else (out,)))


def varlen_kernels(dtype, d, **options):
    """Forward and backward of packed sequences."""
    query, lengths = torch.zeros(300, 3, d, dtype=dtype), torch.tensor([0, 7, 7, 300])
    out, saved = attention.varlen_attention_forward(query, query, query, cumulative_lengths=lengths, **options)
    attention.varlen_attention_backward(saved, out)


def loss_kernels(dtype, k, soft=False):
    """Forward and backward of softmax_cross_entropy."""
    logits = torch.zeros(5, k, dtype=dtype)
    labels = logits if soft else torch.zeros(5, dtype=torch.int64)
    loss, saved = losses.softmax_cross_entropy_forward(logits, labels, label_smoothing=0.1)
    losses.softmax_cross_entropy_backward(saved, loss)


def sigmoid_kernels(dtype):
    """Forward and backward of sigmoid_cross_entropy."""
    logits = torch.zeros(5, 1000, dtype=dtype)
    loss, saved = losses.sigmoid_cross_entropy_forward(logits, logits)
    losses.sigmoid_cross_entropy_backward(saved, loss)


def norm_kernels(dtype, e, residual=False, name="layer_norm"):
    """Forward and backward of a norm."""
    x, scale = torch.zeros(5, e, dtype=dtype), torch.zeros(e, dtype=dtype)
    vectors = (scale, scale) if name == "layer_norm" else (scale,)
    out, saved = getattr(layers, f"{name}_forward")(x, *vectors, residual=x if residual else None)
    getattr(layers, f"{name}_backward")(saved, *(out if residual else (out,)))


def elementwise_kernels(dtype, name, **options):
    """Forward and backward of a function of one array."""
    out, saved = getattr(layers, f"{name}_forward")(torch.zeros(5, 768, dtype=dtype), **options)
    getattr(layers, f"{name}_backward")(saved, out)


def product_kernels(operation, dtype, n=300, k=300, e=512, **options):
    """Forward and backward of a loss whose logits are products."""
    arguments = [torch.zeros(n, e, dtype=dtype), torch.zeros(k, e, dtype=dtype)]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if operation == "linear_cross_entropy":
        arguments.append(torch.zeros(n, dtype=torch.int64))
    else:
        arguments += [torch.ones((), dtype=wide)] * (2 if operation == "siglip_loss" else 1)
    loss, saved = getattr(losses, f"{operation}_forward")(*arguments, **options)
    getattr(losses, f"{operation}_backward")(saved, loss)


def patch_kernels(dtype, p=16, images=torch.uint8):
    """Forward and backward of patch_embed."""
    pictures, weight = torch.zeros(2, 4 * p, 4 * p, 3, dtype=images), torch.zeros(768, 3, p, p, dtype=dtype)
    out, saved = patches.patch_embed_forward(pictures, weight, weight[:, 0, 0, 0], mean=(0.5,) * 3, std=(0.5,) * 3)
    patches.patch_embed_backward(saved, out)


def palette_kernels():
    """Both steps of Lloyd's algorithm."""
    colors, centers = torch.zeros(5, 3, dtype=torch.uint8), torch.zeros(512, 3, dtype=torch.int32)
    palette.update(colors, torch.ones(5, dtype=torch.int64), palette.assign(colors, centers), centers)
    palette.assign(colors.expand(1 << 17, 5, 3), centers)


CALLS = {
    "attention bf16 64": functools.partial(attention_kernels, torch.bfloat16, 64, causal=True),
    "attention bf16 64, 197 keys": functools.partial(attention_kernels, torch.bfloat16, 64, 197),
    "attention bf16 256": functools.partial(attention_kernels, torch.bfloat16, 256),
    "attention bf16 88, 197 keys": functools.partial(attention_kernels, torch.bfloat16, 88, 197),
    "attention bf16 72, all options": functools.partial(attention_kernels, torch.bfloat16, 72, extras=True),
    "attention f16 128": functools.partial(attention_kernels, torch.float16, 128),
    "attention f32 128": functools.partial(attention_kernels, torch.float32, 128, causal=True),
    "attention f32, the longest rows": functools.partial(attention_kernels, torch.float32, 512),
    "attention f64 72": functools.partial(attention_kernels, torch.float64, 72),
    "attention bf16 72, packed": functools.partial(varlen_kernels, torch.bfloat16, 72),
    "attention f32 64, packed": functools.partial(varlen_kernels, torch.float32, 64, causal=True),
    "softmax bf16": functools.partial(loss_kernels, torch.bfloat16, 1000),
    "softmax f64, soft": functools.partial(loss_kernels, torch.float64, 1000, soft=True),
    "patches, bf16": functools.partial(patch_kernels, torch.bfloat16),
    "patches f16 from f16": functools.partial(patch_kernels, torch.float16, images=torch.float16),
    "patches f32 from f32": functools.partial(patch_kernels, torch.float32, images=torch.float32),
    "patches f64 from f64": functools.partial(patch_kernels, torch.float64, images=torch.float64),
    "palette": palette_kernels,
    "sigmoid bf16": functools.partial(sigmoid_kernels, torch.bfloat16),
    "sigmoid f64": functools.partial(sigmoid_kernels, torch.float64),
    "clip bf16": functools.partial(product_kernels, "clip_loss", torch.bfloat16),
    "clip f32": functools.partial(product_kernels, "clip_loss", torch.float32),
    "clip f64": functools.partial(product_kernels, "clip_loss", torch.float64),
    "siglip bf16": functools.partial(product_kernels, "siglip_loss", torch.bfloat16),
    "linear bf16, smoothed": functools.partial(
        product_kernels, "linear_cross_entropy", torch.bfloat16, k=512, label_smoothing=0.1, reduction="none"
    ),
    "linear f32": functools.partial(product_kernels, "linear_cross_entropy", torch.float32, k=512),
    "norm bf16 768, residual": functools.partial(norm_kernels, torch.bfloat16, 768, residual=True),
    "norm f16 1152": functools.partial(norm_kernels, torch.float16, 1152),
    "norm f32, the longest rows": functools.partial(norm_kernels, torch.float32, 16384, residual=True),
    "norm f64 192, without a mean": functools.partial(norm_kernels, torch.float64, 192, True, "rms_norm"),
    "norm bf16 1536, without a mean": functools.partial(norm_kernels, torch.bfloat16, 1536, name="rms_norm"),
    "gelu bf16, erf": functools.partial(elementwise_kernels, torch.bfloat16, "gelu", kind="erf"),
    "gelu f16, tanh": functools.partial(elementwise_kernels, torch.float16, "gelu", kind="tanh"),
    "gelu f32, sigmoid": functools.partial(elementwise_kernels, torch.float32, "gelu", kind="sigmoid"),
    "gelu f64, erf": functools.partial(elementwise_kernels, torch.float64, "gelu", kind="erf"),
    "l2 bf16": functools.partial(elementwise_kernels, torch.bfloat16, "l2_normalize"),
    "l2 f64": functools.partial(elementwise_kernels, torch.float64, "l2_normalize"),
}
# Everything usual for sm_90, and elsewhere what is closest to a limit there: compiling takes seconds each.
COMPILED = [(call, "sm_90") for call in CALLS if "longest" not in call]
COMPILED += [("attention bf16 72, all options", target) for target in ("sm_80", "sm_100", "gfx942")]
COMPILED += [("attention f32, the longest rows", "sm_80"), ("attention f16 128", "sm_100")]
COMPILED += [("attention bf16 72, packed", target) for target in ("sm_80", "sm_100", "gfx942")]
COMPILED += [("attention f64 72", "gfx942"), ("softmax bf16", "gfx942")]
COMPILED += [("clip bf16", target) for target in ("sm_80", "sm_100", "gfx942")]
COMPILED += [("siglip bf16", "sm_100"), ("linear bf16, smoothed", "gfx942"), ("patches, bf16", "sm_100")]
COMPILED += [("patches f16 from f16", "gfx942")]
COMPILED += [("palette", "sm_80"), ("palette", "gfx942")]
COMPILED += [("norm f32, the longest rows", target) for target in TARGETS]
COMPILED += [("gelu bf16, erf", "gfx942"), ("l2 f64", "gfx942"), ("norm bf16 768, residual", "sm_100")]


@contextlib.contextmanager
def building(target):
    """Compiles for a target instead of launching: a dictionary of kernels, filled as public functions are called."""
    found, driver = {}, triton.runtime.driver
    whole = [(home, name) for one in KERNELS.values() for home in one for name in one[home]]
    kernels = {(home, name): getattr(home, name) for home, name in whole}
    before = driver._active
    try:
        driver._active = Driver(target)
        for (home, name), kernel in kernels.items():
            setattr(home, name, Recorder(kernel, found))
        yield found
    finally:
        driver._active = before
        for (home, name), kernel in kernels.items():
            setattr(home, name, kernel)


def built(call, target):
    """For each kernel that a call launches: (registers, bytes of spills and other stack, bytes of shared memory); the
    first two are None where no tool here tells them."""
    with building(target) as found:
        CALLS[call]()
    assert found.keys() == {name for names in KERNELS[call.split()[0]].values() for name in names}
    if TARGETS[target][0].backend == "hip":
        assert all(len(kernel.asm["hsaco"]) > 0 for kernel in found.values())
        return {name: (None, None, kernel.metadata.shared) for name, kernel in found.items()}
    used = {name: _used(kernel.asm["cubin"]) for name, kernel in found.items()}
    return {
        name: (registers, stack, shared + found[name].metadata.shared)
        for name, (registers, stack, shared) in used.items()
    }


def _used(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(max(map(int, re.findall(rf"{name}:(\d+)", report))) for name in ("REG", "STACK", "SHARED"))


def recorded():
    """The rows of the table: (what is called, target, kernel) -> numbers as of ``built``."""
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if "sm_" in line or "gfx" in line]
    return {tuple(row[:3]): tuple(None if x == "?" else int(x) for x in row[3:]) for row in rows}


def recorded_by():
    """The version of Triton that the table is of: torch asks for one of its own, so none is asked for here."""
    return re.search(r"by Triton ([^:]+):", TABLE.read_text())[1]


def main():
    """Write the table anew."""
    lines = []
    for call, target in sorted(COMPILED):
        for name, numbers in sorted(built(call, target).items()):
            lines.append(
                " | ".join((f"| {call}", target, name, *("?" if x is None else f"{x}" for x in numbers))) + " |"
            )
        print(call, target)
    TABLE.write_text(HEADER.format(triton=triton.__version__) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
