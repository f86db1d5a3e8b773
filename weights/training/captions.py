"""A painted crop in, its facts out; facts in, captions out: plain words for what the crop shows.

A caption mentions only what is there, seldom all of it; wording and order vary, so that prompts in a user's own order
work: "a lake in front of snowy mountains, autumn, a house, evening".
"""

import re

import numpy as np
from scipy import ndimage

from .canvas import CLOUD, HILL, HOUSE, MEADOW, MOUNTAIN, ROAD, SAND, SKY, SUN, TREE, WATER

SEASONS = ("spring", "summer", "autumn", "winter")
LIGHTS = ("day", "evening")
WATERS = ("lake", "bay", "pond", "sea")

# fact -> value -> phrases; a fact without a phrase here is not mentioned
PHRASES = {
    "season": {
        "spring": ["spring", "in spring", "a spring landscape", "springtime"],
        "summer": ["summer", "in summer", "a summer landscape", "green summer"],
        "autumn": ["autumn", "in autumn", "an autumn landscape", "fall", "autumn colours"],
        "winter": ["winter", "in winter", "a winter landscape", "snow", "covered in snow"],
    },
    "light": {
        "day": ["day", "daylight", "a bright day", "noon", "blue sky"],
        "evening": ["evening", "in the evening", "sunset", "at sunset", "dusk", "evening light"],
    },
    "water": {
        "lake": ["a lake", "water", "a wide lake", "a lake with clear water"],
        "bay": ["a lake", "water", "a bay", "the shore of a lake"],
        "pond": ["a pond", "water", "a small lake", "a small pond"],
        "sea": ["the sea", "water", "the ocean", "a wide lake"],
    },
    "mountains": {
        "bare": ["mountains", "bare mountains", "rocky mountains", "mountains without snow"],
        "snowy": ["mountains", "snowy mountains", "mountains with snow", "snow on the mountains"],
    },
    "hills": {True: ["hills", "wooded hills", "low hills"]},
    "house": {
        "one": ["a house", "a small house", "a cottage"],
        "more": ["houses", "a village", "some houses"],
    },
    "trees": {True: ["trees", "round trees", "a tree", "leafy trees"]},
    "firs": {True: ["firs", "fir trees", "a fir", "pine trees"]},
    "road": {True: ["a road", "a path", "a winding road"]},
    "sand": {True: ["a beach", "sand", "a sandy beach"]},
    "clouds": {True: ["clouds", "white clouds", "a cloudy sky"], False: ["a clear sky", "no clouds"]},
    "sun": {True: ["the sun", "sun", "a shining sun"]},
    "flowers": {True: ["flowers", "a meadow with flowers", "blooming flowers"]},
    "meadow": {True: ["a meadow", "grass", "a field", "meadows"]},
}
SIDES = {"left": ["on the left", "to the left"], "right": ["on the right", "to the right"]}
OPENINGS = ["", "", "", "", "a painting of", "a picture of", "a landscape with", "a landscape,"]
JOINTS = [", ", ", ", ", ", " and ", " with "]
BEFORE = ["in front of", "before", "below"]


def side(where):
    """ "left" or "right" where the mask [H, W] lies clearly in one half, else None."""
    columns = np.nonzero(where)[1]
    middle = columns.mean() / where.shape[1] if len(columns) else 0.5
    return "left" if middle < 0.4 else "right" if middle > 0.6 else None


def facts(labels, firs, snowy, *, season, light, waters, flowers):
    """What a crop shows, as values of ``PHRASES`` and, where one side holds it, ``house_side`` and so on.

    ``labels`` uint8 [H, W], ``firs`` and ``snowy`` bool [H, W]: the painter's maps, cut alike. ``season``, ``light``
    and ``waters`` are names of the tables above (``waters`` None: dry), ``flowers`` says whether the meadow blooms.
    """
    share = {label: np.mean(labels == label) for label in range(11)}
    houses, parts = labels == HOUSE, ndimage.label(ndimage.binary_dilation(labels == HOUSE, iterations=2))[0]
    count = sum(np.sum(houses & (parts == i)) > 30 for i in range(1, parts.max() + 1))
    fir, leafy = (labels == TREE) & firs, (labels == TREE) & ~firs
    rock = labels == MOUNTAIN
    found = {
        "season": season,
        "light": light,
        "water": waters if share[WATER] > 0.02 else None,
        "mountains": None if share[MOUNTAIN] < 0.02 else "snowy" if snowy[rock].mean() > 0.12 else "bare",
        "hills": share[HILL] > 0.03 or None,
        "house": "more" if count > 1 else "one" if count else None,
        "trees": leafy.mean() > 0.012 or None,
        "firs": fir.mean() > 0.008 or None,
        "road": share[ROAD] > 0.01 or None,
        "sand": share[SAND] > 0.015 or None,
        "clouds": True if share[CLOUD] > 0.01 else False if share[CLOUD] == 0 and share[SKY] > 0.1 else None,
        "sun": share[SUN] > 0.001 or None,
        "flowers": (flowers and season != "winter" and share[MEADOW] > 0.15) or None,
        "meadow": (season != "winter" and share[MEADOW] > 0.25) or None,
    }
    masks = {"house": houses, "trees": leafy, "firs": fir, "water": labels == WATER, "sun": labels == SUN}
    sides = {f"{name}_side": side(mask) for name, mask in masks.items() if found[name]}
    return {name: value for name, value in (found | sides).items() if value is not None}


def phrase(name, found, rng):
    """One wording of a fact, with its side in every third caption."""
    options = PHRASES[name][found[name]]
    text = options[rng.integers(len(options))]
    where = found.get(f"{name}_side")
    if where and rng.random() < 0.35:
        text += " " + SIDES[where][rng.integers(2)]
    return text


def caption(found, rng):
    """A caption of the facts: most of them, in any order, worded by ``rng``."""
    names = [name for name in PHRASES if name in found]
    rng.shuffle(names)
    names.sort(key=lambda name: name in ("season", "light") and rng.random() < 0.5)  # mood at the end, often
    if rng.random() < 0.3:  # a short prompt
        names = names[: rng.integers(1, 5)]
    else:
        kept = [
            name for name in names if rng.random() < (0.6 if name in ("hills", "meadow", "clouds") else 0.88)
        ]
        names = kept or names
    if {"water", "mountains"} <= set(names) and rng.random() < 0.4:
        names.remove("mountains")
        at = names.index("water")
        words = [phrase(name, found, rng) for name in names]
        words[at] += f" {BEFORE[rng.integers(len(BEFORE))]} {phrase('mountains', found, rng)}"
    else:
        words = [phrase(name, found, rng) for name in names]
    text = words[0]
    for word in words[1:]:
        text += JOINTS[rng.integers(len(JOINTS))] + word
    return f"{OPENINGS[rng.integers(len(OPENINGS))]} {text}".strip()


def vocabulary():
    """Every word of every caption, sorted."""
    texts = [*OPENINGS, *JOINTS, *BEFORE]
    texts += [text for options in SIDES.values() for text in options]
    texts += [text for values in PHRASES.values() for options in values.values() for text in options]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text)})
