"""``saccade tune`` in Triton's interpreter, with a simulated clock; ``test_triton_interpreted.py`` runs it."""

import numpy as np
import pytest
from triton_interpreter import KERNELS

from saccade.bench import tune
from saccade.kernels.triton import attention, tuned
from saccade.testing import gate

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's own NumPy, at log 0


@pytest.fixture
def no_tiles_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for one in (tuned.file, tuned.kept):
        one.cache_clear()
    yield
    for one in (tuned.file, tuned.kept):
        one.cache_clear()


def launched(monkeypatch):
    """What blocks of queries and keys the passes are launched with from now on."""
    found, options_of = [], attention._options

    def options(name, *arguments, **named):
        options = options_of(name, *arguments, **named)
        found.append((options["BLOCK_T"], options["BLOCK_S"]))
        if options["BLOCK_T"] == 128:
            raise RuntimeError("out of resource: shared memory")
        return options

    monkeypatch.setattr(attention, "_options", options)
    return found


def test_tiles_are_kept_that_are_the_fastest_of_those_that_are_right(no_tiles_kept, monkeypatch):
    wrong, too_large, slow, fast = (
        (16, 16, 4, 1, None),
        (128, 64, 4, 4, None),
        (32, 64, 4, 1, None),
        (32, 32, 8, 2, 128),
    )
    seconds = {wrong: 0.1, too_large: 0.1, slow: 3.0, fast: 0.5, (64, 64, 4, 2, None): 1.0}
    for name, value in {
        "CANDIDATES": (wrong, too_large, slow, fast),
        "LARGEST": {4: 128},
        "HEADS": 2,
        "ROWS": 1,
    }.items():
        monkeypatch.setattr(tune, name, value)
    forward = attention.attention_forward

    def planted(query, key, value, **options):
        out, saved = forward(query, key, value, **options)
        return out + 0.01 * (wrong in tuned._trial.values()), saved

    def timed(call):
        call()
        return seconds[next(iter(tuned._trial.values()))]

    passes = "forward, few keys under a causal mask", "queries", "keys"
    with monkeypatch.context() as only_here:
        only_here.setattr(attention, "attention_forward", planted)
        launched(only_here)
        options = dict(causal=True, device="cpu", seconds_of=timed)
        found = tune.tune("float32", 40, 24, **options)
        assert [(name, tiles, ratio) for name, _, tiles, ratio in found] == [(name, fast, 2.0) for name in passes]
        assert tune.tune("float32", 40, 24, **options) == []
        seconds[fast] = 0.99  # not worth other bits
        found = tune.tune("float32", 40, 24, again=True, **options)
        assert [(own, ratio) for _, own, own_again, ratio in found if own == own_again] == [
            ((64, 64, 4, 2, None), 1.0)
        ] * 3
        seconds[fast] = 0.5
        tune.tune("float32", 40, 24, again=True, **options)

    tuned.kept.cache_clear()  # as a process that begins
    blocks = launched(monkeypatch)
    rng = np.random.default_rng(0)
    arguments = tuple(rng.standard_normal((1, 2, 50, 20)).astype(np.float32) for _ in range(3))  # of the same kind
    lengths, bias = np.array([50]), np.zeros((50, 50), np.float32)
    for options, expected in (
        ({"causal": True}, [fast[:2]] * 3),
        ({}, [(64, 64)] * 3),
        *(({"causal": True, **one}, [(64, 64)] * 3) for one in ({"key_lengths": lengths}, {"bias": bias})),
        ({"causal": True, "mask": np.ones((50, 50), bool)}, [(64, 64)] * 3),
    ):
        blocks.clear()
        judged = gate.assert_right("attention", KERNELS["attention"], arguments, options)
        assert gate.verdict(judged) == "PASS" and blocks == expected, options


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[" * 100_000, '{"interpreter": {"forward": [64, 64, 4]}}']
    + [f'{{"interpreter": {{"forward": [64, {one}, 4, 2, null]}}}}' for one in ("63", "64.0", "true", '"64"', "[64]")],
)
def test_a_file_of_tiles_that_is_something_else_is_left_aside(text, no_tiles_kept):
    tuned.file().parent.mkdir(parents=True)
    tuned.file().write_text(text)
    with pytest.warns(UserWarning, match="left aside"):
        assert tuned.kept() == {}


def test_no_tiles_that_are_right_is_an_error(no_tiles_kept, monkeypatch):
    monkeypatch.setattr(tune.Workload, "is_right", lambda _: False)
    with pytest.raises(ValueError, match="no tiles of the forward pass are right"):
        tune.tune("float32", 40, 24, device="cpu")
    with pytest.raises(ValueError, match="expected one of float16"):
        tune.tune("int8", 40, 24, device="cpu")
    with pytest.raises(ValueError, match="head dimensions of at most 512"):
        tune.tune("float32", 40, 1025, device="cpu")
