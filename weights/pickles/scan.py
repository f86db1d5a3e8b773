"""Pickled bytes in; the places of the memo in use, and the ends of runs of numbers, out, before they are read.

Pickles put every object into the memo and refer to few: objects that no opcode refers to need not be kept. The numbers
of a long list need not be built one by one, only to be dropped.
"""

from __future__ import annotations

import mmap
import pickle
import re
import struct

from ..limits import KEPT_VALUES, Budget

_PLACE_COST = 128
"""Bytes of memory for a place in a set."""


def _codes(*names: str) -> bytes:
    return b"".join(re.escape(getattr(pickle, name)) for name in names)


# Opcodes with operands of fixed length, at most a thousand in a match: an unbounded pattern takes memory for each.
# A frame may begin between any two.
_NUMBERS = (
    rb"(?:[" + _codes("NONE", "NEWTRUE", "NEWFALSE") + rb"]"
    rb"|" + _codes("BININT1") + rb"."
    rb"|" + _codes("BININT2") + rb".."
    rb"|" + _codes("BININT") + rb".{4}"
    rb"|[" + _codes("BINFLOAT", "FRAME") + rb"].{8})"
)
_MORE_NUMBERS = re.compile(_NUMBERS + rb"{0,1000}", re.DOTALL)
_MANY_NUMBERS = re.compile(_NUMBERS + b"{%d}" % (KEPT_VALUES + 1), re.DOTALL)
_ENDS = b"".join(getattr(pickle, name) for name in ("APPENDS", "ADDITEMS", "TUPLE", "FROZENSET"))

# Opcodes without operands.
_ALONE = (
    *("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "EMPTY_SET"),
    *("MARK", "POP", "POP_MARK", "DUP", "MEMOIZE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"),
    *("APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS"),
    *("STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "BINPERSID"),
)
_FIXED = re.compile(
    rb"(?:[" + _codes(*_ALONE) + rb"]"
    rb"|[" + _codes("PROTO", "BININT1", "BINPUT") + rb"]."
    rb"|" + _codes("BININT2") + rb".."
    rb"|[" + _codes("BININT", "LONG_BINPUT") + rb"].{4}"
    rb"|[" + _codes("BINFLOAT", "FRAME") + rb"].{8}){0,1000}",
    re.DOTALL,
)

_LENGTHS = {
    getattr(pickle, name)[0]: struct.Struct(layout)
    for layout, names in {
        "<B": ("LONG1", "SHORT_BINUNICODE", "SHORT_BINSTRING", "SHORT_BINBYTES"),
        "<I": ("LONG4", "BINUNICODE", "BINSTRING", "BINBYTES"),
        "<Q": ("BINUNICODE8", "BINBYTES8", "BYTEARRAY8"),
    }.items()
    for name in names
}
_LINES = {pickle.INT[0]: 1, pickle.GLOBAL[0]: 2}
_REFERENCES = {pickle.BINGET[0]: struct.Struct("<B"), pickle.LONG_BINGET[0]: struct.Struct("<I")}


def referenced_places(buffer: mmap.mmap, start: int, end: int, budget: Budget) -> set[int]:
    """The places of the memo that the pickle at `start` reads.

    The scan ends at STOP, and at any opcode that it does not know: reading refuses the pickle there.
    """
    places: set[int] = set()
    at = start
    while at < end:
        run = _FIXED.match(buffer, at, end)
        if run is not None and run.end() > at:
            at = run.end()
            continue
        opcode = buffer[at]
        at += 1
        operand = _REFERENCES.get(opcode) or _LENGTHS.get(opcode)
        if operand is not None:
            if at + operand.size > end:
                break
            (value,) = operand.unpack_from(buffer, at)
            at += operand.size
            if opcode in _LENGTHS:
                at += value
            elif value not in places:
                budget.take(_PLACE_COST)
                places.add(value)
        elif opcode in _LINES:
            for _ in range(_LINES[opcode]):
                stop = buffer.find(b"\n", at, end)
                at = stop + 1 if stop >= 0 else end
        else:
            break
    return places


def end_of_numbers(buffer: mmap.mmap, at: int, end: int) -> int:
    """The end of a group of more than `KEPT_VALUES` numbers that begins at `at`; 0 if there is no such group.

    The opcode there makes the group the items of a list or set, or a tuple.
    """
    run = _MANY_NUMBERS.match(buffer, at, end)
    while run is not None and run.end() > at:
        at = run.end()
        run = _MORE_NUMBERS.match(buffer, at, end)
    found = run is not None and at < end and buffer[at] in _ENDS
    return at if found else 0
