"""What benchmarks compute beside times: strokes, similarity, tables and verdicts, the steps of an edit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench import chains, commits, engines, latents, quality_tables, strokes, study, study_tables
from bench.cases import Unet
from bench.latent_cases import PROMPT, QUICK_LATENT
from bench.similarity import SIGMA, similarity, ssim
from bench.trajectory import KINDS, Edit, Trajectory, mean
from sparsegen import load_bundle
from sparsegen.backends.reference import ReferenceBackend
from sparsegen.editing.dry_run import dry_run
from sparsegen.pipelines.latents import LatentDiffusion
from sparsegen.pipelines.sdedit import SDEdit
from sparsegen.pipelines.stable_diffusion import StableDiffusion
from sparsegen.tiling.policies import Fast
from tests.unets import random_ddpm

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (24, 30, 3)).astype(np.uint8)
OTHER = RNG.integers(0, 256, (24, 30, 3)).astype(np.uint8)
RADIUS = 5
"""Of the window of SSIM, in its paper."""
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def test_a_worker_finds_the_module_of_its_engine() -> None:
    assert "reference" in engines.open_engine(engines.OURS, "reference").version


# -- strokes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("area", [0.01, 0.05, 0.2])
def test_a_stroke_has_its_area_and_is_the_seeds(area: float) -> None:
    image = np.full((128, 128, 3), 128, np.uint8)
    for seed in range(8):
        edited = strokes.painted(image, seed, area)
        assert (image == 128).all()
        outline = 4 * (area / image[..., 0].size) ** 0.5  # drawn or not, it is up to a pixel wide
        assert (edited != image).any(-1).mean() == pytest.approx(area, abs=outline)
        assert np.array_equal(edited, strokes.painted(image, seed, area))


def test_every_example_of_the_built_in_model_is_an_edit() -> None:
    edits = list(strokes.examples("landscape-ddpm"))
    assert len({edit.name for edit in edits}) == len(edits) >= 10
    assert all(0 < (edit.original != edit.edited).any(-1).mean() < 0.25 for edit in edits)
    assert not list(strokes.examples("no such model"))


# -- similarity ------------------------------------------------------------------------------------------


def test_an_image_is_similar_to_itself_alone() -> None:
    assert ssim(IMAGE, IMAGE) == pytest.approx(1, abs=1e-12)
    assert ssim(IMAGE, OTHER) == pytest.approx(ssim(OTHER, IMAGE), abs=1e-12)
    assert ssim(IMAGE, OTHER) < 0.5


def test_of_even_images_the_means_alone_count() -> None:
    a, b = np.full((20, 20), 60.0), np.full((20, 20), 90.0)
    expected = (2 * 60 * 90 + C1) / (60**2 + 90**2 + C1)
    np.testing.assert_allclose(similarity(a, b), expected, rtol=1e-9)


def test_a_pixels_similarity_is_the_formula_over_its_window() -> None:
    a, b = IMAGE[..., 0].astype(float), OTHER[..., 0].astype(float)
    y, x, reach = 12, 15, np.arange(-RADIUS, RADIUS + 1)
    weights = np.exp(-(reach[:, None] ** 2 + reach**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    one, two = (image[y - RADIUS : y + RADIUS + 1, x - RADIUS : x + RADIUS + 1] for image in (a, b))
    mean_a, mean_b = (weights * one).sum(), (weights * two).sum()
    var_a, var_b = (weights * (one - mean_a) ** 2).sum(), (weights * (two - mean_b) ** 2).sum()
    both = (weights * (one - mean_a) * (two - mean_b)).sum()
    expected = (2 * mean_a * mean_b + C1) * (2 * both + C2)
    expected /= (mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2)
    assert similarity(a, b)[y, x] == pytest.approx(expected, abs=1e-9)


def test_similarity_of_a_region_is_of_its_pixels() -> None:
    mixed, region = IMAGE.copy(), np.zeros((24, 30), bool)
    mixed[:, :8] = OTHER[:, :8]
    region[:, 8 + RADIUS :] = True
    assert ssim(IMAGE, mixed, region) == pytest.approx(1, abs=1e-12)
    assert ssim(IMAGE, mixed) < 0.9


# -- tables ----------------------------------------------------------------------------------------------


def _row(policy: str, name: str, area: float, region: float) -> dict[str, Any]:
    return {
        "group": "some",
        "name": name,
        "policy": policy,
        "area": area,
        "macs": area * 2,
        "psnr": region + 10,
        "psnr_region": region,
        "ssim_region": 0.99,
    }


ROWS = [
    _row("paper", "0", 0.012, 50.0),
    _row("paper", "1", 0.11, 41.0),
    _row("fast", "0", 0.012, 49.6),
    _row("fast", "1", 0.11, 37.0),
    _row("fast(refresh=9)", "0", 0.012, float("inf")),
]


def test_a_table_has_a_line_for_each_policy_and_a_cell_for_each_area() -> None:
    head, lines = quality_tables.head(ROWS), list(quality_tables.lines(ROWS))
    assert [line[0] for line in lines] == ["paper", "fast", "fast(refresh=9)"]
    assert head[2:5] == ["0 % to 2 % (1)", "10 % to 25 % (1)", "all"]
    assert lines[1][2:5] == ["49.6 · 49.6", "37.0 · 37.0", "43.3 · 37.0"]
    assert lines[2][2:4] == ["∞ · ∞", ""]
    assert {len(line) for line in [head, *lines]} == {len(head)}


def test_verdicts_compare_fast_with_paper_in_each_area() -> None:
    found = [(figure, reached) for _, figure, _, reached in quality_tables.verdicts(ROWS)]
    assert found == [("0.4 dB", True), ("4.0 dB", False), ("37.0 dB", False)]
    assert not list(quality_tables.verdicts(ROWS[:2]))


def test_a_sentence_counts_the_edits_that_are_nearer() -> None:
    (sentence,) = quality_tables.beside_paper(ROWS)
    assert "nearer to the dense edit than `paper` in 0 of 2 edits" in sentence
    assert "farther in 2, by up to 4.0 dB" in sentence and "1.00 at the median" in sentence
    assert not list(quality_tables.beside_paper(ROWS[2:]))


# -- the study -------------------------------------------------------------------------------------------


def test_a_session_that_keeps_every_canvas_follows_any_setting() -> None:
    image = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    edited = strokes.painted(image, 0, 0.05)
    settings: dict[str, Any] = {"steps": 6, "backend": "reference"}
    with SDEdit(random_ddpm(), policy="fast(refresh=1)", **settings) as one:
        one.run(image)
        for setting in (study.Setting(0.7, refresh=2), study.Setting(refresh=4, frontier=1)):
            one.policy = one.model.policy(setting.policy)
            found = one.edit(edited)
            one.undo()
            with SDEdit(random_ddpm(), policy=setting.policy, **settings) as other:
                other.run(image)
                expected = other.edit(edited)
            assert np.array_equal(found.output, expected.output)
            assert found.stats.macs == expected.stats.macs < found.stats.macs_dense


def test_the_first_strokes_of_a_study_spread_their_areas() -> None:
    assert study.spread(4) == [0, 16, 8, 24]
    assert sorted(study.spread(strokes.EDITS)) == list(range(strokes.EDITS))


def _studied(name: str, area: float, region: float, **setting: Any) -> dict[str, Any]:
    policy = study.Setting(**setting).policy if setting else "paper"
    settings = vars(study.Setting(**setting)) if setting else {}
    return {**_row(policy, name, area, region), "noise_level": 300, **settings}


STUDIED = [
    _studied("0", 0.012, 50.0),
    _studied("1", 0.11, 40.0),
    _studied("0", 0.012, 52.0, refresh=1),
    _studied("1", 0.11, 44.0, refresh=1),
    _studied("0", 0.012, 51.0, statistics=0.8),
    _studied("1", 0.11, 43.0, statistics=0.8),
    _studied("0", 0.012, 47.0, frontier=2),
    _studied("1", 0.11, 45.0, frontier=2),
]


def test_tables_of_the_study_have_a_line_for_each_setting() -> None:
    head, lines = study_tables.weights(STUDIED, 1)
    assert head == ["weight", "MACs", "0 % to 2 % (1)", "10 % to 25 % (1)", "all (2)"]
    assert [line[0] for line in lines] == ["`paper`", "0.4"]
    assert lines[1][2:] == ["52.0 · 52.0", "44.0 · 44.0", "48.0 · 44.0"]
    assert [line[0] for line in study_tables.weights(STUDIED, study.REFRESH)[1]] == ["`paper`", "0.8"]
    assert [line[0] for line in study_tables.refreshes(STUDIED, 0.4)[1]] == ["`paper`", "0, 1", "2, 6"]
    elsewhere = [{**row, "noise_level": 600} for row in STUDIED[::2]]
    head, lines = study_tables.levels([*STUDIED, *elsewhere])
    assert head[1:] == ["from noise level 300 (1)", "from noise level 600 (1)"]
    assert lines[0] == ["`paper`", "50.0 · 50.0", "50.0 · 50.0"] and len(lines) == 3
    head, lines = study_tables.of_level([*STUDIED, *elsewhere], 600)
    assert head[2:] == ["0 % to 2 % (1)", "all (1)"]
    assert [line[0] for line in lines] == ["`paper`", "0.4, 1", "0.8, 6", "0.4, 6"]


# -- latents ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_session_of_latents_that_keeps_every_canvas_follows_any_setting() -> None:
    models = LatentDiffusion(load_bundle("landscape-sd"))
    image = RNG.integers(0, 256, (128, 128, 3)).astype(np.uint8)
    edited = strokes.painted(image, 0, 0.05)
    settings: dict[str, Any] = {"steps": 8, "strength": 1.0}
    with StableDiffusion(models, "a lake", policy=latents.EVERY_STEP, **settings) as one:
        one.run(image)
        for policy in ("fast(refresh=4)", "paper"):
            one.policy = models.unet.policy(policy, fast=models.unet.fast_for(len(one.times)))
            found = one.edit(edited)
            one.undo()
            with StableDiffusion(models, "a lake", policy=policy, **settings) as other:
                other.run(image)
                expected = other.edit(edited)
            assert np.array_equal(found.output, expected.output)
            assert found.stats.macs == expected.stats.macs < found.stats.macs_dense


def test_tables_of_latents_have_a_line_for_each_setting_of_each_way() -> None:
    rows = [
        {
            **_row(setting.policy, f"{size}", size, region + 100 * size),
            "steps": steps,
            "strength": strength,
            "size": size,
            "dilation": setting.dilation,
        }
        for steps, strength in latents.WAYS
        for region, setting in enumerate(latents.SETTINGS)
        for size in latents.AREAS
    ]
    found = dict(latents.tables(rows))
    policies, weights = found["25 steps, strength 0.5"], found["Weight of fresh statistics"]
    assert policies.head == [
        *("policy", "MACs, 1 %", "MACs, 5 %", "MACs, 15 %", "1 %", "5 %", "15 %", "all (3)", "image")
    ]
    assert policies.lines[0][0] == "paper" and len(policies.lines) == 1 + len(latents.REFRESHES)
    assert policies.lines[1][4:8] == ["2.0 · 2.0", "6.0 · 6.0", "16.0 · 16.0", "6.0 · 2.0"]
    assert [line[0] for line in weights.lines] == ["0", "0.4", "0.7"]
    assert [line[0] for line in found["The decoder's dilation"].lines] == ["0", "1", "2"]


# -- steps -----------------------------------------------------------------------------------------------

NET = Unet("tiny", "ddpm", 16, 8, (1, 2), (1,), 1, 16, 300.0, {}, {})


def test_the_steps_of_an_edit_are_of_three_kinds_and_leave_nothing() -> None:
    model, policy = random_ddpm(), Fast(dilation=1, frontier=1, refresh=4)
    inputs = model.encode(NET.noisy(), **{model.time: NET.time})
    edits = [Edit.of(NET.strokes(0.05, variant), policy) for variant in range(3)]
    trajectory = Trajectory(model, inputs, policy, ReferenceBackend())
    before = [state.output() for state in trajectory.states]
    first, refreshed, carried = [step.macs for step in trajectory.edit(edits[0])]
    assert first == refreshed > carried > 0
    for state, output in zip(trajectory.states, before, strict=True):
        assert np.array_equal(state.output(), output)
    weights = trajectory.weights(25)
    assert sum(weights) == 25 and sum(weights[:2]) == sum(policy.refreshed(25))
    timings, macs = trajectory.measure(edits)
    assert [len(timings[kind]) for kind in KINDS] == [2, 2, 2]
    assert carried < mean([macs[kind] for kind in KINDS], weights) < refreshed


@pytest.mark.torch
@pytest.mark.parametrize("policy", ["paper", "fast"])
def test_timed_edits_of_latent_diffusion_have_the_tiles_of_a_sessions(policy: str) -> None:
    from tests.oracles.sd_models import parts

    net, models = QUICK_LATENT, LatentDiffusion(parts().bundle, backend="reference")
    settings = {"steps": net.steps, "strength": net.strength, "policy": policy}
    with StableDiffusion(models, PROMPT, **settings) as session:
        session.run(net.image())
        stats = session.edit(net.painted(net.image(), 0)).stats
    region, unet, decoder = net.region(net.small, 0), models.unet, models.decoder
    step = net.step_edit(region, unet.policy(policy))
    run = dry_run(unet, net.inputs(unet), step.plan, step.changed)
    assert sum(each.macs for each in run.records) == stats.steps[1].macs
    edit = net.decoder_edit(region, decoder.policy(policy))
    run = dry_run(decoder, decoder.encode(net.latents()), edit.plan, edit.changed)
    timed = sum(each.macs for each in stats.layers if each.path.startswith("decoder."))
    assert sum(each.macs for each in run.records) == timed


def test_two_commits_are_compared_call_by_call_without_the_first_calls() -> None:
    warm_up = (["dense", 900.0, "bits"], ["dense", 100.0, "bits"])
    pairs = [(["dense", old, "bits"], ["dense", 1.5 * old, "bits"]) for old in (10.0, 20.0, 40.0)]
    found = commits.row("dense", [warm_up, *pairs] * 2, rounds=2)
    assert found["old_cpu_ms"] == 20 and found["new_cpu_ms"] == 30 and found["pairs"] == 6
    assert found["ratio"] == 1.5 and found["quartiles"] == [1.5, 1.5] and found["same_bits"]
    other = (["dense", 10.0, "bits"], ["dense", 10.0, "others"])
    assert not commits.row("dense", [warm_up, *pairs, other], rounds=1)["same_bits"]


def test_a_mean_over_the_steps_weighs_kinds_by_their_number() -> None:
    assert mean([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], (1, 1, 2)) == [3.5, 4.5]


def test_edits_in_a_row_of_a_session_that_computes_everything_are_dense() -> None:
    image = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    with SDEdit(random_ddpm(), steps=3, policy=chains.DENSE, backend="reference") as session:
        session.run(image)
        for seed in range(2):
            edited = strokes.painted(session.image, seed, 0.05)
            expected = session.dense(edited).output
            assert np.array_equal(session.edit(edited).output, expected)
