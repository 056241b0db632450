"""The matrix product that blocked kernels are built from: a register tile emitted as LLVM vector code."""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from saccade.kernels.numba.compilation import jit

# One tile keeps ROWS x VECTORS vectors of 64 (AVX-512) or 32 bytes in registers. This does not change results:
# each element is one chain of fused multiply-adds over k, whatever the tile.
_WIDE = llvm.get_host_cpu_features().get("avx512f", False)
_BYTES = 64 if _WIDE else 32
ROWS, VECTORS = (8, 3) if _WIDE else (4, 2)
COLUMNS = {"float32": VECTORS * _BYTES // 4, "float64": VECTORS * _BYTES // 8}


@intrinsic
def _tile_columns(typingctx, like):
    """The number of columns of a tile in the dtype of ``like``."""

    def codegen(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), COLUMNS[str(like)])

    return types.intp(like), codegen


@intrinsic
def _product_tile(typingctx, zero, a, b, c, depth, a_row, a_step, b_step, c_row, accumulate):
    """c[ROWS, tile columns] (+)= a[ROWS, depth] @ b[depth, tile columns]; addresses, strides in elements."""

    def codegen(context, builder, signature, arguments):
        _, a, b, c, depth, a_row, a_step, b_step, c_row, accumulate = arguments
        i64 = ir.IntType(64)
        number = ir.FloatType() if signature.args[0] == types.float32 else ir.DoubleType()
        size = 4 if signature.args[0] == types.float32 else 8
        lanes = _BYTES // size
        vector = ir.VectorType(number, lanes)
        fma_type = ir.FunctionType(vector, [vector] * 3)
        fma_name = f"llvm.fma.v{lanes}f{8 * size}"
        fma = builder.module.globals.get(fma_name) or ir.Function(builder.module, fma_type, fma_name)

        def at(base, elements, kind):
            return builder.inttoptr(builder.add(base, builder.mul(elements, i64(size))), kind.as_pointer())

        def c_at(r, v):
            return at(c, builder.add(builder.mul(c_row, i64(r)), i64(v * lanes)), vector)

        tile = [(r, v) for r in range(ROWS) for v in range(VECTORS)]
        zeros = ir.Constant(vector, [0.0] * lanes)
        before = builder.function.append_basic_block("tile.load")
        loop = builder.function.append_basic_block("tile.loop")
        store = builder.function.append_basic_block("tile.store")
        entry = builder.block
        builder.cbranch(builder.icmp_signed("!=", accumulate, accumulate.type(0)), before, loop)

        builder.position_at_end(before)
        loaded = []
        for r, v in tile:
            value = builder.load(c_at(r, v))
            value.align = size
            loaded.append(value)
        builder.branch(loop)

        builder.position_at_end(loop)
        k = builder.phi(i64)
        k.add_incoming(i64(0), entry)
        k.add_incoming(i64(0), before)
        sums = []
        for old in loaded:
            total = builder.phi(vector)
            total.add_incoming(zeros, entry)
            total.add_incoming(old, before)
            sums.append(total)
        body = builder.function.append_basic_block("tile.body")
        builder.cbranch(builder.icmp_signed("<", k, depth), body, store)

        builder.position_at_end(body)
        columns = []
        for v in range(VECTORS):
            value = builder.load(at(b, builder.add(builder.mul(k, b_step), i64(v * lanes)), vector))
            value.align = size
            columns.append(value)
        updated = []
        for r in range(ROWS):
            element = builder.load(at(a, builder.add(builder.mul(a_row, i64(r)), builder.mul(k, a_step)), number))
            element.align = size
            undefined = ir.Constant(vector, ir.Undefined)
            lane = builder.insert_element(undefined, element, ir.IntType(32)(0))
            splat = builder.shuffle_vector(
                lane, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            )
            updated += [builder.call(fma, [splat, columns[v], sums[r * VECTORS + v]]) for v in range(VECTORS)]
        k.add_incoming(builder.add(k, i64(1)), body)
        for total, new in zip(sums, updated, strict=True):
            total.add_incoming(new, body)
        builder.branch(loop)

        builder.position_at_end(store)
        for (r, v), total in zip(tile, sums, strict=True):
            written = builder.store(total, c_at(r, v))
            written.align = size
        return context.get_dummy_value()

    return types.void(zero, *[types.intp] * 9), codegen


@jit
def wide(like, columns):
    """``columns`` rounded up to whole tiles: the number of columns scratch in the dtype of ``like`` must have."""
    tile = _tile_columns(like.dtype.type(0))
    return (columns + tile - 1) // tile * tile


@jit
def product(a, a_row, a_step, b, c, rows, columns, depth, accumulate):
    """c[:rows, :columns] (+)= A @ b[:depth, :columns] with A[i, k] = a.flat[i * a_row + k * a_step].

    ``a``, ``b`` and ``c`` are contiguous 2-d scratch of one dtype. Whole tiles are computed: ``a`` must be
    readable, and ``c`` writable, up to a multiple of ROWS rows, and ``b`` and ``c`` have ``wide`` columns. Scratch
    must begin as zeros: on numbers too small to be normal, which memory may hold, some processors are ten times slower.
    With ``a_row = 1`` and ``a_step = a.shape[1]`` it is the product with the transpose of ``a``.
    """
    zero = c.dtype.type(0)
    size = c.itemsize
    width = _tile_columns(zero)
    for j in range(0, columns, width):
        for i in range(0, rows, ROWS):
            _product_tile(
                zero, a.ctypes.data + size * i * a_row, b.ctypes.data + size * j,
                c.ctypes.data + size * (i * c.shape[1] + j), depth, a_row, a_step, b.shape[1], c.shape[1], accumulate,
            )  # fmt: skip
