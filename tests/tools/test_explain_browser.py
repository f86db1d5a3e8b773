"""The page of `explain` in a browser: headless Chromium, if there is one; what a reader clicks does what it should."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sparsegen.tools.explain import explain
from tests.unets import FAST, picture, random_ddpm, random_latent, stroke

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (the test extra has it)"
)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None, reason="no Chromium on this machine; 'apt-get install chromium' brings one"
    ),
]


def found_of_an_image() -> Any:
    original = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    edited = original.copy()
    edited[4:9, 5:11] = (200, 30, 40)
    return explain(random_ddpm(), original, edited, policy=FAST, steps=6, noise_level=300)


def found_of_a_text() -> Any:
    original = picture(np.random.default_rng(0), (64, 64))
    edited = stroke(original, (20, 24), (6, 9))
    return explain(random_latent(), original, edited, policy=FAST, prompt="a house", steps=6)


@pytest.fixture(scope="module", params=[found_of_an_image, found_of_a_text])
def found(request) -> Any:
    return request.param()


@pytest.fixture(scope="module")
def page(found, tmp_path_factory) -> Iterator[Any]:
    """The page, open; errors of its script and requests to elsewhere are collected in `page.wrong`."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    found.save(path)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith("http") and page.wrong.append(request.url))
        page.goto(path.as_uri())
        yield page
        assert page.wrong == []
        browser.close()


def test_it_shows_the_edit(page, found) -> None:
    assert "6 steps" not in page.inner_text("#about")
    assert f"{found.psnr:.1f} dB from dense" in page.inner_text("#panels")
    assert page.locator("#bars tbody tr.layer").count() == len(found.forward.layers)
    assert page.locator("#bars tbody tr.part th").all_inner_texts() == [
        each.title for each in found.forward.passes if each.title
    ]
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_every_layer_can_be_reached_from_the_keyboard(page, found) -> None:
    page.focus("#layer")
    page.keyboard.press("Home")
    seen = [page.inner_text("#layerFacts strong")]
    for _ in found.forward.layers[1:]:
        page.keyboard.press("ArrowRight")
        seen.append(page.inner_text("#layerFacts strong"))
    assert seen == [layer.path for layer in found.forward.layers]


def test_the_arrow_keys_move_to_a_tile_and_its_numbers_are_shown(page, found) -> None:
    place = next(i for i, layer in enumerate(found.forward.layers) if layer.path.endswith("conv_in"))
    layer = found.forward.layers[place]
    tile = layer.tiles[0]
    page.evaluate(f"choose({place})")
    page.evaluate(f"cursor = [{tile.row}, {tile.column - 1}]")
    page.focus("#stage")
    page.keyboard.press("ArrowRight")
    assert f"Tile ({tile.row}, {tile.column}) of {layer.path}" in page.inner_text("#tileFacts")
    shown = [float(text) for text in page.locator("#tileFacts figure").last.locator("td").all_inner_texts()]
    np.testing.assert_allclose(shown, tile.output.ravel(), rtol=6e-3, atol=1e-3)


def test_a_click_on_a_tile_that_stayed_says_so(page, found) -> None:
    place = next(i for i, layer in enumerate(found.forward.layers) if not layer.active.all())
    layer = found.forward.layers[place]
    row, column = np.argwhere(~layer.active)[0]
    page.evaluate(f"choose({place})")
    box = page.locator("#stage").bounding_box()
    rows, columns = layer.active.shape
    page.mouse.click(
        box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows
    )
    assert f"Tile ({row}, {column})" in page.inner_text("#tileFacts")
    assert "It is not active" in page.inner_text("#tileFacts")


def test_steps_can_be_scrubbed(page, found) -> None:
    page.focus("#step")
    page.keyboard.press("Home")
    kinds = []
    for _ in found.steps:
        kinds.append(page.inner_text("#stepFacts").split(",")[0])
        page.keyboard.press("ArrowRight")
    expected = [f"{i}: {'computed' if s.record.refreshed else 'carried'}" for i, s in enumerate(found.steps)]
    assert kinds == expected


def test_what_breaks_is_shown(page, found) -> None:
    for place, outcome in enumerate(found.what_ifs, start=1):
        page.check(f"#outcome{place}")
        assert page.inner_text("#breakText") == outcome.text
        far = "the same image as dense" if np.isinf(outcome.psnr) else f"{outcome.psnr:.1f} dB from dense"
        assert far in page.inner_text("#breakPanels")


def test_it_has_no_sideways_scroll_on_a_phone(page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.set_viewport_size({"width": 1200, "height": 900})
