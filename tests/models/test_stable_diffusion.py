"""Stable Diffusion's UNet and text encoder held to diffusers and transformers, and their edits to their dense runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparsegen import Session
from sparsegen.backends import Backend
from sparsegen.backends.interface import Host
from sparsegen.errors import InputError, ShapeError
from sparsegen.models import CLIPTextConfig, SDUNetConfig
from tests.networks import values
from tests.oracles.sd_models import encoders, unet_output, unets
from tests.tolerances import check

UNET = SDUNetConfig(
    channels=32,
    levels=(32, 64, 64),
    attention=(True, True, False),
    blocks=1,
    time_channels=128,
    heads=(4, 2, 8),
    context=24,
    groups=16,
)
TEXT = CLIPTextConfig(vocabulary=60, tokens=15, width=32, layers=3, heads=4, hidden=48)


def normal(*shape: int, seed: int = 0) -> Host:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear projections"])
@pytest.mark.parametrize("inputs", [4, 9], ids=["plain", "inpainting"])
def test_the_unet_is_diffusers(backend: Backend, linear: bool, inputs: int) -> None:
    net, model = unets(replace(UNET, in_channels=inputs), linear=linear)
    x, text = normal(2, 16, 12, inputs), normal(2, 15, 24, seed=1)
    result = Session(model, backend).run(x, timestep=[981.0, 7.0], text=text)
    check("parity", result.output, unet_output(net, x, [981.0, 7.0], text))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_text_encoder_is_transformers(backend: Backend, activation: str) -> None:
    torch = pytest.importorskip("torch")
    net, model = encoders(replace(TEXT, activation=activation))
    tokens = np.random.default_rng(0).integers(0, TEXT.vocabulary, (2, TEXT.tokens))
    with torch.no_grad():
        out = net(torch.from_numpy(tokens), output_hidden_states=True)
        last = out.last_hidden_state.numpy()
        norm = net.text_model.final_layer_norm
        earlier = [norm(hidden).numpy() for hidden in out.hidden_states]
    session = Session(model, backend)
    check("parity", session.run(tokens).output.reshape(last.shape), last)
    for skip in (1, 2):
        check("parity", session.run(tokens, skip=skip).output.reshape(last.shape), earlier[-1 - skip])


@pytest.fixture(scope="module")
def model() -> Any:
    return unets(UNET)[1]


def conditions() -> dict[str, Any]:
    return {"timestep": 500.0, "text": normal(1, 15, 24, seed=1)}


@pytest.mark.parametrize("policy", ["paper", "exact", "fast"])
def test_edits_write_what_a_dense_run_would_where_they_are_active(
    backend: Backend, model: Any, policy: str
) -> None:
    x = normal(1, 32, 32, 4)
    session = Session(model, backend)
    session.run(x, **conditions())
    before = values(session)
    assert not any("to_q" in path or ".ff." in path or "proj_in" in path for path in before)
    edited = x.copy()
    edited[:, 8:14, 8:14] += 1
    session.edit(edited, policy=policy)
    after = values(session)
    session.undo()
    for path, value in values(session).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    session.redo()
    for path, value in values(session).items():
        np.testing.assert_array_equal(value, after[path], err_msg=path)


def test_an_edit_of_everything_is_a_dense_run(backend: Backend, model: Any) -> None:
    x, other = normal(1, 16, 16, 4), normal(1, 16, 16, 4, seed=5)
    session, whole = Session(model, backend), Session(model, backend)
    session.run(x, **conditions())
    edited = session.edit(other, policy="fast")
    np.testing.assert_array_equal(edited.output, whole.run(other, **conditions()).output)


def test_scratch_layers_hold_the_bits_of_kept_ones(backend: Backend, model: Any) -> None:
    x = normal(1, 16, 16, 4)
    session = Session(model, backend)
    scratch = session.run(x, **conditions())
    inputs = model.encode(x, **conditions())
    state = session._state
    run, output = state.paint(inputs.canvases, inputs.conditions, keep_scratch=True)
    np.testing.assert_array_equal(output, scratch.output)
    kept = {path for path in state.memory.canvases if ".to_q" in path}
    assert len(kept) == 14
    # the same layers are counted, each once
    assert {layer.path: layer.macs for layer in scratch.stats.layers} == {r.path: r.macs for r in run.records}


def test_the_text_is_projected_once_for_all_runs(
    backend: Backend, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    projected: list[str] = []
    of_array = type(model.conv_in).of_array

    def counted(self: Any, run: Any, x: Any) -> Any:
        projected.append(self.path)
        return of_array(self, run, x)

    monkeypatch.setattr(type(model.conv_in), "of_array", counted)
    session, x = Session(model, backend), normal(1, 8, 8, 4)
    for time in (900.0, 400.0):
        session.run(x, timestep=time, text=normal(1, 15, 24))
    assert len(projected) == len(set(projected)) == 14
    session.run(x, timestep=400.0, text=normal(1, 15, 24, seed=3))
    assert len(projected) == 28


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"timestep": 5}, "no text is given"),
        ({"timestep": 5, "text": normal(15, 25)}, r"expected \[T, 24\] or"),
        ({"timestep": 5, "text": normal(3, 15, 24)}, "expected features of 1 or 1 texts"),
        ({"timestep": 5, "text": np.zeros((15, 24), int)}, "expected floats"),
        ({"timestep": 5, "text": np.full((15, 24), np.nan)}, "not finite"),
    ],
)
def test_a_wrong_text_is_refused(model: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, ShapeError), match=message):
        model.encode(normal(8, 8, 4), **given)


def test_wrong_tokens_are_refused() -> None:
    _, model = encoders(TEXT)
    for tokens, message in (
        (np.zeros(15), "expected ids"),
        (np.zeros(14, int), r"expected \[15\]"),
        (np.full(15, 60), "the id 60, expected 0 to 59"),
    ):
        with pytest.raises((InputError, ShapeError), match=message):
            model.encode(tokens)
    with pytest.raises(InputError, match="skip is 3, expected a whole number of layers from 0 to 2"):
        model.encode(np.zeros(15, int), skip=3)
