"""A folder and a count in, captioned crops out: pictures uint8 [2 count, 128, 128, 3] and their facts.

    python -m sparsegen.weights.training.sd_data .training/data 6000

paints them ahead. Every landscape gives two squares of 128 pixels, half of them mirrored.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from .canvas import HOUSE, Canvas
from .captions import LIGHTS, SEASONS, facts
from .ddpm_export import SIZE, halve
from .landscapes import paint

CHUNK = 250  # landscapes in a file
UNSEEN = 900_000  # the first seed that no training uses


def captioned(seed):
    """Paint the landscape of ``seed`` in a clear season and light; two crops: ([2, 128, 128, 3], [facts, facts]).

    The first crop holds a house if there is one: houses are small and rare, and captions name them.
    """
    rng = np.random.default_rng([seed, 1])
    season, light = SEASONS[rng.integers(4)], LIGHTS[int(rng.random() < 0.4)]
    flowers = season in ("spring", "summer") and (season == "spring" or rng.random() < 0.3)
    warm = {"spring": (0.0, 0.15), "summer": (0.1, 0.3), "autumn": (0.85, 1.0), "winter": (0.4, 0.8)}[season]
    canvas = Canvas(
        seed,
        winter=float(season == "winter"),
        season=rng.uniform(*warm),
        sun_height=rng.uniform(*((0.6, 0.95) if light == "day" else (0.0, 0.15))),
        snow=rng.uniform(0.7, 1.0) if season == "winter" or rng.random() < 0.5 else rng.uniform(0.0, 0.3),
        flowers=rng.uniform(0.8, 1.0) if flowers else rng.uniform(0.0, 0.2),
        haze=rng.uniform(0.1, 0.6),
    )
    picture = halve(paint(canvas)[None])[0]
    maps = [m[::2, ::2] for m in (canvas.labels, canvas.firs, canvas.snowy)]
    last = picture.shape[1] - SIZE
    lefts = rng.integers(0, last + 1, 2)
    houses = np.nonzero(maps[0] == HOUSE)[1]
    if len(houses):
        lefts[0] = np.clip(houses[rng.integers(len(houses))] - rng.integers(16, SIZE - 16), 0, last)
    lefts[1] = (lefts[0] + last // 2 + rng.integers(-16, 17)) % (last + 1)
    crops, found = [], []
    for left in lefts:
        turn = np.s_[:, ::-1] if rng.random() < 0.5 else np.s_[:, :]
        crops.append(picture[:, left : left + SIZE][turn])
        cut = [m[:, left : left + SIZE][turn] for m in maps]
        found.append(facts(*cut, season=season, light=light, waters=canvas.waters, flowers=flowers))
    return np.stack(crops), [{name: plain(value) for name, value in each.items()} for each in found]


def plain(value):
    """NumPy's booleans as Python's, for JSON."""
    return bool(value) if isinstance(value, (bool, np.bool_)) else value


def chunk(folder, index, pool):
    """Pictures and facts of the landscapes of one chunk, painted unless they are there."""
    picture_file, fact_file = (Path(folder) / f"captioned-{index:04d}.{end}" for end in ("npy", "json"))
    if not fact_file.exists():
        Path(folder).mkdir(parents=True, exist_ok=True)
        painted = list(pool.map(captioned, range(index * CHUNK, (index + 1) * CHUNK), chunksize=5))
        np.save(picture_file, np.concatenate([crops for crops, _ in painted]))
        found = [each for _, two in painted for each in two]
        fact_file.with_suffix(".part").write_text(json.dumps(found))
        fact_file.with_suffix(".part").rename(fact_file)
    return np.load(picture_file, mmap_mode="r"), json.loads(fact_file.read_text("utf-8"))


def captioned_crops(folder, count, *, workers=None):
    """The crops of the landscapes 0..count-1 (count: whole chunks of 250), painted once, by ``workers`` processes.

    Returns
    -------
    pictures : list of uint8 [500, 128, 128, 3], memory-mapped
    found : list of 2 count facts, see ``captions.facts``
    """
    with ProcessPoolExecutor(workers) as pool:
        chunks = [chunk(folder, index, pool) for index in range(-(-count // CHUNK))]
    return [pictures for pictures, _ in chunks], [each for _, found in chunks for each in found]


if __name__ == "__main__":
    captioned_crops(sys.argv[1], int(sys.argv[2]))
