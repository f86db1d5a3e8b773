"""Standard output and error of a command: text comes in and is written, or dropped once a write has failed.

The reader of a pipe may have ended (`sparsegen edit … | head -1`), or the disk behind it may be full. The text is lost
then; the work goes on, and every image is written.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

CLOSED = {errno.EPIPE, errno.EINVAL}
"""The errors of writing to a pipe without a reader (EINVAL on Windows)."""


class Stream:
    """A text stream that writes nothing more once a write has failed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        """The error that ended it; None: it goes on, or its reader has ended."""
        self._ended = False

    def write(self, text: str) -> int:
        if not self._ended:
            try:
                self._stream.write(text)
            except OSError as error:
                self._end(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._ended:
            try:
                self._stream.flush()
            except OSError as error:
                self._end(error)

    def _end(self, error: OSError) -> None:
        self._ended, self.failure = True, None if error.errno in CLOSED else error
        with suppress(OSError, ValueError):  # a stream without a descriptor
            place, nowhere = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            # the buffered text goes to the null device, else Python reports it as the process ends
            os.dup2(nowhere, place)
            os.close(nowhere)
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # the command-line library would write to it, past this object
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[Stream | None]:
    """`sys.stdout` and `sys.stderr` as `Stream`s within the context, which is the first; None: there is none."""
    _fill_descriptors()
    streams = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an encoding without × prints ?, instead of an error
        streams.append(None if stream is None else Stream(stream))
    out, err = streams
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        try:
            yield out
        finally:
            for each in streams:
                if each is not None:
                    each.flush()


def _fill_descriptors() -> None:
    """Open the descriptors that a shell closed (`>&-`), else the next opened file would receive printed text."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
