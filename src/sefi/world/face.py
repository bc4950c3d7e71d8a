"""A head, painted in its own coordinates: origin at the face centre, unit half the head's height, y down."""

import math

import skia

from sefi.world.brush import (
    BLACK,
    WHITE,
    curve,
    ellipse,
    lighter,
    linear,
    paint,
    pen,
    radial,
)
from sefi.world.person import EYE_COLOURS, HAIR_STYLES, Colour, Person, changed, mix
from sefi.world.picture import Subject

PURPLE: Colour = (0.56, 0.20, 0.80)
# Hair colours that are attributes, as purple is; the first of several counts.
DYES: dict[str, Colour] = {
    "purple hair": PURPLE,
    "orange hair": (0.96, 0.52, 0.10),
    "white hair": (0.96, 0.95, 0.93),
    "turquoise hair": (0.12, 0.72, 0.70),
}
GREY: Colour = (0.78, 0.78, 0.80)
LIP: Colour = (0.80, 0.30, 0.32)


def half_width(person: Person) -> float:
    """Half the face's width at the cheeks, in half head heights."""
    return 0.66 + 0.20 * person.value("face_width")


def eye_place(person: Person) -> tuple[float, float]:
    """Distance of each eye from the middle, and the eyes' height (y)."""
    return 0.27 + 0.11 * person.value("eye_spacing"), -0.10 + 0.14 * (person.value("eye_height") - 0.5)


def mouth_height() -> float:
    """The mouth's y."""
    return 0.56


def landmarks(person: Person, turn: float) -> list[tuple[float, float]]:
    """Right eye, left eye, nose tip, right and left mouth corner (as seen: left first), head coordinates."""
    (dx, y), shift, mouth = (
        eye_place(person),
        0.10 * turn,
        0.20 + 0.10 * person.value("mouth_width"),
    )
    nose = 0.16 + 0.14 * person.value("nose_length")
    return [
        (shift - dx, y),
        (shift + dx, y),
        (shift, y + nose + 0.10),
        (shift - mouth, mouth_height()),
        (shift + mouth, mouth_height()),
    ]


def hair_colour(subject: Subject) -> Colour:
    """Hair colour under the subject's attributes: a dye beats grey beats the person's own."""
    own = subject.person.hair_rgb()
    for name, dye in DYES.items():
        if name in subject.attributes:
            return dye
    return mix(own, GREY, 0.8) if "old" in subject.attributes else own


def seen(subject: Subject) -> Person:
    """The person as the attributes let them look: a round face and curly hair are somebody else's shape on theirs."""
    changes: dict[str, float] = {}
    if "round face" in subject.attributes:
        changes |= {"face_width": 1.25, "jaw": 0.5, "chin": 0.0}
    if "curly hair" in subject.attributes:
        changes["hair_style"] = (HAIR_STYLES.index("curly") + 0.5) / len(HAIR_STYLES)
    return changed(subject.person, changes) if changes else subject.person


def head_path(subject: Subject) -> skia.Path:
    """The outline of the face."""
    person = seen(subject)
    w = half_width(person)
    if "round face" in subject.attributes:
        return oval(0, -0.02, w * 1.04, 0.99)
    jaw = w * (0.62 + 0.36 * person.value("jaw"))
    chin = 0.10 + 0.22 * person.value("jaw")
    low = 0.93 + 0.10 * person.value("chin")
    return curve(
        (0, -1.0),
        (w * 0.75, -1.0, w, -0.62, w, -0.10),
        (w, 0.25, jaw * 1.05, 0.45, jaw, 0.62),
        (jaw * 0.85, 0.85, chin, low, 0, low),
        (-chin, low, -jaw * 0.85, 0.85, -jaw, 0.62),
        (-jaw * 1.05, 0.45, -w, 0.25, -w, -0.10),
        (-w, -0.62, -w * 0.75, -1.0, 0, -1.0),
        close=True,
    )


def paint_back_hair(canvas: skia.Canvas, subject: Subject) -> None:
    """The hair behind the head and shoulders."""
    person, hair = seen(subject), hair_colour(subject)
    w, style = half_width(person) + 0.13, person.hair_style
    fill = linear((0, -1.1), (0, 1.6), lighter(hair, 0.05), lighter(hair, -0.35))
    if style in ("long", "bob"):
        low, flare = (1.75, 1.22) if style == "long" else (0.72, 1.16)
        canvas.drawPath(
            curve(
                (0, -1.16),
                (w * 0.95, -1.16, w * 1.02, -0.6, w * 1.04, 0.0),
                (w * 1.08, 0.5, w * flare, low - 0.3, w * flare * 0.9, low),
                (w * 0.3, low + 0.08, -w * 0.3, low + 0.08, -w * flare * 0.9, low),
                (-w * flare, low - 0.3, -w * 1.08, 0.5, -w * 1.04, 0.0),
                (-w * 1.02, -0.6, -w * 0.95, -1.16, 0, -1.16),
                close=True,
            ),
            fill,
        )
    elif style == "curly":
        for step in range(13):
            angle = math.pi * (0.93 + 1.14 * step / 12)
            x, y = (w + 0.06) * math.cos(angle), -0.22 + 0.92 * math.sin(angle)
            ellipse(
                canvas,
                x,
                y,
                0.31,
                0.31,
                radial((x - 0.08, y - 0.1), 0.45, lighter(hair, 0.10), lighter(hair, -0.30)),
            )
    elif style == "bun":
        ellipse(
            canvas,
            0,
            -1.22,
            0.34,
            0.31,
            radial((-0.1, -1.32), 0.5, lighter(hair, 0.15), lighter(hair, -0.3)),
        )


def paint_ears(canvas: skia.Canvas, subject: Subject, skin: Colour) -> None:
    """Both ears; the long styles cover them later."""
    size, w = 0.13 + 0.08 * subject.person.value("ear_size"), half_width(seen(subject))
    for side in (-1, 1):
        ellipse(canvas, side * (w + 0.02), 0.08, size * 0.75, size * 1.25, paint(lighter(skin, -0.10)))
        ellipse(canvas, side * (w + 0.03), 0.08, size * 0.38, size * 0.75, paint(lighter(skin, -0.28)))


def paint_skin(canvas: skia.Canvas, subject: Subject, skin: Colour, light_side: float) -> None:
    """The face itself: shaded away from the light, with blush, shadow under the brow and the chin."""
    path = head_path(subject)
    canvas.drawPath(path, radial((0.38 * light_side, -0.35), 1.75, lighter(skin, 0.14), lighter(skin, -0.34)))
    canvas.save()
    canvas.clipPath(path, True)
    for side in (-1, 1):
        ellipse(
            canvas,
            side * 0.42,
            0.30,
            0.26,
            0.2,
            radial((side * 0.42, 0.30), 0.26, mix(skin, (0.95, 0.35, 0.33), 0.30), skin, fade=True),
        )
    ellipse(canvas, -light_side * 1.15, 0.1, 0.5, 1.1, paint(lighter(skin, -0.55), 0.28, 0.16))
    if subject.person.has("freckles"):
        for k in range(14):
            x, y = ((k * 0.618) % 1 - 0.5) * 1.05, 0.16 + 0.22 * ((k * 0.377) % 1)
            ellipse(canvas, x, y, 0.045, 0.040, paint(mix(skin, (0.42, 0.18, 0.06), 0.70), 0.9))
    if "angry" in subject.attributes:
        canvas.drawPaint(paint((0.86, 0.16, 0.10), 0.26))
    if "old" in subject.attributes:
        paint_wrinkles(canvas, skin)
    canvas.restore()


def paint_wrinkles(canvas: skia.Canvas, skin: Colour) -> None:
    """Lines on the forehead, beside the mouth and under the eyes."""
    line = pen(lighter(skin, -0.42), 0.035, 0.85)
    for y in (-0.62, -0.50, -0.38):
        canvas.drawPath(curve((-0.34, y), (0, y - 0.06, 0.34, y)), line)
    for side in (-1, 1):
        canvas.drawPath(curve((side * 0.22, 0.28), (side * 0.42, 0.42, side * 0.40, 0.66)), line)
        canvas.drawPath(curve((side * 0.18, 0.14), (side * 0.34, 0.22, side * 0.50, 0.12)), line)


def paint_eyes(canvas: skia.Canvas, subject: Subject, iris: Colour, skin: Colour) -> None:
    """Whites, irises, lids; wider when surprised, arcs when closed."""
    person, (dx, y) = subject.person, eye_place(subject.person)
    rx = 0.125 + 0.080 * person.value("eye_size")
    ry = rx * (0.98 if "surprised" in subject.attributes else 0.72 if "angry" not in subject.attributes else 0.52)
    for side in (-1, 1):
        x = side * dx
        if "eyes closed" in subject.attributes:
            ellipse(canvas, x, y, rx, ry, paint(lighter(skin, -0.08)))
            ellipse(
                canvas,
                x,
                y + ry * 0.1,
                rx * 1.2,
                ry * 1.25,
                radial((x, y), rx * 1.5, lighter(skin, -0.12), lighter(skin, -0.3)),
            )
            canvas.drawPath(
                curve((x - rx * 1.15, y), (x, y + ry * 1.9, x + rx * 1.15, y)), pen((0.10, 0.06, 0.05), 0.075)
            )
            continue
        ellipse(canvas, x, y, rx * 1.25, ry * 1.35, paint(lighter(skin, -0.4), 0.35, 0.04))
        ellipse(canvas, x, y, rx, ry, paint((0.98, 0.98, 0.97)))
        canvas.save()
        canvas.clipPath(oval(x, y, rx, ry), True)
        radius = 0.70 * rx
        ellipse(
            canvas,
            x,
            y,
            radius,
            radius,
            radial((x, y + radius * 0.4), radius * 1.2, lighter(iris, 0.25), lighter(iris, -0.35)),
        )
        ellipse(canvas, x, y, radius * 0.48, radius * 0.48, paint((0.03, 0.03, 0.04)))
        ellipse(
            canvas,
            x + radius * 0.35,
            y - radius * 0.4,
            radius * 0.28,
            radius * 0.28,
            paint(WHITE, 0.95),
        )
        canvas.restore()
        canvas.drawPath(curve((x - rx, y), (x, y - ry * 2.0, x + rx, y)), pen((0.10, 0.06, 0.05), 0.045))
        if "sad" in subject.attributes:
            paint_tear(canvas, x + side * 0.02, y + ry, 0.42)


def paint_tear(canvas: skia.Canvas, x: float, y: float, length: float) -> None:
    """A tear running down from an eye."""
    drop = curve(
        (x, y),
        (x + 0.10, y + length * 0.6, x + 0.085, y + length, x, y + length),
        (x - 0.085, y + length, x - 0.10, y + length * 0.6, x, y),
        close=True,
    )
    canvas.drawPath(drop, linear((x, y), (x, y + length), (0.80, 0.93, 1.0), (0.30, 0.66, 0.98)))
    ellipse(canvas, x - 0.03, y + length * 0.78, 0.022, 0.04, paint(WHITE, 0.9))


def oval(x: float, y: float, rx: float, ry: float) -> skia.Path:
    """An ellipse as a path, for clipping."""
    return skia.PathBuilder().addOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry)).detach()


def paint_brows(canvas: skia.Canvas, subject: Subject, hair: Colour) -> None:
    """Eyebrows; the expression moves their inner and outer ends."""
    person, (dx, y) = subject.person, eye_place(subject.person)
    own = (person.value("brow_tilt") - 0.5) * 0.10
    inner, outer, lift = own, -own, 0.0
    if "angry" in subject.attributes:
        inner, outer, lift = 0.17, -0.10, -0.02
    elif "sad" in subject.attributes:
        inner, outer, lift = -0.17, 0.10, 0.0
    elif "surprised" in subject.attributes:
        inner, outer, lift = -0.04, 0.02, 0.15
    top = y - 0.27 - lift
    stroke = pen(lighter(mix(hair, BLACK, 0.25), -0.1), 0.045 + 0.085 * person.value("brow_thickness"))
    for side in (-1, 1):
        start, end = (side * (dx - 0.16), top + inner), (side * (dx + 0.18), top + outer + 0.03)
        canvas.drawPath(curve(start, (side * (dx + 0.02), min(start[1], end[1]) - 0.06, *end)), stroke)


def paint_nose(canvas: skia.Canvas, subject: Subject, skin: Colour, light_side: float) -> None:
    """Nose: a lit ridge, a shadow on the far side, two nostrils."""
    person, (_, y) = subject.person, eye_place(subject.person)
    w, length = 0.08 + 0.13 * person.value("nose_width"), 0.16 + 0.14 * person.value("nose_length")
    tip = y + length + 0.12
    canvas.drawPath(
        curve((-light_side * 0.05, y + 0.04), (-light_side * 0.08, tip - 0.12, -light_side * w, tip)),
        pen(lighter(skin, -0.40), 0.045, 0.6, 0.012),
    )
    ellipse(
        canvas,
        0,
        tip,
        w,
        0.075,
        radial((light_side * 0.03, tip - 0.05), w * 1.25, lighter(skin, 0.10), lighter(skin, -0.22)),
    )
    for side in (-1, 1):
        ellipse(canvas, side * w * 0.5, tip + 0.045, w * 0.28, 0.026, paint(lighter(skin, -0.62), 0.85))


def paint_mouth(canvas: skia.Canvas, subject: Subject, skin: Colour) -> None:
    """Mouth; the expression decides its shape."""
    person, y = subject.person, mouth_height()
    w = 0.20 + 0.10 * person.value("mouth_width")
    thick = 0.05 + 0.075 * person.value("lip_thickness")
    lips = mix(mix(skin, LIP, 0.55), (0.75, 0.12, 0.22), 0.75 * person.value("lip_colour"))
    dark = mix(lighter(lips, -0.6), BLACK, 0.2)
    if "smiling" in subject.attributes:
        w *= 1.30
        canvas.drawPath(
            curve((-w, y - 0.06), (0, y + 0.05, w, y - 0.06), (0, y + 0.44, -w, y - 0.06), close=True),
            paint(dark),
        )
        canvas.drawPath(
            curve(
                (-w * 0.82, y - 0.03),
                (0, y + 0.06, w * 0.82, y - 0.03),
                (0, y + 0.22, -w * 0.82, y - 0.03),
                close=True,
            ),
            paint(WHITE),
        )
        canvas.drawPath(curve((-w, y - 0.06), (0, y + 0.44, w, y - 0.06)), pen(lips, thick))
    elif "surprised" in subject.attributes:
        ellipse(canvas, 0, y + 0.06, 0.15 + thick * 0.5, 0.20 + thick * 0.5, paint(lips))
        ellipse(canvas, 0, y + 0.07, 0.15 - thick * 0.3, 0.20 - thick * 0.3, paint(dark))
    elif "angry" in subject.attributes:
        paint_gritted_teeth(canvas, w, y, lips)
    else:
        bend, low = (0.24, y + 0.10) if "sad" in subject.attributes else (-0.07, y)
        canvas.drawPath(
            curve(
                (-w, low),
                (-w * 0.4, low - bend - thick * 1.9, 0, low - bend * 0.5 - thick * 0.9),
                (w * 0.4, low - bend - thick * 1.9, w, low),
                (0, low - bend + thick * 3.0, -w, low),
                close=True,
            ),
            paint(lips),
        )
        canvas.drawPath(curve((-w, low), (0, low - bend, w, low)), pen(dark, 0.035))


def paint_gritted_teeth(canvas: skia.Canvas, w: float, y: float, lips: Colour) -> None:
    """An angry mouth: its corners down, the teeth together."""
    shape = curve(
        (-w, y + 0.15), (-w * 0.8, y - 0.12, w * 0.8, y - 0.12, w, y + 0.15), (0, y + 0.10, -w, y + 0.15), close=True
    )
    canvas.drawPath(shape, paint((0.97, 0.96, 0.93)))
    for x in (-0.5, 0.0, 0.5):
        canvas.drawLine(x * w, y - 0.05, x * w, y + 0.11, pen((0.42, 0.34, 0.34), 0.022))
    canvas.drawPath(shape, pen(lighter(lips, -0.25), 0.055))


def paint_beard(canvas: skia.Canvas, subject: Subject, hair: Colour) -> None:
    """A full beard that leaves the lips free."""
    path, y = head_path(subject), mouth_height()
    canvas.save()
    canvas.clipPath(path, True)
    shape = curve(
        (-1.0, 0.12),
        (-0.62, 0.20, -0.50, 0.36, -0.34, 0.40),
        (0, 0.30, 0.34, 0.40),
        (0.50, 0.36, 0.62, 0.20, 1.0, 0.12),
        (1.0, 1.2),
        (-1.0, 1.2),
        close=True,
    )
    canvas.drawPath(shape, linear((0, 0.2), (0, 1.1), lighter(hair, 0.02), lighter(hair, -0.3)))
    ellipse(canvas, 0, y + 0.02, 0.27, 0.10, paint(lighter(subject.person.skin_rgb(), -0.12)))
    canvas.restore()


def paint_front_hair(canvas: skia.Canvas, subject: Subject) -> None:
    """The hair over the forehead and the temples."""
    person, hair = seen(subject), hair_colour(subject)
    w, style = half_width(person), person.hair_style
    line = -0.62 + 0.20 * person.value("fringe")
    side = {
        "long": 0.55,
        "bob": 0.62,
        "short": -0.12,
        "bun": -0.28,
        "spiky": -0.30,
        "curly": -0.20,
    }[style]
    fill = radial((-0.25, -1.05), 1.5, lighter(hair, 0.24), lighter(hair, -0.22))
    part = -0.30 if style in ("short", "long") else 0.0
    canvas.drawPath(
        curve(
            (-w * 1.06, side),
            (-w * 1.20, -0.85, -w * 0.75, -1.17, 0, -1.17),
            (w * 0.75, -1.17, w * 1.20, -0.85, w * 1.06, side),
            (w * 0.98, -0.2, w * 0.92, line + 0.05, w * 0.72, line),
            (w * 0.4, line - 0.18, part + 0.2, line - 0.16, part, line - 0.22),
            (part - 0.1, line - 0.05, -w * 0.7, line - 0.02, -w * 0.78, line + 0.06),
            (-w * 0.92, line + 0.1, -w * 0.98, -0.2, -w * 1.06, side),
            close=True,
        ),
        fill,
    )
    if style == "spiky":
        for k in range(11):
            x = w * (-1.0 + 2.0 * k / 10)
            y = -0.98 + 0.42 * (x / w) ** 2
            tip = (x * 1.22 + 0.10, y - 0.26 - 0.05 * (k % 3))
            canvas.drawPath(
                curve((x - 0.20, y + 0.26), (x - 0.08, y - 0.06, *tip), (x + 0.16, y, x + 0.20, y + 0.26), close=True),
                fill,
            )
    if style == "curly":
        for k in range(7):
            x = w * (-0.85 + 1.7 * k / 6)
            y = line - 0.22 + 0.10 * (x / w) ** 2
            ellipse(
                canvas,
                x,
                y,
                0.20,
                0.19,
                radial((x - 0.05, y - 0.08), 0.3, lighter(hair, 0.16), lighter(hair, -0.2)),
            )


def paint_glasses(canvas: skia.Canvas, subject: Subject) -> None:
    """The person's own glasses, or the sunglasses of the attribute."""
    person, (dx, y) = subject.person, eye_place(subject.person)
    dark = "sunglasses" in subject.attributes
    if not dark and not person.has("glasses"):
        return
    rx, ry = (0.285, 0.235) if dark else (0.235, 0.215)
    corner = 0.19 if dark else ry if person.has("round_glasses") else 0.07
    frame = pen((0.05, 0.05, 0.06) if dark else (0.16, 0.12, 0.12), 0.05)
    for side in (-1, 1):
        box = skia.Rect.MakeLTRB(side * dx - rx, y - ry, side * dx + rx, y + ry)
        if dark:
            canvas.drawRoundRect(
                box,
                0.19,
                0.19,
                linear((0, y - ry), (0, y + ry), (0.04, 0.04, 0.06), (0.22, 0.22, 0.28)),
            )
            canvas.drawPath(curve((side * dx - 0.12, y - 0.10), (side * dx, y - 0.12)), pen(WHITE, 0.04, 0.7))
        else:
            canvas.drawRoundRect(box, corner, corner, paint(WHITE, 0.14))
        canvas.drawRoundRect(box, corner, corner, frame)
        canvas.drawPath(curve((side * (dx + rx), y), (side * half_width(seen(subject)), y - 0.02)), frame)
    canvas.drawPath(curve((-dx + rx, y - 0.03), (0, y - 0.09, dx - rx, y - 0.03)), frame)


def paint_hat(canvas: skia.Canvas, subject: Subject) -> None:
    """A brimmed hat in the subject's accent colour."""
    w, colour = half_width(seen(subject)) + 0.10, subject.accent
    crown = curve((-w, -0.66), (-w * 1.02, -1.62, w * 1.02, -1.62, w, -0.66), close=True)
    canvas.drawPath(crown, linear((-w, -1.2), (w, -1.0), lighter(colour, 0.22), lighter(colour, -0.32)))
    canvas.drawPath(curve((-w, -0.80), (0, -0.66, w, -0.80)), pen(lighter(colour, -0.55), 0.15))
    ellipse(
        canvas,
        0,
        -0.64,
        w * 1.42,
        0.15,
        linear((0, -0.8), (0, -0.5), lighter(colour, 0.12), lighter(colour, -0.35)),
    )


def paint_head(canvas: skia.Canvas, subject: Subject, light_side: float) -> None:
    """Ears, skin, features, hair and what is worn, back to front."""
    person, hair, skin = subject.person, hair_colour(subject), subject.person.skin_rgb()
    paint_ears(canvas, subject, skin)
    paint_skin(canvas, subject, skin, light_side)
    canvas.save()
    canvas.translate(0.10 * subject.turn, 0)
    paint_eyes(canvas, subject, EYE_COLOURS[person.eye_colour], skin)
    paint_brows(canvas, subject, hair)
    if "beard" in subject.attributes:
        paint_beard(canvas, subject, hair)
    paint_nose(canvas, subject, skin, light_side)
    paint_mouth(canvas, subject, skin)
    if person.has("mole"):
        ellipse(
            canvas,
            (person.value("mole_x") - 0.5) * 0.95,
            0.22 + 0.5 * person.value("mole_y"),
            0.075,
            0.075,
            paint((0.14, 0.07, 0.05)),
        )
    canvas.restore()
    paint_front_hair(canvas, subject)
    canvas.save()
    canvas.translate(0.10 * subject.turn, 0)
    paint_glasses(canvas, subject)
    canvas.restore()
    if "hat" in subject.attributes:
        paint_hat(canvas, subject)
