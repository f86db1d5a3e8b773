"""What makes an edit trustworthy, bit for bit: full ≡ dense, empty ≡ cache, undo ≡ before, exact ≡ dense.

On every backend. And what an adaptive edit holds back: no value further than tau from what its layer makes of what it
reads.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsegen import Adaptive, Session
from sparsegen.backends import Backend
from sparsegen.backends.reference import ReferenceBackend
from sparsegen.engine.feature import Feature
from sparsegen.engine.memory import Memory
from sparsegen.engine.run import Run
from sparsegen.engine.scratch import flattened
from sparsegen.models import GauGAN
from sparsegen.models.spade import SPADEGenerator
from sparsegen.tiling.canvas import Canvas
from sparsegen.tiling.policies import Everything
from sparsegen.tiling.tiles import TileSet
from tests.networks import (
    assert_same,
    computed_by_tiles,
    random_gaugan,
    random_labels,
    random_mask,
    random_mobile,
    repaint,
    values,
)
from tests.tolerances import check

hypothetically = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

UNITS = {"normal": 32, "more": 64, "most": 128}
SIZES = [(32, 64), (64, 32), (32, 32), (96, 32)]
seeds = st.integers(0, 2**16)
sizes = st.sampled_from(SIZES)
samples = st.integers(1, 3)
exactly = st.sampled_from(["exact", "adaptive(0)"])
policies = st.sampled_from(["paper", "exact", "adaptive(0)"])
any_policy = st.sampled_from(["paper", "exact", "adaptive(0)", "adaptive(0.05)", "adaptive(1)"])


@st.composite
def networks(
    draw: st.DrawFn, *, norms: tuple[str, ...] = ("batch",)
) -> tuple[SPADEGenerator, tuple[int, int]]:
    """A model of any options and a size it takes; with measured statistics also a compressed one."""
    if "instance" in norms and draw(st.integers(0, 3)) == 0:
        settings = {"edge_channel": draw(st.booleans()), "semantic_nc": 5}
        return random_mobile(draw(seeds), **settings), draw(sizes)
    depth = draw(st.sampled_from(["normal", "normal", "normal", "more", "most"]))
    unit = UNITS[depth]
    size = draw(sizes) if depth == "normal" else (unit, unit)
    with_z = draw(st.booleans())
    model = random_gaugan(
        draw(seeds),
        ngf=draw(st.sampled_from([2, 4])),
        num_upsampling_layers=depth,
        norm=draw(st.sampled_from(norms)),
        edge_channel=draw(st.booleans()),
        semantic_nc=5,
        z_dim=3 if with_z else 0,
        kernel_size=draw(st.sampled_from([3, 3, 5])),
        start_cells=size[0] * size[1] // unit**2 if with_z else 0,
    )
    return model, size


def canvases(session: Session) -> dict[str, np.ndarray]:
    """The canvases as they are, codes as numbers."""
    return {path: session.memory.backend.download(c) for path, c in session.memory.canvases.items()}


def dense(backend: Backend, model: SPADEGenerator, labels: np.ndarray, only: int | None = None) -> Session:
    """A session after its run, under conditions that depend on the sample's place alone (`only`: that sample)."""
    session, config = Session(model, backend), model.config
    samples = 1 if labels.ndim == 2 else len(labels)
    chosen = range(samples) if only is None else [only]
    conditions = {}
    if "z" in model.conditions and config.z_dim:
        conditions["z"] = np.stack([np.random.default_rng(i).standard_normal(config.z_dim) for i in chosen])
    if config.edge_channel:
        rng = np.random.default_rng(7)
        conditions["instances"] = np.broadcast_to(
            random_labels(rng, labels.shape[-2:]), (samples, *labels.shape[-2:])
        )
    session.run(labels, **conditions)
    return session


@hypothetically
@given(networks(), seeds, samples, policies)
def test_full_mask_equals_dense(backend, drawn, seed, n, policy):
    model, size = drawn
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, (n, *size))
    edited = random_labels(rng, (n, *size))
    session = dense(backend, model, labels)
    session.edit(edited, mask=np.ones(size, bool), policy=policy)
    assert_same(values(session), values(dense(backend, model, edited)))


@hypothetically
@given(networks(norms=("instance",)), seeds, policies)
def test_full_mask_of_the_same_input_equals_dense_with_measured_statistics(backend, drawn, seed, policy):
    model, size = drawn
    labels = random_labels(np.random.default_rng(seed), size)
    session = dense(backend, model, labels)
    before = canvases(session)
    session.edit(labels, mask=np.ones(size, bool), policy=policy)
    assert_same(canvases(session), before)


@hypothetically
@given(networks(norms=("batch", "instance")), seeds, samples, any_policy)
def test_empty_mask_equals_cache(backend, drawn, seed, n, policy):
    model, size = drawn
    labels = random_labels(np.random.default_rng(seed), (n, *size))
    session = dense(backend, model, labels)
    before = canvases(session)
    for mask in (None, np.zeros(size, bool)):
        result = session.edit(labels, mask=mask, policy=policy)
        assert result.stats.macs == 0 < result.stats.macs_dense and result.active.count == 0
        assert not any(active for active, _ in result.stats.tiles.values())
        assert np.array_equal(result.output, before["conv_img"])
    assert_same(canvases(session), before)


@hypothetically
@given(networks(norms=("batch", "instance")), seeds, samples, st.lists(any_policy, min_size=1, max_size=4))
def test_undo_equals_before_any_number_deep(backend, drawn, seed, n, chosen):
    model, size = drawn
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, (n, *size))
    session = dense(backend, model, labels)
    history = []
    for policy in chosen:
        known = {path: len(codebook.window_set) for path, codebook in session.memory.codebooks.items()}
        history.append((canvases(session), known))
        labels = repaint(rng, labels)
        session.edit(labels, policy=policy)
    while history:
        result = session.undo()
        before, known = history.pop()
        assert_same(canvases(session), before)
        assert {
            path: len(codebook.window_set) for path, codebook in session.memory.codebooks.items()
        } == known
        assert np.array_equal(result.output, before["conv_img"])
    assert session.edits == 0


@hypothetically
@given(networks(), seeds, samples, exactly)
def test_exact_equals_dense(backend, drawn, seed, n, policy):
    model, size = drawn
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, (n, *size))
    edited = repaint(rng, labels)
    session = dense(backend, model, labels)
    session.edit(edited, policy=policy)
    assert_same(values(session), values(dense(backend, model, edited)))


@hypothetically
@given(networks(), seeds, samples, exactly)
def test_an_exact_edit_under_a_mask_equals_dense_of_what_the_mask_lets_through(
    backend, drawn, seed, n, policy
):
    model, size = drawn
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, (n, *size))
    mask = np.stack([random_mask(rng, size) for _ in range(n)])
    edited = random_labels(rng, (n, *size))
    session = dense(backend, model, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # changes outside the mask: that is the point
        session.edit(edited, mask=mask, policy=policy)
    assert_same(values(session), values(dense(backend, model, np.where(mask, edited, labels))))


@hypothetically
@given(networks(), seeds, st.lists(any_policy, min_size=1, max_size=3), exactly)
def test_an_exact_edit_is_exact_whatever_came_before(backend, drawn, seed, chosen, policy):
    """Approximate edits leave pixels stale; the next exact edit spreads them too."""
    model, size = drawn
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, size)
    session = dense(backend, model, labels)
    for each in (*chosen, policy):
        labels = repaint(rng, labels)
        session.edit(labels, policy=each)
    assert_same(values(session), values(dense(backend, model, labels)))


@hypothetically
@given(networks(norms=("batch", "instance")), seeds, exactly)
def test_a_chain_of_exact_edits_equals_one(backend, drawn, seed, policy):
    model, size = drawn
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, size)
    chain, one = dense(backend, model, labels), dense(backend, model, labels)
    for _ in range(3):
        labels = repaint(rng, labels)
        chain.edit(labels, policy=policy)
    one.edit(labels, policy="exact")
    assert_same(values(chain), values(one))


@hypothetically
@given(networks(norms=("batch", "instance")), seeds)
def test_a_chain_of_paper_edits_under_one_mask_equals_one(backend, drawn, seed):
    model, size = drawn
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, size)
    mask = np.zeros(size, bool)
    mask[4:20, 8:23] = True
    chain, one = dense(backend, model, labels), dense(backend, model, labels)
    for _ in range(3):
        edited = np.where(mask, random_labels(rng, size), labels)
        chain.edit(edited, mask=mask)
    one.edit(edited, mask=mask)
    assert_same(values(chain), values(one))


@hypothetically
@given(networks(), seeds, any_policy)
def test_a_sample_does_not_depend_on_its_batch(backend, drawn, seed, policy):
    model, size = drawn
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, (2, *size))
    edited = np.stack([repaint(rng, sample) for sample in labels])
    batch = dense(backend, model, labels)
    batch.edit(edited, policy=policy)
    together = values(batch)
    for i in range(2):
        alone = dense(backend, model, labels[i], only=i)
        alone.edit(edited[i], policy=policy)
        assert_same(values(alone), {path: canvas[i : i + 1] for path, canvas in together.items()})


class Audit(Run):
    """Computes every layer anew from canvases as they stand, changes none, and says how far each canvas is off.

    Where a pixel's bits depend on its whole tile and tau lets that pass, off by more than rounding does it.
    """

    def __init__(self, memory: Memory, tau: float) -> None:
        super().__init__(memory, Everything())
        self.tau = tau
        self.off: dict[str, float] = {}

    def compute(self, path, shape, reads, kernel, *, kept=True, **settings):
        if not kept:
            return super().compute(path, shape, reads, kernel, kept=False, **settings)
        everything = TileSet.full(*shape[:3])
        canvas = Canvas(path, self.memory.canvases, everything)
        anew = self.backend.alloc(shape, dtype=settings.get("dtype", "float32"))
        _, below = flattened(path, reads)
        self._scratch.compute(below, everything.tiles, self._timed)
        kernel(anew, everything.tiles)
        by_tile = settings.get("whole_tiles") or any(each.whole_tiles for each in below)
        self._compare(path, anew, canvas.array, rounding=5e-6 if by_tile and self.tau else 0.0)
        return canvas

    def forward(self, model, conditions):
        """The whole model; what codebooks hold is computed anew too, and compared."""
        kept = {}
        for codebook in self.memory.codebooks.values():
            for path, table in codebook.tables.items():
                kept[path], table.count = self.backend.download(table.rows[: table.count]), 0
        canvas = self.memory.input("labels")
        canvas.changed = TileSet.full(*canvas.shape[:3])
        model.forward({"labels": Feature(self, (canvas,))}, conditions)
        for codebook in self.memory.codebooks.values():
            for path, table in codebook.tables.items():
                self._compare(path, table.rows[: table.count], kept[path], rounding=0.0)

    def _compare(self, path, anew, kept, *, rounding):
        anew, kept = (self.backend.download(array).astype(np.float64) for array in (anew, kept))
        self.off[path] = np.abs(anew - kept).max() - rounding * np.abs(anew).max()


@pytest.mark.slow
@hypothetically
@given(networks(norms=("batch", "instance")), seeds, samples, st.sampled_from([0, 0.01, 0.2]))
def test_after_any_adaptive_edits_no_value_is_further_than_tau_from_what_its_layer_computes(
    backend, drawn, seed, n, tau
):
    model, size = drawn
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, (n, *size))
    session = dense(backend, model, labels)
    for _ in range(5):
        labels = repaint(rng, labels)
        session.edit(labels, policy=Adaptive(tau))
        audit = Audit(session.memory, tau)
        audit.forward(model, session._state.conditions)
        assert len(audit.off) > 30 and all(off <= tau for off in audit.off.values())


@pytest.mark.parametrize("policy", ["paper", "exact", "adaptive(0.01)"])
def test_pixels_outside_the_active_tiles_stay_untouched(backend, policy):
    rng = np.random.default_rng(5)
    labels = random_labels(rng, (64, 128))
    session = dense(backend, random_gaugan(5), labels)
    before = canvases(session)["conv_img"]
    edited = labels.copy()
    edited[2:6, 3:9] = (edited[2:6, 3:9] + 1) % 4
    result = session.edit(edited, policy=policy)
    touched = result.active.mask(whole_tiles=True)
    assert 0 < touched.sum() < touched.size
    assert np.array_equal(result.output[~touched], before[~touched])
    assert not np.array_equal(result.output[touched], before[touched])


@pytest.mark.parametrize("policy", ["exact", "adaptive(0)"])
def test_exact_equals_dense_where_tiles_are_computed_as_one(backend, policy):
    """Wide layers at 8×16 and above: where a backend has Winograd's transforms, here it takes them."""
    rng = np.random.default_rng(8)
    model, labels = random_gaugan(8, ngf=8, nhidden=16), random_labels(rng, (64, 128))
    session = dense(backend, model, labels)
    if backend.name == "numba":
        assert {"up_0.conv_0", "up_1.conv_0", "up_2.conv_1", "conv_img"} <= computed_by_tiles(session)
    for _ in range(3):
        labels = labels.copy()
        labels[tuple(rng.integers(0, labels.shape))] ^= 1  # the smallest edit: a pixel inside a tile
        session.edit(labels, policy=policy)
        assert_same(values(session), values(dense(backend, model, labels)))


# -- codebooks, and backends among themselves ------------------------------------------------------------


class ReferenceWithCodebooks(ReferenceBackend):
    codebooks = True


@hypothetically
@given(networks(norms=("batch", "instance")), seeds, samples, st.sampled_from(["paper", "exact"]))
def test_codebooks_and_backends_change_no_value_but_by_rounding(backend, drawn, seed, n, policy):
    """Every layer, gamma and beta looked up, as the reference backend computes it pixel by pixel."""
    model, size = drawn
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, (n, *size))
    edited = repaint(rng, labels)
    coded = ReferenceWithCodebooks() if backend.name == "reference" else backend
    plain, other = dense(ReferenceBackend(), model, labels), dense(coded, model, labels)
    for _ in range(2):
        expected, found = values(plain), values(other)
        layers = {path for path in found if not path.startswith("windows.")}
        by_window = coded.codebooks and (isinstance(model, GauGAN) or n == 1)
        assert layers == set(expected) and (len(found) > len(layers)) == by_window
        fixed = isinstance(model, GauGAN) and model.config.norm == "batch"
        row = "backends" if fixed else "backends, measured statistics"
        for path in layers - {"conv_img"}:
            check(row, found[path], expected[path])
        read = max(path for path in layers if path.startswith("up_") and path.endswith(".conv_1"))
        largest = float(np.abs(expected[read]).max())  # before tanh
        check(row, found["conv_img"], expected["conv_img"], largest=largest)
        plain.edit(edited, policy=policy)
        other.edit(edited, policy=policy)
