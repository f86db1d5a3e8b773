"""PyTorch, eager: the diffusion networks that the tests compare imports with, one step or SDEdit end to end, dense."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench.cases import SDEDIT_LEVEL, SDEDIT_STEPS, Unet
from bench.engines import Answer, Job
from bench.harness import measure, peak_bytes
from sparsegen.diffusion import samplers, schedules, seeds
from sparsegen.images import write_png
from tests.oracles import torch_ddpm, torch_pd


class TorchUnets:
    """The UNet tasks of the PyTorch engine."""

    format: torch.memory_format
    dtype: torch.dtype

    def unet_checkpoint(self, net: Unet, job: Job) -> Answer:
        """Write random weights."""
        torch.manual_seed(0)
        network = unet_network(net)
        torch.save(network.state_dict(), job.checkpoint)
        return Answer({}, {}, {"parameters": sum(p.numel() for p in network.parameters())})

    def unet(self, net: Unet, job: Job) -> Answer:
        """One dense step: its output as a check, or its time."""
        run = self._loaded(net, job.checkpoint)
        x = net.noisy()
        if job.check:
            return Answer({}, {"dense": run(x)}, {})
        timing = measure(lambda: run(x), repeats=job.repeats)
        return Answer({"dense": list(timing.samples)}, {}, {"peak_bytes": peak_bytes()})

    def memory(self, net: Unet, job: Job) -> Answer:
        """The peak of a process that loads the weights and runs one step."""
        self._loaded(net, job.checkpoint)(net.noisy())
        return Answer({}, {}, {"peak_bytes": peak_bytes()})

    def sdedit(self, net: Unet, job: Job) -> Answer:
        """SDEdit with every step run whole, from the strokes to the PNG."""
        run = self._loaded(net, job.checkpoint)
        scheme = schedules.linear()
        times = scheme.times(SDEDIT_STEPS, noise_level=SDEDIT_LEVEL)
        run(net.noisy())
        original = np.tanh(net.noisy(1))[None]
        start = time.perf_counter()
        edited = original.copy()
        mask = net.strokes(0.012, 1)
        edited[:, mask] = 0.5
        noise = seeds.noise(0, seeds.START, original.shape)
        x = scheme.noised(edited, noise, times[0])
        for step in samplers.ddim(lambda x, _, t: run(x[0], t), x, scheme, times, clip=1.0):
            held = scheme.noised(original, noise, step.next_timestep)
            step.x[:, ~mask] = held[:, ~mask]
        image = ((step.x[0].clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
        write_png(job.checkpoint.with_name("torch.png"), image)
        return Answer(
            {"second edit": [(time.perf_counter() - start) * 1e3]}, {}, {"peak_bytes": peak_bytes()}
        )

    def _loaded(self, net: Unet, checkpoint: Path) -> Callable[..., np.ndarray]:
        """`run(x, time)`: a noisy image `[H, W, 3]` -> the prediction `[1, H, W, C]`."""
        network = unet_network(net).eval()
        network.load_state_dict(torch.load(checkpoint, mmap=True, weights_only=True), assign=True)
        network.to(dtype=self.dtype, memory_format=self.format)
        # a time is embedded in float32: bfloat16 has 8 bits, and times reach 1000
        network.temb.dense[0].register_forward_pre_hook(lambda _, inputs: inputs[0].to(self.dtype))

        @torch.inference_mode()
        def run(x: np.ndarray, time: float = net.time) -> np.ndarray:
            batch = torch.from_numpy(x)[None].permute(0, 3, 1, 2).to(self.dtype, memory_format=self.format)
            return channels_last(network(batch, torch.full((1,), float(time))))

        return run


def channels_last(out: torch.Tensor) -> np.ndarray:
    """`[N, C, H, W]` of any type → float32 `[N, H, W, C]`."""
    return out.permute(0, 2, 3, 1).float().contiguous().numpy()


def unet_network(net: Unet) -> torch.nn.Module:
    kind = torch_ddpm.UNet if net.family == "ddpm" else torch_pd.DistilledUNet
    made: torch.nn.Module = kind(
        ch=net.channels,
        mult=net.multipliers,
        attention=net.attention,
        blocks=net.blocks,
        temb=net.time_channels,
    )
    return made
