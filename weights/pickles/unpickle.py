"""Pickled bytes in; plain values and inert stand-ins out. Nothing that a pickle names is imported or called.

A pickle is a program for a small stack machine. This is that machine without its dangerous half: names resolve to the
stand-ins of `allowlist` or are refused; calls reach only the few functions there; INST, OBJ, extension codes and the
text opcodes of protocol 0 are refused; every length is checked against the bytes that are left before a byte is copied.
Objects are paid for from a `Budget`: one byte of pickle can create a hundred bytes of objects.

Long texts, long lists of plain values and the containers in large plain ones are skipped: see `stack`.
"""

from __future__ import annotations

import mmap
import pickle
import struct
from collections.abc import Callable

from ..errors import CheckpointError, shown
from ..limits import Budget
from ..tensor import Layout
from .allowlist import check_key, resolve
from .operands import CUT_SHORT, DAMAGED, decoded
from .plain import Plainness
from .rebuild import check_state
from .refused_names import WHOLE, refusal
from .scan import end_of_numbers, referenced_places
from .stack import ENTRY, NO_MARK, SLOT, WEIGHTY, Mark, Stack
from .stand_ins import MANY_VALUES, Global, Placeholder, Skipped, tuple_key

# Bytes of memory, rounded up, beyond a slot on the stack.
_CONTAINER, _MEMO, _OBJECT, _NAME = 72, 104, 256, 1024

# Bytes of a tensor and of a storage, without the arguments that described them.
_TENSOR, _STORAGE = 256, 160

# With fewer bytes left, an open group is thinned out: more than one opcode takes.
_LOW = 1 << 16

# Copies of values that making the stand-in of a tuple key counts as: by its time, that of the largest key.
_TUPLE_KEY = 96

_LONGEST_NAME = 512

_OPCODE_NAMES = {
    value[0]: name
    for name in pickle.__all__
    if name.isupper() and isinstance(value := getattr(pickle, name), bytes) and len(value) == 1
}


def _op(name: str) -> int:
    code: bytes = getattr(pickle, name)
    return code[0]


class Unpickler(Stack):
    """The machine: reads one pickle after another from `buffer[start:end]`.

    Parameters
    ----------
    buffer : mmap
        The mapped file.
    start, end : int
        The first byte of the pickle, and the end of the bytes that it may take.
    where : str
        The name of these bytes in errors.
    budget : Budget
        Pays for the objects.
    persistent : callable, optional
        Persistent id, not checked -> storage; if not given, such ids are refused.
    whole : bool
        Whether to build every value, also long lists.
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
        whole: bool = False,
    ) -> None:
        super().__init__(buffer, start, end, budget, whole=whole)
        self.start = start
        self.where = where
        self.persistent = persistent
        self.globals: dict[tuple[str, str], Global] = {}
        self._begin()

    def _begin(self) -> None:
        self.clear()
        # The last tuple that was made of a group, and the group's mark.
        self.arguments: tuple[object, Mark] = (None, NO_MARK)
        self.memo: dict[int, object] = {}
        self.memoized = 0
        self.numbered = False
        self.references: set[int] = set()
        self.tuple_keys = 0
        self.is_plain = Plainness(self.budget)
        # Names that are harmless in one kind of call only, and were not called yet.
        self.unused: set[str] = set()

    def load(self) -> object:
        """The object that the next pickle describes; `position` is then right after it. Raises CheckpointError."""
        self._begin()
        opcode_at = self.position
        budget, buffer, actions = self.budget, self.buffer, _ACTIONS
        try:
            self.references = referenced_places(buffer, self.position, self.end, budget)
            while True:
                opcode_at = self.position
                if opcode_at >= self.end:
                    raise CheckpointError("the pickle ends without its STOP", advice=CUT_SHORT)
                opcode = buffer[opcode_at]
                self.position = opcode_at + 1
                budget.bytes_left -= SLOT
                if budget.bytes_left < _LOW:
                    self.thin_out()
                    budget.take(0)
                if opcode == _STOP:
                    result = self.pop()
                    if self.stack:
                        raise CheckpointError("the pickle ends with values left on its stack", advice=DAMAGED)
                    if self.unused:
                        raise refusal(min(self.unused))
                    return result
                action = actions[opcode]
                if action is None:
                    name = _OPCODE_NAMES.get(opcode, f"0x{opcode:02x}")
                    raise CheckpointError(
                        f"the pickle opcode {name} is not used by torch.save", advice=DAMAGED
                    )
                action(self)
        except CheckpointError as error:
            if not error.where:
                error.where = f"{self.where}, byte {opcode_at - self.start}"
            raise

    # Opcodes that push values.

    def _push(self, value: object) -> None:
        self.stack.append(value)

    def _mark(self) -> None:
        self.mark()
        if not self.whole and (end := end_of_numbers(self.buffer, self.position, self.end)):
            self.position = end
            self.stack.append(MANY_VALUES)

    def _new_list(self) -> None:
        self.budget.take(_CONTAINER)
        self.stack.append([])

    def _new_dict(self) -> None:
        self.budget.take(_CONTAINER)
        self.stack.append({})

    def _tuple(self, items: list[object]) -> None:
        self.budget.take(_CONTAINER + 8 * len(items))
        self.stack.append(tuple(items))

    def _marked_tuple(self) -> None:
        mark = self.marks[-1] if self.marks else None
        self._tuple(self.pop_group())
        if mark is not None:
            self.arguments = self.stack[-1], mark

    def _short_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self._tuple(items[::-1])

    def _pop_or_mark(self) -> None:
        # Python's rule: POP right after a MARK removes the mark.
        if self.marks and len(self.stack) == self.marks[-1].start:
            self.marks.pop()
        else:
            self.pop()

    def _duplicate(self) -> None:
        self.stack.append(self.top())

    # The memo. Only values that an opcode refers to are kept.

    def _put(self, index: int) -> None:
        if self.memoized:
            raise CheckpointError("the pickle numbers its objects in two ways", advice=DAMAGED)
        self.numbered = True
        self._remember(index)

    def _memoize(self) -> None:
        if self.numbered:
            raise CheckpointError("the pickle numbers its objects in two ways", advice=DAMAGED)
        self._remember(self.memoized)
        self.memoized += 1

    def _remember(self, index: int) -> None:
        value = self.top()
        if index in self.references:
            self.budget.take(_MEMO)
            self.remembered += 1
            self.memo[index] = value

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise CheckpointError(
                f"the pickle refers to object {index}, which does not exist", advice=DAMAGED
            )
        value = self.memo[index]
        if type(value) in WEIGHTY and not self.is_plain(value):
            self.held += 1
        self.stack.append(value)

    # Filling containers. Items given to a placeholder are dropped.

    def _append(self) -> None:
        self._extend([self.pop()])

    def _appends(self) -> None:
        self._extend(self.pop_group_for_top())

    def _extend(self, items: list[object]) -> None:
        target = self.top()
        if type(target) is list:
            self.budget.take(16 * len(items))
            target.extend(items)
        elif type(target) is not Placeholder:
            raise CheckpointError(f"the pickle appends to a {_kind(target)}", advice=DAMAGED)

    def _set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self._set_items([key, value])

    def _set_group(self) -> None:
        start = self.marks[-1].start if self.marks else 0
        if len(self.stack) > start > 0 and type(self.stack[start - 1]) is dict:
            for key in self.stack[start::2]:
                check_key(key)
        self._set_items(self.pop_group_for_top(step=2))

    def _set_items(self, items: list[object]) -> None:
        target = self.top()
        if len(items) % 2:
            raise CheckpointError("the pickle sets a key without a value", advice=DAMAGED)
        if type(target) is dict:
            for key in items[::2]:
                check_key(key)
            self.budget.take(ENTRY * (len(items) // 2))
            for index in range(0, len(items), 2):
                target[self._key(items[index])] = items[index + 1]
        elif type(target) is not Placeholder:
            raise CheckpointError(f"the pickle sets an item of a {_kind(target)}", advice=DAMAGED)

    def _key(self, key: object) -> object:
        if type(key) is not tuple:
            return key
        self.budget.copy(_TUPLE_KEY)
        self.budget.take(_OBJECT)
        self.tuple_keys += 1
        return tuple_key(key, self.tuple_keys)

    def _frozen_set(self) -> None:
        self._tuple(self.pop_group())

    # Names and calls.

    def _name(self, module: str, name: str) -> None:
        known = self.globals.get((module, name))
        if known is None:
            cost = _NAME + 8 * (len(module) + len(name))
            self.budget.take(cost)
            self.retained += cost
            known = self.globals[module, name] = resolve(module, name)
        if known.narrow:
            self.unused.add(known.name)
        self.stack.append(known)

    def _global(self) -> None:
        module = decoded(self.line(_LONGEST_NAME))
        self._name(module, decoded(self.line(_LONGEST_NAME)))

    def _stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise CheckpointError("the pickle names an object by values that are not strings", advice=DAMAGED)
        if max(len(name), len(module)) > _LONGEST_NAME:
            raise CheckpointError(f"a name has more than {_LONGEST_NAME} characters", advice=DAMAGED)
        self._name(module, name)

    def _reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple:
            raise CheckpointError(
                f"the pickle calls with a {_kind(arguments)} as arguments, expected a tuple",
                advice=DAMAGED,
            )
        if type(function) is not Global or function.call is None:
            whole = type(function) is Global and function.name.startswith("torch.nn.")
            raise CheckpointError(
                f"the pickle holds a loss or layer object, {_kind(function)}, which is not built"
                if whole
                else f"the pickle calls {_kind(function)}, which cannot be called",
                advice=WHOLE if whole else DAMAGED,
            )
        # The result may copy the items of a container (a dict from pairs) or a text, once for each reference to it.
        first = arguments[0] if arguments else None
        copies = len(first) if isinstance(first, (list, tuple, dict)) else 0
        text = len(first) if isinstance(first, (str, bytes)) else 0
        self.budget.copy(copies + text // 1024)
        self.budget.take(_OBJECT + ENTRY * copies + text)
        result = function.call(arguments)
        self.unused.discard(function.name)
        if type(result) is Layout:
            self.held += 1
            given, mark = self.arguments
            if given is arguments:
                self.give_back(mark, _TENSOR)
        self.stack.append(result)

    def _new_object_with_keywords(self) -> None:
        keywords = self.pop()
        if type(keywords) is not dict:
            raise CheckpointError("the pickle gives keyword arguments that are not a dict", advice=DAMAGED)
        self._reduce()
        if keywords and type(self.stack[-1]) is not Placeholder:
            raise CheckpointError("the pickle gives keyword arguments to a plain object", advice=DAMAGED)

    def _build(self) -> None:
        """Drop the attributes of an object, after a check that they do not replace a tensor's values."""
        state = self.pop()
        target = self.top()
        if type(target) is Layout:
            check_state(state)
        elif type(target) not in (dict, Placeholder):
            raise CheckpointError(f"the pickle sets attributes of a {_kind(target)}", advice=DAMAGED)

    def _persistent(self) -> None:
        identity = self.pop()
        if self.persistent is None:
            raise CheckpointError("the pickle refers to a storage where none is allowed", advice=DAMAGED)
        self.budget.take(_STORAGE)
        self.retained += _STORAGE
        self.held += 1
        self.stack.append(self.persistent(identity))

    def _frame(self) -> None:
        self.need(self.count(_U64))

    def _protocol(self) -> None:
        version = self.take(1)[0]
        if not 2 <= version <= 5:
            raise CheckpointError(
                f"the pickle has protocol {version}, torch.save writes 2 to 5", advice=DAMAGED
            )


_U8, _U16, _I32, _U32, _U64 = (struct.Struct("<" + code) for code in "BHiIQ")
_DOUBLE = struct.Struct(">d")
_STOP = _op("STOP")


def _kind(value: object) -> str:
    """The name of a value in an error, whatever it holds."""
    if isinstance(value, (Global, Placeholder, Skipped)):
        return shown(value.name)
    return "tensor" if isinstance(value, Layout) else type(value).__name__


_BY_NAME: dict[str, Callable[[Unpickler], object]] = {
    "PROTO": Unpickler._protocol,
    "FRAME": Unpickler._frame,
    "NONE": lambda m: m._push(None),
    "NEWTRUE": lambda m: m._push(True),
    "NEWFALSE": lambda m: m._push(False),
    "BININT": lambda m: m._push(m.count(_I32)),
    "BININT1": lambda m: m._push(m.count(_U8)),
    "BININT2": lambda m: m._push(m.count(_U16)),
    "LONG1": lambda m: m._push(m.long(_U8)),
    "LONG4": lambda m: m._push(m.long(_I32)),
    "INT": lambda m: m._push(m.decimal()),
    "BINFLOAT": lambda m: m._push(m.count(_DOUBLE)),
    "SHORT_BINUNICODE": lambda m: m._push(m.text_of(_U8)),
    "BINUNICODE": lambda m: m._push(m.text_of(_U32)),
    "BINUNICODE8": lambda m: m._push(m.text_of(_U64)),
    "SHORT_BINSTRING": lambda m: m._push(m.old_text_of(_U8)),
    "BINSTRING": lambda m: m._push(m.old_text_of(_I32)),
    "SHORT_BINBYTES": lambda m: m._push(m.bytes_of(_U8)),
    "BINBYTES": lambda m: m._push(m.bytes_of(_U32)),
    "BINBYTES8": lambda m: m._push(m.bytes_of(_U64)),
    "BYTEARRAY8": lambda m: m._push(m.bytes_of(_U64)),
    "MARK": Unpickler._mark,
    "POP": Unpickler._pop_or_mark,
    "POP_MARK": Unpickler.pop_mark,
    "DUP": Unpickler._duplicate,
    "EMPTY_LIST": Unpickler._new_list,
    "EMPTY_DICT": Unpickler._new_dict,
    "EMPTY_TUPLE": lambda m: m._push(()),
    # Sets are kept as lists: no value from a file is hashed.
    "EMPTY_SET": Unpickler._new_list,
    "FROZENSET": Unpickler._frozen_set,
    "TUPLE": Unpickler._marked_tuple,
    "TUPLE1": lambda m: m._short_tuple(1),
    "TUPLE2": lambda m: m._short_tuple(2),
    "TUPLE3": lambda m: m._short_tuple(3),
    "APPEND": Unpickler._append,
    "APPENDS": Unpickler._appends,
    "ADDITEMS": Unpickler._appends,
    "SETITEM": Unpickler._set_item,
    "SETITEMS": Unpickler._set_group,
    "BINPUT": lambda m: m._put(m.count(_U8)),
    "LONG_BINPUT": lambda m: m._put(m.count(_U32)),
    "MEMOIZE": Unpickler._memoize,
    "BINGET": lambda m: m._get(m.count(_U8)),
    "LONG_BINGET": lambda m: m._get(m.count(_U32)),
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
