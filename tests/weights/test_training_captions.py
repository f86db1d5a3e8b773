"""The captions of landscape-sd's training: they mention what a crop shows, in words that are single tokens."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("scipy")

from sparsegen.weights.training import captions
from sparsegen.weights.training.canvas import HOUSE, MEADOW, MOUNTAIN, SKY, TREE, WATER
from sparsegen.weights.training.captions import caption, facts, vocabulary

MOOD = {"season": "summer", "light": "day", "waters": "lake", "flowers": False}
# words that only one fact brings in
WORDS = {
    "water": {"water", "lake", "bay", "pond", "ocean", "shore"},
    "house": {"house", "houses", "cottage", "village"},
    "mountains": {"mountains"},
    "firs": {"fir", "firs", "pine"},
    "road": {"road", "path"},
    "sand": {"beach", "sand", "sandy"},
    "flowers": {"flowers"},
    "sun": {"sun"},
    "clouds": {"clouds", "cloudy"},
    "hills": {"hills"},
}


def crop(*patches):
    """A crop of sky above meadow with rectangles (label, rows, columns) on it: labels, no firs, no snow."""
    labels = np.full((128, 128), MEADOW, np.uint8)
    labels[:64] = SKY
    for label, rows, columns in patches:
        labels[rows, columns] = label
    return labels, np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)


def random_facts(rng):
    """Any combination of values."""
    return {name: list(values)[rng.integers(len(values))] for name, values in captions.PHRASES.items()
            if rng.random() < 0.6}  # fmt: skip


def test_facts_follow_the_labels():
    house = (HOUSE, np.s_[80:90], np.s_[10:22])
    shown = facts(*crop(house, (WATER, np.s_[95:110], np.s_[:])), **MOOD)
    assert shown["house"] == "one" and shown["house_side"] == "left" and shown["water"] == "lake"
    assert shown["meadow"] and shown["clouds"] is False
    assert not shown.keys() & {"mountains", "trees", "firs", "road", "sand", "sun", "flowers", "hills"}
    assert facts(*crop(house, (HOUSE, np.s_[80:90], np.s_[60:70])), **MOOD)["house"] == "more"
    assert "water" not in facts(*crop(house), **MOOD)


def test_firs_and_snow_come_from_the_painter_s_maps():
    labels, firs, snowy = crop((TREE, np.s_[50:80], np.s_[90:110]), (MOUNTAIN, np.s_[30:60], np.s_[:60]))
    seen = facts(labels, firs, snowy, **MOOD)
    assert seen["trees"] and "firs" not in seen and seen["mountains"] == "bare"
    seen = facts(labels, labels == TREE, labels == MOUNTAIN, **MOOD)
    assert seen["firs"] and "trees" not in seen and seen["mountains"] == "snowy"


def test_a_mirrored_crop_has_its_sides_exchanged():
    maps = crop((HOUSE, np.s_[80:90], np.s_[10:22]), (TREE, np.s_[60:90], np.s_[100:120]))
    here, there = facts(*maps, **MOOD), facts(*(m[:, ::-1] for m in maps), **MOOD)
    exchanged = {"left": "right", "right": "left"}
    assert there == {name: exchanged.get(value, value) for name, value in here.items()}
    assert here["house_side"] == "left" and here["trees_side"] == "right"


def test_captions_use_the_vocabulary_and_mention_no_absent_thing():
    rng, known = np.random.default_rng(0), set(vocabulary())
    for _ in range(500):
        found = random_facts(rng) or {"season": "winter"}
        words = set(re.findall(r"[a-z]+", caption(found, rng)))
        assert words and words <= known
        for name, named in WORDS.items():
            if name not in found and not (name == "clouds" and found.get("clouds") is False):
                assert not words & named, (found, words)


def test_a_seed_has_one_caption_and_seeds_have_many():
    found = {"season": "autumn", "light": "evening", "water": "lake", "mountains": "snowy", "house": "one"}
    texts = [caption(found, np.random.default_rng(seed)) for seed in range(50)]
    assert texts == [caption(found, np.random.default_rng(seed)) for seed in range(50)]
    assert len(set(texts)) > 40


def test_captioned_crops_are_the_painter_s():
    from sparsegen.weights.training.sd_data import captioned

    pictures, found = captioned(1_000_003)
    assert pictures.shape == (2, 128, 128, 3) and pictures.dtype == np.uint8 and len(found) == 2
    assert all(
        each.keys() <= {*captions.PHRASES, *(f"{name}_side" for name in captions.PHRASES)} for each in found
    )
    again, same = captioned(1_000_003)
    assert (again == pictures).all() and same == found


@pytest.mark.torch
def test_every_word_is_one_token_and_any_text_some(tmp_path):
    pytest.importorskip("transformers")
    from sparsegen.weights.training.sd_network import END, LENGTH, START, write_tokenizer

    tokenizer = write_tokenizer(tmp_path)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in vocabulary())
    assert tokenizer.convert_ids_to_tokens([len(tokenizer) - 2, len(tokenizer) - 1]) == [START, END]
    for text in ("Zürich, 1984!", "雪 ☃", "it's frozen"):
        ids = tokenizer(text).input_ids[1:-1]
        assert ids and max(ids) < len(tokenizer) - 2
        assert tokenizer.decode(ids).replace(" ", "") == text.lower().replace(" ", "")
    padded = tokenizer("a lake", padding="max_length").input_ids
    assert len(padded) == LENGTH and set(padded[4:]) == {len(tokenizer) - 1}
