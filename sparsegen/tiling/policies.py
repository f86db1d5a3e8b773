"""Policies: the difference mask of an edit comes in, each layer's active tiles come out.

A policy is a setting (`Paper`, `Exact`). For one edit it makes a `Plan`, which gives each layer of the run its active
tiles. The dense run has a plan too, `Everything`: a dense and a sparse run differ in their plans alone.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sparsegen.backends.interface import TILE, Host

from ..checks import in_range, whole_number
from ..errors import InputError, ShapeError
from .masks import dilated, halvings, pyramid
from .tiles import TileSet, union
from .windows import Read, Window, grow


class Plan(ABC):
    """The active tiles of every layer's output in one run."""

    tau: float | None = None
    """A recomputed tile that moved by at most `tau` does not spread and keeps its old values; None: all spread."""
    whole_tiles: bool = False
    """Whether every pixel of a recomputed tile counts as changed, in layers that compute a tile as a whole."""
    statistics: float = 0.0
    """The weight of fresh moments in norms that measure them, against the original's, in a small edit; it grows to 1
    with the share of a canvas that is repainted. 0: moments are not followed.
    """

    whole: tuple[str, ...] = ()
    """Names of layers that compute all tiles of the edited samples if they compute any, with all layers below them."""
    keyed: bool = False
    """Whether the active tiles of an output depend on the difference mask and on which of its inputs changed alone.
    `active(reads, shape)` is then `tiles(key(reads, shape))`: edits of other masks share the keys of their layers.
    """

    def computes_whole(self, path: str) -> bool:
        """Whether the layer at `path` is one of `whole`."""
        return bool(self.whole) and any(f".{name}." in f".{path}." for name in self.whole)

    @abstractmethod
    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        """The active tiles of an output of `shape` (N, H, W). In an edit, a layer without changed inputs has none."""

    def key(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> Hashable:
        """The key of the active tiles of an output, in every plan of this class; None: no input changed.

        It depends on `shape`, on the sizes and windows of `reads`, and on which of them have changed, alone.
        """
        raise NotImplementedError(f"{type(self).__name__} is not keyed")

    def tiles(self, key: Hashable) -> TileSet:
        """The active tiles of a key that is not None."""
        raise NotImplementedError(f"{type(self).__name__} is not keyed")


class Everything(Plan):
    """The dense run: every tile of every layer."""

    keyed = True

    def __init__(self) -> None:
        self._full: dict[tuple[int, int, int], TileSet] = {}

    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        if shape not in self._full:
            self._full[shape] = TileSet.full(*shape)
        return self._full[shape]

    def key(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> Hashable:
        return shape

    def tiles(self, key: Any) -> TileSet:
        return self.active((), key)


class _Nothing(Plan):
    """The plan between two runs."""

    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        return TileSet.empty(*shape)


NOTHING = _Nothing()
"""The plan in which no tile is active."""


class Policy(ABC):
    """A rule that chooses active tiles; its settings are hashable."""

    least_size: int = 0
    """The shorter side, in pixels, below which resolutions are computed whole; a session does not keep these."""
    refresh: int = 1
    """In a diffusion session, the most steps from one that computes to the next; 1: all compute."""
    frontier: int = 0
    """The largest resolution that the steps between do not compute, counted in halvings of the input's."""

    def refreshed(self, steps: int) -> tuple[bool, ...]:
        """For each of so many denoising steps, whether it computes every layer; the others carry deltas on.

        The gaps between them shrink from `refresh` steps towards one, in proportion to the steps that remain: the
        deltas change the faster, and no later step corrects the error of a late one. But they begin with 2, then 4, …:
        a curve through deltas that lie close together cannot be followed far.
        """
        chosen = [False] * steps
        step, gap = 0, 1
        while step < steps:
            chosen[step] = True
            gap = min(2 * gap, math.ceil(self.refresh * (steps - step) / steps))
            step += gap
        return tuple(chosen)

    @property
    def exact(self) -> bool:
        """Whether an edit under this policy equals a dense run of the edited input."""
        return False

    @abstractmethod
    def plan(self, difference: Host, *, settled: bool = True) -> Plan:
        """The plan of an edit whose input differs where `difference` (bool `[N, H, W]`) is True.

        `settled` False: earlier edits left pixels of `difference` unspread, so the output of a layer may be older than
        the canvases that it reads.
        """


@dataclass(frozen=True)
class Exact(Policy):
    """Tiles grow layer by layer with the receptive field: an edit equals a dense run of the edited input.

    With fixed statistics (batch norm) both are equal bit for bit; measured statistics (instance and group norm) stay
    those of the dense run, as in the paper. Where a layer computes a tile as a whole (Winograd's transforms), changed
    pixels grow to whole tiles, so that every bit is exact; `Adaptive` with a small tau avoids this cost.
    """

    @property
    def exact(self) -> bool:
        return True

    def plan(self, difference: Host, *, settled: bool = True) -> Plan:
        return _ExactPlan()


@dataclass(frozen=True)
class Adaptive(Policy):
    """Tiles grow as under `Exact`, but a recomputed tile that moved by no more than `tau` stops spreading.

    Such a tile keeps its old values, the ones that its readers have read. So errors do not add up over edits: every
    value lies within `tau`, in the units of its layer's activations, of the layer's result on its current inputs.
    `Adaptive(0)` is exact, and cheaper than `Exact` where an edit has no effect.
    """

    tau: float

    def __post_init__(self) -> None:
        in_range("policy adaptive: tau", self.tau, 0, ends="[)")

    @property
    def exact(self) -> bool:
        return self.tau == 0

    def plan(self, difference: Host, *, settled: bool = True) -> Plan:
        # not settled: a reader may be older than a tile that does not move now; to be exact, every tile spreads
        return _ExactPlan(None if self.exact and not settled else float(self.tau))


class _ExactPlan(Plan):
    def __init__(self, tau: float | None = None) -> None:
        self.tau, self.whole_tiles = tau, not tau
        self._grown: dict[Any, TileSet] = {}
        """Grown sets by output shape and reads; a `TileSet` in a key compares by identity."""

    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        changed = [read for read in reads if read.changed.count]
        # the norms of one block read the same canvas through the same window: grow it once
        key = (shape, frozenset(changed))
        if key not in self._grown:
            grown = [self._grow(read, shape) for read in changed]
            self._grown[key] = union(grown) if grown else TileSet.empty(*shape)
        return self._grown[key]

    def _grow(self, read: Read, shape: tuple[int, int, int]) -> TileSet:
        key = (shape, read)
        if key not in self._grown:
            if read.everywhere:
                self._grown[key] = TileSet.full(*shape, only=read.changed.edited)
            else:
                self._grown[key] = grow(read.changed, read.window, *shape[1:])
        return self._grown[key]


@dataclass(frozen=True)
class Paper(Policy):
    """SIGE's approximation: one mask per resolution, and everything recomputed at the lowest resolutions.

    The difference mask is dilated by `dilation`; each resolution's mask comes from `masks.pyramid`, dilated by
    `level_dilation`; a tile is active when its window (6×6 for a 3×3 convolution, 4×4 for 1×1) holds a masked
    pixel. The first `sparse_levels` resolutions, counted from the input's, are sparse if their shorter side has at
    least `least_size` pixels; below, edited samples are recomputed whole. Changed keys and values of attention
    make no tile active. Source: arXiv 2211.02048, section 3; defaults per model family from its code.
    """

    dilation: int = 1
    level_dilation: int = 1
    sparse_levels: int = 5
    least_size: int = 1
    threshold: float = 0.3
    whole: tuple[str, ...] = ()
    """Names of layers that are computed whole, with all layers below them: "mid", "conv_in"."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole", tuple(self.whole))
        if not all(isinstance(name, str) for name in self.whole):
            raise InputError(f"policy paper: whole is {self.whole!r}, expected names of layers")
        for name in ("dilation", "level_dilation", "sparse_levels", "least_size"):
            value = whole_number(f"policy paper: {name}", getattr(self, name), 0)
            object.__setattr__(self, name, value)
        in_range("policy paper: threshold", self.threshold, 0, 1, ends="[)")

    def plan(self, difference: Host, *, settled: bool = True) -> Plan:
        return _PaperPlan(self, difference)


MASK_SETTINGS = ("dilation", "level_dilation", "sparse_levels", "threshold")
"""The settings of `Paper` that shape its masks."""


@dataclass(frozen=True)
class Fast(Paper):
    """Sparse at every resolution; norms follow the edit: at the median nearer to dense than `Paper`, for less work.

    The masks are those of `Paper`. The settings come from the study in `docs/benchmarks.md`, "The settings of `fast`".

    Attributes
    ----------
    least_size
        Resolutions whose shorter side has fewer pixels are computed whole. It costs work, and gains less than 0.1 dB.
    statistics
        The weight of fresh moments in norms that measure them (group and instance norm), against the stale moments that
        the rest of a canvas was computed with. It grows to 1 with the share of the canvas that is repainted, so an
        edit of everything is a dense run. 0, as `Paper`: 4 dB less at the median, 9 in the worst case; 1: 3 to 4 dB
        less at the median. It costs no MACs.
    refresh
        Of a diffusion session: the number of denoising steps from which the gaps between steps that compute shrink (see
        `Policy.refreshed`). The steps between carry deltas on (`engine.carried`). 6 computes 10 steps of 25: 60 % less
        work and memory than 1. It costs, at the median, 1 dB of edits below 2 % of the image, 0.6 dB below 5 %, none of
        larger ones, and up to 2.5 dB of single edits; from noise levels above 300 more. A `Session` has one step,
        and computes it.
    frontier
        The largest resolution that the steps between do not compute, in halvings of the input's. 0: they compute
        nothing, and the delta of the output is carried on. 1, 2, …: they compute the higher resolutions, from the
        deltas of the canvases below: for few steps, between which outputs change too much. That takes up to twice the
        memory.
    """

    least_size: int = 1
    statistics: float = 0.4
    refresh: int = 6
    frontier: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "statistics", in_range("policy fast: statistics", self.statistics, 0, 1))
        object.__setattr__(self, "refresh", whole_number("policy fast: refresh", self.refresh, 1))
        object.__setattr__(self, "frontier", whole_number("policy fast: frontier", self.frontier, 0))

    def for_steps(self, steps: int, usual: int, *, level: int = 1, usual_level: int = 1) -> Fast:
        """This policy, which suits `usual` steps from the noise level `usual_level`, for others.

        From a higher level the model changes more from step to step, so gaps are shorter; from a lower one they stay.
        """
        gap = self.refresh * steps * usual_level // (usual * max(level, usual_level))
        return replace(self, refresh=max(1, gap))


class _PaperPlan(Plan):
    keyed = True

    def __init__(self, policy: Paper, difference: Host) -> None:
        changed = TileSet.of_mask(difference)
        edited = changed.edited
        n, row, column = changed.first
        at = (n, row * TILE, column * TILE)
        levels = pyramid(
            dilated(changed.shape, changed.box, at, policy.dilation),
            dilation=policy.level_dilation,
            threshold=policy.threshold,
        )
        self._masks: dict[tuple[int, int], TileSet] = {}
        for level, size in enumerate(halvings(changed.height, changed.width)):
            sparse = level < policy.sparse_levels and min(size) >= policy.least_size
            self._masks[size] = next(levels) if sparse else TileSet.full(changed.samples, *size, only=edited)
        self._active: dict[Any, TileSet] = {}
        self.statistics = policy.statistics if isinstance(policy, Fast) else 0.0
        self.whole = policy.whole

    def active(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> TileSet:
        key = self.key(reads, shape)
        return TileSet.empty(*shape) if key is None else self.tiles(key)

    def key(self, reads: Sequence[Read], shape: tuple[int, int, int]) -> Hashable:
        # it leaves out which pixels changed: layers of one kind share their tiles
        through = frozenset(
            # changed keys and values of attention do not spread: that is this policy's approximation
            (read.changed.height, read.changed.width, read.window)
            for read in reads
            if read.changed.count and not read.everywhere
        )
        if (
            len(through) > 1
        ):  # a pixel that is read alone is also read by a kernel around it: one growth is enough
            around = {read[:2] for read in through if read[2].holds_its_pixel and read[2] != Window()}
            through = frozenset(read for read in through if read[2] != Window() or read[:2] not in around)
        return (shape, through) if through else None

    def tiles(self, key: Any) -> TileSet:
        active = self._active.get(key)
        if active is None:
            shape, through = key
            active = self._active[key] = union(
                self._through(height, width, window, shape) for height, width, window in through
            )
        return active

    def _mask(self, size: tuple[int, int]) -> TileSet:
        """The mask of a resolution; of one larger than the input's, that of half the size with each pixel doubled."""
        if size not in self._masks:
            height, width = next(iter(self._masks))
            if size[0] % 2 or size[1] % 2 or size[0] <= height or size[1] <= width:
                known = ", ".join(f"{h}×{w}" for h, w in self._masks)
                raise ShapeError(
                    f"policy paper: a layer reads {size[0]}×{size[1]}, expected the size of the input, halved or "
                    f"doubled some times: {known}"
                )
            half = self._mask((size[0] // 2, size[1] // 2))
            n, row, column = half.first
            box = half.box.repeat(2, 1).repeat(2, 2)
            self._masks[size] = TileSet.of_box(
                (half.samples, *size), box, (n, 2 * row * TILE, 2 * column * TILE)
            )
        return self._masks[size]

    def _through(self, height: int, width: int, window: Window, shape: tuple[int, int, int]) -> TileSet:
        # SIGE's masks live at the resolution that a layer reads, after any resampling
        size = window.resampled(height, width)
        mask = self._mask(size)
        if not window.step == window.upsample == 1:
            window = replace(window, step=1, upsample=1)
        key = (shape, size, window)
        if key not in self._active:
            self._active[key] = grow(mask, window, *shape[1:])
        return self._active[key]


POLICIES = ("paper", "fast", "exact", "adaptive(TAU)")


def get_policy(policy: str | Policy, *, paper: Paper, fast: Fast) -> Policy:
    """The policy of a name; a `Policy` is returned as it is. "paper" and "fast" give the model family's.

    Settings of these two may follow in brackets: "fast(refresh=2, statistics=0.25)".

    Raises
    ------
    InputError
        The name or a setting is unknown, or "adaptive" has no number TAU of 0 or more in brackets.
    """
    if isinstance(policy, Policy):
        return policy
    found = re.fullmatch(r"(\w+)(?:\((.*)\))?", str(policy))
    name, inside = (found[1], found[2]) if found else ("", None)
    if name in ("paper", "fast"):
        return _with_settings(paper if name == "paper" else fast, name, inside or "")
    if name == "exact" and inside is None:
        return Exact()
    if name != "adaptive":
        raise InputError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
    try:
        return Adaptive(float(inside or "none"))
    except ValueError:
        raise InputError(
            f"policy {policy!r}: expected a number, 0 or more, in brackets, such as adaptive(0.02)"
        ) from None


def _with_settings(policy: Paper, name: str, settings: str) -> Policy:
    """A policy with other settings, such as "refresh=2, statistics=0.25"."""
    # `whole` is of the family
    known = {each.name: type(getattr(policy, each.name)) for each in fields(policy) if each.name != "whole"}
    given: dict[str, Any] = {}
    for setting in filter(None, (each.strip() for each in settings.split(","))):
        key, _, value = (each.strip() for each in setting.partition("="))
        if key not in known:
            raise InputError(f"policy {name}: unknown setting {setting!r}; known: {', '.join(known)}")
        try:
            given[key] = known[key](value)
        except ValueError:
            raise InputError(f"policy {name}: {key} is {value!r}, expected a number") from None
    return replace(policy, **given)


_KINDS: dict[str, type[Policy]] = {"paper": Paper, "fast": Fast, "exact": Exact, "adaptive": Adaptive}


def described(policy: Policy) -> dict[str, Any]:
    """A policy in plain values for JSON. Raises InputError: it is none of this module's."""
    for name, kind in _KINDS.items():
        if type(policy) is kind:
            return {"policy": name, **vars(policy)}
    raise InputError(f"a {type(policy).__name__} cannot be saved; expected one of {', '.join(POLICIES)}")


def read_policy(described: Mapping[str, Any]) -> Policy:
    """The policy that `described` gave. Raises InputError, LookupError, TypeError: there is no such policy."""
    settings = dict(described)
    kind: Any = _KINDS[settings.pop("policy")]
    policy: Policy = kind(**settings)
    return policy
