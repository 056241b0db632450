"""CUDA tensors as CuPy arrays and back, on the same memory and the same stream."""

import contextlib

import cupy
import ml_dtypes
import torch


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
    """Let CuPy launch on the stream that torch uses now, so that neither waits for the other."""
    stream = torch.cuda.current_stream(device)
    with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream.cuda_stream):
        yield
