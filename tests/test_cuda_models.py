"""Whole models on the CuPy backend's kernels, run on the CPU, in float64: every stage is the definition's."""

from dataclasses import replace

import numpy as np
import pytest
import twins
from cuda_host import folder_of, on_the_host
from support import assert_close64

import saccade
import saccade.cupy
import saccade.numpy
from saccade import reference
from saccade.kernels.cupy import device
from saccade.models import clip, imagegpt, vit

IMAGES = np.random.default_rng(2).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
TALLER = np.random.default_rng(2).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
MODELS = {
    "imagegpt": (imagegpt, twins.IMAGEGPT, (twins.PALETTE_TOKENS,)),
    "vit": (vit, replace(twins.VIT, representation=8), (IMAGES,)),
    "vit with attention pooling": (vit, replace(twins.VIT, pooling="map"), (IMAGES,)),
    "clip": (clip, twins.CLIP, (IMAGES, twins.TEXTS)),
    "clip with a resnet": (clip, twins.RESNET_CLIP, (TALLER, twins.TEXTS)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_run_on_these_kernels(name, tmp_path_factory, monkeypatch):
    module, config, inputs = MODELS[name]
    rng = np.random.default_rng(0)
    parameters = {
        name: np.abs(0.3 * rng.standard_normal(shape)) + 0.5
        if name.endswith(("scale", "variance"))
        else 0.3 * rng.standard_normal(shape)
        for name, (shape, _) in module.layout(config).items()
    }
    truth, stages, launched = {}, {}, set()
    expected = module.forward(parameters, *inputs, config, reference, stages=truth)
    monkeypatch.setattr(saccade.numpy, "implementation", saccade.cupy.implementation)
    with on_the_host(folder_of(tmp_path_factory)):
        launch = device.launch
        monkeypatch.setattr(device, "launch", lambda *what, **how: launched.add(what[1]) or launch(*what, **how))
        out = module.forward(parameters, *inputs, config, saccade, stages=stages)
        monkeypatch.undo()
    assert {"attention_forward", "finish"} < launched and stages.keys() == truth.keys()
    for stage in truth:
        assert_close64(stages[stage], truth[stage])
    pairs = zip(out, expected, strict=True) if module is clip else [(out, expected)]
    for mine, right in pairs:
        assert_close64(mine, right)
