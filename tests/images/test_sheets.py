"""Sheets: images stand where their captions are; long captions get lines, a heading stands above all."""

from __future__ import annotations

import numpy as np

from sparsegen.images import sheets


def images_of(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (64, 200, 3), np.uint8) for _ in range(count)]


def test_images_lie_in_rows_below_their_captions():
    made = images_of(3)
    found = sheets.sheet([("one", image) for image in made], columns=2)
    margin, caption = sheets.MARGIN, sheets.CAPTION
    for i, image in enumerate(made):
        top, left = margin + i // 2 * (64 + caption + margin) + caption, margin + i % 2 * (200 + margin)
        assert np.array_equal(found[top : top + 64, left : left + 200], image)
    assert found.shape == (margin + 2 * (64 + caption + margin), margin + 2 * (200 + margin), 3)


def test_a_caption_stays_above_its_own_image():
    long = "a lake in front of snowy mountains, autumn, a house, evening"
    panels = list(zip((long, "short"), images_of(2), strict=True))
    found = sheets.sheet(panels, columns=2)
    plain = sheets.sheet([("a", image) for _, image in panels], columns=2)
    lines = (len(found) - len(plain)) // sheets.LINE
    assert lines >= 1 and len(found) == len(plain) + lines * sheets.LINE
    # between the two captions there is the sheet's colour alone
    between = found[: -(64 + sheets.MARGIN), sheets.MARGIN + 200 : 2 * sheets.MARGIN + 200]
    assert (between == found[0, 0]).all()
    assert np.array_equal(
        found[-(64 + sheets.MARGIN) : -sheets.MARGIN, sheets.MARGIN :][:, :200], panels[0][1]
    )


def test_a_heading_is_above_the_same_sheet():
    panels = [("one", image) for image in images_of(2)]
    plain = sheets.sheet(panels, columns=2)
    found = sheets.sheet(panels, columns=2, heading="Two images")
    assert np.array_equal(found[sheets.HEADING + sheets.MARGIN :], plain[sheets.MARGIN :])
    assert (found[: sheets.HEADING] != found[0, 0]).any()
