"""Patch embedding: the definition."""

import numpy as np

from saccade.reference.layers import linear_backward, linear_forward
from saccade.reference.precision import rounded, upcast


def patchify(images, patch):
    """Cut b h w c into non-overlapping patches, b n (c p p): row-major, channels first inside a patch.

    That is the order in which a convolution's weight (e, c, p, p) flattens.
    """
    b, h, w, c = images.shape
    grid = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return grid.transpose(0, 1, 3, 5, 2, 4).reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(patches, patch, size):
    """The inverse of ``patchify``: b n (c p p) -> b h w c for ``size`` = (h, w)."""
    h, w = size
    b, _, features = patches.shape
    c = features // patch**2
    grid = patches.reshape(b, h // patch, w // patch, c, patch, patch)
    return grid.transpose(0, 1, 4, 2, 5, 3).reshape(b, h, w, c)


def patch_embed(images, weight, bias=None, *, mean=None, std=None):
    """Decode, normalise, cut into patches and project each: b h w c -> b n e.

    uint8 is divided by 255 first, floating point is taken as it is; then (x − mean) / std per channel, if given;
    then out_bne = sum_(c p p) patch_bn(cpp) weight_e(cpp) + bias_e.
    Dosovitskiy et al. 2021, equation 1 (without the class token and the positions).
    """
    return patch_embed_forward(images, weight, bias, mean=mean, std=std)[0]


def patch_embed_forward(images, weight, bias=None, *, mean=None, std=None):
    """``patch_embed`` and what ``patch_embed_backward`` needs."""
    dtype = upcast(weight).dtype
    pixels = images.astype(dtype) / dtype.type(255) if images.dtype == np.uint8 else upcast(images)
    pixels = pixels if mean is None else pixels - np.asarray(mean, dtype)
    pixels = pixels if std is None else pixels / np.asarray(std, dtype)
    patches = patchify(pixels, weight.shape[-1])
    out, saved = linear_forward(patches, upcast(weight).reshape(len(weight), -1), bias)
    return rounded(out, weight), (images, weight, bias, std, saved)


def patch_embed_backward(saved, grad_out, *, of_images=True):
    """Gradients for images (None for uint8, and without ``of_images``), weight and bias."""
    images, weight, bias, std, saved_linear = saved
    grad_patches, grad_weight, grad_bias = linear_backward(saved_linear, grad_out)
    grad_images = None
    if of_images and images.dtype != np.uint8:
        grad_images = unpatchify(grad_patches, weight.shape[-1], images.shape[1:3])
        grad_images = grad_images if std is None else grad_images / np.asarray(std, grad_images.dtype)
        grad_images = rounded(grad_images, images)
    return grad_images, rounded(grad_weight.reshape(weight.shape), weight), grad_bias
