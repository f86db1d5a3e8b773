"""The bytes after the opcodes of a pickle in; integers, lines and texts out, each length checked before it is read."""

from __future__ import annotations

import mmap
import struct

from ..errors import CheckpointError
from ..limits import LONGEST_TEXT, Budget
from .stand_ins import Skipped

CUT_SHORT = "The file is cut short or damaged: download or copy it again"
DAMAGED = "The file is damaged, or torch.save did not write it: download or copy it again"

TEXT_COST = 64
"""Bytes that a string takes beyond its characters."""

_LONGEST_INTEGER = 64


class Operands:
    """Reads `buffer[position:end]` piece by piece; each piece moves `position` behind it.

    Raises CheckpointError if a piece is longer than the bytes left, or malformed.
    """

    def __init__(self, buffer: mmap.mmap, start: int, end: int, budget: Budget) -> None:
        self.buffer = buffer
        self.position = start
        self.end = end
        self.budget = budget

    def need(self, count: int) -> None:
        """Raise CheckpointError unless `count` bytes are left."""
        left = self.end - self.position
        if count > left:
            raise CheckpointError(
                f"the pickle announces {count} bytes, but only {left} are left", advice=CUT_SHORT
            )

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self.need(count)
        start = self.position
        self.position += count
        return self.buffer[start : self.position]

    def count(self, layout: struct.Struct) -> int:
        """The number that `layout` describes."""
        value: int = layout.unpack(self.take(layout.size))[0]
        return value

    def line(self, longest: int) -> bytes:
        """The bytes up to the next line break, at most `longest`."""
        stop = self.buffer.find(b"\n", self.position, min(self.end, self.position + longest + 1))
        if stop < 0:
            raise CheckpointError(f"a name has more than {longest} bytes", advice=DAMAGED)
        line = self.buffer[self.position : stop]
        self.position = stop + 1
        return line

    def long(self, layout: struct.Struct) -> int | Skipped:
        """An integer with its length before it; a stand-in for one that is too long."""
        count = self.count(layout)
        if count < 0:
            raise CheckpointError(f"the pickle holds an integer of {count} bytes", advice=DAMAGED)
        if count > _LONGEST_INTEGER:
            self.need(count)
            self.position += count
            return Skipped("a long integer")
        return int.from_bytes(self.take(count), "little", signed=True)

    def decimal(self) -> int | bool:
        """An integer over 32 bits, or a bool, as Python 2 writes them."""
        line = self.line(_LONGEST_INTEGER)
        if line in (b"00", b"01"):
            return line == b"01"
        digits = line[1:] if line[:1] == b"-" else line
        if not digits.isdigit():
            raise CheckpointError("the pickle holds an invalid decimal integer", advice=DAMAGED)
        return int(line)

    def bytes_of(self, layout: struct.Struct) -> bytes | Skipped:
        """Bytes with their length before them, paid for as text; a stand-in for more than `LONGEST_TEXT`."""
        count = self.count(layout)
        if count < 0:
            raise CheckpointError("the pickle announces a string of negative length", advice=DAMAGED)
        self.need(count)
        if count > LONGEST_TEXT:
            self.position += count
            return Skipped()
        self.budget.take(TEXT_COST + 4 * count)  # One character outside ASCII makes all of them wide.
        return self.take(count)

    def text_of(self, layout: struct.Struct) -> str | Skipped:
        """UTF-8 text."""
        raw = self.bytes_of(layout)
        return decoded(raw) if isinstance(raw, bytes) else raw

    def old_text_of(self, layout: struct.Struct) -> str | bytes | Skipped:
        """Python 2's str: text in all names of tensors, bytes in a few values beside them."""
        raw = self.bytes_of(layout)
        try:
            return raw.decode("utf-8") if isinstance(raw, bytes) else raw
        except UnicodeDecodeError:
            return raw


def decoded(raw: bytes) -> str:
    """`raw` as text. Raises CheckpointError if it is not UTF-8."""
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise CheckpointError("a string is not UTF-8", advice=DAMAGED) from None
