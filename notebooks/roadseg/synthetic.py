"""Drawn road scenes with exact masks: what the course runs on without dataset1.

A street is a list of things that stand or move along a road. A frame of it is a
perspective drawing of them, in metres, from far to near (the painter's algorithm).
Colour and label go onto the canvas in one stroke, as the four channels of one
image, so picture and mask cannot disagree; then the picture is averaged down and
the mask sampled at the centres of the pixels, so a label is never blended.

The streets keep to the left, as dataset1's do. They are no substitute for it: a
score on drawn scenes says that the code runs, and nothing about real roads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import copysign, cos, exp, pi, sin
from operator import index
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageChops, ImageDraw

from roadseg.classes import NUM_CLASSES, VOID, class_id

SKY, BUILDING, POLE, ROAD = map(class_id, ("Sky", "Building", "Pole", "Road"))
PAVEMENT, TREE, SIGN = map(class_id, ("Pavement", "Tree", "SignSymbol"))
FENCE, CAR, PEDESTRIAN = map(class_id, ("Fence", "Car", "Pedestrian"))
BICYCLIST = class_id("Bicyclist")

SMALLEST, LARGEST = (32, 48), (720, 960)
"""Least and greatest height and width of a scene, in pixels."""
DRIVE_FRAMES = 6
"""Frames of a drive, about one second apart."""

Scene = tuple[np.ndarray, np.ndarray]  # picture and mask
Colour = tuple[float, float, float]
Point = tuple[float, float, float]

SUB = 3  # dots of the canvas along a pixel; odd, so that one is central
NEAR, FAR, HORIZON = 0.8, 130.0, 220.0  # metres
EYE = 1.6  # height of the camera, metres
DEPTHS = (NEAR, 2, 3, 4, 5, 6.5, 8, 10, 13, 17, 22, 28, 36, 46, 60, 80, 110, 150)
FORKS = ((-0.5, 0, 0.5), (-0.5, 0, 0.5), (-0.5, 0.5), (-0.5, 0.5), ())  # radians
GRAIN = np.full(NUM_CLASSES, 0.025)  # of surfaces, relative
GRAIN[[SKY, ROAD, PAVEMENT, TREE]] = 0.004, 0.03, 0.03, 0.05

# The greys of walls, roads, skies and cars overlap on purpose: colour alone must
# not give the class away.
# fmt: off
WALLS = (
    (150, 84, 66), (128, 70, 56), (186, 158, 112), (204, 196, 180), (224, 220, 208),
    (142, 140, 136), (112, 108, 104), (172, 150, 128), (96, 74, 64), (164, 170, 176),
)
ROOFS = ((78, 80, 88), (122, 72, 56), (92, 84, 78), (64, 62, 66))
PAINTS = (
    (24, 26, 30), (30, 32, 36), (168, 172, 176), (196, 198, 200), (226, 226, 222),
    (34, 46, 84), (142, 28, 30), (86, 90, 96), (40, 66, 56), (70, 110, 160),
)
CLOTHES = (
    (34, 36, 44), (52, 50, 52), (84, 72, 60), (40, 54, 88), (128, 42, 44),
    (170, 168, 160), (70, 84, 64), (196, 150, 60),
)
SHOPS = ((40, 60, 110), (132, 30, 36), (30, 84, 66), (36, 36, 40), (206, 160, 60))
LEAVES = ((72, 98, 46), (92, 108, 52), (58, 82, 48), (128, 112, 48), (104, 84, 44))
SKINS = ((224, 184, 156), (196, 150, 120), (130, 92, 70))
WHITE, BLACK, GREY = (226, 226, 220), (20, 21, 24), (124, 128, 128)
GLASS, RED, LAMP = (38, 46, 54), (196, 30, 36), (252, 206, 132)
YELLOW = (216, 184, 62)

# Vehicles from the rear bumper over the roof to the front one: metres from the
# rear, height, half width; and what each stretch between is, body or glass.
VEHICLES = (
    ("bgbgbb", ((0, .22, .84), (0, .94, .87), (.45, 1.42, .66), (2.1, 1.47, .67),
                (3, .98, .85), (3.9, .8, .83), (4, .22, .8))),
    ("bbgbgbb", ((0, .22, .84), (0, .93, .86), (.6, .98, .86), (1.3, 1.4, .66),
                 (2.7, 1.42, .66), (3.5, .97, .86), (4.5, .8, .84), (4.6, .22, .82))),
    ("bgbgbb", ((0, .3, .95), (0, 1.25, .97), (.1, 2.05, .9), (3.5, 2.15, .9),
                (4.3, 1.3, .95), (5, 1.05, .94), (5.1, .3, .9))),
    ("bgbbbgb", ((0, .3, 1.22), (0, 1.6, 1.25), (.03, 2.5, 1.23), (.05, 3, 1.22),
                 (9.4, 3, 1.22), (9.4, 2.7, 1.23), (9.5, 1.2, 1.25), (9.5, .3, 1.25))),
)
# fmt: on


class _Light(NamedTuple):
    """Weather and time of day."""

    zenith: Colour
    horizon: Colour
    clouds: float  # their contrast
    lit: float  # factor on what the sun shines on
    shaded: float  # factor on what it does not
    sun: bool  # whether things cast shadows
    dusk: bool  # whether lamps burn
    tint: Colour  # factors on red, green, blue
    haze: float  # metres


# fmt: off
LIGHTS = (
    _Light((70, 126, 204), (200, 222, 240), 1, 1.12, 0.62, True, False,
           (1.03, 1, 0.95), 420),
    _Light((222, 228, 234), (248, 248, 246), 0.1, 1.1, 0.6, True, False,
           (1.1, 1.06, 1.02), 330),
    _Light((150, 160, 172), (214, 218, 222), 0.9, 0.96, 0.86, False, False,
           (0.97, 1, 1.02), 230),
    _Light((66, 92, 150), (252, 184, 124), 0.5, 0.74, 0.56, False, True,
           (0.98, 0.88, 0.86), 280),
)
# fmt: on


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    return tuple([x + (y - x) * t for x, y in zip(a, b, strict=True)])


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = colour
    return red * factor, green * factor, blue * factor


def _pick(rng: Generator, colours: tuple[Colour, ...]) -> Colour:
    """Return one of the colours, a little changed."""
    return _shade(colours[int(rng.integers(len(colours)))], rng.uniform(0.86, 1.12))


def _smooth(rng: Generator, size: tuple[int, int], octaves: int) -> np.ndarray:
    """Return (H, W) float32 noise, 0 to 1, coarse and fine together."""
    total = np.zeros(size, np.float32)
    for i in range(octaves):
        field = Image.fromarray(rng.random((3 << i, 4 << i), np.float32))
        total += np.asarray(field.resize(size[::-1], Image.Resampling.BICUBIC)) / 1.6**i
    return total / sum(1 / 1.6**i for i in range(octaves))


class _Canvas:
    """Takes shapes in metres; draws colour and label at once.

    x points right of the camera, y up from the road, z ahead.
    """

    def __init__(self, size: tuple[int, int], street: "_Street", sway: np.ndarray):
        self.street, self.light = street, street.light
        height, width = (side * SUB for side in size)
        self.focal = 0.95 * width
        self.centre = width * (0.5 + street.yaw + 0.01 * sway[0])
        self.horizon = height * (0.5 + street.pitch + 0.01 * sway[1])
        self.image = Image.new("RGBA", (width, height))
        self.pen = ImageDraw.Draw(self.image)

    def dot(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Project a point; what lies nearer than `NEAR` is pulled there."""
        z = max(z, NEAR)
        u = self.centre + self.focal * (x / z + self.street.bend * z)
        return u, self.horizon - self.focal * (y - EYE) / z

    def ink(self, label: int, colour: Colour, z: float) -> tuple[int, ...]:
        """Return the four channels to draw with: the colour in haze, the label."""
        clear = exp(-max(z, 0) / self.light.haze)
        red, green, blue = _mix(self.light.horizon, colour, clear)
        return min(255, int(red)), min(255, int(green)), min(255, int(blue)), label

    def shows(self, length: float, z: float) -> bool:
        """Return whether a length in metres is a third of a pixel or more there."""
        return length * self.focal >= z

    def facing(self, x: float) -> float:
        """Return the light on what stands on that side and faces the road."""
        shaded = x * self.street.sun > 0
        return self.light.shaded if shaded else self.light.lit

    def polygon(self, label: int, colour: Colour, points: list[Point]) -> None:
        dots = [self.dot(*point) for point in points]
        across = [u for u, _ in dots]
        if max(across) >= 0 and min(across) < self.image.width:
            depth = max(points[0][2], NEAR) + max(points[len(points) // 2][2], NEAR)
            self.pen.polygon(dots, fill=self.ink(label, colour, depth / 2))

    def wall(self, label, colour: Colour, x, z0, z1, y0, y1) -> None:
        """Draw a rectangle that runs along the road."""
        if z1 > NEAR:
            corners = [(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)]
            self.polygon(label, colour, corners)

    def strip(self, label, colour: Colour, x0, x1, z0=NEAR, z1=HORIZON) -> None:
        """Draw a piece of ground that follows the bend of the road."""
        z0, z1 = max(z0, NEAR), min(z1, HORIZON)
        if z0 < z1:
            steps = [z0, *(z for z in DEPTHS if z0 < z < z1), z1]
            edge = [(x0, 0, z) for z in steps] + [(x1, 0, z) for z in reversed(steps)]
            self.polygon(label, colour, edge)

    def rectangle(self, label, colour: Colour, foot: Point, wide, high) -> None:
        """Draw an upright rectangle that faces the camera, a pixel or more."""
        (u, v), scale = self.dot(*foot), self.focal / max(foot[2], NEAR)
        wide, high = max(SUB, round(wide * scale)), max(SUB, round(high * scale))
        left, low = round(u - wide / 2), round(v)
        box = (left, low - high + 1, left + wide - 1, low)
        self.pen.rectangle(box, fill=self.ink(label, colour, foot[2]))

    def ellipse(self, label, colour: Colour, centre: Point, rx, ry, ring=0.0) -> None:
        """Draw a disc that faces the camera, or a ring of that thickness."""
        (u, v), scale = self.dot(*centre), self.focal / max(centre[2], NEAR)
        box = (u - rx * scale, v - ry * scale, u + rx * scale, v + ry * scale)
        ink = self.ink(label, colour, centre[2])
        if ring:
            self.pen.ellipse(box, outline=ink, width=max(SUB - 1, round(ring * scale)))
        else:
            self.pen.ellipse(box, fill=ink)

    def line(self, label, colour: Colour, a: Point, b: Point, wide, least=SUB) -> None:
        """Draw a line, `least` dots wide or more."""
        wide = max(least, round(wide * self.focal / max(a[2], NEAR)))
        ink = self.ink(label, colour, a[2])
        self.pen.line((self.dot(*a), self.dot(*b)), fill=ink, width=wide)

    def darken(self, shadows: Iterator[list[Point]]) -> None:
        """Darken what is drawn so far under polygons, however they overlap."""
        layer = Image.new("RGBA", self.image.size, (255,) * 4)
        pen = ImageDraw.Draw(layer)
        for points in shadows:
            pen.polygon([self.dot(*p) for p in points], fill=(132, 138, 156, 255))
        # 255 leaves the fourth channel, the label, as it is.
        self.image.paste(ImageChops.multiply(self.image, layer))


class _Place(NamedTuple):
    x: float
    z: float  # of the near end
    length: float  # in z


# What stands along a street. Each function draws one thing at a place; rng gives
# its looks, the same in every frame, so no draw from it may depend on the place.


def _building(c: _Canvas, rng: Generator, at: _Place) -> None:
    x, z, far, side = at.x, at.z, at.z + at.length, copysign(1, at.x)
    wall, floors, storey = _pick(rng, WALLS), rng.integers(2, 5), rng.uniform(2.8, 3.4)
    high, back = floors * storey + 0.5, x + side * rng.uniform(7, 12)
    ridge, top = (x + back) / 2, high + rng.choice((0, 2.5, 4))
    roof = _shade(_pick(rng, ROOFS), c.light.lit)
    end = _shade(wall, (c.light.lit + c.light.shaded) / 2)
    slope = [(x, high, z), (x, high, far), (ridge, top, far), (ridge, top, z)]
    gable = [(x, 0, z), (back, 0, z), (back, high, z), (ridge, top, z), (x, high, z)]
    c.polygon(BUILDING, roof, slope)
    c.polygon(BUILDING, end, gable)
    if top > high and z > 3:  # a chimney
        c.rectangle(BUILDING, end, (ridge, top - 0.3, z), 1.0, 1.5)
        c.rectangle(BUILDING, roof, (ridge, top + 1.2, z), 0.3, 0.5)
    _front(c, rng, at, wall, int(floors), storey)


def _front(c: _Canvas, rng: Generator, at: _Place, wall, floors: int, storey) -> None:
    """Draw the side of a building that faces the road: windows, door or shop."""
    (x, z, length), lit, high = at, c.facing(at.x), floors * storey + 0.5
    trim, shop = _mix(wall, WHITE, rng.uniform(0.1, 0.8)), rng.random() < c.street.shops
    bays, door = max(2, round(length / rng.uniform(2.3, 3.4))), rng.integers(99)

    def patch(colour, a, b, low, top, light=lit):
        c.wall(BUILDING, _shade(colour, light), x, z + a, z + b, low, top)

    patch(wall, 0, length, 0, high)
    for y, tone in zip(np.arange(0, high, 0.5), rng.uniform(0.9, 1, 40), strict=False):
        if c.shows(0.03, z):  # courses of stone or brick
            patch(_shade(wall, tone), 0, length, y, min(y + 0.5, high))
    for y in (storey, high - 0.4):
        patch(trim, 0, length, y, y + 0.3)
    glow = rng.random((floors, bays)) < 0.45 * c.light.dusk
    sheen, tall = rng.uniform(0.1, 0.6, glow.shape), rng.uniform(1.3, 1.9)
    step, windows = length / bays, list(np.ndindex(glow.shape))[shop * bays :]
    for floor, bay in windows if c.shows(0.08, z) else ():
        a, low = (bay + 0.28) * step, floor * storey + 0.9
        b, top = a + 0.44 * step, low + tall
        if floor == 0 and bay == door % bays:
            low, top = 0.1, 2.2
        patch(trim, a - 0.12, b + 0.12, low - 0.12, top + 0.12)
        if glow[floor, bay]:
            patch(LAMP, a, b, low, top, 1.0)
        else:
            pane = _mix(GLASS, c.light.horizon, sheen[floor, bay])
            patch(pane, a, b, low, top, 0.5 + lit / 2)
        if c.shows(0.03, z):
            patch(trim, (a + b) / 2 - 0.04, (a + b) / 2 + 0.04, low, top)
    if shop:
        pane = LAMP if c.light.dusk else _mix(GLASS, c.light.horizon, 0.25)
        for bay in range(bays):
            patch(pane, (bay + 0.06) * step, (bay + 0.94) * step, 0.5, storey - 0.6)
        patch(_pick(rng, SHOPS), 0, length, storey - 0.5, storey + 0.2)
        for a, b in np.sort(rng.uniform(0.2, 0.8, 8)).reshape(-1, 2) * length:
            patch(WHITE, a, b, storey - 0.3, storey)


def _tree(c: _Canvas, rng: Generator, at: _Place) -> None:
    (x, z, _), high = at, rng.uniform(5.5, 9.5)
    kind, bark = rng.random(), _shade((84, 72, 60), rng.uniform(0.7, 1.2))
    c.line(TREE, bark, (x, 0, z), (x, 0.6 * high, z), 0.045 * high)
    if kind < c.street.bare:
        _branches(c, rng, bark, (x, 0.3 * high, z), 0.24 * high)
        return
    spread, low = high * (0.34 if rng.random() < 0.7 else 0.16), 0.28 * high
    leaf = _shade(_mix(c.street.leaf, _pick(rng, LEAVES), 0.3), c.light.lit)
    # Large dark clumps first, then smaller ones, lighter above and to the sun.
    for size, tone, number in ((0.42, 0.5, 24), (0.2, 0.65, 60), (0.08, 0.72, 160)):
        size *= spread
        clumps = rng.random((number, 3))
        for angle, out, shade in clumps if c.shows(0.25 * size, z) else ():
            dx = cos(2 * pi * angle) * out**0.5 * (spread - 0.5 * size)
            dy = sin(2 * pi * angle) * out**0.5 * ((high - low) / 2 - 0.5 * size)
            up = dy / (high - low) + 0.5 + 0.25 * c.street.sun * dx / spread
            spot = (x + dx, (high + low) / 2 + dy, z)
            ink = _shade(leaf, tone + 0.5 * up + 0.25 * shade)
            c.ellipse(TREE, ink, spot, size, 0.8 * size)


def _branches(c: _Canvas, rng: Generator, bark: Colour, foot: Point, size) -> None:
    shoots, z = [(foot[0], foot[1], pi / 2)], foot[2]
    for thick, forks in zip((0.17, 0.13, 0.09, 0.06, 0.035), FORKS, strict=True):
        grown = []
        for x, y, angle in shoots if c.shows(0.3 * size, z) else ():
            tip = (x + size * cos(angle), y + size * sin(angle))
            c.line(TREE, bark, (x, y, z), (*tip, z), thick, least=SUB - 1)
            for fork, turn in zip(forks, rng.uniform(-0.2, 0.2, 3), strict=False):
                grown.append((*tip, angle + fork + turn))
        shoots, size = grown, size * rng.uniform(0.68, 0.82)


def _hedge(c: _Canvas, rng: Generator, at: _Place) -> None:
    leaf, high = _shade(_mix(c.street.leaf, LEAVES[2], 0.6), c.facing(at.x)), 1.5
    for i in reversed(range(round(at.length / 0.35))):
        x, z, ink = at.x, at.z + 0.35 * i, _shade(leaf, rng.uniform(0.6, 1.1))
        if z > 2:
            c.rectangle(TREE, ink, (x, 0, z), 0.6, 0.8 * high)
            c.ellipse(TREE, _shade(ink, 1.1), (x, 0.8 * high, z), 0.35, 0.25 * high)


def _fence(c: _Canvas, rng: Generator, at: _Place) -> None:
    wood, x = rng.random() < 0.5, at.x
    high, step, part = (1.6, 0.22, 1.0) if wood else (1.15, 0.3, 0.4)
    colour = _pick(rng, ((120, 92, 66), (146, 128, 104)) if wood else ((92, 98, 100),))
    colour, far = _shade(colour, c.facing(x)), at.z + at.length
    c.wall(FENCE, _shade(colour, 0.62), x, at.z, far, 0, high)
    for i in reversed(range(int(at.length / step))):
        z, slat = at.z + step * i, _shade(colour, rng.uniform(0.8, 1.1))
        if c.shows(0.06, z):
            c.wall(FENCE, slat, x, z, z + part * step, 0, high)
    for y in (0.2, high):
        c.wall(FENCE, _shade(colour, 1.1), x, at.z, far, y - 0.1, y)


def _garden(c: _Canvas, rng: Generator, at: _Place) -> None:
    """Draw trees, perhaps a house, set back behind a fence, a hedge or both."""
    (x, z, length), side, border = at, copysign(1, at.x), rng.random()
    house, hedge, fence, *trees = map(default_rng, rng.integers(2**32, size=6))
    if rng.random() < 0.5:
        _building(c, house, _Place(x + side * 6, z, length))
    for part, tree in zip((0.85, 0.5, 0.2), trees, strict=True):
        place = _Place(x + side * tree.uniform(1.8, 4), z + part * length, 0)
        if place.z > 2:
            _tree(c, tree, place)
    if border > 0.5:
        _hedge(c, hedge, _Place(x + side * 0.5, z, length))
    if border < 0.75:
        _fence(c, fence, at)


def _lamp(c: _Canvas, rng: Generator, at: _Place) -> None:
    (x, z, _), high = at, rng.uniform(7, 9)
    if not c.shows(0.1, z):
        return
    metal, end = _pick(rng, (GREY, (84, 92, 92), (160, 164, 164))), x - copysign(1.8, x)
    c.rectangle(POLE, metal, (x, 0, z), 0.15, high)
    c.rectangle(POLE, _shade(metal, 0.8), (x, 0, z), 0.26, 1.2)
    c.line(POLE, metal, (x, high, z), (end, high + 0.3, z), 0.12)
    lamp = LAMP if c.light.dusk else _shade(metal, 1.15)
    c.ellipse(POLE, lamp, (end, high + 0.25, z), 0.4, 0.14)


def _bollards(c: _Canvas, rng: Generator, at: _Place) -> None:
    ink = _pick(rng, (BLACK, (150, 150, 146), (92, 70, 54)))
    for z in np.arange(at.z + at.length, max(at.z, 2), -1.6):
        c.rectangle(POLE, ink, (at.x, 0, z), 0.16, 1.0)
        c.rectangle(POLE, _shade(ink, 1.6), (at.x, 0.75, z), 0.16, 0.1)


def _signpost(c: _Canvas, rng: Generator, at: _Place) -> None:
    (x, z, _), kind, y = at, rng.integers(5), rng.uniform(2.3, 2.9)
    c.rectangle(POLE, GREY, (x, 0, z), 0.1, y)
    if kind == 0:  # a limit
        c.ellipse(SIGN, RED, (x, y, z), 0.45, 0.45)
        c.ellipse(SIGN, WHITE, (x, y, z), 0.31, 0.31)
        c.rectangle(SIGN, BLACK, (x, y - 0.14, z), 0.2, 0.28)
    elif kind == 1:  # a warning
        for r, ink in ((0.6, RED), (0.36, WHITE)):
            foot, low = 0.87 * r, y - r / 2
            corners = [(x - foot, low, z), (x + foot, low, z), (x, y + r, z)]
            c.polygon(SIGN, ink, corners)
        c.rectangle(SIGN, BLACK, (x, y - 0.12, z), 0.09, 0.36)
    elif kind == 2:  # traffic lights
        c.rectangle(SIGN, BLACK, (x, y - 0.2, z), 0.44, 1.2)
        on = rng.integers(3)
        for i, lamp in enumerate(((40, 220, 120), (240, 170, 40), (230, 50, 40))):
            lamp = lamp if i == on else _shade(lamp, 0.25)
            c.ellipse(SIGN, lamp, (x, y + 0.02 + 0.36 * i, z), 0.13, 0.13)
    else:  # directions, or an advertisement
        ink = _pick(rng, ((0, 84, 60), (24, 70, 150), (206, 204, 196), (150, 36, 40)))
        wide, high = rng.uniform(0.9, 1.6), rng.uniform(0.8, 1.7)
        c.rectangle(SIGN, WHITE, (x, y - 0.3, z), wide, high)
        c.rectangle(SIGN, ink, (x, y - 0.24, z), wide - 0.12, high - 0.12)
        for low in np.arange(0.1, high - 0.3, 0.28):
            words = rng.uniform(0.3, 0.7) * wide
            c.rectangle(SIGN, WHITE, (x, y - 0.2 + low, z), words, 0.09)


def _clutter(c: _Canvas, rng: Generator, at: _Place) -> None:
    """Draw what dataset1 leaves unlabelled: a bin, a cabinet, a bus shelter."""
    (x, z, _), kind, side = at, rng.integers(3), copysign(1, at.x)
    ink = _pick(rng, ((30, 34, 34), (52, 74, 58), (104, 106, 104)))
    if kind == 0:
        c.rectangle(VOID, ink, (x, 0, z), 0.55, 1.05)
        c.rectangle(VOID, _shade(ink, 1.7), (x, 0.72, z), 0.57, 0.16)
        c.ellipse(VOID, _shade(ink, 0.7), (x, 1.05, z), 0.28, 0.12)
    elif kind == 1:
        c.rectangle(VOID, ink, (x, 0, z), 1.3, 1.4)
        c.rectangle(VOID, _shade(ink, 1.3), (x, 0.1, z), 1.1, 1.2)
    else:
        far, back, pane = z + 4, x + side * 1.2, _mix(c.light.horizon, GLASS, 0.45)
        end = [(x, 0, far), (back, 0, far), (back, 2.3, far), (x, 2.3, far)]
        roof = [(x, 2.4, z), (back, 2.4, z), (back, 2.4, far), (x, 2.4, far)]
        c.polygon(VOID, pane, end)
        c.wall(VOID, _shade(pane, 0.8), back, z, far, 0.3, 2.3)
        for post in (far, z + 2, z):
            c.line(VOID, ink, (back, 0, post), (back, 2.4, post), 0.1)
        c.polygon(VOID, ink, roof)
        c.wall(VOID, ink, x, z, far, 2.3, 2.55)


def _vehicle(c: _Canvas, rng: Generator, at: _Place, oncoming: bool = False) -> None:
    (x, z, _), number = at, int(rng.choice(4, p=(0.45, 0.3, 0.19, 0.06)))
    (stuff, outline), paint = VEHICLES[number], _pick(rng, PAINTS)
    long, (_, belt, wide) = outline[-1][0], outline[1]
    outline = [(z + (long - d if oncoming else d), y, half) for d, y, half in outline]
    inks = {"b": paint, "g": _mix(GLASS, c.light.horizon, 0.25)}
    c.strip(ROAD, (40, 41, 45), x - wide, x + wide, z - 0.1, z + long)
    for tyre in (x - wide + 0.16, x + wide - 0.16):
        c.rectangle(CAR, BLACK, (tyre, 0, z + 0.1), 0.24, 0.5)
    stretches = zip(stuff, outline[:-1], outline[1:], strict=True)
    for part, a, b in sorted(stretches, key=lambda s: -s[1][0] - s[2][0]):
        ink = _shade(inks[part], 0.76 if a[0] == b[0] else 0.9)
        left, right = ([(x + s * w, y, d) for d, y, w in (a, b)] for s in (-1, 1))
        c.polygon(CAR, ink, left + right[::-1])
    if abs(shown := x + c.street.bend * z * z) > wide:  # one flank can be seen
        near, light = -copysign(1, shown), c.facing(shown) * 0.9
        flank = [(x + near * half, y, d) for d, y, half in outline]
        c.polygon(CAR, _shade(paint, light), flank)
        first, last = stuff.index("g"), stuff.rindex("g")
        panes = [flank[i] for i in (first, first + 1, last, last + 1)]
        middle = tuple(sum(p[i] for p in panes) / 4 for i in range(3))
        a, b, e, f = (_mix(p, middle, 0.16) for p in panes)
        c.polygon(CAR, _shade(inks["g"], 0.8), [a, b, e, f])
        for t in (0.36, 0.62):
            c.line(CAR, _shade(paint, light), _mix(a, f, t), _mix(b, e, t), 0.09)
        for radius, ink in ((0.33, BLACK), (0.19, GREY)):
            for hub in (z + 0.78, z + long - 0.78):
                rim = _circle(radius, 12)
                wheel = [(x + near * wide, 0.32 + p, hub + q) for p, q in rim]
                c.polygon(CAR, ink, wheel)
    lamp, plate = ((250, 246, 226), WHITE) if oncoming else ((214, 34, 30), YELLOW)
    lamp = _shade(lamp, 1.0 if c.light.dusk else 0.8)
    for corner in (x - wide + 0.15, x + wide - 0.15) if z > 2 else ():
        c.rectangle(CAR, lamp, (corner, belt - 0.3, z), 0.26, 0.2)
    if z > 2:
        c.rectangle(CAR, _shade(paint, 0.5), (x, 0.28, z), 2 * wide - 0.1, 0.16)
        c.rectangle(CAR, plate, (x, belt - 0.42, z), 0.5, 0.13)


def _circle(radius: float, corners: int) -> list[tuple[float, float]]:
    turns = [2 * pi * i / corners for i in range(corners)]
    return [(radius * cos(turn), radius * sin(turn)) for turn in turns]


def _person(c: _Canvas, rng: Generator, at: _Place) -> None:
    (x, z, _), tall, stride = at, rng.uniform(1.55, 1.88), rng.uniform(0.05, 0.32)
    coat, trousers, skin = _pick(rng, CLOTHES), _pick(rng, CLOTHES), _pick(rng, SKINS)
    coat, trousers = _shade(coat, c.light.lit), _shade(trousers, c.light.lit)

    def limb(ink, x0, y0, x1, y1, wide):
        a, b = (x + x0, y0 * tall, z), (x + x1, y1 * tall, z)
        c.line(PEDESTRIAN, ink, a, b, wide)

    for way in (-1, 1):
        limb(trousers, way * stride, 0.02, way * 0.07, 0.5, 0.17)
        limb(_shade(coat, 0.8), way * (0.2 + stride / 2), 0.46, way * 0.19, 0.78, 0.12)
    half = ((0.2, 0.46), (0.24, 0.76), (0.12, 0.84))
    body = [*half, *((-dx, y) for dx, y in reversed(half))]
    c.polygon(PEDESTRIAN, coat, [(x + dx, y * tall, z) for dx, y in body])
    hair = _shade((58, 44, 34), rng.uniform(0.4, 1.6))
    c.ellipse(PEDESTRIAN, hair, (x, 0.93 * tall, z), 0.12, 0.15)
    c.ellipse(PEDESTRIAN, skin, (x + 0.02, 0.91 * tall, z), 0.09, 0.11)
    if rng.random() < 0.4:
        bag = (x + rng.choice((-0.32, 0.32)), 0.4 * tall, z)
        c.rectangle(PEDESTRIAN, _pick(rng, CLOTHES), bag, 0.26, 0.34)


def _cyclist(c: _Canvas, rng: Generator, at: _Place) -> None:
    (x, z, _), lean = at, rng.uniform(-0.35, 0.35)
    coat, trousers = _pick(rng, ((214, 196, 40), *CLOTHES)), _pick(rng, CLOTHES)
    skin, frame, helmet = _pick(rng, SKINS), _pick(rng, PAINTS), _pick(rng, PAINTS)

    def limb(ink, x0, y0, x1, y1, wide=0.06):
        c.line(BICYCLIST, ink, (x + x0, y0, z), (x + x1, y1, z), wide)

    for way in (-1, 1):  # two wheels, foreshortened
        wheel = (x + way * lean, 0.34, z)
        c.ellipse(BICYCLIST, BLACK, wheel, 0.06 + abs(lean) / 2, 0.34, ring=0.06)
    limb(frame, -lean, 0.34, lean, 0.36)
    limb(frame, 0, 0.3, -lean * 0.3, 0.95)
    limb(frame, lean, 0.34, lean * 0.8, 1.0)
    limb(BLACK, lean * 0.8 - 0.25, 1.02, lean * 0.8 + 0.25, 1.02)
    for way, knee in ((-1, 0.62), (1, 0.74)):
        limb(trousers, way * 0.1, knee - 0.42, way * 0.15, knee, 0.15)
        limb(trousers, way * 0.15, knee, way * 0.08, 1.0, 0.18)
        shoulder, hand = way * 0.2 + lean * 0.3, way * 0.27 + lean * 0.7
        limb(_shade(coat, 0.8), shoulder, 1.42, hand, 1.04, 0.12)
    bow = lean * 0.4
    body = ((-0.17, 0.9), (0.17, 0.9), (bow + 0.23, 1.44), (bow - 0.23, 1.44))
    c.polygon(BICYCLIST, _shade(coat, c.light.lit), [(x + dx, y, z) for dx, y in body])
    c.ellipse(BICYCLIST, skin, (x + lean * 0.5, 1.58, z), 0.1, 0.14)
    c.ellipse(BICYCLIST, helmet, (x + lean * 0.5, 1.66, z), 0.14, 0.1)


@dataclass(frozen=True)
class _Thing:
    draw: Callable[[_Canvas, Generator, _Place], None]
    seed: int
    x: float
    z: float  # of the near end, metres along the street in frame 0
    length: float
    speed: float  # metres a frame
    casts: tuple[float, float] | None  # height and half width, if it casts a shadow


class _Street:
    """What the frames of a drive share: light, layout, everything along the road."""

    def __init__(self, *seed: int):
        self.seed, self.rng = seed, default_rng(seed)
        rng = self.rng
        self.light = LIGHTS[int(rng.integers(len(LIGHTS)))]
        self.sun = int(rng.choice((-1, 1)))  # the side it stands on, 1 is right
        self.cast = (-self.sun * rng.uniform(0.4, 1.0), rng.uniform(-0.3, 0.6))
        self.bend, self.yaw = rng.uniform(-9e-4, 9e-4), rng.uniform(-0.12, 0.08)
        self.pitch, self.bonnet = rng.uniform(-0.03, 0.03), rng.random() < 0.35
        self.leaf, self.bare = _pick(rng, LEAVES), rng.choice((0.05, 0.4, 0.75))
        self.shops, self.speed = rng.uniform(0, 0.9), rng.uniform(4, 9)
        self.parking = rng.random(2) < 0.3
        left = -rng.uniform(1.8, 2.4) - 1.7 * self.parking[0]
        right = rng.uniform(4.4, 5.4) + 1.7 * self.parking[1]
        self.kerbs = (left, right)
        self.fronts = (left - rng.uniform(2.4, 5.4), right + rng.uniform(2.4, 5.4))
        self.asphalt = _shade((104, 104, 106), rng.uniform(0.8, 1.25))
        self.slabs = _shade((150, 144, 138), rng.uniform(0.75, 1.15))
        self.yellow, self.lane = rng.random(2) < (0.5, 0.3)
        self.zebra, self.patches = rng.uniform(12, 70), rng.random((24, 5))
        self.clouds, self.skyline = _smooth(rng, (72, 96), 4), rng.random((28, 4))
        self.things: list[_Thing] = []
        self.junctions: list[tuple[float, float]] = []
        for kerb, front in zip(self.kerbs, self.fronts, strict=True):
            self._plots(front, rng.uniform(0.6, 0.88))
            self._furniture(kerb, front)
        self._traffic()

    def _add(self, draw, x, z, length=0.0, speed=0.0, casts=None) -> None:
        seed = int(self.rng.integers(2**32))
        self.things.append(_Thing(draw, seed, x, z, length, speed, casts))

    def _along(self, low: float, high: float) -> Iterator[float]:
        z = self.rng.uniform(-4, high)
        while z < FAR + 60:
            yield z
            z += self.rng.uniform(low, high)

    def _plots(self, x: float, built: float) -> None:
        z, number = -16.0, 0
        while z < FAR + 60:
            length, fate = self.rng.uniform(8, 16), self.rng.random()
            if number == 2 or built < fate < 0.94:  # one in sight in every street
                self._add(_garden, x, z, length - 0.5)
            elif fate < built:
                self._add(_building, x, z, length, casts=(9, 0))
            else:
                length = 7
                self.junctions.append((x, z))
            z, number = z + length, number + 1

    def _furniture(self, kerb: float, front: float) -> None:
        rng, side, room = self.rng, copysign(1, kerb), abs(front - kerb)
        edge = kerb + side * 0.4
        for z in self._along(22, 34):
            self._add(_lamp, edge, z, casts=(8, 0.05))
        for z in self._along(8, 20):
            self._add(_signpost, edge + side * rng.uniform(0, 0.5), z, casts=(2.5, 0.1))
        for z in self._along(9, 26):
            self._add(_clutter, kerb + side * rng.uniform(0.7, 1.1), z, casts=(1, 0.3))
        for z in self._along(9, 22) if rng.random() < 0.4 else ():
            self._add(_tree, kerb + side * 0.8, z, casts=(6, 0.15))
        for z in self._along(25, 60):
            draw = (_bollards, _fence)[int(rng.integers(2))]
            self._add(draw, edge, z, rng.uniform(6, 12))
        for z in self._along(4, 15):
            x = kerb + side * rng.uniform(0.6, room - 0.3)
            self._add(_person, x, z, 0, rng.uniform(-1.2, 1.2), (1.6, 0.2))

    def _traffic(self) -> None:
        rng, (left, right), car = self.rng, self.kerbs, (1.4, 0.85)
        come = partial(_vehicle, oncoming=True)
        for z in self._along(5.5, 16) if self.parking[0] else ():
            self._add(_vehicle, left + 1.1, z, 3.5, casts=car)
        for z in self._along(5.5, 16) if self.parking[1] else ():
            self._add(come, right - 1.1, z, 3.5, casts=car)
        for z in self._along(20, 60):
            self._add(come, 2.9, z, 3.5, -self.speed, car)
        ahead = rng.uniform(9, 40)
        for z in (ahead, ahead + rng.uniform(9, 14)):
            self._add(_vehicle, 0.2, z, 3.5, self.speed + rng.uniform(-0.6, 0.9), car)
        for z in (rng.uniform(6, 16), rng.uniform(16, 30)):
            drift = self.speed + rng.uniform(-0.5, 0.5)
            self._add(_cyclist, max(left + 0.6, -1.5), z, 0, drift, (1.6, 0.2))
        for z in self._along(30, 60):
            x = right - 0.6 - 1.8 * self.parking[1]
            self._add(_cyclist, x, z, 0, -3, (1.6, 0.2))

    def frame(self, number: int, size: tuple[int, int]) -> Scene:
        """Draw a frame, counted from 0; return picture and mask."""
        rng, at = default_rng((*self.seed, number + 1)), self.speed * number
        c, here = _Canvas(size, self, rng.standard_normal(2)), []
        for thing in self.things:
            place = _Place(thing.x, thing.z + thing.speed * number - at, thing.length)
            end = place.z + place.length
            # In sight, with room for what reaches out to the side, such as a crown.
            if place.z < FAR and end > 2.2 and abs(place.x) < 0.7 * end + 3.5:
                here.append((end, thing, place))
        here.sort(key=lambda item: -item[0])
        self._sky(c)
        self._ground(c, at)
        if self.light.sun:
            c.darken(s for _, t, p in here if t.casts for s in self._shadows(t, p))
        for _, thing, place in here:
            thing.draw(c, default_rng(thing.seed), place)
        if self.bonnet:
            width, height = c.image.size
            for ink, low in (((26, 28, 32), 0.94), ((44, 47, 54), 0.965)):
                box = (-0.2 * width, low * height, 1.2 * width, 1.4 * height)
                c.pen.ellipse(box, fill=(*ink, VOID))
        return self._develop(c, rng)

    def _sky(self, c: _Canvas) -> None:
        fall = np.linspace(0, 1, len(self.clouds))[:, None, None] ** 1.3
        sky = np.array(self.light.zenith) * (1 - fall) + fall * self.light.horizon
        cover = np.clip(3.5 * (self.clouds - 0.45), 0, 1)[..., None] * self.light.clouds
        cloud = np.array(_mix(self.light.horizon, (250, 250, 250), 0.4))
        cloud = cloud * (1.25 - 0.5 * self.clouds[..., None])
        sky = Image.fromarray((sky + (cloud - sky) * cover).clip(0, 255).astype("u1"))
        low = round(c.horizon + c.focal * EYE / HORIZON) + SUB  # where the ground ends
        sky = sky.resize((c.image.width, low), Image.Resampling.BICUBIC)
        sky.putalpha(SKY)
        c.image.paste(sky)
        for i, (dx, high, wide, kind) in enumerate(self.skyline):  # the far end
            x = -120 + 8.8 * i + 8 * dx
            if kind < 0.6:
                crown, ink = (x, 2 + 2 * high, 150), _shade(self.leaf, 0.6 + 0.3 * wide)
                c.ellipse(TREE, ink, crown, 5 + 4 * wide, 5 + 3 * high)
            else:
                wall = _shade(WALLS[int(100 * wide) % len(WALLS)], 0.8)
                c.rectangle(BUILDING, wall, (x, 0, 150), 8 + 6 * wide, 6 + 10 * high)

    def _ground(self, c: _Canvas, at: float) -> None:
        left, right = self.kerbs
        grass = _shade(_mix(self.leaf, (96, 120, 60), 0.6), self.light.lit)
        c.strip(TREE, grass, -250, 250)
        for kerb, front in zip(self.kerbs, self.fronts, strict=True):
            side = copysign(1, kerb)
            c.strip(PAVEMENT, self.slabs, kerb, front)
            for z in np.arange(-at % 1.5, min(40, 0.07 * c.focal), 1.5):
                c.strip(PAVEMENT, _shade(self.slabs, 0.86), kerb, front, z, z + 0.07)
            for x in np.arange(kerb + side * 0.9, front, side * 0.9):
                c.strip(PAVEMENT, _shade(self.slabs, 0.9), x, x + 0.05)
            c.strip(PAVEMENT, _shade(self.slabs, 1.22), kerb, kerb + side * 0.22)
            c.strip(PAVEMENT, _shade(self.slabs, 0.6), kerb, kerb + side * 0.05)
        c.strip(ROAD, self.asphalt, left, right)
        for x, z in self.junctions:
            c.strip(ROAD, self.asphalt, 0, 9 * x, z - at, z - at + 7)
        if self.lane:
            c.strip(ROAD, _mix(self.asphalt, (150, 70, 58), 0.6), left, left + 1.3)
        for x in (-0.75, 0.85, 2.2, 3.6):  # where tyres run
            c.strip(ROAD, _shade(self.asphalt, 0.93), x - 0.25, x + 0.25)
        for x, z, wide, long, tone in self.patches:
            x, z = left + x * (right - left - 1), z * 180 - at
            ink = _shade(self.asphalt, 0.72 + 0.4 * tone)
            c.strip(ROAD, ink, x, x + 0.3 + 0.7 * wide, z, z + 0.5 + 5 * long**2)
        for gap in (0.3, 0.5) if self.yellow else ():
            for x in (left + gap, right - gap):
                c.strip(ROAD, _shade(YELLOW, 0.92), x - 0.05, x + 0.05)
        for z in np.arange(-at % 6 - 6, 90, 6):
            c.strip(ROAD, WHITE, 1.38, 1.52, z, z + 3)
        zebra = self.zebra - at
        for x in np.arange(left + 0.3, right - 0.5, 1.2):
            c.strip(ROAD, WHITE, x, x + 0.6, zebra, zebra + 3)

    def _shadows(self, thing: _Thing, at: _Place) -> Iterator[list[Point]]:
        (high, half), (x, z, length) = thing.casts, at
        dx, dz = high * self.cast[0], high * self.cast[1]
        for way in (-half, half):  # both diagonals of the ground it stands on, swept
            a, b = (x - way, z), (x + way, z + length)
            edge = [a, b, (b[0] + dx, b[1] + dz), (a[0] + dx, a[1] + dz)]
            yield [(x, 0, z) for x, z in edge]
        if thing.draw is _tree:
            reach = default_rng(thing.seed).uniform(0.7, 1.2, 18)
            crown = zip(reach, _circle(2.2, 18), strict=True)
            yield [(x + dx + r * p, 0, z + dz + r * q) for r, (p, q) in crown]

    def _develop(self, c: _Canvas, rng: Generator) -> Scene:
        """Turn the canvas into picture and mask; add grain, tint and vignette."""
        *rgb, labels = c.image.split()
        mask = np.asarray(labels)[SUB // 2 :: SUB, SUB // 2 :: SUB].copy()
        picture = np.asarray(Image.merge("RGB", rgb).reduce(SUB)).astype(np.float32)
        y, x = np.ogrid[-1 : 1 : mask.shape[0] * 1j, -1 : 1 : mask.shape[1] * 1j]
        gain = 1 + rng.standard_normal(mask.shape, np.float32) * GRAIN[mask]
        gain += 0.22 * (_smooth(rng, mask.shape, 5) - 0.5) * (mask != SKY)
        gain *= rng.uniform(0.97, 1.05) * (1 - 0.1 * (x * x + y * y))
        noise = 2 * rng.standard_normal(picture.shape, np.float32)
        picture = picture * gain[..., None] * self.light.tint + noise
        return picture.clip(0, 255).astype(np.uint8), mask


def _checked(count: int, size: tuple[int, int], seed: int) -> tuple[int, int]:
    """Return the size as two ints; raise ValueError if anything is out of range."""
    for name, value in (("count", count), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, not {value}")
    try:
        height, width = (index(side) for side in size)
    except (TypeError, ValueError):
        height = width = 0
    (low, narrow), (high, wide) = SMALLEST, LARGEST
    if not (low <= height <= high and narrow <= width <= wide):
        raise ValueError(
            f"size must be (height, width), whole pixels from {SMALLEST} to {LARGEST}, "
            f"not {size!r}"
        )
    return height, width


def draw_scene(seed: int, size: tuple[int, int] = (360, 480)) -> Scene:
    """Draw one road scene.

    Args:
        seed: 0 or more. The same seed and size give the same bytes; the same seed
            in another size, the same street.
        size: Height and width in pixels, (32, 48) to (720, 960).

    Returns:
        The picture, (H, W, 3) uint8, red, green and blue, 0 to 255, and its mask,
        (H, W) uint8, ids 0 to 11 as in `classes.NAMES`.

    Raises:
        ValueError: If the seed is negative or the size out of range.
    """
    size = _checked(0, size, seed)
    return _Street(seed).frame(0, size)


def draw_scenes(
    count: int, size: tuple[int, int], seed: int = 0
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Draw scenes as a camera sees them on several drives.

    Six frames, about a second apart, make a drive along one street, so frames of a
    drive resemble each other, as dataset1's do. The first scenes are the same
    whatever the count. Another seed gives other streets under the same names.

    Args:
        count: How many scenes, 0 or more.
        size: Height and width in pixels, (32, 48) to (720, 960).
        seed: 0 or more.

    Returns:
        An iterator over (file name, picture, mask), each drawn when asked for:
        names like ``Drawn01_000030.png`` (drive and video frame), pictures and
        masks as `draw_scene` returns them.

    Raises:
        ValueError: If count or seed is negative or the size out of range.
    """
    return _drives(count, _checked(count, size, seed), seed)


def _drives(count: int, size: tuple[int, int], seed: int):
    for i in range(count):
        drive, frame = divmod(i, DRIVE_FRAMES)
        if frame == 0:
            street = _Street(seed, drive + 1)
        name = f"Drawn{drive + 1:02}_{30 * (frame + 1):06}.png"
        yield name, *street.frame(frame, size)
