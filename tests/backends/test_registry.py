"""The registry: backends by name, third parties' among them, and one error that says what can run here and why not."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from sparsegen import Session
from sparsegen.backends import Backend, BackendError, backend_status, default_backend, get_backend, registry
from sparsegen.backends.reference import ReferenceBackend
from sparsegen.backends.shapes import ShapesBackend
from tests.networks import random_gaugan


class Unwilling(ReferenceBackend):
    """A backend whose machine is missing."""

    name = "unwilling"

    def __init__(self) -> None:
        raise RuntimeError("no such device\n  (a second line)")


class Threaded(ReferenceBackend):
    """A backend that computes in several threads."""

    name = "threaded"
    takes_threads = True
    options = ("mode",)

    def __init__(self, threads: int | None = None, *, mode: str = "fast") -> None:
        if mode not in ("fast", "slow"):
            raise BackendError(f"no mode {mode!r}")
        self.threads = 99 if threads is None else threads
        self.mode = mode


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registry.THREADS, raising=False)


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A built-in backend with threads, ahead of the others."""
    monkeypatch.setattr(registry, "_BUILT_IN", {"threaded": f"{__name__}:Threaded", **registry._BUILT_IN})


@pytest.fixture
def third_parties(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed packages with entry points of every kind: working, broken, and in the way."""
    points = tuple(
        EntryPoint(name, value, registry.GROUP)
        for name, value in {
            "theirs": "sparsegen.backends.reference:ReferenceBackend",
            "missing": "no_such_package.backend:Fast",
            "misspelt": "sparsegen.backends.reference:NoSuchBackend",
            "unwilling": f"{__name__}:Unwilling",
            "odd": "builtins:dict",
            "reference": "no_such_package.backend:Impostor",
        }.items()
    )
    monkeypatch.setattr(registry, "_third_parties", lambda: points)


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
    assert status["odd"] == "backend 'odd': builtins:dict is not a sparsegen.backends.Backend"
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
        match=rf"backend '{name}' cannot be used \(.*{why}.*Known backends: .*reference: available",
    ):
        get_backend(name)


# -- the default, and threads ----------------------------------------------------------------------------


def test_the_default_is_the_first_that_can_run(threaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_backend() == "threaded"
    assert get_backend() is get_backend(None) is get_backend("threaded")
    monkeypatch.setattr(registry, "_WARNED", set())
    broken = {"missing": "no_such_package.backend:Fast", "unwilling": f"{__name__}:Unwilling"}
    monkeypatch.setattr(registry, "_BUILT_IN", {**broken, "reference": registry._BUILT_IN["reference"]})
    assert default_backend() == "reference"
    with pytest.warns(RuntimeWarning):
        assert type(get_backend()) is ReferenceBackend


def test_a_fall_back_says_once_why_the_better_backend_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where a backend is named, and not where backends are only listed."""
    monkeypatch.setattr(registry, "_WARNED", set())
    broken = {"missing": "no_such_package.backend:Fast", "unwilling": f"{__name__}:Unwilling"}
    monkeypatch.setattr(registry, "_BUILT_IN", {**broken, "reference": registry._BUILT_IN["reference"]})
    default_backend()
    backend_status()
    get_backend("reference")
    with pytest.warns(RuntimeWarning) as caught:
        Session(random_gaugan())
    assert [str(warning.message).partition("; ")[0] for warning in caught] == [
        "backend 'missing' cannot run here (ModuleNotFoundError: No module named 'no_such_package')",
        "backend 'unwilling' cannot run here (RuntimeError: no such device)",
    ]
    assert all("'reference' computes instead" in str(warning.message) for warning in caught)
    assert {warning.filename for warning in caught} == {__file__}, "it points at the caller"
    get_backend()
    Session(random_gaugan())


def test_threads_go_to_the_backends_that_take_them(threaded: None) -> None:
    def threads(**options: int) -> int:
        backend = get_backend("threaded", **options)
        assert isinstance(backend, Threaded)
        return backend.threads

    assert threads() == 99
    assert threads(threads=3) == 3
    assert get_backend("threaded", threads=3) is get_backend("threaded", threads=3)
    assert get_backend("threaded", threads=3) is not get_backend("threaded")
    assert get_backend("reference", threads=3) is get_backend("reference")


def test_the_environment_says_how_many_threads_unless_the_call_does(
    threaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEGEN_THREADS", "5")
    assert get_backend("threaded") is get_backend("threaded", threads=5)
    assert get_backend("threaded", threads=2).threads == 2  # type: ignore[attr-defined]  # it is Threaded
    monkeypatch.setenv("SPARSEGEN_THREADS", "")
    assert get_backend("threaded").threads == 99  # type: ignore[attr-defined]  # it is Threaded


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5", "1e3", " ", "0x2"])
def test_a_wrong_number_of_threads_is_one_clear_error(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"^threads is .*, expected a whole number, 1 or more$"):
        get_backend("reference", threads=wrong)  # type: ignore[arg-type]  # what a caller may get wrong
    monkeypatch.setenv("SPARSEGEN_THREADS", wrong)
    for ask in (get_backend, default_backend, backend_status):
        with pytest.raises(
            BackendError, match=r"^SPARSEGEN_THREADS is .*, expected a whole number, 1 or more$"
        ):
            ask()
    assert get_backend("reference", threads=1).name == "reference"


def test_options_go_to_the_backends_that_take_them(threaded: None) -> None:
    slow = get_backend("threaded", mode="slow")
    assert isinstance(slow, Threaded) and slow.mode == "slow"
    assert get_backend("threaded", mode="slow") is slow
    assert get_backend("threaded") is not slow and get_backend("threaded", threads=3, mode="slow") is not slow


def test_an_option_that_is_not_the_backends_is_one_clear_error(threaded: None) -> None:
    with pytest.raises(BackendError, match="'reference' takes no direct, mode; it takes none"):
        get_backend("reference", mode="slow", direct=True)
    with pytest.raises(BackendError, match="'threaded' takes no depth; it takes mode"):
        get_backend("threaded", depth=3)
    with pytest.raises(BackendError, match="no mode 'odd'"):
        get_backend("threaded", mode="odd")
