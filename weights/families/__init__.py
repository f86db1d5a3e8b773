"""Which family a checkpoint belongs to: every known family is asked, also below the usual wrappers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, listed, shown
from ..keymap import Family
from .native import SPARSEGEN
from .spade import NVLABS_SPADE, SIGE_FUSED_SPADE, SIGE_SPADE

FAMILIES: tuple[Family, ...] = (SPARSEGEN, NVLABS_SPADE, SIGE_FUSED_SPADE, SIGE_SPADE)

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
)

# A hostile file could nest wrappers in wrappers; each place costs a look at every name.
_DEEPEST, _MOST_PLACES = 3, 12


def identify(checkpoint: Checkpoint) -> tuple[Family, dict[str, Any]]:
    """Recognise a checkpoint by its keys, and read the network's sizes off its shapes.

    A state dict inside the usual wrappers (`{"state_dict": ...}`, `{"netG": ...}`, `module.` of DataParallel,
    a prefix that all keys share) is found there; what lies beside it is set aside.

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
    for prefix in islice(_prefixes(checkpoint), _MOST_PLACES):
        inner = checkpoint.under(prefix)
        for family in FAMILIES:
            try:
                config = family.recognise(inner)
            except CheckpointError as error:
                error.path = error.path or checkpoint.path
                raise
            if config is not None:
                named = str(config.pop("model", family.model))
                return replace(family, prefix=prefix, model=named), config
    found = [shown(name, 60) for name in list(checkpoint.tensors)[:200]]
    raise CheckpointError(
        f"is of no known family (known: {', '.join(family.name for family in FAMILIES)});"
        f" its tensors: {listed(found, 5) if found else 'none'}",
        path=checkpoint.path,
        advice="Give a generator's weights in one of these families",
    )


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
