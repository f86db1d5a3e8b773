"""Handing a kernel over: its call comes in, and its caller and any number of helpers make it, without Python.

A `shared` kernel is a function of a counter of items (`items.py`), so threads share its items by making the same call,
each with scratch of its own. Python makes it once. That call keeps the arguments in a slot of the threads' words
(`waiting.py`), beside the address of a function that reads them again and calls the kernel: `kept_call`. Helpers then
call that address, and the caller when it waits for them: `make_call`. No argument is made a Python object again, and no
helper needs the GIL.
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

from .atomics import advance, pause, swap, watched, word_set
from .jit import Kernel, body, inline, kernel
from .regions import SCRATCH
from .simd import F32, I64, ir_pointer
from .waiting import (
    ADDRESS,
    ARGUMENTS,
    ASLEEP,
    BUSY,
    CODE,
    COUNTER,
    DONE,
    LINE,
    POSTED,
    ROOM,
    SEEN,
    SIZE,
    WANTED,
    WORDS,
    busy,
    line_of,
    post,
    sleeping,
    slot_of,
)

WAKE = -1
"""What a shared kernel returns where helpers sleep."""
QUEUE = -1
"""Given for polls: return once the kernel is posted."""
_CALLER = line_of(0)
_CALL = ir.FunctionType(ir.VoidType(), [I64.as_pointer(), I64, I64])
"""The type of the code of a kept call: it takes the words, the place of the slot and the number of the thread."""


def shared(signature: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Declare a kernel `f(counter, items, …)` or `f(counter, items, …, scratch)` that threads may share.

    It raises nothing. Python calls it as `f(words, helpers, polls, items, (…,), address, floats)`: with words of
    `waiting.words`, in which a slot is free, the number of helpers that may join (0: the caller computes, and nothing
    may be posted), what `drain` takes, and the caller's own scratch, which stays until then. It returns what `drain`
    does; or 0 once the kernel is posted, with `QUEUE` for polls; or `WAKE`, as soon as it is posted, where helpers
    sleep: they are to be woken before `drain` does the rest.
    """

    def declare(function: Callable[..., Any]) -> Kernel:
        piece = body(function)
        given = signature.args[2 : len(signature.args) - _takes_scratch(function)]

        def call(
            words: Any, helpers: int, polls: int, items: int, args: Any, scratch: int, floats: int
        ) -> int:
            place = slot_of(words[POSTED])
            words[place + COUNTER] = 0
            words[_CALLER + ADDRESS] = scratch
            words[_CALLER + SIZE] = floats
            code = kept_call(piece, words, place, items, args)
            if helpers == 0:
                make_call(code, words, place, 0)
                return 0
            post(words, place, code, helpers)
            if sleeping(words, helpers):
                return WAKE
            return 0 if polls == QUEUE else _drain(words, polls)

        arguments = types.BaseTuple.from_types(given)
        return kernel(int64(WORDS, int64, int64, int64, arguments, int64, int64), named=function)(call)

    return declare


def _takes_scratch(function: Callable[..., Any]) -> bool:
    """Whether a kernel's last parameter is its scratch."""
    code = function.__code__
    return code.co_varnames[code.co_argcount - 1] == "scratch"


@intrinsic
def kept_call(typing: Any, piece: Any, words: Any, slot: Any, items: Any, args: Any) -> Any:
    """`kept_call(piece, words, slot, items, args)`: keep a call's arguments in the slot there, for all that make it.

    Returns the address of the code that reads them there and calls the kernel. Raises TypeError, when the kernel is
    compiled, where they take more than `ROOM` bytes.
    """
    scratch = [SCRATCH] * _takes_scratch(piece.dispatcher.py_func)
    called = piece.get_call_type(typing, (WORDS, types.int64, *args.types, *scratch), {})

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, given: Sequence[ir.Value]) -> ir.Value:
        kept = cgutils.pack_struct(builder, given[3:])
        if context.get_abi_sizeof(kept.type) > ROOM:
            raise TypeError(f"arguments of {piece.dispatcher} take more than {ROOM} bytes")
        place = ir_pointer(context, builder, sig.args[1], given[1], builder.add(given[2], I64(ARGUMENTS)))
        builder.store(kept, builder.bitcast(place, kept.type.as_pointer()))
        code = _code(context, builder.module, piece, called, kept.type)
        return builder.ptrtoint(code, I64)

    return types.int64(piece, words, slot, items, args), emit


def _code(context: Any, module: ir.Module, piece: Any, called: Any, kept: ir.Type) -> ir.Function:
    """A function of `_CALL` that makes the call of a kernel with the arguments in its slot."""
    compiled = piece.dispatcher.overloads[tuple(called.args)]
    function = ir.Function(module, _CALL, module.get_unique_name("kept_call"))
    function.linkage = "internal"
    function.attributes.add("noinline")  # helpers need it anyway: one copy is enough
    builder = ir.IRBuilder(function.append_basic_block())
    context.add_linking_libs([compiled.library])
    words, slot, thread = function.args

    def array(kind: Any, data: ir.Value, length: ir.Value) -> ir.Value:
        made, size = make_array(kind)(context, builder), I64(kind.dtype.bitwidth // 8)
        populate_array(made, data=data, shape=[length], strides=[size], itemsize=size, meminfo=None)
        return made._getvalue()

    arguments = builder.gep(words, [builder.add(slot, I64(ARGUMENTS))])
    stored = builder.load(builder.bitcast(arguments, kept.as_pointer()))
    items, args = (builder.extract_value(stored, place) for place in range(2))
    values = [array(WORDS, builder.gep(words, [slot]), I64(1)), items, *cgutils.unpack_tuple(builder, args)]
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
def make_call(typing: Any, code: Any, words: Any, slot: Any, thread: Any) -> Any:
    """`make_call(code, words, slot, thread)`: make the call that is kept in the slot there, as that thread."""

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, given: Sequence[ir.Value]) -> ir.Value:
        code, words, slot, thread = given
        start = ir_pointer(context, builder, sig.args[1], words, I64(0))
        builder.call(builder.inttoptr(code, _CALL.as_pointer()), [start, slot, thread])
        return context.get_dummy_value()

    return types.void(types.int64, words, types.int64, types.int64), emit


@inline
def _join(words: Any, thread: int, number: int) -> None:
    """Compute items of the kernel after `number` others, if it is the next to be done, until none is left."""
    line, place = line_of(thread), slot_of(number)
    swap(words, line + BUSY, number + 1)
    joined = watched(words, DONE) == number
    if joined:
        make_call(words[place + CODE], words, place, thread)
    swap(words, line + BUSY, 0)
    if joined and not busy(words, number + 1):
        advance(words, DONE, number)
    words[line + SEEN] = number + 1


@inline
def _drain(words: Any, polls: int) -> int:
    """Compute with the helpers until every kernel that was posted is done, and no helper reads its arguments.

    1: one is still busy after `polls` polls in a row in which nothing was left to compute.
    """
    left = polls
    while True:
        number = watched(words, DONE)
        if number < words[POSTED] and words[_CALLER + SEEN] != number + 1:
            _join(words, 0, number)
            left = polls
        elif number == words[POSTED] and not busy(words, 0):
            return 0
        elif left == 0:
            return 1
        else:
            left -= 1
            pause()


@kernel(int64(WORDS, int64))
def drain(words: Any, polls: int) -> int:
    """`_drain`, for Python."""
    return _drain(words, polls)


@kernel(void(WORDS, int64, int64))
def help_out(words: Any, thread: int, polls: int) -> None:
    """Compute kernels that are posted, as a helper; return once `polls` polls in a row found none.

    The helper then counts as asleep until it is called again.
    """
    line, left = line_of(thread), polls
    word_set(words, line + ASLEEP, 0)
    while True:
        number = watched(words, DONE)
        joined = words[line + SEEN] == number + 1
        if watched(words, POSTED) > number and (joined or thread <= words[slot_of(number) + WANTED]):
            left = polls  # what others still compute may be followed by more
            if not joined:
                word_set(words, line + ASLEEP, 0)
                _join(words, thread, number)
                continue
        if left > 0:
            left -= 1
            pause()
        elif words[line + ASLEEP]:
            return  # and none has been posted since
        else:
            swap(words, line + ASLEEP, 1)
