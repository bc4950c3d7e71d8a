"""COMPOSER: a picture's description to its pixels and to the truth about it."""

from typing import Any

import cv2
import numpy as np
import skia

from sefi.world.body import HELD, paint_body, paint_handshake, paint_umbrella, torso_path
from sefi.world.brush import new_surface, paint, pixels
from sefi.world.face import half_width, landmarks, paint_back_hair, paint_head, seen
from sefi.world.fifth_scenery import NEW_SCENES
from sefi.world.fifth_styles import NEW_STYLES, paint_light
from sefi.world.fifth_things import GARMENT_PAINTERS, NEW_HELD, paint_crown
from sefi.world.fur import paint_pet, pet_landmarks
from sefi.world.person import HAIR_STYLES
from sefi.world.picture import Pet, Picture, Subject
from sefi.world.scenery import PAINTED

UNITS = 128
SIDE = 96
BLOCKS = 24
EVERY_SCENE, EVERY_HELD = PAINTED | NEW_SCENES, HELD | NEW_HELD
LIGHT_TINTS = {"warm": (1.0, 0.72, 0.36), "cold": (0.40, 0.58, 1.0)}


def draw(picture: Picture, side: int = SIDE) -> np.ndarray:
    """The picture as uint8 RGB `[side, side, 3]`; the same description always gives the same pixels."""
    surface = new_surface(side)
    with surface as canvas:
        canvas.scale(side / UNITS, side / UNITS)
        draw_background(canvas, picture)
        for subject in picture.subjects:
            draw_subject(canvas, subject, picture.light_side)
        if picture.interaction == "shaking hands":
            paint_handshake(canvas, *picture.subjects)
        for pet in picture.pets:
            draw_pet(canvas, pet, picture.light_side)
        if picture.light in LIGHT_TINTS:
            canvas.drawPaint(paint(LIGHT_TINTS[picture.light], 0.20))
        elif picture.light:
            paint_light(canvas, picture.light, UNITS)
    return restyle(pixels(surface), picture)


def draw_background(canvas: skia.Canvas, picture: Picture) -> None:
    """Draw the scene, out of focus where the camera blurs it."""
    canvas.save()
    canvas.scale(UNITS, UNITS)
    if picture.camera == "blurred background":
        canvas.saveLayer(None, skia.Paint(ImageFilter=skia.ImageFilters.Blur(0.022, 0.022, skia.TileMode.kClamp)))
    EVERY_SCENE[picture.scene](canvas, np.random.default_rng(picture.scene_seed))
    if picture.camera == "blurred background":
        canvas.restore()
    canvas.restore()


def draw_clothes(canvas: skia.Canvas, subject: Subject) -> None:
    """Draw what the garment adds to the plain torso."""
    canvas.save()
    if subject.garment not in ("scarf", "hoodie", "spacesuit"):
        canvas.clipPath(torso_path(), True)
    GARMENT_PAINTERS[subject.garment](canvas, subject)
    canvas.restore()


def draw_subject(canvas: skia.Canvas, subject: Subject, light_side: float) -> None:
    """One person from the back to the front."""
    canvas.save()
    canvas.translate(subject.x, subject.y)
    canvas.scale(subject.scale, subject.scale)
    if subject.action == "umbrella":
        paint_umbrella(canvas, subject)
    canvas.save()
    canvas.rotate(subject.tilt)
    paint_back_hair(canvas, subject)
    canvas.restore()
    paint_body(canvas, subject, light_side)
    if subject.garment:
        draw_clothes(canvas, subject)
    canvas.save()
    canvas.rotate(subject.tilt)
    paint_head(canvas, subject, light_side)
    if "crown" in subject.attributes:
        paint_crown(canvas, subject)
    canvas.restore()
    if subject.action:
        EVERY_HELD[subject.action](canvas, subject)
    canvas.restore()


def draw_pet(canvas: skia.Canvas, pet: Pet, light_side: float) -> None:
    """One animal."""
    canvas.save()
    canvas.translate(pet.x, pet.y)
    canvas.scale(pet.scale, pet.scale)
    paint_pet(canvas, pet, light_side)
    canvas.restore()


def restyle(image: np.ndarray, picture: Picture) -> np.ndarray:
    """The photo-like drawing turned into the asked style."""
    if picture.style == "drawing":
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        edges = cv2.divide(grey, 255 - cv2.GaussianBlur(255 - grey, (0, 0), 3.0 * len(image) / UNITS), scale=246)
        shade = cv2.addWeighted(edges, 0.72, grey, 0.28, 0)
        return np.stack([shade, shade * 0.985, shade * 0.95], axis=-1).astype(np.uint8)
    if picture.style == "painting":
        return painted(image, picture.scene_seed)
    if picture.style == "pixel art":
        return pixelated(image)
    return NEW_STYLES[picture.style](image, picture.scene_seed) if picture.style in NEW_STYLES else image


def pixelated(image: np.ndarray) -> np.ndarray:
    """Pixel art: few blocks of few, strong colours.

    One block is one cell of the latents (4 pixels of 96): other sizes come back from the autoencoder blurred.
    """
    small = cv2.resize(image, (BLOCKS, BLOCKS), interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = small.mean(axis=-1, keepdims=True)
    strong = (grey + 1.35 * (small - grey) - 128) * 1.15 + 128
    levels = (np.round(strong / 32) * 32).clip(0, 255).astype(np.uint8)
    return cv2.resize(levels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def painted(image: np.ndarray, seed: int) -> np.ndarray:
    """An oil painting: flat patches (Kuwahara et al. 1976), slanted brush strokes, a warm varnish, dark corners."""
    side = len(image)
    flat = kuwahara(image.astype(np.float32), max(2, round(side / 44)))
    grain = np.random.default_rng(seed).normal(0, 1, (48, 48)).astype(np.float32)
    strokes = cv2.resize(grain, (side, side), interpolation=cv2.INTER_CUBIC)
    slant = np.eye(max(3, side // 16), dtype=np.float32)[::-1] / max(3, side // 16)
    strokes = cv2.filter2D(strokes, -1, np.ascontiguousarray(slant))
    across = np.linspace(-1, 1, side, dtype=np.float32)
    corner = np.clip(1.08 - 0.30 * (across[:, None] ** 2 + across[None] ** 2), 0, 1)
    varnish = flat * np.array([1.0, 0.93, 0.76], np.float32) + np.array([14, 6, -6], np.float32)
    return np.clip((varnish + 10 * strokes[..., None]) * corner[..., None], 0, 255).astype(np.uint8)


def kuwahara(image: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel takes the mean of the calmest of the four squares that it is a corner of; float32 `[h, w, 3]`."""
    size, padded = radius + 1, cv2.copyMakeBorder(image, radius, radius, radius, radius, cv2.BORDER_REFLECT)
    mean = cv2.blur(padded, (size, size), anchor=(0, 0))
    spread = (cv2.blur(padded**2, (size, size), anchor=(0, 0)) - mean**2).sum(-1)
    h, w = image.shape[:2]
    places = [(y, x) for y in (0, radius) for x in (0, radius)]
    calmest = np.argmin([spread[y : y + h, x : x + w] for y, x in places], axis=0)
    return np.choose(calmest[..., None], [mean[y : y + h, x : x + w] for y, x in places]).astype(np.float32)


def placed(points: list[tuple[float, float]], head: Subject | Pet) -> np.ndarray:
    """Points in head coordinates to the picture's, `[point, 2]`: tilted, enlarged, moved."""
    angle = np.deg2rad(head.tilt)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.array(points) @ turn.T * head.scale + np.array([head.x, head.y])


def face_truth(subject: Subject) -> dict[str, Any]:
    """Where the face is: box `[left, top, width, height]` and five landmarks, in units of a 128-unit square."""
    points = placed(landmarks(subject.person, subject.turn), subject)
    w = half_width(seen(subject)) * subject.scale
    top, bottom = subject.y - 0.8 * subject.scale, subject.y + subject.scale
    return {
        "box": [round(float(v), 2) for v in (subject.x - w, top, 2 * w, bottom - top)],
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in points],
    }


def pet_truth(pet: Pet) -> dict[str, Any]:
    """What an animal is and where its face is, ready for JSON."""
    points = placed(pet_landmarks(pet), pet)
    return {
        "kind": pet.animal.kind,
        "coordinates": list(pet.animal.coordinates),
        "traits": pet.animal.traits(),
        "attributes": list(pet.attributes),
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in points],
    }


def heads(picture: Picture) -> list[tuple[float, float, float, np.ndarray]]:
    """Centre x, y, half height and five landmarks of every face, people's and animals', in picture units."""
    people = [(s.x, s.y, s.scale, np.array(face_truth(s)["landmarks"])) for s in picture.subjects]
    return people + [(p.x, p.y, p.scale, np.array(pet_truth(p)["landmarks"])) for p in picture.pets]


def truth(picture: Picture) -> dict[str, Any]:
    """Everything a judge may be asked about the picture, ready for JSON."""
    subjects = [
        {
            "coordinates": list(s.person.coordinates),
            "traits": s.person.traits(),
            "hair_style": HAIR_STYLES.index(s.person.hair_style),
            "attributes": list(s.attributes),
            "action": s.action,
            **({"garment": s.garment} if s.garment else {}),
            **face_truth(s),
        }
        for s in picture.subjects
    ]
    return {
        "scene": picture.scene,
        "style": picture.style,
        "light": picture.light,
        **({"camera": picture.camera} if picture.camera else {}),
        "interaction": picture.interaction,
        "subjects": subjects,
        "pets": [pet_truth(p) for p in picture.pets],
    }
