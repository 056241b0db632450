"""What the gate cannot see of numba's losses: rows that are all but certain, infinite logits, empty batches."""

import numpy as np
import pytest

from saccade import reference
from saccade.kernels.numba import layers, losses, tiles
from saccade.testing import gate


def pairs(scale, dtype=np.float32):
    """Normalised embeddings of pairs that nearly agree."""
    rng = np.random.default_rng(0)
    images = layers.l2_normalize(rng.standard_normal((64, 128)).astype(dtype))
    texts = layers.l2_normalize(images + rng.standard_normal((64, 128)).astype(dtype) * dtype(0.01))
    return images, texts, np.array(scale, dtype)


def relative_errors(operation, arguments):
    """The largest error of the loss and of each gradient, relative to the largest true number."""
    loss, saved = getattr(losses, f"{operation}_forward")(*arguments)
    wide = [x.astype(np.float64) if x.dtype.kind == "f" else x for x in arguments]
    true_loss, true_saved = getattr(reference, f"{operation}_forward")(*wide)
    actual = loss, *getattr(losses, f"{operation}_backward")(saved, np.float32(1))
    true = true_loss, *getattr(reference, f"{operation}_backward")(true_saved, np.float64(1))
    return [float(np.abs(a - t).max() / np.abs(t).max()) for a, t in zip(actual, true, strict=True)]


@pytest.mark.parametrize("scale", [5, 10, 15, 20, 30, 60])
def test_rows_that_are_all_but_certain_keep_their_digits(scale):
    """An error of u in a logit is one of u in every weight; logits are below ``scale``, so u <= scale 2⁻²³."""
    images, texts, factor = pairs(scale)
    labels, bound = np.arange(len(images)), max(16, scale) * 2.0**-23 * 4
    assert max(relative_errors("clip_loss", (images, texts, factor))) < bound
    assert max(relative_errors("linear_cross_entropy", (images, texts * factor, labels))) < bound
    assert max(relative_errors("softmax_cross_entropy", ((images @ texts.T) * factor, labels))) < bound


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_infinite_logits_give_what_the_definition_gives(smoothing):
    logits = np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32)
    logits[0, 3], logits[1, 1], logits[2, 2], logits[3, 0], logits[4, 5] = np.nan, np.inf, -np.inf, np.inf, -np.inf
    logits[5] = -np.inf
    options = {"label_smoothing": smoothing, "reduction": "none"}
    loss, saved = losses.softmax_cross_entropy_forward(logits, np.arange(7), **options)
    with np.errstate(all="ignore"):
        true, true_saved = reference.softmax_cross_entropy_forward(logits.astype(np.float64), np.arange(7), **options)
        true_grad = reference.softmax_cross_entropy_backward(true_saved, np.ones(7))[0]
    np.testing.assert_array_equal(np.isnan(loss), np.isnan(true))
    np.testing.assert_array_equal(np.isposinf(loss), np.isposinf(true))
    grad = losses.softmax_cross_entropy_backward(saved, np.ones(7, np.float32))[0]
    np.testing.assert_array_equal(np.isfinite(grad), np.isfinite(true_grad))


def test_empty_batches_have_no_mean():
    none, one = np.zeros((0, 4), np.float32), np.ones((), np.float32)
    for operation, arguments in {
        "clip_loss": (none, none, one),
        "siglip_loss": (none, none, one, one),
        "softmax_cross_entropy": (none, np.zeros(0, int)),
        "linear_cross_entropy": (none, np.ones((5, 4), np.float32), np.zeros(0, int)),
        "sigmoid_cross_entropy": (none, none),
    }.items():
        loss, saved = getattr(losses, f"{operation}_forward")(*arguments)
        assert loss.shape == () and np.isnan(loss)
        gradients = getattr(losses, f"{operation}_backward")(saved, np.float32(1))
        assert gradients[0].shape == (0, 4)


@pytest.mark.parametrize("scale", [10.0, -10.0, 0.0])
@pytest.mark.parametrize("largest, fewest", [(1, 1), (4, 2), (64, 1)])
@pytest.mark.parametrize("operation", ["clip_loss", "siglip_loss", "linear_cross_entropy"])
def test_bands_of_rows_give_what_the_definition_gives(operation, largest, fewest, scale, monkeypatch):
    """Of 333 rows in six blocks: six bands, two of three blocks, or one."""
    monkeypatch.setattr(tiles, "LARGEST_BAND", largest)
    monkeypatch.setattr(tiles, "FEWEST_BANDS", fewest)
    rng = np.random.default_rng(0)
    one, two = (rng.standard_normal((333, 40)).astype(np.float32) / 6 for _ in range(2))
    numbers = np.array(scale, np.float32), np.array(-1.0, np.float32)
    last = {"clip_loss": numbers[:1], "siglip_loss": numbers, "linear_cross_entropy": (rng.integers(0, 333, 333),)}
    options = {"label_smoothing": 0.1} if operation == "linear_cross_entropy" else {}
    gate.assert_right(operation, losses, (one, two, *last[operation]), options)
