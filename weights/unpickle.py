"""Pickled bytes in; plain values and inert stand-ins out. Nothing that a pickle names is imported or called.

A pickle is a program for a small stack machine. This is that machine without its dangerous half: names
resolve to the stand-ins of `allowlist` or are refused, calls reach only the few functions there, INST, OBJ,
extension codes and the text opcodes of protocol 0 are refused, and every length is checked against the bytes
that are left before a byte is copied. Objects are paid for from a `Budget`: one byte of pickle can ask for a
hundred of memory.
"""

from __future__ import annotations

import mmap
import pickle
import struct
from collections.abc import Callable

from .allowlist import Global, Placeholder, checked_key, resolve
from .errors import CheckpointError, shown
from .limits import Budget
from .tensor import Layout

# What things cost in memory, rounded up: a stack slot with a small number in it, and what others take beyond.
_SLOT, _CONTAINER, _ENTRY, _MEMO, _OBJECT, _TEXT = 48, 72, 104, 104, 256, 64

_LONGEST_NAME = 512
_LONGEST_INTEGER = 64

_OPCODE_NAMES = {
    value[0]: name
    for name in pickle.__all__
    if name.isupper() and isinstance(value := getattr(pickle, name), bytes) and len(value) == 1
}


def _op(name: str) -> int:
    code: bytes = getattr(pickle, name)
    return code[0]


class Unpickler:
    """Reads one pickle after another from `buffer[start:end]`.

    Parameters
    ----------
    buffer : mmap
        The mapped file.
    start, end : int
        Where the pickle begins, and where at the latest it ends.
    where : str
        What to call this stretch in errors.
    budget : Budget
        What building the objects may cost.
    persistent : callable, optional
        From a persistent id, as found, to its storage; without it such ids are refused.
    """

    def __init__(
        self,
        buffer: mmap.mmap,
        start: int,
        end: int,
        *,
        where: str,
        budget: Budget,
        persistent: Callable[[object], object] | None = None,
    ) -> None:
        self.buffer = buffer
        self.start = start
        self.position = start
        self.end = end
        self.where = where
        self.budget = budget
        self.persistent = persistent
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.globals: dict[tuple[str, str], Global] = {}

    def load(self) -> object:
        """The object that the next pickle describes; `position` is then just behind it."""
        self.stack, self.marks, self.memo = [], [], {}
        opcode_at = self.position
        budget, buffer, actions = self.budget, self.buffer, _ACTIONS
        try:
            while True:
                opcode_at = self.position
                if opcode_at >= self.end:
                    raise CheckpointError("the pickle ends without its STOP", advice=_CUT_SHORT)
                opcode = buffer[opcode_at]
                self.position = opcode_at + 1
                budget.steps_left -= 1
                if budget.steps_left < 0:
                    budget.step(0)
                budget.bytes_left -= _SLOT
                if budget.bytes_left < 0:
                    budget.take(0)
                if opcode == _STOP:
                    result = self._pop()
                    if self.stack:
                        raise CheckpointError("the pickle leaves values behind", advice=_DAMAGED)
                    return result
                action = actions[opcode]
                if action is None:
                    name = _OPCODE_NAMES.get(opcode, f"0x{opcode:02x}")
                    raise CheckpointError(
                        f"the pickle opcode {name} is not used by torch.save", advice=_DAMAGED
                    )
                action(self)
        except CheckpointError as error:
            if not error.where:
                error.where = f"{self.where}, byte {opcode_at - self.start}"
            raise

    # Bytes: never more than are there.

    def _need(self, count: int) -> None:
        left = self.end - self.position
        if count > left:
            raise CheckpointError(
                f"the pickle announces {count} bytes where {left} are left", advice=_CUT_SHORT
            )

    def _take(self, count: int) -> bytes:
        self._need(count)
        start = self.position
        self.position += count
        return self.buffer[start : self.position]

    def _count(self, layout: struct.Struct) -> int:
        value: int = layout.unpack(self._take(layout.size))[0]
        return value

    def _line(self, longest: int) -> bytes:
        stop = self.buffer.find(b"\n", self.position, min(self.end, self.position + longest + 1))
        if stop < 0:
            raise CheckpointError(f"a name goes on for more than {longest} bytes", advice=_DAMAGED)
        line = self.buffer[self.position : stop]
        self.position = stop + 1
        return line

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise CheckpointError("a string is not UTF-8", advice=_DAMAGED) from None

    # The stack: a value below the last mark belongs to someone else.

    def _pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise CheckpointError("the pickle takes a value from an empty stack", advice=_DAMAGED)
        return self.stack.pop()

    def _top(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise CheckpointError("the pickle looks at an empty stack", advice=_DAMAGED)
        return self.stack[-1]

    def _pop_mark(self) -> list[object]:
        if not self.marks:
            raise CheckpointError("the pickle closes a group that it never opened", advice=_DAMAGED)
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    # Opcodes, by what they leave on the stack.

    def _constant(self, value: object) -> None:
        self.stack.append(value)

    def _integer(self, layout: struct.Struct) -> None:
        self.stack.append(layout.unpack(self._take(layout.size))[0])

    def _long(self, layout: struct.Struct) -> None:
        count = self._count(layout)
        if not 0 <= count <= _LONGEST_INTEGER:
            raise CheckpointError(f"the pickle holds an integer of {count} bytes", advice=_DAMAGED)
        self.stack.append(int.from_bytes(self._take(count), "little", signed=True))

    def _text_integer(self) -> None:
        # Python 2 spelled integers over 32 bits, and bools, in decimal.
        line = self._line(_LONGEST_INTEGER)
        if line in (b"00", b"01"):
            self.stack.append(line == b"01")
            return
        digits = line[1:] if line[:1] == b"-" else line
        if not digits.isdigit():
            raise CheckpointError("the pickle holds an integer that is none", advice=_DAMAGED)
        self.stack.append(int(line))

    def _string(self, layout: struct.Struct) -> None:
        count = self._count(layout)
        self._need(count)
        self.budget.take(_TEXT + 4 * count)  # One character outside ASCII makes all of them wide.
        self.stack.append(self._decode(self._take(count)))

    def _old_string(self, layout: struct.Struct) -> None:
        # Python 2's str: text in every name that matters, bytes in a few values beside them.
        count = self._count(layout)
        if count < 0:
            raise CheckpointError("the pickle announces a string of negative length", advice=_DAMAGED)
        self._need(count)
        self.budget.take(_TEXT + 4 * count)
        raw = self._take(count)
        try:
            self.stack.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.stack.append(raw)

    def _bytes(self, layout: struct.Struct) -> None:
        count = self._count(layout)
        self._need(count)
        self.budget.take(_TEXT + count)
        self.stack.append(self._take(count))

    def _mark(self) -> None:
        self.marks.append(len(self.stack))

    def _new_list(self) -> None:
        self.budget.take(_CONTAINER)
        self.stack.append([])

    def _new_dict(self) -> None:
        self.budget.take(_CONTAINER)
        self.stack.append({})

    def _tuple(self, items: list[object]) -> None:
        self.budget.take(_CONTAINER + 8 * len(items))
        self.stack.append(tuple(items))

    def _short_tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._tuple(items[::-1])

    def _pop_or_mark(self) -> None:
        # Python's own rule: POP right behind a MARK takes the mark.
        if self.marks and len(self.stack) == self.marks[-1]:
            self.marks.pop()
        else:
            self._pop()

    def _duplicate(self) -> None:
        self.stack.append(self._top())

    # The memo.

    def _put(self, index: int) -> None:
        self.budget.take(_MEMO)
        self.memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise CheckpointError(
                f"the pickle refers back to object {index}, which is not there", advice=_DAMAGED
            )
        self.stack.append(self.memo[index])

    # Filling containers. A placeholder swallows what it is given.

    def _extend(self, items: list[object]) -> None:
        target = self._top()
        if type(target) is list:
            self.budget.take(16 * len(items))
            target.extend(items)
        elif type(target) is not Placeholder:
            raise CheckpointError(f"the pickle appends to a {_kind(target)}", advice=_DAMAGED)

    def _set_items(self, items: list[object]) -> None:
        target = self._top()
        if len(items) % 2:
            raise CheckpointError("the pickle sets a key without a value", advice=_DAMAGED)
        if type(target) is dict:
            self.budget.take(_ENTRY * (len(items) // 2))
            for index in range(0, len(items), 2):
                target[checked_key(items[index])] = items[index + 1]
        elif type(target) is not Placeholder:
            raise CheckpointError(f"the pickle sets an item of a {_kind(target)}", advice=_DAMAGED)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _frozen_set(self) -> None:
        self._tuple(self._pop_mark())

    # Names and calls.

    def _name(self, module: str, name: str) -> None:
        known = self.globals.get((module, name))
        if known is None:
            self.budget.take(_OBJECT + 4 * (len(module) + len(name)))
            known = self.globals[module, name] = resolve(module, name)
        self.stack.append(known)

    def _global(self) -> None:
        module = self._decode(self._line(_LONGEST_NAME))
        self._name(module, self._decode(self._line(_LONGEST_NAME)))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise CheckpointError("the pickle names something by values that are no strings", advice=_DAMAGED)
        if max(len(name), len(module)) > _LONGEST_NAME:
            raise CheckpointError(f"a name goes on for more than {_LONGEST_NAME} characters", advice=_DAMAGED)
        self._name(module, name)

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(arguments) is not tuple:
            raise CheckpointError(f"the pickle calls with a {_kind(arguments)} as arguments", advice=_DAMAGED)
        if type(function) is not Global or function.call is None:
            raise CheckpointError(
                f"the pickle calls {_kind(function)}, which is nothing to call", advice=_ATTACK
            )
        # The result may copy its arguments (a dict from pairs, bytes from text), as often as they are referred to.
        size = len(arguments)
        if size and type(arguments[0]) in (list, tuple, dict):
            size += len(arguments[0])
        elif size and type(arguments[0]) in (str, bytes):
            size += len(arguments[0]) // 64
        self.budget.step(size)
        self.budget.take(_OBJECT + _ENTRY * size)
        self.stack.append(function.call(arguments))

    def _new_object_with_keywords(self) -> None:
        keywords = self._pop()
        if type(keywords) is not dict:
            raise CheckpointError("the pickle gives keywords that are no dict", advice=_DAMAGED)
        self._reduce()
        if keywords and type(self.stack[-1]) is not Placeholder:
            raise CheckpointError("the pickle gives keywords to a plain object", advice=_DAMAGED)

    def _build(self) -> None:
        """Attributes for an object: dropped. Nothing that is kept here has attributes that matter."""
        self._pop()
        target = self._top()
        if type(target) not in (dict, Layout, Placeholder):
            raise CheckpointError(f"the pickle sets attributes of a {_kind(target)}", advice=_ATTACK)

    def _persistent(self) -> None:
        identity = self._pop()
        if self.persistent is None:
            raise CheckpointError("the pickle refers to a storage where none belongs", advice=_DAMAGED)
        self.budget.take(_OBJECT)
        self.stack.append(self.persistent(identity))

    def _frame(self) -> None:
        self._need(self._count(_U64))

    def _protocol(self) -> None:
        version = self._take(1)[0]
        if not 2 <= version <= 5:
            raise CheckpointError(
                f"the pickle is of protocol {version}, torch.save writes 2 to 5", advice=_DAMAGED
            )


_CUT_SHORT = "The file is cut short or damaged: download or copy it again"
_DAMAGED = "The file is damaged, or no checkpoint of torch.save: download or copy it again"
_ATTACK = "It may be an attack: do not open it with torch.load either"

_U8, _U16, _I32, _U32, _U64 = (struct.Struct("<" + code) for code in "BHiIQ")
_DOUBLE = struct.Struct(">d")
_STOP = _op("STOP")


def _kind(value: object) -> str:
    """What a value is called in an error, whatever it holds."""
    if isinstance(value, (Global, Placeholder)):
        return shown(value.name)
    return "tensor" if isinstance(value, Layout) else type(value).__name__


_BY_NAME: dict[str, Callable[[Unpickler], object]] = {
    "PROTO": Unpickler._protocol,
    "FRAME": Unpickler._frame,
    "NONE": lambda m: m._constant(None),
    "NEWTRUE": lambda m: m._constant(True),
    "NEWFALSE": lambda m: m._constant(False),
    "BININT": lambda m: m._integer(_I32),
    "BININT1": lambda m: m._integer(_U8),
    "BININT2": lambda m: m._integer(_U16),
    "LONG1": lambda m: m._long(_U8),
    "LONG4": lambda m: m._long(_I32),
    "INT": Unpickler._text_integer,
    "BINFLOAT": lambda m: m._integer(_DOUBLE),
    "SHORT_BINUNICODE": lambda m: m._string(_U8),
    "BINUNICODE": lambda m: m._string(_U32),
    "BINUNICODE8": lambda m: m._string(_U64),
    "SHORT_BINSTRING": lambda m: m._old_string(_U8),
    "BINSTRING": lambda m: m._old_string(_I32),
    "SHORT_BINBYTES": lambda m: m._bytes(_U8),
    "BINBYTES": lambda m: m._bytes(_U32),
    "BINBYTES8": lambda m: m._bytes(_U64),
    "BYTEARRAY8": lambda m: m._bytes(_U64),
    "MARK": Unpickler._mark,
    "POP": Unpickler._pop_or_mark,
    "POP_MARK": Unpickler._pop_mark,
    "DUP": Unpickler._duplicate,
    "EMPTY_LIST": Unpickler._new_list,
    "EMPTY_DICT": Unpickler._new_dict,
    "EMPTY_TUPLE": lambda m: m._constant(()),
    # Sets are kept as lists: no value out of a file needs hashing.
    "EMPTY_SET": Unpickler._new_list,
    "FROZENSET": Unpickler._frozen_set,
    "TUPLE": lambda m: m._tuple(m._pop_mark()),
    "TUPLE1": lambda m: m._short_tuple(1),
    "TUPLE2": lambda m: m._short_tuple(2),
    "TUPLE3": lambda m: m._short_tuple(3),
    "APPEND": lambda m: m._extend([m._pop()]),
    "APPENDS": lambda m: m._extend(m._pop_mark()),
    "ADDITEMS": lambda m: m._extend(m._pop_mark()),
    "SETITEM": Unpickler._set_item,
    "SETITEMS": lambda m: m._set_items(m._pop_mark()),
    "BINPUT": lambda m: m._put(m._count(_U8)),
    "LONG_BINPUT": lambda m: m._put(m._count(_U32)),
    "MEMOIZE": lambda m: m._put(len(m.memo)),
    "BINGET": lambda m: m._get(m._count(_U8)),
    "LONG_BINGET": lambda m: m._get(m._count(_U32)),
    "GLOBAL": Unpickler._global,
    "STACK_GLOBAL": Unpickler._stack_global,
    "REDUCE": Unpickler._reduce,
    "NEWOBJ": Unpickler._reduce,
    "NEWOBJ_EX": Unpickler._new_object_with_keywords,
    "BUILD": Unpickler._build,
    "BINPERSID": Unpickler._persistent,
}

_ACTIONS: list[Callable[[Unpickler], object] | None] = [None] * 256
for _opcode_name, _action in _BY_NAME.items():
    _ACTIONS[_op(_opcode_name)] = _action
