"""Stable Diffusion's networks of diffusers and transformers with random weights, and ours with the same weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from sparsegen import Bundle
from sparsegen.backends.interface import Host
from sparsegen.models import (
    CLIPText,
    CLIPTextConfig,
    SDUNet,
    SDUNetConfig,
    Tokenizer,
    VAEDecoder,
    VAEEncoder,
)
from sparsegen.models.base import Model
from tests.oracles import tiny_sd

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


# diffusers' names of either half of an autoencoder -> ours
_VAE = (
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def vae_path(name: str, levels: int) -> str:
    """Our path of a parameter that diffusers calls `name`; the first name is the half's."""
    name = name.removeprefix("encoder.").removeprefix("decoder.")
    for pattern, path in _VAE:
        name = re.sub(pattern, path, name)
    for kind, path in (("resnets", "block"), ("upsamplers.0", "upsample")):
        name = re.sub(
            rf"up_blocks\.(\d+)\.{re.escape(kind)}",
            lambda m, p=path: f"up.{levels - 1 - int(m[1])}.{p}",
            name,
        )
    return name


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


def _networks() -> Any:
    """The module that makes networks of diffusers and transformers."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tests.oracles import diffusers_networks

    return diffusers_networks


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
    networks = _networks()
    torch.manual_seed(seed)
    net = stirred(networks.unet(config, linear=linear))
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
    networks = _networks()
    torch.manual_seed(seed)
    net = stirred(networks.text_encoder(config))
    model = CLIPText(config)
    state = net.state_dict().items()
    take(model, {text_path(name): value.numpy() for name, value in state if "position_ids" not in name})
    return net, model


@dataclass(frozen=True)
class Parts:
    """The networks of a tiny Stable Diffusion with random weights: diffusers' and transformers', and ours."""

    vae: Any
    text: Any
    unet: Any
    prediction: str
    bundle: Bundle

    def scheduler(self, kind: str = "DDIMScheduler", **settings: Any) -> Any:
        """diffusers' scheduler of that class, with Stable Diffusion's settings."""
        diffusers = pytest.importorskip("diffusers")
        usual = {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": self.prediction,
            **settings,
        }
        return getattr(diffusers, kind)(**usual)

    def features(self, text: str) -> Any:
        """The features that transformers' encoder gives a text, `[1, 77, C]`."""
        torch = pytest.importorskip("torch")
        ids = torch.from_numpy(Tokenizer().encode(text).ids[None].astype(np.int64))
        with torch.no_grad():
            return self.text(ids).last_hidden_state


@cache
def parts(*, channels: int = 4, prediction: str = "epsilon", seed: int = 0) -> Parts:
    """`channels` that the UNet reads: 9 of an inpainting model."""
    unet, our_unet = unets(replace(tiny_sd.UNET, in_channels=channels), seed=seed)
    unet.register_to_config(sample_size=8)
    text, our_text = encoders(tiny_sd.TEXT, seed=seed)
    vae = stirred(_networks().autoencoder(tiny_sd.VAE))
    encoder, decoder = VAEEncoder(tiny_sd.VAE), VAEDecoder(tiny_sd.VAE)
    state = {name: value.numpy() for name, value in vae.state_dict().items()}
    for model, first in ((encoder, ("encoder.", "quant_conv.")), (decoder, ("decoder.", "post_quant_conv."))):
        take(model, {vae_path(n, 3): value for n, value in state.items() if n.startswith(first)})
    our_unet.size = (8, 8)
    models = {"unet": our_unet, "encoder": encoder, "decoder": decoder, "text": our_text}
    bundle = Bundle(
        "tiny",
        models,
        dict.fromkeys(models, "random"),
        schedule="stable_diffusion",
        prediction="noise" if prediction == "epsilon" else "velocity",
    )
    return Parts(vae, text, unet, prediction, bundle)
