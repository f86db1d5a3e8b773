"""Imported SPADE generators against PyTorch, layer by layer and at the output, with every option and backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sparsegen
from sparsegen.backends import Backend, get_backend
from sparsegen.models import MobileGauGAN

torch = pytest.importorskip("torch")
from tests.networks import computed_by_tiles, values  # noqa: E402  (keeps the order below the skip)
from tests.oracles.torch_spade import one_hot, randomised  # noqa: E402  (needs PyTorch)
from tests.tolerances import check  # noqa: E402  (keeps the order below the skip)

pytestmark = pytest.mark.torch

CASES = {
    "normal": {},
    "more": {"layers": "more", "size": (64, 128)},
    "most": {"layers": "most", "size": (128, 128)},
    "instance norm": {"norm": "instance"},
    "syncbatch": {"norm": "syncbatch"},
    "spectral": {"spectral": True},
    "spectral, most, z": {"spectral": True, "layers": "most", "size": (128, 256), "z_dim": 8},
    "z": {"z_dim": 16},
    "wide": {"ngf": 8, "nhidden": 16, "semantic_nc": 9},
    "5×5 SPADE": {"kernel": 5, "spectral": True},
    "square": {"size": (96, 96)},
    "tall": {"size": (96, 32)},
    "cityscapes channels": {"semantic_nc": 36, "layers": "more", "size": (64, 128)},
}


def torch_layers(net: torch.nn.Module) -> dict[str, np.ndarray]:
    """Register hooks; after a forward the dict holds every layer's output `[N, H, W, C]` under our paths."""
    outputs: dict[str, np.ndarray] = {}

    def keep(path: str):
        def hook(_module, _inputs, output):
            if output.ndim == 4:
                outputs[path] = output.permute(0, 2, 3, 1).detach().numpy()

        return hook

    for name, module in net.named_modules():
        if name.endswith(("conv_0", "mlp_shared", "mlp_gamma", "mlp_beta", ".conv.0")):
            module.register_forward_hook(keep(name))
        elif name in ("head_0", "fc") or (name.startswith(("G_middle", "up_")) and "." not in name):
            # a block's output is our conv_1, which computes and adds the shortcut
            module.register_forward_hook(keep(name if name == "fc" else f"{name}.conv_1"))
    return outputs


def engine(name: str) -> Backend:
    """The backend of that name; "numba, direct" computes every convolution as it is defined."""
    get_backend(name.split(",")[0])
    if name == "numba, direct":
        from sparsegen.backends.numba_cpu import NumbaBackend

        return NumbaBackend(direct=True)
    return get_backend(name)


SEPARABLE = (".pointwise", ".depthwise")
"""The two canvases of a separable convolution: of its output, and of what its norm reads."""

ENGINES = ("reference", "numba", "numba, direct")


def compare(
    session: sparsegen.Session, net: torch.nn.Module, labels: np.ndarray, **conditions: np.ndarray
) -> None:
    """Run both; every canvas and the output must agree."""
    ours = session.run(labels, **conditions)
    expected = torch_layers(net)
    z, instances = (conditions.get(each) for each in ("z", "instances"))
    with torch.no_grad():
        edges = None if instances is None else torch.tensor(instances)
        seg = one_hot(torch.tensor(labels), edges, session.model.config.semantic_nc)
        output = net(seg, None if z is None else torch.tensor(z)).permute(0, 2, 3, 1).numpy()
    for gamma in [layer for layer in expected if ".mlp_gamma" in layer]:
        halves = expected.pop(gamma), expected.pop(gamma.replace("gamma", "beta"))
        expected[gamma.replace("gamma", "gamma_beta")] = np.concatenate(halves, axis=-1)
    if isinstance(session.model, MobileGauGAN):  # separable convolutions
        for layer in [layer for layer in expected if ".mlp_gamma_beta" in layer]:
            expected[layer.removesuffix(".conv.0") + SEPARABLE["conv.0" in layer]] = expected.pop(layer)
    expected["conv_img"] = output

    found = {path: v for path, v in values(session).items() if not path.startswith(("input.", "windows."))}
    assert found.keys() - {"fc"} == expected.keys() - {"fc"}
    for layer, theirs in expected.items():
        check("parity", found[layer], theirs)
    check("parity", ours.output, output)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ENGINES)
def test_every_layer_equals_pytorch(case: str, name: str, tmp_path: Path) -> None:
    options = {"size": (32, 64), "semantic_nc": 5, **CASES[case]}
    net = randomised(seed=len(case), **options)
    height, width = options["size"]
    path = tmp_path / "latest_net_G.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=name != "reference")  # else legacy

    rng = np.random.default_rng(3)
    with_edges = options["semantic_nc"] == 36
    classes = options["semantic_nc"] - with_edges
    labels = rng.integers(0, classes, (2, height // 4, width // 4)).repeat(4, 1).repeat(4, 2)
    conditions = {"instances": labels // 3} if with_edges else {}
    if "z_dim" in options:
        conditions["z"] = rng.standard_normal((2, options["z_dim"])).astype(np.float32)

    model = sparsegen.load(path, num_upsampling_layers=options.get("layers", "normal"))
    session = sparsegen.Session(model, engine(name))
    compare(session, net, labels, **conditions)
    assert bool(computed_by_tiles(session)) == (name == "numba")


@pytest.mark.parametrize("name", ENGINES)
def test_edits_stay_within_the_same_tolerance(name: str, tmp_path: Path) -> None:
    net = randomised(1, size=(64, 128), spectral=True)
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path)
    session = sparsegen.Session(sparsegen.load(path), engine(name))
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, (8, 16)).repeat(8, 0).repeat(8, 1)
    session.run(labels)
    labels[20:31, 40:66] = 2
    ours = session.edit(labels, policy="exact")
    with torch.no_grad():
        theirs = net(one_hot(torch.tensor(labels)[None], None, 5)).permute(0, 2, 3, 1).numpy()
    assert ours.stats.macs < ours.stats.macs_dense
    check("parity", ours.output, theirs)
