"""What the Numba backend's vectors compute, and what they become on each processor it knows."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsegen.backends import Source
from sparsegen.backends.interface import Activation
from tests.backends.contract_cases import ACTIVATIONS, all_tiles, assert_same_bits, normal
from tests.oracles import naive

numba = pytest.importorskip("numba")
import llvmlite.binding as llvm  # noqa: E402  (comes with numba)
from llvmlite import ir  # noqa: E402  (comes with numba)

from sparsegen.backends.numba_cpu import NumbaBackend  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.atomics import emit_pause  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.gemm import emit_block  # noqa: E402  (needs numba)
from sparsegen.backends.numba_cpu.simd import (  # noqa: E402  (needs numba)
    WIDTH,
    exponential,
    load,
    power_below,
    store,
)
from sparsegen.backends.numba_cpu.target import TARGETS, _features, detect  # noqa: E402  (needs numba)

ROOT = Path(__file__).parents[2]


# -- vectors ---------------------------------------------------------------------------------------------


@numba.njit(error_model="numpy")
def _exponentials(values: Any, results: Any) -> None:
    for i in range(0, len(values), WIDTH):
        store(results, i, exponential(load(values, i)))


def test_the_exponential_is_right_to_the_last_two_bits() -> None:
    rng = np.random.default_rng(0)
    tiny = 10.0 ** rng.uniform(-40, 0, 4096) * rng.choice([-1, 1], 4096)
    v = np.concatenate([np.linspace(-87, 87, 1 << 16), tiny, [0.0, -0.0, 87, -87] * 4]).astype(np.float32)
    result = np.empty_like(v)
    _exponentials(v, result)
    exact = np.exp(v.astype(np.float64))
    assert np.abs(result / exact - 1).max() < 2 * 2.0**-23
    beyond = np.array([88, 1e3, 1e30, np.inf, -88, -1e3, -1e30, -np.inf] * 2, np.float32)
    result = np.empty_like(beyond)
    _exponentials(beyond, result)
    np.testing.assert_allclose(result.reshape(2, 2, 4)[:, 0], np.exp(87.0), rtol=1e-6)
    np.testing.assert_allclose(result.reshape(2, 2, 4)[:, 1], np.exp(-87.0), rtol=1e-6)


@numba.njit(error_model="numpy")
def _powers(values: Any, results: Any) -> None:
    for i in range(0, len(values), WIDTH):
        store(results, i, power_below(load(values, i)))


def test_powers_of_two_are_right_to_the_last_two_bits_and_end_at_zero() -> None:
    v = np.concatenate(
        [np.linspace(-126, 0, 1 << 16), -(10.0 ** np.linspace(-40, 2, 1 << 12)), [0.0, -0.0] * 8]
    ).astype(np.float32)
    result = np.empty_like(v)
    _powers(v, result)
    assert np.abs(result / np.exp2(v.astype(np.float64)) - 1).max() < 2 * 2.0**-23
    beyond = np.array([-126.5, -150, -1e4, -1e30, -3e38, -np.inf, np.nan, np.nan] * 2, np.float32)
    result = np.empty_like(beyond)
    _powers(beyond, result)
    np.testing.assert_array_equal(result, np.where(np.isnan(beyond), np.nan, 0))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_over_every_magnitude(activation: Activation) -> None:
    rng = np.random.default_rng(0)
    spread = 10.0 ** rng.uniform(-30, 30, 20_000) * rng.choice([-1, 1], 20_000)
    v = np.concatenate([np.linspace(-100, 100, 40_001), np.linspace(-1, 1, 20_001), spread]).astype(
        np.float32
    )
    backend = NumbaBackend(1)
    out = backend.alloc((1, 1, len(v), 1))
    backend.pointwise(out, all_tiles(1, 1, len(v)), Source((v.reshape(out.shape),), activation=activation))
    result, exact = out.reshape(-1).astype(np.float64), naive.activate(v, activation)
    # relative to each value itself; but the exponential ends at e^±87, where silu has all but vanished, and of a GELU
    # half of |v| counts: its sigmoid or distribution is right to so many bits of 1, not of itself
    smallest = np.abs(v) * (0.5 if "gelu" in activation else 1e-30) + 1e-38
    off = np.abs(result - exact) / np.maximum(np.abs(exact), smallest)
    worst = int(off.argmax())
    assert off[worst] < 4 * 2.0**-23, f"{activation}({v[worst]!r}) is {result[worst]!r}, not {exact[worst]!r}"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_not_a_number_stays_none(activation: Activation) -> None:
    backend = NumbaBackend(1)
    v = normal(np.random.default_rng(0), 1, 1, 9, 5)
    v[0, 0, 3, 2] = v[0, 0, 8, 4] = np.nan
    out = backend.alloc(v.shape)
    backend.pointwise(out, all_tiles(1, 1, 9), Source((v,), activation=activation))
    assert_same_bits(np.isnan(out).astype(np.float32), np.isnan(v).astype(np.float32))


# -- processors ------------------------------------------------------------------------------------------


def assembly(target: str, triple: str, processor: str, rows: int | None = None) -> str:
    """The micro-kernel as LLVM lowers it for a processor that need not be this one."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    floats, long = ir.FloatType().as_pointer(), ir.IntType(64)
    kind = ir.FunctionType(ir.VoidType(), [floats, long, floats, floats, long, long, long, long])
    code = ir.Module()
    code.triple = triple
    function = ir.Function(code, kind, "block")
    builder = ir.IRBuilder(function.append_basic_block())
    inputs, stride, *others = function.args
    pointers = [
        builder.gep(inputs, [builder.mul(stride, long(m))]) for m in range(rows or TARGETS[target].rows)
    ]
    emit_block(builder, pointers, *others, target=TARGETS[target], pairs=bool(TARGETS[target].dot))
    emit_pause(builder, TARGETS[target])
    emit_pause(builder, TARGETS[target])
    builder.ret_void()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, opt=3)
    compiled = llvm.parse_assembly(str(code))
    compiled.verify()
    return str(machine.emit_assembly(compiled))


@pytest.mark.parametrize(
    ("target", "triple", "processor", "multiply_add", "moved"),
    [
        ("neon", "aarch64-apple-darwin", "apple-m1", r"fmla(\.4s|\s+v\d+\.4s)", None),
        ("neon", "aarch64-unknown-linux-gnu", "neoverse-n1", r"fmla\s+v\d+\.4s", None),
        ("avx2", "x86_64-unknown-linux-gnu", "haswell", r"vfmadd\w+ps\s.*%ymm", r"\(%rsp\)"),
        ("avx512", "x86_64-unknown-linux-gnu", "skylake-avx512", r"vfmadd\w+ps\s.*%zmm", r"\(%rsp\)"),
        pytest.param(
            *("avx512bf16", "x86_64-unknown-linux-gnu", "cooperlake", r"vdpbf16ps\s.*%zmm", r"\(%rsp\)"),
            marks=pytest.mark.skipif(llvm.llvm_version_info < (17,), reason="LLVM 17 named it so"),
        ),
        ("portable", "x86_64-unknown-linux-gnu", "x86-64", r"mulps", None),
    ],
)
def test_the_micro_kernel_becomes_vector_instructions(
    target: str, triple: str, processor: str, multiply_add: str, moved: str | None
) -> None:
    """Every sum of the block is one multiply-add in the loop, and none waits in memory meanwhile."""
    text = assembly(target, triple, processor)
    block = TARGETS[target].rows * TARGETS[target].columns
    loops = re.split(
        r"^\S*L?BB\S*:|^\s+(?:j|b\.|[ct]bn?z)\w*\s.*$", text, flags=re.M
    )  # from label or jump to jump
    steps = max(len(re.findall(multiply_add, loop)) for loop in loops)
    assert steps == block, f"{steps} multiply-adds in the loop, the block has {block} sums"
    step = max(loops, key=lambda loop: len(re.findall(multiply_add, loop)))
    assert len(re.findall(r"^\s+(?:pause|isb)\b", text, flags=re.M)) == (0 if target == "portable" else 2)
    assert "llvm" not in text and not re.search(r"\b(bl|call\w*)\s", text), "a call instead of an instruction"
    if moved is not None:
        assert not re.search(moved, step), "sums are spilt to memory inside the loop"


@pytest.mark.parametrize(
    ("machine", "features", "target"),
    [
        ("x86_64", {"avx2": True, "fma": True, "f16c": True}, "avx2"),
        ("AMD64", {"avx2": True, "fma": True, "f16c": True, "avx512f": False}, "avx2"),
        ("x86_64", {"avx2": True, "fma": True, "f16c": True, "avx512f": True}, "avx2"),
        ("x86_64", {"avx512f": True, "avx512vl": True}, "avx512"),
        ("x86_64", {"avx512f": True, "avx512vl": True, "avx512bf16": False}, "avx512"),
        ("x86_64", {"avx2": True, "fma": False, "f16c": True}, "portable"),
        ("x86_64", {"sse2": True}, "portable"),
        ("x86_64", {}, "portable"),
        ("arm64", {}, "neon"),
        ("aarch64", {"neon": True}, "neon"),
        ("ARM64", {}, "neon"),
        ("riscv64", {}, "portable"),
        ("", {}, "portable"),
    ],
)
def test_a_processor_has_its_target(machine: str, features: dict[str, bool], target: str) -> None:
    assert detect(machine, features) is TARGETS[target]


@pytest.mark.parametrize(("version", "target"), [((16, 0, 6), "avx512"), ((17, 0, 0), "avx512bf16")])
def test_bfloat16_is_multiplied_where_llvm_can_say_so(
    version: tuple[int, ...], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llvm, "llvm_version_info", version)
    features = {"avx512f": True, "avx512vl": True, "avx512bf16": True}
    assert detect("x86_64", features) is TARGETS[target]


def test_kernels_have_no_vectors_that_numba_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ENABLE_AVX", 0), ("CPU_NAME", None), ("CPU_FEATURES", None)):
        monkeypatch.setattr(numba.config, name, value)
    assert detect("x86_64", _features()) is TARGETS["portable"]


def test_the_blocks_fit_the_registers() -> None:
    registers = {"avx512": 32, "avx512bf16": 32, "avx2": 16, "neon": 32, "portable": 16}
    for name, target in TARGETS.items():
        assert target.rows * target.columns + target.columns + 1 <= registers[name]
        assert target.panel == target.columns * target.width and target.columns % 2 == 0


def test_nothing_but_the_table_of_targets_names_a_processor() -> None:
    words = re.compile(
        r"\b(avx\w*|sse\d?\w*|x86\w*|amd64|[xyz]mm\d*|neon|fmla|vfmadd\w*|aarch64|arm64)\b", re.I
    )
    paths = sorted(p for folder in ("sparsegen", "backends") for p in (ROOT / folder).rglob("*.py"))
    assert len(paths) > 50, f"{ROOT} is not the project's root"
    for path in paths:
        if path.name == "target.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):  # what a docstring tells is no code
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = None
        found = words.findall(ast.unparse(tree))
        assert not found, f"{path}: {', '.join(found)}"
