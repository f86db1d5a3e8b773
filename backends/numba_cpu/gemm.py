"""The matrix product under every kernel: rows of inputs and a panel of packed weights come in, sums come out.

    sums[m, j] = Σ_k inputs[m, k] · weights[k, j]          m < rows, j < panel

The block's sums stay in registers while k runs; each step loads `columns` vectors of weights and multiplies them by
one number of each row. Depth is taken in pieces. Either a sum is one chain of multiply-adds in the order of k, however
the pieces are cut; or each piece is a separate chain, and pieces, cut alike for all sums, are added in order, which
rounds less. Whatever the number of rows, a sum's bits depend on its row and its column alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit import inline
from .simd import (
    I64,
    ir_constant,
    ir_dot,
    ir_fma,
    ir_load,
    ir_pointer,
    ir_prefetch,
    ir_splat,
    ir_store,
)
from .sizes import ceil_div
from .target import TARGET, Target

ROWS, PANEL = TARGET.rows, TARGET.panel
LINE = 16
"""Floats in a cache line."""
REPLACE, GO_ON, ADD = 0, 1, -1
"""How a piece of the depth changes the sums in memory: replaces them; continues their chains; is added to them."""
DEPTH = 16384 // PANEL
"""Rows of weights taken at a time: a panel's piece, 64 KB, stays in a second-level cache, from which it streams.

Pieces of 16 KB, which a first-level cache holds, load and store the sums four times as often: 1×1 convolutions are 2 to
4 % slower (AVX-512, `long-pieces` of `bench.switches`)."""


def emit_block(
    builder: ir.IRBuilder,
    input_rows: Sequence[ir.Value],
    weights: ir.Value,
    sums: ir.Value,
    sum_stride: ir.Value,
    depth: ir.Value,
    resume: ir.Value,
    ahead: ir.Value,
    *,
    target: Target,
    input_step: ir.Value | None = None,
    pairs: bool = False,
) -> None:
    """Emit the product of some rows with one panel, for any target.

    `input_rows`, `weights` and `sums` are pointers: to each row of inputs, to the panel, and to the first row of sums,
    whose rows are `sum_stride` floats apart. `depth` ≥ 1 counts steps of k; `resume` is REPLACE, GO_ON (any positive
    number) or ADD. Every step prefetches the weights `ahead` floats further. A row's inputs are `input_step` floats
    apart, None: side by side. With `pairs` every float of inputs and weights is a pair of bfloat16, of two k.
    """
    width, columns, rows = target.width, target.columns, len(input_rows)
    zero = ir_constant(0.0, width)
    sum_rows = [builder.gep(sums, [builder.mul(sum_stride, I64(m))]) for m in range(rows)]

    def cell(m: int, j: int) -> ir.Value:
        return builder.gep(sum_rows[m], [I64(j * width)])

    cells = [(m, j) for m in range(rows) for j in range(columns)]
    start = builder.block
    with builder.if_then(builder.icmp_signed(">", resume, I64(0))):
        loaded = {(m, j): ir_load(builder, cell(m, j), width) for m, j in cells}
        resumed = builder.block
    before = builder.block
    initial = {}
    for at in cells:
        initial[at] = builder.phi(zero.type)
        initial[at].add_incoming(zero, start)
        initial[at].add_incoming(loaded[at], resumed)

    loop, done = builder.append_basic_block("step"), builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(I64)
    k.add_incoming(I64(0), before)
    running = {at: builder.phi(zero.type) for at in cells}
    step = builder.gep(weights, [builder.mul(k, I64(target.panel))])
    vectors = [ir_load(builder, builder.gep(step, [I64(j * width)]), width) for j in range(columns)]
    ir_prefetch(builder, builder.gep(step, [ahead]))
    summed = {}
    place = k if input_step is None else builder.mul(k, input_step)
    for m in range(rows):
        number = ir_splat(builder, builder.load(builder.gep(input_rows[m], [place])), width)
        for j in range(columns):
            if pairs:
                summed[m, j] = ir_dot(builder, number, vectors[j], running[m, j], dot=target.dot)
            else:
                summed[m, j] = ir_fma(builder, number, vectors[j], running[m, j], fused=target.fused)
    following = builder.add(k, I64(1))
    k.add_incoming(following, loop)
    for at in cells:
        running[at].add_incoming(initial[at], before)
        running[at].add_incoming(summed[at], loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)
    builder.position_at_end(done)
    with builder.if_then(builder.icmp_signed("<", resume, I64(0))):
        added = {at: builder.fadd(ir_load(builder, cell(*at), width), summed[at]) for at in cells}
        adding = builder.block
    for at in cells:
        final = builder.phi(zero.type)
        final.add_incoming(summed[at], done)
        final.add_incoming(added[at], adding)
        summed[at] = final
    for at in cells:
        ir_store(builder, summed[at], cell(*at))


def _block(rows: int, *, target: Target = TARGET, across: bool = False, pairs: bool = False) -> Any:
    """`emit_block` for this processor as a function of Numba: arrays and offsets instead of pointers.

    Row m of the inputs begins at `input_at` plus m times `rows_at`, or plus `rows_at[m]` where that is an array. With
    `across` it begins at `input_at` plus m, and its inputs are `rows_at` floats apart.
    """

    @intrinsic
    def block(
        typing: Any,
        inputs: Any,
        input_at: Any,
        rows_at: Any,
        row: Any,
        weights: Any,
        weight_at: Any,
        sums: Any,
        sum_at: Any,
        sum_stride: Any,
        depth: Any,
        resume: Any,
        ahead: Any,
    ) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Sequence[ir.Value]) -> ir.Value:
            a, b, c = (ir_pointer(context, builder, sig.args[i], args[i], args[i + 1]) for i in (0, 4, 6))
            numbers = [builder.add(args[3], I64(m)) for m in range(rows)]
            if across:
                offsets = numbers
            elif isinstance(sig.args[2], types.Array):
                table = sig.args[2], args[2]
                offsets = [builder.load(ir_pointer(context, builder, *table, m)) for m in numbers]
            else:
                offsets = [builder.mul(args[2], m) for m in numbers]
            pointers = [builder.gep(a, [offset]) for offset in offsets]
            step = args[2] if across else None
            emit_block(builder, pointers, b, c, *args[8:], target=target, input_step=step, pairs=pairs)
            return context.get_dummy_value()

        i = types.intp
        where = rows_at if isinstance(rows_at, types.Array) else i
        return types.void(inputs, i, where, i, weights, i, sums, i, i, i, i, i), emit

    return block


_SIZES = sorted({rows for rows in (ROWS, ROWS - 1, ROWS - 2, ROWS // 2, 1) if rows > 0}, reverse=True)
"""Rows of blocks: those that leave a register or two unused too, into which most numbers of rows are cut evenly."""
_ROWS_0, _ROWS_1, _ROWS_2, _ROWS_3, _ROWS_4 = (_SIZES + _SIZES[-1:])[:5]


def _by_rows(*, pairs: bool) -> Any:
    """`multiply_rows`, or with `pairs` `multiply_pairs`."""
    blocks = [_block(rows, pairs=pairs) for rows in _SIZES]
    block_0, block_1, block_2, block_3, block_4 = (blocks + blocks[-1:])[:5]

    @inline
    def multiply(
        inputs: Any,
        a: int,
        rows_at: Any,
        weights: Any,
        w: int,
        sums: Any,
        c: int,
        sum_stride: int,
        rows: int,
        steps: int,
        resume: int,
    ) -> None:
        m, blocks = 0, ceil_div(rows, ROWS)
        while m < rows:
            size = ceil_div(rows - m, max(1, blocks))
            blocks -= 1
            # the first rows wait for these weights; later ones have time to prefetch the next panel, a line a step
            ahead = steps * PANEL + (m // ROWS - 1) * LINE % PANEL if m > 0 else 0
            if size >= _ROWS_0:
                block_0(inputs, a, rows_at, m, weights, w, sums, c, sum_stride, steps, resume, ahead)
                done = _ROWS_0
            elif size >= _ROWS_1:
                block_1(inputs, a, rows_at, m, weights, w, sums, c, sum_stride, steps, resume, ahead)
                done = _ROWS_1
            elif size >= _ROWS_2:
                block_2(inputs, a, rows_at, m, weights, w, sums, c, sum_stride, steps, resume, ahead)
                done = _ROWS_2
            elif size >= _ROWS_3:
                block_3(inputs, a, rows_at, m, weights, w, sums, c, sum_stride, steps, resume, ahead)
                done = _ROWS_3
            else:
                block_4(inputs, a, rows_at, m, weights, w, sums, c, sum_stride, steps, resume, ahead)
                done = _ROWS_4
            m += done
            c += done * sum_stride

    return multiply


multiply_rows = _by_rows(pairs=False)
"""`inputs[rows, steps] @ weights[steps, PANEL]`, a piece of one panel, into `sums[rows, PANEL]` by `resume`.

    multiply_rows(inputs, a, rows_at, weights, w, sums, c, sum_stride, rows, steps, resume)

Row m of the inputs begins at `a` plus m times `rows_at`, or plus `rows_at[m]` where that is an array. Rows are cut
evenly into as few blocks as hold them: a block of few rows waits for its multiply-adds, a single row as long as four.
"""
multiply_pairs = _by_rows(pairs=True) if TARGET.dot else multiply_rows
"""The same where every float of inputs and weights is a pair of bfloat16, if `TARGET.dot`: `steps` counts pairs."""


# -- inputs side by side across rows ----------------------------------------------------------------------

_NARROW = 8
"""Rows of a block that is a single vector wide: as many sums as cover the multiply-add's latency."""
_BLOCKS = -(-PANEL // ROWS)
_more_block, _less_block = (
    _block(rows, across=True) for rows in (-(-PANEL // _BLOCKS), max(1, PANEL // _BLOCKS))
)
_MORE, _LESS = -(-PANEL // _BLOCKS), PANEL // _BLOCKS
_narrow_block = _block(_NARROW, target=replace(TARGET, columns=1, rows=_NARROW), across=True)


@inline
def multiply_across(
    inputs: Any, a: int, weights: Any, w: int, sums: Any, c: int, sum_stride: int, steps: int, narrow: bool
) -> None:
    """`sums[m, j] += Σ_k inputs[k, m] · weights[k, j]` of PANEL rows m: the inputs of a step are side by side.

    j counts a panel; with `narrow` a vector, and `weights` are `[steps, WIDTH]`. The sum over k is rounded by itself
    before it is added.
    """
    if narrow:
        for m in range(0, PANEL, _NARROW):
            _narrow_block(
                inputs, a, PANEL, m, weights, w, sums, c + m * sum_stride, sum_stride, steps, ADD, 0
            )
        return
    m = 0
    for i in range(_BLOCKS):
        at = c + m * sum_stride
        if i < PANEL % _BLOCKS or _MORE == _LESS:
            _more_block(inputs, a, PANEL, m, weights, w, sums, at, sum_stride, steps, ADD, 0)
            m += _MORE
        else:
            _less_block(inputs, a, PANEL, m, weights, w, sums, at, sum_stride, steps, ADD, 0)
            m += _LESS
