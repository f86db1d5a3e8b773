"""The kernels' sources: files of `kernels/` come in, the table of kernels and the layout of their arguments come out.

`arguments.cuh` declares what a kernel takes, `KERNEL(name, Arguments, threads)` declares a kernel. Both are read here,
so that Python repeats neither.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
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
        packed = []
        for name in self.fields:
            value = values[name]
            if name in self.pointers and type(value) is not int:
                value = 0 if value is None else address(value)
            packed.append(value)
        return self.layout.pack(*packed)


@dataclass(frozen=True)
class Kernel:
    """A kernel: its file, the structure that it takes, and the threads of a block."""

    name: str
    file: str
    arguments: Structure
    threads: int


def _structures(text: str) -> dict[str, Structure]:
    """The structures that a header declares, in its order: a field's type is a scalar, a pointer or one before it."""
    found: dict[str, Structure] = {}
    text = re.sub(r"//.*", "", text)
    for name, body in re.findall(r"struct (\w+) \{(.*?)\};", text, re.DOTALL):
        fields: list[str] = []
        pointers = set[str]()
        layout, size, most = "", 0, 1
        for declaration in filter(None, (each.strip() for each in body.split(";"))):
            kind, _, names = declaration.rpartition("*") if "*" in declaration else ("", "", declaration)
            if not kind:
                kind, names = declaration.split(" ", 1)
                if kind == "unsigned" or kind == "const":
                    raise ValueError(f"struct {name}: cannot read {declaration!r}")
            for field in (each.strip() for each in names.split(",")):
                if "*" in declaration:
                    code, width, alignment = "Q", 8, 8
                    pointers.add(field)
                elif kind in found:
                    inner = found[kind]
                    code, width, alignment = f"{inner.layout.size}s", inner.layout.size, inner.alignment
                else:
                    code = _SCALARS[kind]
                    width = alignment = struct.calcsize(code)
                gap = -size % alignment
                layout += f"{gap}x{code}"
                size += gap + width
                most = max(most, alignment)
                fields.append(field)
        layout += f"{-size % most}x"
        found[name] = Structure(name, tuple(fields), frozenset(pointers), struct.Struct("=" + layout), most)
    return found


@cache
def structures() -> Mapping[str, Structure]:
    """The structures of `arguments.cuh` by name."""
    return _structures((FOLDER / "arguments.cuh").read_text("utf-8"))


@cache
def kernels() -> Mapping[str, Kernel]:
    """All kernels by name."""
    found: dict[str, Kernel] = {}
    for path in sorted(FOLDER.glob("*.cu")):
        text = path.read_text("utf-8")
        for name, arguments, threads in re.findall(r"^KERNEL\((\w+), (\w+), (\w+)\)", text, re.MULTILINE):
            number = threads
            if not threads.isdecimal():
                [number] = re.findall(rf"^#define {threads} (\d+)", text, re.MULTILINE)
            found[name] = Kernel(name, path.stem, structures()[arguments], int(number))
    return found


def files() -> list[str]:
    """The names of the files that hold kernels, without suffix."""
    return sorted({kernel.file for kernel in kernels().values()})


def headers() -> dict[str, str]:
    """Name -> text of every header."""
    return {path.name: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.cuh"))}


def source(file: str) -> str:
    """The text of a file of kernels."""
    return (FOLDER / f"{file}.cu").read_text("utf-8")
