"""Text to image, image to image, inpainting: a text and what there is of an image come in, images come out, whole.

Every step runs the UNet on all latents. The numbers are drawn as diffusers' pipelines draw them from PyTorch's CPU
generator, so that equal seeds give equal images. To edit an image again and again, see `stable_diffusion.py`. Sources:
Rombach et al., arXiv 2112.10752; Meng et al., "SDEdit", arXiv 2108.01073 (image to image); Lugmayr et al., "RePaint",
arXiv 2201.09865, without its resampling (inpainting with a plain model).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host

from ..checks import whole_number
from ..diffusion import seeds
from ..diffusion.registry import Step
from ..diffusion.seeds import START
from ..diffusion.settings import LatentSettings, OnStep, latent_settings
from ..editing.door import Result
from ..editing.state import State
from ..engine.stats import LayerRecord, Stats
from ..errors import InputError, ShapeError
from ..tiling.masks import check_mask
from ..tiling.tiles import TileSet
from .latents import LatentDiffusion, draws, guided, reduced
from .steps import denoised


@dataclass(frozen=True)
class Request:
    """What `generate` was asked for, checked.

    Attributes
    ----------
    text
        Features, `[N or 2N, T, C]`: with guidance, of the negative texts before those of the texts.
    image
        float32 `[N, H, W, 3]` in [-1, 1]; None: from noise alone.
    mask
        bool `[N, H, W]`, True where the image is to be painted; None: everywhere.
    """

    text: Host
    image: Host | None
    mask: Host | None
    size: tuple[int, int]
    samples: int
    settings: LatentSettings


def generate(
    models: LatentDiffusion,
    prompt: str | Sequence[str],
    *,
    negative: str = "",
    image: Any = None,
    mask: Any = None,
    size: tuple[int, int] | None = None,
    count: int = 1,
    steps: int | None = None,
    strength: float | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    seed: seeds.Seed = 0,
    skip: int = 0,
    on_step: OnStep | None = None,
    **options: Any,
) -> Result:
    """Images of a text; with `image`, changed towards it; with `mask`, painted there alone.

    Parameters
    ----------
    models
        The models of a checkpoint.
    prompt
        A text, or a list of them: one image for each.
    negative
        A text to stay away from, with `guidance`.
    image
        uint8 `[H, W, 3]` or `[N, H, W, 3]`, or floats in [-1, 1]; None: the image comes from noise alone.
    mask
        bool `[H, W]` or `[N, H, W]`, True where the image is to be painted. Other latents come from the image: with a
        UNet that reads four channels they are put back after every step, an inpainting UNet reads them.
    size
        (height, width) without an image; None: the size that the model was trained on.
    count
        Images of each text.
    steps
        Denoising steps; None: the checkpoint's, else 50.
    strength
        The share of the steps that are taken with an image, 1 from noise alone. None: 0.8, and 1 with a mask.
    guidance
        How far predictions move from those of `negative` towards those of the text; 1 leaves `negative` out. None: 7.5.
    sampler, options
        The sampler and its options, such as `eta` of ddim; None: the checkpoint's, else ddim.
    seed
        A number for each image; one number s means s, s + 1, … The noise is that of `torch.Generator` on a CPU.
    skip
        Layers of the text encoder to leave out at its end.
    on_step
        Called after every step; `step.x` and `step.x0` are latents, for `models.decode`.

    Returns
    -------
    The images; `output` is float32 `[N, H, W, 3]` in [-1, 1].

    Raises
    ------
    InputError, ShapeError
        An option cannot be used; the message names it and the reason.
    NonFiniteError
        A layer computed NaN or infinity.
    """
    start = time.perf_counter()
    request = _request(
        models,
        prompt,
        negative=negative,
        image=image,
        mask=mask,
        size=size,
        count=count,
        skip=skip,
        steps=steps,
        strength=strength,
        guidance=guidance,
        sampler=sampler,
        seed=seed,
        **options,
    )
    records: list[LayerRecord] = []
    x: Host | None = None
    for step in trajectory(models, request, records):
        x = step.x
        if on_step is not None:
            on_step(dataclasses.replace(step, x=step.x.copy()))
    assert x is not None  # settings have at least a step
    output = np.clip(models.decode(x), -1, 1)
    stats = Stats(1.0, tuple(records), (time.perf_counter() - start) * 1e3, 0)
    return Result(models.decoder.images(output), output, stats, TileSet.full(*output.shape[:3]))


def trajectory(models: LatentDiffusion, request: Request, records: list[LayerRecord]) -> Iterator[Step]:
    """The denoising steps of a request, whose `x` are latents `[N, h, w, C]`; the layers' records go to `records`."""
    settings, unet = request.settings, models.unet
    reduction, channels = models.decoder.config.reduction, models.latent_channels
    h, w = (side // reduction for side in request.size)
    shape = (request.samples, h, w, channels)
    drawn = 0

    def draw() -> Host:
        nonlocal drawn
        drawn += 1
        return draws(settings.seed, drawn - 1)(START, shape)

    # the order in which diffusers' pipelines draw
    whole = settings.strength == 1
    clean = None
    if request.image is not None and not (models.inpaints and whole):
        clean = models.encode(request.image, draw())
    noise = draw()
    beside: Host | None = None
    keep: Host | None = None
    if request.image is not None and request.mask is not None:
        painted = reduced(request.mask, reduction)[..., None]
        keep = ~painted
        masked = np.where(request.mask[..., None], np.float32(0), request.image)
        of_masked = draw()
        if models.inpaints:
            beside = np.concatenate([painted.astype(np.float32), models.encode(masked, of_masked)], -1)
    schedule, times = settings.noise_schedule(), settings.times()
    x = noise if clean is None or whole else schedule.noised(clean, noise, times[0])
    state = State(unet, models.backend, allocator=models.allocator())

    def compute(i: int, x: Host, now: float) -> Host:
        x = x if beside is None else np.concatenate([x, beside], -1)
        x = np.concatenate([x, x]) if settings.guided else x
        # Karras' times lie between the timesteps that the model knows
        inputs = unet.encode(x, timestep=np.rint(now), text=request.text)
        run, output = state.paint(inputs.canvases, inputs.conditions, keep_canvases=False)
        records.extend(run.records)
        return guided(output, settings.guidance) if settings.guided else output

    def fresh(i: int) -> Host:
        return draws(settings.seed, drawn - 1)(i, shape)

    for step in denoised(unet, models.diffusion, settings, compute, x, fresh):
        if keep is not None and not models.inpaints:
            assert clean is not None
            after = step.next_timestep
            held = clean if after is None else schedule.noised(clean, noise, after)
            np.copyto(step.x, held, where=keep)
        yield step


def usual_strength(*, image: bool, mask: bool) -> float:
    """The strength of a request that gives none, with an image or a mask or without."""
    return 0.8 if image and not mask else 1.0


def _request(
    models: LatentDiffusion,
    prompt: Any,
    *,
    negative: Any,
    image: Any,
    mask: Any,
    size: Any,
    count: Any,
    skip: int,
    strength: Any,
    guidance: Any,
    **given: Any,
) -> Request:
    """Raises InputError, ShapeError."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or not all(isinstance(each, str) for each in [*prompts, negative]):
        raise InputError("a prompt is missing or no text; expected a str, or a list of them")
    count = whole_number("count", count, 1, unit="of images")
    prompts = [each for each in prompts for _ in range(count)]
    if image is None and (mask is not None or strength not in (None, 1)):
        raise InputError("mask and strength need an image: give image=")
    if models.inpaints and mask is None:
        raise InputError(f"{models.name} is an inpainting model: give image= and mask=")
    if strength is None:
        strength = usual_strength(image=image is not None, mask=mask is not None)
    checked = None if image is None else models.checked(image)
    if checked is not None and len(checked) not in (1, len(prompts)):
        raise ShapeError(
            f"there are {len(checked)} images for {len(prompts)} prompts; expected 1, or one for each"
        )
    if checked is not None:
        if size is not None and tuple(size) != checked.shape[1:3]:
            raise InputError(f"size is {tuple(size)}, the image {checked.shape[1:3]}; omit size")
        checked = np.repeat(checked, len(prompts) // len(checked), 0)
        height, width = checked.shape[1:3]
    else:
        height, width = models.usual_size if size is None else size
        models.check_size(height, width)
    chosen = None if mask is None else check_mask(mask, (len(prompts), height, width))
    settings = latent_settings(
        models.own, models.diffusion.predicts, strength=strength, guidance=guidance, **given
    )
    seeds.sample_seeds(settings.seed, len(prompts))  # as many seeds as images
    texts = [negative] * len(prompts) + prompts if settings.guided else prompts
    unique = list(dict.fromkeys(texts))
    of_text = dict(zip(unique, models.features(unique, skip=skip), strict=True))
    features = np.stack([of_text[each] for each in texts])
    return Request(features, checked, chosen, (height, width), len(prompts), settings)
