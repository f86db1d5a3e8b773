"""The contract of a backend: arrays `[N, H, W, C]` and active tiles come in, the tiles of `out` are written.

A primitive writes the given tiles alone, and a tile's bits do not depend on which other tiles are given with it. By
that rule a dense run and an edit are the same code: a dense run is given all tiles.

Conventions of every backend
----------------------------
* Canvases are float32 `[N, H, W, C]`, C-contiguous (channels last); index canvases are int32 `[N, H, W, P]`.
  Only `read_tiles`, `write_tiles`, `narrow_tiles` and `widen_tiles` take a float16 copy of a canvas (C even).
* `tiles` is a `Tiles` handle: `[K, 3]` sample, tile row, tile column. A tile is `TILE`×`TILE` pixels of `out`; a
  tile that overhangs the bottom or right border is written only where it lies inside.
* A layer's input is a `Source`: canvases and the pointwise work pending on them (the *prologue*). Border: a pixel
  outside the image is 0 *after* the prologue, because a dense layer pads activated values.
* Settings, everything after the tensors, are keyword-only.
* A primitive changes no input; an input may be a read-only array (a mapped file, a broadcast array).
* A primitive that computes tiles returns whether it knows every value that it wrote to be finite. False: it did not
  look, or one is not; a `Watch` finds out.
* Only `download`, `synchronize`, `encode_windows`, `find_non_finite`, `largest_change` and
  `Watch.first_watched` may wait for a device; the others queue their work.

`base.py` implements every primitive in plain array arithmetic; on NumPy it is the `reference` backend, the oracle of
all others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")

TILE = 4
"""Outputs along one side of a tile (SIGE's block: 6×6 inputs of a 3×3 convolution give 4×4 outputs)."""

LEAKY_SLOPE = 0.2
"""The one slope of leaky ReLU in the model families (SPADE, `F.leaky_relu(x, 2e-1)`)."""

QUICK_GELU_SLOPE = 1.702
"""Of `quick_gelu`, as OpenAI's CLIP has it."""

Array: TypeAlias = Any
"""An array of the backend: `np.ndarray`, `cupy.ndarray`, …"""

Host: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
"""An array in main memory."""

Activation = Literal["identity", "relu", "leaky_relu", "silu", "gelu", "quick_gelu", "tanh", "geglu"]
"""A function of each value; "geglu", of a `Source` alone, of each value and the one half of the channels after it.

`silu` is v · sigmoid(v); `gelu` v · Φ(v), with the normal distribution's Φ (arXiv 1606.08415); `quick_gelu`
v · sigmoid(1.702 v); `geglu` v · gelu(w) (arXiv 2002.05202): 2C channels become C, v are the first C.
"""
Padding: TypeAlias = tuple[int, int, int, int]
"""Zero rows and columns around the input: top, bottom, left, right."""

MomentPair: TypeAlias = tuple[Array, Array]
"""Two moments of channels, each `[N, C]`: mean and variance, or the means of v and of v²."""

Position: TypeAlias = tuple[int, int, int, int]
"""The place of a value in a canvas: sample, row, column, channel."""


class BackendError(RuntimeError):
    """A backend is unknown or cannot run here, or was given something that the contract excludes."""


class Tiles:
    """Active tiles as primitives take them: one read-only list on the host, and each backend's form of it.

    Parameters
    ----------
    host
        Integers `[K, 3]`: sample, tile row and tile column of each tile, in any order, each tile once. They are copied.

    Raises
    ------
    BackendError
        `host` has another shape.
    """

    def __init__(self, host: Host) -> None:
        if host.ndim != 2 or host.shape[1] != 3:
            raise BackendError(
                f"tiles have shape {host.shape}, expected (K, 3): sample, tile row, tile column"
            )
        self.host: Host = np.array(host, np.int32, order="C")
        """int32 `[K, 3]`, C-contiguous, read-only."""
        self.host.setflags(write=False)
        self._count = len(host)
        self._made: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<Tiles: {len(self)}>"

    def shares(self, samples: int, size: tuple[int, int]) -> list[float]:
        """For each of so many samples, the share of the tiles of a canvas of `size` (H, W) that are in the list."""
        of_sample = -(-size[0] // TILE) * -(-size[1] // TILE)
        return self.on(
            ("shares", samples, of_sample),
            lambda host: (np.bincount(host[:, 0], minlength=samples) / of_sample).tolist(),
        )

    def put(self, owner: Hashable, made: Any) -> None:
        """Set this owner's form of it, unless it has one."""
        self._made.setdefault(owner, made)

    def is_on(self, owner: Hashable) -> bool:
        """Whether `on` has computed this owner's form of it."""
        return owner in self._made

    def on(self, owner: Hashable, make: Callable[[Host], T]) -> T:
        """`make(host)`, computed at the first call for this owner: a backend, or a key that several backends share."""
        if owner not in self._made:
            self._made.setdefault(owner, make(self.host))  # of two threads at once, the first is everyone's
        made: T = self._made[owner]
        return made


@dataclass(eq=False, slots=True)  # not frozen: a layer makes several, and that takes four times as long
class Source:
    """An input of a kernel: canvases, and the pointwise work applied while a tile is gathered. Nobody changes one.

    In this order, per pixel: concatenate `parts` along channels, upsample (nearest), then
    `v = (v - mean(v)) / sqrt(var(v) + layer_eps)`, `v = v * scale + shift`, `v = v * (1 + gamma) + beta`,
    `v = activation(v)`.

    A layer norm and "geglu" combine the channels of a pixel. A source with one of them is a single part, not upsampled,
    with no other work pending than a layer norm's scale and shift. It is read at the output's own pixels alone: by
    `pointwise`, and by convolutions of kernel 1×1, stride 1, one group and no padding; never as a residual. A
    primitive raises BackendError where it is given elsewhere (`check_own_pixels`).

    Raises
    ------
    BackendError
        There are not one or two parts; `scale` and `shift` are not both `[1, C]` or both `[N, C]`; a layer norm or
        "geglu" is combined with other work.
    """

    parts: tuple[Array, ...]
    """One or two canvases `[N, h, w, C_i]` of one resolution, read as if concatenated along channels."""
    upsample: int = 1
    """1, or 2 for nearest upsampling: pixel (y, x) is read at (y // 2, x // 2)."""
    scale: Array | None = None
    """Per channel, `[1 or N, C]` (a norm's 1 / sqrt(var + eps))."""
    shift: Array | None = None
    """Per channel; given exactly when `scale` is, and of its shape."""
    modulation: Array | None = None
    """Per pixel of the upsampled input, `[N, H, W, 2C]`: gamma in the first C channels, beta in the last C."""
    activation: Activation = "identity"
    codes: Array | None = None
    """int32 `[N, H, W, 1]`: `modulation` is then `[R, 2C]`, and a pixel's code is its row."""
    layer_eps: float | None = None
    """Of a layer norm, arXiv 1607.06450: the moments are those of a pixel's channels. None: there is none."""

    def __post_init__(self) -> None:
        """Raises BackendError: what the class excludes."""
        if not 1 <= len(self.parts) <= 2:
            raise BackendError(
                f"a source has {len(self.parts)} parts, expected one or two; write some out first"
            )
        if self.combines_channels and (
            len(self.parts) > 1
            or self.upsample != 1
            or self.modulation is not None
            or (self.layer_eps is None) != (self.scale is None)
            or (self.layer_eps is None) == (self.activation == "identity")
        ):
            raise BackendError(
                "a layer norm or geglu needs a single part, and no other work but a layer norm's scale and shift"
            )
        if self.activation == "geglu" and self.parts[0].shape[3] % 2:
            raise BackendError(f"geglu needs an even number of channels, got {self.parts[0].shape[3]}")
        if self.scale is None and self.shift is None:
            return
        n, _, _, c = self.shape
        shapes = [None if each is None else tuple(each.shape) for each in (self.scale, self.shift)]
        if shapes[0] != shapes[1] or shapes[0] not in (None, (1, c), (n, c)):
            raise BackendError(
                f"scale and shift are {shapes[0]} and {shapes[1]}, expected both (1, {c}) or both ({n}, {c})"
            )

    @property
    def combines_channels(self) -> bool:
        """Whether a value depends on other channels of its pixel: after a layer norm or "geglu"."""
        return self.layer_eps is not None or self.activation == "geglu"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`(N, H, W, C)` as it is read."""
        n, h, w, c = self.parts[0].shape
        for part in self.parts[1:]:
            c += part.shape[3]
        return n, h * self.upsample, w * self.upsample, c // 2 if self.activation == "geglu" else c


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution without its weights: channels, kernel (rows, columns), stride, padding, groups."""

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: Padding = (0, 0, 0, 0)
    groups: int = 1

    @classmethod
    def of(cls, weight: Host, stride: int, padding: Padding, groups: int) -> ConvGeometry:
        """The geometry of `weight` `[O, I / groups, kh, kw]`."""
        outputs, inputs, kh, kw = weight.shape
        return cls(inputs * groups, outputs, (kh, kw), stride, padding, groups)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output of an input of `height` × `width`, as PyTorch counts them."""
        top, bottom, left, right = self.padding
        return (
            (height + top + bottom - self.kernel[0]) // self.stride + 1,
            (width + left + right - self.kernel[1]) // self.stride + 1,
        )


def check_own_pixels(geometry: ConvGeometry | None, *sources: Source | None) -> None:
    """Raise BackendError if a source combines channels, unless `geometry` is that of a layer on single pixels."""
    g = geometry
    single = g is not None and g.kernel == (1, 1) and g.stride == g.groups == 1 and not any(g.padding)
    if not single and any(source is not None and source.combines_channels for source in sources):
        raise BackendError(
            "a source with a layer norm or geglu is read by pointwise and by convolutions of kernel 1×1, stride 1, one "
            "group and no padding alone; write it out by pointwise first"
        )


@dataclass(frozen=True)
class ConvWeights:
    """A convolution's weights in the backend's layout, as `prepare_conv` gives them; opaque to the engine."""

    geometry: ConvGeometry
    packed: Array
    bias: Array | None
    whole_tiles: bool = False
    """Whether a pixel's rounding depends on every input pixel of its tile's window, as Winograd's transforms make it.
    An exact edit then counts every pixel of a recomputed tile as changed."""


class WindowSet:
    """The distinct windows of an index canvas, in the order in which they were first seen.

    A window's place is its *code*. Only a backend's `encode_windows` and `forget_windows` change a set.

    Parameters
    ----------
    width
        Indices in a window.
    windows
        int32 `[R, width]`: the windows to begin with.
    """

    def __init__(self, width: int, windows: Host | None = None) -> None:
        count = 0 if windows is None else len(windows)
        self.storage: Host = np.full((max(256, count + count // 4), width), -1, np.int32)
        """int32 `[capacity, width]`: the windows, and room for more."""
        self.count: Host = np.full(1, count, np.int64)
        """int64 `[1]`: how many rows of `storage` are windows. An array, so that a kernel can write it."""
        self.index: Any = None
        """The backend's own map from a window to its code; None until the backend builds it."""
        if windows is not None:
            self.storage[:count] = windows

    def __len__(self) -> int:
        return int(self.count[0])

    @property
    def windows(self) -> Host:
        """The windows by code, int32 `[R, width]`."""
        return self.storage[: len(self)]

    def reserve(self, capacity: int) -> None:
        """Make room for at least `capacity` windows."""
        if capacity > len(self.storage):
            storage = np.full(
                (max(capacity, len(self.storage) * 3 // 2), self.storage.shape[1]), -1, np.int32
            )
            storage[: len(self)] = self.windows
            self.storage = storage


class Watch(ABC):
    """The finite checks of one run: layers note canvases, and the run asks once, at its end. One thread's."""

    @abstractmethod
    def watch(self, canvas: Array, tiles: Tiles, layer: int) -> None:
        """Note the present values in `tiles` of the canvas for a check. Does not wait.

        `layer` is a number that the caller chooses to recognise the check by, not below that of the call before.
        """

    def ask(self) -> None:
        """Queue the answer of `first_watched`, after the last check: a wait for anything queued later serves it too."""
        return None

    @abstractmethod
    def first_watched(self) -> tuple[int, Position] | None:
        """(layer, position) of the first NaN or infinity among the noted values; None: all are finite.

        First in the order of the calls of `watch`, then in the order of `find_non_finite`. Waits for the backend.
        """


class SavedTiles(ABC):
    """The values of tiles of many canvases, in one block of memory."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the block."""

    @abstractmethod
    def arrays(self) -> list[Array]:
        """For each canvas its values `[K, TILE, TILE, C]`, which lie in the block."""


class Recording(ABC):
    """Primitives that were queued once, to be queued again as a whole, with other tiles. One thread's."""

    @property
    @abstractmethod
    def room(self) -> Sequence[int]:
        """For each list of tiles, in the order in which `Backend.record` was given them: the most tiles it may have."""

    @abstractmethod
    def save(self, lists: Sequence[Tiles]) -> SavedTiles:
        """Queue a copy of the tiles of the canvases to save, as they are now; the next replay has the same `lists`."""

    @abstractmethod
    def replay(self, lists: Sequence[Tiles], watch: Watch | None = None) -> Watch | None:
        """Queue everything again, each list replaced by the one in its place.

        `watch` is the watch that the recorded work used; the one of this replay is returned. Where work was given
        canvases to save, `save` was called for the same `lists` before it, and nothing has changed since.
        """


class Backend(ABC):
    """The primitives that a model is computed with. Any number of threads may call them at once."""

    name: str = ""
    codebooks: bool = False
    """Whether sessions keep codebooks: values that depend on labels alone, computed once per distinct window."""
    in_main_memory: ClassVar[bool] = False
    """Whether its arrays are NumPy's: then it computes in any array of main memory, also in a mapped file's."""
    reaches_ram: ClassVar[bool] = False
    """Of a backend whose arrays lie elsewhere: whether it computes in main memory too, in arrays of `alloc_in_ram`."""
    records: ClassVar[bool] = False
    """Whether `record` is supported."""
    takes_threads: ClassVar[bool] = False
    """Whether the constructor takes `threads`, the most that compute at once; None or omitted: the backend chooses."""
    options: ClassVar[tuple[str, ...]] = ()
    """Names of the constructor's other keywords. Each has a default; a wrong value raises BackendError."""

    def __repr__(self) -> str:
        threads = getattr(self, "threads", None)
        return f"<backend {self.name}" + ("" if threads is None else f", {threads} threads") + ">"

    # -- memory ------------------------------------------------------------------------------------------

    @abstractmethod
    def alloc(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        """A contiguous array of zeros; dtype "float32", "int32" or "float16" (of a canvas that is kept so)."""

    def alloc_in_ram(self, shape: Sequence[int], *, dtype: str = "float32") -> Array:
        """As `alloc`, but in main memory, where kernels read and write over the bus, tile by tile."""
        raise BackendError(f"backend {self.name!r} does not compute in main memory")

    def memory_left(self) -> float:
        """Bytes that `alloc` may still take; infinite where nobody counts."""
        return math.inf

    @abstractmethod
    def upload(self, host: Host) -> Array:
        """A contiguous copy of a host array on the backend: floats as float32, other types as they are."""

    @abstractmethod
    def download(self, array: Array) -> Host:
        """A copy of an array on the host. Waits for the backend."""

    def fetch(self, array: Array) -> Callable[[], Host]:
        """Queue a copy of an array to the host: the function returned waits for it, and gives the copy.

        One wait of this thread serves all copies that were queued before it.
        """
        host = self.download(array)
        return lambda: host

    def warm_up(self) -> str:
        """Compile now the kernels that the first use would compile; returns a line that says where they are cached.

        Raises BackendError where the next process would have to compile them again.
        """
        return "nothing to compile"

    def synchronize(self) -> None:
        """Return when all queued work is done. Called only where somebody measures time: nothing else waits."""
        return None

    def queue(self) -> AbstractContextManager[None]:
        """Within it, primitives of this thread may return before they have computed; at its end all have.

        They compute in the order of their calls. So what a primitive wrote is given to other primitives alone, until
        `download` or `synchronize`, which wait; a primitive that returns whether values are finite may not know it yet,
        and a `Watch` tells later. Here they compute at once, or in an order that arrays follow by themselves.
        """
        return nullcontext()

    def record(
        self,
        work: Callable[[], None],
        lists: Sequence[Tiles],
        *,
        saves: Sequence[tuple[Array, Tiles, Array]] = (),
        rooms: Sequence[int] = (),
    ) -> Recording:
        """Call `work`, and note the primitives that it queues instead of queueing them.

        `rooms` are how many tiles each of `lists` must be able to have in a replay; none given: as many as it has.

        `saves` are canvases, of each the one of `lists` whose tiles `Recording.save` copies, and an array
        `[0, TILE, TILE, C]` that stands for the values saved: `work` may use it as an argument `old`, and no other way.

        `work` uses no other tiles than `lists` (different handles), which a replay replaces. It uploads, downloads and
        waits for nothing. What else it reads and writes keeps its place: arrays made in `work` belong to the recording.
        A watch for it is made in `work`; it may check values at the end of `work`, which therefore writes no canvas
        after it has been watched.
        """
        raise BackendError(f"backend {self.name!r} records nothing")

    # -- convolution -------------------------------------------------------------------------------------

    @abstractmethod
    def prepare_conv(
        self,
        weight: Host,
        bias: Host | None,
        *,
        stride: int = 1,
        padding: Padding = (0, 0, 0, 0),
        groups: int = 1,
        size: tuple[int, int] | None = None,
    ) -> ConvWeights:
        """Lay out `weight` `[O, I / groups, kh, kw]` (PyTorch's order) and `bias` `[O]`, once per model.

        A layer's algorithm is chosen here, not per edit, by the geometry and by `size`: the rows and columns of the
        outputs that these weights will compute (None: any). The number of samples is no criterion, because a sample's
        bits would then depend on its batch.
        """

    def conv_layout(self, geometry: ConvGeometry, size: tuple[int, int] | None) -> Hashable:
        """A key of the layout that `prepare_conv` chooses for outputs of `size`; equal keys share weights."""
        return None  # one layout for all sizes

    @abstractmethod
    def conv2d(
        self,
        out: Array,
        tiles: Tiles,
        source: Source,
        weights: ConvWeights,
        *,
        shift: Array | None = None,
        residual: Source | None = None,
        activation: Activation = "identity",
    ) -> bool:
        """`out[tiles] = activation(conv(source) + bias + shift + residual)`; `out` is `[N, H', W', O]`.

        `shift` is `[1 or N, O]` (a time embedding's projection); `residual` is read at the output's pixels. Border: the
        geometry's zero padding, after the source's prologue.
        """

    def conv2d_measured(
        self,
        out: Array,
        tiles: Tiles,
        source: Source,
        weights: ConvWeights,
        *,
        shift: Array | None = None,
        residual: Source | None = None,
        activation: Activation = "identity",
    ) -> tuple[bool, MomentPair]:
        """`conv2d` of all tiles of `out`, and `channel_moments` of what it wrote, of the same bits: for a norm to come.

        Returns what both return. A backend may measure a tile while it writes it, in place of reading the canvas again.
        Raises BackendError where `tiles` are not all.
        """
        finite = self.conv2d(
            out, tiles, source, weights, shift=shift, residual=residual, activation=activation
        )
        return finite, self.channel_moments(Source((out,)))

    def upload_weight(self, weight: Host) -> Array:
        """A copy of a weight matrix `[O, I]` for `linear` alone, in the type that the backend stores weights in."""
        return self.upload(weight)

    @abstractmethod
    def linear(
        self, x: Array, weight: Array, bias: Array | None, *, activation: Activation = "identity"
    ) -> Array:
        """`activation(x @ weight.T + bias)`: `[M, I]`, `[O, I]`, `[O]` → `[M, O]`. Few rows: embeddings.

        `weight` comes from `upload_weight`, or is any array `[O, I]` of the backend.
        The sum is rounded to float32; the activation is computed in float64 from that, and rounded once. A row's bits
        do not depend on the other rows.
        """

    # -- statistics and pointwise work -------------------------------------------------------------------

    @abstractmethod
    def channel_moments(self, source: Source) -> tuple[Array, Array]:
        """Mean and biased variance of each channel over all pixels of a sample: two float32 `[N, C]`."""

    @abstractmethod
    def coded_moments(self, codes: Array, rows: Array) -> tuple[Array, Array]:
        """`channel_moments` of pixels that are rows of a table: pixel p has the values `rows[codes[p]]`.

        `codes` is int32 `[N, H, W, 1]`, `rows` `[R, C]`; two float32 `[N, C]`, summed in float64.
        """

    @abstractmethod
    def second_moments(self, mean: Array, variance: Array) -> MomentPair:
        """The means of v and of v² of channels, two float64 `[N, C]`, from their float32 means and variances."""

    @abstractmethod
    def join_channels(self, arrays: Sequence[Array]) -> Array:
        """One or more arrays `[N, C_i]` of one type side by side: `[N, C]`."""

    @abstractmethod
    def sum_change(self, canvas: Array, tiles: Tiles, old: Array) -> Array:
        """How far the sums over a canvas moved when its tiles changed from `old`: float64 `[N, 2, C]`.

        For each sample and channel, Σ (v - old) and Σ (v² - old²) over the pixels of the sample's tiles that lie inside
        the image. `old` is `[K, TILE, TILE, C]` as `read_tiles` gives it (also of a float16 copy). Summed in float64.
        """

    @abstractmethod
    def follow_moments(
        self,
        used: MomentPair,
        stale: MomentPair,
        fresh: MomentPair,
        change: Array | None,
        *,
        tiles: Tiles,
        size: tuple[int, int],
        statistics: float,
    ) -> tuple[MomentPair, MomentPair, MomentPair]:
        """The moments of channels after an edit: new `used`, `stale` and `fresh`, from those before it.

        Each is two `[N, C]`: `used` float32, the mean and the variance that norms use; `stale` and `fresh` float64, the
        means of v and of v². `change` is from `sum_change`; None: `fresh` are the means after the edit. The edit
        repainted `tiles` of canvases of `size` (H, W): of each sample a share s, from 0 to 1, of its tiles. The weight
        of the fresh moments grows to 1 with it, from `statistics`.

            w = statistics + (1 - statistics) * s
            fresh = fresh + change / (H * W)
            mixed = stale + w * (fresh - stale)         fresh where w = 1
            stale = stale + s * w * (fresh - stale)     fresh where s = 1
            used = mixed mean, max(0, mixed mean of v² - (mixed mean)²)     as it was where s = 0

        Computed in float64.
        """

    @abstractmethod
    def norm_affine(
        self,
        mean: Array,
        variance: Array,
        *,
        groups: int,
        eps: float,
        weight: Array | None = None,
        bias: Array | None = None,
        film: Array | None = None,
    ) -> tuple[Array, Array]:
        """A group norm as the scale and shift of a `Source`, two `[N, C]`, from the moments of channels, two `[N, C]`,
        float32 or float64.

        The mean of a group is the mean of its channels' means; its variance is the mean of their variances plus the
        variance of their means. With `weight` and `bias` `[C]` (None: 1 and 0)

            scale = weight / sqrt(variance + eps)
            shift = bias - mean * scale

        and then, with `film` `[1 or N, 2C]`, whose first C columns are the gain and whose last C are the offset,

            scale, shift = scale * (1 + gain), shift * (1 + gain) + offset

        `groups` equal to C is an instance norm, or with fixed moments `[1, C]` a batch norm. Computed in float64,
        rounded once. Sources: group norm, arXiv 1803.08494; FiLM, arXiv 1709.07871.
        """

    @abstractmethod
    def pointwise(self, out: Array, tiles: Tiles, source: Source, *, residual: Source | None = None) -> bool:
        """`out[tiles] = source + residual`: writes pending work out."""

    # -- reading by index --------------------------------------------------------------------------------

    @abstractmethod
    def lookup(
        self,
        out: Array,
        tiles: Tiles,
        indices: Array,
        table: Array,
        bias: Array,
        *,
        step: int = 1,
        activation: Activation = "identity",
    ) -> bool:
        """A k×k convolution of one-hot channels, as a sum of table rows (k odd).

            out[y, x] = activation(bias + sum over taps t and planes p of table[t, indices[tap t, p]])

        `indices` is int32 `[N, H, W, P]`: the channels that are 1 at a pixel, -1 for none; `table` is `[k * k, V, O]`;
        `bias` is `[O]`. Output pixel (y, x) is centred on index pixel (y * step, x * step) and its taps lie `step`
        apart: nearest downsampling by `step` and convolution in one. Border: zero padding of k // 2.
        """

    @abstractmethod
    def attention(
        self,
        out: Array,
        tiles: Tiles,
        query: Source,
        key: Source,
        value: Source,
        *,
        heads: int,
        causal: bool = False,
    ) -> bool:
        """`out[tiles] = softmax(q kᵀ / sqrt(C / heads)) v`, each active pixel against all pixels of its sample.

        `query` and `out` are `[N, H, W, C]`; `key` and `value` are `[N, h, w, C]`, or of one sample for all, `[1, h, w,
        C]`; heads split channels in order. `causal`: against the pixels up to its own, row by row (h, w = H, W).
        Source: arXiv 1706.03762, sections 3.2.1 and 3.2.3.
        """

    # -- codebooks ---------------------------------------------------------------------------------------

    @abstractmethod
    def encode_windows(
        self, codes: Array, tiles: Tiles, indices: Array, window_set: WindowSet, *, kernel: int, step: int = 1
    ) -> None:
        """`codes[tiles]` = the codes of the pixels' windows in `window_set`, to which new windows are added.

        `codes` is int32 `[N, H, W, 1]`, `indices` int32 `[N, h, w, P]`. The window of pixel (y, x) is the indices that
        `lookup` reads there with the same `kernel` and `step`: rows first, then columns, then planes; -1 outside the
        image.
        """

    @abstractmethod
    def forget_windows(self, window_set: WindowSet, count: int) -> None:
        """Remove the windows whose code is `count` or more."""

    @abstractmethod
    def convolve_windows(self, out: Array, windows: Host, table: Array, weights: ConvWeights) -> bool:
        """A convolution's value for each window of codes: `out[r] = bias + Σ taps t of W[t] · table[windows[r, t]]`.

        `out` is `[R, O]`; `windows` int32 `[R, k * k]`, -1 for 0; `table` `[V, I]`; `weights` were prepared for an
        output of `size` (1, 1), of one group or (if the backend has `codebooks`) depthwise, where W[t] is a diagonal
        matrix. A row's bits do not depend on the other rows.
        """

    # -- tiles and masks ---------------------------------------------------------------------------------

    @abstractmethod
    def read_tiles(self, canvas: Array, tiles: Tiles, out: Array | None = None) -> Array:
        """A copy of tiles, `[K, TILE, TILE, C]`, of the canvas's type; 0 where a tile overhangs the border.

        `out` is filled and returned, an array of that shape and type; None: a new one.
        """

    @abstractmethod
    def write_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        """`canvas[tiles] = values`, `[K, TILE, TILE, C]`; pixels that overhang the border are dropped."""

    def read_many_tiles(self, places: Sequence[tuple[Array, Tiles]]) -> list[Array]:
        """`read_tiles(canvas, tiles)` of each (canvas, tiles)."""
        return [self.read_tiles(canvas, tiles) for canvas, tiles in places]

    def write_many_tiles(self, places: Sequence[tuple[Array, Tiles, Array]]) -> None:
        """`write_tiles(canvas, tiles, values)` of each (canvas, tiles, values), in any order: canvases differ."""
        for canvas, tiles, values in places:
            self.write_tiles(canvas, tiles, values)

    @abstractmethod
    def copy_arrays(self, pairs: Sequence[tuple[Array, Array]]) -> None:
        """`target[...] = source` for each (target, source), of one size and type; no source is also a target."""

    @abstractmethod
    def merge_tiles(self, canvas: Array, tiles: Tiles, values: Array, pixels: Host) -> None:
        """`canvas[tiles] = values` where `pixels`, host bool `[K, TILE, TILE]`, is True; other pixels stay.

        `values` is `[K, TILE, TILE, C]` as `read_tiles` gives it (also of a float16 copy of a float32 canvas); pixels
        that overhang the border are dropped.
        """

    @abstractmethod
    def add_tiles(self, canvas: Array, tiles: Tiles, values: Array) -> None:
        """`canvas[tiles] += values`, `[K, TILE, TILE, C]`; pixels that overhang the border are dropped."""

    @abstractmethod
    def tile_change(self, canvas: Array, tiles: Tiles, old: Array) -> Array:
        """`canvas[tiles] - old`, float32 `[K, TILE, TILE, C]`; 0 where a tile overhangs the border.

        `old` is as `read_tiles` gives it, also of a float16 copy.
        """

    @abstractmethod
    def narrow_tiles(self, halves: Array, canvas: Array, tiles: Tiles, *, watch: Watch, layer: int) -> None:
        """`halves[tiles] = canvas[tiles]` as float16, and `canvas[tiles]` the same values.

        Rounded to the nearest, ties to even; a value beyond ±65504 becomes infinity. An overflow is reported by
        `watch`, as if `watch.watch(canvas, tiles, layer)` were called at the end.
        """

    @abstractmethod
    def widen_tiles(self, canvas: Array, halves: Array, tiles: Tiles) -> None:
        """`canvas[tiles] = halves[tiles]`: float32 from float16, exactly."""

    @abstractmethod
    def watch_run(self) -> Watch:
        """A new watch, for one run."""

    @abstractmethod
    def find_non_finite(self, canvas: Array, tiles: Tiles) -> Position | None:
        """The position of the first NaN or infinity in `tiles`; None: there is none. Waits for the backend.

        First in the order of the tiles, then of pixels by rows, then of channels; pixels outside the image do not
        count. An index canvas has none.
        """

    @abstractmethod
    def largest_change(self, canvas: Array, tiles: Tiles, values: Array) -> Host:
        """Host float32 `[K]`: per tile the largest |canvas - values| over its pixels inside the image and channels.

        `values` is `[K, TILE, TILE, C]` as `read_tiles` gives it (also of a float16 copy). All values are finite.
        """
