"""Cats, dogs and bears, painted in head coordinates: origin at the face centre, unit half the head's height, y down."""

import skia

from sefi.world.animal import PET_EYES, Animal
from sefi.world.brush import WHITE, curve, ellipse, lighter, linear, paint, pen, polygon, radial
from sefi.world.person import Colour, mix
from sefi.world.picture import Pet

NOSE: Colour = (0.16, 0.10, 0.11)
PINK: Colour = (0.93, 0.62, 0.62)
CREAM: Colour = (0.96, 0.91, 0.83)


def eye_place(animal: Animal) -> tuple[float, float]:
    """Distance of each eye from the middle, and the eyes' height (y)."""
    return 0.32 + 0.10 * animal.value("eye_spacing"), -0.14


def head_width(animal: Animal) -> float:
    """Half the head's width, in half head heights."""
    return {"cat": 0.84, "dog": 0.76, "bear": 0.92}[animal.kind] + 0.12 * animal.value("face_width")


def pet_landmarks(pet: Pet) -> list[tuple[float, float]]:
    """Both eyes, the nose and both ends of the mouth, head coordinates."""
    (dx, y), shift = eye_place(pet.animal), 0.08 * pet.turn
    return [(shift - dx, y), (shift + dx, y), (shift, 0.26), (shift - 0.2, 0.52), (shift + 0.2, 0.52)]


def second_colour(animal: Animal) -> Colour:
    """The lighter or darker colour of markings, muzzle and chest."""
    coat = animal.coat_rgb()
    return mix(coat, CREAM, 0.72) if sum(coat) < 2.2 else mix(coat, (0.45, 0.35, 0.28), 0.5)


def paint_pet_body(canvas: skia.Canvas, pet: Pet, light_side: float) -> None:
    """Shoulders, chest and a collar."""
    coat = pet.animal.coat_rgb()
    torso = curve(
        (-0.52, 0.7),
        (-1.05, 1.1, -1.28, 1.9, -1.3, 2.8),
        (-1.3, 5.0),
        (1.3, 5.0),
        (1.3, 2.8),
        (1.28, 1.9, 1.05, 1.1, 0.52, 0.7),
        close=True,
    )
    canvas.drawPath(torso, linear((1.2 * light_side, 0.9), (-1.2 * light_side, 2.6), coat, lighter(coat, -0.36)))
    chest = second_colour(pet.animal)
    ellipse(canvas, 0, 2.0, 0.58, 0.95, radial((0, 1.7), 1.0, lighter(chest, 0.1), chest, fade=True))
    for side in (-1, 1):
        canvas.drawPath(curve((side * 0.46, 2.5), (side * 0.55, 3.4, side * 0.5, 4.5)), pen(lighter(coat, -0.45), 0.06))
    canvas.drawPath(curve((-0.72, 1.02), (0, 1.42, 0.72, 1.02)), pen(lighter(pet.collar, -0.25), 0.22))
    canvas.drawPath(curve((-0.72, 1.0), (0, 1.4, 0.72, 1.0)), pen(pet.collar, 0.16))
    ellipse(canvas, 0, 1.36, 0.13, 0.14, radial((-0.04, 1.3), 0.2, (1.0, 0.92, 0.55), (0.80, 0.58, 0.16)))


def paint_pet_ears(canvas: skia.Canvas, pet: Pet) -> None:
    """Pointed, hanging or round ears, behind the head."""
    animal, coat = pet.animal, pet.animal.coat_rgb()
    w, size = head_width(animal), 0.8 + 0.4 * animal.value("ear_size")
    for side in (-1, 1):
        if animal.kind == "bear":
            x, y, r = side * w * 0.78, -0.74, 0.30 * size
            ellipse(canvas, x, y, r, r, radial((x, y - 0.1), r * 1.4, lighter(coat, 0.1), lighter(coat, -0.3)))
            ellipse(canvas, x, y + 0.04, r * 0.55, r * 0.55, paint(mix(coat, PINK, 0.5)))
        elif animal.floppy:
            ear = curve(
                (side * w * 0.55, -0.86),
                (side * (w + 0.42 * size), -0.95, side * (w + 0.52 * size), 0.2, side * (w + 0.12), 0.30 + 0.25 * size),
                (side * (w - 0.08), 0.1, side * w * 0.8, -0.4, side * w * 0.55, -0.86),
                close=True,
            )
            canvas.drawPath(ear, linear((0, -0.9), (0, 0.6), lighter(coat, -0.2), lighter(coat, -0.5)))
        else:
            tip = (side * (w * 0.98), -1.0 - 0.45 * size)
            outer = polygon((side * w * 0.22, -0.82), tip, (side * w * 1.0, -0.35))
            canvas.drawPath(outer, linear((0, -1.4), (0, -0.4), lighter(coat, -0.1), lighter(coat, -0.3)))
            inner = (side * w * 0.9, -0.92 - 0.34 * size)
            canvas.drawPath(
                polygon((side * w * 0.42, -0.8), inner, (side * w * 0.9, -0.48)), paint(mix(coat, PINK, 0.6))
            )


def head_outline(animal: Animal) -> skia.Path:
    """The head: broad cheeks for cats and bears, narrower for dogs."""
    w = head_width(animal)
    cheek = {"cat": 1.0, "dog": 0.86, "bear": 0.98}[animal.kind] * w
    return curve(
        (0, -0.98),
        (w * 0.8, -0.98, w, -0.5, w, -0.08),
        (w * 1.02, 0.45, cheek * 0.75, 0.95, 0, 0.98),
        (-cheek * 0.75, 0.95, -w * 1.02, 0.45, -w, -0.08),
        (-w, -0.5, -w * 0.8, -0.98, 0, -0.98),
        close=True,
    )


def paint_markings(canvas: skia.Canvas, pet: Pet) -> None:
    """Stripes, spots or a face mask, inside the head's outline."""
    animal, second = pet.animal, second_colour(pet.animal)
    w = head_width(animal)
    dark = lighter(animal.coat_rgb(), -0.55)
    if animal.marking == "striped":
        for x in (-0.34, 0.0, 0.34):
            canvas.drawPath(curve((x * w, -1.0), (x * w * 0.9, -0.75, x * w * 0.7, -0.48)), pen(dark, 0.13))
        for side in (-1, 1):
            for y in (0.10, 0.36):
                canvas.drawPath(
                    curve((side * w, y), (side * w * 0.8, y + 0.05, side * w * 0.62, y + 0.02)), pen(dark, 0.10)
                )
    elif animal.marking == "spotted":
        for x, y, r in (
            (-0.5, -0.55, 0.24),
            (0.55, -0.35, 0.20),
            (0.15, -0.78, 0.16),
            (-0.6, 0.3, 0.18),
            (0.55, 0.42, 0.15),
        ):
            ellipse(canvas, x * w, y, r, r * 0.85, paint(second, 0.95, 0.02))
    elif animal.marking == "masked":
        canvas.drawPath(
            curve(
                (0, -0.95),
                (0.2, -0.4, w * 0.95, 0.1, w * 0.7, 1.0),
                (-w * 0.7, 1.0),
                (-w * 0.95, 0.1, -0.2, -0.4, 0, -0.95),
                close=True,
            ),
            paint(second, 0.96, 0.02),
        )


def paint_pet_eyes(canvas: skia.Canvas, pet: Pet) -> None:
    """Coloured irises; cats have slits."""
    animal, (dx, y) = pet.animal, eye_place(pet.animal)
    r = 0.145 + 0.06 * animal.value("eye_size")
    iris = PET_EYES[animal.eye_colour]
    for side in (-1, 1):
        x = side * dx
        ellipse(canvas, x, y, r * 1.16, r * 1.12, paint((0.07, 0.05, 0.05)))
        ellipse(canvas, x, y, r, r * 0.96, radial((x, y + r * 0.4), r * 1.3, lighter(iris, 0.3), lighter(iris, -0.3)))
        ellipse(canvas, x, y, r * (0.26 if animal.kind == "cat" else 0.55), r * 0.78, paint((0.02, 0.02, 0.03)))
        ellipse(canvas, x + r * 0.35, y - r * 0.4, r * 0.26, r * 0.26, paint(WHITE, 0.95))


def paint_muzzle(canvas: skia.Canvas, pet: Pet) -> None:
    """Snout, nose, mouth; whiskers for cats, a tongue for some dogs."""
    animal, second = pet.animal, second_colour(pet.animal)
    size = {"cat": 0.30, "dog": 0.40, "bear": 0.42}[animal.kind] + 0.08 * animal.value("muzzle")
    ellipse(
        canvas,
        0,
        0.44,
        size * 1.15,
        size * 0.9,
        radial((0, 0.3), size * 1.5, lighter(second, 0.2), lighter(second, -0.12)),
    )
    nose = 0.10 if animal.kind == "cat" else 0.17
    tone = mix(PINK, NOSE, 0.15) if animal.kind == "cat" else NOSE
    ellipse(canvas, 0, 0.24, nose * 1.2, nose * 0.85, radial((-0.04, 0.18), nose * 2, lighter(tone, 0.25), tone))
    line = pen((0.15, 0.09, 0.08), 0.05)
    if animal.kind == "dog" and animal.value("muzzle") > 0.4:
        ellipse(canvas, 0, 0.72, 0.14, 0.20, paint((0.90, 0.40, 0.45)))
    canvas.drawLine(0, 0.30, 0, 0.50, line)
    for side in (-1, 1):
        canvas.drawPath(curve((0, 0.50), (side * 0.14, 0.64, side * 0.28, 0.50)), line)
        if animal.kind == "cat":
            for k in (-1, 0, 1):
                canvas.drawLine(side * 0.24, 0.42 + 0.05 * k, side * 1.02, 0.36 + 0.16 * k, pen(WHITE, 0.028, 0.85))


def paint_pet_worn(canvas: skia.Canvas, pet: Pet) -> None:
    """Sunglasses and hat."""
    (dx, y), w = eye_place(pet.animal), head_width(pet.animal)
    if "sunglasses" in pet.attributes:
        for side in (-1, 1):
            box = skia.Rect.MakeLTRB(side * dx - 0.30, y - 0.20, side * dx + 0.30, y + 0.22)
            canvas.drawRoundRect(
                box, 0.14, 0.16, linear((0, y - 0.2), (0, y + 0.2), (0.04, 0.04, 0.06), (0.2, 0.2, 0.26))
            )
            canvas.drawLine(side * dx - 0.1, y - 0.1, side * dx + 0.02, y - 0.12, pen(WHITE, 0.04, 0.7))
        canvas.drawLine(-dx + 0.25, y - 0.04, dx - 0.25, y - 0.04, pen((0.05, 0.05, 0.06), 0.06))
    if "hat" in pet.attributes:
        colour = pet.accent
        crown = curve((-0.6, -0.72), (-0.62, -1.6, 0.62, -1.6, 0.6, -0.72), close=True)
        canvas.drawPath(crown, linear((-w, -1.2), (w, -1.0), lighter(colour, 0.22), lighter(colour, -0.32)))
        canvas.drawPath(curve((-0.6, -0.84), (0, -0.7, 0.6, -0.84)), pen(lighter(colour, -0.55), 0.14))
        ellipse(
            canvas,
            0,
            -0.70,
            w * 1.12,
            0.14,
            linear((0, -0.84), (0, -0.56), lighter(colour, 0.12), lighter(colour, -0.35)),
        )


def paint_pet(canvas: skia.Canvas, pet: Pet, light_side: float) -> None:
    """Body, ears, head, face and what is worn, back to front; the canvas is in head coordinates already."""
    paint_pet_body(canvas, pet, light_side)
    canvas.save()
    canvas.rotate(pet.tilt)
    paint_pet_ears(canvas, pet)
    coat, outline = pet.animal.coat_rgb(), head_outline(pet.animal)
    canvas.drawPath(outline, radial((0.35 * light_side, -0.4), 1.7, lighter(coat, 0.14), lighter(coat, -0.30)))
    canvas.save()
    canvas.clipPath(outline, True)
    paint_markings(canvas, pet)
    ellipse(canvas, -light_side * 1.15, 0.1, 0.45, 1.1, paint(lighter(coat, -0.6), 0.25, 0.16))
    canvas.restore()
    canvas.translate(0.08 * pet.turn, 0)
    paint_muzzle(canvas, pet)
    paint_pet_eyes(canvas, pet)
    paint_pet_worn(canvas, pet)
    canvas.restore()
