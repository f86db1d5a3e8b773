"""One pass of a diffusion model, edited: full ≡ dense, empty ≡ cache, undo ≡ before, exact ≡ dense, in every bit.

Dense here means with the original's statistics, which edits reuse. And what a session of such a model refuses.
"""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsegen import Adaptive, InputError, NonFiniteError, Paper, Session, SessionError, ShapeError
from sparsegen.backends import Backend
from sparsegen.engine.feature import Feature
from sparsegen.engine.run import Run
from sparsegen.engine.scratch import flattened
from sparsegen.engine.store import Store
from sparsegen.models import DDPM, DDPMConfig, PDConfig, ProgressiveDistillation
from sparsegen.models.unet import UNet
from sparsegen.tiling.canvas import Canvas
from sparsegen.tiling.policies import Everything
from sparsegen.tiling.tiles import TileSet
from sparsegen.tools.profile import profile
from tests.devices import skip_unless_in_main_memory
from tests.networks import assert_same, computed_by_tiles, values
from tests.unets import FAMILIES, FAST, SPARSE, at, dense_with, noisy, painted, random_ddpm, random_pd

# of a session that keeps no small canvases: under SPARSE it computes them whole, and says so
pytestmark = pytest.mark.filterwarnings("ignore:the session keeps no resolution below")

hypothetically = settings(
    max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

seeds = st.integers(0, 2**16)
samples = st.integers(1, 3)
families = st.sampled_from(["ddpm", "pd"])
sizes = st.sampled_from([(16, 16), (16, 24), (24, 8), (10, 18)])
policies = st.sampled_from([SPARSE, "exact", "adaptive(0)"])
any_policy = st.sampled_from([SPARSE, FAST, "paper", "exact", "adaptive(0)", "adaptive(0.1)"])
EVERY_OPTION = {
    "film": True,
    "resample_blocks": True,
    "symmetric_downsampling": True,
    "frequency_shift": 0,
    "cosine_first": True,
    "head_channels": 8,
    "middle_norm": False,
}
"""Of a DDPM as diffusers may configure it."""


def network(family: str, seed: int) -> UNet:
    """Of a DDPM, with and without what diffusers' options change; most keep all canvases, some do not."""
    options = {name: value for i, (name, value) in enumerate(EVERY_OPTION.items()) if seed >> i & 1}
    model = FAMILIES[family](seed, **options if family == "ddpm" else {})
    model.paper = SPARSE if seed % 3 else model.paper
    return model


def started(backend: Backend, model: UNet, x: np.ndarray, **options: object) -> Session:
    session = Session(model, backend, **options)
    session.run(x, **at(model, len(x)))
    return session


@hypothetically
@given(families, seeds, sizes, samples, policies)
def test_full_mask_equals_dense(backend, family, seed, size, n, policy):
    rng = np.random.default_rng(seed)
    model, x = network(family, seed), noisy(rng, size, n)
    session = started(backend, model, x)
    before = values(session)
    session.edit(x, mask=np.ones(size, bool), policy=policy)
    assert_same(values(session), before)
    edited = noisy(rng, size, n)
    session.edit(edited, mask=np.ones(size, bool), policy=policy)
    assert_same(values(session), dense_with(session, edited))


@hypothetically
@given(families, seeds, sizes, samples, any_policy)
def test_empty_mask_equals_cache(backend, family, seed, size, n, policy):
    model, x = network(family, seed), noisy(np.random.default_rng(seed), size, n)
    session = started(backend, model, x)
    before = values(session)
    for mask in (None, np.zeros(size, bool)):
        result = session.edit(x, mask=mask, policy=policy)
        assert result.stats.macs == 0 < result.stats.macs_dense and result.active.count == 0
        assert np.array_equal(result.output, before["conv_out"])
    assert_same(values(session), before)


@hypothetically
@given(families, seeds, sizes, samples, st.lists(any_policy, min_size=1, max_size=3))
def test_undo_equals_before_any_number_deep(backend, family, seed, size, n, chosen):
    rng = np.random.default_rng(seed)
    model, x = network(family, seed), noisy(rng, size, n)
    session = started(backend, model, x)
    history = []
    for policy in chosen:
        history.append(values(session))
        x = painted(rng, x)
        session.edit(x, policy=policy)
    while history:
        result, before = session.undo(), history.pop()
        assert_same(values(session), before)
        assert np.array_equal(result.output, before["conv_out"])
    assert session.edits == 0


@hypothetically
@given(families, seeds, sizes, samples, st.sampled_from(["exact", "adaptive(0)"]))
def test_exact_equals_dense_with_the_statistics_of_the_original(backend, family, seed, size, n, policy):
    rng = np.random.default_rng(seed)
    model, x = network(family, seed), noisy(rng, size, n)
    session = started(backend, model, x)
    for approximate in (SPARSE, None):  # the second edit comes after one that left pixels stale
        edited = painted(rng, x)
        session.edit(edited, policy=policy)
        assert_same(values(session), dense_with(session, edited))
        if approximate:
            session.edit(painted(rng, edited), policy=approximate)


def test_exact_equals_dense_where_tiles_are_computed_as_one():
    rng = np.random.default_rng(3)
    for model in (random_ddpm(channels=16, levels=(16, 32)), random_pd(channels=16, levels=(16, 32))):
        x = noisy(rng, (32, 32))
        session = started("numba", model, x)
        assert {"down.0.block.0.conv1", "mid.block_1.conv1", "conv_out"} <= computed_by_tiles(session)
        x = x.copy()
        x[0, 17, 13, 1] += 1  # the smallest edit: a pixel inside a tile
        session.edit(x, policy="exact")
        assert_same(values(session), dense_with(session, x))


@hypothetically
@given(families, seeds, sizes)
def test_a_chain_of_paper_edits_under_one_mask_equals_one(backend, family, seed, size):
    rng = np.random.default_rng(seed)
    model, x = network(family, seed), noisy(rng, size)
    mask = np.zeros(size, bool)
    mask[2:6, 3:9] = True
    chain, one = started(backend, model, x), started(backend, model, x)
    for _ in range(3):
        edited = np.where(mask[..., None], noisy(rng, size), x)
        chain.edit(edited, mask=mask, policy=SPARSE)
    one.edit(edited, mask=mask, policy=SPARSE)
    assert_same(values(chain), values(one))


@hypothetically
@given(families, seeds, sizes, any_policy)
def test_a_sample_does_not_depend_on_its_batch(backend, family, seed, size, policy):
    rng = np.random.default_rng(seed)
    model, x = network(family, seed), noisy(rng, size, 2)
    edited = np.concatenate([painted(rng, x[i : i + 1]) for i in range(2)])
    batch = started(backend, model, x)
    batch.edit(edited, policy=policy)
    together, times = values(batch), at(model, 2)[model.time]
    for i in range(2):
        alone = Session(model, backend)
        alone.run(x[i], **{model.time: times[i]})
        alone.edit(edited[i], policy=policy)
        assert_same(values(alone), {path: canvas[i : i + 1] for path, canvas in together.items()})


@hypothetically
@given(families, seeds, any_policy)
def test_an_edit_of_one_sample_leaves_the_others_untouched(backend, family, seed, policy):
    rng = np.random.default_rng(seed)
    model, x = network(family, seed), noisy(rng, samples=3)
    session = started(backend, model, x)
    before, edited = values(session), x.copy()
    edited[1:2] = painted(rng, x[1:2])
    session.edit(edited, policy=policy)
    after = values(session)
    for i in (0, 2):
        assert_same({p: c[i] for p, c in after.items()}, {p: c[i] for p, c in before.items()})
    assert not np.array_equal(after["conv_out"][1], before["conv_out"][1])


class Audit(Run):
    """Computes every layer anew from canvases as they stand, changes none, and says how far each canvas is off."""

    off: dict[str, float]

    def compute(self, path, shape, reads, kernel, *, kept=True, **settings):
        if not kept:
            return super().compute(path, shape, reads, kernel, kept=False, **settings)
        arrays = {**self.memory.canvases, **self.memory.allocator.shared_arrays}
        everywhere = TileSet.full(*shape[:3])
        canvas = Canvas(path, arrays, everywhere)
        anew = self.backend.alloc(shape)
        self._scratch.compute(flattened(path, reads)[1], everywhere.tiles, self._timed)
        kernel(anew, everywhere.tiles)
        rounding = 5e-6 * np.abs(anew).max() if settings.get("whole_tiles") else 0.0
        self.off[path] = np.abs(anew - canvas.array).max() - rounding
        return canvas


@hypothetically
@given(families, seeds, st.sampled_from([0.02, 0.3]))
def test_after_adaptive_edits_no_value_is_further_than_tau_from_what_its_layer_computes(
    backend, family, seed, tau
):
    rng = np.random.default_rng(seed)
    model, x = network(family, seed), noisy(rng)
    session = started(backend, model, x)
    for _ in range(3):
        x = painted(rng, x)
        session.edit(x, policy=Adaptive(tau))
        canvas, audit = session.memory.input("x"), Audit(session.memory, Everything())
        audit.off = {}
        canvas.changed = TileSet.full(*canvas.shape[:3])
        model.forward({"x": Feature(audit, (canvas,))}, session._state.conditions)
        assert len(audit.off) > 20 and all(off <= tau for off in audit.off.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", [SPARSE, "exact"])
def test_pixels_outside_the_active_tiles_stay_untouched(backend, family, policy):
    rng = np.random.default_rng(4)
    model, x = network(family, 0), noisy(rng, (32, 32))
    if policy == "exact":  # with attention, everything below it changes
        model = FAMILIES[family](attention=(False, False), middle_attention=False, levels=(8, 8))
        x = noisy(rng, (256, 8))
    session = started(backend, model, x)
    before, edited = values(session)["conv_out"], x.copy()
    edited[0, 2:4, 3:6] -= 2
    result = session.edit(edited, policy=policy)
    touched = result.active.mask(whole_tiles=True)
    assert 0 < touched.sum() < touched.size
    assert np.array_equal(result.output[~touched], before[~touched])
    assert not np.array_equal(result.output[touched], before[touched])


# -- where canvases lie, and whether they are kept -------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["paper", SPARSE, "exact", "adaptive(0.1)"])
def test_canvases_of_resolutions_that_are_computed_whole_are_not_kept(backend, family, policy):
    rng = np.random.default_rng(12)
    model, x = FAMILIES[family](), noisy(rng, (16, 16), 2)
    model.paper = replace(model.paper, least_size=16)
    session = started(backend, model, x)
    kept, transients = session.memory.canvases, session.memory.allocator.shared_arrays
    assert kept["conv_out"].shape[1] == 16 and all(canvas.shape[1] == 8 for canvas in transients.values())
    # the way down reads 16×16, and is a way to compute some tiles alone: what it writes is kept
    small = [path for path, canvas in kept.items() if canvas.shape[1] == 8]
    assert small and all(path.startswith("down.0.downsample.") for path in small)
    assert len(transients) > 10
    before, taken = values(session), session.run(x, **at(model, 2)).stats.canvas_bytes
    assert taken == sum(canvas.nbytes for canvas in (*kept.values(), *transients.values()))

    edited = x.copy()
    edited[1, 2:4, 3:6] -= 2
    result = session.edit(edited, policy=policy)
    assert not set(session._base.history.edits[0].journals[0].paths) & set(transients)
    layers = {layer.path: layer for layer in result.stats.layers}
    for path in transients:  # every tile of the sample that was edited
        assert (layers[path].active, layers[path].total) == (4, 8)
    # what they hold is for one run: whatever stands there, the next run and the next undo are the same
    other = started(backend, model, x)
    other.edit(edited, policy=policy)
    for canvas in transients.values():
        canvas[...] = np.nan
    again = painted(rng, edited)
    assert np.array_equal(session.edit(again, policy=policy).output, other.edit(again, policy=policy).output)
    assert_same(values(session), values(other))
    for canvas in transients.values():
        canvas[...] = np.nan
    for _ in range(2):
        session.undo()
    assert_same(values(session), before)


def test_no_output_is_lost_where_the_picture_itself_is_computed_whole(backend):
    rng = np.random.default_rng(13)
    model, x = random_ddpm(), noisy(rng, (8, 8))
    assert model.paper.least_size == 64
    session = started(backend, model, x)
    first = values(session)["conv_out"]
    assert np.array_equal(session.edit(x).output, first)
    edited = painted(rng, x)
    assert np.array_equal(session.edit(edited).output, dense_with(session, edited)["conv_out"])
    assert np.array_equal(session.undo().output, first)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [None, 0, "100KB", "1GB"])
def test_a_store_changes_no_bit(backend, tmp_path, family, budget):
    skip_unless_in_main_memory(backend)
    rng = np.random.default_rng(5)
    model, x = network(family, 0), noisy(rng, (16, 24), 2)
    plain = started(backend, model, x)
    store = Store(budget, tmp_path)
    stored = started(backend, model, x, store=store)
    assert_same(values(stored), values(plain))
    assert store.budget is None or store.ram_bytes <= store.budget
    assert (store.file_bytes > 0) == (budget in (0, "100KB"))
    for i in range(3):
        x = painted(rng, x)
        mask = np.ones(x.shape[1:3], bool) if i == 1 else None  # canvases that are set aside, too
        for session in (plain, stored):
            session.edit(x, policy=SPARSE, mask=mask)
        store.drop_pages()
        assert_same(values(stored), values(plain))
    for _ in range(3):
        assert np.array_equal(plain.undo().output, stored.undo().output)
        assert_same(values(stored), values(plain))
    x = noisy(rng, (24, 16))
    assert np.array_equal(stored.run(x, **at(model)).output, plain.run(x, **at(model)).output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", ["none", 0, None])
def test_a_run_that_records_nothing_gives_the_same_bits_and_refuses_edits(backend, tmp_path, family, budget):
    rng = np.random.default_rng(6)
    model, x = network(family, 0), noisy(rng, (32, 32), 2)
    kept = started(backend, model, x)
    if budget != "none":
        skip_unless_in_main_memory(backend)
    store = None if budget == "none" else Store(budget, tmp_path)
    session = Session(model, backend, store=store)
    result = session.run(x, keep_canvases=False, **at(model, 2))
    assert np.array_equal(result.output, values(kept)["conv_out"])
    assert set(session.memory.canvases) == {"input.x"} and result.stats.canvas_bytes == x.nbytes
    assert result.stats.macs == result.stats.macs_dense > 0
    for call in (lambda: session.edit(x), session.undo, lambda: session.image):
        with pytest.raises(SessionError, match="run"):
            call()
    if store is not None:
        gc.collect()
        taken = store.ram_bytes + store.file_bytes
        assert taken < sum(canvas.nbytes for canvas in kept.memory.canvases.values()) or budget == 0
    assert np.array_equal(session.run(x, **at(model, 2)).output, result.output)
    session.edit(painted(rng, x))
    assert np.array_equal(session.run(x, keep_canvases=False, **at(model, 2)).output, result.output)
    with pytest.raises(SessionError):
        session.edit(x)


def test_what_was_given_may_be_painted_over(backend):
    rng = np.random.default_rng(7)
    model, x = random_ddpm(), noisy(rng)
    session, given = Session(model, backend), x.copy()
    session.run(given, timestep=3)
    given[:] = 7
    assert session.edit(x).active.count == 0
    edited = painted(rng, x)
    given = edited.copy()
    session.edit(given)
    given[:] = 7
    assert session.edit(edited).active.count == 0


# -- costs -----------------------------------------------------------------------------------------------


def test_macs_are_those_of_the_papers():
    """SIGE, arXiv 2211.02048, table 1: DDPM on LSUN church 249 G, 33.4 G for 1.2 %; PD 66.9 G and, at 256, 119 G."""
    picture = np.zeros((256, 256, 3), np.float32)
    ddpm, mask = DDPM(DDPMConfig()), np.zeros((256, 256), bool)
    mask[100:128, 90:118] = True
    assert profile(ddpm, picture, timestep=0).macs == pytest.approx(248.5e9, rel=1e-3)
    assert 32e9 < profile(ddpm, picture, timestep=0, mask=mask).macs < 34e9
    small = ProgressiveDistillation(PDConfig())
    assert profile(small, picture[:128, :128], logsnr=0.0).macs == pytest.approx(66.8e9, rel=1e-3)
    attention = (False, False, False, True, True, True)
    large = ProgressiveDistillation(PDConfig(levels=(64, 64, 128, 256, 384, 512), attention=attention))
    assert profile(large, picture, logsnr=0.0).macs == pytest.approx(118.7e9, rel=1e-3)


def test_a_session_counts_what_a_profile_foretells(backend):
    rng = np.random.default_rng(8)
    model, x, mask = random_ddpm(), noisy(rng, (32, 32)), np.zeros((32, 32), bool)
    mask[3:9, 20:22] = True
    session = started(backend, model, x, policy=SPARSE)
    edit = session.edit(x + 1, mask=np.ones((32, 32), bool)).stats
    assert edit.macs == edit.macs_dense == profile(model, x, timestep=0).macs
    found = session.edit(np.where(mask[..., None], x, x + 1), mask=mask, policy=SPARSE).stats
    expected = profile(model, x, timestep=0, mask=mask, policy=SPARSE)
    assert 0 < found.macs == expected.macs < edit.macs and found.tiles == expected.tiles


# -- mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "reported", "value"),
    [
        ("conv_in.weight", "conv_in", np.nan),
        ("temb.dense.0.bias", "down.0.block.0.conv1", np.inf),
        ("down.0.block.0.norm1.weight", "down.0.block.0.conv1", np.nan),
        ("down.1.attn.0.q.weight", "down.1.attn.0.q", -np.inf),
        ("mid.block_2.conv2.weight", "mid.block_2.conv2", 3e38),
        ("up.0.block.1.nin_shortcut.bias", "up.0.block.1.(nin_shortcut|conv2)", np.nan),
        ("conv_out.bias", "conv_out", np.nan),
    ],
)
def test_a_value_that_is_not_finite_names_the_layer(backend, layer, reported, value):
    model, x = random_ddpm(), noisy(np.random.default_rng(9))
    values = {name: parameter.value for name, parameter in model.parameters().items()}
    values[layer] = values[layer].copy()
    values[layer].flat[values[layer].size // 2] = value
    model.load_parameters(values)
    session = Session(model, backend)
    with pytest.raises(NonFiniteError, match=rf"^{reported}: .*sample \d, row \d+, column \d+.*weights"):
        session.run(x, timestep=3)
    with pytest.raises(SessionError, match="run"):
        session.edit(x)


X = noisy(np.random.default_rng(10), samples=2)


def spoiled(value: float) -> np.ndarray:
    x = X.copy()
    x[1, 3, 4, 2] = value
    return x


MISTAKES = {
    "no timestep": (X, {}, InputError, "no timestep is given; ddpm needs timestep="),
    "NaN": (X, {"timestep": np.nan}, InputError, "timestep is nan, expected finite"),
    "infinity": (X, {"timestep": [1, np.inf]}, InputError, "timestep .* finite"),
    "three times for two samples": (X, {"timestep": [1, 2, 3]}, ShapeError, r"expected one number or \(2,\)"),
    "a matrix of times": (X, {"timestep": [[1, 2]]}, ShapeError, "expected one number"),
    "text": (X, {"timestep": "late"}, InputError, "timestep is 'late', expected a number"),
    "another condition": (
        X,
        {"timestep": 1, "logsnr": 2},
        InputError,
        "unknown condition logsnr; ddpm takes timestep",
    ),
    "uint8": ((X * 9).astype(np.uint8), {"timestep": 1}, InputError, r"uint8.*sparsegen\.SDEdit"),
    "integers": (X.astype(int), {"timestep": 1}, InputError, "expected floats"),
    "four channels": (np.zeros((2, 16, 16, 4)), {"timestep": 1}, ShapeError, r"expected \[H, W, 3\]"),
    "no channels": (np.zeros((16, 16)), {"timestep": 1}, ShapeError, r"expected \[H, W, 3\]"),
    "no samples": (X[:0], {"timestep": 1}, ShapeError, r"\[N, H, W, 3\]"),
    "an odd size": (X[:, :15], {"timestep": 1}, ShapeError, "15×16; .* multiples of 2"),
    "no pixels": (X[:, :0], {"timestep": 1}, ShapeError, "0×16"),
    "a pixel that is NaN": (spoiled(np.nan), {"timestep": 1}, InputError, "sample 1, row 3, column 4"),
    "too large for float32": (spoiled(np.inf).astype(float), {"timestep": 1}, InputError, "row 3, column 4"),
    "too large a number": (X.astype(float) * 1e300, {"timestep": 1}, InputError, "not finite"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_error_and_loses_nothing(mistake):
    x, conditions, error, message = MISTAKES[mistake]
    session = started("reference", random_ddpm(), X)
    before = values(session)
    with pytest.raises(error, match=message):
        session.run(x, **conditions)
    assert_same(values(session), before)
    assert session.edit(painted(np.random.default_rng(0), X)).active.count > 0


def test_the_time_belongs_to_the_base():
    rng = np.random.default_rng(11)
    for model in (random_ddpm(), random_pd()):
        x = noisy(rng)
        session = started("reference", model, x)
        session.edit(painted(rng, x), **at(model))  # the same: nothing to say
        session.edit(painted(rng, x), **{model.time: None})
        for time in (7.0, [500.5], [0.3, 0.3]):
            with pytest.raises((InputError, ShapeError), match=model.time):
                session.edit(x, **{model.time: time})
        assert session.edits == 2
        with pytest.raises(ShapeError, match=r"\(N, H, W\)"):
            session.edit(noisy(rng, (16, 18)))


def test_another_time_is_another_output(backend):
    x = noisy(np.random.default_rng(12))
    for model in (random_ddpm(), random_pd()):
        first, second = Session(model, backend), Session(model, backend)
        one, other = first.run(x, **{model.time: 3.0}), second.run(x, **{model.time: 4.0})
        assert not np.array_equal(one.output, other.output)
        # the one time for all samples is that of each
        both = first.run(np.concatenate([x, x]), **{model.time: 3.0}).output
        each = second.run(np.concatenate([x, x]), **{model.time: [3.0, 3.0]}).output
        assert np.array_equal(both, each) and np.array_equal(both[:1], one.output)


# -- the paper policy's smallest size --------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, -1, 1.5, "64", None])
def test_least_size_is_a_whole_number(value):
    with pytest.raises(InputError, match="least_size is"):
        Paper(least_size=value)


@pytest.mark.parametrize("least", [0, 1, 8, 9, 16, 17, 1000])
def test_resolutions_under_the_least_size_are_recomputed_whole(least):
    mask = np.zeros((1, 32, 64), bool)
    mask[0, 9, 9] = True
    plan = Paper(dilation=0, level_dilation=0, sparse_levels=16, least_size=least).plan(mask)
    for size, level in plan._masks.items():
        assert level.count == (level.total if min(size) < least else 1), size
