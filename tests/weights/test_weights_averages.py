"""Averaged weights are found under every spelling that training code has for them, and it is said which were taken."""

from __future__ import annotations

import argparse
import collections
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import sparsegen
from sparsegen.models import DDPM, DDPMConfig, GauGAN, GauGANConfig
from sparsegen.weights import CheckpointError
from sparsegen.weights.which import kind_of

State = dict[str, np.ndarray]

CONFIG = DDPMConfig(channels=32, levels=(32, 32), attention=(False, True), blocks=1, time_channels=64)


def parameters(model: Any, seed: int) -> State:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(parameter.shape).astype(np.float32)
        for name, parameter in model.parameters().items()
    }


LAST = parameters(DDPM(CONFIG), 0)
AVERAGE = parameters(DDPM(CONFIG), 1)
OTHER = parameters(DDPM(CONFIG), 2)


def under(prefix: str, state: Mapping[str, np.ndarray]) -> State:
    return {prefix + name: value for name, value in state.items()}


def write(path: Path, state: Mapping[str, np.ndarray]) -> Path:
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)
    return path


def holds(model: sparsegen.Model, wanted: Mapping[str, np.ndarray]) -> bool:
    found = model.parameters()
    assert found.keys() == wanted.keys()
    return all(np.array_equal(found[name].value, value) for name, value in wanted.items())


def gives(path: Path, average: Mapping[str, np.ndarray], last: Mapping[str, np.ndarray]) -> None:
    """That a file holds both, and that the average is taken unless the last weights are asked for."""
    taken = sparsegen.load(path)
    assert holds(taken, average)
    assert taken.source.startswith("averaged weights (")
    assert re.search(r"beside them: \w", taken.source) and "not taken" not in taken.source
    assert holds(sparsegen.load(path, which="ema"), average)
    others = sparsegen.load(path, which="model")
    assert holds(others, last)
    assert others.source.startswith("last weights")


# By the words around them.

SPELLINGS = [
    ("model.", "ema."),
    ("model.", "model_ema."),
    ("state_dict.", "state_dict_ema."),
    ("model_state_dict.", "ema_state_dict."),
    ("model.", "ema_model."),
    ("model.", "ema.ema_model."),
    ("ema.online_model.", "ema.ema_model."),
    ("online_model.", "ema_model."),
    ("model.model.", "ema.ema_model.model."),  # denoising-diffusion-pytorch: a wrapper around the model
    ("state_dict.", "params_ema."),
    ("params.", "params_ema."),
    ("state_dicts.model.", "state_dicts.ema_model."),  # diffusion_policy
    ("state_dict.model.", "state_dict.model_ema."),
    ("state_dict.model.", "state_dict.ema."),
    ("state_dict.unet.", "state_dict.unet_ema."),
    ("state_dict.net.", "callbacks.EMA.ema_state_dict.net."),
    ("state_dict.", "callbacks.StochasticWeightAveraging.average_model_state."),
    ("model.", "ema.module."),
    ("module.", "ema.shadow."),
    ("model.", "shadow."),
    ("Model.", "EMA_model."),
    ("model.", "modelEma."),
    ("model.", "emaModel."),
    ("G.", "G_ema."),
    ("model.", "model_ema1."),
    ("model.", "ema_0.9999."),
    ("model_non_ema.", "model."),
    ("", "ema."),
    ("", "model_ema.module."),
    ("odd.word.", "odd.word_ema."),
    ("current.", "current_ema."),
    ("model.", "backup.ema."),
    ("model.", "EMAmodel."),
    ("net.", "EMAnet."),
    ("model.", "modelema."),
    ("model.", "emamodel."),
    ("net.", "netema."),
    ("model.", "avg_model."),
    ("model.", "model_avg."),
    ("model.", "avg."),
    ("model.", "exponential_moving_average."),
    ("model.", "polyak."),
]


@pytest.mark.parametrize(("last", "average"), SPELLINGS)
def test_spellings(last: str, average: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.safetensors", under(last, LAST) | under(average, AVERAGE))
    gives(path, AVERAGE, LAST)


@pytest.mark.parametrize(("last", "average"), SPELLINGS)
@pytest.mark.parametrize("wrapper", ["model.", "checkpoint.", "a.b."])
def test_spellings_inside_wrappers(wrapper: str, last: str, average: str, tmp_path: Path) -> None:
    state = under(wrapper + last, LAST) | under(wrapper + average, AVERAGE)
    gives(write(tmp_path / "net.safetensors", state), AVERAGE, LAST)


@pytest.mark.parametrize("wrapper", ["", "checkpoint."])
def test_lightning_swaps_the_two_when_it_saves(wrapper: str, tmp_path: Path) -> None:
    both = under(wrapper + "current_model_state.", LAST) | under(wrapper + "state_dict.", AVERAGE)
    said = {wrapper + "averaging_state.n_averaged": np.array(7)}
    gives(write(tmp_path / "net.safetensors", both | said), AVERAGE, LAST)
    model = sparsegen.load(write(tmp_path / "plain.safetensors", both))
    assert model.source == f"weights ({wrapper}state_dict); beside them: {wrapper}current_model_state"


# Words that say nothing of an average.


@pytest.mark.parametrize(
    ("taken", "other"),
    [
        ("model.", "backup."),
        ("model.", "online."),
        ("model.", "best."),
        ("state_dict.", "current."),
        ("model.", "grad_avg."),
        ("model.", "loss_avg."),
        ("net.", "optimizer.exp_avg."),
        ("net.", "optim.state.max_exp_avg_sq."),
        ("net.", "optimizer_g.ema."),
        ("net.", "opt.average."),
        ("net.", "grad_ema."),
        ("net.", "exp_avg."),
        ("net.", "square_avg."),
        ("net.", "momentum_buffer."),
    ],
)
def test_what_lies_beside_a_network_and_is_no_average(taken: str, other: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.safetensors", under(taken, LAST) | under(other, OTHER))
    model = sparsegen.load(path)
    assert holds(model, LAST)
    assert "average" not in model.source
    with pytest.raises(CheckpointError, match=r"holds no averaged weights|cannot be taken"):
        sparsegen.load(path, which="ema")


@pytest.mark.parametrize(
    "places",
    [
        ("current", "best"),
        ("current_state_dict", "best_state_dict"),
        ("collected", "init"),
        ("online", "target"),
        ("0", "1"),
        ("0", "1", "2", "3", "4"),
        ("model.0", "model.1"),
    ],
)
def test_networks_that_no_word_tells_apart(places: tuple[str, ...], tmp_path: Path) -> None:
    state: State = {}
    for i, place in enumerate(places):
        state |= under(f"{place}.", parameters(DDPM(CONFIG), i))
    path = write(tmp_path / "net.safetensors", state)
    with pytest.raises(CheckpointError, match=r"several models \(.*\), expected one\. Save"):
        sparsegen.load(path)


def test_an_average_among_networks_that_no_word_tells_apart(tmp_path: Path) -> None:
    state = under("student.", LAST) | under("teacher.", OTHER)
    path = write(tmp_path / "net.safetensors", state | under("student_ema.", AVERAGE))
    for weights in (None, "ema"):
        assert holds(sparsegen.load(path, which=weights), AVERAGE)
    with pytest.raises(CheckpointError, match=r"several models \(student, teacher\)"):
        sparsegen.load(path, which="model")


@pytest.mark.torch
def test_lists_that_are_no_checkpoint_of_ermongroup(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    def network(state: State) -> dict[str, Any]:
        return {f"module.{name}": torch.tensor(value) for name, value in state.items()}

    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    for state in (optimizer, {"state": {}, "param_groups": []}):
        torch.save([network(LAST), state, 3, 700, network(AVERAGE)], tmp_path / "ckpt.pth")
        gives(tmp_path / "ckpt.pth", AVERAGE, LAST)
    torch.save([network(LAST), optimizer, 3, 700], tmp_path / "ckpt.pth")
    assert holds(sparsegen.load(tmp_path / "ckpt.pth"), LAST)
    for others in ([network(OTHER), 3, 700], [optimizer, 0.5, 700], [{"a": torch.ones(2)}, 3, 700]):
        torch.save([network(LAST), *others, network(AVERAGE)], tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=r"several models \(0\.module, .*4\.module\)"):
            sparsegen.load(tmp_path / "other.pth")


def test_what_averaging_leaves_beside_the_weights_does_no_harm(tmp_path: Path) -> None:
    state = under("model.", LAST) | under("ema.ema_model.", AVERAGE) | under("ema.online_model.", LAST)
    for name in ("initted", "step", "decay", "num_updates"):
        state[f"ema.{name}"] = np.ones((), np.float32)
    state["ema.ema_model_betas"] = np.ones(1, np.float32)
    gives(write(tmp_path / "net.safetensors", state), AVERAGE, LAST)


@pytest.mark.parametrize("word", ["schema", "cinema", "remake", "emanate", "thermal", "model_embed", "seam"])
def test_words_that_only_look_like_an_average(word: str, tmp_path: Path) -> None:
    assert kind_of(word) is None
    path = write(tmp_path / "net.safetensors", under("model.", LAST) | under(f"{word}.", OTHER))
    assert holds(sparsegen.load(path), LAST)


def test_several_averages_are_all_named(tmp_path: Path) -> None:
    state = under("model.", LAST) | under("ema_a.", AVERAGE) | under("ema_b.", OTHER)
    model = sparsegen.load(write(tmp_path / "net.safetensors", state))
    assert model.source == "averaged weights (ema_a); beside them: ema_b, model"
    assert holds(model, AVERAGE)


def test_networks_that_no_word_tells_apart_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "net.safetensors", under("teacher.", LAST) | under("student.", OTHER))
    with pytest.raises(CheckpointError, match=r"several models \(student, teacher\), expected one\. Save"):
        sparsegen.load(path)


@pytest.mark.torch
def test_mmengine_swaps_the_two_when_it_saves(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    saved = {
        "meta": {"mmengine_version": "0.10.4", "epoch": 3},
        "state_dict": {name: torch.tensor(value) for name, value in AVERAGE.items()},
        "ema_state_dict": {f"module.{name}": torch.tensor(value) for name, value in LAST.items()}
        | {"steps": torch.tensor(7)},
    }
    torch.save(saved, tmp_path / "epoch_3.pth")
    gives(tmp_path / "epoch_3.pth", AVERAGE, LAST)


def test_pytorchs_averaged_model(tmp_path: Path) -> None:
    state = under("module.", AVERAGE) | {"n_averaged": np.array(7)}
    path = write(tmp_path / "net.safetensors", state)
    assert holds(sparsegen.load(path, which="ema"), AVERAGE)
    with pytest.raises(CheckpointError, match="holds no weights beside the averaged ones"):
        sparsegen.load(path, which="model")
    state = (
        under("model.", LAST) | under("model_ema.module.", AVERAGE) | {"model_ema.n_averaged": np.array(7)}
    )
    gives(write(tmp_path / "both.safetensors", state), AVERAGE, LAST)


# Names without dots.


def squeezed(prefix: str, head: str, state: Mapping[str, np.ndarray]) -> State:
    """As LDM's LitEma keeps the parameters of a module whose child `head` is the model."""
    kept = {prefix + (head + name).replace(".", ""): value for name, value in state.items()}
    return kept | {f"{prefix}decay": np.float32([0.9999]), f"{prefix}num_updates": np.int32([70001])}


@pytest.mark.parametrize("head", ["", "diffusion_model.", "diffusion_model._orig_mod."])
@pytest.mark.parametrize("outer", ["", "state_dict."])
def test_names_without_dots(outer: str, head: str, tmp_path: Path) -> None:
    state = under(f"{outer}model.{head}", LAST) | squeezed(f"{outer}model_ema.", head, AVERAGE)
    gives(write(tmp_path / "net.safetensors", state), AVERAGE, LAST)


def test_names_without_dots_of_a_network_that_was_compiled_later(tmp_path: Path) -> None:
    state = under("model._orig_mod.", LAST) | squeezed("model_ema.", "", AVERAGE)
    gives(write(tmp_path / "net.safetensors", state), AVERAGE, LAST)


def test_names_without_dots_and_nothing_that_gives_them_back(tmp_path: Path) -> None:
    path = write(tmp_path / "net.safetensors", squeezed("model_ema.", "", AVERAGE))
    with pytest.raises(CheckpointError, match=r"unknown family.*model_ema \(no weights beside them"):
        sparsegen.load(path)


def test_names_that_become_the_same_without_dots(tmp_path: Path) -> None:
    """down.1.block.0… and down.1.blo.ck.0… of another table: which is which cannot be told."""
    state = under("model.", LAST) | squeezed("model_ema.", "", AVERAGE)
    state["model.conv_i.n.bias"] = LAST["conv_in.bias"]
    path = write(tmp_path / "net.safetensors", state)
    with pytest.raises(CheckpointError, match=r"two of the model's names are conv_inbias without dots"):
        sparsegen.load(path, which="ema")


# Lists in the order of the parameters.


def saved(path: Path, **parts: Any) -> Path:
    torch = pytest.importorskip("torch")

    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tensors(each) for name, each in value.items()}
        if isinstance(value, list):
            return [tensors(each) for each in value]
        return torch.tensor(value) if isinstance(value, np.ndarray) else value

    torch.save(tensors(parts), path)
    return path


def shadows(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """As torch_ema and score_sde save it; while they evaluate, the last weights are put aside in another list."""
    kept = {
        "shadow_params": list(state.values()),
        "collected_params": [value + 1 for value in state.values()],
    }
    return {"decay": 0.9999, "num_updates": 70001, **kept}


@pytest.mark.torch
@pytest.mark.parametrize("word", ["ema", "ema_state_dict", "ema_state", "model_ema"])
@pytest.mark.parametrize("inner", ["", "module.", "unet.", "_orig_mod."])
def test_lists_in_the_order_of_the_parameters(inner: str, word: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth", model=under(inner, LAST), **{word: shadows(AVERAGE)})
    gives(path, AVERAGE, LAST)


@pytest.mark.torch
def test_a_list_beside_the_names_at_the_top(tmp_path: Path) -> None:
    gives(saved(tmp_path / "net.pth", **LAST, ema=shadows(AVERAGE)), AVERAGE, LAST)
    path = saved(tmp_path / "bare.pth", model=LAST, optimizer_states=[{"ema": list(AVERAGE.values())}])
    gives(path, AVERAGE, LAST)


@pytest.mark.torch
def test_a_list_of_all_parameters_of_a_module_around_the_network(tmp_path: Path) -> None:
    """Its other parts have parameters too, and buffers, which the list does not hold."""
    extra = {"head.weight": np.ones((3, 3), np.float32), "betas": np.ones(9, np.float32)}
    state = {"head.weight": extra["head.weight"], **under("net.", LAST)}
    state["head.norm.running_mean"] = np.ones(3, np.float32)
    averages = [extra["head.weight"] * 2, *AVERAGE.values()]
    gives(saved(tmp_path / "net.pth", state_dict=state, ema={"shadow_params": averages}), AVERAGE, LAST)


@pytest.mark.torch
def test_averages_of_diffusers_own_class(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    training = pytest.importorskip("diffusers.training_utils")
    last = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in LAST.items()}
    kept = training.EMAModel(last.values())
    kept.shadow_params = [torch.tensor(value) for value in AVERAGE.values()]
    torch.save(
        {"model": {k: v.detach() for k, v in last.items()}, "ema": kept.state_dict()}, tmp_path / "net.pth"
    )
    gives(tmp_path / "net.pth", AVERAGE, LAST)


def refused(
    path: Path, reason: str, caplog: pytest.LogCaptureFixture, wanted: Mapping[str, np.ndarray] = LAST
) -> None:
    """That an average is there and not taken, which is said in a warning, and why it cannot be."""
    caplog.clear()
    model = sparsegen.load(path)
    assert holds(model, wanted)
    assert re.search(rf"averaged weights not taken: {reason}", model.source)
    assert [(record.levelname, record.name) for record in caplog.records] == [("WARNING", "sparsegen")]
    assert model.source in caplog.text
    assert holds(sparsegen.load(path, which="model"), wanted)
    with pytest.raises(
        CheckpointError, match=rf"averaged weights cannot be taken: {reason}.*Omit `which=`"
    ) as caught:
        sparsegen.load(path, which="ema")
    assert str(caught.value).startswith(str(path))


@pytest.mark.torch
def test_lists_that_do_not_match_are_said_to_be_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = dict(list(AVERAGE.items())[:-1])
    count = len(LAST)
    reason = rf"ema\.shadow_params \(they are a list of {count - 1} tensors, which does not match the model's {count}"
    refused(saved(tmp_path / "short.pth", model=LAST, ema=shadows(short)), reason, caplog)
    swapped = dict(sorted(AVERAGE.items()))
    reason = rf"ema\.shadow_params \(they are a list of {count} tensors, which does not match"
    refused(saved(tmp_path / "swapped.pth", model=LAST, ema=shadows(swapped)), reason, caplog)


def test_a_list_in_a_file_that_keeps_no_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = under("model.", LAST) | {
        f"ema.shadow_params.{i}": each for i, each in enumerate(AVERAGE.values())
    }
    path = write(tmp_path / "net.safetensors", state)
    refused(
        path, r"ema\.shadow_params \(they are a list, and a safetensors file does not keep the order", caplog
    )


def test_names_that_do_not_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    foreign = {f"layer{i}.weight": np.ones((3, 3), np.float32) for i in range(5)}
    path = write(tmp_path / "net.safetensors", under("model.", LAST) | under("ema.", foreign))
    refused(path, r"ema \(their names are not those of the model\)", caplog)
    squashed = {"a": np.ones((3, 3), np.float32), "b": np.ones(3, np.float32)}
    path = write(tmp_path / "other.safetensors", under("model.", LAST) | under("ema.", squashed))
    refused(path, r"ema \(their names are not those of the model\)", caplog)


@pytest.mark.parametrize("absent", ["temb.dense.0.weight", "conv_in.weight", "up.0.block.1.conv2.bias"])
def test_an_average_without_the_layers_that_were_frozen(
    absent: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learnt = {name: value for name, value in AVERAGE.items() if name != absent}
    path = write(tmp_path / "net.safetensors", under("model.", LAST) | under("ema.module.", learnt))
    named = r"\w+(\.\w+)* is missing|such as " + re.escape(absent)
    refused(
        path,
        rf"ema(\.module)? \(.*({named}|{re.escape(absent)}, which determines a size, is missing)",
        caplog,
    )
    path = write(tmp_path / "lit.safetensors", under("model.", LAST) | squeezed("model_ema.", "", learnt))
    refused(path, rf"model_ema \(1 of the {len(LAST)} tensors .* such as {re.escape(absent)}\)", caplog)


def test_an_average_of_another_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = parameters(DDPM(DDPMConfig(channels=64, levels=(64,), attention=(True,), blocks=1)), 3)
    path = write(tmp_path / "net.safetensors", under("model.", LAST) | under("ema.", other))
    refused(
        path, r"ema \(\d+ of the \d+ tensors that the model needs are missing or of another shape", caplog
    )


# Models with statistics and spectral norms.

GAUGAN = GauGANConfig(ngf=2, semantic_nc=4, nhidden=4, num_upsampling_layers="normal", edge_channel=False)


def gaugan(seed: int) -> tuple[State, State]:
    """Our parameters, and the same under SIGE's names."""
    rng = np.random.default_rng(seed)
    made: State = {}
    state: State = {}
    for name, parameter in GauGAN(GAUGAN).parameters().items():
        made[name] = np.abs(rng.standard_normal(parameter.shape)).astype(np.float32)
        theirs = re.sub(r"\.norm\.(mean|var)$", r".param_free_norm.running_\1", name)
        theirs = theirs.replace(".mlp_shared.", ".mlp_shared.0.")
        if ".mlp_gamma_beta." in theirs:
            first, second = np.split(made[name], 2)
            state[theirs.replace("mlp_gamma_beta", "mlp_gamma")] = first
            state[theirs.replace("mlp_gamma_beta", "mlp_beta")] = second
        else:
            state[theirs] = made[name]
    return made, state


def test_an_average_with_statistics_of_its_own_is_taken(tmp_path: Path) -> None:
    (last, theirs), (average, averaged) = gaugan(0), gaugan(1)
    path = write(tmp_path / "net.safetensors", under("netG.", theirs) | under("netG_ema.", averaged))
    gives(path, average, last)


def test_an_average_of_parameters_alone_is_no_network_with_batch_norm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (last, theirs), (_, averaged) = gaugan(0), gaugan(1)
    averaged = {name: value for name, value in averaged.items() if "running" not in name}
    path = write(tmp_path / "net.safetensors", under("netG.", theirs) | under("netG_ema.", averaged))
    refused(
        path,
        r"netG_ema \(\d+ of the \d+ tensors .* such as \w+\.\w+\.param_free_norm\.running_",
        caplog,
        last,
    )


# Averages that are there and cannot be read.


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float8_e5m2", "int8", "complex64", "meta"])
def test_an_average_of_elements_that_are_no_weights(
    dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip("torch")
    average = {name: torch.tensor(value) for name, value in AVERAGE.items()}
    for name, value in average.items():
        average[name] = value.to("meta") if dtype == "meta" else value.to(getattr(torch, dtype))
    model = {name: torch.tensor(value) for name, value in LAST.items()}
    torch.save({"model": model, "ema": average}, tmp_path / "net.pth")
    kind = "saved without values" if dtype == "meta" else f"has the element type {dtype}"
    refused(tmp_path / "net.pth", rf"ema \(\w+(?:\.\w+)* .*{kind}", caplog)
    torch.save(average, tmp_path / "alone.pth")
    with pytest.raises(CheckpointError, match=rf"unreadable \(\d+\): .*{kind}"):
        sparsegen.load(tmp_path / "alone.pth")


@pytest.mark.torch
def test_averages_that_are_objects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch = pytest.importorskip("torch")
    model = {name: torch.tensor(value) for name, value in LAST.items()}
    average = {name: torch.tensor(value) for name, value in AVERAGE.items()}
    for value, kind in (
        (dict(AVERAGE), r"numpy\.ndarray"),
        ({"shadow": dict(AVERAGE)}, r"numpy\.ndarray"),
        (argparse.Namespace(shadow=average), r"argparse\.Namespace"),
        (collections.UserDict(average), r"collections\.UserDict"),
    ):
        torch.save({"model": model, "model_ema": value}, tmp_path / "net.pth")
        refused(
            tmp_path / "net.pth", rf"model_ema(\.shadow)? \(an object of {kind}, which is not read\)", caplog
        )


@pytest.mark.torch
def test_settings_of_averaging_are_no_average(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch = pytest.importorskip("torch")
    model = {name: torch.tensor(value) for name, value in LAST.items()}
    average = {name: torch.tensor(value) for name, value in AVERAGE.items()}
    beside = {
        "ema_config": argparse.Namespace(decay=0.99),
        "ema_decay": np.float64(0.99),
        "best_ema": np.float64(0.5),
        "ema_losses": np.ones(9),
    }
    torch.save({"model": model, **beside}, tmp_path / "net.pth")
    assert sparsegen.load(tmp_path / "net.pth").source == "the only weights (model)"
    torch.save(
        {"model": model, "ema": {**average, "decay": np.float64(0.9)}, **beside}, tmp_path / "both.pth"
    )
    gives(tmp_path / "both.pth", AVERAGE, LAST)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


# Files that would keep a reader busy: the work is counted, in calls.


def calls_of(path: Path) -> int:
    """How many functions are called until a file is loaded."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        sparsegen.load(path)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["names", "lists"])
def test_many_averages_without_names_in_deep_modules(kind: str, tmp_path: Path) -> None:
    """A look at every name for each average and each module would take millions of calls."""
    depth, averages = 200, 1000
    one = np.ones(1, np.float32)
    inner: Any = {"x": one} if kind == "names" else [one]
    path = saved(
        tmp_path / "net.pth",
        **under("m." * depth, LAST),
        **{f"ema{i}": {"shadow_params": inner} for i in range(averages)},
    )
    assert "not taken: ema" in sparsegen.load(path).source
    # Reading takes some 600 calls for each tensor.
    few = saved(tmp_path / "few.pth", **under("m." * depth, LAST), ema={"shadow_params": inner})
    assert calls_of(path) < calls_of(few) + 1000 * averages


# What is said.


def test_one_set_of_weights_needs_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sparsegen")
    assert sparsegen.load(write(tmp_path / "net.safetensors", LAST)).source == "the only weights"
    assert (
        sparsegen.load(write(tmp_path / "in.safetensors", under("model.", LAST))).source
        == "the only weights (model)"
    )
    assert (
        sparsegen.load(write(tmp_path / "ema.safetensors", under("ema.", LAST))).source
        == "averaged weights (ema)"
    )
    assert [record.levelname for record in caplog.records] == ["INFO"] * 3
    assert caplog.records[2].getMessage() == f"{tmp_path / 'ema.safetensors'}: took averaged weights (ema)"


def test_the_command_line_says_which_were_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sparsegen.cli import main

    path = write(tmp_path / "net.safetensors", under("model.", LAST) | under("model_ema.", AVERAGE))
    for options, said in (
        ([], "weights taken averaged (model_ema) beside them model"),
        (["--set", "which=model"], "weights taken last (model) beside them model_ema"),
    ):
        assert main(["inspect", str(path), *options]) == 0
        assert said in " ".join(capsys.readouterr().out.split())
    out = tmp_path / "own.safetensors"
    assert main(["convert", str(path), "-o", str(out)]) == 0
    assert "written: averaged weights (model_ema); beside them: model" in capsys.readouterr().out
    assert holds(sparsegen.load(out), AVERAGE)
    state = under("model.", LAST) | under("ema.", {"x": np.ones((2, 2), np.float32)})
    path = write(tmp_path / "odd.safetensors", state)
    assert main(["inspect", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "weights taken last (model) not taken ema (their names are not those of the model)" in said
    assert main(["inspect", str(path), "--set", "which=ema"]) == 2
    assert "cannot be taken: ema" in capsys.readouterr().err


def test_names_out_of_a_file_are_made_harmless(tmp_path: Path) -> None:
    state = (
        under("model.", LAST)
        | under("\x1b[2J_ema.", AVERAGE)
        | under("ema." + "x" * 5000 + ".", {"a": LAST["conv_in.bias"]})
    )
    source = sparsegen.load(write(tmp_path / "net.safetensors", state)).source
    assert source.isascii() and source.isprintable() and len(source) < 500
