"""The Triton kernels compiled ahead of time for GPUs that are not here: they fit, and take no more than recorded."""

import pytest
import triton
from triton_builds import COMPILED, TARGETS, built, recorded, recorded_by

from saccade.kernels.triton.memory import INTERPRETED

RECORDED = recorded()


@pytest.mark.parametrize("call, target", COMPILED)
def test_kernels_compile_and_take_no_more_than_recorded(call, target):
    assert not INTERPRETED
    for name, (registers, stack, shared) in built(call, target).items():
        assert shared <= TARGETS[target][1] and (registers or 1) <= 255, (name, registers, shared)
        if triton.__version__ == recorded_by():
            _, most_stack, most_shared = RECORDED[call, target, name]
            assert shared <= most_shared and (stack or 0) <= (most_stack or 0), (name, stack, shared)


def test_every_record_is_of_a_kernel_that_is_built():
    assert {(call, target) for call, target, _ in RECORDED} == set(COMPILED)
