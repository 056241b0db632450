"""OpenAI's layout of ImageGPT: the variables of its TensorFlow code."""

import re

from saccade.weights.layout import Layout
from saccade.weights.links import Names, share, under, whole

# What training kept beside the model.
_TRAINING = re.compile(r"(^|/)(adam_[mv]|AdamWeightDecayOptimizer(_\d+)?|global_step|_step|beta\d_power)(/|$)")


def _names(config, found):
    """Projections lie (heads, head width, in), their products (heads, head width, out), the MLP's (in, out)."""
    h, d, e = config.heads, config.width // config.heads, config.width

    def heads_first(x):
        return x.reshape(h, d, e)

    def heads_first_transposed(x):
        return x.T.reshape(h, d, e)

    flat = len(found.get("model/h0/mlp/c_fc/w", ())) == 2

    def dense(x):
        return x.T if flat else x.T[None]

    block = {
        "ln_1/g": [("norm1.scale", whole)],
        **{f"attn/{name}_proj": [("attention.qkv.weight", share(i, 3, heads_first))] for i, name in enumerate("qkv")},
        "attn/c_proj": [("attention.out.weight", heads_first_transposed)],
        "ln_2/g": [("norm2.scale", whole)],
        "mlp/c_fc/w": [("mlp.fc1.weight", dense)],
        "mlp/c_proj/w": [("mlp.fc2.weight", dense)],
    }
    links = {
        "model/wte": [("embed.weight", whole)],
        "model/sos": [("embed.sos", whole)],
        "model/wpe": [("embed.positions", whole)],
        "model/ln_f/g": [("norm.scale", whole)],
        "model/wtet": [("head.weight", whole)],
        "model/clf/wclf": [("classifier.weight", whole)],
    }
    for i in range(config.depth):
        links |= under(f"blocks.{i}.", f"model/h{i}/", block)
    return Names(links)


def _sizes(found):
    """Without a start of sequence it is a model of the masked ("BERT") objective."""
    classes = {"classes": found.size("model/clf/wclf", 0)} if "model/clf/wclf" in found else {}
    return {
        "width": found.size("model/wte", 1), "depth": found.depth(r"model/h(\d+)/"), "bias": False,
        "heads": found.size("model/h0/attn/q_proj", 0), "hidden": found.size("model/h0/mlp/c_fc/w", -1),
        "colors": found.size("model/wte", 0), "length": found.size("model/wpe", 0),
        "objective": "autoregressive" if "model/sos" in found else "masked", **classes,
    }  # fmt: skip


IMAGEGPT = Layout(
    title="OpenAI's ImageGPT", kind="imagegpt", mark=("model/wte", "model/wtet", "model/wpe"), sizes=_sizes,
    names=_names, said=lambda source: [], beside=lambda config: {}, usual={"gelu": "sigmoid", "eps": 1e-5},
    ignored=lambda name: _TRAINING.search(name) is not None,
)  # fmt: skip
