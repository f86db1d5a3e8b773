"""A parameter of Stable Diffusion's UNet or text encoder in; the names that LoRA files have for its module out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from . import sd_names
from .clip import MODEL as TEXT
from .sd_unet import MODEL as UNET

_OLD_PROJECTIONS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""transformers' names in an attention -> those of diffusers' first LoRAs of text encoders."""


def spellings(model: str, config: Mapping[str, Any], module: str) -> Iterator[str]:
    """The names of a module, by the engine's, of a model with that configuration; none of other models."""
    if model == UNET:
        names = _by_ours(len(config["levels"]), config["blocks"], tuple(config["attention"]))[module]
        yield from (f"lora_unet_{name.replace('.', '_')}" for name in (names.diffusers, names.compvis))
        name = names.diffusers
        for each in {name, name.removesuffix(".0") if name.endswith(".to_out.0") else name}:
            yield from _dotted("unet.", each)
            yield from (each, f"base_model.model.{each}")
            # the first LoRAs name the processor of an attention
            head, _, last = each.rpartition(".")
            yield from (f"{head}.processor.{last}", f"unet.{head}.processor.{last}")
    elif model == TEXT and module.startswith("layer."):
        name = f"encoder.layers.{module.removeprefix('layer.')}"
        for prefix in ("lora_te_", "lora_te1_"):  # diffusers writes the second for every model
            yield f"{prefix}text_model_{name.replace('.', '_')}"
        head, _, last = name.rpartition(".")
        for each in {name, f"{head}.{_OLD_PROJECTIONS.get(last, last)}"}:
            yield from _dotted("text_encoder.", each)
            yield from _dotted("text_encoder.", f"text_model.{each}")


def _dotted(prefix: str, name: str) -> Iterator[str]:
    """A name as PEFT and diffusers write it."""
    yield f"{prefix}{name}"
    yield f"{prefix}base_model.model.{name}"


@lru_cache(maxsize=4)
def _by_ours(levels: int, blocks: int, attention: tuple[bool, ...]) -> dict[str, sd_names.Names]:
    return {names.ours: names for names in sd_names.layers(levels, blocks, attention)}
