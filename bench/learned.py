"""Distances by trained networks, of packages that are optional: LPIPS of two images, FID of two folders of images.

`lpips` (Zhang et al., "The Unreasonable Effectiveness of Deep Features", 2018) and `clean-fid` (Parmar et al., "On
Aliased Resizing", 2022), as SIGE measures. Both load PyTorch, and download the weights of their networks once.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sparsegen.errors import InputError

NETS = ("alex", "vgg", "squeeze")
"""Networks that LPIPS compares features of; SIGE takes "alex"."""
LPIPS_LEAST = 64
"""Pixels of a side: of smaller images the last features would have no pixel."""

BROKEN = (ImportError, RuntimeError)
"""Errors of importing a package; RuntimeError: a torchvision that is not built for the installed PyTorch."""


def check_lpips(net: str) -> None:
    """Raises InputError if LPIPS cannot be computed here."""
    _lpips(net)


def lpips(a: np.ndarray, b: np.ndarray, net: str, where: np.ndarray | None = None) -> float:
    """LPIPS of two images uint8 `[H, W, 3]`; `where` (bool `[H, W]`): the mean of its map over these pixels.

    Raises
    ------
    InputError
        The package is not installed, its weights cannot be had, or the images are smaller than `LPIPS_LEAST`.
    """
    import torch

    network = _lpips(net)
    if min(a.shape[:2]) < LPIPS_LEAST:
        size = "×".join(map(str, a.shape[:2]))
        raise InputError(f"LPIPS of images of {size}: expected {LPIPS_LEAST} pixels a side; omit --lpips")
    tensors = [
        torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None] for image in (a, b)
    ]
    network.spatial = where is not None
    with torch.no_grad():
        found = network(*tensors)[0, 0].numpy()
    return float(found.mean() if where is None else found[where].mean())


@lru_cache
def _lpips(net: str) -> Any:
    try:
        import lpips as package
    except BROKEN as error:
        raise InputError(
            f"--lpips: {error}; install lpips, and the torchvision of this PyTorch, or omit it"
        ) from None
    with _weights("LPIPS", f"the weights of {net}, which torchvision downloads"):
        return package.LPIPS(net=net, verbose=False)


def check_fid() -> None:
    """Raises InputError if FID cannot be computed here."""
    _inception()


def fid(folder: Path, other: Path) -> float:
    """The Fréchet distance between the images of two folders.

    Raises
    ------
    InputError
        The package is not installed, its weights cannot be had, or a folder has fewer than two images.
    """
    network = _inception()
    from cleanfid import fid as package

    for each in (folder, other):
        if len(list(each.glob("*.png"))) < 2:
            raise InputError(f"--fid: {each} has fewer than two PNGs, of which there is no covariance")
    options = {"custom_feat_extractor": network, "num_workers": 0, "device": "cpu", "verbose": False}
    return float(package.compute_fid(str(folder), str(other), **options))


@lru_cache
def _inception() -> Any:
    try:
        from cleanfid import features
    except BROKEN as error:
        raise InputError(
            f"--fid: {error}; install clean-fid, and the torchvision of this PyTorch, or omit it"
        ) from None
    with _weights("FID", "the weights of Inception"):
        return features.build_feature_extractor("clean", "cpu", use_dataparallel=False)


@contextlib.contextmanager
def _weights(what: str, which: str) -> Iterator[None]:
    """Errors of a package that loads its network become one line; what it prints is left out."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except (OSError, RuntimeError, AttributeError) as error:
        option = f"--{what.lower()}"
        raise InputError(f"{option}: cannot get {which}: {error}; go online once, or omit it") from None
