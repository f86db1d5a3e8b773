"""Programs: an edit that replays the model's steps computes the bits of one that calls the model's code."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparsegen import Adaptive, SDEdit, Session
from sparsegen.backends import Backend
from sparsegen.backends.interface import Host
from sparsegen.editing.state import Repainted, State
from sparsegen.engine.run import LayerStep, Run
from sparsegen.models.spade import SPADEGenerator
from sparsegen.models.unet import UNet
from sparsegen.tiling.canvas import Canvas
from sparsegen.tiling.policies import Exact, Policy
from sparsegen.tiling.tiles import TileSet
from sparsegen.tiling.windows import Read, Window
from tests.networks import assert_same, random_gaugan, random_labels, random_mobile, repaint, values
from tests.unets import (
    FAMILIES,
    FAST,
    SPARSE,
    assert_all_same,
    at,
    everything,
    kept_by,
    noisy,
    painted,
    picture,
    stroke,
)

LABELS = {
    "gaugan": random_gaugan,
    "gaugan, no codebooks": random_gaugan,
    "mobile": random_mobile,  # in canvases
    "mobile, one image": random_mobile,  # in codebooks, where the backend has them
}
POLICIES: list[Policy] = [SPARSE, FAST, Exact(), Adaptive(0), Adaptive(0.05)]


def walk(
    state, canvases, changed, plan, *, journal, spread=None, carried=None, meanwhile=lambda: None, **options
):
    """`State.repaint` by the model's code instead of its program."""
    assert carried is None
    meanwhile()
    spread = changed if spread is None else spread
    for name, array in canvases.items():
        state._write_input(name, array, changed, journal)
    run = Run(state.memory, plan, journal=journal, edited=spread.edited, on_layer=options.get("on_layer"))
    active = state._walk(run, spread).changed
    wanted = options.get("wanted") or active.tiles
    return Repainted(run, active, state.output_tiles(wanted))


def records(session: Session | SDEdit, edited: Host, policy: Policy, mask: Host | None) -> list[tuple]:
    """What an edit records of its layers."""
    layers = session.edit(edited, policy=policy, mask=mask).stats.layers
    return [(layer.path, layer.active, layer.macs) for layer in layers]


@pytest.fixture(params=[*LABELS, "ddpm", "pd"])
def kind(request) -> str:
    return request.param


def pair(kind: str, backend: Backend, storage: str) -> tuple[list[Session], list[Host]]:
    """Two sessions of one model that have run, and inputs to edit through."""
    rng = np.random.default_rng(3)
    model: SPADEGenerator | UNet
    if kind in LABELS:
        samples = 1 if kind.endswith("one image") else 2
        model, inputs = LABELS[kind](), [random_labels(rng, (samples, 32, 64))]
        inputs += [repaint(rng, inputs[0]) for _ in POLICIES]
    else:
        model, inputs = FAMILIES[kind](), [noisy(rng, (16, 24), 2)]
        inputs += [painted(rng, inputs[0]) for _ in POLICIES]
    sessions = [Session(model, backend, policy=SPARSE, storage=storage) for _ in range(2)]
    for session in sessions:
        if isinstance(model, SPADEGenerator):
            session.memory.coded = False
            session.run(inputs[0])
        else:
            session.run(inputs[0], **at(model, 2))
    return sessions, inputs[1:]


@pytest.mark.filterwarnings("ignore:the session keeps no resolution below")
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_a_replayed_edit_is_a_walked_one(backend, monkeypatch, kind, storage):
    if kind == "gaugan, no codebooks":
        monkeypatch.setattr(type(backend), "codebooks", False)
    (replayed, walked), inputs = pair(kind, backend, storage)
    for i, (edited, policy) in enumerate(zip(inputs, POLICIES, strict=True)):
        mask = np.ones(edited.shape[1:3], bool) if i == 2 else None  # canvases that are set aside, too
        expected = records(replayed, edited, policy, mask)
        with monkeypatch.context() as patch:
            patch.setattr(State, "repaint", walk)
            assert records(walked, edited, policy, mask) == expected
        assert_same(values(walked), values(replayed))
        assert_same(kept_by(walked.memory), kept_by(replayed.memory))
    for _ in POLICIES:
        assert np.array_equal(replayed.undo().output, walked.undo().output)
    assert_same(kept_by(walked.memory), kept_by(replayed.memory))


@pytest.mark.filterwarnings("ignore:the session keeps no resolution below")
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_a_dense_run_of_other_inputs_replays_the_program(backend, monkeypatch, kind, storage):
    if kind == "gaugan, no codebooks":
        monkeypatch.setattr(type(backend), "codebooks", False)
    (again, new), (first, second, third, *_) = pair(kind, backend, storage)
    times = {} if kind in LABELS else at(new.model, 2)
    again.edit(first, policy=FAST)  # moments move, windows are added

    def called(*_):
        raise AssertionError("the model's code is called")

    with monkeypatch.context() as patch:
        patch.setattr(type(again.model), "forward", called)
        result = again.run(second, **times)
    expected = Session(new.model, backend, policy=SPARSE, storage=storage)
    other = expected.run(second, **times)
    assert np.array_equal(result.output, other.output)
    shown = [
        [(layer.path, layer.active, layer.macs) for layer in each.stats.layers] for each in (result, other)
    ]
    assert shown[0] == shown[1]
    assert_same(kept_by(again.memory), kept_by(expected.memory))
    for policy in (SPARSE, FAST, Exact()):
        assert np.array_equal(
            again.edit(third, policy=policy).output, expected.edit(third, policy=policy).output
        )
        assert np.array_equal(again.undo().output, expected.undo().output)


def test_a_dense_run_after_other_weights_calls_the_models_code(backend):
    rng = np.random.default_rng(5)
    model, x = FAMILIES["ddpm"](), noisy(rng)
    session = Session(model, backend, policy=SPARSE)
    session.run(x, **at(model))
    model.load_parameters({path: 0.5 * each.value for path, each in model.parameters().items()})
    expected = Session(model, backend, policy=SPARSE).run(x, **at(model)).output
    assert np.array_equal(session.run(x, **at(model)).output, expected)


@pytest.mark.parametrize("policy", [SPARSE, FAST, Exact()])
def test_a_layer_computes_what_its_plan_says_whatever_it_remembers(policy):
    size, stroke = (1, 32, 64), np.zeros((1, 32, 64), bool)
    stroke[0, 5:9, 30:41] = True
    nothing, changed = TileSet.empty(*size), TileSet.of_mask(stroke)
    canvases = [Canvas(name, {}, nothing) for name in "abc"]
    windows = Window(), Window(3, top=1, left=1), Window(4, 2, 1, 1)
    reads = [Read(nothing, window, canvas=canvas) for window, canvas in zip(windows, canvases, strict=True)]
    step = LayerStep(None, canvases[0], (*size, 8), tuple(reads), None, 0, False, (), [])
    for which in [*itertools.product([False, True], repeat=3)] * 2:
        for canvas, moves in zip(canvases, which, strict=True):
            canvas.changed = changed if moves else nothing
        plan = policy.plan(stroke)
        found, expected = step.active(plan), policy.plan(stroke).active([read.now() for read in reads], size)
        assert np.array_equal(found.mask(), expected.mask()) and found.shape == expected.shape
        assert bool(found.count) == any(which)


@pytest.mark.parametrize("policy", [SPARSE, FAST, Exact()])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_calls_no_code_of_the_model(backend, monkeypatch, family, policy):
    rng = np.random.default_rng(4)
    model, x = FAMILIES[family](), noisy(rng)
    session = Session(model, backend, policy=policy)
    session.run(x, **at(model))

    def called(*_):
        raise AssertionError("the model's code is called")

    monkeypatch.setattr(type(model), "forward", called)
    for _ in range(2):
        assert session.edit(painted(rng, x)).active.count
        session.undo()


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("frontier", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_program_noted_later_is_that_of_the_dense_run(backend, family, frontier, storage):
    """Of a session out of a file, the first edit notes the program; it changes nothing on the way."""
    image = picture(np.random.default_rng(5))
    times = {"steps": 6, "noise_level": 300} if family == "ddpm" else {"steps": 12, "noise_level": 6}
    policy = f"fast(refresh=4, frontier={frontier})"
    sessions = [
        SDEdit(FAMILIES[family](), **times, margin=2, backend=backend, policy=policy, storage=storage)
        for _ in range(2)
    ]
    for session in sessions:
        session.run(image)
    for i in range(2):
        for state in sessions[0]._states:
            state._program = None
        for session in sessions:
            session.edit(stroke(session.image, (4 + 9 * i, 6)))
        assert_all_same(everything(sessions[0]), everything(sessions[1]))
