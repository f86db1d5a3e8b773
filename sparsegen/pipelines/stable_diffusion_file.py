"""Stable Diffusion sessions on disk: models, a text, states and a history come in, one file comes out, and back again.

The file has the format of `editing.session_file`: four models by their roles, the states of encoder, UNet (one for each
denoising step) and decoder in the order of the journals, and the tokenizer's vocabulary. The features of the text are a
condition of the UNet's states.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host
from sparsegen.weights import CheckpointError

from ..checks import whole_number
from ..diffusion.settings import LatentSettings
from ..editing import session_file
from ..editing.history import History
from ..editing.session_check import damaged
from ..editing.session_file import Notes
from ..editing.state import State
from ..engine.allocator import Allocator
from ..errors import SessionError, SparsegenError
from ..models import Tokenizer
from ..models.base import Inputs
from ..models.vocabulary import packed, unpacked
from ..tiling.policies import Policy
from .latents import ENDS_KEPT_AS, LatentDiffusion
from .steps_file import check_inputs, checked_states, step_prefix

KIND = "stable_diffusion"
_ENCODER, _MASKED, _DECODER = "encoder/", "masked/", "decoder/"
ENDS = (_ENCODER, _MASKED, _DECODER)
"""Prefixes of the states of encoder (of the image; of the masked image, for an inpainting UNet) and decoder."""
_VOCABULARY = "vocabulary"


@dataclass(frozen=True, eq=False, repr=False)
class Contents:
    """A session: what is written, and what comes back."""

    models: LatentDiffusion
    prompt: str
    negative: str
    skip: int
    text: Host
    """Features of the texts, `[1 or 2, T, C]`."""
    settings: LatentSettings
    policy: Policy
    margin: int
    storage: str
    states: Sequence[State]
    """Encoder, UNet at each step, decoder."""
    history: History
    notes: Notes


def save(
    path: str | os.PathLike[str],
    session: Contents,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Write a session to `path`, or leave the old file whole. Raises CheckpointError: it could not be written."""
    models = session.models
    described = {
        "name": models.name,
        "predicts": models.diffusion.predicts,
        "proposed": models.own.get("sampler"),
        "padding": models.tokenizer.padding,
        "prompt": session.prompt,
        "negative": session.negative,
        "skip": session.skip,
        "settings": session.settings.described(),
        "margin": session.margin,
        "storage": session.storage,
    }
    session_file.save(
        path,
        models.models,
        dict(zip(_prefixes(models, session.settings), session.states, strict=True)),
        session.history,
        policy=session.policy,
        kind=KIND,
        settings=described,
        tensors={_VOCABULARY: np.frombuffer(packed(models.tokenizer.vocabulary), np.uint8)},
        notes=session.notes,
        progress=progress,
    )


def load(
    path: str | os.PathLike[str],
    backend: Any,
    store: Allocator,
    ends: Mapping[str, Allocator],
) -> Contents:
    """Read a session: its canvases and journals into `store`, those of encoder and decoder into `ends`, by prefix.

    Raises
    ------
    SessionError, CheckpointError, InputError
        The file is cut, altered, of another kind or of another version; the caches do not fit; a setting is wrong.
    """
    file = session_file.load(path, backend, store, kind=KIND, allocators=ends, edited=_DECODER)
    try:
        described = file.settings
        settings = LatentSettings.read(described["settings"]).checked()
        assert isinstance(settings, LatentSettings)
        storage = described["storage"]
        vocabulary = unpacked(file.tensors[_VOCABULARY].tobytes(), path)
        bundle = SimpleNamespace(
            name=str(described["name"]),
            models=MappingProxyType(file.models),
            tokenizer=Tokenizer(vocabulary, padding=whole_number("padding", described["padding"], 0)),
            scheduler={"sampler": described["proposed"]},
            prediction=None,
        )
        models = LatentDiffusion(bundle, backend=backend, predicts=str(described["predicts"]))
        states = checked_states(path, file.states, _prefixes(models, settings))
        prompt, negative = described["prompt"], described["negative"]
        if not (isinstance(prompt, str) and isinstance(negative, str)):
            raise ValueError("its prompt is no text")
        text = _check_states(path, models, settings, states, file.history.image, storage)
        return Contents(
            models,
            prompt,
            negative,
            whole_number("skip", described["skip"], 0, models.text.config.layers - 1),
            text,
            settings,
            file.policy,
            whole_number("margin", described["margin"], 0),
            storage,
            states,
            file.history,
            file.notes,
        )
    except SessionError:
        raise
    except (
        *(LookupError, TypeError, ValueError, AttributeError, RecursionError),
        *(SparsegenError, CheckpointError),
    ) as error:
        raise damaged(path, f"it does not describe a session of Stable Diffusion ({error})") from None


def _prefixes(models: LatentDiffusion, settings: LatentSettings) -> list[str]:
    """The prefixes of all states, in order."""
    steps = [step_prefix(i) for i in range(len(settings.times()))]
    return [_ENCODER, *([_MASKED] if models.inpaints else []), *steps, _DECODER]


def _check_states(
    path: str | os.PathLike[str],
    models: LatentDiffusion,
    settings: LatentSettings,
    states: Sequence[State],
    image: Host | None,
    storage: str,
) -> Host:
    """The features of the texts, `[1 or 2, T, C]`, of states that fit one image.

    Raises SessionError, InputError, ShapeError, ValueError: they do not fit.
    """
    if image is None:
        raise ValueError("it has no image")
    models.check_size(*image.shape[1:3])
    *encoders, decoder = states
    times = settings.times()
    encoders, steps = encoders[: -len(times)], encoders[-len(times) :]
    n, halves, channels = len(image), 2 if settings.guided else 1, models.latent_channels
    h, w = (side // models.decoder.config.reduction for side in image.shape[1:3])
    features = steps[0].conditions["text"]
    text = features[::n]
    if len(text) != halves:
        raise ValueError(f"it has features of {len(text)} texts, expected {halves}")
    reads = models.unet.config.in_channels
    if reads != channels and not models.inpaints:
        raise ValueError(f"its UNet reads {reads} channels, its latents have {channels}")
    latents = np.zeros((n, h, w, channels), np.float32)
    x = np.zeros((halves * n, h, w, reads), np.float32)

    def step(now: float) -> Inputs:
        return models.unet.encode(x, timestep=np.rint(now), text=np.repeat(text, n, 0))

    check_inputs(path, steps, map(step, times), storage)
    whole = models.encoder.encode(np.zeros(image.shape, np.float32))
    check_inputs(path, encoders, [whole] * len(encoders), ENDS_KEPT_AS)
    check_inputs(path, [decoder], [models.decoder.encode(latents)], ENDS_KEPT_AS)
    found = [state.output_shape for state in states]
    moments, predicted = (n, h, w, 2 * channels), (halves * n, h, w, channels)
    if found != [*[moments] * len(encoders), *[predicted] * len(steps), image.shape]:
        raise ValueError("its models do not fit each other")
    return text
