"""Stable Diffusion's networks of diffusers and transformers with random weights, and ours with the same weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from sparsegen.backends.interface import Host
from sparsegen.models import CLIPText, CLIPTextConfig, SDUNet, SDUNetConfig
from sparsegen.models.base import Model

# diffusers' names -> ours
_UNET = (
    (r"time_embedding\.linear_1", "temb.dense.0"),
    (r"time_embedding\.linear_2", "temb.dense.1"),
    (r"conv_norm_out", "norm_out"),
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.attentions", r"down.\1.attn"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"time_emb_proj", "temb_proj"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"transformer_blocks\.0", "block"),
    (r"to_out\.0", "to_out"),
    (r"ff\.net\.0\.proj", "ff.proj"),
    (r"ff\.net\.2", "ff.out"),
)
# transformers' names -> ours
_TEXT = (
    (r"^text_model\.", ""),
    (r"embeddings\.(token|position)_embedding\.weight", r"embeddings.\1_embedding"),
    (r"encoder\.layers\.", "layer."),
)


def unet_path(name: str, levels: int) -> str:
    """Our path of a parameter that diffusers' `UNet2DConditionModel` of so many levels calls `name`."""
    for pattern, path in _UNET:
        name = re.sub(pattern, path, name)
    for kind, path in (("resnets", "block"), ("attentions", "attn"), ("upsamplers.0", "upsample")):
        name = re.sub(
            rf"up_blocks\.(\d+)\.{re.escape(kind)}",
            lambda m, p=path: f"up.{levels - 1 - int(m[1])}.{p}",
            name,
        )
    return name


def text_path(name: str) -> str:
    """Our path of a parameter that transformers' `CLIPTextModel` calls `name`."""
    for pattern, path in _TEXT:
        name = re.sub(pattern, path, name)
    return name


def take(model: Model, state: Mapping[str, Host]) -> None:
    """Load values by our paths; matrices become 1×1 kernels."""
    parameters = model.parameters()
    model.load_parameters({path: value.reshape(parameters[path].shape) for path, value in state.items()})


def stirred(net: Any, *, by: float = 0.2) -> Any:
    """The network in evaluation mode, its norms moved away from 1 and 0."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name:
                parameter.add_(by * torch.randn(parameter.shape))
    return net.eval()


def unets(config: SDUNetConfig, *, linear: bool = False, seed: int = 0) -> tuple[Any, SDUNet]:
    """diffusers' `UNet2DConditionModel` and ours; `linear`: projections as 2.x stores them."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    net = stirred(
        diffusers.UNet2DConditionModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=config.levels,
            layers_per_block=config.blocks,
            down_block_types=tuple(
                "CrossAttnDownBlock2D" if has else "DownBlock2D" for has in config.attention
            ),
            up_block_types=tuple(
                "CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(config.attention)
            ),
            cross_attention_dim=config.context,
            attention_head_dim=config.heads,
            norm_num_groups=config.groups,
            use_linear_projection=linear,
        )
    )
    model = SDUNet(config)
    count = len(config.levels)
    take(model, {unet_path(name, count): value.numpy() for name, value in net.state_dict().items()})
    return net, model


def unet_output(net: Any, x: Host, time: Sequence[float] | float, text: Host) -> Host:
    """diffusers' prediction of `[N, H, W, C]`, in the same layout."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        out = net(
            torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))),
            torch.as_tensor(time),
            encoder_hidden_states=torch.from_numpy(text),
        ).sample
    return np.asarray(out.numpy().transpose(0, 2, 3, 1))


def encoders(config: CLIPTextConfig, *, seed: int = 0) -> tuple[Any, CLIPText]:
    """transformers' `CLIPTextModel` and ours."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    net = stirred(
        transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                intermediate_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=config.tokens,
                hidden_act=config.activation,
                layer_norm_eps=config.eps,
            )
        )
    )
    model = CLIPText(config)
    state = net.state_dict().items()
    take(model, {text_path(name): value.numpy() for name, value in state if "position_ids" not in name})
    return net, model
