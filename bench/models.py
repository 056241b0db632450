"""Whole models as cases: a forward pass of a variant, from pictures or tokens to logits or embeddings.

``case("model", 1, variant="vit-B/16")`` is one picture through that ViT; of a CLIP its image tower is timed, of an
ImageGPT the logits of all tokens. Pictures come normalised, as b h w c; parameters are drawn from one seed, and none is
0 or 1 throughout, as papers begin. A provider is held to the definition in float64 on one item of the batch, by the
error of ``ORDINARY`` passes in the case's dtype whose rounding errors are drawn anew.
"""

import functools
import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

from saccade import reference
from saccade.files import replacing
from saccade.models import clip, imagegpt, vit
from saccade.models.initialization import draw
from saccade.models.variants import VARIANTS, cost, module_of
from saccade.testing import gate
from saccade.testing.frameworks import Framework
from saccade.testing.opset import Ordinary
from saccade.testing.peers import usable_torchvision
from saccade.testing.ways import Way
from saccade.weights.files import layout_for, tensors
from saccade.weights.links import joined, shapes

ORDINARY = 4


def config_of(variant):
    """The config of a name in ``saccade.models.variants``, for pictures that are normalised already.

    Raises:
        ValueError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"bench: {variant=}, expected one of {', '.join(VARIANTS)}")
    config = VARIANTS[variant]
    if isinstance(config, clip.CLIPConfig):
        return replace(config, image=replace(config.image, mean=None, std=None))
    return replace(config, mean=None, std=None) if isinstance(config, vit.ViTConfig) else config


@functools.lru_cache(maxsize=2)
def parameters_of(variant, dtype):
    """Parameters by our names, as NumPy arrays of a dtype's name."""
    config, rng = config_of(variant), np.random.default_rng(0)
    found = draw(module_of(config).layout(config), 0)
    for name, x in found.items():
        if x.ndim == 1 or not x.any():  # biases of 0 and scales of 1 hide faults, and heads of 0 everything
            found[name] = x + 0.02 * rng.standard_normal(x.shape)
    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return {name: x.astype(dtype) for name, x in found.items()}


def inputs(rng, dtype, variant, b):
    """The arguments of a case: (tokens,) or (pictures,)."""
    config = config_of(variant)
    if isinstance(config, imagegpt.ImageGPTConfig):
        return (rng.integers(0, config.colors, (b, config.length)),)
    image = config.image if isinstance(config, clip.CLIPConfig) else config
    side = (image.image_size,) * 2 if isinstance(image.image_size, int) else image.image_size
    return (rng.standard_normal((b, *side, image.channels)).astype(dtype),)


def work(variant, b):
    """(multiplications of all products, the parameters that they read) of a case."""
    config = config_of(variant)
    shapes = {name: shape for name, (shape, _) in module_of(config).layout(config).items()}
    read = [name for name in shapes if not isinstance(config, clip.CLIPConfig) or name.startswith("image")]
    return b * cost(config).flops / 2, sum(math.prod(shapes[name]) for name in read)


def forward(parameters, x, config, ops):
    """The pass that is timed, with any op set."""
    if isinstance(config, clip.CLIPConfig):
        return clip.encode_images(parameters, x, config, ops)
    model = imagegpt if isinstance(config, imagegpt.ImageGPTConfig) else vit
    return model.forward(parameters, x, config, ops)


class Standard:
    """What a provider is held to, see the module; kept at ``path`` for the next who asks, if given."""

    def __init__(self, variant, dtype, x, path=None):
        if path is not None and Path(path).exists():
            with np.load(path) as kept:
                self.truth, *self.ordinary = kept["results"]
            return
        config, parameters = config_of(variant), parameters_of(variant, dtype)
        exact = {name: value.astype(np.float64) for name, value in parameters.items()}
        wide = x if x.dtype.kind == "i" else x.astype(np.float64)
        kind, noise = next(iter(parameters.values())).dtype, np.random.default_rng(0)
        ways = [Way("online", kind, one, keys=256) for one in (None, *[noise] * (ORDINARY - 1))]
        self.truth = forward(exact, wide, config, reference)
        self.ordinary = [forward(parameters, x, config, Ordinary(way)) for way in ways]
        if path is not None:
            with replacing(path) as file:
                np.savez(file, results=np.array([self.truth, *self.ordinary], np.float64))

    def judge(self, outputs):
        """A list of one ``gate.Judgement``."""
        (out,) = outputs
        return [gate.judge_one("output", out, self.truth, self.ordinary)]


# --- who computes -----------------------------------------------------------------------------------------------------


def of_arrays(ops, problem):
    """Our functions on NumPy arrays, with an op set."""
    held, variant = problem.arrays("numpy"), problem.options["variant"]
    parameters, config = parameters_of(variant, problem.dtype), config_of(variant)
    return lambda: forward(parameters, held.arguments[0], config, ops), None


def of_torch(make, problem, compiled=False):
    """A function of tensors that ``make(variant, dtype)`` returns, or None with the reason it does not apply."""
    import torch

    function, reason = make(problem.options["variant"], problem.dtype)
    if function is None:
        return None, reason
    held = problem.arrays("torch")
    function = _compiled(function) if compiled else function

    def run():
        with torch.inference_mode():
            return function(*held.arguments)

    return run, None


@functools.lru_cache(maxsize=1)
def _compiled(function):
    import torch

    return torch.compile(function)


@functools.lru_cache(maxsize=1)
def ours(variant, dtype):
    """``saccade.torch``'s module."""
    from saccade.torch import CLIP, ImageGPT, ViT

    config = config_of(variant)
    parameters = Framework("torch").put(parameters_of(variant, dtype))
    kind = {vit: ViT, imagegpt: ImageGPT, clip: CLIP}[module_of(config)]
    model = kind(config, parameters=parameters).eval()
    return model.encode_images if kind is CLIP else model, None


def state_dict(library, variant, dtype):
    """Our parameters by another library's names, as tensors, and what that library's config files say."""
    config, parameters = config_of(variant), parameters_of(variant, dtype)
    theirs, layout = layout_for(library, config), module_of(config).layout(config)
    names = tensors(theirs, config, layout)
    found = {name: np.array(joined(names, parameters, name), order="C") for name in shapes(names, layout)}
    return Framework("torch").put(found), theirs.beside(config)


def _as_channels_first(function):
    return lambda images: function(images.permute(0, 3, 1, 2))


@functools.lru_cache(maxsize=1)
def timm_model(variant, dtype):
    """timm's VisionTransformer."""
    if not isinstance(config_of(variant), vit.ViTConfig):
        return None, "timm has ViTs alone"
    import timm
    import torch

    found, beside = state_dict("timm", variant, dtype)
    said = beside["config.json"]
    made = timm.create_model(said["architecture"], num_classes=said["num_classes"], **said["model_args"])
    made.to(getattr(torch, dtype)).load_state_dict(found)
    return _as_channels_first(made.eval()), None


@functools.lru_cache(maxsize=1)
def transformers_model(variant, dtype):
    """transformers' model, with the attention that it chooses."""
    import torch
    import transformers

    try:
        found, beside = state_dict("hf", variant, dtype)
    except ValueError as error:
        return None, str(error)
    said = beside["config.json"]
    (architecture,) = said["architectures"]
    kind = getattr(transformers, architecture)
    config = kind.config_class(**{name: x for name, x in said.items() if name not in ("architectures", "model_type")})
    made = kind.from_pretrained(None, config=config, state_dict=found, dtype=getattr(torch, dtype)).eval()
    if architecture == "ImageGPTForCausalImageModeling":
        start = config.vocab_size - 1

        def logits(tokens):
            shifted = torch.cat([torch.full_like(tokens[:, :1], start), tokens[:, :-1]], 1)
            return made(input_ids=shifted, use_cache=False).logits

        return logits, None
    if architecture.startswith("ViT"):
        take = "logits" if architecture.endswith("Classification") else "pooler_output"
        return _as_channels_first(lambda x: getattr(made(x), take)), None

    def embeddings(x):
        features = made.get_image_features(x)
        features = getattr(features, "pooler_output", features)
        return torch.nn.functional.normalize(features, dim=-1)

    return _as_channels_first(embeddings), None


@functools.lru_cache(maxsize=1)
def open_clip_model(variant, dtype):
    """open_clip's CLIP."""
    if not isinstance(config_of(variant), clip.CLIPConfig):
        return None, "open_clip has CLIPs alone"
    import open_clip
    import torch

    try:
        found, beside = state_dict("open_clip", variant, dtype)
    except ValueError as error:
        return None, str(error)
    made = open_clip.CLIP(**beside["open_clip_config.json"]["model_cfg"]).to(getattr(torch, dtype))
    made.load_state_dict(found, strict=False)  # it keeps a mask among its buffers
    made.eval()
    return _as_channels_first(lambda x: made.encode_image(x, normalize=True)), None


PEERS = {"timm-model": timm_model, "transformers-model": transformers_model, "open-clip-model": open_clip_model}
PACKAGES = {"timm-model": "timm", "transformers-model": "transformers", "open-clip-model": "open_clip"}
NAMES = [*PEERS, *(f"{name}-compiled" for name in (*PEERS, "saccade-torch"))]


def of_peer(name, problem):
    """The provider of a name in ``NAMES``."""
    plain = name.removesuffix("-compiled")
    if problem.operation != "model":
        return None, "it is a whole model"
    if plain in PEERS and importlib.util.find_spec(PACKAGES[plain]) is None:
        return None, f"{PACKAGES[plain]} is not installed"
    if plain in PEERS:
        usable_torchvision()
    return of_torch(PEERS.get(plain, ours), problem, compiled=plain != name)
