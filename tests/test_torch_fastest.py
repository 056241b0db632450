"""Who computes attention of tensors on a GPU, as far as that is decided before anything is launched."""

import pytest
import torch

import saccade
from saccade.torch import fastest, sdpa


def heads(n, d, b=2, dtype=torch.bfloat16):
    return torch.empty(b, 3, n, d, dtype=dtype, device="meta")


def chosen(*three, **options):
    options = {"mask": None, "bias": None, "causal": False, "key_lengths": None} | options
    return fastest.fastest("attention_forward", three, options)


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(fastest, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(fastest, "_has_cupy", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("n", "d", "backend"),
    [
        (197, 64, "cupy"),
        (257, 88, "cupy"),
        (50, 104, "cupy"),
        (77, 104, "sdpa"),
        (577, 64, "sdpa"),
        (197, 144, "triton"),
    ],
)
def test_the_table_decides(hopper, n, d, backend):
    assert chosen(*(heads(n, d) for _ in range(3))) == backend
    packed = torch.empty(2, n, 3, 3, d, dtype=torch.bfloat16, device="meta")
    assert fastest.fastest("qkv_attention_forward", (packed,), {"causal": False, "key_lengths": None}) == backend


def test_what_is_not_on_offer_is_tritons(hopper, monkeypatch):
    three = [heads(577, 64) for _ in range(3)]
    assert chosen(*three, causal=True) == "sdpa"
    assert chosen(heads(5, 64), *three[1:], causal=True) == "triton"  # causal from the end
    assert chosen(*three, key_lengths=torch.tensor([3, 4])) == "triton"
    assert chosen(*three, mask=torch.ones(577, 577, dtype=torch.bool)) == "triton"
    assert chosen(*three, bias=three[0]) == "triton"
    assert chosen(*(heads(577, 60) for _ in range(3))) == "triton"
    assert chosen(*(heads(197, 64, dtype=torch.float32) for _ in range(3))) == "triton"
    sliced = [heads(197, 68)[..., :64] for _ in range(3)]  # rows that begin at multiples of 8 bytes
    assert chosen(*sliced) == "triton"
    assert fastest.fastest("attention_backward", (), {}) == "triton"
    monkeypatch.setattr(fastest, "_has_cupy", lambda: False)
    assert chosen(*(heads(197, 64) for _ in range(3))) == "triton"
    monkeypatch.setattr(fastest, "_capability", lambda device: (8, 0))
    assert chosen(*three) == "triton"


def test_cudnn_refuses_what_it_has_not():
    three = [torch.ones(1, 2, n, 8, dtype=torch.float16) for n in (5, 7, 7)]
    options = dict(mask=None, bias=None, causal=False, key_lengths=None, scale=None, return_lse=False)
    for changed in ({"causal": True}, {"key_lengths": torch.tensor([3])}, {"bias": three[0]}):
        with pytest.raises(ValueError, match="backend='sdpa' takes several 16-bit queries"):
            sdpa.attention_forward(*three, **options | changed)
    with pytest.raises(ValueError, match="multiple of 8 up to 128"):
        sdpa.attention_forward(*(x[..., :7] for x in three), **options)
    with pytest.raises(ValueError, match="backend='sdpa' does not take cpu tensors, expected one of numba, reference"):
        saccade.attention(*three, backend="sdpa")


def test_cudnn_is_called_and_leaves_what_others_take(monkeypatch):
    """Its kernels played by torch's own arithmetic: where things go, and that gradients of lse are Triton's."""
    called = []

    def forward(query, key, value, bias, with_lse, dropout, causal, debug, *, scale):
        called.append(("forward", causal))
        scores = scale * query.float() @ key.float().mT
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
        out = (scores.softmax(-1) @ value.float()).to(query.dtype)
        return out.transpose(1, 2).contiguous().transpose(1, 2), scores.logsumexp(-1, keepdim=True)

    def backward(grad_out, query, key, value, out, lse, *rest, scale):
        assert lse.shape == (*query.shape[:3], 1) and rest[5:7] == (query.shape[2], key.shape[2])
        called.append(("backward", rest[-1]))
        return query, key, value

    monkeypatch.setattr(sdpa, "_FORWARD", forward)
    monkeypatch.setattr(sdpa, "_BACKWARD", backward)
    monkeypatch.setattr(sdpa, "_of_own", lambda saved, grad_out, grad_lse: called.append(("own",)))
    three = [torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(i)).half() for i in range(3)]
    options = dict(mask=None, bias=None, causal=True, key_lengths=None, scale=None, return_lse=True)
    (out, lse), saved = sdpa.attention_forward(*three, **options)
    right, its_lse = saccade.attention(*three, causal=True, return_lse=True)
    assert out.is_contiguous() and torch.allclose(out, right, atol=2e-3) and torch.allclose(lse, its_lse, atol=1e-4)
    assert saved[-1] == 8**-0.5 and sdpa.attention_backward(saved, out)[3] is None
    sdpa.attention_backward(saved, out, lse)
    packed = torch.stack([x.transpose(1, 2) for x in three], 2)
    merged, kept = sdpa.qkv_attention_forward(packed, causal=True, key_lengths=None, scale=None)
    assert torch.equal(merged, out.transpose(1, 2)) and merged.is_contiguous()
    (grad,) = sdpa.qkv_attention_backward(kept, merged)
    assert torch.equal(grad, packed)
    assert called == [("forward", True), ("backward", True), ("own",), ("forward", True), ("backward", True)]
