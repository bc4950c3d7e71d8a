"""Neck, torso, arms and what the hands hold, in head coordinates (unit: half the head's height, y down)."""

import math

import skia

from sefi.world.brush import curve, ellipse, lighter, linear, paint, pen, polygon, radial, rectangle
from sefi.world.person import Colour
from sefi.world.picture import Subject

WOOD: Colour = (0.72, 0.42, 0.18)
ORANGE: Colour = (0.93, 0.45, 0.13)


def torso_path() -> skia.Path:
    """Return the outline of the clothes, from the neck down."""
    return curve(
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
    """Neck and shoulders down to the picture's border."""
    skin, clothes = subject.person.skin_rgb(), subject.clothes
    rectangle(
        canvas,
        -0.30,
        0.6,
        0.30,
        1.5,
        linear((0, 0.8), (0, 1.35), lighter(skin, -0.42), lighter(skin, -0.12)),
        0.1,
    )
    torso = torso_path()
    near, far = lighter(clothes, 0.16), lighter(clothes, -0.38)
    canvas.drawPath(torso, linear((-1.5 * -light_side, 1.5), (1.5 * -light_side, 3.0), near, far))
    canvas.drawPath(curve((-0.36, 1.24), (0, 1.64, 0.36, 1.24)), pen(lighter(clothes, -0.5), 0.07, 0.8))


def arm(
    canvas: skia.Canvas,
    subject: Subject,
    shoulder: float,
    elbow: tuple[float, float],
    hand: tuple[float, float],
) -> None:
    """A sleeve from the shoulder over the elbow, and the hand at its end."""
    sleeve = lighter(subject.clothes, -0.16)
    canvas.drawPath(curve((shoulder, 1.85), (*elbow, *hand)), pen(lighter(sleeve, -0.35), 0.60))
    canvas.drawPath(curve((shoulder, 1.85), (*elbow, *hand)), pen(sleeve, 0.50))
    skin = subject.person.skin_rgb()
    ellipse(
        canvas,
        *hand,
        0.27,
        0.25,
        radial((hand[0] - 0.08, hand[1] - 0.1), 0.42, lighter(skin, 0.12), lighter(skin, -0.25)),
    )


def paint_cup(canvas: skia.Canvas, subject: Subject) -> None:
    """A steaming cup in one hand."""
    colour = subject.accent
    ellipse(canvas, 1.22, 1.86, 0.20, 0.22, pen(lighter(colour, -0.1), 0.11))
    canvas.drawPath(
        polygon((0.50, 1.48), (1.18, 1.48), (1.08, 2.30), (0.60, 2.30)),
        linear((0.5, 0), (1.2, 0), lighter(colour, 0.35), lighter(colour, -0.25)),
    )
    ellipse(canvas, 0.84, 1.48, 0.34, 0.10, paint((0.26, 0.14, 0.08)))
    for x in (0.72, 0.96):
        canvas.drawPath(curve((x, 1.34), (x - 0.14, 1.2, x + 0.14, 1.06, x, 0.92)), pen((1, 1, 1), 0.07, 0.6))
    arm(canvas, subject, 1.35, (1.75, 2.9), (0.84, 2.22))


def paint_guitar(canvas: skia.Canvas, subject: Subject) -> None:
    """A guitar across the chest."""
    canvas.save()
    canvas.translate(-0.25, 2.35)
    canvas.rotate(-24)
    rectangle(canvas, 0.4, -0.12, 2.6, 0.12, paint(lighter(WOOD, -0.55)), 0.05)
    rectangle(canvas, 2.5, -0.18, 2.95, 0.18, paint(lighter(WOOD, -0.65)), 0.06)
    for x, r in ((-0.45, 0.72), (0.38, 0.54)):
        ellipse(
            canvas,
            x,
            0,
            r,
            r,
            radial((x - 0.2, -0.3), r * 1.6, lighter(WOOD, 0.30), lighter(WOOD, -0.35)),
        )
    ellipse(canvas, 0.15, 0, 0.22, 0.22, paint((0.12, 0.06, 0.03)))
    for k in (-0.06, 0.0, 0.06):
        canvas.drawLine(-0.7, k, 2.6, k, pen((0.95, 0.93, 0.85), 0.018, 0.8))
    canvas.restore()
    arm(canvas, subject, -1.30, (-1.75, 2.8), (-0.35, 2.45))
    arm(canvas, subject, 1.35, (1.9, 2.6), (1.35, 1.75))


def paint_book(canvas: skia.Canvas, subject: Subject) -> None:
    """An open book held with both hands."""
    cover = subject.accent
    canvas.drawPath(
        polygon((-0.95, 1.62), (0, 1.78), (0.95, 1.62), (0.95, 2.56), (0, 2.72), (-0.95, 2.56)),
        paint(lighter(cover, -0.2)),
    )
    for side in (-1, 1):
        page = polygon((0, 1.74), (side * 0.86, 1.60), (side * 0.86, 2.46), (0, 2.62))
        canvas.drawPath(page, linear((0, 0), (side * 0.86, 0), (0.80, 0.77, 0.70), (0.99, 0.97, 0.92)))
        for k in range(4):
            y = 1.86 + 0.17 * k
            canvas.drawLine(side * 0.14, y + 0.02, side * 0.74, y - 0.08, pen((0.35, 0.35, 0.40), 0.03, 0.7))
    arm(canvas, subject, -1.35, (-1.8, 2.9), (-0.92, 2.36))
    arm(canvas, subject, 1.35, (1.8, 2.9), (0.92, 2.36))


def paint_balloon(canvas: skia.Canvas, subject: Subject) -> None:
    """A balloon on a string, above the shoulder."""
    colour = subject.accent
    canvas.drawPath(curve((1.55, 0.22), (1.40, 1.0, 1.62, 1.6, 1.42, 2.2)), pen((0.25, 0.25, 0.28), 0.04))
    ellipse(
        canvas,
        1.55,
        -0.55,
        0.58,
        0.72,
        radial((1.36, -0.82), 1.1, lighter(colour, 0.50), lighter(colour, -0.22)),
    )
    canvas.drawPath(polygon((1.47, 0.28), (1.55, 0.14), (1.63, 0.28)), paint(lighter(colour, -0.25)))
    ellipse(canvas, 1.36, -0.85, 0.13, 0.18, paint((1, 1, 1), 0.65))
    arm(canvas, subject, 1.35, (1.85, 2.7), (1.42, 2.15))


def paint_umbrella(canvas: skia.Canvas, subject: Subject) -> None:
    """An open umbrella over the head; drawn before the head."""
    colour = subject.accent
    canvas.drawLine(1.25, -1.6, 1.25, 2.3, pen((0.20, 0.16, 0.14), 0.09))
    canopy = curve(
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
    canvas.drawPath(canopy, linear((-1.5, -1.8), (2.3, -1.4), lighter(colour, 0.28), lighter(colour, -0.30)))
    for x in (-0.9, -0.26, 1.04, 1.70):
        canvas.drawPath(
            curve((0.4, -2.2), ((0.4 + x) / 2, -1.9, x, -1.06)),
            pen(lighter(colour, -0.45), 0.04, 0.7),
        )


def paint_umbrella_hand(canvas: skia.Canvas, subject: Subject) -> None:
    """The hand on the umbrella's handle; drawn after the body."""
    canvas.drawLine(1.25, 1.1, 1.25, 2.4, pen((0.20, 0.16, 0.14), 0.09))
    arm(canvas, subject, 1.35, (1.9, 2.8), (1.25, 2.15))


def paint_basketball(canvas: skia.Canvas, subject: Subject) -> None:
    """A basketball held before the chest."""
    x, y, r = 0.0, 2.28, 0.68
    ellipse(
        canvas,
        x,
        y,
        r,
        r,
        radial((x - 0.2, y - 0.3), r * 1.7, lighter(ORANGE, 0.28), lighter(ORANGE, -0.42)),
    )
    line = pen((0.18, 0.08, 0.03), 0.05)
    canvas.drawLine(x - r, y, x + r, y, line)
    canvas.drawLine(x, y - r, x, y + r, line)
    for side in (-1, 1):
        canvas.drawPath(
            curve((x + side * 0.48, y - 0.48), (x + side * 0.12, y, x + side * 0.48, y + 0.48)),
            line,
        )
        arm(canvas, subject, side * 1.35, (side * 1.8, 2.9), (side * 0.66, 2.36))


def paint_waving(canvas: skia.Canvas, subject: Subject) -> None:
    """One raised open hand beside the head."""
    arm(canvas, subject, 1.30, (2.3, 2.0), (1.72, 0.62))
    skin = subject.person.skin_rgb()
    for k in range(5):
        angle = math.radians(-150 + 30 * k)
        end = (1.72 + 0.52 * math.cos(angle), 0.55 + 0.52 * math.sin(angle))
        canvas.drawLine(1.72, 0.55, *end, pen(lighter(skin, -0.12), 0.16))
        canvas.drawLine(1.72, 0.55, *end, pen(lighter(skin, 0.05), 0.11))


def paint_pan(canvas: skia.Canvas, subject: Subject) -> None:
    """Cooking: a steaming pan with an egg in it."""
    x, y = 0.62, 2.02
    canvas.drawLine(x + 0.6, y + 0.06, x + 1.45, y + 0.36, pen(lighter(WOOD, -0.35), 0.17))
    ellipse(canvas, x, y + 0.05, 0.84, 0.34, paint((0.10, 0.10, 0.12)))
    ellipse(canvas, x, y, 0.84, 0.32, linear((x - 0.8, y), (x + 0.8, y), (0.40, 0.41, 0.45), (0.20, 0.20, 0.24)))
    ellipse(canvas, x, y, 0.70, 0.25, paint((0.13, 0.13, 0.15)))
    ellipse(canvas, x - 0.04, y, 0.50, 0.19, paint((0.99, 0.98, 0.95)))
    ellipse(canvas, x + 0.02, y - 0.03, 0.20, 0.12, radial((x, y - 0.06), 0.22, (1.0, 0.86, 0.32), (0.96, 0.62, 0.10)))
    for k in (-0.35, 0.0, 0.35):
        canvas.drawPath(
            curve((x + k, y - 0.3), (x + k - 0.16, y - 0.48, x + k + 0.16, y - 0.66, x + k, y - 0.86)),
            pen((1, 1, 1), 0.07, 0.6),
        )
    arm(canvas, subject, 1.35, (2.25, 2.9), (x + 1.2, y + 0.28))


def paint_handshake(canvas: skia.Canvas, left: Subject, right: Subject) -> None:
    """Two people's arms that meet between them; the canvas is in picture units."""
    middle = ((left.x + right.x) / 2, (left.y + right.y) / 2 + 2.25 * (left.scale + right.scale) / 2)
    for subject, side in ((left, 1), (right, -1)):
        size, sleeve = subject.scale, lighter(subject.clothes, -0.16)
        shoulder = (subject.x + side * 0.8 * size, subject.y + 1.9 * size)
        bend = (subject.x + side * 0.95 * size, middle[1] + 0.35 * size)
        wrist = (middle[0] - side * 0.30 * size, middle[1] + 0.04 * size)
        line = curve(shoulder, (*bend, *wrist))
        canvas.drawPath(line, pen(lighter(sleeve, -0.35), 0.52 * size))
        canvas.drawPath(line, pen(sleeve, 0.43 * size))
    for subject, side in ((right, -1), (left, 1)):
        skin, size = subject.person.skin_rgb(), subject.scale
        hand = (middle[0] - side * 0.05 * size, middle[1])
        ellipse(canvas, *hand, 0.29 * size, 0.21 * size, paint(lighter(skin, -0.35)))
        ellipse(
            canvas,
            *hand,
            0.26 * size,
            0.18 * size,
            radial((hand[0], hand[1] - 0.1 * size), 0.4 * size, lighter(skin, 0.12), lighter(skin, -0.18)),
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
