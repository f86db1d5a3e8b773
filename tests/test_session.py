"""The session as users meet it: results, statistics, masks, files, and everything that can go wrong in between."""

from __future__ import annotations

import errno
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from networks import random_gaugan, random_labels, repaint

import sparsegen
from sparsegen import InputError, NonFiniteError, Paper, Session, SessionError, ShapeError
from sparsegen.backends import BackendError
from sparsegen.weights import CheckpointError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def session(rng: np.random.Generator) -> Session:
    session = Session(random_gaugan())
    session.run(random_labels(rng, (64, 128)))
    return session


def current_labels(session: Session) -> np.ndarray:
    return session.memory.canvases["input.labels"][..., 0].copy()


def snapshot(session: Session) -> dict[str, np.ndarray]:
    return {path: canvas.copy() for path, canvas in session.memory.canvases.items()}


def assert_unchanged(session: Session, before: dict[str, np.ndarray]) -> None:
    assert all(np.array_equal(before[path], canvas) for path, canvas in session.memory.canvases.items())


def test_a_result_holds_pictures_and_costs(session, rng):
    labels = current_labels(session)
    labels[0, 8:16, 8:16] = (labels[0, 8:16, 8:16] + 1) % 4
    result = session.edit(labels)
    stats = result.stats
    assert result.image.shape == (64, 128, 3) and result.image.dtype == np.uint8
    assert np.array_equal(result.image, result.images[0])
    assert stats.edited_area == 64 / (64 * 128)
    assert 0 < stats.macs < stats.macs_dense
    assert stats.tiles[(64, 128)][1] == 16 * 32 and stats.tiles[(2, 4)][1] == 1
    assert all(0 < active <= total for active, total in stats.tiles.values())
    assert stats.canvas_bytes == sum(c.nbytes for c in session.memory.canvases.values())
    assert stats.journal_bytes > 0 and stats.milliseconds >= sum(layer.milliseconds for layer in stats.layers)
    assert "MACs" in str(stats)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_codebooks_are_counted_beside_the_canvases(rng, backend):
    session = Session(random_gaugan(), backend)
    first = session.run(random_labels(rng, (64, 64))).stats
    kept = session.memory.codebooks.values()
    assert first.codebook_bytes == sum(codebook.nbytes for codebook in kept)
    assert (first.codebook_bytes > 0) == session.memory.backend.codebooks == ("codebooks" in str(first))
    labels = current_labels(session)
    labels[0, 5:9, 30:33] = (labels[0, 5:9, 30:33] + 1) % 4
    assert session.edit(labels).stats.codebook_bytes >= first.codebook_bytes


def test_the_picture_is_that_of_the_whole_output_whatever_came_before(session, rng, monkeypatch):
    """Only the repainted part of a picture is converted; a user may paint over the one that was given."""

    def check(result):
        assert np.array_equal(result.images, session.model.picture(result.output))
        result.images[:] = 7
        result.output[:] = 7

    labels = current_labels(session)
    for i in range(3):
        labels[0, 20 * i : 20 * i + 5, 40 * i : 40 * i + 9] = i
        check(session.edit(labels, policy=["paper", "exact", "adaptive(0.1)"][i]))
    check(session.edit(labels))
    with monkeypatch.context() as patch:
        patch.setattr(type(session.memory.backend), "download", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.undo()
    for _ in range(4):
        check(session.undo())
    check(session.edit(labels))


def test_earlier_results_do_not_change_with_later_edits(session, rng):
    labels = current_labels(session)
    first = session.edit(repaint(rng, labels))
    image, output = first.image.copy(), first.output.copy()
    session.edit(random_labels(rng, (64, 128)))
    assert np.array_equal(first.image, image) and np.array_equal(first.output, output)


def test_each_sample_has_its_own_mask(rng):
    session = Session(random_gaugan())
    labels = random_labels(rng, (2, 32, 64))
    session.run(labels)
    before = snapshot(session)
    edited = (labels + 1) % 4
    mask = np.zeros((2, 32, 64), bool)
    mask[1, 4:9, 4:9] = True
    with pytest.warns(UserWarning, match="outside the mask"):
        result = session.edit(edited, mask=mask)
    assert not result.active.mask()[0].any() and result.active.mask()[1].any()
    for path, canvas in session.memory.canvases.items():
        assert np.array_equal(canvas[0], before[path][0])


def test_changes_outside_a_mask_are_counted_and_not_applied(session):
    base = current_labels(session)
    edited = (base + 1) % 4
    mask = np.zeros((64, 128), bool)
    mask[10:20, 30:50] = True
    with pytest.warns(UserWarning, match="7992 changed pixels"):
        result = session.edit(edited, mask=mask)
    assert result.stats.ignored_pixels == 64 * 128 - 200
    assert np.array_equal(current_labels(session)[0], np.where(mask, edited, base)[0])
    # what was not applied is still a difference: the next edit takes it over
    session.edit(edited, policy="exact")
    dense = Session(session.model)
    assert np.array_equal(
        dense.run(edited).output, session.memory.backend.download(session.memory.canvases["conv_img"])
    )


def test_a_policy_can_be_given_with_its_settings(session):
    labels = current_labels(session)
    labels[0, 30, 60] = (labels[0, 30, 60] + 1) % 4
    small = session.edit(labels, policy=Paper(dilation=0, level_dilation=0, sparse_levels=9)).stats.macs
    session.undo()
    large = session.edit(labels, policy=Paper(dilation=9, level_dilation=9, sparse_levels=0)).stats
    assert small < large.macs == large.macs_dense


def test_an_edit_allocates_for_its_tiles_and_never_a_canvas(rng, backend):
    """No clone of a canvas, no map per layer: peak memory is the journal, the windows and the picture returned."""
    session = Session(random_gaugan(nhidden=32), backend)
    labels = random_labels(rng, (256, 512))
    session.run(labels)
    labels[100:104, 200:204] = (labels[100:104, 200:204] + 1) % 4
    mask = np.zeros(labels.shape, bool)
    mask[100:104, 200:204] = True
    tracemalloc.start()
    try:
        result = session.edit(labels, mask=mask)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 256 * 512 * 32 * 4 / 2
    assert peak < result.stats.canvas_bytes


def test_canvases_that_an_edit_repaints_whole_are_set_aside_and_come_back(session, rng, tmp_path):
    arrays, before = dict(session.memory.canvases), snapshot(session)
    everywhere = np.ones((64, 128), bool)
    result = session.edit(random_labels(rng, (64, 128)), mask=everywhere)
    journal = session._base().steps[-1].journal
    assert journal.whole.keys() == arrays.keys() and not journal.tiles
    assert result.stats.journal_bytes == result.stats.canvas_bytes
    for path, array in arrays.items():
        assert journal.whole[path] is array and session.memory.canvases[path] is not array
    session.edit(random_labels(rng, (64, 128)), mask=everywhere)
    session.save(tmp_path / "s.safetensors")
    loaded = Session.load(tmp_path / "s.safetensors")
    for each in (session, loaded):
        each.undo()
        assert each.undo().active.count == 16 * 32
        assert_unchanged(each, before)
    assert all(session.memory.canvases[path] is array for path, array in arrays.items())


def test_a_run_of_the_same_size_paints_over_the_canvases_there_are(session, rng):
    labels = random_labels(rng, (64, 128))
    first = session.run(labels)
    arrays, image = dict(session.memory.canvases), first.image.copy()
    other = random_labels(rng, (64, 128))
    assert np.array_equal(session.run(other).output, Session(session.model).run(other).output)
    assert np.array_equal(first.image, image)
    for path, array in session.memory.canvases.items():
        assert (array is arrays[path]) == (path != "input.labels")
    smaller = random_labels(rng, (2, 32, 64))
    assert np.array_equal(session.run(smaller).output, Session(session.model).run(smaller).output)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_run_after_edits_is_the_run_of_a_new_session(rng, norm):
    session, labels = Session(random_gaugan(norm=norm)), random_labels(rng, (64, 64))
    session.run(labels)
    session.edit(repaint(rng, labels))
    other = random_labels(rng, (64, 64))
    assert np.array_equal(session.run(other).output, Session(session.model).run(other).output)
    assert session.edits == 0


def test_progress_is_told_every_layer(session, rng):
    seen: list[str] = []
    result = session.edit(
        repaint(rng, current_labels(session)), progress=lambda record: seen.append(record.path)
    )
    assert seen == [layer.path for layer in result.stats.layers] and len(seen) > 30


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


def test_an_interrupted_undo_puts_everything_back(session, rng, monkeypatch):
    before = snapshot(session)
    session.edit(repaint(rng, current_labels(session)))
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
    session.undo()
    assert session.edits == 0
    assert_unchanged(session, before)


@pytest.mark.parametrize("call", ["edit", "undo"])
def test_a_failure_after_the_last_layer_leaves_no_trace(session, rng, monkeypatch, call):
    edited = repaint(rng, current_labels(session))
    session.edit(edited)
    again, before = repaint(rng, edited), snapshot(session)

    def fail(self, output):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(session.model), "picture", fail)
        with pytest.raises(MemoryError):
            session.edit(again) if call == "edit" else session.undo()
    assert session.edits == 1
    if call == "edit":
        assert_unchanged(session, before)
    session.undo()
    assert session.edits == 0


def damaged(path: str, value: float) -> sparsegen.Model:
    """A network with one bad weight, in the middle of the parameter `path`."""
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
        ("up_3.conv_s", np.nan),
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


def test_an_edit_keeps_the_instances_it_is_not_given(rng):
    model = random_gaugan(edge_channel=True, semantic_nc=5)
    labels = random_labels(rng, (32, 64))
    ids = random_labels(rng, (32, 64), classes=9)
    session = Session(model)
    first = session.run(labels, instances=ids)
    assert session.edit(labels).stats.edited_area == 0
    edited = repaint(rng, labels)
    exact = session.edit(edited, policy="exact")
    assert np.array_equal(exact.output, Session(model).run(edited, instances=ids).output)
    moved = session.edit(labels, instances=np.zeros_like(ids), policy="exact")
    assert np.array_equal(moved.output, Session(model).run(labels).output)
    assert not np.array_equal(moved.output, first.output)


def test_the_edge_channel_by_hand():
    """Instances 1 | 2 side by side, 3 below the right half: a pixel is an edge when a 4-neighbour differs."""
    model = random_gaugan(edge_channel=True, semantic_nc=5)
    ids = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 3, 3]]).repeat(32, 0).repeat(32, 1)
    edges = model.encode(np.zeros_like(ids), instances=ids).canvases["labels"][0, :, :, 1]
    expected = np.full(ids.shape, -1)
    expected[:, 63:65] = 4  # 1 beside 2 and 3
    expected[63:65, 64:] = 4  # 2 above 3
    assert np.array_equal(edges, expected)


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
    "a size the network cannot take": (bad(np.zeros((60, 128), int)), ShapeError, "multiples of 32"),
    "an empty map": (bad(np.zeros((0, 0), int)), ShapeError, "multiples of 32"),
    "one dimension": (bad(np.zeros(9, int)), ShapeError, "expected"),
    "floats": (bad(np.zeros((64, 128))), InputError, "expected integers"),
    "a label too large": (bad(LABELS + 4), InputError, "label 4 at row 0, column 0"),
    "a negative label": (bad(LABELS.astype(int) - 1), InputError, "labels 0 to 3"),
    "a mask of another size": (bad(LABELS, mask=np.zeros((3, 3), bool)), ShapeError, "mask"),
    "a mask of other values": (bad(LABELS, mask=LABELS + 7), InputError, "other values"),
    "an unknown policy": (bad(LABELS, policy="magic"), InputError, "paper, exact"),
    "an unknown condition": (bad(LABELS, prompt="a lake"), InputError, "prompt"),
    "instances without edges": (bad(LABELS, instances=LABELS), InputError, "no edge channel"),
    "no samples": (bad(np.zeros((0, 64, 128), int)), ShapeError, "N ≥ 1"),
    "unknown labels": (bad(LABELS + 255), InputError, "'unknown'"),
    "z without a latent": (bad(LABELS, z=[1.0]), InputError, "cannot use z"),
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


def test_z_belongs_to_the_base(rng):
    model = random_gaugan(z_dim=4, start_cells=8)
    session = Session(model)
    labels = random_labels(rng, (64, 128))
    one = session.run(labels, z=[1, 0, 0, 0])
    with pytest.raises(InputError, match="run"):
        session.edit(labels, z=[0, 1, 0, 0])
    edited = repaint(rng, labels)
    exact = session.edit(edited, policy="exact")
    assert np.array_equal(exact.output, Session(model).run(edited, z=[1, 0, 0, 0]).output)
    assert not np.array_equal(one.output, Session(model).run(labels).output)
    for z, error in (
        ([1, 2], ShapeError),
        (1.0, ShapeError),
        ("abc", InputError),
        ([np.nan] * 4, InputError),
    ):
        with pytest.raises(error, match="z "):
            session.run(labels, z=z)
    with pytest.raises(ShapeError, match="fixed size"):
        session.run(random_labels(rng, (32, 64)))


# -- files -----------------------------------------------------------------------------------------------


def test_a_saved_session_continues_with_the_same_bits(session, rng, tmp_path):
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
    with pytest.raises(CheckpointError, match=r"Session\.load"):
        sparsegen.load(tmp_path / "s.safetensors")


def test_a_forged_session_is_refused(session, tmp_path):
    """Whoever can make the digest can lie about the rest; the canvases must still be the network's."""
    session._base().output_path = "nowhere"
    session.save(tmp_path / "s.safetensors")
    with pytest.raises(SessionError, match="not those of its network"):
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


def test_saving_needs_a_run(tmp_path):
    with pytest.raises(SessionError, match="run"):
        Session(random_gaugan()).save(tmp_path / "s.safetensors")
    assert list(Path(tmp_path).iterdir()) == []


# -- memory ----------------------------------------------------------------------------------------------


def test_weights_of_a_file_are_read_when_they_are_laid_out_and_not_kept(tmp_path, rng):
    model, labels = random_gaugan(nhidden=64), random_labels(rng, (64, 64))
    sparsegen.loading.save(model, tmp_path / "half.safetensors", dtype="float16")
    tracemalloc.start()
    loaded = sparsegen.load(tmp_path / "half.safetensors")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    values = {path: parameter.value for path, parameter in loaded.parameters().items()}
    assert kept < sum(value.nbytes for value in values.values()) / 2
    first = Session(loaded, "reference").run(labels).output
    # other backends, sessions and files still get them
    again = loaded.parameters()
    assert all(np.array_equal(again[path].value, value) for path, value in values.items())
    sparsegen.loading.save(loaded, tmp_path / "whole.safetensors")
    whole = sparsegen.load(tmp_path / "whole.safetensors")
    held = whole.parameters()["conv_img.weight"].value
    assert np.array_equal(Session(whole, "reference").run(labels).output, first)
    assert np.array_equal(held, values["conv_img.weight"])  # a look into the file, whose memory was let go


def test_weights_that_cannot_be_asked_for_again_are_kept(rng):
    model = random_gaugan()
    values = {path: parameter.value for path, parameter in model.parameters().items()}
    asked = []

    class Once(dict):
        def __getitem__(self, path):
            asked.append(path)
            return super().__getitem__(path)

    model.load_parameters(Once(values))
    Session(model, "reference").run(random_labels(rng, (32, 64)))
    assert sorted(asked) == sorted(values)
    assert all(parameter.value is values[path] for path, parameter in model.parameters().items())
