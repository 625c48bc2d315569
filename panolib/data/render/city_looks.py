"""Light and colours of the three styles of the streets.

"synthia" and "gta5" are the labelled sources, "cityscapes" is the target; `city_styles` says what else they
are made of.
"""

from __future__ import annotations

from dataclasses import dataclass

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


SYNTHIA_LOOK = Look(
    zenith=((0.16, 0.36, 0.80), (0.22, 0.42, 0.78)), skyline=((0.66, 0.80, 0.95), (0.72, 0.82, 0.92)),
    clouds=(0.2, 0.9), sun=(0.35, 0.65), shadow=(0.40, 0.60), fog=(0.0008, 0.003),
    fog_colour=((0.66, 0.78, 0.92),), gain=(0.95, 1.2), cast=(1.0, 1.0, 1.02),
    saturation=(1.15, 1.45), gamma=(0.90, 1.05), vignette=(0.0, 0.05), blur=(0.0, 0.30),
    noise=(0.0, 0.008),
)  # fmt: skip

GTA5_LOOK = Look(
    zenith=((0.42, 0.52, 0.66), (0.58, 0.52, 0.48)), skyline=((0.98, 0.86, 0.66), (0.96, 0.78, 0.56)),
    clouds=(0.0, 0.4), sun=(0.45, 0.80), shadow=(0.45, 0.70), fog=(0.004, 0.011),
    fog_colour=((0.95, 0.80, 0.60), (0.90, 0.78, 0.66)), gain=(0.9, 1.2), cast=(1.10, 1.0, 0.86),
    saturation=(0.85, 1.15), gamma=(0.85, 1.0), vignette=(0.0, 0.15), blur=(0.0, 0.35),
    noise=(0.0, 0.012),
)  # fmt: skip

CITYSCAPES_LOOK = Look(
    zenith=((0.86, 0.90, 0.90), (0.78, 0.83, 0.85)), skyline=((0.93, 0.96, 0.95), (0.86, 0.90, 0.90)),
    clouds=(0.0, 0.15), sun=(0.0, 0.22), shadow=(0.30, 0.50), fog=(0.005, 0.014),
    fog_colour=((0.62, 0.68, 0.66), (0.56, 0.62, 0.60)), gain=(0.82, 1.02), cast=(0.92, 1.02, 0.95),
    saturation=(0.35, 0.60), gamma=(0.92, 1.10), vignette=(0.12, 0.30), blur=(0.35, 0.65),
    noise=(0.015, 0.032),
)  # fmt: skip

SYNTHIA_TEXTURE = Texture(
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

GTA5_TEXTURE = Texture(
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

CITYSCAPES_TEXTURE = Texture(
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
