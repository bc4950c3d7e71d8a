"""Four more scenes of the fifth version, on a unit square (x right, y down)."""

import math

import numpy as np
import skia

from sefi.world.brush import curve, ellipse, lighter, linear, paint, pen, polygon, radial, rectangle
from sefi.world.person import Colour
from sefi.world.scenery import Scene, fill

PETALS: tuple[Colour, ...] = ((0.93, 0.30, 0.36), (0.98, 0.80, 0.25), (0.85, 0.45, 0.85), (0.98, 0.98, 0.96))
SPINES: tuple[Colour, ...] = (
    (0.62, 0.18, 0.16),
    (0.16, 0.34, 0.46),
    (0.24, 0.42, 0.26),
    (0.80, 0.62, 0.28),
    (0.40, 0.26, 0.42),
    (0.86, 0.80, 0.68),
)


def paint_mountains(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint rocky peaks with snow on them, a lake and a meadow."""
    fill(canvas, -0.1, 0.7, (0.42, 0.66, 0.94), (0.90, 0.94, 0.97))
    ground = random.uniform(0.66, 0.74)
    for x, top, half in (
        (random.uniform(0.1, 0.3), 0.14, 0.36),
        (random.uniform(0.7, 0.9), 0.08, 0.40),
        (0.5, 0.34, 0.3),
    ):
        peak = top + random.uniform(0.0, 0.12)
        height = ground - peak
        rock = linear((x - half, 0), (x + half, 0), (0.56, 0.56, 0.62), (0.30, 0.32, 0.40))
        canvas.drawPath(polygon((x - half, ground), (x, peak), (x + half, ground)), rock)
        edge = [
            (x + s * half * 0.34, peak + height * (0.34 + 0.08 * (k % 2))) for k, s in enumerate((1, 0.5, 0, -0.5, -1))
        ]
        canvas.drawPath(polygon((x, peak), *edge), paint((0.97, 0.98, 1.0)))
    fill(canvas, ground, 1.1, (0.46, 0.64, 0.32), (0.26, 0.44, 0.20))
    ellipse(canvas, random.uniform(0.3, 0.7), ground + 0.07, 0.34, 0.045, paint((0.50, 0.74, 0.90)))


def paint_garden(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint a hedge, a white fence and beds of flowers."""
    fill(canvas, -0.1, 0.4, (0.60, 0.82, 0.98), (0.88, 0.95, 0.99))
    for x in np.arange(-0.05, 1.1, 0.13):
        r, green = 0.13, (0.22, random.uniform(0.46, 0.56), 0.24)
        y = 0.36 + random.uniform(-0.03, 0.03)
        shade = radial((float(x) - 0.04, y - 0.05), 0.2, lighter(green, 0.2), lighter(green, -0.3))
        ellipse(canvas, float(x), y, r, r, shade)
    fill(canvas, 0.42, 1.1, (0.40, 0.68, 0.30), (0.24, 0.48, 0.20))
    for x in np.arange(0.02, 1.05, 0.105):
        rectangle(canvas, float(x) - 0.022, 0.36, float(x) + 0.022, 0.58, paint((0.97, 0.97, 0.95)), 0.02)
    for y in (0.42, 0.52):
        canvas.drawLine(-0.1, y, 1.1, y, pen((0.90, 0.90, 0.88), 0.022))
    for _ in range(44):
        x, y = random.uniform(0, 1), random.uniform(0.58, 0.98)
        r, colour = 0.012 + 0.022 * (y - 0.5), PETALS[int(random.integers(len(PETALS)))]
        canvas.drawLine(x, y, x, y + 3 * r, pen((0.16, 0.40, 0.16), 0.008))
        for turn in range(5):
            a = 2 * math.pi * turn / 5
            ellipse(canvas, x + r * math.cos(a), y + r * math.sin(a), r * 0.75, r * 0.75, paint(colour))
        ellipse(canvas, x, y, r * 0.6, r * 0.6, paint((0.98, 0.86, 0.30)))


def paint_underwater(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint beams of light from above, bubbles, fish and weeds."""
    fill(canvas, -0.1, 1.1, (0.22, 0.72, 0.86), (0.02, 0.20, 0.42))
    for x in random.uniform(0, 1, 4):
        beam = polygon((float(x) - 0.04, -0.1), (float(x) + 0.04, -0.1), (float(x) + 0.2, 0.9), (float(x) - 0.06, 0.9))
        canvas.drawPath(beam, paint((0.85, 0.98, 1.0), 0.14))
    for x in np.arange(0.02, 1.0, 0.12):
        top, sway = random.uniform(0.62, 0.86), random.uniform(-0.06, 0.06)
        weed = curve((float(x), 1.05), (float(x) + sway, 0.95, float(x) - sway, top))
        canvas.drawPath(weed, pen((0.10, random.uniform(0.40, 0.58), 0.30), 0.03))
    for _ in range(5):
        x, y, way = random.uniform(0.08, 0.92), random.uniform(0.1, 0.7), float(random.choice((-1.0, 1.0)))
        colour: Colour = ((0.98, 0.58, 0.16), (0.98, 0.84, 0.24), (0.90, 0.36, 0.44))[int(random.integers(3))]
        canvas.drawPath(
            polygon((x - way * 0.04, y), (x - way * 0.095, y - 0.035), (x - way * 0.095, y + 0.035)), paint(colour)
        )
        ellipse(canvas, x, y, 0.058, 0.034, radial((x, y - 0.02), 0.07, lighter(colour, 0.25), lighter(colour, -0.2)))
        ellipse(canvas, x + way * 0.03, y - 0.006, 0.009, 0.009, paint((0.05, 0.05, 0.08)))
    for x, y in random.random((18, 2)):
        r = random.uniform(0.007, 0.02)
        ellipse(canvas, float(x), float(y), r, r, pen((0.92, 0.99, 1.0), 0.006, 0.9))


def paint_library(canvas: skia.Canvas, random: np.random.Generator) -> None:
    """Paint wooden shelves full of books."""
    fill(canvas, -0.1, 1.1, (0.34, 0.22, 0.14), (0.22, 0.14, 0.09))
    for top in np.arange(-0.02, 1.0, 0.205):
        floor = float(top) + 0.185
        x = -0.02
        while x < 1.02:
            wide, tall = random.uniform(0.026, 0.055), random.uniform(0.11, 0.165)
            colour = SPINES[int(random.integers(len(SPINES)))]
            spine = linear((x, 0), (x + wide, 0), lighter(colour, 0.18), lighter(colour, -0.25))
            rectangle(canvas, x, floor - tall, x + wide - 0.004, floor, spine, 0.004)
            canvas.drawLine(
                x + 0.006, floor - tall * 0.75, x + wide - 0.01, floor - tall * 0.75, pen((0.95, 0.88, 0.6), 0.006)
            )
            x += wide
        board = linear((0, floor), (0, floor + 0.024), (0.66, 0.44, 0.26), (0.44, 0.28, 0.16))
        rectangle(canvas, -0.1, floor, 1.1, floor + 0.024, board)
    for x in (float(random.uniform(0.02, 0.1)), float(random.uniform(0.9, 0.98))):
        rectangle(canvas, x - 0.018, -0.1, x + 0.018, 1.1, paint((0.56, 0.36, 0.21)))


NEW_SCENES: dict[str, Scene] = {
    "mountains": paint_mountains,
    "garden": paint_garden,
    "underwater": paint_underwater,
    "library": paint_library,
}
