"""Whole models at full size, with random weights, through the error gate: ours and the libraries' own. Minutes, so only
with ``-m slow``."""

import numpy as np
import pytest
import torch

import saccade
from saccade.bench import model_peers, models
from saccade.models import clip
from saccade.models.variants import VARIANTS
from saccade.testing import opset
from saccade.testing.peers import usable_torchvision
from saccade.torch import CLIP

pytestmark = pytest.mark.slow
NAMES = ("vit-B/16", "clip-ViT-B/32", "clip-RN50", "imagegpt-S")


@pytest.mark.parametrize("name", NAMES)
def test_full_size_models_are_as_right_as_ordinary_arithmetic(name):
    """A picture's logits or embedding: of our functions on NumPy arrays, our modules, and each library that has it."""
    (x,) = models.inputs(np.random.default_rng(0), np.dtype(np.float32), name, 1)
    standard = models.Standard(name, "float32", x)
    found = {"saccade": models.forward(models.parameters_of(name, "float32"), x, models.config_of(name), saccade)}
    usable_torchvision()
    makers = {"saccade.torch": model_peers.ours, "timm": model_peers.timm_model}
    makers |= {"open_clip": model_peers.open_clip_model, "transformers": model_peers.transformers_model}
    for library, make in makers.items():
        function, _ = make(name, "float32", "cpu")
        if function is not None:
            with torch.inference_mode():
                found[library] = function(torch.from_numpy(x)).numpy()
    assert len(found) > 2
    for library, out in found.items():
        (judged,) = standard.judge((out,))
        assert judged.verdict == "PASS", (library, str(judged))


def test_a_full_size_text_tower_is_as_right_as_ordinary_arithmetic():
    config, rng = VARIANTS["clip-ViT-B/32"], np.random.default_rng(0)
    parameters = models.parameters_of("clip-ViT-B/32", "float32")
    texts = rng.integers(1, config.text.vocabulary - 1, (1, config.text.context))
    texts[:, 20] = config.text.vocabulary - 1

    def compute(parameters, texts, ops):
        return clip.encode_texts(parameters, texts, config, ops)

    module = CLIP(config, parameters=parameters).eval()
    with torch.inference_mode():
        outs = compute(parameters, texts, saccade), module.encode_texts(torch.from_numpy(texts)).numpy()
    for out in outs:
        judged = opset.judge(out, compute, parameters, texts, repeats=0)
        assert judged.verdict == "PASS", str(judged)
