"""The page of benchmarks is the output of `python -m bench.report`, and the README's figures are the page's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import engines, processor, report, report_cells, report_rows, report_short, report_texts, threads
from bench.contest import Error, WrongResult, judge
from bench.engines import OURS, TORCH_BFLOAT16
from bench.harness import Report, Timing, machine, parse
from bench.latent_cases import LATENT
from bench.stable_diffusion import FILE
from tests.house import pages


def test_the_page_is_the_output_of_the_command() -> None:
    assert pages.read("docs/benchmarks.md") == report.page(), "run python -m bench.report"


def test_the_readmes_table_of_speed_is_the_pages() -> None:
    table = report_short.short_table()
    assert table in pages.read("README.md")
    assert table in pages.read("docs/benchmarks.md")
    origin = report_short.short_origin()
    assert origin in " ".join(pages.read("README.md").split())
    assert origin in pages.read("docs/benchmarks.md")


def test_the_readmes_sentence_of_quality_is_the_pages() -> None:
    sentence = report.short_quality()
    assert sentence in " ".join(pages.read("README.md").split())
    assert sentence in pages.read("docs/benchmarks.md")


def test_the_newest_line_of_each_case_counts(tmp_path: Path) -> None:
    lines = [
        {"what": "dense", "ms": 1.0, "quick": False},
        {"what": "edit", "ms": 2.0, "quick": False},
        {"what": "dense", "ms": 3.0, "quick": False},
        {"what": "dense", "ms": 4.0, "quick": True},
        {"what": "dense", "ms": 5.0, "quick": False, "plain_memory": True},
    ]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    assert [row["ms"] for row in report_rows.newest(tmp_path, "some", "what")] == [2.0, 3.0]


def test_kinds_of_vectors_are_told_apart_and_the_last_machine_of_each_counts() -> None:
    machines = [f"a CPU, {kind}, 2 cores, Python 3.11" for kind in ("AVX2", "AVX2 alone", "AVX-512")]
    newer, unknown = "another CPU, AVX-512, 2 cores, Python 3.11", "a third CPU, 2 cores, Python 3.11"
    rows = [{"machine": machine, "what": what} for machine in machines for what in ("dense", "edit")]
    rows += [{"machine": machine, "what": "dense"} for machine in (newer, unknown)]
    shown = {kind: [row["machine"] for row in some] for kind, some in report_rows.by_kind(rows).items()}
    assert shown == {
        "AVX-512": [newer],
        "AVX2": [machines[0]] * 2,
        "AVX2 alone": [machines[1]] * 2,
        "": [unknown],
    }
    assert list(shown) == ["AVX-512", "AVX2", "AVX2 alone", ""]


def test_a_machine_is_named_by_its_widest_vectors() -> None:
    cases = (("avx2", "avx512f", processor.WHOLE), ("avx2", "avx512f"), ("avx", "avx2"), ("asimd",), ())
    assert [processor.vectors(some) for some in cases] == [
        "full AVX-512",
        "AVX-512",
        "AVX2",
        "NEON",
        "",
    ]
    assert processor.kind_of(machine()) == processor.kind(processor.features())


@pytest.mark.parametrize(
    ("vendor", "family", "name", "kind"),
    [
        ("AuthenticAMD", 26, "AMD EPYC (Zen 5)", "full AVX-512"),
        ("AuthenticAMD", 25, "AMD EPYC", "AVX-512"),
        ("GenuineIntel", 6, "AMD EPYC", "full AVX-512"),
    ],
)
def test_avx512_that_is_computed_in_halves_is_a_kind_of_its_own(
    vendor: str, family: int, name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    lines = {"vendor_id": vendor, "cpu family": family, "model name": "AMD EPYC", "flags": "avx2 avx512f"}
    cpuinfo.write_text("".join(f"{key}\t: {value}\n" for key, value in lines.items()))
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    assert (processor.model(), processor.kind(processor.features(), {})) == (name, kind)


def test_a_processor_that_is_limited_to_avx2_is_a_kind_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = ("avx2", "avx512f"), ("avx2",)
    whole = (*wide, processor.WHOLE)
    some = dict(list(processor.AS_AVX2.items())[1:])
    kinds = [
        processor.kind(features, settings)
        for features in (whole, wide, narrow)
        for settings in ({}, some, processor.AS_AVX2)
    ]
    limited = processor.LIMITED
    assert kinds == [*["full AVX-512"] * 2, limited, *["AVX-512"] * 2, limited, *["AVX2"] * 3]

    monkeypatch.setattr(processor, "features", lambda: frozenset({*wide, *processor.BFLOAT16}))
    monkeypatch.setattr(engines, "features", processor.features)
    everything = (*engines.RIVALS, engines.OURS, *engines.BFLOAT16)
    for name, value in processor.AS_AVX2.items():
        monkeypatch.setenv(name, value)
    assert processor.kind_of(machine()) == processor.LIMITED
    assert engines.usual(everything) == [*engines.TORCH, engines.OURS]


def test_engines_that_nothing_limits_are_refused_where_others_are_limited(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processor, "features", lambda: frozenset({"avx2", "avx512f"}))
    for name, value in processor.AS_AVX2.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["bench.layers", "--as-avx2", "--engines", "ncnn", "sparsegen"])
    with pytest.raises(SystemExit):
        parse("", repeats=1, engines=("ncnn", "sparsegen"))
    assert "ncnn: nothing limits these to AVX2" in capsys.readouterr().err


def test_pytorch_in_bfloat16_stands_beside_the_better_layout_and_does_not_replace_it(tmp_path: Path) -> None:
    shown = report_short.SHORT[0]
    common = {"model": shown.model, "commit": "one", "date": "2026-01-01", "backend": None}
    rows = [
        {"machine": f"a CPU, {kind}", "engine": engine, "what": what, "ms": ms, "ratio": 900 / ms}
        for kind in ("AVX2", "AVX2 alone", "AVX-512", "full AVX-512")
        for engine, what, ms in (
            ("torch-nchw", "dense", 990.0),
            ("torch-nhwc", "dense", 900.0),
            *((OURS, what, 300.0) for what in shown.ours),
        )
    ]
    lines = [*rows, rows[-1] | {"engine": TORCH_BFLOAT16, "what": "dense", "ms": 450.0, "ratio": 2.0}]
    path = tmp_path / f"{shown.file}.jsonl"
    path.write_text("".join(json.dumps(common | line) + "\n" for line in lines), "utf-8")
    ours = " | ".join(["300 ms (3.0 ×)"] * 3)
    assert report_short.short_table(tmp_path).splitlines()[2:] == [
        f"| {shown.name} | full AVX-512 | 900 ms | 450 ms (2.0 ×) | {ours} |",
        f"|  | AVX2 | 900 ms |  | {ours} |",
    ]
    path.write_text("".join(json.dumps(common | row) + "\n" for row in rows), "utf-8")
    assert "bfloat16" not in report_short.short_table(tmp_path)


def test_an_engine_in_bfloat16_is_timed_with_the_errors_of_its_rounding_alone() -> None:
    rounded, wrong = Error(largest=0.15, rms=0.05), Error(largest=0.9, rms=0.5)
    judge(TORCH_BFLOAT16, "image", rounded)
    for engine, error in ((TORCH_BFLOAT16, wrong), ("torch-nhwc", rounded)):
        with pytest.raises(WrongResult, match=f"{engine}: image is off by"):
            judge(engine, "image", error)


def test_figures_of_several_commits_are_told_apart() -> None:
    rows = [{"machine": "A", "commit": commit, "date": "2026-01-01"} for commit in ("one", "one", "two")]
    assert report_cells.origin(rows).splitlines() == [
        "Measured on A, commit `one`, 2026-01-01 (2 figures).",
        "Measured on A, commit `two`, 2026-01-01 (1 figure).",
    ]


def test_figures_of_stable_diffusion_are_shown_once_they_are_measured(tmp_path: Path) -> None:
    assert not list(report._stable_diffusion(tmp_path))
    found = Report(FILE, LATENT.name, {"quick": False, "backend": None}, tmp_path)
    found.add("MACs, dense", 400.13, "G")
    case = "sparsegen, step, edit 1.2% fast, mean over the steps"
    found.add(
        case, 250.0, "ms", ratio=20.4, engine="sparsegen", spread=0.1, macs=0.07, aim="≥ 20 ×", reached=True
    )
    shown = "\n".join(report._stable_diffusion(tmp_path))
    assert "| MACs, dense | 400 G |  |  |  |  |  |" in shown
    line = "| sparsegen, step, edit of 1.2 %, `fast`, mean over the steps | 250 ms | 10 % | 20.4 | 7 % | ≥ 20 × | yes |"
    assert line in shown


def test_figures_of_gan_compression_are_shown_once_they_are_measured(tmp_path: Path) -> None:
    def section() -> list[str]:
        return list(report._generator(tmp_path, "gan-compression", report_texts.GAN_COMPRESSION))

    assert not section()
    common = {
        "model": "GAN Compression 512×256",
        "machine": "a CPU",
        "commit": "one",
        "date": "2026-01-01",
        "backend": None,
        "version": "1",
    }
    lines = [
        {"engine": "torch-nchw", "what": "dense", "ms": 900.0, "spread": 0.1, "ratio": 1.0},
        {"engine": "sparsegen", "what": "dense", "ms": 300.0, "spread": 0.1, "ratio": 3.0},
        {"engine": "torch-bfloat16", "what": "dense", "ms": 450.0, "spread": 0.1, "ratio": 2.0},
        {"what": "dense, × PyTorch dense", "value": 3.0, "unit": "×", "target": 3.0, "reached": True},
    ]
    lines[2] |= {"error": 0.15, "error_rms": 0.047}
    text = "".join(json.dumps(common | line) + "\n" for line in lines)
    (tmp_path / "gan-compression.jsonl").write_text(text, "utf-8")
    shown = "\n".join(section())
    assert (
        shown.startswith("## GAN Compression 512×256")
        and "| sparsegen, dense | 300 ms | 10 % | 3.0 |" in shown
    )
    assert "| PyTorch (bfloat16), dense | 450 ms | 10 % | 2.0 |" in shown
    assert "differs from PyTorch in float32 by 4.7 % (root mean square), at most by 15.0 % of the" in shown
    assert "| dense, × PyTorch dense | 3.00 × | ≥ 3 × | yes |" in shown
    assert "gan-compression-curve.png" in shown


def test_what_more_threads_bring_is_measured_or_said_to_be_on_paper(tmp_path: Path) -> None:
    assert threads.undivided(100.0, 60.0) == pytest.approx(0.2)
    assert [threads.on_paper(100.0, 0.2, count) for count in (1, 2, 4)] == pytest.approx([100, 60, 40])
    assert threads.on_paper(100.0, -0.1, 4) == 25.0  # no more than n times as fast
    assert threads.settings(2, can_limit=True) == [threads.ONE, threads.TWO, threads.LIMITED]
    assert threads.settings(5, can_limit=False) == [threads.ONE, threads.TWO, threads.Setting(4)]
    assert not list(report._threads(tmp_path))
    common = {"machine": "a CPU", "commit": "one", "date": "2026-01-01", "backend": None, "model": "some"}
    common |= {"spread": 0.1}
    found = [
        ("dense", 1, None, 100.0),
        ("dense", 2, None, 60.0),
        ("dense", 2, 1, 103.0),
        ("dense", 4, None, 45.0),
    ]
    found += [("edit 1.2% paper", 1, None, 8.0)]
    names = ("what", "threads", "cores", "ms")
    lines = [json.dumps(common | dict(zip(names, row, strict=True))) + "\n" for row in found]
    (tmp_path / "threads.jsonl").write_text("".join(lines), "utf-8")
    assert list(report._threads(tmp_path))[-2].splitlines()[2:] == [
        "| some, dense | 100 ms | 60.0 ms (1.7 ×) | 45.0 ms (2.2 ×) | 30.0 ms (3.3 ×), on paper "
        "| 25.0 ms (4.0 ×), on paper | 20 % | 1.03 |",
        "| some, edit of 1.2 %, `paper` | 8.00 ms |  |  |  |  |  |  |",
    ]
    more = [{**common, "machine": f"{name}, 16 cores", "commit": name} for name in ("A", "B")]
    more += [{**common, "machine": "C, 2 cores", "commit": "C"}]
    rest = {"what": "dense", "threads": 1, "cores": None, "ms": 9.0}
    (tmp_path / "threads.jsonl").write_text("".join(json.dumps(each | rest) + "\n" for each in more), "utf-8")
    shown = "\n".join(report._threads(tmp_path))
    assert "Measured on A" not in shown, "of each number of cores the machine counts that was measured last"
    assert 0 < shown.index("Measured on C, 2 cores") < shown.index("Measured on B, 16 cores")


def test_aims_on_a_card_are_shown_once_they_are_measured(tmp_path: Path) -> None:
    assert "No speed is measured yet" in "\n".join(report._on_a_card(tmp_path))
    common = {
        "machine": "a CPU",
        "commit": "one",
        "date": "2026-01-01",
        "card": "NVIDIA H100",
        "case": "ddpm",
    }
    lines = [
        {"what": "dense", "precision": "tf32", "engine": "sparsegen", "ms": 5.0, "device_ms": None},
        {"what": "dense", "precision": "tf32", "engine": "torch", "ms": 4.5, "device_ms": 4.4},
        {"what": "dense", "precision": "tf32", "ratio": 0.9, "device_ratio": None, "aim": "≤ 1.3 × its time"},
    ]
    lines[-1]["reached"] = True
    (tmp_path / "gpu.jsonl").write_text("".join(json.dumps(common | line) + "\n" for line in lines), "utf-8")
    shown = "\n".join(report._on_a_card(tmp_path))
    assert "Measured on NVIDIA H100, commit `one`" in shown
    assert "### DDPM, 256×256, tf32" in shown
    assert "| dense | 4.5 ms | 5.0 ms | 0.90 |  | ≤ 1.3 × its time | yes |" in shown


def test_a_text_has_the_times_of_the_tables() -> None:
    row = {"model": "Net 1.x, 64×64", "engine": OURS, "what": f"{OURS}, dense", "ms": 12.34}
    other = {**row, "model": "Net", "what": f"{OURS}, step, dense", "ms": 5600.0}
    text = "{Net 1.x, 64×64\nAVX-512} of {Net AVX-512}; {Net AVX2}"
    assert report._with_times(text, {"AVX-512": [row, other]}) == "12.3 ms of 5.6 s; –"


def test_the_page_says_of_how_many_runs_medians_are() -> None:
    common = {"machine": "a CPU", "commit": "one", "date": "2026-01-01"}
    rows = [{**common, **Timing((1.0,) * count).row} for count in (15, 15, 1)]
    assert report_cells.origin(rows).splitlines()[1:] == ["Medians of 15 runs."]
    rows.append({**common, **Timing((1.0,) * 40).row})
    assert report_cells.origin(rows).splitlines()[1:] == ["Medians of 15 runs or more."]
    assert "Medians" not in report_cells.origin([common, rows[2]])
