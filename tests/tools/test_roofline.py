"""Rooflines: the least time of work by a machine's peaks, and tables of it."""

from __future__ import annotations

import pytest

from sparsegen.backends.counting import Work
from sparsegen.backends.numba_cpu import NumbaBackend
from sparsegen.backends.reference import ReferenceBackend
from sparsegen.tools import roofline
from sparsegen.tools.costs import LayerCost, grouped, summed
from sparsegen.tools.roofline import Machine, measured
from sparsegen.tools.tables import bounds, counts, number, times

MACHINE = Machine(multiply_adds=2e9, bandwidth=1e9)


def cost(path: str, kind: str, work: Work, milliseconds: float | None = None, height: int = 8) -> LayerCost:
    return LayerCost(path, kind, height, 8, 1, 4, 400, 100, 50, work, 32, 16, 8, milliseconds)


def test_the_bound_is_the_larger_of_arithmetic_and_memory() -> None:
    assert MACHINE.ridge == 2
    assert MACHINE.bound(Work(4_000_000, 500_000, 400_000, 100_000)) == (2.0, "compute")
    assert MACHINE.bound(Work(1_000_000, 500_000, 400_000, 100_000)) == (1.0, "memory")
    assert MACHINE.bound(Work()) == (0.0, "memory")


def test_layers_that_run_one_after_another_take_the_sum_of_their_bounds() -> None:
    layers = [cost("a", "3×3", Work(4_000_000)), cost("b", "3×3", Work(0, 3_000_000))]
    assert bounds(layers, MACHINE) == (5.0, "memory")
    assert bounds(layers, None) == (0, "")


def test_rows_of_a_kind_add_up_in_the_order_of_resolutions() -> None:
    layers = [
        cost("low", "3×3", Work(1), 1.0),
        cost("high", "1×1", Work(2), 2.0, height=16),
        cost("other", "3×3", Work(3), 3.0),
    ]
    rows = grouped(layers)
    assert [row.path for row in rows] == ["1×1", "3×3 (2)"]
    assert rows[1].work == Work(4) and rows[1].milliseconds == 4 and rows[1].macs_dense == 800
    total = summed("total", "", layers)
    assert (total.macs, total.milliseconds, total.active) == (150, 6.0, 1)


def test_tables_end_with_totals_and_have_a_line_for_each_kind_or_layer() -> None:
    layers = [
        cost("up.0." + 40 * "a", "3×3", Work(4_000_000, 8), 4.0),
        cost("b", "3×3", Work(2_000_000, 8), 4.0),
    ]
    for each, lines in ((False, 1), (True, 2)):
        table = counts(layers, 1, each=each)
        assert len(table) == 2 + lines + 1 and table[-1].startswith("total")
        timed = times(layers, 1, MACHINE, each=each)
        assert len(timed) == 1 + lines + 1 and timed[-1].split() == [
            "total",
            "0.01",
            "<0.01",
            "375000",
            "3.00",
            "8.00",
            "38%",
            "100.0%",
        ]
        assert all(len(line) <= 100 for line in table + timed)
    assert counts(layers, 1, each=True)[2].startswith("…aaa")
    without = times(layers, 1, None)
    assert without[-1].split() == ["total", "0.01", "<0.01", "375000", "8.00", "100.0%"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.001, "<0.01"), (0.01, "0.01"), (99.994, "99.99"), (248.51, "248.5"), (123456.7, "123457")],
)
def test_numbers_take_seven_columns(value: float, text: str) -> None:
    assert number(value) == text and len(text) <= 7


@pytest.mark.parametrize("backend", [NumbaBackend(), ReferenceBackend()], ids=["numba", "reference"])
def test_a_machine_is_measured(backend, monkeypatch) -> None:
    monkeypatch.setattr(roofline, "_PRODUCTS", [(8, 8, 32)])
    monkeypatch.setattr(roofline, "_COPY", (32, 32, 16))
    machine = measured(backend)
    assert machine.multiply_adds > 1e6 and machine.bandwidth > 1e6
    assert "G multiply-adds a second" in str(machine)
