"""One benchmark for each case and backend that can run here: `python -m bench.primitives`."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from sparsegen.backends import backend_status, get_backend

from .calls import check, make
from .cases import cases_of

TIMED = {
    f"{case.name}, {name}": (case, name)
    for name in ("numba", "cupy", "reference")
    if backend_status()[name] is None
    for case in cases_of(name)
}


@pytest.mark.benchmark(disable_gc=True)
@pytest.mark.parametrize("name", TIMED)
def test_primitive(benchmark: BenchmarkFixture, name: str) -> None:
    case, backend_name = TIMED[name]
    backend = get_backend(backend_name)
    call = make(case, backend)
    check(case, backend, call())

    def timed() -> None:
        call()
        backend.synchronize()

    benchmark.group = case.primitive
    benchmark(timed)
