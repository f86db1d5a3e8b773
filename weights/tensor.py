"""A tensor's place in a mapped file in, checked; its values as a NumPy array out, on demand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .dtypes import DTYPES
from .errors import CheckpointError, shown
from .limits import MAX_DIMENSIONS
from .mapped import MappedFile

_LARGEST = 1 << 62
_WIDEST = 16
"""Bytes of the widest element type."""


UNREADABLE_ADVICE = "Save the tensors with their values, as float16, bfloat16 or float32"


@dataclass(eq=False)
class Storage:
    """Consecutive bytes that tensors are views of. `start` is their place in the file, -1 until it is known."""

    dtype: str
    key: str
    nbytes: int
    start: int = -1


@dataclass(eq=False, frozen=True)
class Layout:
    """A tensor as a file describes it, checked against its storage. Strides and offset in elements.

    A tensor of PyTorch's meta device has no storage. `negative` and `conjugate` are PyTorch's bits: the stored values
    are negated or conjugated.
    """

    storage: Storage | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negative: bool = False
    conjugate: bool = False


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        strides[axis - 1] = strides[axis] * max(shape[axis], 1)
    return tuple(strides)


def _counts(values: object, name: str) -> tuple[int, ...]:
    """`values` as a tuple of counts. A bool is an int in Python, but not a size."""
    if type(values) not in (tuple, list):
        raise CheckpointError(f"a tensor's {name} is a {type(values).__name__}, expected a tuple")
    assert isinstance(values, (tuple, list))
    if len(values) > MAX_DIMENSIONS:
        raise CheckpointError(f"a tensor has {len(values)} dimensions, at most {MAX_DIMENSIONS} are read")
    for value in values:
        if type(value) is not int or not 0 <= value < _LARGEST:
            raise CheckpointError(f"a tensor's {name} holds {shown(value)}, expected a count of 0 or more")
    return tuple(values)


def _geometry(size: object, stride: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape, strides = _counts(size, "size"), _counts(stride, "stride")
    if len(shape) != len(strides):
        raise CheckpointError(f"a tensor has {len(shape)} sizes and {len(strides)} strides")
    if math.prod(n for n in shape if n) * _WIDEST >= _LARGEST:
        raise CheckpointError(f"a tensor claims the impossible shape {list(shape)}")
    return shape, strides


def meta_layout(dtype: str, size: object, stride: object) -> Layout:
    """A tensor of PyTorch's meta device, without values; arguments as of `checked_layout`."""
    shape, strides = _geometry(size, stride)
    return Layout(None, dtype, 0, shape, strides)


def checked_layout(
    storage: object, dtype: str | None, offset: object, size: object, stride: object
) -> Layout:
    """The layout of a tensor over a storage, every element of it inside the storage.

    Parameters
    ----------
    storage : Storage
        The bytes that the tensor is a view of.
    dtype : str or None
        The element type; None for the storage's.
    offset, size, stride : int, tuple of int, tuple of int
        In elements, as in the file: not trusted.

    Raises
    ------
    CheckpointError
        A value is not a count, or an element is outside the storage.
    """
    if not isinstance(storage, Storage):
        raise CheckpointError(f"a tensor is built over a {type(storage).__name__}, expected a storage")
    shape, strides = _geometry(size, stride)
    if type(offset) is not int or not 0 <= offset < _LARGEST:
        raise CheckpointError(f"a tensor's offset is {shown(offset)}, expected a count of 0 or more")
    name = dtype or storage.dtype
    itemsize = DTYPES[name].itemsize
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and (last + 1) * itemsize > storage.nbytes:
        raise CheckpointError(
            f"a tensor of shape {list(shape)}, strides {list(strides)}, offset {offset} reaches"
            f" element {last} of storage {shown(storage.key)!r}, which has {storage.nbytes // itemsize}"
        )
    return Layout(storage, name, offset, shape, strides)


class Tensor:
    """One tensor of a checkpoint: described now, its values read when `numpy()` is called.

    Attributes
    ----------
    name : str
        The dotted name.
    shape : tuple of int
        Its shape, in the file's axis order.
    dtype : str
        Its element type as stored: "float16", "bfloat16", "float32", "int64", "bool", ...
    nbytes : int
        The bytes of its elements, each counted as often as the shape repeats it (strides of 0).
    fault : str
        The reason why its values cannot be read; "" if they can.
    """

    __slots__ = (
        *("_big_endian", "_conjugate", "_file", "_negative", "_start", "_strides"),
        *("dtype", "fault", "name", "nbytes", "shape"),
    )

    def __init__(self, name: str, layout: Layout, file: MappedFile, *, big_endian: bool = False) -> None:
        itemsize = DTYPES[layout.dtype].itemsize
        self.name = name
        self.dtype = layout.dtype
        self.shape = layout.shape
        self.nbytes = math.prod(layout.shape) * itemsize
        self._strides = tuple(step * itemsize for step in layout.strides)
        self._start = layout.storage.start + layout.offset * itemsize if layout.storage else -1
        self._negative, self._conjugate = layout.negative, layout.conjugate
        self._file = file
        self._big_endian = big_endian
        self.fault = ""
        if layout.storage is None:
            self.fault = "is a tensor of the meta device, saved without values"
        elif not DTYPES[layout.dtype].stored:
            self.fault = f"has the element type {layout.dtype}, which is not supported"
        elif self.nbytes > file.size:
            # Strides of 0 make a view of any size over one element: harmless as a view, fatal to copy.
            self.fault = (
                f"claims {self.nbytes} bytes by repeating elements, more than the whole file's {file.size}"
            )

    def __repr__(self) -> str:
        return f"Tensor({shown(self.name)!r}, {self.dtype}, {list(self.shape)})"

    def numpy(self) -> np.ndarray:
        """The values, as a read-only array of `shape`.

        A view into the mapped file, without a copy, if NumPy has the type and the file the alignment.
        bfloat16 is widened to float32 (exact); bool, negated, conjugated and misaligned elements are copied.

        Raises
        ------
        CheckpointError
            The checkpoint is closed, or the tensor has a `fault`: float8, without values (meta device), or larger than
            the file by repeating elements.
        """
        if self.fault:
            raise CheckpointError(
                self.fault, path=self._file.path, where=shown(self.name), advice=UNREADABLE_ADVICE
            )
        stored = np.dtype((">" if self._big_endian else "<") + DTYPES[self.dtype].stored)
        source = self._file.bytes
        if 0 in self.shape:
            array = np.zeros(self.shape, stored)
        else:
            # NumPy checks once more that the view lies inside the map.
            array = np.ndarray(self.shape, stored, source, self._start, self._strides)
        if self.dtype == "bfloat16":
            # A bfloat16 is the upper half of the float32 of the same value.
            wide = array.astype(np.uint32)
            wide <<= 16
            array = wide.view(np.float32)
        elif self.dtype == "bool":
            # The file may hold any byte, NumPy's bool only 0 and 1.
            array = np.asarray(array != 0)
        elif not array.flags.aligned or not stored.isnative:
            array = array.astype(stored.newbyteorder("="))
        if self._conjugate:
            array = np.asarray(np.conjugate(array))
        if self._negative:
            array = np.asarray(np.negative(array))
        array.flags.writeable = False
        return array


class ArrayTensor(Tensor):
    """A tensor whose values are in memory: an array of floats or integers, which is not copied."""

    __slots__ = ("_array",)

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.shape, self.dtype = name, tuple(array.shape), str(array.dtype)
        self.nbytes, self.fault = int(array.nbytes), ""
        self._array = array.view()
        self._array.flags.writeable = False

    def numpy(self) -> np.ndarray:
        """The values, as a read-only array of `shape`."""
        return self._array
