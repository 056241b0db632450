"""Trained models in files: a checkpoint of ours, with what a recipe knows of it in a JSON file beside it."""

import json
from pathlib import Path

import numpy as np

import saccade.torch
from saccade import models
from saccade.files import replacing
from saccade.models.clip import CLIPConfig
from saccade.models.imagegpt import ImageGPTConfig


def save(model, path, *, parameters=None, palette=None, **facts):
    """Write a module of ``saccade.torch`` under ``path``, a .safetensors, and beside it the facts and the palette.

    ``parameters`` are NumPy arrays by name where they are not the module's own.

    ``saccade.models.load`` reads the model alone, ``load_palette`` the palette.
    """
    models.save(path, model.numpy_parameters() if parameters is None else parameters, model.config)
    if palette is not None:
        palette.save(Path(path).parent / "kmeans_centers.npy")
    with replacing(_beside(path)) as file:
        file.write(json.dumps(facts).encode())


def load(path):
    """(the module of a checkpoint, in evaluation mode and float32; the facts, none if there is no file of them).

    Any checkpoint that ``saccade.models.load`` reads will do; an ImageGPT's facts have its palette.
    """
    parameters, config = models.load(path, dtype=np.float32)
    kinds = {CLIPConfig: saccade.torch.CLIP, ImageGPTConfig: saccade.torch.ImageGPT}
    facts = facts_of(path)
    if isinstance(config, ImageGPTConfig):
        facts["palette"] = models.load_palette(path)
    return kinds.get(type(config), saccade.torch.ViT)(config, parameters=parameters).eval(), facts


def facts_of(path):
    """What a recipe wrote of the model beside the checkpoint; nothing of a checkpoint from elsewhere."""
    beside = _beside(path)
    return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}


def _beside(path):
    """The file of facts of a checkpoint."""
    path = Path(path)
    return path / "model.json" if path.is_dir() else path.with_suffix(".json")
