"""A session's file: it continues with the same bits, and a broken or forged one is refused."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

import sparsegen
from sparsegen import Paper, SDEdit, Session, SessionError
from sparsegen.weights import CheckpointError
from tests.networks import (
    assert_unchanged,
    current_labels,
    random_gaugan,
    random_labels,
    random_mobile,
    repaint,
    snapshot,
)
from tests.unets import picture, random_ddpm


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def session(rng: np.random.Generator) -> Session:
    session = Session(random_gaugan())
    session.run(random_labels(rng, (64, 128)))
    return session


@pytest.mark.parametrize("model", [random_gaugan, random_mobile])
def test_a_saved_session_continues_with_the_same_bits(model, rng, tmp_path):
    session = Session(model())
    session.run(random_labels(rng, (64, 128)))
    first, second = repaint(rng, current_labels(session)), random_labels(rng, (64, 128))
    session.edit(first)
    session.edit(repaint(rng, first), policy="exact")
    path = tmp_path / "session.safetensors"
    session.save(path)
    loaded = Session.load(path)
    assert loaded.edits == 2
    for name, parameter in session.model.parameters().items():
        assert np.array_equal(loaded.model.parameters()[name].value, parameter.value)
    assert_unchanged(loaded, snapshot(session))
    for each in (session, loaded):
        each.edit(second, policy="exact")
    assert_unchanged(loaded, snapshot(session))
    for _ in range(3):
        a, b = session.undo(), loaded.undo()
        assert np.array_equal(a.output, b.output)
        assert_unchanged(loaded, snapshot(session))
    loaded.save(path)  # over the file it came from
    assert Session.load(path).edits == 0


def test_what_paper_edits_left_unspread_survives_a_file(session, rng, tmp_path):
    edited = repaint(rng, current_labels(session))
    session.edit(edited, policy="paper")
    session.save(tmp_path / "s.safetensors")
    loaded = Session.load(tmp_path / "s.safetensors")
    exact = loaded.edit(edited, policy="exact")
    assert np.array_equal(exact.output, Session(session.model).run(edited).output)


@pytest.mark.slow
def test_a_session_of_hundreds_of_edits_is_saved_and_loaded(rng, tmp_path):
    session = Session(random_gaugan())
    labels = random_labels(rng, (32, 32))
    session.run(labels)
    before = snapshot(session)
    for i in range(450):
        labels = labels.copy()
        labels[i % 32, i % 29] = (labels[i % 32, i % 29] + 1) % 4
        session.edit(labels, policy=Paper(dilation=0, level_dilation=0))
    session.save(tmp_path / "s.safetensors")
    loaded = Session.load(tmp_path / "s.safetensors")
    assert loaded.edits == 450
    while loaded.edits:
        loaded.undo()
    assert_unchanged(loaded, before)


def test_an_empty_edit_of_a_loaded_session_knows_the_dense_cost(session, tmp_path):
    session.save(tmp_path / "s.safetensors")
    loaded = Session.load(tmp_path / "s.safetensors")
    a, b = (each.edit(current_labels(each)).stats for each in (session, loaded))
    assert a.macs_dense == b.macs_dense > 0 and a.tiles == b.tiles


def test_a_session_file_is_no_network(session, tmp_path):
    session.save(tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match=r"sparsegen\.open_session"):
        sparsegen.load(tmp_path / "s.safetensors")


def test_a_forged_session_is_refused(session, tmp_path):
    """Whoever can make the digest can lie about the rest; the canvases must still be the model's."""
    session._state.output_path = "nowhere"
    session.save(tmp_path / "s.safetensors")
    with pytest.raises(SessionError, match="not those of its model"):
        Session.load(tmp_path / "s.safetensors")


def test_a_saved_session_keeps_z_and_measured_statistics(rng, tmp_path):
    model = random_gaugan(z_dim=4, start_cells=2, norm="instance")
    session = Session(model)
    labels = random_labels(rng, (32, 64))
    session.run(labels, z=[1, 2, 3, 4])
    session.save(tmp_path / "s.safetensors")
    loaded, edited = Session.load(tmp_path / "s.safetensors"), repaint(rng, labels)
    assert np.array_equal(session.edit(edited).output, loaded.edit(edited).output)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_a_truncated_session_is_refused(session, tmp_path, part):
    path = tmp_path / "s.safetensors"
    session.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises((SessionError, CheckpointError), match=r"s\.safetensors"):
        Session.load(path)


def test_an_altered_session_is_refused(session, rng, tmp_path):
    path = tmp_path / "s.safetensors"
    session.edit(repaint(rng, current_labels(session)))
    session.save(path)
    data = bytearray(path.read_bytes())
    for position in rng.integers(0, len(data), 60):
        altered = data.copy()
        altered[position] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        with pytest.raises((SessionError, CheckpointError), match=r"s\.safetensors"):
            Session.load(path)


def test_other_files_are_no_sessions(tmp_path):
    path = tmp_path / "model.safetensors"
    sparsegen.loading.save(random_gaugan(), path)
    with pytest.raises(SessionError, match="not a saved session"):
        Session.load(path)
    with pytest.raises((CheckpointError, OSError)):
        Session.load(tmp_path / "missing.safetensors")


def test_a_failed_save_leaves_the_old_file_whole(session, rng, tmp_path, monkeypatch):
    path = tmp_path / "s.safetensors"
    session.save(path)
    old = path.read_bytes()
    session.edit(repaint(rng, current_labels(session)))

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(CheckpointError, match="No space"):
        session.save(path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_keeps_what_the_user_adds(session, tmp_path):
    pipeline = SDEdit(random_ddpm(1), steps=2)
    pipeline.run(picture(np.random.default_rng(0), (16, 16)))
    for kept in (session, pipeline):
        kept.notes = {"title": "Ω → lake", "steps.values": np.arange(5, dtype=np.uint8), "empty": ""}
        kept.save(tmp_path / "saved.session")
        loaded = type(kept).load(tmp_path / "saved.session")
        assert loaded.notes.keys() == kept.notes.keys() and loaded.notes["title"] == "Ω → lake"
        assert np.array_equal(loaded.notes["steps.values"], np.arange(5)) and loaded.notes["empty"] == ""


def test_a_file_keeps_the_models_own_settings(tmp_path):
    for name in ("landscape", "landscape-ddpm"):
        model = sparsegen.load(name)
        if name == "landscape":
            session = Session(model)
            labels = random_labels(np.random.default_rng(0), (256, 512))
            first = session.run(labels)
        else:
            session = SDEdit(model, steps=1)
            session.run(np.zeros((128, 128, 3), np.uint8))
        session.save(tmp_path / "saved.session")
        loaded = type(session).load(tmp_path / "saved.session")
        kept = loaded.model
        assert (kept.name, kept.size, dict(kept.sampling)) == (name, model.size, dict(model.sampling))
        if name == "landscape":  # its own style, where none is given
            assert np.array_equal(loaded.run(labels).output, first.output)
        else:
            assert SDEdit(kept).settings == SDEdit(model).settings


def test_saving_needs_a_run(tmp_path):
    with pytest.raises(SessionError, match="run"):
        Session(random_gaugan()).save(tmp_path / "s.safetensors")
    assert list(Path(tmp_path).iterdir()) == []
