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
from ..engine.feature import Feature, Modulation
from ..errors import InputError, ShapeError
from ..layers import BatchNorm, Conv2d, InstanceNorm, LabelConv, LatentStart
from ..tiling.policies import Paper
from .base import Inputs, nearest_sizes
from .spade import HALVINGS, SPADEGenerator, SPADEResnetBlock, SpatiallyAdaptiveNorm

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
        if self.num_upsampling_layers not in tuple(HALVINGS):
            raise InputError(
                f"num_upsampling_layers is {self.num_upsampling_layers!r}, expected one of {', '.join(HALVINGS)}"
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


class SPADE(SpatiallyAdaptiveNorm):
    """A SPADE whose gamma and beta depend on the 5×5 labels around a pixel alone (with a kernel of 3)."""

    def __init__(self, channels: int, config: GauGANConfig) -> None:
        self.norm = BatchNorm(channels) if config.norm == "batch" else InstanceNorm()
        self.mlp_shared = LabelConv(config.semantic_nc, config.nhidden, config.kernel_size)
        self.mlp_gamma_beta = Conv2d(config.nhidden, 2 * channels, config.kernel_size)

    def gamma_beta(self, labels: Feature, *, size: tuple[int, int]) -> Modulation:
        return self.mlp_gamma_beta(self.mlp_shared(labels, size=size, activation="relu", by_window=True))


class GauGAN(SPADEGenerator):
    """The SPADE generator, with every option of upstream."""

    family = "gaugan"
    config_type = GauGANConfig
    conditions = ("instances", "z")
    paper = Paper(dilation=1, level_dilation=2, sparse_levels=5)

    def __init__(self, config: GauGANConfig) -> None:
        super().__init__(config)
        nf, most = config.ngf, config.num_upsampling_layers == "most"
        if config.z_dim:
            self.fc = LatentStart(config.z_dim, 16 * nf, config.start_cells)
        else:
            self.fc = LabelConv(config.semantic_nc, 16 * nf)
        self.head_0 = self._block(16 * nf, 16 * nf)
        self.G_middle_0 = self._block(16 * nf, 16 * nf)
        self.G_middle_1 = self._block(16 * nf, 16 * nf)
        self.up_0 = self._block(16 * nf, 8 * nf)
        self.up_1 = self._block(8 * nf, 4 * nf)
        self.up_2 = self._block(4 * nf, 2 * nf)
        self.up_3 = self._block(2 * nf, nf)
        if most:
            self.up_4 = self._block(nf, nf // 2)
        self.conv_img = Conv2d(nf // 2 if most else nf, 3)

    def _block(self, inputs: int, outputs: int) -> SPADEResnetBlock:
        return SPADEResnetBlock(
            inputs,
            min(inputs, outputs),
            outputs,
            lambda channels: SPADE(channels, self.config),
            learned_shortcut=inputs != outputs,
        )

    def start(self, labels: Feature, conditions: dict[str, Host]) -> Feature:
        """The lowest resolution: the label map shrunk and convolved, or the latent vector spread out."""
        if isinstance(self.fc, LatentStart):
            return self.fc(conditions["z"], labels, size=self.start_size(*labels.shape[1:3]))
        return super().start(labels, conditions)

    def up_blocks(self) -> Iterator[SPADEResnetBlock]:
        yield from super().up_blocks()
        if self.config.num_upsampling_layers == "most":
            yield self.up_4

    def sizes_near(self, height: int, width: int) -> list[tuple[int, int]]:
        """Supported sizes, the nearest first: multiples of 2 to the number of doublings; with z, of one area."""
        unit, cells = self.unit, self.config.start_cells
        if not self.config.z_dim:
            return super().sizes_near(height, width)
        sizes = [(rows * unit, cells // rows * unit) for rows in range(1, cells + 1) if cells % rows == 0]
        found = nearest_sizes(sizes, height, width)
        return found[:1] if found[0] == (height, width) else found

    def check_size(self, height: int, width: int) -> None:
        super().check_size(height, width)
        area = self.config.start_cells * self.unit**2
        if self.config.z_dim and height * width != area:
            need = f"has a fixed size of {area} pixels with sides in multiples of {self.unit}"
            raise self._wrong_size(height, width, need)

    def encode(self, image: Any, *, base: Inputs | None = None, **conditions: Any) -> Inputs:
        """A label map as the canvas of one-hot channel numbers, checked; parameters beside those of the base class:

        Parameters
        ----------
        z
            Latent vector `[z_dim]` or `[N, z_dim]`, for models that start from one; None: the base's, or the
            model's default.

        Raises
        ------
        InputError, ShapeError
        """
        inputs = super().encode(image, base=base, **conditions)
        z = conditions.get("z")
        if self.config.z_dim == 0:
            if z is not None:
                raise InputError("z is given, but this model starts from labels; omit it")
            return inputs
        if z is None and base is not None:
            return Inputs(inputs.canvases, base.conditions)
        latent = self._latent(self.defaults.get("z") if z is None else z, inputs.shape[0])
        return Inputs(inputs.canvases, {"z": latent})

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
