"""What the operations check about their arguments before anything is computed.

Shapes, dtypes, devices and options are checked for every framework, also under ``torch.compile``. Values (labels,
lengths, scales inside arrays) are checked by ``saccade.values`` where they lie in host memory.
"""

import math

import numpy as np

from saccade.arrays import FLOATING, dtype_name, framework_of, is_floating

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def expected(condition, operation, found, accepted, error=ValueError):
    """Raise ``error`` in one sentence that names the operation, what was found and what would be accepted."""
    if not condition:
        raise error(f"{operation}: {found}, expected {accepted}")


def check_arrays(operation, **arrays):
    """All are floating-point arrays of one framework, dtype and device; None is passed over."""
    first_name, first = next(iter(arrays.items()))
    for name, x in arrays.items():
        if x is None:
            continue
        if framework_of(x) is None:
            raise TypeError(f"{operation}: {name} is a {type(x).__name__}, expected a NumPy, torch or CuPy array")
        if not is_floating(x):
            raise TypeError(f"{operation}: {name}.dtype is {dtype_name(x)}, expected one of {', '.join(FLOATING)}")
        check_same_place(operation, name, x, first_name, first)
        if dtype_name(x) != dtype_name(first):
            raise TypeError(
                f"{operation}: {name}.dtype is {dtype_name(x)}, expected {dtype_name(first)} as {first_name} has"
            )


def check_same_place(operation, name, x, other_name, other):
    """Both are arrays of one framework on one device."""
    if framework_of(x) is None:
        raise TypeError(f"{operation}: {name} is a {type(x).__name__}, expected a NumPy, torch or CuPy array")
    if framework_of(x) != framework_of(other):
        raise TypeError(
            f"{operation}: {name} is a {framework_of(x)} array, "
            f"expected a {framework_of(other)} array as {other_name} is"
        )
    if framework_of(x) != "numpy" and x.device != other.device:
        raise ValueError(f"{operation}: {name} is on {x.device}, expected {other.device} where {other_name} is")


def check_option(operation, name, value, accepted):
    """``value`` is one of ``accepted``."""
    if value not in accepted:
        raise ValueError(f"{operation}: {name}={value!r}, expected one of {', '.join(map(repr, accepted))}")


def check_scale(operation, scale):
    """A finite number, or None."""
    if scale is None:
        return
    if isinstance(scale, np.ndarray) or not isinstance(scale, (int, float, np.number)) or isinstance(scale, bool):
        if framework_of(scale) is not None or not hasattr(scale, "node"):  # a traced float is accepted as it is
            raise TypeError(f"{operation}: scale is a {type(scale).__name__}, expected a number or None")
        return
    if not math.isfinite(scale):
        raise ValueError(f"{operation}: {scale=}, expected a finite number")


def check_eps(operation, eps):
    """A finite number of at least 0."""
    if not isinstance(eps, (int, float, np.number)) or not 0 <= eps < math.inf:
        raise ValueError(f"{operation}: {eps=}, expected a finite number of at least 0")


def check_vector(operation, name, x, length):
    """A vector of ``length``, or None."""
    if x is not None and tuple(x.shape) != (length,):
        raise ValueError(f"{operation}: {name}.shape={tuple(x.shape)}, expected ({length},)")


def check_integers(operation, name, x):
    """An integer array."""
    if dtype_name(x) not in INTEGERS:
        raise TypeError(f"{operation}: {name}.dtype is {dtype_name(x)}, expected an integer dtype")


def check_mask_and_bias(operation, query, mask, bias, shape):
    """``mask`` is bool and ``bias`` floating point; both broadcast to ``shape`` = (b, h, t, s)."""
    for name, x in (("mask", mask), ("bias", bias)):
        if x is None:
            continue
        check_same_place(operation, name, x, "query", query)
        if name == "mask" and dtype_name(x) != "bool":
            raise TypeError(f"{operation}: mask.dtype is {dtype_name(x)}, expected bool (True means attend)")
        if name == "bias" and not is_floating(x):
            raise TypeError(f"{operation}: bias.dtype is {dtype_name(x)}, expected one of {', '.join(FLOATING)}")
        fits = x.ndim <= 4 and all(n in (1, m) for n, m in zip(x.shape[::-1], shape[::-1], strict=False))
        expected(
            fits, operation, f"{name}.shape={tuple(x.shape)}", f"a shape that broadcasts to (b, h, t, s) = {shape}"
        )


def check_lengths(operation, query, key_lengths, b, s):
    """``key_lengths`` is (b,) integers beside ``query``, or None; their range 0…s is ``saccade.values``' to check."""
    if key_lengths is not None:
        check_same_place(operation, "key_lengths", key_lengths, "the query", query)
        check_integers(operation, "key_lengths", key_lengths)
        expected(
            tuple(key_lengths.shape) == (b,), operation, f"key_lengths.shape={tuple(key_lengths.shape)}", f"({b},)"
        )


def check_cumulative_lengths(operation, query, cumulative_lengths):
    """(sequences + 1,) integers beside ``query``."""
    check_same_place(operation, "cumulative_lengths", cumulative_lengths, "query", query)
    check_integers(operation, "cumulative_lengths", cumulative_lengths)
    expected(
        cumulative_lengths.ndim == 1 and len(cumulative_lengths) >= 1,
        operation, f"cumulative_lengths.shape={tuple(cumulative_lengths.shape)}", "(sequences + 1,)",
    )  # fmt: skip


def check_norm(operation, x, scale, bias, eps, residual):
    """(…, e) with e at least 1, vectors of e, and a residual of the same shape."""
    expected(x.ndim >= 1 and x.shape[-1] > 0, operation, f"{x.shape=}", "(…, e) with e of at least 1")
    check_vector(operation, "scale", scale, x.shape[-1])
    check_vector(operation, "bias", bias, x.shape[-1])
    if residual is not None:
        expected(residual.shape == x.shape, operation, f"{residual.shape=}", f"{x.shape=}")
    check_eps(operation, eps)


def check_channels(operation, mean, std, c):
    """``mean`` and ``std`` are None or c finite numbers each, std above 0."""
    for name, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        if framework_of(values) in ("torch", "cupy"):
            raise TypeError(f"{operation}: {name} is a {framework_of(values)} array, expected {c} numbers")
        fits = len(values) == c and all(math.isfinite(v) and (name == "mean" or v > 0) for v in values)
        expected(fits, operation, f"{name}={values!r}", f"{c} finite numbers" + " above 0" * (name == "std"))


def check_window(operation, x, window, stride, padding):
    """Positive whole strides, and windows that fit into the padded image."""
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0)):
        expected(isinstance(value, int) and value >= least, operation, f"{name}={value!r}", f"an integer >= {least}")
    fits = all(0 < w <= n + 2 * padding for w, n in zip(window, x.shape[1:3], strict=True))
    expected(fits, operation, f"a {tuple(window)} window, {x.shape=}, {padding=}", "a window that fits into the image")


def check_targets(operation, logits, labels):
    """Integer labels (n,), or soft targets (n, k) in the dtype of the logits."""
    check_same_place(operation, "labels", labels, "logits", logits)
    if is_floating(labels):
        check_arrays(operation, logits=logits, labels=labels)
        expected(labels.shape == logits.shape, operation, f"{labels.shape=}", f"{logits.shape=} for soft targets")
    else:
        check_labels(operation, logits, labels, logits.shape[1])


def check_labels(operation, rows, labels, classes):
    """(n,) integers; whether they are below ``classes`` is ``saccade.values``' to check."""
    check_same_place(operation, "labels", labels, "its logits or hidden states", rows)
    check_integers(operation, "labels", labels)
    expected(tuple(labels.shape) == (rows.shape[0],), operation, f"{labels.shape=}", f"({rows.shape[0]},), one a row")


def check_loss_options(operation, label_smoothing, reduction):
    """A smoothing in [0, 1] and a known reduction."""
    expected(0 <= label_smoothing <= 1, operation, f"{label_smoothing=}", "a number from 0 to 1")
    check_option(operation, "reduction", reduction, ("mean", "sum", "none"))


def check_pairs(operation, image_embeddings, text_embeddings):
    """Two (n, e) arrays alike, n and e at least 1."""
    check_arrays(operation, image_embeddings=image_embeddings, text_embeddings=text_embeddings)
    expected(
        image_embeddings.ndim == 2 and 0 not in image_embeddings.shape,
        operation, f"{image_embeddings.shape=}", "(n, e) with n and e of at least 1",
    )  # fmt: skip
    expected(
        text_embeddings.shape == image_embeddings.shape,
        operation, f"{text_embeddings.shape=}", f"{image_embeddings.shape=}",
    )  # fmt: skip


def check_factor(operation, name, factor, beside):
    """A finite number, or a floating-point 0-d array beside ``beside``."""
    if framework_of(factor) is None:
        if isinstance(factor, bool) or not isinstance(factor, (int, float, np.number)):
            raise TypeError(f"{operation}: {name} is a {type(factor).__name__}, expected a number or a 0-d array")
        expected(math.isfinite(factor), operation, f"{name}={factor!r}", "a finite number")
        return
    check_same_place(operation, name, factor, "image_embeddings", beside)
    expected(
        factor.ndim == 0 and is_floating(factor),
        operation, f"{name} of shape {tuple(factor.shape)}, {dtype_name(factor)}", "a floating-point 0-d array",
    )  # fmt: skip


def check_cotangents(operation, outputs, cotangents):
    """One cotangent per output, of its framework and shape."""
    expected(
        len(outputs) >= len(cotangents) >= 1,
        operation,
        f"{len(cotangents)} gradients",
        f"{len(outputs)}, one an output",
    )
    for out, cotangent in zip(outputs, cotangents, strict=False):
        check_same_place(operation, "the gradient", cotangent, "the output", out)
        expected(
            tuple(cotangent.shape) == tuple(out.shape),
            operation, f"a gradient of shape {tuple(cotangent.shape)}", f"{tuple(out.shape)}, the output's",
        )  # fmt: skip
