"""The fast policy: its settings, by name and in code; which denoising steps compute; how much fresh moments weigh."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from sparsegen import Adaptive, Exact, Fast, InputError, Paper
from sparsegen.tiling.policies import MASK_SETTINGS, Everything, described, get_policy, read_policy
from sparsegen.tiling.tiles import TileSet
from sparsegen.tiling.windows import Read, Window
from tests.unets import FAMILIES

FAMILY: dict[str, Any] = {"paper": Paper(dilation=7, least_size=64), "fast": Fast(dilation=7, refresh=5)}


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_has_the_masks_of_its_paper_policy_in_both(family):
    model = FAMILIES[family]()
    model.paper = replace(model.paper, dilation=3, threshold=0.25)
    for name in MASK_SETTINGS:
        assert getattr(model.policy("fast"), name) == getattr(model.paper, name)
    assert model.policy("fast").least_size < model.paper.least_size
    for name, value in model.fast_settings.items():
        assert getattr(model.policy("fast"), name) == value


def test_settings_follow_a_name_in_brackets():
    assert get_policy("fast(refresh=2)", **FAMILY) == replace(FAMILY["fast"], refresh=2)
    chosen = get_policy("fast( statistics = 0.25 ,frontier=2,least_size=16, )", **FAMILY)
    assert chosen == replace(FAMILY["fast"], statistics=0.25, frontier=2, least_size=16)
    assert get_policy("paper(least_size=16)", **FAMILY) == replace(FAMILY["paper"], least_size=16)
    for plain in ("fast", "fast()"):
        assert get_policy(plain, **FAMILY) == FAMILY["fast"]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            "fast(often=2)",
            r"^policy fast: unknown setting 'often=2'; known: dilation, .*, refresh, frontier$",
        ),
        ("fast(2)", r"^policy fast: unknown setting '2'; known: "),
        ("paper(refresh=2)", r"^policy paper: unknown setting 'refresh=2'; known: dilation, .*, threshold$"),
        ("fast(refresh)", "^policy fast: refresh is '', expected a number$"),
        ("fast(refresh=often)", "^policy fast: refresh is 'often', expected a number$"),
        ("fast(refresh=1.5)", "^policy fast: refresh is '1.5', expected a number$"),
        ("fast(refresh=0)", "^policy fast: refresh is 0, expected a whole number"),
        ("fast(statistics=1.1)", r"^policy fast: statistics is 1\.1, expected .*0 to 1"),
        ("fast(statistics=nan)", "^policy fast: statistics is nan"),
        ("fast(", "^unknown policy"),
        ("exact(tau=1)", "^unknown policy"),
    ],
)
def test_a_mistake_in_a_name_is_one_clear_error(policy, message):
    with pytest.raises(InputError, match=message):
        get_policy(policy, **FAMILY)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("statistics", [-0.1, 1.1, float("nan"), "0.5", None, True]),
        ("refresh", [0, -1, 1.5, "2", None, True]),
        ("frontier", [-1, 0.5, "1", None, True]),
        ("least_size", [-1, 1.5]),
        ("dilation", [-1]),
    ],
)
def test_settings_out_of_range_are_refused(setting, values):
    for value in values:
        with pytest.raises(InputError, match=f"{setting} is"):
            Fast(**{setting: value})


@pytest.mark.parametrize("policy", [Fast(), Fast(statistics=1, frontier=2), Paper(3), Exact(), Adaptive(0.5)])
def test_policies_survive_a_file(policy):
    assert read_policy(described(policy)) == policy


# -- steps -----------------------------------------------------------------------------------------------


def gaps(policy: Fast, steps: int) -> list[int]:
    """The numbers of steps from each that computes to the next."""
    computed = np.flatnonzero(policy.refreshed(steps)).tolist()
    return [after - before for before, after in pairwise(computed)]


def test_steps_that_compute_lie_closer_at_both_ends():
    assert gaps(Fast(refresh=6), 25) == [2, 4, 5, 4, 3, 2, 2, 1, 1]
    assert gaps(Fast(refresh=9), 50) == [2, 4, 8, 7, 6, 5, 4, 3, 2, 2, 2, 1, 1, 1, 1]
    assert Fast(refresh=4).refreshed(5) == (True, False, True, False, False)
    for refresh in (1, 2, 3, 4, 6, 50):
        for steps in (1, 2, 3, 7, 25, 100):
            found = gaps(Fast(refresh=refresh), steps)
            assert (
                Fast(refresh=refresh).refreshed(steps)[0]
                and len(Fast(refresh=refresh).refreshed(steps)) == steps
            )
            # no curve is followed further than twice the distance of the last two points of it
            assert max(found, default=1) <= refresh
            assert all(after <= 2 * before for before, after in pairwise([1, *found]))
            middle = found.index(max(found)) if found else 0
            assert found == [*sorted(found[:middle]), *sorted(found[middle:], reverse=True)]


@pytest.mark.parametrize(
    "policy", [Fast(refresh=1), Fast(refresh=1, frontier=2), Paper(), Exact(), Adaptive(1)]
)
def test_under_other_policies_every_step_computes(policy):
    assert policy.refreshed(25) == (True,) * 25


def test_fewer_steps_carry_less():
    assert Fast(refresh=6).for_steps(50, 25).refresh == 12
    assert Fast(refresh=6).for_steps(10, 25).refresh == 2
    assert Fast(refresh=6).for_steps(1, 25).refresh == 1
    assert Fast(refresh=6, frontier=2).for_steps(25, 25) == Fast(refresh=6, frontier=2)


def test_steps_from_more_noise_carry_less():
    for level, refresh in ((300, 6), (500, 6), (600, 5), (1000, 3)):
        assert Fast(refresh=6).for_steps(25, 25, level=level, usual_level=500).refresh == refresh


# -- plans -----------------------------------------------------------------------------------------------


def test_only_fast_follows_moments():
    mask = np.ones((1, 8, 8), bool)
    assert Fast(statistics=0.25).plan(mask).statistics == 0.25
    for other in (Paper().plan(mask), Exact().plan(mask), Everything()):
        assert other.statistics == 0


def test_active_tiles_are_those_of_paper():
    mask = np.zeros((2, 32, 64), bool)
    mask[1, 9:12, 30] = True
    settings = {"dilation": 2, "level_dilation": 1, "sparse_levels": 4, "least_size": 8}
    plans = [kind(**settings).plan(mask) for kind in (Paper, Fast)]
    for size in ((32, 64), (16, 32), (8, 16), (4, 8), (2, 4)):
        for window in (Window(), Window(3, top=1, left=1)):
            read = Read(TileSet.full(2, *size), window)
            paper, fast = (plan.active([read], (2, *size)) for plan in plans)
            assert fast.count > 0 and np.array_equal(fast.tiles.host, paper.tiles.host)
