"""A file of torch.save before 1.6 (or with the old serialisation) in; tensors that are views of the map out.

Five pickles in a row (magic number, protocol, the machine's properties, the object, the storages' keys); then
for each key an 8-byte count of elements and the elements.
"""

from __future__ import annotations

import struct

from ..dtypes import DTYPES
from ..errors import CheckpointError, shown
from ..limits import Budget
from ..mapped import MappedFile
from ..pickles.flatten import Flat
from ..pickles.stand_ins import Global
from ..pickles.storages import StorageTable
from ..pickles.unpickle import Unpickler
from ..tensor import Tensor

MAGIC = 0x1950A86A20F9469CFC6C
MAGIC_BYTES = MAGIC.to_bytes(10, "little")
PROTOCOL = 1001

_COUNT = struct.Struct("<q")
_CUT_SHORT = "The file is cut short or damaged: download or copy it again"


def read_legacy(file: MappedFile) -> tuple[dict[str, Tensor], Flat]:
    """Read `file`'s pickles and the places of its storages; the tensors' bytes are not read.

    Raises
    ------
    CheckpointError
        torch.save does not write such a file, or its parts contradict each other.
    """
    budget = Budget(file.size)
    storages = StorageTable(fields=6)
    machine = Unpickler(file.bytes, 0, file.size, where="header", budget=budget, whole=True)
    magic, protocol, system = machine.load(), machine.load(), machine.load()
    if type(magic) is not int or magic != MAGIC or type(protocol) is not int or protocol != PROTOCOL:
        raise CheckpointError("has a magic number or protocol that torch.save does not write", where="header")
    if type(system) is not dict or system.get("little_endian") is not True:
        raise CheckpointError(
            "was written on a big-endian machine",
            where="header",
            advice="Save it again with PyTorch 2.1 or later",
        )

    def find(identity: object) -> object:
        # A layer's class comes with its source text, which is ignored: ("module", class, file, source).
        if type(identity) is tuple and len(identity) == 4 and identity[0] == "module":
            kind = identity[1]
            if isinstance(kind, Global) and kind.call is None:
                return kind
        return storages.find(identity)

    machine.where, machine.persistent, machine.whole = "the object's pickle", find, False
    root = machine.load()
    machine.where, machine.persistent, machine.whole = "the list of storages", None, True
    keys = machine.load()
    _place(file, machine.position, keys, storages)
    flat = Flat(root, budget)
    return {name: Tensor(name, layout, file) for name, layout in flat.tensors.items()}, flat


def _place(file: MappedFile, position: int, keys: object, storages: StorageTable) -> None:
    """Walk over the storages' bytes after the pickles, and set the place of each."""
    if type(keys) is not list:
        raise CheckpointError("is not a list", where="the list of storages", advice=_CUT_SHORT)
    waiting = dict(storages.by_key)
    for key in keys:
        storage = waiting.pop(key, None) if type(key) is str else None
        if storage is None:
            raise CheckpointError(
                f"names storage {shown(key)!r} twice, or without a tensor that uses it",
                where="the list of storages",
                advice=_CUT_SHORT,
            )
        where = f"storage {shown(key)!r} at byte {position}"
        if position + _COUNT.size > file.size:
            raise CheckpointError("begins past the end of the file", where=where, advice=_CUT_SHORT)
        (count,) = _COUNT.unpack_from(file.bytes, position)
        expected = storage.nbytes // DTYPES[storage.dtype].itemsize
        if count != expected:
            raise CheckpointError(
                f"has {count} elements, {expected} according to the pickle", where=where, advice=_CUT_SHORT
            )
        storage.start = position + _COUNT.size
        position = storage.start + storage.nbytes
        if position > file.size:
            raise CheckpointError(
                f"needs {storage.nbytes} bytes, {file.size - storage.start} are left",
                where=where,
                advice=_CUT_SHORT,
            )
    if waiting:
        missing = shown(next(iter(waiting)))
        raise CheckpointError(
            f"lacks storage {missing!r}, which a tensor uses", where="the list of storages", advice=_CUT_SHORT
        )
    if position != file.size:
        raise CheckpointError(
            f"{file.size - position} bytes follow the last storage",
            where=f"byte {position}",
            advice="The file is damaged, or is two files in one: download it again",
        )
    storages.place_windows()
