"""Which family a checkpoint belongs to: every known family is asked, also below the usual wrappers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, listed, shown
from ..keymap import Family
from .diffusers import DIFFUSERS_UNET
from .native import SPARSEGEN
from .spade import NVLABS_SPADE, SIGE_FUSED_SPADE, SIGE_SPADE
from .unet import PESSER_DDPM, SIGE_FUSED_DDPM, SIGE_PD

FAMILIES: tuple[Family, ...] = (
    SPARSEGEN,
    NVLABS_SPADE,
    SIGE_FUSED_SPADE,
    SIGE_SPADE,
    PESSER_DDPM,
    SIGE_FUSED_DDPM,
    SIGE_PD,
    DIFFUSERS_UNET,
)

Which = Literal["ema", "model"]
"""The weights that a checkpoint holds twice: a moving average over the training, or the last ones."""

# What training scripts put a state dict into, in the order of preference.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "netG",
    "net_G",
    "generator",
    "G",
    "params",
    "module",
    "ema",
    "params_ema",
    "0",
    "4",
)
# Those that hold a moving average. ermongroup/ddim saves a list: model, optimizer, epoch, step, average.
_AVERAGED = {"ema", "params_ema", "4"}

# A hostile file could nest wrappers in wrappers; each place costs a look at every name.
_DEEPEST, _MOST_PLACES = 3, 12


def identify(checkpoint: Checkpoint, *, weights: Which | None = None) -> tuple[Family, dict[str, Any]]:
    """Recognise a checkpoint by its keys, and read the network's sizes off its shapes.

    A state dict inside the usual wrappers (`{"state_dict": ...}`, `{"netG": ...}`, `module.` of DataParallel,
    a prefix that all keys share) is found there; what lies beside it is set aside.

    Parameters
    ----------
    weights : {"ema", "model"}, optional
        Which to take of a checkpoint that holds both. If not given: the average, where it is a whole network (it has
        parameters alone, so not of networks with batch norm).

    Returns
    -------
    Family
        With `prefix` set to what the state dict is wrapped in, for `convert`.
    dict
        The configuration of the network `family.model`.

    Raises
    ------
    CheckpointError
        For no known family; it lists those that are, and some of the keys that were found.
    """
    places = list(islice(_prefixes(checkpoint), _MOST_PLACES))
    last = _first(checkpoint, [place for place in places if weights is None or not _averaged(place)])
    if weights == "model" and last is not None:
        return last
    if weights == "ema" or (last is not None and last[0].averages):
        average = _first(checkpoint, [place for place in places if _averaged(place)])
        if average is not None and (last is None or weights == "ema" or average[0].model == last[0].model):
            return average
    if weights is None and last is not None:
        return last
    if weights is not None and _first(checkpoint, places) is not None:
        missing = "averaged weights (ema)" if weights == "ema" else "weights beside the averaged ones"
        raise CheckpointError(
            f"holds no {missing}", path=checkpoint.path, advice="Leave the setting weights away"
        )
    found = [shown(name, 60) for name in list(checkpoint.tensors)[:200]]
    raise CheckpointError(
        f"is of no known family (known: {', '.join(family.name for family in FAMILIES)});"
        f" its tensors: {listed(found, 5) if found else 'none'}",
        path=checkpoint.path,
        advice="Give a generator's weights in one of these families",
    )


def _first(checkpoint: Checkpoint, places: Iterable[str]) -> tuple[Family, dict[str, Any]] | None:
    """The first family that is found at one of the places, with its table, and its configuration."""
    for place in places:
        inner = checkpoint.under(place)
        for family in FAMILIES:
            try:
                config = family.recognise(inner)
            except CheckpointError as error:
                error.path = error.path or checkpoint.path
                raise
            if config is not None:
                named = str(config.pop("model", family.model))
                rules = family.rules if family.rules_for is None else family.rules_for(config)
                return replace(family, prefix=place, model=named, rules=rules), config
    return None


def _averaged(place: str) -> bool:
    return not _AVERAGED.isdisjoint(place.split("."))


def _prefixes(checkpoint: Checkpoint) -> Iterator[str]:
    """The places where a state dict may be: the top, then below wrappers, the shallow before the deep."""
    level = [""]
    for _ in range(_DEEPEST + 1):
        yield from level
        level = [prefix + word + "." for prefix in level for word in _below(checkpoint.tensors, prefix)]
        level = level[:_MOST_PLACES]


def _below(names: Iterable[str], prefix: str) -> list[str]:
    """The first words of the names under `prefix` that are wrappers, or that all of them share."""
    inner = [name[len(prefix) :] for name in names if name.startswith(prefix)]
    words = {name.partition(".")[0] for name in inner if "." in name}
    if len(words) == 1 and all("." in name for name in inner):
        return sorted(words)
    return [word for word in _WRAPPERS if word in words]
