"""Moments in edits: what norms use lies between the original's moments and those of the canvas as it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparsegen import Fast, Session
from sparsegen.backends import Backend
from sparsegen.backends.interface import Host
from sparsegen.models.unet import UNet
from tests.devices import host
from tests.networks import assert_same, values
from tests.tolerances import check
from tests.unets import FAMILIES, FAST, SPARSE, at, dense_with, kept_by, noisy, painted, parts


@pytest.fixture(params=FAMILIES)
def model(request) -> UNet:
    return FAMILIES[request.param]()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(29)


def opened(backend: Backend, model: UNet, x: Host, policy=FAST, **options) -> Session:
    """A session that has run."""
    session = Session(model, backend, policy=policy, **options)
    session.run(x, **at(model, len(x)))
    return session


def measured(session: Session, path: str) -> Host:
    """The means of v and of v² of a canvas, float64 `[2, N, C]`."""
    v = np.asarray(session.memory.backend.download(session.memory.canvases[path]), np.float64)
    return np.stack([v.mean((1, 2)), (v * v).mean((1, 2))])


def assert_follow(session: Session) -> None:
    """The fresh moments are those of the canvases."""
    assert len(session.memory.moments) > 8
    for path, moments in session.memory.moments.items():
        (mean, square), fresh = measured(session, path), parts(moments, session.memory.backend)["fresh"]
        check("followed moments", fresh[0], mean, largest=float(np.sqrt(square.max())))
        check("followed moments", fresh[1], square)


def test_a_dense_run_measures_canvases_while_it_writes_them(backend, model, rng, monkeypatch):
    """Once a run has shown which: with the bits of a run that reads them again, and none of other values."""
    first, second = noisy(rng, (16, 24), 2), noisy(rng, (16, 24), 2)
    expected = values(opened(backend, FAMILIES[model.family](), second))
    calls = []
    for name in ("conv2d_measured", "channel_moments"):
        method = getattr(type(backend), name)

        def called(self, *args, name=name, method=method, **settings):
            calls.append(name)
            return method(self, *args, **settings)

        monkeypatch.setattr(type(backend), name, called)
    session = opened(backend, model, first)
    read = len(calls)
    assert calls == ["channel_moments"] * read
    calls.clear()
    session.run(second, **at(model, 2))
    assert calls.count("conv2d_measured") > read / 2
    assert_same(values(session), expected)
    assert_follow(session)


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_moments_that_are_followed_are_those_of_the_canvas(backend, model, rng, storage):
    x = noisy(rng, (16, 24), 2)
    session = opened(backend, model, x, storage=storage)
    assert_follow(session)
    for i in range(10):
        x = painted(rng, x)
        session.edit(x, mask=np.ones(x.shape[1:3], bool) if i == 5 else None)
        assert_follow(session)
    for _ in range(4):
        session.undo()
    assert_follow(session)
    session.edit(painted(rng, x), policy=replace(SPARSE, least_size=1))  # which follows none
    session.edit(painted(rng, x))
    for path, moments in session.memory.moments.items():
        unknown = sorted({0, 1} - moments.unknown)
        fresh = parts(moments, session.memory.backend)["fresh"][:, unknown]
        now = measured(session, path)[:, unknown]
        check("followed moments", fresh[1], now[1])


def test_norms_use_a_mixture_by_the_share_that_is_repainted(backend, model, rng):
    x = noisy(rng, (32, 32))
    session = opened(backend, model, x, Fast(dilation=0, level_dilation=0, sparse_levels=16, statistics=0.25))
    before = {path: parts(moments, backend) for path, moments in session.memory.moments.items()}
    edited = x.copy()
    edited[0, 3:7, 5:9] += 2
    layers = {layer.path: layer for layer in session.edit(edited).stats.layers}
    for path, moments in session.memory.moments.items():
        old, new = before[path], parts(moments, backend)
        share = layers[path].active / layers[path].total
        assert 0 < share < 1
        weight = 0.25 + 0.75 * share
        mean, square = old["stale"] + weight * (new["fresh"] - old["stale"])
        check("rounding", new["used"][0], mean)
        check("rounding", new["used"][1], square - mean**2, largest=float(square.max()))
        stale = old["stale"] + share * weight * (new["fresh"] - old["stale"])
        check("oracle", new["stale"], stale)


def test_no_weight_of_fresh_moments_is_paper(backend, model, rng):
    x, session = noisy(rng, (16, 24), 2), {}
    none = Fast(**{**vars(SPARSE), "statistics": 0, "refresh": 1})
    for policy in (SPARSE, none):
        session[policy] = opened(backend, model, x, policy)
    for _ in range(3):
        x = painted(rng, x)
        for each in session.values():
            each.edit(x)
        assert_same(kept_by(session[SPARSE].memory), kept_by(session[none].memory))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_an_edit_of_everything_is_the_dense_run(backend, model, rng, samples, storage):
    x, everywhere = noisy(rng, (16, 24), samples), np.ones((16, 24), bool)
    session = opened(backend, model, x, storage=storage)
    start = kept_by(session.memory)
    session.edit(x, mask=everywhere)
    assert_same(values(session), {path: start[path] for path in values(session)})
    session.edit(painted(rng, x))  # on the way there, moments that are not those of a dense run
    edited = noisy(rng, (16, 24), samples)
    session.edit(edited, mask=everywhere)
    dense = opened(backend, model, edited, storage=storage)
    assert_same(kept_by(session.memory), kept_by(dense.memory))
    for _ in range(3):
        session.undo()
    assert_same(kept_by(session.memory), start)


def test_a_sample_does_not_depend_on_its_batch(backend, model, rng):
    """Also where another one is repainted whole, or edited under a policy that follows no moments."""
    x = noisy(rng, (16, 24), 2)
    paper = replace(SPARSE, least_size=1)
    edits = [(1, False, FAST), (0, True, FAST), (1, False, FAST), (0, False, paper), (1, False, FAST)]
    edits += [(0, False, FAST), (1, False, paper), (1, False, FAST)]
    batch, times = opened(backend, model, x), at(model, 2)[model.time]
    alone = [Session(model, backend, policy=FAST) for _ in range(2)]
    for i, session in enumerate(alone):
        session.run(x[i], **{model.time: times[i]})
    for sample, whole, policy in edits:
        mask = np.zeros(x.shape[:3], bool)
        mask[sample] = True
        x[sample] = painted(rng, x[sample : sample + 1])
        batch.edit(x, mask=mask if whole else None, policy=policy)
        alone[sample].edit(x[sample], mask=mask[sample] if whole else None, policy=policy)
        for i, session in enumerate(alone):
            for path in session.memory.canvases:
                assert np.array_equal(host(session.memory, path)[0], host(batch.memory, path)[i]), path
            for path, moments in session.memory.moments.items():
                together = batch.memory.moments[path]
                assert (i in together.unknown) == bool(moments.unknown)
                for name, array in parts(moments, backend).items():
                    if name != "fresh" or not moments.unknown:
                        assert np.array_equal(array[:, 0], parts(together, backend)[name][:, i]), (path, name)


def test_undo_and_redo_of_a_chain_put_every_bit_back(backend, model, rng):
    x = noisy(rng, (16, 24), 2)
    session = opened(backend, model, x)
    stages = [kept_by(session.memory)]
    policies = [FAST, "paper(least_size=1)", "exact", "adaptive(0.05)", "fast(statistics=1)"]
    for i in range(10):
        x = painted(rng, x)
        mask = np.ones(x.shape[1:3], bool) if i % 4 == 3 else None
        session.edit(x, mask=mask, policy=policies[i // 2] if i % 2 else FAST)
        stages.append(kept_by(session.memory))
    for stage in stages[-2::-1]:
        session.undo()
        assert_same(kept_by(session.memory), stage)
    for stage in stages[1:]:
        session.redo()
        assert_same(kept_by(session.memory), stage)


def test_an_exact_edit_after_a_fast_one_is_exact(backend, rng):
    """It recomputes also the pixels that a fast edit touched through norms alone."""
    for family in FAMILIES:
        model = FAMILIES[family](attention=(False, False), middle_attention=False, levels=(8, 8))
        x = noisy(rng, (256, 8), 2)  # long, so that some tiles lie beyond the reach of an exact edit
        edited = x.copy()
        edited[1, 2:5, 3:6] -= 2
        session = opened(backend, model, x)
        reached = session.edit(edited, policy="exact").active.count
        session.undo()
        session.edit(edited, policy=Fast(dilation=200, sparse_levels=16))
        after = edited.copy()
        after[1, 4, 4] += 1
        exact = session.edit(after, policy="exact")
        assert reached < exact.active.count
        assert_same(values(session), dense_with(session, after))


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_a_file_keeps_moments_and_those_of_journals(backend, model, rng, tmp_path, storage):
    x = noisy(rng, (16, 24), 2)
    session = opened(backend, model, x, storage=storage)
    stages = [kept_by(session.memory)]
    inputs = [x := painted(rng, x) for _ in range(4)]
    for edited, policy in zip(inputs[:3], (FAST, "paper(least_size=1)", FAST), strict=True):
        session.edit(edited, policy=policy)
        stages.append(kept_by(session.memory))
    session.undo()
    session.save(tmp_path / "saved")
    loaded = Session.load(tmp_path / "saved", backend)
    assert loaded.policy == FAST
    for each in (session, loaded):
        assert_same(kept_by(each.memory), stages[2])
        each.redo()
        assert_same(kept_by(each.memory), stages[3])
        each.edit(inputs[3])
    assert_same(kept_by(loaded.memory), kept_by(session.memory))
    for stage in (3, 2, 1, 0):
        loaded.undo()
        assert_same(kept_by(loaded.memory), stages[stage])
