"""Values of images: to [0, 1] and ImageNet's scale, and photometric noise.

Every random number of this package comes from torch's global CPU generator, so that a caller who seeds it
gets the same draws on every device.
"""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from panolib.data.samples import Sample

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(image: Tensor) -> Tensor:
    """ImageNet-normalised image, float32, of uint8 [..., 3, H, W] in 0..255 or float in [0, 1].

    Raises ValueError for integers other than uint8, whose range nobody knows.
    """
    image = as_unit_float(image)
    return (image - per_channel(IMAGENET_MEAN, image)) / per_channel(IMAGENET_STD, image)


def to_image(sample: Sample) -> Tensor:
    """uint8 Tensor [3, H, W] of the image of a sample."""
    return torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))


def network_input(sample: Sample) -> Tensor:
    """What networks take: the normalised image of a sample, float32 Tensor [1, 3, H, W]."""
    return normalise(to_image(sample)[None])


def denormalise(image: Tensor) -> Tensor:
    """Inverse of `normalise`: float Tensor [..., 3, H, W] with values in [0, 1]."""
    return (image * per_channel(IMAGENET_STD, image) + per_channel(IMAGENET_MEAN, image)).clamp(0, 1)


def as_unit_float(image: Tensor) -> Tensor:
    """float32 image in [0, 1] from uint8 in 0..255; a float image keeps its values. Errors of `normalise`."""
    if image.dtype == torch.uint8:
        return image.float() / 255
    if not image.is_floating_point():
        raise ValueError(f"image is {image.dtype}; expected float in [0, 1]")
    return image.float()


@record_function("crops and noise")
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

    Takes float [B, 3, H, W] or [3, H, W] in [0, 1], or uint8; returns float32 of this shape. Brightness,
    contrast and saturation factors are drawn from U(1 - jitter, 1 + jitter), the hue shift from U(-hue, hue),
    where 0.5 is half a turn. `jitter_probability` and `grayscale` are the shares of images that are jittered
    and that lose their colour. `blur` is the range of the standard deviation of the Gaussian of every image,
    pixels; (0, 0), as None, blurs nothing. Araslanov & Roth 2021, arXiv:2105.00097.
    """
    images = as_unit_float(image if image.ndim == 4 else image[None])
    if blur is not None:
        images = gaussian_blur(images, uniform(blur, len(images)), max_sigma=blur[1])
    images = random_jitter(images, jitter, hue, jitter_probability)
    if grayscale > 0:
        grey = torch.rand(len(images)) < grayscale
        images = torch.where(_per_image(grey, images), _luminance(images), images)
    return images if image.ndim == 4 else images[0]


def adjust_colours(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """Change colours of float images [B, 3, H, W] in [0, 1], with one factor [B] each; 1, 1, 1, 0 are none.

    `hue` is in turns, -0.5 .. 0.5. As torchvision's ``adjust_brightness``, ``_contrast``, ``_saturation`` and
    ``_hue``, in this order.
    """
    contrast, saturation = _per_image(contrast, images), _per_image(saturation, images)
    images = (images * _per_image(brightness, images)).clamp(0, 1)
    mean = _luminance(images).mean((1, 2, 3), keepdim=True)
    images = (mean + contrast * (images - mean)).clamp(0, 1)
    grey = _luminance(images)
    images = (grey + saturation * (images - grey)).clamp(0, 1)
    return _shift_hue(images, _per_image(hue, images))


def gaussian_blur(images: Tensor, sigma: Tensor, *, max_sigma: float) -> Tensor:
    """Gaussian blur of [B, C, H, W] with one standard deviation per image and repeated edge pixels.

    `sigma` [B], pixels, is 0 .. `max_sigma`; 0 leaves an image as it is, the kernel reaches 3 `max_sigma`.
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


def random_jitter(images: Tensor, jitter: float, hue: float, probability: float) -> Tensor:
    """Colour jitter of [B, 3, H, W] with a draw per image."""
    if jitter <= 0 and hue <= 0:
        return images
    applied = torch.rand(len(images)) < probability
    low, high = max(0.0, 1 - jitter), 1 + jitter
    factors = [torch.where(applied, uniform((low, high), len(images)), 1.0) for _ in range(3)]
    return adjust_colours(images, *factors, torch.where(applied, uniform((-hue, hue), len(images)), 0.0))


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


def uniform(bounds: tuple[float, float], *shape: int) -> Tensor:
    """Uniform draws from torch's global CPU generator."""
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape)


def per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Per-channel constants, [C, 1, 1]."""
    # non_blocking, here and below: a plain copy would wait for the device
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)[:, None, None]


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """One value per image, [B, 1, 1, 1] on the device of the images."""
    return values.to(images.device, non_blocking=True).view(-1, 1, 1, 1)
