"""SigLIP: Hugging Face's numbers, and a module that is the functions."""

import numpy as np
import pytest
import torch
import twins
from support import assert_close64

from saccade import reference
from saccade.models import clip
from saccade.torch import CLIP


def test_siglip_is_hugging_faces():
    model, parameters, config = twins.huggingface_siglip()
    assert parameters.keys() == clip.layout(config).keys()
    ours = clip.forward(parameters, twins.IMAGES, twins.TEXTS, config, reference)
    with torch.no_grad():
        theirs = model(torch.tensor(twins.TEXTS), twins.channels_first(twins.IMAGES), return_loss=True)
    assert_close64(ours[0], theirs.image_embeds)
    assert_close64(ours[1], theirs.text_embeds)
    assert_close64(ours[2] * ours[0] @ ours[1].T + ours[3], theirs.logits_per_image)
    assert_close64(reference.siglip_loss(*ours), theirs.loss)


def test_the_module_is_the_functions():
    _, parameters, config = twins.huggingface_siglip()
    model = CLIP(config, parameters=parameters)
    images, texts = torch.tensor(twins.IMAGES), torch.tensor(twins.TEXTS)
    expected = clip.forward(parameters, twins.IMAGES, twins.TEXTS, config, reference)
    for ours, true in zip(model(images, texts), expected, strict=True):
        assert_close64(ours.detach(), true)
    assert_close64(model.loss(images, texts).detach(), reference.siglip_loss(*expected))
    assert model.state_dict().keys() == clip.layout(config).keys()


def test_it_begins_as_the_paper_says_and_refuses_what_does_not_fit():
    begun = clip.initialize(twins.SIGLIP)
    assert begun["logit_bias"] == -10 and np.isclose(clip.siglip_variant("B/16").logit_scale, np.log(10))
    with pytest.raises(ValueError, match=r"embed=12 and image features of width=16, expected the same"):
        clip.CLIPConfig(embed=12, image=twins.SIGLIP.image, text=twins.SIGLIP.text, logit_bias=-10.0)
    with pytest.raises(ValueError, match="name='B/8', expected one of B/16"):
        clip.siglip_variant("B/8")
