"""Small diffusion models with random weights, images, and what a session of many steps holds: no file at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sparsegen import Bundle, Fast, LatentDiffusion, Paper, Session
from sparsegen.backends.interface import Backend, Host
from sparsegen.editing.state import Repainted, State
from sparsegen.engine.allocator import BackendAllocator
from sparsegen.engine.feature import Feature
from sparsegen.engine.journal import Journal
from sparsegen.engine.memory import Memory
from sparsegen.engine.moments import Moments
from sparsegen.engine.run import Run
from sparsegen.models import (
    DDPM,
    CLIPText,
    DDPMConfig,
    PDConfig,
    ProgressiveDistillation,
    SDUNet,
    VAEDecoder,
    VAEEncoder,
)
from sparsegen.models.unet import UNet
from sparsegen.pipelines.sdedit import SDEdit
from sparsegen.tiling.policies import Everything, Policy
from sparsegen.tiling.tiles import TileSet
from tests.oracles import tiny_sd

TINY: dict[str, Any] = {
    "channels": 8,
    "levels": (8, 16),
    "attention": (False, True),
    "blocks": 1,
    "time_channels": 16,
    "groups": 4,
}

SPARSE = Paper(dilation=1, level_dilation=1, sparse_levels=16, least_size=8)
"""What the families' settings do at 64 pixels and more, in images of 16."""

FAST = Fast(dilation=1, level_dilation=1, sparse_levels=16, refresh=3)
"""As the families' `fast`, with less dilation."""


def random_ddpm(seed: int = 0, **settings: Any) -> DDPM:
    """A DDPM whose activations neither vanish nor explode."""
    return filled(DDPM(DDPMConfig(**{**TINY, **settings})), seed)


def random_pd(seed: int = 0, **settings: Any) -> ProgressiveDistillation:
    """A model of progressive distillation, likewise."""
    return filled(ProgressiveDistillation(PDConfig(**{**TINY, "head_channels": 8, **settings})), seed)


def random_latent(seed: int = 0, *, backend: Any = None, channels: int = 4) -> LatentDiffusion:
    """A tiny Stable Diffusion, for images with sides in multiples of 8; `channels` that its UNet reads."""
    unet = SDUNet(replace(tiny_sd.UNET, in_channels=channels))
    models = (unet, VAEEncoder(tiny_sd.VAE), VAEDecoder(tiny_sd.VAE), CLIPText(tiny_sd.TEXT))
    parts = {model.role: filled(model, seed) for model in models}
    return LatentDiffusion(Bundle("tiny", parts, {}, prediction="noise"), backend=backend)


FAMILIES = {"ddpm": random_ddpm, "pd": random_pd}


def filled(model: Any, seed: int) -> Any:
    """The model with random weights; norms scale by about 1."""
    rng = np.random.default_rng(seed)
    values = {}
    for path, parameter in model.parameters().items():
        fan_in = max(1, int(np.prod(parameter.shape[1:])))
        value = rng.normal(0, 0.7 * fan_in**-0.5, parameter.shape)
        if len(parameter.shape) == 1:
            value = 0.2 * value + path.endswith("weight")
        values[path] = value.astype(np.float32)
    model.load_parameters(values)
    return model


def noisy(rng: np.random.Generator, size: tuple[int, int] = (16, 16), samples: int = 1) -> Host:
    """What a model reads: float32 `[N, H, W, 3]`."""
    return rng.standard_normal((samples, *size, 3), np.float32)


def at(model: UNet, samples: int = 1) -> dict[str, Any]:
    """A time for each sample, by the name that the model calls it."""
    times = {"timestep": [500.0, 3.0, 981.0], "logsnr": [0.3, -7.0, 5.5]}[model.time]
    return {model.time: times[:samples]}


def dense_with(base: Session, x: Host) -> dict[str, Host]:
    """What every layer makes of `x` with the statistics that `base` measured, by path."""
    backend = base.memory.backend
    memory = Memory(
        backend,
        BackendAllocator(backend),
        base.memory.prepared,
        statistics=dict(base.memory.statistics),
        least_size=base.memory.least_size,
    )
    memory.take_inputs({"x": backend.upload(x)})
    run = Run(memory, Everything())
    everywhere = TileSet.full(*x.shape[:3])
    base.model.forward({"x": Feature(run, (memory.input("x", everywhere),))}, base._state.conditions)
    return {path: backend.download(canvas) for path, canvas in memory.canvases.items()}


def painted(rng: np.random.Generator, x: Host) -> Host:
    """A copy in which one sample has a rectangle of other values."""
    edited = x.copy()
    h, w = x.shape[1:3]
    y, left = rng.integers(0, h), rng.integers(0, w)
    sample = edited[rng.integers(len(x))]
    sample[y : y + rng.integers(1, h // 2), left : left + rng.integers(1, w // 2)] += 1.5
    return edited


def picture(rng: np.random.Generator, size: tuple[int, int] = (32, 32), samples: int = 0) -> Host:
    """Smooth colours with some noise, uint8 `[H, W, 3]`, or `[samples, H, W, 3]`."""
    h, w = size
    y, x = np.linspace(0, 3, h)[:, None, None], np.linspace(0, 2, w)[None, :, None]
    waves = np.sin(rng.uniform(0.5, 2, (max(samples, 1), 1, 1, 3)) * (x + y)) * 90 + 120
    found = np.clip(waves + rng.normal(0, 5, waves.shape), 0, 255).astype(np.uint8)
    return found if samples else found[0]


def stroke(
    image: Host, at: tuple[int, int] = (9, 14), size: tuple[int, int] = (3, 4), colour: int = 250
) -> Host:
    """A copy of `[..., H, W, 3]` with a rectangle in one colour."""
    edited = image.copy()
    edited[..., at[0] : at[0] + size[0], at[1] : at[1] + size[1], :] = (colour, 255 - colour, 20)
    return edited


def around(size: tuple[int, int], box: tuple[int, int, int, int], margin: int) -> Host:
    """bool `[H, W]`: rows and columns `box` = (top, left, height, width), grown by a cross of `margin` pixels."""
    y, x = np.mgrid[: size[0], : size[1]]
    top, left, height, width = box
    off_y = np.maximum(np.maximum(top - y, y - (top + height - 1)), 0)
    off_x = np.maximum(np.maximum(left - x, x - (left + width - 1)), 0)
    return ((off_y <= margin) & (off_x == 0)) | ((off_x <= margin) & (off_y == 0))


def everything(pipeline: SDEdit, *, fresh: bool = True) -> list[dict[str, Host]]:
    """Copies of all canvases and moments (`fresh` ones, too) of all steps, and of the image."""
    return [
        *(kept_by(state.memory, fresh=fresh) for state in pipeline._states),
        {"picture": pipeline._base.history.image.copy()},
    ]


def kept_by(memory: Memory, *, fresh: bool = True) -> dict[str, Host]:
    """Copies of all canvases and moments; of `fresh` moments those of the samples of which they are known."""
    found = {path: np.array(memory.backend.download(canvas)) for path, canvas in memory.canvases.items()}
    for path, moments in memory.moments.items():
        known = [n for n in range(len(moments.used[0])) if n not in moments.unknown]
        for name, arrays in parts(moments, memory.backend).items():
            of_samples = arrays.swapaxes(0, 1)  # [N, 2, C]
            if name != "fresh":
                found[f"{path}, {name}"] = of_samples
            elif fresh:
                found[f"{path}, {name}"] = of_samples[known]
    return found


def parts(moments: Moments, backend: Backend | None = None) -> dict[str, Host]:
    """The moments `[2, N, C]`, of a backend (None: in main memory): in use, stale and fresh."""
    download = np.asarray if backend is None else backend.download
    return {
        name: np.array([download(each) for each in getattr(moments, name)])
        for name in ("used", "stale", "fresh")
    }


def assert_all_same(a: list[dict[str, Host]], b: list[dict[str, Host]]) -> None:
    """The same steps, the same layers, the same bits."""
    assert len(a) == len(b)
    for i, (left, right) in enumerate(zip(a, b, strict=True)):
        assert left.keys() == right.keys()
        different = [path for path in left if not np.array_equal(left[path], right[path])]
        assert not different, f"step {i}: {different}"


def repainted(state: State, mask: Host, policy: str | Policy) -> Repainted:
    """Repaint a state with the values that its input has already, where `mask` bool `[N, H, W]` holds."""
    changed = TileSet.of_mask(mask)
    plan = state.model.policy(policy).plan(mask)
    values = {"x": state.fetch_input("x", changed.tiles)()}
    return state.repaint(values, changed, plan, journal=Journal())
