"""Where the streets of a town run: axes with bends, and junctions where others turn off.

A street is a camera that takes places along its own axis, u metres right of it and s metres on. Whatever
draws along a road (ground, kerbs, houses, fences) so follows any street; single objects are placed in space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from panolib.data.render.raster import Camera, Point

Range = tuple[float, float]
KERB = 0.12  # height of the sidewalk, metres


@dataclass(frozen=True)
class Axis(Camera):
    """A camera whose ground is given along an axis: straight, then an arc, then straight again."""

    x: float = 0.0  # where it starts, metres
    z: float = 0.0
    heading: float = 0.0  # its direction there, radians; 0 leads away from the camera
    straight: float = 0.0  # metres before the arc
    curve: float = 0.0  # 1 / metre, positive to the right; 0 for a straight street
    angle: float = 0.0  # by how much the arc turns, radians, >= 0

    def direction(self, s: float) -> float:
        """Heading of the street s metres on, radians."""
        turned = min(max(s - self.straight, 0.0) * abs(self.curve), self.angle)
        return self.heading + math.copysign(turned, self.curve)

    def place(self, u: float, s: float) -> Point:
        """(x, z) in space of the point u metres right of the axis, s metres on."""
        turned = self.direction(s) - self.heading
        across, ahead = 0.0, s
        if turned:
            rest = s - self.straight - turned / self.curve
            across = (1 - math.cos(turned)) / self.curve + rest * math.sin(turned)
            ahead = self.straight + math.sin(turned) / self.curve + rest * math.cos(turned)
        across, ahead = across + u * math.cos(turned), ahead - u * math.sin(turned)
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        return self.x + across * cos + ahead * sin, self.z - across * sin + ahead * cos

    def project(self, u: float, y: float, s: float) -> Point:
        x, z = self.place(u, s)
        scale = self.focal / max(z, 0.5)
        return self.centre + x * scale, self.horizon + (self.level - y) * scale

    def depths(self, near: float, far: float, aside: float) -> tuple[float, float, float, float]:
        (x0, z0), (x1, z1) = self.place(aside, near), self.place(aside, far)
        return (z0, z1, x0, x1) if z0 < z1 else (z1, z0, x1, x0)


@dataclass
class Street:
    """One street with its cross-section, metres; sides are -1 (left of its axis) and 1."""

    axis: Axis
    lane: float  # width
    lanes: list[tuple[float, float]]  # (middle, direction) of each: 0 along the axis, pi against it
    strip: dict[int, float]  # width of the parking strip of each side, 0 for none
    angled: dict[int, bool]  # whether cars park at an angle there
    edge: dict[int, float]  # kerb of each side, signed
    front: dict[int, float]  # fronts of the houses, signed
    start: float = 1.0  # the stretch of the axis that it covers
    stop: float = 130.0
    begin: dict[int, float] = field(default_factory=dict)  # of the kerb of a side, if not `start`
    # stretches of each side where another street opens, from front to front
    gaps: dict[int, list[Range]] = field(default_factory=lambda: {-1: [], 1: []})
    taken: dict[float, list[Range]] = field(default_factory=dict)  # of each lane, where a vehicle stands

    def is_open(self, side: int, s0: float, s1: float, margin: float = 0.0) -> bool:
        """Whether the kerb of a side is interrupted somewhere between s0 and s1; side 0 asks for both."""
        return any(
            s1 > a - margin and s0 < b + margin
            for each in (-1, 1)
            if side in (0, each)
            for a, b in self.gaps[each]
        )

    def pieces(self, side: int, stops: tuple[float, ...]) -> list[Range]:
        """Stretches between stops, without the gaps of a side."""
        start = self.begin.get(side, self.start)
        found = [(a, b) for a, b in pairwise(stops) if b > start and a < self.stop]
        found = [(max(a, start), min(b, self.stop)) for a, b in found]
        for g0, g1 in self.gaps[side]:
            found = [(a, min(b, g0)) for a, b in found if a < g0] + [
                (max(a, g1), b) for a, b in found if b > g1
            ]
        return [(a, b) for a, b in found if b - a > 0.05]

    def place(self, length: float, u: float, near: float) -> float | None:
        """Centre of a stretch of a lane that begins at `near`, taken from now on; None if it is not free."""
        spans = self.taken.setdefault(u, [])
        if any(near < b + 1.2 and near + length > a - 1.2 for a, b in spans):
            return None
        spans.append((near, near + length))
        return near + length / 2
