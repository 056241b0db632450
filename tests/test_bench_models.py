"""Whole models in the bench: other libraries' are right at their real sizes, and one with a planted bug has no time."""

from dataclasses import replace

import numpy as np
import pytest

import saccade
from saccade import reference
from saccade.bench import cases, judging, models
from saccade.bench.problem import Problem
from saccade.bench.providers import known, may_apply, provider
from saccade.bench.run import run
from saccade.testing import gate

VIT = cases.case("model", 2, variant="vit-S/32")


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    path = tmp_path_factory.mktemp("truth") / "vit.npz"
    made = [judging.part_of_model(VIT, *VIT.inputs(1), (), rng=np.random.default_rng(0), path=path) for _ in range(2)]
    assert path.exists() and np.array_equal(made[0].standard.truth, made[1].standard.truth)
    return made[1]  # from the file


def judged(part, provided):
    problem = Problem("model", *VIT.inputs(1), timed=True, dtype="float32")
    forward, reason = provided(problem)
    assert forward is not None, reason
    (one,) = judging.judge_case(problem, part, forward, None)
    return one.verdict


@pytest.mark.parametrize(
    "name", ["saccade", "saccade-torch", "timm-model", "transformers-model", "onnxruntime-model", "openvino-model"]
)
def test_libraries_models_are_right(part, name):
    assert judged(part, provider(name)) == "PASS"


def with_fault(change_parameters=dict, **changes):
    """A provider of ours whose parameters or config are not the case's."""

    def provided(problem):
        held, variant = problem.arrays("numpy"), problem.options["variant"]
        config = replace(models.config_of(variant), **changes)
        parameters = change_parameters(models.parameters_of(variant, problem.dtype))
        return lambda: models.forward(parameters, held.arguments[0], config, saccade), None

    return provided


def shifted_positions(parameters):
    return parameters | {"embed.positions": np.roll(parameters["embed.positions"], 1, 0)}


def in_bfloat16(parameters):
    import ml_dtypes

    return {name: x.astype(ml_dtypes.bfloat16).astype(np.float32) for name, x in parameters.items()}


def without_a_bias(parameters):
    return parameters | {"blocks.3.mlp.fc1.bias": 0 * parameters["blocks.3.mlp.fc1.bias"]}


FAULTS = {
    "another GELU": with_fault(gelu="erf"),
    "another eps": with_fault(eps=1e-3),
    "a block fewer": with_fault(depth=11),
    "positions off by one": with_fault(shifted_positions),
    "parameters in 16 bits": with_fault(in_bfloat16),
    "a bias left out": with_fault(without_a_bias),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_model_with_a_fault_fails(part, name):
    assert judged(part, FAULTS[name]) == "FAIL"
    assert judged(part, with_fault()) == "PASS"


def test_other_libraries_say_what_they_have_no_place_for():
    for name, variant in (
        ("open-clip-model", "vit-S/32"), ("timm-model", "clip-ViT-B/32"), ("transformers-model", "vit-s/28-map"),
    ):  # fmt: skip
        problem = Problem("model", (np.zeros((1, 4, 4, 3), np.float32),), {"variant": variant}, dtype="float32")
        forward, reason = provider(name)(problem)
        assert forward is None and reason


def test_models_are_timed_beside_each_other():
    results = run([VIT], ["timm-model", "saccade-torch"], seconds=0.2, samples=3, processes=1, threads=1)
    assert [row["verdict"] for row in results["rows"]] == ["PASS", "PASS"], results["rows"]
    ours = results["rows"][1]
    assert ours["ratio"]["warm"]["median"] > 0 and ours["flops"] > 4.4e9 and ours["binding limit"] == "products"


def test_providers_of_operations_and_of_models_are_kept_apart():
    assert {"saccade", "saccade-torch", "timm-model", "timm-model-compiled"} <= set(known("model"))
    assert known("model", "cuda")[:2] == ["saccade-torch", "saccade-cupy"]
    assert not {"onnxruntime-model-compiled", "openvino-model-compiled"} & set(known("model"))
    assert not may_apply("torch-sdpa", "model") and not may_apply("timm-model", "attention")


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "model without a variant"), ({"variant": "vit-Q/16"}, "variant='vit-Q/16', expected one of imagegpt-S")],
)
def test_a_model_is_a_variant(options, message):
    with pytest.raises(ValueError, match=message):
        cases.case("model", 1, **options)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_parts_is_the_whole_attention(causal, monkeypatch):
    monkeypatch.setattr(models, "QUERIES", 3)
    qkv = np.random.default_rng(0).standard_normal((2, 11, 3, 2, 4))
    out = models.InParts(reference).qkv_attention(qkv, causal=causal)
    assert gate.verdict(gate.judge("qkv_attention", out, None, (qkv,), {"causal": causal})) == "PASS"
