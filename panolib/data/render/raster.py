"""Pictures from flat primitives: paint numbers far to near, then shade every pixel in one pass.

A scene is a list of polygons. Each is painted with its own number into one integer image, so whatever is
painted last hides what is behind it. Every property of a pixel (class, instance, colour, texture, plane in
space) is then a table lookup with that number: labels and image cannot disagree. Inverse perspective gives
the position of each pixel on its plane in metres, which looks up textures, windows, fog and shadow.

Units: metres in space (u to the right along a street's own axis, y up, z forward), pixels in the picture.
Colours are 0 .. 1, red, green, blue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np

Colour = tuple[float, float, float]
Point = tuple[float, float]

_TEXELS = 256
_PIXELS_A_BAND = 1 << 15  # shading works on bands of about this size, so that they stay in the cache
_CELLS_A_METRE, _SHADE_CELLS = 10, 800

PLAIN, ASPHALT, BRICK, LEAF, STAIN, SLAB, GRASS = range(7)
GROUND, BACKDROP, OBJECTS, OVERLAY = range(4)


@dataclass(frozen=True)
class Camera:
    """Pinhole camera above the ground; all in (supersampled) pixels, but for its level."""

    width: int
    height: int
    focal: float  # focal length
    centre: float  # principal column
    horizon: float  # its row
    level: float  # height above the road, metres

    def place(self, u: float, z: float) -> Point:
        """(x, z) in space of a point of the ground given along an axis; here that is the camera's own."""
        return u, z

    def depths(self, near: float, far: float, aside: float) -> tuple[float, float, float, float]:
        """(near, far, aside at the near end, at the far end) of what stands along the axis, `aside` off."""
        return near, far, aside, aside

    def project(self, u: float, y: float, z: float) -> Point:
        """Column and row of a point given along the axis."""
        scale = self.focal / max(z, 0.5)
        return self.centre + u * scale, self.horizon + (self.level - y) * scale

    def pixels(self, z: float) -> float:
        """Pixels a metre at distance z."""
        return self.focal / z


class Material(NamedTuple):
    """How a surface looks.

    `density` is in texels a metre. Windows repeat every `window_step` metres, each `window_size` metres
    wide and high, above `window_base` metres; `glass` is their brightness. `gloss` mixes in the sky.
    """

    colour: Colour
    texture: int = PLAIN
    amplitude: float = 0.0
    density: float = 10.0
    gloss: float = 0.0
    window_step: Point = (0.0, 0.0)
    window_size: Point = (0.0, 0.0)
    window_base: float = 0.0
    glass: float = 0.1


class Plane(NamedTuple):
    """A level plane at height `level`, or an upright one through (x, z) along the unit vector (dx, dz)."""

    upright: bool = False
    x: float = 0.0
    z: float = 0.0
    dx: float = 1.0
    dz: float = 0.0
    level: float = 0.0


class Shade:
    """Where the sun does not reach, on a map of the ground seen from above.

    A point of space lies in the shade of what casts onto the place where its ray of light meets the ground.
    `sun` is how far a shadow falls, metres (x, z) a metre of height. Houses ("tall") shade everything; what
    is low shades the ground alone.
    """

    def __init__(self, sun: Point):
        self.sun = sun
        self._maps = {name: np.zeros((_SHADE_CELLS, _SHADE_CELLS), np.uint8) for name in ("tall", "low")}

    def cast(self, ground: Sequence[Point], low: float, high: float, *, tall: bool = False) -> None:
        """Something convex that stands over the points `ground` (x, z) from `low` to `high` metres."""
        points = np.array(ground, np.float32)[None] + np.multiply.outer([low, high], self.sun)[:, None]
        cells = (points.reshape(-1, 2) * _CELLS_A_METRE + [_SHADE_CELLS / 2, 0]).clip(-4000, 4000)
        hull = cv2.convexHull(np.rint(cells * 16).astype(np.int32))
        image = self._maps["tall" if tall else "low"]
        cv2.fillConvexPoly(image, hull, 255, cv2.LINE_8, 4)

    @cached_property
    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """(tall, low) once all is cast, float32 [cells]: 0 in the sun, 1 in the shade.

        Edges are soft, the border is sunny.
        """
        found = []
        for image in self._maps.values():
            soft = cv2.GaussianBlur(image.astype(np.float32) / 255, (0, 0), 0.9)
            soft[[0, -1]] = soft[:, [0, -1]] = 0
            found.append(soft.ravel())
        return found[0], found[1]


class Canvas:
    """Collects primitives in groups; a group is painted as a whole, in the order of its primitives."""

    def __init__(self, camera: Camera):
        self.camera = camera
        self.shade: Shade | None = None  # of the sun, where it shines
        self._primitives: list[tuple] = []  # points and what `polygon` says of them, as numbers
        self._groups: list[tuple[float, ...]] = []
        self._materials: dict[Material, int] = {}
        self._planes: dict[Plane, int] = {}
        self._things: list[tuple[int, int, bool]] = [(0, 0, False)]
        self._n_instances = 0
        self._shadows: list[tuple[list[Point], float]] = []

    def sees(self, u: float, z: float, radius: float) -> bool:
        """Whether something within `radius` metres of (u, z) may lie between the left and right edge."""
        camera = self.camera
        column, _ = camera.project(u, 0.0, max(z, 1.0))
        reach = radius * camera.pixels(max(z - radius, 1.0))
        return z + radius > 1.0 and -reach < column < camera.width + reach

    def group(self, layer: int, near: float = 0.0, far: float = 0.0, aside: float = 0.0) -> None:
        """Start a group that spans `near` .. `far` metres in depth, `aside` metres off the view axis."""
        near, far, first, last = self.camera.depths(near, far, aside)
        self._groups.append((layer, near, far, abs(first), abs(last)))

    def thing(self, label_id: int, *, instance: bool = False, crowd: bool = False) -> int:
        """Later primitives belong to this label (Cityscapes id); returns the number to come back to it."""
        self._n_instances += instance
        self._things.append((label_id, self._n_instances if instance else 0, crowd))
        return len(self._things) - 1

    def polygon(
        self,
        points: list[Point],
        material: Material,
        plane: Plane,
        *,
        visible: bool = True,
        labelled: bool = True,
        convex: bool = True,
        roundness: float = 0.0,
        thing: int | None = None,
    ) -> None:
        """Add one polygon (pixels). What is labelled but not visible is see-through: spokes, railings.

        `roundness` darkens towards the left and right end, as on a cylinder.
        """
        material = self._materials.setdefault(material, len(self._materials))
        plane = self._planes.setdefault(plane, len(self._planes))
        thing = len(self._things) - 1 if thing is None else thing
        group = len(self._groups) - 1
        self._primitives.append((points, convex, visible, labelled, material, plane, thing, roundness, group))

    def shadow(self, points: list[Point], strength: float) -> None:
        """Darken level ground inside a polygon (pixels)."""
        self._shadows.append((points, strength))

    def painted(self) -> Painting:
        """Paint all groups far to near."""
        camera = self.camera
        shape = (camera.height, camera.width)
        points, convex, is_visible, is_labelled, material, plane, thing, roundness, group = zip(
            *self._primitives
        )
        flat = np.fromiter(chain.from_iterable(chain.from_iterable(points)), np.float64).reshape(-1, 2)
        lengths = [len(polygon) for polygon in points]
        stops = np.cumsum(lengths)
        starts = stops - lengths
        left = np.minimum.reduceat(flat[:, 0], starts)
        right = np.maximum.reduceat(flat[:, 0], starts)
        top = np.minimum.reduceat(flat[:, 1], starts)
        bottom = np.maximum.reduceat(flat[:, 1], starts)
        inside = (right >= 0) & (left < camera.width) & (bottom >= 0) & (top < camera.height)

        group = np.array(group)
        rank = np.empty(len(self._groups), np.int64)
        columns = np.array([[np.inf], [-np.inf]]).repeat(len(self._groups), axis=1)
        np.minimum.at(columns[0], group, left)
        np.maximum.at(columns[1], group, right)
        rank[painting_order(self._groups, columns)] = np.arange(len(self._groups))
        order = np.argsort(rank[group], kind="stable")
        order = order[inside[order]]

        fixed = np.rint(np.clip(flat, -20000, 20000) * 16).astype(np.int32)
        visible, labelled = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for i in order.tolist():
            polygon = fixed[starts[i] : stops[i]]
            for painted, image in ((is_visible[i], visible), (is_labelled[i], labelled)):
                if painted and convex[i]:
                    cv2.fillConvexPoly(image, polygon, i + 1, cv2.LINE_8, 4)
                elif painted:
                    cv2.fillPoly(image, [polygon], i + 1, cv2.LINE_8, 4)

        shadow = np.zeros(shape, np.float32)
        for points, strength in self._shadows:
            fixed = np.rint(np.clip(points, -20000, 20000) * 16.0).astype(np.int32)
            cv2.fillPoly(shadow, [fixed], float(strength), cv2.LINE_8, 4)

        return Painting(
            camera, visible, labelled, shadow,
            material=np.array([np.hstack(each) for each in self._materials], np.float32)[[0, *material]],
            plane=np.array(list(self._planes), np.float32)[[0, *plane]],
            thing=np.array(self._things, np.int32)[[0, *thing]],
            roundness=np.array([0, *roundness], np.float32),
            middle=np.concatenate([[0], (left + right) / 2]).astype(np.float32),
            half_width=np.concatenate([[1], np.maximum((right - left) / 2, 0.5)]).astype(np.float32),
            shade=self.shade,
        )  # fmt: skip


def painting_order(groups: Sequence[tuple[float, ...]], columns: np.ndarray | None = None) -> list[int]:
    """Indices of groups from first painted to last.

    A group is (layer, near, far, aside) or (layer, near, far, aside at the near end, at the far end).
    `columns` [2, N] are left and right ends in the picture; groups that do not meet there need no order,
    which leaves fewer cycles.

    Layers go one after another. Within the layer of objects, one that lies wholly farther goes first; of two
    that overlap in depth, the one farther off the axis. Elsewhere the farther far end goes first; ties and
    the ground keep their order.
    """
    table = np.array(groups, np.float64)
    order: list[int] = []
    for layer in np.unique(table[:, 0]):
        members = np.flatnonzero(table[:, 0] == layer)
        near, far, aside, slope = table[members][:, [1, 2, 3, -1]].T
        slope = (slope - aside) / np.maximum(far - near, 1e-3)
        if layer != OBJECTS:
            key = np.zeros(len(members)) if layer in (GROUND, OVERLAY) else -far
            order += members[np.argsort(key, kind="stable")].tolist()
            continue
        beyond = near[:, None] >= far[None, :]  # [i, j]: i lies wholly beyond j
        meets = ~beyond & ~beyond.T
        middle = (np.maximum(near[:, None], near[None]) + np.minimum(far[:, None], far[None])) / 2
        off = aside[:, None] + slope[:, None] * (middle - near[:, None])  # [i, j]: of i, where j is, too
        first = beyond | (meets & (off > off.T))
        if columns is not None:
            left, right = columns[:, members]
            first &= (left[:, None] < right[None]) & (left[None] < right[:, None])
        waits_for = first.sum(axis=0)
        waiting = np.ones(len(members), bool)
        for _ in members:
            # A cycle (three objects around each other) is cut at the one that waits for the fewest.
            free = np.where(waiting, waits_for * 1e6 - near, np.inf)
            chosen = int(free.argmin())
            waiting[chosen] = False
            waits_for = waits_for - first[chosen]
            order.append(int(members[chosen]))
    return order


@dataclass(frozen=True)
class Light:
    """Light and air of one picture; strengths are fractions, `fog` is per metre.

    `beam` is the share of red, green and blue light that is missing in the shade.
    """

    sun: float
    sun_direction: Point
    shadow: float
    fog: float
    fog_colour: Colour
    zenith: Colour
    skyline: Colour
    clouds: float
    cloud_shift: float
    beam: Colour = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Painting:
    """Two integer images of primitive numbers (0 = sky) and the tables they point into, a row a primitive."""

    camera: Camera
    visible: np.ndarray
    labelled: np.ndarray
    shadow: np.ndarray
    material: np.ndarray
    plane: np.ndarray
    thing: np.ndarray
    roundness: np.ndarray
    middle: np.ndarray
    half_width: np.ndarray
    shade: Shade | None = None

    def labels(self, step: int, sky: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(label ids u8, instances i32, crowd bool), every `step`-th pixel; instances count from 1."""
        table = self.thing.copy()
        table[0] = sky, 0, False
        numbers = self.labelled[step // 2 :: step, step // 2 :: step]
        return table[numbers, 0].astype(np.uint8), table[numbers, 1], table[numbers, 2].astype(bool)

    def shaded(self, light: Light, step: int) -> np.ndarray:
        """float32 [height / step, width / step, 3]: linear colour, mean of step x step pixels."""
        camera = self.camera
        rows = max(_PIXELS_A_BAND // camera.width // step, 1) * step
        table = self._table(light)
        bands = [
            self._shaded_band(table, light, top, min(top + rows, camera.height), step)
            for top in range(0, camera.height, rows)
        ]
        return np.concatenate(bands)

    def _table(self, light: Light) -> dict[str, np.ndarray]:
        """Columns of float32 [n_primitives + 1]: what shading looks up per pixel."""
        names = "red green blue texture amplitude density gloss step_u step_v size_u size_v base glass"
        table = dict(zip(names.split(), np.ascontiguousarray(self.material.T)))
        table |= dict(zip(Plane._fields, np.ascontiguousarray(self.plane.T)))
        sun_x, sun_z = light.sun_direction
        facing = table["dz"] * sun_x - table["dx"] * sun_z  # normal towards the camera times the sun
        facing = np.where(table["x"] * table["dz"] > table["z"] * table["dx"], -facing, facing)
        lit = np.where(table["upright"] > 0, 0.55 * facing, 0.35)
        table["dark"] = np.where(table["upright"] > 0, np.clip(0.3 - 3 * facing, 0, 1), 0).astype(np.float32)
        for name in ("red", "green", "blue"):
            table[name] = (table[name] * (1 + light.sun * lit)).astype(np.float32)
        table["z"] = np.where(table["upright"] > 0, table["z"], self.camera.level - table["level"])
        table["texture"] = (table["texture"] * _TEXELS * _TEXELS).astype(np.int32)
        table["curve"] = self.roundness
        table["middle"] = self.middle
        table["per_half_width"] = 1 / self.half_width
        flags = [table["upright"], table["curve"] > 0, table["gloss"] > 0, table["step_u"] > 0]
        table["flags"] = sum((flag > 0).astype(np.uint8) << bit for bit, flag in enumerate(flags))
        return table

    def _shaded_band(self, table, light: Light, top: int, bottom: int, step: int) -> np.ndarray:
        """Rows top .. bottom of the picture."""
        camera = self.camera
        numbers = self.visible[top:bottom]
        shape = numbers.shape
        numbers = numbers.ravel().astype(np.intp)

        def look_up(name: str, where=slice(None)) -> np.ndarray:
            return table[name].take(numbers[where])

        columns = np.arange(camera.width, dtype=np.float32)
        right = np.tile((columns - camera.centre) / camera.focal, shape[0])
        rows = np.arange(top, bottom, dtype=np.float32)
        down = np.repeat((rows + 0.5 - camera.horizon) / camera.focal, shape[1])

        flags = look_up("flags")
        upright = flags & 1
        z0, dx, dz = look_up("z"), look_up("dx"), look_up("dz")
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            along = (look_up("x") - right * z0) / (right * dz - dx)
            z = z0 / down
            _replace(z, z0 + along * dz, upright)
            z = np.fmin(np.fmax(z, np.float32(0.5)), np.float32(400))
            u = right * z
            _replace(u, along, upright)
        u = np.fmin(np.fmax(u, np.float32(-1e4)), np.float32(1e4))
        v = z.copy()
        _replace(v, np.float32(camera.level) - down * z, upright)

        density = look_up("density")
        address = (v * density).astype(np.int32) & (_TEXELS - 1)
        address *= _TEXELS
        address += (u * density).astype(np.int32) & (_TEXELS - 1)
        address += look_up("texture")
        density *= z
        density *= density
        tone = look_up("amplitude") / (1 + density * np.float32(0.15 / camera.focal**2))
        tone *= _textures().ravel().take(address)
        tone += 1

        curved = np.flatnonzero(flags & 2)
        if curved.size:
            side = columns[curved % shape[1]] - look_up("middle", curved)
            side *= look_up("per_half_width", curved)
            tone[curved] *= 1 - look_up("curve", curved) * (0.6 * side + 0.25) * side
        ambient = 1 - np.float32(light.shadow) * self.shadow[top:bottom].ravel()
        low = np.float32(0.28 * 1.4) * v + np.float32(0.72)  # less light from the sky near the ground
        _replace(ambient, np.minimum(np.maximum(low, np.float32(0.72)), np.float32(1)), upright)
        tone *= ambient
        colour = np.empty((3, tone.size), np.float32)
        for channel, name in zip(colour, ("red", "green", "blue")):
            np.multiply(look_up(name), tone, out=channel)

        if self.shade is not None:
            dark = np.fmax(self._in_shade(right, down, z, upright), look_up("dark"))
            for channel, beam in zip(colour, light.beam):
                channel *= 1 - np.float32(beam) * dark

        with_windows = np.flatnonzero(flags & 8)
        if with_windows.size:
            self._add_windows(colour, table, light, numbers, u, v, with_windows)

        glossy = np.flatnonzero(flags & 4)
        if glossy.size:
            gloss = look_up("gloss", glossy) * np.clip(0.5 + 0.35 * v[glossy], 0.25, 1.0)
            for channel, skyline in zip(colour, light.skyline):
                channel[glossy] += gloss * (skyline - channel[glossy])

        clear = np.exp(np.float32(-light.fog) * z)
        for channel, fog in zip(colour, light.fog_colour):
            channel -= np.float32(fog)
            channel *= clear
            channel += np.float32(fog)

        sky = np.flatnonzero(numbers == 0)
        if sky.size:
            colour[:, sky] = _sky(light, right[sky], down[sky])
        colour = colour.reshape(3, *shape)
        total = sum(colour[:, i::step, j::step] for i in range(step) for j in range(step))
        return total.transpose(1, 2, 0) * np.float32(1 / step**2)

    def _in_shade(self, right, down, z, upright) -> np.ndarray:
        """float32 [N], 0 in the sun .. 1 in the shade, of points (right * z, y, z)."""
        height = np.float32(self.camera.level) - down * z
        sun_x, sun_z = np.float32(self.shade.sun)
        last = np.float32(_SHADE_CELLS - 1)
        column = (right * z + height * sun_x) * np.float32(_CELLS_A_METRE) + np.float32(_SHADE_CELLS / 2)
        row = (z + height * sun_z) * np.float32(_CELLS_A_METRE)
        cell = np.clip(row, 0, last).astype(np.int32) * _SHADE_CELLS
        cell += np.clip(column, 0, last).astype(np.int32)
        tall, low = self.shade.maps
        dark = tall.take(cell)
        ground = np.flatnonzero((upright == 0) & (height < 0.3))
        dark[ground] = np.maximum(dark[ground], low.take(cell[ground]))
        return dark

    def _add_windows(self, colour, table, light: Light, numbers, u, v, where) -> None:
        """Draw the window grids of facades into `colour` [3, N] at the pixels `where`."""
        names = ("base", "step_u", "step_v", "size_u", "size_v", "x", "glass")
        base, step_u, step_v, size_u, size_v, x, glass = (table[name].take(numbers[where]) for name in names)
        u, v = u[where], v[where] - base
        column, storey = u / step_u, v / step_v
        column_number, storey_number = np.floor(column), np.floor(storey)
        offset_u = np.abs(column - column_number - 0.5) * step_u
        offset_v = np.abs(storey - storey_number - 0.5) * step_v
        outside = np.maximum(offset_u - size_u / 2, offset_v - size_v / 2)
        above = v > 0
        seed = column_number * 37 + storey_number * 101 + x * 13
        noise = _textures()[PLAIN].ravel().take(seed.astype(np.int64) & (_TEXELS * _TEXELS - 1))
        pane = np.flatnonzero(above & (outside < 0))
        frame = where[above & (outside >= 0) & (outside < 0.16)]
        bar = np.minimum(offset_u[pane], np.abs(offset_v[pane] - 0.1)) < 0.05
        bright = glass[pane] * (1 + 0.6 * noise[pane]) + 0.25 * bar
        reflected = bright * np.array(light.skyline, np.float32)[:, None]
        colour[:, where[pane]] = 0.12 * colour[:, where[pane]] + reflected
        colour[:, frame] *= 1.18


def _replace(values: np.ndarray, others: np.ndarray, mask: np.ndarray) -> None:
    """values[mask > 0] = others[mask > 0]; several times faster than np.where."""
    cv2.copyTo(others, mask, values)


def _sky(light: Light, right: np.ndarray, down: np.ndarray) -> np.ndarray:
    """float32 [3, N]: gradient from zenith to skyline, with clouds on a high plane."""
    rise = np.clip(-down * 2.2, 0, 1)
    zenith, skyline = (np.array(c, np.float32)[:, None] for c in (light.zenith, light.skyline))
    colour = skyline + (zenith - skyline) * np.sqrt(rise)
    depth = 60 / (np.maximum(-down, 0) + 0.15)
    texel_u = ((right + light.cloud_shift) * depth + 500).astype(np.int32) & (_TEXELS - 1)
    texel_v = depth.astype(np.int32) & (_TEXELS - 1)
    cloud = np.clip(_textures()[STAIN][texel_v, texel_u] * 0.7 + 0.1, 0, 1) * light.clouds * np.sqrt(rise)
    return colour + cloud * (np.float32(0.97) - colour)


@lru_cache(maxsize=1)
def _textures() -> np.ndarray:
    """float32 [7, 256, 256], each about zero mean, mostly within -1 .. 1, seamless."""
    rng = np.random.default_rng(20)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(_TEXELS), np.fft.rfftfreq(_TEXELS), indexing="ij"))
    frequency[0, 0] = 1

    def cloudy(exponent: float, lowest: float = 0.0) -> np.ndarray:
        spectrum = np.fft.rfft2(rng.standard_normal((_TEXELS, _TEXELS)))
        field = np.fft.irfft2(spectrum * frequency**-exponent * (frequency > lowest), s=(_TEXELS, _TEXELS))
        return field / (2 * field.std())

    rows, columns = np.mgrid[:_TEXELS, :_TEXELS]
    shift = (rows // 8 % 2) * 8
    mortar = (rows % 8 == 0) | ((columns + shift) % 16 == 0)
    brick = rng.uniform(-0.6, 0.6, (32, 17))[rows // 8, (columns + shift) // 16] - 0.9 * mortar
    seam = (rows % 16 == 0) | (columns % 16 == 0)
    slab = rng.uniform(-0.5, 0.5, (16, 16))[rows // 16, columns // 16] - 1.1 * seam
    leaf = cloudy(0.7, 0.03)
    textures = [
        cloudy(0.3), 0.7 * cloudy(0.1) + 0.6 * cloudy(1.4), brick + 0.3 * cloudy(0.2), np.tanh(1.6 * leaf),
        cloudy(1.6), slab + 0.3 * cloudy(0.2), 0.6 * cloudy(0.2) + 0.6 * cloudy(1.1),
    ]  # fmt: skip
    return np.stack([texture - texture.mean() for texture in textures]).astype(np.float32)


def upright_plane(camera: Camera, u0: float, z0: float, u1: float, z1: float) -> Plane:
    """Upright plane through two points of the ground, given along the road's axis."""
    (x0, z0), (x1, z1) = camera.place(u0, z0), camera.place(u1, z1)
    length = math.hypot(x1 - x0, z1 - z0) or 1.0
    return Plane(True, x0, z0, (x1 - x0) / length, (z1 - z0) / length)


def facing_plane(camera: Camera, u: float, z: float) -> Plane:
    """Upright plane that faces the camera; texture coordinates start at u."""
    return Plane(True, *camera.place(u, z))
