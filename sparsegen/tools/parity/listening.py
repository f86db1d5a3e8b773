"""A backend that notes its calls: kernel calls come in, go on to the real backend as they are or changed, and are kept.

So the one code of every layer shows what it fuses, and computes under a hypothesis without a second version of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from sparsegen.backends.interface import Activation, Array, Backend, ConvWeights, Source, Tiles


@dataclass(frozen=True)
class Call:
    """A kernel call that computes tiles of one layer."""

    kind: Literal["conv2d", "lookup", "attention", "pointwise", ""]
    """The primitive; "": another."""
    source: Source | None = None
    """The first input: of attention the queries."""
    others: tuple[Source, ...] = ()
    """Of attention, keys and values."""
    weights: ConvWeights | None = None
    table: Array = None
    bias: Array = None
    """Of a look-up."""
    shift: Array = None
    residual: Source | None = None
    activation: Activation = "identity"
    options: dict[str, Any] = field(default_factory=dict)
    """The other keywords."""

    @property
    def adds(self) -> int:
        """How many values are added to the layer's own: a shift per channel, a residual."""
        return (self.shift is not None) + (self.residual is not None)


@dataclass(frozen=True)
class Norm:
    """The arguments of `Backend.norm_affine`."""

    mean: Array
    variance: Array
    options: dict[str, Any]
    result: tuple[Array, Array]


Change = Callable[[Call], Call]
_NONE = Call("")


class Listening:
    """A backend that notes the last kernel call and the norms, and passes everything on.

    It stands for the backend in one `Walk`, and is no `Backend` by class: all but the calls below is the backend's.
    """

    def __init__(self, backend: Backend) -> None:
        self.inner = backend
        self.last = _NONE
        """The last call that computed tiles, before any change."""
        self.norms: dict[int, Norm] = {}
        """id of a norm's scale -> its arguments."""
        self._change: Change | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @contextmanager
    def changing(self, change: Change | None) -> Iterator[None]:
        """Change every kernel call within."""
        self._change = change
        try:
            yield
        finally:
            self._change = None

    def _noted(self, call: Call) -> Call:
        self.last = call
        return call if self._change is None else self._change(call)

    def norm_affine(self, mean: Array, variance: Array, **options: Any) -> tuple[Array, Array]:
        result = self.inner.norm_affine(mean, variance, **options)
        self.norms[id(result[0])] = Norm(mean, variance, options, result)
        return result

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
        call = self._noted(
            Call("conv2d", source, weights=weights, shift=shift, residual=residual, activation=activation)
        )
        assert call.source is not None and call.weights is not None
        return self.inner.conv2d(
            out,
            tiles,
            call.source,
            call.weights,
            shift=call.shift,
            residual=call.residual,
            activation=call.activation,
        )

    def lookup(
        self,
        out: Array,
        tiles: Tiles,
        indices: Array,
        table: Array,
        bias: Array,
        *,
        activation: Activation = "identity",
        **options: Any,
    ) -> bool:
        call = self._noted(
            Call("lookup", Source((indices,)), table=table, bias=bias, activation=activation, options=options)
        )
        return self.inner.lookup(
            out, tiles, indices, call.table, call.bias, activation=call.activation, **call.options
        )

    def attention(
        self, out: Array, tiles: Tiles, query: Source, key: Source, value: Source, **options: Any
    ) -> bool:
        call = self._noted(Call("attention", query, (key, value), options=options))
        assert call.source is not None
        return self.inner.attention(out, tiles, call.source, *call.others, **call.options)

    def pointwise(self, out: Array, tiles: Tiles, source: Source, **options: Any) -> bool:
        call = self._noted(Call("pointwise", source, options=options))
        assert call.source is not None
        return self.inner.pointwise(out, tiles, call.source, **call.options)
