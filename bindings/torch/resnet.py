"""CLIP's ResNet as a module: its batch norms count their statistics in training."""

import torch.nn.functional as F
from torch import nn

from saccade.models import resnet, transformer
from saccade.torch.stages import Named, Stage, checked


class NormedStage(Stage):
    """A stage whose batch norms take the batch's own statistics in training, and remember them."""

    def forward(self, *inputs, **options):
        return super().forward(*inputs, normalize=_counted if self.training else resnet.batch_norm, **options)


def _counted(parameters, x, ops, config):
    scale, bias, mean, variance = (parameters[name] for name in ("scale", "bias", "mean", "variance"))
    rows = x.reshape(-1, x.shape[-1])
    return F.batch_norm(rows, mean, variance, scale, bias, training=True, eps=config.eps).reshape(x.shape)


class ResNet(Named):
    """Images b h w c -> features (b, embed).

    Args:
        config: a ``saccade.models.resnet.ResNetConfig``.
        parameters: NumPy arrays by name; drawn from ``seed`` as training begins if None.
        seed: for the beginning.
    """

    def __init__(self, config, *, parameters=None, seed=0):
        super().__init__()
        self.config = config
        parameters = checked("ResNet", resnet.layout(config), parameters, seed)
        own = {name: transformer.under(parameters, name) for name in resnet.STAGES}
        self.stem = NormedStage(resnet.stem, config, own["stem"])
        blocks = (transformer.under(own["blocks"], str(i)) for i in range(config.depth))
        self.blocks = nn.ModuleList(NormedStage(resnet.bottleneck, config, block) for block in blocks)
        self.pool = Stage(resnet.pool, config, own["pool"])

    def forward(self, images):
        return resnet.compose(self._run, images, self.config)

    def _run(self, name, *inputs, **options):
        return self.get_submodule(name)(*inputs, **options)
