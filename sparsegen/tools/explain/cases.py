"""The edit itself, as a user makes it: a model and two inputs come in, sessions and their edits come out.

A `Case` knows how one kind of session is opened and edits, and which of its states are looked into.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparsegen.backends.interface import Backend, Host
from sparsegen.backends.registry import get_backend
from sparsegen.weights import builtin

from ...diffusion.registry import Step
from ...editing.door import Result
from ...editing.session import Session
from ...editing.state import State
from ...errors import InputError, ShapeError
from ...models.base import Model
from ...models.spade import SPADEGenerator
from ...pipelines import LatentDiffusion, SDEdit, StableDiffusion
from ...pipelines.latent_edit import faded, joined
from ...tiling.masks import check_mask, difference_mask
from ...tiling.policies import Policy
from .passes import Pass


@dataclass(eq=False)
class Case(ABC):
    """An input and its edit, and the sessions that they run in.

    `opened` makes a session and runs the original in it; `edit` edits in it; `dense` is the dense run of the edited
    input.
    """

    original: Host
    edited: Host
    mask: Host | None
    """bool `[H, W]`."""
    policy: str | Policy
    """The edit's; a session's own once one is open."""
    backend: Backend
    options: dict[str, Any]
    """Those of the session, or conditions of its run."""

    usual: ClassVar[str] = "fast"
    """The policy of edits that give none."""
    repeated: ClassVar[str] = ""
    """The part that runs at every denoising step."""
    stepped: ClassVar[bool] = True
    """Whether a session denoises in steps."""
    shown_original: Host = dataclasses.field(init=False)
    """The first image, uint8 `[H, W, 3]`."""

    @property
    @abstractmethod
    def models(self) -> Mapping[str, Model]:
        """Role -> model, of all whose weights an edit needs."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that the model was loaded by."""

    @property
    @abstractmethod
    def difference(self) -> Host:
        """bool `[N, H, W]`: the pixels that the edit changes."""

    @abstractmethod
    def opened(
        self, policy: str | Policy | None = None, backend: Backend | None = None, **options: Any
    ) -> Any:
        """A context with a session that has run the original; what is not given is the case's."""

    @abstractmethod
    def dense(self, session: Any, previews: list[Host]) -> Result:
        """The dense run of the edited input. `previews` as in `edit`."""

    @abstractmethod
    def passes(self, states: Sequence[State], step: int | None) -> list[tuple[State, dict[str, Any]]]:
        """The states of a session to look into, with `part`, `title` and `sample` of their `Pass`."""

    @abstractmethod
    def shown(self, given: Host) -> Host:
        """An input as an image, uint8 `[H, W, 3]`."""

    @abstractmethod
    def other(self, given: Host) -> Host:
        """Some pixels of an input, `[h, w]` or `[h, w, C]`, with other values."""

    def edit(self, session: Any, edited: Host | None = None, previews: list[Host] | None = None) -> Result:
        """An edit in a session; `previews` get an array after each denoising step, for `pictures`."""
        mask = self.mask if edited is None else None
        watched = {} if previews is None else self._watched(previews)
        return session.edit(self.edited if edited is None else edited, mask=mask, **watched)  # type: ignore[no-any-return]  # of three kinds of sessions

    def pictures(self, previews: Sequence[Host], region: Host) -> list[Host]:
        """The previews of an edit of a `region`, bool `[N, H, W]`, as images, uint8 `[H, W, 3]`."""
        return list(previews)

    @property
    def given(self) -> tuple[Host, str]:
        """The edited input as an image, uint8 `[H, W, 3]`, and what it is, in words."""
        return self.shown(self.edited), "edited input"

    def settings(self, session: Any) -> list[tuple[str, str]]:
        """(name, value) of the settings that a session used."""
        return []

    def noted(self, passes: Mapping[State, Pass], states: Sequence[State], step: int | None) -> list[Pass]:
        """What the edit repainted in the states that `passes` names; of one that stayed as it was, nothing."""
        wanted = self.passes(states, step)
        return [dataclasses.replace(passes[state], **named) for state, named in wanted if state in passes]

    def _watched(self, previews: list[Host]) -> dict[str, Any]:
        """Options of an edit or a dense run that collect previews."""
        return {}


@dataclass(eq=False)
class LabelCase(Case):
    """A label map and an edited copy, in a `Session`."""

    model: Model
    usual = "paper"
    stepped = False

    @property
    def models(self) -> Mapping[str, Model]:
        return {self.model.role: self.model}

    @property
    def name(self) -> str:
        return self.model.name

    @contextmanager
    def opened(
        self, policy: str | Policy | None = None, backend: Backend | None = None, **options: Any
    ) -> Iterator[Session]:
        chosen = self.policy if policy is None else policy
        session = Session(self.model, self.backend if backend is None else backend, policy=chosen)
        self.shown_original = session.run(self.original, **self.options).image
        yield session

    def dense(self, session: Session, previews: list[Host]) -> Result:
        whole = Session(self.model, self.backend)
        return whole.run(self._applied, keep_canvases=False, **self.options)

    @property
    def _applied(self) -> Host:
        """The edited labels, with the original's outside the mask."""
        return self.edited if self.mask is None else np.where(self.mask, self.edited, self.original)

    @property
    def difference(self) -> Host:
        ends = [self.model.encode(each, **self.options).canvases for each in (self.original, self._applied)]
        return difference_mask(*ends, eps=self.model.eps)

    def passes(self, states: Sequence[State], step: int | None) -> list[tuple[State, dict[str, Any]]]:
        return [(states[0], {})]

    def shown(self, given: Host) -> Host:
        """Labels in the built-in model's colours, or in greys."""
        from ...images import colourise  # here: the door of the package loads no Pillow

        known = builtin.get(self.model.name)
        if known is not None and known.labels is not None:
            return colourise(given, known.labels.palette)
        grey = (given.astype(np.int64) * 89 % 206 + 30).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1)

    def other(self, given: Host) -> Host:
        """The next label."""
        return np.asarray((given + 1) % getattr(self.model, "labels", 2), given.dtype)


class _StepsCase(Case):
    """An image and an edited copy, in a session of many denoising steps."""

    @abstractmethod
    def _session(self, policy: str | Policy, backend: Backend, options: dict[str, Any]) -> Any:
        """A session."""

    @property
    @abstractmethod
    def _eps(self) -> float:
        """The largest difference of equal pixels."""

    @abstractmethod
    def _preview(self, step: Step) -> Host:
        """What is kept of a step."""

    @contextmanager
    def opened(
        self, policy: str | Policy | None = None, backend: Backend | None = None, **options: Any
    ) -> Iterator[Any]:
        chosen = self.policy if policy is None else policy
        engine = self.backend if backend is None else backend
        with self._session(chosen, engine, {**self.options, **options}) as session:
            self.shown_original = session.run(self.original).image
            yield session

    def dense(self, session: Any, previews: list[Host]) -> Result:
        return session.dense(self.edited, mask=self.mask, **self._watched(previews))  # type: ignore[no-any-return]  # of two kinds of sessions

    @property
    def difference(self) -> Host:
        if self.mask is not None:  # all of it is denoised, whatever is painted there
            return self.mask[None]
        ends = [_floats(each) for each in (self.original, self.edited)]
        return np.asarray((np.abs(ends[0] - ends[1]) > self._eps).any(-1))[None]

    def shown(self, given: Host) -> Host:
        if given.dtype == np.uint8 and given.shape[-1] == 3:
            return given
        return np.asarray(self._images(_floats(given)[None])[0])

    @abstractmethod
    def _images(self, images: Host) -> Host:
        """Images in [-1, 1] `[N, H, W, C]` as uint8 `[N, H, W, 3]`."""

    def other(self, given: Host) -> Host:
        """Inverted colours."""
        return np.asarray(255 - given if given.dtype == np.uint8 else -given)

    def settings(self, session: Any) -> list[tuple[str, str]]:
        used = {**session.settings.used(), "margin": f"{session.margin} pixels"}
        return [(name.replace("_", " "), str(value)) for name, value in used.items() if value is not None]

    @property
    def given(self) -> tuple[Host, str]:
        if self.mask is None or not np.array_equal(self.edited, self.original):
            return super().given
        white = np.where(self.mask[..., None], np.uint8(255), self.shown(self.original))
        return white, "the mask, in white"

    def _watched(self, previews: list[Host]) -> dict[str, Any]:
        return {"on_step": lambda step: previews.append(self._preview(step))}


@dataclass(eq=False)
class ImageCase(_StepsCase):
    """An image and a copy with strokes over it, in an `SDEdit` session."""

    model: Model

    @property
    def models(self) -> Mapping[str, Model]:
        return {self.model.role: self.model}

    @property
    def name(self) -> str:
        return self.model.name

    def _session(self, policy: str | Policy, backend: Backend, options: dict[str, Any]) -> SDEdit:
        return SDEdit(self.model, policy=policy, backend=backend, **options)

    @property
    def _eps(self) -> float:
        return self.model.eps

    def _preview(self, step: Step) -> Host:
        return np.asarray(self._images(step.x0)[0])

    def _images(self, images: Host) -> Host:
        return self.model.images(images)

    def passes(self, states: Sequence[State], step: int | None) -> list[tuple[State, dict[str, Any]]]:
        assert step is not None  # a session of steps has some
        return [(states[step], {})]


@dataclass(eq=False)
class LatentCase(_StepsCase):
    """An image and a copy with strokes over it, or the same image and a mask, in a `StableDiffusion` session."""

    latent: LatentDiffusion
    repeated = "unet"

    @property
    def models(self) -> Mapping[str, Model]:
        return self.latent.models

    @property
    def name(self) -> str:
        return self.latent.name

    def _session(self, policy: str | Policy, backend: Backend, options: dict[str, Any]) -> StableDiffusion:
        return StableDiffusion(self.latent.on(backend), policy=policy, **options)

    @property
    def _eps(self) -> float:
        return self.latent.encoder.eps

    def _preview(self, step: Step) -> Host:
        return np.asarray(step.x0)  # latents; decoding them now would count as time of the edit

    def _images(self, images: Host) -> Host:
        return self.latent.decoder.images(images)

    def pictures(self, previews: Sequence[Host], region: Host) -> list[Host]:
        """Latents as the image that they would end in: decoded, and joined with the original around the region."""
        latent, before = self.latent.on(self.backend), self.latent.checked(self.original)
        share = faded(region)[..., None]
        return [self._images(joined(before, latent.decode(each), share))[0] for each in previews]

    def passes(self, states: Sequence[State], step: int | None) -> list[tuple[State, dict[str, Any]]]:
        assert step is not None  # a session of steps has some
        encoders = 2 if self.latent.inpaints else 1
        steps = states[encoders:-1]
        halves = len(next(iter(steps[step].inputs.values())).array)
        which = (
            ", for the prompt" if halves > 1 else ""
        )  # the half for the negative text is computed beside it
        unet = {"part": "unet", "title": f"UNet, denoising step {step} of 0 to {len(steps) - 1}{which}"}
        found: list[tuple[State, dict[str, Any]]] = [
            (states[0], {"part": "encoder", "title": "Encoder: the edited image to latents"}),
            (steps[step], {**unet, "sample": halves - 1}),
            (states[-1], {"part": "decoder", "title": "Decoder: the denoised latents to the image"}),
        ]
        if encoders > 1:
            named = {"part": "masked", "title": "Encoder: the image without the painted pixels"}
            found.insert(1, (states[1], named))
        return found

    def settings(self, session: StableDiffusion) -> list[tuple[str, str]]:
        texts = {"prompt": session.prompt, "negative": session.negative}
        return [*((name, text) for name, text in texts.items() if text), *super().settings(session)]


def case_of(
    model: Any,
    original: Any,
    edited: Any,
    *,
    mask: Any,
    policy: str | Policy | None,
    backend: str | Backend | None,
    options: dict[str, Any],
) -> Case:
    """The case of a model and its inputs.

    Raises
    ------
    InputError, ShapeError, BackendError
        The model or its inputs are none that can be explained.
    """
    kind: type[LabelCase | ImageCase | LatentCase]
    if isinstance(model, LatentDiffusion):
        kind = LatentCase
        if not isinstance(options.get("prompt"), str):
            raise InputError("explain: an edit of Stable Diffusion follows a text; give prompt=")
    elif not isinstance(model, Model):
        raise InputError(
            f"explain needs one model, as sparsegen.load gives it, or LatentDiffusion(load_bundle(path)), not "
            f"{type(model).__name__}"
        )
    elif model.diffusion is not None:
        kind = ImageCase
    elif isinstance(model, SPADEGenerator):
        kind = LabelCase
    else:
        raise InputError(f"explain needs a GauGAN or a diffusion model, not one of family {model.family!r}")
    for name, value in (("original", original), ("edited", edited)):
        if np.ndim(value) not in (2, 3):
            raise InputError(
                f"explain: {name} has shape {np.shape(value)}, expected one label map or one image"
            )
    original, edited = np.asarray(original), np.asarray(edited)
    if original.shape != edited.shape:
        raise ShapeError(f"explain: edited is {edited.shape}, expected {original.shape}, as original")
    if mask is not None:
        mask = np.array(check_mask(mask, (1, *original.shape[:2]))[0])
    if backend is None and isinstance(model, LatentDiffusion):
        backend = model.backend
    chosen = kind.usual if policy is None else policy
    return kind(original, edited, mask, chosen, get_backend(backend), options, model)


def _floats(image: Host) -> Host:
    """An image in [-1, 1], float32."""
    scaled = image.astype(np.float32)
    return scaled / np.float32(127.5) - 1 if image.dtype == np.uint8 else scaled
