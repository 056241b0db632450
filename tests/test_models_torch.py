"""The models as modules: gradients of other libraries' twins, the functions' numbers, and torch's own machinery."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import twins
from support import assert_close64

import saccade
from saccade import reference
from saccade.models import clip, imagegpt, transformer, vit
from saccade.torch import CLIP, Block, ImageGPT, Stage, ViT
from saccade.torch.arrays import to_numpy
from saccade.torch.decoding import Decoder
from saccade.torch.modules import sample

TOKENS = torch.tensor(twins.PALETTE_TOKENS)
TEXTS = torch.tensor(twins.TEXTS)
UINT8_IMAGES = torch.tensor(np.random.default_rng(2).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8))
TINY_IMAGEGPT = imagegpt.ImageGPTConfig(width=12, depth=2, heads=3, colors=16, length=16)
TINY_VIT = replace(twins.VIT, eps=1e-6)
TINY_MASKED = replace(TINY_IMAGEGPT, objective="masked", causal=None)


def shaken(model, seed=0):
    """The model with every parameter moved: heads begin at 0, where nothing can be told."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


# --- gradients of twins, float64 ------------------------------------------------------------------------------------


def assert_gradients_equal(model, expected):
    """Each parameter's gradient is that of the twin, by our names."""
    ours = twins.gradients(model)
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert_close64(gradient, expected[name])


def test_imagegpts_loss_and_gradients_are_hugging_faces():
    theirs, parameters, config = twins.huggingface_imagegpt()
    logits = theirs(input_ids=twins.shifted(twins.PALETTE_TOKENS)).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS.flatten())
    expected.backward()
    model = ImageGPT(config, parameters=parameters)
    loss = model.loss(TOKENS)
    loss.backward()
    assert_close64(loss.detach(), expected.detach())
    assert_gradients_equal(model, twins.gradients_by_our_names(theirs))


def test_vits_gradients_are_hugging_faces():
    theirs, parameters, config = twins.huggingface_vit()
    labels = torch.tensor([1, 4])
    expected = torch.nn.functional.cross_entropy(theirs(twins.channels_first(twins.IMAGES)).logits, labels)
    expected.backward()
    model = ViT(config, parameters=parameters)
    loss = saccade.softmax_cross_entropy(model(torch.tensor(twins.IMAGES)), labels)
    loss.backward()
    assert_close64(loss.detach(), expected.detach())
    assert_gradients_equal(model, twins.gradients_by_our_names(theirs))


def test_clips_loss_and_gradients_are_hugging_faces():
    theirs, parameters, config = twins.huggingface_clip()
    expected = theirs(TEXTS, twins.channels_first(twins.IMAGES), return_loss=True).loss
    expected.backward()
    model = CLIP(config, parameters=parameters)
    loss = model.loss(torch.tensor(twins.IMAGES), TEXTS)
    loss.backward()
    assert_close64(loss.detach(), expected.detach())
    assert_gradients_equal(model, twins.gradients_by_our_names(theirs))


# --- modules are the functions ----------------------------------------------------------------------------------

MODULES = {
    "imagegpt": (ImageGPT, imagegpt, replace(TINY_IMAGEGPT, classes=3), (TOKENS,)),
    "vit": (ViT, vit, replace(TINY_VIT, pooling="map", representation=8), (UINT8_IMAGES,)),
    "clip": (CLIP, clip, twins.CLIP, (UINT8_IMAGES[:2], TEXTS)),
    "clip with a bag of words": (
        CLIP,
        clip,
        replace(twins.CLIP, text=replace(twins.CLIP.text, kind="cbow")),
        (UINT8_IMAGES[:2], TEXTS),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_the_functions_names_and_numbers(name):
    module, functions, config, inputs = MODULES[name]
    model = shaken(module(config, seed=3).double())
    begun = functions.initialize(config, seed=3)
    assert model.state_dict().keys() == begun.keys()
    parameters = model.numpy_parameters()
    expected = functions.forward(parameters, *(to_numpy(x) for x in inputs), config, reference)
    outputs = model(*inputs)
    pairs = zip(outputs, expected, strict=True) if isinstance(outputs, tuple) else [(outputs, expected)]
    for ours, true in pairs:
        assert_close64(ours.detach(), true)


@pytest.mark.parametrize("name", MODULES)
def test_parameters_travel_by_name(name):
    module, functions, config, inputs = MODULES[name]
    begun = functions.initialize(config, seed=3)
    model = shaken(module(config))
    model.load_parameters(begun)
    for key, value in model.numpy_parameters().items():
        assert np.array_equal(value, begun[key]) and value.dtype == np.float32
    with pytest.raises(ValueError, match="parameters lack"):
        model.load_parameters({key: value for key, value in begun.items() if "weight" not in key})
    twin = module(config, seed=9)
    twin.load_state_dict(model.state_dict())
    for ours, same in zip(_outputs(model, inputs), _outputs(twin, inputs), strict=True):
        assert torch.equal(ours, same)


def _outputs(model, inputs):
    out = model(*inputs)
    return out if isinstance(out, tuple) else (out,)


def test_imagegpts_features_and_classes_are_the_functions():
    config = replace(TINY_IMAGEGPT, classes=3)
    model = shaken(ImageGPT(config).double())
    parameters, tokens = model.numpy_parameters(), twins.PALETTE_TOKENS
    for ours, expected in zip(
        model.features(TOKENS, [0, 2]), imagegpt.features(parameters, tokens, config, reference, layers=[0, 2]),
        strict=True,
    ):  # fmt: skip
        assert_close64(ours.detach(), expected)
    assert_close64(model.classify(TOKENS).detach(), imagegpt.classify(parameters, tokens, config, reference))


def test_attention_weights_are_the_functions():
    model = shaken(ViT(TINY_VIT).double())
    expected = vit.attention_weights(model.numpy_parameters(), to_numpy(UINT8_IMAGES), TINY_VIT, reference)
    for ours, true in zip(model.attention_weights(UINT8_IMAGES), expected, strict=True):
        assert_close64(ours.detach(), true)


def test_a_masked_models_loss_is_the_mean_over_images_of_the_mean_over_masked_places():
    model = shaken(ImageGPT(TINY_MASKED).double())
    mask = torch.tensor(np.random.default_rng(0).random((3, 16)) < 0.3)
    logits = model(TOKENS, mask).detach()
    each = -torch.log_softmax(logits, -1).gather(2, TOKENS[..., None])[..., 0]
    expected = torch.stack([each[i][mask[i]].mean() for i in range(3)]).mean()
    assert len({int(x) for x in mask.sum(1)}) > 1
    assert_close64(model.loss(TOKENS, mask).detach(), expected)
    with pytest.raises(ValueError, match="mask=None, expected bool"):
        model.loss(TOKENS)


def test_resized_modules_are_the_functions():
    model = shaken(ViT(TINY_VIT).double())
    images = torch.tensor(np.random.default_rng(0).standard_normal((2, 24, 12, 3)))
    parameters, config = vit.resize(model.numpy_parameters(), TINY_VIT, (24, 12))
    model.resize((24, 12))
    assert_close64(model(images).detach(), vit.forward(parameters, images.numpy(), config, reference))


# --- completion -----------------------------------------------------------------------------------------------------


def test_completion_with_a_cache_takes_what_the_whole_model_likes_best():
    model = shaken(ImageGPT(TINY_IMAGEGPT).double())
    for m in (0, 1, 5, 16):
        tokens = model.generate(TOKENS[:, :m], temperature=0)
        assert tokens.shape == (3, 16) and torch.equal(tokens[:, :m], TOKENS[:, :m])
        assert torch.equal(tokens[:, m:], model(tokens).argmax(-1)[:, m:])


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_tokens_in_one_call_are_those_of_block_after_block(norm):
    """Several tokens first, then one at a time; with a hook, with dropout and of many sequences blocks are called."""
    config = replace(TINY_IMAGEGPT, norm=norm, bias=norm == "layer", hidden=20)
    model, n = shaken(ImageGPT(config).double()), TOKENS.shape[1]
    whole = transformer.run_blocks(model.run, model.embed(TOKENS), config).detach()
    with torch.no_grad():
        decoder = Decoder(model.blocks, n)
        found = [decoder(model.embed(TOKENS[:, :stop], start=decoder.filled)) for stop in (5, *range(6, n + 1))]
        assert decoder.kernel is not None
        assert_close64(torch.cat(found, 1), whole)
        calls = []
        hook = model.blocks[1].register_forward_hook(lambda *_: calls.append(1))
        expected = model.generate(TOKENS[:, :5], temperature=0)
        hook.remove()
        assert len(calls) == n - 5
        assert torch.equal(model.generate(TOKENS[:, :5], temperature=0), expected)


def test_blocks_that_one_call_cannot_do_are_called():
    def taken(model, b=1):
        decoder = Decoder(model.blocks, 4)
        with torch.no_grad():
            decoder(model.embed(TOKENS[:1, :1].repeat(b, 1)))
        return decoder.kernel is not None

    model = ImageGPT(TINY_IMAGEGPT)
    dropping = ImageGPT(TINY_IMAGEGPT, dropout=0.5)
    assert taken(model) and taken(model, 16) and taken(dropping.eval())
    assert not taken(model, 17) and not taken(dropping.train()) and not taken(ImageGPT(TINY_IMAGEGPT).half())
    with torch.enable_grad():
        assert Decoder(model.blocks, 4)(model.embed(TOKENS[:1, :1])).requires_grad
    other = ImageGPT(TINY_IMAGEGPT).blocks[1]
    other.mlp.fc1.weight = torch.nn.Parameter(other.mlp.fc1.weight[:-3].detach())
    other.mlp.fc2.weight = torch.nn.Parameter(other.mlp.fc2.weight[:, :-3].detach())
    model.blocks[1] = other
    assert not taken(model)


def test_completion_draws_from_the_models_distribution():
    """Exact chi-square bound: 15 degrees of freedom, 4000 draws of the second pixel, one chance in a million."""
    model = shaken(ImageGPT(TINY_IMAGEGPT))
    prefix = TOKENS[:1, :1].repeat(4000, 1)
    drawn = model.generate(prefix, length=2, temperature=2.0, generator=torch.Generator().manual_seed(0))[:, 1]
    expected = 4000 * torch.softmax(model(TOKENS[:1, :2])[0, 1].double() / 2, 0)
    observed = torch.bincount(drawn, minlength=16)
    assert ((observed - expected) ** 2 / expected).sum() < 57.0


def test_completion_repeats_by_generator_and_refuses_what_does_not_fit():
    model = shaken(ImageGPT(TINY_IMAGEGPT))
    one, two = (model.generate(TOKENS[:, :4], generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match="m=5, length=4, expected an autoregressive model"):
        model.generate(TOKENS[:, :5], length=4)
    with pytest.raises(ValueError, match="temperature=-1, expected at least 0"):
        model.generate(TOKENS[:, :5], temperature=-1)
    with pytest.raises(ValueError, match="expected an autoregressive model"):
        ImageGPT(TINY_MASKED).generate(TOKENS[:, :5])
    with pytest.raises(ValueError, match="top_k=0"):
        model.generate(TOKENS[:, :5], top_k=0)


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"top_k": 2}, [0, 0.4 / 0.7, 0.3 / 0.7, 0]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),  # the likeliest reach 0.4 alone
        ({"top_p": 0.41}, [0, 0.4 / 0.7, 0.3 / 0.7, 0]),
        ({"top_k": 3, "top_p": 0.95}, [0.2 / 0.9, 0.4 / 0.9, 0.3 / 0.9, 0]),
        ({"top_p": 1.0}, [0.2, 0.4, 0.3, 0.1]),
    ],
)
def test_the_likeliest_are_sampled_in_their_shares(options, shares):
    logits = torch.tensor([[0.2, 0.4, 0.3, 0.1]]).log().repeat(20_000, 1)
    drawn = sample(logits, 1.0, torch.Generator().manual_seed(0), **options)
    found = torch.bincount(drawn, minlength=4) / len(drawn)
    assert (found - torch.tensor(shares)).abs().max() < 0.02 and (found[torch.tensor(shares) == 0] == 0).all()


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"stochastic_depth": 0.5}])
def test_what_drops_does_so_in_training_alone(options):
    plain, dropping = shaken(ViT(TINY_VIT)), shaken(ViT(TINY_VIT, **options))
    torch.manual_seed(0)
    assert not torch.equal(dropping(UINT8_IMAGES), dropping(UINT8_IMAGES))
    assert torch.equal(dropping.eval()(UINT8_IMAGES), plain(UINT8_IMAGES))


def test_dropping_keeps_the_mean():
    block = shaken(ViT(TINY_VIT, stochastic_depth=0.5)).blocks[1]
    torch.manual_seed(0)
    branch = torch.ones(20_000, 1, 1)
    kept = block._drop_branches(branch)
    assert set(kept.unique().tolist()) == {0.0, 2.0} and abs(float(kept.mean()) - 1) < 0.05


def darker():
    """Four images that brightness tells apart."""
    return UINT8_IMAGES // torch.tensor([1, 2, 4, 8], dtype=torch.uint8).view(4, 1, 1, 1)


@pytest.mark.parametrize("name", ["imagegpt", "vit", "clip"])
def test_a_few_steps_lower_the_loss(name):
    model = {
        "imagegpt": lambda: ImageGPT(TINY_IMAGEGPT),
        "vit": lambda: ViT(TINY_VIT),
        "clip": lambda: CLIP(twins.CLIP),
    }
    model = model[name]()
    losses = {
        "imagegpt": lambda: model.loss(TOKENS),
        "vit": lambda: saccade.softmax_cross_entropy(model(darker()), torch.arange(4)),
        "clip": lambda: model.loss(darker()[:2], TEXTS),
    }
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    seen = []
    for _ in range(60):
        seen.append(losses[name]())
        optimizer.zero_grad()
        seen[-1].backward()
        optimizer.step()
    assert seen[-1].item() < 0.6 * seen[0].item()


def test_the_temperature_is_kept_below_100():
    model = CLIP(twins.CLIP)
    with torch.no_grad():
        model.logit_scale.fill_(7)
    model.clamp_logit_scale()
    assert np.isclose(model.logit_scale.exp().item(), 100)


# --- torch's machinery ----------------------------------------------------------------------------------------------


def test_every_parameter_belongs_to_a_stage():
    model = CLIP(twins.CLIP)
    inside = {id(p) for stage in model.modules() if isinstance(stage, Stage) for p in stage.parameters()}
    assert {id(p) for p in model.parameters()} - inside == {id(model.logit_scale)}
    assert sum(isinstance(stage, Block) for stage in model.modules()) == 4


def test_models_can_be_copied_and_their_stages_hooked():
    model = shaken(ViT(TINY_VIT))
    twin = copy.deepcopy(model)
    seen = []
    twin.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert torch.equal(twin(UINT8_IMAGES), model(UINT8_IMAGES)) and seen == [(4, 17, 16)]
    with torch.no_grad():
        twin.head.bias += 1
    assert not torch.equal(twin(UINT8_IMAGES), model(UINT8_IMAGES))


@pytest.mark.parametrize("name", ["imagegpt", "vit", "clip"])
def test_models_compile_whole(name):
    module, _, config, inputs = MODULES[name]
    model = shaken(module(config))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for ours, expected in zip(_outputs(compiled, inputs), _outputs(model, inputs), strict=True):
        assert torch.equal(ours, expected)


def test_gradient_checkpointing_gives_the_same_gradients():
    model = shaken(ViT(TINY_VIT))
    model(UINT8_IMAGES).square().sum().backward()
    expected = {name: x.grad.clone() for name, x in model.named_parameters()}
    model.zero_grad()
    for block in model.blocks:
        whole = block.forward
        block.forward = lambda x, whole=whole: torch.utils.checkpoint.checkpoint(whole, x, use_reentrant=False)
    model(UINT8_IMAGES).square().sum().backward()
    assert all(torch.equal(x.grad, expected[name]) for name, x in model.named_parameters())


def test_a_block_of_another_width_says_so():
    """Kernels trust the checks: without those, they would write beyond their memory."""
    block = ViT(vit.ViTConfig(image_size=8, patch_size=4, width=16, depth=1, heads=2, classes=3)).blocks[0]
    for width in (12, 20):
        with pytest.raises(ValueError, match="expected"), torch.no_grad():
            block(torch.zeros(1, 5, width))
