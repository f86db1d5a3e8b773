"""The documentation is true: its code runs and prints the output shown, its commands run, its files and names exist."""

from __future__ import annotations

import ast
import itertools
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

import sparsegen
from sparsegen.cli import main
from sparsegen.images import colourise, write_png
from tests.cuda import emulator
from tests.house import pages
from tests.house.pages import PAGES, ROOT
from tests.networks import random_gaugan
from tests.tools.golden import write_golden
from tests.weights import sd_files

WITH_PYTHON = [page for page in PAGES if any(block.runs for block in pages.blocks(page))]
WITH_COMMANDS = [page for page in PAGES if page.startswith(("README", "docs/")) and pages.commands(page)]
FOLDERS = ("sparsegen", "backends", "weights", "tests", "bench", "docs")
UPSTREAM = {"sige/utils.py", "models/diffusion.py"}
"""Files of other projects that docstrings name."""
FOREIGN = {
    "EMAModel.save_pretrained",
    "Stream.use",
    "Extractor.extract",
    "Image.open",
    "Image.crop",
    "Tensor.__setstate__",
    "Tensor.__reduce_ex__",
}
"""Members of other projects' classes that docstrings name."""
MY_NETWORKS = """
import numpy as np, torch
from tests.oracles.torch_spade import SPADEGenerator

def street(model):
    network = SPADEGenerator(ngf=2, semantic_nc=36, nhidden=4, layers="more", size=(64, 128))
    state = {name: torch.tensor(each.float32) for name, each in model.parameters().items()}
    for name in [name for name in state if "mlp_gamma_beta" in name]:
        halves = zip(("mlp_gamma", "mlp_beta"), state.pop(name).chunk(2), strict=True)
        state |= {name.replace("mlp_gamma_beta", half): each for half, each in halves}
    for ours, theirs in (("norm.mean", "running_mean"), ("norm.var", "running_var")):
        state = {name.replace(ours, f"param_free_norm.{theirs}"): each for name, each in state.items()}
    state = {name.replace("mlp_shared", "mlp_shared.0"): each for name, each in state.items()}
    network.load_state_dict(state, strict=False)
    labels = np.arange(64 * 128).reshape(64, 128) // 1024
    return {"module": network, "image": labels, "edited": np.maximum(labels, 2)}
"""
"""The user's code of `sparsegen parity --module`."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that pages take for granted: the examples, images, a mask and a checkpoint."""
    builtin = ROOT / "weights" / "builtin"
    for name in ("landscape", "landscape-ddpm"):
        shutil.copytree(builtin / name, tmp_path / "weights" / "builtin" / name)
    for name, image in (("photo", "lake"), ("strokes", "lake-house")):
        shutil.copy(builtin / "landscape-ddpm" / f"{image}.png", tmp_path / f"{name}.png")
    for name in ("lake", "lake-house", "lake-woods"):
        shutil.copy(builtin / "landscape" / f"{name}.png", tmp_path)
    model = random_gaugan(semantic_nc=36, edge_channel=True, num_upsampling_layers="more")
    sparsegen.loading.save(model, tmp_path / "latest_net_G.pth")
    street = np.arange(64 * 128).reshape(64, 128) // 1024
    write_golden(model, street, tmp_path / "golden.safetensors")
    (tmp_path / "my_networks.py").write_text(MY_NETWORKS)
    sd_files.pipeline(tmp_path / "stable-diffusion")
    sd_files.lora(tmp_path / "style.safetensors")
    mask = np.zeros((256, 512), np.int32)
    mask[100:200, 150:400] = 1
    write_png(tmp_path / "mask.png", colourise(mask, [(0, 0, 0), (255, 255, 255)]))
    white = np.pad(np.ones((40, 40), np.int32), ((44, 44), (44, 44)))
    write_png(tmp_path / "photo-mask.png", colourise(white, [(0, 0, 0), (255, 255, 255)]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- code ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_blocks_run_and_print_the_output_that_the_page_shows(folder: Path, page: str) -> None:
    if "tests.cuda" in pages.read(page) and emulator.COMPILER is None:
        pytest.skip(emulator.MISSING)
    # a process of its own: pages register models, samplers and backends
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.house.pages", page],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if page == "README.md":
        assert "MACs" in done.stdout
        assert (folder / "edited.png").exists() and (folder / "real.png").exists()
        assert sparsegen.Session.load(folder / "lake.safetensors").edits == 1


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_the_command_lines_run(folder: Path, page: str) -> None:
    for command in pages.commands(page):
        assert main(shlex.split(command)) == 0, command
    written = {
        "README.md": ("out.png", "real.png", "woods.png", "back.png"),
        "docs/command-line.md": ("out-2.png", "real-preview-25.png", "net.safetensors", "sample-seed1.png"),
    }
    assert all((folder / name).exists() for name in written.get(page, ()))


def test_every_command_of_the_command_line_is_shown() -> None:
    from sparsegen.cli import COMMANDS

    shown = {command.split()[0] for command in pages.commands("docs/command-line.md")}
    assert shown == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_quoted_code_stands_in_the_file_that_is_named(page: str) -> None:
    for block in pages.blocks(page):
        if block.quoted is not None:
            quoted = [line.strip() for line in block.text.splitlines()[1:] if line.strip()]
            lines = [line.strip() for line in (ROOT / block.quoted).read_text("utf-8").splitlines()]
            source = "\n".join(line for line in lines if line)
            assert "\n".join(quoted) in source, f"{page}, line {block.line}: not in {block.quoted}"


def test_every_fence_has_a_language() -> None:
    known = {"python", "text", "sh", "toml", "cpp"}
    wrong = [(page, b.line) for page in PAGES for b in pages.blocks(page) if b.language not in known]
    wrong += [
        (page, b.line) for page in PAGES for b in pages.blocks(page) if b.language == "cpp" and not b.quoted
    ]
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_and_modules_in_commands_exist(page: str) -> None:
    text = pages.read(page)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M)) <= set(targets.split())
    for module in re.findall(r"python -m ((?:bench|tests)\.[\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


# -- pointers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    here = (ROOT / page).parent
    wrong = []
    for link in pages.links(page):
        path, _, heading = link.partition("#")
        target = (here / path).resolve() if path else ROOT / page
        if not target.exists() or (heading and heading not in pages.headings(target.read_text("utf-8"))):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_every_path_in_backticks_exists(page: str) -> None:
    here = (ROOT / page).parent
    wrong = []
    for word in pages.spans(page):
        in_the_tree = re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./*-]*", word)
        if in_the_tree or re.fullmatch(r"[\w./-]+\.(py|md)", word):
            # NAME stands for a file that is to be added: its folder exists
            name = word.partition("NAME")[0].rpartition("/")[0] if "NAME" in word else word
            if not any(ROOT.glob(name)) and not (here / name).exists():
                wrong.append(word)
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_the_package_in_backticks_exists(page: str) -> None:
    for word in pages.spans(page):
        found = re.match(r"sparsegen(?:\.\w+)+", word)
        if found:
            pkgutil.resolve_name(found[0])  # raises: there is no such module or attribute


def members() -> dict[str, set[str]]:
    """Every class of the project by name, and the names that it and its bases of the project define or assign."""
    own: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = own.setdefault(node.name, set())
                bases.setdefault(node.name, set()).update(
                    ast.unparse(base).rpartition(".")[2] for base in node.bases
                )
                for inner in ast.walk(node):
                    if isinstance(inner, ast.FunctionDef | ast.ClassDef):
                        names.add(inner.name)
                    elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                        names.add(inner.attr)
                    elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                        names.add(inner.id)

    def all_of(name: str) -> set[str]:
        return own.get(name, set()).union(*(all_of(base) for base in bases.get(name, ()) if base != name))

    return {name: all_of(name) for name in own}


def wrong_members(words: Iterable[str], classes: Mapping[str, set[str]]) -> list[str]:
    """The words such as `Session.edit` that name no member of a class of the project."""
    named = {word: re.match(r"(_?[A-Z]\w*[a-z]\w*)\.(?!md)(\w+)", word) for word in words}
    return [
        word
        for word, found in named.items()
        if found and found[2] not in classes.get(found[1], ()) and found[0] not in FOREIGN
    ]


def test_every_member_of_a_class_in_backticks_exists() -> None:
    classes = members()
    assert {"edit", "policy", "undo"} <= classes["Session"]
    assert wrong_members(["Session.edit", "Session.redit", "README.md"], classes) == ["Session.redit"]
    wrong = {page: wrong_members(pages.spans(page), classes) for page in PAGES}
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        words = re.findall(r"`+(_?[A-Z]\w*\.\w+)", path.read_text("utf-8"))
        if path != Path(__file__):
            wrong[str(path.relative_to(ROOT))] = wrong_members(words, classes)
    assert not {place: words for place, words in wrong.items() if words}


def test_every_file_that_docstrings_and_comments_name_exists() -> None:
    wrong = []
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for word in re.findall(r"`+([\w./-]+)`+", path.read_text("utf-8")):
            if word in UPSTREAM or not (
                word.endswith(".py") or word.startswith(tuple(f"{f}/" for f in FOLDERS))
            ):
                continue
            # beside the file, or from a folder above it
            if not any((above / word).exists() for above in path.parents if above.is_relative_to(ROOT)):
                wrong.append(f"{path.relative_to(ROOT)}: {word}")
    assert not wrong


# -- the README ------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_says_where_to_read() -> None:
    lines = pages.read("README.md").splitlines()
    assert len(lines) <= 130
    start = lines.index("## Where to read")
    table = [line for line in lines[start:] if line.startswith("| ")][2:]
    assert len(table) >= 5
    for line in table:
        assert 1 <= len(re.findall(r"\]\(", line)) <= 3, line


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    linked = set(pages.links("README.md"))
    linked |= {f"docs/{link.partition('#')[0]}" for link in pages.links("docs/index.md")}
    chapters = [page for page in PAGES if page.startswith("docs/tutorial/")]
    for chapter, following in itertools.pairwise(chapters):
        assert Path(following).name in pages.links(chapter), "each chapter leads to the next"
    assert {page for page in PAGES if page.startswith("docs/")} - {*chapters[1:], "docs/index.md"} <= linked
