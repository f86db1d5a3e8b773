"""The demo of Stable Diffusion: a built-in model comes in, a sheet of what it makes of texts and edits goes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsegen.backends.interface import Host
from sparsegen.weights import builtin

from .. import images
from ..diffusion.settings import OnStep, latent_settings
from ..pipelines.generation import generate
from ..pipelines.latents import LatentDiffusion
from ..pipelines.stable_diffusion import StableDiffusion
from .console import Bar, progress_bars
from .job import Engine
from .strokes import Panels, enlarged, masked, shown_edit

STRENGTHS = (0.5, 0.7, 0.8, 0.9)
"""Of the images that the original is changed into."""
STROKES = 0.6
"""The strength of the edit of strokes: enough to shade them, not to lose them."""
SEEDS = 3
"""Images painted in one mask."""
COLUMNS = 5


def demo(engine: Engine, known: builtin.BuiltIn) -> tuple[Host, str, list[Any]]:
    """Text to image, image to image, inpainting and two sparse edits: a sheet, its caption, the rows of a table.

    Whole and edited is the first example; the first mask is painted in several times, in the last one an edit is
    sparse.
    """
    models = engine.model
    assert isinstance(models, LatentDiffusion)
    example = known.examples[0]
    strokes = next(edit for edit in example.edits if edit.mask is None)
    of_masks = [(each, edit) for each in known.examples for edit in each.edits if edit.mask is not None]
    settings = latent_settings(models.own, models.diffusion.predicts)
    size = "×".join(map(str, models.usual_size))
    with progress_bars() as start:
        drawn, each = _texts(models, known.prompts, _counter(start, "text to image", len(known.prompts)))
        rows = [("text to image", f"{len(drawn)} images of {size}, {each:.1f} s each")]
        how = f"{settings.steps} steps, guidance {settings.guidance:g}"
        sheets = [_sheet(f"Text to image: {how}", drawn)]
        changed, seconds = _changed(models, example, _counter(start, "image to image", len(STRENGTHS)))
        rows.append(("image to image", f"{seconds:.1f} s for {len(STRENGTHS)} images"))
        sheets.append(_sheet(f"Image to image: {example.prompt}", changed))
        painted, each = _painted(models, *of_masks[0], _counter(start, "inpainting", SEEDS))
        rows.append(("inpainting", f"{each:.1f} s each"))
        sheets.append(_sheet(f"Inpainting: {of_masks[0][1].prompt}", painted))
    edits = (("of strokes", example, strokes, STROKES), ("in a mask", *of_masks[-1], 1.0))
    for what, original, edit, strength in edits:
        policy = engine.policy or "fast"
        with StableDiffusion(models, edit.prompt or "", strength=strength, policy=policy) as session:
            panels, costs = shown_edit(session, original, edit)
        sheets.append(images.sheet(panels, columns=COLUMNS, heading=f"A sparse edit {what}: {edit.prompt}"))
        rows += [
            (f"{what.split()[-1]}: {name}", value)
            for name, value in costs
            if not name.startswith("active tiles")
        ]
    return np.concatenate(sheets), "texts, images, masks and strokes", rows


def _texts(
    models: LatentDiffusion, prompts: tuple[str, ...], count: Callable[[int], OnStep]
) -> tuple[Panels, float]:
    """An image of each text; seconds of one."""
    made = [generate(models, text, seed=i, on_step=count(i)) for i, text in enumerate(prompts)]
    panels = [(text, result.image) for text, result in zip(prompts, made, strict=True)]
    return panels, sum(result.stats.milliseconds for result in made) / 1e3 / len(made)


def _changed(
    models: LatentDiffusion, example: builtin.Example, count: Callable[[int], OnStep]
) -> tuple[Panels, float]:
    """The original, and changed towards its text by more and more; seconds of all."""
    original = images.read_image(example.original)
    made = [
        generate(models, example.prompt or "", image=original, strength=strength, on_step=count(i))
        for i, strength in enumerate(STRENGTHS)
    ]
    changed = [(f"strength {s:g}", result.image) for s, result in zip(STRENGTHS, made, strict=True)]
    return [("original", original), *changed], sum(result.stats.milliseconds for result in made) / 1e3


def _painted(
    models: LatentDiffusion, example: builtin.Example, change: builtin.Edit, count: Callable[[int], OnStep]
) -> tuple[Panels, float]:
    """The original, the mask, and what each seed paints in it; seconds of one."""
    assert change.mask is not None
    original, mask = images.read_image(example.original), images.read_mask(change.mask)
    made = [
        generate(models, change.prompt or "", image=original, mask=mask, seed=i, on_step=count(i))
        for i in range(SEEDS)
    ]
    panels = [("original", original), (f"mask: {change.caption}", masked(original, mask))]
    panels += [(f"seed {i}", result.image) for i, result in enumerate(made)]
    return panels, sum(result.stats.milliseconds for result in made) / 1e3 / len(made)


def _sheet(heading: str, panels: Panels) -> Host:
    return images.sheet(enlarged(panels), columns=COLUMNS, heading=heading)


def _counter(start: Callable[[str, int | None], Bar], what: str, count: int) -> Callable[[int], OnStep]:
    """A bar over all steps of so many images: number of an image -> what to call after its steps."""
    go = start(what, None)
    return lambda i: (
        lambda step: go(i * step.of + step.index + 1, f"image {i + 1} of {count}", count * step.of)
    )
