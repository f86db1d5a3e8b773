"""A folder and a count in, painted landscapes out: memory-mapped labels, pictures and styles, painted once."""

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from .canvas import STYLE_SIZE
from .landscapes import landscape

ROWS, COLUMNS = 256, 512
UNSEEN = 1_000_000  # seeds from here on are never trained on


def dataset(folder, count, *, workers=2):
    """Paint the landscapes of the seeds 0..count-1 into ``folder``, unless they are there.

    Returns
    -------
    labels : uint8 [count, 256, 512]
    pictures : uint8 [count, 256, 512, 3]
    styles : float32 [count, 16]
    """
    folder = Path(folder) / f"landscapes-{count}"
    shapes = {
        "labels": (count, ROWS, COLUMNS),
        "pictures": (count, ROWS, COLUMNS, 3),
        "styles": (count, STYLE_SIZE),
    }
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        arrays = [
            np.lib.format.open_memmap(
                folder / f"{name}.npy", "w+", np.float32 if name == "styles" else np.uint8, shape
            )
            for name, shape in shapes.items()
        ]
        with ProcessPoolExecutor(workers) as pool:
            for i, painted in enumerate(pool.map(landscape, range(count), chunksize=8)):
                for array, value in zip(arrays, painted, strict=True):
                    array[i] = value
        for array in arrays:
            array.flush()
        (folder / "complete").touch()
    return tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes)


if __name__ == "__main__":
    dataset(sys.argv[1], int(sys.argv[2]))
