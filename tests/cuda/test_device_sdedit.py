"""SDEdit on a device: a graph and a wait a step; caches beyond its memory in RAM; files that any backend opens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsegen import SDEdit
from sparsegen.backends import get_backend
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.engine.device_store import DeviceStore
from sparsegen.errors import InputError, SessionError
from tests.cuda import emulator
from tests.cuda.emulator import EmulatedDevice
from tests.tolerances import check
from tests.unets import FAMILIES, picture

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)

STEPS = 5


def on_device(memory: float = math.inf) -> CudaBackend:
    return CudaBackend(EmulatedDevice(memory=memory))


def edited(image: np.ndarray, column: int) -> np.ndarray:
    after = image.copy()
    after[4:7, column : column + 4] = 200
    return after


def outputs(pipeline: SDEdit) -> list[np.ndarray]:
    """The images after a run, two edits and an undo, float32."""
    rng = np.random.default_rng(0)
    found = [pipeline.run(picture(rng, (16, 24))).output]
    found += [pipeline.edit(edited(pipeline.image, column)).output for column in (4, 13)]
    return [*found, pipeline.undo().output]


@pytest.mark.parametrize("policy", ["fast", "paper"])
def test_each_step_of_an_edit_is_one_graph_and_one_wait(policy: str) -> None:
    backend = on_device()
    with SDEdit(FAMILIES["ddpm"](), backend=backend, steps=STEPS, policy=policy) as pipeline:
        pipeline.run(picture(np.random.default_rng(0), (16, 24)))
        for column in (4, 5):
            backend.device.counts.clear()
            result = pipeline.edit(edited(pipeline.image, column))
            computed = sum(step.refreshed for step in result.stats.steps)
            assert backend.device.counts["graph"] == computed
            assert backend.device.counts["wait"] <= STEPS + 1


def test_caches_beyond_the_devices_memory_lie_in_ram() -> None:
    model, found = FAMILIES["ddpm"](), []
    for memory in (math.inf, 300_000):
        with SDEdit(model, backend=on_device(memory), steps=STEPS) as pipeline:
            found.append(outputs(pipeline))
            assert isinstance(pipeline.store, DeviceStore)
            assert (pipeline.store.ram_bytes > 0) == (memory < math.inf)
            assert pipeline.store.device_bytes > 0
    for a, b in zip(*found, strict=True):
        assert np.array_equal(a, b)
    with SDEdit(model, backend="reference", steps=STEPS) as pipeline:
        for a, b in zip(found[0], outputs(pipeline), strict=True):
            check("backends", a, b)


def test_no_room_is_one_error_and_the_session_as_before() -> None:
    model, image = FAMILIES["ddpm"](), picture(np.random.default_rng(0), (16, 24))
    with SDEdit(model, backend=on_device(300_000), ram="200KB", steps=STEPS) as pipeline:
        with pytest.raises(SessionError, match="give more RAM, fewer steps, or storage float16"):
            pipeline.run(image)
        with pytest.raises(SessionError, match="no image yet"):
            pipeline.edit(image)
    with pytest.raises(InputError, match="keeps no files"):
        SDEdit(model, backend=on_device(), folder=".")


@pytest.mark.parametrize("there", ["reference", "cupy"])
def test_a_saved_session_opens_on_another_backend(there: str, tmp_path) -> None:
    backends = [get_backend("reference"), on_device()]
    if there == "reference":
        backends.reverse()
    path = tmp_path / "session.safetensors"
    with SDEdit(FAMILIES["ddpm"](), backend=backends[0], steps=STEPS) as pipeline:
        pipeline.run(picture(np.random.default_rng(0), (16, 24)))
        pipeline.edit(edited(pipeline.image, 4))
        pipeline.save(path)
        with SDEdit.load(path, backend=backends[1]) as loaded:
            assert np.array_equal(loaded.image, pipeline.image)
            after = edited(pipeline.image, 13)
            check("backends", loaded.edit(after).output, pipeline.edit(after).output)
            for _ in range(2):
                check("backends", loaded.undo().output, pipeline.undo().output)
