"""CUDA tensors as CuPy arrays and back, on the same memory and the same stream."""

import contextlib
import math
from types import SimpleNamespace
from typing import Any

import cupy
import ml_dtypes
import numpy as np
import torch

from saccade.kernels.cupy import attention_hopper

_DTYPES = {torch.bfloat16: np.dtype(ml_dtypes.bfloat16), torch.float16: np.dtype(np.float16)}


def to_cupy(x):
    """A CUDA tensor as a CuPy array on the same memory; anything but a tensor as it is."""
    if not isinstance(x, torch.Tensor):
        return x
    x = x.detach()
    if x.dtype == torch.bfloat16:  # handed over as its bits
        return cupy.from_dlpack(x.view(torch.int16)).view(ml_dtypes.bfloat16)
    return cupy.from_dlpack(x)


def from_cupy(x):
    """A CuPy array as a CUDA tensor on the same memory; anything but an array as it is."""
    if not isinstance(x, cupy.ndarray):
        return x
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_dlpack(x.view(cupy.int16)).view(torch.bfloat16)
    return torch.from_dlpack(x)


@contextlib.contextmanager
def on_current_stream(device):
    """Let CuPy launch on the stream that torch uses now, so that neither waits for the other, and have its memory from
    torch, which knows of graphs that are captured."""
    stream, memory = torch.cuda.current_stream(device), cupy.cuda.using_allocator(_MEMORY.malloc)
    with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream.cuda_stream), memory:
        yield


_MEMORY: Any = cupy.cuda.PythonFunctionAllocator(
    lambda size, device: torch.cuda.caching_allocator_alloc(max(size, 1), device),
    lambda address, device: torch.cuda.caching_allocator_delete(address),
)


def attention_forward(query, key, value, *, mask, bias, causal, key_lengths, scale, return_lse):
    """``attention_forward`` of ``saccade.kernels.cupy`` without exchanging arrays, or None where there is none."""
    scale = 1 / math.sqrt(query.shape[3]) if scale is None else scale
    lengths = None if key_lengths is None else key_lengths.to(torch.int64)
    before = *map(_seen, (query, key, value)), bias, mask, _seen(lengths)
    if query.dtype not in _DTYPES or not attention_hopper.takes((*before, None, None, causal, scale)):
        return None
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)
    attention_hopper.attend((*before, _seen(out), _seen(lse), causal, scale))
    saved = query, key, value, bias, mask, key_lengths, out, lse, causal, scale
    return ((out, lse) if return_lse else out), saved


def qkv_attention_forward(qkv, *, causal, key_lengths, scale):
    """The same of ``qkv_attention_forward``."""
    b, n, _, h, d = qkv.shape
    scale = 1 / math.sqrt(d) if scale is None else scale
    lengths = None if key_lengths is None else key_lengths.to(torch.int64)
    before = *map(_seen, qkv.permute(2, 0, 3, 1, 4).unbind(0)), None, None, _seen(lengths)
    if qkv.dtype not in _DTYPES or not attention_hopper.takes((*before, None, None, causal, scale)):
        return None
    out, lse = qkv.new_empty((b, n, h, d)), qkv.new_empty((b, h, n), dtype=torch.float32)
    attention_hopper.attend((*before, _seen(out.transpose(1, 2)), _seen(lse), causal, scale))
    return out, (qkv, key_lengths, out, lse, causal, scale)


def _seen(x):
    """As much of a CuPy array as a launch asks for; None stays None."""
    if x is None:
        return None
    size = x.element_size()
    return SimpleNamespace(
        shape=tuple(x.shape), strides=tuple(size * step for step in x.stride()),
        dtype=_DTYPES.get(x.dtype) or np.dtype(np.float32 if x.dtype == torch.float32 else np.int64),
        data=SimpleNamespace(ptr=x.data_ptr()),
    )  # fmt: skip
