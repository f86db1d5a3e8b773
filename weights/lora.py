"""LoRA files and a model's parameters in; the same parameters with the low-rank updates added, lazily, out.

A LoRA holds, for some of a model's matrices and convolutions, `down` `[r, I, …]` and `up` `[O, r, …]`: the weight
becomes W + scale · (alpha / r) · up · down. Three spellings are read: kohya's (`lora_unet_….lora_down.weight`,
`.alpha`), PEFT's (`unet.….lora_A.weight`) and older ones of diffusers (`.lora.down.weight`,
`.processor.to_q_lora.down.weight`).

Sources: Hu et al., "LoRA", arXiv 2106.09685; github.com/kohya-ss/sd-scripts (networks/lora.py);
github.com/huggingface/diffusers (loaders/lora_conversion_utils.py, utils/state_dict_utils.py), read for names.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint, read_checkpoint
from .errors import CheckpointError, listed, shown
from .families.lora_names import spellings
from .formats.json_file import read_json, there
from .keymap import Parameters, unreadable
from .parts import Part
from .tensor import Tensor

Array = NDArray[np.float32]

_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_model.bin")
"""Of a folder that diffusers or PEFT saved."""
_ADAPTER = "adapter_config.json"
_DIFFUSERS_ADAPTER = "lora_adapter_metadata"
"""The metadata in which diffusers keeps the settings of each model's adapter, as JSON."""
_LONGEST_SETTINGS = 1 << 16

# Groups: the module, and the half.
_KEYS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<module>[^.]+)\.lora_(?P<half>down|up)\.weight",
        r"(?P<module>.+)\.lora_(?P<half>A|B)(?:\.(?!weight$)[\w-]+)?\.weight",
        r"(?P<module>.+?)\.lora(?:_linear_layer)?\.(?P<half>down|up)\.weight",
        r"(?P<module>.+?)_lora\.(?P<half>down|up)\.weight",
    )
)
_HALVES = {"down": "down", "A": "down", "up": "up", "B": "up"}
_ALPHA = re.compile(r"(?P<module>.+?)(?:\.lora|_lora)?\.alpha")

# Parts of keys -> the kind of adapter.
_REFUSED = (
    (r"\.(?:dora_scale|lora_magnitude_vector\b.*)$", "a DoRA"),
    (r"\.hada_(?:w|t)[12]", "a LoHa (LyCORIS)"),
    (r"\.lokr_(?:w|t)[12]", "a LoKr (LyCORIS)"),
    (r"\.(?:oft_blocks|oft_diag|oft_R\b)", "an OFT adapter"),
    (r"\.lora_mid\.weight$", "a LoRA with cores between its halves (LyCORIS)"),
    (r"\.(?:diff|diff_b|w_norm|b_norm|on_input|a1\.weight|glora_\w+)$", "an adapter of LyCORIS"),
    (r"^lora_te2_|^text_encoder_2\.", "a LoRA of SDXL"),
    (r"^(?:lora_transformer_|transformer\.)", "a LoRA of a transformer (SD3, Flux)"),
    (r"^controlnet_|\blora_controlnet\b", "a LoRA of a ControlNet"),
)


@dataclass
class _Update:
    """One module's update, as far as it was found."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None

    def keys(self) -> str:
        return ", ".join(shown(each.name) for each in (self.down, self.up, self.alpha) if each is not None)


@dataclass(frozen=True)
class _Settings:
    """Of an adapter: what alpha is where the file has no tensor of it."""

    alpha: float | None = None
    """None: the rank."""
    patterns: Mapping[str, float] = field(default_factory=dict)
    """End of a module's name -> its own alpha."""
    by_root: bool = False
    """Whether alpha is divided by the rank's root instead (rsLoRA)."""

    def strength(self, module: str, rank: int) -> float:
        """The factor of up · down."""
        own = next(
            (each for end, each in self.patterns.items() if f".{module}".endswith(f".{end}")), self.alpha
        )
        return 1.0 if own is None else own / (math.sqrt(rank) if self.by_root else rank)


@dataclass(frozen=True)
class _Delta:
    """An update of one parameter: factor · up · down."""

    factor: float
    up: Tensor
    down: Tensor

    def value(self, shape: tuple[int, ...]) -> Array:
        rank = self.down.shape[0]
        up = self.up.numpy().astype(np.float32).reshape(-1, rank)
        down = self.down.numpy().astype(np.float32).reshape(rank, -1)
        product: Array = (np.float32(self.factor) * (up @ down)).reshape(shape)
        return product


class Adapted(Mapping[str, Array]):
    """A model's parameters with updates added on access, in float32; those without one are unchanged."""

    def __init__(self, parameters: Parameters, deltas: Mapping[str, Sequence[_Delta]]) -> None:
        self._parameters = parameters
        self._deltas = deltas

    @property
    def changed(self) -> int:
        """The number of parameters with an update."""
        return len(self._deltas)

    def __getitem__(self, name: str) -> Array:
        value = self._parameters[name]
        for delta in self._deltas.get(name, ()):
            value = value + delta.value(value.shape)
        value.flags.writeable = False
        return value

    def check(self, name: str) -> None:
        """Raise CheckpointError where reading the parameter would: a value is none that a weight can have."""
        self._parameters.check(name)

    def stored(self, name: str) -> str:
        """The element type that holds the parameter without its updates; with them it is rounded."""
        return self._parameters.stored(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


@dataclass(frozen=True)
class Updates:
    """The updates of LoRA files for the models of a checkpoint; the files stay open as long as values are read.

    Attributes
    ----------
    deltas : sequence of mapping
        For each part, parameter path -> its updates.
    files : sequence of Checkpoint
        The LoRA files.
    """

    deltas: Sequence[Mapping[str, Sequence[_Delta]]]
    files: Sequence[Checkpoint]

    def adapted(self, part: int, parameters: Parameters) -> Adapted:
        """The parameters of the part of that index, with its updates."""
        return Adapted(parameters, self.deltas[part])

    def release(self) -> None:
        """Free what reading the updates took."""
        for file in self.files:
            file.release()


def read_loras(
    loras: Mapping[str | os.PathLike[str], float],
    parts: Sequence[Part],
    shapes: Sequence[Mapping[str, tuple[int, ...]]],
) -> Updates:
    """The updates that LoRA files hold for the models of a checkpoint.

    Parameters
    ----------
    loras : mapping of path to float
        A file, or a folder of diffusers or PEFT -> the factor of its updates.
    parts : sequence of Part
        The models.
    shapes : sequence of mapping
        For each part, its parameters' shapes.

    Raises
    ------
    CheckpointError
        A file cannot be read, is of another kind of adapter, or one of its keys has no place in the models, no other
        half or another shape; one error lists all of them.
    """
    deltas: list[dict[str, list[_Delta]]] = [{} for _ in parts]
    if not loras:
        return Updates(deltas, [])
    places: dict[str, tuple[int, str]] = {}
    for i, part in enumerate(parts):
        for path, shape in shapes[i].items():
            if path.endswith(".weight") and len(shape) > 1:
                for name in spellings(part.family.model, part.config, path.removesuffix(".weight")):
                    places[name] = i, path
    opened: list[Checkpoint] = []
    try:
        for lora, scale in loras.items():
            file, settings = _opened(lora)
            opened.append(file)
            try:
                _add(file, settings, float(scale), places, shapes, deltas)
            except CheckpointError as error:
                error.path = error.path or file.path
                raise
    except BaseException:
        for file in opened:
            file.close()
        raise
    return Updates(deltas, opened)


def _opened(path: str | os.PathLike[str]) -> tuple[Checkpoint, Mapping[str, _Settings]]:
    """A LoRA's file, and the settings of its adapters by the prefix of their keys. Raises CheckpointError."""
    folder = Path(path)
    if not folder.is_dir():
        file = read_checkpoint(path)
        return file, _noted(file)
    name = next((each for each in _FILES if there(folder / each)), None)
    if name is None:
        raise CheckpointError(
            f"is a folder without {' or '.join(_FILES)}", path=str(folder), advice="Give the LoRA's file"
        )
    file = read_checkpoint(folder / name)
    if not there(folder / _ADAPTER):
        return file, _noted(file)
    return file, {"": _settings(read_json(folder / _ADAPTER), str(folder / _ADAPTER))}


def _noted(file: Checkpoint) -> Mapping[str, _Settings]:
    """The settings that diffusers writes into the metadata: "unet.lora_alpha", …"""
    text = file.metadata.get(_DIFFUSERS_ADAPTER)
    if not isinstance(text, str):
        return {}
    noted = None
    if len(text) <= _LONGEST_SETTINGS:
        try:
            noted = json.loads(text)
        except (ValueError, RecursionError):
            noted = None
    if not isinstance(noted, dict):
        raise CheckpointError("is not a JSON object", path=file.path, where=f"metadata {_DIFFUSERS_ADAPTER}")
    found = {}
    for prefix in ("unet.", "text_encoder."):
        own = {key.removeprefix(prefix): value for key, value in noted.items() if key.startswith(prefix)}
        if own:
            found[prefix] = _settings(own, file.path)
    return found


def _settings(config: Mapping[str, Any], path: str) -> _Settings:
    if config.get("use_dora"):
        raise CheckpointError("is a DoRA, supported: LoRA", path=path)
    alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    numbers = [alpha, *(patterns.values() if isinstance(patterns, dict) else [""])]
    if not all(each is None or (type(each) in (int, float) and math.isfinite(each)) for each in numbers):
        raise CheckpointError("lora_alpha or a value of alpha_pattern is no finite number", path=path)
    return _Settings(alpha, patterns, bool(config.get("use_rslora")))


def _add(
    file: Checkpoint,
    settings: Mapping[str, _Settings],
    scale: float,
    places: Mapping[str, tuple[int, str]],
    shapes: Sequence[Mapping[str, tuple[int, ...]]],
    deltas: Sequence[dict[str, list[_Delta]]],
) -> None:
    """Add one file's updates to `deltas`. Raises CheckpointError."""
    _refuse_others(file)
    updates, unexpected = _updates(file)
    if not updates:
        names = [shown(name, 60) for name in list(file.tensors)[:200]]
        raise CheckpointError(
            f"is no LoRA: its tensors are {listed(names, 5) if names else 'none'}",
            advice="Give a file that kohya's scripts, diffusers or PEFT saved",
        )
    missing, misshaped, unreadables, twice = [], [], [], []
    taken: dict[tuple[int, str], str] = {}
    for module, update in updates.items():
        place = places.get(module)
        if place is None:
            unexpected.append(update.keys())
            continue
        if update.down is None or update.up is None:
            missing.append(f"{shown(module)} (there is {update.keys()})")
            continue
        if taken.setdefault(place, module) != module:
            twice.append(f"{shown(module)} and {shown(taken[place])}")
            continue
        shape = shapes[place[0]][place[1]]
        faults = [
            (each, unreadable(each)) for each in (update.down, update.up, update.alpha) if each is not None
        ]
        closed = next(((each, fault) for each, fault in faults if fault), None)
        if closed is not None:
            unreadables.append(f"{shown(closed[0].name)} ({closed[1]})")
            continue
        fault = _misshaped(update.down, update.up, shape)
        if fault:
            misshaped.append(f"{shown(module)} ({fault})")
            continue
        factor = scale * _strength(module, update, settings)
        deltas[place[0]].setdefault(place[1], []).append(_Delta(factor, update.up, update.down))
    lists = (
        ("unexpected", unexpected),
        ("without the other half", missing),
        ("mis-shaped", misshaped),
        ("unreadable", unreadables),
        ("given twice", twice),
    )
    text = "".join(f"\n  {fault} ({len(items)}): {listed(items)}" for fault, items in lists if items)
    if text:
        raise CheckpointError(
            f"does not fit the model:{text}",
            advice="Check that the LoRA belongs to this version of Stable Diffusion, and that the model has a text "
            "encoder if the LoRA has updates of one",
        )


def _refuse_others(file: Checkpoint) -> None:
    for pattern, kind in _REFUSED:
        sign = next(filter(re.compile(pattern).search, file.tensors), None)
        if sign is not None:
            raise CheckpointError(
                f"is {kind}, supported: LoRA of Stable Diffusion 1.x and 2.x",
                where=shown(sign),
                advice="Merge it into the model with the program that made it",
            )


def _updates(file: Checkpoint) -> tuple[dict[str, _Update], list[str]]:
    """Module -> its update; and the keys that are no part of one."""
    updates: dict[str, _Update] = {}
    alphas: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, tensor in file.tensors.items():
        found = next(filter(None, (pattern.fullmatch(key) for pattern in _KEYS)), None)
        if found is not None:
            update = updates.setdefault(found["module"], _Update())
            half = _HALVES[found["half"]]
            if getattr(update, half) is not None:
                unexpected.append(f"{shown(key)} (beside {shown(getattr(update, half).name)})")
            setattr(update, half, tensor)
            continue
        alpha = _ALPHA.fullmatch(key)
        if alpha is None or math.prod(tensor.shape) != 1:
            unexpected.append(shown(key))
        else:
            alphas[alpha["module"]] = tensor
    for module, tensor in alphas.items():
        if module in updates:
            updates[module].alpha = tensor
        else:
            unexpected.append(shown(tensor.name))
    return updates, unexpected


def _misshaped(down: Tensor, up: Tensor, shape: tuple[int, ...]) -> str:
    """The reason why an update does not fit a parameter of that shape; "" if it does."""
    rank = down.shape[0] if down.shape else 0
    if (
        not rank
        or up.shape[:2] != (shape[0], rank)
        or any(side != 1 for side in up.shape[2:])
        or len(down.shape) < 2
        or (*down.shape[1:], 1, 1)[:3] != (*shape[1:], 1, 1)[:3]
    ):
        return f"down {list(down.shape)} and up {list(up.shape)}, the parameter has {list(shape)}"
    return ""


def _strength(module: str, update: _Update, settings: Mapping[str, _Settings]) -> float:
    """alpha / rank. Raises CheckpointError: alpha is no finite number."""
    assert update.down is not None
    rank = update.down.shape[0]
    if update.alpha is None:
        own = next((each for prefix, each in settings.items() if module.startswith(prefix)), _Settings())
        return own.strength(module, rank)
    alpha = float(update.alpha.numpy().reshape(()))
    if not math.isfinite(alpha):
        raise CheckpointError(f"is {alpha}, expected a number", where=shown(update.alpha.name))
    return alpha / rank
