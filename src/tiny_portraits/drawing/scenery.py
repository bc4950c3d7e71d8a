"""Backgrounds: twelve scenes on a unit square (x right, y down), each with details of its own."""

import math
from collections.abc import Callable

import numpy as np
import skia

from tiny_portraits.drawing.brush import (
    lighten,
    make_curve,
    make_fill,
    make_linear_fill,
    make_polygon,
    make_radial_fill,
    make_stroke,
    paint_ellipse,
    paint_rectangle,
)
from tiny_portraits.drawing.traits import Colour

Scene = Callable[[skia.Canvas, np.random.Generator], None]


PETALS: tuple[Colour, ...] = ((0.93, 0.30, 0.36), (0.98, 0.80, 0.25), (0.85, 0.45, 0.85), (0.98, 0.98, 0.96))
SPINES: tuple[Colour, ...] = (
    (0.62, 0.18, 0.16),
    (0.16, 0.34, 0.46),
    (0.24, 0.42, 0.26),
    (0.80, 0.62, 0.28),
    (0.40, 0.26, 0.42),
    (0.86, 0.80, 0.68),
)


def paint_band(canvas: skia.Canvas, top: float, bottom: float, first: Colour, last: Colour) -> None:
    """Paint a band of the square with a vertical gradient."""
    paint_rectangle(canvas, -0.1, top, 1.1, bottom, make_linear_fill((0, top), (0, bottom), first, last))


def paint_beach(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint sky, sun, sea, sand, sometimes a palm."""
    horizon = random.uniform(0.42, 0.58)
    paint_band(canvas, -0.1, horizon, (0.36, 0.70, 0.95), (0.88, 0.95, 0.98))
    sun = (random.uniform(0.1, 0.9), random.uniform(0.06, 0.2))
    paint_ellipse(canvas, *sun, 0.16, 0.16, make_radial_fill(sun, 0.16, (1, 0.95, 0.70), (1, 0.95, 0.70), fade=True))
    paint_ellipse(canvas, *sun, 0.06, 0.06, make_fill((1.0, 0.93, 0.60)))
    shore = horizon + random.uniform(0.16, 0.24)
    paint_band(canvas, horizon, shore, (0.08, 0.45, 0.70), (0.26, 0.76, 0.80))
    paint_band(canvas, shore, 1.1, (0.97, 0.87, 0.64), (0.88, 0.72, 0.46))
    canvas.drawPath(
        make_curve((-0.1, shore), (0.25, shore + 0.04, 0.5, shore), (0.75, shore - 0.03, 1.1, shore)),
        make_stroke((1, 1, 1), 0.022, 0.9),
    )
    if random.random() < 0.6:
        x = float(random.choice([random.uniform(0.02, 0.18), random.uniform(0.82, 0.98)]))
        canvas.drawPath(make_curve((x, 0.85), (x + 0.04, 0.6, x, 0.32)), make_stroke((0.46, 0.30, 0.16), 0.035))
        for angle in range(-160, 21, 36):
            a = math.radians(angle)
            canvas.drawPath(
                make_curve(
                    (x, 0.32),
                    (
                        x + 0.12 * math.cos(a),
                        0.26 + 0.1 * math.sin(a),
                        x + 0.2 * math.cos(a),
                        0.36 + 0.12 * math.sin(a),
                    ),
                ),
                make_stroke((0.12, 0.48, 0.22), 0.028),
            )


def paint_snow(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint white hills, firs, falling flakes."""
    paint_band(canvas, -0.1, 1.1, (0.66, 0.77, 0.90), (0.93, 0.96, 1.0))
    hill = random.uniform(0.5, 0.64)
    for _ in range(5):
        x, y, s = (
            random.uniform(0, 1),
            hill + random.uniform(-0.02, 0.06),
            random.uniform(0.12, 0.2),
        )
        for level in range(3):
            t = y - s * (0.3 + 0.42 * level)
            canvas.drawPath(
                make_polygon(
                    (x - s * (0.5 - 0.12 * level), t + s * 0.4),
                    (x, t - s * 0.3),
                    (x + s * (0.5 - 0.12 * level), t + s * 0.4),
                ),
                make_fill((0.28, 0.44, 0.42)),
            )
            canvas.drawPath(
                make_polygon((x - s * 0.16, t - s * 0.05), (x, t - s * 0.3), (x + s * 0.16, t - s * 0.05)),
                make_fill((0.97, 0.98, 1.0)),
            )
    canvas.drawPath(
        make_curve(
            (-0.1, hill + 0.05),
            (0.3, hill - 0.05, 0.55, hill + 0.05),
            (0.8, hill + 0.12, 1.1, hill),
            (1.1, 1.1),
            (-0.1, 1.1),
            close=True,
        ),
        make_linear_fill((0, hill), (0, 1), (0.99, 0.99, 1.0), (0.80, 0.87, 0.96)),
    )
    for x, y in random.random((40, 2)):
        paint_ellipse(canvas, float(x), float(y), 0.011, 0.011, make_fill((1, 1, 1), 0.95))


def paint_forest(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint trunks and leaves in layers, light from above."""
    paint_band(canvas, -0.1, 1.1, (0.72, 0.86, 0.52), (0.22, 0.42, 0.18))
    for layer in range(2):
        shade = -0.05 - 0.3 * layer
        for x in np.sort(random.uniform(-0.05, 1.05, 5)):
            w = random.uniform(0.025, 0.05) * (1 + 0.5 * layer)
            paint_rectangle(
                canvas,
                float(x) - w,
                -0.1,
                float(x) + w,
                0.95,
                make_linear_fill(
                    (float(x) - w, 0),
                    (float(x) + w, 0),
                    lighten((0.48, 0.34, 0.20), shade + 0.2),
                    lighten((0.34, 0.22, 0.13), shade),
                ),
            )
        for x, y in zip(random.uniform(-0.05, 1.05, 10), random.uniform(-0.05, 0.3, 10), strict=True):
            r = random.uniform(0.08, 0.15)
            c: Colour = (0.20, random.uniform(0.45, 0.6), 0.16)
            paint_ellipse(
                canvas,
                float(x),
                float(y),
                r,
                r * 0.8,
                make_radial_fill(
                    (float(x) - 0.03, float(y) - 0.05),
                    r * 1.3,
                    lighten(c, 0.25 - 0.2 * layer),
                    lighten(c, -0.4),
                ),
            )
    paint_band(canvas, random.uniform(0.78, 0.88), 1.1, (0.26, 0.46, 0.16), (0.14, 0.28, 0.10))


def paint_city(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint a night skyline with lit windows."""
    paint_band(canvas, -0.1, 1.1, (0.04, 0.05, 0.18), (0.34, 0.18, 0.42))
    moon = (random.uniform(0.1, 0.9), random.uniform(0.08, 0.16))
    paint_ellipse(canvas, *moon, 0.05, 0.05, make_fill((0.97, 0.95, 0.82)))
    x = -0.05
    while x < 1.05:
        w, top = random.uniform(0.11, 0.19), random.uniform(0.18, 0.5)
        base: Colour = (0.09, 0.10, random.uniform(0.18, 0.26))
        paint_rectangle(
            canvas,
            x,
            top,
            x + w,
            1.1,
            make_linear_fill((x, top), (x + w, 1.0), lighten(base, 0.08), lighten(base, -0.4)),
        )
        for wy in np.arange(top + 0.035, 1.0, 0.07):
            for wx in np.arange(x + 0.025, x + w - 0.03, 0.045):
                if random.random() < 0.55:
                    paint_rectangle(
                        canvas,
                        float(wx),
                        float(wy),
                        float(wx) + 0.024,
                        float(wy) + 0.034,
                        make_fill((1.0, 0.85, 0.42), 0.95),
                    )
        x += w + 0.008


def paint_room(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint a wall, a window, a lamp and a floor."""
    wall: Colour = [(0.93, 0.86, 0.74), (0.80, 0.86, 0.88), (0.90, 0.80, 0.80)][int(random.integers(3))]
    paint_band(canvas, -0.1, 0.8, lighten(wall, 0.15), lighten(wall, -0.12))
    paint_band(canvas, 0.8, 1.1, (0.60, 0.40, 0.24), (0.42, 0.26, 0.15))
    canvas.drawLine(-0.1, 0.8, 1.1, 0.8, make_stroke((0.99, 0.97, 0.93), 0.025))
    left = float(random.choice([random.uniform(0.02, 0.12), random.uniform(0.62, 0.70)]))
    paint_rectangle(canvas, left, 0.08, left + 0.28, 0.46, make_fill((0.98, 0.98, 0.97)), 0.01)
    paint_rectangle(
        canvas,
        left + 0.025,
        0.105,
        left + 0.255,
        0.435,
        make_linear_fill((0, 0.1), (0, 0.44), (0.55, 0.80, 0.97), (0.85, 0.94, 0.90)),
    )
    canvas.drawLine(left + 0.14, 0.1, left + 0.14, 0.44, make_stroke((0.98, 0.98, 0.97), 0.018))
    canvas.drawLine(left + 0.02, 0.27, left + 0.26, 0.27, make_stroke((0.98, 0.98, 0.97), 0.018))
    x = 0.9 if left < 0.4 else 0.1
    canvas.drawLine(x, 0.36, x, 0.8, make_stroke((0.30, 0.24, 0.20), 0.018))
    canvas.drawPath(
        make_polygon((x - 0.09, 0.38), (x - 0.05, 0.24), (x + 0.05, 0.24), (x + 0.09, 0.38)),
        make_linear_fill((0, 0.24), (0, 0.38), (1.0, 0.93, 0.70), (0.96, 0.72, 0.36)),
    )


def paint_tower(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint an iron lattice tower over a park."""
    paint_band(canvas, -0.1, 0.75, (0.50, 0.72, 0.94), (0.96, 0.90, 0.84))
    for x, y in zip(random.uniform(0, 1, 4), random.uniform(0.05, 0.3, 4), strict=True):
        paint_ellipse(canvas, float(x), float(y), 0.12, 0.035, make_fill((1, 1, 1), 0.75, 0.01))
    paint_band(canvas, 0.72, 1.1, (0.44, 0.66, 0.30), (0.24, 0.44, 0.18))
    x = float(random.choice([random.uniform(0.14, 0.24), random.uniform(0.76, 0.86)]))
    iron: Colour = (0.42, 0.32, 0.26)
    for side in (-1, 1):
        canvas.drawPath(
            make_curve((x + side * 0.17, 0.76), (x + side * 0.06, 0.5, x + side * 0.012, 0.06)),
            make_stroke(iron, 0.036),
        )
    for y, w in ((0.58, 0.11), (0.40, 0.065), (0.25, 0.038)):
        paint_rectangle(canvas, x - w, y, x + w, y + 0.03, make_fill(lighten(iron, -0.2)))
    for y, w, nxt in ((0.70, 0.14, 0.085), (0.55, 0.085, 0.05), (0.40, 0.055, 0.03)):
        canvas.drawLine(x - w, y, x + nxt, y - 0.13, make_stroke(iron, 0.014))
        canvas.drawLine(x + w, y, x - nxt, y - 0.13, make_stroke(iron, 0.014))
    canvas.drawLine(x, 0.08, x, -0.02, make_stroke(iron, 0.014))


def paint_desert(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint dunes under a hot sky, with cacti."""
    paint_band(canvas, -0.1, 0.7, (0.98, 0.62, 0.34), (1.0, 0.88, 0.62))
    y = random.uniform(0.48, 0.58)
    for k, shade in enumerate((0.08, -0.08, -0.2)):
        top, bend = y + 0.12 * k, random.uniform(-0.12, 0.12)
        canvas.drawPath(
            make_curve(
                (-0.1, top),
                (0.25, top - 0.1 + bend, 0.5, top),
                (0.8, top + 0.1 - bend, 1.1, top - 0.03),
                (1.1, 1.1),
                (-0.1, 1.1),
                close=True,
            ),
            make_fill(lighten((0.88, 0.60, 0.32), shade)),
        )
    x = float(random.choice([random.uniform(0.05, 0.2), random.uniform(0.8, 0.95)]))
    green = make_stroke((0.20, 0.46, 0.26), 0.06)
    canvas.drawLine(x, 0.86, x, 0.42, green)
    canvas.drawPath(make_curve((x, 0.66), (x - 0.1, 0.68, x - 0.09, 0.52)), make_stroke((0.20, 0.46, 0.26), 0.042))
    canvas.drawPath(make_curve((x, 0.60), (x + 0.1, 0.62, x + 0.09, 0.48)), make_stroke((0.20, 0.46, 0.26), 0.042))


def paint_space(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint stars, a nebula and a ringed planet."""
    paint_band(canvas, -0.1, 1.1, (0.02, 0.02, 0.07), (0.08, 0.03, 0.16))
    cloud = (random.uniform(0.2, 0.8), random.uniform(0.3, 0.8))
    paint_ellipse(
        canvas,
        *cloud,
        0.45,
        0.45,
        make_radial_fill(cloud, 0.45, (0.30, 0.12, 0.48), (0.08, 0.03, 0.16), fade=True),
    )
    for x, y in random.random((46, 2)):
        r = random.uniform(0.004, 0.011)
        paint_ellipse(canvas, float(x), float(y), r, r, make_fill((1, 1, 0.95), 0.95))
    x, y = float(random.choice([0.16, 0.84])), random.uniform(0.15, 0.3)
    tone: Colour = [(0.90, 0.55, 0.30), (0.45, 0.70, 0.86), (0.85, 0.45, 0.50)][int(random.integers(3))]
    paint_ellipse(
        canvas,
        x,
        y,
        0.12,
        0.12,
        make_radial_fill((x - 0.04, y - 0.04), 0.19, lighten(tone, 0.3), lighten(tone, -0.6)),
    )
    canvas.drawPath(
        make_curve((x - 0.2, y + 0.05), (x, y + 0.13, x + 0.2, y - 0.05)),
        make_stroke((0.93, 0.85, 0.70), 0.018, 0.9),
    )


def paint_studio(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint a plain backdrop: what is behind somebody when no scene is named."""
    hue: Colour = (random.uniform(0.35, 0.9), random.uniform(0.35, 0.9), random.uniform(0.35, 0.9))
    centre = (random.uniform(0.3, 0.7), random.uniform(0.2, 0.5))
    paint_rectangle(
        canvas, -0.1, -0.1, 1.1, 1.1, make_radial_fill(centre, 0.95, lighten(hue, 0.30), lighten(hue, -0.25))
    )


def paint_mountains(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint rocky peaks with snow on them, a lake and a meadow."""
    paint_band(canvas, -0.1, 0.7, (0.42, 0.66, 0.94), (0.90, 0.94, 0.97))
    ground = random.uniform(0.66, 0.74)
    for x, top, half in (
        (random.uniform(0.1, 0.3), 0.14, 0.36),
        (random.uniform(0.7, 0.9), 0.08, 0.40),
        (0.5, 0.34, 0.3),
    ):
        peak = top + random.uniform(0.0, 0.12)
        height = ground - peak
        rock = make_linear_fill((x - half, 0), (x + half, 0), (0.56, 0.56, 0.62), (0.30, 0.32, 0.40))
        canvas.drawPath(make_polygon((x - half, ground), (x, peak), (x + half, ground)), rock)
        edge = [
            (x + s * half * 0.34, peak + height * (0.34 + 0.08 * (k % 2))) for k, s in enumerate((1, 0.5, 0, -0.5, -1))
        ]
        canvas.drawPath(make_polygon((x, peak), *edge), make_fill((0.97, 0.98, 1.0)))
    paint_band(canvas, ground, 1.1, (0.46, 0.64, 0.32), (0.26, 0.44, 0.20))
    paint_ellipse(canvas, random.uniform(0.3, 0.7), ground + 0.07, 0.34, 0.045, make_fill((0.50, 0.74, 0.90)))


def paint_garden(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint a hedge, a white fence and beds of flowers."""
    paint_band(canvas, -0.1, 0.4, (0.60, 0.82, 0.98), (0.88, 0.95, 0.99))
    for x in np.arange(-0.05, 1.1, 0.13):
        r, green = 0.13, (0.22, random.uniform(0.46, 0.56), 0.24)
        y = 0.36 + random.uniform(-0.03, 0.03)
        shade = make_radial_fill((float(x) - 0.04, y - 0.05), 0.2, lighten(green, 0.2), lighten(green, -0.3))
        paint_ellipse(canvas, float(x), y, r, r, shade)
    paint_band(canvas, 0.42, 1.1, (0.40, 0.68, 0.30), (0.24, 0.48, 0.20))
    for x in np.arange(0.02, 1.05, 0.105):
        paint_rectangle(canvas, float(x) - 0.022, 0.36, float(x) + 0.022, 0.58, make_fill((0.97, 0.97, 0.95)), 0.02)
    for y in (0.42, 0.52):
        canvas.drawLine(-0.1, y, 1.1, y, make_stroke((0.90, 0.90, 0.88), 0.022))
    for _ in range(44):
        x, y = random.uniform(0, 1), random.uniform(0.58, 0.98)
        r, colour = 0.012 + 0.022 * (y - 0.5), PETALS[int(random.integers(len(PETALS)))]
        canvas.drawLine(x, y, x, y + 3 * r, make_stroke((0.16, 0.40, 0.16), 0.008))
        for turn in range(5):
            a = 2 * math.pi * turn / 5
            paint_ellipse(canvas, x + r * math.cos(a), y + r * math.sin(a), r * 0.75, r * 0.75, make_fill(colour))
        paint_ellipse(canvas, x, y, r * 0.6, r * 0.6, make_fill((0.98, 0.86, 0.30)))


def paint_underwater(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint beams of light from above, bubbles, fish and weeds."""
    paint_band(canvas, -0.1, 1.1, (0.22, 0.72, 0.86), (0.02, 0.20, 0.42))
    for x in random.uniform(0, 1, 4):
        beam = make_polygon(
            (float(x) - 0.04, -0.1), (float(x) + 0.04, -0.1), (float(x) + 0.2, 0.9), (float(x) - 0.06, 0.9)
        )
        canvas.drawPath(beam, make_fill((0.85, 0.98, 1.0), 0.14))
    for x in np.arange(0.02, 1.0, 0.12):
        top, sway = random.uniform(0.62, 0.86), random.uniform(-0.06, 0.06)
        weed = make_curve((float(x), 1.05), (float(x) + sway, 0.95, float(x) - sway, top))
        canvas.drawPath(weed, make_stroke((0.10, random.uniform(0.40, 0.58), 0.30), 0.03))
    for _ in range(5):
        x, y, facing = random.uniform(0.08, 0.92), random.uniform(0.1, 0.7), float(random.choice((-1.0, 1.0)))
        colour: Colour = ((0.98, 0.58, 0.16), (0.98, 0.84, 0.24), (0.90, 0.36, 0.44))[int(random.integers(3))]
        canvas.drawPath(
            make_polygon((x - facing * 0.04, y), (x - facing * 0.095, y - 0.035), (x - facing * 0.095, y + 0.035)),
            make_fill(colour),
        )
        paint_ellipse(
            canvas,
            x,
            y,
            0.058,
            0.034,
            make_radial_fill((x, y - 0.02), 0.07, lighten(colour, 0.25), lighten(colour, -0.2)),
        )
        paint_ellipse(canvas, x + facing * 0.03, y - 0.006, 0.009, 0.009, make_fill((0.05, 0.05, 0.08)))
    for x, y in random.random((18, 2)):
        r = random.uniform(0.007, 0.02)
        paint_ellipse(canvas, float(x), float(y), r, r, make_stroke((0.92, 0.99, 1.0), 0.006, 0.9))


def paint_library(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint wooden shelves full of books."""
    paint_band(canvas, -0.1, 1.1, (0.34, 0.22, 0.14), (0.22, 0.14, 0.09))
    for top in np.arange(-0.02, 1.0, 0.205):
        floor = float(top) + 0.185
        x = -0.02
        while x < 1.02:
            wide, tall = random.uniform(0.026, 0.055), random.uniform(0.11, 0.165)
            colour = SPINES[int(random.integers(len(SPINES)))]
            spine = make_linear_fill((x, 0), (x + wide, 0), lighten(colour, 0.18), lighten(colour, -0.25))
            paint_rectangle(canvas, x, floor - tall, x + wide - 0.004, floor, spine, 0.004)
            canvas.drawLine(
                x + 0.006,
                floor - tall * 0.75,
                x + wide - 0.01,
                floor - tall * 0.75,
                make_stroke((0.95, 0.88, 0.6), 0.006),
            )
            x += wide
        board = make_linear_fill((0, floor), (0, floor + 0.024), (0.66, 0.44, 0.26), (0.44, 0.28, 0.16))
        paint_rectangle(canvas, -0.1, floor, 1.1, floor + 0.024, board)
    for x in (float(random.uniform(0.02, 0.1)), float(random.uniform(0.9, 0.98))):
        paint_rectangle(canvas, x - 0.018, -0.1, x + 0.018, 1.1, make_fill((0.56, 0.36, 0.21)))


PAINTED: dict[str, Scene] = {
    "": paint_studio,
    "beach": paint_beach,
    "snow": paint_snow,
    "forest": paint_forest,
    "city": paint_city,
    "room": paint_room,
    "tower": paint_tower,
    "desert": paint_desert,
    "space": paint_space,
    "mountains": paint_mountains,
    "garden": paint_garden,
    "underwater": paint_underwater,
    "library": paint_library,
}
