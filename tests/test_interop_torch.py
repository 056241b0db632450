"""torch's scaled_dot_product_attention as ours: through the oracle, under autograd and the compiler, and undone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import attention as registry
from torch.nn.functional import scaled_dot_product_attention as sdpa

from saccade import interop
from saccade.interop import measured, torch as drop_in
from saccade.testing import check
from saccade.testing.peers import PEERS

RESULTS = Path(__file__).parents[1] / "bench" / "results"
PLACE = drop_in.PLACE


@pytest.fixture(autouse=True)
def counts():
    interop.reset()
    yield
    assert registry.current_flash_attention_impl() is None
    interop.reset()


def tensors(*shape, dtype=torch.float32, grad=False):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad) for _ in range(3)]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_oracle_passes_torchs_function_where_ours_is_active(dtype):
    peer = PEERS["torch-sdpa-flash"]
    with drop_in.activated(everywhere=True):
        claims = replace(peer.claims, causal="square")
        report = check(peer.function(), "attention", arrays="torch", dtypes=[dtype], claims=claims, budget=3.0)
    assert report.verdict == "PASS", report
    assert interop.report()[PLACE]["taken over"] > 20


def test_a_row_with_nothing_to_attend_to_is_what_torch_says_it_is():
    query, key, value = tensors(2, 3, 4, 8)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    expected = sdpa(query, key, value, attn_mask=mask)
    with drop_in.activated(everywhere=True):
        found = sdpa(query, key, value, attn_mask=mask)
    assert interop.report()[PLACE] == {"taken over": 1}
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_and_layouts_are_torchs(transposed):
    leaves = tensors(*((2, 5, 3, 8) if transposed else (2, 3, 5, 8)), dtype=torch.float64, grad=True)
    found = []
    for everywhere in (None, True):
        given = [x.transpose(1, 2) if transposed else x for x in leaves]
        if everywhere:
            with drop_in.activated(everywhere=True):
                out = sdpa(*given, is_causal=True)
                gradients = torch.autograd.grad(out.square().sum(), leaves)
        else:
            out = sdpa(*given, is_causal=True)
            gradients = torch.autograd.grad(out.square().sum(), leaves)
        found.append((out, *gradients))
    assert interop.report()[PLACE] == {"taken over": 1}
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    assert found[0][0].stride() == found[1][0].stride()


def test_a_compiled_graph_has_it_too():
    query, key, value = tensors(2, 3, 40, 8, grad=True)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def function(query, key, value):
        return sdpa(query, key, value).sin().sum()

    expected = torch.autograd.grad(sdpa(query, key, value).sin().sum(), (query, key, value))
    with drop_in.activated(everywhere=True):
        found = torch.autograd.grad(function(query, key, value), (query, key, value))
    assert interop.report()[PLACE]["taken over"] >= 1
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("reason", "shapes", "options"),
    [
        ("grouped or broadcast heads", ((2, 4, 5, 8), (2, 2, 5, 8)), {"enable_gqa": True}),
        ("causal over unequal lengths", ((2, 4, 5, 8), (2, 4, 7, 8)), {"is_causal": True}),
    ],
)
def test_what_ours_has_not_is_torchs(reason, shapes, options):
    query, key, value = (torch.randn(shapes[min(i, 1)]) for i in range(3))
    expected = sdpa(query, key, value, **options)
    with drop_in.activated(everywhere=True):
        assert torch.equal(sdpa(query, key, value, **options), expected)
    assert interop.report().get(PLACE, {reason: 1}) == {reason: 1}  # or torch has not asked for its fused operator


def test_small_attention_is_left_alone_unless_asked_for():
    query, key, value = tensors(1, 1, 3, 8)
    with drop_in.activated():
        sdpa(query, key, value)
    assert interop.report()[PLACE] == {"not measured to be faster": 1}
    assert str(interop.report()) == f"{PLACE}: left alone, not measured to be faster, 1"


def test_undoing_is_exact_and_blocks_nest():
    query, key, value = tensors(2, 3, 33, 8)
    before = sdpa(query, key, value)
    with drop_in.activated(everywhere=True):
        with drop_in.activated():
            sdpa(query, key, value)
        assert registry.current_flash_attention_impl() == "saccade"
        sdpa(query, key, value)
    assert interop.report()[PLACE] == {"not measured to be faster": 1, "taken over": 1}
    assert torch.equal(sdpa(query, key, value), before)
    drop_in.deactivate()  # of nothing is nothing
    drop_in.activate()
    drop_in.deactivate()
    assert torch.equal(sdpa(query, key, value), before)


def measurements():
    """(features of the processor, row) of our attention in the committed runs on CPUs."""
    for path in sorted(RESULTS.glob("*.json")):
        results = json.loads(path.read_text())
        if {"rows", "machine"} <= results.keys() and not results["machine"].get("device"):
            features = results["machine"]["processor"]["features"]
            yield from ((features, row) for row in results["rows"] if row["provider"] == "saccade")


def test_this_processor_is_one_of_its_kind():
    from saccade import environment

    features = environment.processor()["features"]
    assert measured._own_ranges() == measured.ranges_of(features) == measured.ranges_of(iter(features))
    assert measured.ranges_of(["avx512f"]) and not measured.ranges_of(["avx2"])


def test_what_is_taken_over_was_measured_to_be_no_slower():
    held = 0
    for features, row in measurements():
        sizes = row["sizes"]
        if row["operation"] != "attention" or row["base"] != "torch-sdpa":
            continue
        asked = row["dtype"], sizes["t"], sizes["s"], sizes["d"], row["options"].get("causal", False), row["gradients"]
        if any(one.holds(*asked) for one in measured.ranges_of(features)):
            held += 1
            assert row["ratio"]["warm"]["verdict"] != "slower", row["case"]
    assert held > 20


@pytest.mark.parametrize("own", [False, True])
def test_linear_layers_have_the_numbers_they_had(own, monkeypatch):
    from saccade.torch import layers

    for module in (drop_in, layers):
        monkeypatch.setattr(module, "OWN", own)
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.GELU(), torch.nn.Linear(30, 5, bias=False)).double()
    x = torch.randn(2, 7, 40, dtype=torch.float64)
    expected = model(x)
    gradients = torch.autograd.grad(expected.sin().sum(), list(model.parameters()))
    with drop_in.patched(model):
        found = model(x)
        for ours, theirs in zip(torch.autograd.grad(found.sin().sum(), model.parameters()), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert interop.report()["torch linear"] == {"taken over" if own else "not measured to be faster": 2}
    assert [type(one) for one in model] == [torch.nn.Linear, torch.nn.GELU, torch.nn.Linear]
    assert torch.equal(model(x), expected)
