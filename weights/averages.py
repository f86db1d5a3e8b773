"""A moving average without its tensors' names, and the weights beside it, in; each tensor's key by its name out.

Sources: github.com/CompVis/latent-diffusion (ldm/modules/ema.py: `LitEma` keeps parameters as buffers, whose names may
have no dots), github.com/fadel/pytorch_ema and github.com/huggingface/diffusers (training_utils.py: `shadow_params`, a
list in the order of `model.parameters()`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from .checkpoint import Checkpoint, without_wrappers
from .errors import shown
from .which import deciding

# Buffers that state_dict() holds beside the parameters, in the modules of our families.
_BUFFER = re.compile(r"(?:.*\.)?(?:running_mean|running_var|num_batches_tracked|weight_[uv]|_[uv])", re.ASCII)

# Modules around a model that are tried, each at the cost of a pass over all names: a hostile file could nest more.
_MOST_MODULES = 8
# Digits of an index of a list.
_LONGEST_INDEX = 10


def name_averages(
    checkpoint: Checkpoint, groups: Mapping[str, Sequence[str]], model: Mapping[str, str], prefix: str
) -> dict[str, dict[str, str] | str]:
    """Match the tensors of averages to the names of the model's.

    Each module around the model is tried once, for all averages together.

    Parameters
    ----------
    checkpoint : Checkpoint
        Of the averages and the model.
    groups : mapping of str to sequence of str
        The prefix of an average's keys ("state_dict.model_ema.", "ema.shadow_params.") -> its keys.
    model : mapping of str to str
        Name -> key of the last weights beside them.
    prefix : str
        The prefix of the model's keys.

    Returns
    -------
    dict
        For each group: name -> key, for the tensors that the average has; or a string, the reason why they have no
        names (the end of a sentence whose subject is the group).
    """
    named: dict[str, dict[str, str] | str] = {}
    lists: dict[str, list[str]] = {}
    squeezed: dict[str, dict[str, str]] = {}
    for at, keys in groups.items():
        short = {key[len(at) :]: key for key in keys}
        if all(word.isdecimal() and len(word) < _LONGEST_INDEX for word in short):
            lists[at] = [key for _, key in sorted(short.items(), key=lambda item: int(item[0]))]
            continue
        whole = {name: key for word, key in short.items() if (name := without_wrappers(word)) in model}
        if whole:
            named[at] = whole
        else:
            squeezed[at] = short
    return named | _by_order(checkpoint, lists, model, prefix) | _by_letters(squeezed, model, prefix)


def _by_order(
    checkpoint: Checkpoint, lists: Mapping[str, list[str]], model: Mapping[str, str], prefix: str
) -> dict[str, dict[str, str] | str]:
    """Match lists in the order of the parameters, of the model or of a module around it."""
    named: dict[str, dict[str, str] | str] = {}
    if not lists:
        return named
    if "safetensors" in checkpoint.format:
        reason = "they are a list, and a safetensors file does not keep the order of the parameters"
        return dict.fromkeys(lists, reason)
    tensors = checkpoint.tensors
    names = {key: name for name, key in model.items()}
    # Key -> end of its last word that marks an average or the like, not a module of the model.
    inner = [(key, deciding(key.rpartition(".")[0])[0]) for key in tensors if not _BUFFER.fullmatch(key)]
    for module in _modules(prefix):
        keys = [key for key, end in inner if key.startswith(module) and end <= len(module)]
        shapes = [tensors[key].shape for key in keys]
        for at in lists.keys() - named.keys():
            if len(keys) == len(lists[at]) and shapes == [tensors[key].shape for key in lists[at]]:
                pairs = zip(keys, lists[at], strict=True)
                named[at] = {names[key]: value for key, value in pairs if key in names}
    count = sum(not _BUFFER.fullmatch(key) for key in names)
    for at in lists.keys() - named.keys():
        named[at] = (
            f"they are a list of {len(lists[at])} tensors, which does not match the model's {count} parameters"
            " in number and shapes"
        )
    return named


def _by_letters(
    groups: Mapping[str, Mapping[str, str]], model: Mapping[str, str], prefix: str
) -> dict[str, dict[str, str] | str]:
    """Match names without dots, of the model or of a module around it."""
    best: dict[str, dict[str, str]] = {at: {} for at in groups}
    twice: dict[str, str] = {}
    for module in _modules(prefix) if groups else ():
        for spelled in (str, without_wrappers):
            table: dict[str, str] = {}
            double: set[str] = set()
            for name, key in model.items():
                word = spelled(key[len(module) :]).replace(".", "")
                if table.setdefault(word, name) != name:
                    double.add(word)
            for at, short in groups.items():
                found = {table[word]: key for word, key in short.items() if word in table}
                if len(found) > len(best[at]):
                    best[at] = found
                    twice[at] = next((word for word in short if word in double), "")
    named: dict[str, dict[str, str] | str] = {}
    for at, names in best.items():
        if not names:
            named[at] = "their names are not those of the model"
        elif twice[at]:
            named[at] = f"two of the model's names are {shown(twice[at])} without dots"
        else:
            named[at] = names
    return named


def _modules(prefix: str) -> Iterator[str]:
    """The prefix of a model's keys, then that of each module around it: "a.b.", "a.", ""."""
    for _ in range(_MOST_MODULES):
        yield prefix
        if not prefix:
            return
        prefix = prefix[: prefix[:-1].rfind(".") + 1]
