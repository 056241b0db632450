"""The public operations: each states its contract, ``saccade.dispatch`` checks it and hands over to the kernels.

The body of an operation is its contract and nothing else. Formulas, semantics and sources: ``saccade.reference``.
"""

from saccade import checks
from saccade.arrays import broadcast_to, identity
from saccade.checks import check_arrays, check_option, check_scale, expected
from saccade.dispatch import gradient_of, operation


@operation
def attention(query, key, value, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False):
    """Softmax attention: softmax(scale · query keyᵀ + bias) value.

    Args:
        query: (b, h, t, d) float16, bfloat16, float32 or float64, any strides.
        key: (b, h, s, d), same dtype.
        value: (b, h, s, e), same dtype.
        mask: bool, broadcasts to (b, h, t, s); True means "attend".
        bias: floating point, broadcasts to (b, h, t, s), added to the scores.
        causal: query t sees keys s <= t + (S − T): aligned at the end.
        key_lengths: (b,) integers; keys at or beyond them are never read.
        scale: factor on the scores; 1/sqrt(d) if None.
        return_lse: also return the log-sum-exp of the scores, (b, h, t), float32 (float64 for float64).
        backend: name of the kernels to use; by the kind of array if None.

    Returns:
        (b, h, t, e) in the dtype of ``query``, or (out, lse). A query with no key to attend to gives 0 and −inf.

    Raises:
        ValueError, TypeError: on shapes, dtypes, devices or values that do not fit, before anything is computed.

    Vaswani et al., "Attention Is All You Need", 2017, equation 1.
    """
    check_arrays("attention", query=query, key=key, value=value)
    expected(query.ndim == 4, "attention", f"{query.shape=}", "(b, h, t, d)")
    b, h, t, d = query.shape
    expected(
        key.ndim == 4 and (*key.shape[:2], key.shape[3]) == (b, h, d),
        "attention", f"{key.shape=}", f"(b, h, s, d) with b, h, d of {query.shape=}",
    )  # fmt: skip
    expected(
        value.ndim == 4 and value.shape[:3] == key.shape[:3],
        "attention", f"{value.shape=}", f"(b, h, s, e) with b, h, s of {key.shape=}",
    )  # fmt: skip
    expected(d > 0, "attention", f"{query.shape=}", "a head dimension d of at least 1")
    checks.check_mask_and_bias("attention", query, mask, bias, (b, h, t, key.shape[2]))
    checks.check_lengths("attention", query, key_lengths, b, key.shape[2])
    check_scale("attention", scale)


def attention_weights(query, key, *, mask=None, bias=None, causal=False, key_lengths=None, scale=None):
    """The softmax weights (b, h, t, s) and the log-sum-exp (b, h, t): for looking at, since they are stored whole.

    They are what ``attention`` makes of the identity matrix as values; arguments as there.
    """
    b, h, s, _ = key.shape
    values = broadcast_to(identity(s, key), (b, h, s, s))
    options = dict(mask=mask, bias=bias, causal=causal, key_lengths=key_lengths, scale=scale)
    return attention(query, key, values, **options, return_lse=True)


@operation
def qkv_attention(qkv, *, causal=False, key_lengths=None, scale=None):
    """Self-attention from the packed projection, b n 3 h d -> b n h d, without copies into another layout.

    Args:
        qkv: (b, n, 3, h, d): query, key and value of each token, side by side.
        causal, key_lengths, scale: as in ``attention``.
    """
    check_arrays("qkv_attention", qkv=qkv)
    expected(qkv.ndim == 5 and qkv.shape[2] == 3, "qkv_attention", f"{qkv.shape=}", "(b, n, 3, h, d)")
    expected(qkv.shape[4] > 0, "qkv_attention", f"{qkv.shape=}", "a head dimension d of at least 1")
    checks.check_lengths("qkv_attention", qkv, key_lengths, qkv.shape[0], qkv.shape[1])
    check_scale("qkv_attention", scale)


@operation
def varlen_attention(query, key, value, *, cumulative_lengths, causal=False, scale=None):
    """Attention within each of several sequences packed end to end, nhd x nhd x nhd -> nhd.

    Args:
        query, key, value: (n, h, d), one dtype; value may have another last dimension.
        cumulative_lengths: (sequences + 1,) integers rising from 0 to n; sequence i is the rows from the i-th
            to before the next.
        causal, scale: as in ``attention``.
    """
    check_arrays("varlen_attention", query=query, key=key, value=value)
    expected(query.ndim == 3 and query.shape[2] > 0, "varlen_attention", f"{query.shape=}", "(n, h, d) with d >= 1")
    expected(key.shape == query.shape, "varlen_attention", f"{key.shape=}", f"{query.shape=}")
    expected(
        value.ndim == 3 and value.shape[:2] == query.shape[:2],
        "varlen_attention", f"{value.shape=}", f"(n, h, e) with n, h of {query.shape=}",
    )  # fmt: skip
    checks.check_cumulative_lengths("varlen_attention", query, cumulative_lengths)
    check_scale("varlen_attention", scale)


@operation
def patch_embed(images, weight, bias=None, *, mean=None, std=None):
    """Cut images into patches and project each: b h w c -> b n e, n = (h/p)(w/p) in row-major order.

    Args:
        images: (b, h, w, c) uint8 (divided by 255 first) or the dtype of ``weight`` (taken as it is).
        weight: (e, c, p, p), a convolution's.
        bias: (e,) or None.
        mean, std: c numbers each, or None: then (x − mean) / std per channel.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, section 3.1.
    """
    check_arrays("patch_embed", weight=weight, bias=bias)
    checks.check_same_place("patch_embed", "images", images, "weight", weight)
    uint8 = checks.dtype_name(images) == "uint8"
    same = checks.dtype_name(images) == checks.dtype_name(weight)
    expected(uint8 or same, "patch_embed", f"{images.dtype=}", f"uint8 or {weight.dtype=}", TypeError)
    expected(
        weight.ndim == 4 and weight.shape[2] == weight.shape[3] > 0, "patch_embed", f"{weight.shape=}", "(e, c, p, p)"
    )
    e, c, p, _ = weight.shape
    expected(
        images.ndim == 4 and images.shape[3] == c and images.shape[1] % p == 0 and images.shape[2] % p == 0,
        "patch_embed", f"{images.shape=}", f"(b, h, w, {c}) with h and w multiples of {p}",
    )  # fmt: skip
    checks.check_vector("patch_embed", "bias", bias, e)
    checks.check_channels("patch_embed", mean, std, c)


@operation
def linear(x, weight, bias=None):
    """x weightᵀ + bias, … i -> … o, by the framework's own matrix product.

    Args:
        x: (…, i).
        weight: (o, i), same dtype.
        bias: (o,) or None.
    """
    check_arrays("linear", x=x, weight=weight, bias=bias)
    expected(
        weight.ndim == 2 and x.ndim >= 1 and x.shape[-1] == weight.shape[1],
        "linear", f"{x.shape=}, {weight.shape=}", "(…, i) and (o, i)",
    )  # fmt: skip
    checks.check_vector("linear", "bias", bias, weight.shape[0])


@operation
def embedding(tokens, weight):
    """Rows of ``weight`` (k, e) at integer ``tokens`` (…) -> (…, e)."""
    check_arrays("embedding", weight=weight)
    checks.check_same_place("embedding", "tokens", tokens, "weight", weight)
    checks.check_integers("embedding", "tokens", tokens)
    expected(weight.ndim == 2, "embedding", f"{weight.shape=}", "(k, e)")


@operation
def layer_norm(x, scale, bias=None, *, eps=1e-5, residual=None):
    """(x − mean) / sqrt(variance + eps) · scale + bias over the last axis; the variance is the biased one.

    With ``residual`` the two are added first and the result is (normalised, sum).

    Args:
        x: (…, e).
        scale, bias: (e,), same dtype; bias may be None.
        eps: added to the variance.
        residual: the shape of ``x``, or None.

    Ba et al., "Layer Normalization", 2016.
    """
    check_arrays("layer_norm", x=x, scale=scale, bias=bias, residual=residual)
    checks.check_norm("layer_norm", x, scale, bias, eps, residual)


@operation
def rms_norm(x, scale, *, eps=1e-5, residual=None):
    """x / sqrt(mean(x²) + eps) · scale over the last axis: ImageGPT's norm. ``residual`` as in ``layer_norm``.

    Args:
        x: (…, e).
        scale: (e,), same dtype.
        eps: added to the mean square.
        residual: the shape of ``x``, or None.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
    """
    check_arrays("rms_norm", x=x, scale=scale, residual=residual)
    checks.check_norm("rms_norm", x, scale, None, eps, residual)


@operation
def gelu(x, *, kind="erf"):
    """x Φ(x): exactly ("erf"), by the tanh approximation ("tanh"), or x σ(1.702 x) ("sigmoid").

    Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    """
    check_arrays("gelu", x=x)
    check_option("gelu", "kind", kind, ("erf", "tanh", "sigmoid"))


@operation
def mlp(x, weight_in, bias_in, weight_out, bias_out, *, kind="erf"):
    """linear(gelu(linear(x, weight_in, bias_in)), weight_out, bias_out): a transformer block's second half.

    Args:
        x: (…, i).
        weight_in: (m, i); bias_in: (m,) or None.
        weight_out: (o, m); bias_out: (o,) or None.
        kind: as in ``gelu``.
    """
    check_arrays("mlp", x=x, weight_in=weight_in, bias_in=bias_in, weight_out=weight_out, bias_out=bias_out)
    expected(
        weight_in.ndim == weight_out.ndim == 2
        and x.ndim >= 1
        and x.shape[-1] == weight_in.shape[1]
        and weight_in.shape[0] == weight_out.shape[1],
        "mlp", f"{x.shape=}, {weight_in.shape=}, {weight_out.shape=}", "(…, i), (m, i) and (o, m)",
    )  # fmt: skip
    checks.check_vector("mlp", "bias_in", bias_in, weight_in.shape[0])
    checks.check_vector("mlp", "bias_out", bias_out, weight_out.shape[0])
    check_option("mlp", "kind", kind, ("erf", "tanh", "sigmoid"))


@operation
def l2_normalize(x, *, eps=1e-12):
    """x / max(|x|₂, eps) along the last axis."""
    check_arrays("l2_normalize", x=x)
    expected(x.ndim >= 1, "l2_normalize", f"{x.shape=}", "(…, e)")
    checks.check_eps("l2_normalize", eps)


@operation
def conv2d(x, weight, bias=None, *, stride=1, padding=0):
    """Cross-correlation, b h w c -> b h' w' e, weight (e, c, p, q) as in torch but pixels channel-last."""
    check_arrays("conv2d", x=x, weight=weight, bias=bias)
    expected(
        x.ndim == weight.ndim == 4 and x.shape[3] == weight.shape[1],
        "conv2d", f"{x.shape=}, {weight.shape=}", "(b, h, w, c) and (e, c, p, q)",
    )  # fmt: skip
    checks.check_window("conv2d", x, weight.shape[2:], stride, padding)
    checks.check_vector("conv2d", "bias", bias, weight.shape[0])


@operation
def batch_norm(x, mean, variance, scale, bias, *, eps=1e-5):
    """(x − mean) / sqrt(variance + eps) · scale + bias per channel, … c: with given statistics, as in inference."""
    check_arrays("batch_norm", x=x, mean=mean, variance=variance, scale=scale, bias=bias)
    expected(x.ndim >= 1, "batch_norm", f"{x.shape=}", "(…, c)")
    for name, vector in (("mean", mean), ("variance", variance), ("scale", scale), ("bias", bias)):
        checks.check_vector("batch_norm", name, vector, x.shape[-1])
    checks.check_eps("batch_norm", eps)


@operation
def average_pool(x, *, size):
    """The mean of each ``size`` x ``size`` window, b h w c -> b h/size w/size c; rests at the edges are left out."""
    check_arrays("average_pool", x=x)
    expected(x.ndim == 4, "average_pool", f"{x.shape=}", "(b, h, w, c)")
    checks.check_window("average_pool", x, (size, size), size, 0)


@operation
def softmax_cross_entropy(logits, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """−sum_k target_k log softmax(logits)_k per row, averaged, summed or as it is.

    Args:
        logits: (n, k).
        labels: (n,) integers, or soft targets (n, k) in the dtype of ``logits``; they get no gradient.
        ignore_index: rows with this label count nowhere; a mean over no rows is NaN.
        label_smoothing: this share of each target is spread evenly over all k.
        reduction: "mean", "sum" or "none".

    Returns:
        The loss in float32 (float64 for float64).
    """
    check_arrays("softmax_cross_entropy", logits=logits)
    expected(logits.ndim == 2 and logits.shape[1] > 0, "softmax_cross_entropy", f"{logits.shape=}", "(n, k), k >= 1")
    checks.check_targets("softmax_cross_entropy", logits, labels)
    checks.check_loss_options("softmax_cross_entropy", label_smoothing, reduction)


@operation
def sigmoid_cross_entropy(logits, targets, *, reduction="mean"):
    """−sum_k [target log σ(logit) + (1 − target) log σ(−logit)] per row, averaged over rows, summed or as it is.

    Args:
        logits: (n, k).
        targets: (n, k), same dtype; they get no gradient.
        reduction: "mean", "sum" or "none", over rows.
    """
    check_arrays("sigmoid_cross_entropy", logits=logits, targets=targets)
    expected(
        logits.ndim == 2 and targets.shape == logits.shape,
        "sigmoid_cross_entropy", f"{logits.shape=}, {targets.shape=}", "(n, k) twice",
    )  # fmt: skip
    check_option("sigmoid_cross_entropy", "reduction", reduction, ("mean", "sum", "none"))


@operation
def linear_cross_entropy(hidden, weight, labels, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """``softmax_cross_entropy(linear(hidden, weight), labels)`` whose logits are never stored.

    Args:
        hidden: (n, e).
        weight: (k, e), same dtype.
        labels: (n,) integers.
        ignore_index, label_smoothing, reduction: as in ``softmax_cross_entropy``.
    """
    check_arrays("linear_cross_entropy", hidden=hidden, weight=weight)
    expected(
        hidden.ndim == weight.ndim == 2 and hidden.shape[1] == weight.shape[1] and weight.shape[0] > 0,
        "linear_cross_entropy", f"{hidden.shape=}, {weight.shape=}", "(n, e) and (k, e), k >= 1",
    )  # fmt: skip
    checks.check_labels("linear_cross_entropy", hidden, labels, weight.shape[0])
    checks.check_loss_options("linear_cross_entropy", label_smoothing, reduction)


@operation
def clip_loss(image_embeddings, text_embeddings, logit_scale):
    """The symmetric contrastive loss: the mean of the cross entropies of scale · I Tᵀ along rows and columns.

    Args:
        image_embeddings, text_embeddings: (n, e), one dtype; pair i is row i of both. Rows as the caller gives
            them: a model normalises its own.
        logit_scale: the factor itself (the paper's exp(t)): a number, or a 0-d array if it is to have a gradient.

    Returns:
        The loss, 0-d, float32 (float64 for float64). The (n, n) logits are never stored.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, figure 3.
    """
    checks.check_pairs("clip_loss", image_embeddings, text_embeddings)
    checks.check_factor("clip_loss", "logit_scale", logit_scale, image_embeddings)


@operation
def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias):
    """The pairwise sigmoid loss: mean over i of sum_j −log σ(±(scale · I_i T_j + bias)), + where i = j.

    Args:
        image_embeddings, text_embeddings: (n, e), as in ``clip_loss``.
        logit_scale, logit_bias: numbers, or 0-d arrays if they are to have gradients.

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, algorithm 1.
    """
    checks.check_pairs("siglip_loss", image_embeddings, text_embeddings)
    checks.check_factor("siglip_loss", "logit_scale", logit_scale, image_embeddings)
    checks.check_factor("siglip_loss", "logit_bias", logit_bias, image_embeddings)


attention_forward, attention_backward = gradient_of(attention)
qkv_attention_forward, qkv_attention_backward = gradient_of(qkv_attention)
varlen_attention_forward, varlen_attention_backward = gradient_of(varlen_attention)
patch_embed_forward, patch_embed_backward = gradient_of(patch_embed)
linear_forward, linear_backward = gradient_of(linear)
embedding_forward, embedding_backward = gradient_of(embedding)
layer_norm_forward, layer_norm_backward = gradient_of(layer_norm)
rms_norm_forward, rms_norm_backward = gradient_of(rms_norm)
gelu_forward, gelu_backward = gradient_of(gelu)
mlp_forward, mlp_backward = gradient_of(mlp)
l2_normalize_forward, l2_normalize_backward = gradient_of(l2_normalize)
conv2d_forward, conv2d_backward = gradient_of(conv2d)
batch_norm_forward, batch_norm_backward = gradient_of(batch_norm)
average_pool_forward, average_pool_backward = gradient_of(average_pool)
softmax_cross_entropy_forward, softmax_cross_entropy_backward = gradient_of(softmax_cross_entropy)
sigmoid_cross_entropy_forward, sigmoid_cross_entropy_backward = gradient_of(sigmoid_cross_entropy)
linear_cross_entropy_forward, linear_cross_entropy_backward = gradient_of(linear_cross_entropy)
clip_loss_forward, clip_loss_backward = gradient_of(clip_loss)
siglip_loss_forward, siglip_loss_backward = gradient_of(siglip_loss)
