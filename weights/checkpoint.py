"""A path in; a `Checkpoint` out: tensors by name, read when asked for, whatever wrote the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType, TracebackType
from typing import Any

from .diffusers_folder import find_unet
from .errors import CheckpointError
from .flatten import Flat, Scalar
from .mapped import MappedFile
from .not_checkpoints import refuse_unpacked, unknown_file
from .pytorch_legacy import MAGIC_BYTES, read_legacy
from .pytorch_zip import SIGNATURE, read_zip
from .safetensors_file import header_bytes, read_safetensors
from .tensor import Tensor

_HEAD = 1 << 16
"""Bytes that tell what a file is that no reader takes."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file, by dotted name; their numbers are read from the mapped file when asked for.

    Of a diffusers folder, those of its weights file, with the configuration beside it.

    Attributes
    ----------
    path : str
        The file, or the folder.
    format : str
        "pytorch-zip", "pytorch-legacy" or "safetensors"; "diffusers folder, …" of a folder.
    tensors : mapping of str to Tensor
        Nested dicts and lists are flattened: `{"model": {"x": ...}}` is "model.x".
    metadata : mapping of str to str, int, float, bool or None
        Plain values found beside the tensors (short lists and texts alone), or the metadata of a safetensors file.
    placeholders : tuple of str
        What the file holds beside them that was seen, and neither built nor read: objects, by their classes; long
        lists; long texts.
    prefix : str
        What `under` took off the names of the tensors.
    config : mapping of str to any, optional
        A diffusers folder's config.json as parsed: whoever takes a value out of it checks its type.
    schedule : str, optional
        The noise that a diffusion model was trained on (linear, scaled_linear, cosine), where the file says it.
    """

    path: str
    format: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Scalar]
    placeholders: tuple[str, ...] = ()
    prefix: str = ""
    config: Mapping[str, Any] | None = None
    schedule: str | None = None
    _file: MappedFile | None = field(default=None, repr=False, compare=False)

    def under(self, prefix: str) -> Checkpoint:
        """The tensors whose names begin with `prefix`, named without it; the rest is set aside.

        The file stays shared: closing either closes both.
        """
        if not prefix:
            return self
        kept = {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}
        return replace(self, tensors=MappingProxyType(kept), prefix=self.prefix + prefix)

    def release(self) -> None:
        """Let go of the memory that reading took; arrays that were read stay good, and more may be read."""
        if self._file is not None:
            self._file.release()

    def close(self) -> None:
        """Let go of the file. Arrays that were read keep what they look into."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint of torch.save (zip or legacy) or safetensors; its content tells which, not its name.

    Only the file's structure is read; it is memory-mapped, and nothing in it is ever executed.

    Parameters
    ----------
    path : path
        The file, or the folder of a diffusers pipeline or UNet.

    Returns
    -------
    Checkpoint
        To be closed, or used in a `with` statement.

    Raises
    ------
    CheckpointError
        For everything that is wrong with the file: which file, what, where in it, and what to do.
    """
    try:
        return open_checkpoint(path)
    except CheckpointError:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError, MemoryError, RecursionError) as error:
        # No file is known that comes here. Should one exist, its owner sees a sentence and not a traceback.
        raise CheckpointError(
            f"is damaged in a way that no check foresaw ({type(error).__name__})",
            path=os.fspath(path),
            advice="Download or copy it again, and report this file if that does not help",
        ) from error


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """`read_checkpoint` without its net: what the fuzz tests call."""
    if os.path.isdir(path):
        return _open_folder(path)
    file = MappedFile(path)
    try:
        return _open(file)
    except BaseException as error:
        file.close()
        if isinstance(error, CheckpointError) and not error.path:
            error.path = file.path
        raise


def _open_folder(path: str | os.PathLike[str]) -> Checkpoint:
    try:
        refuse_unpacked(path)
        found = find_unet(path)
    except CheckpointError as error:
        error.path = error.path or os.fspath(path)
        raise
    weights = open_checkpoint(found.weights)
    return replace(
        weights,
        path=os.fspath(path),
        format=f"diffusers folder, {weights.format}",
        config=MappingProxyType(found.config),
        schedule=found.schedule,
    )


def _open(file: MappedFile) -> Checkpoint:
    head = file.bytes[:512]
    flat: Flat | None = None
    metadata: Mapping[str, Scalar]
    if head.startswith(SIGNATURE):
        kind = "pytorch-zip"
        tensors, flat = read_zip(file)
    elif head.startswith(b"\x80") and MAGIC_BYTES in head[:32]:
        kind = "pytorch-legacy"
        tensors, flat = read_legacy(file)
    elif header_bytes(file) is not None:
        kind = "safetensors"
        tensors, metadata = read_safetensors(file)
    else:
        raise unknown_file(file.bytes[:_HEAD])
    if flat is not None:
        metadata = flat.values
    return Checkpoint(
        path=file.path,
        format=kind,
        tensors=MappingProxyType(tensors),
        metadata=MappingProxyType(dict(metadata)),
        placeholders=tuple(flat.placeholders) if flat else (),
        _file=file,
    )
