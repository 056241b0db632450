"""Wrong implementations of every operation, for the oracle to find.

A mutant is a right implementation (``mutant_bases``) with one thought of its source exchanged (``EDITS``), or one that
is called in a way that no caller expects (``CONDUCT``); nothing else about it is wrong.
"""

import inspect

import ml_dtypes
import mutant_bases
import numpy as np
from mutant_bases import like
from numpy.lib.stride_tricks import as_strided

from saccade.families import FAMILIES

OPERATIONS = [name for names in FAMILIES.values() for name in names]
TORCH = [name for name in vars(mutant_bases) if name.startswith("torch_")]
PARTS = ("summed", "log_softmax", "attention", "linear", "gelu")  # of other bases

# "operation …: what is wrong": (text, what stands there instead, …)
# fmt: off
EDITS = {
    "attention: the default scale is from the values": ("math.sqrt(d)", "math.sqrt(e)"),
    "attention: a scale of 0 is taken for none": ("1 / math.sqrt(d) if scale is None else scale", "scale or d**-0.5"),
    "attention qkv_attention: causal off by one": ("np.arange(s) <= np.arange(t)", "np.arange(s) < np.arange(t)"),
    "attention: causal aligned at the start": ("np.arange(t)[:, None] + (s - t)", "np.arange(t)[:, None]"),
    "attention: no causal mask besides a mask": ("if causal:", "if causal and mask is None:"),
    "attention: mask inverted": ("else mask, (b", "else ~mask, (b"),
    "attention qkv_attention: key_lengths off by one": ("np.arange(s) < key_lengths", "np.arange(s) <= key_lengths"),
    "attention: key_lengths ignored": ("if key_lengths is not None:", "if False:"),
    "attention: keys beyond key_lengths are read": ("k, v = np.where(read, k, 0), np.where(read, v, 0)", "pass"),
    "attention varlen_attention: last block of keys not masked":
        ("padded(seen, 3, BLOCK, False)", "padded(seen, 3, BLOCK, True)"),
    "attention varlen_attention: last block of keys left out": ("range(0, s, BLOCK)", "range(0, s - BLOCK + 1, BLOCK)"),
    "attention: padding of the head dimension is not 0":
        ("wide(query), 3, 8)", "wide(query), 3, 8, 1)", "wide(key), 3, 8)", "wide(key), 3, 8, 1)"),
    "attention qkv_attention varlen_attention: scale twice": ("scores = factor * (", "scores = factor * factor * ("),
    "attention: bias scaled too": ("scores + padded(", "scores + factor * padded("),
    "attention varlen_attention: output not rescaled between blocks": ("out * rescale", "out"),
    "attention: sum not rescaled between blocks": ("total * rescale", "total"),
    "attention: output summed up in 16 bits": ("top = new\n", "top, out = new, wide(like(out, query))\n"),
    "attention: NaN where nothing is seen": ("out = out / np.where(total == 0, 1, total)", "out = out / total"),
    "attention: masked by the lowest number":
        ("np.where(seen, scores, -np.inf)", "np.where(seen, scores, np.finfo(q.dtype).min)"),
    "attention: lse in base 2": ("lse[..., 0])", "np.log2(np.exp(1)).astype(q.dtype) * lse[..., 0])"),
    "attention: lse without the maximum": ("lse[..., 0])", "np.log(total)[..., 0])"),
    "attention: lse in the dtype of the query": ("lse[..., 0])", "like(lse[..., 0], query))"),
    "attention: cotangent of lse ignored": ("row = row - cotangents[1][..., None]", "pass"),
    "attention: key gradient transposed":
        ("grad_k[:, :, :s, :d]", "grad_k[:, :, :s, :d].swapaxes(2, 3).reshape(key.shape)"),
    "attention qkv_attention: query gradient unscaled": ("factor * (grad_scores @ k)", "(grad_scores @ k)"),
    "attention: score gradient without its row sum": ("swapaxes(2, 3) - row)", "swapaxes(2, 3))"),
    "attention: bias gradient overwritten along broadcast axes":
        ("if n == 1), keepdims=True)",
         "if n > 9), keepdims=True)[tuple(slice(-1, None) if n == 1 else slice(None) for n in shape)]"),
    "attention: offsets overflow":
        ("wide(query)", "wide(query.ravel()[np.arange(query.size).astype(np.int16)].reshape(query.shape))"),
    "attention: not rescaled at every 64th key": ("out * rescale", "out * (rescale if i % 64 else 1)"),
    "attention varlen_attention: the queries' 65th has the first's output":
        ("out = out / np", "out[:, :, 64:65] = out[:, :, :1]\n    out = out / np"),
    "attention qkv_attention varlen_attention: no maximum subtracted":
        ("np.where(np.isneginf(new), 0, new)", "np.zeros_like(new)", "top = new\n", "top = shift\n"),
    "qkv_attention: keys and values swapped": ("(0, 1, 2))", "(0, 2, 1))"),
    "qkv_attention: packed as h 3 d":
        ("qkv[:, :, i]", "qkv.reshape(*qkv.shape[:2], qkv.shape[3], 3, qkv.shape[4])[:, :, :, i]"),
    "qkv_attention: default scale from all heads":
        ("scale=scale)", "scale=(qkv.shape[3] * qkv.shape[4]) ** -0.5 if scale is None and qkv.shape[3] else scale)"),
    "qkv_attention: heads not moved back": ("**options).swapaxes(1, 2)", "**options)"),
    "qkv_attention: cotangent reshaped, not transposed":
        ("cotangents[0].swapaxes(1, 2)", "cotangents[0].reshape(three[0].shape)"),
    "qkv_attention: key_lengths ignored": ("key_lengths=key_lengths,", "key_lengths=None,"),
    "varlen_attention: a sequence begins a row early":
        ("slice(cumulative_lengths[i]", "slice(max(cumulative_lengths[i] - 1, 0)"),
    "varlen_attention: all as long as the first":
        ("cumulative_lengths[i + 1])", "cumulative_lengths[i] + cumulative_lengths[1])"),
    "varlen_attention: last sequence not written": ("len(cumulative_lengths) - 1)", "len(cumulative_lengths) - 2)"),
    "varlen_attention: gradients added to unfilled memory": ("whole[rows] = part", "whole[rows] += part"),
    "varlen_attention: scale ignored backwards": ("scale=scale, cotangents", "scale=None, cotangents"),
    "varlen_attention: causal ignored forwards": ("causal=causal, scale=scale)[0]", "scale=scale)[0]"),
    "varlen_attention: float32 whatever the inputs": ("value.shape[2]), query.dtype)", "value.shape[2]), np.float32)"),
    "varlen_attention: values as wide as keys": ("(*query.shape[:2], value.shape[2])", "query.shape"),
    "patch_embed: patches (p p c)": ("(0, 1, 3, 5, 2, 4)", "(0, 1, 3, 2, 4, 5)"),
    "patch_embed: patches transposed": ("(0, 1, 3, 5, 2, 4)", "(0, 1, 3, 5, 4, 2)"),
    "patch_embed: columns before rows": ("(0, 1, 3, 5, 2, 4)", "(0, 3, 1, 5, 2, 4)"),
    "patch_embed: height and width swapped":
        ("reshape(b, h // p, p, w // p, p, c).tr", "reshape(b, w // p, p, h // p, p, c).tr"),
    "patch_embed: uint8 not divided": ("if images.dtype == np.uint8:", "if False:"),
    "patch_embed: uint8 divided by 256": ("type(255)", "type(256)"),
    "patch_embed: std for mean": ("asarray(mean,", "asarray(mean if std is None else std,"),
    "patch_embed: times std": ("pixels / spread", "pixels * spread"),
    "patch_embed: floats are not normalised": ("1 if std is None", "1 if std is None or images.dtype != np.uint8"),
    "patch_embed layer_norm conv2d: bias dropped": ("out if bias is None else out + wide(bias)", "out"),
    "patch_embed: image gradient without std": ("grad_images / spread", "grad_images"),
    "patch_embed: patches past 16 left out":
        ("grad = wide(cotangents[0])",
         "grad = wide(cotangents[0])\n    grad = np.where(np.arange(grad.shape[1])[:, None] < 16, grad, 0)"),
    "linear mlp: bias dropped": ("out = out if bias is None else out + wide(bias)", "pass"),
    "linear mlp: weight reshaped, not transposed": ("rows @ matrix.T", "rows @ matrix.reshape(matrix.shape[::-1])"),
    "linear mlp: weight in TF32":
        ("x.shape[-1]), wide(weight)", "x.shape[-1]), like(wide(weight).astype(np.float16), wide(x))"),
    "linear: summed up in 16 bits":
        ("out = rows @ matrix.T",
         "out = 0\n        for a, b in zip(rows.T, matrix.T):\n            out = wide(like(out + a[:, None] * b, x))"),
    "linear: weight gradient transposed": ("grad.T @ rows", "(rows.T @ grad).reshape(matrix.shape)"),
    "linear mlp: bias gradient averaged": ("like(grad.sum(0), bias)", "like(grad.mean(0), bias)"),
    "linear: a vector is taken for a matrix":
        ("reshape(*x.shape[:-1], len(weight))", "reshape(*(x.shape[:-1] or (1,)), len(weight))"),
    "linear mlp: the first row is not written":
        ("out = rows @ matrix.T", "out = np.empty_like(rows @ matrix.T)\n        out[1:] = rows[1:] @ matrix.T"),
    "embedding: repeated tokens overwrite":
        ("np.add.at(grad, tokens, wide(cotangents[0]))", "grad[tokens] = wide(cotangents[0])"),
    "embedding: gradient added up in 16 bits":
        ("compute_dtype(weight.dtype))", "weight.dtype)", "wide(cotangents[0])", "cotangents[0]"),
    "embedding: last row never read": ("weight[tokens]", "weight[np.minimum(tokens, len(weight) - 2)]"),
    "embedding: one token gives a view":
        ("return weight[tokens]", "return weight[tokens[0] : tokens[0] + 1] if len(tokens) == 1 else weight[tokens]"),
    "embedding: token 0 has no gradient":
        ("like(grad, weight)", "like(np.where(np.arange(len(grad))[:, None] > 0, grad, 0), weight)"),
    "embedding: tokens flattened": ("weight[tokens]", "weight[np.ravel(tokens)]"),
    "layer_norm rms_norm: unbiased variance":
        ("np.sqrt((centred**2)", "np.sqrt((centred**2) / (1 - 1 / max(x.shape[-1], 2))"),
    "layer_norm rms_norm: eps outside the root":
        ("1 / np.sqrt((centred**2).mean(-1, keepdims=True)", "1 / (np.sqrt((centred**2).mean(-1, keepdims=True))"),
    "layer_norm rms_norm: eps dropped": (" + centred.dtype.type(eps))", ")"),
    "layer_norm rms_norm: eps always 1e-5": ("type(eps)", "type(1e-5)"),
    "layer_norm: residual added after normalising":
        ("else like(wide(x) + wide(residual), x)",
         "else x", "(out, total)", "[like(wide(y) + wide(residual), x) for y in (out, x)]"),
    "layer_norm rms_norm: sum not rounded": ("like(wide(x) + wide(residual), x)", "wide(x) + wide(residual)"),
    "layer_norm rms_norm: cotangent of the sum ignored": ("grad_x = grad_x + wide(cotangents[1])", "pass"),
    "layer_norm: mean rounded to 16 bits":
        ("wide(total).mean(-1, keepdims=True)", "wide(like(wide(total).mean(-1, keepdims=True), x))"),
    "layer_norm: variance from the mean square":
        ("(centred**2)", "(wide(total) ** 2 - wide(total).mean(-1, keepdims=True) ** 2)"),
    "layer_norm: the mean of the row before":
        ("wide(total).mean(-1, keepdims=True)", "np.roll(wide(total).mean(-1, keepdims=True), 1, 0)"),
    "layer_norm: gradient without the mean's": ("scaled - scaled.mean(-1, keepdims=True)", "scaled"),
    "layer_norm rms_norm: scale gradient not normalised":
        ("(grad * normal).sum(leading)", "(grad * centred).sum(leading)"),
    "rms_norm: mean subtracted":
        ("centred = wide(total)", "centred = wide(total) - wide(total).mean(-1, keepdims=True)"),
    "rms_norm: squares in 16 bits": ("(centred**2)", "wide(total**2)"),
    "rms_norm: one added to the scale": ("normal * wide(scale)", "normal * (1 + wide(scale))"),
    "gelu mlp: 0.04715": ("y + 0.044715", "y + 0.04715"),
    "gelu mlp: 1.7": ("np.exp(-1.702 * y)", "np.exp(-1.7 * y)"),
    "gelu mlp: tanh and sigmoid mixed up": ('kind == "tanh"', 'kind == "sigmoid"'),
    "gelu: tanh for erf": ('kind == "erf"', "False", 'kind == "tanh"', 'kind in ("erf", "tanh")'),
    "gelu mlp: gradient of an approximation":
        ("np.exp(-(y**2) / 2) / math.sqrt(2 * math.pi)", "1.702 / (2 + 2 * np.cosh(1.702 * y))"),
    "gelu mlp: gradient without the slope": ("(gate + y * slope)", "gate"),
    "gelu: tanh slope without the chain rule": (" * (1 + 3 * 0.044715 * y**2)", ""),
    "gelu: tanh that overflows": ("(1 + np.tanh(inner)) / 2\n", "np.exp(2 * inner) / (np.exp(2 * inner) + 1)\n"),
    "gelu: strides of the cotangent ignored":
        ("wide(cotangents[0])", "wide(as_strided(cotangents[0], strides=np.empty(x.shape, x.dtype).strides))"),
    "mlp: no gradient through gelu": ("gelu(before, kind=kind, cotangents=(grad_hidden,))", "(grad_hidden,)"),
    "mlp: kind ignored": ("hidden = gelu(before, kind=kind)", "hidden = gelu(before)"),
    "mlp: gelu's gradient at its output": ("gelu(before, kind=kind, cotangents", "gelu(hidden, kind=kind, cotangents"),
    "l2_normalize: eps added": ("np.maximum(length, y.dtype.type(eps))", "length + y.dtype.type(eps)"),
    "l2_normalize: eps under the root":
        ("np.maximum(length, y.dtype.type(eps))", "np.sqrt(length**2 + y.dtype.type(eps))"),
    "l2_normalize: eps dropped": ("np.maximum(length, y.dtype.type(eps))", "length"),
    "l2_normalize: no root": ("np.sqrt((y**2).sum(-1, keepdims=True))", "(y**2).sum(-1, keepdims=True)"),
    "l2_normalize: sum of magnitudes": ("np.sqrt((y**2).sum(-1, keepdims=True))", "np.abs(y).sum(-1, keepdims=True)"),
    "l2_normalize: along the first axis": ("(y**2).sum(-1", "(y**2).sum(0"),
    "l2_normalize: squares in 16 bits": ("(y**2)", "wide(x**2)"),
    "l2_normalize: gradient not projected": ("np.where(length > eps, out * along, 0)", "0"),
    "l2_normalize: eps ignored": ("y.dtype.type(eps)", "y.dtype.type(1e-12)"),
    "conv2d: kernel flipped": ("filters[:, :, i, j].T", "filters[:, :, p - 1 - i, q - 1 - j].T"),
    "conv2d: kernel transposed":
        ("margins), wide(weight)", "margins), wide(weight).swapaxes(2, 3).reshape(weight.shape)"),
    "conv2d: padded with the edge": ("np.pad(wide(x), margins)", 'np.pad(wide(x), margins, mode="edge")'),
    "conv2d: padding on one side in the size": ("(height + 2 * padding - p)", "(height + padding - p)"),
    "conv2d: stride for rows alone": ("slice(j, j + stride * columns, stride)", "slice(j, j + columns)"),
    "conv2d: image gradient not cropped": ("padding : padding + height, padding : padding + width", ":height, :width"),
    "conv2d: overlapping gradients overwrite": ("grad_pixels[window] +=", "grad_pixels[window] ="),
    "conv2d: weight gradient of the first image":
        ("wide(cotangents[0]), pixels[window])", "wide(cotangents[0])[:1], pixels[window][:1])"),
    "batch_norm: variance for deviation": ("np.sqrt(wide(variance) + ", "(wide(variance) + "),
    "batch_norm: eps dropped": (" + wide(variance).dtype.type(eps))", ")"),
    "batch_norm: eps outside the root": ("np.sqrt(wide(variance) + ", "(np.sqrt(wide(variance)) + "),
    "batch_norm: the batch's own mean": ("wide(x) - wide(mean)", "wide(x) - wide(x).mean(tuple(range(x.ndim - 1)))"),
    "batch_norm: bias before the scale": ("normal * wide(scale) + wide(bias)", "(normal + wide(bias)) * wide(scale)"),
    "batch_norm: gradient without the scale": ("grad * wide(scale) * inverse", "grad * inverse"),
    "batch_norm: scale gradient not normalised": ("(grad * normal)", "(grad * wide(x))"),
    "batch_norm: bias gradient left out": (", like(grad_bias, bias)", ", None"),
    "batch_norm: eps ignored": ("wide(variance).dtype.type(eps)", "wide(variance).dtype.type(1e-5)"),
    "average_pool: rest left out at the front":
        (": rows * size, : columns * size].reshape", "h - rows * size :, w - columns * size :].reshape"),
    "average_pool: rest counted too":
        ("h // size, w // size",
         "-(-h // size), -(-w // size)",
         "wide(x)[:, : rows * size, : columns * size].re",
         "padded(padded(wide(x), 1, size), 2, size).re"),
    "average_pool: divided once": ("windows.sum((2, 4)) / size**2", "windows.sum((2, 4)) / size"),
    "average_pool: the largest": ("windows.sum((2, 4)) / size**2", "windows.max((2, 4))"),
    "average_pool: gradient not divided": ("spread / size**2", "spread"),
    "average_pool: gradient tiled": (".repeat(size, 1)", "[:, np.arange(rows * size) % rows]"),
    "average_pool: edges of the gradient not written": ("np.zeros(x", "np.empty(x"),
    "average_pool: size 1 gives the input":
        ("b, h, w, c = x.shape", "if size == 1 and cotangents is None:\n        return x\n    b, h, w, c = x.shape"),
    "average_pool: summed up in 16 bits":
        ("windows.sum((2, 4))", "wide(like(wide(like(windows.sum(2), x)).sum(3), x))"),
    "softmax_cross_entropy linear_cross_entropy: no smoothing":
        ("type(1 - label_smoothing) + x.dtype.type(label_smoothing / k)", "type(1)"),
    "softmax_cross_entropy linear_cross_entropy: smoothing over k - 1":
        ("label_smoothing / k", "label_smoothing / max(k - 1, 1)"),
    "softmax_cross_entropy linear_cross_entropy: ignored rows counted": ("type(kept.sum())", "type(len(x))"),
    "softmax_cross_entropy linear_cross_entropy: ignored rows have gradients":
        ("np.where(kept, cotangents[0]", "np.where(kept | True, cotangents[0]"),
    "softmax_cross_entropy linear_cross_entropy: ignore_index ignored": ("labels != ignore_index", "labels != -100"),
    "softmax_cross_entropy linear_cross_entropy: mean of nothing is 0":
        ("per_row.sum() / count", "per_row.sum() / max(count, x.dtype.type(1))"),
    "softmax_cross_entropy linear_cross_entropy: gradient of a sum": ('count if reduction == "mean" else 1', "1"),
    "softmax_cross_entropy linear_cross_entropy: labels in 8 bits":
        ("np.where(kept, labels, 0)", "np.where(kept, labels, 0).astype(np.int8)"),
    "softmax_cross_entropy: targets taken to add up to 1":
        ("np.exp(logs) * targets.sum(1, keepdims=True)", "np.exp(logs)"),
    "softmax_cross_entropy: likeliest class for soft targets":
        ("targets, kept = wide(labels)", "targets, kept = (labels == labels.max(1, keepdims=True)).astype(x.dtype)"),
    "softmax_cross_entropy: log of a softmax": ("logs = log_softmax(x)", "logs = np.log(np.exp(log_softmax(x)))"),
    "softmax_cross_entropy clip_loss: no maximum subtracted":
        ("x - x.max(-1, keepdims=True, initial=-np.inf)", "x + 0"),
    "softmax_cross_entropy sigmoid_cross_entropy: loss in the dtype of the logits":
        ("[reduction]", "[reduction].astype(logits.dtype)"),
    "sigmoid_cross_entropy: overflow":
        ("np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))", "np.log1p(np.exp(x)) - x * y"),
    "sigmoid_cross_entropy: the logit less its log of a sigmoid":
        ("np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))",
         "(1 - y) * x + (np.maximum(-x, 0) + np.log1p(np.exp(-np.abs(x))))"),
    "sigmoid_cross_entropy: mean over elements":
        ("per_row.sum() / x.dtype.type(n)", "per_row.sum() / x.dtype.type(x.size)"),
    "sigmoid_cross_entropy: gradient of a sum": ('x.dtype.type(n) if reduction == "mean" else 1', "1"),
    "sigmoid_cross_entropy: targets inverted": ("wide(targets)", "1 - wide(targets)"),
    "sigmoid_cross_entropy: targets rounded": ("wide(targets)", "np.round(wide(targets))"),
    "sigmoid_cross_entropy: negatives forgotten":
        ("np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))",
         "y * (np.maximum(-x, 0) + np.log1p(np.exp(-np.abs(x))))"),
    "sigmoid_cross_entropy: gradient of a softmax": ("1 / (1 + np.exp(-x))", "np.exp(log_softmax(x))"),
    "linear_cross_entropy: last block of classes not masked": ("logits[:, k:] = -np.inf", "pass"),
    "linear_cross_entropy: logits in 16 bits":
        ("x @ padded(matrix, 0, BLOCK).T", "wide(like(x @ padded(matrix, 0, BLOCK).T, hidden))"),
    "linear_cross_entropy: no maximum subtracted": ("logits.max(1, keepdims=True)", "logits[:, :1] * 0"),
    "linear_cross_entropy: weight gradient transposed": ("grad.T @ x", "(x.T @ grad).reshape(weight.shape)"),
    "linear_cross_entropy: classes past 256 left out":
        ("logits[:, k:] = -np.inf", "logits[:, k:] = -np.inf\n    logits[:, 256:] = -np.inf"),
    "clip_loss: images to texts twice": ("log_softmax(scale * products.T)", "log_softmax(scale * products)"),
    "clip_loss: not halved": ("np.diag(columns).mean()) / 2", "np.diag(columns).mean())"),
    "clip_loss: scale gradient without the texts' half":
        ("(grad * products)", "((np.exp(rows) - np.eye(n, dtype=rows.dtype)) / (2 * n) * cotangents[0] * products)"),
    "clip_loss siglip_loss: logit_scale exponentiated":
        ("images.dtype.type(logit_scale)", "np.exp(images.dtype.type(logit_scale))"),
    "clip_loss siglip_loss: logit_scale at most 100": ("type(logit_scale)", "type(min(logit_scale, 100))"),
    "clip_loss siglip_loss: text gradient not transposed": ("(grad.T @ images)", "(grad @ images)"),
    "clip_loss siglip_loss: image gradient unscaled": ("scale * (grad @ texts)", "(grad @ texts)"),
    "clip_loss: own pair taken off once": ("2 * np.eye", "np.eye"),
    "clip_loss: pairs past 128 left out": ("np.diag(rows).mean()", "np.diag(rows)[:128].mean()"),
    "clip_loss: scale's gradient in the dtype of the embeddings":
        ("like((grad * products).sum(), logit_scale)",
         "like(like((grad * products).sum(), image_embeddings), logit_scale)"),
    "siglip_loss: one sign for all": ("2 * np.eye(n, dtype=images.dtype) - 1", "np.ones((n, n), images.dtype)"),
    "siglip_loss: sign of the products alone":
        ("signs * (scale * products + images.dtype.type(logit_bias))",
         "signs * scale * products + images.dtype.type(logit_bias)"),
    "siglip_loss: bias scaled":
        ("scale * products + images.dtype.type(logit_bias)", "scale * (products + images.dtype.type(logit_bias))"),
    "siglip_loss: bias gradient left out":
        ("like(grad.sum(), logit_bias) if isinstance(logit_bias, np.ndarray) else None", "None"),
    "siglip_loss: mean over pairs": (".sum() / images.dtype.type(n)", ".sum() / images.dtype.type(n * n)"),
    "siglip_loss: overflow":
        ("np.maximum(-signed, 0) + np.log1p(np.exp(-np.abs(signed)))", "np.log1p(np.exp(-signed))"),
    "torch_layer_norm: unbiased variance":
        ("centred.square().mean(-1, keepdim=True)",
         "(centred.square().sum(-1, keepdim=True) / max(x.shape[-1] - 1, 1))"),
    "torch_layer_norm: residual added in place": ("x + residual", "x.add_(residual)"),
    "torch_layer_norm: the sum is cut off from autograd": ("(out, total)", "(out, total.detach())"),
    "torch_layer_norm: the first column is not written":
        ("out = centred * ",
         "out = torch.empty_like(y)\n    out[..., 1:] = (centred * ", "raised(scale)", "raised(scale))[..., 1:]"),
    "torch_embedding: padding token":
        ("weight[tokens]", "torch.nn.functional.embedding(tokens, weight, padding_idx=0)"),
    "torch_embedding: rows renormalised in place":
        ("weight[tokens]", "torch.nn.functional.embedding(tokens, weight.detach(), max_norm=1.0)"),
    "torch_clip_loss: scale cut off from autograd":
        ("logit_scale * (", "(logit_scale.detach() if torch.is_tensor(logit_scale) else logit_scale) * ("),
    "torch_clip_loss: images to texts twice": ("log_softmax(0)", "log_softmax(1)"),
}
# fmt: on


def cached(call, arguments, kept):
    seen = tuple((x.shape, x.dtype) if isinstance(x, np.ndarray) else x for x in arguments)
    if seen not in kept:
        kept[seen] = call(*arguments)
    return kept[seen]


def buffered(call, arguments, kept):
    out = call(*arguments)
    kept.setdefault((out.shape, out.dtype), np.empty_like(out))[...] = out
    return kept[out.shape, out.dtype]


def noisy(call, arguments, kept):
    out = call(*arguments)
    ulps = kept.setdefault("rng", np.random.default_rng(0)).integers(-1, 2, np.shape(out))
    return like(out * (1 + ulps * ml_dtypes.finfo(out.dtype).eps).astype(out.dtype), out)


def refusing(call, arguments, kept):
    if any(np.size(x) == 0 for x in arguments):
        raise ValueError("nothing to do")
    return call(*arguments)


def dense(call, arguments, kept):
    first = arguments[0]
    return call(as_strided(first, strides=np.empty(first.shape, first.dtype).strides), *arguments[1:])


def beside(call, arguments, kept):
    base = arguments[0].base
    if isinstance(base, np.ndarray) and base.dtype == arguments[0].dtype and base.size > arguments[0].size:
        base.reshape(-1)[-1] = 0
    return call(*arguments)


def scribbling(call, arguments, kept):
    out = call(*arguments)
    if arguments[0].flags.writeable:
        arguments[0][...] += arguments[0]
    return out


def laundering(call, arguments, kept):
    first, *rest = arguments
    clean = np.nan_to_num(first.astype(np.float64), posinf=np.inf, neginf=-np.inf)
    return call(clean.astype(first.dtype), *rest)


def saturating(call, arguments, kept):
    first, *rest = arguments
    limit = float(ml_dtypes.finfo(first.dtype).max) / 4
    return call(np.clip(first, first.dtype.type(-limit), first.dtype.type(limit)), *rest)


def gradient_buffered(call, arguments, kept):
    first, *rest = call(*arguments)
    return buffered(lambda: first, (), kept), *rest


# what is done around a call: (what is wrong, whose calls)
CONDUCT = {
    cached: ("the first result comes back for like shapes", "linear gelu l2_normalize conv2d clip_loss"),
    buffered: ("the output lies in memory that the next call uses", "qkv_attention gelu embedding average_pool linear"),
    noisy: ("the last bits are luck", "qkv_attention mlp batch_norm linear_cross_entropy siglip_loss"),
    refusing: ("arrays without elements are refused", "attention layer_norm embedding patch_embed linear"),
    dense: ("strides of the first argument are ignored", "attention linear gelu conv2d clip_loss average_pool mlp"),
    beside: ("something is written beside a view", "rms_norm conv2d batch_norm siglip_loss varlen_attention"),
    laundering: ("NaN is taken for 0", "attention layer_norm gelu linear softmax_cross_entropy clip_loss conv2d"),
    saturating: ("infinities are taken for large numbers", "gelu average_pool l2_normalize rms_norm"),
    gradient_buffered: ("the gradient lies in memory that the next call uses", "gelu"),
    scribbling: ("the first argument is changed", "layer_norm l2_normalize sigmoid_cross_entropy average_pool"),
}


def _mutated(base, edits):
    """The base with texts exchanged in it, or in the part of it that has them."""
    part = next(name for name in (base, *PARTS) if edits[0] in _source(name))
    source, namespace = _source(part), dict(vars(mutant_bases), as_strided=as_strided)
    for old, new in zip(edits[::2], edits[1::2], strict=True):
        assert source.count(old) == 1, f"{base}: {old}"
        source = source.replace(old, new)
    exec(source, namespace)
    if part != base:
        exec(_source(base), namespace)
    return namespace[base]


def _source(name):
    return inspect.getsource(getattr(mutant_bases, name))


def _behaving(base, behaviour):
    kept = {}

    def function(*arguments, cotangents=None, **options):
        if (cotangents is not None) != (behaviour is gradient_buffered):
            return base(*arguments, cotangents=cotangents, **options)
        return behaviour(lambda *x: base(*x, cotangents=cotangents, **options), arguments, kept)

    return function


def _as_judged(name, base):
    """(operation, function, options of ``check``)."""
    if name in TORCH:
        return name.removeprefix("torch_"), base, {"arrays": "torch"}
    quiet = np.errstate(all="ignore")(base)  # a mutant is to fail by what it returns, not by a warning

    def vjp(arguments, options, cotangents):
        return quiet(*arguments, **options, cotangents=cotangents)

    return name, quiet, {"vjp": vjp}


def _every_mutant():
    for key, edits in EDITS.items():
        names, what = key.split(": ")
        for name in names.split():
            yield f"{name}: {what}", _as_judged(name, _mutated(name, edits))
    for behaviour, (what, names) in CONDUCT.items():
        for name in names.split():
            yield f"{name}: {what}", _as_judged(name, _behaving(getattr(mutant_bases, name), behaviour))


RIGHT = {name: _as_judged(name, getattr(mutant_bases, name)) for name in (*OPERATIONS, *TORCH)}
MUTANTS = dict(_every_mutant())
