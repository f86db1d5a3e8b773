"""Winograd's products of few tiles: kernels are transformed in registers and multiplied there, and stored nowhere.

    sums[p, t] += Σ_k inputs[p, t, k] · (G g_k Gᵀ)[p]          p: positions of the transformed window, t: tiles

A transformed kernel takes four times the room of the kernel. Written to the second-level cache and read back it serves
many tiles; for a few that takes longer than all their products. So a block computes one row of the 6×6 positions for a
few tiles: its sums stay in registers while k runs, and at each k it transforms that row of the kernel, 6 or 12
operations for up to 24 products, which takes 30 registers (`Target.few`). Either way a sum is one chain of
multiply-adds in the order of k, of the same transformed kernels, so a tile's bits do not depend on the way.

With so few products kernels come as fast as memory gives them. So every step prefetches a part of the next piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .gemm import LINE, PANEL
from .jit import inline
from .simd import I64, WIDTH, ir_constant, ir_fma, ir_load, ir_pointer, ir_prefetch, ir_splat, ir_store
from .sizes import ceil_div
from .transforms import KERNEL_4

SIDE, TAPS = 6, 9
"""Positions in a row of the transformed window; taps of a kernel."""
TAP = WIDTH
"""Floats from one tap to the next: kernels of a vector of outputs are `[inputs, TAPS, WIDTH]`. So a piece of them stays
in a first-level cache for all six rows. Taps that lie a panel apart fall into every second of its sets, and do not: an
edit takes 1.13 times as long (AVX-512, `winograd-vectors` of the switches)."""
TOGETHER = 4
"""Tiles of a block of a whole row of positions; twice as many have half a row: 24 sums."""
PACE = SIDE * WIDTH // 4
"""Floats that each step prefetches: the steps of a vector's six rows fetch the TAPS vectors of each of its kernels."""


def _row(builder: ir.IRBuilder, g: Sequence[ir.Value], positions: Sequence[int]) -> list[ir.Value]:
    """Rows `positions` of `KERNEL_4 @ g`, rounded as in `transforms.py`: 1 0 0, then 1 ±a a², then 0 0 1."""
    even: dict[float, ir.Value] = {}
    found = []
    for p in positions:
        _, a, square = (float(v) for v in KERNEL_4[p])
        if p in (0, SIDE - 1):
            found.append(g[2] if p else g[0])
            continue
        if square not in even:
            even[square] = ir_fma(builder, ir_constant(square), g[2], g[0])
        found.append(ir_fma(builder, ir_constant(a), g[1], even[square]))
    return found


def _block(tiles: int, positions: Sequence[int], tile_step: int, *, through: bool) -> Any:
    """The products of some positions of a row with `tiles` tiles, `tile_step` floats apart, as a function of Numba.

    `through`: the row of G selects a row of taps, which begins at `weight_at`. Else it is 1, `a`, `square`, and the
    first tap lies there. The sums are replaced, or if `resume` is negative added to. Each of the `steps` prefetches
    `pace` floats of `coming`, from `ahead` on.
    """
    cells = [(p, t) for p in positions for t in range(tiles)]

    @intrinsic
    def block(
        typing: Any,
        weights: Any,
        weight_at: Any,
        inputs: Any,
        input_at: Any,
        sums: Any,
        sum_at: Any,
        coming: Any,
        ahead: Any,
        pace: Any,
        input_step: Any,
        sum_step: Any,
        a: Any,
        square: Any,
        steps: Any,
        resume: Any,
    ) -> Any:
        def emit(context: Any, b: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
            taps, first, total, upcoming = (
                ir_pointer(context, b, sig.args[i], *args[i : i + 2]) for i in (0, 2, 4, 6)
            )
            pace, input_step, sum_step, a, square, steps, resume = args[8:]
            a, square, zero = ir_splat(b, a), ir_splat(b, square), ir_constant(0.0)
            numbers = {p: b.gep(first, [b.mul(input_step, I64(p))]) for p in positions}
            place = {(p, t): b.gep(total, [b.add(b.mul(sum_step, I64(p)), I64(t * PANEL))]) for p, t in cells}
            before, loop, done = b.block, b.append_basic_block("step"), b.append_basic_block("done")
            b.branch(loop)
            b.position_at_end(loop)
            k = b.phi(I64)
            k.add_incoming(I64(0), before)
            running = {cell: b.phi(zero.type) for cell in cells}
            kernel, line = b.gep(taps, [b.mul(k, I64(TAPS * TAP))]), b.gep(upcoming, [b.mul(k, pace)])
            for i in range(0, PACE, LINE):
                ir_prefetch(b, b.gep(line, [I64(i)]))
            y0, y1, y2 = (
                [ir_load(b, b.gep(kernel, [I64((3 * y + x) * TAP)])) for x in range(3)]
                for y in ((0, 0, 0) if through else range(3))
            )
            g = y0 if through else [ir_fma(b, a, y1[x], ir_fma(b, square, y2[x], y0[x])) for x in range(3)]
            kernels = dict(zip(positions, _row(b, g, positions), strict=True))
            summed = {}
            for p, t in cells:
                number = b.load(b.gep(numbers[p], [b.add(k, I64(t * tile_step))]))
                summed[p, t] = ir_fma(b, ir_splat(b, number), kernels[p], running[p, t])
            following = b.add(k, I64(1))
            k.add_incoming(following, loop)
            for cell in cells:
                running[cell].add_incoming(zero, before)
                running[cell].add_incoming(summed[cell], loop)
            b.cbranch(b.icmp_signed("<", following, steps), loop, done)
            b.position_at_end(done)
            with b.if_then(b.icmp_signed("<", resume, I64(0))):
                added = {cell: b.fadd(ir_load(b, place[cell]), summed[cell]) for cell in cells}
                adding = b.block
            for cell in cells:
                final = b.phi(zero.type)
                final.add_incoming(summed[cell], done)
                final.add_incoming(added[cell], adding)
                summed[cell] = final
            for cell in cells:
                ir_store(b, summed[cell], place[cell])
            return context.get_dummy_value()

        i, f = types.intp, types.float32
        return types.void(weights, i, inputs, i, sums, i, coming, i, i, i, i, f, f, i, i), emit

    return block


def _by_tiles(positions: Sequence[int], tile_step: int, *, through: bool) -> Any:
    """Blocks for 1 to TOGETHER tiles, as one function of their number and the blocks' arguments."""
    one, two, three, four = (
        _block(tiles, positions, tile_step, through=through) for tiles in range(1, TOGETHER + 1)
    )

    @inline
    def multiply(tiles: int, args: Any) -> None:
        if tiles == 4:
            four(*args)
        elif tiles == 3:
            three(*args)
        elif tiles == 2:
            two(*args)
        else:
            one(*args)

    return multiply


def products_of_few(tile_step: int) -> Any:
    """The function that multiplies kernels of a vector of outputs, `[steps, TAPS, WIDTH]` from `weights[w]` on:

        multiply(weights, w, inputs, a, input_step, sums, c, sum_step, coming, ahead, pace, tiles, steps, resume)

    Position p has the inputs `[tiles, steps]` from `a + p * input_step` on, a tile every `tile_step` floats, and the
    sums `[tiles, WIDTH]` from `c + p * sum_step` on, a tile every PANEL floats, which are replaced or added to
    (`resume`, as in `gemm.py`). Meanwhile as many floats of `coming` as the kernels have, from `ahead` on, are
    prefetched at PACE; at another `pace` in proportion.
    """
    whole, first, last = range(SIDE), range(SIDE // 2), range(SIDE // 2, SIDE)
    through, mixed = (_by_tiles(whole, tile_step, through=through) for through in (True, False))
    through_first, through_last, mixed_first, mixed_last = (
        _block(2 * TOGETHER, half, tile_step, through=through)
        for through in (True, False)
        for half in (first, last)
    )
    factors = np.ascontiguousarray(KERNEL_4[:, 1:], np.float32)

    @inline
    def multiply(
        weights: Any,
        w: int,
        inputs: Any,
        a: int,
        input_step: int,
        sums: Any,
        c: int,
        sum_step: int,
        coming: Any,
        ahead: int,
        pace: int,
        tiles: int,
        steps: int,
        resume: int,
    ) -> None:
        for i in range(SIDE):
            middle = i > 0 and i < SIDE - 1
            taps = w + (2 * 3 * TAP if i == SIDE - 1 else 0)  # the last row is that of the last taps
            line, each = ahead + i * steps * pace, pace
            t = 0
            while t < tiles:
                left = tiles - t
                args = (
                    weights,
                    taps,
                    inputs,
                    a + i * SIDE * input_step + t * tile_step,
                    sums,
                    c + i * SIDE * sum_step + t * PANEL,
                    coming,
                    line,
                    each,
                    input_step,
                    sum_step,
                    factors[i, 0],
                    factors[i, 1],
                    steps,
                    resume,
                )
                each = 0  # once is enough
                if left >= 2 * TOGETHER:
                    if middle:
                        mixed_first(*args)
                        mixed_last(*args)
                    else:
                        through_first(*args)
                        through_last(*args)
                    t += 2 * TOGETHER
                    continue
                some = ceil_div(left, ceil_div(left, TOGETHER))
                if middle:
                    mixed(some, args)
                else:
                    through(some, args)
                t += some

    return multiply
