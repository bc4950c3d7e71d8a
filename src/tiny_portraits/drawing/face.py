"""A head, painted in its own coordinates: origin at the face centre, unit half the head's height, y down."""

import math

import skia

from tiny_portraits.drawing.brush import (
    BLACK,
    WHITE,
    lighten,
    make_curve,
    make_fill,
    make_linear_fill,
    make_radial_fill,
    make_stroke,
    paint_ellipse,
)
from tiny_portraits.drawing.content import Subject
from tiny_portraits.drawing.traits import EYE_COLOURS, HAIR_STYLES, Colour, Person, change_person, mix_colours

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


def measure_half_width(person: Person) -> float:
    """Return half the face's width at the cheeks, in half head heights."""
    return 0.66 + 0.20 * person.get_value("face_width")


def place_eyes(person: Person) -> tuple[float, float]:
    """Return the distance of each eye from the middle, and the eyes' height (y)."""
    return 0.27 + 0.11 * person.get_value("eye_spacing"), -0.10 + 0.14 * (person.get_value("eye_height") - 0.5)


def get_mouth_height() -> float:
    """Return the mouth's y."""
    return 0.56


def place_landmarks(person: Person, turn: float) -> list[tuple[float, float]]:
    """Return right eye, left eye, nose tip, right and left mouth corner (as seen: left first), head coordinates."""
    (dx, y), shift, mouth = (
        place_eyes(person),
        0.10 * turn,
        0.20 + 0.10 * person.get_value("mouth_width"),
    )
    nose = 0.16 + 0.14 * person.get_value("nose_length")
    return [
        (shift - dx, y),
        (shift + dx, y),
        (shift, y + nose + 0.10),
        (shift - mouth, get_mouth_height()),
        (shift + mouth, get_mouth_height()),
    ]


def choose_hair_colour(subject: Subject) -> Colour:
    """Return the hair colour under the subject's attributes: a dye beats grey beats the person's own."""
    natural = subject.person.get_hair_rgb()
    for name, dye in DYES.items():
        if name in subject.attributes:
            return dye
    return mix_colours(natural, GREY, 0.8) if "old" in subject.attributes else natural


def apply_attributes(subject: Subject) -> Person:
    """Return the person as the attributes change them: a round face, curly hair."""
    changes: dict[str, float] = {}
    if "round face" in subject.attributes:
        changes |= {"face_width": 1.25, "jaw": 0.5, "chin": 0.0}
    if "curly hair" in subject.attributes:
        changes["hair_style"] = (HAIR_STYLES.index("curly") + 0.5) / len(HAIR_STYLES)
    return change_person(subject.person, changes) if changes else subject.person


def make_head_path(subject: Subject) -> skia.Path:
    """Return the outline of the face."""
    person = apply_attributes(subject)
    w = measure_half_width(person)
    if "round face" in subject.attributes:
        return make_oval(0, -0.02, w * 1.04, 0.99)
    jaw = w * (0.62 + 0.36 * person.get_value("jaw"))
    chin = 0.10 + 0.22 * person.get_value("jaw")
    low = 0.93 + 0.10 * person.get_value("chin")
    return make_curve(
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
    """Paint the hair behind the head and shoulders."""
    person, hair = apply_attributes(subject), choose_hair_colour(subject)
    w, style = measure_half_width(person) + 0.13, person.hair_style
    fill = make_linear_fill((0, -1.1), (0, 1.6), lighten(hair, 0.05), lighten(hair, -0.35))
    if style in ("long", "bob"):
        low, flare = (1.75, 1.22) if style == "long" else (0.72, 1.16)
        canvas.drawPath(
            make_curve(
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
            paint_ellipse(
                canvas,
                x,
                y,
                0.31,
                0.31,
                make_radial_fill((x - 0.08, y - 0.1), 0.45, lighten(hair, 0.10), lighten(hair, -0.30)),
            )
    elif style == "bun":
        paint_ellipse(
            canvas,
            0,
            -1.22,
            0.34,
            0.31,
            make_radial_fill((-0.1, -1.32), 0.5, lighten(hair, 0.15), lighten(hair, -0.3)),
        )


def paint_ears(canvas: skia.Canvas, subject: Subject, skin: Colour) -> None:
    """Paint both ears; the long styles cover them later."""
    size, w = 0.13 + 0.08 * subject.person.get_value("ear_size"), measure_half_width(apply_attributes(subject))
    for side in (-1, 1):
        paint_ellipse(canvas, side * (w + 0.02), 0.08, size * 0.75, size * 1.25, make_fill(lighten(skin, -0.10)))
        paint_ellipse(canvas, side * (w + 0.03), 0.08, size * 0.38, size * 0.75, make_fill(lighten(skin, -0.28)))


def paint_skin(canvas: skia.Canvas, subject: Subject, skin: Colour, light_side: float) -> None:
    """Paint the face itself: shaded away from the light, with blush, shadow under the brow and the chin."""
    path = make_head_path(subject)
    canvas.drawPath(path, make_radial_fill((0.38 * light_side, -0.35), 1.75, lighten(skin, 0.14), lighten(skin, -0.34)))
    canvas.save()
    canvas.clipPath(path, True)
    for side in (-1, 1):
        paint_ellipse(
            canvas,
            side * 0.42,
            0.30,
            0.26,
            0.2,
            make_radial_fill((side * 0.42, 0.30), 0.26, mix_colours(skin, (0.95, 0.35, 0.33), 0.30), skin, fade=True),
        )
    paint_ellipse(canvas, -light_side * 1.15, 0.1, 0.5, 1.1, make_fill(lighten(skin, -0.55), 0.28, 0.16))
    if subject.person.has("freckles"):
        for k in range(14):
            x, y = ((k * 0.618) % 1 - 0.5) * 1.05, 0.16 + 0.22 * ((k * 0.377) % 1)
            paint_ellipse(canvas, x, y, 0.045, 0.040, make_fill(mix_colours(skin, (0.42, 0.18, 0.06), 0.70), 0.9))
    if "angry" in subject.attributes:
        canvas.drawPaint(make_fill((0.86, 0.16, 0.10), 0.26))
    if "old" in subject.attributes:
        paint_wrinkles(canvas, skin)
    canvas.restore()


def paint_wrinkles(canvas: skia.Canvas, skin: Colour) -> None:
    """Paint lines on the forehead, beside the mouth and under the eyes."""
    line = make_stroke(lighten(skin, -0.42), 0.035, 0.85)
    for y in (-0.62, -0.50, -0.38):
        canvas.drawPath(make_curve((-0.34, y), (0, y - 0.06, 0.34, y)), line)
    for side in (-1, 1):
        canvas.drawPath(make_curve((side * 0.22, 0.28), (side * 0.42, 0.42, side * 0.40, 0.66)), line)
        canvas.drawPath(make_curve((side * 0.18, 0.14), (side * 0.34, 0.22, side * 0.50, 0.12)), line)


def paint_eyes(canvas: skia.Canvas, subject: Subject, iris: Colour, skin: Colour) -> None:
    """Paint the eyes: whites, irises, lids; wider when surprised, arcs when closed."""
    person, (dx, y) = subject.person, place_eyes(subject.person)
    rx = 0.125 + 0.080 * person.get_value("eye_size")
    ry = rx * (0.98 if "surprised" in subject.attributes else 0.72 if "angry" not in subject.attributes else 0.52)
    for side in (-1, 1):
        x = side * dx
        if "eyes closed" in subject.attributes:
            paint_ellipse(canvas, x, y, rx, ry, make_fill(lighten(skin, -0.08)))
            paint_ellipse(
                canvas,
                x,
                y + ry * 0.1,
                rx * 1.2,
                ry * 1.25,
                make_radial_fill((x, y), rx * 1.5, lighten(skin, -0.12), lighten(skin, -0.3)),
            )
            canvas.drawPath(
                make_curve((x - rx * 1.15, y), (x, y + ry * 1.9, x + rx * 1.15, y)),
                make_stroke((0.10, 0.06, 0.05), 0.075),
            )
            continue
        paint_ellipse(canvas, x, y, rx * 1.25, ry * 1.35, make_fill(lighten(skin, -0.4), 0.35, 0.04))
        paint_ellipse(canvas, x, y, rx, ry, make_fill((0.98, 0.98, 0.97)))
        canvas.save()
        canvas.clipPath(make_oval(x, y, rx, ry), True)
        radius = 0.70 * rx
        paint_ellipse(
            canvas,
            x,
            y,
            radius,
            radius,
            make_radial_fill((x, y + radius * 0.4), radius * 1.2, lighten(iris, 0.25), lighten(iris, -0.35)),
        )
        paint_ellipse(canvas, x, y, radius * 0.48, radius * 0.48, make_fill((0.03, 0.03, 0.04)))
        paint_ellipse(
            canvas,
            x + radius * 0.35,
            y - radius * 0.4,
            radius * 0.28,
            radius * 0.28,
            make_fill(WHITE, 0.95),
        )
        canvas.restore()
        canvas.drawPath(make_curve((x - rx, y), (x, y - ry * 2.0, x + rx, y)), make_stroke((0.10, 0.06, 0.05), 0.045))
        if "sad" in subject.attributes:
            paint_tear(canvas, x + side * 0.02, y + ry, 0.42)


def paint_tear(canvas: skia.Canvas, x: float, y: float, length: float) -> None:
    """Paint a tear running down from an eye."""
    drop = make_curve(
        (x, y),
        (x + 0.10, y + length * 0.6, x + 0.085, y + length, x, y + length),
        (x - 0.085, y + length, x - 0.10, y + length * 0.6, x, y),
        close=True,
    )
    canvas.drawPath(drop, make_linear_fill((x, y), (x, y + length), (0.80, 0.93, 1.0), (0.30, 0.66, 0.98)))
    paint_ellipse(canvas, x - 0.03, y + length * 0.78, 0.022, 0.04, make_fill(WHITE, 0.9))


def make_oval(x: float, y: float, rx: float, ry: float) -> skia.Path:
    """Return an ellipse as a path, for clipping."""
    return skia.PathBuilder().addOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry)).detach()


def paint_brows(canvas: skia.Canvas, subject: Subject, hair: Colour) -> None:
    """Paint eyebrows; the expression moves their inner and outer ends."""
    person, (dx, y) = subject.person, place_eyes(subject.person)
    tilt = (person.get_value("brow_tilt") - 0.5) * 0.10
    inner, outer, lift = tilt, -tilt, 0.0
    if "angry" in subject.attributes:
        inner, outer, lift = 0.17, -0.10, -0.02
    elif "sad" in subject.attributes:
        inner, outer, lift = -0.17, 0.10, 0.0
    elif "surprised" in subject.attributes:
        inner, outer, lift = -0.04, 0.02, 0.15
    top = y - 0.27 - lift
    stroke = make_stroke(
        lighten(mix_colours(hair, BLACK, 0.25), -0.1), 0.045 + 0.085 * person.get_value("brow_thickness")
    )
    for side in (-1, 1):
        start, end = (side * (dx - 0.16), top + inner), (side * (dx + 0.18), top + outer + 0.03)
        canvas.drawPath(make_curve(start, (side * (dx + 0.02), min(start[1], end[1]) - 0.06, *end)), stroke)


def paint_nose(canvas: skia.Canvas, subject: Subject, skin: Colour, light_side: float) -> None:
    """Paint the nose: a lit ridge, a shadow on the far side, two nostrils."""
    person, (_, y) = subject.person, place_eyes(subject.person)
    w, length = 0.08 + 0.13 * person.get_value("nose_width"), 0.16 + 0.14 * person.get_value("nose_length")
    tip = y + length + 0.12
    canvas.drawPath(
        make_curve((-light_side * 0.05, y + 0.04), (-light_side * 0.08, tip - 0.12, -light_side * w, tip)),
        make_stroke(lighten(skin, -0.40), 0.045, 0.6, 0.012),
    )
    paint_ellipse(
        canvas,
        0,
        tip,
        w,
        0.075,
        make_radial_fill((light_side * 0.03, tip - 0.05), w * 1.25, lighten(skin, 0.10), lighten(skin, -0.22)),
    )
    for side in (-1, 1):
        paint_ellipse(canvas, side * w * 0.5, tip + 0.045, w * 0.28, 0.026, make_fill(lighten(skin, -0.62), 0.85))


def paint_mouth(canvas: skia.Canvas, subject: Subject, skin: Colour) -> None:
    """Paint the mouth; the expression decides its shape."""
    person, y = subject.person, get_mouth_height()
    w = 0.20 + 0.10 * person.get_value("mouth_width")
    thick = 0.05 + 0.075 * person.get_value("lip_thickness")
    lips = mix_colours(mix_colours(skin, LIP, 0.55), (0.75, 0.12, 0.22), 0.75 * person.get_value("lip_colour"))
    dark = mix_colours(lighten(lips, -0.6), BLACK, 0.2)
    if "smiling" in subject.attributes:
        w *= 1.30
        canvas.drawPath(
            make_curve((-w, y - 0.06), (0, y + 0.05, w, y - 0.06), (0, y + 0.44, -w, y - 0.06), close=True),
            make_fill(dark),
        )
        canvas.drawPath(
            make_curve(
                (-w * 0.82, y - 0.03),
                (0, y + 0.06, w * 0.82, y - 0.03),
                (0, y + 0.22, -w * 0.82, y - 0.03),
                close=True,
            ),
            make_fill(WHITE),
        )
        canvas.drawPath(make_curve((-w, y - 0.06), (0, y + 0.44, w, y - 0.06)), make_stroke(lips, thick))
    elif "surprised" in subject.attributes:
        paint_ellipse(canvas, 0, y + 0.06, 0.15 + thick * 0.5, 0.20 + thick * 0.5, make_fill(lips))
        paint_ellipse(canvas, 0, y + 0.07, 0.15 - thick * 0.3, 0.20 - thick * 0.3, make_fill(dark))
    elif "angry" in subject.attributes:
        paint_gritted_teeth(canvas, w, y, lips)
    else:
        bend, low = (0.24, y + 0.10) if "sad" in subject.attributes else (-0.07, y)
        canvas.drawPath(
            make_curve(
                (-w, low),
                (-w * 0.4, low - bend - thick * 1.9, 0, low - bend * 0.5 - thick * 0.9),
                (w * 0.4, low - bend - thick * 1.9, w, low),
                (0, low - bend + thick * 3.0, -w, low),
                close=True,
            ),
            make_fill(lips),
        )
        canvas.drawPath(make_curve((-w, low), (0, low - bend, w, low)), make_stroke(dark, 0.035))


def paint_gritted_teeth(canvas: skia.Canvas, w: float, y: float, lips: Colour) -> None:
    """Paint an angry mouth: its corners down, the teeth together."""
    shape = make_curve(
        (-w, y + 0.15), (-w * 0.8, y - 0.12, w * 0.8, y - 0.12, w, y + 0.15), (0, y + 0.10, -w, y + 0.15), close=True
    )
    canvas.drawPath(shape, make_fill((0.97, 0.96, 0.93)))
    for x in (-0.5, 0.0, 0.5):
        canvas.drawLine(x * w, y - 0.05, x * w, y + 0.11, make_stroke((0.42, 0.34, 0.34), 0.022))
    canvas.drawPath(shape, make_stroke(lighten(lips, -0.25), 0.055))


def paint_beard(canvas: skia.Canvas, subject: Subject, hair: Colour) -> None:
    """Paint a full beard that leaves the lips free."""
    path, y = make_head_path(subject), get_mouth_height()
    canvas.save()
    canvas.clipPath(path, True)
    shape = make_curve(
        (-1.0, 0.12),
        (-0.62, 0.20, -0.50, 0.36, -0.34, 0.40),
        (0, 0.30, 0.34, 0.40),
        (0.50, 0.36, 0.62, 0.20, 1.0, 0.12),
        (1.0, 1.2),
        (-1.0, 1.2),
        close=True,
    )
    canvas.drawPath(shape, make_linear_fill((0, 0.2), (0, 1.1), lighten(hair, 0.02), lighten(hair, -0.3)))
    paint_ellipse(canvas, 0, y + 0.02, 0.27, 0.10, make_fill(lighten(subject.person.get_skin_rgb(), -0.12)))
    canvas.restore()


def paint_front_hair(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint the hair over the forehead and the temples."""
    person, hair = apply_attributes(subject), choose_hair_colour(subject)
    w, style = measure_half_width(person), person.hair_style
    line = -0.62 + 0.20 * person.get_value("fringe")
    side = {
        "long": 0.55,
        "bob": 0.62,
        "short": -0.12,
        "bun": -0.28,
        "spiky": -0.30,
        "curly": -0.20,
    }[style]
    fill = make_radial_fill((-0.25, -1.05), 1.5, lighten(hair, 0.24), lighten(hair, -0.22))
    part = -0.30 if style in ("short", "long") else 0.0
    canvas.drawPath(
        make_curve(
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
                make_curve(
                    (x - 0.20, y + 0.26), (x - 0.08, y - 0.06, *tip), (x + 0.16, y, x + 0.20, y + 0.26), close=True
                ),
                fill,
            )
    if style == "curly":
        for k in range(7):
            x = w * (-0.85 + 1.7 * k / 6)
            y = line - 0.22 + 0.10 * (x / w) ** 2
            paint_ellipse(
                canvas,
                x,
                y,
                0.20,
                0.19,
                make_radial_fill((x - 0.05, y - 0.08), 0.3, lighten(hair, 0.16), lighten(hair, -0.2)),
            )


def paint_glasses(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint the person's own glasses, or the sunglasses of the attribute."""
    person, (dx, y) = subject.person, place_eyes(subject.person)
    dark = "sunglasses" in subject.attributes
    if not dark and not person.has("glasses"):
        return
    rx, ry = (0.285, 0.235) if dark else (0.235, 0.215)
    corner = 0.19 if dark else ry if person.has("round_glasses") else 0.07
    frame = make_stroke((0.05, 0.05, 0.06) if dark else (0.16, 0.12, 0.12), 0.05)
    for side in (-1, 1):
        box = skia.Rect.MakeLTRB(side * dx - rx, y - ry, side * dx + rx, y + ry)
        if dark:
            canvas.drawRoundRect(
                box,
                0.19,
                0.19,
                make_linear_fill((0, y - ry), (0, y + ry), (0.04, 0.04, 0.06), (0.22, 0.22, 0.28)),
            )
            canvas.drawPath(
                make_curve((side * dx - 0.12, y - 0.10), (side * dx, y - 0.12)), make_stroke(WHITE, 0.04, 0.7)
            )
        else:
            canvas.drawRoundRect(box, corner, corner, make_fill(WHITE, 0.14))
        canvas.drawRoundRect(box, corner, corner, frame)
        canvas.drawPath(
            make_curve((side * (dx + rx), y), (side * measure_half_width(apply_attributes(subject)), y - 0.02)), frame
        )
    canvas.drawPath(make_curve((-dx + rx, y - 0.03), (0, y - 0.09, dx - rx, y - 0.03)), frame)


def paint_hat(canvas: skia.Canvas, subject: Subject) -> None:
    """Paint a brimmed hat in the subject's accent colour."""
    w, colour = measure_half_width(apply_attributes(subject)) + 0.10, subject.accent
    crown = make_curve((-w, -0.66), (-w * 1.02, -1.62, w * 1.02, -1.62, w, -0.66), close=True)
    canvas.drawPath(crown, make_linear_fill((-w, -1.2), (w, -1.0), lighten(colour, 0.22), lighten(colour, -0.32)))
    canvas.drawPath(make_curve((-w, -0.80), (0, -0.66, w, -0.80)), make_stroke(lighten(colour, -0.55), 0.15))
    paint_ellipse(
        canvas,
        0,
        -0.64,
        w * 1.42,
        0.15,
        make_linear_fill((0, -0.8), (0, -0.5), lighten(colour, 0.12), lighten(colour, -0.35)),
    )


def paint_head(canvas: skia.Canvas, subject: Subject, light_side: float) -> None:
    """Paint ears, skin, features, hair and what is worn, back to front."""
    person, hair, skin = subject.person, choose_hair_colour(subject), subject.person.get_skin_rgb()
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
        paint_ellipse(
            canvas,
            (person.get_value("mole_x") - 0.5) * 0.95,
            0.22 + 0.5 * person.get_value("mole_y"),
            0.075,
            0.075,
            make_fill((0.14, 0.07, 0.05)),
        )
    canvas.restore()
    paint_front_hair(canvas, subject)
    canvas.save()
    canvas.translate(0.10 * subject.turn, 0)
    paint_glasses(canvas, subject)
    canvas.restore()
    if "hat" in subject.attributes:
        paint_hat(canvas, subject)
