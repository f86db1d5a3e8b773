"""3×3 convolutions of stride 1 by Winograd's F(4×4, 3×3): a tile's 6×6 window and 36 products instead of 144.

Summed over the input channels, `y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A` (see `transforms.py`) is, for each position in the
transformed window, a plain product of [tiles, inputs] with [inputs, outputs]. A batch of tiles goes through gather,
transform, products, transform and epilogue while it lies in the cache.

Kernels are stored as they are, 9 floats each, and transformed where they are multiplied, a piece of the depth at a
time: 36 floats each take 4 times the memory, and 4 times as long to read, which is what few tiles and many channels
wait for. The transform is 54 operations on a vector of kernels where the products are 36 for each tile. Measured with
weights that no cache holds (2 cores, AVX-512), against transformed ones in memory, and F(2×2, 3×3) where that was
better: 1.1 to 1.7 times as fast for 2 to 16 tiles of 256 to 1024 channels; within 10 % where tiles are many.
(0.8 times for a single tile of a layer that has four: its products have but one row.)

Errors, relative to the largest value of a layer of 512 inputs: 1.2e-6, of 1024 inputs 1.3e-6, because each piece of
the depth is a sum of its own (one chain through all of them: 5e-6); with weights in float16 2e-4 and in bfloat16
1.7e-3, as rounding weights gives in a direct convolution too: it is not the transformed ones that are rounded.
"""

from __future__ import annotations

from typing import Any

from numba import types

from ..interface import TILE
from .gemm import ADD, LINE, PANEL, REPLACE, multiply_rows
from .items import take_items
from .jit import inline, kernel
from .packing import BFLOAT16, FLOAT32, PACKED
from .reading import READING, read_window, run_of, whole_vectors
from .simd import WIDTH, fetch, store, widen
from .transforms import transform_input_4, transform_kernel_4, transform_output_4
from .writing import WRITING, write_tile

WINDOW = TILE + 2
"""Pixels along one side of what a tile reads."""
PRODUCTS = WINDOW * WINDOW
TAPS = 9
BATCH = 32
"""Tiles for which a piece of the weights is transformed once."""
PIECE = 32
"""Input channels transformed and multiplied at a time. The order in which sums are rounded hangs on it."""
GROUP = 2
"""Panels transformed and multiplied at a time: inputs are read once for them."""
KEPT = 5 << 17
"""Floats of a layer's transformed weights that a thread keeps from one batch of tiles to the next."""
_BLOCK = GROUP * PIECE * PANEL + LINE
"""Floats from one product's weights to the next: a line more than needed keeps them in different sets of the cache."""


@kernel(types.void(types.int64[::1], types.int64, types.float32[:, ::1], types.float32[::1]))
def pack(counter: Any, items: int, weight: Any, packed: Any) -> None:
    """`weight` `[O, I * 9]` → `packed` `[panels, I * 9, PANEL]`, outputs filled up with zeros; items are panels."""
    outputs, depth = weight.shape
    for panel in take_items(counter, items):
        count = min(PANEL, outputs - panel * PANEL)
        for first in range(0, depth, LINE):  # a line of each output, which are a line of each panel's column
            steps, at = min(LINE, depth - first), (panel * depth + first) * PANEL
            for o in range(PANEL):
                for k in range(steps):
                    packed[at + k * PANEL + o] = weight[panel * PANEL + o, first + k] if o < count else 0.0


def kept_floats(inputs: int, outputs: int) -> int:
    """What a layer's transformed weights take."""
    return PRODUCTS * _BLOCK * -(-inputs // PIECE) * -(-outputs // (GROUP * PANEL))


def scratch_floats(batch: int, inputs: int, outputs: int, panels: int, residual: bool, kept: bool) -> int:
    """What `convolve` needs for batches of `batch` tiles and shares of `panels` panels."""
    stride = whole_vectors(inputs)
    window = WINDOW * (TILE * batch + 2) * stride
    sums = PRODUCTS * (batch * (stride + GROUP * PANEL) + 2 * LINE)
    transformed = kept_floats(inputs, outputs) if kept else PRODUCTS * _BLOCK
    rest = TILE * TILE * outputs if residual else 0
    return (
        window
        + sums
        + transformed
        + TAPS * PIECE * PANEL
        + TILE * TILE * batch * panels * PANEL
        + rest
        + 4 * LINE
        + 8 * WIDTH
    )


@inline
def _transform(weights: Any, at: int, steps: int, scratch: Any, wide: int, to: int) -> None:
    """`weights[at:]` `[steps, TAPS, PANEL]`, a panel's piece, to `scratch[to:]` `[PRODUCTS, steps, PANEL]`.

    `scratch[wide:]` takes a piece of weights that are stored in 16 bits.
    """
    kernels, start = weights.floats, at
    if weights.stored != FLOAT32:
        kernels, start = scratch, wide
        for i in range(0, steps * TAPS * PANEL, WIDTH):
            store(scratch, wide + i, widen(weights.halves, at + i, weights.stored == BFLOAT16))
    for k in range(steps):
        for c in range(0, PANEL, WIDTH):
            transform_kernel_4(
                kernels, start + k * TAPS * PANEL + c, PANEL, scratch, to + k * PANEL + c, _BLOCK
            )


@inline
def _fetch(weights: Any, at: int, part: int) -> None:
    """Have one of the PRODUCTS parts of a panel's piece of weights brought near."""
    count = TAPS * PIECE * PANEL // PRODUCTS
    first = at + part * count
    if weights.stored == FLOAT32:
        for i in range(0, count, LINE):
            fetch(weights.floats, first + i)
    else:
        for i in range(0, count, 2 * LINE):
            fetch(weights.halves, first + i)


@kernel(
    types.void(
        types.int64[::1],
        types.int64,
        types.int64,
        types.int64,
        types.int64,
        types.int32[:, ::1],
        READING,
        types.int64,
        types.int64,
        PACKED,
        WRITING,
        types.float32[::1],
    )
)
def convolve(
    counter: Any,
    items: int,
    batch: int,
    splits: int,
    kept: int,
    tiles: Any,
    r: Any,
    top: int,
    left: int,
    weights: Any,
    w: Any,
    scratch: Any,
) -> None:
    """Take items (a batch of tiles × a share of the output panels) until none is left.

    With `kept`, what is transformed for the first item serves all; `splits` is 1 then.
    """
    inputs = r.first_channels + r.second_channels
    stride = -(-inputs // WIDTH) * WIDTH
    panels = -(-w.channels // PANEL)
    pieces = -(-inputs // PIECE)
    fresh = True
    for item in take_items(counter, items):
        first = item // splits * batch
        count = min(batch, len(tiles) - first)
        share = item % splits
        begin, end = panels * share // splits, panels * (share + 1) // splits
        outputs = (end - begin) * PANEL
        # where things lie in the scratch, what is kept in a place that no item changes
        transformed = 0
        blocks = -(-panels // GROUP) * pieces if kept else 1
        wide = transformed + blocks * PRODUCTS * _BLOCK
        inner = wide + TAPS * PIECE * PANEL
        inner_step = batch * stride + LINE
        sums = inner + PRODUCTS * inner_step
        sums_step = GROUP * batch * PANEL + LINE
        results = sums + PRODUCTS * sums_step
        spare = results + TILE * TILE * batch * outputs
        window = spare + (TILE * TILE * w.channels + WIDTH if w.has_residual else 0)

        t = 0
        while t < count:
            # neighbours in a row share their windows' columns: each pixel's prologue is computed once for them
            n, row, column = tiles[first + t, 0], tiles[first + t, 1], tiles[first + t, 2]
            run = run_of(tiles, first + t, first + count)
            line = TILE * run + 2
            read_window(r, n, row * TILE - top, column * TILE - left, WINDOW, line, scratch, window, stride)
            for i in range(run):
                for c in range(0, stride, WIDTH):
                    corner, to = window + TILE * i * stride + c, inner + (t + i) * stride + c
                    transform_input_4(scratch, corner, stride, line * stride, to, inner_step)
            t += run

        for panel in range(begin, end, GROUP):
            group = min(GROUP, end - panel)
            for k in range(0, inputs, PIECE):
                steps = min(PIECE, inputs - k)
                block = transformed
                if kept:
                    block += (panel // GROUP * pieces + k // PIECE) * PRODUCTS * _BLOCK
                transforms = fresh or not kept
                if transforms:
                    for g in range(group):
                        at = ((panel + g) * inputs + k) * TAPS * PANEL
                        _transform(weights, at, steps, scratch, wide, block + g * PIECE * PANEL)
                # meanwhile the next piece comes from memory: a part with each product
                follows = (panel * inputs + k + PIECE) * TAPS * PANEL
                if k + PIECE >= inputs:
                    follows = (panel + GROUP) * inputs * TAPS * PANEL
                for p in range(PRODUCTS):
                    for g in range(group):
                        if transforms:
                            _fetch(weights, follows + g * inputs * TAPS * PANEL, p)
                        multiply_rows(
                            scratch,
                            inner + p * inner_step + k,
                            stride,
                            scratch,
                            block + p * _BLOCK + g * PIECE * PANEL,
                            scratch,
                            sums + p * sums_step + g * batch * PANEL,
                            PANEL,
                            count,
                            steps,
                            ADD if k > 0 else REPLACE,
                        )
            for g in range(group):
                for t in range(count):
                    at = sums + (g * batch + t) * PANEL
                    to = results + t * TILE * TILE * outputs + (panel + g - begin) * PANEL
                    for c in range(0, PANEL, WIDTH):
                        transform_output_4(scratch, at + c, sums_step, to + c, outputs)
        fresh = False

        last = min(end * PANEL, w.channels)
        for t in range(count):
            n, row, column = tiles[first + t, 0], tiles[first + t, 1], tiles[first + t, 2]
            at = results + t * TILE * TILE * outputs
            write_tile(w, n, row, column, begin * PANEL, last, at, outputs, TILE * outputs, scratch, spare)
