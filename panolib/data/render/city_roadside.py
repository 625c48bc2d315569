"""What lines a street, as polygons on a canvas: trees, poles, signs, houses, walls. Sizes are metres.

Kinds of trees and fronts of houses differ from style to style.
"""

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


def tree(
    canvas: Canvas, x: float, z: float, height: float, dice: Dice, foliage: Foliage, level: float, kind: str
) -> None:
    """A tree of a kind: round, column, conifer, palm or bare. The label of a bare crown has no holes."""
    if not canvas.sees(x, z, height / 2):
        return
    canvas.group(raster.OBJECTS, z - 0.3, z + 0.3, x)
    canvas.thing(LABEL_ID["vegetation"])
    figure = Figure(canvas, Frame(canvas.camera, x, z, 0.0), along=False, level=level)
    figure_shadow(canvas, figure.frame, 0.5)
    bark = Material((0.23, 0.19, 0.15), raster.LEAF, 0.3, 20.0)
    leaf = dice.shade(dice.pick(foliage.palette), 0.15)
    leaves = [foliage.surface(darker(leaf, tone)) for tone in (0.62, 0.85, 1.1)]
    if kind in ("round", "column"):
        fork, wide = (dice(0.30, 0.42), dice(0.24, 0.34)) if kind == "round" else (0.16, dice(0.11, 0.15))
        figure.limb(0, 0, 0.36, 0, height * fork + 0.6, 0.22, bark, roundness=0.6)
        y, tall = height * (1 + fork) / 2, height * (1 - fork) / 2 + 0.3
        figure.disc(0, y, 0.55 * height * wide, 0.6 * tall, leaves[0])  # so that no clump hangs alone
        crown(canvas, x, z, y + level, height * wide, tall, dice, foliage, 20 if z < 25 else 12)
    elif kind == "conifer":
        figure.limb(0, 0, 0.3, 0, height * 0.3, 0.2, bark, roundness=0.6)
        for i in range(5):
            low, wide = height * (0.14 + 0.16 * i), height * (0.24 - 0.042 * i)
            points = [(-wide, low), (-wide * 0.3, low - 0.1), (wide * 0.3, low + 0.1), (wide, low)]
            figure.shape(
                [*points, (dice(-0.1, 0.1), low + height * 0.28)], leaves[min(i // 2, 2)], convex=False
            )
    elif kind == "palm":
        bend = dice(-0.6, 0.6)
        figure.limb(0, 0, 0.34, bend * 0.6, height * 0.5, 0.26, bark, roundness=0.6)
        figure.limb(bend * 0.6, height * 0.48, 0.26, bend, height * 0.9, 0.22, bark, roundness=0.6)
        for i in range(11):
            angle, reach = math.pi * (i + dice(-0.3, 0.3)) / 10, height * dice(0.22, 0.30)
            mid = (bend + 0.6 * reach * math.cos(angle), height * 0.9 + 0.35 * reach * math.sin(angle) + 0.2)
            tip = (
                bend + reach * math.cos(angle),
                height * 0.9 + 0.3 * reach * math.sin(angle) - 0.45 * reach,
            )
            figure.limb(bend, height * 0.9, 0.15, *mid, 0.5, leaves[i % 3])
            figure.limb(*mid, 0.5, *tip, 0.05, leaves[i % 3])
    else:
        _bare(figure, height, dice, bark)


def _bare(figure: Figure, height: float, dice: Dice, bark: Material) -> None:
    """A tree in winter: branches over a crown that is labelled as a whole."""
    fork, wide = height * dice(0.25, 0.35), height * dice(0.22, 0.30)
    figure.disc(0, fork + (height - fork) * 0.52, wide, (height - fork) * 0.50, bark, visible=False)
    figure.limb(0, 0, 0.36, 0, fork + 0.3, 0.26, bark, roundness=0.6)
    for i in range(7):
        angle = (i - 3) * 0.26 + dice(-0.1, 0.1)
        long = (height - fork) * dice(0.55, 0.75)
        tip = (long * math.sin(angle), fork + long * math.cos(angle))
        figure.limb(0, fork, 0.20, *tip, 0.06, bark)
        for _ in range(5):
            t, turn, twig = dice(0.3, 1.0), angle + dice(-0.9, 0.9), (height - fork) * dice(0.18, 0.36)
            base = tip[0] * t, fork + (tip[1] - fork) * t
            end = base[0] + twig * math.sin(turn), base[1] + twig * math.cos(turn)
            figure.limb(*base, 0.09, *end, 0.03, bark)


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


def adorn(
    canvas: Canvas, kind: str, u: float, a: float, b: float, height: float, dice: Dice, facade: Facade
) -> None:
    """Add balconies, bays, cornice, parapet, signs or escape to the front of a house.

    `u`, `a`, `b` are those of `house`; the camera of the canvas is that of its street.
    """
    out = -math.copysign(1.0, u)
    pale, dark = Material(dice.shade((0.66, 0.65, 0.62), 0.25)), Material(dice.shade((0.22, 0.22, 0.23), 0.4))
    project, near = canvas.camera.project, max(a, 2.5)

    def slab(s0, s1, y, depth, material) -> None:
        """Seen from below or above: a level quad out of the front."""
        corners = ((u, s0), (u, s1), (u + out * depth, s1), (u + out * depth, s0))
        canvas.polygon([project(v, y, s) for v, s in corners], material, raster.Plane(level=y))

    def box(s0, s1, y0, y1, depth, material) -> None:
        front = u + out * depth
        upright_quad(canvas, u, s0, front, s0, y0, y1, material._replace(colour=darker(material.colour, 0.8)))
        upright_quad(canvas, front, s0, front, s1, y0, y1, material)

    if b - near < 3.0:
        return
    if kind == "balconies":
        n = max(int((b - near) / 5.0), 1)
        for i in range(n):
            s0 = near + (i + 0.25) * (b - near) / n
            for storey in range(1, int(height / 3.1)):
                y = 3.1 * storey + 0.3
                slab(s0, s0 + 2.4, y, 1.1, dark)
                box(s0, s0 + 2.4, y, y + 0.95, 1.1, pale if dice.chance(0.5) else dark)
    elif kind == "bays":
        s0, wide = near + (b - near) * dice(0.2, 0.5), min(3.2, (b - near) / 2)
        colour, windows = dice.shade(dice.pick(facade.palette), 0.1), ((1.3, 3.1), (0.9, 1.7), 3.0)
        wall = Material(colour, raster.PLAIN, 0.0, 3.0, 0.0, *windows, dice(*facade.glass))
        box(s0, s0 + wide, 3.2, height - 0.6, 0.9, wall)
    elif kind == "cornice":
        for y in (3.4, height * 0.55, height - 0.5):
            box(near, b, y, y + 0.35, 0.3, pale)
    elif kind == "parapet":
        box(near, b, height - 0.2, height + 0.9, 0.25, pale)
        if dice.chance(0.4):
            tank = Material(dice.shade((0.40, 0.30, 0.22), 0.3), raster.BRICK, 0.2, 8.0)
            upright_quad(canvas, u - out * 2, near, u - out * 2, near + 2.5, height, height + 3.2, tank)
    elif kind == "signs":
        colour = dice.pick(((0.70, 0.10, 0.10), (0.10, 0.25, 0.60), (0.85, 0.70, 0.15), (0.10, 0.40, 0.25)))
        board = Material(dice.shade(colour, 0.3))
        s0 = dice(near, b - 2.5)
        box(s0, min(s0 + dice(2.5, 6.0), b), 3.0, 3.9, 0.15, board)
        if dice.chance(0.5):
            upright_quad(canvas, u, s0, u + out * 1.1, s0, 4.2, 4.2 + dice(0.8, 3.0), board)
    elif kind == "escape":
        s0 = near + (b - near) * 0.4
        for storey in range(1, int(height / 3.1)):
            y = 3.1 * storey + 0.3
            slab(s0, s0 + 3.0, y, 1.0, dark)
            for rail in (0.5, 1.0):
                box(s0, s0 + 3.0, y + rail, y + rail + 0.07, 1.0, dark)


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
