"""The autoencoder held to diffusers' `AutoencoderKL`, and its edits to its dense runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsegen import Session
from sparsegen.backends import Backend
from sparsegen.backends.interface import Host
from sparsegen.errors import InputError, ShapeError
from sparsegen.models import VAEConfig, VAEDecoder, VAEEncoder
from sparsegen.models.base import Model
from sparsegen.tiling.policies import Exact
from tests.networks import values
from tests.oracles.sd_models import vae_path
from tests.tolerances import check

SMALL = VAEConfig(levels=(16, 32, 32), blocks=1, groups=8)


def pair(config: VAEConfig) -> tuple[Any, VAEEncoder, VAEDecoder]:
    """diffusers' network with random weights, and ours with the same."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from tests.oracles import diffusers_networks

    torch.manual_seed(0)
    net = diffusers_networks.autoencoder(config).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    count = len(config.levels)
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    encoder, decoder = VAEEncoder(config), VAEDecoder(config)
    for model, first in ((encoder, ("encoder.", "quant_conv.")), (decoder, ("decoder.", "post_quant_conv."))):
        found: dict[str, Host] = {}
        for name, value in state.items():
            if name.startswith(first):
                path = vae_path(name, count)
                shape = model.parameters()[path].shape
                found[path] = value.reshape(shape)  # attention's matrices [C, C] are 1×1 kernels
        model.load_parameters(found)
    return net, encoder, decoder


def random_model(kind: type[Model], config: VAEConfig = SMALL) -> Any:
    """A half with random weights, whose activations neither vanish nor explode."""
    rng = np.random.default_rng(0)
    model = kind(config)
    found = {}
    for path, parameter in model.parameters().items():
        fan_in = max(1, int(np.prod(parameter.shape[1:])))
        value = rng.normal(0, fan_in**-0.5, parameter.shape)
        found[path] = (value + (1 if "norm" in path and path.endswith("weight") else 0)).astype(np.float32)
    model.load_parameters(found)
    return model


@pytest.mark.torch
@pytest.mark.parametrize(
    ("config", "size"),
    [
        (SMALL, (24, 32)),
        (VAEConfig(levels=(8,), blocks=2, groups=4, latents=3), (8, 12)),
        pytest.param(VAEConfig(), (32, 64), marks=pytest.mark.slow),  # Stable Diffusion's
    ],
    ids=["small", "one level", "whole"],
)
def test_both_halves_are_diffusers(config: VAEConfig, size: tuple[int, int]) -> None:
    import torch

    net, encoder, decoder = pair(config)
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    small = (size[0] // config.reduction, size[1] // config.reduction)
    latents = rng.standard_normal((2, *small, config.latents)).astype(np.float32)
    with torch.no_grad():
        moments = net.quant_conv(net.encoder(torch.from_numpy(image).permute(0, 3, 1, 2)))
        decoded = net.decode(torch.from_numpy(latents).permute(0, 3, 1, 2)).sample
    check("parity, UNet", Session(encoder).run(image).output, moments.permute(0, 2, 3, 1).numpy())
    check("parity, UNet", Session(decoder).run(latents).output, decoded.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("kind", [VAEEncoder, VAEDecoder])
def test_edits_change_tiles_around_them_alone(kind: type[Model], backend: Backend) -> None:
    model, rng = random_model(kind), np.random.default_rng(1)
    channels, size = (3, (64, 96)) if kind is VAEEncoder else (4, (16, 24))
    original = rng.uniform(-1, 1, (*size, channels)).astype(np.float32)
    edited = original.copy()
    edited[9:11, 13:15] = 1
    session = Session(model, backend)
    before = session.run(original).output
    result = session.edit(edited)
    assert 0 < result.active.count < result.active.total // 2
    assert np.array_equal(
        result.output[~result.active.mask(whole_tiles=True)], before[~result.active.mask(whole_tiles=True)]
    )
    assert any(layer.active < layer.total for layer in result.stats.layers)
    assert np.array_equal(session.undo().output, before)


@pytest.mark.parametrize("kind", [VAEEncoder, VAEDecoder])
def test_an_edit_of_everything_is_a_dense_run_with_the_originals_statistics(
    kind: type[Model], backend: Backend
) -> None:
    """Under `fast`, whose norms follow the edit, it is the dense run itself."""
    model, rng = random_model(kind), np.random.default_rng(1)
    shape = (32, 32, 3) if kind is VAEEncoder else (8, 12, 4)
    first, second = (rng.uniform(-1, 1, shape).astype(np.float32) for _ in range(2))
    edited, dense = Session(model, backend, policy="fast"), Session(model, backend)
    edited.run(first)
    dense.run(second)
    edited.edit(second)
    for path, expected in values(dense).items():
        assert np.array_equal(values(edited)[path], expected), path


def test_an_exact_edit_is_wider_than_the_papers() -> None:
    model, rng = random_model(VAEDecoder), np.random.default_rng(1)
    original = rng.standard_normal((32, 32, 4)).astype(np.float32)
    edited = original.copy()
    edited[15, 16] += 1
    counts = []
    for policy in (model.paper, Exact()):
        session = Session(model, policy=model.paper)
        session.run(original)
        counts.append(session.edit(edited, policy=policy).active.count)
    assert counts[0] < counts[1]


def test_what_is_wrong_is_said() -> None:
    encoder, decoder = VAEEncoder(SMALL), VAEDecoder(SMALL)
    with pytest.raises(ShapeError, match=r"multiples of 4, the nearest are .*32×32"):
        encoder.encode(np.zeros((30, 32, 3), np.float32))
    with pytest.raises(ShapeError, match=r"the latents are \(8, 8, 3\), expected \[H, W, 4\]"):
        decoder.encode(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(InputError, match="uint8, expected floats"):
        encoder.encode(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="not finite at sample 0, row 2, column 1"):
        bad = np.zeros((8, 8, 4), np.float32)
        bad[2, 1, 3] = np.nan
        decoder.encode(bad)
    with pytest.raises(InputError, match="unknown condition timestep"):
        decoder.encode(np.zeros((8, 8, 4), np.float32), timestep=3)
    with pytest.raises(InputError, match="16 channels, expected a multiple of 32, the groups"):
        VAEConfig(levels=(16, 32))
    with pytest.raises(InputError, match="levels is"):
        VAEConfig(levels=())
