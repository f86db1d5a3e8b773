"""The words before a tensor's name in; whether its weights are a moving average over the training, or the last, out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

from .errors import listed

Which = Literal["ema", "model"]
"""A choice among weights that a checkpoint holds twice: a moving average over the training, or the last ones."""

Kind = Literal["average", "no average", "other"]
"""The weights under a word: an average; the last weights beside one (non_ema); something else."""

# Words for a model, alone or beside a word for an average.
_NETWORK = {
    *("model", "models", "net", "nets", "model", "models", "unet", "generator", "module"),
    *(
        "state",
        "states",
        "dict",
        "weight",
        "weights",
        "param",
        "params",
        "parameter",
        "parameters",
        "checkpoint",
    ),
}

# ema, model_ema, state_dict_ema, netG_ema, shadow_params, average_model_state …
_AVERAGE = {"ema", "emas", "average", "averages", "averaged", "shadow", "swa", "polyak"}
# A word for an average of weights only beside a model's words: avg_model, but not loss_avg.
_SHORT = "avg"
_GLUED = re.compile(
    rf"(?:{'|'.join(sorted(_NETWORK))})(?:ema|swa)s?|(?:ema|swa)(?:{'|'.join(sorted(_NETWORK))})"
)

# Words for the weights beside an average, within its state: ema-pytorch's online_model, torch_ema's collected_params.
# Elsewhere they do not refer to averages: current and best, model and backup.
_OTHER = {"online", "current", "collected", "backup"}
_NOT = {"non", "no", "not", "without"}
_DENIED = {"nonema", "noema"}

# Averages of gradients, which optimizers keep: exp_avg, max_exp_avg_sq, grad_avg, square_avg, momentum_buffer.
_MOMENTS = {
    *("grad", "grads", "gradient", "gradients", "sq", "square", "squares", "squared"),
    *("momentum", "momenta", "moment", "moments"),
}
_OPTIMIZER = re.compile(r"opts?|optims?|optimi[sz]ers?\w*")
# NeMo's optimizer keeps an average of the weights, which Lightning saves with the optimizer's state.
_WITHIN_OPTIMIZER = re.compile(r"(?:.*\.)?optimizer_states\.\d+\.ema", re.ASCII | re.DOTALL)

# An average's settings, beside it or alone: ema_decay, ema_config.
_SETTINGS = {
    *(
        "decay",
        "decays",
        "rate",
        "rates",
        "step",
        "steps",
        "start",
        "every",
        "interval",
        "freq",
        "updates",
        "update",
    ),
    *(
        "config",
        "cfg",
        "kwargs",
        "args",
        "options",
        "opt",
        "hparams",
        "settings",
        "scheduler",
        "power",
        "warmup",
    ),
    *(
        "beta",
        "betas",
        "sigma",
        "sigmas",
        "loss",
        "losses",
        "metric",
        "metrics",
        "score",
        "scores",
        "device",
        "dtype",
    ),
}

_LONGEST_WORD = 200

T = TypeVar("T")

_TOKEN = re.compile(r"(?<![A-Z])(?:EMA|SWA)(?=[a-z])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _tokens(word: str) -> list[str]:
    return [token.lower() for token in _TOKEN.findall(word[:_LONGEST_WORD])]


def _are_moments(tokens: Sequence[str]) -> bool:
    """Whether the tokens name moments that an optimizer keeps for each parameter."""
    return not _MOMENTS.isdisjoint(tokens) or ("exp" in tokens and _SHORT in tokens)


@lru_cache(maxsize=4096)
def _kind_of_word(word: str) -> Kind | None:
    tokens = _tokens(word)
    if any(map(_OPTIMIZER.fullmatch, tokens)):
        return "other"
    rest = [token for token in tokens if token != _SHORT]
    named = [
        token in _AVERAGE
        or _GLUED.fullmatch(token) is not None
        or (token == _SHORT and _NETWORK.issuperset(rest))
        for token in tokens
    ]
    if _SHORT in tokens or True in named:
        if _are_moments(tokens):
            return "other"
        if True in named:
            at = named.index(True)
            return "no average" if at and tokens[at - 1] in _NOT else "average"
    if not _DENIED.isdisjoint(tokens):
        return "no average"
    return None if _OTHER.isdisjoint(tokens) else "other"


def deciding(words: str) -> tuple[int, Kind | None]:
    """The innermost of the dotted `words` that has a kind: the position of its end, and the kind.

    "ema.ema_model" is an average; "ema.online_model" and "non_ema" are not, nor is anything within an optimizer's
    state. (0, None) if no word has a kind.
    """
    end = len(words)
    while end > 0:
        start = words.rfind(".", 0, end) + 1
        kind = _kind_of_word(words[start : min(end, start + _LONGEST_WORD)])
        if kind == "average" and of_optimizer(words[:start]) and not _WITHIN_OPTIMIZER.fullmatch(words[:end]):
            kind = "other"
        if kind is not None:
            return end, kind
        end = start - 1
    return 0, None


def kind_of(words: str) -> Kind | None:
    """The kind of the innermost of the dotted `words` that has one, as `deciding` finds it."""
    return deciding(words)[1]


def of_optimizer(words: str) -> bool:
    """Whether dotted `words` name a part of an optimizer's state."""
    return any(
        _are_moments(tokens) or any(map(_OPTIMIZER.fullmatch, tokens))
        for tokens in map(_tokens, words.split("."))
    )


def names_settings(words: str) -> bool:
    """Whether one of the dotted `words` is a setting of averaging, not an average: ema_decay, ema.device."""
    return any(not _SETTINGS.isdisjoint(_tokens(word)) for word in words.split("."))


def averages_of(items: Sequence[T], kinds: Sequence[Kind | None]) -> list[T]:
    """The items that are averages, by the kind of each.

    If an item is named as no average (non_ema) and none as an average, the items without a kind are the averages.
    """
    pairs = list(zip(items, kinds, strict=True))
    marked = [item for item, kind in pairs if kind == "average"]
    implied = [item for item, kind in pairs if kind is None] if "no average" in kinds else []
    return marked or implied


@dataclass(frozen=True)
class Chosen:
    """The weights of a checkpoint that are taken. As text: one line for people.

    Attributes
    ----------
    place : str
        Their place: "ema", "state_dict.model", "unet_ema"; "" for the whole file.
    averaged : bool or None
        Whether they are a moving average; None if nothing in the file or folder names one.
    beside : tuple of str
        Places of weights that could be taken instead.
    unusable : tuple of str
        Averages that exist but cannot be taken, each with the reason.
    """

    place: str = ""
    averaged: bool | None = None
    beside: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """ "averaged", "last" or "the only"; "" if there are others and no word gives the kind."""
        if self.averaged is None:
            return "" if self.beside else "the only"
        return "averaged" if self.averaged else "last"

    def __str__(self) -> str:
        kind = f"{self.kind} weights".strip()
        text = f"{kind} ({self.place})" if self.place else kind
        if self.beside:
            text += f"; beside them: {listed(list(self.beside))}"
        if self.unusable:
            text += f"; averaged weights not taken: {listed(list(self.unusable), 3)}"
        return text
