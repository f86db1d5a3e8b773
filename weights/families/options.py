"""A config.json in; its options, checked by name, out: the values that the engine supports, or one error."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..errors import CheckpointError, listed, shown

WHERE = "config.json"


def read_options(
    config: Mapping[str, Any],
    name: str,
    defaults: Mapping[str, Any],
    choices: Mapping[str, tuple[Any, ...]],
    without_effect: Collection[str],
) -> dict[str, Any]:
    """A file's options, those that it omits from the class's `defaults`.

    Parameters
    ----------
    config : mapping
        The file, parsed.
    name : str
        The class, for messages.
    defaults : mapping
        Every option that changes the computation -> its value where the file omits it.
    choices : mapping
        Options -> the values that the engine supports.
    without_effect : collection of str
        Options that may have any value.

    Raises
    ------
    CheckpointError
        The file has other options, or a value that is not supported.
    """
    strange = [
        f"{shown(key)} ({shown(value)})"
        for key, value in config.items()
        if not key.startswith("_")
        and key not in defaults
        and key not in without_effect
        and not (value is None or value is False)
    ]
    if strange:
        raise CheckpointError(f"has unknown options of {name}: {listed(strange)}", where=WHERE)
    options = {**defaults, **config}
    for key, supported in choices.items():
        value = options[key]
        if not any(type(value) is type(each) and value == each for each in supported) and not (
            type(value) is float and value in supported
        ):
            raise refused(key, value, " or ".join(as_json(each) for each in supported))
    return options


def listed_option(options: Mapping[str, Any], key: str, kind: type) -> tuple[Any, ...]:
    """An option that is a list of `int` or `str`. Raises CheckpointError."""
    value = options[key]
    if not isinstance(value, list) or not value or any(type(each) is not kind for each in value):
        raise refused(key, value, f"a list of {'numbers' if kind is int else 'names'}")
    return tuple(value)


def count(options: Mapping[str, Any], key: str) -> int:
    """An option that is a number from 1. Raises CheckpointError."""
    value = options[key]
    if type(value) is not int or value < 1:
        raise refused(key, value, "a number from 1")
    return value


def of_each(options: Mapping[str, Any], key: str, length: int) -> tuple[int, ...]:
    """An option that is a number from 1, or one for each of `length` levels. Raises CheckpointError."""
    value = options[key]
    each = value if isinstance(value, list) else [value] * length
    if len(each) != length or any(type(one) is not int or one < 1 for one in each):
        raise refused(key, value, f"a number from 1, or a list of {length}")
    return tuple(each)


def agree(options: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless options have the values that were `found` off the tensors' shapes."""
    for key, value in found.items():
        if options[key] != value:
            raise CheckpointError(
                f"{key} is {as_json(options[key])}, the tensors' shapes give {as_json(value)}",
                where=WHERE,
                advice="The configuration and the weights come from different models: download both again",
            )


def as_json(value: object) -> str:
    """`value` as JSON writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else shown(value)


def refused(key: str, value: object, supported: str) -> CheckpointError:
    """The error for an option whose value is not supported."""
    return CheckpointError(f"{key} is {as_json(value)}, supported: {supported}", where=WHERE)
