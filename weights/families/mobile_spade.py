"""GAN Compression's GauGAN (the sub-mobile SPADE generator) as its authors and SIGE save it: sizes, and key tables.

Sources: github.com/mit-han-lab/gan-compression (models/modules/spade_architecture) and github.com/lmxyy/sige
(gaugan/models), read for names, shapes and the order of fused rows. The mobile generator before its compression has
the same names, one width in all places, and spectral norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..keymap import Family, Rule
from ..tensor import Tensor
from .shapes import size
from .spade import (
    CITYSCAPES,
    COUNTER,
    FUSED_HIDDEN,
    NORM,
    SEPARATE_HIDDEN,
    SHARED_ENDS,
    SPECTRAL_CONVOLUTIONS,
    WITH_EDGES,
)

_MODEL = "mobile SPADE generator"

# Tensors whose rows are a width times this number, in the order of upstream's configuration string.
_WIDTHS = (
    ("fc.bias", 16),
    ("head_0.conv_0.bias", 16),
    ("G_middle_0.conv_0.bias", 16),
    ("G_middle_1.conv_0.bias", 16),
    ("up_0.conv_0.bias", 8),
    ("up_1.conv_0.bias", 4),
    ("up_2.conv_0.bias", 2),
    ("up_3.conv_0.bias", 1),
)

# A separable convolution is a sequence: 0 depthwise, 1 an instance norm without parameters, 2 pointwise.
_SEPARABLE = tuple(
    Rule(
        rf"{NORM}\.mlp_{half}\.conv\.{place}\.(?P<kind>weight|bias)",
        ("{block}.{norm}.mlp_gamma_beta." + name + ".{kind}",),
        "stack",
        part,
    )
    for half, part in (("gamma", "first"), ("beta", "second"))
    for place, name in ((0, "depthwise"), (2, "pointwise"))
)

# The statistics are those of the model before its compression: a layer's are the first of them.
_STATISTICS = (
    Rule(rf"{NORM}\.param_free_norm\.running_mean", ("{block}.{norm}.norm.mean",), "leading"),
    Rule(rf"{NORM}\.param_free_norm\.running_var", ("{block}.{norm}.norm.var",), "leading"),
    Rule(rf"{NORM}\.param_free_norm\.num_batches_tracked", ignored=COUNTER),
)

_RULES = SHARED_ENDS + SPECTRAL_CONVOLUTIONS + _STATISTICS + _SEPARABLE


def _separate(checkpoint: Checkpoint) -> dict[str, Any] | None:
    return _config(checkpoint.tensors) if _has(checkpoint.tensors, "norm_0.mlp_shared.0.weight") else None


def _fused(checkpoint: Checkpoint) -> dict[str, Any] | None:
    return _config(checkpoint.tensors) if _has(checkpoint.tensors, "mlp_shared.0.weight") else None


def _has(tensors: Mapping[str, Tensor], hidden: str) -> bool:
    """Whether gamma is computed by separable convolutions, and the hidden layers have this name in a block."""
    blocks = ("head_0", "up_0")
    separable = any(f"{block}.norm_0.mlp_gamma.conv.0.weight" in tensors for block in blocks)
    return separable and any(f"{block}.{hidden}" in tensors for block in blocks)


def _config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The model's configuration; what shapes do not show is decided as for GauGAN, by the number of channels."""
    semantic_nc = size(tensors, "fc.weight", 1, _MODEL)
    return {
        "channels": tuple(_width(tensors, name, times) for name, times in _WIDTHS),
        "semantic_nc": semantic_nc,
        "num_upsampling_layers": "more" if semantic_nc == CITYSCAPES else "normal",
        "edge_channel": semantic_nc in WITH_EDGES,
    }


def _width(tensors: Mapping[str, Tensor], name: str, times: int) -> int:
    rows = size(tensors, name, 0, _MODEL)
    if rows % times:
        raise CheckpointError(
            f"is a {_MODEL} whose {name} has {rows} values, expected a multiple of {times}",
            advice="The file is damaged, or of a kind that is not known: download it again",
        )
    return rows // times


GAN_COMPRESSION = Family("gan-compression", "mobile-gaugan", _RULES + SEPARATE_HIDDEN, _separate)
SIGE_FUSED_GAN_COMPRESSION = Family(
    "sige-fused-gan-compression", "mobile-gaugan", _RULES + FUSED_HIDDEN, _fused
)
