"""The matrix product that blocked kernels are built from: register tiles emitted as LLVM vector code."""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

from numba import types
from numba.extending import intrinsic

from saccade.kernels.numba.compilation import jit
from saccade.kernels.numba.vectors import BYTES, DOTS, I64, WIDE, Emitter, lanes

# Rows of a tile that is so many vectors wide: sums, a row of B and one number of A are to fit the registers. This does
# not change results: each element is one chain of fused multiply-adds over k, whatever the tile.
ROWS = (0, 8, 8, 8, 6) if WIDE else (0, 6, 6)


@intrinsic
def _tile(typingctx, zero, vectors, a, b, c, rows, depth, a_row, a_step, b_step, c_row, accumulate):
    """c[:rows, :vectors] (+)= a[:rows, :depth] @ b[:depth, :vectors], at most ROWS[vectors] rows; strides in bytes.

    ``zero`` is of the operands' dtype. An int32 is a pair of bfloat16 numbers, two steps of the sum, and sums are
    float32 then; without ``DOTS`` there is no such product.
    """

    def codegen(context, builder, signature, arguments):
        _, chosen, *others = arguments
        if signature.args[0] == types.int32 and not DOTS:
            return context.get_dummy_value()
        after = builder.function.append_basic_block("tile.end")
        which = builder.switch(chosen, after)
        for vectors in range(1, len(ROWS)):
            case = builder.function.append_basic_block("tile")
            which.add_case(vectors, case)
            builder.position_at_end(case)
            emit = Emitter(builder, signature.args[0])
            add = emit.dot if signature.args[0] == types.int32 else emit.fma
            _emit_tile(emit, add, vectors, *others)
            builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(zero, *[types.intp] * 11), codegen


def _emit_tile(emit, add, vectors, a, b, c, rows, depth, a_row, a_step, b_step, c_row, accumulate):
    # Rows beyond those that are there are the last one again, so that nothing else is read or written.
    builder = emit.builder
    step = emit.size * emit.lanes

    def row(base, stride, r):
        last = builder.sub(rows, I64(1))
        place = builder.select(builder.icmp_signed("<", I64(r), last), I64(r), last)
        return builder.add(base, builder.mul(stride, place))

    a_rows = [row(a, a_row, r) for r in range(ROWS[vectors])]
    places = [emit.address(row(c, c_row, r), v * step) for r in range(ROWS[vectors]) for v in range(vectors)]
    entry = builder.block
    before, start = (builder.function.append_basic_block(name) for name in ("tile.load", "tile.start"))
    builder.cbranch(builder.icmp_signed("!=", accumulate, accumulate.type(0)), before, start)
    builder.position_at_end(before)
    loaded = [emit.load(place) for place in places]
    builder.branch(start)
    builder.position_at_end(start)
    sums = []
    for old in loaded:
        total = builder.phi(emit.vector)
        total.add_incoming(emit.constant(0.0), entry)
        total.add_incoming(old, before)
        sums.append(total)

    def body(k, values):
        (at_a, at_b), sums = values[:2], values[2:]
        columns = [emit.load(emit.address(at_b, v * step)) for v in range(vectors)]
        updated = []
        for r, a_address in enumerate(a_rows):
            element = emit.splat(emit.load(builder.add(a_address, at_a), emit.number))
            updated += [add(element, columns[v], sums[r * vectors + v]) for v in range(vectors)]
        return [builder.add(at_a, a_step), builder.add(at_b, b_step), *updated]

    _, _, *sums = emit.loop(depth, [I64(0), b, *sums], body)
    for place, total in zip(places, sums, strict=True):
        emit.store(total, place)


@jit
def wide(like, columns):
    """``columns`` rounded up to whole vectors: the number of columns scratch in the dtype of ``like`` must have."""
    vector = lanes(like.dtype.type(0))
    return (columns + vector - 1) // vector * vector


@jit
def _panel(vectors):
    """How many vectors wide the next tile is, of so many that are left: threes and fours keep the registers full."""
    widest = len(ROWS) - 1
    return vectors if vectors <= widest else 3 if vectors % 4 and WIDE else widest


@jit
def multiply(zero, a, a_row, a_step, b, b_step, c, c_row, rows, columns, depth, accumulate):
    """c[:rows, :columns] (+)= A @ b[:depth, :columns], A[i, k] at address a + i · a_row + k · a_step.

    a, b and c are addresses of numbers of the dtype of ``zero``, strides are in bytes; the elements of a row of b or
    c are neighbours. Whole vectors of b and c are read and written: both must have ``wide`` columns. Of int32, a and b
    are pairs of bfloat16 along k, ``depth`` of them, and c is float32.
    """
    size = lanes(zero)
    left, at = (columns + size - 1) // size, 0
    while left > 0:
        taken = _panel(left)
        for i in range(0, rows, ROWS[taken]):
            _tile(
                zero, taken, a + i * a_row, b + at, c + at + i * c_row, min(ROWS[taken], rows - i), depth, a_row,
                a_step, b_step, c_row, accumulate,
            )  # fmt: skip
        at += taken * BYTES
        left -= taken


@jit
def product(a, a_row, a_step, b, c, rows, columns, depth, accumulate):
    """c[:rows, :columns] (+)= A @ b[:depth, :columns] with A[i, k] = a.flat[i * a_row + k * a_step].

    ``a``, ``b`` and ``c`` are contiguous 2-d scratch of one dtype, ``b`` and ``c`` of ``wide`` columns. Scratch must
    begin as zeros: on numbers too small to be normal, which memory may hold, some processors are ten times slower.
    With ``a_row = 1`` and ``a_step = a.shape[1]`` it is the product with the transpose of ``a``.
    """
    size = c.itemsize
    multiply(
        c.dtype.type(0), a.ctypes.data, size * a_row, size * a_step, b.ctypes.data, size * b.shape[1], c.ctypes.data,
        size * c.shape[1], rows, columns, depth, accumulate,
    )  # fmt: skip
