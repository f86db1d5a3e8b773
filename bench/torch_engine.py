"""PyTorch, eager: convolutions and the big GauGANs, by memory format or in bfloat16; it makes the shared checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import street
from bench.cases import CHECKED_AREA, Big, Case
from bench.engines import Answer, Convolution, Job
from bench.harness import THREADS, measure, peak_bytes
from bench.torch_latent import TorchLatent
from bench.torch_unets import TorchUnets, channels_last
from sparsegen.images import write_png
from tests.oracles import torch_mobile_spade, torch_spade

VARIANTS = {
    "nchw": (torch.contiguous_format, torch.float32),
    "nhwc": (torch.channels_last, torch.float32),
    "bfloat16": (torch.channels_last, torch.bfloat16),
}
"""Name -> the memory format, and the type of weights and values."""


class TorchEngine(TorchUnets, TorchLatent):
    version = torch.__version__

    def __init__(self, variant: str) -> None:
        self.format, self.dtype = VARIANTS[variant]
        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)

    def convolution(self, case: Case) -> Convolution:
        x, weight, bias = (torch.from_numpy(values).to(self.dtype) for values in case.values())
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=self.format)
        weight = weight.contiguous(memory_format=self.format)
        last: list[torch.Tensor] = []

        @torch.inference_mode()
        def call() -> None:
            last[:] = [torch.nn.functional.conv2d(x, weight, bias, case.stride, case.padding)]

        return Convolution(call, lambda: channels_last(last[0]))

    def checkpoint(self, net: Big, job: Job) -> Answer:
        """Write random weights, the norms' statistics measured on streets so that no activation vanishes."""
        torch.manual_seed(0)
        generator = gaugan_network(net)
        norms = [m for m in generator.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = 1.0  # measured, not averaged with the initial ones
        generator.train()(torch.cat([seg_of(street.street(seed, net.size)) for seed in range(3)]))
        torch.save(generator.state_dict(), job.checkpoint)
        return Answer({}, {}, {"parameters": sum(p.numel() for p in generator.parameters())})

    def gaugan(self, net: Big, job: Job) -> Answer:
        """Dense runs: of the original and an edited street as a check, of the original for timing."""
        run = self._network(net, job.checkpoint)
        original = street.street(size=net.size)
        if job.check:
            changed, _ = street.edited(original, CHECKED_AREA)
            outputs = {"original": run(seg_of(original)), "edited": run(seg_of(changed))}
            return Answer({}, {name: channels_last(out) for name, out in outputs.items()}, {})
        seg = seg_of(original).to(self.dtype, memory_format=self.format)
        timing = measure(lambda: run(seg), repeats=job.repeats)
        return Answer({"dense": list(timing.samples)}, {}, {"peak_bytes": peak_bytes()})

    def image(self, net: Big, job: Job) -> Answer:
        """The whole process that `sparsegen edit` is compared with: load, run once, write an image."""
        out = self._network(net, job.checkpoint)(seg_of(street.street(size=net.size)))
        image = ((channels_last(out)[0] + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        write_png(job.checkpoint.with_name("torch.png"), image)
        return Answer({}, {}, {})

    def _network(self, net: Big, checkpoint: Path) -> Callable[[torch.Tensor], torch.Tensor]:
        generator = gaugan_network(net).eval()
        generator.load_state_dict(torch.load(checkpoint, mmap=True, weights_only=True))
        generator.to(dtype=self.dtype, memory_format=self.format)
        return torch.inference_mode()(lambda seg: generator(seg.to(self.dtype, memory_format=self.format)))


def open_engine(variant: str | None) -> TorchEngine:
    return TorchEngine(variant or "nchw")


def gaugan_network(net: Big) -> torch.nn.Module:
    common: dict[str, Any] = {"semantic_nc": net.semantic_nc, "layers": "more", "size": net.size}
    made: torch.nn.Module
    if net.widths:
        made = torch_mobile_spade.MobileSPADEGenerator(net.widths, **common)
    else:
        made = torch_spade.SPADEGenerator(ngf=net.ngf, nhidden=net.nhidden, **common)
    return made


def seg_of(scene: street.Street) -> torch.Tensor:
    """`[1, 36, H, W]`: one-hot labels and the edges of instances."""
    labels, instances = (torch.from_numpy(plane)[None] for plane in (scene.labels, scene.instances))
    seg: torch.Tensor = torch_spade.one_hot(labels, instances, Big.semantic_nc)
    return seg
