"""A canvas in, the country painted on it: sky, sun, clouds, mountains, hills, meadow and road."""

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from .canvas import CLOUD, HILL, MEADOW, MOUNTAIN, ROAD, SUN, X, Y
from .fields import HEIGHT, WIDTH, mix, ridge, smoothstep, texture


def sky(canvas):
    up = np.clip(1 - Y / canvas.horizon, 0, 1)
    canvas.rgb = mix(canvas.low_sky, canvas.zenith, up**0.75)
    streaks = texture(canvas.rng, 4, falloff=1.8, stretch=(0.5, 3.0), low=3)
    canvas.rgb = mix(canvas.rgb, mix(canvas.low_sky, [1, 1, 1], 0.45), 0.28 * smoothstep(streaks, 0.1, 2.4))
    rng = canvas.rng
    canvas.sun_y = canvas.horizon * (0.78 - 0.62 * canvas.t["sun_height"])
    canvas.sun_visible = rng.random() < 0.7
    if canvas.sun_visible:
        radius = rng.uniform(9, 14)
        r = np.hypot(X - canvas.sun_x, Y - canvas.sun_y)
        canvas.rgb += (np.exp(-r / 22) * 0.5 + np.exp(-((r / 55) ** 2)) * 0.15)[..., None] * canvas.sunlight
        canvas.put(
            np.clip(radius - r + 0.5, 0, 1), mix([1.0, 0.98, 0.86], canvas.sunlight + 0.1, r / 22), SUN
        )


def cloud(canvas, cx, cy, width, height):
    rng = canvas.rng
    body = np.full((HEIGHT, WIDTH), -9.0, np.float32)
    for _ in range(rng.integers(5, 10)):
        off = rng.uniform(-1, 1)
        size = height * rng.uniform(0.45, 1.0) * (1.1 - 0.75 * abs(off))
        r = np.hypot((X - cx - off * width * 0.75) / 1.35, Y - cy + size * 0.3)
        body = np.maximum(body, 1 - r / size)
    base = cy + height * 0.28
    body = np.minimum(body, (base - Y) / height * 1.6) + 0.09 * canvas.rough + 0.015 * canvas.grain
    canvas.cloud_body = np.maximum(canvas.cloud_body, body)


def clouds(canvas):
    rng, t = canvas.rng, canvas.t
    canvas.cloud_body = np.full((HEIGHT, WIDTH), -9.0, np.float32)
    for _ in range(rng.integers(1, 6)):
        scale = rng.uniform(0.5, 1.3)
        cloud(canvas, rng.uniform(0, WIDTH), rng.uniform(0.12, 0.72) * canvas.horizon, 62 * scale, 22 * scale)
    alpha = smoothstep(canvas.cloud_body, -0.10, 0.16)
    thick = gaussian_filter(np.clip(canvas.cloud_body, 0, 0.7), 2.5)
    relief = np.roll(thick, -3, 0) - np.roll(thick, 3, 0)
    relief += canvas.side * (np.roll(thick, 3, 1) - np.roll(thick, -3, 1))
    billow = gaussian_filter(canvas.rough, 1.2)
    shade = 0.72 + 1.5 * relief - 0.30 * thick + 0.10 * billow + 0.02 * canvas.grain
    dark = mix([0.60, 0.66, 0.76], [0.62, 0.52, 0.60], 1 - t["sun_height"]) * (1.1 - 0.25 * t["clouds"])
    colour = mix(dark, mix([1, 1, 1], canvas.sunlight, 0.45), np.clip(shade, 0, 1.15))
    canvas.put(alpha * 0.96, colour)
    canvas.labels[alpha > 0.42] = CLOUD


def mountains(canvas, height, haze, sharp=0.85):
    rng, t = canvas.rng, canvas.t
    line = ridge(rng, first=rng.uniform(2.5, 4.5), octaves=7, roughness=0.44, sharp=sharp)
    line = (line - line.min()) / (line.max() - line.min())
    top = canvas.horizon - height * (0.10 + 0.90 * line**1.15)
    depth = Y - top
    # Flanks hang from the ridge: each point looks up, along a bent path, the slope of the ridge above it.
    slope = gaussian_filter1d(np.gradient(gaussian_filter1d(top, 1.0)), 2.0)
    bend = X + depth * (0.45 * canvas.rough + 0.35 * canvas.broad)
    flank = np.interp(np.clip(bend, 0, WIDTH - 1), np.arange(WIDTH), slope)
    relief = np.gradient(gaussian_filter(1 - np.abs(canvas.rough + 0.25 * canvas.grain), 0.8), axis=1)
    facing = canvas.side * (-flank * 0.9 + 1.3 * relief)
    shade = np.clip(0.50 - 0.75 * facing + 0.07 * canvas.grain, 0.04, 1.1)
    rock = mix([0.40, 0.36, 0.35], [0.52, 0.46, 0.40], smoothstep(canvas.broad, -1, 1.2))
    elevation = (canvas.horizon - Y) / height + 0.10 * canvas.rough + 0.05 * canvas.grain
    green = mix([0.20, 0.27, 0.14], [0.34, 0.28, 0.14], t["season"] ** 2)
    rock = mix(green, rock, smoothstep(elevation, 0.10, 0.42))
    snow = smoothstep(elevation + 0.16 * shade, 1.02 - 0.65 * t["snow"], 1.12 - 0.65 * t["snow"])
    colour = mix(rock, [0.95, 0.96, 1.0], snow) * canvas.light(shade)
    colour = canvas.hazy(colour, haze * (0.75 + 0.5 * smoothstep(depth, 0, height)))
    rock = np.clip(depth + 0.5, 0, 1) * (Y - canvas.horizon < 2)
    canvas.snowy = np.where(rock > 0.5, snow > 0.5, canvas.snowy)
    canvas.put(rock, colour, MOUNTAIN)


def hills(canvas, rise, haze):
    rng, t = canvas.rng, canvas.t
    top = canvas.horizon - rise * np.clip(
        0.55 + 0.55 * ridge(rng, first=2.0, octaves=4, roughness=0.4), 0.05, 2
    )
    wood = smoothstep(canvas.broad + 0.35 * canvas.rough, 0.0, 0.5)
    depth = Y - top + 1.1 * canvas.grain * wood
    slope = gaussian_filter1d(np.gradient(top), 4)
    crowns = np.gradient(gaussian_filter(canvas.grain, 0.9), axis=1)
    shade = (
        0.62 + canvas.side * (0.9 * slope - 0.55 * crowns * (0.3 + wood)) - 0.16 * wood + 0.06 * canvas.rough
    )
    leaf = mix(
        [0.16, 0.30, 0.12], [0.52, 0.27, 0.08], t["season"] ** 2 * (1 + 0.35 * np.clip(canvas.rough, -2, 2))
    )
    field = mix(
        [0.40, 0.52, 0.20], [0.62, 0.52, 0.24], t["season"] * smoothstep(canvas.rough, -1.5, 1.5) + 0.12
    )
    field, leaf = canvas.snowed(field, 0.92), canvas.snowed(leaf, 0.30)
    colour = mix(field * (1 + 0.05 * canvas.grain[..., None]), leaf, wood) * canvas.light(
        np.clip(shade, 0.05, 1.1)
    )
    canvas.put(np.clip(depth + 0.5, 0, 1) * (Y - canvas.horizon < 4), canvas.hazy(colour, haze), HILL)


def meadow(canvas):
    rng, t = canvas.rng, canvas.t
    near = np.clip((Y - canvas.horizon) / (HEIGHT - canvas.horizon), 0, 1)
    bands = texture(rng, 5, falloff=1.7, stretch=(0.4, 2.4), low=4)
    blades = texture(rng, 6, falloff=0.55, stretch=(1.5, 0.4), low=26)
    tufts = texture(rng, 7, falloff=1.1, stretch=(0.7, 1.5), low=12)
    fresh = mix([0.27, 0.47, 0.13], [0.58, 0.47, 0.18], t["season"] ** 1.5)
    dry = mix([0.50, 0.58, 0.20], [0.70, 0.56, 0.27], t["season"])
    colour = mix(fresh, dry, smoothstep(bands + 0.4 * tufts * near, -0.8, 1.6))
    colour = canvas.snowed(colour, 0.96 - 0.25 * smoothstep(tufts, 1.0, 2.2))
    shade = 0.74 + 0.10 * bands + near * (0.11 * blades + 0.08 * tufts) + (1 - near) * 0.05 * canvas.grain
    shade -= 0.14 * near**3
    colour = colour * canvas.light(np.clip(shade, 0.05, 1.15))
    bloom = smoothstep(canvas.broad * 0.6 + 0.5 * bands + 1.6 * (t["flowers"] - 0.5), 0.1, 0.9) * (
        1 - canvas.winter
    )
    dots = gaussian_filter(rng.standard_normal((HEIGHT, WIDTH)).astype(np.float32), 0.45)
    dots = smoothstep(dots, 1.05, 1.45) * bloom * smoothstep(near, 0.10, 0.45)
    petals = mix([0.95, 0.84, 0.25], [0.92, 0.40, 0.42], smoothstep(canvas.rough, -0.3, 0.5))
    petals = mix(petals, [0.97, 0.96, 0.94], smoothstep(tufts, 0.3, 0.7))
    colour = mix(colour, petals * canvas.light(np.full((HEIGHT, WIDTH), 0.8)), dots * 0.85)
    colour = canvas.hazy(colour, 0.35 * (1 - near) ** 3)
    edge = canvas.horizon + 2.0 * ridge(rng, first=4, octaves=3)
    canvas.put(np.clip(Y - edge + 0.5, 0, 1), colour, MEADOW)


def road(canvas):
    rng = canvas.rng
    near = np.clip((Y[:, 0] - canvas.horizon) / (HEIGHT - canvas.horizon), 0, 1)
    bottom, end = rng.uniform(0.15, 0.85) * WIDTH, rng.uniform(0.2, 0.8) * WIDTH
    swing = rng.uniform(40, 110) * rng.choice([-1, 1])
    middle = end + (bottom - end) * near**0.8 + swing * np.sin(np.pi * 2.1 * near**0.55) * near**0.7
    half = 1.2 + rng.uniform(22, 34) * near**1.35
    across = (X - middle[:, None] + 0.8 * canvas.rough * (0.4 + near[:, None])) / half[:, None]
    alpha = np.clip((1 - np.abs(across)) * half[:, None] + 0.5, 0, 1) * (Y - canvas.horizon > 5)
    ruts = np.exp(-(((np.abs(across) - 0.5) / 0.16) ** 2))
    colour = mix([0.60, 0.48, 0.35], [0.70, 0.60, 0.47], smoothstep(canvas.rough, -1.5, 1.5))
    colour = canvas.snowed(colour, 0.35)
    shade = 0.74 + 0.10 * canvas.grain - 0.20 * ruts + 0.05 * canvas.rough
    colour = colour * canvas.light(np.clip(shade, 0, 1.2))
    strip = np.exp(-((across / 0.2) ** 2)) * smoothstep(canvas.grain, -0.8, 0.6) * 0.55
    colour = mix(colour, np.array([0.36, 0.46, 0.17]) * canvas.light(0.6), strip * (1 - canvas.winter))
    canvas.put(alpha, colour, ROAD)
