"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, and is whole."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.pages import PAGES, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (the docs extra has it)"
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from the checkout as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    package = folder / "package"
    # the package as it is installed, without the time that an installer takes
    for name, source in (("", "sparsegen"), ("backends", "backends"), ("weights", "weights")):
        place = package / "sparsegen" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(ROOT / source) if name else _linked(ROOT / source, place)
    settings = (ROOT / "mkdocs.yml").read_text("utf-8").replace("build/docs", str(package))
    settings = settings.replace("docs_dir: docs", f"docs_dir: {ROOT / 'docs'}")
    settings = settings.replace("build/site", str(folder / "site")).replace(
        "docs/site", str(ROOT / "docs/site")
    )
    (folder / "mkdocs.yml").write_text(settings, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "-f", str(folder / "mkdocs.yml")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def _linked(source: Path, place: Path) -> None:
    """A folder of links to everything in `source`."""
    place.mkdir(parents=True)
    for each in source.iterdir():
        (place / each.name).symlink_to(each)


def test_every_page_is_there(site: Path) -> None:
    for page in PAGES:
        if page.startswith("docs/"):
            assert (site / page.removeprefix("docs/")).with_suffix(".html").exists(), page


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(https?:[^\s\">]*)", text)
        loaded += re.findall(
            r"<link[^>]*\srel=\"?(?:stylesheet|preload|icon)[^>]*\shref=\"?(https?:[^\s\">]*)", text
        )
        assert not loaded, page


def test_links_between_pages_lead_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for link in re.findall(r"<a[^>]*\shref=\"([^\"#]+)", page.read_text("utf-8")):
            if not re.match(r"https?:|mailto:", link) and page.name != "404.html":
                assert (page.parent / link).exists(), f"{page.relative_to(site)} -> {link}"


def test_chapters_are_notebooks_whose_cells_are_their_snippets(site: Path) -> None:
    chapters = sorted((site / "tutorial").glob("*.ipynb"))
    assert len(chapters) == 5
    for chapter in chapters:
        cells = json.loads(chapter.read_text("utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        page = (ROOT / "docs/tutorial" / chapter.name).with_suffix(".md").read_text("utf-8")
        assert code and all(snippet in page for snippet in code)
        assert "Predict." in "".join("".join(cell["source"]) for cell in cells)


def test_the_api_has_what_is_at_the_door(site: Path) -> None:
    import sparsegen

    text = (site / "api.html").read_text("utf-8")
    missing = [name for name in sparsegen.__all__ if f'id="sparsegen.{name}"' not in text]
    assert not missing
