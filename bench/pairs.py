"""Contrastive losses of so many pairs that their matrix of logits is not kept: what they are held to.

The truth is exact in float64 in 64 sampled rows of each embedding's gradient, in the loss and in the gradients of scale
and bias. All of them need sums over every row and column of the logits, taken in blocks: in float64 up to ``WIDE``
pairs, and beyond from float32 products and exponentials added in float64, whose errors average out over a row to less
than a tenth of the allowance (a test shows it where both can be had).

The allowance comes from the same computation in the inputs' dtype: sums over rows and columns in float32, once in order
and once as NumPy adds, of products as BLAS gives them; sampled rows, and sums of n numbers, by two ways and by four
repeats with rounding errors drawn anew.
Rows are of length 1 and the scale is small, as in the cases: exponentials need no running maximum.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from saccade.files import replacing
from saccade.kernels.numba.threads import get_threads
from saccade.testing import gate
from saccade.testing.ways import Way

WIDE = 1 << 13
BLOCK, STRIP = 1024, 32
ORDERS = ("in order", "online")


@dataclass(frozen=True)
class Sums:
    """Sums over the matrix of logits, (terms, n) each: of every row, and of every column if the loss needs those.

    For the CLIP loss the terms are e and e·product, with e = exp(scale (product − 1)); for the SigLIP loss
    softplus(logit), σ(logit) and σ(logit)·product. ``own`` are the products of the pairs themselves, (n,), and
    ``strayed``, (n,), as much as rounding the gradient of the logits to 16 bits adds to rows of Σ gradient·product.
    """

    rows: np.ndarray
    columns: np.ndarray
    own: np.ndarray
    strayed: np.ndarray


def _terms(operation, products, factors):
    scale, *bias = (products.dtype.type(x) for x in factors)
    if operation == "clip_loss":
        weights = np.exp(scale * (products - products.dtype.type(1)))
        return weights, weights * products
    odds = np.exp(scale * products + bias[0])
    weights = odds / (1 + odds)
    return np.log1p(odds), weights, weights * products


def sums(operation, arguments):
    """The true ``Sums``, and those in the compute dtype of the inputs for every order."""
    way = Way("online", arguments[0].dtype)
    images, texts = (x.astype(way.core) for x in arguments[:2])
    factors = arguments[2:]
    exact = [x.astype(np.float64) if len(x) <= WIDE else x for x in (images, texts)]
    count, n = 2 if operation == "clip_loss" else 3, len(images)
    zeros = partial(np.zeros, (count, n))
    true, *ordinary = (
        Sums(zeros(dtype=core), zeros(dtype=core), np.einsum("ie,ie->i", *both, dtype=core), np.zeros(n))
        for core, both in ((np.float64, exact), *((way.core, (images, texts)) for _ in ORDERS))
    )
    kept = np.empty((count, BLOCK, n), way.core)
    wide = kept if exact[0].dtype == way.core else np.empty(kept.shape)
    with ThreadPoolExecutor(get_threads()) as pool:
        for start in range(0, n, BLOCK):
            some = slice(start, min(start + BLOCK, n))
            products = images[some] @ texts.T
            exactly = products if wide is kept else exact[0][some] @ exact[1].T

            def rows(i, start=start, products=products, exactly=exactly):
                strip = slice(i, min(i + STRIP, len(products)))
                kept[:, strip] = _terms(operation, products[strip], factors)
                if wide is not kept:
                    wide[:, strip] = _terms(operation, exactly[strip], factors)
                at = slice(start + strip.start, start + strip.stop)
                _add_rows(true, ordinary, kept[:, strip], wide[:, strip], at)

            list(pool.map(rows, range(0, len(products), STRIP)))
            if operation == "clip_loss":
                list(pool.map(partial(_add_columns, true, ordinary, kept, wide, slice(len(products))), range(count)))
    strayed = np.zeros(n) if way.core == way.dtype else _strayed(operation, way, images, texts, factors, true)
    return true, {order: replace(one, strayed=strayed) for order, one in zip(ORDERS, ordinary, strict=True)}


def _add_rows(true, ordinary, terms, wide, some):
    in_order, online = ordinary
    for i, (term, exactly) in enumerate(zip(terms, wide, strict=True)):
        true.rows[i, some] = exactly.sum(1, dtype=np.float64)
        in_order.rows[i, some] = np.ascontiguousarray(term.T).sum(0)  # the sum of rows adds one after the other
        online.rows[i, some] = term.sum(1)


def _add_columns(true, ordinary, terms, wide, block, i):
    in_order, online = ordinary
    true.columns[i] += wide[i, block].sum(0, dtype=np.float64)
    online.columns[i] += terms[i, block].sum(0)
    terms[i, 0] += in_order.columns[i]  # last, as it writes over the term: row after row on what is there
    in_order.columns[i] = terms[i, block].sum(0)


def _strayed(operation, way, images, texts, factors, true):
    """How far rows stray, either way, from some of the rows: a sum over all of them is as large with these again."""
    some = (slice(start, start + STRIP) for start in range(0, len(images), 8 * STRIP))
    strayed = [_strayed_rows(operation, way, images, texts, factors, true, one) for one in some]
    return np.resize(np.concatenate(strayed), len(images)) * np.random.default_rng(0).choice([-1, 1], len(images))


def _strayed_rows(operation, way, images, texts, factors, true, some):
    products = images[some] @ texts.T
    slopes = _slopes(operation, _terms(operation, products, factors), some, true).astype(way.core)
    return np.einsum("ij,ij->i", way.round(slopes) - slopes, products, dtype=np.float64)


def _slopes(operation, terms, some, true):
    """The gradient of some rows of logits, times n and over the loss's, in the dtype of the terms."""
    if operation == "clip_loss":
        slopes = terms[0] * (0.5 / true.rows[0, some, None]).astype(terms[0].dtype)
        slopes += terms[0] * (0.5 / true.columns[0]).astype(terms[0].dtype)
    else:
        slopes = terms[1].copy()
    at = np.arange(len(slopes))
    slopes[at, some.start + at] -= 1
    return slopes


def scalars(way, operation, factors, sums, cotangent):
    """(the loss, the gradients of scale and bias) from sums, along a way of adding n numbers."""
    n, own = len(sums.own), sums.own
    scale, grad = (way.core.type(x) for x in (factors[0], cotangent))
    total = lambda x: way.sum_all(np.asarray(x, way.core)) / way.core.type(n)  # noqa: E731
    strayed = total(sums.strayed if way.noise is None else sums.strayed * way.noise.choice([-1, 1], n))
    if operation == "clip_loss":
        logs = [way.log(way.rounding(one[0])) + scale for one in (sums.rows, sums.columns)]
        means = [way.rounding(one[1] / one[0]) for one in (sums.rows, sums.columns)]
        loss = total(logs[0] - scale * way.rounding(own)) / 2 + total(logs[1] - scale * own) / 2
        return loss, (grad * ((total(means[0] - own) + total(means[1] - own)) / 2 + strayed),)
    softplus, weights, products = (way.rounding(one) for one in sums.rows)
    logits = scale * own + way.core.type(factors[1])
    return total(softplus - logits), (grad * (total(products - own) + strayed), grad * total(weights - 1))


def gradient_rows(way, operation, arguments, sums, cotangent, at, of_texts):
    """The rows ``at`` of the gradient of the images, or of the texts: (rows, e)."""
    mine, others = arguments[1::-1] if of_texts else arguments[:2]
    scale, *bias = way.raise_(*arguments[2:])
    pieces = (others[i : i + 512].T for i in range(0, len(others), 512))  # that caches hold
    logits = scale * np.concatenate([way.matmul(mine[at], piece) for piece in pieces], 1)
    if operation == "clip_loss":
        its, theirs = (way.log(way.rounding(one[0])) + scale for one in (sums.rows, sums.columns)[:: 1 - 2 * of_texts])
        slopes = (way.exp(logits - its[at, None]) + way.exp(logits - theirs)) / 2
    else:
        slopes = 1 / (1 + way.exp(-(logits + bias[0])))
    slopes[np.arange(len(at)), at] -= 1
    return way.matmul(scale * slopes * (way.core.type(cotangent) / way.core.type(len(others))), others)


class Standard(gate.Standard):
    """What a contrastive loss of many pairs is held to; kept at ``path`` for the next who asks, if given.

    Args:
        operation, arguments, cotangents: as for ``gate.Standard``; without cotangents the loss alone is judged.
        at: the rows of the images' gradient, and of the texts', that are judged.
    """

    def __init__(self, operation, arguments, cotangents, at, path=None):
        self.operation, self.cotangents, self.terms = operation, cotangents, len(arguments[0])
        if path is not None and Path(path).exists():
            with np.load(path) as kept:
                results = [kept[str(i)] for i in range(len(kept))]
        else:
            results = self._computed(arguments, at)
            if path is not None:
                with replacing(path) as file:
                    np.savez(file, **{str(i): values for i, values in enumerate(results)})
        (self.outputs, self.gradients), *self._ordinary = [
            ((loss,), rest) for loss, *rest in zip(*results, strict=True)
        ]

    def _computed(self, arguments, at):
        """The loss and every gradient, the true one and those of ordinary ways along the first axis."""
        dtype, noise = arguments[0].dtype, np.random.default_rng(0)
        true, ordinary = sums(self.operation, arguments)
        wide = tuple(x.astype(np.float64) for x in arguments)
        found = [self._results(Way("online", np.dtype(np.float64)), wide, true, at)]
        ways = [Way(order, dtype) for order in ORDERS] + [Way("online", dtype, noise) for _ in range(4)]
        found += [self._results(way, arguments, ordinary[way.order], at) for way in ways]
        return [np.array(values, np.float64) for values in zip(*found, strict=True)]

    def _results(self, way, arguments, sums, at):
        cotangent = self.cotangents[0] if self.cotangents else 1.0
        loss, factors = scalars(way, self.operation, arguments[2:], sums, cotangent)
        if not self.cotangents:
            return (loss,)
        rows = [gradient_rows(way, self.operation, arguments, sums, cotangent, one, i) for i, one in enumerate(at)]
        return loss, *rows, *factors


def sampled(n, rng):
    """One row of each of 64 runs of rows, so that none that is longer than two of them goes unseen."""
    ends = np.linspace(0, n, 65).astype(np.int64)
    return rng.integers(ends[:-1], ends[1:])


def judgeable(dtype):
    """Whether the truth has more digits than results for inputs of ``dtype`` may have."""
    return dtype != "float64"
