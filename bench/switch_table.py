"""The switches: each trick of the CPU kernels as data, with the exact text replacements that turn it off.

A replaced text occurs exactly once in its file, which a test holds: a constant that is renamed, or set to another
value, is noticed here. Turned off, a kernel computes the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.switch_cases import (
    ATTENTION_16,
    ATTENTION_32,
    BIG,
    BIG_POINTS,
    COLD_8,
    COLD_FOUR,
    COLD_LOWEST,
    COLD_TWELVE,
    DEEP_8,
    DEEP_16,
    DEEP_32,
    DEEP_POINTS,
    EXACT_STREET_EDIT,
    FEW_POINTS,
    FIRST,
    FOUR,
    MIDDLE,
    NARROW,
    NUMBERING,
    ONE_TILE,
    PENDING,
    PENDING_16,
    POINTS,
    STEP,
    STREET_EDIT,
    STRIDED,
    TWELVE,
    WIDE,
    WIDE_POINTS,
    WINDOWS,
    Timed,
)

KERNELS = Path("backends") / "numba_cpu"
"""The folder of the CPU kernels, in the checkout."""


class SwitchError(Exception):
    """The error of a switch that does not fit the sources."""


@dataclass(frozen=True)
class Change:
    """A replacement in a file."""

    file: str
    """Of `KERNELS`; with a folder, of the checkout."""
    text: str
    """It occurs exactly once in the file."""
    instead: str

    @property
    def path(self) -> Path:
        """The file, in the checkout."""
        return Path(self.file) if "/" in self.file else KERNELS / self.file


@dataclass(frozen=True)
class Switch:
    """A trick, and how it is turned off."""

    name: str
    trick: str
    """What the kernels do: the beginning of a sentence, "windows of neighbours are gathered once"."""
    without: str
    """What they do instead when it is off, likewise."""
    changes: tuple[Change, ...]
    cases: tuple[Timed, ...]
    """What it may affect; the others are not timed."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The changed files, in the checkout."""
        return tuple(dict.fromkeys(change.path for change in self.changes))

    def sources(self, root: Path) -> dict[Path, str]:
        """The changed files, by path, of the checkout in `root`.

        Raises
        ------
        SwitchError
            A text does not occur exactly once in its file.
        """
        found: dict[Path, str] = {}
        for change in self.changes:
            path = root / change.path
            source = found.get(path) or path.read_text("utf-8")
            if (count := source.count(change.text)) != 1:
                raise SwitchError(
                    f"switch {self.name}: {change.text!r} occurs {count} times in {change.path}, expected "
                    f"once; correct the text in bench/switch_table.py"
                )
            found[path] = source.replace(change.text, change.instead)
        return found


def named(names: Iterable[str]) -> tuple[Switch, ...]:
    """The switches of these names, in the order of the table; no names: all. Raises SwitchError for an unknown name."""
    wanted = dict.fromkeys(names)
    known = [switch.name for switch in SWITCHES]
    for name in wanted:
        if name not in known:
            raise SwitchError(f"unknown switch {name}; known: {', '.join(known)}")
    return tuple(switch for switch in SWITCHES if not wanted or switch.name in wanted)


_DEEP = (DEEP_32, DEEP_16, DEEP_8, TWELVE, FOUR)
_COLD = (COLD_LOWEST, COLD_8, COLD_TWELVE, COLD_FOUR)


def _beginning_with(text: str, lines: Iterable[str]) -> Change:
    """The transform that begins with `text` does `lines` instead, and returns."""
    instead = "".join(f"    {line}\n" for line in (*lines, "return"))
    return Change("transforms.py", f"    {text}", f"{instead}    {text}")


def _of_columns(row: int, count: int) -> str:
    """A row's value of each of the transformed columns."""
    return ", ".join(f"c{column}[{row}]" for column in range(count))


_ALL_ROWS_AT_ONCE = (
    _beginning_with(
        "_store_input_end(scratch, window, column, row, at, step)",
        [
            *(
                f"c{x} = _input_4(*(_load_3(scratch, window + {x} * column, row)"
                f" + _load_3(scratch, window + {x} * column + 3 * row, row)))"
                for x in range(6)
            ),
            *(
                f"_store_6(scratch, at + {6 * y} * step, step, _input_4({_of_columns(y, 6)}))"
                for y in range(6)
            ),
        ],
    ),
    _beginning_with(
        "c0 = _output_even(*_load_5(scratch, sums, 6 * step))",
        [
            *(
                f"c{x} = _output_4(*(_load_3(scratch, sums + {x} * step, 6 * step)"
                f" + _load_3(scratch, sums + {x + 18} * step, 6 * step)))"
                for x in range(6)
            ),
            *(f"_store_4(scratch, at + {y} * line, pixel, _output_4({_of_columns(y, 6)}))" for y in range(4)),
        ],
    ),
    _beginning_with(
        "_store_6(scratch, at, step, _kernel_4(*_load_3(weights, kernel, tap)))",
        [
            *(f"c{x} = _kernel_4(*_load_3(weights, kernel + {x} * tap, 3 * tap))" for x in range(3)),
            *(
                f"_store_6(scratch, at + {6 * y} * step, step, _kernel_4({_of_columns(y, 3)}))"
                for y in range(6)
            ),
        ],
    ),
)
_ROWS_APART = (Change("reading.py", "at + (rows + 1) * run <= end", "at + (rows + 1) * run <= at"),)

SWITCHES = (
    # -- the matrix product (gemm.py) ------------------------------------------------------------------------
    Switch(
        "even-blocks",
        "rows are cut evenly into as few blocks of the product as hold them",
        "into the largest blocks, then a half one, then single rows",
        (
            Change(
                "gemm.py",
                "size = ceil_div(rows - m, max(1, blocks))",
                "size = ROWS if rows - m >= ROWS else (ROWS // 2 if rows - m >= ROWS // 2 else 1)",
            ),
        ),
        (BIG, MIDDLE, *_DEEP, POINTS, DEEP_POINTS, STRIDED, WINDOWS),
    ),
    Switch(
        "fetch-weights",
        "a step of the product prefetches a line of the next panel of weights",
        "the processor's own prefetcher is left alone",
        (Change("gemm.py", "ir_prefetch(builder, builder.gep(step, [ahead]))", "pass"),),
        (BIG, DEEP_16, FOUR, POINTS, DEEP_POINTS, STRIDED, WINDOWS),
    ),
    Switch(
        "long-pieces",
        "the depth of a product is taken in pieces that stream from a second-level cache",
        "in pieces that fill half of a first-level cache, and load and store sums four times as often",
        (Change("gemm.py", "DEPTH = 16384 // PANEL", "DEPTH = 4096 // PANEL"),),
        (POINTS, DEEP_POINTS, STRIDED),
    ),
    Switch(
        "lines",
        "weights and canvases begin at a cache line",
        "a quarter of a line later, so that each vector of a line's length lies in two",
        (Change("arrays.py", "-(raw.ctypes.data // size)", "(16 - raw.ctypes.data) // size"),),
        (BIG, *_DEEP, POINTS, DEEP_POINTS, STRIDED),
    ),
    # -- Winograd's convolution (winograd.py) ----------------------------------------------------------------
    Switch(
        "winograd-batch",
        "kernels are transformed once for up to 48 tiles, three rows of 16",
        "for up to 32, two rows",
        (Change("winograd.py", "BAND, STRIP = 3, 16", "BAND, STRIP = 2, 16"),),
        (BIG, WIDE, MIDDLE, DEEP_32, DEEP_16),
    ),
    Switch(
        "winograd-piece",
        "64 input channels are transformed and multiplied at a time",
        "32, so sums are loaded and stored twice as often",
        (Change("winograd.py", "PIECE = 64", "PIECE = 32"),),
        (BIG, MIDDLE, *_DEEP),
    ),
    Switch(
        "winograd-group",
        "two panels of outputs are multiplied at a time, which share the reads of inputs",
        "one",
        (Change("winograd.py", "GROUP = 2", "GROUP = 1"),),
        (BIG, MIDDLE, *_DEEP),
    ),
    Switch(
        "winograd-kept",
        "a thread keeps a small layer's transformed kernels from one batch to the next",
        "it transforms them anew for each batch",
        (Change("winograd.py", "kept = splits == 1 and", "kept = splits < 1 and"),),
        (BIG, PENDING),
    ),
    Switch(
        "winograd-rows",
        "a transform computes one or two rows between its two products at a time, from columns loaded again for each",
        "all rows, more than the registers hold",
        _ALL_ROWS_AT_ONCE,
        (BIG, NARROW, MIDDLE, *_DEEP),
    ),
    Switch(
        "winograd-few",
        "for up to 16 tiles (AVX-512) kernels are transformed in registers, where they are multiplied",
        "transformed kernels are stored, and read back by the products",
        (Change("winograd.py", "FEW = TARGET.few", "FEW = 0"),),
        (DEEP_8, FOUR, *_COLD),
    ),
    Switch(
        "winograd-vectors",
        "the kernels of a vector of outputs lie together, and a piece of them stays in a first-level cache",
        "those of a panel's two vectors alternate, and half of what is prefetched is of no use",
        (
            Change("few_tiles.py", "TAP = WIDTH", "TAP = PANEL"),
            Change(
                "winograd.py",
                "return output * depth",
                "return output // PANEL * PANEL * depth + output % PANEL",
            ),
        ),
        (DEEP_8, FOUR, TWELVE, *_COLD, BIG, STREET_EDIT),
    ),
    Switch(
        "winograd-fetch",
        "the products prefetch the kernels that are transformed next",
        "the transform waits for them",
        (Change("winograd.py", "if next_piece >= 0:", "if next_piece < -1:"),),
        (DEEP_8, TWELVE, FOUR, *_COLD),
    ),
    Switch(
        "winograd-lines",
        "a line more than needed lies between the 36 positions, which then fall into different sets of the caches",
        "they lie at distances of powers of two",
        (
            Change("winograd.py", "GROUP * PIECE * PANEL + LINE", "GROUP * PIECE * PANEL"),
            Change("winograd.py", "batch * round_up(pixel, PIECE) + LINE", "batch * round_up(pixel, PIECE)"),
            Change("winograd.py", "GROUP * batch * PANEL + LINE", "GROUP * batch * PANEL"),
        ),
        (BIG, MIDDLE, *_DEEP),
    ),
    # -- reading ---------------------------------------------------------------------------------------------
    Switch(
        "shared-windows",
        "neighbouring tiles are gathered together: the pixels that their windows share, and the work pending on them, "
        "are read and computed once",
        "each tile gathers its whole window",
        (Change("reading.py", "at + run < end", "at + run < at"), *_ROWS_APART),
        (BIG, PENDING, MIDDLE, TWELVE, FIRST, STRIDED),
    ),
    Switch(
        "joined-pixels",
        "what is done to every value of a window's line alike is one loop over all its pixels",
        "a loop for each pixel",
        (
            Change(
                "reading.py",
                "_read_pixels(r, sample, top + y, left + begin, end - begin, buffer, to + begin * pixel, pixel)",
                "for x in range(begin, end):\n"
                "            _read_pixels(r, sample, top + y, left + x, 1, buffer, to + x * pixel, pixel)",
            ),
        ),
        (NARROW, PENDING, BIG, STRIDED),
    ),
    Switch(
        "shared-rows",
        "Winograd gathers tiles below one another together too, in blocks of three rows of 16",
        "tiles of one row, in batches of 48",
        (
            *_ROWS_APART,
            Change(
                "winograd.py", "np.lexsort((column, row, column // STRIP, row // BAND, n))", "slice(None)"
            ),
        ),
        (BIG, PENDING, MIDDLE, DEEP_32, TWELVE),
    ),
    # -- the direct convolution (direct.py) ------------------------------------------------------------------
    Switch(
        "read-in-place",
        "a 1×1 kernel's product reads pixels where they lie in the canvas",
        "they are copied into windows first",
        (
            Change(
                "direct.py",
                "IN_PLACE if in_place else IN_ROWS if shallow else IN_WINDOWS",
                "IN_ROWS if shallow else IN_WINDOWS",
            ),
        ),
        (POINTS, DEEP_POINTS, FEW_POINTS),
    ),
    Switch(
        "by-lines",
        "outputs of tiles that lie side by side are computed and written line by line",
        "tile by tile",
        (
            Change(
                "direct.py",
                "        run = run_of(tiles, first + t, first + count)\n        row = t * PIXELS\n",
                "        run = 1\n        row = t * PIXELS\n",
            ),
            Change(
                "direct.py",
                """
            for j in range(TILE * run):
                places[row] = window + (i * at.line + j * (inputs // pair)) * g.stride
                row += 1
""",
                """
            for j in range(TILE * run):
                tile = (j // TILE * TILE + i) * TILE + j % TILE
                places[row + tile] = window + (i * at.line + j * (inputs // pair)) * g.stride
""",
            ),
            Change(
                "winograd.py",
                "run_of(tiles, first + t, first + count)\n        line = TILE",
                "1\n        line = TILE",
            ),
            Change("writing.py", "run = run_of(tiles, first + t, first + count)", "run = 1"),
        ),
        (POINTS, BIG_POINTS, WIDE_POINTS, STRIDED, BIG, PENDING, WIDE),
    ),
    Switch(
        "copied-taps",
        "taps of few channels are copied side by side first, so the product has one piece of depth",
        "a piece for each row of taps",
        (Change("direct.py", "SHALLOW = 48", "SHALLOW = 0"),),
        (FIRST,),
    ),
    Switch(
        "direct-batch",
        "weights are read once for up to 32 tiles, or 64 whose inputs are read in place",
        "for up to 4",
        (
            Change("direct.py", "BATCH = 32", "BATCH = 4"),
            Change("direct.py", "BATCH_IN_PLACE = 64", "BATCH_IN_PLACE = 4"),
        ),
        (POINTS, DEEP_POINTS, STRIDED, FIRST),
    ),
    Switch(
        "in-place-batch",
        "batches of inputs that are read in place have up to 64 tiles",
        "up to 16",
        (Change("direct.py", "BATCH_IN_PLACE = 64", "BATCH_IN_PLACE = 16"),),
        (POINTS, BIG_POINTS, WIDE_POINTS, DEEP_POINTS),
    ),
    Switch(
        "direct-cache",
        "a batch's windows and sums fit a second-level cache",
        "a batch has 128 tiles, whatever they take",
        (
            Change("direct.py", "\nCACHE = 1 << 18", "\nCACHE = 1 << 30"),
            Change("direct.py", "CACHE_IN_PLACE = 1 << 17", "CACHE_IN_PLACE = 1 << 30"),
            Change("direct.py", "BATCH = 32", "BATCH = 128"),
            Change("direct.py", "BATCH_IN_PLACE = 64", "BATCH_IN_PLACE = 128"),
        ),
        (POINTS, STRIDED, FIRST),
    ),
    # -- attention (attention.py) ----------------------------------------------------------------------------
    Switch(
        "attention-blocks",
        "keys are taken in blocks, whose scores stay in the first-level cache (the online softmax)",
        "all keys at once",
        (Change("attention.py", "BLOCK = 192 //", "BLOCK = 4096 //"),),
        (ATTENTION_16, ATTENTION_32),
    ),
    Switch(
        "attention-together",
        "the queries of 8 tiles are taken together: keys and values are read once for them",
        "those of one tile",
        (Change("attention.py", "TOGETHER = 8", "TOGETHER = 1"),),
        (ATTENTION_16, ATTENTION_32),
    ),
    Switch(
        "attention-fetch",
        "the next block of keys and values is prefetched",
        "the processor's own prefetcher is left alone",
        (Change("attention.py", "following = min(BLOCK, tokens - first - count)", "following = 0"),),
        (ATTENTION_16, ATTENTION_32),
    ),
    # -- codebooks (codebooks.py) ----------------------------------------------------------------------------
    Switch(
        "shared-products",
        "the product of a tap and a code is computed once for all windows that have it",
        "for each window",
        (Change("codebooks.py", "if places[code] < start:", "if code >= 0:"),),
        (WINDOWS,),
    ),
    Switch(
        "one-window",
        "the windows of a tile, or of a row of it, that one pixel fills are one window",
        "each is compared with its left neighbour's",
        (Change("codebooks.py", "within = first_y >= 0 and", "within = first_y > last_y and"),),
        (NUMBERING,),
    ),
    Switch(
        "last-window",
        "a window is first compared with its left neighbour's",
        "each is looked up in the hash table",
        (Change("codebooks.py", "if last >= 0:", "if last < -1:"),),
        (NUMBERING,),
    ),
    # -- launches (launch.py, waiting.py, regions.py) --------------------------------------------------------
    Switch(
        "own-tiles",
        "threads take tiles of their own, if each can have a few",
        "they share the output panels, and each prepares the windows of all tiles",
        (
            Change(
                "launch.py",
                "batches = max(own) if own else min(fair, default=unfair)",
                "batches = min(fair, default=unfair)",
            ),
        ),
        (DEEP_16, PENDING_16, TWELVE, COLD_TWELVE, DEEP_POINTS),
    ),
    Switch(
        "split-panels",
        "of fewer tiles the threads share the output panels, so each reads a part of the weights",
        "they share the tiles, and each reads all weights",
        (
            Change(
                "launch.py",
                "batches = max(own) if own else min(fair, default=unfair)",
                "batches = max(fair, default=unfair)",
            ),
        ),
        (DEEP_8, FOUR, COLD_8, COLD_FOUR),
    ),
    Switch(
        "even-batches",
        "the number of batches is a multiple of the threads",
        "as few batches as hold the tiles, so one thread may have one more",
        (Change("launch.py", "batches = round_up(batches, self.threads)", "pass"),),
        (WIDE,),
    ),
    Switch(
        "alone",
        "a kernel of less than a million operations runs in one thread",
        "every kernel calls the helpers",
        (Change("launch.py", "ALONE = 1e6", "ALONE = 0.0"),),
        (ONE_TILE,),
    ),
    Switch(
        "together",
        "a kernel of a million operations or more runs in several threads",
        "of ten million or more",
        (Change("launch.py", "ALONE = 1e6", "ALONE = 1e7"),),
        (FEW_POINTS,),
    ),
    Switch(
        "polling",
        "helpers poll for the next kernel, and the caller for the last helper, for a moment before they sleep",
        "they sleep at once",
        (Change("waiting.py", "POLLS = 20000", "POLLS = 0"),),
        (DEEP_16, DEEP_8, TWELVE, FOUR, DEEP_POINTS, ATTENTION_16),
    ),
    Switch(
        "queue",
        "kernels are queued, and helpers compute them while Python prepares the next ones",
        "each launch waits for its kernel",
        (
            Change(
                "launch.py",
                "make = self._pool.queue if self._watchful and queued.is_within() else self._pool.run",
                "make = self._pool.run",
            ),
        ),
        (STEP, STREET_EDIT),
    ),
    Switch(
        "reused-canvases",
        "the memory of canvases that are freed serves the next ones",
        "the system finds new memory",
        (
            Change(
                "sparsegen/engine/own_store.py",
                "return OwnStore(turn) if backend.in_main_memory else BackendAllocator(backend, turn=turn)",
                "return BackendAllocator(backend, turn=turn)",
            ),
        ),
        (STREET_EDIT, EXACT_STREET_EDIT),
    ),
    Switch(
        "remembered-layouts",
        "the layout of the scratch is computed once for each shape",
        "at each launch",
        (Change("regions.py", "kept: Any = lru_cache(maxsize=1024)(layout)", "kept: Any = layout"),),
        (FOUR, FEW_POINTS),
    ),
)
