"""CLIP's slower objectives: what they minimise by other means, that they learn, and the figure that compares them."""

import numpy as np
import pytest
import torch
from test_recipes_clip import NAMES, SIZES, gradients, write_pairs

from saccade import reference
from saccade.models import clip, transformer
from saccade.recipes import captions, efficiency, pretrain_clip, saved, zeroshot
from saccade.recipes.captions import Captions, Words
from saccade.recipes.cuts import Broken
from saccade.recipes.data import Sample
from saccade.torch import CLIP

TOWER = dict(width=16, heads=4, hidden=32, depth=1)


def model_of(kind, context=12):
    image = clip.image_config(image_size=8, patch_size=4, **TOWER)
    text = clip.TextConfig(context=context, vocabulary=514, kind=kind, **TOWER)
    model = CLIP(clip.CLIPConfig(embed=8, image=image, text=text)).double().train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def batch_of(count):
    """Pictures, and captions of one to eight words."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    tokens = np.zeros((count, 12), np.int64)
    for i, row in enumerate(tokens):
        words = 1 + i % 8
        row[: words + 2] = [512, *rng.integers(1, 500, words), 513]
    return torch.from_numpy(images), torch.from_numpy(tokens)


def test_a_bag_of_words_is_told_by_a_softmax_over_the_vocabulary():
    objective, (images, tokens) = Words(model_of("cbow"), "bytes"), batch_of(5)
    words = tokens[:, 1]
    model = objective.model
    weight = model.text.embed.weight @ model.text_projection.weight.T
    logits = model.logit_scale.exp() * model.encode_images(images) @ weight.T
    expected = torch.nn.functional.cross_entropy(logits, words)
    torch.testing.assert_close(objective(images, tokens, words), expected, rtol=1e-12, atol=0)
    # the text tower takes the mean of the words, start and end among them
    whole = torch.stack([weight[row[: row.argmax() + 1]].mean(0) for row in tokens])
    normal = torch.nn.functional.normalize(whole, dim=1)
    torch.testing.assert_close(model.encode_texts(tokens), normal, rtol=1e-6, atol=1e-8)


def test_words_are_drawn_from_the_caption_alone():
    objective, rng = Words(model_of("cbow"), "bytes"), np.random.default_rng(0)
    sample = Sample("x", np.zeros((8, 8, 3), np.uint8), caption="a bb a")
    drawn = [objective.prepare(sample, rng) for _ in range(60)]
    words = {int(word) for _, _, word in drawn}
    assert words == set(drawn[0][1][1:-1].tolist()) - {0, 513} and len(words) == 3  # "a ", "b" and "b "
    short = Words(model_of("cbow", context=2), "bytes")
    with pytest.raises(Broken, match="no words in the caption"):
        short.prepare(sample, rng)
    with pytest.raises(ValueError, match="expected 'cbow'"):
        Words(model_of("transformer"), "bytes")


def test_captions_are_told_token_by_token():
    """The same by the definition in NumPy, and a softmax written out."""
    objective, (images, tokens) = Captions(model_of("transformer"), "bytes"), batch_of(6)
    model, config = objective.model, objective.model.config
    parameters = model.numpy_parameters()
    seen = clip.encode_images(parameters, images.numpy(), config, reference)
    seen = np.exp(parameters["logit_scale"]) * seen @ parameters["text_projection.weight"]
    own = transformer.under(parameters, "text")
    run = transformer.runner(clip.TEXT_STAGES, own, reference, config.text, None)
    x = run("embed", tokens.numpy())
    x[:, 0] += seen
    x = transformer.run_blocks(run, x, config.text)
    x = transformer.norm(transformer.under(own, "pool.norm"), x, reference, config.text)
    logits = x @ own["embed.weight"].T
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [sum(logits[i, j, row[j + 1]] for j in range(row.argmax())) for i, row in enumerate(tokens.numpy())]
    found = objective.log_likelihood(model.encode_images(images), tokens)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9)
    lengths = tokens.argmax(1).numpy()
    np.testing.assert_allclose(objective(images, tokens).item(), -np.mean(expected / lengths), rtol=1e-9)
    padded = tokens.clone()
    padded[0, tokens[0].argmax() + 1 :] = 7  # after the end of text
    assert torch.equal(objective.log_likelihood(model.encode_images(images), padded)[0], found[0])


def test_every_caption_is_scored_for_every_picture(monkeypatch):
    objective, (images, tokens) = Captions(model_of("transformer"), "bytes"), batch_of(6)
    embeddings = objective.model.encode_images(images)
    found = objective.log_likelihoods(embeddings, tokens[:4])
    for i in range(4):
        one = objective.log_likelihood(embeddings, tokens[i : i + 1].expand(6, -1))
        torch.testing.assert_close(found[:, i], one)
    monkeypatch.setattr(captions, "AT_ONCE", 5)  # a picture at a time
    torch.testing.assert_close(objective.log_likelihoods(embeddings, tokens[:4]), found)


@pytest.mark.parametrize("kind", ["cbow", "transformer"])
def test_parts_and_the_whole_have_the_same_gradients_and_every_parameter_has_one(kind):
    def fresh():
        return Words(model_of(kind), "bytes") if kind == "cbow" else Captions(model_of(kind), "bytes")

    batch = batch_of(8)
    batch = (*batch, batch[1][:, 1]) if kind == "cbow" else batch
    whole, parted = (gradients(fresh(), batch, parts) for parts in (1, 4))
    for x, y in zip(whole, parted, strict=True):
        assert x.abs().max() > 0
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-13)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Models of each objective, some trained longer, and pictures to name."""
    folder = tmp_path_factory.mktemp("objectives")
    pairs = write_pairs(folder)
    with np.load(pairs) as found:
        labels = [NAMES.index(caption.split()[0]) for caption in found["captions"]]
        np.savez(folder / "test.npz", images=found["images"], labels=labels, classes=NAMES)
    for objective in pretrain_clip.OBJECTIVES:
        for steps in (2, 80):
            pretrain_clip.run(
                pairs, folder / f"{objective}-{steps}", preset="clip-tiny", objective=objective, model=SIZES,
                training=dict(steps=steps, batch=12), optimization=dict(warm_up=2, peak=1e-2), held_out=str(pairs),
                device="cpu",
            )  # fmt: skip
    return folder


@pytest.mark.parametrize("objective", ["contrastive", "bag-of-words", "caption"])
def test_every_objective_learns_to_name_pictures(trained, objective):
    model, facts = saved.load(trained / f"{objective}-80" / "model.safetensors")
    assert facts == {"tokenizer": "bytes", "objective": objective, "samples": 960}
    assert model.config.text.kind == ("cbow" if objective == "bag-of-words" else "transformer")
    named = zeroshot.run(trained / f"{objective}-80" / "model.safetensors", trained / "test.npz", prompts="{}")
    assert named["top"][1] > 0.6


def test_the_figure_compares_objectives(trained):
    names = pretrain_clip.OBJECTIVES
    models = [trained / f"{name}-{steps}" / "model.safetensors" for name in names for steps in (80, 2)]
    found = efficiency.run(models, trained / "test.npz", trained / "page.html", prompts="{}")
    assert {name: [seen for seen, _ in points] for name, points in found.items()} == {n: [24, 960] for n in names}
    one = zeroshot.run(models[0], trained / "test.npz", prompts="{}", top=(1,))["top"][1]
    assert found["contrastive"][1][1] == one
    assert (trained / "page.html").read_text().count("<figure>") == 1
    saved.save(saved.load(models[0])[0], trained / "other.safetensors", tokenizer="bytes")
    with pytest.raises(ValueError, match="does not say how it was trained"):
        efficiency.run([trained / "other.safetensors"], trained / "test.npz")


def test_objectives_that_do_not_go_together_are_refused(trained):
    pairs = trained / "pairs.npz"
    with pytest.raises(ValueError, match="objective='words', expected one of contrastive, bag-of-words, caption"):
        pretrain_clip.run(pairs, trained / "x", preset="clip-tiny", objective="words")
    with pytest.raises(ValueError, match="of a SigLIP, expected contrastive"):
        pretrain_clip.run(pairs, trained / "x", preset="siglip-tiny", objective="caption")
    start = trained / "contrastive-2" / "model.safetensors"
    with pytest.raises(ValueError, match="expected 'cbow'"):
        pretrain_clip.run(pairs, trained / "x", preset="clip-tiny", start=start, objective="bag-of-words",
                          model={"image.image_size": 8})  # fmt: skip
