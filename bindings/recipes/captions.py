"""What CLIP's objectives share, and the two that its own is more efficient than: to predict the words of a picture's
caption in no order, or the caption itself (Radford et al. 2021, section 2.3 and figure 2). Both train a CLIP's own
parameters.
"""

# A module's parts are typed as "tensor or module", neither of which can be called for sure.
# pyright: reportCallIssue=false

from pathlib import Path

import numpy as np
import torch

import saccade
from saccade.models import transformer
from saccade.recipes.cuts import Broken, central, random_square
from saccade.recipes.objectives import Objective
from saccade.tokenizer import Tokenizer
from saccade.torch.stages import named

IGNORED = -100
AT_ONCE = 4096  # captions whose likelihood is computed at a time


def tokenizer_of(name):
    """The tokenizer called "bytes" (no merges), "clip" (OpenAI's), or that of a file of merges."""
    if name == "bytes":
        return Tokenizer()
    return Tokenizer.clip() if name == "clip" else Tokenizer.from_file(Path(name))


class Captioned(Objective):
    """What the objectives of a CLIP share: pictures cut at random, and the token ids of their captions."""

    def __init__(self, model, tokenizer, objective="contrastive"):
        super().__init__(model, tokenizer=tokenizer, objective=objective)
        self.tokenizer = tokenizer_of(tokenizer)
        self.side, self.context = model.config.image.image_size, model.config.text.context

    def prepare(self, sample, rng, training=True):
        if sample.caption is None:
            raise Broken(sample.name, "no caption")
        tokens = self.tokenizer.tokenize(sample.caption, self.context, truncate=True)[0]
        cut = random_square(sample.picture, self.side, rng) if training else central(sample.picture, self.side)
        return cut, tokens.astype(np.int64)

    @staticmethod
    def accuracy(scores):
        """How many pictures have their own caption as the likeliest of a batch's, from (pictures, captions)."""
        return (scores.argmax(1) == torch.arange(len(scores), device=scores.device)).float().mean()

    def after_step(self):
        if self.model.config.logit_bias is None:
            self.model.clamp_logit_scale()

    def facts(self):
        return self.options


class Words(Captioned):
    """Predict a caption's words from the picture: −log softmax(exp(t) I Wᵀ) at one of them, drawn anew each time.

    In the mean that is the cross entropy with all distinct words of the caption (Joulin et al., "Learning Visual
    Features from Large Weakly Supervised Data", 2016, section 3.2). I are image embeddings of length 1 and W the words'
    projected embeddings, of which a text tower of kind "cbow" takes the mean: so the trained model is a CLIP whose text
    tower is that.
    """

    def __init__(self, model, tokenizer):
        if model.config.text.kind != "cbow":
            raise ValueError(f"Words: a text tower of kind {model.config.text.kind!r}, expected 'cbow'")
        super().__init__(model, tokenizer, objective="bag-of-words")

    def prepare(self, sample, rng, training=True):
        cut, tokens = super().prepare(sample, rng, training)
        words = np.unique(tokens[1 : tokens.argmax()])
        if not len(words):
            raise Broken(sample.name, f"no words in the caption {sample.caption!r}")
        return cut, tokens, rng.choice(words)

    def forward(self, images, tokens, words):
        model = self.model
        return saccade.linear_cross_entropy(
            model.encode_images(images) * model.logit_scale.exp(), model.text_projection(model.text.embed.weight), words
        )

    def measures(self, images, tokens, words):
        found = self.model.encode_images(images) @ self.model.encode_texts(tokens).T
        return {"loss": self(images, tokens, words), "accuracy": self.accuracy(found)}


class Captions(Captioned):
    """Predict a caption from the picture, token by token: the mean over captions of the mean −log p(token | picture,
    tokens before).

    The text tower looks at the picture in the place of the start of text, to which exp(t) I P is added, with I the
    image embedding of length 1 and P the text projection; its logits are products with the token embeddings.
    """

    def __init__(self, model, tokenizer):
        if model.config.text.kind != "transformer" or not model.config.text.causal:
            raise ValueError("Captions: expected a causal transformer as text tower")
        super().__init__(model, tokenizer, objective="caption")

    def forward(self, images, tokens):
        return -self.log_likelihood(self.model.encode_images(images), tokens, mean=True).mean()

    def measures(self, images, tokens):
        found = self.log_likelihoods(self.model.encode_images(images), tokens)
        return {"loss": self(images, tokens), "accuracy": self.accuracy(found)}

    def log_likelihood(self, embeddings, tokens, mean=False):
        """log p(caption | picture) of each of b captions (b, n) for its picture's embedding (b, embed), or the mean
        over its tokens."""
        model = self.model
        x_bne = model.text.embed(tokens)
        seen_be = embeddings * model.logit_scale.exp() @ model.text_projection.weight
        x_bne = torch.cat([x_bne[:, :1] + seen_be[:, None], x_bne[:, 1:]], 1)
        x_bne = transformer.run_blocks(model.text.run, x_bne, model.config.text)
        own = transformer.under(named(model.text.pool), "norm")
        x_bne = transformer.norm(own, x_bne, saccade, model.config.text)
        told = torch.arange(1, tokens.shape[1], device=tokens.device) <= tokens.argmax(1)[:, None]
        labels = torch.where(told, tokens[:, 1:], IGNORED)
        hidden = x_bne[:, :-1].flatten(0, 1)
        weight = model.text.embed.weight
        each = saccade.linear_cross_entropy(hidden, weight, labels.flatten(), ignore_index=IGNORED, reduction="none")
        each = -each.view(labels.shape).sum(1)
        return each / told.sum(1) if mean else each

    def log_likelihoods(self, embeddings, tokens):
        """log p(caption j | picture i) for (b, embed) and (k, n): (b, k)."""
        rows = []
        for part in embeddings.split(max(1, AT_ONCE // len(tokens))):
            b, k = len(part), len(tokens)
            rows.append(self.log_likelihood(part.repeat_interleave(k, 0), tokens.repeat(b, 1)).view(b, k))
        return torch.cat(rows)
