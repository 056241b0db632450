"""A checkpoint with what stands around it: its preprocessing, its tokenizer, the names of its classes."""

import ast
import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import saccade
from saccade import images
from saccade.models import clip, load, vit
from saccade.models.resnet import ResNetConfig
from saccade.tokenizer import IN_A_FOLDER, Tokenizer
from saccade.weights.facts import facts_of, kind_of
from saccade.weights.sources import open_source

PROMPT = "a photo of a {}."


class PictureModel:
    """A ViT, CLIP or SigLIP that takes pictures of any size.

    Args:
        source: what ``saccade.models.load`` takes.
        variant: as for ``load``.
    """

    def __init__(self, source, variant=None):
        found = open_source(source)
        self.beside, self.folder = found.beside, Path(found.where).parent
        self.parameters, self.config = load(found.where, variant=variant, dtype=np.float32)
        if not isinstance(self.config, (clip.CLIPConfig, vit.ViTConfig)):
            raise ValueError(f"{source}: a model of kind {kind_of(self.config)}, expected a ViT or a CLIP")
        self.tower = getattr(self.config, "image", self.config)
        self.how = preprocessing(self.config, self.beside)

    def fingerprint(self):
        """A hash of the config and every parameter: the same for the same model, however it was stored."""
        state = hashlib.blake2b(json.dumps(facts_of(self.config), sort_keys=True).encode(), digest_size=16)
        for name in sorted(self.parameters):
            state.update(name.encode())
            state.update(np.asarray(self.parameters[name], order="C").reshape(-1).view(np.uint8))
        return state.hexdigest()

    def embed(self, pictures):
        """Vectors (b, e) of length 1 of pictures: a CLIP's embeddings, or a ViT's features before its head."""
        pixels = images.preprocess(pictures, self.how)
        if isinstance(self.config, clip.CLIPConfig):
            return clip.encode_images(self.parameters, pixels, self.config, saccade)
        headless = replace(self.config, classes=None)
        return saccade.l2_normalize(vit.forward(self.parameters, pixels, headless, saccade))

    def embed_texts(self, texts):
        """A CLIP's embeddings (b, e) of texts."""
        if not isinstance(self.config, clip.CLIPConfig):
            raise ValueError("the model is a ViT, which knows no texts: expected a CLIP")
        tokens = self.tokenizer().tokenize(texts, self.config.text.context, truncate=True)
        return clip.encode_texts(self.parameters, tokens, self.config, saccade)

    def tokenizer(self):
        """That beside the checkpoint, or OpenAI's from open_clip's package."""
        if self.config.logit_bias is not None:
            raise ValueError("the texts of a SigLIP need a tokenizer that saccade does not have")
        beside = any((self.folder / name).is_file() for name in IN_A_FOLDER)
        tokenizer = Tokenizer.load(self.folder) if beside else Tokenizer.clip()
        if len(tokenizer) != self.config.text.vocabulary:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} ids but the model {self.config.text.vocabulary}: expected "
                f"its merges in {self.folder / IN_A_FOLDER[0]}"
            )
        return tokenizer

    def probabilities(self, picture, labels=None):
        """(names of classes, their probabilities): of a ViT's own classes, or of a CLIP's given labels.

        Args:
            picture: uint8 (h, w, 3).
            labels: a CLIP's classes, put into "a photo of a {}."; or other names for a ViT's.
        """
        if isinstance(self.config, clip.CLIPConfig):
            if not labels:
                raise ValueError("a CLIP knows no classes of its own: expected labels")
            texts = self.embed_texts([PROMPT.format(label) for label in labels])
            logits = np.exp(self.parameters["logit_scale"]) * (texts @ self.embed([picture])[0])
        else:
            if self.config.classes is None:
                raise ValueError("the model is a ViT without a classifier")
            labels = labels or class_names(self.config.classes, self.beside)
            if len(labels) != self.config.classes:
                raise ValueError(f"{len(labels)} labels for {self.config.classes} classes")
            pixels = images.preprocess([picture], self.how)
            logits = vit.forward(self.parameters, pixels, self.config, saccade)[0]
        shares = np.exp(logits - logits.max(), dtype=np.float64)
        return list(labels), shares / shares.sum()


def class_names(classes, beside):
    """The names in Hugging Face's config.json; of 1000 classes ImageNet's, if open_clip is installed; or numbers."""
    table = beside.get("config.json", {}).get("id2label")
    if not isinstance(table, dict):
        table = {str(i): name for i, name in enumerate(imagenet_names())} if classes == 1000 else {}
    return [str(table.get(str(i), f"class {i}")) for i in range(classes)]


def imagenet_names():
    """The names of ImageNet's classes that open_clip's package carries, which is read and not imported; or none."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        return []
    text = (Path(spec.submodule_search_locations[0]) / "zero_shot_metadata.py").read_text()
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "IMAGENET_CLASSNAMES":
            return ast.literal_eval(statement.value)
    return []


def preprocessing(config, beside):
    """The family's: CLIP's, SigLIP's, and of a ViT its library's, known by the files beside it, otherwise Google's."""
    tower = getattr(config, "image", config)
    if tower.channels != 3:
        raise ValueError(f"the model sees {tower.channels} channels, expected 3")
    if isinstance(tower, ResNetConfig):
        return images.clip(tower.image_size)
    height, width = tower.size
    if isinstance(config, clip.CLIPConfig):
        found = images.clip(height) if config.logit_bias is None else images.siglip(height)
    else:
        table = beside.get("config.json", {})
        if isinstance(table.get("pretrained_cfg"), dict):
            found = images.vit_timm(height, float(table["pretrained_cfg"].get("crop_pct", 0.9)))
        else:
            found = images.vit_hugging_face(height) if table else images.vit_google(height)
    return replace(found, height=height, width=width)
