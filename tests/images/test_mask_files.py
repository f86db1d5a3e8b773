"""Masks in files: what is masked, by brightness or by the alpha channel, and what no mask can be."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsegen import InputError, ShapeError
from sparsegen.images import Frame, read_mask
from tests.images.image_files import GREY, RGB, indexed, png, turned

MASK = np.zeros((10, 14), bool)
MASK[2:5, 3:7] = True


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return path


def grey(masked: int, other: int, kind: type = np.uint8) -> np.ndarray:
    return np.where(MASK, masked, other).astype(kind)


def layer(colour: tuple[int, int, int], alpha: np.ndarray) -> np.ndarray:
    return np.dstack([np.full((*MASK.shape, 3), colour), alpha]).astype(np.uint8)


MASKS = {
    "white on black": grey(255, 0),
    "a background of 1": grey(255, 1),
    "at half": grey(128, 127),
    "16 bits, at half": grey(32768, 32767, np.uint16),
    "16 bits": grey(65535, 257, np.uint16),
    "1 bit": MASK,
    "red on black": np.dstack([grey(255, 0), grey(0, 0), grey(0, 0)]),
    "blue on nearly black": np.dstack([grey(0, 3), grey(0, 3), grey(200, 3)]),
    "opaque": np.dstack([grey(255, 0)] * 3 + [np.full_like(grey(0, 0), 255)]),
    "alike half opaque": np.dstack([grey(255, 0)] * 3 + [np.full_like(grey(0, 0), 130)]),
    "nearly opaque": np.dstack([grey(255, 0)] * 3 + [grey(254, 250)]),
    "black strokes on a layer": layer((0, 0, 0), grey(255, 0)),
    "white strokes on a layer": layer((255, 255, 255), grey(255, 0)),
    "red strokes on a layer": layer((255, 0, 0), grey(255, 0)),
    "soft strokes on a layer": layer((0, 90, 0), grey(128, 127)),
    "black strokes on white transparency": np.dstack([grey(0, 255)] * 3 + [grey(255, 0)]),
    "white strokes on black transparency": np.dstack([grey(255, 0)] * 3 + [grey(255, 0)]),
    "grey with alpha": np.dstack([grey(0, 0), grey(255, 0)]),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_masked(tmp_path, name):
    found = read_mask(save(tmp_path / "mask.png", MASKS[name]))
    assert found.dtype == bool and np.array_equal(found, MASK)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits(tmp_path, bits):
    most = 2**bits - 1
    (tmp_path / "mask.png").write_bytes(png(grey(most, 0), bits, GREY))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), MASK)
    (tmp_path / "mask.png").write_bytes(png(grey(most // 2 + 1, most // 2), bits, GREY))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), MASK)


@pytest.mark.parametrize(
    ("first", "second"), [((0, 0, 0), (255, 255, 255)), ((1, 1, 1), (128, 0, 0)), ((20, 0, 0), (0, 0, 255))]
)
def test_palettes_count_by_colour(tmp_path, first, second):
    indexed(MASK, [first, second]).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), MASK)
    indexed(~MASK, [second, first]).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), MASK)


def test_what_a_palette_or_a_key_colour_makes_transparent(tmp_path):
    """Both are alpha channels: all that is opaque is of one brightness."""
    indexed(MASK, [(255, 255, 255), (0, 0, 0)]).save(tmp_path / "mask.png", transparency=0)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), MASK)
    indexed(MASK, [(9, 9, 9), (0, 0, 0)]).save(tmp_path / "mask.png", transparency=b"\x00\x80")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), MASK)
    (tmp_path / "mask.png").write_bytes(png(grey(0, 200), 8, GREY, transparent=[200]))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), MASK)
    deep = np.dstack([grey(0, 200 * 257, np.uint16)] * 3)
    (tmp_path / "mask.png").write_bytes(png(deep, 16, RGB, transparent=[200 * 257] * 3))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), MASK)


def test_loss_does_not_matter_to_a_mask(tmp_path):
    found = read_mask(save(tmp_path / "mask.jpg", grey(255, 0)))
    assert np.array_equal(found, MASK)


REFUSED = {
    "black": (grey(0, 0), "the mask is empty"),
    "0 and 1": (grey(1, 0), "a mask of 0 and 1 must be saved as 0 and 255"),
    "1 of 16 bits": (grey(1, 0, np.uint16), "the mask is empty"),
    "dark": (grey(127, 0), "the mask is empty"),
    "transparent": (np.dstack([grey(255, 0)] * 3 + [grey(0, 0)]), "transparent everywhere"),
    "nearly transparent": (np.dstack([grey(255, 0)] * 3 + [grey(100, 0)]), "transparent everywhere"),
    "two masks": (
        np.dstack([grey(255, 0)] * 3 + [grey(255, 255) * (np.arange(14) > 4)]),
        "colour and transparency both vary",
    ),
    "32 bits": (grey(1, 0, np.int32), "expected 8 or 16 bits"),
    "fractions": (grey(1, 0, np.float32), "expected RGB or grey"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_mask_can_be(tmp_path, name):
    pixels, why = REFUSED[name]
    path = tmp_path / f"mask.{'tif' if pixels.dtype.kind in 'if' else 'png'}"
    with pytest.raises(InputError, match=rf"mask\.\w+: .*{why}"):
        read_mask(save(path, pixels))


def test_a_mask_of_nearly_everything_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"mask.png: 100.0% of the pixels are masked") as caught:
        assert read_mask(save(tmp_path / "mask.png", grey(255, 255))).all()
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"mask.png: 91.4% of the pixels are masked"):
        read_mask(save(tmp_path / "mask.png", grey(0, 255)))
    half = np.zeros((10, 10), np.uint8)
    half[:8] = 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_mask(save(tmp_path / "mask.png", half))


def test_a_hole_in_an_opaque_layer_is_warned_of(tmp_path):
    """Inpainting tools mean the hole; here what is opaque is masked."""
    for colour in ((0, 0, 0), (255, 255, 255)):
        with pytest.warns(UserWarning, match=r"its alpha channel is the mask, and 91.4% .* opaque") as caught:
            found = read_mask(save(tmp_path / "mask.png", layer(colour, grey(0, 255))))
        assert np.array_equal(found, ~MASK) and len(caught) == 1
    wide = np.zeros(MASK.shape, bool)
    wide[:, :8] = True
    with pytest.warns(UserWarning, match=r"57.1% of the pixels are opaque"):
        read_mask(save(tmp_path / "mask.png", layer((0, 0, 0), wide * 255)))
    wide[:, 7:] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_mask(save(tmp_path / "mask.png", layer((0, 0, 0), wide * 255)))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_masks_are_upright(tmp_path, orientation, turns):
    turned(Image.fromarray(grey(255, 0)), orientation, tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), np.rot90(MASK, turns))


def test_a_frame_crops_and_resizes_a_mask(tmp_path):
    path = save(tmp_path / "mask.png", grey(255, 0))
    assert np.array_equal(read_mask(path, frame=Frame((10, 14), (6, 8), (6, 8))), MASK[2:8, 3:11])
    larger = read_mask(path, frame=Frame((10, 14), (10, 14), (20, 14)))
    assert np.array_equal(larger, MASK.repeat(2, 0))
    with pytest.raises(InputError, match=r"corner.png: no masked pixel is left of the middle 2×2 of 10×14"):
        read_mask(
            save(tmp_path / "corner.png", np.roll(grey(255, 0), -2, 0)), frame=Frame((10, 14), (2, 2), (4, 4))
        )
    with pytest.raises(
        ShapeError, match=r"mask.png: 10×14, expected 10×15 \(height × width\) like the original"
    ):
        read_mask(path, frame=Frame((10, 15), (10, 10), (4, 4)))
