"""Patch embedding on GPUs; the definition is in ``saccade.reference.patches``.

The matrix of patches is never stored: its blocks are read from the images where they lie, decoded and normalised by
one multiplication and addition in float32 at least, rounded to the weight's dtype and multiplied. Inside a patch the
kernels go by rows, pixels, channels, as images lie; the weight is turned that way first.
"""

import functools

import torch
import triton
import triton.language as tl

from saccade.kernels.triton.memory import beside, core_dtype, describe, load_tile, load_vector, product, store_tile
from saccade.kernels.triton.products import parts_of_sum, tile_at, tile_of_product, tiles_of, transposed

# Columns of a tile of the gradient for images, by bytes a number: as many pointers are alive at once.
IMAGE_COLUMNS = {2: 64, 4: 32, 8: 32}


def patch_embed(images, weight, bias=None, *, mean=None, std=None):
    """Decode, normalise, cut into patches and project each: b h w c -> b n e."""
    return patch_embed_forward(images, weight, bias, mean=mean, std=std)[0]


def patch_embed_forward(images, weight, bias=None, *, mean=None, std=None):
    """``patch_embed`` and what ``patch_embed_backward`` needs: (images, weight, bias, mean, std)."""
    grid = _grid(images, weight)
    patches, features, e = grid[0], weight[0].numel(), len(weight)
    out = weight.new_empty((len(images), grid[1], e))
    tiles, affine, pixels = tiles_of(weight.dtype), _affine(images, weight, mean, std), beside(images, weight.dtype)
    if out.numel():
        with torch.cuda.device_of(images):
            _project[(triton.cdiv(patches, tiles["ROWS"]) * triton.cdiv(e, tiles["COLUMNS"]),)](
                describe(pixels), describe(affine), describe(_matrix(weight)), describe(bias),
                describe(out.view(patches, e)), *grid, features, e, **_layout(pixels, weight), **tiles,
            )  # fmt: skip
    return out, (images, weight, bias, mean, std)


def patch_embed_backward(saved, grad_out, *, of_images=True):
    """Gradients for images (None for uint8, and without ``of_images``), weight and bias."""
    images, weight, bias, mean, std = saved
    grad = grad_out.reshape(_grid(images, weight)[0], len(weight))
    affine = _affine(images, weight, mean, std)
    grad_weight = _weight_gradient(images, weight, affine, grad)
    grad_images = None
    if of_images and images.dtype != torch.uint8:
        grad_images = _image_gradient(images, weight, affine, grad)
    grad_bias = None if bias is None else grad.sum(0, dtype=affine.dtype).to(bias.dtype)
    return grad_images, grad_weight, grad_bias


def _weight_gradient(images, weight, affine, grad):
    (e, c, p, _), features, tiles = weight.shape, weight[0].numel(), tiles_of(weight.dtype)
    grid, pixels = _grid(images, weight), beside(images, weight.dtype)
    blocks = triton.cdiv(e, tiles["ROWS"]) * triton.cdiv(features, tiles["COLUMNS"])
    parts, in_part = parts_of_sum(blocks, grid[0], tiles["DEPTH"])
    out = weight.new_empty((parts, e, features), dtype=affine.dtype)
    if out.numel():
        with torch.cuda.device_of(images):
            _project_backward_weight[(blocks, parts)](
                describe(pixels), describe(affine), describe(grad), describe(out), *grid, features, e, in_part,
                **_layout(pixels, weight), **tiles,
            )  # fmt: skip
    return out.sum(0).view(e, p, p, c).permute(0, 3, 1, 2).to(weight.dtype, memory_format=torch.contiguous_format)


def _image_gradient(images, weight, affine, grad):
    grid, features = _grid(images, weight), weight[0].numel()
    tiles = {**tiles_of(weight.dtype), "COLUMNS": IMAGE_COLUMNS[weight.element_size()]}
    grad_images = images.new_empty(images.shape)
    if grad_images.numel():
        with torch.cuda.device_of(images):
            _project_backward_images[(triton.cdiv(grid[0], tiles["ROWS"]) * triton.cdiv(features, tiles["COLUMNS"]),)](
                describe(grad_images), describe(affine), describe(_matrix(weight)), describe(grad), *grid, features,
                len(weight), **_layout(grad_images, weight), **tiles,
            )  # fmt: skip
    return grad_images


def _grid(images, weight):
    """How many patches there are in all, in an image and in a row of one."""
    b, h, w, _ = images.shape
    p = weight.shape[-1]
    return b * (h // p) * (w // p), (h // p) * (w // p), w // p


def _layout(images, weight):
    """What a kernel is compiled for: the side of a patch, the number of channels, and whether rows of pixels lie
    without gaps, as they are then read many at a time."""
    c, p = weight.shape[1:3]
    return {"P": p, "C": c, "DENSE": images.stride()[2:] == (c, 1)}


def _matrix(weight):
    """The weight as (p p c, e)."""
    return weight.permute(2, 3, 1, 0).reshape(weight[0].numel(), len(weight))


def _affine(images, weight, mean, std):
    """(2, p p c): what to multiply each number of a patch by, and what to add then."""
    mean, std = (None if x is None else tuple(map(float, x)) for x in (mean, std))
    white = 255.0 if images.dtype == torch.uint8 else 1.0
    return _affine_of(mean, std, white, *weight.shape[1:3], core_dtype(weight.dtype), images.device)


@functools.lru_cache(maxsize=64)  # a copy from the host would stop a CUDA graph from being captured
def _affine_of(mean, std, white, channels, side, dtype, device):
    mean, std = mean or (0.0,) * channels, std or (1.0,) * channels
    numbers = [1 / (white * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
    return torch.tensor(numbers, dtype=dtype).repeat(1, side * side).to(device)


@triton.jit
def _places(images, i_patch, i_feature, in_image, in_row, P: tl.constexpr, C: tl.constexpr, DENSE: tl.constexpr):
    """Pointers to the pixels of a block of the matrix of patches."""
    i_b, i_in_image = (i_patch // in_image).to(tl.int64), i_patch % in_image
    i_down, i_along = (i_in_image // in_row).to(tl.int64) * P, (i_in_image % in_row).to(tl.int64) * P
    i_row, i_in_row = (i_feature // (P * C)).to(tl.int64), i_feature % (P * C)
    p_rows = images[0] + i_b * images[1] + i_down * images[2]
    if DENSE:  # in these words the compiler sees what of it is contiguous
        return p_rows + i_along * C + (i_row * images[2] + i_in_row)
    i_pixel, i_c = (i_in_row // C).to(tl.int64), (i_in_row % C).to(tl.int64)
    return p_rows + i_along * images[3] + (i_row * images[2] + i_pixel * images[3] + i_c * images[4])


@triton.jit
def _load_patches(
    images, affine, i_patch, i_feature, patches, in_image, in_row, features,
    P: tl.constexpr, C: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """A block of the matrix of decoded, normalised patches; at and beyond ``patches`` and ``features`` any finite
    number, for something of 0 to be multiplied by."""
    m_inside = (i_patch < patches) & (i_feature < features)
    p_pixels = _places(images, i_patch, i_feature, in_image, in_row, P, C, DENSE)
    b_pixels = tl.load(p_pixels, mask=m_inside, other=0).to(affine[0].dtype.element_ty)
    p_affine = affine[0] + i_feature
    b_factor = tl.load(p_affine, mask=i_feature < features, other=0)
    return b_pixels * b_factor + tl.load(p_affine + affine[1], mask=i_feature < features, other=0)


@triton.jit
def _project(
    images, affine, weight, bias, out, patches, in_image, in_row, features, e, P: tl.constexpr, C: tl.constexpr,
    DENSE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    row_block, column_block = tile_at(tl.program_id(0), patches, e, ROWS, COLUMNS)
    i_patch = (row_block * ROWS + tl.arange(0, ROWS))[:, None]
    i_e = (column_block * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    b_out = tl.zeros([ROWS, COLUMNS], CORE)
    for first in range(0, features, DEPTH):
        i_feature = first + tl.arange(0, DEPTH)
        b_patches = _load_patches(
            images, affine, i_patch, i_feature[None, :], patches, in_image, in_row, features, P, C, DENSE
        )
        b_weight = load_tile(weight, i_feature[:, None], i_e, features, e)
        b_out += product(b_patches, b_weight, CORE, PRODUCT)
    if bias is not None:
        b_out += load_vector(bias, i_e, e).to(CORE)
    store_tile(out, i_patch, i_e, patches, e, b_out)


@triton.jit
def _project_backward_weight(
    images, affine, grad, out, patches, in_image, in_row, features, e, in_part, P: tl.constexpr, C: tl.constexpr,
    DENSE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """dW of ``in_part`` patches: a part of the sum over all."""
    row_block, column_block = tile_at(tl.program_id(0), e, features, ROWS, COLUMNS)
    i_e = (row_block * ROWS + tl.arange(0, ROWS))[:, None]
    i_feature = (column_block * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    start = tl.program_id(1) * in_part
    stop = tl.minimum(start + in_part, patches)
    b_out = tl.zeros([ROWS, COLUMNS], CORE)
    for first in range(start, stop, DEPTH):
        i_patch = first + tl.arange(0, DEPTH)
        b_grad = load_tile(transposed(grad), i_e, i_patch[None, :], e, stop)
        b_patches = _load_patches(
            images, affine, i_patch[:, None], i_feature, stop, in_image, in_row, features, P, C, DENSE
        )  # fmt: skip
        b_out += product(b_grad, b_patches, CORE, PRODUCT)
    p_out = out[0] + tl.program_id(1).to(tl.int64) * out[1] + i_e.to(tl.int64) * out[2] + i_feature * out[3]
    tl.store(p_out, b_out, mask=(i_e < e) & (i_feature < features))


@triton.jit
def _project_backward_images(
    grad_images, affine, weight, grad, patches, in_image, in_row, features, e, P: tl.constexpr, C: tl.constexpr,
    DENSE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, CORE: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    row_block, column_block = tile_at(tl.program_id(0), patches, features, ROWS, COLUMNS)
    i_patch = (row_block * ROWS + tl.arange(0, ROWS))[:, None]
    i_feature = (column_block * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    b_grad = tile_of_product(
        grad, transposed(weight), i_patch, i_feature, patches, features, 0, e, ROWS, COLUMNS, DEPTH, CORE, PRODUCT
    )
    p_pixels = _places(grad_images, i_patch, i_feature, in_image, in_row, P, C, DENSE)
    b_grad *= tl.load(affine[0] + i_feature, mask=i_feature < features, other=0)
    tl.store(
        p_pixels, b_grad.to(grad_images[0].dtype.element_ty), mask=(i_patch < patches) & (i_feature < features)
    )  # fmt: skip
