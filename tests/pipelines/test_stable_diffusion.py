"""Stable Diffusion sessions: what an edit changes and what it leaves, undo, and equality with whole runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsegen.backends.interface import Host
from sparsegen.errors import InputError, SessionError, ShapeError
from sparsegen.pipelines.generation import generate
from sparsegen.pipelines.latent_edit import faded
from sparsegen.pipelines.latents import LatentDiffusion
from sparsegen.pipelines.stable_diffusion import StableDiffusion
from tests.oracles.sd_models import parts

PROMPT = "a house at a lake"
SETTINGS: dict[str, Any] = {"steps": 5, "strength": 0.8, "seed": 3}


@pytest.fixture(scope="module")
def models() -> LatentDiffusion:
    return LatentDiffusion(parts().bundle, backend="reference")


def picture(seed: int = 0) -> Host:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


def stroke(image: Host, row: int, column: int) -> Host:
    edited = image.copy()
    edited[row : row + 6, column : column + 9] = (200, 30, 30)
    return edited


def canvases(session: StableDiffusion) -> list[Host]:
    base = session._base
    assert base is not None
    return [
        np.array(state.memory.canvases[path])
        for state in base.states
        for path in sorted(state.memory.canvases)
    ]


@pytest.mark.parametrize("policy", ["fast", "fast(refresh=3, frontier=1)", "paper", "exact"])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_pixels_far_from_an_edit_keep_their_bits_and_undo_is_exact(
    models: LatentDiffusion, policy: str, guidance: float
) -> None:
    original = picture()
    with StableDiffusion(models, PROMPT, policy=policy, guidance=guidance, **SETTINGS) as session:
        np.testing.assert_array_equal(session.run(original).image, original)
        start = canvases(session)
        first = session.edit(stroke(original, 20, 20))
        near = np.zeros((64, 64), bool)
        near[20 - 5 : 26 + 5, 20 - 5 : 29 + 5] = True
        np.testing.assert_array_equal(first.image[~near], original[~near])
        assert (first.image[20:26, 20:29] != stroke(original, 20, 20)[20:26, 20:29]).any()
        after = canvases(session)
        second = session.edit(stroke(first.image, 40, 8))
        far = np.ones((64, 64), bool)
        far[40 - 5 : 46 + 5, 8 - 5 : 17 + 5] = False
        np.testing.assert_array_equal(second.image[far], first.image[far])
        np.testing.assert_array_equal(session.undo().image, first.image)
        for one, other in zip(canvases(session), after, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(session.redo().image, second.image)
        session.undo()
        np.testing.assert_array_equal(session.undo().image, original)
        for one, other in zip(canvases(session), start, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_mask_bounds_what_changes(models: LatentDiffusion) -> None:
    original, mask = picture(), np.zeros((64, 64), bool)
    mask[18:30, 18:40] = True
    with StableDiffusion(models, PROMPT, **SETTINGS) as session:
        session.run(original)
        result = session.edit(stroke(original, 20, 20), mask=mask)
        np.testing.assert_array_equal(result.image[~mask], original[~mask])
        assert (result.image[mask] != original[mask]).mean() > 0.5


@pytest.mark.parametrize("sampler", ["ddim", "euler-a"])
def test_an_edit_of_everything_is_image_to_image(models: LatentDiffusion, sampler: str) -> None:
    original, other = picture(), picture(5)
    with StableDiffusion(models, PROMPT, sampler=sampler, **SETTINGS) as session:
        session.run(original)
        edited = session.edit(other, mask=np.ones((64, 64), bool))
        whole = generate(models, PROMPT, image=other, sampler=sampler, **SETTINGS)
        np.testing.assert_array_equal(edited.image, whole.image)


def test_dense_is_the_reference_of_an_edit(models: LatentDiffusion) -> None:
    original = picture()
    with StableDiffusion(models, PROMPT, **SETTINGS) as session:
        session.run(original)
        before = canvases(session)
        dense = session.dense(stroke(original, 20, 20))
        for one, other in zip(canvases(session), before, strict=True):
            np.testing.assert_array_equal(one, other)
        edited = session.edit(stroke(original, 20, 20))
        off = np.abs(edited.output - dense.output)[:, 15:31, 15:34].mean()
        assert off < 0.2 * np.abs(dense.output - original / np.float32(127.5) + 1)[:, 15:31, 15:34].mean()
        assert edited.stats.macs < dense.stats.macs
        roles = {layer.path.split(".")[0] for layer in edited.stats.layers}
        assert roles == {"encoder", "unet", "decoder"}


def test_a_batch_has_the_images_of_its_samples(models: LatentDiffusion) -> None:
    originals = np.stack([picture(0), picture(1)])
    edited = np.stack([originals[0], stroke(originals[1], 30, 30)])
    with StableDiffusion(models, PROMPT, **{**SETTINGS, "seed": [4, 9]}) as session:
        session.run(originals)
        together = session.edit(edited)
    with StableDiffusion(models, PROMPT, **{**SETTINGS, "seed": 9}) as session:
        session.run(originals[1])
        alone = session.edit(edited[1])
    np.testing.assert_array_equal(together.images[0], originals[0])
    np.testing.assert_array_equal(together.images[1], alone.image)


def test_caches_in_half_the_memory_are_planned_and_near(models: LatentDiffusion) -> None:
    original, results = picture(), []
    for storage in ("float32", "float16"):
        with StableDiffusion(models, PROMPT, storage=storage, **SETTINGS) as session:
            plan = session.cache_plan(original)
            session.run(original)
            results.append(session.edit(stroke(original, 20, 20)).output)
            base = session._base
            assert base is not None
            planned = plan.ram_bytes + plan.disk_bytes
            assert 0.95 * base.nbytes < planned < 1.1 * base.nbytes
            allocators = {state.memory.allocator for state in base.states}
            assert plan.scratch_bytes == sum(each.scratch_bytes for each in allocators) > 0
            of_text = [
                array for each in allocators for _, found in each.conditioned.values() for array in found
            ]
            assert plan.condition_bytes == sum(array.nbytes for array in of_text) > 0
            assert f"{(plan.scratch_bytes + plan.condition_bytes) / 1e6:.1f} MB to compute in" in str(plan)
    assert 0 < np.abs(results[0] - results[1]).max() < 0.05


def test_a_policy_that_the_session_was_not_opened_under_is_warned_of(models: LatentDiffusion) -> None:
    original, of_steps = picture(), "keeps few canvases at 2 of its 6 steps"
    with StableDiffusion(models, PROMPT, policy="fast(refresh=3)", **{**SETTINGS, "steps": 8}) as session:
        session.run(original)
        with pytest.warns(UserWarning, match=of_steps):
            other = session.edit(stroke(original, 20, 20), policy="paper")
        assert other.stats.steps and all(step.refreshed for step in other.stats.steps)
        session.undo()
        own = session.edit(stroke(original, 20, 20))
        assert sum(step.refreshed for step in own.stats.steps) == 4
    with StableDiffusion(models, PROMPT, policy="fast(least_size=8)", **SETTINGS) as session:
        session.run(original)
        with pytest.warns(UserWarning, match="the session keeps no resolution below 8 pixels"):
            session.edit(stroke(original, 20, 20), policy="paper")


def test_a_failed_edit_leaves_the_session_as_it_was(models: LatentDiffusion) -> None:
    original = picture()
    with StableDiffusion(models, PROMPT, **SETTINGS) as session:
        session.run(original)
        before = canvases(session)

        def stop(step: Any) -> None:
            if step.index == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            session.edit(stroke(original, 20, 20), on_step=stop)
        for one, other in zip(canvases(session), before, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(session.image, original)


def test_what_cannot_be_used_is_named(models: LatentDiffusion) -> None:
    with pytest.raises(InputError, match="leaves none of 50 steps"):
        StableDiffusion(models, PROMPT, strength=0.01)
    session = StableDiffusion(models, PROMPT, **SETTINGS)
    with pytest.raises(SessionError, match="no image yet"):
        session.edit(picture())
    session.run(picture())
    with pytest.raises(ShapeError, match=r"expected the base's \(1, 64, 64\)"):
        session.edit(picture()[:32, :32])


def test_the_share_of_new_values_rises_from_the_border_of_a_mask() -> None:
    mask = np.zeros((1, 5, 9), bool)
    mask[0, :, 2:8] = True  # from the upper to the lower border of the image
    share = faded(mask, 3)
    np.testing.assert_allclose(share[0], np.tile([0, 0, 1, 2, 3, 3, 2, 1, 0], (5, 1)) / 3, rtol=1e-6)
    assert faded(np.ones((1, 4, 4), bool)).min() == 1


def test_an_edit_has_no_seam(models: LatentDiffusion) -> None:
    """What an edit changes fades in from the border of its mask, where the decoder alone would leave an edge."""
    original, mask = picture(), np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    with StableDiffusion(models, PROMPT, **SETTINGS) as session:
        session.run(original)
        result = session.edit(stroke(original, 20, 20), mask=mask)
        before = original[None] / np.float32(127.5) - 1
        changed, whole = np.abs(result.output - before), np.abs(session._painted.decoder.output() - before)
        for row, share in ((16, 1 / 6), (18, 3 / 6), (47, 1 / 6)):
            # cut to [-1, 1], an image changes less
            assert (changed[:, row, 24:40] <= share * whole[:, row, 24:40] + 1e-6).all()
        middle = (slice(None), slice(21, 43), slice(21, 43))
        np.testing.assert_array_equal(
            result.output[middle], np.clip(session._painted.decoder.output(), -1, 1)[middle]
        )


def test_another_size_runs_in_the_room_that_the_first_one_leaves(models: LatentDiffusion) -> None:
    original = picture()
    with StableDiffusion(models, PROMPT, **SETTINGS) as session:
        plan = session.cache_plan(original)
    with StableDiffusion(models, PROMPT, ram=plan.ram_bytes, **SETTINGS) as session:
        session.run(original)
        np.testing.assert_array_equal(session.run(original[:32]).image, original[:32])
        np.testing.assert_array_equal(session.run(original).image, original)


@pytest.mark.parametrize(
    ("steps", "refresh", "frontier"),
    [(100, 6, 0), (50, 3, 0), (34, 2, 0), (33, 3, 2), (25, 3, 2), (10, 3, 2), (9, 1, 0), (2, 1, 0)],
)
def test_fewer_steps_carry_less(models: LatentDiffusion, steps: int, refresh: int, frontier: int) -> None:
    policy = StableDiffusion(models, PROMPT, steps=steps).policy
    assert (policy.refresh, policy.frontier) == (refresh, frontier)


def test_few_steps_that_carry_compute_the_high_resolutions_alone(models: LatentDiffusion) -> None:
    settings = {**SETTINGS, "steps": 10, "policy": "fast(frontier=1)"}
    with StableDiffusion(models, PROMPT, **settings) as session:
        original = session.run(picture()).image
        steps = session.edit(stroke(original, 20, 20)).stats.steps
        computed = {step.macs for step in steps if step.refreshed}
        carried = {step.macs for step in steps if not step.refreshed}
        assert 0 < min(carried) == max(carried) < min(computed)
        np.testing.assert_array_equal(session.undo().image, original)


# -- inpainting models, which read the mask --------------------------------------------------------------


@pytest.fixture(scope="module")
def inpainting() -> LatentDiffusion:
    return LatentDiffusion(parts(channels=9).bundle, backend="numba")


@pytest.mark.parametrize("sampler", ["ddim", "euler-a"])
def test_an_inpainting_edit_of_everything_is_inpainting(inpainting: LatentDiffusion, sampler: str) -> None:
    other, everywhere = picture(5), np.ones((64, 64), bool)
    with StableDiffusion(inpainting, PROMPT, sampler=sampler, **SETTINGS) as session:
        session.run(picture())
        edited = session.edit(other, mask=everywhere)
    whole = generate(inpainting, PROMPT, image=other, mask=everywhere, sampler=sampler, **SETTINGS)
    np.testing.assert_array_equal(edited.image, whole.image)


@pytest.mark.parametrize("policy", ["fast", "paper", "exact"])
def test_an_inpainting_edit_reads_its_mask_and_can_be_undone(
    inpainting: LatentDiffusion, policy: str
) -> None:
    original, mask = picture(), np.zeros((64, 64), bool)
    mask[16:32, 20:44] = True
    with StableDiffusion(inpainting, PROMPT, policy=policy, **SETTINGS) as session:
        plan = session.cache_plan(original)
        session.run(original)
        base, start = session._base, canvases(session)
        assert base is not None and 0.95 * base.nbytes < plan.ram_bytes < 1.1 * base.nbytes
        assert plan.scratch_bytes == sum(s.scratch_bytes for s in {t.memory.allocator for t in base.states})
        dense = session.dense(original, mask=mask)
        first = session.edit(original, mask=mask)
        np.testing.assert_array_equal(first.image[~mask], original[~mask])
        if policy == "fast":  # under the others, norms keep the statistics of the original
            moved = np.abs(dense.output - original / np.float32(127.5) + 1)[:, mask].mean()
            assert np.abs(first.output - dense.output)[:, mask].mean() < 0.2 * moved
        # the mask that the UNet reads is that of the edit
        painted = session._states[0].input("x")[..., 4]
        assert painted[:, 4:8, 5:11].all() and painted.sum() == painted[:, 4:8, 5:11].size
        after = canvases(session)
        session.edit(stroke(first.image, 40, 8))
        for expected in (after, start):
            session.undo()
            for one, other in zip(canvases(session), expected, strict=True):
                np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(session.redo().image, first.image)
