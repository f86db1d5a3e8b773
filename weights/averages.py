"""A moving average without its tensors' names, and the network beside it, in; the key of each tensor by its name out.

Sources: github.com/CompVis/latent-diffusion (ldm/modules/ema.py: `LitEma` keeps parameters as buffers, whose names may
have no dots), github.com/fadel/pytorch_ema and github.com/huggingface/diffusers (training_utils.py: `shadow_params`, a
list in the order of `model.parameters()`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from .checkpoint import Checkpoint, without_wrappers
from .errors import shown
from .which import is_average

# What state_dict() holds beside the parameters, of every module that our families have.
_BUFFER = re.compile(r"(?:.*\.)?(?:running_mean|running_var|num_batches_tracked|weight_[uv]|_[uv])", re.ASCII)


class UnnamedError(ValueError):
    """Why the tensors of an average cannot be named: the end of a sentence that begins with where they are."""


def name_average(
    checkpoint: Checkpoint, keys: Sequence[str], at: str, network: Mapping[str, str], prefix: str
) -> dict[str, str]:
    """Find out which tensor of an average is which.

    Parameters
    ----------
    checkpoint : Checkpoint
        Of the average and the network.
    keys : sequence of str
        The average's.
    at : str
        What all of them begin with: "state_dict.model_ema.", "ema.shadow_params.".
    network : mapping of str to str
        Name -> key of the last weights beside it.
    prefix : str
        What the network's keys begin with.

    Returns
    -------
    dict
        Name -> key of the average's tensors, of as many as it has.

    Raises
    ------
    UnnamedError
        With the reason.
    """
    short = {key[len(at) :]: key for key in keys}
    if all(word.isdecimal() for word in short):
        listed = sorted(short.items(), key=lambda item: int(item[0]))
        return _by_order(checkpoint, [key for _, key in listed], network, prefix)
    whole = {name: key for word, key in short.items() if (name := without_wrappers(word)) in network}
    return whole or _by_letters(short, network, prefix)


def _by_order(
    checkpoint: Checkpoint, listed: list[str], network: Mapping[str, str], prefix: str
) -> dict[str, str]:
    """A list in the order of the parameters, of the network or of a module that it is part of."""
    if "safetensors" in checkpoint.format:
        raise UnnamedError(
            "they are a list, and a safetensors file does not keep the order of the parameters"
        )
    shapes = [checkpoint.tensors[key].shape for key in listed]
    names = {key: name for name, key in network.items()}
    for module in _modules(prefix):
        keys = [
            key
            for key in checkpoint.tensors
            if key.startswith(module)
            and is_average(key[len(module) :].rpartition(".")[0]) is None
            and not _BUFFER.fullmatch(key)
        ]
        if [checkpoint.tensors[key].shape for key in keys] == shapes:
            return {names[key]: value for key, value in zip(keys, listed, strict=True) if key in names}
    count = sum(not _BUFFER.fullmatch(key) for key in names)
    raise UnnamedError(
        f"they are a list of {len(listed)} tensors, which does not match the network's {count} parameters"
        " in number and shapes"
    )


def _by_letters(short: Mapping[str, str], network: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Names that have lost their dots, of the network or of a module that it is part of."""
    best: dict[str, str] = {}
    for module in _modules(prefix):
        for spelled in (str, without_wrappers):
            words = [(spelled(key[len(module) :]).replace(".", ""), name) for name, key in network.items()]
            words = [(word, name) for word, name in words if word in short]
            if len(words) <= len(best):
                continue
            best = {name: short[word] for word, name in words}
            twice = [word for word, times in Counter(word for word, _ in words).items() if times > 1]
            if twice:
                raise UnnamedError(f"two of the network's names are {shown(twice[0])} without dots")
    if not best:
        raise UnnamedError("their names are not those of the network")
    return best


def _modules(prefix: str) -> Iterator[str]:
    """What the keys of a network begin with, then those of each module around it: "a.b.", "a.", ""."""
    while prefix:
        yield prefix
        prefix = prefix[: prefix[:-1].rfind(".") + 1]
    yield ""
