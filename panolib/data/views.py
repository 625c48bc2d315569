"""Views of an image: augmentation, SAC's crops with exact inverses, photometric noise, rotation.

Coordinates are those of ``torch.nn.functional.grid_sample`` with ``align_corners=False``: the centre of
the canvas is 0, its outer edges are -1 and 1. An *affine* is a [N, 2, 3] matrix that says, for every
output position, where to sample in the input; it holds at every resolution.

Every random number comes from torch's global CPU generator, so that a caller who seeds it gets the same
draws on every device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf

import torch
import torch.nn.functional as F
from torch import Tensor

from panolib.data.label_maps import as_labels
from panolib.labels import VOID

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PADDING_VALUES = {"semantic": VOID, "instance": 0, "crowd": False}


# --- values ---------------------------------------------------------------------------------------------

def normalise(image: Tensor, padding: Tensor | None = None) -> Tensor:
    """ImageNet-normalised image, float32.

    Parameters
    ----------
    image : uint8 Tensor [..., 3, H, W] in 0..255, or float Tensor in [0, 1]
    padding : bool Tensor [..., H, W], optional
        Pixels that become exactly 0.

    Raises
    ------
    ValueError
        For integers other than uint8, whose range nobody knows.
    """
    image = as_unit_float(image)
    result = (image - _channels(IMAGENET_MEAN, image)) / _channels(IMAGENET_STD, image)
    return result if padding is None else result.masked_fill(padding.unsqueeze(-3), 0.0)


def denormalise(image: Tensor) -> Tensor:
    """Inverse of `normalise`: float Tensor [..., 3, H, W] with values in [0, 1]."""
    return (image * _channels(IMAGENET_STD, image) + _channels(IMAGENET_MEAN, image)).clamp(0, 1)


def as_unit_float(image: Tensor) -> Tensor:
    """float32 image in [0, 1] from uint8 in 0..255; a float image keeps its values. Errors of `normalise`."""
    if image.dtype == torch.uint8:
        return image.float() / 255
    _check_float(image)
    return image.float()


def photometric_noise(
    image: Tensor,
    *,
    jitter: float = 0.4,
    hue: float = 0.1,
    jitter_probability: float = 0.5,
    grayscale: float = 0.2,
    blur: tuple[float, float] | None = (0.1, 2.0),
) -> Tensor:
    """The student's noise: blur, then colour jitter, then grayscale; each image has its own draw.

    Jitter is applied as brightness, contrast, saturation, hue, in this order, clipped to [0, 1] after each
    step (torchvision shuffles the order).

    Parameters
    ----------
    image : float Tensor [B, 3, H, W] or [3, H, W] in [0, 1]
    jitter : float
        Brightness, contrast and saturation factors are drawn from U(1 - jitter, 1 + jitter).
    hue : float
        Hue shift drawn from U(-hue, hue); 0.5 is half a turn.
    jitter_probability, grayscale : float
        Share of images that are jittered; that lose their colour.
    blur : (low, high) or None
        Range of the standard deviation of the Gaussian, pixels; applied to every image. (0, 0), as None,
        blurs nothing.

    Returns
    -------
    float32 Tensor, same shape, in [0, 1]

    Raises
    ------
    ValueError
        If the image is no float image of three channels, or `blur` is no range of numbers >= 0.

    References
    ----------
    Araslanov & Roth 2021, arXiv:2105.00097.
    """
    _check_image(image, (3, 4))
    _check_float(image)
    images = image.float() if image.ndim == 4 else image[None].float()
    if blur is not None:
        check_range("blur", blur)
        images = gaussian_blur(images, _uniform(blur, len(images)), max_sigma=blur[1])
    images = _random_jitter(images, jitter, hue, jitter_probability)
    if grayscale > 0:
        grey = torch.rand(len(images)) < grayscale
        images = torch.where(_per_image(grey, images), _luminance(images), images)
    return images if image.ndim == 4 else images[0]


def adjust_colours(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """Change colours with one factor per image; 1, 1, 1, 0 change nothing.

    Parameters
    ----------
    images : float Tensor [B, 3, H, W] in [0, 1]
    brightness, contrast, saturation : float Tensor [B]
    hue : float Tensor [B], turns in [-0.5, 0.5]

    Returns
    -------
    float Tensor [B, 3, H, W] in [0, 1]
        As torchvision's ``adjust_brightness``, ``_contrast``, ``_saturation`` and ``_hue``, in this order.
    """
    contrast, saturation = _per_image(contrast, images), _per_image(saturation, images)
    images = (images * _per_image(brightness, images)).clamp(0, 1)
    mean = _luminance(images).mean((1, 2, 3), keepdim=True)
    images = (mean + contrast * (images - mean)).clamp(0, 1)
    grey = _luminance(images)
    images = (grey + saturation * (images - grey)).clamp(0, 1)
    return _shift_hue(images, _per_image(hue, images))


def gaussian_blur(images: Tensor, sigma: Tensor, *, max_sigma: float) -> Tensor:
    """Gaussian blur with one standard deviation per image and repeated edge pixels.

    Parameters
    ----------
    images : float Tensor [B, C, H, W]
    sigma : float Tensor [B]
        Pixels; >= 0, and 0 leaves an image as it is.
    max_sigma : float
        Bound of `sigma`; the kernel reaches 3 `max_sigma`.
    """
    n, c, h, w = images.shape
    radius = max(1, ceil(3 * max_sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    sigma = sigma.to(images, non_blocking=True).clamp(min=torch.finfo(images.dtype).tiny)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]).square())
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(c, 0)             # [B * C, 2 r + 1]
    flat = F.pad(images.reshape(1, n * c, h, w), [radius] * 4, mode="replicate")
    flat = F.conv2d(flat, weights[:, None, :, None], groups=n * c)
    return F.conv2d(flat, weights[:, None, None, :], groups=n * c).view(n, c, h, w)


# --- joint augmentation of an image and its labels ----------------------------------------------------------

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
    labels : mapping of "semantic", "instance", "crowd" to integer Tensor [H, W]
        Any subset of the three.
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
    jitter, jitter_probability
        As in `photometric_noise`.
    hue : float, optional
        As in `photometric_noise`; the smaller of 0.5 and `jitter` by default (SAC).
    blur : (low, high), optional
        As in `photometric_noise`; no blur by default.
    recolour : (gain, offset), optional
        Three numbers each, one a channel, applied last: gain * value + offset. Padding is not touched.

    Returns
    -------
    image : float32 Tensor [3, h, w] in [0, 1], unless recoloured
        Padding has the ImageNet mean, which `normalise` turns into 0.
    labels : dict of Tensor [h, w]
        Same keys; int64 for "semantic" and "instance", bool for "crowd". Padding is `VOID`, 0 and False.

    Raises
    ------
    ValueError
        If a label map has another height or width than the image, an unknown name, or is not of integers; if
        `scale_of` is unknown; if `scale` is no range of positive numbers or `blur` none of numbers >= 0.

    References
    ----------
    Araslanov & Roth 2021, arXiv:2105.00097, reference code.
    """
    _check_image(image, (3,))
    for name, values in labels.items():
        if name not in PADDING_VALUES:
            raise ValueError(f"unknown label map {name!r}; expected some of {sorted(PADDING_VALUES)}")
        if values.shape != image.shape[1:]:
            raise ValueError(
                f"label map {name!r} has shape {tuple(values.shape)}, the image has {tuple(image.shape[1:])}"
            )
    if scale_of not in ("window", "image"):
        raise ValueError(f"scale_of is {scale_of!r}; expected 'window' or 'image'")
    check_range("scale", scale, positive=True)
    if blur is not None:
        check_range("blur", blur)

    (height, width), (h, w) = image.shape[1:], size
    if min(size) < 1:
        raise ValueError(f"size is {tuple(size)}; expected at least one pixel")
    drawn, flipped = _uniform(scale, 1).item(), torch.rand(()).item() < hflip
    zoom = drawn * min(height / h, width / w) if scale_of == "window" else 1 / drawn
    rows, columns = _random_window(height, h, zoom), _random_window(width, w, zoom)

    from torchvision.transforms.v2.functional import resize  # seconds to import: only for those who train

    # antialias: without it a smaller image shows noise that no camera has
    view = as_unit_float(image)[:, rows.source, columns.source]
    view = resize(view, [rows.length, columns.length], antialias=True).clamp(0, 1)
    view = view.flip(-1) if flipped else view
    view = _random_jitter(view[None], jitter, min(0.5, jitter) if hue is None else hue, jitter_probability)
    if blur is not None:
        view = gaussian_blur(view, _uniform(blur, 1), max_sigma=blur[1])
    if recolour is not None:
        gain, offset = recolour
        view = _channels(gain, view) * view + _channels(offset, view)

    left, right = columns.padding[::-1] if flipped else columns.padding
    top, bottom = rows.padding
    result = _channels(IMAGENET_MEAN, view).repeat(1, h, w)
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

    @property
    def source(self) -> slice:
        return slice(self.start, self.stop)

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


# --- affine maps ------------------------------------------------------------------------------------------

def sampling_grid(affine: Tensor, size: tuple[int, int]) -> Tensor:
    """Sampling positions of every pixel centre of a [h, w] canvas, for ``grid_sample``.

    Written element by element: ``affine_grid`` is a matrix product, which autocast rounds to bfloat16.

    Parameters
    ----------
    affine : float Tensor [N, 2, 3]
    size : (height, width)

    Returns
    -------
    float Tensor [N, h, w, 2]
    """
    y, x = ((2 * torch.arange(n, dtype=affine.dtype, device=affine.device) + 1) / n - 1 for n in size)
    a = affine[..., None, None]                                                           # [N, 2, 3, 1, 1]
    return (a[:, :, 0] * x + a[:, :, 1] * y[:, None] + a[:, :, 2]).movedim(1, -1)


def compose_affines(outer: Tensor, inner: Tensor) -> Tensor:
    """Affine [N, 2, 3] that maps p to outer(inner(p))."""
    linear = (outer[:, :, :2, None] * inner[:, None, :, :]).sum(2)
    return torch.cat([linear[..., :2], linear[..., 2:] + outer[..., 2:]], dim=-1)


def invert_affine(affine: Tensor) -> Tensor:
    """Inverse of affines [N, 2, 3]."""
    a, b, c, d = affine[:, 0, 0], affine[:, 0, 1], affine[:, 1, 0], affine[:, 1, 1]
    linear = torch.stack([d, -b, -c, a], -1).view(-1, 2, 2) / (a * d - b * c)[:, None, None]
    shift = -(linear * affine[:, None, :, 2]).sum(-1, keepdim=True)
    return torch.cat([linear, shift], dim=-1)


def warp(
    x: Tensor, affine: Tensor, mode: str = "bilinear", *, size=None, padding_mode: str = "zeros"
) -> Tensor:
    """Resample maps at the positions of an affine.

    Parameters
    ----------
    x : float Tensor [N, C, H, W]
        Half precision is computed and returned as float32.
    affine : float Tensor [N, 2, 3]
        Output position to input position, normalised.
    mode : "bilinear" or "nearest"
    size : (height, width), optional
        Of the output; that of `x` by default.
    padding_mode : "zeros" or "border"
        Value outside of `x`.

    Returns
    -------
    float Tensor [N, C, h, w]
    """
    x = x if x.dtype == torch.float64 else x.float()
    grid = sampling_grid(affine.to(x), tuple(size or x.shape[-2:]))
    return F.grid_sample(x, grid, mode=mode, padding_mode=padding_mode, align_corners=False)


def warp_labels(labels: Tensor, affine: Tensor, *, fill: int | bool = VOID, size=None) -> Tensor:
    """Resample label maps with the nearest rule; exact for every integer type.

    Parameters
    ----------
    labels : integer or bool Tensor [N, H, W]
    affine : float Tensor [N, 2, 3]
    fill : int or bool
        Value outside of the map; must be representable in the type of `labels`.
    size : (height, width), optional
        Of the output; that of `labels` by default.

    Returns
    -------
    Tensor [N, h, w], type of `labels`

    Raises
    ------
    ValueError
        For labels that are not integers, or a `fill` that their type cannot hold.
    """
    labels = labels if torch.is_tensor(labels) else as_labels(labels, "labels")
    dtype, labels = labels.dtype, as_labels(labels, "labels")
    low, high = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if not low <= fill <= high:
        raise ValueError(f"fill is {fill}, expected {low} .. {high} for labels of {dtype}")
    n, height, width = labels.shape
    if height * width == 0:
        raise ValueError(f"labels are {list(labels.shape)}, expected at least one pixel")
    grid = sampling_grid(affine, tuple(size or (height, width)))
    column = ((grid[..., 0] + 1) * (width / 2)).floor().long()
    row = ((grid[..., 1] + 1) * (height / 2)).floor().long()
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    values = labels.reshape(n, -1).gather(1, index.flatten(1)).view(index.shape)
    outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
    return values.masked_fill(outside, fill).to(dtype)


# --- several crops of one image -----------------------------------------------------------------------------

@dataclass(frozen=True)
class Views:
    """L crops of each of B images; crop l of image b has index b * L + l.

    Attributes
    ----------
    clean : float32 Tensor [B * L, 3, H, W]
        Crops without photometric noise, in the value range of the images.
    padding : bool Tensor [B * L, H, W]
        Pixels outside of the image.
    affine : float32 Tensor [B * L, 2, 3]
        A: position on the reference canvas to position in the crop; ``warp(crop, affine)`` gives the canvas.
    inverse : float32 Tensor [B * L, 2, 3]
        Inverse of A; ``warp(canvas, inverse)`` gives the crop.
    sampling : float32 Tensor [B * L, 2, 3]
        Position in the crop to position in the input image; ``warp_labels(labels, sampling)`` gives the
        labels of the crops, where `labels` repeats each image's map L times.
    n_views : int
        L.
    """

    clean: Tensor
    padding: Tensor
    affine: Tensor
    inverse: Tensor
    sampling: Tensor
    n_views: int


def view_affines(zoom: Tensor, offset: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
    """Affines of crops of a canvas.

    Parameters
    ----------
    zoom : float Tensor [N]
        Side of the window as a share s of the canvas.
    offset : float Tensor [N, 2]
        x, y of the window centre as a share of its free way; -1 and 1 touch the edges.
    flip : bool Tensor [N]
        Whether the canvas is mirrored before it is cropped.

    Returns
    -------
    affine, inverse : float Tensor [N, 2, 3]
        Canvas to crop, x_crop = (f x - d) / s, and crop to canvas, x = f (s x_crop + d), where f = -1 for a
        mirrored crop.

    References
    ----------
    Araslanov & Roth 2021, arXiv:2105.00097.
    """
    sign = 1.0 - 2.0 * flip.to(zoom)
    shift = offset * (1 - zoom)[:, None]
    zero, one = torch.zeros_like(zoom), torch.ones_like(zoom)
    forward = torch.stack([sign, zero, -shift[:, 0], zero, one, -shift[:, 1]], -1) / zoom[:, None]
    inverse = torch.stack([sign * zoom, zero, sign * shift[:, 0], zero, zoom, shift[:, 1]], -1)
    return forward.view(-1, 2, 3), inverse.view(-1, 2, 3)


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
    canvas; each other copy a window of a share `zoom` of it. Every copy is mirrored at random. Image, canvas
    and crops have the same height and width, and each crop is sampled once, directly from the image.

    Parameters
    ----------
    images : float Tensor [B, 3, H, W] in [0, 1]
    n_views : int
        L >= 1, copy 0 included.
    zoom, reference_scale : (low, high)
        Uniform ranges; positive. A zoom above 1 or a scale below 1 gives padding.
    hflip : float
        Probability of a horizontal flip, of the canvas and of each copy.

    Returns
    -------
    Views
        Padding has the ImageNet mean, which `normalise` turns into 0.

    Raises
    ------
    ValueError
        If `images` is not [B, 3, H, W] float, `n_views` < 1 or a range is not positive.

    References
    ----------
    Araslanov & Roth 2021, arXiv:2105.00097.
    """
    _check_image(images, (4,))
    _check_float(images)
    if n_views < 1:
        raise ValueError(f"n_views is {n_views}; expected at least 1")
    check_range("zoom", zoom, positive=True)
    check_range("reference_scale", reference_scale, positive=True)

    n, size = len(images), images.shape[-2:]
    _, canvas_to_image = view_affines(
        1 / _uniform(reference_scale, n), _uniform((-1, 1), n, 2), torch.rand(n) < hflip
    )
    shares = _uniform(zoom, n, n_views)
    shares[:, 0] = 1.0
    affine, inverse = view_affines(
        shares.flatten(), _uniform((-1, 1), n * n_views, 2), torch.rand(n * n_views) < hflip
    )
    sampling = compose_affines(canvas_to_image.repeat_interleave(n_views, 0), inverse)
    affine, inverse, sampling = (a.to(images.device, non_blocking=True) for a in (affine, inverse, sampling))

    grid = sampling_grid(sampling, size)
    padding = (grid.abs() > 1).any(-1)
    repeated = images.float().repeat_interleave(n_views, 0)
    clean = F.grid_sample(repeated, grid, padding_mode="border", align_corners=False)
    clean = torch.where(padding[:, None], _channels(IMAGENET_MEAN, clean), clean)
    return Views(clean, padding, affine, inverse, sampling, n_views)


# --- rotation -----------------------------------------------------------------------------------------------

def rotation_affine(shape: tuple[int, int], degrees: Tensor) -> Tensor:
    """Sampling affines [B, 2, 3] that turn a canvas of shape (H, W) counter-clockwise about its centre."""
    height, width = shape
    cos, sin = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    zero = torch.zeros_like(cos)
    # the y axis points down; the aspect ratio keeps angles true in normalised coordinates
    entries = [cos, -sin * (height / width), zero, sin * (width / height), cos, zero]
    return torch.stack(entries, -1).view(-1, 2, 3)


def rotate(image: Tensor, degrees: Tensor | float) -> Tensor:
    """Turn maps counter-clockwise about their centre; bilinear, 0 outside, size unchanged.

    Parameters
    ----------
    image : float Tensor [B, C, H, W]
    degrees : float Tensor [B] or float
    """
    return warp(image, rotation_affine(image.shape[-2:], _angles(degrees, image)))


def unrotate(field: Tensor, degrees: Tensor | float) -> Tensor:
    """Turn maps [B, C, H, W] back: the inverse of `rotate` where `rotation_validity` is True."""
    return rotate(field, -_angles(degrees, field))


def rotation_validity(shape: tuple[int, int], degrees: Tensor | float) -> Tensor:
    """Pixels whose value survives `rotate` and `unrotate`.

    Parameters
    ----------
    shape : (H, W)
    degrees : float Tensor [B] or float

    Returns
    -------
    bool Tensor [B, H, W]
        True where no sample of either turn lay outside of the canvas.
    """
    degrees = torch.as_tensor(degrees, dtype=torch.float32).reshape(-1)
    ones = torch.ones(len(degrees), 1, *shape, device=degrees.device)
    return unrotate(rotate(ones, degrees), degrees)[:, 0] > 0.999                       # 1 up to rounding


# --- helpers ------------------------------------------------------------------------------------------------

def _angles(degrees: Tensor | float, image: Tensor) -> Tensor:
    """float32 [B] angles on the device of the image."""
    degrees = torch.as_tensor(degrees, dtype=torch.float32).to(image.device, non_blocking=True)
    return degrees.expand(len(image))


def _uniform(bounds: tuple[float, float], *shape: int) -> Tensor:
    """Uniform draws from torch's global CPU generator."""
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Per-channel constants, [C, 1, 1]."""
    # non_blocking, here and below: a plain copy would wait for the device
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)[:, None, None]


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """One value per image, [B, 1, 1, 1] on the device of the images."""
    return values.to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def _random_jitter(images: Tensor, jitter: float, hue: float, probability: float) -> Tensor:
    """Colour jitter of [B, 3, H, W] with a draw per image."""
    for name, value in (("jitter", jitter), ("hue", hue)):
        if not 0 <= value < inf:
            raise ValueError(f"{name} is {value}; expected a finite number >= 0")
    if jitter <= 0 and hue <= 0:
        return images
    applied = torch.rand(len(images)) < probability
    low, high = max(0.0, 1 - jitter), 1 + jitter
    factors = [torch.where(applied, _uniform((low, high), len(images)), 1.0) for _ in range(3)]
    return adjust_colours(images, *factors, torch.where(applied, _uniform((-hue, hue), len(images)), 0.0))


def _luminance(images: Tensor) -> Tensor:
    """Grey value [B, 1, H, W], ITU-R 601 weights as in torchvision."""
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Add to the hue of HSV; value and saturation stay."""
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    hue = torch.where(value == red, (green - blue) / safe, hue)                           # sixths of a turn
    hue = hue[:, None] + 6 * turns                                                       # [B, 1, H, W]
    k = (hue + torch.arange(5, 0, -2, device=images.device)[:, None, None]) % 6          # red, green, blue
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def check_range(name: str, bounds: tuple[float, float], *, positive: bool = False) -> None:
    """ValueError unless `bounds` are (low, high) with 0 <= low <= high; `positive`: 0 < low."""
    low, high = bounds
    if not (0 <= low <= high < inf) or (positive and low == 0):
        what = "positive" if positive else "finite, not negative"
        raise ValueError(f"{name} is {tuple(bounds)}; expected (low, high), {what}, with low <= high")


def _check_float(image: Tensor) -> None:
    """ValueError unless the values are floating-point numbers."""
    if not image.is_floating_point():
        raise ValueError(f"image is {image.dtype}; expected float in [0, 1]")


def _check_image(image: Tensor, ndims: tuple[int, ...]) -> None:
    """ValueError unless the image is [3, H, W] or [B, 3, H, W], as `ndims` allows."""
    if image.ndim not in ndims or image.shape[-3] != 3:
        expected = " or ".join({3: "[3, H, W]", 4: "[B, 3, H, W]"}[n] for n in ndims)
        raise ValueError(f"image has shape {list(image.shape)}; expected {expected}")
    if 0 in image.shape[-2:]:
        raise ValueError(f"image has shape {list(image.shape)}; expected at least one pixel")
