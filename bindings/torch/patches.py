"""Patch embedding and convolutions for tensors; convolutions are torch's own.

On CPUs the product of patches and weight is torch's where kernels would take NumPy's, which wakes BLAS threads of its
own: they go on spinning beside torch's and were seen to double the time of a training step. In bfloat16 it is torch's
everywhere, of rounded patches, as it is in other layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.kernels.numba.matrices import OWN
from saccade.torch.arrays import call, compute_dtype, dense, from_numpy, to_numpy
from saccade.torch.registration import Differentiable, absent, applied, first_derivative, operator, own, present


def _patch_shapes(images, weight, bias, mean, std, backend):
    (b, h, w, _), p = images.shape, weight.shape[-1]
    return weight.new_empty((b, (h // p) * (w // p), weight.shape[0]))


@operator("patch_embed_forward", _patch_shapes)
def _patch_embed_forward(
    images: Tensor, weight: Tensor, bias: Tensor | None, mean: list[float] | None, std: list[float] | None,
    backend: str | None,
) -> Tensor:  # fmt: skip
    if not _by_torch(images, weight, backend):
        return call("patch_embed_forward", backend, images.device, images, weight, bias, mean=mean, std=std)[0]
    patches = _cut(images, weight, mean, std)
    out = F.linear(patches, weight.flatten(1).to(patches.dtype), None if bias is None else bias.to(patches.dtype))
    (b, h, w, _), p = images.shape, weight.shape[-1]
    return out.to(weight.dtype).reshape(b, (h // p) * (w // p), weight.shape[0])


def _by_torch(images, weight, backend):
    return images.device.type == "cpu" and backend in (None, "numba") and not (OWN and weight.dtype != torch.bfloat16)


def _cut(images, weight, mean, std):
    from saccade.kernels.numba.patches import cut

    patches = from_numpy(cut(to_numpy(images), to_numpy(weight), mean, std))
    return patches.to(weight.dtype) if weight.dtype == torch.bfloat16 else patches


def _patch_backward_shapes(grad_out, images, weight, mean, std, of_images, backend):
    return dense(images) if of_images else absent(weight), dense(weight), weight.new_empty(weight.shape[0])


@operator("patch_embed_backward", _patch_backward_shapes)
def _patch_embed_backward(
    grad_out: Tensor, images: Tensor, weight: Tensor, mean: list[float] | None, std: list[float] | None,
    of_images: bool, backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if not _by_torch(images, weight, backend):
        saved, options = (images, weight, weight.new_empty(weight.shape[0]), mean, std), {"of_images": of_images}
        grad_images, *gradients = call("patch_embed_backward", backend, images.device, saved, grad_out, **options)
        return absent(weight) if grad_images is None else grad_images, *gradients
    patches = _cut(images, weight, mean, std)
    grad = grad_out.reshape(-1, weight.shape[0]).to(patches.dtype)
    grad_images = absent(weight)
    if of_images:
        from saccade.kernels.numba.patches import uncut

        wide = compute_dtype(weight.dtype)
        grad_patches = grad.to(wide) @ weight.flatten(1).to(wide)
        grad_images = from_numpy(uncut(to_numpy(grad_patches), to_numpy(images), to_numpy(weight), mean, std))
    grad_weight = (grad.T @ patches).reshape(weight.shape)
    return grad_images, grad_weight.to(weight.dtype), grad.sum(0).to(weight.dtype)


class _PatchEmbed(Differentiable):
    @staticmethod
    def forward(images, weight, bias, mean, std, backend):
        return torch.ops.saccade.patch_embed_forward(images, weight, bias, mean, std, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        images, weight, bias, *options = inputs
        ctx.save_for_backward(images, weight, bias)
        ctx.options = options

    @staticmethod
    def backward(ctx, grad_out):
        images, weight, bias = ctx.saved_tensors
        mean, std, backend = ctx.options
        of_images = ctx.needs_input_grad[0]
        grad_images, grad_weight, grad_bias = first_derivative(
            torch.ops.saccade.patch_embed_backward, grad_out, images, weight, mean, std, of_images, backend
        )
        grad_images = grad_images if of_images else None
        return grad_images, grad_weight, present(grad_bias, bias), None, None, None


def patch_embed(images, weight, bias=None, *, mean=None, std=None, backend=None):
    """See ``saccade.patch_embed``."""
    mean, std = (None if x is None else [float(v) for v in x] for x in (mean, std))
    return applied(_PatchEmbed, images, weight, bias, mean, std, backend)


def conv2d(x, weight, bias=None, *, stride=1, padding=0, backend=None):
    """See ``saccade.conv2d``; torch's own, on CPUs in float32: in bfloat16 with AMX, torch 2.13 gives wrong numbers
    where the output is one pixel wide."""
    own("conv2d", backend)
    if x.dtype.itemsize == 2 and x.device.type == "cpu":
        bias = None if bias is None else bias.float()
        return conv2d(x.float(), weight.float(), bias, stride=stride, padding=padding).to(x.dtype)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding).permute(0, 2, 3, 1)


def batch_norm(x, mean, variance, scale, bias, *, eps=1e-5, backend=None):
    """See ``saccade.batch_norm``; torch's own, with given statistics."""
    own("batch_norm", backend)
    rows = x.reshape(-1, x.shape[-1])
    # Of torch 2.13 on CPUs: its gradients are wrong where a vector has gaps, which they read as if it had none; and
    # 16-bit vectors are folded into 16-bit factors.
    wide = compute_dtype(x.dtype)
    vectors = (vector.to(wide).contiguous() for vector in (mean.detach(), variance.detach(), scale, bias))
    return F.batch_norm(rows, *vectors, eps=eps).reshape(x.shape)


def average_pool(x, *, size, backend=None):
    """See ``saccade.average_pool``; torch's own."""
    own("average_pool", backend)
    return F.avg_pool2d(x.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
