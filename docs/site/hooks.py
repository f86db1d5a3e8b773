"""What mkdocs does beside its own: pages that link to the repository's files get these files, chapters a notebook.

Pages are written for the repository, where a link such as `../sparsegen/engine/run.py` leads to the file. The site has
a page for each file that is linked, below `repository/`, so that it works without the repository and without a network.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$\n?", re.M | re.S)
PICTURES = {".png", ".svg"}
UNSEARCHED = "---\nsearch: {exclude: true}\n---\n"
"""The head of a page that the search leaves out."""
WORKER = "assets/worker.js"
SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme would load in its place."""
LANGUAGES = {".py": "python", ".cu": "cpp", ".cuh": "cpp", ".h": "cpp", ".json": "json", ".md": "markdown"}


def outside(page: str, link: str) -> str | None:
    """The path from the root of a file that a page of `docs/` links to outside of `docs/`; None: it lies inside."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") or path == "docs" else path


def target(path: str) -> str:
    """Where the site has a file of the repository."""
    if path == "README.md":
        return "index.md"
    return f"repository/{path}" + ("" if Path(path).suffix in PICTURES else ".md")


def source_page(path: str) -> str:
    """A page that shows a file, or lists a folder."""
    place = ROOT / path
    if place.is_dir():
        listed = "\n".join(f"- {each.name}" for each in sorted(place.iterdir()) if each.name[0] not in "._")
        return f"{UNSEARCHED}# {path}/\n\n{listed}\n"
    text, language = place.read_text(encoding="utf-8"), LANGUAGES.get(place.suffix, "text")
    return f"{UNSEARCHED}# {path}\n\n````{language}\n{text}````\n"


def notebook(markdown: str) -> str:
    """A chapter as a Jupyter notebook: its Python blocks are cells; the output that it shows is left to the reader."""
    cells: list[dict[str, Any]] = []

    def add(kind: str, text: str) -> None:
        if text.strip():
            code = {"execution_count": None, "outputs": []} if kind == "code" else {}
            lines = text.strip().splitlines(keepends=True)
            cells.append(
                {"cell_type": kind, "id": f"cell{len(cells)}", "metadata": {}, "source": lines, **code}
            )

    end = 0
    for found in FENCE.finditer(markdown):
        add("markdown", markdown[end : found.start()])
        quoted = found[2].startswith("# sparsegen/")
        if found[1] == "python" and not quoted:
            add("code", found[2])
        elif found[1] != "text":
            add("markdown", found[0])
        end = found.end()
    add("markdown", markdown[end:])
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, ensure_ascii=False, indent=1)


def on_files(files: Any, config: Any) -> Any:
    """Add the files of the repository that pages link to, and a notebook for each chapter of the tutorial."""
    wanted: set[str] = set()
    for page in list(files.documentation_pages()):
        text = Path(page.abs_src_path).read_text(encoding="utf-8")
        wanted |= {path for link, _ in LINK.findall(text) if (path := outside(page.src_uri, link))}
        if page.src_uri.startswith("tutorial/"):
            name = page.src_uri.removesuffix(".md") + ".ipynb"
            files.append(File.generated(config, name, content=notebook(text)))
    for path in sorted(wanted - {"README.md"}):
        given = (
            {"content": (ROOT / path).read_bytes()}
            if Path(path).suffix in PICTURES
            else {"content": source_page(path)}
        )
        files.append(File.generated(config, target(path), **given))
    worker = Path(__file__).with_name("worker.js").read_text(encoding="utf-8")
    files.append(File.generated(config, WORKER, content=worker))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to the repository's files to the site's pages of them."""
    here = page.file.src_uri
    if here.startswith("repository/"):
        return markdown

    def turned(found: re.Match[str]) -> str:
        path = outside(here, found[1])
        if path is None:
            return found[0]
        return f"]({posixpath.relpath(target(path), posixpath.dirname(here) or '.')})"

    markdown = LINK.sub(turned, markdown)
    if here.startswith("tutorial/"):
        name = posixpath.basename(here).removesuffix(".md") + ".ipynb"
        title, _, rest = markdown.partition("\n")
        markdown = f"{title}\n\n[This chapter as a notebook]({name})\n{rest}"
    return markdown


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Load the stand-in for the search's worker from the site itself, not from elsewhere."""
    return output.replace(SHIM, posixpath.relpath(WORKER, posixpath.dirname(page.file.dest_uri) or "."))


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """The same for pages without a Markdown file."""
    return output.replace(SHIM, WORKER)
