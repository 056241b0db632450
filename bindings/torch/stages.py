"""What the models' modules are made of: one module per stage, each calling its stage's function.

Dropout and stochastic depth exist here only.
"""

# A module's parts are typed as "tensor or module", neither of which can be called for sure.
# pyright: reportCallIssue=false

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import saccade
from saccade.models import imagegpt, transformer
from saccade.models.initialization import check_parameters, draw, is_statistic
from saccade.torch.arrays import from_numpy, to_numpy


class Stage(nn.Module):
    """One stage of a model: its parameters, and ``forward`` = the stage's function of them."""

    def __init__(self, function, config, parameters):
        super().__init__()
        self.function = function
        self.config = config
        for name, value in parameters.items():
            _register(self, name.split("."), from_numpy(value).clone())

    def forward(self, *inputs, **options):
        return self.function(named(self), *inputs, saccade, self.config, **options)

    def extra_repr(self):
        return self.function.__name__


class Block(Stage):
    """A transformer block, with dropout and stochastic depth (Huang et al. 2016: a whole branch of an item drops).

    Args:
        function: ``saccade.models.transformer.block``.
        config: a ``TransformerConfig``.
        parameters: the block's, NumPy arrays.
        dropout: probability for activations.
        stochastic_depth: probability for branches.
    """

    def __init__(self, function, config, parameters, dropout=0.0, stochastic_depth=0.0):
        super().__init__(function, config, parameters)
        self.dropout, self.stochastic_depth = dropout, stochastic_depth

    def forward(self, x, cache=None):
        dropout = self._drop if self.training and self.dropout else transformer.same
        path = self._drop_branches if self.training and self.stochastic_depth else transformer.same
        return super().forward(x, dropout=dropout, path=path, cache=cache)

    def _drop(self, x):
        return nn.functional.dropout(x, self.dropout)

    def _drop_branches(self, x):
        kept = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.stochastic_depth)
        return x * kept / (1 - self.stochastic_depth)

    def first_norm(self, x):
        """The block's first norm of its input: what ImageGPT's probe averages."""
        parameters = transformer.under(dict(self.named_parameters()), "norm1")
        return transformer.norm(parameters, x, saccade, self.config)

    def attention_weights(self, x):
        """The softmax weights (b, h, n, n) for the block's input."""
        return transformer.attention_weights(dict(self.named_parameters()), x, saccade, self.config)


class Embed(Stage):
    """A model's first stage, with dropout after the positions."""

    def __init__(self, function, config, parameters, dropout=0.0):
        super().__init__(function, config, parameters)
        self.dropout = dropout

    def forward(self, x, **options):
        if self.training and self.dropout:
            options["dropout"] = lambda x: nn.functional.dropout(x, self.dropout)
        return super().forward(x, **options)


class PixelHead(Stage):
    """ImageGPT's head: logits, or with labels the cross entropy of each place, whose logits are never stored."""

    def forward(self, x, labels=None):
        if labels is None:
            return super().forward(x)
        return saccade.linear_cross_entropy(x.flatten(0, 1), self.weight, labels.flatten(), reduction="none")


class Named(nn.Module):
    """Modules whose parameters, and statistics that are buffers, go by the names of ``saccade.models``."""

    @torch.no_grad()
    def load_parameters(self, parameters):
        """Take values from a dictionary of NumPy arrays; ValueError where names or shapes differ."""
        own = named(self)
        check_parameters(type(self).__name__, {name: (tuple(x.shape), None) for name, x in own.items()}, parameters)
        for name, x in own.items():
            x.copy_(from_numpy(parameters[name]))

    def numpy_parameters(self):
        """The parameters as a dictionary of NumPy arrays, copied to the host."""
        return {name: to_numpy(x.detach().cpu()).copy() for name, x in named(self).items()}


class Model(Named):
    """Modules made of the stages of a model in ``saccade.models``: what ImageGPT, ViT and CLIP's towers share.

    Attributes:
        recomputes: whether blocks keep nothing but their input for the backward pass and compute the rest again there
            (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016): False until set.
    """

    recomputes = False

    def __init__(self, functions, layout, config, *, parameters=None, seed=0, dropout=0.0, stochastic_depth=0.0):
        super().__init__()
        self.config = config
        parameters = checked(type(self).__name__, layout, parameters, seed)
        for name in dict.fromkeys(full.partition(".")[0] for full in parameters):
            own, function = transformer.under(parameters, name), functions[name]
            if function is transformer.block:
                rates = [stochastic_depth * i / max(config.depth - 1, 1) for i in range(config.depth)]
                each = (transformer.under(own, str(i)) for i in range(config.depth))
                made = (Block(function, config, one, dropout, rate) for one, rate in zip(each, rates, strict=True))
                self.blocks = nn.ModuleList(made)
            elif name == "embed":
                self.embed = Embed(function, config, own, dropout)
            else:
                kind = PixelHead if function is imagegpt.head else Stage
                self.add_module(name, kind(function, config, own))

    def run(self, name, *inputs, **options):
        """Call the stage of that name."""
        name, _, index = name.partition(".")
        module = getattr(self, name)
        module = module[int(index)] if index else module
        if self.recomputes and self.training and name == "blocks":
            return _recomputed(module, *inputs, **options)
        return module(*inputs, **options)

    def attention_weights(self, *inputs, **options):
        """Each block's softmax weights for the model's inputs, a list of (b, h, n, n)."""
        inputs_of_blocks = []
        hooks = [block.register_forward_pre_hook(lambda _, x: inputs_of_blocks.append(x[0])) for block in self.blocks]
        try:
            self(*inputs, **options)
        finally:
            for hook in hooks:
                hook.remove()
        return [block.attention_weights(x) for block, x in zip(self.blocks, inputs_of_blocks, strict=True)]


def _recomputed(module, *inputs, **options):
    """``module(*inputs, **options)``, of which only the inputs are kept for the backward pass."""
    if hasattr(module, "unshard"):  # of ``fully_shard``, which gets a block's parameters together when it is called
        return checkpoint(module, *inputs, use_reentrant=False, **options)
    parameters = dict(module.named_parameters())  # of this pass: of 16 bits, they are gone when it is over

    def call(*inputs):
        return torch.func.functional_call(module, parameters, inputs, options)

    return checkpoint(call, *inputs, use_reentrant=False)


def named(module):
    """Parameters and buffers by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def checked(model, layout, parameters, seed):
    """The parameters if they fit the layout, or as training begins if None."""
    if parameters is None:
        return draw(layout, seed)
    check_parameters(model, layout, parameters)
    return parameters


def _register(module, path, value):
    for name in path[:-1]:
        if not hasattr(module, name):
            module.add_module(name, nn.Module())
        module = getattr(module, name)
    if is_statistic(path[-1]):
        module.register_buffer(path[-1], value)
    else:
        module.register_parameter(path[-1], nn.Parameter(value))
