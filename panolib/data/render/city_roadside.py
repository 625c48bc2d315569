"""What lines a street, as polygons on a canvas: trees, poles, signs, houses, walls. Sizes are metres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from panolib.data.render import raster
from panolib.data.render.city_shapes import LABEL_ID, Dice, Figure, Frame, darker, figure_shadow, upright_quad
from panolib.data.render.city_streets import KERB
from panolib.data.render.raster import Canvas, Colour, Material, facing_plane, upright_plane


@lru_cache(maxsize=1)
def _clumps() -> np.ndarray:
    """float64 [8, 12, 2]: ragged outlines of about unit radius."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radii = np.random.default_rng(7).uniform(0.72, 1.15, (8, 12))
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=-1)


@dataclass(frozen=True)
class Foliage:
    """How leaves look: colours, contrast, size of the texture."""

    palette: tuple[Colour, ...]
    amplitude: float
    density: float

    def surface(self, colour: Colour) -> Material:
        return Material(colour, raster.LEAF, self.amplitude, self.density)


def crown(canvas: Canvas, u, z, y, rx, ry, dice: Dice, foliage: Foliage, n_clumps: int) -> None:
    """Clumps of leaves within an ellipse around (u, y); lower ones are darker."""
    camera = canvas.camera
    colour = dice.shade(dice.pick(foliage.palette), 0.15)
    plane = facing_plane(camera, u - rx, z)
    leaves = [foliage.surface(darker(colour, tone)) for tone in (0.62, 0.8, 1.0, 1.18)]
    draws = np.array([[dice(), dice(), dice(), dice()] for _ in range(n_clumps)])
    angle, radius = 2 * np.pi * draws[:, 0], np.sqrt(draws[:, 1])
    up = np.sort(radius * np.cos(angle))  # bottom first, so that the lighter top lies over it
    centres = 0.8 * np.stack([radius * np.sin(angle), -up], axis=-1)
    outlines = _clumps()[(draws[:, 2] * 8).astype(int)] * (0.34 + 0.2 * draws[:, 3])[:, None, None]
    shapes = (centres[:, None] + outlines) * (np.array([rx, ry]) * camera.pixels(z)) + camera.project(u, y, z)
    for points, tone in zip(shapes.tolist(), ((up + 1.2) * 1.7).astype(int).clip(0, 3).tolist()):
        canvas.polygon(points, leaves[tone], plane, convex=False)


def bush(canvas: Canvas, x: float, z: float, height: float, dice: Dice, foliage: Foliage) -> None:
    """One bush of a hedge."""
    if z > 2.0 and canvas.sees(x, z, 1.5):
        canvas.group(raster.OBJECTS, z - 0.7, z + 0.7, x)
        canvas.thing(LABEL_ID["vegetation"])
        crown(canvas, x, z, height * 0.45, dice(0.9, 1.5), height * dice(0.55, 0.75), dice, foliage, 5)


def _stand(canvas: Canvas, u: float, z: float, *labels: str, radius: float = 0.1):
    """(figure to draw an object on a kerb, number of each of its labels, of which the last is set)."""
    canvas.group(raster.OBJECTS, z - radius, z + radius, u)
    things = [canvas.thing(LABEL_ID[label]) for label in labels]
    return Figure(canvas, Frame(canvas.camera, u, z, 0.0), along=False, level=KERB), *things


def _steel(dice: Dice) -> Material:
    return Material(dice.shade((0.30, 0.31, 0.31), 0.3))


def lamp_post(canvas: Canvas, u: float, z: float, dice: Dice) -> None:
    """A street lamp whose arm reaches over the road."""
    if not canvas.sees(u, z, 3.0):
        return
    figure, _ = _stand(canvas, u, z, "pole")
    steel, height = _steel(dice), dice(5.5, 8.0)
    figure.limb(0, 0, 0.22, 0, height, 0.13, steel, roundness=0.7)
    reach = -math.copysign(dice(1.0, 2.0), u)
    figure.limb(0, height - 0.05, 0.10, reach, height + 0.3, 0.09, steel)
    lamp = Material((0.62, 0.62, 0.58))
    figure.limb(reach * 0.85, height + 0.24, 0.20, reach * 1.35, height + 0.34, 0.14, lamp)


def bollard(canvas: Canvas, u: float, z: float, dice: Dice) -> None:
    """A short post at the kerb."""
    steel = _steel(dice)
    if canvas.sees(u, z, 0.5):
        figure, _ = _stand(canvas, u, z, "pole")
        figure.limb(0, 0, 0.16, 0, 0.95, 0.14, steel, roundness=0.7)


def traffic_light(canvas: Canvas, u: float, z: float, dice: Dice) -> None:
    """A signal on a pole; sometimes a second one on an arm over the road."""
    if not canvas.sees(u, z, 4.0):
        return
    figure, pole, light = _stand(canvas, u, z, "pole", "traffic light")
    steel = _steel(dice)
    reach = -math.copysign(dice(2.0, 3.2), u) if dice.chance(0.4) else 0.0
    figure.limb(0, 0, 0.17, 0, 5.4 if reach else 3.5, 0.14, steel, roundness=0.7, thing=pole)
    if reach:
        figure.limb(0, 5.3, 0.12, reach, 5.4, 0.10, steel, thing=pole)
    state = dice.count(0, 2)
    lamps = ((0.95, 0.15, 0.10), (0.98, 0.70, 0.15), (0.20, 0.90, 0.55))
    for x, y in ((0.0, 3.0), (reach, 5.2)) if reach else ((0.0, 3.0),):
        figure.shape([(x - 0.25, y - 0.62), (x + 0.25, y - 0.62), (x + 0.25, y + 0.62), (x - 0.25, y + 0.62)],
                     Material((0.06, 0.07, 0.06)), thing=light)  # fmt: skip
        for i, lamp in enumerate(lamps):
            colour = lamp if i == state else darker(lamp, 0.16)
            figure.disc(x, y + 0.38 - 0.38 * i, 0.15, 0.15, Material(colour), thing=light)


def traffic_sign(canvas: Canvas, u: float, z: float, dice: Dice) -> None:
    """One or two signs on a pole: warning, prohibition, direction, parking, stop, or the back of one."""
    if not canvas.sees(u, z, 1.0):
        return
    figure, pole, sign = _stand(canvas, u, z, "pole", "traffic sign")
    y = dice(2.3, 2.7)
    figure.limb(0, 0, 0.11, 0, y + 0.2, 0.10, _steel(dice), roundness=0.6, thing=pole)
    white, red = Material((0.90, 0.90, 0.88)), Material((0.78, 0.08, 0.08))
    blue = Material((0.08, 0.24, 0.62))
    for _ in range(dice.count(1, 2)):
        kind, r = dice.count(0, 5), 0.42
        if kind == 0:
            for scale, material in ((1.0, red), (0.66, white)):
                low = y - 0.65 * r * scale
                corners = [(0.0, y + r * scale), (-r * scale, low), (r * scale, low)]
                figure.shape(corners, material, thing=sign)
        elif kind in (1, 2):
            for scale, material in ((1.0, red), (0.7, white if kind == 1 else blue)):
                figure.disc(0, y, r * scale, r * scale, material, thing=sign)
        else:
            material = (blue, Material((0.90, 0.74, 0.10)), Material((0.45, 0.46, 0.47)))[kind - 3]
            w = r * (1.5 if kind == 4 else 0.9)
            board = [(-w, y - r * 0.8), (w, y - r * 0.8), (w, y + r * 0.8), (-w, y + r * 0.8)]
            figure.shape(board, material, thing=sign)
            if kind != 5:
                figure.limb(-w * 0.5, y, r * 0.4, w * 0.5, y, r * 0.4, white, thing=sign)
        y -= 0.85


def litter_bin(canvas: Canvas, u: float, z: float, dice: Dice) -> None:
    """A bin or an advertising column: "static", so void."""
    if not canvas.sees(u, z, 1.0):
        return
    figure, _ = _stand(canvas, u, z, "static", radius=0.3)
    figure_shadow(canvas, figure.frame, 0.5)
    colour = dice.pick(((0.16, 0.30, 0.18), (0.35, 0.33, 0.10), (0.22, 0.22, 0.24)))
    if dice.chance(0.25):
        poster = Material(dice.shade((0.5, 0.42, 0.30), 0.4), raster.STAIN, 0.5, 30.0)
        figure.limb(0, 0, 1.2, 0, 2.9, 1.2, poster, roundness=0.7)
        figure.limb(0, 2.9, 1.4, 0, 3.1, 1.2, Material((0.15, 0.22, 0.18)))
    else:
        figure.limb(0, 0.05, 0.55, 0, 1.0, 0.65, Material(colour, raster.STAIN, 0.1, 20.0), roundness=0.5)
        figure.limb(0, 1.0, 0.70, 0, 1.12, 0.60, Material(darker(colour, 0.6)))


@dataclass(frozen=True)
class Facade:
    """How houses look in one style: colours of plaster, texture and window proportions (metres)."""

    palette: tuple[Colour, ...]
    roofs: tuple[Colour, ...]
    textures: tuple[int, ...]
    amplitude: float
    density: float
    window_step: tuple[float, float]
    window_share: tuple[float, float]
    glass: tuple[float, float]


def house(
    canvas: Canvas, u: float, z0: float, z1: float, height: float, dice: Dice, facade: Facade, deep: float
) -> None:
    """A house along the road from z0 to z1 whose front is `u` metres aside; it reaches `deep` metres back."""
    camera = canvas.camera
    side = math.copysign(1.0, u)
    back = u + side * deep
    colour = dice.shade(dice.pick(facade.palette), 0.14)
    step = (dice(*facade.window_step), dice(2.9, 3.3))
    size = (step[0] * dice(*facade.window_share), step[1] * dice(0.48, 0.60))
    base = dice(3.3, 4.0) if dice.chance(0.6) else 0.0
    wall = Material(colour, dice.pick(facade.textures), facade.amplitude, facade.density, 0.0,
                    step, size, base, dice(*facade.glass))  # fmt: skip
    canvas.group(raster.OBJECTS, z0, z1, u)
    canvas.thing(LABEL_ID["building"])

    quad = partial(upright_quad, canvas)
    roof = Material(dice.shade(dice.pick(facade.roofs), 0.15), raster.BRICK, 0.25, 8.0)
    ridge = height + dice(1.5, 3.0)
    if dice.chance(0.75):
        eaves, middle = u - side * 0.2, u + side * 3.5
        slope = ((eaves, height, z0), (eaves, height, z1), (middle, ridge, z1), (middle, ridge, z0))
        gable = ((u, height, z0), (middle, ridge, z0), (u + side * 7.0, height, z0))
        end = upright_plane(camera, u, z0, back, z0)
        canvas.polygon([camera.project(*c) for c in gable], wall._replace(window_step=(0.0, 0.0)), end)
        canvas.polygon([camera.project(*c) for c in slope], roof, upright_plane(camera, u, z0, u, z1))
    quad(u, z0, back, z0, 0.0, height, wall)  # the end wall looks at the camera
    front = upright_plane(camera, u, z0, u, z1)
    quad(u, z0, u, z1, 0.0, height, wall, front)
    trim = Material(darker(colour, 1.2))
    quad(u, z0, u, z1, height - 0.35, height, trim, front)
    if base:
        shop = Material(darker(dice.shade(dice.pick(facade.palette), 0.3), 0.75), raster.STAIN, 0.1, 4.0, 0.0,
                        (dice(2.6, 4.0), 3.2), (dice(1.8, 2.4), 2.3), 0.35, dice(*facade.glass))  # fmt: skip
        quad(u, z0, u, z1, 0.0, base - 0.3, shop, front)
        quad(u, z0, back, z0, 0.0, base - 0.3, shop)
        quad(u, z0, u, z1, base - 0.3, base, trim, front)
        if dice.chance(0.4) and z1 - z0 > 5:
            start = dice(z0 + 0.5, z1 - 4.0)
            awning = Material(
                dice.shade(dice.pick(((0.55, 0.12, 0.12), (0.12, 0.30, 0.22), (0.75, 0.70, 0.58))), 0.2)
            )
            out = u - side * 1.1
            stop = start + 3.5
            corners = ((u, 3.0, start), (u, 3.0, stop), (out, 2.4, stop), (out, 2.4, start))
            canvas.polygon([camera.project(*c) for c in corners], awning, front)


def boundary_wall(canvas: Canvas, u, z0, z1, height, dice: Dice, material: Material) -> None:
    """A free-standing wall along the road."""
    canvas.group(raster.OBJECTS, z0, z1 - 0.01, u)
    canvas.thing(LABEL_ID["wall"])
    coping = Material(darker(material.colour, 1.25))
    for y0, surface in ((0.0, material), (height - 0.15, coping)):
        upright_quad(canvas, u, z0, u, z1, y0, height, surface)


def fence(canvas: Canvas, u, z0, z1, height, dice: Dice, colour: Colour, *, boards: bool) -> None:
    """A fence along the road; between its bars one sees through, its label has no holes."""
    canvas.group(raster.OBJECTS, z0, z1 - 0.01, u)
    canvas.thing(LABEL_ID["fence"])
    plane = upright_plane(canvas.camera, u, z0, u, z1)
    material = Material(colour, raster.STAIN, 0.15, 6.0)

    def quad(za, zb, y0, y1, **options) -> None:
        upright_quad(canvas, u, za, u, zb, y0, y1, material, plane, **options)

    quad(z0, z1, 0.0, height, visible=False)
    for y in (0.15, height - 0.12):
        quad(z0, z1, y, y + 0.10)
    step, width = (0.34, 0.24) if boards else (0.42, 0.10)
    z = max(z0, 2.0)
    while z < min(z1, 32.0):
        quad(z, z + width, 0.0, height)
        z += step * max(z / 8, 1.0)
    if z1 > 32.0:
        quad(max(z0, 32.0), z1, 0.0, height)
