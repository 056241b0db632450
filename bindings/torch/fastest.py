"""Which kernels are the fastest for attention of tensors on a GPU, as measured: ``bench/results/h200.md``.

Forward alone: cuDNN's gradients are faster than Triton's for some shapes, but not the same bits every time.
"""

import importlib.util
from functools import cache

import torch

# For GPUs of a compute capability and 16-bit numbers, by the longest row of a head and the most keys, the first that
# fits. Triton's kernels where none does, or where what it names does not take the inputs.
MEASURED = {(9, 0): ((96, 264, "cupy"), (128, 64, "cupy"), (128, 1 << 30, "sdpa"))}


def fastest(function, arguments, options):
    """The backend for a function on CUDA tensors that names none."""
    if function == "attention_forward":
        query, key, value = arguments
    elif function == "qkv_attention_forward":
        query, key, value = arguments[0].permute(2, 0, 3, 1, 4).unbind(0)
    else:
        return "triton"
    return _for(query, key, value, **{name: options.get(name) for name in ("mask", "bias", "causal", "key_lengths")})


def _for(query, key, value, mask, bias, causal, key_lengths):
    if query.element_size() != 2 or mask is not None or bias is not None:
        return "triton"
    width, keys = max(query.shape[3], value.shape[3]), key.shape[2]
    rows = MEASURED.get(_capability(query.device), ())
    backend = next((backend for widest, most, backend in rows if width <= widest and keys <= most), "triton")
    return backend if _takes(backend, query, key, value, causal, key_lengths) else "triton"


@cache
def _capability(device):
    return torch.cuda.get_device_capability(device)


def _takes(backend, query, key, value, causal, key_lengths):
    if backend == "sdpa":
        from saccade.torch import sdpa

        return torch.backends.cudnn.is_available() and sdpa.takes(query, key, value, None, None, causal, key_lengths)
    if backend == "cupy":
        return _has_cupy() and all(map(_is_regular, (query, key, value)))
    return True


def _is_regular(x):
    """Whether rows are whole, of eights, and begin at 16 bytes: of others CuPy's kernels are the slower ones."""
    outer = all(step % 8 == 0 for step in x.stride()[:3])
    return 0 not in x.shape and x.stride(3) == 1 and x.shape[3] % 8 == 0 and outer and x.data_ptr() % 16 == 0


@cache
def _has_cupy():
    return importlib.util.find_spec("cupy") is not None
