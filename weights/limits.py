"""Limits on the cost of a file's structure: memory, copies, nesting.

One byte of a pickle can create a hundred bytes of Python objects, and one reference can copy everything before it. So
each reader pays for the objects that it builds from one `Budget`, whose size is proportional to the file's. Skipped
values (long lists of plain values, long texts, arrays) are not built, and their cost is refunded.
"""

from __future__ import annotations

from .errors import CheckpointError

BASE_BYTES = 32 << 20
"""Bytes that the structure of any file may take, however small the file."""

MAX_COPIES = 2_000_000
"""Elements that calls may copy out of containers, to which a pickle can refer many times."""

KEPT_VALUES = 256
"""Plain values that are kept of one list (keys and values, of a dict); of a longer one, none."""

KEPT_BYTES = 14 << 10
"""Bytes that a plain container and its contents may take; of a larger one, the containers in it are not kept. A
thousand, the most that a pickle puts into one container at once, take less than `BASE_BYTES`."""

LONGEST_TEXT = 4096
"""Bytes of the longest string that is read. A longer one is a log, or an array as text."""

MAX_ENTRIES = 100_000
"""Names that flattening may visit: lists of references to one list multiply names without taking memory."""

MAX_STORAGES = 60_000
"""Entries of an archive, or tensors of a safetensors header."""

MAX_DEPTH = 32
"""Dicts within dicts. Training checkpoints use about six."""

MAX_DIMENSIONS = 32
"""Axes of one tensor: every NumPy supports as many."""

SAVE_ALONE = "If the file is whole, save the weights alone: torch.save(model.state_dict(), path)"


class Budget:
    """The bytes of Python objects that reading one file may still take, and the copies that it may still make."""

    __slots__ = ("bytes_left", "bytes_total", "copies_left")

    def __init__(self, file_bytes: int) -> None:
        self.bytes_total = BASE_BYTES + 2 * file_bytes
        self.bytes_left = self.bytes_total
        self.copies_left = MAX_COPIES

    def copy(self, count: int) -> None:
        """Pay for `count` copies. Raises CheckpointError if fewer are left."""
        self.copies_left -= count
        if self.copies_left < 0:
            raise CheckpointError(
                f"its pickle copies more than {MAX_COPIES} values, far more than a checkpoint needs",
                advice=SAVE_ALONE,
            )

    def take(self, cost: int) -> None:
        """Pay for `cost` bytes. Raises CheckpointError if fewer are left."""
        self.bytes_left -= cost
        if self.bytes_left < 0:
            raise CheckpointError(
                f"its structure would take more than {self.bytes_total >> 20} MiB to build,"
                " far more than a file of this size needs",
                advice=SAVE_ALONE,
            )
