"""Image files of any kind, page by page: PNG, JPEG and the like, TIFF, and what bioio reads of microscopes.

A page is one image of a file: a TIFF stack, a series over time and every channel of a microscope's file that
is no colour image have several.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import tifffile
from PIL import Image

from panolib.data.errors import DataError
from panolib.data.images import decode, rgb_of_opencv

PHOTOS = (".jpg", ".jpeg", ".bmp", ".webp")
TIFFS = (".tif", ".tiff")
BIOIMAGES = (".czi", ".dv", ".lif", ".nd2", ".oib", ".oif", ".r3d", ".vsi")  # each needs its plug-in of bioio
IMAGES = (".png", *PHOTOS, *TIFFS, *BIOIMAGES)

T = TypeVar("T")


@dataclass(frozen=True)
class Page:
    """One image of a file, numbered from 0; its text is for messages."""

    path: Path
    number: int = 0

    def __str__(self) -> str:
        return f"{self.path}" if self.number == 0 else f"{self.path}, page {self.number + 1}"

    def read(self) -> np.ndarray:
        """The array as of `read_pages`; not to be written into."""
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file, expected an image")
        return _remembered_pages(self.path, self.path.stat().st_mtime_ns)[self.number]


def read_pages(path: Path) -> list[np.ndarray]:
    """The pages of an image file.

    Parameters
    ----------
    path : Path
        Its suffix says the format, in lower or upper case.

    Returns
    -------
    list of arrays [H, W] or [H, W, 3]
        Grey or RGB as in the file, 8 or 16 bits; labels also of other types. Alpha is dropped.

    Raises
    ------
    DataError
        For a suffix that is not of `IMAGES`, a damaged file, another number of channels, and without bioio
        where it is needed.
    FileNotFoundError
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in PHOTOS:
        return [_photo(path)]
    if suffix in TIFFS:
        return _of_tiff(path, lambda series: _frames(series.asarray(), series.axes, path))
    if suffix in BIOIMAGES:
        return _of_bioimage(path, lambda image: _frames(np.asarray(image.data), image.dims.order, path))
    if suffix == ".png":
        return [rgb_of_opencv(decode(path))]
    raise DataError(f"{path}: found suffix {path.suffix!r}, expected one of {', '.join(IMAGES)}")


def n_pages(path: Path) -> int:
    """How many pages a file has; no pixel is decoded. Errors as of `read_pages`."""
    suffix = path.suffix.lower()
    if suffix in TIFFS:
        return _of_tiff(path, lambda series: _n_frames(series.shape, series.axes))
    if suffix in BIOIMAGES:
        return _of_bioimage(path, lambda image: _n_frames(image.shape, image.dims.order))
    return 1


@functools.lru_cache(maxsize=2)  # pages of a stack, and of its labels, are asked for one after the other
def _remembered_pages(path: Path, mtime_ns: int) -> list[np.ndarray]:
    pages = read_pages(path)
    for page in pages:
        page.flags.writeable = False
    return pages


def _photo(path: Path) -> np.ndarray:
    """By Pillow, which notices where a file was cut; OpenCV fills the rest with grey."""
    try:
        with Image.open(path) as file:
            return np.array(file if file.mode == "L" else file.convert("RGB"))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: no readable image: {error}; expected a whole {path.suffix} file") from error


def _of_tiff(path: Path, ask: Callable[[tifffile.TiffPageSeries], T]) -> T:
    """What `ask` says of the only series of a TIFF file."""
    try:
        with tifffile.TiffFile(path) as file:
            n_series = len(file.series)
            if n_series == 1:
                return ask(file.series[0])
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:  # tifffile and the decoders below it raise what they like
        pages = _tiff_of_opencv(path) if "imagecodecs" in str(error) else None
        if pages is None:
            raise DataError(f"{path}: no readable image: {error}; expected a whole TIFF file") from error
        return pages
    raise DataError(f"{path}: {n_series} series of images, expected pages of one size and type")


def _tiff_of_opencv(path: Path) -> list[np.ndarray] | None:
    """Pages of a TIFF whose compression (LZW) needs a package that is not installed; None if it cannot."""
    found, pages = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)
    return [rgb_of_opencv(page) for page in pages] if found else None


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
        raise DataError(f"{path}: no readable image: {error}; expected what bioio reads") from error


def _n_frames(shape: Sequence[int], axes: str) -> int:
    return math.prod(n for n, axis in zip(shape, axes) if axis not in "YXS")


def _frames(pixels: np.ndarray, axes: str, path: Path) -> list[np.ndarray]:
    """[H, W] or [H, W, 3] arrays of one whose axes are named by letters; S: the samples of a pixel."""
    if not {"Y", "X"} <= set(axes):
        raise DataError(f"{path}: array {list(pixels.shape)} with axes {axes}, expected Y and X among them")
    image = "YXS" if "S" in axes else "YX"
    order = [axes.index(axis) for axis in [a for a in axes if a not in image] + list(image)]
    pixels = pixels.transpose(order)
    pixels = pixels.reshape(-1, *pixels.shape[-len(image) :])
    if image == "YXS":
        n_channels = pixels.shape[-1]
        if n_channels not in (1, 2, 3, 4):
            raise DataError(f"{path}: {n_channels} samples a pixel, expected grey or RGB, perhaps with alpha")
        pixels = pixels[..., 0] if n_channels < 3 else pixels[..., :3]
    return [np.ascontiguousarray(page) for page in pixels]
