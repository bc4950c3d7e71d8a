"""What is behind the people: eight scenes on a unit square (x right, y down), each with details of its own."""

import math
from collections.abc import Callable

import numpy as np
import skia

from sefi.world.brush import curve, ellipse, lighter, linear, paint, pen, polygon, radial, rectangle
from sefi.world.person import Colour

Scene = Callable[[skia.Canvas, np.random.Generator], None]


def fill(canvas: skia.Canvas, top: float, bottom: float, first: Colour, last: Colour) -> None:
    """A band of the square with a vertical gradient."""
    rectangle(canvas, -0.1, top, 1.1, bottom, linear((0, top), (0, bottom), first, last))


def beach(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Sky, sun, sea, sand, sometimes a palm."""
    horizon = random.uniform(0.42, 0.58)
    fill(canvas, -0.1, horizon, (0.36, 0.70, 0.95), (0.88, 0.95, 0.98))
    sun = (random.uniform(0.1, 0.9), random.uniform(0.06, 0.2))
    ellipse(canvas, *sun, 0.16, 0.16, radial(sun, 0.16, (1, 0.95, 0.70), (1, 0.95, 0.70), fade=True))
    ellipse(canvas, *sun, 0.06, 0.06, paint((1.0, 0.93, 0.60)))
    shore = horizon + random.uniform(0.16, 0.24)
    fill(canvas, horizon, shore, (0.08, 0.45, 0.70), (0.26, 0.76, 0.80))
    fill(canvas, shore, 1.1, (0.97, 0.87, 0.64), (0.88, 0.72, 0.46))
    canvas.drawPath(
        curve((-0.1, shore), (0.25, shore + 0.04, 0.5, shore), (0.75, shore - 0.03, 1.1, shore)),
        pen((1, 1, 1), 0.022, 0.9),
    )
    if random.random() < 0.6:
        x = float(random.choice([random.uniform(0.02, 0.18), random.uniform(0.82, 0.98)]))
        canvas.drawPath(curve((x, 0.85), (x + 0.04, 0.6, x, 0.32)), pen((0.46, 0.30, 0.16), 0.035))
        for angle in range(-160, 21, 36):
            a = math.radians(angle)
            canvas.drawPath(
                curve(
                    (x, 0.32),
                    (
                        x + 0.12 * math.cos(a),
                        0.26 + 0.1 * math.sin(a),
                        x + 0.2 * math.cos(a),
                        0.36 + 0.12 * math.sin(a),
                    ),
                ),
                pen((0.12, 0.48, 0.22), 0.028),
            )


def snow(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """White hills, firs, falling flakes."""
    fill(canvas, -0.1, 1.1, (0.66, 0.77, 0.90), (0.93, 0.96, 1.0))
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
                polygon(
                    (x - s * (0.5 - 0.12 * level), t + s * 0.4),
                    (x, t - s * 0.3),
                    (x + s * (0.5 - 0.12 * level), t + s * 0.4),
                ),
                paint((0.28, 0.44, 0.42)),
            )
            canvas.drawPath(
                polygon((x - s * 0.16, t - s * 0.05), (x, t - s * 0.3), (x + s * 0.16, t - s * 0.05)),
                paint((0.97, 0.98, 1.0)),
            )
    canvas.drawPath(
        curve(
            (-0.1, hill + 0.05),
            (0.3, hill - 0.05, 0.55, hill + 0.05),
            (0.8, hill + 0.12, 1.1, hill),
            (1.1, 1.1),
            (-0.1, 1.1),
            close=True,
        ),
        linear((0, hill), (0, 1), (0.99, 0.99, 1.0), (0.80, 0.87, 0.96)),
    )
    for x, y in random.random((40, 2)):
        ellipse(canvas, float(x), float(y), 0.011, 0.011, paint((1, 1, 1), 0.95))


def forest(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Trunks and leaves in layers, light from above."""
    fill(canvas, -0.1, 1.1, (0.72, 0.86, 0.52), (0.22, 0.42, 0.18))
    for layer in range(2):
        shade = -0.05 - 0.3 * layer
        for x in np.sort(random.uniform(-0.05, 1.05, 5)):
            w = random.uniform(0.025, 0.05) * (1 + 0.5 * layer)
            rectangle(
                canvas,
                float(x) - w,
                -0.1,
                float(x) + w,
                0.95,
                linear(
                    (float(x) - w, 0),
                    (float(x) + w, 0),
                    lighter((0.48, 0.34, 0.20), shade + 0.2),
                    lighter((0.34, 0.22, 0.13), shade),
                ),
            )
        for x, y in zip(random.uniform(-0.05, 1.05, 10), random.uniform(-0.05, 0.3, 10), strict=True):
            r = random.uniform(0.08, 0.15)
            c: Colour = (0.20, random.uniform(0.45, 0.6), 0.16)
            ellipse(
                canvas,
                float(x),
                float(y),
                r,
                r * 0.8,
                radial(
                    (float(x) - 0.03, float(y) - 0.05),
                    r * 1.3,
                    lighter(c, 0.25 - 0.2 * layer),
                    lighter(c, -0.4),
                ),
            )
    fill(canvas, random.uniform(0.78, 0.88), 1.1, (0.26, 0.46, 0.16), (0.14, 0.28, 0.10))


def city(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """A night skyline with lit windows."""
    fill(canvas, -0.1, 1.1, (0.04, 0.05, 0.18), (0.34, 0.18, 0.42))
    moon = (random.uniform(0.1, 0.9), random.uniform(0.08, 0.16))
    ellipse(canvas, *moon, 0.05, 0.05, paint((0.97, 0.95, 0.82)))
    x = -0.05
    while x < 1.05:
        w, top = random.uniform(0.11, 0.19), random.uniform(0.18, 0.5)
        base: Colour = (0.09, 0.10, random.uniform(0.18, 0.26))
        rectangle(
            canvas,
            x,
            top,
            x + w,
            1.1,
            linear((x, top), (x + w, 1.0), lighter(base, 0.08), lighter(base, -0.4)),
        )
        for wy in np.arange(top + 0.035, 1.0, 0.07):
            for wx in np.arange(x + 0.025, x + w - 0.03, 0.045):
                if random.random() < 0.55:
                    rectangle(
                        canvas,
                        float(wx),
                        float(wy),
                        float(wx) + 0.024,
                        float(wy) + 0.034,
                        paint((1.0, 0.85, 0.42), 0.95),
                    )
        x += w + 0.008


def room(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """A wall, a window or a picture, a lamp, a floor."""
    wall: Colour = [(0.93, 0.86, 0.74), (0.80, 0.86, 0.88), (0.90, 0.80, 0.80)][int(random.integers(3))]
    fill(canvas, -0.1, 0.8, lighter(wall, 0.15), lighter(wall, -0.12))
    fill(canvas, 0.8, 1.1, (0.60, 0.40, 0.24), (0.42, 0.26, 0.15))
    canvas.drawLine(-0.1, 0.8, 1.1, 0.8, pen((0.99, 0.97, 0.93), 0.025))
    left = float(random.choice([random.uniform(0.02, 0.12), random.uniform(0.62, 0.70)]))
    rectangle(canvas, left, 0.08, left + 0.28, 0.46, paint((0.98, 0.98, 0.97)), 0.01)
    rectangle(
        canvas,
        left + 0.025,
        0.105,
        left + 0.255,
        0.435,
        linear((0, 0.1), (0, 0.44), (0.55, 0.80, 0.97), (0.85, 0.94, 0.90)),
    )
    canvas.drawLine(left + 0.14, 0.1, left + 0.14, 0.44, pen((0.98, 0.98, 0.97), 0.018))
    canvas.drawLine(left + 0.02, 0.27, left + 0.26, 0.27, pen((0.98, 0.98, 0.97), 0.018))
    x = 0.9 if left < 0.4 else 0.1
    canvas.drawLine(x, 0.36, x, 0.8, pen((0.30, 0.24, 0.20), 0.018))
    canvas.drawPath(
        polygon((x - 0.09, 0.38), (x - 0.05, 0.24), (x + 0.05, 0.24), (x + 0.09, 0.38)),
        linear((0, 0.24), (0, 0.38), (1.0, 0.93, 0.70), (0.96, 0.72, 0.36)),
    )


def tower(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """An iron lattice tower over a park."""
    fill(canvas, -0.1, 0.75, (0.50, 0.72, 0.94), (0.96, 0.90, 0.84))
    for x, y in zip(random.uniform(0, 1, 4), random.uniform(0.05, 0.3, 4), strict=True):
        ellipse(canvas, float(x), float(y), 0.12, 0.035, paint((1, 1, 1), 0.75, 0.01))
    fill(canvas, 0.72, 1.1, (0.44, 0.66, 0.30), (0.24, 0.44, 0.18))
    x = float(random.choice([random.uniform(0.14, 0.24), random.uniform(0.76, 0.86)]))
    iron: Colour = (0.42, 0.32, 0.26)
    for side in (-1, 1):
        canvas.drawPath(
            curve((x + side * 0.17, 0.76), (x + side * 0.06, 0.5, x + side * 0.012, 0.06)),
            pen(iron, 0.036),
        )
    for y, w in ((0.58, 0.11), (0.40, 0.065), (0.25, 0.038)):
        rectangle(canvas, x - w, y, x + w, y + 0.03, paint(lighter(iron, -0.2)))
    for y, w, nxt in ((0.70, 0.14, 0.085), (0.55, 0.085, 0.05), (0.40, 0.055, 0.03)):
        canvas.drawLine(x - w, y, x + nxt, y - 0.13, pen(iron, 0.014))
        canvas.drawLine(x + w, y, x - nxt, y - 0.13, pen(iron, 0.014))
    canvas.drawLine(x, 0.08, x, -0.02, pen(iron, 0.014))


def desert(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Dunes under a hot sky, with cacti."""
    fill(canvas, -0.1, 0.7, (0.98, 0.62, 0.34), (1.0, 0.88, 0.62))
    y = random.uniform(0.48, 0.58)
    for k, shade in enumerate((0.08, -0.08, -0.2)):
        top, bend = y + 0.12 * k, random.uniform(-0.12, 0.12)
        canvas.drawPath(
            curve(
                (-0.1, top),
                (0.25, top - 0.1 + bend, 0.5, top),
                (0.8, top + 0.1 - bend, 1.1, top - 0.03),
                (1.1, 1.1),
                (-0.1, 1.1),
                close=True,
            ),
            paint(lighter((0.88, 0.60, 0.32), shade)),
        )
    x = float(random.choice([random.uniform(0.05, 0.2), random.uniform(0.8, 0.95)]))
    green = pen((0.20, 0.46, 0.26), 0.06)
    canvas.drawLine(x, 0.86, x, 0.42, green)
    canvas.drawPath(curve((x, 0.66), (x - 0.1, 0.68, x - 0.09, 0.52)), pen((0.20, 0.46, 0.26), 0.042))
    canvas.drawPath(curve((x, 0.60), (x + 0.1, 0.62, x + 0.09, 0.48)), pen((0.20, 0.46, 0.26), 0.042))


def space(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Stars, a nebula and a ringed planet."""
    fill(canvas, -0.1, 1.1, (0.02, 0.02, 0.07), (0.08, 0.03, 0.16))
    cloud = (random.uniform(0.2, 0.8), random.uniform(0.3, 0.8))
    ellipse(
        canvas,
        *cloud,
        0.45,
        0.45,
        radial(cloud, 0.45, (0.30, 0.12, 0.48), (0.08, 0.03, 0.16), fade=True),
    )
    for x, y in random.random((46, 2)):
        r = random.uniform(0.004, 0.011)
        ellipse(canvas, float(x), float(y), r, r, paint((1, 1, 0.95), 0.95))
    x, y = float(random.choice([0.16, 0.84])), random.uniform(0.15, 0.3)
    tone: Colour = [(0.90, 0.55, 0.30), (0.45, 0.70, 0.86), (0.85, 0.45, 0.50)][int(random.integers(3))]
    ellipse(
        canvas,
        x,
        y,
        0.12,
        0.12,
        radial((x - 0.04, y - 0.04), 0.19, lighter(tone, 0.3), lighter(tone, -0.6)),
    )
    canvas.drawPath(
        curve((x - 0.2, y + 0.05), (x, y + 0.13, x + 0.2, y - 0.05)),
        pen((0.93, 0.85, 0.70), 0.018, 0.9),
    )


def studio(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """A plain backdrop: what is behind somebody when no scene is named."""
    hue: Colour = (random.uniform(0.35, 0.9), random.uniform(0.35, 0.9), random.uniform(0.35, 0.9))
    centre = (random.uniform(0.3, 0.7), random.uniform(0.2, 0.5))
    rectangle(canvas, -0.1, -0.1, 1.1, 1.1, radial(centre, 0.95, lighter(hue, 0.30), lighter(hue, -0.25)))


PAINTED: dict[str, Scene] = {
    "": studio,
    "beach": beach,
    "snow": snow,
    "forest": forest,
    "city": city,
    "room": room,
    "tower": tower,
    "desert": desert,
    "space": space,
}
