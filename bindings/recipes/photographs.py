"""Real pictures that ship inside scikit-image and scikit-learn: nothing is downloaded."""

from pathlib import Path
from typing import Any

import numpy as np

NAMES = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
    "retina.jpg", "rocket.jpg", "china.jpg", "flower.jpg",
)  # fmt: skip
HELD_OUT = 0.25  # the share of each photograph, at its right, that training never sees


def photographs(short_side=96):
    """The photographs by name, uint8 (h, w, 3), resized so that the shorter side has ``short_side`` pixels."""
    try:
        import skimage
        import sklearn.datasets
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'the photographs need {error.name}: pip install "saccade[demo]"') from None
    folders = Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images"
    pictures = {}
    for name in NAMES:
        file = next(folder / name for folder in folders if (folder / name).exists())
        with Image.open(file) as image:
            factor = short_side / min(image.size)
            size = tuple(round(side * factor) for side in image.size)
            pictures[file.stem] = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    return pictures


def split(picture):
    """(the part for training, the part held out): left and right of one vertical cut."""
    cut = round(picture.shape[1] * (1 - HELD_OUT))
    return picture[:, :cut], picture[:, cut:]


def crops(pictures, count, side, rng):
    """``count`` random crops, uint8 (count, side, side, 3), half of them mirrored, and which picture each is from."""
    labels = rng.integers(len(pictures), size=count)
    out = np.empty((count, side, side, 3), np.uint8)
    for i, label in enumerate(labels):
        height, width, _ = pictures[label].shape
        y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
        crop = pictures[label][y : y + side, x : x + side]
        out[i] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return out, labels


def digits(seed=0):
    """scikit-learn's 1,797 handwritten digits, enlarged from 8 x 8: (images, labels) to train on and to test on.

    Images are uint8 (n, 16, 16, 1), levels 0 … 255; 360 are for testing.
    """
    from scipy import ndimage
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    large: Any = ndimage.zoom(data.images * (255 / 16), (1, 2, 2), order=1, mode="nearest", grid_mode=True)
    images = np.round(large).astype(np.uint8)[..., None]
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = order[:360], order[360:]
    return (images[train], data.target[train]), (images[test], data.target[test])


def jittered(images, rng, turn=12.0, zoom=0.1, shift=2.0):
    """Each grey image turned by up to ``turn`` degrees, zoomed by up to ``zoom``, moved by up to ``shift`` pixels."""
    from scipy import ndimage

    b, h, w, _ = images.shape
    angles, zooms = np.deg2rad(rng.uniform(-turn, turn, b)), 1 + rng.uniform(-zoom, zoom, b)
    shifts, middle = rng.uniform(-shift, shift, (b, 2)), ((h - 1) / 2, (w - 1) / 2)
    cosines, sines = np.cos(angles) / zooms, np.sin(angles) / zooms
    moved = np.empty_like(images)
    for i in range(b):
        y, x = middle + shifts[i]
        # written out: a product by NumPy would wake BLAS threads, which then spin beside torch's
        offset = middle[0] - cosines[i] * y + sines[i] * x, middle[1] - sines[i] * y - cosines[i] * x
        matrix = np.array([[cosines[i], -sines[i]], [sines[i], cosines[i]]])
        moved[i, :, :, 0] = ndimage.affine_transform(images[i, :, :, 0], matrix, offset, order=1)
    return moved
