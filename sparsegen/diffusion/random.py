"""The normal numbers of PyTorch's CPU generator, without PyTorch: a seed comes in, `torch.randn`'s numbers come out.

Pipelines of other programs publish an image's seed, and its noise is `torch.randn(…, generator=…)` on a CPU. The
generator is MT19937 (Matsumoto and Nishimura 1998, seeded as in their code of 2002); PyTorch makes its words normal in
two ways, by the size of the array (`aten/src/ATen/native/cpu/DistributionTemplates.h`, `normal_fill`, and
`aten/src/ATen/core/DistributionsHelper.h`, `normal_distribution`):

- 16 numbers or more: Box-Muller in blocks of 16, from the low 24 bits of a word each, in float32. The last block of a
  size that is no multiple of 16 overlaps the block before it, and is drawn anew.
- fewer: one after another, in pairs from two uniform numbers of 53 bits; the second of an odd last pair is kept for the
  next small array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..checks import whole_number
from .schedules import Image
from .seeds import Noise, Seed, sample_seeds

_BLOCK = 16
_HALF = _BLOCK // 2
_WORDS = 624
"""Words of MT19937's state."""
_MOST_SEED = 2**64 - 1


class TorchRandom:
    """A stream of normal numbers: that of `torch.Generator("cpu").manual_seed(seed)`, to 5e-7.

    Each call goes on where the last ended. PyTorch's blocks of 16 use its own approximations of logarithm and sine, by
    processor: here they are NumPy's, in float64. Smaller arrays agree to a unit in the last place.

    Raises
    ------
    InputError
        The seed is no whole number from 0 to 2⁶⁴ - 1. (The generator takes its low 32 bits alone.)
    """

    def __init__(self, seed: int) -> None:
        word = whole_number("seed", seed, 0, _MOST_SEED) & 0xFFFFFFFF
        key = np.empty(_WORDS, np.uint32)
        for i in range(_WORDS):
            key[i] = word
            word = (1812433253 * (word ^ (word >> 30)) + i + 1) & 0xFFFFFFFF
        self._words = np.random.MT19937()
        self._words.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": _WORDS}}
        self._kept: float | None = None
        """The second number of a pair of which one was taken."""

    def normal(self, shape: Sequence[int]) -> Image:
        """The next numbers: float32 of `shape`, in PyTorch's order, the last axis fastest."""
        size = math.prod(shape)
        if size < _BLOCK:
            return np.array([self._one() for _ in range(size)], np.float32).reshape(tuple(shape))
        numbers = np.empty(size, np.float32)
        words = self._words.random_raw(size)
        whole = size // _BLOCK * _BLOCK
        numbers[:whole] = _of_blocks(words[:whole])
        if whole < size:
            numbers[-_BLOCK:] = _of_blocks(self._words.random_raw(_BLOCK))
        return numbers.reshape(tuple(shape))

    def skip(self, shape: Sequence[int]) -> None:
        """Pass over the numbers of an array of `shape`."""
        size = math.prod(shape)
        if size < _BLOCK:
            self.normal(shape)
        else:
            self._words.random_raw(size + (_BLOCK if size % _BLOCK else 0), output=False)

    def _one(self) -> float:
        if self._kept is not None:
            number, self._kept = self._kept, None
            return number
        angle = 2 * math.pi * self._uniform()
        radius = math.sqrt(-2 * math.log1p(-self._uniform()))
        self._kept = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _uniform(self) -> float:
        """0 … 1 in 53 bits of two words, the high one first."""
        high, low = self._words.random_raw(2).tolist()
        return float(((high << 32 | low) & (2**53 - 1)) / 2**53)


def _of_blocks(words: Image) -> Image:
    """The normal numbers of `[16·K]` words: in each block 8 radii, then 8 angles; 8 cosines, then 8 sines."""
    uniform = ((words & 0xFFFFFF) / 2**24).reshape(-1, 2, _HALF)
    radius = np.sqrt(-2 * np.log(1 - uniform[:, 0]))
    # PyTorch rounds the angle to float32, up to 2e-7 of a turn: the largest part of what would differ
    angle = (np.float32(2 * math.pi) * uniform[:, 1].astype(np.float32)).astype(np.float64)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32).reshape(-1)


def torch_noise(seed: Seed, index: int, shape: Sequence[int]) -> Image:
    """The noise of step `index` (or of `START`) of a batch of `shape`, as a pipeline on PyTorch draws it.

    float32 `[N, H, W, C]`, the same every time. Each sample has a generator with the seed of its own, from which
    `[1, C, H, W]` is drawn for the start, then for every step in turn (diffusers: a list of generators, and a sampler
    that draws at every step). Raises InputError: the seeds do not fit.
    """
    n, height, width, channels = shape
    drawn = np.empty((n, height, width, channels), np.float32)
    for each, one in zip(sample_seeds(seed, n), drawn, strict=True):
        generator = TorchRandom(each)
        for _ in range(index + 1):
            generator.skip((channels, height, width))
        one[:] = generator.normal((channels, height, width)).transpose(1, 2, 0)
    return drawn


def torch_seeded(seed: Seed, shape: Sequence[int]) -> Noise:
    """`torch_noise` of each step of a batch of images of `shape`, by its seed: the `noise` of a sampler."""
    return lambda index: torch_noise(seed, index, shape)
