"""Carried deltas: how an edit goes on to denoising steps that do not compute, and how little these steps keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparsegen import Fast, SDEdit
from sparsegen.backends.interface import Host
from sparsegen.engine.carried import Delta, Deltas
from sparsegen.engine.chunks import PAGE
from sparsegen.tiling.tiles import TileSet
from tests.devices import host
from tests.tolerances import check
from tests.unets import FAMILIES, FAST, assert_all_same, everything, picture, stroke

SIZE = (32, 32)
STEPS = 8
SOME = replace(FAST, refresh=4)
"""Steps 0, 2, 5 and 7 compute: the deltas of step 1 stay, of 3 and 4 they go along a line, of 6 along a parabola."""


def opened(backend, family: str, policy: Fast, **options) -> SDEdit:
    """A session of eight steps; the canvases that it carries are wide enough for float16."""
    model = FAMILIES[family](channels=16, levels=(16, 24))
    times = (
        {"steps": STEPS, "noise_level": 300}
        if family == "ddpm"
        else {"steps": 2 * STEPS, "noise_level": STEPS}
    )
    return SDEdit(model, **times, margin=2, backend=backend, policy=policy, **options)


def canvases(pipeline: SDEdit) -> list[dict[str, Host]]:
    """Copies of all canvases of all steps, as float32."""
    return [
        {path: np.array(host(state.memory, path), np.float32) for path in state.memory.canvases}
        for state in pipeline._states
    ]


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(params=[0, 1])
def policy(request) -> Fast:
    """The output is carried, or the canvases at the first halving."""
    return replace(SOME, frontier=request.param)


@pytest.fixture
def image() -> Host:
    return picture(np.random.default_rng(31), SIZE)


# -- the curve -------------------------------------------------------------------------------------------


def test_deltas_on_a_curve_stay_on_it():
    tiles = TileSet.full(1, 8, 8)
    rng = np.random.default_rng(0)
    first, slope, bend = (rng.integers(-9, 9, (4, 4, 4, 3)).astype(np.float32) for _ in range(3))
    line = [Deltas(step, 8, {"a": Delta(tiles, first + step * slope)}) for step in range(9)]
    curve = [Deltas(step, 8, {"a": Delta(tiles, first + step * slope + step**2 * bend)}) for step in range(9)]
    for course, known, later in (
        (line, (0, 1), 2),
        (line, (1, 5), 7),
        (line, (1, 3, 4), 8),
        (curve, (0, 1, 2), 3),
        (curve, (0, 2, 6), 8),
        (curve, (1, 3, 4), 5),
    ):
        *before, last = (course[step] for step in known)
        found = last.at(later, *before)
        assert (found.step, found.rows, list(found.of)) == (later, 8, ["a"])
        check("pointwise", found.of["a"].values, course[later].of["a"].values, largest=1000.0)
    assert np.array_equal(curve[1].of["a"].values, first + slope + bend)  # none is written into


def test_deltas_that_stay_are_carried_to_the_bit():
    tiles, values = TileSet.full(1, 8, 8), np.random.default_rng(0).standard_normal((4, 4, 4, 3), np.float32)
    one, two, three = (Deltas(step, 8, {"a": Delta(tiles, values)}) for step in (0, 2, 6))
    assert np.array_equal(three.at(9, one, two).of["a"].values, values)


def test_a_delta_without_one_before_stays_as_it_is():
    tiles, other = TileSet.full(1, 8, 8), TileSet.full(1, 8, 8)
    values = np.ones((4, 4, 4, 3), np.float32)
    last = Deltas(3, 8, {"a": Delta(tiles, values), "b": Delta(other, values)})
    assert last.at(5).step == 5
    assert all(np.array_equal(delta.values, values) for delta in last.at(5).of.values())
    # one that was not there, and one of other tiles
    found = last.at(5, Deltas(1, 8, {"b": Delta(tiles, 0 * values)}))
    assert all(np.array_equal(delta.values, values) for delta in found.of.values())
    # with one of the two before, a line
    found = last.at(
        5, Deltas(0, 8, {"b": Delta(other, values)}), Deltas(1, 8, {"a": Delta(tiles, 0 * values)})
    )
    assert np.array_equal(found.of["a"].values, 2 * values)


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_step_that_carries_is_its_original_plus_the_delta_on_the_curve(
    backend, family, policy, image, storage, everywhere
):
    pipeline = opened(backend, family, policy, storage=storage)
    pipeline.run(image)
    row = "float16 caches" if storage == "float16" else "pointwise"
    mask = np.ones(SIZE, bool) if everywhere else None
    if mask is not None:
        mask[:8, :8] = False  # an edit of everything carries nothing
    for at in ((9, 14), (12, 12)):
        before = canvases(pipeline)
        edited = pipeline.edit(stroke(pipeline.image, at), mask=mask)
        after, computed, carried = canvases(pipeline), [], 0
        for i, step in enumerate(edited.stats.steps):
            delta = {path: after[i][path] - before[i][path] for path in after[i]}
            if step.refreshed:
                computed = [*computed[-2:], (i, delta)]
                continue
            carried += 1
            frontier = pipeline._states[i]._program.frontier(SIZE[0] >> policy.frontier)
            assert frontier
            known = np.array([step for step, _ in computed], np.float64)
            for path in (canvas.path for canvas in frontier):
                deltas = np.stack([each[path].astype(np.float64) for _, each in computed])
                powers = np.vander(known)
                weights = np.vander([i], len(known)) @ np.linalg.inv(powers)
                curve = np.tensordot(weights[0], deltas, 1).astype(np.float32)
                assert np.abs(curve).max() > 0.01
                check(row, after[i][path], before[i][path] + curve, largest=4 * np.abs(after[i][path]).max())
        assert carried == 4 and len(computed) == 3


# -- what is kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_steps_that_carry_keep_nothing_below_the_frontier(backend, family, policy, image, storage):
    pipeline = opened(backend, family, policy, storage=storage)
    plan = pipeline.cache_plan(image)
    pipeline.run(image)
    rows = SIZE[0] >> policy.frontier
    refreshed = policy.refreshed(STEPS)
    whole = set(pipeline._states[0].memory.canvases)
    edited = pipeline.edit(stroke(image))
    for i, state in enumerate(pipeline._states):
        memory, journal = state.memory, pipeline._base.history.edits[0].journals[i]
        assert memory.carried_rows == (0 if refreshed[i] else rows)
        frontier = {canvas.path for canvas in state._program.frontier(rows)}
        if refreshed[i]:
            assert set(memory.canvases) == whole
            continue
        assert frontier < set(memory.canvases) < whole
        for path, canvas in memory.canvases.items():
            assert canvas.shape[1] > rows or path in {*frontier, "input.x"}
        assert {"input.x"} < set(journal.paths) <= set(memory.canvases)
        assert frontier <= set(journal.paths)
        if not policy.frontier:
            assert set(memory.canvases) == {"input.x", "conv_out"}
            assert edited.stats.steps[i].macs == 0
    # what was planned is what is taken
    kept = [canvas for state in pipeline._states for canvas in state.memory.canvases.values()]
    bytes_kept = sum(int(canvas.nbytes) for canvas in kept)
    planned = plan.ram_bytes + plan.disk_bytes - plan.shared_bytes
    assert bytes_kept <= planned <= bytes_kept + PAGE * len(kept)
    assert plan.shared_bytes == pipeline.store.shared_bytes


def test_what_shared_canvases_hold_has_no_say(backend, family, policy, image):
    """Steps compute in the same canvases: what stands there, of another step or at random, is not read."""
    pipeline = opened(backend, family, policy, storage="float16")
    pipeline.run(image)
    pipeline.edit(stroke(image))
    expected = everything(pipeline)
    pipeline.undo()
    for canvas in pipeline.store._shared.values():
        canvas[...] = np.nan
    pipeline.edit(stroke(image))
    assert_all_same(everything(pipeline), expected)


@pytest.mark.filterwarnings("ignore:the session was opened under another policy")
@pytest.mark.parametrize("other", ["fast(refresh=1)", "paper(least_size=1)", "exact"])
def test_an_edit_does_not_depend_on_one_that_was_undone(backend, family, policy, image, other):
    pipelines = [opened(backend, family, policy) for _ in range(2)]
    for pipeline in pipelines:
        pipeline.run(image)
    pipelines[0].edit(stroke(image, (3, 3)), policy=other)
    pipelines[0].undo()
    for pipeline in pipelines:
        pipeline.edit(stroke(image))
    assert_all_same(everything(pipelines[0]), everything(pipelines[1]))


def test_a_frontier_of_which_no_step_keeps_a_canvas_lies_higher(backend, image):
    """Resolutions below `least_size` are computed whole and not kept: there is no delta to carry on."""
    model = FAMILIES["ddpm"](levels=(8, 8, 16), attention=(False, False, True))
    pipeline = SDEdit(
        model, steps=STEPS, margin=2, backend=backend, policy=replace(SOME, least_size=16, frontier=2)
    )
    pipeline.run(image)
    stats = pipeline.edit(stroke(image)).stats
    assert [step.refreshed for step in stats.steps] == list(SOME.refreshed(STEPS))
    assert {state.memory.carried_rows for state in pipeline._states} == {0, 16}
    before = everything(pipeline)
    pipeline.edit(stroke(image, (20, 20)))
    pipeline.undo()
    assert_all_same(everything(pipeline), before)
