"""The interface of a model: a user's input comes in, canvases and in the end an image come out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice, product
from types import MappingProxyType
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from sparsegen.backends.interface import Backend, Host

from ..diffusion.settings import DiffusionDefaults, checked_own
from ..engine.feature import Feature
from ..engine.prepared import Prepared
from ..engine.turn import NotCopied
from ..errors import InputError, ShapeError
from ..layers import Layer
from ..tiling.policies import MASK_SETTINGS, Fast, Paper, Policy, get_policy


@dataclass(frozen=True, repr=False)
class Inputs:
    """A user's input as arrays: canvases, which an edit may repaint, and conditions, which it may not."""

    canvases: dict[str, Host]
    """Name -> array `[N, H, W, P]`; the same N, H, W for all."""
    conditions: dict[str, Host] = field(default_factory=dict)
    """Name -> array; fixed until a session runs again."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W) of the canvases."""
        n, h, w = next(iter(self.canvases.values())).shape[:3]
        return n, h, w


class _Named(type):
    """The class of `Model` classes: a new model names its layers' paths when its construction ends."""

    def __call__(cls, *given: Any, **named: Any) -> Any:
        model = super().__call__(*given, **named)
        model.name_paths()
        return model


class Model(NotCopied, Layer, metaclass=_Named):
    """A model: a tree of layers, written once. Subclasses define its inputs, and the image of its output."""

    not_copied = "load it again (sessions of one model share its weights)"
    refusal = InputError

    family: ClassVar[str]
    """The architecture's name in files and at the command line."""
    role: ClassVar[str]
    """The model's role in a bundle: "unet", "generator"."""
    config_type: ClassVar[type]
    """A frozen dataclass of plain values that determine the parameters' shapes; it checks its values."""
    registry: ClassVar[dict[str, type[Model]]] = {}
    """Family -> class; a class that defines `family` registers itself."""

    inputs: ClassVar[tuple[str, ...]]
    """The names of the canvases of its `Inputs`."""
    paper: Paper
    """The family's own settings of the `paper` policy."""
    fast_settings: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """The settings of the `fast` policy in which the family differs from its defaults, by name."""
    eps: float = 0.0
    """The largest difference at which two input pixels count as equal."""
    name: str = ""
    """The name that it was loaded by: a built-in name or a path. For messages only."""
    source: str = ""
    """The weights of its file that it has: "averaged weights (ema); beside them: model". For messages only."""
    defaults: Mapping[str, Any] = MappingProxyType({})
    """The conditions of a run that are not given, by name."""
    sampling: Mapping[str, Any] = MappingProxyType({})
    """Of a diffusion model: the settings in which it differs from its family, by name."""
    size: tuple[int, int] | None = None
    """(height, width) that a diffusion model was trained on; None: unknown."""
    diffusion: ClassVar[DiffusionDefaults | None] = None
    """Of a diffusion family: its condition, its prediction and its default settings; None: it is another kind."""

    def __repr__(self) -> str:
        count = sum(math.prod(parameter.shape) for parameter in self.parameters().values())
        name = f" {self.name!r}" if self.name else ""
        return f"<{type(self).__name__}{name}: {count / 1e6:.2f} M parameters>"

    def __init_subclass__(cls) -> None:
        if "family" in vars(cls):
            if cls.family in Model.registry:
                raise TypeError(
                    f"family {cls.family!r} has two classes, {Model.registry[cls.family]} and {cls}; expected one"
                )
            Model.registry[cls.family] = cls

    def __init__(self, config: Any) -> None:
        self.config = config
        self._prepared: WeakKeyDictionary[Backend, Prepared] = WeakKeyDictionary()
        self._release: Callable[[], None] = lambda: None

    def encode(self, image: Any, *, base: Inputs | None = None, **conditions: Any) -> Inputs:
        """The canvases and conditions of a user's input, checked; conditions that are not given come from `base`.

        Raises
        ------
        InputError, ShapeError
        """
        raise NotImplementedError

    def sizes_near(self, height: int, width: int) -> list[tuple[int, int]]:
        """Supported sizes (height, width), the nearest first; the given one alone if it is supported."""
        raise NotImplementedError

    def check_size(self, height: int, width: int) -> None:
        """Raises ShapeError, which names the nearest sizes, if inputs of that size are not supported."""
        raise NotImplementedError

    def forward(self, canvases: dict[str, Feature], conditions: dict[str, Host]) -> Feature:
        """The computation: input features in, the output feature out."""
        raise NotImplementedError

    def images(self, output: Host) -> Host:
        """The output `[N, H, W, C]`, or a part of it, as uint8 images `[N, H, W, 3]`; pixel by pixel."""
        raise NotImplementedError

    def load_parameters(
        self,
        values: Mapping[str, Host],
        *,
        check: Callable[[str], None] | None = None,
        stored: Callable[[str], str] | None = None,
        release: Callable[[], None] | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        """Take the parameters' values by path.

        With `check`, `stored` and `release`, `values` reads from a file, of which the shapes are known to fit: each
        value is read when a backend prepares it, and not kept; `check(path)` raises now if that would fail,
        `stored(path)` is its element type in the file, and `release` is called after each read. `progress(done, total,
        path)` is called after each parameter. A session that has run keeps its weights until its next `run`.

        Raises
        ------
        ShapeError
            A parameter is missing or has another shape, or a value has no parameter; names the first few.
        """
        self._prepared, self._release = WeakKeyDictionary(), release or (lambda: None)
        kept: dict[str, Host] = {}
        parameters = self.parameters()
        if set(values) != set(parameters):
            raise ShapeError(
                f"{self.family}: parameters are missing or unexpected: {sorted(set(values) ^ set(parameters))[:5]}; "
                "expected the names of model.parameters()"
            )
        for done, (path, parameter) in enumerate(parameters.items(), start=1):
            if check is not None:
                check(path)
                parameter.read = partial(values.__getitem__, path)
                parameter.stored = "float32" if stored is None else stored(path)
            else:
                value = kept[path] = values[path]  # once: a lazy mapping computes it now
                if tuple(value.shape) != parameter.shape:
                    raise ShapeError(f"{path} has shape {tuple(value.shape)}, expected {parameter.shape}")
                parameter.read = partial(kept.__getitem__, path)
                parameter.stored = "float16" if value.dtype == "float16" else "float32"
            self.release()
            if progress is not None:
                progress(done, len(parameters), path)

    def release(self) -> None:
        """Free what reading parameters from the file took; values that were read stay valid."""
        self._release()

    @property
    def fast(self) -> Fast:
        """The model's settings of the `fast` policy: the masks of its `paper` policy, and the family's own settings."""
        masks = {name: getattr(self.paper, name) for name in MASK_SETTINGS}
        return Fast(**{**masks, **self.fast_settings})

    def policy(self, policy: str | Policy, *, fast: Fast | None = None) -> Policy:
        """The policy of a name, with this model's settings; see `get_policy`. Raises InputError."""
        return get_policy(policy, paper=self.paper, fast=self.fast if fast is None else fast)

    def prepared_for(self, backend: Backend) -> Prepared:
        """The parameters as `backend` reads them: one set for all sessions, freed with the model or the backend."""
        return self._prepared.setdefault(backend, Prepared(self._release))

    def described(self) -> dict[str, Any]:
        """The model beside its configuration and parameters, in plain values for JSON."""
        return {
            "name": self.name,
            "source": self.source,
            "defaults": {name: list(value) for name, value in self.defaults.items()},
            "sampling": dict(self.sampling),
            "size": self.size,
        }

    def describe(self, described: Mapping[str, Any]) -> None:
        """Take the values that `described` gave. Raises ValueError, TypeError, LookupError: they are others."""
        self.name, self.source = str(described["name"]), str(described["source"])
        defaults = {str(name): tuple(map(float, value)) for name, value in described["defaults"].items()}
        self.defaults, self.sampling = MappingProxyType(defaults), checked_own(dict(described["sampling"]))
        size = described["size"]
        if size is not None:
            height, width = map(int, size)
            self.size = height, width

    def config_json(self) -> str:
        """The configuration as JSON, keys sorted."""
        return json.dumps(asdict(self.config), sort_keys=True)


def checked_model(model: Any, needed: str) -> Model:
    """`model`, if it is one. Raises InputError that begins with `needed`, such as for a name or a path."""
    if isinstance(model, Model):
        return model
    if isinstance(model, str | os.PathLike):
        raise InputError(f"{needed}, not its name; give it sparsegen.load({os.fspath(model)!r})")
    raise InputError(f"{needed}, as sparsegen.load gives it, not {type(model).__name__}")


def checked_diffusion(model: Any, needed: str, otherwise: str = "") -> DiffusionDefaults:
    """The diffusion side of `model`, if it is a diffusion model.

    Raises
    ------
    InputError
        "`needed`, …; `otherwise`": it is no diffusion model, or no model.
    """
    diffusion = checked_model(model, needed).diffusion
    if diffusion is None:
        raise InputError(f"{needed}, not one of family {model.family!r}" + f"; {otherwise}" * bool(otherwise))
    return diffusion


def nearest_sizes(sizes: Iterable[tuple[int, int]], height: int, width: int) -> list[tuple[int, int]]:
    """`sizes` (height, width), the nearest to the given one first, by the logarithms of both scale factors."""

    def stretch(size: tuple[int, int]) -> float:
        return math.log(size[0] / max(height, 1)) ** 2 + math.log(size[1] / max(width, 1)) ** 2

    return sorted(sizes, key=stretch)


def multiples_near(unit: int, height: int, width: int) -> list[tuple[int, int]]:
    """The sizes around the given one whose sides are multiples of `unit`, the nearest first."""
    rows, columns = (
        sorted({max(side // unit, 1) * unit, max(-(-side // unit), 1) * unit}) for side in (height, width)
    )
    return nearest_sizes(product(rows, columns), height, width)


def named_sizes(sizes: Iterable[tuple[int, int]]) -> str:
    """The first three sizes, for a message."""
    return ", ".join(f"{height}×{width}" for height, width in islice(sizes, 3)) + " (height × width)"
