"""Parity: equal networks agree in every layer, and an error planted in PyTorch's is found, with its layer and cause."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsegen
from sparsegen.backends import Backend
from sparsegen.errors import InputError, ShapeError
from sparsegen.models.base import Model
from sparsegen.tools.parity import Parity, Reference, record
from sparsegen.weights import read_checkpoint, write_safetensors

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402  (keeps the order below the skip)

from tests.oracles import torch_ddpm, torch_spade  # noqa: E402  (need PyTorch)
from tests.oracles.torch_pd import DistilledUNet  # noqa: E402  (need PyTorch)

pytestmark = pytest.mark.torch


def saved(network: Any, path: Path, **settings: Any) -> Model:
    torch.save(network.state_dict(), path)
    return sparsegen.load(path, **settings)


@cache
def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def labels() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 5, (8, 16)).repeat(4, 0).repeat(4, 1)


def ddpm() -> Any:
    return torch_ddpm.randomised(torch_ddpm.UNet(mult=(1, 2), attention=(1,)), 2)


def pd() -> Any:
    return torch_ddpm.randomised(DistilledUNet(mult=(1, 2), attention=(1,), ch=32, head=16), 5)


def spade(**options: Any) -> Any:
    return torch_spade.randomised(1, **options)


# -- networks that are equal -----------------------------------------------------------------------------


def test_every_layer_of_gaugan_agrees_dense_and_edited(tmp_path: Path, backend: Backend) -> None:
    net = spade(spectral=True)
    model = saved(net, tmp_path / "net.pth")
    edited = labels()
    edited[9:14, 20:31] = 2
    found = sparsegen.parity(model, net, labels(), edited=edited, policy="exact", backend=backend)
    assert found.agrees, found
    assert found.first_divergent is None and not found.causes
    assert [each.path for each in found.layers if each.missing] == []
    assert {"fc", "up_3.norm_s.mlp_gamma_beta", "conv_img"} < {each.path for each in found.layers}
    assert found.edit is not None and found.edit.area == pytest.approx(5 * 11 / (32 * 64), abs=0.01)
    # fixed statistics and the exact policy: the sparse edit is PyTorch's dense run of the edited labels
    assert max(found.edit.inside.relative, found.edit.outside.relative) < found.tolerance
    assert all(max(part.relative for part in each) < found.tolerance for each in found.edit.layers.values())


def test_layers_of_a_start_from_a_latent_vector_agree(tmp_path: Path) -> None:
    net = spade(z_dim=8, layers="more", size=(64, 128), norm="instance")
    model = saved(net, tmp_path / "net.pth", num_upsampling_layers="more")
    found = sparsegen.parity(model, net, labels().repeat(2, 0).repeat(2, 1), z=noise(8), backend="reference")
    assert found.agrees and not any(each.missing for each in found.layers)


def test_every_layer_of_ddpm_agrees_and_an_approximate_edit_does_not(
    tmp_path: Path, backend: Backend
) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    x = noise(2, 16, 16, 3)
    edited = x.copy()
    edited[:, 3:9, 4:11] += 1
    found = sparsegen.parity(
        model, net, x, edited=edited, policy="paper", timestep=[3.0, 977.0], backend=backend
    )
    assert found.agrees, found
    assert not any(each.missing for each in found.layers)
    assert [each.path for each in found.layers][:2] == ["temb", "down.0.block.0.temb_proj"]
    # its norms keep the statistics of the original
    assert found.edit is not None and found.edit.outside.relative > 1e-3


@pytest.mark.parametrize("times", [[-17.5, 3.25], [3.25]], ids=["a time for each", "one time"])
def test_every_layer_of_progressive_distillation_agrees(tmp_path: Path, times: list[float]) -> None:
    net = pd()
    model = saved(net, tmp_path / "net.pth", head_channels=16)
    found = sparsegen.parity(model, net, noise(2, 8, 12, 3), logsnr=times, backend="reference")
    assert found.agrees and not any(each.missing for each in found.layers), found


def test_every_layer_of_diffusers_agrees(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    from tests.models.test_parity_diffusion import CONFIGURATIONS

    for case in ("FiLM, a norm in the middle", "resampling blocks"):
        net = torch_ddpm.randomised(diffusers.UNet2DModel(**CONFIGURATIONS[case]), 4)
        net.save_pretrained(tmp_path / case)
        model = sparsegen.load(tmp_path / case)
        found = sparsegen.parity(model, net, noise(1, 16, 16, 3), timestep=77.0, backend="reference")
        assert found.agrees and not any(each.missing for each in found.layers), found


def test_a_layer_is_named_as_pytorch_names_it_too(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    from tests.models.test_parity_diffusion import CONFIGURATIONS

    net = torch_ddpm.randomised(diffusers.UNet2DModel(**CONFIGURATIONS["FiLM, a norm in the middle"]), 4)
    net.save_pretrained(tmp_path / "net")
    model = sparsegen.load(tmp_path / "net")
    net.conv_in.bias.data += 1
    golden = tmp_path / "golden.safetensors"
    made = sparsegen.parity(
        model, net, noise(1, 16, 16, 3), timestep=77.0, backend="reference", golden=golden
    )
    again = sparsegen.parity(model, golden, backend="reference")
    for found in (made, again):
        modules = {each.path: each.module for each in found.layers}
        assert modules["down.0.block.0.conv1"] == "down_blocks.0.resnets.0.conv1"
        assert found.verdict().startswith("conv_in is the first layer")  # both name it alike
        named = {each.named for each in found.layers}
        assert "down.0.block.0.conv1 (down_blocks.0.resnets.0.conv1 in PyTorch)" in named
        assert "<td>down_blocks.0.resnets.0.conv1</td>" in found.html()
        assert found.as_json()["layers"][-1]["module"] == "conv_out"


@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear projections"])
def test_every_layer_of_stable_diffusion_agrees(linear: bool) -> None:
    pytest.importorskip("diffusers")
    from tests.models.test_stable_diffusion import UNET
    from tests.oracles.sd_models import unets

    net, model = unets(UNET, linear=linear)
    found = sparsegen.parity(
        model, net, noise(2, 16, 12, 4), timestep=500.0, text=noise(15, 24), backend="reference"
    )
    assert found.agrees and not any(each.missing for each in found.layers), found
    assert "down.0.attn.0.block.attn2.attend" in {each.path for each in found.layers}


def test_every_layer_of_an_autoencoder_and_a_text_encoder_agrees(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from sparsegen.models import VAEConfig
    from tests.models.test_stable_diffusion import TEXT
    from tests.oracles.diffusers_networks import autoencoder
    from tests.oracles.sd_models import encoders

    net, model = encoders(TEXT)
    tokens = np.random.default_rng(0).integers(0, TEXT.vocabulary, (2, TEXT.tokens))
    found = [sparsegen.parity(model, net, tokens, backend="reference")]
    both = torch_ddpm.randomised(autoencoder(VAEConfig(levels=(32, 64), blocks=1, groups=16)), 3)
    both.save_pretrained(tmp_path / "vae")
    models = sparsegen.load_bundle(tmp_path / "vae").models
    found.append(sparsegen.parity(models["encoder"], both, noise(1, 16, 16, 3), backend="reference"))
    found.append(sparsegen.parity(models["decoder"], both, noise(1, 8, 8, 4), backend="reference"))
    for each in found:
        assert each.agrees and not any(layer.missing for layer in each.layers), each


# -- errors that are planted -----------------------------------------------------------------------------


def bilinear(aligned: bool) -> Callable[..., Any]:
    return lambda x, *_: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=aligned)


def transposed(layer: Any) -> None:
    layer.weight.data = layer.weight.data.transpose(0, 1).contiguous()


def exchanged(one: Any, other: Any) -> None:
    one.weight.data, other.weight.data = other.weight.data, one.weight.data
    one.bias.data, other.bias.data = other.bias.data, one.bias.data


def without_bias(layer: Any) -> None:
    layer.bias.data.zero_()


def norms(net: Any, kind: Any, **settings: Any) -> None:
    for module in net.modules():
        if isinstance(module, kind):
            for name, value in settings.items():
                setattr(module, name, value)


def forward_of(module: Any, forward: Callable[..., Any]) -> None:
    module.forward = lambda *given: forward(module, *given)


def padded_on_the_other_side(self: Any, x: Any, _temb: Any) -> Any:
    return self.conv(F.pad(x, (1, 0, 1, 0)))


def upsampled_bilinearly(self: Any, x: Any, _temb: Any) -> Any:
    return self.conv(bilinear(False)(x))


def without_time(self: Any, x: Any, temb: Any) -> Any:
    h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
    return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


def with_relu(self: Any, x: Any, temb: Any) -> Any:
    h = self.conv1(F.relu(self.norm1(x))) + self.temb_proj(F.silu(temb))[:, :, None, None]
    return self.conv2(F.silu(self.norm2(h))) + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


def without_residual(self: Any, x: Any) -> Any:
    h = self.norm(x)
    return self.proj_out(torch_ddpm.attend(self.q(h), self.k(h), self.v(h), heads=1))


def of_two_heads(self: Any, x: Any) -> Any:
    h = self.norm(x)
    return x + self.proj_out(torch_ddpm.attend(self.q(h), self.k(h), self.v(h), heads=2))


def cosines_first(self: Any, time: Any) -> Any:
    waves = torch_ddpm.sinusoids(time, self.length)
    return self.dense[1](F.silu(self.dense[0](torch.cat(waves.chunk(2, 1)[::-1], 1))))


DDPM: dict[str, tuple[Callable[[Any], None], str, str]] = {
    "a convolution's weight is transposed": (
        lambda net: transposed(net.up[1].upsample.conv),
        "up.1.upsample.conv",
        "transposed weight",
    ),
    "a key's matrix is transposed": (
        lambda net: transposed(net.mid.attn_1.k),
        "mid.attn_1.k",
        "transposed weight",
    ),
    "the time's matrix is transposed": (
        lambda net: transposed(net.temb.dense[1]),
        "temb",
        "transposed weight",
    ),
    "a kernel is flipped": (
        lambda net: setattr(net.conv_out.weight, "data", net.conv_out.weight.data.flip(2, 3)),
        "conv_out",
        "flipped kernel",
    ),
    "eps of one norm": (
        lambda net: norms(net.mid.block_1.norm2, torch.nn.GroupNorm, eps=1e-3),
        "mid.block_1.conv2",
        "eps",
    ),
    "eps of every norm, a tenth of the default": (
        lambda net: norms(net, torch.nn.GroupNorm, eps=1e-4),
        "down.0.block.0.conv1",
        "eps",
    ),
    "padding on the other side": (
        lambda net: forward_of(net.down[0].downsample, padded_on_the_other_side),
        "down.0.downsample.conv",
        "padding",
    ),
    "queries for keys": (
        lambda net: exchanged(net.mid.attn_1.q, net.mid.attn_1.k),
        "mid.attn_1.q",
        "q/k/v order",
    ),
    "fewer groups": (
        lambda net: norms(net, torch.nn.GroupNorm, num_groups=16),
        "down.0.block.0.conv1",
        "group count",
    ),
    "bilinear upsampling": (
        lambda net: forward_of(net.up[1].upsample, upsampled_bilinearly),
        "up.1.upsample.conv",
        "upsampling",
    ),
    "no bias": (lambda net: without_bias(net.down[1].block[0].conv2), "down.1.block.0.conv2", "bias"),
    "no bias of a time's projection": (
        lambda net: without_bias(net.mid.block_2.temb_proj),
        "mid.block_2.temb_proj",
        "bias",
    ),
    "another activation": (
        lambda net: forward_of(net.mid.block_2, with_relu),
        "mid.block_2.conv1",
        "activation",
    ),
    "no time": (lambda net: forward_of(net.mid.block_2, without_time), "mid.block_2.conv1", "time"),
    "no residual": (
        lambda net: forward_of(net.mid.attn_1, without_residual),
        "mid.attn_1.proj_out",
        "residual",
    ),
    "more heads": (lambda net: forward_of(net.mid.attn_1, of_two_heads), "mid.attn_1.attend", "heads"),
    "cosines before sines": (lambda net: forward_of(net.temb, cosines_first), "temb", "time embedding"),
    "other weights": (
        lambda net: net.conv_in.weight.data.add_(0.01 * torch.randn(net.conv_in.weight.shape)),
        "conv_in",
        "other weights",
    ),
}


def test_a_silu_may_be_written_as_a_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pesser's port has it: what follows the embedding of time is x · sigmoid(x)."""
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    monkeypatch.setattr(F, "silu", lambda x: x * torch.sigmoid(x))
    found = sparsegen.parity(model, net, noise(1, 16, 16, 3), timestep=8.0, backend="reference")
    assert found.agrees and not any(each.missing or each.remark for each in found.layers), found


def check_found(found: Parity, path: str, kind: str) -> None:
    """The layer is named, and the first cause that explains it is of that kind."""
    assert not found.agrees
    assert found.first_divergent is not None and found.first_divergent.path == path, found
    assert found.causes[0].explains and found.causes[0].kind == kind, found
    assert found.causes[0].layer == path and found.causes[0].after < found.tolerance < found.causes[0].before
    assert path in found.verdict() and found.causes[0].hypothesis in found.verdict()


@pytest.mark.parametrize("case", DDPM)
def test_an_error_planted_in_ddpm_is_found_with_its_cause(tmp_path: Path, case: str) -> None:
    net, (plant, path, kind) = ddpm(), DDPM[case]
    model = saved(net, tmp_path / "net.pth")
    torch.manual_seed(0)
    with torch.no_grad():
        plant(net)
    golden = tmp_path / "golden.safetensors"
    found = sparsegen.parity(
        model, net, noise(1, 16, 16, 3), timestep=400.0, backend="reference", golden=golden
    )
    check_found(found, path, kind)
    again = sparsegen.parity(model, golden, backend="reference")
    assert again.first_divergent is not None and again.first_divergent.path == path
    if kind != "other weights":  # a golden file has no weights
        check_found(again, path, kind)


def exchanged_order(self: Any, x: Any) -> Any:
    k, q, v = self.qkv(self.norm(x)).chunk(3, dim=1)
    return x + self.proj_out(torch_ddpm.attend(q, k, v, heads=self.heads))


def interleaved_by_head(self: Any, x: Any) -> Any:
    n, c, h, w = x.shape
    fused = self.qkv(self.norm(x)).reshape(n, self.heads, 3, c // self.heads, h, w)
    q, k, v = (fused[:, :, i].reshape(n, c, h, w) for i in range(3))
    return x + self.proj_out(torch_ddpm.attend(q, k, v, heads=self.heads))


@pytest.mark.parametrize("forward", [exchanged_order, interleaved_by_head])
def test_another_order_of_a_fused_matrix_is_found(tmp_path: Path, forward: Callable[..., Any]) -> None:
    """The module's matrix is taken apart by the tables; that PyTorch takes it apart otherwise shows behind it."""
    net = pd()
    model = saved(net, tmp_path / "net.pth", head_channels=16)
    forward_of(net.mid.attn_1, forward)
    found = sparsegen.parity(model, net, noise(1, 8, 12, 3), logsnr=2.0, backend="reference")
    check_found(found, "mid.attn_1.attend", "q/k/v order")


SPADE: dict[str, tuple[dict[str, Any], Callable[[Any], None], str, str]] = {
    "bilinear upsampling": (
        {},
        lambda net: setattr(net, "up", bilinear(False)),
        "G_middle_0.conv_0",
        "upsampling",
    ),
    "bilinear upsampling with corners aligned": (
        {},
        lambda net: setattr(net, "up", bilinear(True)),
        "G_middle_0.conv_0",
        "upsampling",
    ),
    "eps of batch norm": ({}, lambda net: norms(net, torch.nn.BatchNorm2d, eps=1e-3), "head_0.conv_0", "eps"),
    "no bias of labels": ({}, lambda net: without_bias(net.fc), "fc", "bias"),
    "gamma for beta": (
        {},
        lambda net: exchanged(net.up_1.norm_0.mlp_gamma, net.up_1.norm_0.mlp_beta),
        "up_1.norm_0.mlp_gamma_beta",
        "gamma and beta",
    ),
}


@pytest.mark.parametrize("case", SPADE)
def test_an_error_planted_in_gaugan_is_found_with_its_cause(
    tmp_path: Path, case: str, backend: Backend
) -> None:
    options, plant, path, kind = SPADE[case]
    net = spade(**options)
    model = saved(net, tmp_path / "net.pth")
    with torch.no_grad():
        plant(net)
    check_found(sparsegen.parity(model, net, labels(), backend=backend), path, kind)


@pytest.mark.parametrize("missing", ["in PyTorch", "in the model"])
def test_a_missing_spectral_norm_is_found(tmp_path: Path, missing: str) -> None:
    net, plain = spade(spectral=True), spade()
    state = {name.replace("weight_orig", "weight"): each for name, each in net.state_dict().items()}
    plain.load_state_dict({name: each for name, each in state.items() if not name.endswith(("_u", "_v"))})
    models = saved(net, tmp_path / "net.pth"), saved(plain, tmp_path / "plain.pth")
    model, module = (models[0], plain) if missing == "in PyTorch" else (models[1], net)
    found = sparsegen.parity(model, module, labels(), backend="reference")
    check_found(found, "head_0.conv_0", "spectral norm")


def test_a_wrong_eps_of_a_layer_norm_and_a_transposed_projection_are_found() -> None:
    pytest.importorskip("diffusers")
    from tests.models.test_stable_diffusion import UNET
    from tests.oracles.sd_models import unets

    net, model = unets(UNET, seed=8)
    block = net.down_blocks[0].attentions[0].transformer_blocks[0]
    given: dict[str, Any] = {"timestep": 500.0, "text": noise(15, 24), "backend": "reference"}
    x = noise(1, 16, 12, 4)
    at = "down.0.attn.0.block"
    block.norm3.eps = 1e-2
    check_found(sparsegen.parity(model, net, x, **given), f"{at}.ff.proj", "eps")
    block.norm3.eps = 1e-5
    with torch.no_grad():
        transposed(block.attn1.to_out[0])
    check_found(sparsegen.parity(model, net, x, **given), f"{at}.attn1.to_out", "transposed weight")
    transposed_back = sparsegen.parity(model, net, x, tolerance=0.9, **given)
    assert transposed_back.tolerance == 0.9


def test_keys_for_values_of_a_text_are_found() -> None:
    pytest.importorskip("diffusers")
    from tests.models.test_stable_diffusion import UNET
    from tests.oracles.sd_models import unets

    net, model = unets(UNET, seed=8)
    attention = net.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_k, attention.to_v = attention.to_v, attention.to_k
    found = sparsegen.parity(
        model, net, noise(1, 16, 12, 4), timestep=500.0, text=noise(15, 24), backend="reference"
    )
    # (their weights are found by their names, so they are noted; what is computed of them is exchanged)
    check_found(found, "mid.attn_1.block.attn2.attend", "q/k/v order")
    assert any("attn2.to_k" in path for path in found.other_weights)


def test_a_missing_bias_of_a_start_from_a_latent_vector_is_found(tmp_path: Path) -> None:
    net = spade(z_dim=8, layers="more", size=(64, 128))
    model = saved(net, tmp_path / "net.pth", num_upsampling_layers="more")
    with torch.no_grad():
        without_bias(net.fc)
    found = sparsegen.parity(model, net, labels().repeat(2, 0).repeat(2, 1), z=noise(8), backend="reference")
    check_found(found, "fc", "bias")


def test_several_errors_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    with torch.no_grad():
        without_bias(net.conv_out)
        transposed(net.mid.attn_1.v)
    found = sparsegen.parity(model, net, noise(1, 16, 16, 3), timestep=400.0, backend="reference")
    assert [each.path for each in found.divergent] == ["mid.attn_1.v", "conv_out"]
    layers = {each.path: each for each in found.layers}
    between = layers["up.0.block.0.conv1"]
    assert between.inherited is not None and between.inherited.relative > 1e-2
    assert between.own is not None and between.own.relative < found.tolerance
    assert "2 of 54 layers" in found.verdict()


def test_a_place_is_the_worst_pixel_and_its_tile(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")

    def damaged(_module: Any, _inputs: Any, output: Any) -> Any:
        output[0, 5, 6, 11] += 3
        return output

    net.conv_in.register_forward_hook(damaged)
    found = sparsegen.parity(model, net, noise(1, 16, 16, 3), timestep=1.0, backend="reference")
    first = found.first_divergent
    assert first is not None and first.path == "conv_in" and first.own is not None
    assert (first.own.worst, first.own.tile) == ((0, 6, 11, 5), (0, 1, 2))
    assert first.own.theirs - first.own.ours == pytest.approx(3, abs=1e-5)
    assert not any(cause.explains for cause in found.causes) and "No cause was found" in found.verdict()


# -- golden files ----------------------------------------------------------------------------------------


def test_a_golden_file_is_checked_without_pytorch(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    norms(net, torch.nn.GroupNorm, num_groups=16)
    x = noise(1, 16, 16, 3)
    golden = tmp_path / "golden.safetensors"
    beside = sparsegen.parity(
        model, net, x, edited=x + (x > 2), timestep=30.0, backend="reference", golden=golden
    )
    code = f"""
import sys
sys.modules["torch"] = None
import sparsegen
found = sparsegen.parity(sparsegen.load({str(tmp_path / "net.pth")!r}), {str(golden)!r}, backend="reference")
print(found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in str(beside).splitlines() if "other weights" not in line]
    assert [line.partition(" (ddpm)")[2] or line for line in done.stdout.splitlines()] == [
        line.partition(" (ddpm)")[2] or line for line in lines
    ]


def test_a_reference_reads_back_from_its_file(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    made = record(model, net, noise(1, 8, 8, 3), timestep=9.0)
    made.save(tmp_path / "golden.safetensors")
    read = Reference.load(tmp_path / "golden.safetensors")
    assert read.original.layers.keys() == made.original.layers.keys()
    assert all(
        np.array_equal(read.original.layers[path], each) for path, each in made.original.layers.items()
    )
    assert (read.facts, read.weights, read.made_by) == (made.facts, made.weights, made.made_by)
    assert made.facts["mid.block_1.norm1"]["num_groups"] == 32
    assert read.edited is None and not read.parameters


def test_files_that_are_no_golden_files_are_refused(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    with pytest.raises(InputError, match=r"is not a golden file; make one"):
        sparsegen.parity(model, tmp_path / "net.pth")
    made = record(model, net, noise(1, 8, 8, 3), timestep=9.0)
    made.save(tmp_path / "golden.safetensors")
    with pytest.raises(InputError, match="timestep is given beside a golden file"):
        sparsegen.parity(model, tmp_path / "golden.safetensors", timestep=3)
    other = saved(spade(), tmp_path / "spade.pth")
    with pytest.raises(InputError, match="golden file is of family 'ddpm', the model of 'gaugan'"):
        sparsegen.parity(other, tmp_path / "golden.safetensors")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("input.labels", lambda each: each * 0 + 9, r"label 9 at row 0, column 0.*has labels 0 to 4"),
        ("input.labels", lambda each: each.astype(np.float32), r"expected \[H, W\] or \[N, H, W\]"),
        ("input.labels", lambda each: each.repeat(2, 3), r"the model reads int32 .*; make it again"),
        ("input.labels", lambda each: each[:, :5], "the label map is 5×64; this model"),
        ("input.labels", lambda each: each[0], r"each \[N, H, W, C\]; make it again"),
        ("input.labels", lambda each: None, "do not fit the model"),
        ("condition.z", lambda each: np.zeros((1, 8), np.float32), "starts from labels; omit it"),
        ("output", lambda each: None, "is a damaged golden file"),
        ("output", lambda each: each[:, :4], "the model's output is"),
        ("edited.input.labels", lambda each: each[:, :32, :32], "edited input has another size"),
        ("edited.input.labels", lambda each: each * 0 - 5, "label -5 at row 0"),
    ],
)
def test_a_forged_golden_file_is_refused_before_a_kernel_reads_it(
    tmp_path: Path, name: str, change: Callable[[Any], Any], message: str
) -> None:
    net = spade()
    model = saved(net, tmp_path / "net.pth")
    edited = labels()
    edited[:4] = 1
    record(model, net, labels(), edited=edited).save(tmp_path / "golden.safetensors")
    with read_checkpoint(tmp_path / "golden.safetensors") as file:
        arrays = {key: np.array(each.numpy()) for key, each in file.tensors.items()}
        metadata = {key: str(each) for key, each in file.metadata.items()}
    changed = change(arrays.get(name))
    arrays = {key: each for key, each in arrays.items() if key != name} | (
        {} if changed is None else {name: changed}
    )
    write_safetensors(tmp_path / "forged.safetensors", arrays, metadata)
    with pytest.raises((InputError, ShapeError), match=message):
        sparsegen.parity(model, tmp_path / "forged.safetensors", backend="numba")


def test_forged_settings_and_shapes_in_a_golden_file_do_no_harm(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    norms(net, torch.nn.GroupNorm, num_groups=16)
    made = record(model, net, noise(1, 8, 8, 3), timestep=9.0)
    for facts in made.facts.values():
        facts.update(num_groups=0, eps=-1.0)
    made.original.layers["mid.attn_1.q"] = np.zeros((1, 2, 3, 4), np.float32)
    made.save(tmp_path / "golden.safetensors")
    found = sparsegen.parity(model, tmp_path / "golden.safetensors", backend="numba")
    check_found(found, "down.0.block.0.conv1", "group count")
    (layer,) = (each for each in found.layers if each.missing)
    assert layer.path == "mid.attn_1.q" and "the reference has [1, 2, 3, 4] there, the model" in layer.missing
    assert [each.path for each in found.layers if each.ours] == ["mid.attn_1.attend"]
    assert "~ mid.attn_1.attend" in found.table() or "! mid.attn_1.attend" in found.table()


# -- modules that do not fit -----------------------------------------------------------------------------


def test_what_is_no_module_or_another_network_is_refused(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    x = noise(1, 8, 8, 3)
    with pytest.raises(
        InputError, match=r"module is int, expected a torch.nn.Module or the path of a golden file"
    ):
        sparsegen.parity(model, 3, x, timestep=1)
    with pytest.raises(InputError, match="no image is given"):
        sparsegen.parity(model, net)
    with pytest.raises(InputError, match=r"cannot be told by their names.*give names="):
        sparsegen.parity(model, torch.nn.Linear(3, 3), x, timestep=1)
    with pytest.raises(InputError, match="the module is a gaugan"):
        sparsegen.parity(model, spade(), x, timestep=1)
    narrow = torch_ddpm.randomised(torch_ddpm.UNet(mult=(1, 1), attention=(1,)), 2)
    with pytest.raises(InputError, match="does not fit the model"):
        sparsegen.parity(model, narrow, x, timestep=1)
    with pytest.raises(InputError, match="the model has no layer 'conv_inn'"):
        sparsegen.parity(model, net, x, timestep=1, names={"conv_inn": "conv_in"})
    with pytest.raises(InputError, match="the module returned NoneType, expected a tensor"):
        sparsegen.parity(model, net, x, timestep=1, call=lambda module, inputs: None)


def test_layers_are_named_by_hand_and_the_module_called_by_hand(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inside = net.conv_in, net

        def forward(self, both: Any) -> Any:
            return {"out": self.inside(*both)}

    def call(module: Any, inputs: Any) -> Any:
        x = torch.tensor(inputs.canvases["x"].transpose(0, 3, 1, 2))
        return module((x, torch.tensor(inputs.conditions["timestep"])))["out"]

    found = sparsegen.parity(
        model,
        Wrapped(),
        noise(1, 16, 16, 3),
        timestep=[5.0],
        backend="reference",
        call=call,
        names={"conv_in": "first", "mid.block_1.conv2": "inside.mid.block_1.conv2"},
    )
    compared = [each.path for each in found.layers if not each.missing]
    # the residual of the block, and the output, need no name
    assert compared == ["conv_in", "down.1.attn.0.proj_out", "mid.block_1.conv2", "conv_out"]
    assert found.agrees
    assert "Without counterpart: 50 layers, the first temb" in found.verdict()


def test_a_layer_that_pytorch_computes_without_its_module_is_listed_as_missing(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")

    def functional(self: Any, x: Any) -> Any:
        h = self.norm(x)
        q = F.conv2d(h, self.q.weight, self.q.bias)
        return x + self.proj_out(torch_ddpm.attend(q, self.k(h), self.v(h), heads=1))

    forward_of(net.mid.attn_1, functional)
    found = sparsegen.parity(model, net, noise(1, 16, 16, 3), timestep=1.0, backend="reference")
    assert {each.path: each.missing for each in found.layers if each.missing} == {
        "mid.attn_1.q": "PyTorch does not call mid.attn_1.q"
    }
    (reader,) = (each for each in found.layers if each.ours)
    assert (reader.path, reader.ours) == ("mid.attn_1.attend", ("mid.attn_1.q",))
    assert found.agrees and "~ mid.attn_1.attend" in found.table()
    assert "Without counterpart: 1 layer, the first mid.attn_1.q" in found.verdict()


def test_a_module_that_is_called_twice_is_compared_by_its_first_call(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    forward_of(net.mid.attn_1, lambda self, x: (type(self).forward(self, x), type(self).forward(self, x))[0])
    found = sparsegen.parity(model, net, noise(1, 16, 16, 3), timestep=1.0, backend="reference")
    assert found.agrees
    (layer,) = (each for each in found.layers if each.path == "mid.attn_1.q")
    assert layer.remark == "PyTorch calls mid.attn_1.q more than once; the first call is compared"


def test_a_module_is_left_as_it_was(tmp_path: Path) -> None:
    net = spade(spectral=True)
    model = saved(net, tmp_path / "net.pth")
    net.train()
    net.up_0.eval()
    modes = [module.training for module in net.modules()]
    before = {name: each.clone() for name, each in net.state_dict().items()}
    sparsegen.parity(model, net, labels(), backend="reference")
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(before[name], each) for name, each in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_an_error_of_the_module_is_the_users_and_leaves_no_hooks(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    forward_of(net.mid.block_2, lambda *_: torch.zeros(3) @ torch.zeros(4))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        sparsegen.parity(model, net, noise(1, 16, 16, 3), timestep=1.0, backend="reference")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


# -- reports ---------------------------------------------------------------------------------------------


def test_reports_say_the_same_as_text_json_and_html(tmp_path: Path) -> None:
    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    with torch.no_grad():
        without_bias(net.mid.attn_1.proj_out)
    x = noise(1, 16, 16, 3)
    found = sparsegen.parity(model, net, x, edited=x + (x > 2), timestep=30.0, backend="reference")
    found.write_json(tmp_path / "parity.json")
    found.write_html(tmp_path / "parity.html")
    read = json.loads((tmp_path / "parity.json").read_text("utf-8"))
    assert read == found.as_json()
    assert read["first_divergent"] == "mid.attn_1.proj_out" and not read["agrees"]
    assert read["causes"][0]["kind"] == "bias"
    text = str(found)
    assert found.verdict() in text and "→ mid.attn_1.proj_out" in text
    html = (tmp_path / "parity.html").read_text("utf-8")
    for each in found.layers:
        assert f'<th scope="row">{each.path}</th>' in html
    inside = html.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert json.loads(inside) == read
    assert 'aria-label="Relative errors of 54 layers' in html
    assert (
        "http:" not in html.replace("http://www.w3.org", "") and "https:" not in html and "src=" not in html
    )


def test_the_page_of_a_report_is_well_formed(tmp_path: Path) -> None:
    from tests.tools.test_page import Tree

    net = ddpm()
    model = saved(net, tmp_path / "net.pth")
    with torch.no_grad():
        without_bias(net.mid.attn_1.proj_out)
    found = sparsegen.parity(model, net, noise(1, 16, 16, 3), timestep=30.0, backend="reference")
    tree = Tree(found.html())
    assert [tag for tag, _ in tree.elements].count("svg") == 1
    # lines are told apart by their dashes, not by colours
    styles = [attributes.get("stroke-dasharray") for tag, attributes in tree.elements if tag == "polyline"]
    assert styles == [None, "8 4"]
    colours = [attributes.get("stroke") for _, attributes in tree.elements if "stroke" in attributes]
    assert set(colours) == {"currentColor"}
