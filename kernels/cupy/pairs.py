"""Losses of all rows of one matrix with all rows of another: what ``losses`` needs of logits that are products.

products = A Bᵀ, a panel of rows at a time. Gradients of logits are handed to cuBLAS in the dtype of A and B, before
they are multiplied by what all of them have in common, which is small and would underflow in 16 bits.
"""

from saccade.kernels.cupy import device
from saccade.kernels.cupy.device import THREADS, core_dtype, product
from saccade.kernels.cupy.layers import finish

PANEL = 1 << 25  # logits that exist at a time


def label_losses(hidden, weight, labels, ignore_index, label_smoothing):
    """(the loss of each row, its statistics) of logits hidden weightᵀ."""
    per_row, statistics = _empty(hidden, len(hidden)), _empty(hidden, 3, len(hidden))
    integers = labels.astype("int64")
    for panel in _panels(hidden, weight):
        arrays = dict(labels=integers, of_rows=statistics, per_row=per_row)
        panel.run("row_statistics", **arrays, ignore_index=ignore_index, number=label_smoothing)
    return per_row, statistics


def label_gradients(hidden, weight, labels, statistics, ignore_index, label_smoothing, factors, factor):
    """Gradients for hidden and weight; ``factors`` of the rows' losses, ``factor`` of all, either may be None."""
    arrays = dict(labels=labels.astype("int64"), of_rows=statistics, factors=factors)
    options = dict(ignore_index=ignore_index, number=label_smoothing)
    return _gradients(hidden, weight, factor, "label_gradients", **arrays, **options)


def pair_statistics(images, texts, scale):
    """The statistics of each row and of each column of logits scale · images textsᵀ."""
    of_rows, of_columns = _empty(images, 3, len(images)), _empty(images, 3, len(images))
    for panel in _panels(images, texts):
        panel.run("row_statistics", scale=scale, of_rows=of_rows)
        panel.run("column_statistics", scale=scale, of_columns=of_columns)
    return of_rows, of_columns


def siglip_per_row(images, texts, scale, bias):
    """The sum of −log σ(±logit) of each row."""
    per_row = _empty(images, len(images))
    for panel in _panels(images, texts):
        panel.run("siglip_rows", scale=scale, bias=bias, per_row=per_row)
    return per_row


def pair_gradients(images, texts, scale, bias, grad, statistics=(None, None)):
    """Gradients for images and texts, and of each row of logits the shares of scale and bias, but for ``grad``."""
    of_rows, of_columns = statistics
    scale_rows, bias_rows = _empty(images, len(images)), _empty(images, len(images))
    given = dict(scale=scale, bias=bias, of_rows=of_rows, of_columns=of_columns)
    kernel = "clip_gradients" if bias is None else "siglip_gradients"
    if bias is None:
        given["owns"] = _own_products(images, texts)
    both = _gradients(images, texts, scale * grad, kernel, **given, scale_rows=scale_rows, bias_rows=bias_rows)
    return *both, scale_rows, bias_rows


def _empty(like, *shape):
    return device.empty(shape, core_dtype(like.dtype))


def _own_products(images, texts):
    owns = _empty(images, len(images))
    device.run("pairs.cu", "own_products", owns.dtype, len(images) * THREADS, *images.shape, images, texts, owns)
    return owns


class _Panel:
    """Some rows of the products of two matrices."""

    # what a kernel is given, in the order of its `Panel`
    ARRAYS = (
        "scale", "bias", "labels", "of_rows", "of_columns", "owns", "factors",
        "per_row", "grads", "scale_rows", "bias_rows",
    )  # fmt: skip
    BY_ELEMENT, BY_COLUMN = ("label_gradients",), ("column_statistics",)

    def __init__(self, a, b, first, stop):
        self.rows, self.first, self.n = a[first:stop], first, len(a)
        self.products = product(self.rows, b.T)

    def run(self, kernel, *, ignore_index=0, number=0.0, **arrays):
        """Run a kernel of ``pairs.cu``: a block a row unless it is one of those by element or by column."""
        rows, k = self.products.shape
        threads = rows * k if kernel in self.BY_ELEMENT else k if kernel in self.BY_COLUMN else rows * THREADS
        values = rows, k, self.first, self.n, ignore_index, self.products, *(arrays.get(x) for x in self.ARRAYS)
        device.run("pairs.cu", kernel, self.products.dtype, threads, *values, number=number)


def _panels(a, b):
    rows = max(1, PANEL // len(b))
    rows -= rows % 64 if rows > 64 else 0
    for first in range(0, len(a), rows):
        yield _Panel(a, b, first, min(first + rows, len(a)))


def _gradients(a, b, factor, kernel, **given):
    """dA = factor G B and dB = factor Gᵀ A, with the G of each panel from ``kernel``."""
    grad_a, grad_b = device.empty(a.shape, a.dtype), device.empty(b.shape, b.dtype)
    total = device.zeros(b.shape, core_dtype(b.dtype))
    for panel in _panels(a, b):
        grads = device.empty(panel.products.shape, a.dtype)
        panel.run(kernel, grads=grads, **given)
        finish(product(grads, b), grad_a[panel.first : panel.first + len(panel.rows)], factor=factor)
        total += product(grads.T, panel.rows)
    finish(total, grad_b, factor=factor)
    return grad_a, grad_b
