"""A stand-in for a device's array module: its arrays lie in main memory, and refuse the host as CuPy's do.

NumPy's functions, host arrays as operands or indices, and implicit conversion raise TypeError. So a backend that runs
on this module keeps host and device apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host


def _to_host(value: Any) -> Any:
    """Device arrays as the NumPy arrays that they hold, also inside tuples and lists; refuses host arrays."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_to_host, value))
    if isinstance(value, np.ndarray):
        raise TypeError("a host array was given to the device; upload it")
    return value.held if isinstance(value, DeviceArray) else value


def _to_device(value: Any) -> Any:
    """NumPy arrays as device arrays, also inside tuples and lists."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(_to_device, value))
    return DeviceArray(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of NumPy's for device arrays."""

    def call(*args: Any, **keywords: Any) -> Any:
        given = {name: _to_host(value) for name, value in keywords.items()}
        return _to_device(function(*map(_to_host, args), **given))

    return call


class DeviceArray:
    """An array of the device: its own methods and operators work, NumPy's functions do not."""

    __array_ufunc__ = None  # NumPy's arrays and scalars leave their operators to this class
    __hash__ = None  # type: ignore[assignment]  # how Python says unhashable

    def __init__(self, held: Host) -> None:
        self.held = held

    def __array__(self, *args: Any, **keywords: Any) -> Host:
        raise TypeError("a device array is not converted implicitly; download it")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `__array_interface__` and its like would convert it
            raise AttributeError(name)
        found = getattr(self.held, name)
        return _on_device(found) if callable(found) else _to_device(found)

    def __bool__(self) -> bool:
        return bool(self.held)

    def __int__(self) -> int:
        return int(self.held)

    def __len__(self) -> int:
        return len(self.held)


_ARITHMETIC = ["add", "sub", "mul", "truediv", "floordiv", "matmul", "and", "or"]
_OTHERS = ["getitem", "setitem", "neg", "invert", "eq", "ne", "lt", "le", "gt", "ge"]
for _name in (*_OTHERS, *_ARITHMETIC, *(f"r{_each}" for _each in _ARITHMETIC)):
    setattr(DeviceArray, f"__{_name}__", _on_device(getattr(np.ndarray, f"__{_name}__")))


class DeviceModule:
    """The device's array module: NumPy's functions by name, for device arrays, and the copies to and from the host."""

    def __getattr__(self, name: str) -> Any:
        return _on_device(getattr(np, name))

    @staticmethod
    def to_device(host: Host) -> DeviceArray:
        """A contiguous copy of a host array."""
        return DeviceArray(np.array(host, order="C"))

    @staticmethod
    def to_host(array: DeviceArray) -> Host:
        """A host copy of a device array. Raises TypeError for anything else."""
        if not isinstance(array, DeviceArray):
            raise TypeError(f"expected an array of the device, got {type(array).__name__}")
        return np.array(array.held)
