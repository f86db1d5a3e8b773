"""Small models with random weights, label maps with structure, and what a session holds: no file, no PyTorch."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np

from sparsegen import Session
from sparsegen.backends.interface import ConvWeights, Host
from sparsegen.engine.memory import Memory
from sparsegen.models import GauGAN, GauGANConfig, MobileGauGAN, MobileGauGANConfig

Generator = TypeVar("Generator", GauGAN, MobileGauGAN)

TINY: dict[str, Any] = {
    "ngf": 2,
    "semantic_nc": 4,
    "nhidden": 4,
    "num_upsampling_layers": "normal",
    "edge_channel": False,
}


def random_gaugan(seed: int = 0, **settings: Any) -> GauGAN:
    """A GauGAN whose activations neither vanish nor explode; statistics are far from 0 and 1."""
    return randomised(GauGAN(GauGANConfig(**{**TINY, **settings})), seed)


def random_mobile(seed: int = 0, **settings: Any) -> MobileGauGAN:
    """Likewise a compressed GauGAN, of unequal widths."""
    tiny = {name: TINY[name] for name in ("semantic_nc", "num_upsampling_layers", "edge_channel")}
    return randomised(
        MobileGauGAN(MobileGauGANConfig(**{"channels": "1_2_1_2_2_1_3_4", **tiny, **settings})), seed
    )


def randomised(model: Generator, seed: int) -> Generator:
    """The model with random parameters."""
    rng = np.random.default_rng(seed)
    values = {}
    for path, parameter in model.parameters().items():
        if path.endswith(".var"):
            value = rng.uniform(0.3, 2.0, parameter.shape)
        elif path.endswith(".mean"):
            value = rng.normal(0, 0.5, parameter.shape)
        else:
            fan_in = max(1, int(np.prod(parameter.shape[1:])))
            value = rng.normal(0, fan_in**-0.5, parameter.shape)
        values[path] = value.astype(np.float32)
    model.load_parameters(values)
    return model


def random_labels(
    rng: np.random.Generator, shape: tuple[int, ...] = (32, 64), *, classes: int = 4, block: int = 8
) -> np.ndarray:
    """A label map `[..., H, W]` of constant blocks with a few stray pixels."""
    *samples, height, width = shape
    coarse = rng.integers(0, classes, (*samples, -(-height // block), -(-width // block)))
    labels = coarse.repeat(block, -2).repeat(block, -1)[..., :height, :width]
    stray = rng.random(labels.shape) < 0.01
    return np.where(stray, rng.integers(0, classes, labels.shape), labels)


def repaint(rng: np.random.Generator, labels: np.ndarray, *, classes: int = 4) -> np.ndarray:
    """An edited copy: in one sample a rectangle, a line, stray pixels or a border take another label."""
    edited = labels.copy()
    view = edited if edited.ndim == 2 else edited[rng.integers(len(edited))]
    mask = random_mask(rng, view.shape)
    view[mask] = (view[mask] + rng.integers(1, classes)) % classes
    return edited


def random_mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A mask `[H, W]` that is never empty: a rectangle, a diagonal line, stray pixels or one border."""
    h, w = shape
    mask = np.zeros(shape, bool)
    y, x = rng.integers(0, h), rng.integers(0, w)
    kind = rng.integers(4)
    if kind == 0:
        mask[y : y + rng.integers(1, h // 2), x : x + rng.integers(1, w // 2)] = True
    elif kind == 1:
        steps = np.arange(min(h, w))
        mask[(y + steps) % h, (x + steps) % w] = True
    elif kind == 2:
        mask[rng.integers(0, h, 5), rng.integers(0, w, 5)] = True
    else:
        mask[:, rng.choice([0, w - 1])] = True
    return mask


def values(session: Session) -> dict[str, Host]:
    """What every layer computed, by path, comparable between sessions of any history and any backend.

    A layer that is kept in a codebook comes out as the canvas that it stands for, each pixel's row looked up. Codes
    depend on which windows were seen first: a canvas of them comes out as digests of the windows of labels.
    """
    memory, found = session.memory, {}
    for path, canvas in memory.canvases.items():
        host = memory.backend.download(canvas)
        found[path] = _digests(memory, path)[host] if path in memory.codebooks else host
    for path, codebook in memory.codebooks.items():
        codes = memory.backend.download(memory.canvases[path])[..., 0]
        for layer, table in codebook.tables.items():
            assert codes.max() < table.count, f"{layer} has no row for a code in {path}"
            found[layer] = memory.backend.download(table.rows)[codes]
    return found


def _digests(memory: Memory, path: str) -> Host:
    """A number for each window of a codebook, int64 `[R]`, that depends on the labels in it alone."""
    keys = memory.codebooks[path].window_set.windows.astype(np.int64)
    below = path.rsplit(".", 2)[0]  # windows.labels.3.1.3.1 are windows of windows.labels.3.1
    if below in memory.codebooks:
        keys = np.append(_digests(memory, below), -1)[keys]  # -1, outside the image, stays -1
    return np.array(
        [np.frombuffer(blake2b(key.tobytes(), digest_size=8).digest(), np.int64)[0] for key in keys]
    )


def assert_same(a: dict[str, Host], b: dict[str, Host]) -> None:
    """The same layers with the same bits."""
    assert a.keys() == b.keys()
    different = [path for path in a if not np.array_equal(a[path], b[path])]
    assert not different


def computed_by_tiles(session: Session) -> set[str]:
    """The convolutions in which a pixel's bits depend on its whole tile (Winograd's)."""
    made = session.memory.prepared._made
    return {path for (path, _), w in made.items() if isinstance(w, ConvWeights) and w.whole_tiles}


def current_labels(session: Session) -> np.ndarray:
    """The label map `[N, H, W]` that a GauGAN session has now."""
    return session.memory.canvases["input.labels"][..., 0].copy()


def snapshot(session: Session) -> dict[str, np.ndarray]:
    """A copy of every canvas."""
    return {path: canvas.copy() for path, canvas in session.memory.canvases.items()}


def assert_unchanged(session: Session, before: dict[str, np.ndarray]) -> None:
    """Every canvas is what its snapshot is."""
    assert all(np.array_equal(before[path], canvas) for path, canvas in session.memory.canvases.items())
