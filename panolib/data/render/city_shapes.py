"""What the things of a street are made of: dice, solids with faces, flat figures.

Every object stands at (u, z), metres right of and ahead of the camera along the road's axis. `turn` is its
heading in radians: 0 drives away from the camera, pi towards it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from panolib.data.render.raster import Camera, Canvas, Colour, Material, Plane, Point, upright_plane
from panolib.labels import CITYSCAPES

# Label ids of the official files; the void kinds exist only there.
LABEL_ID = dict(zip(CITYSCAPES.classes, CITYSCAPES.file_ids)) | {"ego vehicle": 1, "static": 4}

ROUND = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 14, endpoint=False)]
OVAL = ROUND[::2]
BLACK: Colour = (0.04, 0.04, 0.045)
TYRE = Material((0.045, 0.045, 0.05))


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

    def pair(self, s0: float, s1: float, t0: float, t1: float, material: Material) -> None:
        """A patch on the left, and its mirror image on the right."""
        self.patch(s0, s1, t0, t1, material)
        self.patch(1 - s1, 1 - s0, t0, t1, material)

    def panes(self, n: int, s0: float, s1: float, t0: float, t1: float, material: Material, gap=0.1) -> None:
        """A row of n windows."""
        step = (s1 - s0) / n
        for i in range(n):
            self.patch(s0 + (i + gap / 2) * step, s0 + (i + 1 - gap / 2) * step, t0, t1, material)

    def disc(self, s: float, t: float, rs: float, rt: float, material: Material) -> None:
        self.canvas.polygon([self.at(s + rs * c, t + rt * d) for c, d in OVAL], material, self.plane)


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
        if faces_us(corners):
            (a0, _, b0), (a1, _, b1) = rings[0][i], rings[0][j]
            faces[name] = Face(canvas, corners, frame.plane(a0, b0, a1, b1))
    if faces_us(high):
        canvas.polygon(high, lid or material, Plane(level=y1))
    for face in faces.values():
        canvas.polygon(face.corners, material, face.plane)
    return faces


def upright_quad(
    canvas: Canvas, u0: float, z0: float, u1: float, z1: float, y0: float, y1: float, material: Material,
    plane: Plane | None = None, **options,
) -> None:  # fmt: skip
    """A piece of wall between two points of the ground, from y0 to y1 high."""
    corners = ((u0, y0, z0), (u1, y0, z1), (u1, y1, z1), (u0, y1, z0))
    points = [canvas.camera.project(*corner) for corner in corners]
    canvas.polygon(points, material, plane or upright_plane(canvas.camera, u0, z0, u1, z1), **options)


def faces_us(corners: list[Point]) -> bool:
    """Whether a quad, counter-clockwise seen from outside, shows its outside."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    return (x2 - x0) * (y3 - y1) - (x3 - x1) * (y2 - y0) < 0


class Figure:
    """Draws in an upright plane: x to the right and y up, metres from a point of the ground, times `size`."""

    def __init__(
        self, canvas: Canvas, frame: Frame, along: bool, size: float = 1.0, level: float = 0.0,
        broad: float = 1.0,
    ):  # fmt: skip
        self.canvas, self.frame, self.size, self.level = canvas, frame, size, level
        if along:  # in the plane of the object's heading
            (u0, z0), (u1, z1) = frame.ground(0, -size), frame.ground(0, size)
        else:
            u0, z0, u1, z1 = frame.u - size * broad, frame.z, frame.u + size * broad, frame.z
        camera = self._camera = canvas.camera
        self.plane = upright_plane(camera, u0, z0, u1, z1)
        self._x, self._z = frame.u, frame.z
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
        circle = ROUND if ry * self._camera.pixels(self._z) > 6 else OVAL
        self.shape([(x + rx * c, y + ry * s) for c, s in circle], material, **options)

    def ring(self, x: float, y: float, outer: float, inner: float, material: Material) -> None:
        """A see-through wheel: the label fills it, only the rim can be seen."""
        self.disc(x, y, outer, outer, material, visible=False)
        points = [(x + outer * c, y + outer * s) for c, s in (*ROUND, ROUND[0])]
        points += [(x + inner * c, y + inner * s) for c, s in (ROUND[0], *ROUND[::-1])]
        self.shape(points, material, convex=False, labelled=False)


def figure_shadow(canvas: Canvas, frame: Frame, radius: float, along: float = 0.0) -> None:
    points = [frame.project(radius * c * 1.1, 0.0, (radius + along) * s * 0.7) for c, s in OVAL]
    canvas.shadow(points, 0.7)
