"""Images as people have them: PNG, JPEG and TIFF of 8 or 16 bits, grey or colour, one page or many."""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageOps
from tifffile import COMPRESSION, PHOTOMETRIC

from panolib.data.errors import DataError
from panolib.data.images import decode

_TIFF = (".tif", ".tiff")
_OWN_CODECS = (COMPRESSION.NONE, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE)  # of tifffile alone
_PLAIN = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB)
SUFFIXES = (".png", ".jpg", ".jpeg", *_TIFF)  # in any case


def count_pages(path: Path) -> int:
    """Images in a file: the pages of a TIFF without its previews, else 1. Raises DataError for no TIFF."""
    if path.suffix.lower() not in _TIFF:
        return 1
    with _opened(path) as file:
        return len(_full_pages(file))


def read_page(path: Path, page: int = 0) -> np.ndarray:
    """One image of a file, in colour.

    Parameters
    ----------
    path : Path
        Ends in one of `SUFFIXES`.
    page : int
        Of a TIFF: 0 .. `count_pages` - 1.

    Returns
    -------
    uint8 or uint16 array [H, W, 3]
        RGB. Grey is repeated, alpha dropped; a photograph stands as its EXIF entry says.

    Raises
    ------
    DataError, OSError
        Naming the file, for one that is damaged, cut short or of another format, and for numbers that are
        not 8 or 16 bits.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected an image")
    suffix = path.suffix.lower()
    if suffix in _TIFF:
        return as_colour(_tiff_page(path, page), str(path))
    if suffix == ".png":
        pixels = decode(path)
        return as_colour(pixels[..., 2::-1] if pixels.ndim == 3 else pixels, str(path))
    try:
        with Image.open(path, formats=["JPEG"]) as file:
            return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: no readable image: {error}; expected a whole JPEG") from error


def as_colour(pixels: np.ndarray, where: str) -> np.ndarray:
    """uint8 or uint16 [H, W, 3] of an image [H, W] or [H, W, 1, 3 or 4]; of bool, too.

    Raises DataError that begins with `where` for other shapes and types, and for an image without pixels.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{where}: image of {pixels.dtype}, expected uint8 or uint16")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or pixels.size == 0:
        raise DataError(
            f"{where}: image of shape {list(pixels.shape)}, expected [H, W], or [H, W, 3 or 4]"
        )
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def to_eight_bits(image: np.ndarray) -> np.ndarray:
    """uint8 of uint8 or uint16; the whole range of 16 bits becomes that of 8."""
    return image if image.dtype == np.uint8 else np.rint(image / 257).astype(np.uint8)


def _tiff_page(path: Path, page: int) -> np.ndarray:
    """Pixels of one page, [H, W] or [H, W, channels]."""
    with _opened(path) as file:
        pages = _full_pages(file)
        if not 0 <= page < len(pages):
            raise DataError(f"{path}: page {page}, expected 0 .. {len(pages) - 1}")
        found = pages[page]
        if found.compression not in _OWN_CODECS or found.photometric not in _PLAIN:
            return _by_opencv(path, found.index)  # tifffile needs another package for LZW and others
        pixels = found.asarray()
        if found.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        is_inverted = found.photometric == PHOTOMETRIC.MINISWHITE and pixels.dtype.kind in "bu"
        return ~pixels if is_inverted else pixels


def _by_opencv(path: Path, index: int) -> np.ndarray:
    """Pixels of one page in order R, G, B, as OpenCV decodes them."""
    _, pages = cv2.imreadmulti(str(path), index, 1, flags=cv2.IMREAD_UNCHANGED)
    if not pages:
        raise DataError(f"{path}: page {index} cannot be decoded, expected a whole TIFF")
    return pages[0][..., 2::-1] if pages[0].ndim == 3 else pages[0]


def _full_pages(file: tifffile.TiffFile) -> list:
    """The pages of a TIFF that are no previews or masks of others."""
    return [page for page in file.pages if not (page.keyframe.is_reduced or page.keyframe.is_mask)]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """A TIFF; whatever is wrong with it, also what tifffile only logs, is one DataError."""
    faults = []

    def note(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:  # a stack that is cut short would just have fewer pages
            faults.append(record.getMessage())
        return False

    logger, expected = logging.getLogger("tifffile"), "expected a whole TIFF"
    logger.addFilter(note)
    try:
        with tifffile.TiffFile(path) as file:
            yield file
            n_pages = len(file.pages)
    except DataError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, zlib.error) as error:
        raise DataError(f"{path}: no readable image: {error}; {expected}") from error
    finally:
        logger.removeFilter(note)
    if faults or not n_pages:
        raise DataError(f"{path}: no readable image: {(faults or ['no page'])[0]}; {expected}")
