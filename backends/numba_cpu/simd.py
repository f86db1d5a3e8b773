"""Vectors in Numba: arrays and indices come in, `width` floats at a time are loaded, computed and stored.

Numba has no vector type: it leaves LLVM to find vectors in loops. This is one: `load`, `store`, `splat`, `fma`
and the operators `+ - * /` compile to LLVM's own vector instructions, which it lowers to AVX or NEON alike. Arrays
are flat (`float32[::1]`); indices count elements and are not checked.

No operation carries a fast-math flag: each is rounded as it is written, so a value never depends on how the compiler
arranges its neighbours. For long sums there are vectors of `WIDTH` doubles too: `extend`, `load_doubles`,
`store_doubles` and the operators.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from .jit import inline
from .target import TARGET

WIDTH = TARGET.width
"""Floats in a vector."""

F32, F64, I32, I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(32), ir.IntType(64)


class _BFloatType(ir.Type):
    """LLVM's bfloat16, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"


BF16 = _BFloatType()


class VectorType(types.Type):
    """Numba's type of a vector of `WIDTH` floating-point numbers of one kind."""

    def __init__(self, name: str, element: ir.Type) -> None:
        self.element = element
        super().__init__(name=f"{name}x{WIDTH}")


vector, doubles = VectorType("float32", F32), VectorType("float64", F64)


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, ir.VectorType(kind.element, WIDTH))


# -- pieces of LLVM IR -----------------------------------------------------------------------------------


def ir_call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [value.type for value in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def ir_constant(value: float, width: int = WIDTH) -> ir.Constant:
    """A vector of one number."""
    return ir.Constant(ir.VectorType(F32, width), [value] * width)


def ir_splat(builder: ir.IRBuilder, value: ir.Value, width: int = WIDTH) -> ir.Value:
    """A vector of one scalar."""
    undefined = ir.Constant(ir.VectorType(value.type, width), ir.Undefined)
    first = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, width), [0] * width))


def ir_fma(
    builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value, *, fused: bool = TARGET.fused
) -> ir.Value:
    """`a * b + c`, rounded once where the processor can."""
    if not fused:
        return builder.fadd(builder.fmul(a, b), c)
    return ir_call(builder, f"llvm.fma.v{a.type.count}f32", a.type, a, b, c)


def ir_dot(
    builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value, *, dot: str = TARGET.dot
) -> ir.Value:
    """`a0 * b0 + a1 * b1 + c`: every float of a and b holds the bits of two bfloat16."""
    pairs = ir.VectorType(BF16, 2 * c.type.count)
    return ir_call(builder, dot, c.type, c, builder.bitcast(a, pairs), builder.bitcast(b, pairs))


def ir_load(builder: ir.IRBuilder, pointer: ir.Value, width: int = WIDTH, element: ir.Type = F32) -> ir.Value:
    """`width` numbers from any float-aligned address."""
    kind = ir.VectorType(element, width)
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=4)


def ir_store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value) -> None:
    """A vector to any float-aligned address."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=4)


def ir_prefetch(builder: ir.IRBuilder, pointer: ir.Value) -> None:
    """Prefetch a cache line into the second-level cache; any address may be given."""
    pointer = builder.bitcast(pointer, F32.as_pointer())
    ir_call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(2), I32(1))


def ir_pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value, index: ir.Value) -> ir.Value:
    """Address of an element of a flat Numba array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _first_lanes(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """A mask of the first `count` lanes."""
    lanes = ir.Constant(ir.VectorType(I32, WIDTH), list(range(WIDTH)))
    return builder.icmp_signed("<", lanes, ir_splat(builder, builder.trunc(count, I32)))


# -- the vocabulary of kernels ---------------------------------------------------------------------------


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """`load(array, index)`: `WIDTH` floats from `array[index]` on."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return ir_load(builder, ir_pointer(context, builder, sig.args[0], *args))

    return vector(array, types.intp), emit


@intrinsic
def fetch(typing: Any, array: Any, index: Any) -> Any:
    """`fetch(array, index)`: prefetch the cache line of `array[index]`; the index may lie past the end."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        ir_prefetch(builder, ir_pointer(context, builder, sig.args[0], *args))
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@intrinsic
def widen(typing: Any, halves: Any, index: Any, bfloat: Any) -> Any:
    """`widen(halves, index, bfloat)`: `WIDTH` floats from the bits of bfloat16 (a float32's upper half) or float16."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        bits, floats = ir.VectorType(ir.IntType(16), WIDTH), ir.VectorType(F32, WIDTH)
        integers = ir.VectorType(I32, WIDTH)
        pointer = ir_pointer(context, builder, sig.args[0], *args[:2])
        value = builder.load(builder.bitcast(pointer, bits.as_pointer()), align=2)
        upper = builder.shl(builder.zext(value, integers), ir.Constant(integers, [16] * WIDTH))
        from_bfloat = builder.bitcast(upper, floats)
        if not TARGET.half:  # the backend refuses float16 weights there
            return from_bfloat
        from_half = builder.fpext(builder.bitcast(value, ir.VectorType(ir.HalfType(), WIDTH)), floats)
        return builder.select(args[2], from_bfloat, from_half)

    return vector(halves, types.intp, types.boolean), emit


@intrinsic
def narrow(typing: Any, halves: Any, index: Any, value: Any) -> Any:
    """`narrow(halves, index, value)`: a vector rounded to float16, its bits to `halves[index]` on, if `TARGET.half`."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        if TARGET.half:  # elsewhere the backend converts canvases with NumPy
            pointer = ir_pointer(context, builder, sig.args[0], *args[:2])
            value = builder.fptrunc(args[2], ir.VectorType(ir.HalfType(), WIDTH))
            builder.store(value, builder.bitcast(pointer, value.type.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(halves, types.intp, vector), emit


@intrinsic
def store_pairs(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """`store_pairs(array, index, value)`: a vector rounded to bfloat16, two of them as one float, if `TARGET.dot`."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        if TARGET.dot:  # elsewhere no product takes pairs
            rounded = builder.fptrunc(args[2], ir.VectorType(BF16, WIDTH))
            pairs = builder.bitcast(rounded, ir.VectorType(F32, WIDTH // 2))
            ir_store(builder, pairs, ir_pointer(context, builder, sig.args[0], *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), emit


@intrinsic
def load_first(typing: Any, array: Any, index: Any, count: Any) -> Any:
    """`load_first(array, index, count)`: the first `count` floats; the other lanes are 0 and not read."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        kind = ir.VectorType(F32, WIDTH)
        pointer = builder.bitcast(ir_pointer(context, builder, sig.args[0], *args[:2]), kind.as_pointer())
        lanes = _first_lanes(builder, args[2])
        name = f"llvm.masked.load.v{WIDTH}f32.p0"
        align = I32(4)
        return ir_call(builder, name, kind, pointer, align, lanes, ir_constant(0.0))

    return vector(array, types.intp, types.intp), emit


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """`store(array, index, value)`: a vector to `array[index]` on."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        ir_store(builder, args[2], ir_pointer(context, builder, sig.args[0], *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), emit


@intrinsic
def store_first(typing: Any, array: Any, index: Any, value: Any, count: Any) -> Any:
    """`store_first(array, index, value, count)`: the vector's first `count` floats; nothing else is written."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        pointer = ir_pointer(context, builder, sig.args[0], *args[:2])
        pointer = builder.bitcast(pointer, args[2].type.as_pointer())
        lanes = _first_lanes(builder, args[3])
        ir_call(builder, f"llvm.masked.store.v{WIDTH}f32.p0", ir.VoidType(), args[2], pointer, I32(4), lanes)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), emit


@intrinsic
def extend(typing: Any, a: Any) -> Any:
    """`extend(a)`: the same numbers as doubles."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.fpext(args[0], ir.VectorType(F64, WIDTH))

    return doubles(vector), emit


@intrinsic
def load_doubles(typing: Any, array: Any, index: Any) -> Any:
    """`load_doubles(array, index)`: `WIDTH` doubles from `array[index]` on."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return ir_load(builder, ir_pointer(context, builder, sig.args[0], *args), WIDTH, F64)

    return doubles(array, types.intp), emit


@intrinsic
def store_doubles(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """`store_doubles(array, index, value)`: a vector of doubles to `array[index]` on."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        ir_store(builder, args[2], ir_pointer(context, builder, sig.args[0], *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, doubles), emit


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """`splat(x)`: a vector of one float32 (a Python float is rounded to it)."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return ir_splat(builder, args[0])

    return vector(types.float32), emit


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """`fma(a, b, c)`: `a * b + c` of vectors."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return ir_fma(builder, *args)

    return vector(vector, vector, vector), emit


@intrinsic
def largest(typing: Any, a: Any, b: Any) -> Any:
    """`largest(a, b)`: the larger of each pair; `b` where either is NaN."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return vector(vector, vector), emit


@intrinsic
def magnitude(typing: Any, a: Any) -> Any:
    """`magnitude(a)`: absolute values."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return ir_call(builder, f"llvm.fabs.v{WIDTH}f32", args[0].type, args[0])

    return vector(vector), emit


@intrinsic
def mark_odd(typing: Any, marks: Any, a: Any) -> Any:
    """`mark_odd(marks, a)`: `marks` with a NaN in every lane where `a` is not finite; 0 marks none.

    a - a is 0 for every finite value and else NaN; its bits are or-ed, which makes no value wait for an addition.
    """

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        marks, value = args
        bits = ir.VectorType(I32, WIDTH)
        odd = builder.bitcast(builder.fsub(value, value), bits)
        return builder.bitcast(builder.or_(builder.bitcast(marks, bits), odd), value.type)

    return vector(vector, vector), emit


def _tree(
    builder: ir.IRBuilder, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]
) -> ir.Value:
    """All lanes combined, halves first: an order that no compiler changes."""
    half = WIDTH // 2
    while half:
        lanes = [*range(half, 2 * half), *range(WIDTH - half)][:WIDTH]
        other = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, WIDTH), lanes))
        value = combine(value, other)
        half //= 2
    return builder.extract_element(value, I32(0))


@intrinsic
def total(typing: Any, a: Any) -> Any:
    """`total(a)`: the sum of the lanes."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return _tree(builder, args[0], builder.fadd)

    return types.float32(vector), emit


@intrinsic
def peak(typing: Any, a: Any) -> Any:
    """`peak(a)`: the largest lane."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return _tree(builder, args[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return types.float32(vector), emit


@intrinsic
def where_below(typing: Any, a: Any, limit: Any, then: Any, otherwise: Any) -> Any:
    """`where_below(a, limit, then, otherwise)`: lane by lane `then` if `a < limit`, else `otherwise` (also for NaN)."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return vector(vector, vector, vector, vector), emit


@intrinsic
def exponential(typing: Any, a: Any) -> Any:
    """`exponential(a)`: e to the power of each lane, within 2 units in the last place; lanes clipped to ±87.

    e^x = 2^n · e^r with n = round(x / ln 2) and |r| ≤ ln 2 / 2: a polynomial of degree 6 for e^r (minimax
    coefficients of Cephes' expf), and n added to the exponent's bits.
    """

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        b, const, (x,) = builder, ir_constant, args
        x = b.select(b.fcmp_ordered(">", x, const(87.0)), const(87.0), x)
        x = b.select(b.fcmp_ordered("<", x, const(-87.0)), const(-87.0), x)
        # adding 1.5 * 2^23 leaves the rounded integer in the low bits of the sum
        magic = const(12582912.0)
        shifted = ir_fma(b, x, const(1.4426950408889634), magic)
        n = b.fsub(shifted, magic)
        r = ir_fma(b, n, const(-0.693359375), x)  # ln 2 in two parts: the first product is exact
        r = ir_fma(b, n, const(2.12194440e-4), r)
        p = const(1.9875691500e-4)
        for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
            p = ir_fma(b, p, r, const(coefficient))
        p = b.fadd(ir_fma(b, p, b.fmul(r, r), r), const(1.0))
        integers = ir.VectorType(I32, WIDTH)
        exponent = b.shl(b.bitcast(shifted, integers), ir.Constant(integers, [23] * WIDTH))
        return b.bitcast(b.add(b.bitcast(p, integers), exponent), x.type)

    return vector(vector), emit


@intrinsic
def power_below(typing: Any, a: Any) -> Any:
    """`power_below(a)`: 2 to the power of each lane, which is at most 0 or NaN, within 2 units; 0 below -126.

    2^x = 2^n · 2^r with n = round(x) and |r| ≤ 1/2: a polynomial of degree 6 for 2^r (minimax coefficients of Cephes'
    exp2f), and n added to the exponent's bits.
    """

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        b, const, (x,) = builder, ir_constant, args
        magic = const(12582912.0)
        shifted = b.fadd(x, magic)
        r = b.fsub(x, b.fsub(shifted, magic))
        p = const(1.535336188319500e-4)
        for coefficient in (
            *(1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2, 2.402264791363012e-1),
            *(6.931472028550421e-1, 1.0),
        ):
            p = ir_fma(b, p, r, const(coefficient))
        integers = ir.VectorType(I32, WIDTH)
        exponent = b.shl(b.bitcast(shifted, integers), ir.Constant(integers, [23] * WIDTH))
        power = b.bitcast(b.add(b.bitcast(p, integers), exponent), x.type)
        return b.select(b.fcmp_ordered("<", x, const(-126.0)), const(0.0), power)

    return vector(vector), emit


@intrinsic
def transpose(
    typing: Any, array: Any, index: Any, stride: Any, scale: Any, to: Any, place: Any, step: Any
) -> Any:
    """`transpose(array, index, stride, scale, to, place, step)`: WIDTH rows become columns, times a vector.

    Row m is `array[index + m * stride]` and the WIDTH - 1 floats behind it; column c is stored from `to[place + c *
    step]` on.
    """

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        array, index, stride, scale, to, place, step = args
        rows = []
        for m in range(WIDTH):
            at = builder.add(index, builder.mul(stride, I64(m)))
            row = ir_load(builder, ir_pointer(context, builder, sig.args[0], array, at))
            rows.append(builder.fmul(row, scale))
        half = WIDTH // 2
        masks = [
            ir.Constant(
                ir.VectorType(I32, WIDTH), [lane for i in range(half) for lane in (k + i, WIDTH + k + i)]
            )
            for k in (0, half)
        ]
        for _ in range(
            WIDTH.bit_length() - 1
        ):  # row m of the first half is interleaved with row m of the second
            rows = [
                builder.shuffle_vector(rows[m], rows[m + half], mask) for m in range(half) for mask in masks
            ]
        for c, column in enumerate(rows):
            at = builder.add(place, builder.mul(step, I64(c)))
            ir_store(builder, column, ir_pointer(context, builder, sig.args[4], to, at))
        return context.get_dummy_value()

    i = types.intp
    return types.void(array, i, i, vector, to, i, i), emit


def _operator(symbol: Any, instruction: str) -> None:
    """Give both kinds of vectors one of Python's operators."""

    @infer_global(symbol)
    class _Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            kind = args[0]
            return signature(kind, kind, kind) if tuple(args) in ((vector,) * 2, (doubles,) * 2) else None

    @lower_builtin(symbol, doubles, doubles)
    @lower_builtin(symbol, vector, vector)
    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return getattr(builder, instruction)(*args)


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_symbol, _instruction)


# -- the same for fewer floats than a vector holds --------------------------------------------------------


@inline
def load_some(array: Any, at: int, count: int) -> Any:
    """`count` ≤ WIDTH floats; where `count` is the constant WIDTH, a plain load is all that is compiled."""
    if count == WIDTH:
        return load(array, at)
    return load_first(array, at, count)


@inline
def store_some(array: Any, at: int, value: Any, count: int) -> None:
    """The first `count` ≤ WIDTH floats of a vector."""
    if count == WIDTH:
        store(array, at, value)
    else:
        store_first(array, at, value, count)
