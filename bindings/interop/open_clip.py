"""open_clip's ``ClipLoss`` and ``SigLipLoss``: same constructor and call, no logits stored, exact across ranks.

    loss = saccade.interop.open_clip.ClipLoss(rank=args.rank, world_size=args.world_size)

Across ranks, value and gradients are those of the whole batch, whatever ``local_loss``, ``gather_with_grad`` and
``dist_impl`` say (of open_clip's own, ``local_loss`` without ``gather_with_grad`` is not, and ``SigLipLoss`` returns a
rank's share). Gradients are multiplied by the number of ranks, as ``DistributedDataParallel`` takes their mean.
"""

import torch
from torch import distributed, nn

from saccade.interop.counts import count
from saccade.torch import ring


class _Loss(nn.Module):
    """What both losses share: how many ranks they were told of, and what they return."""

    def __init__(self, rank, world_size):
        super().__init__()
        self.rank, self.world_size = rank, world_size

    def _check(self, image_features, text_features):
        if image_features.shape != text_features.shape or image_features.ndim != 2:
            raise ValueError(
                f"{type(self).__name__}: {tuple(image_features.shape)=} and {tuple(text_features.shape)=}, expected "
                "(n, e) twice"
            )
        ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if ranks != self.world_size:
            raise ValueError(
                f"{type(self).__name__}: {self.world_size=}, but torch.distributed has {ranks} ranks; construct it "
                f"with world_size={ranks}"
            )
        if not torch.compiler.is_compiling():
            count(f"open_clip {type(self).__name__}")


class ClipLoss(_Loss):
    """The symmetric contrastive loss of normalised features (n, e), in open_clip's signature.

    Args:
        local_loss, gather_with_grad, cache_labels: accepted and without effect: no logits are gathered or stored.
        rank, world_size: of this process among those of ``torch.distributed``.
        use_horovod: is refused.
    """

    def __init__(
        self, local_loss=False, gather_with_grad=False, cache_labels=False, rank=0, world_size=1, use_horovod=False
    ):  # fmt: skip
        if use_horovod:
            raise ValueError(f"ClipLoss: {use_horovod=}, expected False: ranks are those of torch.distributed")
        super().__init__(rank, world_size)
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels

    def forward(self, image_features, text_features, logit_scale, logit_bias=None, output_dict=False):
        """The loss, or with ``output_dict`` {"contrastive_loss": loss}; a bias of all logits does not change it."""
        self._check(image_features, text_features)
        loss = ring.clip_loss(image_features, text_features, _scalar(logit_scale))
        if logit_bias is not None:
            loss = loss + 0 * torch.as_tensor(logit_bias).sum()  # so that its gradient is 0 and not missing
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(_Loss):
    """The pairwise sigmoid loss of normalised features (n, e), in open_clip's signature.

    Args:
        cache_labels: accepted and without effect.
        rank, world_size: of this process among those of ``torch.distributed``.
        dist_impl: "gather" has each rank get all texts at once; with the others they travel round the ring of ranks.
    """

    def __init__(self, cache_labels=False, rank=0, world_size=1, dist_impl=None):
        if dist_impl not in (None, "bidir", "shift", "reduce", "gather"):
            raise ValueError(f"SigLipLoss: {dist_impl=}, expected None, 'bidir', 'shift', 'reduce' or 'gather'")
        super().__init__(rank, world_size)
        self.cache_labels, self.dist_impl = cache_labels, dist_impl

    def forward(self, image_features, text_features, logit_scale, logit_bias, output_dict=False):
        """The loss, or with ``output_dict`` {"contrastive_loss": loss}."""
        self._check(image_features, text_features)
        bias = 0.0 if logit_bias is None else _scalar(logit_bias)
        gather = self.dist_impl == "gather"
        loss = ring.siglip_loss(image_features, text_features, _scalar(logit_scale), bias, gather=gather)
        return {"contrastive_loss": loss} if output_dict else loss


def _scalar(x):
    return x.reshape(()) if isinstance(x, torch.Tensor) else x
