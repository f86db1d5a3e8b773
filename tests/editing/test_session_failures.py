"""What goes wrong in a session: one clear error each, and no trace of it in what the session holds."""

from __future__ import annotations

import numpy as np
import pytest

import sparsegen
from sparsegen import InputError, NonFiniteError, Session, SessionError, ShapeError
from sparsegen.backends import BackendError
from tests.networks import assert_unchanged, current_labels, random_gaugan, random_labels, repaint, snapshot


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def session(rng: np.random.Generator) -> Session:
    session = Session(random_gaugan())
    session.run(random_labels(rng, (64, 128)))
    return session


@pytest.mark.parametrize("everywhere", [False, True])
def test_an_interrupted_edit_leaves_no_trace(session, rng, everywhere):
    before, edited = snapshot(session), repaint(rng, current_labels(session))
    mask = np.ones(edited.shape, bool) if everywhere else None

    def interrupt(record):
        if record.path == "up_1.conv_0":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.edit(edited, mask=mask, progress=interrupt)
    assert_unchanged(session, before)
    assert session.edits == 0
    session.edit(edited, policy="exact")  # and the session still works
    assert np.array_equal(session.memory.canvases["conv_img"], Session(session.model).run(edited).output)


def test_an_undo_that_is_interrupted_is_an_undo(session, rng, monkeypatch):
    before = snapshot(session)
    session.edit(repaint(rng, current_labels(session)))
    after = snapshot(session)
    backend, calls = session.memory.backend, []
    write = type(backend).write_tiles

    def interrupt(self, *arguments):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        write(self, *arguments)

    monkeypatch.setattr(type(backend), "write_tiles", interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.undo()
    assert_unchanged(session, before)
    assert session.edits == 0 and session.undone == 1
    session.redo()
    assert_unchanged(session, after)


@pytest.mark.parametrize("call", ["edit", "undo"])
def test_a_failure_after_the_last_layer_leaves_no_trace(session, rng, monkeypatch, call):
    edited = repaint(rng, current_labels(session))
    session.edit(edited)
    again, before = repaint(rng, edited), snapshot(session)

    def fail(self, output):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(session.model), "images", fail)
        with pytest.raises(MemoryError):
            session.edit(again) if call == "edit" else session.undo()
    assert session.edits == (1 if call == "edit" else 0)
    if call == "undo":  # it is done, there is no image of it alone
        session.redo()
    assert_unchanged(session, before)
    session.undo()
    assert session.edits == 0


def damaged(path: str, value: float) -> sparsegen.Model:
    """A model with one bad weight, in the middle of the parameter `path`."""
    model = random_gaugan()
    values = {name: parameter.value for name, parameter in model.parameters().items()}
    values[path] = values[path].copy()
    values[path].flat[values[path].size // 2] = value
    model.load_parameters(values)
    return model


@pytest.mark.parametrize(
    ("layer", "value"),
    [
        ("fc", np.nan),
        ("head_0.norm_0.mlp_shared", np.inf),
        ("up_1.conv_0", -np.inf),
        ("up_1.conv_1", 3e38),  # too large to be multiplied
        ("conv_img", np.nan),
    ],
)
def test_a_value_that_is_not_finite_names_the_layer_that_made_it(rng, layer, value):
    session = Session(damaged(f"{layer}.weight", value))
    with pytest.raises(
        NonFiniteError, match=rf"^{layer}: .*sample \d, row \d+, column \d+, channel \d+ .*weights"
    ):
        session.run(random_labels(rng, (64, 64)))
    with pytest.raises(SessionError, match="run"):
        session.edit(random_labels(rng, (64, 64)))


def test_a_value_that_is_not_finite_names_the_layers_computed_on_the_way(rng):
    session = Session(damaged("up_3.conv_s.weight", np.nan))
    with pytest.raises(
        NonFiniteError, match=r"^up_3.conv_1: .*this layer, of up_3.conv_s, computed on its way, and of"
    ):
        session.run(random_labels(rng, (64, 64)))


def test_an_edit_that_computes_what_is_not_finite_leaves_no_trace():
    # the weights of label 3 are damaged: all is well until an edit paints it
    model = random_gaugan()
    values = {name: parameter.value.copy() for name, parameter in model.parameters().items()}
    values["up_2.norm_1.mlp_shared.weight"][1, 3] = np.nan
    model.load_parameters(values)
    session, labels = Session(model), np.zeros((2, 64, 64), int)
    session.run(labels)
    session.edit(np.ones_like(labels))
    before, edited = snapshot(session), np.ones_like(labels)
    edited[1, 30:40, 20:60] = 3
    for policy in ("paper", "exact"):
        with pytest.raises(
            NonFiniteError, match=r"^up_2.norm_1.mlp_shared: .*sample 1, row \d+, column \d+, channel 1 "
        ):
            session.edit(edited, policy=policy)
        assert_unchanged(session, before)
    assert session.edits == 1
    edited[1, 30:40, 20:60] = 2
    output = session.edit(edited, policy="exact").output
    assert np.array_equal(output, Session(model).run(edited).output)


def test_an_interrupted_run_leaves_a_session_that_can_run(session, rng):
    def interrupt(record):
        raise KeyboardInterrupt

    labels = random_labels(rng, (32, 32))
    with pytest.raises(KeyboardInterrupt):
        session.run(labels, progress=interrupt)
    with pytest.raises(SessionError, match="run"):
        session.edit(labels)
    assert session.run(labels).image.shape == (32, 32, 3)


def bad(value, **extra):
    return lambda session: session.edit(value, **extra)


LABELS = np.zeros((64, 128), np.uint8)


MISTAKES = {
    "another size": (bad(np.zeros((32, 64), int)), ShapeError, "the base's"),
    "a size the model cannot take": (bad(np.zeros((60, 128), int)), ShapeError, "multiples of 32"),
    "an empty map": (bad(np.zeros((0, 0), int)), ShapeError, "multiples of 32"),
    "one dimension": (bad(np.zeros(9, int)), ShapeError, "expected"),
    "floats": (bad(np.zeros((64, 128))), InputError, "expected integers"),
    "a label too large": (bad(LABELS + 4), InputError, "label 4 at row 0, column 0"),
    "a negative label": (bad(LABELS.astype(int) - 1), InputError, "labels 0 to 3"),
    "a mask of another size": (bad(LABELS, mask=np.zeros((3, 3), bool)), ShapeError, "mask"),
    "a mask of other values": (bad(LABELS, mask=LABELS + 7), InputError, "values other than 0 and 1"),
    "an unknown policy": (bad(LABELS, policy="magic"), InputError, "paper, fast, exact"),
    "an unknown condition": (bad(LABELS, prompt="a lake"), InputError, "prompt"),
    "instances without edges": (bad(LABELS, instances=LABELS), InputError, "no edge channel"),
    "no samples": (bad(np.zeros((0, 64, 128), int)), ShapeError, "N ≥ 1"),
    "unknown labels": (bad(LABELS + 255), InputError, "'unknown'"),
    "z without a latent": (
        bad(LABELS, z=[1.0]),
        InputError,
        "z is given, but this model starts from labels",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_error_and_loses_nothing(session, mistake):
    call, error, message = MISTAKES[mistake]
    before = snapshot(session)
    with pytest.raises(error, match=message):
        call(session)
    assert_unchanged(session, before)


def test_mistakes_before_a_run():
    session = Session(random_gaugan())
    with pytest.raises(SessionError, match="run"):
        session.edit(LABELS)
    with pytest.raises(SessionError, match="run"):
        session.undo()
    session.run(LABELS)
    with pytest.raises(SessionError, match="nothing to undo"):
        session.undo()
    with pytest.raises(BackendError, match="reference"):
        Session(random_gaugan(), backend="abacus")
