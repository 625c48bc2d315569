"""Views of an image: joint augmentation of image and labels, and SAC's crops with exact inverses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from panolib.data.label_maps import as_labels
from panolib.data.photometry import (
    IMAGENET_MEAN,
    as_unit_float,
    gaussian_blur,
    per_channel,
    random_jitter,
    uniform,
)
from panolib.data.warping import compose_affines, sampling_grid
from panolib.labels import VOID

UNKNOWN = -1  # of a map of chosen instances, where nobody chose any
PADDING_VALUES = {
    "semantic": VOID, "instance": 0, "crowd": False, "confidence": 0, "ego": 0, "chosen": UNKNOWN
}  # fmt: skip


def train_view(
    image: Tensor,
    labels: Mapping[str, Tensor],
    *,
    size: tuple[int, int],
    scale: tuple[float, float] = (0.5, 1.0),
    scale_of: str = "window",
    hflip: float = 0.5,
    jitter: float = 0.5,
    hue: float | None = None,
    jitter_probability: float = 0.5,
    blur: tuple[float, float] | None = None,
    recolour: tuple[Sequence[float], Sequence[float]] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Random window of an image and its labels, resized to `size`, flipped and jittered.

    Parameters
    ----------
    image : uint8 Tensor [3, H, W], or float Tensor in [0, 1]
    labels : mapping of "semantic", "instance", "crowd" ... to integer Tensor [H, W]
        Any subset of `PADDING_VALUES`.
    size : (height, width)
        Of the result, pixels.
    scale : (low, high)
        Range of the random scale.
    scale_of : "window" or "image"
        "window": side of the window as a share of the largest window of this aspect ratio inside the image.
        "image": factor by which the image is resized before a window of `size` is cut out (SAC).
        Windows that reach over the image are padded.
    hflip : float
        Probability of a horizontal flip.
    jitter, jitter_probability, hue, blur
        As in `photometric_noise`. Without `hue` it is the smaller of 0.5 and `jitter` (SAC).
    recolour : (gain, offset), optional
        Three numbers each, one a channel, applied last: gain * value + offset. Padding is not touched.

    Returns the view, float32 [3, h, w] in [0, 1] unless recoloured, padded with the ImageNet mean, which
    `normalise` turns into 0; and its labels [h, w], int64, but bool for "crowd", padded with
    `PADDING_VALUES`. Araslanov & Roth 2021, arXiv:2105.00097, reference code.
    """
    (height, width), (h, w) = image.shape[1:], size
    drawn, flipped = uniform(scale, 1).item(), torch.rand(()).item() < hflip
    zoom = drawn * min(height / h, width / w) if scale_of == "window" else 1 / drawn
    rows, columns = _random_window(height, h, zoom), _random_window(width, w, zoom)

    from torchvision.transforms.v2.functional import resize  # seconds to import: only for those who train

    # antialias: without it a smaller image shows noise that no camera has
    view = as_unit_float(image)[:, rows.start : rows.stop, columns.start : columns.stop]
    view = resize(view, [rows.length, columns.length], antialias=True).clamp(0, 1)
    view = view.flip(-1) if flipped else view
    view = random_jitter(view[None], jitter, min(0.5, jitter) if hue is None else hue, jitter_probability)
    if blur is not None:
        view = gaussian_blur(view, uniform(blur, 1), max_sigma=blur[1])
    if recolour is not None:
        gain, offset = recolour
        view = per_channel(gain, view) * view + per_channel(offset, view)

    left, right = columns.padding[::-1] if flipped else columns.padding
    top, bottom = rows.padding
    result = per_channel(IMAGENET_MEAN, view).repeat(1, h, w)
    result[:, top : h - bottom, left : w - right] = view[0]

    maps = {}
    for name, values in labels.items():
        # not torchvision's Mask: its nearest rule is half a pixel off and its float32 rounds large ids
        values = as_labels(values, name)[rows.nearest()][:, columns.nearest()]
        values = values.flip(-1) if flipped else values
        values = values.bool() if name == "crowd" else values.long()
        maps[name] = F.pad(values, (left, right, top, bottom), value=PADDING_VALUES[name])
    return result, maps


@dataclass(frozen=True)
class _Window:
    """One axis of a crop: the part of the image that it shows, its length and padding after resizing."""

    start: int
    stop: int
    length: int
    padding: tuple[int, int]

    def nearest(self) -> Tensor:
        """int64 [length]: index of the image pixel that holds the centre of each pixel of the view."""
        step = (self.stop - self.start) / self.length
        return self.start + ((torch.arange(self.length) + 0.5) * step).long()


def _random_window(size: int, length: int, zoom: float) -> _Window:
    """Window of `zoom * length` image pixels at a random place; a longer one than the image holds it."""
    window = max(1, round(zoom * length))
    begin = round(torch.rand(()).item() * (size - window))                             # negative: padding
    start, stop = max(begin, 0), min(begin + window, size)
    before = min(floor((start - begin) * length / window), length - 1)
    inside = max(1, round((stop - start) * length / window))
    inside = min(inside, length - before)
    return _Window(start, stop, inside, (before, length - before - inside))


@dataclass(frozen=True)
class Views:
    """L crops of each of B images; crop l of image b has index b * L + l."""

    clean: Tensor  # float32 [B * L, 3, H, W], without photometric noise, in the value range of the images
    padding: Tensor  # bool [B * L, H, W], pixels outside of the image
    affine: Tensor  # float32 [B * L, 2, 3], canvas to crop: ``warp(crop, affine)`` gives the canvas
    inverse: Tensor  # of `affine`: ``warp(canvas, inverse)`` gives the crop
    sampling: Tensor  # crop to input image: ``warp_labels(labels repeated L times, sampling)``
    n_views: int  # L


def view_affines(zoom: Tensor, offset: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
    """Affines of N crops of a canvas: canvas to crop, and crop to canvas, float [N, 2, 3].

    `zoom` [N] is the side of the window as a share s of the canvas; `offset` [N, 2] x, y of its centre as a
    share of its free way, -1 and 1 touching the edges; `flip` bool [N] whether the canvas is mirrored before
    it is cropped. x_crop = (f x - d) / s, and x = f (s x_crop + d), where f = -1 for a mirrored crop.
    Araslanov & Roth 2021.
    """
    sign = 1.0 - 2.0 * flip.to(zoom)
    shift = offset * (1 - zoom)[:, None]
    zero, one = torch.zeros_like(zoom), torch.ones_like(zoom)
    forward = torch.stack([sign, zero, -shift[:, 0], zero, one, -shift[:, 1]], -1) / zoom[:, None]
    inverse = torch.stack([sign * zoom, zero, sign * shift[:, 0], zero, zoom, shift[:, 1]], -1)
    return forward.view(-1, 2, 3), inverse.view(-1, 2, 3)


@record_function("crops and noise")
def multi_view_crops(
    images: Tensor,
    *,
    n_views: int,
    zoom: tuple[float, float] = (0.5, 1.0),
    reference_scale: tuple[float, float] = (1.0, 1.1),
    hflip: float = 0.5,
) -> Views:
    """SAC's crops of unlabelled images: one reference canvas per image, several zooms and flips of it.

    The canvas is a window of 1 / `reference_scale` of the image, mirrored at random. Copy 0 shows all of the
    canvas; each other of the `n_views` copies a window of a share `zoom` of it. Every copy is mirrored at
    random. Image, canvas and crops have the same height and width, and each crop is sampled once, directly
    from the image.

    Takes float [B, 3, H, W] in [0, 1], or uint8. `zoom` and `reference_scale` are uniform ranges, positive; a
    zoom above 1 or a scale below 1 gives padding. `hflip` is the probability of a flip, of the canvas and of
    each copy. Araslanov & Roth 2021, arXiv:2105.00097.
    """
    n, size = len(images), images.shape[-2:]
    _, canvas_to_image = view_affines(
        1 / uniform(reference_scale, n), uniform((-1, 1), n, 2), torch.rand(n) < hflip
    )
    shares = uniform(zoom, n, n_views)
    shares[:, 0] = 1.0
    affine, inverse = view_affines(
        shares.flatten(), uniform((-1, 1), n * n_views, 2), torch.rand(n * n_views) < hflip
    )
    sampling = compose_affines(canvas_to_image.repeat_interleave(n_views, 0), inverse)
    affine, inverse, sampling = (a.to(images.device, non_blocking=True) for a in (affine, inverse, sampling))

    grid = sampling_grid(sampling, size)
    padding = (grid.abs() > 1).any(-1)
    repeated = as_unit_float(images).repeat_interleave(n_views, 0)
    clean = F.grid_sample(repeated, grid, padding_mode="border", align_corners=False)
    clean = torch.where(padding[:, None], per_channel(IMAGENET_MEAN, clean), clean)
    return Views(clean, padding, affine, inverse, sampling, n_views)
