"""SDEdit under the fast policy: chains, undo and redo, what goes wrong, and what an edit tells of its steps."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest

from sparsegen import Fast, NonFiniteError, Paper, SDEdit, Session
from sparsegen.backends.interface import Host
from tests.tolerances import check
from tests.unets import (
    FAMILIES,
    FAST,
    SPARSE,
    around,
    assert_all_same,
    at,
    everything,
    noisy,
    picture,
    random_ddpm,
    stroke,
)

SIZE = (32, 32)
FRONTIERS = [0, 1]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(37)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def opened(family: str, backend="numba", policy="fast", steps: int = 6, **options) -> SDEdit:
    pd = {"steps": 2 * steps, "noise_level": steps}
    times = {"steps": steps, "noise_level": 300} if family == "ddpm" else pd
    return SDEdit(FAMILIES[family](1), **{"margin": 2, **times, **options}, backend=backend, policy=policy)


def strokes(image: Host, count: int) -> list[Host]:
    """Images, each with a stroke more."""
    drawn = [image]
    for i in range(count):
        drawn.append(stroke(drawn[-1], (3 * i % 29, 5 * i % 27), (3, 2 + i % 4), colour=20 + 20 * i))
    return drawn[1:]


# -- edits on edits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("frontier", FRONTIERS)
def test_ten_edits_are_undone_and_redone_bit_for_bit(backend, rng, family, frontier, storage):
    pipeline = opened(family, backend, replace(FAST, frontier=frontier), storage=storage, undo="1GB")
    image = picture(rng, SIZE)
    pipeline.run(image)
    stages, images = [everything(pipeline)], [image]
    for edited in strokes(image, 10):
        images.append(pipeline.edit(edited).image)
        stages.append(everything(pipeline))
    for i in reversed(range(10)):
        assert np.array_equal(pipeline.undo().image, images[i])
        assert_all_same(everything(pipeline), stages[i])
    for i in range(1, 11):
        assert np.array_equal(pipeline.redo().image, images[i])
        assert_all_same(everything(pipeline), stages[i])


@pytest.mark.parametrize("frontier", FRONTIERS)
def test_an_edit_without_change_changes_nothing(backend, rng, family, frontier):
    pipeline, image = opened(family, backend, replace(FAST, frontier=frontier)), picture(rng, SIZE)
    pipeline.run(image)
    pipeline.edit(stroke(image))
    before = everything(pipeline)
    for mask in (None, np.zeros(SIZE, bool)):
        result = pipeline.edit(pipeline.image, mask=mask)
        assert result.active.count == result.stats.macs == 0 and result.stats.steps == ()
        assert_all_same(everything(pipeline), before)


@pytest.mark.parametrize("frontier", FRONTIERS)
def test_outside_the_margin_nothing_changes(backend, rng, family, frontier):
    pipeline, image = opened(family, backend, replace(FAST, frontier=frontier)), picture(rng, SIZE)
    first = pipeline.run(image)
    result = pipeline.edit(stroke(image))
    inside = around(SIZE, (9, 14, 3, 4), 2)
    assert np.array_equal(result.output[0][~inside], first.output[0][~inside])
    assert (result.image[inside] != image[inside]).any(-1).mean() > 0.8


@pytest.mark.parametrize("frontier", FRONTIERS)
def test_an_image_of_a_batch_is_the_batch_of_one_of_its_seed(backend, rng, family, frontier):
    images, policy = picture(rng, SIZE, 2), replace(FAST, frontier=frontier)
    batch = opened(family, backend, policy)
    batch.run(images)
    one_edited = images.copy()
    one_edited[1] = stroke(images[1])
    results = [batch.edit(one_edited)]
    results.append(batch.edit(stroke(results[0].images, (20, 4))))
    for i in range(2):
        alone = opened(family, backend, policy, seed=i)
        alone.run(images[i])
        for edited, together in zip(
            (one_edited[i], stroke(results[0].images[i], (20, 4))), results, strict=True
        ):
            assert np.array_equal(alone.edit(edited).output[0], together.output[i])


@pytest.mark.parametrize("frontier", FRONTIERS)
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_an_edit_goes_on_in_a_loaded_session(backend, rng, family, frontier, storage, tmp_path):
    policy, image = replace(FAST, frontier=frontier), picture(rng, SIZE)
    pipeline = opened(family, backend, policy, storage=storage)
    pipeline.run(image)
    stages = [everything(pipeline)]
    for edited in strokes(image, 3):
        pipeline.edit(edited)
        stages.append(everything(pipeline))
    pipeline.undo()
    pipeline.save(tmp_path / "saved")
    loaded = SDEdit.load(tmp_path / "saved", backend=backend)
    assert loaded.policy == policy
    for each in (pipeline, loaded):
        each.redo()
        each.edit(stroke(each.image, (25, 25)))
    assert_all_same(everything(loaded), everything(pipeline))
    for stage in (3, 2, 1, 0):
        loaded.undo()
        assert_all_same(everything(loaded), stages[stage])


@pytest.mark.parametrize("frontier", FRONTIERS)
def test_a_session_that_was_saved_with_other_steps_goes_on_with_them(
    backend, rng, family, frontier, tmp_path, monkeypatch
):
    """The steps that compute are those whose canvases the file holds, whatever this version would choose."""
    policy, image = replace(FAST, frontier=frontier), picture(rng, SIZE)
    others = (True, True, False, False, True, True)
    assert policy.refreshed(6) != others
    with monkeypatch.context() as patched:
        patched.setattr(Fast, "refreshed", lambda policy, steps: others)
        pipeline = opened(family, backend, policy)
        pipeline.run(image)
        expected = pipeline.edit(stroke(image))
        after = everything(pipeline)
        pipeline.undo()
        pipeline.save(tmp_path / "saved")
    loaded = SDEdit.load(tmp_path / "saved", backend=backend)
    found = loaded.edit(stroke(image))
    assert tuple(step.refreshed for step in found.stats.steps) == others
    assert np.array_equal(found.output, expected.output)
    assert_all_same(everything(loaded), after)
    # an image that is run there is painted for the steps of this version
    loaded.run(image)
    assert tuple(step.refreshed for step in loaded.edit(stroke(image)).stats.steps) == policy.refreshed(6)


# -- next to other policies ------------------------------------------------------------------------------


def test_without_its_ideas_it_is_paper(backend, rng, family):
    """No weight of fresh moments, every step computed, and the least size of `paper`."""
    image, paper = picture(rng, SIZE), FAMILIES[family]().paper
    none = Fast(**{**vars(paper), "statistics": 0, "refresh": 1})
    pipelines = [opened(family, backend, policy, steps=3) for policy in ("paper", none)]
    for pipeline in pipelines:
        pipeline.run(image)
        for edited in strokes(image, 2):
            pipeline.edit(edited)
    assert_all_same(everything(pipelines[0]), everything(pipelines[1]))


@pytest.mark.parametrize("settings", [{"refresh": 1}, {"refresh": 9}, {"refresh": 9, "frontier": 1}], ids=str)
def test_an_edit_of_everything_is_dense(backend, rng, family, settings):
    """Also at the steps that carry under smaller edits."""
    pipeline, image = opened(family, backend, replace(FAST, **settings), steps=4), picture(rng, SIZE)
    pipeline.run(image)
    pipeline.edit(stroke(image))
    edited, everywhere = stroke(pipeline.image, (20, 3)), np.ones(SIZE, bool)
    dense = pipeline.dense(edited, mask=everywhere)
    assert np.array_equal(pipeline.edit(edited, mask=everywhere).output, dense.output)


@pytest.mark.filterwarnings("ignore:the session was opened under another policy")
@pytest.mark.parametrize("frontier", FRONTIERS)
def test_policies_take_turns_and_are_undone(backend, rng, family, frontier):
    pipeline, image = opened(family, backend, replace(FAST, frontier=frontier)), picture(rng, SIZE)
    pipeline.run(image)
    stages = [everything(pipeline)]
    policies = [None, "paper(least_size=1)", None, "exact", None, "adaptive(0.05)", "fast(refresh=1)", None]
    for edited, policy in zip(strokes(image, len(policies)), policies, strict=True):
        pipeline.edit(edited, policy=policy)
        stages.append(everything(pipeline))
    for stage in stages[-2::-1]:
        pipeline.undo()
        assert_all_same(everything(pipeline), stage)
    for stage in stages[1:]:
        pipeline.redo()
        assert_all_same(everything(pipeline), stage)


def test_exact_edits_of_a_fast_session_are_exact(backend, rng, family):
    """Every step, also one that keeps no canvas, computes as in a session that keeps them all."""
    image = picture(rng, SIZE)
    fast, whole = opened(family, backend, FAST), opened(family, backend, "fast(refresh=1)")
    for pipeline in (fast, whole):
        pipeline.run(image)
    with pytest.warns(UserWarning, match="opened under another policy, which keeps few canvases at"):
        found = fast.edit(stroke(image), policy="exact")
    expected = whole.edit(stroke(image), policy="exact")
    assert all(step.refreshed for step in found.stats.steps)
    assert np.array_equal(found.output, expected.output)


@pytest.mark.parametrize("kind", ["session", "sdedit"])
def test_a_policy_that_needs_other_canvases_is_said(rng, kind):
    if kind == "session":
        model, x = random_ddpm(), noisy(rng)
        session, changed = Session(model), x + np.float32(0.1)
        session.run(x, **at(model))
    else:
        session, x = opened("ddpm", policy="paper", steps=2), picture(rng, SIZE)
        changed = stroke(x)
        session.run(x)
    for policy in (FAST, SPARSE, "fast", "paper(least_size=8)"):
        with pytest.warns(UserWarning, match="keeps no resolution below 64 pixels.* policy=") as caught:
            session.edit(changed, policy=policy)
        assert caught[0].filename == __file__
        session.undo()
    for policy in (
        None,
        "paper",
        "exact",
        "adaptive(0.1)",
        Paper(least_size=100),
    ):  # no warning: it would fail
        session.edit(changed, policy=policy)
        session.undo()


@pytest.mark.parametrize("kind", ["session", "sdedit"])
def test_a_least_size_at_opening_is_the_one_of_edits(backend, rng, kind):
    """At 16 and more a `Paper(least_size=16)` is sparse; below, and under the family's 64, resolutions are whole."""
    mask = np.zeros((64, 64), bool)
    mask[3:5, 3:5] = True
    model = random_ddpm(levels=(8, 8, 8, 8), attention=(False,) * 4, middle_attention=False)
    for policy, sparse in ((replace(SPARSE, least_size=16), (32, 16)), ("paper", ())):
        if kind == "session":
            x = noisy(rng, (64, 64))
            session = Session(model, backend, policy=policy)
            session.run(x, **at(model))
        else:
            x = picture(rng, (64, 64))
            session = SDEdit(model, steps=2, margin=0, backend=backend, policy=policy)
            session.run(x)
        tiles = session.edit(x, mask=mask).stats.tiles
        for size in (32, 16, 8):
            active, total = tiles[size, size]
            assert (active < total) == (size in sparse), size


# -- what goes wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 2, 5])
@pytest.mark.parametrize("frontier", FRONTIERS)
def test_an_edit_that_is_interrupted_leaves_no_trace(rng, family, frontier, step):
    pipeline, image = opened(family, policy=replace(FAST, frontier=frontier)), picture(rng, SIZE)
    pipeline.run(image)
    pipeline.edit(stroke(image, (20, 20)))
    before, edited = everything(pipeline), stroke(pipeline.image)

    def interrupt(seen):
        if seen.index == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.edit(edited, on_step=interrupt)
    assert_all_same(everything(pipeline), before)
    expected = pipeline.edit(edited).output
    pipeline.undo()
    assert_all_same(everything(pipeline), before)
    assert np.array_equal(pipeline.edit(edited).output, expected)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("frontier", FRONTIERS)
@pytest.mark.parametrize("primitive", ["conv2d", "add_tiles", "follow_moments"])
def test_a_value_that_is_not_finite_leaves_no_trace(
    backend, rng, monkeypatch, family, frontier, primitive, everywhere
):
    if backend.records:
        pytest.skip(f"{backend.name} replays what it recorded: no call to spoil; its own tests spoil weights")
    pipeline, image = opened(family, backend, replace(FAST, frontier=frontier)), picture(rng, SIZE)
    pipeline.run(image)
    pipeline.edit(stroke(image, (20, 20)))
    before, edited, calls = everything(pipeline), stroke(pipeline.image), []
    mask = np.ones(SIZE, bool) if everywhere else None
    if everywhere and primitive == "add_tiles":
        mask[:8, :8] = False  # an edit of everything carries nothing
    compute = getattr(backend, primitive)

    def spoiled(first, *rest, **named):
        calls.append(1)
        spoils = len(calls) == (2 if primitive == "add_tiles" else 70)
        if spoils and primitive == "conv2d":
            named["shift"] = backend.upload(np.full((1, first.shape[3]), np.nan))
        if spoils and primitive == "add_tiles":
            tiles, values = rest
            rest = (tiles, values * np.float32(np.nan))
        found = compute(first, *rest, **named)
        if spoils and primitive == "follow_moments":  # the variance in use
            found[0][1][...] = np.nan
        return found

    with monkeypatch.context() as patch:
        patch.setattr(backend, primitive, spoiled)
        with pytest.raises(NonFiniteError):
            pipeline.edit(edited, mask=mask)
    assert len(calls) >= 2
    assert_all_same(everything(pipeline), before)
    assert pipeline.edits == 1
    pipeline.edit(edited, mask=mask)
    pipeline.undo()
    assert_all_same(everything(pipeline), before)


@pytest.mark.parametrize("frontier", FRONTIERS)
def test_what_an_edit_made_waits_for_no_collector(backend, rng, family, frontier):
    """A cycle would keep journals and deltas until Python happens to look for cycles."""
    pipeline, image = opened(family, backend, replace(FAST, frontier=frontier)), picture(rng, SIZE)
    pipeline.run(image)
    pipeline.edit(stroke(image))
    gc.collect()
    gc.disable()
    try:
        for at in ((9, 14), (20, 3)):
            pipeline.undo()
            pipeline.edit(stroke(image, at))
        pipeline.run(image)
        assert gc.collect() == 0
    finally:
        gc.enable()


# -- what an edit tells ----------------------------------------------------------------------------------


@pytest.mark.parametrize("frontier", FRONTIERS)
def test_an_edit_tells_of_its_steps(backend, rng, family, frontier):
    pipeline, image = opened(family, backend, replace(FAST, frontier=frontier)), picture(rng, SIZE)
    first = pipeline.run(image)
    assert first.stats.steps == ()
    stats = pipeline.edit(stroke(image)).stats
    assert [step.step for step in stats.steps] == list(range(6))
    assert tuple(step.refreshed for step in stats.steps) == FAST.refreshed(6)
    assert sum(step.macs for step in stats.steps) == stats.macs < stats.macs_dense == first.stats.macs
    assert {step.macs_dense for step in stats.steps} == {stats.macs_dense // 6}
    assert len(stats.layers) == len(first.stats.layers)
    assert all(step.milliseconds > 0 for step in stats.steps)
    carried = [step.macs for step in stats.steps if not step.refreshed]
    assert max(carried) < min(step.macs for step in stats.steps if step.refreshed)
    assert (max(carried) == 0) == (frontier == 0)
    carry = f"{6 - len(carried)} of 6 computed every layer, the others carried"
    assert carry in str(stats)
    assert pipeline.undo().stats.steps == ()


def test_a_session_of_one_step_computes_it(backend, rng):
    model, x = random_ddpm(), noisy(rng)
    session = Session(model, backend, policy=replace(FAST, refresh=9, frontier=1))
    session.run(x, **at(model))
    assert session.memory.carried_rows == 0
    edited = x.copy()
    edited[0, 3:6, 2:9] += 1
    stats = session.edit(edited).stats
    assert stats.steps == () and 0 < stats.macs < stats.macs_dense


def test_storages_agree(backend, rng, family):
    """Of caches in float16 as of others: edits under `fast` lie near those of float32."""
    image = picture(rng, SIZE)
    for frontier in FRONTIERS:
        outputs = []
        for storage in ("float32", "float16"):
            pipeline = opened(family, backend, replace(FAST, frontier=frontier), storage=storage)
            pipeline.run(image)
            outputs.append(pipeline.edit(stroke(image)).output)
        check("float16 caches", *outputs[::-1])
