"""A model's parameters by name: their shapes, how each begins, and the check that a dictionary has them all.

``layout(config)`` of a model is ``{name: (shape, begin)}`` where ``begin(rng, shape)`` draws float32 values.
"""

import functools
import math

import numpy as np


def zeros(rng, shape):
    """All 0."""
    return np.zeros(shape, np.float32)


def constant(value):
    """All ``value``."""
    return lambda rng, shape: np.full(shape, value, np.float32)


ones = constant(1)


def normal(std):
    """Normal with mean 0."""
    return lambda rng, shape: rng.standard_normal(shape, np.float32) * np.float32(std)


def uniform(limit):
    """Uniform in ±limit."""
    return lambda rng, shape: (rng.random(shape, np.float32) * 2 - 1) * np.float32(limit)


def xavier(fan_in, fan_out):
    """Uniform in ±sqrt(6 / (fan_in + fan_out)): Glorot and Bengio 2010, equation 16."""
    return uniform(math.sqrt(6 / (fan_in + fan_out)))


def lecun_normal(fan_in):
    """Normal cut off at 2 standard deviations, of variance 1 / fan_in after the cut."""

    def begin(rng, shape):
        values = rng.standard_normal(shape, np.float32)
        while (far := np.abs(values) > 2).any():
            values[far] = rng.standard_normal(int(far.sum()), np.float32)
        return values * np.float32(1 / math.sqrt(fan_in) / 0.87962566103423978)

    return begin


def prefixed(prefix, layout):
    """The layout with ``prefix.`` before every name."""
    return {f"{prefix}.{name}": entry for name, entry in layout.items()}


def norm_layout(config):
    """A norm's: gains of 1, and biases of 0 where there are any."""
    layout = {"scale": ((config.width,), ones)}
    return layout | ({"bias": ((config.width,), zeros)} if config.norm == "layer" else {})


def block_layout(config, *, qkv, out, fc1, fc2, fc1_bias=zeros, fc2_bias=zeros):
    """A transformer block's, with how each of its four weights begins."""
    e, hidden = config.width, config.hidden
    layout = {
        **prefixed("norm1", norm_layout(config)),
        "attention.qkv.weight": ((3 * e, e), qkv),
        "attention.qkv.bias": ((3 * e,), zeros),
        "attention.out.weight": ((e, e), out),
        "attention.out.bias": ((e,), zeros),
        **prefixed("norm2", norm_layout(config)),
        "mlp.fc1.weight": ((hidden, e), fc1),
        "mlp.fc1.bias": ((hidden,), fc1_bias),
        "mlp.fc2.weight": ((e, hidden), fc2),
        "mlp.fc2.bias": ((e,), fc2_bias),
    }
    norms = ("norm1", "norm2")
    return {n: entry for n, entry in layout.items() if config.bias or not n.endswith(".bias") or n.startswith(norms)}


def draw(layout, seed):
    """Parameters of the layout, float32, drawn in its order from ``seed``."""
    rng = np.random.default_rng(seed)
    return {name: begin(rng, shape) for name, (shape, begin) in layout.items()}


# What a batch norm has seen in training: counted, not learned.
STATISTICS = ("mean", "variance")


def is_statistic(name):
    """Whether the parameter of that name is counted in training rather than learned."""
    return name.rpartition(".")[2] in STATISTICS


def count(layout):
    """How many numbers the parameters of the layout hold that are learned."""
    return sum(math.prod(shape) for name, (shape, _) in layout.items() if not is_statistic(name))


def check_parameters(model, layout, parameters):
    """Raise ValueError unless ``parameters`` has exactly the names and shapes of the layout."""
    missing, unknown = sorted(layout.keys() - parameters.keys()), sorted(parameters.keys() - layout.keys())
    if missing or unknown:
        listed = functools.partial(_listed, limit=4)
        raise ValueError(f"{model}: parameters lack {listed(missing)} and have {listed(unknown)} besides")
    for name, (shape, _) in layout.items():
        if tuple(parameters[name].shape) != shape:
            raise ValueError(f"{model}: {name} has shape {tuple(parameters[name].shape)}, expected {shape}")


def _listed(names, limit):
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more
