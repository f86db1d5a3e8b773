"""Models on the emulated device against PyTorch: every layer of a dense run, and edits under every policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsegen
from sparsegen.backends.cupy_cuda.backend import CudaBackend

torch = pytest.importorskip("torch")
from tests.cuda import emulator  # noqa: E402  (keeps the order below the skip)
from tests.cuda.backends import emulated  # noqa: E402  (below the skip)
from tests.models import test_parity as gaugan  # noqa: E402  (needs PyTorch)
from tests.models import test_parity_diffusion as diffusion  # noqa: E402  (needs PyTorch)
from tests.networks import computed_by_tiles  # noqa: E402  (below the skip)
from tests.oracles import torch_ddpm, torch_mobile_spade, torch_spade  # noqa: E402  (need PyTorch)
from tests.oracles.torch_ddpm import UNet, watched  # noqa: E402  (below the skip)
from tests.oracles.torch_pd import DistilledUNet  # noqa: E402  (below the skip)
from tests.tolerances import check  # noqa: E402  (below the skip)

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING),
]

SIZES: dict[str, dict[str, Any]] = {
    "ddpm": {"mult": (1, 2), "attention": (1,), "blocks": 1},
    "pd": {"mult": (1, 2), "attention": (1,), "blocks": 1, "head": 16},
}
"""Two levels, attention in the lower one, 16×16 pixels."""


@pytest.fixture
def backend() -> CudaBackend:
    return emulated()


def spade(tmp_path: Path, backend: CudaBackend, **options: Any) -> tuple[sparsegen.Session, Any]:
    """A generator of PyTorch's, and a session of the model that its file gives."""
    net = torch_spade.randomised(2, size=(32, 64), semantic_nc=5, **options)
    torch.save(net.state_dict(), tmp_path / "latest_net_G.pth")
    return sparsegen.Session(sparsegen.load(tmp_path / "latest_net_G.pth"), backend), net


def unet(family: str, tmp_path: Path, backend: CudaBackend) -> tuple[sparsegen.Session, Any]:
    """Likewise a diffusion model; its session keeps every resolution."""
    network = torch_ddpm.randomised((UNet if family == "ddpm" else DistilledUNet)(**SIZES[family]), 3)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    options = {"head_channels": SIZES[family]["head"]} if family == "pd" else {}
    model = sparsegen.load(tmp_path / "net.pth", **options)
    return sparsegen.Session(model, backend, policy="exact"), network


def street(rng: np.random.Generator) -> np.ndarray:
    labels: np.ndarray = rng.integers(0, 5, (1, 8, 16)).repeat(4, 1).repeat(4, 2)
    return labels


@pytest.mark.parametrize("options", [{"spectral": True}, {"z_dim": 16}], ids=["spectral", "z"])
def test_every_layer_of_gaugan(options: dict[str, Any], tmp_path: Path, backend: CudaBackend) -> None:
    session, net = spade(tmp_path, backend, **options)
    rng = np.random.default_rng(0)
    labels = street(rng)
    z = {"z": rng.standard_normal((1, 16)).astype(np.float32)} if "z_dim" in options else {}
    gaugan.compare(session, net, labels, **z)
    assert computed_by_tiles(session)  # some by Winograd's transforms


def test_every_layer_of_gan_compression(tmp_path: Path, backend: CudaBackend) -> None:
    net = torch_mobile_spade.randomised(2)
    torch.save(torch_mobile_spade.fused(net.state_dict()), tmp_path / "net.pth")
    session = sparsegen.Session(sparsegen.load(tmp_path / "net.pth"), backend)
    labels = np.random.default_rng(0).integers(0, 5, (1, 16, 32)).repeat(4, 1).repeat(4, 2)
    gaugan.compare(session, net, labels)
    assert computed_by_tiles(session)


@pytest.mark.parametrize("family", SIZES)
def test_every_layer_of_a_diffusion_model(family: str, tmp_path: Path, backend: CudaBackend) -> None:
    session, network = unet(family, tmp_path, backend)
    times = [0.0, 977.0] if family == "ddpm" else [-17.5, 3.25]
    diffusion.compare(session, network, watched(network), diffusion.noisy(16, 12), times)
    assert computed_by_tiles(session)


def test_exact_edits_of_gaugan(tmp_path: Path, backend: CudaBackend) -> None:
    session, net = spade(tmp_path, backend)
    labels = street(np.random.default_rng(1))
    session.run(labels)
    for row in (3, 20):
        labels[:, row : row + 6, 20:31] = 2
        ours = session.edit(labels, policy="exact")
        with torch.no_grad():
            theirs = net(torch_spade.one_hot(torch.tensor(labels), None, 5)).permute(0, 2, 3, 1).numpy()
        assert ours.stats.macs < ours.stats.macs_dense
        check("parity", ours.output, theirs)


@pytest.mark.parametrize("family", SIZES)
def test_edits_of_everything_in_a_diffusion_model(family: str, tmp_path: Path, backend: CudaBackend) -> None:
    """Edits keep the norms' statistics: with those of the edited image they are PyTorch's, in every layer."""
    session, network = unet(family, tmp_path, backend)
    times, x = [3.0], diffusion.noisy(16, 16, samples=1)
    edited = x.copy()
    edited[:, 3:9, 4:11] += 1
    session.run(edited, **{session.model.time: times})
    session.edit(x, policy="exact")
    ours = session.edit(edited, policy="exact")
    with torch.no_grad():
        output = network(torch.tensor(edited).permute(0, 3, 1, 2), torch.tensor(times))
    check("parity, UNet", ours.output, output.permute(0, 2, 3, 1).numpy())
