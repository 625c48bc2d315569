"""Images as people have them: every kind gives the same pixels, and what is broken is one clear error."""

from __future__ import annotations

import errno
import tracemalloc

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from panolib.data import images
from panolib.data.any_image import Page, is_streamed, n_pages, n_pixels, read_page
from panolib.data.errors import DataError
from panolib.data.images import read_indices, stretch_intensity, write_png
from panolib.data.intensity import as_colour, grey_of_one_colour, to_eight_bits
from panolib.data.readers import Folders

RNG = np.random.default_rng(0)
GREY, COLOUR = (RNG.integers(0, 256, shape, np.uint8) for shape in ((20, 30), (20, 30, 3)))
WIDE, WIDE_COLOUR = (RNG.integers(0, 65536, shape, np.uint16) for shape in ((20, 30), (20, 30, 3)))
ALPHA = RNG.integers(1, 256, (20, 30, 1), np.uint8)
PALETTE = Image.fromarray(COLOUR).convert("P")
RGB = {"photometric": "rgb"}


def repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def png(pixels: np.ndarray):
    return lambda path: Image.fromarray(pixels).save(path)


def tif(pixels: np.ndarray, **options):
    return lambda path: tifffile.imwrite(path, pixels, **options)


def with_preview(path):
    with tifffile.TiffWriter(path) as file:
        file.write(GREY, photometric="minisblack")
        file.write(GREY[::2, ::2], photometric="minisblack", subfiletype=1)


def two_sizes(path):
    with tifffile.TiffWriter(path) as file:
        file.write(GREY, photometric="minisblack")
        file.write(WIDE[:9], photometric="minisblack")


KINDS = {  # name of the file -> how it is written, the images in it
    "grey.png": (png(GREY), [repeated(GREY)]),
    "grey16.png": (lambda path: write_png(path, WIDE), [repeated(WIDE)]),
    "colour.PNG": (png(COLOUR), [COLOUR]),
    "colour16.png": (lambda path: write_png(path, WIDE_COLOUR), [WIDE_COLOUR]),
    "alpha.png": (png(np.concatenate([COLOUR, ALPHA], 2)), [COLOUR]),
    "grey_alpha.png": (png(np.concatenate([GREY[..., None], ALPHA], 2)), [repeated(GREY)]),
    "palette.png": (PALETTE.save, [np.asarray(PALETTE.convert("RGB"))]),
    "grey.tif": (tif(GREY), [repeated(GREY)]),
    "grey16.tiff": (tif(WIDE, compression="zlib"), [repeated(WIDE)]),
    "colour16.tif": (tif(WIDE_COLOUR, **RGB), [WIDE_COLOUR]),
    "alpha.tif": (tif(np.concatenate([COLOUR, ALPHA], 2), extrasamples=["unassalpha"], **RGB), [COLOUR]),
    "planes.tif": (tif(COLOUR.transpose(2, 0, 1), planarconfig="separate", **RGB), [COLOUR]),
    "white_is_zero.tif": (tif(255 - GREY, photometric="miniswhite"), [repeated(GREY)]),
    "one_bit.tif": (tif(GREY > 99, photometric="minisblack"), [repeated((GREY > 99) * np.uint8(255))]),
    "stack.tif": (tif(np.stack([WIDE, 65535 - WIDE]), photometric="minisblack"),
                  [repeated(WIDE), repeated(65535 - WIDE)]),
    "imagej.tif": (tif(np.stack([WIDE, WIDE // 2, WIDE // 3]), imagej=True),
                   [repeated(WIDE // n) for n in (1, 2, 3)]),
    "one_page_for_all.tif": (tif(np.stack([WIDE, WIDE // 2]), imagej=True, truncate=True),
                             [repeated(WIDE), repeated(WIDE // 2)]),
    "deflated_planes.tif": (tif(np.stack([WIDE, WIDE // 2, WIDE // 3]), photometric="rgb", metadata=None,
                                planarconfig="separate", compression="zlib",
                                description="ImageJ=1.53t\nimages=3\nchannels=3\n"),
                            [repeated(WIDE // n) for n in (1, 2, 3)]),
    "grey_alpha.tif": (tif(np.concatenate([GREY[..., None], ALPHA], 2), photometric="minisblack",
                           planarconfig="contig", extrasamples=["unassalpha"]), [repeated(GREY)]),
    "with_preview.tif": (with_preview, [repeated(GREY)]),
    "two_sizes.tif": (two_sizes, [repeated(GREY), repeated(WIDE[:9])]),
    "lzw.tif": (lambda path: Image.fromarray(COLOUR).save(path, compression="tiff_lzw"), [COLOUR]),
    "lzw16.tif": (lambda path: cv2.imwrite(str(path), WIDE), [repeated(WIDE)]),
    "palette.tif": (PALETTE.save, [np.asarray(PALETTE.convert("RGB"))]),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_its_pixels(name, tmp_path):
    write, expected = KINDS[name]
    write(tmp_path / name)
    assert n_pages(tmp_path / name) == len(expected)
    for page, image in enumerate(expected):
        found = as_colour(read_page(tmp_path / name, page), name)
        assert found.dtype == image.dtype and np.array_equal(found, image)


def test_a_photograph_stands_upright(tmp_path):
    corner = np.pad(np.full((20, 20, 3), 250, np.uint8), ((0, 20), (0, 60), (0, 0)))
    smooth = cv2.GaussianBlur(corner, (0, 0), 2)
    exif = Image.Exif()
    exif[0x0112] = 6  # of a camera that is turned: rows of the file are columns
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95, exif=exif)
    found = read_page(tmp_path / "a.jpg")
    assert found.shape == (80, 40, 3)
    assert np.abs(found.astype(int) - np.rot90(smooth, -1)).mean() < 2


@pytest.mark.parametrize("name", KINDS)
def test_arrays_on_disk_hold_the_same_pixels(name, tmp_path, monkeypatch):
    KINDS[name][0](tmp_path / name)
    pages = range(n_pages(tmp_path / name))
    in_memory = [read_page(tmp_path / name, number) for number in pages]
    monkeypatch.setattr(images, "ON_DISK", 1)
    with images.large_arrays_in(tmp_path):
        on_disk = [read_page(tmp_path / name, number) for number in pages]
    for before, found in zip(in_memory, on_disk, strict=True):
        assert type(found) is np.ndarray and found.dtype == before.dtype and np.array_equal(found, before)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_of_a_stack_that_one_page_describes_the_wanted_frame_alone_is_read(tmp_path):
    stack = np.arange(40 * 128 * 128, dtype=np.uint16).reshape(40, 128, 128)
    tif(stack, imagej=True, truncate=True)(tmp_path / "a.tif")
    assert n_pages(tmp_path / "a.tif") == 40 and is_streamed(tmp_path / "a.tif", 7)
    tracemalloc.start()
    found = read_page(tmp_path / "a.tif", 7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, stack[7]) and found.dtype == np.dtype(np.uint16) and found.flags.writeable
    assert peak < stack.nbytes / 4


def test_a_full_disk_is_one_error_that_names_the_folder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(images.os, "posix_fallocate", full, raising=False)
    with images.large_arrays_in(tmp_path), pytest.raises(OSError, match=f"No space.*{tmp_path}"):
        images.empty((images.ON_DISK,), np.uint8)


@pytest.mark.parametrize(
    ("options", "streamed"),
    [
        ({}, True), ({"compression": "zlib", "rowsperstrip": 1}, True), ({"compression": "zlib"}, False),
        ({"compression": "zlib", "tile": (16, 16)}, False),  # four of them
        ({"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, False),
    ],
)  # fmt: skip
def test_a_file_is_streamed_where_it_is_decoded_part_by_part(options, streamed, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, **options)
    assert is_streamed(tmp_path / "a.tif") is streamed


def glowing(dtype=np.uint8, offset=0) -> np.ndarray:
    """[64, 80] bright discs on a dark ground with noise, as a camera behind a filter sees them."""
    rows, columns = np.mgrid[:64, :80]
    discs = (rows % 20 - 10) ** 2 + (columns % 20 - 10) ** 2 < 36
    full = np.iinfo(dtype).max
    return (offset + full * (0.6 * discs + 0.1 * RNG.random(discs.shape))).astype(dtype)


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize(("dtype", "offset"), [(np.uint8, 0), (np.uint8, 30), (np.uint16, 4000)])
def test_an_image_of_one_colour_is_grey(channel, dtype, offset, tmp_path):
    grey = glowing(dtype, offset)
    colour = np.full((*grey.shape, 3), offset, dtype) + (RNG.random((*grey.shape, 3)) < 0.5).astype(dtype)
    colour[..., channel] = grey
    write_png(tmp_path / "a.png", colour)
    assert read_page(tmp_path / "a.png").shape == colour.shape  # the file stays what it is
    assert np.array_equal(Page(tmp_path / "a.png").read(), grey)
    assert np.array_equal(as_colour(colour, "a"), repeated(grey))
    assert np.array_equal(Folders(tmp_path, with_labels=False)[0].image, stretch_intensity(grey))


def test_an_image_of_one_colour_is_grey_after_jpeg(tmp_path):
    colour = np.zeros((64, 80, 3), np.uint8)
    colour[..., 1] = cv2.GaussianBlur(glowing(), (0, 0), 2)  # JPEG halves the resolution of colours
    Image.fromarray(colour).save(tmp_path / "a.jpg", quality=90)
    assert read_page(tmp_path / "a.jpg")[..., 0].max() > 0
    found = Page(tmp_path / "a.jpg").read()
    assert found.ndim == 2 and np.abs(found.astype(int) - colour[..., 1]).mean() < 5


def test_images_of_more_colours_stay():
    grey, dark = glowing(), np.zeros((64, 80), np.uint8)
    night = [grey, grey // 3, grey // 8]  # lamps: red, yet not of one colour
    for channels in (night, [dark, grey, np.roll(grey, 9, 0)], [grey, grey, dark], [grey] * 3, [dark] * 3):
        image = np.stack(channels, -1)
        assert grey_of_one_colour(image) is image
    few = np.stack([dark, dark, dark], -1)
    few[5, 5] = 0, 255, 0  # one green pixel is no stain
    assert grey_of_one_colour(few) is few


@pytest.mark.parametrize("name", ["palette.tif", "white_is_zero.tif", "one_bit.tif"])
def test_labels_are_the_numbers_of_the_file(name, tmp_path):
    KINDS[name][0](tmp_path / name)
    stored = {"palette.tif": np.asarray(PALETTE), "white_is_zero.tif": 255 - GREY, "one_bit.tif": GREY > 99}
    found = read_page(tmp_path / name, as_stored=True)
    assert found.dtype == stored[name].dtype and np.array_equal(found, stored[name])


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


BROKEN = {  # name -> how it is written, what is done to its bytes, words of the error
    "cut.png": (png(COLOUR), half, "cut short"),
    "flipped.png": (png(COLOUR), lambda b: b[:60] + bytes([b[60] ^ 1]) + b[61:], "checksum"),
    "cut.jpg": (png(COLOUR), lambda b: b[:-40], "[Tt]runcated"),
    "text.jpg": (png(COLOUR), lambda _: b"no image", "expected a whole JPEG"),
    "empty.tif": (tif(GREY), lambda _: b"", "not a TIFF"),
    "text.tif": (tif(GREY), lambda _: b"no image at all", "not a TIFF"),
    "no_page.tif": (tif(GREY), lambda _: b"II*\0\0\0\0\0", "no page"),
    "cut.tif": (tif(WIDE), half, "expected a whole TIFF"),
    "cut_stack.tif": (tif(np.stack([WIDE] * 4), photometric="minisblack"), half, "expected a whole TIFF"),
    "cut_zlib.tif": (tif(WIDE, compression="zlib"), half, "expected a whole TIFF"),
    "cut_lzw.tif": (lambda path: cv2.imwrite(str(path), WIDE), half, "expected a whole TIFF"),
    "float.tif": (tif(GREY.astype(np.float32)), bytes, "uint8 or uint16; save it as 16 bit"),
    "int16.tif": (tif(GREY.astype(np.int16)), bytes, "image of int16"),
    "int32.tif": (tif(GREY.astype(np.uint32)), bytes, "image of uint32"),
    "two_channels.tif": (tif(COLOUR[..., :2], photometric="minisblack", planarconfig="contig"), bytes,
                         "2 samples a pixel, expected grey or RGB"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name, tmp_path):
    write, damage, words = BROKEN[name]
    path = tmp_path / name
    write(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{name}: (?s:.*){words}"):
        [as_colour(Page(path, i).read(), Page(path, i)) for i in range(n_pages(path))]


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.png: no such file"):
        read_page(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    with pytest.raises(DataError, match=r"a\.tif: no readable image: list index out of range"):
        read_page(tmp_path / "a.tif", 1)


@pytest.mark.parametrize("shape", [(4,), (0, 4), (4, 4, 2), (4, 4, 5), (2, 4, 4, 3)])
def test_what_is_no_image(shape):
    with pytest.raises(DataError, match="image: image of shape"):
        as_colour(np.zeros(shape, np.uint8), "image")


def test_sixteen_bits_become_eight():
    assert to_eight_bits(np.array([0, 128, 129, 257, 65535], np.uint16)).tolist() == [0, 0, 1, 1, 255]
    assert to_eight_bits(GREY) is GREY
    dark = (GREY.astype(np.uint16) + 300) * 3  # a camera of 12 bits: 8 bits of the whole range would be black
    assert np.abs(stretch_intensity(dark).astype(int) - stretch_intensity(GREY)).max() <= 1
    assert stretch_intensity(np.full((4, 4), 999, np.uint16)).dtype == np.uint8


@pytest.mark.filterwarnings("error")
def test_pillow_reads_images_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # it refuses twice as many
    for name in ("a.jpg", "a.png", "a.tif"):
        path = tmp_path / name
        Image.fromarray(GREY).save(path)
        assert n_pixels(path) == GREY.size == read_page(path).size
    assert read_indices(tmp_path / "a.png").size == GREY.size
    assert Image.MAX_IMAGE_PIXELS == 100
    (tmp_path / "a.tif").write_bytes(b"no image")
    assert n_pixels(tmp_path / "a.tif") == 0
