"""Everything that calls ``torch.nn.functional.scaled_dot_product_attention`` on a CPU: timm, open_clip, torchvision, …

    with saccade.interop.torch.activated():
        model(images)

``patch(model)`` lets the linear layers of any model, too, be ours on processors where our products of matrices are
faster than torch's (``saccade.kernels.numba.matrices``).

Attention is an implementation in ``torch.nn.attention``'s registry, under the name "saccade": the dispatcher calls it
for the operator that torch itself chooses, so that compiled graphs and exported programs have it, too. Tensors on a GPU
are torch's business as before.
"""

import warnings
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import attention as registry

from saccade.interop.counts import count
from saccade.interop.modules import Stand, unless_traced
from saccade.interop.tensors import noted, why_not
from saccade.kernels.numba.matrices import OWN
from saccade.torch.arrays import from_numpy, to_numpy
from saccade.torch.layers import product

NAME = "saccade"
PLACE = "torch scaled_dot_product_attention"
_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"

_everywhere = False


def activate(*, everywhere=False):
    """Let torch's attention on CPUs be ours, where it was measured to be no slower, or ``everywhere`` it can be.

    Left alone are dropout, grouped heads, and causal attention with more keys than queries or fewer.
    """
    global _everywhere
    registry.register_flash_attention_impl(NAME, register_fn=_register)
    registry.activate_flash_attention_impl(NAME)
    _everywhere = everywhere


def deactivate():
    """Let torch's attention be torch's own again; nothing happens where ours is not active."""
    if registry.current_flash_attention_impl() == NAME:
        registry.restore_flash_attention_impl()


@contextmanager
def activated(*, everywhere=False):
    """``activate`` for a block; afterwards what was active before is active again."""
    before, before_everywhere = registry.current_flash_attention_impl(), _everywhere
    activate(everywhere=everywhere)
    try:
        yield
    finally:
        deactivate()
        if before == NAME:
            activate(everywhere=before_everywhere)
        elif before is not None:
            registry.activate_flash_attention_impl(before)


def patch(model):
    """Let the model's ``nn.Linear`` modules, and no subclasses, compute with our products where those are faster; the
    model."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = SaccadeLinear
    return model


def unpatch(model):
    """Give linear layers their own class back; the model."""
    for module in model.modules():
        if type(module) is SaccadeLinear:
            module.__class__ = nn.Linear  # pyright: ignore[reportAttributeAccessIssue]
    return model


@contextmanager
def patched(model):
    """``patch`` for a block."""
    patch(model)
    try:
        yield model
    finally:
        unpatch(model)


class SaccadeLinear(Stand, nn.Linear):
    """torch's linear layer."""

    @unless_traced
    def forward(self, input):
        whole = input.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
        faster = OWN and whole and input.device.type == "cpu"
        if noted("torch linear", None if faster else "not measured to be faster"):
            return super().forward(input)
        return product(input, self.weight, self.bias)


class _Handle:
    """What torch keeps while the implementation is active."""

    def __init__(self, library):
        self.library = library

    def remove(self):
        self.library._destroy()  # which has no public name


def _register():
    library = torch.library.Library("aten", "IMPL")
    for name, function in ((_FORWARD, _forward), (f"{_FORWARD}_backward", _backward)):
        original = torch.library.get_kernel(f"aten::{name}", "CPU")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
            library.impl(name, partial(function, original.call_boxed), "CPU", with_keyset=True)
    return _Handle(library)


def _forward(
    original, keys, query, key, value, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None
):  # fmt: skip
    reason = why_not(query, key, value, causal=is_causal, dropout=dropout_p, everywhere=_everywhere)
    count(PLACE, reason)
    if reason:
        return original(keys, query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    from saccade.kernels.numba import attention

    # laid out as torch says it lies, which compiled graphs rely on
    out = torch.empty_like(query)
    query, key, value, into, bias = map(to_numpy, (query, key, value, out, attn_mask))
    lse, _ = attention.forward_into(into, query, key, value, None, bias, is_causal, None, scale)
    return out, from_numpy(_turned(lse))


def _turned(lse_bht):
    return np.ascontiguousarray(lse_bht.transpose(0, 2, 1)).transpose(0, 2, 1)


def _backward(
    original, keys, grad_out, query, key, value, out, logsumexp, dropout_p, is_causal, *, attn_mask=None, scale=None
):  # fmt: skip
    tensors = query, key, value
    if why_not(*tensors, causal=is_causal, dropout=dropout_p, gradients=True, everywhere=_everywhere):
        return original(
            keys, grad_out, *tensors, out, logsumexp, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )
    from saccade.kernels.numba import attention

    gradients = [torch.empty_permuted(x.shape, (0, 2, 1, 3), dtype=x.dtype) for x in tensors]
    query, key, value, out, grad_out, lse, bias = map(to_numpy, (*tensors, out, grad_out, logsumexp, attn_mask))
    scale = query.shape[3] ** -0.5 if scale is None else scale
    saved = query, key, value, bias, None, None, out, np.ascontiguousarray(lse), is_causal, scale
    attention.backward_into([to_numpy(x) for x in gradients], saved, grad_out)
    return tuple(gradients)
