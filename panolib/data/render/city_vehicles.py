"""Vehicles as polygons on a canvas: cars of a kind of `CARS`, bus, lorry, tram. Sizes are metres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from panolib.data.render.city_shapes import (
    BLACK,
    OVAL,
    ROUND,
    TYRE,
    Dice,
    Face,
    Frame,
    body,
    darker,
    faces_us,
)
from panolib.data.render.raster import STAIN, Canvas, Colour, Material, Plane, facing_plane

_RIM = Material((0.42, 0.43, 0.45))
_GLASS = Material((0.05, 0.06, 0.08), gloss=0.22)
_DARK_GLASS = Material((0.03, 0.035, 0.045), gloss=0.1)


def wheels(canvas: Canvas, frame: Frame, half_width: float, axles: Sequence[float], radius: float) -> None:
    """Wheels on the side that can be seen, and tyres below the near end."""
    for side in (-1, 1):
        a = side * half_width
        plane = frame.plane(a, -1, a, 1)
        for b in axles:
            rim = [frame.project(a, radius + radius * s, b + radius * c) for c, s in ROUND]
            seen = faces_us([rim[0], rim[3], rim[7], rim[10]])
            if seen != (side > 0):
                continue
            canvas.polygon(rim, TYRE, plane)
            if radius * frame.camera.pixels(frame.z) > 4:
                hub = [frame.project(a, radius + 0.55 * radius * s, b + 0.55 * radius * c) for c, s in ROUND]
                canvas.polygon(hub, _RIM, plane)


def tyres(
    canvas: Canvas, frame: Frame, half_width: float, b: float, width: float, height: float, inset=0.0
) -> None:
    """Tyres seen end-on below a body, `inset` from its sides."""
    plane = frame.plane(-half_width, b, half_width, b)
    for side in (-1, 1):
        inner, outer = side * (half_width - inset - width), side * (half_width - inset)
        corners = [(inner, 0.0), (outer, 0.0), (outer, height), (inner, height)]
        canvas.polygon([frame.project(a, y, b) for a, y in corners], TYRE, plane)


def ground_shadow(canvas: Canvas, frame: Frame, half_width: float, half_length: float) -> None:
    w, n = half_width + 0.12, half_length + 0.15
    points = [frame.project(a, 0.0, b) for a, b in ((-w, -n), (w, -n), (w, n), (-w, n))]
    canvas.shadow(points, 1.0)


def near_end(frame: Frame) -> int:
    """-1 if the back of the object is nearer to the camera than its front, else 1."""
    return -1 if math.cos(frame.turn) > 0 else 1


_BOXES = (  # length, width, belt, height, bonnet, boot, roof taper
    (4.0, 1.72, 0.88, 1.48, 0.95, 0.10, 0.20),
    (4.5, 1.80, 0.86, 1.44, 1.15, 0.65, 0.24),
    (4.6, 1.82, 0.88, 1.50, 1.10, 0.08, 0.20),
    (4.5, 1.88, 1.00, 1.70, 1.05, 0.06, 0.18),
    (4.8, 1.92, 1.05, 1.92, 0.85, 0.03, 0.10),
)


def _box_car(canvas: Canvas, frame: Frame, dice: Dice, palette: Sequence[Colour]) -> None:
    """A passenger car of two boxes, one of five body shapes."""
    length, width, belt, height, bonnet, boot, taper = dice.pick(_BOXES)
    colour = dice.shade(dice.pick(palette), 0.12)
    paint = Material(colour, STAIN, 0.04, 3.0, gloss=0.10)
    roof = Material(darker(colour, 1.05), gloss=0.3)
    w, n = width / 2, length / 2
    ground_shadow(canvas, frame, w, n)
    body(canvas, frame, (-w + 0.1, w - 0.1, -n + 0.2, n - 0.2), 0.14, (-w, w, -n, n), 0.34, Material(BLACK))
    tyres(canvas, frame, w - 0.03, near_end(frame) * (n - 0.35), 0.22, 0.36)
    inset = (-w + 0.03, w - 0.03, -n + 0.06, n - 0.12)
    faces = body(canvas, frame, (-w, w, -n, n), 0.30, inset, belt, paint, roof)

    slope_back = 0.28 if boot < 0.3 else 0.55
    cabin = (-w + 0.05, w - 0.05, -n + boot, n - bonnet)
    top = (-w + taper, w - taper, -n + boot + slope_back, n - bonnet - 0.70)
    greenhouse = body(canvas, frame, cabin, belt - 0.01, top, height, paint, roof)
    for name, face in greenhouse.items():
        if name in ("left", "right"):
            face.panes(2, 0.06, 0.94, 0.12, 0.86, _GLASS, gap=0.14)
        else:
            face.patch(0.05, 0.95, 0.08, 0.90, _GLASS)
    if "back" in faces:
        _car_end(faces["back"], Material((0.62, 0.05, 0.05)), tail=True)
    if "front" in faces:
        _car_end(faces["front"], Material((0.86, 0.87, 0.84), gloss=0.1), tail=False)
    for name in ("left", "right"):
        if name in faces:
            faces[name].patch(0.0, 1.0, 0.10, 0.15, Material(darker(colour, 0.55)))
            faces[name].patch(0.495, 0.505, 0.15, 0.95, Material(darker(colour, 0.5)))
    wheels(canvas, frame, w, (-n + 0.75, n - 0.8), 0.32)


def _car_end(face: Face, lamp: Material, *, tail: bool) -> None:
    """Lamps, plate, bumper and grille."""
    face.patch(0.0, 1.0, 0.0, 0.22, Material((0.10, 0.10, 0.11)))
    if tail:
        face.pair(0.03, 0.17, 0.52, 0.80, lamp)
    else:
        face.patch(0.28, 0.72, 0.32, 0.60, Material((0.08, 0.08, 0.09)))
        face.disc(0.14, 0.58, 0.10, 0.15, lamp)
        face.disc(0.86, 0.58, 0.10, 0.15, lamp)
    face.patch(0.36, 0.64, 0.20, 0.36, Material((0.80, 0.80, 0.76)))


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
    "box": None,  # `_box_car`
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
        _box_car(canvas, frame, dice, palette)
        return
    colour = dice.shade(dice.pick(palette), 0.12)
    paint = Material(colour, STAIN, 0.04, 3.0, gloss=0.10)
    shiny, dark = Material(darker(colour, 1.05), gloss=0.26), Material(BLACK)
    w, n = p.width / 2 + 0.05, p.length / 2
    ground_shadow(canvas, frame, w, n)
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
    near = near_end(frame)
    tyres(canvas, frame, w, near * (n - 0.6), 0.20, 0.3, inset=0.12)

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
            face.patch(0.07, 0.93, 0.10, 0.92, _GLASS)
        elif which in (0, 8):
            face.patch(0.0, 1.0, 0.0, 0.75, dark)
        elif which == 1:
            face.pair(0.02, 0.16, 0.45, 0.90, Material((0.62, 0.05, 0.05)))
            face.patch(0.36, 0.64, 0.10, 0.42, Material((0.80, 0.80, 0.76)))
        elif which == 7:
            face.pair(0.03, 0.21, 0.30, 0.90, Material((0.86, 0.87, 0.84), gloss=0.1))
            face.patch(0.26, 0.74, 0.25, 0.85, dark)
            face.patch(0.37, 0.63, 0.0, 0.25, Material((0.80, 0.80, 0.76)))

    for rear, front, which in facets if near > 0 else reversed(facets):
        facet(rear, front, which)
    for side in (-1, 1):
        _flank(canvas, frame, side, p, outline, paint)
    wheels(canvas, frame, w - 0.05, (-n + 0.78, n - 0.82), 0.33)


def _flank(canvas: Canvas, frame: Frame, side: int, p: Profile, outline: list, paint: Material) -> None:
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
    face.panes(2 if p.length < 4.8 or p.bed else 3, 0.05, 0.95, 0.12, 0.86, _GLASS, gap=0.08)
    rear, front, dark = outline[1][0] + 0.02, outline[8][0] - 0.02, Material(BLACK)
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


def bus(canvas: Canvas, frame: Frame, dice: Dice, palette: Sequence[Colour]) -> None:
    """A city bus: window band, doors, large windscreen, line number."""
    length, w, height = dice(9.5, 11.5), 1.26, dice(2.95, 3.2)
    colour = dice.shade(dice.pick(palette), 0.08)
    paint = Material(colour, STAIN, 0.03, 2.0, gloss=0.08)
    n = length / 2
    ground_shadow(canvas, frame, w, n)
    tyres(canvas, frame, w - 0.05, near_end(frame) * (n - 0.5), 0.28, 0.42)
    lid = Material((0.75, 0.76, 0.76))
    faces = body(
        canvas, frame, (-w, w, -n, n), 0.30, (-w + 0.06, w - 0.06, -n + 0.05, n - 0.12), height, paint, lid
    )
    stripe = Material(darker(colour, 0.55))
    for name, face in faces.items():
        if name in ("left", "right"):
            face.patch(0.0, 1.0, 0.0, 0.10, stripe)
            face.patch(0.01, 0.99, 0.38, 0.82, Material(BLACK))
            face.panes(7, 0.015, 0.985, 0.40, 0.80, _GLASS, gap=0.07)
            for s in (0.12, 0.52) if name == "right" else ():
                face.patch(s, s + 0.10, 0.06, 0.80, Material((0.10, 0.11, 0.12), gloss=0.15))
        elif name == "front":
            face.patch(0.04, 0.96, 0.34, 0.86, _GLASS)
            face.patch(0.22, 0.78, 0.88, 0.97, Material((0.10, 0.10, 0.06)))
            face.patch(0.40, 0.60, 0.90, 0.955, Material((0.95, 0.75, 0.20)))
            face.disc(0.13, 0.13, 0.08, 0.035, Material((0.90, 0.90, 0.86)))
            face.disc(0.87, 0.13, 0.08, 0.035, Material((0.90, 0.90, 0.86)))
        else:
            face.patch(0.10, 0.90, 0.50, 0.88, _DARK_GLASS)
            face.patch(0.15, 0.85, 0.16, 0.42, Material(darker(colour, 0.75)))
            face.pair(0.03, 0.10, 0.10, 0.32, Material((0.65, 0.06, 0.05)))
            face.patch(0.42, 0.58, 0.06, 0.11, Material((0.80, 0.80, 0.76)))
    wheels(canvas, frame, w, (-n + 2.4, n - 2.3), 0.46)


def truck(canvas: Canvas, frame: Frame, dice: Dice, palette: Sequence[Colour]) -> None:
    """A lorry: cab with windscreen, separate cargo box (or tarpaulin) on a dark chassis."""
    length, w, height = dice(6.8, 8.8), dice(1.15, 1.25), dice(2.9, 3.6)
    cab_colour, box_colour = dice.shade(dice.pick(palette)), dice.shade(dice.pick(palette))
    n = length / 2
    split = n - 1.9  # the cab is in front of it
    ground_shadow(canvas, frame, w, n)
    body(
        canvas, frame, (-w + 0.2, w - 0.2, -n + 0.2, n - 0.1), 0.40, (-w + 0.1, w - 0.1, -n, n), 0.85,
        Material(BLACK),
    )  # fmt: skip
    tyres(canvas, frame, w - 0.05, near_end(frame) * (n - 0.5), 0.40, 0.75)

    def cab() -> None:
        paint = Material(cab_colour, gloss=0.08)
        faces = body(canvas, frame, (-w + 0.05, w - 0.05, split + 0.1, n), 0.55,
                     (-w + 0.12, w - 0.12, split + 0.15, n - 0.25), 2.65, paint)  # fmt: skip
        if "front" in faces:
            faces["front"].patch(0.06, 0.94, 0.50, 0.90, _GLASS)
            faces["front"].patch(0.18, 0.82, 0.16, 0.40, Material((0.10, 0.10, 0.11)))
            faces["front"].pair(0.02, 0.16, 0.06, 0.18, Material((0.92, 0.92, 0.88)))
        for name in ("left", "right"):
            if name in faces:
                faces[name].patch(0.25, 0.85, 0.52, 0.88, _GLASS)

    def box() -> None:
        paint = Material(box_colour, STAIN, 0.05, 2.0)
        faces = body(canvas, frame, (-w, w, -n, split), 0.80, (-w, w, -n, split), height, paint)
        dark, light = Material(darker(box_colour, 0.6)), Material(darker(box_colour, 1.25))
        for name, face in faces.items():
            face.patch(0, 1, 0, 0.04, dark)
            face.patch(0, 1, 0.96, 1, dark)
            if name == "back":
                face.patch(0.49, 0.51, 0, 1, dark)
                face.pair(0.0, 0.03, 0, 1, dark)
                face.pair(0.04, 0.16, 0.0, 0.06, Material((0.70, 0.06, 0.05)))
            elif name != "front":
                face.patch(0.20, 0.80, 0.35, 0.65, light)

    for part in (cab, box) if near_end(frame) < 0 else (box, cab):
        part()
    wheels(canvas, frame, w, (-n + 1.0, -n + 2.1, n - 1.1), 0.48)


def tram(canvas: Canvas, frame: Frame, dice: Dice, palette: Sequence[Colour]) -> None:
    """A tram: long, smooth, sloped nose, dark window band, pantograph."""
    length, w, height = dice(16.0, 22.0), 1.22, 3.25
    colour = dice.shade(dice.pick(palette), 0.08)
    paint = Material(colour, gloss=0.1)
    pale = Material((0.80, 0.80, 0.76), gloss=0.08)
    n = length / 2
    ground_shadow(canvas, frame, w, n)
    body(
        canvas, frame, (-w + 0.15, w - 0.15, -n + 0.3, n - 0.3), 0.05, (-w, w, -n, n), 0.35, Material(BLACK)
    )
    top = (-w + 0.12, w - 0.12, -n + 0.55, n - 0.55)
    faces = body(canvas, frame, (-w, w, -n, n), 0.28, top, height, paint, Material((0.55, 0.55, 0.56)))
    for name, face in faces.items():
        if name in ("left", "right"):
            face.patch(0, 1, 0.86, 1, pale)
            face.patch(0, 1, 0.42, 0.82, Material(BLACK))
            face.panes(11, 0.02, 0.98, 0.44, 0.80, _GLASS, gap=0.08)
            for s in (0.16, 0.46, 0.76):
                face.patch(s, s + 0.07, 0.05, 0.82, Material((0.13, 0.14, 0.15), gloss=0.15))
        else:
            face.patch(0, 1, 0.88, 1, pale)
            face.patch(0.06, 0.94, 0.36, 0.84, _GLASS)
            face.patch(0.30, 0.70, 0.87, 0.95, Material((0.95, 0.72, 0.20)))
            face.patch(0.46, 0.54, 0.0, 0.36, pale)
            face.disc(0.16, 0.20, 0.07, 0.04, Material((0.92, 0.90, 0.80)))
            face.disc(0.84, 0.20, 0.07, 0.04, Material((0.92, 0.90, 0.80)))
            face.patch(0.10, 0.90, 0.0, 0.08, Material((0.12, 0.12, 0.13)))
    for b in (-0.3, 0.3):
        top, foot = height + 1.1, 2 * b
        rod = (-0.5, height, foot), (0.0, top, 0.0), (0.06, top, 0.0), (-0.42, height, foot)
        points = [frame.project(*corner) for corner in rod]
        canvas.polygon(points, Material((0.20, 0.20, 0.21)), facing_plane(canvas.camera, frame.u, frame.z))
