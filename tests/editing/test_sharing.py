"""What sessions share: a model's weights are laid out once for a backend, whoever asks, and again when they change."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import ref

import numpy as np
import pytest

from sparsegen import Session
from sparsegen.backends.interface import ConvGeometry, ConvWeights, Host
from sparsegen.backends.reference import ReferenceBackend
from sparsegen.engine.prepared import Prepared
from sparsegen.models import GauGAN
from tests.models import random_gaugan, random_labels, repaint


class Counting(ReferenceBackend):
    """The reference backend, as if it had two layouts, and the output sizes that weights were laid out for."""

    def __init__(self, large: int = 1 << 30) -> None:
        self.sizes: list[Any] = []
        self.large = large
        """Rows from which on the other layout is chosen."""

    def conv_layout(self, geometry: ConvGeometry, size: tuple[int, int] | None) -> bool:
        return size is not None and size[0] >= self.large

    def prepare_conv(self, weight: Host, bias: Host | None, **options: Any) -> ConvWeights:
        self.sizes.append(options["size"])
        return super().prepare_conv(weight, bias, **options)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def convolutions(model: GauGAN) -> int:
    """How many layers have weights that `prepare_conv` lays out."""
    return sum(type(layer).__name__ == "Conv2d" for layer in model.layers())


def test_sessions_on_one_model_and_backend_share_weights(rng):
    model, backend = random_gaugan(), Counting()
    labels = random_labels(rng, (32, 64))
    first, second = Session(model, backend), Session(model, backend)
    first.run(labels)
    assert len(backend.sizes) == convolutions(model)
    second.run(labels)
    first.edit(repaint(rng, labels))
    assert len(backend.sizes) == convolutions(model)
    other = Counting()
    Session(model, other).run(labels)
    assert len(other.sizes) == convolutions(model)


def test_weights_are_laid_out_again_only_for_a_size_that_needs_another_layout(rng):
    model, backend = random_gaugan(), Counting(large=64)
    session = Session(model, backend)
    session.run(random_labels(rng, (32, 64)))
    once = convolutions(model)
    assert len(backend.sizes) == once
    assert backend.sizes[0] == (1, 2) and backend.sizes[-1] == (32, 64)
    session.run(random_labels(rng, (3, 32, 64)))  # the number of samples has no say
    session.run(random_labels(rng, (32, 96)))
    assert len(backend.sizes) == once, "the layouts are the same, and so are the weights"
    labels = random_labels(rng, (64, 64))
    session.run(labels)
    assert len(backend.sizes) > once
    assert {size[0] for size in backend.sizes[once:]} == {64}, "the highest resolution alone needs others"
    some = len(backend.sizes)
    session.edit(repaint(rng, labels), policy="exact")
    assert len(backend.sizes) == some


def test_sessions_that_take_turns_lay_nothing_out_again(rng):
    model, backend = random_gaugan(), Counting(large=64)
    maps = [random_labels(rng, size) for size in ((32, 64), (64, 32))]
    sessions = [Session(model, backend) for _ in maps]
    for session, labels in zip(sessions, maps, strict=True):
        session.run(labels)
    made = len(backend.sizes)
    for _ in range(3):
        for session, labels in zip(sessions, maps, strict=True):
            session.edit(repaint(rng, labels), policy="exact")
            session.run(labels)
    assert len(backend.sizes) == made


def test_what_is_laid_out_is_found_while_something_else_is_being_laid_out():
    """A session does not wait for the weights of another's first run."""
    prepared, making, done = Prepared(), threading.Event(), threading.Event()
    prepared.get("a", (), lambda: 1)

    def slow() -> int:
        making.set()
        assert done.wait(10)
        return 2

    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(prepared.get, "b", (), slow)
        assert making.wait(10)
        try:
            found = pool.submit(prepared.get, "a", (), lambda: 3)
            assert found.result(timeout=5) == 1
        finally:
            done.set()
        assert second.result() == 2


def test_sessions_of_two_sizes_may_take_turns(rng):
    model, backend = random_gaugan(), Counting()
    maps = [random_labels(rng, size) for size in ((32, 64), (64, 32))]
    sessions = [Session(model, backend) for _ in maps]
    for session, labels in zip(sessions, maps, strict=True):
        session.run(labels)
    for session, labels in zip(sessions, maps, strict=True):
        edited = repaint(rng, labels)
        output = session.edit(edited, policy="exact").output
        assert np.array_equal(output, Session(model, backend).run(edited).output)


def test_new_parameters_are_taken_by_the_next_run(rng):
    model, other = random_gaugan(1), random_gaugan(2)
    labels, edited = random_labels(rng, (32, 64)), random_labels(rng, (32, 64))
    session = Session(model)
    session.run(labels)
    expected = Session(model).run(edited).output
    model.load_parameters({path: p.value for path, p in other.parameters().items()})
    # canvases painted with the old weights are edited with the old weights
    assert np.array_equal(session.edit(edited, policy="exact").output, expected)
    assert np.array_equal(session.run(edited).output, Session(other).run(edited).output)


def test_two_threads_may_run_two_sessions_on_one_model(rng):
    model, backend = random_gaugan(), Counting()
    maps = [random_labels(rng, (32, 64)) for _ in range(4)]

    def work(labels: np.ndarray) -> np.ndarray:
        session = Session(model, backend)
        session.run(labels)
        return session.edit(labels[::-1], policy="exact").output

    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(work, maps))
    assert len(backend.sizes) == convolutions(model)
    for labels, output in zip(maps, outputs, strict=True):
        assert np.array_equal(output, Session(model, backend).run(labels[::-1]).output)


def test_what_was_laid_out_goes_with_the_backend_and_with_the_model(rng):
    model, backend = random_gaugan(), Counting()
    session = Session(model, backend)
    session.run(random_labels(rng, (32, 32)))
    prepared = ref(model.prepared_for(backend))
    del session, backend
    gc.collect()
    assert prepared() is None
    mine = ReferenceBackend()
    session = Session(model, mine)
    prepared = ref(model.prepared_for(mine))
    del session, model
    gc.collect()
    assert prepared() is None
