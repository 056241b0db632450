"""``saccade finetune``: a trained model, all of it, to name the classes of a source.

Dosovitskiy et al. 2021, section 3.2, table 4 and appendix B.1.1; Chen et al. 2020, sections 2.4 and 3.4.
"""

from dataclasses import replace

import numpy as np

import saccade
from saccade.models import imagegpt, initialization, vit
from saccade.recipes import saved
from saccade.recipes.cuts import Broken
from saccade.recipes.data import open_source
from saccade.recipes.optimization import Optimization
from saccade.recipes.pretrain_imagegpt import Pixels
from saccade.recipes.pretrain_vit import Classes
from saccade.recipes.pretraining import Training, pretrain
from saccade.torch import CLIP, ImageGPT, ViT

# Steps of both are those of small data sets; the papers take 20,000 with a warm-up of 500 for ViT on ImageNet, and for
# ImageGPT a learning rate ten times smaller than before, until validation is at its best.
VIT = Training(
    steps=500, batch=512, optimization=Optimization(optimizer="sgd", peak=0.03, warm_up=100, clip=1.0),
)  # fmt: skip
IMAGEGPT = Training(steps=500, batch=128, optimization=Optimization(peak=3e-4, betas=(0.9, 0.95), schedule="constant"))


class Joint(Pixels):
    """ImageGPT's loss of pixels plus the cross entropy of classes, from one pass."""

    def __init__(self, model, palette, names):
        super().__init__(model, palette)
        self.names = names
        self.options["classes"] = names

    def prepare(self, sample, rng, training=True):
        if sample.label is None or sample.label >= len(self.names):
            raise Broken(sample.name, f"label {sample.label}, expected one of {len(self.names)} classes")
        return *super().prepare(sample, rng, training), np.int64(sample.label)

    def forward(self, tokens, *mask_and_labels):
        pixels, logits, labels = self._parts(tokens, *mask_and_labels)
        return pixels + saccade.softmax_cross_entropy(logits, labels)

    def measures(self, tokens, *mask_and_labels):
        pixels, logits, labels = self._parts(tokens, *mask_and_labels)
        found = {"loss_of_pixels": pixels, "loss": pixels + saccade.softmax_cross_entropy(logits, labels)}
        return found | {"accuracy": (logits.argmax(1) == labels).float().mean()}

    def _parts(self, tokens, *mask_and_labels):
        *mask, labels = mask_and_labels
        hidden = self.model.hidden(tokens, *mask)
        return self.model.loss_of(hidden, tokens, *mask), self.model.classifier(hidden), labels

    def facts(self):
        return super().facts() | {"classes": self.names}


def run(
    model, source, out, *, image_size=None, layer=None, keep_head=False, dropout=0.0, least=0.05, mirror=True,
    training=None, optimization=None, **options,
):  # fmt: skip
    """Fine-tune a ViT, the ViT of a CLIP, or an ImageGPT.

    A ViT's head, both layers of it if it has two, gives way to one that begins at 0, and its positions are interpolated
    for another image size; an ImageGPT gets a head, and goes on predicting pixels.

    Args:
        model: file that a recipe wrote.
        source: of pictures with classes, as ``saccade.recipes.data.open_source`` takes it.
        out: folder of the run.
        image_size: the new side; the model's own if None. An ImageGPT has none but its own.
        layer: of an ImageGPT, whose features the head reads, as ``probe`` counts them, the rest of the model left out;
            the last if None.
        keep_head: go on with a ViT's own head, which must be for the same classes.
        dropout: of a ViT, while it trains.
        least, mirror: how a ViT's pictures are cut at random (``saccade.recipes.cuts.random_area``).
        training, optimization: changes to ``VIT`` or ``IMAGEGPT``.
        options: of ``saccade.recipes.pretraining.pretrain``.
    """
    base, facts = saved.load(model)
    pictures = open_source(source)
    if pictures.classes is None:
        raise ValueError(f"{source} has no classes: put each in a folder of its own")
    if isinstance(base, ImageGPT):
        if image_size is not None:
            raise ValueError("an ImageGPT is fine-tuned at its own image size")
        base = base if layer is None else up_to(base, layer)
        module = with_head(base, imagegpt, dict(classes=len(pictures.classes)), "classifier")
        objective, how = Joint(module, facts["palette"], pictures.classes), IMAGEGPT
    else:
        if layer is not None:
            raise ValueError(f"{layer=}, expected None: {model} is no ImageGPT")
        tower = base.image if isinstance(base, CLIP) else base
        if not isinstance(tower, ViT):
            raise ValueError(f"{model} has a {type(tower).__name__} for pictures, expected a ViT or an ImageGPT")
        changes = dict(classes=len(pictures.classes), representation=None, head_bias=0.0)
        if keep_head and facts.get("classes") != pictures.classes:
            raise ValueError(f"{model} names {facts.get('classes')}, not {pictures.classes}: its head cannot be kept")
        module = with_head(tower, vit, {} if keep_head else changes, None if keep_head else "head", dropout=dropout)
        if image_size is not None:
            module.resize(image_size)
        objective, how = Classes(module, pictures.classes, least=least, mirror=mirror), VIT
    return pretrain(objective, pictures, out, how.changed(training, optimization), **options)


def up_to(module, layer):
    """The ImageGPT whose last features are those of a layer of this one: what block l reads is normalised by its first
    norm, which becomes the final one."""
    depth = module.config.depth
    if not 0 <= layer <= depth:
        raise ValueError(f"{layer=}, expected one of 0…{depth}")
    config, parameters = replace(module.config, depth=layer), module.numpy_parameters()
    if layer < depth:
        parameters |= {
            name: parameters[f"blocks.{layer}.norm1.{name[5:]}"] for name in parameters if name[:5] == "norm."
        }
    return ImageGPT(config, parameters={name: parameters[name] for name in imagegpt.layout(config)})


def with_head(module, family, changes, head, **options):
    """Another module of that kind with a new head of that name, as training begins; all else as it was."""
    config = replace(module.config, **changes)
    fresh = {name: entry for name, entry in family.layout(config).items() if name.startswith(f"{head}.")}
    body = {name: x for name, x in module.numpy_parameters().items() if name in family.layout(config)}
    parameters = {**body, **initialization.draw(fresh, seed=0)}
    return type(module)(config, parameters=parameters, **options)
