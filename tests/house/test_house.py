"""The house: who may import whom, read off every file; no arrow runs up, nothing heavy comes in by itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sparsegen
from sparsegen.backends import registry

ROOT = Path(__file__).parents[2]
FOLDERS = {"sparsegen": "sparsegen", "backends": "sparsegen.backends", "weights": "sparsegen.weights"}
"""Folder of the checkout -> the name that its code is imported by."""

# A module imports only lower floors, its own room, and the neighbours in the next table. `sparsegen/__init__.py`
# draws this table's image.
FLOORS = {
    "__main__": 10,
    "cli": 9,
    "loading": 8,
    "tools": 8,
    "pipelines": 7,
    "editing": 6,
    "models": 5,
    "layers": 4,
    "engine": 3,
    "images": 3,
    "tiling": 2,
    "diffusion": 2,
    "checks": 1,
    "backends": 1,
    "weights": 1,
    "errors": 0,
}
# Rooms and the arrows between them, `cli`'s to the package itself included: the most there may be. The design aims at
# 15 and 55. A new arrow is a decision: raise the number in the commit that needs it, and say why. (`tools` looks into
# everything below it: that is 14 of them.)
MOST_ROOMS, MOST_ARROWS = 16, 75
# room -> rooms of the same floor that it may import
NEIGHBOURS = {
    "checks": {"backends"},
}
# The rooms inside `backends` and inside `weights`, whose `__init__.py` draws them; neighbours import nothing of each
# other. `training` stays out of the wheel.
FLOORS_OF_BACKENDS = {
    "registry": 3,
    "reference": 2,
    "numba_cpu": 2,
    "cupy_cuda": 2,
    "counting": 3,
    "shapes": 2,
    "base": 1,
    "interface": 0,
    "caches": 0,
}
FLOORS_OF_WEIGHTS = {
    "training": 10,
    "lora": 9,
    "parts": 8,
    "families": 7,
    "keymap": 6,
    "averages": 6,
    "checkpoint": 5,
    "formats": 4,
    "pickles": 3,
    "tensor": 2,
    "limits": 1,
    "mapped": 1,
    "which": 1,
    "transforms": 1,
    "writer": 1,
    "errors": 0,
    "dtypes": 0,
    "builtin": 0,
}
INNER_FLOORS = {"sparsegen.backends": FLOORS_OF_BACKENDS, "sparsegen.weights": FLOORS_OF_WEIGHTS}
# what the engine may import of the two folders below it (`cli` also the door of `sparsegen.backends`)
CONTRACT = {"sparsegen.backends.interface", "sparsegen.backends.registry"}
CONTRACT |= {"sparsegen.backends.shapes", "sparsegen.backends.counting"}
WEIGHTS_ROOMS = {"builtin"}
EXPLAIN = Path("sparsegen/tools/explain")
"""It looks into the formulas of the reference backend."""
TRAINING = "sparsegen.weights.training"
"""Scripts around PyTorch that made the built-in models: in the repository, not in the wheel."""

# the longest path that matches -> third parties that may be imported there, anywhere in the file
THIRD_PARTIES = {
    "sparsegen": {"numpy"},
    "sparsegen/images": {"numpy", "PIL"},
    "sparsegen/cli": {"numpy", "typer", "rich"},
    "sparsegen/tools/explain/page.py": {"numpy", "matplotlib"},
    "sparsegen/tools/parity": {"numpy", "torch"},
    "backends": {"numpy"},
    "backends/numba_cpu": {"numpy", "numba", "llvmlite"},
    "backends/cupy_cuda": {"numpy", "cupy", "cupyx", "cupy_backends"},
    "weights": {"numpy"},
    "weights/formats/safetensors_file.py": {"numpy", "safetensors"},
    "weights/training": {"numpy", "scipy", "PIL", "torch", "diffusers", "transformers"},
    "tests": {"numpy", "scipy", "PIL", "torch", "safetensors", "pytest", "hypothesis", "typer"},
    "tests/cuda": {"numpy", "pytest", "hypothesis", "torch", "cupy", "cupyx", "cupy_backends"},
    "tests/diffusion/test_samplers_parity.py": {"numpy", "torch", "diffusers", "pytest"},
    "tests/models/test_tokenizer.py": {"numpy", "transformers", "pytest"},
    "tests/weights/test_weights_sd_names.py": {
        *("numpy", "safetensors", "torch", "diffusers", "transformers", "pytest"),
    },
    "tests/tools/test_explain_browser.py": {"numpy", "pytest"},
    "tests/backends/test_numba_processors.py": {"numpy", "pytest", "numba", "llvmlite"},
    "tests/oracles/diffusers_networks.py": {"diffusers", "transformers"},
    "bench": {"numpy", "torch", "PIL", "rich", "numba", "ncnn", "onnx", "onnxruntime", "matplotlib", "cupy"},
    "bench/primitives": {"numpy", "pytest", "pytest_benchmark"},
    "bench/similarity.py": {"numpy", "skimage"},
    "bench/learned.py": {"numpy", "torch", "lpips", "cleanfid"},
    "bench/cluster.py": {"distributed"},
    "bench/torch_latent.py": {"numpy", "torch", "PIL", "diffusers", "transformers"},
}


@dataclass(frozen=True)
class Import:
    """One imported module: where, and as what."""

    path: Path
    line: int
    module: str
    """Absolute dotted name of the module."""
    name: str | None
    """What is taken out of it, if it is not a module itself."""

    def __str__(self) -> str:
        taken = f" ({self.name})" if self.name else ""
        return f"{self.path}:{self.line} imports {self.module}{taken}"


def files() -> list[Path]:
    """Every Python file of the project, relative to the root."""
    folders = (*FOLDERS, "tests", "bench")
    return sorted(p.relative_to(ROOT) for folder in folders for p in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """`backends/numba_cpu/launch.py` -> `sparsegen.backends.numba_cpu.launch`."""
    parts = [FOLDERS.get(path.parts[0], path.parts[0]), *path.with_suffix("").parts[1:]]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = files()
MODULES = {module_name(path) for path in FILES}


def imports(path: Path, source: str | None = None) -> Iterator[Import]:
    """Every import statement of a file, also those inside functions, as absolute names."""
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(source or (ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name, None)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                if submodule in MODULES:
                    yield Import(path, node.lineno, submodule, None)
                else:
                    yield Import(path, node.lineno, module, alias.name)


IMPORTS = [found for path in FILES for found in imports(path)]


def room(module: str, package: str = "sparsegen") -> str:
    """`sparsegen.models.gaugan` -> `models`; "" for the package itself."""
    return module.removeprefix(package).removeprefix(".").partition(".")[0]


def inside(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def in_training(path: Path) -> bool:
    return path.parts[:2] == ("weights", "training")


def of_engine(path: Path) -> bool:
    return path.parts[0] == "sparsegen"


def complain(wrong: list[Import], rule: str) -> None:
    assert not wrong, f"{rule}:\n" + "\n".join(map(str, wrong))


def test_the_reader_of_imports_reads_imports() -> None:
    text = """
import numpy.linalg as la
from . import launch
from .launch import Launcher
def late():
    from ..interface import TILE
    from ...errors import InputError
"""
    found = [(i.module, i.name) for i in imports(Path("backends/numba_cpu/backend.py"), text)]
    assert found == [
        ("numpy.linalg", None),
        ("sparsegen.backends.numba_cpu.launch", None),
        ("sparsegen.backends.numba_cpu.launch", "Launcher"),
        ("sparsegen.backends.interface", "TILE"),
        ("sparsegen.errors", "InputError"),
    ]
    assert len(FILES) > 30
    assert len(IMPORTS) > 200


# -- directions ------------------------------------------------------------------------------------------


def test_backends_import_only_backends() -> None:
    wrong = [
        i
        for i in IMPORTS
        if i.path.parts[0] == "backends"
        and inside(i.module, "sparsegen")
        and not inside(i.module, "sparsegen.backends")
    ]
    complain(wrong, "a backend knows arrays, never the engine")


def test_weights_import_only_weights() -> None:
    wrong = [
        i
        for i in IMPORTS
        if i.path.parts[0] == "weights"
        and inside(i.module, "sparsegen")
        and not inside(i.module, "sparsegen.weights")
    ]
    complain(wrong, "a reader of files knows names and arrays, never the engine or a backend")


def test_the_engine_imports_only_the_contract_of_backends() -> None:
    wrong = [
        i
        for i in IMPORTS
        if of_engine(i.path)
        and inside(i.module, "sparsegen.backends")
        and i.module not in CONTRACT
        and not (i.module == "sparsegen.backends" and i.path.parent == Path("sparsegen/cli"))
        and not (i.module == "sparsegen.backends.reference" and i.path.parent == EXPLAIN)
    ]
    complain(wrong, f"the engine imports only {', '.join(sorted(CONTRACT))}")


def test_the_engine_imports_only_public_names_of_weights() -> None:
    public: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / "weights/__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            public = set(ast.literal_eval(node.value))
    assert "read_checkpoint" in public
    allowed = {("sparsegen.weights", name) for name in public}
    allowed |= {(f"sparsegen.weights.{name}", None) for name in WEIGHTS_ROOMS}
    wrong = [
        i
        for i in IMPORTS
        if of_engine(i.path) and inside(i.module, "sparsegen.weights") and (i.module, i.name) not in allowed
    ]
    complain(wrong, "the engine takes from sparsegen.weights what its __all__ names")


def test_every_room_has_a_floor() -> None:
    rooms = {room(module) for module in MODULES if inside(module, "sparsegen")} - {""}
    assert rooms - set(FLOORS) == set(), "give a new room a floor in the table, and in sparsegen/__init__.py"
    for name, neighbours in NEIGHBOURS.items():
        assert {FLOORS[name]} == {FLOORS[neighbour] for neighbour in neighbours}


def test_no_arrow_runs_up() -> None:
    wrong = []
    for i in IMPORTS:
        # the package's own __init__ is the door: it names what users see, from every floor
        if (
            not of_engine(i.path)
            or not inside(i.module, "sparsegen")
            or i.path == Path("sparsegen/__init__.py")
        ):
            continue
        here, there = room(module_name(i.path)), room(i.module)
        if there == "":
            # only the command line may come in by the door, which opens last
            if here != "cli":
                wrong.append(i)
        elif here != there and there not in NEIGHBOURS.get(here, ()) and FLOORS[there] >= FLOORS[here]:
            wrong.append(i)
    complain(wrong, "a module imports only lower floors and its listed neighbours")


def test_there_are_no_more_rooms_and_arrows_than_counted() -> None:
    rooms = {room(module) for module in MODULES if inside(module, "sparsegen")} - {""}
    arrows = {
        (room(module_name(i.path)), room(i.module))
        for i in IMPORTS
        if of_engine(i.path) and inside(i.module, "sparsegen") and i.path != Path("sparsegen/__init__.py")
    }
    between = sorted(f"{here} -> {there or 'sparsegen'}" for here, there in arrows if here != there)
    assert len(rooms) <= MOST_ROOMS, sorted(rooms)
    assert len(between) <= MOST_ARROWS, between


@pytest.mark.parametrize("package", INNER_FLOORS)
def test_no_arrow_runs_up_inside(package: str) -> None:
    floors = INNER_FLOORS[package]
    rooms = {room(module, package) for module in MODULES if inside(module, package)} - {""}
    assert rooms - set(floors) == set(), (
        f"give a new room a floor in the table, and in {package}'s __init__.py"
    )
    wrong = []
    for i in IMPORTS:
        here, there = room(module_name(i.path), package), room(i.module, package)
        if not inside(module_name(i.path), package) or not inside(i.module, package) or here == "":
            continue  # here == "": the package's own __init__, its door
        if there == "" or (here != there and floors[there] >= floors[here]):
            wrong.append(i)
    complain(wrong, f"inside {package}, a module imports only lower floors")


def test_no_imports_run_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {module: set() for module in MODULES}
    for i in IMPORTS:
        if i.module in MODULES and i.module != module_name(i.path):
            arrows[module_name(i.path)].add(i.module)
    # a module that imports no other is in no circle; nor is one that imports only such modules
    while free := {module for module, there in arrows.items() if not there & arrows.keys()}:
        arrows = {module: there for module, there in arrows.items() if module not in free}
    assert not arrows, f"these modules import each other, or a circle: {', '.join(sorted(arrows))}"


def test_nothing_of_the_wheel_imports_what_stays_out_of_it() -> None:
    wrong = [
        i
        for i in IMPORTS
        if i.path.parts[0] in FOLDERS and not in_training(i.path) and inside(i.module, TRAINING)
    ]
    complain(wrong, f"{TRAINING} is not in the wheel")


def test_the_door_does_not_open_to_the_command_line() -> None:
    door = [i for i in IMPORTS if i.path == Path("sparsegen/__init__.py")]
    complain(
        [i for i in door if room(i.module) in ("cli", "__main__", "images")],
        "sparsegen/__init__.py stays light",
    )


def test_the_door_opens_to_each_name_where_a_type_checker_finds_it() -> None:
    door = [i for i in IMPORTS if i.path == Path("sparsegen/__init__.py") and inside(i.module, "sparsegen")]
    homes = {(f"sparsegen.{home}", name) for home, names in sparsegen._HOMES.items() for name in names}
    assert homes == {(i.module, i.name) for i in door if i.name is not None}
    assert sorted(name for _, name in homes) == sorted(sparsegen.__all__) and set(sparsegen.__all__) <= set(
        dir(sparsegen)
    )
    for name in (*sparsegen.__all__, *sparsegen._ROOMS):
        assert getattr(sparsegen, name) is not None


def drawn_floors(path: str) -> dict[str, int]:
    """The image in a package's docstring: room -> floor, off lines such as "5  models · layers     1  checks"."""
    doc = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    assert doc is not None
    return {
        name.rstrip("/"): int(floor)
        for floor, names in re.findall(r"\b(\d)  (\S+(?: · \S+)*)", doc)
        for name in names.split(" · ")
    }


def test_the_picture_of_the_floors_is_the_table() -> None:
    drawn = drawn_floors("sparsegen/__init__.py")
    assert len(drawn) >= 11
    assert drawn == {name: FLOORS[name] for name in drawn}


@pytest.mark.parametrize("package", INNER_FLOORS)
def test_the_pictures_inside_are_the_tables(package: str) -> None:
    folder = next(folder for folder, name in FOLDERS.items() if name == package)
    on_disk = {room(module, package) for module in MODULES if inside(module, package)} - {"", "training"}
    assert drawn_floors(f"{folder}/__init__.py") == {name: INNER_FLOORS[package][name] for name in on_disk}


# -- third parties ---------------------------------------------------------------------------------------


def test_third_parties_stay_where_they_belong() -> None:
    wrong = []
    for i in IMPORTS:
        top = i.module.split(".")[0]
        if top in sys.stdlib_module_names or top in ("sparsegen", "tests", "bench"):
            continue
        path = i.path.as_posix()
        matches = [place for place in THIRD_PARTIES if f"{path}/".startswith(f"{place}/")]
        if top not in THIRD_PARTIES[max(matches, key=len)]:
            wrong.append(i)
    complain(wrong, "this third party is not allowed here (THIRD_PARTIES says where)")


def test_pytorch_is_only_an_oracle_and_a_trainer() -> None:
    parity = "sparsegen/tools/parity/"  # a user's module is the oracle there; imported when it is called
    wrong = [
        i
        for i in IMPORTS
        if i.module.split(".")[0] == "torch"
        and not i.path.as_posix().startswith(("tests/", "bench/", "weights/training/", parity))
    ]
    complain(wrong, f"PyTorch is imported only in tests/, bench/, weights/training/ and {parity}")


def test_nothing_is_imported_by_its_folders_name() -> None:
    # from the root of a checkout `import backends` works too: a second module object with its own registry
    wrong = [i for i in IMPORTS if i.module.split(".")[0] in ("backends", "weights")]
    complain(wrong, "write sparsegen.backends and sparsegen.weights")


def test_every_import_of_the_project_is_of_a_module_that_exists() -> None:
    wrong = [i for i in IMPORTS if inside(i.module, "sparsegen") and i.module not in MODULES]
    complain(wrong, "no such module")


FRESH = """
import sys
MISSING = {missing!r}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Blocker())
import sparsegen
from sparsegen.backends import get_backend
{code}
print(sorted({{name.split(".")[0] for name in sys.modules}} & {heavy!r}))
"""
HEAVY = {"numba", "llvmlite", "cupy", "torch", "typer", "click", "rich", "scipy", "PIL"}
NUMBA = {"numba", "llvmlite"}
EDIT = """
import numpy as np
from sparsegen.models import GauGAN, GauGANConfig
small = GauGANConfig(ngf=1, semantic_nc=3, nhidden=2, num_upsampling_layers="normal", edge_channel=False)
session = sparsegen.Session(GauGAN(small), {backend})
labels = np.zeros((32, 32), int)
session.run(labels)
labels[3, 4] = 1
assert session.edit(labels).stats.macs > 0
"""
WITHOUT = ("sparsegen.__main__", "sparsegen.backends.numba_cpu", TRAINING)
"""Modules that run the command line, or need Numba or PyTorch."""


def run_python(code: str, *, missing: set[str] | None = None) -> str:
    """Run `code` in a fresh interpreter that has imported sparsegen, as if `missing` were not installed.

    Returns the names of `HEAVY` that were loaded, as text.
    """
    script = FRESH.format(missing=missing or set(), heavy=HEAVY, code=code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_sparsegen_loads_nothing_heavy() -> None:
    assert run_python("") == "[]"


def test_an_edit_at_the_command_line_loads_what_it_uses() -> None:
    """No other command, and no other name at the door."""
    code = """
import sys
from sparsegen.cli import main
assert main("edit --model landscape --original a.png --edited b.png --backend reference -o c.png".split()) == 2
print(sorted(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.returncode == 0 and "a.png" in done.stderr, done.stderr
    loaded = set(ast.literal_eval(done.stdout))
    unused = {"matplotlib", "numba", "torch", "sparsegen.tools.explain"}
    unused |= {"sparsegen.tools.parity", "sparsegen.cli.profiling", "sparsegen.cli.explaining"}
    assert not loaded & unused


def test_the_reference_backend_computes_with_numpy_alone() -> None:
    code = EDIT.format(backend="get_backend('reference')")
    assert run_python(code, missing=HEAVY) == "[]"


def test_without_numba_all_but_its_kernels_can_be_imported() -> None:
    others = [m for m in sorted(MODULES) if inside(m, "sparsegen") and not inside(m, *WITHOUT)]
    assert len(others) > 60
    run_python(f"import importlib\nfor module in {others}: importlib.import_module(module)", missing=NUMBA)


def test_where_numba_cannot_exist_a_session_computes_without_a_warning() -> None:
    code = f"""
import warnings
from sparsegen.backends import backend_status
sys.platform = "emscripten"
warnings.simplefilter("error")
{EDIT.format(backend="None")}
assert session.memory.backend.name == "reference"
assert "numba" in backend_status()["numba"]
"""
    assert run_python(code, missing=HEAVY) == "[]"


def test_where_numba_is_merely_not_installed_a_session_says_so() -> None:
    code = f"""
import warnings
caught = []
warnings.showwarning = lambda message, *where: caught.append(str(message))
{EDIT.format(backend="None")}
assert session.memory.backend.name == "reference"
assert [text.partition(";")[0] for text in caught] == [
    "backend 'numba' cannot run here (ModuleNotFoundError: No module named 'numba')"
]
"""
    assert run_python(code, missing=HEAVY) == "[]"


# -- packaging -------------------------------------------------------------------------------------------


def pyproject() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    parsed: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return parsed


def test_numba_is_required_where_it_exists() -> None:
    (numba,) = [each for each in pyproject()["project"]["dependencies"] if each.startswith("numba")]
    platforms = registry._NO_SUCH_PLATFORM["numba"]
    assert numba.partition("; ")[2] == " and ".join(f"sys_platform != '{name}'" for name in platforms)


def test_every_package_folder_is_listed_in_pyproject() -> None:
    settings = pyproject()["tool"]["setuptools"]
    assert settings["package-dir"] == {name: folder for folder, name in FOLDERS.items()}
    on_disk = {
        module_name(path.parent / "__init__.py")
        for path in FILES
        if path.parts[0] in FOLDERS and not in_training(path)
    }
    assert on_disk == set(settings["packages"]), "a subpackage that is not listed is missing from the wheel"
    for path in FILES:
        if path.parts[0] in FOLDERS:
            assert (ROOT / path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


def test_make_help_describes_every_target_and_quick_names_areas_of_the_tests() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    described = re.findall(r"^([a-z-]+):.* ## \S", makefile, re.M)
    assert described == targets.split()
    (areas,) = re.findall(r"^QUICK := (.*)$", makefile, re.M)
    assert all((ROOT / "tests" / area).is_dir() for area in areas.split())
