"""Cats, dogs and bears, painted in head coordinates: origin at the face centre, unit half the head's height, y down."""

import skia

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
)
from tiny_portraits.drawing.content import Pet
from tiny_portraits.drawing.traits import PET_EYES, Animal, Colour, mix_colours

NOSE: Colour = (0.16, 0.10, 0.11)
PINK: Colour = (0.93, 0.62, 0.62)
CREAM: Colour = (0.96, 0.91, 0.83)


def place_pet_eyes(animal: Animal) -> tuple[float, float]:
    """Return the distance of each eye from the middle, and the eyes' height (y)."""
    return 0.32 + 0.10 * animal.get_value("eye_spacing"), -0.14


def measure_head_width(animal: Animal) -> float:
    """Return half the head's width, in half head heights."""
    return {"cat": 0.84, "dog": 0.76, "bear": 0.92}[animal.kind] + 0.12 * animal.get_value("face_width")


def place_pet_landmarks(pet: Pet) -> list[tuple[float, float]]:
    """Return both eyes, the nose and both ends of the mouth in head coordinates."""
    (dx, y), shift = place_pet_eyes(pet.animal), 0.08 * pet.turn
    return [(shift - dx, y), (shift + dx, y), (shift, 0.26), (shift - 0.2, 0.52), (shift + 0.2, 0.52)]


def choose_second_colour(animal: Animal) -> Colour:
    """Return the lighter or darker colour of markings, muzzle and chest."""
    coat = animal.get_coat_rgb()
    return mix_colours(coat, CREAM, 0.72) if sum(coat) < 2.2 else mix_colours(coat, (0.45, 0.35, 0.28), 0.5)


def paint_pet_body(canvas: skia.Canvas, pet: Pet, light_side: float) -> None:
    """Paint shoulders, chest and a collar."""
    coat = pet.animal.get_coat_rgb()
    torso = make_curve(
        (-0.52, 0.7),
        (-1.05, 1.1, -1.28, 1.9, -1.3, 2.8),
        (-1.3, 5.0),
        (1.3, 5.0),
        (1.3, 2.8),
        (1.28, 1.9, 1.05, 1.1, 0.52, 0.7),
        close=True,
    )
    canvas.drawPath(
        torso, make_linear_fill((1.2 * light_side, 0.9), (-1.2 * light_side, 2.6), coat, lighten(coat, -0.36))
    )
    chest = choose_second_colour(pet.animal)
    paint_ellipse(canvas, 0, 2.0, 0.58, 0.95, make_radial_fill((0, 1.7), 1.0, lighten(chest, 0.1), chest, fade=True))
    for side in (-1, 1):
        canvas.drawPath(
            make_curve((side * 0.46, 2.5), (side * 0.55, 3.4, side * 0.5, 4.5)), make_stroke(lighten(coat, -0.45), 0.06)
        )
    canvas.drawPath(make_curve((-0.72, 1.02), (0, 1.42, 0.72, 1.02)), make_stroke(lighten(pet.collar, -0.25), 0.22))
    canvas.drawPath(make_curve((-0.72, 1.0), (0, 1.4, 0.72, 1.0)), make_stroke(pet.collar, 0.16))
    paint_ellipse(
        canvas, 0, 1.36, 0.13, 0.14, make_radial_fill((-0.04, 1.3), 0.2, (1.0, 0.92, 0.55), (0.80, 0.58, 0.16))
    )


def paint_pet_ears(canvas: skia.Canvas, pet: Pet) -> None:
    """Paint pointed, hanging or round ears, behind the head."""
    animal, coat = pet.animal, pet.animal.get_coat_rgb()
    w, size = measure_head_width(animal), 0.8 + 0.4 * animal.get_value("ear_size")
    for side in (-1, 1):
        if animal.kind == "bear":
            x, y, r = side * w * 0.78, -0.74, 0.30 * size
            paint_ellipse(
                canvas, x, y, r, r, make_radial_fill((x, y - 0.1), r * 1.4, lighten(coat, 0.1), lighten(coat, -0.3))
            )
            paint_ellipse(canvas, x, y + 0.04, r * 0.55, r * 0.55, make_fill(mix_colours(coat, PINK, 0.5)))
        elif animal.floppy:
            ear = make_curve(
                (side * w * 0.55, -0.86),
                (side * (w + 0.42 * size), -0.95, side * (w + 0.52 * size), 0.2, side * (w + 0.12), 0.30 + 0.25 * size),
                (side * (w - 0.08), 0.1, side * w * 0.8, -0.4, side * w * 0.55, -0.86),
                close=True,
            )
            canvas.drawPath(ear, make_linear_fill((0, -0.9), (0, 0.6), lighten(coat, -0.2), lighten(coat, -0.5)))
        else:
            tip = (side * (w * 0.98), -1.0 - 0.45 * size)
            outer = make_polygon((side * w * 0.22, -0.82), tip, (side * w * 1.0, -0.35))
            canvas.drawPath(outer, make_linear_fill((0, -1.4), (0, -0.4), lighten(coat, -0.1), lighten(coat, -0.3)))
            inner = (side * w * 0.9, -0.92 - 0.34 * size)
            canvas.drawPath(
                make_polygon((side * w * 0.42, -0.8), inner, (side * w * 0.9, -0.48)),
                make_fill(mix_colours(coat, PINK, 0.6)),
            )


def make_head_outline(animal: Animal) -> skia.Path:
    """Return the head's outline: broad cheeks for cats and bears, narrower for dogs."""
    w = measure_head_width(animal)
    cheek = {"cat": 1.0, "dog": 0.86, "bear": 0.98}[animal.kind] * w
    return make_curve(
        (0, -0.98),
        (w * 0.8, -0.98, w, -0.5, w, -0.08),
        (w * 1.02, 0.45, cheek * 0.75, 0.95, 0, 0.98),
        (-cheek * 0.75, 0.95, -w * 1.02, 0.45, -w, -0.08),
        (-w, -0.5, -w * 0.8, -0.98, 0, -0.98),
        close=True,
    )


def paint_markings(canvas: skia.Canvas, pet: Pet) -> None:
    """Paint stripes, spots or a face mask, inside the head's outline."""
    animal, second = pet.animal, choose_second_colour(pet.animal)
    w = measure_head_width(animal)
    dark = lighten(animal.get_coat_rgb(), -0.55)
    if animal.marking == "striped":
        for x in (-0.34, 0.0, 0.34):
            canvas.drawPath(
                make_curve((x * w, -1.0), (x * w * 0.9, -0.75, x * w * 0.7, -0.48)), make_stroke(dark, 0.13)
            )
        for side in (-1, 1):
            for y in (0.10, 0.36):
                canvas.drawPath(
                    make_curve((side * w, y), (side * w * 0.8, y + 0.05, side * w * 0.62, y + 0.02)),
                    make_stroke(dark, 0.10),
                )
    elif animal.marking == "spotted":
        for x, y, r in (
            (-0.5, -0.55, 0.24),
            (0.55, -0.35, 0.20),
            (0.15, -0.78, 0.16),
            (-0.6, 0.3, 0.18),
            (0.55, 0.42, 0.15),
        ):
            paint_ellipse(canvas, x * w, y, r, r * 0.85, make_fill(second, 0.95, 0.02))
    elif animal.marking == "masked":
        canvas.drawPath(
            make_curve(
                (0, -0.95),
                (0.2, -0.4, w * 0.95, 0.1, w * 0.7, 1.0),
                (-w * 0.7, 1.0),
                (-w * 0.95, 0.1, -0.2, -0.4, 0, -0.95),
                close=True,
            ),
            make_fill(second, 0.96, 0.02),
        )


def paint_pet_eyes(canvas: skia.Canvas, pet: Pet) -> None:
    """Paint coloured irises; cats have slits."""
    animal, (dx, y) = pet.animal, place_pet_eyes(pet.animal)
    r = 0.145 + 0.06 * animal.get_value("eye_size")
    iris = PET_EYES[animal.eye_colour]
    for side in (-1, 1):
        x = side * dx
        paint_ellipse(canvas, x, y, r * 1.16, r * 1.12, make_fill((0.07, 0.05, 0.05)))
        paint_ellipse(
            canvas,
            x,
            y,
            r,
            r * 0.96,
            make_radial_fill((x, y + r * 0.4), r * 1.3, lighten(iris, 0.3), lighten(iris, -0.3)),
        )
        paint_ellipse(
            canvas, x, y, r * (0.26 if animal.kind == "cat" else 0.55), r * 0.78, make_fill((0.02, 0.02, 0.03))
        )
        paint_ellipse(canvas, x + r * 0.35, y - r * 0.4, r * 0.26, r * 0.26, make_fill(WHITE, 0.95))


def paint_muzzle(canvas: skia.Canvas, pet: Pet) -> None:
    """Paint snout, nose, mouth; whiskers for cats, a tongue for some dogs."""
    animal, second = pet.animal, choose_second_colour(pet.animal)
    size = {"cat": 0.30, "dog": 0.40, "bear": 0.42}[animal.kind] + 0.08 * animal.get_value("muzzle")
    paint_ellipse(
        canvas,
        0,
        0.44,
        size * 1.15,
        size * 0.9,
        make_radial_fill((0, 0.3), size * 1.5, lighten(second, 0.2), lighten(second, -0.12)),
    )
    nose = 0.10 if animal.kind == "cat" else 0.17
    tone = mix_colours(PINK, NOSE, 0.15) if animal.kind == "cat" else NOSE
    paint_ellipse(
        canvas, 0, 0.24, nose * 1.2, nose * 0.85, make_radial_fill((-0.04, 0.18), nose * 2, lighten(tone, 0.25), tone)
    )
    line = make_stroke((0.15, 0.09, 0.08), 0.05)
    if animal.kind == "dog" and animal.get_value("muzzle") > 0.4:
        paint_ellipse(canvas, 0, 0.72, 0.14, 0.20, make_fill((0.90, 0.40, 0.45)))
    canvas.drawLine(0, 0.30, 0, 0.50, line)
    for side in (-1, 1):
        canvas.drawPath(make_curve((0, 0.50), (side * 0.14, 0.64, side * 0.28, 0.50)), line)
        if animal.kind == "cat":
            for k in (-1, 0, 1):
                canvas.drawLine(
                    side * 0.24, 0.42 + 0.05 * k, side * 1.02, 0.36 + 0.16 * k, make_stroke(WHITE, 0.028, 0.85)
                )


def paint_pet_worn(canvas: skia.Canvas, pet: Pet) -> None:
    """Paint sunglasses and hat."""
    (dx, y), w = place_pet_eyes(pet.animal), measure_head_width(pet.animal)
    if "sunglasses" in pet.attributes:
        for side in (-1, 1):
            box = skia.Rect.MakeLTRB(side * dx - 0.30, y - 0.20, side * dx + 0.30, y + 0.22)
            canvas.drawRoundRect(
                box, 0.14, 0.16, make_linear_fill((0, y - 0.2), (0, y + 0.2), (0.04, 0.04, 0.06), (0.2, 0.2, 0.26))
            )
            canvas.drawLine(side * dx - 0.1, y - 0.1, side * dx + 0.02, y - 0.12, make_stroke(WHITE, 0.04, 0.7))
        canvas.drawLine(-dx + 0.25, y - 0.04, dx - 0.25, y - 0.04, make_stroke((0.05, 0.05, 0.06), 0.06))
    if "hat" in pet.attributes:
        colour = pet.accent
        crown = make_curve((-0.6, -0.72), (-0.62, -1.6, 0.62, -1.6, 0.6, -0.72), close=True)
        canvas.drawPath(crown, make_linear_fill((-w, -1.2), (w, -1.0), lighten(colour, 0.22), lighten(colour, -0.32)))
        canvas.drawPath(make_curve((-0.6, -0.84), (0, -0.7, 0.6, -0.84)), make_stroke(lighten(colour, -0.55), 0.14))
        paint_ellipse(
            canvas,
            0,
            -0.70,
            w * 1.12,
            0.14,
            make_linear_fill((0, -0.84), (0, -0.56), lighten(colour, 0.12), lighten(colour, -0.35)),
        )


def paint_pet(canvas: skia.Canvas, pet: Pet, light_side: float) -> None:
    """Paint body, ears, head, face and what is worn, back to front; the canvas is in head coordinates already."""
    paint_pet_body(canvas, pet, light_side)
    canvas.save()
    canvas.rotate(pet.tilt)
    paint_pet_ears(canvas, pet)
    coat, outline = pet.animal.get_coat_rgb(), make_head_outline(pet.animal)
    canvas.drawPath(
        outline, make_radial_fill((0.35 * light_side, -0.4), 1.7, lighten(coat, 0.14), lighten(coat, -0.30))
    )
    canvas.save()
    canvas.clipPath(outline, True)
    paint_markings(canvas, pet)
    paint_ellipse(canvas, -light_side * 1.15, 0.1, 0.45, 1.1, make_fill(lighten(coat, -0.6), 0.25, 0.16))
    canvas.restore()
    canvas.translate(0.08 * pet.turn, 0)
    paint_muzzle(canvas, pet)
    paint_pet_eyes(canvas, pet)
    paint_pet_worn(canvas, pet)
    canvas.restore()
