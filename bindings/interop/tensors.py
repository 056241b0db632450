"""Which attention of tensors a drop-in takes over, and which it leaves to the library."""

import torch

from saccade.interop.counts import count
from saccade.interop.measured import is_faster

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def why_not(query, key, value, *, causal=False, dropout=0.0, gradients=None, everywhere=False):
    """Why a call is left alone, in a few words, or None.

    Args:
        query, key, value: (b, h, t, d), (b, h, s, d) and (b, h, s, e).
        causal: whether query t sees keys s <= t alone, as torch says it.
        dropout: of the weights.
        gradients: whether there will be a backward pass; if None, whether a tensor asks for one.
        everywhere: whether to take over what is not known to be faster.
    """
    if dropout:
        return "dropout"
    if not query.dtype == key.dtype == value.dtype or query.dtype not in DTYPES:
        return "dtypes"
    if query.device.type not in ("cpu", "cuda"):
        return f"tensors on {query.device.type}"
    if not query.ndim == key.ndim == value.ndim == 4 or not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        return "grouped or broadcast heads"
    if query.shape[3] != key.shape[3] or key.shape[2] != value.shape[2] or not query.shape[3]:
        return "shapes"
    if causal and query.shape[2] != key.shape[2]:
        return "causal over unequal lengths"
    if everywhere:
        return None
    if gradients is None:
        gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    dtype, sizes = str(query.dtype).removeprefix("torch."), (query.shape[2], key.shape[2], query.shape[3])
    if query.device.type == "cpu" and is_faster(dtype, *sizes, causal=causal, gradients=gradients):
        return None
    return "not measured to be faster"


def noted(place, reason):
    """Count a call, unless ``torch.compile`` is tracing it; the reason."""
    if not torch.compiler.is_compiling():
        count(place, reason)
    return reason


def hidden(mask):
    """The option that torch's ``attn_mask`` is to our attention: bool is a mask, numbers are added to the scores."""
    if mask is None:
        return {}
    return {"mask" if mask.dtype == torch.bool else "bias": mask}
