"""open_clip's losses by ours: its own numbers, on one rank and on several."""

import pytest
import torch

from saccade import interop
from saccade.interop import open_clip as drop_in
from saccade.testing.peers import usable_torchvision

usable_torchvision()

import open_clip  # noqa: E402 (after torchvision can be imported)


def features(n=12, e=16):
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(n, e, generator=generator, dtype=torch.float64) for _ in range(2))
    return [torch.nn.functional.normalize(x, dim=-1).requires_grad_() for x in made]


def value_and_gradients(loss, *arguments, **options):
    out = loss(*arguments, **options)
    out = out["contrastive_loss"] if isinstance(out, dict) else out
    leaves = [x for x in arguments if isinstance(x, torch.Tensor)]
    return out, torch.autograd.grad(out, leaves, allow_unused=True)


@pytest.mark.parametrize("bias", [None, -3.0])
@pytest.mark.parametrize("kind", ["ClipLoss", "SigLipLoss"])
def test_a_loss_is_open_clips(kind, bias):
    images, texts = features()
    scale = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    bias = None if bias is None else torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    arguments = images, texts, scale, bias
    found, gradients = value_and_gradients(getattr(drop_in, kind)(), *arguments, output_dict=True)
    expected, expected_gradients = value_and_gradients(getattr(open_clip.loss, kind)(), *arguments)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_a_scale_of_one_element_is_a_scale():
    images, texts = features()
    scale = torch.tensor([14.3], dtype=torch.float64, requires_grad=True)
    _, (*_, gradient) = value_and_gradients(drop_in.ClipLoss(), images, texts, scale)
    assert gradient.shape == (1,)


def test_constructors_are_open_clips():
    import inspect

    for kind in ("ClipLoss", "SigLipLoss"):
        theirs, ours = (inspect.signature(getattr(one, kind).__init__) for one in (open_clip.loss, drop_in))
        assert [(p.name, p.default) for p in theirs.parameters.values()] == [
            (p.name, p.default) for p in ours.parameters.values()
        ]


def test_bad_calls_are_refused_in_a_sentence():
    images, texts = features()
    with pytest.raises(ValueError, match=r"expected \(n, e\) twice"):
        drop_in.ClipLoss()(images, texts[:3], 1.0)
    with pytest.raises(ValueError, match="construct it with world_size=1"):
        drop_in.SigLipLoss(world_size=2)(images, texts, 1.0, 0.0)
    with pytest.raises(ValueError, match="use_horovod=True, expected False"):
        drop_in.ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="dist_impl='other'"):
        drop_in.SigLipLoss(dist_impl="other")


def test_calls_are_counted():
    interop.reset()
    drop_in.ClipLoss()(*features(), 1.0)
    assert interop.report() == {"open_clip ClipLoss": {"taken over": 1}}
    interop.reset()
