"""The names of a file's tensors in; an error that names the kind of model, if it is one that the engine lacks, out.

Sources: the names that the models' own repositories and github.com/huggingface/diffusers (loaders/single_file_utils.py)
know them by.
"""

from __future__ import annotations

import re

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, shown

_OTHER = "Give the weights of Stable Diffusion 1.x or 2.x"

# A part of a tensor's name that models of a kind have -> the kind, and the advice.
_KINDS: tuple[tuple[str, str, str], ...] = (
    (r"(?:^|\.)conditioner\.embedders\.\d|\blabel_emb\.0\.0\.weight$", "an SDXL model", _OTHER),
    (r"\badd_embedding\.linear_1\.weight$", "the UNet of an SDXL model", _OTHER),
    (r"\bjoint_blocks\.\d|\btransformer_blocks\.\d+\.attn\.add_q_proj\.", "an SD3 model", _OTHER),
    (r"\b(?:double_blocks|single_transformer_blocks)\.\d", "a Flux model", _OTHER),
    (r"\bclass_embedding\.linear_1\.weight$", "a UNet that is conditioned on a class", _OTHER),
    (
        r"\bcontrol_model\.|\bcontrolnet_cond_embedding\.|^input_hint_block\.",
        "a ControlNet",
        "ControlNets are not supported. " + _OTHER,
    ),
    (r"\b(?:image_proj|ip_adapter)\.", "an IP-Adapter", _OTHER),
    (r"^(?:emb_params|string_to_param\..+)$", "an embedding of textual inversion", _OTHER),
    (
        r"(?:^|[._])(?:lora_(?:down|up|A|B|linear_layer)|lora\.(?:down|up)|to_[qkv]_lora\.(?:down|up))\b"
        r"|\b(?:hada_w1_a|lokr_w[12](?:_[ab])?|dora_scale|oft_blocks)$",
        "a LoRA",
        "Give the model's own file, and this one as lora={path: scale}",
    ),
)
_PATTERNS = tuple((re.compile(pattern), kind, advice) for pattern, kind, advice in _KINDS)

# Input channels of the UNets that belong to other pipelines.
_INPUTS = {
    5: "a model that is conditioned on depth (5 input channels)",
    7: "an upscaler (7 input channels)",
    8: "an InstructPix2Pix model (8 input channels)",
}
INPUTS = (4, 9)
"""Input channels of the supported UNets: latents; latents, mask and the masked image's latents."""


def refuse_by_name(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for a file whose names are those of a known kind of model that is not supported."""
    for pattern, kind, advice in _PATTERNS:
        sign = next(filter(pattern.search, checkpoint.tensors), None)
        if sign is not None:
            raise CheckpointError(
                f"is {kind}, which is not supported here",
                where=shown(sign),
                advice=advice,
                path=checkpoint.path,
            )


def refuse_by_inputs(channels: int) -> None:
    """Raise CheckpointError for a UNet with the input channels of another pipeline."""
    if channels in _INPUTS:
        raise CheckpointError(
            f"is {_INPUTS[channels]}, supported: {' and '.join(map(str, INPUTS))} input channels",
            advice=_OTHER,
        )
