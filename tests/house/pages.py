"""Pages of documentation: a Markdown file comes in, its code blocks, commands, links and paths come out.

    python -m tests.house.pages docs/python.md [--write]

runs the Python blocks of a page in order, in the current folder and in one namespace; `--write` writes their output
into the page.

- A `python` block runs, and continues the blocks before it. One that begins with a line such as
  `# sparsegen/models/gaugan.py` quotes that file instead: its other lines stand there, one after another.
- A `cpp` block quotes a kernel's file, named in a line such as `// backends/cupy_cuda/kernels/copies.cu`.
- A `text` block that follows it is its output.
- A line of a `sh` block that begins with `sparsegen ` is a command that runs.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
    "weights/training/README.md",
)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_QUOTED = {
    "python": re.compile(r"# ((?:sparsegen|backends|weights|bench|tests)/\S+\.py)\n"),
    "cpp": re.compile(r"// ((?:backends|tests)/\S+\.(?:cuh?|h))\n"),
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    """The number of its first line in the page."""

    @property
    def quoted(self) -> str | None:
        """The file that a block quotes; None: it quotes none."""
        begins = _QUOTED.get(self.language)
        found = begins and begins.match(self.text)
        return found[1] if found else None

    @property
    def runs(self) -> bool:
        """Whether it is Python that runs."""
        return self.language == "python" and self.quoted is None


def read(page: str) -> str:
    """The text of a page, by its path from the root."""
    return (ROOT / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = read(page)
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start(2)) + 1) for found in _FENCE.finditer(text)
    ]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def commands(page: str) -> list[str]:
    """The `sparsegen` lines of a page's `sh` blocks, without the program's name and comments."""
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    return [
        line.partition(" # ")[0].split(" ", 1)[1].strip() for line in lines if line.startswith("sparsegen ")
    ]


def links(page: str) -> list[str]:
    """The targets of a page's links within the repository, such as `python.md#seeds`."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link for link in found if not link.startswith("http")]


def headings(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub writes them: "At the door: why" is `at-the-door-why`."""
    found = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def spans(page: str) -> list[str]:
    """The words in backticks outside of blocks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def run(page: str, *, write: bool = False) -> None:
    """Run the Python blocks of a page, and compare their output with the output that the page shows.

    `write`: write their output into the page instead. Raises AssertionError where the two differ.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    all_blocks, lines = blocks(page), read(page).splitlines(keepends=True)
    shown: list[tuple[Block, str]] = []
    for block, following in zip(all_blocks, [*all_blocks[1:], None], strict=True):
        if not block.runs:
            continue
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        print(printed.getvalue(), end="")
        if following is not None and following.language == "text":
            shown.append((following, printed.getvalue()))
            assert write or printed.getvalue() == following.text, (
                f"{page}, line {block.line}: the block prints\n{printed.getvalue()}"
            )
    for block, text in reversed(shown if write else []):
        lines[block.line - 1 : block.line - 1 + block.text.count("\n")] = [text]
        (ROOT / page).write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    run(sys.argv[1], write="--write" in sys.argv)
