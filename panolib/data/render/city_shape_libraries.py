"""Shapes that differ from style to style: cars with a profile, trees, fronts of houses, what people carry.

Sizes are metres. Everything is drawn into the group and thing that the caller started, trees excepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from panolib.data.render import city_people, city_roadside, city_vehicles, raster
from panolib.data.render.city_shapes import (
    BLACK,
    LABEL_ID,
    OVAL,
    Dice,
    Face,
    Figure,
    Frame,
    darker,
    faces_us,
    figure_shadow,
    upright_quad,
)
from panolib.data.render.raster import Canvas, Colour, Material, Plane


class Profile(NamedTuple):
    """Side view of a car.

    `bonnet` and `boot` are lengths before and behind the cabin, `nose` is the height of the front edge,
    `slope` are the lengths of windscreen and rear window, `bed` says whether the boot is that of a pick-up.
    """

    length: float
    width: float
    height: float
    belt: float
    nose: float
    bonnet: float
    boot: float
    slope: tuple[float, float]
    taper: float = 0.20
    bed: bool = False


CARS: dict[str, Profile | None] = {
    "box": None,  # city_vehicles.car
    "hatchback": Profile(3.9, 1.72, 1.47, 0.90, 0.70, 0.85, 0.06, (0.85, 0.40)),
    "city car": Profile(3.4, 1.62, 1.52, 0.92, 0.76, 0.62, 0.04, (0.75, 0.22)),
    "saloon": Profile(4.6, 1.80, 1.45, 0.89, 0.70, 1.20, 0.75, (0.85, 0.75)),
    "estate": Profile(4.7, 1.82, 1.49, 0.90, 0.70, 1.20, 0.06, (0.85, 0.35)),
    "people carrier": Profile(4.4, 1.82, 1.66, 0.98, 0.80, 0.75, 0.05, (1.05, 0.30)),
    "off-roader": Profile(4.5, 1.88, 1.72, 1.05, 0.95, 1.00, 0.05, (0.65, 0.30), 0.16),
    "van": Profile(4.9, 1.92, 1.95, 1.10, 0.95, 0.62, 0.03, (0.85, 0.10), 0.10),
    "sedan": Profile(5.1, 1.92, 1.42, 0.88, 0.76, 1.45, 1.05, (0.80, 0.70), 0.26),
    "muscle": Profile(4.9, 1.90, 1.30, 0.86, 0.74, 1.70, 0.55, (0.75, 0.95), 0.28),
    "wagon": Profile(5.0, 1.98, 1.86, 1.12, 1.02, 1.25, 0.05, (0.65, 0.25), 0.16),
    "pick-up": Profile(5.5, 1.96, 1.80, 1.10, 1.02, 1.35, 2.05, (0.65, 0.10), 0.16, True),
    "coupe": Profile(4.2, 1.74, 1.30, 0.84, 0.64, 1.25, 0.35, (0.85, 0.85), 0.26),
}  # fmt: skip


def car(canvas: Canvas, frame: Frame, dice: Dice, palette: Sequence[Colour], kind: str) -> None:
    """A passenger car of a kind of CARS."""
    p = CARS[kind]
    if p is None:
        city_vehicles.car(canvas, frame, dice, palette)
        return
    colour = dice.shade(dice.pick(palette), 0.12)
    paint = Material(colour, raster.STAIN, 0.04, 3.0, gloss=0.10)
    shiny, dark, glass = Material(darker(colour, 1.05), gloss=0.26), Material(BLACK), city_vehicles.GLASS
    w, n = p.width / 2 + 0.05, p.length / 2
    city_vehicles.ground_shadow(canvas, frame, w, n)
    cabin, roof = (-n + p.boot, n - p.bonnet), (-n + p.boot + p.slope[1], n - p.bonnet - p.slope[0])
    tail = p.belt if p.boot > 0.3 else p.belt - 0.02
    inner, top = w - 0.06, w - p.taper
    # Across the car, from behind to the front: (b, y, half width) of each edge.
    outline = [
        (-n + 0.05, 0.22, w - 0.10), (-n, 0.50, w - 0.06), (-n + 0.04, tail, w - 0.08),
        (cabin[0], p.belt, inner),
        (roof[0], p.height, top), (roof[1], p.height, top), (cabin[1], p.belt, inner),
        (n - 0.14, p.nose, w - 0.10), (n, 0.50, w - 0.08), (n - 0.04, 0.22, w - 0.12),
    ]  # fmt: skip
    facets = list(zip(outline, outline[1:], range(9)))
    near_end = city_vehicles.near_end(frame)
    city_vehicles.tyres(canvas, frame, w, near_end * (n - 0.6), 0.20, 0.3, inset=0.12)

    def facet(rear, front, which: int) -> None:
        (b0, y0, _), (b1, y1, _) = rear, front
        backs = which < 4  # seen from behind its first edge is below
        low, high = (rear, front) if backs else (front, rear)
        left, right = (-1, 1) if backs else (1, -1)
        around = (low, left), (low, right), (high, right), (high, left)
        corners = [frame.project(side * a, y, b) for (b, y, a), side in around]
        if not faces_us(corners):
            return
        level = abs(y1 - y0) < 0.35 and abs(b1 - b0) > 0.3
        plane = Plane(level=(y0 + y1) / 2) if level else frame.plane(-w, low[0], w, low[0])
        face = Face(canvas, corners, plane)
        canvas.polygon(corners, dark if p.bed and which == 2 else shiny if level else paint, plane)
        if which in (3, 5):
            face.patch(0.07, 0.93, 0.10, 0.92, glass)
        elif which in (0, 8):
            face.patch(0.0, 1.0, 0.0, 0.75, dark)
        elif which == 1:
            face.pair(0.02, 0.16, 0.45, 0.90, Material((0.62, 0.05, 0.05)))
            face.patch(0.36, 0.64, 0.10, 0.42, Material((0.80, 0.80, 0.76)))
        elif which == 7:
            face.pair(0.03, 0.21, 0.30, 0.90, Material((0.86, 0.87, 0.84), gloss=0.1))
            face.patch(0.26, 0.74, 0.25, 0.85, dark)
            face.patch(0.37, 0.63, 0.0, 0.25, Material((0.80, 0.80, 0.76)))

    for rear, front, which in facets if near_end > 0 else reversed(facets):
        facet(rear, front, which)
    for side in (-1, 1):
        _flank(canvas, frame, side, p, outline, paint, dark, glass)
    city_vehicles.wheels(canvas, frame, w - 0.05, (-n + 0.78, n - 0.82), 0.33)


def _flank(canvas, frame, side, p: Profile, outline, paint, dark, glass) -> None:
    """Side of the body, glass house and wheel arches, if it faces the camera."""
    w = p.width / 2 + 0.05
    test = [frame.project(side * w, y, b * side) for b, y in ((-1, 0.3), (1, 0.3), (1, 0.8), (-1, 0.8))]
    if not faces_us(test):
        return
    plane = frame.plane(side * w, -1, side * w, 1)
    points = [frame.project(side * a, y, b) for b, y, a in (*outline[:4], *outline[6:])]
    canvas.polygon(points, paint, plane, convex=False)
    corners = [frame.project(side * a, y, b) for b, y, a in (outline[i] for i in (3, 6, 5, 4))]
    canvas.polygon(corners, paint, plane)
    face = Face(canvas, corners, plane)
    face.panes(2 if p.length < 4.8 or p.bed else 3, 0.05, 0.95, 0.12, 0.86, glass, gap=0.08)
    rear, front = outline[1][0] + 0.02, outline[8][0] - 0.02
    for y0, y1, tone in (
        (0.22, 0.34, dark),
        (p.belt - 0.20, p.belt - 0.16, Material(darker(paint.colour, 0.8))),
    ):
        band = [(rear, y0), (front, y0), (front, y1), (rear, y1)]
        if y1 < p.nose + 0.1:
            canvas.polygon([frame.project(side * (w - 0.08), y, b) for b, y in band], tone, plane)
    for b in (-p.length / 2 + 0.78, p.length / 2 - 0.82):
        arch = [frame.project(side * (w - 0.06), 0.34 + 0.42 * s, b + 0.42 * c) for c, s in OVAL]
        canvas.polygon(arch, dark, plane)


# ---------------------------------------------------------------------------------- trees


def tree(
    canvas: Canvas, x: float, z: float, height: float, dice: Dice, foliage, level: float, kind: str
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
        city_roadside.crown(canvas, x, z, y + level, height * wide, tall, dice, foliage, 20 if z < 25 else 12)
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


# ---------------------------------------------------------------------------------- fronts of houses


def adorn(canvas: Canvas, kind: str, u: float, a: float, b: float, height: float, dice: Dice, facade) -> None:
    """Add balconies, bays, cornice, parapet, signs or escape to the front of a house.

    `u`, `a`, `b` are those of `city_roadside.house`; the camera of the canvas is that of its street.
    """
    out = -math.copysign(1.0, u)
    pale, dark = Material(dice.shade((0.66, 0.65, 0.62), 0.25)), Material(dice.shade((0.22, 0.22, 0.23), 0.4))
    project, near = canvas.camera.project, max(a, 2.5)

    def slab(s0, s1, y, depth, material) -> None:
        """Seen from below or above: a level quad out of the front."""
        corners = ((u, s0), (u, s1), (u + out * depth, s1), (u + out * depth, s0))
        canvas.polygon([project(v, y, s) for v, s in corners], material, Plane(level=y))

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


# ---------------------------------------------------------------------------------- people


def carry(
    canvas: Canvas, x: float, z: float, dice: Dice, wear: city_people.Cloth, height: float, level: float
) -> None:
    """Something that a person wears or carries: umbrella, hat, rucksack, suitcase or pushchair."""
    figure = Figure(canvas, Frame(canvas.camera, x, z, 0.0), along=False, size=height / 1.75, level=level)
    colour = Material(
        dice.shade(dice.pick(((0.5, 0.1, 0.1), (0.1, 0.12, 0.2), (0.2, 0.2, 0.2), (0.3, 0.35, 0.2))), 0.5)
    )
    kind, side = dice.count(0, 4), dice.pick((-1, 1))
    if kind == 0:
        figure.limb(0.2 * side, 1.1, 0.03, 0.15 * side, 2.05, 0.03, Material(BLACK))
        dome = [
            (0.55 * math.cos(t) + 0.15 * side, 1.92 + 0.32 * math.sin(t))
            for t in (0, 0.5, 1.1, 1.57, 2.0, 2.6, 3.14)
        ]
        figure.shape(dome, colour)
    elif kind == 1:
        figure.limb(-0.15, 1.70, 0.05, 0.15, 1.70, 0.05, colour)
        figure.shape([(-0.10, 1.70), (0.10, 1.70), (0.09, 1.80), (-0.09, 1.80)], colour)
    elif kind == 2:
        figure.shape([(-0.17, 0.98), (0.17, 0.98), (0.18, 1.38), (-0.18, 1.38)], colour, roundness=0.4)
    elif kind == 3:
        figure.shape([(0.32 * side - 0.16, 0.05), (0.32 * side + 0.16, 0.05), (0.32 * side + 0.16, 0.62),
                      (0.32 * side - 0.16, 0.62)], colour)  # fmt: skip
        figure.limb(0.32 * side, 0.6, 0.03, 0.26 * side, 0.95, 0.03, Material(BLACK))
    else:
        for off in (0.40, 0.85):
            figure.disc(off * side, 0.12, 0.12, 0.12, city_vehicles.TYRE)
        figure.shape(
            [(0.32 * side, 0.35), (0.95 * side, 0.30), (0.90 * side, 0.75), (0.42 * side, 0.85)], colour
        )
        figure.limb(0.25 * side, 1.0, 0.04, 0.42 * side, 0.45, 0.04, Material(BLACK))
