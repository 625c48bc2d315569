"""The three styles of the street scenes: looks, colours, streets, life and shapes of each.

"synthia" and "gta5" are the labelled sources, "cityscapes" is the target. The five groups can be swapped one
by one, which shows what makes a domain gap:

    dataclasses.replace(STYLES["synthia"], photometry=STYLES["cityscapes"].photometry)

How often the target shows its rare classes follows the real Cityscapes (images with a rider
about a third, motorcycle a sixth, truck an eighth, bus a tenth, train a twentieth); `rich` gives a style in
which they can be scored. GTA5 shows trucks and trains far more often than the real one: the rule of MIX
(thesis 8.1) has to find frames. Nothing was chosen by looking at the labels of a real target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from panolib.data.render.city_roadside import Facade, Foliage
from panolib.data.render.raster import BRICK, PLAIN, SLAB, STAIN, Colour

Range = tuple[float, float]
Palette = tuple[Colour, ...]


@dataclass(frozen=True)
class Look:
    """Light, air and camera: a kind of weather. Ranges are drawn per image; `blur` is in pixels of 128 rows.

    With `elevation` (degrees) the sun casts shadows; `beam` is missing there.
    """

    zenith: Palette
    skyline: Palette
    clouds: Range
    sun: Range
    shadow: Range
    fog: Range
    fog_colour: Palette
    gain: Range
    cast: Colour
    saturation: Range
    gamma: Range
    vignette: Range
    blur: Range
    noise: Range
    elevation: Range | None = None
    beam: Range = (0.0, 0.0)


@dataclass(frozen=True)
class Texture:
    """Colours and surfaces."""

    road: Palette
    road_amplitude: float
    road_density: float
    sidewalk: Palette
    sidewalk_texture: int
    sidewalk_amplitude: float
    terrain: Palette
    terrain_amplitude: float
    marking: Palette
    facade: Facade
    foliage: Foliage
    wall: Palette
    fence: Palette
    cars: Palette
    trucks: Palette
    buses: Palette
    trams: Palette
    clothes: Palette
    bicycles: Palette


@dataclass(frozen=True)
class Plan:
    """Camera and streets, metres; `focal` and `horizon` are shares of the width and height of the picture.

    `plans` gives the weights of a straight street, a bend, a crossing, a turning left, a turning right and
    the end of the street at another. `radius` and `angle` (radians) are those of a bend, `yaw` is where the
    camera looks off the street.
    """

    level: Range
    focal: Range
    horizon: Range
    yaw: float
    plans: tuple[float, float, float, float, float, float]
    junction: Range
    radius: Range
    angle: Range
    skew: float
    lane: Range
    lanes: tuple[int, int]
    sidewalk: Range
    house_height: Range
    tower_height: Range


@dataclass(frozen=True)
class Life:
    """What stands in a street and how often; counts are inclusive ranges, the rest probabilities.

    `cyclists` and `motorcyclists` are the chance of any and the most that there are.
    """

    parked: float
    parked_gap: Range
    angled: float
    traffic: tuple[int, int]
    cross_traffic: tuple[int, int]
    truck: float
    bus: float
    train: float
    groups: tuple[int, int]
    group_size: tuple[int, int]
    loners: tuple[int, int]
    racks: float
    rack_size: tuple[int, int]
    cyclists: tuple[float, int]
    motorcyclists: tuple[float, int]
    parked_motorcycles: float
    zebra: float
    trees: float
    yards: float
    towers: float
    verges: float
    lamps: float
    signs: tuple[int, int]
    lights: tuple[int, int]
    bins: tuple[int, int]
    crowds: float
    bonnet: float
    reach: float


@dataclass(frozen=True)
class Shapes:
    """What things look like apart from their colours: kinds that are drawn in several ways, of equal chance.

    `build` is how broad people are, `carry` the chance that one carries something; the rest is metres.
    """

    cars: tuple[str, ...]
    trees: tuple[str, ...]
    tree_height: Range
    houses: tuple[str, ...]
    build: Range
    carry: float


@dataclass(frozen=True)
class Style:
    """A look of the world: `number` seeds its scenes; each image takes one look of `photometry`."""

    name: str
    number: int
    photometry: tuple[Look, ...]
    texture: Texture
    geometry: Plan
    statistics: Life
    shapes: Shapes


_SYNTHIA_LOOK = Look(
    zenith=((0.16, 0.36, 0.80), (0.22, 0.42, 0.78)), skyline=((0.66, 0.80, 0.95), (0.72, 0.82, 0.92)),
    clouds=(0.2, 0.9), sun=(0.35, 0.65), shadow=(0.40, 0.60), fog=(0.0008, 0.003),
    fog_colour=((0.66, 0.78, 0.92),), gain=(0.95, 1.2), cast=(1.0, 1.0, 1.02),
    saturation=(1.15, 1.45), gamma=(0.90, 1.05), vignette=(0.0, 0.05), blur=(0.0, 0.30),
    noise=(0.0, 0.008),
)  # fmt: skip

_GTA5_LOOK = Look(
    zenith=((0.42, 0.52, 0.66), (0.58, 0.52, 0.48)), skyline=((0.98, 0.86, 0.66), (0.96, 0.78, 0.56)),
    clouds=(0.0, 0.4), sun=(0.45, 0.80), shadow=(0.45, 0.70), fog=(0.004, 0.011),
    fog_colour=((0.95, 0.80, 0.60), (0.90, 0.78, 0.66)), gain=(0.9, 1.2), cast=(1.10, 1.0, 0.86),
    saturation=(0.85, 1.15), gamma=(0.85, 1.0), vignette=(0.0, 0.15), blur=(0.0, 0.35),
    noise=(0.0, 0.012),
)  # fmt: skip

_CITYSCAPES_LOOK = Look(
    zenith=((0.86, 0.90, 0.90), (0.78, 0.83, 0.85)), skyline=((0.93, 0.96, 0.95), (0.86, 0.90, 0.90)),
    clouds=(0.0, 0.15), sun=(0.0, 0.22), shadow=(0.30, 0.50), fog=(0.005, 0.014),
    fog_colour=((0.62, 0.68, 0.66), (0.56, 0.62, 0.60)), gain=(0.82, 1.02), cast=(0.92, 1.02, 0.95),
    saturation=(0.35, 0.60), gamma=(0.92, 1.10), vignette=(0.12, 0.30), blur=(0.35, 0.65),
    noise=(0.015, 0.032),
)  # fmt: skip

_SYNTHIA_TEXTURE = Texture(
    road=((0.25, 0.25, 0.29), (0.21, 0.21, 0.24), (0.30, 0.29, 0.31)), road_amplitude=0.26,
    road_density=26.0, sidewalk=((0.55, 0.42, 0.36), (0.60, 0.52, 0.42), (0.52, 0.50, 0.50)),
    sidewalk_texture=SLAB, sidewalk_amplitude=0.28, terrain=((0.26, 0.46, 0.14), (0.34, 0.48, 0.18)),
    terrain_amplitude=0.35, marking=((0.92, 0.92, 0.92),),
    facade=Facade(
        palette=((0.62, 0.28, 0.20), (0.80, 0.62, 0.36), (0.42, 0.50, 0.62), (0.72, 0.70, 0.66),
                 (0.55, 0.42, 0.34)),
        roofs=((0.48, 0.20, 0.14), (0.30, 0.22, 0.20)), textures=(BRICK, BRICK, STAIN),
        amplitude=0.26, density=8.0, window_step=(1.9, 2.7), window_share=(0.48, 0.66),
        glass=(0.22, 0.55),
    ),
    foliage=Foliage(((0.20, 0.44, 0.10), (0.30, 0.52, 0.12), (0.14, 0.36, 0.12)), 0.55, 18.0),
    wall=((0.62, 0.50, 0.40), (0.60, 0.34, 0.26)), fence=((0.50, 0.34, 0.20), (0.16, 0.36, 0.22)),
    cars=((0.78, 0.10, 0.08), (0.10, 0.24, 0.68), (0.86, 0.86, 0.86), (0.88, 0.66, 0.08),
          (0.10, 0.44, 0.20), (0.08, 0.08, 0.09), (0.60, 0.62, 0.66)),
    trucks=((0.86, 0.42, 0.06), (0.16, 0.36, 0.70), (0.84, 0.84, 0.80), (0.62, 0.12, 0.10)),
    buses=((0.84, 0.12, 0.10), (0.92, 0.74, 0.12), (0.14, 0.42, 0.66)),
    trams=((0.86, 0.70, 0.10), (0.16, 0.48, 0.24)),
    clothes=((0.80, 0.14, 0.12), (0.14, 0.30, 0.70), (0.90, 0.86, 0.80), (0.88, 0.66, 0.12),
             (0.20, 0.52, 0.28), (0.52, 0.18, 0.50), (0.16, 0.16, 0.18)),
    bicycles=((0.80, 0.10, 0.10), (0.10, 0.30, 0.75), (0.90, 0.80, 0.15)),
)  # fmt: skip

_GTA5_TEXTURE = Texture(
    road=((0.30, 0.28, 0.27), (0.36, 0.33, 0.30)), road_amplitude=0.34, road_density=20.0,
    sidewalk=((0.58, 0.54, 0.48), (0.50, 0.47, 0.43)), sidewalk_texture=SLAB, sidewalk_amplitude=0.16,
    terrain=((0.42, 0.40, 0.20), (0.50, 0.42, 0.26)), terrain_amplitude=0.38,
    marking=((0.88, 0.70, 0.16), (0.85, 0.66, 0.14), (0.85, 0.85, 0.80)),
    facade=Facade(
        palette=((0.70, 0.58, 0.44), (0.60, 0.42, 0.30), (0.78, 0.72, 0.62), (0.46, 0.42, 0.40),
                 (0.66, 0.48, 0.38)),
        roofs=((0.36, 0.26, 0.20), (0.30, 0.28, 0.27)), textures=(STAIN, SLAB, BRICK), amplitude=0.20,
        density=5.0, window_step=(2.2, 3.6), window_share=(0.50, 0.80), glass=(0.12, 0.40),
    ),
    foliage=Foliage(((0.26, 0.34, 0.10), (0.34, 0.38, 0.14), (0.20, 0.30, 0.12)), 0.60, 15.0),
    wall=((0.62, 0.55, 0.46), (0.50, 0.46, 0.42)), fence=((0.42, 0.40, 0.36), (0.30, 0.24, 0.18)),
    cars=((0.56, 0.08, 0.06), (0.12, 0.16, 0.28), (0.82, 0.80, 0.76), (0.72, 0.56, 0.20),
          (0.09, 0.09, 0.09), (0.46, 0.44, 0.42), (0.30, 0.38, 0.30)),
    trucks=((0.80, 0.78, 0.72), (0.60, 0.20, 0.10), (0.30, 0.34, 0.30), (0.78, 0.58, 0.22)),
    buses=((0.84, 0.82, 0.78), (0.80, 0.52, 0.16)), trams=((0.70, 0.70, 0.72), (0.62, 0.24, 0.16)),
    clothes=((0.66, 0.20, 0.14), (0.24, 0.30, 0.42), (0.82, 0.78, 0.70), (0.52, 0.42, 0.24),
             (0.15, 0.15, 0.15), (0.40, 0.40, 0.36)),
    bicycles=((0.60, 0.12, 0.08), (0.70, 0.70, 0.66), (0.15, 0.22, 0.30)),
)  # fmt: skip

_CITYSCAPES_TEXTURE = Texture(
    road=((0.33, 0.33, 0.33), (0.28, 0.28, 0.29), (0.38, 0.37, 0.36)), road_amplitude=0.12,
    road_density=12.0, sidewalk=((0.43, 0.42, 0.41), (0.38, 0.36, 0.35), (0.46, 0.42, 0.40)),
    sidewalk_texture=SLAB, sidewalk_amplitude=0.13, terrain=((0.26, 0.31, 0.15), (0.33, 0.32, 0.20)),
    terrain_amplitude=0.30, marking=((0.72, 0.72, 0.70), (0.62, 0.62, 0.60)),
    facade=Facade(
        palette=((0.56, 0.52, 0.44), (0.46, 0.43, 0.40), (0.62, 0.60, 0.54), (0.50, 0.42, 0.36),
                 (0.38, 0.38, 0.38), (0.66, 0.62, 0.50)),
        roofs=((0.34, 0.22, 0.18), (0.24, 0.23, 0.23)), textures=(STAIN, STAIN, PLAIN, BRICK),
        amplitude=0.14, density=3.0, window_step=(2.0, 3.4), window_share=(0.34, 0.52),
        glass=(0.06, 0.20),
    ),
    foliage=Foliage(((0.15, 0.21, 0.10), (0.20, 0.25, 0.12), (0.22, 0.21, 0.11)), 0.75, 11.0),
    wall=((0.42, 0.40, 0.37), (0.36, 0.32, 0.29)), fence=((0.26, 0.27, 0.26), (0.34, 0.30, 0.25)),
    cars=((0.06, 0.06, 0.07), (0.12, 0.12, 0.13), (0.42, 0.43, 0.44), (0.62, 0.63, 0.64),
          (0.78, 0.78, 0.78), (0.10, 0.13, 0.22), (0.30, 0.08, 0.08), (0.24, 0.25, 0.27)),
    trucks=((0.74, 0.74, 0.72), (0.30, 0.34, 0.40), (0.52, 0.46, 0.30), (0.22, 0.30, 0.26)),
    buses=((0.72, 0.70, 0.62), (0.50, 0.14, 0.12), (0.34, 0.42, 0.48)),
    trams=((0.60, 0.55, 0.30), (0.46, 0.16, 0.14), (0.36, 0.44, 0.40)),
    clothes=((0.08, 0.08, 0.09), (0.14, 0.16, 0.22), (0.28, 0.26, 0.24), (0.40, 0.38, 0.36),
             (0.36, 0.12, 0.12), (0.62, 0.60, 0.56), (0.18, 0.24, 0.20)),
    bicycles=((0.10, 0.10, 0.11), (0.45, 0.46, 0.47), (0.30, 0.08, 0.08), (0.12, 0.18, 0.26)),
)  # fmt: skip

_SYNTHIA = Style(
    name="synthia", number=11,
    photometry=(
        replace(_SYNTHIA_LOOK, gain=(1.0, 1.3), elevation=(30.0, 65.0), beam=(0.40, 0.55)),
        replace(
            _SYNTHIA_LOOK,
            zenith=((0.93, 0.95, 0.98), (0.80, 0.84, 0.90)), skyline=((0.96, 0.97, 0.98),),
            clouds=(0.0, 0.3), sun=(0.0, 0.2), saturation=(0.8, 1.1), gain=(0.75, 1.1), fog=(0.002, 0.006),
            fog_colour=((0.80, 0.84, 0.88),),
        ),
    ), texture=_SYNTHIA_TEXTURE,
    geometry=Plan(
        level=(1.4, 2.4), focal=(0.74, 1.0), horizon=(0.34, 0.46), yaw=0.08,
        plans=(0.25, 0.20, 0.25, 0.10, 0.10, 0.10), junction=(15.0, 36.0), radius=(22.0, 60.0),
        angle=(0.3, 1.1), skew=0.18, lane=(3.2, 3.8), lanes=(1, 2), sidewalk=(2.6, 6.0),
        house_height=(5.0, 18.0), tower_height=(20.0, 34.0),
    ),
    statistics=Life(
        parked=0.62, parked_gap=(0.5, 1.8), angled=0.2, traffic=(1, 6), cross_traffic=(0, 3), truck=0.15,
        bus=0.30, train=0.10, groups=(0, 3), group_size=(2, 5), loners=(2, 7), racks=0.40, rack_size=(2, 6),
        cyclists=(0.5, 3), motorcyclists=(0.30, 2), parked_motorcycles=0.25, zebra=0.4, trees=0.6,
        yards=0.35, towers=0.12, verges=0.4, lamps=0.8, signs=(1, 4), lights=(0, 2), bins=(0, 2), crowds=0.0,
        bonnet=0.0, reach=42.0,
    ),
    shapes=Shapes(
        cars=("box", "box", "box", "coupe", "saloon"), trees=("round", "round", "conifer", "bare"),
        tree_height=(5.0, 10.0), houses=("plain", "plain", "signs", "cornice"), build=(1.0, 1.25), carry=0.1,
    ),
)  # fmt: skip

_GTA5 = Style(
    name="gta5", number=12,
    photometry=(
        replace(_GTA5_LOOK, gain=(1.1, 1.35), elevation=(14.0, 30.0), beam=(0.35, 0.5)),
        replace(
            _GTA5_LOOK,
            zenith=((0.45, 0.62, 0.86), (0.62, 0.74, 0.90)), skyline=((0.92, 0.94, 0.96),),
            fog_colour=((0.82, 0.85, 0.88),), fog=(0.001, 0.003), cast=(1.04, 1.0, 0.94), sun=(0.4, 0.7),
            gain=(1.0, 1.35), elevation=(35.0, 70.0), beam=(0.45, 0.65),
        ),
        replace(
            _GTA5_LOOK,
            zenith=((0.62, 0.66, 0.70),), skyline=((0.84, 0.85, 0.86),), clouds=(0.2, 0.8),
            fog_colour=((0.70, 0.72, 0.74),), cast=(1.0, 0.99, 0.97), sun=(0.0, 0.15), gain=(0.6, 0.95),
            saturation=(0.5, 0.8),
        ),
    ), texture=_GTA5_TEXTURE,
    geometry=Plan(
        level=(1.2, 1.9), focal=(0.80, 1.0), horizon=(0.38, 0.50), yaw=0.08,
        plans=(0.30, 0.15, 0.30, 0.08, 0.08, 0.09), junction=(16.0, 40.0), radius=(25.0, 70.0),
        angle=(0.3, 0.9), skew=0.12, lane=(3.4, 4.2), lanes=(1, 2), sidewalk=(3.0, 6.5),
        house_height=(5.0, 22.0), tower_height=(26.0, 60.0),
    ),
    statistics=Life(
        parked=0.50, parked_gap=(0.6, 2.2), angled=0.15, traffic=(2, 7), cross_traffic=(0, 3), truck=0.60,
        bus=0.25, train=0.55, groups=(0, 2), group_size=(2, 4), loners=(1, 6), racks=0.2, rack_size=(2, 4),
        cyclists=(0.35, 2), motorcyclists=(0.35, 2), parked_motorcycles=0.2, zebra=0.4, trees=0.5,
        yards=0.40, towers=0.4, verges=0.25, lamps=0.8, signs=(0, 3), lights=(0, 3), bins=(0, 3), crowds=0.0,
        bonnet=0.25, reach=42.0,
    ),
    shapes=Shapes(
        cars=("sedan", "sedan", "muscle", "wagon", "pick-up", "box"),
        trees=("palm", "round", "column", "bare"),
        tree_height=(5.0, 12.0), houses=("plain", "parapet", "signs", "escape"), build=(0.9, 1.1), carry=0.15,
    ),
)  # fmt: skip

_CITYSCAPES = Style(
    name="cityscapes", number=13,
    photometry=(
        replace(_CITYSCAPES_LOOK, gain=(0.85, 1.1)),
        replace(
            _CITYSCAPES_LOOK,
            zenith=((0.66, 0.78, 0.90), (0.80, 0.87, 0.92)), skyline=((0.95, 0.97, 0.97),),
            clouds=(0.1, 0.6), sun=(0.35, 0.60), fog=(0.002, 0.006), fog_colour=((0.74, 0.79, 0.80),),
            gain=(1.05, 1.35), saturation=(0.45, 0.75), cast=(0.97, 1.01, 0.97), elevation=(22.0, 55.0),
            beam=(0.50, 0.68),
        ),
    ),
    texture=_CITYSCAPES_TEXTURE,
    geometry=Plan(
        level=(1.2, 1.45), focal=(0.90, 1.04), horizon=(0.39, 0.46), yaw=0.06,
        plans=(0.32, 0.22, 0.20, 0.09, 0.09, 0.08), junction=(16.0, 38.0), radius=(25.0, 70.0),
        angle=(0.25, 0.9), skew=0.18, lane=(2.9, 3.4), lanes=(1, 1), sidewalk=(2.8, 6.5),
        house_height=(9.0, 17.0), tower_height=(20.0, 28.0),
    ),
    statistics=Life(
        parked=0.68, parked_gap=(0.4, 1.3), angled=0.18, traffic=(0, 5), cross_traffic=(0, 3), truck=0.15,
        bus=0.13, train=0.055, groups=(0, 3), group_size=(2, 6), loners=(1, 7), racks=0.40, rack_size=(2, 6),
        cyclists=(0.28, 2), motorcyclists=(0.08, 1), parked_motorcycles=0.09, zebra=0.35, trees=0.55,
        yards=0.35, towers=0.03, verges=0.4, lamps=0.8, signs=(1, 5), lights=(0, 3), bins=(0, 2),
        crowds=0.30, bonnet=1.0, reach=45.0,
    ),
    shapes=Shapes(
        cars=("hatchback", "hatchback", "city car", "saloon", "estate", "people carrier", "off-roader",
              "van"),
        trees=("round", "round", "column", "bare"), tree_height=(6.0, 13.0),
        houses=("plain", "balconies", "bays", "cornice", "signs"), build=(0.82, 1.05), carry=0.35,
    ),
)  # fmt: skip

STYLES = {style.name: style for style in (_SYNTHIA, _GTA5, _CITYSCAPES)}


def rich(style: Style) -> Style:
    """The same style, rich in what is rare: scenes in which rare classes can be scored."""
    life = replace(
        style.statistics, truck=0.55, bus=0.5, train=0.5, racks=0.6, cyclists=(0.8, 3),
        motorcyclists=(0.6, 2), parked_motorcycles=0.35,
    )  # fmt: skip
    return replace(style, statistics=life)


def style_of(style: Style | str) -> Style:
    """A style by its name. KeyError for an unknown one."""
    if not isinstance(style, str):
        return style
    if style not in STYLES:
        raise KeyError(f"unknown style {style!r}; expected one of {sorted(STYLES)}")
    return STYLES[style]
