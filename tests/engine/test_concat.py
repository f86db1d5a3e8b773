"""Concatenation is a way to read: two canvases are read, normalised and edited as the one that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sparsegen.backends import Backend, BackendError
from sparsegen.backends.interface import Host
from sparsegen.engine.allocator import BackendAllocator
from sparsegen.engine.feature import Feature, concat, silu, upsample
from sparsegen.engine.journal import Journal
from sparsegen.engine.memory import Memory
from sparsegen.engine.run import Run
from sparsegen.errors import ShapeError
from sparsegen.layers import Conv2d, GroupNorm, InstanceNorm, Layer
from sparsegen.tiling.canvas import Canvas
from sparsegen.tiling.policies import Everything, Exact
from sparsegen.tiling.tiles import TileSet
from tests.backends.contract_cases import assert_same_bits, normal

CHANNELS = ((19, 14), (3, 32), (64, 1), (40, 24))
"""Of the two parts: whole vectors and not, before the border of the parts and after it."""
SIZE = (13, 18)


class Join(Layer):
    """Two inputs, each convolved, read upsampled as one: normalised over both, and once more for the residual."""

    def __init__(self, channels: tuple[int, int], norm: str, join: Callable[..., Feature]) -> None:
        total = sum(channels)
        self.left, self.right = (Conv2d(5, c) for c in channels)
        self.norm = InstanceNorm() if norm == "instance" else GroupNorm(total, groups=1)
        self.conv, self.shortcut = Conv2d(total, 21), Conv2d(total, 21, 1)
        self.join = join
        self.name_paths()
        rng = np.random.default_rng(0)
        for parameter in self.parameters().values():
            fan_in = max(1, int(np.prod(parameter.shape[1:])))
            value = normal(rng, *parameter.shape, std=fan_in**-0.5)
            parameter.read = lambda value=value: value

    def __call__(self, a: Feature, b: Feature) -> Feature:
        joined = self.join(upsample(self.left(a)), upsample(self.right(b)))
        return self.conv(silu(self.norm(joined)), residual=self.shortcut(joined))


def materialised(*features: Feature) -> Feature:
    """What `concat` stands for: one canvas with the channels of all."""
    first, backend = features[0], features[0].run.backend
    canvas = backend.upload(np.concatenate([backend.download(f.parts[0].array) for f in features], axis=-1))
    everything = TileSet.full(*canvas.shape[:3])
    return Feature(first.run, (Canvas("joined", {"joined": canvas}, everything),), first.upsample)


def forward(run: Run, net: Join, inputs: list[Host], changed: list[TileSet]) -> Feature:
    features = []
    for name, host, tiles in zip("ab", inputs, changed, strict=True):
        run.memory.take_inputs({name: run.backend.upload(host)})
        features.append(Feature(run, (run.memory.input(name, tiles),)))
    return net(*features)


def dense(memory: Memory, net: Join, inputs: list[Host]) -> Host:
    everything = TileSet.full(*inputs[0].shape[:3])
    out = forward(Run(memory, Everything()), net, inputs, [everything] * 2)
    return memory.backend.download(out.parts[0].array)


def fresh(backend: Backend, *given: Any, **more: Any) -> Memory:
    return Memory(backend, BackendAllocator(backend), *given, **more)


def draw(seed: int = 0) -> list[Host]:
    rng = np.random.default_rng(seed)
    return [normal(rng, 2, *SIZE, 5, mean=1, std=2), normal(rng, 2, *SIZE, 5)]


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_two_canvases_are_read_as_the_one_they_stand_for(
    backend: Backend, channels: tuple[int, int], norm: str
) -> None:
    outputs = [dense(fresh(backend), Join(channels, norm, join), draw()) for join in (concat, materialised)]
    assert outputs[0].shape == (2, 2 * SIZE[0], 2 * SIZE[1], 21)
    assert_same_bits(*outputs)


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("edited", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("channels", CHANNELS[:2], ids=str)
def test_an_edit_of_either_part_is_the_dense_run_bit_for_bit(
    backend: Backend, channels: tuple[int, int], edited: tuple[bool, bool], norm: str
) -> None:
    net, memory, before = Join(channels, norm, concat), fresh(backend), draw()
    dense(memory, net, before)
    old = {path: backend.download(canvas) for path, canvas in memory.canvases.items()}
    after, changed = [], []
    for host, edit, (y, x) in zip(before, edited, ((2, 3), (9, 16)), strict=True):
        mask = np.zeros((2, *SIZE), bool)
        mask[1, y : y + 2, x : x + 2] = edit
        after.append(np.where(mask[..., None], host + 1, host))
        changed.append(TileSet.of_mask(mask))
    journal = Journal()
    union = changed[0].mask() | changed[1].mask()
    run = Run(memory, Exact().plan(union), journal=journal)
    out = forward(run, net, after, changed)
    active = {record.path: record.active for record in run.records}
    assert (active["left"] > 0, active["right"] > 0) == edited
    assert 0 < active["conv"] < out.parts[0].changed.total
    # statistics are measured once, by the dense run
    again = fresh(backend, memory.prepared, statistics=memory.statistics)
    assert_same_bits(backend.download(out.parts[0].array), dense(again, net, after))
    for path, canvas in again.canvases.items():
        assert_same_bits(backend.download(memory.canvases[path]), backend.download(canvas))
    journal.undo(memory)
    for path, canvas in old.items():
        if not path.startswith("input."):
            assert_array_equal(backend.download(memory.canvases[path]), canvas)


def test_what_cannot_be_concatenated_is_refused(backend: Backend) -> None:
    run = Run(fresh(backend), Everything())

    def feature(*shape: int) -> Feature:
        return Feature(run, (Canvas("some", {"some": backend.alloc(shape)}, TileSet.full(*shape[:3])),))

    a = feature(1, 8, 8, 3)
    for other in (feature(1, 8, 4, 3), feature(2, 8, 8, 3), upsample(feature(1, 4, 4, 3)), silu(a)):
        with pytest.raises(ShapeError, match="concat"):
            concat(a, other)
    assert concat(a, feature(1, 8, 8, 5)).shape == (1, 8, 8, 8)
    with pytest.raises(BackendError, match="has 3 parts, expected one or two"):
        _ = concat(a, a, a).source
