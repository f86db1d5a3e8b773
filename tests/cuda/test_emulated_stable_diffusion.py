"""Stable Diffusion's UNet and text encoder on the emulated device: values of diffusers and transformers, recordings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsegen import Session
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.cupy_cuda.tensor import Precision
from sparsegen.tiling.policies import Policy
from tests.cuda import emulator
from tests.cuda.emulator import EmulatedDevice
from tests.networks import assert_same, values

torch = pytest.importorskip("torch")
from tests.models import test_stable_diffusion as models  # noqa: E402  (needs PyTorch)
from tests.oracles.sd_models import unet_output, unets  # noqa: E402  (needs PyTorch)
from tests.tolerances import check  # noqa: E402  (below the skip)
from tests.unets import FAST, SPARSE  # noqa: E402  (below the skip)

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING),
]


class Unrecorded(CudaBackend):
    """The same kernels, launched layer by layer."""

    records = False


@pytest.fixture(scope="module")
def backend() -> CudaBackend:
    return CudaBackend(EmulatedDevice())


@pytest.fixture(scope="module")
def model() -> Any:
    return unets(models.UNET)[1]


@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear projections"])
def test_the_unet_is_diffusers(backend: CudaBackend, linear: bool) -> None:
    models.test_the_unet_is_diffusers(backend, linear, 4)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_text_encoder_is_transformers(backend: CudaBackend, activation: str) -> None:
    models.test_the_text_encoder_is_transformers(backend, activation)


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_the_unet_by_tensor_cores(precision: Precision) -> None:
    net, model = unets(models.UNET)
    x, text = models.normal(1, 16, 12, 4), models.normal(1, 15, 24, seed=1)
    session = Session(model, CudaBackend(EmulatedDevice(), precision=precision))
    found = session.run(x, timestep=[981.0], text=text).output
    check("UNet, tensor cores", found, unet_output(net, x, [981.0], text))


@pytest.mark.parametrize("policy", [SPARSE, FAST], ids=["paper", "fast"])
def test_a_recorded_edit_has_the_bits_of_one_layer_by_layer(
    backend: CudaBackend, model: Any, policy: Policy
) -> None:
    x = models.normal(1, 16, 16, 4)
    recorded, eager = both = [Session(model, each) for each in (backend, Unrecorded(EmulatedDevice()))]
    for session in both:
        session.run(x, **models.conditions())
    counts = backend.device.counts
    for at in (2, 9):
        x = x.copy()
        x[:, at : at + 5, 4:9] += 1
        counts.clear()
        found, expected = (session.edit(x, policy=policy) for session in both)
        assert counts["graph"] == counts["wait"] == 1
        assert np.array_equal(found.output, expected.output)
        assert_same(values(recorded), values(eager))
    for _ in range(2):
        assert np.array_equal(recorded.undo().output, eager.undo().output)
