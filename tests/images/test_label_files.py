"""Label maps in files: whatever a paint program did to palette, depth and mode, labels stay or the file is refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsegen import InputError
from sparsegen.images import ColourError, Frame, read_labels
from tests.images.image_files import GREY, GREY_ALPHA, INDEXED, indexed, png, turned

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
    """A soft brush in an indexed image appends colours: index 6 is not label 6."""
    edited = labels.copy()
    edited[2, 3] = 6
    indexed(edited, [*COLOURS, (9, 9, 200)]).save(tmp_path / "edited.png")
    with pytest.raises(ColourError, match=r"\(9, 9, 200\) \(index 6\) at row 2, column 3"):
        read_labels(tmp_path / "edited.png", like=original)


def test_rgb_without_a_palette_is_refused(tmp_path, labels, original):
    reordered(labels).convert("RGB").save(tmp_path / "edited.png")
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "grey.png")
    for given in ({}, {"like": tmp_path / "edited.png"}):
        with pytest.raises(ColourError, match="give label maps as palette or grey PNG"):
            read_labels(tmp_path / "edited.png", **given)
    with pytest.raises(ColourError, match=r"edited.png: the colour .* is none of the greys of .*grey.png"):
        read_labels(tmp_path / "edited.png", like=tmp_path / "grey.png")
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


def test_a_half_transparent_colour_is_another_than_the_opaque_one(tmp_path, labels, original):
    """A soft brush: it has a label only where the original has it as transparent."""
    alphas = bytes([255, 255, 255, 128, 255, 255])
    reordered(labels).save(tmp_path / "soft.png", transparency=alphas)
    for given in ({"palette": COLOURS}, {"like": original}):
        with pytest.raises(ColourError, match=r"\(index 3\) .* is transparent"):
            read_labels(tmp_path / "soft.png", **given)
    there = np.full(6, 255)
    there[ORDER[3]] = 128
    indexed(labels, COLOURS).save(tmp_path / "original.png", transparency=bytes(there.tolist()))
    assert np.array_equal(read_labels(tmp_path / "soft.png", like=tmp_path / "original.png"), labels)
    layer = np.asarray(reordered(labels).convert("RGBA")).copy()
    layer[4, 5, 3] = 254
    Image.fromarray(layer).save(tmp_path / "layer.png")
    with pytest.raises(ColourError, match="at row 4, column 5 is transparent"):
        read_labels(tmp_path / "layer.png", palette=COLOURS)


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


BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def scale(bits: int) -> list[tuple[int, int, int]]:
    return [(255 // (2**bits - 1) * i,) * 3 for i in range(2**bits)]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_all_greys_of_few_bits_is_a_grey_picture(tmp_path, labels, bits):
    """In order, filled up by a program, or cut off at the last that occurs."""
    fewer, whole = labels % 2**bits, scale(bits)
    for colours in (whole, [*whole, *[BLACK] * 100], [*whole, *[WHITE] * 100], whole[: fewer.max() + 1]):
        indexed(fewer, colours).save(tmp_path / "map.png")
        for given in ({}, {"palette": COLOURS}, {"like": tmp_path / "map.png"}):
            assert np.array_equal(read_labels(tmp_path / "map.png", **given), fewer)
        (tmp_path / "grey.png").write_bytes(png(fewer, bits, GREY))
        for one, other in (("map", "grey"), ("grey", "map")):
            assert np.array_equal(read_labels(tmp_path / f"{one}.png", like=tmp_path / f"{other}.png"), fewer)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_all_greys_of_few_bits_are_labels_in_any_order(tmp_path, labels, bits):
    """White first, say: the greys are meant, and a warning says so where nothing else decides."""
    most = 2**bits - 1
    fewer = labels % 2**bits
    (tmp_path / "grey.png").write_bytes(png(fewer, bits, GREY))
    indexed(fewer, scale(bits)).save(tmp_path / "map.png")
    for more in ([], [BLACK] * 50, [WHITE] * 50):
        indexed(most - fewer, [*scale(bits)[::-1], *more]).save(tmp_path / "turned.png")
        for like in ("map.png", "grey.png"):
            assert np.array_equal(read_labels(tmp_path / "turned.png", like=tmp_path / like), fewer)
        for given in ({}, {"palette": COLOURS}, {"like": tmp_path / "turned.png"}):
            with pytest.warns(UserWarning, match=rf"greys of a {bits}-bit image, .* white {most}") as caught:
                assert np.array_equal(read_labels(tmp_path / "turned.png", **given), fewer)
            assert len(caught) == 1
        indexed(most - (fewer + 1) % 2**bits, scale(bits)[::-1]).save(tmp_path / "edited.png")
        found = read_labels(tmp_path / "edited.png", like=tmp_path / "turned.png")
        assert np.array_equal(found, (fewer + 1) % 2**bits)


@pytest.mark.parametrize("more", [0, 100])
@pytest.mark.parametrize("filling", [BLACK, WHITE])
def test_small_greys_in_another_order_are_those_of_8_bits(tmp_path, labels, more, filling):
    fewer = np.where(labels == 4, 2, labels)  # one that does not occur is in the palette
    indexed(INDEX[fewer], [*((i, i, i) for i in ORDER.tolist()), *[filling] * more]).save(
        tmp_path / "map.png"
    )
    for given in ({}, {"palette": COLOURS}, {"like": tmp_path / "map.png"}):
        assert np.array_equal(read_labels(tmp_path / "map.png", **given), fewer)


UNCERTAIN = {
    "greys to be seen": [0, 10, 20, 30, 40, 50],
    "of the whole range": [0, 51, 102, 153, 204, 255],
    "some labels": [0, 1, 2, 4, 8, 9],
    "another order of some": [51, 0, 85, 17, 34, 170],
}


@pytest.mark.parametrize("name", UNCERTAIN)
def test_other_greys_may_be_labels_or_not_and_are_refused(tmp_path, labels, name):
    values = np.array(UNCERTAIN[name])
    indexed(labels, [(i, i, i) for i in values.tolist()]).save(tmp_path / "map.png")
    for given in ({}, {"palette": COLOURS}, {"like": tmp_path / "map.png"}):
        with pytest.raises(ColourError, match=r"map.png: an indexed image in the greys .* either could be"):
            read_labels(tmp_path / "map.png", **given)
    # a grey original decides, and the model's palette
    Image.fromarray(values[labels.T].astype(np.uint8)).save(tmp_path / "grey.png")
    for given in ({}, {"palette": COLOURS}):
        found = read_labels(tmp_path / "map.png", like=tmp_path / "grey.png", **given)
        assert np.array_equal(found, values[labels])
    palette = [(i, i, i) for i in values[::-1].tolist()]
    assert np.array_equal(read_labels(tmp_path / "map.png", palette), 5 - labels)


def test_a_grey_original_says_that_two_greys_are_labels_0_and_255(tmp_path, labels):
    """A program that makes files small turns a grey image of two values into an indexed one of 1 bit."""
    indexed(labels > 4, [BLACK, WHITE]).save(tmp_path / "small.png")
    Image.fromarray(np.where(labels > 2, 255, 0).astype(np.uint8)).save(tmp_path / "grey.png")
    expected = np.where(labels > 4, 255, 0)
    for given in ({}, {"palette": COLOURS}):
        assert np.array_equal(
            read_labels(tmp_path / "small.png", like=tmp_path / "grey.png", **given), expected
        )
    assert np.array_equal(read_labels(tmp_path / "small.png"), labels > 4)


def test_a_ramp_of_all_256_greys_is_a_grey_picture_whatever_its_greys_stand_for(tmp_path, labels):
    """Also where the model, or the original, has these greys among its colours."""
    indexed(labels, [(i, i, i) for i in range(256)]).save(tmp_path / "ramp.png")
    others = [(i, i, i) for i in ORDER.tolist()]
    indexed(labels, [*others, (9, 0, 0)]).save(tmp_path / "original.png")
    for given in ({"palette": others}, {"like": tmp_path / "original.png"}):
        assert np.array_equal(read_labels(tmp_path / "ramp.png", **given), labels)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_copy_in_rgb_of_a_grey_map_has_its_greys(tmp_path, labels, bits):
    """Lossless WebP has no grey images, and many programs save none."""
    fewer = labels % 2**bits
    (tmp_path / "grey.png").write_bytes(png(fewer, bits, GREY))
    shown = Image.fromarray((fewer * (255 // (2**bits - 1))).astype(np.uint8)).convert("RGB")
    for name, options in (("copy.png", {}), ("copy.webp", {"lossless": True})):
        shown.save(tmp_path / name, **options)
        for given in ({}, {"palette": COLOURS}):
            found = read_labels(tmp_path / name, like=tmp_path / "grey.png", **given)
            assert np.array_equal(found, fewer)
    strange = np.asarray(shown).copy()
    strange[3, 4] = 7, 7, 8
    Image.fromarray(strange).save(tmp_path / "copy.png")
    with pytest.raises(
        ColourError, match=r"\(7, 7, 8\) at row 3, column 4 is none of the greys of .*grey.png"
    ):
        read_labels(tmp_path / "copy.png", like=tmp_path / "grey.png")
    # 8 bits cannot hold what 16 do
    (tmp_path / "deep.png").write_bytes(png(fewer, 16, GREY))
    shown.save(tmp_path / "copy.png")
    with pytest.raises(ColourError, match=r"copy.png: the colour"):
        read_labels(tmp_path / "copy.png", like=tmp_path / "deep.png")


def test_a_palette_without_colours_says_nothing(tmp_path, labels):
    indexed(labels, [(0, 0, 0)] * 256).save(tmp_path / "map.png")
    assert np.array_equal(read_labels(tmp_path / "map.png"), labels)


def test_a_colour_painted_over_greys_is_refused(tmp_path, labels):
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "grey.png")
    indexed(labels, [*((i, i, i) for i in range(5)), (255, 0, 0)]).save(tmp_path / "edited.png")
    with pytest.raises(ColourError, match=r"\(255, 0, 0\) \(index 5\) .* is none of the greys of .*grey.png"):
        read_labels(tmp_path / "edited.png", like=tmp_path / "grey.png")


@pytest.mark.parametrize(("first", "second"), [(2, 8), (4, 8), (8, 2), (8, 4), (8, 16), (16, 8), (4, 16)])
def test_greys_of_another_depth_are_refused_where_they_may_be_scaled(tmp_path, labels, first, second):
    """All multiples of the ratio: the labels as they are would not be."""
    labels = labels % 4
    ratio = (2 ** max(first, second) - 1) // (2 ** min(first, second) - 1)

    def write(name: str, values: np.ndarray, bits: int) -> Path:
        (tmp_path / name).write_bytes(png(values, bits, GREY))
        return tmp_path / name

    original = write("original.png", labels * (ratio if first > second else 1), first)
    edited = write("edited.png", labels.T.reshape(8, 12) * (ratio if second > first else 1), second)
    for given in ({}, {"palette": COLOURS}):
        with pytest.raises(InputError, match=r"edited.png: its samples go up to .* with the same number of"):
            read_labels(edited, like=original, **given)
    # what no program scaled is as it is, and 0 is 0
    original = write("original.png", labels, first)
    for values in (labels.T.reshape(8, 12), labels * 0):
        assert np.array_equal(read_labels(write("edited.png", values, second), like=original), values)


def test_labels_that_were_rounded_to_fewer_bits_are_refused(tmp_path, labels):
    for name, values, bits in (("original", labels * 300, 16), ("edited", labels * 300 // 256, 8)):
        (tmp_path / f"{name}.png").write_bytes(png(values, bits, GREY))
    with pytest.raises(InputError, match=r"edited.png: its samples go up to 255"):
        read_labels(tmp_path / "edited.png", like=tmp_path / "original.png")


def test_grey_maps_of_16_bits_may_have_an_alpha_channel(tmp_path, labels):
    both = np.dstack([labels * 700, np.full_like(labels, 65535)])
    (tmp_path / "map.png").write_bytes(png(both, 16, GREY_ALPHA))
    assert np.array_equal(read_labels(tmp_path / "map.png"), labels * 700)
    both[1, 2, 1] = 0
    (tmp_path / "map.png").write_bytes(png(both, 16, GREY_ALPHA))
    with pytest.raises(ColourError, match="transparent at row 1, column 2"):
        read_labels(tmp_path / "map.png")


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
    indexed(labels % 255, COLOURS).save(tmp_path / "original.png")  # which has no entry 255
    for colours in (many, [*COLOURS, *[(0, 0, 0)] * 250]):
        indexed(labels, colours).save(tmp_path / "indexed.png")
        found = read_labels(tmp_path / "indexed.png", like=tmp_path / "original.png", unknown_label=4)
        assert np.array_equal(found, expected)
    for given in ({"palette": COLOURS}, {"like": tmp_path / "original.png"}):
        with pytest.raises(ColourError, match=r"index 255, 'unknown': map it with .*--unknown-label"):
            read_labels(tmp_path / "indexed.png", **given)


def test_a_photo_is_refused_at_once(tmp_path):
    """It has as many colours as pixels, none of which is looked for alone."""
    pixels = np.random.default_rng(3).integers(0, 256, (1000, 1000, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.bmp")
    begun = time.process_time()
    with pytest.raises(ColourError, match=r"photo.bmp: the colour .* at row 0, column 0"):
        read_labels(tmp_path / "photo.bmp", COLOURS)
    assert time.process_time() - begun < 4  # one by one, it took 9 s


def test_a_frame_takes_the_nearest_label(tmp_path, labels, original):
    found = read_labels(original, frame=Frame((8, 12), (6, 8), (3, 4)))
    assert np.array_equal(found, labels[1:7, 2:10][1::2, 1::2])
    larger = read_labels(original, frame=Frame((8, 12), (8, 12), (16, 36)))
    assert np.array_equal(larger, labels.repeat(2, 0).repeat(3, 1))
