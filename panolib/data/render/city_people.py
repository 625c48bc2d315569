"""People and their two-wheelers as polygons on a canvas. Sizes are metres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from panolib.data.render.city_shapes import BLACK, ROUND, TYRE, Dice, Figure, Frame, darker, figure_shadow
from panolib.data.render.raster import BRICK, STAIN, Canvas, Colour, Material

_SKIN = ((0.86, 0.66, 0.54), (0.72, 0.52, 0.40), (0.50, 0.34, 0.25), (0.34, 0.23, 0.17))
_HAIR = ((0.07, 0.05, 0.04), (0.18, 0.11, 0.07), (0.45, 0.33, 0.18), (0.42, 0.41, 0.40))


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
        dice.shade(dice.pick(_SKIN)), dice.pick(_HAIR), Material(top, STAIN, 0.16, 45.0),
        Material(trousers, STAIN, 0.14, 45.0), Material(dice.shade((0.12, 0.10, 0.09), 0.5)),
    )  # fmt: skip


def _head(figure: Figure, x: float, y: float, wear: Cloth, view: str, helmet: Colour | None = None) -> None:
    """Neck, head and hair; `view` is back, front, or a side (left, right: where the face points)."""
    skin = Material(wear.skin)
    hair = Material(helmet or wear.hair, gloss=0.15 if helmet else 0.0)
    figure.limb(x, y - 0.18, 0.11, x, y - 0.06, 0.10, skin)
    figure.disc(x, y, 0.095, 0.125, skin, roundness=0.5)
    if view == "back":
        figure.disc(x, y + 0.02, 0.10, 0.12, hair, roundness=0.4)
    elif view == "front":
        figure.shape([(x + 0.105 * c, y + 0.02 + 0.115 * s) for c, s in ROUND if s > -0.1], hair)
    else:
        sign = 1 if view == "left" else -1
        figure.disc(x + sign * 0.025, y + 0.03, 0.09, 0.105, hair, roundness=0.4)


def person(
    canvas: Canvas, u: float, z: float, dice: Dice, wear: Cloth, *, height: float = 1.75, level: float = 0.0,
    broad: float = 1.0,
) -> None:  # fmt: skip
    """A pedestrian, standing or walking, in one of four views; `broad` widens the whole figure."""
    size = height / 1.75
    frame = Frame(canvas.camera, u, z, 0.0)
    figure_shadow(canvas, frame, 0.28 * size)
    figure = Figure(canvas, frame, along=False, size=size, level=level, broad=broad)
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
    if dice.chance(0.18):  # a skirt
        figure.shape([(-0.15, 1.0), (0.15, 1.0), (0.24, 0.55), (-0.24, 0.55)], wear.trousers, roundness=0.4)
    sleeve = Material(darker(wear.top.colour, 0.80), STAIN, 0.12, 45.0)
    hem = 0.62 if dice.chance(0.3) else 0.88  # a coat or a jacket
    torso = [(-broad * 0.85, hem), (broad * 0.85, hem), (broad, 1.20), (broad * 1.08, 1.40),
             (broad * 0.55, 1.49), (-broad * 0.55, 1.49), (-broad * 1.08, 1.40), (-broad, 1.20)]  # fmt: skip
    if len(arms) == 1 and dice.chance(0.3):
        bag = Material(dice.shade((0.3, 0.1, 0.1), 0.5))
        figure.shape([(-0.28, 1.35), (-0.12, 1.42), (-0.12, 0.98), (-0.28, 0.98)], bag)
    figure.shape(torso, wear.top, roundness=0.55)
    for side, hand_x, hand_y in arms:
        shoulder, elbow = side * (broad + 0.03), (side * (broad + 0.03) + hand_x) / 2 + 0.03 * side
        figure.limb(shoulder, 1.42, 0.12, elbow, 1.12, 0.10, sleeve, roundness=0.4)
        figure.limb(elbow, 1.14, 0.10, hand_x, hand_y, 0.08, sleeve, roundness=0.4)
        figure.disc(hand_x, hand_y - 0.03, 0.045, 0.055, Material(wear.skin))
    if len(arms) == 2 and dice.chance(0.25):
        bag = Material(dice.shade((0.25, 0.16, 0.10), 0.6))
        figure.shape([(0.20, 0.98), (0.40, 0.98), (0.38, 0.66), (0.22, 0.66)], bag)
    _head(figure, 0.0, 1.625, wear, view)


def carry(
    canvas: Canvas, x: float, z: float, dice: Dice, wear: Cloth, height: float, level: float
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
            figure.disc(off * side, 0.12, 0.12, 0.12, TYRE)
        figure.shape(
            [(0.32 * side, 0.35), (0.95 * side, 0.30), (0.90 * side, 0.75), (0.42 * side, 0.85)], colour
        )
        figure.limb(0.25 * side, 1.0, 0.04, 0.42 * side, 0.45, 0.04, Material(BLACK))


def _seen_end_on(frame: Frame) -> bool:
    return abs(math.cos(frame.turn)) > 0.82


def bicycle(canvas: Canvas, frame: Frame, dice: Dice, colour: Colour, level: float) -> Figure:
    """A bicycle; wheels are see-through, its label fills them. Returns the plane it stands in."""
    figure_shadow(canvas, frame, 0.15, along=0.8)
    metal, dark = Material(colour, gloss=0.1), Material(BLACK)
    if _seen_end_on(frame):
        figure = Figure(canvas, frame, along=False, level=level)
        figure.disc(0, 0.34, 0.055, 0.34, TYRE)
        figure.shape([(-0.05, 0.55), (0.05, 0.55), (0.12, 1.0), (-0.12, 1.0)], dark, visible=False)
        figure.limb(0, 0.5, 0.07, 0, 0.92, 0.06, metal)
        figure.limb(-0.30, 1.04, 0.06, 0.30, 1.04, 0.06, dark)
        figure.limb(-0.11, 0.93, 0.10, 0.11, 0.93, 0.10, dark)
        figure.limb(-0.06, 0.66, 0.09, 0.06, 0.66, 0.09, Material((0.65, 0.06, 0.05)))
        return figure
    figure = Figure(canvas, frame, along=True, level=level)
    rear, front, crank, seat, steer = (-0.52, 0.34), (0.54, 0.34), (-0.06, 0.30), (-0.20, 0.88), (0.38, 0.90)
    figure.shape([rear, crank, front, steer, seat], metal, visible=False)
    figure.ring(*rear, 0.345, 0.265, TYRE)
    figure.ring(*front, 0.345, 0.265, TYRE)
    tubes = (rear, crank), (rear, seat), (crank, seat), (crank, steer), (seat, steer), (front, steer)
    for start, end in tubes:
        figure.limb(*start, 0.065, *end, 0.065, metal)
    figure.limb(-0.34, 0.93, 0.08, -0.08, 0.93, 0.06, dark)
    figure.limb(0.30, 1.04, 0.06, 0.46, 0.98, 0.06, dark)
    figure.limb(0.38, 0.88, 0.05, 0.34, 1.04, 0.05, dark)
    figure.disc(*crank, 0.09, 0.09, dark)
    if dice.chance(0.5):
        figure.limb(-0.78, 0.72, 0.06, -0.30, 0.74, 0.06, dark)
    if dice.chance(0.3):
        wicker = Material((0.36, 0.27, 0.17), BRICK, 0.5, 60.0)
        figure.shape([(0.42, 0.78), (0.72, 0.78), (0.76, 1.02), (0.40, 1.02)], wicker)
    return figure


def motorcycle(canvas: Canvas, frame: Frame, dice: Dice, colour: Colour, level: float) -> Figure:
    """A motorcycle or scooter. Returns the plane it stands in."""
    figure_shadow(canvas, frame, 0.3, along=0.9)
    paint, dark = Material(colour, gloss=0.18), Material(BLACK)
    steel = Material((0.38, 0.38, 0.40), gloss=0.2)
    if _seen_end_on(frame):
        figure = Figure(canvas, frame, along=False, level=level)
        figure.limb(0, 0.0, 0.17, 0, 0.62, 0.17, TYRE)
        figure.shape([(-0.24, 0.34), (0.24, 0.34), (0.20, 0.86), (-0.20, 0.86)], paint, roundness=0.5)
        figure.limb(-0.26, 0.40, 0.14, -0.24, 0.24, 0.12, steel)
        figure.limb(-0.40, 1.02, 0.08, 0.40, 1.02, 0.08, dark)
        figure.shape([(-0.16, 0.86), (0.16, 0.86), (0.12, 1.14), (-0.12, 1.14)], paint, roundness=0.4)
        lamp = (0.75, 0.06, 0.05) if math.cos(frame.turn) > 0 else (0.95, 0.93, 0.80)
        figure.disc(0, 0.76, 0.10, 0.06, Material(lamp))
        for side in (-1, 1):
            figure.disc(side * 0.36, 1.14, 0.07, 0.05, dark)
        return figure
    figure = Figure(canvas, frame, along=True, level=level)
    for x in (-0.68, 0.70):
        figure.disc(x, 0.32, 0.32, 0.32, TYRE)
        figure.disc(x, 0.32, 0.17, 0.17, steel)
    figure.limb(0.70, 0.32, 0.09, 0.46, 1.0, 0.09, steel)
    figure.shape([(-0.45, 0.28), (0.36, 0.26), (0.42, 0.62), (-0.40, 0.60)], dark)
    figure.disc(-0.05, 0.40, 0.19, 0.15, steel)
    tank = [
        (-0.85, 0.72), (-0.30, 0.58), (0.42, 0.58), (0.50, 0.98), (0.20, 0.96), (-0.10, 0.78), (-0.80, 0.84),
    ]  # fmt: skip
    figure.shape(tank, paint, convex=False)
    figure.shape([(-0.72, 0.80), (-0.06, 0.76), (-0.06, 0.86), (-0.74, 0.92)], dark)
    figure.limb(-0.75, 0.34, 0.12, -0.10, 0.28, 0.10, steel)
    figure.shape([(0.44, 0.80), (0.64, 0.84), (0.56, 1.20), (0.42, 1.04)], paint)
    figure.disc(0.62, 0.90, 0.07, 0.08, Material((0.92, 0.90, 0.80)))
    figure.limb(0.26, 1.08, 0.07, 0.48, 1.02, 0.07, dark)
    return figure


def rider(figure: Figure, dice: Dice, wear: Cloth, *, motor: bool) -> None:
    """A person on a two-wheeler, in the plane that bicycle() or motorcycle() returned."""
    helmet = dice.pick(((0.85, 0.85, 0.83), (0.08, 0.08, 0.09), (0.65, 0.10, 0.08), (0.12, 0.25, 0.55)))
    helmet = helmet if motor or dice.chance(0.5) else None
    seat = 0.86 if motor else 0.94
    sleeve = Material(darker(wear.top.colour, 0.80), STAIN, 0.12, 45.0)
    if _seen_end_on(figure.frame):
        low = 0.36 if motor else 0.22
        for side in (-1, 1):
            knee = side * (0.26 if motor else 0.15)
            figure.limb(side * 0.11, seat, 0.20, knee, 0.60, 0.15, wear.trousers, roundness=0.4)
            foot = low + (0.18 if side > 0 and not motor else 0)
            figure.limb(knee, 0.62, 0.14, side * 0.16, foot, 0.11, wear.trousers)
            figure.limb(side * 0.22, seat + 0.46, 0.13, side * 0.37, seat + 0.22, 0.10, sleeve, roundness=0.4)
            figure.limb(side * 0.37, seat + 0.24, 0.10, side * 0.30, seat + 0.10, 0.08, sleeve)
        torso = [(-0.17, seat - 0.08), (0.17, seat - 0.08), (0.24, seat + 0.42), (0.12, seat + 0.54),
                 (-0.12, seat + 0.54), (-0.24, seat + 0.42)]  # fmt: skip
        figure.shape(torso, wear.top, roundness=0.55)
        _head(figure, 0.0, seat + 0.70, wear, "back" if math.cos(figure.frame.turn) > 0 else "front", helmet)
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
    view = "left" if figure.at(1, 1)[0] > figure.at(0, 1)[0] else "right"
    _head(figure, shoulder[0] + 0.06, shoulder[1] + 0.19, wear, view, helmet)
