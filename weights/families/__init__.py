"""A checkpoint in; its family, and the choice among its weights, out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..averages import name_averages
from ..checkpoint import WRAPPERS, Checkpoint
from ..errors import CheckpointError, listed, shown
from ..keymap import Family, unreadable
from ..which import Chosen, Kind, Which, averages_of, deciding, kind_of, names_settings, of_optimizer
from .clip import CLIP_TEXT, OPEN_CLIP_TEXT
from .clip import MODEL as TEXT
from .diffusers import DIFFUSERS_UNET
from .mobile_spade import GAN_COMPRESSION, SIGE_FUSED_GAN_COMPRESSION
from .native import MODEL_KEY, SPARSEGEN, several
from .not_supported import refuse_by_name
from .sd_unet import COMPVIS_UNET, DIFFUSERS_CONDITIONED_UNET
from .sd_unet import MODEL as UNET
from .sd_vae import COMPVIS_DECODER, COMPVIS_ENCODER, DECODER, DIFFUSERS_DECODER, DIFFUSERS_ENCODER, ENCODER
from .spade import NVLABS_SPADE, SIGE_FUSED_SPADE, SIGE_SPADE
from .unet import PESSER_DDPM, SIGE_FUSED_DDPM, SIGE_PD

FAMILIES: tuple[Family, ...] = (
    SPARSEGEN,
    GAN_COMPRESSION,
    SIGE_FUSED_GAN_COMPRESSION,
    NVLABS_SPADE,
    SIGE_FUSED_SPADE,
    SIGE_SPADE,
    PESSER_DDPM,
    SIGE_FUSED_DDPM,
    SIGE_PD,
    COMPVIS_UNET,
    DIFFUSERS_CONDITIONED_UNET,
    COMPVIS_ENCODER,
    COMPVIS_DECODER,
    DIFFUSERS_ENCODER,
    DIFFUSERS_DECODER,
    CLIP_TEXT,
    OPEN_CLIP_TEXT,
    DIFFUSERS_UNET,
)

HALVES = (ENCODER, DECODER)
"""The models of an autoencoder, whose names are in one place of a file."""
PARTS = (UNET, *HALVES, TEXT)
"""Models of which a file holds one each, beside each other."""

# Ends of keys that every model of a family has: the part of a key before one is the place of a model.
_LANDMARKS = tuple(
    tuple(name.split("."))
    for name in (
        "head_0.norm_0.mlp_shared.0.weight",
        "up_0.norm_0.mlp_shared.0.weight",
        "head_0.mlp_shared.0.weight",
        "up_0.mlp_shared.0.weight",
        "temb.dense.0.weight",
        "down_blocks.0.resnets.0.conv1.weight",
        "time_embed.0.weight",
        "encoder.conv_in.weight",
        "decoder.conv_in.weight",
        "embeddings.token_embedding.weight",
        "transformer.resblocks.0.ln_1.weight",
    )
)

# Names under which training scripts save a state dict, in the order of preference if a file has several.
_USUAL = (
    *("state_dict", "model_state_dict", "model", "netG", "net_G", "generator", "G", "params", "module"),
    *("ema", "ema_model", "params_ema"),
)

# Tensors of one number that averaging leaves beside the weights.
_COUNTERS = {"decay", "num_updates", "initted", "step", "steps", "n_averaged", "optimization_step"}

# Classes of objects beside the tensors that hold values or other objects by name.
_MAY_HOLD_WEIGHTS = re.compile(
    r"numpy\.(?:ndarray|matrix|recarray)|array\.\w+"
    r"|argparse\.Namespace|types\.SimpleNamespace|collections\.(?:UserDict|UserList|ChainMap)"
)

# Places that are tried, each at the cost of a pass over all names: a hostile file could hold more models.
_MOST_PLACES = 32
# Averages without names that are tried, each at the cost of a pass over the names of the last weights.
_MOST_NAMELESS = 32


@dataclass(frozen=True)
class _Network:
    """A place in a checkpoint, and the family that was recognised there, or the error."""

    place: str
    family: Family
    config: Mapping[str, Any]
    error: CheckpointError | None = None


@dataclass
class _Choice:
    """Weights of one model that could be taken: whole averages, the last weights, and why others cannot be."""

    averages: list[_Network]
    usable: list[_Network]
    """The averages that are whole models, also those without names of their own."""
    others: list[_Network]
    """Weights that are no average."""
    last: _Network | None
    """The first of the others."""
    doubt: CheckpointError | None
    """Nothing decides between several last weights."""
    unusable: list[str]
    unmatched: dict[str, str]
    """Places of averages without names that are not this model's -> the reason."""


def identify(checkpoint: Checkpoint, *, which: Which | None = None) -> tuple[Family, dict[str, Any]]:
    """Recognise the one model of a checkpoint; the arguments and errors are those of `identify_all`.

    Raises
    ------
    CheckpointError
        Also: the checkpoint holds several models.
    """
    found = identify_all(checkpoint, which=which)
    if len(found) > 1:
        raise CheckpointError(
            f"holds several models ({', '.join(family.model for family, _ in found)}), expected one",
            path=checkpoint.path,
            advice="Open it with sparsegen.load_bundle",
        )
    return found[0]


def identify_all(
    checkpoint: Checkpoint, *, which: Which | None = None
) -> list[tuple[Family, dict[str, Any]]]:
    """Recognise a checkpoint by its keys, and read the models' sizes off its shapes.

    A state dict is found inside any wrapping (`{"state_dict": ...}`, `{"netG": ...}`, `module.` of DataParallel); other
    values beside it are ignored. Averaged weights are recognised by the words around them (ema, shadow, averaged …),
    also without names of their own: LitEma's, and lists in the order of the parameters (`shadow_params`), if the
    weights beside them give the names. Only the parts of Stable Diffusion (`PARTS`) are several models in one file.

    Parameters
    ----------
    which : {"ema", "model"}, optional
        The weights to take from a checkpoint that holds both. Default: the average, if it has every tensor that the
        model needs (with batch norm, also the statistics), else the last weights. A part without an average has its
        last weights taken, if another part has one.

    Returns
    -------
    list of (Family, dict)
        For each model: for `convert`, the family with `prefix`, `keys` and `chosen`, whose text names the weights
        taken; and the configuration of the model `family.model`.

    Raises
    ------
    CheckpointError
        The family is unknown (the message lists the known ones, and some of the keys found) or of a known kind that is
        not supported; there are several models and no name decides; averaged or last weights are requested and missing.
    """
    if checkpoint.chosen is not None:
        # The folder holds both, and one was opened.
        if which is not None and checkpoint.chosen.averaged is not (which == "ema"):
            raise CheckpointError(
                f"was opened for its {checkpoint.chosen}",
                path=checkpoint.path,
                advice=f'Open it with read_checkpoint(path, which="{which}")',
            )
        which = None
    ours = several(checkpoint, PARTS)
    if ours:
        if which == "ema":
            raise _nothing(checkpoint, which, True, [])
        return ours
    if MODEL_KEY not in checkpoint.metadata:
        refuse_by_name(checkpoint)
    # Key -> the end and the kind of its last word that has a kind; the tensor's own name is left out.
    kinds = {key: deciding(key.rpartition(".")[0]) for key in checkpoint.tensors}
    places = _places(checkpoint)
    nameless = _nameless(checkpoint, places, kinds)
    networks = [each for place in places for each in _recognised(checkpoint, place, places, kinds)]
    choices = [_choice(checkpoint, group, nameless) for group in _groups(networks)]
    matched = {each.place for choice in choices for each in choice.usable}
    for choice in choices:
        # An average without names is one part's: it is missing from the first, if it is no part's.
        choice.unusable += [
            f"{_shown_place(at)} ({reason})"
            for at, reason in choice.unmatched.items()
            if at not in matched and choice is choices[0]
        ]
    if len(nameless) > _MOST_NAMELESS:
        choices[0].unusable.append(
            f"{len(nameless) - _MOST_NAMELESS} more (at most {_MOST_NAMELESS} are looked at)"
        )
    choices[0].unusable += _unread(checkpoint, [*places, *nameless])
    some = any(choice.usable for choice in choices)
    return [
        _taken(checkpoint, choice, None if some and not (choice.usable or choice.unusable) else which)
        for choice in choices
    ]


def _groups(networks: Sequence[_Network]) -> list[list[_Network]]:
    """The weights of each model: of each of `PARTS`, or else of the one model that a file holds; never none."""
    parts = [[each for each in networks if each.family.model == part] for part in PARTS]
    others = [each for each in networks if each.family.model not in PARTS]
    found = list(filter(None, parts))
    sound = any(each.error is None for each in others)
    return [*found, others] if sound or not found else found


def _choice(
    checkpoint: Checkpoint, networks: Sequence[_Network], nameless: Mapping[str, list[str]]
) -> _Choice:
    averages = averages_of(networks, [_marked(checkpoint, network.place) for network in networks])
    others = [network for network in networks if network not in averages]
    last, doubt = _first(checkpoint, others)
    usable, unusable, unmatched = _judged(checkpoint, sorted(averages, key=_rank), nameless, last)
    return _Choice(averages, usable, others, last, doubt, unusable, unmatched)


def _taken(checkpoint: Checkpoint, choice: _Choice, which: Which | None) -> tuple[Family, dict[str, Any]]:
    """The weights of one model that are taken. Raises CheckpointError: there are none."""
    usable, last, unusable = choice.usable, choice.last, choice.unusable
    if choice.doubt is not None and (which == "model" or not usable):
        raise choice.doubt
    if last is not None and last.error is not None and not usable:
        raise last.error
    if which == "ema" and unusable and not usable:
        raise CheckpointError(
            f"its averaged weights cannot be taken: {listed(unusable, 3)}",
            path=checkpoint.path,
            advice="Omit `which=` to take the last weights" if last else "Save them by name, as a state dict",
        )
    taken = usable[0] if usable and which != "model" else last if which != "ema" else None
    if taken is None:
        raise _nothing(checkpoint, which, bool(choice.others or choice.averages), unusable)
    if taken.error is not None:
        raise taken.error
    chosen = checkpoint.chosen or Chosen(
        _shown_place(taken.place),
        taken in usable if usable or unusable else None,
        tuple(
            _shown_place(each.place) or "the top level"
            for each in (*usable, *choice.others)
            if each is not taken
        ),
        tuple(unusable),
    )
    return replace(taken.family, chosen=chosen), dict(taken.config)


def _places(checkpoint: Checkpoint) -> list[str]:
    """The prefixes of the keys of models, such as "state_dict." and "ema.module."; [""] if there is none."""
    if MODEL_KEY in checkpoint.metadata:
        return [""]  # a file of ours is one model, for any keys
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
    # diffusers' names of an autoencoder's half look like a UNet's
    halves = {f"{place}encoder." for place in found}
    networks = [
        place
        for place in found
        if not of_optimizer(place)
        and (place not in halves or f"{place}time_embedding.linear_1.weight" in checkpoint.tensors)
    ]
    return sorted(networks, key=_rank_of)[:_MOST_PLACES] or [""]


def _nameless(
    checkpoint: Checkpoint, places: Sequence[str], kinds: Mapping[str, tuple[int, Kind | None]]
) -> dict[str, list[str]]:
    """Averages in which no model is recognised: the prefix of their keys -> the keys. The largest come first."""
    found: dict[str, list[str]] = {}
    within = tuple(place for place in places if place)
    for key, (end, kind) in kinds.items():
        if kind != "average" or key.startswith(within):
            continue
        if key.rpartition(".")[2] in _COUNTERS and math.prod(checkpoint.tensors[key].shape) == 1:
            continue
        at = key[: end + 1]
        if not any(place.startswith(at) for place in places):
            found.setdefault(at, []).append(key)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _unread(checkpoint: Checkpoint, places: Iterable[str]) -> list[str]:
    """Averages that are objects, which are not read: NumPy arrays by name, a namespace; each with its class."""
    found: dict[str, str] = {}
    for path, stand_in in checkpoint.stand_ins.items():
        end, kind = deciding(path)
        at = path[:end]
        if (
            kind == "average"
            and at not in found
            and _MAY_HOLD_WEIGHTS.fullmatch(stand_in)
            and not names_settings(path)
            and not any(place.startswith(at + ".") for place in places)
        ):
            found[at] = stand_in
    return [
        f"{_shown_place(at)} (an object of {shown(name)}, which is not read)" for at, name in found.items()
    ]


def _recognised(
    checkpoint: Checkpoint,
    place: str,
    places: Iterable[str],
    kinds: Mapping[str, tuple[int, Kind | None]],
) -> list[_Network]:
    """The models at one of the places, without the other places and the averages inside it: both halves of a VAE."""
    inner = tuple(other for other in places if other.startswith(place) and other != place)
    found: list[_Network] = []
    family = DIFFUSERS_UNET
    try:
        under = checkpoint.under(place)
        for family in FAMILIES:
            config = family.recognise(under) if not found or family.model in HALVES else None
            if config is not None:
                named = str(config.pop("model", family.model))
                rules = family.rules if family.rules_for is None else family.rules_for(config)
                keys = {
                    name: key
                    for name, key in checkpoint.keys_under(place).items()
                    if not key.startswith(inner) and kinds[key][0] <= len(place)
                }
                kept = replace(family, prefix=place, model=named, rules=rules, keys=keys)
                found.append(_Network(place, kept, config))
                if named not in HALVES:
                    break
    except CheckpointError as error:
        error.path = error.path or checkpoint.path
        found.append(_Network(place, family, {}, error))
    return found


def _marked(checkpoint: Checkpoint, place: str) -> Kind | None:
    """The kind of the weights at a place, by the words of the place and by the values beside it."""
    words = place.split(".")[:-1]
    while words and words[-1] in WRAPPERS:
        words.pop()
    counter = ".".join([*words, "n_averaged"])
    if "module" in place.split(".") and counter in checkpoint.tensors:
        return "average"  # PyTorch's AveragedModel
    if words[:1] == ["4"] and _is_ermongroup(checkpoint):
        return "average"
    for last, average, sign in _SWAPPED:
        for i, word in enumerate(words):
            outer = "".join(f"{each}." for each in words[:i])
            if word in (last, average) and _holds(checkpoint, outer + sign):
                inner = kind_of(".".join(words[i + 1 :]))
                return inner or ("average" if word == average else "no average")
    return kind_of(".".join(words))


# Programs that swap the two when they save: their names of the last weights and of the average, and a sign of them.
_SWAPPED = (
    ("current_model_state", "state_dict", "averaging_state"),  # Lightning's WeightAveraging
    ("ema_state_dict", "state_dict", "meta.mmengine_version"),
)


def _holds(checkpoint: Checkpoint, path: str) -> bool:
    """Whether a file has a value of that name, or under it."""
    return any(
        name == path or name.startswith(path + ".")
        for names in (checkpoint.tensors, checkpoint.metadata)
        for name in names
    )


def _is_ermongroup(checkpoint: Checkpoint) -> bool:
    """Whether a file is a list as github.com/ermongroup/ddim saves it: model, optimizer, epoch, step, average."""
    if any(type(checkpoint.metadata.get(index)) is not int for index in ("2", "3")):
        return False
    names = [*checkpoint.tensors, *checkpoint.metadata, *checkpoint.stand_ins]
    tops = {name.partition(".")[0] for name in names}
    optimizer = [name for name in names if name.startswith("1.")]
    return tops <= {"0", "1", "2", "3", "4"} and all(
        name.startswith(("1.state.", "1.param_groups.")) for name in optimizer
    )


def _rank_of(place: str) -> tuple[int, int, list[int]]:
    """A key to sort places: usual before unusual ones, shallow before deep ones."""
    words = [word for word in place.split(".")[:-1] if word not in WRAPPERS]
    known = [_USUAL.index(word) for word in words if word in _USUAL]
    return len(words) - len(known), len(words), known


def _rank(network: _Network) -> tuple[bool, tuple[int, int, list[int]]]:
    return network.error is not None, _rank_of(network.place)


def _first(
    checkpoint: Checkpoint, networks: Sequence[_Network]
) -> tuple[_Network | None, CheckpointError | None]:
    """The model to take if none is an average; or the error if nothing decides between several."""
    ranked = sorted(networks, key=_rank)
    alike = [each for each in ranked if _rank_of(each.place)[:2] == _rank_of(ranked[0].place)[:2]]
    if len(alike) > 1 and _rank_of(alike[0].place)[0]:
        return None, CheckpointError(
            f"holds several models ({listed([_shown_place(each.place) for each in alike])}), expected one",
            path=checkpoint.path,
            advice="Save the state dict of one of them alone",
        )
    return (ranked[0] if ranked else None), None


def _judged(
    checkpoint: Checkpoint,
    averages: Iterable[_Network],
    nameless: Mapping[str, list[str]],
    last: _Network | None,
) -> tuple[list[_Network], list[str], dict[str, str]]:
    """The averages that are whole models; the places of the others, each with its fault; and `_Choice.unmatched`."""
    usable: list[_Network] = []
    unusable: list[str] = []
    unmatched: dict[str, str] = {}
    beside = None if last is None or last.error else last
    for average in averages:
        wrong = (
            ""
            if last is None
            else average.error.problem
            if average.error
            else _lacking(checkpoint, average, beside)
        )
        if wrong:
            unusable.append(f"{_shown_place(average.place)} ({wrong})")
        else:
            usable.append(average)
    looked_at = dict(list(nameless.items())[:_MOST_NAMELESS])
    for at, names in _named(checkpoint, looked_at, beside).items():
        if isinstance(names, str) or beside is None:
            unmatched[at] = str(names)
            continue
        average = replace(beside, place=at, family=replace(beside.family, prefix=at, keys=names))
        wrong = _lacking(checkpoint, average, beside)
        if wrong:
            unusable.append(f"{_shown_place(at)} ({wrong})")
        else:
            usable.append(average)
    return usable, unusable, unmatched


def _named(
    checkpoint: Checkpoint, groups: Mapping[str, list[str]], last: _Network | None
) -> Mapping[str, dict[str, str] | str]:
    if last is None or last.family.keys is None:
        return dict.fromkeys(groups, "no weights beside them give the names of their tensors")
    return name_averages(checkpoint, groups, last.family.keys, last.place)


def _lacking(checkpoint: Checkpoint, average: _Network, last: _Network | None) -> str:
    """The reason why an average cannot replace the last weights; "" if it can."""
    if last is None:
        return ""
    ours, theirs = average.family.tensors(checkpoint), last.family.tensors(checkpoint)
    if average.family.name != last.family.name:
        same = (average.family.model, average.config) == (last.family.model, last.config)
        if not same:
            return f"they are of another model: {average.family.name}"
        theirs = ours
    needed = average.family.needs(theirs)
    absent = [name for name in needed if name not in ours or ours[name].shape != theirs[name].shape]
    if not absent:
        return next((f"{shown(name)} {fault}" for name in needed if (fault := unreadable(ours[name]))), "")
    return (
        f"{len(absent)} of the {len(needed)} tensors that the model needs are missing or of another shape,"
        f" such as {shown(absent[0])}"
    )


def _shown_place(place: str) -> str:
    return shown(place.rstrip("."), 60)


def _nothing(
    checkpoint: Checkpoint, which: Which | None, known: bool, unusable: list[str]
) -> CheckpointError:
    if known:
        missing = "averaged weights (ema)" if which == "ema" else "weights beside the averaged ones"
        return CheckpointError(f"holds no {missing}", path=checkpoint.path, advice="Omit `which=`")
    names = [shown(name, 60) for name in list(checkpoint.tensors)[:200]]
    averages = f"; averaged weights that cannot be taken: {listed(unusable, 3)}" if unusable else ""
    return CheckpointError(
        f"is of an unknown family (known: {', '.join(family.name for family in FAMILIES)});"
        f" its tensors: {listed(names, 5) if names else 'none'}{averages}",
        path=checkpoint.path,
        advice="Give the weights of a model of one of these families",
    )
