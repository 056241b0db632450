"""Who computes whole models: our own functions and modules, other libraries' models, and graph runtimes.

Each peer is given our parameters under its own names (``saccade.weights``). ONNX Runtime and OpenVINO are given the
graph that torch traces of the first library's model that there is: timm's, open_clip's, or else transformers'.
"""

import functools
import importlib.util
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np

from saccade.bench.models import config_of, forward, parameters_of
from saccade.models import clip, imagegpt, vit
from saccade.models.variants import module_of
from saccade.testing.frameworks import Framework
from saccade.testing.peers import usable_torchvision
from saccade.weights.files import layout_for, tensors
from saccade.weights.links import joined, shapes


def of_arrays(ops, arrays, problem):
    """Our functions on NumPy or CuPy arrays, with an op set."""
    held, variant = problem.arrays(arrays), problem.options["variant"]
    parameters, config = Framework(arrays).put(parameters_of(variant, problem.dtype)), config_of(variant)
    return lambda: forward(parameters, held.arguments[0], config, ops), None


def of_torch(make, problem, compiled=False):
    """A function of tensors that ``make(variant, dtype, device)`` returns, or None with why it does not apply."""
    import torch

    function, reason = make(problem.options["variant"], problem.dtype, problem.device)
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
def ours(variant, dtype, device):
    """``saccade.torch``'s module."""
    from saccade.torch import CLIP, ImageGPT, ViT

    config = config_of(variant)
    parameters = Framework("torch", device).put(parameters_of(variant, dtype))
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
def timm_model(variant, dtype, device):
    """timm's VisionTransformer."""
    if not isinstance(config_of(variant), vit.ViTConfig):
        return None, "timm has ViTs alone"
    import timm
    import torch

    found, beside = state_dict("timm", variant, dtype)
    said = beside["config.json"]
    made = timm.create_model(said["architecture"], num_classes=said["num_classes"], **said["model_args"])
    made.to(getattr(torch, dtype)).load_state_dict(found)
    return _as_channels_first(made.eval().requires_grad_(False).to(device)), None


def transformers_module(variant, dtype="float32"):
    """transformers' module, with the attention that it chooses.

    Raises:
        ValueError: it has no place for the variant.
    """
    import torch
    import transformers

    found, beside = state_dict("hf", variant, dtype)
    said = beside["config.json"]
    (architecture,) = said["architectures"]
    kind = getattr(transformers, architecture)
    config = kind.config_class(**{name: x for name, x in said.items() if name not in ("architectures", "model_type")})
    made = kind.from_pretrained(None, config=config, state_dict=found, dtype=getattr(torch, dtype))
    return made.eval().requires_grad_(False)


@functools.lru_cache(maxsize=1)
def transformers_model(variant, dtype, device):
    """A function of transformers' module: a ViT's logits or else embedding, a CLIP's embeddings, ImageGPT's logits."""
    import torch

    try:
        made = transformers_module(variant, dtype).to(device)
    except ValueError as error:
        return None, str(error)
    config, architecture = made.config, type(made).__name__
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
def open_clip_model(variant, dtype, device):
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
    made.eval().requires_grad_(False).to(device)
    return _as_channels_first(lambda x: made.encode_image(x, normalize=True)), None


def _module(function):
    """A function of one tensor as a module whose tensors are constants, as tracing wants it."""
    import torch

    class Function(torch.nn.Module):
        def forward(self, x):
            return function(x)

    return Function().eval()


@functools.lru_cache(maxsize=1)
def _traceable(variant):
    """(a function of one tensor, None), or (None, why not), in float32 on the CPU."""
    reason = "there is no library whose model could be traced"
    for name, make in PEERS.items():
        if name in TRACED or importlib.util.find_spec(PACKAGES[name]) is None:
            continue
        usable_torchvision()
        function, reason = make(variant, "float32", "cpu")
        if function is not None:
            return _module(function), None
    return None, reason


def _threads():
    return int(os.environ.get("OMP_NUM_THREADS", 0))


@functools.lru_cache(maxsize=1)
def _onnx_session(variant, shape, dtype):
    import onnxruntime
    import torch

    module, reason = _traceable(variant)
    if module is None:
        return None, reason
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = _threads()
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its newer exporter needs a package that its older one, deprecated, does not
        path = str(Path(folder, "model.onnx"))  # of a string alone are parameters beyond 2 GB kept in files beside
        x, mha = torch.zeros(shape, dtype=getattr(torch, dtype)), torch.backends.mha
        fast = mha.get_fastpath_enabled()
        mha.set_fastpath_enabled(False)  # which has no name in ONNX
        try:
            with torch.no_grad():
                torch.onnx.export(module, (x,), path, dynamo=False, opset_version=20, input_names=["x"])
        finally:
            mha.set_fastpath_enabled(fast)
        return onnxruntime.InferenceSession(path, settings, ["CPUExecutionProvider"]), None


def onnx_runtime(problem):
    """ONNX Runtime's session of the traced graph."""
    held = problem.arrays("numpy")
    session, reason = _onnx_session(problem.options["variant"], *_shape_of(problem))
    if session is None:
        return None, reason
    return lambda: session.run(None, {"x": held.arguments[0]})[0], None


@functools.lru_cache(maxsize=1)
def _openvino_request(variant, shape, dtype):
    import openvino
    import torch

    module, reason = _traceable(variant)
    if module is None:
        return None, reason
    core = openvino.__dict__.setdefault("kept_core", openvino.Core())  # see saccade.testing.runtimes
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        graph = openvino.convert_model(module, example_input=torch.zeros(shape, dtype=getattr(torch, dtype)))
    settings = {"INFERENCE_NUM_THREADS": _threads(), "INFERENCE_PRECISION_HINT": openvino.Type.f32}
    return core.compile_model(graph, "CPU", settings).create_infer_request(), None


def openvino_runtime(problem):
    """OpenVINO's request of the traced graph."""
    held = problem.arrays("numpy")
    request, reason = _openvino_request(problem.options["variant"], *_shape_of(problem))
    if request is None:
        return None, reason

    def run():
        request.infer([held.arguments[0]], share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return run, None


def _shape_of(problem):
    return problem.arguments[0].shape, str(problem.arguments[0].dtype)


PEERS = {
    "timm-model": timm_model, "open-clip-model": open_clip_model, "transformers-model": transformers_model,
    "onnxruntime-model": onnx_runtime, "openvino-model": openvino_runtime,
}  # fmt: skip
TRACED = ("onnxruntime-model", "openvino-model")
PACKAGES = {
    "timm-model": "timm", "open-clip-model": "open_clip", "transformers-model": "transformers",
    "onnxruntime-model": "onnxruntime", "openvino-model": "openvino",
}  # fmt: skip
COMPILABLE = (*(name for name in PEERS if name not in TRACED), "saccade-torch")
NAMES = [*PEERS, *(f"{name}-compiled" for name in COMPILABLE)]


def of_peer(name, problem):
    """The provider of a name in ``NAMES``."""
    plain = name.removesuffix("-compiled")
    if problem.operation != "model":
        return None, "it is a whole model"
    if plain in PEERS and importlib.util.find_spec(PACKAGES[plain]) is None:
        return None, f"{PACKAGES[plain]} is not installed"
    if plain in TRACED:
        if problem.device != "cpu" or problem.dtype != "float32":
            return None, "it is timed in float32 on processors alone"
        return PEERS[plain](problem)
    usable_torchvision()
    return of_torch(PEERS.get(plain, ours), problem, compiled=plain != name)
