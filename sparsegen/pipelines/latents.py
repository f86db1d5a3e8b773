"""The models of latent diffusion, ready to use: texts come in as features, images as latents, latents as images.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from sparsegen.backends.interface import Backend, Host
from sparsegen.backends.registry import get_backend

from ..checks import warn, warn_of_unit_range, whole_number
from ..diffusion import seeds
from ..diffusion.random import torch_noise
from ..diffusion.settings import DiffusionDefaults, Settings
from ..editing.state import State
from ..engine.allocator import Allocator, BackendAllocator
from ..engine.own_store import own_allocator
from ..engine.stats import LayerRecord
from ..errors import InputError, ShapeError
from ..models import CLIPText, SDUNet, Tokenizer, VAEDecoder, VAEEncoder
from ..models.base import Model, multiples_near, named_sizes

logger = logging.getLogger("sparsegen")

ROLES: dict[str, type[Model]] = {
    "unet": SDUNet,
    "encoder": VAEEncoder,
    "decoder": VAEDecoder,
    "text": CLIPText,
}
"""The models of latent diffusion by their roles in a bundle."""
ENDS_KEPT_AS = "float32"
"""How encoder and decoder keep their canvases in a session: see `StableDiffusion`'s `storage`."""
_PROBED = 0.5
"""The value of all inputs by which a model's prediction is probed."""


class LatentDiffusion:
    """The four models of a checkpoint and its tokenizer.

    Parameters
    ----------
    bundle
        As `sparsegen.load_bundle` gives it.
    backend
        As for `Session`.
    predicts
        "noise" or "v" (the velocity); None: as the checkpoint says, else as `probe` finds, with a warning.

    Raises
    ------
    InputError, BackendError
        The bundle lacks a model, or they do not fit each other.
    """

    unet: SDUNet
    encoder: VAEEncoder
    decoder: VAEDecoder
    text: CLIPText

    def __init__(
        self, bundle: Any, *, backend: str | Backend | None = None, predicts: str | None = None
    ) -> None:
        models: Mapping[str, Model] = getattr(bundle, "models", {})
        if not models:
            raise InputError(
                f"latent diffusion needs the models of a checkpoint, as sparsegen.load_bundle gives them, not "
                f"{type(bundle).__name__}"
            )
        for role, kind in ROLES.items():
            if not isinstance(models.get(role), kind):
                found = ", ".join(models)
                raise InputError(
                    f"{bundle.name} holds {found}; latent diffusion needs {', '.join(ROLES)}; give the whole "
                    "checkpoint, not one part of it"
                )
            setattr(self, role, models[role])
        self.models: Mapping[str, Model] = models
        """Role -> model."""
        self.name = str(bundle.name)
        self.tokenizer: Tokenizer = Tokenizer() if bundle.tokenizer is None else bundle.tokenizer
        self.backend = get_backend(backend)
        width, context = self.text.config.width, self.unet.config.context
        if width != context:
            raise InputError(
                f"{self.name}: the text encoder has {width} features, the UNet reads {context}; these are parts of "
                "different models"
            )
        proposed = getattr(bundle, "scheduler", {}).get("sampler")
        self.own: Mapping[str, Any] = {**self.unet.sampling, **({"sampler": proposed} if proposed else {})}
        """The settings of sampling that the checkpoint gives, by name."""
        known = getattr(bundle, "prediction", None)
        if predicts is None:
            predicts = {"noise": "noise", "velocity": "v", "v": "v"}.get(str(known))
        if predicts is None:
            predicts = probe(self.unet, self.backend)
            warn(
                f"{self.name} does not say what it predicts; probed: {'the velocity' if predicts == 'v' else 'noise'}. "
                'If images come out grey or burnt, give predicts="noise" or "v" (--predicts at the command line)'
            )
        if predicts not in ("noise", "v"):
            raise InputError(f"predicts is {predicts!r}, expected noise or v")
        self.diffusion = DiffusionDefaults(
            time="timestep",
            predicts=cast(Any, predicts),
            edit=Settings(steps=50, noise_level=800, sampler="ddim", schedule="stable_diffusion", clip=None),
            sample_steps=50,
        )

    def __repr__(self) -> str:
        return f"<LatentDiffusion {self.name!r}: {self.unet!r}, predicts {self.diffusion.predicts}>"

    def on(self, backend: str | Backend | None) -> LatentDiffusion:
        """The same models on another backend. Raises BackendError."""
        other = copy.copy(self)
        other.backend = get_backend(backend)
        return other

    @property
    def latent_channels(self) -> int:
        """Channels of latents."""
        return int(self.decoder.config.latents)

    @property
    def inpaints(self) -> bool:
        """Whether the UNet reads a mask and the masked image too."""
        return bool(self.unet.config.in_channels == 2 * self.latent_channels + 1)

    @property
    def unit(self) -> int:
        """The divisor of an image's sides."""
        return int(self.decoder.config.reduction * self.unet.unit)

    @property
    def usual_size(self) -> tuple[int, int]:
        """(height, width) that the model was trained on; 64 × 64 latents if its file does not say."""
        known = self.unet.size or (64, 64)
        return known[0] * self.decoder.config.reduction, known[1] * self.decoder.config.reduction

    def check_size(self, height: int, width: int) -> None:
        """Raises ShapeError, which names the nearest sizes, if images of that size are not supported."""
        if height % self.unit or width % self.unit or not height or not width:
            near = named_sizes(self.sizes_near(height, width))
            raise ShapeError(
                f"the image is {height}×{width}; this model needs sides in multiples of {self.unit}, the nearest are "
                f"{near}"
            )

    def sizes_near(self, height: int, width: int) -> list[tuple[int, int]]:
        """Supported sizes (height, width), the nearest first; the given one alone if it is supported."""
        return multiples_near(self.unit, height, width)

    # -- text --------------------------------------------------------------------------------------------

    def features(self, texts: Sequence[str], *, skip: int = 0) -> Host:
        """The features of texts, float32 `[N, T, C]`; a warning names what is cut off a long one.

        `skip` leaves out that many layers at the end of the encoder ("clip skip" counts from 1 in other programs).

        Raises
        ------
        InputError
            A text is not a string, or `skip` is out of range.
        """
        skip = whole_number("skip", skip, 0, self.text.config.layers - 1, unit="of layers")
        ids = []
        for text in texts:
            tokens = self.tokenizer.encode(text, self.text.config.tokens)
            if tokens.cut:
                warn(f"the text has more than {self.text.config.tokens - 2} tokens; cut off: {tokens.cut!r}")
            if tokens.unknown:
                warn(f"words that the model has no symbols for: {', '.join(tokens.unknown)}")
            ids.append(tokens.ids)
        _, output = self._dense(self.text, self.text.encode(np.stack(ids), skip=skip))
        return output.reshape(len(ids), self.text.config.tokens, -1)

    # -- images and latents ------------------------------------------------------------------------------

    def latents(self, moments: Host, noise: Host | None) -> Host:
        """Latents `[…, 4]` from the encoder's output `[…, 8]`: drawn with `noise`, or the mean where it is None.

        Scaled, as the UNet reads them. The logarithm of the variance is cut to -30 … 20, as in the encoder's source.
        """
        mean, logarithm = np.split(moments, 2, axis=-1)
        if noise is not None:
            mean = mean + np.exp(0.5 * np.clip(logarithm, -30, 20)) * noise
        return np.asarray(mean * np.float32(self.decoder.config.scale), np.float32)

    def encode(self, image: Host, noise: Host | None) -> Host:
        """The latents `[N, h, w, 4]` of images, float32 `[N, H, W, 3]` in [-1, 1]; `noise` as for `latents`."""
        _, moments = self._dense(self.encoder, self.encoder.encode(image))
        return self.latents(moments, noise)

    def decode(self, latents: Host) -> Host:
        """The images of latents, float32 `[N, H, W, 3]`, in [-1, 1] but for overshoots."""
        return self._dense(self.decoder, self.decoder.encode(self.unscaled(latents)))[1]

    def images(self, latents: Host) -> Host:
        """The images of latents `[N, h, w, C]`, uint8 `[N, H, W, 3]`."""
        return np.asarray(self.decoder.images(self.decode(latents)))

    def unscaled(self, latents: Host) -> Host:
        """Latents as the decoder reads them."""
        return np.asarray(latents / np.float32(self.decoder.config.scale), np.float32)

    def checked(self, image: Any, name: str = "the image") -> Host:
        """Images as float32 `[N, H, W, 3]` in [-1, 1], from uint8 or floats, `[H, W, 3]` or `[N, H, W, 3]`.

        Raises InputError, ShapeError.
        """
        array = np.asarray(image)
        array = array[None] if array.ndim == 3 else array
        if array.ndim != 4 or not len(array) or array.shape[3] != 3:
            raise ShapeError(f"{name} is {np.shape(image)}, expected [H, W, 3] or [N, H, W, 3]")
        self.check_size(*array.shape[1:3])
        if array.dtype == np.uint8:
            return np.asarray(array.astype(np.float32) / np.float32(127.5) - 1)
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"{name} is {array.dtype}, expected uint8, or floats in [-1, 1]")
        if not np.isfinite(array).all() or np.abs(array).max() > 1 + 1e-3:
            raise InputError(f"{name} holds values outside [-1, 1]; scale it, or give uint8")
        warn_of_unit_range(array)
        return np.asarray(np.clip(array, -1, 1), np.float32, order="C")

    def _dense(self, model: Model, inputs: Any) -> tuple[tuple[LayerRecord, ...], Host]:
        """A dense run of a model of which nothing is kept."""
        state = State(model, self.backend, allocator=self.allocator())
        run, output = state.paint(inputs.canvases, inputs.conditions, keep_canvases=False)
        return tuple(run.records), output

    def allocator(self) -> Allocator:
        """An allocator for dense runs."""
        return own_allocator(self.backend)


def guided(output: Host, guidance: float) -> Host:
    """Predictions `[N, …]` from those of the negative text and of the text, `[2N, …]`, one after the other.

    negative + guidance · (text - negative): Ho and Salimans, arXiv 2207.12598, equation 6, as diffusers writes it.
    """
    negative, positive = np.split(output, 2)
    return np.asarray(negative + np.float32(guidance) * (positive - negative))


def reduced(mask: Host, reduction: int) -> Host:
    """The latents, bool `[N, h, w]`, that have a True pixel of `mask` `[N, H, W]` among theirs."""
    n, height, width = mask.shape
    cells = mask.reshape(n, height // reduction, reduction, width // reduction, reduction)
    return np.asarray(cells.any((2, 4)))


def draws(seed: seeds.Seed, first: int) -> Callable[[int, tuple[int, ...]], Host]:
    """The noise of a trajectory whose start is draw number `first` of each sample's generator (`torch_noise`)."""
    return lambda i, shape: torch_noise(seed, i + first, shape)


def probe(unet: SDUNet, backend: Backend) -> str:
    """What a UNet predicts, "noise" or "v", by its answer to constants at the noisiest time.

    There a noise predictor returns about its input; the velocity is about the negative image. Source:
    github.com/leejet/stable-diffusion.cpp (stable-diffusion.cpp, `is_using_v_parameterization_for_sd2`).
    """
    c = unet.config
    x = np.full((1, unet.unit, unet.unit, c.in_channels), _PROBED, np.float32)
    inputs = unet.encode(x, timestep=999.0, text=np.full((1, 2, c.context), _PROBED, np.float32))
    state = State(unet, backend, allocator=BackendAllocator(backend))
    _, output = state.paint(inputs.canvases, inputs.conditions, keep_canvases=False)
    return "v" if float((output - _PROBED).mean()) < -1 else "noise"
