"""Undo and redo: the same bits on both sides of an edit, in a budget of memory, also out of a file."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparsegen import InputError, SDEdit, Session, SessionError
from sparsegen.backends.interface import Host
from sparsegen.editing import history as history_module
from sparsegen.editing.history import LEAST_UNDO
from sparsegen.engine import own_store
from sparsegen.engine.journal import Journal
from sparsegen.engine.own_store import OwnStore
from sparsegen.engine.stats import counted
from tests.networks import assert_same, current_labels, random_gaugan, random_labels, repaint
from tests.unets import SPARSE, assert_all_same, everything, picture, random_ddpm, stroke

DDPM = random_ddpm(1)
SIZE = (32, 32)
POLICIES = ["paper", "exact", "adaptive(0.05)"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(23)


def state(session: Session) -> dict[str, Host]:
    """Every canvas, every window of the codebooks, and what has not spread."""
    memory = session.memory
    found = {path: memory.backend.download(canvas) for path, canvas in memory.canvases.items()}
    found |= {f"{path} keys": book.window_set.windows.copy() for path, book in memory.codebooks.items()}
    return found | {"stale": session._base.history.stale.mask()}


def edited(session: Session, rng: np.random.Generator, edits: int) -> list[dict[str, Host]]:
    """Edit that often, every third time everything; the states before, between and after."""
    states = [state(session)]
    for i in range(edits):
        labels = current_labels(session)
        if i % 3 == 2:
            session.edit((labels + 1) % 4, policy=POLICIES[i % 2])
        else:
            session.edit(repaint(rng, labels), policy=POLICIES[i % 3])
        states.append(state(session))
    return states


# -- the same bits ---------------------------------------------------------------------------------------


def test_undo_and_redo_walk_the_same_states(backend, rng):
    session = Session(random_gaugan(), backend)
    session.run(random_labels(rng, (32, 64)))
    states = edited(session, rng, 5)
    at = 5
    for _ in range(60):
        back = (rng.random() < 0.5 or at == 5) and at > 0
        result = session.undo() if back else session.redo()
        at += -1 if back else 1
        assert_same(state(session), states[at])
        assert (session.edits, session.undone) == (at, 5 - at) == (result.stats.undo_edits, 5 - at)
        assert np.array_equal(result.image, session.model.images(states[at]["conv_img"])[0])
        assert np.array_equal(session.image, result.image)
    while session.edits:
        session.undo()
    for expected in states[1:]:
        session.redo()
        assert_same(state(session), expected)
    with pytest.raises(SessionError, match="nothing to redo"):
        session.redo()


def test_an_edit_after_redo_is_the_edit_of_who_never_undid(backend, rng):
    model, labels = random_gaugan(), random_labels(rng, (32, 64))
    edits = [repaint(rng, labels) for _ in range(3)]
    sessions = [Session(model, backend) for _ in range(2)]
    for session in sessions:
        session.run(labels)
        for each in edits[:2]:
            session.edit(each)
    for call in ("undo", "undo", "redo", "redo"):
        getattr(sessions[0], call)()
    for session in sessions:
        session.edit(edits[2], policy="exact")
    assert_same(*map(state, sessions))
    assert np.array_equal(sessions[0].image, Session(model, backend).run(edits[2]).image)


def test_a_new_edit_ends_what_can_be_redone_and_a_failed_one_does_not(rng):
    session = Session(random_gaugan())
    session.run(random_labels(rng, (32, 64)))
    states = edited(session, rng, 2)
    session.undo()

    def fail(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.edit(repaint(rng, current_labels(session)), progress=fail)
    with pytest.raises(InputError):
        session.edit(np.full((32, 64), 99))
    session.redo()
    assert_same(state(session), states[2])
    session.undo()
    session.edit(repaint(rng, current_labels(session)))
    assert (session.edits, session.undone) == (2, 0)
    session.undo()
    assert_same(state(session), states[1])


@pytest.mark.parametrize("edits", range(4))
def test_a_file_keeps_both_sides(backend, rng, tmp_path, edits):
    session = Session(random_gaugan(), backend)
    session.run(random_labels(rng, (32, 64)))
    states = edited(session, rng, 3)
    for _ in range(3 - edits):
        session.undo()
    session.save(tmp_path / "saved.session")
    loaded = Session.load(tmp_path / "saved.session", backend)
    assert (loaded.edits, loaded.undone) == (edits, 3 - edits)
    assert np.array_equal(loaded.image, session.image)
    for at in range(edits + 1, 4):
        loaded.redo()
        assert_same(state(loaded), states[at])
    for at in (2, 1, 0):
        loaded.undo()
        assert_same(state(loaded), states[at])
    again = repaint(rng, current_labels(loaded))
    assert np.array_equal(
        loaded.edit(again, policy="exact").image, Session(session.model, backend).run(again).image
    )


@pytest.mark.parametrize("options", [{}, {"ram": 0}, {"ram": "1MB", "storage": "float16"}], ids=str)
def test_sdedit_walks_the_same_states_in_ram_and_in_files(rng, tmp_path, options):
    opened = {"steps": 3, "margin": 2, "policy": SPARSE, **options}
    pipeline, original = SDEdit(DDPM, **opened), picture(rng, SIZE)
    pipeline.run(original)
    states, images = [everything(pipeline)], [pipeline.image]
    for i, mask in enumerate((None, np.ones(SIZE, bool), np.zeros(SIZE, bool))):
        edited = pipeline.image if i == 2 else stroke(pipeline.image, (4 + 7 * i, 6))
        pipeline.edit(edited, mask=mask, policy=SPARSE)
        states.append(everything(pipeline))
        images.append(pipeline.image)
    for at in (2, 1, 0, 1, 2, 1):
        before = pipeline.edits
        result = pipeline.undo() if at < before else pipeline.redo()
        assert (pipeline.edits, pipeline.undone) == (at, 3 - at)
        assert_all_same(everything(pipeline), states[at])
        assert np.array_equal(result.image, images[at])
    pipeline.save(tmp_path / "saved.session")
    loaded = SDEdit.load(tmp_path / "saved.session", ram=options.get("ram"))
    for session in (pipeline, loaded):
        session.redo()
        assert_all_same(everything(session), states[2])
        session.redo()
        with pytest.raises(SessionError, match="nothing to redo"):
            session.redo()
        session.undo()
        session.undo()
        session.edit(stroke(images[1], (20, 20)))
        assert session.undone == 0
    assert_all_same(everything(pipeline), everything(loaded))


@pytest.mark.parametrize("at", [1, 9, 20])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, TimeoutError])
@pytest.mark.parametrize("call", ["undo", "redo"])
def test_what_interrupts_an_undo_or_redo_waits_until_it_is_done(rng, monkeypatch, call, error, at):
    """An interrupt, or whatever a handler of a signal raises."""
    pipeline, original = SDEdit(DDPM, steps=3, margin=2, policy=SPARSE), picture(rng, SIZE)
    pipeline.run(original)
    states = [everything(pipeline)]
    pipeline.edit(stroke(original), policy=SPARSE)
    states.append(everything(pipeline))
    if call == "redo":
        pipeline.undo()
    kind, calls = type(pipeline.backend), []
    write = kind.write_tiles

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == at:
            raise error
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "write_tiles", interrupt)
        with pytest.raises(error):
            getattr(pipeline, call)()
    assert_all_same(everything(pipeline), states[call == "redo"])
    assert (pipeline.edits, pipeline.undone) == ((0, 1) if call == "undo" else (1, 0))
    pipeline.redo() if call == "undo" else pipeline.undo()
    assert_all_same(everything(pipeline), states[call == "undo"])


@pytest.mark.parametrize("after", [0, 5, 20])
def test_without_memory_for_redo_an_undo_is_an_undo_and_a_redo_leaves_no_trace(rng, monkeypatch, after):
    pipeline, original = SDEdit(DDPM, steps=3, margin=2, policy=SPARSE), picture(rng, SIZE)
    pipeline.run(original)
    states = [everything(pipeline)]
    for i in range(3):
        pipeline.edit(stroke(pipeline.image, (3 + 8 * i, 5)), policy=SPARSE)
        states.append(everything(pipeline))
    pipeline.undo()
    add, copies = Journal.add, []

    def full(*arguments):
        copies.append(1)
        if len(copies) > after:
            raise MemoryError
        add(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        with pytest.raises(MemoryError):
            pipeline.redo()
        assert (pipeline.edits, pipeline.undone) == (2, 1)
        assert_all_same(everything(pipeline), states[2])
        copies.clear()
        pipeline.undo()
    assert_all_same(everything(pipeline), states[1])
    assert (pipeline.edits, pipeline.undone) == (1, 0)
    pipeline.undo()
    pipeline.redo()
    assert_all_same(everything(pipeline), states[1])


WATCHED = {
    "door.py",
    "session.py",
    "sdedit.py",
    "steps.py",
    "state.py",
    "history.py",
    "memory.py",
    "journal.py",
    "session_file.py",
}
"""(Not the turn: at the end of a `with`, Python itself does not let a lock go where a trace function raises.)"""


def interrupted(call: Callable[[], object], at: int) -> bool:
    """Make a call with a KeyboardInterrupt at that line of the modules that are watched; whether it came so far."""
    left = at

    def trace(frame, event, argument):
        nonlocal left
        if Path(frame.f_code.co_filename).name not in WATCHED or "sparsegen" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("call", ["edit", "undo", "redo"])
@pytest.mark.parametrize("kind", ["maps", "strokes"])
def test_wherever_an_interrupt_comes_the_session_is_before_or_after_the_call(rng, kind, call):
    """At every line of ours, in turn: all canvases and both histories are those of one moment, and nothing is lost."""
    if kind == "maps":
        session, whole = (
            Session(random_gaugan(1), undo="1GB", policy=SPARSE),
            lambda session: [state(session)],
        )
        inputs = [random_labels(rng, (32, 32))]
        inputs += [repaint(rng, inputs[0]) for _ in range(3)]
    else:
        session, whole = SDEdit(DDPM, steps=2, margin=1, undo="1GB", policy=SPARSE), everything
        inputs = [picture(rng, (16, 16))]
        inputs += [stroke(inputs[0], (3 * i, 4)) for i in range(3)]
    session.run(inputs[0])
    states = [whole(session)]
    for each in inputs[1:]:
        session.edit(each, policy=SPARSE)
        states.append(whole(session))
    session.undo()  # at 2, with 1 to redo
    calls = {
        "edit": lambda: session.edit(inputs[1], policy=SPARSE),
        "undo": session.undo,
        "redo": session.redo,
    }
    after = {"edit": (3, 0), "undo": (1, 2), "redo": (3, 0)}[call]
    calls[call]()
    expected = whole(session)
    for _ in range(session.edits - 2):
        session.undo()
    if call == "edit":  # the one that could be made again is gone with it
        session.edit(inputs[3], policy=SPARSE)
        states[3] = whole(session)
    if call != "redo":
        session.undo() if call == "edit" else session.redo()
    lines, came = 1, True
    while came:
        assert (session.edits, session.undone) == (2, 1)
        came = interrupted(calls[call], lines)
        lines += 1 if lines < 30 else 7
        found = (session.edits, session.undone)
        assert found in ((2, 1), after)
        if kind == "strokes":
            session._ready()  # what every call begins with: each step's session goes to where the history stands
        assert_all_same(whole(session), states[2] if found == (2, 1) else expected)
        if found == after and call == "edit":
            session.undo()
            session.edit(inputs[3], policy=SPARSE)
            session.undo()
        elif found == after:
            session.redo() if call == "undo" else session.undo()
        # both ways are whole
        session.redo()
        assert_all_same(whole(session), states[3])
        session.undo()
        assert_all_same(whole(session), states[2])
    assert lines > 100


# -- the budget ------------------------------------------------------------------------------------------


def all_edits(session: Session | SDEdit, images: list[np.ndarray], limit: int, before, policy) -> int:
    """Edit through the images; how many edits were forgotten. What was kept is undone, each state as it was."""
    states, forgotten = [before(session)], 0
    for i, each in enumerate(images, start=1):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stats = session.edit(each, policy=policy).stats
        states.append(before(session))
        assert session.edits == stats.undo_edits == i - stats.forgotten_edits
        assert stats.undo_bytes <= limit or session.edits == 1
        told = [str(each.message) for each in caught]
        if stats.forgotten_edits > forgotten:
            assert f"the oldest {stats.forgotten_edits - forgotten} can no longer be undone" in told[0]
            assert caught[0].filename == __file__
        assert len(told) == (stats.forgotten_edits > forgotten)
        forgotten = stats.forgotten_edits
    row = counted(session.edits, "edit") + (f" ({forgotten} older forgotten)" if forgotten else "")
    assert row in str(stats)
    for expected in states[-2 : forgotten - 1 if forgotten else None : -1]:
        session.undo()
        assert_all_same(before(session), expected)
    with pytest.raises(SessionError, match="older edits were forgotten" if forgotten else "no edit since"):
        session.undo()
    return forgotten


@pytest.mark.parametrize("undo", [0, 150_000, "0.2MB", "1GB", None])
def test_the_oldest_edits_go_first_and_it_is_said(rng, undo):
    session = Session(random_gaugan(), undo=undo)
    labels = [random_labels(rng, (32, 64))]
    session.run(labels[0])
    for _ in range(9):
        labels.append(repaint(rng, labels[-1]))
    limit = {None: LEAST_UNDO, "1GB": 10**9, "0.2MB": 200_000}.get(undo, undo)
    forgotten = all_edits(session, labels[1:], limit, lambda session: [state(session)], "paper")
    assert forgotten == 8 if undo == 0 else (forgotten > 0) == (limit < 10**6)
    session.run(labels[0])
    with pytest.raises(SessionError, match="no edit since the last run"):
        session.undo()


@pytest.mark.parametrize("ram", [None, "2MB"])
def test_journals_of_all_steps_have_one_budget(rng, ram):
    pipeline, limit = SDEdit(DDPM, steps=3, margin=2, undo="3MB", ram=ram, policy=SPARSE), 3_000_000
    original = picture(rng, SIZE)
    pipeline.run(original)
    pictures = [stroke(original, (2 + 3 * i, 4), colour=20 + 25 * i) for i in range(6)]
    pictures.insert(3, pictures[2])  # an edit without change at its time is an edit, too
    assert 0 < all_edits(pipeline, pictures, limit, everything, SPARSE) < 6
    assert pipeline._base.history.edits == ()


def test_without_a_word_journals_may_take_half_of_what_the_canvases_take(rng, monkeypatch):
    monkeypatch.setattr(history_module, "LEAST_UNDO", 0)
    session = Session(random_gaugan())
    session.run(random_labels(rng, (32, 64)))
    session.edit((current_labels(session) + 1) % 4)  # everything: a journal as large as the canvases
    assert session._base.history.nbytes >= session.memory.nbytes
    with pytest.warns(UserWarning, match="the oldest 1 can no longer be undone"):
        session.edit((current_labels(session) + 1) % 4)


def test_what_edits_set_aside_serves_again_until_no_edit_can_follow(rng, monkeypatch):
    for name in ("LEAST", "MOST"):
        monkeypatch.setattr(own_store, name, 0)  # a chunk for each array
    session = Session(random_gaugan())
    allocator = session.memory.allocator
    assert isinstance(allocator, OwnStore)
    labels = random_labels(rng, (32, 64))
    session.run(labels)
    painted = allocator.ram_bytes
    taken = []
    for _ in range(9):
        session.edit((labels + 1) % 4)
        session.undo()
        taken.append(allocator.ram_bytes)
    # canvases as they are, as they were, as they become; those of inputs come from elsewhere at first
    assert painted < taken[-1] == taken[3] < 3.2 * painted
    session.run(labels)
    assert allocator.ram_bytes == taken[-1]
    session.run(labels, keep_canvases=False)
    assert allocator.ram_bytes < painted


@pytest.mark.parametrize("undo", ["much", -1, True, 1.5])
def test_a_budget_that_is_none_is_said(undo):
    for opening in (lambda: Session(random_gaugan(), undo=undo), lambda: SDEdit(DDPM, undo=undo)):
        with pytest.raises(InputError, match=r"amount of memory|which unit"):
            opening()
