"""SPADE generators: a label map comes in, an image comes out; what GauGAN and its compressed form share.

Source: Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", arXiv 1903.07291; blocks are
named as in its code, NVlabs/SPADE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from sparsegen.backends.interface import Host

from ..engine.feature import Feature, Modulation, leaky_relu, upsample
from ..errors import InputError, ShapeError
from ..layers import BatchNorm, Conv2d, InstanceNorm, LabelConv, LatentStart, Layer
from .base import Inputs, Model, multiples_near, named_sizes

HALVINGS = {"normal": 5, "more": 6, "most": 7}
"""`num_upsampling_layers` -> doublings of the size."""


class SpatiallyAdaptiveNorm(Layer):
    """Normalise x, then scale and shift every pixel by values computed from the labels around it."""

    norm: BatchNorm | InstanceNorm

    def __call__(self, x: Feature, labels: Feature) -> Feature:
        return self.norm(x).modulated(self.gamma_beta(labels, size=x.shape[1:3]))

    def gamma_beta(self, labels: Feature, *, size: tuple[int, int]) -> Modulation:
        """`[N, *size, 2C]` of the label map resized to `size`: the scale less 1, and the shift."""
        raise NotImplementedError


class SPADEResnetBlock(Layer):
    """Two convolutions, each after SPADE and leaky ReLU, and a shortcut, which may be convolved.

    `spade(channels)` is a SPADE of so many channels.
    """

    def __init__(
        self,
        inputs: int,
        middle: int,
        outputs: int,
        spade: Callable[[int], SpatiallyAdaptiveNorm],
        *,
        learned_shortcut: bool,
    ) -> None:
        self.norm_0 = spade(inputs)
        self.conv_0 = Conv2d(inputs, middle)
        self.norm_1 = spade(middle)
        self.conv_1 = Conv2d(middle, outputs)
        if learned_shortcut:
            self.norm_s = spade(inputs)
            self.conv_s = Conv2d(inputs, outputs, 1, bias=False, kept=False)
        self.learned_shortcut = learned_shortcut

    def __call__(self, x: Feature, labels: Feature) -> Feature:
        shortcut = self.conv_s(self.norm_s(x, labels)) if self.learned_shortcut else x
        h = self.conv_0(leaky_relu(self.norm_0(x, labels)))
        return self.conv_1(leaky_relu(self.norm_1(h, labels)), residual=shortcut)


class SPADEGenerator(Model):
    """A generator of blocks from the lowest resolution up; subclasses build the blocks.

    Their configurations have `semantic_nc`, `num_upsampling_layers` and `edge_channel`.
    """

    role = "generator"
    inputs = ("labels",)
    conditions: ClassVar[tuple[str, ...]] = ("instances",)
    """The names of the other inputs that `encode` takes."""

    fc: LabelConv | LatentStart
    head_0: SPADEResnetBlock
    G_middle_0: SPADEResnetBlock
    G_middle_1: SPADEResnetBlock
    up_0: SPADEResnetBlock
    up_1: SPADEResnetBlock
    up_2: SPADEResnetBlock
    up_3: SPADEResnetBlock
    conv_img: Conv2d

    def forward(self, canvases: dict[str, Feature], conditions: dict[str, Host]) -> Feature:
        labels = canvases["labels"]
        more = self.config.num_upsampling_layers != "normal"
        x = self.start(labels, conditions)
        x = self.head_0(x, labels)
        x = self.G_middle_0(upsample(x), labels)
        x = self.G_middle_1(upsample(x) if more else x, labels)
        for block in self.up_blocks():
            x = block(upsample(x), labels)
        return self.conv_img(leaky_relu(x), activation="tanh")

    def start(self, labels: Feature, conditions: dict[str, Host]) -> Feature:
        """The lowest resolution: the label map shrunk and convolved."""
        assert isinstance(self.fc, LabelConv)
        return self.fc(labels, size=self.start_size(*labels.shape[1:3]))

    def up_blocks(self) -> Iterator[SPADEResnetBlock]:
        """The blocks that double the size."""
        yield from (self.up_0, self.up_1, self.up_2, self.up_3)

    def start_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the lowest resolution for a label map of `height` × `width`. Raises ShapeError."""
        self.check_size(height, width)
        return height // self.unit, width // self.unit

    @property
    def unit(self) -> int:
        """The divisor of a label map's sides: 2 to the number of doublings."""
        return int(2 ** HALVINGS[self.config.num_upsampling_layers])

    def sizes_near(self, height: int, width: int) -> list[tuple[int, int]]:
        """Supported sizes, the nearest first: multiples of 2 to the number of doublings."""
        return multiples_near(self.unit, height, width)

    def check_size(self, height: int, width: int) -> None:
        """Raises ShapeError, which names the nearest sizes, if label maps of that size are not supported."""
        if height % self.unit or width % self.unit or not height or not width:
            raise self._wrong_size(height, width, f"needs multiples of {self.unit}")

    def _wrong_size(self, height: int, width: int, need: str) -> ShapeError:
        return ShapeError(
            f"the label map is {height}×{width}; this model ({self.config.num_upsampling_layers}) {need}, "
            f"the nearest are {named_sizes(self.sizes_near(height, width))}"
        )

    @property
    def labels(self) -> int:
        """The number of labels: a map holds 0 to this minus 1."""
        return int(self.config.semantic_nc - self.config.edge_channel)

    def check_labels(self, labels: Host) -> None:
        """Raises InputError, which gives its place, if a map `[H, W]` or `[N, H, W]` holds an unknown label."""
        if not labels.size or (labels.min() >= 0 and labels.max() < self.labels):
            return
        *sample, row, column = np.argwhere((labels < 0) | (labels >= self.labels))[0]
        label = labels[(*sample, row, column)]
        raise InputError(
            f"label {label} at row {row}, column {column}"
            + (f" of sample {sample[0]}" if sample and len(labels) > 1 else "")
            + f": this model has labels 0 to {self.labels - 1}"
            + (
                " (255 is 'unknown': read_labels(…, unknown_label=N), or --unknown-label N, makes it label N)"
                if label == 255
                else ""
            )
        )

    def encode(self, image: Any, *, base: Inputs | None = None, **conditions: Any) -> Inputs:
        """A label map as the canvas of one-hot channel numbers, checked.

        Parameters
        ----------
        image
            Integer labels `[H, W]` or `[N, H, W]`, 0 to the number of labels - 1.
        instances
            Integer instance map of the same shape, for models with an edge channel; None: the base's, or no edges.

        Raises
        ------
        InputError, ShapeError
        """
        unknown = set(conditions) - set(self.conditions)
        if unknown:
            raise InputError(
                f"unknown condition {', '.join(sorted(unknown))}; {self.family} takes {' and '.join(self.conditions)}"
            )
        labels = _index_map(image, "the label map")
        self.check_labels(labels)
        self.check_size(*labels.shape[1:])
        planes = [labels]
        if self.config.edge_channel:
            planes.append(self._edges(labels, conditions.get("instances"), base))
        elif conditions.get("instances") is not None:
            raise InputError("an instance map is given, but this model has no edge channel; omit it")
        canvas = np.empty((*labels.shape, len(planes)), np.int32)
        for i, plane in enumerate(planes):
            canvas[..., i] = plane
        return Inputs({"labels": canvas})

    def images(self, output: Host) -> Host:
        """tanh's [-1, 1] as uint8, rounded."""
        v = output + 1
        v *= 127.5  # in place from here
        np.rint(v, out=v)
        return np.clip(v, 0, 255, out=v).astype(np.uint8)

    def _edges(self, labels: Host, instances: Any, base: Inputs | None) -> Host:
        """The edge channel's number where a pixel's 4-neighbour belongs to another instance, else -1."""
        if instances is None and base is not None and base.shape == labels.shape:
            return base.canvases["labels"][..., 1]
        edge = np.zeros(labels.shape, bool)
        if instances is not None:
            ids = _index_map(instances, "the instance map")
            if ids.shape != labels.shape:
                raise ShapeError(
                    f"the instance map is {ids.shape}, expected {labels.shape}, as the label map"
                )
            across, down = ids[:, :, 1:] != ids[:, :, :-1], ids[:, 1:] != ids[:, :-1]
            edge[:, :, 1:] |= across
            edge[:, :, :-1] |= across
            edge[:, 1:] |= down
            edge[:, :-1] |= down
        return edge * np.int32(self.config.semantic_nc) - 1


def _index_map(value: Any, name: str) -> Host:
    """An integer map as `[N, H, W]`."""
    array = np.asarray(value)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or not len(array):
        raise ShapeError(f"{name} is {array.shape}, expected [H, W] or [N, H, W] with N ≥ 1")
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} is {array.dtype}, expected integers")
    return array
