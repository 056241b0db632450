"""Where our attention was measured to be no slower than torch's on a processor: what drop-ins take over unasked.

The ranges are those of cases in ``bench/results``, by what kind of processor they were measured on; the tests hold
them to the committed figures. Where there are vectors of 64 bytes but no AMX, those are AMD's Zen 4 and 5: Intel's of
that kind have not been measured.
"""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Range:
    """Attention of ``tokens`` queries, the least and the most, and as many keys, in heads of up to ``width`` numbers.

    ``causal`` and ``gradients`` are False, True, or None for either.
    """

    dtypes: tuple[str, ...]
    tokens: tuple[int, int]
    width: int = 128
    causal: bool | None = None
    gradients: bool | None = None

    def holds(self, dtype, queries, keys, width, causal, gradients):
        """Whether a call is in the range."""
        return (
            dtype in self.dtypes
            and self.tokens[0] <= queries <= self.tokens[1]
            and queries == keys
            and width <= self.width
            and self.causal in (None, causal)
            and self.gradients in (None, gradients)
        )


# by the features that processors must have: of the first that a processor has all of
PROCESSORS = {
    ("avx512f", "amx-bf16"): (Range(("float32",), (128, 4096), width=80, gradients=False),),
    ("avx512f",): (
        Range(("float32",), (50, 4096)),
        Range(("bfloat16",), (50, 4096)),
    ),
}


def ranges_of(features):
    """What was measured on processors with these features."""
    features = set(features)
    return next((ranges for needed, ranges in PROCESSORS.items() if features.issuperset(needed)), ())


@cache
def _own_ranges():
    import llvmlite.binding as llvm

    return ranges_of(name for name, there in llvm.get_host_cpu_features().items() if there)


def is_faster(dtype, queries, keys, width, *, causal, gradients):
    """Whether attention of this kind was measured to be no slower on a processor such as this."""
    return any(one.holds(dtype, queries, keys, width, causal, gradients) for one in _own_ranges())
