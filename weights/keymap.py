"""A checkpoint and a family's table of rules in; the model's parameters by their own paths out.

A table renames keys, and names the operation on the way: copy, fold a spectral norm, stack rows, split rows.
Every key of a checkpoint is matched by exactly one rule, which may be "ignored, because"; every parameter is
filled exactly once; one error lists everything that does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .dtypes import FLOATING
from .errors import CheckpointError, listed, shown
from .tensor import UNREADABLE_ADVICE, Tensor
from .transforms import TRANSFORMS, ShapeMismatch
from .which import Chosen

Shape = tuple[int, ...]

_FIT_ADVICE = (
    "Check that the file is whole and holds this model; give settings that a file does not store"
    " when it is loaded"
)


# Python's own cache of patterns holds fewer than a table of Stable Diffusion has.
_pattern = lru_cache(maxsize=4096)(re.compile)


@dataclass(frozen=True)
class Rule:
    """The treatment of the keys that `source` matches.

    Attributes
    ----------
    source : str
        A regular expression for a whole source key.
    targets : tuple of str
        Paths of the parameters that the tensor fills; `{name}` stands for the group of that name. Several for
        a transform "split…" only.
    transform : str
        A name in `TRANSFORMS`.
    part : str
        The transform's input that this key is.
    ignored : str
        Instead of targets: the reason why the key is not needed.
    when, unless : str
        A sibling key, with groups as in `targets`: the rule holds only if the checkpoint has it, or lacks it.
    """

    source: str
    targets: tuple[str, ...] = ()
    transform: str = "copy"
    part: str = "value"
    ignored: str = ""
    when: str = ""
    unless: str = ""

    def match(self, key: str, keys: Mapping[str, object]) -> dict[str, str] | None:
        """The groups of `key`; None if the rule does not hold for it."""
        found = _pattern(self.source).fullmatch(key)
        if found is None:
            return None
        groups = found.groupdict(default="")
        if self.when and self.when.format(**groups) not in keys:
            return None
        return None if self.unless and self.unless.format(**groups) in keys else groups


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint: how it is recognised, and its table of rules.

    Attributes
    ----------
    name : str
        Its name: "nvlabs-spade".
    model : str
        The family of the model that it holds: "gaugan".
    rules : tuple of Rule
        Its table of rules.
    recognise : callable
        Checkpoint -> the model's configuration, read off keys and shapes; None for another family.
    rules_for : callable, optional
        Configuration -> table, if the table depends on the model's sizes.
    prefix : str
        Set by `identify`: the prefix of the model's keys in this file, such as "state_dict.".
    keys : mapping of str to str, optional
        Set by `identify`: names that the table matches -> keys of the file. Default: all keys with the prefix.
    chosen : Chosen
        Set by `identify`: the choice among the file's weights.
    """

    name: str
    model: str
    rules: tuple[Rule, ...]
    recognise: Callable[[Checkpoint], dict[str, Any] | None]
    rules_for: Callable[[Mapping[str, Any]], tuple[Rule, ...]] | None = None
    prefix: str = ""
    keys: Mapping[str, str] | None = None
    chosen: Chosen = field(default_factory=Chosen)

    def tensors(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The model's tensors in a checkpoint, by the names that the table matches."""
        keys = checkpoint.keys_under(self.prefix) if self.keys is None else self.keys
        return {name: checkpoint.tensors[key] for name, key in keys.items()}

    def needs(self, names: Mapping[str, object]) -> list[str]:
        """The names whose tensors become parameters, or parts of one."""
        return [
            name
            for name in names
            if any(rule.targets and rule.match(name, names) is not None for rule in self.rules)
        ]


@dataclass
class _Recipe:
    """How one parameter is made. `rows` is its share of a "split" source."""

    transform: str
    parts: dict[str, Tensor] = field(default_factory=dict)
    rows: tuple[int, int] | None = None

    def sources(self) -> str:
        return ", ".join(shown(tensor.name) for tensor in self.parts.values())


@dataclass(frozen=True)
class Origin:
    """The keys of a file that a parameter is made of, and how.

    Attributes
    ----------
    transform : str
        A name in `TRANSFORMS`.
    parts : mapping of str to str
        Input of the transform -> key of the file.
    rows : tuple of int, optional
        The first row of the transform's result that is the parameter's, and the one after its last; None: all are.
    """

    transform: str
    parts: Mapping[str, str]
    rows: tuple[int, int] | None


class Parameters(Mapping[str, NDArray[np.float32]]):
    """The parameters by path, each read and converted to float32 on access, and not kept.

    A float32 tensor that is only renamed is a view into the file.
    """

    def __init__(self, recipes: dict[str, _Recipe], order: list[str], path: str) -> None:
        self._recipes = recipes
        self._order = order
        self._path = path

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        recipe = self._recipes[name]
        parts = {part: _float32(tensor) for part, tensor in recipe.parts.items()}
        try:
            array = TRANSFORMS[recipe.transform].apply(parts)
        except CheckpointError as error:
            error.path, error.where = self._path, recipe.sources()
            raise
        if recipe.rows is not None:
            array = array[recipe.rows[0] : recipe.rows[1]]
        array.flags.writeable = False
        return array

    def origin(self, name: str) -> Origin:
        """The keys of the file that a parameter is made of."""
        recipe = self._recipes[name]
        parts = {part: tensor.name for part, tensor in recipe.parts.items()}
        return Origin(recipe.transform, parts, recipe.rows)

    def check(self, name: str) -> None:
        """Raise CheckpointError where reading the parameter would: a value is none that a weight can have.

        Only values that can be wrong are read: float64, and those that are divided by a norm.
        """
        recipe = self._recipes[name]
        if TRANSFORMS[recipe.transform].checks or any(
            tensor.dtype == "float64" for tensor in recipe.parts.values()
        ):
            self[name]

    def stored(self, name: str) -> str:
        """The element type that holds the parameter exactly: float16 or bfloat16, if its tensors are, else float32."""
        recipe = self._recipes[name]
        # what can fail is computed: of two float16 tensors it is none
        computed = TRANSFORMS[recipe.transform].checks
        found = {"float32"} if computed else {tensor.dtype for tensor in recipe.parts.values()}
        return found.pop() if found in ({"float16"}, {"bfloat16"}) else "float32"

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


def convert(family: Family, checkpoint: Checkpoint, expected: Mapping[str, Shape]) -> Parameters:
    """Name, fold and check a checkpoint's tensors as a model expects them.

    Parameters
    ----------
    family : Family
        From `identify`: the table, and the model's place in the checkpoint.
    checkpoint : Checkpoint
        From `read_checkpoint`, still open.
    expected : mapping of str to tuple of int
        The model's parameters and their shapes.

    Returns
    -------
    Parameters
        float32 arrays by parameter path, in the order of `expected`. Keys and shapes are checked now, values are read
        on access: keep the checkpoint open until then.

    Raises
    ------
    CheckpointError
        Lists everything that does not fit: missing, unexpected, mis-shaped, unreadable (float8, integers, without
        values), filled twice.
    """
    tensors = family.tensors(checkpoint)
    recipes: dict[str, _Recipe] = {}
    faults = _Faults()
    for key, tensor in tensors.items():
        _apply_rules(family, key, tensor, tensors, expected, recipes, faults)
    for name, shape in expected.items():
        _check(name, shape, recipes.get(name), faults)
    for name, recipe in recipes.items():
        if name not in expected:
            faults.unexpected += [shown(part.name) for part in recipe.parts.values()]
    if faults:
        raise CheckpointError(
            f"does not fit the model ({family.model}, read as {family.name}):{faults.text()}",
            path=checkpoint.path,
            advice=UNREADABLE_ADVICE if faults.unreadable else _FIT_ADVICE,
        )
    return Parameters(recipes, list(expected), checkpoint.path)


def unreadable(tensor: Tensor) -> str:
    """The reason why a tensor of any name cannot be weights; "" if it can."""
    if not tensor.fault and tensor.dtype not in FLOATING:
        return f"has the element type {tensor.dtype}, expected floating point"
    return tensor.fault


@dataclass
class _Faults:
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped or self.unreadable or self.twice)

    def text(self) -> str:
        lists = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mis-shaped", self.misshaped),
            ("unreadable", self.unreadable),
            ("given twice", self.twice),
        )
        return "".join(f"\n  {fault} ({len(items)}): {listed(items)}" for fault, items in lists if items)


def _apply_rules(
    family: Family,
    key: str,
    tensor: Tensor,
    keys: Mapping[str, Tensor],
    expected: Mapping[str, Shape],
    recipes: dict[str, _Recipe],
    faults: _Faults,
) -> None:
    matches = [(rule, groups) for rule in family.rules if (groups := rule.match(key, keys)) is not None]
    if len(matches) > 1:
        raise CheckpointError(f"two rules of the family {family.name} match one key", where=shown(key))
    if not matches:
        faults.unexpected.append(shown(key))
        return
    rule, groups = matches[0]
    if rule.ignored:
        return
    names = [target.format(**groups) for target in rule.targets]
    transform = TRANSFORMS[rule.transform]
    by_rows = transform.by_rows
    if by_rows:
        # A block without a shortcut has no norm_s: the rows fill the parameters that the model has.
        names = [name for name in names if name in expected]
        if not names:
            faults.unexpected.append(shown(key))
            return
    row = 0
    for name in names:
        recipe = recipes.setdefault(name, _Recipe(rule.transform))
        if rule.part in recipe.parts or recipe.transform != rule.transform:
            faults.twice.append(f"{shown(name)} (by {recipe.sources()} and {shown(key)})")
            continue
        recipe.parts[rule.part] = tensor
        if by_rows:
            rows = expected[name][0] if expected[name] else 0
            recipe.rows = (row, row + rows)
            row += rows
    enough = tensor.shape[:1] == (row,) or (transform.may_be_longer and tensor.shape[:1] > (row,))
    if by_rows and not enough:
        faults.misshaped.append(
            f"{shown(key)} (has {list(tensor.shape)}, its parts in the model take {row} rows)"
        )


def _check(name: str, shape: Shape, recipe: _Recipe | None, faults: _Faults) -> None:
    if recipe is None:
        faults.missing.append(f"{name} {list(shape)}")
        return
    transform = TRANSFORMS[recipe.transform]
    absent = [part for part in transform.parts if part not in recipe.parts]
    if absent:
        faults.missing.append(
            f"{name} {list(shape)} (there is {recipe.sources()}, but no {', '.join(absent)})"
        )
        return
    closed = [(tensor, fault) for tensor in recipe.parts.values() if (fault := unreadable(tensor))]
    if closed:
        faults.unreadable.append(f"{shown(closed[0][0].name)} ({closed[0][1]})")
        return
    try:
        found = transform.shape({part: tensor.shape for part, tensor in recipe.parts.items()})
    except ShapeMismatch as error:
        faults.misshaped.append(f"{name} ({error})")
        return
    if recipe.rows is not None:
        found = (recipe.rows[1] - recipe.rows[0], *found[1:])
    if found != tuple(shape):
        faults.misshaped.append(f"{name} (expected {list(shape)}, the checkpoint has {list(found)})")


def _float32(tensor: Tensor) -> NDArray[np.float32]:
    array = tensor.numpy()
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):
        narrow: NDArray[np.float32] = array.astype(np.float32)
    if array.dtype == np.float64 and not np.array_equal(np.isinf(narrow), np.isinf(array)):
        raise CheckpointError("holds float64 values too large for float32", where=shown(tensor.name))
    return narrow
