"""Persistent ids of a torch pickle in; storages of known type and size out, one for each key."""

from __future__ import annotations

from ..dtypes import DTYPES
from ..errors import CheckpointError, shown
from ..tensor import Storage
from .stand_ins import Global

_LARGEST = 1 << 62


class StorageTable:
    """The storages that a pickle mentions, by key.

    A storage's id is `("storage", type, key, location, numel)`; the legacy format adds a sixth field, which is None or,
    in files of early versions, a window `(key, offset, numel)` into the storage.
    """

    def __init__(self, fields: int) -> None:
        self.fields = fields
        self.by_key: dict[str, Storage] = {}
        self.windows: dict[tuple[str, str], tuple[Storage, Storage, int]] = {}

    def find(self, identity: object) -> Storage:
        """The storage that a persistent id names. Raises CheckpointError if it does not name one."""
        if type(identity) is not tuple or not identity or identity[0] != "storage":
            kind = identity[0] if type(identity) is tuple and identity else identity
            if kind == "module":
                raise CheckpointError(
                    "the file holds a whole model with its code",
                    advice="Load it where its code is, and save model.state_dict() instead",
                )
            raise CheckpointError(f"a persistent id is a {shown(kind)}, expected a storage")
        if len(identity) not in (5, self.fields):
            raise CheckpointError(f"a storage's id has {len(identity)} fields, expected {self.fields}")
        kind, key, location, numel = identity[1:5]
        if type(kind) is not Global or kind.storage is None:
            raise CheckpointError("a storage's type is not a storage class")
        if type(location) is not str or location == "meta":
            raise CheckpointError(
                f"a storage is on the device {shown(location)}, expected one with values, such as cpu or cuda:0"
            )
        if type(key) is int:
            key = str(key)
        if type(key) is not str or type(numel) is not int or not 0 <= numel < _LARGEST:
            raise CheckpointError("a storage's key is not a string, or its size is not a count")
        nbytes = numel * DTYPES[kind.storage].itemsize
        known = self.by_key.get(key)
        if known is None:
            known = self.by_key[key] = Storage(kind.storage, key, nbytes)
        elif known.nbytes != nbytes or known.dtype != kind.storage:
            raise CheckpointError(
                f"storage {shown(key)!r} is mentioned as {known.nbytes} bytes of {known.dtype},"
                f" then as {nbytes} of {kind.storage}"
            )
        window = identity[5] if len(identity) == 6 else None
        return known if window is None else self._window(known, window)

    def _window(self, root: Storage, window: object) -> Storage:
        if type(window) is not tuple or len(window) != 3 or type(window[0]) not in (str, int):
            raise CheckpointError("a storage's window is not a (key, offset, size)")
        name, offset, numel = window
        if type(offset) is not int or type(numel) is not int or offset < 0 or numel < 0:
            raise CheckpointError("a storage's window has an offset or size that is not a count")
        itemsize = DTYPES[root.dtype].itemsize
        if (offset + numel) * itemsize > root.nbytes:
            raise CheckpointError(f"a window into storage {shown(root.key)!r} reaches past its end")
        known = self.windows.get((root.key, str(name)))
        if known is None:
            part = Storage(root.dtype, root.key, numel * itemsize)
            known = self.windows[root.key, str(name)] = (part, root, offset * itemsize)
        elif (known[0].nbytes, known[2]) != (numel * itemsize, offset * itemsize):
            raise CheckpointError(f"a window into storage {shown(root.key)!r} is described in two ways")
        return known[0]

    def place_windows(self) -> None:
        """Set the place of each window in the file; the storages have theirs."""
        for part, root, offset in self.windows.values():
            part.start = root.start + offset
