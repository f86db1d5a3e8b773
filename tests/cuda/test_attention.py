"""Attention by the kernels' own sources on a CPU: head sizes and numbers of tokens at the edges of its chunks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sparsegen.backends import BackendError, Source
from sparsegen.backends.cupy_cuda.backend import CudaBackend
from sparsegen.backends.interface import Host, Tiles
from tests.backends.contract_cases import (
    all_tiles,
    assert_contract,
    assert_same_bits,
    attention_case,
    inside,
    normal,
)
from tests.cuda import emulator
from tests.cuda.backends import emulated
from tests.oracles import naive
from tests.tolerances import check

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason=emulator.MISSING)


@pytest.fixture
def attention_order() -> Iterator[emulator.Library]:
    """The library of the kernels, whose threads run forwards again after the test."""
    library = emulator.libraries()["attention"]
    yield library
    library.order(emulator.FORWARDS)


def attend(
    backend: CudaBackend,
    query: Host,
    key: Host,
    value: Host,
    tiles: Tiles | None = None,
    *,
    causal: bool = False,
) -> Host:
    """One head over plain canvases; NaN where no tile is."""
    out = backend.upload(np.full(query.shape, np.nan, np.float32))
    q, k, v = (Source((backend.upload(each),)) for each in (query, key, value))
    tiles = all_tiles(*query.shape[:3]) if tiles is None else tiles
    backend.attention(out, tiles, q, k, v, heads=1, causal=causal)
    return backend.download(out)


# 40, 64, 80, 160 and 512 channels are those of the models; 70 and 97 have no multiple of four; 200 leaves splits idle
@pytest.mark.parametrize("head", [3, 40, 64, 70, 80, 97, 160, 200, 512])
@pytest.mark.parametrize("tokens", [1, 77, 100, 256])
def test_heads_and_tokens(head: int, tokens: int) -> None:
    heads = 1 if head > 64 else 2
    case = attention_case(size=(3, 5), tokens=(1, tokens), channels=heads * head, heads=heads, seed=head)
    check("attention", case.run(emulated(), case.tiles), case.oracle, largest=case.largest)


@pytest.mark.parametrize("head", [40, 80, 160, 512])
def test_a_tile_does_not_depend_on_its_company(head: int) -> None:
    case = attention_case(samples=2, size=(5, 3), tokens=(7, 11), channels=head, pending=True, seed=head)
    assert_contract(case, emulated(), np.random.default_rng(head))


@pytest.mark.parametrize("head", [40, 80, 160, 512])
def test_the_order_of_threads_changes_no_bit(head: int, attention_order: emulator.Library) -> None:
    case = attention_case(size=(3, 5), tokens=(1, 100), channels=head, pending=True, seed=head)
    forwards = case.run(emulated(), case.tiles)
    for order in (emulator.BACKWARDS, emulator.SHUFFLED):
        attention_order.order(order)
        assert_same_bits(case.run(emulated(), case.tiles), forwards)


@pytest.mark.parametrize("head", [40, 80, 160, 512])
@pytest.mark.parametrize("size", [(1, 77), (11, 13), (18, 16)])
def test_a_causal_query_sees_the_tokens_up_to_its_own(head: int, size: tuple[int, int]) -> None:
    """One row of tokens, as of a text, and images whose tiles reach from chunk to chunk of the keys."""
    case = attention_case(causal=True, size=size, tokens=size, channels=head, seed=head)
    check("attention", case.run(emulated(), case.tiles), case.oracle, largest=case.largest)


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("head", [64, 160])
def test_a_causal_tile_does_not_depend_on_its_company(head: int, pending: bool) -> None:
    case = attention_case(
        causal=True, samples=2, size=(9, 11), tokens=(9, 11), channels=head, pending=pending, seed=head
    )
    assert_contract(case, emulated(), np.random.default_rng(head))


def test_later_tokens_do_not_reach_a_causal_query() -> None:
    """Not even infinite ones, of tiles below."""
    rng, backend = np.random.default_rng(0), emulated()
    query, key, value = (normal(rng, 1, 8, 12, 24) for _ in range(3))
    key[:, 4:] = value[:, 4:] = np.inf
    found = attend(backend, query, key, value, Tiles(all_tiles(1, 8, 12).host[:3]), causal=True)
    expected = naive.attention(
        *(v[:, :4].astype(np.float64) for v in (query, key, value)), heads=1, causal=True
    )
    check("attention", found[:, :4], expected, largest=float(np.abs(value[:, :4]).max()))


@pytest.mark.parametrize("pending", [False, True])
def test_keys_of_one_sample_serve_all(pending: bool) -> None:
    """With the bits of keys repeated for each."""
    options = {"samples": 3, "size": (5, 6), "tokens": (7, 11), "channels": 80, "heads": 2}
    case = attention_case(one_key=True, pending=pending, **options)
    assert_contract(case, emulated(), np.random.default_rng(0))
    rng = np.random.default_rng(1)
    query, key, value = normal(rng, 3, 5, 6, 24), normal(rng, 1, 7, 11, 24), normal(rng, 1, 7, 11, 24)
    repeated = attend(emulated(), query, *(np.repeat(each, 3, 0) for each in (key, value)))
    assert_same_bits(attend(emulated(), query, key, value), repeated)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(0)
    query, key, value = normal(rng, 3, 4, 4, 72), normal(rng, 3, 9, 9, 72), normal(rng, 3, 9, 9, 72)
    of_all = attend(emulated(), query, key, value)
    for n in range(3):
        assert_same_bits(attend(emulated(), *(v[n : n + 1] for v in (query, key, value))), of_all[n : n + 1])


def test_a_head_wider_than_a_block_is_computed_in_slices() -> None:
    case = attention_case(size=(2, 5), tokens=(3, 7), channels=600)
    check("attention", case.run(emulated(), case.tiles), case.oracle, largest=case.largest)


def test_a_head_too_wide_is_refused() -> None:
    one = np.zeros((1, 1, 1, 964), np.float32)
    with pytest.raises(BackendError, match="a head has 964 channels, expected at most 960"):
        attend(emulated(), one, one, one)


def test_scores_far_apart() -> None:
    """The maximum rises by hundreds from chunk to chunk, and falls again."""
    query = np.full((1, 1, 4, 4), 10, np.float32)
    key = np.repeat(np.float32([-30, 5, 40, 2])[:, None], 50, 0).reshape(1, 1, 200, 1) * np.ones(
        4, np.float32
    )
    key[0, 0, :, 0] += np.linspace(0, 0.05, 200, dtype=np.float32)
    value = normal(np.random.default_rng(0), 1, 1, 200, 4)
    result = attend(emulated(), query, key, value)
    expected = naive.attention(*(v.astype(np.float64) for v in (query, key, value)), heads=1)
    assert np.abs(result - expected).max() < 4e-5  # scores near 800 are rounded by 3e-5


@pytest.mark.parametrize("channels", [40, 512])
@pytest.mark.parametrize("of", ["query", "key", "value"])
def test_nan_reaches_every_output_that_it_concerns(of: str, channels: int) -> None:
    rng = np.random.default_rng(0)
    inputs = {name: normal(rng, 1, 2, 5, channels) for name in ("query", "key", "value")}
    inputs[of][0, 1, 2, 7] = np.nan
    nan = np.isnan(attend(emulated(), **inputs))
    expected = np.zeros_like(nan)
    if of == "query":
        expected[0, 1, 2] = True
    elif of == "key":
        expected[:] = True
    else:
        expected[..., 7] = True
    np.testing.assert_array_equal(nan, expected)


def test_tokens_whose_score_is_minus_infinity_have_no_weight() -> None:
    """Also where all tokens of the first chunk are so: their weights must be 0, not NaN."""
    key = np.full((1, 1, 70, 1), -np.inf, np.float32)
    key[0, 0, 66:] = 1
    value = np.arange(70, dtype=np.float32).reshape(1, 1, 70, 1)
    one = np.ones((1, 1, 1, 1), np.float32)
    assert attend(emulated(), one, key, value) == 67.5
    assert np.isnan(attend(emulated(), one, key[:, :, :66], value[:, :, :66])).all()  # as 0 / 0


def test_a_recorded_attention_serves_other_tiles() -> None:
    """With pending work, whose result lies in the thread's scratch memory."""
    rng, backend = np.random.default_rng(0), emulated()
    canvases = [backend.upload(normal(rng, 1, *size, 10)) for size in ((9, 9), (5, 7), (5, 7))]
    q, k, v = (Source((canvas,), activation="silu") for canvas in canvases)
    full, out = (backend.upload(np.full((1, 9, 9, 10), np.nan, np.float32)) for _ in range(2))
    tiles = all_tiles(1, 9, 9)
    backend.attention(full, tiles, q, k, v, heads=2)
    recorded = Tiles(tiles.host[:2])
    recording = backend.record(lambda: backend.attention(out, recorded, q, k, v, heads=2), [recorded])
    for some in (tiles.host[3:7], tiles.host[8:]):
        recording.replay([Tiles(some)])
    covered = inside(Tiles(tiles.host[[3, 4, 5, 6, 8]]), full.shape)[..., None]
    assert_same_bits(backend.download(out), np.where(covered, backend.download(full), np.float32(np.nan)))
