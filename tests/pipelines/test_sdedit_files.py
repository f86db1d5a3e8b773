"""SDEdit sessions on disk: the same bits and the same undo, or one clear error; and no cache outlives its process."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparsegen
from sparsegen import InputError, Session, SessionError
from sparsegen.backends import get_backend
from sparsegen.editing import session_file
from sparsegen.engine import store as store_module
from sparsegen.engine.chunks import PAGE
from sparsegen.engine.store import Store
from sparsegen.pipelines.sdedit import SDEdit
from sparsegen.weights import CheckpointError, read_checkpoint, write_safetensors
from tests.unets import assert_all_same, everything, picture, random_ddpm, random_pd, stroke

ORIGINAL = picture(np.random.default_rng(23), (16, 16))
OPTIONS = {"steps": 3, "noise_level": 300, "margin": 2, "backend": "numba"}


def edited(model=None, **options) -> SDEdit:
    """A session with three edits: of some tiles, of nothing, of everything."""
    pipeline = SDEdit(model or random_ddpm(2), **{**OPTIONS, **options})
    pipeline.run(ORIGINAL)
    pipeline.edit(stroke(ORIGINAL, (3, 3)))
    pipeline.edit(pipeline.image)
    pipeline.edit(pipeline.image, mask=np.ones((16, 16), bool))
    return pipeline


def loaded(path, **options) -> SDEdit:
    return SDEdit.load(path, **{"backend": "numba", **options})


def refused(path: Path, *kinds: type[Exception], match: str | None = None) -> None:
    """Both ways to open the file say so, in one line that names it."""
    for opening in (loaded, lambda path: loaded(path, ram=0, folder=path.parent)):
        with pytest.raises(kinds or (SessionError,), match=match) as caught:
            opening(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


# -- what comes back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ram", [None, "100KB", 0])
@pytest.mark.parametrize("family", ["ddpm", "pd"])
def test_a_loaded_session_continues_with_the_same_bits_and_the_same_undo(tmp_path, family, ram):
    options = {"ram": ram, "folder": tmp_path}
    if family == "pd":
        model, options = random_pd(2), {**options, "steps": 6, "noise_level": 3}
    else:
        options |= {"sampler": "ddpm", "seed": 5, "clip": None, "schedule": "cosine"}
        model = random_ddpm(2)
    pipeline, path = edited(model, **options), tmp_path / "x.session"
    told = []
    pipeline.save(path, progress=lambda *step: told.append(step))
    assert told[-1][:2] == (len(told), len(told)) and os.listdir(tmp_path) == ["x.session"]
    again = loaded(path, ram=ram, folder=tmp_path)
    assert again.settings == pipeline.settings and again.margin == 2 and again.edits == 3
    assert again.store.budget == pipeline.store.budget
    assert again.store.budget is None or again.store.ram_bytes <= again.store.budget
    assert_all_same(everything(again), everything(pipeline))
    for each in (pipeline, again):
        each.edit(stroke(each.image, (9, 8)))
    assert_all_same(everything(again), everything(pipeline))
    for _ in range(4):
        assert np.array_equal(again.undo().output, pipeline.undo().output)
        assert_all_same(everything(again), everything(pipeline))
    assert np.array_equal(again.image, ORIGINAL) and again.edits == 0
    again.save(path)  # over the file that it came from
    assert_all_same(everything(loaded(path)), everything(pipeline))
    assert os.listdir(tmp_path) == ["x.session"]


def test_every_network_and_setting_comes_back(tmp_path):
    options = {"film": True, "resample_blocks": True, "head_channels": 8, "middle_norm": False}
    # numbers of NumPy's are numbers
    settings = {
        "steps": np.int64(2),
        "eta": np.float32(0.25),
        "clip": np.float64(2),
        "seed": np.uint8(3),
        "margin": np.int32(1),
    }
    pipeline = edited(random_ddpm(3, **options), **settings)
    pipeline.save(tmp_path / "x")
    again = loaded(tmp_path / "x")
    assert again.model.config == pipeline.model.config and again.settings == pipeline.settings
    assert again.settings.options == {"eta": 0.25} and again.margin == 1
    for name, parameter in pipeline.model.parameters().items():
        assert np.array_equal(again.model.parameters()[name].value, parameter.value)
    for each in (pipeline, again):
        each.edit(stroke(each.image, (9, 8)), policy="exact")
    assert_all_same(everything(again), everything(pipeline))


def test_batches_come_back(tmp_path):
    pictures = np.stack([ORIGINAL, ORIGINAL[::-1]])
    pipeline = SDEdit(random_ddpm(2), **OPTIONS)
    pipeline.run(pictures)
    pipeline.edit(np.stack([ORIGINAL, stroke(ORIGINAL[::-1], (3, 3))]))
    pipeline.save(tmp_path / "x")
    assert_all_same(everything(loaded(tmp_path / "x")), everything(pipeline))


def test_seeds_come_back(tmp_path):
    pipeline = SDEdit(random_ddpm(1), steps=2, seed=np.array([5, 2]))
    pipeline.run(picture(np.random.default_rng(0), (16, 16), samples=2))
    pipeline.save(tmp_path / "saved.session")
    assert SDEdit.load(tmp_path / "saved.session").settings.seed == (5, 2)


def test_a_session_without_edits_comes_back_into_files(tmp_path):
    pipeline = SDEdit(random_ddpm(2), **OPTIONS)
    pipeline.run(ORIGINAL)
    pipeline.save(tmp_path / "x")
    again = loaded(tmp_path / "x", ram=0, folder=tmp_path)
    assert again.edits == 0 and again.store.ram_bytes == 0 < again.store.file_bytes
    assert_all_same(everything(again), everything(pipeline))
    with pytest.raises(SessionError, match="nothing to undo"):
        again.undo()


def test_a_save_that_fails_leaves_the_old_file_and_the_session(tmp_path, monkeypatch):
    pipeline, path = edited(), tmp_path / "x"
    pipeline.save(path)
    old, before = path.read_bytes(), everything(pipeline)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(CheckpointError, match="No space left"):
            pipeline.save(path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["x"]
    assert_all_same(everything(pipeline), before)


# -- what is no session ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "x"
    edited().save(path)
    return path.read_bytes()


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.3, 0.7, 0.9999])
def test_a_file_that_is_cut_is_refused(saved, tmp_path, part):
    path = tmp_path / "cut.session"
    path.write_bytes(saved[: int(len(saved) * part)])
    refused(path, SessionError, CheckpointError)


def test_a_file_that_is_altered_is_refused(saved, tmp_path):
    rng, path = np.random.default_rng(5), tmp_path / "altered.session"
    header = int.from_bytes(saved[:8], "little")
    places = [*rng.integers(0, 8 + header, 8), *rng.integers(8 + header, len(saved), 8)]
    for place in places:
        altered = bytearray(saved)
        altered[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        with pytest.raises((SessionError, CheckpointError), match=r"altered\.session"):
            loaded(path)
    assert os.listdir(tmp_path) == ["altered.session"]


def test_files_of_other_kinds_are_refused(saved, tmp_path):
    one, many, model = (tmp_path / name for name in ("one.session", "many.session", "model.safetensors"))
    many.write_bytes(saved)
    network = random_ddpm(2)
    session = Session(network, "numba")
    session.run(ORIGINAL / np.float32(127.5) - 1, timestep=3)
    session.save(one)
    sparsegen.loading.save(network, model)
    with pytest.raises(
        SessionError, match=r"many\.session: a session of another kind \(sdedit, .*open_session"
    ):
        Session.load(many, "numba")
    refused(one, match="a session of another kind")
    refused(model, match="not a saved session")
    with pytest.raises(CheckpointError, match="many"):
        sparsegen.load(many)
    with pytest.raises((CheckpointError, OSError)):
        loaded(tmp_path / "missing")
    # and each is what it is
    assert Session.load(one, "numba").edits == 0 and loaded(many).edits == 3


def test_caches_that_cannot_be_given_are_said(saved, tmp_path, monkeypatch):
    path = tmp_path / "x.session"
    path.write_bytes(saved)
    for options in ({"ram": "much"}, {"ram": 0, "folder": tmp_path / "none"}):
        with pytest.raises(InputError):
            loaded(path, **options)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SessionError, match=r"no room for .* give more RAM or another folder"):
        loaded(path, ram="50KB", folder=tmp_path)
    assert os.listdir(tmp_path) == ["x.session"]
    monkeypatch.undo()
    monkeypatch.setattr(Store, "disk_free", lambda store: 5)
    monkeypatch.setattr(Store, "allocate", None)  # said before any room is taken
    with pytest.raises(SessionError, match=r"the caches need .* in RAM and .* where 0.0 MB are free"):
        loaded(path, ram="50KB", folder=tmp_path)


# -- files that somebody made ----------------------------------------------------------------------------


def forged(path: Path, saved: bytes, tensors: dict, metadata: dict) -> None:
    """The file with other tensors (a name's prefix `-` takes one away; functions change one) and the right digest."""
    path.write_bytes(saved)
    file = read_checkpoint(path)
    arrays = {key: np.array(tensor.numpy()) for key, tensor in file.tensors.items()}
    described = {key: str(v) for key, v in file.metadata.items() if key != session_file.DIGEST}
    for name, change in tensors.items():
        if change is None:
            del arrays[name]
        else:
            arrays[name] = np.ascontiguousarray(change(arrays.get(name)))
    for name, change in metadata.items():
        described[name] = change(described[name])
    digest = session_file.Digest(described)
    for key, array in sorted(arrays.items()):
        digest.add(key, array)
    described[session_file.DIGEST] = digest.text()
    write_safetensors(path, arrays, described)


def setting(**changes):
    def change(text):
        return json.dumps({k: v for k, v in {**json.loads(text), **changes}.items() if v != "gone"})

    return {"sparsegen.settings": change}


def told(**changes):
    def change(text):
        return json.dumps({k: v for k, v in {**json.loads(text), **changes}.items() if v != "gone"})

    return {"sparsegen.history": change}


def model(**changes):
    def change(text):
        models = json.loads(text)
        models["model"].update(changes)
        return json.dumps(models)

    return {"sparsegen.models": change}


def states(change):
    def changed(text):
        described = json.loads(text)
        return json.dumps(change(described))

    return {"sparsegen.states": changed}


def put(index, value):
    def change(array):
        array = array.copy()
        array[index] = value
        return array

    return change


def always(value):
    return lambda _: value


S0, S1 = "step.00000/", "step.00001/"
FORGED = {
    "the version": ({}, {"sparsegen.session": always("2")}),
    "the version before": ({}, {"sparsegen.session": always("6")}),
    "a later version": ({}, {"sparsegen.session": always("8")}),
    "the family": ({}, model(family="gaugan")),
    "no family": ({}, model(family="os.system")),
    "a family in a list": ({}, model(family=["ddpm"])),
    "the model's shape": ({}, {"sparsegen.models": lambda t: t.replace('"blocks": 1', '"blocks": 2')}),
    "a config of nothing": ({}, model(config=[])),
    "models that nest": ({}, {"sparsegen.models": always("[" * 100000)}),
    "no models": ({}, {"sparsegen.models": always("{}")}),
    "two models": (
        {},
        {"sparsegen.models": lambda t: json.dumps({**json.loads(t), "other": json.loads(t)["model"]})},
    ),
    "a model of another name": ({}, {"sparsegen.models": lambda t: t.replace('"model"', '"unet"')}),
    "another kind": ({}, {"sparsegen.kind": always("session")}),
    "a kind that is none": ({}, {"sparsegen.kind": always("sd\nedit")}),
    "settings that are none": ({}, {"sparsegen.settings": always("5")}),
    "settings in a list": ({}, {"sparsegen.settings": always("[]")}),
    "settings as text": ({}, {"sparsegen.settings": always('"steps"')}),
    "settings that nest": ({}, {"sparsegen.settings": always("[" * 100000)}),
    "no JSON": ({}, {"sparsegen.settings": always("{")}),
    "steps by the milliard": ({}, setting(steps=10**9)),
    "no steps": ({}, setting(steps=0)),
    "other steps": ({}, setting(steps=2)),
    "more steps": ({}, setting(steps=4)),
    "another noise level": ({}, setting(noise_level=400)),
    "a noise level beyond all": ({}, setting(noise_level=10**30)),
    "an unknown sampler": ({}, setting(sampler="__import__('os')")),
    "a sampler that is none": ({}, setting(sampler=[1])),
    "the sampler of another family": ({}, setting(sampler="pd")),
    "an unknown schedule": ({}, setting(schedule="../../x")),
    "a negative margin": ({}, setting(margin=-1)),
    "a margin as text": ({}, setting(margin="9")),
    "no margin": ({}, setting(margin="gone")),
    "a negative seed": ({}, setting(seed=-1)),
    "a clip of NaN": ({}, setting(clip=float("nan"))),
    "an eta beyond 1": ({}, setting(eta=1.5)),
    "a setting too many": ({}, setting(folder="/")),
    "no seed": ({}, setting(seed=None)),
    "fewer edits than steps have": ({}, told(ran=[True, False])),
    "more edits than steps have": ({}, told(ran=[True, False, True, True])),
    "an edit that ran, and did not": ({}, told(ran=[False, False, True])),
    "edits beyond all": ({}, told(edits=4)),
    "a negative number of edits": ({}, told(edits=-1)),
    "a history that nests": ({}, {"sparsegen.history": always("[" * 100000)}),
    "no images": ({}, told(images=False)),
    "edits as a number": ({}, told(ran=3)),
    "edits as nothing": ({}, told(ran=None)),
    "no edits": ({}, told(ran="gone")),
    "no image": ({"history/image": None}, {}),
    "an image of another size": ({"history/image": lambda a: a[:, :8]}, {}),
    "an image in float64": ({"history/image": lambda a: a.astype(np.float64)}, {}),
    "a flat image": ({"history/image": lambda a: a.reshape(-1)}, {}),
    "a history of another size": ({"history/image.00001": lambda a: a[:, :, :4]}, {}),
    "a history of integers": ({"history/image.00000": lambda a: a.astype(np.int32)}, {}),
    "no history": ({"history/image.00002": None}, {}),
    "another time": ({f"{S1}condition/timestep": lambda t: t + 1}, {}),
    "two times": ({f"{S1}condition/timestep": lambda t: np.repeat(t, 2)}, {}),
    "no times": ({f"{S1}condition/timestep": lambda t: t[:0]}, {}),
    "a time that is missing": ({f"{S1}condition/timestep": None}, {}),
    "a condition too many": ({f"{S1}condition/z": always(np.zeros(3, np.float32))}, {}),
    "an input of another size": ({f"{S0}canvas/input.x": lambda x: x[:, :8]}, {}),
    "an input the model cannot take": ({f"{S0}canvas/input.x": lambda x: x[:, :7, :5]}, {}),
    "an input of four channels": ({f"{S0}canvas/input.x": lambda x: x.repeat(2, 3)}, {}),
    "an input of integers": ({f"{S0}canvas/input.x": lambda x: x.astype(np.int32)}, {}),
    "an input in float64": ({f"{S0}canvas/input.x": lambda x: x.astype(np.float64)}, {}),
    "an input in float16": ({f"{S0}canvas/input.x": lambda x: x.astype(np.float16)}, {}),
    "a flat input": ({f"{S0}canvas/input.x": lambda x: x.reshape(-1)}, {}),
    "no samples": ({f"{S0}canvas/input.x": lambda x: x[:0]}, {}),
    "two inputs": ({f"{S0}canvas/input.y": always(np.zeros((1, 16, 16, 3), np.float32))}, {}),
    "no input": ({f"{S0}canvas/input.x": None}, {}),
    "a layer that is missing": ({f"{S1}canvas/conv_in": None}, {}),
    "a layer of another size": ({f"{S1}canvas/conv_in": lambda c: c[:, :8]}, {}),
    "a layer of another type": ({f"{S1}canvas/conv_in": lambda c: c.view(np.int32)}, {}),
    "a layer in float64": ({f"{S1}canvas/conv_in": lambda c: c.astype(np.float64)}, {}),
    "no weight": ({"parameter/model/conv_in.bias": None}, {}),
    "a weight of another size": ({"parameter/model/conv_in.bias": lambda b: b[:-1]}, {}),
    "a weight too many": ({"parameter/model/conv_in.scale": always(np.zeros(1, np.float32))}, {}),
    "statistics cut": ({f"{S0}measured/norm_out/0": lambda m: m[:, :-1]}, {}),
    "statistics of no sample": ({f"{S0}measured/norm_out/0": lambda m: m[:0]}, {}),
    "statistics of integers": ({f"{S0}measured/norm_out/1": lambda m: m.astype(np.int32)}, {}),
    "no statistics": ({f"{S0}measured/norm_out/0": None, f"{S0}measured/norm_out/1": None}, {}),
    "tiles outside": ({f"{S0}steps.tiles": put((0, 1), 4)}, {}),
    "tiles far outside": ({f"{S0}steps.tiles": put((0, 2), 2**31 - 1)}, {}),
    "tiles before all": ({f"{S0}steps.tiles": put((0, 0), -1)}, {}),
    "tiles cut": ({f"{S0}steps.tiles": lambda t: t[:-3]}, {}),
    "tiles as floats": ({f"{S0}steps.tiles": lambda t: t.astype(np.float32)}, {}),
    "tiles as int64": ({f"{S0}steps.tiles": lambda t: t.astype(np.int64)}, {}),
    "tiles of two numbers": ({f"{S0}steps.tiles": lambda t: t[:, :2]}, {}),
    "a count below 0": ({f"{S0}steps.table": put((0, 2), -1)}, {}),
    "a count beyond all": ({f"{S0}steps.table": put((0, 2), 2**31 - 1)}, {}),
    "a canvas that is none": ({f"{S0}steps.table": put((0, 1), 999)}, {}),
    "an edit that is none": ({f"{S0}steps.table": put((0, 0), 3)}, {}),
    "an edit before all": ({f"{S0}steps.table": put((0, 0), -1)}, {}),
    "an edit that repainted nothing": ({f"{S0}steps.table": put((0, 0), 1)}, {}),
    "tiles of a canvas twice": ({f"{S0}steps.table": put((0, 0), 2)}, {}),
    "values cut": ({f"{S0}steps.values": lambda v: v[:-1]}, {}),
    "values as bytes": ({f"{S0}steps.values": lambda v: v.view(np.uint8)}, {}),
    "no values": ({f"{S0}steps.values": None}, {}),
    "an edit less": ({"history/counts": lambda c: c[1:]}, {}),
    "a negative count": ({"history/counts": put(0, -1)}, {}),
    "stale tiles cut": ({"history/tiles": lambda t: t[:-1]}, {}),
    "stale tiles outside": ({"history/tiles": put((0, 1), 99)}, {}),
    "stale tiles as floats": ({"history/tiles": lambda t: t.astype(np.float32)}, {}),
    "no stale pixels": ({"history/pixels": None}, {}),
    "one step less": ({}, states(lambda s: {k: v for k, v in s.items() if k != S1})),
    "steps in another order": ({}, states(lambda s: dict(reversed(s.items())))),
    "a state of no model": ({}, states(lambda s: {**s, S1: {**s[S1], "model": "text"}})),
    "one step twice": ({}, states(lambda s: {**s, "step.00003/": s[S0]})),
    "steps of other names": ({}, states(lambda s: {k.replace("step", "pets"): v for k, v in s.items()})),
    "no states": ({}, states(lambda s: {})),
    "states in a list": ({}, states(lambda s: list(s))),
    "an output that is none": ({}, states(lambda s: {**s, S1: {**s[S1], "output": "nowhere"}})),
    "a codebook": ({f"{S1}windows/conv_in": always(np.zeros((2, 9), np.int32))}, {}),
    "a state of nothing": ({}, states(lambda s: {**s, S1: {}})),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_file_is_refused(saved, tmp_path, what):
    path = tmp_path / "forged.session"
    tensors, metadata = FORGED[what]
    forged(path, saved, tensors, metadata)
    refused(path)
    assert os.listdir(tmp_path) == ["forged.session"]


def test_the_forger_makes_files_that_are_taken(saved, tmp_path):
    path = tmp_path / "same.session"
    forged(path, saved, {f"{S0}steps.tiles": lambda t: t}, setting(margin=2))
    assert loaded(path).edits == 3


@pytest.mark.parametrize("what", ["tiles as floats", "a count below 0", "an input of integers", "no input"])
def test_a_forged_file_of_one_step_is_refused(tmp_path, what):
    path = tmp_path / "one.session"
    session = Session(random_ddpm(2), "numba")
    session.run(ORIGINAL / np.float32(127.5) - 1, timestep=3)
    session.edit(stroke(ORIGINAL) / np.float32(127.5) - 1)
    session.save(path)
    tensors, metadata = FORGED[what]
    forged(path, path.read_bytes(), {k.removeprefix(S0): v for k, v in tensors.items()}, metadata)
    with pytest.raises(SessionError, match=r"one\.session"):
        Session.load(path, "numba")


# -- caches in files -------------------------------------------------------------------------------------

CHILD = """
import os, signal, sys
import numpy as np
from sparsegen.pipelines.sdedit import SDEdit
from tests.unets import picture, random_ddpm, stroke

original = picture(np.random.default_rng(0), (16, 16))
def on_step(step):
    if step.index == 1 and sys.argv[2] == "kill":
        print(len(os.listdir(sys.argv[1])), pipeline.store.file_bytes > 0, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
pipeline = SDEdit(random_ddpm(), steps=3, backend="reference", ram=0, folder=sys.argv[1])
pipeline.run(original)
pipeline.edit(stroke(original, (3, 3)), on_step=on_step)
print(len(os.listdir(sys.argv[1])), pipeline.store.file_bytes > 0, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="files lose their names at once on POSIX alone")
@pytest.mark.parametrize("end", ["kill", "leave"])
def test_no_cache_outlives_its_process(tmp_path, end):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), end], capture_output=True, text=True, cwd=root
    )
    assert done.stdout.split() == ["0", "True"] and not done.stderr, done.stderr
    assert (done.returncode == 0) == (end == "leave")
    assert list(tmp_path.iterdir()) == []


def test_two_sessions_may_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK", 64 * PAGE)
    one, other = edited(ram=0, folder=tmp_path), edited(ram=0, folder=tmp_path, seed=1)
    before = everything(other)
    one.close()
    assert_all_same(everything(other), before)
    assert other.undo().active.count > 0 and list(tmp_path.iterdir()) == []


# -- the writer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
def test_types_of_every_width_are_read_back_equal(tmp_path, dtype):
    rng, path = np.random.default_rng(1), tmp_path / "x"
    kinds = ["u1", "f2", "i8", "b1", "f4", "i2", "f8", "u1", "i4", "c8"]
    arrays = {}
    for i, kind in enumerate(rng.permutation(kinds * 3)):
        shape = ((), (0,), (1,), (3,), (7, 5))[rng.integers(5)]
        arrays[f"{i:02d}"] = np.asarray(rng.integers(0, 2 if kind == "b1" else 100, shape)).astype(kind)
    write_safetensors(path, arrays, {"note": "ü" * 13}, dtype=dtype)
    with read_checkpoint(path) as file:
        assert set(file.tensors) == set(arrays) and dict(file.metadata) == {"note": "ü" * 13}
        for name, array in arrays.items():
            wanted = array.astype(dtype) if dtype and array.dtype.kind == "f" else array
            found = file.tensors[name].numpy()
            assert found.dtype == wanted.dtype and found.shape == wanted.shape
            assert np.array_equal(found, wanted)
            assert found.dtype.itemsize > 4 or found.flags.aligned


def test_a_backend_is_named_once(saved, tmp_path):
    (tmp_path / "x").write_bytes(saved)
    backend = get_backend("reference")
    assert SDEdit.load(tmp_path / "x", backend=backend).backend is backend
