"""Imported diffusion models against PyTorch and diffusers, layer by layer and at the output, on every backend."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsegen
from sparsegen.backends import Backend, get_backend

torch = pytest.importorskip("torch")
from tests.models import computed_by_tiles, values  # noqa: E402  (keeps the order below the skip)
from tests.oracles.torch_ddpm import UNet, fused, randomised, watched  # noqa: E402  (needs PyTorch)
from tests.oracles.torch_pd import DistilledUNet  # noqa: E402  (needs PyTorch)
from tests.tolerances import check  # noqa: E402  (keeps the order below the skip)

pytestmark = pytest.mark.torch

ENGINES = ("reference", "numba", "numba, direct")


def engine(name: str) -> Backend:
    """The backend of that name; "numba, direct" computes every convolution as it is defined."""
    get_backend(name.split(",")[0])
    if name == "numba, direct":
        from sparsegen.backends.numba_cpu import NumbaBackend

        return NumbaBackend(direct=True)
    return get_backend(name)


def noisy(height: int, width: int, *, samples: int = 2, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((samples, height, width, channels)).astype(np.float32)


def compare(
    session: sparsegen.Session, network: Any, found: dict[str, np.ndarray], x: np.ndarray, times: list[float]
) -> None:
    """Run both; every canvas and the output must agree. `found` is what the model's hooks fill."""
    result = session.run(x, **{session.model.time: np.array(times, np.float32)})
    with torch.no_grad():
        output = network(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(times))
    output = getattr(output, "sample", output).permute(0, 2, 3, 1).numpy()
    kept = {path: v for path, v in values(session).items() if not path.startswith("input.")}
    layers = kept | session.memory.allocator.shared_arrays
    within = {path for path in found if path.endswith("nin_shortcut")}  # of a sum that is kept, conv2's
    assert layers.keys() | within == found.keys()
    for path, ours in layers.items():
        check("parity, UNet", ours, found[path])
    check("parity, UNet", result.output, output)


# DDPM and progressive distillation, as their ports save them.

DDPM = {
    "church": {"mult": (1, 1, 2, 2, 4, 4), "attention": (4,), "blocks": 2, "size": (32, 32)},
    "cifar": {"mult": (1, 2, 2, 2), "attention": (1,), "blocks": 2, "size": (16, 16)},
    "one level": {"mult": (2,), "attention": (), "blocks": 1, "size": (5, 7)},
    "narrowing": {"mult": (3, 1), "attention": (0, 1), "blocks": 3, "size": (12, 8)},
    "two predictions": {"mult": (1, 2), "outputs": 6, "temb": 40, "size": (10, 6)},
}
DISTILLED = {
    "church128": {"mult": (1, 1, 2, 2, 4), "attention": (2, 3, 4), "blocks": 2, "size": (32, 16)},
    "three blocks": {"mult": (1, 2), "attention": (1,), "blocks": 3, "ch": 64, "size": (8, 12)},
    "narrow heads": {"mult": (1, 2), "attention": (0, 1), "head": 8, "size": (6, 10)},
}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("case", DDPM)
def test_every_layer_of_ddpm_equals_pytorch(case: str, name: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = dict(DDPM[case])
    size = sizes.pop("size")
    network = randomised(UNet(**sizes), seed=len(case))
    path = tmp_path / "ema_diffusion.ckpt"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=name != "reference")  # else legacy
    session = sparsegen.Session(sparsegen.load(path), engine(name))
    compare(session, network, watched(network), noisy(*size), [0.0, 977.0])
    assert bool(computed_by_tiles(session)) == (name == "numba")


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("case", DISTILLED)
def test_every_layer_of_progressive_distillation_equals_pytorch(case: str, name: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = dict(DISTILLED[case])
    size = sizes.pop("size")
    network = randomised(DistilledUNet(**sizes), seed=len(case))
    torch.save({"model": network.state_dict()}, tmp_path / "church128-pd-unet.pth")
    model = sparsegen.load(tmp_path / "church128-pd-unet.pth", head_channels=sizes.get("head", 64))
    session = sparsegen.Session(model, engine(name))
    compare(session, network, watched(network), noisy(*size), [-17.5, 3.25])
    assert bool(computed_by_tiles(session)) == (name == "numba")


def test_the_fused_network_is_the_same(tmp_path: Path) -> None:
    network = randomised(UNet(mult=(1, 2, 3), attention=(1, 2), blocks=2), 4)
    torch.save({"model": {}, "ema": fused(network)}, tmp_path / "fused.pth")
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    plain, joined = (sparsegen.load(tmp_path / f"{name}.pth").parameters() for name in ("plain", "fused"))
    assert plain.keys() == joined.keys()
    assert all(np.array_equal(plain[path].value, joined[path].value) for path in plain)


@pytest.mark.parametrize("times", [[500.0], [12.0, 980.0]])
def test_edits_stay_within_the_same_tolerance(times: list[float], tmp_path: Path) -> None:
    """An edit keeps the norms' statistics, so what equals PyTorch is the edit of everything."""
    network = randomised(UNet(mult=(1, 2), attention=(1,)), 2)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    session = sparsegen.Session(sparsegen.load(tmp_path / "net.pth"), get_backend("numba"))
    x = noisy(16, 16)
    session.run(noisy(16, 16), timestep=times)
    x[:, 3:9, 4:11] += 1
    session.run(x, timestep=times)
    with torch.no_grad():
        theirs = network(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(times)).permute(0, 2, 3, 1).numpy()
    full = session.edit(x, mask=np.ones((16, 16), bool))
    check("parity, UNet", full.output, theirs)


# diffusers.

SMALL: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
FILM = {**SMALL, "resnet_time_scale_shift": "scale_shift"}
RESNET = {
    **SMALL,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
CHURCH = {  # google/ddpm-church-256, a quarter as wide
    "block_out_channels": (32, 32, 64, 64, 128, 128),
    "layers_per_block": 2,
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "the class's defaults, narrower": {"block_out_channels": (32, 64, 64, 96)},
    "church": CHURCH,
    "asymmetric": {**SMALL, "downsample_padding": 0},
    "sines first": {**SMALL, "flip_sin_to_cos": False},
    "frequencies to the last": {**SMALL, "freq_shift": 1},
    "one head": {**SMALL, "attention_head_dim": None},
    "channels that are no multiples": {**SMALL, "block_out_channels": (48, 80), "norm_num_groups": 16},
    "three blocks, two attended levels": {
        **SMALL,
        "layers_per_block": 3,
        "down_block_types": ("AttnDownBlock2D",) * 2,
        "up_block_types": ("AttnUpBlock2D",) * 2,
    },
    "FiLM": FILM,
    "FiLM, a norm in the middle": {**FILM, "attn_norm_num_groups": 32},
    "resampling blocks": RESNET,
    "resampling blocks, FiLM": {**RESNET, "resnet_time_scale_shift": "scale_shift"},
    "no attention in the middle": {**SMALL, "add_attention": False},
    "a variance too, long time": {**SMALL, "out_channels": 6, "time_embedding_dim": 200},
    "grey": {**SMALL, "in_channels": 1, "out_channels": 1},
}


def renamed(name: str, levels: int) -> str:
    """Our path of a module of diffusers."""
    for pattern, ours in (
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"_blocks\.(\d+)\.resnets\.", r".\1.block."),
        (r"_blocks\.(\d+)\.attentions\.", r".\1.attn."),
        (r"_blocks\.(\d+)\.(down|up)samplers\.0", r".\1.\2sample"),
    ):
        name = re.sub(pattern, ours, name)
    return re.sub(r"^up\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)


def watched_diffusers(network: Any) -> dict[str, np.ndarray]:
    """As `torch_ddpm.watched`, for a `UNet2DModel`."""
    found: dict[str, np.ndarray] = {}

    def keep(path: str, value: Any) -> None:
        found[path] = value.permute(0, 2, 3, 1).numpy()

    def output_of(path: str, module: Any) -> None:
        module.register_forward_hook(lambda _module, _inputs, output: keep(path, output))

    def input_of(path: str, module: Any) -> None:
        module.register_forward_pre_hook(lambda _module, inputs: keep(path, inputs[0]))

    def block(path: str, module: Any) -> None:
        output_of(f"{path}.conv2", module)
        input_of(f"{path}.conv1", module.norm2)
        if module.conv_shortcut is not None:
            output_of(f"{path}.nin_shortcut", module.conv_shortcut)
        if module.down:
            input_of(f"{path}.pool", module.conv1)
            # called twice: of the block's input, and of the activated norm, which comes second
            module.downsample.register_forward_hook(
                lambda _module, _inputs, output: keep(
                    f"{path}.pool_shortcut" if f"{path}.pool_shortcut" not in found else f"{path}.pool",
                    output,
                )
            )

    def attention(path: str, module: Any) -> None:
        flat: dict[str, Any] = {}
        for part in "qkv":
            getattr(module, f"to_{part}").register_forward_hook(
                lambda _module, _inputs, output, part=part: flat.update({part: output})
            )
        module.to_out[0].register_forward_pre_hook(lambda _module, inputs: flat.update(attend=inputs[0]))

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            keep(f"{path}.proj_out", output)
            for part, value in flat.items():  # [N, H W, C]
                keep(f"{path}.{part}", value.transpose(1, 2).reshape(output.shape))

        module.register_forward_hook(hook)

    for name, module in network.named_modules():
        path = renamed(name, len(network.down_blocks))
        kind = type(module).__name__
        if kind == "ResnetBlock2D":
            block(path, module)
        elif kind == "Attention":
            attention(path, module)
        elif kind in ("Downsample2D", "Upsample2D") and module.use_conv:
            output_of(f"{path}.conv", module)
        elif name in ("conv_in", "conv_out"):
            output_of(name, module)
    return found


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_every_layer_of_diffusers_unet(case: str, name: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    network = randomised(diffusers.UNet2DModel(**CONFIGURATIONS[case]), seed=len(case))
    network.save_pretrained(tmp_path / "unet", safe_serialization=name != "reference")  # else .bin
    suffix = "bin" if name == "reference" else "safetensors"
    assert (tmp_path / "unet" / f"diffusion_pytorch_model.{suffix}").is_file()
    session = sparsegen.Session(sparsegen.load(tmp_path), engine(name))
    size = (32, 32) if case == "church" else (8, 16)
    x = noisy(*size, channels=network.config.in_channels)
    compare(session, network, watched_diffusers(network), x, [3.0, 977.0])


def test_names_of_old(tmp_path: Path) -> None:
    """Files from before diffusers 0.17 name attention's matrices otherwise, older ones the downsampling too."""
    diffusers = pytest.importorskip("diffusers")
    network = randomised(diffusers.UNet2DModel(**CHURCH), 5)
    network.save_pretrained(tmp_path, safe_serialization=False)
    path = tmp_path / "diffusion_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    for new, old in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
        ("downsamplers.0.conv", "downsamplers.0.op"),
    ):
        assert any(new in name for name in state)
        state = {name.replace(new, old): value for name, value in state.items()}
    torch.save(state, path)
    session = sparsegen.Session(sparsegen.load(tmp_path), get_backend("numba"))
    compare(session, network, watched_diffusers(network), noisy(32, 32), [100.0, 400.0])


def test_a_converted_folder_computes_the_same_bits(tmp_path: Path) -> None:
    from sparsegen.loading import save

    diffusers = pytest.importorskip("diffusers")
    network = randomised(diffusers.UNet2DModel(**RESNET), 6)
    network.save_pretrained(tmp_path / "net")
    model = sparsegen.load(tmp_path / "net")
    save(model, tmp_path / "own.safetensors")
    x = noisy(16, 16)
    outputs = [
        sparsegen.Session(each, get_backend("numba")).run(x, timestep=321).output
        for each in (model, sparsegen.load(tmp_path / "own.safetensors"))
    ]
    assert np.array_equal(*outputs)
