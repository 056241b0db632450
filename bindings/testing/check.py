"""``check``: is this function right? And if not, what is the smallest input on which it is wrong?"""

import functools
import importlib
import time
import zlib
from dataclasses import dataclass, field, replace

import numpy as np

from saccade.families import FAMILIES
from saccade.testing import explain
from saccade.testing.claims import Claims
from saccade.testing.frameworks import Framework
from saccade.testing.laws import Violation, laws_for
from saccade.testing.subject import PALETTE, Subject

BUDGETS = {"quick": 20.0, "normal": 120.0, "thorough": 1200.0}  # seconds for a fast function
EXAMPLES = 60  # at most so many inputs from one seed; then comes the next
SHRINKING = 10.0  # seconds that may go into making a failing input smaller
MUTE = 20  # inputs that show little after which a law is done, too


@dataclass(frozen=True)
class Failure:
    """A law that does not hold, with the smallest input found.

    Attributes:
        law: its name.
        says: what is wrong, in two sentences: the law, and what was found against what allowance.
        arguments, options: the input, as NumPy arrays.
        call: (arguments, options, cotangents) of the call that gave what is wrong: the input as the law transformed it.
        what: the name of the output or gradient that is wrong.
        arrays: (what came, the truth) of that output or gradient, or None.
        seed: what cotangents and transformations are drawn from.
    """

    law: str
    says: str
    arguments: tuple
    options: dict
    call: tuple
    what: str
    arrays: tuple | None
    seed: int


@dataclass
class Report:
    """What the oracle says of a function.

    Attributes:
        operation, function, arrays: what was judged.
        counts: for each law (inputs it was judged on, judgements, those of them that were inconclusive).
        failures: at most one a law.
        not_judged: what is not claimed or cannot be judged.
        seed, seconds: of the run.
    """

    operation: str
    function: str
    arrays: str
    seed: int
    counts: dict = field(default_factory=dict)
    failures: list = field(default_factory=list)
    not_judged: list = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self):
        """ "PASS", "FAIL" or "INCONCLUSIVE"."""
        if self.failures:
            return "FAIL"
        judged = sum(judgements for _, judgements, _ in self.counts.values())
        inconclusive = sum(one for _, _, one in self.counts.values())
        return "PASS" if judged and inconclusive <= 0.1 * judged else "INCONCLUSIVE"

    def __str__(self):
        lines = [f"{self.verdict}: {self.function} as {self.operation} of {self.arrays} arrays"]
        for one in self.failures:
            lines += [f"  {one.law}: {one.says}", f"    on {explain.described(one.arguments, one.options)}"]
            lines += [f"    {line}" for line in explain.picture(one.arrays).splitlines()]
        lines += [f"  not judged: {one}" for one in self.not_judged]
        return "\n".join(lines)

    def as_dict(self):
        """All of it in plain types, for JSON."""
        failures = [
            {
                "law": one.law, "says": one.says, "input": explain.described(one.arguments, one.options),
                "picture": explain.picture(one.arrays), "script": explain.script(self, one), "seed": one.seed,
            }
            for one in self.failures
        ]  # fmt: skip
        counts = {
            law: dict(zip(("inputs", "judgements", "inconclusive"), x, strict=True)) for law, x in self.counts.items()
        }
        plain = {
            name: getattr(self, name) for name in ("operation", "function", "arrays", "seed", "not_judged", "seconds")
        }
        return {"verdict": self.verdict, **plain, "laws": counts, "failures": failures}


def check(
    function, operation, *, arrays="numpy", device=None, dtypes=None, gradients=True, vjp=None, claims=None,
    budget="quick", seed=0, only=None, stop_at_first=False, call_seconds=30.0, journal=None,
):  # fmt: skip
    """Judge whether ``function`` is ``operation``: its values, gradients, laws and conduct, on awkward inputs.

    Args:
        function: called with the operation's positional arguments, as arrays of ``arrays``, and with the keyword
            options of the example at hand. Or the text "module:name", which is imported.
        operation: the name of a public operation, such as "attention", or a palette's "assign", "update" or "fit".
        arrays: "numpy", "torch", "cupy" or "jax".
        device: torch's name of a device, or None.
        dtypes: names of dtypes to judge; those claimed if None.
        gradients: whether gradients are judged: by autograd of torch or JAX, else by ``vjp``.
        vjp: ``vjp(arguments, options, cotangents)`` -> a gradient for each name in ``families.GRADIENTS[operation]``,
            None for those not given. If None, ``vjp_beside(function)`` for NumPy and CuPy arrays.
        claims: what the function promises; everything if None.
        budget: "quick", "normal" or "thorough" (20, 120, 1200 s for a fast function), or seconds.
        seed: of all that is drawn.
        only: the name of a law, to judge that one alone.
        stop_at_first: whether to stop at the first law that does not hold.
        call_seconds: how long a call may take, in the main thread.
        journal: called with a line about each input before the function is.

    Returns:
        A ``Report``; its ``verdict`` is "PASS", "FAIL" or "INCONCLUSIVE".

    Raises:
        ValueError: an argument is none of those accepted.
    """
    known = [*(name for names in FAMILIES.values() for name in names), *PALETTE]
    _one_of("operation", operation, known)
    if isinstance(budget, str):
        _one_of("budget", budget, list(BUDGETS))
    claims = claims or Claims()
    if dtypes is not None:
        for name in dtypes:
            _one_of("dtypes", name, list(claims.dtypes))
        claims = replace(claims, dtypes=tuple(dtypes))
    framework = Framework(arrays, device)
    claims = _within(claims, framework)
    name = function if isinstance(function, str) else getattr(function, "__name__", repr(function))
    function = _resolved(function)
    vjp = vjp or (vjp_beside(function) if arrays in ("numpy", "cupy") else None)
    subject = Subject(function, operation, framework, claims, vjp, call_seconds, gradients, journal)
    if only is not None:
        _one_of("only", only, [law.name for law in laws_for(subject)])
    report = Report(operation, name, arrays, seed, not_judged=claims.unclaimed(operation))
    if not subject.gradients and claims.gradients and operation not in PALETTE:
        report.not_judged.append(
            "gradients" if not gradients else f"gradients: {arrays} has no autograd and no vjp= was given"
        )
    _judge(subject, report, BUDGETS.get(budget, budget), only, stop_at_first)
    return report


def conforms(operation, **options):
    """Decorator: turn an implementation into a test that ``check`` passes it; ``options`` are those of ``check``.

    @saccade.testing.conforms("clip_loss", arrays="torch")
    def test_my_loss(image_embeddings, text_embeddings, logit_scale):
        return my_loss(image_embeddings, text_embeddings, logit_scale)
    """

    def decorate(function):
        def test():
            report = check(function, operation, **options)
            assert report.verdict == "PASS", f"\n{report}"

        test.__name__, test.__doc__, test.__module__ = function.__name__, function.__doc__, function.__module__
        return test

    return decorate


def _judge(subject, report, seconds, only, stop_at_first):
    laws = [law for law in laws_for(subject) if only in (None, law.name)]
    start = time.perf_counter()
    # half of the time is for values and gradients, which most faults show in
    shares = {law.name: 4.0 if law.name in ("values", "gradients") else 1.0 for law in laws}
    for law in laws:
        limit = seconds * shares[law.name] / sum(shares.values())
        failure = _law(subject, law, report, limit)
        if failure is not None:
            report.failures.append(failure)
            if stop_at_first:
                break
    report.seconds = time.perf_counter() - start


def _law(subject, law, report, seconds):
    """Judge one law for so many seconds, or until it does not hold; the failure, or None."""
    from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

    from saccade.testing.inputs import INPUTS, PALETTE_INPUTS

    inputs_of = {**INPUTS, **PALETTE_INPUTS}[subject.operation]
    start = time.perf_counter()
    found, counts, telling = [], [0, 0, 0], []
    report.counts[law.name] = counts

    def enough():
        return any(telling) or len(telling) >= MUTE

    def one(inputs, number):
        spent = time.perf_counter() - start
        if (found and spent > found[0] + SHRINKING) or (not found and spent > seconds and enough()):
            raise _TimeIsUp
        arguments, options = inputs
        try:
            judged = law.holds(subject, arguments, options, np.random.default_rng(number))
        except Violation as violation:
            violation.call = subject.called
            found[:] = [found[0] if found else spent, violation, arguments, options, number]
            raise
        if not found:
            counts[0] += 1
            counts[1] += len(judged)
            counts[2] += sum(one.verdict == "INCONCLUSIVE" for one in judged)
            telling.append(_tells(arguments))

    block = 0
    while not found and (time.perf_counter() - start < seconds or not enough()):
        examples = settings(
            max_examples=EXAMPLES, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        )  # fmt: skip
        run = seed(hash_of(report.seed, law.name, block))(
            examples(given(inputs_of(subject.claims), st.integers(0, 2**32 - 1))(one))
        )
        block += 1
        try:
            run()
        except _TimeIsUp:
            break
        except BaseException as error:
            if not found or isinstance(error, KeyboardInterrupt):
                raise
    if not found:
        return None
    _, violation, arguments, options, number = found
    says = f"{law.says} {violation}"
    return Failure(law.name, says, arguments, options, violation.call, violation.what, violation.arrays, number)


def _tells(arguments):
    """Whether an input can show much: with no elements, one number throughout or a dtype's ends most faults hide."""
    return all(_differ(x) for x in arguments if isinstance(x, np.ndarray) and x.ndim and x.dtype.kind not in "iub")


def _differ(x):
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.abs(x.astype(np.float64))
    ordinary = (size > 2.0**-20) & (size < 2.0**20) & (x != x.flat[0]) if x.size else np.zeros(1, bool)
    return ordinary.mean() > 0.25


class _TimeIsUp(BaseException):
    """Ends a run of Hypothesis at once, which takes an ``Exception`` for a failure of the test."""


def hash_of(*parts):
    """A seed that depends on all parts, the same in every process."""
    return zlib.crc32(repr(parts).encode())


def _one_of(name, value, accepted):
    if value not in accepted:
        raise ValueError(f"check: {name}={value!r}, expected one of {', '.join(accepted)}")


def _within(claims, framework):
    """Claims without what the framework's arrays cannot be."""
    layouts = claims.layouts
    if framework.name != "numpy":
        layouts = tuple(x for x in layouts if x != "misaligned")
    if framework.name == "jax":
        layouts = tuple(x for x in layouts if x in ("dense", "read-only"))
    return replace(claims, layouts=layouts or ("dense",))


def _resolved(function):
    if isinstance(function, str):
        module, _, name = function.partition(":")
        if not name:
            raise ValueError(f"check: function={function!r}, expected module:name")
        function = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    return function


def vjp_beside(function):
    """A ``vjp`` made of the ``name_forward`` and ``name_backward`` beside a function, or beside "module:name".

    None if they are not there.
    """
    function = _resolved(function)
    module = importlib.import_module(function.__module__) if getattr(function, "__module__", None) else None
    name = getattr(function, "__name__", "")
    forward, backward = getattr(module, f"{name}_forward", None), getattr(module, f"{name}_backward", None)
    if forward is None or backward is None:
        return None

    def vjp(arguments, options, cotangents):
        _, saved = forward(*arguments, **options)
        return backward(saved, *cotangents)

    return vjp
