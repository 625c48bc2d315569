"""Pixels in files: 8-bit images, 16-bit PNGs, index maps; resizing that keeps image and labels aligned."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import DTypeLike
from PIL import Image

from panolib.data.errors import DataError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
STRIP = 2**20  # values; what is done by strips takes little memory beside an image of any size
ON_DISK = 2**24  # bytes of the smallest array that stands on disk within `large_arrays_in`
_FOLDER: ContextVar[Path | None] = ContextVar("folder of large arrays", default=None)
_TO_RGBA = {1: cv2.COLOR_GRAY2RGBA, 3: cv2.COLOR_BGR2RGBA, 4: cv2.COLOR_BGRA2RGBA}  # by channels


def read_checked(path: Path) -> bytes:
    """The bytes of a PNG file, after the checksum of each of its chunks.

    Decoders differ in what they check: Pillow reads palette images without, so that a flipped bit is another
    class. A cut or damaged file and a file of another format are a DataError, no file a FileNotFoundError.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {found}, expected a PNG")
    content = path.read_bytes()
    fault = _png_fault(content)
    if fault is not None:
        raise DataError(f"{path}: no readable image in {len(content)} bytes: {fault}; expected a whole PNG")
    return content


def _png_fault(content: bytes) -> str | None:
    """What is wrong with the chunks of a PNG; None for an undamaged one."""
    if not content.startswith(_SIGNATURE):
        return "it does not start as a PNG does" if content else "it is empty"
    view, position, kind = memoryview(content), len(_SIGNATURE), b""
    while kind != b"IEND":
        data = position + 8
        end = data + int.from_bytes(content[position : position + 4])
        if end + 4 > len(content):
            return f"cut short within the chunk at byte {position}"
        kind = content[position + 4 : data]
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(content[end : end + 4]):
            return f"damaged, the chunk at byte {position} differs from its checksum"
        position = end + 4
    return None


def decode(path: Path) -> np.ndarray:
    """Pixels of a PNG as OpenCV stores them (BGR order, bit depth kept). Errors as of `read_checked`."""
    content = read_checked(path)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # for example more pixels than OpenCV allows
        raise DataError(f"{path}: no readable image in {len(content)} bytes: {error}") from error
    if pixels is None:
        raise DataError(f"{path}: no readable image in {len(content)} bytes, expected a whole PNG")
    return pixels


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] RGB of an 8-bit image file; alpha is dropped, grey is repeated. Raises ValueError."""
    return as_rgb(rgb_of_opencv(_decode8(path)))


def read_ids(path: Path) -> np.ndarray:
    """int32 [H, W] of a PNG whose colours are ids, R + 256 G + 65536 B. Errors as of `read_image`."""
    pixels = _decode8(path)
    rgba = cv2.cvtColor(pixels, _TO_RGBA[pixels[0, 0].size])
    return rgba.view("<i4")[..., 0] & 0xFFFFFF  # four bytes are one number: far quicker than a product


def _decode8(path: Path) -> np.ndarray:
    pixels = decode(path)
    if pixels.dtype != np.uint8:
        raise DataError(f"{path}: image of {pixels.dtype}, expected 8 bits a channel")
    return pixels


def rgb_of_opencv(pixels: np.ndarray) -> np.ndarray:
    """Grey as it is; B, G, R and perhaps alpha -> R, G, B."""
    return pixels if pixels.ndim == 2 else contiguous(pixels[..., 2::-1])


def read_png16(path: Path) -> np.ndarray:
    """uint16 [H, W] or [H, W, 3] (R, G, B) of a PNG of 16 bits a channel; another one is a DataError.

    Pillow cannot: it keeps the high byte of 16-bit RGB only.
    """
    pixels = decode(path)
    if pixels.dtype != np.uint16:
        raise DataError(f"{path}: {8 * pixels.dtype.itemsize} bits a channel, expected 16")
    return rgb_of_opencv(pixels)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 or uint16 [H, W] or [H, W, 3] (R, G, B); folders on the way are made."""
    stored = pixels if pixels.ndim == 2 else contiguous(pixels[..., ::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", stored)[1])


def read_indices(path: Path) -> np.ndarray:
    """uint8 [H, W] of a palette or grey PNG: the stored indices, never the palette's colours.

    Tools that shrink files store few ids in 1, 2 or 4 bits; decoders then spread grey values over 0 .. 255,
    which is undone here. Errors as of `read_checked`, and a DataError for colours or 16 bits.
    """
    content = read_checked(path)
    try:
        with opened(io.BytesIO(content), "PNG") as file:
            mode, pixels = file.mode, np.asarray(file)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: no readable image in {len(content)} bytes: {error}") from error
    if mode not in ("P", "L", "1"):
        raise DataError(f"{path}: label of mode {mode}, expected palette (P) or 8-bit grey (L)")
    bits = content[24]  # signature, chunk head, width and height come before the depth
    if mode == "L" and bits < 8:
        return pixels // (255 // (2**bits - 1))
    return pixels.astype(np.uint8, copy=False)


@contextlib.contextmanager
def opened(file: Path | BinaryIO, kind: str) -> Iterator[Image.Image]:
    """A file of this kind in Pillow, of any size: it takes large ones for attacks, but users chose theirs."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(file, formats=[kind]) as image:
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_channel16(path: Path) -> np.ndarray:
    """uint16 [H, W] of a single-channel 16-bit PNG."""
    pixels = read_png16(path)
    if pixels.ndim != 2:
        raise DataError(f"{path}: {pixels.shape[2]} channels, expected one")
    return pixels


def resize_labels(labels, size: Sequence[int]):
    """Array or Tensor [..., H, W] of any type at another size (height, width); the same one at its own.

    Every pixel takes the label under its centre. OpenCV's INTER_NEAREST takes the one under its upper left
    corner, half a pixel off the image.
    """
    height, width = labels.shape[-2:]
    if (height, width) == tuple(size):
        return labels
    if height * width == 0 and size[0] * size[1]:
        raise ValueError(f"labels are {height} x {width}, expected a pixel to resize to {tuple(size)}")
    rows, columns = ((np.arange(n) * 2 + 1) * old // (2 * n) for n, old in zip(size, (height, width)))
    if not isinstance(labels, np.ndarray):
        return labels[..., rows[:, None], columns]
    found = empty((*labels.shape[:-2], *size), labels.dtype)
    for strip in row_strips(size):
        found[..., strip, :] = labels[..., rows[strip, None], columns]
    return found


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] -> [size[0], size[1], 3]; area mean when nothing grows, else bilinear."""
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    kind = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], empty((*size, *image.shape[2:]), image.dtype), interpolation=kind)


def stretch_intensity(image: np.ndarray, low: float = 1.0, high: float = 99.8) -> np.ndarray:
    """`scale_intensity` of what lies between two percentiles over all pixels and channels of an image.

    Fluorescence images are often nearly black.
    """
    return scale_intensity(image, *np.percentile(image, (low, high)))


@contextlib.contextmanager
def large_arrays_in(folder: Path) -> Iterator[None]:
    """For images beyond memory: large arrays of `empty` and `contiguous` stand in files of a folder.

    The files are gone with the arrays; the system moves their pages to disk and back.
    """
    token = _FOLDER.set(Path(folder))
    try:
        yield
    finally:
        _FOLDER.reset(token)


def empty(shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """As `numpy.empty`; a large array stands on disk within `large_arrays_in`."""
    folder = _FOLDER.get()
    if folder is None or math.prod(shape) * np.dtype(dtype).itemsize < ON_DISK:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is told now; later, it would be a bus error
                os.posix_fallocate(file.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)
            return np.asarray(np.memmap(file, dtype, "w+", shape=tuple(shape)))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def contiguous(pixels: np.ndarray) -> np.ndarray:
    """As `numpy.ascontiguousarray`; what is copied is an array of `empty`."""
    if pixels.flags.c_contiguous:
        return pixels
    copied = empty(pixels.shape, pixels.dtype)
    np.copyto(copied, pixels)
    return copied


def row_strips(shape: Sequence[int]) -> Iterator[slice]:
    """Rows of an array [H, ...], as many at a time as have about `STRIP` values: all of a small one."""
    height, n_rows = shape[0], max(1, STRIP // max(math.prod(shape[1:]), 1))
    return (slice(top, min(top + n_rows, height)) for top in range(0, height, n_rows))


def look_up(table: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """`table[indices]` for an array [H, ...]. NumPy would make eight bytes of each index first."""
    found = empty((*indices.shape, *table.shape[1:]), table.dtype)
    for rows in row_strips(indices.shape):
        found[rows] = table[indices[rows]]
    return found


def scale_intensity(image: np.ndarray, floor: float, ceiling: float) -> np.ndarray:
    """Bring the intensities floor .. ceiling to 0 .. 255; values beyond are clipped.

    `image` is uint8 or uint16, [H, W] or [H, W, 3]. Returns uint8 [H, W, 3], all 0 where the ceiling is not
    above the floor.
    """
    values = np.arange(256 if image.dtype == np.uint8 else 1 << 16)
    table = np.zeros(len(values))
    if ceiling > floor:
        table = np.clip((values - floor) * (255.0 / (ceiling - floor)), 0, 255)
    return as_rgb(look_up(np.rint(table).astype(np.uint8), image))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] of a grey image [H, W]; a colour image as it is."""
    return contiguous(np.broadcast_to(image[..., None], (*image.shape, 3))) if image.ndim == 2 else image
