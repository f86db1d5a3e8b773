"""GauGAN's generator (SPADE) as NVlabs and SIGE save it: how it is recognised, its sizes, and its key tables.

Sources: github.com/NVlabs/SPADE (models/networks) and github.com/lmxyy/sige (gaugan/models), read for names,
shapes and the order of fused rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..keymap import Family, Rule
from ..tensor import Tensor

_BLOCK = r"(?P<block>head_0|G_middle_[01]|up_[0-4])"
NORM = rf"{_BLOCK}\.(?P<norm>norm_[01s])"
_CONV = rf"(?P<conv>{_BLOCK}\.conv_[01s])"

COUNTER = "the number of batches that the statistics saw, not needed for inference"

SHARED_ENDS = (
    Rule(r"(?P<name>(?:fc|conv_img)\.(?:weight|bias))", ("{name}",)),
    Rule(rf"{_CONV}\.bias", ("{conv}.bias",)),
)

_ENDS = (
    *SHARED_ENDS,
    Rule(rf"{NORM}\.param_free_norm\.running_mean", ("{block}.{norm}.norm.mean",)),
    Rule(rf"{NORM}\.param_free_norm\.running_var", ("{block}.{norm}.norm.var",)),
    Rule(rf"{NORM}\.param_free_norm\.num_batches_tracked", ignored=COUNTER),
)

_PLAIN_CONVOLUTIONS = (Rule(rf"{_CONV}\.weight", ("{conv}.weight",)),)

# torch.nn.utils.spectral_norm saves, since PyTorch 0.4.1, weight_orig, weight_u and weight_v, from which the weight is
# computed; before, it saved weight_orig, weight_u and the computed weight. The names that
# torch.nn.utils.parametrizations.spectral_norm saves are others.
_PARAMETRIZED = r"\.parametrizations\.weight\."
SPECTRAL_CONVOLUTIONS = (
    Rule(rf"{_CONV}{_PARAMETRIZED}original", ("{conv}.weight",), "spectral", "orig"),
    Rule(rf"{_CONV}{_PARAMETRIZED}0\._u", ("{conv}.weight",), "spectral", "u"),
    Rule(rf"{_CONV}{_PARAMETRIZED}0\._v", ("{conv}.weight",), "spectral", "v"),
    Rule(rf"{_CONV}\.weight_orig", ("{conv}.weight",), "spectral", "orig", when="{conv}.weight_v"),
    Rule(rf"{_CONV}\.weight_u", ("{conv}.weight",), "spectral", "u", when="{conv}.weight_v"),
    Rule(rf"{_CONV}\.weight_v", ("{conv}.weight",), "spectral", "v"),
    Rule(rf"{_CONV}\.weight", ("{conv}.weight",), unless="{conv}.weight_v"),
    Rule(rf"{_CONV}\.weight", ignored="computed again from weight_orig", when="{conv}.weight_v"),
    Rule(
        rf"{_CONV}\.weight_(?:orig|u|bar)",
        ignored="the computed weight is beside it",
        unless="{conv}.weight_v",
    ),
)

SEPARATE_HIDDEN = (
    Rule(rf"{NORM}\.mlp_shared\.0\.(?P<kind>weight|bias)", ("{block}.{norm}.mlp_shared.{kind}",)),
)

_SEPARATE_MLPS = (
    *SEPARATE_HIDDEN,
    Rule(
        rf"{NORM}\.mlp_gamma\.(?P<kind>weight|bias)",
        ("{block}.{norm}.mlp_gamma_beta.{kind}",),
        "stack",
        "first",
    ),
    Rule(
        rf"{NORM}\.mlp_beta\.(?P<kind>weight|bias)",
        ("{block}.{norm}.mlp_gamma_beta.{kind}",),
        "stack",
        "second",
    ),
)

# SIGE computes the hidden layers of a block's two or three norms in one convolution, their rows one after another.
FUSED_HIDDEN = (
    Rule(
        rf"{_BLOCK}\.mlp_shared\.0\.(?P<kind>weight|bias)",
        tuple("{block}." + norm + ".mlp_shared.{kind}" for norm in ("norm_0", "norm_1", "norm_s")),
        "split",
    ),
)

_FUSED_MLPS = (
    *FUSED_HIDDEN,
    Rule(rf"{NORM}\.mlp_gamma_beta\.(?P<kind>weight|bias)", ("{block}.{norm}.mlp_gamma_beta.{kind}",)),
)

_LARGEST_NGF = 4096

# Input channels of the published generators whose last channel is an instance edge map: Cityscapes
# (34 labels, "don't care", edges) and COCO-Stuff (182, "don't care", edges). ADE20K (151) has none.
CITYSCAPES = 36
WITH_EDGES = (CITYSCAPES, 184)


def _spectral(checkpoint: Checkpoint) -> dict[str, Any] | None:
    conv = re.compile(rf"{_CONV}(?:\.weight_(?:orig|u|v|bar)|{_PARAMETRIZED}(?:original|0\._[uv]))")
    if not any(conv.fullmatch(name) for name in checkpoint.tensors):
        _refuse_companions(checkpoint.tensors)
        return None
    return _separate(checkpoint)


# The models that are trained beside the generator (models/networks/encoder.py, discriminator.py; pix2pixHD's too).
_COMPANIONS = (
    ("encoder", "E", r"layer[1-6]\.(?:0\.)?.+", r"fc_(?:mu|var)\.(?:weight|bias)"),
    ("discriminator", "D", r"discriminator_\d+\.model\d+\.(?:0\.){1,2}.+", r"discriminator_0\..+"),
    ("discriminator", "D", r"scale\d+_layer\d+\.\d+\..+", r"scale0_layer0\..+"),
)


def _refuse_companions(tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for the encoder or discriminator of a GAN: their files lie beside the generator's."""
    for network, letter, every, some in _COMPANIONS:
        each = re.compile(f"{every}|{some}")
        one = re.compile(some)
        if any(map(one.fullmatch, tensors)) and all(map(each.fullmatch, tensors)):
            raise CheckpointError(
                f"holds the {network} of a SPADE model (net_{letter}), expected its generator",
                advice="Give the file of the generator instead: latest_net_G.pth",
            )


def _plain(checkpoint: Checkpoint) -> dict[str, Any] | None:
    return None if _spectral(checkpoint) is not None else _separate(checkpoint)


def _separate(checkpoint: Checkpoint) -> dict[str, Any] | None:
    for _, shape in _shapes(checkpoint.tensors, rf"{NORM}\.mlp_shared\.0\.weight", 4):
        return _config(checkpoint.tensors, semantic_nc=shape[1], nhidden=shape[0], kernel_size=shape[2])
    return None


def _fused(checkpoint: Checkpoint) -> dict[str, Any] | None:
    for found, shape in _shapes(checkpoint.tensors, rf"{_BLOCK}\.mlp_shared\.0\.weight", 4):
        # A block that keeps its width has two norms, a block that narrows it a third, for the shortcut.
        norms = 3 if found["block"].startswith("up_") else 2
        nhidden = shape[0] // norms
        return _config(checkpoint.tensors, semantic_nc=shape[1], nhidden=nhidden, kernel_size=shape[2])
    return None


def _shapes(
    tensors: Mapping[str, Tensor], pattern: str, dimensions: int
) -> Iterator[tuple[re.Match[str], tuple[int, ...]]]:
    compiled = re.compile(pattern)
    for name, tensor in tensors.items():
        found = compiled.fullmatch(name)
        if found and len(tensor.shape) == dimensions and all(tensor.shape):
            yield found, tensor.shape


def _config(
    tensors: Mapping[str, Tensor], *, semantic_nc: int, nhidden: int, kernel_size: int
) -> dict[str, Any]:
    """The model's configuration, as far as shapes determine it.

    'normal' and 'more' have the same parameters: Cityscapes was trained with 'more', the others with 'normal', so the
    number of input channels decides. Shapes do not show either whether the last input is an edge map; the number of
    channels decides again. Settings of `sparsegen.load` override both.
    """
    most = any(name.startswith("up_4.") for name in tensors)
    ngf = _ngf(tensors, most)
    fc = tensors["fc.weight"].shape if "fc.weight" in tensors else ()
    z_dim = fc[1] if len(fc) == 2 else 0
    instance = not any(name.endswith(".param_free_norm.running_mean") for name in tensors)
    return {
        "ngf": ngf,
        "semantic_nc": semantic_nc,
        "nhidden": nhidden,
        "num_upsampling_layers": "most" if most else "more" if semantic_nc == CITYSCAPES else "normal",
        "norm": "instance" if instance else "batch",
        "edge_channel": semantic_nc in WITH_EDGES,
        "z_dim": z_dim,
        "kernel_size": kernel_size,
        # A generator that starts from z makes 16 ngf channels for each pixel of its lowest resolution.
        "start_cells": fc[0] // (16 * ngf) if z_dim else 0,
    }


def _ngf(tensors: Mapping[str, Tensor], most: bool) -> int:
    """Channels of the last block but one, from the first of these tensors that exists."""
    for name, axis, scale in (
        ("conv_img.weight", 1, 2 if most else 1),
        ("up_3.conv_0.bias", 0, 1),
        ("head_0.conv_0.bias", 0, 1 / 16),
        ("up_0.conv_0.bias", 0, 1 / 8),
    ):
        tensor = tensors.get(name)
        if tensor is not None and len(tensor.shape) > axis:
            ngf = int(tensor.shape[axis] * scale)
            if 0 < ngf <= _LARGEST_NGF:
                return ngf
    raise CheckpointError(
        "is a SPADE generator without a tensor that determines its width (conv_img.weight)",
        advice="The file is not whole: download it again",
    )


NVLABS_SPADE = Family("nvlabs-spade", "gaugan", _ENDS + SPECTRAL_CONVOLUTIONS + _SEPARATE_MLPS, _spectral)
SIGE_SPADE = Family("sige-spade", "gaugan", _ENDS + _PLAIN_CONVOLUTIONS + _SEPARATE_MLPS, _plain)
SIGE_FUSED_SPADE = Family("sige-fused-spade", "gaugan", _ENDS + _PLAIN_CONVOLUTIONS + _FUSED_MLPS, _fused)
