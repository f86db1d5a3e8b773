"""How much a file's structure may cost before it is refused: memory, steps, nesting.

A pickle byte can ask for a hundred bytes of Python objects, and a reference for a copy of all that came
before. So each reader pays for what it builds out of one `Budget`, and the bill is bounded by the file's own
size.
"""

from __future__ import annotations

from .errors import CheckpointError

BASE_BYTES = 16 << 20
"""What any file's structure may take, however small the file."""

MAX_STEPS = 2_000_000
"""Pickle opcodes in one file. A tensor takes about 40: this is 50,000 tensors, in about a second."""

MAX_ENTRIES = 100_000
"""Names that flattening may visit: a list that holds one list many times multiplies without growing."""

MAX_STORAGES = 40_000
"""Entries of an archive, or tensors of a safetensors header."""

MAX_DEPTH = 32
"""Dicts within dicts. Training checkpoints use about six."""

MAX_DIMENSIONS = 32
"""Axes of one tensor: what every NumPy can hold."""


class Budget:
    """The bytes of Python objects that reading one file may still build, and the steps it may still take."""

    __slots__ = ("bytes_left", "bytes_total", "steps_left")

    def __init__(self, file_bytes: int) -> None:
        self.bytes_total = BASE_BYTES + file_bytes
        self.bytes_left = self.bytes_total
        self.steps_left = MAX_STEPS

    def step(self, count: int) -> None:
        """Spend `count` steps, or raise CheckpointError when they are not left."""
        self.steps_left -= count
        if self.steps_left < 0:
            raise CheckpointError(
                f"its pickle takes more than {MAX_STEPS} steps, far more than a checkpoint needs",
                advice="Treat the file as damaged or hostile",
            )

    def take(self, cost: int) -> None:
        """Pay `cost` bytes, or raise CheckpointError when they are not left."""
        self.bytes_left -= cost
        if self.bytes_left < 0:
            raise CheckpointError(
                f"its structure would take more than {self.bytes_total >> 20} MiB to build,"
                " far more than a file of this size needs",
                advice="Treat the file as damaged or hostile",
            )
