"""Things of a street as polygons on a canvas: vehicles, people, two-wheelers, trees, houses, poles.

Every function draws one object at (u, z), metres right of and ahead of the camera along the road's axis.
Sizes are metres. `turn` is the heading in radians: 0 drives away from the camera, pi towards it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from panolib.data.raster import (
    BRICK,
    HOUSES,
    LEAF,
    OBJECTS,
    STAIN,
    Camera,
    Canvas,
    Colour,
    Material,
    Plane,
    Point,
    facing_plane,
    level_plane,
    upright_plane,
)
from panolib.labels import CITYSCAPES

# Label ids of the official files; the void kinds exist only there.
LABEL_ID = dict(zip(CITYSCAPES.classes, CITYSCAPES.file_ids)) | {"ego vehicle": 1, "static": 4}

_ROUND = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 14, endpoint=False)]
_OVAL = _ROUND[::2]
_BLACK: Colour = (0.04, 0.04, 0.045)
_TYRE = Material((0.045, 0.045, 0.05))
_RIM = Material((0.42, 0.43, 0.45))
_GLASS = Material((0.05, 0.06, 0.08), gloss=0.22)
_DARK_GLASS = Material((0.03, 0.035, 0.045), gloss=0.1)
_SKIN = ((0.86, 0.66, 0.54), (0.72, 0.52, 0.40), (0.50, 0.34, 0.25), (0.34, 0.23, 0.17))
_HAIR = ((0.07, 0.05, 0.04), (0.18, 0.11, 0.07), (0.45, 0.33, 0.18), (0.42, 0.41, 0.40))


class Dice:
    """Uniform draws, taken from a numpy Generator in blocks (single draws are slow)."""

    def __init__(self, *entropy: int):
        self._rng = np.random.default_rng(entropy)
        self._values: list[float] = []

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        if not self._values:
            self._values = self._rng.random(2048).tolist()
        return low + (high - low) * self._values.pop()

    def chance(self, probability: float) -> bool:
        return self() < probability

    def count(self, low: int, high: int) -> int:
        """Whole number from low to high, both included."""
        return low + int(self() * (high - low + 1))

    def pick(self, items: Sequence):
        return items[int(self() * len(items))]

    def shade(self, colour: Colour, spread: float = 0.1) -> Colour:
        """A lighter or darker variant."""
        factor = self(1 - spread, 1 + spread)
        return tuple(min(max(c * factor, 0.0), 1.0) for c in colour)


def darker(colour: Colour, factor: float) -> Colour:
    return tuple(min(c * factor, 1.0) for c in colour)


# ---------------------------------------------------------------------------------- solid bodies


class Frame:
    """Axes of an object: a to its right, y up, b forward."""

    def __init__(self, camera: Camera, u: float, z: float, turn: float):
        self.camera, self.u, self.z, self.turn = camera, u, z, turn
        self._cos, self._sin = math.cos(turn), math.sin(turn)

    def ground(self, a: float, b: float) -> Point:
        """(u, z) of a point of the object."""
        return self.u + a * self._cos + b * self._sin, self.z - a * self._sin + b * self._cos

    def project(self, a: float, y: float, b: float) -> Point:
        cos, sin = self._cos, self._sin
        return self.camera.project(self.u + a * cos + b * sin, y, self.z - a * sin + b * cos)

    def plane(self, a0: float, b0: float, a1: float, b1: float) -> Plane:
        return upright_plane(self.camera, *self.ground(a0, b0), *self.ground(a1, b1))

    def span(self, half_width: float, half_length: float) -> tuple[float, float, float]:
        """(near, far, aside) of the footprint, for the painting order."""
        corners = [self.ground(a, b) for a in (-half_width, half_width) for b in (-half_length, half_length)]
        us, zs = [u for u, _ in corners], [z for _, z in corners]
        aside = 0.0 if min(us) < 0 < max(us) else min(abs(u) for u in us)
        return min(zs), max(zs), aside


class Face:
    """One side of a body: a quad with coordinates s (left to right seen from outside) and t (up), 0 .. 1."""

    def __init__(self, canvas: Canvas, corners: list[Point], plane: Plane):
        self.canvas, self.corners, self.plane = canvas, corners, plane

    def at(self, s: float, t: float) -> Point:
        (x0, y0), (x1, y1), (x2, y2), (x3, y3) = self.corners
        w0, w1, w2, w3 = (1 - s) * (1 - t), s * (1 - t), s * t, (1 - s) * t
        return w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3, w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3

    def patch(self, s0: float, s1: float, t0: float, t1: float, material: Material) -> None:
        points = [self.at(s0, t0), self.at(s1, t0), self.at(s1, t1), self.at(s0, t1)]
        self.canvas.polygon(points, material, self.plane)

    def panes(self, n: int, s0: float, s1: float, t0: float, t1: float, material: Material, gap=0.1) -> None:
        """A row of n windows."""
        step = (s1 - s0) / n
        for i in range(n):
            self.patch(s0 + (i + gap / 2) * step, s0 + (i + 1 - gap / 2) * step, t0, t1, material)

    def disc(self, s: float, t: float, rs: float, rt: float, material: Material) -> None:
        self.canvas.polygon([self.at(s + rs * c, t + rt * d) for c, d in _OVAL], material, self.plane)


Rectangle = tuple[float, float, float, float]  # a0, a1, b0, b1


def body(
    canvas: Canvas,
    frame: Frame,
    bottom: Rectangle,
    y0: float,
    top: Rectangle,
    y1: float,
    material: Material,
    lid: Material | None = None,
) -> dict[str, Face]:
    """Draw a solid between two level rectangles; the faces that can be seen, by name (front, back, ...)."""
    rings = []
    for (a0, a1, b0, b1), y in ((bottom, y0), (top, y1)):
        rings.append([(a0, y, b0), (a1, y, b0), (a1, y, b1), (a0, y, b1)])
    low, high = ([frame.project(*corner) for corner in ring] for ring in rings)
    faces = {}
    for i, name in enumerate(("back", "right", "front", "left")):
        j = (i + 1) % 4
        corners = [low[i], low[j], high[j], high[i]]
        if _faces_us(corners):
            (a0, _, b0), (a1, _, b1) = rings[0][i], rings[0][j]
            faces[name] = Face(canvas, corners, frame.plane(a0, b0, a1, b1))
    if _faces_us(high):
        canvas.polygon(high, lid or material, level_plane(y1))
    for face in faces.values():
        canvas.polygon(face.corners, material, face.plane)
    return faces


def _faces_us(corners: list[Point]) -> bool:
    """Whether a quad, counter-clockwise seen from outside, shows its outside."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    return (x2 - x0) * (y3 - y1) - (x3 - x1) * (y2 - y0) < 0


def _wheels(canvas: Canvas, frame: Frame, half_width: float, axles: Sequence[float], radius: float) -> None:
    """Wheels on the side that can be seen, and tyres below the near end."""
    for side in (-1, 1):
        a = side * half_width
        plane = frame.plane(a, -1, a, 1)
        for b in axles:
            rim = [frame.project(a, radius + radius * s, b + radius * c) for c, s in _ROUND]
            seen = _faces_us([rim[0], rim[3], rim[7], rim[10]])
            if seen != (side > 0):
                continue
            canvas.polygon(rim, _TYRE, plane)
            if radius * frame.camera.pixels(frame.z) > 4:
                hub = [frame.project(a, radius + 0.55 * radius * s, b + 0.55 * radius * c) for c, s in _ROUND]
                canvas.polygon(hub, _RIM, plane)


def _tyres(canvas: Canvas, frame: Frame, half_width: float, b: float, width: float, height: float) -> None:
    """Tyres seen end-on below a body."""
    plane = frame.plane(-half_width, b, half_width, b)
    for side in (-1, 1):
        inner, outer = side * (half_width - width), side * half_width
        corners = [(inner, 0.0), (outer, 0.0), (outer, height), (inner, height)]
        canvas.polygon([frame.project(a, y, b) for a, y in corners], _TYRE, plane)


def _ground_shadow(canvas: Canvas, frame: Frame, half_width: float, half_length: float) -> None:
    w, n = half_width + 0.12, half_length + 0.15
    points = [frame.project(a, 0.0, b) for a, b in ((-w, -n), (w, -n), (w, n), (-w, n))]
    canvas.shadow(points, 1.0)


def _near_end(frame: Frame) -> int:
    """-1 if the back of the object is nearer to the camera than its front, else 1."""
    return -1 if math.cos(frame.turn) > 0 else 1


CAR_SHAPES = (  # length, width, belt, height, bonnet, boot, roof taper
    (4.0, 1.72, 0.88, 1.48, 0.95, 0.10, 0.20),
    (4.5, 1.80, 0.86, 1.44, 1.15, 0.65, 0.24),
    (4.6, 1.82, 0.88, 1.50, 1.10, 0.08, 0.20),
    (4.5, 1.88, 1.00, 1.70, 1.05, 0.06, 0.18),
    (4.8, 1.92, 1.05, 1.92, 0.85, 0.03, 0.10),
)


def car(canvas: Canvas, u: float, z: float, turn: float, dice: Dice, palette: Sequence[Colour]) -> None:
    """A passenger car, one of five body shapes."""
    length, width, belt, height, bonnet, boot, taper = dice.pick(CAR_SHAPES)
    colour = dice.shade(dice.pick(palette), 0.12)
    paint = Material(colour, STAIN, 0.04, 3.0, gloss=0.10)
    roof = Material(darker(colour, 1.05), gloss=0.3)
    frame = Frame(canvas.camera, u, z, turn)
    w, n = width / 2, length / 2
    _ground_shadow(canvas, frame, w, n)
    body(canvas, frame, (-w + 0.1, w - 0.1, -n + 0.2, n - 0.2), 0.14, (-w, w, -n, n), 0.34, Material(_BLACK))
    _tyres(canvas, frame, w - 0.03, _near_end(frame) * (n - 0.35), 0.22, 0.36)
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
    _wheels(canvas, frame, w, (-n + 0.75, n - 0.8), 0.32)


def _car_end(face: Face, lamp: Material, *, tail: bool) -> None:
    """Lamps, plate, bumper and grille."""
    face.patch(0.0, 1.0, 0.0, 0.22, Material((0.10, 0.10, 0.11)))
    if tail:
        face.patch(0.03, 0.17, 0.52, 0.80, lamp)
        face.patch(0.83, 0.97, 0.52, 0.80, lamp)
    else:
        face.patch(0.28, 0.72, 0.32, 0.60, Material((0.08, 0.08, 0.09)))
        face.disc(0.14, 0.58, 0.10, 0.15, lamp)
        face.disc(0.86, 0.58, 0.10, 0.15, lamp)
    face.patch(0.36, 0.64, 0.20, 0.36, Material((0.80, 0.80, 0.76)))


def bus(canvas: Canvas, u: float, z: float, turn: float, dice: Dice, palette: Sequence[Colour]) -> None:
    """A city bus: window band, doors, large windscreen, line number."""
    length, w, height = dice(9.5, 11.5), 1.26, dice(2.95, 3.2)
    colour = dice.shade(dice.pick(palette), 0.08)
    paint = Material(colour, STAIN, 0.03, 2.0, gloss=0.08)
    frame = Frame(canvas.camera, u, z, turn)
    n = length / 2
    _ground_shadow(canvas, frame, w, n)
    _tyres(canvas, frame, w - 0.05, _near_end(frame) * (n - 0.5), 0.28, 0.42)
    lid = Material((0.75, 0.76, 0.76))
    faces = body(
        canvas, frame, (-w, w, -n, n), 0.30, (-w + 0.06, w - 0.06, -n + 0.05, n - 0.12), height, paint, lid
    )
    stripe = Material(darker(colour, 0.55))
    for name, face in faces.items():
        if name in ("left", "right"):
            face.patch(0.0, 1.0, 0.0, 0.10, stripe)
            face.patch(0.01, 0.99, 0.38, 0.82, Material(_BLACK))
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
            face.patch(0.03, 0.10, 0.10, 0.32, Material((0.65, 0.06, 0.05)))
            face.patch(0.90, 0.97, 0.10, 0.32, Material((0.65, 0.06, 0.05)))
            face.patch(0.42, 0.58, 0.06, 0.11, Material((0.80, 0.80, 0.76)))
    _wheels(canvas, frame, w, (-n + 2.4, n - 2.3), 0.46)


def truck(canvas: Canvas, u: float, z: float, turn: float, dice: Dice, palette: Sequence[Colour]) -> None:
    """A lorry: cab with windscreen, separate cargo box (or tarpaulin) on a dark chassis."""
    length, w, height = dice(6.8, 8.8), dice(1.15, 1.25), dice(2.9, 3.6)
    cab_colour, box_colour = dice.shade(dice.pick(palette)), dice.shade(dice.pick(palette))
    frame = Frame(canvas.camera, u, z, turn)
    n = length / 2
    split = n - 1.9  # the cab is in front of it
    _ground_shadow(canvas, frame, w, n)
    body(
        canvas,
        frame,
        (-w + 0.2, w - 0.2, -n + 0.2, n - 0.1),
        0.40,
        (-w + 0.1, w - 0.1, -n, n),
        0.85,
        Material(_BLACK),
    )
    _tyres(canvas, frame, w - 0.05, _near_end(frame) * (n - 0.5), 0.40, 0.75)

    def cab() -> None:
        paint = Material(cab_colour, gloss=0.08)
        faces = body(canvas, frame, (-w + 0.05, w - 0.05, split + 0.1, n), 0.55,
                     (-w + 0.12, w - 0.12, split + 0.15, n - 0.25), 2.65, paint)  # fmt: skip
        if "front" in faces:
            faces["front"].patch(0.06, 0.94, 0.50, 0.90, _GLASS)
            faces["front"].patch(0.18, 0.82, 0.16, 0.40, Material((0.10, 0.10, 0.11)))
            faces["front"].patch(0.02, 0.16, 0.06, 0.18, Material((0.92, 0.92, 0.88)))
            faces["front"].patch(0.84, 0.98, 0.06, 0.18, Material((0.92, 0.92, 0.88)))
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
                face.patch(0.0, 0.03, 0, 1, dark)
                face.patch(0.97, 1.0, 0, 1, dark)
                face.patch(0.04, 0.16, 0.0, 0.06, Material((0.70, 0.06, 0.05)))
                face.patch(0.84, 0.96, 0.0, 0.06, Material((0.70, 0.06, 0.05)))
            elif name != "front":
                face.patch(0.20, 0.80, 0.35, 0.65, light)

    for part in (cab, box) if _near_end(frame) < 0 else (box, cab):
        part()
    _wheels(canvas, frame, w, (-n + 1.0, -n + 2.1, n - 1.1), 0.48)


def tram(canvas: Canvas, u: float, z: float, turn: float, dice: Dice, palette: Sequence[Colour]) -> None:
    """A tram: long, smooth, sloped nose, dark window band, pantograph."""
    length, w, height = dice(16.0, 22.0), 1.22, 3.25
    colour = dice.shade(dice.pick(palette), 0.08)
    paint = Material(colour, gloss=0.1)
    pale = Material((0.80, 0.80, 0.76), gloss=0.08)
    frame = Frame(canvas.camera, u, z, turn)
    n = length / 2
    _ground_shadow(canvas, frame, w, n)
    body(
        canvas, frame, (-w + 0.15, w - 0.15, -n + 0.3, n - 0.3), 0.05, (-w, w, -n, n), 0.35, Material(_BLACK)
    )
    top = (-w + 0.12, w - 0.12, -n + 0.55, n - 0.55)
    faces = body(canvas, frame, (-w, w, -n, n), 0.28, top, height, paint, Material((0.55, 0.55, 0.56)))
    for name, face in faces.items():
        if name in ("left", "right"):
            face.patch(0, 1, 0.86, 1, pale)
            face.patch(0, 1, 0.42, 0.82, Material(_BLACK))
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
        rods = [
            (-0.5, height, b * 2),
            (0.0, height + 1.1, 0.0),
            (0.06, height + 1.1, 0.0),
            (-0.42, height, b * 2),
        ]
        canvas.polygon(
            [frame.project(*p) for p in rods], Material((0.20, 0.20, 0.21)), facing_plane(canvas.camera, u, z)
        )


# ---------------------------------------------------------------------------------- people, two-wheelers


@dataclass(frozen=True)
class Cloth:
    """Colours of one person."""

    skin: Colour
    hair: Colour
    top: Material
    trousers: Material
    shoes: Material


def cloth(dice: Dice, palette: Sequence[Colour]) -> Cloth:
    top, trousers = dice.shade(dice.pick(palette), 0.2), dice.shade(dice.pick(palette), 0.2)
    if dice.chance(0.55):
        trousers = dice.pick(((0.10, 0.12, 0.18), (0.07, 0.07, 0.08), (0.24, 0.22, 0.19)))
    return Cloth(
        dice.shade(dice.pick(_SKIN)),
        dice.pick(_HAIR),
        Material(top, STAIN, 0.16, 45.0),
        Material(trousers, STAIN, 0.14, 45.0),
        Material(dice.shade((0.12, 0.10, 0.09), 0.5)),
    )


class _Figure:
    """Draws in an upright plane: x to the right and y up, metres from a point of the ground, times `size`."""

    def __init__(self, canvas: Canvas, frame: Frame, along: bool, size: float = 1.0, level: float = 0.0):
        self.canvas, self.size, self.level = canvas, size, level
        if along:  # in the plane of the object's heading
            (u0, z0), (u1, z1) = frame.ground(0, -size), frame.ground(0, size)
        else:
            u0, z0, u1, z1 = frame.u - size, frame.z, frame.u + size, frame.z
        camera = self._camera = canvas.camera
        self.plane = upright_plane(camera, u0, z0, u1, z1)
        # The road's bend does not show within one such object: it stands in a plane.
        self._x, self._z = frame.u + camera.drift(float(frame.z)), frame.z
        self._dx, self._dz = (u1 - u0) / 2, (z1 - z0) / 2

    def at(self, x: float, y: float) -> Point:
        camera = self._camera
        scale = camera.focal / max(self._z + x * self._dz, 0.5)
        down = camera.level - self.level - y * self.size
        return camera.centre + (self._x + x * self._dx) * scale, camera.horizon + down * scale

    def shape(self, points: Sequence[Point], material: Material, **options) -> None:
        if self._dz:
            placed = [self.at(x, y) for x, y in points]
        else:  # it faces the camera: position and scale are all there is
            (x0, y0), scale = self.at(0.0, 0.0), self._camera.focal / max(self._z, 0.5)
            across, up = self._dx * scale, self.size * scale
            placed = [(x0 + x * across, y0 - y * up) for x, y in points]
        self.canvas.polygon(placed, material, self.plane, **options)

    def limb(self, x0, y0, w0, x1, y1, w1, material: Material, **options) -> None:
        """A tapered bar from (x0, y0) to (x1, y1), w0 and w1 wide."""
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        nx, ny = (y1 - y0) / length / 2, -(x1 - x0) / length / 2
        points = [(x0 - nx * w0, y0 - ny * w0), (x0 + nx * w0, y0 + ny * w0),
                  (x1 + nx * w1, y1 + ny * w1), (x1 - nx * w1, y1 - ny * w1)]  # fmt: skip
        self.shape(points, material, **options)

    def disc(self, x: float, y: float, rx: float, ry: float, material: Material, **options) -> None:
        circle = _ROUND if ry * self._camera.pixels(self._z) > 6 else _OVAL
        self.shape([(x + rx * c, y + ry * s) for c, s in circle], material, **options)

    def ring(self, x: float, y: float, outer: float, inner: float, material: Material) -> None:
        """A see-through wheel: the label fills it, only the rim can be seen."""
        self.disc(x, y, outer, outer, material, visible=False)
        points = [(x + outer * c, y + outer * s) for c, s in (*_ROUND, _ROUND[0])]
        points += [(x + inner * c, y + inner * s) for c, s in (_ROUND[0], *_ROUND[::-1])]
        self.shape(points, material, convex=False, labelled=False)


def _head(figure: _Figure, x: float, y: float, wear: Cloth, view: str, helmet: Colour | None = None) -> None:
    """Neck, head and hair; `view` is back, front, or a side (left, right: where the face points)."""
    skin = Material(wear.skin)
    hair = Material(helmet or wear.hair, gloss=0.15 if helmet else 0.0)
    figure.limb(x, y - 0.18, 0.11, x, y - 0.06, 0.10, skin)
    figure.disc(x, y, 0.095, 0.125, skin, roundness=0.5)
    if view == "back":
        figure.disc(x, y + 0.02, 0.10, 0.12, hair, roundness=0.4)
    elif view == "front":
        figure.shape([(x + 0.105 * c, y + 0.02 + 0.115 * s) for c, s in _ROUND if s > -0.1], hair)
    else:
        sign = 1 if view == "left" else -1
        figure.disc(x + sign * 0.025, y + 0.03, 0.09, 0.105, hair, roundness=0.4)


def person(
    canvas: Canvas, u: float, z: float, dice: Dice, wear: Cloth, *, height: float = 1.75, level: float = 0.0
) -> None:
    """A pedestrian, standing or walking, in one of four views."""
    size = height / 1.75
    frame = Frame(canvas.camera, u, z, 0.0)
    _figure_shadow(canvas, frame, 0.28 * size)
    figure = _Figure(canvas, frame, along=False, size=size, level=level)
    view = dice.pick(("front", "back", "left", "right"))
    stride = dice(0.05, 0.34)
    far_leg = Material(darker(wear.trousers.colour, 0.72))
    broad = 0.20 if view in ("front", "back") else 0.15
    if view in ("front", "back"):
        lift = 0.10 * dice()
        for sign, material, up in ((-1, wear.trousers, 0.0), (1, far_leg, lift)):
            figure.limb(sign * 0.09, 0.92, 0.19, sign * 0.10, 0.06 + up, 0.12, material, roundness=0.5)
            figure.disc(sign * 0.11, 0.05 + up, 0.07, 0.05, wear.shoes)
        swing = dice(-0.04, 0.10)
        arms = [(-1, -0.28 - swing, 0.80), (1, 0.28 + swing, 0.80 + 0.15 * dice())]
    else:
        sign = -1 if view == "left" else 1
        for way, material in ((-1, far_leg), (1, wear.trousers)):
            foot, knee = way * stride * sign, way * stride * 0.5 * sign + 0.05 * sign
            figure.limb(0.0, 0.94, 0.20, knee, 0.50, 0.15, material, roundness=0.4)
            figure.limb(knee, 0.53, 0.15, foot, 0.08, 0.11, material, roundness=0.4)
            figure.limb(foot - 0.08 * sign, 0.04, 0.08, foot + 0.16 * sign, 0.03, 0.06, wear.shoes)
        arms = [(0, -sign * stride * 0.9, 0.86)]
    skirt = dice.chance(0.18)
    if skirt:
        figure.shape([(-0.15, 1.0), (0.15, 1.0), (0.24, 0.55), (-0.24, 0.55)], wear.trousers, roundness=0.4)
    sleeve = Material(darker(wear.top.colour, 0.80), STAIN, 0.12, 45.0)
    hem = 0.62 if dice.chance(0.3) else 0.88  # a coat or a jacket
    torso = [(-broad * 0.85, hem), (broad * 0.85, hem), (broad, 1.20), (broad * 1.08, 1.40),
             (broad * 0.55, 1.49), (-broad * 0.55, 1.49), (-broad * 1.08, 1.40), (-broad, 1.20)]  # fmt: skip
    if len(arms) == 1 and dice.chance(0.3):
        figure.shape(
            [(-0.28, 1.35), (-0.12, 1.42), (-0.12, 0.98), (-0.28, 0.98)],
            Material(dice.shade((0.3, 0.1, 0.1), 0.5)),
        )
    figure.shape(torso, wear.top, roundness=0.55)
    for side, hand_x, hand_y in arms:
        shoulder, elbow = side * (broad + 0.03), (side * (broad + 0.03) + hand_x) / 2 + 0.03 * side
        figure.limb(shoulder, 1.42, 0.12, elbow, 1.12, 0.10, sleeve, roundness=0.4)
        figure.limb(elbow, 1.14, 0.10, hand_x, hand_y, 0.08, sleeve, roundness=0.4)
        figure.disc(hand_x, hand_y - 0.03, 0.045, 0.055, Material(wear.skin))
    if len(arms) == 2 and dice.chance(0.25):
        figure.shape(
            [(0.20, 0.98), (0.40, 0.98), (0.38, 0.66), (0.22, 0.66)],
            Material(dice.shade((0.25, 0.16, 0.10), 0.6)),
        )
    _head(figure, 0.0, 1.625, wear, view)


def _figure_shadow(canvas: Canvas, frame: Frame, radius: float, along: float = 0.0) -> None:
    points = [frame.project(radius * c * 1.1, 0.0, (radius + along) * s * 0.7) for c, s in _OVAL]
    canvas.shadow(points, 0.7)


def _seen_end_on(turn: float) -> bool:
    return abs(math.cos(turn)) > 0.82


def bicycle(
    canvas: Canvas, u: float, z: float, turn: float, dice: Dice, colour: Colour, level=0.0
) -> _Figure:
    """A bicycle; wheels are see-through, its label fills them. Returns the plane it stands in."""
    frame = Frame(canvas.camera, u, z, turn)
    _figure_shadow(canvas, frame, 0.15, along=0.8)
    metal, dark = Material(colour, gloss=0.1), Material(_BLACK)
    if _seen_end_on(turn):
        figure = _Figure(canvas, frame, along=False, level=level)
        figure.disc(0, 0.34, 0.055, 0.34, _TYRE)
        figure.shape([(-0.05, 0.55), (0.05, 0.55), (0.12, 1.0), (-0.12, 1.0)], dark, visible=False)
        figure.limb(0, 0.5, 0.07, 0, 0.92, 0.06, metal)
        figure.limb(-0.30, 1.04, 0.06, 0.30, 1.04, 0.06, dark)
        figure.limb(-0.11, 0.93, 0.10, 0.11, 0.93, 0.10, dark)
        figure.limb(-0.06, 0.66, 0.09, 0.06, 0.66, 0.09, Material((0.65, 0.06, 0.05)))
        return figure
    figure = _Figure(canvas, frame, along=True, level=level)
    rear, front, crank, seat, steer = (-0.52, 0.34), (0.54, 0.34), (-0.06, 0.30), (-0.20, 0.88), (0.38, 0.90)
    figure.shape([rear, crank, front, steer, seat], metal, visible=False)
    figure.ring(*rear, 0.345, 0.265, _TYRE)
    figure.ring(*front, 0.345, 0.265, _TYRE)
    for start, end in (
        (rear, crank),
        (rear, seat),
        (crank, seat),
        (crank, steer),
        (seat, steer),
        (front, steer),
    ):
        figure.limb(*start, 0.065, *end, 0.065, metal)
    figure.limb(-0.34, 0.93, 0.08, -0.08, 0.93, 0.06, dark)
    figure.limb(0.30, 1.04, 0.06, 0.46, 0.98, 0.06, dark)
    figure.limb(0.38, 0.88, 0.05, 0.34, 1.04, 0.05, dark)
    figure.disc(*crank, 0.09, 0.09, dark)
    if dice.chance(0.5):
        figure.limb(-0.78, 0.72, 0.06, -0.30, 0.74, 0.06, dark)
    if dice.chance(0.3):
        figure.shape(
            [(0.42, 0.78), (0.72, 0.78), (0.76, 1.02), (0.40, 1.02)],
            Material((0.36, 0.27, 0.17), BRICK, 0.5, 60.0),
        )
    return figure


def motorcycle(
    canvas: Canvas, u: float, z: float, turn: float, dice: Dice, colour: Colour, level=0.0
) -> _Figure:
    """A motorcycle or scooter. Returns the plane it stands in."""
    frame = Frame(canvas.camera, u, z, turn)
    _figure_shadow(canvas, frame, 0.3, along=0.9)
    paint, dark, steel = (
        Material(colour, gloss=0.18),
        Material(_BLACK),
        Material((0.38, 0.38, 0.40), gloss=0.2),
    )
    if _seen_end_on(turn):
        figure = _Figure(canvas, frame, along=False, level=level)
        figure.limb(0, 0.0, 0.17, 0, 0.62, 0.17, _TYRE)
        figure.shape([(-0.24, 0.34), (0.24, 0.34), (0.20, 0.86), (-0.20, 0.86)], paint, roundness=0.5)
        figure.limb(-0.26, 0.40, 0.14, -0.24, 0.24, 0.12, steel)
        figure.limb(-0.40, 1.02, 0.08, 0.40, 1.02, 0.08, dark)
        figure.shape([(-0.16, 0.86), (0.16, 0.86), (0.12, 1.14), (-0.12, 1.14)], paint, roundness=0.4)
        lamp = (0.75, 0.06, 0.05) if math.cos(turn) > 0 else (0.95, 0.93, 0.80)
        figure.disc(0, 0.76, 0.10, 0.06, Material(lamp))
        for side in (-1, 1):
            figure.disc(side * 0.36, 1.14, 0.07, 0.05, dark)
        return figure
    figure = _Figure(canvas, frame, along=True, level=level)
    for x in (-0.68, 0.70):
        figure.disc(x, 0.32, 0.32, 0.32, _TYRE)
        figure.disc(x, 0.32, 0.17, 0.17, steel)
    figure.limb(0.70, 0.32, 0.09, 0.46, 1.0, 0.09, steel)
    figure.shape([(-0.45, 0.28), (0.36, 0.26), (0.42, 0.62), (-0.40, 0.60)], dark)
    figure.disc(-0.05, 0.40, 0.19, 0.15, steel)
    figure.shape([(-0.85, 0.72), (-0.30, 0.58), (0.42, 0.58), (0.50, 0.98), (0.20, 0.96), (-0.10, 0.78), (-0.80, 0.84)],
                 paint, convex=False)  # fmt: skip
    figure.shape([(-0.72, 0.80), (-0.06, 0.76), (-0.06, 0.86), (-0.74, 0.92)], dark)
    figure.limb(-0.75, 0.34, 0.12, -0.10, 0.28, 0.10, steel)
    figure.shape([(0.44, 0.80), (0.64, 0.84), (0.56, 1.20), (0.42, 1.04)], paint)
    figure.disc(0.62, 0.90, 0.07, 0.08, Material((0.92, 0.90, 0.80)))
    figure.limb(0.26, 1.08, 0.07, 0.48, 1.02, 0.07, dark)
    return figure


def rider(figure: _Figure, turn: float, dice: Dice, wear: Cloth, *, motor: bool) -> None:
    """A person on a two-wheeler, in the plane that bicycle() or motorcycle() returned."""
    helmet = dice.pick(((0.85, 0.85, 0.83), (0.08, 0.08, 0.09), (0.65, 0.10, 0.08), (0.12, 0.25, 0.55)))
    helmet = helmet if motor or dice.chance(0.5) else None
    seat = 0.86 if motor else 0.94
    sleeve = Material(darker(wear.top.colour, 0.80), STAIN, 0.12, 45.0)
    if _seen_end_on(turn):
        low = 0.36 if motor else 0.22
        for side in (-1, 1):
            knee = side * (0.26 if motor else 0.15)
            figure.limb(side * 0.11, seat, 0.20, knee, 0.60, 0.15, wear.trousers, roundness=0.4)
            figure.limb(
                knee,
                0.62,
                0.14,
                side * 0.16,
                low + (0.18 if side > 0 and not motor else 0),
                0.11,
                wear.trousers,
            )
            figure.limb(side * 0.22, seat + 0.46, 0.13, side * 0.37, seat + 0.22, 0.10, sleeve, roundness=0.4)
            figure.limb(side * 0.37, seat + 0.24, 0.10, side * 0.30, seat + 0.10, 0.08, sleeve)
        torso = [(-0.17, seat - 0.08), (0.17, seat - 0.08), (0.24, seat + 0.42), (0.12, seat + 0.54),
                 (-0.12, seat + 0.54), (-0.24, seat + 0.42)]  # fmt: skip
        figure.shape(torso, wear.top, roundness=0.55)
        _head(figure, 0.0, seat + 0.70, wear, "back" if math.cos(turn) > 0 else "front", helmet)
        return
    hip, lean = (-0.24, seat + 0.04), (0.22 if motor else 0.12)
    shoulder = (hip[0] + lean, seat + 0.50)
    hand = (0.32, 1.06)
    pedal = (0.10, 0.34) if motor else (-0.06 + dice(-0.14, 0.14), 0.18 + dice(0.0, 0.2))
    knee = (0.20, 0.70)
    far = Material(darker(wear.trousers.colour, 0.7))
    figure.limb(*hip, 0.20, knee[0] - 0.1, knee[1] - 0.06, 0.15, far)
    figure.limb(*hip, 0.21, *knee, 0.16, wear.trousers, roundness=0.3)
    figure.limb(*knee, 0.15, *pedal, 0.11, wear.trousers, roundness=0.3)
    figure.limb(pedal[0] - 0.06, pedal[1], 0.08, pedal[0] + 0.16, pedal[1], 0.07, wear.shoes)
    figure.limb(hip[0], hip[1] - 0.08, 0.25, *shoulder, 0.27, wear.top, roundness=0.45)
    elbow = ((shoulder[0] + hand[0]) / 2 - 0.02, (shoulder[1] + hand[1]) / 2 - 0.08)
    figure.limb(shoulder[0], shoulder[1] - 0.04, 0.14, *elbow, 0.11, sleeve, roundness=0.3)
    figure.limb(*elbow, 0.11, *hand, 0.08, sleeve, roundness=0.3)
    view = "right" if figure.at(1, 1)[0] > figure.at(0, 1)[0] else "left"
    forward = 0.06
    _head(
        figure,
        shoulder[0] + forward,
        shoulder[1] + 0.19,
        wear,
        "left" if view == "right" else "right",
        helmet,
    )


# ---------------------------------------------------------------------------------- plants, poles


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


def _crown(canvas: Canvas, u, z, y, rx, ry, dice: Dice, foliage: Foliage, n_clumps: int) -> None:
    """Clumps of leaves within an ellipse around (u, y); lower ones are darker."""
    camera = canvas.camera
    colour = dice.shade(dice.pick(foliage.palette), 0.15)
    plane = facing_plane(camera, u - rx, z)
    leaves = [
        Material(darker(colour, f), LEAF, foliage.amplitude, foliage.density) for f in (0.62, 0.8, 1.0, 1.18)
    ]
    draws = np.array([[dice(), dice(), dice(), dice()] for _ in range(n_clumps)])
    angle, radius = 2 * np.pi * draws[:, 0], np.sqrt(draws[:, 1])
    up = np.sort(radius * np.cos(angle))  # bottom first, so that the lighter top lies over it
    centres = 0.8 * np.stack([radius * np.sin(angle), -up], axis=-1)
    outlines = _clumps()[(draws[:, 2] * 8).astype(int)] * (0.34 + 0.2 * draws[:, 3])[:, None, None]
    shapes = (centres[:, None] + outlines) * (np.array([rx, ry]) * camera.pixels(z)) + camera.project(u, y, z)
    for points, tone in zip(shapes.tolist(), ((up + 1.2) * 1.7).astype(int).clip(0, 3).tolist()):
        canvas.polygon(points, leaves[tone], plane, convex=False)


def tree(canvas: Canvas, u: float, z: float, height: float, dice: Dice, foliage: Foliage, level=0.0) -> None:
    """A broad-leaved tree; the trunk belongs to the vegetation."""
    if not canvas.sees(u, z, height / 2):
        return
    canvas.group(OBJECTS, z - 0.3, z + 0.3, u)
    canvas.thing(LABEL_ID["vegetation"])
    frame = Frame(canvas.camera, u, z, 0.0)
    _figure_shadow(canvas, frame, 0.5)
    figure = _Figure(canvas, frame, along=False, level=level)
    fork = height * dice(0.34, 0.45)
    bark = Material((0.21, 0.17, 0.13), LEAF, 0.35, 20.0)
    figure.limb(0, 0, 0.36, dice(-0.1, 0.1), fork + 0.6, 0.22, bark, roundness=0.6)
    radius = height * dice(0.24, 0.34)
    _crown(canvas, u, z, (height + fork) / 2 + level, radius, (height - fork) / 2 + 0.3, dice, foliage, 15 if z < 25 else 8)


def hedge(
    canvas: Canvas, u: float, z0: float, z1: float, height: float, dice: Dice, foliage: Foliage
) -> None:
    """A row of bushes along the road."""
    canvas.group(HOUSES, z0, z1, u)
    canvas.thing(LABEL_ID["vegetation"])
    n = max(int((z1 - z0) / 1.4), 2)
    for i in range(n):
        z = z1 - (i + 0.5) * (z1 - z0) / n
        if z > 2.0 and canvas.sees(u, z, 1.5):
            _crown(canvas, u, z, height * 0.45, dice(0.9, 1.5), height * dice(0.55, 0.75), dice, foliage, 5)


def _steel(dice: Dice) -> Material:
    return Material(dice.shade((0.30, 0.31, 0.31), 0.3))


def lamp_post(canvas: Canvas, u: float, z: float, dice: Dice, level=0.0) -> None:
    """A street lamp whose arm reaches over the road."""
    if not canvas.sees(u, z, 3.0):
        return
    canvas.group(OBJECTS, z - 0.1, z + 0.1, u)
    canvas.thing(LABEL_ID["pole"])
    figure = _Figure(canvas, Frame(canvas.camera, u, z, 0.0), along=False, level=level)
    steel, height = _steel(dice), dice(5.5, 8.0)
    figure.limb(0, 0, 0.22, 0, height, 0.13, steel, roundness=0.7)
    reach = -math.copysign(dice(1.0, 2.0), u)
    figure.limb(0, height - 0.05, 0.10, reach, height + 0.3, 0.09, steel)
    figure.limb(
        reach * 0.85, height + 0.24, 0.20, reach * 1.35, height + 0.34, 0.14, Material((0.62, 0.62, 0.58))
    )


def bollards(canvas: Canvas, u: float, z0: float, n: int, dice: Dice, level=0.0) -> None:
    """A row of short posts along the kerb."""
    steel = _steel(dice)
    for z in (z0 + 1.5 * i for i in range(n) if canvas.sees(u, z0 + 1.5 * i, 0.5)):
        canvas.group(OBJECTS, z - 0.1, z + 0.1, u)
        canvas.thing(LABEL_ID["pole"])
        figure = _Figure(canvas, Frame(canvas.camera, u, z, 0.0), along=False, level=level)
        figure.limb(0, 0, 0.16, 0, 0.95, 0.14, steel, roundness=0.7)


def traffic_light(canvas: Canvas, u: float, z: float, dice: Dice, level=0.0) -> None:
    """A signal on a pole; sometimes a second one on an arm over the road."""
    if not canvas.sees(u, z, 4.0):
        return
    canvas.group(OBJECTS, z - 0.1, z + 0.1, u)
    pole, light = canvas.thing(LABEL_ID["pole"]), canvas.thing(LABEL_ID["traffic light"])
    figure = _Figure(canvas, Frame(canvas.camera, u, z, 0.0), along=False, level=level)
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


def traffic_sign(canvas: Canvas, u: float, z: float, dice: Dice, level=0.0) -> None:
    """One or two signs on a pole: warning, prohibition, direction, parking, stop, or the back of one."""
    if not canvas.sees(u, z, 1.0):
        return
    canvas.group(OBJECTS, z - 0.1, z + 0.1, u)
    pole, sign = canvas.thing(LABEL_ID["pole"]), canvas.thing(LABEL_ID["traffic sign"])
    figure = _Figure(canvas, Frame(canvas.camera, u, z, 0.0), along=False, level=level)
    y = dice(2.3, 2.7)
    figure.limb(0, 0, 0.11, 0, y + 0.2, 0.10, _steel(dice), roundness=0.6, thing=pole)
    white, red, blue = (
        Material((0.90, 0.90, 0.88)),
        Material((0.78, 0.08, 0.08)),
        Material((0.08, 0.24, 0.62)),
    )
    for _ in range(dice.count(1, 2)):
        kind, r = dice.count(0, 5), 0.42
        if kind == 0:
            for scale, material in ((1.0, red), (0.66, white)):
                points = [
                    (0.0, y + r * scale),
                    (-r * scale, y - 0.65 * r * scale),
                    (r * scale, y - 0.65 * r * scale),
                ]
                figure.shape(points, material, thing=sign)
        elif kind in (1, 2):
            for scale, material in ((1.0, red), (0.7, white if kind == 1 else blue)):
                figure.disc(0, y, r * scale, r * scale, material, thing=sign)
        else:
            material = (blue, Material((0.90, 0.74, 0.10)), Material((0.45, 0.46, 0.47)))[kind - 3]
            w = r * (1.5 if kind == 4 else 0.9)
            figure.shape(
                [(-w, y - r * 0.8), (w, y - r * 0.8), (w, y + r * 0.8), (-w, y + r * 0.8)],
                material,
                thing=sign,
            )
            if kind != 5:
                figure.limb(-w * 0.5, y, r * 0.4, w * 0.5, y, r * 0.4, white, thing=sign)
        y -= 0.85


def litter_bin(canvas: Canvas, u: float, z: float, dice: Dice, level=0.0) -> None:
    """A bin or an advertising column: "static", so void."""
    if not canvas.sees(u, z, 1.0):
        return
    canvas.group(OBJECTS, z - 0.3, z + 0.3, u)
    canvas.thing(LABEL_ID["static"])
    frame = Frame(canvas.camera, u, z, 0.0)
    _figure_shadow(canvas, frame, 0.5)
    figure = _Figure(canvas, frame, along=False, level=level)
    colour = dice.pick(((0.16, 0.30, 0.18), (0.35, 0.33, 0.10), (0.22, 0.22, 0.24)))
    if dice.chance(0.25):
        figure.limb(
            0,
            0,
            1.2,
            0,
            2.9,
            1.2,
            Material(dice.shade((0.5, 0.42, 0.30), 0.4), STAIN, 0.5, 30.0),
            roundness=0.7,
        )
        figure.limb(0, 2.9, 1.4, 0, 3.1, 1.2, Material((0.15, 0.22, 0.18)))
    else:
        figure.limb(0, 0.05, 0.55, 0, 1.0, 0.65, Material(colour, STAIN, 0.1, 20.0), roundness=0.5)
        figure.limb(0, 1.0, 0.70, 0, 1.12, 0.60, Material(darker(colour, 0.6)))


# ---------------------------------------------------------------------------------- houses, walls, fences


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
    canvas: Canvas,
    u: float,
    z0: float,
    z1: float,
    height: float,
    dice: Dice,
    facade: Facade,
    deep: float = 14.0,
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
    canvas.group(HOUSES, z0, z1, u)
    canvas.thing(LABEL_ID["building"])

    def quad(u0, za, u1, zb, y0, y1, material, plane=None) -> None:
        corners = ((u0, y0, za), (u1, y0, zb), (u1, y1, zb), (u0, y1, za))
        points = [camera.project(*corner) for corner in corners]
        canvas.polygon(points, material, plane or upright_plane(camera, u0, za, u1, zb))

    roof = Material(dice.shade(dice.pick(facade.roofs), 0.15), BRICK, 0.25, 8.0)
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
        shop = Material(darker(dice.shade(dice.pick(facade.palette), 0.3), 0.75), STAIN, 0.1, 4.0, 0.0,
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
            points = [camera.project(*c) for c in ((u, 3.0, start), (u, 3.0, start + 3.5), (out, 2.4, start + 3.5),
                                                   (out, 2.4, start))]  # fmt: skip
            canvas.polygon(points, awning, front)


def boundary_wall(canvas: Canvas, u, z0, z1, height, dice: Dice, material: Material) -> None:
    """A free-standing wall along the road."""
    camera = canvas.camera
    canvas.group(HOUSES, z0, z1 - 0.01, u)
    canvas.thing(LABEL_ID["wall"])
    plane = upright_plane(camera, u, z0, u, z1)
    coping = Material(darker(material.colour, 1.25))
    for y0, y1, surface in ((0.0, height, material), (height - 0.15, height, coping)):
        points = [camera.project(*c) for c in ((u, y0, z0), (u, y0, z1), (u, y1, z1), (u, y1, z0))]
        canvas.polygon(points, surface, plane)


def fence(canvas: Canvas, u, z0, z1, height, dice: Dice, colour: Colour, *, boards: bool) -> None:
    """A fence along the road; between its bars one sees through, its label has no holes."""
    camera = canvas.camera
    canvas.group(HOUSES, z0, z1 - 0.01, u)
    canvas.thing(LABEL_ID["fence"])
    plane = upright_plane(camera, u, z0, u, z1)
    material = Material(colour, STAIN, 0.15, 6.0)

    def quad(za, zb, y0, y1, **options) -> None:
        points = [camera.project(*c) for c in ((u, y0, za), (u, y0, zb), (u, y1, zb), (u, y1, za))]
        canvas.polygon(points, material, plane, **options)

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
