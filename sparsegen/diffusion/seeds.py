"""A seed in; the standard normal noise of every denoising step out.

Each sample of a batch has a seed of its own, and each step a generator: noise is the same whenever it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..checks import is_whole
from ..errors import InputError
from .schedules import Image

Noise: TypeAlias = Callable[[int], Image]
"""`noise(i)`: the standard normal noise of step i, float32 of x's shape; the same whenever it is called."""

START = -1
"""The number of the step before the first: a trajectory starts from its noise."""

Seed: TypeAlias = int | Sequence[int]
"""The seed of noise: a number for each sample of a batch; one number s stands for s, s + 1, …"""


def checked_seed(seed: Seed) -> int | tuple[int, ...]:
    """`seed` in Python's own numbers. Raises InputError."""
    given: Any = seed
    listed: Any = given.tolist() if isinstance(given, np.ndarray) else given
    if _is_seed(listed):
        return int(listed)
    if not isinstance(listed, list | tuple | range) or not len(listed) or not all(map(_is_seed, listed)):
        raise InputError(
            f"seed is {given!r}, expected a whole number, 0 or more, or a list of them, one for each sample"
        )
    return tuple(map(int, listed))


def _is_seed(seed: Any) -> bool:
    return is_whole(seed) and seed >= 0


def sample_seeds(seed: Seed, samples: int) -> tuple[int, ...]:
    """The seed of each sample of a batch of `samples`. Raises InputError: there is another number of seeds."""
    checked = checked_seed(seed)
    if isinstance(checked, int):
        return tuple(range(checked, checked + samples))
    if len(checked) != samples:
        raise InputError(
            f"there are {len(checked)} seeds for {samples} images; expected one for each, or one number"
        )
    return checked


def noise(seed: Seed, index: int, shape: Sequence[int]) -> Image:
    """The standard normal noise of a seed's step `index` (or of `START`): float32 of `shape`, the same every time.

    Each sample of a batch has the noise of its own seed: the bits that it has alone. Raises InputError.
    """
    # the seed last: NumPy splits large seeds into words, which then never collide with another seed's step
    generators = (np.random.default_rng([index + 1, each]) for each in sample_seeds(seed, shape[0]))
    return np.stack([generator.standard_normal(tuple(shape[1:]), np.float32) for generator in generators])


def seeded(seed: Seed, shape: Sequence[int]) -> Noise:
    """The noise of each step of a batch of images of `shape`, by its seed: the `noise` of a sampler."""
    return lambda index: noise(seed, index, shape)
