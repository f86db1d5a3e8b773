"""Images of a text, held to diffusers' pipelines: every sampler, image to image, both kinds of inpainting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparsegen.backends.interface import Host
from sparsegen.errors import InputError, ShapeError
from sparsegen.pipelines.generation import generate
from sparsegen.pipelines.latents import LatentDiffusion, probe
from tests.oracles.sd_models import Parts, parts
from tests.tolerances import check

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# some of diffusers' schedulers make NumPy arrays of PyTorch's in a way that NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT, NEGATIVE = "a lake before snowy mountains", "people, fog"

_LEADING = {"timestep_spacing": "leading", "steps_offset": 1}  # as in Stable Diffusion's own configurations
# our sampler -> diffusers' scheduler and its settings
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}),
    "pndm": ("PNDMScheduler", {"steps_offset": 1, "set_alpha_to_one": False, "skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", _LEADING),
    "euler-a": ("EulerAncestralDiscreteScheduler", _LEADING),
    "dpm++2m": ("DPMSolverMultistepScheduler", _LEADING),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {**_LEADING, "use_karras_sigmas": True}),
}


def theirs(
    found: Parts, pipeline: str, scheduler: Any, *, seeds: tuple[int, ...] = (7,), **given: Any
) -> Host:
    """The images of a pipeline of diffusers, `[N, H, W, 3]` in [-1, 1], after 4 steps."""
    kind = getattr(diffusers, pipeline)
    pipe = kind(
        vae=found.vae,
        text_encoder=found.text,
        tokenizer=None,
        unet=found.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    n = len(seeds)
    out = pipe(
        prompt_embeds=found.features(PROMPT).repeat(n, 1, 1),
        negative_prompt_embeds=found.features(NEGATIVE).repeat(n, 1, 1),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="pt",
        **{"num_inference_steps": 4, **given},
    ).images
    return np.asarray(out.permute(0, 2, 3, 1).numpy()) * 2 - 1


def image(seed: int = 0) -> Host:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)


def as_torch(picture: Host) -> Any:
    return torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]


def square() -> Host:
    mask = np.zeros((32, 32), bool)
    mask[8:24, 4:20] = True
    return mask


@pytest.fixture(scope="module")
def models() -> LatentDiffusion:
    return LatentDiffusion(parts().bundle, backend="reference")


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_text_to_image_is_diffusers(models: LatentDiffusion, sampler: str) -> None:
    kind, settings = SCHEDULERS[sampler]
    found = parts()
    expected = theirs(
        found, "StableDiffusionPipeline", found.scheduler(kind, **settings), height=32, width=32
    )
    result = generate(models, PROMPT, negative=NEGATIVE, steps=4, seed=7, sampler=sampler)
    check("pipeline", result.output, expected)


def test_a_batch_has_the_images_of_its_seeds(models: LatentDiffusion) -> None:
    found = parts()
    scheduler = found.scheduler(*SCHEDULERS["ddim"][:1], **SCHEDULERS["ddim"][1])
    expected = theirs(found, "StableDiffusionPipeline", scheduler, seeds=(7, 3), height=32, width=32)
    result = generate(models, PROMPT, negative=NEGATIVE, steps=4, seed=[7, 3], count=2)
    check("pipeline", result.output, expected)
    alone = generate(models, PROMPT, negative=NEGATIVE, steps=4, seed=3)
    np.testing.assert_array_equal(alone.output[0], result.output[1])


def test_the_velocity_is_taken_as_diffusers_takes_it() -> None:
    found = parts(prediction="v_prediction")
    expected = theirs(
        found,
        "StableDiffusionPipeline",
        found.scheduler(**SCHEDULERS["ddim"][1]),
        height=32,
        width=32,
    )
    models = LatentDiffusion(found.bundle, backend="reference")
    check("pipeline", generate(models, PROMPT, negative=NEGATIVE, steps=4, seed=7).output, expected)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler-a", "dpm++2m"])
@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_image_to_image_is_diffusers(models: LatentDiffusion, sampler: str, strength: float) -> None:
    kind, settings = SCHEDULERS[sampler]
    found, given = parts(), image()
    expected = theirs(
        found,
        "StableDiffusionImg2ImgPipeline",
        found.scheduler(kind, **settings),
        image=as_torch(given),
        strength=strength,
        num_inference_steps=8,
    )
    result = generate(
        models, PROMPT, negative=NEGATIVE, image=given, strength=strength, steps=8, seed=7, sampler=sampler
    )
    check("pipeline", result.output, expected)


@pytest.mark.parametrize("channels", [4, 9], ids=["plain", "inpainting model"])
@pytest.mark.parametrize("strength", [1.0, 0.75])
def test_inpainting_is_diffusers(channels: int, strength: float) -> None:
    found, given = parts(channels=channels), image()
    expected = theirs(
        found,
        "StableDiffusionInpaintPipeline",
        found.scheduler(**SCHEDULERS["ddim"][1]),
        image=as_torch(given),
        mask_image=torch.from_numpy(square().astype(np.float32))[None, None],
        strength=strength,
        height=32,
        width=32,
    )
    models = LatentDiffusion(found.bundle, backend="reference")
    result = generate(
        models,
        PROMPT,
        negative=NEGATIVE,
        image=given,
        mask=square(),
        strength=strength,
        steps=4,
        seed=7,
    )
    check("pipeline", result.output, expected)


def test_the_checkpoint_proposes_its_sampler(models: LatentDiffusion) -> None:
    bundle = replace(parts().bundle, scheduler={"sampler": "euler"})
    proposed = generate(LatentDiffusion(bundle, backend="reference"), PROMPT, steps=2)
    given = generate(models, PROMPT, steps=2, sampler="euler")
    np.testing.assert_array_equal(proposed.output, given.output)


def test_without_guidance_the_negative_text_has_no_effect(models: LatentDiffusion) -> None:
    results = [
        generate(models, PROMPT, negative=negative, guidance=1, steps=2) for negative in ("", NEGATIVE)
    ]
    np.testing.assert_array_equal(results[0].output, results[1].output)


def test_long_texts_and_steps_are_told(models: LatentDiffusion) -> None:
    seen: list[int] = []
    with pytest.warns(UserWarning, match="more than 75 tokens; cut off: 'and the end'"):
        generate(
            models,
            "tree " * 75 + "and the end",
            steps=3,
            on_step=lambda step: seen.append(step.index),
        )
    assert seen == [0, 1, 2]


def test_a_prediction_that_the_checkpoint_does_not_give_is_probed() -> None:
    bundle = replace(parts().bundle, prediction=None)
    with pytest.warns(UserWarning, match="does not say what it predicts; probed: noise"):
        models = LatentDiffusion(bundle, backend="reference")
    bias = models.unet.conv_out.bias
    assert bias is not None
    value = bias.read
    try:
        bias.read = lambda: value() - 5
        unet = type(models.unet)(models.unet.config)
        unet.load_parameters({path: each.value for path, each in models.unet.parameters().items()})
        assert probe(unet, models.backend) == "v"
    finally:
        bias.read = value


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"size": (33, 32)}, ShapeError, "multiples of 8"),
        ({"strength": 0.5}, InputError, "need an image"),
        ({"mask": np.zeros((32, 32), bool)}, InputError, "need an image"),
        ({"image": np.zeros((32, 32), np.uint8)}, ShapeError, r"expected \[H, W, 3\]"),
        ({"image": np.full((32, 32, 3), 9.0)}, InputError, r"outside \[-1, 1\]"),
        (
            {"image": np.zeros((32, 32, 3), np.uint8), "size": (64, 64)},
            InputError,
            "omit size",
        ),
        (
            {"image": np.zeros((32, 32, 3), np.uint8), "strength": 0.01},
            InputError,
            "leaves none of 50 steps",
        ),
        ({"image": np.zeros((32, 32, 3), np.uint8), "strength": 2}, InputError, "strength is 2"),
        ({"guidance": -1}, InputError, "guidance is -1"),
        ({"sampler": "pd"}, InputError, "does not go with this model"),
        ({"sampler": "best"}, InputError, "unknown sampler"),
        ({"count": 0}, InputError, "count is 0"),
        ({"seed": [1, 2]}, InputError, "2 seeds for 1 images"),
        ({"skip": 2}, InputError, "skip is 2"),
        ({"warp": 2}, InputError, "unknown option warp"),
        ({"negative": None}, InputError, "expected a str"),
    ],
)
def test_what_cannot_be_used_is_named(
    models: LatentDiffusion, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generate(models, PROMPT, **given)
