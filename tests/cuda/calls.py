"""Calls of the CUDA backend that together run every kernel, small: a name comes in, what the call computes comes out.

The contract suite asks whether values are right, of many more calls. These are run in other ways: in other orders of
threads and blocks, and by kernels that are built to report stray accesses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np

from sparsegen.backends.cupy_cuda import convolutions
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.cupy_cuda.tensor import Precision
from sparsegen.backends.interface import Host, Tiles, Watch
from tests.backends.contract_cases import (
    CASES,
    Case,
    Uploads,
    all_tiles,
    attention_case,
    combined_case,
    conv_case,
    lookup_case,
    make_source,
    normal,
)
from tests.tolerances import check

Call: TypeAlias = Callable[[CudaBackend], list[Host]]

NAMES = (
    "conv 3×3, many tiles",
    "conv 3×3, many channels",
    "conv 3×3, odd channels",
    "conv 3×3, depthwise",
    "conv 3×3, concatenated across groups",
    "conv 3×3, whole prologue",
    "conv 3×3, modulated by code, many channels",
    "conv 3×3, residual with pending work",
    "conv 1×1, many channels",
    "conv 1×1, upsampled, concatenated, many tiles",
    "conv 1×1, whole epilogue",
    "conv 5×5, stride 2, padded unevenly",
    "lookup 3×3, step 2, planes 2",
    "lookup, many outputs",
    "attention, heads",
    "attention, pending work",
    "attention, causal",
    "attention, one prompt for all",
    "layer norm",
    "layer norm, residual",
    "layer norm, 1×1",
    "geglu, few channels",
    "geglu, 1×1, many channels",
    "pointwise, residual",
    "pointwise, whole prologue",
    "write tiles",
)
"""Cases of the contract suite."""

ONE: dict[str, Any] = {"kernel": (1, 1), "padding": (0, 0, 0, 0)}

SIZES: dict[str, Callable[[], Case]] = {
    "lookup, four outputs a thread, many turns": partial(lookup_case, kernel=5, planes=4, outputs=8),
    "winograd, few outputs": partial(conv_case, size=(8, 9), channels=(20,), outputs=9),
    "winograd, three outputs, many tiles": partial(conv_case, size=(22, 33), channels=(12,), outputs=3),
    "direct, chains of their own": partial(conv_case, size=(9, 8), channels=(72,), outputs=21, stride=2),
    "attention, heads of 70": partial(attention_case, channels=70),
    "attention, heads of 101": partial(attention_case, channels=202, heads=2),
    "attention, a head of 200": partial(attention_case, channels=200, samples=2),
}
"""Cases of sizes for which other kernels are chosen."""


def of_case(make: Callable[[], Case]) -> Call:
    """The whole canvas of a case, once its values are checked."""

    def call(backend: CudaBackend) -> list[Host]:
        case = _made(make)
        found = case.run(backend, case.tiles)
        check(case.tolerance, found, case.oracle, largest=case.largest)
        return [found]

    return call


@cache
def _made(make: Callable[[], Case]) -> Case:
    return make()


def copies(backend: CudaBackend) -> list[Host]:
    """Tiles read, written, merged, added and compared, one canvas after another and many at once."""
    rng, put = np.random.default_rng(1), backend.upload
    first, second = (normal(rng, 2, 9, 10, channels) for channels in (3, 70))
    canvas, other = put(first), put(second)
    tiles, some = all_tiles(2, 9, 10), Tiles(rng.permutation(all_tiles(2, 9, 10).host)[:7])
    old = backend.read_tiles(canvas, some)
    backend.merge_tiles(canvas, some, put(normal(rng, 7, 4, 4, 3)), rng.random((7, 4, 4)) < 0.5)
    backend.add_tiles(canvas, some, put(normal(rng, 7, 4, 4, 3)))
    change = backend.tile_change(canvas, some, old)
    largest = backend.largest_change(canvas, some, old)
    both = [(canvas, some), (other, tiles)]
    values = backend.read_many_tiles(both)
    backend.write_tiles(other, tiles, put(normal(rng, len(tiles), 4, 4, 70)))
    backend.write_many_tiles([(*place, v) for place, v in zip(both, values, strict=True)])
    copied = [backend.alloc(each.shape) for each in (canvas, change)]
    backend.copy_arrays(list(zip(copied, (canvas, change), strict=True)))
    return [largest, *map(backend.download, (canvas, other, old, change, *values, *copied))]


def halves(backend: CudaBackend) -> list[Host]:
    """A canvas and its copy in float16."""
    rng, tiles = np.random.default_rng(2), all_tiles(1, 9, 10)
    canvas = backend.upload(normal(rng, 1, 9, 10, 6))
    kept, watch = backend.alloc((1, 9, 10, 6), dtype="float16"), backend.watch_run()
    backend.narrow_tiles(kept, canvas, tiles, watch=watch, layer=0)
    assert watch.first_watched() is None
    old = backend.read_tiles(kept, tiles)
    backend.add_tiles(canvas, tiles, backend.upload(normal(rng, len(tiles), 4, 4, 6)))
    found = [backend.tile_change(canvas, tiles, old), backend.sum_change(canvas, tiles, old)]
    largest = backend.largest_change(canvas, tiles, old)
    backend.widen_tiles(canvas, kept, tiles)
    return [largest, *map(backend.download, (canvas, kept, *found))]


def watched(backend: CudaBackend) -> list[Host]:
    """The first of several values that are not finite, checked one after another and in a recorded run."""
    values = normal(np.random.default_rng(3), 2, 9, 10, 300)
    values[0, 8, 9, 299] = values[1, 3, 2, 17] = values[1, 3, 2, 16] = np.inf
    canvas, tiles = backend.upload(values), all_tiles(2, 9, 10)
    watch = backend.watch_run()
    watch.watch(canvas, Tiles(tiles.host[9:]), 4)
    watch.watch(canvas, tiles, 5)
    found = watch.first_watched()
    assert found == (4, (1, 3, 2, 16))
    lists, watches = [Tiles(tiles.host[9:]), Tiles(tiles.host)], list[Watch]()

    def work() -> None:
        watches.append(backend.watch_run())
        for layer, each in enumerate(lists, 4):
            watches[0].watch(canvas, each, layer)

    replayed = backend.record(work, lists).replay([Tiles(tiles.host[:9]), tiles], watches[0])
    assert replayed is not None and replayed.first_watched() == (4, (0, 8, 9, 299))
    return []


def statistics(backend: CudaBackend) -> list[Host]:
    """Moments measured and followed, and the norms made of them."""
    rng, put = np.random.default_rng(4), backend.upload
    uploads = Uploads(backend)
    found: list[Any] = []
    for channels, size in (((70, 66), (9, 10)), ((5,), (40, 41))):
        source = make_source(
            rng, samples=2, size=size, channels=channels, scale="per sample", activation="silu"
        )
        found += (moments := backend.channel_moments(uploads.source(source)))
        found += backend.second_moments(*moments)
    canvas, tiles = put(normal(rng, 2, 22, 41, 84)), all_tiles(2, 22, 41)
    change = backend.sum_change(canvas, tiles, put(normal(rng, len(tiles), 4, 4, 84)))
    samples = 10
    used, *kept = ((put(normal(rng, samples, 84)), put(abs(normal(rng, samples, 84)))) for _ in range(3))
    stale, fresh = ((mean.astype(np.float64), square.astype(np.float64)) for mean, square in kept)
    some = Tiles(rng.permutation(all_tiles(samples, 8, 12).host)[:30])
    changes = backend.xp.concatenate([change] * 5)
    for moved in (None, changes):
        pairs = backend.follow_moments(used, stale, fresh, moved, tiles=some, size=(8, 12), statistics=0.3)
        found += [each for pair in pairs for each in pair]
    options = {
        "weight": put(normal(rng, 84)),
        "bias": put(normal(rng, 84)),
        "film": put(normal(rng, samples, 168)),
    }
    for mean, variance, given in ((*used, options), (*stale, {}), (used[0][:1], used[1][:1], options)):
        found += backend.norm_affine(mean, variance, groups=12, eps=1e-5, **given)
    found.append(backend.join_channels([used[0], put(normal(rng, samples, 5)), used[1]]))
    return [backend.download(each) for each in (change, *found)]


def rows(backend: CudaBackend) -> list[Host]:
    """Dense layers and convolutions of windows of a codebook."""
    rng, put = np.random.default_rng(5), backend.upload
    found = []
    for count, inputs, outputs in ((1, 64, 256), (5, 37, 19)):
        x, weight, bias = (
            put(normal(rng, count, inputs)),
            put(normal(rng, outputs, inputs)),
            put(normal(rng, outputs)),
        )
        found.append(backend.linear(x, weight, bias, activation="silu"))
        found.append(backend.linear(x, weight, None))
    for count, outputs in ((7, 6), (20, 21), (260, 21)):
        weight, bias = normal(rng, outputs, 13, 3, 3), normal(rng, outputs)
        weights = backend.prepare_conv(weight, bias, padding=(1, 1, 1, 1), size=(1, 1))
        out = backend.alloc((count, outputs))
        windows = rng.integers(-1, 11, (count, 9), dtype=np.int32)
        backend.convolve_windows(out, windows, put(normal(rng, 11, 13)), weights)
        found.append(out)
    return [backend.download(each) for each in found]


def in_blocks(block: tuple[int, int]) -> Call:
    """Convolutions whose products are computed in blocks of so many rows and columns, whatever is best."""
    cases = [
        partial(conv_case, size=(12, 9), channels=(20,), outputs=70),
        partial(conv_case, size=(12, 9), channels=(5,), outputs=70, **ONE),
    ]

    def call(backend: CudaBackend) -> list[Host]:
        def chosen(*given: Any) -> tuple[int, int]:
            direct = given[-1] is convolutions.DIRECT_BLOCKS
            return (max(block[0], 16), min(block[1], 64)) if direct else block

        with patch.object(convolutions, "product_block", chosen):
            return [of_case(case)(backend)[0] for case in cases if block != (128, 128) or case is cases[0]]

    return call


TENSORS = (
    partial(conv_case, size=(4, 3), channels=(9,), outputs=17),  # a tile
    partial(conv_case, size=(4, 8), channels=(12,), outputs=17),
    partial(conv_case, size=(8, 8), channels=(72,), outputs=24),  # several chains, a block each
    partial(conv_case, size=(8, 12), channels=(72,), outputs=66),  # several chains, all in a block
    partial(conv_case, size=(16, 32), channels=(8,), outputs=65),
    partial(conv_case, size=(4, 5), channels=(140,), outputs=9),  # windows in several blocks of channels
    partial(combined_case, "layer norm", channels=37, outputs=19, samples=2),
    partial(combined_case, "geglu", channels=12, outputs=17),
)
"""Cases of sizes for which tensor cores run other kernels."""


def by_tensor_cores(precision: Precision) -> Call:
    """TENSORS in a precision."""

    def call(backend: CudaBackend) -> list[Host]:
        ours, found = CudaBackend(backend.device, precision=precision), []
        for make in TENSORS:
            case = _made(make)
            found.append(case.run(ours, case.tiles))
            check("conv2d, tensor cores", found[-1], case.oracle, largest=case.largest)
        return found

    return call


CALLS: dict[str, Call] = {
    "tensor cores, TF32": by_tensor_cores("tf32"),
    "tensor cores, float16": by_tensor_cores("float16"),
    **{f"blocks of {rows}×{columns}": in_blocks((rows, columns)) for rows, columns in convolutions.BLOCKS},
    **{name: of_case(CASES[name]) for name in NAMES},
    **{name: of_case(make) for name, make in SIZES.items()},
    **{call.__name__: call for call in (copies, halves, watched, statistics, rows)},
}


def missed(backend: CudaBackend, kernels: Iterable[str]) -> list[str]:
    """Run all calls: those of `kernels` that none of them ran."""
    ran = backend.device.kernels
    ran.clear()
    for call in CALLS.values():
        call(backend)
    return sorted({*kernels} - {*ran})
