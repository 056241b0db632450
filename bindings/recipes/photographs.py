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
    """scikit-learn's 1,797 handwritten digits, split: (images, labels) to train on and to test on.

    Images are uint8 (n, 8, 8, 1), levels 0 … 255; 360 are for testing.
    """
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = order[:360], order[360:]
    return (images[train], data.target[train]), (images[test], data.target[test])


def shifted(images, rng, most=1):
    """Each image moved by up to ``most`` pixels in both directions, zeros moving in."""
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    b, h, w, _ = images.shape
    y, x = rng.integers(2 * most + 1, size=(2, b))
    rows, columns = y[:, None] + np.arange(h), x[:, None] + np.arange(w)
    return padded[np.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]
