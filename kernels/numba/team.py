"""How a kernel that one thread calls comes to run in others, too: in machine code, without the GIL.

A kernel offers itself to the team: it writes its own address, and the arguments it was called with, where helpers look.
They call it just as it was called, and all take items from one counter. So help costs a few writes to memory where
helpers are awake; threads that Python hands work to wait for each other's GIL, which takes longer than many a kernel.

The team's memory is an array of int64, a cache line for each of the numbers below, and then the arguments:

    WANTED   1 until the kernel that is called has offered itself
    ENTRY    the address of what is offered; 0 if nothing is
    OFFERS   how many there were
    INSIDE   helpers that look at what is offered, or run it
    TAKEN    runs of items that were taken
    FAILED   1 if a helper's kernel raised an error
    ASLEEP   helpers that went back to Python
    CLOSED   1 when the team is no more
    POOL     the address of ``GOMP_parallel`` where an OpenMP's threads help instead; 0 otherwise
    HANDS    how many of those there are, the caller counted
"""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import os
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from saccade.kernels.numba.compilation import jit

WANTED, ENTRY, OFFERS, INSIDE, TAKEN, FAILED, ASLEEP, CLOSED, POOL, HANDS, ARGUMENTS = range(0, 88, 8)
SIZE = ARGUMENTS + 512
STAGE = 16  # numbers between the counters of two stages: a cache line each for items taken and items done
LOOKS = 400  # at the team's memory before a helper goes to sleep: about 0.2 ms
I64, I32, BYTES = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
HELPED = ir.FunctionType(ir.VoidType(), [BYTES])
REGION = ir.FunctionType(ir.VoidType(), [HELPED.as_pointer(), BYTES, I32, I32])  # function, its data, threads, flags

# Let another thread run on this processor; nothing, where the system has no such call.
give_way: Any = types.ExternalFunction("sched_yield", types.int32()) if hasattr(os, "sched_yield") else jit(lambda: 0)


def _place(builder, team, index):
    return builder.inttoptr(builder.add(team, I64(8 * index)), I64.as_pointer())


def _atomic(name) -> Any:
    """An atomic operation on one of the team's numbers; it returns what was there before."""

    @intrinsic
    def operation(typingctx, team, index, number):
        def codegen(context, builder, signature, arguments):
            place = builder.add(arguments[0], builder.mul(arguments[1], I64(8)))
            return builder.atomic_rmw(name, builder.inttoptr(place, I64.as_pointer()), arguments[2], "seq_cst")

        return types.int64(types.int64, types.int64, types.int64), codegen

    return operation


add, exchange = _atomic("add"), _atomic("xchg")


@jit
def _now(team, index):
    return add(team, index, 0)


def _entry(module, kernel):
    """(a function of the address of a kernel's arguments that calls it and notes an error, what they are kept as)."""
    given = ir.LiteralStructType([one.type for one in kernel.args[2:]])
    function = ir.Function(module, HELPED, f"{kernel.name}.helped")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    kept = builder.bitcast(function.args[0], given.as_pointer())
    returned, error = (builder.alloca(one.type.pointee) for one in kernel.args[:2])
    arguments = [builder.load(builder.gep(kept, [I32(0), I32(i)])) for i in range(len(given.elements))]
    status = builder.call(kernel, [returned, error, *arguments])
    with builder.if_then(builder.icmp_signed("!=", status, I32(0))):
        team = builder.sub(builder.ptrtoint(function.args[0], I64), I64(8 * ARGUMENTS))
        builder.atomic_rmw("xchg", _place(builder, team, FAILED), I64(1), "seq_cst")
    builder.ret_void()
    return function, given


def _call_from(builder, address, kind, *arguments):
    return builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)


@intrinsic
def offer(typingctx, work):
    """In a kernel (work, …): let helpers run it, too. Work for ``shared``, and 1 if the kernel offered itself, which
    it does not where a helper runs it."""

    def codegen(context, builder, signature, arguments):
        kernel, team = builder.function, builder.extract_value(arguments[0], 0)
        entry, given = _entry(builder.module, kernel)
        assert context.get_abi_sizeof(given) <= 8 * (SIZE - ARGUMENTS)
        offers = cgutils.alloca_once_value(builder, I64(0))
        with builder.if_then(builder.icmp_signed("!=", team, I64(0))):
            wanted = builder.atomic_rmw("xchg", _place(builder, team, WANTED), I64(0), "seq_cst")
            builder.store(wanted, offers)
            with builder.if_then(builder.icmp_signed("!=", wanted, I64(0))):
                kept = builder.bitcast(_place(builder, team, ARGUMENTS), given.as_pointer())
                for i, one in enumerate(kernel.args[2:]):
                    builder.store(one, builder.gep(kept, [I32(0), I32(i)]))
                pool, hands = (builder.load(_place(builder, team, index)) for index in (POOL, HANDS))
                with builder.if_else(builder.icmp_signed("!=", pool, I64(0))) as (pooled, own):
                    with pooled:  # returns when all items are done
                        hands = builder.trunc(hands, I32)
                        _call_from(builder, pool, REGION, entry, builder.bitcast(kept, BYTES), hands, I32(0))
                    with own:
                        address = builder.ptrtoint(entry, I64)
                        builder.atomic_rmw("xchg", _place(builder, team, ENTRY), address, "seq_cst")
                        builder.atomic_rmw("add", _place(builder, team, OFFERS), I64(1), "seq_cst")
        numbers = [builder.extract_value(arguments[0], i) for i in range(3)]
        return context.make_tuple(builder, signature.return_type, [*numbers, builder.load(offers)])

    return types.UniTuple(types.int64, 4)(work), codegen


@intrinsic
def _call(typingctx, entry, kept):
    def codegen(context, builder, signature, arguments):
        _call_from(builder, arguments[0], HELPED, builder.inttoptr(arguments[1], BYTES))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@jit
def close(team):
    """Wait until no helper is in the kernel that was offered."""
    exchange(team, ENTRY, 0)
    while _now(team, INSIDE) != 0:
        give_way()


@numba.njit(nogil=True)  # not cached: numba does not find a generator's code again
def shared(work):
    """The items that fall to the thread that asks, a run at a time.

    Whoever offered the kernel leaves last: what it was called with ends with its call.
    """
    team, items, runs, offers = work
    if team == 0:
        for item in range(items):
            yield item
    else:
        run = add(team, TAKEN, 1)
        while run < runs:
            for item in range(items * run // runs, items * (run + 1) // runs):
                yield item
            run = add(team, TAKEN, 1)
        if offers:
            close(team)


@numba.njit(nogil=True)
def in_step(team, counters, stage, items, runs):
    """The items that fall to the thread that asks, of one stage of a kernel whose threads go from stage to stage
    together: all items of the stage are done when it ends.

    ``counters`` is the address of ``STAGE`` int64 zeros for each stage.
    """
    if team == 0:
        for item in range(items):
            yield item
    else:
        taken = stage * STAGE
        done = taken + STAGE // 2
        run = add(counters, taken, 1)
        while run < runs:
            for item in range(items * run // runs, items * (run + 1) // runs):
                yield item
            add(counters, done, 1)
            run = add(counters, taken, 1)
        while _now(counters, done) < runs:
            give_way()


@jit
def any_left(team, counters, stage, runs):
    """Whether a thread that asks for items of a stage would get some now."""
    return team == 0 or _now(counters, stage * STAGE) < runs


@jit
def serve(team, seen):
    """Run what is offered after the first ``seen`` offers, until nothing was for a while or the team is no more; how
    many there were."""
    looks = 0
    while looks < LOOKS and _now(team, CLOSED) == 0:
        if _now(team, ENTRY) == 0 or _now(team, OFFERS) == seen:
            looks += 1
            give_way()
            continue
        looks = 0
        add(team, INSIDE, 1)
        entry = _now(team, ENTRY)  # which is 0 if the kernel was closed in between
        if entry != 0:
            seen = _now(team, OFFERS)
            _call(entry, team + 8 * ARGUMENTS)
        add(team, INSIDE, -1)
    offers = _now(team, OFFERS)
    add(team, ASLEEP, 1)
    return offers if _now(team, ENTRY) == 0 else seen  # those were closed before they were looked at


@jit
def exchange_asleep(team):
    """How many helpers sleep, all of whom will be woken."""
    return exchange(team, ASLEEP, 0)
