"""A canvas with its country in, water painted on it: shore lines, beaches, reflections."""

import numpy as np
from scipy.ndimage import gaussian_filter

from .canvas import SAND, WATER, X, Y
from .fields import HEIGHT, WIDTH, mix, ridge, smoothstep, texture


def shore(canvas):
    """Far and near edge [W] of the water, in pixels; a lake, a bay at one side, a pond or a sea."""
    rng, x = canvas.rng, np.arange(WIDTH)
    ground = HEIGHT - canvas.horizon
    kind = rng.choice(["lake", "bay", "pond", "sea"], p=[0.34, 0.30, 0.22, 0.14])
    canvas.waters = str(kind)
    far = canvas.horizon + 3 + 2.5 * (1 + ridge(rng, first=2, octaves=4))
    if kind == "pond":
        centre, half = rng.uniform(0.15, 0.85) * WIDTH, rng.uniform(50, 130)
        middle = canvas.horizon + ground * rng.uniform(0.25, 0.62)
        bulge = np.sqrt(np.clip(1 - ((x - centre) / half) ** 2, 0, 1)) * (
            1 + 0.18 * ridge(rng, first=6, octaves=3)
        )
        thick = ground * rng.uniform(0.07, 0.15)
        return middle - bulge * thick * 0.8, middle + bulge * thick
    near = canvas.horizon + ground * (rng.uniform(0.35, 0.8) + 0.16 * ridge(rng, first=2.5, octaves=5))
    if kind == "bay":
        start, wide = rng.uniform(0.3, 0.7) * WIDTH, rng.uniform(60, 160)
        t = smoothstep(x if rng.random() < 0.5 else WIDTH - x, start - wide, start + wide)
        near = far + (near - far) * t - 2 * (t < 0.02)
    if kind == "sea":
        far = np.full(WIDTH, canvas.horizon - 1.0)
        near = near + 0.15 * ground
    return far, near


def water(canvas, far, near):
    """Water between the two edges: the scene above its far edge mirrored, ripples, the sun's glitter."""
    rng, t = canvas.rng, canvas.t
    depth = np.clip((Y - far) / 120, 0, 1)
    ripples = texture(rng, 8, falloff=0.9, stretch=(0.33, 2.6), low=16)
    swell = texture(rng, 9, falloff=1.3, stretch=(0.30, 3.0), low=6)
    wave = swell * 0.6 + ripples * 0.6
    # A lake mirrors the scene behind it; a pond amid the meadow lies too low for that and mirrors the sky.
    axis = np.where(far > canvas.horizon + 14, canvas.horizon - 0.12 * (far - canvas.horizon), far)
    row = 2 * axis - Y - 1 + wave * (1.0 + 5.0 * depth)
    row = np.clip(row + 0.12 * (Y - axis), 0, HEIGHT - 1).astype(int)
    column = np.clip(X + 1.5 * ripples * depth, 0, WIDTH - 1).astype(int)
    mirror = gaussian_filter(canvas.rgb[row, column], (0.9, 0.5, 0))
    deep = mix([0.07, 0.20, 0.32], [0.06, 0.30, 0.32], t["water"]) * canvas.light(
        np.full((HEIGHT, WIDTH), 0.7)
    )
    fresnel = np.clip(0.80 - 0.52 * depth + 0.10 * wave, 0.12, 0.92)
    colour = mix(deep, mirror, fresnel) + (0.030 * ripples + 0.02 * swell)[..., None] * canvas.sunlight
    spread = 10 + 50 * depth
    path = np.exp(-(((X - canvas.sun_x) / spread) ** 2)) * (1.0 if canvas.sun_visible else 0.25)
    glitter = path * smoothstep(wave + 0.5 * path, 0.2, 1.3) * (0.75 - 0.3 * depth)
    colour = mix(colour, np.minimum(canvas.sunlight * 1.02, 1.05), glitter)
    alpha = np.clip(Y - far + 0.5, 0, 1) * np.clip(near - Y + 0.5, 0, 1) * (near > far + 1)
    bank = np.exp(-np.abs(Y - far) / 1.2) * 0.4 + np.exp(-np.abs(near - Y) / 2.0) * 0.15
    canvas.put(alpha, colour * (1 - bank[..., None]), WATER)


def sand(canvas, far, near):
    rng = canvas.rng
    width = (near - canvas.horizon) * rng.uniform(0.12, 0.34) * (1 + 0.5 * ridge(rng, first=3, octaves=4))
    width = np.where(near > far + 1, width, 0)
    dunes = texture(rng, 10, falloff=1.2, stretch=(0.5, 2.2), low=8)
    shade = 0.80 + 0.08 * dunes + 0.07 * canvas.grain
    wet = np.exp(-np.clip(Y - near, 0, None) / 4.0)
    colour = mix(np.array([0.86, 0.74, 0.52], np.float32), [0.50, 0.42, 0.30], 0.8 * wet)
    colour = canvas.snowed(colour, 0.5 * (1 - wet))
    colour = colour * canvas.light(np.clip(shade, 0, 1.2))
    foam = np.exp(-(((Y - near - 1.0 - canvas.rough) / 1.1) ** 2)) * 0.55
    colour = mix(colour, [0.95, 0.96, 0.97], foam)
    alpha = np.clip(Y - near + 0.5, 0, 1) * np.clip(near + width + canvas.grain - Y + 0.5, 0, 1)
    canvas.put(alpha * (near > far + 1), colour, SAND)
