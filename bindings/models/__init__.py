"""ImageGPT, ViT and CLIP as functions of (parameters, input, op set).

    from saccade.models import vit
    config = vit.variant("B/16", classes=1000)
    logits = vit.forward(vit.initialize(config), images, config, saccade)

Each module has a frozen config, ``variant(name)`` for the papers' sizes, ``initialize(config, seed)``, ``forward``,
and the stages by name. ``saccade.torch`` has the same models as ``nn.Module``.
"""

from saccade.models import clip as clip, imagegpt as imagegpt, resnet as resnet, vit as vit
