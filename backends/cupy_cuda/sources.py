"""The kernels' sources: files of `kernels/` come in, the table of kernels and the layout of their arguments come out.

`arguments.cuh` declares what a kernel takes, `KERNEL(name, Arguments, threads)` declares a kernel. Both are read here,
so that Python repeats neither.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

FOLDER = Path(__file__).parent / "kernels"

_SCALARS = {"int": "i", "float": "f", "double": "d", "int64": "q"}
"""C type -> format of `struct`; its size is also its alignment."""


@dataclass(frozen=True)
class Structure:
    """A C structure: the names of its fields, in order, and how they lie in memory."""

    name: str
    fields: tuple[str, ...]
    pointers: frozenset[str]
    """The fields that are pointers."""
    layout: struct.Struct
    alignment: int

    def pack(self, address: Callable[[Any], int], values: Mapping[str, Any]) -> bytes:
        """The structure's bytes.

        Parameters
        ----------
        address
            The address of an array; a null pointer is None.
        values
            A value for each field: an array, an address or None for a pointer, bytes for a structure, else a
            number.

        Raises
        ------
        KeyError, struct.error
            A field has no value, or one of another type.
        """
        packed = [values[name] for name in self.fields]
        for i in self._pointers_at:
            value = packed[i]
            if type(value) is not int:
                packed[i] = 0 if value is None else address(value)
        return self.layout.pack(*packed)

    @cached_property
    def _pointers_at(self) -> tuple[int, ...]:
        return tuple(i for i, name in enumerate(self.fields) if name in self.pointers)


@dataclass(frozen=True)
class Kernel:
    """A kernel: its file, the structure that it takes, and the threads of a block."""

    name: str
    file: str
    arguments: Structure
    threads: int


_POINTER = re.compile(r"(?:const )?(?:unsigned |long )*\w+\* ?(\w+)")
_VALUES = re.compile(r"(\w+) (\w+(?:, \w+)*)")


def _structures(text: str, earlier: Mapping[str, Structure] = MappingProxyType({})) -> dict[str, Structure]:
    """The structures that a text declares, in its order, after the `earlier` ones.

    A declaration is one pointer, or scalars or earlier structures with commas between them.

    Raises
    ------
    ValueError
        Another form of declaration, which this reader might lay out otherwise than a compiler.
    """
    found = dict(earlier)
    text = re.sub(r"//.*", "", text)
    bodies = re.findall(r"^struct (\w+) \{([^{}]*)\};", text, re.MULTILINE)
    if len(bodies) != len(re.findall(r"\bstruct\b", text)):
        raise ValueError(
            f"{len(bodies)} structures are declared as `struct Name {{ … }};`; others are not read"
        )
    for name, body in bodies:
        fields: list[str] = []
        pointers = set[str]()
        layout, size, most = "", 0, 1
        for declaration in filter(None, (" ".join(each.split()) for each in body.split(";"))):
            names, code, alignment = _declared(name, declaration, found)
            width = struct.calcsize(f"={code}")
            for _ in names:
                gap = -size % alignment
                layout += f"{gap}x{code}"
                size += gap + width
            most = max(most, alignment)
            fields += names
            if "*" in declaration:
                pointers.add(names[0])
        if len({*fields}) < len(fields) or name in found:
            raise ValueError(f"struct {name}: a name is declared twice")
        layout += f"{-size % most}x"
        found[name] = Structure(name, tuple(fields), frozenset(pointers), struct.Struct("=" + layout), most)
    return found


def _declared(
    structure: str, declaration: str, before: Mapping[str, Structure]
) -> tuple[list[str], str, int]:
    """The names of fields declared together; format and alignment of each."""
    if pointer := _POINTER.fullmatch(declaration):
        return [pointer[1]], "Q", 8
    values = _VALUES.fullmatch(declaration)
    if values and (inner := before.get(values[1])):
        return values[2].split(", "), f"{inner.layout.size}s", inner.alignment
    if values and (code := _SCALARS.get(values[1])):
        return values[2].split(", "), code, struct.calcsize(code)
    raise ValueError(
        f"struct {structure}: cannot read {declaration!r}; expected `type* name` or `type name, name` "
        f"with the types {', '.join([*_SCALARS, *before])}"
    )


@cache
def structures() -> Mapping[str, Structure]:
    """The structures of `arguments.cuh` by name."""
    return _structures((FOLDER / "arguments.cuh").read_text("utf-8"))


def kernels_of(file: str, text: str) -> dict[str, Kernel]:
    """The kernels that a text declares, by name. Their structures are those of `arguments.cuh`, else its own.

    Raises
    ------
    ValueError
        A structure is unknown; the threads are neither a number nor a `#define` of one in the text; a line with KERNEL
        does not begin as `KERNEL(name, Arguments, threads)`.
    """
    known = structures()
    found: dict[str, Kernel] = {}
    for line in re.findall(r"^[ \t]*KERNEL\(.*", text, re.MULTILINE):
        parts = re.match(r"KERNEL\((\w+), (\w+), (\w+)\)", line)
        if parts is None:
            raise ValueError(
                f"{file}.cu: cannot read {line!r}; expected `KERNEL(name, Arguments, threads)` at its start"
            )
        name, arguments, threads = parts.groups()
        if arguments not in known:
            known = _structures(text, known)
        numbers = (
            [threads] if threads.isdecimal() else re.findall(rf"^#define {threads} (\d+)", text, re.MULTILINE)
        )
        if len(numbers) != 1 or arguments not in known or name in found:
            raise ValueError(
                f"{file}.cu: {line!r}: expected a new name, a structure that is declared, and a number of threads or "
                "its one `#define`"
            )
        found[name] = Kernel(name, file, known[arguments], int(numbers[0]))
    return found


@cache
def kernels() -> Mapping[str, Kernel]:
    """All kernels by name."""
    found: dict[str, Kernel] = {}
    for path in sorted(FOLDER.glob("*.cu")):
        of_file = kernels_of(path.stem, path.read_text("utf-8"))
        if twice := of_file.keys() & found.keys():
            raise ValueError(f"{path.name}: {', '.join(twice)} is declared in another file, too")
        found |= of_file
    return found


def files() -> list[str]:
    """The names of the backend's files that hold kernels, without suffix."""
    return sorted({kernel.file for kernel in kernels().values()})


def headers() -> dict[str, str]:
    """Name -> text of every header."""
    return {path.name: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.cuh"))}


def source(file: str) -> str:
    """The text of a file of kernels."""
    return (FOLDER / f"{file}.cu").read_text("utf-8")
