"""Pictures as the models saw them in training: files to uint8 pixels, resized and cropped by each family's own rule.

    images = saccade.images.preprocess([saccade.images.decode("cat.jpg")], saccade.images.clip(224))

The models take uint8 images as they are, and normalise them by their config's mean and std.
"""

import io
import math
import os
import warnings
from dataclasses import dataclass

import numpy as np

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gigabyte of RGB
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclass(frozen=True)
class Preprocessing:
    """From pictures of any size to (height, width).

    ``keep_ratio``: the shorter side becomes ``size`` divided by ``crop``, and the middle is cut out; otherwise both
    sides become ``size``. ``method`` is Pillow's "bicubic" or "bilinear", which average where they shrink (those of
    ``saccade.reference.images``), or "point_bilinear", which does not (``tf.image.resize``).
    """

    height: int
    width: int
    keep_ratio: bool
    method: str
    crop: float = 1.0


def clip(size):
    """OpenAI's and open_clip's: the shorter side to ``size``, bicubic, then the middle."""
    return Preprocessing(size, size, keep_ratio=True, method="bicubic")


def siglip(size):
    """SigLIP's in open_clip and Hugging Face: both sides to ``size``, bicubic."""
    return Preprocessing(size, size, keep_ratio=False, method="bicubic")


def vit_google(size):
    """vision_transformer's: both sides to ``size``, bilinear between the nearest pixels."""
    return Preprocessing(size, size, keep_ratio=False, method="point_bilinear")


def vit_hugging_face(size):
    """Hugging Face's for Google's ViT: both sides to ``size``, bilinear."""
    return Preprocessing(size, size, keep_ratio=False, method="bilinear")


def vit_timm(size, crop=0.9):
    """timm's for ViT: the shorter side to ``size / crop``, bicubic, then the middle; at 384 pixels ``crop`` is 1."""
    return Preprocessing(size, size, keep_ratio=True, method="bicubic", crop=crop)


def imagegpt(size=32):
    """Hugging Face's for ImageGPT, before the palette: both sides to ``size``, bilinear."""
    return Preprocessing(size, size, keep_ratio=False, method="bilinear")


def preprocess(images, how):
    """uint8 (b, height, width, 3) of images by a ``Preprocessing``.

    Args:
        images: uint8 (h, w, 3) each, of any sizes; or b of one size in one array, which are resized together.
        how: a ``Preprocessing``.
    """
    batches = [images] if isinstance(images, np.ndarray) and images.ndim == 4 else [image[None] for image in images]
    out, start = np.empty((len(images), how.height, how.width, 3), np.uint8), 0
    for batch in batches:
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3 or 0 in batch.shape[1:]:
            raise ValueError(f"preprocess: an image of {batch.dtype} {batch.shape[1:]}, expected uint8 (h, w, 3)")
        out[start : start + len(batch)] = _prepared(batch, how)
        start += len(batch)
    return out


def _prepared(images, how):
    if not how.keep_ratio:
        return _resized(images, how.height, how.width, how.method)
    h, w = images.shape[1:3]
    short = math.floor(min(how.height, how.width) / how.crop)
    if h <= w:
        images = _resized(images, short, int(short * w / h), how.method)
    else:
        images = _resized(images, int(short * h / w), short, how.method)
    have = images.shape[1:3]
    top, left = (round((a - b) / 2) for a, b in zip(have, (how.height, how.width), strict=True))
    return images[:, top : top + how.height, left : left + how.width]


def _resized(images, height, width, method):
    if images.shape[1:3] == (height, width):
        return images
    if method == "point_bilinear":
        return np.round(_between(_between(images, 1, height), 2, width)).astype(np.uint8)
    from saccade.kernels.numba.images import resize

    return resize(images, height, width, method=method)


def _between(x, axis, new):
    """Linear interpolation along an axis at the centres of ``new`` pixels, between the two nearest of ``x``."""
    old = x.shape[axis]
    at = np.clip((np.arange(new, dtype=np.float32) + 0.5) * (old / new) - 0.5, 0, old - 1)
    low = np.floor(at).astype(int)
    share = (at - low).astype(np.float32).reshape((-1, 1, 1) if axis == 1 else (1, -1, 1))
    return x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, old - 1), axis) * share


def decode(source, *, max_pixels=MAX_PIXELS):
    """The pixels of a picture, uint8 (h, w, 3).

    Turned upright as its EXIF data say; greyscale, palettes and CMYK become RGB, transparency is dropped as CLIP's
    own code drops it, 16-bit greyscale keeps its upper eight bits.

    Args:
        source: a path, bytes, or a binary file.
        max_pixels: larger pictures are a ValueError before any of them is decoded.
    """
    pillow = _pillow()
    Image = pillow.Image
    name = source if isinstance(source, (str, os.PathLike)) else "the picture"
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes, which are judged here, and of metadata, which nobody asks for
            with Image.open(file) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise ValueError(f"{name}: {width} x {height} pixels, expected at most {max_pixels}")
                return _rgb(pillow.ImageOps.exif_transpose(image), name)
    except pillow.UnidentifiedImageError:
        raise ValueError(f"{name}: no picture of a format that Pillow knows") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{name}: truncated or malformed ({error})") from None


def _pillow():
    try:
        import PIL.Image
        import PIL.ImageOps
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'saccade.images needs Pillow, which is not installed: pip install "saccade[models]"'
        ) from None
    return PIL


def _rgb(image, name):
    if image.mode in _GREY_16:
        levels = np.asarray(image)
        if levels.size and not 0 <= levels.min() <= levels.max() < 2**16:
            raise ValueError(f"{name}: levels of {levels.min()} to {levels.max()}, expected 16 bits")
        return np.repeat((levels // 256).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError(f"{name}: floating-point levels, whose range is not known")
    return np.asarray(image.convert("RGB"))
