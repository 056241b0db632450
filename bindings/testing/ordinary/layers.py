"""The layers of a transformer block as ordinary programs compute them."""

# How many operands and gradients a tuple holds, and which are None, depends on the operation and its arguments.
# pyright: reportAssignmentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import numpy as np

from saccade.reference.layers import gelu_gate
from saccade.testing.ways import transpose


def linear(way, arguments, options, cotangents):
    """A product with the transposed weight."""
    weight = np.asarray(arguments[1])  # as it came: its products find it rounded already
    x, bias = way.raise_(arguments[0], *arguments[2:3] or (None,))
    flat = x.reshape(-1, x.shape[-1])
    if bias is not None and way.order in ("in order", "reversed"):  # as where the sums start from the bias
        out = way.matmul(flat, transpose(weight), bias)
    else:
        out = way.matmul(flat, transpose(weight))
        out = out if bias is None else out + bias
    out = out.reshape(*x.shape[:-1], weight.shape[0])
    if cotangents is None:
        return (out,), ()
    grad = way.raise_(cotangents[0])[0].reshape(-1, weight.shape[0])
    grad_bias = None if bias is None else way.sum(grad, 0)[0]
    return (out,), (way.matmul(grad, weight).reshape(x.shape), way.matmul(transpose(grad), flat), grad_bias)


def embedding(way, arguments, options, cotangents):
    """Rows of the weight; its gradient adds rows up."""
    tokens, weight = arguments
    out = weight[tokens]
    if cotangents is None:
        return (out,), ()
    one_hot = (np.ravel(tokens)[None, :] == np.arange(len(weight))[:, None]).astype(way.core)
    grad = way.raise_(cotangents[0])[0].reshape(-1, weight.shape[1])
    return (out,), (way.matmul(one_hot, grad),)


def layer_norm(way, arguments, options, cotangents):
    """LayerNorm with an optional residual, mean and variance in two passes."""
    x, scale, bias = (*way.raise_(*arguments), None)[:3]
    return _norm(way, x, scale, bias, options, cotangents, centred=True)


def rms_norm(way, arguments, options, cotangents):
    """RMS norm: no mean, no bias."""
    return _norm(way, *way.raise_(*arguments), None, options, cotangents, centred=False)


def _norm(way, x, scale, bias, options, cotangents, centred):
    residual = options.get("residual")
    if residual is not None:
        x = way.round(x + way.raise_(residual)[0])
    centre = way.mean(x, -1) if centred else 0
    inverse = 1 / way.sqrt(way.mean((x - centre) ** 2, -1) + way.core.type(options.get("eps", 1e-5)))
    normal = (x - centre) * inverse
    out = normal * scale if bias is None else normal * scale + bias
    outputs = (out,) if residual is None else (out, x)
    if cotangents is None:
        return outputs, ()
    grad_out, *grad_sum = way.raise_(*cotangents)
    scaled = grad_out * scale
    grad_x = scaled - normal * way.mean(scaled * normal, -1)
    grad_x = inverse * (grad_x - way.mean(scaled, -1) if centred else grad_x)
    grad_x = grad_x + grad_sum[0] if grad_sum else grad_x
    rows = tuple(range(grad_out.ndim - 1))
    flat = (-1, grad_out.shape[-1]) if rows else (1, -1)
    grad_scale = way.sum((grad_out * normal).reshape(flat), 0)[0]
    grad_bias = None if bias is None else way.sum(grad_out.reshape(flat), 0)[0]
    grad_residual = None if residual is None else grad_x
    middle = (grad_bias,) if centred else ()
    return outputs, (grad_x, grad_scale, *middle, grad_residual)


def gelu(way, arguments, options, cotangents):
    """The definition in the compute dtype, or as most programs have it, x (1 + erf(x/√2))/2 and x (1 + tanh u)/2, which
    lose the digits of the lower tail; elementary functions see arguments that are off by a rounding."""
    x = way.rounding(way.raise_(*arguments)[0])
    kind = options.get("kind", "erf")
    gate, slope = gelu_gate(x, kind)
    if way.order in ("in blocks", "online") and kind != "sigmoid":
        gate = (1 + way.elementary(2 * gate - 1)) / 2
    out = way.rounding(x * gate)
    if cotangents is None:
        return (out,), ()
    (grad,) = way.raise_(*cotangents)
    return (out,), (way.rounding(grad * (gate + x * slope)),)


def mlp(way, arguments, options, cotangents):
    """Two products with a GELU between."""
    x, weight_in, bias_in, weight_out, bias_out = arguments
    (before,), _ = linear(way, (x, weight_in, bias_in), {}, None)
    before = way.round(before)
    (hidden,), _ = gelu(way, (before,), options, None)
    (out,), _ = linear(way, (hidden, weight_out, bias_out), {}, None)
    if cotangents is None:
        return (out,), ()
    _, (grad_hidden, grad_weight_out, grad_bias_out) = linear(way, (hidden, weight_out, bias_out), {}, cotangents)
    _, (grad_before,) = gelu(way, (before,), options, (way.round(grad_hidden),))
    _, first = linear(way, (x, weight_in, bias_in), {}, (way.round(grad_before),))
    return (out,), (*first, grad_weight_out, grad_bias_out)


def l2_normalize(way, arguments, options, cotangents):
    """Rows divided by their length."""
    (x,) = way.raise_(*arguments)
    length = way.sqrt(way.sum(x * x, -1))
    floor = way.core.type(options.get("eps", 1e-12))
    out = x / np.maximum(length, floor)
    if cotangents is None:
        return (out,), ()
    (grad,) = way.raise_(*cotangents)
    along = np.where(length > floor, way.sum(grad * out, -1), 0)
    return (out,), ((grad - out * along) / np.maximum(length, floor),)
