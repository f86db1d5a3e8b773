"""Threads that share a session take turns, and a callback may read the session that calls it, not change it."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable

import numpy as np
import pytest

import sparsegen
from sparsegen import InputError, SDEdit, Session, SessionError
from sparsegen.engine.store import Store
from tests.networks import assert_unchanged, current_labels, random_gaugan, random_labels, repaint, snapshot
from tests.unets import assert_all_same, everything, picture, random_ddpm, stroke

DDPM = random_ddpm(1)
SIZE = (32, 32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def session(rng: np.random.Generator) -> Session:
    session = Session(random_gaugan())
    session.run(random_labels(rng, (64, 128)))
    return session


def opened(**options) -> SDEdit:
    return SDEdit(DDPM, steps=3, margin=2, **options)


def at_once(*calls: Callable[[], None]) -> None:
    """Each call in a thread of its own; the first failure is raised here."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(len(calls))

    def work(call: Callable[[], None]) -> None:
        barrier.wait()
        try:
            call()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# -- threads ---------------------------------------------------------------------------------------------


def test_edits_of_several_threads_end_as_if_one_thread_had_made_them(session, rng):
    """Each thread edits and undoes; whatever order they come in, every result is that of the edit alone."""
    base = current_labels(session)
    before = snapshot(session)
    edits = [repaint(rng, base) for _ in range(3)]
    alone = []
    for labels in edits:
        alone.append(session.edit(labels, policy="exact").output)
        session.undo()

    def work(i: int) -> Callable[[], None]:
        def call() -> None:
            for _ in range(8):
                with_edit = session.edit(edits[i], policy="exact")
                assert np.array_equal(with_edit.output, alone[i])

        return call

    at_once(*map(work, range(3)))
    assert session.edits == 24
    while session.edits:
        session.undo()
    assert_unchanged(session, before)


def test_every_call_of_several_threads_finds_a_whole_session(session, rng, tmp_path):
    labels = [repaint(rng, current_labels(session)) for _ in range(4)]

    def edits() -> None:
        for each in labels * 2:
            session.edit(each)

    def steps() -> None:
        for _ in range(12):
            for call in (session.undo, session.redo):
                try:
                    call()
                except SessionError as error:
                    assert "nothing to" in str(error)

    def looks() -> None:
        for i in range(12):
            assert session.image.shape == (64, 128, 3)
            assert repr(session)
            session.save(tmp_path / f"{i}.session")

    at_once(edits, steps, looks)
    for i in range(12):
        loaded = Session.load(tmp_path / f"{i}.session")  # which holds every canvas against the model
        dense = Session(session.model).run(current_labels(loaded))
        loaded.edit(current_labels(loaded), policy="exact")
        assert np.array_equal(loaded.image, dense.image)


def test_sessions_of_one_store_take_turns(rng):
    """They share the canvases that every run paints anew."""
    store, model = Store(), random_ddpm(2)
    model.paper = sparsegen.Paper(dilation=1, sparse_levels=9, least_size=32)
    sessions = [Session(model, store=store, storage="float16") for _ in range(3)]
    x = [picture(rng, SIZE).astype(np.float32) / 127.5 - 1 for _ in sessions]
    alone = [Session(model, storage="float16").run(each, timestep=10).output for each in x]

    def work(i: int) -> Callable[[], None]:
        def call() -> None:
            for _ in range(5):
                assert np.array_equal(sessions[i].run(x[i], timestep=10).output, alone[i])

        return call

    at_once(*map(work, range(3)))


def test_threads_share_an_sdedit(rng, tmp_path):
    pipeline, original = opened(), picture(rng, SIZE)
    pipeline.run(original)
    before = everything(pipeline)

    def edits() -> None:
        for i in range(4):
            pipeline.edit(stroke(original, (3 + 5 * i, 4)))

    def looks() -> None:
        for _ in range(20):
            assert pipeline.image.shape == (*SIZE, 3) and repr(pipeline)
        pipeline.save(tmp_path / "saved.session")
        pipeline.dense(stroke(original))

    at_once(edits, edits, looks)
    assert pipeline.edits == 8
    while pipeline.edits:
        pipeline.undo()
    assert_all_same(everything(pipeline), before)
    loaded = SDEdit.load(tmp_path / "saved.session")
    while loaded.edits:
        loaded.undo()
    assert_all_same(everything(loaded), before)


# -- callbacks -------------------------------------------------------------------------------------------


def test_a_callback_of_sdedit_reads_and_does_not_change(rng, tmp_path):
    pipeline, original = opened(), picture(rng, SIZE)
    path = tmp_path / "saved.session"
    changes = {
        "run": lambda: pipeline.run(original),
        "edit": lambda: pipeline.edit(original),
        "dense": lambda: pipeline.dense(original),
        "undo": pipeline.undo,
        "redo": pipeline.redo,
        "save": lambda: pipeline.save(path),
        "close": pipeline.close,
    }
    shown = []

    def on_step(step) -> None:
        shown.append(pipeline.image)
        assert (pipeline.edits, pipeline.undone) in ((0, 0), (1, 0), (2, 0)) and repr(pipeline)
        assert pipeline.cache_plan(original).steps == 3
        for name, change in changes.items():
            with pytest.raises(
                SessionError, match=f"^{name}: a callback cannot change its session.*call {name} after"
            ):
                change()

    pipeline.run(original, on_step=on_step)
    assert len(shown) == 3 and all(np.array_equal(each, original) for each in shown)
    other = opened()
    other.run(original)
    for i in range(2):
        edited, now = stroke(pipeline.image, (5 + 9 * i, 3)), pipeline.image
        shown.clear()
        pipeline.edit(edited, on_step=on_step)
        assert len(shown) == 3 and all(np.array_equal(each, now) for each in shown)
        other.edit(edited)
        assert_all_same(everything(pipeline), everything(other))
    assert not path.exists()
    pipeline.dense(stroke(pipeline.image), on_step=on_step)


def test_a_callback_of_a_session_reads_and_does_not_change(session, rng, tmp_path):
    labels, before = repaint(rng, current_labels(session)), session.image
    changes = {
        "run": lambda: session.run(labels),
        "edit": lambda: session.edit(labels),
        "undo": session.undo,
        "redo": session.redo,
        "save": lambda: session.save(tmp_path / "saved.session"),
    }

    def progress(record) -> None:
        if record.path == "up_1.conv_0":
            assert np.array_equal(session.image, before) and session.edits == 0
            for name, change in changes.items():
                with pytest.raises(SessionError, match=f"^{name}: a callback cannot change its session"):
                    change()

    result = session.edit(labels, policy="exact", progress=progress)
    assert np.array_equal(result.image, Session(session.model).run(labels).image)
    assert np.array_equal(session.image, result.image)


def test_a_policy_of_the_users_does_not_change_the_session_it_plans_for(session, rng):
    labels = repaint(rng, current_labels(session))

    class Meddling(sparsegen.Paper):
        def plan(self, difference, *, settled=True):
            with pytest.raises(SessionError, match="undo: a callback cannot change its session"):
                session.undo()
            return super().plan(difference, settled=settled)

    session.edit(labels, policy=Meddling(dilation=1, sparse_levels=5))
    assert session.edits == 1


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_reading_changes_nothing_whatever_came_before(rng, tmp_path, storage):
    """After a file, or after an edit that failed, the image is not at hand: a reader must not disturb the edit."""
    x, new = (picture(rng, SIZE).astype(np.float32) / 127.5 - 1 for _ in range(2))
    session = Session(DDPM, storage=storage)
    before = session.run(x, timestep=10).image
    session.save(tmp_path / "saved.session")
    expected = session.edit(new, policy="exact")
    for _ in range(2):
        loaded, seen = Session.load(tmp_path / "saved.session"), []

        def look(record, of=loaded, seen=seen) -> None:
            seen.append(of.image)

        result = loaded.edit(new, policy="exact", progress=look)
        assert np.array_equal(result.output, expected.output)
        assert all(np.array_equal(each, before) for each in seen) and len(seen) > 5
    with pytest.raises(SessionError, match=r"no image yet: call run\(original\) first, and let it end"):
        fresh = Session(DDPM)
        fresh.run(x, timestep=10, progress=lambda record: fresh.image)


def test_reading_waits_for_nobody(session, rng):
    """Not for the change that it is in, nor for another thread's: each callback reads the other's image."""
    other = Session(session.model)
    other.run(random_labels(rng, (64, 128)))
    sessions, barrier = (session, other), threading.Barrier(2)
    labels = [repaint(rng, current_labels(each)) for each in sessions]

    def work(i: int) -> Callable[[], None]:
        def progress(record) -> None:
            if record.path == "up_1.conv_0":
                barrier.wait(timeout=60)
                reader = threading.Thread(target=lambda: (sessions[0].image, sessions[1].image))
                reader.start()
                reader.join(timeout=60)
                assert not reader.is_alive()
                barrier.wait(timeout=60)

        return lambda: sessions[i].edit(labels[i], progress=progress)

    at_once(work(0), work(1))


def test_a_callback_may_use_another_session(session, rng):
    other, labels = Session(session.model), repaint(rng, current_labels(session))
    seen = []
    session.edit(labels, progress=lambda record: seen or seen.append(other.run(labels)))
    assert np.array_equal(seen[0].output, Session(session.model).run(labels).output)


# -- processes and copies --------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # which is the point
def test_a_process_that_is_forked_during_an_edit_is_told(session, rng):
    """In the child nobody will finish the edit: it is said, and nobody waits for ever."""
    labels, begun, go_on = repaint(rng, current_labels(session)), threading.Event(), threading.Event()

    def progress(record) -> None:
        begun.set()
        go_on.wait()

    thread = threading.Thread(target=lambda: session.edit(labels, progress=progress))
    thread.start()
    begun.wait()
    child = os.fork()
    if not child:
        status = 1
        try:
            session.undo()
        except SessionError as error:
            status = 0 if "this process was forked while" in str(error) else 2
        finally:
            os._exit(status)
    go_on.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    session.undo()  # the parent goes on


def test_what_owns_canvases_is_not_copied(session, rng):
    pipeline = opened()
    for owner, name in ((session, "Session"), (pipeline, "SDEdit"), (Store(), None)):
        for copied in (
            copy.copy,
            copy.deepcopy,
            pickle.dumps,
            lambda owner: copy.deepcopy({"kept": [owner]}),
        ):
            advice = rf"save\(path\) it, and {name}\.load\(path\)" if name else "cannot be copied"
            with pytest.raises(SessionError, match=advice):
                copied(owner)
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(InputError, match="load it again"):
            copied(session.model)


def test_a_result_may_be_copied(session, rng):
    result = session.edit(repaint(rng, current_labels(session)))
    for copied in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert np.array_equal(copied.images, result.images) and copied.stats == result.stats


# -- what they look like ---------------------------------------------------------------------------------


def test_a_session_takes_a_model_and_not_its_name():
    for opening, name in ((Session, "landscape"), (SDEdit, "landscape-ddpm")):
        with pytest.raises(InputError, match=rf"not its name; give it sparsegen\.load\('{name}'\)"):
            opening(name)
        with pytest.raises(InputError, match=r"as sparsegen\.load gives it, not int"):
            opening(7)


def test_what_is_printed_is_short_and_says_what_matters(session, rng):
    pipeline, original = opened(seed=3), picture(rng, SIZE)
    fresh = [repr(Session(session.model)), repr(pipeline)]
    pipeline.run(original)
    results = [session.edit(repaint(rng, current_labels(session))), pipeline.edit(stroke(original))]
    shown = [
        *fresh,
        *(repr(each) for result in results for each in (result, result.stats, result.active)),
        *(repr(each) for each in (session, pipeline, session.model, pipeline.model, session._base)),
        repr([session.memory, session._base.history.edits, pipeline.store]),
    ]
    for text in shown:
        assert 1 <= len(text.splitlines()) <= 5 and len(text) < 600, text
    assert "call run(original)" in fresh[0] and "call run(original)" in fresh[1]
    assert "0.10 M parameters" in repr(session.model)
    assert "64×128" in repr(session) and "1 edit to undo" in repr(session)
    assert "ddim, 3 steps from noise level 500, seed 3" in repr(pipeline)
    assert "MACs" in repr(results[0]) and "1 of 64×128" in repr(results[0])
