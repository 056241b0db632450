"""timm's models on our kernels: their own numbers, uint8 pictures, and their own classes afterwards."""

import numpy as np
import pytest
import torch

from saccade import interop
from saccade.testing.peers import usable_torchvision

usable_torchvision()

import timm  # noqa: E402 (after torchvision can be imported)

from saccade.interop import timm as drop_in, torch as of_torch  # noqa: E402

SMALL = dict(img_size=32, embed_dim=32, depth=2, num_heads=4, patch_size=8, num_classes=5)
# a model of timm: (its options, what is taken over in a forward pass)
MODELS = {
    "vit_tiny_patch16_224": (SMALL, {"attention": 2, "layer norm": 5}),
    "vit_base_patch16_siglip_224": (SMALL, {"attention": 2, "attention pooling": 1, "layer norm": 6}),
    "vit_base_patch16_clip_224": (SMALL, {"attention": 2, "layer norm": 6}),
    "deit_tiny_patch16_224": (SMALL, {"attention": 2, "layer norm": 5}),
    "vit_tiny_r_s16_p8_224": (dict(img_size=32, embed_dim=32, depth=2, num_heads=4), {"attention": 2, "layer norm": 5}),
    "vit_base_patch16_rpn_224": (SMALL, {"attention": 2}),
}


@pytest.fixture(autouse=True)
def counts():
    interop.reset()
    yield
    interop.reset()


def model_of(name, **more):
    torch.manual_seed(0)
    model = timm.create_model(name, **MODELS[name][0] | more).double().eval()
    for parameter in model.parameters():  # heads that begin as zeros would hide everything
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def pixels(n=2):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def logits_and_gradients(model, x):
    out = model(x)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(out.sin().sum(), list(parameters.values()))
    return out, dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_a_patched_model_has_the_numbers_it_had(name):
    model = model_of(name)
    classes = [type(one) for one in model.modules()]
    expected, expected_gradients = logits_and_gradients(model, pixels())
    with drop_in.patched(model, everywhere=True):
        found, gradients = logits_and_gradients(model, pixels())
        names = list(model.state_dict())
    taken = {place.removeprefix("timm "): found.get("taken over", 0) for place, found in interop.report().items()}
    assert {place: taken[place] for place in MODELS[name][1]} == MODELS[name][1]
    assert (found - expected).abs().max() <= 1e-11 * expected.abs().max()
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    for one, gradient in expected_gradients.items():
        assert (gradients[one] - gradient).abs().max() <= 1e-11 * largest, one
    assert [type(one) for one in model.modules()] == classes and list(model.state_dict()) == names
    assert torch.equal(model(pixels()), expected)


def test_uint8_pictures_are_normalised_as_timm_normalises_them():
    model = model_of("vit_base_patch16_clip_224")
    images = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = (torch.tensor(model.pretrained_cfg[name], dtype=torch.float64) for name in ("mean", "std"))
    expected = model(((images.double() / 255 - mean) / std).permute(0, 3, 1, 2))
    with drop_in.patched(model):
        found = model(images)
        with pytest.raises(ValueError, match=r"expected images of self.img_size=\(32, 32\)"):
            model(images[:, :16])
        with pytest.raises(ValueError, match=r"expected \(b, h, w, 3\)"):
            model(images.permute(0, 3, 1, 2))
    assert interop.report()["timm patches of uint8 images"] == {"taken over": 1}
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_masks_query_norms_and_causality_are_timms_own():
    torch.manual_seed(0)
    attention = timm.layers.Attention(
        32, 4, qk_norm=True, scale_norm=True, gated=True, norm_layer=timm.layers.LayerNorm
    )
    attention = attention.double().eval()
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    mask = torch.rand(2, 1, 9, 9) < 0.7
    calls = [dict(attn_mask=mask), dict(attn_mask=torch.randn(2, 1, 9, 9, dtype=torch.float64)), dict(is_causal=True)]
    expected = [attention(x, **options) for options in calls]
    with drop_in.patched(attention, everywhere=True):
        found = [attention(x, **options) for options in calls]
    assert interop.report()["timm attention"] == {"taken over": 3}
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_what_is_not_taken_over_is_timms_to_the_bit(monkeypatch):
    monkeypatch.setattr(of_torch, "OWN", False)
    model = model_of("vit_tiny_patch16_224").float().train()
    for one in model.modules():
        if isinstance(one, timm.layers.Attention):
            one.attn_drop.p = 0.5
    torch.manual_seed(1)
    expected = model(pixels().float())
    with drop_in.patched(model, everywhere=False):
        torch.manual_seed(1)
        assert torch.equal(model(pixels().float()), expected)
    assert interop.report()["timm attention"] == {"dropout": 2}
    assert interop.report()["timm layer norm"] == {"not measured to be faster": 5}


def test_a_subclass_is_left_as_it_is():
    class Other(timm.layers.Attention):
        pass

    module = Other(32, 4)
    drop_in.patch(module)
    assert type(module) is Other


def test_a_patched_model_compiles_and_is_copied():
    import copy

    model = model_of("vit_tiny_patch16_224")
    expected = model(pixels())
    with drop_in.patched(model, everywhere=True):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert (compiled(pixels()) - expected).abs().max() <= 1e-11 * expected.abs().max()
        assert (copy.deepcopy(model)(pixels()) - expected).abs().max() <= 1e-11 * expected.abs().max()
    assert np.isfinite(expected.detach().numpy()).all()


class Table(torch.nn.Module):
    """A linear layer of what is no input, as of relative positions."""

    def __init__(self, constant):
        super().__init__()
        self.linear, self.constant = torch.nn.Linear(3, 2), constant

    def forward(self, x):
        return self.linear(self.constant) + x


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_reads_a_models_code_reads_timms():
    """torch.fx's graphs and TorchScript's programs are those of the model as it was, to the bit."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, depth=2).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        own = torch.fx.symbolic_trace(model)(images)
        scripted = torch.jit.script(model)(images)
        drop_in.patch(model, everywhere=True)
        interop.counts.reset()
        traced = torch.fx.symbolic_trace(model)
        assert torch.equal(traced(images), own)
        assert interop.report()["Attention under torch.fx"] == {"tracing": 2}
        assert type(model.blocks[0].attn) is drop_in.SaccadeAttention
        assert torch.equal(torch.jit.script(model)(images), scripted)
        assert type(model.blocks[0].attn) is timm.layers.Attention and torch.equal(model(images), own)
        table = Table(images[0, 0, :, :3])
        of_torch.patch(table)
        traced = torch.fx.symbolic_trace(table)
        assert not any("saccade" in str(node.target) for node in traced.graph.nodes if node.op == "call_function")
        assert torch.equal(traced(torch.zeros(2)), torch.nn.Linear.forward(table.linear, table.constant))
        layer = of_torch.patch(torch.nn.Sequential(torch.nn.Linear(4, 3)))
        assert torch.equal(layer[0](input=images[0, 0, :, :4]), layer(images[0, 0, :, :4]))
