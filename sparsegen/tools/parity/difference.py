"""Two arrays of one layer come in, how far they differ and where comes out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsegen.backends.interface import TILE, Host


@dataclass(frozen=True)
class Difference:
    """How far a layer's values lie from the reference's."""

    largest: float
    """The largest |ours - theirs|."""
    mean: float
    """The mean of |ours - theirs|."""
    relative: float
    """`largest`, as a share of the largest |theirs|."""
    cosine: float
    """The cosine of the angle between both, as vectors: 1 for equal directions."""
    worst: tuple[int, ...]
    """The place of `largest`: sample, row, column, channel; of rows sample, channel."""
    ours: float
    theirs: float
    """The two values there."""

    @property
    def tile(self) -> tuple[int, ...]:
        """The tile of the worst pixel: sample, tile row, tile column; () of rows."""
        return () if len(self.worst) < 4 else (self.worst[0], self.worst[1] // TILE, self.worst[2] // TILE)

    @classmethod
    def of(cls, ours: Host, theirs: Host, where: Host | None = None) -> Difference:
        """The difference of two arrays of one shape; `where`, bool `[N, H, W]`, takes some pixels alone.

        A value that is not finite in one of them alone differs by infinity.
        """
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
        with np.errstate(invalid="ignore"):
            off = np.abs(a - b)
        off[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
        off[np.isnan(off)] = np.inf
        taken = slice(None) if where is None else where
        if where is not None:
            off[~where] = 0.0
        if not off[taken].size:
            return cls(0.0, 0.0, 0.0, 1.0, (0,) * ours.ndim, 0.0, 0.0)
        worst = tuple(map(int, np.unravel_index(int(off.argmax()), off.shape)))
        a, b = a[taken].reshape(-1), b[taken].reshape(-1)
        lengths = float(np.sqrt(a @ a) * np.sqrt(b @ b))
        largest = float(off[worst])
        return cls(
            largest,
            float(off[taken].mean()),
            largest / scale if scale else (0.0 if largest == 0 else np.inf),
            float(a @ b) / lengths if lengths else float(not (a.any() or b.any())),
            worst,
            float(ours[worst]),
            float(theirs[worst]),
        )


def at_size(mask: Host, height: int, width: int) -> Host:
    """A mask bool `[N, H, W]` at another size: a pixel is True where it covers, or lies in, a True one."""
    for axis, size in ((1, height), (2, width)):
        length = mask.shape[axis]
        if size < length:
            mask = np.logical_or.reduceat(mask, np.arange(size) * length // size, axis)
        elif size > length:
            mask = mask.take(np.arange(size) * length // size, axis)
    return mask
