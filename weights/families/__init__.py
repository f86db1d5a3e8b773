"""A checkpoint in; the family that it belongs to, and which of its weights to take, out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..averages import UnnamedError, name_average
from ..checkpoint import WRAPPERS, Checkpoint
from ..errors import CheckpointError, listed, shown
from ..keymap import Family
from ..which import Chosen, Which, averages_of, is_average
from .diffusers import DIFFUSERS_UNET
from .native import MODEL_KEY, SPARSEGEN
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

# Ends of keys that every network of a family has: what stands before one is a place where a network is.
_LANDMARKS = tuple(
    tuple(name.split("."))
    for name in (
        "head_0.norm_0.mlp_shared.0.weight",
        "up_0.norm_0.mlp_shared.0.weight",
        "head_0.mlp_shared.0.weight",
        "up_0.mlp_shared.0.weight",
        "temb.dense.0.weight",
        "down_blocks.0.resnets.0.conv1.weight",
    )
)

# What training scripts put a state dict into, in the order of preference where a file has several.
_USUAL = (
    *("state_dict", "model_state_dict", "model", "netG", "net_G", "generator", "G", "params", "module"),
    *("0", "ema", "ema_model", "params_ema", "4"),
)

# Tensors of one number that averaging leaves beside the weights.
_COUNTERS = {"decay", "num_updates", "initted", "step", "steps", "n_averaged", "optimization_step"}

# A hostile file could hold any number of networks; each place costs a look at every name.
_MOST_PLACES = 32


@dataclass(frozen=True)
class _Network:
    """A place in a checkpoint, and the family that was recognised there, or what is wrong with it."""

    place: str
    family: Family
    config: Mapping[str, Any]
    error: CheckpointError | None = None


def identify(checkpoint: Checkpoint, *, weights: Which | None = None) -> tuple[Family, dict[str, Any]]:
    """Recognise a checkpoint by its keys, and read the network's sizes off its shapes.

    A state dict is found under whatever it is wrapped in (`{"state_dict": ...}`, `{"netG": ...}`, `module.` of
    DataParallel); what lies beside it is set aside. Averaged weights are known by the words around them (ema, shadow,
    averaged …), also where they have lost their names: LitEma's, and lists in the order of the parameters
    (`shadow_params`), if the weights beside them give the names.

    Parameters
    ----------
    weights : {"ema", "model"}, optional
        Which to take of a checkpoint that holds both. If not given: the average, where it has every tensor that the
        network needs (of networks with batch norm: also the statistics), else the last weights.

    Returns
    -------
    Family
        For `convert`: with `prefix`, `keys` and `chosen`, whose text says which weights were taken.
    dict
        The configuration of the network `family.model`.

    Raises
    ------
    CheckpointError
        For no known family: it lists those that are, and some of the keys that were found. For several networks
        without a word which is meant, and for averaged or last weights that are asked for and not there.
    """
    if checkpoint.chosen is not None:
        # Its folder held both, and one was opened.
        if weights is not None and checkpoint.chosen.averaged is not (weights == "ema"):
            raise CheckpointError(
                f"was opened for its {checkpoint.chosen}",
                path=checkpoint.path,
                advice=f'Open it with read_checkpoint(path, weights="{weights}")',
            )
        weights = None
    places = _places(checkpoint)
    nameless = _nameless(checkpoint, places)
    found = [_recognised(checkpoint, place, places) for place in places]
    networks = [network for network in found if network is not None]
    averages = averages_of(networks, [_marked(checkpoint, network.place) for network in networks])
    others = [network for network in networks if network not in averages]
    last = _first(checkpoint, others)
    usable, unusable = _judged(checkpoint, sorted(averages, key=_rank), nameless, last)
    if last is not None and last.error is not None and not usable:
        raise last.error
    if weights == "ema" and unusable and not usable:
        raise CheckpointError(
            f"its averaged weights cannot be taken: {listed(unusable, 3)}",
            path=checkpoint.path,
            advice="Omit `weights=` to take the last weights"
            if last
            else "Save them as a state dict, by name",
        )
    taken = usable[0] if usable and weights != "model" else last if weights != "ema" else None
    if taken is None:
        raise _nothing(checkpoint, weights, bool(networks), unusable)
    if taken.error is not None:
        raise taken.error
    chosen = checkpoint.chosen or Chosen(
        _said(taken.place),
        taken in usable if usable or unusable else None,
        tuple(_said(each.place) or "the top level" for each in (*usable, *others) if each is not taken),
        tuple(unusable),
    )
    return replace(taken.family, chosen=chosen), dict(taken.config)


def _places(checkpoint: Checkpoint) -> list[str]:
    """What stands before the keys of a network: "", "state_dict.", "ema.module."; at least the first of these."""
    if MODEL_KEY in checkpoint.metadata:
        return [""]  # a file of our own is one network, whatever its keys are
    found: dict[str, None] = {}
    for key in checkpoint.tensors:
        words = key.split(".")
        for landmark in _LANDMARKS:
            left = list(words)
            for word in reversed(landmark):
                while left and left[-1] in WRAPPERS:
                    left.pop()
                if not left or left.pop() != word:
                    break
            else:
                found[".".join([*left, ""])] = None
    return sorted(found, key=_rank_of)[:_MOST_PLACES] or [""]


def _nameless(checkpoint: Checkpoint, places: Sequence[str]) -> dict[str, list[str]]:
    """Averages in which no network is to be seen: what their keys begin with -> the keys."""
    found: dict[str, list[str]] = {}
    within = tuple(place for place in places if place)
    for key, tensor in checkpoint.tensors.items():
        words = key.split(".")
        if key.startswith(within) or (words.pop() in _COUNTERS and math.prod(tensor.shape) == 1):
            continue
        while words and is_average(words[-1]) is None:
            words.pop()
        at = ".".join([*words, ""])
        if words and is_average(words[-1]) and not any(place.startswith(at) for place in places):
            found.setdefault(at, []).append(key)
    return found


def _recognised(checkpoint: Checkpoint, place: str, places: Iterable[str]) -> _Network | None:
    """The network at one of the places, without the other places and the averages inside of it."""
    inner = tuple(other for other in places if other.startswith(place) and other != place)
    try:
        under = checkpoint.under(place)
        for family in FAMILIES:
            config = family.recognise(under)
            if config is not None:
                named = str(config.pop("model", family.model))
                rules = family.rules if family.rules_for is None else family.rules_for(config)
                keys = {
                    name: key
                    for name, key in checkpoint.keys_under(place).items()
                    if not key.startswith(inner) and is_average(key[len(place) :].rpartition(".")[0]) is None
                }
                return _Network(
                    place, replace(family, prefix=place, model=named, rules=rules, keys=keys), config
                )
    except CheckpointError as error:
        error.path = error.path or checkpoint.path
        return _Network(place, DIFFUSERS_UNET, {}, error)
    return None


def _marked(checkpoint: Checkpoint, place: str) -> bool | None:
    """Whether the weights at a place are an average; False: the last ones beside it; None: nothing says so."""
    words = place.split(".")[:-1]
    while words and words[-1] in WRAPPERS:
        words.pop()
    counter = ".".join([*words, "n_averaged"])
    if "module" in place.split(".") and counter in checkpoint.tensors:
        return True  # PyTorch's AveragedModel
    if words[:1] == ["4"] and any(key.startswith("0.") for key in checkpoint.tensors):
        return True  # ermongroup/ddim saves a list: model, optimizer, epoch, step, average
    if "ema_state_dict" in words and "meta.mmengine_version" in checkpoint.metadata:
        return False  # mmengine swaps the two when it saves
    return is_average(".".join(words))


def _rank_of(place: str) -> tuple[int, int, list[int]]:
    """Usual places before unusual ones, the shallow before the deep."""
    words = [word for word in place.split(".")[:-1] if word not in WRAPPERS]
    known = [_USUAL.index(word) for word in words if word in _USUAL]
    return len(words) - len(known), len(words), known


def _rank(network: _Network) -> tuple[bool, tuple[int, int, list[int]]]:
    return network.error is not None, _rank_of(network.place)


def _first(checkpoint: Checkpoint, networks: Sequence[_Network]) -> _Network | None:
    """The network that is meant where none is an average."""
    ranked = sorted(networks, key=_rank)
    alike = [each for each in ranked if _rank_of(each.place)[:2] == _rank_of(ranked[0].place)[:2]]
    if len(alike) > 1 and _rank_of(alike[0].place)[0]:
        raise CheckpointError(
            f"holds several networks ({listed([_said(each.place) for each in alike])}), expected one",
            path=checkpoint.path,
            advice="Save the state dict of one of them alone",
        )
    return ranked[0] if ranked else None


def _judged(
    checkpoint: Checkpoint,
    averages: Iterable[_Network],
    nameless: Mapping[str, list[str]],
    last: _Network | None,
) -> tuple[list[_Network], list[str]]:
    """The averages that are whole networks; and where the others are, each with what is wrong with it."""
    usable: list[_Network] = []
    unusable: list[str] = []
    beside = None if last is None or last.error else last
    for average in averages:
        wrong = (
            ""
            if last is None
            else average.error.what
            if average.error
            else _lacking(checkpoint, average, beside)
        )
        if wrong:
            unusable.append(f"{_said(average.place)} ({wrong})")
        else:
            usable.append(average)
    for at, keys in nameless.items():
        try:
            average = _named(checkpoint, at, keys, beside)
            wrong = _lacking(checkpoint, average, beside)
        except UnnamedError as error:
            wrong = str(error)
        if wrong:
            unusable.append(f"{_said(at)} ({wrong})")
        else:
            usable.append(average)
    return usable, unusable


def _named(checkpoint: Checkpoint, at: str, keys: Sequence[str], last: _Network | None) -> _Network:
    if last is None or last.family.keys is None:
        raise UnnamedError("there are no weights beside them that give the names of their tensors")
    names = name_average(checkpoint, keys, at, last.family.keys, last.place)
    return replace(last, place=at, family=replace(last.family, prefix=at, keys=names))


def _lacking(checkpoint: Checkpoint, average: _Network, last: _Network | None) -> str:
    """Why an average cannot stand for the last weights; empty where it can."""
    if last is None:
        return ""
    ours, theirs = average.family.tensors(checkpoint), last.family.tensors(checkpoint)
    if average.family.name != last.family.name:
        same = (average.family.model, average.config) == (last.family.model, last.config)
        return "" if same else f"they are another network: {average.family.name}"
    needed = last.family.needs(theirs)
    absent = [name for name in needed if name not in ours or ours[name].shape != theirs[name].shape]
    if not absent:
        return ""
    return (
        f"{len(absent)} of the {len(needed)} tensors that the network needs are missing or of another shape,"
        f" such as {shown(absent[0])}"
    )


def _said(place: str) -> str:
    return shown(place.rstrip("."), 60)


def _nothing(
    checkpoint: Checkpoint, weights: Which | None, known: bool, unusable: list[str]
) -> CheckpointError:
    if known:
        missing = "averaged weights (ema)" if weights == "ema" else "weights beside the averaged ones"
        return CheckpointError(f"holds no {missing}", path=checkpoint.path, advice="Omit `weights=`")
    names = [shown(name, 60) for name in list(checkpoint.tensors)[:200]]
    averages = f"; averaged weights that cannot be taken: {listed(unusable, 3)}" if unusable else ""
    return CheckpointError(
        f"is of no known family (known: {', '.join(family.name for family in FAMILIES)});"
        f" its tensors: {listed(names, 5) if names else 'none'}{averages}",
        path=checkpoint.path,
        advice="Give a generator's weights in one of these families",
    )
