"""An example of a backend, the least that one needs: an array module, three methods, and one primitive of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsegen.backends.base import PortableBackend
from sparsegen.backends.interface import Activation, Array, Host
from tests.backends.device_arrays import DeviceModule


class ExampleBackend(PortableBackend):
    """A backend for the stand-in device of `device_arrays.py`; it passes the contract suite."""

    name = "example"
    xp: Any = DeviceModule()

    def alloc(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        return self.xp.zeros(tuple(shape), dtype)

    def upload(self, host: Host) -> Array:
        is_float = np.issubdtype(host.dtype, np.floating)
        return self.xp.to_device(host.astype(np.float32 if is_float else host.dtype))

    def download(self, array: Array) -> Host:
        host: Host = self.xp.to_host(array)
        return host

    def linear(
        self, x: Array, weight: Array, bias: Array | None, *, activation: Activation = "identity"
    ) -> Array:
        # x @ weight.T, each output as the sum of its products: in place of the base's matrix product
        y = (x[:, None, :] * weight).sum(-1)
        return self._activate_rows(y if bias is None else y + bias, activation)
