"""The convolutions of the model families against PyTorch, ncnn and ONNX Runtime; checked, then timed in turn.

    python -m bench.layers [--engines torch-nchw torch-nhwc ncnn onnxruntime sparsegen] [--rounds 3] [--repeats 5]

Two threads everywhere; float32, and beside it PyTorch and sparsegen in bfloat16 where the processor has it. Each rival
gets the layout and the memory that suit it: ncnn packs its channels, ONNX Runtime writes to memory that stays, PyTorch
keeps freed memory (`--plain-memory`: the system's default).
"""

from __future__ import annotations

from bench.cases import Case, layers
from bench.contest import check, in_turn, say_errors, together
from bench.engines import BFLOAT16, OURS, RIVALS, TORCH
from bench.harness import Timing, machine, parse, record, table, verdict

ENGINES = (*RIVALS, OURS, *BFLOAT16)


def ratios(case: Case, medians: dict[str, float]) -> list[tuple[str, float, float]]:
    """(rival, how many times as fast as the rival sparsegen is, target) for each timed rival."""
    torch = [medians[engine] for engine in TORCH if engine in medians]
    found = []
    if OURS in medians and torch:
        found.append(("torch", min(torch) / medians[OURS], case.over_torch))
    if OURS in medians and "ncnn" in medians and case.over_ncnn is not None:
        found.append(("ncnn", medians["ncnn"] / medians[OURS], case.over_ncnn))
    return found


def cell(timing: Timing) -> str:
    return f"{timing.median:.2f} ±{timing.spread / 2:.0%}"


def main() -> None:
    options = parse(__doc__, repeats=5, rounds=3, engines=ENGINES)
    common = {
        "quick": options.quick,
        "backend": options.backend,
        "plain_memory": options.plain_memory,
    }
    errors = check(options.engines, "layers", **common)
    replies = in_turn(options.engines, "layers", rounds=options.rounds, repeats=options.repeats, **common)
    timings = {engine: together(got) for engine, got in replies.items()}

    print(machine())
    rows, missed = [], 0
    for case in layers(options.quick):
        medians = {engine: timings[engine][case.name].median for engine in options.engines}
        judged = ratios(case, medians)
        reached = all(ratio >= target for _, ratio, target in judged)
        missed += not reached
        against = {rival: f"{ratio:.2f} (≥ {target})" for rival, ratio, target in judged}
        rows.append(
            [
                case.name,
                *(cell(timings[engine][case.name]) for engine in options.engines),
                against.get("torch", ""),
                against.get("ncnn", ""),
                verdict(reached) if judged else "",
            ]
        )
        for engine in options.engines:
            timing = timings[engine][case.name]
            figure = {
                "what": case.name,
                "engine": engine,
                "version": replies[engine][0].version,
                "ms": timing.median,
                **timing.row,
                "gflops": 2e-6 * case.macs / timing.median,
            }
            if engine in errors:
                error = errors[engine][case.name]
                figure |= {"error": error.largest, "error_rms": error.rms}
            record("layers", {**figure, **common}, folder=options.results)
        for rival, ratio, target in judged:
            row = {"what": case.name, "over": rival, "ratio": ratio, "target": target}
            record("layers", {**row, "reached": ratio >= target, **common}, folder=options.results)
    table(["ms", *options.engines, "× PyTorch", "× ncnn", "reached"], rows)
    say_errors(errors)
    if OURS in options.engines:
        print(f"{len(rows) - missed} of {len(rows)} layers reach their targets")


if __name__ == "__main__":
    main()
