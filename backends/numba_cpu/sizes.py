"""Sizes: counts come in, counts of whole parts come out; kernels and Python compute them by the same functions."""

from __future__ import annotations

from .jit import both
from .simd import WIDTH


@both
def ceil_div(count: int, size: int) -> int:
    """Parts of `size` that hold `count`: count / size, rounded up."""
    return (count + size - 1) // size


@both
def round_up(count: int, size: int) -> int:
    """The smallest multiple of `size` that is at least `count`."""
    return (count + size - 1) // size * size


@both
def whole_vectors(channels: int) -> int:
    """Channels rounded up to whole vectors: the floats from one gathered pixel to the next."""
    return (channels + WIDTH - 1) // WIDTH * WIDTH


@both
def share_of(count: int, share: int, shares: int) -> tuple[int, int]:
    """Where share number `share` of `shares` nearly equal ones of `count` things begins and ends."""
    return count * share // shares, count * (share + 1) // shares
