"""The registry: backends by name, third parties' among them, and one error that says what can run here and why not."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from sparsegen.backends import Backend, BackendError, backend_status, get_backend, registry
from sparsegen.backends.reference import ReferenceBackend
from sparsegen.backends.shapes import ShapesBackend


class Unwilling(ReferenceBackend):
    """A backend whose machine is missing."""

    name = "unwilling"

    def __init__(self) -> None:
        raise RuntimeError("no such device\n  (a second line)")


@pytest.fixture
def third_parties(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed packages with entry points of every kind: working, broken, and in the way."""
    points = [
        EntryPoint(name, value, registry.GROUP)
        for name, value in {
            "theirs": "sparsegen.backends.reference:ReferenceBackend",
            "missing": "no_such_package.backend:Fast",
            "misspelt": "sparsegen.backends.reference:NoSuchBackend",
            "unwilling": f"{__name__}:Unwilling",
            "odd": "builtins:dict",
            "reference": "no_such_package.backend:Impostor",
        }.items()
    ]

    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "sparsegen.backends"
        return points

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_the_reference_is_always_available() -> None:
    assert backend_status()["reference"] is None
    assert type(get_backend("reference")) is ReferenceBackend


def test_a_backend_calls_itself_what_it_is_registered_as() -> None:
    for name, why_not in backend_status().items():
        if why_not is None:
            assert get_backend(name).name == name


def test_a_backend_passes_through() -> None:
    for mine in (ReferenceBackend(), ShapesBackend()):
        assert get_backend(mine) is mine


def test_a_name_is_the_same_instance_every_time(third_parties: None) -> None:
    for name in ("reference", "theirs"):
        assert get_backend(name) is get_backend(name)
    assert get_backend("reference") is not get_backend("theirs")


def test_an_unknown_name_lists_what_is_there(third_parties: None) -> None:
    with pytest.raises(BackendError) as caught:
        get_backend("fastest")
    message = str(caught.value)
    assert message.startswith("backend 'fastest' cannot be used (unknown). Known backends: ")
    for part in (
        "reference: available",
        "theirs: available",
        "missing: ModuleNotFoundError: No module named",
    ):
        assert part in message
    assert "\n" not in message


def test_broken_third_parties_are_reported_and_break_no_other(third_parties: None) -> None:
    status = backend_status()
    assert status["reference"] is None, "a third party took the place of a built-in backend"
    assert status["theirs"] is None
    assert status["missing"] == "ModuleNotFoundError: No module named 'no_such_package'"
    assert "NoSuchBackend" in (status["misspelt"] or "")
    assert status["unwilling"] == "RuntimeError: no such device"
    assert status["odd"] == "BackendError: backend 'odd': builtins:dict is not a sparsegen.backends.Backend"
    assert isinstance(get_backend("theirs"), Backend)
    assert type(get_backend("reference")) is ReferenceBackend


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "no_such_package"),
        ("misspelt", "NoSuchBackend"),
        ("unwilling", "no such device"),
        ("odd", "dict"),
    ],
)
def test_asking_for_a_broken_backend_says_why(third_parties: None, name: str, why: str) -> None:
    with pytest.raises(
        BackendError,
        match=rf"backend '{name}' cannot be used \(.*{why}.*Known backends: reference: available",
    ):
        get_backend(name)
