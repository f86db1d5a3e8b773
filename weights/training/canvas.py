"""A seed in, an empty canvas out: its light, its style, and the operations that paint on it."""

import json
from pathlib import Path

import numpy as np

from .fields import HEIGHT, WIDTH, mix, texture

LABELS = json.loads((Path(__file__).parents[1] / "builtin" / "labels.json").read_text())
SKY, CLOUD, SUN, MOUNTAIN, HILL, MEADOW, WATER, SAND, TREE, ROAD, HOUSE = range(11)
# The first entries of the style, each about normal with deviation 1; the rest of it is noise.
STYLE = ("light_side", "sun_height", "season", "haze", "snow", "clouds", "water", "flowers")
STYLE_SIZE = 16
SNOW = np.array([0.93, 0.95, 1.0], np.float32)
Y, X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)


class Canvas:
    """One picture in the making, painted back to front.

    ``rgb`` is float32 [256, 512, 3] in 0..1, ``labels`` uint8 [256, 512], ``style`` float32 [16]; ``t`` holds
    the style's first entries by name, about 0..1; ``side`` is -1 with the light from the left, 1 from the right.
    ``firs`` and ``snowy`` (bool [256, 512]) mark the firs among the trees and the snow on mountains, and
    ``waters`` is "lake", "bay", "pond" or "sea" once there is water: captions mention what labels do not show.

    ``given`` replaces entries of ``t``, but ``light_side``; ``winter`` in 0..1 covers the country with snow.
    """

    def __init__(self, seed, *, winter=0.0, **given):
        self.rng = rng = np.random.default_rng(seed)
        self.style = np.clip(rng.standard_normal(STYLE_SIZE), -2, 2).astype(np.float32)
        self.sun_x = rng.uniform(0.06, 0.94) * WIDTH
        self.style[0] = (self.sun_x / WIDTH - 0.5) * 3.6
        self.horizon = rng.uniform(0.40, 0.56) * HEIGHT
        for name, value in given.items():
            self.style[STYLE.index(name)] = (value - 0.5) / 0.25
        self.winter, self.waters = winter, None
        self.labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        self.firs, self.snowy = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
        t = dict(zip(STYLE, 0.5 + 0.25 * self.style[: len(STYLE)], strict=True))
        self.t = t
        self.side = np.tanh(1.5 * self.style[0])  # -1: light from the left, 1: from the right
        warm = (1 - t["sun_height"]) ** 1.3
        self.sunlight = mix([1.06, 1.02, 0.94], [1.15, 0.80, 0.52], warm)
        self.ambient = mix([0.50, 0.58, 0.70], [0.42, 0.40, 0.54], warm)
        self.zenith = mix([0.16, 0.40, 0.80], [0.24, 0.35, 0.64], warm)
        self.low_sky = mix([0.72, 0.86, 0.96], [1.00, 0.70, 0.46], warm)
        self.grain = texture(rng, 1, falloff=0.7, low=20)  # leaves, stones: fine grain
        self.rough = texture(rng, 2, falloff=1.3, low=6)
        self.broad = texture(rng, 3, falloff=2.0, low=3)

    def light(self, shade):
        """Shade [...] (0: in shadow, 1: full sun) -> colour of the light [..., 3]."""
        return self.ambient * 0.85 + self.sunlight * np.asarray(shade)[..., None] * 0.75

    def put(self, alpha, colour, label=None, window=np.s_[:, :]):
        """Lay ``colour`` ([3] or [h, w, 3]) over the window with ``alpha`` [h, w]; label where it covers half."""
        alpha = np.asarray(alpha, np.float32)
        self.rgb[window] = mix(self.rgb[window], colour, alpha)
        if label is not None:
            self.labels[window][alpha > (0.3 if label == HOUSE else 0.5)] = label

    def snowed(self, colour, cover):
        """``colour`` under fresh snow, in winter; ``cover`` in 0..1: how much of it."""
        return mix(colour, SNOW, self.winter * np.asarray(cover)) if self.winter else colour

    def hazy(self, colour, amount):
        """``colour`` seen through air: the further, the more of the low sky's colour."""
        return mix(
            colour, mix(self.low_sky, self.zenith, 0.25) * 0.95, amount * (0.35 + 0.9 * self.t["haze"])
        )

    def window(self, x0, y0, x1, y1):
        """Slices and grids of a rectangle, cut to the picture; None where nothing is left of it."""
        x0, x1 = max(int(x0), 0), min(int(x1) + 1, WIDTH)
        y0, y1 = max(int(y0), 0), min(int(y1) + 1, HEIGHT)
        if x1 - x0 < 2 or y1 - y0 < 2:
            return None
        cut = np.s_[y0:y1, x0:x1]
        return cut, X[cut], Y[cut]
