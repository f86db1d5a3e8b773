"""Every kernel compiles by NVRTC for every architecture, without spills; registers and shared memory are in a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsegen.backends import BackendError, caches
from sparsegen.backends.cupy_cuda import compile as compiler
from sparsegen.backends.cupy_cuda import sources
from sparsegen.backends.cupy_cuda.compile import ARCHITECTURES, Usage
from sparsegen.cli import main
from tests.cuda import usage

SHARED = 48 << 10
"""Bytes of static shared memory that a block may have."""
REGISTERS = 1 << 16
"""Registers of a multiprocessor."""


@pytest.fixture(scope="module")
def nvrtc() -> None:
    """Skips where there is no NVRTC."""
    try:
        compiler.nvrtc()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_and_takes_no_local_memory(nvrtc: None, architecture: str) -> None:
    found = usage.measured()[architecture]
    assert found.keys() == sources.kernels().keys()
    assert not {name: each for name, each in found.items() if each.spilled_bytes or each.stack_bytes}
    for name, each in found.items():
        assert each.registers * sources.kernels()[name].threads <= REGISTERS, f"{name}: no block fits"
        assert each.shared_bytes <= SHARED, f"{name}: too much static shared memory"


def test_registers_and_shared_memory_are_in_the_table(nvrtc: None) -> None:
    made_by, pinned = usage.written()
    if made_by != usage.version():
        pytest.skip(
            f"the table is of NVRTC {made_by}, here is {usage.version()}: python -m tests.cuda.usage --write"
        )
    changed = "\n".join(usage.differences())
    assert not changed, f"if you meant that: python -m tests.cuda.usage --write\n{changed}"
    assert pinned


def test_the_log_is_read() -> None:
    log = """
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 16 bytes cumulative stack size, 9216 bytes smem
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""
    assert compiler.usage(log) == {"first": Usage(128, 9216, 16, 12), "second": Usage(32, 0, 0, 0)}


def test_what_does_not_compile_is_said_with_the_compilers_words(
    nvrtc: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "source", lambda file: "__global__ void wrong() { nowhere(); }")
    with pytest.raises(
        BackendError, match=r'(?s)wrong\.cu does not compile for sm_90.*"nowhere" is undefined'
    ):
        compiler.compiled("wrong", "sm_90")


# -- the cache -------------------------------------------------------------------------------------------


@pytest.fixture
def counted(nvrtc: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A cache of its own, whose cubins are made in no time; lists the files that are compiled."""
    made: list[str] = []

    def compiled(file: str, architecture: str) -> tuple[bytes, str]:
        made.append(file)
        return f"{file} for {architecture}".encode(), ""

    monkeypatch.setenv(caches.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "compiled", compiled)
    compiler.cubin_files.cache_clear()
    yield made
    compiler.cubin_files.cache_clear()


def test_cubins_are_compiled_once_and_damaged_ones_once_more(
    counted: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = compiler.cubins("sm_90")
    assert first == {file: f"{file} for sm_90".encode() for file in sources.files()}
    assert sorted(counted) == sources.files()
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "sparsegen: compiling CUDA kernels for sm_90, once (a few seconds) …"
    assert str(tmp_path / "cache" / "cuda") in said[-1]
    compiler.cubin_files.cache_clear()
    del counted[:]
    assert compiler.cubins("sm_90") == first and not counted and not capfd.readouterr().err
    path = next((tmp_path / "cache" / "cuda").glob("copies-sm_90-*.cubin"))
    path.write_bytes(path.read_bytes()[:-1])
    assert compiler.cubins("sm_90") == first and counted == ["copies"]
    assert compiler.cubins("sm_80") != first


def test_a_cubin_depends_on_sources_headers_and_architecture(
    nvrtc: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {compiler.key("copies", "sm_90"), compiler.key("copies", "sm_80"), compiler.key("watch", "sm_90")}
    headers = {**sources.headers(), "ptx.cuh": ""}
    monkeypatch.setattr(sources, "headers", lambda: headers)
    keys.add(compiler.key("copies", "sm_90"))
    assert len(keys) == 4


def test_warming_up_needs_no_card(
    counted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["warmup", "--backend", "cupy", "--arch", "sm_87"]) == 0
    assert capsys.readouterr().out.startswith(f"cupy: kernels for sm_87 in {tmp_path / 'cache' / 'cuda'} (")
    assert len(list((tmp_path / "cache" / "cuda").glob("*.cubin"))) == len(sources.files())
    assert main(["warmup", "--backend", "cupy", "--arch", "sm_75"]) == 2
    assert main(["warmup", "--backend", "reference", "--arch", "sm_90"]) == 2
    assert main(["warmup", "--backend", "other", "--arch", "sm_90"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-3:-1] == [
        "error: architecture sm_75 is too old; the kernels need sm_80 or newer",
        "error: backend 'reference' compiles for this machine alone; omit the architecture",
    ]
    assert said[-1].startswith("error: backend 'other' cannot be used (unknown)")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caches, "_write", full)
    with pytest.raises(BackendError, match=r"compile them again: .*No space left.*SPARSEGEN_CACHE_DIR"):
        compiler.warm_up("sm_90")
