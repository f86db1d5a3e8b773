"""PyTorch, eager: Stable Diffusion's networks of diffusers, one step, the decoder, or image to image end to end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.engines import Answer, Job
from bench.harness import measure, peak_bytes
from bench.latent_cases import NEGATIVE, PROMPT, TIME, Latent
from sparsegen.images import write_png
from sparsegen.models import Tokenizer

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}
"""Stable Diffusion's settings."""


class TorchLatent:
    """The tasks of latent diffusion of the PyTorch engine."""

    format: torch.memory_format
    dtype: torch.dtype

    def latent_folder(self, net: Latent, job: Job) -> Answer:
        """Write a pipeline's folder of random weights in float16."""
        from diffusers import StableDiffusionPipeline

        from tests.oracles import diffusers_networks

        _quiet()
        torch.manual_seed(0)
        unet = diffusers_networks.unet(net.unet).half()
        unet.register_to_config(sample_size=net.size // net.vae.reduction)
        pipe = StableDiffusionPipeline(
            unet=unet,
            vae=diffusers_networks.autoencoder(net.vae).half(),
            text_encoder=diffusers_networks.text_encoder(net.text).half(),
            **_rest(),
        )
        pipe.save_pretrained(job.checkpoint)
        counts = {
            name: sum(each.numel() for each in part.parameters())
            for name, part in pipe.components.items()
            if isinstance(part, torch.nn.Module)
        }
        return Answer({}, {}, {"parameters": sum(counts.values())})

    @torch.inference_mode()
    def latent_step(self, net: Latent, job: Job) -> Answer:
        """One guided step, of both texts: its output as a check, or its time."""
        (unet,) = self._networks(job.checkpoint, "unet")
        x = self._first(np.repeat(net.latents(), 2, 0))
        features, now = torch.from_numpy(net.features()).to(self.dtype), torch.tensor(TIME)
        return _answer("step", lambda: unet(x, now, encoder_hidden_states=features).sample, job)

    @torch.inference_mode()
    def latent_decoder(self, net: Latent, job: Job) -> Answer:
        """The decoder on all latents: its output as a check, or its time."""
        (vae,) = self._networks(job.checkpoint, "vae")
        latents = self._first(net.latents()) / net.vae.scale
        return _answer("image", lambda: vae.decode(latents).sample, job)

    def latent_session(self, net: Latent, job: Job) -> Answer:
        """diffusers' image to image of a painted image, to the PNG; or what encoders make of an image and a text.

        Texts are encoded before, as in a session.
        """
        from diffusers import StableDiffusionImg2ImgPipeline
        from PIL import Image

        text, vae = self._networks(job.checkpoint, "text_encoder", "vae")
        with torch.inference_mode():
            features, negative = (_features(text, words) for words in (PROMPT, NEGATIVE))
            if job.check:
                image = torch.from_numpy(net.image()).permute(2, 0, 1)[None] / 127.5 - 1
                latents = vae.encode(image).latent_dist.mean * net.vae.scale
                return Answer({}, {"features": features.numpy(), "latents": _last(latents)}, {})
        (unet,) = self._networks(job.checkpoint, "unet")
        pipe = StableDiffusionImg2ImgPipeline(unet=unet, vae=vae, text_encoder=None, **_rest())
        pipe.set_progress_bar_config(disable=True)
        painted = Image.fromarray(net.painted(net.image(), 1))
        start = time.perf_counter()
        made = pipe(
            prompt_embeds=features,
            negative_prompt_embeds=negative,
            image=painted,
            strength=net.strength,
            num_inference_steps=net.steps,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images[0]
        write_png(job.checkpoint / "torch.png", (made * 255).round().astype(np.uint8))
        taken = (time.perf_counter() - start) * 1e3
        return Answer({"second edit": [taken]}, {}, {"peak_bytes": peak_bytes()})

    def _networks(self, folder: Path, *names: str) -> list[Any]:
        """The networks of a pipeline's folder, in this engine's type and format."""
        import diffusers
        import transformers

        _quiet()
        kinds = {
            "unet": diffusers.UNet2DConditionModel,
            "vae": diffusers.AutoencoderKL,
            "text_encoder": transformers.CLIPTextModel,
        }
        found = [kinds[name].from_pretrained(folder / name, local_files_only=True) for name in names]
        return [each.eval().to(dtype=self.dtype, memory_format=self.format) for each in found]

    def _first(self, x: np.ndarray) -> torch.Tensor:
        """`[N, H, W, C]` -> `[N, C, H, W]` in this engine's type and format."""
        return torch.from_numpy(x).permute(0, 3, 1, 2).to(self.dtype, memory_format=self.format)


def _quiet() -> None:
    """Print no advice on the packages and options of loading."""
    import diffusers
    import transformers

    for module in (diffusers, transformers):
        module.logging.set_verbosity_error()


def _features(encoder: Any, text: str) -> torch.Tensor:
    """The features of a text, `[1, T, C]`."""
    ids = torch.from_numpy(Tokenizer().encode(text).ids[None].astype(np.int64))
    found: torch.Tensor = encoder(ids).last_hidden_state
    return found


def _rest() -> dict[str, Any]:
    """The parts of a pipeline that are no networks with weights."""
    from diffusers import DDIMScheduler

    none = ("tokenizer", "safety_checker", "feature_extractor")
    return {
        "scheduler": DDIMScheduler(**SCHEDULER),
        **dict.fromkeys(none),
        "requires_safety_checker": False,
    }


def _answer(name: str, call: Callable[[], torch.Tensor], job: Job) -> Answer:
    """A network's output as a check, or its time."""
    if job.check:
        return Answer({}, {name: _last(call())}, {})
    timing = measure(call, repeats=job.repeats)
    return Answer({"dense": list(timing.samples)}, {}, {"peak_bytes": peak_bytes()})


def _last(x: torch.Tensor) -> np.ndarray:
    """`[N, C, H, W]` of any type -> float32 `[N, H, W, C]`."""
    return x.permute(0, 2, 3, 1).float().contiguous().numpy()
