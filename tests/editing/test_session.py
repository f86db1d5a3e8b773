"""The session as users meet it: results, statistics, masks and memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import sparsegen
from sparsegen import InputError, Paper, Session, ShapeError
from tests.networks import assert_unchanged, current_labels, random_gaugan, random_labels, repaint, snapshot


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def session(rng: np.random.Generator) -> Session:
    session = Session(random_gaugan())
    session.run(random_labels(rng, (64, 128)))
    return session


def test_a_result_holds_pictures_and_costs(session, rng):
    labels = current_labels(session)
    labels[0, 8:16, 8:16] = (labels[0, 8:16, 8:16] + 1) % 4
    result = session.edit(labels, progress=lambda record: None)
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
    """Only the repainted part of an image is converted; a user may paint over the one that was given."""

    def check(result):
        assert np.array_equal(result.images, session.model.images(result.output))
        result.images[:] = 7
        result.output[:] = 7

    labels = current_labels(session)
    for i in range(3):
        place = labels[0, 20 * i : 20 * i + 5, 40 * i : 40 * i + 9]
        place[...] = (place + 1) % 4
        check(session.edit(labels, policy=["paper", "exact", "adaptive(0.1)"][i]))
    check(session.edit(labels))
    check(session.undo())  # the edit without a change
    with monkeypatch.context() as patch:
        patch.setattr(type(session.memory.backend), "download", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.undo()
    assert session.edits == 2
    for _ in range(2):
        check(session.undo())
    for _ in range(4):
        check(session.redo())
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
    """No clone of a canvas, no map per layer: peak memory is the journal, the windows and the image returned."""
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
    journal = session._base.history.edits[-1].journals[0]
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
        assert array is arrays[path]
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
