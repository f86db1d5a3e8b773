"""A layer comes in, everything that the reference may do otherwise comes out: hypotheses that can be computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host, Source

from ...checks import is_number
from ...layers import Attention, Conv2d, LabelConv, LatentStart, Linear
from ...models.unet import TimeEmbedding
from ...tiling.masks import resample
from ...tiling.tiles import TileSet
from .hypotheses_weights import of_convolution, of_look_up, of_padding, of_parameters
from .hypothesis import Hypothesis, by_head
from .listening import Call, Change
from .reference import Reference
from .walk import Walk

EPS = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12)
"""Epsilons of norms that libraries have as defaults."""
GROUPS = (1, 2, 4, 8, 16, 32, 64)


def hypotheses(walk: Walk, path: str, reference: Reference) -> Iterator[Hypothesis]:
    """Everything that the reference may do otherwise, special hypotheses first."""
    if path in walk.rows:
        yield from _of_rows(walk, path, reference)
        return
    layer, call = walk.layers.get(path), walk.call(path)
    if isinstance(layer, Conv2d) and call.kind == "conv2d":
        yield from of_convolution(walk, layer, reference)
        yield from of_padding(walk, layer, reference)
    if isinstance(layer, LabelConv) and call.kind == "lookup":
        yield from of_look_up(walk, layer, reference)
    if isinstance(layer, Attention) and call.kind == "attention":
        yield from _of_attention(walk, layer, call)
    if isinstance(layer, LatentStart):
        yield from of_parameters([layer], reference)
    if call.source is not None and call.kind in ("conv2d", "pointwise"):
        yield from _of_norm(walk, call, reference)
        yield from _of_reading(walk, call)
    if call.shift is not None:
        yield Hypothesis("time", "the time is not added", lambda c: replace(c, shift=None))
    if call.residual is not None:
        yield Hypothesis(
            "residual", "the input is not added (no residual)", lambda c: replace(c, residual=None)
        )
    if call.activation != "identity":
        yield Hypothesis(
            "activation", f"no {call.activation} follows", lambda c: replace(c, activation="identity")
        )


# -- what is read ---------------------------------------------------------------------------------------


def _of_norm(walk: Walk, call: Call, reference: Reference) -> Iterator[Hypothesis]:
    """Another epsilon or number of groups of the norm that is pending on what the layer reads."""
    source = call.source
    assert source is not None
    listening = walk.listening
    if source.layer_eps is not None:
        for eps in _candidates(EPS, reference, "eps"):
            if eps != source.layer_eps:
                yield Hypothesis(
                    "eps",
                    f"eps of the norm before it is {eps:g} instead of {source.layer_eps:g}",
                    lambda c, eps=eps: replace(c, source=replace(_read(c), layer_eps=eps)),  # type: ignore[misc]  # a lambda's default
                )
        return
    norm = listening.norms.get(id(source.scale))
    if norm is None:
        return

    def with_norm(**options: Any) -> Change:
        scale, shift = listening.inner.norm_affine(norm.mean, norm.variance, **{**norm.options, **options})
        return lambda c: replace(c, source=replace(_read(c), scale=scale, shift=shift))

    channels, groups = int(norm.mean.shape[1]), norm.options["groups"]
    for eps in _candidates(EPS, reference, "eps"):
        if eps != norm.options["eps"]:
            text = f"eps of the norm before it is {eps:g} instead of {norm.options['eps']:g}"
            yield Hypothesis("eps", text, with_norm(eps=eps))
    if norm.options.get("weight") is not None:
        for count in _candidates((*GROUPS, channels), reference, "num_groups"):
            if count != groups and count == int(count) and channels % count == 0:
                text = f"the norm before it has {count:g} groups instead of {groups}"
                yield Hypothesis("group count", text, with_norm(groups=int(count)))


def _candidates(usual: Sequence[float], reference: Reference, fact: str) -> list[float]:
    """The values of a setting to try: those of the reference's modules first, then the usual ones."""
    given = {facts[fact] for facts in reference.facts.values() if is_number(facts.get(fact))}
    return [*dict.fromkeys([*sorted(each for each in given if 0 < each < math.inf), *usual])]


def _read(call: Call) -> Source:
    assert call.source is not None
    return call.source


def _of_reading(walk: Walk, call: Call) -> Iterator[Hypothesis]:
    source = _read(call)
    if source.upsample == 2:
        for aligned in (False, True):
            yield Hypothesis(
                "upsampling",
                f"what it reads is upsampled bilinearly{', with corners aligned' * aligned}, instead of by the nearest",
                lambda c, aligned=aligned: replace(c, source=_bilinear(walk, _read(c), aligned)),  # type: ignore[misc]  # a lambda's default
            )
    if source.activation in ("identity", "silu", "relu", "leaky_relu") and source.layer_eps is None:
        for other in ("identity", "silu", "relu", "leaky_relu"):
            if other != source.activation and (source.scale is not None or source.activation != "identity"):
                yield Hypothesis(
                    "activation",
                    f"before it is {_named(other)} instead of {_named(source.activation)}",
                    lambda c, a=other: replace(c, source=replace(_read(c), activation=a)),  # type: ignore[misc]  # a lambda's default
                )


def _named(activation: str) -> str:
    return "no activation" if activation == "identity" else activation


def _bilinear(walk: Walk, source: Source, aligned: bool) -> Source:
    """The same, upsampled bilinearly; work that is pending before the upsampling is done before it."""
    backend = walk.listening.inner
    if source.modulation is None and source.activation != "identity":
        n, h, w, c = source.shape
        out = backend.alloc((n, h // 2, w // 2, c))
        backend.pointwise(out, TileSet.full(n, h // 2, w // 2).tiles, replace(source, upsample=1))
        source = Source((out,), 2)
    parts = tuple(backend.upload(_doubled(backend.download(part), aligned)) for part in source.parts)
    return replace(source, parts=parts, upsample=1)


def _doubled(values: Host, aligned: bool) -> Host:
    """Bilinear upsampling by two of `[N, H, W, C]`, as `F.interpolate` does it."""
    for axis in (1, 2):
        length = values.shape[axis]
        if aligned:
            at = np.linspace(0, length - 1, 2 * length)
            low = np.minimum(at.astype(int), max(length - 2, 0))
            shape = [1] * values.ndim
            shape[axis] = -1
            t = (at - low).reshape(shape)
            high = np.minimum(low + 1, length - 1)
            values = values.take(low, axis) * (1 - t) + values.take(high, axis) * t
        else:
            values, _ = resample(values, axis, 2 * length, begin=0, length=length)
    return np.ascontiguousarray(values, np.float32)


# -- attention -------------------------------------------------------------------------------------------


def _of_attention(walk: Walk, layer: Attention, call: Call) -> Iterator[Hypothesis]:
    query, (key, value) = _read(call), call.others
    channels = query.shape[3]
    three = {"q": query, "k": key, "v": value}
    if query.shape == key.shape == value.shape:
        for order in permutations("qkv"):
            if order != ("q", "k", "v"):
                taken = [three[name] for name in order]
                yield Hypothesis(
                    "q/k/v order",
                    f"its q, k and v are the model's {', '.join(order)}",
                    lambda c, t=taken: replace(c, source=t[0], others=(t[1], t[2])),  # type: ignore[misc]  # a lambda's default
                )
        if layer.heads > 1 and all(len(each.parts) == 1 for each in three.values()):
            backend = walk.listening.inner
            # channels first, as rows of a matrix
            arrays = [np.moveaxis(backend.download(each.parts[0]), 3, 0) for each in three.values()]
            parts = [
                Source(
                    (
                        backend.upload(
                            np.ascontiguousarray(np.moveaxis(by_head(arrays, i, layer.heads), 0, 3))
                        ),
                    )
                )
                for i in range(3)
            ]
            yield Hypothesis(
                "q/k/v order",
                f"q, k and v of each of {layer.heads} heads follow one another in one matrix",
                lambda c: replace(c, source=parts[0], others=(parts[1], parts[2])),
            )
    elif key.shape == value.shape:
        yield Hypothesis(
            "q/k/v order", "keys and values are exchanged", lambda c: replace(c, others=(value, key))
        )
    usual = {1, 2, 4, 8, 16, *(channels // size for size in (8, 32, 40, 64, 128) if channels % size == 0)}
    for heads in sorted(usual):
        if heads != layer.heads and channels % heads == 0:
            yield Hypothesis(
                "heads",
                f"attention has {heads} heads instead of {layer.heads}",
                lambda c, h=heads: replace(c, options={**c.options, "heads": h}),  # type: ignore[misc]  # a lambda's default
            )


# -- rows ------------------------------------------------------------------------------------------------


def _of_rows(walk: Walk, path: str, reference: Reference) -> Iterator[Hypothesis]:
    layer = walk.rows[path]
    if not isinstance(layer, TimeEmbedding):
        assert isinstance(layer, Linear)
        yield from of_parameters([layer], reference)
        return
    order = (layer, "cosine_first", not layer.cosine_first)
    ends = (layer, "frequency_shift", 1 - layer.frequency_shift)
    for text, settings in (
        ("sines and cosines are exchanged", (order,)),
        ("the frequencies end elsewhere (freq_shift)", (ends,)),
        ("sines and cosines are exchanged, and the frequencies end elsewhere", (order, ends)),
    ):
        yield Hypothesis("time embedding", text, settings=settings)
    yield from of_parameters([each for each in layer.dense if isinstance(each, Linear)], reference)
