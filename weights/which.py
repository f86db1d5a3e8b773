"""The words that name weights in; whether they are a moving average of the training, or the last ones, out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from .errors import listed

Which = Literal["ema", "model"]
"""The weights that a checkpoint holds twice: a moving average over the training, or the last ones."""

# ema, model_ema, state_dict_ema, netG_ema, shadow_params, average_model_state …
_AVERAGE = {"ema", "emas", "average", "averaged", "avg", "shadow", "swa"}
# What the last weights are called beside an average: ema-pytorch's online_model, Lightning's current_model_state,
# torch_ema's collected_params.
_LAST = {"online", "current", "collected", "backup", "nonema", "noema"}
_NOT = {"non", "no", "not", "without"}

T = TypeVar("T")

_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def is_average(words: str) -> bool | None:
    """Whether dotted `words` name averaged weights; False: the last ones beside an average; None: they do not say.

    The innermost word decides: "ema.ema_model" is an average, "ema.online_model" is not, nor is "non_ema".
    """
    for word in reversed(words.split(".")):
        tokens = [token.lower() for token in _TOKEN.findall(word[:200])]
        if not _LAST.isdisjoint(tokens):
            return False
        found = next((i for i, token in enumerate(tokens) if token in _AVERAGE), None)
        if found is not None:
            return not (found and tokens[found - 1] in _NOT)
    return None


def averages_of(items: Sequence[T], averaged: Sequence[bool | None]) -> list[T]:
    """Those of the items that are averages, by what `is_average` makes of each.

    Where some are called the last weights and none an average, those that are called neither are the average.
    """
    pairs = list(zip(items, averaged, strict=True))
    marked = [item for item, average in pairs if average]
    implied = [item for item, average in pairs if average is None] if False in averaged else []
    return marked or implied


@dataclass(frozen=True)
class Chosen:
    """Which of a checkpoint's weights are taken. As text: one line for people.

    Attributes
    ----------
    place : str
        Where they are: "ema", "state_dict.model", "unet_ema"; empty for the whole file.
    averaged : bool or None
        Whether they are a moving average; None where nothing in the file or folder speaks of one.
    beside : tuple of str
        Where the weights are that could be taken instead.
    unusable : tuple of str
        Averages that are there and cannot be taken, each with the reason.
    """

    place: str = ""
    averaged: bool | None = None
    beside: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()

    def __str__(self) -> str:
        kind = {True: "averaged weights", False: "last weights", None: "the only weights"}[self.averaged]
        text = f"{kind} ({self.place})" if self.place else kind
        if self.beside:
            text += f"; beside them: {listed(list(self.beside))}"
        if self.unusable:
            text += f"; averaged weights not taken: {listed(list(self.unusable), 3)}"
        return text
