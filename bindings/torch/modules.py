"""ImageGPT, ViT and CLIP as ``nn.Module``: one module per stage (``saccade.torch.stages``).

The names in a state dict are those of the parameters dictionaries in ``saccade.models``.
"""

# A module's parts are typed as "tensor or module", neither of which can be called for sure.
# pyright: reportCallIssue=false

import torch
from torch import nn

import saccade
from saccade.models import clip, imagegpt, transformer, vit
from saccade.torch.arrays import from_numpy, to_numpy
from saccade.torch.decoding import Decoder
from saccade.torch.resnet import ResNet
from saccade.torch.stages import Model, Named, Stage, checked


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
        return self.loss_of(hidden, tokens, mask) if loss else self.head(hidden)

    def loss(self, tokens, mask=None):
        """The pre-training objective: mean −log p(x_i | x_0 … x_(i−1)) in nats per pixel.

        For a masked model: the mean over images of the mean over masked places, section 2.2 of the paper.
        """
        return self(tokens, mask, loss=True)

    def loss_of(self, hidden, tokens, mask=None):
        """``loss`` from what ``hidden(tokens, mask)`` gave."""
        if self.config.causal:
            return self.head(hidden, tokens).mean()
        if mask is None:
            raise ValueError("ImageGPT.loss: mask=None, expected bool (b, n) for objective='masked'")
        each_bn = self.head(hidden, tokens.masked_fill(~mask, -100)).view(tokens.shape)
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
    def generate(
        self, prefix, length=None, *, temperature=1.0, top_k=None, top_p=None, generator=None, progress=iter
    ):  # fmt: skip
        """Complete sequences: sample each next token from softmax(logits / temperature).

        Args:
            prefix: (b, m) tokens; m may be 0.
            length: of the result; the config's if None.
            temperature: 1 samples from the model itself, 0 takes the likeliest token.
            top_k, top_p: sample from the k likeliest tokens alone, or from the fewest whose probabilities reach p
                (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020); None takes all.
            generator: a ``torch.Generator`` on the model's device.
            progress: wraps the range of places that are filled.

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
        if (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(f"ImageGPT.generate: {top_k=}, {top_p=}, expected top_k >= 1 and 0 < top_p <= 1")
        tokens = torch.cat([prefix, prefix.new_zeros(b, length - m)], 1)
        decoder = Decoder(self.blocks, length)
        for i in progress(range(m, length)):
            x = decoder(self.embed(tokens[:, : i + 1], start=decoder.filled))
            logits = self.head(self.norm(x[:, -1:]))[:, 0]
            tokens[:, i] = sample(logits, temperature, generator, top_k, top_p)
        return tokens


def sample(logits_bk, temperature, generator, top_k=None, top_p=None):
    """One token per row, from softmax(logits / temperature); the likeliest where the temperature is 0."""
    if temperature == 0:
        return logits_bk.argmax(1)
    chances = torch.softmax(logits_bk.float() / temperature, 1)
    if top_k is not None or top_p is not None:
        sorted_chances, order = chances.sort(dim=1, descending=True, stable=True)
        kept = torch.arange(chances.shape[1], device=chances.device) < (top_k or chances.shape[1])
        if top_p is not None:
            kept = kept & (sorted_chances.cumsum(1) - sorted_chances < top_p)
        chances = chances * torch.zeros_like(kept.expand_as(order)).scatter(1, order, kept.expand_as(order))
    return torch.multinomial(chances, 1, generator=generator)[:, 0]


class Text(Model):
    """CLIP's text tower: token ids (b, n) -> features (b, e)."""

    def __init__(self, config, **options):
        super().__init__(clip.TEXT_STAGES, clip.text_layout(config), config, **options)

    def forward(self, tokens):
        return clip.compose_text(self.run, tokens, self.config, saccade)


class CLIP(Named):
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
