"""Operations on JAX arrays: through the oracle, under jit, grad and vmap."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import saccade
from saccade.interop import jax as drop_in
from saccade.testing import Claims, check

RNG = np.random.default_rng(0)
NAMES = (
    "attention", "qkv_attention", "patch_embed", "softmax_cross_entropy", "linear_cross_entropy", "clip_loss",
    "siglip_loss",
)  # fmt: skip
CLAIMS = Claims(layouts=("dense",), zero_sized=False)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


CALLS = {
    "attention": ((normal(2, 3, 5, 8), normal(2, 3, 7, 8), normal(2, 3, 7, 4)), {"causal": True}),
    "qkv_attention": ((normal(2, 5, 3, 2, 8),), {"key_lengths": np.array([2, 5])}),
    "patch_embed": ((normal(2, 8, 8, 3), normal(5, 3, 4, 4), normal(5)), {"mean": (0.5,) * 3, "std": (0.2,) * 3}),
    "softmax_cross_entropy": ((normal(6, 9),), {"labels": np.array([0, 3, -100, 8, 1, 2])}),
    "linear_cross_entropy": ((normal(6, 8), normal(9, 8)), {"labels": np.array([0, 3, -100, 8, 1, 2])}),
    "clip_loss": ((normal(6, 8), normal(6, 8), jnp.float32(3.0)), {}),
    "siglip_loss": ((normal(6, 8), normal(6, 8), jnp.float32(3.0), jnp.float32(-1.0)), {}),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_passes(name):
    options = ("mask", "bias", "causal", "key_lengths", "scale") if name == "attention" else None
    claims = replace(CLAIMS, options=options)
    report = check(getattr(drop_in, name), name, arrays="jax", dtypes=["float32"], claims=claims, budget=3.0)
    assert report.verdict == "PASS", report


@pytest.mark.parametrize("name", NAMES)
def test_under_jit_and_grad_it_is_the_same(name):
    arguments, options = CALLS[name]
    function = getattr(drop_in, name)
    out = function(*arguments, **options)
    forward, backward = (getattr(saccade, f"{name}_{way}") for way in ("forward", "backward"))
    arrays = [np.asarray(x) for x in arguments]
    expected, saved = forward(*arrays, **options)
    assert np.array_equal(out, expected)
    assert np.array_equal(jax.jit(lambda *x: function(*x, **options))(*arguments), out)
    gradients = jax.jit(jax.grad(lambda *x: function(*x, **options).sum(), tuple(range(len(arguments)))))(*arguments)
    for ours, theirs in zip(gradients, backward(saved, np.ones_like(expected)), strict=False):
        assert np.array_equal(ours, theirs)


def test_vmap_is_one_item_after_another():
    query, key, value = (normal(4, 2, 3, 5, 8) for _ in range(3))
    found = jax.vmap(drop_in.attention)(query, key, value)
    each = [drop_in.attention(*one) for one in zip(query, key, value, strict=True)]
    assert np.array_equal(found, np.stack(each))
    slopes = jax.vmap(jax.grad(lambda q, k, v: drop_in.attention(q, k, v).sum()))(query, key, value)
    assert slopes.shape == query.shape


def test_a_bias_has_a_gradient_and_integers_have_none():
    query, key, value = (normal(2, 3, 5, 8) for _ in range(3))
    bias = normal(3, 5, 5)
    slope = jax.grad(lambda bias: drop_in.attention(query, key, value, bias=bias).sum())(bias)
    assert slope.shape == bias.shape and np.abs(slope).max() > 0
    images = jnp.asarray(RNG.integers(0, 256, (2, 8, 8, 3)), jnp.uint8)
    slope = jax.grad(lambda weight: drop_in.patch_embed(images, weight).sum())(normal(5, 3, 4, 4))
    assert np.abs(slope).max() > 0


def test_bad_shapes_are_refused_as_it_is_traced():
    with pytest.raises(ValueError, match=r"attention: key\.shape"):
        jax.jit(drop_in.attention)(normal(2, 3, 5, 8), normal(2, 3, 7, 4), normal(2, 3, 7, 4))
