"""What Python reads of the kernels' sources is what compilers make of them."""

from __future__ import annotations

import ast
import re
import struct
import subprocess
from itertools import accumulate
from pathlib import Path

import pytest

from sparsegen.backends import cupy_cuda
from sparsegen.backends.cupy_cuda import sources
from sparsegen.backends.cupy_cuda.sources import kernels, structures
from tests.cuda import emulator
from tests.cuda.emulator import libraries

compiled = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)


@compiled
def test_arguments_are_as_large_as_the_compiler_makes_them() -> None:
    for kernel in kernels().values():
        assert kernel.arguments.layout.size == libraries()[kernel.file].size_of(kernel.name), kernel.name


def offsets(structure: sources.Structure) -> list[int]:
    """The offset of each field, from the structure's format: `=0xQ0xi4xd…`, gap and type in turn."""
    parts = re.findall(r"(\d+)x(\d*[a-zA-Z])", structure.layout.format)
    ends = accumulate(int(gap) + struct.calcsize("=" + code) for gap, code in parts)
    return [end - struct.calcsize("=" + code) for end, (_, code) in zip(ends, parts, strict=True)]


@compiled
def test_fields_lie_where_the_compiler_lays_them(tmp_path: Path) -> None:
    lines = [
        f'  printf("{name}.{field} %zu\\n", offsetof({name}, {field}));'
        for name, structure in structures().items()
        for field in structure.fields
    ]
    lines += [f'  printf("{name} %zu %zu\\n", sizeof({name}), alignof({name}));' for name in structures()]
    program = [
        "#include <cstddef>",
        "#include <cstdio>",
        '#include "arguments.cuh"',
        "int main() {",
        *lines,
        "}",
    ]
    source, binary = tmp_path / "offsets.cpp", tmp_path / "offsets"
    source.write_text("\n".join(program), "utf-8")
    assert emulator.COMPILER is not None
    subprocess.run([emulator.COMPILER, "-I", str(sources.FOLDER), str(source), "-o", str(binary)], check=True)
    printed = subprocess.run([str(binary)], check=True, capture_output=True, text=True).stdout.splitlines()
    expected = [
        f"{name}.{field} {offset}"
        for name, structure in structures().items()
        for field, offset in zip(structure.fields, offsets(structure), strict=True)
    ]
    expected += [f"{name} {each.layout.size} {each.alignment}" for name, each in structures().items()]
    assert printed == expected


def test_a_header_is_read() -> None:
    found = sources._structures(
        """
struct Inner {              // a comment; with a semicolon
  const unsigned char* a;
  int b, c;
};
struct Outer { int x; Inner first, second; double d; float y; };
"""
    )
    assert found["Inner"].fields == ("a", "b", "c")
    assert found["Inner"].pointers == {"a"}
    assert (found["Inner"].layout.size, offsets(found["Inner"])) == (16, [0, 8, 12])
    assert found["Outer"].fields == ("x", "first", "second", "d", "y")
    assert (found["Outer"].layout.size, offsets(found["Outer"])) == (56, [0, 8, 24, 40, 48])
    packed = found["Inner"].pack(lambda array: 17, {"a": "array", "b": 1, "c": -1})
    assert packed == bytes([17, *[0] * 7, 1, 0, 0, 0, 255, 255, 255, 255])
    assert found["Inner"].pack(lambda array: 17, {"a": None, "b": 0, "c": 0}) == bytes(16)
    with pytest.raises(KeyError, match="c"):
        found["Inner"].pack(id, {"a": None, "b": 0})


@pytest.mark.parametrize(
    "declaration",
    [
        "unsigned a",
        "long long a",
        "const int a",
        "Unknown a",
        "float* a, b",  # in C, b is a float
        "float* a, *b",
        "float a[2]",
        "int a : 3",
        "int a = 3",
        "float",
    ],
)
def test_a_declaration_that_is_not_read_is_an_error(declaration: str) -> None:
    text = f"struct Inner {{ int x; }};\nstruct Broken {{ {declaration}; }};"
    with pytest.raises(
        ValueError, match=rf"struct Broken: cannot read '{re.escape(declaration)}'; expected `type\*"
    ):
        sources._structures(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("struct A { int x; };\nstruct B\n{ int x; };", "1 structures are declared as `struct Name"),
        ("struct A { struct B { int y; } x; };", "0 structures are declared as"),
        ("struct A { int x, x; };", "struct A: a name is declared twice"),
        ("struct A { int x; };\nstruct A { int y; };", "struct A: a name is declared twice"),
    ],
)
def test_a_structure_that_is_not_read_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sources._structures(text)


def test_kernels_are_read() -> None:
    text = "struct A { int x; };\n#define T 64\nKERNEL(one, A, T) {\nKERNEL(two, Pointwise, 32) { }"
    found = sources.kernels_of("file", text)
    assert [(each.name, each.file, each.threads) for each in found.values()] == [
        ("one", "file", 64),
        ("two", "file", 32),
    ]
    assert found["one"].arguments.fields == ("x",)
    assert found["two"].arguments is structures()["Pointwise"]
    for line in ("KERNEL(one, A, 8 * 4) {", "  KERNEL(one, A, 32) {", "KERNEL(one,\n       A, 32) {"):
        with pytest.raises(ValueError, match=r"file.cu: cannot read .* expected `KERNEL\(name"):
            sources.kernels_of("file", line)
    again = "KERNEL(one, Pointwise, 32)\nKERNEL(one, Pointwise, 32)"
    for line in ("KERNEL(one, B, 32)", "KERNEL(one, Pointwise, T)", again):
        with pytest.raises(ValueError, match=r"file.cu: .*expected a new name, a structure that is declared"):
            sources.kernels_of("file", line)


def test_every_kernel_is_launched() -> None:
    """By its name, or by a string with parts to be filled in that matches it."""
    patterns: set[str] = set()
    for path in Path(cupy_cuda.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                patterns.add(re.escape(node.value))
            elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                filled = (
                    re.escape(str(v.value)) if isinstance(v, ast.Constant) else r"\w+" for v in node.values
                )
                patterns.add("".join(filled))
    dead = [name for name in kernels() if not any(re.fullmatch(each, name) for each in patterns)]
    assert not dead


def test_every_structure_is_used() -> None:
    taken = {kernel.arguments.name for kernel in kernels().values()}
    text = (sources.FOLDER / "arguments.cuh").read_text("utf-8")
    unused = [
        name
        for name in structures()
        if name not in taken and not re.search(rf"^  (const )?{name}\*? ", text, re.M)
    ]
    assert not unused
