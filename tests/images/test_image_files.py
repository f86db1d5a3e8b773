"""Image files of every kind: one reader decodes them, upright, or says in one line what is wrong with which file."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from sparsegen import InputError, ShapeError
from sparsegen.images import Frame, read_file, read_image, read_labels, read_mask
from tests.images.image_files import GREY, GREY_ALPHA, RGB, chunk, empty_png, indexed, png, turned

READERS = [read_image, read_labels, read_mask]


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (8, 12, 3)).astype(np.uint8)


# -- what is read ----------------------------------------------------------------------------------------


def test_pictures_of_every_kind_become_rgb(tmp_path, colours):
    grey = colours[..., 0]
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    (tmp_path / "deep-rgb.png").write_bytes(png(colours.astype(np.uint16) * 257, 16, RGB))
    both = np.dstack([grey, np.full_like(grey, 255)]).astype(np.uint16) * 257
    (tmp_path / "deep-alpha.png").write_bytes(png(both, 16, GREY_ALPHA))
    Image.fromarray(np.dstack([colours, np.full((8, 12), 255, np.uint8)])).save(tmp_path / "opaque.png")
    for name in ("rgb", "opaque", "deep-rgb"):
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), colours), name
    for name in ("grey", "deep", "deep-alpha"):
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), np.repeat(grey[..., None], 3, -1)), name
        assert np.array_equal(read_image(tmp_path / f"{name}.png", channels=1), grey[..., None])
    (tmp_path / "four.png").write_bytes(png(grey // 17, 4, GREY))
    assert np.array_equal(read_image(tmp_path / "four.png", channels=1)[..., 0], grey // 17 * 17)
    Image.fromarray(grey > 99).save(tmp_path / "one.png")
    assert np.array_equal(read_image(tmp_path / "one.png", channels=1)[..., 0], (grey > 99) * 255)
    table = colours.reshape(-1, 3)
    indexed(np.arange(96).reshape(8, 12), table).save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), colours)


def test_cmyk_becomes_rgb(tmp_path, colours):
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "print.tif")
    assert np.array_equal(read_image(tmp_path / "print.tif"), colours)


@pytest.mark.parametrize("reader", READERS)
def test_colours_that_are_not_known_are_refused(tmp_path, colours, reader):
    lab = ImageCms.profileToProfile(
        Image.fromarray(colours),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    lab.save(tmp_path / "lab.tif")
    with pytest.raises(InputError, match=r"lab.tif: a LAB image"):
        reader(tmp_path / "lab.tif")
    Image.fromarray(colours[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match=r"float.tif: a F image"):
        reader(tmp_path / "float.tif")


def test_a_transparent_picture_shows_what_lies_below(tmp_path, colours):
    below = np.full_like(colours, 7)
    clear = colours.copy()
    clear[2, 3] = 7
    alpha = np.full((8, 12), 255, np.uint8)
    alpha[2, 3] = 0
    Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / "rgba.png")
    key = colours[2, 3].tolist()
    (tmp_path / "key.png").write_bytes(png(colours, 8, RGB, transparent=key))
    deep = colours.astype(np.uint16) * 257
    (tmp_path / "deep.png").write_bytes(png(deep, 16, RGB, transparent=[part * 257 for part in key]))
    indexed(np.arange(96).reshape(8, 12), colours.reshape(-1, 3)).save(
        tmp_path / "entry.png", transparency=2 * 12 + 3
    )
    entries = bytearray([255] * 96)
    entries[2 * 12 + 3], entries[-1] = 0, 254
    indexed(np.arange(96).reshape(8, 12), colours.reshape(-1, 3)).save(
        tmp_path / "entries.png", transparency=bytes(entries)
    )
    for name in ("rgba", "key", "deep", "entry", "entries"):
        found = read_image(tmp_path / f"{name}.png", below=below)
        assert np.array_equal(found.reshape(-1, 3)[:-1], clear.reshape(-1, 3)[:-1]), name
        with pytest.raises(InputError, match=f"{name}.png: has transparent pixels"):
            read_image(tmp_path / f"{name}.png")
    grey = colours[..., 0].astype(np.uint16) * 257
    (tmp_path / "grey.png").write_bytes(png(grey, 16, GREY, transparent=[int(grey[2, 3])]))
    found = read_image(tmp_path / "grey.png", channels=1, below=below[..., :1])[..., 0]
    assert np.array_equal(found, np.where(grey == grey[2, 3], 7, colours[..., 0]))


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_pictures_are_upright(tmp_path, colours, orientation, turns, suffix):
    path = tmp_path / f"turned.{suffix}"
    image = Image.fromarray(colours)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(read_image(path), np.rot90(colours, turns))
    assert read_file(path).size == np.rot90(colours, turns).shape[:2]


def test_a_photo_with_a_second_picture_is_its_first(tmp_path, colours):
    """Phones append a preview or a depth map to a JPEG."""
    Image.fromarray(colours).save(tmp_path / "one.jpg", quality=95)
    first, second = Image.fromarray(colours), Image.fromarray(colours[::-1])
    first.save(tmp_path / "two.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert np.array_equal(read_image(tmp_path / "two.jpg"), read_image(tmp_path / "one.jpg"))
    assert read_file(tmp_path / "two.jpg").lossy == "JPEG"


def test_loss_is_told_by_content(tmp_path, colours):
    image = Image.fromarray(colours)
    for kind, options, lossy in (
        ("PNG", {}, ""),
        ("WEBP", {"lossless": True}, ""),
        ("WEBP", {}, "lossy WebP"),
        ("JPEG", {}, "JPEG"),
        ("TIFF", {"compression": "tiff_lzw"}, ""),
        ("TIFF", {"compression": "jpeg"}, "TIFF with lossy compression"),
        ("GIF", {}, ""),
        ("BMP", {}, ""),
    ):
        image.save(tmp_path / "named.png", kind, **options)
        assert read_file(tmp_path / "named.png").lossy == lossy, kind


def test_every_bit_of_16_counts_where_a_colour_is_transparent(tmp_path, colours):
    """Pillow decodes the upper 8: a colour that differs in the lower ones is opaque."""
    deep = np.full((8, 12, 3), 0x0105, np.uint16)
    deep[0, 1] = 0x0100
    (tmp_path / "key.png").write_bytes(png(deep, 16, RGB, transparent=[0x0100] * 3))
    found = read_image(tmp_path / "key.png", below=np.full_like(colours, 200))
    assert (found[0, 1] == 200).all() and np.count_nonzero(found == 1) == 95 * 3


def test_greys_of_16_bits_of_any_format(tmp_path):
    ramp = np.linspace(0, 65535, 96).astype(np.uint16).reshape(8, 12)
    for kind, options in (("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("JPEG2000", {})):
        try:
            Image.fromarray(ramp).save(tmp_path / "deep", kind, **options)
        except (OSError, KeyError):
            continue  # this Pillow does not write it
        file = read_file(tmp_path / "deep")
        assert file.levels == 65535 and np.array_equal(file.samples(), ramp), kind
        assert np.array_equal(file.rgb()[..., 0], ramp.astype(int) * 255 // 65535), kind


def test_rare_modes_hold_what_common_ones_do(tmp_path, colours):
    """TIFF has grey with premultiplied alpha, indexed colours with an alpha channel, RGB with a channel of padding."""
    grey, alpha = colours[..., 0] // 2, np.full((8, 12), 255, np.uint8)
    grey[2, 3:5], alpha[2, 3:5] = (64, 0), (128, 0)
    Image.fromarray(np.dstack([grey, alpha])).save(tmp_path / "rare.tif")
    plain, tag = (tmp_path / "rare.tif").read_bytes(), struct.pack("<HHI", 338, 3, 1)
    assert plain.count(tag + b"\2") == 1  # the alpha channel is as it is; 1: it is multiplied in
    (tmp_path / "rare.tif").write_bytes(plain.replace(tag + b"\2", tag + b"\1"))
    if any(mode == "La" for mode, _ in TiffImagePlugin.OPEN_INFO.values()):  # older Pillows do not read it
        file = read_file(tmp_path / "rare.tif")
        grey[2, 3] = 64 * 255 // 128
        assert np.array_equal(file.alpha(), alpha) and np.array_equal(file.samples(), grey)
    few = indexed(colours[..., 0] // 64, [(9, 8, 7), (80, 2, 1), (0, 9, 200), (250, 251, 252)])
    few.convert("PA").save(tmp_path / "rare.tif")
    assert np.array_equal(read_image(tmp_path / "rare.tif"), np.asarray(few.convert("RGB")))
    Image.fromarray(colours).convert("RGBX").save(tmp_path / "rare.tif")
    assert np.array_equal(read_image(tmp_path / "rare.tif"), colours)


def test_a_thumbnail_beside_a_picture_is_no_second_one(tmp_path, colours):
    """Scanners and cameras put a reduced page before or after it into a TIFF."""
    image, small = Image.fromarray(colours), Image.fromarray(colours[::2, ::2])
    for pages in ([image, small], [small, image], [small, image, small]):
        with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "scan.tif"), True) as file:
            for page in pages:
                tags = TiffImagePlugin.ImageFileDirectory_v2()
                tags[254] = int(page is small)
                page.save(file, "TIFF", tiffinfo=tags)
                file.newFrame()
        assert np.array_equal(read_image(tmp_path / "scan.tif"), colours)


def moving_webp(path: Path, image: Image.Image, **options: object) -> None:
    """An animation of one frame."""
    image.save(path, "WEBP", **options)
    still = path.read_bytes()

    def part(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    sides = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
    frame = part(b"ANMF", bytes(6) + sides + bytes([100, 0, 0, 0]) + still[12:])
    body = b"WEBP" + part(b"VP8X", bytes([2, 0, 0, 0]) + sides) + part(b"ANIM", bytes(6)) + frame
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def test_an_animation_of_one_frame_is_lossy_as_its_frame_is(tmp_path, colours):
    moving_webp(tmp_path / "one.webp", Image.fromarray(colours), lossless=True)
    assert read_file(tmp_path / "one.webp").lossy == ""
    assert np.array_equal(read_image(tmp_path / "one.webp"), colours)
    moving_webp(tmp_path / "one.webp", Image.fromarray(colours))
    assert read_file(tmp_path / "one.webp").lossy == "lossy WebP"


def test_a_file_that_was_read_is_not_read_again(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "image.png")
    Image.fromarray(colours[..., 0]).save(tmp_path / "grey.png")
    picture, grey = read_file(tmp_path / "image.png"), read_file(tmp_path / "grey.png")
    for path in tmp_path.iterdir():
        path.unlink()
    assert np.array_equal(read_image(picture), colours)
    assert np.array_equal(read_labels(grey, like=grey), colours[..., 0])
    assert np.array_equal(read_mask(grey), colours[..., 0] >= 128)


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("reader", READERS)
def test_files_of_several_pictures_are_refused(tmp_path, colours, kind, reader):
    frames = [Image.fromarray(np.roll(colours, i, 0)) for i in range(3)]
    frames[0].save(tmp_path / "moving.png", kind, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"moving.png: holds 3 images"):
        reader(tmp_path / "moving.png")


def damaged(picture: bytes) -> dict[str, bytes]:
    ghost = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n"
    return {
        "nothing": b"",
        "text": b"not an image",
        "a beginning": picture[:20],
        "half of it": picture[: len(picture) // 2],
        "all but the end": picture[:-40],
        "another check sum": picture[:60] + bytes([picture[60] ^ 255]) + picture[61:],
        "no size": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)),
        "a program": ghost,
    }


@pytest.mark.parametrize("damage", damaged(bytes(99)))
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_one_error_that_names_them(tmp_path, colours, reader, damage):
    Image.fromarray(colours).save(tmp_path / "whole.png")
    (tmp_path / "file.png").write_bytes(damaged((tmp_path / "whole.png").read_bytes())[damage])
    with pytest.raises(InputError, match=r"file.png: ") as caught:
        reader(tmp_path / "file.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX", "QOI", "JPEG2000"]
)
def test_every_byte_of_a_file_may_be_wrong(tmp_path, colours, kind):
    """Cut anywhere and changed anywhere, a file is read or refused; a decoder's own errors stay inside."""
    try:
        Image.fromarray(colours).save(tmp_path / "whole", kind)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow does not write {kind}")
    whole = (tmp_path / "whole").read_bytes()
    rng = np.random.default_rng(3)
    refused = 0
    for step in itertools.chain(range(0, len(whole), max(1, len(whole) // 40)), [None] * 60):
        data = bytearray(whole[:step])
        if step is None:
            for place in rng.integers(0, min(len(data), 200), 3):
                data[place] = rng.integers(256)
        (tmp_path / "file").write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                read_image(tmp_path / "file", below=None)
        except InputError as error:
            assert str(tmp_path / "file") in str(error)
            refused += 1
    assert refused > 20


def test_metadata_beyond_the_limit_are_named(tmp_path, colours):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 1_500_000, zip=True)
    for options in ({"icc_profile": bytes(1_500_000)}, {"pnginfo": text}):
        Image.fromarray(colours).save(tmp_path / "image.png", **options)
        with pytest.raises(InputError, match=r"image.png: holds a colour profile or texts .* metadata"):
            read_image(tmp_path / "image.png")


def test_a_deep_sgi_file_is_refused(tmp_path, colours):
    Image.fromarray(colours[..., 0]).save(tmp_path / "map.sgi", bpc=2)
    with pytest.raises(InputError, match=r"map.sgi: an SGI file of 16 bits"):
        read_labels(tmp_path / "map.sgi")


def test_what_is_no_file(tmp_path):
    for reader in READERS:
        with pytest.raises(InputError, match=r"nowhere.png: no such file"):
            reader(tmp_path / "nowhere.png")
        with pytest.raises(InputError, match="cannot be read"):
            reader(tmp_path)
    with pytest.raises(InputError, match=r"nowhere.png: no such file"):
        read_image(str(tmp_path / "nowhere.png"))


def test_sizes_are_limited_without_a_word_from_pillow(tmp_path, colours, monkeypatch):
    Image.fromarray(colours).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 95)  # of 96: Pillow warns, which is an error here
    assert np.array_equal(read_image(tmp_path / "image.png"), colours)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 47)
    for reader in READERS:
        with pytest.raises(
            InputError, match=r"image.png: has more than 94 pixels, the largest .* scale it down"
        ):
            reader(tmp_path / "image.png")
    monkeypatch.undo()
    (tmp_path / "large.png").write_bytes(empty_png(14000, 14000))
    with pytest.raises(InputError, match=r"large.png: has more than 178,956,970 pixels"):
        read_file(tmp_path / "large.png")


def test_what_pillow_warns_of_is_its_own_warning(tmp_path, colours):
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12"
    Image.fromarray(colours).save(tmp_path / "photo.jpg", exif=broken)
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        assert read_image(tmp_path / "photo.jpg").shape == colours.shape
    with pytest.raises(InputError, match=r"photo.jpg: .*Corrupt EXIF data"):  # where warnings are errors
        read_image(tmp_path / "photo.jpg")


def test_threads_that_read_leave_the_warnings_of_others_alone(tmp_path, colours):
    """A warning of another thread obeys the filters of the process, whatever is read meanwhile."""
    Image.fromarray(np.tile(colours, (40, 40, 1))).save(tmp_path / "image.png")
    reading, stop = threading.Event(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            read_image(tmp_path / "image.png")
            reading.set()

    before = list(warnings.filters), warnings.showwarning
    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert reading.wait(60)
        for i in range(200):
            time.sleep(0.001)
            with pytest.raises(UserWarning, match=f"mine {i}"):
                warnings.warn(f"mine {i}", UserWarning, stacklevel=1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert (list(warnings.filters), warnings.showwarning) == before


FORKING = """
import os, signal, sys, threading
from sparsegen.images import read_image
read_image(sys.argv[1])
def loop():
    while True:
        read_image(sys.argv[1])
threading.Thread(target=loop, daemon=True).start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        read_image(sys.argv[1])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "a child hangs"
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_of_a_process_that_reads_can_read(tmp_path, colours):
    Image.fromarray(np.tile(colours, (40, 40, 1))).save(tmp_path / "image.png")
    words = [sys.executable, "-W", "ignore", "-c", FORKING, str(tmp_path / "image.png")]
    subprocess.run(words, check=True, timeout=300)


# -- frames ----------------------------------------------------------------------------------------------


def test_a_frame_crops_the_middle_and_resizes_smoothly(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "image.png")
    cropped = read_image(tmp_path / "image.png", frame=Frame((8, 12), (4, 6), (4, 6)))
    assert np.array_equal(cropped, colours[2:6, 3:9])
    flat = np.full((8, 12, 3), (10, 200, 77), np.uint8)
    Image.fromarray(flat).save(tmp_path / "flat.png")
    found = read_image(tmp_path / "flat.png", frame=Frame((8, 12), (8, 8), (32, 16)))
    assert found.shape == (32, 16, 3) and (found == (10, 200, 77)).all()
    # halved: each pixel lies near the mean of its four, not at one of them
    smooth = np.linspace(0, 255, 96, dtype=np.uint8).reshape(8, 12).repeat(3).reshape(8, 12, 3)
    Image.fromarray(smooth).save(tmp_path / "smooth.png")
    half = read_image(tmp_path / "smooth.png", frame=Frame((8, 12), (8, 12), (4, 6)))
    means = smooth.reshape(4, 2, 6, 2, 3).mean((1, 3))
    assert np.abs(half[1:-1, 1:-1] - means[1:-1, 1:-1]).max() < 4


def test_a_file_of_the_wanted_size_is_taken_as_it_is(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "image.png")
    assert np.array_equal(
        read_image(tmp_path / "image.png", frame=Frame((80, 99), (80, 90), (8, 12))), colours
    )
    with pytest.raises(ShapeError, match=r"image.png: 8×12, expected 80×99 \(height × width\) like lake.png"):
        read_image(tmp_path / "image.png", frame=Frame((80, 99), (80, 99), (9, 12), "lake.png"))


def test_a_crop_may_be_resized_to_the_size_of_its_file(tmp_path, colours):
    """A zoom: the file has the wanted size, but not yet what is wanted."""
    frame = Frame((8, 12), (4, 6), (8, 12))
    Image.fromarray(colours).save(tmp_path / "image.png")
    Image.fromarray(colours[..., 0]).save(tmp_path / "map.png")
    labels = read_labels(tmp_path / "map.png", frame=frame)
    assert np.array_equal(labels, colours[2:6, 3:9, 0].repeat(2, 0).repeat(2, 1))
    middle = Image.fromarray(colours[2:6, 3:9]).resize((12, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(read_image(tmp_path / "image.png", frame=frame), np.asarray(middle))


def test_a_transparent_layer_is_resized_before_it_lies_over_what_is_below(tmp_path, colours):
    layer = np.zeros((8, 12, 4), np.uint8)
    layer[:, :6] = (250, 5, 20, 255)
    Image.fromarray(layer).save(tmp_path / "layer.png")
    below = np.full((16, 24, 3), 99, np.uint8)
    found = read_image(tmp_path / "layer.png", below=below, frame=Frame((8, 12), (8, 12), (16, 24)))
    # the filter reaches three pixels of the file beyond the border
    assert (found[:, :6] == (250, 5, 20)).all() and (found[:, 18:] == 99).all()


def test_a_frame_larger_than_its_files_is_refused():
    with pytest.raises(InputError, match=r"a crop of 9×9 is larger than the original, 8×12"):
        Frame((8, 12), (9, 9), (9, 9))
    with pytest.raises(InputError, match="1 or more"):
        Frame((8, 12), (8, 12), (0, 9))


def test_turned_files_fit_a_frame_upright(tmp_path, colours):
    turned(Image.fromarray(colours), 6, tmp_path / "turned.png")
    found = read_image(tmp_path / "turned.png", frame=Frame((12, 8), (6, 4), (6, 4)))
    assert np.array_equal(found, np.rot90(colours, -1)[3:9, 2:6])
