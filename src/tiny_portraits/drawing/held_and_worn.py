"""Things that people hold and wear beside `body.HELD`, in head coordinates (unit: half the head's height, y down)."""

import math
from collections.abc import Callable

import skia

from tiny_portraits.drawing.body import paint_arm
from tiny_portraits.drawing.brush import (
    WHITE,
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
from tiny_portraits.drawing.content import Subject
from tiny_portraits.drawing.face import apply_attributes, measure_half_width
from tiny_portraits.drawing.traits import Colour

GOLD: Colour = (0.95, 0.76, 0.24)
# Clothes whose colour is their own; all others are in the subject's colour.
GARMENT_COLOURS: dict[str, Colour] = {
    "suit": (0.17, 0.18, 0.26),
    "leather jacket": (0.13, 0.11, 0.12),
    "raincoat": (0.98, 0.80, 0.16),
    "armour": (0.62, 0.65, 0.70),
    "spacesuit": (0.90, 0.91, 0.93),
}


def paint_flowers(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a bunch of flowers in one hand."""
    for k in range(5):
        angle = math.radians(-150 + 30 * k)
        x, y = 0.85 + 0.52 * math.cos(angle), 1.62 + 0.52 * math.sin(angle)
        canvas.drawLine(0.85, 2.3, x, y, make_stroke((0.18, 0.46, 0.20), 0.07))
        colour = subject.accent if k % 2 else (0.98, 0.96, 0.92)
        for turn in range(6):
            a = 2 * math.pi * turn / 6
            paint_ellipse(
                canvas, x + 0.13 * math.cos(a), y + 0.13 * math.sin(a), 0.10, 0.10, make_fill(lighten(colour, 0.1))
            )
        paint_ellipse(canvas, x, y, 0.09, 0.09, make_fill((0.98, 0.82, 0.24)))
    canvas.drawPath(
        make_polygon((0.52, 1.9), (1.18, 1.9), (0.92, 2.6), (0.78, 2.6)), make_fill((0.98, 0.94, 0.86), 0.92)
    )
    paint_arm(canvas, subject, 1.35, (1.75, 2.9), (0.86, 2.3))


def paint_phone(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a phone held to the ear."""
    x = measure_half_width(apply_attributes(subject)) + 0.10
    paint_arm(canvas, subject, 1.30, (2.2, 1.9), (x + 0.16, 0.42))
    canvas.save()
    canvas.translate(x, 0.18)
    canvas.rotate(10)
    paint_rectangle(canvas, -0.13, -0.42, 0.13, 0.42, make_fill((0.08, 0.08, 0.10)), 0.07)
    paint_rectangle(
        canvas,
        -0.06,
        -0.34,
        0.09,
        0.30,
        make_linear_fill((0, -0.3), (0, 0.3), (0.62, 0.86, 0.98), (0.28, 0.48, 0.80)),
        0.03,
    )
    canvas.restore()
    skin = subject.person.get_skin_rgb()
    for k in range(3):
        y = 0.24 + 0.14 * k
        canvas.drawLine(x - 0.10, y, x + 0.18, y + 0.03, make_stroke(lighten(skin, -0.06), 0.12))


def paint_ice_cream(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a cone with two scoops."""
    cone = make_polygon((0.62, 1.66), (1.14, 1.66), (0.88, 2.5))
    canvas.drawPath(cone, make_linear_fill((0.6, 0), (1.15, 0), (0.94, 0.74, 0.44), (0.74, 0.50, 0.24)))
    for k in (-0.12, 0.0, 0.12):
        canvas.drawLine(0.80 + k, 1.70, 0.92 + k * 0.4, 2.2, make_stroke((0.62, 0.40, 0.18), 0.03))
    for y, colour in ((1.50, (0.99, 0.94, 0.82)), (1.16, subject.accent)):
        scoop = make_radial_fill((0.78, y - 0.12), 0.5, lighten(colour, 0.4), lighten(colour, -0.12))
        paint_ellipse(canvas, 0.88, y, 0.31, 0.29, scoop)
    paint_arm(canvas, subject, 1.35, (1.75, 2.9), (0.90, 2.36))


def paint_singing(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a microphone in front of the chin, and notes."""
    canvas.drawLine(0.46, 1.20, 0.80, 2.1, make_stroke((0.12, 0.12, 0.14), 0.16))
    paint_ellipse(
        canvas, 0.40, 1.06, 0.20, 0.20, make_radial_fill((0.34, 0.98), 0.3, (0.80, 0.82, 0.86), (0.30, 0.31, 0.36))
    )
    canvas.drawLine(0.30, 1.20, 0.54, 1.14, make_stroke((0.12, 0.12, 0.14), 0.06))
    paint_arm(canvas, subject, 1.35, (1.8, 2.9), (0.78, 2.05))
    black = (0.08, 0.08, 0.12)
    for x, y in ((-1.55, -0.10), (-1.95, 0.45), (1.62, -0.30)):
        paint_ellipse(canvas, x, y, 0.14, 0.11, make_fill(black))
        canvas.drawLine(x + 0.12, y, x + 0.12, y - 0.48, make_stroke(black, 0.06))
        canvas.drawPath(
            make_curve((x + 0.12, y - 0.48), (x + 0.30, y - 0.40, x + 0.32, y - 0.22)), make_stroke(black, 0.07)
        )


NEW_HELD: dict[str, Callable[[skia.Canvas, Subject], None]] = {
    "flowers": paint_flowers,
    "phone": paint_phone,
    "ice cream": paint_ice_cream,
    "singing": paint_singing,
}


def paint_crown(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a golden crown with three stones."""
    w = measure_half_width(apply_attributes(subject)) * 0.92
    points = [
        (-w, -0.86),
        (-w * 1.12, -1.52),
        (-w * 0.5, -1.16),
        (0, -1.66),
        (w * 0.5, -1.16),
        (w * 1.12, -1.52),
        (w, -0.86),
    ]
    canvas.drawPath(
        make_polygon(*points), make_linear_fill((-w, -1.4), (w, -1.0), lighten(GOLD, 0.35), lighten(GOLD, -0.32))
    )
    canvas.drawPath(make_curve((-w, -0.90), (0, -0.76, w, -0.90)), make_stroke(lighten(GOLD, -0.35), 0.13))
    for x, y in ((-w * 1.12, -1.52), (0, -1.66), (w * 1.12, -1.52)):
        paint_ellipse(canvas, x, y, 0.10, 0.10, make_fill(lighten(GOLD, 0.2)))
    for x, colour in ((-w * 0.5, (0.85, 0.14, 0.24)), (0.0, (0.16, 0.40, 0.85)), (w * 0.5, (0.14, 0.62, 0.36))):
        paint_ellipse(canvas, x, -1.02, 0.09, 0.09, make_fill(colour))


def paint_suit(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a white shirt, a tie and lapels."""
    dark = lighten(subject.clothes, -0.3)
    canvas.drawPath(make_polygon((-0.40, 1.24), (0.40, 1.24), (0.10, 2.9), (-0.10, 2.9)), make_fill((0.97, 0.97, 0.98)))
    canvas.drawPath(
        make_polygon((-0.10, 1.50), (0.10, 1.50), (0.16, 2.6), (0, 2.85), (-0.16, 2.6)), make_fill(subject.accent)
    )
    for side in (-1, 1):
        lapel = make_polygon((side * 0.36, 1.22), (side * 0.80, 1.40), (side * 0.66, 1.95), (side * 0.06, 2.95))
        canvas.drawPath(lapel, make_fill(lighten(subject.clothes, 0.10)))
        canvas.drawPath(lapel, make_stroke(dark, 0.04))


def paint_stripes(canvas: skia.Canvas, _subject: Subject) -> None:
    """Paint white stripes across."""
    for k in range(7):
        y = 1.62 + 0.42 * k
        canvas.drawPath(
            make_curve((-1.8, y + 0.12), (0, y - 0.10, 1.8, y + 0.12)), make_stroke((0.97, 0.97, 0.95), 0.16)
        )


def paint_hoodie(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a hood around the neck, strings and a pocket."""
    near = lighten(subject.clothes, 0.14)
    canvas.drawPath(
        make_curve((-0.66, 1.16), (-0.50, 1.78, 0, 1.84), (0.50, 1.78, 0.66, 1.16)), make_stroke(near, 0.34)
    )
    canvas.drawPath(
        make_curve((-0.52, 1.28), (0, 1.92, 0.52, 1.28)), make_stroke(lighten(subject.clothes, -0.45), 0.06)
    )
    for side in (-1, 1):
        canvas.drawLine(side * 0.20, 1.78, side * 0.24, 2.55, make_stroke((0.97, 0.97, 0.95), 0.07))
    pocket = make_polygon((-0.62, 3.0), (0.62, 3.0), (0.86, 3.7), (-0.86, 3.7))
    canvas.drawPath(pocket, make_stroke(lighten(subject.clothes, -0.4), 0.06))


def paint_sweater(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a rolled collar and zigzags."""
    canvas.drawPath(make_curve((-0.40, 1.16), (0, 1.40, 0.40, 1.16)), make_stroke(lighten(subject.clothes, 0.12), 0.26))
    for y, colour in ((2.0, WHITE), (2.34, subject.accent)):
        points = [(-1.8 + 0.3 * k, y + (0.18 if k % 2 else 0.0)) for k in range(13)]
        canvas.drawPath(make_curve(points[0], *points[1:]), make_stroke(colour, 0.12))


def paint_dress(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint bare shoulders and straps above the cloth."""
    skin = subject.person.get_skin_rgb()
    bare = make_curve(
        (-1.8, 0.9), (1.8, 0.9), (1.62, 2.06), (0.9, 2.10, 0, 1.80), (-0.9, 2.10, -1.62, 2.06), close=True
    )
    canvas.drawPath(bare, make_linear_fill((0, 1.2), (0, 2.1), lighten(skin, -0.12), lighten(skin, 0.04)))
    for side in (-1, 1):
        canvas.drawLine(side * 0.62, 1.30, side * 0.72, 2.05, make_stroke(lighten(subject.clothes, -0.1), 0.14))
    for x, y in ((-0.9, 2.9), (-0.3, 2.6), (0.4, 2.95), (0.95, 2.6), (0.0, 3.3)):
        paint_ellipse(canvas, x, y, 0.10, 0.10, make_fill(lighten(subject.clothes, 0.55)))


def paint_leather(canvas: skia.Canvas, _subject: Subject) -> None:
    """Paint a zip, a collar and highlights."""
    canvas.drawPath(make_polygon((-0.34, 1.24), (0.34, 1.24), (0.05, 2.3)), make_fill((0.92, 0.92, 0.92)))
    for side in (-1, 1):
        flap = make_polygon((side * 0.34, 1.20), (side * 0.98, 1.42), (side * 0.62, 2.0), (side * 0.05, 2.35))
        canvas.drawPath(flap, make_linear_fill((0, 1.3), (side * 0.9, 2.0), (0.26, 0.24, 0.26), (0.10, 0.09, 0.10)))
        canvas.drawPath(flap, make_stroke((0.46, 0.44, 0.46), 0.04))
    canvas.drawLine(0.05, 2.3, 0.12, 5.2, make_stroke((0.80, 0.80, 0.84), 0.07))
    canvas.drawPath(make_curve((-1.2, 2.0), (-1.36, 2.6, -1.28, 3.4)), make_stroke((0.5, 0.48, 0.5), 0.06, 0.7))


def paint_raincoat(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a collar, a placket and buttons."""
    shade = lighten(subject.clothes, -0.32)
    for side in (-1, 1):
        canvas.drawPath(
            make_polygon((0, 1.62), (side * 0.40, 1.18), (side * 0.78, 1.50), (side * 0.36, 1.92)),
            make_fill(lighten(subject.clothes, 0.2)),
        )
        canvas.drawPath(make_curve((0, 1.62), (side * 0.36, 1.92), (side * 0.78, 1.50)), make_stroke(shade, 0.04))
    canvas.drawLine(0, 1.62, 0, 5.4, make_stroke(shade, 0.05))
    for k in range(4):
        paint_ellipse(canvas, 0.18, 2.1 + 0.5 * k, 0.08, 0.08, make_fill((0.30, 0.28, 0.20)))


def paint_scarf(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a thick scarf with one loose end."""
    colour = subject.accent
    canvas.drawPath(
        make_polygon((0.20, 1.5), (0.68, 1.4), (0.84, 2.9), (0.34, 2.95)),
        make_linear_fill((0.2, 0), (0.8, 0), lighten(colour, 0.1), lighten(colour, -0.25)),
    )
    for k in range(3):
        canvas.drawLine(
            0.30 + 0.03 * k, 2.0 + 0.3 * k, 0.76 + 0.03 * k, 1.95 + 0.3 * k, make_stroke(lighten(colour, 0.5), 0.07)
        )
    canvas.drawPath(make_curve((-0.62, 1.10), (0, 1.62, 0.62, 1.10)), make_stroke(lighten(colour, -0.3), 0.50))
    canvas.drawPath(make_curve((-0.62, 1.08), (0, 1.58, 0.62, 1.08)), make_stroke(lighten(colour, 0.06), 0.40))


def paint_apron(canvas: skia.Canvas, _subject: Subject) -> None:
    """Paint a white bib with straps and a pocket."""
    for side in (-1, 1):
        canvas.drawLine(side * 0.42, 1.26, side * 0.56, 2.0, make_stroke((0.94, 0.93, 0.90), 0.16))
    bib = make_polygon((-0.66, 1.90), (0.66, 1.90), (1.0, 3.0), (1.1, 5.5), (-1.1, 5.5), (-1.0, 3.0))
    canvas.drawPath(bib, make_linear_fill((-0.8, 2.0), (0.9, 3.5), (0.99, 0.98, 0.96), (0.84, 0.83, 0.80)))
    canvas.drawPath(
        make_polygon((-0.4, 2.7), (0.4, 2.7), (0.36, 3.3), (-0.36, 3.3)), make_stroke((0.62, 0.60, 0.56), 0.05)
    )


def paint_armour(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a breastplate, a collar and shoulder plates."""
    steel = subject.clothes
    plate = make_curve(
        (-0.95, 1.62),
        (-1.15, 2.6, -0.8, 3.6),
        (0, 3.9, 0.8, 3.6),
        (1.15, 2.6, 0.95, 1.62),
        (0, 1.95, -0.95, 1.62),
        close=True,
    )
    canvas.drawPath(plate, make_linear_fill((-0.9, 1.8), (0.9, 3.2), lighten(steel, 0.55), lighten(steel, -0.45)))
    canvas.drawLine(0, 1.85, 0, 3.75, make_stroke(lighten(steel, -0.5), 0.05))
    canvas.drawPath(make_curve((-0.46, 1.18), (0, 1.56, 0.46, 1.18)), make_stroke(lighten(steel, 0.3), 0.26))
    for side in (-1, 1):
        paint_ellipse(
            canvas,
            side * 1.22,
            1.78,
            0.44,
            0.42,
            make_radial_fill((side * 1.22 - 0.12, 1.62), 0.7, lighten(steel, 0.65), lighten(steel, -0.45)),
        )
        for y in (1.9, 2.06):
            canvas.drawPath(
                make_curve((side * 0.86, y), (side * 1.22, y + 0.14, side * 1.58, y)),
                make_stroke(lighten(steel, -0.5), 0.04),
            )


def paint_spacesuit(canvas: skia.Canvas, _subject: Subject) -> None:
    """Paint the ring of the helmet, a control box and a badge."""
    canvas.drawPath(make_curve((-0.78, 1.16), (0, 1.78, 0.78, 1.16)), make_stroke((0.48, 0.50, 0.56), 0.30))
    canvas.drawPath(make_curve((-0.78, 1.12), (0, 1.72, 0.78, 1.12)), make_stroke((0.82, 0.84, 0.88), 0.16))
    paint_rectangle(canvas, -0.52, 2.2, 0.52, 2.95, make_fill((0.60, 0.62, 0.68)), 0.1)
    for k, colour in enumerate(((0.90, 0.24, 0.22), (0.98, 0.82, 0.26), (0.26, 0.66, 0.40))):
        paint_ellipse(canvas, -0.28 + 0.28 * k, 2.42, 0.09, 0.09, make_fill(colour))
    canvas.drawLine(-0.36, 2.72, 0.36, 2.72, make_stroke((0.16, 0.18, 0.24), 0.10))
    paint_ellipse(canvas, -1.02, 2.1, 0.20, 0.20, make_fill((0.16, 0.34, 0.70)))
    for side in (-1, 1):
        canvas.drawLine(side * 1.30, 1.6, side * 1.45, 2.6, make_stroke((0.90, 0.46, 0.18), 0.09))


def paint_shirt(_canvas: skia.Canvas, _subject: Subject) -> None:
    """Leave the torso plain: it is a shirt."""


GARMENT_PAINTERS: dict[str, Callable[[skia.Canvas, Subject], None]] = {
    "shirt": paint_shirt,
    "striped shirt": paint_stripes,
    "hoodie": paint_hoodie,
    "sweater": paint_sweater,
    "dress": paint_dress,
    "suit": paint_suit,
    "leather jacket": paint_leather,
    "raincoat": paint_raincoat,
    "scarf": paint_scarf,
    "apron": paint_apron,
    "armour": paint_armour,
    "spacesuit": paint_spacesuit,
}
