"""A canvas with its ground in; trees, woods and houses on it, with their shadows, out."""

import numpy as np

from .canvas import HILL, HOUSE, MEADOW, ROAD, SAND, TREE
from .fields import HEIGHT, WIDTH, mix, polygon, smoothstep


def shadow(canvas, cx, base, length, width, strength=0.45):
    """Darken the ground on the far side of the light."""
    to = -canvas.side * length
    found = canvas.window(
        cx - length - width * 2, base - width * 2, cx + length + width * 2, base + width * 2
    )
    if found:
        cut, x, y = found
        reach = np.hypot((x - cx - to * 0.5) / (abs(to) * 0.5 + width), (y - base) / (width * 0.34 + 0.6))
        ground = np.isin(canvas.labels[cut], (MEADOW, SAND, ROAD, HILL))
        canvas.rgb[cut] *= 1 - (strength * smoothstep(-reach, -1.15, -0.6) * ground)[..., None]


def tree(canvas, cx, base, height, *, fir):
    rng = canvas.rng
    shadow(canvas, cx, base, height * 0.55, height * 0.22)
    found = canvas.window(cx - height * 0.6, base - height * 1.1, cx + height * 0.6, base + 1)
    if not found:
        return
    cut, x, y = found
    u, v = (x - cx) / height, (base - y) / height
    grain, rough = canvas.grain[cut], canvas.rough[cut]
    autumn = canvas.t["season"] ** 2
    if fir:
        tiers = (v * 6.5 + 0.12 * rough) % 1.0
        edge = 0.25 * np.clip(1 - v, 0, 1) ** 0.9 * (1.12 - 0.45 * tiers) + 0.014 * grain * np.clip(
            1 - v, 0, 1
        )
        body = np.where(v > 0.07, edge - np.abs(u), -1)
        shade = 0.42 - 0.30 * tiers + canvas.side * 1.5 * u + 0.13 * grain + 0.15 * v
        leaf = mix([0.10, 0.24, 0.13], [0.17, 0.26, 0.12], np.clip(0.5 + 0.4 * rough, 0, 1))
        leaf = canvas.snowed(leaf, 0.75 * smoothstep(-tiers, -0.45, -0.05))
        stem = 0.022
    else:
        body, shade = np.full(x.shape, -1.0, np.float32), np.zeros(x.shape, np.float32)
        for _ in range(8):
            a, r = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.17)
            px, py, size = np.cos(a) * r * 1.25, 0.63 + np.sin(a) * r * 1.15, rng.uniform(0.15, 0.21)
            ball = size - np.hypot(u - px, v - py) + 0.020 * grain + 0.008 * rough
            lit = 0.50 + 0.42 * (canvas.side * (u - px) + 0.8 * (v - py)) / size
            lit = lit + 0.9 * (v - 0.62)
            shade = np.where(ball > np.maximum(body, 0.0), lit, shade)
            body = np.maximum(body, ball)
        shade = shade + 0.14 * grain
        leaf = mix([0.20, 0.36, 0.10], [0.78, 0.38, 0.08], np.clip(autumn * (1.1 + 0.3 * rough), 0, 1))
        leaf = canvas.snowed(leaf, np.clip(0.66 + 0.25 * rough, 0, 1))
        stem = 0.035
    trunk = np.clip((stem * (1.3 - v) - np.abs(u)) * height + 0.5, 0, 1) * (v < 0.5) * (v > -0.01)
    bark = np.array([0.34, 0.25, 0.18]) * canvas.light(
        np.clip(0.45 + canvas.side * u * 9 + 0.1 * grain, 0, 1)
    )
    canvas.put(trunk, bark, TREE, cut)
    far = 0.5 * np.clip(1 - (base - canvas.horizon) / 60, 0, 1)
    colour = canvas.hazy(leaf * canvas.light(np.clip(shade, 0.02, 1.15)), far)
    canvas.firs[cut] = np.where(body > 0, fir, canvas.firs[cut])
    canvas.put(np.clip(body * height + 0.5, 0, 1), colour, TREE, cut)


def house(canvas, cx, base, size):
    """A gabled house: the lit or shaded front under the gable, a long side under the roof's slope."""
    rng = canvas.rng
    shadow(canvas, cx, base, size * 0.9, size * 0.6)
    found = canvas.window(cx - size * 1.2, base - size * 1.5, cx + size * 1.2, base + 2)
    if not found:
        return
    cut, x, y = found
    grain = canvas.grain[cut]
    turn = rng.choice([-1, 1])  # 1: the gable is on the left, the long side runs to the right
    u, v = turn * (x - cx) / size, (base - y) / size
    wall = np.array([[0.93, 0.89, 0.80], [0.85, 0.72, 0.55], [0.90, 0.90, 0.90]][rng.integers(3)])
    tile = mix([0.62, 0.24, 0.17], [0.48, 0.26, 0.20], rng.random())
    roofing = canvas.snowed(tile, 0.8)
    front_light = np.clip(0.62 - 0.45 * turn * canvas.side, 0.1, 1)
    side_light = np.clip(0.62 + 0.45 * turn * canvas.side, 0.1, 1)

    def part(corners, colour, shade, label=HOUSE):
        corners = [(a * size, -b * size) for a, b in corners]
        canvas.put(polygon(u * size, -v * size, corners), colour * canvas.light(shade), label, cut)

    def shade(value):
        return np.clip(value + 0.05 * grain, 0, 1.2)

    part(
        [(-0.10, 0.55), (0.85, 0.52), (0.85, 0.03), (-0.10, 0.0)], wall, shade(side_light - 0.15 * (v > 0.42))
    )
    part([(-0.80, 0.55), (-0.10, 0.55), (-0.10, 0.0), (-0.80, 0.02)], wall, shade(front_light))
    part([(-0.45, 0.98), (-0.10, 0.52), (-0.80, 0.52)], wall, shade(front_light))
    part([(0.30, 1.22), (0.42, 1.22), (0.42, 0.85), (0.30, 0.85)], tile * 0.8, shade(0.6))
    rows = 0.12 * np.sin(v * size * 1.9)
    roof = shade(side_light * 0.8 + 0.18 + rows)
    part([(-0.45, 1.04), (0.55, 1.00), (0.93, 0.48), (-0.06, 0.48)], roofing, roof)
    part([(-0.47, 1.05), (-0.42, 1.00), (-0.86, 0.45), (-0.92, 0.49)], roofing, shade(0.45))
    glass = mix([0.16, 0.20, 0.27], [0.98, 0.80, 0.42], 0.7 * (1 - canvas.t["sun_height"]))
    for a in (0.08, 0.48):
        part([(a, 0.40), (a + 0.19, 0.40), (a + 0.19, 0.17), (a, 0.17)], glass, shade(0.8))
    part([(-0.68, 0.40), (-0.53, 0.40), (-0.53, 0.18), (-0.68, 0.18)], glass, shade(0.8))
    part([(-0.40, 0.38), (-0.22, 0.38), (-0.22, 0.0), (-0.40, 0.0)], np.array([0.36, 0.22, 0.14]), shade(0.5))


def free(canvas, x, y, allowed):
    """Whether the pixels about (x, y) carry one of the ``allowed`` labels."""
    x, y = int(np.clip(x, 0, WIDTH - 1)), int(np.clip(y, 0, HEIGHT - 1))
    return np.isin(canvas.labels[max(y - 2, 0) : y + 2, max(x - 6, 0) : x + 6], allowed).all()


def wood(canvas, count):
    """A far wood: small trees in a row along the foot of the hills, behind the water."""
    rng = canvas.rng
    centre, spread, fir = rng.uniform(0, WIDTH), rng.uniform(30, 110), rng.random() < 0.6
    for _ in range(count):
        height = rng.uniform(11, 24)
        tree(canvas, rng.normal(centre, spread), canvas.horizon + rng.uniform(2, 6), height, fir=fir)


def standing(canvas):
    """Trees and houses of the near ground, from the far ones to the near ones."""
    rng = canvas.rng
    things = []
    groves = [
        (rng.uniform(0, WIDTH), rng.uniform(15, 70), rng.random() < 0.5) for _ in range(rng.integers(1, 4))
    ]
    for x0, spread, fir in groves:
        for _ in range(rng.integers(2, 8)):
            things.append((canvas.horizon + 6 + rng.uniform(0, 1) ** 1.4 * 110, rng.normal(x0, spread), fir))
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        things.append((canvas.horizon + rng.uniform(14, 65), rng.uniform(0.06, 0.94) * WIDTH, None))
    for base, x, fir in sorted(things, key=lambda thing: thing[0]):
        near = base - canvas.horizon
        if fir is None and free(canvas, x, base, (MEADOW, SAND)):
            house(canvas, x, base, (16 + near * 0.42) * rng.uniform(0.85, 1.15))
        elif (
            fir is not None
            and base < HEIGHT + 12
            and free(canvas, x, min(base, HEIGHT - 3), (MEADOW, SAND, TREE))
        ):
            tree(canvas, x, base, (24 + near * 0.95) * rng.uniform(0.75, 1.25), fir=fir)
