"""ImageGPT, ViT and CLIP as ``nn.Module``: one module per stage, each calling its stage's function.

The names in a state dict are those of the parameters dictionaries in ``saccade.models``. Dropout and stochastic
depth exist here only.
"""

# A module's parts are typed as "tensor or module", neither of which can be called for sure.
# pyright: reportCallIssue=false

import torch
from torch import nn

import saccade
from saccade.models import clip, imagegpt, transformer, vit
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
        return self.function(_named(self), *inputs, saccade, self.config, **options)

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


class Model(nn.Module):
    """Modules made of the stages of a model in ``saccade.models``: what ImageGPT, ViT and CLIP's towers share."""

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
        return (module[int(index)] if index else module)(*inputs, **options)

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

    def load_parameters(self, parameters):
        """Take values from a dictionary of NumPy arrays with the names of ``saccade.models``."""
        load_parameters(self, parameters)

    def numpy_parameters(self):
        """The parameters as a dictionary of NumPy arrays, copied to the host."""
        return numpy_parameters(self)


class ViT(Model):
    """Images b h w c -> logits (b, classes), or features where the config has no classes.

    Args:
        config: a ``saccade.models.vit.ViTConfig``, for instance ``vit.variant("B/16", classes=10)``.
        parameters: NumPy arrays by name; drawn from ``seed`` as training begins if None.
        seed: for the beginning.
        dropout: probability for activations after each projection and the positions.
        stochastic_depth: probability for the last block's branches, rising from 0 in the first.
    """

    def __init__(self, config, **options):
        super().__init__(vit.STAGES, vit.layout(config), config, **options)

    def forward(self, images):
        return vit.compose(self.run, images, self.config)

    def resize(self, image_size, *, method="zoom"):
        """Interpolate the positions, in place, for another image size (see ``saccade.models.vit.resize``)."""
        old = self.embed.positions
        own = {"embed.positions": to_numpy(old.cpu())}
        own, config = vit.resize(own, self.config, image_size, method=method)
        self.embed.positions = nn.Parameter(from_numpy(own["embed.positions"]).to(old))
        self.config = config
        for module in self.modules():
            if isinstance(module, Stage):
                module.config = config


class ImageGPT(Model):
    """Palette tokens b n -> logits b n k; those at place i predict token i.

    Args:
        config: a ``saccade.models.imagegpt.ImageGPTConfig``, for instance ``imagegpt.variant("S")``.
        parameters, seed, dropout, stochastic_depth: as for ``ViT``.
    """

    def __init__(self, config, **options):
        super().__init__(imagegpt.STAGES, imagegpt.layout(config), config, **options)

    def forward(self, tokens, mask=None, *, loss=False):
        """Logits, or with ``loss`` what ``loss(tokens, mask)`` gives (for wrappers that call only ``forward``)."""
        hidden = self.hidden(tokens, mask)
        return self._loss(hidden, tokens, mask) if loss else self.head(hidden)

    def loss(self, tokens, mask=None):
        """The pre-training objective: mean −log p(x_i | x_0 … x_(i−1)) in nats per pixel.

        For a masked model: the mean over images of the mean over masked places, section 2.2 of the paper.
        """
        return self(tokens, mask, loss=True)

    def _loss(self, hidden, tokens, mask):
        if self.config.causal:
            return self.head(hidden, tokens).mean()
        if mask is None:
            raise ValueError("ImageGPT.loss: mask=None, expected bool (b, n) for objective='masked'")
        each_bn = self.head(hidden, torch.where(mask, tokens, -100)).view(tokens.shape)
        return (each_bn.sum(1) / mask.sum(1)).mean()

    def hidden(self, tokens, mask=None):
        """The output of the final norm, b n e."""
        return imagegpt.compose_hidden(self.run, tokens, self.config, mask)

    def classify(self, tokens, mask=None):
        """Logits (b, classes) from the mean over the sequence."""
        return self.classifier(self.hidden(tokens, mask))

    def features(self, tokens, layers, mask=None):
        """The linear probe's features of each of the layers (see ``saccade.models.imagegpt.features``)."""

        def normal(i, x):
            return self.blocks[i].first_norm(x)

        return imagegpt.compose_features(self.run, normal, tokens, self.config, saccade, layers, mask)

    @torch.no_grad()
    def generate(self, prefix, length=None, *, temperature=1.0, generator=None):
        """Complete sequences: sample each next token from softmax(logits / temperature).

        Args:
            prefix: (b, m) tokens; m may be 0.
            length: of the result; the config's if None.
            temperature: 1 samples from the model itself, 0 takes the likeliest token.
            generator: a ``torch.Generator`` on the model's device.

        Returns:
            (b, length) tokens that begin with ``prefix``. Call ``eval()`` first if the model has dropout.
        """
        length = self.config.length if length is None else length
        b, m = prefix.shape
        if not (self.config.causal and m <= length <= self.config.length):
            raise ValueError(
                f"ImageGPT.generate: {m=}, {length=}, expected an autoregressive model and m <= length <= "
                f"{self.config.length}"
            )
        if temperature < 0:
            raise ValueError(f"ImageGPT.generate: {temperature=}, expected at least 0")
        tokens = torch.cat([prefix, prefix.new_zeros(b, length - m)], 1)
        caches = [KeyValueCache(length) for _ in self.blocks]
        seen = 0
        for i in range(m, length):
            x = self.embed(tokens[:, : i + 1], start=seen)
            seen = i + 1
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, cache=cache)
            logits = self.head(self.norm(x[:, -1:]))[:, 0]
            tokens[:, i] = sample(logits, temperature, generator)
        return tokens


class KeyValueCache:
    """The keys and values of the tokens so far, in room for ``length`` of them."""

    def __init__(self, length):
        self.length, self.filled, self.room = length, 0, None

    def extend(self, key_bhtd, value_bhtd):
        """Add new tokens' keys and values; all so far, b h s d twice."""
        if self.room is None:
            b, h, _, d = key_bhtd.shape
            self.room = [x.new_empty(b, h, self.length, d) for x in (key_bhtd, value_bhtd)]
        start, self.filled = self.filled, self.filled + key_bhtd.shape[2]
        for room, new in zip(self.room, (key_bhtd, value_bhtd), strict=True):
            room[:, :, start : self.filled] = new
        return [room[:, :, : self.filled] for room in self.room]


def sample(logits_bk, temperature, generator):
    """One token per row, from softmax(logits / temperature); the likeliest where the temperature is 0."""
    if temperature == 0:
        return logits_bk.argmax(1)
    probabilities = torch.softmax(logits_bk.float() / temperature, 1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


class Text(Model):
    """CLIP's text tower: token ids (b, n) -> features (b, e)."""

    def __init__(self, config, **options):
        super().__init__(clip.TEXT_STAGES, clip.text_layout(config), config, **options)

    def forward(self, tokens):
        return clip.compose_text(self.run, tokens, self.config, saccade)


class CLIP(nn.Module):
    """(images b h w c, token ids b n) -> (image embeddings, text embeddings, the factor exp(t)); SigLIP also its bias.

    Args:
        config: a ``saccade.models.clip.CLIPConfig``, for instance ``clip.variant("ViT-B/32")``.
        parameters, seed, dropout, stochastic_depth: as for ``ViT``; a ResNet has neither of the latter two.
    """

    def __init__(self, config, *, parameters=None, seed=0, **options):
        super().__init__()
        self.config = config
        parameters = checked("CLIP", clip.layout(config), parameters, seed)
        image = transformer.under(parameters, "image")
        if isinstance(config.image, vit.ViTConfig):
            self.image = ViT(config.image, parameters=image, **options)
            projection = transformer.under(parameters, "image_projection")
            self.image_projection = Stage(clip.project, config, projection) if projection else nn.Identity()
        else:
            from saccade.torch.resnet import ResNet

            self.image, self.image_projection = ResNet(config.image, parameters=image), nn.Identity()
        self.text = Text(config.text, parameters=transformer.under(parameters, "text"), **options)
        self.text_projection = Stage(clip.project, config, transformer.under(parameters, "text_projection"))
        for name in ("logit_scale", "logit_bias"):
            if name in parameters:
                self.register_parameter(name, nn.Parameter(from_numpy(parameters[name]).clone()))

    def forward(self, images, tokens):
        out = self.encode_images(images), self.encode_texts(tokens), self.logit_scale.exp()
        return out if self.config.logit_bias is None else (*out, self.logit_bias)

    def encode_images(self, images):
        """Image embeddings (b, embed) of length 1."""
        return saccade.l2_normalize(self.image_projection(self.image(images)))

    def encode_texts(self, tokens):
        """Text embeddings (b, embed) of length 1."""
        return saccade.l2_normalize(self.text_projection(self.text(tokens)))

    def loss(self, images, tokens):
        """``saccade.clip_loss`` of the batch, or ``siglip_loss``."""
        loss = saccade.clip_loss if self.config.logit_bias is None else saccade.siglip_loss
        return loss(*self(images, tokens))

    @torch.no_grad()
    def clamp_logit_scale(self):
        """Keep exp(t) at most 100, after each step (the paper's section 2.5)."""
        self.logit_scale.clamp_(max=clip.MAX_LOGIT_SCALE)

    def load_parameters(self, parameters):
        """Take values from a dictionary of NumPy arrays with the names of ``saccade.models``."""
        load_parameters(self, parameters)

    def numpy_parameters(self):
        """The parameters as a dictionary of NumPy arrays, copied to the host."""
        return numpy_parameters(self)


@torch.no_grad()
def load_parameters(module, parameters):
    """Copy NumPy arrays into the module's parameters of the same names; ValueError where names or shapes differ."""
    own = _named(module)
    check_parameters(type(module).__name__, {name: (tuple(x.shape), None) for name, x in own.items()}, parameters)
    for name, x in own.items():
        x.copy_(from_numpy(parameters[name]))


def numpy_parameters(module):
    """The module's parameters by name as NumPy arrays."""
    return {name: to_numpy(x.detach().cpu()).copy() for name, x in _named(module).items()}


def _named(module):
    """Parameters, and the statistics that are buffers."""
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
