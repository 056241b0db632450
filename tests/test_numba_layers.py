"""What the gate cannot see of numba's layers, patches and convolutions: tails, zero widths, overflow, blocks."""

import ml_dtypes
import numpy as np
import pytest

from saccade import reference
from saccade.kernels.numba import convolution, layers, patches
from saccade.testing import gate


@pytest.mark.parametrize(("dtype", "lowest", "units"), [(np.float32, -12.5, 5), (np.float64, -36.0, 5)])
def test_gelu_keeps_its_relative_precision_in_the_tail(dtype, lowest, units):
    """Far in the tail an implementation by 1 + erf has no digits left, one by exp(−x²/2) loses those of x²."""
    x = np.linspace(lowest, 9, 2001).astype(dtype)[1::2, None]
    true = reference.gelu(x.astype(np.longdouble))
    error = np.abs(layers.gelu(x) - true)
    assert (error <= units * np.finfo(dtype).eps * np.abs(true)).all()


def test_zero_widths():
    def ones(*shape):
        return np.ones(shape, np.float32)

    for module, operation, arguments in (
        (layers, "linear", (ones(3, 0), ones(5, 0), ones(5))),
        (layers, "linear", (ones(3, 4), ones(0, 4), ones(0))),
        (layers, "layer_norm", (ones(3, 0), ones(0), ones(0))),
        (layers, "rms_norm", (ones(3, 0), ones(0))),
        (layers, "gelu", (ones(),)),
        (layers, "l2_normalize", (ones(3, 0),)),
        (layers, "embedding", (np.zeros((2, 0), int), ones(5, 3))),
        (patches, "patch_embed", (ones(2, 4, 4, 3), ones(0, 3, 2, 2), ones(0))),
        (patches, "patch_embed", (ones(2, 4, 4, 0), ones(5, 0, 2, 2), ones(5))),
        (convolution, "conv2d", (ones(2, 4, 4, 0), ones(5, 0, 2, 2), ones(5))),
        (convolution, "conv2d", (ones(2, 4, 4, 3), ones(0, 3, 2, 2), ones(0))),
    ):
        out, saved = getattr(module, f"{operation}_forward")(*arguments)
        gradients = getattr(module, f"{operation}_backward")(saved, np.ones_like(out))
        floating = [x for x in arguments if x.dtype.kind == "f"]
        assert [g.shape for g in gradients if g is not None] == [x.shape for x in floating], operation


def test_overflow_of_a_16_bit_result_is_infinite_and_silent():
    x, weight = np.full((2, 4), 1000, np.float16), np.full((3, 4), 100, np.float16)
    assert np.isposinf(layers.linear(x, weight)).all()
    assert np.isposinf(patches.patch_embed(x.reshape(2, 2, 2, 1), weight.reshape(3, 1, 2, 2))).all()


def test_layouts_of_vectors_do_not_build_a_kernel_again():
    x, scale = np.random.default_rng(0).standard_normal((2, 9, 8)).astype(np.float32)[:, :, ::1]
    read_only = scale[0].copy()
    read_only.flags.writeable = False
    layers.layer_norm(x, scale[0].copy())
    built = len(layers.norm_rows.signatures)
    layers.layer_norm(x, read_only)
    layers.layer_norm(x, np.ascontiguousarray(scale.T).T[0])
    layers.layer_norm(x.astype(ml_dtypes.bfloat16), scale[0].astype(ml_dtypes.bfloat16))
    assert len(layers.norm_rows.signatures) == built


def test_blocks_of_a_convolution_add_up(monkeypatch):
    rng = np.random.default_rng(0)
    x, weight, grad = (rng.standard_normal(s) for s in ((2, 9, 7, 3), (4, 3, 3, 2), (2, 5, 4, 4)))
    options = {"stride": 2, "padding": 1}
    for block in (1, 700, 1 << 22):
        monkeypatch.setattr(convolution, "_BLOCK", block)
        out, saved = convolution.conv2d_forward(x, weight, **options)
        gradients = convolution.conv2d_backward(saved, grad)
        judged = gate.judge("conv2d", out, gradients, (x, weight), options, (grad,))
        assert gate.verdict(judged) == "PASS", judged


@pytest.mark.parametrize("module", [reference, patches])
def test_patches_spare_the_gradient_of_images(module):
    rng = np.random.default_rng(0)
    given = (rng.standard_normal(shape) for shape in ((2, 4, 6, 3), (5, 3, 2, 2), (5,)))
    out, saved = module.patch_embed_forward(*given, std=(1, 2, 3))
    of_images, *others = module.patch_embed_backward(saved, out)
    spared, *again = module.patch_embed_backward(saved, out, of_images=False)
    assert of_images.shape == (2, 4, 6, 3) and spared is None
    assert all(map(np.array_equal, others, again))
