"""How much a file's structure may cost before it is refused: memory, copies, nesting.

A pickle byte can ask for a hundred bytes of Python objects, and a reference for a copy of all that came
before. So each reader pays for what it builds out of one `Budget`, and the bill is bounded by the file's own
size. What is skipped (long lists of plain values, long texts, arrays) is not built, and its cost is given back.
"""

from __future__ import annotations

from .errors import CheckpointError

BASE_BYTES = 32 << 20
"""What any file's structure may take, however small the file."""

MAX_COPIES = 2_000_000
"""Elements that calls may copy out of containers, which a pickle can refer to again and again."""

KEPT_VALUES = 256
"""Plain values (keys and values, of a dict) that are kept of one list; of more, none."""

KEPT_BYTES = 14 << 10
"""Bytes that a plain container with all in it may take; of a larger one, the containers in it are not kept. A thousand,
which is as many as a pickle puts into one container at once, take less than `BASE_BYTES`."""

LONGEST_TEXT = 4096
"""Bytes of a string that is read. A longer one is a log, or an array spelled as text."""

MAX_ENTRIES = 100_000
"""Names that flattening may visit: a list that holds one list many times multiplies without growing."""

MAX_STORAGES = 60_000
"""Entries of an archive, or tensors of a safetensors header."""

MAX_DEPTH = 32
"""Dicts within dicts. Training checkpoints use about six."""

MAX_DIMENSIONS = 32
"""Axes of one tensor: what every NumPy can hold."""

SAVE_ALONE = "If the file is whole, save the weights alone: torch.save(model.state_dict(), path)"


class Budget:
    """The bytes of Python objects that reading one file may still build, and the copies it may still make."""

    __slots__ = ("bytes_left", "bytes_total", "copies_left")

    def __init__(self, file_bytes: int) -> None:
        self.bytes_total = BASE_BYTES + 2 * file_bytes
        self.bytes_left = self.bytes_total
        self.copies_left = MAX_COPIES

    def copy(self, count: int) -> None:
        """Spend `count` copies, or raise CheckpointError when they are not left."""
        self.copies_left -= count
        if self.copies_left < 0:
            raise CheckpointError(
                f"its pickle copies more than {MAX_COPIES} values, far more than a checkpoint needs",
                advice=SAVE_ALONE,
            )

    def take(self, cost: int) -> None:
        """Pay `cost` bytes, or raise CheckpointError when they are not left."""
        self.bytes_left -= cost
        if self.bytes_left < 0:
            raise CheckpointError(
                f"its structure would take more than {self.bytes_total >> 20} MiB to build,"
                " far more than a file of this size needs",
                advice=SAVE_ALONE,
            )
