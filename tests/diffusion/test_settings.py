"""Settings: a sampler that registers itself, with options of its own, is all that the rest needs to know of it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from sparsegen import InputError, SDEdit, cli, loading, open_session, sample
from sparsegen.cli.options import with_sampler_options
from sparsegen.diffusion import registry
from sparsegen.diffusion.registry import Option, Step, get_sampler, sampler, sampler_options
from sparsegen.diffusion.samplers import ddim
from sparsegen.diffusion.schedules import Layout
from sparsegen.diffusion.settings import DiffusionDefaults, Settings, settings_for, whole_way
from sparsegen.errors import SessionError
from sparsegen.images import read_image, write_png
from sparsegen.models import DDPM, ProgressiveDistillation
from tests.unets import picture, random_ddpm, random_pd

DDPM_SIDE, PD_SIDE = DDPM.diffusion, ProgressiveDistillation.diffusion
MINE = {
    "share": Option(0.5, "share of the prediction", least=0, most=1),
    "repeats": Option(1, "number of evaluations", least=1, most=3),
    "order": Option("first", "solver", choices=("first", "second")),
}


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A sampler `mine` with three options, registered for one test; the options of each of its calls."""
    monkeypatch.setattr(registry, "SAMPLERS", dict(registry.SAMPLERS))
    calls: list[dict[str, Any]] = []

    @sampler("mine", layout=Layout(drop_last=True), options=MINE)
    def weakened(
        predict: Any, x: Any, schedule: Any, timesteps: Any, *, clip: Any, noise: Any, **options: Any
    ) -> Iterator[Step]:
        calls.append({**options, "times": len(timesteps)})

        def weaker(x: Any, i: int, t: float) -> Any:
            return np.float32(options["share"]) * predict(x, i, t)

        return ddim(weaker, x, schedule, timesteps, clip=clip, noise=noise)

    return calls


# -- a sampler touches one file --------------------------------------------------------------------------


def test_a_sampler_is_usable_in_every_pipeline_as_it_is_registered(mine, tmp_path):
    model, original = random_ddpm(), picture(np.random.default_rng(1), (32, 32))
    edited = original.copy()
    edited[10:14, 10:14] = 255
    with SDEdit(model, sampler="mine", steps=2, share=0.25, backend="reference") as session:
        session.run(original)
        image = session.edit(edited).image
        session.save(tmp_path / "mine.session")
    used = {"share": 0.25, "repeats": 1, "order": "first", "times": 2}
    assert mine == [used]
    with open_session(tmp_path / "mine.session", "reference") as again:
        assert again.settings == session.settings
        assert again.settings.options == {"share": 0.25, "repeats": 1, "order": "first"}
        assert_array_equal(again.image, image)
    sample(model, size=(32, 32), steps=3, sampler="mine", repeats=np.int64(2), backend="reference")
    assert mine[1:] == [{"share": 0.5, "repeats": 2, "order": "first", "times": 3}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 2}, "share is 2, expected a number from 0 to 1"),
        ({"share": True}, "share is True, expected a number from 0 to 1"),
        ({"repeats": 1.5}, "repeats is 1.5, expected a whole number from 1 to 3"),
        ({"repeats": 4}, "repeats is 4, expected a whole number from 1 to 3"),
        ({"order": "third"}, "order is 'third', expected first or second"),
        ({"eta": 0.5}, "eta is an option of sampler ddim, not of mine; omit it"),
        ({"shrae": 1}, "unknown option shrae; options of sampler mine: share, repeats, order"),
        ({"steps": 500}, "steps is 500, expected a whole number from 1 to 499"),
    ],
)
def test_its_options_are_checked(mine, given, message):
    with pytest.raises(InputError, match=message):
        SDEdit(random_ddpm(), sampler="mine", backend="reference", **given)


def test_errors_name_it(mine):
    with pytest.raises(InputError, match=r"unknown sampler 'none'; known: ddpm, .*, pd, mine$"):
        get_sampler("none")
    with pytest.raises(InputError, match=r"share is an option of sampler mine, not of ddim; omit it"):
        settings_for(DDPM_SIDE, {}, share=0.1)
    with pytest.raises(InputError, match=r"'pd' does not go with .*; choose one of ddpm, .*, lcm, mine$"):
        settings_for(DDPM_SIDE, {}, sampler="pd")
    with pytest.raises(InputError, match=r"'mine' does not go with a model that is conditioned on logsnr"):
        settings_for(PD_SIDE, {}, sampler="mine")


def test_a_saved_option_that_is_none_of_its_sampler_is_refused(mine, tmp_path, monkeypatch):
    described = Settings.described
    monkeypatch.setattr(Settings, "described", lambda self: {**described(self), "folder": "/tmp"})
    with SDEdit(random_ddpm(), steps=1, backend="reference") as session:
        session.run(picture(np.random.default_rng(1), (32, 32)))
        session.save(tmp_path / "forged.session")
    with pytest.raises(SessionError, match="unknown option folder; options of sampler ddim: eta"):
        open_session(tmp_path / "forged.session", "reference")


def test_the_command_line_takes_its_options(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = {}
    for name in ("edit", "sample"):
        module = import_module(f"sparsegen.cli.{cli.COMMANDS[name]}")
        # decorated again: the command line reads the registry as it is imported
        commands[name] = with_sampler_options(getattr(module, name).__wrapped__)
    loading.save(random_ddpm(), "net.safetensors")
    write_png("a.png", picture(np.random.default_rng(1), (32, 32)))
    painted = read_image("a.png").copy()
    painted[8:12, 8:12] = 0
    write_png("b.png", painted)
    app = cli.typer.Typer(rich_markup_mode=None)
    for name, command in commands.items():
        app.command(name)(command)
    runner = cli.typer.main.get_command(app)
    words = "--model net.safetensors --backend reference --steps 2 --sampler mine --share 0.75 --order second"
    runner.main(f"edit --original a.png --edited b.png -o c.png {words}".split(), standalone_mode=False)
    runner.main(f"sample --size 32x32 -o d.png {words} --repeats 3".split(), standalone_mode=False)
    assert [(call["share"], call["repeats"], call["order"]) for call in mine] == [
        (0.75, 1, "second"),
        (0.75, 3, "second"),
    ]
    help_text = " ".join(runner.commands["edit"].get_help(cli.typer.Context(runner.commands["edit"])).split())
    assert "--share" in help_text
    assert "Diffusion: mine's share of the prediction, 0 to 1." in help_text
    assert "Diffusion: mine's solver, first or second." in help_text


def test_registrations_that_would_be_ambiguous_are_refused(mine):
    def steps(*given: Any, **named: Any) -> Iterator[Step]:
        return iter(())

    with pytest.raises(TypeError, match="two samplers are called 'mine'"):
        sampler("mine")(steps)
    for name in ("clip", "steps", "seed", "noise"):
        with pytest.raises(TypeError, match=f"option '{name}' has another meaning; give it another name"):
            sampler("other", options={name: Option(1, "number")})(steps)
    with pytest.raises(TypeError, match="option 'eta' has another meaning"):
        sampler("other", options={"eta": Option(1, "number")})(steps)
    assert "other" not in registry.SAMPLERS
    sampler("other", "another", options={"eta": Option(0.5, "part", most=1)})(steps)
    assert list(sampler_options()["eta"]) == ["ddim", "other", "another"]


# -- which settings are used -----------------------------------------------------------------------------


def test_settings_are_those_given_the_models_own_and_the_familys():
    own = {"schedule": "cosine", "steps": 10}
    assert settings_for(DDPM_SIDE, {}) == Settings(25, 500, "ddim", options={"eta": 0.0})
    assert settings_for(DDPM_SIDE, own) == Settings(10, 500, "ddim", "cosine", options={"eta": 0.0})
    assert settings_for(DDPM_SIDE, own, schedule="linear", sampler="euler") == Settings(10, 500, "euler")
    assert settings_for(PD_SIDE, {}, seed=3) == Settings(8, 5, "pd", seed=3)
    for unset in ("steps", "noise_level", "sampler", "schedule", "eta"):
        assert settings_for(DDPM_SIDE, own, **{unset: None}) == settings_for(DDPM_SIDE, own)
    assert settings_for(DDPM_SIDE, own, clip=None).clip is None


def test_an_option_of_a_sampler_that_is_not_used_says_nothing():
    own = {"eta": 0.5}
    assert settings_for(DDPM_SIDE, own).options == {"eta": 0.5}
    assert settings_for(DDPM_SIDE, own, sampler="euler").options == {}
    assert settings_for(DDPM_SIDE, {}, sampler="euler", eta=0).options == {}, "its default has no effect"
    with pytest.raises(InputError, match="eta is an option of sampler ddim, not of euler"):
        settings_for(DDPM_SIDE, {}, sampler="euler", eta=0.5)


def test_settings_are_read_as_they_were_described():
    settings = Settings(4, 300, "ddim", "cosine", None, (1, 2), {"eta": 0.5})
    described = settings.described()
    assert list(described) == ["steps", "noise_level", "sampler", "eta", "schedule", "clip", "seed"]
    assert Settings.read(described) == settings
    assert hash(Settings.read(described)) == hash(settings)
    # files of before this version name ddim's option for every sampler
    assert Settings.read({**described, "sampler": "euler", "eta": 0.0}).checked().options == {}
    with pytest.raises(TypeError, match="noise_level"):
        Settings.read({"steps": 4, "sampler": "ddim"})


def test_a_whole_way_starts_at_pure_noise():
    assert whole_way(DDPM_SIDE, {}) == settings_for(DDPM_SIDE, {}, steps=50, noise_level=1000)
    assert whole_way(PD_SIDE, {}) == settings_for(PD_SIDE, {}, steps=8, noise_level=8)
    assert whole_way(PD_SIDE, {}, steps=3) == settings_for(PD_SIDE, {}, steps=3, noise_level=3)
    assert whole_way(DDPM_SIDE, {"schedule": "cosine"}, steps=3).schedule == "cosine"
    for side in (DDPM_SIDE, PD_SIDE):
        for steps in (0, 1.5, "3"):
            with pytest.raises(InputError, match=f"steps is {steps!r}, expected a whole number from 1"):
                whole_way(side, {}, steps=steps)


def test_a_family_declares_its_diffusion_side():
    assert DiffusionDefaults("timestep", "noise", Settings(25, 500, "ddim"), 50) == DDPM_SIDE
    assert DiffusionDefaults("logsnr", "image", Settings(8, 5, "pd"), 8) == PD_SIDE
    of_noise = ["ddpm", "ddim", "dpm++2m", "dpm++2m-karras", "euler", "euler-a", "pndm", "lcm"]
    assert DDPM_SIDE.samplers() == of_noise
    assert DiffusionDefaults("timestep", "v", DDPM_SIDE.edit, 50).samplers() == of_noise
    assert PD_SIDE.samplers() == ["pd"]
    for model in (random_ddpm(), random_pd()):
        assert model.time == model.diffusion.time == model.diffusion.edit.noise_schedule().time
