"""Other libraries' functions with what they claim, ready to be judged: ``saccade check torch-sdpa-math``.

An adapter here only renames and rearranges arguments; the numbers are the peer's. What a peer does not claim is listed
by the report as not judged.
"""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from saccade.testing.claims import Claims

SDPA = Claims(options=("mask", "causal", "scale"), causal="start", empty_rows=False, zero_sized=False, value_dims=False)
LOSS = Claims(losses="input", zero_sized=False)


@dataclass(frozen=True)
class Peer:
    """A function of another library.

    Attributes:
        operation: what it claims to be.
        arrays: whose arrays it takes.
        package: what must be installed, as it is imported.
        claims: what it promises.
        make: returns the function in the operation's own signature; its source is all that a script needs.
    """

    operation: str
    arrays: str
    package: str
    claims: Claims
    make: Callable[[], Any]

    @property
    def installed(self):
        """Whether the package is there."""
        return importlib.util.find_spec(self.package) is not None


def sdpa(backend):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attention(query, key, value, *, mask=None, causal=False, scale=None):
        if causal and mask is not None:
            mask = mask & torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=mask.device).tril()
        options = {"is_causal": causal and mask is None, "scale": scale}
        if mask is not None:
            mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)

    return attention


def flex_attention_of_peer():
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    def attention(query, key, value, *, bias=None, causal=False, scale=None):
        t, s = query.shape[2], key.shape[2]
        whole = None if bias is None else torch.broadcast_to(bias, (*query.shape[:3], s))

        def score(value, b, h, i, j):
            value = value if whole is None else value + whole[b, h, i, j]
            return torch.where(j <= i + (s - t), value, -float("inf")) if causal else value

        return flex_attention(query, key, value, score_mod=score, scale=scale)

    return attention


def transformers_eager_of_peer():
    from types import SimpleNamespace

    import torch
    from transformers.models.vit.modeling_vit import eager_attention_forward

    def attention(query, key, value, *, mask=None, bias=None, scale=None):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if mask is not None:
            hidden = torch.where(mask, 0.0, torch.finfo(query.dtype).min).to(query.dtype)
            bias = hidden if bias is None else bias + hidden
        module = SimpleNamespace(training=False, num_key_value_groups=1)
        return eager_attention_forward(module, query, key, value, bias, scaling=scale)[0].transpose(1, 2)

    return attention


def jax_attention_of_peer():
    import jax  # pyright: ignore[reportMissingImports]

    def attention(query, key, value, *, mask=None, bias=None, causal=False, scale=None):
        options = {"mask": mask, "bias": bias, "is_causal": causal, "scale": scale}
        return jax.nn.dot_product_attention(query, key, value, **options)

    return attention


def cross_entropy_of_peer():
    import torch

    def softmax_cross_entropy(logits, labels, **options):
        if labels.is_floating_point():
            options.pop("ignore_index", None)  # which it refuses beside rows of probabilities
        else:
            labels = labels.long()
        return torch.nn.functional.cross_entropy(logits, labels, **options)

    return softmax_cross_entropy


def layer_norm_of_peer():
    import torch

    def layer_norm(x, scale, bias, *, eps=1e-5):
        return torch.nn.functional.layer_norm(x, scale.shape, scale, bias, eps)

    return layer_norm


def rms_norm_of_peer():
    import torch

    def rms_norm(x, scale, *, eps=1e-5):
        return torch.nn.functional.rms_norm(x, scale.shape, scale, eps)

    return rms_norm


def gelu_of_peer():
    import torch

    def gelu(x, *, kind="erf"):
        if kind == "sigmoid":
            return x * torch.sigmoid(1.702 * x)
        return torch.nn.functional.gelu(x, approximate="none" if kind == "erf" else kind)

    return gelu


def conv2d_patches_of_peer():
    import torch

    def patch_embed(images, weight, bias):
        pixels = images.permute(0, 3, 1, 2)
        pixels = pixels.to(weight.dtype) / 255 if pixels.dtype == torch.uint8 else pixels
        return torch.nn.functional.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)

    return patch_embed


def open_clip(name):
    from open_clip import loss

    judged = getattr(loss, name)()

    def contrastive_loss(image_embeddings, text_embeddings, *factors):
        return judged(image_embeddings, text_embeddings, *factors)

    return contrastive_loss


def normalize_of_peer():
    import torch

    def l2_normalize(x, *, eps=1e-12):
        return torch.nn.functional.normalize(x, dim=-1, eps=eps)

    return l2_normalize


def batch_norm_of_peer():
    import torch

    def batch_norm(x, mean, variance, scale, bias, *, eps=1e-5):
        rows = x.reshape(-1, x.shape[-1])
        return torch.nn.functional.batch_norm(rows, mean, variance, scale, bias, eps=eps).reshape(x.shape)

    return batch_norm


def embedding_of_peer():
    import torch

    def embedding(tokens, weight):
        return torch.nn.functional.embedding(tokens, weight)

    return embedding


def linear_of_peer():
    import torch

    def linear(x, weight, bias):
        return torch.nn.functional.linear(x, weight, bias)

    return linear


PEERS = {
    "torch-sdpa-math": Peer("attention", "torch", "torch", SDPA, partial(sdpa, "MATH")),
    "torch-sdpa-flash": Peer(
        "attention", "torch", "torch",
        replace(SDPA, layouts=("dense", "sliced", "read-only"), options=("mask", "causal")),
        partial(sdpa, "FLASH_ATTENTION"),
    ),
    "torch-flex-attention": Peer(
        "attention", "torch", "torch",
        Claims(
            options=("bias", "causal", "scale"), empty_rows=False, zero_sized=False, value_dims=False, gradients=False
        ),
        flex_attention_of_peer,
    ),
    "transformers-eager-attention": Peer(
        "attention", "torch", "transformers",
        Claims(
            dtypes=("float32", "bfloat16", "float16"), options=("mask", "bias", "scale"), empty_rows=False,
            zero_sized=False,
        ),
        transformers_eager_of_peer,
    ),
    "jax-dot-product-attention": Peer(
        "attention", "jax", "jax",
        Claims(
            dtypes=("float32", "bfloat16", "float16"), options=("mask", "bias", "causal", "scale"), axes="bthd",
            causal="start", empty_rows=False, zero_sized=False, value_dims=False,
        ),
        jax_attention_of_peer,
    ),
    "torch-cross-entropy": Peer("softmax_cross_entropy", "torch", "torch", LOSS, cross_entropy_of_peer),
    "torch-layer-norm": Peer("layer_norm", "torch", "torch", Claims(options=("eps",)), layer_norm_of_peer),
    "torch-rms-norm": Peer("rms_norm", "torch", "torch", Claims(options=("eps",)), rms_norm_of_peer),
    "torch-gelu": Peer("gelu", "torch", "torch", Claims(), gelu_of_peer),
    "torch-linear": Peer("linear", "torch", "torch", Claims(), linear_of_peer),
    "torch-embedding": Peer("embedding", "torch", "torch", Claims(), embedding_of_peer),
    "torch-batch-norm": Peer("batch_norm", "torch", "torch", Claims(), batch_norm_of_peer),
    "torch-normalize": Peer("l2_normalize", "torch", "torch", Claims(), normalize_of_peer),
    "torch-conv2d-patches": Peer(
        "patch_embed", "torch", "torch", Claims(options=(), zero_sized=False), conv2d_patches_of_peer
    ),
    "open-clip-loss": Peer("clip_loss", "torch", "open_clip", LOSS, partial(open_clip, "ClipLoss")),
    "open-clip-siglip-loss": Peer("siglip_loss", "torch", "open_clip", LOSS, partial(open_clip, "SigLipLoss")),
}  # fmt: skip


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
    function = one.make()
    function.__name__ = name
    return function, one.operation, one.arrays, one.claims


def source(name):
    """A program's lines that make the peer's function as ``function``."""
    make = PEERS[name].make
    maker, arguments = (make.func, make.args) if isinstance(make, partial) else (make, ())
    return f"{inspect.getsource(maker)}\n\nfunction = {maker.__name__}({', '.join(map(repr, arguments))})"
