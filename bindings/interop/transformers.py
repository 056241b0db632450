"""Attention in Hugging Face's transformers: ViT, CLIP, SigLIP, DINOv2 and all others that ask its attention interface.

    saccade.interop.transformers.register()
    model = CLIPModel.from_pretrained(path, attn_implementation="saccade")

ImageGPT never asks: while registered, its attention class computes self-attention with ours, whatever the config says.
"""

from contextlib import contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import EncoderDecoderCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.imagegpt.modeling_imagegpt import ImageGPTAttention

import saccade
from saccade.interop.tensors import hidden, noted, why_not

NAME = "saccade"
# what an implementation may be asked for that ours has not
_OPTIONS = ("softcap", "position_bias", "s_aux", "cache", "output_attentions")

_everywhere = False
_original_forward = ImageGPTAttention.forward


def register(*, everywhere=False):
    """Let ``attn_implementation="saccade"`` be known, and ImageGPT's attention be ours.

    A call that is not taken over (see ``saccade.interop``) is computed by "sdpa", ImageGPT's by its own code.
    """
    global _everywhere
    _everywhere = everywhere
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    ImageGPTAttention.forward = _imagegpt_attention  # pyright: ignore[reportAttributeAccessIssue]


def unregister():
    """Undo ``register``; models that were made with it need another implementation from then on."""
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(NAME, None)  # it has no public way to forget
    ImageGPTAttention.forward = _original_forward


@contextmanager
def registered(*, everywhere=False):
    """``register`` for a block."""
    register(everywhere=everywhere)
    try:
        yield
    finally:
        unregister()


def _attention(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **options
):  # fmt: skip
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    asked = next((name for name in _OPTIONS if options.get(name) not in (None, False)), None)
    reason = asked or why_not(query, key, value, causal=causal, dropout=dropout, everywhere=_everywhere)
    if noted("transformers attention", reason):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **options
        )
    out = saccade.attention(query, key, value, **hidden(attention_mask), causal=causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def _imagegpt_attention(
    self, hidden_states, layer_past=None, attention_mask=None, encoder_hidden_states=None, encoder_attention_mask=None,
    use_cache=False, output_attentions=False, **options,
):  # fmt: skip
    if self.is_cross_attention or encoder_hidden_states is not None or isinstance(layer_past, EncoderDecoderCache):
        noted("transformers ImageGPT attention", "cross-attention")
        return _original_forward(
            self, hidden_states, layer_past, attention_mask, encoder_hidden_states, encoder_attention_mask, use_cache,
            output_attentions, **options,
        )  # fmt: skip
    b, n, _ = hidden_states.shape
    qkv_bn3hd = self.c_attn(hidden_states).view(b, n, 3, self.num_heads, self.head_dim)
    query, key, value = qkv_bn3hd.permute(2, 0, 3, 1, 4)
    if layer_past is not None:
        key, value = layer_past.update(key, value, self.layer_idx)
    if noted("transformers ImageGPT attention", _why_not_imagegpt(self, query, key, value, output_attentions)):
        attend = self._upcast_and_reordered_attn if self.reorder_and_upcast_attn else self._attn
        out, weights = attend(query, key, value, attention_mask)
    else:
        scale = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        scale /= self.layer_idx + 1 if self.scale_attn_by_inverse_layer_idx else 1
        bias = _added_to_scores(self, attention_mask, query.shape[2], key.shape[2])
        out = saccade.attention(query, key, value, bias=bias, causal=bias is None, scale=scale)
        weights = None
    out = self._merge_heads(out, self.num_heads, self.head_dim)
    return self.resid_dropout(self.c_proj(out)), weights


def _added_to_scores(module, attention_mask, queries, keys):
    """What its own code makes of a mask, whose hidden numbers are finite: a row with nothing else to attend to attends
    to all of those alike."""
    if attention_mask is None:
        return None
    seen = module.bias[:, :, keys - queries : keys, :keys]
    return torch.where(seen, attention_mask, attention_mask + torch.finfo(attention_mask.dtype).min)


def _why_not_imagegpt(module, query, key, value, output_attentions):
    if output_attentions or module.reorder_and_upcast_attn:
        return "output_attentions" if output_attentions else "reorder_and_upcast_attn"
    dropout = module.attn_dropout.p if module.training else 0.0
    # unlike torch's, its causal attention ends where the keys end, as ours does: lengths may differ
    causal = query.shape[2] == key.shape[2]
    return why_not(query, key, value, causal=causal, dropout=dropout, everywhere=_everywhere)
