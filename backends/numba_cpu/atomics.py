"""Words of memory that threads share: an int64 array and an index come in, one atomic read or write is done.

A kernel's threads draw the numbers of its items from one counter (`next_item`). Threads that wait for one another poll
words (`waiting.py`) with `watched`, which one of them sets with `word_set`. Of `watched`, `swap` and `advance` all
threads see the same order: where two threads each `swap` a word and then watch the other's, one of them sees the new
value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import I64, ir_pointer
from .target import TARGET, Target


@intrinsic
def next_item(typing: Any, counter: Any) -> Any:
    """`next_item(counter)`: add 1 to a shared int64 counter, and return its value from before."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        pointer = ir_pointer(context, builder, sig.args[0], args[0], I64(0))
        return builder.atomic_rmw("add", pointer, I64(1), "monotonic")

    return types.intp(counter), emit


@intrinsic
def watched(typing: Any, words: Any, index: Any) -> Any:
    """`watched(words, index)`: read an int64 that another thread may set at any time."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        return builder.load_atomic(ir_pointer(context, builder, sig.args[0], *args), "seq_cst", 8)

    return types.int64(words, types.intp), emit


@intrinsic
def word_set(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """`word_set(words, index, value)`: set an int64 that another thread polls; earlier writes become visible first."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        pointer = ir_pointer(context, builder, sig.args[0], *args[:2])
        builder.store_atomic(args[2], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(words, types.intp, types.int64), emit


@intrinsic
def swap(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """`swap(words, index, value)`: set an int64 that other threads watch; returns the value from before."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        pointer = ir_pointer(context, builder, sig.args[0], *args[:2])
        return builder.atomic_rmw("xchg", pointer, args[2], "seq_cst")

    return types.int64(words, types.intp, types.int64), emit


@intrinsic
def advance(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """`advance(words, index, value)`: set an int64 that is `value` to `value + 1`; another one stays as it is."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        pointer = ir_pointer(context, builder, sig.args[0], *args[:2])
        builder.cmpxchg(pointer, args[2], builder.add(args[2], I64(1)), "seq_cst", "seq_cst")
        return context.get_dummy_value()

    return types.void(words, types.intp, types.int64), emit


def emit_pause(builder: ir.IRBuilder, target: Target) -> None:
    """Emit the target's pause, if it has one."""
    if target.pause:
        name, *given = target.pause
        numbers = [ir.Constant(ir.IntType(32), int(number)) for number in given]
        kind = ir.FunctionType(ir.VoidType(), [number.type for number in numbers])
        known = builder.module.globals.get(name)
        builder.call(ir.Function(builder.module, kind, name) if known is None else known, numbers)


@intrinsic
def pause(typing: Any) -> Any:
    """`pause()`: let the core rest for a moment between two polls."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
        emit_pause(builder, TARGET)
        return context.get_dummy_value()

    return types.void(), emit
