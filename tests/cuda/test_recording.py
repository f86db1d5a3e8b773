"""Recorded edits: the bits of edits that are computed layer by layer, by one launch of a graph and one wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsegen import Session
from sparsegen.backends import BackendError
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.cupy_cuda.recording import room
from sparsegen.backends.interface import Host, Source, Tiles
from sparsegen.engine import recorded as engine_recorded
from sparsegen.engine.moments import MomentBank
from sparsegen.engine.recorded import is_near, rooms_for
from sparsegen.errors import NonFiniteError, SessionError
from sparsegen.tiling.policies import Exact, Policy
from sparsegen.tiling.tiles import TileSet
from tests.backends.contract_cases import all_tiles, normal
from tests.cuda import emulator
from tests.cuda.emulator import EmulatedDevice
from tests.networks import assert_same, random_gaugan, random_labels, random_mobile, repaint, values
from tests.unets import FAMILIES, FAST, SPARSE, at, kept_by, noisy, painted

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)


class Unrecorded(CudaBackend):
    """The same kernels, launched layer by layer."""

    records = False


@pytest.fixture
def backends() -> Iterator[tuple[CudaBackend, CudaBackend]]:
    yield CudaBackend(EmulatedDevice()), Unrecorded(EmulatedDevice())


LABELS = {"gaugan": random_gaugan, "mobile": random_mobile}
"""The models of label maps."""


def sessions(
    kind: str, backends: tuple[CudaBackend, CudaBackend], policy: Policy
) -> tuple[list[Session], list[Host]]:
    """A session on each backend that has run, and inputs to edit through."""
    rng = np.random.default_rng(3)
    if kind in LABELS:
        model, inputs = LABELS[kind](), [random_labels(rng, (2, 32, 64))]
        inputs += [repaint(rng, inputs[0]) for _ in range(3)]
        conditions = {}
    else:
        model, inputs = FAMILIES[kind](), [noisy(rng, (16, 24))]
        inputs += [painted(rng, inputs[0]) for _ in range(3)]
        conditions = at(model, 1)
    made = [Session(model, backend, policy=policy) for backend in backends]
    for session in made:
        session.run(inputs[0], **conditions)
    return made, inputs[1:]


@pytest.mark.parametrize("policy", [SPARSE, FAST], ids=["paper", "fast"])
@pytest.mark.parametrize("kind", [*LABELS, "ddpm", "pd"])
def test_a_recorded_edit_has_the_bits_of_one_layer_by_layer(
    backends: tuple[CudaBackend, CudaBackend], kind: str, policy: Policy
) -> None:
    (recorded, eager), inputs = sessions(kind, backends, policy)
    counts = recorded.memory.backend.device.counts
    for edited in inputs:
        counts.clear()
        result = recorded.edit(edited)
        assert counts["graph"] == 1 and counts["wait"] == 1
        expected = eager.edit(edited)
        assert np.array_equal(result.output, expected.output)
        assert [*map(str, result.stats.layers)] == [*map(str, expected.stats.layers)]
        assert_same(values(recorded), values(eager))
        assert_same(kept_by(recorded.memory), kept_by(eager.memory))
    for _ in inputs:
        assert np.array_equal(recorded.undo().output, eager.undo().output)
        assert_same(kept_by(recorded.memory), kept_by(eager.memory))
    for _ in inputs:
        assert np.array_equal(recorded.redo().output, eager.redo().output)
    assert_same(kept_by(recorded.memory), kept_by(eager.memory))


@pytest.mark.parametrize("policy", [SPARSE, FAST], ids=["paper", "fast"])
@pytest.mark.parametrize("kind", [*LABELS, "ddpm", "pd"])
def test_a_dense_run_of_other_inputs_has_the_bits_of_a_first_one(
    backends: tuple[CudaBackend, CudaBackend], kind: str, policy: Policy
) -> None:
    """By one launch of a graph and one wait; and edits of it are those of a session that never ran before."""
    (recorded, eager), inputs = sessions(kind, backends, policy)
    counts = recorded.memory.backend.device.counts
    conditions = {} if kind in LABELS else at(recorded.model, 1)
    recorded.edit(inputs[0])
    for original, edited in zip(inputs, inputs[1:] + inputs[:1], strict=True):
        counts.clear()
        result, expected = (each.run(original, **conditions) for each in (recorded, eager))
        assert counts["graph"] == 1 and counts["wait"] == 1
        assert np.array_equal(result.output, expected.output)
        assert [*map(str, result.stats.layers)] == [*map(str, expected.stats.layers)]
        assert_same(values(recorded), values(eager))
        assert_same(kept_by(recorded.memory), kept_by(eager.memory))
        for each in (edited, original):
            assert np.array_equal(recorded.edit(each).output, eager.edit(each).output)
            assert_same(kept_by(recorded.memory), kept_by(eager.memory))
        for _ in range(2):
            assert np.array_equal(recorded.undo().output, eager.undo().output)
        assert_same(kept_by(recorded.memory), kept_by(eager.memory))


def test_a_dense_run_under_other_conditions_or_of_another_size_is_computed_anew(
    backends: tuple[CudaBackend, CudaBackend],
) -> None:
    (recorded, eager), inputs = sessions("ddpm", backends, FAST)
    counts, rng = recorded.memory.backend.device.counts, np.random.default_rng(4)
    for original, time, graphs in (
        (inputs[0], 500.0, 1),
        (inputs[1], 3.0, 0),
        (inputs[0], 3.0, 1),
        (noisy(rng, (16, 16)), 3.0, 0),
        (noisy(rng, (16, 16)), 3.0, 1),
    ):
        counts.clear()
        a, b = (each.run(original, timestep=time).output for each in (recorded, eager))
        assert counts["graph"] == graphs and np.array_equal(a, b)
        assert_same(kept_by(recorded.memory), kept_by(eager.memory))
        edited = painted(rng, original)
        assert np.array_equal(recorded.edit(edited).output, eager.edit(edited).output)


def test_after_a_dense_run_of_damaged_values_the_next_is_right(
    backends: tuple[CudaBackend, CudaBackend],
) -> None:
    (recorded, eager), inputs = sessions("ddpm", backends, FAST)
    broken = inputs[0].copy()
    broken[0, 3, 5] = 3e38
    conditions, messages = at(recorded.model, 1), []
    for session in (recorded, eager):
        session.run(inputs[1], **conditions)
        with pytest.raises(NonFiniteError) as caught:
            session.run(broken, **conditions)
        messages.append(str(caught.value))
        with pytest.raises(SessionError):
            session.edit(inputs[0])
    assert messages[0] == messages[1]
    for each in inputs[:2]:
        assert np.array_equal(recorded.run(each, **conditions).output, eager.run(each, **conditions).output)
    assert np.array_equal(recorded.edit(inputs[2]).output, eager.edit(inputs[2]).output)


def test_an_edit_that_fits_no_recording_is_recorded_anew(
    backends: tuple[CudaBackend, CudaBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But edits of sizes that came before are not."""
    monkeypatch.setattr(engine_recorded, "LEAST_ROOM", 0)
    monkeypatch.setattr(engine_recorded, "MOST_ROOM", 1.5)
    made: list[list[int]] = []
    record = CudaBackend.record
    monkeypatch.setattr(
        CudaBackend,
        "record",
        lambda self, *given, **options: made.append(options["rooms"]) or record(self, *given, **options),
    )
    (recorded, eager), _ = sessions("ddpm", backends, FAST)
    original = recorded._base.history.shown.inputs["x"]
    for rows in (9, 1, 16, 2, 9, 16, 1):
        edited = original.copy()
        edited[:, :rows, : 2 * rows] += 0.5
        assert np.array_equal(recorded.edit(edited).output, eager.edit(edited).output)
        assert_same(kept_by(recorded.memory), kept_by(eager.memory))
    assert 2 <= len(made) <= 4 and len(recorded._state._program._recorded) <= len(made)


def test_edits_of_all_policies_in_turn(backends: tuple[CudaBackend, CudaBackend]) -> None:
    (recorded, eager), inputs = sessions("ddpm", backends, FAST)
    for policy in ("fast", "paper", "fast", "exact", "fast"):
        for edited in inputs[:2]:
            a, b = (each.edit(edited, policy=policy).output for each in (recorded, eager))
            assert np.array_equal(a, b), policy
            assert_same(kept_by(recorded.memory), kept_by(eager.memory))


def test_a_value_that_is_not_finite_is_found_and_taken_back(
    backends: tuple[CudaBackend, CudaBackend],
) -> None:
    (recorded, eager), inputs = sessions("ddpm", backends, FAST)
    recorded.edit(inputs[0])
    before = kept_by(recorded.memory)
    broken = inputs[0].copy()
    broken[0, 3, 5] = 3e38
    messages = []
    eager.edit(inputs[0])
    for session in (recorded, eager):
        with pytest.raises(NonFiniteError) as caught:
            session.edit(broken)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert_same(before, kept_by(recorded.memory))
    assert np.array_equal(recorded.edit(inputs[1]).output, eager.edit(inputs[1]).output)


def test_an_edit_that_is_interrupted_after_its_graph_leaves_no_trace(
    backends: tuple[CudaBackend, CudaBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    (recorded, eager), inputs = sessions("ddpm", backends, FAST)
    for session in (recorded, eager):
        session.edit(inputs[0])
    before = kept_by(recorded.memory)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MomentBank, "after", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recorded.edit(inputs[1])
    assert_same(before, kept_by(recorded.memory))
    for each in inputs[1:]:
        assert np.array_equal(recorded.edit(each).output, eager.edit(each).output)
        assert_same(kept_by(recorded.memory), kept_by(eager.memory))


class Full(EmulatedDevice):
    """A device whose memory ends after some arrays."""

    left = 10**9

    def _made(self, held: Host) -> Any:
        if not self.left:
            raise MemoryError("the device has no room")
        self.left -= 1
        return super()._made(held)


@pytest.mark.parametrize("policy", [SPARSE, FAST, Exact()], ids=["paper", "fast", "exact"])
def test_an_edit_without_memory_leaves_the_session_as_it_was(policy: Policy) -> None:
    device = Full()
    rng = np.random.default_rng(3)
    inputs = [noisy(rng, (16, 24))]
    inputs += [painted(rng, inputs[0]) for _ in range(2)]
    model = FAMILIES["ddpm"]()
    session, other = (Session(model, CudaBackend(each), policy=policy) for each in (device, EmulatedDevice()))
    for each in (session, other):
        each.run(inputs[0], **at(model))
    before, room = kept_by(session.memory), 0
    while True:
        device.left = room
        try:
            result = session.edit(inputs[1])
            break
        except MemoryError:
            device.left = 10**9
            session.edit(inputs[0])  # of nothing: it completes what had no memory either
            assert_same(before, kept_by(session.memory))
            room += 1 + room // 3
    assert room > 4  # it was without memory at several places
    device.left = 10**9
    assert np.array_equal(result.output, other.edit(inputs[1]).output)
    assert np.array_equal(session.edit(inputs[2]).output, other.edit(inputs[2]).output)
    assert_same(kept_by(session.memory), kept_by(other.memory))


@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=12
    )
)
def test_an_edit_fits_the_recording_that_is_made_for_it(edits: list[tuple[int, int, int]]) -> None:
    """Whatever was recorded before: else it would be recorded again each time."""
    recorded: list[list[int]] = []
    for counts in edits:
        sets = [TileSet.of_tiles((1, 80, 80), all_tiles(1, 80, 80).host[:count]) for count in counts]
        rooms = [room(most) for most in rooms_for(sets, recorded)]
        assert all(map(int.__ge__, rooms, counts)) and is_near(rooms, counts)
        recorded.append(rooms)


def test_recorded_work_uses_what_the_recording_was_given(backends: tuple[CudaBackend, CudaBackend]) -> None:
    backend, _ = backends
    rng = np.random.default_rng(0)
    canvas, out = backend.upload(normal(rng, 1, 12, 12, 8)), backend.alloc((1, 12, 12, 8))
    tiles = all_tiles(1, 12, 12)
    few = Tiles(tiles.host[:2])
    with pytest.raises(BackendError, match="not given"):
        backend.record(lambda: backend.pointwise(out, tiles, Source((canvas,))), [few])
    with pytest.raises(emulator.KernelError, match="an upload while"):
        backend.record(lambda: backend.upload(np.zeros(3)) and None, [few])
    recording = backend.record(lambda: backend.pointwise(out, few, Source((canvas,))), [few])
    assert not backend.download(out).any()
    with pytest.raises(BackendError, match="room for 8"):
        recording.replay([tiles])
    recording.replay([Tiles(tiles.host[3:9])])
    written = backend.download(out)[0].any(-1)
    assert written.sum() == 6 * 16 and written[4:].all()
