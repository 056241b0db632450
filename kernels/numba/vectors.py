"""Vector code emitted as LLVM IR, where the compiler's own vectorising falls short: the pieces that ``products`` and
``softmax`` are built from."""

# An intrinsic is called without the typing context it is defined with.
# pyright: reportCallIssue=false

import math
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from saccade.kernels.numba.compilation import jit

# Registers of 64 (AVX-512) or 32 bytes; elsewhere LLVM cuts 32 into what there is.
_FEATURES = llvm.get_host_cpu_features()
WIDE = _FEATURES.get("avx512f", False)
DOTS = WIDE and _FEATURES.get("avx512bf16", False)  # whether two bfloat16 products are one instruction
BYTES = 64 if WIDE else 32
I64 = ir.IntType(64)


class _BFloat(ir.Type):
    """LLVM's ``bfloat``, which llvmlite does not name."""

    def _to_string(self):
        return "bfloat"

    __str__ = _to_string

    def __eq__(self, other):
        return isinstance(other, _BFloat)

    def __hash__(self):
        return hash(_BFloat)


class Emitter:
    """Vectors of one dtype in an IR builder; of int32, they are of float32 and hold pairs of bfloat16 at places."""

    def __init__(self, builder, dtype):
        self.builder: Any = builder
        single = dtype in (types.float32, types.int32)
        self.size = 4 if single else 8
        self.lanes = BYTES // self.size
        self.number = ir.FloatType() if single else ir.DoubleType()
        self.vector = ir.VectorType(self.number, self.lanes)
        self.integers = ir.VectorType(ir.IntType(8 * self.size), self.lanes)
        self.exponent_at, self.smallest = (23, -126.0) if single else (52, -1022.0)
        # added to a number, it rounds it to an integer that stands in the low bits as a float's exponent does
        self.to_integer = 1.5 * 2.0**self.exponent_at + 1 - self.smallest
        # Taylor's of 2ʳ for |r| <= 1/2
        self.coefficients = [math.log(2) ** i / math.factorial(i) for i in range(8 if single else 14)]

    def constant(self, value, kind=None):
        """A vector of one value."""
        kind = kind or self.vector
        return ir.Constant(kind, [value] * self.lanes)

    def splat(self, value):
        """A vector of one run-time number."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        lane = self.builder.insert_element(undefined, value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(lane, undefined, self._places([0] * self.lanes))

    def address(self, base, offset):
        """base + offset, in bytes; the offset may be a Python integer."""
        offset = I64(offset) if isinstance(offset, int) else offset
        return self.builder.add(base, offset)

    def load(self, address, kind=None):
        """What stands at an address of any alignment."""
        value = self.builder.load(self.builder.inttoptr(address, (kind or self.vector).as_pointer()))
        value.align = 1
        return value

    def store(self, value, address):
        """Write to an address of any alignment."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer())).align = 1

    def fma(self, a, b, c):
        """a · b + c, rounded once."""
        name = f"llvm.fma.v{self.lanes}f{8 * self.size}"
        module = self.builder.module
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        return self.builder.call(module.globals.get(name) or ir.Function(module, kind, name), [a, b, c])

    def dot(self, a, b, c):
        """c + the two products of each pair of bfloat16 numbers; those too small to be normal are taken as 0."""
        name, halves = "llvm.x86.avx512bf16.dpbf16ps.512", ir.VectorType(_BFloat(), 2 * self.lanes)
        kind = ir.FunctionType(self.vector, [self.vector, halves, halves])
        function = self.builder.module.globals.get(name) or ir.Function(self.builder.module, kind, name)
        return self.builder.call(function, [c, self.builder.bitcast(a, halves), self.builder.bitcast(b, halves)])

    def narrow(self, x):
        """Numbers rounded to bfloat16, as 16-bit integers."""
        b, bits = self.builder, ir.VectorType(ir.IntType(16), self.lanes)
        return b.bitcast(b.fptrunc(x, ir.VectorType(_BFloat(), self.lanes)), bits)

    def paired(self, low, high):
        """Two vectors of 16-bit integers as pairs, the former in the low bits."""
        b = self.builder
        high = b.shl(b.zext(high, self.integers), self.constant(16, self.integers))
        return b.or_(b.zext(low, self.integers), high)

    def exp2(self, x):
        """2ˣ for x up to 2⁷ or 2¹⁰, within 2 units in the last place; 0 where that is too small to be normal, since
        some processors are ten times slower on such numbers. NaN stays NaN."""
        b = self.builder
        shifted = b.fadd(x, self.constant(self.to_integer))
        r = b.fsub(x, b.fsub(shifted, self.constant(self.to_integer)))
        power = self.constant(self.coefficients[-1])
        for c in self.coefficients[-2::-1]:
            power = self.fma(power, r, self.constant(c))
        exponent = b.shl(b.bitcast(shifted, self.integers), self.constant(self.exponent_at, self.integers))
        normal = b.fcmp_unordered("uge", x, self.constant(self.smallest))
        return b.select(normal, b.fmul(power, b.bitcast(exponent, self.vector)), self.constant(0.0))

    def larger(self, x, y):
        """The larger of x and y, and y where x is NaN."""
        return self.builder.select(self.builder.fcmp_ordered("ogt", x, y), x, y)

    def loop(self, count, starts, body):
        """for i in range(count): values = body(i, values), which begin as ``starts``; the last values."""
        b = self.builder
        entry = b.block
        head, inside, after = (b.function.append_basic_block(name) for name in ("loop", "loop.body", "loop.end"))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(I64)
        i.add_incoming(I64(0), entry)
        values = []
        for start in starts:
            phi = b.phi(start.type)
            phi.add_incoming(start, entry)
            values.append(phi)
        b.cbranch(b.icmp_signed("<", i, count), inside, after)
        b.position_at_end(inside)
        following = body(i, values)
        i.add_incoming(b.add(i, I64(1)), b.block)
        for phi, value in zip(values, following, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return values

    def transposed(self, rows):
        """A square of vectors, rows and columns exchanged."""
        half = self.lanes // 2
        for _ in range(int(math.log2(self.lanes))):
            woven = []
            for low, high in zip(rows[:half], rows[half:], strict=True):
                for first in (0, half):
                    places = [first + i // 2 + self.lanes * (i % 2) for i in range(self.lanes)]
                    woven.append(self.builder.shuffle_vector(low, high, self._places(places)))
            rows = woven
        return rows

    def _places(self, places):
        return ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)


@intrinsic
def lanes(typingctx, like):
    """How many numbers of the dtype of ``like`` are in a vector."""

    def codegen(context, builder, signature, arguments):
        return I64(Emitter(builder, signature.args[0]).lanes)

    return types.intp(like), codegen


@intrinsic
def transpose_square(typingctx, zero, source, source_row, target, target_row):
    """target[j, i] = source[i, j] for i, j below ``lanes``; addresses, strides in bytes."""

    def codegen(context, builder, signature, arguments):
        _, source, source_row, target, target_row = arguments
        emit = Emitter(builder, signature.args[0])
        places = range(emit.lanes)
        rows = [emit.load(emit.address(source, builder.mul(source_row, I64(i)))) for i in places]
        for i, row in enumerate(emit.transposed(rows)):
            emit.store(row, emit.address(target, builder.mul(target_row, I64(i))))
        return context.get_dummy_value()

    return types.void(zero, *[types.intp] * 4), codegen


@intrinsic
def widest_vectors(typingctx):
    """Called at the top of a kernel, it has LLVM use vectors of 64 bytes in it, which by itself it avoids."""

    def codegen(context, builder, signature, arguments):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # not among the names llvmlite knows
        return context.get_dummy_value()

    return types.void(), codegen


@jit
def transpose(source, target, rows, columns):
    """target[j, i] = source[i, j]; both are contiguous 2-d scratch, in whole vectors both ways."""
    zero, size = source.dtype.type(0), source.itemsize
    step = lanes(zero)
    for i in range(0, rows, step):
        for j in range(0, columns, step):
            transpose_square(
                zero, source.ctypes.data + size * (i * source.shape[1] + j), size * source.shape[1],
                target.ctypes.data + size * (j * target.shape[1] + i), size * target.shape[1],
            )  # fmt: skip
