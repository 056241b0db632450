"""Softmax down the columns of a tile of scores, and its gradient: a row is a key, a column a query."""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

from numba import types
from numba.extending import intrinsic

from saccade.kernels.numba.vectors import I64, Emitter

UNROLLED = 4


@intrinsic
def online_softmax(typingctx, factor, scores, row, keys, shift, total, rescale):
    """Turn one vector of columns of scores into weights 2^(factor · (score − shift)), the shift being the largest score
    so far, and keep account of it. It is taken away first: times a factor, the lowest numbers would be infinite.

    ``scores``, ``shift``, ``total`` and ``rescale`` are addresses, ``row`` the bytes from one row to the next.
    ``shift`` and ``total`` hold the state, −inf and 0 at first; ``rescale`` receives by what is to be multiplied
    whatever was summed with earlier weights.
    """

    def codegen(context, builder, signature, arguments):
        factor, scores, row, keys, shift, total, rescale = arguments
        emit = Emitter(builder, signature.args[0])
        factor, lowest = emit.splat(factor), emit.constant(float("-inf"))
        last = builder.sub(keys, I64(1))

        def highest(i, values):
            found = []
            for r, value in enumerate(values):
                j = builder.add(builder.mul(i, I64(UNROLLED)), I64(r))
                j = builder.select(builder.icmp_signed("<", j, last), j, last)
                found.append(emit.larger(emit.load(builder.add(scores, builder.mul(j, row))), value))
            return found

        rounds = builder.sdiv(builder.add(keys, I64(UNROLLED - 1)), I64(UNROLLED))
        top, *others = emit.loop(rounds, [lowest] * UNROLLED, highest)
        for other in others:
            top = emit.larger(top, other)
        before = emit.load(shift)
        after = emit.larger(top, before)
        # Infinite scores of either sign cannot be shifted: with none above −inf all weights are 0, and +inf gives NaN.
        used = builder.select(builder.fcmp_ordered("oeq", after, lowest), emit.constant(0.0), after)

        def weigh(i, values):
            place = builder.add(scores, builder.mul(i, row))
            weight = emit.exp2(builder.fmul(builder.fsub(emit.load(place), used), factor))
            emit.store(weight, place)
            return [builder.fadd(values[0], weight)]

        (part,) = emit.loop(keys, [emit.constant(0.0)], weigh)
        change = emit.exp2(builder.fmul(builder.fsub(before, used), factor))
        emit.store(emit.fma(emit.load(total), change, part), total)
        emit.store(change, rescale)
        emit.store(after, shift)
        return context.get_dummy_value()

    return types.void(factor, *[types.intp] * 6), codegen


@intrinsic
def softmax_gradient(typingctx, factor, scores, grads, row, keys, shift, row_sums):
    """One vector of columns: scores -> weights P = 2^(factor · (score − shift)), and grads dP -> P (dP − row_sums)."""

    def codegen(context, builder, signature, arguments):
        factor, scores, grads, row, keys, shift, row_sums = arguments
        emit = Emitter(builder, signature.args[0])
        factor, shift, row_sums = emit.splat(factor), emit.load(shift), emit.load(row_sums)

        def each(i, values):
            place, beside = (builder.add(base, builder.mul(i, row)) for base in (scores, grads))
            weight = emit.exp2(builder.fmul(builder.fsub(emit.load(place), shift), factor))
            emit.store(weight, place)
            grad = builder.fmul(weight, builder.fsub(emit.load(beside), row_sums))
            none = builder.fcmp_ordered("oeq", weight, emit.constant(0.0))
            emit.store(builder.select(none, weight, grad), beside)
            return []

        emit.loop(keys, [], each)
        return context.get_dummy_value()

    return types.void(factor, *[types.intp] * 6), codegen
