"""Attention, patch embedding and the losses for JAX arrays on a CPU: under ``jit``, ``grad`` and ``vmap``.

    loss, slopes = jax.value_and_grad(saccade.interop.jax.clip_loss, argnums=(0, 1, 2))(images, texts, scale)

The numba kernels are called back from the compiled program (``jax.pure_callback``), with their own backward passes
(``jax.custom_vjp``). ``vmap`` calls them for one item after another. Contracts are those of the functions of the same
names in ``saccade``; options are Python values and not traced, arrays among them have no gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import saccade
from saccade.numpy import implementation


def attention(query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None):
    """``saccade.attention`` of JAX arrays; gradients for query, key, value and bias."""
    arrays = {"query": query, "key": key, "value": value, "bias": bias}
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _call("attention", arrays, {"mask": mask, "key_lengths": key_lengths}, causal=causal, scale=scale)


def qkv_attention(qkv, *, causal=False, key_lengths=None, scale=None):
    """``saccade.qkv_attention`` of JAX arrays."""
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    return _call("qkv_attention", {"qkv": qkv}, {"key_lengths": key_lengths}, causal=causal, scale=scale)


def patch_embed(images, weight, bias=None, *, mean=None, std=None):
    """``saccade.patch_embed`` of JAX arrays; uint8 images have no gradient."""
    mean, std = (None if x is None else tuple(map(float, x)) for x in (mean, std))
    return _call("patch_embed", {"images": images, "weight": weight, "bias": bias}, {}, mean=mean, std=std)


def softmax_cross_entropy(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``saccade.softmax_cross_entropy`` of JAX arrays; gradients for logits."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return _call("softmax_cross_entropy", {"logits": logits}, {"labels": labels}, **options)


def linear_cross_entropy(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``saccade.linear_cross_entropy`` of JAX arrays; gradients for hidden and weight."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return _call("linear_cross_entropy", {"hidden": hidden, "weight": weight}, {"labels": labels}, **options)


def clip_loss(image_embeddings, text_embeddings, logit_scale):
    """``saccade.clip_loss`` of JAX arrays."""
    arrays = {"image_embeddings": image_embeddings, "text_embeddings": text_embeddings}
    return _call("clip_loss", arrays | {"logit_scale": jnp.asarray(logit_scale)}, {})


def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """``saccade.siglip_loss`` of JAX arrays."""
    arrays = {"image_embeddings": image_embeddings, "text_embeddings": text_embeddings}
    factors = {"logit_scale": jnp.asarray(logit_scale), "logit_bias": jnp.asarray(logit_bias)}
    return _call("siglip_loss", arrays | factors, {})


class _Operation(NamedTuple):
    """How an operation's backward pass is called.

    ``names`` are those of the differentiable arrays, in the order of gradients (JAX sorts dictionaries). ``out`` and
    ``kept`` give the shapes of what comes out and of the statistics kept beside the arguments, from all
    arrays by name; ``statistics`` finds those in what a forward pass saved, ``saved`` puts that together again.
    """

    names: tuple[str, ...]
    out: Callable
    kept: Callable
    statistics: Callable
    saved: Callable


def _rows_or_one(x, options):
    return (x.shape[0],) if options["reduction"] == "none" else ()


_OPERATIONS = {
    "attention": _Operation(
        names=("query", "key", "value", "bias"),
        out=lambda a, o: (*a["query"].shape[:3], a["value"].shape[3]),
        kept=lambda a: [a["query"].shape[:3]],
        statistics=lambda saved: [saved[7]],
        saved=lambda a, o, out, lse: (
            a["query"], a["key"], a["value"], a["bias"], a["mask"], a["key_lengths"], out, lse, o["causal"], o["scale"]
        ),
    ),
    "qkv_attention": _Operation(
        names=("qkv",),
        out=lambda a, o: (*a["qkv"].shape[:2], *a["qkv"].shape[3:]),
        kept=lambda a: [(a["qkv"].shape[0], a["qkv"].shape[3], a["qkv"].shape[1])],
        statistics=lambda saved: [saved[3]],
        saved=lambda a, o, out, lse: (a["qkv"], a["key_lengths"], out, lse, o["causal"], o["scale"]),
    ),
    "patch_embed": _Operation(
        names=("images", "weight", "bias"),
        out=lambda a, o: _patches_shape(a["images"].shape, a["weight"].shape),
        kept=lambda a: [],
        statistics=lambda saved: [],
        saved=lambda a, o, out: (a["images"], a["weight"], a["bias"], o["mean"], o["std"]),
    ),
    "softmax_cross_entropy": _Operation(
        names=("logits",),
        out=lambda a, o: _rows_or_one(a["logits"], o),
        kept=lambda a: [a["logits"].shape[:1]],
        statistics=lambda saved: [saved[2]],
        saved=lambda a, o, out, lse: (a["logits"], a["labels"], lse, *o.values()),
    ),
    "linear_cross_entropy": _Operation(
        names=("hidden", "weight"),
        out=lambda a, o: _rows_or_one(a["hidden"], o),
        kept=lambda a: [(3, a["hidden"].shape[0])],
        statistics=lambda saved: [saved[3]],
        saved=lambda a, o, out, rows: (a["hidden"], a["weight"], a["labels"], rows, *o.values()),
    ),
    "clip_loss": _Operation(
        names=("image_embeddings", "text_embeddings", "logit_scale"),
        out=lambda a, o: (),
        kept=lambda a: [(3, a["image_embeddings"].shape[0])] * 2,
        statistics=lambda saved: list(saved[3:]),
        saved=lambda a, o, out, *rows: (a["image_embeddings"], a["text_embeddings"], a["logit_scale"], *rows),
    ),
    "siglip_loss": _Operation(
        names=("image_embeddings", "text_embeddings", "logit_scale", "logit_bias"),
        out=lambda a, o: (),
        kept=lambda a: [],
        statistics=lambda saved: [],
        saved=lambda a, o, out: (a["image_embeddings"], a["text_embeddings"], a["logit_scale"], a["logit_bias"]),
    ),
}  # fmt: skip
_LOSSES = {name for name in _OPERATIONS if name.endswith(("loss", "entropy"))}


def _patches_shape(images, weight):
    (b, h, w, _), (e, _, p, _) = images, weight
    return b, (h // p) * (w // p), e


def _call(name, arrays, given, **options):
    """The operation of differentiable ``arrays`` and of others that are ``given``, None among them."""
    alike = {key: None if x is None else np.broadcast_to(np.zeros((), x.dtype), x.shape) for key, x in arrays.items()}
    others = {key: None if x is None else np.broadcast_to(np.zeros((), x.dtype), x.shape) for key, x in given.items()}
    _checked(name, alike, others, options)
    return _differentiable(name, tuple(options.items()), arrays, given)


def _checked(name, arrays, given, options):
    getattr(saccade, name).__wrapped__(**arrays, **given, **options)  # the contract, before anything is traced


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(name, options, arrays, given):
    return _forward(name, options, arrays, given)[0]


def _forward(name, options, arrays, given):
    """[out, the statistics for the backward pass …]."""
    operation, options, everything = _OPERATIONS[name], dict(options), arrays | given
    first = next(x for x in arrays.values() if x is not None and jnp.issubdtype(x.dtype, jnp.floating))
    core = jnp.float64 if first.dtype == jnp.float64 else jnp.float32
    dtype = core if name in _LOSSES else first.dtype
    shapes = [jax.ShapeDtypeStruct(operation.out(everything, options), dtype)]
    shapes += [jax.ShapeDtypeStruct(shape, core) for shape in operation.kept(everything)]

    def compute(arrays, given):
        arrays, given = jax.tree.map(np.asarray, (arrays, given))
        out, saved = getattr(saccade, f"{name}_forward")(**arrays, **given, **options)
        return [np.asarray(out), *map(np.asarray, operation.statistics(saved.values))]

    return jax.pure_callback(compute, shapes, arrays, given, vmap_method="sequential")


def _forward_of_both(name, options, arrays, given):
    out, *kept = _forward(name, options, arrays, given)
    return out, (arrays, given, out, kept)


def _backward(name, options, residuals, grad_out):
    arrays, given, *_ = residuals
    wanted = [key for key, x in arrays.items() if x is not None and jnp.issubdtype(x.dtype, jnp.floating)]
    shapes = [jax.ShapeDtypeStruct(arrays[key].shape, arrays[key].dtype) for key in wanted]

    def compute(residuals, grad_out):
        (arrays, given, out, kept), grad_out = jax.tree.map(np.asarray, (residuals, grad_out))
        saved = _OPERATIONS[name].saved(arrays | given, dict(options), out, *kept)
        found = implementation(f"{name}_backward")(saved, grad_out)
        gradients = dict(zip(_OPERATIONS[name].names, found, strict=True))
        return [np.asarray(gradients[key]) for key in wanted]

    found = jax.pure_callback(compute, shapes, residuals, grad_out, vmap_method="sequential")
    return dict.fromkeys(arrays) | dict(zip(wanted, found, strict=True)), None


_differentiable.defvjp(_forward_of_both, _backward)
