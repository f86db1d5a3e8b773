"""Edits under `paper` give the values that they gave when it was the only policy of diffusion sessions.

The `reference` backend computes them. Its bits depend on NumPy's matrix products, hence a tolerance; the numbers of
multiply-accumulates, and with them the active tiles, are compared exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from sparsegen.pipelines.sdedit import SDEdit
from tests.tolerances import check
from tests.unets import picture, random_ddpm, random_pd, stroke

SIZE = (64, 64)
"""Of the image: 64×64 is sparse, 32×32 computed whole."""
SETTINGS = {"ddpm": {"steps": 3, "noise_level": 200}, "pd": {"steps": 6, "noise_level": 2}}
MODELS = {"ddpm": random_ddpm(1), "pd": random_pd(1)}


class Golden(NamedTuple):
    """An edit: where its stroke of 3×4 pixels is, its MACs, and the green values in and around it."""

    row: int
    column: int
    macs: int
    green: tuple[tuple[float, float, float, float], ...]
    """Of every second pixel, from two rows above the stroke on and one column before it."""


GOLDEN = {
    "ddpm": (
        Golden(
            9,
            14,
            501095424,
            (
                (0.262745, 0.923347, 0.981464, 0.396078),
                (0.510733, -0.809031, -0.927504, -0.698861),
                (0.185767, -0.184335, -0.843401, 0.998745),
                (0.545098, 0.982700, 0.999943, 0.466667),
            ),
        ),
        Golden(
            20,
            3,
            499881216,
            (
                (0.396078, 0.882251, 0.849434, 0.505882),
                (0.644558, -0.917571, -0.950236, 1.0),
                (0.763185, -1.0, -0.070153, -0.159904),
                (0.490196, 0.994082, -0.079359, 0.537255),
            ),
        ),
    ),
    "pd": (
        Golden(
            9,
            14,
            337316864,
            (
                (0.262745, 0.956455, 1.0, 0.396078),
                (0.381298, -0.730883, -1.0, -1.0),
                (0.439741, 0.865373, -1.0, 0.905906),
                (0.545098, 1.0, 1.0, 0.466667),
            ),
        ),
        Golden(
            20,
            3,
            336283904,
            (
                (0.396078, 0.753381, 0.560351, 0.505882),
                (0.153131, -1.0, -1.0, 0.830519),
                (0.166877, -1.0, 0.119303, -0.050287),
                (0.490196, 1.0, 0.357871, 0.537255),
            ),
        ),
    ),
}


@pytest.mark.parametrize("family", GOLDEN)
def test_edits_under_paper_give_the_values_that_they_gave_at_first(family: str) -> None:
    settings: dict[str, Any] = SETTINGS[family]
    original = picture(np.random.default_rng(17), SIZE)
    with SDEdit(MODELS[family], backend="reference", policy="paper", margin=2, **settings) as session:
        session.run(original)
        for row, column, macs, green in GOLDEN[family]:
            result = session.edit(stroke(session.image, (row, column)))
            assert result.stats.macs == macs
            found = result.output[0, row - 2 : row + 5 : 2, column - 1 : column + 6 : 2, 1]
            check("golden", found, np.array(green), largest=1.0)
