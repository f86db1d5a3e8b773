"""A layer comes in, hypotheses about its weights come out: other values, another order, zeros on other sides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from sparsegen.backends.interface import Host, Padding

from ...layers import Attention, Conv2d, LabelConv, LatentStart, Layer, Linear
from ...layers.base import Parameter
from .hypothesis import Hypothesis, by_head
from .listening import Change
from .reference import Reference, fingerprint
from .walk import Walk


def of_convolution(walk: Walk, layer: Conv2d, reference: Reference) -> Iterator[Hypothesis]:
    weight = layer.weight.float32
    bias = None if layer.bias is None else layer.bias.float32
    size = walk.steps[layer.path].shape[1:3]

    def with_weights(w: Host, b: Host | None = bias) -> Change:
        g = layer.geometry
        prepared = walk.listening.prepare_conv(
            np.ascontiguousarray(w), b, stride=g.stride, padding=g.padding, groups=g.groups, size=size
        )
        return lambda call: replace(call, weights=prepared)

    for kind, text, other in _other_weights(weight):
        yield Hypothesis(kind, text, with_weights(other))
    yield from _of_spectral_norm(layer, reference, lambda factor: with_weights(weight * factor))
    for text, w, b in _other_orders(walk, layer):
        yield Hypothesis("q/k/v order", text, with_weights(w, b))
    if weight.shape[0] % 2 == 0 and layer.path.endswith("mlp_gamma_beta"):
        half = weight.shape[0] // 2
        other_bias = None if bias is None else np.roll(bias, half)
        yield Hypothesis(
            "gamma and beta",
            "gamma and beta are exchanged",
            with_weights(np.roll(weight, half, 0), other_bias),
        )
    if bias is not None and bias.any():
        yield Hypothesis("bias", "there is no bias", with_weights(weight, np.zeros_like(bias)))
    given = _given(layer, reference)
    if given:
        yield Hypothesis(
            "other weights",
            "its weights are others than the model's",
            with_weights(given.get("weight", weight), given.get("bias", bias)),
        )


def _other_weights(weight: Host) -> Iterator[tuple[str, str, Host]]:
    """Weights `[O, I, …]` laid out otherwise: (kind, text, weights)."""
    if weight.shape[0] == weight.shape[1] > 1:
        yield "transposed weight", "the weight is transposed: inputs for outputs", weight.swapaxes(0, 1)
    if weight.ndim == 4 and weight.shape[2] == weight.shape[3] > 1:
        yield "transposed weight", "the kernel is transposed: rows for columns", weight.swapaxes(2, 3)
        yield "flipped kernel", "the kernel is flipped in both directions", weight[:, :, ::-1, ::-1]


def _of_spectral_norm(
    layer: Layer, reference: Reference, scaled: Callable[[np.float32], Change]
) -> Iterator[Hypothesis]:
    """The weight is the model's times a number, as where only one of the two is divided by its spectral norm."""
    theirs = reference.weights.get(f"{layer.path}.weight")
    ours = fingerprint(layer.weight.float32)  # type: ignore[attr-defined]  # of a layer with a weight
    if theirs is None or not theirs[0] or not ours[0]:
        return
    factor = theirs[0] / ours[0]
    if abs(factor - 1) > 1e-4:
        text = (
            f"the weight is {factor:.4g} times the model's, as without a spectral norm"
            if factor > 1
            else f"the weight is the model's divided by {1 / factor:.4g}, as by a spectral norm that the model lacks"
        )
        yield Hypothesis("spectral norm", text, scaled(np.float32(factor)))


def _other_orders(walk: Walk, layer: Conv2d) -> Iterator[tuple[str, Host, Host | None]]:
    """The weights that a query, key or value has in another order of the three: (text, weight, bias)."""
    parent, _, name = layer.path.rpartition(".")
    for names in (("q", "k", "v"), ("to_q", "to_k", "to_v"), ("q_proj", "k_proj", "v_proj")):
        found = [walk.layers.get(f"{parent}.{each}") for each in names]
        siblings = [each for each in found if isinstance(each, Conv2d)]
        if name not in names or len(siblings) < 3:
            continue
        for other, sibling in zip(names, siblings, strict=True):
            if other != name and sibling.weight.shape == layer.weight.shape:
                bias = None if sibling.bias is None else sibling.bias.float32
                yield f"{name} has the weight of {other}: another order", sibling.weight.float32, bias
        attend = walk.layers.get(f"{parent}.attend")
        if (
            isinstance(attend, Attention)
            and attend.heads > 1
            and len({each.weight.shape for each in siblings}) == 1
        ):
            number, heads = names.index(name), attend.heads
            biases = [each.bias.float32 for each in siblings if each.bias is not None]
            yield (
                f"q, k and v of each of {heads} heads follow one another in one matrix",
                by_head([each.weight.float32 for each in siblings], number, heads),
                by_head(biases, number, heads) if len(biases) == 3 else None,
            )


def _given(layer: Layer, reference: Reference) -> dict[str, Host]:
    """The module's weights for a layer, where they are at hand and others than the layer's."""
    found: dict[str, Host] = {}
    for name, parameter in vars(layer).items():
        path = f"{layer.path}.{name}"
        if isinstance(parameter, Parameter) and path in reference.parameters:
            value = np.asarray(reference.parameters[path], np.float32)
            if value.shape == parameter.shape and not np.allclose(value, parameter.float32, 1e-5, 1e-7):
                found[name] = value
    return found


def of_padding(walk: Walk, layer: Conv2d, reference: Reference) -> Iterator[Hypothesis]:
    """The zeros lie on other sides, as many in all that the output keeps its size."""
    g, step = layer.geometry, walk.steps[layer.path]
    source = walk.call(layer.path).source
    assert source is not None
    size = source.shape[1:3]
    kernel = g.kernel[0]
    bias = None if layer.bias is None else layer.bias.float32
    if kernel == 1:
        return
    sides = [(a, b) for a in range(kernel) for b in range(kernel)]
    for top, bottom in sides:
        padding: Padding = (top, bottom, top, bottom)
        same = replace(g, padding=padding).output_size(*size) == tuple(step.shape[1:3])
        if padding == g.padding or not same or abs(top - bottom) > 1:
            continue
        weights = walk.listening.prepare_conv(
            layer.weight.float32,
            bias,
            stride=g.stride,
            padding=padding,
            groups=g.groups,
            size=step.shape[1:3],
        )
        yield Hypothesis(
            "padding",
            f"zeros: {top} above and on the left, {bottom} below and on the right, instead of {g.padding[0]} and "
            f"{g.padding[1]}",
            lambda call, w=weights: replace(call, weights=w),  # type: ignore[misc]  # a lambda's default
        )


def of_look_up(walk: Walk, layer: LabelConv, reference: Reference) -> Iterator[Hypothesis]:
    weight, bias = layer.weight.float32, layer.bias.float32
    upload = walk.listening.upload

    def with_table(w: Host, b: Host = bias) -> Change:
        outputs, labels, k, _ = w.shape
        table = upload(np.ascontiguousarray(w.transpose(2, 3, 1, 0).reshape(k * k, labels, outputs)))
        held = upload(b)
        return lambda call: replace(call, table=table, bias=held)

    for kind, text, other in _other_weights(weight):
        yield Hypothesis(kind, text, with_table(other))
    yield from _of_spectral_norm(layer, reference, lambda factor: with_table(weight * factor))
    if bias.any():
        yield Hypothesis("bias", "there is no bias", with_table(weight, np.zeros_like(bias)))
    given = _given(layer, reference)
    if given:
        yield Hypothesis(
            "other weights",
            "its weights are others than the model's",
            with_table(given.get("weight", weight), given.get("bias", bias)),
        )


def of_parameters(layers: Sequence[Linear | LatentStart], reference: Reference) -> Iterator[Hypothesis]:
    """Of layers that read their parameters when they compute: rows, and a start from a latent vector."""
    for each in layers:
        if each.weight.shape[0] == each.weight.shape[1]:
            value = np.ascontiguousarray(each.weight.float32.T)
            text = f"the weight of {each.path} is transposed"
            yield Hypothesis("transposed weight", text, parameters=((each.weight, value),))
        bias = each.bias.float32
        if bias.any():
            zeros = np.zeros_like(bias)
            yield Hypothesis("bias", f"{each.path} has no bias", parameters=((each.bias, zeros),))
    given = [(vars(each)[name], value) for each in layers for name, value in _given(each, reference).items()]
    if given:
        yield Hypothesis("other weights", "its weights are others than the model's", parameters=tuple(given))
