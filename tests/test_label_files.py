"""Label maps in files: whatever a paint program did to palette, depth and mode, labels stay or the file is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import GREY, INDEXED, indexed, png, turned
from PIL import Image

from sparsegen import InputError
from sparsegen.pictures import ColourError, Frame, read_labels

COLOURS = [(135, 190, 235), (240, 244, 250), (255, 214, 64), (128, 118, 128), (86, 132, 78), (140, 190, 84)]
ORDER = np.array([3, 1, 0, 5, 4, 2])
"""Index -> label, as a paint program may reorder a palette."""
INDEX = np.argsort(ORDER)
"""Label -> index."""


@pytest.fixture
def labels() -> np.ndarray:
    """Every one of six labels, none of which lies symmetrically."""
    return np.random.default_rng(7).permutation(np.arange(96) % 6).reshape(8, 12)


@pytest.fixture
def original(tmp_path: Path, labels: np.ndarray) -> Path:
    indexed(labels, COLOURS).save(tmp_path / "lake.png")
    return tmp_path / "lake.png"


def reordered(labels: np.ndarray) -> Image.Image:
    return indexed(INDEX[labels], [COLOURS[label] for label in ORDER])


COPIES: dict[str, Callable[[np.ndarray, Path], None]] = {
    "as it was": lambda labels, path: indexed(labels, COLOURS).save(path),
    "reordered": lambda labels, path: reordered(labels).save(path),
    "reordered GIF": lambda labels, path: reordered(labels).save(path, "GIF"),
    "reordered BMP": lambda labels, path: reordered(labels).save(path, "BMP"),
    "reordered TIFF": lambda labels, path: reordered(labels).save(path, "TIFF"),
    "8 bits instead of 4": lambda labels, path: reordered(labels).save(path, bits=8),
    "padded with black": lambda labels, path: indexed(
        INDEX[labels], [*(COLOURS[label] for label in ORDER), *[(0, 0, 0)] * 250]
    ).save(path),
    "RGB": lambda labels, path: reordered(labels).convert("RGB").save(path),
    "RGBA": lambda labels, path: reordered(labels).convert("RGBA").save(path),
    "lossless WebP": lambda labels, path: reordered(labels).convert("RGB").save(path, "WEBP", lossless=True),
    "lossless WebP with alpha": lambda labels, path: (
        reordered(labels).convert("RGBA").save(path, "WEBP", lossless=True, exact=True)
    ),
    "grey": lambda labels, path: Image.fromarray(labels.astype(np.uint8)).save(path),
    "grey ramp": lambda labels, path: indexed(labels, [(i, i, i) for i in range(256)]).save(path),
}


@pytest.mark.parametrize("copy", COPIES)
def test_labels_are_matched_by_colour(tmp_path, labels, original, copy):
    """By the model's colours, or by those of the original, whatever the copy's own order."""
    COPIES[copy](labels, tmp_path / "copy.png")
    assert np.array_equal(read_labels(tmp_path / "copy.png", COLOURS), labels)
    assert np.array_equal(read_labels(tmp_path / "copy.png", like=original), labels)


def test_a_copy_with_the_used_colours_alone_keeps_its_labels(tmp_path, labels, original):
    few = np.where(labels > 3, 3, labels) // 3 * 3  # labels 0 and 3
    indexed(few == 0, [COLOURS[3], COLOURS[0]]).save(tmp_path / "copy.png")
    for given in ({"palette": COLOURS}, {"like": original}):
        assert np.array_equal(read_labels(tmp_path / "copy.png", **given), few)


def test_without_colours_to_compare_indices_are_labels(tmp_path, labels):
    for bits, colours in ((1, COLOURS[:2]), (2, COLOURS[:4]), (4, COLOURS), (8, COLOURS)):
        fewer = labels % len(colours)
        indexed(fewer, colours).save(tmp_path / "map.png", bits=bits)
        assert np.array_equal(read_labels(tmp_path / "map.png"), fewer)


def test_two_reordered_files_are_compared(tmp_path, labels):
    """Both in another order: the original's indices are the numbering, as nothing else is known."""
    reordered(labels).save(tmp_path / "original.png")
    edited = (labels + 1) % 6
    indexed(labels, [COLOURS[(label + 1) % 6] for label in range(6)]).save(tmp_path / "edited.png")
    assert np.array_equal(read_labels(tmp_path / "edited.png", like=tmp_path / "original.png"), INDEX[edited])
    assert np.array_equal(read_labels(tmp_path / "edited.png", COLOURS), edited)


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_a_colour_that_stands_for_no_label_is_refused(tmp_path, labels, original, mode):
    strange = [*COLOURS[:5], (1, 2, 3)]
    indexed(labels, strange).convert(mode).save(tmp_path / "edited.png")
    row, column = np.argwhere(labels == 5)[0]
    index = r" \(index 5\)" if mode == "P" else ""
    where = rf"edited.png: the colour \(1, 2, 3\){index} at row {row}, column {column} is none of"
    with pytest.raises(ColourError, match=f"{where} the model's 6 label colours"):
        read_labels(tmp_path / "edited.png", COLOURS)
    with pytest.raises(ColourError, match=f"{where} the colours of .*lake.png"):
        read_labels(tmp_path / "edited.png", like=original)


def test_a_colour_that_was_appended_is_no_label(tmp_path, labels, original):
    """A soft brush in an indexed picture appends colours: index 6 is not label 6."""
    edited = labels.copy()
    edited[2, 3] = 6
    indexed(edited, [*COLOURS, (9, 9, 200)]).save(tmp_path / "edited.png")
    with pytest.raises(ColourError, match=r"\(9, 9, 200\) \(index 6\) at row 2, column 3"):
        read_labels(tmp_path / "edited.png", like=original)


def test_rgb_without_a_palette_is_refused(tmp_path, labels, original):
    reordered(labels).convert("RGB").save(tmp_path / "edited.png")
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "grey.png")
    for given in ({}, {"like": tmp_path / "grey.png"}, {"like": tmp_path / "edited.png"}):
        with pytest.raises(ColourError, match="give label maps as palette or grey PNG"):
            read_labels(tmp_path / "edited.png", **given)
    with pytest.raises(ColourError, match="give label maps as palette or grey PNG"):
        read_labels(original, like=tmp_path / "edited.png")


# -- colours that occur twice, or are transparent --------------------------------------------------------

TWICE = [*COLOURS[:5], COLOURS[1]]
"""Labels 1 and 5 have one colour."""


def test_colours_that_occur_twice_are_told_apart_by_their_indices_alone(tmp_path, labels):
    indexed(labels, TWICE).save(tmp_path / "original.png")
    indexed(labels.T, TWICE).save(tmp_path / "same.png")
    for given in ({"palette": TWICE}, {"like": tmp_path / "original.png"}):
        assert np.array_equal(read_labels(tmp_path / "same.png", **given), labels.T)
    indexed(INDEX[labels], [TWICE[label] for label in ORDER]).save(tmp_path / "other.png")
    for given in ({"palette": TWICE}, {"like": tmp_path / "original.png"}):
        with pytest.raises(ColourError, match=r"\(240, 244, 250\) .* occurs more than once in"):
            read_labels(tmp_path / "other.png", **given)


def test_of_equal_colours_the_one_that_occurs_is_meant(tmp_path, labels):
    """Palettes are padded with black, which may be a label."""
    black = [(0, 0, 0), *COLOURS[1:], *[(0, 0, 0)] * 250]
    indexed(labels, black).save(tmp_path / "original.png")
    indexed(INDEX[labels], [black[label] for label in ORDER]).save(tmp_path / "edited.png")
    assert np.array_equal(read_labels(tmp_path / "edited.png", like=tmp_path / "original.png"), labels)


def test_an_entry_may_be_transparent_where_nothing_moved(tmp_path, labels, original):
    indexed(labels, COLOURS).save(tmp_path / "clear.png", transparency=0)
    for given in ({}, {"palette": COLOURS}, {"like": original}, {"like": tmp_path / "clear.png"}):
        assert np.array_equal(read_labels(tmp_path / "clear.png", **given), labels)
    assert np.array_equal(read_labels(original, like=tmp_path / "clear.png"), labels)
    reordered(labels).save(tmp_path / "moved.png", transparency=int(INDEX[0]))
    assert np.array_equal(read_labels(tmp_path / "moved.png", like=tmp_path / "clear.png"), labels)


def test_what_was_erased_has_no_label(tmp_path, labels, original):
    reordered(labels).save(tmp_path / "erased.png", transparency=2)
    layer = np.asarray(reordered(labels).convert("RGBA")).copy()
    layer[4, 5, 3] = 0
    Image.fromarray(layer).save(tmp_path / "layer.png")
    for given in ({"palette": COLOURS}, {"like": original}):
        with pytest.raises(ColourError, match=r"\(index 2\) .* is transparent"):
            read_labels(tmp_path / "erased.png", **given)
        with pytest.raises(ColourError, match="at row 4, column 5 is transparent"):
            read_labels(tmp_path / "layer.png", **given)
    grey = np.dstack([labels, np.full_like(labels, 255)]).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_labels(tmp_path / "grey.png"), labels)
    grey[1, 2, 1] = 0
    Image.fromarray(grey).save(tmp_path / "grey.png")
    with pytest.raises(ColourError, match="transparent at row 1, column 2"):
        read_labels(tmp_path / "grey.png")


def test_an_index_without_a_colour_is_refused(tmp_path, labels, original):
    colours = bytes(part for colour in COLOURS[:4] for part in colour)
    (tmp_path / "short.png").write_bytes(png(labels, 8, INDEXED, palette=colours))
    assert np.array_equal(read_labels(tmp_path / "short.png"), labels)
    row, column = np.argwhere(labels > 3)[0]
    for given in ({"palette": COLOURS}, {"like": original}):
        with pytest.raises(ColourError, match=f"at row {row}, column {column} has no colour"):
            read_labels(tmp_path / "short.png", **given)


# -- greys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "suffix"),
    [(1, "png"), (2, "png"), (4, "png"), (8, "png"), (16, "png"), (16, "tif"), (32, "tif")],
)
def test_grey_samples_are_labels_at_any_depth(tmp_path, labels, bits, suffix):
    fewer = labels % 2**bits
    path = tmp_path / f"map.{suffix}"
    if suffix == "png":
        fewer = labels * 1000 if bits == 16 else fewer
        path.write_bytes(png(fewer, bits, GREY))
    else:
        fewer = labels * 1000
        Image.fromarray(fewer.astype(np.uint16 if bits == 16 else np.int32)).save(path)
    found = read_labels(path)
    assert found.dtype == np.int32 and np.array_equal(found, fewer)
    assert np.array_equal(read_labels(path, COLOURS), fewer)
    assert np.array_equal(read_labels(path, like=path), fewer)


@pytest.mark.parametrize("most", [5, 34, 255, 300, 65535])
def test_a_pgm_holds_labels_whatever_its_largest_value(tmp_path, labels, most):
    kind = ">u2" if most > 255 else "u1"
    (tmp_path / "map.pgm").write_bytes(b"P5\n12 8\n%d\n" % most + labels.astype(kind).tobytes())
    assert np.array_equal(read_labels(tmp_path / "map.pgm"), labels)


def test_a_grey_ramp_in_any_order_holds_its_greys(tmp_path, labels):
    ramp = indexed(INDEX[labels], [(label,) * 3 for label in ORDER])
    ramp.save(tmp_path / "ramp.png")
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "grey.png")
    for given in ({}, {"palette": COLOURS}, {"like": tmp_path / "ramp.png"}, {"like": tmp_path / "grey.png"}):
        assert np.array_equal(read_labels(tmp_path / "ramp.png", **given), labels)
    assert np.array_equal(read_labels(tmp_path / "grey.png", like=tmp_path / "ramp.png"), labels)
    # a copy in RGB of the indexed one has its palette to go by
    ramp.convert("RGB").save(tmp_path / "rgb.png")
    assert np.array_equal(read_labels(tmp_path / "rgb.png", like=tmp_path / "ramp.png"), labels)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_all_greys_in_order_is_a_grey_picture(tmp_path, labels, bits):
    fewer, step = labels % 2**bits, 255 // (2**bits - 1)
    scale = [(step * i,) * 3 for i in range(2**bits)]
    indexed(fewer, scale).save(tmp_path / "map.png")
    assert np.array_equal(read_labels(tmp_path / "map.png"), fewer)
    indexed(2**bits - 1 - fewer, scale[::-1]).save(tmp_path / "turned.png")
    assert np.array_equal(read_labels(tmp_path / "turned.png", like=tmp_path / "map.png"), fewer)


def test_a_palette_without_colours_says_nothing(tmp_path, labels):
    indexed(labels, [(0, 0, 0)] * 256).save(tmp_path / "map.png")
    assert np.array_equal(read_labels(tmp_path / "map.png"), labels)


def test_a_colour_painted_over_greys_is_refused(tmp_path, labels):
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "grey.png")
    indexed(labels, [*((i, i, i) for i in range(5)), (255, 0, 0)]).save(tmp_path / "edited.png")
    with pytest.raises(ColourError, match=r"\(255, 0, 0\) \(index 5\) .* is none of the greys of .*grey.png"):
        read_labels(tmp_path / "edited.png", like=tmp_path / "grey.png")


@pytest.mark.parametrize(("first", "second"), [(4, 8), (8, 4), (8, 16), (16, 8)])
def test_greys_of_another_depth_may_be_scaled_and_are_refused(tmp_path, labels, first, second):
    for name, bits in (("original", first), ("edited", second)):
        (tmp_path / f"{name}.png").write_bytes(png(labels, bits, GREY))
    for given in ({}, {"palette": COLOURS}):
        with pytest.raises(
            InputError, match=r"edited.png: its samples go up to .* save both maps with the same"
        ):
            read_labels(tmp_path / "edited.png", like=tmp_path / "original.png", **given)


def test_a_value_that_a_png_calls_transparent_is_no_label(tmp_path, labels):
    (tmp_path / "map.png").write_bytes(png(labels, 8, GREY, transparent=[9]))
    assert np.array_equal(read_labels(tmp_path / "map.png"), labels)
    (tmp_path / "map.png").write_bytes(png(labels, 8, GREY, transparent=[5]))
    with pytest.raises(ColourError, match="transparent at row"):
        read_labels(tmp_path / "map.png")


# -- files -----------------------------------------------------------------------------------------------

LOSSY = {
    "JPEG": {"format": "JPEG", "quality": 100},
    "JPEG2000": {"format": "JPEG2000"},
    "AVIF": {"format": "AVIF"},
    "lossy WebP": {"format": "WEBP", "quality": 100},
    "TIFF with lossy compression": {"format": "TIFF", "compression": "jpeg"},
}


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_files_are_refused_whatever_they_are_called(tmp_path, labels, kind):
    picture = Image.fromarray(labels.astype(np.uint8)).convert("RGB" if "WebP" in kind else "L")
    try:
        picture.save(tmp_path / "map.png", **LOSSY[kind])
    except (OSError, KeyError):
        pytest.skip(f"this Pillow does not write {kind}")
    with pytest.raises(InputError, match=f"map.png: a label or instance map saved as {kind}, .* as PNG"):
        read_labels(tmp_path / "map.png", COLOURS)


def test_a_lossy_webp_with_an_alpha_channel_is_lossy(tmp_path, labels):
    reordered(labels).convert("RGBA").save(tmp_path / "map.webp", quality=100)
    layer = np.asarray(reordered(labels).convert("RGBA")).copy()
    layer[0, 0, 3] = 100
    Image.fromarray(layer).save(tmp_path / "map.webp", quality=100)
    assert b"VP8X" in (tmp_path / "map.webp").read_bytes()[:32]
    with pytest.raises(InputError, match="saved as lossy WebP"):
        read_labels(tmp_path / "map.webp", COLOURS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_label_maps_are_upright(tmp_path, labels, orientation):
    turned(indexed(labels, COLOURS), orientation, tmp_path / "indexed.png")
    turned(Image.fromarray(labels.astype(np.uint8)), orientation, tmp_path / "grey.png")
    ways = [np.eye, lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, np.transpose]
    ways += [lambda a: np.rot90(a, -1), lambda a: np.rot90(a, 2).T, np.rot90]
    for name in ("indexed", "grey"):
        assert np.array_equal(read_labels(tmp_path / f"{name}.png"), ways[orientation](labels))


def test_unknown_becomes_a_label(tmp_path, labels):
    labels[2, 3:6] = 255
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "grey.png")
    assert (read_labels(tmp_path / "grey.png")[2, 3:6] == 255).all()
    expected = np.where(labels == 255, 4, labels)
    assert np.array_equal(read_labels(tmp_path / "grey.png", unknown_label=4), expected)
    # of an indexed map, entry 255 has no colour of the model, or one that it shares with nothing
    many = [*COLOURS, *[(0, 0, 0)] * 249, (224, 224, 192)]
    indexed(labels, many).save(tmp_path / "indexed.png")
    for given in ({}, {"palette": COLOURS}, {"like": tmp_path / "indexed.png"}):
        found = read_labels(tmp_path / "indexed.png", unknown_label=4, **given)
        assert np.array_equal(found, expected)
    with pytest.raises(ColourError, match=r"index 255, 'unknown': map it with unknown_label"):
        read_labels(tmp_path / "indexed.png", COLOURS)


def test_a_frame_takes_the_nearest_label(tmp_path, labels, original):
    found = read_labels(original, frame=Frame((8, 12), (6, 8), (3, 4)))
    assert np.array_equal(found, labels[1:7, 2:10][1::2, 1::2])
    larger = read_labels(original, frame=Frame((8, 12), (8, 12), (16, 36)))
    assert np.array_equal(larger, labels.repeat(2, 0).repeat(3, 1))
