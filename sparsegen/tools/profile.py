"""The cost of a run, layer by layer: a model, an input's size and a mask come in, multiply-adds and bytes come out.

MACs are counted three times, so that they can be compared.

- *Dense* and *paper*: by each layer's plain formula, zeros of padding and one-hot labels included, as SIGE counts them.
  An edit counts the whole 4×4 tiles that are active under the policy `paper` with the family's settings: at resolutions
  below its threshold all of them; keys and values of a transformer's self-attention for all tokens, which SIGE projects
  anew (arXiv 2211.02048, section 3 and its code).
- *Here*: the same formula, over the tiles that the given policy makes active, on average over an edit's steps.
- *Multiplied*: the multiply-adds that a backend performs for that: Winograd's 36 for a tile and a pair of channels,
  a codebook's rows instead of pixels, tiles that overhang the border whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsegen.backends.counting import CountingBackend, Work, stored_bytes
from sparsegen.backends.interface import Backend, Host
from sparsegen.backends.registry import get_backend

from ..checks import whole_number
from ..editing.dry_run import dry_run
from ..engine.stats import LayerRecord
from ..errors import ShapeError
from ..layers import Attention, AvgPool, Conv2d, LabelConv, LatentStart, Layer
from ..models.base import Inputs, Model
from ..models.transformer import SelfAttention
from ..tiling.masks import check_mask, difference_mask
from ..tiling.policies import Paper, Policy
from ..tiling.tiles import TileSet
from .costs import LayerCost
from .report import Profile
from .trials import Change, OnTrial, Trial, trials

REPEATS = 3
"""Timed runs of each kind, after a warm-up."""


def profile(
    model: Model,
    image: Any,
    *,
    mask: Any = None,
    edited: Any = None,
    policy: str | Policy = "paper",
    backend: str | Backend = "reference",
    steps: int = 1,
    run: bool = False,
    progress: OnTrial | None = None,
    **conditions: Any,
) -> Profile:
    """The cost of a dense run (no `mask`, no `edited`) or of an edit, without computing it.

    The model needs no weights, and those that it has are not read. Times are None, unless it is to `run`.

    Parameters
    ----------
    image
        The original; of a diffusion model only its size counts. Of label maps, the rows of codebooks are counted for
        these labels.
    mask
        bool `[H, W]` or `[N, H, W]`: the pixels that differ.
    edited
        The edited input, as `image`; without a mask, the pixels that differ are the edit. None: of an edit of labels,
        the rows of codebooks are the most that a mask can make.
    policy
        As for `Session`. Which tiles stop spreading under `adaptive` depends on values: its cost here is the upper
        bound, the cost of `exact`.
    backend
        The backend whose work is counted. "reference" computes by the plain formula.
    steps
        Denoising steps of the edit: under `fast`, some compute every layer and the others carry deltas on.
    run
        Whether to run the dense run and each kind of the edit's steps, four times, for the median of their times after
        the first. The model then needs weights. (`with_random_weights` gives it some.)
    progress
        Called as `progress(done, total, name)` before each of these runs.
    conditions
        As for `Model.encode`.

    Raises
    ------
    InputError, ShapeError
        An image, a condition, the mask, the policy or the steps do not fit.
    BackendError
        The backend is unknown or cannot run here.
    """
    steps = whole_number("steps", steps, 1)
    inputs = model.encode(image, **conditions)
    after = inputs if edited is None else model.encode(edited, base=inputs, **conditions)
    if after.shape != inputs.shape:
        raise ShapeError(f"the edited input is {after.shape}, expected {inputs.shape}, as the original")
    chosen = model.policy(policy)
    difference: Host | None = None
    if mask is not None:
        difference = check_mask(mask, inputs.shape)
    elif edited is not None:
        difference = difference_mask(inputs.canvases, after.canvases, eps=model.eps)
    engine = get_backend(backend)
    if difference is None:
        return counted(model, inputs, None, chosen, engine, steps=steps, run=run, progress=progress)
    edit = Edit(
        difference,
        difference,
        difference,
        model.paper,
        float(difference.mean()),
        None if edited is None else after.canvases,
    )
    return counted(model, inputs, edit, chosen, engine, steps=steps, run=run, progress=progress)


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit of one model's inputs."""

    changed: Host
    """bool `[N, H, W]`: the pixels of the inputs that change."""
    planned: Host
    """bool `[N, H, W]`: the mask that its plan is made of; of latents, in pixels of the image."""
    mask: Host
    """bool `[N, H, W]`: the mask that the paper's plan is made of."""
    paper: Paper
    """The settings by which the paper counts."""
    area: float
    """Share of the user's image that is edited."""
    canvases: Mapping[str, Host] | None = None
    """The edited inputs, whole; None: only their mask is known."""


def counted(
    model: Model,
    inputs: Inputs,
    edit: Edit | None,
    policy: Policy,
    backend: Backend,
    *,
    steps: int = 1,
    run: bool = False,
    progress: OnTrial | None = None,
) -> Profile:
    """The cost of a dense run (`edit` None) or an edit of these inputs, on a backend; `run` as for `profile`."""
    hollow, change = without_weights(model), change_of(model, inputs, edit, policy)
    found = trials(hollow, inputs, CountingBackend(backend), change, policy, steps=steps)
    paper = {} if edit is None else paper_macs(hollow, inputs, edit)
    of_steps = [_by_path(trial) for trial in found]
    named = {layer.path: layer for layer in hollow.layers()}
    weights = _weights(hollow, stored_bytes(backend))
    layers = []
    for path, (record, _) in of_steps[0].items():
        each = [(trial, *here[path]) for trial, here in zip(found, of_steps, strict=True)]
        dense = record.macs_dense * steps
        layers.append(
            LayerCost(
                path,
                kind_of(named.get(path)),
                record.height,
                record.width,
                record.active,
                record.total,
                dense,
                dense if edit is None else paper.get(path, 0) * steps,
                sum(trial.steps * one.macs for trial, one, _ in each),
                _summed(work * trial.steps for trial, _, work in each),
                sum(trial.steps * trial.canvases.get(path, 0) for trial in found),
                sum(trial.steps * trial.journal.get(path, 0) for trial in found),
                weights.pop(path, 0),
            )
        )
    of_inputs = [f"input.{name}" for name in inputs.canvases]
    profile = Profile(
        backend.name,
        inputs.shape,
        1.0 if edit is None else edit.area,
        tuple(layers),
        steps,
        found[0].steps,
        _summed(trial.rest * trial.steps for trial in found),
        sum(weights.values()),
        sum(trial.steps * trial.canvases[path] for trial in found for path in of_inputs),
        sum(trial.steps * trial.journal.get(path, 0) for trial in found for path in of_inputs),
        sum(trial.steps * trial.codebook_bytes for trial in found),
        max(trial.shared_bytes for trial in found),
        max(trial.scratch_bytes for trial in found),
        at_most=any(trial.codebook_bytes for trial in found) and edit is not None and edit.canvases is None,
    )
    if not run:
        return profile
    timed = trials(model, inputs, backend, change, policy, steps=steps, repeats=REPEATS, progress=progress)
    return _with_times(profile, timed)


def _with_times(profile: Profile, timed: Sequence[Trial]) -> Profile:
    """A profile with the times of its steps."""
    by_layer: dict[str, float] = {}
    for trial in timed:
        for record in trial.records:
            taken = trial.steps * (record.milliseconds or 0.0)
            by_layer[record.path] = by_layer.get(record.path, 0.0) + taken
    whole = sum(trial.steps * (trial.milliseconds or 0.0) for trial in timed)
    return replace(
        profile,
        layers=tuple(replace(layer, milliseconds=by_layer.get(layer.path)) for layer in profile.layers),
        milliseconds=whole,
        dense_milliseconds=profile.steps * (timed[0].dense_milliseconds or 0.0),
    )


def without_weights(model: Model) -> Model:
    """A model of the same layers and settings whose parameters have shapes alone: nothing reads a file."""
    hollow: Model = type(model)(model.config)
    hollow.paper, hollow.defaults, hollow.sampling = model.paper, model.defaults, model.sampling
    return hollow


def change_of(
    model: Model, inputs: Inputs, edit: Edit | None, policy: Policy, *, seed: int = 0
) -> Change | None:
    """An edit as the engine takes it, under a policy. Where only its mask is known, labels in it become random ones."""
    if edit is None:
        return None
    canvases = edit.canvases
    if canvases is None:
        rng = np.random.default_rng(seed)
        canvases = {
            name: _repainted(model, each, edit.changed, rng) for name, each in inputs.canvases.items()
        }
    return Change(canvases, TileSet.of_mask(edit.changed), policy.plan(edit.planned))


def _repainted(model: Model, canvas: Host, changed: Host, rng: np.random.Generator) -> Host:
    painted = canvas.copy()
    count = int(np.count_nonzero(changed))
    if np.issubdtype(canvas.dtype, np.integer):
        labels = min(layer.weight.shape[1] for layer in model.layers() if isinstance(layer, LabelConv))
        painted[changed, 0] = rng.integers(0, labels, count)
    else:
        painted[changed] += rng.standard_normal((count, canvas.shape[3]), np.float32)
    return painted


def paper_macs(model: Model, inputs: Inputs, edit: Edit) -> dict[str, int]:
    """Path -> MACs of one step, as the paper counts them (see the top of this file)."""
    projected = set[str]()
    for layer in model.layers():
        if isinstance(layer, SelfAttention):
            projected |= {layer.to_k.path, layer.to_v.path}
    plan, changed = edit.paper.plan(edit.mask), TileSet.of_mask(edit.changed)
    run = dry_run(model, inputs, plan, changed, least_size=edit.paper.least_size)
    found: dict[str, int] = {}
    for record in run.records:
        whole = record.path in projected and changed.count > 0
        found[record.path] = record.macs_dense if whole else record.macs
    return found


def _by_path(trial: Trial) -> dict[str, tuple[LayerRecord, Work]]:
    """Path -> record and work. (Of a step that carries, layers are in another order.)"""
    return {record.path: (record, trial.work.get(record.path, Work())) for record in trial.records}


def _summed(works: Iterable[Work]) -> Work:
    return sum(works, Work())


def _weights(model: Model, stored: int) -> dict[str, int]:
    """Path of a layer -> bytes of its parameters, of which matrices take `stored` bytes a value."""
    found: dict[str, int] = {}
    for path, parameter in model.parameters().items():
        layer = path.rpartition(".")[0]
        width = stored if len(parameter.shape) > 1 else 4
        found[layer] = found.get(layer, 0) + width * math.prod(parameter.shape)
    return found


def kind_of(layer: Layer | None) -> str:
    """The kind of a layer in a word: "3×3", "3×3/2" (of stride 2), "attention", "labels", "codes" (no layer's)."""
    if layer is None:
        return "codes"
    if isinstance(layer, Conv2d):
        g = layer.geometry
        size = "×".join(map(str, g.kernel))
        return size + (f"/{g.stride}" if g.stride > 1 else "") + (" grouped" if g.groups > 1 else "")
    kinds = {Attention: "attention", AvgPool: "pooling", LabelConv: "labels", LatentStart: "latent"}
    return next((word for kind, word in kinds.items() if isinstance(layer, kind)), type(layer).__name__)
