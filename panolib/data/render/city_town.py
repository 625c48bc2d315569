"""A town: streets with bends and junctions, and the life in them, as a canvas to be painted.

Composition draws from one stream of random numbers per group of style parameters, so that swapping the look
or the colours leaves every object where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from panolib.data.render import city_people, city_roadside, city_vehicles, raster
from panolib.data.render.city_shapes import LABEL_ID, ROUND, Dice, Frame, darker, upright_quad
from panolib.data.render.city_streets import KERB, Axis, Street
from panolib.data.render.city_styles import Style
from panolib.data.render.raster import Camera, Canvas, Material, Point, Shade

_STRIP_STOPS = (1.0, 1.7, 2.6, 4.0, 6.0, 9.0, *(12.0 + 3.0 * i for i in range(24)), 95.0, 130.0, 300.0)
_KERB_STOPS = (1.0, 4.0, *(8.0 + 4.0 * i for i in range(20)), 130.0)
_SIDES = (-1, 1)
_VEHICLES = {  # half length, half width, height, metres; how it is drawn, and the palette of a texture
    "car": (2.3, 0.9, 1.5, city_vehicles.car, "cars"),
    "truck": (4.0, 1.2, 3.3, city_vehicles.truck, "trucks"),
    "bus": (5.3, 1.26, 3.1, city_vehicles.bus, "buses"),
    "train": (9.5, 1.22, 3.3, city_vehicles.tram, "trams"),
}
_TWO_WHEELERS = {
    "bicycle": (city_people.bicycle, "bicycles"), "motorcycle": (city_people.motorcycle, "cars"),
}  # fmt: skip


class Town:
    """Fills a canvas with one scene. `shadow` is how far one falls a metre of height, None without sun."""

    def __init__(
        self, style: Style, seed: int, index: int, height: int, width: int, shadow: Point | None
    ):
        self.style, self.texture, self.life = style, style.texture, style.statistics
        self.shape = Dice(seed, style.number, index, 1)  # geometry
        self.many = Dice(seed, style.number, index, 2)  # statistics
        self.look = Dice(seed, style.number, index, 3)  # texture
        g, shape = style.geometry, self.shape
        self.camera = Camera(
            width, height, shape(*g.focal) * width, width * shape(0.47, 0.53), shape(*g.horizon) * height,
            shape(*g.level),
        )  # fmt: skip
        self.canvas = Canvas(self.camera)
        self.canvas.shade = Shade(shadow) if shadow else None
        self._plan()

    # ------------------------------------------------------------------ streets

    def _street(self, axis: Axis, **options) -> Street:
        """A street with the lanes, strips and sidewalks that the dice give it."""
        shape, many, g, life = self.shape, self.many, self.style.geometry, self.life
        lane, right, left = shape(*g.lane), shape.count(1, g.lanes[1]) - 1, shape.count(*g.lanes)
        lanes = [(i * lane, 0.0) for i in range(right + 1)]
        lanes += [(-(i + 1) * lane, math.pi) for i in range(left)]
        strip, angled, edge, front = {}, {}, {}, {}
        for side in _SIDES:
            parked = many.chance(life.parked)
            angled[side] = parked and many.chance(life.angled)
            strip[side] = (4.4 if angled[side] else 2.1) if parked else 0.0
            traffic = lane * (0.5 + (right if side > 0 else left))
            edge[side] = side * (traffic + strip[side] + 0.3)
            front[side] = edge[side] + side * shape(*g.sidewalk)
        return Street(axis, lane, lanes, strip, angled, edge, front, **options)

    def _plan(self) -> None:
        """The own street, and those that cross it or turn off."""
        shape, g = self.shape, self.style.geometry
        roll = shape(0, sum(g.plans))
        kind = next(i for i in range(6) if roll <= sum(g.plans[: i + 1]) or i == 5)
        at = shape(*g.junction)
        bends = kind == 1 or (kind in (2, 3, 4) and shape.chance(0.35))
        axis = Axis(
            **asdict(self.camera), heading=shape(-g.yaw, g.yaw),
            straight=shape(4.0, 20.0) if kind == 1 else at + 16.0,
            curve=(shape.pick(_SIDES) / shape(*g.radius)) if bends else 0.0, angle=shape(*g.angle),
        )  # fmt: skip
        own = self._street(axis)
        self.streets, self.own, self.junction, self.open_end = [own], own, None, kind == 5
        sides = {2: _SIDES, 3: (-1,), 4: (1,), 5: _SIDES}.get(kind, ())
        if not sides:
            return
        x, z = axis.place(0.0, at)
        skew = shape(-g.skew, g.skew) if shape.chance(0.6) else 0.0
        first = None
        for side in sides:
            heading = axis.heading + side * math.pi / 2 + skew
            # It starts where the own street's houses end; both arms are one street, seen from its middle.
            arm = self._street(Axis(**asdict(self.camera), x=x, z=z, heading=heading), stop=75.0)
            if first is not None:
                arm.lane = first.lane
                arm.strip, arm.angled = _swapped(first.strip, 1), _swapped(first.angled, 1)
                arm.edge, arm.front = _swapped(first.edge, -1), _swapped(first.front, -1)
                arm.lanes = [(-u, math.pi - turn) for u, turn in first.lanes]
            first = arm
            arm.start = abs(own.edge[side])
            arm.begin = {
                each: (arm.start + u * math.sin(skew)) / math.cos(skew) for each, u in arm.edge.items()
            }
            self.streets.append(arm)
        wide = max(abs(v) for v in first.front.values())
        narrow = max(abs(v) for v in first.edge.values())
        wide += abs(math.tan(skew)) * max(abs(v) for v in own.front.values())
        for side in sides:
            own.gaps[side].append((at - wide, at + wide))
        self.junction = (at - narrow, at + narrow)
        if self.open_end:
            own.stop = at + narrow - 0.5

    def compose(self) -> Canvas:
        """Draw everything; heavy vehicles come before others, so that they find room in their lanes."""
        self._ground()
        self._backdrop()
        for street in self.streets:
            self._houses(street)
            self._furniture(street)
        self._heavy()
        for street in self.streets:
            self._parked(street)
        self._traffic()
        self._two_wheelers()
        self._people()
        self._crowds()
        self._bonnet()
        return self.canvas

    # ------------------------------------------------------------------ ground

    def _band(self, street: Street, u0, u1, s0, s1, level, material) -> None:
        """A band of ground along a street between u0 and u1."""
        stops = [s0, *(s for s in _STRIP_STOPS if s0 < s < s1), s1]
        project = street.axis.project
        points = [project(u0, level, s) for s in stops] + [project(u1, level, s) for s in reversed(stops)]
        self.canvas.polygon(points, material, raster.Plane(level=level), convex=False)

    def _ground(self) -> None:
        look, t, canvas, many = self.look, self.texture, self.canvas, self.many
        self.road = road = Material(
            look.shade(look.pick(t.road), 0.12), raster.ASPHALT, t.road_amplitude, t.road_density
        )
        paving = Material(
            look.shade(look.pick(t.sidewalk), 0.1), t.sidewalk_texture, t.sidewalk_amplitude, 16.0
        )
        grass = Material(look.shade(look.pick(t.terrain), 0.12), raster.GRASS, t.terrain_amplitude, 12.0)
        kerb = Material(darker(paving.colour, 1.25))
        mark = Material(look.shade(look.pick(t.marking), 0.06), raster.ASPHALT, 0.15, 20.0)

        canvas.group(raster.GROUND)
        canvas.thing(LABEL_ID["terrain"])
        project = self.camera.project
        plain = [project(u, 0.0, z) for u, z in ((-300, 1), (-300, 380), (300, 380), (300, 1))]
        canvas.polygon(plain, grass, raster.Plane())
        canvas.thing(LABEL_ID["sidewalk"])
        for street in self.streets:
            beyond = 3.0 if street is not self.own else 0.0
            for side in _SIDES:
                start = 0.0 if beyond else street.start
                self._band(street, street.edge[side] - side, street.front[side] + side * 0.8, start,
                           street.stop + (street.front[1] if street is self.own and self.open_end else 0),
                           KERB, paving)  # fmt: skip
        canvas.thing(LABEL_ID["terrain"])
        for street in self.streets:
            for side in _SIDES:
                if many.chance(self.life.verges):
                    edge = street.edge[side]
                    for a, b in street.pieces(side, (1.0, 30.0, 60.0, 120.0)):
                        self._band(street, edge + side * 0.35, edge + side * 1.6, a, b, KERB, grass)
        canvas.thing(LABEL_ID["road"])
        for street in self.streets:
            start = street.start if street is self.own else -1.0
            self._band(street, street.edge[-1], street.edge[1], start, street.stop, 0.0, road)
        own = self.own
        for _ in range(many.count(0, 3)):
            u, s, w = many(own.edge[-1], own.edge[1] - 1), many(3, 18), many(0.8, 2.0)
            patch = road._replace(colour=darker(road.colour, look(0.75, 1.12)))
            self._band(own, u, u + w, s, s + many(1.5, 8.0), 0.0, patch)
        for street in self.streets:
            self._marks(street, mark)
        self._crossing(mark)
        self._rails()
        canvas.thing(LABEL_ID["sidewalk"])
        for street in self.streets:
            for side in _SIDES:
                self._kerb(street, side, kerb)

    def _kerb(self, street: Street, side: int, kerb: Material) -> None:
        """The stones at the edge, as an upright band with a top."""
        edge, canvas = street.edge[side], self.canvas
        canvas.camera = street.axis
        for a, b in street.pieces(side, _KERB_STOPS):
            self._band(street, edge, edge + side * 0.16, a, b, KERB, kerb)
            upright_quad(canvas, edge, a, edge, b, 0, KERB, Material(darker(kerb.colour, 0.7)))
        canvas.camera = self.camera

    def _marks(self, street: Street, mark: Material) -> None:
        """Lane lines and edges of parking strips."""
        many = self.many
        right = [u + street.lane / 2 for u, _ in street.lanes]  # edges of the lanes
        borders = sorted({round(u, 3) for u in right if u < street.edge[1] - 1})
        solid, phase, start = many.chance(0.3), many(0, 3), max(street.start, 1.0)
        stop = min(street.stop, 70.0)
        for border in borders:
            middle = abs(border + street.lane / 2) < 0.1
            length, pitch = (7.0, 7.0) if solid and middle else (3.0, 6.0)
            s = start + phase
            while s < stop:
                if not street.is_open(0, s, s + length, 1.0):
                    self._band(street, border - 0.07, border + 0.07, s, min(s + length, stop), 0.0, mark)
                s += pitch
        for side in _SIDES:
            if street.strip[side] and many.chance(0.6):
                line = street.edge[side] - side * street.strip[side]
                for a, b in street.pieces(side, (start, 20.0, 45.0)):
                    self._band(street, line - 0.05, line + 0.05, a, b, 0.0, mark)

    def _crossing(self, mark: Material) -> None:
        """Stop line and zebra before the junction, or a zebra somewhere."""
        many, own = self.many, self.own
        self.zebra = None
        if many.chance(self.life.zebra if self.junction is None else 0.55):
            self.zebra = self.junction[0] - 5.0 if self.junction else many(8.0, 20.0)
            u = own.edge[-1] + 0.3
            while u < own.edge[1] - 0.5:
                self._band(own, u, u + 0.5, self.zebra, self.zebra + 2.8, 0.0, mark)
                u += 1.0
        if self.junction and many.chance(0.7):
            line = (self.zebra or self.junction[0] - 2.0) - 1.6
            self._band(own, -own.lane / 2, own.edge[1] - own.strip[1], line, line + 0.4, 0.0, mark)

    def _rails(self) -> None:
        own, many = self.own, self.many
        self.tracks = None
        if not many.chance(self.life.train):
            return
        self.tracks = many.pick([u for u, _ in own.lanes if -1.2 * own.lane < u < 0.1])
        for u in (self.tracks - 0.72, self.tracks + 0.72):
            self._band(own, u - 0.06, u + 0.06, 1.0, min(own.stop, 120.0), 0.0, Material((0.34, 0.35, 0.37)))
            self._band(own, u + 0.06, u + 0.12, 1.0, min(own.stop, 120.0), 0.0, Material((0.08, 0.08, 0.09)))

    def _backdrop(self) -> None:
        """What closes the view: far houses and trees."""
        canvas, camera, look, shape = self.canvas, self.camera, self.look, self.shape
        facade, foliage = self.texture.facade, self.texture.foliage
        u = -190.0
        while u < 190.0:
            width, z, trees = shape(8, 22), shape(120, 150), shape.chance(0.45)
            height = shape(6, 12) if trees else shape(8, 20)
            canvas.group(raster.BACKDROP, z, z)
            canvas.thing(LABEL_ID["vegetation" if trees else "building"])
            if trees:
                material = Material(darker(look.pick(foliage.palette), 0.9), raster.STAIN, 0.5, 0.8)
            else:
                wall = look.shade(look.pick(facade.palette))
                windows = {"window_step": (3.0, 3.2), "window_size": (1.5, 1.7), "window_base": 1.0}
                material = Material(wall, density=3.0, glass=0.15, **windows)
            corners = [(u, 0.0), (u + width, 0.0), (u + width, height)]
            corners += [(u + width * f, height * shape(0.8, 1.15)) for f in (0.7, 0.35)] if trees else []
            points = [camera.project(a, b, z) for a, b in [*corners, (u, height)]]
            canvas.polygon(points, material, raster.facing_plane(camera, u, z), convex=False)
            u += width

    # ------------------------------------------------------------------ both sides of a street

    def _houses(self, street: Street) -> None:
        """Houses with gaps: yards behind walls, hedges and fences."""
        shape, many = self.shape, self.many
        arm = street is not self.own
        for side in _SIDES:
            s = (
                street.start + 14.0 + abs(self.own.front[side]) - abs(self.own.edge[side])
                if arm
                else 1.5 - shape(0, 6)
            )
            if arm and self.open_end and street.axis.place(side, 10.0)[1] > street.axis.place(0, 10.0)[1]:
                s = -2.0  # houses opposite the end of the own street
            for a, b in self._plots(street, side, s):
                front = street.front[side] + side * (shape(0, 0.8) if shape.chance(0.5) else 0.0)
                corner = street.is_open(side, a - 0.1, b + 0.1)
                if many.chance(self.life.yards) and not corner:
                    self._yard(street, side, a, b)
                else:
                    self._house(street, front, a, b, 14.0)

    def _plots(self, street: Street, side: int, s: float) -> list[tuple[float, float]]:
        """Where houses stand along one side; they end and begin at the gaps."""
        plots, shape = [], self.shape
        stop = min(street.stop, 60.0 if street is not self.own else 115.0)
        while s < stop:
            end = min(s + shape(7.0, 17.0), stop + 4.0)
            if street is self.own and self.open_end:
                end = min(end, street.gaps[side][0][0])
            for a, b in street.gaps[side]:
                if a - 3.0 < end and s < a:
                    end = a
                elif a <= s < b:
                    s, end = b, b + shape(8.0, 16.0)
            if end - max(s, 1.2 if street is self.own else s) > 1.5 and s < stop:
                plots.append((max(s, 1.2) if street is self.own else s, end))
            s = max(end, s + 0.5)
        return plots

    def _house(self, street: Street, front: float, a: float, b: float, deep: float) -> None:
        canvas, g = self.canvas, self.style.geometry
        height = self.shape(*(g.tower_height if self.many.chance(self.life.towers) else g.house_height))
        back = front + math.copysign(deep, front)
        corners = [street.axis.place(u, s) for u in (front, back) for s in (a, b)]
        if shade := canvas.shade:
            (x0, z0), (x1, z1), (sun_x, sun_z) = corners[0], corners[2], shade.sun
            if (x1 - x0) * sun_x + (z1 - z0) * sun_z <= 0:  # the sun stands behind it: its front is dark
                shade.cast(corners, 0.0, height, tall=True)
        canvas.camera = street.axis
        facade, look = self.texture.facade, self.look
        city_roadside.house(canvas, front, a, b, height, look, facade, deep)
        kind = self.shape.pick(self.style.shapes.houses)
        city_roadside.adorn(canvas, kind, front, a, b, height, look, facade)
        canvas.camera = self.camera

    def _cast(self, ground: Sequence[Point], height: float, low: float = 0.0) -> None:
        if self.canvas.shade:
            self.canvas.shade.cast(ground, low, height)

    def _post(self, x: float, z: float, height: float, radius: float = 0.09, low: float = 0.0) -> None:
        """The shadow of something round."""
        self._cast([(x + radius * c, z + radius * s) for c, s in ROUND], height, low)

    def _yard(self, street: Street, side: int, a: float, b: float) -> None:
        """Terrain with trees behind a wall, a fence or a hedge; often a house further back."""
        look, t, canvas, many = self.look, self.texture, self.canvas, self.many
        front, kind = street.front[side], many.count(0, 2)
        if many.chance(0.6):
            self._house(street, front + side * many(7, 11), a, b, 10.0)
        low = [street.axis.place(u, s) for u in (front, front + 0.1) for s in (a, b)]
        self._cast(low, (2.0, 0.4, 1.6)[kind])
        canvas.camera = street.axis
        if kind == 0:
            colour, textures = look.shade(look.pick(t.wall), 0.15), (raster.BRICK, raster.SLAB, raster.STAIN)
            wall = Material(colour, look.pick(textures), 0.22, 9.0)
            city_roadside.boundary_wall(canvas, front, a, b, many(1.2, 2.6), look, wall)
        elif kind == 1:
            colour = look.shade(look.pick(t.fence), 0.2)
            city_roadside.fence(canvas, front, a, b, many(1.1, 1.9), look, colour, boards=look.chance(0.4))
        canvas.camera = self.camera
        if kind == 2:
            height = many(1.2, 2.2)
            for i in range(max(int((b - a) / 1.4), 2)):
                x, z = street.axis.place(front + side * 0.8, b - (i + 0.5) * 1.4)
                city_roadside.bush(canvas, x, z, height, look, t.foliage)
        s, shapes = min(b, 60.0) - 1.5, self.style.shapes
        while s > max(a, 4.0):
            kind, height = many.pick(shapes.trees), many(*shapes.tree_height)
            self._tree(street, front + side * many(1.6, 5.0), s, height, 0.0, kind)
            s -= many(3.0, 6.0)

    def _tree(self, street: Street, u: float, s: float, height: float, level: float, kind: str) -> None:
        x, z = street.axis.place(u, s)
        if z > 3.0:
            self._post(x, z, 0.5 * height, 0.2)
            self._post(x, z, 0.92 * height, 0.27 * height, 0.45 * height)
            foliage = self.texture.foliage
            city_roadside.tree(self.canvas, x, z, height, self.look, foliage, level, kind)

    def _furniture(self, street: Street) -> None:
        """Trees, lamps, signals, signs, posts and bins along the kerbs."""
        many, life, look, canvas = self.many, self.life, self.look, self.canvas
        own, stop, shapes = street is self.own, min(street.stop, 60.0), self.style.shapes
        start = 6.0 if own else street.start + 5.0

        def free(side: int, s: float) -> bool:
            return not street.is_open(side, s, s, 0.5)

        def row(side: int, s: float, step: Callable[[], float]) -> Iterator[float]:
            while s < stop:
                if free(side, s):
                    yield s
                s += step()

        for side in _SIDES:
            kerbside = street.edge[side] + side * 0.55
            if many.chance(life.trees):
                first, step, tall = start + many(0.0, 6.0), many(6.5, 12.0), many(*shapes.tree_height)
                u, kind = street.edge[side] + side * 0.9, many.pick(shapes.trees)
                for s in row(side, first, lambda step=step: step * many(0.8, 1.2)):
                    self._tree(street, u, s, tall * many(0.85, 1.15), KERB, kind)
            if many.chance(life.lamps):
                for s in row(side, start + many(1.0, 14.0), lambda: many(14.0, 20.0)):
                    place = street.axis.place(kerbside, s)
                    self._post(*place, 7.0)
                    city_roadside.lamp_post(canvas, *place, look)
            if many.chance(0.25):
                s, n = start + many(0.0, 12.0), many.count(3, 7)
                for s in (s + 1.5 * i for i in range(n)):
                    if free(side, s):
                        place = street.axis.place(kerbside - side * 0.2, s)
                        self._post(*place, 0.95)
                        city_roadside.bollard(canvas, *place, look)
        if not own:
            return
        for _ in range(many.count(*life.signs)):
            side, s = many.pick(_SIDES), many(6.0, 30.0)
            u = street.edge[side] + side * many(0.4, 0.8)
            if free(side, s) and s < stop:
                self._post(*street.axis.place(u, s), 2.6)
                city_roadside.traffic_sign(canvas, *street.axis.place(u, s), look)
        for _ in range(many.count(*life.lights) + 1 if self.junction else many.count(0, 1)):
            side = many.pick(_SIDES)
            s = self.junction[0] - 1.5 if self.junction else (self.zebra or many(8, 24))
            u = street.edge[side] + side * many(0.3, 0.8)
            city_roadside.traffic_light(canvas, *street.axis.place(u, s + many(-0.5, 0.5)), look)
        for _ in range(many.count(*life.bins)):
            side, s = many.pick(_SIDES), many(6.0, 22.0)
            if free(side, s) and s < stop:
                x, z = street.axis.place(self._sidewalk(street, side, 0.3, 0.9), s)
                city_roadside.litter_bin(canvas, x, z, look)

    # ------------------------------------------------------------------ vehicles

    def _vehicle(self, kind: str, street: Street, u: float, s: float, turn: float, *, crowd=False) -> None:
        """One vehicle as a thing of its own; `turn` is relative to its street."""
        half_length, half_width, height, draw, palette = _VEHICLES[kind]
        (x, z), turn = street.axis.place(u, s), turn + street.axis.direction(s)
        if z < half_length + 1.5 or not self.canvas.sees(x, z, half_length + 0.5):
            return
        frame = self._group(x, z, turn, half_width, half_length, height)
        self.canvas.thing(LABEL_ID[kind], instance=not crowd, crowd=crowd)
        shape = [self.look.pick(self.style.shapes.cars)] if kind == "car" else []
        draw(self.canvas, frame, self.look, getattr(self.texture, palette), *shape)

    def _group(
        self, x: float, z: float, turn: float, half_width: float, half_length: float, height: float
    ) -> Frame:
        """Start the group of an object that stands over this rectangle, and let it cast its shadow."""
        frame = Frame(self.camera, x, z, turn)
        near, far, aside = frame.span(half_width, half_length)
        corners = [frame.ground(a, b) for a in (-half_width, half_width) for b in (-half_length, half_length)]
        self._cast(corners, height)
        self.canvas.group(raster.OBJECTS, near, far, math.copysign(aside, x))
        return frame

    def _drive(self, kind: str, street: Street, low: float, high: float, lane=None) -> None:
        """Put a vehicle into a lane where there is room, five tries."""
        many, length = self.many, 2 * _VEHICLES[kind][0]
        for _ in range(5):
            u, turn = lane or many.pick(street.lanes)
            near = many(low, high)
            if near + length < street.stop and (s := street.place(length, u, near)) is not None:
                self._vehicle(
                    kind, street, u + many(-0.2, 0.2) * (kind == "car"), s, turn + many(-0.03, 0.03)
                )
                return

    def _into_crossing(self, arm: Street) -> float:
        """How near to the middle of the junction a vehicle of a side street may stand."""
        inside = any(
            b > self.junction[0] - 1 and a < self.junction[1] + 1
            for spans in self.own.taken.values() for a, b in spans
        )  # fmt: skip
        return arm.start + 0.5 if inside else 0.7

    def _heavy(self) -> None:
        """Tram, bus and lorry."""
        many, life, own = self.many, self.life, self.own
        if self.tracks is not None:
            turn = 0.0 if self.tracks > -0.1 else math.pi
            self._drive("train", own, 8.0, 24.0, (self.tracks, turn))
        for kind, probability in (("bus", life.bus), ("truck", life.truck)):
            if not many.chance(probability):
                continue
            if len(self.streets) > 1 and many.chance(0.25):
                street = many.pick(self.streets[1:])
                self._drive(kind, street, self._into_crossing(street), 8.0)
            else:
                self._drive(kind, own, 8.0, 28.0)

    def _parked(self, street: Street) -> None:
        """Rows of parked cars along both kerbs, parallel or at an angle."""
        many, life = self.many, self.life
        for side in _SIDES:
            if not street.strip[side]:
                continue
            angled = street.angled[side]
            u = street.edge[side] - side * (street.strip[side] / 2 + 0.05)
            gap, slant = many(*life.parked_gap), many(-0.35, 0.35)
            s = many(4.5, 8.0) if street is self.own else abs(street.start) + 9.0
            row = many(0.5, 1.0)
            while s < min(life.reach if street is self.own else 35.0, street.stop - 6.0):
                if not street.is_open(side, s - 2.5, s + 2.5, 4.0) and many.chance(row):
                    if angled:
                        turn = side * math.pi / 2 + slant + many(-0.05, 0.05)
                        turn += math.pi if many.chance(0.15) else 0.0
                    else:
                        turn = (0.0 if side > 0 else math.pi) + many(-0.04, 0.04)
                    self._vehicle("car", street, u + many(-0.1, 0.1), s, turn)
                s += (2.45 if angled else 4.6) + (0.5 if angled else gap) * many(0.6, 1.4)

    def _traffic(self) -> None:
        """Moving cars."""
        many, life = self.many, self.life
        for _ in range(many.count(*life.traffic)):
            self._drive("car", self.own, 6.5, min(life.reach, self.own.stop - 5.0))
        for street in self.streets[1:]:
            for _ in range(many.count(*life.cross_traffic)):
                self._drive("car", street, self._into_crossing(street), 24.0)

    # ------------------------------------------------------------------ people and small things

    def _sidewalk(self, street: Street, side: int, low: float = 0.2, high: float = 0.85) -> float:
        """A place across the sidewalk."""
        return street.edge[side] + (street.front[side] - street.edge[side]) * self.many(low, high)

    def _side(self, street: Street) -> int:
        """Left or right, rather where no parked cars hide the sidewalk."""
        side = self.many.pick(_SIDES)
        hidden = street.strip[side] > 0 and street.strip[-side] == 0
        return -side if hidden and self.many.chance(0.6) else side

    def _stand(self, kind: str, street: Street, u: float, s: float, turn: float, level: float, motor=None):
        """A two-wheeler; with `motor` somebody rides it."""
        look, t, canvas, (draw, palette) = self.look, self.texture, self.canvas, _TWO_WHEELERS[kind]
        (x, z), turn = street.axis.place(u, s), turn + street.axis.direction(s)
        if z < 3.0 or not canvas.sees(x, z, 1.0):
            return
        frame = self._group(x, z, turn, 0.1, 0.4, 1.0 if motor is None else 1.75)
        canvas.thing(LABEL_ID[kind], instance=True)
        figure = draw(canvas, frame, look, look.shade(look.pick(getattr(t, palette)), 0.2), level)
        if motor is not None:
            canvas.thing(LABEL_ID["rider"], instance=True)
            city_people.rider(figure, look, city_people.cloth(look, t.clothes), motor=motor)

    def _two_wheelers(self) -> None:
        many, life, own = self.many, self.life, self.own
        for kind, chance, sizes in (
            ("bicycle", life.racks, life.rack_size), ("motorcycle", life.parked_motorcycles, (1, 3))
        ):  # fmt: skip
            if many.chance(chance):
                side = self._side(own)
                u, s = self._sidewalk(own, side, 0.12, 0.5), many(6.5, 20.0)
                turn = side * many(0.75, 1.45)
                for _ in range(many.count(*sizes)):
                    if not own.is_open(side, s, s, 0.5):
                        self._stand(kind, own, u + many(-0.08, 0.08), s, turn + many(-0.1, 0.1), KERB)
                    s += many(0.6, 1.1)
        for kind, (chance, most) in (("bicycle", life.cyclists), ("motorcycle", life.motorcyclists)):
            for _ in range(many.count(1, most) if many.chance(chance) else 0):
                s, level = many(6.5, min(30.0, own.stop - 3.0)), 0.0
                if many.chance(0.2):
                    u, turn = many(own.edge[-1] + 1, own.edge[1] - 1), many.pick(_SIDES) * many(0.9, 1.6)
                elif kind == "bicycle" and many.chance(0.3):
                    side = many.pick(_SIDES)
                    u, turn, level = self._sidewalk(own, side, 0.1, 0.5), many.pick((0.0, math.pi)), KERB
                else:
                    lane, turn = many.pick(own.lanes)
                    u = lane + (own.lane * 0.3 if turn == 0.0 else -own.lane * 0.3)
                self._stand(kind, own, u, s, turn + many(-0.15, 0.15), level, motor=kind == "motorcycle")

    def _person(self, street: Street, u: float, s: float, level: float, *, thing: int | None = None) -> None:
        x, z = street.axis.place(u, s)
        height = self.many(1.15, 1.4) if self.many.chance(0.08) else self.many(1.58, 1.92)
        if z < 3.0 or not self.canvas.sees(x, z, 0.6):
            return
        self.canvas.group(raster.OBJECTS, z - 0.15, z + 0.15, x)
        self._post(x, z, height, 0.2)
        if thing is None:
            self.canvas.thing(LABEL_ID["person"], instance=True)
        wear = city_people.cloth(self.look, self.texture.clothes)
        shapes, look = self.style.shapes, self.look
        broad = self.many(*shapes.build)
        city_people.person(self.canvas, x, z, look, wear, height=height, level=level, broad=broad)
        if self.many.chance(shapes.carry):
            city_people.carry(self.canvas, x, z, look, wear, height, level)

    def _people(self) -> None:
        many, life = self.many, self.life
        for _ in range(many.count(*life.groups)):
            street = self.own
            reach = min(life.reach * 0.6, street.stop - 3.0)
            s = many(5.5, reach)
            if self.zebra and many.chance(0.4):
                s, u, level = self.zebra + many(0.3, 2.0), many(street.edge[-1] + 1, street.edge[1] - 1), 0.0
            else:
                u, level = self._sidewalk(street, self._side(street)), KERB
            step = many(0.30, 0.55)
            for i in range(many.count(*life.group_size)):
                self._person(street, u + step * (i - 1.5) * many(0.7, 1.3), s + many(-0.7, 0.7), level)
        for _ in range(many.count(*life.loners)):
            street = many.pick(self.streets) if many.chance(0.4) else self.own
            s = many(5.0, min(life.reach, street.stop - 3.0))
            self._person(street, self._sidewalk(street, self._side(street)), s, KERB)
        if self.zebra and many.chance(0.5):
            for _ in range(many.count(1, 3)):
                u = many(self.own.edge[-1], self.own.edge[1])
                self._person(self.own, u, self.zebra + many(0.2, 2.4), 0.0)

    def _crowds(self) -> None:
        """Far groups that are labelled as a whole: thing pixels without an instance."""
        many, own = self.many, self.own
        if many.chance(self.life.crowds):
            u, s = self._sidewalk(own, many.pick(_SIDES)), many(22.0, 36.0)
            if s < own.stop - 2.0:
                thing = self.canvas.thing(LABEL_ID["person"], crowd=True)
                for _ in range(many.count(5, 9)):
                    self._person(own, u + many(-1.4, 1.4), s + many(-1.0, 1.0), KERB, thing=thing)
        if many.chance(self.life.crowds):
            side = many.pick(_SIDES)
            for i in range(many.count(3, 6)):
                s = self.life.reach + 4.0 + 5.0 * i
                if own.strip[side] and not own.is_open(side, s - 2, s + 2, 3.0) and s < own.stop - 4:
                    self._vehicle("car", own, own.edge[side] - side * 1.1, s, 0.0, crowd=True)

    def _bonnet(self) -> None:
        """The front of the own car at the bottom edge."""
        if not self.many.chance(self.life.bonnet):
            return
        camera, canvas, shape = self.camera, self.canvas, self.shape
        width, height = camera.width, camera.height
        rise, middle = shape(0.05, 0.085) * height, shape(0.46, 0.54) * width
        canvas.group(raster.OVERLAY)
        canvas.thing(LABEL_ID["ego vehicle"])
        plane = raster.facing_plane(camera, 0.0, 1.2)
        for i in range(4):
            scale = 1 - 0.18 * i
            angles = [math.pi * k / 24 for k in range(25)]
            points = [
                (middle + 0.62 * scale * width * math.cos(a),
                 1.005 * height - rise * scale * max(math.sin(a), 0.0) ** 0.6)
                for a in angles
            ]  # fmt: skip
            paint = Material(darker((0.10, 0.105, 0.11), 2.2 - 0.4 * i), gloss=0.12 - 0.02 * i)
            canvas.polygon(points, paint, plane)


def _swapped(sides: dict, sign: int) -> dict:
    """What is left of a street seen from its other end."""
    return {side: sign * sides[-side] for side in sides}
