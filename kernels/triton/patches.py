"""Patch embedding on GPUs; the definition is in ``saccade.reference.patches``.

The matrix of patches is never stored: its blocks are read from the images where they lie, decoded and normalised by
one multiplication and addition in float32 at least, rounded to the weight's dtype and multiplied. Inside a patch the
kernels go by rows, pixels, channels, as images lie; the weight is turned that way first.
"""

import functools

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import core_dtype, describe, load_tile, load_vector, product, store_tile
from saccade.kernels.triton.products import parts_of_sum, tile_at, tile_of_product, tiles_of, transposed


def patch_embed(images, weight, bias=None, *, mean=None, std=None):
    """Decode, normalise, cut into patches and project each: b h w c -> b n e."""
    return patch_embed_forward(images, weight, bias, mean=mean, std=std)[0]


def patch_embed_forward(images, weight, bias=None, *, mean=None, std=None):
    """``patch_embed`` and what ``patch_embed_backward`` needs: (images, weight, bias, mean, std)."""
    grid = _grid(images, weight)
    patches, features, e = grid[0], weight[0].numel(), len(weight)
    out = weight.new_empty((len(images), grid[1], e))
    tiles = tiles_of(weight.dtype)
    if out.numel():
        with torch.cuda.device_of(images):
            _project[(triton.cdiv(patches, tiles["ROWS"]) * triton.cdiv(e, tiles["COLUMNS"]),)](
                describe(images), describe(_affine(images, weight, mean, std)), describe(_matrix(weight)),
                describe(bias), describe(out.view(patches, e)), *grid, features, e, **_sides(weight), **tiles,
            )  # fmt: skip
    return out, (images, weight, bias, mean, std)


def patch_embed_backward(saved, grad_out):
    """Gradients for images (None for uint8), weight and bias."""
    images, weight, bias, mean, std = saved
    grad = grad_out.reshape(_grid(images, weight)[0], len(weight))
    affine = _affine(images, weight, mean, std)
    grad_weight = _weight_gradient(images, weight, affine, grad)
    grad_images = None if images.dtype == torch.uint8 else _image_gradient(images, weight, affine, grad)
    grad_bias = None if bias is None else grad.sum(0, dtype=affine.dtype).to(bias.dtype)
    return grad_images, grad_weight, grad_bias


def _weight_gradient(images, weight, affine, grad):
    (e, c, p, _), features, tiles = weight.shape, weight[0].numel(), tiles_of(weight.dtype)
    grid = _grid(images, weight)
    blocks = triton.cdiv(e, tiles["ROWS"]) * triton.cdiv(features, tiles["COLUMNS"])
    parts, in_part = parts_of_sum(blocks, grid[0], tiles["DEPTH"])
    out = weight.new_empty((parts, e, features), dtype=affine.dtype)
    if out.numel():
        with torch.cuda.device_of(images):
            _project_backward_weight[(blocks, parts)](
                describe(images), describe(affine), describe(grad), describe(out), *grid, features, e, in_part,
                **_sides(weight), **tiles,
            )  # fmt: skip
    return out.sum(0).view(e, p, p, c).permute(0, 3, 1, 2).to(weight.dtype, memory_format=torch.contiguous_format)


def _image_gradient(images, weight, affine, grad):
    grid, features, tiles = _grid(images, weight), weight[0].numel(), tiles_of(weight.dtype)
    grad_images = images.new_empty(images.shape)
    if grad_images.numel():
        with torch.cuda.device_of(images):
            _project_backward_images[(triton.cdiv(grid[0], tiles["ROWS"]) * triton.cdiv(features, tiles["COLUMNS"]),)](
                describe(grad_images), describe(affine), describe(_matrix(weight)), describe(grad), *grid, features,
                len(weight), **_sides(weight), **tiles,
            )  # fmt: skip
    return grad_images


def _grid(images, weight):
    """How many patches there are in all, in an image and in a row of one."""
    b, h, w, _ = images.shape
    p = weight.shape[-1]
    return b * (h // p) * (w // p), (h // p) * (w // p), w // p


def _sides(weight):
    """What a kernel is compiled for: the side of a patch and the number of channels."""
    return {"P": weight.shape[-1], "C": weight.shape[1]}


def _matrix(weight):
    """The weight as (p p c, e)."""
    return weight.permute(2, 3, 1, 0).reshape(weight[0].numel(), len(weight))


def _affine(images, weight, mean, std):
    """(2, c): what to multiply a pixel of each channel by, and what to add then."""
    mean, std = (None if x is None else tuple(map(float, x)) for x in (mean, std))
    white = 255.0 if images.dtype == torch.uint8 else 1.0
    return _affine_of(mean, std, white, weight.shape[1], core_dtype(weight.dtype), images.device)


@functools.lru_cache(maxsize=64)  # a copy from the host would stop a CUDA graph from being captured
def _affine_of(mean, std, white, channels, dtype, device):
    mean, std = mean or (0.0,) * channels, std or (1.0,) * channels
    numbers = [1 / (white * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    return torch.tensor(numbers, dtype=dtype, device=device)


@triton.jit
def _places(images, i_patch, i_feature, in_image, in_row, P: tl.constexpr, C: tl.constexpr):
    """Pointers to the pixels of a block of the matrix of patches, and their channels."""
    i_b, i_in_image = i_patch // in_image, i_patch % in_image
    i_y = i_in_image // in_row * P + i_feature // (P * C)
    i_x = i_in_image % in_row * P + i_feature % (P * C) // C
    i_c = i_feature % C
    return images[0] + i_b * images[1] + i_y * images[2] + i_x * images[3] + i_c * images[4], i_c


@triton.jit
def _load_patches(
    images, affine, i_patch, i_feature, patches, in_image, in_row, features, P: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    """A block of the matrix of decoded, normalised patches, 0 at and beyond ``patches`` and ``features``."""
    m_inside = (i_patch < patches) & (i_feature < features)
    p_pixels, i_c = _places(images, i_patch, i_feature, in_image, in_row, P, C)
    b_pixels = tl.load(p_pixels, mask=m_inside, other=0).to(affine[0].dtype.element_ty)
    p_affine = affine[0] + i_c * affine[2]
    return tl.where(m_inside, b_pixels * tl.load(p_affine) + tl.load(p_affine + affine[1]), 0.0)


@triton.jit
def _project(
    images, affine, weight, bias, out, patches, in_image, in_row, features, e, P: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    row_block, column_block = tile_at(tl.program_id(0), patches, e, ROWS, COLUMNS)
    i_patch = (row_block * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None]
    i_e = (column_block * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64))[None, :]
    b_out = tl.zeros([ROWS, COLUMNS], CORE)
    for first in range(0, features, DEPTH):
        i_feature = first + tl.arange(0, DEPTH)
        b_patches = _load_patches(
            images, affine, i_patch, i_feature[None, :], patches, in_image, in_row, features, P, C
        )
        b_weight = load_tile(weight, i_feature.to(tl.int64)[:, None], i_e, features, e)
        b_out += product(b_patches, b_weight, CORE, PRODUCT)
    if bias is not None:
        b_out += load_vector(bias, i_e, e).to(CORE)
    store_tile(out, i_patch, i_e, patches, e, b_out)


@triton.jit
def _project_backward_weight(
    images, affine, grad, out, patches, in_image, in_row, features, e, in_part, P: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """dW of ``in_part`` patches: a part of the sum over all."""
    row_block, column_block = tile_at(tl.program_id(0), e, features, ROWS, COLUMNS)
    i_e = (row_block * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None]
    i_feature = (column_block * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    start = tl.program_id(1) * in_part
    stop = tl.minimum(start + in_part, patches)
    b_out = tl.zeros([ROWS, COLUMNS], CORE)
    for first in range(start, stop, DEPTH):
        i_patch = first + tl.arange(0, DEPTH).to(tl.int64)
        b_grad = load_tile(transposed(grad), i_e, i_patch[None, :], e, stop)
        b_patches = _load_patches(
            images, affine, i_patch[:, None], i_feature, stop, in_image, in_row, features, P, C
        )  # fmt: skip
        b_out += product(b_grad, b_patches, CORE, PRODUCT)
    p_out = out[0] + tl.program_id(1).to(tl.int64) * out[1] + i_e * out[2] + i_feature * out[3]
    tl.store(p_out, b_out, mask=(i_e < e) & (i_feature < features))


@triton.jit
def _project_backward_images(
    grad_images, affine, weight, grad, patches, in_image, in_row, features, e, P: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    row_block, column_block = tile_at(tl.program_id(0), patches, features, ROWS, COLUMNS)
    i_patch = (row_block * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None]
    i_feature = (column_block * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64))[None, :]
    b_grad = tile_of_product(
        grad, transposed(weight), i_patch, i_feature, patches, features, 0, e, ROWS, COLUMNS, DEPTH, CORE, PRODUCT
    )
    p_pixels, i_c = _places(grad_images, i_patch, i_feature, in_image, in_row, P, C)
    b_grad *= tl.load(affine[0] + i_c * affine[2])
    tl.store(
        p_pixels, b_grad.to(grad_images[0].dtype.element_ty), mask=(i_patch < patches) & (i_feature < features)
    )  # fmt: skip
