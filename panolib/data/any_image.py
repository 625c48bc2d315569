"""Image files of any kind, page by page: PNG, JPEG and the like, TIFF, and what bioio reads of microscopes.

A page is one image of a file: a TIFF stack, a series over time and every channel of a microscope's file that
is no colour image have several.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import tifffile
from PIL import ImageOps
from tifffile import PHOTOMETRIC

from panolib.data.errors import DataError
from panolib.data.images import contiguous, decode, empty, look_up, opened, rgb_of_opencv
from panolib.data.intensity import grey_of_one_colour
from panolib.errors import one_line

PHOTOS = {".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
TIFFS = (".tif", ".tiff")
BIOIMAGES = (".czi", ".dv", ".lif", ".nd2", ".oib", ".oif", ".r3d", ".vsi")  # each needs its plug-in of bioio
IMAGES = (".png", *PHOTOS, *TIFFS, *BIOIMAGES)
_ALPHA = (1, 2)  # extra samples of a TIFF that are opacity
_DECODED = (1, 8, 32946)  # compressions of a TIFF that need no other package: none, deflate
N_PARTS = 16  # strips or tiles from which on one of them is little beside the image
_WHOLE_TIFF = "expected a whole TIFF file"

T = TypeVar("T")


@dataclass(frozen=True)
class Page:
    """One image of a file, numbered from 0; its text is for messages."""

    path: Path
    number: int = 0

    def __str__(self) -> str:
        return f"{self.path}" if self.number == 0 else f"{self.path}, page {self.number + 1}"

    def read(self, *, as_stored: bool = False) -> np.ndarray:
        """As of `read_page`; an image of one colour is grey (`grey_of_one_colour`), unless `as_stored`."""
        pixels = read_page(self.path, self.number, as_stored=as_stored)
        return pixels if as_stored else grey_of_one_colour(pixels)


def n_pages(path: Path) -> int:
    """Pages of a file, without the previews in it; no pixel is decoded. Errors as of `read_page`."""
    suffix = path.suffix.lower()
    if suffix in TIFFS:
        with _opened_tiff(path) as file:
            return _n_stacked(file) or len(_full_pages(file))
    if suffix in BIOIMAGES:
        return _of_bioimage(path, lambda image: _n_frames(image.shape, image.dims.order))
    return 1


def n_pixels(path: Path, number: int = 0) -> int:
    """Pixels of a page, of which none is decoded; 0 where only reading it tells, or that it is damaged."""
    suffix = path.suffix.lower()
    with contextlib.suppress(DataError, OSError, SyntaxError, ValueError):
        if suffix in TIFFS:
            with _opened_tiff(path) as file:
                page = file.pages.first if _n_stacked(file) else _full_pages(file)[number]
                return page.imagelength * page.imagewidth
        if suffix not in BIOIMAGES:
            with opened(path, PHOTOS.get(suffix, "PNG")) as file:
                return math.prod(file.size)
    return 0


def is_streamed(path: Path, number: int = 0) -> bool:
    """Whether reading a page decodes it part by part into its array; memory holds all of others."""
    with contextlib.suppress(DataError, OSError):
        if path.suffix.lower() in TIFFS:
            with _opened_tiff(path) as file:
                page = file.pages.first if _n_stacked(file) else _full_pages(file)[number]
                in_parts = page.compression in _DECODED and len(page.dataoffsets) >= N_PARTS
                return page.colormap is None and (page.is_contiguous or in_parts)
    return False


def read_page(path: Path, number: int = 0, *, as_stored: bool = False) -> np.ndarray:
    """One page, 0 .. `n_pages` - 1, of an image file, whose suffix says the format, in lower or upper case.

    `as_stored` gives the numbers of a TIFF as they are, for labels: indices instead of the colours of a
    palette, nothing inverted. (A PNG with a palette is read by `images.read_indices` instead.)

    Returns [H, W] or [H, W, 3], grey or RGB as in the file, 8 or 16 bits; labels also of other types. Alpha
    is dropped, a photograph stands as its EXIF entry says, one bit becomes 0 and 255, and black is 0. Raises
    DataError naming the file, for a suffix that is not of `IMAGES`, a damaged or cut file, another number of
    channels, and without bioio where it is needed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in IMAGES:
        raise DataError(f"{path}: found suffix {path.suffix!r}, expected one of {', '.join(IMAGES)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected an image")
    if suffix in TIFFS:
        return _tiff_page(path, number, as_stored)
    if suffix in BIOIMAGES:
        return _frames_of_bioimage(path, path.stat().st_mtime_ns)[number].copy()
    return _photo(path, PHOTOS[suffix]) if suffix in PHOTOS else rgb_of_opencv(decode(path))


def _photo(path: Path, kind: str) -> np.ndarray:
    """By Pillow, which notices where a file was cut; OpenCV fills the rest with grey."""
    try:
        with opened(path, kind) as file:
            ImageOps.exif_transpose(file, in_place=True)
            return np.array(file if file.mode in ("L", "RGB") else file.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: no readable image: {error}; expected a whole {kind}") from error


# --- TIFF -------------------------------------------------------------------------------------------------


def _tiff_page(path: Path, number: int, as_stored: bool) -> np.ndarray:
    with _opened_tiff(path) as file:
        if _n_stacked(file):
            stack = file.series[0]
            if stack.dataoffset is None:  # compressed or in tiles
                pixels = stack.asarray(out=empty(stack.shape, stack.dtype))
            else:  # one frame behind the other, perhaps more than memory holds
                pixels = tifffile.memmap(path, mode="r")
            frame = _frames(pixels, stack.axes, path)[number]
            np.copyto(found := empty(frame.shape, frame.dtype.newbyteorder("=")), frame)
            return found
        page = _full_pages(file)[number]
        try:
            pixels = page.asarray(out=None if page.dtype is None else empty(page.shape, page.dtype))
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _by_opencv(path, page.index)  # tifffile needs another package for LZW and others
        if not as_stored:
            pixels = _shown(page, pixels)
        has_alpha = tuple(page.extrasamples) in ((kind,) for kind in _ALPHA)
        if page.axes == "YXS" and pixels.shape[-1] == 2 and has_alpha:
            pixels = pixels[..., :1]
        (frame,) = _frames(pixels, page.axes, path) if page.colormap is None or as_stored else [pixels]
        return contiguous(frame)


def _shown(page: tifffile.TiffPage, pixels: np.ndarray) -> np.ndarray:
    """Intensities of the stored numbers: 0 is black, and palettes are looked up."""
    if page.photometric == PHOTOMETRIC.PALETTE and page.colormap is not None:
        return look_up((page.colormap.T >> 8).astype(np.uint8), pixels)  # 16 bits of which programs write 8
    if page.photometric == PHOTOMETRIC.MINISWHITE and pixels.dtype.kind in "bu":
        pixels = ~pixels
    return pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels


def _by_opencv(path: Path, index: int) -> np.ndarray:
    _, pages = cv2.imreadmulti(str(path), index, 1, flags=cv2.IMREAD_UNCHANGED)
    if not pages:
        raise DataError(f"{path}: page {index} cannot be decoded, {_WHOLE_TIFF}")
    return rgb_of_opencv(pages[0])


def _full_pages(file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The pages of a TIFF that are no previews or masks of others."""
    return [page for page in file.pages if not (page.keyframe.is_reduced or page.keyframe.is_mask)]


def _n_stacked(file: tifffile.TiffFile) -> int:
    """Frames of a stack that is described by one page alone, as ImageJ writes those above 4 GB; else 0."""
    if len(file.pages) != 1 or not file.is_imagej:
        return 0
    n = _n_frames(file.series[0].shape, file.series[0].axes)
    return n if n > 1 else 0


@contextlib.contextmanager
def _opened_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """A TIFF; whatever is wrong with it, also what tifffile only logs, is one DataError."""
    faults = []

    def note(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:  # a stack that is cut short would just have fewer pages
            faults.append(record.getMessage())
        return False

    logger = logging.getLogger("tifffile")
    logger.addFilter(note)
    try:
        with tifffile.TiffFile(path) as file:
            yield file
            found = len(file.pages)
    except (DataError, OSError):
        raise
    except Exception as error:  # tifffile and the decoders below it raise what they like
        raise DataError(f"{path}: no readable image: {error}; {_WHOLE_TIFF}") from error
    finally:
        logger.removeFilter(note)
    if faults or not found:
        raise DataError(f"{path}: no readable image: {(faults or ['no page'])[0]}; {_WHOLE_TIFF}")


# --- microscopes' formats ---------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)  # pages of a file are asked for one after the other
def _frames_of_bioimage(path: Path, mtime_ns: int) -> np.ndarray:
    return _of_bioimage(path, lambda image: _frames(np.asarray(image.data), image.dims.order, path))


def _of_bioimage(path: Path, ask: Callable[..., T]) -> T:
    """What `ask` says of the first scene of a file that bioio reads."""
    try:
        from bioio import BioImage  # an extra, and slow to import
    except ImportError as error:
        raise DataError(
            f"{path}: {path.suffix} is read by bioio, which is not installed; expected it and its plug-in of "
            'this format: pip install -e ".[bioimages]", and for example bioio-czi'
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected an image")
    try:
        return ask(BioImage(path))
    except DataError:
        raise
    except Exception as error:  # of any plug-in
        found = one_line(error).partition(". ")[0]  # else three sentences on plug-ins, which are said here
        raise DataError(
            f"{path}: no readable image: {found}; expected a whole file, and bioio's plug-in of its format, "
            "for example bioio-czi"
        ) from error


# --- arrays with named axes -------------------------------------------------------------------------------


def _n_frames(shape: Sequence[int], axes: str) -> int:
    return math.prod(n for n, axis in zip(shape, axes) if axis not in "YXS")


def _frames(pixels: np.ndarray, axes: str, path: Path) -> np.ndarray:
    """[n, H, W] or [n, H, W, 3] of an array whose axes are named by letters; S: the samples of a pixel."""
    if not {"Y", "X"} <= set(axes):
        raise DataError(f"{path}: array {list(pixels.shape)} with axes {axes}, expected Y and X among them")
    image = "YXS" if "S" in axes else "YX"
    order = [axes.index(axis) for axis in [a for a in axes if a not in image] + list(image)]
    pixels = pixels.transpose(order)
    pixels = pixels.reshape(-1, *pixels.shape[-len(image) :])
    if image == "YXS":
        n_samples = pixels.shape[-1]
        if n_samples not in (1, 3, 4):
            raise DataError(f"{path}: {n_samples} samples a pixel, expected grey or RGB, perhaps with alpha")
        pixels = pixels[..., 0] if n_samples == 1 else pixels[..., :3]
    return pixels
