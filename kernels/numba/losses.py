"""The losses on CPUs; the definitions are in ``saccade.reference.losses``.

Logits that are products (``linear_cross_entropy``, ``clip_loss``, ``siglip_loss``) exist one tile at a time, a block
of rows by a block of columns, and are recomputed in the backward pass. Each gradient has a pass of its own, in which
a thread owns the rows it adds to, so the bits do not depend on the number of threads.
"""

import numpy as np
from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.mathematics import exponential, exponentials, row_dot, row_max, row_sum, sigmoid, softplus
from saccade.kernels.numba.memory import core_dtype, describe, load_block, load_block_transposed, load_row, store_row
from saccade.kernels.numba.products import product, wide
from saccade.kernels.numba.threads import parallel_for

# Tile sizes, multiples of the product's tile; they do not change which function is computed.
ROWS, COLUMNS = 64, 96
_GRAIN = 1 << 13
_NOTHING = (0, 0, 0, 0)


def softmax_cross_entropy(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """−sum_k target log softmax(logits) per row, averaged, summed or as it is."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return softmax_cross_entropy_forward(logits, labels, **options)[0]


def softmax_cross_entropy_forward(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``softmax_cross_entropy`` and (logits, labels, lse, ignore_index, label_smoothing, reduction)."""
    core = core_dtype(logits.dtype)
    per_row, lse = np.empty(len(logits), core), np.empty(len(logits), core)
    integers, soft = _split_labels(labels, ignore_index)
    smoothing = core.type(label_smoothing)
    arrays = logits.shape[1], describe(logits), integers, _NOTHING if soft is None else describe(soft), smoothing
    parallel_for(_cross_entropy_rows, len(logits), _GRAIN // logits.shape[1], *arrays, per_row, lse)
    loss = _reduce(per_row, _counted(integers, soft), reduction)
    return loss, (logits, labels, lse, ignore_index, label_smoothing, reduction)


def softmax_cross_entropy_backward(saved, grad_loss):
    """The gradient for logits, in a tuple of one."""
    logits, labels, lse, ignore_index, label_smoothing, reduction = saved
    integers, soft = _split_labels(labels, ignore_index)
    grad_rows = _spread(grad_loss, len(logits), _counted(integers, soft), reduction, lse.dtype)
    grad_logits = np.empty(logits.shape, logits.dtype)
    smoothing = lse.dtype.type(label_smoothing)
    arrays = logits.shape[1], describe(logits), integers, _NOTHING if soft is None else describe(soft), smoothing
    grain = _GRAIN // logits.shape[1]
    parallel_for(_cross_entropy_rows_backward, len(logits), grain, *arrays, lse, grad_rows, describe(grad_logits))
    return (grad_logits,)


def _split_labels(labels, ignore_index):
    """(integer labels with −1 for ignored rows, None), or (no labels, soft targets)."""
    if labels.ndim == 2:
        return np.empty(0, np.int64), labels
    integers = labels.astype(np.int64)
    return np.where(integers == ignore_index, -1, integers), None


def _counted(integers, soft):
    return int((integers >= 0).sum()) if soft is None else len(soft)


def _reduce(per_row, count, reduction):
    if reduction == "none":
        return per_row
    total = per_row.sum()
    if reduction == "mean":
        with np.errstate(invalid="ignore"):
            total = total / total.dtype.type(count)
    return np.asarray(total)


def _spread(grad_loss, rows, count, reduction, core):
    """The gradient of each row's loss."""
    grad = np.asarray(grad_loss).astype(core)
    if reduction == "mean":
        with np.errstate(invalid="ignore", divide="ignore"):
            grad = grad / core.type(count)
    return np.ascontiguousarray(np.broadcast_to(grad, (rows,)))


@jit
def _cross_entropy_rows(start, stop, k, logits, labels, soft, smoothing, per_row, lse):
    dtype = lse.dtype
    row, target, shifted = np.empty(k, dtype), np.empty(k, dtype), np.empty(k, dtype)
    zero, share = dtype.type(0), smoothing / dtype.type(k)
    for i in range(start, stop):
        load_row(row, logits[0] + i * logits[2], logits[3], logits[1])
        top = row_max(row)
        top = top if np.isfinite(top) else zero
        shifted[:] = row
        exponentials(shifted, top)
        lse[i] = top + np.log(row_sum(shifted))
        loss = zero
        if soft[0] != 0:
            load_row(target, soft[0] + i * soft[2], soft[3], soft[1])
            for j in range(k):
                weight = target[j] * (dtype.type(1) - smoothing) + share
                loss += weight * (lse[i] - row[j]) if weight != 0 else zero
        elif labels[i] >= 0:
            loss = (dtype.type(1) - smoothing) * (lse[i] - row[labels[i]])
            if smoothing != 0:
                for j in range(k):
                    shifted[j] = lse[i] - row[j]
                loss += share * row_sum(shifted)
        per_row[i] = loss


@jit
def _cross_entropy_rows_backward(start, stop, k, logits, labels, soft, smoothing, lse, grad_rows, grad_logits):
    dtype = lse.dtype
    row, target = np.empty(k, dtype), np.empty(k, dtype)
    share = smoothing / dtype.type(k)
    for i in range(start, stop):
        load_row(row, logits[0] + i * logits[2], logits[3], logits[1])
        # from the maximum again rather than from lse, whose own rounding would be an error of every weight
        top = row_max(row)
        exponentials(row, top if np.isfinite(top) else dtype.type(0))
        total = row_sum(row)
        for j in range(k):
            row[j] /= total
        if soft[0] != 0:
            load_row(target, soft[0] + i * soft[2], soft[3], soft[1])
            for j in range(k):
                target[j] = target[j] * (dtype.type(1) - smoothing) + share
            whole = row_sum(target)
            for j in range(k):
                row[j] = (row[j] * whole - target[j]) * grad_rows[i]
        elif labels[i] >= 0:
            _label_gradient(row, labels[i], smoothing, share, grad_rows[i])
        else:
            row[:] = 0
        store_row(grad_logits[0] + i * grad_logits[2], grad_logits[3], grad_logits[1], row)


@jit
def _label_gradient(row, label, smoothing, share, grad):
    """A row of softmax weights -> (weights − smoothed one-hot) · grad."""
    row[label] -= row.dtype.type(1) - smoothing
    for j in range(row.shape[0]):
        row[j] = (row[j] - share) * grad


def sigmoid_cross_entropy(logits, targets, *, reduction="mean"):
    """Binary cross entropy summed over classes, averaged over rows, summed or as it is."""
    return sigmoid_cross_entropy_forward(logits, targets, reduction=reduction)[0]


def sigmoid_cross_entropy_forward(logits, targets, *, reduction="mean"):
    """``sigmoid_cross_entropy`` and what ``sigmoid_cross_entropy_backward`` needs: (logits, targets, reduction)."""
    per_row = np.empty(len(logits), core_dtype(logits.dtype))
    k = logits.shape[1]
    parallel_for(_sigmoid_rows, len(logits), _GRAIN // max(k, 1), k, describe(logits), describe(targets), per_row)
    return _reduce(per_row, len(logits), reduction), (logits, targets, reduction)


def sigmoid_cross_entropy_backward(saved, grad_loss):
    """The gradient for logits, in a tuple of one."""
    logits, targets, reduction = saved
    grad_rows = _spread(grad_loss, len(logits), len(logits), reduction, core_dtype(logits.dtype))
    grad_logits = np.empty(logits.shape, logits.dtype)
    k = logits.shape[1]
    arrays = describe(logits), describe(targets), grad_rows, describe(grad_logits)
    parallel_for(_sigmoid_rows_backward, len(logits), _GRAIN // max(k, 1), k, *arrays)
    return (grad_logits,)


@jit
def _sigmoid_rows(start, stop, k, logits, targets, per_row):
    row, target = np.empty(k, per_row.dtype), np.empty(k, per_row.dtype)
    for i in range(start, stop):
        load_row(row, logits[0] + i * logits[2], logits[3], logits[1])
        load_row(target, targets[0] + i * targets[2], targets[3], targets[1])
        for j in range(k):
            row[j] = target[j] * softplus(-row[j]) + (per_row.dtype.type(1) - target[j]) * softplus(row[j])
        per_row[i] = row_sum(row)


@jit
def _sigmoid_rows_backward(start, stop, k, logits, targets, grad_rows, grad_logits):
    row, target = np.empty(k, grad_rows.dtype), np.empty(k, grad_rows.dtype)
    for i in range(start, stop):
        load_row(row, logits[0] + i * logits[2], logits[3], logits[1])
        load_row(target, targets[0] + i * targets[2], targets[3], targets[1])
        for j in range(k):
            row[j] = (sigmoid(row[j]) - target[j]) * grad_rows[i]
        store_row(grad_logits[0] + i * grad_logits[2], grad_logits[3], grad_logits[1], row)


def linear_cross_entropy(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``softmax_cross_entropy`` of hidden weightᵀ, whose logits are never stored."""
    options = dict(ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction)
    return linear_cross_entropy_forward(hidden, weight, labels, **options)[0]


def linear_cross_entropy_forward(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``linear_cross_entropy`` and (hidden, weight, labels, lse, ignore_index, label_smoothing, reduction)."""
    core = core_dtype(hidden.dtype)
    n, (k, e) = len(hidden), weight.shape
    integers, _ = _split_labels(labels, ignore_index)
    lse, picked, mean = (np.empty(n, core) for _ in range(3))
    arrays = (n, k, e), describe(hidden), describe(weight), core.type(1), integers
    parallel_for(_product_statistics, -(-n // ROWS), 1, *arrays, lse, picked, mean)
    smoothing = core.type(label_smoothing)
    per_row = (1 - smoothing) * (lse - picked) + (smoothing * (lse - mean) if smoothing else 0)
    loss = _reduce(np.where(integers >= 0, per_row, 0).astype(core), _counted(integers, None), reduction)
    return loss, (hidden, weight, labels, lse, ignore_index, label_smoothing, reduction)


def linear_cross_entropy_backward(saved, grad_loss):
    """Gradients for hidden and weight."""
    hidden, weight, labels, lse, ignore_index, label_smoothing, reduction = saved
    n, (k, e) = len(hidden), weight.shape
    integers, _ = _split_labels(labels, ignore_index)
    grad_rows = _spread(grad_loss, n, _counted(integers, None), reduction, lse.dtype)
    grad_hidden, grad_weight = np.empty(hidden.shape, hidden.dtype), np.empty(weight.shape, weight.dtype)
    arrays = (n, k, e), describe(hidden), describe(weight), integers, lse.dtype.type(label_smoothing), lse, grad_rows
    parallel_for(_linear_backward_hidden, -(-n // ROWS), 1, *arrays, describe(grad_hidden))
    parallel_for(_linear_backward_weight, -(-k // COLUMNS), 1, *arrays, describe(grad_weight))
    return grad_hidden, grad_weight


@jit
def _rows_at(array, row):
    return array[0] + row * array[2]


@jit
def _product_statistics(start, stop, sizes, a, b, scale, labels, lse, picked, mean):
    """Per row i of scale · A Bᵀ: log-sum-exp, the logit at labels[i], and the mean logit; blocks of ROWS rows."""
    n, k, e = sizes
    dtype = lse.dtype
    a_block, b_block = np.empty((ROWS, e), dtype), np.empty((e, wide(lse, COLUMNS)), dtype)
    logits, line = np.empty((ROWS, wide(lse, COLUMNS)), dtype), np.empty(e, dtype)
    top, total, whole = np.empty(ROWS, dtype), np.empty(ROWS, dtype), np.empty(ROWS, dtype)
    for block in range(start, stop):
        first = block * ROWS
        rows = min(ROWS, n - first)
        load_block(a_block, a, a[2], a[3], _rows_at(a, first), rows, e)
        top[:], total[:], whole[:] = -np.inf, 0, 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            load_block_transposed(b_block, line, b, b[2], b[3], _rows_at(b, first_column), columns, e)
            product(a_block, e, 1, b_block, logits, rows, columns, e, 0)
            for i in range(rows):
                row = logits[i, :columns]
                for j in range(columns):
                    row[j] *= scale
                if 0 <= labels[first + i] - first_column < columns:
                    picked[first + i] = row[labels[first + i] - first_column]
                whole[i] += row_sum(row)
                highest = max(top[i], row_max(row))
                shift = highest if np.isfinite(highest) else dtype.type(0)
                exponentials(row, shift)
                total[i] = total[i] * exponential(top[i] - shift) + row_sum(row)
                top[i] = highest
        for i in range(rows):
            shift = top[i] if np.isfinite(top[i]) else dtype.type(0)
            lse[first + i] = shift + np.log(total[i])
            mean[first + i] = whole[i] / dtype.type(k)


@jit
def _label_tile(logits, labels, smoothing, share, lse, grad_rows, first, rows, first_column, columns):
    """A tile of logits -> its gradient."""
    for i in range(rows):
        row = logits[i, :columns]
        if labels[first + i] < 0:
            row[:] = 0
            continue
        exponentials(row, lse[first + i])
        at = labels[first + i] - first_column
        if 0 <= at < columns:
            row[at] -= row.dtype.type(1) - smoothing
        for j in range(columns):
            row[j] = (row[j] - share) * grad_rows[first + i]


@jit
def _linear_backward_hidden(start, stop, sizes, hidden, weight, labels, smoothing, lse, grad_rows, grad_hidden):
    n, k, e = sizes
    dtype = lse.dtype
    wide_k, wide_e = wide(lse, COLUMNS), wide(lse, e)
    a_block, b_block, b_rows = (
        np.empty((ROWS, e), dtype),
        np.empty((e, wide_k), dtype),
        np.empty((COLUMNS, wide_e), dtype),
    )
    logits, total, line = np.empty((ROWS, wide_k), dtype), np.empty((ROWS, wide_e), dtype), np.empty(e, dtype)
    share = smoothing / dtype.type(k)
    for block in range(start, stop):
        first = block * ROWS
        rows = min(ROWS, n - first)
        load_block(a_block, hidden, hidden[2], hidden[3], _rows_at(hidden, first), rows, e)
        total[:] = 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            address = _rows_at(weight, first_column)
            load_block_transposed(b_block, line, weight, weight[2], weight[3], address, columns, e)
            load_block(b_rows, weight, weight[2], weight[3], address, columns, e)
            product(a_block, e, 1, b_block, logits, rows, columns, e, 0)
            _label_tile(logits, labels, smoothing, share, lse, grad_rows, first, rows, first_column, columns)
            product(logits, wide_k, 1, b_rows, total, rows, e, columns, 1)
        for i in range(rows):
            store_row(_rows_at(grad_hidden, first + i), grad_hidden[3], grad_hidden[1], total[i, :e])


@jit
def _linear_backward_weight(start, stop, sizes, hidden, weight, labels, smoothing, lse, grad_rows, grad_weight):
    n, k, e = sizes
    dtype = lse.dtype
    wide_k, wide_e = wide(lse, COLUMNS), wide(lse, e)
    a_block, b_block = np.empty((ROWS, wide_e), dtype), np.empty((e, wide_k), dtype)
    logits, total, line = np.empty((ROWS, wide_k), dtype), np.empty((COLUMNS, wide_e), dtype), np.empty(e, dtype)
    share = smoothing / dtype.type(k)
    for block in range(start, stop):
        first_column = block * COLUMNS
        columns = min(COLUMNS, k - first_column)
        load_block_transposed(b_block, line, weight, weight[2], weight[3], _rows_at(weight, first_column), columns, e)
        total[:] = 0
        for first in range(0, n, ROWS):
            rows = min(ROWS, n - first)
            load_block(a_block, hidden, hidden[2], hidden[3], _rows_at(hidden, first), rows, e)
            product(a_block, wide_e, 1, b_block, logits, rows, columns, e, 0)
            _label_tile(logits, labels, smoothing, share, lse, grad_rows, first, rows, first_column, columns)
            product(logits, 1, wide_k, a_block, total, columns, e, rows, 1)
        for j in range(columns):
            store_row(_rows_at(grad_weight, first_column + j), grad_weight[3], grad_weight[1], total[j, :e])


def clip_loss(image_embeddings, text_embeddings, logit_scale):
    """The symmetric contrastive loss of pairs of rows."""
    return clip_loss_forward(image_embeddings, text_embeddings, logit_scale)[0]


def clip_loss_forward(image_embeddings, text_embeddings, logit_scale):
    """``clip_loss`` and (image embeddings, text embeddings, logit_scale, lse of the rows, lse of the columns)."""
    core = core_dtype(image_embeddings.dtype)
    n, e = image_embeddings.shape
    scale, own = core.type(logit_scale), np.arange(n)
    images, texts = describe(image_embeddings), describe(text_embeddings)
    row_lse, column_lse, diagonal, mean = (np.empty(n, core) for _ in range(4))
    blocks = -(-n // ROWS)
    parallel_for(_product_statistics, blocks, 1, (n, n, e), texts, images, scale, own, column_lse, diagonal, mean)
    parallel_for(_product_statistics, blocks, 1, (n, n, e), images, texts, scale, own, row_lse, diagonal, mean)
    loss = (((row_lse - diagonal) + (column_lse - diagonal)) / 2).mean()
    return np.asarray(loss), (image_embeddings, text_embeddings, logit_scale, row_lse, column_lse)


def clip_loss_backward(saved, grad_loss):
    """Gradients for the image embeddings, the text embeddings and logit_scale (None if that is a number)."""
    images, texts, logit_scale, row_lse, column_lse = saved
    core, n = row_lse.dtype, len(images)
    factor = core.type(grad_loss) / core.type(2 * n)
    statistics = row_lse, column_lse, core.type(logit_scale), core.type(0), factor
    return _pair_gradients(images, texts, logit_scale, statistics, False)[:3]


def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """The pairwise sigmoid loss of rows."""
    return siglip_loss_forward(image_embeddings, text_embeddings, logit_scale, logit_bias)[0]


def siglip_loss_forward(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """``siglip_loss`` and what ``siglip_loss_backward`` needs: its arguments."""
    core = core_dtype(image_embeddings.dtype)
    n, e = image_embeddings.shape
    per_row = np.empty(n, core)
    factors = core.type(logit_scale), core.type(logit_bias)
    arrays = describe(image_embeddings), describe(text_embeddings)
    parallel_for(_siglip_rows, -(-n // ROWS), 1, (n, n, e), *arrays, *factors, per_row)
    saved = image_embeddings, text_embeddings, logit_scale, logit_bias
    return np.asarray(per_row.mean()), saved


def siglip_loss_backward(saved, grad_loss):
    """Gradients for both embeddings, logit_scale and logit_bias (None where a number was given)."""
    images, texts, logit_scale, logit_bias = saved
    core, n = core_dtype(images.dtype), len(images)
    unused = np.zeros(n, core)
    statistics = unused, unused, core.type(logit_scale), core.type(logit_bias), core.type(grad_loss) / core.type(n)
    *gradients, bias_rows = _pair_gradients(images, texts, logit_scale, statistics, True)
    given = isinstance(logit_bias, np.ndarray)
    return *gradients, np.asarray(bias_rows.sum()).astype(logit_bias.dtype) if given else None


def _pair_gradients(images, texts, logit_scale, statistics, pairwise):
    """Gradients for images, texts, logit_scale, and per row of logits their sum."""
    row_lse, column_lse, *factors = statistics
    n, e = images.shape
    grad_images, grad_texts = np.empty(images.shape, images.dtype), np.empty(texts.shape, texts.dtype)
    scale_rows, bias_rows, unused = np.empty((3, n), row_lse.dtype)
    sizes, blocks = (n, n, e), -(-n // ROWS)
    swapped = describe(texts), describe(images), column_lse, row_lse, *factors, pairwise
    straight = describe(images), describe(texts), row_lse, column_lse, *factors, pairwise
    parallel_for(_pair_backward, blocks, 1, sizes, *swapped, describe(grad_texts), unused, unused)
    parallel_for(_pair_backward, blocks, 1, sizes, *straight, describe(grad_images), scale_rows, bias_rows)
    given = isinstance(logit_scale, np.ndarray)
    grad_scale = np.asarray(scale_rows.sum()).astype(logit_scale.dtype) if given else None
    return grad_images, grad_texts, grad_scale, bias_rows


@jit
def _siglip_rows(start, stop, sizes, a, b, scale, bias, per_row):
    n, k, e = sizes
    dtype = per_row.dtype
    a_block, b_block = np.empty((ROWS, e), dtype), np.empty((e, wide(per_row, COLUMNS)), dtype)
    logits, line = np.empty((ROWS, wide(per_row, COLUMNS)), dtype), np.empty(e, dtype)
    for block in range(start, stop):
        first = block * ROWS
        rows = min(ROWS, n - first)
        load_block(a_block, a, a[2], a[3], _rows_at(a, first), rows, e)
        per_row[first : first + rows] = 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            load_block_transposed(b_block, line, b, b[2], b[3], _rows_at(b, first_column), columns, e)
            product(a_block, e, 1, b_block, logits, rows, columns, e, 0)
            for i in range(rows):
                for j in range(columns):
                    logit = scale * logits[i, j] + bias
                    logits[i, j] = softplus(-logit if first + i == first_column + j else logit)
                per_row[first + i] += row_sum(logits[i, :columns])


@jit
def _pair_backward(
    start, stop, sizes, a, b, lse_a, lse_b, scale, bias, factor, pairwise, grad_a, scale_rows, bias_rows
):
    """dA = scale · G B with G the gradient of the logits, for ROWS rows of A at a time; and per row the sums
    G · (A Bᵀ), for the scale, and of G, for the bias."""
    n, k, e = sizes
    dtype = lse_a.dtype
    wide_k, wide_e = wide(lse_a, COLUMNS), wide(lse_a, e)
    a_block, b_block, b_rows = (
        np.empty((ROWS, e), dtype),
        np.empty((e, wide_k), dtype),
        np.empty((COLUMNS, wide_e), dtype),
    )
    products, total, line = np.empty((ROWS, wide_k), dtype), np.empty((ROWS, wide_e), dtype), np.empty(e, dtype)
    grads = np.empty((ROWS, wide_k), dtype)
    zero, two = dtype.type(0), dtype.type(2)
    for block in range(start, stop):
        first = block * ROWS
        rows = min(ROWS, n - first)
        load_block(a_block, a, a[2], a[3], _rows_at(a, first), rows, e)
        total[:] = 0
        scale_rows[first : first + rows], bias_rows[first : first + rows] = 0, 0
        for first_column in range(0, k, COLUMNS):
            columns = min(COLUMNS, k - first_column)
            load_block_transposed(b_block, line, b, b[2], b[3], _rows_at(b, first_column), columns, e)
            load_block(b_rows, b, b[2], b[3], _rows_at(b, first_column), columns, e)
            product(a_block, e, 1, b_block, products, rows, columns, e, 0)
            for i in range(rows):
                own = first + i - first_column
                if pairwise:
                    for j in range(columns):
                        logit = scale * products[i, j] + bias
                        grads[i, j] = factor * (-sigmoid(-logit) if j == own else sigmoid(logit))
                else:
                    for j in range(columns):
                        logit = scale * products[i, j]
                        weights = exponential(logit - lse_a[first + i]) + exponential(logit - lse_b[first_column + j])
                        grads[i, j] = factor * (weights - (two if j == own else zero))
                scale_rows[first + i] += row_dot(grads[i, :columns], products[i, :columns])
                bias_rows[first + i] += row_sum(grads[i, :columns])
            product(grads, wide_k, 1, b_rows, total, rows, e, columns, 1)
        for i in range(rows):
            for j in range(e):
                total[i, j] *= scale
            store_row(_rows_at(grad_a, first + i), grad_a[3], grad_a[1], total[i, :e])
