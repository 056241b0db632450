"""Pictures read from files and cut to a model's size, as the papers cut theirs. Pictures are uint8 (h, w, 3)."""

import math

import numpy as np

from saccade import images

try:
    from PIL import Image
except ModuleNotFoundError:
    raise ModuleNotFoundError('reading pictures needs PIL: pip install "saccade[models]"', name="PIL") from None

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")


class Broken(Exception):
    """A sample that cannot be used: ``name`` says which, ``reason`` why."""

    def __init__(self, name, reason):
        super().__init__(name, reason)
        self.name, self.reason = name, reason


def read_picture(source, name):
    """``saccade.images.decode`` of a file or of bytes; ``Broken`` with ``name`` if there is no whole picture."""
    try:
        return images.decode(source)
    except ValueError as error:
        raise Broken(name, str(error).removeprefix(f"{source}: ")) from None
    except OSError as error:
        raise Broken(name, f"{type(error).__name__}: {error}") from None


def resized(picture, height, width, box=None):
    """The picture, or its part in ``box`` = (left, top, right, bottom), at another size: bicubic, antialiased."""
    image = Image.fromarray(picture)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def stretched(picture, side):
    """The whole picture as a square, whatever its shape: how ViT's code evaluates."""
    return resized(picture, side, side)


def central(picture, side):
    """The largest square in the middle, resized: how CLIP and ImageGPT evaluate."""
    height, width, _ = picture.shape
    least = min(height, width)
    left, top = (width - least) // 2, (height - least) // 2
    return resized(picture, side, side, (left, top, left + least, top + least))


def random_square(picture, side, rng):
    """A square as large as the shorter side, anywhere: CLIP's only augmentation (section 2.4)."""
    return _square(picture, side, min(picture.shape[:2]), rng)


def random_scaled_square(picture, side, rng):
    """A random square of 224/256 … 224/384 of the shorter side: ImageGPT's (its appendix resizes that side first)."""
    return _square(picture, side, min(picture.shape[:2]) * 224 / rng.uniform(256, 384), rng)


def random_area(picture, side, rng, least=0.05, mirror=True):
    """A rectangle of ``least`` … 1 of the area, 3:4 … 4:3, made square and mirrored half of the time: ViT's.

    With ``least`` of 1 the middle; without ``mirror`` never mirrored, as where left and right mean something.

    Szegedy et al., "Going Deeper with Convolutions", 2015, section 6. After ten tries that do not fit, the middle.
    """
    height, width, _ = picture.shape
    out = None
    for _ in range(10 if least < 1 else 0):
        area = height * width * rng.uniform(least, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            out = resized(picture, side, side, (left, top, left + w, top + h))
            break
    out = central(picture, side) if out is None else out
    return out[:, ::-1] if mirror and rng.random() < 0.5 else out


def _square(picture, side, cut, rng):
    height, width, _ = picture.shape
    left, top = rng.uniform(0, width - cut), rng.uniform(0, height - cut)
    return resized(picture, side, side, (left, top, left + cut, top + cut))
