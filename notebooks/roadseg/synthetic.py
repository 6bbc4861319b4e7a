"""Synthetic road scenes with exact masks: what the course runs on without dataset1.

A frame of a street is a perspective drawing, in meters, of what stands or moves along
it, from far to near (the painter's algorithm). Color and class id are drawn in one
stroke, as the four channels of one image, so image and mask can't disagree. Then the
image is averaged down and the mask sampled at the centers of the pixels, so that ids
are never blended.

Traffic keeps to the left, as in dataset1. The scenes are no substitute for it: a
score on them says that the code runs, and nothing about real roads.
"""

from collections.abc import Iterator
from functools import partial
from math import copysign, cos, exp, pi, sin

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw

from roadseg.classes import CAMVID

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, *_OTHERS = range(CAMVID.num_classes)
SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST, VOID = _OTHERS

SMALLEST, LARGEST = (32, 48), (720, 960)  # height and width of a scene, in pixels
SEQUENCE_FRAMES = 6  # about one second apart

Scene = tuple[np.ndarray, np.ndarray]  # image and mask
Color = tuple[float, float, float]
Point = tuple[float, float, float]

SUB = 3  # dots of the canvas along a pixel; odd, so that one is central
NEAR, FAR, HORIZON, EYE = 0.8, 130.0, 220.0, 1.6  # meters; EYE is the camera's height

# The grays of walls, roads, skies and cars overlap on purpose: color alone must not
# give the class away.
# fmt: off
WALLS = ((150, 84, 66), (186, 158, 112), (204, 196, 180), (142, 140, 136),
         (112, 108, 104), (172, 150, 128), (96, 74, 64), (164, 170, 176))
PAINTS = ((24, 26, 30), (34, 46, 84), (168, 172, 176), (226, 226, 222), (142, 28, 30),
          (86, 90, 96), (40, 66, 56), (70, 110, 160))
CLOTHES = ((34, 36, 44), (84, 72, 60), (40, 54, 88), (128, 42, 44), (170, 168, 160),
           (70, 84, 64), (196, 150, 60))
LEAVES = ((72, 98, 46), (92, 108, 52), (58, 82, 48), (128, 112, 48))
BOARDS = ((0, 84, 60), (24, 70, 150), (206, 204, 196), (150, 36, 40))
ROOF, SKIN, WHITE, BLACK = (84, 78, 78), (204, 160, 130), (226, 226, 220), (20, 21, 24)
GRAY, GLASS, RED, LAMP = (124, 128, 128), (38, 46, 54), (196, 30, 36), (252, 206, 132)
# Sides of a car and of a van: meters from the rear, height, half the width. The upper
# stretches, 1 and 3, are glass.
VEHICLES = (((0, .25, .84), (0, .94, .87), (.5, 1.43, .66), (2.3, 1.46, .66),
             (3.1, .97, .85), (4.2, .8, .82), (4.2, .25, .82)),
            ((0, .3, .95), (0, 1.25, .97), (.1, 2.1, .9), (3.6, 2.15, .9),
             (4.4, 1.3, .95), (5.1, 1.05, .94), (5.1, .3, .9)))
# Weather: sky above and at the horizon, light in the sun and in the shade, whether
# lamps burn, tint, haze in meters.
LIGHTS = (((70, 126, 204), (200, 222, 240), 1.12, .62, False, (1.03, 1, .95), 420),
          ((222, 228, 234), (248, 248, 246), 1.1, .6, False, (1.1, 1.06, 1.02), 330),
          ((150, 160, 172), (214, 218, 222), .96, .86, False, (.97, 1, 1.02), 230),
          ((66, 92, 150), (252, 184, 124), .74, .56, True, (.98, .88, .86), 280))
# Limbs of people: paint (coat, trousers, sleeves, frame), from x, y to x, y, width.
WALKER = ((1, -.2, 0, -.08, .85, .17), (1, .2, 0, .08, .85, .17),
          (2, -.3, .8, -.2, 1.35, .12), (2, .3, .8, .2, 1.35, .12),
          (0, 0, .78, 0, 1.45, .42))
RIDER = ((3, -.25, .34, .25, .36, .06), (3, 0, .3, -.08, .95, .06),
         (3, .25, .34, .2, 1, .06), (3, -.05, 1.02, .45, 1.02, .06),
         (1, -.1, .2, -.15, .62, .15), (1, -.15, .62, -.08, 1, .18),
         (1, .1, .32, .15, .74, .15), (1, .15, .74, .08, 1, .18),
         (2, -.15, 1.42, -.1, 1.04, .12), (2, .25, 1.42, .42, 1.04, .12),
         (0, 0, .9, .1, 1.46, .4))
# fmt: on


def _mix(a: Color, b: Color, t: float) -> Color:
    return tuple(x + (y - x) * t for x, y in zip(a, b, strict=True))


def _shade(color: Color, factor: float) -> Color:
    return tuple(value * factor for value in color)


def _pick(rng: Generator, colors: tuple[Color, ...]) -> Color:
    return _shade(colors[int(rng.integers(len(colors)))], rng.uniform(0.86, 1.12))


def _noise(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W) float32 noise, 0 to 1, coarse and fine together."""
    total = np.zeros(size, np.float32)
    for i in range(5):
        field = Image.fromarray(rng.random((3 << i, 4 << i), np.float32))
        total += np.asarray(field.resize(size[::-1], Image.Resampling.BICUBIC)) / 1.6**i
    return total / sum(1 / 1.6**i for i in range(5))


class _Canvas:
    """Takes shapes in meters; draws color and id at once.

    x points right of the camera, y up from the road, z ahead.
    """

    def __init__(self, size: tuple[int, int], street: "_Street", sway: np.ndarray):
        self.street = street
        self.above, self.sky, self.lit, self.shaded, *rest = street.light
        self.dusk, self.tint, self.haze = rest
        height, width = (side * SUB for side in size)
        self.focal = 0.95 * width
        self.center = width * (0.5 + street.yaw + 0.01 * sway[0])
        self.horizon = height * (0.5 + street.pitch + 0.01 * sway[1])
        self.image = Image.new("RGBA", (width, height))
        self.pen = ImageDraw.Draw(self.image)

    def dot(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Project a point; what is nearer than `NEAR` is pulled there."""
        z = max(z, NEAR)
        u = self.center + self.focal * (x / z + self.street.bend * z)
        return u, self.horizon - self.focal * (y - EYE) / z

    def ink(self, label: int, color: Color, z: float) -> tuple[int, ...]:
        """Return the four channels to draw with: the color in haze, the id."""
        clear = exp(-max(z, 0) / self.haze)
        return *(min(255, int(v)) for v in _mix(self.sky, color, clear)), label

    def shows(self, length: float, z: float) -> bool:
        """Return whether a length is a third of a pixel or more there."""
        return length * self.focal >= z

    def facing(self, x: float) -> float:
        return self.shaded if x * self.street.sun > 0 else self.lit

    def polygon(self, label: int, color: Color, points: list[Point]) -> None:
        depth = max(points[0][2], NEAR) + max(points[len(points) // 2][2], NEAR)
        dots = [self.dot(*point) for point in points]
        self.pen.polygon(dots, fill=self.ink(label, color, depth / 2))

    def wall(self, label: int, color: Color, x, z0, z1, y0, y1) -> None:
        if z1 > NEAR:
            corners = [(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)]
            self.polygon(label, color, corners)

    def strip(self, label: int, color: Color, x0, x1, z0=NEAR, z1=HORIZON) -> None:
        z0, z1 = max(z0, NEAR), min(z1, HORIZON)
        if z0 < z1:
            steps = np.geomspace(z0, z1, 2 if z1 < 1.5 * z0 else 14)
            edge = [(x0, 0, z) for z in steps] + [(x1, 0, z) for z in steps[::-1]]
            self.polygon(label, color, edge)

    def box(self, label: int, color: Color, foot: Point, wide, high) -> None:
        # upright, facing the camera, a pixel or more
        (u, v), scale = self.dot(*foot), self.focal / max(foot[2], NEAR)
        wide, high = max(SUB, round(wide * scale)), max(SUB, round(high * scale))
        left, low = round(u - wide / 2), round(v)
        corners = (left, low - high + 1, left + wide - 1, low)
        self.pen.rectangle(corners, fill=self.ink(label, color, foot[2]))

    def disc(self, label: int, color: Color, center: Point, rx, ry, ring=0.0) -> None:
        (u, v), scale = self.dot(*center), self.focal / max(center[2], NEAR)
        corners = (u - rx * scale, v - ry * scale, u + rx * scale, v + ry * scale)
        ink, wide = self.ink(label, color, center[2]), max(2, round(ring * scale))
        self.pen.ellipse(corners, None if ring else ink, ink, wide if ring else 1)

    def line(self, label: int, color: Color, a: Point, b: Point, wide) -> None:
        wide = max(SUB, round(wide * self.focal / max(a[2], NEAR)))
        ink = self.ink(label, color, a[2])
        self.pen.line((self.dot(*a), self.dot(*b)), fill=ink, width=wide)


# What there is along a street. Each function draws one thing with its near end at
# (x, z), length meters long. rng gives its looks, the same in every frame, so no draw
# from it may depend on the position.


def _building(c: _Canvas, rng: Generator, x, z, length) -> None:
    wall, floors, lit = _pick(rng, WALLS), int(rng.integers(2, 5)), c.facing(x)
    trim = _shade(_mix(wall, WHITE, rng.uniform(0.2, 0.9)), lit)
    high, far, back = 3 * floors + 0.5, z + length, x + copysign(9, x)
    ridge, top, shop = (x + back) / 2, high + 3 * rng.integers(2), _pick(rng, BOARDS)
    slope = [(x, high, z), (x, high, far), (ridge, top, far), (ridge, top, z)]
    gable = [(x, 0, z), (back, 0, z), (back, high, z), (ridge, top, z), (x, high, z)]
    c.polygon(BUILDING, _shade(ROOF, lit), slope)
    c.polygon(BUILDING, _shade(wall, (c.lit + c.shaded) / 2), gable)
    c.wall(BUILDING, _shade(wall, lit), x, z, far, 0, high)
    c.wall(BUILDING, trim, x, z, far, high - 0.4, high)
    looks = rng.random((floors, round(length / 2.8)))
    for floor, bay in np.ndindex(looks.shape) if c.shows(0.08, z) else ():
        a, low = z + (bay + 0.25) * length / looks.shape[1], 3 * floor + 0.9
        glow = c.dusk and looks[floor, bay] < 0.45
        pane = _shade(_mix(GLASS, c.sky, looks[floor, bay] / 2), 0.5 + lit / 2)
        c.wall(BUILDING, trim, x, a - 0.1, a + 1.4, low - 0.1, low + 1.5)
        c.wall(BUILDING, LAMP if glow else pane, x, a, a + 1.3, low, low + 1.4)
    if looks[0, 0] < 0.4:
        c.wall(BUILDING, _shade(shop, lit), x, z, far, 2.5, 3.2)


def _tree(c: _Canvas, rng: Generator, x, z, length) -> None:
    high, leaf = rng.uniform(5.5, 9.5), _mix(c.street.leaf, _pick(rng, LEAVES), 0.3)
    c.line(TREE, (84, 72, 60), (x, 0, z), (x, 0.6 * high, z), 0.045 * high)
    # Large dark clumps first, then smaller ones, lighter above and toward the sun.
    for size, tone, number in ((0.15, 0.5, 20), (0.07, 0.65, 50), (0.04, 0.72, 90)):
        clumps = rng.random((number, 3))
        for angle, out, shade in clumps if c.shows(0.25 * size * high, z) else ():
            dx, dy = (turn(2 * pi * angle) * out**0.5 for turn in (cos, sin))
            bright = tone + 0.5 + 0.2 * dy + 0.15 * c.street.sun * dx + 0.25 * shade
            spot = (x + 0.27 * high * dx, high * (0.64 + 0.29 * dy), z)
            c.disc(TREE, _shade(leaf, bright * c.lit), spot, size * high, size * high)


def _fence(c: _Canvas, rng: Generator, x, z, length) -> None:
    kinds = (1.6, 0.25, (126, 100, 74)), (1.15, 0.4, (92, 98, 100))
    high, step, color = kinds[int(rng.integers(2))]
    color = _shade(color, c.facing(x) * rng.uniform(0.8, 1.2))
    c.wall(FENCE, _shade(color, 0.65), x, z, z + length, 0, high)
    for at in np.arange(z + length - step, z, -step) if c.shows(0.06, z) else ():
        c.wall(FENCE, color, x, at, at + 0.7 * step, 0, high)
    c.wall(FENCE, _shade(color, 1.1), x, z, z + length, high - 0.15, high)


def _lamp(c: _Canvas, rng: Generator, x, z, length) -> None:
    high, metal = rng.uniform(7, 9), _pick(rng, (GRAY, BLACK))
    end = x - copysign(1.8, x)
    c.box(POLE, metal, (x, 0, z), 0.15, high)
    c.box(POLE, _shade(metal, 0.8), (x, 0, z), 0.26, 1.2)
    c.line(POLE, metal, (x, high, z), (end, high + 0.3, z), 0.12)
    c.disc(POLE, LAMP if c.dusk else metal, (end, high + 0.25, z), 0.4, 0.14)


def _sign(c: _Canvas, rng: Generator, x, z, length) -> None:
    kind, y, wide = rng.integers(3), rng.uniform(2.3, 2.9), rng.uniform(0.9, 1.6)
    c.box(POLE, GRAY, (x, 0, z), 0.1, y)
    if kind == 0:  # a speed limit
        c.disc(SIGN, RED, (x, y, z), 0.45, 0.45)
        c.disc(SIGN, WHITE, (x, y, z), 0.31, 0.31)
        c.box(SIGN, BLACK, (x, y - 0.14, z), 0.2, 0.28)
    elif kind == 1:  # a warning
        for r, ink in ((0.6, RED), (0.36, WHITE)):
            feet = [(x + side * 0.87 * r, y - r / 2, z) for side in (-1, 1)]
            c.polygon(SIGN, ink, [*feet, (x, y + r, z)])
    else:  # directions, or an advertisement
        c.box(SIGN, WHITE, (x, y - 0.3, z), wide, 1.1)
        c.box(SIGN, _pick(rng, BOARDS), (x, y - 0.24, z), wide - 0.12, 0.98)
        c.box(SIGN, WHITE, (x, y, z), 0.6 * wide, 0.12)
        c.box(SIGN, WHITE, (x, y + 0.35, z), 0.6 * wide, 0.12)


def _clutter(c: _Canvas, rng: Generator, x, z, length) -> None:
    """Draw what dataset1 leaves unlabeled: a bin, a cabinet."""
    wide, high = rng.choice(((0.55, 1.05), (1.3, 1.4), (2.2, 2.3)))
    ink = _pick(rng, ((30, 34, 34), (52, 74, 58), (104, 106, 104)))
    c.box(VOID, ink, (x, 0, z), wide, high)
    c.box(VOID, _shade(ink, 1.4), (x, 0.7 * high, z), 0.9 * wide, 0.2 * high)


def _vehicle(c: _Canvas, rng: Generator, x, z, length, oncoming=False) -> None:
    side, paint = VEHICLES[int(rng.random() < 0.25)], _pick(rng, PAINTS)
    long, belt, wide = side[-1][0], *side[1][1:]
    side = [(z + (long - d if oncoming else d), y, half) for d, y, half in side]
    glass = _mix(GLASS, c.sky, 0.25)
    c.strip(ROAD, (40, 41, 45), x - wide, x + wide, z - 0.1, z + long)  # its shadow
    for tire in (x - wide + 0.16, x + wide - 0.16):
        c.box(CAR, BLACK, (tire, 0, z + 0.1), 0.24, 0.5)
    stretches = [(i, *side[i : i + 2]) for i in range(len(side) - 1)]
    for i, a, b in sorted(stretches, key=lambda s: -s[1][0] - s[2][0]):  # across
        ink = _shade(glass if i in (1, 3) else paint, 0.76 if a[0] == b[0] else 0.9)
        left, right = ([(x + s * w, y, d) for d, y, w in (a, b)] for s in (-1, 1))
        c.polygon(CAR, ink, left + right[::-1])
    if abs(shown := x + c.street.bend * z * z) > wide:  # one flank can be seen
        near, light = -copysign(1, shown), 0.9 * c.facing(shown)
        flank = [(x + near * half, y, d) for d, y, half in side]
        c.polygon(CAR, _shade(paint, light), flank)
        middle = tuple(sum(p[i] for p in flank[1:5]) / 4 for i in range(3))
        c.polygon(CAR, glass, [_mix(p, middle, 0.18) for p in flank[1:5]])
        turns = np.linspace(0, 2 * pi, 12, endpoint=False)
        rim = [(0.33 * cos(turn), 0.33 * sin(turn)) for turn in turns]
        for hub in (z + 0.8, z + long - 0.8):
            wheel = [(x + near * wide, 0.33 + p, hub + q) for p, q in rim]
            c.polygon(CAR, BLACK, wheel)
    if z > 2:
        for corner in (x - wide + 0.15, x + wide - 0.15):
            ink = (250, 246, 226) if oncoming else (214, 34, 30)
            c.box(CAR, ink, (corner, belt - 0.3, z), 0.26, 0.2)
        c.box(CAR, WHITE if oncoming else LAMP, (x, belt - 0.45, z), 0.5, 0.13)


def _person(c: _Canvas, rng: Generator, x, z, length, rides=False) -> None:
    label, limbs = (BICYCLIST, RIDER) if rides else (PEDESTRIAN, WALKER)
    paints = [_shade(_pick(rng, CLOTHES), c.lit) for _ in range(4)]
    tall, wide = rng.uniform(0.9, 1.1), rng.uniform(0.6, 1.2) * rng.choice((-1, 1))
    for hub in (-0.25 * wide, 0.25 * wide) if rides else ():
        c.disc(label, BLACK, (x + hub, 0.34, z), 0.06 + abs(hub) / 2, 0.34, ring=0.06)
    for paint, x0, y0, x1, y1, thick in limbs:
        a, b = (x + wide * x0, tall * y0, z), (x + wide * x1, tall * y1, z)
        c.line(label, paints[paint], a, b, thick)
    head = x + 0.12 * wide * rides
    c.disc(label, _shade(SKIN, 0.4), (head, 1.63 * tall, z), 0.12, 0.15)
    c.disc(label, SKIN, (head + 0.02, 1.59 * tall, z), 0.09, 0.12)


class _Street:
    """What the frames of a sequence share: light, layout, everything along the road."""

    def __init__(self, *seed: int):
        self.seed, self.rng, self.things = seed, default_rng(seed), []
        rng = self.rng
        self.light = LIGHTS[int(rng.integers(len(LIGHTS)))]
        self.sun = int(rng.choice((-1, 1)))  # the side it stands on, 1 is right
        self.bend, self.yaw = rng.uniform(-9e-4, 9e-4), rng.uniform(-0.12, 0.08)
        self.pitch, self.hood = rng.uniform(-0.03, 0.03), rng.random() < 0.35
        self.leaf, self.speed = _pick(rng, LEAVES), rng.uniform(4, 9)
        self.built, parking = rng.uniform(0.75, 0.95), rng.random(2) < 0.3
        left = -rng.uniform(1.8, 2.4) - 1.7 * parking[0]
        right = rng.uniform(4.4, 5.4) + 1.7 * parking[1]
        self.curbs = (left, right)
        self.fronts = (left - rng.uniform(2.4, 5.4), right + rng.uniform(2.4, 5.4))
        self.asphalt = _shade((104, 104, 106), rng.uniform(0.8, 1.25))
        self.slabs = _shade((150, 144, 138), rng.uniform(0.75, 1.15))
        self.patches, self.clouds = rng.random((24, 5)), _noise(rng, (72, 96))
        oncoming, rider = partial(_vehicle, oncoming=True), partial(_person, rides=True)
        for curb, front, parked in zip(self.curbs, self.fronts, parking, strict=True):
            self._roadside(curb, front)
            car, side = (_vehicle, 1.1) if curb < 0 else (oncoming, -1.1)
            for z in self._along(5.5, 16) if parked else ():
                self._add(car, curb + side, z, 3.5)
        for z in self._along(20, 60):
            self._add(oncoming, 2.9, z, 3.5, -self.speed)
        for z in (rng.uniform(9, 40), rng.uniform(45, 60)):
            self._add(_vehicle, 0.2, z, 3.5, self.speed + rng.uniform(-0.6, 0.9))
        for z, drift in rng.uniform((6, -0.5), (30, 0.5), (2, 2)):
            self._add(rider, max(left + 0.6, -1.5), z, 0, self.speed + drift)

    def _add(self, draw, x, z, length=0.0, speed=0.0) -> None:
        """Add a thing: its near end in frame 0, meters; its speed, meters a frame."""
        seed = int(self.rng.integers(2**32))
        self.things.append((draw, seed, x, z, length, speed))

    def _along(self, low: float, high: float) -> Iterator[float]:
        z = self.rng.uniform(-4, high)
        while z < FAR + 60:
            yield z
            z += self.rng.uniform(low, high)

    def _roadside(self, curb: float, front: float) -> None:
        """Add buildings and gardens, and what is on the pavement before them."""
        rng, side, z, built = self.rng, copysign(1, curb), -16.0, self.built
        for number in range(20):
            length = rng.uniform(8, 16)
            if number == 2 or rng.random() > built:  # a garden in sight in every street
                for part in (0.75, 0.3):
                    x = front + side * rng.uniform(1.8, 4)
                    self._add(_tree, x, z + part * length)
                self._add(_fence, front, z, length - 0.5)
            else:
                self._add(_building, front, z, length)
            z += length
        spread = ((_lamp, 22, 34, 0.4), (_sign, 8, 20, 0.6), (_clutter, 9, 26, 0.9))
        for draw, low, high, aside in (*spread, (_fence, 30, 70, 0.4)):
            for z in self._along(low, high):
                x = curb + side * aside * rng.uniform(0.9, 1.3)
                self._add(draw, x, z, 8 if draw is _fence else 0)
        for z in self._along(9, 22) if rng.random() < 0.4 else ():
            self._add(_tree, curb + side * 0.8, z)
        for z in self._along(4, 15):
            x = curb + side * rng.uniform(0.6, abs(front - curb) - 0.3)
            self._add(_person, x, z, 0, rng.uniform(-1.2, 1.2))

    def frame(self, number: int, size: tuple[int, int]) -> Scene:
        """Draw a frame, counted from 0; return image and mask."""
        rng, at, here = default_rng((*self.seed, number + 1)), self.speed * number, []
        c = _Canvas(size, self, rng.standard_normal(2))
        for draw, seed, x, z, length, speed in self.things:
            z += speed * number - at
            end = z + length
            # in sight, with room for what reaches out to the side, such as a crown
            if z < FAR and end > 2.2 and abs(x) < 0.7 * end + 3.5:
                here.append((end, draw, seed, x, z, length))
        here.sort(key=lambda item: -item[0])
        self._sky(c)
        self._ground(c, at)
        for _, draw, seed, *place in here:
            draw(c, default_rng(seed), *place)
        if self.hood:
            width, height = c.image.size
            arc = (-0.2 * width, 0.94 * height, 1.2 * width, 1.4 * height)
            c.pen.ellipse(arc, fill=(34, 36, 41, VOID))
        return self._develop(c, rng)

    def _sky(self, c: _Canvas) -> None:
        fall = np.linspace(0, 1, len(self.clouds))[:, None, None] ** 1.3
        sky = np.array(c.above) * (1 - fall) + fall * c.sky
        cover = np.clip(3 * (self.clouds - 0.45), 0, 1)[..., None]
        cloud = np.array(_mix(c.sky, (250, 250, 250), 0.4)) * (1.2 - 0.5 * cover)
        sky = Image.fromarray((sky + (cloud - sky) * cover).clip(0, 255).astype("u1"))
        low = round(c.horizon + c.focal * EYE / HORIZON) + SUB  # where the ground ends
        sky = sky.resize((c.image.width, low), Image.Resampling.BICUBIC)
        sky.putalpha(SKY)
        c.image.paste(sky)
        for x in range(-120, 121, 9):  # trees at the far end
            wide = 4 + 4 * self.clouds[x % 72, 40]
            c.disc(TREE, _shade(self.leaf, 0.7), (x, 3, 150), 1.5 * wide, wide)

    def _ground(self, c: _Canvas, at: float) -> None:
        left, right = self.curbs
        c.strip(TREE, _shade(_mix(self.leaf, (96, 120, 60), 0.6), c.lit), -250, 250)
        for curb, front in zip(self.curbs, self.fronts, strict=True):
            c.strip(PAVEMENT, self.slabs, curb, front)
            for z in np.arange(-at % 1.5, min(40, 0.07 * c.focal), 1.5):
                c.strip(PAVEMENT, _shade(self.slabs, 0.86), curb, front, z, z + 0.07)
            c.strip(PAVEMENT, _shade(self.slabs, 1.22), curb, 1.04 * curb)
        c.strip(ROAD, self.asphalt, left, right)
        for x, z, wide, long, tone in self.patches:
            x, z = left + x * (right - left - 1), z * 180 - at
            ink = _shade(self.asphalt, 0.72 + 0.4 * tone)
            c.strip(ROAD, ink, x, x + 0.3 + 0.7 * wide, z, z + 0.5 + 5 * long**2)
        for z in np.arange(-at % 6 - 6, 90, 6):
            c.strip(ROAD, WHITE, 1.38, 1.52, z, z + 3)

    def _develop(self, c: _Canvas, rng: Generator) -> Scene:
        """Turn the canvas into image and mask; add grain and tint."""
        *rgb, ids = c.image.split()
        mask = np.asarray(ids)[SUB // 2 :: SUB, SUB // 2 :: SUB].copy()
        image = np.asarray(Image.merge("RGB", rgb).reduce(SUB)).astype(np.float32)
        grain = 0.03 * rng.standard_normal(mask.shape, np.float32)
        grain += 0.22 * (_noise(rng, mask.shape) - 0.5)
        gain = 1 + np.where(mask == SKY, 0.1, 1) * grain
        noise = 2 * rng.standard_normal(image.shape, np.float32)
        image = image * gain[..., None] * c.tint + noise
        return image.clip(0, 255).astype(np.uint8), mask


def _check_size(size: tuple[int, int]) -> None:
    low, high = SMALLEST, LARGEST
    if not all(a <= side <= b for a, side, b in zip(low, size, high, strict=True)):
        raise ValueError(
            f"size must be (height, width), from {low} to {high}, not {size!r}"
        )


def draw_scene(seed: int, size: tuple[int, int] = (360, 480)) -> Scene:
    """Draw one road scene.

    Args:
        seed: 0 or more. The same seed and size give the same bytes; the same seed
            in another size, the same street.
        size: Height and width in pixels, (32, 48) to (720, 960).

    Returns:
        The image, (H, W, 3) uint8, red, green and blue, 0 to 255, and its mask,
        (H, W) uint8, ids of `CAMVID`, 0 to 11.

    Raises:
        ValueError: If the seed is negative or the size out of range.
    """
    _check_size(size)
    return _Street(seed).frame(0, size)


def draw_scenes(
    count: int, size: tuple[int, int], seed: int = 0
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Draw scenes as a camera sees them in several sequences.

    Six frames, about a second apart, make a sequence along one street, so frames of a
    sequence resemble each other, as dataset1's do. The first scenes are the same
    whatever the count.

    Args:
        count: Number of scenes.
        size: Height and width in pixels, (32, 48) to (720, 960).
        seed: 0 or more. Another seed gives other streets under the same names.

    Yields:
        (filename, image, mask), each drawn when asked for: names like
        ``Drawn01_000030.png`` (sequence and video frame), images and masks as
        `draw_scene` returns them.

    Raises:
        ValueError: If the seed is negative or the size out of range.
    """
    _check_size(size)
    for i in range(count):
        sequence, frame = divmod(i, SEQUENCE_FRAMES)
        if frame == 0:
            street = _Street(seed, sequence + 1)
        name = f"Drawn{sequence + 1:02}_{30 * (frame + 1):06}.png"
        yield name, *street.frame(frame, size)
