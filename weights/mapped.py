"""A regular file in, its bytes as a read-only memory map out."""

from __future__ import annotations

import errno
import mmap
import os
import stat

from .errors import CheckpointError


class MappedFile:
    """A file's bytes, mapped read-only; what is not touched is never read from the disk.

    The map is shared with the file: whoever shortens the file in place while it is open takes the bytes away
    under it. Replace files (as `write_safetensors` does) rather than writing over them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            # Asked before opening: opening a pipe would wait for its writer for ever.
            kind = os.stat(self.path)
            if not stat.S_ISREG(kind.st_mode):
                what = "is a folder" if stat.S_ISDIR(kind.st_mode) else "is not a regular file"
                raise CheckpointError(what, path=self.path, advice="Give the path of one checkpoint file")
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
        """Let go of the memory that reading took; what is looked at again is read again, by arrays handed out too."""
        if self.map is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the map; arrays already handed out keep it alive until they are gone.

        Not by `mmap.close`: NumPy does not tell the map that an array looks into it, so the map would be unmapped
        under the array. Dropped, it goes with its last reference, and every array holds one.
        """
        self.map = None
