"""The benchmarks of primitives: none is forgotten, each is called rightly, and runs are compared case by case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.contest import WrongResult
from bench.primitives.__main__ import Seconds, compare, measured
from bench.primitives.calls import MAKERS, check, make
from bench.primitives.cases import CASES, NOT_TIMED, Case, cases_of
from sparsegen.backends import Backend


def test_every_primitive_of_the_contract_has_a_case() -> None:
    methods = {name for name, what in vars(Backend).items() if callable(what) and name[0] != "_"}
    timed = {case.primitive for case in CASES}
    assert timed == set(MAKERS) == methods - set(NOT_TIMED), "give a new primitive a case and a call"
    assert set(NOT_TIMED) <= methods
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.primitive for case in cases_of("reference")} == timed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_call_gives_what_the_reference_gives(backend: Backend, case: Case) -> None:
    case = case.tiny
    check(case, backend, make(case, backend)())


def test_a_wrong_result_is_not_timed(backend: Backend) -> None:
    case = next(case for case in CASES if case.primitive == "pointwise").tiny
    result = backend.download(make(case, backend)())
    result[result != 0] += np.float32(0.1)
    with pytest.raises(WrongResult, match=r"pointwise: DDPM 256 .* off by 1\.0e-01"):
        check(case, backend, result)


def test_a_case_is_compared_with_the_newest_run_that_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(number: int, **seconds: float) -> Path:
        cases = [
            {"params": {"name": name}, "stats": {"median": median, "min": 1.0}}
            for name, median in seconds.items()
        ]
        path = tmp_path / f"{number:04}_.json"
        path.write_text(json.dumps({"benchmarks": cases}), "utf-8")
        return path

    earlier, now = [run(1, a=1.0, b=2.0), run(2, a=3.0)], run(3, a=4.5, b=1.0, c=1.0)
    assert measured(earlier)["b"] == Seconds(2.0, 1.0)
    assert compare(measured(earlier), measured([now])) == []
    assert [line.split()[-2] for line in capsys.readouterr().out.splitlines()] == [
        "ratio",
        "1.50",
        "0.50",
        "ms",
    ]


def test_a_case_is_slower_if_its_median_and_its_fastest_round_are(capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: Seconds(2.0, 1.0) for name in "abc"}
    now = {"a": Seconds(4.0, 1.1), "b": Seconds(2.1, 2.0), "c": Seconds(2.6, 1.3), "d": Seconds(9.0, 9.0)}
    assert compare(before, now) == ["c"]
