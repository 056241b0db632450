"""Trained models in files: safetensors with the kind of model and its configuration as metadata."""

import json
from dataclasses import asdict, is_dataclass

from saccade.files import replacing
from saccade.models import clip, imagegpt, resnet, vit

MODELS = {"ViT": vit, "ImageGPT": imagegpt, "CLIP": clip}
CONFIGS = {
    config.__name__: config
    for config in (vit.ViTConfig, imagegpt.ImageGPTConfig, clip.CLIPConfig, clip.TextConfig, resnet.ResNetConfig)
}


def save(model, path, **facts):
    """Write a module of ``saccade.torch`` under ``path``, and facts about it that JSON can hold."""
    from safetensors.numpy import save as packed

    metadata = {"model": type(model).__name__, "config": json.dumps(as_json(model.config)), "facts": json.dumps(facts)}
    with replacing(path) as file:
        file.write(packed(model.numpy_parameters(), metadata))


def load(path):
    """(the module that ``save`` wrote, in evaluation mode, the facts)."""
    from safetensors import SafetensorError, safe_open

    import saccade.torch

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            parameters = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from None
    kind = metadata.get("model")
    if kind not in MODELS:
        raise ValueError(f"{path} says nothing of its model, expected a file that a recipe wrote")
    config = from_json(json.loads(metadata["config"]))
    order = {name: i for i, name in enumerate(MODELS[kind].layout(config))}  # a file has its own
    parameters = dict(sorted(parameters.items(), key=lambda item: order.get(item[0], len(order))))
    return getattr(saccade.torch, kind)(config, parameters=parameters).eval(), json.loads(metadata["facts"])


def as_json(config):
    """A configuration as plain dictionaries, each with its class."""
    fields = {field: getattr(config, field) for field in asdict(config)}
    own = {name: as_json(value) if is_dataclass(value) else value for name, value in fields.items()}
    return {"class": type(config).__name__, **own}


def from_json(fields):
    """The configuration that ``as_json`` took apart."""
    values = dict(fields)
    config = CONFIGS[values.pop("class")]
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = from_json(value)
        elif isinstance(value, list):
            values[name] = tuple(value)
    return config(**values)
