"""Patch embedding on CuPy arrays; the definition is in ``saccade.reference.patches``, the kernels in ``patches.cu``.

One kernel decodes, normalises and cuts, straight into the matrix that cuBLAS multiplies, in the weight's dtype.
"""

import math

import numpy as np

from saccade.kernels.cupy import device
from saccade.kernels.cupy.device import as_rows, core_dtype, product
from saccade.kernels.cupy.layers import column_sums, finished


def patch_embed(images, weight, bias=None, *, mean=None, std=None):
    """Decode, normalise, cut into patches and project each: b h w c -> b n e."""
    return patch_embed_forward(images, weight, bias, mean=mean, std=std)[0]


def patch_embed_forward(images, weight, bias=None, *, mean=None, std=None):
    """``patch_embed`` and what ``patch_embed_backward`` needs: (images, weight, bias, mean, std)."""
    out = product(_cut(images, weight, mean, std), _flat(weight).T)
    shape = len(images), _count(images, weight), len(weight)
    return finished(out, weight, shape, bias=bias), (images, weight, bias, mean, std)


def patch_embed_backward(saved, grad_out, *, of_images=True):
    """Gradients for images (None for uint8, and without ``of_images``), weight and bias."""
    images, weight, bias, mean, std = saved
    grad = as_rows(grad_out.astype(weight.dtype, copy=False))
    grad_images = None
    if of_images and images.dtype != np.uint8:
        grad_images = device.empty(images.shape, images.dtype)
        _run("uncut", grad_images, weight, mean, std, product(grad, _flat(weight)), images.size)
    grad_weight = finished(product(grad.T, _cut(images, weight, mean, std)), weight, weight.shape)
    return grad_images, grad_weight, None if bias is None else column_sums(grad, bias)


def _flat(weight):
    return weight.reshape(len(weight), math.prod(weight.shape[1:]))


def _count(images, weight):
    side = weight.shape[-1]
    return (images.shape[1] // side) * (images.shape[2] // side)


def _cut(images, weight, mean, std):
    """The matrix of decoded, normalised patches, (b n, c p p)."""
    rows = len(images) * _count(images, weight)
    patches = device.empty((rows, math.prod(weight.shape[1:])), weight.dtype)
    _run("cut", images, weight, mean, std, patches, patches.size)
    return patches


def _run(kernel, images, weight, mean, std, patches, threads):
    numbers = (None if x is None else device.put(np.array(x, np.float64)) for x in (mean, std))
    values = *images.shape, weight.shape[-1], images, *numbers, patches
    device.run("patches.cu", kernel, core_dtype(weight.dtype), threads, *values)
