"""The cost of an edit as the sessions do it: the models of a checkpoint and a mask come in, a profile of each goes out.

A GauGAN is edited as by `Session`, a diffusion model as by `SDEdit`, the models of latent diffusion as by
`StableDiffusion`: a margin around the edit, masks at the resolution of the image, all steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sparsegen.backends.interface import Backend, Host

from ..diffusion.settings import latent_settings, settings_for
from ..errors import InputError
from ..models import SDUNet, VAEDecoder, VAEEncoder
from ..models.base import Inputs, Model
from ..models.spade import SPADEGenerator
from ..pipelines.latent_edit import MARGIN, in_pixels, policy_beside
from ..pipelines.latents import reduced
from ..tiling.masks import check_mask, difference_mask, dilate
from ..tiling.policies import Paper, Policy
from .profile import Edit, counted
from .report import Profile
from .trials import OnTrial

STRENGTH = 0.8
"""The share of the steps that an edit takes, as in `StableDiffusion`."""
TOKENS = 77
"""Of a text."""
REDUCTION = 8
"""Pixels along a side that a latent stands for, where a checkpoint has no autoencoder that says it."""


@dataclass(frozen=True, eq=False)
class Given:
    """What is known of an edit.

    Attributes
    ----------
    size
        (height, width) of the image.
    mask
        bool `[H, W]`: the edited pixels; None: those that the label maps differ in; without these, a dense run.
    labels, edited
        Of a model of label maps: the original and the edited map, integers `[H, W]`; None: not known.
    policy
        None: "paper" of a GauGAN, else "fast".
    steps
        Denoising steps; None: those of the family's edits.
    papers
        Role -> the settings by which the paper counts, where they are not the model's `paper`.
    """

    size: tuple[int, int]
    mask: Host | None = None
    labels: Host | None = None
    edited: Host | None = None
    policy: str | Policy | None = None
    steps: int | None = None
    papers: Mapping[str, Paper] = field(default_factory=dict)

    def paper(self, model: Model) -> Paper:
        """The settings by which the paper counts."""
        return self.papers.get(model.role, model.paper)


def profile_edit(
    models: Mapping[str, Model],
    given: Given,
    backend: Backend,
    *,
    run: bool = False,
    progress: OnTrial | None = None,
) -> dict[str, Profile]:
    """Role -> the profile of that model; a text encoder, which runs once for a prompt, has none.

    Parameters
    ----------
    models
        Role -> model, as in a `Bundle`.
    run, progress
        As for `profile`.

    Raises
    ------
    InputError, ShapeError
        No model can be edited; the size, the mask, the policy or the steps do not fit.
    """
    found: dict[str, Profile] = {}
    for role, case in cases(models, given).items():
        model = models[role]
        found[role] = counted(
            model,
            case.inputs,
            case.edit,
            case.policy,
            backend,
            steps=case.steps,
            run=run,
            progress=progress,
        )
        if given.labels is None and isinstance(model, SPADEGenerator):
            found[role] = dataclasses.replace(found[role], at_most=found[role].codebook_bytes > 0)
    return found


class Case(NamedTuple):
    """What a session does with one model."""

    inputs: Inputs
    edit: Edit | None
    """None: a dense run."""
    policy: Policy
    steps: int = 1


def cases(models: Mapping[str, Model], given: Given) -> dict[str, Case]:
    """Role -> the case of that model; parameters and errors as for `profile_edit`."""
    reductions = (m.config.reduction for m in models.values() if isinstance(m, VAEDecoder | VAEEncoder))
    reduction = next(reductions, REDUCTION)
    found: dict[str, Case] = {}
    for role, model in models.items():
        if isinstance(model, SDUNet):
            found[role] = _latents(model, given, reduction)
        elif isinstance(model, VAEEncoder):
            found[role] = _encoded(model, given)
        elif isinstance(model, VAEDecoder):
            found[role] = _decoded(model, given, reduction)
        elif model.diffusion is not None:
            found[role] = _denoised(model, given)
        elif isinstance(model, SPADEGenerator):
            found[role] = _painted(model, given)
    if not found:
        raise InputError(f"nothing to profile: {', '.join(models)}; expected a GauGAN or a diffusion model")
    return found


def _painted(model: SPADEGenerator, given: Given) -> Case:
    """As `Session` edits a label map."""
    labels = given.labels
    if labels is None:
        labels = np.random.default_rng(0).integers(0, model.labels, given.size)
    inputs = model.encode(labels)
    after = None if given.edited is None else model.encode(given.edited, base=inputs)
    policy = model.policy(given.policy or "paper")
    mask = _mask(given, inputs.shape)
    if mask is None and after is not None:
        mask = difference_mask(inputs.canvases, after.canvases)
    if mask is None:
        return Case(inputs, None, policy)
    canvases = None if after is None else after.canvases
    return Case(inputs, Edit(mask, mask, mask, given.paper(model), float(mask.mean()), canvases), policy)


def _denoised(model: Model, given: Given) -> Case:
    """As `SDEdit` edits an image."""
    assert model.diffusion is not None  # the caller has looked
    settings = settings_for(model.diffusion, model.sampling, steps=given.steps)
    times, usual = settings.times(), model.diffusion.edit
    noise = np.random.default_rng(0).standard_normal((*given.size, model.config.in_channels), np.float32)
    condition: dict[str, Any] = {model.diffusion.time: times[0]}
    inputs = model.encode(noise, **condition)
    fast = model.fast.for_steps(
        len(times), len(usual.times()), level=settings.noise_level, usual_level=usual.noise_level
    )
    policy = model.policy(given.policy or "fast", fast=fast)
    mask = _mask(given, inputs.shape)
    if mask is None:
        return Case(inputs, None, policy, len(times))
    region = dilate(mask, model.paper.dilation)
    edit = Edit(region, region, mask, given.paper(model), float(mask.mean()))
    return Case(inputs, edit, _plain(policy), len(times))


def _latents(model: SDUNet, given: Given, reduction: int) -> Case:
    """As `StableDiffusion` edits latents, of the negative text and of the text side by side."""
    settings = latent_settings(model.sampling, "noise", steps=given.steps, strength=STRENGTH)
    c, steps, samples = model.config, len(settings.times()), 2 if settings.guided else 1
    h, w = (side // reduction for side in given.size)
    noise = np.random.default_rng(0).standard_normal((samples, h, w, c.in_channels), np.float32)
    text = np.random.default_rng(1).standard_normal((samples, TOKENS, c.context), np.float32)
    inputs = model.encode(noise, timestep=settings.times()[0], text=text)
    policy = model.policy(given.policy or "fast", fast=model.fast_for(steps))
    mask = _mask(given, (1, *given.size))
    if mask is None:
        return Case(inputs, None, policy, steps)
    region = dilate(mask, MARGIN)
    cells, pixels, own = (
        np.tile(each, (samples, 1, 1)) for each in (reduced(region, reduction), region, mask)
    )
    edit = Edit(cells, pixels, own, given.paper(model), float(mask.mean()))
    return Case(inputs, edit, _plain(policy), steps)


def _encoded(model: VAEEncoder, given: Given) -> Case:
    """As `StableDiffusion` encodes an edit."""
    inputs = model.encode(np.zeros((*given.size, model.config.channels), np.float32))
    policy = policy_beside(model, model.policy(given.policy or "fast"))
    mask = _mask(given, inputs.shape)
    edit = None if mask is None else Edit(mask, mask, mask, given.paper(model), float(mask.mean()))
    return Case(inputs, edit, policy)


def _decoded(model: VAEDecoder, given: Given, reduction: int) -> Case:
    """As `StableDiffusion` decodes an edit."""
    h, w = (side // reduction for side in given.size)
    inputs = model.encode(np.zeros((h, w, model.config.latents), np.float32))
    policy = policy_beside(model, model.policy(given.policy or "fast"))
    mask = _mask(given, (1, *given.size))
    if mask is None:
        return Case(inputs, None, policy)
    region, paper = dilate(mask, MARGIN), given.paper(model)
    # one cross of both radii, not one after the other
    paper = dataclasses.replace(paper, dilation=MARGIN + paper.dilation * reduction)
    edit = Edit(reduced(region, reduction), region, mask, paper, float(mask.mean()))
    return Case(inputs, edit, in_pixels(policy, reduction))


def _plain(policy: Policy) -> Policy:
    """A policy for a region that has its dilation already."""
    return dataclasses.replace(policy, dilation=0) if isinstance(policy, Paper) else policy


def _mask(given: Given, shape: tuple[int, int, int]) -> Host | None:
    return None if given.mask is None else check_mask(given.mask, shape)
