"""Patch embedding as ordinary programs compute it."""

# How many operands and gradients a tuple holds, and which are None, depends on the operation and its arguments.
# pyright: reportAssignmentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import numpy as np

from saccade import reference
from saccade.testing.ordinary.layers import linear


def patch_embed(way, arguments, options, cotangents):
    """Decode, normalise, cut into patches, project."""
    images, weight, bias = (*arguments, None)[:3]
    mean, std = options.get("mean"), options.get("std")
    e, c, p, _ = weight.shape
    x = way.raise_(images)[0]
    x = x / way.core.type(255) if images.dtype == np.uint8 else x
    centre, spread = (
        fill if value is None else np.asarray(value, way.core)
        for value, fill in ((mean, way.core.type(0)), (std, way.core.type(1)))
    )
    x = (x - centre) / spread
    patches = reference.patchify(x, p)
    flat_weight = weight.reshape(e, -1)
    outputs, gradients = linear(way, (patches, flat_weight, bias), {}, cotangents)
    if cotangents is None:
        return outputs, ()
    grad_patches, grad_weight, grad_bias = gradients
    grad_images = None
    if images.dtype != np.uint8:
        grad_images = reference.unpatchify(grad_patches, p, images.shape[1:3]) / spread
    return outputs, (grad_images, grad_weight.reshape(weight.shape), grad_bias)
