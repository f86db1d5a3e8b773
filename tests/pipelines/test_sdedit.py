"""SDEdit over all steps: what an edit leaves alone, what undo puts back, and what nothing that goes wrong can spoil.

In every bit, at every step, whatever the sampler, and wherever the caches lie.
"""

from __future__ import annotations

import errno
import gc
import os

import numpy as np
import pytest

from sparsegen import InputError, NonFiniteError, Paper, SessionError, ShapeError
from sparsegen.diffusion import seeds
from sparsegen.editing.session import Session
from sparsegen.engine import store as store_module
from sparsegen.engine.chunks import PAGE
from sparsegen.engine.store import Store
from sparsegen.models import GauGAN, GauGANConfig
from sparsegen.pipelines.sdedit import SDEdit
from tests.devices import host, skip_unless_in_main_memory
from tests.unets import (
    around,
    assert_all_same,
    everything,
    picture,
    random_ddpm,
    random_pd,
    stroke,
)

DDPM, PD = random_ddpm(1), random_pd(1)
SIZE = (32, 32)
BOX = (9, 14, 3, 4)
"""The stroke of `stroke`: row, column, height, width."""
WAYS = {
    "ddpm": (DDPM, {"sampler": "ddpm", "steps": 3}),
    "ddim": (DDPM, {"sampler": "ddim", "steps": 3}),
    "ddim, eta 0.5": (DDPM, {"sampler": "ddim", "steps": 2, "eta": 0.5, "clip": None, "seed": 7}),
    "dpm++2m": (DDPM, {"sampler": "dpm++2m", "steps": 3, "noise_level": 300, "schedule": "cosine"}),
    "dpm++2m-karras": (DDPM, {"sampler": "dpm++2m-karras", "steps": 2, "noise_level": 300}),
    "euler": (DDPM, {"sampler": "euler", "steps": 2, "schedule": "scaled_linear"}),
    "euler-a": (DDPM, {"sampler": "euler-a", "steps": 2}),
    "pndm": (DDPM, {"sampler": "pndm", "steps": 2, "clip": None}),
    "lcm": (DDPM, {"sampler": "lcm", "steps": 2}),
    "pd": (PD, {"steps": 6, "noise_level": 3}),
}
SPARSE = Paper(
    dilation=9, level_dilation=1, sparse_levels=16, least_size=8
)  # (9: the pipeline's margin is taken)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(17)


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def opened(way=WAYS["ddim"], backend="numba", **options) -> SDEdit:
    model, settings = way
    return SDEdit(model, backend=backend, **{"policy": "paper", "margin": 2, **settings, **options})


def of(pipeline: SDEdit) -> list[np.ndarray]:
    """What the model reads at every step."""
    return [np.array(host(session.memory, "input.x")) for session in pipeline._states]


# -- what an edit does -----------------------------------------------------------------------------------


def test_outside_the_margin_every_step_is_the_originals(backend, rng, way):
    pipeline, original = opened(way, backend, policy=SPARSE), picture(rng, SIZE)
    first = pipeline.run(original)
    assert np.array_equal(first.image, original) and first.stats.macs == first.stats.macs_dense > 0
    before = of(pipeline)
    changed = around(SIZE, BOX, 2)
    seen = []
    result = pipeline.edit(stroke(original), policy=SPARSE, on_step=seen.append)
    assert np.array_equal(result.image[~changed], original[~changed])
    assert np.array_equal(result.output[0][~changed], first.output[0][~changed])
    assert (result.image[changed] != original[changed]).any(-1).mean() > 0.8
    for i, (old, new) in enumerate(zip(before, of(pipeline), strict=True)):
        assert np.array_equal(new[0][~changed], old[0][~changed])
        other = changed if i else around(SIZE, BOX, 0)  # at first, only what was painted differs
        assert (new[0][other] != old[0][other]).any(-1).all()
    assert [step.index for step in seen] == list(range(len(pipeline.times)))
    assert [step.timestep for step in seen] == pipeline.times and seen[-1].next_timestep is None
    assert np.array_equal(seen[-1].x, result.output) and not seen[0].x0.flags.writeable
    stats = result.stats
    assert stats.edited_area == 12 / (32 * 32) and stats.ignored_pixels == 0
    assert 0 < stats.macs < stats.macs_dense == first.stats.macs
    assert len(stats.layers) == len(first.stats.layers) and stats.journal_bytes > 0
    assert np.array_equal(pipeline.image, result.image)


def test_every_pixel_value_survives(rng):
    pipeline = opened(margin=0)
    shades = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert np.array_equal(pipeline.run(shades).image, shades)
    assert pipeline.edit(shades).active.count == 0
    floats = shades[None] / np.float64(127.5) - 1
    assert np.array_equal(pipeline.run(floats).image, shades)


def test_an_edit_starts_from_the_edited_picture_under_the_same_noise(rng):
    pipeline, original = opened(margin=0, policy=SPARSE), picture(rng, SIZE)
    pipeline.run(original)
    edited = stroke(original)
    pipeline.edit(edited, policy=SPARSE)
    other = opened(margin=0, policy=SPARSE)
    other.run(edited)
    inside = around(SIZE, BOX, 0)
    assert np.array_equal(of(pipeline)[0][0][inside], of(other)[0][0][inside])


def test_an_edit_of_everything_recomputes_everything(backend, rng, way):
    pipeline, original = opened(way, backend), picture(rng, SIZE)
    pipeline.run(original)
    before, first = everything(pipeline), everything(pipeline, fresh=False)[:1]
    result = pipeline.edit(original, mask=np.ones(SIZE, bool))
    assert result.stats.macs == result.stats.macs_dense and result.active.count == result.active.total
    # the first step reads the same as before, and so computes the same
    assert_all_same(everything(pipeline, fresh=False)[:1], first)
    pipeline.undo()
    assert_all_same(everything(pipeline), before)


def test_an_edit_of_everything_is_dense_with_the_statistics_of_the_original(rng):
    """With statistics that are equal, that is `dense` itself."""
    pipeline, original = opened(policy="paper"), picture(rng, SIZE)
    pipeline.run(original)
    measured = [session.memory.statistics for session in pipeline._states]
    mask = np.ones(SIZE, bool)
    dense = pipeline.dense(original, mask=mask)
    before = everything(pipeline)
    edited = pipeline.edit(original, mask=mask)
    # the first step's statistics are the original's; the later ones' differ, as the image does
    assert not np.array_equal(dense.output, edited.output)
    assert np.abs(dense.output - edited.output).mean() < 0.2
    assert [session.memory.statistics for session in pipeline._states] == measured
    pipeline.undo()
    assert_all_same(everything(pipeline), before)


def test_dense_leaves_the_session_as_it_is(rng, way):
    pipeline, original = opened(way), picture(rng, SIZE)
    pipeline.run(original)
    pipeline.edit(stroke(original, (20, 4)))
    before = everything(pipeline)
    seen = []
    result = pipeline.dense(stroke(pipeline.image), on_step=seen.append)
    assert_all_same(everything(pipeline), before)
    assert pipeline.edits == 1 and len(seen) == len(pipeline.times)
    assert result.stats.macs == result.stats.macs_dense > 0
    outside = ~around(SIZE, BOX, 2)
    assert np.array_equal(result.image[outside], pipeline.image[outside])


def test_an_edit_without_change_costs_nothing_and_can_be_undone(backend, rng):
    pipeline, original = opened(backend=backend), picture(rng, SIZE)
    pipeline.run(original)
    before = everything(pipeline)
    for i, mask in enumerate((None, np.zeros(SIZE, bool))):
        result = pipeline.edit(original, mask=mask)
        assert result.stats.macs == 0 and result.active.count == 0 and pipeline.edits == i + 1
    nearly = original.astype(np.float32) / 127.5 - 1 + 0.9e-2  # within the family's eps
    assert pipeline.edit(np.clip(nearly, -1, 1)).stats.macs == 0
    assert_all_same(everything(pipeline), before)
    pipeline.edit(stroke(original))
    after = everything(pipeline)
    pipeline.edit(pipeline.image)
    assert_all_same(everything(pipeline), after)
    for expected in (after, before, before, before, before):
        pipeline.undo()
        assert_all_same(everything(pipeline), expected)
    with pytest.raises(SessionError, match="nothing to undo"):
        pipeline.undo()


def test_undo_and_redo(backend, rng, way):
    pipeline, original = opened(way, backend, policy=SPARSE), picture(rng, SIZE)
    first = pipeline.run(original)
    stages = [everything(pipeline)]
    pictures = [original]
    for i in range(2):
        pictures.append(stroke(pictures[-1], (4 + 9 * i, 6 + 11 * i), colour=40 + 90 * i))
        pipeline.edit(pictures[-1], policy=SPARSE)
        stages.append(everything(pipeline))
        pictures[-1] = pipeline.image.copy()
    again = [everything(pipeline)]
    for i in (1, 0):
        result = pipeline.undo()
        assert_all_same(everything(pipeline), stages[i])
        assert np.array_equal(result.image, pictures[i]) and result.active.count > 0
        assert result.stats.macs == 0
    assert np.array_equal(result.output, first.output)
    redo = original
    for i in range(2):
        redo = stroke(redo, (4 + 9 * i, 6 + 11 * i), colour=40 + 90 * i)
        pipeline.edit(redo, policy=SPARSE)
        redo = pipeline.image.copy()
    assert_all_same([*again, everything(pipeline)][-1], stages[2])


@pytest.mark.parametrize("way", ["ddpm", "dpm++2m", "pd"])
def test_equal_sessions_give_equal_bits(rng, way):
    original = picture(rng, SIZE)
    pipelines = [opened(WAYS[way]), opened(WAYS[way])]
    for pipeline in pipelines:
        pipeline.run(original)
        pipeline.edit(stroke(original))
    assert_all_same(everything(pipelines[0]), everything(pipelines[1]))
    # and a session that has seen other images is as a new one
    pipelines[0].run(picture(rng, SIZE))
    pipelines[0].edit(stroke(pipelines[0].image, (1, 1)))
    pipelines[0].run(picture(rng, (16, 24)))
    pipelines[0].run(original)
    pipelines[0].edit(stroke(original))
    assert_all_same(everything(pipelines[0]), everything(pipelines[1]))


def test_the_seed_decides(rng):
    original = picture(rng, SIZE)
    outputs = []
    for seed in (0, 0, 1, 2**70):
        pipeline = opened(seed=seed)
        pipeline.run(original)
        outputs.append(pipeline.edit(stroke(original)).output)
    assert np.array_equal(outputs[0], outputs[1])
    assert not any(np.array_equal(outputs[0], other) for other in outputs[2:])


@pytest.mark.parametrize("policy", [None, "paper", "exact", "adaptive(0)", "adaptive(0.05)", SPARSE])
def test_every_policy_edits_and_is_undone(backend, rng, policy):
    pipeline = opened(backend=backend, steps=2, policy=SPARSE if policy is SPARSE else "paper")
    original = picture(rng, SIZE)
    pipeline.run(original)
    before = everything(pipeline)
    pipeline.edit(stroke(original), policy=policy)
    result = pipeline.edit(stroke(pipeline.image, (20, 20)), policy=policy)
    outside = ~(around(SIZE, BOX, 2) | around(SIZE, (20, 20, 3, 4), 2))
    assert np.array_equal(result.image[outside], original[outside])
    pipeline.undo()
    pipeline.undo()
    assert_all_same(everything(pipeline), before)


def test_pictures_of_a_batch_are_edited_apart(backend, rng):
    pipeline, pictures = opened(backend=backend, steps=2, policy=SPARSE), picture(rng, SIZE, 2)
    pipeline.run(pictures)
    before, edited = everything(pipeline), pictures.copy()
    edited[1] = stroke(pictures[1])
    result = pipeline.edit(edited, policy=SPARSE)
    assert result.images.shape == (2, 32, 32, 3)
    for old, new in zip(before, everything(pipeline), strict=True):
        assert all(np.array_equal(new[path][0], old[path][0]) for path in old)
    assert np.array_equal(result.images[0], pictures[0])
    assert not np.array_equal(result.images[1], pictures[1])


@pytest.mark.parametrize(
    "seed", [np.array(7), np.int64(7), np.uint8(7), range(7, 10), (7, 8, 9), np.arange(7, 10)], ids=repr
)
def test_seeds_may_be_of_every_kind_of_number_and_list(seed):
    assert seeds.sample_seeds(seed, 3) == (7, 8, 9)


@pytest.mark.parametrize("seed", [7, [3, 11, 3]], ids=str)
def test_a_sample_of_a_batch_is_the_batch_of_one_of_its_seed(backend, rng, way, seed):
    """One number means seed, seed + 1, …; whichever image of a batch was liked can be made again alone."""
    originals = picture(rng, SIZE, samples=3)
    edited, way = stroke(originals), (way[0], {**way[1], "seed": seed})
    batch = opened(way, backend, policy=SPARSE)
    batch.run(originals)
    first, second = batch.edit(edited, policy=SPARSE), batch.edit(stroke(batch.edit(edited).images, (20, 4)))
    dense = batch.dense(stroke(second.images, (2, 2)))
    for i, own in enumerate([7, 8, 9] if seed == 7 else seed):
        alone = opened((way[0], {**way[1], "seed": own}), backend, policy=SPARSE)
        alone.run(originals[i])
        one, two = (
            alone.edit(edited[i], policy=SPARSE),
            alone.edit(stroke(alone.edit(edited[i]).image, (20, 4))),
        )
        assert np.array_equal(one.output[0], first.output[i])
        assert np.array_equal(two.output[0], second.output[i])
        assert np.array_equal(alone.dense(stroke(two.image, (2, 2))).output[0], dense.output[i])
    assert len({first.images[i].tobytes() for i in range(3)}) == 3


@pytest.mark.parametrize(
    "seed",
    [[], [1, 2], [[1], [2]], [[1], [1, 2]], "12", b"1", {1, 2}, [1, -2], [1.5], ["1"], [True], 1j],
    ids=str,
)
def test_seeds_that_do_not_fit_the_batch_are_said(seed):
    originals = picture(np.random.default_rng(0), SIZE, samples=3)
    with pytest.raises(
        InputError, match=r"seed is .*, expected|there are 2 seeds for 3 images; expected one for each"
    ):
        opened(seed=seed).run(originals)


def test_a_mask_says_what_is_made_anew(rng):
    pipeline, original = opened(margin=1), picture(rng, SIZE)
    pipeline.run(original)
    mask = np.zeros(SIZE, bool)
    mask[9:12, 14:16] = True  # half of the stroke
    with pytest.warns(UserWarning, match="6 changed pixels lie outside the mask") as caught:
        result = pipeline.edit(stroke(original), mask=mask)
    assert caught[0].filename == __file__
    assert result.stats.ignored_pixels == 6 and result.stats.edited_area == 6 / 1024
    outside = ~around(SIZE, (9, 14, 3, 2), 1)
    assert np.array_equal(result.image[outside], original[outside])
    # a mask alone makes what is under it anew
    again = pipeline.edit(result.image, mask=mask)
    assert again.stats.ignored_pixels == 0 and not np.array_equal(again.image, result.image)
    for wrong, error in ((mask[:5], ShapeError), (mask * 3, InputError)):
        with pytest.raises(error, match="mask"):
            pipeline.edit(original, mask=wrong)
    assert pipeline.edits == 2


@pytest.mark.parametrize("margin", [0, 1, 5, 100, 10**9])
def test_the_margin_is_that_of_the_result(rng, margin):
    pipeline, original = opened(margin=margin, steps=2), picture(rng, SIZE)
    pipeline.run(original)
    result = pipeline.edit(stroke(original))
    inside = around(SIZE, BOX, margin)
    assert np.array_equal(result.image[~inside], original[~inside])
    assert (result.image[inside] != original[inside]).any(-1).mean() > 0.7


def test_what_is_given_and_what_comes_out_may_be_painted_over(rng):
    pipeline, given = opened(), picture(rng, SIZE)
    original = given.copy()

    def spoil(step):
        step.x[:] = 9
        with pytest.raises(ValueError, match="read-only"):
            step.x0[:] = 9

    result = pipeline.run(given, on_step=spoil)
    before = everything(pipeline)
    given[:] = 1
    result.image[:] = 2
    result.output[:] = 3
    assert_all_same(everything(pipeline), before)
    assert pipeline.edit(original).active.count == 0
    floats = original / np.float32(127.5) - 1
    expected = pipeline.edit(stroke(original)).output
    pipeline.undo()
    assert np.array_equal(pipeline.edit(stroke(original), on_step=spoil).output, expected)
    pipeline.run(floats)
    floats[:] = 0
    result = pipeline.edit(stroke(original))
    kept = pipeline.image.copy()
    result.output[:] = 0
    result.images[:] = 0
    assert np.array_equal(pipeline.image, kept)
    assert pipeline.edit(kept).active.count == 0


# -- where the caches lie --------------------------------------------------------------------------------


@pytest.mark.parametrize("ram", [None, "1GB", "300KB", 0])
def test_where_the_caches_lie_changes_no_bit(backend, rng, tmp_path, ram, monkeypatch):
    skip_unless_in_main_memory(backend)
    monkeypatch.setattr(store_module, "CHUNK", 64 * PAGE)
    original = picture(rng, SIZE)
    plain = opened(backend=backend, policy="paper")
    cached = opened(backend=backend, policy="paper", ram=ram, folder=tmp_path)
    plan = cached.cache_plan(original)
    for pipeline in (plain, cached):
        pipeline.run(original)
    assert_all_same(everything(cached), everything(plain))
    # what was planned is what is taken
    canvases = sum(int(c.nbytes) for session in cached._states for c in session.memory.canvases.values())
    assert plan.steps == 3 and plan.fits and plan.bytes_per_step % PAGE == 0
    layers = sum(len(session.memory.canvases) for session in cached._states)
    assert canvases <= plan.steps * plan.bytes_per_step <= canvases + PAGE * layers
    assert plan.shared_bytes == cached.store.shared_bytes > 0
    total = plan.steps * plan.bytes_per_step + plan.shared_bytes
    assert plan.ram_bytes + plan.disk_bytes == total
    assert cached.store.budget is None or cached.store.ram_bytes <= plan.ram_bytes <= cached.store.budget
    inputs = sum(-(-c.nbytes // PAGE) * PAGE for c in of(cached))  # these lie beside the caches
    assert cached.store.ram_bytes + cached.store.file_bytes >= total - inputs
    if ram in (0, "300KB"):
        assert cached.store.file_bytes >= plan.disk_bytes - inputs > 0
    else:
        assert cached.store.file_bytes == plan.disk_bytes == 0
    for pipeline in (plain, cached):
        pipeline.edit(stroke(original))
        pipeline.edit(stroke(pipeline.image, (20, 3)), mask=np.ones(SIZE, bool))
    assert_all_same(everything(cached), everything(plain))
    assert cached.store.budget is None or cached.store.ram_bytes <= cached.store.budget
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        assert np.array_equal(cached.undo().output, plain.undo().output)
        assert_all_same(everything(cached), everything(plain))
    cached.close()
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SessionError, match="run"):
        cached.edit(original)
    with pytest.raises(SessionError, match="closed"):
        cached.run(original)


def test_a_plan_reads_well(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "disk_free", lambda store: 10**9)
    original = picture(rng, SIZE)
    plan = opened(policy="paper", ram=10**5, folder=tmp_path).cache_plan(original)
    each, shared = plan.bytes_per_step, plan.shared_bytes
    total = 3 * each + shared
    assert (plan.ram_bytes, plan.disk_bytes, plan.fits) == (10**5, total - 10**5, True)
    assert str(plan) == (
        f"3 steps of {each / 1e6:.1f} MB and {shared / 1e6:.1f} MB for all: 0.00 GB in RAM, "
        f"{(total - 1e5) / 1e9:.2f} GB on disk (1.0 GB free); to undo, up to 0.27 GB, 0.27 GB of it on disk"
    )
    assert (
        opened(policy="paper", ram=10**6, undo=5, folder=tmp_path).cache_plan(original).undo_disk_bytes == 5
    )
    monkeypatch.setattr(Store, "disk_free", lambda store: plan.disk_bytes)
    assert not opened(policy="paper", ram=10**5, folder=tmp_path).cache_plan(original).fits  # no journal
    assert opened(policy="paper", ram=10**5, folder=tmp_path, undo=0).cache_plan(original).fits
    monkeypatch.setattr(Store, "disk_free", lambda store: 5)
    assert not opened(ram=0, folder=tmp_path).cache_plan(original).fits
    assert opened().cache_plan(original).fits  # no disk is asked for
    with pytest.raises(ShapeError, match="multiples of 2"):
        opened().cache_plan(original[:31])


def test_many_edits_and_runs_do_not_fill_the_disk(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK", 64 * PAGE)
    pipeline = opened(steps=2, ram=0, folder=tmp_path, policy=SPARSE)
    for i in range(12):
        pipeline.run(picture(rng, [(32, 32), (16, 32), (24, 16)][i % 3]))
        for _ in range(2):
            y, x = rng.integers(0, 12, 2)
            size = rng.integers(1, 10, 2)
            pipeline.edit(stroke(pipeline.image, (y, x), tuple(size)), policy=SPARSE)
        pipeline.undo()
        if i == 2:
            taken = pipeline.store.file_bytes
    assert pipeline.store.file_bytes <= 1.5 * taken


# -- what goes wrong on the way --------------------------------------------------------------------------


class Broken(Exception):
    pass


def failing_at(step: int, error: BaseException):
    def on_step(seen):
        if seen.index == step:
            raise error

    return on_step


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("how", ["on_step", "interrupt", "layer", "not finite", "picture"])
def test_an_edit_that_fails_at_any_step_leaves_no_trace(rng, monkeypatch, how, step, everywhere):
    pipeline, original = opened(), picture(rng, SIZE)
    pipeline.run(original)
    pipeline.edit(stroke(original, (20, 20)))
    before, edited = everything(pipeline), stroke(pipeline.image)
    mask = np.ones(SIZE, bool) if everywhere else None
    kind = type(pipeline.backend)
    on_step, error = None, Broken
    with monkeypatch.context() as patch:
        if how == "on_step":
            on_step = failing_at(step, Broken())
        elif how == "interrupt":
            on_step, error = failing_at(step, KeyboardInterrupt()), KeyboardInterrupt
        elif how == "picture":  # after the last step, when the result is made

            def no_picture(model, output):
                raise Broken

            patch.setattr(pipeline, "_result", lambda *_, **__: no_picture(None, None))
        else:
            calls, compute = [], kind.conv2d

            def spoiled(backend, out, tiles, *rest, **named):
                calls.append(1)
                if how == "not finite" and len(calls) == 30 + 20 * step:
                    named["shift"] = backend.upload(np.full((1, out.shape[3]), np.nan))
                finite = compute(backend, out, tiles, *rest, **named)
                if how == "layer" and len(calls) == 30 + 20 * step:
                    raise Broken
                return finite

            patch.setattr(kind, "conv2d", spoiled)
            error = Broken if how == "layer" else NonFiniteError
        with pytest.raises(error):
            pipeline.edit(edited, mask=mask, on_step=on_step)
    assert_all_same(everything(pipeline), before)
    assert pipeline.edits == 1 and pipeline._base.history.going is None
    # and it goes on
    other = opened()
    other.run(original)
    other.edit(stroke(original, (20, 20)))
    for each in (pipeline, other):
        each.edit(edited, mask=mask)
    assert_all_same(everything(pipeline), everything(other))
    pipeline.undo()
    assert_all_same(everything(pipeline), before)


@pytest.mark.parametrize("at", [1, 5, 20, 30])
def test_an_undo_that_is_interrupted_is_an_undo(rng, monkeypatch, at):
    pipeline, original = opened(policy=SPARSE), picture(rng, SIZE)
    pipeline.run(original)
    before = everything(pipeline)
    pipeline.edit(stroke(original), policy=SPARSE)
    kind, calls = type(pipeline.backend), []
    write = kind.write_tiles

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "write_tiles", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pipeline.undo()
    assert_all_same(everything(pipeline), before)
    assert pipeline.edits == 0
    other = opened(policy=SPARSE)
    other.run(original)
    for each in (pipeline, other):
        each.edit(stroke(original, (3, 3)))
    assert_all_same(everything(pipeline), everything(other))
    pipeline.undo()
    assert_all_same(everything(pipeline), before)


@pytest.mark.parametrize("after", [0, 1, 3, 10])
def test_a_disk_that_fills_during_an_edit_loses_nothing(rng, tmp_path, monkeypatch, after):
    monkeypatch.setattr(store_module, "CHUNK", 4 * PAGE)
    pipeline, original = opened(ram=0, folder=tmp_path), picture(rng, SIZE)
    pipeline.run(original)
    pipeline.edit(stroke(original, (20, 20)))
    before = everything(pipeline)
    made, real = [], os.posix_fallocate

    def full(*arguments):
        made.append(1)
        if len(made) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(SessionError, match=rf"{tmp_path.name}: no room for .*; give more RAM or another"):
            pipeline.edit(original, mask=np.ones(SIZE, bool))
    assert_all_same(everything(pipeline), before)
    assert pipeline.edits == 1 and list(tmp_path.iterdir()) == []
    pipeline.edit(stroke(pipeline.image))
    pipeline.undo()
    assert_all_same(everything(pipeline), before)
    pipeline.undo()
    assert np.array_equal(pipeline.image, original)


def test_a_picture_whose_caches_do_not_fit_is_refused_before_anything_is_lost(rng, tmp_path, monkeypatch):
    pipeline, original = opened(ram="50KB", folder=tmp_path), picture(rng, SIZE)
    pipeline.run(original)
    pipeline.edit(stroke(original))
    before = everything(pipeline)
    monkeypatch.setattr(Store, "disk_free", lambda store: 10**6)
    with pytest.raises(SessionError, match=r"caches need .* free; give more RAM, another folder or fewer"):
        pipeline.run(picture(rng, (1024, 1024)))
    assert_all_same(everything(pipeline), before)
    pipeline.undo()
    pipeline.edit(stroke(original))
    assert_all_same(everything(pipeline), before)
    # what the old image leaves is enough for one as large
    monkeypatch.setattr(Store, "disk_free", lambda store: 0)
    pipeline.run(picture(rng, (16, 64)))
    pipeline.run(original)
    fresh = opened(ram=0, folder=tmp_path)
    with pytest.raises(SessionError, match="caches need"):
        fresh.run(original)


def test_a_run_that_is_interrupted_must_run_again(rng):
    pipeline, original = opened(), picture(rng, SIZE)
    pipeline.run(original)
    whole = everything(pipeline)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(picture(rng, SIZE), on_step=failing_at(1, KeyboardInterrupt()))
    for call in (lambda: pipeline.edit(original), pipeline.undo, lambda: pipeline.image):
        with pytest.raises(SessionError, match="run"):
            call()
    pipeline.run(original)
    assert_all_same(everything(pipeline), whole)


# -- mistakes --------------------------------------------------------------------------------------------

OPTIONS = [
    ({"steps": 0}, "steps is 0, expected a whole number from 1"),
    ({"steps": 2.0}, "steps is 2.0"),
    ({"steps": "5"}, "steps is '5'"),
    ({"steps": True}, "steps is True"),
    ({"steps": 600}, "steps is 600, expected a whole number from 1 to 500"),
    ({"steps": 10**9}, "steps is 1000000000"),
    ({"noise_level": 0}, "noise_level is 0, expected a whole number from 1 to 1000"),
    ({"noise_level": 2000}, "noise_level is 2000"),
    ({"sampler": "foo"}, "unknown sampler 'foo'; known: ddpm, ddim"),
    ({"sampler": ["ddim"]}, "unknown sampler .*; known: ddpm, ddim"),
    (
        {"sampler": "pd"},
        "does not go with a model that is conditioned on timestep and predicts the noise; choose one of ddpm, ddim",
    ),
    ({"schedule": "steep"}, "unknown noise schedule 'steep'; known: linear"),
    ({"schedule": {}}, "unknown noise schedule {}"),
    ({"seed": -1}, "seed is -1, expected a whole number, 0 or more"),
    ({"seed": 1.5}, "seed is 1.5"),
    ({"seed": True}, "seed is True"),
    ({"seed": None}, "seed is None"),
    ({"eta": 2}, "eta is 2, expected a number from 0 to 1"),
    ({"eta": -0.1}, "eta is -0.1"),
    ({"eta": "much"}, "eta is 'much'"),
    ({"eta": float("nan")}, "eta is nan"),
    ({"clip": -1}, "clip is -1, expected None or a number above 0"),
    ({"clip": 0}, "clip is 0"),
    ({"clip": "1"}, "clip is '1'"),
    ({"clip": float("nan")}, "clip is nan"),
    ({"ram": "x"}, "'x' is not an amount of memory"),
    ({"ram": -5}, "not an amount of memory"),
    ({"folder": "/no/such/folder"}, "/no/such/folder: not a writable folder"),
    ({"folder": "/no/such/folder", "ram": 0}, "/no/such/folder: not a writable folder"),
    ({"margin": -1}, "margin is -1, expected a whole number of pixels, 0 or more"),
    ({"margin": 1.5}, "margin is 1.5"),
    ({"margin": True}, "margin is True"),
    ({"margin": "wide"}, "margin is 'wide'"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=lambda value: str(value)[:40])
def test_an_option_that_cannot_be_used_is_said(options, message):
    with pytest.raises(InputError, match=message):
        SDEdit(DDPM, backend="reference", **options)


@pytest.mark.parametrize(("sampler", "most"), [("ddpm", 7), ("ddim", 7), ("euler", 7), ("dpm++2m", 6)])
def test_a_noise_level_too_low_for_the_default_steps_says_how_many_there_may_be(sampler, most):
    with pytest.raises(InputError, match=rf"default of 25 steps is too many .* give {most} steps or fewer"):
        SDEdit(DDPM, sampler=sampler, noise_level=7)
    assert len(SDEdit(DDPM, sampler=sampler, noise_level=7, steps=most).times) == most
    with pytest.raises(InputError, match=f"steps is {most + 1}, expected a whole number from 1 to {most}"):
        SDEdit(DDPM, sampler=sampler, noise_level=7, steps=most + 1)


def test_noise_levels_that_leave_no_step_are_said():
    with pytest.raises(
        InputError, match="noise_level is 1, expected 2 or more: this sampler drops the cleanest timestep"
    ):
        SDEdit(DDPM, sampler="dpm++2m", noise_level=1)
    for sampler in ("ddpm", "ddim", "euler"):
        assert len(SDEdit(DDPM, sampler=sampler, noise_level=1, steps=1).times) == 1
    with pytest.raises(
        InputError, match="default noise level of 5 steps is too high for 3; give a noise level of 3"
    ):
        SDEdit(PD, steps=3)


def test_networks_that_do_not_go_with_it_are_said():
    with pytest.raises(
        InputError, match=r"'ddim' does not go with a model .* on logsnr .* image; choose one of pd"
    ):
        SDEdit(PD, sampler="ddim")
    with pytest.raises(InputError, match="noise_level is 9, expected a whole number from 1 to 8"):
        SDEdit(PD, noise_level=9)
    other = GauGAN(GauGANConfig(ngf=1, semantic_nc=3, nhidden=2, num_upsampling_layers="normal"))
    for wrong in (other, None, "church"):
        with pytest.raises(InputError, match="needs a diffusion model"):
            SDEdit(wrong)


GOOD = picture(np.random.default_rng(3), SIZE)
FLOATS = GOOD / np.float32(127.5) - 1


def with_value(value: float) -> np.ndarray:
    found = FLOATS.copy()
    found[3, 4, 1] = value
    return found


PICTURES = {
    "too bright": (with_value(1.1), InputError, r"values outside \[-1, 1\]"),
    "0 to 255 as floats": (GOOD.astype(np.float32), InputError, r"values outside \[-1, 1\]"),
    "NaN": (with_value(np.nan), InputError, "values outside"),
    "infinity": (with_value(-np.inf), InputError, "values outside"),
    "integers": (GOOD.astype(int), InputError, "int64, expected uint8, or floats"),
    "a mask": (GOOD > 9, InputError, "bool, expected uint8"),
    "grey": (GOOD[..., 0], ShapeError, r"\(32, 32\), expected \[H, W, 3\]"),
    "with alpha": (np.zeros((32, 32, 4), np.uint8), ShapeError, r"expected \[H, W, 3\]"),
    "no images": (GOOD[None][:0], ShapeError, r"\[N, H, W, 3\]"),
    "an odd size": (GOOD[:31], ShapeError, "31×32; this model needs sides in multiples of 2"),
    "nothing": (GOOD[:0], ShapeError, "0×32"),
    "a file's name": ("image.png", ShapeError, "expected"),
}


@pytest.mark.parametrize("mistake", PICTURES)
def test_a_picture_that_cannot_be_used_is_said_and_nothing_is_lost(mistake):
    wrong, error, message = PICTURES[mistake]
    pipeline = opened(backend="reference", steps=1)
    for call in (pipeline.cache_plan, pipeline.run):
        with pytest.raises(error, match=message):
            call(wrong)
    pipeline.run(GOOD)
    before = everything(pipeline)
    for call in (pipeline.cache_plan, pipeline.run, pipeline.edit, pipeline.dense):
        with pytest.raises(error, match=message):
            call(wrong)
    with pytest.raises(ShapeError, match=r"edited image is \(1, 16, 32\), expected the base's \(1, 32, 32\)"):
        pipeline.edit(GOOD[:16])
    with pytest.raises(InputError, match="unknown policy 'magic'"):
        pipeline.edit(stroke(GOOD), policy="magic")
    assert_all_same(everything(pipeline), before)
    assert pipeline.edits == 0


def test_mistakes_before_a_run():
    pipeline = opened(backend="reference")
    for call in (pipeline.edit, pipeline.dense):
        with pytest.raises(SessionError, match=r"call run\(original\) first"):
            call(GOOD)
    for call in (pipeline.undo, lambda: pipeline.image, lambda: pipeline.save("never")):
        with pytest.raises(SessionError, match="run"):
            call()
    assert pipeline.edits == 0 and not os.path.exists("never")
    pipeline.close()
    pipeline.close()


def test_slightly_beyond_the_range_is_rounding_and_is_cut():
    pipeline = opened(backend="reference", steps=1)
    result = pipeline.run(with_value(1.0005))
    assert result.output.max() <= 1


def test_it_is_closed_at_the_end_of_its_block(tmp_path):
    with opened(ram=0, folder=tmp_path, steps=1) as pipeline:
        pipeline.run(GOOD)
        assert pipeline.store.file_bytes > 0
    assert pipeline.store.file_bytes == 0
    with pytest.raises(SessionError):
        pipeline.edit(GOOD)


def test_sessions_of_one_model_share_its_weights():
    one, other = opened(steps=1), opened(steps=2)
    one.run(GOOD)
    other.run(GOOD)
    single = Session(DDPM, one.backend)
    prepared = {id(s.memory.prepared) for s in (*one._states, *other._states, single)}
    assert len(prepared) == 1
