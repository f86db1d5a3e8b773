"""Handing a kernel over: its call comes in, and its caller and any number of helpers make it, without Python.

A `shared` kernel is a function of a counter of items (`items.py`), so threads share its items by making the same call,
each with scratch of its own. Python makes it once. That call keeps the arguments in the threads' words (`waiting.py`),
beside the address of a function that reads them again and calls the kernel: `kept_call`. The caller and every helper
then call that address: `make_call`. No argument is made a Python object again, and no helper needs the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array
from numba.types import int64, void

from .atomics import pause, swap, watched, word_set
from .jit import Kernel, body, kernel
from .regions import SCRATCH
from .simd import F32, I64, ir_pointer
from .waiting import (
    ADDRESS,
    ARGUMENTS,
    ASLEEP,
    BUSY,
    CODE,
    COUNTER,
    LINE,
    OPEN,
    ROOM,
    SEEN,
    SIZE,
    WANTED,
    WORDS,
    begin,
    end,
    line_of,
    sleeping,
)

WAKE = -1
"""What a shared kernel returns where helpers sleep."""
_CALLER = line_of(0)
_CALL = ir.FunctionType(ir.VoidType(), [I64.as_pointer(), I64])
"""The type of the code of a kept call: it takes the words and the number of the thread."""


def shared(signature: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a kernel `f(counter, items, …)` or `f(counter, items, …, scratch)` that threads may share.

    It raises nothing. Python calls it as `f(words, helpers, polls, items, (…,), address, floats)`: with words of
    `waiting.words`, the number of helpers that may join, polls for those that are still busy in the end, and the
    caller's own scratch. It returns how many helpers are busy even then: they are to be waited for by
    `waiting.await_helpers`. Or it returns `WAKE` at once, while helpers may begin: some of them sleep, and are to be
    woken before `go_on` does the rest.
    """

    def declare(function: Callable[..., Any]) -> Kernel:
        piece = body(function)
        given = signature.args[2 : len(signature.args) - _takes_scratch(function)]

        def call(
            words: Any, helpers: int, polls: int, items: int, args: Any, scratch: int, floats: int
        ) -> int:
            words[COUNTER] = 0
            words[_CALLER + ADDRESS] = scratch
            words[_CALLER + SIZE] = floats
            code = kept_call(piece, words, items, args)
            if helpers == 0:
                make_call(code, words, 0)
                return 0
            begin(words, helpers, code)
            if sleeping(words, helpers):
                return WAKE
            make_call(code, words, 0)
            return end(words, helpers, polls)

        arguments = types.BaseTuple.from_types(given)
        return kernel(int64(WORDS, int64, int64, int64, arguments, int64, int64), named=function)(call)

    return declare


def _takes_scratch(function: Callable[..., Any]) -> bool:
    """Whether a kernel's last parameter is its scratch."""
    code = function.__code__
    return code.co_varnames[code.co_argcount - 1] == "scratch"


@intrinsic
def kept_call(typing: Any, piece: Any, words: Any, items: Any, args: Any) -> Any:
    """`kept_call(piece, words, items, args)`: keep the arguments of a kernel's call in `words`, for all that make it.

    Returns the address of the code that reads them there and calls the kernel. Raises TypeError, when the kernel is
    compiled, where they take more than `ROOM` bytes.
    """
    scratch = [SCRATCH] * _takes_scratch(piece.dispatcher.py_func)
    called = piece.get_call_type(typing, (WORDS, types.int64, *args.types, *scratch), {})

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, given: Sequence[ir.Value]) -> ir.Value:
        kept = cgutils.pack_struct(builder, given[2:])
        if context.get_abi_sizeof(kept.type) > ROOM:
            raise TypeError(f"arguments of {piece.dispatcher} take more than {ROOM} bytes")
        place = ir_pointer(context, builder, sig.args[1], given[1], I64(ARGUMENTS))
        builder.store(kept, builder.bitcast(place, kept.type.as_pointer()))
        code = _code(context, builder.module, piece, called, kept.type)
        return builder.ptrtoint(code, I64)

    return types.int64(piece, words, items, args), emit


def _code(context: Any, module: ir.Module, piece: Any, called: Any, kept: ir.Type) -> ir.Function:
    """A function of `_CALL` that makes the call of a kernel with the arguments in the words."""
    compiled = piece.dispatcher.overloads[tuple(called.args)]
    function = ir.Function(module, _CALL, module.get_unique_name("kept_call"))
    function.linkage = "internal"
    function.attributes.add("noinline")  # helpers need it anyway: one copy is enough
    builder = ir.IRBuilder(function.append_basic_block())
    context.add_linking_libs([compiled.library])
    words, thread = function.args

    def array(kind: Any, data: ir.Value, length: ir.Value) -> ir.Value:
        made, size = make_array(kind)(context, builder), I64(kind.dtype.bitwidth // 8)
        populate_array(made, data=data, shape=[length], strides=[size], itemsize=size, meminfo=None)
        return made._getvalue()

    stored = builder.load(builder.bitcast(builder.gep(words, [I64(ARGUMENTS)]), kept.as_pointer()))
    items, args = (builder.extract_value(stored, place) for place in range(2))
    values = [array(WORDS, words, I64(1)), items, *cgutils.unpack_tuple(builder, args)]
    if len(values) < len(called.args):
        line = builder.add(I64(_CALLER), builder.mul(thread, I64(LINE)))
        address, floats = (
            builder.load(builder.gep(words, [builder.add(line, I64(place))])) for place in (ADDRESS, SIZE)
        )
        values.append(array(SCRATCH, builder.inttoptr(address, F32.as_pointer()), floats))
    context.call_internal_no_propagate(builder, compiled.fndesc, called, values)
    builder.ret_void()
    return function


@intrinsic
def make_call(typing: Any, code: Any, words: Any, thread: Any) -> Any:
    """`make_call(code, words, thread)`: make the call that is kept in `words`, as that thread."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, given: Sequence[ir.Value]) -> ir.Value:
        code, words, thread = given
        start = ir_pointer(context, builder, sig.args[1], words, I64(0))
        builder.call(builder.inttoptr(code, _CALL.as_pointer()), [start, thread])
        return context.get_dummy_value()

    return types.void(types.int64, words, types.int64), emit


@kernel(int64(WORDS, int64, int64))
def go_on(words: Any, helpers: int, polls: int) -> int:
    """Make the call of the open kernel as its caller, and wait for that many helpers as `waiting.end` does."""
    make_call(words[CODE], words, 0)
    return end(words, helpers, polls)


@kernel(void(WORDS, int64, int64))
def help_out(words: Any, thread: int, polls: int) -> None:
    """Make the calls of kernels that open, as a helper; return once `polls` polls in a row found none.

    The helper then counts as asleep until it is called again.
    """
    line, left = _CALLER + thread * LINE, polls
    word_set(words, line + ASLEEP, 0)
    while True:
        number = watched(words, OPEN)
        if number != 0 and number != words[line + SEEN] and thread <= words[WANTED]:
            word_set(words, line + ASLEEP, 0)
            swap(words, line + BUSY, 1)
            if watched(words, OPEN) == number:  # it waits for this helper
                make_call(words[CODE], words, thread)
            word_set(words, line + BUSY, 0)
            words[line + SEEN] = number
            left = polls
        elif left > 0:
            left -= 1
            pause()
        elif words[line + ASLEEP]:
            return  # and none has opened since
        else:
            swap(words, line + ASLEEP, 1)
