"""A file of torch.save (zip, PyTorch 1.6 and later) in; tensors that are views of the mapped file out."""

from __future__ import annotations

from ..errors import CheckpointError, shown
from ..limits import Budget
from ..mapped import MappedFile
from ..pickles.flatten import Flat
from ..pickles.storages import StorageTable
from ..pickles.unpickle import Unpickler
from ..tensor import Storage, Tensor
from .stored_zip import Entry, read_directory

SIGNATURE = b"PK\x03\x04"


def read_zip(file: MappedFile) -> tuple[dict[str, Tensor], Flat]:
    """Read `file`'s directory and pickle; the tensors' bytes are not read.

    Raises
    ------
    CheckpointError
        torch.save does not write such an archive, or its parts contradict each other.
    """
    budget = Budget(file.size)
    entries = read_directory(file.bytes, file.size, budget)
    pickle = entries["data.pkl"]
    storages = StorageTable(fields=5)

    def find(identity: object) -> Storage:
        storage = storages.find(identity)
        if storage.start < 0:
            _place(storage, entries)
        return storage

    end = pickle.start + pickle.size
    machine = Unpickler(file.bytes, pickle.start, end, where="data.pkl", budget=budget, persistent=find)
    root = machine.load()
    if machine.position != end:
        raise CheckpointError(f"{end - machine.position} bytes follow the pickle", where="data.pkl")
    flat = Flat(root, budget)
    big_endian = _big_endian(file, entries)
    tensors = {
        name: Tensor(name, layout, file, big_endian=big_endian) for name, layout in flat.tensors.items()
    }
    return tensors, flat


def _place(storage: Storage, entries: dict[str, Entry]) -> None:
    entry = entries.get("data/" + storage.key)
    if entry is None:
        raise CheckpointError(
            f"the pickle mentions storage {shown(storage.key)!r}, which is not in the archive",
            advice="The file is damaged: download or copy it again",
        )
    if entry.size != storage.nbytes:
        raise CheckpointError(
            f"storage {shown(storage.key)!r} has {entry.size} bytes, {storage.nbytes} according to the pickle",
            advice="The file is damaged: download or copy it again",
        )
    storage.start = entry.start


def _big_endian(file: MappedFile, entries: dict[str, Entry]) -> bool:
    entry = entries.get("byteorder")
    if entry is None:
        return False  # files before PyTorch 2.1, which are little-endian
    order = file.bytes[entry.start : entry.start + min(entry.size, 16)]
    if order not in (b"little", b"big"):
        raise CheckpointError(f"is {shown(order)!r}, expected little or big", where="entry byteorder")
    return order == b"big"
