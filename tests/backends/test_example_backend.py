"""The example backend's device refuses the host, as a GPU's arrays do: else the contract suite would prove less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.backends.example_backend import ExampleBackend

HOST = np.ones((2, 3), np.float32)

MISTAKES: dict[str, Callable[[Any], Any]] = {
    "converted": np.asarray,
    "copied to the host": lambda device: np.array(device, np.float32),
    "a ufunc of NumPy's": np.sqrt,
    "a function of NumPy's": lambda device: np.where(HOST > 0, device, HOST),
    "NumPy's concatenation": lambda device: np.concatenate([HOST, device]),
    "a host array on the left": lambda device: HOST + device,
    "a host array on the right": lambda device: device * HOST,
    "a host index": lambda device: device[np.array([0, 1])],
    "assigned to a host array": lambda device: HOST.copy().__setitem__(0, device[0]),
    "assigned from a host array": lambda device: device.__setitem__(0, HOST[0]),
    "a host array in its module": lambda device: ExampleBackend.xp.concatenate([device, HOST]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_device_refuses_the_host(mistake: str) -> None:
    backend = ExampleBackend()
    device = backend.upload(HOST)
    with pytest.raises(TypeError):
        MISTAKES[mistake](device)
    assert (backend.download(device) == HOST).all()


def test_the_host_is_not_downloaded() -> None:
    with pytest.raises(TypeError, match="got ndarray"):
        ExampleBackend().download(HOST)


def test_scalars_go_along() -> None:
    backend = ExampleBackend()
    sums = np.float32(2) * backend.upload(HOST).sum(-1) + 1
    assert backend.download(sums).tolist() == [7, 7]
