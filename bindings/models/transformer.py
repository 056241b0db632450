"""The transformer block of all three systems, and how a model runs its stages.

A stage is a function ``stage(parameters, x, ops, config, …)`` of its own short dictionary of parameters, its input,
and an op set: a namespace with the operations, ``saccade.reference`` or ``saccade`` itself. No stage asks which
framework it runs in. A model's parameters are one dictionary, keyed ``"<stage>.<name in the stage>"``; a bias that
is absent is not added. The parameters of a block, under ``blocks.<i>.``:

    norm1.scale, norm1.bias, attention.qkv.weight (3e, e), attention.qkv.bias, attention.out.weight (e, e),
    attention.out.bias, norm2.scale, norm2.bias, mlp.fc1.weight (hidden, e), mlp.fc1.bias, mlp.fc2.weight (e, hidden),
    mlp.fc2.bias

Query, key and value of the packed projection lie in this order, each (heads, head width). Weights are (out, in).
"""

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What shapes cannot tell, and the shapes: the part that all three systems share.

    ``norm`` is "layer" or "rms" (which has no bias), ``gelu`` the kind of ``saccade.gelu``, ``hidden`` the width
    inside the MLP (4 ``width`` if None), ``bias`` whether projections and MLP have biases.
    """

    width: int
    depth: int
    heads: int
    hidden: int | None = None
    norm: str = "layer"
    eps: float = 1e-6
    gelu: str = "erf"
    causal: bool = False
    bias: bool = True

    def __post_init__(self):
        if self.hidden is None:
            object.__setattr__(self, "hidden", 4 * self.width)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in (int, "int", int | None) and value is not None and (type(value) is not int or value < 0):
                raise ValueError(f"{type(self).__name__}: {field.name}={value!r}, expected a whole number")
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"{type(self).__name__}: {self.width=} does not divide into {self.heads=}")
        one_of(self, "norm", ("layer", "rms"))
        one_of(self, "gelu", ("erf", "tanh", "sigmoid"))


def one_of(config, name, allowed):
    """Check a field that is a choice."""
    if getattr(config, name) not in allowed:
        raise ValueError(f"{type(config).__name__}: {name}={getattr(config, name)!r}, expected one of {allowed}")


def under(parameters, prefix):
    """The parameters whose names begin with ``prefix.``, by the rest of their names."""
    prefix += "."
    return {name[len(prefix) :]: value for name, value in parameters.items() if name.startswith(prefix)}


def runner(functions, parameters, ops, config, stages=None):
    """How a model's composition calls its stages when parameters are a dictionary: ``run(name, *inputs)``.

    Args:
        functions: stage functions by the first part of their stages' names.
        parameters: the model's.
        ops: the op set.
        config: the model's.
        stages: a dictionary that takes each stage's output by the stage's name, or None.
    """

    def run(name, *inputs, **options):
        out = functions[name.partition(".")[0]](under(parameters, name), *inputs, ops, config, **options)
        if stages is not None:
            stages[name] = out
        return out

    return run


def run_blocks(run, x_bne, config):
    """All blocks in turn."""
    for i in range(config.depth):
        x_bne = run(f"blocks.{i}", x_bne)
    return x_bne


def same(x):
    """What a block does to its branches if nothing is dropped."""
    return x


def block(parameters, x_bne, ops, config, *, dropout=same, path=same, cache=None):
    """x + attention(norm1 x), then x + mlp(norm2 x): b n e -> b n e.

    Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020, right of figure 1.

    Args:
        parameters: a block's (see the module).
        x_bne: the input.
        ops: the op set.
        config: with ``heads``, ``norm``, ``eps``, ``gelu`` and ``causal``.
        dropout: applied to activations after every projection except the packed one.
        path: applied to each branch as a whole (stochastic depth).
        cache: keys and values of the tokens before these, which it extends (see ``attend``).
    """
    normal = norm(under(parameters, "norm1"), x_bne, ops, config)
    branch = path(dropout(attend(under(parameters, "attention"), normal, ops, config, cache=cache)))
    normal, x_bne = norm(under(parameters, "norm2"), branch, ops, config, residual=x_bne)
    return x_bne + path(dropout(mlp(under(parameters, "mlp"), normal, ops, config, dropout=dropout)))


def norm(parameters, x, ops, config, *, residual=None):
    """LayerNorm or RMS norm as the config says; with ``residual`` (norm of the sum, the sum)."""
    if config.norm == "rms":
        return ops.rms_norm(x, parameters["scale"], eps=config.eps, residual=residual)
    return ops.layer_norm(x, parameters["scale"], parameters.get("bias"), eps=config.eps, residual=residual)


def attend(parameters, x_bne, ops, config, *, cache=None):
    """Multi-head self-attention between its two projections: b n e -> b n e.

    ``cache.extend(key_bhtd, value_bhtd)`` adds the new tokens' keys and values and returns all so far.
    """
    b, n, e = x_bne.shape
    qkv_bn3hd = packed_projection(parameters, x_bne, ops, config)
    if cache is None:
        out_bnhd = ops.qkv_attention(qkv_bn3hd, causal=config.causal)
    else:
        query, key, value = (qkv_bn3hd[:, :, i].swapaxes(1, 2) for i in range(3))
        out_bnhd = ops.attention(query, *cache.extend(key, value), causal=config.causal).swapaxes(1, 2)
    return ops.linear(out_bnhd.reshape(b, n, e), parameters["out.weight"], parameters.get("out.bias"))


def packed_projection(parameters, x_bne, ops, config):
    """Query, key and value of every token side by side: b n e -> b n 3 h d."""
    b, n, e = x_bne.shape
    qkv = ops.linear(x_bne, parameters["qkv.weight"], parameters.get("qkv.bias"))
    return qkv.reshape(b, n, 3, config.heads, e // config.heads)


def mlp(parameters, x, ops, config, *, dropout=same):
    """linear, GELU, linear."""
    weight_in, weight_out = (parameters[f"fc{i}.weight"] for i in (1, 2))
    bias_in, bias_out = (parameters.get(f"fc{i}.bias") for i in (1, 2))
    if dropout is same:
        return ops.mlp(x, weight_in, bias_in, weight_out, bias_out, kind=config.gelu)
    hidden = dropout(ops.gelu(ops.linear(x, weight_in, bias_in), kind=config.gelu))
    return ops.linear(hidden, weight_out, bias_out)


def attention_weights(parameters, x_bne, ops, config):
    """The softmax weights (b, h, t, s) of a block, from the block's parameters and its input."""
    normal = norm(under(parameters, "norm1"), x_bne, ops, config)
    qkv_bn3hd = packed_projection(under(parameters, "attention"), normal, ops, config)
    query, key = (qkv_bn3hd[:, :, i].swapaxes(1, 2) for i in range(2))
    return ops.attention_weights(query, key, causal=config.causal)[0]


def all_attention_weights(stages, parameters, ops, config):
    """Each block's weights, a list over blocks, from the ``stages`` that a model's run filled."""
    inputs = [stages["embed"], *(stages[f"blocks.{i}"] for i in range(config.depth - 1))]
    return [attention_weights(under(parameters, f"blocks.{i}"), x, ops, config) for i, x in enumerate(inputs)]
