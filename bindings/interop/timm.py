"""timm's vision transformers: attention, norms, linear layers, and patches straight from uint8 pictures.

    saccade.interop.timm.patch(model)
    logits = model(images)  # as before; or uint8 images b h w c, as they were decoded

Modules change their class to one that computes the same; parameters, names and hooks stay, ``unpatch`` gives the
classes back. A module whose class is not exactly timm's is left as it is.
"""

from contextlib import contextmanager

import torch
from timm.layers import Attention, AttentionPoolLatent, LayerNorm, PatchEmbed, RmsNorm
from torch import nn

import saccade
from saccade.interop.modules import Stand, library_class, unless_traced
from saccade.interop.tensors import hidden, noted, why_not
from saccade.interop.torch import SaccadeLinear

_everywhere = False


def patch(model, *, everywhere=False):
    """Let the model's modules compute with our kernels where they can; the model.

    Args:
        model: any module with timm's ``Attention``, ``AttentionPoolLatent``, ``PatchEmbed``, ``RmsNorm`` or
            ``LayerNorm``, or torch's ``Linear``, in it.
        everywhere: also where that was not measured to be faster; it holds for all patched models.

    A patched model takes uint8 images (b, h, w, c), too, and normalises them by its ``pretrained_cfg``'s mean and std,
    or 0.5 where that says nothing.
    """
    global _everywhere
    _everywhere = everywhere
    config = getattr(model, "pretrained_cfg", None) or {}
    for module in model.modules():
        if type(module) in _OURS:
            module.__class__ = _OURS[type(module)]
            if isinstance(module, PatchEmbed):
                normal = (0.5,) * module.proj.in_channels
                module._saccade_normal = tuple(config.get("mean", normal)), tuple(config.get("std", normal))
    return model


def unpatch(model):
    """Give modules their own classes back; the model."""
    for module in model.modules():
        if type(module) in _THEIRS:
            module.__class__ = _THEIRS[type(module)]
            module.__dict__.pop("_saccade_normal", None)
    return model


@contextmanager
def patched(model, *, everywhere=False):
    """``patch`` for a block."""
    patch(model, everywhere=everywhere)
    try:
        yield model
    finally:
        unpatch(model)


class SaccadeAttention(Stand, Attention):
    """timm's self-attention, from the packed projection where it lies."""

    @unless_traced
    def forward(self, x, attn_mask=None, is_causal=False):
        b, n, _ = x.shape
        like = x[:, None, :, :1].expand(b, self.num_heads, n, self.head_dim)  # a query, before any is computed
        dropout = self.attn_drop.p if self.training else 0.0
        reason = why_not(like, like, like, causal=is_causal, dropout=dropout, everywhere=_everywhere)
        if not reason and not self.fused_attn:
            reason = "fused_attn is off"
        if noted("timm attention", reason):
            return super().forward(x, attn_mask, is_causal)
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim)
        if attn_mask is None and isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity):
            out = saccade.qkv_attention(qkv, causal=is_causal)
        else:
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            query, key = self.q_norm(query), self.k_norm(key)
            out = saccade.attention(query, key, value, **hidden(attn_mask), causal=is_causal).transpose(1, 2)
        out = self.norm(out.reshape(b, n, self.attn_dim))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


class SaccadeAttentionPool(Stand, AttentionPoolLatent):
    """timm's multi-head attention pooling."""

    @unless_traced
    def forward(self, x, attn_mask=None):
        b, n, c = x.shape
        reason = None if _everywhere else "not measured to be faster"
        if self.pos_embed is not None or not self.fused_attn:
            reason = "positions of its own" if self.pos_embed is not None else "fused_attn is off"
        if noted("timm attention pooling", reason):
            return super().forward(x, attn_mask)
        heads = self.num_heads, self.head_dim
        query = self.q(self.latent.expand(b, -1, -1)).reshape(b, self.latent_len, *heads).transpose(1, 2)
        key, value = self.kv(x).reshape(b, n, 2, *heads).permute(2, 0, 3, 1, 4)
        query, key = self.q_norm(query), self.k_norm(key)
        x = saccade.attention(query, key, value, **hidden(attn_mask)).transpose(1, 2).reshape(b, self.latent_len, c)
        x = self.proj_drop(self.proj(x))
        if self.mlp is not None:
            x = x + self.mlp(self.norm(x))
        return {"token": lambda: x[:, 0], "avg": lambda: x.mean(1)}.get(self.pool, lambda: x)()


class SaccadePatchEmbed(Stand, PatchEmbed):
    """timm's patches; uint8 images b h w c are cut, normalised and projected in one go."""

    _saccade_normal: tuple[tuple[float, ...], tuple[float, ...]]

    @unless_traced
    def forward(self, x):
        if x.dtype != torch.uint8:
            return super().forward(x)
        p = self.patch_size[0]
        if x.ndim != 4 or x.shape[3] != self.proj.in_channels:
            raise ValueError(f"timm patches: {tuple(x.shape)=} of uint8, expected (b, h, w, {self.proj.in_channels})")
        if self.patch_size[0] != self.patch_size[1] or not self.flatten or self.dynamic_img_pad:
            raise ValueError(
                f"timm patches: {self.patch_size=}, {self.flatten=}, {self.dynamic_img_pad=}: uint8 images are for "
                "square patches in rows of tokens; give it normalised floating-point images"
            )
        if self.img_size is not None and self.strict_img_size and tuple(x.shape[1:3]) != self.img_size:
            raise ValueError(f"timm patches: {tuple(x.shape)=}, expected images of {self.img_size=}")
        if x.shape[1] % p or x.shape[2] % p:
            raise ValueError(f"timm patches: {tuple(x.shape)=}, expected sides that are multiples of {p}")
        noted("timm patches of uint8 images", None)
        mean, std = self._saccade_normal
        return self.norm(saccade.patch_embed(x, self.proj.weight, self.proj.bias, mean=mean, std=std))


class SaccadeRmsNorm(Stand, RmsNorm):
    """timm's RMS norm."""

    @unless_traced
    def forward(self, x):
        if noted("timm RMS norm", _why_not_norm(self, x, fast="cpu")):
            return super().forward(x)
        return saccade.rms_norm(x, self.weight, eps=self.eps)


class SaccadeLayerNorm(Stand, LayerNorm):
    """timm's layer norm over the last axis."""

    @unless_traced
    def forward(self, x):
        if noted("timm layer norm", _why_not_norm(self, x)):
            return super().forward(x)
        return saccade.layer_norm(x, self.weight, self.bias, eps=self.eps)


def _why_not_norm(module, x, fast=None):
    if module.weight is None or len(module.normalized_shape) != 1 or module._fast_norm:
        return "no weight, several axes or timm's fast_norm"
    if x.dtype != module.weight.dtype:
        return "dtypes"
    return None if _everywhere or x.device.type == fast else "not measured to be faster"


_OURS = {
    library_class(one): one
    for one in (
        SaccadeAttention,
        SaccadeAttentionPool,
        SaccadePatchEmbed,
        SaccadeRmsNorm,
        SaccadeLayerNorm,
        SaccadeLinear,
    )
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
