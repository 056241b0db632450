"""Checks of values, made where arrays lie in host memory and just before a kernel reads them.

Kernels index with labels, lengths and tokens, so these are what keeps a bad value from reading foreign memory.
"""

import numpy as np


def check_values(function, arguments, options):
    """Raise ValueError if a value in a NumPy call to ``function`` (perhaps with ``_forward``) is out of range."""
    check = _CHECKS.get(function.removesuffix("_forward"))
    if check is not None:
        check(*arguments, **options)


def _in_range(operation, name, values, low, high, also=None):
    values = np.asarray(values)
    bad = (values < low) | (values >= high)
    if also is not None:
        bad &= values != also
    if bad.any():
        exception = "" if also is None else f" or ignore_index {also}"
        raise ValueError(f"{operation}: {name} holds {values[bad].flat[0]}, expected {low}…{high - 1}{exception}")


def _attention(query, key, value, *, key_lengths=None, **_):
    if key_lengths is not None:
        _in_range("attention", "key_lengths", key_lengths, 0, key.shape[2] + 1)


def _qkv_attention(qkv, *, key_lengths=None, **_):
    if key_lengths is not None:
        _in_range("qkv_attention", "key_lengths", key_lengths, 0, qkv.shape[1] + 1)


def _varlen_attention(query, key, value, *, cumulative_lengths, **_):
    lengths = np.asarray(cumulative_lengths)
    if lengths[0] != 0 or lengths[-1] != len(query) or (lengths[1:] < lengths[:-1]).any():
        raise ValueError(
            f"varlen_attention: cumulative_lengths={lengths.tolist()}, expected integers rising from 0 to {len(query)}"
        )


def _embedding(tokens, weight):
    _in_range("embedding", "tokens", tokens, 0, len(weight))


def _softmax_cross_entropy(logits, labels, *, ignore_index=-100, **_):
    if labels.ndim == 1:
        _in_range("softmax_cross_entropy", "labels", labels, 0, logits.shape[1], also=ignore_index)


def _linear_cross_entropy(hidden, weight, labels, *, ignore_index=-100, **_):
    _in_range("linear_cross_entropy", "labels", labels, 0, len(weight), also=ignore_index)


def _finite(operation, name, factor):
    if isinstance(factor, np.ndarray) and not np.isfinite(factor.astype(np.float64)):
        raise ValueError(f"{operation}: {name}={float(factor)}, expected a finite number")


def _clip_loss(image_embeddings, text_embeddings, logit_scale):
    _finite("clip_loss", "logit_scale", logit_scale)


def _siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias):
    _finite("siglip_loss", "logit_scale", logit_scale)
    _finite("siglip_loss", "logit_bias", logit_bias)


_CHECKS = {
    "attention": _attention,
    "qkv_attention": _qkv_attention,
    "varlen_attention": _varlen_attention,
    "embedding": _embedding,
    "softmax_cross_entropy": _softmax_cross_entropy,
    "linear_cross_entropy": _linear_cross_entropy,
    "clip_loss": _clip_loss,
    "siglip_loss": _siglip_loss,
}
