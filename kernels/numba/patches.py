"""Patch embedding on CPUs; the definition is in ``saccade.reference.patches``.

One kernel decodes, normalises and cuts, straight into the matrix that is multiplied.
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import math

import numpy as np

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.layers import as_rows
from saccade.kernels.numba.matrices import matmul, raised, rounded, silent
from saccade.kernels.numba.memory import core_dtype, describe, load_row, read_byte, store_row
from saccade.kernels.numba.team import offer, shared
from saccade.kernels.numba.threads import parallel_for


def patch_embed(images, weight, bias=None, *, mean=None, std=None):
    """Decode, normalise, cut into patches and project each: b h w c -> b n e."""
    return patch_embed_forward(images, weight, bias, mean=mean, std=std)[0]


@silent
def patch_embed_forward(images, weight, bias=None, *, mean=None, std=None):
    """``patch_embed`` and what ``patch_embed_backward`` needs: (images, weight, bias, mean, std)."""
    patches = cut(images, weight, mean, std)
    out = matmul(patches, _flat(weight).T, weight.dtype, bias)
    out = out.reshape(len(images), _count(images, weight), len(weight))
    return out, (images, weight, bias, mean, std)


@silent
def patch_embed_backward(saved, grad_out, *, of_images=True):
    """Gradients for images (None for uint8, and without ``of_images``), weight and bias."""
    images, weight, bias, mean, std = saved
    grad = as_rows(raised(grad_out))
    grad_weight = matmul(grad.T, cut(images, weight, mean, std), weight.dtype).reshape(weight.shape)
    grad_bias = None if bias is None else rounded(grad.sum(0), bias)
    grad_images = None
    if of_images and images.dtype != np.uint8:
        grad_images = uncut(matmul(grad, _flat(weight), grad.dtype), images, weight, mean, std)
    return grad_images, grad_weight, grad_bias


def _flat(weight):
    return raised(weight).reshape(len(weight), math.prod(weight.shape[1:]))


def _count(images, weight):
    p = weight.shape[-1]
    return (images.shape[1] // p) * (images.shape[2] // p)


def _affine(images, weight, mean, std):
    """The mean to subtract and the deviation to divide by, per channel."""
    core, c = core_dtype(weight.dtype), images.shape[3]
    centre, deviation = np.zeros(c, core), np.ones(c, core)
    centre[:], deviation[:] = 0 if mean is None else mean, 1 if std is None else std
    return centre, deviation


def cut(images, weight, mean, std):
    """The matrix of decoded, normalised patches, (b n, c p p) in the core dtype, that is multiplied by the weight."""
    centre, deviation = _affine(images, weight, mean, std)
    p = weight.shape[-1]
    patches = np.empty((len(images) * _count(images, weight), images.shape[3] * p * p), centre.dtype)
    sizes, bands = (*images.shape, p), len(images) * (images.shape[1] // p)
    if images.dtype == np.uint8:
        levels = np.arange(256, dtype=centre.dtype) / centre.dtype.type(255)
        normal = np.ascontiguousarray((levels - centre[:, None]) / deviation[:, None])
        parallel_for(_cut_bytes, bands, 1, describe(images), sizes, normal, patches)
    else:
        parallel_for(_cut, bands, 1, describe(images), sizes, centre, deviation, patches)
    return patches


def uncut(grad_patches, images, weight, mean, std):
    """The gradient for images from that for ``cut``'s matrix."""
    grad_images = np.empty(images.shape, images.dtype)
    _, inverse = _affine(images, weight, mean, std)
    sizes, items = (*images.shape, weight.shape[-1]), images.shape[0] * (images.shape[1] // weight.shape[-1])
    parallel_for(_uncut, items, 1, describe(grad_images), sizes, inverse, grad_patches)
    return grad_images


@jit
def _cut(work, images, sizes, centre, deviation, patches):
    """Row-bands of patches: patches[band · columns + column, (c p p)]."""
    b, h, w, c, p = sizes
    columns = w // p
    row = np.empty(w, centre.dtype)
    for band in shared(offer(work)):
        i_b, first_row = band // (h // p), band % (h // p) * p
        for channel in range(c):
            for i in range(p):
                address = images[0] + i_b * images[2] + (first_row + i) * images[3] + channel * images[5]
                load_row(row, address, images[4], images[1])
                for j in range(w):
                    row[j] = (row[j] - centre[channel]) / deviation[channel]
                for column in range(columns):
                    for j in range(p):
                        patches[band * columns + column, (channel * p + i) * p + j] = row[column * p + j]


@jit
def _cut_bytes(work, images, sizes, normal, patches):
    """``_cut`` of uint8 images, whose 256 levels are normalised already: ``normal`` is (channels, 256)."""
    b, h, w, c, p = sizes
    columns = w // p
    for band in shared(offer(work)):
        first = images[0] + band // (h // p) * images[2] + band % (h // p) * p * images[3]
        for column in range(columns):
            for i in range(p):
                address = first + i * images[3] + column * p * images[4]
                for channel in range(c):
                    at, place = address + channel * images[5], (channel * p + i) * p
                    for j in range(p):
                        level = np.uint64(read_byte(at, j * images[4]))
                        patches[band * columns + column, np.uint64(place + j)] = normal[channel, level]


@jit
def _uncut(work, grad_images, sizes, deviation, grad_patches):
    b, h, w, c, p = sizes
    columns = w // p
    row = np.empty(w, deviation.dtype)
    for band in shared(offer(work)):
        i_b, first_row = band // (h // p), band % (h // p) * p
        for channel in range(c):
            for i in range(p):
                for column in range(columns):
                    for j in range(p):
                        pixel = grad_patches[band * columns + column, (channel * p + i) * p + j]
                        row[column * p + j] = pixel / deviation[channel]
                address = grad_images[0] + i_b * grad_images[2] + (first_row + i) * grad_images[3]
                store_row(address + channel * grad_images[5], grad_images[4], grad_images[1], row)
