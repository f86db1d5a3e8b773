"""A path in; a `Checkpoint` out: tensors by name, read on demand, the same for every format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np

from .dtypes import FLOATING
from .errors import CheckpointError, listed, shown
from .formats.diffusers_folder import find_model, find_part
from .formats.model_folder import ModelFolder
from .formats.not_checkpoints import refuse_unpacked, unknown_file
from .formats.pytorch_legacy import MAGIC_BYTES, read_legacy
from .formats.pytorch_zip import SIGNATURE, read_zip
from .formats.safetensors_file import header_bytes, read_safetensors
from .mapped import MappedFile
from .pickles.flatten import Flat, Scalar
from .tensor import ArrayTensor, Tensor
from .which import Chosen, Which

WRAPPERS = frozenset({"module", "_orig_mod"})
"""Segments that DataParallel and torch.compile insert into names, before a model or one of its blocks."""

_HEAD = 1 << 16
_NOT_READ = "Download or copy it again; if that does not help, save its state dict as safetensors"
"""Bytes at the start of a file by which one that no reader takes is described."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file, by dotted name; their values are read from the mapped file on demand.

    For a diffusers folder: the tensors of its weights file or of all its shards, and its configuration.

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
        Values beside the tensors that were skipped: objects (by class), long lists, long texts.
    stand_ins : mapping of str to str
        The objects among them: dotted name -> class.
    prefix : str
        The prefix that `under` removed from the names of the tensors.
    config : mapping of str to any, optional
        A diffusers folder's config.json as parsed; the types of its values are not checked.
    schedule : str, optional
        The noise schedule that a diffusion model was trained on, if the file has it: linear, scaled_linear, cosine.
    chosen : Chosen, optional
        The choice among a diffusers folder's weights, if it holds averaged ones.
    """

    path: str
    format: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Scalar]
    placeholders: tuple[str, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    prefix: str = ""
    config: Mapping[str, Any] | None = None
    schedule: str | None = None
    chosen: Chosen | None = None
    _files: tuple[MappedFile, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def of_arrays(
        cls, name: str, arrays: Mapping[str, np.ndarray], *, config: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """A checkpoint of arrays in memory, such as a module's state; `name` stands for its path in messages."""
        tensors = {key: ArrayTensor(key, array) for key, array in arrays.items()}
        return cls(name, "memory", MappingProxyType(tensors), MappingProxyType({}), config=config)

    def keys_under(self, prefix: str) -> dict[str, str]:
        """Name -> key of the tensors whose keys begin with `prefix`.

        The name is the rest of the key without the segments `module` (DataParallel) and `_orig_mod` (torch.compile).

        Raises
        ------
        CheckpointError
            Two keys have the same name.
        """
        keys: dict[str, str] = {}
        for key in self.tensors:
            if key.startswith(prefix):
                name = without_wrappers(key[len(prefix) :])
                if keys.setdefault(name, key) != key:
                    raise CheckpointError(
                        f"holds {shown(keys[name])} and {shown(key)}, two keys of one tensor",
                        path=self.path,
                        advice="Save the state dict of the model itself, without DataParallel and torch.compile",
                    )
        return keys

    def under(self, prefix: str) -> Checkpoint:
        """A checkpoint of the tensors whose keys begin with `prefix`, named as by `keys_under`.

        Both share the file: closing either closes both.
        """
        kept = {name: self.tensors[key] for name, key in self.keys_under(prefix).items()}
        return replace(self, tensors=MappingProxyType(kept), prefix=self.prefix + prefix)

    def release(self) -> None:
        """Free the memory that reading took; arrays that were read stay valid, and more may be read."""
        for file in self._files:
            file.release()

    def close(self) -> None:
        """Close the files. Arrays that were read stay valid: each keeps its map alive."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def without_wrappers(name: str) -> str:
    """`name` without its segments `module` and `_orig_mod`."""
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


def read_checkpoint(path: str | os.PathLike[str], *, which: Which | None = None) -> Checkpoint:
    """Open a checkpoint of torch.save (zip or legacy) or safetensors, recognised by its content, not by its name.

    Only the file's structure is read. The file is memory-mapped, and nothing in it is executed.

    Parameters
    ----------
    path : path
        The file, or the folder of a diffusers pipeline or UNet.
    which : {"ema", "model"}, optional
        The weights to read of a folder that holds averaged ones beside the last ones (`unet_ema/` beside `unet/`). If
        not given: the averaged ones. Of a file that holds both, `identify` takes the same choice.

    Returns
    -------
    Checkpoint
        Close it, or use it in a `with` statement.

    Raises
    ------
    CheckpointError
        The file is damaged, hostile or of another kind: the message names the file, the place in it and the fix.
    MemoryError, OSError
        The system has no memory for a sound file (OSError with errno ENOMEM).
    """
    return _guarded(path, lambda: open_checkpoint(path, which=which))


def read_part(path: str | os.PathLike[str], part: str, *, which: Which | None = None) -> Checkpoint:
    """Open one model of a folder that holds several, by the name of its own folder: "vae".

    The arguments and errors are those of `read_checkpoint`; its `path` is the part's.
    """
    own = os.path.join(os.fspath(path), part)
    return _guarded(own, lambda: _open_folder(own, lambda without: find_part(path, part, which, without)))


def _guarded(path: str | os.PathLike[str], read: Callable[[], Checkpoint]) -> Checkpoint:
    try:
        return read()
    except CheckpointError:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
        # No known file gets here. If one does, its owner reads a sentence, not a traceback.
        raise CheckpointError(
            f"is damaged in a way that no check covers ({type(error).__name__})",
            path=os.fspath(path),
            advice="Download or copy it again, and report this file if that does not help",
        ) from error


def open_checkpoint(path: str | os.PathLike[str], *, which: Which | None = None) -> Checkpoint:
    """`read_checkpoint` without its safety net; the fuzz tests call it."""
    if not os.path.isdir(path):
        return _open_file(path)
    return _open_folder(path, lambda without: find_model(path, which, without))


def _open_file(path: str | os.PathLike[str]) -> Checkpoint:
    file = MappedFile(path)
    try:
        return _open(file)
    except BaseException as error:
        file.close()
        if isinstance(error, CheckpointError):
            error.path = error.path or file.path
            error.advice = error.advice or _NOT_READ
        raise


def _open_folder(
    path: str | os.PathLike[str], find: Callable[[Mapping[str, str]], ModelFolder]
) -> Checkpoint:
    """The weights that `find` finds; if averaged ones cannot be read, the next ones, with the reason in `chosen`."""
    without: dict[str, str] = {}
    while True:
        try:
            refuse_unpacked(path)
            found = find(without)
        except CheckpointError as error:
            error.path = error.path or os.fspath(path)
            raise
        try:
            opened = _open_found(path, found)
        except CheckpointError as error:
            if not _has_others(found):
                raise
            reason = error.problem
        else:
            reason = _not_a_unet(opened) if _has_others(found) else ""
            if not reason:
                return opened
            opened.close()
        without[found.place] = reason


def _has_others(found: ModelFolder) -> bool:
    """Whether these weights are an average, with others beside them."""
    return found.chosen is not None and bool(found.chosen.averaged and found.chosen.beside)


def _not_a_unet(checkpoint: Checkpoint) -> str:
    """The reason why weights of a folder cannot be a UNet's; "" if they may be."""
    if not any(without_wrappers(key).endswith("conv_in.weight") for key in checkpoint.tensors):
        return "holds no tensors with the names of a UNet"
    for key, tensor in checkpoint.tensors.items():
        fault = tensor.fault or (
            ""
            if tensor.dtype in FLOATING
            else f"has the element type {tensor.dtype}, expected floating point"
        )
        if fault and key.endswith((".weight", ".bias")):
            return f"{shown(key)} {fault}"
    return ""


def _open_found(path: str | os.PathLike[str], found: ModelFolder) -> Checkpoint:
    shards = _open_all(found.weights)
    try:
        tensors = _joined(found, shards)
    except CheckpointError:
        for shard in shards:
            shard.close()
        raise
    count = f" in {len(shards)} shards" if len(shards) > 1 else ""
    return replace(
        shards[0],
        path=os.fspath(path),
        format=f"diffusers folder, {shards[0].format}{count}",
        tensors=MappingProxyType(tensors),
        metadata=MappingProxyType(
            {name: value for shard in shards for name, value in shard.metadata.items()}
        ),
        placeholders=tuple(dict.fromkeys(name for shard in shards for name in shard.placeholders)),
        stand_ins=MappingProxyType(
            {path: kind for shard in shards for path, kind in shard.stand_ins.items()}
        ),
        config=MappingProxyType(found.config),
        schedule=found.schedule,
        chosen=found.chosen,
        _files=tuple(file for shard in shards for file in shard._files),
    )


def _open_all(paths: Sequence[Path]) -> list[Checkpoint]:
    """Open all files; if one fails, close the others and raise its error."""
    opened: list[Checkpoint] = []
    try:
        for path in paths:
            opened.append(_open_file(path))
    except BaseException:
        for checkpoint in opened:
            checkpoint.close()
        raise
    return opened


def _joined(found: ModelFolder, shards: Sequence[Checkpoint]) -> dict[str, Tensor]:
    """The tensors of all shards. Raises CheckpointError unless each is in the one file that the index names."""
    held = [
        (key, path.name) for path, shard in zip(found.weights, shards, strict=True) for key in shard.tensors
    ]
    if found.index is not None:
        there = set(held)
        lists = {
            "missing": [f"{key} of {name}" for key, name in found.index.items() if (key, name) not in there],
            "not in the index": [f"{key} of {name}" for key, name in held if found.index.get(key) != name],
        }
        faults = [
            f"{fault} ({len(items)}): {listed([shown(item) for item in items], 4)}"
            for fault, items in lists.items()
            if items
        ]
        if faults:
            raise CheckpointError(
                f"its shards do not match their index; {'; '.join(faults)}",
                path=os.path.dirname(found.weights[0]),
                advice="The shards come from different downloads, or are damaged: download all of them again",
            )
    return {key: tensor for shard in shards for key, tensor in shard.tensors.items()}


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
        stand_ins=MappingProxyType(flat.stand_ins if flat else {}),
        _files=(file,),
    )
