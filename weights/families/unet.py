"""The UNets of DDPM and progressive distillation as pesser, ermongroup and SIGE save them: sizes and key tables.

Sources: github.com/pesser/pytorch_diffusion (whose files are plain state dicts, `ema_…` among them), ermongroup/ddim
(training checkpoints: a list of model, optimizer, epoch, step, average) and lmxyy/sige (diffusion/models: `{"model",
"ema"}`), read for names, shapes and the order of fused rows. The engine's own names are pesser's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint import Checkpoint
from ..keymap import Family, Rule
from ..tensor import Tensor
from .shapes import consecutive, size

_MODEL = "diffusion UNet"
MOST_LEVELS, MOST_BLOCKS = 16, 64
"""More than any model has: a forged file cannot make tables long."""

_RESAMPLE = r"down\.\d+\.downsample|up\.\d+\.upsample"
_BLOCK = rf"(?:(?:down|up)\.\d+\.block\.\d+|mid\.block_[12]|{_RESAMPLE})"
_ATTENTION = r"(?:(?:down|up)\.\d+\.attn\.\d+|mid\.attn_1)"
_KIND = r"(?P<kind>weight|bias)"


def _same(names: str) -> Rule:
    """A rule for layers that have the same names in the engine."""
    return Rule(rf"(?P<name>(?:{names})\.(?:weight|bias))", ("{name}",))


_COMMON = (
    _same(r"temb\.dense\.[01]|conv_in|norm_out|conv_out"),
    _same(rf"{_BLOCK}\.(?:norm[12]|conv[12]|nin_shortcut)"),
    _same(rf"{_ATTENTION}\.(?:norm|proj_out)"),
    _same(rf"(?:{_RESAMPLE})\.conv"),
)
_OWN_TIME = (_same(rf"{_BLOCK}\.temb_proj"),)
_SEPARATE_ATTENTION = (_same(rf"{_ATTENTION}\.[qkv]"),)
_FUSED_ATTENTION = (
    Rule(
        rf"(?P<attn>{_ATTENTION})\.qkv\.{_KIND}",
        tuple(f"{{attn}}.{part}.{{kind}}" for part in "qkv"),
        "split",
    ),
)
# One matrix projects the embedded time for all blocks, its rows in the order in which the blocks run; blocks that a
# model does not have are skipped.
_FUSED_TIME = (
    Rule(
        rf"temb\.dense\.2\.{_KIND}",
        tuple(
            f"{block}.temb_proj.{{kind}}"
            for block in (
                *(f"down.{i}.block.{j}" for i in range(MOST_LEVELS) for j in range(MOST_BLOCKS)),
                "mid.block_1",
                "mid.block_2",
                *(f"up.{i}.block.{j}" for i in reversed(range(MOST_LEVELS)) for j in range(MOST_BLOCKS + 1)),
            )
        ),
        "split",
    ),
)
_TRAINING = (Rule(r"logvar", ignored="the weights of the training loss, one for each timestep"),)


def _plain(checkpoint: Checkpoint) -> dict[str, Any] | None:
    fused = {"temb.dense.2.weight", "mid.attn_1.qkv.weight"}
    return None if fused & checkpoint.tensors.keys() else _sizes(checkpoint.tensors)


def _fused(checkpoint: Checkpoint) -> dict[str, Any] | None:
    return _sizes(checkpoint.tensors) if "temb.dense.2.weight" in checkpoint.tensors else None


def _distilled(checkpoint: Checkpoint) -> dict[str, Any] | None:
    tensors = checkpoint.tensors
    if "mid.attn_1.qkv.weight" not in tensors or "temb.dense.2.weight" in tensors:
        return None
    sizes = _sizes(tensors)
    # Shapes do not depend on heads. In the published models they have 64 channels.
    return None if sizes is None else {**sizes, "head_channels": 64}


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The model's configuration, as far as shapes determine it; None if the tensors are not of such a UNet."""
    if "temb.dense.0.weight" not in tensors or "down.0.block.0.conv1.weight" not in tensors:
        return None
    count = consecutive(tensors, "down.{}.block.0.conv1.weight", MOST_LEVELS)
    return {
        "in_channels": size(tensors, "conv_in.weight", 1, _MODEL),
        "out_channels": size(tensors, "conv_out.weight", 0, _MODEL),
        "channels": size(tensors, "conv_in.weight", 0, _MODEL),
        "levels": tuple(size(tensors, f"down.{i}.block.0.conv1.weight", 0, _MODEL) for i in range(count)),
        "attention": tuple(f"down.{i}.attn.0.norm.weight" in tensors for i in range(count)),
        "blocks": consecutive(tensors, "down.0.block.{}.conv1.weight", MOST_BLOCKS),
        "time_channels": size(tensors, "temb.dense.0.weight", 0, _MODEL),
    }


PESSER_DDPM = Family(
    "pesser-ddpm",
    "ddpm",
    _COMMON + _OWN_TIME + _SEPARATE_ATTENTION + _TRAINING,
    _plain,
)
SIGE_FUSED_DDPM = Family("sige-fused-ddpm", "ddpm", _COMMON + _FUSED_TIME + _FUSED_ATTENTION, _fused)
SIGE_PD = Family("sige-pd", "pd", _COMMON + _OWN_TIME + _FUSED_ATTENTION, _distilled)
