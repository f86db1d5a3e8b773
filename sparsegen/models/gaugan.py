"""GauGAN: a label map comes in, an image comes out, through spatially-adaptive normalisation (SPADE).

Source: Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization", arXiv 1903.07291; layers are
named as in its code, NVlabs/SPADE, whose checkpoints then need no rename.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sparsegen.backends.interface import Host

from ..checks import whole_number
from ..engine.feature import Feature, leaky_relu, upsample
from ..errors import InputError, ShapeError
from ..layers import BatchNorm, Conv2d, InstanceNorm, LabelConv, LatentStart, Layer
from ..tiling.policies import Paper
from .base import Inputs, Model, multiples_near, named_sizes, nearest_sizes

_HALVINGS = {"normal": 5, "more": 6, "most": 7}
_RANGES = {
    "ngf": (1, 4096),
    "semantic_nc": (1, 65536),
    "nhidden": (1, 65536),
    "z_dim": (0, 65536),
    "kernel_size": (1, 15),
    "start_cells": (0, 65536),
}


@dataclass(frozen=True)
class GauGANConfig:
    """The values that determine the model's shape, by upstream's names.

    Attributes
    ----------
    ngf
        Channels of the last block before `conv_img` (twice that in "most").
    semantic_nc
        Channels of the one-hot input: the labels, plus one for instance edges when `edge_channel`.
    nhidden
        Channels of each SPADE's hidden layer.
    num_upsampling_layers
        "normal": 5 doublings of the size, "more": 6, "most": 7 and one block more.
    norm
        The parameter-free norm: "batch" (syncbatch is the same at inference) or "instance".
    edge_channel
        Whether the last channel marks the borders of instances.
    z_dim
        Length of the latent vector that starts the model (the VAE generators), 0 for a start from labels.
    kernel_size
        Side of the SPADE convolutions.
    start_cells
        Pixels of the lowest resolution of a model with z (its `fc` has 16 ngf outputs for each); else 0.
    """

    ngf: int = 64
    semantic_nc: int = 36
    nhidden: int = 128
    num_upsampling_layers: Literal["normal", "more", "most"] = "more"
    norm: Literal["batch", "instance"] = "batch"
    edge_channel: bool = True
    z_dim: int = 0
    kernel_size: int = 3
    start_cells: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least, most))
        if self.num_upsampling_layers not in tuple(_HALVINGS):
            raise InputError(
                f"num_upsampling_layers is {self.num_upsampling_layers!r}, expected one of {', '.join(_HALVINGS)}"
            )
        if self.norm not in ("batch", "instance"):
            raise InputError(f"norm is {self.norm!r}, expected batch or instance")
        if not isinstance(self.edge_channel, bool):
            raise InputError(f"edge_channel is {self.edge_channel!r}, expected true or false")
        if self.kernel_size % 2 == 0:
            raise InputError(f"kernel_size is {self.kernel_size}, expected an odd number")
        if bool(self.z_dim) != bool(self.start_cells):
            raise InputError(
                f"z_dim is {self.z_dim} and start_cells is {self.start_cells}; expected both or neither to be 0"
            )
        if self.semantic_nc <= self.edge_channel:
            raise InputError(
                f"semantic_nc is {self.semantic_nc}, expected 2 or more: a label and the edge channel"
            )
        if self.num_upsampling_layers == "most" and self.ngf < 2:
            raise InputError("ngf is 1, expected 2 or more with num_upsampling_layers most")


class SPADE(Layer):
    """Normalise x, then scale and shift every pixel by values computed from the labels around it."""

    def __init__(self, channels: int, config: GauGANConfig) -> None:
        self.norm = BatchNorm(channels) if config.norm == "batch" else InstanceNorm()
        self.mlp_shared = LabelConv(config.semantic_nc, config.nhidden, config.kernel_size)
        self.mlp_gamma_beta = Conv2d(config.nhidden, 2 * channels, config.kernel_size)

    def __call__(self, x: Feature, labels: Feature) -> Feature:
        hidden = self.mlp_shared(labels, size=x.shape[1:3], activation="relu", by_window=True)
        return self.norm(x).modulated(self.mlp_gamma_beta(hidden))


class SPADEResnetBlock(Layer):
    """Two convolutions, each after SPADE and leaky ReLU, and a shortcut (convolved when the width changes)."""

    def __init__(self, inputs: int, outputs: int, config: GauGANConfig) -> None:
        middle = min(inputs, outputs)
        self.norm_0 = SPADE(inputs, config)
        self.conv_0 = Conv2d(inputs, middle)
        self.norm_1 = SPADE(middle, config)
        self.conv_1 = Conv2d(middle, outputs)
        if inputs != outputs:
            self.norm_s = SPADE(inputs, config)
            self.conv_s = Conv2d(inputs, outputs, 1, bias=False, kept=False)
        self.learned_shortcut = inputs != outputs

    def __call__(self, x: Feature, labels: Feature) -> Feature:
        shortcut = self.conv_s(self.norm_s(x, labels)) if self.learned_shortcut else x
        h = self.conv_0(leaky_relu(self.norm_0(x, labels)))
        return self.conv_1(leaky_relu(self.norm_1(h, labels)), residual=shortcut)


class GauGAN(Model):
    """The SPADE generator, with every option of upstream."""

    family = "gaugan"
    role = "generator"
    config_type = GauGANConfig
    inputs = ("labels",)
    paper = Paper(dilation=1, level_dilation=2, sparse_levels=5)

    def __init__(self, config: GauGANConfig) -> None:
        super().__init__(config)
        nf, most = config.ngf, config.num_upsampling_layers == "most"
        self.fc: LabelConv | LatentStart
        if config.z_dim:
            self.fc = LatentStart(config.z_dim, 16 * nf, config.start_cells)
        else:
            self.fc = LabelConv(config.semantic_nc, 16 * nf)
        self.head_0 = SPADEResnetBlock(16 * nf, 16 * nf, config)
        self.G_middle_0 = SPADEResnetBlock(16 * nf, 16 * nf, config)
        self.G_middle_1 = SPADEResnetBlock(16 * nf, 16 * nf, config)
        self.up_0 = SPADEResnetBlock(16 * nf, 8 * nf, config)
        self.up_1 = SPADEResnetBlock(8 * nf, 4 * nf, config)
        self.up_2 = SPADEResnetBlock(4 * nf, 2 * nf, config)
        self.up_3 = SPADEResnetBlock(2 * nf, nf, config)
        if most:
            self.up_4 = SPADEResnetBlock(nf, nf // 2, config)
        self.conv_img = Conv2d(nf // 2 if most else nf, 3)

    def forward(self, canvases: dict[str, Feature], conditions: dict[str, Host]) -> Feature:
        labels = canvases["labels"]
        more = self.config.num_upsampling_layers != "normal"
        x = self.start(labels, conditions.get("z"))
        x = self.head_0(x, labels)
        x = self.G_middle_0(upsample(x), labels)
        x = self.G_middle_1(upsample(x) if more else x, labels)
        for block in self._up_blocks():
            x = block(upsample(x), labels)
        return self.conv_img(leaky_relu(x), activation="tanh")

    def start(self, labels: Feature, z: Host | None) -> Feature:
        """The lowest resolution: the label map shrunk and convolved, or the latent vector spread out."""
        size = self.start_size(*labels.shape[1:3])
        if isinstance(self.fc, LabelConv):
            return self.fc(labels, size=size)
        assert z is not None  # encode gives every model with z one
        return self.fc(z, labels, size=size)

    def start_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the lowest resolution for a label map of `height` × `width`. Raises ShapeError."""
        self.check_size(height, width)
        return height // self.unit, width // self.unit

    def sizes_near(self, height: int, width: int) -> list[tuple[int, int]]:
        """Supported sizes, the nearest first: multiples of 2 to the number of doublings; with z, of one area."""
        unit, cells = self.unit, self.config.start_cells
        if not self.config.z_dim:
            return multiples_near(unit, height, width)
        sizes = [(rows * unit, cells // rows * unit) for rows in range(1, cells + 1) if cells % rows == 0]
        found = nearest_sizes(sizes, height, width)
        return found[:1] if found[0] == (height, width) else found

    def check_size(self, height: int, width: int) -> None:
        """Raises ShapeError, which names the nearest sizes, if label maps of that size are not supported."""
        unit = self.unit
        if height % unit or width % unit or not height or not width:
            need = f"needs multiples of {unit}"
        elif self.config.z_dim and height * width != self.config.start_cells * unit * unit:
            area = self.config.start_cells * unit * unit
            need = f"has a fixed size of {area} pixels with sides in multiples of {unit}"
        else:
            return
        raise ShapeError(
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
        z
            Latent vector `[z_dim]` or `[N, z_dim]`, for models that start from one; None: the base's, or the
            model's default.

        Raises
        ------
        InputError, ShapeError
        """
        unknown = set(conditions) - {"instances", "z"}
        if unknown:
            raise InputError(f"unknown condition {', '.join(sorted(unknown))}; gaugan takes instances and z")
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
        z = conditions.get("z")
        if self.config.z_dim == 0:
            if z is not None:
                raise InputError("z is given, but this model starts from labels; omit it")
            return Inputs({"labels": canvas})
        if z is None and base is not None:
            return Inputs({"labels": canvas}, base.conditions)
        return Inputs(
            {"labels": canvas}, {"z": self._latent(self.defaults.get("z") if z is None else z, len(labels))}
        )

    def images(self, output: Host) -> Host:
        """tanh's [-1, 1] as uint8, rounded."""
        v = output + 1
        v *= 127.5  # in place from here
        np.rint(v, out=v)
        return np.clip(v, 0, 255, out=v).astype(np.uint8)

    @property
    def unit(self) -> int:
        """The divisor of a label map's sides: 2 to the number of doublings."""
        return int(2 ** _HALVINGS[self.config.num_upsampling_layers])

    def _up_blocks(self) -> Iterator[SPADEResnetBlock]:
        yield from (self.up_0, self.up_1, self.up_2, self.up_3)
        if self.config.num_upsampling_layers == "most":
            yield self.up_4

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

    def _latent(self, z: Any, samples: int) -> Host:
        length = self.config.z_dim
        try:
            latent = np.zeros(length, np.float32) if z is None else np.asarray(z, np.float32)
        except (TypeError, ValueError):
            raise InputError(f"z is {type(z).__name__}, expected {length} numbers") from None
        if latent.shape not in ((length,), (samples, length)):
            raise ShapeError(f"z is {latent.shape}, expected ({length},) or ({samples}, {length})")
        if not np.isfinite(latent).all():
            raise InputError("z holds NaN or infinity, expected finite numbers")
        return np.ascontiguousarray(np.broadcast_to(latent, (samples, length)))


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
