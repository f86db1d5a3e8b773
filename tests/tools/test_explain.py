"""`explain`: what it says of an edit is true, on small models with random weights."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

import sparsegen
from sparsegen import Exact, InputError, Paper, SparsegenError
from sparsegen.backends.interface import Source, Tiles
from sparsegen.backends.reference import ReferenceBackend
from sparsegen.models.base import Inputs, Model
from sparsegen.pipelines import StableDiffusion
from sparsegen.tiling.masks import difference_mask
from sparsegen.tiling.policies import Policy
from sparsegen.tiling.tiles import TileSet, gather_tiles
from sparsegen.tools.explain import explain
from sparsegen.tools.explain.forward import MOST_TILES, look_into
from sparsegen.tools.explain.observed import WithoutHalo
from sparsegen.tools.explain.passes import Pass, noted
from sparsegen.tools.explain.tile import INPUT, KERNEL, OUTPUT
from tests.networks import random_gaugan, random_labels
from tests.unets import FAST, picture, random_ddpm, random_latent, stroke


@pytest.fixture(scope="module")
def labels() -> tuple[Any, Any]:
    """A label map `[32, 64]` and an edited copy."""
    original = random_labels(np.random.default_rng(0))
    edited = original.copy()
    edited[10:17, 20:33] = (edited[10:17, 20:33] + 1) % 4
    return original, edited


@pytest.fixture(scope="module")
def images() -> tuple[Any, Any]:
    """An image `[16, 16, 3]` and a copy with a stroke over it."""
    original = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    edited = original.copy()
    edited[4:9, 5:11] = (200, 30, 40)
    return original, edited


@pytest.fixture(scope="module")
def latent() -> Any:
    """The models of a tiny Stable Diffusion."""
    return random_latent()


@pytest.fixture(scope="module")
def photos() -> tuple[Any, Any]:
    """An image `[64, 64, 3]` and a copy with a stroke over it."""
    original = picture(np.random.default_rng(0), (64, 64))
    return original, stroke(original, (20, 24), (6, 9))


TEXTS: dict[str, Any] = {"prompt": "a house", "steps": 5, "strength": 0.8, "policy": FAST}
"""Options of an edit that a text leads: four steps, of which some carry."""


def edit_of(model: Model, original: Inputs, edited: Inputs, policy: Policy) -> Pass:
    """The pass of an edit from one input to another."""
    difference = difference_mask(original.canvases, edited.canvases)
    changed = TileSet.of_mask(difference)
    values = {name: gather_tiles(array, changed.tiles) for name, array in edited.canvases.items()}
    return Pass(model, original, values, changed, changed, policy.plan(difference))


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_an_exact_edit_of_fixed_norms_has_no_error_in_any_layer(labels) -> None:
    model = random_gaugan()
    original, edited = (model.encode(each) for each in labels)
    found = look_into([edit_of(model, original, edited, Exact())])
    assert {layer.path for layer in found.layers} >= {
        "fc",
        "head_0.conv_0",
        "up_3.norm_s.mlp_gamma_beta",
        "conv_img",
    }
    assert found.culprit is None
    assert all(layer.inherited == 0 for layer in found.layers)
    assert any(layer.moved.any() for layer in found.layers)
    # what moved, moved in active tiles
    assert all(not layer.moved[~layer.active].any() for layer in found.layers)


def test_an_approximate_edit_errs_where_its_tiles_end(labels) -> None:
    model = random_gaugan()
    original, edited = (model.encode(each) for each in labels)
    policy = Paper(dilation=0, level_dilation=0, sparse_levels=8)
    found = look_into([edit_of(model, original, edited, policy)])
    last = found.layers[-1]
    assert 0 < last.inherited < 1
    assert found.culprit is not None
    # the worst layer's own error lies in tiles that were left out: its norm has fixed statistics
    assert not np.isclose(found.culprit.own, 0)
    first = next(layer for layer in found.layers if layer.inherited)
    assert first.own == pytest.approx(first.inherited)  # what it reads is right
    assert first.error[~first.active].sum() > 0.99 * first.error.sum()


def test_own_errors_leave_out_what_is_inherited(labels) -> None:
    """A layer of fixed norms whose inputs are right computes right tiles: it errs in tiles that it leaves alone."""
    model = random_gaugan()
    original, edited = (model.encode(each) for each in labels)
    policy = Paper(dilation=0, level_dilation=0, sparse_levels=8)
    found = look_into([edit_of(model, original, edited, policy)])
    for layer in found.layers:
        left_out = np.linalg.norm(layer.moved[~layer.active]) / max(np.linalg.norm(layer.moved), 1e-9)
        assert layer.own == pytest.approx(left_out, abs=1e-5), layer.path


def test_layers_name_the_line_that_calls_them(labels) -> None:
    model = random_gaugan()
    original, edited = (model.encode(each) for each in labels)
    forward = look_into([edit_of(model, original, edited, Exact())])
    found = {layer.path: layer for layer in forward.layers}
    assert found["conv_img"].file == "models/spade.py"
    assert found["conv_img"].code.startswith("return self.conv_img(")
    assert "mlp_gamma_beta" in found["up_0.norm_0.mlp_gamma_beta"].code


def test_the_transforms_are_those_of_a_convolution() -> None:
    rng = np.random.default_rng(0)
    d, g = rng.normal(size=(6, 6)), rng.normal(size=(3, 3))
    plain = sum(g[y, x] * d[y : y + 4, x : x + 4] for y in range(3) for x in range(3))
    transformed = OUTPUT @ ((KERNEL @ g @ KERNEL.T) * (INPUT @ d @ INPUT.T)) @ OUTPUT.T
    np.testing.assert_allclose(transformed, plain, atol=1e-12)


def test_the_numbers_of_a_tile_are_those_that_the_layer_computes(images) -> None:
    model = random_ddpm()
    rng = np.random.default_rng(1)
    before = rng.normal(size=(1, 16, 16, 3)).astype(np.float32)
    after = before.copy()
    after[:, 4:9, 5:11] += 1
    ends = [model.encode(x, timestep=300) for x in (before, after)]
    found = look_into([edit_of(model, *ends, FAST)])
    parameters = {path: each.float32 for path, each in model.parameters().items()}
    transformed = 0
    for layer in found.layers:
        assert len(layer.tiles) <= MOST_TILES
        for tile in layer.tiles:
            assert layer.active[tile.row, tile.column]
            if layer.path == "conv_in":  # nothing is added to it but its bias
                bias = parameters["conv_in.bias"][tile.output_channel]
                np.testing.assert_allclose(tile.sums + bias, tile.output, atol=1e-5)
            if tile.products is not None:
                transformed += 1
                back = OUTPUT @ tile.products @ OUTPUT.T
                np.testing.assert_allclose(back, tile.sums, atol=1e-4 * np.abs(tile.sums).max())
    assert transformed > 10


def test_without_halos_only_the_borders_of_tiles_are_wrong() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 12, 12, 2)).astype(np.float32)
    weight = rng.normal(size=(3, 2, 3, 3)).astype(np.float32)
    right, broken = ReferenceBackend(), WithoutHalo()
    outs = []
    for backend in (right, broken):
        weights = backend.prepare_conv(weight, None, padding=(1, 1, 1, 1))
        if backend is broken:
            broken.broken = True
        out = np.zeros((1, 12, 12, 3), np.float32)
        backend.conv2d(out, Tiles(np.array([[0, 1, 1]])), Source((x,)), weights)
        outs.append(out[0, 4:8, 4:8])
    wrong = (outs[0] != outs[1]).any(-1)
    expected = np.ones((4, 4), bool)
    expected[1:3, 1:3] = False
    assert (wrong == expected).all()


def test_an_edit_of_labels_is_explained(labels, tmp_path) -> None:
    model = random_gaugan()
    found = explain(model, *labels)
    assert found.step is None and not found.steps
    assert [each.name for each in found.what_ifs] == ["without dilation", "without halos"]
    assert found.edited.stats.edited_area == pytest.approx((labels[0] != labels[1]).mean())
    assert found.forward.layers[-1].milliseconds is not None
    found.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == found.html
    data = data_of(page)
    assert data["layers"][-1]["path"] == "conv_img"
    assert [each[0] for each in data["costs"]] == pytest.approx(
        [0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0], rel=0.5
    )
    assert found.psnr == pytest.approx(data["psnr"])
    assert "<iframe" in found._repr_html_()


def test_an_edit_of_an_image_is_explained(images) -> None:
    model = random_ddpm()
    found = explain(model, *images, policy=FAST, steps=6, noise_level=300)
    computed = [each.record.step for each in found.steps if each.record.refreshed]
    assert found.step in computed and len(computed) < len(found.steps) == 6
    names = [each.name for each in found.what_ifs]
    assert names == ["without dilation", "with stale statistics", "with every step computed", "without halos"]
    data = data_of(found.html)
    assert len(data["steps"]) == 6 and data["step"] == found.step
    assert all(layer["ms"] is not None for layer in data["layers"])
    sizes = found.forward.sizes  # one for each resolution, the largest first, and nothing is lost
    assert [each.height for each in sizes] == sorted(
        {each.height for each in found.forward.layers}, reverse=True
    )
    assert sum(each.macs for each in sizes) == sum(each.macs for each in found.forward.layers)
    assert sum(each.milliseconds for each in sizes) == pytest.approx(
        sum(each["ms"] for each in data["layers"])
    )
    assert f"The layers of step {found.step} take" in data["timeText"]


def test_an_edit_that_follows_a_text_is_explained(latent, photos) -> None:
    found = explain(latent, *photos, **TEXTS)
    assert [each.part for each in found.forward.passes] == ["encoder", "unet", "decoder"]
    paths = [layer.path for layer in found.forward.layers]
    assert paths[0] == "encoder.conv_in" and paths[-1] == "decoder.conv_out"
    assert all(layer.milliseconds is not None for layer in found.forward.layers)
    computed = [each.record.step for each in found.steps if each.record.refreshed]
    assert found.step in computed and len(computed) < len(found.steps) == 4
    assert found.edited.stats.edited_area == found.difference.mean() == 54 / 64**2
    names = [each.name for each in found.what_ifs]
    assert names == ["without dilation", "with stale statistics", "with every step computed", "without halos"]
    assert "Masks of the UNet" in found.what_ifs[0].text
    assert [cost.area for cost in found.costs] == pytest.approx(
        [0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1], rel=0.5
    )
    data = data_of(found.html)
    assert data["layers"][data["first"]]["part"] == "unet"
    assert "which number" in data["partsText"] and "4×4 pixels" in data["partsText"]
    assert ["prompt", "a house"] in data["facts"]
    # what a step predicts is an image: outside the edit the original's, in the end the result's within
    far = np.ones((64, 64), bool)
    far[12:34, 16:41] = False
    for each in found.steps:
        np.testing.assert_array_equal(each.preview[far], photos[0][far])
    assert np.abs(found.steps[-1].preview.astype(int) - found.edited.image).max() < 64


@pytest.mark.parametrize("policy", ["paper", FAST, "exact"])
def test_the_layers_of_an_edit_are_computed_as_by_its_session(latent, photos, policy) -> None:
    """Every layer has the active tiles and MACs that the session counted for it."""
    found = explain(latent, *photos, step=2, whole=False, **{**TEXTS, "policy": policy})
    once = {each.path: each for each in found.edited.stats.layers if not each.path.startswith("unet")}
    # of the UNet's four records of each layer, that of step 2
    steps = [each for each in found.edited.stats.layers if each.path.startswith("unet")]
    once |= {each.path: each for each in steps[2 * len(steps) // 4 : 3 * len(steps) // 4]}
    assert {layer.path for layer in found.forward.layers} == set(once)
    for layer in found.forward.layers:
        samples = 2 if layer.part == "unet" else 1  # the negative text's, and the prompt's
        assert (layer.macs, int(layer.active.sum()) * samples) == (
            once[layer.path].macs,
            once[layer.path].active,
        )


def test_a_text_is_painted_in_a_mask(latent, photos) -> None:
    mask = np.zeros((64, 64), bool)
    mask[20:40, 20:44] = True
    found = explain(latent, photos[0], photos[0], mask=mask, whole=False, **{**TEXTS, "strength": 1.0})
    np.testing.assert_array_equal(found.difference, mask)
    assert found.edited.stats.edited_area == mask.mean()
    # the encoder reads nothing new
    assert [each.part for each in found.forward.passes] == ["unet", "decoder"]
    data = data_of(found.html)
    assert "The encoder computed nothing" in data["partsText"] and data["strokes"] == "the mask, in white"
    assert (found.strokes[mask] == 255).all()


def test_an_inpainting_model_has_a_second_encoder(photos) -> None:
    found = explain(random_latent(channels=9), *photos, whole=False, **TEXTS)
    assert [each.part for each in found.forward.passes] == ["encoder", "masked", "unet", "decoder"]


def test_without_guidance_the_prompt_is_the_only_sample(latent, photos) -> None:
    for guidance, sample in ((1.0, 0), (7.5, 1)):
        found = explain(latent, *photos, whole=False, guidance=guidance, **TEXTS)
        assert [each.sample for each in found.forward.passes] == [0, sample, 0]


def test_what_a_session_repaints_is_noted_while_somebody_looks(latent, photos) -> None:
    options = {name: value for name, value in TEXTS.items() if name != "prompt"}
    with StableDiffusion(latent, "a house", **options) as session:
        session.run(photos[0])
        with noted(session.states) as passes:
            session.edit(photos[1])
        assert list(passes) == list(session.states)
        encoder = passes[session.states[0]]
        np.testing.assert_array_equal(
            encoder.after.canvases["image"], session.states[0].input("image"), strict=True
        )
        before = photos[0][None] / np.float32(127.5) - 1
        np.testing.assert_array_equal(encoder.before.canvases["image"], before)
        assert all(state.on_repaint is None for state in session.states)


def test_a_step_can_be_chosen_among_those_that_compute(images) -> None:
    model = random_ddpm()
    chosen = {"policy": FAST, "steps": 6, "noise_level": 300, "whole": False}
    assert explain(model, *images, step=0, **chosen).step == 0
    with pytest.raises(
        InputError, match="step is 1, expected one that computes its layers under this policy: 0, 2"
    ):
        explain(model, *images, step=1, **chosen)


def test_a_mask_leaves_changes_out(labels) -> None:
    model = random_gaugan()
    mask = np.zeros(labels[0].shape, bool)
    mask[10:14] = True
    with pytest.warns(UserWarning, match="lie outside the mask"):
        found = explain(model, *labels, mask=mask, whole=False)
    assert not found.difference[14:].any() and found.difference[10:14].any()


def test_all_of_a_mask_is_denoised(images) -> None:
    mask = np.zeros((16, 16), bool)
    mask[2:10, 3:12] = True
    found = explain(random_ddpm(), *images, mask=mask, policy=FAST, steps=3, noise_level=300, whole=False)
    np.testing.assert_array_equal(found.difference, mask)
    assert found.edited.stats.edited_area == mask.mean()


def test_the_page_needs_nothing_from_elsewhere(labels) -> None:
    model = random_gaugan()
    model.name = "</script><script>alert(1)</script>"
    page = explain(model, *labels, whole=False).html
    assert "<script>alert" not in page
    assert not re.search(r'(?:src|href)="(?!#|data:|")', page)
    assert "url(http" not in page and "@import" not in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "landscape"}, "explain needs one model"),
        ({"original": np.zeros((2, 2, 2, 2))}, r"original has shape \(2, 2, 2, 2\)"),
        ({"policy": "quick"}, "unknown policy"),
        ({"step": 3}, "only an edit of a diffusion model has steps"),
        ({"edited": np.zeros((8, 8), int)}, r"edited is \(8, 8\), expected \(32, 64\), as original"),
        ({"mask": np.zeros((32, 64), bool)}, "the edit changes no pixel"),
    ],
)
def test_what_does_not_fit_is_one_error(labels, change, message) -> None:
    given = {"model": random_gaugan(), "original": labels[0], "edited": labels[1], "whole": False} | change
    with pytest.raises(SparsegenError, match=message):
        explain(given.pop("model"), given.pop("original"), given.pop("edited"), **given)


def test_an_edit_without_a_text_or_a_change_is_one_error(latent, photos) -> None:
    with pytest.raises(InputError, match="follows a text; give prompt="):
        explain(latent, *photos)
    with pytest.raises(
        InputError, match="the edit changes no pixel; give an edited copy that differs, or a mask"
    ):
        explain(latent, photos[0], photos[0], **TEXTS)


def test_it_is_at_the_door() -> None:
    assert sparsegen.explain is explain
