"""Neck, torso, arms and what the hands hold, in head coordinates (unit: half the head's height, y down)."""

import math

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
from tiny_portraits.drawing.content import Subject
from tiny_portraits.drawing.traits import Colour

WOOD: Colour = (0.72, 0.42, 0.18)
ORANGE: Colour = (0.93, 0.45, 0.13)


def make_torso_path() -> skia.Path:
    """Return the outline of the clothes, from the neck down."""
    return make_curve(
        (-0.36, 1.22),
        (-0.9, 1.34, -1.42, 1.45, -1.55, 2.1),
        (-1.68, 5.5),
        (1.68, 5.5),
        (1.55, 2.1),
        (1.42, 1.45, 0.9, 1.34, 0.36, 1.22),
        (0, 1.62, -0.36, 1.22),
        close=True,
    )


def paint_body(canvas: skia.Canvas, subject: Subject, light_side: float) -> None:
    """Paint neck and shoulders down to the image's border."""
    skin, clothes = subject.person.get_skin_rgb(), subject.clothes
    paint_rectangle(
        canvas,
        -0.30,
        0.6,
        0.30,
        1.5,
        make_linear_fill((0, 0.8), (0, 1.35), lighten(skin, -0.42), lighten(skin, -0.12)),
        0.1,
    )
    torso = make_torso_path()
    near, far = lighten(clothes, 0.16), lighten(clothes, -0.38)
    canvas.drawPath(torso, make_linear_fill((-1.5 * -light_side, 1.5), (1.5 * -light_side, 3.0), near, far))
    canvas.drawPath(make_curve((-0.36, 1.24), (0, 1.64, 0.36, 1.24)), make_stroke(lighten(clothes, -0.5), 0.07, 0.8))


def paint_arm(
    canvas: skia.Canvas,
    subject: Subject,
    shoulder: float,
    elbow: tuple[float, float],
    hand: tuple[float, float],
) -> None:
    """Paint a sleeve from the shoulder over the elbow, and the hand at its end."""
    sleeve = lighten(subject.clothes, -0.16)
    canvas.drawPath(make_curve((shoulder, 1.85), (*elbow, *hand)), make_stroke(lighten(sleeve, -0.35), 0.60))
    canvas.drawPath(make_curve((shoulder, 1.85), (*elbow, *hand)), make_stroke(sleeve, 0.50))
    skin = subject.person.get_skin_rgb()
    paint_ellipse(
        canvas,
        *hand,
        0.27,
        0.25,
        make_radial_fill((hand[0] - 0.08, hand[1] - 0.1), 0.42, lighten(skin, 0.12), lighten(skin, -0.25)),
    )


def paint_cup(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a steaming cup in one hand."""
    colour = subject.accent
    paint_ellipse(canvas, 1.22, 1.86, 0.20, 0.22, make_stroke(lighten(colour, -0.1), 0.11))
    canvas.drawPath(
        make_polygon((0.50, 1.48), (1.18, 1.48), (1.08, 2.30), (0.60, 2.30)),
        make_linear_fill((0.5, 0), (1.2, 0), lighten(colour, 0.35), lighten(colour, -0.25)),
    )
    paint_ellipse(canvas, 0.84, 1.48, 0.34, 0.10, make_fill((0.26, 0.14, 0.08)))
    for x in (0.72, 0.96):
        canvas.drawPath(
            make_curve((x, 1.34), (x - 0.14, 1.2, x + 0.14, 1.06, x, 0.92)), make_stroke((1, 1, 1), 0.07, 0.6)
        )
    paint_arm(canvas, subject, 1.35, (1.75, 2.9), (0.84, 2.22))


def paint_guitar(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a guitar across the chest."""
    canvas.save()
    canvas.translate(-0.25, 2.35)
    canvas.rotate(-24)
    paint_rectangle(canvas, 0.4, -0.12, 2.6, 0.12, make_fill(lighten(WOOD, -0.55)), 0.05)
    paint_rectangle(canvas, 2.5, -0.18, 2.95, 0.18, make_fill(lighten(WOOD, -0.65)), 0.06)
    for x, r in ((-0.45, 0.72), (0.38, 0.54)):
        paint_ellipse(
            canvas,
            x,
            0,
            r,
            r,
            make_radial_fill((x - 0.2, -0.3), r * 1.6, lighten(WOOD, 0.30), lighten(WOOD, -0.35)),
        )
    paint_ellipse(canvas, 0.15, 0, 0.22, 0.22, make_fill((0.12, 0.06, 0.03)))
    for k in (-0.06, 0.0, 0.06):
        canvas.drawLine(-0.7, k, 2.6, k, make_stroke((0.95, 0.93, 0.85), 0.018, 0.8))
    canvas.restore()
    paint_arm(canvas, subject, -1.30, (-1.75, 2.8), (-0.35, 2.45))
    paint_arm(canvas, subject, 1.35, (1.9, 2.6), (1.35, 1.75))


def paint_book(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint an open book held with both hands."""
    cover = subject.accent
    canvas.drawPath(
        make_polygon((-0.95, 1.62), (0, 1.78), (0.95, 1.62), (0.95, 2.56), (0, 2.72), (-0.95, 2.56)),
        make_fill(lighten(cover, -0.2)),
    )
    for side in (-1, 1):
        page = make_polygon((0, 1.74), (side * 0.86, 1.60), (side * 0.86, 2.46), (0, 2.62))
        canvas.drawPath(page, make_linear_fill((0, 0), (side * 0.86, 0), (0.80, 0.77, 0.70), (0.99, 0.97, 0.92)))
        for k in range(4):
            y = 1.86 + 0.17 * k
            canvas.drawLine(side * 0.14, y + 0.02, side * 0.74, y - 0.08, make_stroke((0.35, 0.35, 0.40), 0.03, 0.7))
    paint_arm(canvas, subject, -1.35, (-1.8, 2.9), (-0.92, 2.36))
    paint_arm(canvas, subject, 1.35, (1.8, 2.9), (0.92, 2.36))


def paint_balloon(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a balloon on a string, above the shoulder."""
    colour = subject.accent
    canvas.drawPath(make_curve((1.55, 0.22), (1.40, 1.0, 1.62, 1.6, 1.42, 2.2)), make_stroke((0.25, 0.25, 0.28), 0.04))
    paint_ellipse(
        canvas,
        1.55,
        -0.55,
        0.58,
        0.72,
        make_radial_fill((1.36, -0.82), 1.1, lighten(colour, 0.50), lighten(colour, -0.22)),
    )
    canvas.drawPath(make_polygon((1.47, 0.28), (1.55, 0.14), (1.63, 0.28)), make_fill(lighten(colour, -0.25)))
    paint_ellipse(canvas, 1.36, -0.85, 0.13, 0.18, make_fill((1, 1, 1), 0.65))
    paint_arm(canvas, subject, 1.35, (1.85, 2.7), (1.42, 2.15))


def paint_umbrella(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint an open umbrella over the head; drawn before the head."""
    colour = subject.accent
    canvas.drawLine(1.25, -1.6, 1.25, 2.3, make_stroke((0.20, 0.16, 0.14), 0.09))
    canopy = make_curve(
        (-1.55, -1.05),
        (-1.35, -2.6, 2.15, -2.6, 2.35, -1.05),
        (2.02, -1.30, 1.70, -1.05),
        (1.36, -1.30, 1.04, -1.05),
        (0.72, -1.30, 0.39, -1.05),
        (0.06, -1.30, -0.26, -1.05),
        (-0.58, -1.30, -0.90, -1.05),
        (-1.22, -1.30, -1.55, -1.05),
        close=True,
    )
    canvas.drawPath(canopy, make_linear_fill((-1.5, -1.8), (2.3, -1.4), lighten(colour, 0.28), lighten(colour, -0.30)))
    for x in (-0.9, -0.26, 1.04, 1.70):
        canvas.drawPath(
            make_curve((0.4, -2.2), ((0.4 + x) / 2, -1.9, x, -1.06)),
            make_stroke(lighten(colour, -0.45), 0.04, 0.7),
        )


def paint_umbrella_hand(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint the hand on the umbrella's handle; drawn after the body."""
    canvas.drawLine(1.25, 1.1, 1.25, 2.4, make_stroke((0.20, 0.16, 0.14), 0.09))
    paint_arm(canvas, subject, 1.35, (1.9, 2.8), (1.25, 2.15))


def paint_basketball(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a basketball held before the chest."""
    x, y, r = 0.0, 2.28, 0.68
    paint_ellipse(
        canvas,
        x,
        y,
        r,
        r,
        make_radial_fill((x - 0.2, y - 0.3), r * 1.7, lighten(ORANGE, 0.28), lighten(ORANGE, -0.42)),
    )
    line = make_stroke((0.18, 0.08, 0.03), 0.05)
    canvas.drawLine(x - r, y, x + r, y, line)
    canvas.drawLine(x, y - r, x, y + r, line)
    for side in (-1, 1):
        canvas.drawPath(
            make_curve((x + side * 0.48, y - 0.48), (x + side * 0.12, y, x + side * 0.48, y + 0.48)),
            line,
        )
        paint_arm(canvas, subject, side * 1.35, (side * 1.8, 2.9), (side * 0.66, 2.36))


def paint_waving(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint one raised open hand beside the head."""
    paint_arm(canvas, subject, 1.30, (2.3, 2.0), (1.72, 0.62))
    skin = subject.person.get_skin_rgb()
    for k in range(5):
        angle = math.radians(-150 + 30 * k)
        end = (1.72 + 0.52 * math.cos(angle), 0.55 + 0.52 * math.sin(angle))
        canvas.drawLine(1.72, 0.55, *end, make_stroke(lighten(skin, -0.12), 0.16))
        canvas.drawLine(1.72, 0.55, *end, make_stroke(lighten(skin, 0.05), 0.11))


def paint_pan(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a steaming pan with an egg in it."""
    x, y = 0.62, 2.02
    canvas.drawLine(x + 0.6, y + 0.06, x + 1.45, y + 0.36, make_stroke(lighten(WOOD, -0.35), 0.17))
    paint_ellipse(canvas, x, y + 0.05, 0.84, 0.34, make_fill((0.10, 0.10, 0.12)))
    paint_ellipse(
        canvas, x, y, 0.84, 0.32, make_linear_fill((x - 0.8, y), (x + 0.8, y), (0.40, 0.41, 0.45), (0.20, 0.20, 0.24))
    )
    paint_ellipse(canvas, x, y, 0.70, 0.25, make_fill((0.13, 0.13, 0.15)))
    paint_ellipse(canvas, x - 0.04, y, 0.50, 0.19, make_fill((0.99, 0.98, 0.95)))
    paint_ellipse(
        canvas,
        x + 0.02,
        y - 0.03,
        0.20,
        0.12,
        make_radial_fill((x, y - 0.06), 0.22, (1.0, 0.86, 0.32), (0.96, 0.62, 0.10)),
    )
    for k in (-0.35, 0.0, 0.35):
        canvas.drawPath(
            make_curve((x + k, y - 0.3), (x + k - 0.16, y - 0.48, x + k + 0.16, y - 0.66, x + k, y - 0.86)),
            make_stroke((1, 1, 1), 0.07, 0.6),
        )
    paint_arm(canvas, subject, 1.35, (2.25, 2.9), (x + 1.2, y + 0.28))


def paint_handshake(canvas: skia.Canvas, left: Subject, right: Subject) -> None:
    """Paint two people's arms that meet between them; the canvas is in image units."""
    middle = ((left.x + right.x) / 2, (left.y + right.y) / 2 + 2.25 * (left.scale + right.scale) / 2)
    for subject, side in ((left, 1), (right, -1)):
        size, sleeve = subject.scale, lighten(subject.clothes, -0.16)
        shoulder = (subject.x + side * 0.8 * size, subject.y + 1.9 * size)
        bend = (subject.x + side * 0.95 * size, middle[1] + 0.35 * size)
        wrist = (middle[0] - side * 0.30 * size, middle[1] + 0.04 * size)
        line = make_curve(shoulder, (*bend, *wrist))
        canvas.drawPath(line, make_stroke(lighten(sleeve, -0.35), 0.52 * size))
        canvas.drawPath(line, make_stroke(sleeve, 0.43 * size))
    for subject, side in ((right, -1), (left, 1)):
        skin, size = subject.person.get_skin_rgb(), subject.scale
        hand = (middle[0] - side * 0.05 * size, middle[1])
        paint_ellipse(canvas, *hand, 0.29 * size, 0.21 * size, make_fill(lighten(skin, -0.35)))
        paint_ellipse(
            canvas,
            *hand,
            0.26 * size,
            0.18 * size,
            make_radial_fill((hand[0], hand[1] - 0.1 * size), 0.4 * size, lighten(skin, 0.12), lighten(skin, -0.18)),
        )


HELD = {
    "cup": paint_cup,
    "guitar": paint_guitar,
    "book": paint_book,
    "balloon": paint_balloon,
    "umbrella": paint_umbrella_hand,
    "basketball": paint_basketball,
    "waving": paint_waving,
    "cooking": paint_pan,
}
