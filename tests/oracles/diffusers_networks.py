"""Stable Diffusion's networks of diffusers and transformers: our configurations come in, random weights come out."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from sparsegen.models import CLIPTextConfig, SDUNetConfig, VAEConfig


def unet(config: SDUNetConfig, *, linear: bool = False) -> Any:
    """`UNet2DConditionModel`; `linear`: projections as 2.x stores them."""
    return diffusers.UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.levels,
        layers_per_block=config.blocks,
        down_block_types=tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in config.attention),
        up_block_types=tuple(
            "CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(config.attention)
        ),
        cross_attention_dim=config.context,
        attention_head_dim=config.heads,
        norm_num_groups=config.groups,
        use_linear_projection=linear,
    )


def autoencoder(config: VAEConfig) -> Any:
    """`AutoencoderKL`."""
    count = len(config.levels)
    return diffusers.AutoencoderKL(
        in_channels=config.channels,
        out_channels=config.channels,
        latent_channels=config.latents,
        block_out_channels=config.levels,
        layers_per_block=config.blocks,
        norm_num_groups=config.groups,
        scaling_factor=config.scale,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
    )


def text_encoder(config: CLIPTextConfig) -> Any:
    """`CLIPTextModel`."""
    return transformers.CLIPTextModel(
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
