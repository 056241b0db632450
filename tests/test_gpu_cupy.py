"""The CuPy backend on a GPU, held to the gate. Run with ``pytest -m gpu``."""

from dataclasses import replace

import numpy as np
import pytest
from support import assert_close64, assert_kernel_passes, kernels_of

from saccade.testing import Claims, check, gate
from saccade.testing.ways import ways

pytestmark = pytest.mark.gpu
CLAIMS = Claims(layouts=("dense", "reversed axes", "every other", "sliced", "broadcast"))


# cuBLAS may choose another kernel, with sums in another order, where arrays lie otherwise: bits are not promised.
PRODUCTS = ("linear", "mlp", "conv2d", "patch_embed", "linear_cross_entropy", "clip_loss", "siglip_loss")
BY_NAME = (
    "attention", "qkv_attention", "varlen_attention", "patch_embed", "layer_norm", "rms_norm", "gelu", "l2_normalize",
    "softmax_cross_entropy", "sigmoid_cross_entropy", "linear_cross_entropy", "clip_loss", "siglip_loss",
)  # fmt: skip


def claims_of(operation):
    return replace(CLAIMS, deterministic=operation not in PRODUCTS)


@pytest.mark.parametrize(("operation", "function"), kernels_of("cupy"))
def test_kernels_pass_the_oracle(operation, function):
    assert_kernel_passes(operation, function, arrays="cupy", claims=claims_of(operation), budget=20.0)


@pytest.mark.parametrize("operation", BY_NAME)
def test_cuda_tensors_reach_these_kernels_by_name(operation):
    import saccade

    def by_cupy(*arguments, **options):
        return getattr(saccade, operation)(*arguments, **options, backend="cupy")

    claims = claims_of(operation)
    report = check(by_cupy, operation, arrays="torch", device="cuda", claims=claims, budget=10.0)
    assert not report.failures, report


def test_cupy_arrays_reach_these_kernels():
    import cupy

    import saccade

    query = cupy.random.standard_normal((1, 2, 5, 8)).astype(cupy.float32)
    out, saved = saccade.attention_forward(query, query, query, causal=True)
    assert isinstance(out, cupy.ndarray) and len(saccade.attention_backward(saved, out)) == 4


def test_16_bit_products_are_summed_in_float32():
    import cupy
    import ml_dtypes

    from saccade.kernels.cupy import device

    rng = np.random.default_rng(0)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((33, 70), (70, 17)))
        true, usual = a.astype(np.float64) @ b.astype(np.float64), [way.matmul(a, b) for way in ways(dtype, 4)]
        for one in (cupy.asarray(a), cupy.asarray(a.T).T, cupy.asarray(np.repeat(a, 2, 1))[:, ::2]):
            for other in (cupy.asarray(b), cupy.asarray(b.T).T):
                out = device.product(one, other)
                judged = gate.judge_one("product", out.get(), true, usual)
                assert out.dtype == np.float32 and judged.verdict == "PASS", judged


def test_palettes_from_cupy_arrays_are_those_of_a_cpu():
    import cupy

    from saccade.palette import Palette

    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    right, mine = Palette.fit(images, 300, iterations=5), Palette.fit(cupy.asarray(images), 300, iterations=5)
    assert np.array_equal(mine.centers, right.centers) and mine.inertia == right.inertia
    tokens = mine.encode(cupy.asarray(images))
    assert np.array_equal(tokens.get(), right.encode(images))
    assert np.array_equal(mine.decode(tokens).get(), right.decode(tokens.get()))


def test_a_model_runs_on_cupy_arrays():
    import cupy

    import saccade
    from saccade import reference
    from saccade.models import vit

    config = vit.variant("Ti/16", classes=10, image_size=64)
    parameters = {name: x.astype(np.float64) for name, x in vit.initialize(config, seed=0).items()}
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    on_gpu = {name: cupy.asarray(x) for name, x in parameters.items()}
    logits = vit.forward(on_gpu, cupy.asarray(images), config, saccade)
    assert_close64(logits.get(), vit.forward(parameters, images, config, reference))
