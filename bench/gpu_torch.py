"""PyTorch on a card: channels last, cuDNN at its fastest, every network one CUDA graph; one precision at a time.

Without a card (`emulated`) the same code runs eagerly on the CPU. Inputs of a GauGAN lie on the card already; noisy
images are copied there and predictions back, through pinned memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from bench import street
from bench.cases import CHECKED_AREA, Big, Unet
from bench.gpu_cases import DENSE, SDEDIT, Task, denoising, timed
from bench.gpu_clock import Clock
from bench.torch_engine import gaugan_network, seg_of
from bench.torch_unets import unet_network
from sparsegen.backends.interface import Host
from sparsegen.diffusion import seeds

Tensor = torch.Tensor


class Replayed:
    """A network in memory of its own: a call copies inputs there, and queues everything.

    Parameters
    ----------
    network
        Takes and returns tensors on the device.
    inputs
        The first inputs, on the device; later ones have their shapes.
    """

    def __init__(self, network: Callable[..., Tensor], clock: Clock, *inputs: Tensor) -> None:
        self.inputs, self._network, self._clock = inputs, network, clock
        self._graph: Any = None
        if inputs[0].is_cuda:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # cuDNN tries its algorithms before anything is captured
                for _ in range(3):
                    network(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = network(*inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output, on the device; the next call overwrites it."""
        for place, value in zip(self.inputs, inputs, strict=False):
            place.copy_(value, non_blocking=True)
        if self._graph is None:
            return self._network(*self.inputs)
        with self._clock.graph():
            self._graph.replay()
        return self._output


class GpuTorch:
    """The engine of PyTorch, for one task."""

    def __init__(self, task: Task) -> None:
        self.task, self.net = task, task.net
        self.device = "cpu" if task.emulated else "cuda"
        self._noise: Host | None = None
        torch.set_grad_enabled(False)
        if task.emulated:
            self.clock = Clock()
        else:
            torch.set_default_device("cuda")  # the oracles make constants in their forward
            torch.backends.cudnn.benchmark = True
            self.clock = Clock(_event, lambda first, last: first.elapsed_time(last), torch.cuda.synchronize)
        self.version = torch.__version__
        if not task.checkpoint.exists():
            self._make_checkpoint()

    @property
    def card(self) -> str:
        return "" if self.task.emulated else torch.cuda.get_device_name()

    def open(self, precision: str) -> None:
        """Load the network in a precision."""
        tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        net = self.net
        network = gaugan_network(net) if isinstance(net, Big) else unet_network(net)
        network.load_state_dict(torch.load(self.task.checkpoint, map_location=self.device, weights_only=True))
        network.eval().to(memory_format=torch.channels_last)
        half = precision == "float16"
        if half:
            network.half()
            if isinstance(net, Unet):  # the sines of a time need float32
                network.temb.float().register_forward_hook(lambda _module, _given, out: out.half())

        def run(x: Tensor, *conditions: Tensor) -> Tensor:
            return network(x.half() if half else x, *conditions).float()

        if isinstance(net, Big):
            seg = self._on_device(seg_of(street.street(size=net.size)))
            self.run = Replayed(run, self.clock, seg)
        else:
            x, time = self._on_device(_first_channels(net.noisy())), torch.full((1,), float(net.time))
            self.run = Replayed(run, self.clock, x, time.to(self.device))

    def outputs(self) -> dict[str, Host]:
        """Dense runs, `[N, H, W, C]`: of the input, and of a GauGAN also of an edited one."""
        net = self.net
        if isinstance(net, Unet):
            return {DENSE: _channels_last(self.run())}
        original = street.street(size=net.size)
        changed, _ = street.edited(original, CHECKED_AREA)
        scenes = {"original": original, "edited": changed}
        return {name: _channels_last(self.run(seg_of(scene))) for name, scene in scenes.items()}

    def timings(self) -> Iterator[dict[str, Any]]:
        """Dense runs, and SDEdit with every step dense."""
        net, repeats = self.net, self.task.repeats
        given = [_pinned(_first_channels(net.noisy()))] if isinstance(net, Unet) else []
        host: list[Tensor] = []

        def dense() -> None:
            out = self.run(*given)
            if not host:
                host.append(_pinned(torch.empty_like(out, device="cpu")))
            host[0].copy_(out, non_blocking=True)
            self._wait()

        if isinstance(net, Big):  # earlier outputs were of another street
            self.run(seg_of(street.street(size=net.size)))
        yield timed(DENSE, self.clock.measure(dense, repeats=repeats, warm_ups=self.task.warm_ups))
        if isinstance(net, Unet) and self.task.sdedit:
            variants = iter(range(1, repeats + 9))
            samples = self.clock.measure(
                lambda: self.sdedit(next(variants)), repeats=min(repeats, 3), warm_ups=1
            )
            yield timed(SDEDIT, samples)

    def sdedit(self, variant: int) -> Host:
        """A stroke made real, every step dense and everything on the device: uint8 `[1, H, W, 3]`."""
        net = self.net
        assert isinstance(net, Unet)
        image = np.tanh(net.noisy(1))
        mask = net.strokes(CHECKED_AREA, variant)
        painted = image.copy()
        painted[mask] = 0.5
        settings = denoising(net, self.task.emulated)
        scheme, times = settings.noise_schedule(), settings.times()
        if self._noise is None:  # as a session of sparsegen, it draws the noise once
            self._noise = seeds.noise(0, seeds.START, (1, *image.shape))[0]
        before, x, fresh = (self._on_device(_first_channels(each)) for each in (image, painted, self._noise))
        inside = torch.from_numpy(mask).to(self.device)
        alpha, sigma = scheme.alpha_sigma(times[0])
        x = alpha * x + sigma * fresh
        for now, after in zip(times, [*times[1:], None], strict=True):
            alpha, sigma = scheme.alpha_sigma(now)
            next_alpha, next_sigma = scheme.alpha_sigma(after)
            out = self.run(x, torch.full((1,), float(now), device=self.device))
            if net.family == "ddpm":
                eps = out
                clean = ((x - sigma * eps) / alpha).clamp(-1, 1)
            else:
                predicted, eps = out.chunk(2, 1)
                clean = sigma**2 * predicted + alpha**2 * ((x - sigma * eps) / alpha)
                clean = clean.clamp(-1, 1)
                eps = (x - alpha * clean) / sigma
            x = next_alpha * clean + next_sigma * eps
            held = before if after is None else next_alpha * before + next_sigma * fresh
            x = torch.where(inside, x, held)
        shown: Host = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return shown

    def layers(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def _make_checkpoint(self) -> None:
        """Random weights; a GauGAN's norms are measured on streets, so that no activation vanishes."""
        torch.manual_seed(0)
        net = self.net
        if isinstance(net, Big):
            network = gaugan_network(net)
            for norm in (each for each in network.modules() if isinstance(each, torch.nn.BatchNorm2d)):
                norm.momentum = 1.0
            streets = [seg_of(street.street(seed, net.size)) for seed in range(3)]
            network.train()(torch.cat(streets).to(self.device))
        else:
            network = unet_network(net)
        torch.save({name: value.cpu() for name, value in network.state_dict().items()}, self.task.checkpoint)

    def _on_device(self, x: Tensor) -> Tensor:
        return x.to(self.device).contiguous(memory_format=torch.channels_last)

    def _wait(self) -> None:
        if not self.task.emulated:
            torch.cuda.synchronize()


def missing() -> str | None:
    """Why PyTorch cannot compute on a card here; None: it can."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    return f"PyTorch {torch.__version__} finds no NVIDIA card or driver"


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _first_channels(x: Host) -> Tensor:
    """`[H, W, C]` → `[1, C, H, W]`, in channels-last memory."""
    return torch.from_numpy(np.ascontiguousarray(x))[None].permute(0, 3, 1, 2)


def _channels_last(out: Tensor) -> Host:
    found: Host = out.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return found


def _pinned(x: Tensor) -> Tensor:
    return x.pin_memory() if torch.cuda.is_available() else x
