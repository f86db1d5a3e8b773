"""Policies: which tiles an edit makes active, and that a GauGAN edit costs what the paper says it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sparsegen.backends.interface import Host, Tiles
from sparsegen.backends.reference import ReferenceBackend
from sparsegen.backends.shapes import ShapesBackend
from sparsegen.editing.session import Session
from sparsegen.engine.allocator import BackendAllocator
from sparsegen.engine.feature import Feature
from sparsegen.engine.journal import Journal
from sparsegen.engine.memory import Memory
from sparsegen.engine.run import LayerRecord, Run
from sparsegen.errors import InputError, ShapeError
from sparsegen.layers import BatchNorm, Conv2d, LabelConv, Layer
from sparsegen.models import GauGAN, GauGANConfig
from sparsegen.tiling.canvas import Canvas
from sparsegen.tiling.masks import dilate
from sparsegen.tiling.policies import Adaptive, Everything, Exact, Fast, Paper, Plan, Policy, get_policy
from sparsegen.tiling.tiles import TileSet
from sparsegen.tiling.windows import Read, Window, grow
from sparsegen.tools.profile import profile
from tests.networks import random_gaugan

THREE, ONE = Window(3, top=1, left=1), Window()
EDITS: dict[str, Policy] = {
    "exact": Exact(),
    "paper": Paper(),
    "paper, nothing sparse": Paper(sparse_levels=0),
}


def difference(samples: int = 1, size: tuple[int, int] = (32, 32), at: tuple[int, int] = (9, 18)) -> Host:
    """An edit of one pixel in sample 0."""
    mask = np.zeros((samples, *size), bool)
    mask[0, at[0], at[1]] = True
    return mask


# -- plans -----------------------------------------------------------------------------------------------


def test_everything_is_every_tile_whatever_is_read() -> None:
    plan = Everything()
    for reads in ([], [Read(TileSet.empty(2, 9, 7), THREE)], [Read(TileSet.full(2, 9, 7), THREE)]):
        active = plan.active(reads, (2, 9, 7))
        assert active.count == active.total == 2 * 3 * 2
        assert active.mask().all()


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("size", [32, 16, 1])
def test_a_layer_that_reads_nothing_changed_is_never_active(name: str, size: int) -> None:
    plan = EDITS[name].plan(difference())
    unchanged = Read(TileSet.empty(1, size, size), THREE)
    for reads in ([], [unchanged], [unchanged, Read(TileSet.empty(1, size, size), ONE)]):
        active = plan.active(reads, (1, size, size))
        assert active.count == 0
        assert active.shape == (1, size, size)


def test_exact_grows_every_read_by_its_own_window() -> None:
    plan = Exact().plan(difference())
    here, there = TileSet.of_mask(difference()), TileSet.of_mask(difference(at=(30, 2)))
    active = plan.active([Read(here, THREE), Read(there, ONE)], (1, 32, 32))
    assert_array_equal(active.mask(), grow(here, THREE, 32, 32).mask() | there.mask())
    alone = plan.active([Read(here, THREE)], (1, 32, 32))
    assert_array_equal(alone.mask(), grow(here, THREE, 32, 32).mask())
    halved = plan.active([Read(here, Window(3, 2, 1, 1))], (1, 16, 16))
    assert_array_equal(halved.mask(), grow(here, Window(3, 2, 1, 1), 16, 16).mask())


def test_paper_asks_whether_a_layer_reads_an_edit_but_not_where() -> None:
    plan = Paper().plan(difference())
    elsewhere = Read(TileSet.of_mask(difference(at=(31, 0))), THREE)
    everywhere = Read(TileSet.full(1, 32, 32), THREE)
    expected = plan.active([everywhere], (1, 32, 32))
    assert 0 < expected.count < expected.total
    assert_array_equal(plan.active([elsewhere], (1, 32, 32)).tiles.host, expected.tiles.host)


def test_paper_masks_live_at_the_resolution_a_layer_reads_after_resampling() -> None:
    plan = Paper().plan(difference())
    expected = plan.active([Read(TileSet.full(1, 16, 16), THREE)], (1, 16, 16))
    upsampled = Read(TileSet.full(1, 8, 8), Window(3, top=1, left=1, upsample=2))
    shrunk = Read(TileSet.full(1, 32, 32), Window(3, top=1, left=1, step=2))
    for read in (upsampled, shrunk):
        assert_array_equal(plan.active([read], (1, 16, 16)).tiles.host, expected.tiles.host)


def test_below_the_sparse_levels_edited_samples_are_whole_and_others_untouched() -> None:
    plan = Paper(dilation=0, level_dilation=0, sparse_levels=2).plan(difference(samples=3))
    for size, sparse in ((32, True), (16, True), (8, False), (4, False), (1, False)):
        active = plan.active([Read(TileSet.full(3, size, size), ONE)], (3, size, size))
        assert set(active.tiles.host[:, 0].tolist()) == {0}
        assert active.count == (1 if sparse else max(1, size // 4) ** 2)


def test_paper_says_which_sizes_it_has_masks_for() -> None:
    plan = Paper().plan(difference(size=(32, 64)))
    with pytest.raises(
        ShapeError,
        match=r"a layer reads 12×12, expected the size of the input, halved or doubled some times: 32×64, 16×32",
    ):
        plan.active([Read(TileSet.full(1, 12, 12), THREE)], (1, 12, 12))


@pytest.mark.parametrize("setting", ["dilation", "level_dilation", "sparse_levels", "threshold"])
def test_paper_refuses_negative_settings(setting: str) -> None:
    with pytest.raises(InputError, match=rf"policy paper: {setting} is -1(.0)?, expected .*0 or more"):
        Paper(**{setting: -1})
    assert getattr(Paper(**{setting: 0}), setting) == 0


def test_policies_by_name() -> None:
    family = {"paper": Paper(dilation=7), "fast": Fast(dilation=7)}
    for name, policy in family.items():
        assert get_policy(name, **family) == policy
    assert get_policy("exact", **family) == Exact()
    mine = Paper(dilation=2)
    assert get_policy(mine, **family) is mine
    assert get_policy("adaptive(0.02)", **family) == Adaptive(0.02)
    assert get_policy("adaptive(1e-3)", **family) == Adaptive(0.001)
    for unknown in ("precise", "adaptive 0.02", "adaptive(", "ADAPTIVE(1)", "xadaptive(1)", "exact()", None):
        with pytest.raises(
            InputError, match=r"^unknown policy .*; known: paper, fast, exact, adaptive\(TAU\)$"
        ):
            get_policy(unknown, **family)
    for wrong in ("adaptive", "adaptive()", "adaptive(-1)", "adaptive(nan)", "adaptive(inf)", "adaptive(x)"):
        with pytest.raises(InputError, match=r"in brackets, such as adaptive\(0\.02\)$"):
            get_policy(wrong, **family)


@pytest.mark.parametrize("tau", [-1, -1e-9, float("nan"), float("inf"), True, "0.1", None])
def test_adaptive_refuses_what_is_no_distance(tau: Any) -> None:
    with pytest.raises(InputError, match=r"policy adaptive: tau is .*, expected a number, 0 or more"):
        Adaptive(tau)
    assert Adaptive(0).exact and Adaptive(np.float32(0)).exact and not Adaptive(1e-9).exact


# -- what a GauGAN edit costs, against the published figures ---------------------------------------------

HEIGHT, WIDTH = 256, 512
LABELS = np.zeros((HEIGHT, WIDTH), np.int64)


def giga(mask: Host | None = None, **options: Any) -> float:
    """10⁹ multiply-accumulates of GauGAN at 512×256, dense or for an edit of `mask`."""
    return profile(GauGAN(GauGANConfig()), LABELS, mask=mask, **options).macs / 1e9


def test_dense_gaugan_costs_281_g() -> None:
    # The model on paper: 36 label channels, 128 hidden ones in every SPADE, seven blocks of 64 times these
    # widths, a doubling of the size before every block but the first, 3×3 kernels but for the shortcuts.
    labels, hidden, k = 36, 128, 9

    def spade(channels: int) -> int:
        return k * labels * hidden + k * hidden * 2 * channels

    def block(inputs: int, outputs: int) -> int:
        middle = min(inputs, outputs)
        main = spade(inputs) + k * inputs * middle + spade(middle) + k * middle * outputs
        return main if inputs == outputs else main + spade(inputs) + inputs * outputs

    widths = [64 * w for w in (16, 16, 16, 16, 8, 4, 2, 1)]
    pixels = 4 * 8
    total = pixels * k * labels * widths[0]  # fc: the labels at 4×8
    for inputs, outputs in pairwise(widths):
        total += pixels * block(inputs, outputs)
        pixels *= 4
    total += HEIGHT * WIDTH * k * widths[-1] * 3  # conv_img
    assert round(total / 1e9) == 281  # as published
    dense = profile(GauGAN(GauGANConfig()), LABELS)
    assert dense.macs == dense.macs_dense == total


def rectangle(height: int, width: int) -> Host:
    return np.ones((height, width), bool)


def ellipse(height: int, width: int) -> Host:
    y, x = np.mgrid[:height, :width]
    return ((2 * y + 1) / height - 1) ** 2 + ((2 * x + 1) / width - 1) ** 2 <= 1


def placements(shape: Host) -> list[Host]:
    """Masks `[H, W]` with `shape` at a few places: how it lies on the tiles decides how many it touches."""
    masks = []
    for y, x in ((0.5, 0.5), (0.37, 0.11), (0.6, 0.83), (0.21, 0.44)):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        top, left = int(y * (HEIGHT - shape.shape[0])), int(x * (WIDTH - shape.shape[1]))
        mask[top : top + shape.shape[0], left : left + shape.shape[1]] = shape
        masks.append(mask)
    return masks


# edited area, published 10⁹ MACs, how near the mean over placements must come, shapes of that area. The published
# masks are not public: the larger the area, the more their shape (several parts, ragged) adds to a compact one's.
PUBLISHED = {
    "1.18 %": (0.0118, 15.3, 0.10, [rectangle(37, 37), ellipse(43, 43), rectangle(26, 52), ellipse(30, 60)]),
    "2.02 %": (0.0202, 19.3, 0.10, [rectangle(49, 49), ellipse(56, 56), rectangle(35, 70), ellipse(40, 80)]),
    "13.5 %": (
        0.135,
        69.8,
        0.25,
        [rectangle(131, 131), ellipse(148, 148), rectangle(93, 186), ellipse(105, 210)],
    ),
}


@pytest.mark.parametrize("edited", PUBLISHED)
def test_a_compact_edit_costs_about_what_is_published(edited: str) -> None:
    area, published, near, shapes = PUBLISHED[edited]
    for shape in shapes:
        masks = placements(shape)
        for mask in masks:
            assert dilate(mask[None], 1).mean() == pytest.approx(area, rel=0.03)  # as the paper counts area
        costs = [giga(mask) for mask in masks]
        assert np.mean(costs) == pytest.approx(published, rel=near), costs


def test_an_edit_costs_more_the_larger_it_is_and_never_more_than_dense() -> None:
    costs = [giga(placements(rectangle(side, side))[0]) for side in (1, 16, 64, 256)]
    assert costs == sorted(set(costs))
    assert giga(np.ones((HEIGHT, WIDTH), bool)) == giga()
    assert giga(np.ones((HEIGHT, WIDTH), bool), policy="exact") == giga()
    assert giga(np.zeros((HEIGHT, WIDTH), bool)) == 0
    assert giga(np.zeros((HEIGHT, WIDTH), bool), policy="exact") == 0


# -- counting --------------------------------------------------------------------------------------------

SMALL = GauGANConfig(ngf=2, semantic_nc=5, nhidden=4, num_upsampling_layers="normal", edge_channel=False)


class Listening(Plan):
    """Another plan, and every answer that it gave."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.answers: list[TileSet] = []

    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        self.answers.append(self.plan.active(reads, shape))
        return self.answers[-1]


@pytest.mark.parametrize("z_dim", [0, 6], ids=["from labels", "from z"])
@pytest.mark.parametrize("name", ["everything", *EDITS])
def test_a_layer_knows_its_macs_without_a_run(name: str, z_dim: int) -> None:
    model = GauGAN(replace(SMALL, z_dim=z_dim, start_cells=2 if z_dim else 0))
    conditions = {"z": np.zeros((2, z_dim), np.float32)} if z_dim else {}
    labels = np.zeros((2, 64, 32, 1), np.int32)
    changed = difference(samples=2, size=(64, 32))
    plan = Listening(Everything() if name == "everything" else EDITS[name].plan(changed))
    backend = ShapesBackend()
    run = Run(Memory(backend, BackendAllocator(backend)), plan)
    canvas = Canvas("input.labels", {"input.labels": labels}, TileSet.of_mask(changed))
    model.forward({"labels": Feature(run, (canvas,))}, conditions)
    layers = {layer.path: layer for layer in model.layers()}
    # a shortcut's convolution is not asked for: it is computed for the tiles of the layer that adds it, recorded next
    asked = [record for record in run.records if not record.path.endswith(".conv_s")]
    assert len(asked) == len(plan.answers) > 30
    assert len({record.path for record in run.records}) == len(run.records) > len(asked)
    answers = {record.path: tiles for record, tiles in zip(asked, plan.answers, strict=True)}
    for record, after in zip(run.records, [*run.records[1:], None], strict=True):
        tiles = answers.get(record.path) or answers[after.path]
        layer = layers.pop(record.path)
        assert record.macs == layer.macs(tiles), record.path
        assert record.macs_dense == layer.macs(TileSet.full(*tiles.shape)) > 0, record.path
        assert (record.active, record.total) == (tiles.count, tiles.total)
    assert not any(layer.macs_per_pixel for layer in layers.values()), (
        "a layer with products that left no record"
    )


@pytest.mark.parametrize(
    ("layer", "per_pixel"),
    [
        (Conv2d(8, 12, 3), 12 * 8 * 9),
        (Conv2d(8, 12, 1), 12 * 8),
        (Conv2d(8, 12, 3, groups=4), 12 * 2 * 9),  # each output reads the two channels of its group
        (Conv2d(8, 8, 3, groups=8), 8 * 9),
        (LabelConv(36, 128, 3), 128 * 36 * 9),  # counted as the convolution that it stands for
        (BatchNorm(8), 0),
    ],
    ids=["3×3", "1×1", "groups", "depthwise", "labels", "norm"],
)
def test_macs_by_hand(layer: Layer, per_pixel: int) -> None:
    # a whole tile and a corner of 1×2 pixels: 18 pixels
    tiles = TileSet.of_mask(difference(size=(9, 6), at=(1, 1)) | difference(size=(9, 6), at=(8, 5)))
    assert layer.macs(tiles) == 18 * per_pixel


def edited_session(seed: int = 0, **settings: Any) -> tuple[Session, Host]:
    """A session after its run, and labels edited in one small square. (Without codebooks: a canvas for every layer.)"""
    session, labels = Session(random_gaugan(seed, **settings), "reference"), np.zeros((64, 64), np.int64)
    session.run(labels)
    labels[30:36, 29:37] = 2  # one pixel of it is read at every resolution
    return session, labels


def reading_labels(session: Session) -> set[str]:
    """Paths of the layers that read the input itself."""
    return {layer.path for layer in session.model.layers() if isinstance(layer, LabelConv)}


def test_under_the_largest_tau_nothing_spreads_beyond_the_layers_that_read_the_input() -> None:
    session, labels = edited_session()
    before = {path: canvas.copy() for path, canvas in session.memory.canvases.items()}
    stats = session.edit(labels, policy=Adaptive(1e300)).stats
    assert {layer.path for layer in stats.layers if layer.active} == reading_labels(session)
    for path, canvas in session.memory.canvases.items():
        assert np.array_equal(canvas, before[path]) == (path != "input.labels")


def test_the_larger_tau_the_less_is_recomputed_and_never_more_than_exact() -> None:
    session, labels = edited_session()
    costs = []
    for policy in ("exact", "adaptive(0)", "adaptive(0.01)", "adaptive(0.1)", "adaptive(0.5)", "adaptive(9)"):
        costs.append(session.edit(labels, policy=policy).stats.macs)
        session.undo()
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0] / 2


def test_an_adaptive_edit_counts_what_it_recomputed_also_where_it_kept_the_old_values() -> None:
    session, labels = edited_session()
    layers = {layer.path: layer for layer in session.edit(labels, policy=Adaptive(1e300)).stats.layers}
    exact = {
        layer.path: layer for layer in profile(session.model, labels, mask=labels > 0, policy="exact").layers
    }
    for path in reading_labels(session):
        assert layers[path].active == exact[path].active > 0


def test_an_input_repainted_without_change_stops_at_the_first_layers() -> None:
    session, labels = edited_session()
    session.edit(labels, policy="exact")
    everywhere = np.ones(labels.shape, bool)
    stats = session.edit(labels, mask=everywhere, policy=Adaptive(0)).stats
    assert {layer.path for layer in stats.layers if layer.active} == reading_labels(session)
    assert session.edit(labels, mask=everywhere, policy="exact").stats.macs == stats.macs_dense


def test_what_an_adaptive_edit_held_back_is_stale_until_an_exact_edit() -> None:
    session, labels = edited_session()
    session.edit(labels, policy=Adaptive(0.3))
    assert np.array_equal(session._base.history.stale.mask()[0], labels > 0)
    session.edit(labels, policy=Adaptive(0))
    assert session._base.history.stale.count == 0
    assert_array_equal(
        session.memory.canvases["conv_img"], Session(session.model, "reference").run(labels).output
    )


def test_any_change_of_an_index_spreads() -> None:
    backend = ReferenceBackend()
    memory = Memory(backend, BackendAllocator(backend))
    memory.canvases["numbers"] = np.zeros((1, 8, 8, 1), np.int32)
    run = Run(memory, Adaptive(100).plan(difference(size=(8, 8), at=(0, 0))), journal=Journal())

    def number(canvas: Any, tiles: Tiles) -> None:
        canvas[0, 5, 6] = 1

    everything = Read(TileSet.full(1, 8, 8), ONE)
    canvas = run.compute("numbers", (1, 8, 8, 1), [everything], number, macs_per_pixel=0)
    assert canvas.changed.tiles.host.tolist() == [[0, 1, 1]]
    assert memory.canvases["numbers"].sum() == 1


class Mixing(ReferenceBackend):
    """Like one that computes a tile as a whole: a pixel that reads nothing changed may get other bits all the same."""

    def prepare_conv(self, *args, **keywords):
        return replace(super().prepare_conv(*args, **keywords), whole_tiles=True)


def test_exact_edits_grow_by_whole_tiles_where_tiles_are_computed_as_one() -> None:
    model, labels = random_gaugan(), np.zeros((64, 64), np.int64)
    edited = labels.copy()
    edited[33, 34] = 2  # inside its tile
    costs = {}
    for backend in (ReferenceBackend(), Mixing()):
        for policy in ("exact", "adaptive(0)", "adaptive(1e-6)", "paper"):
            session = Session(model, backend)
            session.run(labels)
            costs[policy, type(backend) is ReferenceBackend] = session.edit(edited, policy=policy).stats.macs
    assert costs["exact", False] > costs["exact", True]
    assert costs["adaptive(0)", False] > costs["adaptive(0)", True]
    for policy in ("adaptive(1e-6)", "paper"):
        assert costs[policy, False] == costs[policy, True]


def counted(records: Sequence[LayerRecord]) -> list[tuple[str, int, int, int]]:
    return [(record.path, record.active, record.total, record.macs) for record in records]


@pytest.mark.parametrize("policy", ["exact", "paper"])
def test_a_profile_counts_what_a_run_does(policy: str) -> None:
    model = GauGAN(SMALL)
    before = np.zeros((2, 32, 64), np.int64)
    after = before.copy()
    after[1, 5:9, 30:33] = 2
    session = Session(model, "reference")  # pixelwise, as a profile counts
    assert counted(session.run(before).stats.layers) == counted(profile(model, before).layers)
    edit = session.edit(after, policy=policy).stats
    predicted = profile(model, before, mask=before != after, policy=policy)
    assert counted(edit.layers) == counted(predicted.layers)
    assert edit.edited_area == predicted.edited_area == 12 / before.size
    assert 0 < edit.macs < edit.macs_dense
