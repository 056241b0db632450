"""Contrastive losses of many pairs: judged in rows against sums over all, which agree with the definition."""

import numpy as np
import pytest

from saccade.bench import cases, judging, pairs
from saccade.bench.problem import Problem
from saccade.bench.providers import provider
from saccade.testing import gate

LOSSES = ("clip_loss", "siglip_loss")


def drawn(operation, n=1100, e=24, dtype="float32"):
    """A case with gradients, its inputs and the part that is judged."""
    one = cases.Case(operation, {"n": n, "e": e}, dtype, gradients=True)
    arguments, options = one.inputs(0)
    cotangents = gate.draw_cotangents((np.ones((), arguments[2].dtype),), 0)
    part = judging.part_of_pairs(one, arguments, options, cotangents, np.random.default_rng(0))
    return one, arguments, cotangents, part


@pytest.mark.parametrize("operation", LOSSES)
def test_the_truth_is_the_definitions(operation, monkeypatch):
    """To float64, of several blocks and strips that do not come out even; of 64 pairs every row is judged."""
    monkeypatch.setattr(pairs, "BLOCK", 24)
    monkeypatch.setattr(pairs, "STRIP", 7)
    _, arguments, cotangents, part = drawn(operation, n=64)
    wide, widened = (tuple(x.astype(np.float64) for x in xs) for xs in (arguments, cotangents))
    truth = part.standard
    judged = gate.judge(operation, tuple(map(np.asarray, truth.outputs)), truth.gradients, wide, {}, widened)
    assert gate.verdict(judged) == "PASS", judged


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operation", LOSSES)
def test_what_is_right_passes_and_what_is_wrong_fails(operation, dtype):
    one, arguments, cotangents, part = drawn(operation, dtype=dtype)
    assert judging.is_large(one)
    problem = Problem(operation, arguments, {}, cotangents)
    forward, backward = provider("saccade")(problem)
    problem.fill(part.whole_arguments, part.whole_cotangents)
    assert {x.verdict for x in judging.judge_case(problem, part, forward, backward)} == {"PASS"}
    loss, gradients = forward(), backward()

    def verdicts(loss, gradients):
        return {x.verdict for x in judging.judge_case(problem, part, lambda: loss, lambda: gradients)}

    some = slice(0, 40)  # two runs of the 64 that a row is taken of
    for i, gradient in enumerate(gradients):
        bad = np.array(gradient)
        bad[some if bad.ndim else ...] *= bad.dtype.type(1.1)
        assert "FAIL" in verdicts(loss, (*gradients[:i], bad, *gradients[i + 1 :])), i
    assert "FAIL" in verdicts(loss * loss.dtype.type(1.01), gradients)


@pytest.mark.parametrize("operation", LOSSES)
def test_sums_left_out_of_a_block_are_found(operation):
    one, arguments, cotangents, part = drawn(operation)
    problem = Problem(operation, arguments, {}, cotangents)
    provider("saccade")(problem)  # which takes its inputs
    problem.fill(part.whole_arguments, part.whole_cotangents)
    images, texts, *factors = arguments
    fewer = texts[:-64]  # a kernel that forgets its last block of texts: no negatives, and no gradient of theirs
    other = Problem(operation, (images[:-64], fewer, *factors), {}, cotangents)
    forward, backward = provider("saccade")(other)
    filled = [np.concatenate([x, np.zeros((64, x.shape[1]), x.dtype)]) for x in backward()[:2]]
    judged = judging.judge_case(problem, part, forward, lambda: (*filled, *backward()[2:]))
    assert [x.verdict for x in judged].count("FAIL") >= 3


@pytest.mark.parametrize("operation", LOSSES)
def test_sums_of_float32_products_are_as_good_as_the_allowance_asks(operation, monkeypatch):
    _, arguments, cotangents, _ = drawn(operation, n=1500, e=512)
    monkeypatch.setattr(pairs, "WIDE", 0)
    at = (np.arange(0, 1500, 25),) * 2
    narrow = pairs.Standard(operation, arguments, cotangents, at)
    monkeypatch.undo()
    wide = pairs.Standard(operation, arguments, cotangents, at)
    for mine, its, ordinary in zip(
        (*narrow.outputs, *narrow.gradients), (*wide.outputs, *wide.gradients),
        zip(*((*outputs, *gradients) for outputs, gradients in wide._ordinary), strict=True), strict=True,
    ):  # fmt: skip
        allowed = 2 * max(np.abs(np.asarray(one, np.float64) - its).max() for one in ordinary)
        assert np.abs(mine - its).max() < 0.1 * allowed


@pytest.mark.parametrize("gradients", [True, False])
def test_what_is_true_is_kept_for_the_next_who_asks(gradients, tmp_path):
    arguments, _ = cases.case("siglip_loss", 50, 8).inputs(0)
    at, cotangents = (np.arange(0, 50, 7),) * 2, (np.ones((), np.float32),) if gradients else ()
    first = pairs.Standard("siglip_loss", arguments, cotangents, at, tmp_path / "kept.npz")
    again = pairs.Standard("siglip_loss", arguments, cotangents, (), tmp_path / "kept.npz")  # which needs no rows
    for mine, its in zip((first, *first._ordinary), (again, *again._ordinary), strict=True):
        mine, its = ((one.outputs, one.gradients) if isinstance(one, pairs.Standard) else one for one in (mine, its))
        assert len(mine[0]) == 1 and len(mine[1]) == 4 * gradients
        for x, y in zip((*mine[0], *mine[1]), (*its[0], *its[1]), strict=True):
            np.testing.assert_array_equal(x, y)


def test_float64_is_not_judged():
    assert not pairs.judgeable("float64")
