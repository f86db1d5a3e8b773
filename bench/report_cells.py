"""The cells of the page of benchmarks: rows of `bench/results/` and their values come in, Markdown comes out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bench.engines import BFLOAT16, OURS_BFLOAT16, TORCH, TORCH_BFLOAT16
from bench.quality_tables import Row

PROCESSORS = {
    "Intel(R) Xeon(R) Processor": "a virtual machine; Sapphire Rapids or later",
}
"""The beginning of a machine's name -> details that the name omits."""


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    shown = [head, ["---", *["--:"] * (len(head) - 1)], *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in shown)


def named(row: Row) -> str:
    return f"commit `{row['commit']}`, {row['date']}"


def origin(rows: Sequence[Row]) -> str:
    """The machines, commits and dates of the rows; how many rows each has, where there are several."""
    found: dict[tuple[str, str, str], int] = {}
    for row in rows:
        of = (row["machine"], row["commit"], row["date"])
        found[of] = found.get(of, 0) + 1
    lines = []
    for (machine, commit, date), count in found.items():
        note = next((f" ({details})" for name, details in PROCESSORS.items() if machine.startswith(name)), "")
        share = f" ({count} figure{'s' * (count != 1)})" if len(found) > 1 else ""
        lines.append(f"Measured on {machine}{note}, commit `{commit}`, {date}{share}.")
    versions = sorted(
        {row["version"].split("+")[0] for row in rows if engine(row) in TORCH and "version" in row}
    )
    return "\n".join([*lines, *_samples(rows), *(f"PyTorch {version}." for version in versions)])


def _samples(rows: Iterable[Row]) -> list[str]:
    """A sentence that says of how many runs the medians of the rows are; none if no row tells."""
    counts = [row["samples"] for row in rows if row.get("samples", 1) > 1]
    if not counts:
        return []
    return [f"Medians of {min(counts)} runs{' or more' * (max(counts) > min(counts))}."]


def engine(row: Row) -> str:
    """The engine of a timed row, "" of another row."""
    return str(row.get("engine", ""))


def case(row: Row) -> str:
    """The case without the engine, which some files name with it: "sparsegen, dense" is "dense"."""
    return str(row["what"]).removeprefix(f"{engine(row)}, ")


def errors(rows: Sequence[Row]) -> str:
    """The errors of the engines in bfloat16, the largest of all rows; "" if there are none."""
    sentences = []
    for each in BFLOAT16:
        some = [row for row in rows if engine(row) == each and "error" in row]
        if some:
            rms, most = (f"{max(row[name] for row in some):.1%}" for name in ("error_rms", "error"))
            sentences.append(
                f"{SHOWN[each]} differs from PyTorch in float32 by {rms} (root mean square), at most by {most} of "
                "the largest value.".replace("%", " %")
            )
    return " ".join(sentences)


SHOWN = {
    "torch-nchw": "PyTorch (NCHW)",
    "torch-nhwc": "PyTorch (NHWC)",
    TORCH_BFLOAT16: "PyTorch (bfloat16)",
    OURS_BFLOAT16: "sparsegen (bfloat16)",
    "onnxruntime": "ONNX Runtime",
}
"""Engine -> its name in the tables; other engines keep theirs."""


def line(row: Row) -> str:
    """The first cell of a row: its engine, if it has one, and its case."""
    of, comma, rest = engine(row), ", ", shown_case(row)
    if not of:
        of, comma, rest = rest.partition(", ")
    return SHOWN.get(of, of) + comma + rest


def shown_case(row: Row) -> str:
    """`edit 1.2% paper` -> edit of 1.2 %, `paper`; likewise within a longer case."""
    return re.sub(
        r"\bedit ([\d.]+?)(?:\.0)?% (\w+)", lambda found: f"edit of {found[1]} %, `{found[2]}`", case(row)
    )


def time(ms: float) -> str:
    if ms >= 5000:
        return f"{ms / 1e3:.1f} s"
    return f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"


def fine_time(ms: float) -> str:
    return f"{ms:.2f} ms" if ms < 10 else time(ms)


def quartiles(row: Row) -> str:
    return " to ".join(f"{quartile:.2f}" for quartile in row["quartiles"])


def ratio(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.2f}" if ratio < 0.995 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def time_and_ratio(row: Row) -> str:
    return f"{time(row['ms'])} ({ratio(row['ratio'])} ×)"


def share(share: float | None) -> str:
    return "" if share is None else f"{round(share, 2) + 0.0:.0%}".replace("%", " %")


def megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.0f} MB"


def amount(value: float, unit: str) -> str:
    return time(value) if unit == "ms" else f"{value:.0f} {unit}" if value >= 100 else f"{value:.2f} {unit}"


def aim(row: Row) -> str:
    # a factor over PyTorch is a lower bound, every other target an upper bound
    sign = "≥" if "× PyTorch" in row["what"] else "≤"
    return f"{sign} {row['target']:g} {row['unit']}"


def psnr(value: float) -> str:
    return "the same bits" if value == float("inf") else f"{value:.1f} dB"


def verdict(reached: bool) -> str:
    return "yes" if reached else "no"
