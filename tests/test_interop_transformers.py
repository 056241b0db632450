"""transformers' models on our attention: the numbers of their own, the calls that are counted, and undone."""

import pytest
import torch

from saccade import interop
from saccade.testing.peers import usable_torchvision

usable_torchvision()

import transformers  # noqa: E402 (after torchvision can be imported)

from saccade.interop import transformers as drop_in  # noqa: E402

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
PICTURES = SIZES | dict(image_size=32, patch_size=8)
WORDS = SIZES | dict(vocab_size=99, max_position_embeddings=40)
GPT = dict(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=40)
# a model type of transformers: sizes of its config
FAMILIES = {
    "vit": PICTURES,
    "deit": PICTURES,
    "vit_msn": PICTURES,
    "dinov2": PICTURES,
    "dinov2_with_registers": PICTURES,
    "dinov3_vit": PICTURES,
    "ijepa": PICTURES,
    "yolos": PICTURES | dict(image_size=[32, 32], num_detection_tokens=3),
    "siglip_vision_model": PICTURES,
    "clip_vision_model": PICTURES,
    "clipseg_vision_model": PICTURES,
    "chinese_clip_vision_model": PICTURES,
    "blip_2_vision_model": PICTURES,
    "videomae": PICTURES | dict(num_frames=2, tubelet_size=2),
    "vivit": PICTURES | dict(num_frames=2, tubelet_size=[2, 8, 8]),
    "audio-spectrogram-transformer": SIZES | dict(patch_size=8, max_length=32, num_mel_bins=16),
    "siglip_text_model": WORDS,
    "clip_text_model": WORDS,
    "bert": WORDS,
    "roberta": WORDS | dict(pad_token_id=0),
    "gpt2": GPT,
    "llama": WORDS | dict(num_key_value_heads=4),
    "opt": dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, vocab_size=99, word_embed_proj_dim=32,
        max_position_embeddings=40,
    ),
    "gpt_neox": WORDS,
}  # fmt: skip

# those that transformers.AutoModel does not know
KINDS = {
    "clipseg_vision_model": transformers.CLIPSegVisionModel,
    "blip_2_vision_model": transformers.Blip2VisionModel,
    "siglip_text_model": transformers.SiglipTextModel,
}


@pytest.fixture(autouse=True)
def counts():
    interop.reset()
    yield
    interop.reset()


def config_of(family):
    return transformers.CONFIG_MAPPING[family](**FAMILIES[family])


def inputs_of(model, config):
    generator = torch.Generator().manual_seed(0)
    name = model.main_input_name
    if name == "input_ids":
        return {"input_ids": torch.randint(3, 99, (2, 12), generator=generator)}
    shape = (2, 3, 32, 32)
    if hasattr(config, "num_frames"):
        shape = (2, config.num_frames, *shape[1:])
    if name == "input_values":
        shape = (2, 32, 16)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64)}


def model_of(config, attention):
    torch.manual_seed(0)
    kind = KINDS.get(config.model_type)
    made = kind._from_config if kind else transformers.AutoModel.from_config
    return made(config, attn_implementation=attention).double().eval()


def outputs_and_gradients(model, inputs):
    out = model(**inputs)
    hidden = out["last_hidden_state"]
    parameters = {name: x for name, x in model.named_parameters() if x.requires_grad}
    gradients = torch.autograd.grad(hidden.sin().sum(), list(parameters.values()), allow_unused=True)
    return hidden, dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_numbers_it_has_with_its_own_attention(family):
    with drop_in.registered(everywhere=True):
        ours = model_of(config_of(family), "saccade")
        inputs = inputs_of(ours, config_of(family))
        found, gradients = outputs_and_gradients(ours, inputs)
    assert interop.report()["transformers attention"] == {"taken over": 2}
    expected, expected_gradients = outputs_and_gradients(model_of(config_of(family), "sdpa"), inputs)
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()
    largest = max(g.abs().max().item() for g in expected_gradients.values() if g is not None and g.numel())
    for name, gradient in expected_gradients.items():
        assert (gradient is None) == (gradients[name] is None), name
        if gradient is not None:
            assert torch.allclose(gradients[name], gradient, rtol=0, atol=1e-11 * largest), name


def test_padded_words_are_as_they_are_with_its_own_attention():
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    tokens = torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for attention in ("saccade", "sdpa"):
        with drop_in.registered(everywhere=True):
            model = model_of(config_of("bert"), attention)
            found.append(model(input_ids=tokens, attention_mask=mask)["last_hidden_state"][mask.bool()])
    assert (found[0] - found[1]).abs().max() <= 1e-12 * found[1].abs().max()


def test_grouped_heads_dropout_and_weights_are_left_to_the_library():
    config = transformers.LlamaConfig(**WORDS, num_key_value_heads=2, attention_dropout=0.5)
    with drop_in.registered(everywhere=True):
        model = model_of(config, "saccade")
        inputs = inputs_of(model, config)
        model(**inputs)
    assert interop.report()["transformers attention"] == {"grouped or broadcast heads": 2}
    interop.reset()
    with drop_in.registered(everywhere=True):
        model_of(config, "saccade").train()(**inputs)
    assert interop.report()["transformers attention"] == {"dropout": 2}


IMAGEGPT = dict(**GPT, activation_function="quick_gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


@pytest.fixture
def imagegpt():
    torch.manual_seed(0)
    return transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**IMAGEGPT)).double().eval()


def test_imagegpt_has_its_own_numbers_and_class_again_afterwards(imagegpt):
    kind = type(imagegpt.transformer.h[0].attn)
    original = kind.forward
    tokens = torch.randint(0, 98, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = imagegpt(input_ids=tokens).logits
    weights = imagegpt(input_ids=tokens, output_attentions=True).attentions
    with drop_in.registered(everywhere=True):
        found = imagegpt(input_ids=tokens).logits
        again = imagegpt(input_ids=tokens, output_attentions=True).attentions
        first = imagegpt(input_ids=tokens[:, :20], use_cache=True)
        rest = imagegpt(input_ids=tokens[:, 20:], past_key_values=first.past_key_values).logits
        mask = torch.ones(2, 30, dtype=torch.long)
        masked = imagegpt(input_ids=tokens, attention_mask=mask).logits
    assert interop.report()["transformers ImageGPT attention"] == {"taken over": 8, "output_attentions": 2}
    for logits in (found, torch.cat([first.logits, rest], 1), masked):
        assert (logits - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, weights, strict=True))
    assert kind.forward is original
    assert torch.equal(imagegpt(input_ids=tokens).logits, expected)


def test_generation_draws_the_same_tokens(imagegpt):
    start = torch.full((2, 1), 98)
    options = dict(max_length=24, do_sample=False, pad_token_id=98)
    expected = imagegpt.generate(start, **options)
    with drop_in.registered(everywhere=True):
        found = imagegpt.generate(start, **options)
    assert torch.equal(found, expected)
    assert interop.report()["transformers ImageGPT attention"]["taken over"] > 20


def test_nobody_knows_the_name_before_and_after():
    config = config_of("vit")
    for _ in range(2):
        with pytest.raises(ValueError, match="saccade"):
            model_of(config, "saccade")
        with drop_in.registered():
            model_of(config, "saccade")


def test_training_with_and_without_is_the_same_curve():
    """Two hundred steps in float64: rounding alone differs, and grows."""
    curves = []
    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.arange(8) % 3
    for attention in ("saccade", "sdpa"):
        with drop_in.registered(everywhere=True):
            model = model_of(config_of("vit"), attention).train()
            head = torch.nn.Linear(32, 3, dtype=torch.float64)
            torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
            optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)
            losses = []
            for _ in range(200):
                loss = torch.nn.functional.cross_entropy(head(model(pixels).last_hidden_state[:, 0]), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            curves.append(torch.tensor(losses, dtype=torch.float64))
    assert curves[1][-1] < 0.1 * curves[1][0]
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-6, atol=1e-9)
