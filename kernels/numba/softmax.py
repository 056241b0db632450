"""Softmax down the columns of a tile of scores, and its gradient: a row is a key, a column a query."""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

from numba import types
from numba.extending import intrinsic

from saccade.kernels.numba.vectors import DOTS, I64, Emitter

UNROLLED = 4


@intrinsic
def online_softmax(typingctx, like, factor, scores, row, keys, shift, total, rescale):
    """Turn one vector of columns of scores into weights 2^(factor · (score − shift)), the shift being the largest score
    so far, and keep account of it. It is taken away first: times a factor, the lowest numbers would be infinite.

    ``scores``, ``shift``, ``total`` and ``rescale`` are addresses, ``row`` the bytes from one row to the next.
    ``shift`` and ``total`` hold the state, −inf and 0 at first; ``rescale`` receives by what is to be multiplied
    whatever was summed with earlier weights.

    ``like`` is of the weights' dtype. Of int32, row j becomes the weights of keys 2 j and 2 j + 1 as pairs of bfloat16,
    which are not what is summed: that is not rounded. Of an odd number of keys the next is to have scores of −inf.
    """

    def codegen(context, builder, signature, arguments):
        like, factor, scores, row, keys, shift, total, rescale = arguments
        pairs = signature.args[0] == types.int32
        if pairs and not DOTS:
            return context.get_dummy_value()
        emit = Emitter(builder, signature.args[1])
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

        def weight_at(i):
            score = emit.load(builder.add(scores, builder.mul(i, row)))
            return emit.exp2(builder.fmul(builder.fsub(score, used), factor))

        def weigh(i, values):
            weight = weight_at(i)
            emit.store(weight, builder.add(scores, builder.mul(i, row)))
            return [builder.fadd(values[0], weight)]

        def weigh_two(i, values):
            first = builder.shl(i, I64(1))
            two = [weight_at(first), weight_at(builder.add(first, I64(1)))]
            emit.store(emit.paired(*map(emit.narrow, two)), builder.add(scores, builder.mul(i, row)))
            return list(map(builder.fadd, values, two))

        if pairs:
            both = emit.loop(builder.lshr(builder.add(keys, I64(1)), I64(1)), [emit.constant(0.0)] * 2, weigh_two)
            part = builder.fadd(*both)
        else:
            (part,) = emit.loop(keys, [emit.constant(0.0)], weigh)
        change = emit.exp2(builder.fmul(builder.fsub(before, used), factor))
        emit.store(emit.fma(emit.load(total), change, part), total)
        emit.store(change, rescale)
        emit.store(after, shift)
        return context.get_dummy_value()

    return types.void(like, factor, *[types.intp] * 6), codegen


@intrinsic
def softmax_gradient(typingctx, factor, scores, grads, row, keys, shift, row_sums):
    """One vector of columns: scores -> weights P = 2^(factor · (score − shift)), and grads dP -> P (dP − row_sums)."""

    def codegen(context, builder, signature, arguments):
        factor, scores, grads, row, keys, shift, row_sums = arguments
        emit = Emitter(builder, signature.args[0])
        gradient_at = _gradients(emit, factor, scores, grads, row, shift, row_sums)

        def each(i, values):
            places, both = gradient_at(i)
            for place, x in zip(places, both, strict=True):
                emit.store(x, place)
            return []

        emit.loop(keys, [], each)
        return context.get_dummy_value()

    return types.void(factor, *[types.intp] * 6), codegen


@intrinsic
def softmax_gradient_pairs(typingctx, factor, scores, grads, row, keys, shift, row_sums, column, pairs):
    """``softmax_gradient`` in bfloat16 and float32, of the vector that begins ``column`` bytes into each row.

    Rows of weights and gradients become bfloat16, beside each other from where a row begins: the vectors before this
    one must have been dealt with. ``pairs`` receives rows of the gradients of keys 2 j and 2 j + 1 as pairs, from this
    vector's place on; of an odd number of keys the next is to have scores of −inf.
    """

    def codegen(context, builder, signature, arguments):
        factor, scores, grads, row, keys, shift, row_sums, column, pairs = arguments
        if not DOTS:
            return context.get_dummy_value()
        emit = Emitter(builder, signature.args[0])
        starts = [builder.add(base, column) for base in (scores, grads)]
        gradient_at = _gradients(emit, factor, *starts, row, shift, row_sums)
        back = builder.sub(column, builder.lshr(column, I64(1)))

        def each(i, values):
            found = []
            for r in range(2):
                places, both = gradient_at(builder.add(builder.shl(i, I64(1)), I64(r)))
                narrow = list(map(emit.narrow, both))
                for place, x in zip(places, narrow, strict=True):
                    emit.store(x, builder.sub(place, back))
                found.append(narrow[1])
            emit.store(emit.paired(*found), builder.add(pairs, builder.mul(i, row)))
            return []

        emit.loop(builder.lshr(builder.add(keys, I64(1)), I64(1)), [], each)
        return context.get_dummy_value()

    return types.void(factor, *[types.intp] * 8), codegen


def _gradients(emit, factor, scores, grads, row, shift, row_sums):
    """A function from i to the places in both tiles of one vector of row i, and (P, P (dP − row_sums)) there."""
    builder = emit.builder
    factor, shift, row_sums = emit.splat(factor), emit.load(shift), emit.load(row_sums)

    def at(i):
        place, beside = (builder.add(base, builder.mul(i, row)) for base in (scores, grads))
        weight = emit.exp2(builder.fmul(builder.fsub(emit.load(place), shift), factor))
        grad = builder.fmul(weight, builder.fsub(emit.load(beside), row_sums))
        none = builder.fcmp_ordered("oeq", weight, emit.constant(0.0))
        return (place, beside), (weight, builder.select(none, weight, grad))

    return at
