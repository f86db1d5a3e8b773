"""Sessions on the emulated device: edits as on the reference, history bit for bit, files of other backends, threads."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from sparsegen import Session
from sparsegen.backends import Backend, get_backend
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.interface import Host
from sparsegen.tiling.policies import Policy
from tests import networks, unets
from tests.cuda import emulator
from tests.cuda.backends import emulated
from tests.networks import assert_same, values
from tests.tolerances import check

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)

LABELS = {"gaugan": networks.random_gaugan, "mobile": networks.random_mobile}
"""The models of label maps."""
FAMILIES = (*LABELS, "ddpm", "pd")
OTHERS = ("reference", "numba")


@pytest.fixture
def backend() -> CudaBackend:
    return emulated()


def inputs(family: str, count: int = 3, seed: int = 1) -> list[Host]:
    """An input, and edits of it, one after another."""
    rng = np.random.default_rng(seed)
    first = networks.random_labels(rng) if family in LABELS else unets.noisy(rng)
    found = [first]
    for _ in range(count - 1):
        found.append((networks.repaint if family in LABELS else unets.painted)(rng, found[-1]))
    return found


def opened(family: str, backend: str | Backend, first: Host, policy: str | Policy = unets.SPARSE) -> Session:
    """A session after its dense run."""
    model = LABELS[family]() if family in LABELS else unets.FAMILIES[family]()
    session = Session(model, get_backend(backend), policy=policy)
    session.run(first, **({} if family in LABELS else unets.at(model)))
    return session


def assert_close(family: str, found: Host, expected: Host, session: Session) -> None:
    """The outputs agree; GauGAN's is the sum of far larger values of the canvas before it, which rounding acted on."""
    if family not in LABELS:
        return check("backends, measured statistics", found, expected)
    largest = float(np.abs(session.memory.canvases["up_3.conv_1"]).max())
    row = "backends" if family == "gaugan" else "backends, measured statistics"
    check(row, found, expected, largest=largest)


POLICIES: dict[str, str | Policy] = {"paper": unets.SPARSE, "fast": unets.FAST, "exact": "exact"}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_edits_are_those_of_the_reference(family: str, policy: str, backend: CudaBackend) -> None:
    first, *edits = inputs(family)
    ours, theirs = (opened(family, each, first, POLICIES[policy]) for each in (backend, "reference"))
    for edited in edits:
        found, expected = ours.edit(edited), theirs.edit(edited)
        assert_close(family, found.output, expected.output, theirs)
        if policy != "exact":  # there the tiles follow the backend's kernels
            assert np.array_equal(found.active.mask(), expected.active.mask())
            assert found.stats.macs == expected.stats.macs
    of_ours = values(ours)
    for path, of_theirs in values(theirs).items():
        if path != "conv_img":
            check("backends, measured statistics", of_ours[path], of_theirs)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_undo_and_redo_bring_back_every_bit(family: str, policy: str, backend: CudaBackend) -> None:
    first, *edits = inputs(family, 4)
    session = opened(family, backend, first, POLICIES[policy])
    states = [values(session)]
    for edited in edits:
        session.edit(edited)
        states.append(values(session))
    for state in states[-2::-1]:
        session.undo()
        assert_same(values(session), state)
    for state in states[1:]:
        session.redo()
        assert_same(values(session), state)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_moves_between_backends(
    family: str, other: str, backend: CudaBackend, tmp_path: Path
) -> None:
    """Saved on one and loaded on another: the same bits, the same undo; the next edit agrees."""
    first, second, third = inputs(family)
    for here, there in ((backend, get_backend(other)), (get_backend(other), backend)):
        session = opened(family, here, first)
        before = session.memory.backend.download(session.memory.canvases[session._state.output_path])
        session.edit(second)
        session.save(tmp_path / "session.safetensors")
        moved = Session.load(tmp_path / "session.safetensors", there)
        assert moved.memory.backend is there
        of_session, of_moved = values(session), values(moved)
        assert_same(
            of_moved, {path: of_session[path] for path in of_moved}
        )  # tables of codebooks are not in a file
        expected = session.edit(third).output
        on_host = session if here.in_main_memory else moved
        assert_close(family, moved.edit(third).output, expected, on_host)
        moved.undo()
        assert np.array_equal(moved.undo().output, before)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_waits_for_its_output_and_its_checks(family: str, policy: str, backend: CudaBackend) -> None:
    """No layer waits, and one wait serves both."""
    counts = backend.device.counts
    first, *edits = inputs(family)
    session = opened(family, backend, first, POLICIES[policy])
    for edited in edits:
        before = counts["wait"]
        session.edit(edited)
        assert counts["wait"] - before == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_run_waits_for_its_checks_and_its_output(family: str, backend: CudaBackend) -> None:
    before = backend.device.counts["wait"]
    opened(family, backend, inputs(family)[0])
    assert backend.device.counts["wait"] - before <= 2


def test_threads_have_a_session_each(backend: CudaBackend) -> None:
    families = ("gaugan", "pd")
    found: dict[str, Session] = {}
    failed: list[BaseException] = []

    def work(family: str) -> None:
        try:
            first, *edits = inputs(family, 4)
            session = opened(family, backend, first)
            for edited in edits:
                session.edit(edited)
            session.undo()
            found[family] = session
        except BaseException as error:
            failed.append(error)

    for family in families:
        work(family)
    alone = {family: values(session) for family, session in found.items()}
    threads = [threading.Thread(target=work, args=(family,)) for family in families]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for family, session in found.items():
        assert_same(values(session), alone[family])
