"""A street, painted by rule: a seed comes in, a label map like those of Cityscapes and its instances come out.

The cost of SPADE's codebook depends on the number of distinct windows of labels, and that on how ragged the outlines
are. So the painter is tuned to the shares counted on a real street map: `python -m bench.street` prints them, and
writes an image of the street with `--image street.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsegen.images import write_png

LABELS = 35
"""Labels of Cityscapes; its license plate (-1) is the last."""
EGO, STATIC, DYNAMIC, GROUND, ROAD, SIDEWALK, PARKING = 1, 4, 5, 6, 7, 8, 9
BUILDING, WALL, FENCE, POLE, LIGHT, SIGN = 11, 12, 13, 17, 19, 20
VEGETATION, TERRAIN, SKY, PERSON, RIDER = 21, 22, 23, 24, 25
CAR, TRUCK, BUS, MOTORCYCLE, BICYCLE, PLATE = 26, 27, 28, 32, 33, 34

SEED = 16
"""The street whose windows come closest to the real map's."""

REAL = {1: 0.10, 2: 0.23, 4: 0.42, 8: 0.62}
"""Shrinking -> share of 5×5 windows that are distinct, as counted on a real map of 256×512."""


@dataclass(frozen=True, eq=False)
class Street:
    """A map and its instances: int32 `[H, W]` each, instances of things numbered from `LABELS` up."""

    labels: np.ndarray
    instances: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        """bool `[H, W]`: where a 4-neighbour belongs to another instance."""
        ids = self.instances
        edge = np.zeros(ids.shape, bool)
        across, down = ids[:, 1:] != ids[:, :-1], ids[1:] != ids[:-1]
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        edge[1:] |= down
        edge[:-1] |= down
        return edge


class Painter:
    """A canvas of labels, painted from far to near; lengths are shares of its height."""

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.y = (np.arange(height)[:, None] + 0.5) / height
        self.x = (np.arange(width)[None, :] + 0.5) / height
        self.aspect = width / height
        self.labels = np.full((height, width), SKY, np.int32)
        self.instances = self.labels.copy()
        self.things = LABELS

    def fill(self, mask: np.ndarray, label: int, *, thing: bool = False) -> None:
        """Paint a label; a thing gets a new instance."""
        self.labels[mask] = label
        self.instances[mask] = self.things if thing else label
        self.things += thing

    def ragged(self, length: int, *, octaves: int = 7, roughness: float = 0.6) -> np.ndarray:
        """A fractal line of `length` values around 0, about ±1."""
        line = np.zeros(length)
        for octave in range(octaves):
            knots = self.rng.uniform(-1, 1, 2 ** (octave + 1) + 1)
            line += roughness**octave * np.interp(
                np.linspace(0, len(knots) - 1, length), range(len(knots)), knots
            )
        return line * (1 - roughness)

    def below(self, line: np.ndarray | float, left: float = 0.0, right: float = np.inf) -> np.ndarray:
        """Pixels under a line of heights `[W]`, between two columns."""
        return (self.y >= line) & (self.x >= left) & (self.x < right)

    def box(self, top: float, left: float, bottom: float, right: float) -> np.ndarray:
        return (self.y >= top) & (self.y < bottom) & (self.x >= left) & (self.x < right)

    def blob(self, y: float, x: float, height: float, width: float, *, rough: float = 0.15) -> np.ndarray:
        """An ellipse of that size with a ragged outline."""
        dy, dx = (self.y - y) / (height / 2), (self.x - x) / (width / 2)
        outline = 1 + rough * self.ragged(720, octaves=8, roughness=0.9)
        outline = outline + (outline[0] - outline[-1]) * np.linspace(0, 1, 720)  # closes where it began
        angle = ((np.arctan2(dy, dx) / (2 * np.pi) + 0.5) * 719).astype(int)
        return np.hypot(dy, dx) < outline[angle]

    def vehicle(self, bottom: float, x: float, height: float, width: float) -> np.ndarray:
        """A body on wheels with a cabin that narrows upwards; the outline is a little uneven."""
        top, rough = bottom - height, 0.02 * height * self.ragged(self.width)
        body = self.box(top + 0.42 * height, x - width / 2, bottom - 0.08 * height, x + width / 2)
        rise = np.clip((self.y - top) / (0.45 * height), 0, 1)
        cabin = (np.abs(self.x - x) < width * (0.28 + 0.14 * rise)) & (self.y >= top + rough)
        cabin &= self.y < bottom - 0.3 * height
        wheels = [
            self.blob(bottom - 0.14 * height, x + side * width, 0.3 * height, 0.17 * width, rough=0.02)
            for side in (-0.3, 0.3)
        ]
        return body | cabin | wheels[0] | wheels[1]


def street(seed: int = SEED, size: tuple[int, int] = (256, 512)) -> Street:
    """The street of that seed, `size` (height, width); twice as wide as high looks best."""
    p = Painter(*size, np.random.default_rng(seed))
    horizon = 0.42 + 0.02 * p.rng.uniform(-1, 1)
    vanishing = p.aspect * (0.5 + 0.06 * p.rng.uniform(-1, 1))
    _houses(p, horizon, vanishing)
    _ground(p, horizon, vanishing)
    _trees(p, horizon, vanishing)
    _furniture(p, horizon, vanishing)
    _traffic(p, horizon, vanishing)
    _people(p, horizon, vanishing)
    hood = 0.93 + 0.05 * ((p.x - vanishing) / p.aspect * 2) ** 2 + 0.003 * p.ragged(p.width)
    p.fill(p.below(hood), EGO)
    return Street(p.labels, p.instances)


def _distances(p: Painter, count: int, nearest: float = 0.55) -> Iterator[float]:
    """Depths from far (0) to near: how far below the horizon something stands, as a share of the height."""
    yield from np.sort(nearest * p.rng.random(count) ** 1.6)


def _houses(p: Painter, horizon: float, vanishing: float) -> None:
    left = 0.0
    while left < p.aspect:
        width = p.rng.uniform(0.1, 0.3)
        nearness = min(1.0, abs(left + width / 2 - vanishing) / (p.aspect / 2))
        top = horizon - 0.08 - 0.4 * nearness * p.rng.uniform(0.6, 1.1)
        if p.rng.random() < 0.9:
            p.fill(
                p.below(top + 0.03 * p.ragged(p.width, octaves=9, roughness=0.85), left, left + width),
                BUILDING,
            )
            for _ in range(p.rng.integers(0, 4)):  # chimneys, dormers, aerials
                x, wide = left + width * p.rng.random(), p.rng.uniform(0.004, 0.03)
                p.fill(p.box(top - p.rng.uniform(0.01, 0.06), x, horizon, x + wide), BUILDING)
        left += width


def _ground(p: Painter, horizon: float, vanishing: float) -> None:
    p.fill(p.below(horizon + 0.02 + 0.008 * p.ragged(p.width)), SIDEWALK)
    depth = np.maximum(p.y - horizon, 0)
    for label, inner, outer in ((TERRAIN, 4.0, 20.0),):
        for side in (-1, 1):
            if p.rng.random() < 0.75:
                across = side * (p.x - vanishing)
                edge = 0.03 * p.ragged(p.height)[:, None]
                p.fill(
                    (across > inner * depth + edge) & (across < outer * depth + edge) & (depth > 0.03), label
                )
    rough = 0.004 * p.ragged(p.height)[:, None]
    p.fill((np.abs(p.x - vanishing) < 1.45 * depth + 0.02 + rough) & (depth > 0.015), ROAD)
    for label in (WALL, FENCE):
        left, width, foot = (
            p.aspect * p.rng.random(),
            p.rng.uniform(0.1, 0.4),
            horizon + p.rng.uniform(0.02, 0.08),
        )
        top = foot - p.rng.uniform(0.03, 0.07) + 0.006 * p.ragged(p.width)
        p.fill(p.below(top, left, left + width) & (p.y < foot + 0.01 * p.ragged(p.width)), label)


def _trees(p: Painter, horizon: float, vanishing: float) -> None:
    for depth in _distances(p, 6, 0.22):
        side = p.rng.choice((-1, 1))
        x = vanishing + side * (0.1 + 2.6 * depth + 0.5 * p.rng.random())
        size = 0.1 + 0.8 * depth + 0.08 * p.rng.random()
        foot = horizon + 0.03 + 0.3 * depth
        trunk = 0.006 + 0.03 * depth
        p.fill(p.box(foot - size, x - trunk / 2, foot, x + trunk / 2), VEGETATION)
        crown = p.blob(foot - 1.05 * size, x, size, 1.1 * size, rough=0.9)
        for _ in range(5):  # holes between the leaves
            y, across = (
                foot - 1.05 * size + 0.4 * size * p.rng.uniform(-1, 1),
                x + 0.4 * size * p.rng.uniform(-1, 1),
            )
            crown &= ~p.blob(y, across, 0.12 * size, 0.1 * size, rough=0.9)
        p.fill(crown, VEGETATION)
    hedge = horizon + 0.01 - 0.03 * np.abs(p.ragged(p.width, roughness=0.75)) * 2
    for _ in range(2):
        left = p.aspect * p.rng.random()
        band = p.below(hedge, left, left + p.rng.uniform(0.1, 0.4))
        p.fill(band & (p.y < horizon + 0.03 + 0.012 * p.ragged(p.width)), VEGETATION)


def _furniture(p: Painter, horizon: float, vanishing: float) -> None:
    for depth in _distances(p, 7, 0.3):
        x = vanishing + p.rng.choice((-1, 1)) * (0.06 + (1.6 + p.rng.random()) * depth)
        foot, tall, thick = horizon + 0.03 + depth, 0.12 + 1.3 * depth, 0.004 + 0.02 * depth
        top = foot - tall
        p.fill(p.box(top, x - thick / 2, foot, x + thick / 2), POLE)
        kind, size = p.rng.random(), 0.02 + 0.09 * depth
        if kind < 0.35:
            p.fill(p.blob(top, x, size, size, rough=0.03), SIGN)
        elif kind < 0.6:
            p.fill(p.box(top, x - size / 4, top + size, x + size / 4), LIGHT)
        elif kind < 0.8:
            p.fill(p.box(top, x - size, top + 0.6 * size, x + size), SIGN)
        elif kind < 0.95:  # a lamp's arm
            p.fill(p.box(top, min(x, vanishing), top + thick, x) & (np.abs(p.x - x) < 3 * size), POLE)
    for depth in _distances(p, 3, 0.35):
        x = p.aspect * p.rng.random()
        label = p.rng.choice((STATIC, DYNAMIC))
        p.fill(p.blob(horizon + 0.03 + depth, x, 0.01 + 0.1 * depth, 0.01 + 0.1 * depth, rough=0.5), label)


def _traffic(p: Painter, horizon: float, vanishing: float) -> None:
    for depth in _distances(p, 8, 0.26):
        side = p.rng.choice((-1, 1))
        lane = p.rng.choice((0.5, 1.45, 1.8))
        x, foot = vanishing + side * lane * (depth + 0.03), horizon + 0.03 + depth
        kind = p.rng.choice((CAR, CAR, CAR, CAR, TRUCK, BUS))
        tall = (0.02 + 0.62 * depth) * (1.0 if kind == CAR else 1.7)
        wide = (0.02 + 0.62 * depth) * p.rng.uniform(1.2, 1.8)
        p.fill(p.vehicle(foot, x, tall, wide), kind, thing=True)
        p.fill(p.box(foot - 0.35 * tall, x - 0.08 * wide, foot - 0.28 * tall, x + 0.08 * wide), PLATE)
    for depth in _distances(p, 3, 0.25):
        x = vanishing + p.rng.choice((-1, 1)) * (1.7 * depth + 0.08)
        size, label = 0.02 + 0.3 * depth, p.rng.choice((MOTORCYCLE, BICYCLE, BICYCLE))
        p.fill(p.blob(horizon + 0.03 + depth, x, size, 1.3 * size, rough=0.5), label, thing=True)


def _people(p: Painter, horizon: float, vanishing: float) -> None:
    for depth in _distances(p, 10, 0.2):
        x = vanishing + p.rng.choice((-1, 1)) * ((1.5 + 2 * p.rng.random()) * depth + 0.06)
        foot, tall = horizon + 0.03 + depth, 0.03 + 0.75 * depth
        label = p.rng.choice((PERSON, PERSON, PERSON, RIDER))
        body = p.blob(foot - 0.42 * tall, x, 0.85 * tall, 0.3 * tall, rough=0.4)
        p.fill(body | p.blob(foot - 0.92 * tall, x, 0.16 * tall, 0.13 * tall, rough=0.2), label, thing=True)


# -- edits -----------------------------------------------------------------------------------------------


def edited(before: Street, area: float, *, variant: int = 0) -> tuple[Street, np.ndarray]:
    """The street after an edit of about `area` (0 to 1) of its pixels, and the edit as a mask bool `[H, W]`.

    Up to a fifth, vehicles drive in (one for each 5 %); above, another street is pasted in from the left; 1.0 is
    all of it. Each `variant` is another edit of the same area.
    """
    after = Street(before.labels.copy(), before.instances.copy())
    if area <= 0:
        return after, np.zeros(before.labels.shape, bool)
    if area > 0.2:
        other = street(1000 + variant, before.labels.shape)
        columns = round(area * before.labels.shape[1])
        after.labels[:, :columns] = other.labels[:, :columns]
        after.instances[:, :columns] = other.instances[:, :columns] + 1000
        painted = np.broadcast_to(np.arange(before.labels.shape[1]) < columns, before.labels.shape)
        return after, painted | (before.edges != after.edges)
    low, high = 0.0, 2.0
    for _ in range(16):  # the size at which the mask, edges included, has the area
        scale = (low + high) / 2
        after, mask = _drive_in(before, scale, max(1, round(area / 0.05)), variant)
        low, high = (scale, high) if mask.mean() < area else (low, scale)
    return after, mask


def _drive_in(before: Street, scale: float, count: int, variant: int) -> tuple[Street, np.ndarray]:
    """`count` vehicles, a car of `scale` 1 half as high as the image."""
    p = Painter(*before.labels.shape, np.random.default_rng((variant, count)))
    p.labels, p.instances, p.things = (
        before.labels.copy(),
        before.instances.copy(),
        1 + before.instances.max(),
    )
    painted = np.zeros(before.labels.shape, bool)
    for place in range(count):
        x = p.aspect * (place + 0.5 + 0.2 * p.rng.uniform(-1, 1)) / count
        bottom = 0.72 + 0.1 * p.rng.random() + 0.12 * scale
        body = p.vehicle(bottom, x, 0.5 * scale, 0.75 * scale)
        p.fill(body, CAR, thing=True)
        painted |= body
    after = Street(p.labels, p.instances)
    return after, painted | (before.edges != after.edges)


# -- the shares that it is tuned to ------------------------------------------------------------------------


def distinct_windows(scene: Street, step: int, *, side: int = 5) -> float:
    """Share of the `side`×`side` windows of (label, edge) that are distinct, read at every `step`-th pixel.

    Pixels outside the map count as a separate label, as with zero padding.
    """
    symbols = (scene.labels * 2 + scene.edges)[::step, ::step].astype(np.int8)
    padded = np.pad(symbols, side // 2, constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side)).reshape(symbols.size, -1)
    return len(np.unique(windows, axis=0)) / symbols.size


def colours() -> np.ndarray:
    """A colour for each label, uint8 `[LABELS, 3]`."""
    palette = np.random.default_rng(5).integers(30, 226, (LABELS, 3)).astype(np.uint8)
    known = {SKY: (70, 130, 180), ROAD: (128, 64, 128), SIDEWALK: (244, 35, 232), BUILDING: (70, 70, 70)}
    known |= {VEGETATION: (107, 142, 35), TERRAIN: (152, 251, 152), CAR: (0, 0, 142), PERSON: (220, 20, 60)}
    for label, colour in known.items():
        palette[label] = colour
    return palette


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--image", type=Path, help="write the street and three edits of it as a PNG")
    options = parser.parse_args()
    scene = street(options.seed)
    print(
        f"street {options.seed}: {len(np.unique(scene.labels))} labels, {scene.instances.max() - LABELS + 1} things"
    )
    print("read at   distinct 5×5 windows   a real map")
    for step, share in REAL.items():
        print(f"    1/{step}   {distinct_windows(scene, step):20.1%}   {share:10.0%}")
    if options.image:
        shown = [scene, *(edited(scene, area)[0] for area in (0.012, 0.15, 0.5))]
        panels = [
            np.where(one.edges[..., None], 255, colours()[one.labels]).astype(np.uint8) for one in shown
        ]
        write_png(options.image, np.vstack([np.hstack(panels[:2]), np.hstack(panels[2:])]))


if __name__ == "__main__":
    main()
