"""Images out of noise alone: what a sampler makes of the model's answers, each image by its own seed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import sparsegen
from sparsegen import InputError, Session, ShapeError
from sparsegen.diffusion import registry, seeds
from sparsegen.diffusion.schedules import CosineLogSNR, schedule
from sparsegen.diffusion.seeds import START
from sparsegen.models import GauGAN, GauGANConfig
from tests.unets import random_ddpm, random_pd

DDPM, PD = random_ddpm(1), random_pd(1)
SIZE = (16, 24)
WAYS = {
    "ddpm": (DDPM, {"sampler": "ddpm", "steps": 3}),
    "ddim": (DDPM, {"steps": 4}),
    "ddim, eta 0.5": (DDPM, {"eta": 0.5, "clip": None, "steps": 2}),
    "dpm++2m": (DDPM, {"sampler": "dpm++2m", "steps": 3, "schedule": "cosine"}),
    "dpm++2m-karras": (DDPM, {"sampler": "dpm++2m-karras", "steps": 2}),
    "euler": (DDPM, {"sampler": "euler", "steps": 3}),
    "euler-a": (DDPM, {"sampler": "euler-a", "steps": 2}),
    "pndm": (DDPM, {"sampler": "pndm", "steps": 2}),
    "lcm": (DDPM, {"sampler": "lcm", "steps": 2}),
    "pd": (PD, {}),
}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def test_it_is_the_sampler_from_noise_to_the_picture(backend, way):
    model, options = way
    name = options.get("sampler", "pd" if model is PD else "ddim")
    steps = options.get("steps", 8)
    if model is PD:
        scheme, times = CosineLogSNR(), CosineLogSNR().times(steps)
        extra = {"predicts": "image"}
    else:
        scheme = schedule(options.get("schedule", "linear"))
        times = scheme.times(steps, layout=registry.get_sampler(name).layout)
        extra = {"eta": options["eta"]} if "eta" in options else {}
    session = Session(model, backend)

    def predict(x, i, now):
        return model.prediction(session.run(x, **{model.time: now}).output, x, now)

    x = seeds.noise(5, START, (1, *SIZE, 3))
    clip = options.get("clip", 1.0)
    *_, last = registry.get_sampler(name)(
        predict, x, scheme, times, clip=clip, noise=seeds.seeded(5, x.shape), **extra
    )
    seen = []
    result = sparsegen.sample(model, size=SIZE, seed=5, backend=backend, on_step=seen.append, **options)
    assert np.array_equal(result.output, np.clip(last.x, -1, 1))
    assert np.array_equal(result.image, model.images(result.output)[0])
    assert [step.index for step in seen] == list(range(len(times))) and seen[-1].next_timestep is None
    assert result.stats.macs == result.stats.macs_dense > 0


def test_each_picture_of_a_batch_is_that_of_its_seed(backend, way):
    model, options = way
    batch = sparsegen.sample(model, size=SIZE, count=3, seed=7, backend=backend, **options)
    named = sparsegen.sample(model, size=SIZE, count=3, seed=[9, 7, 8], backend=backend, **options)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        alone = sparsegen.sample(model, size=SIZE, seed=7 + i, backend=backend, **options)
        assert np.array_equal(alone.output[0], batch.output[i])
        assert np.array_equal(named.output[j], batch.output[i])
    assert len({image.tobytes() for image in batch.images}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"record the size that the model was trained on; give size=\(height, width\)"),
        ({"size": SIZE, "count": 0}, "count is 0, expected a whole number of images, 1 or more"),
        ({"size": SIZE, "count": 2, "seed": [1]}, "there are 1 seeds for 2 images; expected one for each"),
        ({"size": SIZE, "steps": 2000}, "steps is 2000, expected a whole number from 1 to 1000"),
        ({"size": SIZE, "steps": 0}, "steps is 0"),
        ({"size": SIZE, "sampler": "pd"}, "does not go with a model that is conditioned on timestep"),
        ({"size": (16, 16, 3)}, r"size is \(16, 16, 3\), expected \(height, width\)"),
        ({"size": 16}, r"size is 16, expected \(height, width\)"),
        ({"size": (-8, 8)}, r"size is \(-8, 8\), expected"),
        ({"size": np.array([8.0, 8.0])}, r"size is array.* expected"),
        ({"size": SIZE, "count": float("nan")}, "count is nan"),
        ({"size": SIZE, "count": float("inf")}, "count is inf"),
    ],
    ids=str,
)
def test_what_cannot_be_sampled_is_said(options, message):
    with pytest.raises(InputError, match=message):
        sparsegen.sample(DDPM, **options)


def test_sizes_may_be_numpys():
    for size in ((np.int64(8), 8), np.array([8, 8]), [8, 8]):
        assert sparsegen.sample(DDPM, size=size, steps=1).image.shape == (8, 8, 3)


def test_sizes_and_networks_that_do_not_go_are_said():
    with pytest.raises(ShapeError, match="multiples of 2"):
        sparsegen.sample(DDPM, size=(15, 16))
    other = GauGAN(GauGANConfig(ngf=1, semantic_nc=3, nhidden=2, num_upsampling_layers="normal"))
    with pytest.raises(InputError, match="needs a diffusion model"):
        sparsegen.sample(other)
    with pytest.raises(InputError, match="not its name"):
        sparsegen.sample("landscape-ddpm")


def test_the_size_of_the_training_is_found_and_kept(tmp_path):
    model = sparsegen.load("landscape-ddpm")
    assert model.size == (128, 128)
    assert sparsegen.sample(model, steps=1).image.shape == (128, 128, 3)
    sparsegen.loading.save(model, tmp_path / "net.safetensors", dtype="float16")
    assert sparsegen.load(tmp_path / "net.safetensors").size == (128, 128)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (32, (32, 32)),
        ([32, 64], (32, 64)),
        (None, None),
        (True, None),
        ([32], None),
        (-1, None),
        ("32", None),
    ],
    ids=str,
)
def test_a_diffusers_folder_says_its_size(said, size):
    checkpoint = SimpleNamespace(config={"sample_size": said}, metadata={})
    assert sparsegen.loading._trained_size(checkpoint) == size
