"""What is read out of a trained model: maps of attention, pictures of embeddings, and closed-form probes."""

import numpy as np


def attention_rollout(weights):
    """How much each token draws on each input token through all layers: list of (b, h, n, n) -> (b, n, n).

    Per layer Ā = normalised(mean_h A + identity); the rollout is Ā_L … Ā_2 Ā_1.
    Abnar and Zuidema 2020, equation 1; Dosovitskiy et al. 2021, appendix D.8.
    """
    total = None
    for layer in weights:
        mixed = layer.mean(1) + np.eye(layer.shape[-1])
        mixed = mixed / mixed.sum(-1, keepdims=True)
        total = mixed if total is None else mixed @ total
    return total


def mean_attention_distance(weights, grid, patch, prefix=0):
    """How far away, in pixels, each head looks on average: (b, h, n, n) -> (h,).

    sum_j a_ij · patch · |position_i − position_j|, averaged over queries and images. Tokens before the patches are left
    out of rows and columns and the rows normalised again. Dosovitskiy et al. 2021, figure 7.
    """
    rows, columns = grid
    points = np.stack([*np.mgrid[:rows, :columns]], -1).reshape(-1, 2)
    distances = patch * np.sqrt(((points[:, None] - points) ** 2).sum(-1))
    kept = weights[:, :, prefix:, prefix:]
    kept = kept / kept.sum(-1, keepdims=True)
    return (kept * distances).sum(-1).mean((0, 2))


def position_similarity(positions, grid, prefix=0):
    """Cosine similarity of every patch's position embedding with every other: (n, e) -> (h, w, h, w).

    Dosovitskiy et al. 2021, figure 7.
    """
    points = np.asarray(positions, np.float64)[prefix:]
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    return (points @ points.T).reshape(*grid, *grid)


def filter_components(weight, components):
    """The first principal components of the e filters of a patch embedding, (e, c, p, p) -> (components, p, p, c).

    Also the share of the variance each explains. Dosovitskiy et al. 2021, figure 7. Signs: the largest entry is > 0.
    """
    e, c, p, _ = weight.shape
    filters = np.asarray(weight, np.float64).reshape(e, -1)
    _, values, vectors = np.linalg.svd(filters - filters.mean(0), full_matrices=False)
    vectors = vectors[:components]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1)
    pictures = (vectors * np.sign(largest)).reshape(-1, c, p, p).transpose(0, 2, 3, 1)
    return pictures, (values**2 / (values**2).sum())[:components]


def ridge_few_shot(features, labels, classes, *, regularization=2.0**10):
    """Regularised least squares to targets ±1 in closed form; returns a function from features to scores (n, classes).

    Features are standardised with their mean and deviation + 1e-5 and get a constant column of 100, which leaves the
    bias almost without penalty; W = (XᵀX + λ)⁻¹ XᵀY, or Xᵀ(XXᵀ + λ)⁻¹ Y where there are fewer rows than columns.
    Zhai et al. 2022, section 2.3; big_vision's fewshot_lsr.
    """
    features = np.asarray(features, np.float64)
    mean, deviation = features.mean(0), features.std(0) + 1e-5

    def columns(x):
        normal = (np.asarray(x, np.float64) - mean) / deviation
        return np.concatenate([normal, np.full((len(normal), 1), 100.0)], 1)

    x, targets = columns(features), 2.0 * (np.asarray(labels)[:, None] == np.arange(classes)) - 1
    if len(x) >= x.shape[1]:
        weight = np.linalg.solve(x.T @ x + regularization * np.eye(x.shape[1]), x.T @ targets)
    else:
        weight = x.T @ np.linalg.solve(x @ x.T + regularization * np.eye(len(x)), targets)
    return lambda new: columns(new) @ weight


def logistic_probe_loss(features, labels, weight, bias, regularization):
    """The objective of a multinomial logistic probe and its gradients for weight (k, e) and bias (k,).

        sum_n −log softmax(x_n Wᵀ + b)_{y_n} + λ/2 |W|²

    The linear probe of Radford et al. 2021, appendix A.3 (there minimised by L-BFGS).
    """
    logits = features @ weight.T + bias
    logits = logits - logits.max(1, keepdims=True)
    log_weights = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    one_hot = np.asarray(labels)[:, None] == np.arange(len(weight))
    loss = -log_weights[one_hot].sum() + regularization / 2 * (weight**2).sum()
    error = np.exp(log_weights) - one_hot
    return loss, error.T @ features + regularization * weight, error.sum(0)
