"""Checkpoints of every family become the same parameters; whatever does not fit is said all at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsegen.weights import (
    FAMILIES,
    Checkpoint,
    CheckpointError,
    Origin,
    Rule,
    convert,
    identify,
    native_metadata,
    read_checkpoint,
    write_safetensors,
)
from sparsegen.weights.families.spade import NVLABS_SPADE, SIGE_FUSED_SPADE, SIGE_SPADE

Shapes = dict[str, tuple[int, ...]]

NGF, LABELS, HIDDEN = 4, 5, 8


def parameter_shapes(config: Mapping[str, object]) -> Shapes:
    """The GauGAN generator's parameters, written out from the paper's figure and independent of the engine."""
    ngf, labels, hidden, k = (int(config[key]) for key in ("ngf", "semantic_nc", "nhidden", "kernel_size"))
    most = config["num_upsampling_layers"] == "most"
    widths = {"head_0": (16, 16), "G_middle_0": (16, 16), "G_middle_1": (16, 16)}
    widths |= {"up_0": (16, 8), "up_1": (8, 4), "up_2": (4, 2), "up_3": (2, 1)}
    blocks = {name: (inputs * ngf, outputs * ngf) for name, (inputs, outputs) in widths.items()}
    if most:
        blocks["up_4"] = (ngf, ngf // 2)
    shapes: Shapes = {}
    if config["z_dim"]:
        shapes["fc.weight"] = (16 * ngf * int(config["start_cells"]), int(config["z_dim"]))
        shapes["fc.bias"] = shapes["fc.weight"][:1]
    else:
        shapes |= {"fc.weight": (16 * ngf, labels, 3, 3), "fc.bias": (16 * ngf,)}
    for block, (inputs, outputs) in blocks.items():
        middle = min(inputs, outputs)
        shapes[f"{block}.conv_0.weight"] = (middle, inputs, 3, 3)
        shapes[f"{block}.conv_0.bias"] = (middle,)
        shapes[f"{block}.conv_1.weight"] = (outputs, middle, 3, 3)
        shapes[f"{block}.conv_1.bias"] = (outputs,)
        norms = {"norm_0": inputs, "norm_1": middle}
        if inputs != outputs:
            shapes[f"{block}.conv_s.weight"] = (outputs, inputs, 1, 1)
            norms["norm_s"] = inputs
        for norm, channels in norms.items():
            at = f"{block}.{norm}"
            if config["norm"] == "batch":
                shapes |= {f"{at}.norm.mean": (channels,), f"{at}.norm.var": (channels,)}
            shapes[f"{at}.mlp_shared.weight"] = (hidden, labels, k, k)
            shapes[f"{at}.mlp_shared.bias"] = (hidden,)
            shapes[f"{at}.mlp_gamma_beta.weight"] = (2 * channels, hidden, k, k)
            shapes[f"{at}.mlp_gamma_beta.bias"] = (2 * channels,)
    last = ngf // 2 if most else ngf
    return shapes | {"conv_img.weight": (3, last, 3, 3), "conv_img.bias": (3,)}


CONFIG = {
    "ngf": NGF,
    "semantic_nc": LABELS,
    "nhidden": HIDDEN,
    "num_upsampling_layers": "normal",
    "norm": "batch",
    "edge_channel": False,
    "z_dim": 0,
    "kernel_size": 3,
    "start_cells": 0,
}


def parameters(config: Mapping[str, object] = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in parameter_shapes(config).items()
    }


def as_sige(made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters under SIGE's `spade` names."""
    state: dict[str, np.ndarray] = {}
    for name, value in made.items():
        if ".mlp_gamma_beta." in name:
            half = len(value) // 2
            state[name.replace("mlp_gamma_beta", "mlp_gamma")] = value[:half].copy()
            state[name.replace("mlp_gamma_beta", "mlp_beta")] = value[half:].copy()
        elif ".norm.mean" in name:
            state[name.replace(".norm.mean", ".param_free_norm.running_mean")] = value
            state[name.replace(".norm.mean", ".param_free_norm.num_batches_tracked")] = np.array(9)
        else:
            name = name.replace(".norm.var", ".param_free_norm.running_var")
            state[name.replace(".mlp_shared.", ".mlp_shared.0.")] = value
    return state


def as_fused(made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters under SIGE's `fused_spade` names: each block's hidden layers in one, norm_0, norm_1, norm_s."""
    state = {name: value for name, value in as_sige(made).items() if ".mlp_" not in name}
    for name, value in made.items():
        if ".mlp_gamma_beta." in name:
            state[name] = value
        elif ".norm_0.mlp_shared." in name:
            others = [name.replace("norm_0", norm) for norm in ("norm_1", "norm_s")]
            rows = [value] + [made[other] for other in others if other in made]
            state[name.replace(".norm_0.mlp_shared.", ".mlp_shared.0.")] = np.concatenate(rows)
    return state


@pytest.fixture
def opened(tmp_path):
    """From a state dict to an open checkpoint of it."""
    checkpoints = []

    def write(state, **metadata):
        path = tmp_path / f"{len(checkpoints)}.safetensors"
        save_file(
            {name: np.ascontiguousarray(value) for name, value in state.items()}, path, metadata or None
        )
        checkpoints.append(read_checkpoint(path))
        return checkpoints[-1]

    yield write
    for checkpoint in checkpoints:
        checkpoint.close()


def same(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        array = found[name]
        assert array.dtype == np.float32 and array.shape == value.shape, name
        assert not array.flags.writeable
        assert np.array_equal(array, value), name


@pytest.mark.parametrize("layers", ["normal", "most"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(("write", "family"), [(as_sige, SIGE_SPADE), (as_fused, SIGE_FUSED_SPADE)])
def test_sige_families(write, family, norm, layers, opened):
    config = {**CONFIG, "num_upsampling_layers": layers, "norm": norm}
    made = parameters(config)
    checkpoint = opened(write(made))
    found, read = identify(checkpoint)
    assert (found.name, found.model, found.prefix, read) == (family.name, "gaugan", "", config)
    same(convert(found, checkpoint, parameter_shapes(read)), made)


@pytest.mark.parametrize("write", [as_sige, as_fused])
def test_a_state_in_memory_is_a_checkpoint_too(write):
    made, state = parameters(), write(parameters())
    checkpoint = Checkpoint.of_arrays("the module", state)
    family, config = identify(checkpoint)
    found = convert(family, checkpoint, parameter_shapes(config))
    same(found, made)
    assert np.shares_memory(found["up_0.conv_0.weight"], state["up_0.conv_0.weight"])
    assert state["up_0.conv_0.weight"].flags.writeable
    del state["up_1.conv_0.weight"]
    less = Checkpoint.of_arrays("the module", state)
    with pytest.raises(CheckpointError, match=r"^the module: does not fit the model"):
        convert(identify(less)[0], less, parameter_shapes(config))


def test_a_parameter_tells_the_keys_that_it_is_made_of(opened):
    family, checkpoint = SIGE_SPADE, opened(as_sige(parameters()))
    found = convert(family, checkpoint, parameter_shapes(CONFIG))
    assert found.origin("fc.bias") == Origin("copy", {"value": "fc.bias"}, None)
    first, second = (f"up_0.norm_0.mlp_{half}.weight" for half in ("gamma", "beta"))
    assert found.origin("up_0.norm_0.mlp_gamma_beta.weight") == Origin(
        "stack", {"first": first, "second": second}, None
    )
    checkpoint = opened(as_fused(parameters()))
    found = convert(SIGE_FUSED_SPADE, checkpoint, parameter_shapes(CONFIG))
    assert found.origin("up_0.norm_1.mlp_shared.bias") == Origin(
        "split", {"value": "up_0.mlp_shared.0.bias"}, (HIDDEN, 2 * HIDDEN)
    )


def test_what_is_only_renamed_is_not_copied(opened):
    checkpoint = opened(as_sige(parameters()))
    family, config = identify(checkpoint)
    found = convert(family, checkpoint, parameter_shapes(config))
    view = checkpoint.tensors["up_0.conv_0.weight"].numpy()
    assert np.shares_memory(found["up_0.conv_0.weight"], view)


@pytest.mark.parametrize(
    ("labels", "layers", "edges"), [(36, "more", True), (184, "normal", True), (151, "normal", False)]
)
def test_the_published_data_sets_are_known_by_their_labels(labels, layers, edges, opened):
    wanted = {**CONFIG, "ngf": 2, "nhidden": 4, "semantic_nc": labels}
    _, config = identify(opened(as_sige(parameters(wanted))))
    assert config == {**wanted, "num_upsampling_layers": layers, "edge_channel": edges}


def test_kernels_of_another_size(opened):
    config = {**CONFIG, "kernel_size": 5}
    made = parameters(config)
    checkpoint = opened(as_sige(made))
    family, read = identify(checkpoint)
    assert read == config
    same(convert(family, checkpoint, parameter_shapes(read)), made)


def test_generators_that_start_from_z(opened):
    config = {**CONFIG, "z_dim": 6, "start_cells": 8}
    made = parameters(config)
    checkpoint = opened(as_sige(made))
    family, read = identify(checkpoint)
    assert read == config
    same(convert(family, checkpoint, parameter_shapes(read)), made)


@pytest.mark.torch
@pytest.mark.parametrize("generation", ["weight_v", "before weight_v", "all of them"])
def test_spectral_norm_of_both_generations_is_what_pytorch_computes(generation, tmp_path):
    torch = pytest.importorskip("torch")
    from tests.oracles.torch_spade import SPADEGenerator

    torch.manual_seed(5)
    network = SPADEGenerator(ngf=NGF, semantic_nc=LABELS, nhidden=HIDDEN, spectral=True).train()
    with torch.no_grad():
        # A step of training, so that u and v belong to the weights.
        network(torch.rand(1, LABELS, 32, 64))
    network.eval()
    with torch.no_grad():
        network(torch.rand(1, LABELS, 32, 64))
    state = dict(network.state_dict())
    computed = {
        f"{name}.weight": module.weight.detach()
        for name, module in network.named_modules()
        if hasattr(module, "weight_orig")
    }
    assert len(computed) == 18
    if generation != "weight_v":
        state |= computed
    if generation == "before weight_v":
        state = {name: value for name, value in state.items() if not name.endswith("weight_v")}
    torch.save(state, tmp_path / "latest_net_G.pth")
    with read_checkpoint(tmp_path / "latest_net_G.pth") as checkpoint:
        family, config = identify(checkpoint)
        assert (family.name, config) == ("nvlabs-spade", CONFIG)
        found = convert(family, checkpoint, parameter_shapes(config))
        for name, wanted in computed.items():
            reference = wanted.numpy()
            # Sigma is summed in another order than PyTorch's: a few units in the last place of float32.
            np.testing.assert_allclose(found[name], reference, rtol=1e-6, atol=0)
        for name in ("fc.weight", "up_3.norm_s.mlp_shared.weight", "conv_img.bias"):
            assert np.array_equal(found[name], state[name.replace("shared.", "shared.0.")].numpy())


@pytest.mark.torch
@pytest.mark.parametrize("trained", [False, True])
def test_spectral_norm_as_a_parametrization_is_what_pytorch_computes(trained, tmp_path):
    """torch.nn.utils.parametrizations.spectral_norm, which has names of its own."""
    torch = pytest.importorskip("torch")
    from tests.oracles.torch_spade import SPADEGenerator

    torch.manual_seed(6)
    network = SPADEGenerator(ngf=NGF, semantic_nc=LABELS, nhidden=HIDDEN, spectral=False)
    names = [name for name, _ in network.named_modules() if re.search(r"\.conv_[01s]$", name)]
    for name in names:
        torch.nn.utils.parametrizations.spectral_norm(network.get_submodule(name))
    if trained:
        with torch.no_grad():
            network.train()(torch.rand(1, LABELS, 32, 64))
    network.eval()
    torch.save(network.state_dict(), tmp_path / "latest_net_G.pth")
    with read_checkpoint(tmp_path / "latest_net_G.pth") as checkpoint:
        assert "up_0.conv_0.parametrizations.weight.0._u" in checkpoint.tensors
        family, config = identify(checkpoint)
        assert (family.name, config) == ("nvlabs-spade", CONFIG)
        found = convert(family, checkpoint, parameter_shapes(config))
        for name in names:
            wanted = network.get_submodule(name).weight.detach().numpy()
            # Sigma is summed in another order than PyTorch's: a few units in the last place of float32.
            np.testing.assert_allclose(found[f"{name}.weight"], wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_precisions_become_float32(kind, opened):
    made = {name: value.astype(kind) for name, value in parameters().items()}
    checkpoint = opened(as_sige(made))
    family, config = identify(checkpoint)
    found = convert(family, checkpoint, parameter_shapes(config))
    same(found, {name: value.astype(np.float32) for name, value in made.items()})


def test_float64_that_float32_cannot_hold_is_refused_by_name(opened):
    state = as_sige(parameters())
    state["up_1.conv_0.weight"] = np.full(state["up_1.conv_0.weight"].shape, 1e300)
    checkpoint = opened(state)
    family, config = identify(checkpoint)
    found = convert(family, checkpoint, parameter_shapes(config))
    with pytest.raises(CheckpointError, match=r"up_1\.conv_0\.weight: .*float32"):
        found["up_1.conv_0.weight"]


def test_a_spectral_norm_of_zero_is_refused_by_name(opened):
    state = as_sige(parameters())
    weight = state.pop("up_1.conv_0.weight")
    rows = len(weight)
    state |= {"up_1.conv_0.weight_orig": weight, "up_1.conv_0.weight_u": np.zeros(rows, np.float32)}
    state["up_1.conv_0.weight_v"] = np.zeros(weight.size // rows, np.float32)
    checkpoint = opened(state)
    family, config = identify(checkpoint)
    assert family.name == "nvlabs-spade"
    found = convert(family, checkpoint, parameter_shapes(config))
    with pytest.raises(
        CheckpointError, match=r"0\.safetensors: up_1\.conv_0\.weight_orig.*spectral norm is 0"
    ):
        found["up_1.conv_0.weight"]


# Everything that does not fit, in one error.


def lists_of(error: CheckpointError) -> dict[str, tuple[int, str]]:
    found = re.findall(r"\n  ([\w -]+) \((\d+)\): ([^\n]*)", str(error))
    return {what: (int(count), names) for what, count, names in found}


def test_one_error_for_missing_unexpected_and_misshaped_keys(opened):
    state = as_sige(parameters())
    del state["up_2.conv_1.weight"], state["G_middle_0.norm_1.mlp_beta.weight"]
    state["up_9.conv_0.weight"] = np.ones(3, np.float32)
    state["netD.weight\x1b[2J"] = np.ones(3, np.float32)
    state["head_0.conv_0.bias"] = np.ones(7, np.float32)
    state["up_0.norm_0.mlp_gamma.bias"] = np.ones((2, 2), np.float32)
    state["up_1.conv_0.bias"] = state["up_1.conv_0.bias"].astype(np.int32)
    checkpoint = opened(state)
    family, config = identify(checkpoint)
    with pytest.raises(CheckpointError, match=r"0\.safetensors: does not fit .*gaugan.*sige-spade") as caught:
        convert(family, checkpoint, parameter_shapes(config))
    lists = lists_of(caught.value)
    assert lists["missing"][0] == 2
    assert "up_2.conv_1.weight [8, 8, 3, 3]" in lists["missing"][1]
    assert "G_middle_0.norm_1.mlp_gamma_beta.weight [128, 8, 3, 3] (there is " in lists["missing"][1]
    assert lists["unexpected"] == (2, "netD.weight\\x1b[2J, up_9.conv_0.weight")
    assert lists["mis-shaped"][0] == 2
    assert "head_0.conv_0.bias (expected [64], the checkpoint has [7])" in lists["mis-shaped"][1]
    assert "up_0.norm_0.mlp_gamma_beta.bias ([2, 2] and [64] cannot be stacked)" in lists["mis-shaped"][1]
    assert lists["unreadable"][0] == 1
    assert "up_1.conv_0.bias (has the element type int32, expected floating point)" in lists["unreadable"][1]


def test_long_lists_are_cut_short_with_their_count(opened):
    state = as_sige(parameters())
    kept = {name: value for name, value in state.items() if not name.startswith("up_")}
    checkpoint = opened(kept | {f"more.{i}": np.ones(1, np.float32) for i in range(500)})
    family, config = identify(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        convert(family, checkpoint, parameter_shapes(config))
    lists = lists_of(caught.value)
    gone = sum(name.startswith("up_") for name in parameter_shapes(config))
    assert (lists["missing"][0], lists["unexpected"][0]) == (gone, 500)
    assert lists["unexpected"][1].endswith("and 492 more")
    assert len(str(caught.value)) < 3000


def test_fused_rows_that_do_not_add_up(opened):
    state = as_fused(parameters())
    state["up_0.mlp_shared.0.weight"] = state["up_0.mlp_shared.0.weight"][: 2 * HIDDEN]
    checkpoint = opened(state)
    family, config = identify(checkpoint)
    with pytest.raises(CheckpointError, match=r"up_0\.mlp_shared\.0\.weight .* take 24 rows"):
        convert(family, checkpoint, parameter_shapes(config))


def test_spectral_parts_that_do_not_belong_together(opened):
    state = as_sige(parameters())
    weight = state.pop("up_1.conv_0.weight")
    state |= {"up_1.conv_0.weight_orig": weight, "up_1.conv_0.weight_u": np.ones(3, np.float32)}
    state["up_1.conv_0.weight_v"] = np.ones(weight.size // len(weight), np.float32)
    checkpoint = opened(state)
    family, config = identify(checkpoint)
    with pytest.raises(CheckpointError, match=r"weight_orig .* needs u \[16\] and v \[288\]"):
        convert(family, checkpoint, parameter_shapes(config))
    state.pop("up_1.conv_0.weight_u")
    checkpoint = opened(state)
    with pytest.raises(CheckpointError, match=r"up_1\.conv_0\.weight .*but no u"):
        convert(identify(checkpoint)[0], checkpoint, parameter_shapes(config))


def test_a_parameter_given_twice(opened):
    checkpoint = opened(as_sige(parameters()) | {"old.conv_img.bias": np.ones(3, np.float32)})
    family, config = identify(checkpoint)
    again = replace(family, rules=(*family.rules, Rule(r"old\.(?P<name>.+)", ("{name}",))))
    with pytest.raises(
        CheckpointError, match=r"given twice \(1\): conv_img\.bias \(by conv_img\.bias and old"
    ):
        convert(again, checkpoint, parameter_shapes(config))


def test_a_key_that_two_rules_match_is_an_error_of_the_table(opened):
    checkpoint = opened(as_sige(parameters()))
    family, config = identify(checkpoint)
    ambiguous = replace(family, rules=(*family.rules, Rule(r"fc\.bias", ignored="a test")))
    with pytest.raises(CheckpointError, match=r"fc\.bias: two rules of the family sige-spade"):
        convert(ambiguous, checkpoint, parameter_shapes(config))


@pytest.mark.parametrize(
    "family", [NVLABS_SPADE, SIGE_SPADE, SIGE_FUSED_SPADE], ids=lambda family: family.name
)
def test_tables_match_every_key_once_and_say_why_they_ignore(family):
    """Over all keys that can occur, in a checkpoint that has them all, and in one that lacks weight_v."""
    plain = set(as_sige(parameters({**CONFIG, "num_upsampling_layers": "most"})))
    fused = set(as_fused(parameters({**CONFIG, "num_upsampling_layers": "most"})))
    convolutions = {name for name in plain if re.search(r"\.conv_[01s]\.weight", name)}
    spectral = {name + part for name in convolutions for part in ("_orig", "_u", "_v")}
    parts = (".original", ".0._u", ".0._v")
    spectral |= {
        name.replace(".weight", ".parametrizations.weight") + part for name in convolutions for part in parts
    }
    own = fused if family is SIGE_FUSED_SPADE else plain
    if family is NVLABS_SPADE:
        own = own | spectral
    for keys in (own, {name for name in own if not name.endswith("_v")}):
        present = dict.fromkeys(keys)
        for key in keys:
            assert sum(rule.match(key, present) is not None for rule in family.rules) == 1, key
    for rule in family.rules:
        assert bool(rule.targets) != bool(rule.ignored)


# Recognition.


@pytest.mark.parametrize(
    "prefix", ["state_dict.", "netG.", "module.", "model.netG.", "state_dict.module.", "odd."]
)
def test_wrapped_state_dicts_are_found(prefix, opened):
    made = parameters()
    checkpoint = opened({prefix + name: value for name, value in as_sige(made).items()})
    family, config = identify(checkpoint)
    assert (family.name, family.prefix, config) == ("sige-spade", prefix, CONFIG)
    same(convert(family, checkpoint, parameter_shapes(config)), made)
    assert checkpoint.under(prefix).prefix == prefix


@pytest.mark.parametrize(
    ("part", "wrapped"),
    [
        ("", "_orig_mod."),
        ("", "state_dict.module._orig_mod."),
        ("head_0.", "head_0._orig_mod."),
        ("head_0.norm_0.", "head_0.module.norm_0._orig_mod."),
        ("up_3.conv_0.", "up_3._orig_mod.conv_0.module."),
        ("conv_img.", "conv_img._orig_mod."),
    ],
)
def test_wrappers_in_front_of_a_network_or_a_block_are_passed_over(part, wrapped, opened):
    """torch.compile and DataParallel, of the whole model or of one block."""
    made = parameters()
    checkpoint = opened(
        {
            wrapped + name[len(part) :] if name.startswith(part) else name: value
            for name, value in as_sige(made).items()
        }
    )
    family, config = identify(checkpoint)
    assert (family.name, config) == ("sige-spade", CONFIG)
    same(convert(family, checkpoint, parameter_shapes(config)), made)


def test_two_keys_of_one_tensor_are_refused(opened):
    state = as_sige(parameters())
    state["conv_img._orig_mod.bias"] = state["conv_img.bias"] + 1
    with pytest.raises(
        CheckpointError, match=r"conv_img\.bias and conv_img\._orig_mod\.bias|two keys of one tensor"
    ):
        identify(opened(state))


def test_what_lies_beside_a_wrapped_state_dict_is_set_aside(opened):
    made = parameters()
    state = {"netG." + name: value for name, value in as_fused(made).items()}
    state |= {"netD.conv.weight": np.ones((3, 3), np.float32), "step": np.array(5)}
    checkpoint = opened(state)
    family, config = identify(checkpoint)
    assert (family.name, family.prefix) == ("sige-fused-spade", "netG.")
    same(convert(family, checkpoint, parameter_shapes(config)), made)


def test_unknown_checkpoints_are_refused_with_what_is_known_and_what_was_found(opened):
    with pytest.raises(CheckpointError) as caught:
        identify(opened({f"layer{i}.weight": np.ones(2, np.float32) for i in range(30)}))
    message = str(caught.value)
    assert all(family.name in message for family in FAMILIES)
    assert "layer0.weight" in message and "and 25 more" in message
    with pytest.raises(CheckpointError, match="its tensors: none"):
        identify(opened({}))


def test_a_generator_without_its_width_is_refused(opened):
    with pytest.raises(CheckpointError, match="conv_img"):
        identify(opened({"up_0.norm_0.mlp_shared.0.weight": np.ones((8, 5, 3, 3), np.float32)}))
    empty = {"head_0.norm_0.mlp_shared.0.weight": np.ones((8, 0, 3, 3), np.float32)}
    with pytest.raises(CheckpointError, match="unknown family"):
        identify(opened(empty))


# Our own files.


def test_our_own_files_come_back_as_they_were(tmp_path):
    made = parameters()
    path = tmp_path / "own.safetensors"
    write_safetensors(path, made, native_metadata("gaugan", CONFIG))
    with read_checkpoint(path) as checkpoint:
        family, config = identify(checkpoint)
        assert (family.name, family.model, config) == ("sparsegen", "gaugan", CONFIG)
        same(convert(family, checkpoint, parameter_shapes(config)), made)


def test_lists_of_plain_values_come_back(tmp_path):
    path = tmp_path / "own.safetensors"
    config = {"levels": (32, 64), "attention": [False, True], "empty": (), "eps": 1e-6}
    write_safetensors(path, {"x": np.ones(1, np.float32)}, native_metadata("ddpm", config))
    with read_checkpoint(path) as checkpoint:
        _, found = identify(checkpoint)
    assert found == {"levels": [32, 64], "attention": [False, True], "empty": [], "eps": 1e-6}


@pytest.mark.parametrize(
    "text",
    ["", "nothing", "[1]", '{"a": [[1]]}', '{"a": {"b": 1}}', "[" * 60_000, '{"a": ' + "9" * 5000 + "}"],
)
def test_damaged_configurations_of_our_own_files_are_refused(text, opened):
    checkpoint = opened(parameters(), **{"sparsegen.family": "gaugan", "sparsegen.config": text})
    with pytest.raises(
        CheckpointError, match=r"0\.safetensors: metadata sparsegen\.config: is not a JSON object"
    ):
        identify(checkpoint)
