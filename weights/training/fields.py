"""A seed and a spectrum in, textures out: noise fields [H, W], ridge lines [W] and soft masks for the painter.

The coarse part of every texture is the same at the same place in every picture (it comes from the texture's
own seed), the fine part is random: a network trained with L1 can then memorise the coarse part, and only the fine
part is left to the adversarial loss.
"""

from functools import cache

import numpy as np
from scipy.fft import irfft2, rfft2

HEIGHT, WIDTH = 256, 512
FIXED_BELOW = 14.0  # cycles per 256 pixels: waves longer than about 18 pixels are the same in every picture


@cache
def _spectrum(seed, falloff, stretch, low):
    """Amplitudes [H, W/2+1], the mask of the fixed waves and their phases for one texture."""
    fy = np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT * stretch[0]
    fx = np.fft.rfftfreq(WIDTH)[None, :] * HEIGHT * stretch[1]
    radius = np.hypot(fy, fx)
    amplitude = 1.0 / np.maximum(radius, low) ** falloff
    amplitude[0, 0] = 0
    fixed = (
        np.hypot(np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT, np.fft.rfftfreq(WIDTH)[None, :] * HEIGHT)
        < FIXED_BELOW
    )
    waves = rfft2(np.random.default_rng(seed).standard_normal((HEIGHT, WIDTH)))
    scale = 1.0 / irfft2(waves * amplitude, (HEIGHT, WIDTH)).std()
    return (amplitude * scale).astype(np.float32), fixed, waves.astype(np.complex64)


def texture(rng, seed, *, falloff=1.5, stretch=(1.0, 1.0), low=4.0):
    """Fractal noise [H, W] of mean 0 and deviation about 1.

    ``falloff`` is the exponent of the spectrum (1: rough, 2.5: smooth); ``stretch`` > 1 lengthens the
    texture along (y, x); waves longer than 256 / ``low`` pixels are not strengthened further.
    """
    amplitude, fixed, waves = _spectrum(seed, falloff, stretch, low)
    fresh = rfft2(rng.standard_normal((HEIGHT, WIDTH), dtype=np.float32))
    return irfft2(np.where(fixed, waves, fresh) * amplitude, (HEIGHT, WIDTH))


def ridge(rng, *, octaves=6, first=1.5, roughness=0.5, sharp=0.0):
    """A ridge line [W] in about -1..1: value noise, whose octaves are folded into peaks by ``sharp`` (0..1)."""
    line, gain, x = np.zeros(WIDTH), 1.0, np.linspace(0, 1, WIDTH)
    for octave in range(octaves):
        count = int(first * 2**octave) + 4
        at = x * first * 2**octave + rng.uniform(0, 1)
        i = np.minimum(at.astype(int), count - 2)
        values, t = rng.uniform(-1, 1, count), at - i
        smooth = t * t * (3 - 2 * t)
        t = smooth * (1 - sharp) + t * sharp  # straight flanks make rock, rounded ones make hills
        line += gain * (values[i] * (1 - t) + values[i + 1] * t)
        gain *= roughness
    return line


def smoothstep(x, low, high):
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a, b, t):
    """``a`` where ``t`` is 0, ``b`` where it is 1; an [H, W] ``t`` mixes colours [3] or pictures [H, W, 3]."""
    t = np.asarray(t, np.float32)
    if t.ndim >= 2:
        t = t[..., None]
    return np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t


def polygon(x, y, corners):
    """Soft mask in 0..1 of the convex polygon ``corners`` [[x, y], ...] (clockwise on the screen) over grids x, y."""
    inside = np.full(np.broadcast(x, y).shape, np.inf, np.float32)
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = max(np.hypot(x1 - x0, y1 - y0), 1e-6)
        inside = np.minimum(inside, ((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length)
    return np.clip(inside + 0.5, 0, 1)
