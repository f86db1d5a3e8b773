"""Checks of a user's input: numbers in range, warnings of floats in another one, sizes with neighbours that fit."""

from __future__ import annotations

import warnings
from math import inf, log

import numpy as np
import pytest

from sparsegen import InputError, SDEdit, Session, ShapeError
from sparsegen.checks import in_range, is_number, is_whole, whole_number
from sparsegen.models import GauGAN, GauGANConfig
from tests.networks import random_gaugan, random_mobile
from tests.unets import picture, random_ddpm

# -- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_are_python_integers(value):
    assert type(whole_number("steps", value, 3, 3)) is int
    assert is_whole(value) and is_number(value)


@pytest.mark.parametrize("value", [0, 6, True, 3.0, np.float32(3), "3", None, float("nan"), [3]])
def test_what_is_no_whole_number_in_range_is_refused(value):
    expected = r"^steps is .*, expected a whole number from 1 to 5$"
    with pytest.raises(InputError, match=expected):
        whole_number("steps", value, 1, 5)
    assert is_whole(value) == (value in (0, 6) and value is not True)


def test_whole_numbers_without_an_upper_bound_have_a_unit():
    assert whole_number("margin", 10**30, 0) == 10**30
    with pytest.raises(InputError, match=r"^margin is -1, expected a whole number of pixels, 0 or more$"):
        whole_number("margin", -1, 0, unit="of pixels")


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.int32(1)])
def test_numbers_in_range_are_python_floats(value):
    found = in_range("eta", value, 0, 1)
    assert type(found) is float
    assert found == value
    assert is_number(value)


@pytest.mark.parametrize("value", [-0.1, 2, True, "0.5", None, float("nan"), float("inf"), [0.5]])
def test_what_is_no_number_in_range_is_refused(value):
    with pytest.raises(InputError, match=r"^eta is .*, expected a number from 0 to 1$"):
        in_range("eta", value, 0, 1)


@pytest.mark.parametrize(
    ("ends", "most", "taken", "refused", "expected"),
    [
        ("[]", 1, [0, 1], [-1, 2], "a number from 0 to 1"),
        ("()", 1, [0.5], [0, 1], "a number between 0 and 1"),
        ("[)", 1, [0], [1], "a number, 0 or more and less than 1"),
        ("(]", 1, [1], [0], "a number above 0, up to 1"),
        ("[)", inf, [0, 1e308], [-1, inf, 10**400], "a number, 0 or more"),
        ("(]", inf, [1e-9, inf], [0, 10**400], "a number above 0"),
    ],
)
def test_bounds_belong_to_a_range_or_not(ends, most, taken, refused, expected):
    for value in taken:
        assert in_range("x", value, 0, most, ends=ends) == value
    for value in refused:
        with pytest.raises(InputError, match=f", expected None or {expected}$"):
            in_range("x", value, 0, most, ends=ends, otherwise="None")


# -- floats in [0, 1] ------------------------------------------------------------------------------------


@pytest.fixture
def photo() -> np.ndarray:
    """uint8"""
    return picture(np.random.default_rng(4))


def test_floats_that_are_never_negative_are_warned_of(photo):
    unit = photo.astype(np.float32) / 255
    with SDEdit(random_ddpm(), steps=2, backend="reference") as session:
        with pytest.warns(UserWarning, match=r"no value of the image is negative.*2 \* image - 1") as caught:
            session.run(unit)
        assert caught[0].filename == __file__
        with pytest.warns(UserWarning, match="no value of the image is negative"):
            session.edit(unit[::-1])


@pytest.mark.parametrize("name", ["uint8", "floats from -1", "zeros", "white", "grey"])
def test_what_may_well_be_meant_is_not(photo, name):
    given = {
        "uint8": photo,
        "floats from -1": photo / 127.5 - 1,
        "zeros": np.zeros((32, 32, 3)),
        "white": np.ones((32, 32, 3)),
        "grey": np.full((32, 32, 3), 0.25),
    }[name]
    with SDEdit(random_ddpm(), steps=2, backend="reference") as session, warnings.catch_warnings():
        warnings.simplefilter("error")
        session.cache_plan(given)


def test_noisy_pictures_of_one_step_have_no_range():
    model = random_ddpm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(np.random.default_rng(2).random((32, 32, 3), np.float32), timestep=10)


# -- sizes -----------------------------------------------------------------------------------------------

NETWORKS = {
    "gaugan, normal": random_gaugan(),
    "mobile": random_mobile(),
    "gaugan, more": random_gaugan(num_upsampling_layers="more"),
    "ddpm": random_ddpm(),
    "a fixed size": GauGAN(GauGANConfig(ngf=1, nhidden=1, edge_channel=False, z_dim=3, start_cells=24)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_nearest_sizes_are_those_that_the_network_takes(name):
    network = NETWORKS[name]
    rng = np.random.default_rng(8)
    for height, width in [(1, 1), (1, 700), *rng.integers(1, 900, (40, 2)).tolist()]:
        sizes = network.sizes_near(height, width)
        stretches = [log(h / height) ** 2 + log(w / width) ** 2 for h, w in sizes]
        assert sizes and stretches == sorted(stretches) and len(set(sizes)) == len(sizes)
        for size in sizes:
            network.check_size(*size)
            assert network.sizes_near(*size) == [size]
        if (height, width) not in sizes:
            with pytest.raises(ShapeError) as caught:
                network.check_size(height, width)
            assert f"the nearest are {sizes[0][0]}×{sizes[0][1]}" in str(caught.value)


@pytest.mark.slow
def test_no_size_that_fits_lies_nearer():
    """Among all that a model takes, up to twice the size."""
    rng = np.random.default_rng(9)
    for network in NETWORKS.values():
        for height, width in rng.integers(40, 300, (8, 2)).tolist():
            best = min(
                log(h / height) ** 2 + log(w / width) ** 2
                for h in range(2, 801, 2)
                for w in range(2, 801, 2)
                if takes(network, h, w)
            )
            h, w = network.sizes_near(height, width)[0]
            assert log(h / height) ** 2 + log(w / width) ** 2 == pytest.approx(best)


def takes(network, height: int, width: int) -> bool:
    unit = network.unit
    cells = getattr(network.config, "start_cells", 0)
    fits = height % unit == 0 and width % unit == 0
    return fits and (not cells or height * width == cells * unit * unit)


def test_sessions_name_the_nearest_sizes():
    with pytest.raises(ShapeError, match=r"multiples of 32, the nearest are 64×128, 64×96, 32×128 \(height"):
        Session(random_gaugan(), "reference").run(np.zeros((50, 120), int))
