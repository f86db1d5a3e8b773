"""Caches in float16: half the memory, and every promise of an editing session, bit for bit between its own runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparsegen import InputError, Paper, SDEdit, Session, SessionError
from sparsegen.backends.interface import Tiles
from sparsegen.backends.registry import get_backend
from sparsegen.engine.store import Store
from sparsegen.models import DDPM
from sparsegen.tiling.tiles import TileSet
from sparsegen.tiling.windows import Window, grow, read_by
from tests.devices import host, skip_unless_in_main_memory
from tests.tolerances import check
from tests.unets import (
    FAMILIES,
    around,
    assert_all_same,
    at,
    everything,
    filled,
    noisy,
    painted,
    picture,
    random_ddpm,
    repainted,
    stroke,
)

SPARSE = Paper(dilation=0, level_dilation=1, sparse_levels=16, least_size=8)
"""What the families' settings do at 64 pixels and more, in images of 32."""


def opened(backend, family: str = "ddpm", *, storage: str = "float16", **settings) -> SDEdit:
    """A session of three steps; widths of which the kernels take some in vectors and some not."""
    model = FAMILIES[family](levels=(16, 24), channels=16)
    times = {"steps": 3, "noise_level": 300} if family == "ddpm" else {"steps": 4, "noise_level": 3}
    given = {**times, "policy": "paper", "margin": 2, "backend": backend, "storage": storage, **settings}
    return SDEdit(model, **given)


def kept(pipeline: SDEdit):
    """The bits of all caches; NaN would not equal itself."""
    steps = everything(pipeline)
    assert all(np.isfinite(canvas).all() for step in steps for canvas in step.values())
    return steps


@pytest.fixture(params=["ddpm", "pd"])
def family(request) -> str:
    return request.param


@pytest.fixture
def image():
    return picture(np.random.default_rng(0))


# -- what is kept ----------------------------------------------------------------------------------------


def test_caches_take_half_and_one_set_to_compute_in(backend, family, image):
    full, half = (opened(backend, family, storage=each, policy="paper") for each in ("float32", "float16"))
    for pipeline in (full, half):
        pipeline.run(image)
    passing = full.store.shared_bytes  # what no step keeps is float32 in both
    shared = half.store.shared_bytes - passing
    for a, b in zip(full._states, half._states, strict=True):
        small = 0
        for path, canvas in a.memory.canvases.items():
            wide = canvas.shape[3] >= 8
            assert b.memory.canvases[path].dtype == ("float16" if wide else "float32"), path
            small += 0 if wide else canvas.nbytes
        assert a.memory.nbytes == small + shared
        assert b.memory.nbytes == small + shared // 2
    plans = full.cache_plan(image), half.cache_plan(image)
    assert plans[1].shared_bytes > plans[0].shared_bytes == passing > 0
    assert plans[1].bytes_per_step < 0.55 * plans[0].bytes_per_step
    for pipeline, plan in zip((full, half), plans, strict=True):
        if not backend.in_main_memory:
            continue  # its store counts the device's memory
        inputs = sum(
            s.memory.canvases["input.x"].nbytes for s in pipeline._states
        )  # where the backend put them
        assert pipeline.store.ram_bytes == plan.ram_bytes - inputs
    assert half.edit(image).stats.canvas_bytes == passing + shared + sum(
        s.memory.nbytes for s in half._states
    )


def test_other_storages_are_refused(image):
    with pytest.raises(InputError, match="unknown storage 'float8'; known: float32, float16"):
        opened("reference", storage="float8")
    with pytest.raises(InputError, match="unknown storage 'int8'"):
        Session(random_ddpm(), storage="int8")


def test_values_stay_near_those_of_float32(backend, family, image):
    full, half = opened(backend, family, storage="float32"), opened(backend, family)
    edited = stroke(image)
    for pipeline in (full, half):
        pipeline.run(image)
        pipeline.edit(edited)
    assert not np.array_equal(full._base.history.image, half._base.history.image)
    check("float16 caches", half._base.history.image, full._base.history.image)
    for a, b in zip(full._states, half._states, strict=True):
        check("float16 caches", host(b.memory, "conv_out"), host(a.memory, "conv_out"))


# -- promises --------------------------------------------------------------------------------------------


def test_an_empty_mask_changes_no_bit(backend, family, image):
    pipeline = opened(backend, family)
    pipeline.run(image)
    before = kept(pipeline)
    for step in pipeline._states:
        _, active, _ = repainted(step, np.zeros(step.inputs["x"].shape[:3], bool), "exact")
        assert active.count == 0
        assert np.array_equal(step.output(), host(step.memory, "conv_out"))
    assert pipeline.edit(image).active.count == 0
    assert_all_same(kept(pipeline), before)


@pytest.mark.parametrize("policy", [SPARSE, "exact", "adaptive(0)", "adaptive(0.02)"])
def test_a_full_mask_of_the_same_picture_is_the_dense_run(backend, family, image, policy):
    """Step by step: what each model reads is what it read, all of it counted as changed."""
    pipeline = opened(backend, family)
    pipeline.run(image)
    before = everything(pipeline, fresh=False)
    for step in pipeline._states:
        repainted(step, np.ones(step.inputs["x"].shape[:3], bool), policy)
    assert_all_same(everything(pipeline, fresh=False), before)


def test_a_chain_of_edits_under_one_mask_equals_one(backend, family):
    """Also when each edit of one finds another's values where both compute."""
    skip_unless_in_main_memory(backend)
    rng = np.random.default_rng(7)
    model, x, store = FAMILIES[family](), noisy(rng), Store()
    mask = np.zeros(x.shape[1:3], bool)
    mask[2:6, 3:9] = True
    chain, one = (Session(model, backend, store=store, storage="float16", policy=SPARSE) for _ in range(2))
    for session in (chain, one):
        session.run(x, **at(model))
    for _ in range(3):
        edited = np.where(mask[..., None], noisy(rng), x)
        chain.edit(edited, mask=mask, policy=SPARSE)
        one.edit(edited, mask=mask, policy=SPARSE)
        one.undo()
    one.edit(edited, mask=mask, policy=SPARSE)
    for path, canvas in chain.memory.canvases.items():
        assert np.array_equal(canvas, one.memory.canvases[path]), path


@pytest.mark.parametrize("policy", [SPARSE, "exact", "adaptive(0.02)"])
def test_undo_puts_every_bit_back(backend, family, image, policy):
    pipeline, states = opened(backend, family, policy=SPARSE if policy is SPARSE else "paper"), []
    pipeline.run(image)
    for i in range(3):
        states.append(kept(pipeline))
        # the last one sets whole canvases aside
        mask = np.ones(image.shape[:2], bool) if i == 2 else None
        pipeline.edit(stroke(pipeline.image, (5 + 7 * i, 4 * i)), mask=mask, policy=policy)
    last = kept(pipeline)
    for state in reversed(states):
        pipeline.undo()
        assert_all_same(kept(pipeline), state)
    # and again: the same edits give the same bits
    for i in range(3):
        mask = np.ones(image.shape[:2], bool) if i == 2 else None
        pipeline.edit(stroke(pipeline.image, (5 + 7 * i, 4 * i)), mask=mask, policy=policy)
    assert_all_same(kept(pipeline), last)


def test_an_edit_depends_on_nothing_but_its_steps_caches(backend, family, image):
    """The canvases that steps share are computed in: what they hold of other steps, or at random, has no say."""
    pipeline = opened(backend, family, policy=SPARSE)
    pipeline.run(image)
    pipeline.edit(stroke(image))
    expected = kept(pipeline)
    pipeline.undo()
    for canvas in pipeline.store._shared.values():
        canvas[...] = np.nan
    pipeline.edit(stroke(image))
    assert_all_same(kept(pipeline), expected)


def test_pixels_outside_the_margin_stay_untouched(backend, family, image):
    pipeline = opened(backend, family)
    before = pipeline.run(image)
    after = pipeline.edit(stroke(image, (9, 14), (3, 4)))
    reached = around(image.shape[:2], (9, 14, 3, 4), pipeline.margin)
    assert np.array_equal(after.output[0][~reached], before.output[0][~reached])
    assert not np.array_equal(after.output[0][reached], before.output[0][reached])


@pytest.mark.parametrize("budget", [0, "300KB"])
def test_files_hold_the_same_bits_as_ram(backend, family, image, tmp_path, budget):
    skip_unless_in_main_memory(backend)
    pipelines = opened(backend, family), opened(backend, family, ram=budget, folder=tmp_path)
    for pipeline in pipelines:
        pipeline.run(image)
        pipeline.edit(stroke(image))
        pipeline.edit(stroke(pipeline.image, (20, 3)))
    assert pipelines[1].store.file_bytes > 0
    assert_all_same(kept(pipelines[1]), kept(pipelines[0]))
    for pipeline in pipelines:
        pipeline.undo()
    assert_all_same(kept(pipelines[1]), kept(pipelines[0]))


def test_a_saved_session_goes_on_with_the_same_bits(backend, family, image, tmp_path):
    pipeline = opened(backend, family)
    pipeline.run(image)
    start = kept(pipeline)
    pipeline.edit(stroke(image))
    pipeline.edit(stroke(pipeline.image, (20, 3)), mask=np.ones(image.shape[:2], bool))
    pipeline.save(tmp_path / "session")
    little = {"ram": "200KB", "folder": tmp_path} if backend.in_main_memory else {}
    loaded = SDEdit.load(tmp_path / "session", backend=backend, **little)
    assert loaded.storage == "float16"
    assert_all_same(kept(loaded), kept(pipeline))
    for each in (pipeline, loaded):
        each.edit(stroke(image, (3, 3)))
    assert_all_same(kept(loaded), kept(pipeline))
    for _ in range(3):
        loaded.undo()
    assert_all_same(kept(loaded), start)
    loaded.run(picture(np.random.default_rng(1), (16, 24)))  # of another size
    assert loaded._states[0].memory.canvases["conv_in"].dtype == "float16"


def test_a_file_of_float16_says_so(tmp_path, image):
    """What a file says of its storage and the canvases in it must agree."""
    pipeline = opened("reference")
    pipeline.run(image)
    for state in pipeline._states:
        state.memory.storage = "float32"
    pipeline.save(tmp_path / "lies")
    with pytest.raises(SessionError, match="the types of its canvases are not those of its model"):
        SDEdit.load(tmp_path / "lies", backend="reference")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_session_keeps_halves_too(backend, family, tmp_path):
    rng = np.random.default_rng(3)
    model, x = FAMILIES[family](), noisy(rng, samples=2)
    if family == "ddpm":  # an output that is kept as float16, too
        model = filled(DDPM(replace(model.config, out_channels=8)), 0)
    store = Store() if backend.in_main_memory else None
    one, other = (Session(model, backend, store=store, storage="float16", policy=SPARSE) for _ in range(2))
    first = one.run(x, **at(model, 2))
    assert first.output.dtype == np.float32
    other.run(painted(rng, x), **at(model, 2))
    edited = painted(rng, x)
    changed = one.edit(edited, policy=SPARSE)
    outside = ~changed.active.mask(whole_tiles=True)
    assert np.array_equal(changed.output[outside], first.output[outside])
    one.save(tmp_path / "one")
    other.edit(painted(rng, x))
    assert np.array_equal(one.undo().output, first.output)
    loaded = Session.load(tmp_path / "one", backend)
    assert np.array_equal(loaded.edit(edited).output, changed.output)
    assert np.array_equal(loaded.undo().output, changed.output)
    assert np.array_equal(loaded.undo().output, first.output)
    assert np.array_equal(loaded.edit(edited, policy=SPARSE).output, changed.output)
    # what is not kept is not rounded
    whole = Session(model, backend).run(x, **at(model, 2)).output
    assert np.array_equal(one.run(x, keep_canvases=False, **at(model, 2)).output, whole)
    assert np.array_equal(one.run(x, **at(model, 2)).output, first.output)


# -- values that float16 cannot hold ---------------------------------------------------------------------


def test_a_value_beyond_float16_is_one_clear_error_and_leaves_no_trace(backend):
    rng = np.random.default_rng(4)
    model, x = random_ddpm(), noisy(rng)
    session = Session(model, backend, storage="float16")
    session.run(x, **at(model))
    before = {path: np.array(host(session.memory, path)) for path in session.memory.canvases}
    large = x.copy()
    large[0, 3, 4] = 1e6
    with pytest.raises(SessionError, match=r"^conv_in: .*65504.*float32"):
        session.edit(large)
    assert session.edits == 0
    for path in session.memory.canvases:
        assert np.array_equal(host(session.memory, path), before[path]), path
    assert session.edit(painted(rng, x)).active.count
    with pytest.raises(SessionError, match=r"^conv_in: .*65504"):
        session.run(large, **at(model))
    with pytest.raises(SessionError, match="run"):
        session.edit(x)


def test_an_edit_of_many_steps_that_overflows_leaves_no_trace(image):
    pipeline = opened("numba", policy="paper")
    pipeline.run(image)
    pipeline.edit(stroke(image))
    before = kept(pipeline)
    narrow, calls = pipeline.backend.narrow_tiles, []

    def fails_late(halves, canvas, tiles, **watched):
        calls.append(1)
        if len(calls) == 25:
            n, row, column = tiles.host[0]
            pipeline.backend.synchronize()
            canvas[n, row * 4, column * 4, 0] = 1e6
        narrow(halves, canvas, tiles, **watched)

    pipeline.backend.narrow_tiles = fails_late
    try:
        with pytest.raises(SessionError, match="65504"):
            pipeline.edit(stroke(image, (20, 20)))
    finally:
        del pipeline.backend.narrow_tiles
    assert 25 <= len(calls) <= 27  # a run is checked once, at its end
    assert_all_same(kept(pipeline), before)
    assert pipeline.edits == 1


# -- pieces ----------------------------------------------------------------------------------------------


WINDOWS = {
    "a pixel": (Window(), 1),
    "3×3": (Window(3, top=1, left=1), 1),
    "downsampling, padded below": (Window(3, 2), 2),
    "downsampling, padded around": (Window(3, 2, 1, 1), 2),
    "a pool": (Window(2, 2), 2),
    "upsampled": (Window(3, top=1, left=1, upsample=2), 0.5),
    "every second": (Window(3, top=1, left=1, step=2), 2),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_tiles_that_are_read_are_those_that_would_spread(name):
    """`read_by` is `grow` the other way: an input tile is read if a change of all of it reaches an active pixel."""
    window, scale = WINDOWS[name]
    rng = np.random.default_rng(5)
    for _ in range(30):
        height, width = (2 * int(n) for n in rng.integers(2, 14, 2))
        size = int(height / scale), int(width / scale)
        tiles = rng.random((2, -(-size[0] // 4), -(-size[1] // 4))) < 0.1
        mask = tiles.repeat(4, 1).repeat(4, 2)[:, : size[0], : size[1]]
        found = read_by(TileSet.of_mask(mask), window, height, width)
        for tile in np.ndindex(found.shape):
            one = TileSet.of_tiles((2, height, width), np.array([tile], np.int32))
            reaches = bool((grow(one, window, *size).mask() & mask).any())
            assert found[tile] >= reaches, tile
        if window.kernel > window.stride or window == Window():  # no gaps: nothing more is read
            grown = grow(TileSet.full(2, height, width), window, *size)
            assert found.any() == (grown.mask() & mask).any()
        assert not found[~mask.any((1, 2))].any()


def in_halves(engine, values):
    """Values `[N, H, W, C]` as a canvas of float16."""
    halves = engine.alloc(values.shape, dtype="float16")
    full = TileSet.full(*values.shape[:3]).tiles
    canvas = engine.upload(values.astype(np.float32))
    engine.narrow_tiles(halves, canvas, full, watch=engine.watch_run(), layer=0)
    return halves


def narrowed(engine, halves, canvas, tiles):
    """Narrows; where the first value is that is not finite, None if there is none."""
    watch = engine.watch_run()
    engine.narrow_tiles(halves, canvas, tiles, watch=watch, layer=3)
    found = watch.first_watched()
    assert found is None or found[0] == 3
    return None if found is None else found[1]


@pytest.mark.parametrize("channels", [8, 16, 30, 48])
@pytest.mark.parametrize("size", [(8, 8), (5, 10)])
def test_tiles_are_narrowed_and_widened(backend, channels, size):
    """To the nearest, ties to even, as NumPy's cast: normal and subnormal values, zeros of both signs, infinities."""
    engine, rng = get_backend(backend), np.random.default_rng(6)
    values = rng.standard_normal((2, *size, channels)) * 2.0 ** rng.integers(-30, 15, (2, *size, channels))
    values.flat[:6] = 0.0, -0.0, 65519.9, 2.0**-25, 1 + 2.0**-11, 1 + 3 * 2.0**-11
    values = values.astype(np.float32)
    tiles = Tiles(TileSet.full(2, *size).tiles.host[::2])
    some, none = Tiles(tiles.host[:-1]), Tiles(tiles.host[:0])
    inside = np.zeros((2, *size), bool)
    for n, row, column in tiles.host:
        inside[n, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] = True
    canvas, halves = engine.upload(values), in_halves(engine, np.full(values.shape, 7))
    assert narrowed(engine, halves, canvas, tiles) is None
    rounded = values.astype(np.float16)
    expected = np.where(inside[..., None], rounded, np.float16(7))
    assert np.array_equal(engine.download(halves).view(np.uint16), expected.view(np.uint16))
    back = np.where(inside[..., None], rounded.astype(np.float32), values)
    assert np.array_equal(engine.download(canvas).view(np.uint32), back.view(np.uint32))
    canvas = engine.upload(np.zeros_like(values))
    engine.widen_tiles(canvas, halves, tiles)
    assert np.array_equal(engine.download(canvas), np.where(inside[..., None], back, 0))
    for large in (65520.0, -1e30):
        n, row, column = tiles.host[-1]
        spoiled = values.copy()
        spoiled[n, row * 4, column * 4, channels - 1] = large
        canvas = engine.upload(spoiled)
        assert narrowed(engine, halves, canvas, tiles) == (n, row * 4, column * 4, channels - 1)
        assert narrowed(engine, halves, canvas, some) is None
    assert narrowed(engine, halves, canvas, none) is None
    kept_tiles = engine.read_tiles(halves, some)
    assert kept_tiles.dtype == np.float16
    zeros = engine.read_tiles(in_halves(engine, np.zeros(values.shape)), some)
    engine.write_tiles(halves, some, zeros)
    engine.write_tiles(halves, some, kept_tiles)
    again = engine.read_tiles(halves, some)
    assert np.array_equal(engine.download(again), engine.download(kept_tiles))
    assert engine.largest_change(canvas, some, kept_tiles).max() == 0
