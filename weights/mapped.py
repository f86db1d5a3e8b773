"""A regular file in, its bytes as a read-only memory map out."""

from __future__ import annotations

import errno
import mmap
import os
import stat

from .errors import CheckpointError


class MappedFile:
    """A file's bytes, mapped read-only; untouched pages are never read from the disk.

    The map is shared with the file: shortening the file in place while it is open invalidates the map. Replace files
    (as `write_safetensors` does) instead of writing over them.

    Raises CheckpointError: the path is not a regular file, is empty, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            # Checked before opening: opening a pipe would wait for its writer for ever.
            kind = os.stat(self.path)
            if not stat.S_ISREG(kind.st_mode):
                problem = "is a folder" if stat.S_ISDIR(kind.st_mode) else "is not a regular file"
                raise CheckpointError(problem, path=self.path, advice="Give the path of one checkpoint file")
            with open(self.path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise CheckpointError("is empty", path=self.path, advice="Download or copy it again")
                self.map: mmap.mmap | None = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except OSError as error:
            if error.errno == errno.ENOMEM:  # the machine's fault, not the file's
                raise
            raise CheckpointError(f"cannot be opened: {error.strerror or error}", path=self.path) from error

    @property
    def bytes(self) -> mmap.mmap:
        """The map. Raises CheckpointError after `close()`."""
        if self.map is None:
            raise CheckpointError(
                "is closed", path=self.path, advice="Read tensors before the checkpoint is closed"
            )
        return self.map

    def release(self) -> None:
        """Free the memory that reading took. Pages are read again on access, also through arrays handed out before."""
        if self.map is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Drop the map; arrays handed out before keep it alive until they are gone.

        `mmap.close` would unmap it under those arrays, since NumPy does not register an array with the map. A dropped
        map is unmapped with its last reference, and every array holds one.
        """
        self.map = None
