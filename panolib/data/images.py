"""Pixels in files: 8-bit images, 16-bit PNGs, index maps; resizing that keeps image and labels aligned."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def decode(path: Path) -> np.ndarray:
    """File content as OpenCV stores it (BGR order, bit depth kept)."""
    if not Path(path).is_file():  # before OpenCV, which only prints a warning
        raise FileNotFoundError(f"{path}: no such file")
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"{path}: no readable image in {Path(path).stat().st_size} bytes, expected a PNG")
    return pixels


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] RGB of an 8-bit image file; alpha is dropped, grey is repeated. Raises ValueError."""
    pixels = decode(path)
    if pixels.dtype != np.uint8:
        raise ValueError(f"{path}: image of {pixels.dtype}, expected 8 bits a channel")
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels[..., 2::-1])  # B, G, R and perhaps alpha -> R, G, B


def read_png16(path: Path) -> np.ndarray:
    """Read a 16-bit PNG. Pillow cannot: it keeps the high byte of 16-bit RGB only.

    Returns
    -------
    uint16 array [H, W] or [H, W, 3]
        Channels in file order (R, G, B).

    Raises
    ------
    FileNotFoundError
    ValueError
        If the file is not a readable image or does not have 16 bits a channel.
    """
    pixels = decode(path)
    if pixels.dtype != np.uint16:
        raise ValueError(f"{path}: {8 * pixels.dtype.itemsize} bits a channel, expected 16")
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 2::-1])


def write_png16(path: Path, pixels: np.ndarray) -> None:
    """Write uint16 [H, W] or [H, W, 3] (R, G, B) as a 16-bit PNG. Raises ValueError for other types."""
    if pixels.dtype != np.uint16:
        raise ValueError(f"{path}: cannot write {pixels.dtype} as 16-bit PNG, expected uint16")
    stored = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])
    if not cv2.imwrite(str(path), stored):
        raise OSError(f"{path}: could not be written")


def read_indices(path: Path) -> np.ndarray:
    """uint8 [H, W] of a palette or grey 8-bit PNG: the stored indices, never the palette's colours."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with Image.open(path) as file:
        if file.mode not in ("P", "L"):
            raise ValueError(f"{path}: label of mode {file.mode}, expected palette (P) or 8-bit grey (L)")
        return np.asarray(file)


def read_channel16(path: Path) -> np.ndarray:
    """uint16 [H, W] of a single-channel 16-bit PNG."""
    pixels = read_png16(path)
    if pixels.ndim != 2:
        raise ValueError(f"{path}: {pixels.shape[2]} channels, expected one")
    return pixels


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest sample at each output pixel's centre, any dtype: [H, W] -> [size[0], size[1]].

    OpenCV's INTER_NEAREST samples the upper left corner instead, half a pixel off the image.
    """
    rows, columns = ((np.arange(n) * 2 + 1) * old // (2 * n) for n, old in zip(size, labels.shape))
    return labels[rows[:, None], columns]


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] -> [size[0], size[1], 3]; area mean when nothing grows, else bilinear."""
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def stretch_intensity(image: np.ndarray, low: float = 1.0, high: float = 99.8) -> np.ndarray:
    """Spread the intensities of one image over 0 .. 255; fluorescence images are often nearly black.

    Parameters
    ----------
    image : uint8 array [H, W] or [H, W, 3]
        A single channel is treated as grey repeated three times.
    low, high : float
        Percentiles over all pixels and channels that become 0 and 255; values beyond are clipped.

    Returns
    -------
    uint8 array [H, W, 3]
        All zero for an image without contrast between the two percentiles.
    """
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    floor, ceiling = np.percentile(image, (low, high))
    if ceiling <= floor:
        return np.zeros_like(image)
    table = np.clip((np.arange(256) - floor) * (255.0 / (ceiling - floor)), 0, 255)
    return np.rint(table).astype(np.uint8)[image]
