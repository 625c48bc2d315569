"""Street scenes: what stands where, and the picture of it with exact labels.

A scene is a pure function of (style, seed, index). Composition draws from one stream of random numbers per
group of style parameters, so swapping the photometry leaves every object where it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from panolib.data.render import city_people, city_roadside, city_vehicles
from panolib.data.render.city_shapes import LABEL_ID, Dice, Frame, darker, upright_quad
from panolib.data.render.city_styles import Photometry, Range, Style
from panolib.data.render.city_town import Town, sunlight
from panolib.data.render.city_town_styles import TownStyle, style_of
from panolib.data.render.raster import (
    ASPHALT,
    BACKDROP,
    BRICK,
    GRASS,
    GROUND,
    OBJECTS,
    OVERLAY,
    PLAIN,
    SLAB,
    STAIN,
    Camera,
    Canvas,
    Light,
    Material,
    facing_plane,
    level_plane,
)
from panolib.labels import CITYSCAPES, VOID

SUPERSAMPLING = 2  # the image is the mean of 2 x 2 pixels, labels are one of them
SMALLEST = 50 / (256 * 512)  # share of the picture; a smaller instance of a town is part of a group
KERB = 0.12  # height of the sidewalk, metres


@dataclass(frozen=True)
class Scene:
    """A rendered image with its exact labels.

    Attributes
    ----------
    image : uint8 array [H, W, 3]
        RGB.
    semantic : uint8 array [H, W]
        Train ids, 255 is void.
    instance : int32 array [H, W]
        0 = no instance, otherwise an id >= 1 that no other object of the image has.
    crowd : bool array [H, W]
        Thing pixels of groups, which are not one object.
    label_id : uint8 array [H, W]
        Cityscapes label ids: also tells kinds of void apart (ego vehicle, static).
    """

    image: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    crowd: np.ndarray
    label_id: np.ndarray


class _Composer:
    """Fills a canvas with one scene. Three dice, so that swapping one group of a style keeps the rest."""

    def __init__(self, style: Style, seed: int, index: int, height: int, width: int):
        self.texture, self.geometry, self.statistics = style.texture, style.geometry, style.statistics
        self.shape = Dice(seed, style.number, index, 1)  # geometry
        self.many = Dice(seed, style.number, index, 2)  # statistics
        self.look = Dice(seed, style.number, index, 3)  # texture
        g, shape = self.geometry, self.shape
        bend = shape(-1, 1) + shape(-1, 1)
        self.camera = Camera(
            width, height, shape(*g.focal) * width, width * shape(0.47, 0.53), shape(*g.horizon) * height,
            shape(*g.level), g.bend * bend if shape.chance(0.7) else 0.0,
        )  # fmt: skip
        self.canvas = Canvas(self.camera)
        self.lane = shape(*g.lane)
        self._lay_out()

    def _lay_out(self) -> None:
        """Lanes, parking strips, sidewalks and crossing, metres aside."""
        many, s, g = self.many, self.statistics, self.geometry
        right = self.shape.count(1, g.lanes[1]) - 1
        left = self.shape.count(*g.lanes)
        self.lanes = [(i * self.lane, 0.0) for i in range(right + 1)]
        self.lanes += [(-(i + 1) * self.lane, math.pi) for i in range(left)]
        self.taken: dict[float, list[Range]] = {u: [] for u, _ in self.lanes}
        self.strip, self.angled, self.edge, self.front = {}, {}, {}, {}
        for side in (-1, 1):
            parked = many.chance(s.parked)
            self.angled[side] = parked and many.chance(s.angled)
            self.strip[side] = (4.4 if self.angled[side] else 2.1) if parked else 0.0
            traffic = self.lane * (0.5 + (right if side > 0 else left))
            self.edge[side] = side * (traffic + self.strip[side] + 0.3)
            self.front[side] = self.edge[side] + side * self.shape(*g.sidewalk)
        self.tracks = None
        self.crossing = None
        if many.chance(s.crossing):
            start = many(12.0, 26.0)
            self.crossing = (start, start + many(6.5, 9.5))

    def compose(self) -> Canvas:
        """Draw everything; heavy vehicles come before others, so that they find room in their lanes."""
        self._ground()
        self._backdrop()
        self._sides()
        self._heavy()
        self._parked()
        self._traffic()
        self._furniture()
        self._two_wheelers()
        self._people()
        self._crowds()
        self._bonnet()
        return self.canvas

    # ------------------------------------------------------------------ ground

    def _strip(self, u0, u1, z0, z1, level, material) -> None:
        """A band of ground along the road between u0 and u1."""
        stops = [1.0, 1.7, 2.6, 4.0, 6.0, 9.0, 13.0, 18.0, 25.0, 35.0, 45.0, 150.0, 380.0]
        zs = [z0, *(z for z in stops if z0 < z < z1), z1]
        project = self.camera.project
        points = [project(u0, level, z) for z in zs] + [project(u1, level, z) for z in reversed(zs)]
        self.canvas.polygon(points, material, level_plane(level), convex=False)

    def _in_crossing(self, z0: float, z1: float, margin: float = 0.0) -> bool:
        return self.crossing is not None and z1 > self.crossing[0] - margin and z0 < self.crossing[1] + margin

    def _ground(self) -> None:
        look, t, canvas, many = self.look, self.texture, self.canvas, self.many
        road = Material(look.shade(look.pick(t.road), 0.12), ASPHALT, t.road_amplitude, t.road_density)
        paving = Material(
            look.shade(look.pick(t.sidewalk), 0.1), t.sidewalk_texture, t.sidewalk_amplitude, 16.0
        )
        grass = Material(look.shade(look.pick(t.terrain), 0.12), GRASS, t.terrain_amplitude, 12.0)
        self.road, self.grass = road, grass
        kerb = Material(darker(paving.colour, 1.25))
        mark = Material(look.shade(look.pick(t.marking), 0.06), ASPHALT, 0.15, 20.0)

        canvas.group(GROUND)
        canvas.thing(LABEL_ID["terrain"])
        self._strip(-90, 90, 1.0, 380.0, 0.0, grass)
        canvas.thing(LABEL_ID["sidewalk"])
        self.verge = {}
        for side in (-1, 1):
            edge, front = self.edge[side], self.front[side]
            self._strip(edge, front + side * 0.8, 1.0, 380.0, KERB, paving)
        canvas.thing(LABEL_ID["terrain"])
        for side in (-1, 1):
            edge = self.edge[side]
            self.verge[side] = many.chance(0.5)
            if self.verge[side]:
                self._strip(edge + side * 0.35, edge + side * 1.6, 1.0, 120.0, KERB, grass)
        canvas.thing(LABEL_ID["sidewalk"])
        if self.crossing:
            self._strip(-90, 90, self.crossing[0] - 2.5, self.crossing[1] + 2.5, KERB, paving)
        canvas.thing(LABEL_ID["road"])
        self._strip(self.edge[-1], self.edge[1], 1.0, 380.0, 0.0, road)
        if self.crossing:
            self._strip(-90, 90, *self.crossing, 0.0, road)
        for _ in range(many.count(0, 3)):
            u, z, w = many(self.edge[-1], self.edge[1] - 1), many(3, 18), many(0.8, 2.0)
            patch = Material(darker(road.colour, look(0.75, 1.12)), ASPHALT, t.road_amplitude, t.road_density)
            self._strip(u, u + w, z, z + many(1.5, 8.0), 0.0, patch)
        self._marks(mark)
        canvas.thing(LABEL_ID["sidewalk"])
        for side in (-1, 1):
            self._kerb(side, kerb)

    def _kerb(self, side: int, kerb: Material) -> None:
        """The stones at the edge, as an upright band with a top."""
        edge = self.edge[side]
        pieces = [(1.0, 4.0), (4.0, 9.0), (9.0, 20.0), (20.0, 45.0), (45.0, 160.0)]
        if self.crossing:
            near, far = self.crossing[0] - 0.5, self.crossing[1] + 0.5
            pieces = [(a, min(b, near)) for a, b in pieces if a < near] + [
                (max(a, far), b) for a, b in pieces if b > far
            ]
        for a, b in pieces:
            self._strip(edge, edge + side * 0.16, a, b, KERB, kerb)
            upright_quad(self.canvas, edge, a, edge, b, 0, KERB, Material(darker(kerb.colour, 0.7)))

    def _marks(self, mark: Material) -> None:
        """Lane lines, stop line, zebra and rails; all belong to the road."""
        many = self.many
        borders = sorted(
            {round(u + self.lane / 2, 3) for u, _ in self.lanes if u + self.lane / 2 < self.edge[1] - 1}
        )
        solid = many.chance(0.3)
        phase = many(0, 3)
        stop = self.crossing[0] if self.crossing else 1e3
        for border in borders:
            middle = abs(border + self.lane / 2) < 0.1
            if solid and middle:
                self._strip(border - 0.07, border + 0.07, 1.0, min(stop - 4.5, 60.0), 0.0, mark)
                continue
            z = 1.0 + phase
            while z < 60.0:
                if not self._in_crossing(z, z + 3.0, 4.0):
                    self._strip(border - 0.07, border + 0.07, z, z + 3.0, 0.0, mark)
                z += 6.0
        for side in (-1, 1):
            if self.strip[side] and many.chance(0.6):
                line = self.edge[side] - side * self.strip[side]
                self._strip(line - 0.05, line + 0.05, 1.0, min(stop - 4.5, 40.0), 0.0, mark)
        zebra = self.crossing[0] - 3.6 if self.crossing else (many(7.0, 16.0) if many.chance(0.3) else None)
        self.zebra = zebra
        if zebra:
            u = self.edge[-1] + 0.3
            while u < self.edge[1] - 0.5:
                self._strip(u, u + 0.5, zebra, zebra + 2.6, 0.0, mark)
                u += 1.0
        if many.chance(self.statistics.train):
            choices = [u for u, _ in self.lanes if -1.2 * self.lane < u < 0.1]
            self.tracks = many.pick(choices)
            rail = Material((0.34, 0.35, 0.37))
            for u in (self.tracks - 0.72, self.tracks + 0.72):
                self._strip(u - 0.06, u + 0.06, 1.0, 120.0, 0.0, rail)
                self._strip(u + 0.06, u + 0.12, 1.0, 120.0, 0.0, Material((0.08, 0.08, 0.09)))

    def _backdrop(self) -> None:
        """What closes the view: far houses and trees."""
        canvas, camera, look = self.canvas, self.camera, self.look
        facade, foliage = self.texture.facade, self.texture.foliage
        u = -170.0
        while u < 170.0:
            width, z = self.shape(8, 22), self.shape(120, 150)
            trees = self.shape.chance(0.45)
            height = self.shape(5, 9) if trees else self.shape(7, 17)
            canvas.group(BACKDROP, z, z)
            canvas.thing(LABEL_ID["vegetation" if trees else "building"])
            if trees:
                material = Material(darker(look.pick(foliage.palette), 0.9), STAIN, 0.5, 0.8)
            else:
                material = Material(
                    look.shade(look.pick(facade.palette)), PLAIN, 0.0, 3.0, 0.0, (3.0, 3.2), (1.5, 1.7), 1.0,
                    0.15,
                )  # fmt: skip
            corners = [(u, 0.0), (u + width, 0.0), (u + width, height)]
            corners += [(u + width * f, height * self.shape(0.8, 1.15)) for f in (0.7, 0.35)] if trees else []
            points = [camera.project(a, b, z) for a, b in [*corners, (u, height)]]
            canvas.polygon(points, material, facing_plane(camera, u, z), convex=False)
            u += width

    # ------------------------------------------------------------------ both sides of the street

    def _sides(self) -> None:
        """Houses with gaps: yards behind walls, hedges and fences."""
        s, g, shape, many = self.statistics, self.geometry, self.shape, self.many
        for side in (-1, 1):
            z = 1.5 - shape(0, 6)
            after_gap = False
            while z < 115.0:
                length = shape(8.0, 17.0)
                end = z + length
                if self.crossing and z < self.crossing[1] + 2.5 and end > self.crossing[0] - 2.5:
                    if z >= self.crossing[0] - 5.5:
                        z, after_gap = self.crossing[1] + 2.5, True
                        continue
                    end = self.crossing[0] - 2.5
                front = self.front[side] + side * (shape(0, 0.8) if shape.chance(0.5) else 0.0)
                if many.chance(s.yards) and not after_gap:
                    self._yard(side, max(z, 1.2), end)
                else:
                    tall = many.chance(s.towers)
                    height = shape(*(g.tower_height if tall else g.house_height))
                    deep = 60.0 if after_gap else 14.0
                    self._house(front, max(z, 1.2), end, height, deep)
                after_gap = False
                z = end

    def _house(self, front: float, z0: float, z1: float, height: float, deep: float) -> None:
        """A house, cut where the road bends so that its front follows."""
        city_roadside.house(self.canvas, front, z0, z1, height, self.look, self.texture.facade, deep)

    def _yard(self, side: int, z0: float, z1: float) -> None:
        """Terrain with trees behind a wall, a fence or a hedge; often a house further back."""
        look, t, canvas, many = self.look, self.texture, self.canvas, self.many
        front = self.front[side]
        kind = many.count(0, 2)
        if many.chance(0.6):
            self._house(front + side * many(7, 11), z0, z1, self.shape(*self.geometry.house_height), 10.0)
        if kind == 0:
            colour = look.shade(look.pick(t.wall), 0.15)
            wall = Material(colour, look.pick((BRICK, SLAB, STAIN)), 0.22, 9.0)
            city_roadside.boundary_wall(canvas, front, z0, z1, many(1.5, 2.6), look, wall)
        elif kind == 1:
            city_roadside.fence(
                canvas, front, z0, z1, many(1.1, 1.9), look, look.shade(look.pick(t.fence), 0.2),
                boards=look.chance(0.4),
            )  # fmt: skip
        else:
            city_roadside.hedge(canvas, front + side * 0.8, z0, z1, many(1.2, 2.2), look, t.foliage)
        z = min(z1, 60.0) - 1.5
        while z > max(z0, 6.0):
            city_roadside.tree(canvas, front + side * many(1.6, 5.0), z, many(5.0, 9.0), look, t.foliage)
            z -= many(3.0, 6.0)

    # ------------------------------------------------------------------ vehicles

    def _place(self, lane: float, length: float, low: float, high: float) -> float | None:
        """Centre of a free stretch in a lane whose near end lies within low .. high."""
        for _ in range(5):
            near = self.many(low, high)
            if all(near > b + 1.2 or near + length < a - 1.2 for a, b in self.taken[lane]):
                self.taken[lane].append((near, near + length))
                return near + length / 2
        return None

    def _vehicle(self, kind: str, u: float, z: float, turn: float, *, crowd: bool = False) -> None:
        """One vehicle as a thing of its own."""
        t = self.texture
        draw, palette, half_length, half_width = {
            "car": (city_vehicles.car, t.cars, 2.3, 0.9),
            "truck": (city_vehicles.truck, t.trucks, 4.0, 1.2),
            "bus": (city_vehicles.bus, t.buses, 5.3, 1.26),
            "train": (city_vehicles.tram, t.trams, 9.5, 1.22),
        }[kind]
        if not self.canvas.sees(u, z, half_length + 0.5):
            return
        self.canvas.group(OBJECTS, *Frame(self.camera, u, z, turn).span(half_width, half_length))
        self.canvas.thing(LABEL_ID[kind], instance=not crowd, crowd=crowd)
        draw(self.canvas, u, z, turn, self.look, palette)

    def _heavy(self) -> None:
        """Tram, bus and lorry: first, so that they find room."""
        many, s = self.many, self.statistics
        if self.tracks is not None:
            z = self._place(self.tracks, 19.0, 9.0, 17.0)
            if z is not None:
                self._vehicle("train", self.tracks, z, 0.0 if self.tracks > -0.1 else math.pi)
        for kind, probability, length in (("bus", s.bus, 10.6), ("truck", s.truck, 8.0)):
            if not many.chance(probability):
                continue
            if self.crossing and many.chance(0.25):
                z = self._cross_lane()
                self._vehicle(
                    kind, many(-7.0, 7.0), z, math.pi / 2 if z > sum(self.crossing) / 2 else -math.pi / 2
                )
                continue
            u, turn = many.pick(self.lanes)
            z = self._place(u, length, 9.0, 19.0)
            if z is None:
                u, turn = self.lanes[-1] if u >= 0 else self.lanes[0]
                z = self._place(u, length, 9.0, 24.0)
            if z is not None:
                self._vehicle(kind, u, z, turn)

    def _cross_lane(self) -> float:
        near, far = self.crossing
        return near + (far - near) * self.many.pick((0.27, 0.75))

    def _parked(self) -> None:
        """Rows of parked cars along both kerbs, parallel or at an angle."""
        many, s = self.many, self.statistics
        for side in (-1, 1):
            if not self.strip[side]:
                continue
            u = self.edge[side] - side * (self.strip[side] / 2 + 0.05)
            gap = many(*s.parked_gap)
            slant = many(-0.35, 0.35)
            z = many(6.5, 9.0) if not self.angled[side] else many(6.5, 8.0)
            while z < s.car_reach:
                pitch = 2.45 if self.angled[side] else 4.6
                if not self._in_crossing(z - 2.5, z + 2.5, 3.0) and many.chance(0.93):
                    if self.angled[side]:
                        turn = side * math.pi / 2 + slant + many(-0.05, 0.05)
                        turn += math.pi if many.chance(0.15) else 0.0
                    else:
                        turn = (0.0 if side > 0 else math.pi) + many(-0.04, 0.04)
                    self._vehicle("car", u + many(-0.1, 0.1), z, turn)
                z += pitch + (0.5 if self.angled[side] else gap) * many(0.6, 1.4)

    def _traffic(self) -> None:
        """Moving cars in the lanes and across the crossing."""
        many, s = self.many, self.statistics
        for _ in range(many.count(*s.traffic)):
            u, turn = many.pick(self.lanes)
            z = self._place(u, 4.5, 8.0 if u else 9.0, s.car_reach - 4)
            if z is not None:
                self._vehicle("car", u + many(-0.25, 0.25), z, turn + many(-0.05, 0.05))
        if self.crossing:
            for row in {self._cross_lane() for _ in range(2)}:
                way = 1 if row > sum(self.crossing) / 2 else -1
                u = many(-11.0, -3.0)
                for _ in range(many.count(*s.cross_traffic)):
                    blocked = any(
                        a - 2 < row < b + 2 and abs(u - lane) < 4.0
                        for lane, spans in self.taken.items()
                        for a, b in spans
                    )
                    if not blocked:
                        self._vehicle("car", u, row, way * math.pi / 2 + many(-0.08, 0.08))
                    u += 4.6 + many(0.4, 4.0)

    # ------------------------------------------------------------------ people and small things

    def _sidewalk(self, side: int, low: float = 0.2, high: float = 0.85) -> float:
        """A place across the sidewalk."""
        return self.edge[side] + (self.front[side] - self.edge[side]) * self.many(low, high)

    def _side(self) -> int:
        """Left or right, rather where no parked cars hide the sidewalk."""
        side = self.many.pick((-1, 1))
        hidden = self.strip[side] > 0 and self.strip[-side] == 0
        return -side if hidden and self.many.chance(0.6) else side

    def _two_wheelers(self) -> None:
        many, s, look, t = self.many, self.statistics, self.look, self.texture
        canvas = self.canvas
        makes = {"bicycle": (city_people.bicycle, t.bicycles), "motorcycle": (city_people.motorcycle, t.cars)}

        def stand(kind: str, u: float, z: float, turn: float, level: float):
            canvas.group(OBJECTS, *Frame(self.camera, u, z, turn).span(0.1, 0.4))
            canvas.thing(LABEL_ID[kind], instance=True)
            draw, palette = makes[kind]
            return draw(canvas, u, z, turn, look, look.shade(look.pick(palette), 0.2), level)

        for _ in range(many.count(*s.racks)):
            side = self._side()
            u, z = self._sidewalk(side, 0.15, 0.6), many(6.5, 10.5)
            turn = side * many(0.75, 1.45)
            for _ in range(many.count(*s.rack_size)):
                stand("bicycle", u + many(-0.08, 0.08), z, turn + many(-0.10, 0.10), KERB)
                z += many(0.6, 1.1)
        if many.chance(s.parked_motorcycles):
            side = many.pick((-1, 1))
            u, z, turn = self._sidewalk(side, 0.1, 0.3), many(7.0, 14.0), many(0.7, 1.5) * side
            for _ in range(many.count(1, 3)):
                stand("motorcycle", u, z, turn + many(-0.1, 0.1), KERB)
                z += many(0.9, 1.3)
        for kind, counts in (("bicycle", s.cyclists), ("motorcycle", s.motorcyclists)):
            for _ in range(many.count(*counts)):
                z = many(6.5, s.person_reach)
                level = 0.0
                if many.chance(0.45):
                    u, turn = many(self.edge[-1] + 1, self.edge[1] - 1), many.pick((-1, 1)) * many(0.9, 1.6)
                elif kind == "bicycle" and many.chance(0.5):
                    side = many.pick((-1, 1))
                    u, turn, level = self._sidewalk(side, 0.1, 0.5), many.pick((0.0, math.pi)), KERB
                else:
                    lane, turn = many.pick(self.lanes)
                    u = lane + (0.9 if turn == 0.0 else -0.9)
                figure = stand(kind, u, z, turn, level)
                canvas.thing(LABEL_ID["rider"], instance=True)
                wear = city_people.cloth(look, t.clothes)
                city_people.rider(figure, turn, look, wear, motor=kind == "motorcycle")

    def _person(self, u: float, z: float, level: float, *, thing: int | None = None) -> None:
        if not self.canvas.sees(u, z, 0.6):
            return
        self.canvas.group(OBJECTS, z - 0.15, z + 0.15, u)
        if thing is None:
            self.canvas.thing(LABEL_ID["person"], instance=True)
        height = self.many(1.15, 1.4) if self.many.chance(0.08) else self.many(1.58, 1.92)
        wear = city_people.cloth(self.look, self.texture.clothes)
        city_people.person(self.canvas, u, z, self.look, wear, height=height, level=level)

    def _people(self) -> None:
        many, s = self.many, self.statistics
        for _ in range(many.count(*s.groups)):
            z = many(6.0, s.person_reach - 3)
            if self.zebra and many.chance(0.4):
                z, u, level = self.zebra + many(0.3, 2.0), many(self.edge[-1] + 1, self.edge[1] - 1), 0.0
            else:
                u, level = self._sidewalk(self._side()), KERB
            step = many(0.30, 0.55)
            for i in range(many.count(*s.group_size)):
                self._person(u + step * (i - 1.5) * many(0.7, 1.3), z + many(-0.7, 0.7), level)
        for _ in range(many.count(*s.loners)):
            self._person(self._sidewalk(self._side()), many(5.5, s.person_reach), KERB)

    def _crowds(self) -> None:
        """Far groups that are labelled as a whole: thing pixels without an instance."""
        many, s = self.many, self.statistics
        if many.chance(s.crowds):
            side = many.pick((-1, 1))
            u, z = self._sidewalk(side), many(21.0, 28.0)
            thing = self.canvas.thing(LABEL_ID["person"], crowd=True)
            for _ in range(many.count(5, 9)):
                self._person(u + many(-1.4, 1.4), z + many(-1.0, 1.0), KERB, thing=thing)
        if many.chance(s.crowds):
            side = many.pick((-1, 1))
            u = self.edge[side] - side * 1.1
            z = s.car_reach + 4.0
            for _ in range(many.count(3, 5)):
                if self.strip[side] and not self._in_crossing(z - 2, z + 2, 3.0):
                    self._vehicle("car", u, z, 0.0, crowd=True)
                z += 5.0

    def _furniture(self) -> None:
        """Trees, lamps, signals, signs, posts and bins."""
        many, s, look, canvas = self.many, self.statistics, self.look, self.canvas
        for side in (-1, 1):
            kerbside = self.edge[side] + side * 0.55
            if many.chance(s.trees):
                z, step = many(6.0, 12.0), many(6.5, 11.0)
                while z < 60.0:
                    if not self._in_crossing(z, z, 2.0):
                        city_roadside.tree(
                            canvas, self.edge[side] + side * 0.9, z, many(5.0, 9.0), look,
                            self.texture.foliage, KERB,
                        )  # fmt: skip
                    z += step * many(0.8, 1.2)
            if many.chance(s.lamps):
                z = many(7.0, 20.0)
                while z < 60.0:
                    if not self._in_crossing(z, z, 0.5):
                        city_roadside.lamp_post(canvas, kerbside, z, look, KERB)
                    z += many(14.0, 20.0)
            if many.chance(0.25):
                city_roadside.bollards(
                    canvas, self.edge[side] + side * 0.35, many(6.0, 9.0), many.count(3, 6), look, KERB
                )
        for _ in range(many.count(*s.signs)):
            side = many.pick((-1, 1))
            u = self.edge[side] + side * many(0.4, 0.8)
            city_roadside.traffic_sign(canvas, u, many(6.0, 19.0), look, KERB)
        for _ in range(many.count(*s.lights) + (1 if self.crossing else 0)):
            side = many.pick((-1, 1))
            z = self.crossing[0] - 1.0 if self.crossing else (self.zebra or many(8, 19))
            city_roadside.traffic_light(
                canvas, self.edge[side] + side * many(0.3, 0.8), z + many(-0.5, 0.5), look, KERB
            )
        for _ in range(many.count(*s.bins)):
            city_roadside.litter_bin(
                canvas, self._sidewalk(many.pick((-1, 1)), 0.3, 0.9), many(6.0, 16.0), look, KERB
            )

    def _bonnet(self) -> None:
        """The front of the own car at the bottom edge."""
        if not self.many.chance(self.statistics.bonnet):
            return
        camera, canvas = self.camera, self.canvas
        width, height = camera.width, camera.height
        rise = self.shape(0.05, 0.085) * height
        canvas.group(OVERLAY)
        canvas.thing(LABEL_ID["ego vehicle"])
        plane = facing_plane(camera, 0.0, 1.2)
        for i in range(4):
            scale = 1 - 0.18 * i
            half_width, top = 0.62 * scale * width, rise * scale
            angles = [math.pi * k / 24 for k in range(25)]
            points = [
                (0.5 * width + half_width * math.cos(a), 1.005 * height - top * max(math.sin(a), 0.0) ** 0.6)
                for a in angles
            ]
            paint = Material(darker((0.10, 0.105, 0.11), 2.2 - 0.4 * i), gloss=0.12 - 0.02 * i)
            canvas.polygon(points, paint, plane)


def render(
    style: Style | TownStyle | str,
    *,
    seed: int,
    index: int,
    height: int,
    width: int,
    streets: str = "straight",
) -> Scene:
    """Render one scene.

    Parameters
    ----------
    style : Style, TownStyle or str
        A style, or a key of STYLES or TOWNS.
    streets : str
        "straight" for STYLES, "town" for TOWNS; where a name is given.
    seed, index : int
        Non-negative; with the style's number they determine the scene.
    height, width : int
        Pixels, at least 32 x 32.

    Returns
    -------
    Scene
        Image and labels; every label is exact for the pixel it stands on.

    Raises
    ------
    KeyError
        For an unknown style name.
    ValueError
        For a size below 32 or a negative seed or index.
    """
    style = style_of(style, streets)
    if min(height, width) < 32:
        raise ValueError(f"cannot render {height} x {width} pixels; expected at least 32 x 32")
    if min(seed, index) < 0:
        raise ValueError(f"seed {seed} and index {index} must not be negative")
    town, dice = isinstance(style, TownStyle), Dice(seed, style.number, index, 4)
    photometry = dice.pick(style.photometry) if town else style.photometry
    light, develop = _photometry(photometry, dice)
    size = height * SUPERSAMPLING, width * SUPERSAMPLING
    if town:
        light, shadow = sunlight(photometry, light, dice)
        painting = Town(style, seed, index, *size, shadow).compose().painted()
    else:
        painting = _Composer(style, seed, index, *size).compose().painted()
    noise = np.random.default_rng([seed, style.number, index, 5])
    image = develop(painting.shaded(light, SUPERSAMPLING), noise)
    label_id, instance, crowd = painting.labels(SUPERSAMPLING, LABEL_ID["sky"])
    if town:
        instance, crowd = _small_as_groups(instance, crowd)
    return Scene(image, _train_ids()[label_id], instance, crowd, label_id)


def _small_as_groups(instance: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Instances too small to be predicted become part of a group: neither scored nor learned from."""
    least = SMALLEST * instance.size
    small = np.bincount(instance.ravel()) < least
    small[0] = False
    return np.where(small[instance], 0, instance), crowd | small[instance]


def _train_ids() -> np.ndarray:
    """uint8 [256]: train id per Cityscapes label id."""
    table = np.full(256, VOID, np.uint8)
    table[list(CITYSCAPES.file_ids)] = np.arange(CITYSCAPES.n_classes)
    return table


def _photometry(p: Photometry, dice: Dice):
    """Light of one scene, and the camera that turns linear colour into an 8-bit image."""
    angle = dice(0, 2 * math.pi)
    light = Light(
        sun=dice(*p.sun), sun_direction=(math.cos(angle), math.sin(angle)), shadow=dice(*p.shadow),
        fog=dice(*p.fog), fog_colour=dice.pick(p.fog_colour), zenith=dice.pick(p.zenith),
        skyline=dice.pick(p.skyline), clouds=dice(*p.clouds), cloud_shift=dice(0, 20),
    )  # fmt: skip
    names = ("gain", "saturation", "gamma", "vignette", "blur", "noise")
    drawn = {name: dice(*getattr(p, name)) for name in names}
    return light, partial(_develop, cast=p.cast, **drawn)


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
