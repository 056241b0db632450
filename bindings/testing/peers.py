"""Other libraries' functions with what they claim, ready to be judged: ``saccade check torch-sdpa-math``.

What calls them is in ``adapters``; what a peer does not claim is listed by the report as not judged.
"""

import functools
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from saccade.testing import adapters, runtimes
from saccade.testing.claims import Claims

# On CPUs the flash kernel gives 0 for a query that is NaN where there is one key.
SDPA = Claims(
    options=("mask", "causal", "scale"), causal="start", empty_rows=False, zero_sized=False, value_dims=False,
    non_finite=False,
)  # fmt: skip
ADDRESSED = ("dense", "sliced", "read-only")  # what its flash kernel finds its way in
LOSS = Claims(losses="input", zero_sized=False)
HALF = ("float16", "bfloat16")
EIGHTS = tuple(range(8, 129, 8))
FUSED = Claims(
    dtypes=HALF, options=("causal", "scale"), axes="bthd", head_dims=EIGHTS, empty_rows=False, zero_sized=False,
    value_dims=False,
)  # fmt: skip
LIGER_NORM = Claims(options=("eps",), zero_sized=False)
KMEANS = Claims(exact=False, empty_clusters=False)
GRAPH = Claims(dtypes=("float32",), zero_sized=False, gradients=False)
GRAPH_ATTENTION = replace(GRAPH, options=("causal", "scale"), empty_rows=False)


@dataclass(frozen=True)
class Peer:
    """A function of another library.

    Attributes:
        operation: what it claims to be.
        arrays: whose arrays it takes.
        package: what must be installed, as it is imported; several by spaces, the peer's own first.
        claims: what it promises.
        make: returns the function in the operation's own signature; its source is all that a script needs.
        device: "cuda" if it runs on a GPU alone.
    """

    operation: str
    arrays: str
    package: str
    claims: Claims
    make: Callable[[], Any]
    device: str | None = None

    def function(self):
        """The function; its package can be imported from now on."""
        if self.package in IMPORT_TORCHVISION:
            usable_torchvision()
        return self.make()

    @property
    def installed(self):
        """Whether the package is there."""
        return all(importlib.util.find_spec(one) is not None for one in self.package.split())


PEERS = {
    "torch-sdpa": Peer(
        "attention", "torch", "torch", replace(SDPA, layouts=ADDRESSED, options=("causal",)),
        adapters.sdpa_of_torchs_choice,
    ),
    "torch-split-sdpa": Peer(
        "qkv_attention", "torch", "torch", replace(SDPA, layouts=ADDRESSED, options=("causal",)),
        adapters.split_sdpa_of_peer,
    ),
    "torch-linear-cross-entropy": Peer(
        "linear_cross_entropy", "torch", "torch", LOSS, adapters.linear_cross_entropy_of_peer
    ),
    "torch-sdpa-math": Peer("attention", "torch", "torch", SDPA, partial(adapters.sdpa, "MATH")),
    "torch-sdpa-flash": Peer(
        "attention", "torch", "torch",
        replace(SDPA, layouts=ADDRESSED, options=("mask", "causal")),
        partial(adapters.sdpa, "FLASH_ATTENTION"),
    ),
    "torch-flex-attention": Peer(
        "attention", "torch", "torch",
        Claims(
            options=("bias", "causal", "scale"), empty_rows=False, zero_sized=False, value_dims=False, gradients=False
        ),
        adapters.flex_attention_of_peer,
    ),
    "transformers-eager-attention": Peer(
        "attention", "torch", "transformers",
        Claims(
            dtypes=("float32", "bfloat16", "float16"), options=("mask", "bias", "scale"), empty_rows=False,
            zero_sized=False,
        ),
        adapters.transformers_eager_of_peer,
    ),
    "jax-dot-product-attention": Peer(
        "attention", "jax", "jax",
        Claims(
            dtypes=("float32", "bfloat16", "float16"), options=("mask", "bias", "causal", "scale"), axes="bthd",
            causal="start", empty_rows=False, zero_sized=False, value_dims=False, non_finite=False,
        ),
        adapters.jax_attention_of_peer,
    ),
    "torch-cross-entropy": Peer("softmax_cross_entropy", "torch", "torch", LOSS, adapters.cross_entropy_of_peer),
    "torch-layer-norm": Peer("layer_norm", "torch", "torch", Claims(), adapters.layer_norm_of_peer),
    "torch-rms-norm": Peer("rms_norm", "torch", "torch", Claims(), adapters.rms_norm_of_peer),
    "torch-gelu": Peer("gelu", "torch", "torch", Claims(), adapters.gelu_of_peer),
    "torch-linear": Peer("linear", "torch", "torch", Claims(), adapters.linear_of_peer),
    "torch-embedding": Peer("embedding", "torch", "torch", Claims(), adapters.embedding_of_peer),
    "torch-batch-norm": Peer("batch_norm", "torch", "torch", Claims(), adapters.batch_norm_of_peer),
    "torch-normalize": Peer("l2_normalize", "torch", "torch", Claims(), adapters.normalize_of_peer),
    "torch-mlp": Peer("mlp", "torch", "torch", Claims(options=()), adapters.mlp_of_peer),
    "torch-conv2d": Peer("conv2d", "torch", "torch", Claims(zero_sized=False), adapters.conv2d_of_peer),
    "torch-average-pool": Peer(
        "average_pool", "torch", "torch", Claims(zero_sized=False), adapters.average_pool_of_peer
    ),
    "torch-sigmoid-cross-entropy": Peer(
        "sigmoid_cross_entropy", "torch", "torch", LOSS, adapters.sigmoid_cross_entropy_of_peer
    ),
    "torch-conv2d-patches": Peer(
        "patch_embed", "torch", "torch", Claims(options=(), zero_sized=False), adapters.conv2d_patches_of_peer
    ),
    "torch-clip-loss": Peer("clip_loss", "torch", "torch", LOSS, adapters.clip_loss_of_torch),
    "torch-siglip-loss": Peer("siglip_loss", "torch", "torch", LOSS, adapters.siglip_loss_of_torch),
    "open-clip-loss": Peer("clip_loss", "torch", "open_clip", LOSS, partial(adapters.open_clip, "ClipLoss")),
    "open-clip-siglip-loss": Peer("siglip_loss", "torch", "open_clip", LOSS, partial(adapters.open_clip, "SigLipLoss")),
    "scikit-learn-kmeans": Peer("fit", "numpy", "sklearn", KMEANS, adapters.sklearn_kmeans_of_peer),
    "faiss-kmeans": Peer("fit", "numpy", "faiss", KMEANS, adapters.faiss_kmeans_of_peer),
    "pillow-quantize": Peer(
        "fit", "numpy", "PIL", replace(KMEANS, given_start=False, most_centers=256), adapters.pillow_quantize_of_peer
    ),
    "onnxruntime-attention": Peer(
        "attention", "numpy", "onnxruntime onnx", GRAPH_ATTENTION, partial(runtimes.onnx_runtime, "attention")
    ),
    "onnxruntime-layer-norm": Peer(
        "layer_norm", "numpy", "onnxruntime onnx", replace(GRAPH, options=("eps",)),
        partial(runtimes.onnx_runtime, "layer_norm"),
    ),
    "onnxruntime-gelu": Peer("gelu", "numpy", "onnxruntime onnx", GRAPH, partial(runtimes.onnx_runtime, "gelu")),
    "openvino-attention": Peer(
        "attention", "numpy", "openvino", replace(GRAPH_ATTENTION, dtypes=("float32", "bfloat16")),
        partial(runtimes.openvino, "attention"),
    ),
    "openvino-layer-norm": Peer(
        "layer_norm", "numpy", "openvino", replace(GRAPH, dtypes=("float32", "bfloat16"), options=("eps",)),
        partial(runtimes.openvino, "layer_norm"),
    ),
    "openvino-gelu": Peer(
        "gelu", "numpy", "openvino", replace(GRAPH, dtypes=("float32", "bfloat16")), partial(runtimes.openvino, "gelu")
    ),
    "torch-sdpa-efficient": Peer(
        "attention", "torch", "torch",
        replace(SDPA, dtypes=("float32", *HALF), layouts=("dense",), head_dims=EIGHTS, deterministic=False),
        partial(adapters.sdpa, "EFFICIENT_ATTENTION"), "cuda",
    ),
    "torch-sdpa-cudnn": Peer(
        "attention", "torch", "torch",
        replace(
            SDPA, dtypes=HALF, layouts=("dense",), head_dims=EIGHTS, options=("causal", "scale"), single_tokens=False,
            deterministic=False,
        ),
        partial(adapters.sdpa, "CUDNN_ATTENTION"), "cuda",
    ),
    "flash-attn": Peer("attention", "torch", "flash_attn", FUSED, adapters.flash_attention_of_peer, "cuda"),
    "xformers": Peer(
        "attention", "torch", "xformers", replace(FUSED, deterministic=False), adapters.xformers_of_peer, "cuda"
    ),
    "liger-cross-entropy": Peer(
        "softmax_cross_entropy", "torch", "liger_kernel", replace(LOSS, soft_labels=False),
        partial(adapters.liger, "softmax_cross_entropy"), "cuda",
    ),
    "liger-linear-cross-entropy": Peer(
        "linear_cross_entropy", "torch", "liger_kernel", LOSS, partial(adapters.liger, "linear_cross_entropy"), "cuda"
    ),
    "liger-layer-norm": Peer(
        "layer_norm", "torch", "liger_kernel", LIGER_NORM, partial(adapters.liger, "layer_norm"), "cuda"
    ),
    "liger-rms-norm": Peer(
        "rms_norm", "torch", "liger_kernel", LIGER_NORM, partial(adapters.liger, "rms_norm"), "cuda"
    ),
    "inf-cl": Peer(
        "clip_loss", "torch", "inf_cl", replace(LOSS, deterministic=False), adapters.inf_cl_of_peer, "cuda"
    ),
    "cut-cross-entropy": Peer(
        "linear_cross_entropy", "torch", "cut_cross_entropy",
        replace(LOSS, dtypes=HALF, options=("ignore_index", "reduction"), deterministic=False),
        adapters.cut_cross_entropy_of_peer, "cuda",
    ),
}  # fmt: skip


IMPORT_TORCHVISION = ("transformers", "timm", "open_clip")


@functools.cache
def usable_torchvision():
    """Let a torchvision whose compiled operators are for another build of torch be imported without them.

    transformers, timm and open_clip import it and need none of them; declaring the two it looks for is enough.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


def peer(name):
    """(function, operation, arrays, claims) of a peer.

    Raises:
        ValueError: the name is unknown, or its package is not installed.
    """
    if name not in PEERS:
        raise ValueError(f"{name!r} is no module:name and no peer, expected one of {', '.join(PEERS)}")
    one = PEERS[name]
    if not one.installed:
        raise ValueError(f"{name} needs {one.package}, which is not installed")
    function = one.function()
    function.__name__ = name
    return function, one.operation, one.arrays, one.claims


def source(name):
    """A program's lines that make the peer's function as ``function``."""
    make = PEERS[name].make
    maker, arguments = (make.func, make.args) if isinstance(make, partial) else (make, ())
    return f"{inspect.getsource(maker)}\n\nfunction = {maker.__name__}({', '.join(map(repr, arguments))})"
