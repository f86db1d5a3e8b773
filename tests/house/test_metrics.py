"""Edits of a folder beside dense ones: every row once, whatever is missing, damaged or cut off."""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from bench import learned, metrics
from bench.measured import KEY, VALUES, figures
from bench.rows import Rows
from bench.triples import read_folder
from sparsegen.errors import InputError, SparsegenError
from sparsegen.images import psnr, write_png
from sparsegen.models.base import Model
from sparsegen.weights import native_metadata, write_safetensors
from tests.networks import random_gaugan
from tests.unets import random_ddpm

SIZE = (32, 32)
LABELS = 4


def written(path: Path, model: Model) -> str:
    """A model's file."""
    values = {name: parameter.value for name, parameter in model.parameters().items()}
    write_safetensors(path, values, native_metadata(model.family, asdict(model.config)))
    return str(path)


@pytest.fixture(scope="module")
def gaugan(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("models") / "gaugan.safetensors", random_gaugan())


@pytest.fixture(scope="module")
def with_edges(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = random_gaugan(edge_channel=True, semantic_nc=LABELS + 1)
    return written(tmp_path_factory.mktemp("models") / "edges.safetensors", model)


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("models") / "ddpm.safetensors", random_ddpm())


def labels(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, LABELS, (4, 4))
    return np.kron(small, np.ones((SIZE[0] // 4, SIZE[1] // 4), int)).astype(np.uint8)


def edited(before: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A copy with a changed square of 6×6, and its mask."""
    y, x = np.random.default_rng(seed).integers(0, SIZE[0] - 6, 2)
    mask = np.zeros(before.shape[:2], bool)
    mask[y : y + 6, x : x + 6] = True
    after = before.copy()
    after[mask] = (before[mask] + 1) % LABELS if before.ndim == 2 else 255 - before[mask]
    return after, mask


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        write_png(path, array)


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Two originals, label maps of one and of two edits, laid out as `original`, `edited`, `masks`."""
    folder = tmp_path / "maps"
    for number, names in enumerate((("000",), ("001/a", "001/b"))):
        save(folder / f"original/{number:03}.npy", before := labels(number))
        for seed, name in enumerate(names):
            after, mask = edited(before, 10 * number + seed)
            save(folder / f"edited/{name}.npy", after)
            save(folder / f"masks/{name}.npy", mask)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """As `maps`, of images, an edit each, with true images, and masks of half the size, as PNGs."""
    folder = tmp_path / "images"
    for number in range(2):
        before = np.random.default_rng(number).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
        after, mask = edited(before, number)
        for kind, image in (("original", before), ("edited", after), ("gt", 255 - before)):
            save(folder / f"{kind}/{number:03}.png", image)
        save(folder / f"masks/{number:03}.png", np.repeat(mask[::2, ::2, None], 3, -1).astype(np.uint8) * 255)
    return folder


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Two synthetic maps of one real one, laid out as SIGE's `cityscapes-edit`."""
    folder = tmp_path / "cityscapes-edit"
    save(folder / "gt_labels/7.npy", before := labels(7))
    save(folder / "gt_instances/7.npy", before.astype(np.int32))
    save(folder / "images/7.png", np.zeros((*SIZE, 3), np.uint8))
    for number in (1501, 1502):
        after, mask = edited(before, number)
        save(folder / f"synthetic_labels/{number}.npy", after)
        save(folder / f"synthetic_instances/{number}.npy", after.astype(np.int32))
        save(folder / f"masks/{number}.npy", mask)
    (folder / "meta.csv").write_text("gt,synthetic\n7,1501\n7,1502\n")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(path: Path) -> list[dict[str, str]]:
    """The rows without their times, sorted."""
    found = [{name: cell for name, cell in row.items() if name != "ms"} for row in rows_of(path)]
    return sorted(found, key=lambda row: [row[column] for column in KEY])


def run(folder: Path, output: Path, model: str, *options: str) -> int:
    common = ["--model", model, "--backend", "reference", "-o", str(output)]
    return metrics.run([str(folder), *common, *options])


# -- the CSV ---------------------------------------------------------------------------------------------


def _row(edit: str, value: float | None = 1 / 3) -> dict[str, Any]:
    return {"data": 'a "b", c', "edit": edit, "psnr": value}


def test_a_row_is_written_once_and_at_once(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "new/rows.csv", ("data", "edit"), ("psnr",))
    assert rows.add(_row("1")) and rows.add(_row("2", float("inf"))) and rows.add(_row("3", None))
    assert not rows.add(_row("1", 5.0))
    assert [row["psnr"] for row in rows_of(rows.path)] == ["0.333333", "inf", ""]
    again = Rows(rows.path, ("data", "edit"), ("psnr",))
    assert not again.mended and again.rows == rows.rows and ('a "b", c', "2") in again


def test_a_file_cut_off_anywhere_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    path, rows = tmp_path / "rows.csv", [_row("1"), _row("2"), _row("3")]
    first = Rows(path, ("data", "edit"), ("psnr",))
    for row in rows:
        first.add(row)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        opened = Rows(path, ("data", "edit"), ("psnr",))
        assert opened.mended == (not whole[:length].endswith(b"\n") and length > 0)
        for row in rows:
            opened.add(row)
        assert path.read_bytes() == whole


def test_another_csv_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for text in ("a,b\n1,2\n", "a note", "data,edit,psnr\nx,1,2\nx,2\nx,3,4\n"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"name another file|line 3: 2 cells, expected 3; remove"):
            Rows(path, ("data", "edit"), ("psnr",))
        assert path.read_text() == text


# -- folders ---------------------------------------------------------------------------------------------


def test_a_folder_of_pairs_groups_the_edits_of_an_original(maps: Path) -> None:
    found = read_folder(maps)
    assert found.problems == []
    assert [[edit.name for edit in each.edits] for each in found.originals] == [["000"], ["001/a", "001/b"]]
    assert found.originals[1].edits[1].mask == maps / "masks/001/b.npy"
    assert [edit.name for each in found.first(2).originals for edit in each.edits] == ["000", "001/a"]


def test_each_file_that_is_missing_is_named_and_its_edit_left_out(maps: Path) -> None:
    (maps / "masks/000.npy").unlink()
    save(maps / "original/002.npy", labels(2))
    save(maps / "edited/003.npy", labels(3))
    save(maps / "edited/001/b.png", labels(3)[..., None].repeat(3, -1))
    (maps / "edited/notes.txt").write_text("not an image")
    found = read_folder(maps)
    assert [edit.name for each in found.originals for edit in each.edits] == ["001/a", "001/b"]
    named = ("001/b.png: b.npy has the same name", "masks/000.npy", "original/003.png", "edited/002.png")
    assert len(found.problems) == len(named)
    assert all(any(name in line for line in found.problems) for name in named), found.problems


def test_a_cityscapes_folder_is_edited_both_ways(cityscapes: Path) -> None:
    found = read_folder(cityscapes)
    named = [[edit.name for edit in each.edits] for each in found.originals]
    assert named == [["1501_synthetic", "1502_synthetic"], ["1501_gt"], ["1502_gt"]]
    assert [each.edits[0].truth for each in found.originals] == [None, *[cityscapes / "images/7.png"] * 2]
    assert len(read_folder(cityscapes, both_ways=False).originals) == 1
    (cityscapes / "synthetic_instances/1502.npy").unlink()
    (cityscapes / "meta.csv").write_text("gt,synthetic\n7,1501\n7,1502\n7\n7,1501\n\n")
    found = read_folder(cityscapes)
    assert found.edits == 2
    assert [line.split(", line ")[1].partition(":")[0] for line in found.problems] == ["3", "4", "5"]


def test_a_folder_without_edits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the folders original and edited"):
        read_folder(tmp_path)
    save(tmp_path / "original/1.npy", labels(0))
    (tmp_path / "edited").mkdir()
    with pytest.raises(InputError, match=r"no edit to measure: .*original/1.npy: there is no"):
        read_folder(tmp_path)


# -- figures ---------------------------------------------------------------------------------------------


def test_figures_are_of_the_whole_image_and_of_both_sides_of_the_mask() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[10:20, 10:30] = True
    other = image.copy()
    other[mask] = rng.integers(0, 256, (mask.sum(), 3))
    found = figures(image, other, mask, 255 - image, None)
    assert found["psnr_out"] == float("inf") and found["psnr_in"] == psnr(image[mask], other[mask])
    # the mean square is that of the mask, spread over all pixels
    assert found["psnr"] == pytest.approx(found["psnr_in"] + 10 * np.log10(mask.size / mask.sum()))
    assert found["ssim_in"] < found["ssim"] < found["ssim_out"] <= 1
    assert found["psnr_truth"] == psnr(image, 255 - image)
    assert set(found) == set(VALUES) - {"area", "macs", "ms"}
    of_all = figures(image, other, np.ones_like(mask), None, None)
    assert of_all["psnr_out"] is None and of_all["ssim_out"] is None and of_all["psnr_truth"] is None
    assert of_all["psnr_in"] == of_all["psnr"]


def test_without_their_packages_learned_distances_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lpips", "cleanfid"):
        monkeypatch.setitem(sys.modules, name, None)
    for check in (lambda: learned.check_lpips("alex"), learned.check_fid):
        with pytest.raises(InputError, match=r"^--\w+: .*; install \S+, and .*, or omit it$"):
            check()


def test_weights_that_cannot_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: Any) -> None:
        print("Downloading …")
        raise OSError("no network")

    package = ModuleType("lpips")
    package.LPIPS = offline
    monkeypatch.setitem(sys.modules, "lpips", package)
    with pytest.raises(InputError, match=r"^--lpips: cannot get the weights of vgg.*no network; go online"):
        learned.check_lpips("vgg")


@pytest.mark.torch
def test_lpips_of_a_mask_is_the_mean_of_its_map(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    class Network:
        spatial = False

        def __call__(self, a: Any, b: Any) -> Any:
            assert a.shape == (1, 3, 64, 80) and a.abs().max() <= 1
            found = (a - b).abs().mean(1, keepdim=True)
            return found if self.spatial else found.mean((2, 3), keepdim=True)

    network = Network()
    monkeypatch.setattr(learned, "_lpips", lambda net: network)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 64, 80, 3)).astype(np.uint8)
    mask = rng.random((64, 80)) < 0.2
    apart = np.abs(a.astype(float) - b).mean(-1) / 127.5
    assert learned.lpips(a, b, "alex") == pytest.approx(apart.mean(), abs=1e-6)  # float32
    assert learned.lpips(a, b, "alex", mask) == pytest.approx(apart[mask].mean(), abs=1e-6)
    with pytest.raises(InputError, match="expected 64 pixels a side"):
        learned.lpips(a[:63], b[:63], "alex")
    assert torch.is_grad_enabled()


# -- the command -----------------------------------------------------------------------------------------


def test_every_edit_has_a_row_for_each_policy(maps: Path, gaugan: str, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    assert run(maps, output, gaugan, "--policies", "exact", "paper", "dense") == 0
    rows = rows_of(output)
    expected = {(e, p) for e in ("000", "001/a", "001/b") for p in ("exact", "paper", "dense")}
    assert {(row["edit"], row["policy"]) for row in rows} == expected and len(rows) == 9
    for row in rows:
        assert float(row["area"]) == pytest.approx(36 / 1024, abs=1e-6)  # six digits
        assert float(row["ms"]) > 0 and row["lpips"] == row["psnr_truth"] == ""
        if row["policy"] != "paper":  # fixed statistics: an exact edit equals a dense run
            assert row["psnr"] == row["psnr_in"] == "inf" and row["ssim"] == "1"
        assert row["macs"] == "1" or row["policy"] != "dense"


def test_edits_of_a_diffusion_model_take_its_settings(images: Path, ddpm: str, tmp_path: Path) -> None:
    output, shown = tmp_path / "rows.csv", tmp_path / "shown"
    options = ("--steps", "3", "--seed", "5", "--policies", "fast", "--images", str(shown))
    assert run(images, output, ddpm, *options) == 0
    rows = rows_of(output)
    assert [row["settings"] for row in rows] == ["seed=5 steps=3"] * 2
    assert all(float(row["psnr"]) < 100 and float(row["psnr_truth"]) < 20 for row in rows)
    assert {path.name for path in (shown / "fast").iterdir()} == {"000.png", "001.png"}
    # other settings are other rows
    assert run(images, output, ddpm, "--steps", "2", "--edits", "1", "--policies", "fast") == 0
    assert len(rows_of(output)) == 3


def test_files_are_resized_alike(images: Path, ddpm: str, tmp_path: Path) -> None:
    assert (
        run(images, tmp_path / "rows.csv", ddpm, "--steps", "1", "--size", "16x16", "--policies", "fast") == 0
    )
    assert {row["settings"] for row in rows_of(tmp_path / "rows.csv")} == {"steps=1 size=16x16"}


def test_cityscapes_maps_bring_their_instances(cityscapes: Path, with_edges: str, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    assert run(cityscapes, output, with_edges, "--policies", "exact") == 0
    rows = rows_of(output)
    assert len(rows) == 4 and {row["psnr"] for row in rows} == {"inf"}
    assert [bool(row["psnr_truth"]) for row in rows] == [row["edit"].endswith("_gt") for row in rows]


def test_a_run_that_was_cut_off_goes_on_where_it_was(
    maps: Path, gaugan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    assert run(maps, whole, gaugan, "--policies", "paper", "exact") == 0
    content = whole.read_bytes()
    kept = content.splitlines(keepends=True)
    cut.write_bytes(b"".join(kept[:3]) + kept[3][:20])
    capsys.readouterr()
    assert run(maps, cut, gaugan, "--policies", "paper", "exact") == 0
    said = capsys.readouterr()
    assert "2 rows are there, 4 to compute" in said.out and "its last line was cut off" in said.err
    assert cut.read_bytes().startswith(b"".join(kept[:3]))
    assert timeless(cut) == timeless(whole)
    before = cut.read_bytes()
    assert run(maps, cut, gaugan, "--policies", "paper", "exact") == 0
    assert cut.read_bytes() == before


def test_a_damaged_file_is_named_and_the_others_go_on(
    maps: Path, gaugan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (maps / "edited/001/a.npy").read_bytes()
    damage: dict[str, tuple[str, Any]] = {
        "cut": ("edited/001/a.npy", lambda path: path.write_bytes(good[:150])),
        "empty": ("edited/001/a.npy", lambda path: path.write_bytes(b"")),
        "pickled": (
            "edited/001/a.npy",
            lambda path: np.save(path, np.array([{}], object), allow_pickle=True),
        ),
        "label": ("edited/001/a.npy", lambda path: np.save(path, np.full(SIZE, 9))),
        "size": ("edited/001/a.npy", lambda path: np.save(path, np.zeros((64, 32), int))),
        "mask": ("masks/001/a.npy", lambda path: np.save(path, np.ones((8, 4), bool))),
    }
    for name, (file, change) in damage.items():
        path, output = maps / file, tmp_path / f"{name}.csv"
        before = path.read_bytes()
        change(path)
        capsys.readouterr()
        assert run(maps, output, gaugan, "--policies", "paper", "exact") == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if "001/a" in line]
        assert len(lines) == 1 and str(path) in lines[0], (name, lines)
        assert sorted({row["edit"] for row in rows_of(output)}) == ["000", "001/b"]
        path.write_bytes(before)
        assert run(maps, output, gaugan, "--policies", "paper", "exact") == 0
        assert len(rows_of(output)) == 6


def test_an_original_that_does_not_fit_is_one_line(
    maps: Path, gaugan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(maps / "original/001.npy", np.full(SIZE, 9))
    assert run(maps, tmp_path / "rows.csv", gaugan, "--policies", "paper") == 1
    assert capsys.readouterr().err.count("original/001.npy") == 1
    assert [row["edit"] for row in rows_of(tmp_path / "rows.csv")] == ["000"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "4", "--noise-level", "3"), "--steps, --noise-level: not for a GauGAN.*; omit it"),
        (("--prompt", "a hill"), "--prompt: not for a GauGAN"),
        (("--policies", "papr"), "papr"),
        (("--size", "32"), "expected HEIGHTxWIDTH"),
        (("--repeats", "0"), "whole number of 1 or more"),
        (("--fid",), "give --images FOLDER"),
        (("--workers", "tcp://127.0.0.1:nine"), "--workers"),
    ],
)
def test_an_option_that_does_not_fit_is_an_error_before_the_work(
    options: tuple[str, ...], message: str, maps: Path, gaugan: str, tmp_path: Path
) -> None:
    with pytest.raises(SparsegenError, match=message):
        run(maps, tmp_path / "rows.csv", gaugan, *options)
    assert not (tmp_path / "rows.csv").exists()


def test_options_of_another_kind_of_diffusion_are_refused(images: Path, ddpm: str, tmp_path: Path) -> None:
    for option in ("--prompt", "--strength"):
        with pytest.raises(InputError, match=f"^{option}: only Stable Diffusion"):
            run(images, tmp_path / "rows.csv", ddpm, option, "1")
