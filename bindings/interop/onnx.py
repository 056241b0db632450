"""Models as ONNX files of standard operators, for ONNX Runtime and whatever else reads them.

    parameters, config = saccade.models.load("vit.safetensors")
    saccade.interop.onnx.export("vit.onnx", parameters, config)

The graph is what the model's own definition (``saccade.models``) does to an op set that writes nodes instead of
computing (``saccade.interop.onnx_ops``); torch is not needed. Pictures go in as they are decoded, uint8 b h w c, unless
asked for otherwise; the batch may have any size.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from onnx import external_data_helper

from saccade.files import replacing
from saccade.interop.onnx_ops import BATCH, Graph
from saccade.models import clip, imagegpt
from saccade.models.variants import module_of

LARGEST = 2_000_000_000  # bytes of tensors in one file, of this format's 2 GiB
PARTS = {"images": clip.encode_images, "texts": clip.encode_texts}


def export(path, parameters, config, *, part=None, images="uint8"):
    """Write a model's forward pass.

    A ViT's file has the input "images" and the output "logits" (or "features"), ImageGPT's "tokens", int64 (b, length),
    and "logits"; a CLIP's, of the tower that ``part`` names, "images" or "tokens" and "embeddings" of length 1.

    Args:
        path: the file; tensors of more than 2 GB lie beside it, in a file named as it is with ".data" at the end.
        parameters: NumPy arrays by name, written in float32.
        config: a ``ViTConfig``, ``ImageGPTConfig`` or ``CLIPConfig``.
        part: "images" or "texts" of a CLIP, None of others.
        images: "uint8", or "float32" for pictures in 0…1.

    Raises:
        ValueError: ``part`` or ``images`` is not one of those.
    """
    if images not in ("uint8", "float32"):
        raise ValueError(f"export: {images=}, expected 'uint8' or 'float32'")
    of_clip = isinstance(config, clip.CLIPConfig)
    if part not in (PARTS if of_clip else (None,)):
        raise ValueError(f"export: {part=}, expected {' or '.join(map(repr, PARTS)) if of_clip else None}")
    graph = Graph({name: np.asarray(x, np.float32) for name, x in parameters.items()})
    x = _input(graph, config, part, images)
    forward = PARTS[part] if of_clip else module_of(config).forward
    out = forward(graph.parameters, x, config, graph)
    graph.output(out, "embeddings" if of_clip else "features" if _headless(config) else "logits")
    _write(Path(path), graph.model(type(config).__name__))


def _headless(config):
    return getattr(config, "classes", None) is None and not isinstance(config, imagegpt.ImageGPTConfig)


def _input(graph, config, part, images):
    if part == "texts":
        return graph.input("tokens", (BATCH, config.text.context), np.int64)
    if isinstance(config, imagegpt.ImageGPTConfig):
        return graph.input("tokens", (BATCH, config.length), np.int64)
    tower = config.image if part else config
    height, width = tower.size if hasattr(tower, "size") else (tower.image_size,) * 2
    return graph.input("images", (BATCH, height, width, tower.channels), np.dtype(images))


def _write(path, model):
    if sum(len(one.raw_data) for one in model.graph.initializer) < LARGEST:
        with replacing(path) as file:
            file.write(model.SerializeToString())
        return
    beside = f"{path.name}.data"
    external_data_helper.convert_model_to_external_data(model, location=beside)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        external_data_helper.write_external_data_tensors(model, folder)
        os.replace(Path(folder, beside), path.with_name(beside))
    with replacing(path) as file:
        file.write(model.SerializeToString())
