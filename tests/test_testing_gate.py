"""The error gate is tested by planting bugs: wrong attention must fail, right attention must not."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special

from saccade import reference as definition
from saccade.kernels.numba import attention as right
from saccade.testing import gate

SHAPES = [(2, 2, 7, 19, 8), (1, 2, 33, 33, 16), (1, 1, 16, 5, 24)]


def _inputs(dtype, shape, **options):
    rng = np.random.default_rng(3)
    b, h, t, s, d = shape
    arguments = tuple(rng.standard_normal((b, h, n, d)).astype(dtype) for n in (t, s, s))
    return arguments, options


def _wrong_forward(change):
    """attention whose inputs or output were tampered with by ``change``; gradients are right for what it computes."""

    def forward(query, key, value, **options):
        return right.attention_forward(*change(query, key, value, options), **options)

    return SimpleNamespace(attention_forward=forward, attention_backward=right.attention_backward)


def _mask_one_more(query, key, value, options):
    t, s = query.shape[2], key.shape[2]
    options["mask"] = np.arange(s) < np.arange(t)[:, None] + (s - t)
    return query, key, value


def _align_at_the_start(query, key, value, options):
    t, s = query.shape[2], key.shape[2]
    options.update(mask=np.arange(s) <= np.arange(t)[:, None], causal=False)
    return query, key, value


def _forget_the_last_key(query, key, value, options):
    mask = np.ones((query.shape[2], key.shape[2]), bool)
    mask[:, -1] = False
    options["mask"] = mask
    return query, key, value


def _scale_twice(query, key, value, options):
    options["scale"] = 1 / query.shape[-1]
    return query, key, value


def _swap_two_values(query, key, value, options):
    value = value.copy()
    value[..., [0, 1], :] = value[..., [1, 0], :]
    return query, key, value


def _round_to_low_precision(query, key, value, options):
    return tuple(x.astype(np.float16).astype(x.dtype) for x in (query, key, value))


FORWARD_BUGS = {
    "causal off by one": (_mask_one_more, {"causal": True}),
    "causal aligned at the start": (_align_at_the_start, {"causal": True}),
    "last key forgotten": (_forget_the_last_key, {}),
    "scale applied twice": (_scale_twice, {}),
    "two values swapped": (_swap_two_values, {}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("bug", FORWARD_BUGS)
def test_a_wrong_forward_pass_fails(bug, dtype):
    change, options = FORWARD_BUGS[bug]
    arguments, options = _inputs(dtype, SHAPES[0], **options)
    with pytest.raises(AssertionError, match="output: FAIL"):
        gate.assert_right("attention", _wrong_forward(change), arguments, options)


def test_low_precision_inside_a_float32_kernel_fails():
    arguments, options = _inputs("float32", SHAPES[1])
    with pytest.raises(AssertionError, match="output: FAIL"):
        gate.assert_right("attention", _wrong_forward(_round_to_low_precision), arguments, options)


GRADIENT_BUGS = {
    "transposed key gradient": lambda q, k, v, b: (q, k[:, :, ::-1], v, b),
    "query gradient without the scale": lambda q, k, v, b: (q * 2, k, v, b),
    "value gradient missing a part": lambda q, k, v, b: (q, k, v * 0.99, b),
    "zero gradients": lambda q, k, v, b: (q * 0, k * 0, v * 0, b),
    "a NaN": lambda q, k, v, b: (q, np.where(np.arange(k.shape[-1]) == 1, np.nan, k).astype(k.dtype), v, b),
    "a gradient left out": lambda q, k, v, b: (q, None, v, b),
    "a gradient of the wrong shape": lambda q, k, v, b: (q, k[:1, :1], v, b),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("bug", GRADIENT_BUGS)
def test_a_wrong_gradient_fails(bug, dtype):
    def backward(saved, *cotangents):
        return GRADIENT_BUGS[bug](*right.attention_backward(saved, *cotangents))

    wrong = SimpleNamespace(attention_forward=right.attention_forward, attention_backward=backward)
    arguments, options = _inputs(dtype, SHAPES[0])
    with pytest.raises(AssertionError, match="gradient of"):
        gate.assert_right("attention", wrong, arguments, options)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_definition_itself_passes(shape, dtype):
    arguments, options = _inputs(dtype, shape, causal=True, return_lse=True)
    judged = gate.assert_right("attention", definition, arguments, options)
    assert gate.verdict(judged) == "PASS"


def test_a_row_with_no_keys_must_be_zero():
    arguments, options = _inputs("float32", SHAPES[0], mask=np.zeros((7, 19), bool))
    uniform = np.broadcast_to(arguments[2].mean(2, keepdims=True), (2, 2, 7, 8))
    judged = gate.judge("attention", uniform, None, arguments, options)
    assert [one.verdict for one in judged] == ["FAIL"]


def test_a_flushed_factor_counts_times_what_it_may_have_been_multiplied_by():
    tiny = float(np.finfo(np.float32).tiny)
    x, weight = np.array([[tiny / 2]], np.float32), np.array([[100.0]], np.float32)
    standard = gate.Standard("linear", (x, weight))
    # a processor that takes x for 0 is right, and wrong by as much as no factor of 100 explains is wrong
    (flushed,) = standard.judge(np.zeros((1, 1), np.float32))
    (wrong,) = standard.judge(np.full((1, 1), 300 * tiny, np.float32))
    assert flushed.verdict != "FAIL" and wrong.verdict == "FAIL"
    huge = gate.Standard("linear", (np.full((1, 1), 1e30, np.float32), np.full((1, 1), 1e-30, np.float32)))
    assert huge.terms == gate.LARGEST_FACTOR


def test_terms_too_small_to_be_normal_may_be_flushed_and_no_others():
    tiny = float(np.finfo(np.float32).tiny)
    x, weight = np.full((1, 9), 0.9 * tiny, np.float32), np.ones((1, 9), np.float32)
    assert gate.judge("linear", np.zeros((1, 1), np.float32), None, (x, weight))[0].verdict == "PASS"
    x[0, 0] = 3 * tiny
    assert gate.judge("linear", np.zeros((1, 1), np.float32), None, (x, weight))[0].verdict == "FAIL"


def test_nothing_is_judged_where_ordinary_errors_drown_the_truth():
    rng = np.random.default_rng(0)
    row = rng.standard_normal(64)
    x = (np.concatenate([row, -row]) * 1000).astype(np.float16)[None]
    judged = gate.judge("linear", np.zeros((1, 1), np.float16), None, (x, np.ones((1, 128), np.float16)))
    assert [one.verdict for one in judged] in (["INCONCLUSIVE"], ["PASS"])


def test_verdict_counts_what_was_conclusive():
    passed, failed = gate.Judgement("a", "PASS", ""), gate.Judgement("a", "FAIL", "")
    nothing = gate.Judgement("a", "INCONCLUSIVE", "")
    assert gate.verdict([passed] * 9 + [nothing]) == "PASS"
    assert gate.verdict([passed] * 8 + [nothing] * 2) == "INCONCLUSIVE"
    assert gate.verdict([passed] * 100 + [failed]) == "FAIL"


def _with_tanh(x):
    u = np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3)
    return np.float32(0.5) * x * (1 + np.tanh(u))


def _with_erf(x):
    return np.float32(0.5) * x * (1 + scipy.special.erf(x * np.float32(0.5**0.5)))


@pytest.mark.parametrize(("kind", "formula"), [("tanh", _with_tanh), ("erf", _with_erf)])
def test_a_single_gelu_by_its_textbook_formula_passes(kind, formula):
    """Its digits cancel below 0: what is left of one number is the error of tanh or erf."""
    for number in np.linspace(-5, 5, 500):
        x = np.array([number], np.float32)
        (judged,) = gate.judge("gelu", formula(x), None, (x,), {"kind": kind})
        assert judged.verdict != "FAIL", (number, judged)


def test_a_judgement_tells_the_error_and_the_ordinary_one():
    true, ordinary = np.array([3.0, 4.0]), [np.array([3.0, 4.1], np.float32)]
    one = gate.judge_one("output", np.array([3.0, 4.05], np.float32), true, ordinary)
    assert one.verdict == "PASS"
    assert np.isclose(one.error, 0.05 / 5, rtol=1e-5) and np.isclose(one.ordinary, 0.1 / 5, rtol=1e-5)
    assert gate.judge_one("output", np.array([3.0, 5.0], np.float32), true, ordinary).error == pytest.approx(0.2)
    assert np.isnan(gate.judge_one("output", np.zeros(3, np.float32), true, ordinary).error)
