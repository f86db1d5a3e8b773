"""Ten thousand edits and undos: every canvas ends as it began, bit for bit, and nothing has grown."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest

from sparsegen import Session
from sparsegen.backends.interface import Host
from tests.devices import host
from tests.networks import assert_same, random_gaugan, random_labels, repaint

OPERATIONS = 10_000
CHAINS = 40
"""Chains of edits drawn beforehand: once each has been played, a session has met all that will come."""


def chains(labels: Host, rng: np.random.Generator) -> list[list[tuple[Host, str]]]:
    """Edits on edits, each with its policy."""
    drawn = []
    for _ in range(CHAINS):
        chain, edited = [], labels
        for _ in range(rng.integers(1, 10)):
            edited = repaint(rng, edited, classes=3)
            chain.append((edited, str(rng.choice(["paper", "exact", "adaptive(0.05)"]))))
        drawn.append(chain)
    return drawn


def play(session: Session, chain: list[tuple[Host, str]]) -> int:
    """Edit along a chain and undo it all; how many operations that was."""
    for edited, policy in chain:
        session.edit(edited, policy=policy)
    for _ in chain:
        session.undo()
    return 2 * len(chain)


def state(session: Session) -> dict[str, Host]:
    """Every canvas as it is, codes as numbers, and the windows that the codebooks know."""
    found = {
        path: session.memory.backend.download(canvas) for path, canvas in session.memory.canvases.items()
    }
    return found | {
        f"{path} keys": book.window_set.windows.copy() for path, book in session.memory.codebooks.items()
    }


def sizes(session: Session) -> Iterator[int]:
    """What may grow: room in books, hash tables and tables; things kept by name; journals."""
    memory = session.memory
    for codebook in memory.codebooks.values():
        yield from (codebook.window_set.storage.size, len(codebook.window_set.index))
        yield from (table.rows.size for table in codebook.tables.values())
    yield from (
        len(memory.canvases),
        len(memory.statistics),
        len(memory.moments),
        len(memory.codebooks),
        len(memory.prepared._made),
    )
    yield from (memory.nbytes, session.edits)


def resident() -> int:
    """The most memory that this process has taken so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@pytest.mark.slow
@pytest.mark.parametrize("operations", [OPERATIONS])
def test_thousands_of_edits_and_undos_leave_nothing_behind(backend, operations):
    rng = np.random.default_rng(0)
    labels = random_labels(rng, (32, 32), classes=3)
    session = Session(random_gaugan(1, ngf=1, nhidden=3, semantic_nc=3), backend)
    session.run(labels)
    before, drawn = state(session), chains(labels, rng)
    if backend.name == "reference":  # slower, and keeps less
        operations, drawn = operations // 100, drawn[:8]
    done = sum(play(session, chain) for chain in drawn)
    assert_same(state(session), before)
    grown = [*sizes(session)]
    peak = None if sys.platform == "win32" else resident()
    while done < operations:
        done += play(session, drawn[rng.integers(len(drawn))])
        assert np.array_equal(host(session.memory, "conv_img"), before["conv_img"])
    assert_same(state(session), before)
    assert [*sizes(session)] == grown
    if peak is not None:
        assert resident() - peak < 16 << 20, "more memory than when every edit had been made once"

    # A leak grows in every round. Growth that ends is none: objects from before the tracing count once they are made
    # anew, and tables of Python and Numba grow by steps.
    traced = [0]
    tracemalloc.start()  # only now: it makes everything several times as slow
    try:
        while len(traced) < 3 or traced[-1] - traced[-2] > 1 << 10:
            assert len(traced) <= 40, f"bytes after rounds of the same edits and undos: {traced}"
            for chain in drawn[:4]:
                play(session, chain)
            gc.collect()
            traced.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert_same(state(session), before)


@pytest.mark.parametrize("policy", ["paper", "exact", "adaptive(0.05)", "fast"])
def test_what_an_edit_made_goes_when_it_is_undone_and_waits_for_no_collector(backend, policy):
    """A cycle would keep an edit's journal, megabytes of canvases, until Python happens to look for cycles."""
    rng = np.random.default_rng(0)
    labels = random_labels(rng, (32, 64))
    session = Session(random_gaugan(), backend, policy=policy)
    session.run(labels)

    def work() -> None:
        for _ in range(2):
            session.edit(repaint(rng, labels), policy=policy)
            session.undo()
        session.run(labels)

    work()  # kernels are loaded, which makes cycles of the compiler's own
    gc.collect()
    gc.disable()
    try:
        work()
        assert gc.collect() == 0
    finally:
        gc.enable()
