"""Street scenes: the picture of a town with exact labels.

A scene is a pure function of (style, seed, index).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np

from panolib.data.render.city_shapes import LABEL_ID, Dice
from panolib.data.render.city_styles import Look, Style, style_of
from panolib.data.render.city_town import Town
from panolib.data.render.raster import Light, Point
from panolib.labels import CITYSCAPES, VOID

SUPERSAMPLING = 2  # the image is the mean of 2 x 2 pixels, labels are one of them
SMALLEST = 50 / (256 * 512)  # share of the picture; a smaller instance is part of a group


@dataclass(frozen=True)
class Scene:
    """A rendered image with its exact labels."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    semantic: np.ndarray  # uint8 [H, W], train ids, 255 is void
    instance: np.ndarray  # int32 [H, W], 0 = none, otherwise an id >= 1 that no other object has
    crowd: np.ndarray  # bool [H, W], thing pixels of groups, which are not one object
    label_id: np.ndarray  # uint8 [H, W], of Cityscapes: also tells kinds of void apart (ego vehicle, static)


def render(style: Style | str, *, seed: int, index: int, height: int, width: int) -> Scene:
    """Render one scene.

    `style` is a style or a key of STYLES (else KeyError); with its number, `seed` and `index` determine the
    scene. Every label is exact for the pixel it stands on. Raises ValueError for less than 32 x 32 pixels.
    """
    style = style_of(style)
    if min(height, width) < 32:
        raise ValueError(f"cannot render {height} x {width} pixels; expected at least 32 x 32")
    dice = Dice(seed, style.number, index, 4)
    look = dice.pick(style.photometry)
    light, shadow, develop = _photometry(look, dice)
    size = height * SUPERSAMPLING, width * SUPERSAMPLING
    painting = Town(style, seed, index, *size, shadow).compose().painted()
    noise = np.random.default_rng([seed, style.number, index, 5])
    image = develop(painting.shaded(light, SUPERSAMPLING), noise)
    label_id, instance, crowd = painting.labels(SUPERSAMPLING, LABEL_ID["sky"])
    instance, crowd = _small_as_groups(instance, crowd)
    train_ids = np.full(256, VOID, np.uint8)
    train_ids[list(CITYSCAPES.file_ids)] = np.arange(CITYSCAPES.n_classes)
    return Scene(image, train_ids[label_id], instance, crowd, label_id)


def _small_as_groups(instance: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Instances too small to be predicted become part of a group: neither scored nor learned from."""
    least = SMALLEST * instance.size
    small = np.bincount(instance.ravel()) < least
    small[0] = False
    return np.where(small[instance], 0, instance), crowd | small[instance]


def _photometry(p: Look, dice: Dice) -> tuple[Light, Point | None, Callable]:
    """Light of one scene, how far a shadow falls a metre of height (None where the sun casts none), and the
    camera that turns linear colour into an 8-bit image."""
    angle = dice(0, 2 * math.pi)
    light = Light(
        sun=dice(*p.sun), sun_direction=(math.cos(angle), math.sin(angle)), shadow=dice(*p.shadow),
        fog=dice(*p.fog), fog_colour=dice.pick(p.fog_colour), zenith=dice.pick(p.zenith),
        skyline=dice.pick(p.skyline), clouds=dice(*p.clouds), cloud_shift=dice(0, 20),
    )  # fmt: skip
    names = ("gain", "saturation", "gamma", "vignette", "blur", "noise")
    drawn = {name: dice(*getattr(p, name)) for name in names}
    develop = partial(_develop, cast=p.cast, **drawn)
    elevation, beam = dice(*(p.elevation or (90.0, 90.0))), dice(*p.beam)
    if p.elevation is None:
        return light, None, develop
    reach, (x, z) = -1 / math.tan(math.radians(elevation)), light.sun_direction
    light = replace(light, beam=(beam, 0.96 * beam, 0.86 * beam))  # shade is bluish
    return light, (x * reach, z * reach), develop


def _develop(colour, rng, *, cast, gain, saturation, gamma, vignette, blur, noise) -> np.ndarray:
    """uint8 [H, W, 3] from linear colour [H, W, 3]."""
    height, width = colour.shape[:2]
    grey = colour @ np.array([0.30, 0.59, 0.11], np.float32)
    colour = grey[..., None] + saturation * (colour - grey[..., None])
    rows, columns = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    falloff = 1 - vignette * (rows[:, None] ** 2 + columns[None] ** 2) / 2
    colour *= (gain * falloff)[..., None] * np.array(cast, np.float32)
    sigma = blur * height / 128
    if sigma > 0.15:
        colour = cv2.GaussianBlur(colour, (0, 0), sigma)
    colour = np.clip(colour, 0, 1) ** np.float32(gamma)
    colour += np.float32(noise) * rng.standard_normal(colour.shape, np.float32)
    return np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)
