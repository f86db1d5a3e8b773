"""A file or folder that is not a checkpoint in; a CheckpointError with its kind and the fix out.

Each is recognised by its first bytes, by the names in its archive, or by the names in its folder.
"""

from __future__ import annotations

import errno
import os
import re
from itertools import islice
from pathlib import Path

from ..errors import CheckpointError, listed, shown

_OTHER_FILE = "Get the model's safetensors or PyTorch file instead"

# First bytes, the problem, the fix.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "Run: git lfs pull"),
    (b"\x1f\x8b", "is compressed with gzip", "Unpack it first"),
    (b"BZh", "is compressed with bzip2", "Unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz", "Unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "Unpack it first"),
    (b"7z\xbc\xaf", "is a 7-Zip archive", "Unpack it first"),
    (b"Rar!", "is a RAR archive", "Unpack it first"),
    (b"GGUF", "is a GGUF file", _OTHER_FILE),
    (b"\x89HDF", "is an HDF5 file", _OTHER_FILE),
    (b"\x93NUMPY", "is a NumPy array", _OTHER_FILE),
    (b"\x89PNG", "is a PNG image", "Give the checkpoint file"),
    (b"\xff\xd8\xff", "is a JPEG image", "Give the checkpoint file"),
    (b"%PDF", "is a PDF document", "Give the checkpoint file"),
    (b"PK\x05\x06", "is an empty zip archive", "Download or copy it again"),
)

_PACK_AGAIN = "or pack its whole folder again without compression: zip -0 -r checkpoint.pth FOLDER"
_SCRIPT_ADVICE = "Save the weights alone: torch.save(torch.jit.load(path).state_dict(), other_path)"

_MOST_LOOKED_AT = 1000
"""Entries of a folder that are looked at."""

_CHECKPOINT = re.compile(
    r"(?:.*/)?[^/]+\.(?:pth|pt|ckpt|bin|safetensors|pkl|th|tar)", re.IGNORECASE | re.DOTALL
)


def unknown_file(head: bytes) -> CheckpointError:
    """The error for a file that no reader takes, by its first bytes."""
    for beginning, problem, advice in _BEGINNINGS:
        if head.startswith(beginning):
            return CheckpointError(problem, advice=advice)
    if head.lstrip()[:1] == b"<":
        return CheckpointError("is a web page", advice="The download failed: open its address in a browser")
    if head.lstrip()[:1] in (b"{", b"["):
        return CheckpointError(
            "is a JSON file, not the weights beside it", advice="Give the weights file, or its folder"
        )
    if head[257:262] == b"ustar":
        return CheckpointError(
            "is a tar archive: a file of PyTorch before 0.4, or a packed folder",
            advice="Unpack it, or load and save it again with PyTorch 0.4 or later",
        )
    if head.startswith(b"\x80"):
        if b"storage" in head and b"torch" in head:
            return CheckpointError(
                "is the data.pkl of a torch.save archive: the tensors' values are in the folder data beside it",
                advice=f"Give the file that it was unpacked from, {_PACK_AGAIN}",
            )
        return CheckpointError(
            "is a plain pickle, without torch.save's magic number",
            advice="Loading a pickle runs code: ask its author for a safetensors file",
        )
    return CheckpointError(
        "is in an unknown format; known: torch.save (zip or legacy), safetensors",
        advice="The file is cut short, damaged or not a checkpoint: download or copy it again",
    )


def refuse_other_archives(names: list[str], method: int) -> None:
    """Raise CheckpointError for a zip archive that torch.save did not write, by the names of its entries.

    Parameters
    ----------
    names : list of str
        Of all entries, with their folders; the names of folders end with a slash.
    method : int
        The compression method of the first compressed entry; 0 if there is none.
    """
    names = [name for name in names if not name.startswith("__MACOSX/")]
    below = {name.partition("/")[2] for name in names}
    files = [name for name in names if not name.endswith("/")]
    if "constants.pkl" in below or any(name.startswith("code/") for name in below):
        raise CheckpointError("is a TorchScript archive: a program with its weights", advice=_SCRIPT_ADVICE)
    if "data.pkl" in below:
        if method:
            raise CheckpointError(
                f"is a torch.save archive that was packed again, compressed (method {method})",
                advice=f"Get the file from its source again, {_PACK_AGAIN}",
            )
        return
    if any(name.rpartition("/")[2] == "data.pkl" for name in files):
        raise CheckpointError(
            "holds an unpacked torch.save archive that is not in the archive's one folder",
            advice=f"Get the file from its source again, {_PACK_AGAIN}",
        )
    if files and all(name.endswith(".npy") for name in files):
        raise CheckpointError("is a NumPy archive (.npz)", advice=_OTHER_FILE)
    if "model.weights.h5" in names:
        raise CheckpointError("is a Keras archive", advice=_OTHER_FILE)
    if "serialized_exported_program.json" in names or "archive_format" in below:
        raise CheckpointError("is an archive of torch.export: a program with its weights", advice=_OTHER_FILE)
    inside = [shown(name) for name in files if _CHECKPOINT.fullmatch(name)]
    if inside:
        raise CheckpointError(
            f"is a zip archive that holds {listed(inside, 3)}", advice="Unpack it, and give the file in it"
        )
    held = f": it holds {listed([shown(name) for name in files], 3)}" if files else ""
    raise CheckpointError(
        f"is a zip archive without data.pkl, so torch.save did not write it{held}",
        advice="If it holds a checkpoint file, unpack it and give that file",
    )


def refuse_unpacked(folder: str | os.PathLike[str]) -> None:
    """Raise CheckpointError for a folder with an unpacked checkpoint, or with a distributed one of PyTorch."""
    try:
        inside = sorted(islice(Path(folder).iterdir(), _MOST_LOOKED_AT))
        folders = [Path(folder), *(path for path in inside if path.is_dir())]
        unpacked = any((path / "data.pkl").is_file() and (path / "data").is_dir() for path in folders)
        sharded = any(path.suffix == ".distcp" for path in inside)
        if any(path.name in ("model_index.json", "config.json") for path in inside):
            return
    except OSError as error:
        if error.errno == errno.ENOMEM:  # the machine's fault, not the folder's
            raise
        raise CheckpointError(f"cannot be opened: {error.strerror or error}") from error
    if unpacked:
        raise CheckpointError(
            "is a torch.save archive that was unpacked into a folder (data.pkl, data)",
            advice=f"Give the file that it was unpacked from, {_PACK_AGAIN}",
        )
    if sharded:
        raise CheckpointError(
            "is a distributed checkpoint of PyTorch (.distcp)",
            advice="Make one file of it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE",
        )
