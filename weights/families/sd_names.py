"""A Stable Diffusion UNet's sizes in; the engine's name of each of its layers, with CompVis's and diffusers', out.

Both others number what the engine calls by level and block: CompVis all blocks in one row, diffusers the levels on the
way up from the lowest. Sources: github.com/CompVis/stable-diffusion (ldm/modules/diffusionmodules/openaimodel.py) and
github.com/huggingface/diffusers (models/unets/unet_2d_condition.py), read for names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """The names of one layer."""

    ours: str
    compvis: str
    diffusers: str
    pointwise: bool = False
    """Whether it is a 1×1 convolution in the engine, which may be a matrix in the file."""


# Of a residual block: the engine's names, CompVis's, diffusers'.
_BLOCK = (
    ("norm1", "in_layers.0", "norm1"),
    ("conv1", "in_layers.2", "conv1"),
    ("temb_proj", "emb_layers.1", "time_emb_proj"),
    ("norm2", "out_layers.0", "norm2"),
    ("conv2", "out_layers.3", "conv2"),
    ("nin_shortcut", "skip_connection", "conv_shortcut"),
)
# Of a transformer: the engine's names, the file's (diffusers kept CompVis's), whether it is a product.
_TRANSFORMER = (
    ("norm", "norm", False),
    ("proj_in", "proj_in", True),
    *((f"block.norm{i}", f"transformer_blocks.0.norm{i}", False) for i in (1, 2, 3)),
    *(
        (f"block.attn{i}.to_{part}", f"transformer_blocks.0.attn{i}.to_{part}", True)
        for i in (1, 2)
        for part in "qkv"
    ),
    *((f"block.attn{i}.to_out", f"transformer_blocks.0.attn{i}.to_out.0", True) for i in (1, 2)),
    ("block.ff.proj", "transformer_blocks.0.ff.net.0.proj", True),
    ("block.ff.out", "transformer_blocks.0.ff.net.2", True),
    ("proj_out", "proj_out", True),
)


def layers(levels: int, blocks: int, attention: Sequence[bool]) -> Iterator[Names]:
    """All layers of a UNet; residual blocks that keep their width have no shortcut, which is listed all the same.

    Parameters
    ----------
    levels : int
        Resolutions.
    blocks : int
        Residual blocks of a level on the way down; one more on the way up.
    attention : sequence of bool
        For each level, whether a transformer follows each residual block.
    """
    yield Names("temb.dense.0", "time_embed.0", "time_embedding.linear_1")
    yield Names("temb.dense.1", "time_embed.2", "time_embedding.linear_2")
    yield Names("conv_in", "input_blocks.0.0", "conv_in")
    per = blocks + 1
    for i in range(levels):
        for j in range(blocks):
            row = f"input_blocks.{per * i + j + 1}"
            yield from _block(f"down.{i}.block.{j}", f"{row}.0", f"down_blocks.{i}.resnets.{j}")
            if attention[i]:
                yield from _transformer(f"down.{i}.attn.{j}", f"{row}.1", f"down_blocks.{i}.attentions.{j}")
        if i < levels - 1:
            row = f"input_blocks.{per * (i + 1)}"
            yield Names(f"down.{i}.downsample.conv", f"{row}.0.op", f"down_blocks.{i}.downsamplers.0.conv")
    yield from _block("mid.block_1", "middle_block.0", "mid_block.resnets.0")
    yield from _transformer("mid.attn_1", "middle_block.1", "mid_block.attentions.0")
    yield from _block("mid.block_2", "middle_block.2", "mid_block.resnets.1")
    for k in range(levels):
        i = levels - 1 - k
        for j in range(per):
            row = f"output_blocks.{per * k + j}"
            yield from _block(f"up.{i}.block.{j}", f"{row}.0", f"up_blocks.{k}.resnets.{j}")
            if attention[i]:
                yield from _transformer(f"up.{i}.attn.{j}", f"{row}.1", f"up_blocks.{k}.attentions.{j}")
        if i > 0:
            row = f"output_blocks.{per * k + blocks}.{2 if attention[i] else 1}"
            yield Names(f"up.{i}.upsample.conv", f"{row}.conv", f"up_blocks.{k}.upsamplers.0.conv")
    yield Names("norm_out", "out.0", "conv_norm_out")
    yield Names("conv_out", "out.2", "conv_out")


def _block(ours: str, compvis: str, diffusers: str) -> Iterator[Names]:
    for each in _BLOCK:
        yield Names(f"{ours}.{each[0]}", f"{compvis}.{each[1]}", f"{diffusers}.{each[2]}")


def _transformer(ours: str, compvis: str, diffusers: str) -> Iterator[Names]:
    for name, file, pointwise in _TRANSFORMER:
        yield Names(f"{ours}.{name}", f"{compvis}.{file}", f"{diffusers}.{file}", pointwise)
