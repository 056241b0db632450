"""Other libraries' functions in the operations' own signatures.

An adapter here only renames and rearranges arguments; the numbers are the peer's. Each is made by a function that
imports what it needs, so that its source is all that a stand-alone script takes.
"""


def sdpa(backend):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attention(query, key, value, *, mask=None, causal=False, scale=None):
        if causal and mask is not None:
            mask = mask & torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=mask.device).tril()
        options = {"is_causal": causal and mask is None, "scale": scale}
        if mask is not None:
            mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)

    return attention


def sdpa_of_torchs_choice():
    import torch

    def attention(query, key, value, *, causal=False, scale=None):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)

    return attention


def split_sdpa_of_peer():
    import torch

    def qkv_attention(qkv, *, causal=False, scale=None):
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        options = {"is_causal": causal, "scale": scale}
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
        return out.transpose(1, 2).contiguous()

    return qkv_attention


def linear_cross_entropy_of_peer():
    import torch

    def linear_cross_entropy(hidden, weight, labels, **options):
        logits = torch.nn.functional.linear(hidden, weight)
        return torch.nn.functional.cross_entropy(logits, labels.long(), **options)

    return linear_cross_entropy


def clip_loss_of_torch():
    import torch

    def clip_loss(image_embeddings, text_embeddings, logit_scale):
        logits = logit_scale * image_embeddings @ text_embeddings.T
        labels = torch.arange(len(logits), device=logits.device)
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2

    return clip_loss


def siglip_loss_of_torch():
    import torch

    def siglip_loss(image_embeddings, text_embeddings, logit_scale, logit_bias):
        logits = logit_scale * image_embeddings @ text_embeddings.T + logit_bias
        signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
        return -torch.nn.functional.logsigmoid(signs * logits).sum() / len(logits)

    return siglip_loss


def flex_attention_of_peer():
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    def attention(query, key, value, *, bias=None, causal=False, scale=None):
        t, s = query.shape[2], key.shape[2]
        whole = None if bias is None else torch.broadcast_to(bias, (*query.shape[:3], s))

        def score(value, b, h, i, j):
            value = value if whole is None else value + whole[b, h, i, j]
            return torch.where(j <= i + (s - t), value, -float("inf")) if causal else value

        return flex_attention(query, key, value, score_mod=score, scale=scale)

    return attention


def transformers_eager_of_peer():
    from types import SimpleNamespace

    import torch
    from transformers.models.vit.modeling_vit import eager_attention_forward

    def attention(query, key, value, *, mask=None, bias=None, scale=None):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if mask is not None:
            hidden = torch.where(mask, 0.0, torch.finfo(query.dtype).min).to(query.dtype)
            bias = hidden if bias is None else bias + hidden
        module = SimpleNamespace(training=False, num_key_value_groups=1)
        return eager_attention_forward(module, query, key, value, bias, scaling=scale)[0].transpose(1, 2)

    return attention


def jax_attention_of_peer():
    import jax  # pyright: ignore[reportMissingImports]

    def attention(query, key, value, *, mask=None, bias=None, causal=False, scale=None):
        options = {"mask": mask, "bias": bias, "is_causal": causal, "scale": scale}
        return jax.nn.dot_product_attention(query, key, value, **options)

    return attention


def cross_entropy_of_peer():
    import torch

    def softmax_cross_entropy(logits, labels, **options):
        if labels.is_floating_point():
            options.pop("ignore_index", None)  # which it refuses beside rows of probabilities
        else:
            labels = labels.long()
        return torch.nn.functional.cross_entropy(logits, labels, **options)

    return softmax_cross_entropy


def layer_norm_of_peer():
    import torch

    def layer_norm(x, scale, bias, *, eps=1e-5, residual=None):
        if residual is None:
            return torch.nn.functional.layer_norm(x, scale.shape, scale, bias, eps)
        x = x + residual
        return torch.nn.functional.layer_norm(x, scale.shape, scale, bias, eps), x

    return layer_norm


def rms_norm_of_peer():
    import torch

    def rms_norm(x, scale, *, eps=1e-5, residual=None):
        if residual is None:
            return torch.nn.functional.rms_norm(x, scale.shape, scale, eps)
        x = x + residual
        return torch.nn.functional.rms_norm(x, scale.shape, scale, eps), x

    return rms_norm


def gelu_of_peer():
    import torch

    def gelu(x, *, kind="erf"):
        if kind == "sigmoid":
            return x * torch.sigmoid(1.702 * x)
        return torch.nn.functional.gelu(x, approximate="none" if kind == "erf" else kind)

    return gelu


def conv2d_patches_of_peer():
    import torch

    def patch_embed(images, weight, bias):
        pixels = images.permute(0, 3, 1, 2)
        pixels = pixels.to(weight.dtype) / 255 if pixels.dtype == torch.uint8 else pixels
        return torch.nn.functional.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)

    return patch_embed


def open_clip(name):
    from open_clip import loss

    judged = getattr(loss, name)()

    def contrastive_loss(image_embeddings, text_embeddings, *factors):
        return judged(image_embeddings, text_embeddings, *factors)

    return contrastive_loss


def normalize_of_peer():
    import torch

    def l2_normalize(x, *, eps=1e-12):
        return torch.nn.functional.normalize(x, dim=-1, eps=eps)

    return l2_normalize


def batch_norm_of_peer():
    import torch

    def batch_norm(x, mean, variance, scale, bias, *, eps=1e-5):
        rows = x.reshape(-1, x.shape[-1])
        return torch.nn.functional.batch_norm(rows, mean, variance, scale, bias, eps=eps).reshape(x.shape)

    return batch_norm


def embedding_of_peer():
    import torch

    def embedding(tokens, weight):
        return torch.nn.functional.embedding(tokens, weight)

    return embedding


def linear_of_peer():
    import torch

    def linear(x, weight, bias):
        return torch.nn.functional.linear(x, weight, bias)

    return linear


def mlp_of_peer():
    import torch

    def mlp(x, weight_in, bias_in, weight_out, bias_out):
        hidden = torch.nn.functional.gelu(torch.nn.functional.linear(x, weight_in, bias_in))
        return torch.nn.functional.linear(hidden, weight_out, bias_out)

    return mlp


def conv2d_of_peer():
    import torch

    def conv2d(x, weight, bias, *, stride=1, padding=0):  # of pixels whose channels are last, as they lie in memory
        weight = weight.contiguous()  # of others the gradient may raise
        return torch.nn.functional.conv2d(x.movedim(-1, 1), weight, bias, stride, padding).movedim(1, -1)

    return conv2d


def average_pool_of_peer():
    import torch

    def average_pool(x, *, size):
        return torch.nn.functional.avg_pool2d(x.movedim(-1, 1), size).movedim(1, -1)

    return average_pool


def sigmoid_cross_entropy_of_peer():
    import torch

    def sigmoid_cross_entropy(logits, targets, *, reduction="mean"):
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)
        return each if reduction == "none" else getattr(each, reduction)()

    return sigmoid_cross_entropy


def flash_attention_of_peer():
    from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]

    def attention(query, key, value, *, causal=False, scale=None):
        return flash_attn_func(query, key, value, softmax_scale=scale, causal=causal, deterministic=True)

    return attention


def xformers_of_peer():
    from xformers.ops import fmha  # pyright: ignore[reportMissingImports]

    def attention(query, key, value, *, causal=False, scale=None):
        bias = fmha.attn_bias.LowerTriangularFromBottomRightMask() if causal else None
        return fmha.memory_efficient_attention(query, key, value, attn_bias=bias, scale=scale)

    return attention


def liger(name):
    from liger_kernel.transformers import functional  # pyright: ignore[reportMissingImports]

    def softmax_cross_entropy(logits, labels, **options):
        return functional.liger_cross_entropy(logits, labels.long(), **options)

    def linear_cross_entropy(hidden, weight, labels, **options):
        return functional.liger_fused_linear_cross_entropy(hidden, weight, labels.long(), **options)

    def layer_norm(x, scale, bias, *, eps=1e-5):  # it cannot do without a bias
        return functional.liger_layer_norm(x, scale, scale.new_zeros(scale.shape) if bias is None else bias, eps)

    def rms_norm(x, scale, *, eps=1e-5):
        return functional.liger_rms_norm(x, scale, eps, in_place=False)

    return locals()[name]


def cut_cross_entropy_of_peer():
    from cut_cross_entropy import linear_cross_entropy as judged  # pyright: ignore[reportMissingImports]

    def linear_cross_entropy(hidden, weight, labels, **options):
        # by default it leaves out gradients that it deems small
        return judged(hidden, weight, labels.long(), filter_eps=None, **options)

    return linear_cross_entropy


def inf_cl_of_peer():
    from inf_cl import cal_inf_loss  # pyright: ignore[reportMissingImports]

    def clip_loss(image_embeddings, text_embeddings, logit_scale):  # it takes widths that 256 divides, no others
        pairs = (image_embeddings, text_embeddings), (text_embeddings, image_embeddings)
        return sum(cal_inf_loss(*pair, scale=logit_scale) for pair in pairs) / 2

    return clip_loss


def sklearn_kmeans_of_peer():
    import numpy as np
    from sklearn.cluster import KMeans

    def fit(colors, counts, centers, *, iterations=100):
        judged = KMeans(len(centers), init=centers / 4096, n_init=1, max_iter=iterations, tol=0.0, algorithm="lloyd")
        judged.fit(colors.astype(np.float64), sample_weight=counts)
        return np.rint(4096 * judged.cluster_centers_).astype(np.int32), judged.labels_

    return fit


def faiss_kmeans_of_peer():
    import faiss  # pyright: ignore[reportMissingImports]
    import numpy as np

    def fit(colors, counts, centers, *, iterations=100):
        limits = {"min_points_per_centroid": 1, "max_points_per_centroid": 2**30}
        judged = faiss.Kmeans(3, len(centers), niter=iterations, **limits)
        pixels = np.ascontiguousarray(colors, np.float32)
        start = np.ascontiguousarray(centers / 4096, np.float32)
        judged.train(pixels, weights=counts.astype(np.float32), init_centroids=start)
        _, nearest = judged.index.search(pixels, 1)
        return np.rint(4096 * np.asarray(judged.centroids, np.float64)).astype(np.int32), nearest[:, 0].astype(np.int32)

    return fit


def pillow_quantize_of_peer():
    import numpy as np
    from PIL import Image

    def fit(colors, counts, centers, *, iterations=100):
        # from its own median cut, with centres of whole levels, and until at most one pixel changes: it counts no steps
        pixels = np.repeat(colors, counts, 0)[None]
        judged = Image.fromarray(pixels).quantize(len(centers), kmeans=1, dither=Image.Dither.NONE)
        palette = np.array(judged.getpalette(), np.int32).reshape(-1, 3)
        palette = np.concatenate([palette, np.repeat(palette[-1:], max(0, len(centers) - len(palette)), 0)])
        first = np.cumsum(counts) - counts
        return 4096 * palette[: len(centers)], np.asarray(judged).reshape(-1)[first].astype(np.int32)

    return fit
